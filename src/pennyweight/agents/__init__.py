"""What acts by itself where the book is owned: timers now; relays and consumers later."""

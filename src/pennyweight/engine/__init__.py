"""The one door: a step machine that decides commands in order and proves what it did."""

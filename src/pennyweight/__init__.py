"""A money engine: one exact, durable book of balances, and five products on it."""

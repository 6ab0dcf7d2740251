"""Rows in memory, SQLite and PostgreSQL: where a book is kept."""

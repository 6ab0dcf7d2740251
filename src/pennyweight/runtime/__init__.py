"""Drives an engine: its thread, the ownership of books, fronts and frames, clocks."""

"""The ways in: HTTP, command line, console."""

"""Venues, bank clients, settlement and drift sources, for the demo and the tests."""

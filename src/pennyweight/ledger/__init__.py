"""The ground floor: what money is allowed to do. Pure rules, no clock, no I/O."""

"""The HTTP faces: one table of routes, answered by two ways, the short one and Falcon."""

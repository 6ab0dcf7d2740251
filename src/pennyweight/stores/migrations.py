"""What stores tell of their numbered migrations."""

import msgspec


class Migration(msgspec.Struct, frozen=True):
    """One change of a schema, and whether it was done."""

    number: int
    name: str
    is_applied: bool

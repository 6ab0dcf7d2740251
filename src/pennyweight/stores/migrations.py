"""Numbered migrations with checksums: what a store's package has, and whether a book is as it says."""

import hashlib
from collections.abc import Iterable
from importlib import resources

import msgspec

from pennyweight.engine.port import SchemaDrift

Known = tuple[int, str, str, str]
"""Number, name, checksum and SQL of a migration."""

Applied = tuple[int, str, str]
"""Number, name and checksum of a migration that was done."""


class Migration(msgspec.Struct, frozen=True):
    """One change of a schema, and whether it was done."""

    number: int
    name: str
    is_applied: bool


def known_migrations(package: str) -> list[Known]:
    """Return (number, name, checksum, sql) of the migrations in a package, in order."""
    folder = resources.files(package) / "migrations"
    found = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sql"):
            sql = file.read_text("utf-8")
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            found.append((int(file.name.partition("_")[0]), file.name, checksum, sql))
    return found


def check_applied(applied: list[Applied], known: Iterable[Known], what: str) -> list[Applied]:
    """Return what was done, if all of it is known and unchanged. Raises SchemaDrift."""
    expected = [migration[:3] for migration in known]
    if len(applied) > len(expected):
        raise SchemaDrift(f"the {what} is newer: it has migration {applied[-1][1]}")
    for done, mine in zip(applied, expected, strict=False):
        if tuple(done) != mine:
            raise SchemaDrift(f"migration {done[1]} is not this version's {mine[1]}")
    return applied

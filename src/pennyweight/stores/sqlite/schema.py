"""Opening database files: settings of a connection, and numbered migrations with checksums."""

import hashlib
from importlib import resources
from pathlib import Path

import apsw

from pennyweight.engine.port import SchemaDrift

PAGE_BYTES = 4096
BUSY_MILLISECONDS = 10_000

_MIGRATIONS = """
    CREATE TABLE IF NOT EXISTS migrations (
        number   INTEGER PRIMARY KEY,
        name     TEXT NOT NULL,
        checksum TEXT NOT NULL
    ) STRICT
"""


def connect_writer(path: Path, *, vfs: str | None = None) -> apsw.Connection:
    """Open, or create, a book's file for writing."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    connection = apsw.Connection(str(path), flags=flags, vfs=vfs, statementcachesize=200)
    connection.set_busy_timeout(BUSY_MILLISECONDS)
    for pragma in (
        f"page_size = {PAGE_BYTES}",
        "journal_mode = WAL",
        "synchronous = FULL",
        "wal_autocheckpoint = 0",
        "cache_size = -65536",
        "trusted_schema = OFF",
    ):
        connection.pragma(*pragma.split(" = "))
    return connection


def connect_reader(path: Path, *, vfs: str | None = None) -> apsw.Connection:
    """Open a book's file for reading."""
    flags = apsw.SQLITE_OPEN_READONLY
    connection = apsw.Connection(str(path), flags=flags, vfs=vfs, statementcachesize=100)
    connection.set_busy_timeout(BUSY_MILLISECONDS)
    connection.pragma("trusted_schema", "OFF")
    return connection


def known_migrations() -> list[tuple[int, str, str, str]]:
    """Return (number, name, checksum, sql) of this version's migrations, in order."""
    folder = resources.files("pennyweight.stores.sqlite") / "migrations"
    found = []
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sql"):
            sql = file.read_text("utf-8")
            checksum = hashlib.sha256(sql.encode()).hexdigest()
            found.append((int(file.name.partition("_")[0]), file.name, checksum, sql))
    return found


def migrate(connection: apsw.Connection) -> None:
    """Bring a file to this version's schema; to be called in a transaction.

    Raises SchemaDrift when the file has migrations that are not this version's.
    """
    connection.execute(_MIGRATIONS)
    applied = _applied(connection)
    for number, name, checksum, sql in known_migrations()[len(applied) :]:
        connection.execute(sql)
        connection.execute("INSERT INTO migrations VALUES (?, ?, ?)", (number, name, checksum))


def check_migrations(connection: apsw.Connection) -> None:
    """Check that a file has exactly this version's schema. Raises SchemaDrift."""
    if not connection.table_exists("main", "migrations"):
        raise SchemaDrift("this file is no book")
    applied, known = len(_applied(connection)), len(known_migrations())
    if applied < known:
        raise SchemaDrift(f"the book has {applied} of {known} migrations; open it for writing once")


def _applied(connection: apsw.Connection) -> list[tuple[int, str, str]]:
    """Return the migrations of a file, all of them known. Raises SchemaDrift."""
    applied = list(
        connection.execute("SELECT number, name, checksum FROM migrations ORDER BY number")
    )
    known = known_migrations()
    if len(applied) > len(known):
        raise SchemaDrift(f"the book is newer: it has migration {applied[-1][1]}")
    for (number, name, checksum), (known_number, known_name, known_checksum, _) in zip(
        applied, known, strict=False
    ):
        if (number, name, checksum) != (known_number, known_name, known_checksum):
            raise SchemaDrift(f"migration {name} is not this version's {known_name}")
    return applied

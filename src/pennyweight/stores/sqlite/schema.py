"""Opening database files: settings of a connection, and numbered migrations with checksums."""

from pathlib import Path

import apsw

from pennyweight.engine.port import NoBook, SchemaDrift, StoreError, StoreFailed
from pennyweight.stores import encoding, migrations
from pennyweight.stores.migrations import Migration
from pennyweight.stores.sqlite.keys import KeyIndex

PAGE_BYTES = 2048
"""With 300 000 accounts at batch 64, a transfer writes 10 kB by pages of 1024, 12 kB by 2048 and
17 kB by 4096, and takes 59, 53 and 50 µs of CPU."""

CACHE_KIB = 65_536
"""Pages of the writer in memory. More are in the system's cache; mapping the file gained nothing."""

BUSY_MILLISECONDS = 10_000

_MIGRATIONS = """
    CREATE TABLE IF NOT EXISTS migrations (
        number   INTEGER PRIMARY KEY,
        name     TEXT NOT NULL,
        checksum TEXT NOT NULL
    ) STRICT
"""


def connect_writer(path: Path) -> apsw.Connection:
    """Open, or create, a book's file for writing."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=200)
    configure_writer(connection)
    return connection


def configure_writer(connection: apsw.Connection) -> None:
    """Set a connection up: full sync, checkpoints by us alone."""
    connection.set_busy_timeout(BUSY_MILLISECONDS)
    for name, value in (
        ("page_size", PAGE_BYTES),
        ("journal_mode", "WAL"),
        ("synchronous", "FULL"),
        ("wal_autocheckpoint", 0),
        ("cache_size", -CACHE_KIB),
        ("trusted_schema", "OFF"),
    ):
        connection.pragma(name, value)


def connect_reader(path: Path) -> apsw.Connection:
    """Open a book's file for reading."""
    flags = apsw.SQLITE_OPEN_READONLY
    connection = apsw.Connection(str(path), flags=flags, statementcachesize=100)
    connection.set_busy_timeout(BUSY_MILLISECONDS)
    connection.pragma("trusted_schema", "OFF")
    return connection


def prepare(connection: apsw.Connection, book: str, new_incarnation: str, keys: KeyIndex) -> None:
    """Migrate a file, begin its book if there is none, and load the key index; all or nothing.

    Raises SchemaDrift, and StoreError when head and journal disagree.
    """
    connection.execute("BEGIN IMMEDIATE")
    migrate(connection)
    if connection.execute("SELECT one FROM head").get is None:
        connection.execute(
            "INSERT INTO head VALUES (1, ?, ?, 0, 0, zeroblob(32), 0, '{}')",
            (book, new_incarnation),
        )
    _check_head(connection)
    keys.load(connection)
    connection.execute("COMMIT")


def known_migrations() -> list[migrations.Known]:
    """Return this version's migrations, in order."""
    return migrations.known_migrations("pennyweight.stores.sqlite")


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


def migrations_of(path: Path) -> list[Migration]:
    """Return the migrations of a book's file, done and pending. Raises NoBook, SchemaDrift."""
    if not path.exists():
        raise NoBook(f"there is no book at {path}")
    try:
        connection = connect_reader(path)
        try:
            is_book = connection.table_exists("main", "migrations")
            done = len(_applied(connection)) if is_book else 0
        finally:
            connection.close()
    except apsw.Error as error:
        raise StoreFailed(f"{path}: {error}") from error
    return [
        Migration(number, name, position < done)
        for position, (number, name, _, _) in enumerate(known_migrations())
    ]


def _applied(connection: apsw.Connection) -> list[tuple[int, str, str]]:
    """Return the migrations of a file, all of them known. Raises SchemaDrift."""
    applied = list(
        connection.execute("SELECT number, name, checksum FROM migrations ORDER BY number")
    )
    return migrations.check_applied(applied, known_migrations(), "book")


def _check_head(connection: apsw.Connection) -> None:
    """Check that the head stands at the end of the journal. Raises StoreError."""
    sequence, chain = connection.execute("SELECT sequence, chain FROM head").fetchall()[0]
    last = connection.execute("SELECT ifnull(max(sequence), 0) FROM entries").get
    batch: list[encoding.Row] = connection.execute(
        "SELECT header, chain FROM batches ORDER BY first_sequence DESC LIMIT 1"
    ).fetchall()
    end, end_chain = 0, bytes(32)
    if batch:
        header = encoding.blob_to_header(batch[0][0])
        end, end_chain = header.first_sequence + header.count - 1, batch[0][1]
    if not sequence == last == end or chain != end_chain:
        raise StoreError(f"the head is at {sequence}, the last entry {last}, the last batch {end}")

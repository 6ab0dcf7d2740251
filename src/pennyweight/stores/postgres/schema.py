"""The tables: numbered migrations with checksums, who may do what, and a book's beginning."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pennyweight.engine.port import NoBook, SchemaDrift, StoreError, StoreUnavailable
from pennyweight.stores import encoding, migrations
from pennyweight.stores.migrations import Migration
from pennyweight.stores.postgres import codec
from pennyweight.stores.postgres.errors import of_psycopg
from pennyweight.stores.postgres.place import Place

Connection = psycopg.Connection[tuple[Any, ...]]

_LOCK = 0x70656E6E79
"""Of those who migrate at once, the first works and the others wait; where a server knows no
such locks, the number's uniqueness lets one of them through and the others look again."""

_TRIES_MAX = 10

_MIGRATIONS = """
    CREATE TABLE IF NOT EXISTS pennyweight.migrations (
        number   bigint PRIMARY KEY,
        name     text NOT NULL,
        checksum text NOT NULL
    )
"""

_WRITTEN_ONCE = ("entries", "batches", "keys")
"""The journal: whoever serves a book adds to it and changes nothing of it."""

_RIGHTS: dict[str, tuple[str, ...]] = {
    "SELECT": ("migrations",),
    "SELECT, INSERT": (*_WRITTEN_ONCE, "back_dated"),
    "SELECT, INSERT, UPDATE": ("heads", "accounts", "holds", "records", "cursors", "stage"),
    "SELECT, INSERT, DELETE": ("labels", "marks"),
    "SELECT, INSERT, UPDATE, DELETE": ("names",),
}


def known_migrations() -> list[migrations.Known]:
    """Return this version's migrations, in order."""
    return migrations.known_migrations("pennyweight.stores.postgres")


def plan(url: str) -> list[Migration]:
    """Return this version's migrations, done and pending. Raises SchemaDrift, StoreUnavailable."""
    with _asking(url) as connection:
        done = len(_applied(connection))
    return [
        Migration(number, name, position < done)
        for position, (number, name, _, _) in enumerate(known_migrations())
    ]


def migrate(url: str, *, grant: str = "") -> list[str]:
    """Bring a database to this version's schema and return the names of what was applied.

    With `grant`, a role, it may serve books from then on. Several may do it at once. Raises
    SchemaDrift, StoreUnavailable.
    """
    with _asking(url) as connection:
        _check_encoding(connection)
        applied = apply(connection)
        for statement in grants(grant) if grant else ():
            connection.execute(statement)
        return applied


@contextmanager
def _asking(url: str) -> Iterator[Connection]:
    """Lend a connection; what goes wrong on it is told in the port's words."""
    with Place(url).connect() as connection:
        try:
            yield connection
        except psycopg.Error as error:
            raise of_psycopg(error, is_lost=connection.closed).store_error() from error


def grants(role: str) -> list[str]:
    """Return the statements that let a role serve books: it can add to the journal, not change it."""
    name = '"' + role.replace('"', '""') + '"'
    statements = [f"GRANT USAGE ON SCHEMA pennyweight TO {name}"]
    for rights, tables in _RIGHTS.items():
        listed = ", ".join(f"pennyweight.{table}" for table in tables)
        statements.append(f"GRANT {rights} ON {listed} TO {name}")
    return statements


def missing_rights(connection: Connection) -> list[str]:
    """Return what this role may not do, of what serving a book asks for."""
    missing: list[str] = []
    for rights, tables in _RIGHTS.items():
        for table in tables:
            for right in rights.split(", "):
                row = connection.execute(
                    "SELECT has_table_privilege(%s, %s)", (f"pennyweight.{table}", right)
                ).fetchone()
                if row is None or not row[0]:
                    missing.append(f"{right} on {table}")
    return missing


def may_change_journal(connection: Connection) -> bool:
    """Whether this role could change what is written; one that serves books should not."""
    checks = " OR ".join(
        f"has_table_privilege('pennyweight.{table}', '{right}')"
        for table in _WRITTEN_ONCE
        for right in ("UPDATE", "DELETE", "TRUNCATE")
    )
    row = connection.execute(f"SELECT {checks}").fetchone()
    return bool(row and row[0])


def undurable(connection: Connection) -> list[str]:
    """Return the server's settings under which what was committed can be lost in a crash."""
    rows = connection.execute(
        "SELECT name FROM pg_settings WHERE setting = 'off'"
        " AND name IN ('fsync', 'full_page_writes', 'synchronous_commit') ORDER BY name"
    ).fetchall()
    return [name for (name,) in rows]


def pending(connection: Connection) -> list[migrations.Known]:
    """Return the migrations that a database lacks. Raises SchemaDrift."""
    return known_migrations()[len(_applied(connection)) :]


def apply(connection: Connection) -> list[str]:
    """Apply what is pending, all or nothing; see `migrate`."""
    is_locked = True
    for attempt in range(1, _TRIES_MAX + 1):
        try:
            with connection.transaction():
                if is_locked:
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                return _apply(connection)
        except psycopg.errors.UndefinedFunction:
            is_locked = False  # another engine: see `_LOCK`
        except psycopg.errors.InsufficientPrivilege:
            raise
        except (
            psycopg.OperationalError,
            psycopg.InternalError,
            psycopg.ProgrammingError,
            psycopg.IntegrityError,
        ) as error:
            failure = of_psycopg(error, is_lost=connection.closed)
            if failure.is_lost or attempt == _TRIES_MAX:
                raise StoreUnavailable(f"the migration failed: {failure}") from error
            time.sleep(random.uniform(0, 0.1))  # noqa: S311 - another one was at it
    raise AssertionError("unreachable")  # pragma: no cover


def _apply(connection: Connection) -> list[str]:
    connection.execute("CREATE SCHEMA IF NOT EXISTS pennyweight")
    connection.execute(_MIGRATIONS)
    applied = []
    for number, name, checksum, sql in pending(connection):
        connection.execute(sql)
        connection.execute(
            "INSERT INTO pennyweight.migrations VALUES (%s, %s, %s)", (number, name, checksum)
        )
        applied.append(name)
    return applied


def _applied(connection: Connection) -> list[tuple[int, str, str]]:
    """Return the migrations of a database, all of them known. Raises SchemaDrift."""
    try:
        applied = connection.execute(
            "SELECT number, name, checksum FROM pennyweight.migrations ORDER BY number"
        ).fetchall()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return []
    return migrations.check_applied(applied, known_migrations(), "database")


# ── a book ────────────────────────────────────────────────────────────────────────


def prepare(connection: Connection, where: str) -> None:
    """Bring a database to this version's schema if this role may. Raises SchemaDrift."""
    _check_encoding(connection)
    names = [name for _, name, _, _ in pending(connection)]
    if not names:
        return
    try:
        apply(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise SchemaDrift(
            f"{where} lacks {', '.join(names)}, and this role may not create tables: "
            "run `pennyweight migrate --apply --store URL` with the role that owns them"
        ) from error


def check_migrations(connection: Connection, where: str) -> None:
    """Check that a database has exactly this version's schema. Raises SchemaDrift."""
    names = [name for _, name, _, _ in pending(connection)]
    if names:
        raise SchemaDrift(
            f"{where} lacks {', '.join(names)}: run `pennyweight migrate --apply --store URL`"
        )


def begin_book(connection: Connection, book: str, new_incarnation: str) -> None:
    """Begin a book if there is none; several may. Raises NoBook where it should not begin."""
    if _has_book(connection, book):
        return
    if not new_incarnation:
        raise NoBook(f"there is no book {book} in this database")
    connection.execute(
        """
        INSERT INTO pennyweight.heads (book, incarnation, epoch, sequence, chain, committed_at,
                                       counters)
        VALUES (%s, %s, 0, 0, %s, 0, '{}') ON CONFLICT (book) DO NOTHING
        """,
        (book, codec.to_text(new_incarnation), bytes(32)),
    )


def _has_book(connection: Connection, book: str) -> bool:
    return bool(
        connection.execute("SELECT 1 FROM pennyweight.heads WHERE book = %s", (book,)).fetchall()
    )


def check_head(connection: Connection, book: str) -> None:
    """Check that the head stands at the end of the journal. Raises StoreError."""
    row = connection.execute(
        """
        SELECT head.sequence, head.chain, last.sequence, batch.header, batch.chain
        FROM pennyweight.heads AS head
        LEFT JOIN LATERAL (
            SELECT sequence FROM pennyweight.entries
            WHERE book = head.book ORDER BY sequence DESC LIMIT 1
        ) AS last ON true
        LEFT JOIN LATERAL (
            SELECT header, chain FROM pennyweight.batches
            WHERE book = head.book ORDER BY first_sequence DESC LIMIT 1
        ) AS batch ON true
        WHERE head.book = %s
        """,
        (book,),
    ).fetchone()
    if row is None:
        raise StoreError("the book has lost its head row")
    sequence, chain, last, blob, end_chain = row
    end = 0
    if blob is not None:
        header = encoding.blob_to_header(blob)
        end = header.first_sequence + header.count - 1
    if not sequence == (last or 0) == end or chain != (end_chain or bytes(32)):
        raise StoreError(
            f"the head is at {sequence}, the last entry {last or 0}, the last batch {end}"
        )


def _check_encoding(connection: Connection) -> None:
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {None, "UTF8"}:
        raise StoreError(f"the database is encoded in {encoding}, books need UTF8")

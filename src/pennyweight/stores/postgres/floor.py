"""What a commit costs at least: one small row, one statement, one connection, of this server."""

import secrets
import time

import psycopg
from psycopg import sql

from pennyweight.stores.postgres.errors import of_psycopg
from pennyweight.stores.postgres.place import Place

_ROW = b"." * 100


def commit_times(url: str, seconds: float) -> list[int]:
    """Commit one row after the other; return how long each took, in nanoseconds.

    They go into a table of our own that goes away again. Empty where this role may make
    none. Raises StoreError.
    """
    try:
        with Place(url).connect() as connection:
            return _measured(connection, f"pennyweight_floor_{secrets.token_hex(6)}", seconds)
    except psycopg.errors.InsufficientPrivilege:
        return []
    except psycopg.Error as error:
        raise of_psycopg(error, is_lost=False).store_error() from error


def _measured(
    connection: psycopg.Connection[tuple[object, ...]], name: str, seconds: float
) -> list[int]:
    schema, table = sql.Identifier(name), sql.Identifier(name, "rows")
    connection.execute(sql.SQL("CREATE SCHEMA {}").format(schema))
    try:
        connection.execute(
            sql.SQL("CREATE TABLE {} (number bigint PRIMARY KEY, body bytea)").format(table)
        )
        insert = sql.SQL("INSERT INTO {} VALUES (%s, %s)").format(table).as_string(connection)
        times: list[int] = []
        clock = time.perf_counter_ns
        until = clock() + int(seconds * 1e9)
        while not times or clock() < until:
            started = clock()
            connection.execute(insert.encode(), (len(times), _ROW))
            times.append(clock() - started)
        return times
    finally:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(schema))

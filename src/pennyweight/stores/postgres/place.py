"""Where a database is: its URL, and connections to it that notice when they are dead."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pennyweight.engine.port import StoreError, StoreUnavailable
from pennyweight.stores.postgres.errors import of_connecting

_DEFAULTS = {
    "application_name": "pennyweight",
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
"""A peer that is gone is noticed within about ten seconds, on either side of a request."""

FIRST_ANSWER_SECONDS_MAX = 5.0
"""How long the first statements on a new connection may take."""

PREPARE = "prepare"
"""Parameter of our own: `?prepare=off` for a pooler that mixes up prepared statements."""


class Place:
    """A database, by URL. All that a URL says goes before our defaults."""

    def __init__(self, url: str) -> None:
        """Raises StoreError for what is no URL of a database."""
        url, is_prepared = _without_ours(url)
        try:
            self._parameters: dict[str, Any] = {**_DEFAULTS, **conninfo_to_dict(url)}
        except psycopg.ProgrammingError as error:
            raise StoreError(f"this is no URL of a database: {error}") from None
        self._parameters["client_encoding"] = "UTF8"
        self.is_prepared = is_prepared
        """Whether statements are prepared, and sessions have settings."""

    def __str__(self) -> str:
        """Return where it is, for people, without a password."""
        known = self._parameters
        return f"{known.get('host', '')}:{known.get('port', 5432)}/{known.get('dbname', '')}"

    def connect(
        self, *settings: str, is_durable: bool = False
    ) -> "psycopg.Connection[tuple[Any, ...]]":
        """Open a connection, with these settings where the server knows them.

        Each statement is a transaction; with `is_durable` its commit waits for the disk, whatever
        the role says. Raises StoreUnavailable.
        """
        try:
            connection = psycopg.Connection.connect(
                **self._parameters,
                autocommit=True,
                prepare_threshold=2 if self.is_prepared else None,
            )
        except psycopg.Error as error:
            raise of_connecting(error) from None
        try:
            if self.is_prepared:
                with _cut_when_overdue(connection):
                    _set(connection, settings)
                    if is_durable:
                        _set_durable(connection)
        except psycopg.Error as error:
            connection.close()
            raise of_connecting(error) from None
        return connection


def _set(connection: "psycopg.Connection[Any]", settings: tuple[str, ...]) -> None:
    """Set what the server knows; they make things faster or errors sooner, never right."""
    if not settings:
        return
    try:
        connection.execute("; ".join(f"SET {setting}" for setting in settings))
    except psycopg.errors.OperationalError:
        raise
    except psycopg.Error:  # another engine: what it knows, one by one
        for setting in settings:
            try:
                connection.execute(f"SET {setting}")
            except psycopg.errors.OperationalError:
                raise
            except psycopg.Error:
                continue


def _set_durable(connection: "psycopg.Connection[Any]") -> None:
    """Have commits wait for the disk where they need not.

    Stronger settings (`remote_apply`) and chosen weaker ones of a group (`local`) stay.
    """
    try:
        connection.execute(
            "SELECT set_config('synchronous_commit', 'on', false)"
            " WHERE current_setting('synchronous_commit') = 'off'"
        )
    except psycopg.errors.OperationalError:
        raise
    except psycopg.Error:
        return  # another engine, which has no such setting


def line_of(connection: "psycopg.Connection[Any]") -> socket.socket:
    """Return the socket of a new connection once more, under a descriptor of our own.

    Raises StoreUnavailable, and closes the connection, where there is none left.
    """
    try:
        return socket.socket(fileno=os.dup(connection.pgconn.socket))
    except (OSError, psycopg.Error) as error:
        connection.close()
        raise StoreUnavailable(f"the new connection is of no use: {error}") from None


@contextmanager
def _cut_when_overdue(connection: "psycopg.Connection[Any]") -> Iterator[None]:
    """Shut a new line down if the server does not answer on it: nobody watches it yet."""
    is_over = threading.Lock()
    line = line_of(connection)

    def cut() -> None:
        with is_over, contextlib.suppress(OSError):
            line.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(FIRST_ANSWER_SECONDS_MAX, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with is_over:
            line.close()


def _without_ours(url: str) -> tuple[str, bool]:
    """Return a URL without our own parameter, and whether statements are prepared."""
    base, mark, query = url.partition("?")
    if not mark:
        return url, True
    pairs = parse_qsl(query, keep_blank_values=True)
    rest = [pair for pair in pairs if pair[0] != PREPARE]
    said = [value.lower() for name, value in pairs if name == PREPARE]
    for value in said:
        if value not in {"on", "off"}:
            raise StoreError(f"{PREPARE} in the URL is on or off")
    rest_of_query = urlencode(rest, quote_via=quote)
    return (f"{base}?{rest_of_query}" if rest else base), "off" not in said

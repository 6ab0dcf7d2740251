"""Outside the journal: the lease, small settings, a new life. On a connection of its own.

The lease is in the head's row, by the server's clock. Each call is one statement.
"""

# ruff: noqa: S608 - statements are put together from constants; values are parameters

import random
import threading
import time
from typing import Any, TypeVar

import psycopg

from pennyweight.engine.port import Lease, StoreError, StoreInUse, StoreUnavailable
from pennyweight.stores.postgres.channel import Channel, Meter, Watchdog
from pennyweight.stores.postgres.errors import ServerError, of_psycopg
from pennyweight.stores.postgres.place import Place

TRIES_MAX = 8

SETTINGS = ("lock_timeout = '2s'",)

_NOW = "(SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS now)"

_CLAIM = f"""
    UPDATE pennyweight.heads
    SET epoch = CASE WHEN owner = %(owner)s AND expires_at > now THEN epoch ELSE epoch + 1 END,
        lease_epoch = CASE WHEN owner = %(owner)s AND expires_at > now THEN epoch ELSE epoch + 1 END,
        owner = %(owner)s, address = %(address)s, expires_at = now + %(life)s
    FROM {_NOW} AS clock
    WHERE book = %(book)s AND (owner IS NULL OR owner = %(owner)s OR expires_at <= now)
    RETURNING lease_epoch, owner, address, expires_at, now
"""
_GIVE_UP = """
    UPDATE pennyweight.heads SET address = '', expires_at = 0
    WHERE book = %(book)s AND owner = %(owner)s
"""
LEASE = f"""
    SELECT lease_epoch, owner, address, expires_at, now
    FROM pennyweight.heads, {_NOW} AS clock
    WHERE book = %(book)s AND owner IS NOT NULL
"""
_STAGE = """
    INSERT INTO pennyweight.stage AS old (book, name, value)
    VALUES (%(book)s, %(name)s, %(value)s)
    ON CONFLICT (book, name) DO {taken}
"""
_RENEW = f"""
    UPDATE pennyweight.heads SET incarnation = %(incarnation)s
    FROM {_NOW} AS clock
    WHERE book = %(book)s AND (owner IS NULL OR expires_at <= now)
"""

T = TypeVar("T")
Rows = list[tuple[Any, ...]]


class Office:
    """What is kept beside the journal. Safe from any thread; one call at a time."""

    def __init__(self, place: Place, book: str, watchdog: Watchdog) -> None:
        """Nothing is open yet."""
        self.epoch = 0
        """That of the lease which was claimed here last; 0 for none."""
        self._place = place
        self._book = book
        self._watchdog = watchdog
        self._lock = threading.Lock()
        self._channel: Channel | None = None
        self._is_closed = False

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._is_closed = True
            self._drop()

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def claim(self, owner: str, address: str, life_microseconds: int) -> Lease | None:
        """See `Store`."""
        rows = self._change(_CLAIM, owner=owner, address=address, life=life_microseconds)
        if not rows:
            self.epoch = 0
            return None
        lease = lease_of(rows[0])
        self.epoch = lease.epoch
        return lease

    def give_up(self, owner: str) -> None:
        """See `Store`."""
        self.epoch = 0
        self._change(_GIVE_UP, owner=owner)

    def stage(self, name: str, value: str, *, is_first: bool) -> None:
        """See `Store`."""
        taken = "NOTHING" if is_first else "UPDATE SET value = excluded.value"
        self._change(_STAGE.format(taken=taken), name=name, value=value)

    def renew(self, incarnation: str) -> None:
        """See `Store`."""
        if not self._change(_RENEW + " RETURNING 1", incarnation=incarnation):
            rows = self._change(LEASE)
            raise StoreInUse(0, rows[0][1] if rows else "somebody")

    def _change(self, sql: str, **values: Any) -> Rows:
        """Run one statement, again where it lost against another. Raises StoreUnavailable.

        A connection that turns out to be broken is opened again once: all that is done here
        may be done twice.
        """
        with self._lock:
            has_reconnected = False
            for attempt in range(1, TRIES_MAX + 1):
                try:
                    return self._run(sql, values)
                except ServerError as error:
                    if error.is_stale and attempt < TRIES_MAX:
                        self._drop()
                    elif error.is_again and attempt < TRIES_MAX:
                        time.sleep(random.uniform(0, 0.02))  # noqa: S311
                    elif error.is_lost and not has_reconnected:
                        has_reconnected = True
                    else:
                        failure = error.store_error()
                        raise failure from None
            raise AssertionError("unreachable")  # pragma: no cover

    def _run(self, sql: str, values: dict[str, Any]) -> Rows:
        channel = self._open()
        channel.is_doubtful = False
        channel.watch()
        try:
            cursor = channel.connection.execute(sql, {"book": self._book, **values})
            rows: Rows = cursor.fetchall() if cursor.description is not None else []
        except psycopg.Error as error:
            failure = of_psycopg(error, is_lost=channel.connection.closed)
            if failure.is_lost or failure.state == "25006":
                self._drop()
            raise failure from None
        finally:
            channel.unwatch()
        if channel.is_doubtful:
            raise StoreUnavailable("no standby confirms what is committed", "store_unconfirmed")
        return rows

    def _open(self) -> Channel:
        if self._is_closed:
            raise StoreError("the book is closed")
        if self._channel is None or self._channel.is_lost:
            self._drop()
            connection = self._place.connect(*SETTINGS)
            self._channel = Channel(connection, Meter(), is_prepared=self._place.is_prepared)
            self._watchdog.watch(self._channel)
        return self._channel


def lease_of(row: tuple[Any, ...]) -> Lease:
    """Return the lease of a row of `LEASE`."""
    epoch, owner, address, expires_at, now = row
    return Lease(epoch=epoch, owner=owner, address=address, expires_at=expires_at, now=now)

"""Reading committed facts: a few connections, lent one call at a time.

Every call is one statement, and may be made twice: a connection that turns out to be broken
(the server was stopped, a failover) is thrown away and the call made on another, until a
fresh one fails too. That finds out what a check before each use would, without its round trip.
"""

# ruff: noqa: S608 - statements are put together from constants; values are parameters

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.adapt import Buffer, Loader

from pennyweight.engine.port import (
    BackDatedLine,
    BatchHeader,
    Due,
    Head,
    KeyRow,
    Listing,
    StoreError,
    StoreUnavailable,
)
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.entries import CursorMove
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.records import Record
from pennyweight.stores import encoding
from pennyweight.stores.postgres import codec
from pennyweight.stores.postgres.channel import Channel, Meter, Watchdog
from pennyweight.stores.postgres.errors import ServerError, of_psycopg
from pennyweight.stores.postgres.lease import LEASE
from pennyweight.stores.postgres.place import Place

READERS_MAX = 8
"""Connections that read at one time; more callers wait."""

WAITING_MAX = 256
"""Callers that wait for one of them; more are refused at once."""

WAIT_SECONDS_MAX = 5.0

TRIES_MAX = 8

SETTINGS = ("default_transaction_read_only = on", "jit = off", "statement_timeout = '30s'")

_FETCH = 2_000
"""Rows of a stream that are fetched at a time."""

_HEAD_OF_BOOK = """
    SELECT book, incarnation, epoch, sequence, chain, committed_at, counters
    FROM pennyweight.heads WHERE book = %(book)s
"""
_INTEGER_MAX = 2**63 - 1
_LISTINGS = """
    SELECT 'label', label, 0, kind, id FROM pennyweight.labels WHERE book = %(book)s
    UNION ALL SELECT 'name', name, 0, kind, id FROM pennyweight.names WHERE book = %(book)s
    UNION ALL SELECT 'mark', place, rank, kind, id FROM pennyweight.marks WHERE book = %(book)s
"""
_TABLES = [
    "heads",
    "batches",
    "entries",
    "keys",
    "accounts",
    "holds",
    "records",
    "labels",
    "names",
    "marks",
    "back_dated",
    "cursors",
    "stage",
]
_SIZE = " + ".join(f"pg_total_relation_size('pennyweight.{table}')" for table in _TABLES)


class _WholeNumber(Loader):
    """Reads amounts, which are `numeric`, as integers."""

    def load(self, data: Buffer) -> int:
        """Return the number that the text shows."""
        return int(bytes(data))


class Readers:
    """Committed facts for those who do not decide. Safe from any thread."""

    def __init__(self, place: Place, book: str, watchdog: Watchdog) -> None:
        """Nothing is open yet."""
        self._place = place
        self._book = book
        self._watchdog = watchdog
        self._free: list[Channel] = []
        self._slots = threading.BoundedSemaphore(READERS_MAX)
        self._waiting = 0
        self._is_closed = False

    def close(self) -> None:
        """Close what is not lent."""
        self._is_closed = True
        while self._free:
            self._free.pop().close()

    def give_up_idle(self) -> bool:
        """Close the connections that nobody uses: who decides needs one. Whether there were any."""
        were_any = False
        with contextlib.suppress(IndexError):  # others may take them meanwhile
            while True:
                self._free.pop().close()
                were_any = True
        return were_any

    # ── lending ───────────────────────────────────────────────────────────────────

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Wait for a turn, a bounded time behind a bounded number. Raises StoreUnavailable."""
        if not self._slots.acquire(blocking=False):
            if self._waiting >= WAITING_MAX:
                raise StoreUnavailable("too many wait for a connection", "store_busy")
            self._waiting += 1
            try:
                if not self._slots.acquire(timeout=WAIT_SECONDS_MAX):
                    raise StoreUnavailable("no connection became free in time", "store_busy")
            finally:
                self._waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    def _connect(self) -> Channel:
        connection = self._place.connect(*SETTINGS)
        connection.adapters.register_loader("numeric", _WholeNumber)
        channel = Channel(connection, Meter(), is_prepared=self._place.is_prepared)
        self._watchdog.watch(channel)
        return channel

    def all(self, sql: str, **values: Any) -> list[encoding.Row]:
        """Return all rows of one statement; what could not be stored cannot be found."""
        values = {name: _stored(value) for name, value in values.items()}
        values["book"] = self._book
        with self._slot():
            try:
                return self._answered(sql, values)
            except UnicodeEncodeError:
                return []
            except ServerError as error:
                if error.is_contradiction:
                    return []
                raise error.store_error() from None

    def _answered(self, sql: str, values: dict[str, Any]) -> list[encoding.Row]:
        """Run a statement until a connection answers it. Raises ServerError, StoreUnavailable."""
        tries = 0
        while True:
            channel, is_fresh = self._take()
            try:
                return self._ask(channel, sql, values)
            except ServerError as error:
                if error.is_again and tries < TRIES_MAX:
                    tries += 1
                    time.sleep(random.uniform(0, 0.02))  # noqa: S311
                elif error.is_stale and tries < TRIES_MAX:
                    tries += 1
                elif is_fresh or not channel.is_lost:
                    raise

    def _take(self) -> tuple[Channel, bool]:
        """Return a connection, and whether it is fresh."""
        if self._is_closed:
            raise StoreError("the book is closed")
        try:
            return self._free.pop(), False
        except IndexError:  # asked first, another thread could take the last one in between
            return self._connect(), True

    def _ask(self, channel: Channel, sql: str, values: dict[str, Any]) -> list[encoding.Row]:
        """Run one statement; its connection is free again, or closed. Raises ServerError."""
        channel.watch()
        try:
            rows: list[encoding.Row] = channel.connection.execute(sql, values).fetchall()
        except psycopg.Error as error:
            failure = of_psycopg(error, is_lost=channel.connection.closed)
            if failure.is_lost or failure.is_stale:
                channel.close()
            raise failure from None
        except BaseException:
            channel.close()
            raise
        finally:
            channel.unwatch()
            self._give_back(channel)
        return rows

    def _give_back(self, channel: Channel) -> None:
        if self._is_closed:
            channel.close()
        elif not channel.is_lost:
            self._free.append(channel)

    def one(self, sql: str, **values: Any) -> Any:
        """Return the first column of the first row, or None."""
        rows = self.all(sql, **values)
        return rows[0][0] if rows else None

    # ── the journal ───────────────────────────────────────────────────────────────

    def head(self) -> Head:
        """See `Store`."""
        rows = self.all(_HEAD_OF_BOOK)
        if not rows:
            raise StoreError("the book has lost its head row")
        return encoding.head_of(rows[0])

    def entries(
        self, after: int, limit: int, *, product: str | None = None, is_descending: bool = False
    ) -> list[tuple[int, bytes]]:
        """See `Store`."""
        of_product = "" if product is None else "AND product = %(product)s"
        beyond, order = ("<", "DESC") if is_descending else (">", "")
        return self.all(
            f"SELECT sequence, body FROM pennyweight.entries"
            f" WHERE book = %(book)s {of_product} AND sequence {beyond} %(after)s"
            f" ORDER BY sequence {order} LIMIT %(limit)s",
            product=product,
            after=_clamped(after),
            limit=limit,
        )

    def entry(self, sequence: int) -> bytes | None:
        """See `Store`."""
        body: bytes | None = self.one(
            "SELECT body FROM pennyweight.entries"
            " WHERE book = %(book)s AND sequence = %(sequence)s::bigint",
            sequence=sequence,
        )
        return body

    def batches(self, after: int, limit: int) -> list[tuple[BatchHeader, bytes]]:
        """See `Store`."""
        rows = self.all(
            "SELECT header, chain FROM pennyweight.batches"
            " WHERE book = %(book)s AND first_sequence > %(after)s"
            " ORDER BY first_sequence LIMIT %(limit)s",
            after=_clamped(after),
            limit=limit,
        )
        return [(encoding.blob_to_header(header), chain) for header, chain in rows]

    def batch_at(
        self, *, sequence: int | None = None, time: int | None = None
    ) -> BatchHeader | None:
        """See `Store`."""
        column = "first_sequence" if sequence is not None else "committed_at"
        last = sequence if sequence is not None else _INTEGER_MAX if time is None else time
        blob = self.one(
            f"SELECT header FROM pennyweight.batches"
            f" WHERE book = %(book)s AND {column} <= %(last)s ORDER BY {column} DESC LIMIT 1",
            last=_clamped(last),
        )
        if blob is None:
            return None
        header = encoding.blob_to_header(blob)
        if sequence is not None and sequence >= header.first_sequence + header.count:
            return None
        return header

    def receipt(self, product: str, key: str) -> bytes | None:
        """See `Store`."""
        body: bytes | None = self.one(
            "SELECT body FROM pennyweight.keys JOIN pennyweight.entries USING (book, sequence)"
            " WHERE book = %(book)s AND keys.product = %(product)s AND key = %(key)s",
            product=product,
            key=key,
        )
        return body

    def keys_after(self, after: tuple[str, str], limit: int) -> list[tuple[str, str]]:
        """Return bound pairs of product and key, in order, after a pair."""
        rows = self.all(
            "SELECT product, key FROM pennyweight.keys WHERE book = %(book)s"
            " AND (product, key) > (%(product)s, %(key)s) ORDER BY product, key LIMIT %(limit)s",
            product=after[0],
            key=after[1],
            limit=limit,
        )
        return [(codec.of_text(product), codec.of_text(key)) for product, key in rows]

    # ── facts ─────────────────────────────────────────────────────────────────────

    def account(self, account_id: str) -> Account | None:
        """See `Store`."""
        rows = self.all(
            f"SELECT {codec.ACCOUNT} FROM pennyweight.accounts"
            " WHERE book = %(book)s AND id = %(id)s",
            id=account_id,
        )
        return codec.account_of(rows[0]) if rows else None

    def accounts(
        self,
        after: int,
        limit: int,
        *,
        holder: str | None = None,
        asset: str | None = None,
        is_owing: bool = False,
    ) -> list[Account]:
        """See `Store`."""
        conditions = ["book = %(book)s", "number > %(after)s"]
        if holder is not None:
            conditions.append("holder = %(holder)s")
        if asset is not None:
            conditions.append("asset = %(asset)s")
        if is_owing:
            conditions.append("owed <> 0")
        rows = self.all(
            f"SELECT {codec.ACCOUNT} FROM pennyweight.accounts"
            f" WHERE {' AND '.join(conditions)} ORDER BY number LIMIT %(limit)s",
            after=_clamped(after),
            limit=limit,
            holder=holder,
            asset=asset,
        )
        return [codec.account_of(row) for row in rows]

    def hold(self, hold_id: int) -> Hold | None:
        """See `Store`."""
        rows = self.all(
            f"SELECT {codec.HOLD} FROM pennyweight.holds"
            " WHERE book = %(book)s AND id = %(id)s::bigint",
            id=hold_id,
        )
        return codec.hold_of(rows[0]) if rows else None

    def hold_of_reference(self, owner: str, reference: str) -> Hold | None:
        """See `Store`."""
        rows = self.all(
            f"SELECT {codec.HOLD} FROM pennyweight.holds"
            " WHERE book = %(book)s AND owner = %(owner)s AND reference = %(reference)s"
            " AND reference <> ''",
            owner=owner,
            reference=reference,
        )
        return codec.hold_of(rows[0]) if rows else None

    def holds(self, account_id: str, after: int, limit: int) -> list[Hold]:
        """See `Store`."""
        rows = self.all(
            f"SELECT {codec.HOLD} FROM pennyweight.holds"
            " WHERE book = %(book)s AND account = %(account)s AND id > %(after)s"
            " AND state = 'open' ORDER BY id LIMIT %(limit)s",
            account=account_id,
            after=_clamped(after),
            limit=limit,
        )
        return [codec.hold_of(row) for row in rows]

    def record(self, kind: str, record_id: str) -> Record | None:
        """See `Store`."""
        blob = self.one(
            "SELECT record FROM pennyweight.records"
            " WHERE book = %(book)s AND kind = %(kind)s AND id = %(id)s",
            kind=kind,
            id=record_id,
        )
        return None if blob is None else encoding.blob_to_record(blob)

    def records(
        self, kind: str, *, label: str | None = None, after: str = "", limit: int = 100
    ) -> list[Record]:
        """See `Store`."""
        if label is None:
            sql = """
                SELECT record FROM pennyweight.records
                WHERE book = %(book)s AND kind = %(kind)s AND id > %(after)s
                ORDER BY id LIMIT %(limit)s
            """
        else:
            sql = """
                SELECT record FROM (
                    SELECT id FROM pennyweight.labels
                    WHERE book = %(book)s AND kind = %(kind)s AND label = %(label)s
                        AND id > %(after)s
                    UNION SELECT id FROM pennyweight.names
                    WHERE book = %(book)s AND kind = %(kind)s AND name = %(label)s
                        AND id > %(after)s
                    ORDER BY id LIMIT %(limit)s
                ) AS listed
                JOIN pennyweight.records AS found
                    ON found.book = %(book)s AND found.kind = %(kind)s AND found.id = listed.id
                ORDER BY listed.id
            """
        rows = self.all(sql, kind=kind, label=label, after=after, limit=limit)
        return [encoding.blob_to_record(blob) for (blob,) in rows]

    def record_named(self, kind: str, name: str) -> Record | None:
        """See `Store`."""
        blob = self.one(
            "SELECT record FROM pennyweight.names JOIN pennyweight.records USING (book, kind, id)"
            " WHERE book = %(book)s AND kind = %(kind)s AND name = %(name)s",
            kind=kind,
            name=name,
        )
        return None if blob is None else encoding.blob_to_record(blob)

    def due(
        self,
        index: str,
        low: int,
        high: int,
        *,
        after: tuple[int, str] | None = None,
        limit: int = 100,
    ) -> list[Due]:
        """See `Store`."""
        rank, first, beyond = low, "", ">="
        if after is not None and after[0] >= low:
            (rank, first), beyond = after, ">"
        values = {
            "index": index,
            "rank": _clamped(rank),
            "high": _clamped(high),
            "first": first,
            "limit": limit,
        }
        rows = self.all(
            f"SELECT rank, kind, id FROM pennyweight.marks"
            f" WHERE book = %(book)s AND place = %(index)s AND rank <= %(high)s"
            f" AND (rank, id) {beyond} (%(rank)s, %(first)s)"
            f" ORDER BY rank, id, kind LIMIT %(limit)s",
            **values,
        )
        if index == "hold_expiry":
            rows += self.all(
                f"SELECT expires_at, 'hold', id::text FROM pennyweight.holds"
                f" WHERE book = %(book)s AND state = 'open' AND expires_at IS NOT NULL"
                f" AND expires_at <= %(high)s"
                f' AND (expires_at, id::text COLLATE "C") {beyond} (%(rank)s, %(first)s)'
                f' ORDER BY expires_at, id::text COLLATE "C" LIMIT %(limit)s',
                **values,
            )
            rows = sorted(rows, key=lambda row: (row[0], row[2]))[:limit]
        return [Due(index, rank, kind, codec.of_text(key)) for rank, kind, key in rows]

    def back_dated(self, account_id: str, effective_until: int, committed_after: int) -> int:
        """See `Store`."""
        total: int | None = self.one(
            "SELECT sum(change) FROM pennyweight.back_dated WHERE book = %(book)s"
            " AND account = %(account)s AND effective_at <= %(until)s"
            " AND committed_at > %(after)s",
            account=account_id,
            until=_clamped(effective_until),
            after=_clamped(committed_after),
        )
        return total or 0

    def cursors(self) -> dict[str, int]:
        """See `Store`."""
        rows = self.all("SELECT name, position FROM pennyweight.cursors WHERE book = %(book)s")
        return {codec.of_text(name): position for name, position in rows}

    # ── outside the journal ───────────────────────────────────────────────────────

    def lease(self) -> encoding.Row | None:
        """Return the row of the lease, as `lease_of` takes it."""
        rows = self.all(LEASE)
        return rows[0] if rows else None

    def stage(self, name: str) -> str | None:
        """Return a small setting."""
        value: str | None = self.one(
            "SELECT value FROM pennyweight.stage WHERE book = %(book)s AND name = %(name)s",
            name=name,
        )
        return None if value is None else codec.of_text(value)

    def size_bytes(self) -> int:
        """See `Store`. All books of the database share their tables, so this is theirs together."""
        size: int = self.one(f"SELECT ({_SIZE})::bigint")
        return size

    # ── everything ────────────────────────────────────────────────────────────────

    def rows(self) -> Iterator[tuple[str, Any]]:
        """See `Store`. The snapshot is taken now, on a connection of its own."""
        if self._is_closed:
            raise StoreError("the book is closed")
        channel = self._connect()
        try:
            connection = channel.connection
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            connection.execute("SET LOCAL statement_timeout = 0")
            row = connection.execute(_HEAD_OF_BOOK, {"book": self._book}).fetchone()
        except psycopg.Error as error:
            channel.close()
            raise of_psycopg(error, is_lost=True).store_error() from None
        if row is None:
            channel.close()
            raise StoreError("the book has lost its head row")
        return self._rows(channel, encoding.head_of(row))

    def _rows(self, channel: Channel, head: Head) -> Iterator[tuple[str, Any]]:
        try:
            yield "head", head
            for name, sql, read in _STREAMS:
                for row in self._stream(channel, sql):
                    yield name, read(row)
        except psycopg.Error as error:
            raise of_psycopg(error, is_lost=True).store_error() from None
        finally:
            channel.close()

    def _stream(self, channel: Channel, sql: str) -> Iterator[encoding.Row]:
        """Yield the rows of one statement, some at a time."""
        with channel.connection.cursor("rows") as cursor:
            cursor.execute(sql, {"book": self._book})
            while True:
                channel.watch()
                rows = cursor.fetchmany(_FETCH)
                channel.unwatch()
                yield from rows
                if len(rows) < _FETCH:
                    return


_Stream = tuple[str, str, Callable[[encoding.Row], Any]]

_STREAMS: tuple[_Stream, ...] = (
    (
        "account",
        f"SELECT {codec.ACCOUNT} FROM pennyweight.accounts WHERE book = %(book)s",
        codec.account_of,
    ),
    (
        "hold",
        f"SELECT {codec.HOLD} FROM pennyweight.holds WHERE book = %(book)s",
        codec.hold_of,
    ),
    (
        "record",
        "SELECT record FROM pennyweight.records WHERE book = %(book)s",
        lambda row: encoding.blob_to_record(row[0]),
    ),
    (
        "cursor",
        "SELECT name, position FROM pennyweight.cursors WHERE book = %(book)s",
        lambda row: CursorMove(codec.of_text(row[0]), 0, row[1]),
    ),
    (
        "listing",
        _LISTINGS,
        lambda row: Listing(row[0], codec.of_text(row[1]), row[2], row[3], codec.of_text(row[4])),
    ),
    (
        "back_dated",
        """
        SELECT account, effective_at, sequence, committed_at, change
        FROM pennyweight.back_dated WHERE book = %(book)s
        """,
        lambda row: BackDatedLine(*row),
    ),
    (
        "key",
        "SELECT product, key, sequence FROM pennyweight.keys WHERE book = %(book)s",
        lambda row: KeyRow(row[0], codec.of_text(row[1]), row[2]),
    ),
)


def _stored(value: Any) -> Any:
    """Return a value as columns have it. Raises UnicodeEncodeError for what none can have."""
    return codec.to_text(value) if isinstance(value, str) else value


def _clamped(number: int) -> int:
    """Return a bound that fits the columns and means the same."""
    return max(-_INTEGER_MAX - 1, min(_INTEGER_MAX, number))

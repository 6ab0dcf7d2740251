"""Reading beside the writer: a few connections, each call on a snapshot of its own."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw

from pennyweight.engine.port import (
    BackDatedLine,
    BatchHeader,
    Due,
    Head,
    KeyRow,
    Listing,
    StoreError,
    StoreFailed,
)
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.entries import CursorMove
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.records import Record
from pennyweight.stores import encoding
from pennyweight.stores.sqlite import codec
from pennyweight.stores.sqlite.keys import KeyIndex

_INTEGER_MAX = 2**63 - 1

READERS_MAX = 8
"""Readers at one time; more wait."""


_BACK_DATED = "SELECT account, effective_at, sequence, committed_at, change FROM back_dated"
_LISTINGS = """
    SELECT 'label', label, 0, kind, id FROM labels
    UNION ALL SELECT 'name', name, 0, kind, id FROM names
    UNION ALL SELECT 'mark', place, rank, kind, id FROM marks
"""


class Readers:
    """Committed facts for those who do not decide. Safe from any thread."""

    def __init__(self, connect: Callable[[], apsw.Connection], keys: KeyIndex) -> None:
        """`connect` opens one more connection."""
        self._connect = connect
        self._keys = keys
        self._free: list[apsw.Connection] = []
        self._is_closed = False
        self._slots = threading.BoundedSemaphore(READERS_MAX)

    @contextmanager
    def connection(self) -> Iterator[apsw.Connection]:
        """Lend a connection; an error closes it. Raises StoreFailed for those of SQLite."""
        with self._slots:
            if self._is_closed:
                raise StoreFailed("the book is closed")
            connection = None
            try:
                connection = self._take()
                yield connection
            except BaseException as error:
                if connection is not None:
                    connection.close(force=True)
                if isinstance(error, apsw.Error):
                    raise StoreFailed(str(error)) from error
                raise
            self._free.append(connection)

    def _take(self) -> apsw.Connection:
        try:
            return self._free.pop()
        except IndexError:  # asked first, another thread could take the last one in between
            return self._connect()

    def close(self) -> None:
        """Close what is not lent."""
        self._is_closed = True
        while self._free:
            self._free.pop().close()

    def one(self, sql: str, *values: Any) -> Any:
        """Return the first column of the first row, or None."""
        rows = self.all(sql, *values)
        return rows[0][0] if rows else None

    def all(self, sql: str, *values: Any) -> list[encoding.Row]:
        """Return all rows of one statement; what could not be stored cannot be found."""
        with self.connection() as connection:
            try:
                return connection.execute(sql, values).fetchall()
            except (OverflowError, UnicodeEncodeError):
                return []

    # ── the journal ───────────────────────────────────────────────────────────────

    def head(self) -> Head:
        """See `Store`."""
        with self.connection() as connection:
            return self._head(connection)

    def _head(self, connection: apsw.Connection) -> Head:
        rows: list[encoding.Row] = connection.execute(
            "SELECT book, incarnation, epoch, sequence, chain, committed_at, counters FROM head"
        ).fetchall()
        if not rows:
            raise StoreError("the book has lost its head row")
        return encoding.head_of(rows[0])

    def entries(
        self, after: int, limit: int, *, product: str | None = None, is_descending: bool = False
    ) -> list[tuple[int, bytes]]:
        """See `Store`."""
        if product is None:
            sql = (
                "SELECT sequence, body FROM entries WHERE sequence < ?"
                " ORDER BY sequence DESC LIMIT ?"
                if is_descending
                else "SELECT sequence, body FROM entries WHERE sequence > ?"
                " ORDER BY sequence LIMIT ?"
            )
            return self.all(sql, after, limit)
        sql = (
            "SELECT sequence, body FROM entries WHERE product = ? AND sequence < ?"
            " ORDER BY sequence DESC LIMIT ?"
            if is_descending
            else "SELECT sequence, body FROM entries WHERE product = ? AND sequence > ?"
            " ORDER BY sequence LIMIT ?"
        )
        return self.all(sql, product, after, limit)

    def entry(self, sequence: int) -> bytes | None:
        """See `Store`."""
        body: bytes | None = self.one("SELECT body FROM entries WHERE sequence = ?", sequence)
        return body

    def batches(self, after: int, limit: int) -> list[tuple[BatchHeader, bytes]]:
        """See `Store`."""
        rows = self.all(
            "SELECT header, chain FROM batches WHERE first_sequence > ?"
            " ORDER BY first_sequence LIMIT ?",
            after,
            limit,
        )
        return [(encoding.blob_to_header(header), chain) for header, chain in rows]

    def batch_at(
        self, *, sequence: int | None = None, time: int | None = None
    ) -> BatchHeader | None:
        """See `Store`."""
        if sequence is not None:
            blob = self.one(
                "SELECT header FROM batches WHERE first_sequence <= ?"
                " ORDER BY first_sequence DESC LIMIT 1",
                sequence,
            )
        else:
            blob = self.one(
                "SELECT header FROM batches WHERE committed_at <= ?"
                " ORDER BY committed_at DESC LIMIT 1",
                _INTEGER_MAX if time is None else time,
            )
        if blob is None:
            return None
        header = encoding.blob_to_header(blob)
        if sequence is not None and sequence >= header.first_sequence + header.count:
            return None
        return header

    def receipt(self, product: str, key: str) -> bytes | None:
        """See `Store`."""
        with self.connection() as connection:
            return self._keys.receipt(connection, product, key)

    # ── facts ─────────────────────────────────────────────────────────────────────

    def account(self, account_id: str) -> Account | None:
        """See `Store`."""
        rows = self.all(
            """
            SELECT number, id, holder, asset, floor, posted, held, owed, open_holds, version,
                   lines, roots, is_closed
            FROM accounts WHERE id = ?
            """,
            account_id,
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
        if is_owing and holder is None:
            sql = """
                SELECT number, id, holder, asset, floor, posted, held, owed, open_holds, version,
                       lines, roots, is_closed
                FROM accounts INDEXED BY accounts_owing
                WHERE ?1 IS NULL AND ?5 AND number > ?3 AND asset = ifnull(?2, asset)
                    AND owed <> x'80000000000000000000000000000000'
                ORDER BY number LIMIT ?4
            """
        elif holder is not None:
            sql = """
                SELECT number, id, holder, asset, floor, posted, held, owed, open_holds, version,
                       lines, roots, is_closed
                FROM accounts
                WHERE holder = ?1 AND number > ?3 AND asset = ifnull(?2, asset)
                    AND (NOT ?5 OR owed <> x'80000000000000000000000000000000')
                ORDER BY number LIMIT ?4
            """
        else:
            sql = """
                SELECT number, id, holder, asset, floor, posted, held, owed, open_holds, version,
                       lines, roots, is_closed
                FROM accounts
                WHERE ?1 IS NULL AND NOT ?5 AND number > ?3 AND asset = ifnull(?2, asset)
                ORDER BY number LIMIT ?4
            """
        rows = self.all(sql, holder, asset, after, limit, is_owing)
        return [codec.account_of(row) for row in rows]

    def hold(self, hold_id: int) -> Hold | None:
        """See `Store`."""
        rows = self.all("SELECT * FROM holds WHERE id = ?", hold_id)
        return codec.hold_of(rows[0]) if rows else None

    def hold_of_reference(self, owner: str, reference: str) -> Hold | None:
        """See `Store`."""
        rows = self.all(
            "SELECT * FROM holds WHERE owner = ? AND reference = ? AND reference <> ''",
            owner,
            reference,
        )
        return codec.hold_of(rows[0]) if rows else None

    def holds(self, account_id: str, after: int, limit: int) -> list[Hold]:
        """See `Store`."""
        rows = self.all(
            "SELECT * FROM holds WHERE account = ? AND id > ? AND state = 'open'"
            " ORDER BY id LIMIT ?",
            account_id,
            after,
            limit,
        )
        return [codec.hold_of(row) for row in rows]

    def record(self, kind: str, record_id: str) -> Record | None:
        """See `Store`."""
        blob = self.one("SELECT record FROM records WHERE kind = ? AND id = ?", kind, record_id)
        return None if blob is None else encoding.blob_to_record(blob)

    def records(
        self, kind: str, *, label: str | None = None, after: str = "", limit: int = 100
    ) -> list[Record]:
        """See `Store`."""
        if label is None:
            rows = self.all(
                "SELECT record FROM records WHERE kind = ? AND id > ? ORDER BY id LIMIT ?",
                kind,
                after,
                limit,
            )
        else:
            rows = self.all(
                """
                SELECT record FROM (
                    SELECT id FROM labels WHERE kind = ?1 AND label = ?2 AND id > ?3
                    UNION SELECT id FROM names WHERE kind = ?1 AND name = ?2 AND id > ?3
                    ORDER BY id LIMIT ?4
                ) AS listed JOIN records ON records.kind = ?1 AND records.id = listed.id
                ORDER BY listed.id
                """,
                kind,
                label,
                after,
                limit,
            )
        return [encoding.blob_to_record(blob) for (blob,) in rows]

    def record_named(self, kind: str, name: str) -> Record | None:
        """See `Store`."""
        blob = self.one(
            "SELECT record FROM names JOIN records USING (kind, id) WHERE kind = ? AND name = ?",
            kind,
            name,
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
        rank, first = low, ""
        if after is not None and after[0] >= low:
            rank, first = after[0], after[1] + "\0"
        values = (index, rank, high, first, limit)
        rows = self.all(
            "SELECT rank, kind, id FROM marks"
            " WHERE place = ?1 AND rank <= ?3 AND (rank, id) >= (?2, ?4)"
            " ORDER BY rank, id, kind LIMIT ?5",
            *values,
        )
        if index == "hold_expiry":
            rows += self.all(
                "SELECT expires_at, 'hold', CAST(id AS TEXT) FROM holds"
                " WHERE state = 'open' AND expires_at IS NOT NULL AND expires_at <= ?2"
                " AND (expires_at, CAST(id AS TEXT)) >= (?1, ?3)"
                " ORDER BY expires_at, CAST(id AS TEXT) LIMIT ?4",
                *values[1:],
            )
            rows = sorted(rows, key=lambda row: (row[0], row[2]))[:limit]
        return [Due(index, rank, kind, key) for rank, kind, key in rows]

    def back_dated(self, account_id: str, effective_until: int, committed_after: int) -> int:
        """See `Store`."""
        rows = self.all(
            "SELECT change FROM back_dated"
            " WHERE account = ? AND effective_at <= ? AND committed_at > ?",
            account_id,
            effective_until,
            committed_after,
        )
        return sum(codec.blob_to_amount(change) for (change,) in rows)

    def cursors(self) -> dict[str, int]:
        """See `Store`."""
        return dict(self.all("SELECT name, position FROM cursors"))

    # ── everything ────────────────────────────────────────────────────────────────

    def rows(self) -> Iterator[tuple[str, Any]]:
        """See `Store`. The snapshot is taken now, on a connection of its own."""
        if self._is_closed:
            raise StoreFailed("the book is closed")
        connection = self._connect()
        connection.execute("BEGIN")
        connection.execute("SELECT one FROM head").fetchall()
        return self._rows(connection)

    def _rows(self, connection: apsw.Connection) -> Iterator[tuple[str, Any]]:
        try:
            execute = connection.execute
            yield "head", self._head(connection)
            for row in execute(
                "SELECT number, id, holder, asset, floor, posted, held, owed, open_holds,"
                " version, lines, roots, is_closed FROM accounts"
            ):
                yield "account", codec.account_of(row)
            for row in execute("SELECT * FROM holds"):
                yield "hold", codec.hold_of(row)
            for (blob,) in execute("SELECT record FROM records"):
                yield "record", encoding.blob_to_record(blob)
            for name, position in execute("SELECT name, position FROM cursors"):
                yield "cursor", CursorMove(name, 0, position)
            for row in execute(_LISTINGS):
                yield "listing", Listing(*row)
            for account, effective, sequence, committed, change in execute(_BACK_DATED):
                units = codec.blob_to_amount(change)
                yield "back_dated", BackDatedLine(account, effective, sequence, committed, units)
            key: KeyRow
            for key in self._keys.rows(connection):
                yield "key", key
        finally:
            connection.close(force=True)

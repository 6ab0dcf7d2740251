"""The store port over a PostgreSQL database: books by name in tables that they share."""

import re
from collections.abc import Container, Iterable
from typing import Any, Self

import psycopg
import structlog

from pennyweight.engine.port import (
    Append,
    BatchHeader,
    Due,
    Found,
    Head,
    Lease,
    Reads,
    Resolution,
    StoreError,
    Traffic,
)
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.records import Record
from pennyweight.stores.postgres import schema
from pennyweight.stores.postgres.channel import Watchdog
from pennyweight.stores.postgres.errors import of_psycopg
from pennyweight.stores.postgres.lease import Office, lease_of
from pennyweight.stores.postgres.place import Place
from pennyweight.stores.postgres.readers import Readers
from pennyweight.stores.postgres.writer import Writer

_BOOK = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

log = structlog.get_logger(__name__)


class PostgresStore:
    """See `Store`; `open` makes one. Any number of processes may have a book open."""

    def __init__(self, place: Place, book: str, *, is_read_only: bool) -> None:
        """A book that is there. Connections are opened when they are needed."""
        self._watchdog = Watchdog()
        self._readers = Readers(place, book, self._watchdog)
        self._office = None if is_read_only else Office(place, book, self._watchdog)
        self._writer = (
            None
            if self._office is None
            else Writer(place, book, self._watchdog, self._office, self._readers)
        )
        self._is_closed = False

    @classmethod
    def open(
        cls,
        url: str,
        book: str = "main",
        *,
        new_incarnation: str = "",
        is_read_only: bool = False,
    ) -> Self:
        """Open a book, or begin one named `new_incarnation` where there is none.

        For writing, the database is migrated first if this role may. Who writes is settled
        by the lease and by the guard of every append, not here. Raises SchemaDrift,
        StoreUnavailable, NoBook, and StoreError when its head and its journal disagree.
        """
        if _BOOK.fullmatch(book) is None:
            raise StoreError(f"a book is named like main or eu-2, not {book!r}")
        place = Place(url)
        try:
            with place.connect() as connection:
                if is_read_only:
                    schema.check_migrations(connection, str(place))
                    schema.begin_book(connection, book, "")
                else:
                    schema.prepare(connection, str(place))
                    schema.begin_book(connection, book, new_incarnation)
                    schema.check_head(connection, book)
                    if schema.may_change_journal(connection):
                        log.warning("this database role could change the journal", store=str(place))
        except psycopg.Error as error:
            raise of_psycopg(error, is_lost=False).store_error() from error
        return cls(place, book, is_read_only=is_read_only)

    @property
    def traffic(self) -> Traffic:
        """See `Store`; the bytes are those of parameters."""
        if self._writer is None:
            return Traffic()
        counted = self._writer.meter
        return Traffic(counted.round_trips, counted.bytes_sent)

    def _writing(self) -> Writer:
        if self._writer is None:
            raise StoreError("the book was opened for reading only")
        return self._writer

    def _keeping(self) -> Office:
        if self._office is None:
            raise StoreError("the book was opened for reading only")
        return self._office

    def close(self) -> None:
        """See `Store`. Closing twice is closing once."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._writer is not None:
            self._writer.close()
        if self._office is not None:
            self._office.close()
        self._readers.close()
        self._watchdog.stop()

    # ── the writer's ──────────────────────────────────────────────────────────────

    def head(self) -> Head:
        """See `Store`."""
        return self._readers.head()

    def begin(self, reads: Reads, resident: Container[str]) -> Found:
        """See `Store`."""
        return self._writing().begin(reads, resident)

    def append(self, batch: Append) -> None:
        """See `Store`."""
        self._writing().append(batch)

    def adopt(self, batch: Append) -> None:
        """See `Store`."""
        self._writing().append(batch)

    def resolve(self, batch: Append) -> Resolution:
        """See `Store`."""
        return self._writing().resolve(batch)

    # ── the readers' ──────────────────────────────────────────────────────────────

    def entries(
        self, after: int, limit: int, *, product: str | None = None, is_descending: bool = False
    ) -> list[tuple[int, bytes]]:
        """See `Store`."""
        return self._readers.entries(after, limit, product=product, is_descending=is_descending)

    def entry(self, sequence: int) -> bytes | None:
        """See `Store`."""
        return self._readers.entry(sequence)

    def batches(self, after: int, limit: int) -> list[tuple[BatchHeader, bytes]]:
        """See `Store`."""
        return self._readers.batches(after, limit)

    def batch_at(
        self, *, sequence: int | None = None, time: int | None = None
    ) -> BatchHeader | None:
        """See `Store`."""
        return self._readers.batch_at(sequence=sequence, time=time)

    def receipt(self, product: str, key: str) -> bytes | None:
        """See `Store`."""
        return self._readers.receipt(product, key)

    def account(self, account_id: str) -> Account | None:
        """See `Store`."""
        return self._readers.account(account_id)

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
        return self._readers.accounts(after, limit, holder=holder, asset=asset, is_owing=is_owing)

    def hold(self, hold_id: int) -> Hold | None:
        """See `Store`."""
        return self._readers.hold(hold_id)

    def hold_of_reference(self, owner: str, reference: str) -> Hold | None:
        """See `Store`."""
        return self._readers.hold_of_reference(owner, reference)

    def holds(self, account_id: str, after: int, limit: int) -> list[Hold]:
        """See `Store`."""
        return self._readers.holds(account_id, after, limit)

    def record(self, kind: str, record_id: str) -> Record | None:
        """See `Store`."""
        return self._readers.record(kind, record_id)

    def records(
        self, kind: str, *, label: str | None = None, after: str = "", limit: int = 100
    ) -> list[Record]:
        """See `Store`."""
        return self._readers.records(kind, label=label, after=after, limit=limit)

    def record_named(self, kind: str, name: str) -> Record | None:
        """See `Store`."""
        return self._readers.record_named(kind, name)

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
        return self._readers.due(index, low, high, after=after, limit=limit)

    def back_dated(self, account_id: str, effective_until: int, committed_after: int) -> int:
        """See `Store`."""
        return self._readers.back_dated(account_id, effective_until, committed_after)

    def cursors(self) -> dict[str, int]:
        """See `Store`."""
        return self._readers.cursors()

    def rows(self) -> Iterable[tuple[str, Any]]:
        """See `Store`."""
        return self._readers.rows()

    # ── outside the journal ───────────────────────────────────────────────────────

    def claim(self, owner: str, address: str, life_microseconds: int) -> Lease | None:
        """See `Store`."""
        return self._keeping().claim(owner, address, life_microseconds)

    def give_up(self, owner: str) -> None:
        """See `Store`."""
        self._keeping().give_up(owner)

    def lease(self) -> Lease | None:
        """See `Store`."""
        row = self._readers.lease()
        return None if row is None else lease_of(row)

    def stage(self, name: str, value: str | None = None, *, is_first: bool = False) -> str | None:
        """See `Store`."""
        if value is not None:
            self._keeping().stage(name, value, is_first=is_first)
        return self._readers.stage(name)

    def renew(self, incarnation: str) -> None:
        """See `Store`."""
        self._keeping().renew(incarnation)

    def size_bytes(self) -> int:
        """See `Store`."""
        return self._readers.size_bytes()

"""The store port over a PostgreSQL database: books by name in tables that they share."""

import re
from collections.abc import Container
from typing import Self

import psycopg
import structlog

from pennyweight.engine.port import (
    Append,
    Found,
    Lease,
    Reads,
    Resolution,
    StoreError,
    Traffic,
)
from pennyweight.stores.postgres import schema
from pennyweight.stores.postgres.channel import Watchdog
from pennyweight.stores.postgres.errors import of_psycopg
from pennyweight.stores.postgres.lease import Office, lease_of
from pennyweight.stores.postgres.place import Place
from pennyweight.stores.postgres.readers import Readers
from pennyweight.stores.postgres.writer import Writer
from pennyweight.stores.reading import Reading

_BOOK = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

log = structlog.get_logger(__name__)


class PostgresStore(Reading):
    """See `Store`; `open` makes one. Any number of processes may have a book open."""

    def __init__(self, place: Place, book: str, *, is_read_only: bool) -> None:
        """A book that is there. Connections are opened when they are needed."""
        self._watchdog = Watchdog()
        self._readers = Readers(place, book, self._watchdog)
        super().__init__(self._readers)
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
                    missing = schema.missing_rights(connection)
                    if missing:
                        raise StoreError(
                            f"this role lacks rights to serve a book ({', '.join(missing)}): run "
                            "`pennyweight migrate --apply --grant ROLE` as the tables' owner"
                        )
                    schema.begin_book(connection, book, new_incarnation)
                    schema.check_head(connection, book)
                    if schema.may_change_journal(connection):
                        log.warning("this database role could change the journal", store=str(place))
                    weak = schema.undurable(connection)
                    if weak:
                        log.warning(
                            "this server may lose what was committed when it crashes",
                            store=str(place),
                            off=weak,
                        )
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

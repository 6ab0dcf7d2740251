"""The store port over one SQLite file per book: `DIR/<book>.sqlite`."""

import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Self

import apsw

from pennyweight.engine.port import (
    Append,
    Found,
    Lease,
    NoBook,
    Reads,
    Resolution,
    StoreError,
    StoreFailed,
    Traffic,
)
from pennyweight.stores.reading import Reading
from pennyweight.stores.sqlite import schema
from pennyweight.stores.sqlite.checkpoints import Checkpoints
from pennyweight.stores.sqlite.keys import KeyIndex
from pennyweight.stores.sqlite.lock import lock_book, unlock_book
from pennyweight.stores.sqlite.readers import Readers
from pennyweight.stores.sqlite.writer import Writer

_BOOK = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class SQLiteStore(Reading):
    """See `Store`; `open` makes one."""

    def __init__(self, path: Path, readers: Readers, writer: Writer | None) -> None:
        """A book at `path`, read-only without a writer."""
        super().__init__(readers)
        self._path = path
        self._readers = readers
        self._writer = writer
        self._checkpoints: Checkpoints | None = None
        self._is_closed = False

    @classmethod
    def open(
        cls,
        directory: Path | str,
        book: str = "main",
        *,
        new_incarnation: str = "",
        is_read_only: bool = False,
    ) -> Self:
        """Open a book, or begin one named `new_incarnation` where there is none.

        For writing, the directory is locked to this process. Read-only works beside a
        writer in another process and changes nothing. Raises StoreInUse, SchemaDrift,
        StoreFailed, and StoreError when there is no such book or its head and its journal
        disagree.
        """
        if _BOOK.fullmatch(book) is None:
            raise StoreError(f"a book is named like main or eu-2, not {book!r}")
        path = Path(directory) / f"{book}.sqlite"
        if not path.exists() and (is_read_only or not new_incarnation):
            raise NoBook(f"there is no book at {path}")
        try:
            if is_read_only:
                return cls._open_read_only(path)
            return cls._open_for_writing(path, book, new_incarnation)
        except apsw.Error as error:
            raise StoreFailed(f"{path}: {error}") from error

    @classmethod
    def _open_read_only(cls, path: Path) -> Self:
        keys = KeyIndex()
        readers = Readers(lambda: schema.connect_reader(path), keys)
        with readers.connection() as connection:
            schema.check_migrations(connection)
        return cls(path, readers, None)

    @classmethod
    def _open_for_writing(cls, path: Path, book: str, new_incarnation: str) -> Self:
        directory = path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock_book(directory, book)
        connection = None
        try:
            path.touch(mode=0o600)  # SQLite gives its other files the same rights
            connection = schema.connect_writer(path)
            keys = KeyIndex()
            schema.prepare(connection, book, new_incarnation, keys)
            _sync_directory(directory)
            store = cls(
                path,
                Readers(lambda: schema.connect_reader(path), keys),
                Writer(connection, keys),
            )
            store._checkpoints = Checkpoints(schema.connect_writer(path), store._writing())
        except BaseException:
            if connection is not None:
                connection.close(force=True)
            unlock_book(directory, book)
            raise
        return store

    @property
    def traffic(self) -> Traffic:
        """See `Store`."""
        return Traffic()

    def _writing(self) -> Writer:
        if self._writer is None:
            raise StoreError("the book was opened for reading only")
        return self._writer

    def close(self) -> None:
        """See `Store`. Closing twice is closing once."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._checkpoints is not None:
            self._checkpoints.stop()
        self._readers.close()
        if self._writer is not None:
            self._writer.close()
            unlock_book(self._path.parent, self._path.stem)

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
        """See `Store`. Nothing here is ever unknown to a store that still works."""
        self._writing().check_usable()
        last = batch.batch.header.first_sequence - 1
        found = self._readers.batches(last, 1)
        is_committed = bool(found) and found[0][1] == batch.batch.chain
        return Resolution(is_committed, self.head().epoch == batch.expected.epoch)

    # ── outside the journal ───────────────────────────────────────────────────────

    def claim(self, owner: str, address: str, life_microseconds: int) -> Lease | None:
        """See `Store`."""
        return self._writing().claim(owner, address, life_microseconds)

    def give_up(self, owner: str) -> None:
        """See `Store`."""
        self._writing().give_up(owner)

    def lease(self) -> Lease | None:
        """See `Store`."""
        rows = self._readers.all(
            "SELECT epoch, owner, address, expires_at,"
            " CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER) FROM lease"
        )
        if not rows:
            return None
        epoch, owner, address, expires_at, now = rows[0]
        return Lease(epoch=epoch, owner=owner, address=address, expires_at=expires_at, now=now)

    def stage(self, name: str, value: str | None = None, *, is_first: bool = False) -> str | None:
        """See `Store`."""
        if value is not None:
            self._writing().stage(name, value, is_first=is_first)
        staged: str | None = self._readers.one("SELECT value FROM stage WHERE name = ?", name)
        return staged

    def renew(self, incarnation: str) -> None:
        """See `Store`."""
        self._writing().renew(incarnation)

    def size_bytes(self) -> int:
        """See `Store`."""
        files = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return sum(file.stat().st_size for file in files if file.exists())


def _sync_directory(directory: Path) -> None:
    """Make new files of a directory durable under their names."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

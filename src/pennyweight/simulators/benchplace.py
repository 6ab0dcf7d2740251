"""Where a benchmark has its book: in a folder, or in a database under a name of its own."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from pennyweight.engine.port import Store, StoreError
from pennyweight.runtime.clock import wall_clock
from pennyweight.runtime.holding import holding
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.simulators.machine import size_bytes, sync_times
from pennyweight.simulators.server import Verdict, verify
from pennyweight.stores.sqlite import SQLiteStore

_LEASE_SECONDS = 10.0
_COMMITTING_SECONDS = 0.5


class BenchPlace:
    """One book, made for a benchmark and removed after it."""

    def __init__(self, place: Path | str, book: str = "") -> None:
        """`place` is a folder or the URL of a database, where the book gets a name nobody has."""
        self.place = place
        self.book = book or ("main" if isinstance(place, Path) else f"bench-{secrets.token_hex(6)}")

    @property
    def options(self) -> list[str]:
        """What a server or verb must be told beside the place."""
        return [] if isinstance(self.place, Path) else ["--book", self.book]

    @contextmanager
    def opened(self, *, users_max: int = 10_000) -> Iterator[InlineBook]:
        """Open it in this process, for this process alone, on this process's clock."""
        store = self._open()
        try:
            is_shared = isinstance(self.place, str)
            with holding(store, _LEASE_SECONDS) if is_shared else nullcontext():
                engine = open_engine(store, now=wall_clock(), users_max=users_max)
                yield InlineBook(engine, store, wall_clock)
        finally:
            store.close()

    def _open(self) -> Store:
        incarnation = secrets.token_hex(8)
        if isinstance(self.place, Path):
            self.place.mkdir(parents=True, exist_ok=True)
            return SQLiteStore.open(self.place, new_incarnation=incarnation)
        from pennyweight.runtime.quiet import quiet_logs  # noqa: PLC0415 - only here is logged
        from pennyweight.stores.postgres import PostgresStore  # noqa: PLC0415 - an extra

        quiet_logs()
        return PostgresStore.open(self.place, self.book, new_incarnation=incarnation)

    @contextmanager
    def reading(self) -> Iterator[Store]:
        """Open it for reading, beside whoever serves it."""
        store: Store
        if isinstance(self.place, Path):
            store = SQLiteStore.open(self.place, is_read_only=True)
        else:
            from pennyweight.stores.postgres import PostgresStore  # noqa: PLC0415 - an extra

            store = PostgresStore.open(self.place, self.book, is_read_only=True)
        try:
            yield store
        finally:
            store.close()

    def commit_times(self) -> list[int]:
        """Return how long a small commit takes in the database, many times, in nanoseconds.

        Nothing of a folder, nor where the role may make no table.
        """
        if isinstance(self.place, Path):
            return []
        from pennyweight.stores.postgres.floor import commit_times  # noqa: PLC0415 - an extra

        return commit_times(self.place, _COMMITTING_SECONDS)

    def sync_times(self, directory: Path) -> list[int]:
        """Return how long the disk takes, by a directory on it; nothing of a database's."""
        return sync_times(directory) if isinstance(self.place, Path) else []

    def size_bytes(self) -> int:
        """Return what it takes on disk; in a database, what all books there take."""
        if isinstance(self.place, Path):
            return size_bytes(self.place)
        store = self._open()
        try:
            return store.size_bytes()
        finally:
            store.close()

    def verify(self) -> Verdict:
        """Verify it, in a process of its own."""
        return verify(self.place, self.options)

    def remove(self) -> None:
        """Remove it; from a database only if this role may."""
        if isinstance(self.place, Path):
            shutil.rmtree(self.place, ignore_errors=True)
            return
        from pennyweight.stores.postgres.removing import remove_book  # noqa: PLC0415 - an extra

        with suppress(StoreError):
            remove_book(self.place, self.book)

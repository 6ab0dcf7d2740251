"""The stores that the contract suite runs on. A new one joins with a class here."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pennyweight.engine.port import Head, Store
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.sqlite import SQLiteStore


class InMemory:
    """Books that end with the process."""

    is_durable = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self, book: str = "main") -> Store:
        head = Head(book=book, incarnation="first")
        return MemoryStore(head, clock=lambda: time.time_ns() // 1_000)

    def close(self) -> None:
        pass


class Embedded:
    """Books in SQLite files."""

    is_durable = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stores: list[SQLiteStore] = []

    def open(self, book: str = "main") -> Store:
        store = SQLiteStore.open(self.folder, book, new_incarnation="first")
        self.stores.append(store)
        return store

    def close(self) -> None:
        for store in self.stores:
            store.close()


@pytest.fixture(params=[InMemory, Embedded])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InMemory | Embedded]:
    """Where books can be opened; what is open at the end is closed."""
    opened = request.param(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def store(place: InMemory | Embedded) -> Store:
    """An empty book."""
    return place.open()

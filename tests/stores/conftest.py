"""The stores that the contract suite runs on. A new one joins with a class here."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pennyweight.engine.port import Head, Store
from pennyweight.simulators.postgres import PostgresMissing, PostgresServer
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.postgres import PostgresStore
from pennyweight.stores.sqlite import SQLiteStore
from stores import postgres_places


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


class OnPostgres:
    """Books in a database that is emptied before each test."""

    is_durable = True

    def __init__(self, url: str) -> None:
        self.url = url
        self.stores: list[PostgresStore] = []

    def open(self, book: str = "main") -> Store:
        store = PostgresStore.open(self.url, book, new_incarnation="first")
        self.stores.append(store)
        return store

    def close(self) -> None:
        for store in self.stores:
            store.close()


Place = InMemory | Embedded | OnPostgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server of this test process."""
    try:
        server = postgres_places.start()
    except PostgresMissing as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """The URL of a database with the schema and no book."""
    postgres_places.empty(postgres.url)
    return postgres.url


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where books can be opened; what is open at the end is closed."""
    opened: Place
    if request.param == "memory":
        opened = InMemory(tmp_path)
    elif request.param == "sqlite":
        opened = Embedded(tmp_path)
    else:
        opened = OnPostgres(request.getfixturevalue("database"))
    yield opened
    opened.close()


@pytest.fixture
def store(place: Place) -> Store:
    """An empty book."""
    return place.open()

"""The stores that the model is run on, in one place. A new one joins with a class in `PLACES`."""

import atexit
import shutil
import tempfile
from pathlib import Path

import pytest

from pennyweight.engine.port import Head, Store
from pennyweight.simulators.postgres import PostgresMissing, PostgresServer
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.postgres import PostgresStore
from pennyweight.stores.sqlite import SQLiteStore
from stores import postgres_places


class InMemory:
    """A book that lives as long as the object; reopening it only drops the engine."""

    def __init__(self) -> None:
        self.store = MemoryStore(Head(book="main", incarnation="first"))

    def open(self) -> Store:
        return self.store

    def remove(self) -> None:
        self.store.close()


class Embedded:
    """A book in a SQLite file, closed and opened again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pennyweight-model-"))
        self.store: SQLiteStore | None = None

    def open(self) -> Store:
        if self.store is not None:
            self.store.close()
        self.store = SQLiteStore.open(self.folder, new_incarnation="first")
        return self.store

    def remove(self) -> None:
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.folder)


class OnPostgres:
    """The one book in a database of this test process, opened again and again."""

    server: PostgresServer | None = None

    def __init__(self) -> None:
        if OnPostgres.server is None:
            try:
                OnPostgres.server = postgres_places.start()
            except PostgresMissing as error:
                pytest.skip(str(error))
            atexit.register(OnPostgres.server.close)
        self.url = OnPostgres.server.url
        postgres_places.empty(self.url)
        self.store: PostgresStore | None = None

    def open(self) -> Store:
        if self.store is not None:
            self.store.close()
        self.store = PostgresStore.open(self.url, new_incarnation="first")
        return self.store

    def remove(self) -> None:
        if self.store is not None:
            self.store.close()


PLACES = {"memory": InMemory, "sqlite": Embedded, "postgres": OnPostgres}

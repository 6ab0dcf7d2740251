"""The stores that the model is run on, in one place. A new one joins with a class in `PLACES`."""

import shutil
import tempfile
from pathlib import Path

from pennyweight.engine.port import Head, Store
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.sqlite import SQLiteStore


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


PLACES = {"memory": InMemory, "sqlite": Embedded}

"""Scenarios on PostgreSQL, beside the same ones in memory.

As a pytest plugin (`-p on_postgres`) it gives every stage of `scenarios` a twin: a book of the
same name in a database, with an engine of its own. Each batch is executed on both, and must
come to the same outcomes, the same rows, the same head and chain.
"""

import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import scenarios
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Failure, Outcome
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.simulators.postgres import PostgresMissing, PostgresServer
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.postgres import PostgresStore
from stores import postgres_places

OPEN_MAX = 8


class TwinBook(InlineBook):
    """A book that has a twin in a database, if it began empty."""

    url = ""
    names = itertools.count(1)
    stores: list[PostgresStore] = []  # noqa: RUF012 - closed by the fixture below
    executed = 0

    def __init__(self, engine: Any, store: Any, clock: Any) -> None:
        super().__init__(engine, store, clock)
        self._twin: InlineBook | None = None
        if not isinstance(store, MemoryStore):
            return
        head = store.head()
        twin = PostgresStore.open(self.url, head.book, new_incarnation=head.incarnation)
        self.stores.append(twin)
        if len(self.stores) > OPEN_MAX:  # a property of many examples; the old ones are done with
            self.stores.pop(0).close()
        limit = engine.cache.limit
        self._twin = InlineBook(open_engine(twin, now=clock(), users_max=limit), twin, clock)
        if twin.head() != head:
            self._twin = None

    def execute_many(self, submissions: Any) -> list[Outcome]:
        again = [
            Submission(
                asked.command,
                key=asked.key,
                not_after=asked.not_after,
                lane=asked.lane,
                cursor=asked.cursor,
                aside=asked.aside,
            )
            for asked in submissions
        ]
        outcomes = super().execute_many(submissions)
        if self._twin is not None:
            TwinBook.executed += len(again)
            alike = zip(outcomes, self._twin.execute_many(again), strict=True)
            for ours, theirs in alike:
                if isinstance(ours, Failure):
                    assert isinstance(theirs, Failure)
                else:
                    assert theirs == ours
            assert scenarios.snapshot(self._twin.store) == scenarios.snapshot(self.store)
        return outcomes


if "pytest" in sys.modules and "-p on_postgres" in " ".join(sys.argv):

    @pytest.fixture(scope="session")
    def twin_server() -> Iterator[PostgresServer]:
        try:
            server = postgres_places.start()
        except PostgresMissing as error:
            pytest.skip(str(error))
        with server:
            yield server

    @pytest.fixture(autouse=True)
    def beside_postgres(
        monkeypatch: pytest.MonkeyPatch, twin_server: PostgresServer
    ) -> Iterator[None]:
        postgres_places.empty(twin_server.url)

        def named() -> MemoryStore:
            """Return an empty book of a name of its own, as its twin is beside the others."""
            return MemoryStore(Head(book=f"stage-{next(TwinBook.names)}", incarnation="first"))

        monkeypatch.setattr(scenarios, "new_store", named)
        monkeypatch.setattr(scenarios, "InlineBook", TwinBook)
        monkeypatch.setattr(TwinBook, "url", twin_server.url)
        yield
        while TwinBook.stores:
            TwinBook.stores.pop().close()

    def pytest_terminal_summary(terminalreporter: Any) -> None:
        terminalreporter.write_line(f"on both: {TwinBook.executed}")

"""A store that hangs: callers are answered while the engine thread is still in it."""

import threading
import time
from collections.abc import Callable, Container, Iterator
from typing import Any

import pytest

from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Append, Found, Head, Reads, StoreUnavailable
from pennyweight.engine.receipts import UNKNOWN, Outcome, Receipt, Unknown
from pennyweight.products.general import OpenAccount
from pennyweight.runtime import driver
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook, Unavailable
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

START = 1_760_000_000_000_000


class HangingStore(MemoryStore):
    """A book in memory whose calls wait for leave."""

    def __init__(self) -> None:
        super().__init__(Head(book="main", incarnation="first"))
        self.leave = threading.Event()
        self.leave.set()
        self.hangs_at = "append"
        self.is_away = False
        self.looks = 0

    def begin(self, reads: Reads, resident: Container[str]) -> Found:
        if self.hangs_at == "begin":
            assert self.leave.wait(20)
        if self.is_away:
            raise StoreUnavailable("nobody is there")
        return super().begin(reads, resident)

    def append(self, batch: Append) -> None:
        if self.hangs_at == "append":
            assert self.leave.wait(20)
        super().append(batch)

    def head(self) -> Head:
        self.looks += 1
        if self.hangs_at == "head":
            assert self.leave.wait(20)
        if self.is_away:
            raise StoreUnavailable("nobody is there")
        return super().head()


class Caller:
    def __init__(self, book: ThreadedBook) -> None:
        self.book = book
        self.outcomes: dict[str, list[Outcome]] = {}

    def ask(self, user: str) -> None:
        heard = self.outcomes.setdefault(user, [])
        command = OpenAccount(f"user:{user}:USD")
        self.book.submit(Submission(command, key=user, ticket=heard.append))


@pytest.fixture
def store() -> HangingStore:
    return HangingStore()


@pytest.fixture
def caller(store: HangingStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    monkeypatch.setattr(driver, "WATCH_SECONDS", 0.01)
    book = ThreadedBook(
        open_engine(store, now=START),
        store,
        ClockGuard(lambda: START, lambda: 0),
        hold_seconds=0.1,
    )
    book.start()
    yield Caller(book)
    store.leave.set()
    book.stop(20)


def wait_for(is_so: Callable[[], Any]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


@pytest.mark.parametrize("place", ["begin", "append"])
def test_callers_of_a_hanging_store_hear_that_nothing_is_known(
    store: HangingStore, caller: Caller, place: str
):
    store.hangs_at = place
    store.leave.clear()
    caller.ask("first")
    wait_for(lambda: caller.book.engine.waiting == 0)
    caller.ask("second")
    wait_for(lambda: caller.outcomes["first"] and caller.outcomes["second"])
    assert caller.outcomes["first"] == [Unknown("the store does not answer", UNKNOWN)]
    assert caller.outcomes["second"] == [Unknown("the store does not answer", "store_unavailable")]
    with pytest.raises(Unavailable, match="does not answer") as turned_away:
        caller.ask("third")
    assert turned_away.value.code == "store_unavailable"
    store.leave.set()
    wait_for(lambda: store.account("user:first:USD"))
    wait_for(lambda: not _is_turned_away(caller.book))
    caller.ask("first")
    caller.ask("second")
    wait_for(lambda: len(caller.outcomes["first"]) == len(caller.outcomes["second"]) == 2)
    again, anew = caller.outcomes["first"][1], caller.outcomes["second"][1]
    assert isinstance(again, Receipt)
    assert isinstance(anew, Receipt)
    assert (again.is_replayed, anew.is_replayed) == (True, False)


def test_caller_after_a_store_that_hung_while_nobody_waited_is_answered(
    store: HangingStore, caller: Caller
):
    store.is_away = True
    caller.ask("first")
    wait_for(lambda: caller.outcomes["first"])  # nobody waits any more: only the head is asked for
    store.is_away, store.hangs_at = False, "head"
    store.leave.clear()
    before = store.looks
    wait_for(lambda: store.looks > before)
    time.sleep(0.3)  # longer than callers wait, and than the watcher looks away
    store.leave.set()
    wait_for(lambda: not _is_turned_away(caller.book))
    caller.ask("second")
    wait_for(lambda: caller.outcomes["second"])
    assert isinstance(caller.outcomes["second"][0], Receipt)


def _is_turned_away(book: ThreadedBook) -> bool:
    try:
        book.check()
    except Unavailable:
        return True
    return False

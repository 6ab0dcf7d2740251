"""Holds whose time is over are released, page by page, by the timer."""

import threading
import time

import pytest

from pennyweight.agents import expiry
from pennyweight.agents.expiry import HoldExpiry
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Head
from pennyweight.ledger.holds import HoldState
from pennyweight.products.general import OpenAccount, PlaceHold, Transfer
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

START = 1_760_000_000_000_000
HOLDS = 25


@pytest.fixture
def wall() -> list[int]:
    return [START]


@pytest.fixture
def book(wall: list[int]) -> ThreadedBook:
    store = MemoryStore(Head(book="main", incarnation="first"))
    engine = open_engine(store, now=START)
    book = ThreadedBook(engine, store, ClockGuard(lambda: wall[0], lambda: wall[0]))
    book.submit(Submission(OpenAccount("user:1:USD")))
    book.submit(Submission(Transfer("world:USD", "user:1:USD", "USD", "100")))
    for _ in range(HOLDS):
        book.submit(Submission(PlaceHold("user:1:USD", "USD", "1", expires_in_seconds=10)))
    book.submit(Submission(PlaceHold("user:1:USD", "USD", "1")))
    book.submit(Submission(PlaceHold("user:1:USD", "USD", "1", expires_in_seconds=99)))
    return book


def settle(book: ThreadedBook) -> None:
    """Wait until all that was submitted is committed."""
    done = threading.Event()
    book.submit(Submission(OpenAccount("user:2:USD"), ticket=lambda _: done.set()))
    assert done.wait(10)


def test_expiry_pages(book: ThreadedBook, wall: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "PAGE", 10)
    timer = HoldExpiry(book, clock=lambda: wall[0])
    book.start()
    settle(book)
    assert timer.tick() == 0
    wall[0] += 11_000_000
    assert [timer.tick() for _ in range(3)] == [10, 10, 5]
    book.stop(10)
    account = book.store.account("user:1:USD")
    assert account is not None
    assert (account.held, account.open_holds) == (2 * 10**18, 2)
    hold = book.store.hold(1)
    assert hold is not None
    assert hold.state is HoldState.EXPIRED
    assert timer.tick() == 0


def test_expiry_by_itself(book: ThreadedBook, wall: list[int]) -> None:
    timer = HoldExpiry(book, every_seconds=0.01, clock=lambda: wall[0])
    book.start()
    settle(book)
    timer.start()
    wall[0] += 11_000_000
    for _ in range(1_000):
        if book.store.account("user:1:USD").open_holds == 2:  # type: ignore[union-attr]
            break
        time.sleep(0.01)
    else:
        raise AssertionError("the holds stayed")
    timer.stop()
    book.stop(10)

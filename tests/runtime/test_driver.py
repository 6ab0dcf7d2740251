"""The threaded driver: answers, failures, jumping clocks, the end of its thread."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pennyweight.engine.engine import QueueFull, Submission
from pennyweight.engine.port import Append, ConstraintFailed, Head, NotOwner, StoreFailed
from pennyweight.engine.receipts import Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger.commands import Command
from pennyweight.ledger.refusals import Reason
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.runtime import driver
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook, Unavailable
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

START = 1_760_000_000_000_000


class FaultyStore(MemoryStore):
    """A book in memory that fails when told to, and can be made to wait."""

    def __init__(self) -> None:
        super().__init__(Head(book="main", incarnation="first"))
        self.fault: BaseException | None = None
        self.leave = threading.Event()
        self.leave.set()
        self.is_appending = threading.Event()

    def append(self, batch: Append) -> None:
        self.is_appending.set()
        assert self.leave.wait(20)
        if self.fault is not None:
            raise self.fault
        super().append(batch)


class Desk:
    """Submits, and waits for outcomes."""

    def __init__(self, **settings: Any) -> None:
        self.store = FaultyStore()
        self.wall = START
        clock = ClockGuard(lambda: self.wall, lambda: 0)
        engine = open_engine(self.store, now=START, **settings)
        self.exits: list[int] = []
        self.batches: list[int] = []
        self.book = ThreadedBook(
            engine,
            self.store,
            clock,
            observe=lambda count, _decide, _append: self.batches.append(count),
            die=self.exits.append,
        )

    def pause(self) -> None:
        """Let the next append wait for leave."""
        self.store.is_appending.clear()
        self.store.leave.clear()

    def submit(self, command: Command, key: str = "") -> Callable[[], Outcome]:
        is_there = threading.Event()
        outcomes: list[Outcome] = []

        def ticket(outcome: Outcome) -> None:
            outcomes.append(outcome)
            is_there.set()

        self.book.submit(Submission(command, key=key, ticket=ticket))

        def wait() -> Outcome:
            assert is_there.wait(20)
            assert len(outcomes) == 1
            return outcomes[0]

        return wait

    def execute(self, command: Command, key: str = "") -> Outcome:
        return self.submit(command, key)()


@pytest.fixture
def desk() -> Iterator[Desk]:
    desk = Desk()
    desk.book.start()
    yield desk
    desk.store.leave.set()
    desk.book.stop(20)


def fund(amount: str = "5") -> Transfer:
    return Transfer("world:USD", "user:1:USD", "USD", amount)


def test_receipt_refusal_replay(desk: Desk) -> None:
    assert isinstance(desk.execute(OpenAccount("user:1:USD")), Receipt)
    first = desk.execute(fund(), key="a")
    assert isinstance(first, Receipt)
    again = desk.execute(fund(), key="a")
    assert isinstance(again, Receipt)
    assert (again.answer, again.is_replayed) == (first.answer, True)
    reused = desk.execute(fund("6"), key="a")
    assert isinstance(reused, Refusal)
    assert reused.reason is Reason.KEY_REUSED
    short = desk.execute(Transfer("user:1:USD", "world:USD", "USD", "9"))
    assert isinstance(short, Refusal)
    assert short.reason is Reason.INSUFFICIENT_FUNDS


def test_waiting_commands_share_a_batch(desk: Desk) -> None:
    desk.pause()
    first = desk.submit(OpenAccount("user:1:USD"))
    assert desk.store.is_appending.wait(10)
    rest = [desk.submit(fund()) for _ in range(20)]
    desk.store.leave.set()
    assert all(isinstance(wait(), Receipt) for wait in [first, *rest])
    desk.book.stop(20)
    assert desk.batches == [1, 20]


def test_answers_come_once_per_batch() -> None:
    desk = Desk()
    calls: list[int] = []

    def call_soon(function: Callable[..., object], answers: Any) -> None:
        calls.append(len(answers))
        function(answers)

    waits = [desk.submit(OpenAccount(f"user:{number}:USD")) for number in range(10)]
    desk.book.start(call_soon)
    assert all(isinstance(wait(), Receipt) for wait in waits)
    desk.book.stop(20)
    assert calls == [10]


def test_failing_callback_spares_the_others(desk: Desk) -> None:
    def broken(_: Outcome) -> None:
        raise RuntimeError("the client is gone")

    desk.pause()
    first = desk.submit(OpenAccount("user:1:USD"))
    assert desk.store.is_appending.wait(10)
    desk.book.submit(Submission(fund(), ticket=broken))
    desk.book.submit(Submission(fund()))
    last = desk.submit(fund())
    desk.store.leave.set()
    assert isinstance(first(), Receipt)
    assert isinstance(last(), Receipt)
    assert desk.store.account("user:1:USD").posted == 15 * 10**18  # type: ignore[union-attr]


def test_closed_loop_is_no_disaster() -> None:
    desk = Desk()

    def closed(*_: object) -> None:
        raise RuntimeError("Event loop is closed")

    desk.book.start(closed)
    desk.book.submit(Submission(OpenAccount("user:1:USD")))
    desk.book.stop(20)
    assert desk.store.account("user:1:USD") is not None
    assert desk.exits == []


@pytest.mark.parametrize("fault", [StoreFailed("disk full"), NotOwner("taken over")], ids=str)
def test_store_failure_ends_all_commits(desk: Desk, fault: BaseException) -> None:
    desk.execute(OpenAccount("user:1:USD"))
    desk.store.fault = fault
    desk.pause()
    first = desk.submit(fund())
    assert desk.store.is_appending.wait(10)
    waiting = [desk.submit(fund()) for _ in range(3)]
    desk.store.leave.set()
    assert all(isinstance(wait(), Unknown) for wait in [first, *waiting])
    with pytest.raises(Unavailable, match=str(fault)):
        desk.book.check()
    desk.store.fault = None
    with pytest.raises(Unavailable):
        desk.submit(fund())
    assert desk.store.account("user:1:USD").posted == 0  # type: ignore[union-attr]
    assert desk.exits == []


def test_constraint_failure_hits_one_command_alone(desk: Desk) -> None:
    class Picky(FaultyStore):
        def append(self, batch: Append) -> None:
            if any(key.key == "bad" for key in batch.keys):
                raise ConstraintFailed("not this one")
            MemoryStore.append(self, batch)

    desk.execute(OpenAccount("user:1:USD"))
    desk.store.__class__ = Picky
    waits = [desk.submit(fund(), key=key) for key in ("a", "bad", "b", "c")]
    outcomes = [wait() for wait in waits]
    assert [type(outcome) for outcome in outcomes] == [Receipt, Failure, Receipt, Receipt]
    assert desk.store.account("user:1:USD").posted == 15 * 10**18  # type: ignore[union-attr]
    desk.book.check()


def test_broken_engine_ends_the_process(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(desk.book.engine, "decide", broken)
    assert isinstance(desk.execute(OpenAccount("user:1:USD")), Unknown)
    desk.book.stop(20)
    assert desk.exits == [70]
    with pytest.raises(Unavailable):
        desk.submit(fund())


def test_clock_jump_refuses_writes(desk: Desk) -> None:
    desk.wall += 600_000
    outcome = desk.execute(OpenAccount("user:1:USD"))
    assert isinstance(outcome, Unknown)
    with pytest.raises(Unavailable) as caught:
        desk.submit(OpenAccount("user:1:USD"))
    assert caught.value.code == "clock_drift"
    assert desk.store.head().committed_at < START + 1_000


def test_clock_comes_back(desk: Desk) -> None:
    desk.wall += 600_000
    desk.execute(OpenAccount("user:1:USD"))
    desk.wall -= 600_000
    for _ in range(200):
        try:
            outcome = desk.execute(OpenAccount("user:1:USD"))
        except Unavailable:
            threading.Event().wait(0.02)
        else:
            assert isinstance(outcome, Receipt)
            return
    raise AssertionError("the book stayed closed")


def test_queue_full() -> None:
    desk = Desk(queue_max=10)
    waits = [desk.submit(OpenAccount(f"user:{number}:USD")) for number in range(10)]
    with pytest.raises(QueueFull):
        desk.submit(OpenAccount("user:10:USD"))
    desk.book.start()
    assert all(isinstance(wait(), Receipt) for wait in waits)
    desk.book.stop(20)


def test_stop_decides_what_waits() -> None:
    desk = Desk()
    waits = [desk.submit(OpenAccount(f"user:{number}:USD")) for number in range(5)]
    desk.book.start()
    desk.book.stop(20)
    assert all(isinstance(wait(), Receipt) for wait in waits)
    with pytest.raises(Unavailable) as caught:
        desk.submit(OpenAccount("user:9:USD"))
    assert caught.value.code == "stopping"


def test_dropped_before_decision(desk: Desk) -> None:
    desk.pause()
    first = desk.submit(OpenAccount("user:1:USD"))
    assert desk.store.is_appending.wait(10)
    gone = Submission(OpenAccount("user:2:USD"))
    desk.book.submit(gone)
    gone.is_dropped = True
    last = desk.submit(OpenAccount("user:3:USD"))
    desk.store.leave.set()
    first()
    last()
    assert desk.store.account("user:2:USD") is None


def test_many_threads(desk: Desk) -> None:
    """Submitting from several threads loses and doubles nothing."""
    desk.execute(OpenAccount("user:1:USD"))
    outcomes: list[Outcome] = []
    guard = threading.Lock()

    def send(name: str) -> None:
        waits = [desk.submit(fund("1"), key=f"{name}{number}") for number in range(50)]
        found = [wait() for wait in waits]
        with guard:
            outcomes.extend(found)

    threads = [threading.Thread(target=send, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(outcomes) == 200
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert desk.store.account("user:1:USD").posted == 200 * 10**18  # type: ignore[union-attr]


def test_broken_log_does_not_keep_a_broken_engine_alive(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(desk.book.engine, "decide", broken)
    monkeypatch.setattr(driver, "log", SimpleNamespace(critical=broken))
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    assert isinstance(desk.execute(OpenAccount("user:1:USD")), Unknown)
    desk.book.stop(20)
    assert desk.exits == [70]

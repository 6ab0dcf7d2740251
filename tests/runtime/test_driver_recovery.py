"""The threaded driver on a store that goes away: what waits, what is told, what is found out."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from typing import Any

import pytest

from pennyweight.engine.engine import Submission
from pennyweight.engine.port import (
    Append,
    ConstraintFailed,
    Found,
    Head,
    NotOwner,
    OutcomeUnknown,
    Reads,
    Resolution,
    StoreError,
    StoreFailed,
    StoreUnavailable,
)
from pennyweight.engine.receipts import UNKNOWN, Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import decode_entry
from pennyweight.ledger.refusals import Reason
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook, Unavailable
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

START = 1_760_000_000_000_000
UNIT = 10**18
AWAY = StoreUnavailable("nobody is there", "store_read_only")


class Weather(MemoryStore):
    """A book in memory. While a method has a fault it raises it, before it does anything.

    `breaks` says of each of the next appends how its answer is lost: after it was
    "committed", or before ("cut").
    """

    def __init__(self) -> None:
        super().__init__(Head(book="main", incarnation="first"))
        self.faults: dict[str, StoreError] = {}
        self.breaks: list[str] = []
        self.calls: Counter[str] = Counter()
        self.leave = threading.Event()
        self.leave.set()

    def _meet(self, method: str) -> None:
        self.calls[method] += 1
        assert self.leave.wait(20)
        if method in self.faults:
            raise self.faults[method]

    def head(self) -> Head:
        self._meet("head")
        return super().head()

    def begin(self, reads: Reads, resident: Container[str]) -> Found:
        self._meet("begin")
        return super().begin(reads, resident)

    def append(self, batch: Append) -> None:
        self._meet("append")
        how = self.breaks.pop(0) if self.breaks else "well"
        if how != "cut":
            super().append(batch)
        if how != "well":
            raise OutcomeUnknown("the connection broke")

    def resolve(self, batch: Append) -> Resolution:
        self._meet("resolve")
        return super().resolve(batch)

    @property
    def keys(self) -> list[str]:
        """The keys of all entries in order, those of the built-in assets left out."""
        entries = [decode_entry(body) for _, body in self.entries(0, 10_000)]
        return [entry.key for entry in entries if entry.command != "register_asset"]

    def posted(self, user: int = 1) -> int:
        account = self.account(f"user:{user}:USD")
        assert account is not None
        return account.posted // UNIT


class Trust:
    """A tenure that a test can doubt."""

    def __init__(self) -> None:
        self.is_sure = True
        self.confirmed = 0
        self.fault: StoreError | None = None

    def confirm(self) -> None:
        self.confirmed += 1
        if self.fault is not None:
            raise self.fault


class Wait:
    """A ticket that can be waited for."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._is_there = threading.Event()

    def __call__(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._is_there.set()

    @property
    def is_over(self) -> bool:
        return self._is_there.is_set()

    def outcome(self) -> Outcome:
        assert self._is_there.wait(20)
        assert len(self.outcomes) == 1
        return self.outcomes[0]


class Desk:
    """A driver on a store with weather, and who asks it."""

    def __init__(self, hold_seconds: float = 20, **settings: Any) -> None:
        self.store = Weather()
        self.tenure = Trust()
        self.wall = START
        self.is_lost = threading.Event()
        self.exits: list[int] = []
        self.book = ThreadedBook(
            open_engine(self.store, now=START, **settings),
            self.store,
            ClockGuard(lambda: self.wall, lambda: 0),
            tenure=self.tenure,
            lost=self.is_lost.set,
            hold_seconds=hold_seconds,
            die=self.exits.append,
        )

    def submit(self, command: Command, key: str = "") -> Wait:
        wait = Wait()
        self.book.submit(Submission(command, key=key, ticket=wait))
        return wait

    def execute(self, command: Command, key: str = "") -> Outcome:
        return self.submit(command, key).outcome()

    def fund(self, *keys: str) -> list[Wait]:
        return [self.submit(FUND, key) for key in keys]

    def hold(self, command: Command, key: str) -> Wait:
        """Submit a command and let the store wait with it, until its `leave` is set."""
        before = self.store.calls["begin"]
        self.store.leave.clear()
        wait = self.submit(command, key)
        until(lambda: self.store.calls["begin"] > before)
        return wait

    def cut_off(self) -> None:
        """Let the lease be unanswered too: by it a driver hears that its store is back."""
        self.tenure.fault = AWAY

    def tried(self, method: str, times: int = 2) -> None:
        """Wait until a method was called this often from now on."""
        before = self.store.calls[method]
        until(lambda: self.store.calls[method] >= before + times)


FUND = Transfer("world:USD", "user:1:USD", "USD", "1")
TOO_MUCH = Transfer("user:1:USD", "world:USD", "USD", "1000")


def until(is_so: Callable[[], Any]) -> None:
    waiting = threading.Event()
    for _ in range(4_000):
        if is_so():
            return
        waiting.wait(0.005)
    raise AssertionError("it did not come to be")


def done(waits: list[Wait]) -> list[int]:
    """Return the sequences of commands, which must all have been done, and for the first time."""
    outcomes = [wait.outcome() for wait in waits]
    assert all(isinstance(outcome, Receipt) for outcome in outcomes), outcomes
    assert not any(outcome.is_replayed for outcome in outcomes)
    return [outcome.sequence for outcome in outcomes]


def code_of(wait: Wait) -> str:
    outcome = wait.outcome()
    assert isinstance(outcome, Unknown), outcome
    return outcome.code


def why_not(book: ThreadedBook) -> str:
    """Return the code of what a new command meets; "" if it is taken."""
    try:
        book.check()
    except Unavailable as error:
        return error.code
    return ""


@pytest.fixture
def desk() -> Iterator[Desk]:
    yield from running(Desk())


@pytest.fixture
def hasty() -> Iterator[Desk]:
    """A driver that waits for its store for a moment only."""
    yield from running(Desk(hold_seconds=0.1))


def running(desk: Desk) -> Iterator[Desk]:
    desk.book.start()
    assert isinstance(desk.execute(OpenAccount("user:1:USD"), "open"), Receipt)
    yield desk
    desk.store.faults.clear()
    desk.store.leave.set()
    desk.book.stop(20)
    assert desk.book.join(20)
    assert desk.exits == []


# ── nothing was written ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("method", ["begin", "append"])
def test_what_was_not_written_is_tried_again(desk: Desk, method: str) -> None:
    """Each command once, in the order in which they came, and nobody hears of the trouble."""
    desk.store.faults[method] = AWAY
    waits = desk.fund("a")
    desk.tried(method)
    waits += desk.fund("b", "c")
    broke = desk.submit(TOO_MUCH, "much")
    desk.tried(method)
    assert not any(wait.is_over for wait in [*waits, broke])
    assert why_not(desk.book) == ""
    desk.store.faults.clear()
    assert done(waits) == sorted(done(waits))
    assert isinstance(broke.outcome(), Refusal)
    assert desk.store.keys == ["open", "a", "b", "c"]
    assert desk.store.posted() == 3
    assert done(desk.fund("d"))
    assert why_not(desk.book) == ""


def test_a_store_that_comes_and_goes(desk: Desk) -> None:
    """Faults in any order, before and after the append: everything once, nothing lost."""
    waits = []
    for number in range(30):
        method = ("begin", "append", "head")[number % 3]
        desk.store.faults[method] = AWAY
        desk.store.breaks.append(("cut", "committed", "well")[number % 3])
        waits += desk.fund(*(f"{number}.{place}" for place in range(3)))
        time.sleep(0.002 * (number % 4))
        desk.store.faults.clear()
    done(waits)
    assert desk.store.keys == ["open", *(f"{n}.{p}" for n in range(30) for p in range(3))]
    assert desk.store.posted() == 90


@pytest.mark.parametrize("method", ["begin", "append"])
def test_nobody_waits_longer_than_hold_seconds(hasty: Desk, method: str) -> None:
    hasty.store.faults[method] = AWAY
    hasty.cut_off()
    keyed, bare = hasty.submit(FUND, "a"), hasty.submit(FUND)
    assert [code_of(keyed), code_of(bare)] == ["store_read_only"] * 2
    assert why_not(hasty.book) == "store_read_only"
    with pytest.raises(Unavailable) as caught:
        hasty.submit(FUND, "b")
    assert caught.value.code == "store_read_only"
    hasty.store.faults.clear()
    assert why_not(hasty.book) == "store_read_only"
    hasty.tenure.fault = None
    until(lambda: why_not(hasty.book) == "")
    assert hasty.store.keys == ["open"]
    assert done(hasty.fund("a"))
    assert hasty.store.posted() == 1


def test_it_recovers_without_a_command(hasty: Desk) -> None:
    """The head is asked until it answers; nobody must try his luck for that."""
    hasty.store.faults = dict.fromkeys(("begin", "append", "head"), AWAY)
    assert code_of(hasty.submit(FUND)) == "store_read_only"
    hasty.tried("head", 3)
    assert why_not(hasty.book) == "store_read_only"
    hasty.store.faults.clear()
    until(lambda: why_not(hasty.book) == "")


def test_patience_begins_anew_with_each_trouble(hasty: Desk) -> None:
    hasty.store.faults["begin"] = AWAY
    assert code_of(hasty.submit(FUND)) == "store_read_only"
    hasty.store.faults.clear()
    until(lambda: why_not(hasty.book) == "")
    hasty.store.faults["append"] = StoreUnavailable("the disk is full", "store_full")
    wait = hasty.submit(FUND, "a")
    hasty.tried("append", 1)
    hasty.store.faults.clear()
    assert done([wait])


def test_a_constraint_still_hits_one_command_alone(desk: Desk) -> None:
    """In halves, and with a store that goes away in between."""
    seen: list[int] = []

    class Picky(Weather):
        def append(self, batch: Append) -> None:
            seen.append(len(batch.keys))
            if len(seen) in {2, 4}:
                raise AWAY
            if any(key.key == "bad" for key in batch.keys):
                raise ConstraintFailed("not this one")
            super().append(batch)

    first = desk.hold(FUND, "first")
    waits = desk.fund("a", "b", "bad", "c")
    desk.store.__class__ = Picky
    desk.store.leave.set()
    assert done([first])
    outcomes = [wait.outcome() for wait in waits]
    assert [type(outcome) for outcome in outcomes] == [Receipt, Receipt, Failure, Receipt]
    assert desk.store.keys == ["open", "first", "a", "b", "c"]
    assert max(seen) > 1
    assert why_not(desk.book) == ""


# ── nobody knows what was written ─────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["committed", "cut"])
def test_a_broken_commit_is_found_out(desk: Desk, how: str) -> None:
    """Whichever it was, callers get the one receipt, and so do those who ask again."""
    desk.store.breaks = [how]
    first = desk.submit(FUND, "a")
    (sequence,) = done([first])
    again = desk.execute(FUND, "a")
    assert isinstance(again, Receipt)
    assert (again.sequence, again.is_replayed) == (sequence, True)
    assert desk.store.keys == ["open", "a"]
    assert desk.store.calls["resolve"] == 1


@pytest.mark.parametrize("how", ["committed", "cut"])
def test_finding_out_takes_a_while(desk: Desk, how: str) -> None:
    """Nobody is answered before it is known, and nothing else is appended."""
    desk.store.breaks = [how]
    desk.store.faults["resolve"] = AWAY
    waits = desk.fund("a")
    desk.tried("resolve")
    appends = desk.store.calls["append"]
    waits += desk.fund("b")
    desk.tried("resolve")
    assert not any(wait.is_over for wait in waits)
    assert desk.store.calls["append"] == appends
    desk.store.faults.clear()
    done(waits)
    assert desk.store.keys == ["open", "a", "b"]


@pytest.mark.parametrize("how", ["committed", "cut"])
def test_finding_out_takes_too_long(hasty: Desk, how: str) -> None:
    """Its callers hear that nobody knows, once; those behind them that nothing was decided."""
    hasty.store.breaks = [how]
    hasty.store.faults["resolve"] = AWAY
    held = hasty.hold(OpenAccount("user:2:USD"), "held")
    hasty.store.leave.set()
    unsure = [held, hasty.submit(FUND, "a"), hasty.submit(TOO_MUCH, "much")]
    codes = [code_of(wait) for wait in unsure]
    assert UNKNOWN in codes
    assert why_not(hasty.book) == "store_read_only"
    with pytest.raises(Unavailable):
        hasty.submit(FUND, "b")
    hasty.store.faults.clear()
    until(lambda: why_not(hasty.book) == "")
    committed = hasty.store.keys[1:]
    assert committed == ([] if how == "cut" else ["held", "a"][: len(committed)])
    again = hasty.execute(OpenAccount("user:2:USD"), "held")
    assert isinstance(again, Receipt)
    assert again.is_replayed == ("held" in committed)
    again = hasty.execute(FUND, "a")
    assert isinstance(again, Receipt)
    assert again.is_replayed == ("a" in committed)
    assert isinstance(hasty.execute(TOO_MUCH, "much"), Refusal)
    assert hasty.store.posted() == 1
    assert all(len(wait.outcomes) == 1 for wait in unsure)


def test_a_refusal_beside_a_broken_commit_is_not_told(desk: Desk) -> None:
    """It may rest on what was perhaps not committed: it is decided again."""
    first = desk.hold(FUND, "first")
    spend = desk.submit(Transfer("user:1:USD", "world:USD", "USD", "1"), "spend")
    short = desk.submit(Transfer("user:1:USD", "world:USD", "USD", "1"), "short")
    desk.store.breaks = ["well", "cut"]
    desk.store.faults["resolve"] = AWAY
    desk.store.leave.set()
    assert done([first])
    desk.tried("resolve")
    assert not short.is_over
    desk.store.faults.clear()
    assert done([spend])
    outcome = short.outcome()
    assert isinstance(outcome, Refusal)
    assert outcome.reason is Reason.INSUFFICIENT_FUNDS
    assert desk.store.posted() == 0


@pytest.mark.parametrize("how", ["committed", "cut"])
def test_a_broken_commit_of_a_former_owner(desk: Desk, how: str) -> None:
    """What it had committed is told; what it had not, and what waits, is another's to decide."""
    desk.store.breaks = [how]
    desk.store.faults["resolve"] = AWAY
    first = desk.submit(FUND, "a")
    desk.tried("resolve")
    rest = desk.fund("b", "c")
    assert desk.store.claim("another", "", 1_000_000) is not None
    desk.store.faults.clear()
    assert desk.is_lost.wait(20)
    assert desk.book.join(20)
    assert desk.book.is_lost
    left = [submission.key for submission in desk.book.take_back()]
    if how == "committed":
        assert done([first])
        assert left == ["b", "c"]
    else:
        assert not first.is_over
        assert left == ["a", "b", "c"]
    assert not any(wait.is_over for wait in rest)
    assert why_not(desk.book) == "no_owner"


# ── another owner ─────────────────────────────────────────────────────────────────


def test_another_owner_ends_this_one(desk: Desk) -> None:
    """The append that finds out is not written; everything is taken back in order."""
    assert desk.store.claim("another", "", 1_000_000) is not None
    waits = [desk.hold(FUND, "a"), *desk.fund("b", "c")]
    desk.store.leave.set()
    assert desk.is_lost.wait(20)
    assert desk.book.join(20)
    assert [submission.key for submission in desk.book.take_back()] == ["a", "b", "c"]
    assert desk.book.take_back() == []
    assert not any(wait.is_over for wait in waits)
    assert desk.store.keys == ["open"]
    with pytest.raises(Unavailable, match="another process"):
        desk.submit(FUND)


def test_lose_while_idle(desk: Desk) -> None:
    desk.book.lose()
    assert desk.is_lost.wait(20)
    assert desk.book.join(20)
    assert desk.book.take_back() == []
    assert why_not(desk.book) == "no_owner"


def test_lose_with_commands_waiting(desk: Desk) -> None:
    """The batch that is being committed ends; the others are not begun."""
    first = desk.hold(FUND, "a")
    desk.fund("b", "c")
    desk.book.lose()
    desk.store.leave.set()
    assert desk.is_lost.wait(20)
    assert done([first])
    assert [submission.key for submission in desk.book.take_back()] == ["b", "c"]
    assert desk.store.keys == ["open", "a"]


@pytest.mark.parametrize("how", ["committed", "cut"])
def test_lose_while_nobody_knows(desk: Desk, how: str) -> None:
    """It is found out first, however long that takes."""
    desk.store.breaks = [how]
    desk.store.faults["resolve"] = AWAY
    first = desk.submit(FUND, "a")
    desk.tried("resolve")
    desk.book.lose()
    desk.tried("resolve")
    assert not desk.is_lost.is_set()
    desk.store.faults.clear()
    assert desk.is_lost.wait(20)
    assert desk.book.join(20)
    left = [submission.key for submission in desk.book.take_back()]
    assert (first.is_over, left) == ((True, []) if how == "committed" else (False, ["a"]))


def test_lose_while_the_store_is_away(desk: Desk) -> None:
    desk.store.faults = dict.fromkeys(("begin", "head"), AWAY)
    wait = desk.submit(FUND, "a")
    desk.tried("begin")
    desk.book.lose()
    assert desk.is_lost.wait(20)
    assert not wait.is_over
    assert [submission.key for submission in desk.book.take_back()] == ["a"]


def test_lose_while_the_clock_is_wrong(desk: Desk) -> None:
    desk.wall += 600_000
    assert isinstance(desk.execute(FUND), Unknown)
    desk.book.lose()
    assert desk.is_lost.wait(20)
    assert desk.book.join(20)


def test_lose_after_a_final_failure(desk: Desk) -> None:
    desk.store.faults["append"] = StoreFailed("the disk is gone")
    assert code_of(desk.submit(FUND)) == UNKNOWN
    desk.book.lose()
    assert desk.is_lost.wait(20)
    assert desk.book.join(20)


# ── a tenure in doubt ─────────────────────────────────────────────────────────────


def test_a_refusal_waits_for_the_lease(desk: Desk) -> None:
    """An append is guarded; a refusal alone is only true while the book is surely ours."""
    assert isinstance(desk.execute(TOO_MUCH), Refusal)
    assert desk.tenure.confirmed == 0
    desk.tenure.is_sure = False
    assert done(desk.fund("a"))
    assert desk.tenure.confirmed == 0
    assert isinstance(desk.execute(TOO_MUCH), Refusal)
    assert desk.tenure.confirmed == 1
    again = desk.execute(FUND, "a")
    assert isinstance(again, Receipt)
    assert again.is_replayed
    assert desk.tenure.confirmed == 2


def test_a_refusal_without_an_answer_about_the_lease(desk: Desk) -> None:
    desk.tenure.is_sure = False
    desk.tenure.fault = AWAY
    wait = desk.submit(TOO_MUCH)
    until(lambda: desk.tenure.confirmed >= 3)
    assert not wait.is_over
    desk.tenure.fault = None
    assert isinstance(wait.outcome(), Refusal)


def test_a_refusal_of_a_former_owner_is_never_told(desk: Desk) -> None:
    """Frozen past its lease, thawed, and asked what only another can know by now."""
    desk.tenure.is_sure = False
    desk.tenure.fault = NotOwner("another has it")
    wait = desk.submit(TOO_MUCH, "a")
    assert desk.is_lost.wait(20)
    assert not wait.is_over
    assert [submission.key for submission in desk.book.take_back()] == ["a"]


# ── the clock beside ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["committed", "cut"])
def test_a_broken_commit_is_found_out_whatever_the_clock(desk: Desk, how: str) -> None:
    """Finding out needs no time: its callers do not wait for the clock."""
    desk.store.breaks = [how]
    desk.store.faults["resolve"] = AWAY
    wait = desk.submit(FUND, "a")
    desk.tried("resolve")
    desk.wall += 600_000
    until(lambda: why_not(desk.book) == "clock_drift")
    desk.store.faults.clear()
    if how == "committed":
        assert done([wait])
    else:
        assert code_of(wait) == "clock_drift"
    desk.wall -= 600_000
    until(lambda: why_not(desk.book) == "")
    again = desk.execute(FUND, "a")
    assert isinstance(again, Receipt)
    assert again.is_replayed == (how == "committed")
    assert desk.store.posted() == 1


def test_a_clock_that_jumped_decides_nothing(desk: Desk) -> None:
    first = desk.hold(FUND, "first")
    wait = desk.submit(FUND, "a")
    desk.wall += 600_000
    desk.store.leave.set()
    assert done([first])
    assert code_of(wait) == "clock_drift"


# ── the end ───────────────────────────────────────────────────────────────────────


def test_stop_while_the_store_is_away(desk: Desk) -> None:
    desk.store.faults["begin"] = AWAY
    wait = desk.submit(FUND, "a")
    desk.tried("begin")
    desk.book.stop(20)
    assert code_of(wait) == "store_read_only"
    assert desk.book.join(0)
    assert desk.store.keys == ["open"]


def test_stop_while_nobody_knows(desk: Desk) -> None:
    desk.store.breaks = ["committed"]
    desk.store.faults["resolve"] = AWAY
    wait = desk.submit(FUND, "a")
    desk.tried("resolve")
    behind = desk.submit(FUND, "b")
    desk.book.stop(20)
    assert code_of(wait) == UNKNOWN
    assert code_of(behind) == "store_read_only"
    assert desk.book.join(0)


@pytest.mark.parametrize("how", ["committed", "cut"])
def test_stop_finds_out_what_it_can(desk: Desk, how: str) -> None:
    """A commit that breaks while the driver stops is found out, and what waits is decided."""
    desk.store.breaks = [how]
    first = desk.hold(FUND, "a")
    behind = desk.submit(FUND, "b")
    stopping = threading.Thread(target=desk.book.stop, args=(20,))
    stopping.start()
    until(lambda: why_not(desk.book) == "stopping")
    desk.store.leave.set()
    stopping.join(20)
    done([first, behind])
    assert desk.store.keys == ["open", "a", "b"]


def test_stop_after_it_was_lost(desk: Desk) -> None:
    desk.book.lose()
    assert desk.is_lost.wait(20)
    desk.book.stop(20)
    assert desk.book.join(0)


def test_stop_while_the_clock_is_wrong(desk: Desk) -> None:
    desk.wall += 600_000
    assert isinstance(desk.execute(FUND), Unknown)
    desk.book.stop(20)
    assert desk.book.join(0)


def test_stop_before_the_start() -> None:
    desk = Desk()
    desk.book.stop(1)
    with pytest.raises(Unavailable):
        desk.submit(FUND)

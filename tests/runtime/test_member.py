"""Members that share a book: who owns it when, and that every command is done once."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import pytest

from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.engine import Engine, Lane, Submission
from pennyweight.engine.port import Append, Head, Lease, OutcomeUnknown, StoreUnavailable
from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.receipts import UNKNOWN, Outcome, Receipt, Refusal, Unknown
from pennyweight.engine.verification import verify
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import CursorMove, decode_entry
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.runtime.clock import ClockGuard, wall_clock
from pennyweight.runtime.driver import ThreadedBook, Unavailable
from pennyweight.runtime.front import Front
from pennyweight.runtime.listener import Listener
from pennyweight.runtime.member import Member, Tenure
from pennyweight.runtime.opening import open_engine
from pennyweight.sharing import address_of
from pennyweight.stores.memory import MemoryStore
from wired import SECRET, Loop, Waiting, commands, until

UNIT = 10**18
LEASE_SECONDS = 0.6
AWAY = StoreUnavailable("nobody is there")

FUND = Transfer("world:USD", "user:1:USD", "USD", "1")
SPEND = Transfer("user:1:USD", "world:USD", "USD", "1")


class View:
    """One member's way to the shared store: it can be cut, held up, and its clock be off."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.is_away = False
        self.ahead_seconds = 0.0
        self.breaks: list[str] = []
        """How the answers of the next appends are lost: "committed" or "cut"."""
        self.leave = threading.Event()
        self.leave.set()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        def call(*values: Any, **options: Any) -> Any:
            self._meet()
            return method(*values, **options)

        return call

    def _meet(self) -> None:
        assert self.leave.wait(30)
        if self.is_away:
            raise AWAY

    def append(self, batch: Append) -> None:
        self._meet()
        how = self.breaks.pop(0) if self.breaks else ""
        if how != "cut":
            self.store.append(batch)
        if how:
            raise OutcomeUnknown("the connection broke")

    def claim(self, *values: Any) -> Lease | None:
        self._meet()
        return self._shifted(self.store.claim(*values))

    def lease(self) -> Lease | None:
        self._meet()
        return self._shifted(self.store.lease())

    def _shifted(self, lease: Lease | None) -> Lease | None:
        shift = int(self.ahead_seconds * 1_000_000)
        return lease and msgspec.structs.replace(
            lease, now=lease.now - shift, expires_at=lease.expires_at - shift
        )


class Aide:
    """An agent that notes whose turn it is."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    def start(self) -> None:
        self.notes.append(f"{self.name} begins")

    def stop(self) -> None:
        self.notes.append(f"{self.name} ends")


class Seat:
    """A member on a loop of its own, and who asks there."""

    def __init__(
        self,
        store: MemoryStore,
        name: str,
        *,
        notes: list[str] | None = None,
        lease_seconds: float = LEASE_SECONDS,
        hold_seconds: float = 20,
        listen: str = "127.0.0.1:0",
        is_able: bool = True,
    ) -> None:
        self.view = view = View(store)
        self.is_able = is_able
        self.loop = Loop()
        self.books: list[ThreadedBook] = []
        self.troubles: list[str] = []
        clock = ClockGuard()

        def open_one() -> Engine:
            if not self.is_able:
                raise ValueError("a setting does not fit the book")
            return open_engine(view, now=clock.now())  # type: ignore[arg-type]

        def open_book(engine: Engine, tenure: Tenure, lost: Callable[[], object]) -> ThreadedBook:
            book = ThreadedBook(
                engine,
                view,  # type: ignore[arg-type]
                clock,
                tenure=tenure,
                lost=lost,
                hold_seconds=hold_seconds,
            )
            self.books.append(book)
            return book

        def figures() -> CacheFigures:
            return self.member.figures()

        self.member = Member(
            view,  # type: ignore[arg-type]
            Front(
                partial(address_of, view),  # type: ignore[arg-type]
                secret=SECRET,
                book="main",
                commands=commands(),
                load_assets=dict,
                load_asset=lambda _: None,
                hold_seconds=hold_seconds,
                queue_max=20_000,
            ),
            Listener(None, secret=SECRET, commands=commands(), figures=figures),
            name=name,
            listen=listen,
            advertise="",
            lease_seconds=lease_seconds,
            open_engine=open_one,
            open_book=open_book,
            agents=lambda _: [] if notes is None else [Aide(name, notes)],
            clock=clock,
            broken=self.troubles.append,
        )
        self.loop.do(self.member.start, self.loop.loop.call_soon_threadsafe)

    @property
    def is_owner(self) -> bool:
        return self.member.engine is not None

    def why_not(self) -> str:
        """Return the code for which commands cannot be committed; "" if they can."""
        try:
            self.loop.do(self.member.check)
        except Unavailable as error:
            return error.code
        return ""

    def submit(self, command: Command, key: str = "", **options: Any) -> Waiting:
        return self.submit_all([Submission(command, key=key, **options)])[0]

    def submit_all(self, submissions: list[Submission]) -> list[Waiting]:
        waits = [Waiting() for _ in submissions]

        def submit() -> None:
            for submission, wait in zip(submissions, waits, strict=True):
                submission.ticket = wait
                self.member.submit(submission)

        self.loop.do(submit)
        return waits

    def execute(self, command: Command, key: str = "") -> Outcome:
        return self.submit(command, key).outcome()

    def freeze(self) -> None:
        """Let nothing of it go on that asks the store: neither the keeper nor the engine."""
        self.view.leave.clear()

    def thaw(self) -> None:
        self.view.leave.set()

    def stop(self) -> None:
        if self.loop.loop.is_closed():
            return
        self.view.is_away = False
        self.thaw()
        self.member.stop(20)
        self.loop.close()


class Table:
    """A store in memory, and the members around it."""

    def __init__(self) -> None:
        self.store = MemoryStore(Head(book="main", incarnation="first"), clock=wall_clock)
        self.seats: list[Seat] = []

    def sit(self, name: str = "", **options: Any) -> Seat:
        seat = Seat(self.store, name or f"member {len(self.seats)}", **options)
        self.seats.append(seat)
        return seat

    def sit_all(self, count: int, **options: Any) -> list[Seat]:
        """Seat so many, of whom the first owns the book, with one account in it."""
        first = self.sit(**options)
        until(lambda: first.is_owner)
        seats = [first, *(self.sit(**options) for _ in range(count - 1))]
        assert isinstance(first.execute(OpenAccount("user:1:USD"), "open"), Receipt)
        for seat in seats:
            until(lambda seat=seat: seat.why_not() == "")
        return seats

    @property
    def keys(self) -> list[str]:
        entries = [decode_entry(body) for _, body in self.store.entries(0, 100_000)]
        return [entry.key for entry in entries if entry.command != "register_asset"]

    def posted(self) -> int:
        account = self.store.account("user:1:USD")
        assert account is not None
        return account.posted // UNIT

    def prove(self) -> None:
        """Prove the book, and that no key is in it twice."""
        report = verify(self.store, answers=answers_of(known_commands()))
        assert report.ok, report.problems
        named = [key for key in self.keys if key]
        assert len(named) == len(set(named))


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table()
    yield table
    for seat in table.seats:
        seat.stop()
    table.prove()


def receipts(waits: list[Waiting]) -> list[Outcome]:
    """Return the outcomes of commands that must be done.

    Those with a key may be told as replays where the answer of a former owner was lost.
    """
    outcomes = [wait.outcome() for wait in waits]
    assert all(isinstance(outcome, Receipt) for outcome in outcomes), outcomes
    return outcomes


def done(waits: list[Waiting]) -> None:
    """Check that commands were done, and by whoever was asked first."""
    outcomes = receipts(waits)
    assert not any(isinstance(outcome, Receipt) and outcome.is_replayed for outcome in outcomes)


def mixed(prefix: str, count: int) -> list[Submission]:
    """Return payments, every other one without a key."""
    keys = (f"{prefix}.{number}" if number % 2 else "" for number in range(count))
    return [Submission(FUND, key=key) for key in keys]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds


# ── one owns it ───────────────────────────────────────────────────────────────────


def test_one_owns_the_book_and_all_serve_it(table: Table) -> None:
    seats = table.sit_all(3)
    assert [seat.is_owner for seat in seats] == [True, False, False]
    for number, seat in enumerate(seats):
        done([seat.submit(FUND, f"k{number}")])
    receipts = [seat.execute(FUND, "k0") for seat in seats]
    assert all(isinstance(receipt, Receipt) and receipt.is_replayed for receipt in receipts)
    assert receipts[0] == receipts[1] == receipts[2]
    refusals = [seat.execute(Transfer("user:1:USD", "world:USD", "USD", "9")) for seat in seats]
    assert all(isinstance(refusal, Refusal) for refusal in refusals)
    assert refusals[0] == refusals[1] == refusals[2]
    told = [seat.member.describe() for seat in seats]
    assert [one["role"] for one in told] == ["owner", "front", "front"]
    assert told[1]["owner"] == told[2]["owner"] == seats[0].member.address
    assert seats[1].member.figures().limit == seats[0].member.figures().limit
    assert table.posted() == 3


def test_members_that_begin_together(table: Table) -> None:
    """One of them gets it, under one epoch, and the assets are registered once."""
    seats = [table.sit() for _ in range(4)]
    until(lambda: all(seat.why_not() == "" for seat in seats))
    assert sum(seat.is_owner for seat in seats) == 1
    assert table.store.head().epoch == 1
    assert table.keys == []
    done([seat.submit(OpenAccount(f"user:{n}:USD")) for n, seat in enumerate(seats, 1)])


# ── the owner goes ────────────────────────────────────────────────────────────────


def test_a_stopped_owner_hands_over_at_once(table: Table) -> None:
    """Nobody waits for its lease to run out, and what was asked meanwhile is done."""
    first, second = table.sit_all(2, lease_seconds=30)
    waits = second.submit_all(mixed("before", 20))
    with within(10):
        first.stop()
        waits += second.submit_all(mixed("after", 20))
        receipts(waits)
    assert second.is_owner
    assert table.store.head().epoch == 2
    assert table.posted() == 40


def test_a_lease_that_runs_out(table: Table) -> None:
    first, second = table.sit_all(2)
    first.freeze()
    waits = second.submit_all(mixed("a", 20))
    until(lambda: second.is_owner)
    done(waits)
    first.thaw()
    until(lambda: not first.is_owner)
    done(first.submit_all(mixed("b", 20)))
    assert table.posted() == 40
    assert table.store.head().epoch == 2


def test_an_owner_that_froze_says_nothing_stale(table: Table) -> None:
    """What it had begun is not written, what it would have refused is asked of the next."""
    first, second = table.sit_all(2)
    first.freeze()
    held = first.submit_all(mixed("held", 10))
    refused = first.submit(SPEND, "spend")
    until(lambda: second.is_owner)
    done([second.submit(FUND, "fund")])
    time.sleep(LEASE_SECONDS)
    assert not any(wait.outcomes for wait in [*held, refused])
    first.thaw()
    done([*held, refused])
    assert table.posted() == 10
    assert first.books[0].is_lost


def test_an_owner_whose_store_is_away(table: Table) -> None:
    """Another takes over; commands that waited at the first are done once, by the second."""
    first, second = table.sit_all(2)
    first.view.is_away = True
    waits = first.submit_all(mixed("a", 30))
    until(lambda: second.is_owner)
    assert first.why_not() == ""
    first.view.is_away = False
    done(waits)
    until(lambda: not first.is_owner)
    assert table.posted() == 30
    assert first.why_not() == ""


def test_the_store_is_away_for_all(table: Table) -> None:
    """Whoever has it then, everything that was asked anywhere is done, once and in order."""
    seats = table.sit_all(3)
    for seat in seats:
        seat.view.is_away = True
    waits = [wait for n, seat in enumerate(seats) for wait in seat.submit_all(mixed(f"{n}", 20))]
    time.sleep(1.5 * LEASE_SECONDS)
    assert not any(wait.outcomes for wait in waits)
    for seat in seats:
        seat.view.is_away = False
    done(waits)
    assert table.posted() == 60
    for number in range(3):
        keys = [key for key in table.keys if key.startswith(f"{number}.")]
        assert keys == sorted(keys, key=lambda key: int(key.partition(".")[2]))


def test_a_refusal_of_an_owner_that_froze(table: Table) -> None:
    """It appends nothing, so that no guard of the store stops it: it asks for its lease first."""
    first, second = table.sit_all(2)
    assert isinstance(first.execute(SPEND), Refusal)
    first.freeze()
    late = first.submit(SPEND)
    until(lambda: second.is_owner)
    done([second.submit(FUND)])
    first.thaw()
    done([late])
    assert table.posted() == 0


@pytest.mark.parametrize("how", ["committed", "cut"])
def test_an_owner_that_was_lost_at_its_commit(table: Table, how: str) -> None:
    """Callers get one receipt each, from whoever answers first, and each thing is done once."""
    first, second = table.sit_all(2)
    first.view.breaks = [how]
    theirs = second.submit_all(mixed("a", 6))
    until(lambda: not first.view.breaks)
    first.freeze()
    until(lambda: second.is_owner)
    for wait in theirs:
        assert isinstance(wait.outcome(), Receipt)
    ours = first.submit_all(mixed("b", 6))
    first.thaw()
    done(ours)
    assert table.posted() == 12


def test_the_owner_comes_and_goes_and_comes(table: Table) -> None:
    first, second = table.sit_all(2)
    for number in range(3):
        owner, other = (first, second) if first.is_owner else (second, first)
        owner.freeze()
        waits = [*owner.submit_all(mixed(f"{number}a", 6))]
        until(lambda other=other: other.is_owner)
        owner.thaw()
        waits += other.submit_all(mixed(f"{number}b", 6))
        receipts(waits)
        until(lambda owner=owner: not owner.is_owner)
    assert table.posted() == 36
    assert table.store.head().epoch == 4
    assert first.member.takeovers == second.member.takeovers == 2


# ── nobody has it ─────────────────────────────────────────────────────────────────


def test_without_an_owner_commands_wait_for_a_while(table: Table) -> None:
    table.store.claim("somebody who is gone", "127.0.0.1:9", 2_000_000)
    seat = table.sit(hold_seconds=0.5)
    until(lambda: "cannot be reached" in seat.member.front.down)
    outcome = seat.execute(FUND, "a")
    assert isinstance(outcome, Unknown)
    assert outcome.code == "no_owner"
    assert seat.why_not() == "no_owner"
    until(lambda: seat.is_owner)
    assert isinstance(seat.execute(OpenAccount("user:1:USD")), Receipt)
    done([seat.submit(FUND, "a")])


def test_what_was_sent_to_an_owner_that_is_gone(table: Table) -> None:
    """It may have been done: that is said, and asking again under the key tells."""
    first, second = table.sit_all(2, hold_seconds=1)
    first.view.breaks = ["committed"]
    first.freeze()
    wait = second.submit(FUND, "a")
    second.view.is_away = True
    outcome = wait.outcome()
    assert isinstance(outcome, Unknown)
    assert outcome.code == UNKNOWN
    second.view.is_away = False
    first.thaw()
    until(lambda: isinstance(second.execute(FUND, "a"), Receipt))
    assert table.posted() == 1


# ── who must not have it ──────────────────────────────────────────────────────────


def test_who_cannot_open_the_book_lets_others_have_it(table: Table) -> None:
    first = table.sit(is_able=False)
    time.sleep(0.2)
    second = table.sit()
    until(lambda: second.is_owner)
    until(lambda: first.why_not() == "")
    assert isinstance(first.execute(OpenAccount("user:1:USD")), Receipt)
    assert first.member.takeovers == 0
    first.is_able = True
    second.stop()
    until(lambda: first.is_owner)
    done([first.submit(FUND)])


def test_whose_clock_is_off_does_not_get_it(table: Table) -> None:
    first = table.sit(lease_seconds=1)
    first.view.ahead_seconds = 2
    second = table.sit(lease_seconds=1)
    until(lambda: second.is_owner)
    assert not first.is_owner
    until(lambda: first.why_not() == "")
    assert isinstance(first.execute(OpenAccount("user:1:USD")), Receipt)
    first.view.ahead_seconds = 0
    second.stop()
    until(lambda: first.is_owner)
    done([first.submit(FUND)])


@pytest.mark.parametrize("ahead_seconds", [2, -2])
def test_an_owner_whose_clock_goes_off_lets_go(table: Table, ahead_seconds: float) -> None:
    first, second = table.sit_all(2, lease_seconds=1)
    first.view.ahead_seconds = ahead_seconds
    waits = [seat.submit(FUND, f"{n}") for n, seat in enumerate([first, second])]
    until(lambda: second.is_owner)
    done(waits)
    assert not first.is_owner
    done([first.submit(FUND)])
    assert table.store.head().epoch == 2


def test_who_cannot_listen_says_so(table: Table) -> None:
    first = table.sit()
    until(lambda: first.is_owner)
    second = table.sit(listen=first.member.address)
    until(lambda: second.troubles)
    assert "cannot listen" in second.troubles[0]
    assert not second.is_owner


# ── what runs where the book is owned ─────────────────────────────────────────────


def test_agents_run_where_the_book_is_owned(table: Table) -> None:
    """One ends before the next begins, however the book changes hands in good order."""
    notes: list[str] = []
    first = table.sit("first", notes=notes)
    until(lambda: first.is_owner)
    second = table.sit("second", notes=notes)
    until(lambda: second.why_not() == "")
    assert notes == ["first begins"]
    first.stop()
    until(lambda: second.is_owner)
    until(lambda: len(notes) == 3)
    second.stop()
    assert notes == ["first begins", "first ends", "second begins", "second ends"]


def test_agents_end_when_the_book_is_lost(table: Table) -> None:
    notes: list[str] = []
    first = table.sit("first", notes=notes)
    until(lambda: first.is_owner)
    second = table.sit("second", notes=notes)
    first.freeze()
    until(lambda: second.is_owner)
    first.thaw()
    until(lambda: "first ends" in notes)
    assert sorted(notes) == ["first begins", "first ends", "second begins"]


def test_what_agents_asked_is_not_passed_on(table: Table) -> None:
    """The next owner's own agents ask for it: what came from a stream, and what was due."""
    first, second = table.sit_all(2)
    first.freeze()
    streamed = Submission(FUND, cursor=CursorMove("stream", 0, 1), lane=Lane.INBOUND)
    timed = Submission(FUND, key="timer", lane=Lane.TIMERS)
    waits = first.submit_all([streamed, timed])
    until(lambda: second.is_owner)
    first.thaw()
    for wait in waits:
        outcome = wait.outcome()
        assert isinstance(outcome, Unknown)
        assert outcome.code == "no_owner"
    assert table.posted() == 0


# ── the end ───────────────────────────────────────────────────────────────────────


def test_a_stopping_member_takes_nothing_more(table: Table) -> None:
    seat = table.sit()
    until(lambda: seat.is_owner)
    seat.member.stop(20)
    assert seat.why_not() == "stopping"
    with pytest.raises(Unavailable):
        seat.submit(FUND)
    lease = table.store.lease()
    assert lease is not None
    assert lease.expires_at == 0
    seat.loop.close()


def test_a_member_that_stops_before_it_began(table: Table) -> None:
    seat = table.sit()
    with within(5):
        seat.member.stop(20)
    assert seat.why_not() == "stopping"
    seat.loop.close()


def test_stop_with_everything_under_way(table: Table) -> None:
    """All that was asked is answered: by the one that stops, or by the next."""
    first, second = table.sit_all(2, lease_seconds=30)
    waits = []
    for number in range(10):
        waits += first.submit_all(mixed(f"{number}a", 30))
        waits += second.submit_all(mixed(f"{number}b", 30))
    first.member.stop(20)
    receipts(waits)
    first.loop.close()
    assert table.posted() == 600


def test_stop_of_the_last_with_the_store_away(table: Table) -> None:
    (only,) = table.sit_all(1, hold_seconds=1)
    only.view.is_away = True
    wait = only.submit(FUND, "a")
    with within(15):
        only.member.stop(20)
    outcome = wait.outcome()
    assert isinstance(outcome, Unknown)
    assert outcome.code == "store_unavailable"
    only.loop.close()


# ── all of it ─────────────────────────────────────────────────────────────────────


def test_any_trouble_in_any_order(table: Table) -> None:
    """Everything asked is done once, though members freeze, lose their store, and leave."""
    dice = random.Random(5)
    seats = table.sit_all(3)
    waits: list[Waiting] = []
    for number in range(25):
        seat = dice.choice(seats)
        blow = dice.choice(["freeze", "away", "cut", "committed", "leave", "nothing"])
        if blow == "freeze":
            seat.freeze()
        elif blow == "away":
            seat.view.is_away = True
        elif blow == "leave":
            seats.remove(seat)
            threading.Thread(target=seat.stop).start()
            seats.append(table.sit())
        elif blow != "nothing":
            seat.view.breaks.append(blow)
        for each in seats:
            waits += each.submit_all(mixed(f"{number}.{id(each)}", 4))
        time.sleep(dice.choice([0, 0.02, 0.1, 1.2 * LEASE_SECONDS]))
        for each in seats:
            each.thaw()
            each.view.is_away = False
    receipts(waits)
    assert table.posted() == len(waits)

"""The bound on users, proven from outside: a census of the whole process, at any moment.

A random run of everything that touches users goes through a book with far more users than
may be in memory. At random moments inside the engine's and the store's steps, and between
them, the census counts whose data are anywhere in the process; callers keep all that they
were handed. What the cache says of itself is not asked.
"""

import gc
import random
import threading
from collections import Counter, deque

import msgspec
import pytest

from census import Census
from model.places import PLACES
from pennyweight.engine.engine import HOLDERS_MAX, USERS_MIN, Lane, Submission
from pennyweight.engine.overlay import Overlay
from pennyweight.engine.policy import Replacement
from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.receipts import Failure, Receipt, Refusal, Unknown
from pennyweight.engine.verification import verify
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.entries import CursorMove, Sealed, encode_entry
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.letters import Message
from pennyweight.ledger.lines import Line
from pennyweight.ledger.records import Record
from pennyweight.products.general import (
    ExpireHold,
    LoadBalances,
    Reverse,
    Transfer,
    TransferItem,
    Transfers,
)
from pennyweight.products.payments import OpenPaymentsAccount, Pay
from pennyweight.products.wallet import Bet, Rollback, Win
from pennyweight.products.withdrawals.settle import SetAside, Settle
from pennyweight.products.withdrawals.withdraw import CancelWithdrawal, Withdraw
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores import room
from pennyweight.stores.encoding import record_to_blob
from pennyweight.stores.sqlite import codec
from pennyweight.stores.sqlite.codec import new_account_row
from probes import probe
from scenarios import START, check_invariants

USERS = 900
WEIGHTS = {
    "withdraw": 30.0, "settle": 30.0, "cancel": 8.0, "bet": 5.0, "win": 5.0, "pay": 5.0,
    "transfer": 5.0, "list": 2.0, "reverse": 2.0, "expire": 1.0, "broken": 1.0, "all": 0.3,
}  # fmt: skip
"""What is asked, and how often."""

MESSAGE = Message("settlements", 0, 0, "e30=")


class Run:
    """A book with many users, what is asked of it at random, and the census in the middle."""

    def __init__(self, place: str, users_max: int, seed: int, *, is_threaded: bool) -> None:
        self.dice = random.Random(seed)
        self.users_max = users_max
        self.opened = PLACES[place]()
        self.store = self.opened.open()
        self.now = START
        engine = open_engine(self.store, now=self.now, users_max=users_max)
        self.engine = engine
        self.is_threaded = is_threaded
        self.inline = InlineBook(engine, self.store, self.clock)
        self.census = Census(self.store)
        self.share = 0.0
        self.counted: Counter[str] = Counter()
        self.outcomes: list[object] = []
        self.kept: list[Submission] = []
        self.lists: list[Submission] = []
        self.withdrawals: list[tuple[str, str]] = []
        self.bets: list[Bet] = []
        self.keys = 0
        self.offset = 0
        self.fill()

    def clock(self) -> int:
        self.now += 1_000
        return self.now

    def fill(self) -> None:
        """Give everybody accounts of all products, with money."""
        money = (("USD", "1000"), ("BTC", "1000"))
        commands = [LoadBalances(f"{n}", money) for n in range(USERS)]
        commands += [OpenPaymentsAccount(f"a{n}", "100", 1, f"p{n}") for n in range(100)]
        for first in range(0, len(commands), 500):
            some = [Submission(command) for command in commands[first : first + 500]]
            assert {type(o) for o in self.inline.execute_many(some)} == {Receipt}
        self.engine.cache.clear()

    # ── what is asked ─────────────────────────────────────────────────────────────

    def user(self) -> str:
        dice = self.dice
        return str(dice.randrange(60) if dice.random() < 0.5 else dice.randrange(USERS))

    def submission(self) -> Submission:
        dice = self.dice
        if self.kept and dice.random() < 0.1:  # sent twice
            earlier = dice.choice(self.lists if self.lists and dice.random() < 0.2 else self.kept)
            return Submission(earlier.command, key=earlier.key, lane=earlier.lane)
        self.keys += 1
        key = f"k{self.keys}"
        pick = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        if pick == "settle":
            return self.settlement(key)
        lane = Lane.TIMERS if pick == "expire" else Lane.INTERACTIVE
        submission = Submission(getattr(self, pick)(), key=key, lane=lane)
        self.kept.append(submission)
        if pick == "list":
            self.lists.append(submission)
        return submission

    def withdraw(self):
        user, name = self.user(), f"id{self.keys}" if self.dice.random() < 0.7 else ""
        self.withdrawals.append((user, name))
        quantity = self.dice.choice(["1", "5", "300", "5000"])
        return Withdraw(user, "USD", quantity, name)

    def settlement(self, key: str) -> Submission:
        dice = self.dice
        user, name = dice.choice(self.withdrawals) if self.withdrawals else ("1", "")
        if dice.random() < 0.3:
            user = self.user()
        token = dice.choice(["BTC", "BTC", "EUR", "XXX", "USD"])
        command = Settle(user, token, "0.5", "USD", dice.choice(["1", "5", "0", "2000"]), name)
        offset, self.offset = self.offset, self.offset + 1
        if dice.random() < 0.1 and self.kept:
            key = dice.choice(self.kept).key
        submission = Submission(
            command,
            key=key,
            lane=Lane.INBOUND,
            cursor=CursorMove("in/0", offset, offset + 1),
            aside=lambda refused: SetAside(MESSAGE, refused.reason.code, refused.message),
        )
        self.kept.append(submission)
        return submission

    def cancel(self):
        _, name = self.dice.choice(self.withdrawals) if self.withdrawals else ("", "x")
        return CancelWithdrawal(name or f"w{self.dice.randint(1, 50)}")

    def bet(self):
        bet = Bet(self.user(), 100_000, "USD", "g", f"r{self.keys % 50}", f"b{self.keys}")
        self.bets.append(bet)
        return bet

    def win(self):
        if not self.bets:
            return self.bet()
        bet = self.dice.choice(self.bets)
        if self.dice.random() < 0.3:
            return Rollback(bet.user, "g", bet.round, bet.transaction)
        return Win(bet.user, 200_000, "USD", "g", bet.round, bet.transaction, f"w{self.keys}")

    def pay(self):
        return Pay(self.dice.randint(1, 100), self.dice.randint(1, 110), "1")

    def transfer(self):
        return Transfer(f"user:{self.user()}:USD", f"user:{self.user()}:BTC", "USD", "1")

    def list(self):
        users = self.dice.sample(range(USERS), HOLDERS_MAX)
        pairs = zip(users[::2], users[1::2], strict=True)
        items = (TransferItem(f"user:{a}:USD", f"user:{b}:USD", "USD", "1") for a, b in pairs)
        return Transfers(tuple(items))

    def reverse(self):
        return Reverse(self.engine.head.sequence - self.dice.randrange(200))

    def expire(self):
        return ExpireHold(self.dice.randint(1, 50))

    def broken(self):
        user = f"user:{self.user()}"

        def rule(draft: Draft) -> None:
            accounts = draft.facts.accounts_of(user)
            raise ZeroDivisionError(f"a bug of ours, with {len(accounts)} accounts at hand")

        return probe(rule, user)

    def all(self):
        """A rule that asks for one user after the other without having said so."""
        users = [f"user:{self.user()}" for _ in range(3)]
        return probe(lambda draft: [len(draft.facts.accounts_of(user)) for user in users])

    # ── running ───────────────────────────────────────────────────────────────────

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the census where anything could be in memory; `share` says how often it is taken."""
        for where, name in (
            (self.store, "begin"),
            (self.store, "append"),
            (self.engine, "next_batch"),
            (self.engine, "decide"),
            (self.engine, "committed"),
            (self.engine.cache, "dismiss"),
            (codec, "account_of"),
            (codec, "hold_of"),
            (codec, "changed_account_row"),
            (room.Room, "take_holders"),
            (room.Room, "take_body"),
            (Replacement, "admit"),
            (Overlay, "merge"),
            (Overlay, "entry_of_key"),
            (Draft, "__init__"),
            (Draft, "seal"),
        ):
            self.wrap(monkeypatch, where, name)

    def wrap(self, monkeypatch: pytest.MonkeyPatch, where: object, name: str) -> None:
        inner = getattr(where, name)
        weight = {"account_of": 0.03, "take_holders": 0.3, "__init__": 0.1, "seal": 0.1}
        chance = weight.get(name, 0.2 if name in {"merge", "admit", "hold_of"} else 1.0)

        def outer(*arguments, **options):
            self.look(f"before {name}", chance)
            result = inner(*arguments, **options)
            self.look(f"after {name}", chance)
            return result

        monkeypatch.setattr(where, name, outer)

    def look(self, where: str, chance: float = 1.0) -> None:
        if self.dice.random() < self.share * chance:
            self.counted[where] += 1
            number = self.census.count()
            if number > self.users_max:
                known = len(self.engine.cache)
                kinds = Counter(
                    "+".join(sorted(kinds))
                    for holder, kinds in self.census.seen.items()
                    if holder not in self.engine.cache
                )
                raise AssertionError(
                    f"{number} users in memory {where}; the cache has {known}, others are {kinds}"
                )

    def play(self, rounds: int, *, share: float) -> None:
        """Ask in big and small lots, and wait for the answers, all of which are kept."""
        self.share = share
        if self.is_threaded:
            self.play_threaded(rounds)
        else:
            self.play_inline(rounds)
        self.share = 0.0

    def play_inline(self, rounds: int) -> None:
        for _ in range(rounds):
            self.offset = self.engine.standing.cursors.get("in/0", 0)
            lot = [self.submission() for _ in range(self.dice.choice([1, 5, 40, 120]))]
            self.outcomes += self.inline.execute_many(lot)
            self.look("between batches")

    def play_threaded(self, rounds: int) -> None:
        broken: list[int] = []
        book = ThreadedBook(self.engine, self.store, ClockGuard(), die=broken.append)
        book.start()
        for _ in range(rounds):
            self.offset = self.engine.standing.cursors.get("in/0", 0)
            lot = [self.submission() for _ in range(self.dice.choice([1, 5, 40, 120]))]
            todo = threading.Semaphore(0)
            for submission in lot:
                submission.ticket = lambda outcome, todo=todo: (
                    self.outcomes.append(outcome),
                    todo.release(),
                )
                book.submit(submission)
            for _ in lot:
                assert todo.acquire(timeout=60)
            assert not broken, book.failure
            self.look("between batches")
        book.stop()

    def check(self) -> None:
        """See that the run was one."""
        kinds = Counter(type(outcome) for outcome in self.outcomes)
        assert kinds[Receipt] > 0.4 * len(self.outcomes)
        assert kinds[Refusal] > 0
        assert kinds[Unknown] == 0
        for outcome in self.outcomes:
            if isinstance(outcome, Failure):
                assert isinstance(outcome.cause, ZeroDivisionError), outcome
        assert self.users_max * 0.8 < self.census.most <= self.users_max
        check_invariants(self.store)
        report = verify(self.store, answers=answers_of(known_commands()))
        assert report.ok, report.problems


@pytest.fixture
def frozen():
    """What was there before, of other tests too, is left out of the census."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


WAYS = [
    ("sqlite", 300, True),
    ("sqlite", USERS_MIN, False),
    ("memory", 300, False),
    ("memory", USERS_MIN, True),
]


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(("place", "users_max", "is_threaded"), WAYS)
def test_users_in_memory_never_more(place, users_max, is_threaded, monkeypatch):
    run = Run(place, users_max, 1, is_threaded=is_threaded)
    run.watch(monkeypatch)
    run.play(20, share=0.012)
    assert run.census.taken > 40
    run.check()
    run.opened.remove()


@pytest.mark.heavy
@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(("place", "users_max", "is_threaded"), WAYS)
def test_users_in_memory_never_more_for_long(place, users_max, is_threaded, monkeypatch):
    run = Run(place, users_max, 2, is_threaded=is_threaded)
    run.watch(monkeypatch)
    run.play(60, share=0.01)
    assert len(run.counted) > 15, run.counted
    run.check()
    run.opened.remove()


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("users_max", [USERS_MIN, 300])
def test_users_in_memory_of_entries_with_many(users_max, monkeypatch):
    """Beside a full cache: lists of 128 users that are made, replayed, reversed and contradicted."""
    run = Run("sqlite", users_max, 1, is_threaded=False)

    def moved(first):
        pairs = [(f"user:{n}:USD", f"user:{n + 64}:USD") for n in range(first, first + 64)]
        return Transfers(tuple(TransferItem(one, other, "USD", "1") for one, other in pairs))

    asked = [
        (moved(0), "list", Receipt),
        (moved(0), "list", Receipt),
        (moved(150), "list", Refusal),
        (Transfer("user:5:USD", "user:6:USD", "USD", "1"), "list", Refusal),
        (Reverse(run.engine.head.sequence + 1), "reversal", Receipt),
        (Reverse(run.engine.head.sequence + 1), "again", Refusal),
    ]
    run.watch(monkeypatch)
    for command, key, kind in asked:
        run.share = 0.0
        full = [Transfer("world:USD", f"user:{n}:USD", "USD", "1") for n in range(400, 800)]
        run.inline.execute_many([Submission(one) for one in full])
        assert len(run.engine.cache) == users_max - run.engine.cache.guests_max
        run.share = 0.1
        assert isinstance(run.inline.execute(command, key=key), kind)
    assert run.census.most <= users_max
    run.opened.remove()


# ── the census itself ─────────────────────────────────────────────────────────────


class Box:
    """Something tracked that is not known to the census."""

    def __init__(self, thing):
        self.thing = thing


class Plain(msgspec.Struct, gc=False):
    """Something that is not tracked."""

    thing: object


def account_of(n):
    return Account(n, f"user:x{n}:USD", f"user:x{n}", "USD", 0)


def failed_with(account):
    """Return an error whose traceback has the account in a variable."""
    try:
        return account.nothing
    except AttributeError as error:
        error.obj = None
        return error


HIDES = {
    "object": Box,
    "untracked struct": Plain,
    "struct in a tuple in a dict": lambda account: {"a": ("b", Plain(account))},
    "list": lambda account: [account],
    "deque": lambda account: deque([account]),
    "closure": lambda account: lambda: account,
    "generator": lambda account: (one for one in [account]),
    "row": lambda account: new_account_row(account)[:5] + new_account_row(account)[6:],
    "hold": lambda account: [Hold(1, account.id, "USD", 1, 1, "o")],
    "record": lambda account: Plain(
        Record("k", "i", "p", 1, msgspec.Raw(b"1"), (), (), (), account.holder)
    ),
    "bytes of a record": lambda account: record_to_blob(
        Record("k", "i", "p", 1, msgspec.Raw(b"1"), (), (), (), account.holder)
    ),
    "bytes of an entry": lambda account: {
        "b": encode_entry(Sealed(1, "c", "p", None, 1, [], [Line(account.id, 1, 0, 1, 0, 0, 0)]))
    },
    "local": lambda account: account,
    "failure": failed_with,
}


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("hide", HIDES)
def test_census_finds_whoever_is_hidden(hide):
    census = Census()
    assert census.count() == 0
    hidden = [HIDES[hide](account_of(n)) for n in range(3)]
    if hide == "local":
        one, two, three = hidden
        hidden.clear()
        hidden = None
        assert census.count() == 3
        assert (one, two, three) is not None
        return
    assert census.count() == 3
    hidden.clear()
    assert census.count() == 0


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("place", ["sqlite", "memory"])
def test_census_sees_one_too_many(place):
    run = Run(place, 300, 1, is_threaded=False)
    some = [Transfer("world:USD", f"user:{n}:USD", "USD", "1") for n in range(400)]
    run.inline.execute_many([Submission(one) for one in some])
    here = len(run.engine.cache)
    assert run.census.count() == here == 250
    planted = run.store.account("user:899:USD")
    assert run.census.count() == here + 1
    assert planted is not None
    assert run.census.seen["user:899"] == {"Account"}
    run.share = 1.0
    run.users_max = here
    with pytest.raises(AssertionError, match="251 users in memory"):
        run.look("here")
    run.opened.remove()

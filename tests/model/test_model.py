"""Every store against the dumbest model: the same commands, the same refusals, the same rows.

Hypothesis writes the histories: batches of commands with and without keys, time passing,
replays, keys used again, the book closed and opened. After each batch the store's rows are
those of the model, the statement of an account is its history, and the journal proves it.
"""

import random

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from model.places import PLACES
from model.reference import ASSETS, Book
from pennyweight.engine.engine import Submission
from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.engine.statements import balance_as_of, statement
from pennyweight.engine.verification import check_tail, verify
from pennyweight.ledger.entries import decode_entry
from pennyweight.products.general import (
    CloseAccount,
    ExpireHold,
    OpenAccount,
    PlaceHold,
    Reverse,
    SettleHold,
    Transfer,
    TransferItem,
    Transfers,
    VoidHold,
)
from random_books import Fact, random_book
from scenarios import Stage, snapshot

ANSWERS = answers_of(known_commands())
USERS = range(1, 5)
OPENED = 9
"""Entries of a fresh book: the assets."""

names = st.sampled_from([f"user:{n}" for n in USERS])
others = st.sampled_from(["world", "house", "world", "user:99", "owed:user:1"])
assets = st.sampled_from([*ASSETS, "USD", "USD"])
amounts = st.sampled_from(
    ["1", "5", "7.5", "20", "1", "5", "0.000000000000000001", "60", "100", "0", "-1", "x"]
)
numbers = st.integers(min_value=0, max_value=60)
rarely = st.integers(min_value=0, max_value=15).map(lambda n: n == 0)
accounts = st.tuples(names, assets).map(":".join)


@st.composite
def pairs(draw):
    """Two accounts and an asset, which mostly fit together."""
    asset = draw(assets)
    debit = draw(others if draw(rarely) else names)
    credit = draw(others if draw(rarely) else names)
    wrong = draw(assets) if draw(rarely) else asset
    return f"{debit}:{asset}", f"{credit}:{wrong}", draw(assets) if draw(rarely) else asset


def moves(kind):
    return st.builds(lambda pair, amount: kind(*pair, amount), pairs(), amounts)


def funding():
    def build(account, amount):
        asset = account.rpartition(":")[2]
        return Transfer(f"world:{asset}", account, asset, amount)

    return st.builds(build, accounts, amounts)


def holds():
    return st.builds(
        lambda pair, amount, seconds: PlaceHold(pair[0], pair[2], amount, seconds),
        pairs(),
        amounts,
        st.sampled_from([None, 5, 60]),
    )


settlements = st.builds(
    lambda hold, amount, pair, is_rest_kept: SettleHold(hold, amount, pair[1], is_rest_kept),
    numbers,
    amounts,
    pairs(),
    st.booleans(),
)
commands = st.one_of(
    moves(Transfer),
    moves(Transfer),
    funding(),
    st.lists(moves(TransferItem), min_size=1, max_size=4).map(tuple).map(Transfers),
    st.builds(OpenAccount, accounts, st.sampled_from([None, None, "0", "-10", "1"])),
    st.builds(CloseAccount, accounts),
    holds(),
    holds(),
    settlements,
    settlements,
    st.builds(VoidHold, numbers),
    st.builds(ExpireHold, numbers),
    st.builds(Reverse, numbers),
    st.builds(Fact, st.sampled_from(USERS), st.sampled_from([1, 5 * 10**18, 30 * 10**18])),
)


class BookMachine(RuleBasedStateMachine):
    """One history of one book, with the model beside it."""

    place_type = PLACES["memory"]
    verify_every = 1

    def __init__(self):
        super().__init__()
        self.place = self.place_type()
        self.stage = Stage(self.place.open())
        self.model = Book()
        self.model.sequence = OPENED
        self.model.entries = {n: (True, "register_asset", []) for n in range(1, OPENED + 1)}
        self.bound = {}
        self.batches = 0
        setup = [OpenAccount(f"user:{n}:{asset}") for n in (1, 2, 3) for asset in ASSETS]
        setup += [Transfer("world:USD", f"user:{n}:USD", "USD", "50") for n in (1, 2)]
        self.execute([(command, "") for command in setup])

    def teardown(self):
        self.prove()
        self.place.remove()

    def execute(self, keyed):
        """Run a batch on both, and compare every outcome."""
        engine = self.stage.book.engine
        deferrals = engine.deferrals
        outcomes = self.stage.execute_many([Submission(c, key=key) for c, key in keyed])
        assert engine.deferrals == deferrals
        self.batches += 1
        for (command, key), outcome in zip(keyed, outcomes, strict=True):
            if key in self.bound:
                self.compare_bound(command, key, outcome)
                continue
            code = self.model.run(command, self.stage.now)
            if code is not None:
                assert isinstance(outcome, Refusal), (command, code, outcome)
                assert outcome.reason.code == code, (command, outcome)
                continue
            assert isinstance(outcome, Receipt), (command, outcome)
            assert not outcome.is_replayed
            assert outcome.sequence == self.model.sequence
            if key:
                self.bound[key] = (command, outcome)

    def compare_bound(self, command, key, outcome):
        first_command, first = self.bound[key]
        if command == first_command:
            assert outcome == msgspec.structs.replace(first, is_replayed=True)
        else:
            assert outcome.reason.code == "key_reused", outcome
            assert outcome.figures["sequence"] == first.sequence

    def near(self, command):
        """Aim hold ids and sequences mostly at what is open, sometimes beyond all that is there."""
        if isinstance(command, SettleHold | VoidHold | ExpireHold):
            holds = [n for n, hold in self.model.holds.items() if hold["state"] == "open"]
            choice = [*holds, *holds, *self.model.holds, self.model.last_hold + 1]
            return msgspec.structs.replace(command, hold=choice[command.hold % len(choice)])
        if isinstance(command, Reverse):
            last = self.model.sequence
            moved = [n for n in range(max(1, last - 9), last + 1) if self.model.entries[n][2]]
            choice = [*moved, *moved, last + 1, last, max(1, last - 5)]
            return msgspec.structs.replace(command, sequence=choice[command.sequence % len(choice)])
        return command

    @rule(batch=st.lists(st.tuples(commands, st.booleans()), min_size=1, max_size=5))
    def run_batch(self, batch):
        self.execute(
            [
                (self.near(command), f"key {self.batches} {n}" if is_keyed else "")
                for n, (command, is_keyed) in enumerate(batch)
            ]
        )

    @rule(command=commands)
    def run_one(self, command):
        self.execute([(self.near(command), "")])

    @rule(seconds=st.sampled_from([1, 5, 30, 60]))
    def pass_time(self, seconds):
        self.stage.wait(seconds)

    @precondition(lambda self: self.bound)
    @rule(data=st.data())
    def replay(self, data):
        keys = st.lists(st.sampled_from(sorted(self.bound)), min_size=1, max_size=3)
        before = snapshot(self.stage.store)
        self.execute([(self.bound[key][0], key) for key in data.draw(keys)])
        assert snapshot(self.stage.store) == before

    @precondition(lambda self: self.bound)
    @rule(data=st.data(), command=commands)
    def use_a_key_again(self, data, command):
        key = data.draw(st.sampled_from(sorted(self.bound)))
        if type(command).product != type(self.bound[key][0]).product:
            return  # another scope: the key is free there
        self.execute([(self.near(command), key)])

    @rule()
    def restart(self):
        before = snapshot(self.stage.store)
        stage = Stage(self.place.open())
        stage.now, stage.answers = self.stage.now, self.stage.answers
        self.stage = stage
        assert snapshot(stage.store) == before
        assert check_tail(stage.store) is None

    @rule()
    def drop_the_cache(self):
        self.stage.book.engine.cache.clear()

    @invariant()
    def rows_are_the_models(self):
        rows = {}
        for kind, row in self.stage.store.rows():
            if kind == "account":
                rows[row.id] = (row.posted, row.held, row.owed, row.floor, row.is_closed, row.lines)
        assert rows == {
            name: (a["posted"], a["held"], a["owed"], a["floor"], a["closed"], len(a["history"]))
            for name, a in self.model.accounts.items()
        }
        for hold_id, held in self.model.holds.items():
            hold = self.stage.store.hold(hold_id)
            assert (hold.account, hold.remaining, hold.state.value, hold.expires_at) == (
                held["account"], held["remaining"], held["state"], held["expires_at"],
            )  # fmt: skip
        assert self.stage.store.head().sequence == self.model.sequence
        assert self.stage.store.head() == self.stage.book.engine.head

    @invariant()
    def cached_accounts_are_the_stores(self):
        for name, account in self.stage.book.engine.cache.accounts.items():
            assert self.stage.store.account(name) == account

    @invariant()
    def journal_proves_the_rows(self):
        if self.batches % self.verify_every == 0:
            self.prove()

    def prove(self):
        report = verify(self.stage.store, answers=ANSWERS)
        assert report.ok, report.problems

    @rule(name=st.one_of(accounts, st.sampled_from(["world:USD", "house:USD"])))
    def read_a_statement(self, name):
        account = self.stage.store.account(name)
        if account is None:
            return
        lines, cursor = [], None
        while True:
            page, cursor = statement(self.stage.store, account, after=cursor, limit=7)
            lines += page
            if cursor is None:
                break
        history = self.model.accounts[name]["history"]
        assert [(line.posted, line.held) for line in lines] == history
        assert [line.ordinal for line in lines] == list(range(1, len(history) + 1))
        newest, _ = statement(self.stage.store, account, limit=1_000, is_descending=True)
        assert newest == lines[::-1]
        for line in lines[:: max(1, len(lines) // 3)]:
            last = [x for x in lines if x.committed_at <= line.committed_at][-1]
            balance = balance_as_of(self.stage.store, account, committed=line.committed_at)
            assert (balance.posted, balance.held) == (last.posted, last.held)


def machine_type(place):
    """Return the machine of a place."""
    kind = type(f"{place.title()}Book", (BookMachine,), {"place_type": PLACES[place]})
    kind.verify_every = 1 if place == "memory" else 4
    return kind


def machine(place, **options):
    """Return the test case of a place with these settings of Hypothesis."""
    kind = machine_type(place)
    kind.TestCase.settings = settings(
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        **options,
    )
    return kind.TestCase


TestMemoryBook = machine("memory", max_examples=40, stateful_step_count=30, derandomize=True)
TestSqliteBook = machine("sqlite", max_examples=12, stateful_step_count=25, derandomize=True)

TestPostgresBook = machine("postgres", max_examples=8, stateful_step_count=25, derandomize=True)

TestMemoryBookLong = pytest.mark.heavy(
    machine("memory", max_examples=150, stateful_step_count=60, derandomize=False)
)
TestSqliteBookLong = pytest.mark.heavy(
    machine("sqlite", max_examples=40, stateful_step_count=50, derandomize=False)
)
TestPostgresBookLong = pytest.mark.heavy(
    machine("postgres", max_examples=12, stateful_step_count=50, derandomize=False)
)


def random_command(dice):
    """A command that mostly makes sense; denser histories than Hypothesis' shrinkable ones."""
    asset = dice.choice(["USD", "USD", "BTC"])

    def name(kinds=("user:1", "user:2", "user:3", "user:4", "user:1", "user:2", "house")):
        return f"{dice.choice(kinds)}:{asset}"

    amount = dice.choice(["1", "2", "3.5", "7", "10", "20", "0.000000000000000001"])
    number = dice.randrange(1_000)
    match dice.randrange(16):
        case 0 | 1 | 2:
            return Transfer(name(), name(), asset, amount)
        case 3 | 4:
            return Transfer(f"world:{asset}", name(), asset, amount)
        case 5:
            count = dice.randint(1, 4)
            return Transfers(
                tuple(TransferItem(name(), name(), asset, amount) for _ in range(count))
            )
        case 6 | 7 | 8:
            return PlaceHold(name(), asset, amount, dice.choice([None, 5, 60]))
        case 9 | 10:
            return SettleHold(number, amount, name(), dice.random() < 0.5)
        case 11:
            return VoidHold(number)
        case 12:
            return ExpireHold(number)
        case 13:
            return Reverse(number)
        case 14:
            return Fact(dice.choice(USERS), dice.randint(1, 40) * 10**18)
        case _:
            if dice.random() < 0.5:
                return CloseAccount(name(("user:4",)))
            return OpenAccount(name(("user:4", "user:5")), dice.choice([None, "-10"]))


def walk(place, seed, batches):
    """Run a random history on a place, with all checks every few batches."""
    dice = random.Random(seed)
    history = machine_type(place)()
    for number in range(batches):
        count = dice.choice([1, 1, 2, 5, 20])
        keys = [f"key {number} {n}" if dice.random() < 0.3 else "" for n in range(count)]
        history.execute([(history.near(random_command(dice)), key) for key in keys])
        if history.bound and dice.random() < 0.2:
            key = dice.choice(sorted(history.bound))
            history.execute([(history.bound[key][0], key)])
        if dice.random() < 0.2:
            history.pass_time(dice.choice([1, 5, 30, 60]))
        if dice.random() < 0.05:
            history.restart()
        if dice.random() < 0.05:
            history.drop_the_cache()
        if number % 10 == 0:
            history.rows_are_the_models()
            history.cached_accounts_are_the_stores()
            history.read_a_statement(f"user:{dice.choice(USERS)}:USD")
    history.rows_are_the_models()
    history.teardown()
    return history


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_walk(place, seed):
    history = walk(place, seed, 120 if place == "memory" else 60)
    assert history.model.sequence > 150
    assert {hold["state"] for hold in history.model.holds.values()} == {
        "open", "settled", "voided", "expired",
    }  # fmt: skip
    assert history.model.reversed


@pytest.mark.heavy
@pytest.mark.parametrize("place", PLACES)
def test_random_walk_long(place):
    walk(place, 100, 250)


@pytest.mark.parametrize("seed", range(3))
def test_stores_agree_on_everything(seed):
    """The same history on every store: equal entries, chain, rows and state digest."""
    places = [kind() for kind in PLACES.values()]
    try:
        stores = [random_book(seed, store=place.open(), batches=40).store for place in places]
        reports = [verify(store, answers=ANSWERS) for store in stores]
        assert all(report.ok for report in reports), reports
        assert len({report.state_digest for report in reports}) == 1
        assert len({report.chain_head for report in reports}) == 1
        snapshots = [snapshot(store) for store in stores]
        assert all(rows == snapshots[0] for rows in snapshots)
        bodies = [store.entries(0, 10_000) for store in stores]
        assert all(rows == bodies[0] for rows in bodies)
        assert decode_entry(bodies[0][-1][1]).sequence == len(bodies[0])
    finally:
        for place in places:
            place.remove()

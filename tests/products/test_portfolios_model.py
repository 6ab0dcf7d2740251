"""Random portfolios against the dumbest model: dicts of whole percents and a list of what was queued.

Hypothesis and a seeded dice let providers tell, repeat, be late and be wrong, owners change
targets and policies, transactions be executed, updates be queued and taken; now and then the
process falls and another goes on from what is stored. At the end of each life the book
proves itself by the law, and every decision comes out again as it stands.
"""

import itertools
import random
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis.stateful as hs
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from pennyweight.assemble import answers
from pennyweight.engine.port import Head
from pennyweight.engine.rebuild import known_commands
from pennyweight.engine.receipts import Outcome, Receipt, Refusal
from pennyweight.engine.replay import replay
from pennyweight.engine.verification import verify
from pennyweight.ledger.commands import Command
from pennyweight.products.general import LoadBalances
from pennyweight.products.portfolios.execute import ExecuteTransactions, Fill
from pennyweight.products.portfolios.law import PortfoliosLaw
from pennyweight.products.portfolios.queue import Queued, QueueUpdate, TakeUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import ChangeTarget, CreatePortfolio, SetPolicy
from pennyweight.products.portfolios.shared import (
    EXECUTION,
    POINT,
    PORTFOLIO,
    PRODUCT,
    UPDATE,
    Band,
    Policy,
    read_portfolio,
)
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.sqlite import SQLiteStore
from scenarios import Stage

USERS = ("1", "a/b:%")
STRANGER = "eve"
ONE = 10**18
Percents = dict[str, int]

MAPS: tuple[Percents, ...] = (
    {"BTC": 60, "ETH": 40},
    {"BTC": 50, "ETH": 50},
    {"BTC": 50, "ETH": 30, "gold": 20},
    {"ETH": 30, "gold": 70},
    {"BTC": 57, "ETH": 43},
)
WRONG: Percents = {"BTC": 60, "ETH": 41}
BANDS = (None, None, 5, 10)
"""Policies of the model: none, or a band of so many points for all assets."""


class No(Exception):
    """The model refuses, for this reason."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Run:
    """What a run trades: percents by asset, in order; who has it, and when it was made."""

    user: str
    trades: list[tuple[str, int]]
    previous: int
    executed: dict[int, Fill] = field(default_factory=dict)


@dataclass
class Owned:
    """A portfolio."""

    target: Percents
    band: int | None = None
    version: int = 0
    told: Percents | None = None
    as_of: int = 0
    is_timed: bool = False
    is_fresh: bool = False
    run: int = 0
    heard: int = 0
    made: int = 0


@dataclass
class Model:
    """What the rebalancer is, without a ledger."""

    now: int = 0
    owned: dict[str, Owned] = field(default_factory=dict)
    runs: dict[int, Run] = field(default_factory=dict)
    queue: list[tuple[Rebalance, Percents, str, int]] = field(default_factory=list)
    keys: dict[str, tuple[Command, Any]] = field(default_factory=dict)
    posted: Counter[tuple[str, str]] = field(default_factory=Counter)

    def find(self, user: str) -> Owned:
        if user not in self.owned:
            raise No("portfolio_not_found")
        return self.owned[user]

    def create(self, user: str, target: Percents) -> Any:
        check(target)
        if user not in self.owned:
            self.owned[user] = Owned(target)
        elif self.owned[user].target != target:
            raise No("portfolio_exists")

    def aim(self, user: str, target: Percents) -> Any:
        check(target)
        one = self.find(user)
        one.is_fresh = one.is_fresh and one.target == target
        one.target = target

    def set_policy(self, user: str, band: int | None) -> Any:
        one = self.find(user)
        if one.band != band:
            one.band, one.version, one.is_fresh = band, one.version + 1, False

    def update(
        self, command: Rebalance, told: Percents, sequence: int, arrived: int | None = None
    ) -> Any:
        """Return what is answered, and the run it names. It arrives now, or did before."""
        arrived = self.now if arrived is None else arrived
        if command.as_of is not None and command.as_of > self.now + 60_000_000:
            raise No("as_of_in_future")
        check(told)
        one = self.find(command.user)
        run = self.runs.get(one.run)
        is_again = one.is_fresh and one.told == told
        if command.as_of is None:
            if arrived < max(one.heard, min(one.as_of, one.made)):
                return ("outdated", 0)
            is_waiting = run is not None and len(run.executed) < len(run.trades)
            is_idle = run is not None and not run.trades
            if is_again and not command.request_id and (is_waiting or is_idle):
                return ("repeat", one.run)
        elif command.as_of < one.as_of:
            return ("outdated", 0)
        elif command.as_of == one.as_of and one.is_timed:
            if is_again:
                return ("repeat", one.run)
            if sorted(told.items()) < sorted((one.told or {}).items()):
                return ("outdated", 0)
        one.as_of = command.as_of or max(arrived, one.as_of + one.is_timed)
        one.made = self.now
        one.heard = arrived if command.as_of is None else one.heard
        one.is_timed, one.is_fresh, one.told = command.as_of is not None, True, told
        self.runs[sequence] = Run(command.user, trades(one), one.run)
        one.run = sequence
        return ("rebalanced", sequence)

    def take(self, number: int, sequence: int) -> Any:
        if not 0 < number <= len(self.queue):
            raise No("update_not_found")
        command, told, state, queued_at = self.queue[number - 1]
        if state != "queued":
            raise No("update_taken")
        try:
            answer = self.update(command, told, sequence, queued_at)
        except No as no:
            self.queue[number - 1] = (command, told, "refused", queued_at)
            return ("refused", no.code)
        self.queue[number - 1] = (command, told, "done", queued_at)
        return answer

    def execute(self, user: str, number: int, fills: tuple[Fill, ...]) -> Any:
        run = self.runs.get(number)
        count = len(run.trades) if run is not None and run.user == user else 0
        if any(not 1 <= fill.position <= count for fill in fills):
            raise No("transaction_not_found")
        assert run is not None
        asked = {fill.position: fill for fill in fills}
        if any(asked[fill.position] != fill for fill in fills):
            raise No("transaction_executed")
        if any(run.executed.get(position, fill) != fill for position, fill in asked.items()):
            raise No("transaction_executed")
        new = [fill for position, fill in sorted(asked.items()) if position not in run.executed]
        if any(fill.is_told and run.trades[fill.position - 1][0] == "gold" for fill in new):
            raise No("asset_unknown")
        for fill in new:
            run.executed[fill.position] = fill
            if fill.is_told:
                asset, change = run.trades[fill.position - 1]
                sign = 1 if change > 0 else -1
                self.posted[user, asset] += sign * int(fill.quantity)
                self.posted[user, "USD"] -= sign * int(fill.amount)
        return tuple(fill.position for fill in new)


def check(told: Percents) -> None:
    if sum(told.values()) != 100:
        raise No("allocation_invalid")


def trades(one: Owned) -> list[tuple[str, int]]:
    """Return what is traded, in order: all drift, once an asset has reached the band."""
    told = one.told or {}
    drifts = {name: told.get(name, 0) - one.target.get(name, 0) for name in {*told, *one.target}}
    if not any(drift and abs(drift) >= (one.band or 0) for drift in drifts.values()):
        return []
    found = [(name, -drift) for name, drift in drifts.items() if drift]
    return sorted(found, key=lambda trade: (trade[1] > 0, -abs(trade[1]), trade[0]))


def texts(percents: Percents) -> dict[str, str]:
    return {name: str(percent) for name, percent in percents.items()}


users = st.sampled_from([*USERS, *USERS, *USERS, STRANGER])
maps = st.sampled_from([*MAPS, *MAPS, WRONG])
bands = st.sampled_from(BANDS)
MOMENTS = (None, None, None, 0, 0, -1, -2, 3, 100_000_000)
moments = st.sampled_from(MOMENTS)
NAMES = ("", "", "", "r1", "r2", "r3")
names = st.sampled_from(NAMES)
numbers = st.integers(0, 12)
FILLS = (("", ""), ("", ""), ("1", "3"), ("2", "5"))
fills = st.lists(st.tuples(st.integers(0, 4), st.sampled_from(FILLS)), min_size=1, max_size=3)


class PortfoliosMachine(hs.RuleBasedStateMachine):
    """The model beside a book in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(self.store())
        self.model = Model()
        self.base = self.stage.now
        self.create(USERS[0], MAPS[0])

    def store(self) -> Any:
        return MemoryStore(Head(book="main", incarnation="first"))

    def do(self, command: Command, decide: Any, *args: Any, key: str = "") -> Any:
        """Let the model and the book decide; return what the model says, and the book's answer."""
        model, stage = self.model, self.stage
        model.now = stage.now + 1
        expected: Any
        is_replayed = key in model.keys
        if is_replayed:
            earlier, expected = model.keys[key]
            expected = expected if earlier == command else No("key_reused")
        else:
            try:
                expected = decide(*args)
            except No as no:
                expected = no
            else:
                model.keys.update({key: (command, expected)} if key else {})
        outcome = stage.execute(command, key=key)
        self.compare(outcome, expected, command, is_replayed=is_replayed)
        return expected

    def compare(
        self, outcome: Outcome, expected: Any, command: Command, *, is_replayed: bool
    ) -> None:
        if isinstance(expected, No):
            assert isinstance(outcome, Refusal), (command, outcome, expected.code)
            assert outcome.reason.code == expected.code, (command, outcome)
            return
        assert isinstance(outcome, Receipt), (command, outcome)
        assert outcome.is_replayed == is_replayed
        answer: Any = outcome.answer
        if isinstance(command, TakeUpdate):
            state, what = expected
            assert answer.state == ("refused" if state == "refused" else "done")
            if state == "refused":
                assert answer.reason == what
                return
            answer = answer.run
        if isinstance(command, Rebalance | TakeUpdate):
            result, run = expected
            assert (answer.result, answer.run) == (result, run), (command, answer)
            if run:
                right = self.model.runs[run]
                assert [(t.asset, t.change // POINT) for t in answer.trades] == right.trades
                assert answer.previous == right.previous
        if isinstance(command, ExecuteTransactions):
            assert answer.new == expected

    @property
    def next(self) -> int:
        return self.stage.store.head().sequence + 1

    # ── rules ─────────────────────────────────────────────────────────────────────

    @hs.rule(user=users, told=maps)
    def create(self, user: str, told: Percents) -> None:
        if user != STRANGER:
            self.do(CreatePortfolio(user, texts(told)), self.model.create, user, told)

    @hs.rule(user=users, told=maps)
    def aim(self, user: str, told: Percents) -> None:
        self.do(ChangeTarget(user, texts(told)), self.model.aim, user, told)

    @hs.rule(user=users, band=bands)
    def set_policy(self, user: str, band: int | None) -> None:
        policy = None if band is None else Policy(band=Band(absolute=band * POINT))
        self.do(SetPolicy(user, policy), self.model.set_policy, user, band)

    def updating(
        self, user: str, told: Percents, moment: int | None, name: str
    ) -> tuple[Rebalance, Percents]:
        """Return an update; moments are from the newest that the user's portfolio knows."""
        one = self.model.owned.get(user)
        known = one.as_of if one is not None and one.as_of else self.base
        as_of = None if moment is None else known + moment
        return Rebalance(user, texts(told), name, as_of), told

    @hs.rule(user=users, told=maps, moment=moments, name=names)
    def update(self, user: str, told: Percents, moment: int | None, name: str) -> None:
        command, told = self.updating(user, told, moment, name)
        self.do(command, self.model.update, command, told, self.next, key=command.key)

    @hs.rule(user=users, is_timed=st.booleans())
    def tell_again(self, user: str, is_timed: bool) -> None:
        one = self.model.owned.get(user)
        if one is not None and one.told is not None:
            self.update(user, one.told, 0 if is_timed and one.is_timed else None, "")

    @hs.rule(user=users, told=maps, moment=moments, name=names)
    def queue(self, user: str, told: Percents, moment: int | None, name: str) -> None:
        command, told = self.updating(user, told, moment, name)

        def keep() -> None:
            self.model.find(user)
            self.model.queue.append((command, told, "queued", self.model.now))

        self.do(QueueUpdate(command), keep)

    @hs.rule(number=numbers, user=users)
    def take(self, number: int, user: str) -> None:
        self.do(TakeUpdate(number, user), self.model.take, number, self.next)

    @hs.rule(user=users, back=st.integers(0, 3), told=fills)
    def execute(self, user: str, back: int, told: list[tuple[int, tuple[str, str]]]) -> None:
        """Transactions of one of the last runs, sometimes of another user's."""
        run = ([0] * 4 + sorted(self.model.runs))[-1 - back]
        if run in self.model.runs and len(told) > 1:
            user = self.model.runs[run].user
        made = tuple(
            Fill(position, quantity, amount, "USD") if quantity else Fill(position)
            for position, (quantity, amount) in told
        )
        self.do(ExecuteTransactions(user, run, made), self.model.execute, user, run, made)

    @hs.rule(user=st.sampled_from(USERS), asset=st.sampled_from(["BTC", "USD"]))
    def load(self, user: str, asset: str) -> None:
        self.model.posted[user, asset] += 3
        self.stage.execute(LoadBalances(user, ((asset, "3"),)))

    @hs.rule(seconds=st.sampled_from([1, 70, 86_400]))
    def wait(self, seconds: int) -> None:
        self.stage.wait(seconds)

    @hs.rule()
    def fall(self) -> None:
        """The process falls; another takes the book over."""
        now = self.stage.now
        self.stage = Stage(self.stage.store)
        self.stage.now = now

    # ── what must hold ────────────────────────────────────────────────────────────

    @hs.invariant()
    def book_agrees_with_model(self) -> None:
        """Portfolios, executions, the queue, and what users have less what they owe."""
        model, store = self.model, self.stage.store
        for user in (*USERS, STRANGER):
            record, one = store.record(PORTFOLIO, user), model.owned.get(user)
            if record is None or one is None:
                assert record is one is None
                continue
            found = read_portfolio(record)
            assert found.target == {n: p * POINT for n, p in one.target.items()}
            assert found.current == {n: p * POINT for n, p in (one.told or {}).items()}
            assert (found.as_of, found.run, found.policy_version) == (
                one.as_of,
                one.run,
                one.version,
            )
            run = model.runs.get(one.run)
            count = 0 if run is None else len(run.trades)
            done = {} if run is None else run.executed
            assert found.open == tuple(n for n in range(1, count + 1) if n not in done)
        for user, asset in itertools.product(USERS, ("BTC", "ETH", "USD")):
            account = store.account(
                "user:" + user.replace("%", "%25").replace(":", "%3A") + f":{asset}"
            )
            net = 0 if account is None else account.posted - account.owed
            assert net == model.posted[user, asset] * ONE, (user, asset)

    @hs.invariant()
    def records_are_those_of_the_model(self) -> None:
        store, model = self.stage.store, self.model
        executed = {
            f"{number}-{position}"
            for number, run in model.runs.items()
            for position in run.executed
        }
        assert {record.id for record in store.records(EXECUTION, limit=1_000)} == executed
        for number, (_, _, state, _) in enumerate(model.queue, 1):
            record = store.record(UPDATE, str(number))
            assert record is not None
            assert record.read(Queued).state == state

    def teardown(self) -> None:
        """The book proves itself, and every decision comes out as it stands."""
        store = self.stage.store
        report = verify(store, answers=answers(), invariants=[PortfoliosLaw()])
        assert report.ok, report.problems
        commands = {(kind.product, kind.name): kind for kind in known_commands()}
        until = store.head().sequence
        for decision in replay(store, commands, lambda e: e.product == PRODUCT, until=until):
            assert decision.is_equal, (decision.difference, decision.entry)


class SQLiteMachine(PortfoliosMachine):
    """The model beside a book in SQLite, which is closed and opened at every fall."""

    def store(self) -> Any:
        self.folder = tempfile.TemporaryDirectory()
        return self.open_store()

    def open_store(self) -> Any:
        return SQLiteStore.open(Path(self.folder.name), "main", new_incarnation="first")

    @hs.rule()
    def fall(self) -> None:
        self.stage.store.close()
        now = self.stage.now
        self.stage = Stage(self.open_store())
        self.stage.now = now

    def teardown(self) -> None:
        super().teardown()
        self.stage.store.close()
        self.folder.cleanup()


TestInMemory = PortfoliosMachine.TestCase
TestInMemory.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestInSQLite = SQLiteMachine.TestCase
TestInSQLite.settings = settings(max_examples=8, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("seed", range(4))
def test_long_life_agrees_with_model(seed):
    """Longer lives than Hypothesis gives a machine."""
    dice, machine = random.Random(seed), PortfoliosMachine()
    for _ in range(300):
        user = dice.choice([*USERS, *USERS, STRANGER])
        told = dice.choice([*MAPS, *MAPS, WRONG])
        match dice.choices(range(9), weights=(1, 2, 2, 12, 6, 6, 6, 10, 3))[0]:
            case 0:
                machine.create(user, told)
            case 1:
                machine.aim(user, told)
            case 2:
                machine.set_policy(user, dice.choice(BANDS))
            case 3:
                name = dice.choice(["", "", f"r{dice.randrange(40)}"])
                machine.update(user, told, dice.choice(MOMENTS), name)
            case 4:
                machine.tell_again(user, dice.random() < 0.5)
            case 5:
                machine.queue(user, told, dice.choice(MOMENTS), "")
            case 6:
                machine.take(len(machine.model.queue) + 1 - dice.randrange(6), user)
            case 7:
                count = dice.randint(1, 3)
                made = [(dice.randint(1, 3), dice.choice(FILLS)) for _ in range(count)]
                machine.execute(dice.choice(USERS), dice.randrange(3), made)
            case 8:
                machine.wait(dice.choice([1, 70, 86_400]))
                machine.load(dice.choice(USERS), "USD")
        machine.book_agrees_with_model()
    machine.records_are_those_of_the_model()
    machine.teardown()

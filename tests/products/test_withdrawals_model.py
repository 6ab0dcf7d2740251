"""Random withdrawals and settlements against the dumbest model: dicts of ints and a list of holds."""

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

from pennyweight.assemble import answers, invariants
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Outcome, Receipt, Refusal
from pennyweight.engine.verification import verify
from pennyweight.ledger.commands import Command
from pennyweight.products.general import (
    CloseAccount,
    LoadBalances,
    PlaceHold,
    Transfer,
    VoidHold,
)
from pennyweight.products.withdrawals.controls import SetLimits, SetMode
from pennyweight.products.withdrawals.settle import Settle
from pennyweight.products.withdrawals.withdraw import (
    CancelWithdrawal,
    ExpireWithdrawal,
    Withdraw,
)
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.sqlite import SQLiteStore
from scenarios import Stage

USERS = ("ann", "bob")
STRANGER = "eve"
"""A user who may come to an account by nothing but a load."""

TOKENS = ("BTC", "ETH")
ONE = 10**18
STEP = 300_000_000
DAY_STEPS = 288
STRICTNESS = ("active", "reducing", "halted")
MODES = ("active", "active", "active", *STRICTNESS)

Place = tuple[str, str]
"""A user and a token."""


class No(Exception):
    """The model refuses, for this reason."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Held:
    """A hold: whose, of how much, and what became of it."""

    number: int
    place: Place
    amount: int
    name: str = ""
    until: int | None = None
    is_withdrawal: bool = True
    state: str = "open"
    ended_by: Command | None = None

    @property
    def withdrawal_id(self) -> str:
        return self.name or f"w{self.number}"

    def is_live(self, now: int) -> bool:
        return self.state == "open" and (self.until is None or self.until > now)


@dataclass
class Model:
    """What the risk engine is, without a ledger. Amounts are whole tokens."""

    now: int = 0
    posted: dict[Place, int] = field(default_factory=dict)
    closed: set[Place] = field(default_factory=set)
    owed: Counter[Place] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)
    holds: list[Held] = field(default_factory=list)
    modes: dict[str, str] = field(default_factory=dict)
    limits: dict[Place, tuple[int | None, int | None]] = field(default_factory=dict)
    counted: list[tuple[Place, int, int, int]] = field(default_factory=list)
    """Place, five minutes, amount, number of the hold."""
    begun: set[tuple[Place, int]] = field(default_factory=set)
    keys: dict[str, Command] = field(default_factory=dict)

    # ── the book ──────────────────────────────────────────────────────────────────

    def held(self, place: Place) -> int:
        return sum(h.amount for h in self.holds if h.place == place and h.state == "open")

    def available(self, place: Place) -> int:
        return self.posted.get(place, 0) - self.held(place)

    def is_known(self, user: str) -> bool:
        return any(place[0] == user for place in self.posted)

    def credit(self, place: Place, amount: int) -> None:
        self.posted[place] += amount
        repaid = max(0, min(amount, self.owed[place], self.available(place)))
        self.posted[place] -= repaid
        self.owed[place] -= repaid

    def take(self, place: Place, amount: int) -> int:
        paid = 0 if place in self.closed else max(0, min(amount, self.available(place)))
        self.posted[place] -= paid
        self.owed[place] += amount - paid
        return amount - paid

    def check_open(self, *places: Place) -> None:
        for place in places:
            if place not in self.posted:
                raise No("account_not_found")
        for place in places:
            if place in self.closed:
                raise No("account_closed")

    def hold(self, place: Place, amount: int, **more: Any) -> Held:
        held = Held(len(self.holds) + 1, place, amount, **more)
        self.holds.append(held)
        return held

    # ── commands of the ledger ────────────────────────────────────────────────────

    def load(self, place: Place, amount: int) -> None:
        if place in self.closed:
            raise No("account_closed")
        self.posted.setdefault(place, 0)
        self.others[f"world:{place[1]}"] -= amount
        self.credit(place, amount)

    def transfer(self, debit: Place, credit: Place, amount: int) -> None:
        self.check_open(debit, credit)
        if self.available(debit) < amount:
            raise No("insufficient_funds")
        self.posted[debit] -= amount
        self.credit(credit, amount)

    def close(self, place: Place) -> None:
        self.check_open(place)
        if any(h.place == place and h.state == "open" for h in self.holds):
            raise No("account_has_holds")
        if self.posted[place]:
            raise No("account_has_balance")
        if self.owed[place]:
            raise No("account_owes")
        self.closed.add(place)

    def place_hold(self, place: Place, amount: int) -> None:
        self.check_open(place)
        if self.available(place) < amount:
            raise No("insufficient_funds")
        self.hold(place, amount, is_withdrawal=False)

    def void_hold(self, number: int) -> None:
        held = self.number(number)
        if held.is_withdrawal:
            raise No("owned_by_product")
        if held.state != "open":
            raise No("hold_already_voided")
        held.state = "voided"

    def number(self, number: int) -> Held:
        if number > len(self.holds):
            raise No("hold_not_found")
        return self.holds[number - 1]

    # ── withdrawals ───────────────────────────────────────────────────────────────

    def named(self, withdrawal_id: str) -> Held | None:
        found = [h for h in self.holds if h.is_withdrawal and h.withdrawal_id == withdrawal_id]
        return found[0] if found else None

    def check_mode(self, token: str, *, is_new: bool) -> None:
        mode = max(
            self.modes.get("", "active"), self.modes.get(token, "active"), key=STRICTNESS.index
        )
        if mode == "halted" or (mode == "reducing" and is_new):
            raise No(f"withdrawals_{mode}")

    def limit(self, place: Place, which: int) -> int | None:
        own = self.limits.get(place, (None, None))[which]
        return self.limits.get(("", place[1]), (None, None))[which] if own is None else own

    def withdraw(self, place: Place, amount: int, name: str, seconds: int | None) -> dict[str, Any]:
        if not self.is_known(place[0]):
            raise No("user_not_found")
        if place in self.closed:
            raise No("account_closed")
        if name and self.named(name):
            raise No("withdrawal_id_taken")
        self.check_mode(place[1], is_new=True)
        single, daily = self.limit(place, 0), self.limit(place, 1)
        if single is not None and amount > single:
            raise No("limit_reached")
        step = self.now // STEP
        used = sum(a for p, s, a, _ in self.counted if p == place and s >= step - DAY_STEPS)
        if daily is not None and used + amount > daily:
            raise No("limit_reached")
        if self.available(place) < amount:
            raise No("insufficient_funds")
        until = None if seconds is None else self.now + seconds * 1_000_000
        held = self.hold(place, amount, name=name, until=until)
        if daily is not None or (place, step) in self.begun:
            self.begun.add((place, step))
            self.counted.append((place, step, amount, held.number))
        return self.told(held)

    def told(self, held: Held) -> dict[str, Any]:
        return {
            "withdrawal_id": held.withdrawal_id,
            "requested_quantity": held.amount,
            "available": self.available(held.place),
            "held": self.held(held.place),
            "expires_at": held.until,
        }

    def end(self, held: Held, state: str) -> dict[str, Any]:
        held.state = state
        self.counted = [each for each in self.counted if each[3] != held.number]
        return self.told(held)

    def cancel(self, withdrawal_id: str) -> dict[str, Any]:
        held = self.named(withdrawal_id)
        if held is None:
            raise No("withdrawal_not_found")
        if held.state != "open":
            raise No(f"withdrawal_{ {'voided': 'cancelled'}.get(held.state, held.state) }")
        self.check_mode(held.place[1], is_new=False)
        return self.end(held, "voided")

    def expire(self, number: int) -> dict[str, Any]:
        held = self.number(number)
        if not held.is_withdrawal:
            raise No("owned_by_product")
        if held.state != "open":
            raise No("hold_expired" if held.state == "expired" else f"hold_already_{held.state}")
        if held.is_live(self.now):
            raise No("hold_not_due")
        return self.end(held, "expired")

    def match(self, command: Settle, place: Place, sold: int) -> Held | None:
        if command.withdrawal_id:
            held = self.named(command.withdrawal_id)
            if held is None or held.place != place or held.state == "expired":
                return None
            if held.state != "open" and held.ended_by != command:
                raise No(f"withdrawal_{'cancelled' if held.state == 'voided' else 'settled'}")
            if held.state == "open" and not held.is_live(self.now):
                self.end(held, "expired")
                return None
            return held
        live = [h for h in self.holds if h.place == place and h.is_withdrawal]
        live = [h for h in live if h.is_live(self.now)]
        exact = [h for h in live if h.amount == sold]
        return exact[0] if len(exact) == 1 else next(iter(live), None)

    def settle(self, command: Settle) -> dict[str, Any]:
        if command.bought_token == command.sold_token:
            raise No("same_token")
        if not self.is_known(command.user):
            raise No("user_not_found")
        place, other = (command.user, command.sold_token), (command.user, command.bought_token)
        sold, bought = int(command.sold_quantity), int(command.bought_quantity)
        held = self.match(command, place, sold)
        result, shortage, released, credited = "unsolicited", 0, 0, ""
        if held is not None and held.state != "open":
            result = "duplicate"
            sold = bought = 0
        elif held is not None:
            held.ended_by = command
            result = "settled" if sold else "cancelled"
            if sold:
                held.state = "settled"
                released = max(0, held.amount - sold)
            else:
                self.end(held, "voided")
        if sold:
            self.posted.setdefault(place, 0)
            shortage = self.take(place, sold)
            self.others[f"venue:trades:{place[1]}"] += sold
        if bought:
            self.posted.setdefault(other, 0)
            self.others[f"venue:trades:{other[1]}"] -= bought
            if other in self.closed:
                credited = f"suspense:{other[1]}"
                self.others[credited] += bought
            else:
                self.credit(other, bought)
        return {
            "result": result,
            "withdrawal_id": "" if held is None else held.withdrawal_id,
            "sold_available": self.available(place),
            "bought_available": self.available(other),
            "released": released,
            "shortage": shortage,
            "owed": self.owed[place],
            "credited": credited,
        }

    def set_limits(self, user: str, token: str, single: int | None, daily: int | None) -> None:
        if user and not self.is_known(user):
            raise No("user_not_found")
        self.limits[user, token] = (single, daily)


users = st.sampled_from([*USERS, *USERS, *USERS, STRANGER])
tokens = st.sampled_from(TOKENS)
amounts = st.integers(1, 3)
some = st.integers(0, 6)
names = st.sampled_from(["", "", "x", "y", "z"])
numbers = st.integers(1, 12)
ids = st.one_of(names, numbers.map(lambda number: f"w{number}"))
picks = st.integers(0, 20)
MORE = (0, 0, 0, -3, -1, 1, 4)
WAITS = (1, 60, 299, 3600, 86_400, 86_700)
MAXIMA = (None, None, None, 0, 3, 6, 9)
maxima = st.sampled_from(MAXIMA)


class RiskEngineMachine(hs.RuleBasedStateMachine):
    """The model beside a book in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Stage(self.store())
        self.model = Model()
        self.trace: list[tuple[int, Command, str]] = []
        for user, token in itertools.product(USERS, TOKENS):
            self.load(user, token, 5)

    def store(self) -> Any:
        return MemoryStore(Head(book="main", incarnation="first"))

    def do(self, command: Command, decide: Any, *args: Any, key: str = "") -> None:
        """Let the model and the book decide, and compare."""
        model, stage = self.model, self.stage
        model.now = stage.now + 1
        self.trace.append((stage.now, command, key))
        expected: Any
        if key in model.keys:
            expected = "replayed" if model.keys[key] == command else No("key_reused")
        else:
            try:
                expected = decide(*args)
            except No as no:
                expected = no
            else:
                model.keys.update({key: command} if key else {})
        self.compare(stage.execute(command, key=key), expected, command)

    def compare(self, outcome: Outcome, expected: Any, command: Command) -> None:
        if isinstance(expected, No):
            assert isinstance(outcome, Refusal), (command, outcome, expected)
            assert outcome.reason.code == expected.code, (command, outcome)
            return
        assert isinstance(outcome, Receipt), (command, outcome)
        assert outcome.is_replayed == (expected == "replayed"), command
        if not isinstance(expected, dict):
            return
        for name, value in expected.items():
            told = getattr(outcome.answer, name)
            is_amount = isinstance(value, int) and name != "expires_at"
            assert told == (str(value) if is_amount else value), (command, name, outcome, expected)

    # ── rules ─────────────────────────────────────────────────────────────────────

    @hs.rule(user=users, token=tokens, amount=some)
    def load(self, user: str, token: str, amount: int) -> None:
        command = LoadBalances(user, ((token, str(amount)),))
        self.do(command, self.model.load, (user, token), amount)

    @hs.rule(users=st.permutations(USERS), token=tokens, amount=amounts)
    def transfer(self, users: list[str], token: str, amount: int) -> None:
        one, other = users
        command = Transfer(f"user:{one}:{token}", f"user:{other}:{token}", token, str(amount))
        self.do(command, self.model.transfer, (one, token), (other, token), amount)

    @hs.rule(user=users, token=tokens)
    def close(self, user: str, token: str) -> None:
        self.do(CloseAccount(f"user:{user}:{token}"), self.model.close, (user, token))

    @hs.rule(user=users, token=tokens, amount=amounts)
    def place_hold(self, user: str, token: str, amount: int) -> None:
        command = PlaceHold(f"user:{user}:{token}", token, str(amount))
        self.do(command, self.model.place_hold, (user, token), amount)

    @hs.rule(number=numbers)
    def void_hold(self, number: int) -> None:
        self.do(VoidHold(number), self.model.void_hold, number)

    @hs.rule(
        user=users,
        token=tokens,
        amount=amounts,
        name=names,
        seconds=st.sampled_from([None, None, 60, 3600]),
        is_keyed=st.booleans(),
    )
    def withdraw(
        self, user: str, token: str, amount: int, name: str, seconds: int | None, is_keyed: bool
    ) -> None:
        command = Withdraw(user, token, str(amount), name, seconds)
        key = name if is_keyed else ""
        self.do(command, self.model.withdraw, (user, token), amount, name, seconds, key=key)

    @hs.rule(withdrawal_id=ids)
    def cancel(self, withdrawal_id: str) -> None:
        self.do(CancelWithdrawal(withdrawal_id), self.model.cancel, withdrawal_id)

    @hs.rule(number=numbers)
    def expire(self, number: int) -> None:
        self.do(ExpireWithdrawal(number), self.model.expire, number)

    @hs.precondition(lambda self: any(h.until for h in self.model.holds if h.state == "open"))
    @hs.rule(is_before=st.booleans(), is_swept=st.booleans())
    def come_to_an_expiry(self, is_before: bool, is_swept: bool) -> None:
        """Wait for the moment of an expiry, or for just before it."""
        held = next(h for h in self.model.holds if h.until and h.state == "open")
        until = held.until or 0
        self.stage.now = max(self.stage.now, until - 1 - is_before)
        if is_swept:
            self.expire(held.number)

    @hs.rule(
        user=users,
        tokens=st.one_of(st.permutations(TOKENS), st.just(["BTC", "BTC"])),
        sold=some,
        bought=some,
        withdrawal_id=ids,
        settlement_id=names,
    )
    def settle(
        self,
        user: str,
        tokens: list[str],
        sold: int,
        bought: int,
        withdrawal_id: str,
        settlement_id: str,
    ) -> None:
        command = Settle(
            user, tokens[0], str(bought), tokens[1], str(sold), withdrawal_id, settlement_id
        )
        key = f"settlement:{settlement_id}" if settlement_id else ""
        self.do(command, self.model.settle, command, key=key)

    @hs.precondition(lambda self: any(h.state == "open" for h in self.model.holds))
    @hs.rule(
        pick=picks,
        more=st.sampled_from(MORE),
        is_named=st.booleans(),
        is_strange=st.sampled_from([False, False, True]),
    )
    def settle_one(self, pick: int, more: int, is_named: bool, is_strange: bool) -> None:
        """A settlement of about a hold that is there, sometimes in the other user's name."""
        open_holds = [h for h in self.model.holds if h.state == "open"]
        held = open_holds[pick % len(open_holds)]
        user, sold_token = held.place
        if is_strange:
            user = USERS[user == USERS[0]]
        bought_token = TOKENS[1 - TOKENS.index(sold_token)]
        sold = str(max(0, held.amount + more))
        name = held.withdrawal_id if is_named else ""
        command = Settle(user, bought_token, "1", sold_token, sold, name)
        self.do(command, self.model.settle, command)

    @hs.rule(pick=picks)
    def again(self, pick: int) -> None:
        """Settle or withdraw just as before, under the same key if it had one."""
        kinds = (Settle, Withdraw)
        earlier = [each for each in self.trace if isinstance(each[1], kinds)]
        if not earlier:
            return
        _, command, key = earlier[-1 - pick % len(earlier)]
        if isinstance(command, Settle):
            self.do(command, self.model.settle, command, key=key)
        elif isinstance(command, Withdraw):
            place, amount = (command.user, command.token), int(command.quantity)
            seconds = command.expires_in_seconds
            name = command.withdrawal_id
            self.do(command, self.model.withdraw, place, amount, name, seconds, key=key)

    @hs.rule(token=st.sampled_from([None, *TOKENS]), mode=st.sampled_from(MODES))
    def set_mode(self, token: str | None, mode: Any) -> None:
        self.do(SetMode(mode, token), self.model.modes.__setitem__, token or "", mode)

    @hs.rule(user=st.one_of(st.just(""), users), token=tokens, single=maxima, daily=maxima)
    def set_limits(self, user: str, token: str, single: int | None, daily: int | None) -> None:
        texts = [None if limit is None else str(limit) for limit in (single, daily)]
        command = SetLimits(token, texts[0], texts[1], user or None)
        self.do(command, self.model.set_limits, user, token, single, daily)

    @hs.rule(seconds=st.sampled_from(WAITS))
    def wait(self, seconds: int) -> None:
        self.stage.wait(seconds)

    # ── what must hold ────────────────────────────────────────────────────────────

    @hs.invariant()
    def book_agrees_with_model(self) -> None:
        """Balances, holds, debts, and the other side of all that moved."""
        model, store = self.model, self.stage.store
        for place in itertools.product([*USERS, STRANGER], TOKENS):
            account = store.account(f"user:{place[0]}:{place[1]}")
            if place not in model.posted:
                assert account is None, place
                continue
            assert account is not None, place
            assert account.posted == model.posted[place] * ONE, place
            assert account.held == model.held(place) * ONE, place
            assert account.owed == model.owed[place] * ONE, place
            assert account.is_closed == (place in model.closed), place
        for held in model.holds:
            hold = store.hold(held.number)
            assert hold is not None
            assert hold.state.value == held.state, held
            assert hold.remaining == (held.amount * ONE if held.state == "open" else 0), held
        for account_id, amount in model.others.items():
            account = store.account(account_id)
            assert (account.posted if account else 0) == amount * ONE, account_id
        self.check_conservation()

    def check_conservation(self) -> None:
        """Per token: users, what they owe, venue, suspense and world add up to nothing."""
        model = self.model
        for token in TOKENS:
            users = sum(amount for place, amount in model.posted.items() if place[1] == token)
            owed = sum(amount for place, amount in model.owed.items() if place[1] == token)
            rest = sum(amount for name, amount in model.others.items() if name.endswith(token))
            assert users - owed + rest == 0, token

    def teardown(self) -> None:
        """The book proves itself, and the same commands make the same book in memory again."""
        report = self.proof(self.stage.store)
        again = Stage()
        for now, command, key in self.trace:
            again.now = now + 1
            again.book.execute_many([Submission(command, key=key)])
        assert self.proof(again.store).state_digest == report.state_digest

    def proof(self, store: Any) -> Any:
        report = verify(store, answers=answers(), invariants=invariants())
        assert report.ok, report.problems
        return report


class SQLiteMachine(RiskEngineMachine):
    """The model beside a book in SQLite."""

    def store(self) -> Any:
        self.folder = tempfile.TemporaryDirectory()
        return SQLiteStore.open(Path(self.folder.name), "main", new_incarnation="first")

    def teardown(self) -> None:
        super().teardown()
        self.stage.store.close()
        self.folder.cleanup()


TestInMemory = RiskEngineMachine.TestCase
TestInMemory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestInSQLite = SQLiteMachine.TestCase
TestInSQLite.settings = settings(max_examples=10, stateful_step_count=40, deadline=None)


class Dice:
    """A longer life than Hypothesis gives a machine, drawn by a seed."""

    def __init__(self, machine: RiskEngineMachine, seed: int) -> None:
        self.machine = machine
        self.draw = random.Random(seed)

    def step(self) -> None:
        """Let one thing happen."""
        draw, machine = self.draw, self.machine
        some, few = draw.randrange(7), draw.randrange(1, 4)
        user, token = draw.choice([*USERS, *USERS, *USERS, STRANGER]), draw.choice(TOKENS)
        holds = machine.model.holds
        number = max(1, len(holds) + 1 - draw.randrange(12))
        name = f"n{number}"
        recent = [held.withdrawal_id for held in holds[-8:]]
        a_hold = draw.choice(["", "x", f"w{number}", *recent])
        is_any = draw.random() < 0.5
        match draw.choices(range(14), weights=WEIGHTS)[0]:
            case 0:
                machine.load(user, token, 0 if user == STRANGER else 2 * few)
            case 1:
                machine.transfer(draw.sample(USERS, 2), token, few)
            case 2:
                machine.close(STRANGER if is_any else user, token)
            case 3:
                machine.place_hold(user, token, few)
            case 4:
                machine.void_hold(number)
            case 5:
                name = draw.choice(["", "", f"n{len(holds) + 1}", name])
                seconds = draw.choice([None, None, 60, 3600])
                machine.withdraw(user, token, few, name, seconds, is_any)
            case 6:
                machine.cancel(a_hold)
            case 7:
                machine.expire(number)
            case 8:
                swapped = draw.sample(TOKENS, 2)
                name = draw.choice(["", f"s{len(machine.trace)}", f"s{number}"])
                machine.settle(user, swapped, some, draw.randrange(4), a_hold, name)
            case 9 if any(h.state == "open" for h in holds):
                pick = draw.randrange(20)
                machine.settle_one(pick, draw.choice(MORE), is_any, draw.random() < 0.2)
            case 10:
                machine.again(draw.randrange(6))
            case 11 if any(h.until for h in holds if h.state == "open"):
                machine.come_to_an_expiry(is_any, draw.random() < 0.5)
            case 12:
                machine.set_mode(
                    draw.choice([None, *TOKENS]), draw.choice([*MODES, *MODES[:3] * 3])
                )
                self.set_limits()
            case 13:
                machine.wait(draw.choice(WAITS))

    def set_limits(self) -> None:
        draw, machine = self.draw, self.machine
        user, token = draw.choice(["", *USERS]), draw.choice(TOKENS)
        machine.set_limits(user, token, draw.choice(MAXIMA), draw.choice([None, *MAXIMA]))


WEIGHTS = (12, 3, 2, 2, 2, 24, 4, 3, 4, 12, 4, 5, 3, 3)


@pytest.mark.parametrize("seed", range(12))
def test_long_life_agrees_with_model(seed):
    machine = RiskEngineMachine()
    dice = Dice(machine, seed)
    for _ in range(400):
        dice.step()
        machine.book_agrees_with_model()
    machine.teardown()

"""Many loans beside a model that reckons with whole numbers and fractions, step by step.

Hypothesis and a seeded dice let clients apply and post, prices move, venues fill, fail and
sell more or less than they were asked to, operators pause and other products interfere;
now and then the process falls and another goes on from what is stored. At the end of each
life the book proves itself by the law, and every decision comes out again as it stands.
"""

import random
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis.stateful as hs
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from loan_stage import BLACK, FOR_EVER, MOS, Lending, quote, text
from pennyweight.engine.rebuild import known_commands
from pennyweight.engine.replay import replay
from pennyweight.products.general import CloseAccount, Transfer
from pennyweight.products.loans.apply import ApplyForLoan, TopUpCollateral
from pennyweight.products.loans.life import ActivateLoan, RearmWarning, SetLiquidations, WarnLoan
from pennyweight.products.loans.liquidate import (
    BeginLiquidation,
    FailSlice,
    FillSlice,
    PlaceSlices,
)
from pennyweight.products.loans.shared import ONE, PRODUCT, SLICE, STEP, slice_id
from pennyweight.stores.sqlite import SQLiteStore

BORROWERS = ("ann", "b:%")
LOANS = ("L1", "a:b", "%")
PRICES = (2, 3, 5, 7, 8, 10, 20)
PAUSES = ("normal", "no_new", "halt_new_and_activation")


class MLoan:
    """A loan as the model sees it; amounts in whole units as fractions."""

    def __init__(self, borrower: str, amount: int) -> None:
        self.borrower = borrower
        self.amount = Fraction(amount)
        self.status = "new"
        self.collateral = Fraction(0)
        self.balance = Fraction(0)
        self.is_warned = False
        self.sold = self.proceeds = self.surplus = self.returned = Fraction(0)
        self.slices: dict[int, dict[str, Any]] = {}

    def ltv(self, price: Fraction) -> Fraction | None:
        owed = self.amount if self.status == "new" else self.balance
        return owed / (self.collateral * price) if self.collateral else None

    @property
    def out(self) -> list[dict[str, Any]]:
        return [part for part in self.slices.values() if part["state"] == "open"]

    @property
    def free(self) -> Fraction:
        left = self.collateral - sum(part["quantity"] for part in self.out)
        return max(Fraction(0), left * 10**8 // 1 / Fraction(10**8))


class LoansMachine(hs.RuleBasedStateMachine):
    """The book beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = Lending(self.new_store())
        self.loans: dict[str, MLoan] = {}
        self.pause = "normal"
        self.house = self.suspense_gc = self.suspense_steel = Fraction(0)
        self.cash = dict.fromkeys(BORROWERS, Fraction(0))
        self.closed: set[str] = set()
        self.begun: list[str] = []

    def new_store(self) -> Any:
        return None

    def expect(self, command: Any, code: str) -> Any:
        outcome = self.stage.execute(command)
        assert self.stage.code(outcome) == code, (command, outcome, code)
        return outcome

    # ── clients ───────────────────────────────────────────────────────────────────

    @hs.rule(
        name=st.sampled_from(LOANS),
        borrower=st.sampled_from(BORROWERS),
        amount=st.integers(1, 2000),
        collateral=st.integers(0, 300),
    )
    def apply(self, name: str, borrower: str, amount: int, collateral: int) -> None:
        command = ApplyForLoan(name, borrower, str(amount), str(collateral) if collateral else "")
        self.expect(command, "loan_exists" if name in self.loans else "done")
        if name not in self.loans:
            self.loans[name] = MLoan(borrower, amount)
            self.loans[name].collateral += collateral

    @hs.rule(
        name=st.sampled_from(LOANS),
        borrower=st.sampled_from(BORROWERS),
        parts=st.integers(1, 10**10),
    )
    def top_up(self, name: str, borrower: str, parts: int) -> None:
        amount = Fraction(parts, 10**9)  # finer than can be traded
        loan = self.loans.get(name)
        if loan is None:
            code = "loan_not_found"
        elif loan.borrower != borrower:
            code = "borrower_mismatch"
        elif loan.status in {"liquidating", "liquidated"}:
            code = f"loan_{loan.status}"
        else:
            code = "done"
            loan.collateral += amount
        self.expect(TopUpCollateral(name, borrower, text(int(amount * ONE))), code)

    @hs.rule(
        name=st.sampled_from(LOANS),
        borrower=st.sampled_from(BORROWERS),
        collateral=st.integers(1, 300),
        price=st.sampled_from(PRICES[:4]),
    )
    def lend_and_begin(self, name: str, borrower: str, collateral: int, price: int) -> None:
        """A loan that is active at 10, and is due to be liquidated below 6.25."""
        if name not in self.loans:
            self.apply(name, borrower, 5 * collateral, collateral)
            self.activate(name, 10, is_late=False)
            self.begin(name, price)

    @hs.rule(borrower=st.sampled_from(BORROWERS))
    def spend_and_close(self, borrower: str) -> None:
        """The borrower spends all the cash, and closes the account."""
        account = self.stage.store.account(f"user:{self.segment(borrower)}:GC")
        if account is None or borrower in self.closed:
            return
        if account.posted:
            amount = text(account.posted)
            self.expect(Transfer(account.id, "house:shop:GC", "GC", amount), "done")
        self.expect(CloseAccount(account.id), "done")
        self.cash[borrower] = Fraction(0)
        self.closed.add(borrower)

    @hs.rule(level=st.sampled_from(PAUSES))
    def set_pause(self, level: Any) -> None:
        self.expect(SetLiquidations(level), "done")
        self.pause = level

    # ── prices ────────────────────────────────────────────────────────────────────

    def decide(self, kind: Any, name: str, price: int, *, is_late: bool = False) -> Any:
        """Return a decision at one flat price."""
        record_version = self.stage.version(name)
        until = self.stage.now if is_late else FOR_EVER
        more = {"life": "first"} if kind is BeginLiquidation else {}
        borrower = self.loans[name].borrower if name in self.loans else "ann"
        return kind(name, borrower, record_version, (quote(str(price)),), until, **more)

    @hs.rule(name=st.sampled_from(LOANS), price=st.sampled_from(PRICES), is_late=st.booleans())
    def activate(self, name: str, price: int, is_late: bool) -> None:
        loan = self.loans.get(name)
        ltv = loan.ltv(Fraction(price)) if loan else None
        if loan is None:
            code = "loan_not_found"
        elif loan.borrower in self.closed:
            code = "account_closed"
        elif loan.status != "new" or ltv is None or ltv > Fraction(1, 2):
            code = "loan_not_due"
        elif is_late:
            code = "quotes_stale"
        elif self.pause == "halt_new_and_activation":
            code = "liquidations_paused"
        else:
            code = "done"
        self.expect(self.decide(ActivateLoan, name, price, is_late=is_late), code)
        if loan and code == "done":
            loan.status, loan.balance = "active", loan.amount
            self.house -= loan.amount
            self.cash[loan.borrower] += loan.amount

    @hs.rule(name=st.sampled_from(LOANS), price=st.sampled_from(PRICES))
    def warn_or_rearm(self, name: str, price: int) -> None:
        loan = self.loans.get(name)
        if loan is None:
            return
        ltv = loan.ltv(Fraction(price))
        is_active = loan.status == "active" and ltv is not None
        is_due = is_active and not loan.is_warned and ltv >= Fraction(7, 10)
        self.expect(self.decide(WarnLoan, name, price), "done" if is_due else "loan_not_due")
        loan.is_warned |= is_due
        is_due = is_active and loan.is_warned and ltv < Fraction(6, 10)
        self.expect(self.decide(RearmWarning, name, price), "done" if is_due else "loan_not_due")
        loan.is_warned &= not is_due

    @hs.rule(name=st.sampled_from(LOANS), price=st.sampled_from(PRICES))
    def begin(self, name: str, price: int) -> None:
        loan = self.loans.get(name)
        ltv = loan.ltv(Fraction(price)) if loan else None
        if loan is None:
            code = "loan_not_found"
        elif loan.status != "active" or ltv is None or ltv < Fraction(8, 10):
            code = "loan_not_due"
        elif self.pause != "normal":
            code = "liquidations_paused"
        else:
            code = "done"
        self.expect(self.decide(BeginLiquidation, name, price), code)
        if loan and code == "done":
            self.begun.append(name)
            loan.status = "liquidating"
            self.place_in(loan, [(MOS, price)])

    # ── slices ────────────────────────────────────────────────────────────────────

    def place_in(self, loan: MLoan, markets: list[tuple[str, int]]) -> bool:
        """Place by the model: the best price first, just enough, 100 at most."""
        placed = []
        missing = loan.balance - sum(part["expected"] for part in loan.out)
        free, busy = loan.free, {part["market"] for part in loan.out}
        usable = [m for m in markets if m[0] not in busy]
        for market, price in sorted(usable, key=lambda m: -m[1]):
            if missing <= 0 or free <= 0:
                break
            steps = -(-missing * 10**8 // price)
            quantity = min(Fraction(steps, 10**8), free, Fraction(100))
            expected = quantity * price
            missing, free = missing - expected, free - quantity
            part = {"market": market, "quantity": quantity, "expected": expected, "state": "open"}
            placed.append(part)
        # The larger one first; of two that sell as much, in the order of the quotes.
        order = [market for market, _ in markets]
        placed.sort(key=lambda part: (-part["quantity"], order.index(part["market"])))
        for part in placed:
            loan.slices[len(loan.slices) + 1] = part
        return bool(placed)

    @hs.rule(
        name=st.sampled_from(LOANS),
        one=st.sampled_from([0, *PRICES]),
        other=st.sampled_from([0, *PRICES]),
    )
    def place(self, name: str, one: int, other: int) -> None:
        markets = [(MOS, one), (BLACK, other)]
        quotes = tuple(quote(str(price), market=m) for m, price in markets if price)
        loan = self.loans.get(name)
        if not quotes or loan is None or one == other:
            return
        is_on = loan.status == "liquidating"
        is_placed = is_on and self.place_in(loan, [m for m in markets if m[1]])
        command = PlaceSlices(name, loan.borrower, self.stage.version(name), quotes, "first")
        self.expect(command, "done" if is_placed else "loan_not_due")

    @hs.rule(
        name=st.sampled_from(LOANS),
        pick=st.integers(0, 1),
        share=st.sampled_from([1, 1, 1, 1, 2, 3, Fraction(1, 2), Fraction(1, 3)]),
        worth=st.sampled_from([1, 1, 1, 2, Fraction(1, 2), Fraction(9, 10), 0]),
        is_hinted=st.booleans(),
    )
    def fill(self, name: str, pick: int, share: Any, worth: Any, is_hinted: bool) -> None:
        """The venue sold what it was asked for, or less, or more; for what was quoted or not."""
        loan = self.loans.get(name)
        if loan is None or not loan.out:
            return
        number, part = self.open_slice(loan, pick)
        sold = max(STEP, int(part["quantity"] * share * ONE) // STEP * STEP)
        total = int(part["expected"] * worth * share * ONE)
        hint = self.stage.loan(name).hold if is_hinted else 0
        who = loan.borrower if is_hinted else "nobody"
        command = FillSlice(name, number, "o", text(sold), text(total), who, hint)
        self.expect(command, "done")
        self.expect(command, "slice_ended")
        part["state"] = "filled"
        self.book(loan, Fraction(sold, ONE), Fraction(total, ONE))

    def book(self, loan: MLoan, sold: Fraction, total: Fraction) -> None:
        held, paid = min(sold, loan.collateral), min(total, loan.balance)
        loan.collateral -= held
        self.suspense_steel -= sold - held
        loan.balance -= paid
        self.house += paid
        if loan.borrower in self.closed:
            self.suspense_gc += total - paid
        else:
            self.cash[loan.borrower] += total - paid
        loan.sold, loan.proceeds = loan.sold + sold, loan.proceeds + total
        loan.surplus += total - paid
        self.go_on(loan)

    @hs.rule(name=st.sampled_from(LOANS), pick=st.integers(0, 1))
    def fail(self, name: str, pick: int) -> None:
        loan = self.loans.get(name)
        if loan is None or not loan.out:
            return
        number, part = self.open_slice(loan, pick)
        command = FailSlice(name, number, "no", loan.borrower, self.stage.loan(name).hold)
        self.expect(command, "done")
        self.expect(command, "slice_ended")
        part["state"] = "failed"
        self.go_on(loan)

    def open_slice(self, loan: MLoan, pick: int) -> tuple[int, dict[str, Any]]:
        numbers = [n for n, part in loan.slices.items() if part["state"] == "open"]
        number = numbers[pick % len(numbers)]
        return number, loan.slices[number]

    def go_on(self, loan: MLoan) -> None:
        if not loan.out and (not loan.balance or loan.collateral < Fraction(1, 10**8)):
            loan.status = "liquidated"
            loan.returned, loan.collateral = loan.collateral, Fraction(0)
            self.house += loan.balance

    @hs.rule()
    def fall(self) -> None:
        """The process falls; another takes the book over."""
        store = self.stage.store
        now = self.stage.now
        self.stage = Lending(store)
        self.stage.now = now

    # ── what must hold ────────────────────────────────────────────────────────────

    def segment(self, borrower: str) -> str:
        return borrower.replace("%", "%25").replace(":", "%3A")

    def posted(self, account_id: str) -> Fraction:
        account = self.stage.store.account(account_id)
        return Fraction(0 if account is None else account.posted, ONE)

    @hs.invariant()
    def book_agrees_with_model(self) -> None:
        collateral = dict.fromkeys(BORROWERS, Fraction(0))
        returned = dict.fromkeys(BORROWERS, Fraction(0))
        for name, loan in self.loans.items():
            found = self.stage.loan(name)
            assert found.status == loan.status, name
            assert found.is_warned == loan.is_warned
            for figure in ("collateral", "balance", "sold", "proceeds", "surplus", "returned"):
                assert Fraction(getattr(found, figure), ONE) == getattr(loan, figure), figure
            assert found.slices == len(loan.slices)
            for number, part in loan.slices.items():
                stored = self.stage.slice(number, name)
                assert (stored.state, stored.market) == (part["state"], part["market"])
                assert Fraction(stored.quantity, ONE) == part["quantity"]
            collateral[loan.borrower] += loan.collateral
            returned[loan.borrower] += loan.returned
        for borrower in BORROWERS:
            steel = f"user:{self.segment(borrower)}:BESKAR"
            assert self.posted(steel) == collateral[borrower] + returned[borrower]
            account = self.stage.store.account(steel)
            held = 0 if account is None else account.held
            assert Fraction(held, ONE) == collateral[borrower]
            assert self.posted(f"user:{self.segment(borrower)}:GC") == self.cash[borrower]
        assert self.posted("house:GC") == self.house
        assert self.posted("suspense:GC") == self.suspense_gc
        assert self.posted("suspense:BESKAR") == self.suspense_steel
        assert len(set(self.begun)) == len(self.begun)

    @hs.invariant()
    def request_ids_are_never_used_twice(self) -> None:
        records = self.stage.store.records(SLICE, limit=1_000)
        ids = [record.read(dict[str, Any])["request_id"] for record in records]
        assert len(set(ids)) == len(ids)
        named = {slice_id(name, n) for name, loan in self.loans.items() for n in loan.slices}
        assert {record.id for record in records} == named

    def teardown(self) -> None:
        """The book proves itself, and every decision comes out as it stands."""
        self.stage.prove()
        commands = {(kind.product, kind.name): kind for kind in known_commands()}
        until = self.stage.store.head().sequence
        store = self.stage.store
        for decision in replay(store, commands, lambda e: e.product == PRODUCT, until=until):
            assert decision.is_equal, (decision.difference, decision.entry)


class SQLiteMachine(LoansMachine):
    """The model beside a book in SQLite, which is closed and opened at every fall."""

    def new_store(self) -> Any:
        self.folder = tempfile.TemporaryDirectory()
        return self.open_store()

    def open_store(self) -> Any:
        return SQLiteStore.open(Path(self.folder.name), "main", new_incarnation="first")

    @hs.rule()
    def fall(self) -> None:
        self.stage.store.close()
        now = self.stage.now
        self.stage = Lending(self.open_store())
        self.stage.now = now

    def teardown(self) -> None:
        super().teardown()
        self.stage.store.close()
        self.folder.cleanup()


TestInMemory = LoansMachine.TestCase
TestInMemory.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestInSQLite = SQLiteMachine.TestCase
TestInSQLite.settings = settings(max_examples=8, stateful_step_count=40, deadline=None)


WEIGHTS = (6, 10, 1, 2, 10, 8, 14, 12, 20, 8, 2)


@pytest.mark.parametrize("seed", range(8))
def test_long_life_agrees_with_model(seed: int) -> None:
    """Longer lives than Hypothesis gives a machine, of more loans."""
    draw, machine = random.Random(seed), LoansMachine()
    for step in range(400):
        known = list(machine.loans)
        fresh = f"L{len(known)}:%"
        alive = [each for each in known if machine.loans[each].status != "liquidated"]
        name = draw.choice([*alive[-4:], *alive[-4:], *known[-2:], fresh])
        price, what = draw.choice(PRICES), draw.choices(range(11), weights=WEIGHTS)[0]
        going = [each for each in alive if machine.loans[each].status == "liquidating"]
        if going and what in {7, 8, 9}:
            name = draw.choice(going)
        match what:
            case 0:
                amount, collateral = draw.randrange(1, 2000), draw.randrange(1, 300)
                borrower = draw.choice(BORROWERS)
                if draw.random() < 0.5:
                    machine.apply(fresh, borrower, amount, collateral)
                else:
                    machine.lend_and_begin(fresh, borrower, collateral, price)
            case 1:
                machine.top_up(name, draw.choice(BORROWERS), draw.randrange(1, 10**11))
            case 2 if step > 250:
                machine.spend_and_close(draw.choice(BORROWERS))
            case 3:
                machine.set_pause(draw.choice([*PAUSES, "normal", "normal"]))
            case 4:
                machine.activate(name, draw.choice(PRICES[3:]), draw.random() < 0.1)
            case 5:
                machine.warn_or_rearm(name, price)
            case 6:
                machine.begin(name, draw.choice(PRICES[:4]))
            case 7:
                machine.place(name, price, draw.choice([0, *PRICES]))
            case 8:
                share = draw.choice([1, 1, 1, 1, 2, Fraction(1, 2)])
                worth = draw.choice([1, 1, 1, 2, Fraction(1, 2), 0])
                machine.fill(name, draw.randrange(2), share, worth, draw.random() < 0.7)
            case 9:
                machine.fail(name, draw.randrange(2))
            case 10:
                machine.fall()
        machine.book_agrees_with_model()
    statuses = {loan.status for loan in machine.loans.values()}
    assert "liquidated" in statuses
    machine.request_ids_are_never_used_twice()
    machine.teardown()

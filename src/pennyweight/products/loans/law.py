"""The law that `verify` holds the journal of loans to, without asking the rules again.

It keeps each loan as the entries so far make it, reckons what the next one had to do, and
compares: the money, the holds, the records, the events and the answer. What a slice may be
is reckoned from the quotes that it carries (the proof that a sale was minimal). A loan
that has ended is forgotten but for its name, so that it never begins again.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any, Protocol

import msgspec

from pennyweight.ledger.accounts import HOUSE, SUSPENSE, WORLD, Account, owed_account
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.entries import Entry, Transfer
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.money import LIMIT, format_amount, to_units
from pennyweight.ledger.records import RANK_MAX, RANK_MIN, Mark
from pennyweight.ledger.refusals import Refused
from pennyweight.products.loans.apply import ApplyForLoan, TopUpCollateral
from pennyweight.products.loans.life import (
    CONTROLS,
    ActivateLoan,
    ByPrice,
    Controls,
    RearmWarning,
    RejectPrice,
    SetLiquidations,
    WarnLoan,
)
from pennyweight.products.loans.liquidate import ORDERS, BeginLiquidation, PlaceSlices
from pennyweight.products.loans.shared import (
    ACTIVATED,
    APPLIED,
    BESKAR,
    GC,
    LIQUIDATED,
    LIQUIDATING,
    LOAN,
    ONE,
    PRODUCT,
    SCALE,
    SLICE,
    STEP,
    WARNED,
    Loan,
    LoanAnswer,
    OpenSlice,
    Quote,
    Slice,
    cash_account,
    collateral_account,
    deficit_account,
    slice_id,
    venue,
)

_WORLD_STEEL = f"{WORLD}:{BESKAR}"
_HOUSE_CASH = f"{HOUSE}:{GC}"
_SUSPENSE_CASH = f"{SUSPENSE}:{GC}"
_SUSPENSE_STEEL = f"{SUSPENSE}:{BESKAR}"
_LARGEST = 100
"""Whole BESKAR; more than that is never sold in one slice."""

_PERCENT = {"activate": 50, "rearm": 60, "warn": 70, "liquidate": 80}


class Book(Protocol):
    """What the law looks at of a book that is rebuilt from its journal."""

    accounts: dict[str, Account]
    assets: dict[str, Asset]
    open_holds: dict[int, Hold]
    counters: dict[str, int]
    time: int


class Wrong(Exception):
    """An entry is not what the law says; the message is the sentence."""


class _Life(msgspec.Struct):
    """A loan so far: as it was written last, in which version, what was ever posted for it.

    `oversold` is what venues sold beyond the collateral; `open` are the slices at venues.
    """

    loan: Loan
    version: int
    posted: int = 0
    oversold: int = 0
    open: dict[int, Slice] = {}


class _Filled(msgspec.Struct):
    """What counts of a slice that was filled."""

    loan: str
    number: int
    order_id: str
    quantity: str
    total: str


class _Failed(msgspec.Struct):
    """What counts of a slice that failed."""

    loan: str
    number: int
    reason: str


class _Due:
    """What an entry had to do, as it is found out step by step."""

    def __init__(self, loan: str, life: _Life) -> None:
        self.id = loan
        self.life = life
        self.loan = life.loan
        self.transfers: list[Transfer] = []
        self.holds: list[tuple[str, int, int, int]] = []
        """Verb, hold (0 for a new one), change of what is held, what remains."""
        self.slices: dict[str, Slice] = {}
        self.placed: tuple[str, ...] = ()
        self.events: list[tuple[str, dict[str, str]]] = []
        self.is_new = False

    def move(self, debit: str, credit: str, amount: int) -> None:
        """Expect a transfer, if it is one of anything."""
        if amount:
            self.transfers.append(Transfer(debit, credit, amount))

    def become(self, **fields: Any) -> None:
        """Expect these fields of the loan."""
        self.loan = msgspec.structs.replace(self.loan, **fields)

    def tell(self, name: str) -> None:
        """Expect an event about the loan as it is now."""
        loan = self.loan
        body = {"loan_id": self.id, "borrower_id": loan.borrower, "status": loan.status}
        body |= {"amount": _text(loan.amount), "outstanding_balance": _text(loan.balance)}
        self.events.append((name, body))


class LoansLaw:
    """Loans go forward only, money and collateral go where they must, and no sale is too large."""

    def __init__(self) -> None:
        """No loan yet."""
        self._lives: dict[str, _Life] = {}
        self._ended: set[str] = set()
        self._orders = 0
        self._pause = "normal"
        self._moved: Counter[str] = Counter()
        """What was moved in all, by what for."""
        self._told: Counter[str] = Counter()
        """The same, as the loans that have ended tell it."""
        self._is_broken = False
        """Whether something was wrong already, so that sums say nothing new."""

    def entry(self, entry: Entry, book: Book) -> str | None:
        """Return what is wrong with an entry, or None."""
        check = _CHECKS.get(entry.command) if entry.product == PRODUCT else None
        if check is None:
            return None
        try:
            check(self, entry, book)
        except Wrong as wrong:
            problem = str(wrong)
        except (KeyError, ValueError, msgspec.DecodeError, Refused) as error:
            problem = f"an entry of loans cannot be read: {error}"
        else:
            return None
        self._is_broken = True
        self._adopt(entry)
        return problem

    def end(self, book: Book) -> Iterable[tuple[int, str]]:
        """Compare the loans with the holds, and what all loans tell with all that was moved."""
        told = self._told.copy()
        held = {hold.id for hold in book.open_holds.values() if hold.owner == PRODUCT}
        for name, life in self._lives.items():
            loan = life.loan
            told.update(_sums(life))
            hold = book.open_holds.get(loan.hold)
            held.discard(loan.hold)
            if (0 if hold is None else hold.remaining) != loan.collateral:
                yield loan.entry, f"the collateral of loan {name!r} is not what its hold keeps"
        for hold_id in sorted(held):
            yield 0, f"hold {hold_id} is the collateral of no loan"
        if book.counters.get(ORDERS, 0) != self._orders:
            yield (
                0,
                f"{book.counters.get(ORDERS, 0)} orders are counted, {self._orders} were placed",
            )
        for what in sorted(told.keys() | self._moved.keys()):
            if told[what] != self._moved[what] and not self._is_broken:
                yield (
                    0,
                    f"the loans tell of {told[what]} {what}, their entries moved {self._moved[what]}",
                )

    # ── applications and collateral ───────────────────────────────────────────────

    def check_application(self, entry: Entry, book: Book) -> None:
        """A new loan, with its first collateral if there is any."""
        command = msgspec.json.decode(entry.fields, type=ApplyForLoan)
        if command.loan in self._lives or command.loan in self._ended:
            raise Wrong(f"loan {command.loan!r} is there already")
        amount = to_units(command.amount, SCALE)
        loan = Loan(command.borrower, amount, "new", book.time, entry.sequence)
        due = _Due(command.loan, _Life(loan, 0))
        due.is_new = True
        if command.collateral:
            self._post(due, to_units(command.collateral, SCALE))
        due.tell(APPLIED)
        self._compare(due, entry)

    def check_top_up(self, entry: Entry, book: Book) -> None:  # noqa: ARG002 - as all checks
        """Collateral from outside; all of it is one hold of the borrower's account."""
        command = msgspec.json.decode(entry.fields, type=TopUpCollateral)
        due = self._due(command.loan)
        if due.loan.status not in {"new", "active"}:
            raise Wrong(f"collateral is posted for a loan that is {due.loan.status}")
        if due.loan.borrower != command.borrower:
            raise Wrong("collateral is posted by another than the borrower")
        self._post(due, to_units(command.amount, SCALE))
        self._compare(due, entry)

    def _post(self, due: _Due, amount: int) -> None:
        loan = due.loan
        due.move(_WORLD_STEEL, collateral_account(loan.borrower), amount)
        collateral = loan.collateral + amount
        if loan.hold:
            due.holds.append(("void", loan.hold, -loan.collateral, 0))
        due.holds.append(("place", 0, collateral, collateral))
        due.become(collateral=collateral)
        due.life.posted += amount

    # ── what prices do ────────────────────────────────────────────────────────────

    def check_activation(self, entry: Entry, book: Book) -> None:
        """The whole amount from the house, at a loan-to-value of at most 50 percent."""
        command = msgspec.json.decode(entry.fields, type=ActivateLoan)
        due, ratio = self._by_price(command, book, "new")
        if ratio > Fraction(1, 2):
            raise Wrong("a loan becomes active above a loan-to-value of 50 percent")
        if self._pause == "halt_new_and_activation":
            raise Wrong("a loan becomes active while that is halted")
        loan = due.loan
        due.move(_HOUSE_CASH, cash_account(loan.borrower), loan.amount)
        due.become(status="active", balance=loan.amount, activated_at=book.time)
        due.tell(ACTIVATED)
        self._compare(due, entry)

    def check_warning(self, entry: Entry, book: Book) -> None:
        """Once, at 70 percent or above."""
        command = msgspec.json.decode(entry.fields, type=WarnLoan)
        due, ratio = self._by_price(command, book, "active")
        if ratio < Fraction(7, 10) or due.loan.is_warned:
            raise Wrong("a loan is warned below 70 percent, or a second time")
        due.become(is_warned=True)
        due.tell(WARNED)
        self._compare(due, entry)

    def check_rearming(self, entry: Entry, book: Book) -> None:
        """Below 60 percent, after a warning."""
        command = msgspec.json.decode(entry.fields, type=RearmWarning)
        due, ratio = self._by_price(command, book, "active")
        if ratio >= Fraction(6, 10) or not due.loan.is_warned:
            raise Wrong("a warning is re-armed at 60 percent or above, or without one")
        due.become(is_warned=False)
        self._compare(due, entry)

    def check_beginning(self, entry: Entry, book: Book) -> None:
        """Once, at 80 percent or above, with the first slices."""
        command = msgspec.json.decode(entry.fields, type=BeginLiquidation)
        due, ratio = self._by_price(command, book, "active")
        if ratio < Fraction(8, 10):
            raise Wrong("a liquidation begins below a loan-to-value of 80 percent")
        if self._pause != "normal":
            raise Wrong("a liquidation begins while they are paused")
        due.become(status="liquidating", liquidating_at=book.time)
        due.tell(LIQUIDATING)
        if due.loan.collateral < STEP:
            self._go_on(due, entry, book)
        else:
            self._place(due, entry, book, command.quotes, command.life)
        self._compare(due, entry)

    def _by_price(self, command: ByPrice, book: Book, status: str) -> tuple[_Due, Fraction]:
        """Return the loan, and its loan-to-value at the quotes that were given."""
        due = self._due(command.loan)
        loan = due.loan
        if loan.status != status:
            raise Wrong(f"{command.name} of a loan that is {loan.status}")
        if command.of_version != due.life.version:
            raise Wrong(f"it was decided on version {command.of_version} of the loan")
        if book.time > command.fresh_until:
            raise Wrong("the quotes were too old to decide by")
        size = min(loan.collateral, _LARGEST * ONE)
        prices = [_quoted(quote, size) for quote in command.quotes]
        price = max(prices, default=0)
        if not price or not loan.collateral:
            raise Wrong("nobody quotes a loan of this size")
        owed = loan.amount if status == "new" else loan.balance
        return due, Fraction(owed * ONE, loan.collateral * price)

    # ── slices ────────────────────────────────────────────────────────────────────

    def check_placing(self, entry: Entry, book: Book) -> None:
        """Further slices of a liquidation under way."""
        command = msgspec.json.decode(entry.fields, type=PlaceSlices)
        due = self._due(command.loan)
        if due.loan.status != "liquidating":
            raise Wrong(f"slices are placed for a loan that is {due.loan.status}")
        if command.of_version != due.life.version:
            raise Wrong(f"it was decided on version {command.of_version} of the loan")
        self._place(due, entry, book, command.quotes, command.life)
        self._compare(due, entry)

    def _place(
        self, due: _Due, entry: Entry, book: Book, quotes: Sequence[Quote], life: str
    ) -> None:
        """Hold each new slice to the quotes: what is missing, what there is, what is quoted."""
        parts = [read for r in entry.records if r.kind == SLICE for read in [r.read(Slice)]]
        if not parts:
            raise Wrong("no slice is placed")
        by_market = {quote.market: quote for quote in quotes}
        busy = {part.market for part in due.loan.open}
        for index, part in enumerate(parts):
            loan, quote = due.loan, by_market.get(part.market)
            if quote is None or part.market in busy:
                raise Wrong(f"slice {part.number} is placed where it cannot be")
            busy.add(part.market)
            missing = loan.balance - sum(other.expected for other in loan.open)
            free = loan.collateral - sum(other.quantity for other in loan.open)
            _check_size(part, quote, missing, free, is_last=index == len(parts) - 1)
            self._orders += 1
            number = loan.slices + 1
            expected = part.quantity * part.price // ONE
            out = OpenSlice(number, part.market, part.quantity, expected)
            due.become(slices=number, open=(*loan.open, out))
            due.slices[slice_id(due.id, number)] = Slice(
                due.id,
                loan.borrower,
                number,
                part.market,
                f"{life}-{self._orders}",
                part.quantity,
                part.price,
                tuple(quotes),
                book.time,
                loan.hold,
            )
        if entry.counters.get(ORDERS) != self._orders:
            raise Wrong(f"order {self._orders} is counted as {entry.counters.get(ORDERS)}")
        due.placed = tuple(due.slices)

    def check_fill(self, entry: Entry, book: Book) -> None:
        """Collateral to the venue; what it brings to the house, and above the balance to the user."""
        command = msgspec.json.decode(entry.fields, type=_Filled)
        due, part = self._slice(command.loan, command.number)
        sold, total = to_units(command.quantity, SCALE), to_units(command.total, SCALE)
        loan, holder = due.loan, venue(part.market)
        held, paid = min(sold, loan.collateral), min(total, loan.balance)
        surplus = total - paid
        due.move(collateral_account(loan.borrower), f"{holder}:{BESKAR}", held)
        if held:
            due.holds.append(("settle", loan.hold, -held, loan.collateral - held))
        due.move(_SUSPENSE_STEEL, f"{holder}:{BESKAR}", sold - held)
        due.move(f"{holder}:{GC}", _HOUSE_CASH, paid)
        if surplus:
            due.move(
                f"{holder}:{GC}", _surplus_account(loan.borrower, surplus, entry, book), surplus
            )
        due.slices[slice_id(due.id, command.number)] = msgspec.structs.replace(
            part,
            state="filled",
            sold=sold,
            total=total,
            detail=command.order_id,
            ended_at=book.time,
        )
        due.life.oversold += sold - held
        due.become(
            collateral=loan.collateral - held,
            balance=loan.balance - paid,
            sold=loan.sold + sold,
            proceeds=loan.proceeds + total,
            surplus=loan.surplus + surplus,
        )
        self._go_on(due, entry, book, command.number)
        self._compare(due, entry)

    def check_failure(self, entry: Entry, book: Book) -> None:
        """Nothing moves, and what the slice was to sell is free again."""
        command = msgspec.json.decode(entry.fields, type=_Failed)
        due, part = self._slice(command.loan, command.number)
        due.slices[slice_id(due.id, command.number)] = msgspec.structs.replace(
            part, state="failed", detail=command.reason, ended_at=book.time
        )
        self._go_on(due, entry, book, command.number)
        self._compare(due, entry)

    def _go_on(self, due: _Due, entry: Entry, book: Book, number: int = 0) -> None:
        """Without the slice of this number: the end, if nothing is open and nothing is to be done."""
        loan = due.loan
        left = tuple(part for part in loan.open if part.number != number)
        due.become(open=left)
        if left or (loan.balance and loan.collateral >= STEP):
            return
        if loan.collateral:
            due.holds.append(("void", loan.hold, -loan.collateral, 0))
        if loan.balance:
            due.move(_deficit_account(due.id, loan.balance, entry, book), _HOUSE_CASH, loan.balance)
        due.become(
            status="liquidated", collateral=0, returned=loan.collateral, liquidated_at=book.time
        )
        body = {
            "loan_id": due.id,
            "borrower_id": loan.borrower,
            "collateral_sold": _text(loan.sold),
            "collateral_sold_value": _text(loan.proceeds),
            "outstanding_collateral": _text(loan.collateral),
            "outstanding_balance": _text(loan.balance),
        }
        due.events.append((LIQUIDATED, body))

    # ── what stands beside the loans ──────────────────────────────────────────────

    def check_pause(self, entry: Entry, book: Book) -> None:  # noqa: ARG002 - as all checks
        """A record, and nothing else."""
        command = msgspec.json.decode(entry.fields, type=SetLiquidations)
        self._pause = command.level
        is_right = len(entry.records) == 1 and entry.records[0].kind == CONTROLS
        if not is_right or entry.records[0].read(Controls) != Controls(command.level):
            raise Wrong("a pause is not written as it was asked for")
        if entry.transfers or entry.holds or entry.events:
            raise Wrong("a pause does something else")

    def check_rejection(self, entry: Entry, book: Book) -> None:  # noqa: ARG002 - as all checks
        """Nothing but the entry."""
        if entry.transfers or entry.holds or entry.records or entry.events:
            raise Wrong("a price that was rejected does something")

    # ── comparing ─────────────────────────────────────────────────────────────────

    def _due(self, loan_id: str) -> _Due:
        life = self._lives.get(loan_id)
        if life is None:
            fate = "has ended" if loan_id in self._ended else "is not there"
            raise Wrong(f"loan {loan_id!r} {fate}")
        return _Due(loan_id, msgspec.structs.replace(life))

    def _slice(self, loan_id: str, number: int) -> tuple[_Due, Slice]:
        due = self._due(loan_id)
        part = due.life.open.get(number)
        if part is None:
            raise Wrong(f"slice {number} of loan {loan_id!r} is not open")
        return due, part

    def _compare(self, due: _Due, entry: Entry) -> None:
        """Compare an entry with what it had to do, and take the loan over."""
        _compare_money(due, entry)
        placed = [change for change in entry.holds if change.verb == "place"]
        if placed:
            due.become(hold=placed[0].hold.id)
        previous = 0 if due.is_new else due.life.loan.entry
        due.become(entry=entry.sequence, previous=previous)
        version = due.life.version + 1
        _compare_records(due, entry, version)
        answer = msgspec.json.decode(entry.answer, type=LoanAnswer)
        if answer != LoanAnswer(due.id, due.loan.status, due.placed):
            raise Wrong(f"it answers {answer}")
        if [(event.name, event.body) for event in entry.events] != due.events:
            raise Wrong("it does not tell what became of the loan")
        life = due.life
        still = {n: part for n, part in life.open.items() if slice_id(due.id, n) not in due.slices}
        still |= {part.number: part for part in due.slices.values() if part.state == "open"}
        life.loan, life.version, life.open = due.loan, version, still
        self._count(due)
        self._keep(due.id, life)

    def _count(self, due: _Due) -> None:
        """Add up what was moved."""
        for transfer in due.transfers:
            debit, credit = transfer.debit_account, transfer.credit_account
            if debit == _WORLD_STEEL:
                what = "posted"
            elif debit == _HOUSE_CASH:
                what = "paid out"
            elif credit.endswith(f":{BESKAR}"):
                what = "sold"
            elif debit.startswith("venue:"):
                what = "raised"
            else:
                what = "missing"
            self._moved[what] += transfer.amount

    def _keep(self, loan_id: str, life: _Life) -> None:
        """Keep a loan, or add it to those that have ended."""
        if life.loan.status != "liquidated":
            self._lives[loan_id] = life
            return
        loan = life.loan
        if life.posted + life.oversold != loan.sold + loan.returned:
            raise Wrong("what was sold and given back is not what was posted")
        if loan.amount != loan.proceeds - loan.surplus + loan.balance:
            raise Wrong("what was raised and what is missing is not what was paid out")
        self._told.update(_sums(life))
        self._lives.pop(loan_id, None)
        self._ended.add(loan_id)

    def _adopt(self, entry: Entry) -> None:
        """Take over what a wrong entry says of its loan, so that its damage is told once."""
        self._orders = entry.counters.get(ORDERS, self._orders)
        for record in entry.records:
            try:
                if record.kind == LOAN and record.id not in self._ended:
                    loan = record.read(Loan)
                    life = self._lives.get(record.id) or _Life(loan, 0, open={})
                    life.loan, life.version = loan, record.version
                    self._lives[record.id] = life
                elif record.kind == SLICE:
                    part = record.read(Slice)
                    life = self._lives[part.loan]
                    life.open = {**life.open, part.number: part}
            except (msgspec.DecodeError, KeyError):
                continue


def _sums(life: _Life) -> dict[str, int]:
    """Return what a loan tells was moved for it."""
    loan = life.loan
    is_over = loan.status == "liquidated"
    return {
        "posted": loan.collateral + loan.sold + loan.returned - life.oversold,
        "paid out": 0 if loan.status == "new" else loan.amount,
        "sold": loan.sold,
        "raised": loan.proceeds,
        "missing": loan.balance if is_over else 0,
    }


def _compare_money(due: _Due, entry: Entry) -> None:
    """Compare the transfers, but for what an account pays back of what it owes, and the holds."""
    cash = cash_account(due.loan.borrower)
    made = [
        transfer
        for transfer in entry.transfers
        if (transfer.debit_account, transfer.credit_account) != (cash, owed_account(cash))
    ]
    if made != due.transfers:
        raise Wrong(f"it moves {_shown(made)}; right is {_shown(due.transfers)}")
    account_id = collateral_account(due.loan.borrower)
    changes = []
    for change in entry.holds:
        hold = change.hold
        if hold.account != account_id or hold.owner != PRODUCT or hold.expires_at is not None:
            raise Wrong(f"hold {hold.id} is not collateral of {due.loan.borrower!r}")
        number = 0 if change.verb == "place" else hold.id
        changes.append((change.verb, number, change.held, hold.remaining))
    if changes != due.holds:
        raise Wrong(f"it changes holds by {changes}; right is {due.holds}")


def _compare_records(due: _Due, entry: Entry, version: int) -> None:
    """Compare the loan and its slices, with what they are listed by."""
    seen = set()
    for record in entry.records:
        seen.add((record.kind, record.id))
        if record.kind == LOAN and record.id == due.id:
            loan = record.read(Loan)
            if loan != due.loan or record.version != version:
                raise Wrong(f"the loan is written with {_differing(due.loan, loan)}")
            labels = (f"status:{loan.status}", f"borrower:{loan.borrower}")
            if record.labels != labels or record.marks != tuple(_marks(loan)):
                raise Wrong("the loan is not listed by what it waits for")
        elif record.kind == SLICE and record.id in due.slices:
            part, right = record.read(Slice), due.slices[record.id]
            if part != right:
                raise Wrong(f"slice {right.number} is written with {_differing(right, part)}")
            if record.labels != (f"loan:{due.id}", f"state:{part.state}"):
                raise Wrong(f"slice {right.number} is not listed as it should be")
        else:
            raise Wrong(f"it writes {record.kind} {record.id!r}")
    if seen != {(LOAN, due.id), *((SLICE, name) for name in due.slices)}:
        raise Wrong("the loan or one of its slices is not written")


def _quoted(quote: Quote, size: int) -> int:
    """Return the price at the smallest listed quantity that is enough, 0 if none is."""
    prices = [level.sell for level in quote.levels if level.quantity * ONE >= size]
    return prices[0] if prices else 0


def _check_size(part: Slice, quote: Quote, missing: int, free: int, *, is_last: bool) -> None:
    """Check that a slice sells no more than is needed; the last one exactly what can be sold of it.

    At its own quote: the least quantity that brings what is missing, in steps of 10^-8; not
    more than the collateral, nor than the market quotes, nor than 100.
    """
    price = _quoted(quote, part.quantity)
    if not price or price != part.price:
        raise Wrong(f"slice {part.number} is priced at {part.price}, its quote says {price}")
    enough = math.ceil(Fraction(missing * ONE, price * STEP)) * STEP
    whole = free - free % STEP
    largest = min(quote.levels[-1].quantity, _LARGEST) * ONE
    most = min(enough, whole, largest)
    if not 0 < part.quantity <= most or part.quantity % STEP or (is_last and part.quantity < most):
        raise Wrong(
            f"slice {part.number} sells {_text(part.quantity)}; at its quote "
            f"{_text(most)} is just enough"
        )
    for level in quote.levels:  # a smaller sale at a better price would do
        smaller = math.ceil(Fraction(missing * ONE, level.sell * STEP)) * STEP
        if smaller <= level.quantity * ONE and smaller < part.quantity:
            raise Wrong(f"slice {part.number} sells more than {_text(smaller)}, which is enough")


def _surplus_account(borrower: str, surplus: int, entry: Entry, book: Book) -> str:
    """Return where a surplus goes: the borrower's account, suspense where that cannot take it."""
    account = book.accounts[cash_account(borrower)]
    is_passed_by = any(t.credit_account == _SUSPENSE_CASH for t in entry.transfers)
    is_full = is_passed_by and account.posted + surplus >= LIMIT
    return _SUSPENSE_CASH if account.is_closed or is_full else account.id


def _deficit_account(loan_id: str, deficit: int, entry: Entry, book: Book) -> str:
    """Return what pays a deficit: the loan's own account, suspense where that cannot."""
    account_id = deficit_account(loan_id)
    account = book.accounts.get(account_id)
    if account is None or not any(t.debit_account == _SUSPENSE_CASH for t in entry.transfers):
        return account_id
    is_too_low = account.floor is not None and account.available - deficit < account.floor
    return _SUSPENSE_CASH if account.is_closed or is_too_low else account_id


def _marks(loan: Loan) -> Iterable[Mark]:
    """Yield what a loan waits for, rounded so that what is due is always found."""
    if not loan.collateral or loan.status not in {"new", "active"}:
        return
    level = next((n for n in (1, 10, 50) if n * ONE >= loan.collateral), _LARGEST)
    owed = loan.amount if loan.status == "new" else loan.balance
    active = ("liquidate", "rearm" if loan.is_warned else "warn")
    for what in ("activate",) if loan.status == "new" else active:
        trigger = Fraction(owed * 100 * ONE, _PERCENT[what] * loan.collateral * STEP)
        is_falling = what in {"liquidate", "warn"}
        rank = -math.ceil(trigger) if is_falling else math.floor(trigger)
        yield Mark(f"loans.{what}.{level}", max(RANK_MIN, min(RANK_MAX, rank)))


def _text(units: int) -> str:
    return format_amount(units, SCALE)


def _shown(transfers: Sequence[Transfer]) -> str:
    """Write transfers as text."""
    return (
        ", ".join(f"{t.debit_account} to {t.credit_account} {t.amount}" for t in transfers)
        or "nothing"
    )


def _differing(right: Loan | Slice, told: Loan | Slice) -> str:
    """Name the first field in which two differ."""
    for name in right.__struct_fields__:
        if getattr(right, name) != getattr(told, name):
            return f"{name} {getattr(told, name)!r}; right is {getattr(right, name)!r}"
    return "another version"


_Check = Callable[[LoansLaw, Entry, Book], None]

_CHECKS: dict[str, _Check] = {
    "apply_for_loan": LoansLaw.check_application,
    "top_up_collateral": LoansLaw.check_top_up,
    "activate_loan": LoansLaw.check_activation,
    "warn_loan": LoansLaw.check_warning,
    "rearm_warning": LoansLaw.check_rearming,
    "begin_liquidation": LoansLaw.check_beginning,
    "place_slices": LoansLaw.check_placing,
    "fill_slice": LoansLaw.check_fill,
    "fail_slice": LoansLaw.check_failure,
    SetLiquidations.name: LoansLaw.check_pause,
    RejectPrice.name: LoansLaw.check_rejection,
}

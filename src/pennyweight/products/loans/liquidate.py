"""A liquidation, from its beginning to its end: slices are placed, filled, or fail.

A slice is committed before its order goes out, under the request id that the order
carries; so whoever goes on after a fall asks the venue with the same id. While it is open
its quantity is in doubt and sold nowhere else. Once begun, a liquidation goes on until the
balance is raised or the collateral is gone, wherever the prices go.
"""

import msgspec

from pennyweight.ledger.accounts import HOUSE, SUSPENSE, user_holder
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.money import LIMIT
from pennyweight.ledger.records import Record
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.loans.life import ByPrice, find_version, not_due, pause_of
from pennyweight.products.loans.plan import plan
from pennyweight.products.loans.shared import (
    BESKAR,
    GC,
    LIQUIDATED,
    LIQUIDATING,
    LOAN,
    LTV_LIQUIDATED,
    MARKETS,
    PRODUCT,
    SLICE,
    Found,
    LiquidationEvent,
    Loan,
    LoanAnswer,
    OpenSlice,
    Quote,
    Slice,
    cash_account,
    check_quotes,
    deficit_account,
    event_of,
    find_loan,
    is_at_least,
    put_loan,
    read_slice,
    slice_id,
    venue,
)

ORDERS = "loans.order"
"""The counter of orders; with the life of the book it makes their request ids."""


class BeginLiquidation(ByPrice, frozen=True):
    """Begin to liquidate an active loan at 80 percent or above, and place its first slices.

    Where there is less collateral than can be traded, that is also the end. `life` names the
    life of the book and is part of the orders' request ids. Refusals: see `ByPrice.examine`;
    liquidations_paused.
    """

    name = "begin_liquidation"
    counted = ("loan", "borrower", "of_version", "quotes", "fresh_until", "life")
    answer_type = LoanAnswer

    life: str

    def is_due(self, loan: Loan, price: int) -> bool:
        """See `ByPrice`."""
        is_high = is_at_least(LTV_LIQUIDATED, loan.balance, loan.collateral, price)
        return loan.status == "active" and is_high

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        found = self.examine(draft)
        if pause_of(draft) != "normal":
            refuse(Reason.LIQUIDATIONS_PAUSED, "no new liquidation begins while they are paused")
        begun = msgspec.structs.replace(found.loan, status="liquidating", liquidating_at=draft.time)
        draft.emit(LIQUIDATING, event_of(self.loan, begun, draft))
        if not begun.free:
            return _go_on(draft, self.loan, Found(found.record, begun))
        return _place(draft, self.loan, Found(found.record, begun), self.quotes, self.life)


class PlaceSlices(Command, frozen=True):
    """Place the next slices of a liquidation, with the latest quotes there are, however old.

    A market where a slice of this loan is still open gets no other. Given by who carries
    liquidations out, for one version, without a key. Refusals: quotes_invalid,
    loan_not_found, loan_changed, loan_not_due where nothing is to be placed.
    """

    name = "place_slices"
    product = PRODUCT
    counted = ("loan", "borrower", "of_version", "quotes", "life")
    answer_type = LoanAnswer

    loan: str
    borrower: str
    of_version: int
    quotes: tuple[Quote, ...]
    life: str

    def reads(self, wanted: Wanted) -> None:
        """The loan and its borrower."""
        wanted.record(LOAN, self.loan)
        wanted.holder(user_holder(self.borrower))

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        check_quotes(self.quotes)
        found = find_version(draft, self.loan, self.of_version)
        if found.loan.status != "liquidating":
            not_due(found.loan)
        answer = _place(draft, self.loan, found, self.quotes, self.life)
        if not answer.placed:
            refuse(Reason.LOAN_NOT_DUE, "nothing can be placed now: open slices may cover it")
        return answer


class FillSlice(Command, frozen=True):
    """Book what a venue says it sold for a slice, and for how much in all; a fact.

    `hold` is where the collateral is, so that it is read along. What is raised above the
    balance is the borrower's. A venue that sold more than there is of the collateral has
    sold the rest from suspense. Refusals: those of an amount, loan_not_found,
    slice_not_found, slice_ended (told twice), balance_too_large.
    """

    name = "fill_slice"
    product = PRODUCT
    counted = ("loan", "number", "order_id", "quantity", "total")
    answer_type = LoanAnswer

    loan: str
    number: int
    order_id: str
    quantity: str
    total: str
    borrower: str
    hold: int

    def reads(self, wanted: Wanted) -> None:
        """The loan, its slice, hold and borrower, and whom a sale pays."""
        _want_slice(wanted, self.loan, self.number, self.borrower)
        wanted.hold(self.hold, user_holder(self.borrower))
        wanted.holder(SUSPENSE)
        for market in MARKETS:
            wanted.holder(venue(market))

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        sold = draft.units(self.quantity, BESKAR)
        total = draft.units(self.total, GC, is_zero_allowed=True)
        found, record, part = _find_open(draft, self.loan, self.number)
        # ── from here on it is a fact ──
        loan, holder = found.loan, venue(part.market)
        held, steel = min(sold, loan.collateral), draft.own_account(f"{holder}:{BESKAR}")
        if held:
            draft.settle_hold(loan.hold, steel, held, is_rest_kept=True)
        if sold > held:
            draft.transfer(draft.own_account(f"{SUSPENSE}:{BESKAR}"), steel, sold - held)
        paid, surplus = min(total, loan.balance), max(0, total - loan.balance)
        cash = draft.own_account(f"{holder}:{GC}")
        if paid:
            draft.transfer(cash, draft.own_account(f"{HOUSE}:{GC}"), paid)
        if surplus:
            draft.transfer(cash, _cash_or_suspense(draft, loan.borrower, surplus), surplus)
        _end_slice(
            draft,
            record,
            msgspec.structs.replace(
                part, state="filled", sold=sold, total=total, detail=self.order_id
            ),
        )
        after = msgspec.structs.replace(
            _without(loan, self.number),
            collateral=loan.collateral - held,
            balance=loan.balance - paid,
            sold=loan.sold + sold,
            proceeds=loan.proceeds + total,
            surplus=loan.surplus + surplus,
        )
        return _go_on(draft, self.loan, Found(found.record, after))


class FailSlice(Command, frozen=True):
    """Note that a venue surely did not fill a slice; what it was to sell is free again.

    Refusals: slice_not_found, slice_ended.
    """

    name = "fail_slice"
    product = PRODUCT
    counted = ("loan", "number", "reason")
    answer_type = LoanAnswer

    loan: str
    number: int
    reason: str
    borrower: str
    hold: int

    def reads(self, wanted: Wanted) -> None:
        """The loan, its slice and borrower; the hold, as this may end the liquidation."""
        _want_slice(wanted, self.loan, self.number, self.borrower)
        wanted.hold(self.hold, user_holder(self.borrower))

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        found, record, part = _find_open(draft, self.loan, self.number)
        _end_slice(draft, record, msgspec.structs.replace(part, state="failed", detail=self.reason))
        return _go_on(draft, self.loan, Found(found.record, _without(found.loan, self.number)))


# ── slices ────────────────────────────────────────────────────────────────────────


def _place(
    draft: Draft, loan_id: str, found: Found, quotes: tuple[Quote, ...], life: str
) -> LoanAnswer:
    """Place what the plan says, and write the loan."""
    loan = found.loan
    busy = {part.market for part in loan.open}
    usable = [quote for quote in quotes if quote.market not in busy]
    placed = []
    for part in plan(loan.remaining, loan.free, usable):
        number = loan.slices + 1
        name = slice_id(loan_id, number)
        order = Slice(
            loan_id,
            loan.borrower,
            number,
            part.market,
            f"{life}-{draft.next_number(ORDERS)}",
            part.quantity,
            part.price,
            quotes,
            draft.time,
            loan.hold,
        )
        draft.put_record(SLICE, name, order, before=None, labels=(f"loan:{loan_id}", "state:open"))
        out = OpenSlice(number, part.market, part.quantity, part.expected)
        loan = msgspec.structs.replace(loan, slices=number, open=(*loan.open, out))
        placed.append(name)
    put_loan(draft, loan_id, loan, found.record)
    return LoanAnswer(loan_id, loan.status, tuple(placed))


def _want_slice(wanted: Wanted, loan_id: str, number: int, borrower: str) -> None:
    wanted.record(LOAN, loan_id)
    wanted.record(SLICE, slice_id(loan_id, number))
    wanted.holder(user_holder(borrower))
    wanted.holder(HOUSE)


def _find_open(draft: Draft, loan_id: str, number: int) -> tuple[Found, Record, Slice]:
    """Return a loan and one of its open slices. Refusals: loan_not_found, slice_not_found, slice_ended."""
    found = find_loan(draft, loan_id)
    record = draft.record(SLICE, slice_id(loan_id, number))
    if record is None:
        refuse(Reason.SLICE_NOT_FOUND, f"the loan has no slice {number}", slice=number)
    part = read_slice(record)
    if part.state != "open":
        refuse(Reason.SLICE_ENDED, f"slice {number} is {part.state} already", state=part.state)
    return found, record, part


def _end_slice(draft: Draft, record: Record, part: Slice) -> None:
    ended = msgspec.structs.replace(part, ended_at=draft.time)
    labels = (f"loan:{part.loan}", f"state:{part.state}")
    draft.put_record(SLICE, record.id, ended, before=record, labels=labels)


def _without(loan: Loan, number: int) -> Loan:
    """Return a loan without one of its open slices."""
    return msgspec.structs.replace(
        loan, open=tuple(part for part in loan.open if part.number != number)
    )


# ── the end ───────────────────────────────────────────────────────────────────────


def _go_on(draft: Draft, loan_id: str, found: Found) -> LoanAnswer:
    """End a liquidation that has nothing more to do, and write the loan.

    It ends when no slice is open, and the balance is raised or no collateral is left that
    could be sold. What the borrower still owes then is booked as the loan's deficit.
    """
    loan = found.loan
    if not loan.open and (not loan.balance or not loan.free):
        loan = _finish(draft, loan_id, loan)
    put_loan(draft, loan_id, loan, found.record)
    return LoanAnswer(loan_id, loan.status)


def _finish(draft: Draft, loan_id: str, loan: Loan) -> Loan:
    """Give back what is left, book what is missing, and tell of it."""
    if loan.collateral:
        draft.void_hold(loan.hold)
    if loan.balance:
        account_id = _deficit_or_suspense(draft, loan_id, loan.balance)
        draft.transfer(account_id, draft.own_account(f"{HOUSE}:{GC}"), loan.balance)
    ended = msgspec.structs.replace(
        loan,
        status="liquidated",
        collateral=0,
        returned=loan.collateral,
        liquidated_at=draft.time,
    )
    draft.emit(
        LIQUIDATED,
        LiquidationEvent(
            loan_id,
            loan.borrower,
            draft.text(ended.sold, BESKAR),
            draft.text(ended.proceeds, GC),
            draft.text(ended.returned, BESKAR),
            draft.text(ended.balance, GC),
        ),
    )
    return ended


def _cash_or_suspense(draft: Draft, borrower: str, surplus: int) -> str:
    """Return where a borrower's surplus goes: the account, or suspense where that cannot take it."""
    account = draft.account(cash_account(borrower))  # opened when the loan was paid out
    if account.is_closed or account.posted + surplus >= LIMIT:
        return draft.own_account(f"{SUSPENSE}:{GC}")
    return account.id


def _deficit_or_suspense(draft: Draft, loan_id: str, deficit: int) -> str:
    """Return what pays a deficit: the loan's own account, which anybody may have opened before.

    Suspense, where it was opened with a floor, or closed: a sale cannot be refused for that.
    """
    account_id = deficit_account(loan_id)
    account = draft.find_account(account_id)
    if account is None:
        return draft.open_account(account_id, floor=None).id
    is_too_low = account.floor is not None and account.available - deficit < account.floor
    if account.is_closed or is_too_low:
        return draft.own_account(f"{SUSPENSE}:{GC}")
    return account_id

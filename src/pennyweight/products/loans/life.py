"""What prices do to a loan: it becomes active, is warned, and is due for liquidation.

These commands are given by who watches the prices, for one version of a loan, with the
quotes that made it due. They have no keys: a loan that has changed meanwhile refuses them
(loan_changed), and quotes that do not bear them out, too (loan_not_due). So what stands
in the journal is enough to decide every one of them again.
"""

from typing import ClassVar, Literal, NoReturn

import msgspec

from pennyweight.ledger.accounts import HOUSE, user_holder
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.loans.shared import (
    ACTIVATED,
    GC,
    LOAN,
    LTV_ACTIVE,
    LTV_REARMED,
    LTV_WARNED,
    PRODUCT,
    WARNED,
    Found,
    Loan,
    LoanAnswer,
    Quote,
    cash_account,
    check_quotes,
    event_of,
    find_loan,
    is_at_least,
    is_at_most,
    level_of,
    mark_price,
    put_loan,
)

DESK = f"{HOUSE}:loans"
"""The holder with whom the pause is kept, so that it is always at hand."""

CONTROLS = "loans.controls"
"""Kind of the one record of the pause; its id is "all"."""

Pause = Literal["normal", "no_new", "halt_new_and_activation"]
"""No new liquidations begin; or no loan becomes active either. What has begun goes on."""


class Controls(msgspec.Struct, frozen=True):
    """How far liquidations are paused."""

    level: Pause = "normal"


class SetLiquidations(Command, frozen=True):
    """Pause new liquidations, and activations if so wanted, or let them go on. Refuses nothing."""

    name = "set_liquidations"
    product = PRODUCT
    counted = ("level",)
    answer_type = Controls

    level: Pause

    def reads(self, wanted: Wanted) -> None:
        """The desk."""
        wanted.holder(DESK)

    def decide(self, draft: Draft) -> Controls:
        """See the class."""
        before = draft.record(CONTROLS, "all", holder=DESK)
        after = Controls(self.level)
        draft.put_record(CONTROLS, "all", after, before=before, holder=DESK)
        return after


class RejectPrice(Command, frozen=True):
    """Keep what came on a price queue and could not be read: the audit of what was dropped.

    `payload` is its beginning, as text. Refuses nothing.
    """

    name = "reject_price"
    product = PRODUCT
    counted = ("queue", "message", "reason", "payload")
    answer_type = Literal["rejected"]

    queue: str
    message: str
    reason: str
    payload: str

    def reads(self, wanted: Wanted) -> None:
        """Nothing."""

    def decide(self, draft: Draft) -> str:  # noqa: ARG002 - the entry itself is all
        """See the class."""
        return "rejected"


class ByPrice(Command, frozen=True):
    """What all decisions by price carry: the loan in one version, the quotes, how long they count.

    `fresh_until` is in microseconds of the book's time.
    """

    product = PRODUCT
    counted: ClassVar[tuple[str, ...]] = (
        "loan",
        "borrower",
        "of_version",
        "quotes",
        "fresh_until",
    )

    loan: str
    borrower: str
    of_version: int
    quotes: tuple[Quote, ...]
    fresh_until: int

    def reads(self, wanted: Wanted) -> None:
        """The loan and its borrower, the desk and the house."""
        wanted.record(LOAN, self.loan)
        wanted.holder(user_holder(self.borrower))
        wanted.holder(DESK)
        wanted.holder(HOUSE)

    def is_due(self, loan: Loan, price: int) -> bool:
        """Whether a loan is due for this at the price it is valued at."""
        raise NotImplementedError

    def examine(self, draft: Draft) -> Found:
        """Return the loan, which is due.

        Refusals: quotes_invalid, loan_not_found, loan_changed, loan_not_due (also where
        nobody quotes its size), quotes_stale.
        """
        check_quotes(self.quotes)
        found = find_version(draft, self.loan, self.of_version)
        price = mark_price(self.quotes, level_of(found.loan.collateral))
        if price is None:
            refuse(Reason.LOAN_NOT_DUE, "no market quotes the size of this loan")
        if not self.is_due(found.loan, price):
            not_due(found.loan)
        if draft.time > self.fresh_until:
            refuse(Reason.QUOTES_STALE, "the quotes are too old to decide by")
        return found


class ActivateLoan(ByPrice, frozen=True):
    """Pay a new loan out, once it is worth at most half of its collateral.

    Refusals: account_closed, and see `ByPrice.examine`; liquidations_paused,
    too_many_accounts, balance_too_large.
    """

    name = "activate_loan"
    answer_type = LoanAnswer

    def is_due(self, loan: Loan, price: int) -> bool:
        """See `ByPrice`."""
        is_covered = is_at_most(LTV_ACTIVE, loan.amount, loan.collateral, price)
        return loan.status == "new" and is_covered

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        check_quotes(self.quotes)
        loan = find_loan(draft, self.loan).loan
        account = draft.find_account(cash_account(loan.borrower))
        if account is not None and account.is_closed:
            refuse(Reason.ACCOUNT_CLOSED, f"account {account.id!r} is closed", account=account.id)
        found = self.examine(draft)
        if pause_of(draft) == "halt_new_and_activation":
            refuse(Reason.LIQUIDATIONS_PAUSED, "no loan becomes active while they are halted")
        account_id = draft.own_account(cash_account(loan.borrower))
        draft.transfer(draft.own_account(f"{HOUSE}:{GC}"), account_id, loan.amount)
        active = msgspec.structs.replace(
            loan, status="active", balance=loan.amount, activated_at=draft.time
        )
        put_loan(draft, self.loan, active, found.record)
        draft.emit(ACTIVATED, event_of(self.loan, active, draft))
        return LoanAnswer(self.loan, active.status)


class WarnLoan(ByPrice, frozen=True):
    """Note that an active loan stands at 70 percent or above; once, until it is re-armed.

    Refusals: see `ByPrice.examine`.
    """

    name = "warn_loan"
    answer_type = LoanAnswer

    def is_due(self, loan: Loan, price: int) -> bool:
        """See `ByPrice`."""
        is_high = is_at_least(LTV_WARNED, loan.balance, loan.collateral, price)
        return loan.status == "active" and not loan.is_warned and is_high

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        found = self.examine(draft)
        warned = msgspec.structs.replace(found.loan, is_warned=True)
        put_loan(draft, self.loan, warned, found.record)
        draft.emit(WARNED, event_of(self.loan, warned, draft))
        return LoanAnswer(self.loan, warned.status)


class RearmWarning(ByPrice, frozen=True):
    """Let a warned loan be warned again: it stands below 60 percent.

    Refusals: see `ByPrice.examine`.
    """

    name = "rearm_warning"
    answer_type = LoanAnswer

    def is_due(self, loan: Loan, price: int) -> bool:
        """See `ByPrice`."""
        is_still_high = is_at_least(LTV_REARMED, loan.balance, loan.collateral, price)
        return loan.status == "active" and loan.is_warned and not is_still_high

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        found = self.examine(draft)
        loan = found.loan
        put_loan(draft, self.loan, msgspec.structs.replace(loan, is_warned=False), found.record)
        return LoanAnswer(self.loan, loan.status)


def find_version(draft: Draft, loan_id: str, version: int) -> Found:
    """Return a loan that is still in this version. Refusals: loan_not_found, loan_changed."""
    found = find_loan(draft, loan_id)
    if found.record.version != version:
        refuse(
            Reason.LOAN_CHANGED,
            f"the loan is in version {found.record.version}, not in {version}",
            version=found.record.version,
        )
    return found


def pause_of(draft: Draft) -> Pause:
    """Return how far liquidations are paused."""
    record = draft.record(CONTROLS, "all", holder=DESK)
    if record is None:
        return "normal"
    controls: Controls = record.read(Controls)
    return controls.level


def not_due(loan: Loan) -> NoReturn:
    """Refuse what a loan's status or the quotes do not bear out. Refusal: loan_not_due."""
    refuse(
        Reason.LOAN_NOT_DUE,
        f"a loan that is {loan.status} is not due for this at these quotes",
        status=loan.status,
    )

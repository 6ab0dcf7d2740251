"""What a bank asks for: a loan is applied for, and collateral is posted until it is enough."""

import msgspec

from pennyweight.ledger.accounts import HOLDS_OPEN_MAX, WORLD, user_holder
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.loans.shared import (
    APPLIED,
    BESKAR,
    GC,
    LOAN,
    PRODUCT,
    Found,
    Loan,
    LoanAnswer,
    check_borrower,
    check_loan_id,
    collateral_account,
    event_of,
    find_loan,
    put_loan,
)


class ApplyForLoan(Command, frozen=True):
    """Register a loan, with its first collateral if there is any. Nothing is paid out yet.

    Amounts are decimal text, of GC and of BESKAR. Refusals: user_id_invalid,
    loan_id_invalid, those of an amount, loan_exists, and with collateral account_closed,
    too_many_accounts, too_many_holds, balance_too_large.
    """

    name = "apply_for_loan"
    product = PRODUCT
    counted = ("loan", "borrower", "amount", "collateral")
    answer_type = LoanAnswer

    loan: str
    borrower: str
    amount: str
    collateral: str = ""

    def reads(self, wanted: Wanted) -> None:
        """Whether the loan is there, and the borrower where collateral comes with it."""
        check_borrower(self.borrower)
        check_loan_id(self.loan)
        wanted.record(LOAN, self.loan)
        wanted.holder(user_holder(self.borrower))
        if self.collateral:
            wanted.holder(WORLD)

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        amount = draft.units(self.amount, GC)
        added = draft.units(self.collateral, BESKAR) if self.collateral else 0
        if added:
            _check_account(draft, self.borrower)
        if draft.record(LOAN, self.loan) is not None:
            refuse(
                Reason.LOAN_EXISTS,
                f"there is a loan {self.loan[:80]!r} already",
                loan=self.loan[:80],
            )
        loan = Loan(self.borrower, amount, "new", draft.time, draft.sequence)
        if added:
            loan = _with_collateral(draft, loan, added)
        put_loan(draft, self.loan, loan, None)
        draft.emit(APPLIED, event_of(self.loan, loan, draft))
        return LoanAnswer(self.loan, loan.status)


class TopUpCollateral(Command, frozen=True):
    """Post more BESKAR for a loan: it comes from outside, and is held on the borrower's account.

    Refusals: user_id_invalid, loan_id_invalid, those of an amount, loan_not_found,
    account_closed, borrower_mismatch, loan_liquidating, loan_liquidated (nothing can be
    posted once a liquidation has begun), too_many_accounts, too_many_holds,
    balance_too_large.
    """

    name = "top_up_collateral"
    product = PRODUCT
    counted = ("loan", "borrower", "amount")
    answer_type = LoanAnswer

    loan: str
    borrower: str
    amount: str

    def reads(self, wanted: Wanted) -> None:
        """The loan, where collateral comes from, and the borrower, with all that holds collateral.

        A second round for the loan's own hold would let a liquidation overtake the top-up.
        """
        check_borrower(self.borrower)
        check_loan_id(self.loan)
        wanted.record(LOAN, self.loan)
        wanted.open_holds(collateral_account(self.borrower))
        wanted.holder(WORLD)

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        added = draft.units(self.amount, BESKAR)
        found = find_loan(draft, self.loan)
        _check_account(draft, self.borrower)
        _check_open(self, found)
        loan = _with_collateral(draft, found.loan, added)
        put_loan(draft, self.loan, loan, found.record)
        return LoanAnswer(self.loan, loan.status)


def _check_account(draft: Draft, borrower: str) -> None:
    """Refuse collateral that cannot be put on its account. Refusal: account_closed."""
    account = draft.find_account(collateral_account(borrower))
    if account is not None and account.is_closed:
        refuse(Reason.ACCOUNT_CLOSED, f"account {account.id!r} is closed", account=account.id)


def _check_open(command: TopUpCollateral, found: Found) -> None:
    """Refuse collateral from another, or too late.

    Refusals: borrower_mismatch, loan_liquidating, loan_liquidated.
    """
    if found.loan.borrower != command.borrower:
        refuse(Reason.BORROWER_MISMATCH, "this loan belongs to another borrower")
    if found.loan.status == "liquidating":
        refuse(Reason.LOAN_LIQUIDATING, "this loan is being liquidated; nothing was posted")
    if found.loan.status == "liquidated":
        refuse(Reason.LOAN_LIQUIDATED, "this loan has been liquidated; nothing was posted")


def _with_collateral(draft: Draft, loan: Loan, added: int) -> Loan:
    """Take BESKAR in, and hold all of the loan's together; return the loan with it.

    Refusals: too_many_accounts, too_many_holds, balance_too_large.
    """
    account_id = draft.own_account(collateral_account(loan.borrower))
    if not loan.hold and draft.account(account_id).open_holds >= HOLDS_OPEN_MAX:
        refuse(Reason.TOO_MANY_HOLDS, f"an account has at most {HOLDS_OPEN_MAX} open holds")
    draft.transfer(draft.own_account(f"{WORLD}:{BESKAR}"), account_id, added)
    if loan.hold:
        draft.void_hold(loan.hold)
    hold = draft.place_hold(account_id, loan.collateral + added)
    return msgspec.structs.replace(loan, collateral=hold.amount, hold=hold.id)

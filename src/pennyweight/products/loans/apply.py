"""What a bank asks for: a loan is applied for, and collateral is posted until it is enough."""

import msgspec

from pennyweight.ledger.accounts import WORLD, user_holder
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
    check_loan_id,
    collateral_account,
    event_of,
    find_loan,
    put_loan,
)


class ApplyForLoan(Command, frozen=True):
    """Register a loan, with its first collateral if there is any. Nothing is paid out yet.

    Amounts are decimal text, of GC and of BESKAR. Refusals: loan_id_invalid,
    user_id_invalid, those of an amount, loan_exists, and those of a top-up.
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
        check_loan_id(self.loan)
        wanted.record(LOAN, self.loan)
        wanted.holder(user_holder(self.borrower))
        if self.collateral:
            wanted.holder(WORLD)

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        amount = draft.units(self.amount, GC)
        added = draft.units(self.collateral, BESKAR) if self.collateral else 0
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

    Refusals: loan_id_invalid, user_id_invalid, those of an amount, loan_not_found,
    borrower_mismatch, loan_liquidating, loan_liquidated (nothing can be posted once a
    liquidation has begun), account_closed, too_many_holds, too_many_accounts,
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
        """The loan, the borrower, and where collateral comes from; its hold in a second round."""
        check_loan_id(self.loan)
        wanted.record(LOAN, self.loan)
        wanted.holder(user_holder(self.borrower))
        wanted.holder(WORLD)

    def decide(self, draft: Draft) -> LoanAnswer:
        """See the class."""
        added = draft.units(self.amount, BESKAR)
        found = find_loan(draft, self.loan)
        _check_open(self, found)
        loan = _with_collateral(draft, found.loan, added)
        put_loan(draft, self.loan, loan, found.record)
        return LoanAnswer(self.loan, loan.status)


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

    Refusals: account_closed, too_many_holds, too_many_accounts, balance_too_large.
    """
    account_id = draft.own_account(collateral_account(loan.borrower))
    draft.transfer(draft.own_account(f"{WORLD}:{BESKAR}"), account_id, added)
    if loan.hold:
        draft.void_hold(loan.hold)
    hold = draft.place_hold(account_id, loan.collateral + added)
    return msgspec.structs.replace(loan, collateral=hold.amount, hold=hold.id)

"""Transactions that somebody has carried out, and what that did to the user's accounts."""

import msgspec

from pennyweight.ledger.accounts import user_account, user_holder
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.money import parse
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.portfolios.runs import run_in
from pennyweight.products.portfolios.shared import (
    EXECUTION,
    PRODUCT,
    Line,
    find_portfolio,
    put_portfolio,
    transaction_id,
)

VENUE = "venue:portfolios"
"""Holder of the other side of all trades."""


class Fill(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A transaction that was carried out: its position in the run, and for how much, if that is told.

    `quantity` of the asset went for `amount` of `currency`, decimal texts; all three or none.
    """

    position: int
    quantity: str = ""
    amount: str = ""
    currency: str = ""

    @property
    def is_told(self) -> bool:
        """Whether it is told for how much."""
        return bool(self.quantity or self.amount or self.currency)


class Execution(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A transaction that was executed, as its record keeps it."""

    user: str
    run: int
    fill: Fill
    at: int
    entry: int


class ExecutionAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The transactions that are executed now, by position; `new` are those that were not before."""

    user: str
    run: int
    executed: tuple[int, ...]
    new: tuple[int, ...] = ()


class ExecuteTransactions(Command, frozen=True):
    """Mark transactions of a run as executed, and post what they moved, where that is told.

    What happened is a fact: it is booked whatever the user has, sales first, and what is
    missing is owed. A transaction that is executed already, and told alike, is passed over.
    Refusals: user_id_invalid, those of an amount, asset_unknown (an asset of the portfolio that
    the book does not know cannot be posted), transaction_not_found, transaction_executed
    (told otherwise before), account_closed, balance_too_large, too_many_accounts.
    """

    name = "execute_transactions"
    product = PRODUCT
    counted = ("user", "run", "fills")
    answer_type = ExecutionAnswer

    user: str
    run: int
    fills: tuple[Fill, ...]

    def reads(self, wanted: Wanted) -> None:
        """The run, what is executed of it, and the user."""
        wanted.holder(user_holder(self.user))
        wanted.entry(self.run)
        for fill in self.fills:
            wanted.record(EXECUTION, transaction_id(self.run, fill.position))
            if fill.is_told:
                wanted.holder(VENUE)

    def decide(self, draft: Draft) -> ExecutionAnswer:
        """See the class."""
        for fill in self.fills:
            if fill.is_told:
                draft.units(fill.amount, fill.currency)
                if not parse(fill.quantity)[0]:
                    refuse(Reason.AMOUNT_NOT_POSITIVE, "a quantity must be greater than zero")
        answer = run_in(draft.facts.entry(self.run))
        trades = () if answer is None or answer.user != self.user else answer.trades
        if not trades:
            refuse(
                Reason.TRANSACTION_NOT_FOUND,
                f"user {self.user[:80]!r} has no run {self.run} to execute",
            )
        for fill in self.fills:
            if not 1 <= fill.position <= len(trades):
                missing = transaction_id(self.run, fill.position)
                refuse(Reason.TRANSACTION_NOT_FOUND, f"there is no transaction {missing[:80]}")
        fills = {fill.position: fill for fill in self.fills}
        if any(fills[fill.position] != fill for fill in self.fills):
            refuse(Reason.TRANSACTION_EXECUTED, "a transaction is there twice, and not alike")
        new = [fills[position] for position in sorted(fills)]  # sales come first
        new = [fill for fill in new if self._is_new(fill, draft)]
        for fill in new:
            if fill.is_told:
                self._post(fill, trades[fill.position - 1], draft)
            draft.put_record(
                EXECUTION,
                transaction_id(self.run, fill.position),
                Execution(self.user, self.run, fill, draft.time, draft.sequence),
                before=None,
                labels=(f"run:{self.run}",),
            )
        if new:
            self._close(draft, {fill.position for fill in new})
        return ExecutionAnswer(
            self.user,
            self.run,
            tuple(sorted(fills)),
            tuple(fill.position for fill in new),
        )

    def _is_new(self, fill: Fill, draft: Draft) -> bool:
        """Whether a transaction is not executed yet. Refusal: transaction_executed."""
        name = transaction_id(self.run, fill.position)
        record = draft.record(EXECUTION, name)
        if record is None:
            return True
        known: Execution = record.read(Execution)
        if known.fill != fill:
            refuse(
                Reason.TRANSACTION_EXECUTED,
                f"transaction {name} was executed already, and told otherwise",
                transaction=name,
            )
        return False

    def _post(self, fill: Fill, line: Line, draft: Draft) -> None:
        """Move the asset one way and the money the other."""
        quantity = draft.units(fill.quantity, line.asset)
        amount = draft.units(fill.amount, fill.currency)
        asset = draft.own_account(user_account(self.user, line.asset))
        cash = draft.own_account(user_account(self.user, fill.currency))
        assets_out = draft.own_account(f"{VENUE}:{line.asset}")
        cash_out = draft.own_account(f"{VENUE}:{fill.currency}")
        if line.change < 0:
            draft.take(asset, assets_out, quantity)
            draft.transfer(cash_out, cash, amount)
        else:
            draft.take(cash, cash_out, amount)
            draft.transfer(assets_out, asset, quantity)

    def _close(self, draft: Draft, positions: set[int]) -> None:
        """Note with the portfolio, if it is its last run, what is still open of it."""
        record, portfolio = find_portfolio(draft, self.user)
        if portfolio.run == self.run:
            left = tuple(one for one in portfolio.open if one not in positions)
            changed = msgspec.structs.replace(portfolio, open=left)
            put_portfolio(draft, self.user, changed, record)

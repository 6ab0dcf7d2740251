"""The law that `verify` holds the journal of withdrawals to, without asking the rules again."""

from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from pennyweight.ledger.accounts import Account, owed_account, user_holder
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.entries import Entry
from pennyweight.ledger.money import to_units
from pennyweight.ledger.refusals import Refused
from pennyweight.products.withdrawals.settle import (
    ReplaySettlement,
    Settle,
    SettlementAnswer,
)
from pennyweight.products.withdrawals.shared import PRODUCT, VENUE, withdrawal_id_of
from pennyweight.products.withdrawals.withdraw import (
    CancelWithdrawal,
    ExpireWithdrawal,
    Withdraw,
    WithdrawalAnswer,
)


class Book(Protocol):
    """What the law looks at of a book that is rebuilt from its journal."""

    accounts: dict[str, Account]
    assets: dict[str, Asset]


class WithdrawalsLaw:
    """A withdrawal holds what was asked and moves nothing; a trade moves what it says, to the unit."""

    def entry(self, entry: Entry, book: Book) -> str | None:
        """Return what is wrong with an entry, or None."""
        check = _CHECKS.get(entry.command) if entry.product == PRODUCT else None
        if check is None:
            return None
        try:
            return check(entry, book)
        except (KeyError, msgspec.DecodeError, Refused) as error:
            return f"an entry of withdrawals cannot be read: {error}"

    def end(self, book: Book) -> Iterable[tuple[int, str]]:  # noqa: ARG002
        """Nothing can only be said of the book as a whole."""
        return ()


def _check_withdrawal(entry: Entry, book: Book) -> str | None:
    """One hold of the quantity on the user's account; the answer names it."""
    command = msgspec.json.decode(entry.fields, type=Withdraw)
    answer = msgspec.json.decode(entry.answer, type=WithdrawalAnswer)
    units = to_units(command.quantity, book.assets[command.token].scale)
    account_id = f"{user_holder(command.user)}:{command.token}"
    if entry.transfers or [change.verb for change in entry.holds] != ["place"]:
        return "a withdrawal does something else than hold"
    hold = entry.holds[0].hold
    if hold.account != account_id or hold.amount != units:
        return f"a withdrawal of {command.quantity} from {account_id} holds something else"
    if answer.withdrawal_id != withdrawal_id_of(hold):
        return f"it answers {answer.withdrawal_id}, the hold is {withdrawal_id_of(hold)}"
    return None


def _check_end(entry: Entry, book: Book) -> str | None:  # noqa: ARG001
    """One hold ends, nothing moves."""
    if entry.transfers or [change.verb for change in entry.holds] not in (["void"], ["expire"]):
        return "the end of a withdrawal does something else than release its hold"
    answer = msgspec.json.decode(entry.answer, type=WithdrawalAnswer)
    if answer.withdrawal_id != withdrawal_id_of(entry.holds[0].hold):
        return "it answers for another withdrawal than it ends"
    return None


def _check_settlement(entry: Entry, book: Book) -> str | None:
    """Apply the check to a settlement as it came."""
    return _check_trade(entry, book, msgspec.json.decode(entry.fields, type=Settle))


def _check_replay(entry: Entry, book: Book) -> str | None:
    """Apply the check to a settlement out of a dead letter."""
    replay = msgspec.json.decode(entry.fields, type=ReplaySettlement)
    return _check_trade(entry, book, replay.settlement)


def _check_trade(entry: Entry, book: Book, command: Settle) -> str | None:
    """What the venue got and gave is what was sold and bought; a duplicate moves nothing."""
    answer = msgspec.json.decode(entry.answer, type=SettlementAnswer)
    if answer.result == "duplicate":
        return "a duplicate moves money" if entry.transfers or entry.holds else None
    sold_units = to_units(command.sold_quantity, book.assets[command.sold_token].scale)
    bought_units = to_units(command.bought_quantity, book.assets[command.bought_token].scale)
    sold_venue = f"{VENUE}:{command.sold_token}"
    bought_venue = f"{VENUE}:{command.bought_token}"
    user = f"{user_holder(command.user)}:"
    payers = {user + command.sold_token, owed_account(user + command.sold_token)}
    sold = bought = 0
    for transfer in entry.transfers:
        if transfer.credit_account == sold_venue and transfer.debit_account in payers:
            sold += transfer.amount
        elif transfer.debit_account == bought_venue:
            bought += transfer.amount
        elif not transfer.credit_account.startswith("owed:"):
            return f"a trade of {command.user} pays {transfer.credit_account}"
    if (sold, bought) != (sold_units, bought_units):
        return (
            f"a trade of {command.sold_quantity} {command.sold_token} for "
            f"{command.bought_quantity} {command.bought_token} moves something else"
        )
    verbs = [change.verb for change in entry.holds]
    wanted = {"settled": ["settle"], "cancelled": ["void"]}.get(answer.result, [])
    return None if verbs == wanted else f"a trade that is {answer.result} changes holds: {verbs}"


_CHECKS: dict[str, Callable[[Entry, Book], str | None]] = {
    Withdraw.name: _check_withdrawal,
    CancelWithdrawal.name: _check_end,
    ExpireWithdrawal.name: _check_end,
    Settle.name: _check_settlement,
    ReplaySettlement.name: _check_replay,
}

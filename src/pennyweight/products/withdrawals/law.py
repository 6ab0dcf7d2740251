"""The law that `verify` holds the journal of withdrawals to, without asking the rules again."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

import msgspec

from pennyweight.ledger.accounts import SUSPENSE, Account, owed_account, user_holder
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.entries import Entry
from pennyweight.ledger.money import format_amount, to_units
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
    units = to_units(command.quantity, book.assets[command.token].scale)
    account_id = f"{user_holder(command.user)}:{command.token}"
    if entry.transfers or [change.verb for change in entry.holds] != ["place"]:
        return "a withdrawal does something else than hold"
    hold = entry.holds[0].hold
    if hold.account != account_id or hold.amount != units:
        return f"a withdrawal of {command.quantity} from {account_id} holds something else"
    return _check_answer(entry, book)


def _check_end(entry: Entry, book: Book) -> str | None:
    """One hold ends, nothing moves."""
    verb = "expire" if entry.command == ExpireWithdrawal.name else "void"
    if entry.transfers or [change.verb for change in entry.holds] != [verb]:
        return "the end of a withdrawal does something else than release its hold"
    return _check_answer(entry, book)


def _check_answer(entry: Entry, book: Book) -> str | None:
    """The answer names the hold, and tells what the account has after it."""
    answer = msgspec.json.decode(entry.answer, type=WithdrawalAnswer)
    hold = entry.holds[0].hold
    account = book.accounts[hold.account]
    scale = book.assets[hold.asset].scale
    requested = format_amount(to_units(answer.requested_quantity, scale), scale)
    told = (answer.withdrawal_id, requested, answer.available, answer.held)
    amounts = (hold.amount, account.available, account.held)
    found = (withdrawal_id_of(hold), *(format_amount(units, scale) for units in amounts))
    if told != found or answer.expires_at != hold.expires_at:
        return f"it answers {', '.join(told)}; its hold and account are {', '.join(found)}"
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
    user = f"{user_holder(command.user)}:"
    sold = _Side(user, command.sold_token, command.sold_quantity, book)
    bought = _Side(user, command.bought_token, command.bought_quantity, book)
    moved: Counter[tuple[str, str]] = Counter()
    for transfer in entry.transfers:
        moved[transfer.debit_account, transfer.credit_account] += transfer.amount
    paid = moved.pop((sold.account_id, sold.venue), 0)
    shortage = moved.pop((owed_account(sold.account_id), sold.venue), 0)
    suspense = f"{SUSPENSE}:{command.bought_token}" if answer.credited else ""
    credited = moved.pop((bought.venue, suspense or bought.account_id), 0)
    moved.pop((bought.account_id, owed_account(bought.account_id)), 0)
    for debit, credit in moved:
        return f"a trade of {command.user} moves money from {debit} to {credit}"
    if (paid + shortage, credited) != (sold.units, bought.units):
        return (
            f"a trade of {command.sold_quantity} {command.sold_token} for "
            f"{command.bought_quantity} {command.bought_token} moves something else"
        )
    if credited and bool(answer.credited) != book.accounts[bought.account_id].is_closed:
        return f"{bought.account_id} is passed by, or credited though it is closed"
    if shortage and sold.available > sold.floor:
        return f"{sold.account_id} owes what it could pay"
    released = _released(entry, answer, sold)
    if released is None:
        return f"a trade that is {answer.result} changes other holds than its own"
    told = (
        answer.sold_available,
        answer.bought_available,
        answer.released,
        answer.shortage,
        answer.owed,
        answer.credited,
    )
    found = (
        sold.text(sold.available),
        bought.text(bought.available),
        sold.text(released),
        sold.text(shortage),
        sold.text(sold.owed),
        suspense if credited else "",
    )
    if told != found:
        return f"it answers {', '.join(told)}; right is {', '.join(found)}"
    return None


class _Side:
    """What was sold or bought, and the account of that token as it is after the trade."""

    def __init__(self, user: str, token: str, quantity: str, book: Book) -> None:
        self.account_id = user + token
        self.venue = f"{VENUE}:{token}"
        self.scale = book.assets[token].scale
        self.units = to_units(quantity, self.scale)
        account = book.accounts.get(self.account_id)
        self.available = 0 if account is None else account.available
        self.owed = 0 if account is None else account.owed
        self.floor = 0 if account is None else account.floor or 0

    def text(self, units: int) -> str:
        """Write units as decimal text."""
        return format_amount(units, self.scale)


def _released(entry: Entry, answer: SettlementAnswer, sold: _Side) -> int | None:
    """Return what of the hold is free after the trade; None if other holds change than told.

    What a cancelled withdrawal gives back is not counted.
    """
    verbs = [change.verb for change in entry.holds]
    if answer.result == "unsolicited" and verbs == ["expire"]:  # it named one whose time was over
        return 0 if entry.holds[0].hold.account == sold.account_id else None
    if verbs != {"settled": ["settle"], "cancelled": ["void"]}.get(answer.result, []):
        return None
    if not verbs:
        return None if answer.withdrawal_id else 0
    change = entry.holds[0]
    if change.hold.account != sold.account_id:
        return None
    if withdrawal_id_of(change.hold) != answer.withdrawal_id:
        return None
    return max(0, -change.held - sold.units) if answer.result == "settled" else 0


_CHECKS: dict[str, Callable[[Entry, Book], str | None]] = {
    Withdraw.name: _check_withdrawal,
    CancelWithdrawal.name: _check_end,
    ExpireWithdrawal.name: _check_end,
    Settle.name: _check_settlement,
    ReplaySettlement.name: _check_replay,
}

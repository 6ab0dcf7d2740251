"""The law of portfolios, last part: what an execution has to post. See `law`."""

from collections.abc import Sequence

from pennyweight.ledger.accounts import owed_account, user_account
from pennyweight.ledger.entries import Transfer
from pennyweight.ledger.money import to_units
from pennyweight.products.portfolios.execute import VENUE, Fill
from pennyweight.products.portfolios.law_said import Book, Wrong


def legs_of(user: str, fill: Fill, name: str, is_sale: bool, book: Book) -> list[Transfer]:  # noqa: FBT001
    """Return what an executed transaction moves: what the user gives first."""
    quantity = to_units(fill.quantity, book.assets[name].scale)
    amount = to_units(fill.amount, book.assets[fill.currency].scale)
    asset, cash = user_account(user, name), user_account(user, fill.currency)
    venue, till = f"{VENUE}:{name}", f"{VENUE}:{fill.currency}"
    if is_sale:
        return [Transfer(asset, venue, quantity), Transfer(till, cash, amount)]
    return [Transfer(cash, till, amount), Transfer(venue, asset, quantity)]


def check_money(
    transfers: Sequence[Transfer], due: Sequence[Transfer], holder: str, book: Book
) -> None:
    """Compare what moved with what had to, in order; what was missing is owed, and then paid back."""
    given: list[Transfer] = []
    credited = {leg.credit_account for leg in due}
    owing = owed_account("")
    for transfer in transfers:
        debit, is_owed = transfer.debit_account, transfer.debit_account.startswith(owing)
        if is_owed:
            debit = debit.removeprefix(owing)
            account = book.accounts[debit]
            can_pay = account.available > (account.floor or 0) and debit not in credited
            if can_pay and not account.is_closed:
                raise Wrong(f"{debit} owes what it could pay")
        before = given[-1] if given else None
        if (
            is_owed
            and before is not None
            and (before.debit_account, before.credit_account) == (debit, transfer.credit_account)
            and before.amount < due[len(given) - 1].amount
        ):
            given[-1] = Transfer(debit, transfer.credit_account, before.amount + transfer.amount)
        elif len(given) < len(due):
            given.append(Transfer(debit, transfer.credit_account, transfer.amount))
        elif (
            transfer.credit_account != owed_account(debit)
            or is_owed
            or not debit.startswith(f"{holder}:")
            or debit not in credited
        ):
            raise Wrong(f"it moves {debit} to {transfer.credit_account}, which was not executed")
    if given != list(due):
        told = "; ".join(f"{one.debit_account} to {one.credit_account}" for one in given)
        raise Wrong(f"it moves {told or 'nothing'}, which is not what was executed")

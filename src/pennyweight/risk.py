"""The withdrawal risk engine in Python: synchronous, with the names of its seed.

    >>> from pennyweight.risk import RiskEngine
    >>> row = {"USD": 0, "EUR": "3128.39", "BTC": "81.807344", "BCH": "68.653219",
    ...        "ETH": "136.152897"}
    >>> engine = RiskEngine(data={100: row})
    >>> engine.WithdrawBalance(100, "USD", 250)
    'INSUFFICIENT_BALANCE'
    >>> engine.WithdrawBalance(100, "BTC", 7)
    'SUFFICIENT_BALANCE'
    >>> print(*engine.balances(100).values())
    0 3128.39 74.807344 68.653219 136.152897
    >>> engine.settle('''{"user_id": "100", "bought_token": "ETH", "bought_quantity": "87.35",
    ...                   "sold_token": "BTC", "sold_quantity": "6.9"}''').result
    'settled'
    >>> print(*engine.balances(100).values())
    0 3128.39 74.907344 68.653219 223.502897

Any number of threads may share one engine. At most `users_in_memory` users' data is in
memory; the others are in the store: a folder, or, without one, a database in memory, which is
for tests and trials. Quantities are exact: int, str or Decimal, never float.
"""

import enum
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from pennyweight.delivery.balances import BadFile, Row, load_into, load_of, read_balances
from pennyweight.delivery.settlements import check_key, settlement_in, settlement_key, text_of
from pennyweight.engine.engine import Submission
from pennyweight.engine.receipts import Failure, Outcome, Receipt, Refusal
from pennyweight.facades import in_memory, kept_at
from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import decode_entry
from pennyweight.ledger.money import canonical, format_amount, to_units
from pennyweight.ledger.refusals import Reason, Refused, refuse
from pennyweight.products import general
from pennyweight.products.withdrawals.settle import SettlementAnswer
from pennyweight.products.withdrawals.shared import PRODUCT, check_withdrawal_id, withdrawal_id_of
from pennyweight.products.withdrawals.withdraw import CancelWithdrawal, Withdraw
from pennyweight.runtime.inline import InlineBook

__all__ = ["INSUFFICIENT_BALANCE", "SUFFICIENT_BALANCE", "Answer", "RiskEngine", "RiskError"]

USERS_IN_MEMORY = 300
USER_COLUMN = "user_id"

Quantity = int | str | Decimal
User = int | str
Data = str | Path | Mapping[Any, Mapping[str, Any]] | Iterable[Mapping[str, Any]]
"""A CSV file, or users with what they have: `{user: {token: quantity}}`, or rows with `User_Id`."""

_BATCH = 500
_PAGE = 1_000


class Answer(enum.StrEnum):
    """What a withdrawal is answered; a string like any other."""

    SUFFICIENT_BALANCE = "SUFFICIENT_BALANCE"
    INSUFFICIENT_BALANCE = "INSUFFICIENT_BALANCE"

    __repr__ = str.__repr__


SUFFICIENT_BALANCE = Answer.SUFFICIENT_BALANCE
INSUFFICIENT_BALANCE = Answer.INSUFFICIENT_BALANCE


class RiskError(Exception):
    """The engine said no, and changed nothing.

    `code` is stable, the same as over HTTP: user_not_found, token_unknown,
    amount_not_positive, limit_reached …; `figures` explain it. With `outcome_unknown` and
    `internal_error` the engine must not be used any further.
    """

    def __init__(self, code: str, message: str, figures: Mapping[str, Any] | None = None) -> None:
        """`message` is one sentence."""
        super().__init__(message)
        self.code = code
        self.figures = dict(figures or {})


class RiskEngine:
    """A risk engine on a book of its own."""

    def __init__(
        self,
        path: str | Path | None = None,
        data: Data | None = None,
        *,
        users_in_memory: int = USERS_IN_MEMORY,
    ) -> None:
        """Open the book at `path` (a folder, or a database's URL), or begin one, and load `data`.

        Rows and mappings open each user once: whoever was opened before is left as they are,
        those who are new are opened. A file is loaded as `pennyweight load` does: the same file
        again changes nothing, another one adds to what users have.

        Raises RiskError, and changes nothing, for data that is wrong: `data_changed` when a
        user was opened with other balances, `data_invalid` for a file that cannot be read, a
        row of another shape, a user who is there twice, or the code of what is wrong with a
        balance. TypeError for what is no exact number, ValueError for fewer users than one
        command may touch, `StoreInUse` when another process has the book open, or serves it.
        """
        self._is_closed = False
        if path is None:
            self._kept = in_memory(users_in_memory)
        else:
            self._kept = kept_at(path, users_in_memory)
        try:
            if data is not None:
                self._load(data)
        except BaseException:
            self.close()
            raise

    def WithdrawBalance(  # noqa: N802 - the seed's name
        self,
        user_id: User,
        token: str,
        quantity: Quantity,
        *,
        withdrawal_id: str | int | None = None,
    ) -> Answer:
        """Hold a quantity of a user's token if that much is available, and say whether it was.

        A balance equal to the quantity is enough. With the caller's own `withdrawal_id` the
        same call again holds nothing more. Raises RiskError; TypeError for what is no
        exact number.
        """
        if not isinstance(token, str):
            raise TypeError(f"a token is a {type(token).__name__}: give str")
        name = "" if withdrawal_id is None else _text("withdrawal_id", withdrawal_id)
        try:
            if withdrawal_id is not None:
                check_withdrawal_id(name)
                check_key(name)
            command = Withdraw(_text("user_id", user_id), token, canonical(_exact(quantity)), name)
        except Refused as refused:
            raise _error_of(refused) from None
        outcome = self._decide(command, name)
        if isinstance(outcome, Refusal) and outcome.reason is Reason.INSUFFICIENT_FUNDS:
            return INSUFFICIENT_BALANCE
        _answer_of(outcome)
        return SUFFICIENT_BALANCE

    def Settle(  # noqa: N802 - beside the seed's name
        self,
        user_id: User,
        bought_token: str,
        bought_quantity: Quantity,
        sold_token: str,
        sold_quantity: Quantity,
        *,
        withdrawal_id: str | int | None = None,
        settlement_id: str | int | None = None,
    ) -> SettlementAnswer:
        """Book what a trade really bought and sold. See `settle`; raises TypeError too."""
        message: dict[str, Any] = {
            "user_id": user_id,
            "bought_token": bought_token,
            "bought_quantity": bought_quantity,
            "sold_token": sold_token,
            "sold_quantity": sold_quantity,
        }
        if withdrawal_id is not None:
            message["withdrawal_id"] = withdrawal_id
        if settlement_id is not None:
            message["settlement_id"] = settlement_id
        return self.settle(message)

    def settle(self, message: Mapping[str, Any] | str | bytes) -> SettlementAnswer:
        """Book a settlement message: JSON, or a mapping with the same fields.

        It ends the withdrawal it names, else the one of exactly the sold quantity, else the
        oldest. A `settlement_id` makes the same message again do nothing. Raises RiskError;
        TypeError for a mapping with a float or a bool.
        """
        if isinstance(message, Mapping):
            for name, value in message.items():
                if isinstance(value, float | bool):
                    raise TypeError(f"{name} is a {type(value).__name__}: give int, str or Decimal")
            message = msgspec.json.encode(dict(message))
        try:
            content = message.encode() if isinstance(message, str) else message
            command = settlement_in(content)
        except UnicodeEncodeError:
            code = Reason.MESSAGE_MALFORMED.code
            raise RiskError(code, "the message cannot be written as UTF-8") from None
        except Refused as refused:
            raise _error_of(refused) from None
        key = settlement_key(command.settlement_id) if command.settlement_id else ""
        answer: SettlementAnswer = _answer_of(self._decide(command, key))
        return answer

    def cancel(self, withdrawal_id: str | int) -> None:
        """Give back what an open withdrawal holds. Raises RiskError."""
        _answer_of(self._decide(CancelWithdrawal(_text("withdrawal_id", withdrawal_id)), ""))

    def balances(self, user_id: User) -> dict[str, Decimal]:
        """Return what a user has available, by token. Raises RiskError."""
        holder = _holder_of(user_id)
        accounts = self._book.store.accounts(0, _PAGE, holder=holder)
        if not accounts:
            raise RiskError(Reason.USER_NOT_FOUND.code, f"there is no user {user_id!r}")
        return {
            account.asset: Decimal(self._text(account.available, account.asset))
            for account in accounts
            if account.id == f"{holder}:{account.asset}" and not account.is_closed
        }

    def withdrawals(self, user_id: User, token: str) -> dict[str, Decimal]:
        """Return what a user's open withdrawals of a token hold, by their ids, oldest first."""
        account_id = f"{_holder_of(user_id)}:{token}"
        return {
            withdrawal_id_of(hold): Decimal(self._text(hold.remaining, token))
            for hold in self._book.store.holds(account_id, 0, _PAGE)
            if hold.owner == PRODUCT
        }

    @property
    def users_in_memory(self) -> int:
        """How many users' data is in memory now."""
        return len(self._book.engine.cache)

    def close(self) -> None:
        """Release the book; one in memory is gone. All else raises RiskError from then on."""
        self._is_closed = True
        self._kept.close()

    def __enter__(self) -> Self:
        """Return the engine."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the engine."""
        self.close()

    @property
    def _book(self) -> InlineBook:
        """The book. Raises RiskError when it was closed."""
        if self._is_closed:
            raise RiskError("engine_closed", "the engine was closed")
        return self._kept.book

    def _decide(self, command: Command, key: str) -> Outcome:
        return self._book.execute_many((Submission(command, key=key),))[0]

    def _text(self, units: int, token: str) -> str:
        return format_amount(units, self._book.engine.standing.assets[token].scale)

    def _load(self, data: Data) -> None:
        """Load a file, or open the users of rows. Raises RiskError, TypeError."""
        if isinstance(data, str | Path):
            self._load_file(Path(data))
            return
        rows = self._new_among(_rows(data))
        for first in range(0, len(rows), _BATCH):
            page = rows[first : first + _BATCH]
            for outcome in self._book.execute_many([load_of(row, _key_of(row)) for row in page]):
                _answer_of(outcome)

    def _load_file(self, path: Path) -> None:
        try:
            balances = read_balances(path, self._book.engine.standing.assets)
        except BadFile as error:
            raise RiskError("data_invalid", f"{path}: {error}") from None
        except OSError as error:
            raise RiskError("data_invalid", f"{path}: {error.strerror or error}") from None
        for batch in load_into(self._book, balances):
            for loaded in batch:
                if loaded.outcome is not None:
                    _answer_of(loaded.outcome)

    def _new_among(self, rows: Iterable[Row]) -> list[Row]:
        """Check all rows and return those whose users were not opened yet. Raises RiskError."""
        new: list[Row] = []
        seen: set[str] = set()
        for row in rows:
            if row.user in seen:
                raise RiskError("data_invalid", f"user {row.user!r} is in the data twice")
            seen.add(row.user)
            self._check(row)
            body = self._book.store.receipt(general.PRODUCT, _key_of(row))
            if body is None:
                new.append(row)
                continue
            command = msgspec.json.decode(decode_entry(body).fields, type=general.LoadBalances)
            if sorted(command.balances) != sorted(row.balances):
                raise RiskError(
                    "data_changed",
                    f"user {row.user!r} was opened with other balances; nothing was changed",
                    {"user_id": row.user},
                )
        return new

    def _check(self, row: Row) -> None:
        """Refuse a row that the book would refuse for itself alone. Raises RiskError."""
        assets = self._book.engine.standing.assets
        try:
            user_holder(row.user)
            for token, amount in row.balances:
                asset = assets.get(token)
                if asset is None:
                    refuse(Reason.ASSET_UNKNOWN, f"{token!r} is not a registered asset")
                to_units(amount, asset.scale)
        except Refused as refused:
            raise _error_in(row.number, row.user, refused) from None


def _key_of(row: Row) -> str:
    """The key of a user's opening balances; each user has them once."""
    return f"open:{row.user}"


def _rows(data: Mapping[Any, Mapping[str, Any]] | Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Yield users with what they have. Raises RiskError, TypeError."""
    if isinstance(data, Mapping):
        pairs: Iterable[tuple[Any, Any]] = data.items()
    elif isinstance(data, Iterable):
        pairs = map(_split, data)
    else:
        raise _no_data(f"data is {_a(data)}")
    for number, (user, balances) in enumerate(pairs, 1):
        if not isinstance(balances, Mapping) or not all(isinstance(one, str) for one in balances):
            raise _no_data(f"row {number}, user {user}: {_a(balances)} that maps no tokens")
        try:
            yield Row(
                number,
                _text("user_id", user),
                tuple((token, canonical(_exact(given))) for token, given in balances.items()),
            )
        except Refused as refused:
            raise _error_in(number, user, refused) from None


def _split(row: object) -> tuple[Any, dict[Any, Any]]:
    """Return whose a row is, and the rest of it. Raises RiskError."""
    if not isinstance(row, Mapping):
        raise _no_data(f"a row is {_a(row)}")
    for name in row:
        if isinstance(name, str) and name.lower() == USER_COLUMN:
            return row[name], {token: given for token, given in row.items() if token != name}
    raise _no_data(f"a row has no User_Id: {dict(row)}")


def _no_data(what: str) -> RiskError:
    return RiskError(
        "data_invalid",
        f"{what}; data is a CSV file, {{user: {{token: quantity}}}}, or rows with User_Id",
    )


def _a(given: object) -> str:
    return f"a {type(given).__name__}"


def _error_in(number: int, user: object, refused: Refused) -> RiskError:
    return RiskError(
        refused.reason.code, f"row {number}, user {user}: {refused.message}", refused.figures
    )


def _text(what: str, given: object) -> str:
    """Return an id as text. Raises TypeError."""
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise TypeError(f"{what} is a {type(given).__name__}: give int or str")
    return text_of(given)


def _exact(quantity: object) -> int | str:
    """Return a quantity as the parser of amounts takes it. Raises TypeError."""
    if isinstance(quantity, Decimal):
        return str(quantity)
    if isinstance(quantity, bool) or not isinstance(quantity, int | str):
        raise TypeError(f"a quantity is a {type(quantity).__name__}: give int, str or Decimal")
    return quantity


def _holder_of(user_id: User) -> str:
    """Return a user's holder. Raises RiskError, TypeError."""
    try:
        return user_holder(_text("user_id", user_id))
    except Refused as refused:
        raise _error_of(refused) from None


def _answer_of(outcome: Outcome) -> Any:
    """Return the answer of what was done. Raises RiskError for everything else."""
    if isinstance(outcome, Receipt):
        return outcome.answer
    if isinstance(outcome, Refusal):
        raise RiskError(outcome.reason.code, outcome.message, outcome.figures)
    if isinstance(outcome, Failure):
        raise RiskError("internal_error", "a fault of ours; nothing was changed") from outcome.cause
    raise RiskError("outcome_unknown", outcome.message)


def _error_of(refused: Refused) -> RiskError:
    return RiskError(refused.reason.code, refused.message, refused.figures)

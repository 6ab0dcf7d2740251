"""What the payments face reads and writes: its shapes, in the casings of its two profiles.

Requests are read in either casing whatever the profile is; replies have the profile's.
"""

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from pennyweight.delivery.http.wire import Amount, BadRequest, Moment, decoder
from pennyweight.products.payments import Pay, PaymentItem

T = TypeVar("T")
P = TypeVar("P", Pay, PaymentItem)

Profile = Literal["seed", "head"]

_HEAD = {
    "error": "Error",
    "code": "Code",
    "name": "Name",
    "amount": "Amount",
    "currency_id": "CurrencyID",
    "currency_name": "CurrencyName",
    "user_id": "UserID",
    "buyer_account_id": "BuyerAccountID",
    "seller_account_id": "SellerAccountID",
    "accounts": "Accounts",
    "payments": "Payments",
    "currencies": "Currencies",
    "history": "History",
    "next_cursor": "NextCursor",
}


def names_of(profile: Profile) -> dict[str, str]:
    """Return how a profile spells the names in which the two differ."""
    return _HEAD if profile == "head" else {name: name for name in _HEAD}


# ── what comes in ─────────────────────────────────────────────────────────────────

_Missing = msgspec.UnsetType
_MISSING = msgspec.UNSET

Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""The number of an account or a currency."""


class Carried(msgspec.Struct, kw_only=True, gc=False):
    """What the body of any command may carry."""

    idempotency_key: str | None = None
    not_after: Moment | None = None


class AccountBody(Carried):
    """The body of POST /accounts. Clients that have numbers for users may send them so."""

    name: str | _Missing = _MISSING
    amount: Amount | _Missing = _MISSING
    currency_id: Number | _Missing = _MISSING
    user_id: str | Number | _Missing | None = _MISSING
    head_name: str | _Missing = msgspec.field(name="Name", default=_MISSING)
    head_amount: Amount | _Missing = msgspec.field(name="Amount", default=_MISSING)
    head_currency_id: Number | _Missing = msgspec.field(name="CurrencyID", default=_MISSING)
    head_user_id: str | Number | _Missing | None = msgspec.field(name="UserID", default=_MISSING)


class PaymentBody(Carried):
    """The body of POST /payments, and one payment of a batch."""

    buyer_account_id: Number | _Missing = _MISSING
    seller_account_id: Number | _Missing = _MISSING
    amount: Amount | _Missing = _MISSING
    head_buyer: Number | _Missing = msgspec.field(name="BuyerAccountID", default=_MISSING)
    head_seller: Number | _Missing = msgspec.field(name="SellerAccountID", default=_MISSING)
    head_amount: Amount | _Missing = msgspec.field(name="Amount", default=_MISSING)


class BatchBody(Carried):
    """The body of POST /payments/batch."""

    payments: list[PaymentBody] | _Missing = _MISSING
    head_payments: list[PaymentBody] | _Missing = msgspec.field(name="Payments", default=_MISSING)


account_decoder = decoder(AccountBody)
payment_decoder = decoder(PaymentBody)
batch_decoder = decoder(BatchBody)


def given(value: T | _Missing, other: T | _Missing, name: str) -> T:
    """Return a field that may have come in either casing. Raises BadRequest."""
    if not isinstance(value, _Missing):
        return value
    if not isinstance(other, _Missing):
        return other
    raise BadRequest("body_invalid", f"{name} is missing")


def user_of(body: AccountBody) -> str | None:
    """Return the user whose account is to be opened, None for an account of its own."""
    user_id = body.head_user_id if isinstance(body.user_id, _Missing) else body.user_id
    return None if user_id is None or isinstance(user_id, _Missing) else str(user_id)


def payment_of(body: PaymentBody, kind: type[P]) -> P:
    """Return the payment that a body asks for. Raises BadRequest."""
    return kind(
        given(body.buyer_account_id, body.head_buyer, "buyer_account_id"),
        given(body.seller_account_id, body.head_seller, "seller_account_id"),
        given(body.amount, body.head_amount, "amount"),
    )


# ── what goes out ─────────────────────────────────────────────────────────────────

_SHOWN = {
    "id": "ID",
    "name": "Name",
    "currency_id": "CurrencyID",
    "currency_name": "CurrencyName",
    "amount": "Amount",
    "buyer_account_id": "BuyerAccountID",
    "seller_account_id": "SellerAccountID",
    "operation_timestamp": "OperationTimestamp",
    "sequence": "Sequence",
    "product": "Product",
    "operation": "Operation",
    "balance": "Balance",
    "held": "Held",
    "counterpart": "Counterpart",
}


class AccountShown(msgspec.Struct, frozen=True, gc=False, rename=_SHOWN):
    """An account. `Amount` is what it can spend, as decimal text."""

    id: int
    name: str
    currency_id: int
    currency_name: str
    amount: str


class PaymentShown(msgspec.Struct, frozen=True, gc=False, rename=_SHOWN):
    """A payment, as the answer to the request that made it."""

    id: int
    currency_id: int
    amount: str
    buyer_account_id: int
    seller_account_id: int
    operation_timestamp: str


class ListedPaymentHead(msgspec.Struct, frozen=True, gc=False, rename=_SHOWN):
    """A payment in a list of the head profile."""

    id: int
    currency_id: int
    currency_name: str
    amount: str
    buyer_account_id: int
    seller_account_id: int
    operation_timestamp: str


class ListedPayment(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={name: shown for name, shown in _SHOWN.items() if name != "currency_name"},
):
    """A payment in a list of the seed's profile, where `currency_name` keeps its small letters."""

    id: int
    currency_id: int
    currency_name: str
    amount: str
    buyer_account_id: int
    seller_account_id: int
    operation_timestamp: str


class CurrencyShown(msgspec.Struct, frozen=True, gc=False, rename=_SHOWN):
    """A currency and its number."""

    currency_id: int
    currency_name: str


class HistoryLine(msgspec.Struct, frozen=True, gc=False, rename=_SHOWN):
    """One change of what an account can spend, with the balance after it.

    `ID` counts the account's changes from 1. `Amount` is signed. `Held` is what holds keep
    back after it. `Counterpart` is the other account of a transfer, by its ledger id, and
    null for a hold. `Product` and `Operation` say what did it, `Sequence` in which entry.
    """

    id: int
    sequence: int
    product: str
    operation: str
    amount: str
    balance: str
    held: str
    counterpart: str | None
    operation_timestamp: str


# ── what the description of the routes shows ──────────────────────────────────────


def account_request(names: dict[str, str]) -> type[msgspec.Struct]:
    """Return the shape of the body of POST /accounts in a profile's casing."""
    return _shape(
        "NewAccount",
        "An account to open. `user_id` makes it that user's account of the currency.",
        {
            names["name"]: str,
            names["amount"]: Amount,
            names["currency_id"]: int,
            names["user_id"]: str | None,
        },
        optional={names["user_id"]: None},
    )


def payment_request(names: dict[str, str], title: str = "NewPayment") -> type[msgspec.Struct]:
    """Return the shape of the body of POST /payments in a profile's casing."""
    return _shape(
        title,
        "A payment to make.",
        {
            names["buyer_account_id"]: int,
            names["seller_account_id"]: int,
            names["amount"]: Amount,
        },
    )


def batch_request(names: dict[str, str]) -> type[msgspec.Struct]:
    """Return the shape of the body of POST /payments/batch in a profile's casing."""
    payment: Any = payment_request(names, "BatchedPayment")
    return _shape(
        "NewPayments", "1 to 64 payments, all or none.", {names["payments"]: list[payment]}
    )


def list_answer(name: str, kind: Any, title: str) -> type[msgspec.Struct]:
    """Return the shape of a complete list; an empty one is `{}`."""
    return _shape(title, "A complete list.", {name: list[kind]}, optional={name: msgspec.UNSET})


def history_answer(names: dict[str, str]) -> type[msgspec.Struct]:
    """Return the shape of a page of an account's history."""
    return _shape(
        "History",
        "A page of an account's changes.",
        {names["history"]: list[HistoryLine], names["next_cursor"]: str | None},
    )


def _shape(
    title: str, sentence: str, fields: dict[str, Any], *, optional: dict[str, Any] | None = None
) -> type[msgspec.Struct]:
    """Make a struct whose fields are named as on the wire."""
    defaults = optional or {}
    return msgspec.defstruct(
        title,
        [
            (name, kind, defaults[name]) if name in defaults else (name, kind)
            for name, kind in fields.items()
        ],
        namespace={"__doc__": sentence},
        module=__name__,
    )

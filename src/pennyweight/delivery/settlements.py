"""Settlements between the wire and the book: one shape and one handler for HTTP and for Kafka.

A settlement is JSON, `{"user_id", "bought_token", "bought_quantity", "sold_token",
"sold_quantity"}` with, if the sender likes, `withdrawal_id` and `settlement_id`. Ids and
quantities are strings or numbers; unknown fields are ignored. Nothing is guessed or mended.
"""

from typing import Annotated, Protocol, TypeVar

import msgspec

from pennyweight.delivery.http.wire import Amount, Moment, Unreadable, decoder, read, read_any
from pennyweight.engine.engine import Submission
from pennyweight.ledger.money import canonical
from pennyweight.ledger.refusals import Reason, Refused, refuse
from pennyweight.products.withdrawals.settle import Settle

ID_LENGTH_MAX = 255
KEY_PREFIX = "settlement:"
"""Keys of settlements begin so, whichever way they come."""

STREAM_PREFIX = "kafka:"
"""Keys of messages that have no id of their own begin so."""

_IDS = ("withdrawal_id", "settlement_id")
_QUANTITIES = ("bought_quantity", "sold_quantity")

Id = Annotated[str, msgspec.Meta(max_length=ID_LENGTH_MAX)] | int
"""An id on the wire; a number is its text."""

Token = Annotated[str, msgspec.Meta(max_length=40)]


class SettlementBody(msgspec.Struct, kw_only=True, gc=False):
    """What a trade really sold and bought, and, if known, the withdrawal that it settles.

    `settlement_id` names the settlement: the same one again does nothing. Ids have 1 to 255
    printable characters.
    """

    user_id: Id
    bought_token: Token
    bought_quantity: Amount
    sold_token: Token
    sold_quantity: Amount
    withdrawal_id: Id | None = None
    settlement_id: Id | None = None


class PostedSettlement(SettlementBody, kw_only=True, gc=False):
    """A settlement over HTTP, which may carry what every command may."""

    idempotency_key: str | None = None
    not_after: Moment | None = None


AnySettlement = TypeVar("AnySettlement", bound=SettlementBody)

_decoder = decoder(SettlementBody)


class Incoming(Protocol):
    """What the handler looks at of a message of a stream."""

    @property
    def value(self) -> bytes | None:
        """The body; None for a tombstone."""

    @property
    def default_key(self) -> str:
        """Where it was in the stream; the key of one without an id of its own."""


def text_of(given: str | int | None) -> str:
    """Return an id as text, "" for none."""
    return "" if given is None else str(given)


def settlement_key(settlement_id: str) -> str:
    """Return the key of a settlement that has an id."""
    return KEY_PREFIX + settlement_id


def check_key(key: str) -> None:
    """Refuse a key of somebody else's that settlements could have: theirs must never be taken.

    Refusal: withdrawal_id_invalid.
    """
    if key.startswith((KEY_PREFIX, STREAM_PREFIX)):
        refuse(
            Reason.WITHDRAWAL_ID_INVALID,
            f"{KEY_PREFIX!r} and {STREAM_PREFIX!r} begin the keys of settlements",
        )


def settle_of(body: SettlementBody) -> Settle:
    """Return the command that a body asks for."""
    return Settle(
        text_of(body.user_id),
        body.bought_token,
        body.bought_quantity,
        body.sold_token,
        body.sold_quantity,
        text_of(body.withdrawal_id),
        text_of(body.settlement_id),
    )


def read_settlement(
    body_decoder: msgspec.json.Decoder[AnySettlement], content: bytes
) -> AnySettlement:
    """Decode a settlement. Raises Unreadable; Refused for an amount that is none, with its field.

    An id that is there is one: an empty or unprintable one would be as good as none.
    """
    try:
        body = read(body_decoder, content)
    except Refused as refused:
        field = _field_of(content)
        raise Refused(
            refused.reason,
            f"{field}: {refused.message}" if field else refused.message,
            **refused.figures,
        ) from None
    for name in _IDS:
        given = getattr(body, name)
        if given is not None:
            text = text_of(given)
            if not 0 < len(text) <= ID_LENGTH_MAX or not text.isprintable():
                raise Unreadable(
                    "body_invalid", f"{name}: an id has 1 to {ID_LENGTH_MAX} printable characters"
                )
    return body


def settlement_in(content: bytes | None) -> Settle:
    """Return the settlement in the value of a message.

    Refusals: message_malformed (no JSON, no value), message_invalid (another shape), those
    of `money.parse`.
    """
    if content is None:
        refuse(Reason.MESSAGE_MALFORMED, "the message has no value (a tombstone)")
    try:
        return settle_of(read_settlement(_decoder, content))
    except Unreadable as error:
        is_json = error.code == "body_invalid"
        reason = Reason.MESSAGE_INVALID if is_json else Reason.MESSAGE_MALFORMED
        raise Refused(reason, error.detail) from None


def settlement_of(message: Incoming) -> Submission:
    """Return what is to be submitted for a message of the stream of settlements.

    What it refuses is to be set aside; for refusals see `settlement_in`.
    """
    settle = settlement_in(message.value)
    key = settlement_key(settle.settlement_id) if settle.settlement_id else message.default_key
    return Submission(settle, key=key)


def _field_of(content: bytes) -> str:
    """Name the first quantity of a body that is no amount."""
    value = read_any(content)
    if isinstance(value, dict):
        for name in _QUANTITIES:
            try:
                canonical(value.get(name, 0))
            except Refused:
                return name
    return ""

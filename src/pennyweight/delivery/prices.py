"""What the markets say of prices, between the wire and the rules: bytes in, a quote out.

Both markets' messages are read, as they were published or as SNS wraps them for queues that
take no raw bodies. Numbers come as the digits that were sent, and no price ever is a float.
Nothing is guessed: what is no price of this market is a `BadPrice` that says why, whatever
the bytes are; a price of another item is nothing to us.
"""

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, NoReturn, assert_never

import msgspec

from pennyweight.delivery.http.wire import BadRequest, Moment, microseconds
from pennyweight.ledger.money import format_amount, parse, to_units
from pennyweight.ledger.refusals import Refused
from pennyweight.products.loans.shared import (
    GC,
    LEVELS,
    SCALE,
    Level,
    Market,
    Quote,
    quote_problem,
)

BYTES_MAX = 64 * 1024
ID_LENGTH_MAX = 255

ASSETS = frozenset({"BESKAR", "BSK"})
"""What Mos Espa calls it; the latter since its later dialect."""

ITEMS = frozenset({"STEEL:MANDALORIAN", "BSK"})
"""What Black Spire calls it, by dialect."""

NOTIFICATION = "Notification"
"""How SNS marks what it has wrapped."""

_MICROSECONDS = 6
"""Decimals of a second."""

_MOMENT_MAX = 253_402_300_800_000_000
"""The end of the year 9999: there are no times after it."""

_DIGEST_LENGTH = 16


class BadPrice(Exception):
    """This is no price, and `reason` is why, in one sentence."""

    def __init__(self, reason: str) -> None:
        """See the class."""
        super().__init__(reason)
        self.reason = reason


# Numbers stand in fields of any type: only those does the decoder hand over as their digits.


class _Head(msgspec.Struct, gc=False):
    """What shows whether a body is wrapped, and which item it is of."""

    Type: Any = None
    Message: Any = None
    asset: Any = None
    item: Any = None


class _MosEspaLevel(msgspec.Struct, gc=False):
    quantity: Any
    sell: Any


class _MosEspa(msgspec.Struct, gc=False):
    """`currency` and `timestamp` as the market writes them; of `levels`, what one may sell for."""

    eventId: str  # noqa: N815 - the wire's
    currency: str
    timestamp: Moment
    levels: list[_MosEspaLevel]


class _BlackSpireLevel(msgspec.Struct, gc=False):
    amount: Any
    price: Any


class _BlackSpire(msgspec.Struct, gc=False):
    """`time` is in seconds."""

    time: Any
    sell: list[_BlackSpireLevel]


_head = msgspec.json.Decoder(_Head, float_hook=str)
_mos_espa = msgspec.json.Decoder(_MosEspa, float_hook=str)
_black_spire = msgspec.json.Decoder(_BlackSpire, float_hook=str)


def read_price(market: Market, body: bytes | str, received_at: int) -> Quote | None:
    """Return the quote in a message of a market; None for a price of another item.

    `received_at` is in microseconds since 1970. Levels of quantities that nobody asked for
    are left out, the others come by rising quantity. Raises BadPrice, and nothing else.
    """
    try:
        content = _bytes_of(body)
        head = _head.decode(content)
        if head.Type == NOTIFICATION and head.Message.__class__ is str:
            content = _bytes_of(head.Message)
            head = _head.decode(content)
        if market == "mos_espa":
            return _of_mos_espa(head, content, received_at)
        if market == "black_spire":
            return _of_black_spire(head, content, received_at)
    except Refused as refused:
        raise BadPrice(refused.message) from None
    except BadRequest as error:
        raise BadPrice(error.detail) from None
    except UnicodeError:
        raise BadPrice("it is not UTF-8") from None
    except RecursionError:
        raise BadPrice("it is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise BadPrice(str(error)) from None
    assert_never(market)


def _bytes_of(body: bytes | str) -> bytes:
    """Return a body as bytes, unless there are too many. Raises BadPrice, UnicodeError."""
    if len(body) <= BYTES_MAX:
        content = body.encode() if isinstance(body, str) else body
        if len(content) <= BYTES_MAX:
            return content
    raise BadPrice(f"it has more than {BYTES_MAX} bytes")


def _of_mos_espa(head: _Head, content: bytes, received_at: int) -> Quote | None:
    if not _is_ours(head.asset, "asset", ASSETS):
        return None
    body = _mos_espa.decode(content)
    if body.currency != GC:
        _bad(f"its currency is not {GC}")
    if not 0 < len(body.eventId) <= ID_LENGTH_MAX or not body.eventId.isprintable():
        _bad(f"eventId has 1 to {ID_LENGTH_MAX} printable characters")
    levels = _levels((level.quantity, level.sell) for level in body.levels)
    at = microseconds(body.timestamp, "timestamp")
    return Quote("mos_espa", body.eventId, at, received_at, levels)


def _of_black_spire(head: _Head, content: bytes, received_at: int) -> Quote | None:
    """Read a price that has no id of its own: its time and what it says make one."""
    if not _is_ours(head.item, "item", ITEMS):
        return None
    body = _black_spire.decode(content)
    levels = _levels((level.amount, level.price) for level in body.sell)
    at = _moment(body.time)
    said = ";".join(f"{level.quantity}:{level.sell}" for level in levels)
    digest = sha256(said.encode()).hexdigest()[:_DIGEST_LENGTH]
    quote_id = f"{format_amount(at, _MICROSECONDS)}-{digest}"
    return Quote("black_spire", quote_id, at, received_at, levels)


def _is_ours(name: Any, field: str, ours: frozenset[str]) -> bool:
    """Whether this is the item that loans are secured by. Raises BadPrice where none is named."""
    if name.__class__ is not str:
        _bad(f"it has no {field}")
    return name in ours


def _levels(given: Iterable[tuple[Any, Any]]) -> tuple[Level, ...]:
    """Return the levels of known quantities, in order. Raises BadPrice, Refused."""
    found: dict[int, Level] = {}
    for amount, price in given:
        quantity, decimals = parse(amount, signed=True)
        if decimals or quantity not in LEVELS:
            continue
        if quantity in found:
            _bad(f"it has two prices of {quantity}")
        found[quantity] = Level(quantity, to_units(price, SCALE))
    levels = tuple(found[quantity] for quantity in sorted(found))
    problem = quote_problem(levels)
    if problem:
        _bad(problem)
    return levels


def _moment(seconds: Any) -> int:
    """Return seconds since 1970 as microseconds; what is finer is cut off. Raises Refused."""
    digits, decimals = parse(seconds)
    moment: int = digits * 10**_MICROSECONDS // 10**decimals
    if moment >= _MOMENT_MAX:
        _bad("its time is not within the years 1970 to 9999")
    return moment


def _bad(reason: str) -> NoReturn:
    raise BadPrice(reason)

"""Orders to the two trading posts, and what their answers prove.

An order has three outcomes: filled, failed, or in doubt. Only a body that names our order and
says what was sold, or says that nothing was, is believed; so is a 4xx. All else, silence too,
may hide an order that was carried out: it is in doubt, and has to be asked for again under the
same id at the same post. Each order has a connection of its own: a failure need not name its
order, and one that is told twice must not be taken for the next order's. The client is imported
when it is needed, because that takes a while.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from pennyweight.ledger.money import canonical, format_amount, parse, to_units
from pennyweight.ledger.refusals import Refused
from pennyweight.links.errors import ExtraMissing
from pennyweight.products.loans.shared import SCALE, Market

BODY_LENGTH_MAX = 65_536
"""Nothing longer is read, in bytes."""

CONNECTIONS_MAX = 256
CONNECTIONS_PER_POST_MAX = 128

_TEXT_LENGTH_MAX = 200
_IN_DOUBT_CODES = frozenset({408, 409, 425, 429})
"""Codes of 4xx that do not say that the order was refused for good. A conflict may mean that the
id was dealt with already, by an answer that never came: selling anew would sell twice."""

_MINUS_ZERO = re.compile(rb":\s*-0\s*[,}]")
_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
}


class Filled(msgspec.Struct, frozen=True, gc=False):
    """The post sold so much, for so much in all; both are canonical decimal text."""

    order_id: str
    quantity: str
    total: str


class Failed(msgspec.Struct, frozen=True, gc=False):
    """The post surely sold nothing."""

    reason: str


class InDoubt(msgspec.Struct, frozen=True, gc=False):
    """Nobody knows whether the post sold anything."""

    reason: str


Answer = Filled | Failed | InDoubt


class _Doubt(Exception):
    """A body that proves nothing, with the reason as a sentence."""


Order = dict[str, Any]
"""An order as it is sent."""


class _Dialect(msgspec.Struct, frozen=True):
    """How one post is spoken to; `same` are the fields of a success that repeat the order's."""

    path: str
    order: Callable[[str, str, str], Order]
    has_failed: Callable[[dict[str, Any]], bool]
    has_succeeded: Callable[[dict[str, Any]], bool]
    failure: str
    same: tuple[str, ...]
    order_id: str
    quantity: str
    total: str


_DIALECTS: dict[Market, _Dialect] = {
    "mos_espa": _Dialect(
        path="/orders",
        order=lambda request_id, quantity, _: {
            "requestId": request_id,
            "type": "market",
            "side": "sell",
            "asset": "BESKAR",
            "currency": "GC",
            "quantity": quantity,
        },
        has_failed=lambda body: body.get("success") is False,
        has_succeeded=lambda body: body.get("success") is True,
        failure="reason",
        same=("requestId", "side", "asset", "currency"),
        order_id="orderId",
        quantity="quantity",
        total="price",
    ),
    "black_spire": _Dialect(
        path="/market/orders",
        order=lambda request_id, quantity, item: {
            "requestId": request_id,
            "side": "SELL",
            "item": item,
            "amount": msgspec.Raw(quantity.encode()),  # a number with exactly these digits
        },
        has_failed=lambda body: isinstance(body.get("error"), str) and "id" not in body,
        has_succeeded=lambda body: body.get("error") is None and "id" in body,
        failure="error",
        same=("requestId", "side", "item"),
        order_id="id",
        quantity="amount",
        total="totalPrice",
    ),
}

_decoder = msgspec.json.Decoder(float_hook=str)
"""Numbers with a point or an exponent arrive as their digits."""


def client() -> ModuleType:
    """Import the client. Raises ExtraMissing."""
    try:
        import aiohttp  # noqa: PLC0415 - an extra, and 300 ms that only who sells should pay
    except ImportError as error:
        raise ExtraMissing(
            "trading posts need the extra `venues`: pip install 'pennyweight[venues]'"
        ) from error
    return aiohttp


class Venues:
    """Both posts; it belongs to the event loop that entered it."""

    def __init__(
        self,
        urls: Mapping[Market, str],
        *,
        timeout_seconds: float,
        item: str = "STEEL:MANDALORIAN",
    ) -> None:
        """`timeout_seconds` is for a whole call; `item` is what Black Spire calls BESKAR.

        Raises ExtraMissing, and ValueError for what is no URL.
        """
        self._aiohttp = client()
        self._timely = _timely_body(self._aiohttp)
        self._urls = {market: _base(url) for market, url in urls.items()}
        self._timeout_seconds = timeout_seconds
        self._item = item
        self._session: Any = None

    async def __aenter__(self) -> Self:
        """Make ready; connections are made when they are needed."""
        timeout = self._aiohttp.ClientTimeout(
            total=self._timeout_seconds,
            connect=self._timeout_seconds,
            sock_connect=self._timeout_seconds,
            sock_read=self._timeout_seconds,
        )
        self._session = self._aiohttp.ClientSession(
            connector=self._aiohttp.TCPConnector(
                limit=CONNECTIONS_MAX,
                limit_per_host=CONNECTIONS_PER_POST_MAX,
                force_close=True,  # an answer that comes twice is never that to another order
            ),
            timeout=timeout,
            headers=_HEADERS,
            cookie_jar=self._aiohttp.DummyCookieJar(),
            auto_decompress=False,  # it is not asked for, and a small body can become a huge one
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all connections; what is under way ends in doubt."""
        await self._session.close()

    async def sell(
        self,
        market: Market,
        request_id: str,
        quantity: str,
        may_send: Callable[[], bool] = lambda: True,
    ) -> Answer:
        """Sell so many BESKAR at the market's price, once, however often this id is asked for.

        `may_send` is asked when the connection stands and nothing but the writing is left:
        the process may have stood still meanwhile. Whatever the network or the post does is
        an answer. Refusals: those of `money.parse` for a quantity that is no amount.
        """
        dialect = _DIALECTS[market]
        quantity = canonical(quantity)
        order = dialect.order(request_id, quantity, self._item)
        data = self._timely(msgspec.json.encode(order), may_send)
        try:
            status, body = await self._post(self._urls[market] + dialect.path, data)
        except _Doubt as doubt:
            return InDoubt(str(doubt))
        return read_answer(market, order, quantity, status, body)

    async def _post(self, url: str, data: Any) -> tuple[int, bytes]:
        """Ask once, and return status and body. Raises _Doubt; a cancelled call stays cancelled."""
        try:
            async with self._session.post(url, data=data, allow_redirects=False) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_any():
                    body += chunk
                    if len(body) > BODY_LENGTH_MAX:
                        raise _Doubt("its answer is too long")
                return answer.status, bytes(body)
        except TimeoutError:
            raise _Doubt("it did not answer in time") from None
        except (self._aiohttp.ClientError, OSError, ValueError) as error:
            raise _Doubt(_clean(f"{type(error).__name__}: {error}")) from None


def _timely_body(aiohttp: ModuleType) -> Callable[[bytes, Callable[[], bool]], Any]:
    """Return what makes a body that is written only if it may be, asked right before that.

    The client writes the head of a request together with its body, in a task of its own that
    may come to its turn late.
    """

    class Body(aiohttp.BytesPayload):  # type: ignore[misc, name-defined] # imported lazily
        def __init__(self, data: bytes, may_send: Callable[[], bool]) -> None:
            super().__init__(data, content_type="application/json")
            self._may_send = may_send

        async def write_with_length(self, writer: Any, content_length: int | None) -> None:
            if not self._may_send():
                raise aiohttp.ClientConnectionError("it was too late to send it")
            await super().write_with_length(writer, content_length)

    return Body


def read_answer(market: Market, order: Order, quantity: str, status: int, body: bytes) -> Answer:
    """Return what a post's answer to an order of so much proves."""
    is_refused = 400 <= status < 500 and status not in _IN_DOUBT_CODES
    if not is_refused and not 200 <= status < 300:
        return InDoubt(f"it answered {status}")
    try:
        answer = _said(_DIALECTS[market], order, quantity, body)
    except _Doubt as doubt:
        return Failed(f"it answered {status}") if is_refused else InDoubt(str(doubt))
    if is_refused and isinstance(answer, Filled):
        return InDoubt(f"it answered {status}, and that it sold")
    return answer


def _said(dialect: _Dialect, order: Order, quantity: str, body: bytes) -> Filled | Failed:
    """Return what a body says became of our order. Raises _Doubt."""
    found = _document(body)
    if dialect.has_succeeded(found):
        return _filled(dialect, order, quantity, found, body)
    if not dialect.has_failed(found):
        raise _Doubt("its answer says neither that it sold nor that it failed")
    if found.get("requestId") not in (None, "", order["requestId"]):
        raise _Doubt("it failed another order")
    return Failed(_clean(found.get(dialect.failure)) or "it gave no reason")


def _document(body: bytes) -> dict[str, Any]:
    """Decode a body. Raises _Doubt."""
    try:
        found = _decoder.decode(body)
    except (ValueError, RecursionError):  # malformed, and not UTF-8, are ValueErrors
        raise _Doubt("its answer is no JSON") from None
    if not isinstance(found, dict):
        raise _Doubt("its answer is no JSON object")
    return found


def _filled(
    dialect: _Dialect, order: Order, asked: str, found: dict[str, Any], body: bytes
) -> Filled:
    """Return what a success says was sold. Raises _Doubt where it does not match the order."""
    for name in dialect.same:
        if found.get(name) != order[name]:
            raise _Doubt(f"its {name} is not that of the order")
    order_id = found.get(dialect.order_id)
    if not isinstance(order_id, str) or not order_id:
        raise _Doubt("its order has no id")
    if _MINUS_ZERO.search(body):  # which the decoder reads as 0
        raise _Doubt("minus zero is not an amount")
    sold = _units(found.get(dialect.quantity), dialect.quantity)
    if not 0 < sold <= to_units(asked, SCALE):
        raise _Doubt("it did not sell what it was asked to")
    total = _total(found.get(dialect.total), dialect.total)
    return Filled(_clean(order_id), canonical(found[dialect.quantity]), total)


def _units(value: Any, name: str) -> int:
    """Return smallest units of an amount on the wire. Raises _Doubt."""
    if value.__class__ is not str and value.__class__ is not int:
        raise _Doubt(f"its {name} is no amount")
    try:
        return to_units(value, SCALE)
    except Refused as refused:
        raise _Doubt(f"its {name} is no amount: {_clean(str(refused))}") from None


def _total(value: Any, name: str) -> str:
    """Return what was paid as text, cut off below a smallest unit: such digits are a float's.

    Raises _Doubt.
    """
    with suppress(Refused, TypeError):
        digits, decimals = parse(value)
        if decimals > SCALE:
            value = format_amount(digits // 10 ** (decimals - SCALE), SCALE)
    return format_amount(_units(value, name), SCALE)


def _clean(text: Any) -> str:
    """Return text that came from outside as one short printable line, "" for what is no text."""
    if not isinstance(text, str):
        return ""
    line = "".join(sign if sign.isprintable() else " " for sign in text[:_TEXT_LENGTH_MAX])
    return " ".join(line.split())


def _base(url: str) -> str:
    """Return a URL without its last slash. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"a post's address is like http://127.0.0.1:3003, not {url!r}")
    return url.rstrip("/")

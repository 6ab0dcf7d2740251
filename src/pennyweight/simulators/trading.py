"""One trading post: how it understands orders, its order book, its moods, and its answers.

An order is carried out at the average that the post quotes for the size at that moment. What
goes wrong on the way depends on the seed, the request's id and how often it came, so the same
orders fare alike in any order. An id that was carried out once gets the same answer for ever.
"""

import random
from collections import Counter, deque
from collections.abc import Iterator
from decimal import Decimal
from typing import Literal, NamedTuple

import msgspec

from pennyweight.ledger.money import canonical, format_amount, parse
from pennyweight.ledger.refusals import Refused
from pennyweight.products.loans.shared import Market
from pennyweight.simulators.pricewalk import PriceWalk, number

_KNOWN_BODIES = 10_000

Fate = Literal[
    "well", "failed", "slow", "hung", "error_before", "error_after", "reset_before", "reset_after",
    "doubled",
]  # fmt: skip
"""What becomes of a request: what is said of each in `Odds`."""


class Odds(msgspec.Struct, frozen=True, kw_only=True):
    """How often what goes wrong at a post, from 0 to 1.

    Of all orders that are new, `failed` are not carried out, and the answer is 200 with a body
    that says so. Asked again, such an id fails again if `is_failure_final`, else it is tried
    afresh. Of all requests: `slow` ones are answered after `slow_seconds`; `hung` ones are
    carried out, but the answer comes after `hang_seconds`; `error_before` and `error_after` are
    answered 503, before the order is looked at or after it was carried out; `reset_before` and
    `reset_after` are cut off instead; `doubled` are answered twice on the same connection.
    """

    failed: float = 0.3
    is_failure_final: bool = True
    slow: float = 0.0
    slow_seconds: float = 0.3
    hung: float = 0.0
    hang_seconds: float = 5.0
    error_before: float = 0.0
    error_after: float = 0.0
    reset_before: float = 0.0
    reset_after: float = 0.0
    doubled: float = 0.0

    def shares(self) -> Iterator[tuple[Fate, float]]:
        """Yield how often each fate on the wire is drawn; together at most 1."""
        yield "slow", self.slow
        yield "hung", self.hung
        yield "error_before", self.error_before
        yield "error_after", self.error_after
        yield "reset_before", self.reset_before
        yield "reset_after", self.reset_after
        yield "doubled", self.doubled


class Executed(msgspec.Struct, frozen=True, rename="camel"):
    """An order that was carried out: how much, for how much in all, when (microseconds)."""

    request_id: str
    quantity: str
    price: str
    at: int
    side: str
    order_id: str


class BadOrder(Exception):
    """This is no order of the post, with the reason for its caller."""


class _Order(NamedTuple):
    """An order of either post, understood; `item` is what it calls BESKAR."""

    request_id: str
    side: Literal["buy", "sell"]
    item: str
    quantity: str


class _MosEspaOrder(msgspec.Struct, rename="camel"):
    request_id: str
    type: Literal["market"]
    side: Literal["buy", "sell"]
    asset: Literal["BESKAR", "BSK"]
    currency: Literal["GC"]
    quantity: str

    def understood(self) -> _Order:
        return _Order(self.request_id, self.side, self.asset, canonical(self.quantity))


class _BlackSpireOrder(msgspec.Struct, rename="camel"):
    request_id: str
    side: Literal["BUY", "SELL"]
    item: Literal["STEEL:MANDALORIAN", "BSK"]
    amount: msgspec.Raw

    def understood(self) -> _Order:
        # The text of a JSON number is an amount's text; that of a string, in its quotes, is not.
        amount = canonical(bytes(self.amount).decode())
        side: Literal["buy", "sell"] = "buy" if self.side == "BUY" else "sell"
        return _Order(self.request_id, side, self.item, amount)


_SHAPES: dict[Market, type[_MosEspaOrder | _BlackSpireOrder]] = {
    "mos_espa": _MosEspaOrder,
    "black_spire": _BlackSpireOrder,
}


class Post:
    """One post: its order book, its moods, and what it answers."""

    def __init__(self, market: Market, walk: PriceWalk, odds: Odds, seed: int) -> None:
        self.market: Market = market
        self.odds = odds
        """May be replaced at any time."""
        self.fates: deque[Fate] = deque()
        """What becomes of the next requests, instead of what would be drawn."""
        self.executed: list[Executed] = []
        """The order book: what was carried out, in order."""
        self.received: deque[bytes] = deque(maxlen=_KNOWN_BODIES)
        """The bodies of the last orders, as they came."""
        self.fated: Counter[Fate] = Counter()
        """How many requests had which fate; "failed" are answers that said so."""
        self._walk = walk
        self._seed = seed
        self._answers: dict[str, bytes] = {}
        self._failures: dict[str, bytes] = {}
        self._tries: Counter[str] = Counter()

    def read(self, body: bytes) -> _Order:
        """Understand an order. Raises BadOrder."""
        self.received.append(body)
        try:
            order = msgspec.json.decode(body, type=_SHAPES[self.market]).understood()
        except (ValueError, Refused) as error:
            raise BadOrder(str(error)) from None
        if order.quantity == "0" or not order.request_id:
            raise BadOrder("an order has an id and a quantity")
        return order

    def fate_of(self, request_id: str) -> tuple[Fate, bool]:
        """Return what becomes of a request, and whether its order, if it is new, fails."""
        self._tries[request_id] += 1
        if self.fates:
            fate = self.fates.popleft()
            return ("well", True) if fate == "failed" else (fate, False)
        draw = random.Random(f"{self._seed} {self.market} {request_id} {self._tries[request_id]}")
        is_failing = draw.random() < self.odds.failed
        where = draw.random()
        for fate, share in self.odds.shares():
            where -= share
            if where < 0:
                return fate, is_failing
        return "well", is_failing

    def carry_out(self, order: _Order, *, is_failing: bool, at: int) -> bytes:
        """Do an order that is new, and return the body of its answer; a known one gets its own."""
        known = self._answers.get(order.request_id)
        if known is not None:
            return known
        is_failing = is_failing or (
            self.odds.is_failure_final and order.request_id in self._failures
        )
        if is_failing or self.market not in self._walk.levels:
            self.fated["failed"] += 1
            body = self.failure("the order could not be matched", order.request_id)
            return self._failures.setdefault(order.request_id, body)
        average = self._walk.average(self.market, order.side, Decimal(order.quantity))
        done = Executed(
            order.request_id,
            order.quantity,
            times(average, order.quantity),
            at,
            order.side,
            f"{self.market}-{len(self.executed) + 1}",
        )
        self.executed.append(done)
        answer = self._answers[order.request_id] = self._success(done, order.item)
        return answer

    def failure(self, reason: str, request_id: str = "") -> bytes:
        """Return the body that says that an order was not carried out."""
        named = {"requestId": request_id} if request_id else {}
        if self.market == "mos_espa":
            return msgspec.json.encode({**named, "success": False, "reason": reason})
        return msgspec.json.encode({**named, "error": reason})

    def _success(self, done: Executed, item: str) -> bytes:
        if self.market == "mos_espa":
            return msgspec.json.encode(
                {
                    "orderId": done.order_id,
                    "success": True,
                    "type": "market",
                    "side": done.side,
                    "asset": item,
                    "currency": "GC",
                    "quantity": done.quantity,
                    "price": done.price,
                    "requestId": done.request_id,
                }
            )
        return msgspec.json.encode(
            {
                "requestId": done.request_id,
                "id": done.order_id,
                "side": done.side.upper(),
                "item": item,
                "amount": number(done.quantity),
                "totalPrice": number(done.price),
            }
        )


def times(price: str, quantity: str) -> str:
    """Return the exact product of two amounts as text."""
    (one, its_decimals), (other, more_decimals) = parse(price), parse(quantity)
    return format_amount(one * other, its_decimals + more_decimals)

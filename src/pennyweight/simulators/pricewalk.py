"""The price of BESKAR as it walks at random, or along a script, and what both posts say of it.

Each post tells it in its own words, true to the wire. Everything is decimal; nothing is a float
but the odds. The same seed gives the same messages for the same times.
"""

import random
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from typing import Literal, NamedTuple

import msgspec

from pennyweight.ledger.money import canonical
from pennyweight.ledger.refusals import Refused
from pennyweight.products.loans.shared import LEVELS, MARKETS, Market

SEED_ITEM = "STEEL:MANDALORIAN"
OTHER_ITEM = "STEEL:DURASTEEL"

_FLOOR = Decimal(10)
_STEP, _NOISE, _PER_MILLION = 60_000, 10_000, 1_000_000
_DIGITS = 60
_EIGHT_DECIMALS = Decimal("1e-8")

_LOGARITHMS = {
    1: Decimal(0),
    10: Decimal(1),
    50: Decimal("1.69897000433601880478626110527550697"),
    100: Decimal(2),
}
_MARGINS: dict[Market, tuple[Decimal, int]] = {
    "mos_espa": (Decimal("0.005"), 100),
    "black_spire": (Decimal("0.004"), 120),
}


class Sides(NamedTuple):
    """What one BESKAR costs and brings on average at one size, as decimal text."""

    buy: str
    sell: str


class PriceWalk:
    """A price that walks, and what both posts say of it; pure, time is handed in.

    From `start` it takes steps of up to 6 percent and stays at 10 or above; each post is off
    by up to 1 percent (`noise`, in millionths). `script` are the first values of the price, as
    decimal text, which may fall and recover as a test wants it; from its end the walk goes on.
    """

    def __init__(
        self,
        seed: int,
        *,
        start: str = "50",
        script: Iterable[str] = (),
        noise: int = _NOISE,
        decimals: Mapping[Market, int] | None = None,
        others: float = 0.0,
        item: str = SEED_ITEM,
    ) -> None:
        """`decimals` (2 to 8) are those of each post's prices; by default 2, and 8 at Black Spire.

        `others` is how often Black Spire also tells of another item, from 0 to 1. Raises
        ValueError for what is no price.
        """
        self.mid = _price(start)
        self.levels: dict[Market, dict[int, Sides]] = {}
        """What each post quotes now, by size; nothing before the first tick."""
        self._draw = random.Random(f"prices {seed}")
        self._script = deque(_price(price) for price in script)
        self._noise = noise
        self._decimals: Mapping[Market, int] = decimals or {"mos_espa": 2, "black_spire": 8}
        self._others = others
        self._item = item
        self._ticks = 0

    def tick(self, at: int) -> list[tuple[Market, bytes]]:
        """Take one step, and return the messages that tell of it; `at` is milliseconds since 1970."""
        self._ticks += 1
        with localcontext() as context:
            context.prec = _DIGITS
            self.mid = self._next_mid()
            prices = {market: self.mid * self._factor(self._noise) for market in MARKETS}
            self.levels = {market: self._levels(market, prices[market]) for market in MARKETS}
        messages: list[tuple[Market, bytes]] = [
            ("mos_espa", self._mos_espa(prices["mos_espa"], at)),
            ("black_spire", self._black_spire(prices["black_spire"], at, self._item)),
        ]
        if self._draw.random() < self._others:
            place = self._draw.randrange(3)
            other = self._black_spire(prices["black_spire"] * 7, at, OTHER_ITEM)
            messages.insert(place, ("black_spire", other))
        return messages

    def average(self, market: Market, side: Literal["buy", "sell"], quantity: Decimal) -> str:
        """Return the average that a post quotes now for a size; beyond the largest, that one's."""
        levels = self.levels[market]
        size = next((size for size in levels if size >= quantity), LEVELS[-1])
        return levels[size].sell if side == "sell" else levels[size].buy

    def _next_mid(self) -> Decimal:
        if self._script:
            return self._script.popleft()
        if self._ticks == 1:
            return self.mid
        return max(_FLOOR, self.mid * self._factor(_STEP)).quantize(_EIGHT_DECIMALS)

    def _factor(self, spread: int) -> Decimal:
        """Return a factor around 1, off by at most so many millionths."""
        return Decimal(_PER_MILLION + self._draw.randint(-spread, spread)) / _PER_MILLION

    def _levels(self, market: Market, price: Decimal) -> dict[int, Sides]:
        base, divisor = _MARGINS[market]
        margins = {size: base + log / divisor for size, log in _LOGARITHMS.items()}
        return {
            size: Sides(
                self._text(market, price * (1 + margin)), self._text(market, price * (1 - margin))
            )
            for size, margin in margins.items()
        }

    def _text(self, market: Market, price: Decimal) -> str:
        return f"{price.quantize(Decimal(10) ** -self._decimals[market]):f}"

    def _mos_espa(self, price: Decimal, at: int) -> bytes:
        moment = datetime.fromtimestamp(at // 1000, UTC).isoformat().removesuffix("+00:00")
        return msgspec.json.encode(
            {
                "eventId": f"price-{at}-{self._ticks}",
                "asset": "BESKAR",
                "currency": "GC",
                "timestamp": f"{moment}.{at % 1000:03}Z",
                "price": number(self._text("mos_espa", price)),
                "levels": [
                    {"quantity": size, "buy": sides.buy, "sell": sides.sell}
                    for size, sides in self.levels["mos_espa"].items()
                ],
            }
        )

    def _black_spire(self, price: Decimal, at: int, item: str) -> bytes:
        levels = self.levels["black_spire"]
        return msgspec.json.encode(
            {
                "item": item,
                "time": at // 1000,
                "timestamp": at,
                "price": number(self._text("black_spire", price)),
                "buy": [
                    {"amount": size, "price": number(sides.buy)} for size, sides in levels.items()
                ],
                "sell": [
                    {"amount": size, "price": number(sides.sell)} for size, sides in levels.items()
                ],
            }
        )


def _price(text: str) -> Decimal:
    """Read a price. Raises ValueError."""
    try:
        found = Decimal(canonical(text))
    except Refused as refused:
        raise ValueError(str(refused)) from None
    if not found:
        raise ValueError("a price is above 0")
    return found


def number(text: str) -> msgspec.Raw:
    """Return a JSON number with exactly these digits."""
    return msgspec.Raw(text.encode())

"""The last quote of each market, and whether anything may be decided by it.

Prices come late, twice, in another order, or wrong. A quote that is offered is taken or not,
and the guards say which. It counts for `age_seconds` by two clocks, ours when it came and
its market's own. All bounds are inclusive: a quote of exactly that age still counts, and a
difference of exactly so many percent is still borne. Nothing here is ever a float but the age
that people are shown.

A market that really jumped is not believed at once, because its last quote speaks against it;
when that is `age_seconds` old it speaks no more, and what the market says then is taken.
Until then decisions go by the older quote, or by the other market.
"""

import threading
from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from pennyweight.ledger.money import format_amount
from pennyweight.products.loans.shared import (
    LEVELS,
    MARKETS,
    ONE,
    SCALE,
    Market,
    Quote,
    price_at,
)

Verdict = Literal["accepted", "duplicate", "stale", "out_of_order", "jump"]
VERDICTS: tuple[Verdict, ...] = ("accepted", "duplicate", "stale", "out_of_order", "jump")

IDS_KEPT = 100
"""Of each market, ids of the last accepted quotes. What is older than these is out of order."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class QuoteBoard:
    """What is known of prices, bounded in size. For any thread; times are microseconds since 1970."""

    def __init__(
        self, *, age_seconds: float, deviation_percent: float, jump_percent: float
    ) -> None:
        """Nothing is known yet.

        Markets whose prices differ by more than `deviation_percent` of the lower one say
        nothing together; a quote that differs by more than `jump_percent` from its market's
        last one is not taken. Both look at every quantity that both quotes have: each of
        them values loans of its size.
        """
        self._age = int(Decimal(str(age_seconds)) * 1_000_000)
        self._deviation = _ratio(deviation_percent)
        self._jump = _ratio(jump_percent)
        self._lock = threading.Lock()
        self._last: dict[Market, Quote] = {}
        self._ids: dict[Market, deque[str]] = {market: deque(maxlen=IDS_KEPT) for market in MARKETS}
        self._counts: dict[Market, Counter[Verdict]] = {market: Counter() for market in MARKETS}

    def offer(self, quote: Quote, now: int) -> Verdict:
        """Take a quote, or say why not. What is not taken changes nothing but a count."""
        with self._lock:
            verdict = self._judge(quote, now)
            self._counts[quote.market][verdict] += 1
            if verdict == "accepted":
                self._last[quote.market] = quote
                self._ids[quote.market].append(quote.id)
            return verdict

    def adopt(self, quotes: Sequence[Quote]) -> None:
        """Take what another board has accepted, whatever it says and however old it is."""
        with self._lock:
            self._last.update({quote.market: quote for quote in quotes})

    def fresh(self, now: int) -> tuple[Quote, ...]:
        """Return the quotes that decisions may stand on; none where the markets differ too much."""
        found = self._counting(now)
        return () if self._is_deviating(found) else found

    def counts_until(self, quotes: Sequence[Quote]) -> int:
        """Return the last moment at which all of these quotes count; 0 for none."""
        return min((min(quote.at, quote.received_at) + self._age for quote in quotes), default=0)

    def latest(self) -> tuple[Quote, ...]:
        """Return the last accepted quote of each market, however old."""
        with self._lock:
            return tuple(self._last[market] for market in MARKETS if market in self._last)

    def counts(self) -> dict[Market, dict[Verdict, int]]:
        """Return what became of the quotes offered, by market."""
        with self._lock:
            return {
                market: {verdict: counts[verdict] for verdict in VERDICTS}
                for market, counts in self._counts.items()
            }

    def state(self, now: int) -> dict[str, Any]:
        """Return all that is known, as JSON values.

        A market that has said nothing has no times and no levels. `best` says for each size
        what it sells for best, at which market, by the quotes that decisions may stand on.
        """
        latest = {quote.market: quote for quote in self.latest()}
        counts = self.counts()
        markets: dict[str, Any] = {
            market: self._market_state(latest.get(market), now) | {"counts": counts[market]}
            for market in MARKETS
        }
        found = tuple(quote for quote in latest.values() if self._is_counting(quote, now))
        is_deviating = self._is_deviating(found)
        best = [] if is_deviating else [_best(found, quantity) for quantity in LEVELS]
        return {
            "markets": markets,
            "best": [entry for entry in best if entry is not None],
            "is_deviating": is_deviating,
        }

    # ── the guards ────────────────────────────────────────────────────────────────

    def _judge(self, quote: Quote, now: int) -> Verdict:
        """Return what is to become of a quote. The lock is held."""
        if quote.id in self._ids[quote.market]:
            return "duplicate"
        if not self._is_counting(quote, now):
            return "stale"
        before = self._last.get(quote.market)
        if before is None:
            return "accepted"
        if quote.at < before.at:
            return "out_of_order"
        if self._is_counting(before, now) and self._is_jump(before, quote):
            return "jump"
        return "accepted"

    def _is_counting(self, quote: Quote, now: int) -> bool:
        """Whether a quote is young enough by both clocks, neither of which is far ahead of now."""
        return abs(now - quote.received_at) <= self._age and abs(now - quote.at) <= self._age

    def _is_jump(self, before: Quote, after: Quote) -> bool:
        """Whether a market's price of any quantity has moved by more than is believed."""
        percent, parts = self._jump
        return any(
            abs(new - old) * 100 * parts > percent * old for old, new in _common(before, after)
        )

    def _is_deviating(self, quotes: Sequence[Quote]) -> bool:
        """Whether two markets say what cannot both be right."""
        if len(quotes) < len(MARKETS):
            return False
        percent, parts = self._deviation
        return any(
            abs(one - other) * 100 * parts > percent * min(one, other)
            for one, other in _common(*quotes)
        )

    def _counting(self, now: int) -> tuple[Quote, ...]:
        return tuple(quote for quote in self.latest() if self._is_counting(quote, now))

    def _market_state(self, quote: Quote | None, now: int) -> dict[str, Any]:
        if quote is None:
            return {"at": None, "received_at": None, "age_seconds": None} | {
                "is_fresh": False,
                "levels": [],
            }
        age = max(0, now - min(quote.at, quote.received_at))
        return {
            "at": _text(quote.at),
            "received_at": _text(quote.received_at),
            "age_seconds": round(age / 1_000_000, 3),
            "is_fresh": self._is_counting(quote, now),
            "levels": [
                {"quantity": level.quantity, "sell": format_amount(level.sell, SCALE)}
                for level in quote.levels
            ],
        }


def _ratio(percent: float) -> tuple[int, int]:
    """Return percents as (numerator, denominator), exactly what the configuration says."""
    return Decimal(str(percent)).as_integer_ratio()


def _common(one: Quote, other: Quote) -> list[tuple[int, int]]:
    """Return both prices of every quantity that both quote."""
    prices = {level.quantity: level.sell for level in other.levels}
    return [
        (level.sell, prices[level.quantity]) for level in one.levels if level.quantity in prices
    ]


def _best(quotes: Sequence[Quote], quantity: int) -> dict[str, Any] | None:
    """Return who pays best for so much; of two that pay the same, the first in order."""
    best: tuple[Market, int] | None = None
    for quote in quotes:
        price = price_at(quote, quantity * ONE)
        if price is not None and (best is None or price > best[1]):
            best = (quote.market, price)
    if best is None:
        return None
    return {"quantity": quantity, "market": best[0], "sell": format_amount(best[1], SCALE)}


def _text(moment: int) -> str:
    """Write microseconds since 1970 as RFC 3339."""
    text: str = (_EPOCH + timedelta(microseconds=moment)).isoformat(timespec="microseconds")
    return f"{text[:-6]}Z"

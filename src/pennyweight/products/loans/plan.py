"""How much to sell where: just enough, at the best margin over both markets.

A market quotes averages for sizes; what one BESKAR more brings (the margin) follows from
two neighbouring sizes. The greedy split takes the best margin first, and so chooses the
markets and how a sale is divided between them, where that is better than one market alone. How large the last slice is, is decided
by the quote that stands for its own size: the smallest quantity that brings what is
missing, and never more than the collateral or the market's largest size.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from pennyweight.products.loans.shared import ONE, STEP, Market, Quote, price_at, value_of


class Part(NamedTuple):
    """A slice to be placed: where, how much, at which price, and what that should bring."""

    market: Market
    quantity: int
    price: int
    expected: int


class _Margin(NamedTuple):
    """So much may be sold at this margin (GC for one BESKAR, smallest units of both)."""

    price: Fraction
    quantity: int


def plan(remaining: int, free: int, quotes: Sequence[Quote]) -> list[Part]:
    """Return what to sell so that it brings `remaining`, or as much as can be sold at once.

    `free` is the collateral that may be sold, in whole steps. At most one slice a market. The
    split by margins is compared with each market alone, as a slice is paid the average for the
    size that it reaches into: the least quantity that brings enough, else what brings most.
    """
    options = [
        _parts(remaining, free, _split(remaining, free, quotes)),
        *(_parts(remaining, free, [(quote, free)]) for quote in quotes if len(quotes) > 1),
    ]
    return min(options, key=lambda parts: _cost(remaining, parts))


def _cost(remaining: int, parts: Sequence[Part]) -> tuple[bool, int]:
    """Rank what could be sold, best first."""
    brought = sum(part.expected for part in parts)
    if brought < remaining:
        return True, -brought
    return False, sum(part.quantity for part in parts)


def _parts(remaining: int, free: int, split: list[tuple[Quote, int]]) -> list[Part]:
    """Return the slices of a split, of which the last is just enough for what the others leave."""
    parts: list[Part] = []
    while split and remaining > 0 and free > 0:
        quote, quantity = split.pop(0)
        if not split:
            quantity = just_enough(remaining, free, quote)
        part = _part(quote, quantity)
        parts.append(part)
        remaining -= part.expected
        free -= part.quantity
    return parts


def just_enough(remaining: int, free: int, quote: Quote) -> int:
    """Return the smallest quantity that brings so much at its own quote, or all that can be sold."""
    for level in quote.levels:
        quantity = steps_for(remaining, level.sell) * STEP
        if quantity <= level.quantity * ONE:
            return min(quantity, free)
    return min(quote.levels[-1].quantity * ONE, free)


def steps_for(remaining: int, price: int | Fraction) -> int:
    """Return how many steps of 10^-8 BESKAR bring at least so much at a price."""
    return int(-(-remaining * ONE // (price * STEP)))


def is_minimal(part: Part, remaining: int, free: int, quote: Quote, *, is_last: bool) -> bool:
    """Whether a slice is what its quote asks for: the last exactly, those before it no more.

    The smallest of what brings the rest, the collateral, and the market's largest size.
    """
    most = min(steps_for(remaining, part.price) * STEP, free, quote.levels[-1].quantity * ONE)
    is_right = part.quantity == most if is_last else 0 < part.quantity <= most
    return is_right and part == _part(quote, part.quantity)


def _part(quote: Quote, quantity: int) -> Part:
    price = price_at(quote, quantity)
    if price is None:
        raise ValueError(f"{quote.market} does not quote {quantity}")
    return Part(quote.market, quantity, price, value_of(quantity, price))


def _split(remaining: int, free: int, quotes: Sequence[Quote]) -> list[tuple[Quote, int]]:
    """Divide a sale by the best margins; return markets and whole steps, the largest first."""
    margins = {quote.market: _margins(quote) for quote in quotes}
    taken: dict[Market, int] = {}
    raised = Fraction(0)
    while raised < remaining and free > 0:
        offers = [(of[0].price, market) for market, of in margins.items() if of]
        if not offers:
            break
        price, market = max(offers, key=lambda offer: offer[0])
        margin = margins[market].pop(0)
        missing = -(-(remaining - raised) * ONE // (price * STEP)) * STEP
        quantity = min(margin.quantity, free, int(missing))
        taken[market] = taken.get(market, 0) + quantity
        raised += quantity * price / ONE
        free -= quantity
    split = [(quote, taken[quote.market]) for quote in quotes if taken.get(quote.market)]
    return sorted(split, key=lambda share: -share[1])


def _margins(quote: Quote) -> list[_Margin]:
    """Return what each further stretch of a market's levels brings."""
    margins = []
    quantity = total = 0
    for level in quote.levels:
        more = level.quantity - quantity
        price = Fraction(level.quantity * level.sell - total, more)
        margins.append(_Margin(price, more * ONE))
        quantity, total = level.quantity, level.quantity * level.sell
    return margins

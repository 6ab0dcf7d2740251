"""Who pays whom, and under which keys: seeded choices for the load."""

import random
import time
from collections.abc import Iterator
from itertools import accumulate


class Skew:
    """How evenly accounts are chosen: `uniform`, `zipf:S` (S > 0), `hot` or `scan`.

    Hot means that everybody pays account 0, scan that all take turns, one after the other.
    """

    def __init__(self, text: str) -> None:
        """Raises ValueError for anything else."""
        self.text = text
        self.exponent = 0.0
        self.is_hot = text == "hot"
        self.is_scan = text == "scan"
        if text.startswith("zipf:"):
            self.exponent = float(text.removeprefix("zipf:"))
            if not 0 < self.exponent < 10:
                raise ValueError("zipf needs an exponent above 0 and below 10, as in zipf:1.1")
        elif text not in {"uniform", "hot", "scan"}:
            raise ValueError(f"skew is uniform, zipf:S, hot or scan, not {text!r}")


def zipf_weights(count: int, exponent: float) -> list[float]:
    """Return cumulative weights in which rank k (from 1) has weight 1 / k**exponent."""
    return list(accumulate(1 / rank**exponent for rank in range(1, count + 1)))


def pick(draw: random.Random, skew: Skew, count: int, how_many: int) -> list[int]:
    """Choose `how_many` of `count` accounts by the skew (hot chooses uniformly)."""
    if skew.exponent:
        weights = zipf_weights(count, skew.exponent)
        return draw.choices(range(count), cum_weights=weights, k=how_many)
    if skew.is_scan:
        return [turn % count for turn in range(how_many)]
    return draw.choices(range(count), k=how_many)


def pairs(draw: random.Random, skew: Skew, count: int, how_many: int) -> list[tuple[int, int]]:
    """Choose (payer, payee) pairs, never the same account twice in a pair.

    Raises ValueError for fewer than two accounts.
    """
    if count < 2:
        raise ValueError("payments need at least two accounts")
    if skew.is_hot:
        return [(1 + payer, 0) for payer in draw.choices(range(count - 1), k=how_many)]
    payers = pick(draw, skew, count, how_many)
    payees = pick(draw, skew, count, how_many)
    return [
        (payer, payee if payee != payer else (payee + 1) % count)
        for payer, payee in zip(payers, payees, strict=True)
    ]


def keys(draw: random.Random, *, is_ordered: bool) -> Iterator[int]:
    """Yield keys of 128 bits: random ones, or beginning with the time like version 7 UUIDs."""
    bits = draw.getrandbits
    if not is_ordered:
        while True:
            yield bits(128)
    clock = time.time_ns
    while True:
        yield (clock() // 1_000_000) << 80 | bits(80)

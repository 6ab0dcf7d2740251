"""The law of portfolios, first part: what an update says, and whether that is news. See `law`."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import msgspec

from pennyweight.ledger.accounts import Account
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.money import format_amount, parse
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.shared import (
    ASSET_LENGTH_MAX,
    WHOLE,
    Holding,
    Portfolio,
    Weights,
)

TARGET_SLACK = 10**9
PROVIDER_SLACK = 10**2
"""Percentages may be off 100 by one part of so many."""

WORTH_DECIMALS = 18


class Book(Protocol):
    """What the law looks at of a book that is rebuilt from its journal."""

    accounts: dict[str, Account]
    assets: dict[str, Asset]
    counters: dict[str, int]
    records: dict[tuple[str, str], bytes]
    time: int


class Wrong(Exception):
    """An entry is not what the law says; the message is the sentence."""


class Said(NamedTuple):
    """What an update says."""

    current: Weights
    value: str
    currency: str
    holdings: dict[str, Holding]


def exact(text: str) -> Fraction:
    """Return decimal text as it is."""
    digits, decimals = parse(text)
    return Fraction(digits, 10**decimals)


def is_name(name: str) -> bool:
    """Whether this may name an asset."""
    return 0 < len(name) <= ASSET_LENGTH_MAX and name.isprintable() and name == name.strip()


def weights_told(allocation: Mapping[str, str], slack: int) -> Weights:
    """Return percentages as weights of exactly the whole; together they are 100, give or take 1/slack."""
    parsed = {name: parse(text) for name, text in allocation.items()}
    scale = max(decimals for _, decimals in parsed.values())
    parts = {name: digits * 10 ** (scale - decimals) for name, (digits, decimals) in parsed.items()}
    total, unit = sum(parts.values()), 10**scale
    if abs(total - 100 * unit) * slack > unit:
        raise Wrong(f"the percentages add up to {format_amount(total, scale)}, not to 100")
    return apportioned(parts, WHOLE)


def apportioned(parts: Mapping[str, int], whole: int) -> dict[str, int]:
    """Share out in proportion, rounded down, and what is left to the largest remainders.

    Of equal ones that of the earlier name comes first.
    """
    total = sum(parts.values())
    shares, remainders = {}, []
    for name in sorted(parts):
        shares[name], rest = divmod(parts[name] * whole, total)
        remainders.append((-rest, name))
    left = whole - sum(shares.values())
    for _, name in sorted(remainders)[:left] if left else ():
        shares[name] += 1
    return shares


def said_in(command: Rebalance) -> Said:
    """Return what an update says, its weights normalised."""
    value, holdings = command.value, command.holdings
    if command.allocation:
        weights = weights_told(command.allocation, PROVIDER_SLACK)
    else:
        worth = {
            name: exact(holding.quantity) * exact(holding.price) * 10 ** (2 * WORTH_DECIMALS)
            for name, holding in holdings.items()
        }
        if not any(worth.values()):
            raise Wrong("there is nothing of anything")
        parts = {name: int(one) for name, one in worth.items()}
        weights = apportioned(parts, WHOLE)
        total = sum(parts.values()) // 10**WORTH_DECIMALS
        value = value or format_amount(total, WORTH_DECIMALS)
    return Said(weights, value, command.currency, holdings)


def result_of(command: Rebalance, said: Said, known: Portfolio, arrived_at: int) -> str:
    """Return what an update is: news, a repeat of the last, or older than that."""
    last = Said(known.current, known.value, known.currency, known.holdings)
    if command.as_of is None:
        if arrived_at < known.heard_at or arrived_at < min(known.as_of, known.run_at):
            return "outdated"
        is_waiting = bool(known.open)
        is_idle = known.run != known.trade_run and not known.rules.calendar
        is_again = known.is_fresh and not command.request_id and said == last
        return "repeat" if is_again and (is_waiting or is_idle) else "rebalanced"
    if command.as_of < known.as_of:
        return "outdated"
    if command.as_of == known.as_of and known.is_timed:
        if said == last:
            return "repeat" if known.is_fresh else "rebalanced"
        return "outdated" if _rank(said) < _rank(last) else "rebalanced"
    return "rebalanced"


def _rank(said: Said) -> tuple[Any, ...]:
    """Return what orders two updates of one moment."""
    held = sorted((name, *msgspec.structs.astuple(one)) for name, one in said.holdings.items())
    return sorted(said.current.items()), said.value, said.currency, held

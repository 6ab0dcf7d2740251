"""Assets: a name, a scale fixed at registration, and the number the payments face uses."""

import re

import msgspec

from pennyweight.ledger.money import DIGITS_MAX

SCALE_MAX = DIGITS_MAX - 8
"""Leaves eight digits before the point, so that every asset can hold an amount worth having."""

_NAME = re.compile(r"[A-Z][A-Z0-9_.-]{0,31}")


class Asset(msgspec.Struct, frozen=True, gc=False):
    """Something that is counted: `scale` decimals, for ever; `currency_id` on the payments face."""

    name: str
    scale: int
    currency_id: int


BUILT_IN = (
    Asset("USD", 18, 1),
    Asset("RUB", 18, 2),
    Asset("BTC", 18, 3),
    Asset("ETC", 18, 4),
    Asset("EUR", 18, 5),
    Asset("BCH", 18, 6),
    Asset("ETH", 18, 7),
    Asset("GC", 24, 8),
    Asset("BESKAR", 24, 9),
)
"""Registered in every fresh book, in this order."""


def is_asset_name(text: str) -> bool:
    """Whether the text can name an asset: capitals and digits, at most 32, no colon."""
    return _NAME.fullmatch(text) is not None

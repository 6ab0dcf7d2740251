"""Holds: money set aside, and the four ways this ends."""

import enum
from typing import Literal

import msgspec


class HoldState(enum.Enum):
    """Where a hold is in its life; only an open one keeps anything."""

    OPEN = "open"
    SETTLED = "settled"
    VOIDED = "voided"
    EXPIRED = "expired"


class Hold(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Money of one account set aside by its owner, a product.

    `amount` was held at first, `remaining` is held still; both smallest units of `asset`.
    From `expires_at` on (microseconds since 1970, None for never) it cannot be settled.
    Ids count 1, 2, 3 … in the book, so the oldest open hold has the least id.
    `reference` is the owner's own name for it, unique per owner, "" for none. `placed_at`
    is when it was placed (microseconds; 0 where entries of an older version do not say),
    `changed_by` the sequence of the entry that changed it last.
    """

    id: int
    account: str
    asset: str
    amount: int
    remaining: int
    owner: str
    state: HoldState = HoldState.OPEN
    expires_at: int | None = None
    reference: str = ""
    placed_at: int = 0
    changed_by: int = 0


HoldVerb = Literal["place", "settle", "void", "expire"]


class HoldChange(msgspec.Struct, frozen=True, gc=False):
    """One change of a hold inside an entry: what was done, by how much `held` changed, and the hold after."""

    verb: HoldVerb
    held: int
    hold: Hold

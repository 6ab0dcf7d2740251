"""Records: product state beside balances, and the marks by which it is found when due."""

from typing import Any

import msgspec

RANK_MIN = -(2**63)
RANK_MAX = 2**63 - 1


class Mark(msgspec.Struct, frozen=True, array_like=True, order=True, gc=False):
    """When a record next needs attention: a place on a named index of signed 64-bit ranks."""

    index: str
    rank: int


class Record(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A versioned piece of product state: kind and id name it, the body is the product's JSON.

    `product` owns it. `version` counts its changes from 1. `labels` list it ("status:new"),
    `names` do too but belong to one record of the kind at a time ("name:buyer"). A record
    with a `holder` is loaded and cached with that holder; only for what a holder has few of.
    """

    kind: str
    id: str
    product: str
    version: int
    body: msgspec.Raw
    labels: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    holder: str = ""

    def read(self, shape: Any) -> Any:
        """Return the body as a value of this type (a struct of the product's)."""
        return msgspec.json.decode(self.body, type=shape)

"""Accounts: ids that can be read, holders, and the facts a decision needs.

An id is `<holder>:<asset>` or `<holder>:<path>:<asset>`: `user:100:BTC`, `account:7:USD`,
`world:BTC`, `owed:user:100:BTC`. One asset per account. Every account counts credits as
plus and debits as minus, so all accounts of an asset add up to zero, and what customers
have stands with a plus, what came from outside stands with a minus at `world`.
"""

import re

import msgspec

from pennyweight.ledger.assets import is_asset_name
from pennyweight.ledger.lines import Roots
from pennyweight.ledger.refusals import Reason, refuse

WORLD = "world"
HOUSE = "house"
SUSPENSE = "suspense"
USER_ID_LENGTH_MAX = 255
ACCOUNTS_PER_HOLDER_MAX = 1_000
HOLDS_OPEN_MAX = 1_000
"""Open holds of one account; placing one more is refused."""

_UNBOUNDED = (WORLD, HOUSE, SUSPENSE, "owed", "venue")
_RESERVED = ("owed", SUSPENSE)
_SEGMENT = re.compile(r"[^\x00-\x1f\x7f:]+")


class Account(msgspec.Struct, gc=False):
    """What is known of one account. Committed ones never change; drafts change copies.

    Amounts are smallest units of `asset`. `floor` is the least that `posted - held` may
    be, None for no limit. `owed` is what later credits pay back first. `version` is the
    sequence of the last entry that changed the account, `lines` the ordinal of its last
    statement line, `roots` where to find them (see `lines`). `number` counts accounts in
    the order of their opening.
    """

    number: int
    id: str
    holder: str
    asset: str
    floor: int | None
    posted: int = 0
    held: int = 0
    owed: int = 0
    open_holds: int = 0
    version: int = 0
    lines: int = 0
    roots: Roots = ()
    is_closed: bool = False

    @property
    def available(self) -> int:
        """What may be spent: posted minus held."""
        return self.posted - self.held


def holder_of(account_id: str) -> str:
    """Return whose account this id names; `owed:user:100:BTC` belongs to `user:100`."""
    first, _, rest = account_id.partition(":")
    if first in {"user", "account"}:
        return f"{first}:{rest.partition(':')[0]}"
    if first == "owed":
        return holder_of(rest)
    return account_id.rpartition(":")[0]


def asset_of(account_id: str) -> str:
    """Return the asset an account id names (its last segment)."""
    return account_id.rpartition(":")[2]


def is_bounded(holder: str) -> bool:
    """Whether accounts of this holder have a floor of 0 unless another one is set."""
    return holder.partition(":")[0] not in _UNBOUNDED


def is_customer(holder: str) -> bool:
    """Whether this holder's data counts against the bound on users in memory."""
    return holder.startswith(("user:", "account:"))


def escape_user_id(user_id: str) -> str:
    """Return the user id as one segment of an account id: "%" and ":" become %25 and %3A.

    Refusal: user_id_invalid for an empty id, one over 255 characters, control characters,
    or what cannot be written as UTF-8.
    """
    if not 0 < len(user_id) <= USER_ID_LENGTH_MAX:
        refuse(Reason.USER_ID_INVALID, f"a user id has 1 to {USER_ID_LENGTH_MAX} characters")
    if user_id.isalnum() and user_id.isascii():
        return user_id
    escaped = user_id.replace("%", "%25").replace(":", "%3A")
    if _SEGMENT.fullmatch(escaped) is None or not _is_encodable(escaped):
        refuse(Reason.USER_ID_INVALID, "a user id holds no control characters")
    return escaped


def unescape_user_id(segment: str) -> str:
    """Return the user id that `escape_user_id` made this segment from."""
    return segment.replace("%3A", ":").replace("%25", "%")


def user_holder(user_id: str) -> str:
    """Return the holder of a user's accounts on every face. Refusal: user_id_invalid."""
    return f"user:{escape_user_id(user_id)}"


def user_account(user_id: str, asset: str) -> str:
    """Return the id of a user's one account of an asset. Refusal: user_id_invalid."""
    return f"user:{escape_user_id(user_id)}:{asset}"


def owed_account(account_id: str) -> str:
    """Return the id of the account that books what this account owes."""
    return f"owed:{account_id}"


def check_account_id(account_id: str, *, is_own: bool = False) -> None:
    """Refuse what cannot be the id of an account; own ids may be the book's own ones.

    Refusal: account_id_invalid.
    """
    segments = account_id.split(":")
    first = segments[0]
    if (
        len(account_id) > 2 * USER_ID_LENGTH_MAX
        or len(segments) < (3 if first in {"user", "account"} else 2)
        or not all(_SEGMENT.fullmatch(segment) for segment in segments)
        or not is_asset_name(segments[-1])
        or not _is_encodable(account_id)
    ):
        refuse(
            Reason.ACCOUNT_ID_INVALID,
            f"{account_id[:80]!r} is not like user:100:BTC or fees:USD",
        )
    if first in _RESERVED and not is_own:
        refuse(Reason.ACCOUNT_ID_INVALID, f"accounts under {first!r} are the book's own")


def _is_encodable(text: str) -> bool:
    """Whether the text can be written as UTF-8 (lone surrogates cannot)."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)

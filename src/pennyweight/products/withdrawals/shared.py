"""What withdrawals and settlements share: names, ids, events, and how a withdrawal is found."""

import re

import msgspec

from pennyweight.ledger.accounts import unescape_user_id
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.commands import Wanted
from pennyweight.ledger.draft import Draft, Facts
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.refusals import Reason, refuse

PRODUCT = "withdrawals"

VENUE = "venue:trades"
"""Holder of the accounts on the other side of all trades, one per token."""

WITHDRAWAL_ID_LENGTH_MAX = 255

ACCEPTED = "withdrawal_accepted"
SETTLED = "withdrawal_settled"
CANCELLED = "withdrawal_cancelled"
EXPIRED = "withdrawal_expired"
UNSOLICITED = "trade_unsolicited"
DEFICIT = "deficit"
"""Names of the events."""

_NUMBERED = re.compile(r"w([1-9][0-9]{0,17})")


class WithdrawalEvent(msgspec.Struct, frozen=True, gc=False):
    """What became of a withdrawal; the quantity is the one that was asked for."""

    user_id: str
    withdrawal_id: str
    token: str
    quantity: str


class TradeEvent(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A trade that was booked, and the withdrawal that it settled, if any."""

    user_id: str
    sold_token: str
    sold_quantity: str
    bought_token: str
    bought_quantity: str
    withdrawal_id: str = ""
    settlement_id: str = ""


class DeficitEvent(msgspec.Struct, frozen=True, gc=False):
    """A trade took more than the user had: what was missing, and all that is owed now."""

    user_id: str
    token: str
    shortage: str
    owed: str


def withdrawal_id_of(hold: Hold) -> str:
    """Return the id of the withdrawal that a hold of this product is."""
    return hold.reference or f"w{hold.id}"


def numbered_hold(withdrawal_id: str) -> int | None:
    """Return the number of the hold that an id made by us names, None for a caller's id."""
    match = _NUMBERED.fullmatch(withdrawal_id)
    return int(match[1]) if match else None


def check_withdrawal_id(withdrawal_id: str) -> None:
    """Refuse an id that callers may not choose. Refusal: withdrawal_id_invalid."""
    if (
        not 0 < len(withdrawal_id) <= WITHDRAWAL_ID_LENGTH_MAX
        or not withdrawal_id.isprintable()
        or "/" in withdrawal_id
        or withdrawal_id in {".", ".."}
        or numbered_hold(withdrawal_id) is not None
    ):
        refuse(
            Reason.WITHDRAWAL_ID_INVALID,
            f"a withdrawal_id has 1 to {WITHDRAWAL_ID_LENGTH_MAX} printable characters, no '/', "
            "is not '.' or '..', and not 'w' and a number, which ours are",
        )


def want_withdrawal(wanted: Wanted, withdrawal_id: str, of: str = "") -> None:
    """Ask for the hold that an id names, most likely of a holder who is named before it."""
    number = numbered_hold(withdrawal_id)
    if number is not None:
        wanted.hold(number, of)
    else:
        wanted.hold_of_reference(PRODUCT, withdrawal_id, of)


def find_withdrawal(draft: Draft, withdrawal_id: str) -> Hold | None:
    """Return the hold that an id names, open or not, or None."""
    number = numbered_hold(withdrawal_id)
    if number is None:
        return draft.hold_of_reference(withdrawal_id)
    hold = draft.find_hold(number)
    if hold is None or hold.owner != PRODUCT or hold.reference:
        return None
    return hold


def token_of(draft: Draft, token: str) -> Asset:
    """Return a token's asset. Refusal: token_unknown."""
    asset = draft.facts.asset(token)
    if asset is None:
        refuse(
            Reason.TOKEN_UNKNOWN, f"{token[:40]!r} is not a token of this book", token=token[:40]
        )
    return asset


def check_user(facts: Facts, holder: str) -> None:
    """Refuse a user without any account. Refusal: user_not_found."""
    if not facts.accounts_of(holder):
        user = user_of(holder)
        refuse(Reason.USER_NOT_FOUND, f"there is no user {user[:80]!r}", user_id=user[:80])


def user_of(holder: str) -> str:
    """Return the user's id as callers write it."""
    return unescape_user_id(holder.partition(":")[2])

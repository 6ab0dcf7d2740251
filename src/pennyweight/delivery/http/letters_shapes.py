"""The shapes of the face of dead letters on the wire: what comes in, and what goes out."""

from typing import Annotated, Literal

import msgspec

from pennyweight.delivery.http.wire import decoder
from pennyweight.delivery.http.withdrawals_shapes import Carried

NOTE_LENGTH_MAX = 1_000

# ── what comes in ─────────────────────────────────────────────────────────────────


class CloseBody(Carried, kw_only=True, gc=False):
    """Why a dead letter is closed."""

    note: Annotated[str, msgspec.Meta(max_length=NOTE_LENGTH_MAX)] = ""


close_decoder = decoder(CloseBody)


# ── what goes out ─────────────────────────────────────────────────────────────────


class HeaderShown(msgspec.Struct, frozen=True):
    """A header of a message; `value` is text, `value_base64` is there if it is none."""

    name: str
    value: str | msgspec.UnsetType = msgspec.UNSET
    value_base64: str | msgspec.UnsetType = msgspec.UNSET


class LetterListed(msgspec.Struct, frozen=True, kw_only=True):
    """A message that could not be taken: whose it is, where it was, why, what became of it."""

    id: str
    product: str
    topic: str
    partition: int
    offset: int
    reason: str
    detail: str
    set_aside_at: str
    state: Literal["open", "replayed", "closed"]
    closed_in: int | msgspec.UnsetType = msgspec.UNSET
    note: str | msgspec.UnsetType = msgspec.UNSET


class LetterShown(LetterListed, frozen=True, kw_only=True):
    """A dead letter with the message itself: as text, or in base64 where it is not UTF-8."""

    key: str | msgspec.UnsetType = msgspec.UNSET
    key_base64: str | msgspec.UnsetType = msgspec.UNSET
    payload: str | msgspec.UnsetType = msgspec.UNSET
    payload_base64: str | msgspec.UnsetType = msgspec.UNSET
    headers: list[HeaderShown]


class LettersPage(msgspec.Struct, frozen=True):
    """A page of dead letters."""

    data: list[LetterListed]
    next_cursor: str | None


class LetterClosed(msgspec.Struct, frozen=True):
    """A dead letter that was closed."""

    id: str
    state: str


class UpdateReplayed(msgspec.Struct, frozen=True, gc=False):
    """What an update out of a dead letter led to.

    `result`: the portfolio was rebalanced by it; or it says again what the newest update
    said (repeat); or it is older than that one (outdated), and changed nothing. `run` is
    the run that it led to or repeats, which has so many transactions.
    """

    result: Literal["rebalanced", "repeat", "outdated"]
    user_id: str
    run: int | None
    transaction_count: int

"""The shapes of the withdrawals face on the wire: what comes in, and what goes out."""

from typing import Literal

import msgspec

from pennyweight.delivery.http.wire import Amount, Moment, decoder
from pennyweight.delivery.settlements import Id, PostedSettlement, Token
from pennyweight.products.withdrawals.controls import Mode

Status = Literal["open", "settled", "cancelled", "expired"]
"""What became of a withdrawal."""

# ── what comes in ─────────────────────────────────────────────────────────────────


class Carried(msgspec.Struct, kw_only=True, gc=False):
    """What the body of any command may carry."""

    idempotency_key: str | None = None
    not_after: Moment | None = None


class WithdrawalBody(Carried, kw_only=True, gc=False):
    """A withdrawal to check and hold. `requested_amount` is another name of `requested_quantity`.

    `withdrawal_id` is the caller's own id for it; it is the idempotency key too, unless
    one is given. `expires_in_seconds` is from 1 to 316 224 000 (ten years of 366 days).
    """

    user_id: Id
    token: Token
    requested_quantity: Amount | None = None
    requested_amount: Amount | None = None
    withdrawal_id: Id | None = None
    expires_in_seconds: int | None = None


class LimitsBody(Carried, kw_only=True, gc=False):
    """Both limits of a token, of one user or of all; null or left out: none.

    For a user, none of their own: the one for all counts.
    """

    token: Token
    user_id: Id | None = None
    per_withdrawal: Amount | msgspec.UnsetType | None = msgspec.UNSET
    per_day: Amount | msgspec.UnsetType | None = msgspec.UNSET


class ModeBody(Carried, kw_only=True, gc=False):
    """The mode of a token; of everything, if that is null or left out."""

    mode: Mode
    token: Token | None = None


carried_decoder = decoder(Carried)
withdrawal_decoder = decoder(WithdrawalBody)
settlement_decoder = decoder(PostedSettlement)
limits_decoder = decoder(LimitsBody)
mode_decoder = decoder(ModeBody)


# ── what goes out ─────────────────────────────────────────────────────────────────


class Sufficient(
    msgspec.Struct, frozen=True, gc=False, tag_field="status", tag="SUFFICIENT_BALANCE"
):
    """The quantity is held. `available` and `held` are as they are after it."""

    withdrawal_id: str
    available: str
    held: str
    requested_quantity: str
    expires_at: str | msgspec.UnsetType = msgspec.UNSET


class WouldSuffice(
    msgspec.Struct, frozen=True, gc=False, tag_field="status", tag="SUFFICIENT_BALANCE"
):
    """The quantity would be held. `available` and `held` are as they would be after it."""

    available: str
    held: str
    requested_quantity: str
    expires_at: str | msgspec.UnsetType = msgspec.UNSET


class Holding(msgspec.Struct, frozen=True, gc=False):
    """An open withdrawal, where a refusal names those that hold the money."""

    withdrawal_id: str
    quantity: str
    accepted_at: str


class Insufficient(
    msgspec.Struct, frozen=True, gc=False, tag_field="status", tag="INSUFFICIENT_BALANCE"
):
    """There is less available than was asked for; nothing changed.

    `open_withdrawals` are those that hold `held`, the oldest first, ten at most;
    `open_withdrawal_count` counts all.
    """

    available: str
    requested_quantity: str
    held: str
    open_withdrawals: list[Holding]
    open_withdrawal_count: int


class WithdrawalShown(msgspec.Struct, frozen=True, gc=False):
    """A withdrawal, and for one that has ended, how, when, and in which entry.

    One that a settlement ended shows what was sold and bought, what of the hold was
    released, and what the user lacked (`shortage`).
    """

    withdrawal_id: str
    user_id: str
    token: str
    requested_quantity: str
    status: Status
    accepted_at: str
    expires_at: str | None
    ended_at: str | msgspec.UnsetType = msgspec.UNSET
    sequence: int | msgspec.UnsetType = msgspec.UNSET
    settlement_id: str | msgspec.UnsetType = msgspec.UNSET
    sold_token: str | msgspec.UnsetType = msgspec.UNSET
    sold_quantity: str | msgspec.UnsetType = msgspec.UNSET
    bought_token: str | msgspec.UnsetType = msgspec.UNSET
    bought_quantity: str | msgspec.UnsetType = msgspec.UNSET
    released: str | msgspec.UnsetType = msgspec.UNSET
    shortage: str | msgspec.UnsetType = msgspec.UNSET


class WithdrawalsPage(msgspec.Struct, frozen=True):
    """A page of open withdrawals."""

    data: list[WithdrawalShown]
    next_cursor: str | None


class CancelledShown(msgspec.Struct, frozen=True, gc=False):
    """A withdrawal that was cancelled, with what the account has after it."""

    withdrawal_id: str
    status: Literal["cancelled"]
    available: str
    held: str
    requested_quantity: str


class BalanceOfToken(msgspec.Struct, frozen=True, gc=False):
    """What a user has of a token: `available` is `posted` minus `held`.

    `owed` is there when something is: later credits of the token pay it back first.
    """

    available: str
    held: str
    posted: str
    owed: str | msgspec.UnsetType = msgspec.UNSET


class BalancesShown(msgspec.Struct, frozen=True, gc=False):
    """What a user has, by token; as of a moment, if one was asked for."""

    user_id: str
    balances: dict[str, BalanceOfToken]
    as_of: str | msgspec.UnsetType = msgspec.UNSET


class SettlementShown(msgspec.Struct, frozen=True, gc=False):
    """What a settlement did; available amounts as they are after it.

    `result`: the withdrawal was settled or cancelled (nothing sold) by it; there was none
    that it belongs to (unsolicited); or it repeats the settlement that ended its
    withdrawal (duplicate), and did nothing. `released` of the hold is free again,
    `shortage` is what the user lacked, `owed` all that they owe of the sold token now.
    `credited` is the account that got what was bought, where the user's own is closed.
    """

    result: Literal["settled", "cancelled", "unsolicited", "duplicate"]
    withdrawal_id: str | None
    sold_available: str
    bought_available: str
    released: str
    shortage: str
    owed: str
    credited: str | msgspec.UnsetType = msgspec.UNSET


class DeficitShown(msgspec.Struct, frozen=True, gc=False):
    """What a user owes of a token."""

    user_id: str
    token: str
    owed: str


class DeficitsPage(msgspec.Struct, frozen=True):
    """A page of what users owe."""

    data: list[DeficitShown]
    next_cursor: str | None


class LimitShown(msgspec.Struct, frozen=True):
    """The limits of a token: of one withdrawal, and of a rolling day. Null: no limit."""

    token: str
    per_withdrawal: str | None
    per_day: str | None


class LimitsShown(msgspec.Struct, frozen=True):
    """The limits for all users (a null `user_id`), or the own limits of one.

    Of a user `effective` is what counts: each own limit, and where that is null, the one
    for all.
    """

    user_id: str | None
    limits: list[LimitShown]
    effective: list[LimitShown] | msgspec.UnsetType = msgspec.UNSET


class LimitSet(msgspec.Struct, frozen=True):
    """Limits as they are set now; a null `user_id`: for all users.

    A null limit of a user: the one for all counts.
    """

    user_id: str | None
    token: str
    per_withdrawal: str | None
    per_day: str | None


class ModesShown(msgspec.Struct, frozen=True):
    """The mode of everything, and of tokens that have one of their own."""

    mode: Mode
    tokens: dict[str, Mode]


class ModeSet(msgspec.Struct, frozen=True):
    """A mode as it is set now; a null `token`: of everything."""

    token: str | None
    mode: Mode

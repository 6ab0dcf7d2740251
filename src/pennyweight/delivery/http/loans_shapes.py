"""The shapes of the loans face on the wire: what comes in, and what goes out.

Names of the seed are cased as the seed has them (loanId); what is ours is written as on
every other face (request_id). All amounts and prices are decimal text.
"""

from typing import Literal

import msgspec

from pennyweight.delivery.http.wire import Moment, decoder
from pennyweight.products.loans.life import Pause
from pennyweight.products.loans.shared import Market, Status

_NAMES = {
    "request_id": "requestId",
    "loan_id": "loanId",
    "borrower_id": "borrowerId",
    "collateral_amount": "collateralAmount",
    "asset_type": "assetType",
    "outstanding_balance": "outstandingBalance",
    "trigger_price": "triggerPrice",
}

AssetType = Literal["BSK", "BESKAR"]
"""The collateral, by the names that the later dialect has for it."""


# ── what comes in ─────────────────────────────────────────────────────────────────


class ApplicationBody(msgspec.Struct, kw_only=True, gc=False, rename=_NAMES):
    """A loan that is applied for: `amount` GC. The `requestId` is the idempotency key."""

    request_id: str
    loan_id: str
    borrower_id: str
    amount: str
    not_after: Moment | None = None


class TopUpBody(msgspec.Struct, kw_only=True, gc=False, rename=_NAMES):
    """Collateral for a loan: `amount` BESKAR. The `requestId` is the idempotency key."""

    request_id: str
    loan_id: str
    borrower_id: str
    amount: str
    not_after: Moment | None = None


class LaterApplicationBody(ApplicationBody, kw_only=True, gc=False, rename=_NAMES):
    """A loan that is applied for, with its first collateral in BESKAR."""

    collateral_amount: str | msgspec.UnsetType = msgspec.UNSET
    asset_type: AssetType | msgspec.UnsetType = msgspec.UNSET


class LaterTopUpBody(TopUpBody, kw_only=True, gc=False, rename=_NAMES):
    """Collateral for a loan, by the name of the asset."""

    asset_type: AssetType | msgspec.UnsetType = msgspec.UNSET


class RequestNamed(msgspec.Struct, gc=False, rename=_NAMES):
    """The name of a request alone, for its answer."""

    request_id: str


class LevelBody(msgspec.Struct, kw_only=True, gc=False):
    """How far liquidations are paused from now on."""

    level: Pause
    idempotency_key: str | None = None
    not_after: Moment | None = None


request_decoder = decoder(RequestNamed)
level_decoder = decoder(LevelBody)


# ── what goes out ─────────────────────────────────────────────────────────────────


class Accepted(msgspec.Struct, frozen=True, gc=False, rename=_NAMES):
    """It is in the book: the loan's status when it was booked."""

    request_id: str
    loan_id: str
    status: Status


class LoanShown(msgspec.Struct, frozen=True, kw_only=True, gc=False, rename=_NAMES):
    """A loan as it is now, all of it text.

    `ltv` is loan-to-value in percent with four decimals, rounded up, at the best fresh
    quote for the loan's size; "" without one, or without collateral. At `triggerPrice` GC
    for one BESKAR, or below, it is liquidated once it is active; "" without collateral,
    and once that has begun.
    """

    loan_id: str
    borrower_id: str
    status: Status
    amount: str
    collateral: str
    outstanding_balance: str
    ltv: str
    trigger_price: str


class LoansShown(msgspec.Struct, frozen=True):
    """Loans by id. `next_cursor` is there where a `limit` or `cursor` was given."""

    loans: list[LoanShown]
    next_cursor: str | msgspec.UnsetType | None = msgspec.UNSET


class LevelShown(msgspec.Struct, frozen=True, gc=False):
    """What one BESKAR brings on average where `quantity` are sold."""

    quantity: int
    sell: str


class QuoteShown(msgspec.Struct, frozen=True, gc=False):
    """A market's quote: its own id and time, and when it came."""

    market: Market
    id: str
    at: str
    received_at: str
    levels: list[LevelShown]


class SliceShown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One order at one venue. `order_id` is the venue's, `reason` says why it failed."""

    number: int
    market: Market
    request_id: str
    state: Literal["open", "filled", "failed"]
    quantity: str
    price: str
    placed_at: str
    ended_at: str | None
    sold: str
    total: str
    order_id: str | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET


class Happening(msgspec.Struct, frozen=True, kw_only=True, gc=False, rename=_NAMES):
    """What happened to a loan: in which entry, and how it stood afterwards.

    `amount` is what was applied for or topped up. Where prices decided it, `quotes` are
    all that it was decided by, `price` is the one that valued the collateral, `ltv` what
    followed. `slices` are those that were placed or that ended, as they stood then.
    """

    sequence: int
    at: str
    what: str
    status: Status
    collateral: str
    outstanding_balance: str
    request: str | msgspec.UnsetType = msgspec.UNSET
    amount: str | msgspec.UnsetType = msgspec.UNSET
    ltv: str | msgspec.UnsetType = msgspec.UNSET
    price: str | msgspec.UnsetType = msgspec.UNSET
    quotes: list[QuoteShown] | msgspec.UnsetType = msgspec.UNSET
    slices: list[SliceShown] | msgspec.UnsetType = msgspec.UNSET


class PartShown(msgspec.Struct, frozen=True, gc=False):
    """What would be sold at one market, at which price, and what that should bring."""

    market: Market
    quantity: str
    price: str
    expected: str


class SaleShown(msgspec.Struct, frozen=True, gc=False):
    """What a liquidation would sell first, if it began now. `missing` would be raised at later quotes."""

    parts: list[PartShown]
    quantity: str
    expected: str
    missing: str


class LoanDetail(LoanShown, frozen=True, kw_only=True, gc=False, rename=_NAMES):
    """A loan with all that became of it, its latest slices, and its history, newest first.

    `collateral` is held on `collateral_account` by `hold`. `activation_price` (or above)
    activates a new loan, `warning_price` (or below) warns. `deficit` is what a liquidation
    did not raise. `if_sold_now` is null without fresh quotes, and where nothing can be sold.
    """

    is_warned: bool
    collateral_account: str
    hold: int | None
    activation_price: str
    warning_price: str
    applied_at: str
    activated_at: str | None
    liquidating_at: str | None
    liquidated_at: str | None
    sold: str
    proceeds: str
    surplus: str
    returned: str
    deficit: str
    if_sold_now: SaleShown | None
    slices_placed: int
    slices: list[SliceShown]
    history: list[Happening]
    next_cursor: str | None


class ProvenSlice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A slice, and what makes it as small as it can be.

    `just_enough` is the smallest of `remaining` divided by `price` (rounded up to 8
    decimals), `free_collateral` and the market's largest size. The last slice of a placing
    is exactly that, those before it are at most that.
    """

    number: int
    market: Market
    request_id: str
    remaining: str
    free_collateral: str
    price: str
    just_enough: str
    quantity: str
    expected: str
    is_minimal: bool
    state: Literal["open", "filled", "failed"]
    sold: str
    total: str
    order_id: str | msgspec.UnsetType = msgspec.UNSET
    reason: str | msgspec.UnsetType = msgspec.UNSET


class Placing(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Slices that were placed together, in one entry, by the same quotes.

    `remaining` is what was still to be raised if all that is out brings what is expected of
    it, `free_collateral` what was not out; `busy` are markets where a slice was out.
    `is_as_planned`: the same quotes give the same slices again.
    """

    sequence: int
    at: str
    remaining: str
    free_collateral: str
    busy: list[Market]
    quotes: list[QuoteShown]
    is_as_planned: bool
    slices: list[ProvenSlice]


class LiquidationProof(msgspec.Struct, frozen=True, kw_only=True, gc=False, rename=_NAMES):
    """How a liquidation sold just enough, re-computed from the journal, oldest placing first.

    `is_minimal` is about the whole liquidation, not the page alone: every placing is as
    planned, every slice just enough, no venue sold more than it was asked, the fills add up
    to what the loan says, and a deficit is left only where nothing was left to sell.
    `wrong` names what is not so.
    """

    loan_id: str
    borrower_id: str
    status: Status
    is_ended: bool
    is_minimal: bool
    wrong: list[str]
    balance: str
    sold: str
    proceeds: str
    surplus: str
    deficit: str
    returned: str
    filled: int
    failed: int
    open: int
    placings: list[Placing]
    next_cursor: str | None


class Pushed(msgspec.Struct, frozen=True, gc=False):
    """What became of a price: `accepted`, or why it was left out."""

    result: str


class LevelSet(msgspec.Struct, frozen=True, gc=False):
    """How far liquidations are paused."""

    level: Pause

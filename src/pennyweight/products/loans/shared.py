"""What all of loans share: the records, the quotes, and the arithmetic of loan-to-value.

Everything is integers. An amount of GC or BESKAR is smallest units (10^-24). A price is the
smallest units of GC for one whole BESKAR, so a quantity's value is quantity x price / 10^24.
Loan-to-value is the balance divided by the value of the collateral; it is compared by
multiplying out, never divided, and every bound is inclusive but the one that re-arms.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from pennyweight.ledger.accounts import check_account_id, escape_user_id, user_account
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.money import LIMIT
from pennyweight.ledger.records import RANK_MAX, RANK_MIN, Mark, Record
from pennyweight.ledger.refusals import Reason, Refused, refuse

PRODUCT = "loans"
BESKAR = "BESKAR"
GC = "GC"
SCALE = 24
"""Decimals of both assets, fixed when the book begins."""

ONE: int = 10**SCALE
STEP: int = 10 ** (SCALE - 8)
"""The smallest quantity that is traded, 10^-8 BESKAR; and what one rank of a price is worth."""

LOAN = "loans.loan"
"""Kind of the record of a loan; its id is the caller's loanId."""

SLICE = "loans.slice"
"""Kind of the record of a slice, one order at one venue; its id is `slice_id`."""

Market = Literal["mos_espa", "black_spire"]
MARKETS: tuple[Market, ...] = ("mos_espa", "black_spire")
LEVELS = (1, 10, 50, 100)
"""Quantities that the markets quote, in whole BESKAR; nothing larger is sold in one slice."""

LTV_ACTIVE = 50
LTV_REARMED = 60
LTV_WARNED = 70
LTV_LIQUIDATED = 80
"""Percent."""

LOAN_ID_LENGTH_MAX = 255

APPLIED = "loan_applied"
ACTIVATED = "loan_activated"
WARNED = "loan_warned"
LIQUIDATING = "loan_liquidating"
LIQUIDATED = "loan_liquidated"
"""Names of the events."""

Status = Literal["new", "active", "liquidating", "liquidated"]


# ── quotes ────────────────────────────────────────────────────────────────────────


class Level(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one BESKAR brings on average when `quantity` whole ones are sold; GC, smallest units."""

    quantity: int
    sell: int


class Quote(msgspec.Struct, frozen=True, gc=False):
    """What a market said: its levels by rising quantity, its own id of the message.

    `at` is the market's time, `received_at` ours; microseconds since 1970.
    """

    market: Market
    id: str
    at: int
    received_at: int
    levels: tuple[Level, ...]


def quote_problem(levels: Sequence[Level]) -> str:
    """Return what is wrong with a market's levels, "" if they can be used.

    Quantities rise and are among `LEVELS`, prices are positive and never rise, and a
    larger sale never brings less in all. A feed that sends totals instead of averages
    has prices that rise; it is named so where the first is ten times the second's worth.
    """
    if not levels:
        return "it has no levels of a known quantity"
    before: Level | None = None
    for level in levels:
        if level.quantity not in LEVELS:
            return f"{level.quantity} is not a quantity that is quoted"
        if not 0 < level.sell < LIMIT:
            return f"the price of {level.quantity} is not positive"
        if before is not None:
            if level.quantity <= before.quantity:
                return "the quantities do not rise"
            if level.sell > 5 * before.sell:
                return "its prices look like totals, not like averages"
            if level.sell > before.sell:
                return f"the price of {level.quantity} is above that of {before.quantity}"
            if level.quantity * level.sell <= before.quantity * before.sell:
                return f"selling {level.quantity} brings no more than {before.quantity}"
        before = level
    return ""


def check_quotes(quotes: Sequence[Quote]) -> None:
    """Refuse quotes that no decision can stand on: one or two markets, each sound.

    Refusal: quotes_invalid.
    """
    if not quotes or len({quote.market for quote in quotes}) != len(quotes):
        refuse(Reason.QUOTES_INVALID, "one quote of each market, and at least one, is needed")
    for quote in quotes:
        problem = quote_problem(quote.levels)
        if problem:
            refuse(Reason.QUOTES_INVALID, f"{quote.market}: {problem}", market=quote.market)


def price_at(quote: Quote, quantity: int) -> int | None:
    """Return the price at the smallest listed quantity that is enough; None if none is."""
    for level in quote.levels:
        if level.quantity * ONE >= quantity:
            return level.sell
    return None


def level_of(collateral: int) -> int:
    """Return the level at which so much collateral is valued: the smallest >= min(it, 100)."""
    for level in LEVELS:
        if level * ONE >= collateral:
            return level
    return LEVELS[-1]


def mark_price(quotes: Iterable[Quote], level: int) -> int | None:
    """Return the best price of a level over the markets, None if nobody quotes it."""
    prices = [price for quote in quotes if (price := price_at(quote, level * ONE)) is not None]
    return max(prices, default=None)


def value_of(quantity: int, price: int) -> int:
    """Return what a quantity is worth at a price, rounded down to a smallest unit."""
    return quantity * price // ONE


# ── loan-to-value ─────────────────────────────────────────────────────────────────


def is_at_least(percent: int, balance: int, collateral: int, price: int) -> bool:
    """Whether loan-to-value is at or above a percentage; without collateral it is infinite."""
    return balance * 100 * ONE >= percent * collateral * price


def is_at_most(percent: int, balance: int, collateral: int, price: int) -> bool:
    """Whether loan-to-value is at or below a percentage; never without collateral."""
    return collateral > 0 and balance * 100 * ONE <= percent * collateral * price


def ltv_text(balance: int, collateral: int, price: int | None) -> str | None:
    """Return loan-to-value in percent with four decimals, rounded up; None where there is none."""
    if not collateral or not price:
        return None
    parts = -(-balance * 1_000_000 * ONE // (collateral * price))
    return f"{parts // 10_000}.{parts % 10_000:04}"


def trigger_price(percent: int, balance: int, collateral: int) -> int | None:
    """Return the highest price, rounded down, at which loan-to-value is at or above a percentage."""
    return balance * 100 * ONE // (percent * collateral) if collateral else None


# ── the indexes of what waits for a price ─────────────────────────────────────────

FALLING = {"liquidate": LTV_LIQUIDATED, "warn": LTV_WARNED}
"""Indexes of what is due when the price is at or below a trigger. Ranks are negative, so that
the highest trigger, which is the highest loan-to-value, comes first."""

RISING = {"activate": LTV_ACTIVE, "rearm": LTV_REARMED}
"""Indexes of what is due when the price is at or above a trigger, lowest trigger first."""


def index_name(what: str, level: int) -> str:
    """Name the index of what waits for the price of a level."""
    return f"loans.{what}.{level}"


def _rank(what: str, balance: int, collateral: int) -> int:
    """Return the rank of a trigger, rounded to the side on which nothing due is missed."""
    if what in FALLING:
        rank = -(-(balance * 100 * ONE) // (FALLING[what] * collateral * STEP))
        return max(RANK_MIN, -rank)
    return min(RANK_MAX, balance * 100 * ONE // (RISING[what] * collateral * STEP))


def highest_rank(what: str, price: int) -> int:
    """Return the highest rank on an index that may be due at a price; due is all up to it."""
    if what in FALLING:
        return max(RANK_MIN, -(price // STEP))
    return min(RANK_MAX, -(-price // STEP))


# ── a loan ────────────────────────────────────────────────────────────────────────


class OpenSlice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A slice that is out at a venue: what may be sold there, and what that brings at its quote."""

    number: int
    market: Market
    quantity: int
    expected: int


class Loan(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A loan, amounts in smallest units, times in microseconds since 1970.

    `balance` is what the borrower owes: nothing before the activation, and after the
    liquidation what the collateral did not cover. `collateral` is what `hold` (its number,
    0 for none) holds. `sold`, `proceeds`, `surplus` and `returned` say what became of it.
    `slices` were placed in all; `open` are those not yet filled or failed. `entry` is the
    sequence of the entry that wrote this version, `previous` that of the one before: so the
    whole history can be followed in the journal.
    """

    borrower: str
    amount: int
    status: Status
    applied_at: int
    entry: int
    previous: int = 0
    collateral: int = 0
    balance: int = 0
    hold: int = 0
    is_warned: bool = False
    slices: int = 0
    open: tuple[OpenSlice, ...] = ()
    sold: int = 0
    proceeds: int = 0
    surplus: int = 0
    returned: int = 0
    activated_at: int = 0
    liquidating_at: int = 0
    liquidated_at: int = 0

    @property
    def exposure(self) -> int:
        """What loan-to-value is reckoned with: what is owed, or will be once it is disbursed."""
        return self.amount if self.status == "new" else self.balance

    @property
    def remaining(self) -> int:
        """What is still to be raised, if all open slices bring what is expected of them."""
        return self.balance - sum(part.expected for part in self.open)

    @property
    def free(self) -> int:
        """Collateral that may still be sold: whole steps, and not what open slices may sell."""
        free = self.collateral - sum(part.quantity for part in self.open)
        return max(0, free) // STEP * STEP


class Slice(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One order at one venue: sell `quantity`, quoted at `price`, under `request_id`.

    `quotes` are all that were at hand when it was placed. `sold` and `total` are what the
    venue says it did for it; `detail` is its order's id, or why it failed.
    """

    loan: str
    borrower: str
    number: int
    market: Market
    request_id: str
    quantity: int
    price: int
    quotes: tuple[Quote, ...]
    placed_at: int
    hold: int
    state: Literal["open", "filled", "failed"] = "open"
    ended_at: int = 0
    sold: int = 0
    total: int = 0
    detail: str = ""


class LoanAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A loan after a command; `placed` are the ids of the slices that it placed."""

    loan: str
    status: Status
    placed: tuple[str, ...] = ()


class LoanEvent(msgspec.Struct, frozen=True, gc=False):
    """What became of a loan; amounts are decimal text, as in `LiquidationEvent`."""

    loan_id: str
    borrower_id: str
    status: Status
    amount: str
    outstanding_balance: str


class LiquidationEvent(msgspec.Struct, frozen=True, gc=False):
    """A liquidation that has ended: what was sold and for how much, what goes back, what is still owed."""

    loan_id: str
    borrower_id: str
    collateral_sold: str
    collateral_sold_value: str
    outstanding_collateral: str
    outstanding_balance: str


class Found(NamedTuple):
    """A loan as a rule has read it."""

    record: Record
    loan: Loan


_loan_decoder = msgspec.json.Decoder(Loan)
_slice_decoder = msgspec.json.Decoder(Slice)


def read_loan(record: Record) -> Loan:
    """Return the loan that a record keeps."""
    return _loan_decoder.decode(record.body)


def read_slice(record: Record) -> Slice:
    """Return the slice that a record keeps."""
    return _slice_decoder.decode(record.body)


def slice_id(loan_id: str, number: int) -> str:
    """Return the id of a loan's slice; in text order they are in the order of their numbers."""
    return f"{loan_id}/{number:06}"


def check_loan_id(loan_id: str) -> None:
    """Refuse what cannot name a loan, or the account of its deficit. Refusal: loan_id_invalid."""
    is_writable = "/" not in loan_id and loan_id not in {".", ".."} and loan_id.isprintable()
    try:
        check_account_id(deficit_account(loan_id), is_own=True)
    except Refused:  # written out, "%" and ":" take three characters
        is_writable = False
    if not is_writable:
        refuse(
            Reason.LOAN_ID_INVALID,
            f"a loan id has 1 to {LOAN_ID_LENGTH_MAX} printable characters, no '/', "
            "and is not '.' or '..'",
        )


def check_borrower(borrower: str) -> None:
    """Refuse who cannot have an account of collateral. Refusal: user_id_invalid."""
    try:
        check_account_id(collateral_account(borrower))
    except Refused as refused:
        refuse(Reason.USER_ID_INVALID, refused.message)


def find_loan(draft: Draft, loan_id: str) -> Found:
    """Return a loan. Refusal: loan_not_found."""
    record = draft.record(LOAN, loan_id)
    if record is None:
        refuse(Reason.LOAN_NOT_FOUND, f"there is no loan {loan_id[:80]!r}", loan=loan_id[:80])
    return Found(record, read_loan(record))


def put_loan(draft: Draft, loan_id: str, loan: Loan, before: Record | None) -> None:
    """Write a loan's next version, with what it is listed by and what it waits for."""
    previous = 0 if before is None else read_loan(before).entry
    draft.put_record(
        LOAN,
        loan_id,
        msgspec.structs.replace(loan, entry=draft.sequence, previous=previous),
        before=before,
        labels=(f"status:{loan.status}", f"borrower:{loan.borrower}"),
        marks=tuple(marks_of(loan)),
    )


def marks_of(loan: Loan) -> Iterable[Mark]:
    """Yield what a loan waits for. One without collateral, or past activity, waits for no price."""
    if not loan.collateral:
        return
    level = level_of(loan.collateral)
    if loan.status == "new":
        kinds: tuple[str, ...] = ("activate",)
    elif loan.status == "active":
        kinds = ("liquidate", "rearm" if loan.is_warned else "warn")
    else:
        kinds = ()
    for kind in kinds:
        yield Mark(index_name(kind, level), _rank(kind, loan.exposure, loan.collateral))


def event_of(loan_id: str, loan: Loan, draft: Draft) -> LoanEvent:
    """Return what is told of a loan that has changed."""
    amount, balance = draft.text(loan.amount, GC), draft.text(loan.balance, GC)
    return LoanEvent(loan_id, loan.borrower, loan.status, amount, balance)


def collateral_account(borrower: str) -> str:
    """Return the id of the account that a borrower's collateral is held on. Refusal: user_id_invalid."""
    return user_account(borrower, BESKAR)


def cash_account(borrower: str) -> str:
    """Return the id of the account that a loan is paid out to. Refusal: user_id_invalid."""
    return user_account(borrower, GC)


def deficit_account(loan_id: str) -> str:
    """Return the id of the account that keeps what a loan's collateral did not cover."""
    return f"loan:{escape_user_id(loan_id)}:deficit:{GC}"


def venue(market: Market) -> str:
    """Return the holder of the accounts on the other side of all trades with a market."""
    return f"venue:{market}"

"""What is shown of a loan, out of committed rows, the journal, and the quotes of the moment.

A loan's record names the entry that wrote it, and that entry's version the one before: so
the whole history is read back from the journal, a page at a time.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from pennyweight.delivery.http.loans_shapes import (
    Happening,
    LevelShown,
    LoanDetail,
    LoanShown,
    PartShown,
    QuoteShown,
    SaleShown,
    SliceShown,
)
from pennyweight.delivery.http.wire import rfc3339
from pennyweight.engine.port import Store
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.money import format_amount
from pennyweight.products.loans.apply import ApplyForLoan, TopUpCollateral
from pennyweight.products.loans.life import ActivateLoan, RearmWarning, WarnLoan
from pennyweight.products.loans.liquidate import (
    BeginLiquidation,
    FailSlice,
    FillSlice,
    PlaceSlices,
)
from pennyweight.products.loans.plan import plan
from pennyweight.products.loans.shared import (
    LOAN,
    LTV_ACTIVE,
    LTV_LIQUIDATED,
    LTV_WARNED,
    ONE,
    SCALE,
    SLICE,
    Loan,
    Quote,
    Slice,
    collateral_account,
    level_of,
    ltv_text,
    mark_price,
    read_loan,
    read_slice,
    slice_id,
    trigger_price,
)

SLICES_MAX = 100
"""How many of its slices a loan shows, the latest."""

_WHAT = {
    ApplyForLoan.name: "applied",
    TopUpCollateral.name: "topped_up",
    ActivateLoan.name: "activated",
    WarnLoan.name: "warned",
    RearmWarning.name: "rearmed",
    BeginLiquidation.name: "liquidation_begun",
    PlaceSlices.name: "slices_placed",
    FillSlice.name: "slice_filled",
    FailSlice.name: "slice_failed",
}
_BY_PRICE = frozenset(
    command.name for command in (ActivateLoan, WarnLoan, RearmWarning, BeginLiquidation)
)


class Version(NamedTuple):
    """A loan as an entry left it."""

    entry: Entry
    loan: Loan


class _Fields(msgspec.Struct, gc=False):
    """What is looked at of the fields of any command on a loan."""

    amount: str | msgspec.UnsetType = msgspec.UNSET
    quotes: tuple[Quote, ...] = ()


_fields_decoder = msgspec.json.Decoder(_Fields)


def text(units: int) -> str:
    """Write smallest units of GC, of BESKAR, or of GC for one BESKAR."""
    return format_amount(units, SCALE)


def moment(time: int) -> str | None:
    """Write a moment; None for one that has not come."""
    return rfc3339(time) if time else None


# ── versions ──────────────────────────────────────────────────────────────────────


def versions(store: Store, loan_id: str, sequence: int) -> Iterator[Version]:
    """Yield a loan's versions from the one that an entry wrote, newest first."""
    while sequence:
        version = version_in(store, loan_id, sequence)
        if version is None:
            raise LookupError(f"entry {sequence} did not write loan {loan_id}")
        yield version
        sequence = version.loan.previous


def version_in(store: Store, loan_id: str, sequence: int) -> Version | None:
    """Return the version of a loan that an entry wrote, None if it wrote none."""
    body = store.entry(sequence)
    if body is None:
        return None
    entry = decode_entry(body)
    for record in entry.records:
        if record.kind == LOAN and record.id == loan_id:
            return Version(entry, read_loan(record))
    return None


def as_of(store: Store, loan_id: str, loan: Loan, sequence: int) -> Loan | None:
    """Return a loan as it was when the book stood at a sequence; None if it was not there yet."""
    if loan.entry <= sequence:
        return loan
    for version in versions(store, loan_id, loan.previous):
        if version.loan.entry <= sequence:
            return version.loan
    return None


def committed_at(store: Store, sequence: int) -> int:
    """Return when an entry was committed."""
    batch = store.batch_at(sequence=sequence)
    if batch is None:
        raise LookupError(f"entry {sequence} is not in the journal")
    return batch.committed_at


# ── the loan now ──────────────────────────────────────────────────────────────────


def show_loan(loan_id: str, loan: Loan, quotes: Sequence[Quote]) -> LoanShown:
    """Show a loan as the list does."""
    return LoanShown(**_facts(loan_id, loan, quotes))


def _facts(loan_id: str, loan: Loan, quotes: Sequence[Quote]) -> dict[str, Any]:
    return {
        "loan_id": loan_id,
        "borrower_id": loan.borrower,
        "status": loan.status,
        "amount": text(loan.amount),
        "collateral": text(loan.collateral),
        "outstanding_balance": text(loan.balance),
        "ltv": _ltv(loan, mark_price(quotes, level_of(loan.collateral))),
        "trigger_price": _price_of(loan, LTV_LIQUIDATED),
    }


def _ltv(loan: Loan, price: int | None) -> str:
    return ltv_text(loan.exposure, loan.collateral, price) or ""


def _price_of(loan: Loan, percent: int) -> str:
    """Return the price at which a loan that waits for prices reaches a percentage, rounded down."""
    if loan.status not in {"new", "active"}:
        return ""
    price = trigger_price(percent, loan.exposure, loan.collateral)
    return "" if price is None else text(price)


def _activation_price(loan: Loan) -> str:
    """Return the lowest price at which a new loan becomes active, rounded up."""
    if loan.status != "new" or not loan.collateral:
        return ""
    return text(-(-loan.amount * 100 * ONE // (LTV_ACTIVE * loan.collateral)))


def sale_of(loan: Loan, quotes: Sequence[Quote]) -> SaleShown | None:
    """Return what would be sold of a loan by these quotes; None where nothing can be."""
    busy = {part.market for part in loan.open}
    usable = [quote for quote in quotes if quote.market not in busy]
    remaining = loan.exposure - sum(part.expected for part in loan.open)
    if not usable or loan.status == "liquidated":
        return None
    parts = plan(remaining, loan.free, usable)
    if not parts:
        return None
    expected = sum(part.expected for part in parts)
    return SaleShown(
        [
            PartShown(part.market, text(part.quantity), text(part.price), text(part.expected))
            for part in parts
        ],
        text(sum(part.quantity for part in parts)),
        text(expected),
        text(max(0, remaining - expected)),
    )


def show_detail(
    store: Store,
    loan_id: str,
    loan: Loan,
    quotes: Sequence[Quote],
    *,
    history_from: int,
    limit: int,
) -> LoanDetail:
    """Show all of a loan, and its history from the entry `history_from` back."""
    found = list(islice(versions(store, loan_id, history_from), limit + 1))
    return LoanDetail(
        **_facts(loan_id, loan, quotes),
        is_warned=loan.is_warned,
        collateral_account=collateral_account(loan.borrower),
        hold=loan.hold if loan.collateral else None,
        activation_price=_activation_price(loan),
        warning_price=_price_of(loan, LTV_WARNED),
        applied_at=rfc3339(loan.applied_at),
        activated_at=moment(loan.activated_at),
        liquidating_at=moment(loan.liquidating_at),
        liquidated_at=moment(loan.liquidated_at),
        sold=text(loan.sold),
        proceeds=text(loan.proceeds),
        surplus=text(loan.surplus),
        returned=text(loan.returned),
        deficit=text(loan.balance if loan.status == "liquidated" else 0),
        if_sold_now=sale_of(loan, quotes),
        slices_placed=loan.slices,
        slices=_slices_of(store, loan_id, loan),
        history=[show_version(store, version) for version in found[:limit]],
        next_cursor=str(found[limit].loan.entry) if len(found) > limit else None,
    )


def _slices_of(store: Store, loan_id: str, loan: Loan) -> list[SliceShown]:
    """Return the latest slices of a loan, by number."""
    first = max(1, loan.slices - SLICES_MAX + 1)
    records = (
        store.record(SLICE, slice_id(loan_id, number)) for number in range(first, loan.slices + 1)
    )
    return [show_slice(read_slice(record)) for record in records if record is not None]


# ── parts of it ───────────────────────────────────────────────────────────────────


def show_version(store: Store, version: Version) -> Happening:
    """Show what an entry did to a loan."""
    entry, loan = version
    fields = _fields_decoder.decode(entry.fields)
    more: dict[str, Any] = {}
    if entry.key:
        more["request"] = entry.key
    if fields.quotes:
        more["quotes"] = [show_quote(quote) for quote in fields.quotes]
    if entry.command in _BY_PRICE:
        price = mark_price(fields.quotes, level_of(loan.collateral))
        more["ltv"] = _ltv(loan, price)
        more["price"] = "" if price is None else text(price)
    slices = [show_slice(part) for part in slices_in(entry)]
    if slices:
        more["slices"] = slices
    return Happening(
        sequence=entry.sequence,
        at=rfc3339(committed_at(store, entry.sequence)),
        what=_WHAT.get(entry.command, entry.command),
        status=loan.status,
        collateral=text(loan.collateral),
        outstanding_balance=text(loan.balance),
        amount=fields.amount,
        **more,
    )


def slices_in(entry: Entry) -> Iterable[Slice]:
    """Yield the slices that an entry placed or ended, as it left them."""
    for record in entry.records:
        if record.kind == SLICE:
            yield read_slice(record)


def quotes_in(entry: Entry) -> tuple[Quote, ...]:
    """Return the quotes that an entry was decided by."""
    return _fields_decoder.decode(entry.fields).quotes


def show_quote(quote: Quote) -> QuoteShown:
    """Show a quote."""
    levels = [LevelShown(level.quantity, text(level.sell)) for level in quote.levels]
    return QuoteShown(quote.market, quote.id, rfc3339(quote.at), rfc3339(quote.received_at), levels)


def show_slice(part: Slice) -> SliceShown:
    """Show a slice."""
    return SliceShown(
        number=part.number,
        market=part.market,
        request_id=part.request_id,
        state=part.state,
        quantity=text(part.quantity),
        price=text(part.price),
        placed_at=rfc3339(part.placed_at),
        ended_at=moment(part.ended_at),
        sold=text(part.sold),
        total=text(part.total),
        **end_of(part),
    )


def end_of(part: Slice) -> dict[str, Any]:
    """Return what is told of a slice's end: the venue's order, or why it failed."""
    if part.state == "open":
        return {}
    return {"order_id" if part.state == "filled" else "reason": part.detail}

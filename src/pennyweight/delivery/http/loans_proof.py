"""The proof that a liquidation sold just enough: every placing decided again, from the journal.

Nothing is taken from what is shown elsewhere. A placing carries the quotes that it was
decided by, and the version of the loan before it says what was needed and what was free:
so the plan is made again, and each slice is held against the formula.
"""

from collections.abc import Iterator
from typing import NamedTuple

from pennyweight.delivery.http.loans_shapes import LiquidationProof, Placing, ProvenSlice
from pennyweight.delivery.http.loans_view import (
    Version,
    committed_at,
    end_of,
    quotes_in,
    show_quote,
    slices_in,
    text,
    versions,
)
from pennyweight.delivery.http.wire import rfc3339
from pennyweight.engine.port import Store
from pennyweight.products.loans.liquidate import BeginLiquidation, PlaceSlices
from pennyweight.products.loans.plan import Part, is_minimal, plan, steps_for
from pennyweight.products.loans.shared import ONE, STEP, Loan, Quote, Slice, value_of

_PLACING = (BeginLiquidation.name, PlaceSlices.name)


class _Placed(NamedTuple):
    """Slices that were placed together, the loan before it, and the quotes."""

    sequence: int
    before: Loan
    quotes: tuple[Quote, ...]
    slices: list[Slice]

    @property
    def usable(self) -> list[Quote]:
        """The quotes of markets where no slice was out."""
        busy = {part.market for part in self.before.open}
        return [quote for quote in self.quotes if quote.market not in busy]

    @property
    def parts(self) -> list[Part]:
        """The slices as the plan would have them."""
        return [
            Part(part.market, part.quantity, part.price, value_of(part.quantity, part.price))
            for part in self.slices
        ]


class _Liquidation(NamedTuple):
    """A liquidation as the journal has it: its placings, oldest first, and its ended slices."""

    balance: int
    placed: list[_Placed]
    ended: dict[int, Slice]


class _Held(NamedTuple):
    """A slice held against the formula."""

    part: Slice
    remaining: int
    free: int
    most: int
    is_right: bool


def prove(store: Store, loan_id: str, loan: Loan, *, after: int, limit: int) -> LiquidationProof:
    """Prove the liquidation of a loan that has one; placings of entries behind `after` are shown."""
    liquidation = _read(store, loan_id, loan)
    page = [placed for placed in liquidation.placed if placed.sequence > after]
    wrong = list(_wrong(loan, liquidation))
    states = [part.state for part in liquidation.ended.values()]
    return LiquidationProof(
        loan_id=loan_id,
        borrower_id=loan.borrower,
        status=loan.status,
        is_ended=loan.status == "liquidated",
        is_minimal=not wrong,
        wrong=wrong,
        balance=text(liquidation.balance),
        sold=text(loan.sold),
        proceeds=text(loan.proceeds),
        surplus=text(loan.surplus),
        deficit=text(loan.balance if loan.status == "liquidated" else 0),
        returned=text(loan.returned),
        filled=states.count("filled"),
        failed=states.count("failed"),
        open=len(loan.open),
        placings=[_show(store, placed, liquidation.ended) for placed in page[:limit]],
        next_cursor=str(page[limit - 1].sequence) if len(page) > limit else None,
    )


def _read(store: Store, loan_id: str, loan: Loan) -> _Liquidation:
    """Walk back through a loan's versions to the one that began its liquidation."""
    placed: list[_Placed] = []
    ended: dict[int, Slice] = {}
    after: Version | None = None
    for version in versions(store, loan_id, loan.entry):
        if after is not None and after.entry.command in _PLACING:
            opened = sorted(slices_in(after.entry), key=lambda part: part.number)
            placed.append(_Placed(after.loan.entry, version.loan, quotes_in(after.entry), opened))
        if version.loan.status not in {"liquidating", "liquidated"}:
            return _Liquidation(version.loan.balance, placed[::-1], ended)
        for part in slices_in(version.entry):
            if part.state != "open":
                ended[part.number] = part
        after = version
    raise LookupError(f"loan {loan_id} was never active")


def _held(placed: _Placed) -> Iterator[_Held]:
    """Yield the slices of a placing with what each stood before: the need, and what was free."""
    remaining, free = placed.before.remaining, placed.before.free
    quotes = {quote.market: quote for quote in placed.usable}
    parts = placed.parts
    for position, (part, order) in enumerate(zip(parts, placed.slices, strict=True)):
        quote = quotes.get(part.market)
        most, is_right = 0, False
        if quote is not None:
            largest = quote.levels[-1].quantity * ONE
            most = min(steps_for(remaining, part.price) * STEP, free, largest)
            is_last = position == len(parts) - 1
            is_right = is_minimal(part, remaining, free, quote, is_last=is_last)
        yield _Held(order, remaining, free, most, is_right)
        remaining -= part.expected
        free -= part.quantity


def _is_as_planned(placed: _Placed) -> bool:
    """Whether the same quotes and the same need give the same slices again."""
    return placed.parts == plan(placed.before.remaining, placed.before.free, placed.usable)


def _wrong(loan: Loan, liquidation: _Liquidation) -> Iterator[str]:
    """Yield what keeps a liquidation from being minimal."""
    placed_slices: dict[int, Slice] = {}
    for placed in liquidation.placed:
        placed_slices.update({part.number: part for part in placed.slices})
        if not _is_as_planned(placed):
            yield f"entry {placed.sequence}: its quotes give other slices"
        for held in _held(placed):
            if not held.is_right:
                yield f"slice {held.part.number} is not just enough"
    if sorted(placed_slices) != list(range(1, loan.slices + 1)):
        yield "the slices are not numbered without a gap"
    yield from _wrong_ends(loan, liquidation, placed_slices)


def _wrong_ends(loan: Loan, liquidation: _Liquidation, placed: dict[int, Slice]) -> Iterator[str]:
    """Yield where fills, sums and end do not agree."""
    ended = liquidation.ended
    for number, part in sorted(ended.items()):
        order = placed.get(number)
        if order is None or part.sold > order.quantity:
            yield f"slice {number} sold more than was asked"
    if {part.number for part in loan.open} != set(placed) - set(ended):
        yield "the slices that are out are not those of the loan"
    filled = [part for part in ended.values() if part.state == "filled"]
    if sum(part.sold for part in filled) != loan.sold:
        yield "the fills do not add up to what was sold"
    if sum(part.total for part in filled) != loan.proceeds:
        yield "the fills do not add up to the proceeds"
    if loan.proceeds - loan.surplus + loan.balance != liquidation.balance:
        yield "proceeds and balance do not add up to what was owed"
    if loan.status == "liquidated" and loan.balance and loan.returned >= STEP:
        yield "a deficit is left, and collateral went back"


def _show(store: Store, placed: _Placed, ended: dict[int, Slice]) -> Placing:
    before = placed.before
    return Placing(
        sequence=placed.sequence,
        at=rfc3339(committed_at(store, placed.sequence)),
        remaining=text(before.remaining),
        free_collateral=text(before.free),
        busy=sorted({part.market for part in before.open}),
        quotes=[show_quote(quote) for quote in placed.quotes],
        is_as_planned=_is_as_planned(placed),
        slices=[_show_slice(held, ended) for held in _held(placed)],
    )


def _show_slice(held: _Held, ended: dict[int, Slice]) -> ProvenSlice:
    part: Slice = ended.get(held.part.number, held.part)
    return ProvenSlice(
        number=part.number,
        market=part.market,
        request_id=part.request_id,
        remaining=text(held.remaining),
        free_collateral=text(held.free),
        price=text(held.part.price),
        just_enough=text(held.most),
        quantity=text(held.part.quantity),
        expected=text(value_of(held.part.quantity, held.part.price)),
        is_minimal=held.is_right,
        state=part.state,
        sold=text(part.sold),
        total=text(part.total),
        **end_of(part),
    )

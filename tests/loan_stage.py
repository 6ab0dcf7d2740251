"""A stage for loans: applications, quotes, slices, in a test's few words."""

from typing import Any

from pennyweight.assemble import answers
from pennyweight.engine.receipts import Outcome, Receipt, Refusal
from pennyweight.engine.verification import Report, verify
from pennyweight.ledger.money import format_amount, to_units
from pennyweight.products.loans import LoansLaw
from pennyweight.products.loans.apply import ApplyForLoan, TopUpCollateral
from pennyweight.products.loans.life import ActivateLoan, ByPrice, RearmWarning, WarnLoan
from pennyweight.products.loans.liquidate import (
    BeginLiquidation,
    FailSlice,
    FillSlice,
    PlaceSlices,
)
from pennyweight.products.loans.shared import (
    LEVELS,
    LOAN,
    SCALE,
    SLICE,
    Level,
    Loan,
    Market,
    Quote,
    Slice,
    read_loan,
    read_slice,
    slice_id,
)
from scenarios import Stage

MOS, BLACK = "mos_espa", "black_spire"
FOR_EVER = 2**62


def units(text: str) -> int:
    return to_units(text, SCALE)


def text(amount: int) -> str:
    return format_amount(amount, SCALE)


def quote(*sells: str, market: Market = "mos_espa", name: str = "q", levels: Any = LEVELS) -> Quote:
    """Return a quote with these sell prices by rising quantity, or one for all quantities."""
    if len(sells) == 1:
        sells *= len(levels)
    told = tuple(Level(quantity, units(s)) for quantity, s in zip(levels, sells, strict=True))
    return Quote(market, name, 1, 2, told)


def at(*sells: str, market: Market = "mos_espa") -> tuple[Quote, ...]:
    """Return the quotes where one market alone is heard."""
    return (quote(*sells, market=market),)


class Lending(Stage):
    """A book on which loans are played; it must prove itself when it is asked to."""

    def loan(self, name: str = "L1") -> Loan:
        record = self.store.record(LOAN, name)
        assert record is not None, name
        return read_loan(record)

    def version(self, name: str = "L1") -> int:
        record = self.store.record(LOAN, name)
        return 0 if record is None else record.version

    def slice(self, number: int, name: str = "L1") -> Slice:
        record = self.store.record(SLICE, slice_id(name, number))
        assert record is not None, number
        return read_slice(record)

    def text_of(self, number: int, name: str = "L1") -> str:
        """Return what a slice is to sell, as text."""
        return text(self.slice(number, name).quantity)

    def done(self, command: Any, **options: Any) -> Any:
        outcome = self.execute(command, **options)
        assert isinstance(outcome, Receipt), outcome
        return outcome.answer

    def refused(self, command: Any, **options: Any) -> str:
        outcome = self.execute(command, **options)
        assert isinstance(outcome, Refusal), outcome
        return outcome.reason.code

    def code(self, outcome: Outcome) -> str:
        return outcome.reason.code if isinstance(outcome, Refusal) else "done"

    # ── commands ──────────────────────────────────────────────────────────────────

    def apply(
        self, amount: str = "1000", collateral: str = "", loan: str = "L1", borrower: str = "ann"
    ) -> Any:
        return self.done(ApplyForLoan(loan, borrower, amount, collateral))

    def top_up(self, amount: str, loan: str = "L1", borrower: str = "ann") -> Any:
        return self.done(TopUpCollateral(loan, borrower, amount))

    def by_price(
        self,
        kind: type[ByPrice],
        quotes: tuple[Quote, ...],
        loan: str = "L1",
        *,
        until: int = FOR_EVER,
    ) -> ByPrice:
        """Return a decision on the loan as it stands."""
        more = {"life": "first"} if kind is BeginLiquidation else {}
        borrower = self.loan(loan).borrower
        return kind(loan, borrower, self.version(loan), quotes, until, **more)

    def activate(self, *sells: str, loan: str = "L1") -> Any:
        return self.done(self.by_price(ActivateLoan, at(*sells), loan))

    def warn(self, *sells: str, loan: str = "L1") -> Any:
        return self.done(self.by_price(WarnLoan, at(*sells), loan))

    def rearm(self, *sells: str, loan: str = "L1") -> Any:
        return self.done(self.by_price(RearmWarning, at(*sells), loan))

    def begin(self, *quotes: Quote, loan: str = "L1") -> Any:
        return self.done(self.by_price(BeginLiquidation, quotes, loan))

    def placing(self, *quotes: Quote, loan: str = "L1") -> PlaceSlices:
        return PlaceSlices(loan, self.loan(loan).borrower, self.version(loan), quotes, "first")

    def place(self, *quotes: Quote, loan: str = "L1") -> Any:
        return self.done(self.placing(*quotes, loan=loan))

    def filling(self, number: int, quantity: str, total: str, loan: str = "L1") -> FillSlice:
        now = self.loan(loan)
        return FillSlice(loan, number, f"o{number}", quantity, total, now.borrower, now.hold)

    def fill(self, number: int, quantity: str, total: str, loan: str = "L1") -> Any:
        return self.done(self.filling(number, quantity, total, loan))

    def fill_as_quoted(self, number: int, loan: str = "L1") -> Any:
        part = self.slice(number, loan)
        total = part.quantity * part.price // 10**SCALE
        return self.fill(number, text(part.quantity), text(total), loan)

    def fail(self, number: int, reason: str = "no luck", loan: str = "L1") -> Any:
        now = self.loan(loan)
        return self.done(FailSlice(loan, number, reason, now.borrower, now.hold))

    def active(self, amount: str = "1000", collateral: str = "40", price: str = "50") -> "Lending":
        """Have loan L1 active; the seed's example by default."""
        self.apply(amount, collateral)
        self.activate(price)
        return self

    def proof(self) -> Report:
        return verify(self.store, answers=answers(), invariants=[LoansLaw()])

    def prove(self) -> None:
        report = self.proof()
        assert report.ok, report.problems

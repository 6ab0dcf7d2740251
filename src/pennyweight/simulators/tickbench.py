"""How long a tick takes on a book with many loans: without hits, and when a crowd is due at once.

Loans of all levels are applied for and become active at one price. A look at that price finds
nothing and is timed many times. Then the price falls so far that just the wanted number of
loans stands at 80 percent or above, and the time is taken until the last of them is begun.
"""

import heapq
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import msgspec

from pennyweight.agents.appraiser import Appraiser
from pennyweight.agents.quotes import QuoteBoard
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Store
from pennyweight.ledger.entries import decode_entry
from pennyweight.ledger.money import format_amount
from pennyweight.products.loans.apply import ApplyForLoan
from pennyweight.products.loans.life import ActivateLoan
from pennyweight.products.loans.shared import (
    LEVELS,
    LOAN,
    LTV_LIQUIDATED,
    ONE,
    STEP,
    Level,
    Quote,
    is_at_least,
    level_of,
    mark_price,
    read_loan,
)
from pennyweight.runtime.clock import ClockGuard, wall_clock
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.inline import InlineBook
from pennyweight.simulators.benchplace import BenchPlace
from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.inprocess import NotDone, execute

LOANS_BATCH = 500
LOANS_OF_BORROWER = 10
WAIT_SECONDS = 600.0
"""How long to wait for the last loan to be begun."""

_PRICE = 100 * ONE
_LTV_PPM = (200_000, 450_000)
"""Loan-to-value of the loans when they become active, in millionths."""

_PER_MILLE = dict(zip(LEVELS, (1_000, 994, 990, 985), strict=True))
"""What each size brings of the price of the smallest."""

_RANGES = ((0, 1), (1, 10), (10, 50), (50, 500))
"""Collateral of the loans, in BESKAR: as many of each range, so of each level."""

_FAR = 2**62
_MICROSECONDS = 1_000

Report = Callable[[int, int], None]


class Ticks(msgspec.Struct):
    """What was measured with so many loans. Durations in the unit of their names.

    `due` loans stood at the bound or above; `is_ordered`: the highest were begun first.
    `verified` is None where the book was not verified.
    """

    loans: int
    build_seconds: float
    ticks: int
    tick_p50_us: float
    tick_p99_us: float
    due: int
    begun_seconds: float
    is_ordered: bool
    book_mb: float
    verified: bool | None = None
    first_wrong: object = None


def measure_ticks(
    loans: int,
    *,
    ticks: int,
    due: int,
    is_verified: bool = False,
    seed: int = 1,
    directory: Path | None = None,
    report: Report = lambda _done, _all: None,
) -> Ticks:
    """Build a book with so many loans in a directory of its own, and measure it. Raises NotDone."""
    with tempfile.TemporaryDirectory(prefix="pennyweight-bench-", dir=directory) as folder:
        place = BenchPlace(Path(folder) / "book")
        with place.opened() as book:
            started = time.monotonic()
            crowd = _Crowd(due)
            _build(book, loans, random.Random(f"ticks {seed}"), crowd, report)
            figures = Ticks(
                loans=loans,
                build_seconds=round(time.monotonic() - started, 1),
                ticks=ticks,
                tick_p50_us=0.0,
                tick_p99_us=0.0,
                due=0,
                begun_seconds=0.0,
                is_ordered=False,
                book_mb=0.0,
            )
            _measure(book, crowd, figures)
        figures.book_mb = round(place.size_bytes() / 2**20, 1)
        if is_verified:
            verdict = place.verify()
            figures.verified, figures.first_wrong = verdict.ok, verdict.first_wrong
    return figures


TIES_MAX = 100
"""Loans at most that stand as high as the last one that is to be due, or as good as."""


class _Crowd:
    """The loans that the price reaches first when it falls: those to be due, and who ties with them."""

    def __init__(self, due: int) -> None:
        self._due = due
        self._heap: list[tuple[Fraction, int, int]] = []

    def add(self, balance: int, collateral: int) -> None:
        """Look at a loan; units are the book's."""
        ratio = Fraction(balance * 1_000, collateral * _PER_MILLE[level_of(collateral)])
        if len(self._heap) < self._due + TIES_MAX:
            heapq.heappush(self._heap, (ratio, balance, collateral))
        elif ratio > self._heap[0][0]:
            heapq.heapreplace(self._heap, (ratio, balance, collateral))

    def quote(self) -> Quote:
        """Return a quote at which the wanted number is due."""
        last = heapq.nlargest(self._due, self._heap)[-1][0]
        return quote_of(int(last * 100 * ONE / LTV_LIQUIDATED))

    def count(self, quote: Quote) -> int:
        """Return how many are due at a quote, compared exactly."""
        return sum(
            is_at_least(LTV_LIQUIDATED, balance, held, mark_price((quote,), level_of(held)) or 0)
            for _, balance, held in self._heap
        )


def quote_of(price: int) -> Quote:
    """Return a market's quote of now, by what it pays for the smallest size."""
    now = wall_clock()
    levels = tuple(Level(level, price * part // 1_000) for level, part in _PER_MILLE.items())
    return Quote("mos_espa", f"bench-{now}-{price}", now, now, levels)


# ── the book ──────────────────────────────────────────────────────────────────────


def _build(
    book: InlineBook, loans: int, draw: random.Random, crowd: _Crowd, report: Report
) -> None:
    """Apply for loans and have them become active, in large batches. Raises NotDone."""
    quotes = (quote_of(_PRICE),)
    for first in range(0, loans, LOANS_BATCH):
        numbers = range(first, min(first + LOANS_BATCH, loans))
        execute(book, [Submission(_application(number, draw, crowd)) for number in numbers])
        execute(
            book,
            [
                Submission(ActivateLoan(_name(number), _borrower(number), 1, quotes, _FAR))
                for number in numbers
            ],
        )
        report(numbers[-1] + 1, loans)


def _application(number: int, draw: random.Random, crowd: _Crowd) -> ApplyForLoan:
    low, high = _RANGES[number % len(_RANGES)]
    steps = ONE // STEP
    collateral = draw.randint(low * steps + 1, high * steps) * STEP
    amount = collateral * 100 * draw.randint(*_LTV_PPM) // 1_000_000
    crowd.add(amount, collateral)
    return ApplyForLoan(
        _name(number), _borrower(number), format_amount(amount, 24), format_amount(collateral, 24)
    )


def _name(number: int) -> str:
    return f"loan-{number:07d}"


def _borrower(number: int) -> str:
    return f"borrower-{number // LOANS_OF_BORROWER:06d}"


# ── the measurement ───────────────────────────────────────────────────────────────


def _measure(inline: InlineBook, crowd: _Crowd, figures: Ticks) -> None:
    """Measure ticks without hits, then the crowd. Raises NotDone."""
    board = QuoteBoard(age_seconds=WAIT_SECONDS, deviation_percent=100, jump_percent=100)
    book = ThreadedBook(inline.engine, inline.store, ClockGuard())
    appraiser = Appraiser(book, board)
    book.start()
    try:
        board.offer(quote_of(_PRICE), wall_clock())
        histogram = _idle(appraiser, figures.ticks)
        figures.tick_p50_us = round(histogram.quantile(500_000) / _MICROSECONDS, 1)
        figures.tick_p99_us = round(histogram.quantile(990_000) / _MICROSECONDS, 1)
        quote = crowd.quote()
        figures.due = crowd.count(quote)
        before = inline.store.head().sequence
        figures.begun_seconds = round(_begin(appraiser, board, quote, figures.due), 3)
        figures.is_ordered = _is_ordered(inline.store, before, quote, figures.due)
    finally:
        book.stop()


def _idle(appraiser: Appraiser, ticks: int) -> Histogram:
    """Time ticks that find nothing. Raises NotDone."""
    histogram = Histogram()
    for _ in range(ticks):
        started = time.perf_counter_ns()
        hits = appraiser.tick()
        histogram.record(time.perf_counter_ns() - started)
        if hits:
            raise NotDone(f"{hits} loans were due although nothing had changed")
    return histogram


def _begin(appraiser: Appraiser, board: QuoteBoard, quote: Quote, due: int) -> float:
    """Return the seconds from a quote until the last liquidation is begun. Raises NotDone."""
    appraiser.start()
    pause = threading.Event()
    started = time.perf_counter()
    verdict = board.offer(quote, wall_clock())
    appraiser.notice()
    while appraiser.done["liquidate"] < due and time.perf_counter() - started < WAIT_SECONDS:
        pause.wait(0.001)
    seconds = time.perf_counter() - started
    appraiser.stop()
    if appraiser.done["liquidate"] < due:
        raise NotDone(f"{appraiser.done['liquidate']} of {due} were begun; quote {verdict}")
    return seconds


def _is_ordered(store: Store, after: int, quote: Quote, due: int) -> bool:
    """Whether the journal has the liquidations in order, highest loan-to-value first, and all."""
    ratios = list(_ratios(store, after, quote))
    return len(ratios) == due and ratios == sorted(ratios, reverse=True)


def _ratios(store: Store, after: int, quote: Quote) -> Iterator[Fraction]:
    """Yield loan-to-value of each liquidation that was begun, in the journal's order."""
    while page := store.entries(after, LOANS_BATCH):
        after = page[-1][0]
        for entry in (decode_entry(body) for _, body in page):
            for record in entry.records if entry.command == "begin_liquidation" else ():
                if record.kind == LOAN:
                    loan = read_loan(record)
                    price = mark_price((quote,), level_of(loan.collateral)) or 0
                    yield Fraction(loan.balance, loan.collateral * price)


def measure_all(
    sizes: Sequence[int],
    *,
    ticks: int,
    due: int,
    is_verified: bool,
    seed: int,
    directory: Path | None,
    report: Report,
) -> list[Ticks]:
    """Measure one size after the other. Raises NotDone."""
    return [
        measure_ticks(
            size,
            ticks=ticks,
            due=min(due, size),
            is_verified=is_verified,
            seed=seed,
            directory=directory,
            report=report,
        )
        for size in sizes
    ]

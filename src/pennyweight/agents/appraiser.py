"""Decides by prices: which loans become active, are warned, re-armed, or have to be liquidated.

The indexes only find candidates; every one is compared exactly, here and once more by the
engine, on the quotes that its command carries. Nothing is lost when a command is not taken or
its outcome is not heard: what is due stands in the index, and the next quote finds it again.
"""

import heapq
import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from itertools import groupby, islice
from typing import Literal, NamedTuple

import structlog

from pennyweight.agents.agent import Persistent
from pennyweight.agents.quotes import QuoteBoard
from pennyweight.engine.engine import Answer, Lane, QueueFull, Submission
from pennyweight.engine.port import Committed, Due, StoreError
from pennyweight.engine.receipts import Failure, Outcome, Receipt, Refusal
from pennyweight.ledger.records import RANK_MIN, Record
from pennyweight.ledger.refusals import Reason
from pennyweight.products.loans.apply import ApplyForLoan, TopUpCollateral
from pennyweight.products.loans.life import (
    CONTROLS,
    ActivateLoan,
    ByPrice,
    Controls,
    Pause,
    RearmWarning,
    WarnLoan,
)
from pennyweight.products.loans.liquidate import BeginLiquidation
from pennyweight.products.loans.shared import (
    LEVELS,
    LOAN,
    Loan,
    Quote,
    highest_rank,
    index_name,
    level_of,
    mark_price,
    read_loan,
)
from pennyweight.runtime.clock import wall_clock
from pennyweight.runtime.driver import ThreadedBook, Unavailable

IN_FLIGHT_MAX = 256
"""Commands submitted and not yet answered, at most."""

PAGE = 256
"""Places of an index that are read at a time."""

WINDOW = 16
"""Loans of one rank that are read and put in order at a time."""

TOPPED_MAX = 10_000
"""Loans with new collateral that wait to be looked at; the next quote finds the others."""

SCAN_SECONDS_MAX = 1.0
"""When there are newer quotes, a scan that has taken so long ends, and begins again with them."""

REST_SECONDS = 30.0
"""How long a loan is left alone, in one version, after a refusal that only a change can lift."""

RESTING_MAX = 10_000

_WAIT_SECONDS = 0.5

Kind = Literal["liquidate", "activate", "warn", "rearm"]
KINDS: tuple[Kind, ...] = ("liquidate", "activate", "warn", "rearm")
"""What is done by prices, in the order in which it is done."""

_PAUSED: dict[Pause, tuple[Kind, ...]] = {
    "normal": (),
    "no_new": ("liquidate",),
    "halt_new_and_activation": ("liquidate", "activate"),
}
_NORMAL = frozenset(
    {
        Reason.LOAN_CHANGED,
        Reason.LOAN_NOT_DUE,
        Reason.LOAN_NOT_FOUND,
        Reason.LIQUIDATIONS_PAUSED,
        Reason.QUOTES_STALE,
    }
)
"""Refusals of those who came too late, which need nothing further."""

log = structlog.get_logger(__name__)


class View(NamedTuple):
    """What a look at the indexes goes by: quotes, until when they count, what is paused.

    `prices` are those of the levels, `life` names the life of the book.
    """

    quotes: tuple[Quote, ...]
    until: int
    prices: dict[int, int | None]
    paused: tuple[Kind, ...]
    life: str


class Candidate(NamedTuple):
    """A loan that is due, and the command for it; `value` is collateral x price, not scaled."""

    kind: Kind
    command: ByPrice
    exposure: int
    value: int

    @property
    def rank(self) -> tuple[Fraction, int, str]:
        """The place in the order of those who are due: highest loan-to-value first, then size."""
        return -Fraction(self.exposure, self.value), -self.exposure, self.command.loan


_Place = tuple[str, int]
"""A loan in one version."""


class Appraiser(Persistent):
    """A thread that looks at what is due after each new quote. Counters are since its beginning."""

    expected = (StoreError,)

    def __init__(
        self,
        book: ThreadedBook,
        board: QuoteBoard,
        *,
        in_flight_max: int = IN_FLIGHT_MAX,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        """`clock` gives microseconds since 1970."""
        super().__init__("appraiser")
        self.ticks = 0
        """Looks at all indexes, with fresh quotes."""
        self.hits = 0
        """Loans that were found due, by a tick or after a top-up."""
        self.done: Counter[Kind] = Counter()
        self.refused: Counter[str] = Counter()
        """By reason."""
        self.unanswered = 0
        """Commands of which nobody knows, or whose rule broke."""
        self.scan_seconds = 0.0
        """How long the last tick took."""
        self._book = book
        self._board = board
        self._in_flight_max = in_flight_max
        self._clock = clock
        self._inbox: queue.SimpleQueue[tuple[_Place, Kind, Outcome] | None] = queue.SimpleQueue()
        """Outcomes, and None to wake the thread."""
        self._is_noticed = True
        self._topped: deque[str] = deque()
        self._in_flight: set[_Place] = set()
        self._resting: dict[_Place, float] = {}

    # ── for anybody ───────────────────────────────────────────────────────────────

    @property
    def status(self) -> str:
        """Why nothing is decided by prices, for `/readyz`; "" while all is well."""
        if self._down:
            return self._down
        is_blind = not self._board.fresh(self._clock())
        return "no fresh quotes, or they are too far apart" if is_blind else ""

    def notice(self) -> None:
        """Hear of a new quote; from any thread."""
        self._is_noticed = True
        self._inbox.put(None)

    def hear(self, answers: Sequence[Answer]) -> None:
        """Hear of all answers of a batch, from the engine thread: new collateral may be enough."""
        for submission, outcome in answers:
            command = submission.command
            if (
                isinstance(command, TopUpCollateral | ApplyForLoan)
                and isinstance(outcome, Receipt)
                and outcome.answer.status == "new"
                and len(self._topped) < TOPPED_MAX
            ):
                self._topped.append(command.loan)
                self._inbox.put(None)

    def stop(self) -> None:
        """End the thread, and wait until it has."""
        self._is_over.set()
        self._inbox.put(None)
        super().stop()

    # ── the thread ────────────────────────────────────────────────────────────────

    def _session(self) -> None:
        """Look when there is a reason to, until told to stop. Raises StoreError."""
        while not self._is_over.is_set():
            self._take_outcomes(is_waiting=not (self._is_noticed or self._topped))
            self._down = ""
            with suppress(QueueFull, Unavailable):  # the next quote finds them again
                self._look_at_topped()
                if self._is_noticed:
                    self._is_noticed = False
                    self.tick()

    def tick(self) -> int:
        """Look at all indexes with the quotes of now; return how many loans were submitted.

        Raises QueueFull, Unavailable, StoreError.
        """
        started = time.monotonic()
        view = self._view()
        if view is None:
            return 0
        self.ticks += 1
        count = 0
        try:
            for candidate in find(self._book.store, view):
                if not self._may_go_on(view, started):
                    break
                count += self._submit(candidate)
                self._look_at_topped()
        finally:
            self.scan_seconds = time.monotonic() - started
        return count

    def _view(self) -> View | None:
        """Return what to go by now; None without fresh quotes."""
        now = self._clock()
        quotes = self._board.fresh(now)
        if not quotes:
            return None
        record = self._book.store.record(CONTROLS, "all")
        controls: Controls = Controls() if record is None else record.read(Controls)
        until, life = self._board.counts_until(quotes), self._book.engine.head.incarnation
        return view_of(quotes, until, life, controls.level)

    def _may_go_on(self, view: View, started: float) -> bool:
        """Whether a scan is worth going on with: it is neither over, nor are there newer quotes."""
        if self._is_over.is_set() or self._clock() > view.until:
            return False
        return not (self._is_noticed and time.monotonic() - started > SCAN_SECONDS_MAX)

    def _look_at_topped(self) -> None:
        """Look at the loans with new collateral: it may be enough. Raises as `tick` does."""
        if not self._topped:
            return
        view = self._view()
        if view is None or "activate" in view.paused:
            self._topped.clear()
            return
        while self._topped and not self._is_over.is_set():
            loan_id = self._topped.popleft()
            record = self._book.store.record(LOAN, loan_id)
            candidate = None if record is None else candidate_of("activate", record, view)
            if candidate is not None:
                self._submit(candidate)

    # ── commands ──────────────────────────────────────────────────────────────────

    def _submit(self, candidate: Candidate) -> bool:
        """Submit what a candidate is due for, once there is room; whether it was submitted.

        Raises QueueFull, Unavailable.
        """
        kind, command = candidate.kind, candidate.command
        place = (command.loan, command.of_version)
        while len(self._in_flight) >= self._in_flight_max:
            if self._is_over.is_set():
                return False
            self._take_outcomes(is_waiting=True)
        if place in self._in_flight or self._is_resting(place):
            return False
        self.hits += 1
        self._book.submit(
            Submission(
                command,
                lane=Lane.TIMERS,
                ticket=lambda outcome: self._inbox.put((place, kind, outcome)),
            )
        )
        self._in_flight.add(place)
        return True

    def _take_outcomes(self, *, is_waiting: bool) -> None:
        """Take note of all outcomes that there are; wait a moment for the first, if so wanted."""
        with suppress(queue.Empty):
            told = self._inbox.get(block=is_waiting, timeout=_WAIT_SECONDS)
            while True:
                if told is not None:
                    self._note(*told)
                told = self._inbox.get_nowait()

    def _note(self, place: _Place, kind: Kind, outcome: Outcome) -> None:
        """Take note of what became of a command."""
        self._in_flight.discard(place)
        if isinstance(outcome, Receipt):
            self.done[kind] += 1
        elif isinstance(outcome, Refusal):
            self.refused[outcome.reason.code] += 1
            if outcome.reason not in _NORMAL:
                self._rest(place)
        else:
            self.unanswered += 1
            if isinstance(outcome, Failure):
                log.error("a rule for loans broke", loan=place[0], exc_info=outcome.cause)
                self._rest(place)

    def _rest(self, place: _Place) -> None:
        """Leave a loan alone for a while, in this version."""
        if len(self._resting) >= RESTING_MAX:
            del self._resting[next(iter(self._resting))]
        self._resting[place] = time.monotonic() + REST_SECONDS

    def _is_resting(self, place: _Place) -> bool:
        until = self._resting.get(place)
        if until is not None and time.monotonic() >= until:
            del self._resting[place]
            return False
        return until is not None


# ── what is due ───────────────────────────────────────────────────────────────────


def view_of(quotes: tuple[Quote, ...], until: int, life: str, pause: Pause = "normal") -> View:
    """Return what to go by with these quotes, in this life of the book."""
    prices = {level: mark_price(quotes, level) for level in LEVELS}
    return View(quotes, until, prices, _PAUSED[pause], life)


def find(store: Committed, view: View) -> Iterator[Candidate]:
    """Yield what is due and not paused: liquidations first, over all levels the highest ratio first.

    Costs one look at each index, and a read for each loan found. Raises StoreError.
    """
    for kind in KINDS:
        if kind in view.paused:
            continue
        found = [
            _due_on(store, kind, level, price, view)
            for level, price in view.prices.items()
            if price is not None
        ]
        if kind == "liquidate":
            yield from heapq.merge(*found, key=lambda candidate: candidate.rank)
        else:
            for candidates in found:
                yield from candidates


def _due_on(
    store: Committed, kind: Kind, level: int, price: int, view: View
) -> Iterator[Candidate]:
    """Yield what is due on one index, in the order of its ranks, and in the exact one within."""
    places = _places(store, index_name(kind, level), highest_rank(kind, price))
    for _, group in groupby(places, key=_rank):
        while window := list(islice(group, WINDOW)):
            yield from _read(store, kind, window, view)


def _places(store: Committed, index: str, high: int) -> Iterator[Due]:
    """Yield what is marked on an index up to a rank, page by page, each by a look of its own."""
    after = None
    while page := store.due(index, RANK_MIN, high, after=after, limit=PAGE):
        yield from page
        if len(page) < PAGE:
            return
        after = (page[-1].rank, page[-1].id)


def _read(store: Committed, kind: Kind, places: Sequence[Due], view: View) -> list[Candidate]:
    """Return those of a few loans that are due, in their order."""
    candidates = []
    for place in places:
        record = store.record(LOAN, place.id)
        candidate = None if record is None else candidate_of(kind, record, view)
        if candidate is not None:
            candidates.append(candidate)
    return sorted(candidates, key=lambda candidate: candidate.rank)


def candidate_of(kind: Kind, record: Record, view: View) -> Candidate | None:
    """Return a loan as a candidate, None if it is not due for this, compared exactly."""
    loan = read_loan(record)
    price = view.prices[level_of(loan.collateral)]
    command = _command(kind, record, loan, view)
    if price is None or not command.is_due(loan, price):
        return None
    return Candidate(kind, command, loan.exposure, loan.collateral * price)


def _command(kind: Kind, record: Record, loan: Loan, view: View) -> ByPrice:
    of = (record.id, loan.borrower, record.version, view.quotes, view.until)
    match kind:
        case "liquidate":
            return BeginLiquidation(*of, view.life)
        case "activate":
            return ActivateLoan(*of)
        case "warn":
            return WarnLoan(*of)
        case "rearm":
            return RearmWarning(*of)


def _rank(due: Due) -> int:
    return due.rank

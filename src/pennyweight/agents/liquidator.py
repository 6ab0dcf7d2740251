"""Carries liquidations out: sells slice after slice at the trading posts, until each has ended.

A slice is in the book before its order goes out, so all that is under way can be found there,
by whoever owns the book next. An order of which nobody knows what became is asked for again
under the same id at the same post, for as long as it takes; meanwhile its quantity is sold
nowhere else, and the loan's other slices go on. Nothing is sent unless the book is surely ours
until the post has answered: an owner that stood still and wakes up late sends nothing.
"""

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Literal, TypeVar

import structlog

from pennyweight.agents.agent import Persistent
from pennyweight.agents.breaker import Breaker, State
from pennyweight.agents.quotes import QuoteBoard
from pennyweight.engine.engine import Answer, Lane, QueueFull, Submission
from pennyweight.engine.port import StoreError
from pennyweight.engine.receipts import Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger.commands import Command
from pennyweight.ledger.money import format_amount
from pennyweight.ledger.records import Record
from pennyweight.ledger.refusals import Reason
from pennyweight.links.errors import ExtraMissing
from pennyweight.links.venues import Failed, Filled, InDoubt, Venues
from pennyweight.products.loans.liquidate import (
    BeginLiquidation,
    FailSlice,
    FillSlice,
    PlaceSlices,
)
from pennyweight.products.loans.plan import plan
from pennyweight.products.loans.shared import (
    LOAN,
    MARKETS,
    SCALE,
    SLICE,
    Loan,
    Market,
    Quote,
    Slice,
    read_loan,
    read_slice,
    slice_id,
)
from pennyweight.runtime.clock import wall_clock
from pennyweight.runtime.driver import ThreadedBook, Unavailable

ORDERS_MAX = 32
"""Orders that are out at one post at the same time, at most."""

LOANS_MAX = 1_000
"""Loans that are carried on with at the same time; of each, no more than its orders is kept."""

WAITING_MAX = 10_000
"""Further loans that are known to wait; those beyond are found later."""

PAGE = 16
"""Loans that are listed at a time."""

RESCAN_SECONDS = 3.0
BACK_OFF_SECONDS = 0.05
BACK_OFF_SECONDS_MAX = 0.5
SLOW_SECONDS = 2.0
"""How long to wait, at most, before a post that does not answer is asked again."""

REFUSALS_MAX = 10
"""After so many refusals in a row a post is left alone for a while, if another can be asked: by
chance, at three in ten, that is six in a million."""

CROWD = 100
"""From so many slices in doubt on, a post that does not answer is asked less often for each."""

LOOK_SECONDS = 1.0
"""After so long a loan is looked at again, although nothing of it has ended."""

GRACE_SECONDS = 0.5
"""How long, at the end, to wait for the answers to what was sent."""

_UNSURE_SECONDS = 0.05
_READERS = 2
_NOT_SENT = "not sent: the post does not answer, or refuses all"

_ENDED = frozenset({Reason.SLICE_ENDED, Reason.SLICE_NOT_FOUND, Reason.LOAN_NOT_FOUND})
"""Refusals that say that a slice is open no more."""

End = Literal["filled", "failed", "withdrawn", "gone"]
"""What became of a slice; gone: somebody else has ended it."""

Look = Literal["ended", "placed", "waits"]
"""What a look at a loan found: placed, also where it has changed and is to be looked at again."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class _Ending(Exception):
    """The liquidator is to end; what is under way is left to its successor."""


class _Broken(Exception):
    """A rule for loans broke on a command of ours."""


class Liquidator(Persistent):
    """A thread with an event loop, and a task for each loan. Counters are since its beginning."""

    expected = (ExtraMissing, StoreError)

    def __init__(
        self,
        book: ThreadedBook,
        board: QuoteBoard,
        open_venues: Callable[[], Venues],
        *,
        timeout_seconds: float,
        margin_seconds: float,
        orders_max: int = ORDERS_MAX,
        loans_max: int = LOANS_MAX,
        rescan_seconds: float = RESCAN_SECONDS,
        new_breaker: Callable[[], Breaker] = Breaker,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        """An order is answered within `timeout_seconds`, or in doubt; `margin_seconds` is for clocks.

        To be made when the ownership of the book begins. `clock` gives microseconds since 1970.
        """
        super().__init__("liquidator")
        self.orders: Counter[Market] = Counter()
        """Orders sent, also those that were asked for again."""
        self.filled: Counter[Market] = Counter()
        self.failed: Counter[Market] = Counter()
        self.in_doubt: Counter[Market] = Counter()
        """Answers after which nobody knew what was done."""
        self.withdrawn: Counter[Market] = Counter()
        """Slices never sent, as the post does not answer and another can take them."""
        self.liquidated = 0
        self.broken = 0
        """How often carrying a liquidation out broke; it was begun again."""
        self.breakers: Mapping[Market, Breaker] = {market: new_breaker() for market in MARKETS}
        self._refusals = {market: Breaker(doubts_max=REFUSALS_MAX) for market in MARKETS}
        """How far each post says anything but no."""
        self._book = book
        self._board = board
        self._open_venues = open_venues
        self._timeout_seconds = timeout_seconds
        self._call_seconds = timeout_seconds + margin_seconds
        self._orders_max = orders_max
        self._loans_max = loans_max
        self._doubted_max = max(1, loans_max // 10)
        self._rescan_seconds = rescan_seconds
        self._clock = clock
        self._owned_at = book.engine.head.committed_at
        """Slices placed later are of this ownership, and nobody else has sent them."""
        self._places_from = time.monotonic() + self._call_seconds
        """From when on a loan of an earlier ownership gets new orders: until then one of the
        former owner's may be under way."""
        self._sent: set[str] = set()
        """Ids of orders that were sent, of slices that may be open still."""
        self._doubted: Counter[Market] = Counter()
        """Slices that are in doubt and asked for again. From a tenth of all loans on, a post that
        does not answer gets no new ones."""
        self._heard: deque[str] = deque(maxlen=WAITING_MAX)
        self._waiting: dict[str, None] = {}
        """Loans that are known and not carried on with yet, in order."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._trouble = ""
        self._is_unsure = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: asyncio.Event
        self._ending: asyncio.Event
        self._slots: dict[Market, asyncio.Semaphore]
        self._readers: ThreadPoolExecutor

    # ── for anybody ───────────────────────────────────────────────────────────────

    @property
    def under_way(self) -> int:
        """Loans that are carried on with."""
        return len(self._tasks)

    @property
    def status(self) -> str:
        """Why liquidations wait, for `/readyz`; "" while all is well."""
        if self._down or self._trouble:
            return self._down or self._trouble
        if self._is_unsure and self._tasks:
            return "nothing is sold while the book may get another owner"
        silent = self._shut(self.breakers)
        if silent:
            return f"no answers from {', '.join(silent)}"
        refusing = self._shut(self._refusals)
        return f"all orders are refused by {', '.join(refusing)}" if refusing else ""

    def _shut(self, breakers: Mapping[Market, Breaker]) -> list[Market]:
        """Return which posts are left alone; once nobody needs them, that is over after a rest."""
        now, bad = time.monotonic(), {"open", "half_open"} if self._tasks else {"open"}
        return [market for market, breaker in breakers.items() if breaker.state(now) in bad]

    def states(self) -> dict[Market, State]:
        """Return how each post's breaker stands."""
        now = time.monotonic()
        return {market: breaker.state(now) for market, breaker in self.breakers.items()}

    def hear(self, answers: Sequence[Answer]) -> None:
        """Hear of all answers of a batch, from the engine thread: liquidations may have begun."""
        is_begun = False
        for submission, outcome in answers:
            command = submission.command
            if isinstance(command, BeginLiquidation) and isinstance(outcome, Receipt):
                self._heard.append(command.loan)
                is_begun = True
        if is_begun:
            self._wake()

    def stop(self) -> None:
        """End the thread, and wait until it has."""
        self._is_over.set()
        self._wake()
        super().stop()

    def _wake(self) -> None:
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has just been closed
                loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        self._bell.set()
        if self._is_over.is_set():
            self._ending.set()

    # ── the thread ────────────────────────────────────────────────────────────────

    def _session(self) -> None:
        """Carry liquidations out until told to stop. Raises ExtraMissing, StoreError."""
        with ThreadPoolExecutor(_READERS, "pennyweight-liquidator-reads") as self._readers:
            asyncio.run(self._main())

    async def _main(self) -> None:
        self._bell, self._ending = asyncio.Event(), asyncio.Event()
        self._slots = {market: asyncio.Semaphore(self._orders_max) for market in MARKETS}
        self._loop = asyncio.get_running_loop()
        try:
            async with self._open_venues() as venues:
                self._down = ""
                try:
                    await self._watch(venues)
                finally:
                    await self._end_tasks()
        finally:
            self._loop = None

    async def _watch(self, venues: Venues) -> None:
        """Find liquidations, and have a task carry each of them on, until told to stop."""
        rescan_at = 0.0
        while not self._is_over.is_set():
            self._bell.clear()
            if time.monotonic() >= rescan_at:
                if not self._waiting:
                    await self._rescan()
                rescan_at = time.monotonic() + self._rescan_seconds
            self._begin_tasks(venues)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0, rescan_at - time.monotonic())):
                    await self._bell.wait()

    async def _rescan(self) -> None:
        """List once more, if the store answers."""
        try:
            await self._list()
        except StoreError as error:
            self._note(error)
        else:
            self._trouble = ""

    async def _list(self) -> None:
        """Note all loans that are being liquidated, as far as there is room. Raises StoreError."""
        records, after = self._book.store.records, ""
        while len(self._waiting) < WAITING_MAX:
            page = await self._read(
                partial(records, LOAN, label="status:liquidating", after=after, limit=PAGE)
            )
            for record in page:
                if record.id not in self._tasks:
                    self._waiting.setdefault(record.id)
            if len(page) < PAGE or self._ending.is_set():
                return
            after = page[-1].id

    def _begin_tasks(self, venues: Venues) -> None:
        """Begin with those who wait, as far as there is room."""
        while self._heard and len(self._waiting) < WAITING_MAX:
            loan_id = self._heard.popleft()
            if loan_id not in self._tasks:
                self._waiting.setdefault(loan_id)
        while self._waiting and len(self._tasks) < self._loans_max:
            loan_id = next(iter(self._waiting))
            del self._waiting[loan_id]
            task = asyncio.create_task(self._carry_out(venues, loan_id), name=loan_id)
            self._tasks[loan_id] = task
            task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Take note of a task's end. A loan whose task broke is found again by the next look."""
        loan_id = task.get_name()
        del self._tasks[loan_id]
        self._bell.set()
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StoreError):
            self._note(error)
        elif error is not None and not isinstance(error, _Ending):
            self.broken += 1
            log.error("a liquidation broke; it goes on later", loan=loan_id, exc_info=error)

    def _note(self, error: StoreError) -> None:
        if not self._trouble:
            log.warning("liquidations wait for the store", cause=str(error))
        self._trouble = str(error)

    async def _end_tasks(self) -> None:
        """Let the answers to what was sent come in, for a moment, then end all tasks."""
        self._ending.set()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ── a loan ────────────────────────────────────────────────────────────────────

    async def _carry_out(self, venues: Venues, loan_id: str) -> None:
        """Carry one liquidation on until it has ended. Raises StoreError, _Ending, _Broken."""
        sales: dict[int, asyncio.Task[End]] = {}
        failures, not_before, is_begun = 0, 0.0, False
        try:
            while True:
                now = time.monotonic()
                seen = await self._look_at(venues, loan_id, sales, is_placing=now >= not_before)
                if seen == "ended":
                    for task in sales.values():
                        await task  # it has yet to hear that its slice has ended
                    self.liquidated += is_begun
                    return
                is_begun = True
                if seen == "placed":
                    continue
                seconds = not_before - now if not_before > now else LOOK_SECONDS
                if not sales:
                    await self._rest(seconds)
                    continue
                await asyncio.wait(
                    sales.values(), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
                )
                for number in [number for number, task in sales.items() if task.done()]:
                    end = sales.pop(number).result()
                    failures = failures + 1 if end == "failed" else 0
                    if failures:
                        not_before = time.monotonic() + self._patience_after(failures)
        finally:
            for task in sales.values():
                task.cancel()
            await asyncio.gather(*sales.values(), return_exceptions=True)

    def _patience_after(self, failures: int) -> float:
        """Return how long to wait before more is placed for a loan whose slices fail.

        Where no post that quotes is worth asking, each loan tries it now and then, and all of
        them together so often a second at most: a slice is an entry of the journal.
        """
        known = [quote.market for quote in self._board.latest()] or MARKETS
        if any(self._answers(market) for market in known):
            return _back_off(failures)
        crowd = max(1.0, len(self._tasks) / CROWD)
        return random.uniform(SLOW_SECONDS / 2, SLOW_SECONDS) * crowd  # noqa: S311 - jitter

    async def _look_at(
        self,
        venues: Venues,
        loan_id: str,
        sales: dict[int, "asyncio.Task[End]"],
        *,
        is_placing: bool,
    ) -> Look:
        """Read a loan, have all its open slices sold, and place what more is needed.

        What was read is not kept. Raises StoreError, _Ending, _Broken.
        """
        record = await self._record(LOAN, loan_id)
        loan = None if record is None else read_loan(record)
        if record is None or loan is None or loan.status != "liquidating":
            return "ended"
        for part in loan.open:
            if part.number not in sales:
                sales[part.number] = asyncio.create_task(self._sell(venues, loan_id, part.number))
        return "placed" if is_placing and await self._place(record, loan) else "waits"

    async def _place(self, record: Record, loan: Loan) -> bool:
        """Place what more is needed; whether the loan is to be read again at once.

        Raises StoreError, _Ending, _Broken.
        """
        if self._ending.is_set() or not self._may_place(loan):
            return False
        quotes = await self._quotes_for(record.id, loan)
        if not quotes:
            return False
        life = self._book.engine.head.incarnation
        outcome = await self._submit(
            PlaceSlices(record.id, loan.borrower, record.version, quotes, life)
        )
        if isinstance(outcome, Refusal):
            return outcome.reason is Reason.LOAN_CHANGED
        if isinstance(outcome, Unknown):
            await self._rest(_back_off(1))
        return True

    def _may_place(self, loan: Loan) -> bool:
        """Whether new orders may be given: something is missing, and no former owner's are out."""
        if loan.remaining <= 0 or loan.free <= 0:
            return False
        return loan.liquidating_at > self._owned_at or time.monotonic() >= self._places_from

    # ── quotes ────────────────────────────────────────────────────────────────────

    async def _quotes_for(self, loan_id: str, loan: Loan) -> tuple[Quote, ...]:
        """Return by which quotes more can be placed: fresh ones, else older, else the loan's own.

        Posts that do not answer are left out, unless nothing could be placed then. Empty if
        nothing can be placed at all: every post that anything is known of has a slice already.
        """
        known = [self._board.fresh(self._clock()), self._board.latest()]
        chosen = self._chosen(known, loan, is_picky=True)
        if chosen:
            return chosen
        record = await self._record(SLICE, slice_id(loan_id, loan.slices))
        if record is not None:
            known.append(read_slice(record).quotes)
        return self._chosen(known, loan, is_picky=True) or self._chosen(known, loan, is_picky=False)

    def _chosen(
        self, known: Sequence[tuple[Quote, ...]], loan: Loan, *, is_picky: bool
    ) -> tuple[Quote, ...]:
        """Return the first quotes by which something can be placed."""
        busy = {part.market for part in loan.open}
        for all_quotes in known:
            quotes = tuple(
                quote for quote in all_quotes if not is_picky or self._answers(quote.market)
            )
            usable = [quote for quote in quotes if quote.market not in busy]
            if usable and plan(loan.remaining, loan.free, usable):
                return quotes
        return ()

    def _answers(self, market: Market) -> bool:
        """Whether a post can be asked for something new.

        While it is silent a new slice tries it now and then, and is in doubt itself. However
        long that lasts, the loans that wait for it do not take the places of all others: what
        is in doubt is asked for all the time, and shows as well when the post answers again.
        """
        now = time.monotonic()
        if self._refusals[market].state(now) == "open":
            return False
        state = self.breakers[market].state(now)
        return state == "closed" or (
            state == "half_open" and self._doubted[market] < self._doubted_max
        )

    # ── a slice ───────────────────────────────────────────────────────────────────

    async def _sell(self, venues: Venues, loan_id: str, number: int) -> End:
        """Sell one slice, and book what became of it. Raises StoreError, _Ending, _Broken."""
        part = await self._open_slice(loan_id, number)
        if part is None:
            return "gone"
        quantity = format_amount(part.quantity, SCALE)
        doubts = 0
        try:
            while True:
                answer = await self._ask(venues, part, quantity)
                if answer is None:
                    self.withdrawn[part.market] += 1
                    await self._book_end(_end(part, Failed(_NOT_SENT)), part)
                    return "withdrawn"
                if not isinstance(answer, InDoubt) and await self._book_end(
                    _end(part, answer), part
                ):
                    return "filled" if isinstance(answer, Filled) else "failed"
                doubts += 1
                self._doubted[part.market] += doubts == 1
                await self._rest(self._patience(part.market, doubts))
        finally:
            self._doubted[part.market] -= doubts > 0

    async def _ask(
        self, venues: Venues, part: Slice, quantity: str
    ) -> Filled | Failed | InDoubt | None:
        """Ask a post to sell a slice, once the book is surely ours for so long.

        None if it was not asked, nor ever is to be. Raises _Ending.
        """
        market, breaker = part.market, self.breakers[part.market]
        answer: Filled | Failed | InDoubt = InDoubt("it did not answer in time")
        async with self._slots[market]:
            if not self._is_admitted(part):
                return None
            until = await self._until_sure()
            self._sent.add(part.request_id)
            self.orders[market] += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(until - time.monotonic()):
                    answer = await venues.sell(
                        market, part.request_id, quantity, partial(self._may_send, until)
                    )
        match answer:
            case InDoubt(reason=reason):
                self.in_doubt[market] += 1
                openings = breaker.openings
                breaker.doubted(time.monotonic())
                if breaker.openings > openings:
                    log.warning("a post does not answer", market=market, cause=reason)
            case Filled():
                self.filled[market] += 1
                breaker.answered()
                self._refusals[market].answered()
            case Failed(reason=reason):
                self.failed[market] += 1
                breaker.answered()
                refusals = self._refusals[market]
                openings = refusals.openings
                refusals.doubted(time.monotonic())
                if refusals.openings > openings:
                    log.warning("a post refuses all orders", market=market, cause=reason)
        return answer

    async def _until_sure(self) -> float:
        """Wait until the book is surely ours until an order is answered; return when that must be.

        That is reckoned from before the book is asked: what stands still after it has asked
        is late, however long it stood. Raises _Ending.
        """
        until = time.monotonic() + self._timeout_seconds
        while not self._book.is_sure_for(self._call_seconds):
            self._is_unsure = True
            await self._rest(_UNSURE_SECONDS)
            until = time.monotonic() + self._timeout_seconds
        self._is_unsure = False
        if self._ending.is_set():
            raise _Ending
        return until

    def _may_send(self, until: float) -> bool:
        """Whether an order may still be written: it is not too late, and the book is ours."""
        return time.monotonic() < until and self._book.is_sure

    def _is_admitted(self, part: Slice) -> bool:
        """Whether a slice is to be asked for: it may be out, its post answers, or no other can.

        A slice is never given up that anybody may have sent.
        """
        if part.request_id in self._sent or part.placed_at <= self._owned_at:
            return True
        now, market = time.monotonic(), part.market
        if self._answers(market):
            return self._refusals[market].admits(now) and self.breakers[market].admits(now)
        known = (*self._board.latest(), *part.quotes)
        return not any(
            quote.market != part.market and self._answers(quote.market) for quote in known
        )

    def _patience(self, market: Market, doubts: int) -> float:
        """Return how long to wait before a post is asked again for what is in doubt.

        A silent one is asked so often a second at most, by however many loans.
        """
        if self.breakers[market].state(time.monotonic()) == "closed":
            return _back_off(doubts)
        crowd = max(1.0, self._doubted[market] / CROWD)
        return random.uniform(SLOW_SECONDS / 2, SLOW_SECONDS) * crowd  # noqa: S311 - jitter

    async def _book_end(self, command: FillSlice | FailSlice, part: Slice) -> bool:
        """Book what became of a slice; False where the book cannot take what the post says.

        Goes on until the book has it, or shows that it had it. Raises StoreError, _Ending,
        _Broken.
        """
        while True:
            outcome = await self._submit(command)
            if isinstance(outcome, Refusal) and outcome.reason not in _ENDED:
                log.error(
                    "a post's answer cannot be booked",
                    loan=part.loan,
                    slice=part.number,
                    reason=outcome.reason.code,
                )
                return False
            if not isinstance(outcome, Unknown):
                break
            await self._rest(_back_off(1))
            if await self._open_slice(part.loan, part.number) is None:
                break
        self._sent.discard(part.request_id)
        return True

    # ── the book ──────────────────────────────────────────────────────────────────

    async def _submit(self, command: Command) -> Receipt | Refusal | Unknown:
        """Have the book decide a command; what it does not take is unknown. Raises _Broken."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Outcome] = loop.create_future()

        def ticket(outcome: Outcome) -> None:
            with suppress(RuntimeError):  # our loop has ended
                loop.call_soon_threadsafe(_settle, answered, outcome)

        try:
            self._book.submit(Submission(command, lane=Lane.TIMERS, ticket=ticket))
        except (QueueFull, Unavailable) as error:
            return Unknown(str(error))
        outcome = await answered
        if isinstance(outcome, Failure):
            raise _Broken(f"{command.name}: {outcome.cause!r}") from outcome.cause
        return outcome

    async def _open_slice(self, loan_id: str, number: int) -> Slice | None:
        """Return a slice, if it is open. Raises StoreError."""
        record = await self._record(SLICE, slice_id(loan_id, number))
        part = None if record is None else read_slice(record)
        return part if part is not None and part.state == "open" else None

    async def _record(self, kind: str, record_id: str) -> Record | None:
        return await self._read(lambda: self._book.store.record(kind, record_id))

    async def _read(self, question: Callable[[], T]) -> T:
        """Ask the store, in a thread: it may take long, and the posts' answers come meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, question)

    async def _rest(self, seconds: float) -> None:
        """Wait. Raises _Ending."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()
                raise _Ending


def _end(part: Slice, answer: Filled | Failed) -> FillSlice | FailSlice:
    """Return the command that books a definite answer."""
    if isinstance(answer, Failed):
        return FailSlice(part.loan, part.number, answer.reason, part.borrower, part.hold)
    return FillSlice(
        part.loan,
        part.number,
        answer.order_id,
        answer.quantity,
        answer.total,
        part.borrower,
        part.hold,
    )


def _back_off(times: int) -> float:
    """Return how long to wait after so many in a row, in seconds: longer each time, and jittered."""
    longest = min(BACK_OFF_SECONDS_MAX, BACK_OFF_SECONDS * 2 ** min(times, 8))
    return random.uniform(BACK_OFF_SECONDS, longest)  # noqa: S311 - jitter


def _settle(answered: "asyncio.Future[Outcome]", outcome: Outcome) -> None:
    if not answered.done():
        answered.set_result(outcome)

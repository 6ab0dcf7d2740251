"""Takes the updates of portfolios that were queued, in order of their numbers.

What is queued stands on an index, and leaves it with the command that takes it: so nothing
is lost when a command is not taken or its outcome is not heard, and a new owner goes on where
the last one was. A burst stays in the book, never in memory; a window of it is under way. An
update that a rule breaks on is left and tried again later, and holds nobody up. Numbers and
users are all that is kept here.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from pennyweight.agents.agent import RETRY_SECONDS, RETRY_SECONDS_MAX, Persistent
from pennyweight.engine.engine import Answer, Lane, QueueFull, Submission
from pennyweight.engine.port import StoreError
from pennyweight.engine.receipts import Failure, Outcome, Receipt, Refusal
from pennyweight.ledger.records import RANK_MAX
from pennyweight.ledger.refusals import Reason
from pennyweight.products.portfolios.queue import Queued, QueueUpdate, TakeUpdate
from pennyweight.products.portfolios.shared import QUEUE, UPDATE
from pennyweight.runtime.clock import wall_clock
from pennyweight.runtime.driver import ThreadedBook, Unavailable

WINDOW = 2_000
"""Updates submitted and not yet answered, at most."""

PAGE = 500
"""Places of the index that are read at a time."""

HEARD_MAX = 10_000
"""Updates just queued whose users are kept, so that their records need not be read for them."""

RESTING_MAX = 10_000
"""Updates that a rule broke on, and that are left alone for a while, at most."""

REST_SECONDS = 1.0
REST_SECONDS_MAX = 60.0
"""How long one is left alone: the first time, and at most."""

EVERY_SECONDS = 0.5
"""How often the index is looked at without a reason."""

TELL_SECONDS = 1.0
DEPTH_MAX = 10_000
"""The queue is counted up to here; a longer one is told as this long."""

_LATE = frozenset({Reason.UPDATE_TAKEN, Reason.UPDATE_NOT_FOUND})
"""Refusals that say that somebody took it, which is all that was wanted."""

_AWAKE = (0.0, 0.0)

log = structlog.get_logger(__name__)


class UpdateQueue(Persistent):
    """A thread that takes queued updates. Counters are since its beginning."""

    expected = (StoreError,)

    def __init__(
        self,
        book: ThreadedBook,
        *,
        window: int = WINDOW,
        every_seconds: float = EVERY_SECONDS,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        """`clock` gives microseconds since 1970."""
        super().__init__("updates")
        self.taken = 0
        """Updates of which it is settled what came of them, those that were refused among them."""
        self.refused: Counter[str] = Counter()
        """By reason."""
        self.failures = 0
        """How often a rule of ours broke on an update."""
        self.unanswered = 0
        """Commands that were not decided, or of which nobody knows."""
        self.depth = 0
        """Updates that are queued, as last counted; `DEPTH_MAX` stands for as many or more."""
        self.oldest_seconds = 0.0
        """How long the first of them had been waiting then."""
        self._book = book
        self._window = window
        self._page = min(PAGE, window)
        self._every_seconds = every_seconds
        self._clock = clock
        self._trouble = ""
        self._answered: deque[tuple[int, Outcome]] = deque()
        self._heard: deque[tuple[int, str]] = deque(maxlen=HEARD_MAX)
        """Number and user of what was just queued, in order."""
        self._in_flight: set[int] = set()
        self._resting: dict[int, tuple[float, float]] = {}
        """Until when an update is left alone, and for how many seconds that is."""
        self._rested_at = math.inf
        """When the first of them is to be tried again."""
        self._after: tuple[int, str] | None = None
        """The place on the index behind which the next look begins."""
        self._is_noticed = True
        self._is_broken = False
        """Something was not decided: begin again at the front, once nothing is under way."""
        self._is_sleeping = False
        self._bell = threading.Event()
        self._retry_at = self._look_at = self._tell_at = 0.0
        self._retry_seconds = RETRY_SECONDS

    # ── for anybody ───────────────────────────────────────────────────────────────

    @property
    def status(self) -> str:
        """Why updates wait, for `/readyz`; "" while all is well."""
        return self._down or self._trouble

    def hear(self, answers: Sequence[Answer]) -> None:
        """Hear of all answers of a batch, from the engine thread: something may have been queued."""
        new = [
            (outcome.answer.number, outcome.answer.user)
            for submission, outcome in answers
            if type(submission.command) is QueueUpdate
            and type(outcome) is Receipt
            and not outcome.is_replayed
        ]
        if new:
            self._heard.extend(new)
            self._is_noticed = True
            self._wake()

    def stop(self) -> None:
        """End the thread, and wait until it has."""
        self._is_over.set()
        self._bell.set()
        super().stop()

    # ── the thread ────────────────────────────────────────────────────────────────

    def _session(self) -> None:
        """Take what is queued until told to stop. Raises StoreError."""
        self._after = None
        self._is_noticed = True
        while not self._is_over.is_set():
            self._settle()
            if self._is_to_look():
                self._look()
            self._tell()
            self._down = ""
            if not self._is_to_look():
                self._sleep()

    def _is_to_look(self) -> bool:
        """Whether there is a reason to look at the index, and room for what may be found."""
        now = time.monotonic()
        if now < self._retry_at or len(self._in_flight) > self._window - self._page:
            return False
        if self._is_broken:
            return not self._in_flight
        return self._is_noticed or now >= self._look_at

    def _look(self) -> None:
        """Submit a page, if the book takes it. Raises StoreError."""
        now = time.monotonic()
        if self._is_broken or now >= self._rested_at:
            self._begin_again(now)
        self._look_at = now + self._every_seconds
        self._is_noticed = False
        try:
            if self.tick() == self._page:
                self._is_noticed = True
        except (QueueFull, Unavailable) as error:
            self._is_noticed = True
            self._back_off(str(error))
        else:
            if not self._in_flight:  # nothing is left that could say that all is well
                self._recover()

    def _begin_again(self, now: float) -> None:
        """Look at the front of the index next, for what was not taken and may be by now."""
        self._is_broken = False
        self._after = None
        later = (until for until, _ in self._resting.values() if until > now)
        self._rested_at = min(later, default=math.inf)

    def tick(self) -> int:
        """Submit one page of the index, and return how many were on it.

        Those that are under way or resting are passed over. Raises QueueFull, Unavailable,
        StoreError; the next look goes on behind the last one submitted.
        """
        page = self._book.store.due(QUEUE, 0, RANK_MAX, after=self._after, limit=self._page)
        now = time.monotonic()
        for due in page:
            number = due.rank
            until, _ = self._resting.get(number, _AWAKE)
            if number not in self._in_flight and until <= now:
                user = self._user_of(number, due.id)
                if user is not None:
                    self._submit(TakeUpdate(number, user))
            self._after = (number, due.id)
        return len(page)

    def _user_of(self, number: int, record_id: str) -> str | None:
        """Return whose update it is, as heard or read; None if it has been taken meanwhile."""
        heard = self._heard
        while heard:
            known, user = heard[0]
            if known > number:
                break
            heard.popleft()
            if known == number:
                return user
        record = self._book.store.record(UPDATE, record_id)
        queued: Queued | None = None if record is None else record.read(Queued)
        return None if queued is None or queued.state != "queued" else queued.update.user

    def _submit(self, command: TakeUpdate) -> None:
        """Submit a command; its outcome comes to `_settle`. Raises QueueFull, Unavailable."""
        number = command.number
        self._in_flight.add(number)
        try:
            self._book.submit(
                Submission(command, lane=Lane.INBOUND, ticket=partial(self._hand_in, number))
            )
        except (QueueFull, Unavailable):
            self._in_flight.discard(number)
            raise

    # ── outcomes ──────────────────────────────────────────────────────────────────

    def _hand_in(self, number: int, outcome: Outcome) -> None:
        """Take an outcome; from any thread."""
        self._answered.append((number, outcome))
        self._wake()

    def _settle(self) -> None:
        """Take note of all outcomes that there are."""
        answered = self._answered
        while answered:
            number, outcome = answered.popleft()
            self._in_flight.discard(number)
            if isinstance(outcome, Receipt):
                self.taken += 1
                if outcome.answer.state == "refused":
                    self.refused[outcome.answer.reason] += 1
                self._go_on(number)
            elif isinstance(outcome, Failure):
                self.failures += 1
                log.error("a rule broke on a queued update", number=number, exc_info=outcome.cause)
                self._rest(number)
            elif not isinstance(outcome, Refusal):
                self.unanswered += 1
                self._is_broken = True
                self._back_off(outcome.message)
            elif outcome.reason in _LATE:
                self._go_on(number)
            else:
                self.failures += 1
                log.error(
                    "a queued update cannot be taken", number=number, cause=outcome.reason.code
                )
                self._rest(number)

    def _go_on(self, number: int) -> None:
        """Nothing more is to be done about an update."""
        if self._resting:
            self._resting.pop(number, None)
        self._recover()

    def _recover(self) -> None:
        """The book takes commands."""
        if self._trouble and not self._is_broken:
            log.warning("queued updates are taken again")
            self._trouble = ""
            self._retry_seconds = RETRY_SECONDS

    def _rest(self, number: int) -> None:
        """Leave an update alone for a while, twice as long as the last time."""
        _, before = self._resting.pop(number, _AWAKE)
        seconds = min(2 * before, REST_SECONDS_MAX) or REST_SECONDS
        if len(self._resting) >= RESTING_MAX:
            del self._resting[next(iter(self._resting))]
        until = time.monotonic() + seconds
        self._resting[number] = (until, seconds)
        self._rested_at = min(self._rested_at, until)

    # ── waiting ───────────────────────────────────────────────────────────────────

    def _back_off(self, why: str) -> None:
        """Submit nothing for a while, longer each time until something is taken."""
        if not self._trouble:
            log.warning("queued updates wait for the book", cause=why)
        self._trouble = f"updates wait: {why}"
        now = time.monotonic()
        if now >= self._retry_at:
            self._retry_at = now + self._retry_seconds
            self._retry_seconds = min(2 * self._retry_seconds, RETRY_SECONDS_MAX)

    def _wake(self) -> None:
        if self._is_sleeping:
            self._is_sleeping = False
            self._bell.set()

    def _sleep(self) -> None:
        """Wait until something is queued or answered, a moment at most."""
        now = time.monotonic()
        until = max(self._retry_at, now + self._every_seconds if self._in_flight else self._look_at)
        self._is_sleeping = True
        if not (self._answered or self._is_over.is_set() or self._is_to_look()):
            self._bell.wait(max(0.0, until - now))
        self._is_sleeping = False
        self._bell.clear()

    def _tell(self) -> None:
        """Now and then count what is queued, and look how long it has been. Raises StoreError."""
        now = time.monotonic()
        if now < self._tell_at:
            return
        self._tell_at = now + TELL_SECONDS
        depth, after, first = 0, None, ""
        while depth < DEPTH_MAX:
            page = self._book.store.due(QUEUE, 0, RANK_MAX, after=after, limit=1_000)
            depth += len(page)
            first = first or (page[0].id if page else "")
            if len(page) < 1_000:
                break
            after = (page[-1].rank, page[-1].id)
        record = self._book.store.record(UPDATE, first) if first else None
        here = self._clock()
        since = here if record is None else record.read(Queued).queued_at
        self.depth = min(depth, DEPTH_MAX)
        self.oldest_seconds = max(0, here - since) / 1e6

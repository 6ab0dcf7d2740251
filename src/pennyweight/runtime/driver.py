"""The threaded driver: one engine thread per book owns its facts and its store.

Callers live on an event loop. `submit` queues a command and returns; the engine thread
takes what waits, decides, appends, and hands all answers of a batch back with one call
into the loop, where each submission's ticket is called with its outcome. The loop never
waits for a disk, and whatever arrives during one commit goes into the next.

A database can be away. What was not written is tried again; what may have been written is
found out first; callers wait a bounded time for either, and then hear which of both it is.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import msgspec
import structlog

from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.engine import Answer, Engine, Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import (
    Append,
    ConstraintFailed,
    NotOwner,
    OutcomeUnknown,
    Reads,
    Store,
    StoreError,
    StoreUnavailable,
)
from pennyweight.engine.receipts import UNKNOWN
from pennyweight.runtime.clock import ClockGuard

DECIDE_SECONDS_MAX = 0.02
"""A batch is cut when its decisions took this long."""

HOLD_SECONDS = 10.0
"""How long callers wait for a store that is away, or for the outcome of a broken commit."""

WATCH_SECONDS = 0.25
_IDLE_SECONDS = 0.2
_RETRY_SECONDS = 0.02
_RETRY_SECONDS_MAX = 0.5
_CANNOT = "the store cannot take this now"
_EXIT_CODE = 70
_LAST_WORDS_SECONDS = 0.2

CallSoon = Callable[..., object]
"""How to call a function on the callers' loop from here (`loop.call_soon_threadsafe`)."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Unavailable(Exception):
    """Commands cannot be taken now; nothing was accepted. `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        """`message` is for the caller and for the body of `/readyz`."""
        super().__init__(message)
        self.code = code


class Tenure(Protocol):
    """How long the book is surely ours, where others may take it over."""

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can own the book at this moment."""

    def is_sure_for(self, seconds: float) -> bool:
        """Whether nobody else can own the book now, nor before so many seconds have passed."""

    def confirm(self) -> None:
        """Ask the store whether it is still ours. Raises NotOwner, StoreUnavailable."""


class ForEver:
    """The tenure of a book that only this process can have."""

    is_sure = True

    def is_sure_for(self, seconds: float) -> bool:  # noqa: ARG002 - for ever is long enough
        """Nobody else will have it."""
        return True

    def confirm(self) -> None:
        """Nobody else has it."""


def call_directly(function: Callable[..., object], *arguments: Any) -> None:
    """Call at once, in the engine thread: the `CallSoon` of tests and tools without a loop."""
    function(*arguments)


class ThreadedBook:
    """A book that an engine thread decides and commits. The ticket of a submission is a callback."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        clock: ClockGuard,
        *,
        observe: Callable[[int, float, float], None] | None = None,
        hear: Callable[[Sequence[Answer]], object] | None = None,
        tenure: Tenure | None = None,
        lost: Callable[[], object] | None = None,
        hold_seconds: float = HOLD_SECONDS,
        die: Callable[[int], object] = os._exit,
    ) -> None:
        """`observe` hears of each batch: commands, seconds to decide, seconds to append.

        `hear` hears of all answers of a batch, after they were handed over; like `observe`
        it is called by the engine thread. `lost` is called there, last of all, when somebody
        else owns the book: what waits is left for `take_back`. Without it that is a failure.
        `die` ends the process when the engine thread breaks.
        """
        self.engine = engine
        self.store = store
        self.clock = clock
        self.failure = ""
        """Why nothing is committed any more; "" while all is well."""
        self.is_lost = False
        """Whether another process owns the book now; this object is of no more use then."""
        self.hold_seconds = hold_seconds
        self._observe = observe
        self._hear = hear
        self._tenure = ForEver() if tenure is None else tenure
        self._lost = lost
        self._die = die
        self._call_soon: CallSoon = call_directly
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_waiting = False
        self._is_stopping = False
        self._is_troubled = False
        self._is_losing = False
        self._late_at = 0.0
        self._unresolved: Append | None = None
        """The append whose outcome is not known; no other is made before it is."""
        self._trouble: Unavailable | None = None
        """Why the store does not answer; commands wait for it until `_patient_until`."""
        self._patient_until = 0.0
        self._retry_seconds = _RETRY_SECONDS
        self._asked_at = 0.0
        """Since when the store has owed an answer; 0 while it owes none."""
        self._watching = threading.Lock()
        """Held to answer callers in the engine thread's place, and to take the store's answer."""
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pennyweight-engine", daemon=True)
        self._watcher = threading.Thread(target=self._watch, name="pennyweight-watch", daemon=True)

    # ── for the callers' loop ─────────────────────────────────────────────────────

    @property
    def standing(self) -> Standing:
        """Assets, counters and cursors as committed."""
        return self.engine.standing

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can own the book now: for what cannot be taken back. From any thread."""
        return not self.is_lost and self._tenure.is_sure

    def is_sure_for(self, seconds: float) -> bool:
        """Whether nobody else can own the book now, nor before so many seconds have passed.

        For what takes so long and cannot be taken back. From any thread.
        """
        return not self.is_lost and self._tenure.is_sure_for(seconds)

    def figures(self) -> CacheFigures:
        """Return what the cache of users does."""
        return self.engine.cache.figures()

    def boards(self) -> Mapping[str, msgspec.Raw]:
        """Whoever asks here has the owner's agents at hand."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Nobody else can own it, or whoever cares asks the member."""
        return {}

    def start(self, call_soon: CallSoon = call_directly) -> None:
        """Start the engine thread; answers go through `call_soon`."""
        self._call_soon = call_soon
        self._thread.start()
        self._watcher.start()

    def submit(self, submission: Submission) -> None:
        """Queue a command; its ticket is called with the outcome. Raises Unavailable, QueueFull."""
        if self._is_troubled:
            self.check()
        self.engine.submit(submission)
        if self._is_waiting:
            self._is_waiting = False
            self._bell.put(None)

    def check(self) -> None:
        """Raise Unavailable when commands cannot be committed: the truth behind `/readyz`."""
        if self.failure:
            raise Unavailable("store_failed", self.failure)
        if self.is_lost:
            raise Unavailable("no_owner", "another process owns the book")
        if self.clock.is_drifting:
            raise Unavailable("clock_drift", f"the clock jumped by {self.clock.drift} microseconds")
        if self._is_stopping:
            raise Unavailable("stopping", "the server is stopping")
        if self._trouble is not None and self._is_patience_over:
            raise Unavailable(self._trouble.code, str(self._trouble))

    def lose(self) -> None:
        """End: another process owns the book. What is being committed is found out first."""
        self._is_losing = True
        self._bell.put(None)

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the thread's end; whether it has ended."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def take_back(self) -> list[Submission]:
        """Return what waits in a book that was lost or has ended, to be asked elsewhere."""
        return self.engine.take_back()

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Decide what waits, then end the thread. New commands are refused from now on."""
        self._is_stopping = self._is_troubled = True
        self._bell.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    # ── the engine thread ─────────────────────────────────────────────────────────

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # noqa: BLE001 - told to all, then the process ends
            try:
                self._break(error)
            finally:  # whatever else goes wrong now, a book without its thread must not look alive
                self._die(_EXIT_CODE)
        finally:
            self._has_ended.set()

    def _break(self, error: BaseException) -> None:
        """Answer everybody, then leave a trace."""
        self.failure = f"the engine broke: {error!r}"
        self._is_troubled = True
        self._hand_over(self.engine.failed(error))
        self._hand_over(self.engine.drain(self.failure))
        log.critical("the engine thread broke", exc_info=error)
        time.sleep(_LAST_WORDS_SECONDS)

    def _step(self) -> bool:
        """Commit one batch, or wait for one; False when it is time to end."""
        was_drifting = self.clock.is_drifting
        now = self.clock.now()
        if self.clock.is_drifting != was_drifting:
            log.critical(
                "the clock is right again" if was_drifting else "the clock jumped: no commits",
                drift_microseconds=self.clock.drift,
            )
        self._is_troubled = (
            bool(self.failure)
            or self.clock.is_drifting
            or self._is_stopping
            or (self._trouble is not None and self._is_patience_over)
        )
        is_closed = bool(self.failure) or self.clock.is_drifting
        if is_closed:
            code = "store_failed" if self.failure else "clock_drift"
            self._hand_over(self.engine.drain(self.failure or "the clock jumped", code))
        if self._trouble is not None and self._is_patience_over:
            self._turn_away(self._trouble)
        try:
            if self._unresolved is not None:
                return self._resolve(self._unresolved)
            if self._is_losing:
                raise NotOwner("somebody else has the lease")
            if is_closed:
                return self._wait()
            batch = self.engine.next_batch(now)
            if batch is not None:
                self._commit(batch)
            elif self._trouble is None:
                return self._wait()
            else:
                self._ask(self._tenure.confirm)
                self._ask(self.store.head)
            self._recover()
        except StoreError as error:
            return self._failed(error)
        return True

    def _commit(self, batch: tuple[Reads, Container[str]]) -> None:
        """Read, decide, append, and hand the answers over. Raises StoreError."""
        started = time.perf_counter()
        found = self._ask(self.store.begin, *batch)
        self._late_at = time.monotonic() + DECIDE_SECONDS_MAX
        append = self.engine.decide(found, self._is_late)
        decided = appended = time.perf_counter()
        if append is not None:
            try:
                self._ask(self.store.append, append)
            except OutcomeUnknown:
                self._unresolved = append
                raise
            appended = time.perf_counter()
        elif not self._tenure.is_sure:
            self._ask(self._tenure.confirm)
        answers = self.engine.committed()
        self._hand_over(answers)
        if self._observe is not None:
            self._observe(len(answers), decided - started, appended - decided)

    def _resolve(self, append: Append) -> bool:
        """Find out what became of an append, and go on. Raises StoreUnavailable, NotOwner."""
        resolution = self._ask(self.store.resolve, append)
        self._unresolved = None
        engine = self.engine
        log.warning("a broken commit was found out", is_committed=resolution.is_committed)
        self._hand_over(engine.committed() if resolution.is_committed else engine.postponed())
        if not resolution.is_owner:
            raise NotOwner("another process owns the book")
        self._recover()
        return True

    def _failed(self, error: StoreError) -> bool:
        """Do what the error asks for; False when the thread is to end.

        A constraint is retried in halves. What was not written waits for the next try.
        Another owner ends this one. Anything else ends all commits on this book.
        """
        if isinstance(error, ConstraintFailed):
            self._hand_over(self.engine.failed(error))
            log.error("a batch contradicted the store", exc_info=error)
            return True
        if isinstance(error, StoreUnavailable | OutcomeUnknown):
            if self._unresolved is None:
                self._hand_over(self.engine.postponed())
            return self._stumble(error)
        if isinstance(error, NotOwner) and self._lost is not None:
            self._hand_over(self.engine.postponed())
            self.is_lost = self._is_troubled = True
            log.warning("another process owns the book", cause=str(error))
            self._lost()
            return False
        self.failure = f"{type(error).__name__}: {error}"
        self._is_troubled = True
        self._unresolved = None
        self._hand_over(self.engine.failed(error))
        log.critical("the store failed; nothing more is committed", exc_info=error)
        return True

    def _ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Ask the store something, watched: it may take longer than callers wait."""
        self._asked_at = time.monotonic()
        try:
            return question(*arguments)
        finally:
            with self._watching:
                self._asked_at = 0.0

    # ── a store that is away ──────────────────────────────────────────────────────

    @property
    def _is_patience_over(self) -> bool:
        return time.monotonic() >= self._patient_until

    def _stumble(self, error: StoreError) -> bool:
        """Wait a moment before the next try; False when the thread is to end."""
        code = error.code if isinstance(error, StoreUnavailable) else UNKNOWN
        if self._trouble is None:
            self._patient_until = time.monotonic() + self.hold_seconds
            self._retry_seconds = _RETRY_SECONDS
            log.error("the store does not answer; commands wait", code=code, cause=str(error))
        self._trouble = Unavailable(code, _CANNOT)  # the store's own words are for the log
        if self._is_stopping and isinstance(error, StoreUnavailable):  # else it is asked once
            self._turn_away(self._trouble)
            return False
        time.sleep(self._retry_seconds)
        self._retry_seconds = min(2 * self._retry_seconds, _RETRY_SECONDS_MAX)
        return True

    def _turn_away(self, trouble: Unavailable) -> None:
        """Answer all who wait: the store has been away for too long."""
        if self._unresolved is not None:
            self._hand_over(self.engine.tell_unknown(str(trouble)))
        code = "store_unavailable" if trouble.code == UNKNOWN else trouble.code
        self._hand_over(self.engine.drain(str(trouble), code))

    def _watch(self) -> None:
        """Answer callers while the engine thread hangs in the store; a thread of its own."""
        while not self._has_ended.wait(WATCH_SECONDS):
            asked_at = self._asked_at
            if asked_at and time.monotonic() - asked_at > self.hold_seconds:
                with self._watching:
                    if self._asked_at == asked_at:
                        self._answer_for_it()

    def _answer_for_it(self) -> None:
        """Tell all who wait that the store says nothing. What it is doing may yet be done."""
        trouble = Unavailable("store_unavailable", "the store does not answer")
        if self._trouble is None:
            log.error("the store has said nothing for long", seconds=self.hold_seconds)
        self._trouble, self._patient_until = trouble, 0.0
        self._is_troubled = True
        self._hand_over(self.engine.tell_unknown(str(trouble)))
        self._hand_over(self.engine.drain(str(trouble), trouble.code))

    def _recover(self) -> None:
        """The store answered."""
        if self._trouble is not None:
            self._trouble = None
            log.warning("the store answers again")

    def _is_late(self) -> bool:
        return time.monotonic() >= self._late_at

    def _wait(self) -> bool:
        """Sleep until something is submitted, a moment at most; False when stopping."""
        self._is_waiting = True
        if not self.engine.waiting and not (self._is_stopping or self._is_losing):
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=_IDLE_SECONDS)
        self._is_waiting = False
        return bool(self.engine.waiting) or self._is_losing or not self._is_stopping

    def _hand_over(self, answers: Sequence[Answer]) -> None:
        if not answers:
            return
        try:
            self._call_soon(_answer, answers)
        except RuntimeError:  # the loop is closed: nobody is left to hear it
            log.warning("answers came after their loop had closed", answers=len(answers))
        if self._hear is not None:
            try:
                self._hear(answers)
            except Exception:
                log.exception("who listens to answers broke", answers=len(answers))


def _answer(answers: Sequence[Answer]) -> None:
    """Call every ticket; one that fails (its client is gone) must not keep the others waiting."""
    for submission, outcome in answers:
        try:
            if submission.ticket is not None:
                submission.ticket(outcome)
        except Exception:
            log.exception("a caller could not be answered", command=submission.command.name)

"""The threaded driver: one engine thread per book owns its facts and its store.

Callers live on an event loop. `submit` queues a command and returns; the engine thread
takes what waits, decides, appends, and hands all answers of a batch back with one call
into the loop, where each submission's ticket is called with its outcome. The loop never
waits for a disk, and whatever arrives during one commit goes into the next.
"""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from pennyweight.engine.engine import Answer, Engine, Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import ConstraintFailed, Store, StoreError
from pennyweight.runtime.clock import ClockGuard

DECIDE_SECONDS_MAX = 0.02
"""A batch is cut when its decisions took this long."""

_IDLE_SECONDS = 0.2
_EXIT_CODE = 70
_LAST_WORDS_SECONDS = 0.2

CallSoon = Callable[..., object]
"""How to call a function on the callers' loop from here (`loop.call_soon_threadsafe`)."""

log = structlog.get_logger(__name__)


class Unavailable(Exception):
    """Commands cannot be taken now; nothing was accepted. `code` is stable."""

    def __init__(self, code: str, message: str) -> None:
        """`message` is for the caller and for the body of `/readyz`."""
        super().__init__(message)
        self.code = code


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
        die: Callable[[int], object] = os._exit,
    ) -> None:
        """`observe` hears of each batch: commands, seconds to decide, seconds to append.

        `hear` hears of all answers of a batch, after they were handed over; like `observe`
        it is called by the engine thread. `die` ends the process when the engine thread breaks.
        """
        self.engine = engine
        self.store = store
        self.clock = clock
        self.failure = ""
        """Why nothing is committed any more; "" while all is well."""
        self._observe = observe
        self._hear = hear
        self._die = die
        self._call_soon: CallSoon = call_directly
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_waiting = False
        self._is_stopping = False
        self._is_troubled = False
        self._late_at = 0.0
        self._thread = threading.Thread(target=self._run, name="pennyweight-engine", daemon=True)

    # ── for the callers' loop ─────────────────────────────────────────────────────

    @property
    def standing(self) -> Standing:
        """Assets, counters and cursors as committed."""
        return self.engine.standing

    def start(self, call_soon: CallSoon = call_directly) -> None:
        """Start the engine thread; answers go through `call_soon`."""
        self._call_soon = call_soon
        self._thread.start()

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
        if self.clock.is_drifting:
            raise Unavailable("clock_drift", f"the clock jumped by {self.clock.drift} microseconds")
        if self._is_stopping:
            raise Unavailable("stopping", "the server is stopping")

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
        self._is_troubled = bool(self.failure) or self.clock.is_drifting or self._is_stopping
        if self.failure or self.clock.is_drifting:
            self._hand_over(self.engine.drain(self.failure or "the clock jumped"))
            return self._wait()
        batch = self.engine.next_batch(now)
        if batch is None:
            return self._wait()
        started = time.perf_counter()
        decided = appended = started
        try:
            found = self.store.begin(*batch)
            self._late_at = time.monotonic() + DECIDE_SECONDS_MAX
            append = self.engine.decide(found, self._is_late)
            decided = appended = time.perf_counter()
            if append is not None:
                self.store.append(append)
                appended = time.perf_counter()
        except StoreError as error:
            self._failed(error)
            return True
        answers = self.engine.committed()
        self._hand_over(answers)
        if self._observe is not None:
            self._observe(len(answers), decided - started, appended - decided)
        return True

    def _failed(self, error: StoreError) -> None:
        """A constraint is retried in halves; anything else ends all commits on this book."""
        is_final = not isinstance(error, ConstraintFailed)
        if is_final:
            self.failure = f"{type(error).__name__}: {error}"
            self._is_troubled = True
        self._hand_over(self.engine.failed(error))
        if is_final:
            log.critical("the store failed; nothing more is committed", exc_info=error)
        else:
            log.error("a batch contradicted the store", exc_info=error)

    def _is_late(self) -> bool:
        return time.monotonic() >= self._late_at

    def _wait(self) -> bool:
        """Sleep until something is submitted, a moment at most; False when stopping."""
        self._is_waiting = True
        if not self.engine.waiting and not self._is_stopping:
            with contextlib.suppress(queue.Empty):
                self._bell.get(timeout=_IDLE_SECONDS)
        self._is_waiting = False
        return bool(self.engine.waiting) or not self._is_stopping

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

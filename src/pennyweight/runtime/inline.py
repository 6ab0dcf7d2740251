"""The driver for one process without threads of its own: callers decide, under one lock.

A caller queues its commands; whoever gets the lock decides and appends all that waits,
also for the others, who sleep until their outcomes are there. So callers never pass the
lock from hand to hand, which would cost a switch of threads for every command.
"""

import threading
from collections.abc import Callable, Sequence

from pennyweight.engine.engine import Answer, Engine, QueueFull, Submission
from pennyweight.engine.port import ConstraintFailed, Store
from pennyweight.engine.receipts import Outcome
from pennyweight.ledger.commands import Command


class _Call:
    """One caller's commands under way; `parked` is locked until the last outcome is there."""

    __slots__ = ("missing", "outcomes", "parked")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.outcomes: dict[Submission, Outcome] = {}
        self.parked = threading.Lock()
        self.parked.acquire()


class InlineBook:
    """A book whose callers decide and append themselves, one batch at a time."""

    def __init__(self, engine: Engine, store: Store, clock: Callable[[], int]) -> None:
        """`clock` gives microseconds since 1970."""
        self.engine = engine
        self.store = store
        self._clock = clock
        self._lock = threading.Lock()

    def execute(self, command: Command, *, key: str = "") -> Outcome:
        """Decide and commit one command. See `execute_many`."""
        return self.execute_many((Submission(command, key=key),))[0]

    def execute_many(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Decide and commit commands in order, and return their outcomes in that order.

        Raises what the store raises when it fails, or an outcome is `Unknown` where
        another caller was told so; the book must not be used afterwards.
        """
        call = _Call(len(submissions))
        for submission in submissions:
            submission.ticket = call
            try:
                self.engine.submit(submission)
            except QueueFull:
                self._decide_all()
                self.engine.submit(submission)
        while True:
            if self._lock.acquire(blocking=False):
                self._decide_all(is_locked=True)
                # What came in between the last look and the release still needs somebody.
                if not self.engine.waiting:
                    break
            elif not call.missing:
                break
            else:
                call.parked.acquire()
        return [call.outcomes[submission] for submission in submissions]

    def _decide_all(self, *, is_locked: bool = False) -> None:
        """Decide and append all that waits, and wake its callers. Releases the lock."""
        if not is_locked:
            self._lock.acquire()
        try:
            while self.engine.waiting:
                self._step()
        except BaseException as error:
            self._release_after(error)
            raise
        self._lock.release()

    def _release_after(self, error: BaseException) -> None:
        """Release the lock; whoever queued meanwhile must not sleep for ever."""
        while True:
            _answer(self.engine.drain(str(error)))
            self._lock.release()
            if not self.engine.waiting or not self._lock.acquire(blocking=False):
                return

    def _step(self) -> None:
        """Decide and append one batch."""
        engine, store = self.engine, self.store
        batch = engine.next_batch(self._clock())
        if batch is None:
            return
        try:
            append = engine.decide(store.begin(*batch), _never)
            if append is not None:
                store.append(append)
        except ConstraintFailed as error:
            _answer(engine.failed(error))
        except BaseException as error:
            _answer(engine.failed(error))
            raise
        else:
            _answer(engine.committed())


def _answer(answers: list[Answer]) -> None:
    """Hand outcomes to their callers, and wake those whose last one it was."""
    for submission, outcome in answers:
        call: _Call = submission.ticket
        call.outcomes[submission] = outcome
        call.missing -= 1
        if not call.missing:
            call.parked.release()


def _never() -> bool:
    return False

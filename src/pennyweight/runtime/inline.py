"""The driver for one process without threads: decides in the caller's thread, under one lock."""

import threading
from collections.abc import Callable, Sequence

from pennyweight.engine.engine import Answer, Engine, QueueFull, Submission
from pennyweight.engine.port import ConstraintFailed, Store
from pennyweight.engine.receipts import Outcome
from pennyweight.ledger.commands import Command


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
        return self.execute_many([Submission(command, key=key)])[0]

    def execute_many(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """Decide and commit commands in order, and return their outcomes in that order.

        Raises what the store raises when it fails; the book must not be used afterwards.
        """
        answers: list[Answer] = []
        with self._lock:
            for submission in submissions:
                try:
                    self.engine.submit(submission)
                except QueueFull:
                    self._drain(answers)
                    self.engine.submit(submission)
            self._drain(answers)
        if len(answers) == 1:
            return [answers[0][1]]
        outcomes = {id(submission): outcome for submission, outcome in answers}
        return [outcomes[id(submission)] for submission in submissions]

    def _drain(self, answers: list[Answer]) -> None:
        """Decide all that waits."""
        while self.engine.waiting:
            answers += self._step()

    def _step(self) -> list[Answer]:
        """Decide and append one batch."""
        engine, store = self.engine, self.store
        batch = engine.next_batch(self._clock())
        if batch is None:
            return []
        append = engine.decide(store.begin(*batch), _never)
        try:
            if append is not None:
                store.append(append)
        except ConstraintFailed as error:
            return engine.failed(error)
        except BaseException as error:
            engine.failed(error)
            raise
        return engine.committed()


def _never() -> bool:
    return False

"""An answer in time: a bank waits for 2.5 s, so one that cannot be given yet says so before.

And no sooner: the bank never asks twice, so what is not taken now is tried until then.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pennyweight.delivery.http.routes import Patient
from pennyweight.engine.engine import QueueFull, Submission
from pennyweight.engine.receipts import Outcome, Unknown
from pennyweight.ledger.commands import Command
from pennyweight.runtime.driver import Unavailable

AGAIN_SECONDS = 0.05
"""Between two tries to have a command taken."""

_STOPPING = "stopping"


class Timed(Patient):
    """A submission whose caller hears that it is unknown, or not taken, when that takes too long.

    What was taken stays on its way: what becomes of it is told to whoever asks again with the
    same id.
    """

    __slots__ = ("_answer", "_refused", "_seconds", "_timer")

    def __init__(
        self, command: Command, *, key: str, not_after: int | None, seconds: float
    ) -> None:
        """`seconds` are counted from when it is known who hears the outcome."""
        self._answer: Callable[[Outcome], object] | None = None
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
        self._refused: Unknown | None = None
        """Why it is not taken; None once it is."""
        super().__init__(command, key=key, not_after=not_after)

    @property
    def ticket(self) -> Any:
        """Who hears the outcome; setting it starts the time."""
        return None if self._answer is None else self._tell

    @ticket.setter
    def ticket(self, ticket: Callable[[Outcome], object] | None) -> None:
        self._answer = ticket
        if ticket is not None:
            with suppress(RuntimeError):  # without a loop nobody can wait too long
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(self._seconds, self._expire)

    def wait(self, submit: Callable[[Submission], object], error: Exception) -> bool:
        """See `Patient`. A server that stops will not take it later either."""
        self._refused = _why(error)
        if self._timer is None or self._refused.code == _STOPPING:
            self._answer = None
            if self._timer is not None:
                self._timer.cancel()
            return False
        asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._try, submit)
        return True

    def _try(self, submit: Callable[[Submission], object]) -> None:
        if self._answer is None or self.is_dropped:
            return
        try:
            submit(self)
        except (QueueFull, Unavailable) as error:
            self._refused = _why(error)
            if self._refused.code == _STOPPING:
                self._tell(self._refused)
            else:
                asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._try, submit)
        else:
            self._refused = None

    def _tell(self, outcome: Outcome) -> None:
        answer, self._answer = self._answer, None
        if self._timer is not None:
            self._timer.cancel()
        if answer is not None:
            answer(outcome)

    def _expire(self) -> None:
        if not self.is_dropped:
            with suppress(asyncio.InvalidStateError):  # it was turned away at once
                late = Unknown(f"there was no commit within {self._seconds} s")
                self._tell(self._refused or late)


def _why(error: Exception) -> Unknown:
    """Return what is told of a command that was not taken."""
    return Unknown(str(error), error.code if isinstance(error, Unavailable) else "queue_full")

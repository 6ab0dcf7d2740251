"""An answer in time: a bank waits for 2.5 s, so one that cannot be given yet says so before."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pennyweight.engine.engine import Submission
from pennyweight.engine.receipts import Outcome, Unknown
from pennyweight.ledger.commands import Command


class Timed(Submission):
    """A submission whose caller hears `outcome_unknown` when it takes too long.

    It stays on its way: what becomes of it is told to whoever asks again with the same id.
    """

    __slots__ = ("_answer", "_seconds", "_timer")

    def __init__(
        self, command: Command, *, key: str, not_after: int | None, seconds: float
    ) -> None:
        """`seconds` are counted from when it is known who hears the outcome."""
        self._answer: Callable[[Outcome], object] | None = None
        self._seconds = seconds
        self._timer: asyncio.TimerHandle | None = None
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

    def _tell(self, outcome: Outcome) -> None:
        answer, self._answer = self._answer, None
        if self._timer is not None:
            self._timer.cancel()
        if answer is not None:
            answer(outcome)

    def _expire(self) -> None:
        if not self.is_dropped:
            with suppress(asyncio.InvalidStateError):  # it was turned away at once
                self._tell(Unknown(f"there was no commit within {self._seconds} s"))

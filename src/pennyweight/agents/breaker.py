"""A circuit breaker: who does not answer is left alone for a while. Time is passed in."""

from typing import Literal

State = Literal["closed", "open", "half_open"]


class Breaker:
    """How far somebody outside can be relied on, by what became of what was asked.

    It opens after so many answers in a row that left it in doubt what was done. Any other
    answer, also a plain no, shows that somebody is there and closes it. After a rest it is
    half open: one may try, and until that is answered, or the rest has passed again, no other.
    """

    def __init__(self, *, doubts_max: int = 5, rest_seconds: float = 5.0) -> None:
        """Closed, to begin with."""
        self.openings = 0
        """How often it has opened."""
        self._doubts_max = doubts_max
        self._rest_seconds = rest_seconds
        self._doubts = 0
        self._is_closed = True
        self._rests_until = 0.0

    def state(self, now: float) -> State:
        """Return how it stands; `now` is in seconds of a clock that never jumps."""
        if self._is_closed:
            return "closed"
        return "open" if now < self._rests_until else "half_open"

    def admits(self, now: float) -> bool:
        """Whether something new may be tried. While half open only the first who asks may."""
        state = self.state(now)
        if state == "half_open":
            self._rests_until = now + self._rest_seconds
        return state != "open"

    def answered(self) -> None:
        """Take note of a definite answer."""
        self._doubts = 0
        self._is_closed = True

    def doubted(self, now: float) -> None:
        """Take note of an answer, or of none, after which nobody knows what was done.

        What is asked again and again during the rest does not prolong it.
        """
        self._doubts += 1
        state = self.state(now)
        if state == "half_open" or (state == "closed" and self._doubts >= self._doubts_max):
            self.openings += state == "closed"
            self._is_closed = False
            self._rests_until = now + self._rest_seconds

"""When an open loop means to send: at a fixed rate, whatever the server does."""

_SECOND = 1_000_000_000


class Pacer:
    """Intended send times at an even rate from `start`, in nanoseconds of any one clock.

    A request that cannot be sent in time keeps its intended time, so the time it waited
    counts as latency; one that is never sent is counted as dropped.
    """

    __slots__ = ("_rate", "_start", "taken")

    def __init__(self, rate: float, start: int) -> None:
        """`rate` is requests a second, above 0."""
        if rate <= 0:
            raise ValueError("a rate is above 0 requests a second")
        self._rate = rate
        self._start = start
        self.taken = 0

    @property
    def next_at(self) -> int:
        """The intended time of the next request."""
        return self._start + int(self.taken * _SECOND / self._rate)

    def take(self, now: int) -> int | None:
        """Return the intended time of a request that is due by now, or None."""
        at = self.next_at
        if at > now:
            return None
        self.taken += 1
        return at

    def dropped(self, end: int) -> int:
        """Return how many requests were due before `end` and were never taken."""
        due = -int(-(end - self._start) * self._rate // _SECOND)
        return max(0, due - self.taken)

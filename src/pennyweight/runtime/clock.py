"""The clock guard: a wall clock that jumps must not be journalled for ever.

Only the owner of a book stamps entries. While the wall clock and the monotonic clock of
this machine drift apart, nothing is stamped; at start, a clock far from the book's last
commit is not believed unless the operator says so.
"""

import time
from collections.abc import Callable

DRIFT_MAX = 500_000
"""Microseconds the wall clock may be away from where the monotonic clock expects it."""

SLEW_MAX = 100_000
"""Parts per million that the wall clock may be steered by: chrony slews by up to 83 333, and
hosts steer their guests' clocks by thousands. Steering is followed, however long it lasts."""

BEHIND_MAX = 60 * 1_000_000
AHEAD_MAX = 400 * 86_400 * 1_000_000

_READINGS_MAX = 3


class ClockRefused(Exception):
    """The clock at start is too far from the book's last commit to be believed."""


def wall_clock() -> int:
    """Return the wall clock, microseconds since 1970."""
    return time.time_ns() // 1_000


def monotonic_clock() -> int:
    """Return a clock that never jumps, microseconds since some moment."""
    return time.monotonic_ns() // 1_000


def check_start(now: int, committed_at: int, *, is_accepted: bool = False) -> None:
    """Raise ClockRefused when `now` is far from the book's last commit (0: a fresh book)."""
    if committed_at == 0 or is_accepted:
        return
    if now < committed_at - BEHIND_MAX:
        raise ClockRefused(
            f"the clock is {(committed_at - now) // 1_000_000} s behind the book's last commit"
        )
    if now > committed_at + AHEAD_MAX:
        raise ClockRefused(
            f"the clock is {(now - committed_at) // 86_400_000_000} days ahead of the last commit"
        )


class ClockGuard:
    """The wall clock, watched by the monotonic one."""

    def __init__(
        self,
        wall: Callable[[], int] = wall_clock,
        monotonic: Callable[[], int] = monotonic_clock,
    ) -> None:
        """Both clocks give microseconds; how they stand now is taken for right."""
        self._wall = wall
        self._monotonic = monotonic
        self._seen_at = monotonic()
        self._offset = wall() - self._seen_at
        self.drift = 0
        """Microseconds the wall clock was ahead of its expectation when last read."""
        self.lead = 0
        """Microseconds it was surely ahead of the database's when they were compared; 0 is alike."""

    @property
    def has_jumped(self) -> bool:
        """Whether the wall clock was elsewhere than expected when last read."""
        return not -DRIFT_MAX <= self.drift <= DRIFT_MAX

    @property
    def is_drifting(self) -> bool:
        """Whether the last reading must not be stamped on anything."""
        return self.has_jumped or not -DRIFT_MAX <= self.lead <= DRIFT_MAX

    def compare(self, theirs: int, asked_at: int, heard_at: int) -> None:
        """Compare with a clock that was read between two moments of the wall clock."""
        self.lead = max(0, asked_at - theirs) + min(0, heard_at - theirs)

    def now(self) -> int:
        """Read the wall clock and compare; steering is followed, a jump stays one.

        After a jump the guard waits for the wall clock to come back, or for a new start.
        """
        monotonic, wall = self._read()
        readings = 1
        while self.is_drifting and readings < _READINGS_MAX:  # or we slept between the two
            monotonic, wall = self._read()
            readings += 1
        slack = (monotonic - self._seen_at) * SLEW_MAX // 1_000_000
        if slack and not self.is_drifting:
            self._offset += max(-slack, min(slack, self.drift))
            self._seen_at = monotonic
        return wall

    def _read(self) -> tuple[int, int]:
        monotonic = self._monotonic()
        wall = self._wall()
        self.drift = wall - monotonic - self._offset
        return monotonic, wall

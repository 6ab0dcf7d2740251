"""The clock guard, on clocks that are set by hand."""

import pytest

from pennyweight.runtime.clock import (
    AHEAD_MAX,
    BEHIND_MAX,
    DRIFT_MAX,
    ClockGuard,
    ClockRefused,
    check_start,
    monotonic_clock,
    wall_clock,
)

SECOND = 1_000_000
START = 1_760_000_000 * SECOND


class Clocks:
    def __init__(self) -> None:
        self.wall = START
        self.monotonic = 5 * SECOND

    def guard(self) -> ClockGuard:
        return ClockGuard(lambda: self.wall, lambda: self.monotonic)

    def pass_time(self, microseconds: int, *, wall: int | None = None) -> None:
        self.monotonic += microseconds
        self.wall += microseconds if wall is None else wall


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


def test_clock_even(clocks: Clocks) -> None:
    guard = clocks.guard()
    clocks.pass_time(3_600 * SECOND)
    assert guard.now() == clocks.wall
    assert not guard.is_drifting


@pytest.mark.parametrize("jump", [DRIFT_MAX + 1, -DRIFT_MAX - 1, 3_600 * SECOND, -86_400 * SECOND])
def test_clock_jump(clocks: Clocks, jump: int) -> None:
    guard = clocks.guard()
    clocks.wall += jump
    guard.now()
    assert guard.is_drifting
    clocks.wall -= jump
    guard.now()
    assert not guard.is_drifting


def test_clock_small_jump(clocks: Clocks) -> None:
    guard = clocks.guard()
    clocks.wall += DRIFT_MAX
    guard.now()
    assert not guard.is_drifting


@pytest.mark.parametrize("ppm", [500, -5_000, 83_333])
def test_clock_steered(clocks: Clocks, ppm: int) -> None:
    """A time service or a host that steers the clock for hours never trips the guard."""
    guard = clocks.guard()
    for _ in range(3_600 * 4):
        clocks.pass_time(SECOND, wall=SECOND + ppm)
        guard.now()
        assert not guard.is_drifting


def test_clock_creeping(clocks: Clocks) -> None:
    """Many small jumps do, and it is not forgotten."""
    guard = clocks.guard()
    for _ in range(20):
        clocks.pass_time(SECOND, wall=SECOND + SECOND // 5)
        guard.now()
    clocks.pass_time(3_600 * SECOND)
    guard.now()
    assert guard.is_drifting


def test_clock_slept_between_readings(clocks: Clocks) -> None:
    """One reading that was interrupted is read again."""
    readings = iter([START, START + 10 * SECOND, START])
    guard = ClockGuard(lambda: next(readings), lambda: 5 * SECOND)
    assert guard.now() == START
    assert not guard.is_drifting


@pytest.mark.parametrize(
    ("committed_at", "is_refused"),
    [
        (0, False),
        (START, False),
        (START + BEHIND_MAX, False),
        (START + BEHIND_MAX + 1, True),
        (START - AHEAD_MAX, False),
        (START - AHEAD_MAX - 1, True),
    ],
)
def test_start(committed_at: int, is_refused: bool) -> None:
    check_start(START, committed_at, is_accepted=True)
    if is_refused:
        with pytest.raises(ClockRefused):
            check_start(START, committed_at)
    else:
        check_start(START, committed_at)


def test_real_clocks() -> None:
    assert wall_clock() > START
    assert monotonic_clock() <= monotonic_clock()
    assert not ClockGuard().is_drifting

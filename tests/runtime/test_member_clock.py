"""Members whose clock jumped: while they cannot stamp anything, another has the book."""

import time
from collections.abc import Iterator

import pytest

from pennyweight.engine.receipts import Receipt
from pennyweight.runtime.clock import wall_clock
from runtime.test_member import FUND, Seat, Table, done
from wired import until


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table()
    yield table
    for seat in reversed(table.seats):
        seat.stop()
    table.prove()


def set_forward(seat: Seat, seconds: int) -> None:
    """Let the wall clock jump, as after the sleep of a virtual machine."""
    seat.member.clock._wall = lambda: wall_clock() + seconds * 1_000_000


def test_an_owner_whose_clock_jumped_lets_go(table: Table) -> None:
    first, second = table.sit_all(2)
    set_forward(first, 10)
    until(lambda: second.is_owner)
    done([second.submit(FUND, "a")])
    until(lambda: not first.is_owner)
    until(lambda: first.why_not() == "")
    done([first.submit(FUND, "b")])
    set_forward(first, 0)
    second.stop()
    until(lambda: first.is_owner)
    done([first.submit(FUND, "c")])
    assert table.posted() == 3


def test_whose_clock_jumped_does_not_get_it(table: Table) -> None:
    first, second, third = table.sit_all(3)
    set_forward(second, 10)
    time.sleep(0.3)
    first.stop()
    until(lambda: third.is_owner)
    assert second.member.takeovers == 0
    assert isinstance(second.execute(FUND, "a"), Receipt)


def test_whose_clock_jumped_says_so_where_nobody_else_is(table: Table) -> None:
    (only,) = table.sit_all(1, hold_seconds=1)
    set_forward(only, 10)
    until(lambda: only.why_not() == "no_owner")
    assert "the clock jumped by 10." in only.member._trouble
    set_forward(only, 0)
    until(lambda: only.is_owner)
    done([only.submit(FUND, "a")])

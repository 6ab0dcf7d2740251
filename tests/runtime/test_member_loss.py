"""A book that is lost: whatever one of those who wait does, the others are passed on."""

from collections.abc import Iterator
from typing import Any

import pytest

from pennyweight.engine.engine import Lane, Submission
from pennyweight.engine.receipts import Receipt
from runtime.test_member import FUND, Table
from wired import Waiting, until


@pytest.fixture
def table() -> Iterator[Table]:
    table = Table()
    yield table
    for seat in reversed(table.seats):
        seat.stop()
    table.prove()


def test_an_agent_that_breaks_on_its_answer_harms_nobody(table: Table) -> None:
    def broken(_: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    first, second = table.sit_all(2)
    first.freeze()
    held = first.submit(FUND, "under way")
    until(lambda: first.books[0].engine.waiting == 0)
    wait = Waiting()

    def submit() -> None:
        first.member.submit(Submission(FUND, key="timer", lane=Lane.TIMERS, ticket=broken))
        first.member.submit(Submission(FUND, key="other", lane=Lane.TIMERS, ticket=wait))

    first.loop.do(submit)
    until(lambda: second.is_owner)
    first.thaw()
    assert isinstance(held.outcome(), Receipt)
    wait.outcome()

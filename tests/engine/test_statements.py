import pytest

from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Receipt
from pennyweight.engine.statements import balance_as_of, statement
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.commands import Command
from pennyweight.products.general import OpenAccount, PlaceHold, SettleHold, Transfer
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

UNIT = 10**18


class Ticking:
    """A book in which every command commits one second after the one before."""

    def __init__(self) -> None:
        self.now = 1_000_000
        self.store = MemoryStore(Head(book="main", incarnation="test"))
        self.book = InlineBook(open_engine(self.store, now=1), self.store, lambda: self.now)
        self.run(OpenAccount("user:1:USD"))

    def run(self, command: Command) -> Receipt:
        self.now += 1_000_000
        outcome = self.book.execute(command)
        assert isinstance(outcome, Receipt), outcome
        return outcome

    @property
    def account(self) -> Account:
        account = self.store.account("user:1:USD")
        assert account is not None
        return account


@pytest.fixture
def ticking() -> Ticking:
    return Ticking()


def credit(amount: str, effective_at: int | None = None) -> Transfer:
    return Transfer("world:USD", "user:1:USD", "USD", amount, effective_at)


def test_statement_pages_both_ways_over_every_line(ticking: Ticking) -> None:
    for n in range(1, 38):
        ticking.run(credit(str(n)))
    for limit in (1, 2, 7, 36, 37, 100):
        for is_descending in (False, True):
            seen, after = [], None
            while True:
                lines, after = statement(
                    ticking.store,
                    ticking.account,
                    after=after,
                    limit=limit,
                    is_descending=is_descending,
                )
                seen += [(line.ordinal, line.change // UNIT) for line in lines]
                if after is None:
                    break
            expected = [(n, n) for n in range(1, 38)]
            assert seen == (expected[::-1] if is_descending else expected)


def test_statement_of_an_account_without_lines_is_empty(ticking: Ticking) -> None:
    assert statement(ticking.store, ticking.account) == ([], None)
    assert balance_as_of(ticking.store, ticking.account, committed=10**15).posted == 0


def test_statement_shows_holds_and_counterparts(ticking: Ticking) -> None:
    ticking.run(credit("10"))
    ticking.run(PlaceHold("user:1:USD", "USD", "4"))
    ticking.run(SettleHold(1, "3", "house:USD"))
    lines, _ = statement(ticking.store, ticking.account)
    assert [
        (
            line.change // UNIT,
            line.counterpart,
            line.hold and line.hold.verb,
            line.posted // UNIT,
            line.held // UNIT,
        )
        for line in lines
    ] == [
        (10, "world:USD", None, 10, 0),
        (4, None, "place", 10, 4),
        (-4, None, "settle", 10, 0),
        (-3, "house:USD", None, 7, 0),
    ]


def test_balance_as_of_commit_time_at_every_moment(ticking: Ticking) -> None:
    times = []
    for _ in range(70):
        ticking.run(credit("1"))
        times.append(ticking.now)
    for count, time in enumerate(times, start=1):
        assert balance_as_of(ticking.store, ticking.account, committed=time).posted == count * UNIT
        just_before = balance_as_of(ticking.store, ticking.account, committed=time - 1)
        assert just_before.posted == (count - 1) * UNIT
        lines, after = statement(ticking.store, ticking.account, committed_until=time)
        assert (len(lines), after) == (count, None)


def test_balance_as_of_effective_time_counts_what_was_dated_back(ticking: Ticking) -> None:
    ticking.run(credit("1"))
    first = ticking.now
    ticking.run(credit("2"))
    second = ticking.now
    ticking.run(credit("4", effective_at=first))

    def at(**moment: int) -> int:
        return balance_as_of(ticking.store, ticking.account, **moment).posted // UNIT

    assert [at(committed=t) for t in (first, second, ticking.now)] == [1, 3, 7]
    assert [at(effective=t) for t in (first - 1, first, second, ticking.now)] == [0, 5, 7, 7]
    with pytest.raises(ValueError, match="either"):
        at(committed=1, effective=1)

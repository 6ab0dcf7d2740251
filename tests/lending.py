"""A book with loans, quotes for them, and trading posts that do as they are told."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, Self

from pennyweight.agents.quotes import QuoteBoard
from pennyweight.engine.engine import Answer, Submission
from pennyweight.engine.port import Head, Store
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.money import format_amount, to_units
from pennyweight.links.venues import Failed, Filled, InDoubt
from pennyweight.products.loans.apply import ApplyForLoan
from pennyweight.products.loans.life import ActivateLoan
from pennyweight.products.loans.liquidate import BeginLiquidation
from pennyweight.products.loans.shared import (
    LEVELS,
    LOAN,
    MARKETS,
    ONE,
    SLICE,
    Level,
    Loan,
    Market,
    Quote,
    Slice,
    read_loan,
    read_slice,
)
from pennyweight.runtime.clock import ClockGuard, wall_clock
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

FAR = 2**62
"""Quotes of tests count until the end of time."""

_numbers = count(1)


def quote(market: Market, price: str, levels: Sequence[int] = LEVELS) -> Quote:
    """A market's quote of now: selling ten times as much costs a percent more."""
    sell = to_units(price, 24)
    now = wall_clock()
    return Quote(
        market,
        f"price-{next(_numbers)}",
        now,
        now,
        tuple(Level(level, sell * (1_000 - at * 5) // 1_000) for at, level in enumerate(levels)),
    )


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.005)


class Rig:
    """A book that is served, a board of quotes, and agents that hear all answers."""

    def __init__(self, store: Store | None = None, **options: Any) -> None:
        self.store = store or MemoryStore(Head(book="main", incarnation="life"))
        engine = open_engine(self.store, now=wall_clock())
        self.hearers: list[Any] = []
        self.book = ThreadedBook(engine, self.store, ClockGuard(), hear=self._hear, **options)
        self.board = QuoteBoard(age_seconds=3_600, deviation_percent=90, jump_percent=99)
        self.book.start()

    def _hear(self, answers: Sequence[Answer]) -> None:
        for hearer in self.hearers:
            hearer.hear(answers)

    def close(self) -> None:
        for hearer in self.hearers:
            hearer.stop()
        self.book.stop(10)

    def add(self, agent: Any) -> Any:
        self.hearers.append(agent)
        agent.start()
        return agent

    def remove(self, agent: Any) -> None:
        self.hearers.remove(agent)
        agent.stop()

    def feed(self, price: str, *markets: Market) -> tuple[Quote, ...]:
        """Have markets say a price."""
        quotes = [quote(market, price) for market in markets or MARKETS]
        for each in quotes:
            assert self.board.offer(each, wall_clock()) == "accepted"
        return tuple(quotes)

    def execute(self, command: Command) -> Outcome:
        heard: list[Outcome] = []
        done = threading.Event()

        def ticket(outcome: Outcome) -> None:
            heard.append(outcome)
            done.set()

        self.book.submit(Submission(command, ticket=ticket))
        assert done.wait(20)
        return heard[0]

    def do(self, command: Command) -> Receipt:
        outcome = self.execute(command)
        assert isinstance(outcome, Receipt), outcome
        return outcome

    def new_loan(self, name: str, amount: str = "1000", collateral: str = "40") -> None:
        self.do(ApplyForLoan(name, f"b-{name}", amount, collateral))

    def active_loan(
        self, name: str, amount: str = "1000", collateral: str = "40", at: str = "100"
    ) -> None:
        self.new_loan(name, amount, collateral)
        quotes = (quote("mos_espa", at),)
        self.do(ActivateLoan(name, f"b-{name}", self.version(name), quotes, FAR))

    def begin(self, name: str, quotes: tuple[Quote, ...]) -> None:
        """Begin to liquidate a loan."""
        version = self.version(name)
        self.do(BeginLiquidation(name, f"b-{name}", version, quotes, FAR, "life"))

    def loan(self, name: str) -> Loan:
        record = self.store.record(LOAN, name)
        assert record is not None
        return read_loan(record)

    def version(self, name: str) -> int:
        record = self.store.record(LOAN, name)
        assert record is not None
        return record.version

    def slices(self, name: str) -> list[Slice]:
        return [
            read_slice(record)
            for record in self.store.records(SLICE, label=f"loan:{name}", limit=1_000)
        ]

    def entries(self) -> Iterator[Entry]:
        after = 0
        while page := self.store.entries(after, 500, product="loans"):
            for sequence, body in page:
                after = sequence
                yield decode_entry(body)

    def commands(self) -> list[str]:
        return [entry.command for entry in self.entries()]


class Posts:
    """Both posts: what they executed, by id, and what they are to answer.

    `plan` is asked before each order, with how often this id was asked for before; it
    returns "fill", "fail", "lost" (executed, but nobody hears of it), "silent" (not
    executed), "late" (executed after the answer was waited for in vain), or an answer.
    """

    def __init__(self, prices: dict[Market, str] | None = None) -> None:
        self.prices = prices or {"mos_espa": "30", "black_spire": "30"}
        self.plan: Callable[[Market, str, int], Any] = lambda market, request_id, asked: "fill"
        self.executed: dict[tuple[Market, str], Filled] = {}
        self.refused: set[tuple[Market, str]] = set()
        self.asked: Counter[tuple[Market, str]] = Counter()
        self.now_out: Counter[Market] = Counter()
        self.most_out: Counter[Market] = Counter()
        self.hangs = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def sell(
        self,
        market: Market,
        request_id: str,
        quantity: str,
        may_send: Callable[[], bool] = lambda: True,
    ) -> Filled | Failed | InDoubt:
        if not may_send():
            return InDoubt("it was too late to send it")
        place = (market, request_id)
        word = self.plan(market, request_id, self.asked[place])
        self.asked[place] += 1
        self.now_out[market] += 1
        self.most_out[market] = max(self.most_out[market], self.now_out[market])
        try:
            await asyncio.sleep(0.001)
            return await self._answer(place, quantity, word)
        finally:
            self.now_out[market] -= 1

    async def _answer(self, place: tuple[Market, str], quantity: str, word: Any) -> Any:
        if not isinstance(word, str):
            return word
        if word == "silent":
            return InDoubt("reset")
        if word == "hang":
            self.hangs += 1
            await asyncio.sleep(60)
        if place in self.executed:
            return self.executed[place] if word in {"fill", "fail"} else InDoubt("reset")
        if place in self.refused:
            return Failed("as before")
        if word == "fail":
            self.refused.add(place)
            return Failed("no luck")
        units = to_units(quantity, 24)
        total = units * to_units(self.prices[place[0]], 24) // ONE
        self.executed[place] = filled = Filled(
            f"order-{place[1]}", quantity, format_amount(total, 24)
        )
        if word == "late":
            self.hangs += 1
            await asyncio.sleep(60)
        return filled if word == "fill" else InDoubt("reset")


def check_sales(rig: Rig, posts: Posts) -> None:
    """What the posts executed is what the book has, and never was more out than was needed."""
    book = {
        (part.market, part.request_id): (part.sold, part.total)
        for record in rig.store.records(SLICE, limit=10_000)
        if (part := read_slice(record)).state == "filled"
    }
    executed = {
        place: (to_units(filled.quantity, 24), to_units(filled.total, 24))
        for place, filled in posts.executed.items()
    }
    assert book == executed, (book, executed)
    for entry in rig.entries():
        for record in entry.records:
            if record.kind == LOAN:
                _check_loan(entry.command, read_loan(record))


def _check_loan(command: str, loan: Loan) -> None:
    out = sum(part.quantity for part in loan.open)
    assert out <= loan.collateral
    if command in {"begin_liquidation", "place_slices"}:
        last = loan.open[-1]
        overshoot = -(-last.expected // (last.quantity // 10**16))  # worth of one step
        assert sum(part.expected for part in loan.open) < loan.balance + overshoot + 1
    assert len({part.market for part in loan.open}) == len(loan.open)

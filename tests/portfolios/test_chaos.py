"""A provider tells of thousands of portfolios, while engine, broker and search engine are hit.

Tens of thousands of updates, most through Kafka, some posted, some posted to be queued; out
of order, some twice, some very late, some rubbish. In the end each portfolio is what the
newest update says; nothing that was acknowledged is missing, nothing was booked twice; and
what can be searched is what the journal says, to the last byte.

Here it is 30 000 updates of 3 000 portfolios. With 100 000 of 10 000 it takes minutes:
`PENNYWEIGHT_TEST_UPDATES=100000 pytest tests/portfolios/test_chaos.py`. What fails, and when,
is the same: after the same parts of what is told.
"""

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import pytest

from brokers import MockBroker
from pennyweight.assemble import open_reader
from pennyweight.engine.port import Store
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.letters import LETTER, DeadLetter
from pennyweight.products.portfolios import PRODUCT
from pennyweight.products.portfolios.queue import Queued
from pennyweight.products.portfolios.runs import answer_in
from pennyweight.products.portfolios.shared import PORTFOLIO, QUEUE, UPDATE, read_portfolio
from pennyweight.simulators.searchstub import SearchStub
from pennyweight.simulators.updates import (
    Known,
    Message,
    Model,
    Odds,
    OverKafka,
    Provider,
    target_weights,
)
from portfolios.world import (
    Answered,
    Caller,
    Engine,
    Searchable,
    fill,
    journal,
    verified,
)
from waiting import wait_for

pytestmark = pytest.mark.heavy

UPDATES = int(os.environ.get("PENNYWEIGHT_TEST_UPDATES", "30000"))
USERS = UPDATES // 10
STEP = UPDATES // 25
"""So many messages are booked between one blow and the next, or twice as many."""

TOPIC = "rebalance"
PARTITIONS = 4
KILLS = 3
ODDS = Odds(duplicates=0.15, late=0.1, unnamed=0.2, untimed=0.1, poison=0.01, disorder=2_000)

CALLERS = 4
"""Of each way over HTTP."""

PER_SECOND = 6_000.0
"""Messages to Kafka."""


eventually = partial(wait_for, seconds=90)


class Ways(NamedTuple):
    """The messages by the way that they go; all of a user's go one way, in their order."""

    kafka: list[Message]
    posted: list[list[Message]]
    queued: list[list[Message]]


def ways_of(messages: list[Message]) -> Ways:
    ways = Ways([], [[] for _ in range(CALLERS)], [[] for _ in range(CALLERS)])
    for message in messages:
        place = crc32(message.user.encode())
        lot = place % 20
        if lot > 1:
            ways.kafka.append(message)
        else:
            (ways.posted if lot else ways.queued)[(place >> 16) % CALLERS].append(message)
    return ways


class Cast:
    """All that takes part."""

    def __init__(self, folder: Path, ways: Ways) -> None:
        self.ways = ways
        self.broker = MockBroker()
        self.broker.create_topic(TOPIC, PARTITIONS)
        self.stub = SearchStub()
        self.engine = Engine(folder, "--kafka", self.broker.address)
        self.sender = threading.Thread(target=self._send, daemon=True)
        self.posting: list[Caller] = []
        self.queuing: list[Caller] = []
        self.is_sent = False
        self._folder = folder

    def begin(self) -> None:
        self.engine.start()
        for callers, hands, path in (
            (self.posting, self.ways.posted, "/rebalance"),
            (self.queuing, self.ways.queued, "/rebalance?mode=async"),
        ):
            pause = len(self.ways.kafka) / PER_SECOND / max(map(len, hands)) / 4
            callers += [Caller(self.engine.port, hand, path, pause) for hand in hands]
        for thread in (self.sender, *self.callers):
            thread.start()

    @property
    def callers(self) -> list[Caller]:
        return [*self.posting, *self.queuing]

    @property
    def answered(self) -> int:
        return sum(len(caller.answered) for caller in self.callers)

    def _send(self) -> None:
        sender = OverKafka(self.broker.address, TOPIC)
        sender.send(self.ways.kafka, rate=PER_SECOND)
        sender.finish()
        self.is_sent = True

    @property
    def booked(self) -> int:
        """Messages of the topic that the book has dealt with."""
        with reading(self._folder) as store:
            return sum(at for name, at in store.cursors().items() if name.startswith("kafka:"))

    def books(self, count: int) -> None:
        """Wait for so many more messages, or for the last, and for callers to be answered."""
        until = min(self.booked + count, len(self.ways.kafka))
        eventually(lambda: self.booked >= until, what="messages are booked")
        wanted = min(self.answered + count // 50, sum(map(len, self.hands)))
        eventually(lambda: self.answered >= wanted, what="callers are answered")

    @property
    def hands(self) -> list[list[Message]]:
        return [*self.ways.posted, *self.ways.queued]

    def close(self) -> None:
        self.engine.close()
        for caller in self.callers:
            caller.stop()
        self.broker.close()
        self.stub.close()


@contextmanager
def reading(folder: Path) -> Iterator[Store]:
    store = open_reader(folder)
    try:
        yield store
    finally:
        store.close()


def blows(cast: Cast) -> None:
    """Kill the engine while it works, and take broker and search engine away meanwhile."""
    engine, broker, stub = cast.engine, cast.broker, cast.stub
    cast.books(2 * STEP)
    stub.down()
    cast.books(STEP)
    eventually(lambda: "search" in engine.down, what="the search engine is missed")
    engine.kill()
    engine.start()
    cast.books(STEP)
    stub.up()
    cast.books(2 * STEP)
    engine.kill()
    broker.down()
    engine.start()
    eventually(lambda: "kafka messages" in engine.down, what="the broker is missed")
    broker.up()
    cast.books(2 * STEP)
    broker.down()
    broker.up()
    stub.down()
    stub.up()
    cast.books(2 * STEP)
    engine.kill()
    engine.start()


def comes_to_its_end(cast: Cast) -> None:
    """Let all be booked, taken and exported, and stop in good order."""
    engine = cast.engine
    eventually(lambda: cast.is_sent, what="all is sent")
    for caller in cast.callers:
        caller.join(90)
    assert cast.answered == sum(map(len, cast.hands))
    eventually(lambda: cast.booked == len(cast.ways.kafka), what="all is booked")
    with reading(cast._folder) as store:
        eventually(lambda: not store.due(QUEUE, 0, 2**62), what="all is taken")
    eventually(lambda: engine.figures("search_lag_entries") == [0], what="all is exported")
    eventually(lambda: not engine.down, what="nothing is missed")
    assert engine.stop() == 0


def test_portfolios_live_through_kills_of_engine_broker_and_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    """Four lives of the engine; see the module."""
    provider = Provider(USERS, 7, ODDS)
    messages = list(provider.messages(UPDATES))
    model = Model()
    for message in messages:
        model.take(message)
    ways = ways_of(messages)
    folder = tmp_path / "book"
    fill(folder, provider)
    with ExitStack() as ends:
        cast = Cast(folder, ways)
        ends.callback(cast.close)
        for name, value in (
            ("KAFKA_TOPIC", TOPIC),
            ("ELASTICSEARCH_URL", cast.stub.url),
            ("PENNYWEIGHT_KAFKA_OPTIONS", "session.timeout.ms=2000,heartbeat.interval.ms=300"),
        ):
            monkeypatch.setenv(name, value)
        cast.begin()
        blows(cast)
        comes_to_its_end(cast)
        assert cast.engine.kills == KILLS
        assert sum(caller.repeated for caller in cast.callers) >= KILLS
        with reading(folder) as store:
            check_portfolios(store, provider, model)
            check_letters(store, ways.kafka)
            runs, searchable = read(store)
            posted = [one for caller in cast.posting for one in caller.answered]
            queued = [one for caller in cast.queuing for one in caller.answered]
            check_posted(posted, ways.posted, runs)
            check_queued(store, queued, ways.queued)
            counts = searchable.check(cast.stub)
            record_property(
                "searchable", ", ".join(f"{n} {name}" for name, n in counts.items() if n)
            )
    verified(folder)


# ── what became of it ─────────────────────────────────────────────────────────────


def check_portfolios(store: Store, provider: Provider, model: Model) -> None:
    """Each is what the newest update says, and its target is what it was."""
    assert len(model.known) > 0.99 * USERS
    for user, target in provider.targets():
        record = store.record(PORTFOLIO, user)
        assert record is not None, user
        found = read_portfolio(record)
        assert found.target == target_weights(target)
        told = Known(found.current, found.as_of if found.is_timed else 0)
        assert told == model.known.get(user, Known({}, 0)), user


def check_letters(store: Store, sent: list[Message]) -> None:
    """Just the rubbish was set aside, each for its reason, once."""
    letters: list[DeadLetter] = []
    after = ""
    while page := store.records(LETTER, after=after, limit=1_000):
        letters += [record.read(DeadLetter) for record in page]
        assert {record.product for record in page} == {PRODUCT}
        after = page[-1].id
    reasons = Counter(message.reason for message in sent if message.reason)
    assert Counter(letter.reason for letter in letters) == reasons
    places = {(letter.message.partition, letter.message.offset) for letter in letters}
    assert len(places) == len(letters)


def read(store: Store) -> tuple[dict[int, str], Searchable]:
    """Read the journal once: whose each run is, by its entry, and what of it can be searched."""
    runs: dict[int, str] = {}
    searchable = Searchable(store)
    for sequence, body in journal(store):
        entry: Entry = decode_entry(body)
        searchable.take(sequence, body)
        answer = answer_in(entry)
        if answer is not None and answer.result == "rebalanced":
            assert answer.run == sequence
            assert sum(line.change for line in answer.lines) == 0
            runs[sequence] = answer.user
    return runs, searchable


def check_posted(
    answered: list[Answered], hands: list[list[Message]], runs: dict[int, str]
) -> None:
    """Every run that was answered is there; what was turned away is old, or rubbish."""
    statuses = Counter(one.status for one in answered)
    assert set(statuses) <= {200, 400, 404, 409}
    assert statuses[400] + statuses[404] == sum(bool(m.reason) for hand in hands for m in hand)
    assert statuses[200] > 0.7 * len(answered)
    assert all(runs[one.run] == one.user for one in answered if one.status == 200)


def check_queued(store: Store, answered: list[Answered], hands: list[list[Message]]) -> None:
    """Every update that was accepted is there, was taken, and refused only if it was rubbish."""
    states: Counter[str] = Counter()
    numbers = {one.number: one.user for one in answered if one.status == 202}
    assert len(numbers) > 0.7 * len(answered)
    for number, user in numbers.items():
        record = store.record(UPDATE, str(number))
        assert record is not None, number
        found: Queued = record.read(Queued)
        assert found.update.user == user
        states[found.state] += 1
    assert set(states) <= {"done", "refused"}
    turned_away = sum(one.status != 202 for one in answered)
    rubbish = sum(bool(message.reason) for hand in hands for message in hand)
    assert turned_away + states["refused"] == rubbish

"""The provider does the same for the same seed, and its model says what a book comes to."""

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from pennyweight.delivery.portfolios import rebalance_of
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.ledger.refusals import Refused
from pennyweight.links.errors import LinkError
from pennyweight.products.portfolios.setup import CreatePortfolio
from pennyweight.products.portfolios.shared import PORTFOLIO, WHOLE, Portfolio, read_portfolio
from pennyweight.runtime.clock import wall_clock
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.simulators import updates
from pennyweight.simulators.updates import (
    Deal,
    Known,
    Message,
    Model,
    Odds,
    OverKafka,
    Provider,
    microseconds_of,
    target_weights,
    time_text,
)
from pennyweight.stores.memory import MemoryStore

WILD = Odds(duplicates=0.3, late=0.1, unnamed=0.3, untimed=0.3, poison=0.05, disorder=30)


class Incoming(msgspec.Struct, frozen=True):
    """A message as its handler sees it."""

    value: bytes
    default_key: str


def book_of(provider: Provider) -> InlineBook:
    store = MemoryStore(Head(book="main", incarnation="first"))
    book = InlineBook(open_engine(store, now=wall_clock()), store, wall_clock)
    for user, target in provider.targets():
        assert isinstance(book.execute(CreatePortfolio(user, target)), Receipt)
    return book


def book_messages(book: InlineBook, messages: list[Message]) -> list[str]:
    """Book messages as the reader of the topic does; return why each was refused, "" if not."""
    told = []
    for place, message in enumerate(messages):
        try:
            read = rebalance_of(Incoming(message.value, f"kafka:t/{place}"))
        except Refused as refused:
            told.append(refused.reason.code)
            continue
        (outcome,) = book.execute_many([Submission(read.command, key=read.key)])
        told.append(outcome.reason.code if isinstance(outcome, Refusal) else "")
        assert isinstance(outcome, Receipt | Refusal), outcome
    return told


def portfolio(book: InlineBook, user: str) -> Portfolio:
    record = book.store.record(PORTFOLIO, user)
    assert record is not None
    return read_portfolio(record)


def known_of(found: Portfolio) -> Known:
    return Known(found.current, found.as_of if found.is_timed else 0)


def test_same_seed_does_the_same_and_another_does_not() -> None:
    def made(seed: int) -> list[Any]:
        provider = Provider(20, seed)
        return [*provider.portfolios(), *provider.messages(300)]

    assert made(3) == made(3)
    assert not set(made(3)) & set(made(4))


@pytest.mark.parametrize("seed", range(4))
def test_model_is_what_a_book_comes_to(seed: int) -> None:
    provider = Provider(25, seed, WILD)
    book = book_of(provider)
    messages = list(provider.messages(1_200))
    model = Model()
    for message in messages:
        model.take(message)
    assert book_messages(book, messages) == [message.reason for message in messages]
    assert len(model.known) == 25
    for user, target in provider.targets():
        found = portfolio(book, user)
        assert known_of(found) == model.known[user]
        assert found.target == target_weights(target)
        assert sum(found.current.values()) == WHOLE


def test_a_provider_that_begins_again_changes_nothing() -> None:
    """Only who has neither a time nor an id cannot be known again."""
    odds = msgspec.structs.replace(WILD, untimed=0.0)
    provider = Provider(10, 8, odds)
    book = book_of(provider)
    book_messages(book, list(provider.messages(300)))
    before = [portfolio(book, user).current for user, _ in provider.targets()]
    book_messages(book, list(Provider(10, 8, odds).messages(300)))
    assert [portfolio(book, user).current for user, _ in provider.targets()] == before


def test_any_order_of_what_has_a_time_comes_to_the_same() -> None:
    odds = msgspec.structs.replace(WILD, untimed=0.0)
    provider = Provider(10, 9, odds)
    messages = list(provider.messages(400))
    states = []
    for turn in range(2):
        book = book_of(provider)
        if turn:
            random.Random(1).shuffle(messages)
        book_messages(book, messages)
        states.append([known_of(portfolio(book, user)) for user, _ in provider.targets()])
    assert states[0] == states[1]


def test_exactly_as_many_as_wanted_are_sent_and_of_all_kinds() -> None:
    messages = list(Provider(50, 1, WILD).messages(2_000))
    assert len(messages) == 2_000
    kinds = Counter(message.kind for message in messages)
    assert set(kinds) == {"new", "repeat", "late", "poison"}
    assert min(kinds.values()) > 50
    assert {bool(message.reason) for message in messages if message.kind != "poison"} == {False}
    reasons = Counter(message.reason for message in messages)
    assert {"message_malformed", "message_invalid", "allocation_invalid"} < set(reasons)
    assert len(list(Provider(5, 1, WILD).messages(1))) == 1


def test_disorder_is_bounded_and_late_is_later() -> None:
    """Among those with a time; the others keep their order, which alone says what is newer."""
    messages = list(Provider(40, 2, WILD).messages(3_000))
    steps = {"new": 0, "late": 0}
    newest = 0
    for message in messages:
        as_of = json.loads(message.value).get("as_of") if message.kind != "poison" else None
        if as_of is None:
            continue
        at = microseconds_of(as_of)
        newest = max(newest, at)
        if message.kind in steps:
            behind = (newest - at) // updates.STEP_MICROSECONDS
            steps[message.kind] = max(steps[message.kind], behind)
    assert 0 < steps["new"] <= WILD.disorder < steps["late"] <= WILD.disorder * updates.FAR
    ids: dict[str, list[str]] = {}
    for message in messages:
        body = json.loads(message.value) if message.kind == "new" else {"as_of": ""}
        if "as_of" not in body and "request_id" in body:
            ids.setdefault(message.user, []).append(body["request_id"])
    assert ids
    assert all(before < after for one in ids.values() for before, after in pairwise(one))


def test_time_is_written_as_books_do() -> None:
    assert time_text(updates.START + 5) == "2024-01-01T00:00:00.000005Z"
    assert microseconds_of("2024-01-01T00:00:00.000005Z") == updates.START + 5
    assert microseconds_of("2024-01-01T00:00:00Z") == updates.START


def test_a_user_has_one_connection() -> None:
    messages = list(Provider(30, 1, WILD).messages(500))
    deal = Deal(iter(messages), 4)
    hands: list[Iterator[Message]] = [deal.hand(number) for number in range(4)]
    dealt: list[list[Message]] = [[] for _ in hands]
    while left := [(got, next(hand, None)) for got, hand in zip(dealt, hands, strict=True)]:
        if not any(message for _, message in left):
            break
        for got, message in left:
            if message is not None:
                got.append(message)
    assert Counter(message for one in dealt for message in one) == Counter(messages)
    users = [{message.user for message in one} for one in dealt]
    assert sum(map(len, users)) == len(set.union(*users))
    for one in dealt:
        ours = [message for message in messages if message.user in {m.user for m in one}]
        assert one == ours


class Broker:
    """Instead of Kafka: takes two messages, then one for each flush."""

    def __init__(self, *_: Any) -> None:
        self.room = 2
        self.failed = 0
        self.taken: list[bytes] = []

    def send(self, topic: str, key: bytes, value: bytes, headers: Any) -> None:
        if not self.room:
            raise LinkError("the queue is full")
        self.room -= 1
        assert (topic, headers) == ("t", ())
        self.taken.append(key)

    def flush(self, _: float) -> int:
        self.room += 1
        return 0

    def look(self) -> None:
        pass


def test_a_full_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "Producer", Broker)
    messages = list(Provider(5, 1).messages(7))
    kafka = OverKafka("h:1", "t")
    kafka.send(messages)
    kafka.finish()
    assert kafka.sent == 7
    assert kafka._producer.taken == [message.user.encode() for message in messages]  # type: ignore[attr-defined]


def test_what_was_not_delivered_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "Producer", Broker)
    kafka = OverKafka("h:1", "t")
    kafka.send(Provider(5, 1).messages(2), rate=1_000_000.0)
    kafka._producer.failed = 2
    with pytest.raises(LinkError, match="2 updates were not delivered"):
        kafka.finish()

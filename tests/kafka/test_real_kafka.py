"""A book between two topics of a real Kafka whose broker is killed, again and again."""

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from brokers import RealBroker, group_offsets
from pennyweight.agents.inbound import Inbound, Inbox, Intake
from pennyweight.agents.relay import Relay, as_json
from pennyweight.assemble import open_store
from pennyweight.engine.engine import Submission
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.entries import decode_entry
from pennyweight.links.kafka import Outlet
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.products.withdrawals.settle import SetAside
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.opening import open_engine

pytestmark = pytest.mark.heavy

USERS = 20
PARTITIONS = 4
_numbers = itertools.count()


class Receive(Command, frozen=True):
    """Pays a user what a message says, and tells the outside."""

    name = "receive"
    product = "withdrawals"
    counted = ("user", "amount")
    answer_type = dict[str, Any]

    user: str
    amount: int

    def reads(self, wanted: Wanted) -> None:
        wanted.accounts(f"user:{self.user}:USD", "world:USD")

    def decide(self, draft: Draft) -> dict[str, Any]:
        draft.transfer("world:USD", f"user:{self.user}:USD", self.amount)
        draft.emit("received", {"user_id": self.user, "amount": self.amount})
        return {}


def receive(message: Inbound) -> Submission:
    body = json.loads(message.value or b"")
    return Submission(Receive(body["user"], body["amount"]), key=message.default_key)


class Desk:
    """One life of an engine on a folder: the book, its readers and its relay."""

    def __init__(self, folder: Path, broker: RealBroker, name: str, readers: int) -> None:
        self.store = open_store(folder)
        clock = ClockGuard()
        engine = open_engine(self.store, now=clock.now())
        self.book = ThreadedBook(engine, self.store, clock)
        self.book.start()
        if self.store.account("user:0:USD") is None:
            self._open_accounts()
        self.intakes = [
            Intake(
                self.book,
                broker.address,
                {name: Inbox(receive, SetAside)},
                group=name,
                options={"session.timeout.ms": "6000"},
            )
            for _ in range(readers)
        ]
        self.relay = Relay(
            self.book,
            Outlet(broker.address, f"{name}-events"),
            {"received": as_json(f"{name}-events", "user_id")},
            name=f"relay:{name}",
            products=["withdrawals"],
        )
        for agent in (*self.intakes, self.relay):
            agent.start()

    def _open_accounts(self) -> None:
        done = threading.Event()
        for user in range(USERS):
            self.book.submit(Submission(OpenAccount(f"user:{user}:USD")))
        # What `world` has is opened with its first transfer.
        there, back = ("world:USD", "user:0:USD"), ("user:0:USD", "world:USD")
        self.book.submit(Submission(Transfer(*there, "USD", "1")))
        command = Transfer(*back, "USD", "1")
        self.book.submit(Submission(command, ticket=lambda _: done.set()))
        assert done.wait(20)

    @property
    def read(self) -> int:
        return sum(self.store.cursors().get(stream, 0) for stream in self.streams)

    @property
    def streams(self) -> list[str]:
        return [name for name in self.store.cursors() if name.startswith("kafka:")]

    def balances(self) -> Counter[str]:
        accounts = self.store.accounts(0, 1_000, asset="USD")
        return Counter(
            {a.holder.removeprefix("user:"): a.posted for a in accounts if a.holder != "world"}
        )

    @property
    def is_troubled(self) -> bool:
        return all(agent.status for agent in (*self.intakes, self.relay))

    @property
    def is_well(self) -> bool:
        return not any(agent.status for agent in (*self.intakes, self.relay))

    def stop(self) -> None:
        for agent in (*self.intakes, self.relay):
            agent.stop()
        self.book.stop(20)
        self.store.close()


def wait_for(is_so: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


class Venue(threading.Thread):
    """Sends messages, each once (idempotent), while brokers come and go."""

    def __init__(self, broker: RealBroker, topic: str, count: int, per_second: int) -> None:
        super().__init__(daemon=True)
        self.owed: Counter[str] = Counter()
        self.failed = 0
        self._topic = topic
        self._count = count
        self._per_second = per_second
        self._producer = Producer(
            {
                "bootstrap.servers": broker.address,
                "enable.idempotence": True,
                "log_level": 0,
                "reconnect.backoff.max.ms": 200,
            }
        )

    def run(self) -> None:
        for number in range(self._count):
            user, amount = str(number % USERS), number + 1
            self.owed[user] += amount
            self._producer.produce(
                self._topic,
                json.dumps({"user": user, "amount": amount}),
                user,
                on_delivery=self._note,
            )
            if number % 100 == 0:
                self._producer.poll(100 / self._per_second)
        self.failed += self._producer.flush(60)

    def _note(self, error: Any, _: Any) -> None:
        self.failed += error is not None


def event_ids(broker: RealBroker, topic: str) -> list[str]:
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": "reader", "log_level": 0})
    places = [TopicPartition(topic, number, 0) for number in range(PARTITIONS)]
    ends = [consumer.get_watermark_offsets(place, timeout=10)[1] for place in places]
    consumer.assign(places)
    found: list[Any] = []
    while len(found) < sum(ends):
        found += consumer.consume(500, 1.0)
    consumer.close()
    return [json.loads(message.value())["id"] for message in found]


def _live_through_a_kill(desk: Desk, broker: RealBroker, after: int) -> None:
    wait_for(lambda: desk.read > after)
    broker.kill()
    wait_for(lambda: desk.is_troubled)
    broker.start()
    wait_for(lambda: desk.is_well)


def test_killed_brokers_lose_and_double_nothing(real_broker: RealBroker, tmp_path: Path) -> None:
    """Two readers in one group, a broker killed thrice, an engine begun again in between."""
    name, count = f"killed-{next(_numbers)}", 6_000
    real_broker.create_topic(name, PARTITIONS)
    real_broker.create_topic(f"{name}-events", PARTITIONS)
    venue = Venue(real_broker, name, count, per_second=1_500)
    venue.start()
    desk = Desk(tmp_path, real_broker, name, readers=2)
    _live_through_a_kill(desk, real_broker, count // 5)
    desk.stop()
    real_broker.kill()
    desk = Desk(tmp_path, real_broker, name, readers=2)
    wait_for(lambda: desk.intakes[0].status and desk.intakes[1].status)
    real_broker.start()
    _live_through_a_kill(desk, real_broker, count // 2)
    venue.join(60)
    assert venue.failed == 0
    wait_for(lambda: desk.read >= count)
    wait_for(lambda: desk.relay.lag == 0)
    wait_for(lambda: desk.is_well)
    assert desk.balances() == venue.owed
    wait_for(lambda: sum(group_offsets(real_broker.address, name, name, PARTITIONS)) == count)
    desk.stop()

    store = open_store(tmp_path)
    entries = [decode_entry(body) for _, body in store.entries(0, 100_000)]
    store.close()
    wanted = {entry.sequence for entry in entries if entry.events}
    assert len(wanted) == count
    ids = event_ids(real_broker, f"{name}-events")
    assert {int(event_id.split(".")[1]) for event_id in ids} == wanted
    assert len(set(ids)) == count

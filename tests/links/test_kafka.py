"""The links to Kafka, against the mock broker always and against a real one in the heavy suite."""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from confluent_kafka import KafkaException

from brokers import MockBroker, RealBroker, group_offsets, send
from pennyweight.links import kafka
from pennyweight.links.errors import ExtraMissing, LinkError
from pennyweight.links.kafka import Consumer, Producer, Received

Broker = MockBroker | RealBroker
_numbers = itertools.count()


@pytest.fixture
def topic(broker: Broker) -> str:
    name = f"links-{next(_numbers)}"
    broker.create_topic(name, 2)
    return name


class Group:
    """A consumer, and what it was told."""

    def __init__(self, broker: Broker, topic: str, positions: dict[str, int] | None = None) -> None:
        self.positions = {} if positions is None else positions
        self.streams: dict[int, str] = {}
        self.lost: list[tuple[str, int]] = []
        self.consumer = Consumer(
            broker.address,
            [topic],
            group=f"group-of-{topic}",
            position_of=self.positions.get,
            on_gain=self._gain,
            on_loss=self.lost.extend,
            options={"session.timeout.ms": "6000"},
        )

    def _gain(self, _: str, partition: int, stream: str, position: int | None) -> None:
        assert position == self.positions.get(stream)
        self.streams[partition] = stream

    def read(self, count: int) -> list[Received]:
        found: list[Received] = []
        wait_for(lambda: found.extend(self.consumer.consume(500, 0.05)) or len(found) >= count)
        assert len(found) == count
        return found


def wait_for(is_so: Callable[[], Any], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def group(broker: Broker, topic: str) -> Iterator[Group]:
    group = Group(broker, topic)
    yield group
    group.consumer.close()


def numbered(count: int, partition: int = 0) -> list[tuple[int, bytes, bytes]]:
    return [(partition, b"k%d" % number, b"v%d" % number) for number in range(count)]


def test_consumer_reads_everything_from_the_beginning(
    broker: Broker, topic: str, group: Group
) -> None:
    send(broker.address, topic, numbered(3) + numbered(2, partition=1))
    found = group.read(5)
    assert sorted((m.partition(), m.offset(), m.key(), m.value()) for m in found) == [
        (0, 0, b"k0", b"v0"),
        (0, 1, b"k1", b"v1"),
        (0, 2, b"k2", b"v2"),
        (1, 0, b"k0", b"v0"),
        (1, 1, b"k1", b"v1"),
    ]
    assert [group.consumer.end(topic, partition) for partition in (0, 1)] == [3, 2]
    assert group.consumer.status == ""


def test_consumer_starts_where_the_book_says_not_the_broker(
    broker: Broker, topic: str, group: Group
) -> None:
    send(broker.address, topic, numbered(5))
    group.read(5)
    group.consumer.commit({(topic, 0): 5})
    wait_for(lambda: group_offsets(broker.address, f"group-of-{topic}", topic, 1) == [5])
    group.consumer.close()
    assert sorted(group.lost) == [(topic, 0), (topic, 1)]
    positions = {group.streams[0]: 2}
    again = Group(broker, topic, positions)
    assert [message.offset() for message in again.read(3)] == [2, 3, 4]
    again.consumer.close()


def test_consumer_seeks_back(broker: Broker, topic: str, group: Group) -> None:
    send(broker.address, topic, numbered(4))
    group.read(4)
    group.consumer.seek(topic, 0, 1)
    assert [message.offset() for message in group.read(3)] == [1, 2, 3]
    group.consumer.seek(topic, 0, None)
    assert [message.offset() for message in group.read(4)] == [0, 1, 2, 3]


def test_consumer_pauses_one_partition(broker: Broker, topic: str, group: Group) -> None:
    wait_for(lambda: group.consumer.consume(1, 0.01) or len(group.streams) == 2)
    group.consumer.pause([(topic, 0)])
    send(broker.address, topic, numbered(2) + numbered(2, partition=1))
    assert {message.partition() for message in group.read(2)} == {1}
    group.consumer.resume([(topic, 0)])
    assert {message.partition() for message in group.read(2)} == {0}


def test_messages_carry_keys_headers_and_times(broker: Broker, topic: str, group: Group) -> None:
    producer = Producer(broker.address, topic)
    producer.send(topic, None, b"plain", ())
    producer.send(topic, b"key", None, (("id", b"1.2.0"), ("none", None)))
    wait_for(lambda: producer.flush(1) == 0)
    found = {message.value(): message for message in group.read(2)}
    assert (found[b"plain"].key(), found[b"plain"].headers()) == (None, None)
    assert found[None].key() == b"key"
    assert found[None].headers() == [("id", b"1.2.0"), ("none", None)]
    assert abs(found[None].timestamp()[1] - time.time() * 1_000) < 60_000
    producer.close()


def test_broker_down_and_up(broker: Broker, topic: str, group: Group) -> None:
    producer = Producer(broker.address, topic)
    send(broker.address, topic, numbered(1))
    group.read(1)
    broker.down()
    try:
        producer.send(topic, b"k", b"kept", ())
        wait_for(lambda: group.consumer.consume(1, 0.05) or group.consumer.status)
        wait_for(lambda: producer.flush(0.1) and producer.status)
        assert broker.address in group.consumer.status
        assert broker.address in producer.status
    finally:
        broker.up()
    wait_for(lambda: producer.flush(0.1) == 0)
    found: list[Received] = []
    wait_for(lambda: found.extend(group.consumer.consume(500, 0.05)) or found)
    assert b"kept" in {
        message.value() for message in found
    }  # a broker that fell may give one twice
    assert (group.consumer.status, producer.status, producer.failed) == ("", "", 0)
    producer.close()


def test_idle_links_notice_that_the_broker_is_gone_and_back(
    broker: Broker, topic: str, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr(kafka, "_PROBE_TIMEOUT_SECONDS", 0.1)
    producer = Producer(broker.address, topic)
    with structlog.testing.capture_logs() as logs:
        broker.down()
        try:
            wait_for(lambda: producer.look() or producer.status)
            wait_for(lambda: group.consumer.consume(1, 0.01) or group.consumer.status)
            for _ in range(5):
                producer.look()
                group.consumer.consume(1, 0.1)
        finally:
            broker.up()
        wait_for(lambda: producer.look() or not producer.status)
        wait_for(lambda: group.consumer.consume(1, 0.01) or not group.consumer.status)
    producer.close()
    assert sorted((line["link"], line["event"]) for line in logs) == [
        ("consumer", "kafka is back"),
        ("consumer", "kafka is down"),
        ("producer", "kafka is back"),
        ("producer", "kafka is down"),
    ]
    assert {line["log_level"] for line in logs} == {"warning"}
    assert broker.address in logs[0]["cause"]


def test_consumer_wants_a_broker() -> None:
    with pytest.raises(LinkError, match=r"127\.0\.0\.1:1: "):
        Consumer(
            "127.0.0.1:1",
            ["t"],
            group="g",
            position_of=lambda _: None,
            on_gain=lambda *_: None,
            on_loss=lambda _: None,
        )


def test_message_that_is_too_large(broker: Broker, topic: str) -> None:
    producer = Producer(broker.address, topic)
    with pytest.raises(LinkError, match="too large"):
        producer.send(topic, None, bytes(2_000_000), ())
    producer.close()


def test_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'pennyweight\[kafka\]'"):
        Producer("127.0.0.1:1", "t")


@pytest.mark.heavy
@pytest.mark.parametrize("is_noticed_gone", [True, False])
def test_topic_made_again_is_another_stream(real_broker: RealBroker, is_noticed_gone: bool) -> None:
    """Its messages are never read under the old stream's name, at the old offset."""
    wait_for(lambda: _is_created(real_broker, "again"))
    send(real_broker.address, "again", numbered(3))
    first = Group(real_broker, "again")
    first.read(3)
    real_broker.delete_topic("again")
    if is_noticed_gone:
        with pytest.raises(LinkError, match="again: "):
            wait_for(lambda: first.consumer.consume(1, 0.1), seconds=90)
    wait_for(lambda: _is_created(real_broker, "again"))
    send(real_broker.address, "again", numbered(5))
    if not is_noticed_gone:
        with pytest.raises(LinkError, match="again: it was made again"):
            wait_for(lambda: first.consumer.consume(1, 0.1))
    first.consumer.close()
    positions = {first.streams[0]: 3}
    second = Group(real_broker, "again", positions)
    assert [message.offset() for message in second.read(5)] == [0, 1, 2, 3, 4]
    assert second.streams[0] != first.streams[0]
    second.consumer.close()
    real_broker.delete_topic("again")


def _is_created(broker: RealBroker, topic: str) -> bool:
    try:
        broker.create_topic(topic, 1)
    except KafkaException:
        return False  # its deletion is still under way
    return True


@pytest.mark.heavy
def test_topic_that_does_not_exist(real_broker: RealBroker) -> None:
    with pytest.raises(LinkError, match="topic nowhere: "):
        Group(real_broker, "nowhere")
    producer = Producer(real_broker.address, "nowhere", options={"delivery.timeout.ms": "500"})
    producer.send("nowhere", None, b"lost", ())
    wait_for(lambda: producer.flush(0.1) == 0)
    assert producer.failed == 1
    assert "nowhere" in producer.status
    producer.close()

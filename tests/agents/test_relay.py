"""Events of the journal on their topics: at least once, with ids, in order by key."""

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from brokers import MockBroker
from pennyweight.agents import agent as agent_module
from pennyweight.agents import following as following_module
from pennyweight.agents import relay as relay_module
from pennyweight.agents.relay import Happening, Outgoing, Relay, Route, as_dead_letter, as_json
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Receipt
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import CursorMove, decode_entry
from pennyweight.ledger.letters import Message
from pennyweight.links.kafka import Outlet
from pennyweight.products.general import OpenAccount
from pennyweight.products.withdrawals.settle import SetAside
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore
from waiting import wait_for_calls

START = 1_760_000_000_000_000
EVENTS = "desk-events"
LETTERS = "desk.dead-letters"
CURSOR = f"relay:{EVENTS}"


class Shout(Command, frozen=True):
    """Emits events and does no more."""

    name = "shout"
    product = "withdrawals"
    counted = ("words",)
    answer_type = dict[str, Any]

    words: tuple[str, ...]
    user: str = "7"
    event: str = "heard"

    def reads(self, wanted: Any) -> None:
        pass

    def decide(self, draft: Any) -> dict[str, Any]:
        for word in self.words:
            draft.emit(self.event, {"user_id": self.user, "word": word})
        return {}


class Whisper(Shout, frozen=True):
    """The same, by another product."""

    name = "whisper"
    product = "payments"
    counted = ("words",)


class Rig:
    def __init__(self, broker: MockBroker, store: MemoryStore | None = None) -> None:
        self.broker = broker
        self.store = store or MemoryStore(Head(book="main", incarnation="first"))
        self.book = ThreadedBook(
            open_engine(self.store, now=START), self.store, ClockGuard(lambda: START, lambda: 0)
        )
        self.book.start()
        self.relays: list[Relay] = []

    def execute(self, command: Command, cursor: CursorMove | None = None) -> int:
        done = threading.Event()
        outcomes: list[Any] = []

        def ticket(outcome: Any) -> None:
            outcomes.append(outcome)
            done.set()

        self.book.submit(Submission(command, ticket=ticket, cursor=cursor))
        assert done.wait(20)
        assert isinstance(outcomes[0], Receipt), outcomes
        return outcomes[0].sequence

    def shout(self, *words: str, user: str = "7") -> int:
        return self.execute(Shout(words, user))

    def relay(self, routes: dict[str, Route] | None = None, **settings: Any) -> Relay:
        relay = Relay(
            self.book,
            Outlet(self.broker.address, EVENTS, options=settings.pop("options", None)),
            routes or {"heard": as_json(EVENTS, "user_id")},
            name=CURSOR,
            products=settings.pop("products", ["withdrawals"]),
            **settings,
        )
        relay.start()
        self.relays.append(relay)
        return relay

    @property
    def cursor(self) -> int:
        return self.book.standing.cursors.get(CURSOR, 0)

    @property
    def moves(self) -> int:
        entries = [decode_entry(body) for _, body in self.store.entries(0, 100_000)]
        return sum(entry.command == "move_cursor" for entry in entries)

    def messages(self, topic: str = EVENTS) -> list[Any]:
        """All that is in a topic, partition by partition."""
        consumer = Consumer({"bootstrap.servers": self.broker.address, "group.id": "reader"})
        places = [TopicPartition(topic, number, 0) for number in range(2)]
        ends = [consumer.get_watermark_offsets(place, timeout=10)[1] for place in places]
        consumer.assign(places)
        found: list[Any] = []
        while len(found) < sum(ends):
            found += consumer.consume(500, 0.2)
        consumer.close()
        return sorted(found, key=lambda message: (message.partition(), message.offset()))

    def words(self) -> list[str]:
        return [json.loads(message.value())["data"]["word"] for message in self.messages()]

    def close(self) -> None:
        for relay in self.relays:
            relay.stop()
        self.book.stop(10)


@pytest.fixture
def rig(mock_broker: MockBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(following_module, "MOVE_SECONDS", 0.05)
    monkeypatch.setattr(agent_module, "RETRY_SECONDS_MAX", 0.2)
    mock_broker.create_topic(EVENTS, 2)
    mock_broker.create_topic(LETTERS, 2)
    rig = Rig(mock_broker)
    yield rig
    rig.close()


def wait_for(is_so: Callable[[], Any], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


def test_topic_that_is_ahead_of_a_restored_book_stops_the_relay(rig: Rig):
    rig.shout("one")
    relay = rig.relay()
    wait_for(lambda: rig.cursor > 0)
    relay.stop()
    lost = rig.store.head()
    ahead = f"{lost.incarnation}.{lost.sequence + 5}.0"
    send(rig, ahead)
    rig.shout("two")
    relay = rig.relay()
    wait_for(lambda: "pennyweight recover" in relay.status)
    assert ahead in relay.status
    assert len(rig.messages()) == 2
    relay.stop()
    rig.book.stop(10)
    rig.store.renew("second")
    again = Rig(rig.broker, rig.store)
    relay = again.relay()
    try:
        again.shout("three")
        wait_for(lambda: len(again.messages()) == 4)
        assert relay.status == ""
    finally:
        again.close()


def send(rig: Rig, event_id: str) -> None:
    """Send an event as a relay of before would have."""
    producer = Producer({"bootstrap.servers": rig.broker.address})
    producer.produce(EVENTS, b"{}", b"7", headers=[("id", event_id.encode())])
    assert producer.flush(10) == 0


def test_events_carry_their_ids_and_keys(rig: Rig) -> None:
    sequence = rig.shout("one", "two")
    relay = rig.relay()
    wait_for(lambda: relay.sent == 2)
    first, second = rig.messages()
    assert json.loads(first.value()) == {
        "id": f"first.{sequence}.0",
        "event": "heard",
        "at": "2025-10-09T08:53:20.000001Z",
        "data": {"user_id": "7", "word": "one"},
    }
    assert first.key() == second.key() == b"7"
    assert first.headers() == [("id", f"first.{sequence}.0".encode())]
    assert second.headers() == [("id", f"first.{sequence}.1".encode())]


class Unsure:
    """The tenure of a book that another may own by now."""

    is_sure = False

    def confirm(self) -> None:
        """Nobody asks."""


def test_nothing_is_sent_while_the_book_may_have_another_owner(rig: Rig) -> None:
    relay = rig.relay()
    rig.shout("one")
    wait_for(lambda: relay.sent == 1)
    ours, rig.book._tenure = rig.book._tenure, Unsure()
    rig.shout("two")
    wait_for(lambda: relay.lag)
    wait_for_calls(relay, "_turn")
    assert rig.words() == ["one"]
    rig.book._tenure = ours
    wait_for(lambda: relay.sent == 2)
    assert rig.words() == ["one", "two"]


def test_what_was_read_for_too_long_is_not_sent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the process stood still in the middle of a page."""
    ours, read = rig.book._tenure, rig.store.entries

    def slow(*values: Any, **options: Any) -> Any:
        rig.book._tenure = Unsure()
        return read(*values, **options)

    monkeypatch.setattr(rig.store, "entries", slow)
    relay = rig.relay()
    rig.shout("one")
    wait_for(lambda: isinstance(rig.book._tenure, Unsure))
    wait_for_calls(relay, "_turn")
    assert not rig.messages()
    monkeypatch.undo()
    rig.book._tenure = ours
    wait_for(lambda: relay.sent == 1)


def test_cursor_moves_after_events_only(rig: Rig) -> None:
    relay = rig.relay()
    sequence = rig.shout("one")
    wait_for(lambda: rig.cursor >= sequence)
    moves = rig.moves
    rig.execute(OpenAccount("user:1:USD"))
    wait_for(lambda: relay.lag == 0 and relay._position == rig.book.engine.head.sequence)
    wait_for_calls(relay, "_turn", 5)  # each a moment long; a move is due after one
    assert (rig.moves, relay.moves) == (moves, moves)


def test_long_stretches_without_events_are_read_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "MOVE_ENTRIES", 10)
    for number in range(12):
        rig.execute(OpenAccount(f"user:{number}:USD"))
    rig.relay()
    wait_for(lambda: rig.cursor > 10)


def test_restarted_relay_goes_on_at_the_cursor(rig: Rig) -> None:
    first = rig.relay()
    rig.shout("one")
    wait_for(lambda: first.sent == 1)
    first.stop()
    assert rig.cursor > 0
    rig.shout("two")
    second = rig.relay()
    wait_for(lambda: second.sent)
    assert rig.words() == ["one", "two"]


def test_many_events_keep_their_order_by_key(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "PAGE", 7)
    for number in range(100):
        rig.shout(str(number), user=str(number % 3))
    relay = rig.relay()
    wait_for(lambda: relay.sent == 100)
    by_key: dict[bytes, list[int]] = {}
    for message in rig.messages():
        word = int(json.loads(message.value())["data"]["word"])
        by_key.setdefault(message.key(), []).append(word)
    assert by_key == {b"%d" % key: list(range(key, 100, 3)) for key in range(3)}


def test_events_of_several_products_in_the_journal_s_order(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PAGE", 3)
    for number in range(20):
        kind = Whisper if number % 5 else Shout
        rig.execute(kind((str(number),)))
    relay = rig.relay(products=["withdrawals", "payments"])
    wait_for(lambda: relay.sent == 20)
    assert rig.words() == [str(number) for number in range(20)]


def test_events_without_a_route_are_passed_over(rig: Rig) -> None:
    def route(happening: Happening) -> Outgoing | None:
        return None if happening.data["word"] == "no" else Outgoing(EVENTS, None, b"yes")

    rig.execute(Shout(("a",), event="unheard"))
    rig.shout("no", "b")
    relay = rig.relay({"heard": route})
    wait_for(lambda: relay.lag == 0 and relay._position)
    (message,) = rig.messages()
    assert (message.key(), message.value()) == (None, b"yes")


def test_dead_letters_are_the_original_with_headers(rig: Rig) -> None:
    payload = b"\x00not json"
    letter = Message(
        "desk", 3, 41, b64encode(payload).decode(), "a2V5", (("trace", b64encode(b"t").decode()),)
    )
    rig.execute(SetAside(letter, "settlement_invalid", "it is not JSON"))
    keyless = Message("desk", 0, 0, "")
    rig.execute(SetAside(keyless, "settlement_invalid", "it is empty"))
    relay = rig.relay({"dead_letter": as_dead_letter(lambda topic: f"{topic}.dead-letters")})
    wait_for(lambda: relay.sent == 2)
    found = {message.key(): message for message in rig.messages(LETTERS)}
    message = found[b"key"]
    assert message.value() == payload
    headers = dict(message.headers())
    assert headers.pop("id").startswith(b"first.")
    assert headers == {
        "trace": b"t",
        "error": b"settlement_invalid",
        "error-detail": b"it is not JSON",
        "letter": b"withdrawals-1",
        "origin-topic": b"desk",
        "origin-partition": b"3",
        "origin-offset": b"41",
    }
    assert found[None].value() in {None, b""}


def test_event_that_is_too_large_does_not_stop_the_others(rig: Rig) -> None:
    rig.shout("x" * 1_000_000)
    rig.shout("small")
    relay = rig.relay()
    wait_for(lambda: relay.sent == 2)
    large, small = rig.messages()
    assert not large.value()
    assert int(dict(large.headers())["bytes-left-out"]) > 1_000_000
    assert b"small" in small.value()


def test_broker_down_and_up(rig: Rig) -> None:
    relay = rig.relay()
    rig.shout("one")
    wait_for(lambda: relay.sent == 1)
    rig.broker.down()
    sequence = rig.shout("two")
    wait_for(lambda: rig.broker.address in relay.status)
    assert relay.lag > 0
    rig.broker.up()
    wait_for(lambda: relay.sent == 2)
    wait_for(lambda: rig.cursor >= sequence)
    assert rig.words() == ["one", "two"]
    wait_for(lambda: relay.lag == 0)
    assert relay.status == ""


def test_broker_down_at_the_start(rig: Rig) -> None:
    rig.broker.down()
    relay = rig.relay()
    rig.shout("one")
    wait_for(lambda: relay.status)
    rig.broker.up()
    wait_for(lambda: relay.sent == 1)
    assert rig.words() == ["one"]


def test_messages_that_were_given_up_are_sent_again(rig: Rig) -> None:
    relay = rig.relay(options={"delivery.timeout.ms": "1500"})
    wait_for(lambda: relay._is_checked)
    rig.broker.down()
    rig.shout("one", "two")
    wait_for(lambda: "timed out" in relay.status.lower())
    assert rig.cursor == 0
    rig.broker.up()
    wait_for(lambda: relay.sent == 2)
    assert set(rig.words()) == {"one", "two"}


def test_cursor_moved_by_another_relay(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following_module, "MOVE_SECONDS", 0)
    relay = rig.relay()
    rig.shout("one")
    wait_for(lambda: relay.sent == 1)
    wait_for(lambda: rig.cursor and not relay._is_moving)
    submit = rig.book.submit

    def race(submission: Submission) -> None:
        """Somebody else is a moment faster."""
        monkeypatch.setattr(rig.book, "submit", submit)
        submit(
            Submission(
                OpenAccount("user:1:USD"), cursor=CursorMove(CURSOR, rig.cursor, rig.cursor + 1)
            )
        )
        submit(submission)

    monkeypatch.setattr(rig.book, "submit", race)
    relay._is_elsewhere = False
    submit(Submission(Shout(("two",))))
    wait_for(lambda: relay.conflicts == 1)
    wait_for(lambda: rig.words()[-1] == "two")
    wait_for(lambda: relay.lag == 0 and rig.cursor >= relay._sent_until)


def test_relay_that_breaks_says_so_and_begins_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = threading.Event()

    def route(happening: Happening) -> Outgoing:
        if not broken.is_set():
            raise KeyError("a bug")
        return Outgoing(EVENTS, None, b"after all")

    relay = rig.relay({"heard": route})
    rig.shout("one")
    wait_for(lambda: "a bug" in relay.status)
    broken.set()
    wait_for(lambda: relay.sent == 1)
    assert relay.status == ""

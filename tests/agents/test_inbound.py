"""Topics read into a book: once each, in order, whatever happens to broker, book or group."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition

from brokers import MockBroker, group_offsets, send
from pennyweight.agents import agent, inbound
from pennyweight.agents.inbound import INTERNAL_ERROR, Inbound, Inbox, Intake
from pennyweight.engine.engine import QueueFull, Submission
from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Receipt
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import CursorMove, decode_entry
from pennyweight.ledger.letters import LETTER, DeadLetter
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.links import kafka
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.products.withdrawals.settle import SetAside
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook, Unavailable
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

START = 1_760_000_000_000_000
TOPIC = "trades"


class Moody(ThreadedBook):
    """A book that takes nothing while it has a reason not to."""

    mood: Exception | None = None

    def submit(self, submission: Submission) -> None:
        if self.mood is not None:
            raise self.mood
        super().submit(submission)

    def check(self) -> None:
        if isinstance(self.mood, Unavailable):
            raise self.mood
        super().check()


class Rig:
    """A book, a broker, and readers between them."""

    def __init__(self, broker: MockBroker) -> None:
        self.broker = broker
        self.store = MemoryStore(Head(book="main", incarnation="first"))
        self.wall = START
        engine = open_engine(self.store, now=START)
        self.book = Moody(engine, self.store, ClockGuard(lambda: self.wall, lambda: 0))
        self.book.start()
        self.intakes: list[Intake] = []
        self.execute(OpenAccount("user:1:USD"))

    def execute(self, command: Command, cursor: CursorMove | None = None) -> None:
        done = threading.Event()
        outcomes: list[Any] = []

        def ticket(outcome: Any) -> None:
            outcomes.append(outcome)
            done.set()

        self.book.submit(Submission(command, ticket=ticket, cursor=cursor))
        assert done.wait(20)
        assert isinstance(outcomes[0], Receipt), outcomes

    def read(
        self,
        handle: Callable[[Inbound], Submission] | None = None,
        *,
        session: str = "3000",
        **settings: Any,
    ) -> Intake:
        intake = Intake(
            self.book,
            self.broker.address,
            {TOPIC: Inbox(handle or transfer, SetAside)},
            group="engine",
            options={"session.timeout.ms": session, "heartbeat.interval.ms": "100"},
            **settings,
        )
        intake.start()
        self.intakes.append(intake)
        return intake

    def send(self, *values: bytes, partition: int = 0, key: bytes | None = None) -> None:
        send(self.broker.address, TOPIC, [(partition, key, value) for value in values])

    @property
    def posted(self) -> int:
        account = self.store.account("user:1:USD")
        assert account is not None
        return account.posted // 10**18

    @property
    def letters(self) -> list[DeadLetter]:
        return [record.read(DeadLetter) for record in self.store.records(LETTER)]

    def commands(self) -> list[str]:
        """The names of the entries' commands, without those of the setting."""
        entries = [decode_entry(body) for _, body in self.store.entries(0, 100_000)]
        skipped = {"open_account", "register_asset"}
        return [entry.command for entry in entries if entry.command not in skipped]

    def close(self) -> None:
        self.book.mood = None
        for intake in self.intakes:
            intake.stop()
        self.book.stop(10)


@pytest.fixture
def rig(mock_broker: MockBroker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(inbound, "TELL_SECONDS", 0.05)
    monkeypatch.setattr(agent, "RETRY_SECONDS_MAX", 0.2)
    monkeypatch.setattr(inbound, "RETRY_SECONDS_MAX", 0.2)
    mock_broker.create_topic(TOPIC, 2)
    rig = Rig(mock_broker)
    yield rig
    rig.close()


def wait_for(is_so: Callable[[], Any], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


class Boom(Command, frozen=True):
    """A rule of ours that breaks."""

    name = "boom"
    product = "ledger"
    counted = ()
    answer_type = dict[str, Any]

    def reads(self, wanted: Any) -> None:
        pass

    def decide(self, draft: Any) -> dict[str, Any]:
        raise ZeroDivisionError


def transfer(message: Inbound) -> Submission:
    """A message is an amount, or a reason for trouble."""
    value = (message.value or b"").decode()
    if value == "boom":
        return Submission(Boom())
    if value == "bug":
        raise KeyError(value)
    if not value.isdigit():
        refuse(Reason.AMOUNT_INVALID, f"{value!r} is no amount")
    key = message.key.decode() if message.key else message.default_key
    return Submission(Transfer("world:USD", "user:1:USD", "USD", value), key=key)


def stream(rig: Rig, partition: int = 0) -> str:
    (name,) = (name for name in rig.store.cursors() if name.endswith(f"/{partition}"))
    return name


# ── the usual way ─────────────────────────────────────────────────────────────────


def test_messages_are_booked_with_their_cursor(rig: Rig) -> None:
    rig.send(b"1", b"2", b"3")
    rig.send(b"10", partition=1)
    intake = rig.read()
    wait_for(lambda: intake.booked == 4)
    assert rig.posted == 16
    assert rig.store.cursors() == {stream(rig, 0): 3, stream(rig, 1): 1}
    assert stream(rig).startswith("kafka:mockCluster")
    assert (intake.consumed, intake.replayed, intake.set_aside) == (4, 0, 0)
    wait_for(lambda: intake.lag == {(TOPIC, 0): 0, (TOPIC, 1): 0})
    assert intake.status == ""


def test_messages_as_handlers_see_them(rig: Rig) -> None:
    seen: list[Inbound] = []

    def handle(message: Inbound) -> Submission:
        seen.append(message)
        return transfer(message)

    rig.send(b"1", key=b"k")
    rig.send(b"2")
    intake = rig.read(handle)
    wait_for(lambda: intake.booked == 2)
    first, second = seen
    assert (first.topic, first.partition, first.offset) == (TOPIC, 0, 0)
    assert (first.key, first.value, first.headers) == (b"k", b"1", ())
    assert first.cursor == CursorMove(stream(rig), 0, 1)
    assert second.cursor == CursorMove(stream(rig), 1, 2)
    assert second.default_key == f"{stream(rig)}/1"
    assert abs(first.timestamp - time.time() * 1_000_000) < 60_000_000


def test_reader_goes_on_where_the_book_is(rig: Rig) -> None:
    rig.send(b"1", b"2")
    first = rig.read()
    wait_for(lambda: first.booked == 2)
    first.stop()
    rig.send(b"3", b"4")
    second = rig.read()
    wait_for(lambda: second.booked == 2)
    assert (rig.posted, second.consumed) == (10, 2)


def test_what_the_broker_believes_has_no_say(rig: Rig) -> None:
    """Somebody committed offsets for the group that the book has not booked."""
    rig.send(b"1", b"2", b"3", b"4")
    other = Consumer({"bootstrap.servers": rig.broker.address, "group.id": "engine"})
    other.commit(offsets=[TopicPartition(TOPIC, 0, 3)], asynchronous=False)
    other.close()
    intake = rig.read()
    wait_for(lambda: intake.booked == 4)
    assert rig.posted == 10
    wait_for(lambda: group_offsets(rig.broker.address, "engine", TOPIC, 1) == [4])


@pytest.mark.parametrize("is_silent", [False, True])
def test_the_broker_is_told_again_what_it_lost(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    """Else tools would show a lag for ever. What was lost in silence is told by the next reader."""
    lost: list[Any] = []

    def lose(consumer: Any, positions: Any) -> None:
        lost.append(positions)
        consumer._is_commit_lost = not is_silent

    rig.send(b"1", b"2")
    with monkeypatch.context() as patch:
        patch.setattr(kafka.Consumer, "commit", lose)
        intake = rig.read()
        wait_for(lambda: intake.booked == 2 and lost)
        if is_silent:
            intake.stop()
    if is_silent:
        rig.read()
    wait_for(lambda: group_offsets(rig.broker.address, "engine", TOPIC, 1) == [2])


def test_duplicate_by_id_moves_the_cursor_only(rig: Rig) -> None:
    rig.send(b"5", key=b"a")
    rig.send(b"5", key=b"a")
    rig.send(b"7", key=b"b")
    intake = rig.read()
    wait_for(lambda: intake.booked == 2)
    assert (rig.posted, intake.replayed) == (12, 1)
    assert rig.commands() == ["transfer", "move_cursor", "transfer"]


def test_refused_and_unreadable_messages_are_set_aside(rig: Rig) -> None:
    rig.send(b"1", key=b"a")
    rig.send(b"2", key=b"a")
    rig.send(b"many", key=b"c")
    rig.send(b"3", key=b"d")
    intake = rig.read()
    wait_for(lambda: intake.booked == 2)
    assert (rig.posted, intake.set_aside, intake.conflicts) == (4, 2, 0)
    reused, invalid = rig.letters
    assert (reused.reason, invalid.reason) == ("key_reused", "amount_invalid")
    assert invalid.detail == "'many' is no amount"
    message = invalid.message
    assert (message.topic, message.partition, message.offset) == (TOPIC, 0, 2)
    assert (message.key, message.payload) == ("Yw==", "bWFueQ==")
    assert rig.store.cursors()[stream(rig)] == 4


def test_window_bounds_what_is_under_way(rig: Rig) -> None:
    waiting: list[int] = []

    def handle(message: Inbound) -> Submission:
        waiting.append(rig.book.engine.waiting)
        return transfer(message)

    rig.send(*[b"1"] * 500)
    intake = rig.read(handle, window=20)
    wait_for(lambda: intake.booked == 500)
    assert max(waiting) < 20
    assert rig.posted == 500


# ── trouble ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [b"boom", b"bug"])
def test_poison_message_does_not_stop_its_partition(rig: Rig, value: bytes) -> None:
    rig.send(b"1", value, b"2", b"3")
    intake = rig.read()
    wait_for(lambda: intake.booked >= 3)
    assert (rig.posted, intake.set_aside) == (6, 1)
    assert intake.failures == (2 if value == b"boom" else 1)
    (letter,) = rig.letters
    assert (letter.reason, letter.message.offset) == (INTERNAL_ERROR, 1)
    assert intake.status == ""


def test_message_that_cannot_even_be_set_aside_stops_its_partition_alone(rig: Rig) -> None:
    rig.send(b"1", b"many", b"2")
    rig.send(b"5", partition=1)
    intake = Intake(
        rig.book,
        rig.broker.address,
        {TOPIC: Inbox(transfer, lambda *_: Boom())},
        group="engine",
    )
    intake.start()
    rig.intakes.append(intake)
    wait_for(lambda: "neither be booked nor set aside" in intake.status)
    assert rig.posted == 6
    rig.send(b"7", partition=1)
    wait_for(lambda: rig.posted == 13)
    assert rig.store.cursors()[stream(rig)] == 1
    assert "trades/0/1 " in intake.status


def test_cursor_moved_by_somebody_else(rig: Rig) -> None:
    rig.send(b"1")
    intake = rig.read()
    wait_for(lambda: intake.booked == 1)
    rig.execute(OpenAccount("user:2:USD"), CursorMove(stream(rig), 1, 3))
    rig.send(b"10", b"100", b"1000")
    wait_for(lambda: intake.booked == 2)
    assert (rig.posted, intake.conflicts) == (1001, 1)
    assert rig.store.cursors()[stream(rig)] == 4


@pytest.mark.parametrize("mood", [Unavailable("store_failed", "disk full"), QueueFull("20 wait")])
def test_book_that_takes_nothing_stops_the_partition(rig: Rig, mood: Exception) -> None:
    rig.send(b"1")
    intake = rig.read()
    wait_for(lambda: intake.booked == 1)
    rig.book.mood = mood
    rig.send(b"2", b"3")
    wait_for(lambda: intake.is_paused and str(mood) in intake.status)
    rig.send(b"4")
    assert rig.posted == 1
    rig.book.mood = None
    wait_for(lambda: intake.booked == 4)
    assert (rig.posted, intake.status, intake.conflicts) == (10, "", 0)
    assert rig.letters == []


def test_unknown_outcomes_are_read_again(rig: Rig) -> None:
    """The clock jumps, so what was submitted is answered by nobody; then it comes back."""
    intake = rig.read()
    rig.send(b"1")
    wait_for(lambda: intake.booked == 1)
    rig.wall += 600_000
    rig.send(b"2", b"3")
    wait_for(lambda: intake.is_paused)
    assert "clock" in intake.status
    rig.wall -= 600_000
    wait_for(lambda: intake.booked == 3)
    assert (rig.posted, intake.status) == (6, "")


def test_book_without_answers_pauses_the_partitions(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbound, "STUCK_SECONDS", 0.05)
    leave = threading.Event()
    append = rig.store.append

    def slow(batch: Any) -> None:
        assert leave.wait(20)
        append(batch)

    monkeypatch.setattr(rig.store, "append", slow)
    rig.send(*[b"1"] * 50)
    intake = rig.read(window=20)
    wait_for(lambda: intake.is_paused)
    leave.set()
    wait_for(lambda: intake.booked == 50)
    assert (rig.posted, intake.is_paused) == (50, False)


def test_broker_down_later_and_up_again(rig: Rig) -> None:
    rig.send(b"1")
    intake = rig.read()
    wait_for(lambda: intake.booked == 1)
    rig.broker.down()
    wait_for(lambda: rig.broker.address in intake.status)
    rig.broker.up()
    rig.send(b"2")
    wait_for(lambda: intake.booked == 2)
    assert intake.status == ""


def test_broker_down_at_the_start(rig: Rig) -> None:
    rig.broker.down()
    intake = rig.read()
    wait_for(lambda: "transport" in intake.status.lower())
    rig.broker.up()
    rig.send(b"2")
    wait_for(lambda: intake.booked == 1)
    assert intake.status == ""


def test_stop_while_the_broker_is_down(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would try to leave its group for as long as its session lasts."""
    monkeypatch.setattr(kafka, "CLOSE_SECONDS", 0.2)
    rig.send(b"1")
    intake = rig.read(session="120000")
    wait_for(lambda: intake.booked == 1)
    rig.broker.down()
    wait_for(lambda: intake.status)
    stop = threading.Thread(target=intake.stop)
    stop.start()
    stop.join(60)
    assert not stop.is_alive()
    assert intake.lag == {}


def test_agent_that_breaks_begins_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Intake._settle
    broken: list[int] = []

    def once(self: Intake) -> None:
        settle(self)
        if self.booked and not broken:
            broken.append(1)
            raise ZeroDivisionError

    monkeypatch.setattr(Intake, "_settle", once)
    rig.send(b"1")
    intake = rig.read()
    wait_for(lambda: broken)
    rig.send(b"2")
    wait_for(lambda: intake.booked == 2)
    assert (rig.posted, intake.status) == (3, "")


# ── the group ─────────────────────────────────────────────────────────────────────


def test_two_readers_of_one_book_share_the_partitions(rig: Rig) -> None:
    """One joins and leaves while messages flow: all are booked, each once."""
    first = rig.read()
    total = 0
    second: Intake | None = None
    for number in range(30):
        rig.send(*[b"1"] * 20, partition=number % 2)
        total += 20
        if number == 5:
            wait_for(lambda: first.booked)
            second = rig.read()
        if number == 10:
            wait_for(lambda: [len(intake.lag) for intake in rig.intakes] == [1, 1])
        if number == 20:
            first.stop()
    assert second is not None
    wait_for(lambda: first.booked + second.booked >= total)
    assert rig.posted == total
    assert first.booked
    assert second.booked
    assert rig.store.cursors() == {stream(rig, 0): 300, stream(rig, 1): 300}
    assert rig.commands() == ["transfer"] * total


def test_two_groups_on_one_book_do_no_harm(rig: Rig) -> None:
    """A mistake of the operator's: both read everything, and each message is booked once."""
    rig.send(*[b"1"] * 300)
    intakes = []
    for group in ("one", "two"):
        intake = Intake(
            rig.book,
            rig.broker.address,
            {TOPIC: Inbox(transfer, SetAside)},
            group=group,
        )
        intake.start()
        intakes.append(intake)
    rig.intakes += intakes
    wait_for(lambda: rig.posted >= 300)
    rig.send(*[b"1"] * 300)
    wait_for(lambda: sum(intake.booked for intake in intakes) >= 600)
    assert rig.posted == sum(intake.booked for intake in intakes) == 600

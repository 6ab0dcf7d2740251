"""Reads Kafka topics into the book: every message has its effect once, and none stops its partition.

The book's cursors are the truth about how far a partition was read. A message is submitted
with the move of its cursor, the engine does both in one entry or neither, and whoever submits
from a place where the cursor is not (a slow former owner of the partition, or ourselves after
something went wrong) is refused and begins again where the book stands. A message that no rule
takes is set aside. A book that takes nothing stops the partitions, never a message.
"""

import threading
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import structlog

from pennyweight.agents.agent import RETRY_SECONDS, RETRY_SECONDS_MAX, Persistent
from pennyweight.engine.engine import Lane, QueueFull, Submission
from pennyweight.engine.receipts import Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger import letters
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import CursorMove
from pennyweight.ledger.refusals import Reason, Refused
from pennyweight.links import kafka
from pennyweight.links.errors import ExtraMissing, LinkError
from pennyweight.links.kafka import Consumer, Headers, Received
from pennyweight.runtime.driver import ThreadedBook, Unavailable

WINDOW = 2_000
"""Messages submitted and not yet answered, at most."""

INTERNAL_ERROR = "internal_error"
"""Why a message is set aside that a rule of ours broke on, twice."""

FAILURES_MAX = 2
CONSUME_SECONDS = 0.05
STUCK_SECONDS = 1.0
"""After so long without room the partitions are paused, so that the group keeps us."""

LOSS_SECONDS = 1.0
"""How long a partition that is taken away waits for what was submitted from it."""

TELL_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Inbound(msgspec.Struct, frozen=True, gc=False):
    """One message, and the move of the cursor that it stands for.

    `timestamp` is the broker's, in microseconds since 1970, 0 where it gives none.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int
    cursor: CursorMove

    @property
    def default_key(self) -> str:
        """The idempotency key of a message that has no id of its own: its place."""
        return f"{self.cursor.name}/{self.offset}"

    def letter(self) -> letters.Message:
        """Return the message as a dead letter keeps it."""
        return letters.Message(
            self.topic,
            self.partition,
            self.offset,
            _base64((self.value or b"")[: letters.PAYLOAD_MAX]),
            None if self.key is None else _base64(self.key),
            tuple((name, _base64(value or b"")) for name, value in self.headers),
        )


class Inbox(msgspec.Struct, frozen=True):
    """What is done with the messages of a topic.

    `handle` makes a submission of a message: command and key, no more is needed. It is
    pure; what it refuses (raises `Refused`) is set aside with that reason. `set_aside`
    makes the command that keeps a letter, with a code and a sentence.
    """

    handle: Callable[[Inbound], Submission]
    set_aside: Callable[[letters.Message, str, str], Command]


class _Stream:
    """One partition that is ours: how far it was submitted, and what is under way."""

    __slots__ = (
        "booked",
        "expected",
        "failures",
        "flights",
        "inbox",
        "is_behind",
        "is_broken",
        "name",
        "not_before",
        "rewinds",
        "told",
    )

    def __init__(self, name: str, inbox: Inbox, position: int | None) -> None:
        self.name = name
        self.inbox = inbox
        self.expected = self.booked = position or 0
        self.told = 0
        """What the broker was told last, by us: what others told it may have been lost."""
        self.flights = 0
        self.is_broken = False
        """Something of it was not booked: nothing more until all is answered and it was rewound."""
        self.is_behind = False
        """Offsets came that the book has had already."""
        self.rewinds = 0
        self.not_before = 0.0
        self.failures: dict[int, int] = {}


class _Flight:
    """One message on its way through the book; the ticket of its submission."""

    __slots__ = ("agent", "aside", "is_aside", "offset", "outcome", "stream")

    def __init__(self, agent: "Intake", stream: _Stream, offset: int) -> None:
        self.agent = agent
        self.stream = stream
        self.offset = offset
        self.aside: Callable[[Refused], Command]
        self.is_aside = False
        self.outcome: Outcome

    def set_aside(self, refused: Refused) -> Command:
        """Note that it was; called by the engine."""
        self.is_aside = True
        return self.aside(refused)

    def __call__(self, outcome: Outcome) -> None:
        """Hand the outcome to the agent's thread; called by the callers' loop."""
        self.outcome = outcome
        self.agent.answered(self)


class Intake(Persistent):
    """A thread that reads topics as a member of a group. All counters are since its beginning."""

    expected = (LinkError, ExtraMissing)

    def __init__(
        self,
        book: ThreadedBook,
        brokers: str,
        inboxes: Mapping[str, Inbox],
        *,
        group: str,
        window: int = WINDOW,
        options: kafka.Options | None = None,
    ) -> None:
        """`inboxes` by topic; `brokers` as HOST:PORT, several with commas. Raises ExtraMissing."""
        super().__init__("intake")
        kafka.client()
        self.consumed = 0
        self.booked = 0
        self.replayed = 0
        """Duplicates by key: only the cursor moved."""
        self.set_aside = 0
        self.conflicts = 0
        """How often a cursor was elsewhere than expected."""
        self.failures = 0
        """How often a rule of ours broke on a message."""
        self.ignored = 0
        """Messages at offsets that the book had passed already."""
        self.lag: dict[tuple[str, int], int] = {}
        """Messages not yet booked, by partition of ours."""
        self.is_paused = False
        self._book = book
        self._brokers = brokers
        self._inboxes = dict(inboxes)
        self._group = group
        self._window = window
        self._options = options
        self._down = f"{brokers}: not connected yet"
        self._trouble = ""
        self._stuck = ""
        self._consumer: Consumer | None = None
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._waiting: deque[Received] = deque()
        self._answered: deque[_Flight] = deque()
        self._in_flight = 0
        self._is_sleeping = False
        self._bell = threading.Event()
        self._stuck_since = 0.0
        self._retry_at = 0.0
        self._retry_seconds = RETRY_SECONDS
        self._told_at = 0.0

    # ── for anybody ───────────────────────────────────────────────────────────────

    @property
    def status(self) -> str:
        """Why messages wait, for `/readyz`; "" while all is well."""
        consumer = self._consumer
        if consumer is None:
            return self._down
        return consumer.status or self._trouble or self._stuck or consumer.left_out

    def answered(self, flight: _Flight) -> None:
        """Take an outcome; from any thread."""
        self._answered.append(flight)
        if self._is_sleeping:
            self._is_sleeping = False
            self._bell.set()

    # ── the thread ────────────────────────────────────────────────────────────────

    def _session(self) -> None:
        """Read as a member of the group until told to stop. Raises LinkError."""
        consumer = self._connect()
        self._down = ""
        self._set_paused(is_paused=False)
        self._consumer = consumer
        try:
            while not self._is_over.is_set():
                self._turn(consumer)
        finally:
            try:
                consumer.close()
            finally:
                self._consumer = None
                self._lose(list(self._streams))
                self._waiting.clear()

    def _connect(self) -> Consumer:
        return Consumer(
            self._brokers,
            list(self._inboxes),
            group=self._group,
            position_of=self._position_of,
            on_gain=self._gain,
            on_loss=self._lose,
            options=self._options,
        )

    def _turn(self, consumer: Consumer) -> None:
        """Do whatever is to be done now; waits a moment at most."""
        self._settle()
        self._rewind(consumer)
        self._tell(consumer)
        if self.is_paused:
            self._wait_paused(consumer)
            return
        if self._waiting and not self._submit_waiting(consumer):
            return
        room = self._window - self._in_flight
        if self._waiting or room < min(kafka.BATCH, self._window // 2):
            self._wait_for_room(consumer)
            return
        self._stuck_since = 0.0
        found = consumer.consume(min(room, kafka.BATCH), CONSUME_SECONDS)
        self.consumed += len(found)
        self._waiting.extend(found)

    # ── the group ─────────────────────────────────────────────────────────────────

    def _position_of(self, stream: str) -> int | None:
        return self._book.standing.cursors.get(stream)

    def _gain(self, topic: str, partition: int, stream: str, position: int | None) -> None:
        self._streams[topic, partition] = _Stream(stream, self._inboxes[topic], position)
        self._stuck_since = 0.0
        log.info("partition gained", stream=stream, position=position)

    def _lose(self, partitions: Sequence[tuple[str, int]]) -> None:
        """Forget partitions, after what was submitted from them was answered, or a moment.

        What was not answered by then may still be booked. The next owner is refused once
        for it and reads the cursor again.
        """
        lost = {place: self._streams.pop(place) for place in partitions if place in self._streams}
        self._drop_waiting(lost)
        until = time.monotonic() + LOSS_SECONDS
        while any(stream.flights for stream in lost.values()) and time.monotonic() < until:
            self._sleep()
            self._settle()
        if self._consumer is not None and lost:
            self._consumer.commit({place: stream.booked for place, stream in lost.items()})
        for place in lost:
            self.lag.pop(place, None)

    def _tell(self, consumer: Consumer) -> None:
        """Now and then measure the lag, and tell the broker how far the book is."""
        now = time.monotonic()
        if now - self._told_at < TELL_SECONDS:
            return
        self._told_at = now
        is_lost = consumer.has_lost_commit()
        news = {}
        for place, stream in self._streams.items():
            end = consumer.end(*place)
            if end is not None:
                self.lag[place] = max(0, end - stream.booked)
            if is_lost or stream.told != stream.booked:
                stream.told = news[place] = stream.booked
        if news:
            consumer.commit(news)

    # ── submitting ────────────────────────────────────────────────────────────────

    def _submit_waiting(self, consumer: Consumer) -> bool:
        """Submit what waits, as far as there is room; False if the book takes nothing now."""
        waiting = self._waiting
        while waiting and self._in_flight < self._window:
            raw = waiting[0]
            stream = self._streams.get((raw.topic(), raw.partition()))
            offset = raw.offset()
            if stream is None or stream.is_broken:
                waiting.popleft()
                continue
            if offset < stream.expected:
                self._look_back(consumer, stream, offset)
                waiting.popleft()
                continue
            flight = _Flight(self, stream, offset)
            try:
                self._book.submit(self._submission(raw, stream, flight))
            except (Unavailable, QueueFull) as error:
                self._back_off(str(error))
                return False
            waiting.popleft()
            stream.expected = offset + 1
            stream.flights += 1
            self._in_flight += 1
        return True

    def _submission(self, raw: Received, stream: _Stream, flight: _Flight) -> Submission:
        message = _inbound(raw, CursorMove(stream.name, stream.expected, flight.offset + 1))
        inbox = stream.inbox

        def aside(refused: Refused) -> Command:
            return inbox.set_aside(message.letter(), refused.reason.code, refused.message)

        try:
            if stream.failures.get(flight.offset, 0) >= FAILURES_MAX:
                submission = self._poison(message, inbox, flight)
            else:
                submission = inbox.handle(message)
        except Refused as refused:
            submission = Submission(aside(refused))
            flight.is_aside = True
        except Exception:
            log.exception("a message could not be read", place=message.default_key)
            self.failures += 1
            submission = self._poison(message, inbox, flight)
        submission.lane = Lane.INBOUND
        submission.cursor = message.cursor
        submission.ticket = flight
        flight.aside = submission.aside or aside
        submission.aside = flight.set_aside
        return submission

    def _poison(self, message: Inbound, inbox: Inbox, flight: _Flight) -> Submission:
        flight.is_aside = True
        sentence = "a rule broke on this message; the log says where"
        return Submission(inbox.set_aside(message.letter(), INTERNAL_ERROR, sentence))

    def _look_back(self, consumer: Consumer, stream: _Stream, offset: int) -> None:
        """Deal with an offset that the book has passed. Raises LinkError for another topic.

        The topic was made again under our hands, and begins at 0: then all streams have new
        names, and a new consumer finds them. Or the broker lost the end of its log: what it
        gives those offsets to now cannot be told from what they had, and is passed over.
        """
        if not stream.is_behind:
            stream.is_behind = True
            if not consumer.is_same_topic():
                raise LinkError(f"{self._brokers}: the topic was made again")
            log.error(
                "offsets began again before the book's position; those before it are passed over",
                stream=stream.name,
                offset=offset,
                position=stream.expected,
            )
        self.ignored += 1

    # ── outcomes ──────────────────────────────────────────────────────────────────

    def _settle(self) -> None:
        """Look at every outcome that has come."""
        answered = self._answered
        while answered:
            flight = answered.popleft()
            stream, outcome = flight.stream, flight.outcome
            stream.flights -= 1
            self._in_flight -= 1
            if isinstance(outcome, Receipt):
                self._count(flight, stream, outcome)
            elif isinstance(outcome, Refusal) and outcome.reason is Reason.CURSOR_CONFLICT:
                self.conflicts += not stream.is_broken
                stream.is_broken = True
            elif isinstance(outcome, Unknown):
                stream.is_broken = True
                self._back_off(outcome.message)
            else:
                self._note_failure(flight, stream, outcome)

    def _count(self, flight: _Flight, stream: _Stream, receipt: Receipt) -> None:
        if receipt.is_replayed:
            self.replayed += 1
        elif flight.is_aside:
            self.set_aside += 1
        else:
            self.booked += 1
        stream.booked = flight.offset + 1
        if stream.rewinds:
            stream.rewinds = 0
        if stream.failures and stream.failures.pop(flight.offset, 0) > FAILURES_MAX:
            self._stuck = ""
        if not self.is_paused:
            self._retry_seconds = RETRY_SECONDS

    def _note_failure(self, flight: _Flight, stream: _Stream, outcome: Outcome) -> None:
        """A rule broke on a message, or refused to set it aside: again, then aside, then wait."""
        self.failures += 1
        stream.is_broken = True
        times = stream.failures[flight.offset] = stream.failures.get(flight.offset, 0) + 1
        cause = outcome.cause if isinstance(outcome, Failure) else None
        place = f"{stream.name}/{flight.offset}"
        log.error("a message could not be booked", place=place, times=times, exc_info=cause)
        if times > FAILURES_MAX:
            self._stuck = f"{place} can neither be booked nor set aside"

    def _rewind(self, consumer: Consumer) -> None:
        """Begin broken streams again where the book stands, once nothing of them is under way."""
        now = time.monotonic()
        for place, stream in self._streams.items():
            if not stream.is_broken or stream.flights or self.is_paused or now < stream.not_before:
                continue
            position = self._position_of(stream.name)
            try:
                consumer.seek(*place, position)
            except LinkError:
                stream.not_before = now + RETRY_SECONDS
                continue
            self._drop_waiting((place,))
            stream.expected = stream.booked = position or 0
            stream.is_broken = stream.is_behind = False
            stream.rewinds += 1
            # The first is at once; who is refused without end is not alone on this stream.
            wait = RETRY_SECONDS * 2 ** min(stream.rewinds - 1, 5) if stream.rewinds > 1 else 0
            stream.not_before = now + wait

    # ── waiting ───────────────────────────────────────────────────────────────────

    def _wait_for_room(self, consumer: Consumer) -> None:
        """Sleep until outcomes come; pause the partitions when none come for long."""
        now = time.monotonic()
        if not self._stuck_since:
            self._stuck_since = now
        elif now - self._stuck_since > STUCK_SECONDS:
            self._pause(consumer)
            return
        before = self._in_flight
        self._sleep()
        self._settle()
        if self._in_flight < before:
            self._stuck_since = 0.0

    def _back_off(self, why: str) -> None:
        """Take nothing more until the book does; the next look is later each time."""
        if not self._trouble:
            log.warning("messages wait for the book", cause=why)
        self._trouble = f"messages wait: {why}"
        if not self.is_paused:
            self._retry_at = time.monotonic() + self._retry_seconds
            self._retry_seconds = min(self._retry_seconds * 2, RETRY_SECONDS_MAX)
            if self._consumer is not None:
                self._pause(self._consumer)

    def _pause(self, consumer: Consumer) -> None:
        consumer.pause(self._streams)
        self._set_paused(is_paused=True)

    def _wait_paused(self, consumer: Consumer) -> None:
        """Keep polling, so that the group keeps us, and resume when the book takes commands."""
        found = consumer.consume(kafka.BATCH, CONSUME_SECONDS)
        if found:  # on their way before the pause, or of partitions that we just got
            self.consumed += len(found)
            self._waiting.extend(found)
            consumer.pause(self._streams)
        if time.monotonic() < self._retry_at or self._in_flight > self._window // 2:
            return
        try:
            self._book.check()
        except Unavailable as error:
            self._trouble = f"messages wait: {error}"
            self._retry_at = time.monotonic() + RETRY_SECONDS
            return
        consumer.resume(self._streams)
        self._trouble = ""
        self._set_paused(is_paused=False)

    def _set_paused(self, *, is_paused: bool) -> None:
        self.is_paused = is_paused
        self._stuck_since = 0.0

    def _sleep(self) -> None:
        """Wait for an outcome, a moment at most."""
        self._is_sleeping = True
        if not self._answered:
            self._bell.wait(CONSUME_SECONDS)
        self._is_sleeping = False
        self._bell.clear()

    def _drop_waiting(self, places: Iterable[tuple[str, int]]) -> None:
        """Forget what was received and not submitted; it will come again."""
        gone = set(places)
        if self._waiting and gone:
            self._waiting = deque(
                raw for raw in self._waiting if (raw.topic(), raw.partition()) not in gone
            )


def _inbound(raw: Received, cursor: CursorMove) -> Inbound:
    """Return a received message as handlers see it."""
    kind, milliseconds = raw.timestamp()
    return Inbound(
        raw.topic(),
        raw.partition(),
        cursor.after - 1,
        raw.key(),
        raw.value(),
        tuple(raw.headers() or ()),
        milliseconds * 1_000 if kind else 0,
        cursor,
    )


def _base64(value: bytes) -> str:
    return b64encode(value).decode()

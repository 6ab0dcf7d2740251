"""Sends what the journal says happened outside: every event at least once, in order by key.

The journal is the outbox, followed from a cursor in the book (see `following`); after a crash
the relay begins again there, so a reader may see an event twice, under the same id.

A book that was restored from a backup would give the ids of what was lost to what comes
after. So the relay first looks at the last messages of its topic: while one is of this life
of the book and ahead of it, nothing is sent, until the book begins a new life (`recover`).
"""

import heapq
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
import structlog

from pennyweight.agents.following import IDLE_SECONDS, BatchHeaders, BookBehind, Following
from pennyweight.ledger.entries import decode_events
from pennyweight.links.errors import LinkError
from pennyweight.runtime.driver import ThreadedBook

PAGE = 16
"""Entries that are in memory at a time. What is in them is users' data: they have places of
their own in the bound on users."""

FLUSH_EVENTS = 500
"""Events after which the relay waits until all of them were acknowledged."""

VALUE_MAX = 900_000
"""Bytes of a message; brokers take a little more by default. A longer one is sent empty."""

FLUSH_SECONDS = 0.2

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_encoder = msgspec.json.Encoder()

log = structlog.get_logger(__name__)


Headers = tuple[tuple[str, bytes | None], ...]


class Sender(Protocol):
    """What sends messages in order by key. `failed` counts those given up, `status` says why."""

    failed: int

    @property
    def status(self) -> str: ...

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Queue a message. Raises LinkError."""

    def flush(self, timeout_seconds: float) -> int:
        """Wait at most so long for what is queued, and return how many are not through yet."""

    def look(self) -> None:
        """Notice while nothing is sent whether the other side is there."""

    def close(self) -> None:
        """Give up what is still queued."""


class Outlet(Protocol):
    """Where a relay sends. `name` is for people."""

    name: str

    def open(self) -> Sender:
        """Return what sends. Raises ExtraMissing, LinkError."""

    def last_ids(self) -> Sequence[str]:
        """Return ids of the last events that are there, where that can be asked. Raises LinkError."""


class Happening(msgspec.Struct, frozen=True, gc=False):
    """An event of the journal. `id` is incarnation.sequence.position, `at` its commit (RFC 3339)."""

    id: str
    event: str
    at: datetime
    data: Any


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """A message to send; the relay adds the header `id`."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers = ()


Route = Callable[[Happening], Outgoing | None]
"""Makes a message of an event; None where nobody is to hear of it. Pure."""


def as_json(topic: str, key_field: str) -> Route:
    """Return a route that sends the whole event as JSON, keyed by a field of its data."""

    def route(happening: Happening) -> Outgoing:
        return Outgoing(topic, happening.data[key_field].encode(), _encoder.encode(happening))

    return route


def as_dead_letter(topic_of: Callable[[str], str]) -> Route:
    """Return a route that sends a letter's original message; `topic_of` names the topic by origin.

    Key, payload and headers are as they came; headers say why and from where.
    """

    def route(happening: Happening) -> Outgoing:
        letter = happening.data
        headers = [(name, b64decode(value)) for name, value in letter["headers"]]
        for name, value in (
            ("error", letter["reason"]),
            ("error-detail", letter["detail"]),
            ("letter", letter["letter"]),
            ("origin-topic", letter["topic"]),
            ("origin-partition", letter["partition"]),
            ("origin-offset", letter["offset"]),
        ):
            headers.append((name, str(value).encode()))
        key = letter["key"]
        return Outgoing(
            topic_of(letter["topic"]),
            None if key is None else b64decode(key),
            b64decode(letter["payload"]),
            tuple(headers),
        )

    return route


class Relay(Following):
    """A thread that follows the journal of some products. Counters are since its beginning.

    What was not acknowledged when it ends is sent again next time.
    """

    def __init__(
        self,
        book: ThreadedBook,
        outlet: Outlet,
        routes: Mapping[str, Route],
        *,
        name: str,
        products: Sequence[str],
    ) -> None:
        """`routes` by the event's name; others are passed over. `name` is the cursor's."""
        super().__init__("relay", book, cursor=name)
        self.sent = 0
        self._outlet = outlet
        self._routes = dict(routes)
        self._products = tuple(products)
        self._producer: Sender | None = None
        self._is_checked = False
        self._headers = BatchHeaders(book.store)

    # ── for anybody ───────────────────────────────────────────────────────────────

    @property
    def status(self) -> str:
        """Why events wait, for `/readyz`; "" while all is well."""
        producer = self._producer
        return self._down or (producer.status if producer is not None else "")

    # ── the thread ────────────────────────────────────────────────────────────────

    def _session(self) -> None:
        """Follow the journal from the cursor until told to stop.

        Raises LinkError, StoreError, BookBehind.
        """
        self._check_topic()
        self._producer = producer = self._outlet.open()
        self._begin_at(self._cursor)
        try:
            while not self._is_over.is_set():
                self._turn(producer)
            self._move_at_last()
        finally:
            producer.close()

    def _check_topic(self) -> None:
        """Look once whether the topic is ahead of the book. Raises LinkError, BookBehind."""
        if self._is_checked:
            return
        head = self._book.engine.head
        for event_id in self._outlet.last_ids():
            incarnation, _, rest = event_id.partition(".")
            sequence = rest.partition(".")[0]
            if (
                incarnation == head.incarnation
                and sequence.isdecimal()
                and int(sequence) > self._book.engine.head.sequence
            ):
                raise BookBehind(
                    f"{self._outlet.name} has event {event_id}, but the book ends at entry "
                    f"{head.sequence}: if it was restored, stop it and run `pennyweight recover`"
                )
        self._is_checked = True

    def _turn(self, producer: Sender) -> None:
        """Relay a page, or wait a moment for one."""
        if self._is_elsewhere:
            self._is_elsewhere = False
            self._begin_at(self._cursor)
        head = self._book.engine.head.sequence
        if head > self._position and not self._is_to_wait:
            self._relay_page(producer, head)
        else:
            producer.look()
            self._down = ""  # what the producer knows of the broker is its own status
            self._is_over.wait(IDLE_SECONDS)
        self._move()

    # ── a page ────────────────────────────────────────────────────────────────────

    def _relay_page(self, producer: Sender, head: int) -> None:
        """Send the events of the next entries, and go on when all of them were acknowledged."""
        failed, count, until = producer.failed, 0, self._position
        while until < head and count < FLUSH_EVENTS and not self._is_to_wait:
            until, sent = self._send_page(producer, until, head)
            count += sent
        if count:
            while producer.flush(FLUSH_SECONDS):
                if self._is_over.is_set():
                    return
            if producer.failed > failed:
                raise LinkError(producer.status)
            self._sent_until = until
        self._down = ""
        self.sent += count
        self._position = until

    def _send_page(self, producer: Sender, after: int, head: int) -> tuple[int, int]:
        """Queue the events of the next entries; return up to which entry, and how many events."""
        count = 0
        bodies, until = self._read(after, head)
        if self._is_to_wait:  # reading may have taken long
            return after, 0
        for sequence, body in bodies:
            for outgoing, event_id in self._outgoing(sequence, body):
                _send(producer, outgoing, event_id)
                count += 1
        return until, count

    def _read(self, after: int, head: int) -> tuple[list[tuple[int, bytes]], int]:
        """Return the products' next entries, in order, and up to where they are complete."""
        until = head
        pages = []
        for product in self._products:
            page = self._book.store.entries(after, PAGE // len(self._products), product=product)
            if len(page) == PAGE // len(self._products):
                until = min(until, page[-1][0])
            pages.append(page)
        merged = heapq.merge(*pages) if len(pages) > 1 else pages[0]
        return [entry for entry in merged if entry[0] <= until], until

    def _outgoing(self, sequence: int, body: bytes) -> Iterator[tuple[Outgoing, str]]:
        """Yield the messages that an entry's events make. Raises CorruptEntry, StoreError."""
        for position, event in enumerate(decode_events(body).events):
            route = self._routes.get(event.name)
            if route is None:
                continue
            header = self._headers.of(sequence)
            event_id = f"{header.incarnation}.{sequence}.{position}"
            at = _EPOCH + timedelta(microseconds=header.committed_at)
            outgoing = route(Happening(event_id, event.name, at, event.body))
            if outgoing is not None:
                yield outgoing, event_id


def _send(producer: Sender, outgoing: Outgoing, event_id: str) -> None:
    """Queue a message. One that no broker takes must not stop all that come after it."""
    value = outgoing.value
    headers = (*outgoing.headers, ("id", event_id.encode()))
    if len(value) > VALUE_MAX:
        log.error("an event is too large to be sent whole", id=event_id, bytes=len(value))
        headers = (*headers, ("bytes-left-out", str(len(value)).encode()))
        value = b""
    producer.send(outgoing.topic, outgoing.key, value, headers)

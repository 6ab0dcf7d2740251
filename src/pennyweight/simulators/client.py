"""The load client: HTTP/1.1 over kept-alive connections, as little work a request as can be.

It shares the machine with the server it measures, so it uses sockets and a poller
directly, sends requests that are encoded already, and of an answer reads the status and
the length. One request is under way on each connection.
"""

import itertools
import select
import selectors
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.pacing import Pacer

SECOND = 1_000_000_000
_CHUNK = 65_536
_NAP = 0.25
_BESIDE = 5_000_000
"""Nanoseconds that whatever is done beside the load waits at most."""


class Poller:
    """Waits until one of many sockets can be read; epoll where there is one."""

    def __init__(self) -> None:
        """Watch nothing yet."""
        self._epoll = select.epoll() if sys.platform == "linux" else None
        self._selector = None if self._epoll else selectors.DefaultSelector()

    def add(self, number: int) -> None:
        """Watch a socket by its file number."""
        if self._epoll:
            self._epoll.register(number, select.EPOLLIN)
        elif self._selector:
            self._selector.register(number, selectors.EVENT_READ)

    def remove(self, number: int) -> None:
        """Stop watching a socket."""
        if self._epoll:
            self._epoll.unregister(number)
        elif self._selector:
            self._selector.unregister(number)

    def wait(self, seconds: float, *, is_exact: bool) -> list[int]:
        """Return the file numbers that can be read, after at most that time.

        epoll alone rounds the time up to a millisecond; where that is too late (`is_exact`)
        the waiting is left to `select`, which costs two more calls of the system.
        """
        if self._epoll:
            if is_exact and seconds > 0:
                found = self._epoll.poll(0)
                if not found:
                    select.select([self._epoll.fileno()], [], [], seconds)
                    found = self._epoll.poll(0)
            else:
                found = self._epoll.poll(seconds)
            return [number for number, _ in found]
        if self._selector:
            return [key.fd for key, _ in self._selector.select(seconds)]
        return []

    def close(self) -> None:
        """Release the poller."""
        (self._epoll or self._selector).close()  # type: ignore[union-attr]


class Link:
    """A connection with its own stream of requests and the one that is under way."""

    __slots__ = (
        "address",
        "is_apart",
        "is_busy",
        "receive",
        "rest",
        "send",
        "sent_at",
        "socket",
        "stream",
    )

    def __init__(self, address: tuple[str, int], stream: Iterator[bytes]) -> None:
        """Connect. Raises OSError."""
        self.address = address
        self.stream = stream
        self.rest = b""
        self.sent_at = 0
        self.is_apart = False
        self.is_busy = False
        self.connect()

    def connect(self) -> None:
        """Connect, or connect anew; what was under way is forgotten."""
        self.socket = socket.create_connection(self.address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(None)
        self.receive = self.socket.recv
        self.send = self.socket.send
        self.rest = b""
        self.is_busy = False


class Tally(msgspec.Struct):
    """What came of the requests. `codes` counts all answers by HTTP status, as it stood there.

    `refused` had a good status but not the expected text; `broken` lost their connection.
    """

    codes: dict[bytes, int] = msgspec.field(default_factory=dict)
    refused: int = 0
    broken: int = 0
    good: int = 0

    @property
    def statuses(self) -> dict[str, int]:
        """All answers by HTTP status."""
        return {code.decode("ascii", "replace"): n for code, n in sorted(self.codes.items())}

    @property
    def errors(self) -> int:
        """Requests that were not done."""
        return sum(self.codes.values()) - self.good + self.broken


def answer_size(data: bytes) -> int:
    """Return the length of the answer that begins here, or -1 if its head is not complete.

    Raises ValueError for an answer without a length: the client does not read chunks.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return -1
    at = data.find(b"content-length:", 0, end)
    if at < 0:
        at = data[:end].lower().find(b"content-length:")
        if at < 0:
            raise ValueError("an answer without a length")
    stop = data.find(b"\r", at)
    return end + 4 + int(data[at + 15 : stop])


class Client:
    """Drives connections against a server. `expected` or `also` must be in each good answer's bytes.

    Time is in nanoseconds; `histogram` has only what was sent after `measure_from` and
    answered before `measure_until`. Of that, `apart` has the requests that begin with the
    bytes `apart_prefix`.
    """

    def __init__(
        self,
        address: tuple[str, int],
        streams: Sequence[Iterator[bytes]],
        *,
        others: Sequence[tuple[str, int]] = (),
        expected: bytes = b"",
        also: bytes = b"",
        apart_prefix: bytes = b"",
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        """One connection for each stream. Raises OSError if the server is not there.

        With `others` connections are dealt out to all servers in turn.
        """
        self.tally = Tally()
        self.histogram = Histogram()
        self.apart = Histogram()
        self.pacer: Pacer | None = None
        self.answered = 0
        self.dropped = 0
        self.drain_seconds = 30.0
        """How long to wait for answers when nothing more is sent."""
        self._expected = expected
        self._also = also
        self._apart_prefix = apart_prefix
        self._beside: Callable[[int], None] | None = None
        self._clock = clock
        self._poller = Poller()
        self._links: dict[int, Link] = {}
        self._idle: list[Link] = []
        for stream, place in zip(streams, itertools.cycle([address, *others]), strict=False):
            self._watch(Link(place, stream))
        self._measure_from = 0
        self._measure_until = 1 << 62

    # ── runs ──────────────────────────────────────────────────────────────────────

    def run(
        self,
        seconds: float,
        *,
        warm_up: float = 0.0,
        rate: float | None = None,
        report: Callable[[int], None] | None = None,
        beside: Callable[[int], None] | None = None,
    ) -> float:
        """Load the server, closed loop, or open loop at a rate; return the seconds measured.

        Afterwards what is under way is waited for, but not measured. `beside` is called
        with the time, again and again, at least every few milliseconds.
        """
        self._beside = beside
        start = self._clock()
        self._measure_from = start + int(warm_up * SECOND)
        end = self._measure_until = self._measure_from + int(seconds * SECOND)
        self.pacer = Pacer(rate, start) if rate else None
        self._idle = list(self._links.values())
        next_report = start + SECOND
        now = start
        while now < end and self._links:
            self._send(now)
            self._receive(self._patience(now, end), again=self.pacer is None)
            now = self._clock()
            if beside is not None:
                beside(now)
            if report is not None and now >= next_report:
                next_report += SECOND
                report(self.answered)
        if self.pacer is not None:
            self.dropped = self.pacer.dropped(min(now, end))
        self._drain()
        return (end - self._measure_from) / SECOND

    def finish_streams(self) -> None:
        """Send what the streams have, to their ends, and wait for all answers."""
        self._idle = list(self._links.values())
        self._send(self._clock())
        last = self._clock()
        while self._idle or any(link.is_busy for link in self._links.values()):
            if self._receive(1.0, again=True) or self._idle:
                last = self._clock()
                self._send(last)
            elif self._clock() - last > self.drain_seconds * SECOND:
                raise TimeoutError("the server stopped answering")

    def close(self) -> None:
        """Close all connections."""
        for number, link in self._links.items():
            self._poller.remove(number)
            link.socket.close()
        self._links.clear()
        self._poller.close()

    # ── inside ────────────────────────────────────────────────────────────────────

    def _patience(self, now: int, end: int) -> float:
        """How long to wait for answers: not past the end, the next report or intended send."""
        until = min(end, now + SECOND // 4)
        if self.pacer is not None and self._idle:
            until = min(until, self.pacer.next_at)
        if self._beside is not None:
            until = min(until, now + _BESIDE)
        return max(0, until - now) / SECOND

    def _send(self, now: int) -> None:
        """Send on idle connections what is due."""
        pacer = self.pacer
        while self._idle:
            at = now if pacer is None else pacer.take(now)
            if at is None:
                return
            self._send_next(self._idle.pop(), at)

    def _send_next(self, link: Link, at: int) -> None:
        request = next(link.stream, None)
        if request is None:
            link.is_busy = False
            return
        link.sent_at = at
        link.is_apart = request.startswith(self._apart_prefix)
        link.is_busy = True
        try:
            if link.send(request) != len(request):
                raise ConnectionError("the server does not read")
        except OSError:
            self._reconnect(link)

    def _receive(self, seconds: float, *, again: bool) -> int:
        """Take answers; with `again` send the next request at once. Return how many came."""
        clock, links, record = self._clock, self._links, self.histogram.record
        is_parted = bool(self._apart_prefix)
        measure_from, measure_until = self._measure_from, self._measure_until
        came = 0
        is_exact = self.pacer is not None
        for number in self._poller.wait(seconds, is_exact=is_exact):
            link = links[number]
            try:
                data = link.receive(_CHUNK)
                if not data:
                    raise ConnectionError("closed")
                if link.rest:
                    data = link.rest + data
                size = answer_size(data)
            except (OSError, ValueError):
                self._reconnect(link)
                continue
            if size < 0 or len(data) < size:
                link.rest = data
                continue
            link.rest = b""
            now = clock()
            came += 1
            if link.sent_at >= measure_from and now <= measure_until:
                record(now - link.sent_at)
                if is_parted and link.is_apart:
                    self.apart.record(now - link.sent_at)
            self._count(data)
            if again:
                self._send_next(link, now)
            else:
                link.is_busy = False
                self._idle.append(link)
        self.answered += came
        return came

    def _count(self, data: bytes) -> None:
        """Count an answer by its status, and whether it was a good one."""
        tally = self.tally
        code = data[9:12]
        tally.codes[code] = tally.codes.get(code, 0) + 1
        if code[:1] == b"2":
            if self._expected in data or (self._also and self._also in data):
                tally.good += 1
            else:
                tally.refused += 1

    def _watch(self, link: Link) -> None:
        number = link.socket.fileno()
        self._links[number] = link
        self._poller.add(number)

    def _reconnect(self, link: Link) -> None:
        """Replace a broken connection; give it up if the server is gone."""
        number = link.socket.fileno()
        self._poller.remove(number)
        del self._links[number]
        link.socket.close()
        self.tally.broken += link.is_busy
        try:
            link.connect()
        except OSError:
            return
        self._watch(link)
        self._idle.append(link)

    def _drain(self) -> None:
        """Wait for what is under way, for a bounded time."""
        until = time.monotonic() + self.drain_seconds
        while time.monotonic() < until and any(link.is_busy for link in self._links.values()):
            self._receive(min(_NAP, self.drain_seconds), again=False)
        self.tally.broken += sum(link.is_busy for link in self._links.values())

"""The short way: hot commands are answered inside uvicorn's protocol, everything else by Falcon.

Once the headers of a request are complete and name a hot route, its body is collected,
decoded and submitted right here, and the answer is written when its batch is done: no
scope, no task, no ASGI messages. Connections, keep-alive and all other routes stay
uvicorn's. A hot exchange stands where uvicorn keeps its cycle, so that pipelined requests
of both sorts wait their turn in one queue.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from pennyweight.delivery.http.app import GONE, headers_of, too_large
from pennyweight.delivery.http.desk import Desk
from pennyweight.delivery.http.heads import Heads, is_closing
from pennyweight.delivery.http.routes import CommandRoute, Reply, Request
from pennyweight.delivery.http.wire import problem
from pennyweight.engine.engine import Submission
from pennyweight.engine.receipts import Outcome, Receipt

HEADERS_MAX = 100
HEAD_BYTES_MAX = 64 * 1024

_NOTHING: dict[str, str] = {}
_CLOSE = (("Connection", "close"),)


class Limits:
    """What one server allows its connections, and the clock that its sweeper ticks."""

    def __init__(
        self,
        *,
        body_max: int,
        connections_max: int,
        keep_alive_seconds: float,
        receive_seconds: float,
        stall_seconds: float,
    ) -> None:
        """`receive_seconds` bounds one request from its first to its last byte."""
        self.body_max = body_max
        self.connections_max = connections_max
        self.keep_alive_seconds = keep_alive_seconds
        self.receive_seconds = receive_seconds
        self.stall_seconds = stall_seconds
        self.now = 0.0
        """The loop's time in seconds, as of the last sweep."""


class HotRoute:
    """A hot route, and how often it answered with which status."""

    __slots__ = ("counts", "face", "method", "path", "render", "route")

    def __init__(self, route: CommandRoute, counts: dict[int, int]) -> None:
        """`counts` is the metrics' own."""
        self.route = route
        self.face = route.face
        self.method = route.method
        self.path = route.path
        self.render = route.render
        self.counts = counts


class _Exchange:
    """One hot request on its way. Has the face of uvicorn's cycle where that looks at it.

    No slots: most of its attributes mostly keep the values they have here.
    """

    body: bytes | bytearray = b""
    more_body = True
    keep_alive = True
    is_started = False
    response_complete = False
    disconnected = False
    submissions: Sequence[Submission] = ()
    request: Request

    def __init__(self, protocol: "ShortWay", hot: HotRoute, headers: dict[str, str]) -> None:
        self.protocol = protocol
        self.hot = hot
        self.headers = headers

    def start(self) -> None:
        """It is this request's turn."""
        self.is_started = True
        protocol = self.protocol
        headers = self.headers
        refused = protocol.desk.guard.check(self.hot.face, is_write=True, headers=headers)
        if refused is not None:
            self.answer(refused)
            return
        length = headers.get("content-length")
        body_max = protocol.limits.body_max
        if (length is not None and int(length) > body_max) or len(self.body) > body_max:
            self.answer(too_large(body_max))
        elif not self.more_body:
            self.submit()
        elif headers.get("expect", "").lower() == "100-continue":
            protocol.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def receive(self, piece: bytes) -> None:
        """Take a piece of the body; more than the limit is answered and no longer kept."""
        body_max = self.protocol.limits.body_max
        if not self.body:
            self.body = piece
        elif not self.response_complete and len(self.body) <= body_max:
            if self.body.__class__ is bytes:
                self.body = bytearray(self.body)
            self.body += piece
        if len(self.body) > body_max and self.is_started:
            self.answer(too_large(body_max))

    def submit(self) -> None:
        """Hand the request to the desk."""
        hot = self.hot
        request = Request(hot.method, hot.path, bytes(self.body), _NOTHING, _NOTHING, self.headers)
        self.request = request
        self.submissions = self.protocol.desk.command(hot.route, request, self.answer, self.settle)

    def settle(self, outcome: Outcome) -> None:
        """Answer the outcome of the one command; the ticket of its submission."""
        if self.disconnected:
            return
        desk = self.protocol.desk
        if outcome.__class__ is not Receipt:
            self.answer(desk.render(self.hot.route, self.request, [outcome]))
            return
        try:
            reply = self.hot.render([outcome], self.request)
        except Exception as error:  # noqa: BLE001 - a fault of ours is answered with a 500
            reply = desk.failed(self.request, error)
        self.answer(reply)

    def answer(self, reply: Reply) -> None:
        """Write the reply, and let the next request have its turn."""
        if self.response_complete or self.disconnected:
            return
        self.response_complete = True
        self.submissions = ()  # their ticket is ours: no cycle is left for the collector
        counts = self.hot.counts
        counts[reply.status] = counts.get(reply.status, 0) + 1
        self.protocol.finish(reply, self)

    def leave(self) -> None:
        """The client is gone: take back what was not decided yet."""
        self.disconnected = True
        for submission in self.submissions:
            submission.is_dropped = True


class ShortWay(HttpToolsProtocol):
    """uvicorn's protocol with the hot routes answered in place. Made ready by `short_way`."""

    desk: Desk
    limits: Limits
    heads: Heads
    hot: dict[bytes, dict[bytes, HotRoute]]
    """Hot routes by path and method."""

    cycle: Any
    """The request parsed last: uvicorn's cycle, or an exchange; None before the first."""
    parser: Any
    flow: Any
    transport: asyncio.Transport

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """See `HttpToolsProtocol`."""
        super().__init__(*arguments, **named)
        self.active: Any = None
        self._is_receiving = False
        self._is_in_head = False
        self._is_ignored = False
        self._head_bytes = 0
        self._stalled_since = 0.0
        self._since = self.limits.now

    # ── the connection ────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or turn it away when there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections_max:
            self._refuse(
                problem(503, "too_many_connections", "too many connections", headers=_CLOSE)
            )

    def connection_lost(self, exc: Exception | None) -> None:
        """Take back what the client asked for and nobody decided yet."""
        waiting = [cycle for cycle, _ in self.pipeline]
        self.pipeline.clear()
        for cycle in (self.active, self.cycle, *waiting):
            if cycle is not None and not cycle.response_complete:
                _leave(cycle)
        if self.cycle.__class__ is _Exchange:
            self.cycle = None
        self.active = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; what it cannot read ends the connection."""
        if self.parser is None:
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            if not self.transport.is_closing():
                self._refuse(_unreadable(error))
            return
        if self._is_in_head:
            # What began in this very piece, perhaps behind whole requests, counts from the next.
            self._head_bytes = 0 if self._head_bytes < 0 else self._head_bytes + len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self._refuse(_head_too_large())

    def shutdown(self) -> None:
        """The server is stopping: finish what is under way, then close."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.close()
        else:
            cycle.keep_alive = False

    def sweep(self) -> None:
        """Now and then: end connections that idle, send too slowly, or do not read."""
        limits = self.limits
        age = limits.now - self._since
        if self.flow.write_paused:
            if not self._stalled_since:
                self._stalled_since = limits.now
            elif limits.now - self._stalled_since > limits.stall_seconds:
                self.transport.abort()
            return
        self._stalled_since = 0.0
        if self._is_receiving:
            if age > limits.receive_seconds and not self.flow.read_paused:
                self._refuse(
                    problem(408, "request_timeout", "the request took too long", headers=_CLOSE)
                )
        elif age > limits.keep_alive_seconds and (
            self.cycle is None or (self.cycle.response_complete and not self.pipeline)
        ):
            self.transport.close()

    # ── the parser's calls ────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        """See `HttpToolsProtocol`; the scope is made only where it is needed."""
        self.url = b""
        self.headers = []
        self._is_receiving = self._is_in_head = True
        self._head_bytes = -1
        self._since = self.limits.now

    def on_header(self, name: bytes, value: bytes) -> None:
        """See `HttpToolsProtocol`."""
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Take a hot request the short way, everything else uvicorn's."""
        self._is_in_head = False
        parser = self.parser
        if len(self.headers) > HEADERS_MAX:
            self._refuse(_head_too_large())
            raise ValueError("too many headers")
        self._is_ignored = parser.should_upgrade() or self.transport.is_closing()
        if self._is_ignored:
            return  # `_ignore_upgrade` begins it again; behind a last answer nothing is heard
        by_method = self.hot.get(self.url)
        hot = None if by_method is None else by_method.get(parser.get_method())
        if hot is None:
            self._take_the_long_way()
            return
        headers = headers_of(self.headers)
        keep_alive = parser.should_keep_alive()
        if keep_alive and "connection" in headers:
            keep_alive = parser.get_http_version() != "1.0"
        exchange = _Exchange(self, hot, headers)
        if not keep_alive:
            exchange.keep_alive = False
        before = self.cycle
        self.cycle = exchange
        if before is None or before.response_complete:
            self.active = exchange
            exchange.start()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((exchange, None))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        """See `HttpToolsProtocol`."""
        if self._is_ignored:
            return
        cycle: Any = self.cycle
        if cycle.__class__ is not _Exchange:
            super().on_body(body)
        elif cycle.body or len(body) > self.limits.body_max:
            cycle.receive(body)
        else:
            cycle.body = body

    def on_message_complete(self) -> None:
        """See `HttpToolsProtocol`."""
        if self._is_ignored:
            return
        self._is_receiving = False
        cycle: Any = self.cycle
        if cycle.__class__ is not _Exchange:
            super().on_message_complete()
            return
        cycle.more_body = False
        if cycle.is_started and not cycle.response_complete:
            cycle.submit()

    def on_response_complete(self) -> None:
        """Let the next pipelined request have its turn."""
        self.active = None
        if self.transport.is_closing():
            return
        self._since = self.limits.now
        if self.pipeline:
            self.loop.call_soon(self._start_next)
        elif self.flow.read_paused:
            self.flow.resume_reading()

    def _start_next(self) -> None:
        if self.pipeline and self.active is None and not self.transport.is_closing():
            cycle, app = self.pipeline.pop()
            if not self.pipeline:
                self.flow.resume_reading()
            self._start_asgi_task(cycle, app)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Start either sort of request."""
        self.active = cycle
        if cycle.__class__ is _Exchange:
            cycle.start()
        else:
            super()._start_asgi_task(cycle, app)

    def _take_the_long_way(self) -> None:
        """Make the scope that uvicorn makes for every request, and go on as it does."""
        self.headers = [(name.lower(), value) for name, value in self.headers]
        self.expect_100_continue = any(
            name == b"expect" and value.lower() == b"100-continue" for name, value in self.headers
        )
        self.scope = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},  # type: ignore[typeddict-item]
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,  # type: ignore[typeddict-item]
            "root_path": self.root_path,
            "headers": self.headers,
            "state": {},
        }
        super().on_headers_complete()

    # ── writing ───────────────────────────────────────────────────────────────────

    def finish(self, reply: Reply, exchange: _Exchange) -> None:
        """Write a whole reply, byte for byte as the long way does, and go on."""
        default_headers = self.server_state.default_headers
        is_last = not exchange.keep_alive
        self.transport.write(self.heads.message(reply, default_headers, is_last=is_last))
        if is_last or (reply.headers and is_closing(reply)):
            exchange.keep_alive = False
            self.transport.close()
        if self.pipeline or self.flow.read_paused:
            self.on_response_complete()
        else:
            self.active = None
            self._since = self.limits.now

    def _refuse(self, reply: Reply) -> None:
        """Answer outside of any exchange, and close."""
        active = self.active
        is_silent = active is not None and getattr(active, "response_started", False)
        if not is_silent:
            default_headers = self.server_state.default_headers
            self.transport.write(self.heads.message(reply, default_headers, is_last=True))
        self.transport.close()

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Begin the request again without its wish for another protocol.

        The parser stops at such a head and would leave out the body.
        """
        if self.parser.get_method() == b"CONNECT":
            self._refuse(problem(405, "method_not_allowed", "no tunnels", headers=_CLOSE))
            return
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name.lower() not in {b"upgrade", b"connection"}:
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*head, b"\r\n", rest]))


def _leave(cycle: Any) -> None:
    """Tell either sort of request that its client is gone."""
    if cycle.__class__ is _Exchange:
        cycle.leave()
        return
    cycle.disconnected = True
    cycle.message_event.set()
    gone: Callable[[], None] | None = cycle.scope.get(GONE)
    if gone is not None:
        gone()


def _unreadable(error: Exception) -> Reply:
    return problem(400, "request_malformed", f"this is not HTTP: {error}"[:200], headers=_CLOSE)


def _head_too_large() -> Reply:
    return problem(431, "headers_too_large", "the headers are too large", headers=_CLOSE)


def short_way(desk: Desk, routes: Sequence[Any], limits: Limits) -> type[ShortWay]:
    """Return the protocol class of one server."""
    hot: dict[bytes, dict[bytes, HotRoute]] = {}
    for route in routes:
        if isinstance(route, CommandRoute) and route.is_hot:
            found = HotRoute(route, desk.metrics.counts_of(route))
            hot.setdefault(route.path.encode(), {})[route.method.encode()] = found
    members = {"desk": desk, "limits": limits, "heads": Heads(), "hot": hot}
    return type("BoundShortWay", (ShortWay,), members)

"""Both trading posts of the loans, true to the wire, for demos and tests: prices out, orders in.

The prices are those of `pricewalk`, what becomes of orders is in `trading`. Here are the
servers: plain, so that they can also answer too late, twice, or not at all.
"""

import asyncio
import contextlib
import http
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import msgspec

from pennyweight.links.errors import LinkError
from pennyweight.products.loans.shared import MARKETS, Market
from pennyweight.simulators.looping import LoopThread
from pennyweight.simulators.pricewalk import PriceWalk
from pennyweight.simulators.trading import BadOrder, Odds, Post

ORDER_PATHS: dict[Market, str] = {"mos_espa": "/orders", "black_spire": "/market/orders"}
BODY_LENGTH_MAX = 65_536
_HANG_UP = struct.pack("ii", 1, 0)
"""A socket that lingers like this is reset when it is closed."""

Publish = Callable[[Market, bytes], object]
"""Is given each message of prices; may raise LinkError and OSError, which are counted."""


class Posts:
    """Both posts, listening; `async with` in a loop, `with` in a thread of their own.

    They may be closed and opened again: the order books stay, and the ports. Every
    `interval_seconds` the price takes a step that is published; 0 leaves it to `tick`.
    """

    def __init__(
        self,
        *,
        seed: int = 1,
        odds: Odds | Mapping[Market, Odds] | None = None,
        walk: PriceWalk | None = None,
        publish: Publish | None = None,
        interval_seconds: float = 1.0,
        host: str = "127.0.0.1",
        ports: Mapping[Market, int] | None = None,
    ) -> None:
        """`odds` are of both posts, or of each; `ports` are free ones by default."""
        self.walk = walk or PriceWalk(seed)
        found = odds or Odds()
        moods = {market: found if isinstance(found, Odds) else found[market] for market in MARKETS}
        self.posts = {market: Post(market, self.walk, moods[market], seed) for market in MARKETS}
        self.published = self.unpublished = 0
        """How many messages of prices went out, and how many did not."""
        self.problem = ""
        """Why the last message did not go out; "" if it did."""
        self._publish = publish
        self._interval_seconds = interval_seconds
        self._host = host
        self._ports: dict[Market, int] = {
            market: (ports or {}).get(market, 0) for market in MARKETS
        }
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread: LoopThread | None = None
        self._ticking = threading.Lock()

    @property
    def urls(self) -> dict[Market, str]:
        """Where they listen."""
        return {market: f"http://{self._host}:{port}" for market, port in self._ports.items()}

    def __getitem__(self, market: Market) -> Post:
        """Return one of them."""
        return self.posts[market]

    def tick(self) -> None:
        """Let the price take one step, and publish it; in any thread."""
        with self._ticking:
            self._tell(self._step())

    # ── open and close ────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Listen, and begin to quote. Raises OSError where a port is taken."""
        messages = self._step() if self._interval_seconds or not self.walk.levels else []
        try:
            for market, post in self.posts.items():
                server = await asyncio.start_server(
                    self._serving(post), self._host, self._ports[market]
                )
                self._servers.append(server)
                self._ports[market] = server.sockets[0].getsockname()[1]
        except BaseException:
            await self.stop()
            raise
        if self._interval_seconds:
            self._keep(asyncio.create_task(self._quote(messages)))

    async def stop(self) -> None:
        """Close all connections, and no longer listen."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def open(self) -> None:
        """Start in a thread of their own."""
        thread = LoopThread("posts")
        try:
            thread.do(self.start())
        except BaseException:
            thread.close()
            raise
        self._thread = thread

    def close(self) -> None:
        """Stop, and end the thread."""
        if self._thread is not None:
            self._thread.do(self.stop())
            self._thread.close()
            self._thread = None

    async def __aenter__(self) -> Self:
        """See `start`."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """See `stop`."""
        await self.stop()

    def __enter__(self) -> Self:
        """See `open`."""
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `close`."""
        self.close()

    # ── prices ────────────────────────────────────────────────────────────────────

    def _step(self) -> list[tuple[Market, bytes]]:
        return self.walk.tick(time.time_ns() // 1_000_000)

    def _tell(self, messages: Sequence[tuple[Market, bytes]]) -> None:
        for market, body in messages:
            if self._publish is None:
                continue
            try:
                self._publish(market, body)
            except (LinkError, OSError) as error:
                self.unpublished += 1
                self.problem = str(error)
            else:
                self.published += 1
                self.problem = ""

    async def _quote(self, messages: list[tuple[Market, bytes]]) -> None:
        """Publish a first step, and then one after each interval; late ones are left out."""
        due = time.monotonic()
        while True:
            await asyncio.to_thread(self._tell, messages)
            due = max(due + self._interval_seconds, time.monotonic())
            await asyncio.sleep(due - time.monotonic())
            messages = self._step()

    # ── orders ────────────────────────────────────────────────────────────────────

    def _keep(self, task: "asyncio.Task[None]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _serving(self, post: Post) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._keep(asyncio.get_running_loop().create_task(_serve(post, reader, writer)))

        return met


async def _serve(post: Post, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer what comes on one connection, until somebody ends it."""
    try:
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, ValueError):
            while await _answer(post, reader, writer):
                await writer.drain()
    finally:
        writer.close()


async def _answer(post: Post, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request, and return whether there may be another. Raises EOFError at the end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    method, target, *_ = head.partition("\r\n")[0].split(" ")
    lines = [line.partition(":") for line in head.split("\r\n")[1:]]
    headers = {name.lower(): value.strip() for name, _, value in lines}
    length = int(headers.get("content-length", "0"))
    if length > BODY_LENGTH_MAX or "transfer-encoding" in headers:
        _write(writer, 413, post.failure("the body is too long, or of unknown length"))
        return False
    body = await reader.readexactly(length)
    if (method, target) == ("POST", ORDER_PATHS[post.market]):
        return await _deal(post, body, writer)
    if (method, target) == ("GET", "/health"):
        _write(writer, 200, b'{"status":"ok"}')
    elif (method, target) == ("GET", "/executed"):
        _write(writer, 200, msgspec.json.encode(post.executed))
    else:
        _write(writer, 404, post.failure("there is nothing here"))
    return True


async def _deal(post: Post, body: bytes, writer: asyncio.StreamWriter) -> bool:
    """Answer an order as its fate wants it; return whether the connection goes on."""
    try:
        order = post.read(body)
    except BadOrder as bad:
        _write(writer, 400, post.failure(str(bad)))
        return True
    fate, is_failing = post.fate_of(order.request_id)
    post.fated[fate] += 1
    answer = b""
    if fate not in {"error_before", "reset_before"}:
        answer = post.carry_out(order, is_failing=is_failing, at=time.time_ns() // 1_000)
    if fate in {"reset_before", "reset_after"}:
        _reset(writer)
        return False
    if fate in {"error_before", "error_after"}:
        _write(writer, 503, b'{"message":"Service Unavailable"}')
        return True
    if fate in {"slow", "hung"}:
        odds = post.odds
        await asyncio.sleep(odds.slow_seconds if fate == "slow" else odds.hang_seconds)
    for _ in range(2 if fate == "doubled" else 1):
        _write(writer, 200, answer)
    return True


def _write(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Cut a connection off, so that the other end reads a reset and not an end."""
    number = writer.get_extra_info("socket").fileno()
    with socket.socket(fileno=os.dup(number)) as same:
        same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HANG_UP)
    writer.transport.abort()

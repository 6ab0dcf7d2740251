"""The HTTP server: uvicorn on uvloop and httptools, with both ways of answering.

The roof builds a book and the faces' routes, and calls

    serve(book, routes, guard, metrics, ServerConfig(host=..., port=...), on_ready=print_it)

which blocks until SIGTERM or SIGINT, drains, stops the book and returns. `on_ready` is
called once with the address, `http://HOST:PORT`. The server starts the book and the agents,
adds the operators' routes, and prints nothing.
"""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import msgspec
import uvicorn

from pennyweight.delivery.http import openapi, operations
from pennyweight.delivery.http.app import build_app
from pennyweight.delivery.http.desk import Desk
from pennyweight.delivery.http.guard import Guard
from pennyweight.delivery.http.metrics import Metrics
from pennyweight.delivery.http.protocol import Limits, short_way
from pennyweight.delivery.http.routes import Route
from pennyweight.runtime.book import Book
from pennyweight.runtime.member import Agent

READERS = 4
COLLECT_SECONDS = 1.0
FULL_COLLECTION_EVERY = 300
"""Young garbage is collected every second, all of it once in so many seconds."""


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen, and every bound. Port 0 takes a free one.

    `keep_alive_seconds` bounds how long a connection may idle, `receive_seconds` one
    request from its first to its last byte, `stall_seconds` a client that does not read;
    they are looked at every `sweep_seconds`.
    `is_garbage_ours` takes garbage collection into the server's own hands; for a process
    that does nothing else. `is_one_of_many` shares host and port with other processes: the
    kernel deals the connections out.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    body_max: int = 1 << 20
    connections_max: int = 4_096
    backlog: int = 2_048
    keep_alive_seconds: float = 75
    receive_seconds: float = 20
    stall_seconds: float = 60
    sweep_seconds: float = 1
    shutdown_seconds: int = 10
    is_garbage_ours: bool = False
    is_one_of_many: bool = False


class Server(uvicorn.Server):
    """uvicorn's server around one book. `run` blocks, `stop` may be called from any thread."""

    def __init__(
        self,
        book: Book,
        routes: Iterable[Route],
        guard: Guard,
        metrics: Metrics,
        settings: ServerConfig,
        *,
        on_ready: Callable[[str], object] = lambda _: None,
        neighbours: operations.Neighbours = operations.no_neighbours,
        agents: Sequence[Agent] = (),
    ) -> None:
        """See the module's docstring.

        `agents` run while the book is served: started once it listens, stopped before it.
        """
        self.book = book
        self.settings = settings
        self.address = ""
        """`http://HOST:PORT`, once the server listens."""
        self.is_ready = threading.Event()
        self._on_ready = on_ready
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="pennyweight-reader")
        self._limits = Limits(
            body_max=settings.body_max,
            connections_max=settings.connections_max,
            keep_alive_seconds=settings.keep_alive_seconds,
            receive_seconds=settings.receive_seconds,
            stall_seconds=settings.stall_seconds,
        )
        self._agents: list[Agent] = [*agents]
        self._chores: list[asyncio.Task[None]] = []
        desk = Desk(book, guard, metrics)
        metrics.watch(book)
        table = [*routes, *operations.routes(book, metrics, neighbours)]
        table += openapi.routes(table)
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        super().__init__(
            uvicorn.Config(
                build_app(desk, table, self._readers, body_max=settings.body_max),
                host=settings.host,
                port=settings.port,
                loop="uvloop",
                http=short_way(desk, table, self._limits),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=settings.backlog,
                timeout_keep_alive=int(settings.keep_alive_seconds),
                timeout_graceful_shutdown=settings.shutdown_seconds,
            )
        )

    def stop(self) -> None:
        """Begin to drain."""
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:
        """Start the book, listen, and say where."""
        self.book.start(asyncio.get_running_loop().call_soon_threadsafe)
        self._limits.now = asyncio.get_running_loop().time()
        try:
            if self.settings.is_one_of_many:
                sockets = [_shared_socket(self.settings)]
            await super().startup(sockets)
        except SystemExit:  # the address cannot be had; a book may need this loop for its end
            await asyncio.get_running_loop().run_in_executor(None, self.book.stop)
            raise
        for agent in self._agents:
            agent.start()
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        self.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._chores.append(asyncio.create_task(self._sweep()))
        if self.settings.is_garbage_ours:
            gc.collect()
            gc.freeze()
            gc.disable()
            self._chores.append(asyncio.create_task(_collect()))
        await self.on_tick(0)
        self.is_ready.set()
        self._on_ready(self.address)

    async def shutdown(self, sockets: Any = None) -> None:
        """Answer what is under way, then end the book's thread."""
        await super().shutdown(sockets)
        for chore in self._chores:
            chore.cancel()
        for agent in self._agents:
            await asyncio.get_running_loop().run_in_executor(None, agent.stop)
        seconds = self.settings.shutdown_seconds
        await asyncio.get_running_loop().run_in_executor(None, self.book.stop, seconds)
        self._readers.shutdown(wait=False, cancel_futures=True)

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._limits.now = loop.time()
            await asyncio.sleep(self.settings.sweep_seconds)
            for connection in list(self.server_state.connections):
                connection.sweep()  # type: ignore[union-attr]

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Drain on SIGTERM and SIGINT, and return as if asked to; uvicorn would die of them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            number: signal.signal(number, self._signalled)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, _: FrameType | None) -> None:
        if self.should_exit and number == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True


def _shared_socket(settings: ServerConfig) -> socket.socket:
    """Bind a socket that other processes may bind to as well. Raises SystemExit as uvicorn does."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM
        )[0]
        shared = socket.socket(family, kind)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(place)
    except OSError:
        raise SystemExit(1) from None
    return shared


async def _collect() -> None:
    """Collect garbage when the loop says so, not in the middle of a batch."""
    seconds = 0
    while True:
        await asyncio.sleep(COLLECT_SECONDS)
        seconds += 1
        gc.collect(2 if seconds % FULL_COLLECTION_EVERY == 0 else 0)


def serve(
    book: Book,
    routes: Iterable[Route],
    guard: Guard,
    metrics: Metrics,
    settings: ServerConfig,
    *,
    on_ready: Callable[[str], object],
    neighbours: operations.Neighbours = operations.no_neighbours,
    agents: Sequence[Agent] = (),
) -> None:
    """Serve until a signal says stop. Raises SystemExit when the address cannot be had."""
    Server(
        book,
        routes,
        guard,
        metrics,
        settings,
        on_ready=on_ready,
        neighbours=neighbours,
        agents=agents,
    ).run()

"""Several processes that speak HTTP on one port, and one that owns the book: `serve --workers N`.

The parent owns the book, or shares it with other instances, and speaks no HTTP. Each worker
is `python -m pennyweight.workers`: a front that listens on the same port as the others, so
that the kernel deals connections out among them. Parent and worker talk by lines of JSON
over the worker's standard streams: first what to serve, then once a second what the worker
counted, and what all of them counted. A worker whose parent ends, ends.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import structlog
import uvloop

from pennyweight.config import Config, ConfigError
from pennyweight.delivery.http.metrics import Metrics, Tallies
from pennyweight.serving import guard_of, serve_faces, write_logs
from pennyweight.sharing import Opened, open_alone, open_front, open_shared
from pennyweight.stores.places import Place, is_database, read_place

TELL_SECONDS = 1.0
STOP_SECONDS = 15.0
ORPHAN_SECONDS = 5.0
"""How long a worker whose parent is gone waits for those who wait at it."""

RESTART_SECONDS = 1.0

_LINE_BYTES_MAX = 1 << 24

log = structlog.get_logger(__name__)


class Order(msgspec.Struct):
    """The first line to a worker: what it serves, and where the owner is ("" for its lease)."""

    place: str
    is_url: bool
    config: Config
    address: str
    secret: str


class Word(msgspec.Struct, omit_defaults=True):
    """A line of a worker: where it listens, why it cannot, or what it counted."""

    ready: str = ""
    error: str = ""
    tallies: Tallies | None = None


class News(msgspec.Struct):
    """A later line to a worker: `/metrics` of all of them."""

    metrics: str


# ── the parent ────────────────────────────────────────────────────────────────────


def serve(place: Place, config: Config, *, is_clock_accepted: bool = False) -> int:
    """Serve a book by several processes until a signal says stop; see `serving.serve`."""
    with tempfile.TemporaryDirectory(prefix="pennyweight-") as folder, _reserved(config) as port:
        config = msgspec.structs.replace(
            config, server=msgspec.structs.replace(config.server, port=port)
        )
        if isinstance(place, Path):
            guard_of(place, config)  # before a book is begun that nobody may ask
            address = f"unix:{folder}/owner"
            opening = open_alone(place, config, is_clock_accepted=is_clock_accepted, listen=address)
        else:
            address = ""
            opening = open_shared(place, config, is_clock_accepted=is_clock_accepted)
        with opening as opened:
            order = Order(str(place), is_database(place), config, address, opened.secret.hex())
            crew = _Crew(opened, order, config.server.workers)
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(crew.run())
            if crew.error:
                raise ConfigError(crew.error)
            return 1 if opened.book.failure else 0


@contextlib.contextmanager
def _reserved(config: Config) -> Any:
    """Hold the port that the workers will share, and give its number. Raises ConfigError."""
    host, port = config.server.host, config.server.port
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as taken:
            with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
                probe.connect(place)
                raise ConfigError(f"cannot listen on {host}:{port}: in use, or not ours")
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            taken.bind(place)
            yield taken.getsockname()[1]
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None


class _Crew:
    """The workers, as their parent sees them."""

    def __init__(self, opened: Opened, order: Order, count: int) -> None:
        self.error = ""
        """Why the workers cannot serve."""
        self._opened = opened
        self._order = msgspec.json.encode(order) + b"\n"
        self._count = count
        self._over = asyncio.Event()
        self._ready: set[int] = set()
        self._is_said = False

    async def run(self) -> None:
        """Own the book and keep the workers alive until a signal says stop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._over.set)
        book, agents = self._opened.book, self._opened.agents
        self._opened.metrics.watch(book)
        book.start(loop.call_soon_threadsafe)
        try:
            for agent in agents:
                agent.start()
            async with asyncio.TaskGroup() as group:
                for worker in range(self._count):
                    group.create_task(self._keep(worker))
        finally:
            for agent in agents:
                await loop.run_in_executor(None, agent.stop)
            await loop.run_in_executor(None, book.stop, STOP_SECONDS)

    async def _keep(self, worker: int) -> None:
        """Run a worker, and the next in its place when it ends before its time."""
        while not self._over.is_set():
            await self._run(worker)
            self._opened.metrics.retire(worker)
            if not self._over.is_set():
                log.error("a worker ended; another begins", worker=worker)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), RESTART_SECONDS)

    async def _run(self, worker: int) -> None:
        """Run one process of a worker until it ends, or is to end."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "pennyweight.workers",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES_MAX,
            start_new_session=True,  # the terminal's ^C is the parent's; it tells the workers
        )
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("a worker has no streams")
        process.stdin.write(self._order)
        listening = asyncio.create_task(self._listen(worker, process.stdout))
        telling = asyncio.create_task(self._tell(process.stdin))
        ending = asyncio.create_task(self._over.wait())
        waiting = asyncio.create_task(process.wait())
        await asyncio.wait({ending, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(waiting, STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        ending.cancel()
        telling.cancel()
        await listening
        self._ready.discard(worker)

    async def _listen(self, worker: int, stream: asyncio.StreamReader) -> None:
        """Hear what a worker says, to its end."""
        decoder = msgspec.json.Decoder(Word)
        async for line in stream:
            word = decoder.decode(line)
            if word.tallies is not None:
                self._opened.metrics.adopt(worker, word.tallies)
            if word.error:
                self.error = word.error
                self._over.set()
            if word.ready:
                self._ready.add(worker)
                if len(self._ready) == self._count and not self._is_said:
                    self._is_said = True
                    print(f"ready {word.ready}", flush=True)  # noqa: T201 - scripts wait for it

    async def _tell(self, stream: asyncio.StreamWriter) -> None:
        """Tell a worker what all have counted, once a second."""
        with contextlib.suppress(ConnectionError):
            while True:
                await asyncio.sleep(TELL_SECONDS)
                news = News(self._opened.metrics.text().decode())
                stream.write(msgspec.json.encode(news) + b"\n")
                await stream.drain()


# ── a worker ──────────────────────────────────────────────────────────────────────


class _WorkerMetrics(Metrics):
    """Counts for the parent, and shows what the parent says that all have counted."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = b""

    def text(self) -> bytes:
        return self.shown or super().text()


def main() -> int:
    """Serve what the first line of standard input orders, until told to stop."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    write_logs(order.config.log)
    place: Place = read_place(order.place) if order.is_url else Path(order.place)
    metrics = _WorkerMetrics()
    try:
        with open_front(
            place, order.config, address=order.address, secret=bytes.fromhex(order.secret)
        ) as opened:
            serve_faces(
                place,
                order.config,
                msgspec.structs.replace(opened, metrics=metrics),
                on_ready=lambda address: _say(Word(ready=address)),
                is_one_of_many=True,
                stopped=lambda stop: _attend(stop, metrics),
            )
    except ConfigError as error:
        _say(Word(error=str(error)))
        return 1
    return 0


def _attend(stop: Callable[[], object], metrics: _WorkerMetrics) -> None:
    """Listen to the parent, and tell it what was counted, in threads of their own."""
    threading.Thread(target=_hear, args=(stop, metrics), daemon=True).start()
    threading.Thread(target=_report, args=(metrics,), daemon=True).start()


def _hear(stop: Callable[[], object], metrics: _WorkerMetrics) -> None:
    """Take the parent's news; its end is ours."""
    decoder = msgspec.json.Decoder(News)
    for line in sys.stdin.buffer:
        metrics.shown = decoder.decode(line).metrics.encode()
    stop()
    threading.Event().wait(ORPHAN_SECONDS)
    os._exit(1)


def _report(metrics: _WorkerMetrics) -> None:
    """Tell the parent once a second what was counted."""
    while True:
        threading.Event().wait(TELL_SECONDS)
        _say(Word(tallies=metrics.tallies()))


def _say(word: Word) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # a thread still reads standard input, and Python's own end would trip over it

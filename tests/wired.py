"""Both ends of the wire between fronts and owner, for tests: on loops of their own threads.

As a program it is an owner that can be killed: `wired.py FOLDER ADDRESS`, FOLDER "-" for a
book in memory. It prints the address as bound.

As a pytest plugin (`-p wired`) it sends what the stages of `scenarios` execute through a
front and over a socket.
"""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pennyweight import assemble  # for all products
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Head
from pennyweight.engine.rebuild import known_commands
from pennyweight.engine.receipts import Outcome
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.commands import Command
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.frames import by_name
from pennyweight.runtime.front import Front
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.listener import Listener
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

SECRET = b"what fronts and owner share"
WAIT_SECONDS = 20


def commands() -> dict[str, type[Command]]:
    """Return all commands of ours, and those of tests that are called otherwise."""
    known = known_commands()
    ours = [kind for kind in known if kind.__module__.startswith("pennyweight.")]
    return {f"{kind.product}.{kind.name}": kind for kind in known} | by_name(ours)


class Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, what: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(WAIT_SECONDS)

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async def call() -> Any:
            return function(*arguments)

        return self.run(call())

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(WAIT_SECONDS)
        self.loop.close()


class Owner:
    """A book in memory and its listener."""

    def __init__(self, *, secret: bytes = SECRET, book: str = "main", **settings: Any) -> None:
        self.loop = Loop()
        self.store = MemoryStore(Head(book=book, incarnation="first"))
        clock = ClockGuard()
        engine = open_engine(self.store, now=clock.now(), **settings)
        self.book = ThreadedBook(engine, self.store, clock)
        self.book.start(self.loop.loop.call_soon_threadsafe)
        self.listener = Listener(
            self.book, secret=secret, commands=commands(), figures=engine.cache.figures
        )
        self.address = self.loop.run(self.listener.start("127.0.0.1:0"))

    def close(self) -> None:
        self.loop.run(self.listener.stop())
        self.book.stop(WAIT_SECONDS)
        self.loop.close()


class Waiting:
    """A ticket that can be waited for. It counts how often it was called."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self._is_there = threading.Event()

    def __call__(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._is_there.set()

    def outcome(self) -> Outcome:
        assert self._is_there.wait(WAIT_SECONDS)
        assert len(self.outcomes) == 1
        return self.outcomes[0]


class Asking:
    """A front, and who asks through it. `address` is what it finds."""

    def __init__(
        self,
        address: str | None,
        *,
        secret: bytes = SECRET,
        book: str = "main",
        hold_seconds: float = 10.0,
        queue_max: int = 20_000,
        load_assets: Callable[[], dict[str, Asset]] = dict,
        load_asset: Callable[[str], Asset | None] = lambda _: None,
    ) -> None:
        self.address = address
        self.loop = Loop()
        self.front = Front(
            lambda: self.address,
            secret=secret,
            book=book,
            commands=commands(),
            load_assets=load_assets,
            load_asset=load_asset,
            hold_seconds=hold_seconds,
            queue_max=queue_max,
        )
        self.front.start(self.loop.loop)

    def submit_all(self, submissions: list[Submission]) -> list[Waiting]:
        """Submit in one turn of the loop."""
        waits = [Waiting() for _ in submissions]

        def submit() -> None:
            for submission, wait in zip(submissions, waits, strict=True):
                submission.ticket = wait
                self.front.submit(submission)

        self.loop.do(submit)
        return waits

    def submit(self, command: Command, key: str = "", **options: Any) -> Waiting:
        return self.submit_all([Submission(command, key=key, **options)])[0]

    def execute(self, command: Command, key: str = "", **options: Any) -> Outcome:
        return self.submit(command, key, **options).outcome()

    def close(self) -> None:
        self.front.stop(0)
        self.loop.close()


def until(is_so: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
    """Wait for something to become true."""
    waiting = threading.Event()
    for _ in range(int(seconds * 100)):
        if is_so():
            return
        waiting.wait(0.01)
    raise AssertionError(f"not within {seconds} seconds")


# ── an owner that can be killed ───────────────────────────────────────────────────


@contextmanager
def owner_process(folder: Path | str = "-", address: str = "127.0.0.1:0") -> Iterator[Any]:
    """An owner in a process of its own; whoever leaves kills it."""
    process = subprocess.Popen(
        [sys.executable, __file__, str(folder), address], stdout=subprocess.PIPE, text=True
    )
    try:
        process.address = process.stdout.readline().strip()  # type: ignore[attr-defined, union-attr]
        assert process.address  # type: ignore[attr-defined]
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]


async def _own(folder: str, address: str) -> None:
    in_memory = MemoryStore(Head(book="main", incarnation="first"))
    store = in_memory if folder == "-" else assemble.open_store(Path(folder))
    clock = ClockGuard()
    engine = open_engine(store, now=clock.now())
    book = ThreadedBook(engine, store, clock)
    loop = asyncio.get_running_loop()
    book.start(loop.call_soon_threadsafe)
    listener = Listener(book, secret=SECRET, commands=commands(), figures=engine.cache.figures)
    over = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, over.set)
    print(await listener.start(address), flush=True)
    await over.wait()
    await loop.run_in_executor(None, book.stop)
    await listener.stop()
    store.close()


# ── scenarios over the wire ───────────────────────────────────────────────────────


class _Door:
    """What a listener sees of a book without a thread: one batch for each turn of the loop."""

    def __init__(self, book: InlineBook, loop: Loop) -> None:
        self.engine = book.engine
        self._book = book
        self._loop = loop
        self._waiting: list[Submission] = []

    @property
    def standing(self) -> Any:
        return self.engine.standing

    def submit(self, submission: Submission) -> None:
        if not self._waiting:
            self._loop.loop.call_soon(self._decide)
        self._waiting.append(submission)

    def _decide(self) -> None:
        waiting, self._waiting = self._waiting, []
        tickets = [submission.ticket for submission in waiting]
        outcomes = InlineBook.execute_many(self._book, waiting)
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            ticket(outcome)


class WiredBook(InlineBook):
    """A book whose commands go through a front, over a socket, and to a listener before it."""

    opened: list["WiredBook"] = []  # noqa: RUF012 - closed by the fixture below
    asked = 0

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        WiredBook.opened.append(self)
        self._loop = Loop()
        self._listener = Listener(
            _Door(self, self._loop),  # type: ignore[arg-type]
            secret=SECRET,
            commands=commands(),
            figures=self.engine.cache.figures,
        )
        address = self._loop.run(self._listener.start("127.0.0.1:0"))
        self._asking = Asking(address)
        until(lambda: not self._asking.front.down)

    def execute_many(self, submissions: Any) -> list[Outcome]:
        if any(submission.cursor or submission.aside for submission in submissions):
            return super().execute_many(submissions)
        WiredBook.asked += len(submissions)
        return [wait.outcome() for wait in self._asking.submit_all(list(submissions))]

    def close(self) -> None:
        self._asking.close()
        self._loop.run(self._listener.stop())
        self._loop.close()


if "pytest" in sys.modules and "-p wired" in " ".join(sys.argv):

    @pytest.fixture(autouse=True)
    def over_the_wire(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr("scenarios.InlineBook", WiredBook)
        yield
        while WiredBook.opened:
            WiredBook.opened.pop().close()

    def pytest_terminal_summary(terminalreporter: Any) -> None:
        terminalreporter.write_line(f"over the wire: {WiredBook.asked}")


if __name__ == "__main__":
    uvloop.run(_own(sys.argv[1], sys.argv[2]))

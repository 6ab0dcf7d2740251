"""The wire between a front and the owner: how much of a core one command costs either side.

    .venv/bin/python benchmarks/wire.py --callers 64 --commands 60000

The owner is a process of its own. It decides nothing and gives every command the same
answer, so that nothing but the wire is measured; with `--book` a book in memory decides.
"""

import argparse
import asyncio
import logging
import multiprocessing
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import structlog
import uvloop

from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Head
from pennyweight.engine.rebuild import known_commands
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.products.general import Transfer
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.frames import by_name
from pennyweight.runtime.front import Front
from pennyweight.runtime.listener import Listener
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

SECRET = b"benchmark"
COMMANDS = [Transfer("world:USD", f"house:{number}:USD", "USD", "12.5") for number in range(100)]


class Parrot:
    """A book that gives every command the same answer, once for each turn of the loop."""

    def __init__(self, book: ThreadedBook, answer: Any) -> None:
        self.engine = book.engine
        self.standing = book.standing
        self._receipt = Receipt(7, answer)
        self._waiting: list[Submission] = []

    def submit(self, submission: Submission) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._answer)
        self._waiting.append(submission)

    def _answer(self) -> None:
        waiting, self._waiting = self._waiting, []
        for submission in waiting:
            submission.ticket(self._receipt)


async def own(address: str, pipe: Connection, *, is_book: bool) -> None:
    """Be the owner until told to stop; tell how long this thread computed."""
    loop = asyncio.get_running_loop()
    store = MemoryStore(Head(book="main", incarnation="first"))
    clock = ClockGuard()
    engine = open_engine(store, now=clock.now())
    book: Any = ThreadedBook(engine, store, clock)
    book.start(loop.call_soon_threadsafe)
    answered = loop.create_future()
    book.submit(Submission(COMMANDS[0], ticket=answered.set_result))
    answer = (await answered).answer
    listener = Listener(
        book if is_book else Parrot(book, answer),  # type: ignore[arg-type]
        secret=SECRET,
        commands=by_name(known_commands()),
        figures=engine.cache.figures,
    )
    pipe.send(await listener.start(address))
    started = time.thread_time()
    await loop.run_in_executor(None, pipe.recv)
    pipe.send(time.thread_time() - started)
    await listener.stop()
    book.stop()


async def ask(address: str, pipe: Connection, callers: int, commands: int) -> None:
    """Have callers ask again as soon as they are answered, and print what it cost."""
    loop = asyncio.get_running_loop()
    front = Front(
        lambda: address,
        secret=SECRET,
        book="main",
        commands=by_name(known_commands()),
        load_assets=dict,
        load_asset=lambda _: None,
        hold_seconds=10.0,
        queue_max=20_000,
    )
    front.start(loop)
    while front.down:  # noqa: ASYNC110 - a benchmark
        await asyncio.sleep(0.01)
    is_over = loop.create_future()
    asked = answered = 0

    def submit() -> None:
        nonlocal asked
        if asked < commands:
            asked += 1
            front.submit(Submission(COMMANDS[asked % len(COMMANDS)], ticket=ticket))

    def ticket(outcome: Outcome) -> None:
        nonlocal answered
        if not isinstance(outcome, Receipt):
            raise TypeError(outcome)
        answered += 1
        if answered == commands:
            is_over.set_result(None)
        submit()

    began, started = time.perf_counter(), time.thread_time()
    for _ in range(callers):
        submit()
    await is_over
    seconds, mine = time.perf_counter() - began, time.thread_time() - started
    pipe.send(None)
    its = pipe.recv()
    print(
        f"{commands / seconds:,.0f}/s, {seconds / commands * callers * 1e6:.0f} us for each; "
        f"of a core {mine / commands * 1e6:.1f} us at the front, {its / commands * 1e6:.1f} us "
        "at the owner's loop"
    )
    await front.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--commands", type=int, default=60_000)
    parser.add_argument("--book", action="store_true")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    ours, theirs = multiprocessing.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{Path(folder) / 'owner'}"
        owner = multiprocessing.get_context("fork").Process(
            target=lambda: uvloop.run(own(address, theirs, is_book=arguments.book))
        )
        owner.start()
        uvloop.run(ask(ours.recv(), ours, arguments.callers, arguments.commands))
        owner.join()


if __name__ == "__main__":
    main()

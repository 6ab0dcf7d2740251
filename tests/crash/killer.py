"""Runs one workload many times, each time killed -9 at another moment. See `test_store_calls`.

    python killer.py FOLDER calls|statements FIRST STEP

A run is a process of its own with a folder of its own, `FOLDER/<moment>`. It keeps what it
was told in `acks`, a line per command, before it asks for the next. The run that is not
killed any more is the last; its folder is called `whole`.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pennyweight.engine.engine import Submission
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.ledger.commands import Command
from pennyweight.products.general import (
    LoadBalances,
    PlaceHold,
    Reverse,
    SettleHold,
    Transfer,
    TransferItem,
    Transfers,
)
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.sqlite import SQLiteStore
from random_books import Fact

START = 1_700_000_000_000_000

WORKLOAD: list[list[Command]] = [
    [LoadBalances(str(n), (("USD", "100"),)) for n in range(4)],
    [Transfer("user:0:USD", "user:1:USD", "USD", "30")],
    [PlaceHold("user:1:USD", "USD", "50"), PlaceHold("user:2:USD", "USD", "10")],
    [Transfer("user:3:USD", "user:2:USD", "USD", "500")],  # refused
    [SettleHold(1, "20", "user:3:USD", is_rest_kept=True)],
    [Fact(0, 90 * 10**18), Transfer("user:3:USD", "user:0:USD", "USD", "5")],
    [
        Transfers(tuple(TransferItem(f"user:{n}:USD", "house:USD", "USD", "1") for n in (1, 2, 3))),
        Reverse(14),
    ],
    [SettleHold(1, "30", "user:3:USD"), Transfer("user:2:USD", "user:1:USD", "USD", "3")],
]


def key(batch: int, place: int) -> str:
    """Return the key of a command of the workload."""
    return f"{batch}.{place}"


class Deadly:
    """A store that counts what happens to it and dies at one moment."""

    def __init__(self, store: SQLiteStore, die_at: int) -> None:
        self.store = store
        self.die_at = die_at
        self.count = 0

    def tick(self) -> None:
        self.count += 1
        if self.count == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)
        if not callable(method):
            return method

        def counted(*values: Any, **options: Any) -> Any:
            self.tick()
            try:
                return method(*values, **options)
            finally:
                self.tick()

        return counted


def watch_statements(store: SQLiteStore, tick: Callable[[], None]) -> None:
    """Count every SQL statement of the writer, instead of every call."""

    def trace(*_: Any) -> bool:
        tick()
        return True

    store._writer.connection.exec_trace = trace


def run(folder: Path, what: str, die_at: int) -> int:
    """Work until killed; return how many moments there were, if not."""
    store = SQLiteStore.open(folder, new_incarnation="first")
    deadly = Deadly(store, die_at)
    if what == "statements":
        watch_statements(store, deadly.tick)
        book = open_book(store, folder)
    else:
        book = open_book(deadly, folder)
    work(book, folder)
    store.close()
    return deadly.count


def open_book(store: Any, folder: Path) -> InlineBook:
    """Open a book whose clock stands still: the engine moves it by a microsecond a batch."""
    return InlineBook(open_engine(store, now=START), store, lambda: START)


def work(book: InlineBook, folder: Path) -> list[list[Outcome]]:
    """Execute the workload and keep what was told."""
    outcomes = []
    with (folder / "acks").open("a", buffering=1) as acks:
        for number, batch in enumerate(WORKLOAD):
            submissions = [Submission(c, key=key(number, place)) for place, c in enumerate(batch)]
            outcomes.append(book.execute_many(submissions))
            told = [o.sequence if isinstance(o, Receipt) else o.reason.code for o in outcomes[-1]]
            acks.write(json.dumps({key(number, place): t for place, t in enumerate(told)}) + "\n")
    return outcomes


def main() -> None:
    """Kill at moment FIRST, FIRST + STEP, … until a run is left alive."""
    folder, what, first, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    die_at = first
    while True:
        place = folder / f"{die_at:04d}"
        place.mkdir()
        child = os.fork()
        if child == 0:
            run(place, what, die_at)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise SystemExit(f"moment {die_at}: exit {os.WEXITSTATUS(status)}")
            place.rename(folder / "whole")
            return
        die_at += step


if __name__ == "__main__":
    main()

"""Batches of transfers on a durable book in this process, and filling a book quickly."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Receipt
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.runtime.inline import InlineBook
from pennyweight.simulators.benchplace import BenchPlace
from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.jobs import InProcessJob, Row, row_of
from pennyweight.simulators.sampling import Skew, keys, pairs

BATCH_MAX = 1_000
_FUNDS = "1000000000"
_PAIRS = 1 << 13


class NotDone(Exception):
    """A command of the benchmark was refused or failed."""


def account_id(run: str, user: int) -> str:
    """Return the USD account of a benchmark's user; the HTTP workload uses the same names."""
    return f"user:{run}{user:07d}:USD"


def fill(
    book: InlineBook,
    *,
    run: str,
    accounts: int,
    keys_count: int,
    is_ordered: bool,
    seed: int = 1,
    report: Callable[[int], None] = lambda _: None,
) -> None:
    """Open and fund accounts, then make transfers under so many keys. Reports what is done."""
    done = 0
    draw = random.Random(f"{run} fill {seed}")
    for batch in _batches(_openings(run, accounts)):
        done += execute(book, batch)
        report(done)
    if not keys_count:
        return
    chosen = _transfers(run, draw, Skew("uniform"), accounts, is_ordered=is_ordered)
    while keys_count > 0:
        size = min(BATCH_MAX, keys_count)
        done += execute(book, [next(chosen) for _ in range(size)])
        keys_count -= size
        report(done)


def execute(book: InlineBook, batch: list[Submission]) -> int:
    """Execute a batch and return its size. Raises NotDone if anything of it was not done."""
    for outcome in book.execute_many(batch):
        if not isinstance(outcome, Receipt):
            raise NotDone(f"a transfer of the benchmark was not done: {outcome}")
    return len(batch)


def run_batches(
    job: InProcessJob, ready: Callable[[], None], report: Callable[[int], None]
) -> list[Row]:
    """Measure each batch size with each kind of key, on one book that grows along the way."""
    place = BenchPlace(job.store or Path(job.directory), job.book)
    with place.opened(users_max=max(10_000, 2 * job.users)) as book:
        fill(book, run="", accounts=job.users, keys_count=0, is_ordered=True)
        ready()
        return [
            _measure(book, job, size, kind, report) for kind in job.keys for size in job.batches
        ]


def _measure(
    book: InlineBook, job: InProcessJob, size: int, kind: str, report: Callable[[int], None]
) -> Row:
    draw = random.Random(f"{job.seed} {size} {kind}")
    chosen = _transfers("", draw, Skew(job.skew), job.users, is_ordered=kind == "ordered")
    histogram = Histogram()
    done = 0
    trips = Trips(book.store)
    clock = time.perf_counter_ns
    cpu, started = time.process_time(), clock()
    now, end = started, started + int(job.seconds * 1e9)
    next_report = started
    while now < end:
        before = now
        done += execute(book, [next(chosen) for _ in range(size)])
        now = clock()
        histogram.record(now - before)
        if now >= next_report:
            next_report = now + 500_000_000
            report(done)
    row = row_of(
        f"batches of {size}, {kind} keys",
        histogram,
        requests=done,
        seconds=(now - started) / 1e9,
        cpu_seconds=time.process_time() - cpu,
    )
    trips.tell(row, batches=histogram.count)
    return row


class Trips:
    """What goes over the line to a database; nothing where there is none."""

    def __init__(self, store: Store) -> None:
        """Begins now."""
        self._store = store
        self._before = store.traffic

    def tell(self, row: Row, *, batches: int) -> None:
        """Add to a row what went over it since the beginning."""
        before, now = self._before, self._store.traffic
        if now != before:
            row.round_trips = round((now.round_trips - before.round_trips) / max(1, batches), 2)
            row.sent_bytes = round((now.bytes_sent - before.bytes_sent) / max(1, row.requests), 1)


def _openings(run: str, accounts: int) -> Iterator[Submission]:
    """Yield, for each account, its opening and its funds."""
    for user in range(accounts):
        name = account_id(run, user)
        yield Submission(OpenAccount(name))
        yield Submission(Transfer("world:USD", name, "USD", _FUNDS))


def _transfers(
    run: str, draw: random.Random, skew: Skew, accounts: int, *, is_ordered: bool
) -> Iterator[Submission]:
    """Yield transfers of a cent without end, each under its own key."""
    numbers = keys(random.Random(), is_ordered=is_ordered)
    while True:
        for payer, payee in pairs(draw, skew, accounts, _PAIRS):
            command = Transfer(account_id(run, payer), account_id(run, payee), "USD", "0.01")
            yield Submission(command, key=f"{next(numbers):032x}")


def _batches(submissions: Iterator[Submission]) -> Iterator[list[Submission]]:
    batch: list[Submission] = []
    for submission in submissions:
        batch.append(submission)
        if len(batch) == BATCH_MAX:
            yield batch
            batch = []
    if batch:
        yield batch

"""Withdrawals and settlements in this process: on a durable book, without HTTP and Kafka."""

import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from pennyweight.engine.engine import Lane, Submission
from pennyweight.ledger.entries import CursorMove
from pennyweight.ledger.refusals import Refused
from pennyweight.products.general import LoadBalances
from pennyweight.products.withdrawals.settle import Settle
from pennyweight.products.withdrawals.withdraw import Withdraw
from pennyweight.runtime.inline import InlineBook
from pennyweight.simulators.benchplace import BenchPlace
from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.inprocess import NotDone, Trips, execute
from pennyweight.simulators.jobs import DeskJob, Row, row_of
from pennyweight.simulators.population import rows
from pennyweight.simulators.sampling import Skew, keys
from pennyweight.simulators.withdrawing import (
    QUANTITY,
    Choice,
    Held,
    choices,
    settlement_of,
)

WARM_SHARE = 0.75
"""Of the users in memory, the part that takes part where all are to be in memory."""

_BATCH = 500


def fill_population(
    place: BenchPlace,
    users: int,
    seed: int,
    *,
    held: Iterable[Held] = (),
    report: Callable[[int], None] = lambda _: None,
) -> int:
    """Make a book with the generated population, and open withdrawals.

    Returns how many entries it has. Reports what is done.
    """
    with place.opened() as book:
        done = 0
        for batch in _batches(itertools.chain(_loads(users, seed), map(_withdraw, held))):
            done += execute(book, batch)
            report(done)
        return book.engine.head.sequence


def run_desk(job: DeskJob, ready: Callable[[], None], report: Callable[[int], None]) -> list[Row]:
    """Measure withdrawals, each settled in the next batch, or settlements of what is held."""
    place = BenchPlace(job.store or Path(job.directory), job.book)
    fill_population(place, job.users, job.seed)
    with place.opened(users_max=job.users_in_memory) as book:
        ready()
        if job.scenario == "withdrawals":
            return [_withdrawals(book, job, size, report) for size in job.batches]
        return [
            _settlements(book, job, size, report, is_warm=is_warm, has_id=has_id)
            for size in job.batches
            for is_warm in (False, True)
            for has_id in (False, True)
        ]


# ── withdrawals ───────────────────────────────────────────────────────────────────


def _withdrawals(book: InlineBook, job: DeskJob, size: int, report: Callable[[int], None]) -> Row:
    """Execute batches: half of each are withdrawals, the other half settles those before.

    Or all of them are withdrawals, of which none ends.
    """
    chosen = itertools.cycle(choices(job.users, Skew(job.skew), job.seed))
    numbers = keys(random.Random(), is_ordered=job.keys == "ordered")
    open_ones: deque[Held] = deque()
    is_settled = job.settle != "none"
    new = max(1, size // 2) if is_settled else size

    def batch() -> list[Submission]:
        settled = [_settle(open_ones.popleft()) for _ in range(min(len(open_ones), size - new))]
        made = [Held(next(chosen), f"{next(numbers):032x}") for _ in range(new)]
        if is_settled:
            open_ones.extend(made)
        return [*map(_withdraw, made), *settled]

    before = book.engine.cache.hits, book.engine.cache.misses
    row = _measure(
        f"batches of {size}, withdrawals{' and settlements' if is_settled else ''}",
        book,
        batch,
        job.seconds,
        report,
    )
    row.cache_hit_ratio = hit_ratio(before, (book.engine.cache.hits, book.engine.cache.misses))
    while open_ones:  # so that holds do not pile up from row to row
        execute(book, [_settle(open_ones.popleft()) for _ in range(min(len(open_ones), _BATCH))])
    return row


def hit_ratio(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    """Return the share of hits between two looks at (hits, misses), None without uses."""
    hits, misses = after[0] - before[0], after[1] - before[1]
    return round(hits / (hits + misses), 4) if hits + misses else None


# ── settlements ───────────────────────────────────────────────────────────────────


def _settlements(
    book: InlineBook,
    job: DeskJob,
    size: int,
    report: Callable[[int], None],
    *,
    is_warm: bool,
    has_id: bool,
) -> Row:
    """Hold `messages` withdrawals, then settle all of them as a stream with a cursor would."""
    name = f"{'warm' if is_warm else 'cold'} users, {'with' if has_id else 'without'} settlement_id"
    first = int(WARM_SHARE * job.users_in_memory) if is_warm else None
    chosen = itertools.cycle(choices(job.users, Skew("uniform"), job.seed, first=first, name=name))
    held = [Held(next(chosen), f"{name[:4]}-{size}-{has_id}-{n}") for n in range(job.messages)]
    for first in range(0, len(held), _BATCH):
        execute(book, [_withdraw(one) for one in held[first : first + _BATCH]])
    if not is_warm:
        book.engine.cache.clear()
    stream = f"bench:{name}/{size}"
    numbered = iter(enumerate(held))

    def batch() -> list[Submission]:
        return [
            _settle(one, place=(stream, number), settlement_id=one.withdrawal_id if has_id else "")
            for number, one in itertools.islice(numbered, size)
        ]

    return _measure(f"batches of {size}, {name}", book, batch, None, report)


# ── both ──────────────────────────────────────────────────────────────────────────


def _measure(
    case: str,
    book: InlineBook,
    batch: Callable[[], list[Submission]],
    seconds: float | None,
    report: Callable[[int], None],
) -> Row:
    """Execute batches for a time, or until there are no more."""
    histogram = Histogram()
    trips = Trips(book.store)
    done = 0
    clock = time.perf_counter_ns
    cpu, started = time.process_time(), clock()
    now = next_report = started
    end = started + int(seconds * 1e9) if seconds is not None else 1 << 63
    while now < end and (submissions := batch()):
        before = clock()
        done += execute(book, submissions)
        now = clock()
        histogram.record(now - before)
        if now >= next_report:
            next_report = now + 500_000_000
            report(done)
    row = row_of(
        case,
        histogram,
        requests=done,
        seconds=(now - started) / 1e9,
        cpu_seconds=time.process_time() - cpu,
    )
    trips.tell(row, batches=histogram.count)
    return row


def _loads(users: int, seed: int) -> Iterator[Submission]:
    """Yield what `pennyweight load` does of the population, each row under a key."""
    made = rows(users, seed)
    names = next(made)[1:]
    for row in made:
        command = LoadBalances(row[0], tuple(zip(names, row[1:], strict=True)))
        yield Submission(command, key=f"load:{row[0]}")


def _withdraw(held: Held) -> Submission:
    """Return the command as the HTTP face makes it."""
    choice: Choice = held.choice
    command = Withdraw(str(choice.user), choice.token, QUANTITY, held.withdrawal_id)
    return Submission(command, key=held.withdrawal_id)


def _settle(
    held: Held, *, place: tuple[str, int] | None = None, settlement_id: str = ""
) -> Submission:
    """Return the command as the HTTP face makes it, or the Kafka agent of (stream, offset)."""
    settlement = settlement_of(held, settlement_id=settlement_id)
    command = Settle(
        settlement.user_id,
        settlement.bought_token,
        settlement.bought_quantity,
        settlement.sold_token,
        settlement.sold_quantity,
        settlement.withdrawal_id,
        settlement.settlement_id,
    )
    key = f"settlement:{settlement_id}" if settlement_id else ""
    if place is None:
        return Submission(command, key=key)
    stream, offset = place
    return Submission(
        command,
        key=key or f"kafka:{stream}/{offset}",
        lane=Lane.INBOUND,
        cursor=CursorMove(stream, offset, offset + 1),
        aside=_never_aside,
    )


def _never_aside(refused: Refused) -> Withdraw:
    """Fail: in a benchmark nothing is refused."""
    raise NotDone(str(refused))


def _batches(submissions: Iterator[Submission]) -> Iterator[list[Submission]]:
    while batch := list(itertools.islice(submissions, _BATCH)):
        yield batch

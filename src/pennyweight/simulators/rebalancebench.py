"""Benchmarks of portfolios beside those over HTTP: updates from Kafka and in this process, export."""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path

import msgspec

from pennyweight.agents.exporter import Exporter
from pennyweight.delivery.indices import INDICES
from pennyweight.delivery.search import Documents
from pennyweight.engine.engine import Lane, Submission
from pennyweight.ledger.entries import CursorMove
from pennyweight.ledger.letters import LETTER
from pennyweight.links.inwheel import InWheelBroker
from pennyweight.links.search import Search
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import CreatePortfolio
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.inline import InlineBook
from pennyweight.simulators.asking import work_of
from pennyweight.simulators.benchplace import BenchPlace
from pennyweight.simulators.crew import Report
from pennyweight.simulators.deskbench import NotSettled
from pennyweight.simulators.figures import (
    DURABLE,
    IN_DATABASE,
    Figures,
    Growth,
    Setting,
    Spent,
    figures_of,
)
from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.inprocess import Trips, execute
from pennyweight.simulators.jobs import Row, row_of
from pennyweight.simulators.machine import Usage, processor_ticks, stolen_percent, usage
from pennyweight.simulators.sampling import Skew
from pennyweight.simulators.searchstub import StubProcess
from pennyweight.simulators.server import Verdict
from pennyweight.simulators.stand import Stand
from pennyweight.simulators.updates import (
    LOAD_TARGET,
    START,
    Drift,
    Message,
    OverKafka,
    drifts,
    texts_of,
    time_text,
)

OVER_HTTP = "rebalances"
FROM_KAFKA = "rebalances-kafka"
IN_PROCESS = "rebalances-in-process"
EXPORT = "export"
REBALANCES = (FROM_KAFKA, IN_PROCESS, EXPORT)
"""Scenarios that are measured here; the one over HTTP is a workload like others."""

TOPIC = "rebalance"
MESSAGES_MAX = 100_000
WAIT_SECONDS_MAX = 120.0

_BATCH = 500
_LOOK_SECONDS = 0.02
_STREAMS = "kafka:"
_STREAM = f"{_STREAMS}bench/0"


class _Body(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """An update as a provider writes it."""

    user_id: str
    new_allocation: dict[str, msgspec.Raw]
    as_of: str
    request_id: str = ""


def user_name(number: int) -> str:
    """Return what a user of these benchmarks is called."""
    return f"u{number:07d}"


def run_rebalances(setting: Setting, book: BenchPlace, directory: Path, report: Report) -> Figures:
    """Measure backlogs from Kafka, batches, or the export; then verify the books.

    Raises as `bench.run` does.
    """
    if setting.scenario == EXPORT:
        return _run_export(setting, book, directory, report)
    if setting.scenario == IN_PROCESS:
        return _run_in_process(setting, book, directory, report)
    return _run_from_kafka(setting, directory, report)


def _fill(book: InlineBook, users: int, report: Report) -> None:
    """Make the portfolios."""
    for first in range(0, users, _BATCH):
        numbers = range(first, min(first + _BATCH, users))
        execute(
            book, [Submission(CreatePortfolio(user_name(n), dict(LOAD_TARGET))) for n in numbers]
        )
        report(f"filling the book: {numbers[-1] + 1} of {users}", numbers[-1] / users)


def _drifts(setting: Setting) -> Iterator[Drift]:
    draw = random.Random(f"rebalances {setting.seed} {setting.skew}")
    return drifts(draw, Skew(setting.skew), setting.users)


def _allocation(drift: Drift) -> dict[str, str]:
    return texts_of({"bonds": drift.bonds, "gold": drift.gold, "stocks": drift.stocks})


# ── from Kafka ────────────────────────────────────────────────────────────────────


def _run_from_kafka(setting: Setting, directory: Path, report: Report) -> Figures:
    """Measure a backlog with request ids, and one without, each on a fresh book."""
    if not 1 <= setting.messages <= MESSAGES_MAX:
        raise ValueError(f"a backlog has 1 to {MESSAGES_MAX} messages")
    ticks = processor_ticks()
    rows: list[Row] = []
    spents: list[Spent] = []
    verdicts: list[Verdict] = []
    syncs: list[int] = []
    commits: list[int] = []
    for number, has_id in enumerate((True, False)):
        place = BenchPlace(setting.store or directory / f"book-{number}")
        syncs += place.sync_times(directory)
        commits += place.commit_times()
        try:
            with place.opened() as inline:
                _fill(inline, setting.users, report)
            row, spent = _backlog(setting, place, directory, report, has_id=has_id)
            rows.append(row)
            spents.append(spent)
            report("verifying the book", 1.0)
            verdicts.append(place.verify())
        finally:
            place.remove()
    spent = msgspec.structs.replace(
        spents[0],
        syncs=syncs,
        commits=commits,
        stolen_percent=stolen_percent(ticks, processor_ticks()),
    )
    return _figures(setting, rows, spent, _worst(verdicts))


def _backlog(
    setting: Setting, place: BenchPlace, directory: Path, report: Report, *, has_id: bool
) -> tuple[Row, Spent]:
    """Put the whole backlog into the broker, then let a server book it. Raises NotSettled.

    Counted is from the first look at which something was booked to the one at which all was.
    """
    size_before, total = place.size_bytes(), setting.messages
    with InWheelBroker() as broker, place.reading() as store:
        sender = OverKafka(broker.address, TOPIC)
        sender.send(_messages(setting, has_id=has_id))
        sender.finish()

        def booked() -> int:
            cursors = store.cursors().items()
            return sum(position for name, position in cursors if name.startswith(_STREAMS))

        with Stand(place, directory, ["--kafka", broker.address]) as stand:
            server = stand.servers[0]
            first = _wait(booked, 1)
            used, work, started = usage(server.pid), work_of(stand.askers), time.perf_counter()
            _wait(booked, total, lambda done: report(f"{done} of {total} booked", done / total))
            seconds = time.perf_counter() - started
            after, work_after = usage(server.pid), work_of(stand.askers)
        if store.records(LETTER, limit=1):
            raise NotSettled("an update was set aside")
    row = row_of(
        f"from Kafka, {'with' if has_id else 'without'} request_id",
        Histogram(),
        requests=total - first,
        seconds=max(seconds, 1e-9),
        cpu_seconds=0,
    )
    work_after.tell(row, work)
    return row, Spent(
        before=used,
        after=after,
        answered=max(1, total - first),
        growth=Growth(place.size_bytes() - size_before, total),
        mean_batch=work_after.mean_batch(work),
    )


def _messages(setting: Setting, *, has_id: bool) -> Iterator[Message]:
    """Yield the backlog: each update is newer than all before it."""
    for number, drift in zip(range(setting.messages), _drifts(setting), strict=False):
        user = user_name(drift.user)
        body = _Body(
            user,
            {name: msgspec.Raw(text.encode()) for name, text in _allocation(drift).items()},
            time_text(START + number),
            f"{setting.seed:08x}-{number:023d}" if has_id else "",
        )
        yield Message("new", user, msgspec.json.encode(body))


def _wait(
    booked: Callable[[], int], wanted: int, report: Callable[[int], object] = lambda _: None
) -> int:
    """Look until so many are booked, and return how many are. Raises NotSettled."""
    until = time.monotonic() + WAIT_SECONDS_MAX
    while (done := booked()) < wanted:
        if time.monotonic() > until:
            raise NotSettled(f"after {WAIT_SECONDS_MAX:.0f} s {done} of {wanted} are booked")
        report(done)
        time.sleep(_LOOK_SECONDS)
    return done


# ── in process ────────────────────────────────────────────────────────────────────


def _run_in_process(
    setting: Setting, place: BenchPlace, directory: Path, report: Report
) -> Figures:
    """Measure batches of updates on a durable book, as a stream with a cursor brings them."""
    syncs, commits = place.sync_times(directory), place.commit_times()
    ticks, size_before = processor_ticks(), place.size_bytes() if setting.store else 0
    with place.opened(users_max=max(10_000, 2 * setting.users)) as book:
        _fill(book, setting.users, report)
        submissions = map(_submission, count(), _drifts(setting))
        before = usage(os.getpid())
        rows = [_measure(book, submissions, size, setting, report) for size in setting.batches]
        after = usage(os.getpid())
    report("verifying the book", 1.0)
    verdict = place.verify()
    spent = Spent(
        before=before,
        after=after,
        answered=sum(row.requests for row in rows),
        growth=Growth(place.size_bytes() - size_before, verdict.sequence),
        syncs=syncs + place.sync_times(directory),
        mean_batch=float(setting.batches[0]),
        stolen_percent=stolen_percent(ticks, processor_ticks()),
        commits=commits + place.commit_times(),
    )
    return _figures(setting, rows, spent, verdict)


def _submission(number: int, drift: Drift) -> Submission:
    user, request_id = user_name(drift.user), f"{number:032d}"
    update = Rebalance(user, _allocation(drift), request_id, START + number)
    cursor = CursorMove(_STREAM, number, number + 1)
    return Submission(update, key=update.key, lane=Lane.INBOUND, cursor=cursor)


def _measure(
    book: InlineBook,
    submissions: Iterator[Submission],
    size: int,
    setting: Setting,
    report: Report,
) -> Row:
    """Execute batches of one size for the setting's time; making the updates is not timed."""
    histogram, trips = Histogram(), Trips(book.store)
    done = busy = 0
    cpu = 0.0
    until = int(setting.seconds * 1e9)
    while busy < until:
        batch = list(islice(submissions, size))
        used, started = time.process_time(), time.perf_counter_ns()
        done += execute(book, batch)
        taken = time.perf_counter_ns() - started
        cpu += time.process_time() - used
        histogram.record(taken)
        busy += taken
        report(f"{done} done", min(1.0, busy / until))
    row = row_of(
        f"batches of {size}", histogram, requests=done, seconds=busy / 1e9, cpu_seconds=cpu
    )
    trips.tell(row, batches=histogram.count)
    return row


# ── export ────────────────────────────────────────────────────────────────────────


def _run_export(setting: Setting, place: BenchPlace, directory: Path, report: Report) -> Figures:
    """Measure how fast the documents of a journal of updates reach a stub that counts them.

    Raises ExtraMissing, NotSettled.
    """
    syncs, commits = place.sync_times(directory), place.commit_times()
    ticks = processor_ticks()
    with place.opened(users_max=max(10_000, 2 * setting.users)) as inline, StubProcess() as stub:
        _fill(inline, setting.users, report)
        submissions = map(_submission, range(setting.messages), _drifts(setting))
        done = 0
        while batch := list(islice(submissions, _BATCH)):
            done += execute(inline, batch)
            report(f"updates: {done} of {setting.messages}", done / setting.messages)
        row, before = _export(inline, stub.url, report)
        after = usage(os.getpid())
    report("verifying the book", 1.0)
    verdict = place.verify()
    spent = Spent(
        before=before,
        after=after,
        answered=row.requests,
        syncs=syncs + place.sync_times(directory),
        stolen_percent=stolen_percent(ticks, processor_ticks()),
        commits=commits + place.commit_times(),
    )
    return _figures(setting, [row], spent, verdict)


def _export(inline: InlineBook, url: str, report: Report) -> tuple[Row, Usage | None]:
    """Export all that the book has now; return the row, and what was used before. Raises NotSettled."""
    book = ThreadedBook(inline.engine, inline.store, ClockGuard())
    exporter = Exporter(
        book,
        partial(Search, url),
        Documents(lambda asset: book.standing.assets[asset].scale, book.store),
        INDICES,
        cursor="export:bench",
    )
    entries = inline.engine.head.sequence
    book.start()
    before, cpu, started = usage(os.getpid()), time.process_time(), time.perf_counter()
    exporter.start()
    try:
        until = time.monotonic() + WAIT_SECONDS_MAX
        # Moves of the cursor are entries too; those that were there before count.
        while exporter.lag > inline.engine.head.sequence - entries:
            if time.monotonic() > until:
                raise NotSettled(f"{exporter.lag} entries are not exported: {exporter.status}")
            report(f"{exporter.counts.sent} documents", 1 - exporter.lag / entries)
            time.sleep(_LOOK_SECONDS)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    finally:
        exporter.stop()
        book.stop()
    sent = exporter.counts.sent
    name = f"documents of {entries} entries"
    row = row_of(name, Histogram(), requests=sent, seconds=seconds, cpu_seconds=cpu)
    row.errors = exporter.counts.rejected + exporter.counts.failed
    return row, before


# ── all ──────────────────────────────────────────────────────────────────────────


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the first that is not right, else the first."""
    return next((verdict for verdict in verdicts if not verdict.ok), verdicts[0])


def _figures(setting: Setting, rows: list[Row], spent: Spent, verdict: Verdict) -> Figures:
    return figures_of(
        setting,
        rows,
        spent,
        verified=verdict.ok,
        first_wrong=verdict.first_wrong,
        durability=IN_DATABASE if setting.store else DURABLE,
    )

"""A benchmark from start to end: book, server, load from another process, verification."""

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pennyweight.config import WORKERS_MAX
from pennyweight.simulators.asking import Asker, work_of
from pennyweight.simulators.benchplace import BenchPlace
from pennyweight.simulators.crew import Report, Worker
from pennyweight.simulators.deskbench import DESK, run_desk, run_withdrawals_elsewhere
from pennyweight.simulators.figures import (
    DURABLE,
    IN_DATABASE,
    Figures,
    Growth,
    Setting,
    Spent,
    figures_of,
    middle_of,
)
from pennyweight.simulators.inprocess import fill
from pennyweight.simulators.jobs import FacadeJob, InProcessJob, LoadJob, Row
from pennyweight.simulators.machine import Usage, usage
from pennyweight.simulators.rebalancebench import REBALANCES, run_rebalances
from pennyweight.simulators.sampling import Skew
from pennyweight.simulators.server import Verdict
from pennyweight.simulators.stand import Stand, spent_between
from pennyweight.simulators.workloads import WORKLOADS, Target

SCENARIOS = (*WORKLOADS, *DESK, *REBALANCES, "in-process", "facade")
KEY_KINDS = ("random", "ordered")
_INSTANCES_MAX = 16


def check(setting: Setting) -> None:
    """Raise ValueError for a setting that makes no sense."""
    Skew(setting.skew)
    kinds = (*KEY_KINDS, "both") if setting.scenario == "in-process" else KEY_KINDS
    is_filled = setting.preload_accounts or setting.preload_keys
    wrong = {
        f"the scenarios are {', '.join(SCENARIOS)}": setting.scenario not in SCENARIOS,
        f"keys are {' or '.join(kinds)}": setting.keys not in kinds,
        "at least two users, a connection and some seconds are needed": setting.users < 2
        or setting.connections < 1
        or setting.seconds <= 0,
        "a rate is above 0 requests a second": setting.rate is not None and setting.rate <= 0,
        "only transfers can meet a book that is filled": is_filled
        and setting.scenario != "transfers",
        "a book is filled before a server of our own only": is_filled and bool(setting.addresses),
        "a running server can be measured with transfers, payments, bets and withdrawals, the "
        "latter not by Kafka": bool(setting.addresses)
        and (setting.scenario == "settlements" or setting.settle == "kafka"),
        "at least one message, and a rate of settlements above 0": setting.messages < 1
        or setting.settle_rate <= 0,
        "in a database of yours everything but facade can be measured, by servers of our own": bool(
            setting.store
        )
        and (setting.scenario == "facade" or bool(setting.addresses)),
        "1 to 64 workers, of a server of our own": setting.workers != 1
        and (
            not 1 <= setting.workers <= WORKERS_MAX
            or setting.scenario not in WORKLOADS
            or bool(setting.addresses)
        ),
        "1 to 16 instances, of transfers, payments or bets on a database (--store), and a "
        "connection to each of them": setting.instances != 1
        and (
            not 1 <= setting.instances <= min(_INSTANCES_MAX, setting.connections)
            or setting.scenario not in WORKLOADS
            or not setting.store
        ),
        "a filled book needs as many accounts as there are users": is_filled
        and setting.preload_accounts < setting.users,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(message)


def run_many(setting: Setting, count: int, report: Report) -> Figures:
    """Measure several times, each on a fresh book; return the run in the middle. As `run`."""
    if count < 1:
        raise ValueError("at least one run is needed")
    return middle_of([run(setting, report) for _ in range(count)])


def run(setting: Setting, report: Report) -> Figures:
    """Measure as the setting says.

    Raises ValueError, WorkerFailed, ServerFailed, NotSettled, ExtraMissing, OSError.
    """
    check(setting)
    if setting.addresses and setting.scenario in WORKLOADS:
        return _run_elsewhere(setting, report)
    if setting.scenario == "facade":
        return _run_facade(setting, report)
    if setting.addresses and setting.scenario == "withdrawals":
        return run_withdrawals_elsewhere(setting, report)
    with _scratch(setting.directory) as directory:
        book = BenchPlace(setting.store or directory / "book")
        try:
            if setting.scenario in DESK:
                return run_desk(setting, book, directory, report)
            if setting.scenario in REBALANCES:
                return run_rebalances(setting, book, directory, report)
            if setting.scenario == "in-process":
                return _run_in_process(setting, book, directory, report)
            return _run_served(setting, book, directory, report)
        finally:
            book.remove()


@contextmanager
def _scratch(parent: Path | None) -> Iterator[Path]:
    """Make a directory for the book, and remove it in the end."""
    directory = Path(tempfile.mkdtemp(prefix="pennyweight-bench-", dir=parent))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run_served(setting: Setting, book: BenchPlace, directory: Path, report: Report) -> Figures:
    """Measure servers of our own on a fresh book, then verify the book."""
    name = secrets.token_hex(3)
    filled = _preload(setting, book, name, report)
    report("starting the server", 0.0)
    syncs, commits = book.sync_times(directory), book.commit_times()
    with (
        Stand(book, directory, count=setting.instances, workers=setting.workers) as stand,
        Worker(_load_job(setting, stand.addresses, name)) as worker,
    ):
        worker.wait_until_ready()
        before = stand.begin()
        seen: list[Usage | None] = []

        def watch(what: str, share: float) -> None:
            seen.append(stand.usage())
            report(what, share)

        rows = worker.finish(setting.seconds + setting.warm_up_seconds, watch)
        after = stand.look()
    syncs, commits = syncs + book.sync_times(directory), commits + book.commit_times()
    report("verifying the book", 1.0)
    verdict = book.verify()
    spent = spent_between(
        before,
        after,
        rows[0],
        worker,
        answered=sum(rows[0].statuses.values()),
        middle=seen[len(seen) // 2] if seen else None,
        growth=Growth(book.size_bytes() - filled.size_bytes, verdict.sequence - filled.entries),
        syncs=syncs,
        commits=commits,
    )
    return _figures(setting, rows, spent, verdict)


def _figures(setting: Setting, rows: list[Row], spent: Spent, verdict: Verdict) -> Figures:
    durability = IN_DATABASE if setting.store else DURABLE
    return figures_of(
        setting,
        rows,
        spent,
        verified=verdict.ok,
        first_wrong=verdict.first_wrong,
        durability=durability,
    )


def _run_elsewhere(setting: Setting, report: Report) -> Figures:
    """Measure servers that run already, and have one of them verify the book."""
    askers = [Asker(address, setting.token) for address in setting.addresses]
    with Worker(_load_job(setting, setting.addresses, secrets.token_hex(3))) as worker:
        worker.wait_until_ready()
        before = work_of(askers)
        rows = worker.finish(setting.seconds + setting.warm_up_seconds, report)
        work = work_of(askers)
        spent = Spent(
            mean_batch=work.mean_batch(before),
            stolen_percent=worker.stolen_percent,
            owners=work.owners_since(before),
        )
        work.tell(rows[0], before)
    report("verifying the book", 1.0)
    durability = "as that server has it"
    return figures_of(setting, rows, spent, verified=askers[0].verify(), durability=durability)


def _run_in_process(setting: Setting, book: BenchPlace, directory: Path, report: Report) -> Figures:
    """Measure batches on a durable book without HTTP, then verify the book."""
    size_before = book.size_bytes() if setting.store else 0
    syncs, commits = book.sync_times(directory), book.commit_times()
    kinds = KEY_KINDS if setting.keys == "both" else (setting.keys,)
    job = InProcessJob(
        directory=str(directory / "book"),
        store=setting.store,
        book=book.book,
        batches=setting.batches,
        keys=kinds,
        users=setting.users,
        skew=setting.skew,
        seconds=setting.seconds,
        seed=setting.seed,
    )
    with Worker(job) as worker:
        worker.wait_until_ready()
        before = usage(worker.pid)
        rows = worker.finish(setting.seconds * len(kinds) * len(setting.batches), report)
        after = worker.last_usage
    syncs, commits = syncs + book.sync_times(directory), commits + book.commit_times()
    report("verifying the book", 1.0)
    verdict = book.verify()
    spent = Spent(
        before=before,
        after=after,
        answered=sum(row.requests for row in rows),
        growth=Growth(book.size_bytes() - size_before, verdict.sequence),
        syncs=syncs,
        mean_batch=float(setting.batches[0]),
        stolen_percent=worker.stolen_percent,
        machine_cpu_microseconds=worker.busy_microseconds,
        commits=commits,
    )
    return _figures(setting, rows, spent, verdict)


def _run_facade(setting: Setting, report: Report) -> Figures:
    """Measure the Python wallet in memory; afterwards all the money must still be there."""
    job = FacadeJob(
        threads=setting.threads,
        users=setting.users,
        skew=setting.skew,
        seconds=setting.seconds,
        seed=setting.seed,
    )
    with Worker(job) as worker:
        worker.wait_until_ready()
        before = usage(worker.pid)
        rows = worker.finish(setting.seconds * len(setting.threads), report)
        after = worker.last_usage
    spent = Spent(
        before=before,
        after=after,
        answered=sum(row.requests for row in rows),
        stolen_percent=worker.stolen_percent,
    )
    is_correct = all(row.is_correct for row in rows)
    return figures_of(setting, rows, spent, verified=is_correct, durability="in memory")


def _load_job(setting: Setting, addresses: tuple[tuple[str, int], ...], name: str) -> LoadJob:
    return LoadJob(
        scenario=setting.scenario,
        target=Target(
            host=addresses[0][0],
            port=addresses[0][1],
            users=setting.users,
            skew=setting.skew,
            keys=setting.keys,
            seed=setting.seed,
            token=setting.token,
            run=name,
        ),
        connections=setting.connections,
        seconds=setting.seconds,
        warm_up_seconds=setting.warm_up_seconds,
        rate=setting.rate,
        is_funded=setting.preload_accounts > 0,
        others=addresses[1:],
    )


def _preload(setting: Setting, place: BenchPlace, name: str, report: Report) -> Growth:
    """Fill a book through the engine in this process, if so told; return what is there then."""
    if not setting.preload_accounts:
        return Growth(place.size_bytes() if setting.store else 0, 0)
    total = 2 * setting.preload_accounts + setting.preload_keys
    with place.opened() as book:
        fill(
            book,
            run=name,
            accounts=setting.preload_accounts,
            keys_count=setting.preload_keys,
            is_ordered=setting.keys == "ordered",
            report=lambda done: report(f"filling the book: {done} of {total}", done / total),
        )
        entries = book.engine.head.sequence
    return Growth(place.size_bytes(), entries)

"""Benchmarks of the withdrawal desk: withdrawals over HTTP, settlements from Kafka."""

import itertools
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pennyweight.ledger.letters import LETTER
from pennyweight.links.inwheel import InWheelBroker
from pennyweight.simulators.asking import Asker, work_of
from pennyweight.simulators.benchplace import BenchPlace
from pennyweight.simulators.client import Client
from pennyweight.simulators.crew import Report, Worker
from pennyweight.simulators.deskwork import WARM_SHARE, fill_population, hit_ratio
from pennyweight.simulators.figures import (
    DURABLE,
    IN_DATABASE,
    Figures,
    Growth,
    Setting,
    Spent,
    figures_of,
)
from pennyweight.simulators.flow import Sender
from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.jobs import DeskJob, LoadJob, Row, row_of
from pennyweight.simulators.machine import (
    Usage,
    processor_ticks,
    stolen_percent,
    usage,
)
from pennyweight.simulators.sampling import Skew
from pennyweight.simulators.server import Server, Verdict
from pennyweight.simulators.stand import Stand, spent_between
from pennyweight.simulators.withdrawing import Held, Withdrawals, choices, reserve
from pennyweight.simulators.workloads import Target

DESK = ("withdrawals", "settlements")
_LOOK_SECONDS = 0.05
_WAIT_SECONDS_MAX = 120.0
_LEASE_SECONDS = 60.0
_STREAMS = "kafka:"
"""How cursors of streams that are read from Kafka begin."""

_PRIMERS = 8
"""Messages that show that the engine has begun to read; not measured."""


class NotSettled(Exception):
    """Messages that were sent have not been booked."""


def run_desk(setting: Setting, book: BenchPlace, directory: Path, report: Report) -> Figures:
    """Measure a scenario of the desk. Raises what `bench.run` does, NotSettled, ExtraMissing."""
    if setting.is_in_process:
        return _run_in_process(setting, book, directory, report)
    if setting.scenario == "withdrawals":
        return _run_withdrawals(setting, book, directory, report)
    return _run_settlements(setting, book, directory, report)


def run_withdrawals_elsewhere(setting: Setting, report: Report) -> Figures:
    """Measure servers that run already, and have the generated population in their book."""
    askers = [Asker(address, setting.token) for address in setting.addresses]
    with Worker(_load_job(setting, setting.addresses, secrets.token_hex(3))) as worker:
        worker.wait_until_ready()
        before, cache = work_of(askers), askers[0].cache()
        rows = worker.finish(setting.seconds + setting.warm_up_seconds, report)
        work = work_of(askers)
        spent = Spent(
            mean_batch=work.mean_batch(before),
            stolen_percent=worker.stolen_percent,
            owners=work.owners_since(before),
        )
        work.tell(rows[0], before)
        rows[0].cache_hit_ratio = _ratio(cache, askers[0].cache())
    report("verifying the book", 1.0)
    durability = "as that server has it"
    return figures_of(setting, rows, spent, verified=askers[0].verify(), durability=durability)


# ── withdrawals ───────────────────────────────────────────────────────────────────


def _run_withdrawals(
    setting: Setting, book: BenchPlace, directory: Path, report: Report
) -> Figures:
    """Measure a server of our own on a fresh book with the population, then verify the book."""
    held = _held_before(setting)
    primers = _primers(setting) if setting.settle == "kafka" else []
    before_all = itertools.chain(primers, reserve(setting.users, setting.seed, held))
    filled = _fill(setting, book, before_all, report, held)
    syncs, commits = book.sync_times(directory), book.commit_times()
    with ExitStack() as stack:
        broker = stack.enter_context(InWheelBroker()).address if setting.settle == "kafka" else ""
        stand = stack.enter_context(_serve(setting, book, directory, broker))
        asker = stand.askers[0]
        worker = stack.enter_context(
            Worker(_load_job(setting, stand.addresses, secrets.token_hex(3), broker, held))
        )
        worker.wait_until_ready()
        seen: list[Usage | None] = []
        with _booked(book) as booked:
            if broker:
                Sender(broker).send_all(primers, has_id=False)
                _wait_until(lambda: booked() >= len(primers), "the engine reads the topic")
            before, cache = stand.begin(), asker.cache()
            progress = [(time.perf_counter(), booked())]

            def watch(what: str, share: float) -> None:
                seen.append(stand.usage())
                progress.append((time.perf_counter(), booked()))
                report(what, share)

            rows = worker.finish(setting.seconds + setting.warm_up_seconds, watch)
            progress.append((time.perf_counter(), booked()))
            after = stand.look()
            rows[0].cache_hit_ratio = _ratio(cache, asker.cache())
            if broker:
                rows.append(_row_of_flow(progress, rows[0].sent))
                sent = len(primers) + rows[0].sent
                _wait_until(lambda: booked() >= sent, "all settlements are booked")
    syncs, commits = syncs + book.sync_times(directory), commits + book.commit_times()
    report("verifying the book", 1.0)
    verdict = book.verify()
    spent = spent_between(
        before,
        after,
        rows[0],
        worker,
        answered=sum(rows[0].statuses.values()) + rows[0].sent,
        middle=seen[len(seen) // 2] if seen else None,
        growth=Growth(book.size_bytes() - filled.size_bytes, verdict.sequence - filled.entries),
        syncs=syncs,
        commits=commits,
    )
    return _figures(setting, rows, spent, verdict)


def _primers(setting: Setting) -> list[Held]:
    """Return withdrawals whose settlements show that the engine has begun to read."""
    chosen = choices(setting.users, Skew("uniform"), setting.seed, name="primers")
    return [Held(choice, f"primer-{n:08d}") for n, choice in enumerate(chosen[:_PRIMERS])]


def _held_before(setting: Setting) -> int:
    """Return how many withdrawals are made before, so that there always is one to settle."""
    seconds = setting.seconds + setting.warm_up_seconds
    return int(setting.settle_rate * seconds) if setting.settle == "kafka" else 0


def _row_of_flow(progress: Sequence[tuple[float, int]], sent: int) -> Row:
    """Return how fast settlements were booked while withdrawals were answered."""
    first, before = progress[1 if len(progress) > 2 else 0]  # about the end of the warm-up
    last, after = progress[-1]
    row = row_of(
        "settlements from Kafka meanwhile",
        Histogram(),
        requests=after - before,
        seconds=max(last - first, 1e-9),
        cpu_seconds=0,
    )
    row.sent = sent
    return row


# ── settlements ───────────────────────────────────────────────────────────────────


def _run_settlements(
    setting: Setting, book: BenchPlace, directory: Path, report: Report
) -> Figures:
    """Measure backlogs of settlements, each on a fresh book, and verify the books."""
    syncs, commits = book.sync_times(directory), book.commit_times()
    ticks = processor_ticks()
    cases = [(is_warm, has_id) for is_warm in (False, True) for has_id in (False, True)]
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    spents: list[Spent] = []
    for number, (is_warm, has_id) in enumerate(cases):
        fresh = BenchPlace(setting.store or directory / f"book-{number}")
        case = _Backlog(setting, fresh, directory, is_warm=is_warm, has_id=has_id)
        report(case.name, number / len(cases))
        try:
            row, spent = case.run()
            rows.append(row)
            spents.append(spent)
            verdicts.append(fresh.verify())
        finally:
            fresh.remove()
    syncs, commits = syncs + book.sync_times(directory), commits + book.commit_times()
    spent = Spent(
        before=spents[0].before,
        after=spents[0].after,
        answered=rows[0].requests,
        growth=spents[0].growth,
        syncs=syncs,
        mean_batch=spents[0].mean_batch,
        stolen_percent=stolen_percent(ticks, processor_ticks()),
        commits=commits,
    )
    wrong = [verdict for verdict in verdicts if not verdict.ok]
    return _figures(setting, rows, spent, wrong[0] if wrong else verdicts[0])


class _Backlog:
    """One case: withdrawals are held, all are settled on Kafka, and the engine is let go."""

    def __init__(
        self,
        setting: Setting,
        book: BenchPlace,
        directory: Path,
        *,
        is_warm: bool,
        has_id: bool,
    ) -> None:
        self.setting = setting
        self.book = book
        self.directory = directory
        self.is_warm = is_warm
        self.has_id = has_id
        users, ids = "warm" if is_warm else "cold", "with" if has_id else "without"
        self.name = f"{users} users, {ids} settlement_id"
        first = int(WARM_SHARE * setting.users_in_memory) if is_warm else None
        chosen = choices(setting.users, Skew("uniform"), setting.seed, first=first, name="backlog")
        cycle = itertools.cycle(chosen)
        self.held = [Held(next(cycle), f"held-{n:08d}") for n in range(setting.messages)]
        self.primers = _primers(setting)
        if is_warm:  # everybody's first withdrawal brings him into memory
            scan = choices(setting.users, Skew("scan"), setting.seed, first=first)
            once = {choice.user: choice for choice in scan}
            self.primers = [Held(one, f"primer-{n:08d}") for n, one in enumerate(once.values())]

    def run(self) -> tuple[Row, Spent]:
        """Measure it."""
        before = self.held if self.is_warm else [*self.held, *self.primers]
        filled = _fill(self.setting, self.book, before, _unheard, len(before))
        with (
            InWheelBroker() as broker,
            _serve(self.setting, self.book, self.directory, broker.address) as stand,
            _booked(self.book) as booked,
        ):
            server = stand.servers[0]
            sender = Sender(broker.address)
            if self.is_warm:
                self._warm(server)
            sender.send_all(self.primers, has_id=self.has_id)
            begun = len(self.primers)
            _wait_until(lambda: booked() >= begun, "the engine reads the topic")
            with _stopped(server):
                sender.send_all(self.held, has_id=self.has_id)
                used = usage(server.pid)
            started = time.perf_counter()
            work_before = work_of(stand.askers)
            _wait_until(lambda: booked() >= begun + len(self.held), "all settlements are booked")
            seconds = time.perf_counter() - started
            after, work = usage(server.pid), work_of(stand.askers)
        entries = len(self.primers) * (1 + self.is_warm) + len(self.held)
        growth = Growth(self.book.size_bytes() - filled.size_bytes, entries)
        self._check()
        row = row_of(
            self.name, Histogram(), requests=len(self.held), seconds=seconds, cpu_seconds=0
        )
        spent = Spent(
            before=used,
            after=after,
            answered=len(self.held),
            growth=growth,
            mean_batch=work.mean_batch(work_before),
        )
        work.tell(row, work_before)
        return row, spent

    def _warm(self, server: Server) -> None:
        """Have each user withdraw once, so that all are in memory."""
        target = _target(self.setting, (server.host, server.port), "")
        requests = list(Withdrawals(target).requests(self.primers))
        client = Client((server.host, server.port), [iter(requests)], expected=Withdrawals.expected)
        client.finish_streams()
        client.close()
        if client.tally.errors:
            raise NotSettled(f"withdrawals were refused: {client.tally.statuses}")

    def _check(self) -> None:
        """No message was set aside, and no withdrawal is open any more. Raises NotSettled."""
        with self.book.reading() as store:
            if store.records(LETTER, limit=1):
                raise NotSettled("a settlement was set aside")
            after = 0
            while page := store.accounts(after, 1_000):
                after = page[-1].number
                if any(account.open_holds for account in page):
                    raise NotSettled("withdrawals are open that were settled")


def _unheard(what: str, share: float) -> None:
    """Tell nobody."""


# ── in process ────────────────────────────────────────────────────────────────────


def _run_in_process(setting: Setting, book: BenchPlace, directory: Path, report: Report) -> Figures:
    """Measure batches on a durable book without HTTP and Kafka, then verify the book."""
    size_before = book.size_bytes() if setting.store else 0
    syncs, commits = book.sync_times(directory), book.commit_times()
    job = DeskJob(
        scenario=setting.scenario,
        directory=str(directory / "book"),
        store=setting.store,
        book=book.book,
        batches=setting.batches,
        users=setting.users,
        users_in_memory=setting.users_in_memory,
        skew=setting.skew,
        keys=setting.keys,
        seconds=setting.seconds,
        settle=setting.settle,
        messages=setting.messages,
        seed=setting.seed,
    )
    with Worker(job) as worker:
        worker.wait_until_ready()
        before = usage(worker.pid)
        rows = worker.finish(setting.seconds * len(setting.batches), report)
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
        stolen_percent=worker.stolen_percent,
        machine_cpu_microseconds=worker.busy_microseconds,
        commits=commits,
    )
    return _figures(setting, rows, spent, verdict)


# ── all ───────────────────────────────────────────────────────────────────────────


def _figures(setting: Setting, rows: list[Row], spent: Spent, verdict: Verdict) -> Figures:
    return figures_of(
        setting,
        rows,
        spent,
        verified=verdict.ok,
        first_wrong=verdict.first_wrong,
        durability=IN_DATABASE if setting.store else DURABLE,
    )


def _fill(
    setting: Setting,
    book: BenchPlace,
    held: Sequence[Held] | Iterator[Held],
    report: Report,
    count: int,
) -> Growth:
    """Make the book, and say what is in it."""
    total = setting.users + count
    entries = fill_population(
        book,
        setting.users,
        setting.seed,
        held=held,
        report=lambda done: report(f"filling the book: {done} of {total}", done / total),
    )
    return Growth(book.size_bytes(), entries)


def _serve(setting: Setting, book: BenchPlace, directory: Path, broker: str) -> Stand:
    """Start a server with the bound on users, and the broker if there is one.

    It may be silent for long, so that it still owns the book after it was stopped.
    """
    file = directory / "pennyweight.toml"
    file.write_text(f"[cluster]\nlease_seconds = {_LEASE_SECONDS}\n")
    options = ["--config", str(file), "--users-in-memory", str(setting.users_in_memory)]
    if broker:
        options += ["--kafka", broker]
    return Stand(book, directory, options)


def _target(setting: Setting, address: tuple[str, int], name: str) -> Target:
    return Target(
        host=address[0],
        port=address[1],
        users=setting.users,
        skew=setting.skew,
        keys=setting.keys,
        seed=setting.seed,
        token=setting.token,
        run=name,
    )


def _load_job(
    setting: Setting,
    addresses: tuple[tuple[str, int], ...],
    name: str,
    brokers: str = "",
    held: int = 0,
) -> LoadJob:
    return LoadJob(
        scenario=setting.scenario,
        target=_target(setting, addresses[0], name),
        connections=setting.connections,
        seconds=setting.seconds,
        warm_up_seconds=setting.warm_up_seconds,
        rate=setting.rate,
        is_funded=True,
        settle=setting.settle,
        settle_rate=setting.settle_rate,
        brokers=brokers,
        held=held,
        others=addresses[1:],
    )


@contextmanager
def _booked(book: BenchPlace) -> Iterator[Callable[[], int]]:
    """Give what tells how many messages from Kafka the book's cursors have passed."""
    with book.reading() as store:
        yield lambda: sum(
            position for name, position in store.cursors().items() if name.startswith(_STREAMS)
        )


@contextmanager
def _stopped(server: Server) -> Iterator[None]:
    """Stop the server's process meanwhile."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


def _wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Look until something is so. Raises NotSettled."""
    until = time.monotonic() + _WAIT_SECONDS_MAX
    while not is_so():
        if time.monotonic() > until:
            raise NotSettled(f"after {_WAIT_SECONDS_MAX:.0f} s it is not so that {what}")
        time.sleep(_LOOK_SECONDS)


def _ratio(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    return None if before is None or after is None else hit_ratio(before, after)

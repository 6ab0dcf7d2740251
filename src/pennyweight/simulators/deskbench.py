"""Benchmarks of the withdrawal desk: withdrawals over HTTP, settlements from Kafka."""

import itertools
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pennyweight.ledger.letters import LETTER
from pennyweight.links.inwheel import InWheelBroker
from pennyweight.simulators.asking import Asker, mean_batch
from pennyweight.simulators.client import Client
from pennyweight.simulators.crew import Report, Worker
from pennyweight.simulators.deskwork import WARM_SHARE, fill_population, hit_ratio
from pennyweight.simulators.figures import Figures, Growth, Setting, Spent, figures_of
from pennyweight.simulators.flow import Sender
from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.jobs import DeskJob, LoadJob, Row, row_of
from pennyweight.simulators.machine import (
    Usage,
    processor_ticks,
    size_bytes,
    stolen_percent,
    sync_times,
    usage,
)
from pennyweight.simulators.sampling import Skew
from pennyweight.simulators.server import Server, Verdict, verify
from pennyweight.simulators.withdrawing import Held, Withdrawals, choices, reserve
from pennyweight.simulators.workloads import Target
from pennyweight.stores.sqlite import SQLiteStore

DESK = ("withdrawals", "settlements")
_LOOK_SECONDS = 0.05
_WAIT_SECONDS_MAX = 120.0
_STREAMS = "kafka:"
"""How cursors of streams that are read from Kafka begin."""

_PRIMERS = 8
"""Messages that show that the engine has begun to read; not measured."""


class NotSettled(Exception):
    """Messages that were sent have not been booked."""


def run_desk(setting: Setting, directory: Path, report: Report) -> Figures:
    """Measure a scenario of the desk. Raises what `bench.run` does, NotSettled, ExtraMissing."""
    if setting.is_in_process:
        return _run_in_process(setting, directory, report)
    if setting.scenario == "withdrawals":
        return _run_withdrawals(setting, directory, report)
    return _run_settlements(setting, directory, report)


def run_withdrawals_elsewhere(
    setting: Setting, address: tuple[str, int], report: Report
) -> Figures:
    """Measure a server that runs already, and has the generated population in its book."""
    asker = Asker(address, setting.token)
    with Worker(_load_job(setting, address, secrets.token_hex(3))) as worker:
        worker.wait_until_ready()
        before, cache = asker.batches(), asker.cache()
        rows = worker.finish(setting.seconds + setting.warm_up_seconds, report)
        spent = Spent(
            mean_batch=mean_batch(before, asker.batches()), stolen_percent=worker.stolen_percent
        )
        rows[0].cache_hit_ratio = _ratio(cache, asker.cache())
    report("verifying the book", 1.0)
    durability = "as that server has it"
    return figures_of(setting, rows, spent, verified=asker.verify(), durability=durability)


# ── withdrawals ───────────────────────────────────────────────────────────────────


def _run_withdrawals(setting: Setting, directory: Path, report: Report) -> Figures:
    """Measure a server of our own on a fresh book with the population, then verify the book."""
    book = directory / "book"
    held = _held_before(setting)
    primers = _primers(setting) if setting.settle == "kafka" else []
    before_all = itertools.chain(primers, reserve(setting.users, setting.seed, held))
    filled = _fill(setting, book, before_all, report, held)
    syncs = sync_times(directory)
    with ExitStack() as stack:
        broker = stack.enter_context(InWheelBroker()).address if setting.settle == "kafka" else ""
        server = stack.enter_context(_serve(setting, book, broker))
        address = (server.host, server.port)
        asker = Asker(address)
        worker = stack.enter_context(
            Worker(_load_job(setting, address, secrets.token_hex(3), broker, held))
        )
        worker.wait_until_ready()
        seen: list[Usage | None] = []
        with _booked(book) as booked:
            if broker:
                Sender(broker).send_all(primers, has_id=False)
                _wait_until(lambda: booked() >= len(primers), "the engine reads the topic")
            batches, cache, before = asker.batches(), asker.cache(), usage(server.pid)
            progress = [(time.perf_counter(), booked())]

            def watch(what: str, share: float) -> None:
                seen.append(usage(server.pid))
                progress.append((time.perf_counter(), booked()))
                report(what, share)

            rows = worker.finish(setting.seconds + setting.warm_up_seconds, watch)
            progress.append((time.perf_counter(), booked()))
            after, batches_after = usage(server.pid), asker.batches()
            rows[0].cache_hit_ratio = _ratio(cache, asker.cache())
            if broker:
                rows.append(_row_of_flow(progress, rows[0].sent))
                sent = len(primers) + rows[0].sent
                _wait_until(lambda: booked() >= sent, "all settlements are booked")
        answered = max(1, sum(rows[0].statuses.values()) + rows[0].sent)
        stolen = worker.stolen_percent
    syncs += sync_times(directory)
    report("verifying the book", 1.0)
    verdict = verify(book)
    spent = Spent(
        before=before,
        middle=seen[len(seen) // 2] if seen else None,
        after=after,
        answered=answered,
        growth=Growth(size_bytes(book) - filled.size_bytes, verdict.sequence - filled.entries),
        syncs=syncs,
        mean_batch=mean_batch(batches, batches_after),
        stolen_percent=stolen,
    )
    return figures_of(setting, rows, spent, verified=verdict.ok, first_wrong=verdict.first_wrong)


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


def _run_settlements(setting: Setting, directory: Path, report: Report) -> Figures:
    """Measure backlogs of settlements, each on a fresh book, and verify the books."""
    syncs = sync_times(directory)
    ticks = processor_ticks()
    cases = [(is_warm, has_id) for is_warm in (False, True) for has_id in (False, True)]
    rows: list[Row] = []
    verdicts: list[Verdict] = []
    spents: list[Spent] = []
    for number, (is_warm, has_id) in enumerate(cases):
        case = _Backlog(setting, directory / f"book-{number}", is_warm=is_warm, has_id=has_id)
        report(case.name, number / len(cases))
        row, spent = case.run()
        rows.append(row)
        spents.append(spent)
        verdicts.append(verify(case.book))
        shutil.rmtree(case.book)
    syncs += sync_times(directory)
    spent = Spent(
        before=spents[0].before,
        after=spents[0].after,
        answered=rows[0].requests,
        growth=spents[0].growth,
        syncs=syncs,
        mean_batch=spents[0].mean_batch,
        stolen_percent=stolen_percent(ticks, processor_ticks()),
    )
    wrong = [verdict.first_wrong for verdict in verdicts if not verdict.ok]
    first = wrong[0] if wrong else None
    return figures_of(setting, rows, spent, verified=not wrong, first_wrong=first)


class _Backlog:
    """One case: withdrawals are held, all are settled on Kafka, and the engine is let go."""

    def __init__(self, setting: Setting, book: Path, *, is_warm: bool, has_id: bool) -> None:
        self.setting = setting
        self.book = book
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
            _serve(self.setting, self.book, broker.address) as server,
            _booked(self.book) as booked,
        ):
            asker = Asker((server.host, server.port))
            sender = Sender(broker.address)
            if self.is_warm:
                self._warm(server)
            sender.send_all(self.primers, has_id=self.has_id)
            begun = len(self.primers)
            _wait_until(lambda: booked() >= begun, "the engine reads the topic")
            with _stopped(server):
                sender.send_all(self.held, has_id=self.has_id)
                batches_before, used = {}, usage(server.pid)
            started = time.perf_counter()
            batches_before = asker.batches()
            _wait_until(lambda: booked() >= begun + len(self.held), "all settlements are booked")
            seconds = time.perf_counter() - started
            after, batches = usage(server.pid), asker.batches()
        entries = len(self.primers) * (1 + self.is_warm) + len(self.held)
        growth = Growth(size_bytes(self.book) - filled.size_bytes, entries)
        self._check()
        row = row_of(
            self.name, Histogram(), requests=len(self.held), seconds=seconds, cpu_seconds=0
        )
        spent = Spent(
            before=used,
            after=after,
            answered=len(self.held),
            growth=growth,
            mean_batch=mean_batch(batches_before, batches),
        )
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
        store = SQLiteStore.open(self.book, is_read_only=True)
        try:
            if store.records(LETTER, limit=1):
                raise NotSettled("a settlement was set aside")
            after = 0
            while page := store.accounts(after, 1_000):
                after = page[-1].number
                if any(account.open_holds for account in page):
                    raise NotSettled("withdrawals are open that were settled")
        finally:
            store.close()


def _unheard(what: str, share: float) -> None:
    """Tell nobody."""


# ── in process ────────────────────────────────────────────────────────────────────


def _run_in_process(setting: Setting, directory: Path, report: Report) -> Figures:
    """Measure batches on a durable book without HTTP and Kafka, then verify the book."""
    book = directory / "book"
    syncs = sync_times(directory)
    job = DeskJob(
        scenario=setting.scenario,
        directory=str(book),
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
        after, stolen = worker.last_usage, worker.stolen_percent
    syncs += sync_times(directory)
    report("verifying the book", 1.0)
    verdict = verify(book)
    spent = Spent(
        before=before,
        after=after,
        answered=sum(row.requests for row in rows),
        growth=Growth(size_bytes(book), verdict.sequence),
        syncs=syncs,
        stolen_percent=stolen,
    )
    return figures_of(setting, rows, spent, verified=verdict.ok, first_wrong=verdict.first_wrong)


# ── all ───────────────────────────────────────────────────────────────────────────


def _fill(
    setting: Setting, book: Path, held: Sequence[Held] | Iterator[Held], report: Report, count: int
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
    return Growth(size_bytes(book), entries)


def _serve(setting: Setting, book: Path, broker: str) -> Server:
    """Start a server with the bound on users, and the broker if there is one."""
    options = ["--users-in-memory", str(setting.users_in_memory)]
    if broker:
        options += ["--kafka", broker]
    return Server(book, log=book.with_name(f"{book.name}.log"), options=options)


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
    setting: Setting, address: tuple[str, int], name: str, brokers: str = "", held: int = 0
) -> LoadJob:
    return LoadJob(
        scenario=setting.scenario,
        target=_target(setting, address, name),
        connections=setting.connections,
        seconds=setting.seconds,
        warm_up_seconds=setting.warm_up_seconds,
        rate=setting.rate,
        is_funded=True,
        settle=setting.settle,
        settle_rate=setting.settle_rate,
        brokers=brokers,
        held=held,
    )


@contextmanager
def _booked(book: Path) -> Iterator[Callable[[], int]]:
    """Give what tells how many messages from Kafka the book's cursors have passed."""
    store = SQLiteStore.open(book, is_read_only=True)
    try:
        yield lambda: sum(
            position for name, position in store.cursors().items() if name.startswith(_STREAMS)
        )
    finally:
        store.close()


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

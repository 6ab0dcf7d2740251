"""What is measured, and what came out, as `pennyweight bench --json` writes it."""

from pathlib import Path
from statistics import mean, stdev

import msgspec

from pennyweight.simulators.jobs import Row
from pennyweight.simulators.machine import Usage, median_microseconds
from pennyweight.simulators.withdrawing import Settle

DURABLE = "WAL, synchronous=FULL"
IN_DATABASE = "as the database has it"
_MEBIBYTE = 1 << 20
_HIDDEN = {"scenario", "token", "directory", "store"}


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure. `addresses` (host, port) are servers of one book that run already.

    `keys` are `random`, `ordered`, or for `in-process` `both`. `preload_*` fill our own
    book before. `rate` makes the loop an open one. `directory` is where the book's own
    temporary directory is made. For withdrawals and settlements: `users_in_memory` is the
    server's bound, `settle` how withdrawals end, `settle_rate` messages a second by Kafka,
    `messages` the settlements of each case. `store` is the URL of a database that gets our
    own book; `workers` are the processes of a server that speak HTTP, `instances` the servers.
    """

    scenario: str
    connections: int = 64
    seconds: float = 10.0
    warm_up_seconds: float = 1.0
    users: int = 1_000
    skew: str = "uniform"
    keys: str = "random"
    rate: float | None = None
    addresses: tuple[tuple[str, int], ...] = ()
    token: str = ""
    preload_keys: int = 0
    preload_accounts: int = 0
    batches: tuple[int, ...] = (1_000, 200, 32, 1)
    threads: tuple[int, ...] = (1, 8)
    seed: int = 1
    directory: Path | None = None
    users_in_memory: int = 300
    settle: Settle = "http"
    settle_rate: float = 5_000
    messages: int = 20_000
    is_in_process: bool = False
    store: str = ""
    workers: int = 1
    instances: int = 1

    @property
    def is_served(self) -> bool:
        """Whether requests come over HTTP."""
        is_elsewhere = self.scenario in {"in-process", "facade", "settlements"}
        return not (is_elsewhere or self.is_in_process)


class Growth(msgspec.Struct, frozen=True):
    """How many bytes a closed book grew by so many entries."""

    size_bytes: int
    entries: int


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What the measured process and its disk spent on so many commands (`answered`).

    `before` to `after` are of the process that owns the book. `commits` are small ones of the
    database, in nanoseconds.
    """

    before: Usage | None = None
    middle: Usage | None = None
    after: Usage | None = None
    answered: int = 1
    growth: Growth | None = None
    syncs: list[int] = []
    mean_batch: float | None = None
    stolen_percent: float | None = None
    fronts_cpu_microseconds: int | None = None
    machine_cpu_microseconds: int | None = None
    commits: list[int] = []
    owners: tuple[int, ...] = ()


class Figures(msgspec.Struct, kw_only=True):
    """What came out; the first case stands at the top, all of them in `rows`.

    What cannot be known of a foreign server, or without a disk or /proc, is None. `rss_mb` is
    the memory in the end. `server_cpu_us` and `client_cpu_us` are processor time for each
    command, the former of the process that owns the book; `fronts_cpu_us` is that of its
    workers and the other instances, `machine_cpu_us` that of everything, a database of this
    machine included. `bytes_per_transfer` is how much the book grew,
    `written_bytes_per_transfer` what the process sent to the disk for it. `commit_p50_us` is a
    small commit of the database on one connection, and `p50_commits` how many of these a
    request took, where it had one connection. `owners` are the numbers of the instances that
    owned the book, in turn. `runs` are the rates of all runs. `stolen_percent` is the share of
    processor time that the machine's host gave to others meanwhile; such figures say little
    above a few percent.
    """

    scenario: str
    setting: dict[str, object]
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    errors: int
    dropped: int
    mean_batch: float | None
    fdatasync_p50_us: int | None
    rss_mb: float | None
    rss_start_mb: float | None
    rss_middle_mb: float | None
    server_cpu_us: float | None
    client_cpu_us: float
    bytes_per_transfer: float | None
    written_bytes_per_transfer: float | None
    stolen_percent: float | None
    durability: str
    verified: bool
    first_wrong: object = None
    cache_hit_ratio: float | None = None
    fronts_cpu_us: float | None = None
    machine_cpu_us: float | None = None
    commit_p50_us: int | None = None
    p50_commits: float | None = None
    owners: list[int] = []
    rows: list[Row] = []
    runs: list[float] = []
    variation_percent: float | None = None


def middle_of(runs: list[Figures]) -> Figures:
    """Return the run in the middle, with the rates of all and their coefficient of variation.

    It is verified only if all are.
    """
    rates = [run.requests_per_second for run in runs]
    middle = sorted(runs, key=lambda run: run.requests_per_second)[len(runs) // 2]
    middle.runs = rates
    if len(rates) > 1 and mean(rates):
        middle.variation_percent = round(100 * stdev(rates) / mean(rates), 1)
    wrong = [run for run in runs if not run.verified]
    if wrong:
        middle.verified, middle.first_wrong = False, wrong[0].first_wrong
    return middle


def figures_of(
    setting: Setting,
    rows: list[Row],
    spent: Spent,
    *,
    verified: bool,
    first_wrong: object = None,
    durability: str = DURABLE,
) -> Figures:
    """Put everything together."""
    top = rows[0]
    commit = median_microseconds(spent.commits) if spent.commits else None
    is_alone = setting.is_served and setting.connections == 1
    return Figures(
        scenario=setting.scenario,
        setting={
            name: value
            for name, value in msgspec.structs.asdict(setting).items()
            if name not in _HIDDEN
        },
        requests_per_second=top.requests_per_second,
        p50_ms=top.p50_ms,
        p99_ms=top.p99_ms,
        p999_ms=top.p999_ms,
        errors=sum(row.errors for row in rows),
        dropped=sum(row.dropped for row in rows),
        mean_batch=spent.mean_batch,
        fdatasync_p50_us=median_microseconds(spent.syncs) if spent.syncs else None,
        rss_mb=_mebibytes(spent.after),
        rss_start_mb=_mebibytes(spent.before),
        rss_middle_mb=_mebibytes(spent.middle),
        server_cpu_us=_each(spent, "cpu_microseconds"),
        client_cpu_us=top.cpu_us,
        bytes_per_transfer=None
        if spent.growth is None
        else round(spent.growth.size_bytes / max(1, spent.growth.entries), 1),
        written_bytes_per_transfer=None
        if spent.growth is None or setting.store
        else _each(spent, "written_bytes"),
        stolen_percent=spent.stolen_percent,
        durability=durability,
        verified=verified,
        first_wrong=first_wrong,
        cache_hit_ratio=top.cache_hit_ratio,
        fronts_cpu_us=_share(spent.fronts_cpu_microseconds, spent.answered),
        machine_cpu_us=_share(spent.machine_cpu_microseconds, spent.answered),
        commit_p50_us=commit,
        p50_commits=round(1_000 * top.p50_ms / commit, 2) if commit and is_alone else None,
        owners=list(spent.owners),
        rows=rows,
    )


def _mebibytes(usage: Usage | None) -> float | None:
    return None if usage is None else round(usage.rss_bytes / _MEBIBYTE, 1)


def _each(spent: Spent, field: str) -> float | None:
    """Return what was spent of something for each command."""
    if spent.before is None or spent.after is None:
        return None
    total: int = getattr(spent.after, field) - getattr(spent.before, field)
    return round(total / spent.answered, 2)


def _share(total: int | None, answered: int) -> float | None:
    return None if total is None else round(total / answered, 2)

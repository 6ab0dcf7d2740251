"""What a worker process is asked, and what it answers: one JSON line each."""

import msgspec

from pennyweight.simulators.client import Tally
from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.withdrawing import Settle
from pennyweight.simulators.workloads import Target


class LoadJob(msgspec.Struct, frozen=True, kw_only=True, tag="load"):
    """Load a server by HTTP. Without a `rate` each connection sends as fast as it is answered.

    `others` are more servers of the same book; connections are dealt out to all in turn.
    Withdrawals end as `settle` says; by `kafka`, `settle_rate` messages a second go to
    `brokers`, of which `held` were made before.
    """

    scenario: str
    target: Target
    connections: int
    seconds: float
    warm_up_seconds: float
    rate: float | None = None
    is_funded: bool = False
    settle: Settle = "http"
    settle_rate: float = 0.0
    brokers: str = ""
    held: int = 0
    others: tuple[tuple[str, int], ...] = ()


class InProcessJob(msgspec.Struct, frozen=True, kw_only=True, tag="in-process"):
    """Execute batches of transfers on a durable book in the worker's own process.

    It is in a directory, or in the database `store` under the name `book`.
    """

    directory: str
    store: str = ""
    book: str = ""
    batches: tuple[int, ...]
    keys: tuple[str, ...]
    users: int
    skew: str
    seconds: float
    seed: int


class FacadeJob(msgspec.Struct, frozen=True, kw_only=True, tag="facade"):
    """Bet and win through `pennyweight.wallet` in memory, by so many threads."""

    threads: tuple[int, ...]
    users: int
    skew: str
    seconds: float
    seed: int


class DeskJob(msgspec.Struct, frozen=True, kw_only=True, tag="desk"):
    """Execute withdrawals or settlements on a durable book in the worker's own process.

    It is where `InProcessJob` says, and gets the generated population first. Withdrawals end by settlements unless
    `settle` is `none`. `messages` are settled in each case.
    """

    scenario: str
    directory: str
    store: str = ""
    book: str = ""
    batches: tuple[int, ...]
    users: int
    users_in_memory: int
    skew: str
    keys: str
    seconds: float
    settle: Settle
    messages: int
    seed: int


Job = LoadJob | InProcessJob | FacadeJob | DeskJob


class Row(msgspec.Struct, kw_only=True):
    """One measured case. Latencies are of requests, or of whole batches where there are batches.

    `dropped` were due in an open loop and never sent. `cpu_us` is the worker's own
    processor time for each request. `sent` are messages to Kafka beside the requests.
    `round_trips` are those to a database for each batch, `sent_bytes` what goes there for
    each request.
    """

    case: str
    requests: int
    seconds: float
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float
    errors: int = 0
    dropped: int = 0
    statuses: dict[str, int] = {}
    cpu_us: float = 0.0
    cache_hit_ratio: float | None = None
    sent: int = 0
    round_trips: float | None = None
    sent_bytes: float | None = None
    is_correct: bool = True
    """False when the worker saw for itself that money went missing."""


class Line(msgspec.Struct, omit_defaults=True):
    """One line from a worker: it is ready, so much is done, the rows, or what went wrong."""

    is_ready: bool = False
    done: int | None = None
    rows: list[Row] | None = None
    wrong: str = ""


def row_of(
    case: str,
    histogram: Histogram,
    *,
    requests: int,
    seconds: float,
    cpu_seconds: float,
    tally: Tally | None = None,
    dropped: int = 0,
) -> Row:
    """Sum a case up; `requests` is what was done in these seconds."""
    return Row(
        case=case,
        requests=requests,
        seconds=round(seconds, 3),
        requests_per_second=round(requests / seconds, 1),
        p50_ms=milliseconds(histogram.quantile(500_000)),
        p99_ms=milliseconds(histogram.quantile(990_000)),
        p999_ms=milliseconds(histogram.quantile(999_000)),
        max_ms=milliseconds(histogram.longest),
        errors=tally.errors if tally else 0,
        dropped=dropped,
        statuses=tally.statuses if tally else {},
        cpu_us=round(cpu_seconds * 1e6 / max(1, requests), 2),
    )


def milliseconds(nanoseconds: int) -> float:
    """Return nanoseconds as milliseconds, to the microsecond."""
    return round(nanoseconds / 1e6, 3)

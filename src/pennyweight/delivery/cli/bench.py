"""`pennyweight bench`: measure speed, then verify the book."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from cyclopts import App, Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pennyweight.delivery.cli.bench_cache import cache
from pennyweight.delivery.cli.shared import UserError
from pennyweight.simulators.bench import run_many
from pennyweight.simulators.crew import Report, WorkerFailed
from pennyweight.simulators.figures import Figures, Setting
from pennyweight.simulators.server import ServerFailed

app = App(name="bench", help="Measure speed, then verify the book.", result_action="return_value")
app.command(cache)

Scenario = Literal["transfers", "payments", "bets", "in-process", "facade"]


@app.default
def bench(
    scenario: Annotated[Scenario, Parameter(help="What to measure.")] = "transfers",
    /,
    *,
    connections: Annotated[int, Parameter(help="One request is under way on each.")] = 64,
    seconds: Annotated[float, Parameter(help="How long to measure each case.")] = 10.0,
    warm_up: Annotated[float, Parameter(help="Seconds of load before measuring.")] = 1.0,
    users: Annotated[int, Parameter(help="How many accounts take part.")] = 1_000,
    skew: Annotated[
        str, Parameter(help="Who takes part: uniform, zipf:S, or hot (all pay one account).")
    ] = "uniform",
    rate: Annotated[
        float | None,
        Parameter(help="Open loop: so many requests a second, whatever the server does."),
    ] = None,
    address: Annotated[
        str | None, Parameter(help="A running server instead of one of our own.")
    ] = None,
    token: Annotated[str, Parameter(help="Its API key, if it wants one.")] = "",
    keys: Annotated[
        Literal["random", "ordered", "both"],
        Parameter(help="Idempotency keys: random, time-ordered; both for in-process."),
    ] = "random",
    batch: Annotated[
        tuple[int, ...],
        Parameter(help="In-process: commands in a batch.", consume_multiple=True, negative=()),
    ] = (1_000, 200, 32, 1),
    threads: Annotated[
        tuple[int, ...],
        Parameter(help="Facade: so many callers at once.", consume_multiple=True, negative=()),
    ] = (1, 8),
    preload_accounts: Annotated[
        int, Parameter(help="Transfers: accounts that are in the book before.")
    ] = 0,
    preload_keys: Annotated[int, Parameter(help="Transfers: keys bound before.")] = 0,
    runs: Annotated[int, Parameter(help="Measure so often; the run in the middle is shown.")] = 1,
    seed: Annotated[int, Parameter(help="Who pays whom.")] = 1,
    directory: Annotated[
        Path | None, Parameter(help="Where the temporary book goes: the disk to measure.")
    ] = None,
    json: Annotated[
        Path | None,
        Parameter(
            help="Write the figures to this file too; - is stdout.", allow_leading_hyphen=True
        ),
    ] = None,
) -> int:
    """Measure how fast money moves, durably, and verify the book afterwards.

    Starts a server on a fresh book in a temporary directory and loads it from another
    process: `transfers` by `/v1/transfers`, `payments` by `/payments`, `bets` by bets and
    wins in turn. `in-process` executes batches on a durable book without HTTP, `facade`
    bets and wins in Python, in memory. Every request has a key of its own.

    With `--rate`, latency counts from the moment a request was due. Exits with 1 when the
    book is not right afterwards.

    Example: pennyweight bench transfers --connections 64 --seconds 10
    """
    setting = Setting(
        scenario=scenario,
        connections=connections,
        seconds=seconds,
        warm_up_seconds=warm_up,
        users=max(users, preload_accounts and 2),
        skew=skew,
        keys=keys,
        rate=rate,
        address=None if address is None else _host_and_port(address),
        token=token,
        preload_keys=preload_keys,
        preload_accounts=preload_accounts,
        batches=batch,
        threads=threads,
        seed=seed,
        directory=directory,
    )
    try:
        with _progress(scenario) as report:
            figures = run_many(setting, runs, report)
    except ValueError as error:
        raise UserError(str(error), code=2) from None
    except (WorkerFailed, ServerFailed) as error:
        raise UserError(str(error)) from None
    if json is None or str(json) != "-":
        _show(figures)
    if json is not None:
        _write(figures, json)
    return 0 if figures.verified else 1


def _host_and_port(address: str) -> tuple[str, int]:
    """Read http://host:port or host:port. Raises UserError."""
    wrong = UserError(f"an address is like http://127.0.0.1:8080, not {address!r}", code=2)
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        raise wrong from None
    if not host or parts.scheme not in {"", "http"}:
        raise wrong
    return host, port


@contextmanager
def _progress(scenario: str) -> Iterator[Report]:
    """Show a bar on stderr, if somebody is watching."""
    if not sys.stderr.isatty():
        yield lambda _what, _share: None
        return
    with Progress(
        TextColumn(scenario),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def _write(figures: Figures, file: Path) -> None:
    text = msgspec.json.format(msgspec.json.encode(figures)).decode() + "\n"
    if str(file) == "-":
        print(text, end="")
    else:
        file.write_text(text)


def _show(figures: Figures) -> None:
    """Print the cases as a table, and what belongs beside them."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    table = Table()
    table.add_column("case", no_wrap=True)
    for name in ("requests/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "errors", "CPU µs"):
        table.add_column(name, justify="right")
    for row in figures.rows:
        table.add_row(
            row.case,
            f"{row.requests_per_second:,.0f}".replace(",", " "),
            f"{row.p50_ms:.2f}",
            f"{row.p99_ms:.2f}",
            f"{row.p999_ms:.2f}",
            f"{row.max_ms:.2f}",
            str(row.errors),
            f"{row.cpu_us:.1f}",
        )
    console.print(table)
    for name, value in _beside(figures):
        console.print(f"{name:<26} {value}")
    if not figures.verified:
        console.print(f"first wrong: {figures.first_wrong}", markup=False)


def _memory_before(figures: Figures) -> str:
    before = f"{figures.rss_start_mb} before the load"
    return before if figures.rss_middle_mb is None else f"{before}, {figures.rss_middle_mb} halfway"


def _beside(figures: Figures) -> Iterator[tuple[str, str]]:
    """Yield what is known beside the cases, with its unit."""
    known = (
        ("durability", figures.durability, ""),
        ("mean batch", figures.mean_batch, " commands"),
        ("disk's own fdatasync, p50", figures.fdatasync_p50_us, " µs"),
        ("server's memory", figures.rss_mb, f" MiB, {_memory_before(figures)}"),
        ("server's CPU per command", figures.server_cpu_us, " µs"),
        ("book's growth per command", figures.bytes_per_transfer, " bytes"),
        ("written per command", figures.written_bytes_per_transfer, " bytes"),
        ("taken by the host's others", figures.stolen_percent, " % of the processors"),
        ("never sent (open loop)", figures.dropped or None, ""),
    )
    for name, value, unit in known:
        if value is not None:
            yield name, f"{value}{unit}"
    if len(figures.runs) > 1:
        rates = ", ".join(f"{rate:.0f}" for rate in figures.runs)
        yield "requests/s of all runs", f"{rates}; variation {figures.variation_percent} %"
    for row in figures.rows:
        if row.errors:
            yield f"statuses of {row.case}", ", ".join(f"{k}: {v}" for k, v in row.statuses.items())
    yield "verified", "yes" if figures.verified else "NO"

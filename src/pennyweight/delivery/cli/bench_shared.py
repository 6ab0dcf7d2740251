"""What the benchmarks of speed share: one measurement, its progress, its table, its JSON."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pennyweight.delivery.cli.shared import UserError
from pennyweight.links.errors import ExtraMissing, LinkError
from pennyweight.simulators.bench import run_many
from pennyweight.simulators.crew import Report, WorkerFailed
from pennyweight.simulators.deskbench import NotSettled
from pennyweight.simulators.figures import Figures, Setting
from pennyweight.simulators.server import ServerFailed

JsonFile = Annotated[
    Path | None,
    Parameter(help="Write the figures to this file too; - is stdout.", allow_leading_hyphen=True),
]
Directory = Annotated[
    Path | None, Parameter(help="Where the temporary book goes: the disk to measure.")
]
Runs = Annotated[int, Parameter(help="Measure so often; the run in the middle is shown.")]
Connections = Annotated[int, Parameter(help="One request is under way on each.")]
Seconds = Annotated[float, Parameter(help="How long to measure each case.")]
WarmUp = Annotated[float, Parameter(help="Seconds of load before measuring.")]
Rate = Annotated[
    float | None,
    Parameter(help="Open loop: so many requests a second, whatever the server does."),
]
Addresses = Annotated[
    tuple[str, ...],
    Parameter(
        help="A running server instead of one of our own; several of one book share the load.",
        name="--address",
        consume_multiple=True,
        negative=(),
        show_default=False,
    ),
]
StoreUrl = Annotated[
    str | None,
    Parameter(
        help="A database for the book, which gets a name of its own there, instead of a directory.",
        negative=(),
    ),
]
Token = Annotated[str, Parameter(help="Its API key, if it wants one.")]
Batch = Annotated[
    tuple[int, ...],
    Parameter(help="In-process: commands in a batch.", consume_multiple=True, negative=()),
]


def measure(setting: Setting, runs: int, json: Path | None) -> int:
    """Measure, show the figures, and return the exit code. Raises UserError."""
    try:
        with _progress(setting.scenario) as report:
            figures = run_many(setting, runs, report)
    except ValueError as error:
        raise UserError(str(error), code=2) from None
    except (WorkerFailed, ServerFailed, NotSettled, LinkError, ExtraMissing) as error:
        raise UserError(str(error)) from None
    if json is None or str(json) != "-":
        _show(figures)
    if json is not None:
        _write(figures, json)
    return 0 if figures.verified else 1


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
            *(
                f"{latency:.2f}" if row.max_ms else "-"
                for latency in (row.p50_ms, row.p99_ms, row.p999_ms, row.max_ms)
            ),
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


def _owners(figures: Figures) -> str | None:
    """Name who owned the book, where there were several to choose from."""
    names = ", then ".join(f"instance {number}" for number in figures.owners)
    count = figures.setting["instances"]
    return f"{names} of {count}" if names and count != 1 else None


def _beside(figures: Figures) -> Iterator[tuple[str, str]]:
    """Yield what is known beside the cases, with its unit."""
    known = (
        ("durability", figures.durability, ""),
        ("mean batch", figures.mean_batch, " commands"),
        ("users found in memory", figures.cache_hit_ratio, " of withdrawals"),
        ("disk's own fdatasync, p50", figures.fdatasync_p50_us, " µs"),
        ("database's commit, p50", figures.commit_p50_us, " µs for one row on one connection"),
        ("p50 of a request", figures.p50_commits, " of these"),
        ("owner of the book", _owners(figures), ""),
        ("server's memory", figures.rss_mb, f" MiB, {_memory_before(figures)}"),
        ("server's CPU per command", figures.server_cpu_us, " µs"),
        ("fronts' CPU per command", figures.fronts_cpu_us, " µs"),
        ("machine's CPU per command", figures.machine_cpu_us, " µs, with everything on it"),
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
        if row.round_trips is not None:
            yield (
                f"to the database, {row.case}",
                (f"{row.round_trips} round trips a batch, {row.sent_bytes} bytes a command"),
            )
        if row.errors:
            yield f"statuses of {row.case}", ", ".join(f"{k}: {v}" for k, v in row.statuses.items())
    yield "verified", "yes" if figures.verified else "NO"

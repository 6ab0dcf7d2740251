"""`pennyweight bench ticks`: what a tick costs with many loans."""

from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from pennyweight.delivery.cli.shared import UserError, progress
from pennyweight.simulators.inprocess import NotDone
from pennyweight.simulators.tickbench import Ticks, measure_all


def ticks(
    *,
    loans: Annotated[
        tuple[int, ...],
        Parameter(help="So many active loans.", consume_multiple=True, negative=()),
    ] = (1_000, 100_000, 1_000_000),
    looks: Annotated[int, Parameter(help="Ticks without hits to time.")] = 1_000,
    due: Annotated[int, Parameter(help="Liquidations that are due at once.")] = 1_000,
    verify: Annotated[
        bool, Parameter(help="Verify the book afterwards; long with many loans.", negative=())
    ] = False,
    seed: Annotated[int, Parameter(help="The same seed gives the same loans.")] = 1,
    directory: Annotated[
        Path | None, Parameter(help="Where the temporary books go: the disk to measure.")
    ] = None,
    json: Annotated[
        Path | None,
        Parameter(
            help="Write the figures to this file too; - is stdout.", allow_leading_hyphen=True
        ),
    ] = None,
) -> int:
    """Measure what a new quote costs with many loans, on a durable book in this process.

    For each number of loans a book is built, which takes a while. Then it is timed how long
    the appraiser looks for what is due where nothing is, and, once the price has fallen, how
    long it takes until all liquidations that are due are begun. The journal must show them
    in order, highest loan-to-value first; exits with 1 otherwise.

    Example: pennyweight bench ticks --loans 1000 100000 --verify
    """
    if min(loans, default=0) < 1 or looks < 1 or due < 1:
        raise UserError("--loans, --looks and --due are 1 or more", code=2)
    try:
        with progress("ticks", "loans") as report:
            figures = measure_all(
                loans,
                ticks=looks,
                due=due,
                is_verified=verify,
                seed=seed,
                directory=directory,
                report=report,
            )
    except NotDone as error:
        raise UserError(str(error)) from None
    if json is None or str(json) != "-":
        _show(figures)
    if json is not None:
        text = msgspec.json.format(msgspec.json.encode(figures)).decode() + "\n"
        if str(json) == "-":
            print(text, end="")
        else:
            json.write_text(text)
    return 0 if all(row.is_ordered and row.verified is not False for row in figures) else 1


def _show(figures: list[Ticks]) -> None:
    """Print a row for each number of loans."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    table = Table(caption="tick: a look at all indexes that finds nothing")
    for name in (
        "loans",
        "tick p50 µs",
        "tick p99 µs",
        "due at once",
        "all begun in s",
        "in order",
        "verified",
        "built in s",
        "book MiB",
    ):
        table.add_column(name, justify="right")
    for row in figures:
        table.add_row(
            f"{row.loans:,}".replace(",", " "),
            f"{row.tick_p50_us:.1f}",
            f"{row.tick_p99_us:.1f}",
            str(row.due),
            f"{row.begun_seconds:.3f}",
            "yes" if row.is_ordered else "NO",
            {None: "-", True: "yes", False: "NO"}[row.verified],
            f"{row.build_seconds:.1f}",
            f"{row.book_mb:.1f}",
        )
    console.print(table)
    for row in figures:
        if row.verified is False:
            console.print(f"first wrong: {row.first_wrong}", markup=False)

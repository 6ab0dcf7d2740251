"""`pennyweight bench cache`: how often each policy finds the user in memory."""

from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from pennyweight.delivery.cli.shared import UserError, progress
from pennyweight.simulators.cachebench import OURS, Comparison, compare
from pennyweight.simulators.drawing import drawing


def cache(
    *,
    requests: Annotated[int, Parameter(help="How many requests each trace has.")] = 200_000,
    users: Annotated[int, Parameter(help="How many users there are.")] = 900,
    capacity: Annotated[int, Parameter(help="How many of them may stay in memory.")] = 300,
    seed: Annotated[int, Parameter(help="The same seed gives the same traces.")] = 1,
    svg: Annotated[Path | None, Parameter(help="Draw the table into this file.")] = None,
    json: Annotated[
        Path | None,
        Parameter(
            help="Write the figures to this file too; - is stdout.", allow_leading_hyphen=True
        ),
    ] = None,
) -> int:
    """Compare our replacement policy with those of the literature, on seeded traces.

    Shows the share of requests that find their user in memory. Nothing is timed: the same
    seed gives the same figures everywhere, except theine's, which draws lots. What each
    trace is: docs/cache.md.

    Example: pennyweight bench cache --capacity 300 --svg cache.svg
    """
    try:
        with progress("cache", "traces") as report:
            comparison = compare(
                users=users, capacity=capacity, requests=requests, seed=seed, report=report
            )
    except ValueError as error:
        raise UserError(str(error), code=2) from None
    if json is None or str(json) != "-":
        _show(comparison)
    if svg is not None:
        svg.write_text(drawing(comparison))
    if json is not None:
        text = msgspec.json.format(msgspec.json.encode(comparison)).decode() + "\n"
        if str(json) == "-":
            print(text, end="")
        else:
            json.write_text(text)
    return 0


def _show(comparison: Comparison) -> None:
    """Print a row for each policy, in percent: the columns are the traces."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 150
    table = Table(
        caption=f"hits in percent: {comparison.capacity} of {comparison.users} users in memory, "
        f"{comparison.requests} requests, seed {comparison.seed}"
    )
    table.add_column("policy", no_wrap=True)
    for trace in comparison.traces:
        table.add_column(trace, justify="right")
    for name, ratios in comparison.hit_ratios.items():
        figures = (f"{100 * ratio:.2f}" for ratio in ratios)
        table.add_row(name, *figures, style="bold" if name == OURS else "")
    table.add_section()
    table.add_row(
        "ours, against the best online", *(f"{100 * lead:+.2f}" for lead in comparison.lead())
    )
    console.print(table)
    if comparison.missing:
        console.print(f"not installed, so not compared: {', '.join(comparison.missing)}")

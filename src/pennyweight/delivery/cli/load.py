"""`pennyweight load`: accounts and balances from a CSV file."""

from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from pennyweight.config import load as load_config
from pennyweight.delivery.balances import BadFile, Balances, Row, load_of, read_balances
from pennyweight.delivery.cli.shared import (
    ConfigFile,
    Data,
    Json,
    UserError,
    print_json,
    progress,
    roof,
)
from pennyweight.engine.receipts import Outcome, Receipt, Refusal
from pennyweight.ledger.money import format_amount
from pennyweight.runtime.inline import InlineBook

BATCH = 500


class Summary(msgspec.Struct):
    """What a load did. `totals` are decimal text by asset, over all rows of the file."""

    file: str
    digest: str
    rows: int
    loaded: int = 0
    repeated: int = 0
    refused: list[str] = []
    totals: dict[str, str] = {}


def load(
    file: Annotated[Path, Parameter(help="CSV: User_Id, then one column for each asset.")],
    /,
    *,
    data: Data,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Load accounts and balances from a CSV file, each row as one entry.

    The whole file is checked first; if anything in it is wrong, nothing is loaded. Loading
    the same file again changes nothing. A balance of 0 opens the account. What is loaded
    comes from `world`, and adds to what a user has already.

    Example: pennyweight load users.csv --data book
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}", code=2)
    settings = load_config(config).config
    with roof().open_inline(data, settings) as book:
        try:
            balances = read_balances(file, book.engine.standing.assets)
        except BadFile as error:
            if json:
                print_json({"ok": False, "problems": error.problems, "count": error.count})
            raise UserError(f"{file}: {error}; nothing was loaded") from None
        summary = _load(book, balances, file)
    if json:
        print_json(summary)
    else:
        _show(summary)
    if summary.refused:
        raise UserError(f"{file}: {summary.refused[0]}")
    return 0


def _load(book: InlineBook, balances: Balances, file: Path) -> Summary:
    """Execute one command per row, in batches."""
    assets = book.engine.standing.assets
    summary = Summary(
        str(file),
        balances.digest,
        len(balances.rows),
        totals={
            name: format_amount(units, assets[name].scale)
            for name, units in balances.totals.items()
        },
    )
    with progress("loading", "users") as tell:
        for start in range(0, len(balances.rows), BATCH):
            rows = balances.rows[start : start + BATCH]
            outcomes = book.execute_many([load_of(balances.digest, row) for row in rows])
            for row, outcome in zip(rows, outcomes, strict=True):
                _count(summary, row, outcome)
            tell(start + len(rows), len(balances.rows))
    return summary


def _count(summary: Summary, row: Row, outcome: Outcome) -> None:
    match outcome:
        case Receipt(is_replayed=True):
            summary.repeated += 1
        case Receipt():
            summary.loaded += 1
        case Refusal(message=message):
            summary.refused.append(f"row {row.number}, user {row.user}: {message}")
        case _:
            raise UserError(f"row {row.number}, user {row.user}: {outcome}")


def _show(summary: Summary) -> None:
    print(f"{summary.loaded} users loaded, {summary.repeated} were loaded before")
    for name, total in summary.totals.items():
        print(f"  {name:8} {total}")

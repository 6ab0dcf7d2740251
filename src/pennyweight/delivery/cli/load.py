"""`pennyweight load`: accounts and balances from a CSV file."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter

from pennyweight.delivery.balances import BadFile, Balances, Loaded, load_into, read_balances
from pennyweight.delivery.cli.shared import (
    BookName,
    ConfigFile,
    Data,
    Json,
    StoreUrl,
    UserError,
    find,
    print_json,
    progress,
    roof,
)
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.ledger.money import format_amount
from pennyweight.runtime.inline import InlineBook


class Summary(msgspec.Struct):
    """What a load did. `totals` are decimal text by asset, over all rows of the file.

    `added` counts those of `loaded` who had balances already, to which theirs were added.
    """

    file: str
    digest: str
    rows: int
    loaded: int = 0
    repeated: int = 0
    added: int = 0
    refused: list[str] = []
    totals: dict[str, str] = {}


def load(
    file: Annotated[Path, Parameter(help="CSV: User_Id, then one column for each asset.")],
    /,
    *,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    config: ConfigFile = None,
    json: Json = False,
) -> int:
    """Load accounts and balances from a CSV file, each row as one entry.

    The whole file is checked first; if anything in it is wrong, nothing is loaded. Loading
    the same users and balances again changes nothing, however the file is written. A
    balance of 0 opens the account. What is loaded comes from `world`, and adds to what a
    user has already: a file that differs in one balance is another file. Nobody may serve
    the book meanwhile.

    Example: pennyweight load users.csv --data book
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}", code=2)
    found, settings = find(data, store, book, config)
    with roof().open_inline(found.place, settings) as opened:
        try:
            balances = read_balances(file, opened.engine.standing.assets)
        except BadFile as error:
            if json:
                print_json({"ok": False, "problems": error.problems, "count": error.count})
            raise UserError(f"{file}: {error}; nothing was loaded") from None
        summary = _load(opened, balances, file)
    if json:
        print_json(summary)
    else:
        _show(summary)
    if summary.added:
        who = "1 user" if summary.added == 1 else f"{summary.added} users"
        print(
            f"pennyweight: {who} had balances already: the file's amounts were added to them",
            file=sys.stderr,
        )
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
    done = 0
    with progress("loading", "users") as tell:
        for batch in load_into(book, balances):
            for loaded in batch:
                _count(summary, loaded)
            done += len(batch)
            tell(done, len(balances.rows))
    return summary


def _count(summary: Summary, loaded: Loaded) -> None:
    row = loaded.row
    match loaded.outcome:
        case None | Receipt(is_replayed=True):
            summary.repeated += 1
        case Receipt():
            summary.loaded += 1
            summary.added += loaded.is_added
        case Refusal(message=message):
            summary.refused.append(f"row {row.number}, user {row.user}: {message}")
        case outcome:
            raise UserError(f"row {row.number}, user {row.user}: {outcome}")


def _show(summary: Summary) -> None:
    print(f"{summary.loaded} users loaded, {summary.repeated} were loaded before")
    for name, total in summary.totals.items():
        print(f"  {name:8} {total}")

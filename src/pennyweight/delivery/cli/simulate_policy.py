"""`pennyweight simulate policy`: several policies over what one portfolio really went through."""

import tomllib
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pennyweight.delivery.cli.shared import (
    BookName,
    Data,
    StoreUrl,
    UserError,
    open_book,
    progress,
    where,
)
from pennyweight.delivery.http.wire import BadRequest, rfc3339
from pennyweight.delivery.portfolios import policy_in
from pennyweight.ledger.entries import CorruptEntry
from pennyweight.ledger.money import canonical, parse
from pennyweight.ledger.refusals import Refused
from pennyweight.products.portfolios.shared import TARGET_TOLERANCE, Policy, Weights, weights_of
from pennyweight.simulators.drawing import CURVES_MAX
from pennyweight.simulators.policysim import (
    REAL,
    UNTOUCHED,
    Compared,
    Figures,
    Past,
    PastMissing,
    figures,
    moment_of,
    past_in,
    past_of,
    picture,
    real,
    replayed,
)

_REPORT_EVERY = 256


def policy(
    *,
    policies: Annotated[
        list[Path],
        Parameter(
            help="Policies, one TOML file each, with the fields that PUT /portfolio/policy takes.",
            consume_multiple=True,
            negative=(),
        ),
    ],
    user: Annotated[
        str | None,
        Parameter(help="Whose history is replayed.", negative=(), allow_leading_hyphen=True),
    ] = None,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    history: Annotated[
        Path | None,
        Parameter(
            help="Instead of a user's: a CSV file, a date and a column for each asset: its "
            "prices, or its percentages in a portfolio that nobody touches.",
            negative=(),
        ),
    ] = None,
    target: Annotated[
        list[str],
        Parameter(
            help="With --history, as in stocks=60 bonds=40; else the first row is the target.",
            consume_multiple=True,
            negative=(),
            show_default=False,
        ),
    ] = [],  # noqa: B006 - cyclopts wants a list, and nobody changes it
    since: Annotated[
        str | None,
        Parameter(
            name="--from", help="Replay from this date, or moment (RFC 3339), on.", negative=()
        ),
    ] = None,
    until: Annotated[
        str | None, Parameter(help="Replay up to and with this date, or moment.", negative=())
    ] = None,
    cost_percent: Annotated[
        str, Parameter(help="What trading costs, in percent of all that is bought and sold.")
    ] = "0.1",
    svg: Annotated[
        Path | None, Parameter(help="Draw drift and trades into this file.", negative=())
    ] = None,
    json: Annotated[
        Path | None,
        Parameter(
            help="Write the figures to this file; - is stdout, instead of the table.",
            allow_leading_hyphen=True,
            negative=(),
        ),
    ] = None,
) -> int:
    """Replay policies over a portfolio's own drift history, and compare what each had traded.

    Between two updates each asset moved as the provider's figures say, against what was
    really held (trades that were not marked executed did not happen). The weights of each
    policy move by the same factors; its trades count as done at once. An asset that was not
    held before is a flow, of the same share for all; what is paid into one that was held
    looks like a rise of it. The real course is shown beside them.

    The tracking error is the root mean square, over the updates, of the drift score (half of
    the sum of all differences from the target) before trades. Turnover is what was bought. All
    are points, percent of the portfolio. May run while the book is served.

    Example: pennyweight simulate policy --data book --user 1 --policies monthly.toml bands.toml --svg drift.svg
    """
    cost = _cost(cost_percent)
    begin, end = _moment("--from", since), _moment("--until", until, is_end=True)
    chosen = _policies(policies)
    if history is not None:
        if user is not None or data is not None or store is not None or book is not None:
            raise UserError("give --history, or --user and where the book is, not both", code=2)
        past, source = _read_file(history, _target(target), begin, end), str(history)
    elif user is None:
        raise UserError("give --user, or --history", code=2)
    elif target:
        raise UserError("--target goes with --history; a portfolio of a book has its own", code=2)
    else:
        past, source = _read_book(user, (data, store, book), begin, end), f"user {user}"
    tracks = [real(past, REAL if history is None else UNTOUCHED)]
    with progress("replaying", "updates") as tell:
        total = len(past.updates) * len(chosen)

        def told(done: int, _: int) -> None:
            if done % _REPORT_EVERY == 0:
                tell((len(tracks) - 1) * len(past.updates) + done, total)

        for name, rules in chosen.items():
            tracks.append(replayed(past, rules, name, tell=told))
    compared = Compared(
        source=source,
        began=rfc3339(past.updates[0].at),
        ended=rfc3339(past.updates[-1].at),
        cost_percent=canonical(cost_percent),
        proposed=past.proposed,
        executed=past.executed,
        unmatched=past.unmatched,
        policies=[figures(track, cost) for track in tracks],
    )
    if json is None or str(json) != "-":
        _show(compared)
    if svg is not None:
        svg.write_text(picture(tracks, f"Policies over the history of {source}"), "utf-8")
    if json is not None:
        text = msgspec.json.format(msgspec.json.encode(compared)).decode() + "\n"
        if str(json) == "-":
            print(text, end="")
        else:
            json.write_text(text, "utf-8")
    return 0


# ── what is given ─────────────────────────────────────────────────────────────────


def _cost(text: str) -> Fraction:
    """Return a cost in percent as a share. Raises UserError."""
    try:
        digits, decimals = parse(text)
    except Refused as refused:
        raise UserError(f"--cost-percent: {refused.message}", code=2) from None
    cost = Fraction(digits, 100 * 10**decimals)
    if cost > 1:
        raise UserError("--cost-percent is from 0 to 100", code=2)
    return cost


def _moment(option: str, text: str | None, *, is_end: bool = False) -> int | None:
    if text is None:
        return None
    try:
        return moment_of(text, is_end=is_end)
    except ValueError as error:
        raise UserError(f"{option}: {error}", code=2) from None


def _target(parts: Sequence[str]) -> Weights | None:
    """Read a target like stocks=60 bonds=40, None where there is none. Raises UserError."""
    found: dict[str, str] = {}
    for part in parts:
        name, equals, percent = part.rpartition("=")
        if not equals or name in found:
            raise UserError(f"--target is like stocks=60 bonds=40, not {part[:40]!r}", code=2)
        found[name] = percent
    if not found:
        return None
    try:
        return weights_of(found, TARGET_TOLERANCE)
    except Refused as refused:
        raise UserError(f"--target: {refused.message}", code=2) from None


def _policies(files: Sequence[Path]) -> dict[str, Policy]:
    """Read policies, by the names of their files. Raises UserError."""
    if not 1 <= len(files) < CURVES_MAX:
        raise UserError(f"--policies takes 1 to {CURVES_MAX - 1} files", code=2)
    stems = [file.stem for file in files]
    taken = {REAL, UNTOUCHED}
    found: dict[str, Policy] = {}
    for file, stem in zip(files, stems, strict=True):
        name = str(file) if stems.count(stem) > 1 or stem in taken else stem
        if name in found:
            raise UserError(f"{file} is given twice", code=2)
        found[name] = _policy(file)
    return found


def _policy(file: Path) -> Policy:
    """Read one policy: TOML with the fields of the JSON. Raises UserError."""
    try:
        # Numbers stay the digits that were written.
        table = tomllib.loads(file.read_text("utf-8"), parse_float=str)
        return policy_in(msgspec.json.encode(table))
    except FileNotFoundError:
        raise UserError(f"there is no file {file}", code=2) from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder; a policy is one TOML file", code=2) from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: this is not UTF-8", code=2) from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{file}: this is no TOML: {error}", code=2) from None
    except BadRequest as error:
        raise UserError(f"{file}: {error.detail}", code=2) from None
    except Refused as refused:
        raise UserError(f"{file}: {refused.message}", code=2) from None
    except (msgspec.MsgspecError, OverflowError) as error:
        raise UserError(f"{file}: {error}", code=2) from None


def _read_file(file: Path, target: Weights | None, since: int | None, until: int | None) -> Past:
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            return past_in(lines, target, since=since, until=until)
    except FileNotFoundError:
        raise UserError(f"there is no file {file}", code=2) from None
    except PastMissing as error:
        raise UserError(f"{file}: {error}", code=2) from None


def _read_book(
    user: str,
    place: tuple[Path | None, str | None, str | None],
    since: int | None,
    until: int | None,
) -> Past:
    opened = open_book(where(*place))
    try:
        with progress("reading") as tell:
            return past_of(opened, user, since=since, until=until, tell=tell)
    except PastMissing as error:
        raise UserError(str(error), code=2) from None
    except CorruptEntry as error:
        raise UserError(f"the journal cannot be read: {error}; run verify") from None
    finally:
        opened.close()


# ── what is shown ─────────────────────────────────────────────────────────────────


def _show(compared: Compared) -> None:
    """Print a row for what really happened, and one for each policy."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 150
    first = compared.policies[0]
    table = Table(
        title=Text(
            f"{compared.source}: {first.updates} updates, {compared.began[:10]} to "
            f"{compared.ended[:10]}; turnover, errors, drift and cost are points"
        ),
        title_justify="left",
    )
    table.add_column("policy", no_wrap=True)
    for heading in (
        "updates\nthat traded",
        "trades",
        "turnover",
        "turnover\na year",
        "tracking\nerror",
        "the same\nafter trades",
        "largest\ndrift",
        f"cost at\n{compared.cost_percent} %",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in compared.policies:
        table.add_row(Text(row.name), *_cells(row), end_section=row is first)
    console.print(table)
    console.print(
        "tracking error: root mean square of the drift score, sum of |weight - target| / 2, "
        "at the updates"
    )
    for line in _notes(compared):
        console.print(line, markup=False)


def _cells(row: Figures) -> list[str]:
    year = row.turnover_points_per_year
    return [
        str(row.trading_updates),
        str(row.trades),
        f"{row.turnover_points:.2f}",
        "-" if year is None else f"{year:.2f}",
        f"{row.tracking_error_points:.3f}",
        f"{row.tracking_error_after_points:.3f}",
        f"{row.drift_max_points:.2f}",
        f"{row.cost_points:.4f}",
    ]


def _notes(compared: Compared) -> list[str]:
    """Say what a reader should know before believing the figures."""
    notes = []
    if compared.proposed:
        notes.append(
            f"of {compared.proposed} transactions that the book proposed, {compared.executed} "
            "were marked executed"
        )
    if compared.unmatched:
        notes.append(
            f"left out: {compared.unmatched} that were marked when less than that was left to sell"
        )
    notes += [
        f"{row.name}: {row.assumed_movements} times it held what was not really held, which is "
        "taken to have moved as the whole did"
        for row in compared.policies
        if row.assumed_movements
    ]
    return notes

"""`pennyweight replay`: decisions of the past, decided again from the journal."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import msgspec
from cyclopts import App, Parameter

from pennyweight.delivery.cli.shared import (
    BookName,
    Data,
    Json,
    StoreUrl,
    UserError,
    open_book,
    print_json,
    progress,
    where,
)
from pennyweight.engine.port import Committed
from pennyweight.engine.rebuild import known_commands
from pennyweight.engine.replay import Decision, replay
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import CorruptEntry, Entry
from pennyweight.ledger.money import format_amount
from pennyweight.products.loans.apply import ApplyForLoan, TopUpCollateral
from pennyweight.products.loans.life import ByPrice
from pennyweight.products.loans.liquidate import FailSlice, FillSlice, PlaceSlices
from pennyweight.products.loans.shared import (
    LOAN,
    SCALE,
    SLICE,
    Loan,
    level_of,
    ltv_text,
    mark_price,
    read_loan,
    read_slice,
)
from pennyweight.products.portfolios.runs import answer_in
from pennyweight.products.portfolios.shared import PORTFOLIO, percent_text

app = App(
    name="replay",
    help="Decide again what was decided, from the journal, and compare.",
    result_action="return_value",
)


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A decision as it is printed, whatever it was about."""

    sequence: int
    time: str
    command: str
    detail: str
    equal: bool
    difference: str


class ShownOfLoan(Shown, frozen=True, kw_only=True):
    """A decision about a loan; amounts and loan-to-value (percent) are decimal text."""

    price: str | None
    ltv: str | None
    status: str


AnyShown = TypeVar("AnyShown", bound=Shown)


@app.command
def loan(
    loan_id: Annotated[str, Parameter(help="The loan's loanId.", allow_leading_hyphen=True)],
    /,
    *,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    json: Json = False,
) -> int:
    """Decide every decision of a loan again, on the book as it was then, and compare.

    The best price of the quotes that each one carried is shown, and the loan-to-value at
    it. May run while the book is served. Exits with 0 if all come out as they are stored,
    byte by byte; with 1 if not; with 2 if there is no such book or loan.

    Example: pennyweight replay loan loan-1 --data book
    """
    opened = open_book(where(data, store, book))
    try:
        record = opened.record(LOAN, loan_id)
        if record is None:
            raise UserError(f"there is no loan {loan_id!r}", code=2)
        decisions = _replayed(
            opened,
            lambda entry: _changes(entry, LOAN, loan_id),
            lambda decision: _of_loan(decision, loan_id),
            until=read_loan(record).entry,
        )
    finally:
        opened.close()
    rows = [(shown.price or "-", shown.ltv or "-") for shown in decisions]
    return _report("loan", loan_id, decisions, ("best price", "LTV %"), rows, is_json=json)


@app.command
def portfolio(
    user_id: Annotated[str, Parameter(help="The portfolio's user.", allow_leading_hyphen=True)],
    /,
    *,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    json: Json = False,
) -> int:
    """Decide every update, change and execution of a portfolio again, on the book as it was then.

    May run while the book is served. Exits with 0 if all come out as they are stored, byte
    by byte; with 1 if not; with 2 if there is no such book or portfolio.

    Example: pennyweight replay portfolio 1 --data book
    """
    opened = open_book(where(data, store, book))
    try:
        if opened.record(PORTFOLIO, user_id) is None:
            raise UserError(f"user {user_id!r} has no portfolio", code=2)
        decisions = _replayed(
            opened,
            lambda entry: _is_of_portfolio(entry, user_id),
            _of_portfolio,
            until=opened.head().sequence,
        )
    finally:
        opened.close()
    return _report("portfolio", user_id, decisions, (), [() for _ in decisions], is_json=json)


def _replayed(
    opened: Committed,
    is_of: Callable[[Entry], bool],
    shown: Callable[[Decision], AnyShown],
    *,
    until: int,
) -> list[AnyShown]:
    """Decide what is asked for again. Raises UserError."""
    commands = {(kind.product, kind.name): kind for kind in known_commands()}
    try:
        with progress("replaying") as tell:
            return [
                shown(decision)
                for decision in replay(opened, commands, is_of, until=until, progress=tell)
            ]
    except CorruptEntry as error:
        raise UserError(f"the journal cannot be read: {error}") from None


def _changes(entry: Entry, kind: str, record_id: str) -> bool:
    """Whether an entry changed this record."""
    return any(record.kind == kind and record.id == record_id for record in entry.records)


def _is_of_portfolio(entry: Entry, user: str) -> bool:
    """Whether an entry changed this portfolio, or told again what it is."""
    if _changes(entry, PORTFOLIO, user):
        return True
    answer = answer_in(entry)
    return answer is not None and answer.user == user


def _moment(time: int) -> str:
    """Write microseconds since 1970 as RFC 3339."""
    seconds = datetime.fromtimestamp(time // 1_000_000, UTC)
    return f"{seconds:%Y-%m-%dT%H:%M:%S}.{time % 1_000_000:06}Z"


def _of_portfolio(decision: Decision) -> Shown:
    """Return what is printed of a decision about a portfolio."""
    entry = decision.entry
    answer = answer_in(entry)
    detail = ""
    if answer is not None:
        trades = ", ".join(
            f"{'buy' if line.change > 0 else 'sell'} {percent_text(abs(line.change))} {line.asset}"
            for line in answer.trades
        )
        detail = answer.result if answer.result != "rebalanced" else trades or "nothing to trade"
    return Shown(
        sequence=entry.sequence,
        time=_moment(decision.time),
        command=entry.command,
        detail=detail,
        equal=decision.is_equal,
        difference=decision.difference,
    )


def _of_loan(decision: Decision, loan_id: str) -> ShownOfLoan:
    """Return what is printed of a decision about a loan."""
    entry, command = decision.entry, decision.command
    after = next(read_loan(r) for r in entry.records if r.kind == LOAN and r.id == loan_id)
    record = decision.before.get((LOAN, loan_id))
    price, ltv = _valued(command, after if record is None else read_loan(record))
    return ShownOfLoan(
        sequence=entry.sequence,
        time=_moment(decision.time),
        command=entry.command,
        detail=_detail(command, entry),
        price=None if price is None else format_amount(price, SCALE),
        ltv=ltv,
        status=after.status,
        equal=decision.is_equal,
        difference=decision.difference,
    )


def _valued(command: Command | None, loan: Loan) -> tuple[int | None, str | None]:
    """Return the best price at the size of the loan as it was, and its loan-to-value at it."""
    if not isinstance(command, ByPrice | PlaceSlices):
        return None, None
    price = mark_price(command.quotes, level_of(loan.collateral))
    return price, ltv_text(loan.exposure, loan.collateral, price)


def _detail(command: Command | None, entry: Entry) -> str:
    """Say in a few words how much a decision was about."""
    match command:
        case ApplyForLoan(amount=amount, collateral=collateral):
            return f"{amount} GC against {collateral or 'no'} BESKAR"
        case TopUpCollateral(amount=amount):
            return f"{amount} BESKAR more"
        case FillSlice(number=number, quantity=quantity, total=total):
            return f"slice {number}: {quantity} BESKAR sold for {total} GC"
        case FailSlice(number=number, reason=reason):
            return f"slice {number}: {reason[:80]}"
        case _:
            pass
    placed = [read_slice(record) for record in entry.records if record.kind == SLICE]
    return "; ".join(
        f"slice {part.number}: {format_amount(part.quantity, SCALE)} BESKAR at {part.market} "
        f"for {format_amount(part.price, SCALE)} each"
        for part in placed
    )


def _report(
    what: str,
    name: str,
    decisions: Sequence[Shown],
    titles: tuple[str, ...],
    more: Sequence[tuple[str, ...]],
    *,
    is_json: bool,
) -> int:
    """Print decisions, as JSON or one a line with further columns, and return the exit code."""
    is_equal = all(shown.equal for shown in decisions)
    if is_json:
        print_json({what: name, "ok": is_equal, "decisions": decisions})
        return 0 if is_equal else 1
    rows: list[tuple[Any, ...]] = [("entry", "time", "decision", *titles, "again")]
    for shown, columns in zip(decisions, more, strict=True):
        again = "equal" if shown.equal else f"DIFFERS: {shown.difference}"
        rows.append((shown.sequence, shown.time, shown.command, *columns, again))
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(titles) + 3)]
    details = ["", *(shown.detail for shown in decisions)]
    for row, detail in zip(rows, details, strict=True):
        cells = [str(cell).ljust(width) for cell, width in zip(row, widths, strict=False)]
        print(_plain("  ".join([*cells, row[-1], f" {detail}" if detail else ""]).rstrip()))
    differing = sum(not shown.equal for shown in decisions)
    if differing:
        print(_plain(f"WRONG: {differing} of {len(decisions)} decisions of {name} differ"))
    else:
        print(_plain(f"ok: {len(decisions)} decisions of {name}, all come out as they stand"))
    return 0 if is_equal else 1


def _plain(line: str) -> str:
    """Keep what a venue wrote from moving the cursor."""
    return "".join(c if c.isprintable() else "?" for c in line)

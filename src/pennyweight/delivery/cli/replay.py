"""`pennyweight replay`: decisions of the past, decided again from the journal."""

from datetime import UTC, datetime
from typing import Annotated, Any

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

app = App(
    name="replay",
    help="Decide again what was decided, from the journal, and compare.",
    result_action="return_value",
)


class Shown(msgspec.Struct, frozen=True):
    """A decision as it is printed; amounts and loan-to-value (percent) are decimal text."""

    sequence: int
    time: str
    command: str
    detail: str
    price: str | None
    ltv: str | None
    status: str
    equal: bool
    difference: str


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
        last = read_loan(record).entry
        commands = {(kind.product, kind.name): kind for kind in known_commands()}
        with progress("replaying") as tell:
            decisions = [
                _shown(decision, loan_id)
                for decision in replay(
                    opened, commands, lambda e: _is_of(e, loan_id), until=last, progress=tell
                )
            ]
    except CorruptEntry as error:
        raise UserError(f"the journal cannot be read: {error}") from None
    finally:
        opened.close()
    is_equal = all(shown.equal for shown in decisions)
    if json:
        print_json({"loan": loan_id, "ok": is_equal, "decisions": decisions})
    else:
        _print(loan_id, decisions)
    return 0 if is_equal else 1


def _is_of(entry: Entry, loan_id: str) -> bool:
    """Whether an entry decided something of this loan."""
    return any(record.kind == LOAN and record.id == loan_id for record in entry.records)


def _shown(decision: Decision, loan_id: str) -> Shown:
    """Return what is printed of a decision."""
    entry, command = decision.entry, decision.command
    after = next(read_loan(r) for r in entry.records if r.kind == LOAN and r.id == loan_id)
    record = decision.before.get((LOAN, loan_id))
    price, ltv = _valued(command, after if record is None else read_loan(record))
    time = datetime.fromtimestamp(decision.time // 1_000_000, UTC)
    return Shown(
        entry.sequence,
        f"{time:%Y-%m-%dT%H:%M:%S}.{decision.time % 1_000_000:06}Z",
        entry.command,
        _detail(command, entry),
        None if price is None else format_amount(price, SCALE),
        ltv,
        after.status,
        decision.is_equal,
        decision.difference,
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


def _print(loan_id: str, decisions: list[Shown]) -> None:
    """Print decisions for a reader, one a line."""
    rows: list[tuple[Any, ...]] = [("entry", "time", "decision", "best price", "LTV %", "again")]
    for shown in decisions:
        price, ltv = shown.price or "-", shown.ltv or "-"
        again = "equal" if shown.equal else f"DIFFERS: {shown.difference}"
        rows.append((shown.sequence, shown.time, shown.command, price, ltv, again))
    widths = [max(len(str(row[column])) for row in rows) for column in range(5)]
    details = ["", *(shown.detail for shown in decisions)]
    for row, detail in zip(rows, details, strict=True):
        cells = [str(cell).ljust(width) for cell, width in zip(row, widths, strict=False)]
        print(_plain("  ".join([*cells, row[-1], f" {detail}" if detail else ""]).rstrip()))
    differing = sum(not shown.equal for shown in decisions)
    if differing:
        print(_plain(f"WRONG: {differing} of {len(decisions)} decisions of {loan_id} differ"))
    else:
        print(_plain(f"ok: {len(decisions)} decisions of {loan_id}, all come out as they stand"))


def _plain(line: str) -> str:
    """Keep what a venue wrote from moving the cursor."""
    return "".join(c if c.isprintable() else "?" for c in line)

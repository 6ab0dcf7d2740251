"""The list of loans: which are asked for, page by page, or all of them as of one moment."""

from collections.abc import Iterator, Sequence
from typing import get_args

from pennyweight.delivery.http.loans_view import as_of, show_loan
from pennyweight.delivery.http.routes import Reply, Request
from pennyweight.delivery.http.wire import BadRequest, encode
from pennyweight.engine.port import Store
from pennyweight.ledger.records import Record
from pennyweight.ledger.refusals import Refused
from pennyweight.products.loans.shared import (
    LOAN,
    Loan,
    Quote,
    Status,
    check_loan_id,
    read_loan,
)

STATUSES: tuple[Status, ...] = get_args(Status)

_PAGE = 500


def status_in(request: Request) -> Status | None:
    """Return the status that is asked for. Raises BadRequest."""
    text = request.query.get("status")
    if text is None:
        return None
    for status in STATUSES:
        if text == status:
            return status
    raise BadRequest("status_invalid", f"status is one of {', '.join(STATUSES)}")


def check_cursor(cursor: str) -> None:
    """Raise BadRequest for what cannot be the id of a loan."""
    try:
        check_loan_id(cursor)
    except Refused:
        raise BadRequest("cursor_invalid", "cursor is no cursor of ours") from None


def records(
    store: Store, status: Status | None, borrower: str | None, after: str
) -> Iterator[Record]:
    """Yield the records of loans by id, from the one after `after`."""
    label = None if status is None else f"status:{status}"
    if borrower is not None:
        label = f"borrower:{borrower}"
    while rows := store.records(LOAN, label=label, after=after, limit=_PAGE):
        for record in rows:
            if status is None or f"status:{status}" in record.labels:
                yield record
        after = rows[-1].id


def pages(
    store: Store, quotes: Sequence[Quote], status: Status | None, borrower: str | None
) -> Iterator[bytes]:
    """Yield the loans by id, comma between, no page empty.

    All as of one moment; of one status, each as it is when its page is read.
    """
    last = store.head().sequence
    page: list[bytes] = []
    for record in records(store, status, borrower, ""):
        loan: Loan | None = read_loan(record)
        if status is None:
            loan = as_of(store, record.id, read_loan(record), last)
        if loan is not None:
            page.append(encode(show_loan(record.id, loan, quotes)))
        if len(page) == _PAGE:
            yield b",".join(page)
            page = []
    if page:
        yield b",".join(page)


def complete_list(found: Iterator[bytes]) -> Reply:
    """Return a complete list: in one piece when short, else page by page."""
    opening = b'{"loans":[' + next(found, b"")
    second = next(found, None)
    if second is None:
        return Reply(200, opening + b"]}")
    return Reply(200, chunks=_stream(opening, second, found))


def _stream(opening: bytes, second: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield opening
    yield b"," + second
    for page in rest:
        yield b"," + page
    yield b"]}"

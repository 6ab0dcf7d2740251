"""`pennyweight verify`: prove a book."""

import time

from pennyweight.delivery.cli.shared import (
    BookName,
    Data,
    Json,
    StoreUrl,
    open_book,
    print_json,
    progress,
    roof,
    where,
)
from pennyweight.engine.port import StoreError
from pennyweight.engine.verification import Report
from pennyweight.engine.verification import verify as verify_book

_SHOWN_MAX = 20
_UNREADABLE = {"sequence": None, "chain_head": None, "state_digest": None, "first_wrong": None}


def verify(
    *, data: Data = None, store: StoreUrl = None, book: BookName = None, json: Json = False
) -> int:
    """Prove a book: chain, balances, holds, records, keys, conservation of every asset.

    Everything is rebuilt from the journal and compared with what is stored. May run while
    the book is served. Exits with 0 if all is well; with 1 if not, naming the first wrong
    entry; with 2 if there is no book.

    Example: pennyweight verify --data book
    """
    opened = open_book(where(data, store, book))
    started = time.monotonic()
    try:
        with progress("verifying") as tell:
            report = verify_book(
                opened, answers=roof().answers(), invariants=roof().invariants(), progress=tell
            )
    except StoreError as error:
        if not json:
            raise
        print_json(
            {"ok": False, **_UNREADABLE, "problems": [{"sequence": 0, "problem": str(error)}]}
        )
        return 1
    finally:
        opened.close()
    if json:
        print_json(
            {
                "ok": report.ok,
                "sequence": report.sequence,
                "chain_head": report.chain_head,
                "state_digest": report.state_digest,
                "first_wrong": report.first_wrong,
                "problems": report.problems,
                "problem_count": report.problem_count,
                "entries": report.entries,
                "seconds": round(time.monotonic() - started, 3),
            }
        )
    else:
        _show(report, time.monotonic() - started)
    return 0 if report.ok else 1


def _show(report: Report, seconds: float) -> None:
    """Print a report for a reader."""
    if report.ok:
        print(f"ok: {report.sequence} entries of book {report.book}, all as the rules say")
    else:
        print(f"WRONG: {report.problem_count} problems in book {report.book}")
        for problem in report.problems[:_SHOWN_MAX]:
            place = f"entry {problem.sequence}" if problem.sequence else "the book"
            print(f"  {place}: {problem.problem}")
        if report.problem_count > _SHOWN_MAX:
            print(f"  and {report.problem_count - _SHOWN_MAX} more")
    print(f"chain head    {report.chain_head}")
    print(f"state digest  {report.state_digest}")
    print(f"{report.entries} entries read in {seconds:.1f} s")

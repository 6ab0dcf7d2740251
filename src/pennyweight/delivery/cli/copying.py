"""`pennyweight copy`: a book moved from one place to another by its journal."""

import sys
import time
from typing import Annotated

import msgspec
from cyclopts import Parameter

from pennyweight.delivery.cli.shared import (
    MAIN,
    Again,
    Json,
    UserError,
    print_json,
    progress,
    roof,
)
from pennyweight.engine.port import Store
from pennyweight.engine.verification import Report, verify
from pennyweight.runtime.copying import CopyFailed, copy_book
from pennyweight.stores.places import BadPlace, Place, is_database, read_place, shown

_PLACES = "a folder, sqlite:FOLDER, or postgresql://USER@HOST/DATABASE"


class Copied(msgspec.Struct, frozen=True):
    """What was copied, and how long it took without the verification."""

    book: str
    sequence: int
    chain_head: str
    state_digest: str
    incarnation: str
    seconds: float
    entries_per_second: int


def copy(
    *,
    source: Annotated[str, Parameter(name="--from", help=f"Where the book is: {_PLACES}.")],
    target: Annotated[str, Parameter(name="--to", help=f"Where the copy goes: {_PLACES}.")],
    book: Annotated[
        str, Parameter(name="--book", help="The name of the book, here and there.", negative=())
    ] = MAIN,
    again: Again = False,
    json: Json = False,
) -> int:
    """Copy a book by its journal, and prove both: same chain head, same state.

    Every rule is checked on the way; nothing is kept beside. Stop who serves the book
    first: what is committed meanwhile is not in the copy. The copy is a new life of the
    book (another incarnation). API keys stay where they are: create new ones.

    The copy is whole or not there. One that breaks off in a database is removed, or, if that
    cannot be done, stays marked, and nobody can open it until it is repeated with `--again`,
    as a role that may delete.

    Example: pennyweight copy --from book --to postgresql://money@db.local/money
    """
    here, there = _place(source), _place(target)
    _check_name(book, here, there)
    original = roof().open_reader(here, book)
    try:
        with roof().create_book(there, book, is_again=again) as (made, incarnation):
            copied = _copy(original, made, incarnation)
    except CopyFailed as error:
        raise UserError(f"{shown(here)}: {error}; nothing was copied") from None
    finally:
        original.close()
    if json:
        print_json(copied)
    else:
        print(
            f"{copied.sequence} entries copied to {shown(there)} in {copied.seconds:.1f} s,"
            f" {copied.entries_per_second} a second; both books are right"
        )
        print(f"chain head    {copied.chain_head}")
        print(f"state digest  {copied.state_digest}")
    return 0


def _copy(original: Store, made: Store, incarnation: str) -> Copied:
    """Copy and prove. Raises CopyFailed."""
    started = time.monotonic()
    with progress("copying") as tell:
        head = copy_book(
            original,
            made,
            incarnation,
            answers=roof().answers(),
            invariants=roof().invariants(),
            progress=tell,
        )
    seconds = time.monotonic() - started
    report = _prove(made, "the copy")
    theirs = _prove(original, "the original")
    if theirs.sequence == head.sequence:
        for name in ("chain_head", "state_digest"):
            if getattr(theirs, name) != getattr(report, name):
                raise CopyFailed(f"the copy has another {name.replace('_', ' ')}")
    else:
        print(
            f"pennyweight: the book went on meanwhile: it has {theirs.sequence} entries, the copy"
            f" {head.sequence}",
            file=sys.stderr,
        )
    return Copied(
        head.book,
        head.sequence,
        report.chain_head,
        report.state_digest,
        head.incarnation,
        round(seconds, 3),
        round(head.sequence / max(seconds, 0.001)),
    )


def _prove(store: Store, which: str) -> Report:
    """Verify one of the two. Raises CopyFailed."""
    with progress(f"verifying {which}") as tell:
        report = verify(
            store, answers=roof().answers(), invariants=roof().invariants(), progress=tell
        )
    if not report.ok:
        problem = report.problems[0]
        raise CopyFailed(f"{which} is wrong, first at entry {problem.sequence}: {problem.problem}")
    return report


def _place(text: str) -> Place:
    try:
        return read_place(text)
    except BadPlace as error:
        raise UserError(str(error), code=2) from None


def _check_name(book: str, *places: Place) -> None:
    """Refuse a name that a folder cannot keep. The name is part of the chain, and stays."""
    if book != MAIN and not all(map(is_database, places)):
        raise UserError(f"a folder has one book, {MAIN}; {book!r} can be in a database", code=2)

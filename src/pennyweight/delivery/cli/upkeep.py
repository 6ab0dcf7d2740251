"""`pennyweight migrate` and `pennyweight recover`: a book's schema, and its life after a restore."""

from datetime import UTC, datetime
from typing import Annotated, Any

from cyclopts import Parameter

from pennyweight.delivery.cli.shared import (
    BookName,
    Data,
    Json,
    StoreUrl,
    UserError,
    open_book,
    print_json,
    roof,
    where,
)
from pennyweight.engine.port import Head
from pennyweight.stores.places import shown


def migrate(
    *,
    data: Data = None,
    store: StoreUrl = None,
    plan: Annotated[
        bool, Parameter(help="Only say what is pending (so it is anyway).", negative=())
    ] = False,
    apply: Annotated[bool, Parameter(help="Do what is pending.", negative=())] = False,
    grant: Annotated[
        str,
        Parameter(
            help="With --apply: a role of the database that will serve. It may read and add, and "
            "cannot change the journal.",
            negative=(),
        ),
    ] = "",
    json: Json = False,
) -> int:
    """Show the numbered migrations of a book's schema, and apply those that are pending.

    Without `--apply` nothing is changed; the exit code is then 0 if nothing is pending, and 1
    if something is. A schema that somebody changed, or that is newer than this version, is
    refused. To be run by the role that owns the schema; any number may run at once.

    Example: pennyweight migrate --store postgresql://owner@db.local/money --apply --grant money
    """
    if plan and apply:
        raise UserError("give --plan or --apply, not both", code=2)
    if grant and not apply:
        raise UserError("--grant goes with --apply", code=2)
    place = where(data, store, None).place
    done = {one.number for one in roof().migrate(place, grant)} if apply else set()
    found = roof().migrations(place)
    pending = [one for one in found if not one.is_applied]
    if json:
        print_json(
            {
                "pending": len(pending),
                "migrations": [
                    {"number": one.number, "name": one.name, "state": _state(one.is_applied)}
                    for one in found
                ],
            }
        )
    else:
        for one in found:
            state = "applied now" if one.number in done else _state(one.is_applied)
            print(f"{one.name}  {state}")
        print(f"{len(pending)} pending" if pending else "nothing is pending")
    return 1 if pending else 0


def _state(is_applied: bool) -> str:  # noqa: FBT001 - the word for it
    return "applied" if is_applied else "pending"


def recover(
    *,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    yes: Annotated[
        bool, Parameter(name="--yes", help="Begin the new life; else only show.", negative=())
    ] = False,
    json: Json = False,
) -> int:
    """Begin a new life of a book that was restored from a backup.

    A restored book may stand behind what was already told to others, and would use the same
    numbers again for other entries. So a server whose outside streams are ahead of the book
    waits until somebody has looked: this shows where the book stands, after a look at its
    last batches, and with `--yes` gives it a new incarnation, which is part of every event's
    id. Nobody may serve the book meanwhile. Run `verify` before, and tell those who read the
    events from which entry on they are to read again.

    Example: pennyweight recover --data book --yes
    """
    found = where(data, store, book)
    opened = open_book(found)
    try:
        head = opened.head()
    finally:
        opened.close()
    incarnation = roof().renew(found.place, found.book) if yes else ""
    if json:
        print_json(_described(head, incarnation))
    else:
        print(f"book         {head.book} at {shown(found.place)}")
        print(f"stands at    entry {head.sequence}, of {_moment(head.committed_at)}")
        print(f"chain head   {head.chain.hex()}")
        print(f"incarnation  {head.incarnation}{f', from now on {incarnation}' if yes else ''}")
    if not yes:
        raise UserError("nothing was changed; --yes begins the new life")
    return 0


def _described(head: Head, incarnation: str) -> dict[str, Any]:
    return {
        "book": head.book,
        "sequence": head.sequence,
        "committed_at": head.committed_at,
        "chain_head": head.chain.hex(),
        "incarnation_before": head.incarnation,
        "incarnation": incarnation or head.incarnation,
    }


def _moment(microseconds: int) -> str:
    if not microseconds:
        return "no time yet"
    moment = datetime.fromtimestamp(microseconds // 1_000_000, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")

"""`pennyweight keys`: API keys of a book."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from pennyweight.config import DESK_FACES, FACES
from pennyweight.delivery import keys
from pennyweight.delivery.cli.shared import (
    BookName,
    Data,
    Json,
    StoreUrl,
    UserError,
    Where,
    print_json,
    roof,
    where,
)
from pennyweight.stores.places import shown

_FACES = ", ".join((*FACES, *DESK_FACES))

app = App(name="keys", help="Create, list and revoke API keys.", result_action="return_value")


@app.command
def create(
    *scopes: Annotated[
        str, Parameter(help=f"FACE:read, FACE:write, or * for everything; faces are {_FACES}.")
    ],
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    note: Annotated[str, Parameter(help="What the key is for.", negative=())] = "",
    json: Json = False,
) -> int:
    """Create a key and print it: the only time that it can be seen.

    A server takes it up within 5 seconds. Of a book in a database all instances do: its keys
    are kept there.

    Example: pennyweight keys create wallet:write ledger:read --data book --note "game lobby"
    """
    known = (*FACES, *DESK_FACES)
    for scope in scopes:
        face, _, right = scope.partition(":")
        if right in {"read", "write"} and face not in known:
            raise UserError(
                f"{scope}: there is no face {face!r}; faces are {', '.join(known)}", code=2
            )
    with _opened(where(data, store, book), may_begin=True) as source:
        try:
            token = keys.create(source, scopes, now=_now(), note=note)
        except keys.BadScope as error:
            raise UserError(str(error), code=2) from None
    if json:
        print_json({"id": token.partition(".")[0], "key": token, "scopes": scopes})
    else:
        print(token)
    return 0


@app.command(name="list")
def list_keys(
    *, data: Data = None, store: StoreUrl = None, book: BookName = None, json: Json = False
) -> int:
    """List the keys: id, scopes, when they were created and revoked. Secrets are not kept.

    Example: pennyweight keys list --data book
    """
    with _opened(where(data, store, book), is_read_only=True) as source:
        found = source.load()
    if json:
        shown: list[dict[str, Any]] = [msgspec.to_builtins(key) for key in found]
        print_json([{n: v for n, v in key.items() if n != "sha256"} for key in shown])
        return 0
    for key in found:
        state = f"revoked {_day(key.revoked_at)}" if key.revoked_at is not None else "valid"
        print(
            f"{key.id}  {_day(key.created_at)}  {state}  {' '.join(key.scopes)}  {key.note}".rstrip()
        )
    if not found:
        print("there are no keys; the book is served on loopback only")
    return 0


@app.command
def revoke(
    key_id: Annotated[str, Parameter(name="ID")],
    /,
    *,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
) -> int:
    """Revoke a key by its id, the part before the dot. A server drops it within 5 seconds.

    Example: pennyweight keys revoke 3f9ac2d41b07 --data book
    """
    with _opened(where(data, store, book)) as source:
        if not keys.revoke(source, key_id, now=_now()):
            raise UserError(f"there is no valid key {key_id}")
    print(f"{key_id} is revoked")
    return 0


@contextmanager
def _opened(
    found: Where, *, is_read_only: bool = False, may_begin: bool = False
) -> Iterator[keys.KeySource]:
    """Open what keeps the keys. Raises UserError when they cannot be read."""
    with roof().key_source(
        found.place, found.book, is_read_only=is_read_only, may_begin=may_begin
    ) as source:
        try:
            yield source
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            place = found.place
            kept = place / keys.FILE_NAME if isinstance(place, Path) else shown(place)
            raise UserError(f"{kept} cannot be read: {error}") from None


def _now() -> int:
    return time.time_ns() // 1_000


def _day(moment: int) -> str:
    return datetime.fromtimestamp(moment // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M")

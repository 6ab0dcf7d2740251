"""`pennyweight export` and `pennyweight import`: a book as lines of JSON, and back."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

from cyclopts import Parameter

from pennyweight.delivery.cli.shared import (
    Again,
    BookName,
    Data,
    Json,
    StoreUrl,
    UserError,
    Where,
    open_book,
    print_json,
    progress,
    roof,
    where,
)
from pennyweight.runtime.copying import (
    CopyFailed,
    export_lines,
    import_lines,
    read_first_line,
)


def export(
    *,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    output: Annotated[
        Path | None, Parameter(help="A new file to write; stdout if not given.", negative=())
    ] = None,
    force: Annotated[
        bool, Parameter(help="Write over a file that is there already.", negative=())
    ] = False,
) -> int:
    """Write a book's journal as lines of JSON, up to where it stands now.

    May run while the book is served. `import` rebuilds the same book from it.

    Example: pennyweight export --data book --output book.jsonl
    """
    found = where(data, store, book)
    _check_output(output, found, is_forced=force)
    opened = open_book(found)
    try:
        with progress("exporting") as tell, _writing(output) as file:
            file.writelines(export_lines(opened, tell))
    except CopyFailed as error:
        raise UserError(str(error)) from None
    finally:
        opened.close()
    return 0


def _check_output(output: Path | None, found: Where, *, is_forced: bool) -> None:
    """Keep an export off the book's own folder, and off what is there already."""
    if output is None:
        return
    folder = found.place
    if isinstance(folder, Path) and output.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{output} lies in the folder of the book", code=2)
    if output.exists() and not is_forced:
        raise UserError(f"{output} is there already; --force writes over it", code=2)


@contextmanager
def _writing(output: Path | None) -> Iterator[BinaryIO]:
    """Open the output; a file appears under its name only when it is whole."""
    if output is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    unfinished = output.with_name(f"{output.name}.unfinished")
    try:
        with unfinished.open("wb") as file:
            yield file
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def import_book(
    file: Annotated[
        Path, Parameter(help="What `export` wrote; - for stdin.", allow_leading_hyphen=True)
    ],
    /,
    *,
    data: Data = None,
    store: StoreUrl = None,
    again: Again = False,
    json: Json = False,
) -> int:
    """Rebuild a book from an export, where there is none of its name yet: all of it, or nothing.

    Chain and rules are checked on the way. The copy ends with the same chain head; what
    is committed from then on belongs to a new life of the book (another incarnation). In a
    database an import that breaks off leaves a book that nobody can open, until it is
    repeated with `--again`.

    Example: pennyweight import book.jsonl --data copy
    """
    found = where(data, store, None)
    with _reading(file) as source:
        lines = iter(source)
        try:
            first = read_first_line(next(lines, b""))
            with (
                progress("importing") as tell,
                roof().create_book(found.place, first.book, is_again=again) as (made, incarnation),
            ):
                head = import_lines(
                    first,
                    lines,
                    made,
                    incarnation,
                    answers=roof().answers(),
                    invariants=roof().invariants(),
                    progress=tell,
                )
        except CopyFailed as error:
            raise UserError(f"{file}: {error}; nothing was imported") from None
    if json:
        print_json({"sequence": head.sequence, "chain_head": head.chain.hex()})
    else:
        print(f"{head.sequence} entries imported, chain head {head.chain.hex()}")
    return 0


@contextmanager
def _reading(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        with file.open("rb") as opened:
            yield opened
    except FileNotFoundError:
        raise UserError(f"there is no file {file}", code=2) from None

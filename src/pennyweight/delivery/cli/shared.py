"""What the verbs share: the roof they are handed, their errors, progress, output."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol
from urllib.parse import urlsplit

from cyclopts import Parameter

if TYPE_CHECKING:  # `--help` does without the engine
    from pennyweight.config import Config
    from pennyweight.engine.port import Store
    from pennyweight.engine.rebuild import Answers, Invariant
    from pennyweight.runtime.inline import InlineBook


class Roof(Protocol):
    """What only the roof can do: it knows which stores and products there are."""

    def open_reader(self, folder: Path) -> Store:
        """Open a book for reading, beside whoever serves it. Raises StoreError."""

    def open_inline(self, folder: Path, config: Config) -> AbstractContextManager[InlineBook]:
        """Open a book, or begin one, for this process alone. Raises StoreInUse."""

    def create_book(self, folder: Path, book: str) -> AbstractContextManager[tuple[Store, str]]:
        """Give an empty store, and the name of the new life of the book it will hold.

        On a clean exit the book is in the folder; on an exception nothing is. Raises
        StoreInUse, and StoreError when the folder has a book with entries already.
        """

    def answers(self) -> Answers:
        """Return how the answers of all commands are read back."""

    def invariants(self) -> list[Invariant]:
        """Return the products' own laws."""

    def serve(self, folder: Path, config: Config, *, is_clock_accepted: bool) -> int:
        """Serve a book until told to stop; return the exit code."""


class UserError(Exception):
    """Something the caller can put right; one line, and the exit code."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        """2 is for wrong usage, 1 for what failed."""
        super().__init__(message)
        self.code = code


Data = Annotated[
    Path,
    Parameter(
        name="--data", env_var="PENNYWEIGHT_DATA", help="The folder of the book.", negative=()
    ),
]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative=())]
ConfigFile = Annotated[
    Path | None,
    Parameter(
        name="--config",
        env_var="PENNYWEIGHT_CONFIG",
        help="A TOML file with settings.",
        negative=(),
    ),
]

_roofs: list[Roof] = []


def use(roof: Roof) -> None:
    """Take the roof that the verbs will use."""
    _roofs[:] = [roof]


def roof() -> Roof:
    """Return the roof."""
    return _roofs[0]


def host_and_port(address: str) -> tuple[str, int]:
    """Read http://host:port or host:port. Raises UserError."""
    wrong = UserError(f"an address is like http://127.0.0.1:8080, not {address!r}", code=2)
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        raise wrong from None
    if not host or parts.scheme not in {"", "http"}:
        raise wrong
    return host, port


def print_json(value: Any) -> None:
    """Print a value as one line of JSON."""
    import msgspec  # noqa: PLC0415 - as above

    print(msgspec.json.encode(value).decode())


@contextmanager
def progress(what: str, unit: str = "entries") -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr, if somebody is watching; yield what to call with (done, all)."""
    if not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second, for watchers only
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

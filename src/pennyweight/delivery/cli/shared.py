"""What the verbs share: the roof they are handed, their errors, progress, output."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from cyclopts import Parameter

from pennyweight.stores.places import BadPlace, Place, is_database, is_url, read_url

if TYPE_CHECKING:  # `--help` does without the engine
    from pennyweight.config import Config
    from pennyweight.delivery.keys import KeySource
    from pennyweight.engine.port import Store
    from pennyweight.engine.rebuild import Answers, Invariant
    from pennyweight.runtime.inline import InlineBook
    from pennyweight.stores.migrations import Migration

MAIN = "main"
"""The name of a book that nobody gave another, and the only one in a folder."""


class Roof(Protocol):
    """What only the roof can do: it knows which stores and products there are."""

    def open_reader(self, place: Place, book: str) -> Store:
        """Open a book for reading, beside whoever serves it. Raises StoreError."""

    def open_inline(self, place: Place, config: Config) -> AbstractContextManager[InlineBook]:
        """Open a book, or begin one, for this process alone. Raises StoreInUse."""

    def create_book(
        self, place: Place, book: str, *, is_again: bool = False
    ) -> AbstractContextManager[tuple[Store, str]]:
        """Give an empty store, and the name of the new life of the book it will hold.

        On a clean exit the book is in its place; on an exception it is not, or, in a
        database that went away, it is marked as unfinished and refused by whoever opens
        it. `is_again` removes such a one first. Raises StoreInUse, and StoreError when
        there is a book with entries already.
        """

    def renew(self, place: Place, book: str) -> str:
        """Begin a new life of a book, and return its name. Raises StoreInUse."""

    def migrations(self, place: Place) -> list[Migration]:
        """Return the migrations of a place's schema. Raises SchemaDrift, NoBook."""

    def migrate(self, place: Place, grant: str) -> list[Migration]:
        """Do those that are pending, and return them; `grant` is a role that will serve."""

    def key_source(
        self, place: Place, book: str, *, is_read_only: bool = False, may_begin: bool = False
    ) -> AbstractContextManager[KeySource]:
        """Open what keeps a book's keys; a book in a database may be begun for it."""

    def answers(self) -> Answers:
        """Return how the answers of all commands are read back."""

    def invariants(self) -> list[Invariant]:
        """Return the products' own laws."""

    def serve(self, place: Place, config: Config, *, is_clock_accepted: bool) -> int:
        """Serve a book until told to stop; return the exit code."""


class UserError(Exception):
    """Something the caller can put right; one line, and the exit code."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        """2 is for wrong usage, 1 for what failed."""
        super().__init__(message)
        self.code = code


Again = Annotated[
    bool,
    Parameter(help="Begin anew where one broke off before, in a database.", negative=()),
]
DATA = "PENNYWEIGHT_DATA"
CONFIG = "PENNYWEIGHT_CONFIG"
PLACES = (DATA, CONFIG, "PENNYWEIGHT_STORE_URL", "DATABASE_URL")
"""Variables that may say which book is meant."""

Data = Annotated[
    Path | None,
    Parameter(name="--data", help=f"The folder of the book. [env var: {DATA}]", negative=()),
]
StoreUrl = Annotated[
    str | None,
    Parameter(
        name="--store",
        help="The URL of the book, instead of a folder: postgresql://USER@HOST/DATABASE, or "
        "sqlite:FOLDER. A password is better in the environment. "
        "[env var: PENNYWEIGHT_STORE_URL, DATABASE_URL]",
        negative=(),
    ),
]
BookName = Annotated[
    str | None,
    Parameter(
        name="--book",
        help="The name of the book in a database (main). [env var: PENNYWEIGHT_STORE_BOOK]",
        negative=(),
    ),
]
Json = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative=())]
ConfigFile = Annotated[
    Path | None,
    Parameter(
        name="--config",
        env_var=CONFIG,
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


class Where(NamedTuple):
    """Where a book is, and what it is called there."""

    place: Place
    book: str


def where(data: Path | None, store: str | None, book: str | None) -> Where:
    """Return where the book is that a verb is about; see `find`. Raises UserError, ConfigError."""
    if data is not None and store is None and book is None:
        return Where(_folder(data), MAIN)
    return find(data, store, book)[0]


def find(
    data: Path | None,
    store: str | None,
    book: str | None,
    config: Path | None = None,
    **chosen: Any,
) -> tuple[Where, Config]:
    """Return where the book is, and the configuration.

    What the command line says counts, then the configuration and its variables, then the
    folder of the environment. `chosen` are settings of the command line, with a double
    underscore for the dot; None for what was not given. Raises UserError, ConfigError.
    """
    from pennyweight.config import load  # noqa: PLC0415 - as above

    if data is not None and store is not None:
        raise UserError("give --data or --store, not both", code=2)
    settings = {**chosen, "store__url": store, "store__book": book}
    overrides = {n.replace("__", "."): v for n, v in settings.items() if v is not None}
    if data is not None:
        overrides["store.url"] = ""
    if config is None and os.environ.get(CONFIG):
        config = Path(os.environ[CONFIG])
    settled = load(config, overrides=overrides).config
    if data is None and not settled.store.url and os.environ.get(DATA):
        data = Path(os.environ[DATA])
    if data is None and not settled.store.url:
        raise UserError("give --data FOLDER, or --store URL", code=2)
    place = read_url(settled.store.url) if data is None else _folder(data)
    name = settled.store.book
    if name != MAIN and not is_database(place):
        raise UserError(f"a folder has one book, {MAIN}; {name!r} can be in a database", code=2)
    return Where(place, name), settled


def _folder(data: Path) -> Path:
    if is_url(data):
        raise UserError("--data is a folder; a URL is given with --store", code=2)
    return data


def database_of(url: str) -> str:
    """Read the URL of a database. Raises UserError."""
    try:
        place = read_url(url)
    except BadPlace as error:
        raise UserError(str(error), code=2) from None
    if isinstance(place, Path):
        raise UserError(f"{url} is no database", code=2)
    return place


def open_book(found: Where) -> Store:
    """Open a book for reading."""
    return roof().open_reader(found.place, found.book)


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


@contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """Let Ctrl-C and SIGTERM end it in order."""
    stop = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""A book put together from the configuration: store, clock, engine. Decides nothing.

What is in front of it is put together in `serving`.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType

from pennyweight.config import Config
from pennyweight.delivery.keys import FolderKeys, KeySource, StoreKeys
from pennyweight.engine.engine import Engine
from pennyweight.engine.port import NoBook, Store, StoreError
from pennyweight.engine.rebuild import Answers, Invariant, answers_of, known_commands
from pennyweight.engine.verification import check_tail
from pennyweight.ledger.assets import BUILT_IN, Asset
from pennyweight.ledger.commands import Command
from pennyweight.products import general, loans, payments, portfolios, wallet, withdrawals
from pennyweight.runtime.clock import ClockGuard, check_start, wall_clock
from pennyweight.runtime.holding import holding
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.migrations import Migration
from pennyweight.stores.places import Place, is_database, read_place, shown
from pennyweight.stores.sqlite import SQLiteStore
from pennyweight.stores.sqlite import schema as sqlite_schema
from pennyweight.stores.sqlite.lock import lock_book, unlock_book

BOOK = "main"
"""The one book of a folder, and the name of a book that nobody gave another."""

UNFINISHED = "unfinished"
"""The setting that marks a book whose copy or import has not come to its end."""

HOLDING_SECONDS = 10.0
"""How long the verbs that write hold a book after their last sign of life."""

PRODUCTS = (general, payments, wallet, withdrawals, loans, portfolios)
"""Every product, so that every command is known."""


EXPIRIES: Mapping[str, Callable[[int], Command]] = {
    withdrawals.PRODUCT: withdrawals.ExpireWithdrawal
}
"""How products expire their holds, where that is more than giving the money back."""


# ── stores ────────────────────────────────────────────────────────────────────────


def open_store(place: Place, book: str = BOOK) -> Store:
    """Open a book for writing, or begin one, and look at its last batches.

    Raises StoreInUse, SchemaDrift, StoreFailed, StoreUnavailable, StoreError.
    """
    store = _open(place, book, new_incarnation=new_incarnation())
    try:
        _check_finished(store, place)
        problem = check_tail(store)
    except BaseException:
        store.close()
        raise
    if problem is not None:
        store.close()
        raise StoreError(f"{shown(place)}: entry {problem.sequence}: {problem.problem}; run verify")
    return store


def open_reader(place: Place, book: str = BOOK) -> Store:
    """Open a book for reading, beside whoever serves it. Raises StoreError."""
    store = _open(place, book, is_read_only=True)
    try:
        _check_finished(store, place)
    except BaseException:
        store.close()
        raise
    return store


def _open(
    place: Place, book: str, *, new_incarnation: str = "", is_read_only: bool = False
) -> Store:
    if isinstance(place, str):
        place = read_place(place)
    if isinstance(place, Path):
        if book != BOOK:
            raise StoreError(f"book {book!r} cannot be kept in a folder; only {BOOK!r} can")
        return SQLiteStore.open(
            place, book, new_incarnation=new_incarnation, is_read_only=is_read_only
        )
    store: Store = _postgres().PostgresStore.open(
        place, book, new_incarnation=new_incarnation, is_read_only=is_read_only
    )
    return store


def _postgres() -> ModuleType:
    """Import what is an extra, and only where a book is in a database. Raises StoreError."""
    try:
        from pennyweight.runtime.quiet import quiet_logs  # noqa: PLC0415 - only here is logged
        from pennyweight.stores import postgres  # noqa: PLC0415
        from pennyweight.stores.postgres import removing  # noqa: F401, PLC0415
    except ImportError as error:
        raise StoreError(str(error)) from None
    quiet_logs()
    return postgres


def _check_finished(store: Store, place: Place) -> None:
    """Refuse a book whose copy broke off. Raises StoreError."""
    if store.stage(UNFINISHED):
        raise StoreError(
            f"{shown(place)}: the copy into this book is under way or broke off; "
            "`copy` or `import` with --again begins it anew"
        )


def new_incarnation() -> str:
    """Name a new life of a book."""
    return secrets.token_hex(8)


@contextmanager
def create_book(place: Place, book: str, *, is_again: bool = False) -> Iterator[tuple[Store, str]]:
    """Give an empty store and an incarnation; see `Roof.create_book`."""
    if isinstance(place, str):
        place = read_place(place)
    create = _create_in_folder if isinstance(place, Path) else _create_in_database
    with create(place, book, is_again=is_again) as created:
        yield created


@contextmanager
def _create_in_folder(folder: Place, book: str, *, is_again: bool) -> Iterator[tuple[Store, str]]:
    """Create it beside, and give it its name in the end: there is never anything unfinished."""
    del is_again
    folder = Path(folder)
    if book != BOOK:
        raise StoreError(f"book {book!r} cannot be kept in a folder; only {BOOK!r} can")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock_book(folder, book)
    try:
        place = folder / f"{book}.sqlite"
        if place.exists():
            raise StoreError(
                f"there is a book in {folder} already; a copy needs a folder of its own"
            )
        beside = Path(tempfile.mkdtemp(dir=folder, prefix="import-"))
        try:
            incarnation = new_incarnation()
            store = SQLiteStore.open(beside, book, new_incarnation=incarnation)
            try:
                yield store, incarnation
            finally:
                store.close()
            if any(beside.glob("*-wal")):
                raise StoreError("the copy could not be closed; nothing was imported")
            (beside / place.name).replace(place)
            _sync(folder)
        finally:
            shutil.rmtree(beside)
    finally:
        unlock_book(folder, book)


@contextmanager
def _create_in_database(place: Place, book: str, *, is_again: bool) -> Iterator[tuple[Store, str]]:
    """Mark the book as unfinished until it is whole; held by this process alone meanwhile."""
    url = str(place)
    if is_again:
        _remove_unfinished(url, book)
    incarnation = new_incarnation()
    store = _open(place, book, new_incarnation=incarnation)
    is_begun = False
    try:
        with holding(store, HOLDING_SECONDS):
            _check_empty(store, book, place)
            store.stage(UNFINISHED, incarnation)
            is_begun = True
            yield store, incarnation
            _check_ours(store, incarnation)
            store.stage(UNFINISHED, "")
    except BaseException:
        if is_begun:
            with suppress(StoreError):  # else it stays marked, and refused
                _remove(url, book, incarnation)
        raise
    finally:
        store.close()


def _check_empty(store: Store, book: str, place: Place) -> None:
    """Refuse to copy into a book that is there, or was begun. Raises StoreError."""
    _check_finished(store, place)
    if store.head().sequence:
        raise StoreError(
            f"there is a book {book} at {shown(place)} already; a copy needs a place of its own"
        )


def _check_ours(store: Store, incarnation: str) -> None:
    """Refuse to call another's copy finished. Raises StoreError."""
    if store.stage(UNFINISHED) != incarnation:
        raise StoreError("somebody else began this copy anew meanwhile")


def _remove_unfinished(url: str, book: str) -> None:
    """Remove what a broken copy left, if there is any. Raises StoreInUse."""
    try:
        store = _open(url, book)
    except NoBook:
        return
    try:
        mark = store.stage(UNFINISHED)
        if mark:
            with holding(store, HOLDING_SECONDS):
                pass  # nobody is at it any more
    finally:
        store.close()
    if mark:
        _remove(url, book, mark)


def _remove(url: str, book: str, mark: str) -> None:
    """Remove a book that is unfinished still, and not begun anew by another."""
    _postgres().removing.remove_book(url, book, marked=(UNFINISHED, mark))


def renew(place: Place, book: str) -> str:
    """Begin a new life of a book, and return its name. Raises StoreInUse, NoBook."""
    open_reader(place, book).close()
    store = open_store(place, book)
    try:
        incarnation = new_incarnation()
        store.renew(incarnation)
    finally:
        store.close()
    return incarnation


@contextmanager
def key_source(
    place: Place, book: str = BOOK, *, is_read_only: bool = False, may_begin: bool = False
) -> Iterator[KeySource]:
    """Open what keeps a book's keys; see `Roof.key_source`."""
    if isinstance(place, str):
        place = read_place(place)
    if isinstance(place, Path):
        yield FolderKeys(place)
        return
    incarnation = new_incarnation() if may_begin else ""
    store = _open(place, book, new_incarnation=incarnation, is_read_only=is_read_only)
    try:
        yield StoreKeys(store)
    finally:
        store.close()


# ── schemas ───────────────────────────────────────────────────────────────────────


def migrations(place: Place) -> list[Migration]:
    """Return the migrations of a place's schema, done and pending; changes nothing.

    Raises SchemaDrift, NoBook, StoreUnavailable.
    """
    if isinstance(place, str):
        place = read_place(place)
    if isinstance(place, Path):
        return sqlite_schema.migrations_of(place / f"{BOOK}.sqlite")
    found: list[Migration] = _postgres().plan(place)
    return found


def migrate(place: Place, grant: str = "") -> list[Migration]:
    """Do what is pending, and return it. `grant` is the database's role that will serve.

    Raises SchemaDrift, NoBook, StoreInUse, StoreError.
    """
    pending = [one for one in migrations(place) if not one.is_applied]
    if isinstance(place, str):
        place = read_place(place)
    if isinstance(place, Path):
        if grant:
            raise StoreError("a folder has no roles to grant anything to")
        if pending:
            SQLiteStore.open(place, BOOK).close()
        return pending
    _postgres().migrate(place, grant=grant)
    return pending


def _sync(folder: Path) -> None:
    """Make what was renamed in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ── engines ───────────────────────────────────────────────────────────────────────


def engine_on(
    store: Store,
    config: Config,
    clock: ClockGuard,
    *,
    is_clock_accepted: bool = False,
    users_reserved: int = 0,
) -> Engine:
    """Open the engine of a store's book. Raises ClockRefused, OpeningFailed.

    Of the users that may be in memory, `users_reserved` are left to readers of the journal.
    """
    check_start(clock.now(), store.head().committed_at, is_accepted=is_clock_accepted)
    more = [Asset(asset.name, asset.scale, asset.currency_id) for asset in config.assets]
    return open_engine(
        store,
        now=clock.now(),
        assets=[*BUILT_IN, *more],
        users_max=config.cache.users_max,
        users_reserved=users_reserved,
        queue_max=config.engine.queue_max,
        batch_max=config.engine.batch_max,
    )


@contextmanager
def open_inline(place: Place, config: Config) -> Iterator[InlineBook]:
    """Open a book, or begin one, for this process alone; see `Roof.open_inline`."""
    if isinstance(place, str):
        place = read_place(place)
    store = open_store(place, config.store.book if is_database(place) else BOOK)
    held: AbstractContextManager[None] = (
        holding(store, HOLDING_SECONDS) if is_database(place) else nullcontext()
    )
    try:
        with held:
            clock = ClockGuard()
            yield InlineBook(engine_on(store, config, clock), store, wall_clock)
    finally:
        store.close()


# ── proof ─────────────────────────────────────────────────────────────────────────


def answers() -> Answers:
    """Return how the answers of all commands are read back."""
    modules = tuple(product.__name__ for product in PRODUCTS)
    return answers_of(
        command for command in known_commands() if command.__module__.startswith(modules)
    )


def invariants() -> list[Invariant]:
    """Return the products' own laws."""
    return [
        payments.PaymentsLaw(),
        wallet.WalletLaw(),
        withdrawals.WithdrawalsLaw(),
        loans.LoansLaw(),
        portfolios.PortfoliosLaw(),
    ]

"""A book put together from the configuration: store, clock, engine. Decides nothing.

What is in front of it is put together in `serving`.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pennyweight.config import Config
from pennyweight.engine.engine import Engine
from pennyweight.engine.port import Store, StoreError
from pennyweight.engine.rebuild import Answers, Invariant, answers_of, known_commands
from pennyweight.engine.verification import check_tail
from pennyweight.ledger.assets import BUILT_IN, Asset
from pennyweight.ledger.commands import Command
from pennyweight.products import general, payments, wallet, withdrawals
from pennyweight.runtime.clock import ClockGuard, check_start, wall_clock
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.sqlite import SQLiteStore
from pennyweight.stores.sqlite.lock import lock_book, unlock_book

BOOK = "main"
"""The one book of a folder."""

PRODUCTS = (general, payments, wallet, withdrawals)
"""Every product, so that every command is known."""


EXPIRIES: Mapping[str, Callable[[int], Command]] = {
    withdrawals.PRODUCT: withdrawals.ExpireWithdrawal
}
"""How products expire their holds, where that is more than giving the money back."""


# ── stores ────────────────────────────────────────────────────────────────────────


def open_store(folder: Path) -> SQLiteStore:
    """Open a folder's book for writing, or begin one, and look at its last batches.

    Raises StoreInUse, SchemaDrift, StoreFailed, StoreError.
    """
    store = SQLiteStore.open(folder, BOOK, new_incarnation=new_incarnation())
    try:
        problem = check_tail(store)
    except BaseException:
        store.close()
        raise
    if problem is not None:
        store.close()
        raise StoreError(f"{folder}: entry {problem.sequence}: {problem.problem}; run verify")
    return store


def open_reader(folder: Path) -> Store:
    """Open a folder's book for reading, beside whoever serves it. Raises StoreError."""
    return SQLiteStore.open(folder, BOOK, is_read_only=True)


def new_incarnation() -> str:
    """Name a new life of a book."""
    return secrets.token_hex(8)


@contextmanager
def create_book(folder: Path, book: str) -> Iterator[tuple[Store, str]]:
    """Give an empty store and an incarnation; see `Roof.create_book`."""
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
def open_inline(folder: Path, config: Config) -> Iterator[InlineBook]:
    """Open a folder's book, or begin one, for this process alone; see `Roof.open_inline`."""
    store = open_store(folder)
    try:
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
    return [payments.PaymentsLaw(), wallet.WalletLaw(), withdrawals.WithdrawalsLaw()]

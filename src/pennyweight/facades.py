"""The books of the Python faces: in memory, in a folder, or in a database that nobody else serves."""

import secrets
from contextlib import ExitStack
from pathlib import Path

from pennyweight.engine.port import Head
from pennyweight.runtime.clock import wall_clock
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore


class Kept:
    """A book that this process decides, until it is closed."""

    def __init__(self, book: InlineBook, ends: ExitStack) -> None:
        """`ends` releases it."""
        self.book = book
        self._ends = ends

    def close(self) -> None:
        """Release the book. Closing twice is closing once."""
        self._ends.close()


def in_memory(users_max: int) -> Kept:
    """Return a fresh book that lives as long as it is used."""
    store = MemoryStore(Head(book=secrets.token_hex(16), incarnation=secrets.token_hex(8)))
    engine = open_engine(store, now=wall_clock(), users_max=users_max)
    return Kept(InlineBook(engine, store, wall_clock), ExitStack())


def kept_at(place: str | Path, users_max: int) -> Kept:
    """Return the book at a place, begun if there is none. Only here a database is loaded.

    Raises StoreInUse when somebody else has or serves it, StoreError, and BadPlace for a URL
    that is none.
    """
    from pennyweight.assemble import open_inline  # noqa: PLC0415
    from pennyweight.config import Cache, Config  # noqa: PLC0415

    ends = ExitStack()
    config = Config(cache=Cache(users_max=users_max))
    return Kept(ends.enter_context(open_inline(place, config)), ends)

"""A book of this process alone whose faces are served by other processes of this machine."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.engine import Engine, Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.runtime.driver import CallSoon, ThreadedBook
from pennyweight.runtime.listener import Listener
from pennyweight.runtime.member import end_process

_ENDS_SECONDS = 5.0


class Hosted:
    """See `Book`: a threaded book, and the listener that its workers ask."""

    def __init__(self, book: ThreadedBook, listener: Listener, listen: str) -> None:
        """`listen` is where the listener binds."""
        self.book = book
        self.listener = listener
        self._listen = listen

    @property
    def store(self) -> Store:
        """See `Book`."""
        return self.book.store

    @property
    def standing(self) -> Standing:
        """See `Book`."""
        return self.book.standing

    @property
    def engine(self) -> Engine:
        """See `Book`."""
        return self.book.engine

    @property
    def failure(self) -> str:
        """See `Book`."""
        return self.book.failure

    def submit(self, submission: Submission) -> None:
        """See `Book`."""
        self.book.submit(submission)

    def check(self) -> None:
        """See `Book`."""
        self.book.check()

    def figures(self) -> CacheFigures:
        """See `Book`."""
        return self.book.figures()

    def boards(self) -> Mapping[str, msgspec.Raw]:
        """Whoever asks here has the owner's agents at hand."""
        return {}

    def describe(self) -> dict[str, Any]:
        """See `Book`."""
        return {"role": "owner", "sequence": self.book.engine.head.sequence}

    def start(self, call_soon: CallSoon) -> None:
        """See `Book`. To be called on the loop."""
        self._loop = asyncio.get_running_loop()
        self.book.start(call_soon)
        self._beginning = self._loop.create_task(self._begin())

    async def _begin(self) -> None:
        try:
            await self.listener.start(self._listen)
        except (OSError, ValueError) as error:
            end_process(f"cannot listen for workers at {self._listen}: {error}")
            return
        self.listener.book = self.book

    def stop(self, timeout_seconds: float | None = None) -> None:
        """See `Book`."""
        self.book.stop(timeout_seconds)
        asyncio.run_coroutine_threadsafe(self.listener.stop(), self._loop).result(_ENDS_SECONDS)

"""What the faces of a book need of it, whoever owns it: this process, or one at the end of a link."""

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.engine import Engine, Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.runtime.driver import CallSoon


class Book(Protocol):
    """A book that commands can be given to, and whose committed rows can be read."""

    @property
    def store(self) -> Store:
        """The rows, for readers."""

    @property
    def standing(self) -> Standing:
        """Assets as committed; counters and cursors too where the book is owned."""

    @property
    def engine(self) -> Engine | None:
        """The engine, where the book is owned."""

    @property
    def failure(self) -> str:
        """Why nothing is committed any more; "" while all is well."""

    def submit(self, submission: Submission) -> None:
        """Queue a command; its ticket is called with the outcome. Raises Unavailable, QueueFull.

        To be called on the loop that `start` was called on.
        """

    def check(self) -> None:
        """Raise Unavailable when commands cannot be committed: the truth behind `/readyz`."""

    def figures(self) -> CacheFigures:
        """Return what the cache of users does, at the owner. Raises Unavailable."""

    def boards(self) -> Mapping[str, msgspec.Raw]:
        """Return what agents of the owner showed last, by name; empty at the owner itself."""

    def describe(self) -> dict[str, Any]:
        """Return who owns the book, where that can be somebody else; for `/readyz`."""

    def start(self, call_soon: CallSoon) -> None:
        """Begin; answers go through `call_soon`."""

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Decide what waits, then end; blocks. New commands are refused from now on."""

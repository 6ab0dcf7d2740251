"""A book that another process owns: commands go to the owner, committed rows come from the store."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.engine import Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.runtime.driver import CallSoon, Unavailable
from pennyweight.runtime.front import Front


class Follower:
    """See `Book`. Its process keeps nothing of the book but the assets."""

    engine = None
    failure = ""

    def __init__(self, store: Store, front: Front) -> None:
        """`store` is only read."""
        self.store = store
        self.front = front

    @property
    def standing(self) -> Standing:
        """Assets, no more."""
        return self.front.standing

    def submit(self, submission: Submission) -> None:
        """See `Book`."""
        self.front.submit(submission)

    def check(self) -> None:
        """See `Book`."""
        if self.front.down:
            raise Unavailable("no_owner", self.front.down)

    def figures(self) -> CacheFigures:
        """See `Book`."""
        figures = self.front.figures
        if figures is None:
            raise Unavailable("no_owner", self.front.down or "the owner has not told yet")
        return figures

    def boards(self) -> Mapping[str, msgspec.Raw]:
        """See `Book`."""
        return self.front.boards

    def describe(self) -> dict[str, Any]:
        """See `Book`."""
        return {"role": "front", "sequence": self.front.sequence}

    def start(self, call_soon: CallSoon) -> None:  # noqa: ARG002 - answers come on the loop itself
        """See `Book`."""
        self.front.start(asyncio.get_running_loop())

    def stop(self, timeout_seconds: float | None = None) -> None:
        """See `Book`."""
        self.front.stop(timeout_seconds)

"""Releases holds whose time is over. The scan only finds them; the engine decides, by batch time."""

from collections.abc import Callable, Mapping

import structlog

from pennyweight.agents.agent import Agent
from pennyweight.engine.engine import Lane, QueueFull, Submission
from pennyweight.engine.port import StoreError
from pennyweight.ledger.commands import Command
from pennyweight.products.general import ExpireHold
from pennyweight.runtime.clock import wall_clock
from pennyweight.runtime.driver import ThreadedBook, Unavailable

INDEX = "hold_expiry"
PAGE = 500

log = structlog.get_logger(__name__)


class HoldExpiry(Agent):
    """A thread that looks for holds to expire, a bounded page at a time."""

    def __init__(
        self,
        book: ThreadedBook,
        *,
        commands: Mapping[str, Callable[[int], Command]] | None = None,
        every_seconds: float = 0.5,
        clock: Callable[[], int] = wall_clock,
    ) -> None:
        """`commands` make the expiry of a hold by its owner; the ledger's own is the others'.

        `clock` gives microseconds since 1970.
        """
        super().__init__("expiry")
        self._book = book
        self._commands = dict(commands or {})
        self._every_seconds = every_seconds
        self._clock = clock
        self._after: tuple[int, str] | None = None

    def tick(self) -> int:
        """Submit one page of expiries, and return how many there were.

        The next page goes on behind this one, so that holds which cannot expire yet do
        not fill every page; after the last page it begins again.
        """
        page = self._book.store.due(INDEX, 0, self._clock(), after=self._after, limit=PAGE)
        for due in page:
            self._book.submit(Submission(self._expiry(int(due.id)), lane=Lane.TIMERS))
            self._after = (due.rank, due.id)
        if len(page) < PAGE:
            self._after = None
        return len(page)

    def _expiry(self, hold_id: int) -> Command:
        """Return the command with which the owner of a hold expires it."""
        hold = self._book.store.hold(hold_id) if self._commands else None
        return self._commands.get("" if hold is None else hold.owner, ExpireHold)(hold_id)

    def _run(self) -> None:
        is_told = False
        while not self._is_over.wait(self._every_seconds):
            try:
                while self.tick() == PAGE and not self._is_over.is_set():
                    pass
                is_told = False
            except (QueueFull, Unavailable):
                continue  # the next look finds them again
            except StoreError as error:
                if not is_told:
                    log.warning("holds to expire cannot be read", cause=str(error))
                is_told = True

"""What follows the journal from a cursor, and tells the outside: the relay and the exporter.

A cursor in the book says up to which entry the outside has acknowledged everything; after a
crash whoever follows begins again there. The cursor moves by a command of its own, twice a
second at most and only after something was sent, so that the journal does not fill with it.
Nothing new is sent while the book may have another owner, whose agents send: so what was
sent long ago does not come again when a process goes on that stood still.
"""

import time
from collections import deque

from pennyweight.agents.agent import Persistent
from pennyweight.engine.engine import Lane, MoveCursor, QueueFull, Submission
from pennyweight.engine.port import BatchHeader, Committed, StoreError
from pennyweight.engine.receipts import Outcome, Refusal
from pennyweight.ledger.entries import CorruptEntry
from pennyweight.links.errors import ExtraMissing, LinkError
from pennyweight.runtime.driver import ThreadedBook, Unavailable

IDLE_SECONDS = 0.05
MOVE_SECONDS = 0.5
MOVE_ENTRIES = 10_000
"""The cursor also moves after so many entries of which nothing was sent, so that they are read once."""

LAST_MOVE_SECONDS = 1.0

HEADERS = 256
"""Headers of batches that are read at a time."""


class BookBehind(Exception):
    """The outside has what the book does not: it was restored, and something must be done."""


class BatchHeaders:
    """Finds the header of each entry of a journal that is read in order, many at a time."""

    def __init__(self, store: Committed) -> None:
        """Nothing is read yet."""
        self._store = store
        self._header: BatchHeader | None = None
        self._next: deque[BatchHeader] = deque()

    def of(self, sequence: int) -> BatchHeader:
        """Return the header of the batch that holds an entry. Raises CorruptEntry, StoreError."""
        header = self._header
        if header is not None:
            if 0 <= sequence - header.first_sequence < header.count:
                return header
            if sequence == header.first_sequence + header.count:
                header = self._following(header)
        if header is None or not 0 <= sequence - header.first_sequence < header.count:
            self._next.clear()
            header = self._store.batch_at(sequence=sequence)
        if header is None:
            raise CorruptEntry(f"entry {sequence} is in no batch")
        self._header = header
        return header

    def _following(self, header: BatchHeader) -> BatchHeader | None:
        if not self._next:
            rows = self._store.batches(header.first_sequence, HEADERS)
            self._next.extend(header for header, _ in rows)
        return self._next.popleft() if self._next else None


class Following(Persistent):
    """A thread that follows the journal. Counters are since its beginning.

    `_position` is up to where everything was acknowledged, `_sent_until` the last entry of
    which something was sent.
    """

    expected = (LinkError, ExtraMissing, StoreError, BookBehind)

    def __init__(self, name: str, book: ThreadedBook, *, cursor: str) -> None:
        """`name` is the thread's; the cursor's is for ever."""
        super().__init__(name)
        self.moves = 0
        """How often the cursor was asked to move."""
        self.conflicts = 0
        """How often somebody else had moved the cursor."""
        self._book = book
        self._cursor_name = cursor
        self._position = self._sent_until = self._cursor
        self._moved_at = 0.0
        self._is_moving = False
        self._is_elsewhere = False

    @property
    def lag(self) -> int:
        """Entries of the book, as it is now, that are not all acknowledged yet."""
        return self._book.engine.head.sequence - self._position

    @property
    def _is_to_wait(self) -> bool:
        """Whether nothing is to be sent: at the end, and while another may own the book, who sends."""
        return self._is_over.is_set() or not self._book.is_sure

    @property
    def _cursor(self) -> int:
        return self._book.standing.cursors.get(self._cursor_name, 0)

    def _begin_at(self, sequence: int) -> None:
        """Go on after an entry, whatever was sent before."""
        self._position = self._sent_until = sequence

    def _move(self, *, is_last: bool = False) -> None:
        """Ask the book to move the cursor, where that is worth an entry and the time has come."""
        now, cursor = time.monotonic(), self._cursor
        is_worth_it = self._sent_until > cursor or self._position - cursor > MOVE_ENTRIES
        if self._is_moving or not is_worth_it:
            return
        if now - self._moved_at < MOVE_SECONDS and not is_last:
            return
        command = MoveCursor(self._cursor_name, cursor, self._position)
        self._is_moving = True
        self._moved_at = now
        try:
            self._book.submit(Submission(command, lane=Lane.TIMERS, ticket=self._moved))
        except (QueueFull, Unavailable):
            self._is_moving = False
        else:
            self.moves += 1

    def _moved(self, outcome: Outcome) -> None:
        """Take the outcome of a move; whatever it is, the cursor tells the truth."""
        if isinstance(outcome, Refusal):
            self.conflicts += 1
            self._is_elsewhere = True
        self._is_moving = False

    def _move_at_last(self) -> None:
        """Before the end, keep what was done, if the book takes it within a moment."""
        until = time.monotonic() + LAST_MOVE_SECONDS
        while self._sent_until > self._cursor and time.monotonic() < until:
            self._move(is_last=True)
            time.sleep(0.01)

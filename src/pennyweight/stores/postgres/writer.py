"""The owner's line to the book: what a batch reads, its append, and what became of it.

An append is one statement and one transaction, so an error that the server tells of before
its end means that nothing was written. When the line breaks, or a commit comes with the
warning that no standby has confirmed it, nobody knows: `resolve` raises the head's fence on
a new line, which waits for the old append or defeats it, and then looks.
"""

import random
import time
from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any, TypeVar

from psycopg.pq.abc import PGresult

from pennyweight.engine.port import (
    Append,
    ConstraintFailed,
    Found,
    NotOwner,
    OutcomeUnknown,
    Reads,
    Resolution,
    StoreError,
    StoreUnavailable,
)
from pennyweight.stores.postgres import append
from pennyweight.stores.postgres.channel import Channel, Meter, Watchdog, statement
from pennyweight.stores.postgres.errors import ServerError
from pennyweight.stores.postgres.facts import FactFinder
from pennyweight.stores.postgres.keys import WORDS_MIN, KeyFilter
from pennyweight.stores.postgres.lease import Office
from pennyweight.stores.postgres.place import Place
from pennyweight.stores.postgres.readers import Readers

if TYPE_CHECKING:
    import psycopg

SETTINGS = (
    "plan_cache_mode = force_generic_plan",
    "enable_seqscan = off",
    "enable_hashjoin = off",
    "enable_mergejoin = off",
    "enable_bitmapscan = off",
    "jit = off",
    "lock_timeout = '5s'",
)
"""The owner looks up rows by their keys, always: one plan, made once, whatever the tables hold."""

TRIES_MAX = 8
"""How often a statement that lost against another is tried."""

_PAUSE_SECONDS_MAX = 0.05
_GIVEN_UP_TRIES = 3

_GUARD = statement(
    """
    SELECT epoch, sequence, chain, fence FROM pennyweight.heads WHERE book = $1
    """,
    1,
)
_FENCE = statement(
    """
    UPDATE pennyweight.heads
    SET fence = CASE WHEN epoch = $2 THEN fence + 1 ELSE fence END
    WHERE book = $1
    RETURNING epoch, fence
    """,
    *(1, 0),
)
_CHAIN = statement(
    "SELECT chain FROM pennyweight.batches WHERE book = $1 AND first_sequence = $2", 1, 0
)

T = TypeVar("T")


class Writer:
    """The connection that appends, opened when it is needed. One thread uses it."""

    def __init__(
        self, place: Place, book: str, watchdog: Watchdog, office: Office, readers: Readers
    ) -> None:
        """Nothing is open yet. `office` knows the epoch, `readers` the keys of before."""
        self._office = office
        self._readers = readers
        self._keys: KeyFilter | None = None
        self.meter = Meter()
        self._place = place
        self._book = book.encode()
        self._watchdog = watchdog
        self._channel: Channel | None = None
        self._fence = 0
        self._is_closed = False

    def close(self) -> None:
        """Close the line."""
        self._is_closed = True
        self._forget_keys()
        self._drop()

    # ── the line ──────────────────────────────────────────────────────────────────

    def _line(self) -> Channel:
        """Return the line, a new one where it is lost. Raises StoreUnavailable, ServerError."""
        channel = self._channel
        if channel is not None and not channel.is_lost:
            return channel
        if self._is_closed:
            raise StoreError("the book is closed")
        self._drop()
        connection = self._connect()
        channel = Channel(connection, self.meter, is_prepared=self._place.is_prepared)
        self._watchdog.watch(channel)
        self._channel = channel
        try:
            *_, self._fence = self._guard(channel)
        except ServerError as error:
            self._drop()
            error.has_run = False
            raise
        return channel

    def _connect(self) -> "psycopg.Connection[Any]":
        """Open a connection; idle readers give theirs up where there are too many."""
        for _ in range(_GIVEN_UP_TRIES):
            try:
                return self._place.connect(*SETTINGS, is_durable=True)
            except StoreUnavailable as error:
                if error.code != "store_busy" or not self._readers.give_up_idle():
                    raise
            time.sleep(_PAUSE_SECONDS_MAX)  # the server needs a moment to notice
        return self._place.connect(*SETTINGS, is_durable=True)

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _guard(self, channel: Channel) -> tuple[int, int, bytes, int]:
        """Return epoch, sequence, chain and fence of the head, as committed."""
        result = channel.run(_GUARD, (self._book,))
        if result.ntuples != 1:
            raise StoreError("the book has lost its head row")
        return (
            _number(result, 0),
            _number(result, 1),
            result.get_value(0, 2) or b"",
            _number(result, 3),
        )

    def _try(self, work: Callable[[Channel], T], *, is_read: bool = False) -> T:
        """Do something, again where it lost against another. Raises ServerError, StoreUnavailable.

        What only reads, or has not run yet, is also done again, once, on a new line.
        """
        has_reconnected = False
        for attempt in range(1, TRIES_MAX + 1):
            try:
                return work(self._line())
            except ServerError as error:
                if error.state == "25006":
                    self._drop()  # the next line may find the new primary
                if error.is_stale and attempt < TRIES_MAX:
                    self._drop()
                elif error.is_again and attempt < TRIES_MAX:
                    time.sleep(random.uniform(0, min(_PAUSE_SECONDS_MAX, 0.001 * 2**attempt)))  # noqa: S311
                elif error.is_lost and not has_reconnected and (is_read or not error.has_run):
                    has_reconnected = True
                else:
                    raise
        raise AssertionError("unreachable")  # pragma: no cover

    # ── reading for a batch ───────────────────────────────────────────────────────

    def begin(self, reads: Reads, resident: Container[str]) -> Found:
        """See `Store`."""
        keys = self._known_keys() if reads.keys else None
        try:
            return self._try(
                lambda channel: FactFinder(channel, self._book, reads, resident, keys).find(),
                is_read=True,
            )
        except ServerError as error:
            raise error.store_error() from None

    def _known_keys(self) -> KeyFilter | None:
        """Return the bound keys, if they are all known: after a claim, and some time to read them."""
        keys, epoch = self._keys, self._office.epoch
        if keys is None or keys.epoch != epoch or keys.is_full:
            words = WORDS_MIN if keys is None else keys.words_wanted
            self._forget_keys()
            if epoch and not self._is_closed:
                self._keys = KeyFilter(epoch, self._readers.keys_after, words=words)
            return None
        return keys if keys.is_loaded else None

    def _forget_keys(self) -> None:
        keys, self._keys = self._keys, None
        if keys is not None:
            keys.stop()

    # ── appending ─────────────────────────────────────────────────────────────────

    def append(self, batch: Append) -> None:
        """See `Store`."""
        if self._keys is not None:
            self._keys.add((row.product, row.key) for row in batch.keys)
        try:
            self._try(lambda channel: self._append(channel, batch))
        except NotOwner:
            self._forget_keys()
            raise
        except UnicodeEncodeError as error:
            raise ConstraintFailed(str(error)) from None
        except ServerError as error:
            if error.is_lost and error.has_run:
                raise OutcomeUnknown(str(error)) from None
            raise error.store_error() from None

    def _append(self, channel: Channel, batch: Append) -> None:
        for _ in range(TRIES_MAX):
            composed, values = append.compose(batch, self._fence)
            channel.is_doubtful = False
            result = channel.run(composed, values)
            if channel.is_doubtful:
                raise OutcomeUnknown("committed, but no standby has confirmed it")
            if result.get_value(0, 0) != append.NO_HEAD:
                return
            *at, fence = self._guard(channel)
            expected = batch.expected
            if at != [expected.epoch, expected.sequence, expected.chain] or fence == self._fence:
                raise NotOwner("the head of the book moved")
            self._fence = fence  # raised by somebody who asked what became of an older append
        raise StoreUnavailable("others keep raising the fence of the book", "store_busy")

    # ── what became of it ─────────────────────────────────────────────────────────

    def resolve(self, batch: Append) -> Resolution:
        """See `Store`."""
        self._drop()
        try:
            return self._try(lambda channel: self._resolve(channel, batch), is_read=True)
        except ServerError as error:
            failure = error.store_error()
            if isinstance(failure, StoreUnavailable):
                raise failure from None
            raise StoreUnavailable(str(error)) from None

    def _resolve(self, channel: Channel, batch: Append) -> Resolution:
        """Fence, then read. The fence's commit also tells whether a standby has all until then."""
        channel.is_doubtful = False
        result = channel.run(_FENCE, (self._book, b"%d" % batch.expected.epoch))
        if channel.is_doubtful:
            raise StoreUnavailable("no standby confirms what is committed", "store_unconfirmed")
        if result.ntuples != 1:
            raise StoreError("the book has lost its head row")
        is_owner = _number(result, 0) == batch.expected.epoch
        self._fence = _number(result, 1)
        found = channel.run(_CHAIN, (self._book, b"%d" % batch.batch.header.first_sequence))
        chain = found.get_value(0, 0) if found.ntuples else None
        return Resolution(chain == batch.batch.chain, is_owner)


def _number(result: PGresult, column: int) -> int:
    """Return a binary bigint of the first row."""
    return int.from_bytes(result.get_value(0, column) or b"", "big", signed=True)

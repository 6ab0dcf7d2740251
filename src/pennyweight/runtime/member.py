"""A member: one of the processes that share a book, of which one owns it at a time.

A thread keeps asking the store for the book's lease. Whoever has it opens an engine, and
decides and commits; commands of the others come to it over links. Taking over adds 1 to the
epoch that guards every append, so it is safe at any moment: the lease only keeps the members
from taking the book out of each other's hands. What a former owner had not decided goes to
the next one; what it had begun to commit is found out before anybody is answered.

Whatever acts on the outside world (timers, consumers, relays) runs where the book is owned.
"""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.engine import Engine, Lane, QueueFull, Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Lease, NotOwner, Store, StoreError, StoreUnavailable
from pennyweight.engine.receipts import Unknown
from pennyweight.runtime.clock import DRIFT_MAX, ClockGuard, ClockRefused, wall_clock
from pennyweight.runtime.driver import CallSoon, ThreadedBook, Unavailable
from pennyweight.runtime.front import Front
from pennyweight.runtime.listener import Listener

SURE_SHARE = 0.9
"""For how much of a lease its owner trusts it: the rest is for clocks that run unevenly."""

RETRY_SECONDS = 0.2
REFUSED_SECONDS = 1.0
_ENDS_SECONDS = 5.0
_LOOK_SECONDS = 0.1
_ASKED_EARLY_SECONDS = 0.01

log = structlog.get_logger(__name__)


def steady_clock() -> float:
    """Return seconds of a clock that never jumps and goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Agent(Protocol):
    """Something that acts on the outside world while the book is owned."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """End; blocks until it has."""


def end_process(why: str) -> None:
    """End this process as a signal from outside would."""
    log.critical("nothing can be served", cause=why)
    os.kill(os.getpid(), signal.SIGTERM)


class Tenure:
    """One ownership's view of the lease, see `runtime.driver.Tenure`."""

    def __init__(self, member: "Member", epoch: int) -> None:
        """`epoch` is the one under which the book was taken over."""
        self._member = member
        self._epoch = epoch

    @property
    def is_sure(self) -> bool:
        """Whether the store promised the book to us for longer than until now."""
        return self.is_sure_for(0)

    def is_sure_for(self, seconds: float) -> bool:
        """Whether the store promised the book to us for longer than so many seconds from now."""
        epoch, until = self._member.promised
        return epoch == self._epoch and steady_clock() + seconds < until

    def confirm(self) -> None:
        """Claim again. Raises NotOwner, StoreUnavailable."""
        lease = self._member.claim()
        if lease is None or lease.epoch != self._epoch:
            raise NotOwner("another process has the lease")


class Member:
    """See `Book` and the module's docstring."""

    def __init__(
        self,
        store: Store,
        front: Front,
        listener: Listener,
        *,
        name: str,
        listen: str,
        advertise: str,
        lease_seconds: float,
        open_engine: Callable[[], Engine],
        open_book: Callable[[Engine, Tenure, Callable[[], object]], ThreadedBook],
        agents: Callable[[ThreadedBook], Sequence[Agent]] = lambda _: (),
        clock: ClockGuard,
        is_clock_accepted: bool = False,
        broken: Callable[[str], object] = end_process,
    ) -> None:
        """`name` is this process's own, also after a restart no other has it.

        `listen` is where the listener binds, `advertise` what others are told instead (""
        for the same). `open_engine` opens an engine on the book as it stands, `open_book`
        a driver on it, which gets the tenure and what to call when it lost the book;
        `agents` makes those of one ownership. `broken` is told why nothing can begin.
        """
        self.store = store
        self.front = front
        self.listener = listener
        self.name = name
        self.clock = clock
        self.failure = ""
        self.takeovers = 0
        """How often the book was taken over by this process."""
        self.promised = (0, 0.0)
        """The epoch under which the store promised the book to us, and until when."""
        self.address = ""
        """Where others reach this process, once it listens."""
        self._listen = listen
        self._advertise = advertise
        self._life = lease_seconds
        self._open_engine = open_engine
        self._open_book = open_book
        self._agents_of = agents
        self._is_clock_accepted = is_clock_accepted
        self._broken = broken
        self._claiming = threading.Lock()
        self._owned: ThreadedBook | None = None
        """The book while it is ours; set and used by the loop."""
        self._latest: ThreadedBook | None = None
        """The book of the last ownership; the keeper's."""
        self._agents: Sequence[Agent] = ()
        self._owner = ""
        self._trouble = ""
        self._wake = threading.Event()
        self._turning = threading.Lock()
        """Held by the keeper for each of its turns."""
        self._is_stopping = False
        """Whether the lease is renewed for as long as the book ends, and no more is done."""
        self._is_over = False
        self._keeper = threading.Thread(target=self._keep, name="pennyweight-lease", daemon=True)

    # ── for the callers' loop ─────────────────────────────────────────────────────

    @property
    def standing(self) -> Standing:
        """See `Book`."""
        return self.front.standing if self._owned is None else self._owned.standing

    @property
    def engine(self) -> Engine | None:
        """See `Book`."""
        return None if self._owned is None else self._owned.engine

    def submit(self, submission: Submission) -> None:
        """See `Book`."""
        book = self._owned
        if book is None:
            self.front.submit(submission)
            return
        try:
            book.submit(submission)
        except Unavailable:
            if not book.is_lost:
                raise
            self.front.submit(submission)

    def check(self) -> None:
        """See `Book`."""
        if self._is_stopping:
            raise Unavailable("stopping", "the server is stopping")
        if self._owned is not None:
            self._owned.check()
        elif self.front.down:
            raise Unavailable("no_owner", self._trouble or self.front.down)

    def figures(self) -> CacheFigures:
        """See `Book`."""
        if self._owned is not None:
            return self._owned.figures()
        figures = self.front.figures
        if figures is None:
            raise Unavailable("no_owner", self.front.down or "the owner has not told yet")
        return figures

    def boards(self) -> Mapping[str, msgspec.Raw]:
        """See `Book`."""
        return {} if self._owned is not None else self.front.boards

    def describe(self) -> dict[str, Any]:
        """See `Book`."""
        if self._owned is not None:
            return {
                "role": "owner",
                "epoch": self._owned.engine.head.epoch,
                "sequence": self._owned.engine.head.sequence,
            }
        return {"role": "front", "owner": self._owner, "sequence": self.front.sequence}

    def start(self, call_soon: CallSoon) -> None:
        """See `Book`. To be called on the loop."""
        self._call_soon = call_soon
        self._loop = asyncio.get_running_loop()
        self._beginning = self._loop.create_task(self._begin())

    async def _begin(self) -> None:
        try:
            bound = await self.listener.start(self._listen)
        except (OSError, ValueError) as error:
            self.failure = f"cannot listen for fronts at {self._listen}: {error}"
            self._broken(self.failure)
            return
        self.address = self._advertise or bound
        self.front.start(self._loop)
        self._keeper.start()

    def stop(self, timeout_seconds: float | None = None) -> None:
        """See `Book`. The next owner can take over when this returns."""
        self._is_stopping = True
        asyncio.run_coroutine_threadsafe(self._begun(), self._loop).result(_ENDS_SECONDS)
        self._wake.set()
        with self._turning:  # the lease is only renewed from now on
            self._stop_agents()
            book = self._latest
        if book is not None and not book.is_lost:
            asyncio.run_coroutine_threadsafe(self._uninstall(), self._loop).result(_ENDS_SECONDS)
            book.stop(timeout_seconds)
        self._is_over = True
        self._wake.set()
        if self._keeper.ident is not None:
            self._keeper.join(timeout_seconds)
        try:
            self.store.give_up(self.name)
        except StoreError as error:
            log.warning("the lease could not be given up; it will run out", cause=str(error))
        self.front.stop(timeout_seconds)
        asyncio.run_coroutine_threadsafe(self.listener.stop(), self._loop).result(_ENDS_SECONDS)

    async def _begun(self) -> None:
        await asyncio.wait([self._beginning])

    # ── the lease ─────────────────────────────────────────────────────────────────

    def claim(self) -> Lease | None:
        """Claim the lease once, and note what was promised. Raises StoreUnavailable."""
        with self._claiming:
            asked_at, asked_wall = steady_clock(), wall_clock()
            lease = self.store.claim(self.name, self.address, int(self._life * 1_000_000))
            if lease is None:
                self.promised = (0, 0.0)
                return None
            self._compare_clocks(lease, asked_wall)
            self.promised = (lease.epoch, asked_at + SURE_SHARE * self._life)
            return lease

    def _compare_clocks(self, lease: Lease, asked_at: int) -> None:
        if not self._is_clock_accepted:
            self.clock.compare(lease.now, asked_at, wall_clock())

    def _is_clock_off(self) -> bool:
        """Whether this clock is too far from the database's for us to stamp anything."""
        if not -DRIFT_MAX <= self.clock.lead <= DRIFT_MAX:
            asked_at = wall_clock()
            lease = self.store.lease()
            if lease is not None:
                self._compare_clocks(lease, asked_at)
        return not -DRIFT_MAX <= self.clock.lead <= DRIFT_MAX

    def _keep(self) -> None:
        """Claim, take over, let go, until told to stop."""
        while not self._is_over:
            try:
                with self._turning:
                    seconds = self._turn()
                self._trouble = ""
            except StoreUnavailable as error:
                self._note(str(error))
                seconds = RETRY_SECONDS
            except Exception as error:  # whoever can serve the book must get it
                if not self._trouble:
                    log.exception("the book cannot be taken over")
                self._note(f"the book cannot be taken over: {error}")
                if self._latest is not None:
                    self._let_go(self._latest)
                self._yield()
                seconds = REFUSED_SECONDS
            self._wait(seconds)

    def _wait(self, seconds: float) -> None:
        """Wait for the next turn, less where the owner seems to be gone."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._wake.wait(min(left, _LOOK_SECONDS)):
                self._wake.clear()
                return
            if self._latest is None and self.front.down and not self._trouble:
                return

    def _note(self, trouble: str) -> None:
        if not self._trouble:
            log.error("the lease cannot be had", cause=trouble)
        self._trouble = trouble

    def _yield(self) -> None:
        """Let somebody else have the book that cannot be opened here."""
        self.promised = (0, 0.0)
        try:
            self.store.give_up(self.name)
        except StoreError as error:
            log.warning("the lease could not be given up", cause=str(error))

    def _turn(self) -> float:
        """Claim once, do what follows, and return how many seconds to wait."""
        book = self._latest
        if self._is_stopping and book is None:
            return self._life / 3
        self._check_clock(is_read=book is not None)
        lease = None if self._is_clock_off() else self.claim()
        if self._is_stopping:
            return self._life / 3
        if lease is not None and self._is_clock_off():
            raise ClockRefused(
                f"the clock is {self.clock.lead / 1_000_000:.3f} s away from the database's"
            )
        if lease is None:
            if book is not None:
                self._let_go(book)
            return self._until_free()
        if book is not None and (book.is_lost or book.engine.head.epoch != lease.epoch):
            if not self._let_go(book):
                return RETRY_SECONDS
            book = None
        if book is None:
            self._take_over(lease)
        self._owner = self.address
        return self._life / 3

    def _check_clock(self, *, is_read: bool) -> None:
        """Raise ClockRefused after a jump of the clock: who cannot stamp must not have the book.

        The engine of a book that we have reads it all the time (`is_read`).
        """
        if not is_read:
            self.clock.now()
        if self.clock.has_jumped and not self._is_stopping:
            raise ClockRefused(f"the clock jumped by {self.clock.drift / 1_000_000:.3f} s")

    def _until_free(self) -> float:
        """Return how many seconds to wait while the lease is another's."""
        lease = self.store.lease()
        if lease is None:
            return RETRY_SECONDS
        self._owner = lease.address
        left = (lease.expires_at - lease.now) / 1_000_000 + _ASKED_EARLY_SECONDS
        return min(max(left, _ASKED_EARLY_SECONDS), self._life / 3)

    def _take_over(self, lease: Lease) -> None:
        """Open the book, and begin to decide. Raises what opening raises."""
        started = time.monotonic()
        engine = self._open_engine()
        if engine.head.epoch != lease.epoch:
            raise NotOwner("the lease was lost while the book was opened")
        tenure = Tenure(self, lease.epoch)
        book = self._open_book(engine, tenure, lambda: self._report_loss(book))
        book.start(self._call_soon)
        self._latest = book
        self.takeovers += 1
        self._call_soon(self._install, book)
        self._agents = self._agents_of(book)
        for agent in self._agents:
            agent.start()
        log.warning(
            "this process owns the book",
            epoch=lease.epoch,
            sequence=engine.head.sequence,
            seconds=round(time.monotonic() - started, 3),
        )

    def _report_loss(self, book: ThreadedBook) -> None:
        """Have the loop pass on what is left, if there still is a loop; called by the book."""
        with contextlib.suppress(RuntimeError):
            self._call_soon(self._lost, book)

    def _let_go(self, book: ThreadedBook) -> bool:
        """End an ownership; whether it has ended."""
        book.lose()
        self._stop_agents()
        if not book.join(_ENDS_SECONDS):
            return False
        self._latest = None
        return True

    def _stop_agents(self) -> None:
        agents, self._agents = self._agents, ()
        for agent in agents:
            agent.stop()

    # ── on the loop ───────────────────────────────────────────────────────────────

    def _install(self, book: ThreadedBook) -> None:
        """Commands are decided here from now on."""
        if not book.is_lost and not self._is_stopping:
            self._owned = self.listener.book = book

    async def _uninstall(self) -> None:
        """Commands of others are not decided here any more; our own have ended."""
        self.listener.book = None

    def _lost(self, book: ThreadedBook) -> None:
        """Pass on what the former owner had not decided."""
        if self._owned is book:
            self._owned = self.listener.book = None
        for submission in book.take_back():
            if submission.lane is not Lane.INTERACTIVE or submission.cursor is not None:
                _answer(submission, Unknown("the book has another owner", "no_owner"))
                continue
            try:
                self.front.submit(submission)
            except (QueueFull, Unavailable) as error:
                _answer(submission, Unknown(str(error), "no_owner"))
        self._wake.set()


def _answer(submission: Submission, outcome: Unknown) -> None:
    """Call a ticket; one that fails must not keep the others from being passed on."""
    try:
        if submission.ticket is not None:
            submission.ticket(outcome)
    except Exception:
        log.exception("a caller could not be answered", command=submission.command.name)

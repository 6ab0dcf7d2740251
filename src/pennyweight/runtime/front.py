"""A front: a process that has not the book takes commands all the same, and asks the owner.

It finds the owner, keeps one connection to it, and gives every command a key that has none.
So whatever happens to the connection or to the owner, what was asked and not answered is
asked again, in its old order, of whoever owns the book next, and done once. Callers wait a
bounded time for that, and then hear whether their command may have been done.

All of it but `find` and what concerns assets happens on one event loop.
"""

import asyncio
import contextlib
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import structlog

from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.engine import RULES, Abandon, QueueFull, Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.receipts import UNKNOWN, Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger.assets import Asset, is_asset_name
from pennyweight.ledger.commands import Command
from pennyweight.ledger.refusals import Reason
from pennyweight.runtime.driver import Unavailable
from pennyweight.runtime.frames import (
    ASKS_PER_FRAME_MAX,
    BEAT_SECONDS,
    FRAME_BYTES_MAX,
    FROM_OWNER,
    IN_FLIGHT_MAX,
    NONCE_BYTES,
    PURPOSE,
    VERSION,
    AnswersRead,
    Ask,
    Asks,
    Assets,
    Challenge,
    Channel,
    Declined,
    DoneRead,
    Failed,
    Farewell,
    Introduction,
    Ping,
    Status,
    TurnedAway,
    Undecided,
    Welcome,
    difference,
    frames,
    is_proof,
    proof_of,
    split_address,
)

SEEK_SECONDS = 0.1
"""Between two looks for an owner."""

TURNED_AWAY_SECONDS = 1.0
"""After an owner that will not have us."""

CONNECT_SECONDS = 2.0

DOUBT_SECONDS = 1.0
"""After so long without an outcome it is looked up whether another owns the book by now."""

OWN_KEYS = "front:"
"""How the keys begin that fronts give to commands that came without one."""

_PARTING_SECONDS = 1.0

NO_OWNER = "no_owner"
STOPPING = "stopping"

_ELSEWHERE = frozenset({NO_OWNER, STOPPING})
"""Codes of an owner that will soon be none: the next one is asked, nobody is told."""

log = structlog.get_logger(__name__)


class FailedAtOwner(Exception):
    """A rule of ours broke in the owner's process; the text says how and where."""


class Front:
    """Sends commands to the owner of a book, whichever process that is."""

    def __init__(
        self,
        find: Callable[[], str | None],
        *,
        secret: bytes,
        book: str,
        commands: Mapping[str, type[Command]],
        load_assets: Callable[[], dict[str, Asset]],
        load_asset: Callable[[str], Asset | None],
        hold_seconds: float,
        queue_max: int,
    ) -> None:
        """`find` returns the owner's address, None while there is none; it may block.

        `secret` and `commands` are as the listener has them. `load_assets` and `load_asset`
        read the store. A command waits `hold_seconds` for its outcome, `queue_max` may wait.
        """
        if not secret:
            raise ValueError("the secret between fronts and owner is empty")
        self.secret = secret
        self.book = book
        self._load_asset = load_asset
        self._learning = threading.Lock()
        self.standing = Standing(_KnownAssets(load_asset, self._know, {}), {}, {})
        """What faces need to know: assets, and no counters or cursors."""
        self.figures: CacheFigures | None = None
        self.boards: Mapping[str, msgspec.Raw] = {}
        """What agents of the owner showed last, by name."""
        self.sequence = 0
        """How far the book is, as far as we have heard."""
        self.incarnation = ""
        self.epoch = 0
        self.down = "no owner was looked for yet"
        """Why commands cannot be sent; "" while they can."""
        self._find = find
        self._load_assets = load_assets
        self._hold_seconds = hold_seconds
        self._queue_max = queue_max
        self._names = {kind: name for name, kind in commands.items()}
        self._readers = {kind: _reader_of(kind) for kind in commands.values()}
        self._pending: dict[int, _Pending] = {}
        """Everything not yet answered, in the order in which it came."""
        self._waiting: deque[_Pending] = deque()
        """What of it is to be sent."""
        self._last = 0
        self._key = ""
        self._link: _Link | None = None
        """The connection to the owner, once each has proven who it is."""
        self.connected: set[_Link] = set()
        """Connections that are not closed yet."""
        self._suspect = ("", 0)
        """Address and epoch of an owner that seemed to be a former one."""
        self._is_flushing = False
        self._is_stopping = False
        self._answered_all: asyncio.Future[None] | None = None
        """Done when nobody waits any more; there only while this front stops."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seeker: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._doubt: asyncio.Task[None] | None = None
        self._thread: ThreadPoolExecutor | None = None

    # ── for the callers' loop ─────────────────────────────────────────────────────

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to look for the owner; from any thread."""
        self._key = f"{OWN_KEYS}{secrets.token_hex(16)}"  # here, and not before a fork
        self._loop = loop
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pennyweight-seeker")
        loop.call_soon_threadsafe(self._begin)

    def submit(self, submission: Submission) -> None:
        """Queue a command; its ticket is called with the outcome. Raises Unavailable, QueueFull.

        ValueError for what only comes from streams, which are read where the book is owned.
        """
        if submission.cursor is not None or submission.aside is not None:
            raise ValueError("what comes from a stream is submitted where the book is owned")
        if submission.is_dropped:
            return
        loop = self._loop
        if self._is_stopping:
            raise Unavailable(STOPPING, "the server is stopping")
        if loop is None:
            raise Unavailable(NO_OWNER, self.down)
        if len(self._pending) >= self._queue_max:
            raise QueueFull(f"{self._queue_max} commands are waiting")
        name = self._names.get(submission.command.__class__)
        if name is None:
            raise ValueError(f"{submission.command.name} has no name on the wire")
        number = self._last = self._last + 1
        key = submission.key
        ask = Ask(
            number,
            name,
            submission.command,
            key or f"{self._key}:{number}",
            submission.not_after,
        )
        pending = _Pending(submission, ask, loop.time() + self._hold_seconds)
        self._pending[number] = pending
        self._waiting.append(pending)
        if not self._is_flushing:
            self._is_flushing = True
            loop.call_soon(self._flush)

    async def close(self, timeout_seconds: float | None = None) -> None:
        """Take no more commands, wait for what is not answered, then hang up."""
        self._is_stopping = True
        loop = asyncio.get_running_loop()
        if self._pending:
            self._answered_all = loop.create_future()
            await asyncio.wait([self._answered_all], timeout=timeout_seconds)
        while self._seeker is not None and not self._seeker.done():
            self._seeker.cancel()  # which gets lost when a connection is there just then
            await asyncio.wait([self._seeker], timeout=BEAT_SECONDS)
        if self._timer is not None:
            self._timer.cancel()
        if self._doubt is not None:
            self._doubt.cancel()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        if self._link is not None:
            self._link.end("this front is stopping", is_polite=True)
        self.down = "this front is stopping"
        for pending in list(self._pending.values()):
            self._give_up(pending, STOPPING, "the server is stopping")
        if self.connected:
            closed = [link.closed for link in self.connected]
            await asyncio.wait(closed, timeout=_PARTING_SECONDS)

    def stop(self, timeout_seconds: float | None = None) -> None:
        """Do as `close`, from another thread than the loop's."""
        loop = self._loop
        if loop is not None and loop.is_running():
            asyncio.run_coroutine_threadsafe(self.close(timeout_seconds), loop).result()

    # ── looking for the owner ─────────────────────────────────────────────────────

    def _begin(self) -> None:
        loop = asyncio.get_running_loop()
        self._seeker = loop.create_task(self._seek())
        self._timer = loop.call_later(BEAT_SECONDS, self._beat)

    async def _seek(self) -> None:
        """Keep a connection to the owner, for ever."""
        await self._learn_assets()
        while True:
            try:
                seconds = await self._follow()
            except Exception:
                log.exception("looking for the owner broke")
                seconds = TURNED_AWAY_SECONDS
            if seconds:
                await asyncio.sleep(seconds)

    async def _follow(self) -> float:
        """Find an owner, stay with it to its end, and return how long to wait then."""
        loop = asyncio.get_running_loop()
        try:
            address = await loop.run_in_executor(self._thread, self._find)
        except Exception as error:  # noqa: BLE001 - the store may be away: look again
            self._say_down(f"the owner cannot be looked for: {error}")
            return SEEK_SECONDS
        if address is None:
            self._say_down("no process owns the book")
            return SEEK_SECONDS
        link = _Link(self, address)
        try:
            place = split_address(address)
            connecting = (
                loop.create_unix_connection(lambda: link, place)
                if isinstance(place, str)
                else loop.create_connection(lambda: link, *place)
            )
            await asyncio.wait_for(connecting, CONNECT_SECONDS)
        except (OSError, ValueError, TimeoutError) as error:
            link.end(f"it cannot be reached: {str(error) or 'no answer'}")
            return SEEK_SECONDS
        except asyncio.CancelledError:
            link.end("this front is stopping")
            raise
        began = loop.time()
        try:
            await link.over
        finally:
            link.end("this front is stopping")
        if link.is_turned_away:
            return TURNED_AWAY_SECONDS
        is_sudden = not link.is_proven or loop.time() - began < TURNED_AWAY_SECONDS
        return SEEK_SECONDS if is_sudden else 0.0

    async def _learn_assets(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            assets = await loop.run_in_executor(self._thread, self._load_assets)
        except Exception as error:  # noqa: BLE001 - the owner tells them too, and a miss asks again
            log.warning("assets could not be read", error=str(error))
        else:
            self._know(assets.values())

    def _know(self, assets: Iterable[Asset]) -> None:
        """Take assets in; from any thread. Nothing is changed that a reader may be going through."""
        new = {asset.name: asset for asset in assets}
        with self._learning:
            known = {**self.standing.assets, **new}
            self.standing.assets = _KnownAssets(self._load_asset, self._know, known)

    def _say_down(self, why: str) -> None:
        if why != self.down:
            log.warning("commands cannot be sent to the owner", why=why)
            self.down = why

    # ── for the link ──────────────────────────────────────────────────────────────

    def welcomed(self, link: "_Link", welcome: Welcome) -> str:
        """Send everything to this owner from now on; return why not, "" if so.

        One of an earlier epoch was the owner, as a rule. If the next look finds it again,
        the store itself has gone back, and it is the owner.
        """
        found = (link.address, welcome.epoch)
        is_earlier = welcome.incarnation == self.incarnation and welcome.epoch < self.epoch
        if is_earlier and found != self._suspect:
            self._suspect = found
            return f"it owned the book in epoch {welcome.epoch}, which is over"
        self.incarnation, self.epoch = welcome.incarnation, welcome.epoch
        self._link = link
        self._waiting = deque(self._pending.values())
        self.down = ""
        log.info("the owner was found", address=link.address, epoch=welcome.epoch)
        self._flush()
        return ""

    def ended(self, link: "_Link") -> None:
        """Note that a connection is over: what it carried may have been done, or not."""
        if self._link is link:
            self._link = None
        for pending in link.sent.values():
            pending.is_in_doubt = True
        link.sent.clear()
        if not self._is_stopping:
            self._say_down(f"the owner at {link.address}: {link.why}")

    def learned(self, message: Assets | Status) -> None:
        """Take over what the owner tells."""
        if isinstance(message, Assets):
            self._know(message.assets)
        else:
            self.figures = message.figures
            self.boards = message.boards
            self.sequence = max(self.sequence, message.sequence)

    def answered(self, link: "_Link", message: AnswersRead) -> None:
        """Hand outcomes to those who wait for them."""
        sent = link.sent
        for answer in message.answers:
            pending = sent.pop(answer.id, None)
            if pending is None or pending.is_over:  # heard twice, or too late
                continue
            if isinstance(answer, Undecided) and answer.code in _ELSEWHERE:
                continue  # it waits in `_pending` for the next owner
            self._settle(pending, self._outcome(pending, answer))
        if self._waiting:
            self._flush()

    def resumed(self) -> None:
        """Send what waited for the owner to read."""
        self._flush()

    # ── inside ────────────────────────────────────────────────────────────────────

    def _flush(self) -> None:
        """Send what waits, as much as the owner may have at once."""
        self._is_flushing = False
        link, waiting = self._link, self._waiting
        if link is None or link.is_paused:
            return
        sent = link.sent
        while waiting and len(sent) < IN_FLIGHT_MAX and not link.is_paused:
            room = min(ASKS_PER_FRAME_MAX, IN_FLIGHT_MAX - len(sent))
            asks: list[Ask] = []
            while waiting and len(asks) < room:
                pending = waiting.popleft()
                if pending.submission.is_dropped and not pending.is_over:
                    self._forget(pending)
                elif not pending.is_over:
                    sent[pending.ask.id] = pending
                    asks.append(pending.ask)
            if asks:
                link.send(frames(Asks, asks, self._unsayable))

    def _unsayable(self, ask: Ask, error: Exception) -> None:
        """Answer a command that cannot be written."""
        pending = self._pending[ask.id]
        if self._link is not None:
            self._link.sent.pop(ask.id, None)
        cause = FailedAtOwner(f"{ask.name} cannot be sent: {error!r}")
        self._settle(pending, Failure(cause))

    def _outcome(
        self, pending: "_Pending", answer: DoneRead | Declined | Failed | Undecided
    ) -> Outcome:
        """Make an outcome of what came over the wire."""
        submission = pending.submission
        if isinstance(answer, DoneRead):
            self.sequence = max(self.sequence, answer.sequence)
            try:
                value = self._readers[submission.command.__class__](answer.answer)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                return Unknown(f"it was done, but the answer cannot be read: {error}")
            return Receipt(answer.sequence, value, answer.is_replayed and bool(submission.key))
        if isinstance(answer, Declined):
            reason = _REASONS.get(answer.reason)
            if reason is None:
                return Failure(FailedAtOwner(f"no reason is called {answer.reason!r}"))
            if reason is Reason.NOT_AFTER_PASSED and pending.is_in_doubt:
                # The deadline is looked at before the key: it may have been done in time.
                return Unknown("the owner was lost, and the deadline passed before the next")
            return Refusal(reason, answer.message, answer.figures)
        if isinstance(answer, Failed):
            return Failure(FailedAtOwner(answer.text))
        return Unknown(answer.message, UNKNOWN if pending.is_in_doubt else answer.code)

    def _settle(self, pending: "_Pending", outcome: Outcome) -> None:
        """Tell a caller; one that fails (its client is gone) must not keep the others waiting."""
        self._forget(pending)
        submission = pending.submission
        try:
            if submission.ticket is not None:
                submission.ticket(outcome)
        except Exception:
            log.exception("a caller could not be answered", command=submission.command.name)

    def _forget(self, pending: "_Pending") -> None:
        """Nobody waits for this one any more."""
        pending.is_over = True
        del self._pending[pending.ask.id]
        everything = self._answered_all
        if everything is not None and not self._pending and not everything.done():
            everything.set_result(None)

    def _give_up(self, pending: "_Pending", code: str, why: str) -> None:
        """Tell a caller that there is no outcome yet, and whether there may be one."""
        link = self._link
        if pending.is_in_doubt or (link is not None and pending.ask.id in link.sent):
            self._settle(pending, Unknown("the owner has not answered", UNKNOWN))
        else:
            self._settle(pending, Unknown(why, code))

    def _beat(self) -> None:
        """Look after time: who waits too long, and whether the owner still lives."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(BEAT_SECONDS, self._beat)
        now = loop.time()
        while self._pending:
            pending = next(iter(self._pending.values()))
            if pending.until > now:
                break
            self._give_up(pending, NO_OWNER, "no process owns the book, or it takes no commands")
        link, is_at_it = self._link, self._doubt is not None and not self._doubt.done()
        if self._pending and link is not None and not is_at_it:
            oldest = next(iter(self._pending.values()))
            if now - (oldest.until - self._hold_seconds) > DOUBT_SECONDS:
                self._doubt = loop.create_task(self._look_again(link))

    async def _look_again(self, link: "_Link") -> None:
        """Let go of an owner that owes an answer, if another owns the book: it may be stuck."""
        loop = asyncio.get_running_loop()
        try:
            address = await loop.run_in_executor(self._thread, self._find)
        except Exception:  # noqa: BLE001 - whoever cannot ask the store waits on
            return
        if address is not None and address != link.address:
            link.end("another process owns the book")


class _Pending:
    """A command that is not yet answered."""

    __slots__ = ("ask", "is_in_doubt", "is_over", "submission", "until")

    def __init__(self, submission: Submission, ask: Ask, until: float) -> None:
        self.submission = submission
        self.ask = ask
        self.until = until
        self.is_in_doubt = False
        """Whether an owner that is gone had it, and may have done it."""
        self.is_over = False


class _Link(Channel):
    """The connection to one owner."""

    def __init__(self, front: Front, address: str) -> None:
        super().__init__(_reader)
        self.address = address
        self.sent: dict[int, _Pending] = {}
        """What was sent and not answered, those included who do not wait any more."""
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when nothing is said any more."""
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection is gone, too."""
        self.is_turned_away = False
        self._front = front
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._expected = b""
        self._timer = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._next_beat)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `Channel`."""
        super().connection_made(transport)
        self._front.connected.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        """See `Channel`."""
        super().connection_lost(error)
        self._front.connected.discard(self)
        self.closed.set_result(None)

    def heard(self, message: Any) -> None:
        """See `Channel`."""
        kind = type(message)
        if kind is Farewell:
            self.end("it owns the book no longer")
        elif kind is TurnedAway:
            self.is_turned_away = True
            self.end(f"it turned this process away: {message.why}")
        elif kind is Challenge:
            self._introduce(message)
        elif kind is Welcome:
            self._arrive(message)
        elif not self.is_proven:
            self.end("it spoke before it had proven who it is")
        elif kind is AnswersRead:
            self._front.answered(self, message)
        else:
            self._front.learned(message)

    def ended(self) -> None:
        """See `Channel`."""
        self._timer.cancel()
        self._front.ended(self)
        if not self.over.done():
            self.over.set_result(None)

    def resume_writing(self) -> None:
        """See `Channel`."""
        super().resume_writing()
        self._front.resumed()

    def _introduce(self, owner: Challenge) -> None:
        """Prove who we are, to an owner of our own version."""
        if self._expected:
            self.end("it asked twice who we are")
            return
        book, secret = self._front.book, self._front.secret
        why = difference(owner.version, owner.rules)
        if not why and owner.book != book:
            why = f"it owns the book {owner.book!r}, this process serves {book!r}"
        nonces = (owner.nonce, self._nonce)
        proof = b"" if why else proof_of(secret, "front", book, PURPOSE, *nonces)
        self.say(Introduction(VERSION, RULES, book, PURPOSE, self._nonce, proof))
        if why:
            self.is_turned_away = True
            self.end(why, is_polite=True)
            return
        self._expected = proof_of(secret, "owner", book, PURPOSE, *nonces)
        self.splitter.bytes_max = FRAME_BYTES_MAX

    def _arrive(self, welcome: Welcome) -> None:
        """Believe an owner that knows the secret too."""
        if self.is_proven:
            self.end("it welcomed us twice")
            return
        if not self._expected or not is_proof(welcome.proof, self._expected):
            self.is_turned_away = True
            self.end("it does not know our secret")
            return
        self.proven()
        why = self._front.welcomed(self, welcome)
        if why:
            self.end(why)

    def _next_beat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._next_beat)
        if self.beat():
            self.say(Ping())


_REASONS = {reason.code: reason for reason in Reason}
_reader = msgspec.json.Decoder(FROM_OWNER)


class _KnownAssets(dict[str, Asset]):
    """Assets that the owner told, and any other that the store knows.

    One that was registered a moment ago is found at once, whoever registered it.
    """

    def __init__(
        self,
        load: Callable[[str], Asset | None],
        know: Callable[[Iterable[Asset]], object],
        known: Mapping[str, Asset],
    ) -> None:
        super().__init__(known)
        self._load = load
        self._know = know

    def __missing__(self, name: str) -> Asset:
        asset = self._load(name) if is_asset_name(name) else None
        if asset is None:
            raise KeyError(name)
        self._know((asset,))
        return asset

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """Return an asset, or the default."""
        try:
            return self[name]
        except KeyError:
            return default


def _reader_of(kind: type[Command]) -> Callable[[msgspec.Raw], Any]:
    """Return what reads the answers to a command, of whichever of its types they are.

    It raises msgspec.DecodeError.
    """
    if kind is Abandon:
        return msgspec.json.decode
    first, *others = (
        msgspec.json.Decoder(one).decode for one in (kind.answer_type, *kind.other_answer_types)
    )
    if not others:
        return first

    def read(answer: msgspec.Raw) -> Any:
        try:
            return first(answer)
        except msgspec.ValidationError as error:
            for other in others:
                with contextlib.suppress(msgspec.ValidationError):
                    return other(answer)
            raise error from None

    return read

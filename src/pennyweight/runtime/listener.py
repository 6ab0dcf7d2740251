"""The owner's end of the wire: takes the commands of fronts, and sends the outcomes back.

Lives on the loop that hears the book's answers. What fronts ask goes through the book's one
door, and the outcomes of a batch go to each front in one frame. New assets are told before
the outcomes of their batch. When a connection ends, what it asked and is not yet decided is
taken back: the front asks again, under the same keys, wherever the book is then.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, assert_never

import msgspec
import structlog

from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.engine import RULES, QueueFull, Submission
from pennyweight.engine.receipts import UNKNOWN, Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger.commands import Command
from pennyweight.runtime.driver import ThreadedBook, Unavailable
from pennyweight.runtime.frames import (
    BEAT_SECONDS,
    FRAME_BYTES_MAX,
    FROM_FRONT,
    IN_FLIGHT_MAX,
    NONCE_BYTES,
    PURPOSE,
    VERSION,
    Answer,
    Answers,
    AsksRead,
    Assets,
    Challenge,
    Channel,
    Declined,
    Done,
    Failed,
    Farewell,
    Introduction,
    Status,
    TurnedAway,
    Undecided,
    Welcome,
    difference,
    frame,
    frames,
    is_proof,
    proof_of,
    split_address,
)

UNREAD_BYTES_MAX = 4 * FRAME_BYTES_MAX
"""A front that leaves so much unread is dropped."""

FRONTS_MAX = 1_000

_COMPLAINT_SECONDS = 10.0
_COMPLAINTS_MAX = 100
_PARTING_SECONDS = 1.0

log = structlog.get_logger(__name__)


class Listener:
    """Takes commands from fronts for the book that this process owns, while it owns one."""

    def __init__(
        self,
        book: ThreadedBook | None,
        *,
        secret: bytes,
        commands: Mapping[str, type[Command]],
        figures: Callable[[], CacheFigures],
        boards: Callable[[], dict[str, msgspec.Raw]] = dict,
    ) -> None:
        """`secret` is shared with the fronts; `commands` are by their names on the wire.

        `figures` and `boards` are told to fronts with every sign of life, see `Status`.
        """
        if not secret:
            raise ValueError("the secret between fronts and owner is empty")
        self.secret = secret
        self.readers = {name: msgspec.json.Decoder(kind) for name, kind in commands.items()}
        self._book = book
        self._figures = figures
        self._boards = boards
        self._peers: set[_Peer] = set()
        """Those who are talked with; their connections outlive them by what is to be sent yet."""
        self._connected: set[_Peer] = set()
        self._all_gone: asyncio.Future[None] | None = None
        """Done when the last connection is gone; there only while this listener stops."""
        self._assets_told = 0 if book is None else len(book.standing.assets)
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._complaints: dict[str, float] = {}

    @property
    def book(self) -> ThreadedBook | None:
        """The book, None while another process owns it. Set it on the loop."""
        return self._book

    @book.setter
    def book(self, book: ThreadedBook | None) -> None:
        if book is self._book:
            return
        for peer in list(self._peers):
            peer.part()
        self._book = book
        self._assets_told = 0 if book is None else len(book.standing.assets)

    @property
    def fronts(self) -> int:
        """How many fronts are connected."""
        return sum(peer.is_proven for peer in self._peers)

    async def start(self, address: str) -> str:
        """Listen at "HOST:PORT" (port 0: any) or "unix:PATH"; return the address as bound.

        Raises ValueError for an address that is none, OSError for one that cannot be had.
        """
        loop = asyncio.get_running_loop()
        place = split_address(address)
        if isinstance(place, str):
            path = self._path = Path(place)
            self._server = await loop.create_unix_server(self._accept, sock=_bind(path))
        else:
            host, port = place
            self._server = await loop.create_server(self._accept, host, port)
            bound = self._server.sockets[0].getsockname()
            address = f"[{host}]:{bound[1]}" if ":" in host else f"{host}:{bound[1]}"
        self._timer = loop.call_later(BEAT_SECONDS, self._beat)
        return address

    async def stop(self) -> None:
        """Say farewell to all fronts, and listen no more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            self._server.close()
        self.book = None
        if self._connected:
            self._all_gone = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._all_gone], timeout=_PARTING_SECONDS)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    # ── for the peers ─────────────────────────────────────────────────────────────

    def tell_assets(self) -> None:
        """Tell all fronts what was registered since this was last called."""
        book = self._book
        if book is None:
            return
        assets = book.standing.assets
        if len(assets) == self._assets_told:
            return
        new = list(islice(assets.values(), self._assets_told, None))
        self._assets_told = len(assets)
        ready = frames(Assets, new, _unfit)
        for peer in self._peers:
            if peer.is_proven:
                peer.send(ready)

    def status(self) -> Status:
        """Return how far the book is, and what its cache does."""
        book = self._book
        sequence = 0 if book is None else book.engine.head.sequence
        return Status(sequence, self._figures(), self._boards())

    def left(self, peer: "_Peer") -> None:
        """Talk with this one no more."""
        self._peers.discard(peer)

    def gone(self, peer: "_Peer") -> None:
        """Forget a connection."""
        self._connected.discard(peer)
        if self._all_gone is not None and not self._connected and not self._all_gone.done():
            self._all_gone.set_result(None)

    def complain(self, message: str, who: str) -> None:
        """Log that somebody was turned away; not more often than they can be read."""
        now = asyncio.get_running_loop().time()
        if now - self._complaints.get(message, -_COMPLAINT_SECONDS) >= _COMPLAINT_SECONDS:
            if len(self._complaints) >= _COMPLAINTS_MAX:
                self._complaints.clear()
            self._complaints[message] = now
            log.warning("a front was turned away", why=message, front=who)

    # ── inside ────────────────────────────────────────────────────────────────────

    def _accept(self) -> "_Peer":
        peer = _Peer(self)
        self._peers.add(peer)
        self._connected.add(peer)
        return peer

    @property
    def is_crowded(self) -> bool:
        """Whether there are more connections than are served."""
        return len(self._connected) > FRONTS_MAX

    def _beat(self) -> None:
        """Tell all fronts that we live, and drop those that do not."""
        self._timer = asyncio.get_running_loop().call_later(BEAT_SECONDS, self._beat)
        self.tell_assets()
        ready: list[bytearray] = []
        for peer in list(self._peers):
            if peer.beat():
                ready = ready or [frame(self.status())]
                peer.send(ready)


def _bind(path: Path) -> socket.socket:
    """Return a socket at this path that only our own user may connect to. Raises OSError."""
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():  # of somebody who was killed
            path.unlink(missing_ok=True)
        bound.bind(str(path))
        os.chmod(path, 0o600)  # noqa: PTH101 - before anybody can connect: it does not listen yet
    except OSError as error:
        bound.close()
        raise OSError(error.errno, f"cannot listen at {path}: {error}") from None
    return bound


class _Peer(Channel):
    """A front, as its connection."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(_reader)
        self._listener = listener
        self._book = listener.book
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._asked: dict[int, Submission] = {}
        """What was asked and is not yet decided, by the front's number."""
        self._answers: list[Answer] = []
        self._who = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet; or say at once that the book is not here."""
        super().connection_made(transport)
        self._who = str(transport.get_extra_info("peername") or "a local process")
        book = self._book
        if self._listener.is_crowded:
            self.end("there are too many fronts")
        elif book is None:
            self.part()
        else:
            self.say(Challenge(VERSION, RULES, book.engine.head.book, self._nonce))

    def heard(self, message: Any) -> None:
        """See `Channel`."""
        kind = type(message)
        if kind is AsksRead:
            if self.is_proven:
                self._take(message)
            else:
                self.end("it asked before it had proven who it is")
        elif kind is Introduction:
            self._meet(message)

    def connection_lost(self, error: Exception | None) -> None:
        """See `Channel`."""
        super().connection_lost(error)
        self._listener.gone(self)

    def ended(self) -> None:
        """Take back what is not yet decided: the front asks again."""
        self._listener.left(self)
        for submission in self._asked.values():
            submission.is_dropped = True
        if self.is_proven:
            log.info("a front is gone", front=self._who, why=self.why, undecided=len(self._asked))
        elif self._book is not None:
            self._listener.complain(self.why, self._who)
        self._asked.clear()
        self._answers.clear()

    def part(self) -> None:
        """Say what there is to say, then farewell."""
        self._flush()
        self.say(Farewell())
        self.end("the book is not owned here", is_polite=True)

    # ── greeting ──────────────────────────────────────────────────────────────────

    def _meet(self, who: Introduction) -> None:
        """Let a front in that is of our version and knows book and secret."""
        book, secret = self._book, self._listener.secret
        if book is None or self.is_proven:
            return
        head = book.engine.head
        why = difference(who.version, who.rules)
        if not why and who.book != head.book:
            why = f"it asks for the book {who.book!r}, this is {head.book!r}"
        if not why and who.purpose != PURPOSE:
            why = f"it comes for {who.purpose!r}, which nobody here does"
        nonces = (self._nonce, who.nonce)
        if not why:
            expected = proof_of(secret, "front", head.book, who.purpose, *nonces)
            if not is_proof(who.proof, expected):
                why = "it does not know our secret"
        if why:
            self.say(TurnedAway(why))
            self.end(why, is_polite=True)
            return
        self.proven()
        proof = proof_of(secret, "owner", head.book, who.purpose, *nonces)
        self.say(Welcome(proof, head.incarnation, head.epoch))
        self.send(frames(Assets, list(book.standing.assets.values()), _unfit))
        self.say(self._listener.status())
        log.info("a front is here", front=self._who)

    # ── commands and outcomes ─────────────────────────────────────────────────────

    def _take(self, message: AsksRead) -> None:
        """Submit what a front asks."""
        book, asked, readers = self._book, self._asked, self._listener.readers
        if book is None:
            return
        for ask in message.asks:
            number = ask.id
            if number in asked:
                self.end(f"it asked {number} twice")
                return
            if len(asked) >= IN_FLIGHT_MAX:
                self._answer(Undecided(number, "too many commands are under way", "queue_full"))
                continue
            try:
                command = readers[ask.name].decode(ask.command)
                submission = Submission(
                    command,
                    key=ask.key,
                    not_after=ask.not_after,
                    ticket=partial(self._tell, number),
                )
                asked[number] = submission
                book.submit(submission)
            except QueueFull as error:
                self._not_taken(number, "queue_full", error)
            except Unavailable as error:
                self._not_taken(number, error.code, error)
            except Exception as error:  # noqa: BLE001 - a command that cannot be read harms itself only
                asked.pop(number, None)
                self._answer(Failed(number, f"{ask.name} could not be read: {error!r}"))

    def _not_taken(self, number: int, code: str, error: Exception) -> None:
        del self._asked[number]
        self._answer(Undecided(number, str(error), code))

    def _tell(self, number: int, outcome: Outcome) -> None:
        """The ticket of a command."""
        if self._asked.pop(number, None) is None:
            return
        answer: Answer
        match outcome:
            case Receipt():
                answer = Done(number, outcome.sequence, outcome.answer, outcome.is_replayed)
            case Refusal():
                answer = Declined(number, outcome.reason.code, outcome.message, outcome.figures)
            case Failure():
                answer = Failed(number, _told(outcome.cause))
            case Unknown():
                answer = Undecided(number, outcome.message, outcome.code)
            case _:
                assert_never(outcome)
        self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        """Send an answer, with all others that come in this turn of the loop."""
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        self._answers.append(answer)

    def _flush(self) -> None:
        answers = self._answers
        if not answers or self.is_over or self.transport is None:
            return
        self._listener.tell_assets()
        self._answers = []
        if self.transport.get_write_buffer_size() > UNREAD_BYTES_MAX:
            self.end("it does not read its answers")
            return
        self.send(frames(Answers, answers, _unsayable))


def _unsayable(answer: Answer, error: Exception) -> Answer:
    """Return what is said of an outcome that cannot be written."""
    text = f"the outcome cannot be told: {error!r}"
    if isinstance(answer, Done):
        return Undecided(answer.id, text, UNKNOWN)
    return Failed(answer.id, text)


def _unfit(asset: object, error: Exception) -> None:
    """Let go an asset that cannot be written, of which there is none: fronts ask their store."""
    log.error("an asset cannot be told", asset=asset, exc_info=error)


def _told(cause: BaseException) -> str:
    """Write a failure with its notes, which say where it came from."""
    return (
        "\n".join([repr(cause), *getattr(cause, "__notes__", ())])
        .encode(errors="backslashreplace")
        .decode()
    )


_reader = msgspec.json.Decoder(FROM_FRONT)

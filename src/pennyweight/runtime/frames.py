"""The wire between a front and the owner of a book: frames on one stream connection.

A frame is its length in 4 bytes, big endian, and then one JSON array that begins with its
kind. The owner speaks first, with a nonce; the front proves that it knows the secret both
share; the owner proves the same; then asks go one way and outcomes the other. What is
inside, commands and answers, stays JSON that only its own type reads: one that cannot be
read harms nothing but itself. (JSON, because an amount may have 38 digits.)
"""

import asyncio
import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import msgspec

from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.engine import RULES
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.commands import Command

VERSION = 1
"""Version of this wire. Both ends must have the same, and the same rules."""

PURPOSE = "commands"
"""What a connection is for, part of the proof."""

FRAME_BYTES_MAX = 8 * 1024 * 1024
GREETING_BYTES_MAX = 4 * 1024
"""A frame of somebody who has not yet proven to know the secret."""

ASKS_PER_FRAME_MAX = 1_000
IN_FLIGHT_MAX = 10_000
"""Commands that one connection may have with the owner."""

NONCE_BYTES = 32

BEAT_SECONDS = 0.25
TALK_BEATS = 4
"""So often, in beats, either side says something, be it nothing new."""

SILENT_BEATS_MAX = 12
"""A side that hears nothing for so long, 3 s, takes the other for dead.

Counted in beats of its own: who was stopped himself hears what came meanwhile first.
"""

T = TypeVar("T")


class BadFrame(Exception):
    """What came is no frame of ours, or too long."""


# ── what is said: greetings ───────────────────────────────────────────────────────
# The first fields of `Challenge`, `Introduction` and `TurnedAway` stay as they are in every
# version, so that two versions can tell each other who they are.


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag="challenge"):
    """The owner's first word."""

    version: int
    rules: int
    book: str
    nonce: bytes


class Introduction(msgspec.Struct, frozen=True, array_like=True, tag="introduction"):
    """The front's answer to it; `proof` is empty where the versions differ."""

    version: int
    rules: int
    book: str
    purpose: str
    nonce: bytes
    proof: bytes


class TurnedAway(msgspec.Struct, frozen=True, array_like=True, tag="turned_away"):
    """The owner will not talk with this front; the connection ends."""

    why: str


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag="welcome"):
    """The front is who it says, and here is the owner's own proof. Assets and status follow."""

    proof: bytes
    incarnation: str
    epoch: int


# ── what is said: everyday ────────────────────────────────────────────────────────


class Ask(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A command on its way to the owner. `id` is the front's, and used once."""

    id: int
    name: str
    command: Any
    key: str
    not_after: int | None


class Asked(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An `Ask` as it arrives: the command is not yet read."""

    id: int
    name: str
    command: msgspec.Raw
    key: str
    not_after: int | None


class Asks(msgspec.Struct, frozen=True, array_like=True, tag="asks", gc=False):
    """Commands, in order."""

    asks: Sequence[Ask]


class AsksRead(msgspec.Struct, frozen=True, array_like=True, tag="asks", gc=False):
    """`Asks` as they arrive."""

    asks: list[Asked]


class Done(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A receipt."""

    id: int
    sequence: int
    answer: Any
    is_replayed: bool


class DoneRead(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """`Done` as it arrives: the answer is not yet read."""

    id: int
    sequence: int
    answer: msgspec.Raw
    is_replayed: bool


class Declined(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A refusal; `reason` is its code."""

    id: int
    reason: str
    message: str
    figures: dict[str, Any]


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """A failure, as text."""

    id: int
    text: str


class Undecided(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Not taken, or not known; `code` as in `Unknown`."""

    id: int
    message: str
    code: str


Answer = Done | Declined | Failed | Undecided


class Answers(msgspec.Struct, frozen=True, array_like=True, tag="answers", gc=False):
    """Outcomes, in the order in which they were decided."""

    answers: Sequence[Answer]


class AnswersRead(msgspec.Struct, frozen=True, array_like=True, tag="answers", gc=False):
    """`Answers` as they arrive."""

    answers: list[DoneRead | Declined | Failed | Undecided]


class Assets(msgspec.Struct, frozen=True, array_like=True, tag="assets"):
    """Assets that are registered: all of them at first, then each new one before its receipt."""

    assets: list[Asset]


class Status(msgspec.Struct, frozen=True, array_like=True, tag="status"):
    """How far the book is, and what its cache does; also the owner's sign of life.

    `boards` are what agents of the owner show, small JSON by name: the latest quotes, say.
    """

    sequence: int
    figures: CacheFigures
    boards: dict[str, msgspec.Raw] = {}


class Ping(msgspec.Struct, frozen=True, array_like=True, tag="ping"):
    """The front's sign of life."""


class Farewell(msgspec.Struct, frozen=True, array_like=True, tag="farewell"):
    """The owner owns no longer, or never did: look for the next one."""


FROM_OWNER = (
    Challenge
    | TurnedAway
    | Welcome
    | Assets
    | AnswersRead
    | Status
    | Farewell  # what a front reads
)
FROM_FRONT = Introduction | AsksRead | Ping


# ── the registry of commands ──────────────────────────────────────────────────────


def by_name(kinds: Iterable[type[Command]]) -> dict[str, type[Command]]:
    """Return commands under the names that they have on the wire. Raises ValueError for two alike."""
    found: dict[str, type[Command]] = {}
    for kind in kinds:
        name = f"{kind.product}.{kind.name}"
        if found.setdefault(name, kind) is not kind:
            raise ValueError(f"{kind} and {found[name]} are both called {name}")
    return found


# ── the proof ─────────────────────────────────────────────────────────────────────


def proof_of(secret: bytes, side: str, book: str, purpose: str, *nonces: bytes) -> bytes:
    """Prove to know the secret, for one connection: `side` and both nonces go into it."""
    what = [side, VERSION, RULES, book, purpose, *nonces]
    return hmac.digest(secret, msgspec.json.encode(what), "sha256")


def is_proof(told: bytes, expected: bytes) -> bool:
    """Whether a proof is the expected one."""
    return hmac.compare_digest(told, expected)


def difference(version: int, rules: int) -> str:
    """Say in which way the other side is not of our version; "" if it is."""
    if (version, rules) == (VERSION, RULES):
        return ""
    return (
        f"it has version {version} of the wire and {rules} of the rules, "
        f"this process has {VERSION} and {RULES}: run the same release everywhere"
    )


# ── frames ────────────────────────────────────────────────────────────────────────

_encoder = msgspec.json.Encoder()


def frame(message: msgspec.Struct) -> bytearray:
    """Return a message as a frame. Raises BadFrame if it is too long, and what encoding raises."""
    buffer = bytearray(4)
    _encoder.encode_into(message, buffer, 4)
    size = len(buffer) - 4
    if size > FRAME_BYTES_MAX:
        raise BadFrame(f"{size} bytes are too long for a frame")
    buffer[:4] = size.to_bytes(4)
    return buffer


def frames(
    kind: Callable[[list[T]], msgspec.Struct],
    items: list[T],
    unfit: Callable[[T, Exception], T | None],
) -> list[bytearray]:
    """Return frames of this kind that carry the items, in order.

    `unfit` gets each item that cannot be written, alone, and may return another for it,
    which must be fit.
    """
    try:
        return [frame(kind(items))]
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one item, the others go
        if len(items) > 1:
            half = len(items) // 2
            return frames(kind, items[:half], unfit) + frames(kind, items[half:], unfit)
        instead = unfit(items[0], error)
        return [] if instead is None else [frame(kind([instead]))]


class Splitter:
    """Cuts a stream into the bodies of its frames. `bytes_max` bounds a body."""

    __slots__ = ("_rest", "bytes_max")

    def __init__(self, bytes_max: int) -> None:
        """At the beginning of a stream."""
        self.bytes_max = bytes_max
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came and return the bodies that are whole. Raises BadFrame."""
        rest = self._rest
        rest += data
        bodies = []
        position, size = 0, len(rest)
        while size - position >= 4:
            start = position + 4
            length = int.from_bytes(rest[position:start])
            if length > self.bytes_max:
                raise BadFrame(f"a frame of {length} bytes, at most {self.bytes_max} are allowed")
            if size < start + length:
                break
            position = start + length
            bodies.append(bytes(rest[start:position]))
        del rest[:position]
        return bodies


class Decoder(Protocol):
    """Reads the body of a frame."""

    def decode(self, body: bytes, /) -> Any:
        """Return the message. Raises msgspec.DecodeError."""


class Channel(asyncio.Protocol):
    """One end of a connection: whole messages in, frames out, and an end when nothing is heard."""

    def __init__(self, decoder: Decoder) -> None:
        """`decoder` reads what the other side says."""
        self.transport: asyncio.Transport | None = None
        self.is_over = False
        self.is_paused = False
        """Whether the other side is behind with reading."""
        self.why = "the other side went away"
        """Why it is over, once it is."""
        self.is_proven = False
        """Whether the other side has proven who it is."""
        self.splitter = Splitter(GREETING_BYTES_MAX)
        self._decoder = decoder
        self._silent_beats = 0
        self._beats = 0

    # ── for those who are this end ────────────────────────────────────────────────

    def heard(self, message: Any) -> None:
        """Act on a message."""
        raise NotImplementedError

    def ended(self) -> None:
        """Act on the end of the connection; `why` says why. Called once."""

    def proven(self) -> None:
        """Trust the other side from now on: its frames may be long."""
        self.is_proven = True
        self.splitter.bytes_max = FRAME_BYTES_MAX

    def say(self, message: msgspec.Struct) -> None:
        """Send one message."""
        self.send([frame(message)])

    def send(self, ready: list[bytearray]) -> None:
        """Send frames."""
        if self.transport is not None and not self.is_over:
            for one in ready:
                self.transport.write(one)

    def beat(self) -> bool:
        """Note that a beat passed; True when it is time to say something."""
        self._beats += 1
        self._silent_beats += 1
        if self._silent_beats > SILENT_BEATS_MAX:
            self.end(f"nothing was heard for {SILENT_BEATS_MAX * BEAT_SECONDS:g} seconds")
        elif not self.is_proven and self._beats > SILENT_BEATS_MAX:
            self.end("the greeting took too long")
        return self.is_proven and not self.is_over and self._beats % TALK_BEATS == 0

    def end(self, why: str, *, is_polite: bool = False) -> None:
        """End the connection; politely, what was said before is still sent, for a moment."""
        if self.is_over:
            return
        self.is_over = True
        self.why = why
        if self.transport is not None:
            if is_polite:
                self.transport.close()
                loop = asyncio.get_running_loop()
                loop.call_later(BEAT_SECONDS * TALK_BEATS, self.transport.abort)
            else:
                self.transport.abort()
        self.ended()

    # ── for the loop ──────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._silent_beats = 0
        try:
            for body in self.splitter.feed(data):
                if self.is_over:
                    return
                self.heard(self._decoder.decode(body))
        except (BadFrame, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            self.end(f"what came is not ours: {error}")

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.is_paused = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.is_paused = False

    def connection_lost(self, error: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if not self.is_over:
            self.is_over = True
            if error is not None:
                self.why = f"the connection broke: {error}"
            self.ended()


# ── addresses ─────────────────────────────────────────────────────────────────────


def split_address(address: str) -> str | tuple[str, int]:
    """Return the path of "unix:PATH", or host and port of "HOST:PORT". Raises ValueError."""
    if address.startswith("unix:"):
        return address.removeprefix("unix:")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError(f"{address!r} is neither HOST:PORT nor unix:PATH")
    return host.removeprefix("[").removesuffix("]"), int(port)

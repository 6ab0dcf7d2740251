"""PostgreSQL's wire (protocol 3), as far as a proxy needs it: messages, statements, errors."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

SSL_REQUEST = 80_877_103
GSS_REQUEST = 80_877_104
CANCEL_REQUEST = 80_877_102
"""What may come in place of the version at a connection's start."""

_LENGTH = struct.Struct("!I")

MESSAGES = {
    "40001": "could not serialize access due to concurrent update",
    "40P01": "deadlock detected",
    "53100": "could not extend file: No space left on device",
    "53300": "sorry, too many clients already",
    "25006": "cannot execute INSERT in a read-only transaction",
    "57014": "canceling statement due to statement timeout",
    "57P01": "terminating connection due to administrator command",
    "57P02": "terminating connection because of crash of another server process",
    "57P03": "the database system is starting up",
    "01000": "canceling wait for synchronous replication due to user request",
}
"""The server's own words for what a proxy says in its place."""

FATAL = frozenset({"57P01", "57P02", "57P03"})
"""Errors after which the server hangs up."""


class Message(NamedTuple):
    """One message: its letter, and all of its bytes with letter and length."""

    kind: str
    data: bytes

    @property
    def body(self) -> bytes:
        """What comes after letter and length."""
        return self.data[5:]


class Framing:
    """Cuts one direction of a connection, after its first packet, into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[Message]:
        """Give the messages that are complete now; an unfinished one waits for more."""
        data = self._rest + data if self._rest else data
        start = 0
        while len(data) - start >= 5:
            end = start + 1 + _LENGTH.unpack_from(data, start + 1)[0]
            if end > len(data):
                break
            yield Message(chr(data[start]), data[start:end])
            start = end
        self._rest = data[start:]


class Statements:
    """Knows for the messages of one client which statement each is about."""

    def __init__(self) -> None:
        self._prepared: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}
        self._last = ""

    def text(self, message: Message) -> str:
        """Return the text of the statement; empty for what is about none."""
        names = message.body.split(b"\0", 2)
        match message.kind:
            case "Q":
                self._last = names[0].decode(errors="replace")
            case "P":
                self._last = self._prepared[names[0]] = names[1].decode(errors="replace")
            case "B":
                self._last = self._portals[names[0]] = self._prepared.get(names[1], "")
            case "E":
                self._last = self._portals.get(names[0], "")
            case "D" | "C":
                named = self._prepared if names[0][:1] == b"S" else self._portals
                text = named.get(names[0][1:], "")
                if message.kind == "C":
                    named.pop(names[0][1:], None)
                return text
            case "S" | "H":
                pass  # of what was asked for before
            case _:
                return ""
        return self._last


def message(kind: str, body: bytes) -> bytes:
    """Return a message's bytes."""
    return kind.encode() + _LENGTH.pack(len(body) + 4) + body


def report(sqlstate: str, severity: str = "ERROR") -> bytes:
    """Return an ErrorResponse, or with the severity of one (WARNING) a NoticeResponse."""
    fields = {"S": severity, "V": severity, "C": sqlstate, "M": MESSAGES.get(sqlstate, sqlstate)}
    body = b"".join(f"{field}{value}\0".encode() for field, value in fields.items()) + b"\0"
    return message("N" if severity == "WARNING" else "E", body)


FLUSH = message("H", b"")
POISONED_EXECUTE = message("E", b"no portal of this name\0\0\0\0\0")
POISONED_QUERY = message("Q", b"no statement at all\0")
ROLLBACK = message("Q", b"ROLLBACK\0")
"""What goes to the server where it is to fail: the transaction is then in the state it should be."""

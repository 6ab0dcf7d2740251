"""Entries: what one command committed, and the bytes that are hashed and stored.

A body is a format byte and JSON. Amounts in it are JSON integers of smallest units, up to
38 digits: read them with a decoder that keeps big integers exact. Everything else that the
book knows can be rebuilt from these bytes.
"""

from typing import Any, TypeVar

import msgspec

from pennyweight.ledger.holds import HoldChange
from pennyweight.ledger.lines import Line
from pennyweight.ledger.records import Record

T = TypeVar("T")

FORMAT = b"\x01"
"""First byte of every body: format 1, JSON."""


class Opening(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An account that this entry opened. `floor` as in `Account`."""

    number: int
    id: str
    holder: str
    asset: str
    floor: int | None


class Transfer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One amount (smallest units, positive) from the debit account to the credit account."""

    debit_account: str
    credit_account: str
    amount: int


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something the outside may hear of; its id is incarnation.sequence.position."""

    name: str
    body: Any


class CursorMove(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a reader of an outside stream got: compare `before`, set `after`."""

    name: str
    before: int
    after: int


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """All that one command committed: atomic, sequenced, sealed.

    `command` and `product` name the command and its owner; `key` is its idempotency key
    within the product's scope, `version` and `fields` its fingerprint (defaults left out).
    `effective_at` is the caller's date in microseconds, where it differs from the commit.
    `answer` is what the caller was told, as JSON.
    """

    sequence: int
    command: str
    product: str
    key: str = ""
    version: int = 1
    fields: msgspec.Raw = msgspec.Raw(b"{}")
    effective_at: int | None = None
    openings: list[Opening] = []
    closings: list[str] = []
    transfers: list[Transfer] = []
    holds: list[HoldChange] = []
    lines: list[Line] = []
    records: list[Record] = []
    events: list[Event] = []
    cursors: list[CursorMove] = []
    counters: dict[str, int] = {}
    answer: msgspec.Raw = msgspec.Raw(b"null")


class Sealed(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An entry as it is written: the same fields as `Entry`, in one pass from the command and answer."""

    sequence: int
    command: str
    product: str
    fields: Any
    answer: Any
    transfers: list[Transfer]
    lines: list[Line]
    key: str = ""
    version: int = 1
    effective_at: int | None = None
    openings: list[Opening] = []
    closings: list[str] = []
    holds: list[HoldChange] = []
    records: list[Record] = []
    events: list[Event] = []
    cursors: list[CursorMove] = []
    counters: dict[str, int] = {}


class Told(msgspec.Struct, frozen=True, gc=False):
    """What was asked and answered, of an entry whose other parts are passed over."""

    command: str
    answer: msgspec.Raw


class Emitted(msgspec.Struct, frozen=True, gc=False):
    """The events of an entry whose other parts are passed over."""

    sequence: int
    events: list[Event] = []


class CorruptEntry(Exception):
    """A stored body is not what this version can have written."""


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Entry)
_told_decoder = msgspec.json.Decoder(Told)
_emitted_decoder = msgspec.json.Decoder(Emitted)


def encode_entry(entry: Sealed) -> bytes:
    """Return the bytes of an entry that are hashed, stored and exported."""
    return FORMAT + _encoder.encode(entry)


def decode_entry(body: bytes) -> Entry:
    """Read an entry's bytes. Raises CorruptEntry."""
    return _decode(_decoder, body)


def decode_told(body: bytes) -> Told:
    """Read command and answer alone, in a third of the time. Raises CorruptEntry."""
    return _decode(_told_decoder, body)


def decode_events(body: bytes) -> Emitted:
    """Read the events alone. Raises CorruptEntry."""
    return _decode(_emitted_decoder, body)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    if body[:1] != FORMAT:
        raise CorruptEntry(f"unknown format byte {body[:1]!r}")
    try:
        return decoder.decode(memoryview(body)[1:])
    except msgspec.DecodeError as error:
        raise CorruptEntry(str(error)) from error

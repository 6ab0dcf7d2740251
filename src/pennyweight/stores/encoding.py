"""What the stores keep as bytes, alike: records, batch headers, counters; and where records are listed."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec

from pennyweight.engine.port import BatchHeader, Head, RecordRow, StoreError
from pennyweight.ledger.records import Record

Row = tuple[Any, ...]
Listings = tuple[set[Row], set[Row], set[Row]]
"""Rows of `labels`, `names` and `marks`."""

T = TypeVar("T")

_encode = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_header = msgspec.json.Decoder(BatchHeader).decode
_decode_counters = msgspec.json.Decoder(dict[str, int]).decode
UNREADABLE = (msgspec.DecodeError, TypeError, UnicodeDecodeError)


def read(what: str, decode: Callable[[Any], T], value: Any) -> T:
    """Decode a column. Raises StoreError where somebody else has written it."""
    try:
        return decode(value)
    except UNREADABLE as error:
        raise StoreError(f"{what} cannot be read: {error}") from None


def listings_of(record: Record | None) -> Listings:
    """Return the rows of `labels`, `names` and `marks` that list a record."""
    if record is None:
        return set(), set(), set()
    kind, key = record.kind, record.id
    return (
        {(kind, label, key) for label in record.labels},
        {(kind, name, key) for name in record.names},
        {(mark.index, mark.rank, key, kind) for mark in record.marks},
    )


def relisted(rows: Iterable[RecordRow]) -> tuple[Listings, Listings]:
    """Return the listings that go and those that come with changed records, each by table."""
    gone: Listings = (set(), set(), set())
    come: Listings = (set(), set(), set())
    for row in rows:
        before, after = row.before, row.record
        if before is not None and (
            before.labels == after.labels
            and before.names == after.names
            and before.marks == after.marks
        ):
            continue  # most changes are not of these
        listed = zip(listings_of(before), listings_of(after), strict=True)
        for position, (old, now) in enumerate(listed):
            gone[position].update(old - now)
            come[position].update(now - old)
    return gone, come


def record_to_blob(record: Record) -> bytes:
    """Return a record as JSON."""
    return _encode(record)


def blob_to_record(blob: bytes) -> Record:
    """Return the record that `record_to_blob` wrote."""
    return read("a record", _decode_record, blob)


def header_to_blob(header: BatchHeader) -> bytes:
    """Return a batch header as the JSON array that the chain covers."""
    return _encode(header)


def blob_to_header(blob: bytes) -> BatchHeader:
    """Return the header that `header_to_blob` wrote."""
    return read("the header of a batch", _decode_header, blob)


def counters_to_blob(counters: dict[str, int]) -> bytes:
    """Return counters as JSON."""
    return _encode(counters)


def head_of(row: Row) -> Head:
    """Return the head of a row of the heads' columns, from `book` to `counters`."""
    book, incarnation, epoch, sequence, chain, committed_at, counters = row
    return Head(
        book=book,
        incarnation=incarnation,
        epoch=epoch,
        sequence=sequence,
        chain=chain,
        committed_at=committed_at,
        counters=read("the head of the book", _decode_counters, counters),
    )

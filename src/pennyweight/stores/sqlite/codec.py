"""Rows and facts: how accounts, holds and records stand in tables.

Amounts do not fit SQLite's 63 bits. They are 16 bytes, big endian, offset by 2**127, so that
comparing bytes compares numbers and the table's constraints can be exact. What does not fit
raises OverflowError.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from pennyweight.engine.port import BatchHeader, Head, StoreError
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.ledger.lines import Roots
from pennyweight.ledger.records import Record

OFFSET = 1 << 127
ZERO = OFFSET.to_bytes(16, "big")

Row = tuple[Any, ...]
T = TypeVar("T")

_encode_roots = msgspec.msgpack.Encoder().encode
_decode_roots = msgspec.msgpack.Decoder(Roots).decode
_encode_json = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_header = msgspec.json.Decoder(BatchHeader).decode
_decode_counters = msgspec.json.Decoder(dict[str, int]).decode
_UNREADABLE = (msgspec.DecodeError, TypeError, UnicodeDecodeError)
_STATES = {state.value: state for state in HoldState}


def _read(what: str, decode: Callable[[Any], T], value: Any) -> T:
    """Decode a column. Raises StoreError where somebody else has written it."""
    try:
        return decode(value)
    except _UNREADABLE as error:
        raise StoreError(f"{what} cannot be read: {error}") from None


def amount_to_blob(units: int) -> bytes:
    """Return an amount's 16 bytes. Raises OverflowError outside of 127 bits."""
    return (units + OFFSET).to_bytes(16, "big")


def blob_to_amount(blob: bytes) -> int:
    """Return the amount that `amount_to_blob` wrote."""
    return int.from_bytes(blob, "big") - OFFSET


def _least(account: Account) -> bytes | None:
    """Return floor + held where the floor is neither absent nor zero (see the schema)."""
    return amount_to_blob(account.floor + account.held) if account.floor else None


def new_account_row(account: Account) -> Row:
    """Return all columns of `accounts`, in their order."""
    return (
        account.number,
        account.id,
        account.holder,
        account.asset,
        None if account.floor is None else amount_to_blob(account.floor),
        _least(account),
        (account.posted + OFFSET).to_bytes(16, "big"),
        amount_to_blob(account.held),
        amount_to_blob(account.owed),
        account.open_holds,
        account.version,
        account.lines,
        _encode_roots(account.roots),
        account.is_closed,
    )


def changed_account_row(account: Account, version_before: int) -> Row:
    """Return the columns of `accounts` that change, then number and the version found."""
    held, owed = account.held, account.owed
    return (
        (account.posted + OFFSET).to_bytes(16, "big"),
        amount_to_blob(held) if held else ZERO,
        amount_to_blob(owed) if owed else ZERO,
        _least(account) if account.floor else None,
        account.open_holds,
        account.version,
        account.lines,
        _encode_roots(account.roots),
        account.is_closed,
        account.number,
        version_before,
    )


def account_of(row: Row) -> Account:
    """Return the account of a row of `ACCOUNT_COLUMNS`."""
    (number, account_id, holder, asset, floor, posted, held, owed, *rest) = row
    open_holds, version, lines, roots, is_closed = rest
    try:
        trees = _decode_roots(roots)
    except _UNREADABLE as error:
        raise StoreError(f"an account cannot be read: {error}") from None
    return Account(
        number,
        account_id,
        holder,
        asset,
        floor if floor is None else 0 if floor == ZERO else blob_to_amount(floor),
        blob_to_amount(posted),
        0 if held == ZERO else blob_to_amount(held),
        0 if owed == ZERO else blob_to_amount(owed),
        open_holds,
        version,
        lines,
        trees,
        bool(is_closed),
    )


def new_hold_row(hold: Hold) -> Row:
    """Return all columns of `holds`, in their order."""
    return (
        hold.id,
        hold.account,
        hold.asset,
        amount_to_blob(hold.amount),
        amount_to_blob(hold.remaining),
        hold.owner,
        hold.state.value,
        hold.expires_at,
        hold.reference,
        hold.placed_at,
        hold.changed_by,
    )


def changed_hold_row(hold: Hold, before: Hold) -> Row:
    """Return the columns of `holds` that change, then what the row must be now."""
    return (
        amount_to_blob(hold.remaining),
        hold.state.value,
        hold.expires_at,
        hold.changed_by,
        hold.id,
        before.state.value,
        amount_to_blob(before.remaining),
    )


def hold_of(row: Row) -> Hold:
    """Return the hold of a row of all columns of `holds`."""
    hold_id, account, asset, amount, remaining, owner, state, expires_at, *rest = row
    reference, placed_at, changed_by = rest
    return Hold(
        hold_id,
        account,
        asset,
        blob_to_amount(amount),
        blob_to_amount(remaining),
        owner,
        _STATES[state],
        expires_at,
        reference,
        placed_at,
        changed_by,
    )


def listings_of(record: Record | None) -> tuple[set[Row], set[Row], set[Row]]:
    """Return the rows of `labels`, `names` and `marks` that list a record."""
    if record is None:
        return set(), set(), set()
    kind, key = record.kind, record.id
    return (
        {(kind, label, key) for label in record.labels},
        {(kind, name, key) for name in record.names},
        {(mark.index, mark.rank, key, kind) for mark in record.marks},
    )


def record_to_blob(record: Record) -> bytes:
    """Return a record as JSON."""
    return _encode_json(record)


def blob_to_record(blob: bytes) -> Record:
    """Return the record that `record_to_blob` wrote."""
    return _read("a record", _decode_record, blob)


def header_to_blob(header: BatchHeader) -> bytes:
    """Return a batch header as the JSON array that the chain covers."""
    return _encode_json(header)


def blob_to_header(blob: bytes) -> BatchHeader:
    """Return the header that `header_to_blob` wrote."""
    return _read("the header of a batch", _decode_header, blob)


def head_of(row: Row) -> Head:
    """Return the head of a row of `head`, from `book` on."""
    book, incarnation, epoch, sequence, chain, committed_at, counters = row
    return Head(
        book=book,
        incarnation=incarnation,
        epoch=epoch,
        sequence=sequence,
        chain=chain,
        committed_at=committed_at,
        counters=_read("the head of the book", _decode_counters, counters),
    )


def counters_to_text(counters: dict[str, int]) -> str:
    """Return counters as JSON."""
    return _encode_json(counters).decode()

"""Rows and facts: how accounts, holds and records stand in tables.

Amounts do not fit SQLite's 63 bits. They are 16 bytes, big endian, offset by 2**127, so that
comparing bytes compares numbers and the table's constraints can be exact. What does not fit
raises OverflowError.
"""

import msgspec

from pennyweight.engine.port import StoreError
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.ledger.lines import Roots
from pennyweight.stores.encoding import UNREADABLE, Row

OFFSET = 1 << 127
ZERO = OFFSET.to_bytes(16, "big")


_encode_roots = msgspec.msgpack.Encoder().encode
_decode_roots = msgspec.msgpack.Decoder(Roots).decode
_encode_json = msgspec.json.Encoder().encode
_STATES = {state.value: state for state in HoldState}


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
    except UNREADABLE as error:
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

"""Rows and facts: how accounts, holds and records stand in tables, and how values travel.

The server holds no NUL in text. So that texts are free here as everywhere, U+0000 is kept
as U+0001 U+0001 and U+0001 as U+0001 U+0002, which keeps their order too.

Parameters are made by hand, because the engine's thread makes thousands in a batch: numbers
and texts as the text of an array, bytes as a binary array. Where the lines of an account are
is kept as a list with commas.
"""

from collections.abc import Sequence
from struct import Struct
from typing import Any

import msgspec

from pennyweight.ledger.accounts import Account
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.ledger.lines import Roots
from pennyweight.stores.encoding import Row, read

_BIGINT_MAX = 2**63 - 1
_BIGINT_MIN = -(2**63)
_BYTEA = 17
_HEADER = Struct(">iiIii").pack
_EMPTY = Struct(">iiI").pack(0, 0, _BYTEA)
_size = Struct(">i").pack

_encode_json = msgspec.json.Encoder().encode
_decode_roots = msgspec.json.Decoder(Roots).decode
_decode_texts = msgspec.json.Decoder(list[str]).decode
_STATES = {state.value: state for state in HoldState}

ACCOUNT = (
    "number, id, holder, asset, floor, posted, held, owed, open_holds, version, lines, roots,"
    " is_closed"
)
"""Columns of `accounts` as `account_of` takes them."""

HOLD = (
    "id, account, asset, amount, remaining, owner, state, expires_at, reference, placed_at,"
    " changed_by"
)
"""Columns of `holds` as `hold_of` takes them."""

_AccountRow = tuple[int, str, str, str, int | None, int, int, int, int, int, int, Roots, bool]
_HoldRow = tuple[int, str, str, int, int, str, HoldState, int | None, str, int, int]
_decode_account = msgspec.json.Decoder(_AccountRow).decode
_decode_hold = msgspec.json.Decoder(_HoldRow).decode


# ── text ──────────────────────────────────────────────────────────────────────────


def to_text(text: str) -> str:
    """Return a text as a column has it."""
    if "\0" in text or "\1" in text:
        return text.replace("\1", "\1\2").replace("\0", "\1\1")
    return text


def of_text(text: str) -> str:
    """Return the text that `to_text` wrote."""
    if "\1" in text:
        return text.replace("\1\1", "\0").replace("\1\2", "\1")
    return text


def is_text(text: str) -> bool:
    """Whether any store can keep this: not with lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_bigint(number: int) -> bool:
    """Whether this fits the columns of ids and sequences."""
    return _BIGINT_MIN <= number <= _BIGINT_MAX


# ── parameters ────────────────────────────────────────────────────────────────────


def numbers(values: Sequence[int | None]) -> bytes:
    """Return whole numbers, truths, or what is absent, as the text of an array."""
    return b"{%b}" % _encode_json(values)[1:-1]


def texts(values: Sequence[str]) -> bytes:
    """Return texts as the text of an array. Raises UnicodeEncodeError."""
    if not values:
        return b"{}"
    joined = '","'.join(values)
    if (
        "\\" in joined
        or "\0" in joined
        or "\1" in joined
        or joined.count('"') != 2 * len(values) - 2
    ):
        joined = '","'.join(
            [to_text(value).replace("\\", "\\\\").replace('"', '\\"') for value in values]
        )
    return b'{"%b"}' % joined.encode()


def roots(values: Sequence[Roots]) -> bytes:
    """Return where the lines of accounts are as the text of an array, each a list with commas."""
    return b'{"%b"}' % _encode_json(values)[2:-2].replace(b"],[", b'","')


def blobs(values: list[bytes]) -> bytes:
    """Return bytes as a binary array."""
    count = len(values)
    if not count:
        return _EMPTY
    parts = [_HEADER(1, 0, _BYTEA, count, 1)] * (2 * count + 1)
    parts[1::2] = map(_size, map(len, values))
    parts[2::2] = values
    return b"".join(parts)


# ── facts ─────────────────────────────────────────────────────────────────────────


def account_of(row: Row) -> Account:
    """Return the account of a row of `ACCOUNT`."""
    facts: Any = list(row)
    facts[11] = read("where lines are", _decode_roots, f"[{facts[11]}]")
    return Account(*facts)


def account_of_json(blob: bytes) -> Account:
    """Return the account of a row of `ACCOUNT`, as a JSON array."""
    row: Any = read("an account", _decode_account, blob)
    return Account(*row)


def hold_of(row: Row) -> Hold:
    """Return the hold of a row of `HOLD`."""
    hold_id, account, asset, amount, remaining, owner, state, expires_at, reference, *rest = row
    return Hold(
        hold_id,
        account,
        asset,
        amount,
        remaining,
        owner,
        _STATES[state],
        expires_at,
        of_text(reference),
        *rest,
    )


def hold_of_json(blob: bytes) -> Hold:
    """Return the hold of a row of `HOLD`, as a JSON array."""
    row: Any = read("a hold", _decode_hold, blob)
    hold = Hold(*row)
    if "\1" in hold.reference:
        return msgspec.structs.replace(hold, reference=of_text(hold.reference))
    return hold


def json_to_texts(blob: bytes) -> list[str]:
    """Return the texts of a JSON array."""
    return read("a list", _decode_texts, blob)

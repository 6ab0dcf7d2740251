"""The key index: from (product, key) to the entry that bound it.

The entry is the truth; the index can be rebuilt from the journal. It keeps 64-bit hashes
instead of keys: whatever it finds is compared with the entry, so that a collision costs a
look-up and never gives a wrong answer.

Random keys are what makes a B-tree slow: each one dirties a page of its own. So the latest
`RECENT_MAX` hashes stay in memory. When they are that many they are frozen, sorted, and
written behind the following batches, neighbours together, into the current partition of
about `PARTITION_KEYS`; after a crash, the entries after the mark `indexed_to` are read
again. A blocked Bloom filter for each partition (13 bits a key, 4 of them in one 64-bit
word) says for 99 of 100 unknown keys that the partition need not be asked.

A hash is in `_recent`, or in `_older` (frozen), or in the table; a reader in another thread
looks in this order, which is the order they move in.
"""

import sys
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from typing import Any

import apsw
import msgspec

from pennyweight.engine.port import ConstraintFailed, KeyRow, StoreError
from pennyweight.ledger.entries import FORMAT
from pennyweight.stores.room import Room

RECENT_MAX = 20_000
PARTITION_KEYS = 1_000_000
_BITS_PER_KEY = 13
_STRETCH = 128
"""Hashes written behind a batch at the least, so that small batches do not dirty a page each."""

_KEYLESS = 5
"""The mark also moves after so many times `RECENT_MAX` entries, if few of them have keys."""

_FILTER_KEYS = 50_000
"""The filter of a partition with fewer keys is not worth keeping."""

_PAIRS = [1 << (bits & 63) | 1 << (bits >> 6) for bits in range(4096)]
"""Two bits of a filter's word for 12 bits of a hash."""

_STATE = "SELECT indexed_to, partition, keys FROM key_state"
_ENTRY = "SELECT body FROM entries WHERE sequence = ?"
_RECEIPT = (
    "SELECT char(1) || json_remove(CAST(substr(body, 2) AS TEXT), '$.openings', '$.closings',"
    " '$.transfers', '$.holds', '$.lines', '$.records', '$.events', '$.cursors', '$.counters')"
    " FROM entries WHERE sequence = ?"
)
"""An entry without what it did: a list may have moved the money of 128 users."""

_INDEXED = "SELECT sequence FROM key_index WHERE partition = ? AND hash = ?"
_TAIL = "SELECT sequence, body FROM entries WHERE sequence > ? ORDER BY sequence"

Sequences = tuple[int, ...]


class _Bound(msgspec.Struct, gc=False):
    """What an entry says of its key."""

    product: str
    key: str = ""


_decode_bound = msgspec.json.Decoder(_Bound).decode


def bound_of(body: bytes) -> tuple[str, str]:
    """Return the (product, key) of an entry; the key is empty if it binds none.

    Raises StoreError for a body that cannot be read.
    """
    try:
        bound = _decode_bound(memoryview(body)[len(FORMAT) :])
    except msgspec.DecodeError as error:
        raise StoreError(f"an entry cannot be read ({error}); run verify") from None
    return bound.product, bound.key


def _bound_if_readable(body: bytes) -> tuple[str, str]:
    """As `bound_of`, but an unreadable body binds nothing: verification tells of it."""
    try:
        return bound_of(body)
    except StoreError:
        return "", ""


def hash_of(product: str, key: str) -> int:
    """Return a signed 64-bit hash of a key in its scope, the same on every machine."""
    name = f"{product}\0{key}".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big", signed=True)


class KeyIndex:
    """See the module. All methods but `receipt` and `rows` are the writer's."""

    def __init__(
        self,
        *,
        hash_key: Callable[[str, str], int] = hash_of,
        recent_max: int = RECENT_MAX,
        partition_keys: int = PARTITION_KEYS,
    ) -> None:
        """An index that is not loaded yet: it asks the tables for everything."""
        self._hash = hash_key
        self._recent_max = recent_max
        self._partition_keys = partition_keys
        self._words = partition_keys * _BITS_PER_KEY // 64 + 1
        self._is_loaded = False
        self._recent: dict[int, Sequences] = {}
        self._older: dict[int, Sequences] = {}
        self._filters: list[array[int]] = []
        self._is_frozen = False
        self._frozen: list[int] = []
        """The hashes of `_older`, sorted; those before `_written` are in the table."""
        self._written = 0
        self._debt = 0
        """Hashes to be written, two for each one that came since the last stretch."""
        self._frozen_to = 0
        self._indexed_to = 0
        self._keys = 0
        """Hashes in the last partition."""
        self._last_sequence = 0
        self._absent: dict[tuple[str, str], int] = {}
        # What the transaction under way has done, for `committed`:
        self._added: list[tuple[int, int]] = []
        self._stretch = 0
        self._state_after: tuple[int, int, int] | None = None

    # ── finding ───────────────────────────────────────────────────────────────────

    def receipt(self, connection: apsw.Connection, product: str, key: str) -> bytes | None:
        """Return the body of the entry that bound a key, or None. Safe from any thread."""
        if not self._is_loaded:
            return self._find_in_file(connection, product, key)
        return self._find(connection, self._hash(product, key), product, key)

    def begin(self) -> None:
        """Forget what was looked up for an earlier batch."""
        self._absent.clear()

    def read(
        self,
        connection: apsw.Connection,
        names: Iterable[tuple[str, str]],
        room: Room | None = None,
    ) -> dict[tuple[str, str], bytes | None]:
        """Return what is needed of the entries that bound the keys of the batch that is next.

        Whose command, fields and answer they are, not what they did. `add` need not look
        again. With `room`, one is read only where it has room. Raises RoomOver.
        """
        found: dict[tuple[str, str], bytes | None] = {}
        absent, hash_key, pairs, count = self._absent, self._hash, _PAIRS, self._words
        recent, older, filters = self._recent, self._older, self._filters
        for name in names:
            hashed = hash_key(*name)
            is_strange = hashed not in recent and hashed not in older
            if is_strange:  # as in `_find`, without its calls: most keys are new
                word = (hashed >> 24) % count
                mask = pairs[hashed & 4095] | pairs[hashed >> 12 & 4095]
                for words in filters:
                    if words[word] & mask == mask:
                        is_strange = False
                        break
            body = None if is_strange else self._find(connection, hashed, *name, room, sql=_RECEIPT)
            found[name] = body
            if body is None:
                absent[name] = hashed
            elif room is not None:
                room.take_body()
        return found

    def _find(
        self,
        connection: apsw.Connection,
        hashed: int,
        product: str,
        key: str,
        room: Room | None = None,
        *,
        sql: str = _ENTRY,
    ) -> bytes | None:
        for known in (self._recent, self._older):
            if hashed in known:
                body = _first_match(connection, known[hashed], product, key, room, sql=sql)
                if body is not None:
                    return body
        word = (hashed >> 24) % self._words
        mask = _PAIRS[hashed & 4095] | _PAIRS[hashed >> 12 & 4095]
        for partition, words in enumerate(self._filters):
            if words[word] & mask == mask:
                sequences = _indexed(connection, partition, hashed)
                body = _first_match(connection, sequences, product, key, room, sql=sql)
                if body is not None:
                    return body
        return None

    def _find_in_file(self, connection: apsw.Connection, product: str, key: str) -> bytes | None:
        """Find a key by the tables alone, as a process beside the writer must."""
        indexed_to, last_partition, _ = _state(connection)
        hashed = self._hash(product, key)
        for partition in range(last_partition + 1):
            sequences = _indexed(connection, partition, hashed)
            body = _first_match(connection, sequences, product, key)
            if body is not None:
                return body
        for _, body in connection.execute(_TAIL, (indexed_to,)):
            if bound_of(body) == (product, key):
                return bytes(body)
        return None

    def rows(self, connection: apsw.Connection) -> Iterator[KeyRow]:
        """Yield all keys as the tables have them, within the reader's transaction.

        A row that its entry contradicts comes as key "?" of product "?".
        """
        indexed_to, last_partition, _ = _state(connection)
        for partition in range(last_partition + 1):
            for hashed, sequence, body in connection.execute(
                "SELECT hash, sequence, body FROM key_index LEFT JOIN entries USING (sequence)"
                " WHERE partition = ? AND sequence <= ? ORDER BY sequence",
                (partition, indexed_to),
            ):
                product, key = ("", "") if body is None else _bound_if_readable(body)
                is_right = key and self._hash(product, key) == hashed
                yield KeyRow(product, key, sequence) if is_right else KeyRow("?", "?", sequence)
        for sequence, body in connection.execute(_TAIL, (indexed_to,)):
            product, key = _bound_if_readable(body)
            if key:
                yield KeyRow(product, key, sequence)

    # ── adding ────────────────────────────────────────────────────────────────────

    def add(self, connection: apsw.Connection, rows: list[KeyRow], last_sequence: int) -> None:
        """Bind a batch's keys, within its transaction, and write some older ones behind it.

        Raises ConstraintFailed when a key is bound. `last_sequence` is the batch's.
        `committed` or `rolled_back` follows.
        """
        absent = self._absent
        added = self._added = []
        seen: set[tuple[str, str]] = set()
        for row in rows:
            name = (row.product, row.key)
            hashed = absent.pop(name, None)
            if hashed is None:  # nobody has looked for it, or it comes twice
                hashed = self._hash(*name)
                if name in seen or self._find(connection, hashed, *name) is not None:
                    raise ConstraintFailed(f"key {row.key!r} of {row.product} is bound already")
            seen.add(name)
            added.append((hashed, row.sequence))
        self._last_sequence = last_sequence
        self._debt += 2 * len(rows)
        if self._is_frozen and (self._debt >= _STRETCH or not rows):
            self._write_behind(connection)

    def _write_behind(self, connection: apsw.Connection) -> None:
        """Write the next stretch of frozen hashes; with the last one, move the mark."""
        partition, older = len(self._filters) - 1, self._older
        stretch = self._frozen[self._written : self._written + max(self._debt, _STRETCH)]
        connection.executemany(
            "INSERT OR IGNORE INTO key_index VALUES (?, ?, ?)",
            [(partition, hashed, sequence) for hashed in stretch for sequence in older[hashed]],
        )
        fill(self._filters[partition], stretch)
        self._stretch = len(stretch)
        if self._written + self._stretch == len(self._frozen):
            keys = self._keys + len(self._frozen)
            if keys >= self._partition_keys:
                _save_filter(connection, partition, self._frozen_to, self._filters[partition])
                partition, keys = partition + 1, 0
            self._state_after = (self._frozen_to, partition, keys)
            connection.execute(
                "UPDATE key_state SET indexed_to = ?, partition = ?, keys = ?", self._state_after
            )

    def committed(self) -> None:
        """The transaction of the last `add` is durable."""
        recent = self._recent
        for hashed, sequence in self._added:
            recent[hashed] = (*recent[hashed], sequence) if hashed in recent else (sequence,)
        if self._stretch:
            self._written += self._stretch
            self._debt = 0
        if self._state_after is not None:
            self._indexed_to, partition, self._keys = self._state_after
            if partition == len(self._filters):
                self._filters.append(_new_filter(self._words))
            self._older, self._frozen, self._is_frozen = {}, [], False
        self._reset()
        if not self._is_frozen and (
            len(recent) >= self._recent_max
            or self._last_sequence - self._indexed_to >= _KEYLESS * self._recent_max
        ):
            self._freeze()

    def rolled_back(self) -> None:
        """The transaction of the last `add` did not happen."""
        self._reset()

    def _reset(self) -> None:
        self._added = []
        self._stretch = 0
        self._state_after = None

    def _freeze(self) -> None:
        """Sort the recent hashes; they are written behind the batches to come."""
        self._older = self._recent  # before `_recent` is emptied: readers look there first
        self._recent = {}
        self._frozen = sorted(self._older)
        self._frozen_to = self._last_sequence
        self._written = 0
        self._is_frozen = True

    # ── opening and closing ───────────────────────────────────────────────────────

    def load(self, connection: apsw.Connection) -> None:
        """Load filters, and the entries after the mark; within a transaction."""
        self._indexed_to, last_partition, self._keys = _state(connection)
        for partition in range(last_partition + 1):
            is_last = partition == last_partition
            words = self._saved_filter(connection, partition, self._indexed_to if is_last else None)
            if words is None:
                words = _new_filter(self._words)
                sql = "SELECT hash FROM key_index WHERE partition = ?"
                fill(words, (row[0] for row in connection.execute(sql, (partition,))))
            self._filters.append(words)
        self._last_sequence = self._indexed_to
        for sequence, body in connection.execute(_TAIL, (self._indexed_to,)):
            product, key = bound_of(body)
            if key:
                hashed = self._hash(product, key)
                self._recent[hashed] = (*self._recent.get(hashed, ()), sequence)
            self._last_sequence = sequence
        self._is_loaded = True

    def save(self, connection: apsw.Connection) -> None:
        """Keep the filter of the last partition for the next `load`; within a transaction."""
        if self._keys < _FILTER_KEYS:
            return
        partition = len(self._filters) - 1
        _save_filter(connection, partition, self._indexed_to, self._filters[partition])

    def _saved_filter(
        self, connection: apsw.Connection, partition: int, indexed_to: int | None
    ) -> "array[int] | None":
        """Return the filter saved for a partition, if it is whole and as of this mark."""
        rows: list[Any] = connection.execute(
            "SELECT words, checksum FROM key_filters"
            " WHERE partition = ? AND indexed_to = ifnull(?, indexed_to)",
            (partition, indexed_to),
        ).fetchall()
        for blob, checksum in rows:
            if len(blob) == 8 * self._words and zlib.crc32(blob) == checksum:
                words = array("Q", blob)
                if sys.byteorder == "big":
                    words.byteswap()
                return words
        return None


def fill(words: "array[int]", hashes: Iterable[int]) -> None:
    """Add hashes to a filter."""
    count, pairs = len(words), _PAIRS
    for hashed in hashes:
        words[(hashed >> 24) % count] |= pairs[hashed & 4095] | pairs[hashed >> 12 & 4095]


def _new_filter(words: int) -> "array[int]":
    return array("Q", bytes(8 * words))


def _save_filter(
    connection: apsw.Connection, partition: int, indexed_to: int, words: "array[int]"
) -> None:
    if sys.byteorder == "big":
        words = words[:]
        words.byteswap()
    blob = words.tobytes()
    connection.execute(
        "INSERT OR REPLACE INTO key_filters VALUES (?, ?, ?, ?)",
        (partition, indexed_to, zlib.crc32(blob), blob),
    )


def _state(connection: apsw.Connection) -> tuple[int, int, int]:
    """Return the mark, the last partition, and how many hashes that has."""
    states: list[Any] = connection.execute(_STATE).fetchall()
    indexed_to, partition, keys = states[0]
    return indexed_to, partition, keys


def _indexed(connection: apsw.Connection, partition: int, hashed: int) -> list[int]:
    """Return the entries that a partition has for a hash."""
    rows: list[Any] = connection.execute(_INDEXED, (partition, hashed)).fetchall()
    return [sequence for (sequence,) in rows]


def _first_match(
    connection: apsw.Connection,
    sequences: Iterable[int],
    product: str,
    key: str,
    room: Room | None = None,
    *,
    sql: str = _ENTRY,
) -> bytes | None:
    """Return the body of the entry among these that binds this very key, as `sql` reads it.

    The hash says that it does, so that one with no room is not read to make sure.
    """
    for sequence in sequences:
        if room is not None:
            room.check()
        for (found,) in connection.execute(sql, (sequence,)):
            body = found.encode() if isinstance(found, str) else bytes(found)
            if bound_of(body) == (product, key):
                return body
    return None

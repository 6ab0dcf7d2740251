"""What a batch reads before it is decided: all in one round trip, most often.

A second one follows where facts lead to facts that nobody named: an entry to the holders it
touched, a hold to its holder. It also fetches what there might have been no room for: the
first trip brings no more users' data than there is room for.
"""

# ruff: noqa: S608 - statements are put together from constants; values are parameters

from collections.abc import Callable, Container, Iterable, Iterator
from typing import TypeVar

from psycopg.pq.abc import PGresult

from pennyweight.engine.port import Found, Reads
from pennyweight.ledger.accounts import holder_of
from pennyweight.ledger.entries import FORMAT
from pennyweight.stores import encoding
from pennyweight.stores.postgres import codec
from pennyweight.stores.postgres.channel import Channel, Statement, Values, statement
from pennyweight.stores.postgres.keys import KeyFilter
from pennyweight.stores.room import Room, RoomOver

T = TypeVar("T")

_ROOM_MAX = 2**31

_TEXT = "convert_from(substr(body, 2), 'UTF8')"
_HAS_NUL = r"position('\x5c7530303030'::bytea IN body) > 0"
"""Whether an entry may have U+0000 in a text, at which the server's JSON functions stop."""

_RECEIPT = f"""
    CASE WHEN {_HAS_NUL} THEN substr(body, 2) ELSE (
        SELECT convert_to(
            '{{' || string_agg(to_json(part.key)::text || ':' || part.value::text, ',') || '}}',
            'UTF8'
        )
        FROM json_each({_TEXT}::json) AS part
        WHERE part.key IN ('sequence', 'command', 'product', 'key', 'version', 'fields',
                           'effective_at', 'answer')
    ) END
"""
"""An entry without what it did, most often: a list may have moved the money of 128 users."""

_TOUCHED = rf"""
    (SELECT json_agg(DISTINCT line.value ->> 0)::text
     FROM json_array_elements(
        (CASE WHEN {_HAS_NUL}
            THEN regexp_replace({_TEXT}, '((?<!\\)(?:\\\\)*)\\u0000', '\1-', 'g') ELSE {_TEXT}
        END)::json -> 'lines'
     ) AS line)
"""
"""The accounts that an entry touched, as a JSON array; their ids have no such characters."""


def _wanted(first: str, second: str) -> str:
    """Return the pairs that a statement is to find, by place, which the server has to begin with."""
    return f"""(
        SELECT $1::text AS book, pair.*
        FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS pair ({first}, {second}, place)
        OFFSET 0
    ) AS wanted"""


_KEYS = statement(
    f"""
    SELECT wanted.place, CASE WHEN row_number() OVER () <= $4::bigint THEN ({_RECEIPT}) END
    FROM {_wanted("product", "key")}
    JOIN pennyweight.keys AS bound
        ON bound.book = wanted.book AND bound.product = wanted.product AND bound.key = wanted.key
    JOIN pennyweight.entries AS entry ON entry.book = bound.book AND entry.sequence = bound.sequence
    LIMIT $4::bigint + 1
    """,
    *(1, 0, 0, 0),
)
_KEY_ENTRIES = statement(
    f"""
    SELECT wanted.place, entry.sequence, {_TOUCHED}
    FROM {_wanted("product", "key")}
    JOIN pennyweight.keys AS bound
        ON bound.book = wanted.book AND bound.product = wanted.product AND bound.key = wanted.key
    JOIN pennyweight.entries AS entry ON entry.book = bound.book AND entry.sequence = bound.sequence
    """,
    *(1, 0, 0),
)
_ENTRIES = statement(
    f"""
    SELECT 0::bigint, sequence, {_TOUCHED}
    FROM pennyweight.entries WHERE book = $1 AND sequence = ANY ($2::bigint[])
    """,
    *(1, 0),
)
_BODIES = statement(
    "SELECT sequence, body FROM pennyweight.entries"
    " WHERE book = $1 AND sequence = ANY ($2::bigint[])",
    *(1, 0),
)
_HOLD = f"json_build_array({', '.join(f'found.{name}' for name in codec.HOLD.split(', '))})::text"
_OF_HOLDS = "FROM pennyweight.holds AS found WHERE book = $1 AND id = ANY ($2::bigint[])"
_OF_REFERENCES = f"""
    FROM {_wanted("owner", "reference")}
    JOIN pennyweight.holds AS found
        ON found.book = wanted.book AND found.owner = wanted.owner
            AND found.reference = wanted.reference AND found.reference <> ''
"""
_HOLDS = statement(f"SELECT {_HOLD} {_OF_HOLDS}", 1, 0)
_HOLDS_WHOSE = statement(f"SELECT found.account {_OF_HOLDS}", 1, 0)
_REFERENCES = statement(f"SELECT {_HOLD} {_OF_REFERENCES}", 1, 0, 0)
_REFERENCES_WHOSE = statement(f"SELECT found.account {_OF_REFERENCES}", 1, 0, 0)
_OPEN_HOLDS = statement(
    f"""
    SELECT {_HOLD} FROM pennyweight.holds AS found
    WHERE book = $1 AND account = ANY ($2::text[]) AND state = 'open' ORDER BY id
    """,
    *(1, 0),
)
_RECORDS = statement(
    f"""
    SELECT wanted.place, found.record
    FROM {_wanted("kind", "id")}
    JOIN pennyweight.records AS found
        ON found.book = wanted.book AND found.kind = wanted.kind AND found.id = wanted.id
    """,
    *(1, 0, 0),
)
_NAMES = statement(
    f"""
    SELECT wanted.place, found.id
    FROM {_wanted("kind", "name")}
    JOIN pennyweight.names AS found
        ON found.book = wanted.book AND found.kind = wanted.kind AND found.name = wanted.name
    """,
    *(1, 0, 0),
)
_OF_HOLDERS = """
    (SELECT $1::text AS book, unnest($2::text[]) AS holder OFFSET 0) AS wanted
"""
_ACCOUNT = ", ".join(f"found.{name}" for name in codec.ACCOUNT.split(", "))
_ACCOUNTS_OF_HOLDERS = statement(
    f"""
    SELECT json_build_array({_ACCOUNT.replace("found.roots", "('[' || found.roots || ']')::json")})::text
    FROM {_OF_HOLDERS}
    JOIN pennyweight.accounts AS found
        ON found.book = wanted.book AND found.holder = wanted.holder
    """,
    *(1, 0),
)
_RECORDS_OF_HOLDERS = statement(
    f"""
    SELECT found.record
    FROM {_OF_HOLDERS}
    JOIN pennyweight.records AS found
        ON found.book = wanted.book AND found.holder = wanted.holder AND found.holder <> ''
    """,
    *(1, 0),
)

_Pair = tuple[str, str]
_Read = Callable[[PGresult], None]


class FactFinder:
    """Finds what one batch wants. Used once."""

    def __init__(
        self,
        channel: Channel,
        book: bytes,
        reads: Reads,
        resident: Container[str],
        keys: KeyFilter | None = None,
    ) -> None:
        """Nothing is found yet. With `keys`, those that are certainly free are not asked for."""
        self._keys = keys
        self._channel = channel
        self._book = book
        self._reads = reads
        self._resident = resident
        self._room = None if reads.room is None else Room(reads.room, resident)
        self._found = Found()
        self._requests: list[tuple[Statement, Values]] = []
        self._readers: list[_Read] = []
        self._led_to: set[str] = set()
        """Holders that entries and holds led to."""

    def find(self) -> Found:
        """Find everything. Raises ServerError."""
        try:
            self._find()
        except RoomOver:
            return Found(is_cut=True)
        return self._found

    def _find(self) -> None:
        reads, found = self._reads, self._found
        if self._room is not None:
            self._room.take_holders(reads.holders)
        if reads.keys or reads.key_entries:
            self._ask_keys()
        if reads.entries:
            found.entries = dict.fromkeys(reads.entries)
            wanted = list(filter(codec.is_bigint, reads.entries))
            self._ask(_ENTRIES, self._read_entries, codec.numbers(wanted))
        if reads.holds or reads.references:
            self._ask_holds()
        if reads.open_holds or reads.records or reads.names:
            self._ask_rows()
        if reads.holders:
            self._ask_holders(reads.holders)
        self._run()
        if self._led_to:
            self._ask_holders(self._led_to - reads.holders)
        self._run()

    # ── trips ─────────────────────────────────────────────────────────────────────

    def _ask(self, wanted: Statement, read: _Read, *values: bytes) -> None:
        """Put a statement into the next trip; `read` takes what it returns."""
        self._requests.append((wanted, (self._book, *values)))
        self._readers.append(read)

    def _run(self) -> None:
        """Make the trip, if anything was asked. What is read may ask for more."""
        requests, readers = self._requests, self._readers
        if not requests:
            return
        self._requests, self._readers = [], []
        for result, read in zip(self._channel.run_all(requests), readers, strict=True):
            read(result)

    # ── keys and entries ──────────────────────────────────────────────────────────

    def _ask_keys(self) -> None:
        reads = self._reads
        self._found.keys = dict.fromkeys(reads.keys | reads.key_entries)
        wanted = reads.keys - reads.key_entries if reads.key_entries else reads.keys
        plain = _storable(wanted if self._keys is None else self._keys.strangers(wanted))
        if plain:
            room = _ROOM_MAX if self._room is None else self._room.left

            def read(result: PGresult) -> None:
                for place, body in _rows(result):
                    self._take_body()
                    self._found.keys[plain[_number(place) - 1]] = FORMAT + (body or b"")

            self._ask(_KEYS, read, *_pairs(plain), b"%d" % room)
        entire = _storable(reads.key_entries)
        if entire:

            def read_entire(result: PGresult) -> None:
                names = {
                    _number(sequence): entire[_number(place) - 1]
                    for place, sequence, _ in _rows(result)
                }
                self._read_touched(result)
                self._ask_bodies(names, self._found.keys)

            self._ask(_KEY_ENTRIES, read_entire, *_pairs(entire))

    def _read_entries(self, result: PGresult) -> None:
        self._read_touched(result)
        sequences = [_number(sequence) for _, sequence, _ in _rows(result)]
        self._ask_bodies({sequence: sequence for sequence in sequences}, self._found.entries)

    def _read_touched(self, result: PGresult) -> None:
        """Take room for entries, and for the holders they touched, before they are read."""
        for _, _, touched in _rows(result):
            self._take_body()
            self._lead_to(codec.json_to_texts(touched or b"[]"))

    def _ask_bodies(self, names: dict[int, T], bodies: dict[T, bytes | None]) -> None:
        if not names:
            return

        def read(result: PGresult) -> None:
            for sequence, body in _rows(result):
                bodies[names[_number(sequence)]] = body

        self._ask(_BODIES, read, codec.numbers(list(names)))

    # ── holds ─────────────────────────────────────────────────────────────────────

    def _ask_holds(self) -> None:
        """Ask for holds by id and by reference; first whose they are, where room might end."""
        reads, found = self._reads, self._found
        found.holds = dict.fromkeys(reads.holds)
        found.references = dict.fromkeys(reads.references)
        ids = list(filter(codec.is_bigint, reads.holds))
        pairs = _storable(reads.references)
        most = len(reads.keys) + len(ids) + len(pairs)
        is_roomy = self._room is None or (
            self._room.left >= most and not reads.entries and not reads.key_entries
        )
        if is_roomy:
            self._ask_whole_holds(ids, pairs)
            return

        asked: list[tuple[Statement, tuple[bytes, ...]]] = []
        if ids:
            asked.append((_HOLDS_WHOSE, (codec.numbers(ids),)))
        if pairs:
            asked.append((_REFERENCES_WHOSE, _pairs(pairs)))
        for position, (wanted, values) in enumerate(asked, 1):

            def read(result: PGresult, *, is_last: bool = position == len(asked)) -> None:
                self._lead_to((account or b"").decode() for (account,) in _rows(result))
                if is_last:
                    self._ask_whole_holds(ids, pairs)

            self._ask(wanted, read, *values)

    def _ask_whole_holds(self, ids: list[int], pairs: list[_Pair]) -> None:
        if ids:
            self._ask(_HOLDS, self._read_holds, codec.numbers(ids))
        if pairs:
            self._ask(_REFERENCES, self._read_holds, *_pairs(pairs))

    def _read_holds(self, result: PGresult) -> None:
        found = self._found
        for (blob,) in _rows(result):
            hold = codec.hold_of_json(blob or b"")
            self._lead_to((hold.account,))
            found.holds[hold.id] = hold
            if (hold.owner, hold.reference) in found.references:
                found.references[hold.owner, hold.reference] = hold.id

    # ── what brings no holders, and holders ───────────────────────────────────────

    def _ask_rows(self) -> None:
        reads, found = self._reads, self._found
        if reads.open_holds:
            found.open_holds = {account_id: [] for account_id in reads.open_holds}

            def read_open(result: PGresult) -> None:
                for (blob,) in _rows(result):
                    hold = codec.hold_of_json(blob or b"")
                    found.open_holds[hold.account].append(hold)

            self._ask(
                _OPEN_HOLDS, read_open, codec.texts(list(filter(codec.is_text, reads.open_holds)))
            )
        if reads.records:
            found.records = dict.fromkeys(reads.records)
            records = _storable(reads.records)

            def read_records(result: PGresult) -> None:
                for place, blob in _rows(result):
                    found.records[records[_number(place) - 1]] = encoding.blob_to_record(
                        blob or b""
                    )

            self._ask(_RECORDS, read_records, *_pairs(records))
        if reads.names:
            found.names = dict.fromkeys(reads.names)
            names = _storable(reads.names)

            def read_names(result: PGresult) -> None:
                for place, key in _rows(result):
                    found.names[names[_number(place) - 1]] = codec.of_text((key or b"").decode())

            self._ask(_NAMES, read_names, *_pairs(names))

    def _ask_holders(self, holders: Iterable[str]) -> None:
        """Ask for what holders have, except those who are resident."""
        resident, found = self._resident, self._found.holders
        asked = [holder for holder in holders if holder not in resident]
        if not asked:
            return
        for holder in asked:
            found[holder] = ([], [])
        wanted = codec.texts(list(filter(codec.is_text, asked)))
        self._ask(_ACCOUNTS_OF_HOLDERS, self._read_accounts, wanted)
        self._ask(_RECORDS_OF_HOLDERS, self._read_records, wanted)

    def _read_accounts(self, result: PGresult) -> None:
        found = self._found.holders
        accounts = [codec.account_of_json(blob or b"") for (blob,) in _rows(result)]
        accounts.sort(key=lambda account: account.number)
        for account in accounts:
            found[account.holder][0].append(account)

    def _read_records(self, result: PGresult) -> None:
        for (blob,) in _rows(result):
            record = encoding.blob_to_record(blob or b"")
            self._found.holders[record.holder][1].append(record)

    # ── room ──────────────────────────────────────────────────────────────────────

    def _take_body(self) -> None:
        if self._room is not None:
            self._room.take_body()

    def _lead_to(self, accounts: Iterable[str]) -> None:
        """Note the holders of accounts, with room for them."""
        holders = {holder_of(account) for account in accounts}
        if self._room is not None:
            self._room.take_holders(holders)
        self._led_to |= holders


def _rows(result: PGresult) -> Iterator[list[bytes | None]]:
    columns = range(result.nfields)
    for row in range(result.ntuples):
        yield [result.get_value(row, column) for column in columns]


def _number(value: bytes | None) -> int:
    """Return a binary bigint."""
    return int.from_bytes(value or b"", "big", signed=True)


def _storable(pairs: Iterable[_Pair]) -> list[_Pair]:
    """Return the pairs that any store can keep, in one order."""
    wanted = list(pairs)
    if "".join(map("".join, wanted)).isascii():
        return wanted
    return [pair for pair in wanted if codec.is_text(pair[0]) and codec.is_text(pair[1])]


def _pairs(pairs: list[_Pair]) -> tuple[bytes, bytes]:
    """Return pairs as two parameters."""
    if not pairs:
        return codec.texts([]), codec.texts([])
    first, second = zip(*pairs, strict=True)
    return codec.texts(list(first)), codec.texts(list(second))

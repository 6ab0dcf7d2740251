"""Copying a book: its journal as lines of JSON, and a book rebuilt from such lines.

The first line says which book it is and where it ends; then each batch has a line with its
header and the chain after it, followed by one line per entry. An entry's line holds the
body's format and its very bytes, so that hashes and chain are the same in the copy. The
copy's last batch leaves a new incarnation in the head: what is committed from then on is
another life of the book.
"""

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Any

import msgspec

from pennyweight.engine.chain import next_chain
from pennyweight.engine.port import (
    AccountRow,
    Append,
    BatchHeader,
    Head,
    HoldRow,
    KeyRow,
    RecordRow,
    SealedBatch,
    Store,
)
from pennyweight.engine.rebuild import Answers, Invariant, Rebuilt, back_dated_lines
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.entries import FORMAT, CorruptEntry, CursorMove, Entry, decode_entry
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.records import Record

VERSION = 1
"""Of the lines' shape."""

_PAGE = 500
_OWED = "owed:"

Progress = Callable[[int, int], None]
"""Hears (entries done, entries in all) now and then."""


class CopyFailed(Exception):
    """The book cannot be exported, or these lines are no whole, unchanged book."""


class FirstLine(msgspec.Struct, frozen=True, kw_only=True):
    """Which book follows, and where it ends."""

    pennyweight_export: int
    book: str
    incarnation: str
    sequence: int
    chain: str


class BatchLine(msgspec.Struct, frozen=True, kw_only=True):
    """A batch's header, and the chain after it in hexadecimal."""

    batch: dict[str, Any]
    chain: str


class EntryLine(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an entry: its format byte as a number, and the bytes after it as they are."""

    format: int
    entry: msgspec.Raw


_encoder = msgspec.json.Encoder()
_first_line = msgspec.json.Decoder(FirstLine)
_batch_line = msgspec.json.Decoder(BatchLine)
_entry_line = msgspec.json.Decoder(EntryLine)
_HEADER_FIELDS = BatchHeader.__struct_fields__


# ── out ───────────────────────────────────────────────────────────────────────────


def export_lines(store: Store, progress: Progress = lambda _done, _all: None) -> Iterator[bytes]:
    """Yield a book's lines, up to where it stands now. Raises CopyFailed for a broken journal."""
    head = store.head()
    yield _line(
        FirstLine(
            pennyweight_export=VERSION,
            book=head.book,
            incarnation=head.incarnation,
            sequence=head.sequence,
            chain=head.chain.hex(),
        )
    )
    position = 0
    while position < head.sequence:
        batches = store.batches(position, _PAGE)
        if not batches:
            raise CopyFailed(f"no batch has entry {position + 1}; run verify")
        for header, chain in batches:
            if header.first_sequence > head.sequence:
                break
            fields = {name: getattr(header, name) for name in _HEADER_FIELDS}
            yield _line(BatchLine(batch=fields, chain=chain.hex()))
            entries = store.entries(position, header.count)
            for sequence, body in entries:
                position += 1
                if sequence != position or body[:1] != FORMAT or b"\n" in body:
                    raise CopyFailed(f"entry {position} is missing or unreadable; run verify")
                yield b'{"format":1,"entry":%b}\n' % body[1:]
            if len(entries) != header.count or header.first_sequence + header.count - 1 != position:
                raise CopyFailed(f"entry {position + 1} is missing; run verify")
        progress(position, head.sequence)


def _line(value: msgspec.Struct) -> bytes:
    return _encoder.encode(value) + b"\n"


# ── in ────────────────────────────────────────────────────────────────────────────


def read_first_line(line: bytes) -> FirstLine:
    """Read what the lines that follow are. Raises CopyFailed."""
    try:
        first = _first_line.decode(line)
    except msgspec.DecodeError as error:
        raise CopyFailed(f"line 1: this is no export of a book ({error})") from None
    if first.pennyweight_export != VERSION:
        raise CopyFailed(f"line 1: this is export version {first.pennyweight_export}")
    return first


def import_lines(
    first: FirstLine,
    lines: Iterable[bytes],
    store: Store,
    incarnation: str,
    *,
    answers: Answers,
    invariants: Iterable[Invariant] = (),
    progress: Progress = lambda _done, _all: None,
) -> Head:
    """Write the book of these lines into an empty store, and return its head.

    Every rule is checked on the way, and the chain after every batch. `incarnation` names
    the new life of the book. Raises CopyFailed; the store is then to be thrown away.
    """
    taker = _Copy(first, store, answers, invariants)
    for number, line in enumerate(lines, start=2):
        taker.take(number, line)
        if number % 1_000 == 0:
            progress(store.head().sequence, first.sequence)
    return taker.finish(incarnation)


def copy_book(
    source: Store,
    target: Store,
    incarnation: str,
    *,
    answers: Answers,
    invariants: Iterable[Invariant] = (),
    progress: Progress = lambda _done, _all: None,
) -> Head:
    """Write a store's book, as it stands now, into an empty store of its name; see `import_lines`."""
    lines = export_lines(source)
    first = read_first_line(next(lines))
    return import_lines(
        first,
        lines,
        target,
        incarnation,
        answers=answers,
        invariants=invariants,
        progress=progress,
    )


class _Copy:
    """A copy in the making: batches are written one later, so that the last one is known."""

    def __init__(
        self, first: FirstLine, store: Store, answers: Answers, invariants: Iterable[Invariant]
    ) -> None:
        self._first = first
        self._store = store
        self._number = 1
        self._problem = ""
        self._rebuilt = Rebuilt(self._complain, answers=answers, invariants=invariants)
        self._head = store.head()
        self._header: BatchHeader | None = None
        self._chain = b""
        self._bodies: list[bytes] = []
        self._pending: Append | None = None
        if self._head.sequence:
            raise CopyFailed("a book is imported into an empty store only")

    def take(self, number: int, line: bytes) -> None:
        """Take the next line."""
        self._number = number
        if not line.strip():
            return
        try:
            if self._header is None:
                self._begin(_batch_line.decode(line))
            else:
                self._bodies.append(self._body(_entry_line.decode(line)))
        except (msgspec.DecodeError, ValueError, TypeError) as error:
            raise self._failed(f"this is not the line that must come here ({error})") from None
        if self._header is not None and len(self._bodies) == self._header.count:
            self._complete(self._header)

    def finish(self, incarnation: str) -> Head:
        """Write the last batch, with the head of a new life."""
        if self._header is not None:
            raise self._failed("the file ends inside a batch")
        if self._head.sequence != self._first.sequence:
            raise self._failed(
                f"the file ends at entry {self._head.sequence} of {self._first.sequence}"
            )
        if self._first.sequence and self._head.chain.hex() != self._first.chain:
            raise self._failed("the chain differs from the first line's")
        self._rebuilt.finish()
        self._check()
        if self._pending is not None:
            self._head = msgspec.structs.replace(self._head, incarnation=incarnation)
            self._store.adopt(msgspec.structs.replace(self._pending, head=self._head))
        return self._head

    def _begin(self, line: BatchLine) -> None:
        values = [line.batch.get(name) for name in _HEADER_FIELDS]
        header = msgspec.convert(values, BatchHeader)
        if header.book != self._first.book or header.first_sequence != self._head.sequence + 1:
            raise self._failed(
                f"a batch of {header.book} from entry {header.first_sequence} does not follow"
            )
        if header.count < 1 or header.committed_at <= self._head.committed_at:
            raise self._failed("the batch is empty, or not later than the one before it")
        self._header, self._chain, self._bodies = header, bytes.fromhex(line.chain), []

    def _body(self, line: EntryLine) -> bytes:
        if line.format != FORMAT[0]:
            raise self._failed(f"bodies of format {line.format} cannot be read")
        return FORMAT + bytes(line.entry)

    def _complete(self, header: BatchHeader) -> None:
        """Check the chain, apply the batch's entries, and write the batch before it."""
        if next_chain(self._head.chain, header, self._bodies) != self._chain:
            last = header.first_sequence + header.count - 1
            raise self._failed(
                f"the chain after entries {header.first_sequence} to {last} differs: "
                "something was changed"
            )
        if self._pending is not None:
            self._store.adopt(self._pending)
        entries: list[Entry] = []
        for body in self._bodies:
            try:
                entries.append(decode_entry(body))
            except CorruptEntry as error:
                raise self._failed(str(error)) from None
        before = _Before(self._rebuilt, self._store, entries)
        for position, entry in enumerate(entries):
            if entry.sequence != header.first_sequence + position:
                raise self._failed(f"entry {entry.sequence} does not follow")
            self._rebuilt.apply(entry, header.committed_at)
        self._check()
        head = Head(
            book=self._head.book,
            incarnation=header.incarnation,
            epoch=header.epoch,
            sequence=header.first_sequence + header.count - 1,
            chain=self._chain,
            committed_at=header.committed_at,
            counters=dict(self._rebuilt.counters),
        )
        batch = SealedBatch(header, self._bodies, self._chain)
        self._pending = before.append(self._head, head, batch)
        self._head = head
        self._header = None

    def _complain(self, sequence: int, problem: str) -> None:
        self._problem = self._problem or f"entry {sequence}: {problem}"

    def _check(self) -> None:
        if self._problem:
            raise self._failed(self._problem)

    def _failed(self, problem: str) -> CopyFailed:
        return CopyFailed(f"line {self._number}: {problem}")


class _Before:
    """What a batch's entries found: versions, holds and records, as the store has them."""

    def __init__(self, rebuilt: Rebuilt, store: Store, entries: list[Entry]) -> None:
        self._rebuilt = rebuilt
        self._entries = entries
        self._versions: dict[str, int] = {}
        self._holds: dict[int, Hold | None] = {}
        self._records: dict[tuple[str, str], Record | None] = {}
        self._cursors: dict[str, int] = {}
        for entry in entries:
            for account_id in _touched(entry):
                account = rebuilt.accounts.get(account_id)
                self._versions.setdefault(account_id, account.version if account else 0)
            for change in entry.holds:
                self._holds.setdefault(change.hold.id, rebuilt.open_holds.get(change.hold.id))
            for record in entry.records:
                name = (record.kind, record.id)
                if name not in self._records:
                    is_known = name in rebuilt.records
                    self._records[name] = store.record(*name) if is_known else None
            for move in entry.cursors:
                self._cursors.setdefault(move.name, rebuilt.cursors.get(move.name, 0))

    def append(self, expected: Head, head: Head, batch: SealedBatch) -> Append:
        """Return everything to write, now that the entries were applied."""
        entries, rebuilt = self._entries, self._rebuilt
        accounts: list[Account] = [
            rebuilt.accounts[account_id]
            for account_id in self._versions
            if account_id in rebuilt.accounts
        ]
        accounts.sort(key=lambda account: account.number)
        holds = {change.hold.id: change.hold for entry in entries for change in entry.holds}
        records = {(r.kind, r.id): r for entry in entries for r in entry.records}
        return Append(
            expected,
            head,
            batch,
            [entry.product for entry in entries],
            [KeyRow(e.product, e.key, e.sequence) for e in entries if e.key],
            [AccountRow(copy(a), self._versions[a.id]) for a in accounts],
            [HoldRow(hold, self._holds[hold_id]) for hold_id, hold in sorted(holds.items())],
            [RecordRow(record, self._records[name]) for name, record in sorted(records.items())],
            [line for e in entries for line in back_dated_lines(e, head.committed_at)],
            [
                CursorMove(name, before, rebuilt.cursors[name])
                for name, before in self._cursors.items()
            ],
        )


def _touched(entry: Entry) -> Iterator[str]:
    """Yield the accounts whose rows an entry changed."""
    for opening in entry.openings:
        yield opening.id
    yield from entry.closings
    for line in entry.lines:
        yield line.account
        if line.account.startswith(_OWED):
            yield line.account.removeprefix(_OWED)

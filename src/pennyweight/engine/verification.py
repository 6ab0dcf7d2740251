"""The proof of a book: its journal read from the first entry to the last, its rows compared.

`verify` recomputes the chain, checks that sequences are gapless and times rise, applies
every entry to a `Rebuilt` book, which checks the rules again, and compares what comes out
with the head and with every row of the store. It reads through the source it is given
and may run beside a serving process: the rows are read as of one moment, and the journal
up to that moment. `check_tail` is the quick look at start.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import msgspec

from pennyweight.engine.chain import next_chain
from pennyweight.engine.engine import RULES
from pennyweight.engine.port import BatchHeader, Head
from pennyweight.engine.rebuild import (
    Answers,
    Invariant,
    Names,
    Rebuilt,
    Tally,
    back_dated_digest,
    bound_digest,
    bucket_of,
    hold_digest,
    key_digest,
    listing_digest,
    listings_of,
    name_number,
    record_digest,
)
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.entries import CorruptEntry, decode_entry
from pennyweight.ledger.holds import Hold, HoldState

PROBLEMS_MAX = 100
"""Problems that are told in words; further ones are counted."""

_PAGE = 1_000
_TAIL = 2_000


class Source(Protocol):
    """What verification reads: these methods of a `Store`."""

    def head(self) -> Head:
        """See `Store`."""

    def batches(self, after: int, limit: int) -> list[tuple[BatchHeader, bytes]]:
        """See `Store`."""

    def entries(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """See `Store`."""

    def rows(self) -> Iterable[tuple[str, Any]]:
        """See `Store`."""


class Problem(msgspec.Struct, frozen=True):
    """Something wrong: a sentence, and the entry it was found at (0: no single one)."""

    sequence: int
    problem: str


class Report(msgspec.Struct, frozen=True):
    """What a verification found. `first_wrong` is the problem with the least sequence.

    What is wrong in the journal comes before what is wrong in the rows, which may be no
    more than its consequence. `problems` holds at most 100 of `problem_count`, in order.
    """

    ok: bool
    book: str
    sequence: int
    chain_head: str
    state_digest: str
    first_wrong: Problem | None
    problems: list[Problem]
    problem_count: int
    entries: int


Progress = Callable[[int, int], None]
"""Hears (entries done, entries in all) now and then."""


def verify(
    source: Source,
    *,
    answers: Answers,
    invariants: Iterable[Invariant] = (),
    progress: Progress = lambda _done, _all: None,
) -> Report:
    """Prove a whole book. Raises what the source raises when it cannot be read at all."""
    return _Verification(source, answers, invariants, progress).run()


def check_tail(source: Source) -> Problem | None:
    """Check the chain of the last batches against the head; return the first problem.

    What is appended meanwhile, by who owns the book, is not looked at.
    """
    head = source.head()
    found: list[Problem] = []
    after = max(0, head.sequence - _TAIL)
    batches = source.batches(after, _TAIL)
    later = [batch for batch in batches if batch[0].first_sequence > head.sequence]
    if later and source.head().sequence > head.sequence:
        del batches[-len(later) :]
    if after and batches:
        header, chain = batches.pop(0)
        position, time = header.first_sequence + header.count - 1, header.committed_at
    else:
        position, chain, time = 0, bytes(32), 0
    for header, stored in batches:
        bodies = [body for _, body in source.entries(position, header.count)]
        if header.first_sequence != position + 1 or len(bodies) != header.count:
            return Problem(position + 1, "an entry or the header of its batch is missing")
        if next_chain(chain, header, bodies) != stored:
            return Problem(position + 1, f"the chain of its batch ({header.count}) differs")
        position, chain, time = position + header.count, stored, header.committed_at
    if (head.sequence, head.chain, head.committed_at) != (position, chain, time):
        found.append(Problem(head.sequence, "the head of the book is not its last batch"))
    return found[0] if found else None


class _Verification:
    """One run; see `verify`."""

    def __init__(
        self, source: Source, answers: Answers, invariants: Iterable[Invariant], progress: Progress
    ) -> None:
        self._source = source
        self._progress = progress
        self._problems: list[tuple[bool, int, Problem]] = []
        self._count = 0
        self._are_rows = False
        """Whether it is now the rows that are compared, not the journal."""
        self._rebuilt = Rebuilt(self._complain, answers=answers, invariants=invariants)
        self._position = 0
        self._chain = bytes(32)
        self._time = 0
        self._epoch = 0
        self._entries = 0
        self._total = 0
        self._bodies: Iterator[tuple[int, bytes]] = iter(())
        self._ahead: tuple[int, bytes] | None = None

    def run(self) -> Report:
        head = self._source.head()
        self._read_journal(head)
        rows = iter(self._source.rows())
        # The book may have grown meanwhile; the rows begin with the head as of their moment.
        _, head = next(rows)
        self._read_journal(head)
        self._rebuilt.finish()
        self._check_unique()
        self._are_rows = True
        self._check_head(head)
        self._compare(rows)
        problems = [told for *_, told in sorted(self._problems, key=lambda place: place[:2])]
        return Report(
            ok=self._count == 0,
            book=head.book,
            sequence=self._position,
            chain_head=self._chain.hex(),
            state_digest=self._rebuilt.state_digest(),
            first_wrong=problems[0] if problems else None,
            problems=problems[:PROBLEMS_MAX],
            problem_count=self._count,
            entries=self._entries,
        )

    def _complain(self, sequence: int, problem: str) -> None:
        """Note a problem; one without an entry of its own comes after all others."""
        self._count += 1
        place = (self._are_rows, sequence or 1 << 63, Problem(sequence, problem))
        if len(self._problems) < PROBLEMS_MAX:
            self._problems.append(place)
        elif place[:2] < self._problems[0][:2]:
            self._problems[0] = place

    # ── the journal ───────────────────────────────────────────────────────────────

    def _read_journal(self, head: Head) -> None:
        """Read on, batch by batch, until the head."""
        self._total = head.sequence
        self._bodies = _entries(self._source, self._position, head.sequence)
        self._ahead = next(self._bodies, None)
        told = 0
        for header, chain in _batches(self._source, self._position, head.sequence):
            self._batch(head, header, chain)
            if self._entries - told >= _PAGE:
                told = self._entries
                self._progress(self._position, self._total)
        if self._position < head.sequence:
            self._complain(
                self._position + 1,
                f"the batches of the entries up to {head.sequence} are missing",
            )
            self._position = head.sequence
        self._progress(self._position, self._total)

    def _batch(self, head: Head, header: BatchHeader, chain: bytes) -> None:
        """Check a header, apply its entries, and check the chain after them."""
        first = header.first_sequence
        problems = self._count
        if first <= self._position or header.count < 1:
            self._complain(first, "it is in a batch that was read already, or in an empty one")
            return
        if first != self._position + 1:
            self._complain(
                self._position + 1,
                f"no batch has the entries {self._position + 1} to {first - 1}",
            )
            self._take(first - 1, header.committed_at)
        if header.committed_at <= self._time:
            self._complain(first, "the time of its batch is not later than the last one's")
        if header.book != head.book or header.epoch < self._epoch or header.rules > RULES:
            self._complain(first, "its batch names another book, an older epoch or newer rules")
        bodies = self._take(first + header.count - 1, header.committed_at)
        if next_chain(self._chain, header, bodies) != chain and self._count == problems:
            last = first + header.count - 1
            where = "it was changed" if last == first else f"one of {first} to {last} was changed"
            self._complain(first, f"the chain of its batch differs: {where} after the commit")
        self._chain, self._time, self._epoch = chain, header.committed_at, header.epoch

    def _take(self, last: int, time: int) -> list[bytes]:
        """Apply the entries up to a sequence, and return their bodies."""
        bodies: list[bytes] = []
        apply = self._rebuilt.apply
        while self._position < last:
            self._position = sequence = self._position + 1
            ahead = self._ahead
            if ahead is None or ahead[0] != sequence:
                self._complain(sequence, "it is missing")
                continue
            body = ahead[1]
            self._ahead = next(self._bodies, None)
            self._entries += 1
            bodies.append(body)
            try:
                entry = decode_entry(body)
            except CorruptEntry as error:
                self._complain(sequence, f"it cannot be read: {error}")
                continue
            if entry.sequence != sequence:
                self._complain(sequence, f"its body says that it is entry {entry.sequence}")
                continue
            apply(entry, time)
        return bodies

    def _check_unique(self) -> None:
        """Check that no key of a product was bound twice, and no hold's reference taken twice."""
        keys = _Unique(self._rebuilt.key_names)
        references = _Unique(self._rebuilt.references)
        if not keys.repeated and not references.repeated:
            return
        for sequence, body in _entries(self._source, 0, self._position):
            try:
                entry = decode_entry(body)
            except CorruptEntry:
                continue
            name = (entry.product, entry.key)
            if entry.key and (first := keys.first(name, sequence)):
                self._complain(
                    sequence, f"its key {_text(name)} was bound by entry {first} already"
                )
            for change in entry.holds:
                hold = change.hold
                name = (hold.owner, hold.reference)
                if change.verb != "place" or not hold.reference:
                    continue
                if other := references.first(name, hold.id):
                    self._complain(
                        sequence,
                        f"hold {hold.id} takes the reference {_text(name)}, which hold {other} has",
                    )

    def _check_head(self, head: Head) -> None:
        """Compare the head with the end of the journal."""
        if (head.sequence, head.chain, head.committed_at) != (
            self._position,
            self._chain,
            self._time,
        ):
            self._complain(self._position, "the head of the book is not its last batch")
        if head.epoch < self._epoch:
            self._complain(self._position, "the head has an older epoch than the last batch")
        counters = self._rebuilt.counters
        if dict(head.counters) != counters:
            for name in sorted(head.counters.keys() | counters.keys()):
                stored, rebuilt = head.counters.get(name, 0), counters.get(name, 0)
                if stored != rebuilt:
                    self._complain(
                        0, f"counter {name} is stored as {stored}, the journal says {rebuilt}"
                    )

    # ── the rows ──────────────────────────────────────────────────────────────────

    def _compare(self, rows: Iterator[tuple[str, Any]]) -> None:
        """Compare every row with the rebuilt book; what differs is then looked for."""
        rebuilt = self._rebuilt
        wanted = _Wanted()
        stored = _Stored()
        for kind, row in rows:
            stored.add(kind, row)
            if kind == "account":
                self._compare_account(row)
            elif kind == "record":
                value = rebuilt.records.get((row.kind, row.id))
                if value is None or value[4:36] != record_digest(row):
                    wanted.records.add((row.kind, row.id))
            elif kind == "hold" and _is_open(row) and rebuilt.open_holds.get(row.id) != row:
                wanted.holds.add(bucket_of(row.id))
        if stored.cursors != rebuilt.cursors:
            self._complain(
                0, f"the cursors are stored as {stored.cursors}, not as {rebuilt.cursors}"
            )
        if stored.listings.differing(stored.listed):
            self._complain(0, "records are not listed by the labels, names and marks they carry")
        if rebuilt.back_dated.differing(stored.back_dated):
            self._complain(0, "the back-dated postings are not those of the journal")
        counts = stored.counts
        wanted.holds |= rebuilt.ended_holds.differing(stored.ended_holds)
        wanted.keys = rebuilt.keys.differing(stored.keys)
        wanted.all_accounts = counts["account"] != len(rebuilt.accounts)
        wanted.all_records = counts["record"] != len(rebuilt.records)
        wanted.all_holds = counts["hold"] != len(rebuilt.open_holds) + rebuilt.ended_holds.count
        if wanted:
            self._locate(wanted)

    def _compare_account(self, row: Account) -> None:
        account = self._rebuilt.accounts.get(row.id)
        if account == row or self._rebuilt.is_broken(row.id):
            return
        if account is None:
            self._complain(0, f"account {row.id} is stored, but no entry opens it")
            return
        for name in Account.__struct_fields__:
            stored, told = getattr(row, name), getattr(account, name)
            if stored != told:
                self._complain(
                    account.version,
                    f"account {row.id} is stored with {name} {stored}, its entries say {told}",
                )
                return

    def _locate(self, wanted: "_Wanted") -> None:
        """Read rows and journal once more, and name the entries of the rows that differ."""
        told = _Rows()
        for sequence, body in _entries(self._source, 0, self._position):
            try:
                entry = decode_entry(body)
            except CorruptEntry:
                continue
            if entry.key and bucket_of(sequence) in wanted.keys:
                told.keys[entry.product, entry.key] = (sequence, sequence)
            for change in entry.holds:
                if wanted.is_hold(change.hold.id):
                    told.holds[change.hold.id] = (sequence, change.hold)
            for record in entry.records:
                if wanted.is_record((record.kind, record.id)):
                    told.records[record.kind, record.id] = (sequence, record)
        stored = _Rows()
        missing = set(self._rebuilt.accounts) if wanted.all_accounts else set()
        for kind, row in self._source.rows():
            if kind == "account":
                missing.discard(row.id)
            elif kind == "key" and bucket_of(row.sequence) in wanted.keys:
                stored.keys[row.product, row.key] = (row.sequence, row.sequence)
            elif kind == "hold" and wanted.is_hold(row.id):
                stored.holds[row.id] = (0, row)
            elif kind == "record" and wanted.is_record((row.kind, row.id)):
                stored.records[row.kind, row.id] = (0, row)
        for account_id in missing:
            version = self._rebuilt.accounts[account_id].version
            self._complain(version, f"account {account_id} is not stored")
        self._differences("key", told.keys, stored.keys)
        self._differences("hold", told.holds, stored.holds)
        self._differences("record", told.records, stored.records)

    def _differences(
        self, what: str, told: dict[Any, tuple[int, Any]], stored: dict[Any, tuple[int, Any]]
    ) -> None:
        """Complain about rows that are not as the journal tells them."""
        for name, (sequence, row) in told.items():
            found = stored.pop(name, None)
            if found is None:
                self._complain(sequence, f"its {what} {_text(name)} is not stored")
            elif found[1] != row:
                self._complain(sequence, f"its {what} {_text(name)} is stored differently")
        for name, (sequence, _) in stored.items():
            self._complain(sequence, f"{what} {_text(name)} is stored, but no entry made it")


class _Stored:
    """What is kept of the rows as they pass: how many there are, and sums of their digests."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.cursors: dict[str, int] = {}
        self.keys = Tally()
        self.ended_holds = Tally()
        self.back_dated = Tally()
        self.listings = Tally()
        """Where records say that they are listed."""
        self.listed = Tally()
        """Where they are listed."""

    def add(self, kind: str, row: Any) -> None:
        self.counts[kind] += 1
        if kind == "key":
            digest = key_digest(row.product, row.key)
            self.keys.add(row.sequence, bound_digest(digest, row.sequence))
        elif kind == "hold":
            if not _is_open(row):
                self.ended_holds.add(row.id, hold_digest(row))
        elif kind == "record":
            for listing in listings_of(row):
                self.listings.add(0, listing_digest(listing))
        elif kind == "listing":
            self.listed.add(0, listing_digest(row))
        elif kind == "back_dated":
            self.back_dated.add(row.sequence, back_dated_digest(row))
        elif kind == "cursor":
            self.cursors[row.name] = row.after


class _Unique:
    """Which of the names that came twice is whose."""

    def __init__(self, names: Names) -> None:
        self.repeated = names.repeated()
        self._first: dict[tuple[str, str], int] = {}

    def first(self, name: tuple[str, str], number: int) -> int | None:
        """Return who had this name first, None if it is `number` or the name came once."""
        if name_number(key_digest(*name)) not in self.repeated:
            return None
        first = self._first.setdefault(name, number)
        return None if first == number else first


class _Wanted(msgspec.Struct):
    """Which rows differ: buckets of keys and holds, records by name, or any that are missing."""

    keys: set[int] = msgspec.field(default_factory=set)
    holds: set[int] = msgspec.field(default_factory=set)
    records: set[tuple[str, str]] = msgspec.field(default_factory=set)
    all_accounts: bool = False
    all_holds: bool = False
    all_records: bool = False

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__struct_fields__)

    def is_hold(self, hold_id: int) -> bool:
        return self.all_holds or bucket_of(hold_id) in self.holds

    def is_record(self, name: tuple[str, str]) -> bool:
        return self.all_records or name in self.records


class _Rows(msgspec.Struct):
    """Rows by name, each with the entry that made it last."""

    keys: dict[Any, tuple[int, Any]] = msgspec.field(default_factory=dict)
    holds: dict[Any, tuple[int, Hold]] = msgspec.field(default_factory=dict)
    records: dict[Any, tuple[int, Any]] = msgspec.field(default_factory=dict)


def _is_open(hold: Hold) -> bool:
    return hold.state is HoldState.OPEN


def _text(name: Any) -> str:
    return " ".join(name) if isinstance(name, tuple) else str(name)


def _batches(source: Source, after: int, last: int) -> Iterator[tuple[BatchHeader, bytes]]:
    """Yield (header, chain) of the batches after one sequence up to another."""
    while page := source.batches(after, _PAGE):
        for header, chain in page:
            if header.first_sequence > last:
                return
            yield header, chain
        after = page[-1][0].first_sequence


def _entries(source: Source, after: int, last: int) -> Iterator[tuple[int, bytes]]:
    """Yield (sequence, body) of the entries after one sequence up to another."""
    while after < last and (page := source.entries(after, min(_PAGE, last - after))):
        for row in page:
            if row[0] > last:
                return
            yield row
        after = page[-1][0]

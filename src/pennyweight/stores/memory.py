"""A book in memory: nothing survives the process. For the wallet's façade, tests and simulations."""

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Container, Iterable, Iterator
from typing import Any

import msgspec

from pennyweight.engine.port import (
    AccountRow,
    Append,
    BackDatedLine,
    BatchHeader,
    ConstraintFailed,
    Due,
    Found,
    Head,
    HoldRow,
    KeyRow,
    Lease,
    Listing,
    NotOwner,
    Reads,
    RecordRow,
    Resolution,
    StoreInUse,
    Traffic,
)
from pennyweight.ledger.accounts import Account, holder_of
from pennyweight.ledger.entries import CursorMove, decode_entry
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.ledger.money import LIMIT
from pennyweight.ledger.records import Record
from pennyweight.stores.room import Room, RoomOver

HOLD_EXPIRY = "hold_expiry"

_Place = tuple[int, str, str]
"""Rank, id and kind of something due."""


class MemoryStore:
    """The store port over dicts. `clock` gives microseconds for the lease; see `Store`."""

    def __init__(self, head: Head, *, clock: Callable[[], int] = lambda: 0) -> None:
        """An empty book that begins at `head`."""
        self._head = head
        self._clock = clock
        self._lock = threading.Lock()
        """Held while a batch is written, and by readers of more than one row."""
        self._bodies: list[bytes] = []
        self._products: dict[str, list[int]] = {}
        self._batches: list[tuple[BatchHeader, bytes]] = []
        self._keys: dict[tuple[str, str], int] = {}
        self._accounts: dict[str, Account] = {}
        self._numbers: list[tuple[int, str]] = []
        self._holders: dict[str, list[str]] = {}
        self._holds: dict[int, Hold] = {}
        self._open_holds: dict[str, dict[int, Hold]] = {}
        self._references: dict[tuple[str, str], int] = {}
        self._records: dict[tuple[str, str], Record] = {}
        self._holder_records: dict[str, dict[tuple[str, str], Record]] = {}
        self._kinds: dict[str, set[str]] = {}
        self._labels: dict[tuple[str, str], set[str]] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._places: dict[str, list[_Place]] = {}
        self._back_dated: dict[str, list[BackDatedLine]] = {}
        self._cursors: dict[str, int] = {}
        self._stage: dict[str, str] = {}
        self._lease: Lease | None = None

    @property
    def traffic(self) -> Traffic:
        """See `Store`."""
        return Traffic()

    # ── the writer's ──────────────────────────────────────────────────────────────

    def head(self) -> Head:
        """See `Store`."""
        return self._head

    def begin(self, reads: Reads, resident: Container[str]) -> Found:
        """See `Store`."""
        room = None if reads.room is None else Room(reads.room, resident)
        found = Found()
        try:
            self._find(reads, resident, found, room)
        except RoomOver:
            return Found(is_cut=True)
        return found

    def _find(
        self, reads: Reads, resident: Container[str], found: Found, room: Room | None
    ) -> None:
        """Find everything. Raises RoomOver."""
        holders = reads.holders
        if room is not None:
            room.take_holders(holders)
        if reads.keys or reads.key_entries:
            holders = holders | self._find_keys(reads, found, room)
        if reads.entries or reads.holds or reads.references:
            holders = holders | self._find_entries_and_holds(reads, found, room)
        if reads.open_holds or reads.records or reads.names:
            self._find_rows(reads, found)
        for holder in holders:
            if holder not in resident:
                found.holders[holder] = (
                    [self._accounts[account_id] for account_id in self._holders.get(holder, ())],
                    list(self._holder_records.get(holder, {}).values()),
                )

    def _find_keys(self, reads: Reads, found: Found, room: Room | None) -> set[str]:
        """Find the entries of keys, and return the holders of those wanted with them."""
        bound, keys = self._keys, found.keys
        for key in reads.keys | reads.key_entries:
            sequence = bound.get(key)
            if sequence is None:
                keys[key] = None
                continue
            if room is not None:
                room.take_body()
            keys[key] = self._bodies[sequence - 1]
        return _holders_of((found.keys[key] for key in reads.key_entries), room)

    def _find_entries_and_holds(self, reads: Reads, found: Found, room: Room | None) -> set[str]:
        """Find entries, and holds by id or by reference, and return the holders they belong to."""
        for sequence in reads.entries:
            body = self.entry(sequence)
            if body is not None and room is not None:
                room.take_body()
            found.entries[sequence] = body
        holders = _holders_of(found.entries.values(), room)
        for hold_id in reads.holds:
            self._find_hold(hold_id, found, holders, room)
        for pair in reads.references:
            named = found.references[pair] = self._references.get(pair)
            if named is not None:
                self._find_hold(named, found, holders, room)
        return holders

    def _find_hold(self, hold_id: int, found: Found, holders: set[str], room: Room | None) -> None:
        hold = self._holds.get(hold_id)
        if hold is not None:
            holder = holder_of(hold.account)
            if room is not None:
                room.take_holders((holder,))
            holders.add(holder)
        found.holds[hold_id] = hold

    def _find_rows(self, reads: Reads, found: Found) -> None:
        """Find what brings no holders."""
        for account_id in reads.open_holds:
            open_holds = self._open_holds.get(account_id, {})
            found.open_holds[account_id] = sorted(open_holds.values(), key=_id)
        for key in reads.records:
            found.records[key] = self._records.get(key)
        for name in reads.names:
            found.names[name] = self._names.get(name)

    def append(self, batch: Append) -> None:
        """See `Store`. Checks everything before it changes anything."""
        with self._lock:
            head, expected = self._head, batch.expected
            if (head.sequence, head.epoch, head.chain) != (
                expected.sequence,
                expected.epoch,
                expected.chain,
            ):
                raise NotOwner("the head of the book moved")
            keys = {(row.product, row.key): row.sequence for row in batch.keys}
            if len(keys) != len(batch.keys) or not self._keys.keys().isdisjoint(keys):
                raise ConstraintFailed("a key is bound already")
            self._check(batch)
            self._keys.update(keys)
            self._write(batch)

    def adopt(self, batch: Append) -> None:
        """See `Store`."""
        self.append(batch)

    def resolve(self, batch: Append) -> Resolution:
        """See `Store`."""
        header = batch.batch.header
        with self._lock:
            is_committed = any(chain == batch.batch.chain for _, chain in reversed(self._batches))
            is_owner = self._head.epoch == header.epoch
        return Resolution(is_committed, is_owner)

    # ── checking ──────────────────────────────────────────────────────────────────

    def _check(self, batch: Append) -> None:
        for row in batch.accounts:
            before = self._accounts.get(row.account.id)
            version = 0 if before is None else before.version
            if version != row.version_before or version >= row.account.version:
                raise ConstraintFailed(f"account {row.account.id} was changed by another writer")
            _check_balance(row)
        references = set()
        for hold_row in batch.holds:
            hold = hold_row.hold
            if self._holds.get(hold.id) != hold_row.before:
                raise ConstraintFailed(f"hold {hold.id} was changed by another writer")
            if hold.reference and hold_row.before is None:
                reference = (hold.owner, hold.reference)
                if reference in self._references or reference in references:
                    raise ConstraintFailed(f"reference {hold.reference!r} is taken")
                references.add(reference)
        if batch.records:
            self._check_records(batch.records)
        for move in batch.cursors:
            if self._cursors.get(move.name, 0) != move.before:
                raise ConstraintFailed(f"cursor {move.name} is not at {move.before}")

    def _check_records(self, rows: list[RecordRow]) -> None:
        taken: dict[tuple[str, str], str | None] = {}
        for row in rows:
            record, before = row.record, row.before
            stored = self._records.get((record.kind, record.id))
            version = 0 if stored is None else stored.version
            if version != (before.version if before else 0) or version >= record.version:
                raise ConstraintFailed(f"{record.kind} {record.id} was changed by another writer")
            for name in before.names if before else ():
                taken[record.kind, name] = None
        for row in rows:
            record = row.record
            for name in record.names:
                key = (record.kind, name)
                if taken.get(key, self._names.get(key)) is not None:
                    raise ConstraintFailed(f"name {name!r} of {record.kind} is taken")
                taken[key] = record.id

    # ── writing ───────────────────────────────────────────────────────────────────

    def _write(self, batch: Append) -> None:
        sequence = batch.batch.header.first_sequence
        self._bodies += batch.batch.bodies
        for product in batch.products:
            listed = self._products.get(product)
            if listed is None:
                listed = self._products[product] = []
            listed.append(sequence)
            sequence += 1
        self._batches.append((batch.batch.header, batch.batch.chain))
        for row in batch.accounts:
            account = row.account
            if not row.version_before:
                self._holders.setdefault(account.holder, []).append(account.id)
                insort(self._numbers, (account.number, account.id))
            self._accounts[account.id] = account
        for hold_row in batch.holds:
            self._write_hold(hold_row)
        if batch.records:
            for record_row in batch.records:
                if record_row.before is not None:
                    self._unlist(record_row.before)
            for record_row in batch.records:
                self._list(record_row.record)
        for line in batch.back_dated:
            self._back_dated.setdefault(line.account, []).append(line)
        for move in batch.cursors:
            self._cursors[move.name] = move.after
        self._head = batch.head

    def _write_hold(self, row: HoldRow) -> None:
        hold, before = row.hold, row.before
        self._holds[hold.id] = hold
        open_holds = self._open_holds.setdefault(hold.account, {})
        if before is not None and before.state is HoldState.OPEN:
            del open_holds[hold.id]
            if before.expires_at is not None:
                self._leave(HOLD_EXPIRY, (before.expires_at, str(hold.id), "hold"))
        if before is None and hold.reference:
            self._references[hold.owner, hold.reference] = hold.id
        if hold.state is HoldState.OPEN:
            open_holds[hold.id] = hold
            if hold.expires_at is not None:
                self._enter(HOLD_EXPIRY, (hold.expires_at, str(hold.id), "hold"))

    def _unlist(self, record: Record) -> None:
        """Take a record out of everything that lists it."""
        kind, key = record.kind, record.id
        for label in record.labels:
            self._labels[kind, label].discard(key)
        for name in record.names:
            del self._names[kind, name]
        for mark in set(record.marks):
            self._leave(mark.index, (mark.rank, key, kind))
        if record.holder:
            del self._holder_records[record.holder][kind, key]

    def _list(self, record: Record) -> None:
        """Keep a record, and list it under all that it carries."""
        kind, key = record.kind, record.id
        self._records[kind, key] = record
        self._kinds.setdefault(kind, set()).add(key)
        for label in record.labels:
            self._labels.setdefault((kind, label), set()).add(key)
        for name in record.names:
            self._names[kind, name] = key
        for mark in set(record.marks):
            self._enter(mark.index, (mark.rank, key, kind))
        if record.holder:
            self._holder_records.setdefault(record.holder, {})[kind, key] = record

    def _enter(self, index: str, place: _Place) -> None:
        insort(self._places.setdefault(index, []), place)

    def _leave(self, index: str, place: _Place) -> None:
        places = self._places[index]
        del places[bisect_left(places, place)]

    # ── the readers' ──────────────────────────────────────────────────────────────

    def entries(
        self, after: int, limit: int, *, product: str | None = None, is_descending: bool = False
    ) -> list[tuple[int, bytes]]:
        """See `Store`."""
        bodies = self._bodies
        sequences = (
            range(1, len(bodies) + 1) if product is None else self._products.get(product, [])
        )
        if is_descending:
            end = bisect_left(sequences, after)
            picked = sequences[max(0, end - limit) : end][::-1]
        else:
            start = bisect_right(sequences, after)
            picked = sequences[start : start + limit]
        return [(sequence, bodies[sequence - 1]) for sequence in picked]

    def entry(self, sequence: int) -> bytes | None:
        """See `Store`."""
        return self._bodies[sequence - 1] if 0 < sequence <= len(self._bodies) else None

    def batches(self, after: int, limit: int) -> list[tuple[BatchHeader, bytes]]:
        """See `Store`."""
        start = bisect_right(self._batches, after, key=_first_sequence)
        return self._batches[start : start + limit]

    def batch_at(
        self, *, sequence: int | None = None, time: int | None = None
    ) -> BatchHeader | None:
        """See `Store`."""
        if sequence is not None:
            end = bisect_right(self._batches, sequence, key=_first_sequence)
        elif time is not None:
            end = bisect_right(self._batches, time, key=_committed_at)
        else:
            end = len(self._batches)
        if end == 0:
            return None
        header = self._batches[end - 1][0]
        if sequence is not None and sequence >= header.first_sequence + header.count:
            return None
        return header

    def receipt(self, product: str, key: str) -> bytes | None:
        """See `Store`."""
        sequence = self._keys.get((product, key))
        return None if sequence is None else self._bodies[sequence - 1]

    def account(self, account_id: str) -> Account | None:
        """See `Store`."""
        return self._accounts.get(account_id)

    def accounts(
        self,
        after: int,
        limit: int,
        *,
        holder: str | None = None,
        asset: str | None = None,
        is_owing: bool = False,
    ) -> list[Account]:
        """See `Store`."""
        rows: list[Account] = []
        with self._lock:
            if holder is not None:
                ids = [(self._accounts[i].number, i) for i in self._holders.get(holder, ())]
            else:
                ids = self._numbers
            for _, account_id in ids[bisect_right(ids, after, key=_number) :]:
                if len(rows) == limit:
                    break
                account = self._accounts[account_id]
                if asset in {None, account.asset} and (account.owed or not is_owing):
                    rows.append(account)
        return rows

    def hold(self, hold_id: int) -> Hold | None:
        """See `Store`."""
        return self._holds.get(hold_id)

    def hold_of_reference(self, owner: str, reference: str) -> Hold | None:
        """See `Store`."""
        hold_id = self._references.get((owner, reference))
        return None if hold_id is None else self._holds[hold_id]

    def holds(self, account_id: str, after: int, limit: int) -> list[Hold]:
        """See `Store`."""
        with self._lock:
            rows = sorted(self._open_holds.get(account_id, {}).values(), key=_id)
        return [hold for hold in rows if hold.id > after][:limit]

    def record(self, kind: str, record_id: str) -> Record | None:
        """See `Store`."""
        return self._records.get((kind, record_id))

    def records(
        self, kind: str, *, label: str | None = None, after: str = "", limit: int = 100
    ) -> list[Record]:
        """See `Store`."""
        with self._lock:
            if label is None:
                ids = self._kinds.get(kind, set())
            else:
                ids = self._labels.get((kind, label), set())
                named = self._names.get((kind, label))
                ids = ids if named is None else ids | {named}
            listed = sorted(record_id for record_id in ids if record_id > after)
            return [self._records[kind, record_id] for record_id in listed[:limit]]

    def record_named(self, kind: str, name: str) -> Record | None:
        """See `Store`."""
        with self._lock:
            record_id = self._names.get((kind, name))
            return None if record_id is None else self._records[kind, record_id]

    def due(
        self,
        index: str,
        low: int,
        high: int,
        *,
        after: tuple[int, str] | None = None,
        limit: int = 100,
    ) -> list[Due]:
        """See `Store`."""
        rows: list[Due] = []
        with self._lock:
            places = self._places.get(index, [])
            start = bisect_left(places, (low,))
            if after is not None:
                start = max(start, bisect_right(places, after, key=_rank_and_id))
            for rank, record_id, kind in places[start : start + limit]:
                if rank > high:
                    break
                rows.append(Due(index, rank, kind, record_id))
        return rows

    def back_dated(self, account_id: str, effective_until: int, committed_after: int) -> int:
        """See `Store`."""
        return sum(
            line.change
            for line in list(self._back_dated.get(account_id, ()))
            if line.effective_at <= effective_until and line.committed_at > committed_after
        )

    def cursors(self) -> dict[str, int]:
        """See `Store`."""
        return dict(self._cursors)

    # ── outside the journal ───────────────────────────────────────────────────────

    def claim(self, owner: str, address: str, life_microseconds: int) -> Lease | None:
        """See `Store`."""
        with self._lock:
            now = self._clock()
            held = self._lease
            is_held = held is not None and held.expires_at > now
            if held is not None and is_held and held.owner != owner:
                return None
            epoch = self._head.epoch if is_held else self._head.epoch + 1
            if not is_held:
                self._head = _with_epoch(self._head, epoch)
            self._lease = Lease(
                epoch=epoch,
                owner=owner,
                address=address,
                expires_at=now + life_microseconds,
                now=now,
            )
            return self._lease

    def give_up(self, owner: str) -> None:
        """See `Store`."""
        with self._lock:
            if self._lease is not None and self._lease.owner == owner:
                self._lease = _with_end(self._lease, "", 0, self._clock())

    def lease(self) -> Lease | None:
        """See `Store`."""
        held = self._lease
        return held and _with_end(held, held.address, held.expires_at, self._clock())

    def stage(self, name: str, value: str | None = None, *, is_first: bool = False) -> str | None:
        """See `Store`."""
        if value is not None:
            if is_first:
                return self._stage.setdefault(name, value)
            self._stage[name] = value
        return self._stage.get(name)

    def renew(self, incarnation: str) -> None:
        """See `Store`."""
        with self._lock:
            lease = self._lease
            if lease is not None and lease.expires_at > self._clock():
                raise StoreInUse(0, lease.owner)
            self._head = msgspec.structs.replace(self._head, incarnation=incarnation)

    def size_bytes(self) -> int:
        """See `Store`."""
        return 0

    def rows(self) -> Iterator[tuple[str, Any]]:
        """See `Store`."""
        with self._lock:
            rows: list[tuple[str, Any]] = [("head", self._head)]
            rows += [("account", account) for account in self._accounts.values()]
            rows += [("hold", hold) for hold in self._holds.values()]
            rows += [("record", record) for record in self._records.values()]
            rows += [("cursor", CursorMove(name, 0, at)) for name, at in self._cursors.items()]
            rows += [("listing", listing) for listing in self._listings()]
            rows += [("back_dated", line) for lines in self._back_dated.values() for line in lines]
            keys = list(self._keys.items())
        yield from rows
        for (product, key), sequence in keys:
            yield "key", KeyRow(product, key, sequence)

    def _listings(self) -> Iterator[Listing]:
        """Yield where records are found."""
        for (kind, label), ids in self._labels.items():
            for key in ids:
                yield Listing("label", label, 0, kind, key)
        for (kind, name), key in self._names.items():
            yield Listing("name", name, 0, kind, key)
        for index, places in self._places.items():
            for rank, key, kind in places:
                if index != HOLD_EXPIRY or kind != "hold":
                    yield Listing("mark", index, rank, kind, key)

    def close(self) -> None:
        """See `Store`."""


def _holders_of(bodies: Iterable[bytes | None], room: Room | None) -> set[str]:
    """Return the holders whose accounts these entries touched."""
    holders: set[str] = set()
    for body in bodies:
        if body is not None:
            holders |= {holder_of(line.account) for line in decode_entry(body).lines}
    if room is not None:
        room.take_holders(holders)
    return holders


def _check_balance(row: AccountRow) -> None:
    """The last line of defence: what the seal must have ensured."""
    account = row.account
    posted, held, floor = account.posted, account.held, account.floor
    if held < 0 or (floor is not None and posted - held < floor):
        raise ConstraintFailed(f"account {account.id} would go below its floor")
    if not -LIMIT < posted < LIMIT or held >= LIMIT:
        raise ConstraintFailed(f"account {account.id} would have more than 38 digits")


def _with_epoch(head: Head, epoch: int) -> Head:
    return Head(
        book=head.book,
        incarnation=head.incarnation,
        epoch=epoch,
        sequence=head.sequence,
        chain=head.chain,
        committed_at=head.committed_at,
        counters=head.counters,
    )


def _with_end(lease: Lease, address: str, expires_at: int, now: int) -> Lease:
    return Lease(
        epoch=lease.epoch, owner=lease.owner, address=address, expires_at=expires_at, now=now
    )


def _id(hold: Hold) -> int:
    return hold.id


def _number(row: tuple[int, str]) -> int:
    return row[0]


def _first_sequence(row: tuple[BatchHeader, bytes]) -> int:
    return row[0].first_sequence


def _committed_at(row: tuple[BatchHeader, bytes]) -> int:
    return row[0].committed_at


def _rank_and_id(place: _Place) -> tuple[int, str]:
    return place[:2]

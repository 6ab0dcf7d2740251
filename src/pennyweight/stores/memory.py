"""A book in memory: nothing survives the process. For the wallet's façade, tests and simulations."""

from collections.abc import Callable, Container, Iterator
from typing import Any

from pennyweight.engine.port import (
    AccountRow,
    Append,
    BackDatedLine,
    BatchHeader,
    ConstraintFailed,
    Due,
    Found,
    Head,
    KeyRow,
    Lease,
    NotOwner,
    Reads,
)
from pennyweight.ledger.accounts import Account, holder_of
from pennyweight.ledger.entries import CursorMove, decode_entry
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.ledger.records import Record


class MemoryStore:
    """The store port over dicts. `clock` gives microseconds for the lease; see `Store`."""

    def __init__(self, head: Head, *, clock: Callable[[], int] = lambda: 0) -> None:
        """An empty book that begins at `head`."""
        self._head = head
        self._clock = clock
        self._bodies: list[bytes] = []
        self._products: list[str] = []
        self._batches: list[tuple[BatchHeader, bytes]] = []
        self._keys: dict[tuple[str, str], int] = {}
        self._accounts: dict[str, Account] = {}
        self._holders: dict[str, list[str]] = {}
        self._holds: dict[int, Hold] = {}
        self._open_holds: dict[str, dict[int, Hold]] = {}
        self._records: dict[tuple[str, str], Record] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._back_dated: list[BackDatedLine] = []
        self._cursors: dict[str, int] = {}
        self._stage: dict[str, str] = {}
        self._lease: Lease | None = None

    # ── the writer's ──────────────────────────────────────────────────────────────

    def head(self) -> Head:
        """See `Store`."""
        return self._head

    def begin(self, reads: Reads, resident: Container[str]) -> Found:
        """See `Store`."""
        found = Found()
        holders = reads.holders
        if reads.keys or reads.key_entries:
            holders = self._find_keys(reads, found, holders)
        if reads.entries or reads.holds or reads.open_holds or reads.records or reads.names:
            holders = self._find_rows(reads, found, holders)
        for holder in holders:
            if holder not in resident:
                accounts = [self._accounts[i] for i in self._holders.get(holder, ())]
                records = (
                    [r for r in self._records.values() if r.holder == holder]
                    if self._has_holder_records
                    else []
                )
                found.holders[holder] = (accounts, records)
        return found

    _has_holder_records = False

    def _find_keys(self, reads: Reads, found: Found, holders: set[str]) -> set[str]:
        for key in reads.keys:
            sequence = self._keys.get(key)
            found.keys[key] = None if sequence is None else self._bodies[sequence - 1]
        for key in reads.key_entries:
            sequence = self._keys.get(key)
            body = None if sequence is None else self._bodies[sequence - 1]
            found.keys[key] = body
            if body is not None:
                holders = holders | _holders_of(body)
        return holders

    def _find_rows(self, reads: Reads, found: Found, holders: set[str]) -> set[str]:
        holders = set(holders)
        for sequence in reads.entries:
            body = found.entries[sequence] = self.entry(sequence)
            if body is not None:
                holders |= _holders_of(body)
        for hold_id in reads.holds:
            hold = found.holds[hold_id] = self._holds.get(hold_id)
            if hold is not None:
                holders.add(holder_of(hold.account))
        for account_id in reads.open_holds:
            open_holds = self._open_holds.get(account_id, {})
            found.open_holds[account_id] = sorted(open_holds.values(), key=lambda hold: hold.id)
        for key in reads.records:
            found.records[key] = self._records.get(key)
        for name in reads.names:
            found.names[name] = self._names.get(name)
        return holders

    def append(self, batch: Append) -> None:
        """See `Store`. Checks everything before it changes anything."""
        guard = (self._head.epoch, self._head.sequence, self._head.chain)
        if guard != (batch.expected.epoch, batch.expected.sequence, batch.expected.chain):
            raise NotOwner("the head of the book moved")
        self._check(batch)
        self._write(batch)

    def adopt(self, batch: Append) -> None:
        """See `Store`."""
        self.append(batch)

    def _check(self, batch: Append) -> None:
        for row in batch.accounts:
            before = self._accounts.get(row.account.id)
            if (before.version if before else 0) != row.version_before:
                raise ConstraintFailed(f"account {row.account.id} was changed by another writer")
            _check_balance(row)
        for key in batch.keys:
            if (key.product, key.key) in self._keys:
                raise ConstraintFailed(f"key {key.key!r} of {key.product} is bound already")
        for hold_row in batch.holds:
            if self._holds.get(hold_row.hold.id) != hold_row.before:
                raise ConstraintFailed(f"hold {hold_row.hold.id} was changed by another writer")
        released = {
            (row.record.kind, name)
            for row in batch.records
            if row.before
            for name in row.before.names
        }
        for record_row in batch.records:
            record = record_row.record
            stored = self._records.get((record.kind, record.id))
            version = record_row.before.version if record_row.before else 0
            if (stored.version if stored else 0) != version:
                raise ConstraintFailed(f"{record.kind} {record.id} was changed by another writer")
            for name in record.names:
                if (record.kind, name) in self._names and (record.kind, name) not in released:
                    raise ConstraintFailed(f"name {name!r} of {record.kind} is taken")
        for move in batch.cursors:
            if self._cursors.get(move.name, 0) != move.before:
                raise ConstraintFailed(f"cursor {move.name} is not at {move.before}")

    def _write(self, batch: Append) -> None:
        self._bodies += batch.batch.bodies
        self._products += batch.products
        self._batches.append((batch.batch.header, batch.batch.chain))
        for key in batch.keys:
            self._keys[key.product, key.key] = key.sequence
        for row in batch.accounts:
            if not row.version_before:
                self._holders.setdefault(row.account.holder, []).append(row.account.id)
            self._accounts[row.account.id] = row.account
        for hold_row in batch.holds:
            hold = hold_row.hold
            self._holds[hold.id] = hold
            open_holds = self._open_holds.setdefault(hold.account, {})
            if hold.state is HoldState.OPEN:
                open_holds[hold.id] = hold
            else:
                open_holds.pop(hold.id, None)
        for record_row in batch.records:
            for name in record_row.before.names if record_row.before else ():
                self._names.pop((record_row.record.kind, name), None)
        for record_row in batch.records:
            record = record_row.record
            self._records[record.kind, record.id] = record
            self._has_holder_records = self._has_holder_records or bool(record.holder)
            for name in record.names:
                self._names[record.kind, name] = record.id
        self._back_dated += batch.back_dated
        for move in batch.cursors:
            self._cursors[move.name] = move.after
        self._head = batch.head

    # ── the readers' ──────────────────────────────────────────────────────────────

    def entries(
        self, after: int, limit: int, *, product: str | None = None, is_descending: bool = False
    ) -> list[tuple[int, bytes]]:
        """See `Store`."""
        count = len(self._bodies)
        span = range(min(after - 1, count), 0, -1) if is_descending else range(after + 1, count + 1)
        rows: list[tuple[int, bytes]] = []
        for sequence in span:
            if len(rows) == limit:
                break
            if product is None or self._products[sequence - 1] == product:
                rows.append((sequence, self._bodies[sequence - 1]))
        return rows

    def entry(self, sequence: int) -> bytes | None:
        """See `Store`."""
        return self._bodies[sequence - 1] if 0 < sequence <= len(self._bodies) else None

    def batches(self, after: int, limit: int) -> list[tuple[BatchHeader, bytes]]:
        """See `Store`."""
        rows = (row for row in self._batches if row[0].first_sequence > after)
        return [row for row, _ in zip(rows, range(limit), strict=False)]

    def batch_at(
        self, *, sequence: int | None = None, time: int | None = None
    ) -> BatchHeader | None:
        """See `Store`."""
        for header, _ in reversed(self._batches):
            if sequence is not None and not (
                header.first_sequence <= sequence < header.first_sequence + header.count
            ):
                continue
            if time is not None and header.committed_at > time:
                continue
            return header
        return None

    def receipt(self, product: str, key: str) -> bytes | None:
        """See `Store`."""
        sequence = self._keys.get((product, key))
        return None if sequence is None else self._bodies[sequence - 1]

    def account(self, account_id: str) -> Account | None:
        """See `Store`."""
        return self._accounts.get(account_id)

    def accounts(
        self, after: int, limit: int, *, holder: str | None = None, asset: str | None = None
    ) -> list[Account]:
        """See `Store`."""
        rows = [
            account
            for account in self._accounts.values()
            if account.number > after
            and holder in {None, account.holder}
            and asset in {None, account.asset}
        ]
        return sorted(rows, key=lambda account: account.number)[:limit]

    def hold(self, hold_id: int) -> Hold | None:
        """See `Store`."""
        return self._holds.get(hold_id)

    def holds(self, account_id: str, after: int, limit: int) -> list[Hold]:
        """See `Store`."""
        rows = sorted(self._open_holds.get(account_id, {}).values(), key=lambda hold: hold.id)
        return [hold for hold in rows if hold.id > after][:limit]

    def record(self, kind: str, record_id: str) -> Record | None:
        """See `Store`."""
        return self._records.get((kind, record_id))

    def records(
        self, kind: str, *, label: str | None = None, after: str = "", limit: int = 100
    ) -> list[Record]:
        """See `Store`."""
        rows = [
            record
            for record in self._records.values()
            if record.kind == kind
            and record.id > after
            and (label is None or label in record.labels or label in record.names)
        ]
        return sorted(rows, key=lambda record: record.id)[:limit]

    def record_named(self, kind: str, name: str) -> Record | None:
        """See `Store`."""
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
        rows = [
            Due(index, mark.rank, record.kind, record.id)
            for record in self._records.values()
            for mark in record.marks
            if mark.index == index and low <= mark.rank <= high
        ]
        if index == "hold_expiry":
            rows += [
                Due(index, hold.expires_at, "hold", str(hold.id))
                for holds in self._open_holds.values()
                for hold in holds.values()
                if hold.expires_at is not None and low <= hold.expires_at <= high
            ]
        rows.sort(key=lambda due: (due.rank, due.id))
        return [due for due in rows if after is None or (due.rank, due.id) > after][:limit]

    def back_dated(self, account_id: str, effective_until: int, committed_after: int) -> int:
        """See `Store`."""
        return sum(
            line.change
            for line in self._back_dated
            if line.account == account_id
            and line.effective_at <= effective_until
            and line.committed_at > committed_after
        )

    def cursors(self) -> dict[str, int]:
        """See `Store`."""
        return dict(self._cursors)

    # ── outside the journal ───────────────────────────────────────────────────────

    def claim(self, owner: str, address: str, life_microseconds: int) -> Lease | None:
        """See `Store`."""
        now = self._clock()
        held = self._lease
        if held is not None and held.owner != owner and held.expires_at > now:
            return None
        is_renewal = held is not None and held.owner == owner and held.expires_at > now
        epoch = self._head.epoch if is_renewal else self._head.epoch + 1
        if not is_renewal:
            self._head = _with_epoch(self._head, epoch)
        self._lease = Lease(
            epoch=epoch, owner=owner, address=address, expires_at=now + life_microseconds, now=now
        )
        return self._lease

    def give_up(self, owner: str) -> None:
        """See `Store`."""
        if self._lease is not None and self._lease.owner == owner:
            self._lease = Lease(
                epoch=self._lease.epoch, owner=owner, address="", expires_at=0, now=self._clock()
            )

    def lease(self) -> Lease | None:
        """See `Store`."""
        return self._lease

    def stage(self, name: str, value: str | None = None) -> str | None:
        """See `Store`."""
        if value is not None:
            self._stage[name] = value
        return self._stage.get(name)

    def size_bytes(self) -> int:
        """See `Store`."""
        return 0

    def rows(self) -> Iterator[tuple[str, Any]]:
        """See `Store`."""
        yield "head", self._head
        for account in self._accounts.values():
            yield "account", account
        for hold in self._holds.values():
            yield "hold", hold
        for record in self._records.values():
            yield "record", record
        for name, position in self._cursors.items():
            yield "cursor", CursorMove(name, 0, position)
        for (product, key), sequence in self._keys.items():
            yield "key", KeyRow(product, key, sequence)

    def close(self) -> None:
        """See `Store`."""


def _holders_of(body: bytes) -> set[str]:
    """Return the holders whose accounts an entry touched."""
    return {holder_of(line.account) for line in decode_entry(body).lines}


def _check_balance(row: AccountRow) -> None:
    """The last line of defence: what the seal must have ensured."""
    account = row.account
    if account.held < 0 or (account.floor is not None and account.available < account.floor):
        raise ConstraintFailed(f"account {account.id} would go below its floor")


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

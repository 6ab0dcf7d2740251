"""The overlay: what a batch has changed so far, on top of what is committed.

It is the `Facts` of every draft of its batch. Committed facts are never changed in place;
the overlay is merged into the cache when its append is confirmed, and dropped when not.
A fact is present, absent or unloaded; an unloaded one raises `Unloaded`, never "absent".
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from pennyweight.engine.cache import HolderCache
from pennyweight.engine.port import (
    AccountRow,
    BackDatedLine,
    Found,
    HoldRow,
    KeyRow,
    Reads,
    RecordRow,
)
from pennyweight.ledger.accounts import Account, holder_of, is_customer
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.draft import Draft, Unloaded
from pennyweight.ledger.entries import CursorMove, Entry, decode_entry
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.ledger.records import RANK_MAX, Record
from pennyweight.ledger.refusals import Reason, refuse

T = TypeVar("T")

ASSET = "asset"
"""Kind of the records that register assets; they and the counters are always loaded."""


class WantedReads:
    """Collects a batch's reads (the `Wanted` of the commands), leaving out what is cached."""

    def __init__(self, cache: HolderCache, counters: Mapping[str, int]) -> None:
        """Nothing wanted yet. `counters` as committed."""
        self.reads = Reads()
        self.holders: set[str] = set()
        """Every holder the batch names, resident or not."""
        self.applicants: dict[str, None] = {}
        """Users who are not resident and may become so after the batch, in order."""
        self.places = 0
        """Users who are not resident: those named, and about as many as holds and entries bring."""
        self._cache = cache
        self._cached = cache.accounts
        self._counters = counters
        self._numbered: Counter[str] = Counter()
        self._is_admitting = self._is_counted = True
        self._places_before = 0
        self._named: list[tuple[set[Any], Any]] = []
        self._used: dict[str, None] = {}
        self._numbers: list[str] = []

    def begin(self, *, is_admitting: bool = True, is_counted: bool = True) -> None:
        """Begin the reads of the next command; `keep` or `undo` follows.

        The users it names may become resident, or not; its uses count for the cache's
        policy and figures, or were counted before.
        """
        self._is_admitting = is_admitting
        self._is_counted = is_counted
        self._places_before = self.places
        self._named.clear()
        self._used.clear()
        self._numbers.clear()

    def keep(self) -> None:
        """Keep the last command in this batch: count its uses, each user once."""
        cache, is_counted = self._cache, self._is_counted
        if not self._is_admitting:
            if is_counted:
                for holder in self._used:
                    cache.peek(holder)
            return
        applicants, read = self.applicants, self.reads.holders
        for holder in self._used:
            is_first = True
            if holder in read and is_customer(holder):
                is_first = holder not in applicants
                applicants[holder] = None
            if is_counted:
                if is_first:  # in the batch, or the first not to be a settlement
                    cache.use(holder)
                else:
                    cache.use_again(holder)

    def undo(self) -> None:
        """Take back what the last command alone has named: it is not in this batch."""
        self.places = self._places_before
        for wanted, what in self._named:
            wanted.discard(what)
            if wanted is self.holders:
                self.reads.holders.discard(what)
        for counter in self._numbers:
            self._numbered[counter] -= 1

    def evicted(self, holder: str) -> None:
        """Read a resident again whom the batch wants: he made room for a big command."""
        if holder in self.holders and holder not in self.reads.holders:
            self.reads.holders.add(holder)
            self.applicants[holder] = None
            self.places += 1

    def account(self, account_id: str) -> None:
        """See `Wanted`."""
        account = self._cached.get(account_id)
        self.holder(holder_of(account_id) if account is None else account.holder)

    def holder(self, holder: str) -> None:
        """See `Wanted`."""
        self._used[holder] = None
        if holder not in self.holders:
            self.holders.add(holder)
            self._named.append((self.holders, holder))
            if holder not in self._cache:
                self.reads.holders.add(holder)
                if is_customer(holder):
                    self.places += 1

    def _want(self, wanted: set[T], what: T, brings: int = 0) -> None:
        """Want something, which brings about so many users along."""
        if what not in wanted:
            wanted.add(what)
            self._named.append((wanted, what))
            self.places += brings

    def accounts(self, *account_ids: str) -> None:
        """See `Wanted`."""
        for account_id in account_ids:
            self.account(account_id)

    def next_holder(self, counter: str, prefix: str) -> None:
        """See `Wanted`. The k-th command of a batch that asks gets at most the k-th next number."""
        self._numbered[counter] += 1
        self._numbers.append(counter)
        self.holder(f"{prefix}:{self._counters.get(counter, 0) + self._numbered[counter]}")

    def hold(self, hold_id: int, of: str = "") -> None:
        """See `Wanted`. One above the counter is absent, or placed earlier in the batch."""
        if 0 < hold_id <= self._counters.get("hold", 0):
            self._want(self.reads.holds, hold_id, int(of not in self.holders))

    def hold_of_reference(self, owner: str, reference: str, of: str = "") -> None:
        """See `Wanted`."""
        self._want(self.reads.references, (owner, reference), int(of not in self.holders))

    def open_holds(self, account_id: str) -> None:
        """See `Wanted`."""
        account = self._cached.get(account_id)
        if account is None or account.open_holds:
            self._want(self.reads.open_holds, account_id)
        self.account(account_id)

    def entry(self, sequence: int) -> None:
        """See `Wanted`."""
        if 0 < sequence <= RANK_MAX:
            self._want(self.reads.entries, sequence, 2)

    def entry_of_key(self, product: str, key: str) -> None:
        """See `Wanted`."""
        self._want(self.reads.key_entries, (product, key), 1)

    def record(self, kind: str, record_id: str) -> None:
        """See `Wanted`."""
        self._want(self.reads.records, (kind, record_id))

    def name(self, kind: str, name: str) -> None:
        """See `Wanted`."""
        self._want(self.reads.names, (kind, name))


class Standing(msgspec.Struct):
    """What is always loaded: assets, counters and cursors, as committed."""

    assets: dict[str, Asset]
    counters: dict[str, int]
    cursors: dict[str, int]


class Overlay:
    """The facts of one batch: committed ones from the cache and the store, and its own changes."""

    def __init__(
        self, cache: HolderCache, standing: Standing, found: Found, *, time: int, sequence: int
    ) -> None:
        """Begin a batch at `time` whose first entry has `sequence`."""
        self.time = time
        self.sequence = sequence
        self.accounts: dict[str, Account] = {}
        self.records: dict[tuple[str, str], Record] = {}
        self._records_before: dict[tuple[str, str], Record | None] = {}
        """What each of `records` was when the batch began."""
        self.bodies: list[bytes] = []
        self.products: list[str] = []
        self.keys: list[KeyRow] = []
        self.back_dated: list[BackDatedLine] = []
        self._committed = cache
        self._cached = cache.accounts
        self._standing = standing
        self._found = found
        self._opened: dict[str, list[str]] = {}
        """Ids of the accounts that this batch opened, by holder."""
        self._holds: dict[int, Hold] = {}
        self._open = {hold.id: hold for holds in found.open_holds.values() for hold in holds}
        self._references: dict[tuple[str, str], int] = {}
        self._names: dict[tuple[str, str], str | None] = {}
        self._bodies_of_keys: dict[tuple[str, str], bytes] = {}
        self._assets: dict[str, Asset] = {}
        self._counters: dict[str, int] = {}
        self._cursors: dict[str, CursorMove] = {}

    # ── the facts of a draft ──────────────────────────────────────────────────────

    def account(self, account_id: str) -> Account | None:
        """See `Facts`."""
        account = self.accounts.get(account_id) or self._cached.get(account_id)
        if account is None and holder_of(account_id) not in self._committed:
            raise Unloaded("account", account_id)
        return account

    def accounts_of(self, holder: str) -> list[Account]:
        """See `Facts`."""
        facts = self._committed.get(holder)
        if facts is None:
            raise Unloaded("holder", holder)
        changed, known = self.accounts, self._cached
        accounts = [
            changed.get(account_id) or known[account_id]
            for account_id in (*facts.account_ids, *self._opened.get(holder, ()))
        ]
        return sorted(accounts, key=lambda account: account.number)

    def hold(self, hold_id: int) -> Hold | None:
        """See `Facts`."""
        hold = self._holds.get(hold_id) or self._open.get(hold_id)
        if hold is not None:
            return hold
        if hold_id in self._found.holds:
            return self._found.holds[hold_id]
        if not 0 < hold_id <= self._standing.counters.get("hold", 0):
            return None
        raise Unloaded("hold", hold_id)

    def hold_of_reference(self, owner: str, reference: str) -> Hold | None:
        """See `Facts`."""
        pair = (owner, reference)
        hold_id = self._references.get(pair)
        if hold_id is None:
            if pair not in self._found.references:
                raise Unloaded("hold_of_reference", owner, reference)
            hold_id = self._found.references[pair]
        return None if hold_id is None else self.hold(hold_id)

    def open_holds(self, account_id: str) -> list[Hold]:
        """See `Facts`."""
        committed = self._found.open_holds.get(account_id)
        if committed is None:
            account = self._cached.get(account_id)
            if account is None or account.open_holds:
                raise Unloaded("open_holds", account_id)
            committed = []
        holds = {hold.id: hold for hold in committed}
        holds.update((h.id, h) for h in self._holds.values() if h.account == account_id)
        return sorted(
            (hold for hold in holds.values() if hold.state is HoldState.OPEN),
            key=lambda hold: hold.id,
        )

    def entry(self, sequence: int) -> Entry | None:
        """See `Facts`."""
        first = self.sequence - len(self.bodies)
        if first <= sequence < self.sequence:
            return decode_entry(self.bodies[sequence - first])
        if sequence >= self.sequence or sequence < 1:
            return None
        if sequence not in self._found.entries:
            raise Unloaded("entry", sequence)
        body = self._found.entries[sequence]
        return None if body is None else decode_entry(body)

    def entry_of_key(self, product: str, key: str) -> Entry | None:
        """See `Facts`."""
        pair = (product, key)
        try:
            body = self._bodies_of_keys.get(pair) or self._found.keys[pair]
        except KeyError:
            raise Unloaded("entry_of_key", product, key) from None
        return None if body is None else decode_entry(body)

    def record(self, kind: str, record_id: str) -> Record | None:
        """See `Facts`."""
        key = (kind, record_id)
        record = self.records.get(key)
        if record is not None:
            return record
        if key in self._found.records:
            return self._found.records[key]
        raise Unloaded("record", kind, record_id)

    def record_of_holder(self, holder: str, kind: str, record_id: str) -> Record | None:
        """See `Facts`."""
        record = self.records.get((kind, record_id))
        if record is not None:
            return record
        facts = self._committed.get(holder)
        if facts is None:
            raise Unloaded("holder", holder)
        return facts.records.get((kind, record_id))

    def name(self, kind: str, name: str) -> str | None:
        """See `Facts`."""
        key = (kind, name)
        if key in self._names:
            return self._names[key]
        if key in self._found.names:
            return self._found.names[key]
        raise Unloaded("name", kind, name)

    def asset(self, name: str) -> Asset | None:
        """See `Facts`."""
        return self._standing.assets.get(name) or self._assets.get(name)

    def counter(self, name: str) -> int:
        """See `Facts`."""
        value = self._counters.get(name)
        return self._standing.counters.get(name, 0) if value is None else value

    def cursor(self, name: str) -> int:
        """See `Facts`."""
        move = self._cursors.get(name)
        return self._standing.cursors.get(name, 0) if move is None else move.after

    def check_cursor(self, move: CursorMove) -> None:
        """Look whether a cursor is where a move begins. Refusal: cursor_conflict."""
        at = self.cursor(move.name)
        if at != move.before or move.after < at:
            refuse(Reason.CURSOR_CONFLICT, f"cursor {move.name!r} is at {at}, not at {move.before}")

    # ── growing ───────────────────────────────────────────────────────────────────

    def merge(self, draft: Draft, product: str, key: str, body: bytes) -> None:
        """Take a sealed draft's changes over; the next draft stands on them."""
        self.accounts.update(draft.changed_accounts)
        for opening in draft.openings:
            self._opened.setdefault(opening.holder, []).append(opening.id)
        if draft.changed_holds:
            self._holds.update(draft.changed_holds)
            for hold in draft.changed_holds.values():
                if hold.reference:
                    self._references[hold.owner, hold.reference] = hold.id
        for record in draft.records:
            self._merge_record(record)
        if draft.counters:
            self._counters.update(draft.counters)
        for move in draft.cursors:
            earlier = self._cursors.get(move.name)
            before = move.before if earlier is None else earlier.before
            self._cursors[move.name] = CursorMove(move.name, before, move.after)
        if key:
            self._bodies_of_keys[product, key] = body
            self.keys.append(KeyRow(product, key, self.sequence))
        if draft.effective_at is not None and draft.effective_at < self.time:
            self._back_date(draft, draft.effective_at)
        self.bodies.append(body)
        self.products.append(product)
        self.sequence += 1

    def _back_date(self, draft: Draft, effective_at: int) -> None:
        """Note the postings whose effective date lies before the commit."""
        for transfer in draft.transfers:
            for account, change in (
                (transfer.debit_account, -transfer.amount),
                (transfer.credit_account, transfer.amount),
            ):
                self.back_dated.append(
                    BackDatedLine(account, effective_at, self.sequence, self.time, change)
                )

    def _merge_record(self, record: Record) -> None:
        key = (record.kind, record.id)
        before = self.records.get(key)
        if before is None:
            before = self._records_before[key] = self._record_before(record)
        for name in before.names if before else ():
            if name not in record.names:
                self._names[record.kind, name] = None
        for name in record.names:
            self._names[record.kind, name] = record.id
        self.records[key] = record
        if record.kind == ASSET:
            self._assets[record.id] = record.read(Asset)

    def _record_before(self, record: Record) -> Record | None:
        """Return the committed record that this one replaces, or None for a new one."""
        if record.holder and (facts := self._committed.get(record.holder)) is not None:
            found = facts.records.get((record.kind, record.id))
            if found is not None:
                return found
        return self._found.records.get((record.kind, record.id))

    # ── what is to be written ─────────────────────────────────────────────────────

    def account_rows(self) -> list[AccountRow]:
        """Return the accounts changed, by number, with the versions that were read."""
        known = self._committed.accounts
        rows = [
            AccountRow(account, known[key].version if key in known else 0)
            for key, account in self.accounts.items()
        ]
        rows.sort(key=_number)
        return rows

    def hold_rows(self) -> list[HoldRow]:
        """Return the holds changed, by id."""
        if not self._holds:
            return []
        found = self._found
        return [
            HoldRow(hold, found.holds.get(hold_id) or self._open.get(hold_id))
            for hold_id, hold in sorted(self._holds.items())
        ]

    def record_rows(self) -> list[RecordRow]:
        """Return the records changed, by kind and id."""
        if not self.records:
            return []
        before = self._records_before
        return [RecordRow(record, before[key]) for key, record in sorted(self.records.items())]

    def cursor_moves(self) -> list[CursorMove]:
        """Return how far each cursor moved over the whole batch."""
        return list(self._cursors.values())

    def standing_after(self) -> Standing:
        """Return assets, counters and cursors as they are after this batch."""
        standing = self._standing
        if not (self._assets or self._counters or self._cursors):
            return standing
        cursors = {move.name: move.after for move in self._cursors.values()}
        return Standing(
            {**standing.assets, **self._assets} if self._assets else standing.assets,
            {**standing.counters, **self._counters} if self._counters else standing.counters,
            {**standing.cursors, **cursors} if cursors else standing.cursors,
        )


def _number(row: AccountRow) -> int:
    return row.account.number

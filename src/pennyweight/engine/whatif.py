"""What would be decided: the facts of a draft that is thrown away, straight from a store.

Look-ups are one by one, outside of any batch, and nothing is kept. The answer is what a
command would get if it were decided next; by the time that it is asked, it may be another.
"""

from pennyweight.engine.overlay import ASSET, Standing
from pennyweight.engine.port import Store
from pennyweight.ledger.accounts import HOLDS_OPEN_MAX, Account
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.records import Record

_PAGE = 1_000


class WhatIf:
    """The committed facts, as `Facts`. Nothing is ever unloaded here."""

    def __init__(self, store: Store, standing: Standing, now: int) -> None:
        """`now` is the caller's clock in microseconds; the book's time goes on from its last commit."""
        head = store.head()
        self.time = max(now, head.committed_at + 1)
        self.sequence = head.sequence + 1
        self._counters = head.counters
        self._store = store
        self._standing = standing

    def account(self, account_id: str) -> Account | None:
        """See `Facts`."""
        return self._store.account(account_id)

    def accounts_of(self, holder: str) -> list[Account]:
        """See `Facts`."""
        return self._store.accounts(0, _PAGE, holder=holder)

    def hold(self, hold_id: int) -> Hold | None:
        """See `Facts`."""
        return self._store.hold(hold_id)

    def hold_of_reference(self, owner: str, reference: str) -> Hold | None:
        """See `Facts`."""
        return self._store.hold_of_reference(owner, reference)

    def open_holds(self, account_id: str) -> list[Hold]:
        """See `Facts`."""
        return self._store.holds(account_id, 0, HOLDS_OPEN_MAX)

    def entry(self, sequence: int) -> Entry | None:
        """See `Facts`."""
        return _decoded(self._store.entry(sequence))

    def entry_of_key(self, product: str, key: str) -> Entry | None:
        """See `Facts`."""
        return _decoded(self._store.receipt(product, key))

    def record(self, kind: str, record_id: str) -> Record | None:
        """See `Facts`."""
        return self._store.record(kind, record_id)

    def record_of_holder(self, holder: str, kind: str, record_id: str) -> Record | None:
        """See `Facts`."""
        record = self._store.record(kind, record_id)
        return record if record is not None and record.holder == holder else None

    def name(self, kind: str, name: str) -> str | None:
        """See `Facts`."""
        record = self._store.record_named(kind, name)
        return None if record is None else record.id

    def asset(self, name: str) -> Asset | None:
        """See `Facts`."""
        known = self._standing.assets.get(name)
        if known is not None:
            return known
        record = self._store.record(ASSET, name)
        return None if record is None else record.read(Asset)

    def counter(self, name: str) -> int:
        """See `Facts`."""
        return self._counters.get(name, 0)

    def cursor(self, name: str) -> int:
        """See `Facts`."""
        return self._store.cursors().get(name, 0)


def _decoded(body: bytes | None) -> Entry | None:
    return None if body is None else decode_entry(body)

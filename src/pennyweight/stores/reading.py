"""The half of a store that reads what is committed, alike wherever the rows are."""

from collections.abc import Iterable
from typing import Any

from pennyweight.engine.port import BatchHeader, Committed, Due, Head
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.records import Record


class Reading:
    """A store that hands every question about what is committed to its readers."""

    def __init__(self, readers: Committed) -> None:
        """`readers` may be asked from any thread."""
        self._committed = readers

    def head(self) -> Head:
        """See `Committed`."""
        return self._committed.head()

    def entries(
        self, after: int, limit: int, *, product: str | None = None, is_descending: bool = False
    ) -> list[tuple[int, bytes]]:
        """See `Committed`."""
        return self._committed.entries(after, limit, product=product, is_descending=is_descending)

    def entry(self, sequence: int) -> bytes | None:
        """See `Committed`."""
        return self._committed.entry(sequence)

    def batches(self, after: int, limit: int) -> list[tuple[BatchHeader, bytes]]:
        """See `Committed`."""
        return self._committed.batches(after, limit)

    def batch_at(
        self, *, sequence: int | None = None, time: int | None = None
    ) -> BatchHeader | None:
        """See `Committed`."""
        return self._committed.batch_at(sequence=sequence, time=time)

    def receipt(self, product: str, key: str) -> bytes | None:
        """See `Committed`."""
        return self._committed.receipt(product, key)

    def account(self, account_id: str) -> Account | None:
        """See `Committed`."""
        return self._committed.account(account_id)

    def accounts(
        self,
        after: int,
        limit: int,
        *,
        holder: str | None = None,
        asset: str | None = None,
        is_owing: bool = False,
    ) -> list[Account]:
        """See `Committed`."""
        return self._committed.accounts(after, limit, holder=holder, asset=asset, is_owing=is_owing)

    def hold(self, hold_id: int) -> Hold | None:
        """See `Committed`."""
        return self._committed.hold(hold_id)

    def hold_of_reference(self, owner: str, reference: str) -> Hold | None:
        """See `Committed`."""
        return self._committed.hold_of_reference(owner, reference)

    def holds(self, account_id: str, after: int, limit: int) -> list[Hold]:
        """See `Committed`."""
        return self._committed.holds(account_id, after, limit)

    def record(self, kind: str, record_id: str) -> Record | None:
        """See `Committed`."""
        return self._committed.record(kind, record_id)

    def records(
        self, kind: str, *, label: str | None = None, after: str = "", limit: int = 100
    ) -> list[Record]:
        """See `Committed`."""
        return self._committed.records(kind, label=label, after=after, limit=limit)

    def record_named(self, kind: str, name: str) -> Record | None:
        """See `Committed`."""
        return self._committed.record_named(kind, name)

    def due(
        self,
        index: str,
        low: int,
        high: int,
        *,
        after: tuple[int, str] | None = None,
        limit: int = 100,
    ) -> list[Due]:
        """See `Committed`."""
        return self._committed.due(index, low, high, after=after, limit=limit)

    def back_dated(self, account_id: str, effective_until: int, committed_after: int) -> int:
        """See `Committed`."""
        return self._committed.back_dated(account_id, effective_until, committed_after)

    def cursors(self) -> dict[str, int]:
        """See `Committed`."""
        return self._committed.cursors()

    def rows(self) -> Iterable[tuple[str, Any]]:
        """See `Committed`."""
        return self._committed.rows()

"""The store port: what the engine and its readers need kept, in about a dozen methods.

A store keeps one book. It holds rows and guards, never rules. Every store passes the one
contract suite. All methods are synchronous and may be called from any thread, but
`begin`, `append` and `adopt` only by the book's one writer.
"""

from collections.abc import Container, Iterable
from typing import Any, Protocol

import msgspec

from pennyweight.ledger.accounts import Account
from pennyweight.ledger.entries import CursorMove
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.records import Record


class StoreError(Exception):
    """The store could not do it. Base of the errors below."""


class StoreFailed(StoreError):
    """The disk or the database failed; what was being committed is unknown. The writer stops."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or cannot take this now; nothing was written. Try again.

    `code` is stable and for callers: `store_unavailable`, `store_read_only`, `store_full`, ...
    """

    def __init__(self, message: str, code: str = "store_unavailable") -> None:
        """`message` is for operators."""
        super().__init__(message)
        self.code = code


class OutcomeUnknown(StoreError):
    """Nobody knows whether the append was committed. `Store.resolve` finds out."""


class ConstraintFailed(StoreError):
    """A row or constraint contradicts this batch; nothing of it was written."""


class NotOwner(StoreError):
    """The guard (epoch, sequence) did not match: the book has another owner now."""


class NoBook(StoreError):
    """There is no book where one was to be opened."""


class StoreInUse(StoreError):
    """Another process has the book open."""

    def __init__(self, pid: int, by: str = "") -> None:
        """`pid` is the other process, or 0 where `by` says who it is."""
        super().__init__(f"in use by {by or f'pid {pid}'}")
        self.pid = pid


class SchemaDrift(StoreError):
    """The migrations in the store are not this version's."""


class Head(msgspec.Struct, frozen=True):
    """Where a book stands. `epoch` grows with each owner, `incarnation` names each life of the book.

    `chain` is the hash after the last batch, `committed_at` its time in microseconds.
    """

    book: str
    incarnation: str
    epoch: int = 0
    sequence: int = 0
    chain: bytes = bytes(32)
    committed_at: int = 0
    counters: dict[str, int] = {}


class BatchHeader(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The header of a batch; with the previous chain and the bodies' hashes it makes the next chain."""

    book: str
    incarnation: str
    epoch: int
    first_sequence: int
    count: int
    committed_at: int
    rules: int


class SealedBatch(msgspec.Struct, frozen=True, gc=False):
    """A header, the bodies it covers, and the chain after it."""

    header: BatchHeader
    bodies: list[bytes]
    chain: bytes


class KeyRow(msgspec.Struct, frozen=True, gc=False):
    """A key bound by an entry; unique by (product, key)."""

    product: str
    key: str
    sequence: int


class AccountRow(msgspec.Struct, frozen=True, gc=False):
    """An account after the batch, and the version the batch found (0: it is new)."""

    account: Account
    version_before: int


class RecordRow(msgspec.Struct, frozen=True, gc=False):
    """A record after the batch, and as the batch found it (None: it is new)."""

    record: Record
    before: Record | None


class HoldRow(msgspec.Struct, frozen=True, gc=False):
    """A hold after the batch, and as the batch found it (None: it is new)."""

    hold: Hold
    before: Hold | None


class BackDatedLine(msgspec.Struct, frozen=True, gc=False):
    """A posting whose effective date lies before its commit."""

    account: str
    effective_at: int
    sequence: int
    committed_at: int
    change: int


class Listing(msgspec.Struct, frozen=True, gc=False):
    """Where a record is found: `by` is "label" or "name" (the text is `place`), or "mark".

    A mark has the name of its index as `place`, and its `rank`, which is 0 for the others.
    """

    by: str
    place: str
    rank: int
    kind: str
    id: str


class Append(msgspec.Struct, frozen=True, gc=False):
    """Everything that one batch commits, in one transaction, guarded by `expected`.

    `products` names the product of each body, so that a product's entries can be listed.
    """

    expected: Head
    head: Head
    batch: SealedBatch
    products: list[str]
    keys: list[KeyRow]
    accounts: list[AccountRow]
    holds: list[HoldRow]
    records: list[RecordRow]
    back_dated: list[BackDatedLine]
    cursors: list[CursorMove]


class Reads(msgspec.Struct, gc=False):
    """What a batch wants to know, resolved by `begin` in one trip."""

    holders: set[str] = msgspec.field(default_factory=set)
    keys: set[tuple[str, str]] = msgspec.field(default_factory=set)
    key_entries: set[tuple[str, str]] = msgspec.field(default_factory=set)
    """Keys whose entry is wanted together with the holders it touched."""
    holds: set[int] = msgspec.field(default_factory=set)
    open_holds: set[str] = msgspec.field(default_factory=set)
    entries: set[int] = msgspec.field(default_factory=set)
    records: set[tuple[str, str]] = msgspec.field(default_factory=set)
    names: set[tuple[str, str]] = msgspec.field(default_factory=set)
    references: set[tuple[str, str]] = msgspec.field(default_factory=set)
    """Holds wanted by (owner, reference)."""
    room: int | None = None
    """Users whose data `begin` may return, see `Found.is_cut`; None for no bound."""


class Found(msgspec.Struct, gc=False):
    """What `begin` found. What was asked for and is absent maps to None, or to an empty list.

    `holders` also has the holders of the holds and all those that the entries and key
    entries touched, except the resident ones. `references` gives the id of the hold, which
    is in `holds`. Of the entry of a key that is not among `key_entries` a store may leave
    out what it did: command, fields and answer are enough. What no store can keep (a lone
    surrogate, an integer beyond 64 bits) is absent, never an error.
    If the customers (`user:` and `account:` holders) that are not resident and the bodies
    of keys and entries together are more than `Reads.room`, `is_cut` is True and nothing
    else is filled: the store stopped before it had read the one too many.
    """

    holders: dict[str, tuple[list[Account], list[Record]]] = msgspec.field(default_factory=dict)
    keys: dict[tuple[str, str], bytes | None] = msgspec.field(default_factory=dict)
    holds: dict[int, Hold | None] = msgspec.field(default_factory=dict)
    open_holds: dict[str, list[Hold]] = msgspec.field(default_factory=dict)
    entries: dict[int, bytes | None] = msgspec.field(default_factory=dict)
    records: dict[tuple[str, str], Record | None] = msgspec.field(default_factory=dict)
    names: dict[tuple[str, str], str | None] = msgspec.field(default_factory=dict)
    references: dict[tuple[str, str], int | None] = msgspec.field(default_factory=dict)
    is_cut: bool = False


class Due(msgspec.Struct, frozen=True, gc=False):
    """Something a due mark points to: a record, or a hold (kind "hold") on the index "hold_expiry"."""

    index: str
    rank: int
    kind: str
    id: str


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Who owns the book, until when (the store's own clock, microseconds), and where it listens.

    `now` is that clock when this was read. One that was given up has expires_at 0 and no address.
    """

    epoch: int
    owner: str
    address: str
    expires_at: int
    now: int


class Resolution(msgspec.Struct, frozen=True):
    """What became of an append: whether it was committed, and whether its owner still owns the book."""

    is_committed: bool
    is_owner: bool


class Traffic(msgspec.Struct, frozen=True):
    """What the writer has asked of a server so far: round trips, and bytes of what it told.

    Zeros where the book is kept by the process itself.
    """

    round_trips: int = 0
    bytes_sent: int = 0


class Committed(Protocol):
    """One book's rows as they are committed, for anybody, from any thread."""

    def head(self) -> Head:
        """Return where the book stands, as committed."""

    def entries(
        self, after: int, limit: int, *, product: str | None = None, is_descending: bool = False
    ) -> list[tuple[int, bytes]]:
        """Return (sequence, body) of entries after (descending: before) a sequence.

        In ascending (descending) order, at most `limit`, of one product or of all.
        """

    def entry(self, sequence: int) -> bytes | None:
        """Return one body."""

    def batches(self, after: int, limit: int) -> list[tuple[BatchHeader, bytes]]:
        """Return (header, chain) of batches whose first sequence is greater than `after`."""

    def batch_at(
        self, *, sequence: int | None = None, time: int | None = None
    ) -> BatchHeader | None:
        """Return the batch that holds a sequence, or the last one committed at or before a time.

        One of both is given; with neither, the last batch.
        """

    def receipt(self, product: str, key: str) -> bytes | None:
        """Return the body that bound a key."""

    def account(self, account_id: str) -> Account | None:
        """Return one account as committed."""

    def accounts(
        self,
        after: int,
        limit: int,
        *,
        holder: str | None = None,
        asset: str | None = None,
        is_owing: bool = False,
    ) -> list[Account]:
        """Return accounts by number, from the one after number `after`.

        Of one holder, of one asset, only those that owe something (`Account.owed`), or all.
        """

    def hold(self, hold_id: int) -> Hold | None:
        """Return one hold as committed."""

    def hold_of_reference(self, owner: str, reference: str) -> Hold | None:
        """Return the hold that its owner calls so, open or not, as committed."""

    def holds(self, account_id: str, after: int, limit: int) -> list[Hold]:
        """Return an account's open holds by id."""

    def record(self, kind: str, record_id: str) -> Record | None:
        """Return one record as committed."""

    def records(
        self, kind: str, *, label: str | None = None, after: str = "", limit: int = 100
    ) -> list[Record]:
        """Return records of a kind by id, text order, from the one after id `after`.

        With a label, those that carry it as a label or as a unique name.
        """

    def record_named(self, kind: str, name: str) -> Record | None:
        """Return the record that carries a unique name."""

    def due(
        self,
        index: str,
        low: int,
        high: int,
        *,
        after: tuple[int, str] | None = None,
        limit: int = 100,
    ) -> list[Due]:
        """Return what is marked on an index with low <= rank <= high, by (rank, id).

        Ids are in text order, from the one after (rank, id) `after`; records of different
        kinds on one index must not share ids. Open holds that expire are on "hold_expiry".
        """

    def back_dated(self, account_id: str, effective_until: int, committed_after: int) -> int:
        """Sum the back-dated postings effective until a moment but committed after another."""

    def cursors(self) -> dict[str, int]:
        """Return all cursors of readers of outside streams."""

    def rows(self) -> Iterable[tuple[str, Any]]:
        """Yield all rows, for verification, as of one moment.

        First ("head", Head) of that moment, then in any order ("account", Account),
        ("hold", Hold), ("record", Record), ("cursor", CursorMove), ("key", KeyRow),
        ("listing", Listing) and ("back_dated", BackDatedLine).
        """


class Store(Committed, Protocol):
    """One book's rows. See the module's docstring for who may call what."""

    @property
    def traffic(self) -> Traffic:
        """What went over the writer's line, of this process, since the store was opened."""

    def begin(self, reads: Reads, resident: Container[str]) -> Found:
        """Read what a batch wants. Holders in `resident` are known to the caller and left out."""

    def append(self, batch: Append) -> None:
        """Commit a batch durably, or not at all.

        Raises NotOwner when the head is not `expected`. Raises ConstraintFailed when a row
        is not as the batch found it, a version does not move on, a key, a name or a hold's
        reference is taken, a cursor is elsewhere, a balance breaks its floor or has more than 38
        digits, or something does not fit; in both cases nothing was written and the store
        goes on. Raises StoreUnavailable when nothing was written and the same append may be
        tried again, OutcomeUnknown when that must be asked first (`resolve`). Raises
        StoreFailed when the disk failed; the store then refuses everything that writes.
        """

    def resolve(self, batch: Append) -> Resolution:
        """Tell what became of an append whose outcome is unknown: fence, then read.

        Afterwards no earlier attempt at it can be committed any more. Called by the writer,
        as often as it takes. Raises StoreUnavailable.
        """

    def adopt(self, batch: Append) -> None:
        """Append a batch of another book's journal as it is (import): header and chain kept."""

    def claim(self, owner: str, address: str, life_microseconds: int) -> Lease | None:
        """Take or renew the book's lease, outside the journal, by the store's clock.

        A renewal keeps the epoch; a take-over of a lease that is free, given up or over
        (also one's own) adds 1 to it, and to the epoch of the head: appends that expect an
        older one raise NotOwner from then on. None while another owner's lease lasts.
        Raises StoreUnavailable.
        """

    def give_up(self, owner: str) -> None:
        """End this owner's lease at once."""

    def lease(self) -> Lease | None:
        """Return the lease as it stands, or None if there never was one."""

    def stage(self, name: str, value: str | None = None, *, is_first: bool = False) -> str | None:
        """Read, or set, one small setting outside the journal (a secret, an operator's mark).

        Returns the value as it is then, None if it was never set. With `is_first` a value
        that is there already stays, also where several set it at once.
        """

    def renew(self, incarnation: str) -> None:
        """Begin a new life of the book: batches from now on carry this incarnation.

        For a book that was restored from a backup. Nobody may serve it meanwhile.
        Raises StoreInUse while somebody's lease lasts.
        """

    def size_bytes(self) -> int:
        """Return how many bytes the book takes on disk (0 in memory)."""

    def close(self) -> None:
        """Release the book, which must not be used afterwards."""

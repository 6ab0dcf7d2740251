"""Appends made by hand, and all that a store has, in one comparable value."""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pennyweight.engine.chain import next_chain
from pennyweight.engine.port import (
    AccountRow,
    Append,
    BackDatedLine,
    BatchHeader,
    Head,
    HoldRow,
    KeyRow,
    RecordRow,
    SealedBatch,
    Store,
)
from pennyweight.ledger.accounts import Account, holder_of
from pennyweight.ledger.entries import CursorMove, Entry, encode_entry
from pennyweight.ledger.records import Mark, Record

INDEXES = ("hold_expiry", "review")


def append_of(
    head: Head,
    *,
    key: str = "",
    keys: Sequence[str] = (),
    products: Sequence[str] = ("ledger",),
    accounts: Iterable[tuple[Account, int]] = (),
    records: Iterable[tuple[Record, Record | None]] = (),
    holds: Iterable[HoldRow] = (),
    back_dated: Iterable[BackDatedLine] = (),
    cursors: Iterable[CursorMove] = (),
    committed_at: int | None = None,
) -> Append:
    """Return a batch on this head: one entry for each product, the first ones with these keys."""
    bound = list(keys) or ([key] if key else [])
    first = head.sequence + 1
    entries = [
        Entry(
            sequence=first + position,
            command="test",
            product=product,
            key=bound[position] if position < len(bound) else "",
        )
        for position, product in enumerate(products)
    ]
    bodies = [encode_entry(entry) for entry in entries]
    time = head.committed_at + 1_000 if committed_at is None else committed_at
    header = BatchHeader(head.book, head.incarnation, head.epoch, first, len(bodies), time, 1)
    chain = next_chain(head.chain, header, bodies)
    return Append(
        head,
        msgspec.structs.replace(
            head,
            sequence=head.sequence + len(bodies),
            chain=chain,
            committed_at=time,
            counters={"batches": head.counters.get("batches", 0) + 1},
        ),
        SealedBatch(header, bodies, chain),
        list(products),
        [KeyRow(entry.product, entry.key, entry.sequence) for entry in entries if entry.key],
        [AccountRow(account, before) for account, before in accounts],
        list(holds),
        [RecordRow(record, before) for record, before in records],
        list(back_dated),
        list(cursors),
    )


def account(number: int, account_id: str, posted: int = 0, **more: Any) -> Account:
    """Return an account as an entry would leave it; version 1 and floor 0 unless given."""
    facts: dict[str, Any] = {"floor": 0, "version": 1, **more}
    asset = account_id.rpartition(":")[2]
    return Account(number, account_id, holder_of(account_id), asset, posted=posted, **facts)


def record(record_id: str, version: int = 1, *, kind: str = "note", **more: Any) -> Record:
    """Return a record; `marks` are pairs of index and rank."""
    marks = tuple(Mark(*mark) for mark in more.pop("marks", ()))
    body = msgspec.Raw(b'{"version":%d}' % version)
    return Record(kind, record_id, "notes", version, body, marks=marks, **more)


def dump(store: Store) -> list[bytes]:
    """Return everything that a store's readers can see, in an order of its own."""
    rows = list(store.rows())
    lines: list[Any] = [*rows]
    lines += [("entry", row) for row in store.entries(0, 100_000)]
    lines += [("batch", row) for row in store.batches(0, 100_000)]
    lines.append(("head now", store.head()))
    for kind, row in rows:
        if kind == "account":
            lines += [("open", hold) for hold in store.holds(row.id, 0, 10_000)]
            late = store.back_dated(row.id, 2**62, 0)
            lines.append(("back-dated", row.id, late))
        elif kind == "record":
            for label in (*row.labels, *row.names):
                found = store.records(row.kind, label=label, limit=10_000)
                lines.append(("label", label, found))
            lines += [("name", store.record_named(row.kind, name)) for name in row.names]
        elif kind == "key":
            lines.append(("receipt", row.product, row.key, store.receipt(row.product, row.key)))
    for index in INDEXES:
        lines += [("due", due) for due in store.due(index, -(2**63), 2**63 - 1, limit=10_000)]
    return sorted(msgspec.json.encode(line) for line in lines)

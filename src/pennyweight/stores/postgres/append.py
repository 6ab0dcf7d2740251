"""The append: one statement that guards the head, writes every row, and counts what it changed.

All rows depend on the head's `RETURNING`: where the guard does not match, nothing is written.
Where it does and a change counts other rows than it should, the statement divides the batch
from the book: it fails as a whole. What a batch does not have is not in its statement, so that the
common ones stay short; each text is made once and prepared once per connection.

What an update or a delete joins is behind `OFFSET 0`, with the book in it: so the server can only
begin there and look each row up by its whole key, whatever it knows of the tables.

No statement touches a row twice, as all its parts see the book as it was. A name that one
record gives up and another takes moves in place.
"""

# ruff: noqa: S608 - statements are put together from constants; values are parameters

import re
from collections.abc import Iterable
from functools import cache

import msgspec

from pennyweight.engine.port import Append, ConstraintFailed, HoldRow, RecordRow
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.entries import CursorMove
from pennyweight.stores import encoding
from pennyweight.stores.postgres import codec
from pennyweight.stores.postgres.channel import Statement, statement

NO_HEAD = b"0"
"""What the statement returns when the guard does not match."""


class Part(msgspec.Struct, frozen=True):
    """A part of the statement. `?` stands for its parameters, of which bytes travel as such.

    One with a `complaint` must change as many rows as one more parameter says.
    """

    sql: str
    complaint: str = ""

    @property
    def formats(self) -> list[int]:
        """The formats of the parameters."""
        return [int(cast.startswith("bytea")) for cast in self.casts]

    @property
    def casts(self) -> list[str]:
        """The types of the parameters, "" where the server sees it by itself."""
        return re.findall(r"\?(?:::(\w+))?", self.sql)


_HEAD = Part(
    """
    UPDATE pennyweight.heads
    SET epoch = ?::bigint, sequence = ?::bigint, chain = ?::bytea, committed_at = ?::bigint,
        counters = ?, incarnation = ?
    WHERE book = $7 AND epoch = $8 AND sequence = $9 AND chain = $10::bytea AND fence = $11
    RETURNING book
    """,
)
_GUARD = (0, 0, 0, 1, 0)
"""Formats of book, epoch, sequence, chain and fence, $7 to $11."""

PARTS: dict[str, Part] = {
    "batch": Part(
        """
        INSERT INTO pennyweight.batches (book, first_sequence, committed_at, header, chain)
        SELECT head.book, $9::bigint + 1, ?::bigint, ?::bytea, $3::bytea FROM head
        """,
    ),
    "entries": Part(
        """
        INSERT INTO pennyweight.entries (book, sequence, product, body)
        SELECT head.book, $9::bigint + new.place, new.product, new.body
        FROM head, unnest($14::text[], ?::bytea[]) WITH ORDINALITY AS new (product, body, place)
        """,
    ),
    "entries_keys": Part(
        """
        INSERT INTO pennyweight.keys (book, product, key, sequence)
        SELECT head.book, new.product, new.key, $9::bigint + new.place
        FROM head, unnest($14::text[], ?::text[]) WITH ORDINALITY AS new (product, key, place)
        """,
    ),
    "keys": Part(
        """
        INSERT INTO pennyweight.keys (book, product, key, sequence)
        SELECT head.book, new.product, new.key, new.sequence
        FROM head, unnest(?::text[], ?::text[], ?::bigint[]) AS new (product, key, sequence)
        """,
    ),
    "plain_accounts": Part(
        """
        UPDATE pennyweight.accounts AS old
        SET posted = new.posted, version = new.version, lines = new.lines, roots = new.roots,
            held = 0, owed = 0, open_holds = 0, is_closed = false
        FROM (
            SELECT head.book, new.* FROM head, unnest(?::bigint[], ?::bigint[], ?::numeric[], ?::bigint[], ?::bigint[],
                          ?::text[])
                AS new (number, before, posted, version, lines, roots) OFFSET 0
        ) AS new
        WHERE old.book = new.book AND old.number = new.number AND old.version = new.before
        RETURNING 1
        """,
        "an account was changed by another writer",
    ),
    "accounts": Part(
        """
        UPDATE pennyweight.accounts AS old
        SET posted = new.posted, version = new.version, lines = new.lines, roots = new.roots,
            held = new.held, owed = new.owed, open_holds = new.open_holds,
            is_closed = new.is_closed
        FROM (
            SELECT head.book, new.* FROM head, unnest(?::bigint[], ?::bigint[], ?::numeric[], ?::bigint[], ?::bigint[],
                          ?::text[], ?::numeric[], ?::numeric[], ?::bigint[], ?::boolean[])
                AS new (number, before, posted, version, lines, roots, held, owed, open_holds,
                    is_closed) OFFSET 0
        ) AS new
        WHERE old.book = new.book AND old.number = new.number AND old.version = new.before
        RETURNING 1
        """,
        "an account was changed by another writer",
    ),
    "new_accounts": Part(
        """
        INSERT INTO pennyweight.accounts (book, number, id, holder, asset, floor, posted, held,
                                          owed, open_holds, version, lines, roots, is_closed)
        SELECT head.book, new.*
        FROM head, unnest(?::bigint[], ?::text[], ?::text[], ?::text[], ?::numeric[], ?::numeric[],
                          ?::numeric[], ?::numeric[], ?::bigint[], ?::bigint[], ?::bigint[],
                          ?::text[], ?::boolean[]) AS new
        """,
    ),
    "holds": Part(
        """
        UPDATE pennyweight.holds AS old
        SET remaining = new.remaining, state = new.state, expires_at = new.expires_at,
            changed_by = new.changed_by
        FROM (
            SELECT head.book, new.* FROM head, unnest(?::bigint[], ?::numeric[], ?::text[], ?::bigint[], ?::bigint[],
                          ?::text[], ?::numeric[])
                AS new (id, remaining, state, expires_at, changed_by, state_before, remaining_before) OFFSET 0
        ) AS new
        WHERE old.book = new.book AND old.id = new.id AND old.state = new.state_before
            AND old.remaining = new.remaining_before
        RETURNING 1
        """,
        "a hold was changed by another writer",
    ),
    "new_holds": Part(
        """
        INSERT INTO pennyweight.holds (book, id, account, asset, amount, remaining, owner, state,
                                       expires_at, reference, placed_at, changed_by)
        SELECT head.book, new.*
        FROM head, unnest(?::bigint[], ?::text[], ?::text[], ?::numeric[], ?::numeric[],
                          ?::text[], ?::text[], ?::bigint[], ?::text[], ?::bigint[], ?::bigint[])
            AS new
        """,
    ),
    "records": Part(
        """
        UPDATE pennyweight.records AS old
        SET version = new.version, holder = new.holder, record = new.record
        FROM (
            SELECT head.book, new.* FROM head, unnest(?::text[], ?::text[], ?::bigint[], ?::text[], ?::bytea[], ?::bigint[])
                AS new (kind, id, version, holder, record, before) OFFSET 0
        ) AS new
        WHERE old.book = new.book AND old.kind = new.kind AND old.id = new.id
            AND old.version = new.before
        RETURNING 1
        """,
        "a record was changed by another writer",
    ),
    "new_records": Part(
        """
        INSERT INTO pennyweight.records (book, kind, id, version, holder, record)
        SELECT head.book, new.*
        FROM head, unnest(?::text[], ?::text[], ?::bigint[], ?::text[], ?::bytea[]) AS new
        """,
    ),
    "labels_gone": Part(
        """
        DELETE FROM pennyweight.labels AS old
        USING (
            SELECT head.book, gone.* FROM head, unnest(?::text[], ?::text[], ?::text[])
                AS gone (kind, label, id) OFFSET 0
        ) AS gone
        WHERE old.book = gone.book AND old.kind = gone.kind AND old.label = gone.label
            AND old.id = gone.id
        RETURNING 1
        """,
        "a label was changed by another writer",
    ),
    "labels_come": Part(
        """
        INSERT INTO pennyweight.labels (book, kind, label, id)
        SELECT head.book, new.* FROM head, unnest(?::text[], ?::text[], ?::text[]) AS new
        """,
    ),
    "names_moved": Part(
        """
        UPDATE pennyweight.names AS old
        SET id = new.id
        FROM (
            SELECT head.book, new.* FROM head, unnest(?::text[], ?::text[], ?::text[], ?::text[])
                AS new (kind, name, id, before) OFFSET 0
        ) AS new
        WHERE old.book = new.book AND old.kind = new.kind AND old.name = new.name
            AND old.id = new.before
        RETURNING 1
        """,
        "a name was changed by another writer",
    ),
    "names_gone": Part(
        """
        DELETE FROM pennyweight.names AS old
        USING (
            SELECT head.book, gone.* FROM head, unnest(?::text[], ?::text[], ?::text[])
                AS gone (kind, name, id) OFFSET 0
        ) AS gone
        WHERE old.book = gone.book AND old.kind = gone.kind AND old.name = gone.name
            AND old.id = gone.id
        RETURNING 1
        """,
        "a name was changed by another writer",
    ),
    "names_come": Part(
        """
        INSERT INTO pennyweight.names (book, kind, name, id)
        SELECT head.book, new.* FROM head, unnest(?::text[], ?::text[], ?::text[]) AS new
        """,
    ),
    "marks_gone": Part(
        """
        DELETE FROM pennyweight.marks AS old
        USING (
            SELECT head.book, gone.* FROM head, unnest(?::text[], ?::bigint[], ?::text[], ?::text[])
                AS gone (place, rank, id, kind) OFFSET 0
        ) AS gone
        WHERE old.book = gone.book AND old.place = gone.place AND old.rank = gone.rank
            AND old.id = gone.id AND old.kind = gone.kind
        RETURNING 1
        """,
        "a mark was changed by another writer",
    ),
    "marks_come": Part(
        """
        INSERT INTO pennyweight.marks (book, place, rank, id, kind)
        SELECT head.book, new.*
        FROM head, unnest(?::text[], ?::bigint[], ?::text[], ?::text[]) AS new
        """,
    ),
    "back_dated": Part(
        """
        INSERT INTO pennyweight.back_dated (book, account, effective_at, sequence, committed_at,
                                            change, position)
        SELECT head.book, new.*
        FROM head, unnest(?::text[], ?::bigint[], ?::bigint[], ?::bigint[], ?::numeric[])
            WITH ORDINALITY AS new
        """,
    ),
    "cursors": Part(
        """
        UPDATE pennyweight.cursors AS old
        SET position = new.position
        FROM (
            SELECT head.book, new.* FROM head, unnest(?::text[], ?::bigint[], ?::bigint[])
                AS new (name, position, before) OFFSET 0
        ) AS new
        WHERE old.book = new.book AND old.name = new.name AND old.position = new.before
        RETURNING 1
        """,
        "a cursor is elsewhere",
    ),
    "cursors_from_zero": Part(
        """
        INSERT INTO pennyweight.cursors AS old (book, name, position)
        SELECT head.book, new.* FROM head, unnest(?::text[], ?::bigint[]) AS new
        ON CONFLICT (book, name) DO UPDATE SET position = excluded.position WHERE old.position = 0
        RETURNING 1
        """,
        "a cursor is elsewhere",
    ),
}


@cache
def _statement(names: tuple[str, ...]) -> Statement:
    """Return the statement of these parts; the head's goes before them."""
    formats = [*_HEAD.formats, *_GUARD]
    ctes = [f"head AS ({_numbered(_HEAD.sql, 0)})"]
    complaints = []
    for name in names:
        part = PARTS[name]
        if name == "entries":
            formats.append(0)  # the products, which the keys share
        ctes.append(f"{name} AS ({_numbered(part.sql, len(formats))})")
        formats += part.formats
        if part.complaint:
            formats.append(0)
            counted = f"(SELECT count(*) FROM {name})"
            complaints.append(
                f"WHEN {counted} <> ${len(formats)}::bigint"
                f" THEN ('{part.complaint}: ' || {counted})::integer"
            )
    sql = (
        f"WITH {', '.join(ctes)} SELECT (CASE WHEN NOT EXISTS (SELECT FROM head) THEN 0 "
        f"{' '.join(complaints)} ELSE 1 END)::text"
    )
    return statement(sql, *formats)


def _numbered(sql: str, before: int) -> str:
    """Return a part with its parameters numbered, those of the parts before it left out."""
    pieces = sql.split("?")
    numbered = [f"${before + place}{piece}" for place, piece in enumerate(pieces[1:], 1)]
    return "".join([pieces[0], *numbered])


def compose(batch: Append, fence: int) -> tuple[Statement, list[bytes]]:
    """Return the statement of a batch, and its parameters.

    Raises ConstraintFailed, and UnicodeEncodeError for what no store can keep.
    """
    expected, head, header, bodies = (
        batch.expected,
        batch.head,
        batch.batch.header,
        batch.batch.bodies,
    )
    products = batch.products
    names = ["batch", "entries"]
    values = [
        b"%d" % head.epoch,
        b"%d" % head.sequence,
        head.chain,
        b"%d" % head.committed_at,
        encoding.counters_to_blob(head.counters),
        head.incarnation.encode(),
        head.book.encode(),
        b"%d" % expected.epoch,
        b"%d" % expected.sequence,
        expected.chain,
        b"%d" % fence,
        b"%d" % header.committed_at,
        encoding.header_to_blob(header),
        codec.texts(products),
        codec.blobs(bodies),
    ]
    if batch.keys:
        _put_keys(names, values, batch)
    if batch.accounts:
        _put_accounts(names, values, batch)
    if batch.holds:
        _put_holds(names, values, batch.holds)
    if batch.records:
        _put_records(names, values, batch.records)
    if batch.back_dated:
        names.append("back_dated")
        lines = batch.back_dated
        values += [
            codec.texts([line.account for line in lines]),
            codec.numbers([line.effective_at for line in lines]),
            codec.numbers([line.sequence for line in lines]),
            codec.numbers([line.committed_at for line in lines]),
            codec.numbers([line.change for line in lines]),
        ]
    if batch.cursors:
        _put_cursors(names, values, batch.cursors)
    return _statement(tuple(names)), values


def _put_keys(names: list[str], values: list[bytes], batch: Append) -> None:
    """Keys that are those of the entries, in their order, share the entries' products."""
    keys = batch.keys
    first = batch.expected.sequence + 1
    bound = [row.key for row in keys]
    if [row.sequence for row in keys] == list(range(first, first + len(batch.products))) and [
        row.product for row in keys
    ] == batch.products:
        names.append("entries_keys")
        values.append(codec.texts(bound))
        return
    names.append("keys")
    values += [
        codec.texts([row.product for row in keys]),
        codec.texts(bound),
        codec.numbers([row.sequence for row in keys]),
    ]


def _put_accounts(names: list[str], values: list[bytes], batch: Append) -> None:
    """Changed accounts, and new ones. Raises ConstraintFailed."""
    rows = batch.accounts
    accounts = [row.account for row in rows]
    before = [row.version_before for row in rows]
    versions = [account.version for account in accounts]
    for version, version_before in zip(versions, before, strict=True):
        if version <= version_before:
            raise ConstraintFailed("the version of an account does not move on")
    if 0 in before:
        new = [row.account for row in rows if not row.version_before]
        accounts = [row.account for row in rows if row.version_before]
        before = [version for version in before if version]
        versions = [account.version for account in accounts]
        names.append("new_accounts")
        values += _new_accounts(new)
    if not accounts:
        return
    values += [
        codec.numbers([account.number for account in accounts]),
        codec.numbers(before),
        codec.numbers([account.posted for account in accounts]),
        codec.numbers(versions),
        codec.numbers([account.lines for account in accounts]),
        codec.roots([account.roots for account in accounts]),
    ]
    if any(a.held or a.owed or a.open_holds or a.is_closed for a in accounts):
        names.append("accounts")
        values += [
            codec.numbers([account.held for account in accounts]),
            codec.numbers([account.owed for account in accounts]),
            codec.numbers([account.open_holds for account in accounts]),
            codec.numbers([account.is_closed for account in accounts]),
        ]
    else:
        names.append("plain_accounts")
    values.append(b"%d" % len(accounts))


def _new_accounts(accounts: list[Account]) -> list[bytes]:
    return [
        codec.numbers([account.number for account in accounts]),
        codec.texts([account.id for account in accounts]),
        codec.texts([account.holder for account in accounts]),
        codec.texts([account.asset for account in accounts]),
        codec.numbers([account.floor for account in accounts]),
        codec.numbers([account.posted for account in accounts]),
        codec.numbers([account.held for account in accounts]),
        codec.numbers([account.owed for account in accounts]),
        codec.numbers([account.open_holds for account in accounts]),
        codec.numbers([account.version for account in accounts]),
        codec.numbers([account.lines for account in accounts]),
        codec.roots([account.roots for account in accounts]),
        codec.numbers([account.is_closed for account in accounts]),
    ]


def _put_holds(names: list[str], values: list[bytes], rows: list[HoldRow]) -> None:
    changed = [(row.hold, row.before) for row in rows if row.before is not None]
    new = [row.hold for row in rows if row.before is None]
    if changed:
        names.append("holds")
        values += [
            codec.numbers([hold.id for hold, _ in changed]),
            codec.numbers([hold.remaining for hold, _ in changed]),
            codec.texts([hold.state.value for hold, _ in changed]),
            codec.numbers([hold.expires_at for hold, _ in changed]),
            codec.numbers([hold.changed_by for hold, _ in changed]),
            codec.texts([before.state.value for _, before in changed]),
            codec.numbers([before.remaining for _, before in changed]),
            b"%d" % len(changed),
        ]
    if new:
        names.append("new_holds")
        values += [
            codec.numbers([hold.id for hold in new]),
            codec.texts([hold.account for hold in new]),
            codec.texts([hold.asset for hold in new]),
            codec.numbers([hold.amount for hold in new]),
            codec.numbers([hold.remaining for hold in new]),
            codec.texts([hold.owner for hold in new]),
            codec.texts([hold.state.value for hold in new]),
            codec.numbers([hold.expires_at for hold in new]),
            codec.texts([hold.reference for hold in new]),
            codec.numbers([hold.placed_at for hold in new]),
            codec.numbers([hold.changed_by for hold in new]),
        ]


def _put_records(names: list[str], values: list[bytes], rows: list[RecordRow]) -> None:
    """Records, and what lists them as far as it changed. Raises ConstraintFailed."""
    new = [row.record for row in rows if row.before is None]
    changed = [(row.record, row.before) for row in rows if row.before is not None]
    for record, before in changed:
        if record.version <= before.version:
            raise ConstraintFailed(f"the version of {record.kind} {record.id} does not move on")
    for name, records in (("new_records", new), ("records", [record for record, _ in changed])):
        if records:
            names.append(name)
            values += [
                codec.texts([record.kind for record in records]),
                codec.texts([record.id for record in records]),
                codec.numbers([record.version for record in records]),
                codec.texts([record.holder for record in records]),
                codec.blobs([encoding.record_to_blob(record) for record in records]),
            ]
    if changed:
        values += [
            codec.numbers([before.version for _, before in changed]),
            b"%d" % len(changed),
        ]
    _put_listings(names, values, rows)


def _put_listings(names: list[str], values: list[bytes], rows: list[RecordRow]) -> None:
    gone, come = encoding.relisted(rows)
    labels_gone, names_gone, marks_gone = gone
    labels_come, names_come, marks_come = come
    moved = []
    if names_gone and names_come:
        freed = {listed[:2]: listed for listed in names_gone}
        for taken in sorted(names_come):
            left = freed.pop(taken[:2], None)
            if left is not None:
                moved.append((*taken, left[2]))
                names_come.discard(taken)
                names_gone.discard(left)
    _put_rows(names, values, "labels_gone", sorted(labels_gone))
    _put_rows(names, values, "labels_come", sorted(labels_come))
    _put_rows(names, values, "names_moved", moved)
    _put_rows(names, values, "names_gone", sorted(names_gone))
    _put_rows(names, values, "names_come", sorted(names_come))
    _put_rows(names, values, "marks_gone", sorted(marks_gone))
    _put_rows(names, values, "marks_come", sorted(marks_come))


def _put_rows(names: list[str], values: list[bytes], name: str, rows: list[encoding.Row]) -> None:
    """Put a part whose parameters are the columns of rows."""
    if not rows:
        return
    part = PARTS[name]
    names.append(name)
    for column, cast in zip(zip(*rows, strict=True), part.casts, strict=True):
        values.append(codec.texts(column) if cast == "text" else codec.numbers(column))
    if part.complaint:
        values.append(b"%d" % len(rows))


def _put_cursors(names: list[str], values: list[bytes], moves: Iterable[CursorMove]) -> None:
    """Compare and set; a cursor that is not there is at 0."""
    for name, rows in (
        ("cursors", [(m.name, m.after, m.before) for m in moves if m.before]),
        ("cursors_from_zero", [(m.name, m.after) for m in moves if not m.before]),
    ):
        _put_rows(names, values, name, rows)

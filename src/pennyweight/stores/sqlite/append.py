"""The append: every row of a batch, each change conditional on what the batch found."""

from collections.abc import Iterable

import apsw

from pennyweight.engine.port import (
    AccountRow,
    Append,
    BackDatedLine,
    ConstraintFailed,
    HoldRow,
    NotOwner,
    RecordRow,
)
from pennyweight.ledger.entries import CursorMove
from pennyweight.stores import encoding
from pennyweight.stores.sqlite import codec
from pennyweight.stores.sqlite.keys import KeyIndex

_INSERT_ACCOUNT = """
    INSERT INTO accounts (number, id, holder, asset, floor, least, posted, held, owed,
                          open_holds, version, lines, roots, is_closed)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_UPDATE_ACCOUNT = """
    UPDATE accounts
    SET posted = ?, held = ?, owed = ?, least = ?, open_holds = ?, version = ?, lines = ?,
        roots = ?, is_closed = ?
    WHERE number = ? AND version = ?
"""
_UPDATE_HOLD = """
    UPDATE holds SET remaining = ?, state = ?, expires_at = ?, changed_by = ?
    WHERE id = ? AND state = ? AND remaining = ?
"""
_UPDATE_RECORD = """
    UPDATE records SET version = ?, holder = ?, record = ?
    WHERE kind = ? AND id = ? AND version = ?
"""
_DELETE_LISTINGS = (
    "DELETE FROM labels WHERE kind = ? AND label = ? AND id = ?",
    "DELETE FROM names WHERE kind = ? AND name = ? AND id = ?",
    "DELETE FROM marks WHERE place = ? AND rank = ? AND id = ? AND kind = ?",
)
_INSERT_LISTINGS = (
    "INSERT INTO labels VALUES (?, ?, ?)",
    "INSERT INTO names VALUES (?, ?, ?)",
    "INSERT INTO marks VALUES (?, ?, ?, ?)",
)
_UPDATE_HEAD = """
    UPDATE head SET incarnation = ?, epoch = ?, sequence = ?, chain = ?, committed_at = ?,
                    counters = ?
    WHERE epoch = ? AND sequence = ? AND chain = ?
"""


def write(connection: apsw.Connection, keys: KeyIndex, batch: Append) -> None:
    """Write all rows of a batch. Raises NotOwner, ConstraintFailed, apsw.ConstraintError."""
    expected, head = batch.expected, batch.head
    connection.execute(
        _UPDATE_HEAD,
        (
            head.incarnation,
            head.epoch,
            head.sequence,
            head.chain,
            head.committed_at,
            encoding.counters_to_blob(head.counters).decode(),
            expected.epoch,
            expected.sequence,
            expected.chain,
        ),
    )
    if connection.changes() != 1:
        raise NotOwner("the head of the book moved")
    header = batch.batch.header
    connection.execute(
        "INSERT INTO batches VALUES (?, ?, ?, ?)",
        (
            header.first_sequence,
            header.committed_at,
            encoding.header_to_blob(header),
            batch.batch.chain,
        ),
    )
    first = header.first_sequence
    connection.executemany(
        "INSERT INTO entries VALUES (?, ?, ?)",
        zip(range(first, first + header.count), batch.products, batch.batch.bodies, strict=True),
    )
    keys.add(connection, batch.keys, head.sequence)
    if batch.accounts:
        _write_accounts(connection, batch.accounts)
    if batch.holds:
        _write_holds(connection, batch.holds)
    if batch.records:
        _write_records(connection, batch.records)
    if batch.back_dated:
        _write_back_dated(connection, batch.back_dated)
    if batch.cursors:
        _move_cursors(connection, batch.cursors)


def _change(connection: apsw.Connection, sql: str, rows: list[encoding.Row], message: str) -> None:
    """Run a conditional change once per row; each must change exactly one."""
    before = connection.total_changes()
    connection.executemany(sql, rows)
    if connection.total_changes() - before != len(rows):
        raise ConstraintFailed(message)


def _write_accounts(connection: apsw.Connection, rows: list[AccountRow]) -> None:
    changed_account_row = codec.changed_account_row
    changed: list[encoding.Row] = []
    for row in rows:
        if row.account.version <= row.version_before:
            raise ConstraintFailed(f"the version of account {row.account.id} does not move on")
        if row.version_before:
            changed.append(changed_account_row(row.account, row.version_before))
    if len(changed) < len(rows):
        new = [codec.new_account_row(row.account) for row in rows if not row.version_before]
        connection.executemany(_INSERT_ACCOUNT, new)
    _change(connection, _UPDATE_ACCOUNT, changed, "an account was changed by another writer")


def _write_holds(connection: apsw.Connection, rows: list[HoldRow]) -> None:
    new = [codec.new_hold_row(row.hold) for row in rows if row.before is None]
    connection.executemany("INSERT INTO holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", new)
    changed = [codec.changed_hold_row(row.hold, row.before) for row in rows if row.before]
    _change(connection, _UPDATE_HOLD, changed, "a hold was changed by another writer")


def _write_records(connection: apsw.Connection, rows: list[RecordRow]) -> None:
    """Write records, and what lists them as far as it changed; names are freed first."""
    new: list[encoding.Row] = []
    changed: list[encoding.Row] = []
    for row in rows:
        record, before = row.record, row.before
        blob = encoding.record_to_blob(record)
        if before is None:
            new.append((record.kind, record.id, record.version, record.holder, blob))
        elif record.version <= before.version:
            raise ConstraintFailed(f"the version of {record.kind} {record.id} does not move on")
        else:
            changed.append(
                (record.version, record.holder, blob, record.kind, record.id, before.version)
            )
    connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", new)
    _change(connection, _UPDATE_RECORD, changed, "a record was changed by another writer")
    gone, come = encoding.relisted(rows)
    for rows_gone, delete in zip(gone, _DELETE_LISTINGS, strict=True):
        if rows_gone:
            connection.executemany(delete, sorted(rows_gone))
    for rows_come, insert in zip(come, _INSERT_LISTINGS, strict=True):
        if rows_come:
            connection.executemany(insert, sorted(rows_come))


def _write_back_dated(connection: apsw.Connection, lines: Iterable[BackDatedLine]) -> None:
    connection.executemany(
        "INSERT INTO back_dated VALUES (?, ?, ?, ?, ?)",
        [
            (
                line.account,
                line.effective_at,
                line.sequence,
                line.committed_at,
                codec.amount_to_blob(line.change),
            )
            for line in lines
        ],
    )


def _move_cursors(connection: apsw.Connection, moves: Iterable[CursorMove]) -> None:
    """Compare and set; a cursor that is not there is at 0."""
    for move in moves:
        if move.before == 0:
            _change(
                connection,
                "INSERT INTO cursors VALUES (?, ?) ON CONFLICT (name)"
                " DO UPDATE SET position = excluded.position WHERE position = 0",
                [(move.name, move.after)],
                f"cursor {move.name} is not at 0",
            )
        else:
            _change(
                connection,
                "UPDATE cursors SET position = ? WHERE name = ? AND position = ?",
                [(move.after, move.name, move.before)],
                f"cursor {move.name} is not at {move.before}",
            )

"""The one writer: what a batch reads before it is decided, and its append."""

import json
import threading
from collections.abc import Callable, Container
from typing import Any, TypeVar

import apsw

from pennyweight.engine.port import (
    Append,
    ConstraintFailed,
    Found,
    Lease,
    NotOwner,
    Reads,
    StoreError,
    StoreFailed,
    StoreInUse,
)
from pennyweight.ledger.accounts import holder_of
from pennyweight.ledger.entries import decode_entry
from pennyweight.stores import encoding
from pennyweight.stores.room import Room, RoomOver
from pennyweight.stores.sqlite import codec
from pennyweight.stores.sqlite.append import write
from pennyweight.stores.sqlite.keys import KeyIndex

_ACCOUNTS_OF_HOLDERS = """
    SELECT number, id, holder, asset, floor, posted, held, owed, open_holds, version, lines,
           roots, is_closed
    FROM accounts WHERE holder IN (SELECT value FROM json_each(?)) ORDER BY number
"""
_RECORDS_OF_HOLDERS = """
    SELECT record FROM records
    WHERE holder <> '' AND holder IN (SELECT value FROM json_each(?))
"""
_OPEN_HOLDS = "SELECT * FROM holds WHERE account = ? AND state = 'open' ORDER BY id"
_TOUCHED = """
    SELECT DISTINCT line.value ->> 0
    FROM entries, json_each(CAST(substr(body, 2) AS TEXT), '$.lines') AS line
    WHERE sequence = ?
"""
_BODY = "SELECT body FROM entries WHERE sequence = ?"
_HOLDS = "FROM holds WHERE id IN (SELECT value FROM json_each(?))"
_HOLDS_OF_REFERENCES = """
    FROM holds
    WHERE owner = ? AND reference <> '' AND reference IN (SELECT value FROM json_each(?))
"""

_CONTRADICTIONS = (StoreError, apsw.ConstraintError, OverflowError, TypeError, ValueError)

T = TypeVar("T")


class Writer:
    """The connection that writes. After an error that is no constraint it refuses everything."""

    def __init__(self, connection: apsw.Connection, keys: KeyIndex) -> None:
        """`connection` is the writer's own; nobody else writes the file."""
        self.connection = connection
        self.lock = threading.RLock()
        """Held for each transaction: leases and settings may be written from other threads."""
        self._keys = keys
        self._failure: BaseException | None = None

    def check_usable(self) -> None:
        """Raise StoreFailed if an earlier error stopped this writer."""
        if self._failure is not None:
            raise StoreFailed(f"the store stopped: {self._failure}") from self._failure

    def fail(self, error: BaseException) -> None:
        """Stop for good: the disk's state is unknown."""
        self._failure = self._failure or error

    # ── reading for a batch ───────────────────────────────────────────────────────

    def begin(self, reads: Reads, resident: Container[str]) -> Found:
        """See `Store`."""
        found = Found()
        room = None if reads.room is None else Room(reads.room, resident)
        with self.lock:
            self.check_usable()
            if reads == Reads(room=reads.room):
                return found
            try:
                self.connection.execute("BEGIN")
                try:
                    self._find(reads, resident, found, room)
                except RoomOver:
                    found = Found(is_cut=True)
                finally:
                    self.connection.execute("COMMIT")
            except apsw.Error as error:
                self.fail(error)
                raise StoreFailed(str(error)) from error
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
        if reads.entries:
            holders = holders | self._find_entries(reads, found, room)
        if reads.holds or reads.references:
            holders = holders | self._find_holds(reads, found, room)
        if reads.open_holds or reads.records or reads.names:
            self._find_rows(reads, found)
        self._find_holders([holder for holder in holders if holder not in resident], found)

    def _find_holders(self, holders: list[str], found: Found) -> None:
        """Find what holders have, one statement for all accounts and one for all records."""
        if not holders:
            return
        for holder in holders:
            found.holders[holder] = ([], [])
        wanted = json.dumps(holders)
        for row in self._rows(_ACCOUNTS_OF_HOLDERS, wanted):
            account = codec.account_of(row)
            if account.holder in found.holders:
                found.holders[account.holder][0].append(account)
        for (blob,) in self._rows(_RECORDS_OF_HOLDERS, wanted):
            record = encoding.blob_to_record(blob)
            if record.holder in found.holders:
                found.holders[record.holder][1].append(record)

    def _rows(self, sql: str, *values: Any) -> list[encoding.Row]:
        """Return the rows of a look-up; what could not be stored cannot be found."""
        try:
            return self.connection.execute(sql, values).fetchall()
        except (OverflowError, UnicodeEncodeError):
            return []

    def _find_keys(self, reads: Reads, found: Found, room: Room | None) -> set[str]:
        """Find the entries of keys, and return the holders of those wanted with them."""
        self._keys.begin()
        found.keys = self._keys.read(self.connection, reads.keys | reads.key_entries, room)
        holders: set[str] = set()
        for key in reads.key_entries:
            receipt = found.keys[key]
            if receipt is not None:
                sequence = decode_entry(receipt).sequence
                holders |= self._touched(sequence, room)
                found.keys[key] = self._body(sequence)
        return holders

    def _find_entries(self, reads: Reads, found: Found, room: Room | None) -> set[str]:
        """Find entries, and return the holders they touched."""
        holders: set[str] = set()
        for sequence in reads.entries:
            if room is not None and self._rows(
                "SELECT 1 FROM entries WHERE sequence = ?", sequence
            ):
                room.take_body()
            holders |= self._touched(sequence, room)
            found.entries[sequence] = self._body(sequence)
        return holders

    def _touched(self, sequence: int, room: Room | None) -> set[str]:
        """Return the holders that an entry touched, with room for them, before it is read."""
        holders = {holder_of(account) for (account,) in self._rows(_TOUCHED, sequence)}
        if room is not None:
            room.take_holders(holders)
        return holders

    def _body(self, sequence: int) -> bytes | None:
        """Find the body of an entry."""
        bodies = self._rows(_BODY, sequence)
        return bodies[0][0] if bodies else None

    def _find_holds(self, reads: Reads, found: Found, room: Room | None) -> set[str]:
        """Find holds by id and by reference, and return the holders they belong to.

        First is asked whose they are, so that no hold is read that there is no room for.
        """
        found.holds = dict.fromkeys(reads.holds)
        found.references = dict.fromkeys(reads.references)
        by_owner: dict[str, list[str]] = {}
        for owner, reference in reads.references:
            by_owner.setdefault(owner, []).append(reference)
        looks: list[tuple[str, *tuple[str, ...]]] = [
            (_HOLDS_OF_REFERENCES, owner, json.dumps(references))
            for owner, references in by_owner.items()
        ]
        if reads.holds:
            looks.append((_HOLDS, json.dumps(list(reads.holds))))
        holders = {
            holder_of(account)
            for sql, *values in looks
            for (account,) in self._rows(f"SELECT account {sql}", *values)
        }
        if not holders:
            return holders
        if room is not None:
            room.take_holders(holders)
        for sql, *values in looks:
            for row in self._rows(f"SELECT * {sql}", *values):
                hold = codec.hold_of(row)
                found.holds[hold.id] = hold
                if (hold.owner, hold.reference) in found.references:
                    found.references[hold.owner, hold.reference] = hold.id
        return holders

    def _find_rows(self, reads: Reads, found: Found) -> None:
        """Find what brings no holders: open holds, records and names."""
        rows = self._rows
        for account_id in reads.open_holds:
            holds = rows(_OPEN_HOLDS, account_id)
            found.open_holds[account_id] = [codec.hold_of(row) for row in holds]
        for key in reads.records:
            records = rows("SELECT record FROM records WHERE kind = ? AND id = ?", *key)
            found.records[key] = encoding.blob_to_record(records[0][0]) if records else None
        for name in reads.names:
            names = rows("SELECT id FROM names WHERE kind = ? AND name = ?", *name)
            found.names[name] = names[0][0] if names else None

    # ── appending ─────────────────────────────────────────────────────────────────

    def append(self, batch: Append) -> None:
        """See `Store`."""
        with self.lock:
            try:
                self.transact(lambda: write(self.connection, self._keys, batch))
                self._keys.committed()
            except (ConstraintFailed, NotOwner):
                self._keys.rolled_back()
                raise
            except BaseException as error:
                self.fail(error)  # what is in memory may not be what is in the file
                raise

    def transact(self, write: Callable[[], T]) -> T:
        """Run a write transaction; any error but a contradiction stops the writer for good."""
        with self.lock:
            self.check_usable()
            connection = self.connection
            try:
                connection.execute("BEGIN IMMEDIATE")
                try:
                    result = write()
                except _CONTRADICTIONS as error:
                    # The disk did its part; the batch, not the store, is at fault.
                    connection.execute("ROLLBACK")
                    if isinstance(error, StoreError):
                        raise
                    raise ConstraintFailed(str(error)) from error
                connection.execute("COMMIT")
            except (ConstraintFailed, NotOwner, StoreInUse):
                raise
            except BaseException as error:
                self.fail(error)
                self._abandon()
                if isinstance(error, Exception):
                    raise StoreFailed(str(error)) from error
                raise
            return result

    def _abandon(self) -> None:
        """Give up a transaction whose outcome nobody knows."""
        try:
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        except apsw.Error as error:
            self.fail(error)

    # ── outside the journal ───────────────────────────────────────────────────────

    def claim(self, owner: str, address: str, life_microseconds: int) -> Lease | None:
        """See `Store`."""
        return self.transact(lambda: self._claim(owner, address, life_microseconds))

    def _claim(self, owner: str, address: str, life_microseconds: int) -> Lease | None:
        execute = self.connection.execute
        now = execute("SELECT CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)").get
        epoch = execute("SELECT epoch FROM head").get
        held = execute("SELECT owner FROM lease WHERE expires_at > ?", (now,)).get
        if held not in {None, owner}:
            return None
        if held is None:
            epoch += 1
            execute("UPDATE head SET epoch = ?", (epoch,))
        expires_at = now + life_microseconds
        execute(
            "INSERT INTO lease VALUES (1, ?, ?, ?, ?) ON CONFLICT (one) DO UPDATE"
            " SET epoch = excluded.epoch, owner = excluded.owner, address = excluded.address,"
            " expires_at = excluded.expires_at",
            (epoch, owner, address, expires_at),
        )
        return Lease(epoch=epoch, owner=owner, address=address, expires_at=expires_at, now=now)

    def give_up(self, owner: str) -> None:
        """See `Store`."""
        self.transact(
            lambda: self.connection.execute(
                "UPDATE lease SET address = '', expires_at = 0 WHERE owner = ?", (owner,)
            )
        )

    def stage(self, name: str, value: str, *, is_first: bool) -> None:
        """See `Store`."""
        taken = "NOTHING" if is_first else "UPDATE SET value = excluded.value"
        self.transact(
            lambda: self.connection.execute(
                f"INSERT INTO stage VALUES (?, ?) ON CONFLICT (name) DO {taken}",  # noqa: S608
                (name, value),
            )
        )

    def renew(self, incarnation: str) -> None:
        """See `Store`."""
        self.transact(lambda: self._renew(incarnation))

    def _renew(self, incarnation: str) -> None:
        execute = self.connection.execute
        now = execute("SELECT CAST(unixepoch('now', 'subsec') * 1000000 AS INTEGER)").get
        held = execute("SELECT owner FROM lease WHERE expires_at > ?", (now,)).get
        if held is not None:
            raise StoreInUse(0, held)
        execute("UPDATE head SET incarnation = ?", (incarnation,))

    def close(self) -> None:
        """Close the connection; the last one of a book copies the log into its file."""
        with self.lock:
            if self._failure is None:
                self.transact(lambda: self._keys.save(self.connection))
            self._failure = self._failure or StoreError("the book is closed")
            self.connection.close(force=True)

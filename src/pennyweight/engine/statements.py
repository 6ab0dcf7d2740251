"""Statements: an account's lines in order, and its balances as of a time.

Works on any store by primary-key look-ups alone: a line points to the previous one and to
one further back (see `ledger.lines`), so any line or moment is O(log n) entries away, and
a page costs one entry a line.
"""

import msgspec

from pennyweight.engine.port import BatchHeader, Store
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.holds import HoldChange
from pennyweight.ledger.lines import Line, jump_ordinal

PAGE_MAX = 1_000


class StatementLine(msgspec.Struct, frozen=True, gc=False):
    """One posting or hold change of an account; amounts in smallest units, times in microseconds.

    A posting changes `posted` by `change` (credits plus, debits minus) against the account
    `counterpart`; a hold change changes `held` by `change`, and `hold` says which hold and
    what was done. `posted` and `held` are the balances after the line. `ordinal` counts the
    account's lines from 1.
    """

    ordinal: int
    sequence: int
    committed_at: int
    effective_at: int
    command: str
    product: str
    change: int
    counterpart: str | None
    hold: HoldChange | None
    posted: int
    held: int


class Balance(msgspec.Struct, frozen=True, gc=False):
    """An account's balances at a moment, in smallest units."""

    posted: int
    held: int

    @property
    def available(self) -> int:
        """What could be spent: posted minus held."""
        return self.posted - self.held


class BrokenStatement(Exception):
    """A line that the account points to is not in the journal: run `verify`."""


def statement(
    store: Store,
    account: Account,
    *,
    after: int | None = None,
    limit: int = 100,
    is_descending: bool = False,
    committed_until: int | None = None,
) -> tuple[list[StatementLine], int | None]:
    """Return a page of an account's lines and the ordinal to go on after, None at the end.

    Oldest first unless `is_descending`; `after` is the last ordinal of the page before.
    `committed_until` (microseconds) leaves out what was committed later.
    """
    reader = _Reader(store, account)
    last = account.lines
    if committed_until is not None:
        found = reader.last_until(committed_until)
        last = found.ordinal if found is not None else 0
    limit = min(limit, PAGE_MAX)
    if is_descending:
        top = last if after is None else min(last, after - 1)
        bottom = max(top - limit + 1, 1)
    else:
        bottom = (after or 0) + 1
        top = min(last, bottom + limit - 1)
    if top < bottom:
        return [], None
    lines = reader.down(top, bottom)
    if is_descending:
        return lines, bottom if bottom > 1 else None
    lines.reverse()
    return lines, top if top < last else None


def balance_as_of(
    store: Store, account: Account, *, committed: int | None = None, effective: int | None = None
) -> Balance:
    """Return the balances at a moment of one axis, in microseconds: give exactly one of the two.

    As of a commit time: what the book had committed by then. As of an effective time: the
    same, and what was committed later but dated until then (held amounts have no other date).
    """
    moment = committed if effective is None else effective
    if moment is None or (committed is not None and effective is not None):
        raise ValueError("give either committed or effective")
    line = _Reader(store, account).last_until(moment)
    posted, held = (line.posted, line.held) if line is not None else (0, 0)
    if effective is not None:
        posted += store.back_dated(account.id, effective, effective)
    return Balance(posted, held)


class _Place(msgspec.Struct, frozen=True, gc=False):
    """Where a line is: its ordinal, and the sequence of its entry."""

    ordinal: int
    sequence: int


class _Reader:
    """Walks one account's lines, keeping the last entry and batch at hand."""

    def __init__(self, store: Store, account: Account) -> None:
        self._store = store
        self._account = account
        self._entry: Entry | None = None
        self._batch: BatchHeader | None = None

    def last_until(self, moment: int) -> Line | None:
        """Return the last line committed at or before a moment."""
        batch = self._store.batch_at(time=moment)
        if batch is None or not self._account.lines:
            return None
        until = batch.first_sequence + batch.count - 1
        place: _Place | None = self._newest()
        while place is not None and place.sequence > until:
            line = self._line(place)
            place = _jump(line) if line.jump > until else _previous(line)
        return None if place is None else self._line(place)

    def down(self, top: int, bottom: int) -> list[StatementLine]:
        """Return the lines from ordinal `top` down to `bottom`."""
        place: _Place | None = self._newest()
        while place is not None and place.ordinal > top:
            line = self._line(place)
            place = _jump(line) if jump_ordinal(line.ordinal) >= top else _previous(line)
        lines: list[StatementLine] = []
        while place is not None and place.ordinal >= bottom:
            line = self._line(place)
            lines.append(self._show(place.sequence, line))
            place = _previous(line)
        return lines

    def _newest(self) -> _Place:
        return _Place(self._account.lines, self._account.roots[1] if self._account.roots else 0)

    def _line(self, place: _Place) -> Line:
        """Read a line. Raises BrokenStatement."""
        for line in self._read(place.sequence).lines:
            if line.ordinal == place.ordinal and line.account == self._account.id:
                return line
        raise BrokenStatement(
            f"line {place.ordinal} of {self._account.id} is not in entry {place.sequence}"
        )

    def _read(self, sequence: int) -> Entry:
        if self._entry is None or self._entry.sequence != sequence:
            body = self._store.entry(sequence)
            if body is None:
                raise BrokenStatement(f"entry {sequence} is not in the journal")
            self._entry = decode_entry(body)
        return self._entry

    def _time(self, sequence: int) -> int:
        """Return when an entry was committed."""
        batch = self._batch
        if batch is None or not (
            batch.first_sequence <= sequence < batch.first_sequence + batch.count
        ):
            batch = self._batch = self._store.batch_at(sequence=sequence)
            if batch is None:
                raise BrokenStatement(f"entry {sequence} is in no batch")
        return batch.committed_at

    def _show(self, sequence: int, line: Line) -> StatementLine:
        """Say what a line was about."""
        entry = self._read(sequence)
        time = self._time(sequence)
        counterpart: str | None = None
        hold: HoldChange | None = None
        if line.change >= 0:
            transfer = entry.transfers[line.change]
            is_credit = transfer.credit_account == line.account
            change = transfer.amount if is_credit else -transfer.amount
            counterpart = transfer.debit_account if is_credit else transfer.credit_account
        else:
            hold = entry.holds[-1 - line.change]
            change = hold.held
        return StatementLine(
            line.ordinal,
            sequence,
            time,
            time if entry.effective_at is None else entry.effective_at,
            entry.command,
            entry.product,
            change,
            counterpart,
            hold,
            line.posted,
            line.held,
        )


def _previous(line: Line) -> _Place | None:
    return _Place(line.ordinal - 1, line.previous) if line.ordinal > 1 else None


def _jump(line: Line) -> _Place | None:
    ordinal = jump_ordinal(line.ordinal)
    return _Place(ordinal, line.jump) if ordinal > 0 else None

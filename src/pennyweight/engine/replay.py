"""Decisions decided again: what an entry's command would be, on the book as it was before it.

The journal is read from its first entry. Before each entry that is asked for, its command
is decided once more, on the facts and at the time that it had, and the entry that comes
out is compared with the stored one, byte by byte. Whatever comes out, the book goes on
with what is stored. Balances are kept in memory; of records and ended holds only where
they were written last.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import msgspec

from pennyweight.engine.engine import entry_of
from pennyweight.engine.port import BatchHeader
from pennyweight.engine.rebuild import Rebuilt
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.commands import Command
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.entries import Entry, decode_entry, encode_entry
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.records import Record
from pennyweight.ledger.refusals import Refused

_PAGE = 1_000
_HINTS: Mapping[Any, Any] = {str: "", int: 0}
"""What stands for a field that does not count: it says where to look, not what to decide."""


class Source(Protocol):
    """What a replay reads: these methods of a store's `Committed`."""

    def batches(self, after: int, limit: int) -> list[tuple[BatchHeader, bytes]]:
        """See `Committed`."""

    def entries(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        """See `Committed`."""

    def entry(self, sequence: int) -> bytes | None:
        """See `Committed`."""

    def receipt(self, product: str, key: str) -> bytes | None:
        """See `Committed`."""


class Decision(msgspec.Struct, frozen=True):
    """One decision, decided again. `difference` says what came out otherwise, "" if nothing did.

    `command` is None where the entry's fields are none of this version's commands; `before`
    are the records of the entry as they were when it was decided.
    """

    time: int
    entry: Entry
    command: Command | None
    before: dict[tuple[str, str], Record]
    difference: str

    @property
    def is_equal(self) -> bool:
        """Whether the same entry came out."""
        return not self.difference


class Past:
    """The facts as they were before an entry: a rebuilt book, as `Facts`. Nothing is unloaded."""

    def __init__(self, source: Source) -> None:
        """An empty book, whose earlier entries are in `source`."""
        self.time = 0
        self.sequence = 1
        self._source = source
        self._book = Rebuilt(lambda _sequence, _problem: None, answers={})
        self._written: dict[tuple[str, str], int] = {}
        """The last entry that wrote a record."""
        self._ended: dict[int, int] = {}
        """The entry that ended a hold."""
        self._references: dict[tuple[str, str], int] = {}
        self._holders: dict[str, list[str]] = {}

    def go_on(self, entry: Entry, time: int) -> None:
        """Take the entry that comes next, as it is stored."""
        self._book.apply(entry, time)
        for opening in entry.openings:
            self._holders.setdefault(opening.holder, []).append(opening.id)
        for record in entry.records:
            self._written[record.kind, record.id] = entry.sequence
        for change in entry.holds:
            hold = change.hold
            if change.verb == "place" and hold.reference:
                self._references[hold.owner, hold.reference] = hold.id
            if hold.id not in self._book.open_holds:
                self._ended[hold.id] = entry.sequence
        self.sequence = entry.sequence + 1

    # ── the facts of a draft ──────────────────────────────────────────────────────

    def account(self, account_id: str) -> Account | None:
        """See `Facts`."""
        return self._book.accounts.get(account_id)

    def accounts_of(self, holder: str) -> list[Account]:
        """See `Facts`."""
        return [self._book.accounts[account_id] for account_id in self._holders.get(holder, ())]

    def hold(self, hold_id: int) -> Hold | None:
        """See `Facts`."""
        hold = self._book.open_holds.get(hold_id)
        if hold is not None or hold_id not in self._ended:
            return hold
        entry = self.entry(self._ended[hold_id])
        changes = () if entry is None else entry.holds
        return next((c.hold for c in reversed(changes) if c.hold.id == hold_id), None)

    def hold_of_reference(self, owner: str, reference: str) -> Hold | None:
        """See `Facts`."""
        hold_id = self._references.get((owner, reference))
        return None if hold_id is None else self.hold(hold_id)

    def open_holds(self, account_id: str) -> list[Hold]:
        """See `Facts`."""
        holds = self._book.open_holds
        return [holds[hold_id] for hold_id in sorted(holds) if holds[hold_id].account == account_id]

    def entry(self, sequence: int) -> Entry | None:
        """See `Facts`."""
        body = self._source.entry(sequence) if 0 < sequence < self.sequence else None
        return None if body is None else decode_entry(body)

    def entry_of_key(self, product: str, key: str) -> Entry | None:
        """See `Facts`."""
        body = self._source.receipt(product, key)
        entry = None if body is None else decode_entry(body)
        return entry if entry is not None and entry.sequence < self.sequence else None

    def record(self, kind: str, record_id: str) -> Record | None:
        """See `Facts`."""
        entry = self.entry(self._written.get((kind, record_id), 0))
        records = () if entry is None else entry.records
        return next((r for r in reversed(records) if (r.kind, r.id) == (kind, record_id)), None)

    def record_of_holder(self, holder: str, kind: str, record_id: str) -> Record | None:
        """See `Facts`."""
        record = self.record(kind, record_id)
        return record if record is not None and record.holder == holder else None

    def name(self, kind: str, name: str) -> str | None:
        """See `Facts`."""
        return self._book.names.get((kind, name))

    def asset(self, name: str) -> Asset | None:
        """See `Facts`."""
        return self._book.assets.get(name)

    def counter(self, name: str) -> int:
        """See `Facts`."""
        return self._book.counters.get(name, 0)

    def cursor(self, name: str) -> int:
        """See `Facts`."""
        return self._book.cursors.get(name, 0)


Progress = Callable[[int, int], None]
"""Hears (entries done, entries in all) now and then."""


def replay(
    source: Source,
    commands: Mapping[tuple[str, str], type[Command]],
    is_wanted: Callable[[Entry], bool],
    *,
    until: int,
    progress: Progress = lambda _done, _all: None,
) -> Iterator[Decision]:
    """Yield every wanted decision of the entries up to `until`, in their order, decided again.

    `commands` are those known by (product, name). Raises CorruptEntry, and what the source
    raises when it cannot be read.
    """
    past = Past(source)
    for time, body in _bodies(source, until):
        entry = decode_entry(body)
        if is_wanted(entry):
            past.time = time
            yield _decide(past, commands, entry, body)
        past.go_on(entry, time)
        if entry.sequence % _PAGE == 0 or entry.sequence == until:
            progress(entry.sequence, until)


def read_command(kind: type[Command], entry: Entry) -> Command:
    """Return the command of an entry; fields that do not count are empty.

    Raises msgspec.ValidationError where the fields are not this version's.
    """
    fields: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        if field.encode_name not in kind.counted and field.required:
            fields[field.encode_name] = _HINTS.get(field.type)
    fields |= msgspec.json.decode(entry.fields, type=dict[str, msgspec.Raw])
    return msgspec.json.decode(msgspec.json.encode(fields), type=kind)


def _bodies(source: Source, until: int) -> Iterator[tuple[int, bytes]]:
    """Yield each entry's time and bytes, up to a sequence."""
    sequence = 0
    while batches := source.batches(sequence, _PAGE):
        for header, _ in batches:
            for start in range(0, header.count, _PAGE):
                count = min(_PAGE, header.count - start)
                for sequence, body in source.entries(header.first_sequence - 1 + start, count):
                    if sequence > until:
                        return
                    yield header.committed_at, body


def _decide(
    past: Past, commands: Mapping[tuple[str, str], type[Command]], entry: Entry, body: bytes
) -> Decision:
    """Decide an entry's command again and compare."""
    before = {
        (record.kind, record.id): found
        for record in entry.records
        if (found := past.record(record.kind, record.id)) is not None
    }
    kind = commands.get((entry.product, entry.command))
    if kind is None:
        difference = f"{entry.command} of {entry.product} is no command of this version"
        return Decision(past.time, entry, None, before, difference)
    command = None
    try:
        command = read_command(kind, entry)
        again = _sealed(past, command, entry)
    except msgspec.DecodeError as error:
        difference = f"the command cannot be read: {error}"
    except Refused as refused:
        difference = f"it is refused: {refused.reason.code}, {refused.message}"
    except Exception as error:  # noqa: BLE001 - whatever a rule does now, it is told, not raised
        difference = f"it fails: {error!r}"
    else:
        difference = "" if again == body else _differing(entry, again)
    return Decision(past.time, entry, command, before, difference)


def _sealed(past: Past, command: Command, entry: Entry) -> bytes:
    """Return the bytes of the entry that the command makes now, in the engine's way."""
    draft = Draft(past, command.product)
    answer = command.decide(draft)
    own, draft.cursors = draft.cursors, []
    for move in entry.cursors[: max(0, len(entry.cursors) - len(own))]:  # of what it was read from
        draft.move_cursor(move.name, move.before, move.after)
    draft.cursors += own
    draft.seal()
    return encode_entry(entry_of(command, entry.product, entry.key, draft, answer))


def _differing(entry: Entry, again: bytes) -> str:
    """Name the first part in which two entries differ."""
    other = decode_entry(again)
    for name in Entry.__struct_fields__:
        if getattr(entry, name) != getattr(other, name):
            return f"{name} come out otherwise"
    return "the bytes come out otherwise"

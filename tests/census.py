"""A census: whose data are in this process's memory, whatever the cache counts itself.

It starts from every object that the garbage collector tracks and from the variables of
every running function in every thread, and goes on through what is not tracked: structs,
and tuples and dicts of plain things. It knows users' data by sight: accounts, holds,
statement lines, records kept with a holder, rows of a table of accounts, and the bytes
of entries and records.
"""

import gc
import inspect
import sys
from collections import deque
from types import FrameType
from typing import Any

import msgspec

from pennyweight.ledger.accounts import Account, holder_of, is_customer
from pennyweight.ledger.entries import FORMAT, decode_entry
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.lines import Line
from pennyweight.ledger.records import Record
from pennyweight.stores.memory import MemoryStore

_CONTAINERS = (tuple, list, dict, set, frozenset, deque)
_BODY = FORMAT + b'{"sequence"'
_RECORD = b'{"kind"'
_ACCOUNT_COLUMNS = 13


class Census:
    """Counts customers; with a store in memory its own rows are the database, and left out."""

    def __init__(self, store: object = None) -> None:
        self.most = 0
        self.taken = 0
        self.seen: dict[str, set[str]] = {}
        """Whom the last count saw, and by what."""
        self._store = store if isinstance(store, MemoryStore) else None
        self._holders_of_bytes: dict[int, frozenset[str]] = {}
        self._of_kind: dict[type, int] = {}

    def count(self) -> int:
        """Return how many customers' data are in memory now."""
        self.seen = self.customers()
        number = len(self.seen)
        self.most = max(self.most, number)
        self.taken += 1
        return number

    def customers(self) -> dict[str, set[str]]:
        """Return whose data are in memory now, and of what types."""
        found: dict[str, set[str]] = {}
        passed = {id(self), id(self.__dict__), id(self._holders_of_bytes), id(found)}
        passed |= self._rows_of_the_store()
        todo: list[Any] = _variables()
        tracked = [thing for thing in gc.get_objects() if id(thing) not in passed]
        todo += gc.get_referents(*tracked)
        passed |= {id(tracked), id(todo)}
        # What is tracked has told whom it refers to; what is not tracked tells now.
        seen: set[int] = set()
        while todo:
            thing = todo.pop()
            kind = self._kind(thing)
            if not kind:
                continue
            name = id(thing)
            if name in seen or name in passed:
                continue
            seen.add(name)
            if kind == 1:
                for holder in self._named_by_bytes(thing):
                    found.setdefault(holder, set()).add("bytes")
            else:
                if kind == 2:
                    found.setdefault(_whose(thing), set()).add(type(thing).__name__)
                todo += _inside(thing)
        return {holder: kinds for holder, kinds in found.items() if is_customer(holder)}

    # ── inside ────────────────────────────────────────────────────────────────────

    def _kind(self, thing: Any) -> int:
        """Tell by its type whether a thing is to be looked at: 1 bytes, 2 somebody's, 3 a box."""
        kind = type(thing)
        known = self._of_kind.get(kind)
        if known is None:
            if kind in {bytes, bytearray, memoryview}:
                known = 1
            elif kind in {Account, Hold, Line, Record}:
                known = 2
            elif issubclass(kind, _CONTAINERS) or issubclass(kind, msgspec.Struct):
                known = 3
            else:
                known = 0
            self._of_kind[kind] = known
        if known == 3 and kind is tuple and _is_account_row(thing):
            return 2
        return known

    def _named_by_bytes(self, thing: Any) -> frozenset[str]:
        start = bytes(thing[: len(_BODY)]) if len(thing) > len(_BODY) else b""
        if start != _BODY and not start.startswith(_RECORD):
            return frozenset()
        text = bytes(thing)
        name = hash(text)
        holders = self._holders_of_bytes.get(name)
        if holders is None:
            if start == _BODY:
                holders = frozenset(holder_of(line.account) for line in decode_entry(text).lines)
            else:
                holders = frozenset([msgspec.json.decode(text, type=Record).holder])
            self._holders_of_bytes[name] = holders
        return holders

    def _rows_of_the_store(self) -> set[int]:
        """Name the containers of a store in memory, down to the rows, and its entries."""
        if self._store is None:
            return set()
        names = {id(self._store), id(self._store.__dict__)}
        names.update(id(body) for body in self._store._bodies)
        for table in self._store.__dict__.values():
            if isinstance(table, dict | list):
                names.add(id(table))
                rows = table.values() if isinstance(table, dict) else table
                names.update(id(row) for row in rows if isinstance(row, dict | list))
        return names


def _variables() -> list[Any]:
    """Return what the functions under way have in their variables, except the census itself.

    It must leave nothing behind: a variable of ours with a frame in it would keep that
    frame and all that called it, and so would the copy that `f_locals` keeps of variables.
    """
    things: list[Any] = []
    frames = list(sys._current_frames().values())
    while frames:
        frame: FrameType | None = frames.pop()
        while frame is not None:
            if frame.f_code.co_filename != __file__:
                variables = frame.f_locals
                things += variables.values()
                if frame.f_code.co_flags & inspect.CO_OPTIMIZED:  # else these are no copy
                    variables.clear()
            frame = frame.f_back
    return things


def _inside(thing: Any) -> list[Any]:
    """Return what a thing refers to that the collector may not have told."""
    if isinstance(thing, msgspec.Struct):
        return [getattr(thing, name) for name in thing.__struct_fields__]
    if gc.is_tracked(thing):
        return []
    if isinstance(thing, dict):
        return [*thing, *thing.values()]
    return list(thing)


def _is_account_row(thing: tuple[Any, ...]) -> bool:
    return (
        len(thing) == _ACCOUNT_COLUMNS
        and type(thing[0]) is int
        and type(thing[2]) is str
        and type(thing[6]) is bytes
    )


def _whose(thing: Any) -> str:
    if isinstance(thing, Account | Record):
        return thing.holder
    if isinstance(thing, tuple):
        return str(thing[2])
    return holder_of(thing.account)

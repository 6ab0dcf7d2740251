"""An operating-system layer under SQLite that records writes and syncs, and can fail.

SQLite needs shared memory for more than one connection in WAL mode, which a layer in Python
cannot give; so a book on it has one connection for all (`Solo`), in exclusive mode.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from pennyweight.engine.port import Append
from pennyweight.stores.sqlite import schema
from pennyweight.stores.sqlite.keys import KeyIndex
from pennyweight.stores.sqlite.readers import Readers
from pennyweight.stores.sqlite.store import SQLiteStore
from pennyweight.stores.sqlite.writer import Writer

SECTOR = 512


class Operation(NamedTuple):
    """What was done to a file; `file` is its name without the folder."""

    kind: str
    file: str
    offset: int = 0
    data: bytes = b""


class Shim(apsw.VFS):
    """Records; `fault` is asked before each operation and may raise."""

    def __init__(self, name: str) -> None:
        self.log: list[Operation] = []
        self.fault: Callable[[str, str], None] = lambda _kind, _file: None
        super().__init__(name, base="unix")

    def note(self, kind: str, file: str, offset: int = 0, data: bytes = b"") -> None:
        self.fault(kind, file)
        self.log.append(Operation(kind, file, offset, data))

    def xOpen(self, name: Any, flags: list[int]) -> "ShimFile":  # noqa: N802
        return ShimFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self.note("delete", Path(filename).name)
        super().xDelete(filename, syncdir)


class ShimFile(apsw.VFSFile):
    """One open file of a shim."""

    def __init__(self, shim: Shim, name: Any, flags: list[int]) -> None:
        self.shim = shim
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.file = Path(path or "temporary").name
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self.shim.note("write", self.file, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        self.shim.note("truncate", self.file, newsize)
        super().xTruncate(newsize)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self.shim.note("sync", self.file)
        super().xSync(flags)


class Solo(SQLiteStore):
    """A book with one connection for everything, on a shim; begun where there is none."""

    def __init__(self, folder: Path, vfs: str, *, recent_max: int = 20_000) -> None:
        path = folder / "main.sqlite"
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        self.connection = apsw.Connection(str(path), flags=flags, vfs=vfs)
        self.connection.pragma("locking_mode", "EXCLUSIVE")
        schema.configure_writer(self.connection)
        keys = KeyIndex(recent_max=recent_max)
        schema.prepare(self.connection, "main", "first", keys)
        super().__init__(
            path, Readers(lambda: self.connection, keys), Writer(self.connection, keys)
        )

    def checkpoint(self) -> None:
        self.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def close(self) -> None:
        self._writing().close()


class Acknowledging(Solo):
    """Notes in the shim's log what was acknowledged."""

    def __init__(self, folder: Path, shim: Shim, vfs: str, *, recent_max: int) -> None:
        super().__init__(folder, vfs, recent_max=recent_max)
        self.shim = shim

    def append(self, batch: Append) -> None:
        super().append(batch)
        self.shim.log.append(Operation("acknowledged", "", batch.head.sequence, batch.head.chain))


def files_after_cut(log: list[Operation], cut: int, dice: random.Random) -> dict[str, bytearray]:
    """Return the files as a power cut after `cut` operations may leave them.

    What was written before a file's last sync is there. Of later writes each sector may or
    may not be, whatever its neighbours do; the same goes for later truncations.
    """
    synced: dict[str, int] = {}
    for position, operation in enumerate(log[:cut]):
        if operation.kind == "sync":
            synced[operation.file] = position
    files: dict[str, bytearray] = {}
    for position, operation in enumerate(log[:cut]):
        is_safe = position < synced.get(operation.file, -1)
        content = files.setdefault(operation.file, bytearray())
        if operation.kind == "write":
            _write(content, operation, is_safe, dice)
        elif operation.kind == "truncate" and (is_safe or dice.random() < 0.5):
            del content[operation.offset :]
        elif operation.kind == "delete":
            del files[operation.file]
    files.pop("", None)
    return files


def _write(content: bytearray, operation: Operation, is_safe: bool, dice: random.Random) -> None:
    """Apply a write, or the sectors of it that made it."""
    survival = 1.0 if is_safe else dice.choice((0.0, 0.2, 0.8, 1.0))
    offset, data = operation.offset, operation.data
    position = 0
    while position < len(data):
        end = min(len(data), position + SECTOR - (offset + position) % SECTOR)
        if is_safe or dice.random() < survival:
            start = offset + position
            if len(content) < start:
                content.extend(bytes(start - len(content)))
            content[start : start + end - position] = data[position:end]
        position = end

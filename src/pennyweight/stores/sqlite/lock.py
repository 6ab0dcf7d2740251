"""The lock that keeps a directory of books to one process.

It is on a file of our own, `lock`, which also holds the owner's pid: locks of the database
file itself would be dropped whenever anybody in this process opened and closed that file.
One process may have several books of a directory open, each of them once.
"""

import fcntl
import os
import threading
import time
from pathlib import Path

from pennyweight.engine.port import StoreInUse

_guard = threading.Lock()
_held: dict[Path, tuple[int, set[str]]] = {}
"""Directories locked by this process: the lock's descriptor, and the books open there."""


def lock_book(directory: Path, book: str) -> None:
    """Take a book for this process. Raises StoreInUse with the owner's pid."""
    directory = directory.resolve()
    with _guard:
        if directory in _held:
            books = _held[directory][1]
            if book in books:
                raise StoreInUse(os.getpid())
            books.add(book)
            return
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _pid_in(descriptor)
            os.close(descriptor)
            raise StoreInUse(pid) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _held[directory] = (descriptor, {book})


def unlock_book(directory: Path, book: str) -> None:
    """Give a book back; the last one of a directory releases the lock."""
    directory = directory.resolve()
    with _guard:
        descriptor, books = _held[directory]
        books.discard(book)
        if not books:
            del _held[directory]
            os.close(descriptor)


def _pid_in(descriptor: int) -> int:
    """Return the pid in a lock file; its owner may be about to write it. 0 if it does not."""
    for _ in range(20):
        text = os.pread(descriptor, 32, 0).strip()
        if text.isdigit():
            return int(text)
        time.sleep(0.01)
    return 0

"""Checkpoints: copying the write-ahead log back into the book's file, beside the writer.

Passive ones alone never finish while the writer keeps writing, and the log would grow
without end. So when it has passed `RESET_FRAMES`, the last stretch is copied while the
writer is held; the log is used from its beginning again by the next commit.
"""

import threading

import apsw

from pennyweight.stores.sqlite.writer import Writer

PASSIVE_FRAMES = 1_000
RESET_FRAMES = 5_000


class Checkpoints:
    """A thread with a connection of its own. An error of the disk stops the writer."""

    def __init__(self, connection: apsw.Connection, writer: Writer) -> None:
        """Begin watching the writer's commits."""
        self._connection = connection
        self._writer = writer
        self._frames = 0
        self._is_stopping = False
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        writer.connection.set_wal_hook(self._committed)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close its connection."""
        self._is_stopping = True
        self._due.set()
        self._thread.join()
        self._connection.close(force=True)

    def _committed(self, _connection: apsw.Connection, _database: str, frames: int) -> int:
        """Note after each commit how long the log is."""
        self._frames = frames
        if frames >= PASSIVE_FRAMES and not self._due.is_set():
            self._due.set()
        return apsw.SQLITE_OK

    def _run(self) -> None:
        while True:
            self._due.wait()
            self._due.clear()
            if self._is_stopping:
                return
            try:
                if self._checkpoint() >= RESET_FRAMES:
                    with self._writer.lock:
                        self._checkpoint()
            except apsw.BusyError:
                continue  # a reader is recovering the log; the next commit asks again
            except apsw.Error as error:
                self._writer.fail(error)
                return

    def _checkpoint(self) -> int:
        """Copy what no reader holds back, and return how many frames the log has."""
        frames, _copied = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        return frames

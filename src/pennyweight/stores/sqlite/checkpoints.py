"""Checkpoints: copying the write-ahead log back into the book's file, beside the writer.

A page that is hot is in the log many times and is copied once, so checkpoints are better
rare. But while the writer writes they never get to the log's end, and it would grow without
end. So when it has `FRAMES`, most of it is copied beside the writer, and the rest while the
writer is held; the next commit then uses the log from its beginning again.
"""

import threading

import apsw

from pennyweight.stores.sqlite.writer import Writer

FRAMES = 5_000
"""Pages in the log that call for a checkpoint."""


class Checkpoints:
    """A thread with a connection of its own. An error of the disk stops the writer."""

    def __init__(self, connection: apsw.Connection, writer: Writer) -> None:
        """Begin watching the writer's commits."""
        self._connection = connection
        self._writer = writer
        self._stopping = threading.Event()
        self._limit = FRAMES
        self._due = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        writer.connection.set_wal_hook(self._committed)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close its connection."""
        self._stopping.set()
        self._due.set()
        self._thread.join()
        self._connection.close(force=True)

    def _committed(self, _connection: apsw.Connection, _database: str, frames: int) -> int:
        """See after each commit how long the log is."""
        if frames >= self._limit and not self._due.is_set():
            self._due.set()
        return apsw.SQLITE_OK

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._due.wait()
            if self._stopping.is_set():
                return
            try:
                self._copy()
                with self._writer.lock:
                    left = self._copy()
            except apsw.Error as error:
                self._writer.fail(error)
                return
            # A long reader holds the log's end back: ask again when it has grown.
            self._limit = left + FRAMES
            self._due.clear()
            # `stop` may have set what was cleared just now; so the loop looks at its own sign.

    def _copy(self) -> int:
        """Copy all that no reader holds back; return the frames of the log if any are left."""
        frames, copied = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        return frames if copied < frames else 0

"""Checkpoints: copying the write-ahead log back into the book's file, beside the writer.

A page that is hot is in the log many times and is copied once, so checkpoints are better
rare. But while the writer writes they never get to the log's end, and it would grow without
end. So when it has `FRAMES`, all but the last `REST` of it is copied beside the writer, and
these while the writer is held; the next commit uses the log from its beginning again.
"""

import threading

import apsw

from pennyweight.stores.sqlite.writer import Writer

FRAMES = 10_000
"""Pages in the log that call for a checkpoint: 20 MB. With 5 000 a transfer costs a sixth more
CPU and disk."""

REST = 1_000
PASSES_MAX = 4


class Checkpoints:
    """A thread with a connection of its own. An error of the disk stops the writer."""

    def __init__(self, connection: apsw.Connection, writer: Writer) -> None:
        """Begin watching the writer's commits."""
        self._connection = connection
        self._writer = writer
        self._stopping = threading.Event()
        self._frames = 0
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
        self._frames = frames
        if frames >= self._limit and not self._due.is_set():
            self._due.set()
        return apsw.SQLITE_OK

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._due.wait()
            if self._stopping.is_set():
                return
            try:
                for _ in range(PASSES_MAX):
                    if self._frames - self._copy() < REST:
                        break
                with self._writer.lock:
                    copied = self._copy()
            except apsw.Error as error:
                self._writer.fail(error)
                return
            # A long reader may hold the log's end back: then it is asked again when it has grown.
            self._limit = FRAMES if copied >= self._frames else self._frames + FRAMES
            self._due.clear()
            # `stop` may have set what was cleared just now; so the loop looks at its own sign.

    def _copy(self) -> int:
        """Copy all that no reader holds back, and return how many frames are copied."""
        return self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)[1]

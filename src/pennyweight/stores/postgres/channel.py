"""The writer's way to the server: prepared statements sent by hand, one answer, no more work.

The engine's thread holds the interpreter while it works, so a batch pays for every call
made here. Statements go through the client library's own functions, which wait without the
interpreter's lock. They wait without end, too: `Watchdog` cuts the line of one that gets
no answer, and its outcome is unknown then.
"""

import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2s
from select import select
from weakref import WeakSet

import msgspec
from psycopg import Connection, Error, OperationalError
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus
from psycopg.pq.abc import PGconn, PGresult

from pennyweight.stores.postgres.errors import ServerError
from pennyweight.stores.postgres.place import line_of

ANSWER_SECONDS_MAX = 10.0
"""How long a statement may take before its line is cut."""

_LOOK_SECONDS = 0.25
_FATAL = (b"FATAL", b"PANIC")
_DONE = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class Statement(msgspec.Struct, frozen=True, eq=False):
    """A statement, its name on the server, and the format of each parameter (0 text, 1 binary)."""

    name: bytes
    sql: bytes
    formats: tuple[int, ...]


def statement(sql: str, *formats: int) -> Statement:
    """Return a statement, named by its text."""
    encoded = sql.encode()
    return Statement(blake2s(encoded, digest_size=10).hexdigest().encode(), encoded, formats)


Values = Sequence[bytes]


class Meter:
    """What went over a writer's lines: for figures."""

    __slots__ = ("bytes_sent", "round_trips")

    def __init__(self) -> None:
        """Nothing yet."""
        self.round_trips = 0
        self.bytes_sent = 0


class Channel:
    """One connection, used by one thread at a time. After a lost connection it is of no use."""

    def __init__(
        self, connection: "Connection[tuple[object, ...]]", meter: Meter, *, is_prepared: bool
    ) -> None:
        """`connection` is this channel's own; closed where this raises StoreUnavailable."""
        self.connection = connection
        self.is_lost = False
        self.is_doubtful = False
        """Whether the last commit came with a warning that no standby has confirmed it."""
        self.deadline = 0.0
        """When the line is cut, by the monotonic clock; 0 while nothing is asked."""
        self._meter = meter
        self._pgconn: PGconn = connection.pgconn
        self._pgconn.notice_handler = self._noticed
        self._line = line_of(connection)
        """The same line once more: the library lets go of its own, whenever it finds it broken."""
        self._is_prepared = is_prepared
        self._prepared: set[bytes] = set()
        self._closing = threading.Lock()
        self._using = threading.Lock()
        """Held while the library works on the connection, which must not be closed under it."""

    def close(self) -> None:
        """Close the connection; whoever waits on it in another thread learns that it is lost."""
        while not self._using.acquire(blocking=False):
            self.cut()
            time.sleep(0.001)
        try:
            with self._closing:
                self.is_lost = True
                self.connection.close()
                self._line.close()
        finally:
            self._using.release()

    def cut(self) -> None:
        """Shut the line down, from another thread: whoever waits on it learns that it is lost."""
        with self._closing, suppress(OSError):  # closed, or shut down before
            self._line.shutdown(socket.SHUT_RDWR)

    def watch(self) -> None:
        """Something is asked now, on the connection itself; `unwatch` follows."""
        self.deadline = time.monotonic() + ANSWER_SECONDS_MAX

    def unwatch(self) -> None:
        """The answer is there."""
        self.deadline = 0.0

    def run(self, statement: Statement, values: Values) -> PGresult:
        """Run one statement. Raises ServerError."""
        meter = self._meter
        meter.round_trips += 1
        meter.bytes_sent += sum(map(len, values))
        self._begin()
        try:
            if not self._is_prepared:
                result = self._pgconn.exec_params(statement.sql, values, None, statement.formats, 1)
            else:
                if statement.name not in self._prepared:
                    self._prepare(statement)
                result = self._pgconn.exec_prepared(statement.name, values, statement.formats, 1)
        except ServerError:
            raise
        except Error as error:
            self.is_lost = True
            raise ServerError(str(error), is_lost=True) from error
        finally:
            self._end()
        if result.status not in _DONE:
            raise self._error(result)
        return result

    def run_all(self, requests: Sequence[tuple[Statement, Values]]) -> list[PGresult]:
        """Run statements in one round trip; the first that fails ends them. Raises ServerError."""
        if len(requests) == 1:
            return [self.run(*requests[0])]
        if not self._is_prepared:
            return [self.run(*request) for request in requests]
        pgconn = self._pgconn
        self._meter.round_trips += 1
        self._begin()
        try:
            for statement, _ in requests:
                if statement.name not in self._prepared:
                    self._prepare(statement)
            pgconn.enter_pipeline_mode()
            for statement, values in requests:
                self._meter.bytes_sent += sum(map(len, values))
                pgconn.send_query_prepared(statement.name, values, statement.formats, 1)
            pgconn.pipeline_sync()
            results = [self._next_result() for _ in requests]
            self._end_pipeline()
        except ServerError:
            raise
        except Error as error:
            self.is_lost = True
            raise ServerError(str(error), is_lost=True) from error
        finally:
            self._end()
        for result in results:
            if result.status not in _DONE:
                raise self._error(result)
        return results

    def _begin(self) -> None:
        """Take the connection for a statement. Raises ServerError where it was closed."""
        self._using.acquire()
        if self.is_lost:
            self._using.release()
            error = ServerError("the connection was closed", is_lost=True)
            error.has_run = False
            raise error
        self.deadline = time.monotonic() + ANSWER_SECONDS_MAX

    def _end(self) -> None:
        self.deadline = 0.0
        self._using.release()

    def _next_result(self) -> PGresult:
        """Wait for the one result of a statement in a pipeline, and for the statement's end."""
        result = self._get_result()
        if result is None or self._pgconn.status != ConnStatus.OK:
            raise OperationalError("the connection broke")
        self._get_result()
        return result

    def _end_pipeline(self) -> None:
        result = self._get_result()
        if result is None or result.status != ExecStatus.PIPELINE_SYNC:
            raise OperationalError("the connection broke")
        self._pgconn.exit_pipeline_mode()

    def _get_result(self) -> PGresult | None:
        """Wait for what comes next. The library's own function would keep the interpreter's lock."""
        pgconn, descriptor = self._pgconn, self._pgconn.socket
        while pgconn.flush():
            readable, _, _ = select([descriptor], [descriptor], [])
            if readable:
                pgconn.consume_input()
        while pgconn.is_busy():
            select([descriptor], [], [])
            pgconn.consume_input()
        return pgconn.get_result()

    def _prepare(self, statement: Statement) -> None:
        """Prepare a statement; where that breaks the connection, it never ran."""
        result = self._pgconn.prepare(statement.name, statement.sql)
        if result.status not in _DONE:
            error = self._error(result)
            error.has_run = False
            raise error
        self._prepared.add(statement.name)

    def _error(self, result: PGresult) -> ServerError:
        """Return what a result says, and note whether the connection is lost with it."""
        state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
        severity = result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED)
        primary = result.error_field(DiagnosticField.MESSAGE_PRIMARY) or result.error_message
        is_lost = severity in _FATAL or self._pgconn.status != ConnStatus.OK
        if is_lost:
            self.is_lost = True
        return ServerError(primary.decode("utf-8", "replace").strip(), state, is_lost=is_lost)

    def _noticed(self, notice: PGresult) -> None:
        """Look whether a commit went without the standby it should have waited for."""
        field = notice.error_field
        if field(DiagnosticField.SEVERITY_NONLOCALIZED) != b"WARNING":
            return
        function = field(DiagnosticField.SOURCE_FUNCTION)
        words = (field(DiagnosticField.MESSAGE_PRIMARY) or b"").lower()
        if function == b"SyncRepWaitForLSN" or not function or b"replication" in words:
            self.is_doubtful = True


class Watchdog:
    """Cuts channels whose answer is overdue. One thread, from the first channel on."""

    def __init__(self) -> None:
        """Nothing is watched yet."""
        self._channels: WeakSet[Channel] = WeakSet()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def watch(self, channel: Channel) -> None:
        """Watch a channel for as long as somebody has it."""
        with self._lock:
            self._channels.add(channel)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="pennyweight-watchdog", daemon=True
                )
                self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            now = time.monotonic()
            with self._lock:
                overdue = [c for c in self._channels if 0 < c.deadline < now]
            for channel in overdue:
                channel.cut()

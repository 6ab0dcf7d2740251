"""A proxy between engine and PostgreSQL that misbehaves as it is told.

It passes everything on until a rule matches a statement, then does what the rule says. Where the
server is to refuse a statement, the proxy sends it one that it must refuse, and changes the words
of the refusal: so the transaction, the prepared statements and the order of answers are in every
case what a client may believe.
"""

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from pennyweight.simulators.looping import LoopThread
from pennyweight.simulators.pgrelay import Connection, End
from pennyweight.simulators.pgrules import Behaviour


class FaultProxy(Behaviour):
    """Listens in a thread, in front of one server; leaving the context closes it."""

    def __init__(self, url: str, *, seed: int = 0) -> None:
        """`url` is the server's; the proxy's own differs in its address only."""
        super().__init__(seed)
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._listener: asyncio.Server | None = None
        self._open: dict[Connection, asyncio.Future[None]] = {}
        self._thread = LoopThread("fault proxy")
        self.port = self._thread.do(self._listen(0))
        user = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{user[0]}{user[1]}127.0.0.1:{self.port}").geturl()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def behave(self) -> None:
        """Let nothing happen any more, and take new connections."""
        super().behave()
        self.accept()

    def cut(self) -> None:
        """Cut all connections."""
        self._thread.do(self._cut())

    def refuse(self) -> None:
        """Take no new connections: whoever tries finds nobody there."""
        self._thread.do(self._unlisten())

    def accept(self) -> None:
        """Take new connections again."""
        self._thread.do(self._listen(self.port))

    def close(self) -> None:
        """Cut everything and end. Raises ExceptionGroup when the proxy itself failed."""
        if not self._thread.has_ended:
            self.refuse()
            self.cut()
            self._thread.close()
            if self.failures:
                raise ExceptionGroup("the proxy failed", self.failures)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    async def _listen(self, port: int) -> int:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._met, "127.0.0.1", port)
        return int(self._listener.sockets[0].getsockname()[1])

    async def _unlisten(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            await asyncio.sleep(0)

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_made += 1
        connection = Connection(self, self._server, End(self, reader, writer))
        self._open[connection] = asyncio.get_running_loop().create_future()
        try:
            await connection.run()
        finally:
            self._open.pop(connection).set_result(None)

    async def _cut(self) -> None:
        ends = list(self._open.values())
        for connection in self._open:
            connection.abort()
        await asyncio.gather(*ends)

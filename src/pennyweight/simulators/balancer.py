"""A load balancer of the plainest kind, as it stands in front of several instances.

It knows nothing of HTTP but its own question for health: every new connection goes to the next
backend that takes it, and stays there. A connection whose backend falls falls with it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, cast

from pennyweight.simulators.looping import LoopThread

_CONNECT_SECONDS = 1.0
_READY = b" 200 "

Address = tuple[str, int]


class Backend:
    """One of those behind the balancer, and what came of it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.is_well = True
        """What the last look, or the last connection, said."""
        self.connections = 0
        """How many it was given."""
        self.refused = 0
        """How many it did not take."""


class Balancer:
    """Listens in a thread; leaving the context closes it and all connections.

    With `health_path` ("/readyz") each backend is asked every `health_seconds` and gets no new
    connections until it answers 200. When none is well, all are tried.
    """

    def __init__(
        self,
        backends: Sequence[Address],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        health_path: str = "",
        health_seconds: float = 0.5,
    ) -> None:
        """Begin to listen. Raises OSError when the port is taken."""
        self.backends = [Backend(address) for address in backends]
        self._next = 0
        self._health_path, self._health_seconds = health_path, health_seconds
        self._open: set[_Side] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = LoopThread("balancer")
        try:
            self.address: Address = self._thread.do(self._listen(host, port))
        except BaseException:
            self._thread.close()
            raise

    @property
    def host(self) -> str:
        """Where it listens."""
        return self.address[0]

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.address[1]

    def add(self, address: Address) -> None:
        """Take one more backend."""
        self.backends.append(Backend(address))

    def close(self) -> None:
        """Close every connection, and no longer listen."""
        if not self._thread.has_ended:
            self._thread.do(self._close())
            self._thread.close()

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

    async def _listen(self, host: str, port: int) -> Address:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(self._open, self._met), host, port)
        if self._health_path:
            self._keep(self._look_after())
        name = self._server.sockets[0].getsockname()
        return name[0], name[1]

    async def _close(self) -> None:
        self._server.close()
        for side in list(self._open):
            side.abort()
        await asyncio.sleep(0)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _met(self, client: "_Side") -> None:
        self._keep(self._connect(client))

    async def _connect(self, client: "_Side") -> None:
        """Give a client the next backend that takes the connection; none: hang up."""
        loop = asyncio.get_running_loop()
        for backend in self._in_turn():
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    _, server = await loop.create_connection(
                        lambda: _Side(self._open), *backend.address
                    )
            except OSError:  # TimeoutError is one
                backend.refused += 1
                backend.is_well = False
                continue
            backend.connections += 1
            backend.is_well = backend.is_well or not self._health_path  # else a look decides
            client.join(server)
            return
        client.abort()

    def _in_turn(self) -> list[Backend]:
        """All backends from the next one on, those that are well first."""
        backends = self.backends.copy()  # another thread may add one
        start, self._next = self._next, (self._next + 1) % max(1, len(backends))
        turned = backends[start:] + backends[:start]
        return sorted(turned, key=lambda backend: not backend.is_well)

    async def _look_after(self) -> None:
        while True:
            await asyncio.gather(*(self._look_at(backend) for backend in self.backends))
            await asyncio.sleep(self._health_seconds)

    async def _look_at(self, backend: Backend) -> None:
        question = f"GET {self._health_path} HTTP/1.0\r\nHost: {backend.address[0]}\r\n\r\n"
        line = b""
        with contextlib.suppress(OSError):
            async with asyncio.timeout(_CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(*backend.address)
                try:
                    writer.write(question.encode())
                    line = await reader.readline()
                finally:
                    writer.close()
        backend.is_well = _READY in line


class _Side(asyncio.Protocol):
    """One end of a connection that goes through here: what it reads, its peer writes."""

    def __init__(self, sides: "set[_Side]", met: "Callable[[_Side], None] | None" = None) -> None:
        self._sides, self._met = sides, met
        self.peer: _Side | None = None
        self.has_ended = False
        self.early = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Look for a peer, when this is a client."""
        self.transport = cast(asyncio.Transport, transport)
        self._sides.add(self)
        if self._met:
            self._met(self)

    def join(self, peer: "_Side") -> None:
        """Let the two talk."""
        self.peer, peer.peer = peer, self
        for side in (self, peer):
            if side.peer and side.transport.is_closing():
                side.peer.abort()
            elif side.peer and side.early:
                side.peer.transport.write(side.early)
                side.transport.resume_reading()

    def abort(self) -> None:
        """Hang up at once."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass it on; without a peer keep it, and read no more until there is one."""
        if self.peer:
            self.peer.transport.write(data)
        else:
            self.early = data
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        """Let the peer read no more than goes out here."""
        if self.peer and not self.peer.transport.is_closing():
            self.peer.transport.pause_reading()

    def resume_writing(self) -> None:
        """Let the peer read again."""
        if self.peer and not self.peer.transport.is_closing():
            self.peer.transport.resume_reading()

    def eof_received(self) -> bool:
        """Pass the end on; the other direction goes on until it ends too."""
        self.has_ended = True
        if self.peer is None or self.peer.has_ended:
            return False
        self.peer.transport.write_eof()
        return True

    def connection_lost(self, _: Exception | None) -> None:
        """Let the peer go with it, after what is still to be written."""
        self._sides.discard(self)
        if self.peer:
            self.peer.transport.close()

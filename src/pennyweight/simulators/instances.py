"""Several instances of the engine on one book in a database, and a balancer in front of them."""

import contextlib
import http.client
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from pennyweight.simulators.balancer import Balancer
from pennyweight.simulators.server import Server, ServerFailed

_ASK_SECONDS = 1.0
_HEALTH_PATH = "/readyz"


class Instances:
    """Servers on a book, numbered from 1; leaving the context stops them and the balancer."""

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        count: int = 3,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start them, their logs in a folder. Raises ServerFailed.

        `environment` is what each gets beside our own.
        """
        self.url, self.folder = url, folder
        self.servers: list[Server] = []
        self._fallen: set[int] = set()
        try:
            self.balancer = Balancer([], host, port, health_path=_HEALTH_PATH)
        except OSError as error:
            raise ServerFailed(f"the balancer did not start: {error}") from None
        try:
            for number in range(1, count + 1):
                server = Server(url, log=folder / f"instance-{number}.log", environment=environment)
                self.servers.append(server)
                self.balancer.add((server.host, server.port))
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        """Where the balancer listens, as a URL."""
        host = self.balancer.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.balancer.port}"

    def fallen(self) -> list[int]:
        """Return the numbers of those that ended since the last time this was asked."""
        ended = {n for n, server in enumerate(self.servers, 1) if server.has_ended}
        new = sorted(ended - self._fallen)
        self._fallen |= ended
        return new

    def owner(self) -> int | None:
        """Return the number of the one that owns the book, as far as they say so."""
        for number, server in enumerate(self.servers, 1):
            if not server.has_ended and _readiness(server).get("role") == "owner":
                return number
        return None

    def last_words(self) -> str:
        """Return the ends of their logs."""
        words = [f"{n}: {server.last_words()}" for n, server in enumerate(self.servers, 1)]
        return "\n".join(words)

    def stop(self) -> None:
        """Stop the balancer, and all at once those that still run. Raises ServerFailed."""
        self.balancer.close()
        with ThreadPoolExecutor(max(1, len(self.servers))) as pool:
            failures = [failure for failure in pool.map(_stop, self.servers) if failure]
        if failures:
            raise failures[0]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop them; an earlier error is not hidden by theirs."""
        try:
            self.stop()
        except ServerFailed:
            if error is None:
                raise


def _stop(server: Server) -> ServerFailed | None:
    """Stop one. That it was killed before is no failure of it; return one that is."""
    had_ended = server.has_ended
    try:
        server.stop()
    except ServerFailed as error:
        return None if had_ended else error
    return None


def _readiness(server: Server) -> dict[str, Any]:
    """What a server says of itself; nothing when it does not answer."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=_ASK_SECONDS)
    try:
        with contextlib.suppress(OSError, http.client.HTTPException, msgspec.DecodeError):
            connection.request("GET", _HEALTH_PATH)
            said = msgspec.json.decode(connection.getresponse().read())
            return said if isinstance(said, dict) else {}
        return {}
    finally:
        connection.close()

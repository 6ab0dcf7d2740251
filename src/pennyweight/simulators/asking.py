"""Questions to a server beside the load: metrics, verification, documents."""

import http.client
import re
import time
from collections.abc import Iterable, Sequence
from typing import Self

import msgspec

from pennyweight.simulators.jobs import Row

_METRIC = re.compile(rb"^(pennyweight_\w+) (\S+)$", re.MULTILINE)
_VERIFY_SECONDS_MAX = 3_600
_VERIFY_PAUSE_SECONDS = 0.1


class Work(msgspec.Struct, frozen=True):
    """What servers have committed so far, and what they asked a database for it.

    `round_trips` is None where they do not tell, `commands` where their metrics are closed to us.
    """

    commands: float | None = None
    batches: float = 0
    round_trips: float | None = None
    bytes_sent: float = 0
    owners: tuple[int, ...] = ()
    """Which of them own the book, numbered from 1."""

    @classmethod
    def of(cls, metrics: Iterable[bytes]) -> Self:
        """Add up what several servers' metrics say; whoever does not own the book commits nothing."""
        total: dict[bytes, float] = {}
        owners = []
        for number, text in enumerate(metrics, 1):
            found = {name: float(value) for name, value in _METRIC.findall(text)}
            for name, value in found.items():
                total[name] = total.get(name, 0) + value
            if found.get(b"pennyweight_owner"):
                owners.append(number)
        return cls(
            total.get(b"pennyweight_batch_commands_sum"),
            total.get(b"pennyweight_batch_commands_count", 0),
            total.get(b"pennyweight_store_round_trips_total"),
            total.get(b"pennyweight_store_bytes_sent_total", 0),
            tuple(owners),
        )

    def mean_batch(self, before: "Work") -> float | None:
        """How many commands a commit had on average since an earlier look."""
        if self.commands is None or self.batches == before.batches:
            return None
        return round((self.commands - (before.commands or 0)) / (self.batches - before.batches), 1)

    def tell(self, row: Row, before: "Work") -> None:
        """Add to a row what went to the database since an earlier look, if that is told."""
        if self.round_trips is None or self.commands is None or self.batches == before.batches:
            return
        trips = self.round_trips - (before.round_trips or 0)
        commands = self.commands - (before.commands or 0)
        row.round_trips = round(trips / (self.batches - before.batches), 2)
        row.sent_bytes = round((self.bytes_sent - before.bytes_sent) / max(1, commands), 1)

    def owners_since(self, before: "Work") -> tuple[int, ...]:
        """Who owned the book at an earlier look, and who else does now."""
        return before.owners + tuple(set(self.owners) - set(before.owners))


def work_of(askers: Sequence["Asker"]) -> Work:
    """Look at what all servers of a book have committed."""
    return Work.of(asker.metrics() for asker in askers)


class Asker:
    """Asks a server one thing at a time, each on its own connection."""

    def __init__(self, address: tuple[str, int], token: str = "") -> None:
        """`token` is an API key, or empty on loopback."""
        self._address = address
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def ask(self, method: str, path: str) -> tuple[int, bytes]:
        """Return status and body. Raises OSError."""
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            connection.request(method, path, headers=self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def get(self, path: str) -> bytes:
        """Return a document. Raises RuntimeError if there is none."""
        status, body = self.ask("GET", path)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status}")
        return body

    def metrics(self) -> bytes:
        """Return the metrics; nothing if they are closed to us."""
        status, text = self.ask("GET", "/metrics")
        return text if status == 200 else b""

    def cache(self) -> tuple[int, int] | None:
        """Return the cache's hits and misses so far; None if they are closed to us."""
        status, body = self.ask("GET", "/cache")
        if status != 200:
            return None
        figures = msgspec.json.decode(body)
        return figures["hits"], figures["misses"]

    def verify(self) -> bool:
        """Have the server verify its book, and wait for its report."""
        status, _ = self.ask("POST", "/v1/verify")
        until = time.monotonic() + _VERIFY_SECONDS_MAX
        while status < 400 and time.monotonic() < until:
            status, body = self.ask("GET", "/v1/verify")
            document = msgspec.json.decode(body) if status == 200 else {}
            if document.get("state") != "running":
                return bool((document.get("report") or {}).get("ok"))
            time.sleep(_VERIFY_PAUSE_SECONDS)
        return False

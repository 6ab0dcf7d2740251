"""Questions to a server beside the load: metrics, verification, documents."""

import http.client
import re
import time

import msgspec

_BATCH_METRIC = re.compile(rb"^(\w*batch\w*)_(sum|count)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
_VERIFY_SECONDS_MAX = 3_600
_VERIFY_PAUSE_SECONDS = 0.1


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

    def batches(self) -> dict[bytes, float]:
        """Return the sum and the count of batch sizes so far; {} if the metrics are closed to us."""
        status, text = self.ask("GET", "/metrics")
        found = _BATCH_METRIC.findall(text) if status == 200 else []
        return {kind: float(value) for family, kind, value in found if b"second" not in family}

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


def mean_batch(before: dict[bytes, float], after: dict[bytes, float]) -> float | None:
    """Return how many commands a commit had on average between two looks."""
    count = after.get(b"count", 0) - before.get(b"count", 0)
    return round((after[b"sum"] - before.get(b"sum", 0)) / count, 1) if count else None

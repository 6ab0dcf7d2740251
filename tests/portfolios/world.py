"""Who takes part where portfolios live through chaos: the engine, callers who want an answer, the record."""

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pennyweight.delivery.indices import INDICES
from pennyweight.delivery.search import Documents
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Store
from pennyweight.products.portfolios.setup import CreatePortfolio
from pennyweight.products.portfolios.shared import POINT, Band, Policy
from pennyweight.simulators.benchplace import BenchPlace
from pennyweight.simulators.client import answer_size
from pennyweight.simulators.inprocess import execute
from pennyweight.simulators.searchstub import SearchStub
from pennyweight.simulators.updates import Message, Provider
from served_process import serving

PAGE = 1_000

CALM = Policy(band=Band(absolute=30 * POINT))
"""The policy of most portfolios: hardly ever are they traded, so that there is less to search."""


def fill(folder: Path, provider: Provider) -> None:
    """Make the portfolios, three of four with a policy."""
    made = [
        Submission(CreatePortfolio(user, target, CALM if number % 4 else None))
        for number, (user, target) in enumerate(provider.targets())
    ]
    with BenchPlace(folder).opened() as book:
        for first in range(0, len(made), PAGE):
            execute(book, made[first : first + PAGE])


class Engine:
    """The served book. `kill` and `start` as often as wanted: the folder and the port stay."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.port = 0
        self.kills = 0
        self._folder = folder
        self._words = words
        self._life = ExitStack()
        self._process: Any = None

    def start(self) -> None:
        self._process = self._life.enter_context(
            serving(self._folder, *self._words, port=self.port)
        )
        self.port = int(self._process.address.rpartition(":")[2])

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self.kills += 1
        self._life.close()

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(60)
        self._life.close()
        return int(code)

    def close(self) -> None:
        self._life.close()

    def get(self, path: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()
        assert answer.status == 200, (path, answer.status, body)
        return body

    @property
    def down(self) -> dict[str, str]:
        found: dict[str, str] = json.loads(self.get("/readyz")).get("down", {})
        return found

    def figures(self, name: str) -> list[int]:
        """The values of a metric, in this life."""
        text = self.get("/metrics").decode()
        found = re.findall(rf"^pennyweight_{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return [int(float(value)) for value in found]


def verified(folder: Path) -> None:
    command = [sys.executable, "-m", "pennyweight", "verify", "--data", str(folder)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran


# ── callers ───────────────────────────────────────────────────────────────────────


class Answered(NamedTuple):
    """What was answered at last: the run (0 without one), or the number of what was queued."""

    user: str
    status: int
    run: int
    number: int


class Caller(threading.Thread):
    """Posts updates one after the other, each until there is an answer that says what became of it."""

    def __init__(self, port: int, messages: Sequence[Message], path: str, pause: float) -> None:
        """`pause` is how many seconds lie between two updates."""
        super().__init__(daemon=True)
        self.answered: list[Answered] = []
        self.repeated = 0
        self._address = ("127.0.0.1", port)
        self._messages = messages
        self._path = path
        self._pause = pause
        self._socket: socket.socket | None = None
        self._is_over = threading.Event()

    def run(self) -> None:
        for message in self._messages:
            head = (
                f"POST {self._path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(message.value)}\r\n\r\n"
            )
            while not self._is_over.is_set():
                answer = self._ask(head.encode() + message.value)
                if answer is not None:
                    self.answered.append(_told(message.user, answer))
                    break
                self.repeated += 1
                time.sleep(0.05)
            time.sleep(self._pause)
        self._hang_up()

    def stop(self) -> None:
        self._is_over.set()
        self.join()

    def _ask(self, request: bytes) -> bytes | None:
        """Return the answer; None where none came, or one that tells to come again."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=20)
            self._socket.sendall(request)
            data = b""
            while (size := answer_size(data)) < 0 or len(data) < size:
                more = self._socket.recv(65_536)
                if not more:
                    raise ConnectionError("closed")
                data += more
        except OSError:
            self._hang_up()
            return None
        return None if data[9:12] == b"503" else data

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _told(user: str, answer: bytes) -> Answered:
    status = int(answer[9:12])
    head, _, body = answer.partition(b"\r\n\r\n")
    run = re.search(rb"\r\nrebalance-run: (\d+)", head, re.IGNORECASE)
    number = re.search(rb"\r\nlocation: /rebalance-updates/(\d+)", head, re.IGNORECASE)
    assert status in {200, 202, 400, 404, 409}, body
    return Answered(user, status, int(run[1]) if run else 0, int(number[1]) if number else 0)


# ── the record ────────────────────────────────────────────────────────────────────


def journal(store: Store) -> Iterator[tuple[int, bytes]]:
    after = 0
    while page := store.entries(after, PAGE):
        yield from page
        after = page[-1][0]


class Searchable:
    """The documents that the journal makes, by index: of each its version and its source."""

    def __init__(self, store: Store) -> None:
        self._make = Documents(lambda _: 18, store)
        self._store = store
        self._header: Any = None
        self.wanted: dict[str, dict[str, tuple[int, bytes]]] = {name: {} for name in INDICES}

    def take(self, sequence: int, body: bytes) -> None:
        header = self._header
        if header is None or sequence >= header.first_sequence + header.count:
            header = self._header = self._store.batch_at(sequence=sequence)
        for document in self._make(header, sequence, body):
            found = self.wanted[document.index]
            if document.id not in found or found[document.id][0] < document.version:
                found[document.id] = (document.version, document.source)

    def check(self, stub: SearchStub) -> Counter[str]:
        """The search engine has just these; return how many of each."""
        counts: Counter[str] = Counter()
        for name, wanted in self.wanted.items():
            found = {
                one: told
                for index in stub.engine.behind(name)
                for one, told in index.documents.items()
            }
            assert found.keys() == wanted.keys(), name
            wrong = [one for one, told in wanted.items() if found[one] != told]
            assert not wrong, (name, len(wrong), wanted[wrong[0]], found[wrong[0]])
            counts[name] = len(found)
        return counts

"""A book behind a real server on a free port, in this process; and raw sockets to talk to it."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from pennyweight.agents.expiry import HoldExpiry
from pennyweight.assemble import EXPIRIES
from pennyweight.delivery.http import (
    ledger,
    letters,
    loans,
    payments,
    portfolios,
    proof,
    wallet,
    withdrawals,
)
from pennyweight.delivery.http.guard import Guard
from pennyweight.delivery.http.metrics import Metrics
from pennyweight.delivery.http.routes import CommandRoute, Route
from pennyweight.delivery.http.server import Server, ServerConfig
from pennyweight.delivery.wallet import WalletSettings
from pennyweight.delivery.watch import Watch
from pennyweight.engine.port import Head, Store
from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.verification import verify
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

START = 1_760_000_000_000_000

JSON_TYPE = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def all_routes() -> list[Route]:
    return [
        *ledger.routes(["ledger", "payments", "wallet", "withdrawals", "loans", "portfolios"]),
        *proof.routes(
            lambda store, progress: verify(
                store, answers=answers_of(known_commands()), progress=progress
            )
        ),
        *payments.routes("seed"),
        *wallet.routes(WalletSettings()),
        *withdrawals.routes(clock=lambda: START),
        *loans.routes("seed", None),
        *portfolios.routes(clock=lambda: START),
        *letters.routes(),
    ]


def long_way(routes: Iterable[Route]) -> list[Route]:
    """Return the same routes, none of them hot."""
    return [
        msgspec.structs.replace(route, is_hot=False) if isinstance(route, CommandRoute) else route
        for route in routes
    ]


class Served:
    """A served book. The clock stands still, so that equal requests get equal answers."""

    def __init__(
        self,
        routes: Sequence[Route] | None = None,
        *,
        store: Store | None = None,
        folder: Path | None = None,
        clock: ClockGuard | None = None,
        queue_max: int = 20_000,
        open_faces: Sequence[str] = (),
        **settings: Any,
    ) -> None:
        self.store = store or MemoryStore(Head(book="main", incarnation="first"))
        self.clock = clock or ClockGuard(lambda: START, lambda: 0)
        engine = open_engine(self.store, now=self.clock.now(), queue_max=queue_max)
        self.metrics = Metrics()
        self.watch = Watch()
        self.metrics.add(self.watch.metrics)
        self.exits: list[int] = []
        self.book = ThreadedBook(
            engine,
            self.store,
            self.clock,
            observe=self.metrics.observe_batch,
            hear=self.watch,
            die=self.exits.append,
        )
        self.guard = Guard(folder, "127.0.0.1", open_faces=open_faces)
        self.routes = all_routes() if routes is None else list(routes)
        self.server = Server(
            self.book,
            self.routes,
            self.guard,
            self.metrics,
            ServerConfig(port=0, **settings),
            agents=[HoldExpiry(self.book, commands=EXPIRIES)],
        )
        self._thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self.server.is_ready.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.server.stop()
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def port(self) -> int:
        return int(self.server.address.rpartition(":")[2])

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Send one request on a connection of its own."""
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, content, headers or {})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        answer = self.send("GET", path)
        assert answer.status == 200, answer
        return answer.json

    def post(self, path: str, body: Any = None, key: str = "") -> Answer:
        return self.send("POST", path, body, {"Idempotency-Key": key} if key else None)

    def connect(self) -> "Raw":
        return Raw(self.port)

    def fund(self, *users: str, asset: str = "USD", amount: str = "100") -> None:
        """Open an account for each user and give it something."""
        for user in users:
            account = f"user:{user}:{asset}"
            assert self.post("/v1/accounts", {"id": account}).status == 201
            body = transfer(f"world:{asset}", account, amount, asset)
            assert self.post("/v1/transfers", body).status == 201

    def available(self, account: str) -> str:
        return str(self.get(f"/v1/accounts/{account}")["available"])


def transfer(debit: str, credit: str, amount: Any = "1", asset: str = "USD", **more: Any) -> Any:
    return {
        "debit_account": debit,
        "credit_account": credit,
        "asset": asset,
        "amount": amount,
        **more,
    }


class Raw:
    """One connection, byte by byte."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def drip(self, data: bytes, count: int, *, pause_seconds: float = 0) -> None:
        """Send the same bytes again and again."""
        for _ in range(count):
            self.socket.sendall(data)
            time.sleep(pause_seconds)

    def read_head(self) -> bytes:
        """Read up to the end of a head."""
        while b"\r\n\r\n" not in self._rest:
            data = self.socket.recv(65_536)
            if not data:
                raise EOFError(self._rest)
            self._rest += data
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head

    def read(self) -> Answer:
        """Read one answer that has a length."""
        head = self.read_head()
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        length = int(headers.get("content-length", "0"))
        while len(self._rest) < length:
            data = self.socket.recv(65_536)
            if not data:
                raise EOFError(self._rest)
            self._rest += data
        body, self._rest = self._rest[:length], self._rest[length:]
        return Answer(int(status.split(" ")[1]), headers, body)

    def read_all(self) -> bytes:
        """Read until the server closes."""
        data = self._rest
        while True:
            try:
                piece = self.socket.recv(65_536)
            except ConnectionResetError:
                return data
            if not piece:
                return data
            data += piece

    def is_closed(self) -> bool:
        """Whether the server closed, without a further byte."""
        return self.read_all() == b""


def request_bytes(
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    *,
    version: str = "1.1",
) -> bytes:
    """Return a whole request."""
    lines = [f"{method} {path} HTTP/{version}", "Host: 127.0.0.1"]
    found = {"Content-Length": str(len(body)), **(headers or {})}
    lines += [f"{name}: {value}" for name, value in found.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body

"""Instances of one book as processes of their own, and clients that ask again under their key."""

import contextlib
import http.client
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, Self

from pennyweight.assemble import answers, invariants, open_reader
from pennyweight.engine.verification import Report, verify
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.stores.places import Place

UP_SECONDS_MAX = 60
STOP_SECONDS_MAX = 40
ASK_SECONDS_MAX = 40
PATIENCE_SECONDS = 120
"""How long a client asks again; no fault of these tests lasts as long."""

UNIT = 10**18
TROUBLE = (OSError, http.client.HTTPException)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def is_replayed(self) -> bool:
        return self.headers.get("idempotent-replayed") == "true"

    @property
    def code(self) -> str:
        return str(self.json.get("code", "")) if self.status >= 400 else ""


class Line:
    """A connection that is kept, and made again after trouble."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection: http.client.HTTPConnection | None = None

    def send(self, method: str, path: str, body: Any = None, key: str = "") -> Answer:
        """Send one request, once. Raises OSError or HTTPException."""
        self.ask(method, path, body, key)
        return self.hear()

    def ask(self, method: str, path: str, body: Any = None, key: str = "") -> None:
        """Send a request, whose answer is heard later. Raises OSError or HTTPException."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                "127.0.0.1", self.port, timeout=ASK_SECONDS_MAX
            )
        headers = {"Idempotency-Key": key} if key else {}
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, path, content, headers)
        except TROUBLE:
            self.close()
            raise

    def hear(self) -> Answer:
        """Return the answer. Raises OSError or HTTPException."""
        assert self._connection is not None
        try:
            response = self._connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read())
        except TROUBLE:
            self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Client:
    """Asks any of several ports in turn, and again under the same key until there is an answer."""

    def __init__(self, ports: Sequence[int], *, is_restless: bool = False) -> None:
        """A restless one goes to the next port for every request, not only after trouble."""
        self._lines = [Line(port) for port in ports]
        self._turns = itertools.cycle(self._lines)
        self._line = next(self._turns)
        self._is_restless = is_restless
        self.troubles: Counter[str] = Counter()
        """Why it had to ask again: codes of 503, and names of what connections raised."""

    def send(
        self, method: str, path: str, body: Any = None, key: str = "", *, port: int = 0
    ) -> Answer:
        """Ask until there is an answer that is none of 503. With `port`, begin there."""
        until = time.monotonic() + PATIENCE_SECONDS
        if port:
            self._line = next(line for line in self._lines if line.port == port)
        elif self._is_restless:
            self._line = next(self._turns)
        while True:
            try:
                answer = self._line.send(method, path, body, key)
            except TROUBLE as error:
                self.troubles[type(error).__name__] += 1
            else:
                if answer.status != 503:
                    return answer
                assert answer.headers.get("retry-after"), answer
                self.troubles[answer.code] += 1
            assert time.monotonic() < until, f"no answer: {self.troubles}"
            time.sleep(0.02)
            self._line = next(self._turns)

    def post(self, path: str, body: Any = None, key: str = "", *, port: int = 0) -> Answer:
        return self.send("POST", path, body, key, port=port)

    def get(self, path: str, *, port: int = 0) -> Any:
        answer = self.send("GET", path, port=port)
        assert answer.status == 200, answer
        return answer.json

    def close(self) -> None:
        for line in self._lines:
            line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_port() -> int:
    """Return a port that nobody has, and that no client gets by chance while its server is away."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


class Instance:
    """A served process, which can be killed, frozen and started again on its port."""

    def __init__(
        self, place: Sequence[str], log: Path, *words: str, port: int = 0, is_waited: bool = True
    ) -> None:
        self.log = log
        self.port = port or _free_port()
        self._command = [*place, *words]
        self._closing = contextlib.ExitStack()
        self.start(is_waited=is_waited)

    def start(self, *, is_waited: bool = True) -> None:
        command = ["serve", *self._command, "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pennyweight", *command],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={k: v for k, v in os.environ.items() if not k.startswith("PENNYWEIGHT_")},
            )
        self._closing.close()
        if self.process.stdout is not None:
            self._closing.callback(self.process.stdout.close)
        if is_waited:
            self.wait()

    def wait(self) -> None:
        """Wait until it says that it is ready."""
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        assert ready.startswith("ready http://"), self.last_words()
        self.port = int(ready.rpartition(":")[2])

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-3_000:]

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def readiness(self) -> dict[str, Any]:
        """Return what /readyz says; {} if nobody answers."""
        line = Line(self.port)
        try:
            return dict(line.send("GET", "/readyz").json)
        except TROUBLE:
            return {}
        finally:
            line.close()

    @property
    def is_owner(self) -> bool:
        return self.readiness().get("role") == "owner"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._closing.close()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it in order, which must succeed."""
        if self.is_running:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS_MAX)
        finally:
            self._closing.close()
        assert code == 0, f"it ended with {code}: {self.last_words()}"


class Cluster:
    """Instances of one book, numbered from 0. Whoever leaves ends them all."""

    def __init__(self, url: str, folder: Path, count: int = 3, *words: str) -> None:
        self.url = url
        self.instances: list[Instance] = []
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._words = words
        try:
            for _ in range(count):
                self.add(is_waited=False)
            for instance in self.instances:
                instance.wait()
            self.settle()
        except BaseException:
            self.kill_all()
            raise

    def add(self, *, is_waited: bool = True) -> Instance:
        """Start one more."""
        log = self._folder / f"instance-{len(self.instances)}.log"
        place = ["--store", self.url]
        instance = Instance(place, log, *self._words, is_waited=is_waited)
        self.instances.append(instance)
        return instance

    @property
    def ports(self) -> list[int]:
        return [instance.port for instance in self.instances]

    def owner(self) -> Instance:
        """Return the one that owns the book, as soon as one does."""
        found: list[Instance] = []
        until(
            lambda: found.extend(i for i in self.instances if i.is_running and i.is_owner) or found
        )
        return found[0]

    def fronts(self) -> list[Instance]:
        owner = self.owner()
        return [instance for instance in self.instances if instance is not owner]

    def settle(self) -> None:
        """Wait until all are ready."""
        until(lambda: all(i.readiness().get("status") == "ready" for i in self.instances))

    def client(self, **options: Any) -> Client:
        return Client(self.ports, **options)

    def stop(self) -> None:
        """End all in order, at once."""
        with ThreadPoolExecutor(len(self.instances)) as pool:
            list(pool.map(Instance.stop, self.instances))

    def kill_all(self) -> None:
        for instance in self.instances:
            instance.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill_all()


def until(is_so: Callable[[], Any], seconds: float = UP_SECONDS_MAX) -> None:
    """Wait for something to become true."""
    over = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < over, f"not within {seconds} seconds"
        time.sleep(0.01)


# ── what clients do ───────────────────────────────────────────────────────────────


def at_once(lines: Sequence[Line], requests: Sequence[tuple[dict[str, Any], str]]) -> list[Answer]:
    """Send a transfer with its key over each line before any answer is heard."""
    for line, (body, key) in zip(lines, requests, strict=True):
        line.ask("POST", "/v1/transfers", body, key)
    return [line.hear() for line in lines]


def transfer(debit: str, credit: str, amount: Any = "1", asset: str = "USD") -> dict[str, Any]:
    return {"debit_account": debit, "credit_account": credit, "asset": asset, "amount": str(amount)}


def fund(client: Client, users: Sequence[Any], amount: str = "100", asset: str = "USD") -> None:
    """Open an account for each and give it something."""
    for user in users:
        account = f"user:{user}:{asset}"
        assert client.post("/v1/accounts", {"id": account}, f"open {account}").status == 201
        if amount != "0":
            body = transfer(f"world:{asset}", account, amount, asset)
            assert client.post("/v1/transfers", body, f"fund {account}").status == 201


def pays(users: int, seed: int = 0) -> Callable[[int, int], dict[str, Any]]:
    """Return what makes transfers between users at random; some find no funds."""
    dice, guard = random.Random(seed), threading.Lock()

    def pay(_: int, __: int) -> dict[str, Any]:
        with guard:
            one, other = dice.sample(range(users), 2)
            amount = dice.choice([1, 2, 5, 40])
        return transfer(f"user:{one}:USD", f"user:{other}:USD", amount)

    return pay


class Told(NamedTuple):
    """A request, and the answer that it had in the end."""

    key: str
    body: dict[str, Any]
    answer: Answer
    at: float
    """When the answer was there, by the monotonic clock."""


class Load:
    """Clients that pay until told to stop, each in a thread; leaving the context waits for them.

    `make` gives the next body for a client; all keys begin with `name`.
    """

    def __init__(
        self,
        ports: Sequence[int],
        make: Callable[[int, int], dict[str, Any]],
        *,
        name: str = "load",
        clients: int = 6,
        count: int | None = None,
    ) -> None:
        self.told: list[Told] = []
        self.seconds: list[float] = []
        """How long each client took."""
        self.troubles: Counter[str] = Counter()
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(clients)
        self._works = [
            self._pool.submit(
                self._work, ports[n % len(ports) :] + ports[: n % len(ports)], n, name, make, count
            )
            for n in range(clients)
        ]

    def _work(
        self,
        ports: Sequence[int],
        number: int,
        name: str,
        make: Callable[[int, int], dict[str, Any]],
        count: int | None,
    ) -> None:
        began = time.monotonic()
        with Client(ports) as client:
            for place in itertools.count() if count is None else range(count):
                if self._over.is_set():
                    break
                key, body = f"{name} {number}.{place}", make(number, place)
                answer = client.post("/v1/transfers", body, key)
                assert answer.status in {201, 409, 422}, answer
                self.told.append(Told(key, body, answer, time.monotonic()))
            self.troubles += client.troubles
        self.seconds.append(time.monotonic() - began)

    @property
    def done(self) -> dict[str, Answer]:
        """What was acknowledged, by key."""
        return {told.key: told.answer for told in list(self.told) if told.answer.status == 201}

    def moves_on(self, count: int = 20) -> None:
        """Wait until so many more are acknowledged."""
        before = len(self.told)
        until(lambda: len(self.told) >= before + count or self._has_failed())
        self.check()

    def gap(self, since: float) -> float:
        """Wait for the first new acknowledgement after a blow, and return how long it took.

        What had been sent before the blow may still arrive in its first moment.
        """
        since_then = since + 0.1

        def first() -> float | None:
            new = (told.at for told in reversed(self.told) if told.answer.status == 201)
            return min(takewhile(lambda at: at > since_then, new), default=None)

        until(lambda: first() or self._has_failed())
        self.check()
        return (first() or 0.0) - since

    def _has_failed(self) -> bool:
        return any(work.done() and work.exception() for work in self._works)

    def check(self) -> None:
        """Raise what a client raised."""
        for work in self._works:
            if work.done():
                work.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None or any(work.done() for work in self._works):
            self._over.set()
        self.stop()

    def join(self) -> None:
        """Wait for clients that have a count."""
        for work in self._works:
            work.result()

    def stop(self) -> None:
        """Let the clients end what they began, and raise what one raised."""
        self._over.set()
        self._pool.shutdown()
        self.check()


# ── what the book says ────────────────────────────────────────────────────────────


class Book(NamedTuple):
    """A book, as its rows say. `epochs` are those of its batches, in order."""

    entries: list[Entry]
    report: Report
    epochs: list[int]

    def posted(self, asset: str = "USD") -> dict[str, int]:
        """Return what the users have in the end, in whole units."""
        lines = (line for entry in self.entries for line in entry.lines)
        last = {line.account: line.posted for line in lines}
        return {
            account: posted // UNIT
            for account, posted in last.items()
            if account.startswith("user:") and account.endswith(f":{asset}")
        }


def read_book(place: Place) -> Book:
    """Read the whole journal, and prove it: everything that must hold of every book."""
    store = open_reader(place)
    try:
        report = verify(store, answers=answers(), invariants=invariants())
        entries = [decode_entry(body) for body in bodies(store)]
        epochs = list(epochs_of(store))
    finally:
        store.close()
    assert report.ok, report.problems
    assert [entry.sequence for entry in entries] == list(range(1, len(entries) + 1))
    keyed = Counter((entry.product, entry.key) for entry in entries if entry.key)
    assert not [key for key, count in keyed.items() if count > 1]
    assert epochs == sorted(epochs), "a former owner wrote"
    check_floors(entries)
    return Book(entries, report, epochs)


def bodies(store: Any) -> Iterator[bytes]:
    after = 0
    while rows := store.entries(after, 1_000):
        for sequence, body in rows:
            yield body
            after = sequence


def epochs_of(store: Any) -> Iterator[int]:
    after = 0
    while batches := store.batches(after, 1_000):
        for header, _ in batches:
            yield header.epoch
            after = header.first_sequence


def check_floors(entries: Sequence[Entry]) -> None:
    """Walk the journal: no user is below zero at any sequence, and all accounts sum to zero."""
    posted: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for entry in entries:
        after = {line.account: line for line in entry.lines}
        for account, line in after.items():
            sums[account.rpartition(":")[2]] += line.posted - posted[account]
            posted[account] = line.posted
            if account.startswith("user:"):
                assert line.posted - line.held >= 0, (entry.sequence, line)
        assert not any(sums.values()), entry.sequence


def check_told(book: Book, told: Sequence[Told]) -> None:
    """Nothing acknowledged is lost or there twice, and nothing refused was done."""
    found = {entry.key: entry for entry in book.entries if entry.key}
    for one in told:
        entry = found.get(one.key)
        if one.answer.status == 201:
            assert entry is not None, f"acknowledged and lost: {one}"
            assert entry.sequence == one.answer.json["sequence"], one
        else:
            assert entry is None, f"refused and done: {one}"

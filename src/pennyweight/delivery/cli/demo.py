"""`pennyweight demo`: a fresh book with a generated population and live traffic, to look at."""

import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NamedTuple

from cyclopts import Parameter

from pennyweight.delivery.cli.load import load
from pennyweight.delivery.cli.shared import UserError
from pennyweight.delivery.cli.verify import verify
from pennyweight.simulators.instances import Instances
from pennyweight.simulators.population import FIRST_ID, population_csv
from pennyweight.simulators.postgres import PostgresFailed, PostgresMissing, PostgresServer
from pennyweight.simulators.server import Server, ServerFailed
from pennyweight.simulators.traffic import Counts, Traffic
from pennyweight.simulators.withdrawing import tokens_of

_PORT = 8080
_LINE_SECONDS = 5.0
"""How often a line is printed when nobody watches a terminal."""

_TERMINAL_SECONDS = 0.25
_WATCH_SECONDS = 0.5
_PATIENCE_SECONDS = 30.0
"""How long one request is tried while instances fall and take over."""


def demo(
    *,
    data: Annotated[
        Path | None,
        Parameter(name="--data", help="Keep the book in this folder; else it is a temporary one."),
    ] = None,
    host: Annotated[str, Parameter(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[
        int | None, Parameter(help="0 takes a free one (8080, or a free one if that is taken).")
    ] = None,
    seconds: Annotated[float | None, Parameter(help="Stop by itself after this time.")] = None,
    users: Annotated[int, Parameter(help="How many users there are.")] = 900,
    rate: Annotated[float, Parameter(help="Requests a second.")] = 30.0,
    seed: Annotated[int, Parameter(help="Population and traffic.")] = 1,
    postgres: Annotated[
        bool,
        Parameter(help="Three instances on a PostgreSQL, a balancer in front.", negative=()),
    ] = False,
) -> int:
    """Start an engine on a fresh book, load made-up users, and keep some traffic going.

    Users pay each other, bet and withdraw from the same accounts, over HTTP; what they
    withdraw is settled. Some requests are refused, some repeated. Ctrl-C stops it in
    order, and the book is verified.

    With --postgres the book is in a PostgreSQL started for the demo, and three instances
    share it; kill one, and the others go on.

    Example: pennyweight demo --data demo-book --seconds 60

    Example: pennyweight demo --postgres
    """
    if users < 2 or rate <= 0:
        raise UserError("a demo needs two users and a rate above 0", code=2)
    if postgres and data is not None:
        raise UserError("a demo on PostgreSQL keeps no folder: --data or --postgres", code=2)
    stop = threading.Event()
    plan = _Plan(users=users, rate=rate, seed=seed, seconds=seconds, stop=stop)
    with _stopped_by_signals(stop), _book_folder(data) as folder:
        try:
            chosen = _free_port(host) if port is None else port
            if postgres:
                return _on_postgres(folder, host, chosen, plan)
            return _on_folder(folder, host, chosen, plan)
        except (PostgresMissing, PostgresFailed, ServerFailed) as error:
            raise UserError(str(error)) from None


def _on_folder(folder: Path, host: str, port: int, plan: "_Plan") -> int:
    """One server on a book in a folder."""
    _load_population(folder, plan)
    with Server(folder, host=host, port=port, log=folder / "server.log") as server:
        traffic = Traffic((server.host, server.port), plan.names, plan.seed)
        places = f"""\
  the book      {folder}
  the log       {folder / "server.log"}"""
        _serve(traffic, plan, _Stage(server.address, places, server.last_words))
    _say("stopped; verifying the book")
    return verify(data=folder)


def _on_postgres(folder: Path, host: str, port: int, plan: "_Plan") -> int:
    """Three instances on a book in a database, with logs in a folder."""
    with PostgresServer() as database:
        _load_population(database.url, plan)
        with Instances(database.url, folder, host=host, port=port) as instances:
            traffic = Traffic(
                (instances.balancer.host, instances.balancer.port),
                plan.names,
                plan.seed,
                connections=len(instances.servers),
                patience_seconds=_PATIENCE_SECONDS,
            )
            look = _Watch(instances).look
            places = _places(instances, database)
            _serve(traffic, plan, _Stage(instances.address, places, instances.last_words, look))
        _say("stopped; verifying the book")
        return verify(store=database.url)


def _places(instances: Instances, database: PostgresServer) -> str:
    """Say what runs where, and how to see another instance take over."""
    owner = instances.owner()
    rows = [
        f"  instance {number}    {server.address}   process {server.pid}"
        f"{'   owns the book' if number == owner else ''}"
        for number, server in enumerate(instances.servers, 1)
    ]
    first = instances.servers[(owner or 1) - 1]
    called = Path(sys.argv[0])  # under which name we were started; `-m` has none
    program = called if called.name == "pennyweight" else "pennyweight"
    return "\n".join(
        [
            "  (a balancer, with three instances of the engine behind it)",
            *rows,
            f"  PostgreSQL    {database.url}   version {database.version}",
            f"  the logs      {instances.folder}",
            "",
            "see another instance take the book over, and start the first again:",
            "",
            f"  kill -9 {first.pid}",
            f"  {program} serve --store {database.url} --port {first.port}",
            "",
        ]
    )


class _Plan(NamedTuple):
    """What a demo plays, and for how long."""

    users: int
    rate: float
    seed: int
    seconds: float | None
    stop: threading.Event

    @property
    def names(self) -> list[str]:
        """The ids of the users."""
        return [str(FIRST_ID + number) for number in range(self.users)]


class _Stage(NamedTuple):
    """What a demo is played on: where it is, how it is told of, what is seen to meanwhile."""

    address: str
    places: str
    last_words: Callable[[], str]
    look: Callable[[], object] = lambda: None


def _serve(traffic: Traffic, plan: _Plan, stage: _Stage) -> None:
    """Keep the traffic going until it is time to stop. Raises UserError if the server ends."""
    rate, seconds, stop = plan.rate, plan.seconds, plan.stop
    started = time.monotonic()
    shown = _Counter()
    try:
        traffic.prepare()
        _welcome(stage, traffic, _withdrawal(plan.users, plan.seed))
        started = time.monotonic()
        while not stop.is_set() and not (seconds and time.monotonic() - started >= seconds):
            traffic.step()
            shown.show(time.monotonic() - started, traffic.counts)
            stage.look()
            stop.wait(max(0.0, started + traffic.counts.total / rate - time.monotonic()))
    except OSError as error:
        if not stop.is_set():
            raise UserError(f"the server is gone ({error}): {stage.last_words()}") from None
    finally:
        traffic.close()
    shown.end(time.monotonic() - started, traffic.counts)


def _withdrawal(users: int, seed: int) -> tuple[str, str]:
    """Return a user's id and a withdrawal of his, with which he has enough to go on."""
    for number, tokens in enumerate(tokens_of(users, seed)):
        crypto = [token for token in tokens if token in {"BTC", "BCH", "ETH"}]
        if crypto:
            user, token = str(FIRST_ID + number), crypto[0]
            return user, (
                f'{{"user_id": "{user}", "token": "{token}", "requested_quantity": "0.5"}}'
            )
    raise UserError("nobody of this population has anything to withdraw", code=2)


def _welcome(stage: _Stage, traffic: Traffic, withdrawal: tuple[str, str]) -> None:
    """Say where everything is, and what to try."""
    user, withdrawn = withdrawal
    at = stage.address
    buyer, seller = traffic.accounts["buyer"], traffic.accounts["seller"]
    body = f'{{"buyer_account_id": {buyer}, "seller_account_id": {seller}, "amount": "12.50"}}'
    _say(
        f"""
pennyweight is at {at}
{stage.places}
  the API       {at}/docs
  the metrics   {at}/metrics

try these in another terminal:

  curl {at}/account/{buyer}
  curl -H 'content-type: application/json' -d '{body}' {at}/payments
  curl '{at}/v1/accounts/user:{FIRST_ID + 1}:USD/statement?order=newest&limit=3'
  curl -H 'content-type: application/json' -d '{withdrawn}' {at}/withdrawals
  curl {at}/users/{user}/balances

payments, bets and withdrawals are going on; Ctrl-C stops
"""
    )


@contextmanager
def _book_folder(data: Path | None) -> Iterator[Path]:
    """Give the folder of the book; a temporary one is removed in the end."""
    if data is not None:
        data.mkdir(parents=True, exist_ok=True)
        yield data
        return
    folder = Path(tempfile.mkdtemp(prefix="pennyweight-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _load_population(place: Path | str, plan: _Plan) -> None:
    """Load made-up users; a book of an earlier demo has them already."""
    with tempfile.TemporaryDirectory(prefix="pennyweight-users-") as scratch:
        file = Path(scratch) / "users.csv"
        file.write_bytes(population_csv(plan.users, plan.seed).encode())
        if isinstance(place, Path):
            load(file, data=place)
        else:
            load(file, store=place)


def _free_port(host: str) -> int:
    """Return the usual port, or 0 for any free one if another program has it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, _PORT))
        except OSError:
            return 0
    return _PORT


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal stop the demo in order."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watch:
    """Says when an instance is gone, and when another one owns the book."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self._owner = instances.owner()
        self._next = 0.0

    def look(self) -> None:
        """Look, not too often."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _WATCH_SECONDS
        for number in self._instances.fallen():
            _say(f"\ninstance {number} is gone")
        owner = self._instances.owner()
        if owner and owner != self._owner:
            self._owner = owner
            _say(f"\ninstance {owner} owns the book")


class _Counter:
    """The counter: one line that changes on a terminal, else a line every few seconds."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty()
        self._every = _TERMINAL_SECONDS if self._is_terminal else _LINE_SECONDS
        self._next = min(1.0, self._every)

    def show(self, seconds: float, counts: Counts) -> None:
        """Show where the traffic stands, not too often."""
        if seconds >= self._next:
            self._next = seconds + self._every
            self._print(seconds, counts)

    def end(self, seconds: float, counts: Counts) -> None:
        """Show where it ended."""
        self._print(seconds, counts)
        if self._is_terminal:
            _say("")

    def _print(self, seconds: float, counts: Counts) -> None:
        text = (
            f"{seconds:5.0f} s: {counts.total} requests, {counts.done} done,"
            f" {counts.refused} refused, {counts.replayed} replayed"
        )
        if counts.unknown:
            text += f", {counts.unknown} unknown"
        with suppress(OSError):  # the terminal may be gone; the book is still to be closed
            if self._is_terminal:
                print(f"\r{text}\x1b[K", end="", flush=True)
            else:
                print(text, flush=True)


def _say(text: str) -> None:
    with suppress(OSError):
        print(text, flush=True)

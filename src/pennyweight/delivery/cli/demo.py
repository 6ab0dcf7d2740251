"""`pennyweight demo`: a fresh book with a generated population and live traffic, to look at."""

import shlex
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from decimal import Decimal
from pathlib import Path
from typing import Annotated, NamedTuple

from cyclopts import Parameter

from pennyweight.delivery.cli.load import load
from pennyweight.delivery.cli.shared import UserError
from pennyweight.delivery.cli.verify import verify
from pennyweight.links import venues
from pennyweight.links.aws import Aws
from pennyweight.links.errors import ExtraMissing, LinkError
from pennyweight.simulators.instances import Instances
from pennyweight.simulators.loanworld import PUSHED, Branch, LoanWorld, Notice
from pennyweight.simulators.ministack import MiniStack, MiniStackFailed, MiniStackMissing
from pennyweight.simulators.population import FIRST_ID, population_csv
from pennyweight.simulators.portfolios_demo import PORTFOLIOS, HttpDesk, PortfoliosDemo
from pennyweight.simulators.postgres import PostgresFailed, PostgresMissing, PostgresServer
from pennyweight.simulators.posts import Publish
from pennyweight.simulators.publishing import Pusher, Topics
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

_PAUSE_SECONDS = 1.0
"""A request that waited longer is told of: somebody was taking over."""

_SETTLE_SECONDS = 15.0
"""How long, in the end, liquidations under way are waited for."""

_REGION = "us-east-1"
_NUMBERS = {2: "two", 3: "three"}


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
    loans: Annotated[
        bool,
        Parameter(
            help="Two instances on a PostgreSQL, prices and notices over SNS and SQS.", negative=()
        ),
    ] = False,
) -> int:
    """Start an engine on a fresh book, load made-up users, and keep some traffic going.

    Users pay each other, bet and withdraw from the same accounts, over HTTP; what they
    withdraw is settled. Some requests are refused, some repeated. Clients of a bank borrow
    against BESKAR whose price falls and recovers, and are liquidated at trading posts that
    often fail. Ctrl-C stops it in order, and the book is verified.

    With --postgres the book is in a PostgreSQL started for the demo, and three instances
    share it; kill one, and the others go on.

    With --loans two instances share it, and prices come, and notices of liquidations go,
    through MiniStack, which speaks SNS and SQS and is fetched when it is wanted first.

    Example: pennyweight demo --data demo-book --seconds 60

    Example: pennyweight demo --postgres
    """
    if users < 2 or rate <= 0:
        raise UserError("a demo needs two users and a rate above 0", code=2)
    if loans and postgres:
        raise UserError("--loans is on a PostgreSQL anyway: --loans or --postgres", code=2)
    if (postgres or loans) and data is not None:
        wanted = "--postgres" if postgres else "--loans"
        raise UserError(f"a demo on PostgreSQL keeps no folder: --data or {wanted}", code=2)
    stop = threading.Event()
    plan = _Plan(users=users, rate=rate, seed=seed, seconds=seconds, stop=stop)
    with _stopped_by_signals(stop), _book_folder(data) as folder:
        try:
            chosen = _free_port(host) if port is None else port
            if loans:
                return _with_ministack(folder, host, chosen, plan)
            if postgres:
                return _on_postgres(folder, host, chosen, plan)
            return _on_folder(folder, host, chosen, plan)
        except (
            ExtraMissing,
            LinkError,
            MiniStackFailed,
            MiniStackMissing,
            PostgresFailed,
            PostgresMissing,
            ServerFailed,
        ) as error:
            raise UserError(str(error)) from None


def _on_folder(folder: Path, host: str, port: int, plan: "_Plan") -> int:
    """One server on a book in a folder."""
    _load_population(folder, plan)
    log = folder / "server.log"
    with (
        _loans_beside(plan) as world,
        Server(folder, host=host, port=port, log=log, environment=_pushed(world)) as server,
    ):
        address = (server.host, server.port)
        rows = [*_posts(world), f"  the book      {folder}", f"  the log       {log}"]
        lending = _Lending(world, Pusher([address])) if world else None
        stage = _Stage(address, server.address, "\n".join(rows), server.last_words, lending)
        _serve(Traffic(address, plan.names, plan.seed), plan, stage)
    _say("stopped; verifying the book")
    return verify(data=folder)


def _on_postgres(folder: Path, host: str, port: int, plan: "_Plan") -> int:
    """Three instances on a book in a database, with logs in a folder."""
    with _loans_beside(plan) as world, PostgresServer() as database:
        _load_population(database.url, plan)
        environment = _pushed(world)
        with Instances(
            database.url, folder, host=host, port=port, environment=environment
        ) as instances:
            servers = [(server.host, server.port) for server in instances.servers]
            lending = _Lending(world, Pusher(servers)) if world else None
            places = _places(instances, database, environment, _posts(world))
            _share(instances, plan, places, lending)
        _say("stopped; verifying the book")
        return verify(store=database.url)


def _with_ministack(folder: Path, host: str, port: int, plan: "_Plan") -> int:
    """Two instances on a book in a database; prices come and notices go through MiniStack."""
    venues.client()
    with (
        MiniStack(tell=_say) as stack,
        closing(Aws(stack.endpoint, _REGION)) as aws,
        LoanWorld(plan.seed) as world,
        PostgresServer() as database,
        Branch(aws) as branch,
    ):
        _load_population(database.url, plan)
        environment = {
            "AWS_ENDPOINT_URL": stack.endpoint,
            "AWS_REGION": _REGION,
            **world.environment,
        }
        with Instances(
            database.url, folder, host=host, port=port, count=2, environment=environment
        ) as instances:
            rows = [f"  SNS and SQS   {stack.endpoint}", *_posts(world)]
            places = _places(instances, database, environment, rows)
            _share(instances, plan, places, _Lending(world, Topics(aws), branch))
        _say("stopped; verifying the book")
        return verify(store=database.url)


def _share(instances: Instances, plan: "_Plan", places: str, lending: "_Lending | None") -> None:
    """Play on several instances, through their balancer."""
    address = (instances.balancer.host, instances.balancer.port)
    traffic = Traffic(
        address,
        plan.names,
        plan.seed,
        connections=len(instances.servers),
        patience_seconds=_PATIENCE_SECONDS,
    )
    look = _Watch(instances).look
    stage = _Stage(address, instances.address, places, instances.last_words, lending, look)
    _serve(traffic, plan, stage)


@contextmanager
def _loans_beside(plan: "_Plan") -> Iterator[LoanWorld | None]:
    """Open a world of loans; where nothing is there to trade with, say so, and give none."""
    try:
        venues.client()
    except ExtraMissing as error:
        _say(f"no loans in this demo: {error}")
        yield None
        return
    with LoanWorld(plan.seed) as world:
        yield world


def _pushed(world: LoanWorld | None) -> dict[str, str]:
    """Return the environment of an engine to which prices are pushed."""
    return {} if world is None else {**world.environment, **PUSHED}


def _posts(world: LoanWorld | None) -> list[str]:
    """Say where the trading posts show what they carried out."""
    if world is None:
        return []
    urls = world.posts.urls
    return [
        f"  Mos Espa      {urls['mos_espa']}/executed",
        f"  Black Spire   {urls['black_spire']}/executed",
    ]


def _places(
    instances: Instances,
    database: PostgresServer,
    environment: Mapping[str, str],
    more: Sequence[str],
) -> str:
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
    variables = [
        f"  {name}={shlex.quote(value)} \\" for name, value in environment.items() if value
    ]
    return "\n".join(
        [
            f"  (a balancer, with {_NUMBERS[len(rows)]} instances of the engine behind it)",
            *rows,
            f"  PostgreSQL    {database.url}   version {database.version}",
            *more,
            f"  the logs      {instances.folder}",
            "",
            "see another instance take the book over, and start the first again:",
            "",
            f"  kill -9 {first.pid}",
            *variables,
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


class _Lending(NamedTuple):
    """A world of loans, where its prices go, and who hears of liquidations."""

    world: LoanWorld
    outlet: Publish
    branch: Branch | None = None

    def news(self) -> None:
        """Tell of the notices that came."""
        for notice in self.branch.take() if self.branch else []:
            _news(_notice_text(notice))

    def text(self) -> str:
        """Say how the loans stand, in a line."""
        counts = self.world.counts
        warnings = f"{counts.warnings} warning{'' if counts.warnings == 1 else 's'}"
        return (
            f"loans: {counts.new} new, {counts.active} active, {counts.liquidating} liquidating,"
            f" {counts.liquidated} liquidated, {warnings};"
            f" 1 BESKAR is {self.world.price} GC"
        )

    def end(self) -> None:
        """Let what is under way come to its end, and say how that compares with what others know."""
        world, branch = self.world, self.branch
        _say("no more is borrowed; waiting for liquidations under way")
        is_settled = world.settle(_SETTLE_SECONDS)
        _say(self.text())
        amiss = len(world.differences())
        said = f"{amiss} of them differ from the book" if amiss else "the book has the same ones"
        _say(f"the trading posts carried out {world.executed()} orders; {said}")
        if branch is not None:
            until = time.monotonic() + _SETTLE_SECONDS
            while len(branch.told) < world.counts.liquidated and time.monotonic() < until:
                time.sleep(_WATCH_SECONDS)
            self.news()
            again = f", and {branch.repeated} again" if branch.repeated else ""
            _say(f"branches were told of {len(branch.told)} liquidations{again}")
        if not is_settled:
            _say("liquidations are still under way; whoever serves the book next goes on with them")


def _notice_text(notice: Notice) -> str:
    """Say what a notice tells; amounts are rounded."""
    sold, back = Decimal(notice.collateral_sold), Decimal(notice.outstanding_collateral)
    value, owed = Decimal(notice.collateral_sold_value), Decimal(notice.outstanding_balance)
    return (
        f"notice: loan {notice.loan_id} is liquidated, {sold:.4f} BESKAR sold for {value:.2f} GC,"
        f" {back:.4f} BESKAR left, {owed:.2f} GC owed"
    )


class _Stage(NamedTuple):
    """What a demo is played on: where it is, how it is told of, what is seen to meanwhile."""

    at: tuple[str, int]
    address: str
    """The same as a URL."""

    places: str
    last_words: Callable[[], str]
    lending: _Lending | None = None
    look: Callable[[], object] = lambda: None


def _serve(traffic: Traffic, plan: _Plan, stage: _Stage) -> None:
    """Keep the traffic going until it is time to stop. Raises UserError if the server ends."""
    rate, seconds, stop = plan.rate, plan.seconds, plan.stop
    started = time.monotonic()
    lending = stage.lending
    desk = HttpDesk(stage.at)
    portfolios = PortfoliosDemo(desk, plan.names[:PORTFOLIOS], seed=plan.seed)
    shown = _Counter(lambda: "; ".join(one.text() for one in (lending, portfolios) if one))
    try:
        traffic.prepare()
        portfolios.start()
        if lending:
            lending.world.play(stage.at, lending.outlet)
        _welcome(stage, traffic, _withdrawal(plan.users, plan.seed))
        started = time.monotonic()
        while not stop.is_set() and not (seconds and time.monotonic() - started >= seconds):
            _step(traffic)
            shown.show(time.monotonic() - started, traffic.counts)
            stage.look()
            if lending:
                lending.news()
            stop.wait(max(0.0, started + traffic.counts.total / rate - time.monotonic()))
    except OSError as error:
        if not stop.is_set():
            raise UserError(f"the server is gone ({error}): {stage.last_words()}") from None
    finally:
        traffic.close()
        portfolios.stop()
        desk.close()
    shown.end(time.monotonic() - started, traffic.counts)
    if lending:
        lending.end()


def _step(traffic: Traffic) -> None:
    """Send one request, and say so when it had to wait. Raises OSError."""
    before = time.monotonic()
    traffic.step()
    waited = time.monotonic() - before
    if waited > _PAUSE_SECONDS:
        _news(f"a request waited {waited:.1f} s for its answer")


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
    loans, going_on = "", "payments, bets, withdrawals and updates of portfolios"
    if stage.lending:
        loans = f"""
  curl '{at}/loans?status=active&limit=3'
  curl {at}/prices"""
        going_on = "payments, bets, withdrawals, updates of portfolios and loans"
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
  curl '{at}/portfolio?user_id={FIRST_ID}'
  curl '{at}/rebalance-transactions?user_id={FIRST_ID}&limit=4'{loans}

{going_on} are going on; Ctrl-C stops
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
            _news(f"instance {number} is gone")
        owner = self._instances.owner()
        if owner and owner != self._owner:
            self._owner = owner
            _news(f"instance {owner} owns the book")


class _Counter:
    """The counter: one line that changes on a terminal, else a line every few seconds."""

    def __init__(self, more: Callable[[], str]) -> None:
        """`more` is what is to be said at the end of the line."""
        self._more = more
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
        more = self._more()
        if more:
            text += f"; {more}"
        with suppress(OSError):  # the terminal may be gone; the book is still to be closed
            if self._is_terminal:
                room = shutil.get_terminal_size().columns - 1
                if len(text) > room:  # a line that wraps cannot be written over
                    text = f"{seconds:5.0f} s: {counts.done} done; {more} "
                    text = text[: text.rfind(" ", 0, room)].rstrip(",;")
                print(f"\r{text}\x1b[K", end="", flush=True)
            else:
                print(text, flush=True)


def _news(text: str) -> None:
    """Say something while the counter is shown."""
    _say(f"\r{text}\x1b[K" if sys.stdout.isatty() else text)


def _say(text: str) -> None:
    with suppress(OSError):
        print(text, flush=True)

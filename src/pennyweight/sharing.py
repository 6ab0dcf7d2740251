"""Books that are served, put together: for one process, for several of one machine, for many machines.

What speaks HTTP in front of them is put together in `serving`.
"""

import contextlib
import hmac
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Self

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from pennyweight.agents.expiry import HoldExpiry
from pennyweight.assemble import EXPIRIES, PRODUCTS, engine_on, open_reader, open_store
from pennyweight.config import Config, ConfigError
from pennyweight.delivery.http.guard import is_loopback
from pennyweight.delivery.http.metrics import Metrics
from pennyweight.delivery.watch import Watch
from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.engine import OWN_COMMANDS, USERS_MIN, Answer, Engine
from pennyweight.engine.overlay import ASSET
from pennyweight.engine.port import Store
from pennyweight.engine.rebuild import known_commands
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.commands import Command
from pennyweight.lending import USERS_RESERVED as NOTICES_RESERVED
from pennyweight.lending import Ends as LendingEnds
from pennyweight.lending import Window
from pennyweight.rebalancing import Ends as RebalancingEnds
from pennyweight.runtime.book import Book
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import Tenure, ThreadedBook
from pennyweight.runtime.follower import Follower
from pennyweight.runtime.frames import by_name
from pennyweight.runtime.front import Front
from pennyweight.runtime.holding import owner_name
from pennyweight.runtime.hosted import Hosted
from pennyweight.runtime.listener import Listener
from pennyweight.runtime.member import Agent, Member
from pennyweight.runtime.opening import standing_of
from pennyweight.searching import Ends as SearchEnds
from pennyweight.searching import users_reserved as search_reserved
from pennyweight.stores.places import Place
from pennyweight.streams import USERS_RESERVED, Ends

SECRET = "cluster_secret"  # noqa: S105 - the name of the setting
"""The setting of the store that fronts and owner share."""


SECRET_MARK = "cluster_secret_mark"  # noqa: S105 - as above
FORGOTTEN_MICROSECONDS = 60_000_000


class Opened(msgspec.Struct, frozen=True):
    """A book to be served, and what is to run beside it."""

    book: Book
    metrics: Metrics
    agents: Sequence[Agent] = ()
    neighbours: Callable[[], dict[str, str]] = dict
    secret: bytes = b""
    """What its fronts must know."""
    window: Window | None = None
    """What the face of loans sees of prices."""


@contextmanager
def open_alone(
    place: Path, config: Config, *, is_clock_accepted: bool = False, listen: str = ""
) -> Iterator[Opened]:
    """Open a book for this process alone; with `listen`, for workers that ask it there.

    Raises ConfigError, ClockRefused and what `open_store` raises.
    """
    reserved = users_reserved(config)
    with contextlib.closing(open_store(place)) as store, _Beside(config) as beside:
        clock = ClockGuard()
        engine = engine_on(
            store,
            config,
            clock,
            is_clock_accepted=is_clock_accepted,
            users_reserved=reserved,
        )
        book = ThreadedBook(
            engine, store, clock, observe=beside.metrics.observe_batch, hear=beside.hear
        )
        opened = partial(
            Opened, metrics=beside.metrics, agents=beside.agents(book), neighbours=beside.down
        )
        if not listen:
            yield opened(book, window=window_of(book, beside.lending, config))
            return
        secret = secrets.token_bytes(32)
        listener = Listener(
            None,
            secret=secret,
            commands=commands(),
            figures=book.figures,
            boards=beside.lending.boards,
        )
        beside.metrics.add(partial(_fronts, listener))
        yield opened(Hosted(book, listener, listen), secret=secret)


@contextmanager
def open_shared(
    place: Place, config: Config, *, is_clock_accepted: bool = False
) -> Iterator[Opened]:
    """Open a book that other instances may own as well. Raises ConfigError, StoreError."""
    settings = config.cluster
    check_cluster(config)
    reserved = users_reserved(config)
    store = open_store(place, config.store.book)
    with contextlib.closing(store), _Beside(config) as beside:
        clock = ClockGuard()
        secret = secret_of(store, config)
        check_secret(store, config, secret)

        def open_engine() -> Engine:
            return engine_on(
                store,
                config,
                clock,
                is_clock_accepted=is_clock_accepted,
                users_reserved=reserved,
            )

        def open_book(engine: Engine, tenure: Tenure, lost: Callable[[], object]) -> ThreadedBook:
            return ThreadedBook(
                engine,
                store,
                clock,
                observe=beside.metrics.observe_batch,
                hear=beside.hear,
                tenure=tenure,
                lost=lost,
                hold_seconds=settings.hold_seconds,
            )

        def figures() -> CacheFigures:
            return member.figures()

        listener = Listener(
            None,
            secret=secret,
            commands=commands(),
            figures=figures,
            boards=beside.lending.boards,
        )
        member = Member(
            store,
            front_of(store, config, secret, partial(address_of, store)),
            listener,
            name=owner_name(),
            listen=settings.listen,
            advertise=settings.advertise,
            lease_seconds=settings.lease_seconds,
            open_engine=open_engine,
            open_book=open_book,
            agents=beside.agents,
            clock=clock,
            is_clock_accepted=is_clock_accepted,
        )
        beside.metrics.add(partial(_membership, member, listener))
        window = window_of(member, beside.lending, config)
        yield Opened(member, beside.metrics, (), beside.down, secret, window)


@contextmanager
def open_front(
    place: Place, config: Config, *, address: str = "", secret: bytes = b""
) -> Iterator[Opened]:
    """Open a book that another process owns: at an address, or where its lease says.

    Raises ConfigError, StoreError.
    """
    with contextlib.closing(open_reader(place, config.store.book)) as store:
        find = (lambda: address) if address else partial(address_of, store)
        secret = secret or secret_of(store, config)
        book = Follower(store, front_of(store, config, secret, find))
        yield Opened(book, Metrics(), window=window_of(book, None, config))


# ── the parts ─────────────────────────────────────────────────────────────────────


def commands() -> dict[str, type[Command]]:
    """Return every command that may come over a link, by its name there."""
    modules = tuple(product.__name__ for product in PRODUCTS)
    products = [kind for kind in known_commands() if kind.__module__.startswith(modules)]
    return by_name([*products, *OWN_COMMANDS])


def front_of(store: Store, config: Config, secret: bytes, find: Callable[[], str | None]) -> Front:
    """Return the link to whoever owns the book."""

    def load_asset(name: str) -> Asset | None:
        record = store.record(ASSET, name)
        return None if record is None else record.read(Asset)

    return Front(
        find,
        secret=secret,
        book=config.store.book,
        commands=commands(),
        load_assets=lambda: standing_of(store).assets,
        load_asset=load_asset,
        hold_seconds=config.cluster.hold_seconds,
        queue_max=config.engine.queue_max,
    )


def address_of(store: Store) -> str | None:
    """Return where the owner listens, None while there is none. Raises StoreUnavailable."""
    lease = store.lease()
    return lease.address if lease is not None and lease.expires_at > lease.now else None


def secret_of(store: Store, config: Config) -> bytes:
    """Return what fronts and owner share: configured, else made by who came first."""
    if config.cluster.secret:
        return config.cluster.secret.encode()
    known = store.stage(SECRET)
    if known is None:
        known = store.stage(SECRET, secrets.token_hex(32), is_first=True)
    return (known or "").encode()


def check_secret(store: Store, config: Config, secret: bytes) -> None:
    """Refuse to begin beside instances that have another secret: neither could join the other.

    Where none serves the book, or none has for a minute, ours counts from now on. Raises
    ConfigError.
    """
    mark = hmac.new(secret, config.store.book.encode(), "sha256").hexdigest()[:16]
    known = store.stage(SECRET_MARK)
    if known == mark:
        return
    lease = store.lease()
    if known and lease is not None and lease.expires_at > lease.now - FORGOTTEN_MICROSECONDS:
        raise ConfigError(
            f"cluster.secret is not that of the instance at {lease.address}, which serves this "
            "book or did a moment ago; to change it, stop all instances first"
        )
    store.stage(SECRET_MARK, mark)


def users_reserved(config: Config) -> int:
    """Return how many users relays and exporter may have in memory. Raises ConfigError if none are left."""
    reserved = USERS_RESERVED if config.kafka.broker else 0
    if config.aws.endpoint:
        reserved += NOTICES_RESERVED
    reserved += search_reserved(config)
    if config.cache.users_max - reserved < USERS_MIN:
        raise ConfigError(
            f"cache.users_max is {config.cache.users_max}, below {USERS_MIN + reserved}: with "
            f"Kafka, AWS or search {reserved} of them are the relays', and the engine needs {USERS_MIN}"
        )
    return reserved


def check_cluster(config: Config) -> None:
    """Check that this process can listen, and others be told where. Raises ConfigError."""
    host = config.cluster.listen.rpartition(":")[0].strip("[]")
    if host in {"0.0.0.0", "::", ""} and not config.cluster.advertise:  # noqa: S104 - not bound here
        raise ConfigError(
            f"cluster.listen is {config.cluster.listen}, which says nobody where to connect: "
            "set cluster.advertise to this machine's HOST:PORT"
        )
    if not is_loopback(config.server.host) and is_loopback(host) and not config.cluster.advertise:
        raise ConfigError(
            f"server.host is {config.server.host}, but cluster.listen is {config.cluster.listen}: "
            "instances on other machines could not reach the owner; "
            "set cluster.listen to this machine's HOST:PORT"
        )

    _check_free(config.cluster.listen)


def _check_free(address: str) -> None:
    """Look whether the listener will have its address, before anything says that it is ready."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, int(port)), family=family).close()
    except OSError as error:
        raise ConfigError(f"cluster.listen: cannot listen on {address}: {error.strerror}") from None


def window_of(book: Book, lending: LendingEnds | None, config: Config) -> Window:
    """Return what the face of loans sees of prices."""
    return Window(book.boards, lending, config.loans)


class _Beside:
    """What is beside the book of whichever ownership this process has: counters, and its ends outside."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError where a client that is needed is not installed."""
        self.metrics = Metrics()
        self.lending = LendingEnds(config)
        self._watch = Watch()
        self._streams = Ends(config.kafka)
        self._rebalancing = RebalancingEnds()
        self._search = SearchEnds(config)
        for part in (self._watch, self._streams, self.lending, self._rebalancing, self._search):
            self.metrics.add(part.metrics)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up what the ends had open."""
        self.lending.close()

    def agents(self, book: ThreadedBook) -> list[Agent]:
        """Return what acts on the outside world while the book is owned."""
        return [
            HoldExpiry(book, commands=EXPIRIES),
            *self._streams.of(book),
            *self.lending.of(book),
            *self._rebalancing.of(book),
            *self._search.of(book),
        ]

    def hear(self, answers: Sequence[Answer]) -> None:
        """Hear all answers of a batch; called by the engine's thread."""
        self._watch(answers)
        self.lending.hear(answers)
        self._rebalancing.hear(answers)

    def down(self) -> dict[str, str]:
        """Return what does not work, for `/readyz`."""
        parts = (self._streams, self.lending, self._rebalancing, self._search)
        return {name: why for part in parts for name, why in part.down().items()}


def _fronts(listener: Listener) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "pennyweight_fronts", "Processes that forward commands to this one", value=listener.fronts
    )


def _membership(member: Member, listener: Listener) -> Iterator[Metric]:
    """Tell whose the book is, in Prometheus' terms."""
    yield from _fronts(listener)
    engine = member.engine
    yield GaugeMetricFamily(
        "pennyweight_owner", "1 where the book is owned", value=int(engine is not None)
    )
    if engine is not None:
        yield GaugeMetricFamily(
            "pennyweight_epoch", "How often the book changed hands", value=engine.head.epoch
        )
    yield CounterMetricFamily(
        "pennyweight_takeovers", "How often this process took the book over", value=member.takeovers
    )
    yield GaugeMetricFamily(
        "pennyweight_clock_lead_seconds",
        "How far this clock is surely away from the database's",
        value=member.clock.lead / 1_000_000,
    )
    traffic = member.store.traffic
    yield CounterMetricFamily(
        "pennyweight_store_round_trips",
        "What the writer of this process asked the database",
        value=traffic.round_trips,
    )
    yield CounterMetricFamily(
        "pennyweight_store_bytes_sent", "And told it, in bytes", value=traffic.bytes_sent
    )

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
from pennyweight.engine.engine import OWN_COMMANDS, USERS_MIN, Engine
from pennyweight.engine.overlay import ASSET
from pennyweight.engine.port import Store
from pennyweight.engine.rebuild import known_commands
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.commands import Command
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


@contextmanager
def open_alone(
    place: Path, config: Config, *, is_clock_accepted: bool = False, listen: str = ""
) -> Iterator[Opened]:
    """Open a book for this process alone; with `listen`, for workers that ask it there.

    Raises ConfigError, ClockRefused and what `open_store` raises.
    """
    reserved = users_reserved(config)
    store = open_store(place)
    try:
        clock = ClockGuard()
        engine = engine_on(
            store,
            config,
            clock,
            is_clock_accepted=is_clock_accepted,
            users_reserved=reserved,
        )
        metrics, watch = _metrics()
        ends = Ends(config.kafka)
        metrics.add(ends.metrics)
        book = ThreadedBook(engine, store, clock, observe=metrics.observe_batch, hear=watch)
        agents: list[Agent] = [HoldExpiry(book, commands=EXPIRIES), *ends.of(book)]
        if not listen:
            yield Opened(book, metrics, agents, ends.down)
            return
        secret = secrets.token_bytes(32)
        listener = Listener(None, secret=secret, commands=commands(), figures=book.figures)
        metrics.add(partial(_fronts, listener))
        yield Opened(Hosted(book, listener, listen), metrics, agents, ends.down, secret)
    finally:
        store.close()


@contextmanager
def open_shared(
    place: Place, config: Config, *, is_clock_accepted: bool = False
) -> Iterator[Opened]:
    """Open a book that other instances may own as well. Raises ConfigError, StoreError."""
    settings = config.cluster
    check_cluster(config)
    reserved = users_reserved(config)
    store = open_store(place, config.store.book)
    with contextlib.closing(store):
        clock = ClockGuard()
        metrics, watch = _metrics()
        ends = Ends(config.kafka)
        metrics.add(ends.metrics)
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
                observe=metrics.observe_batch,
                hear=watch,
                tenure=tenure,
                lost=lost,
                hold_seconds=settings.hold_seconds,
            )

        def figures() -> CacheFigures:
            return member.figures()

        listener = Listener(None, secret=secret, commands=commands(), figures=figures)
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
            agents=lambda book: [HoldExpiry(book, commands=EXPIRIES), *ends.of(book)],
            clock=clock,
            is_clock_accepted=is_clock_accepted,
        )
        metrics.add(partial(_membership, member, listener))
        yield Opened(member, metrics, (), ends.down, secret)


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
        yield Opened(Follower(store, front_of(store, config, secret, find)), Metrics(), (), dict)


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
    """Return how many users the relay may have in memory. Raises ConfigError if none are left."""
    reserved = USERS_RESERVED if config.kafka.broker else 0
    if config.cache.users_max - reserved < USERS_MIN:
        raise ConfigError(
            f"cache.users_max is {config.cache.users_max}, below {USERS_MIN + reserved}: with "
            f"Kafka {reserved} of them are the relay's, and the engine needs {USERS_MIN}"
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


def _metrics() -> tuple[Metrics, Watch]:
    metrics, watch = Metrics(), Watch()
    metrics.add(watch.metrics)
    return metrics, watch


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

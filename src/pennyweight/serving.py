"""A served book put together from the configuration: faces, guard, driver, server, logs.

Apart from `assemble`, because who only opens a book needs no HTTP server.
"""

import contextlib
import sys
from pathlib import Path

import msgspec
import structlog

from pennyweight.agents.expiry import HoldExpiry
from pennyweight.assemble import EXPIRIES, PRODUCTS, engine_on, open_store
from pennyweight.config import Config, ConfigError, Log
from pennyweight.delivery.http import ledger as ledger_face
from pennyweight.delivery.http import operations, proof, server
from pennyweight.delivery.http import payments as payments_face
from pennyweight.delivery.http import wallet as wallet_face
from pennyweight.delivery.http import withdrawals as withdrawals_face
from pennyweight.delivery.http.guard import Guard, is_loopback
from pennyweight.delivery.http.metrics import Metrics
from pennyweight.delivery.http.routes import Route
from pennyweight.delivery.wallet import WalletSettings
from pennyweight.delivery.watch import Watch
from pennyweight.engine.engine import USERS_MIN
from pennyweight.ledger.refusals import Refused
from pennyweight.proving import prove
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.streams import USERS_RESERVED, Streams


def serve(folder: Path, config: Config, *, is_clock_accepted: bool = False) -> int:
    """Serve a folder's book until a signal says stop; see `Roof.serve`.

    Prints `ready http://HOST:PORT` on stdout. Raises ConfigError, ClockRefused and what
    `open_store` raises.
    """
    write_logs(config.log)
    guard = guard_of(folder, config)
    faces = routes_of(folder, config)
    store = open_store(folder)
    try:
        clock = ClockGuard()
        engine = engine_on(
            store,
            config,
            clock,
            is_clock_accepted=is_clock_accepted,
            users_reserved=_reserved(config),
        )
        metrics = Metrics()
        watch = Watch()
        metrics.add(watch.metrics)
        book = ThreadedBook(engine, store, clock, observe=metrics.observe_batch, hear=watch)
        settings = server.ServerConfig(
            host=config.server.host, port=config.server.port, is_garbage_ours=True
        )
        streams = Streams(book, config.kafka) if config.kafka.broker else None
        if streams is not None:
            metrics.add(streams.metrics)
        expiry = HoldExpiry(book, commands=EXPIRIES)
        try:
            server.serve(
                book,
                faces,
                guard,
                metrics,
                settings,
                on_ready=_say_ready,
                neighbours=operations.no_neighbours if streams is None else streams.down,
                agents=[expiry] if streams is None else [expiry, streams],
            )
        except SystemExit:
            address = f"{config.server.host}:{config.server.port}"
            raise ConfigError(f"cannot listen on {address}: in use, or not ours") from None
        return 1 if book.failure else 0
    finally:
        store.close()


def _reserved(config: Config) -> int:
    """Return how many users the relay may have in memory. Raises ConfigError if none are left."""
    reserved = USERS_RESERVED if config.kafka.broker else 0
    if config.cache.users_max - reserved < USERS_MIN:
        raise ConfigError(
            f"cache.users_max is {config.cache.users_max}, below {USERS_MIN + reserved}: with "
            f"Kafka {reserved} of them are the relay's, and the engine needs {USERS_MIN}"
        )
    return reserved


def guard_of(folder: Path, config: Config) -> Guard:
    """Return who may call what. Raises ConfigError when nobody would be kept out."""
    host = config.server.host
    signed = {wallet_face.FACE: wallet_face.SIGNATURE_HEADER} if config.wallet.public_key else {}
    guard = Guard(folder, host, open_faces=config.auth.open_faces, signed_faces=signed)
    if not is_loopback(host) and not guard.has_keys and not config.auth.open_faces:
        raise ConfigError(
            f"{host} can be reached from elsewhere, which needs API keys: create one with "
            f"`pennyweight keys create '*' --data {folder}`, or listen on 127.0.0.1"
        )
    return guard


def routes_of(folder: Path, config: Config) -> list[Route]:
    """Return the routes of every face. Raises ConfigError."""
    try:
        return [
            *ledger_face.routes([product.PRODUCT for product in PRODUCTS]),
            *proof.routes(lambda _, progress: prove(folder, progress)),
            *payments_face.routes(config.payments.profile),
            *wallet_face.routes(wallet_settings(config)),
            *withdrawals_face.routes(),
        ]
    except (Refused, wallet_face.SignatureUnavailable) as error:
        raise ConfigError(f"wallet: {error}") from None


def wallet_settings(config: Config) -> WalletSettings:
    """Return what the wallet checks. Raises ConfigError."""
    values = msgspec.to_builtins(config.wallet)
    for name, value in values.items():
        if isinstance(value, list | tuple) and not value and name != "expired_tokens":
            values[name] = None
    if config.wallet.public_key:
        try:
            values["public_key"] = Path(config.wallet.public_key).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"wallet.public_key: {error}") from None
    try:
        return msgspec.convert(values, WalletSettings)
    except msgspec.ValidationError as error:
        raise ConfigError(f"wallet: {error}") from None


def write_logs(settings: Log) -> None:
    """Write logs to stderr, one JSON object per line unless a reader is meant to see them."""
    is_json = settings.format == "json"
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer() if is_json else structlog.dev.ConsoleRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(settings.level),
        logger_factory=structlog.WriteLoggerFactory(_Stderr()),  # type: ignore[arg-type]
    )


class _Stderr:
    """Standard error as it is at the moment. A log that nobody reads any more stops no book."""

    def write(self, text: str) -> None:
        """Write, or drop the line."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        """See `write`."""
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def _say_ready(address: str) -> None:
    print(f"ready {address}", flush=True)  # noqa: T201 - scripts wait for this line

"""A served book put together from the configuration: faces, guard, driver, server, logs.

Apart from `assemble`, because who only opens a book needs no HTTP server.
"""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from pennyweight.assemble import PRODUCTS
from pennyweight.config import Config, ConfigError, Log
from pennyweight.delivery.http import ledger as ledger_face
from pennyweight.delivery.http import letters as letters_face
from pennyweight.delivery.http import loans as loans_face
from pennyweight.delivery.http import payments as payments_face
from pennyweight.delivery.http import portfolios as portfolios_face
from pennyweight.delivery.http import proof, server
from pennyweight.delivery.http import wallet as wallet_face
from pennyweight.delivery.http import withdrawals as withdrawals_face
from pennyweight.delivery.http.guard import Guard, is_loopback
from pennyweight.delivery.http.routes import Route
from pennyweight.delivery.keys import KeySource, StoreKeys
from pennyweight.delivery.wallet import WalletSettings
from pennyweight.ledger.refusals import Refused
from pennyweight.lending import Window
from pennyweight.proving import prove
from pennyweight.sharing import Opened, open_alone, open_shared
from pennyweight.stores.places import Place, read_place


def serve(place: Place, config: Config, *, is_clock_accepted: bool = False) -> int:
    """Serve a book until a signal says stop; see `Roof.serve`.

    Prints `ready http://HOST:PORT` on stdout. Raises ConfigError, ClockRefused and what
    `open_store` raises.
    """
    write_logs(config.log)
    if isinstance(place, str):
        place = read_place(place)
    if config.server.workers > 1:
        from pennyweight import workers  # noqa: PLC0415 - they are served by this module in turn

        return workers.serve(place, config, is_clock_accepted=is_clock_accepted)
    if isinstance(place, Path):
        guard_of(place, config)  # before a book is begun that nobody may ask
        opening = open_alone(place, config, is_clock_accepted=is_clock_accepted)
    else:
        opening = open_shared(place, config, is_clock_accepted=is_clock_accepted)
    with opening as opened:
        serve_faces(place, config, opened, on_ready=_say_ready)
        return 1 if opened.book.failure else 0


def serve_faces(
    place: Place,
    config: Config,
    opened: Opened,
    *,
    on_ready: Callable[[str], object],
    is_one_of_many: bool = False,
    stopped: Callable[[Callable[[], object]], object] = lambda _: None,
) -> None:
    """Serve every face of an opened book; `is_one_of_many` shares the port with others.

    `stopped` is told, before it begins, what to call for a stop that no signal brings.
    Raises ConfigError.
    """
    source = place if isinstance(place, Path) else StoreKeys(opened.book.store)
    guard = guard_of(source, config)
    faces = routes_of(place, config, opened.window)
    settings = server.ServerConfig(
        host=config.server.host,
        port=config.server.port,
        is_garbage_ours=True,
        is_one_of_many=is_one_of_many,
    )
    serving = server.Server(
        opened.book,
        faces,
        guard,
        opened.metrics,
        settings,
        on_ready=on_ready,
        neighbours=opened.neighbours,
        agents=opened.agents,
    )
    stopped(serving.stop)
    try:
        serving.run()
    except SystemExit:
        address = f"{config.server.host}:{config.server.port}"
        raise ConfigError(f"cannot listen on {address}: in use, or not ours") from None


def guard_of(source: Path | KeySource, config: Config) -> Guard:
    """Return who may call what. Raises ConfigError when nobody would be kept out."""
    host = config.server.host
    signed = {wallet_face.FACE: wallet_face.SIGNATURE_HEADER} if config.wallet.public_key else {}
    guard = Guard(source, host, open_faces=config.auth.open_faces, signed_faces=signed)
    if not is_loopback(host) and not guard.has_keys and not config.auth.open_faces:
        raise ConfigError(
            f"{host} can be reached from elsewhere, which needs API keys: create one with "
            f"`pennyweight keys create '*' {_where(source)}`, or listen on 127.0.0.1"
        )
    return guard


def _where(source: Path | KeySource) -> str:
    return f"--data {source}" if isinstance(source, Path) else "--store URL"


def routes_of(place: Place, config: Config, window: Window | None) -> list[Route]:
    """Return the routes of every face; `window` shows prices. Raises ConfigError."""
    try:
        return [
            *ledger_face.routes([product.PRODUCT for product in PRODUCTS]),
            *proof.routes(lambda _, progress: prove(place, config.store.book, progress)),
            *payments_face.routes(config.payments.profile),
            *wallet_face.routes(wallet_settings(config)),
            *withdrawals_face.routes(),
            *loans_face.routes(
                config.loans.dialect, window, is_push_open=config.loans.is_push_open
            ),
            *portfolios_face.routes(),
            *letters_face.routes(),
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

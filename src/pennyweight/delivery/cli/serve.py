"""`pennyweight serve`: a book behind HTTP."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from pennyweight.config import load
from pennyweight.delivery.cli.shared import ConfigFile, Data, roof


def serve(
    *,
    data: Data,
    host: Annotated[str | None, Parameter(help="Where to listen (127.0.0.1).", negative=())] = None,
    port: Annotated[int | None, Parameter(help="0 takes a free one (8080).", negative=())] = None,
    config: ConfigFile = None,
    accept_clock: Annotated[
        bool,
        Parameter(help="Believe this machine's clock, far from the last commit.", negative=()),
    ] = False,
    open_faces: Annotated[
        tuple[str, ...] | None,
        Parameter(
            help="Faces that need no key, on any address.", negative=(), consume_multiple=True
        ),
    ] = None,
    users_in_memory: Annotated[
        int | None,
        Parameter(help="The most users whose data is in memory (10000).", negative=()),
    ] = None,
    kafka: Annotated[
        str | None,
        Parameter(help="HOST:PORT of a broker: settlements in, events out.", negative=()),
    ] = None,
    payments_profile: Annotated[
        str | None, Parameter(help="Dialect of the payments face: seed or head.", negative=())
    ] = None,
    wallet_dialect: Annotated[
        str | None, Parameter(help="Dialect of the wallet's status codes.", negative=())
    ] = None,
    wallet_public_key: Annotated[
        Path | None,
        Parameter(help="A PEM file; the wallet's requests must then be signed.", negative=()),
    ] = None,
) -> int:
    """Serve the book in a folder, beginning one where there is none.

    Prints `ready http://HOST:PORT` when it is. Without API keys it listens on this machine
    only. On SIGTERM or Ctrl-C it answers what waits, and ends with exit code 0. The broker may
    come from KAFKA_BROKER too; without one, settlements come over HTTP alone.

    Example: pennyweight serve --data book --port 8080 --users-in-memory 300
    """
    chosen: dict[str, Any] = {
        "server.host": host,
        "server.port": port,
        "auth.open_faces": open_faces,
        "cache.users_max": users_in_memory,
        "kafka.broker": kafka,
        "payments.profile": payments_profile,
        "wallet.dialect": wallet_dialect,
        "wallet.public_key": None if wallet_public_key is None else str(wallet_public_key),
    }
    overrides = {name: value for name, value in chosen.items() if value is not None}
    loaded = load(config, overrides=overrides)
    return roof().serve(data, loaded.config, is_clock_accepted=accept_clock)

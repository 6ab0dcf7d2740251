"""`pennyweight serve`: a book behind HTTP."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from pennyweight.delivery.cli.shared import BookName, ConfigFile, Data, StoreUrl, find, roof


def serve(
    *,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    host: Annotated[str | None, Parameter(help="Where to listen (127.0.0.1).", negative=())] = None,
    port: Annotated[int | None, Parameter(help="0 takes a free one (8080).", negative=())] = None,
    workers: Annotated[
        int | None, Parameter(help="Processes that speak HTTP, on one port (1).", negative=())
    ] = None,
    cluster_listen: Annotated[
        str | None,
        Parameter(
            help="HOST:PORT where other instances of the book reach this one (127.0.0.1:0).",
            negative=(),
        ),
    ] = None,
    cluster_advertise: Annotated[
        str | None,
        Parameter(help="HOST:PORT to tell them, where it is another one.", negative=()),
    ] = None,
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
        Parameter(
            help="HOST:PORT of a broker: settlements and updates in, events out.", negative=()
        ),
    ] = None,
    search: Annotated[
        str | None,
        Parameter(
            help="http://HOST:PORT of Elasticsearch or OpenSearch, for documents.", negative=()
        ),
    ] = None,
    loans: Annotated[
        bool | None,
        Parameter(
            help="Follow prices and liquidate loans; set by AWS_ENDPOINT_URL too.", negative=()
        ),
    ] = None,
    loans_dialect: Annotated[
        str | None, Parameter(help="Names that bank and venues use: seed or later.", negative=())
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
    """Serve the book in a folder or a database, beginning one where there is none.

    Prints `ready http://HOST:PORT` when it is. Without API keys it listens on this machine
    only. On SIGTERM or Ctrl-C it answers what waits, and ends with exit code 0. The broker may
    come from KAFKA_BROKER too, the search engine from ELASTICSEARCH_URL; without a broker settlements
    and updates of portfolios come over HTTP alone. Prices and notices of loans go over the SNS
    and SQS at AWS_ENDPOINT_URL, orders to MOS_ESPA_URL and BLACK_SPIRE_URL.

    A book in a database may be served by several instances at once: one owns it, the others
    hand their commands to it, and one of them takes over when it is gone.

    Example: pennyweight serve --data book --port 8080 --users-in-memory 300

    Example: pennyweight serve --store postgresql://money@db.local/money --workers 2
    """
    found, settings = find(
        data,
        store,
        book,
        config,
        server__host=host,
        server__port=port,
        server__workers=workers,
        cluster__listen=cluster_listen,
        cluster__advertise=cluster_advertise,
        auth__open_faces=open_faces,
        cache__users_max=users_in_memory,
        kafka__broker=kafka,
        search__url=search,
        loans__is_watched=loans,
        loans__dialect=loans_dialect,
        payments__profile=payments_profile,
        wallet__dialect=wallet_dialect,
        wallet__public_key=None if wallet_public_key is None else str(wallet_public_key),
    )
    return roof().serve(found.place, settings, is_clock_accepted=accept_clock)

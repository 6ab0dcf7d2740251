"""`pennyweight bench rebalances`: how fast updates of portfolios are taken."""

from typing import Annotated

from cyclopts import Parameter

from pennyweight.delivery.cli.bench_shared import (
    Addresses,
    Batch,
    Connections,
    Directory,
    JsonFile,
    Rate,
    Runs,
    Seconds,
    StoreUrl,
    Token,
    WarmUp,
    measure,
)
from pennyweight.delivery.cli.shared import UserError, database_of, host_and_port
from pennyweight.simulators.figures import Setting
from pennyweight.simulators.rebalancebench import FROM_KAFKA, IN_PROCESS, OVER_HTTP


def rebalances(
    *,
    connections: Connections = 64,
    seconds: Seconds = 10.0,
    warm_up: WarmUp = 1.0,
    users: Annotated[int, Parameter(help="How many portfolios there are.")] = 1_000,
    skew: Annotated[
        str,
        Parameter(help="Whose come: uniform, zipf:S, hot (one user's), scan (all in turn)."),
    ] = "uniform",
    rate: Rate = None,
    address: Addresses = (),
    token: Token = "",
    kafka: Annotated[
        bool, Parameter(help="Without HTTP: a backlog that waits on Kafka.", negative=())
    ] = False,
    messages: Annotated[
        int, Parameter(help="With --kafka: updates in each backlog, at most 100 000.")
    ] = 30_000,
    in_process: Annotated[
        bool,
        Parameter(help="Without HTTP and Kafka: batches, executed by the engine.", negative=()),
    ] = False,
    batch: Batch = (1_000, 200, 32),
    runs: Runs = 1,
    seed: Annotated[int, Parameter(help="Whose portfolios drift, and how far.")] = 1,
    directory: Directory = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> int:
    """Measure how fast updates of portfolios are taken, durably, and verify the book afterwards.

    Every portfolio has the same three assets and no policy, and each update puts all of them
    off their targets: so each makes a run of three transactions. Over HTTP they are posted
    under a request_id each and answered with the transactions. With `--kafka` they wait on
    the broker inside the Kafka client, in four partitions, once with and once without a
    request_id, and carry as_of; counted is the time from the first look at which the engine
    has booked something to the last booking.

    Example: pennyweight bench rebalances --connections 64 --seconds 10

    Example: pennyweight bench rebalances --kafka --messages 50000
    """
    if kafka and in_process:
        raise UserError("--kafka or --in-process, not both", code=2)
    if (kafka or in_process) and (address or rate is not None):
        raise UserError("--address and --rate are for HTTP", code=2)
    setting = Setting(
        scenario=FROM_KAFKA if kafka else IN_PROCESS if in_process else OVER_HTTP,
        connections=connections,
        seconds=seconds,
        warm_up_seconds=warm_up,
        users=users,
        skew=skew,
        rate=rate,
        addresses=tuple(map(host_and_port, address)),
        token=token,
        messages=messages,
        is_in_process=in_process,
        batches=batch,
        seed=seed,
        directory=directory,
        store="" if store is None else database_of(store),
    )
    return measure(setting, runs, json)

"""`pennyweight bench withdrawals` and `pennyweight bench settlements`."""

from typing import Annotated, Literal

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
from pennyweight.delivery.cli.shared import database_of, host_and_port
from pennyweight.simulators.figures import Setting

Users = Annotated[int, Parameter(help="How many users there are, of the generated population.")]
InMemory = Annotated[int, Parameter(help="How many of them may be in the engine's memory.")]
InProcess = Annotated[
    bool, Parameter(help="Without HTTP and Kafka: batches, executed by the engine.", negative=())
]
Seed = Annotated[int, Parameter(help="Population, and who withdraws what.")]


def withdrawals(
    *,
    connections: Connections = 64,
    seconds: Seconds = 10.0,
    warm_up: WarmUp = 1.0,
    users: Users = 900,
    users_in_memory: InMemory = 300,
    skew: Annotated[
        str,
        Parameter(help="Who withdraws: uniform, zipf:S, hot (one user), scan (all in turn)."),
    ] = "uniform",
    settle: Annotated[
        Literal["http", "kafka", "none"],
        Parameter(help="How withdrawals end: POST /settlements, messages, or not at all."),
    ] = "http",
    settle_rate: Annotated[
        float, Parameter(help="Settlements a second from Kafka, with --settle kafka.")
    ] = 5_000,
    rate: Rate = None,
    address: Addresses = (),
    token: Token = "",
    keys: Annotated[
        Literal["random", "ordered"], Parameter(help="Withdrawal ids: random, or time-ordered.")
    ] = "random",
    in_process: InProcess = False,
    batch: Batch = (32,),
    runs: Runs = 1,
    seed: Seed = 1,
    directory: Directory = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> int:
    """Measure how fast withdrawals are answered, durably, and verify the book afterwards.

    Each withdraws 0.0001 of a token of which the user has enough, under an id of its own.
    Open withdrawals would pile up (an account has at most 1 000), so with `--settle http`
    every second request is the settlement of the withdrawal before it on the same connection,
    and counts as a request. With `--settle kafka` all requests are withdrawals, and
    settlements come from the broker inside the Kafka client at `--settle-rate`, those
    accepted a second ago first, else of withdrawals made before the run. With `--settle
    none` nothing ends: for short runs that no single user dominates.

    With `--store` the book is in a database, and is removed from it afterwards, if the role may.

    A server at `--address` must have the population in its book: `pennyweight simulate users
    --count 900 --seed 1`.

    Example: pennyweight bench withdrawals --skew zipf:1.0 --seconds 10
    """
    setting = Setting(
        scenario="withdrawals",
        connections=connections,
        seconds=seconds,
        warm_up_seconds=warm_up,
        users=users,
        users_in_memory=users_in_memory,
        skew=skew,
        settle=settle,
        settle_rate=settle_rate,
        rate=rate,
        addresses=tuple(map(host_and_port, address)),
        token=token,
        keys=keys,
        is_in_process=in_process,
        batches=batch,
        seed=seed,
        directory=directory,
        store="" if store is None else database_of(store),
    )
    return measure(setting, runs, json)


def settlements(
    *,
    messages: Annotated[
        int, Parameter(help="Settlements in the backlog of each case, at most 100 000.")
    ] = 20_000,
    users: Users = 900,
    users_in_memory: InMemory = 300,
    in_process: InProcess = False,
    batch: Batch = (1_000,),
    runs: Runs = 1,
    seed: Seed = 1,
    directory: Directory = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> int:
    """Measure how fast a backlog of settlements is booked from Kafka, and verify the books.

    Each settles one open withdrawal by its id. The broker is the one inside the Kafka
    client, with four partitions. Users are cold (all of them, none in memory) or warm (three
    quarters of as many as memory holds, all there before); settlements have a
    settlement_id or not. Counted is the time from letting the engine go, with the whole
    backlog in the broker, to the last booking. With `--store` the books are in a database,
    one after the other, each removed in the end, if the role may.

    Example: pennyweight bench settlements --messages 50000
    """
    setting = Setting(
        scenario="settlements",
        messages=messages,
        users=users,
        users_in_memory=users_in_memory,
        is_in_process=in_process,
        batches=batch,
        seed=seed,
        directory=directory,
        store="" if store is None else database_of(store),
    )
    return measure(setting, runs, json)

"""`pennyweight bench`: measure speed, then verify the book."""

from typing import Annotated, Literal

from cyclopts import App, Parameter

from pennyweight.delivery.cli.bench_cache import cache
from pennyweight.delivery.cli.bench_desk import settlements, withdrawals
from pennyweight.delivery.cli.bench_export import export
from pennyweight.delivery.cli.bench_rebalances import rebalances
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
from pennyweight.delivery.cli.bench_ticks import ticks
from pennyweight.delivery.cli.shared import database_of, host_and_port
from pennyweight.simulators.figures import Setting

app = App(name="bench", result_action="return_value")
for _command in (withdrawals, settlements, rebalances, export, cache, ticks):
    app.command(_command)

Scenario = Literal["transfers", "payments", "bets", "in-process", "facade"]


@app.default
def bench(
    scenario: Annotated[Scenario, Parameter(help="What to measure.")] = "transfers",
    /,
    *,
    connections: Connections = 64,
    seconds: Seconds = 10.0,
    warm_up: WarmUp = 1.0,
    users: Annotated[int, Parameter(help="How many accounts take part.")] = 1_000,
    skew: Annotated[
        str, Parameter(help="Who takes part: uniform, zipf:S, scan, or hot (all pay one account).")
    ] = "uniform",
    rate: Rate = None,
    address: Addresses = (),
    token: Token = "",
    keys: Annotated[
        Literal["random", "ordered", "both"],
        Parameter(help="Idempotency keys: random, time-ordered; both for in-process."),
    ] = "random",
    batch: Batch = (1_000, 200, 32, 1),
    threads: Annotated[
        tuple[int, ...],
        Parameter(help="Facade: so many callers at once.", consume_multiple=True, negative=()),
    ] = (1, 8),
    preload_accounts: Annotated[
        int, Parameter(help="Transfers: accounts that are in the book before.")
    ] = 0,
    preload_keys: Annotated[int, Parameter(help="Transfers: keys bound before.")] = 0,
    runs: Runs = 1,
    seed: Annotated[int, Parameter(help="Who pays whom.")] = 1,
    directory: Directory = None,
    store: StoreUrl = None,
    workers: Annotated[int, Parameter(help="Processes of the server that speak HTTP.")] = 1,
    instances: Annotated[
        int, Parameter(help="With --store: servers on the one book, sharing the connections.")
    ] = 1,
    json: JsonFile = None,
) -> int:
    """Measure how fast money moves, durably, and verify the book afterwards.

    Starts a server on a fresh book in a temporary directory and loads it from another
    process: `transfers` by `/v1/transfers`, `payments` by `/payments`, `bets` by bets and
    wins in turn. `in-process` executes batches on a durable book without HTTP, `facade`
    bets and wins in Python, in memory. Every request has a key of its own.

    With `--store` the book is in a database, and is removed from it afterwards, if the role
    may. Round trips for each batch and bytes sent for each command are counted, and a commit
    of one row on one connection is timed before and after, to compare with. With
    `--instances` one server owns the book and the others hand on to it; connections go to all
    of them evenly, with nothing in between.

    With `--rate`, latency counts from the moment a request was due. Exits with 1 when the
    book is not right afterwards.

    Example: pennyweight bench transfers --connections 64 --seconds 10

    Example: pennyweight bench transfers --store postgresql://owner@db.local/bench --instances 3
    """
    setting = Setting(
        scenario=scenario,
        connections=connections,
        seconds=seconds,
        warm_up_seconds=warm_up,
        users=max(users, preload_accounts and 2),
        skew=skew,
        keys=keys,
        rate=rate,
        addresses=tuple(map(host_and_port, address)),
        token=token,
        preload_keys=preload_keys,
        preload_accounts=preload_accounts,
        batches=batch,
        threads=threads,
        seed=seed,
        directory=directory,
        store="" if store is None else database_of(store),
        workers=workers,
        instances=instances,
    )
    return measure(setting, runs, json)

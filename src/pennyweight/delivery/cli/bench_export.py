"""`pennyweight bench export`: how fast documents reach a search engine."""

from typing import Annotated

from cyclopts import Parameter

from pennyweight.delivery.cli.bench_shared import Directory, JsonFile, Runs, StoreUrl, measure
from pennyweight.delivery.cli.shared import UserError, database_of
from pennyweight.simulators.figures import Setting
from pennyweight.simulators.rebalancebench import EXPORT


def export(
    *,
    updates: Annotated[
        int, Parameter(help="How many updates of portfolios the journal has.")
    ] = 20_000,
    users: Annotated[int, Parameter(help="How many portfolios there are.")] = 1_000,
    runs: Runs = 1,
    seed: Annotated[int, Parameter(help="Whose portfolios drift, and how far.")] = 1,
    directory: Directory = None,
    store: StoreUrl = None,
    json: JsonFile = None,
) -> int:
    """Measure how fast the documents of a journal are made and sent, and verify the book afterwards.

    The book is filled in this process, with updates that make a run of three transactions
    each: five documents. Then the exporter sends all of them to a stub in a process of its
    own, which counts them and keeps nothing. What is called a request here is a document;
    counted is the time from the exporter's start to the last acknowledgement.

    Example: pennyweight bench export --updates 20000
    """
    if updates < 1 or users < 1:
        raise UserError("--updates and --users are 1 or more", code=2)
    setting = Setting(
        scenario=EXPORT,
        users=max(2, users),
        messages=updates,
        seed=seed,
        directory=directory,
        store="" if store is None else database_of(store),
    )
    return measure(setting, runs, json)

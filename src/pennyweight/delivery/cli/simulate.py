"""`pennyweight simulate`: made-up data for demos and tests."""

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from pennyweight.delivery.cli.shared import UserError
from pennyweight.delivery.cli.simulate_clients import clients
from pennyweight.delivery.cli.simulate_policy import policy
from pennyweight.delivery.cli.simulate_settlements import settlements
from pennyweight.delivery.cli.simulate_updates import updates
from pennyweight.delivery.cli.simulate_venues import venues
from pennyweight.simulators.population import LINE_ENDS, population_csv

USERS_MAX = 10_000_000

app = App(name="simulate", help="Generate users and traffic.", result_action="return_value")
for _command in (settlements, venues, clients, updates, policy):
    app.command(_command)


@app.command
def users(
    *,
    count: Annotated[int, Parameter(help="How many, with ids from 100.")] = 900,
    seed: Annotated[int, Parameter(help="The same seed gives the same users.")] = 1,
    output: Annotated[
        Path, Parameter(help="The file to write; - is stdout.", allow_leading_hyphen=True)
    ] = Path("-"),
    line_end: Annotated[
        Literal["cr", "lf", "crlf"],
        Parameter(help="How lines end; carriage returns alone, as in the risk engine's data."),
    ] = "cr",
) -> int:
    """Write a population as CSV: user ids, and balances in USD, EUR, BTC, BCH and ETH.

    Balances are uniform, and zero for whole blocks of ten users here and there.

    Example: pennyweight simulate users --count 900 --seed 1 --output users.csv
    """
    if not 1 <= count <= USERS_MAX:
        raise UserError(f"--count is 1 to {USERS_MAX}", code=2)
    data = population_csv(count, seed, LINE_ENDS[line_end]).encode()
    if str(output) == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    else:
        output.write_bytes(data)
    return 0

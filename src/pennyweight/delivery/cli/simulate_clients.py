"""`pennyweight simulate clients`: the bank's clients, who borrow against BESKAR."""

import secrets
from typing import Annotated

import msgspec
from cyclopts import Parameter

from pennyweight.delivery.cli.shared import Json, UserError, host_and_port, print_json, told_to_stop
from pennyweight.simulators.borrowers import ACTORS_MAX, PATIENCE_SECONDS, Borrowers, HttpBank


class Told(msgspec.Struct, frozen=True):
    """What the clients did: requests by kind and status, clients that lived."""

    seed: int
    counts: dict[str, int]


def clients(
    *,
    address: Annotated[str, Parameter(help="The engine to borrow from.")] = "http://127.0.0.1:8080",
    token: Annotated[str, Parameter(help="Its API key, if it wants one.")] = "",
    actors: Annotated[int, Parameter(help="How many clients there are at a time.")] = 10,
    rate: Annotated[float, Parameter(help="How often each acts, times a second.")] = 1.0,
    patience: Annotated[
        float, Parameter(help="Seconds that a client waits for an answer.")
    ] = PATIENCE_SECONDS,
    seconds: Annotated[float | None, Parameter(help="Stop by itself after this time.")] = None,
    seed: Annotated[
        int | None, Parameter(help="The same seed makes the same clients; without one, others.")
    ] = None,
    json: Json = False,
) -> int:
    """Be the bank's clients: apply for loans, post collateral, top up when the price falls.

    They read the price from `GET /prices` and do nothing while there is none. What failed
    once is never sent again. The same seed makes the same loans, so on one book each seed is
    good for one run. Runs until it is stopped.

    Example: pennyweight simulate clients --address http://127.0.0.1:4000 --actors 20 --rate 2
    """
    if not 1 <= actors <= ACTORS_MAX or rate <= 0 or patience <= 0:
        raise UserError(f"--actors is 1 to {ACTORS_MAX}, --rate and --patience above 0", code=2)
    chosen = secrets.randbelow(2**31) if seed is None else seed
    bank = HttpBank(host_and_port(address), token, timeout_seconds=patience)
    borrowers = Borrowers(bank, seed=chosen, actors=actors, ticks_per_second=rate)
    with told_to_stop() as stop, borrowers:
        stop.wait(seconds)
    told = Told(chosen, borrowers.counts)
    if json:
        print_json(told)
    else:
        print(f"seed {told.seed}: " + ", ".join(f"{n} {name}" for name, n in told.counts.items()))
    if not any(name.endswith(" 202") for name in told.counts):
        raise UserError("nothing was accepted; is the engine there, and does it follow prices?")
    return 0

"""Runs as the journal has them: each entry that worked one out names the one before."""

from collections.abc import Callable, Iterator

import msgspec

from pennyweight.ledger.entries import Entry
from pennyweight.products.portfolios.queue import TakenAnswer, TakeUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.shared import PRODUCT, REPLAY, RunAnswer

_run_decoder = msgspec.json.Decoder(RunAnswer)
_taken_decoder = msgspec.json.Decoder(TakenAnswer)


def answer_in(entry: Entry) -> RunAnswer | None:
    """Return what an entry of an update answered, None for any other entry."""
    if entry.product != PRODUCT:
        return None
    if entry.command in {Rebalance.name, REPLAY}:
        return _run_decoder.decode(entry.answer)
    if entry.command == TakeUpdate.name:
        return _taken_decoder.decode(entry.answer).run
    return None


def run_in(entry: Entry | None) -> RunAnswer | None:
    """Return the run that an entry worked out, None if it did not: repeats are no runs."""
    answer = None if entry is None else answer_in(entry)
    return answer if answer is not None and answer.result == "rebalanced" else None


def history(
    sequence: int, read: Callable[[int], Entry | None], *, has_trades: bool = False
) -> Iterator[RunAnswer]:
    """Yield the runs of a user, from the one of an entry back; only those with transactions, if so asked."""
    while sequence:
        run = run_in(read(sequence))
        if run is None:
            return
        yield run
        sequence = run.trades_before if has_trades else run.previous

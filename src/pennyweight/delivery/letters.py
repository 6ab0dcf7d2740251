"""Messages of streams, by product: how they are read, set aside, replayed and closed.

One table for whoever reads the streams and for whoever deals with dead letters: a letter
is read again by the handler that could not take it, and gets the key it would have had.
"""

from base64 import b64decode
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from pennyweight.delivery.portfolios import KEY_PREFIXES, rebalance_of
from pennyweight.delivery.settlements import KEY_PREFIX, Incoming, settlement_of
from pennyweight.engine.engine import Submission
from pennyweight.ledger.commands import Command
from pennyweight.ledger.letters import DeadLetter, Message, check_open
from pennyweight.ledger.refusals import Refused
from pennyweight.products import portfolios, withdrawals
from pennyweight.products.portfolios.letters import CloseUpdateLetter, ReplayUpdate, SetAsideUpdate
from pennyweight.products.withdrawals.settle import CloseLetter, ReplaySettlement, SetAside

RESERVED_PREFIXES = (KEY_PREFIX, *KEY_PREFIXES)
"""Keys of messages begin so; nobody may take one for something else."""


class Handling(msgspec.Struct, frozen=True):
    """What is done with the messages of a product.

    `read` is the pure handler of its topic. `set_aside` takes message, reason and
    sentence, `replay` a letter's id and the command that was read, `close` id and note.
    """

    read: Callable[[Incoming], Submission]
    set_aside: Callable[[Message, str, str], Command]
    replay: Callable[[str, Any], Command]
    close: Callable[[str, str], Command]


HANDLINGS: Mapping[str, Handling] = {
    withdrawals.PRODUCT: Handling(settlement_of, SetAside, ReplaySettlement, CloseLetter),
    portfolios.PRODUCT: Handling(rebalance_of, SetAsideUpdate, ReplayUpdate, CloseUpdateLetter),
}
"""Every product whose messages come by a stream."""


class _Kept(msgspec.Struct, frozen=True):
    """The message of a letter, as its handler sees it; without an id of its own it has no key."""

    value: bytes
    default_key: str = ""


def product_of(letter_id: str) -> str:
    """Return the product that a letter's id begins with, "" for none that has letters."""
    product = letter_id.rpartition("-")[0]
    return product if product in HANDLINGS else ""


def replay_of(product: str, letter_id: str, letter: DeadLetter) -> Submission:
    """Return what is to be submitted to replay a letter, under the key of its message, if it has one.

    Refusals: dead_letter_closed, and those of the product's handler.
    """
    handling = HANDLINGS[product]
    try:
        read = handling.read(_Kept(b64decode(letter.message.payload)))
    except Refused:
        check_open(letter_id, letter)
        raise
    return Submission(handling.replay(letter_id, read.command), key=read.key)

"""Who withdraws what on a population of the real shape: choices, requests and messages of the load.

Withdrawals are tiny, so that nobody runs out: `QUANTITY` of a token of which the user has
at least one. A settlement sells all of it for as much of another token of the same user.
"""

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from pennyweight.simulators.population import FIRST_ID, rows
from pennyweight.simulators.sampling import Skew, pick
from pennyweight.simulators.workloads import Base, Target

QUANTITY = "0.0001"
Settle = Literal["http", "kafka", "none"]
"""How withdrawals end: by `POST /settlements` right after them, by messages, or not at all."""

_CHOICES_MIN, _CHOICES_MAX = 1 << 16, 1 << 18


class Choice(msgspec.Struct, frozen=True, gc=False):
    """A withdrawal: the user's id, the token withdrawn, and the one that it will be sold for."""

    user: int
    token: str
    bought: str


class Held(msgspec.Struct, frozen=True, gc=False):
    """An accepted withdrawal, to be settled."""

    choice: Choice
    withdrawal_id: str


class Settlement(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A settlement as the venue sends it."""

    user_id: str
    bought_token: str
    bought_quantity: str
    sold_token: str
    sold_quantity: str
    withdrawal_id: str = ""
    settlement_id: str = ""


def tokens_of(users: int, seed: int) -> list[list[str]]:
    """Return, for each user of the generated population, the tokens of which there is enough."""
    made = rows(users, seed)
    names = next(made)[1:]
    return [
        [name for name, amount in zip(names, row[1:], strict=True) if int(amount.partition(".")[0])]
        for row in made
    ]


def choices(
    users: int, skew: Skew, seed: int, *, first: int | None = None, name: str = ""
) -> list[Choice]:
    """Choose users by the skew, and for each turn a token and another one.

    Scan goes through all who have two tokens in order, as often as there are tokens; hot is
    the first of them alone. `first` leaves only so many users of the population, `name`
    makes other choices of the same seed.
    """
    draw = random.Random(f"withdrawals {seed} {skew.text} {name}")
    tokens = tokens_of(users, seed)[:first]
    able = [(FIRST_ID + n, own) for n, own in enumerate(tokens) if len(own) > 1]
    if skew.is_scan:
        return [
            Choice(user, own[turn % len(own)], own[(turn + 1) % len(own)])
            for turn in range(5)
            for user, own in able
        ]
    how_many = min(_CHOICES_MAX, max(_CHOICES_MIN, 4 * users))
    chosen = [0] * 5 if skew.is_hot else pick(draw, skew, len(able), how_many)
    return [Choice(able[n][0], *draw.sample(able[n][1], 2)) for n in chosen]


def settlement_of(held: Held, *, settlement_id: str = "") -> Settlement:
    """Return the settlement that ends a withdrawal to the full."""
    choice = held.choice
    return Settlement(
        str(choice.user),
        choice.bought,
        QUANTITY,
        choice.token,
        QUANTITY,
        held.withdrawal_id,
        settlement_id,
    )


def reserve(users: int, seed: int, count: int) -> Iterator[Held]:
    """Yield withdrawals that are made before a run, so that there is something to settle."""
    chosen = itertools.cycle(choices(users, Skew("uniform"), seed, name="reserve"))
    for number in range(count):
        yield Held(next(chosen), f"held-{number:08d}")


class Withdrawals(Base):
    """`POST /withdrawals` under an id of its own, each followed by its settlement if so chosen."""

    expected = b'"SUFFICIENT_BALANCE"'
    settled = b'"result":"settled"'
    apart = b"POST /withdrawals "

    def __init__(self, target: Target, settle: Settle = "http") -> None:
        """The population is in the book already, made with the target's users and seed."""
        super().__init__(target)
        self.settle = settle
        self.accepted: deque[Held] = deque()
        """What was accepted and waits for its message."""
        self._choices = itertools.cycle(choices(target.users, self.skew, target.seed))

    def funding(self) -> list[list[bytes]]:
        """Nothing: see `__init__`."""
        return []

    def learn(self, get: Callable[[str], bytes]) -> None:
        """Nothing: see `__init__`."""

    def stream(self) -> Iterator[bytes]:
        """Yield withdrawals, and settlements if they go by HTTP."""
        make = self._withdrawals("%032x", 0)
        body = (
            f'{{"user_id":%7d,"bought_token":"%s","bought_quantity":"{QUANTITY}",'
            f'"sold_token":"%s","sold_quantity":"{QUANTITY}","withdrawal_id":"%032x"}}'
        )
        end = self._template("/settlements", body, (0, "USD", "USD", 0))
        is_http, is_kafka = self.settle == "http", self.settle == "kafka"
        for number, choice in zip(self.keys, self._choices, strict=False):
            user, token = choice.user, choice.token.encode()
            yield make % (user, token, number)
            if is_http:
                yield end % (user, choice.bought.encode(), token, number)
            elif is_kafka:
                self.accepted.append(Held(choice, f"{number:032x}"))

    def requests(self, held: Sequence[Held]) -> Iterator[bytes]:
        """Yield the requests of certain withdrawals, whose ids are of one length."""
        make = self._withdrawals("%s", held[0].withdrawal_id if held else "")
        for one in held:
            choice = one.choice
            yield make % (choice.user, choice.token.encode(), one.withdrawal_id.encode())

    def _withdrawals(self, name: str, blank: object) -> bytes:
        """Return the template of withdrawals whose ids are written like `name`."""
        body = (
            f'{{"user_id":%7d,"token":"%s","requested_quantity":"{QUANTITY}",'
            f'"withdrawal_id":"{name}"}}'
        )
        return self._template("/withdrawals", body, (0, "USD", blank))

    def _template(self, path: str, body: str, blank: tuple[object, ...]) -> bytes:
        """Return a request with places for what differs, all of one length."""
        return self.head("POST", path, length=len(body % blank)) + body.encode()

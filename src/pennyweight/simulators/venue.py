"""A trading venue for demos and tests: it settles what was withdrawn, and not always well.

What becomes of a withdrawal depends on its id and the seed alone, so a venue that is
started again sends the same messages again, which have their effect once.
"""

import heapq
import random
from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

PRICES = {"USD": 100, "EUR": 108, "BTC": 6_000_000, "BCH": 35_000, "ETH": 300_000}
"""What one is worth, in cents. Other tokens are worth a dollar."""

_UNITS = 100_000_000
_PER_MILLION = 1_000_000

Kind = Literal[
    "settled", "cancelled", "over_filled", "duplicate", "rubbish", "unsolicited", "invented"
]


class Odds(msgspec.Struct, frozen=True, kw_only=True):
    """How often what happens, from 0 to 1, and how long a settlement takes at most, in seconds.

    `unnamed` settlements do not say which withdrawal they settle, so the engine finds one.
    `unsolicited` ones name a withdrawal that there is not, `invented` ones a user or a token.
    """

    delay: float = 2.0
    over_fill: float = 0.0
    unfilled: float = 0.0
    unnamed: float = 0.0
    unsolicited: float = 0.0
    duplicates: float = 0.0
    rubbish: float = 0.0
    invented: float = 0.0


class Accepted(msgspec.Struct, frozen=True):
    """A withdrawal that was accepted, as its event tells it."""

    user_id: str
    withdrawal_id: str
    token: str
    quantity: str


class Message(msgspec.Struct, frozen=True):
    """What the venue sends so many seconds later; `key` is the user."""

    after: float
    kind: Kind
    key: str
    value: bytes


def messages_of(accepted: Accepted, odds: Odds, seed: int) -> list[Message]:
    """Return all that comes of a withdrawal."""
    draw = random.Random(f"venue {seed} {accepted.withdrawal_id}")
    kind: Kind = "settled"
    share = _PER_MILLION if draw.random() < 0.5 else draw.randrange(900_000, _PER_MILLION)
    fate = draw.random()
    if fate < odds.over_fill:
        kind, share = "over_filled", draw.randrange(1_000_001, 1_500_000)
    elif fate < odds.over_fill + odds.unfilled:
        kind, share = "cancelled", 0
    trade = _trade(accepted, draw, share)
    name = accepted.withdrawal_id
    if draw.random() < odds.unnamed:
        trade["settlement_id"] = f"s-{name}"
    else:
        trade["withdrawal_id"] = name
        if draw.random() < 0.5:
            trade["settlement_id"] = f"s-{name}"
    user = accepted.user_id
    value = msgspec.json.encode(trade)
    sent = [Message(draw.uniform(0, odds.delay), kind, user, value)]
    if draw.random() < odds.duplicates:
        sent.append(Message(draw.uniform(0, 2 * odds.delay), "duplicate", user, value))
    if draw.random() < odds.unsolicited:
        trade = _trade(accepted, draw, draw.randrange(1_000, 10_000))
        trade |= {"withdrawal_id": f"no-{name}", "settlement_id": f"u-{name}"}
        value = msgspec.json.encode(trade)
        sent.append(Message(draw.uniform(0, odds.delay), "unsolicited", user, value))
    if draw.random() < odds.rubbish:
        sent.append(Message(draw.uniform(0, odds.delay), "rubbish", user, _rubbish(draw, value)))
    if draw.random() < odds.invented:
        trade |= draw.choice(({"user_id": f"nobody-{name}"}, {"bought_token": "DOGE"}))
        trade["settlement_id"] = f"i-{name}"
        value = msgspec.json.encode(trade)
        sent.append(Message(draw.uniform(0, odds.delay), "invented", user, value))
    return sent


def _trade(accepted: Accepted, draw: random.Random, share: int) -> dict[str, str]:
    """Return a trade of this share (millionths) of a withdrawal, at the price within 1 %."""
    sold = _units(accepted.quantity) * share // _PER_MILLION
    bought_token = draw.choice([token for token in PRICES if token != accepted.token])
    worth = sold * PRICES.get(accepted.token, 100) * draw.randrange(9_900, 10_101) // 10_000
    return {
        "user_id": accepted.user_id,
        "bought_token": bought_token,
        "bought_quantity": _text(worth // PRICES[bought_token]),
        "sold_token": accepted.token,
        "sold_quantity": _text(sold),
    }


def _units(text: str) -> int:
    """Return an amount in units of 10^-8, cut off there."""
    whole, _, part = text.partition(".")
    return int(whole) * _UNITS + int(part[:8].ljust(8, "0"))


def _text(units: int) -> str:
    whole, part = divmod(units, _UNITS)
    return f"{whole}.{part:08d}".rstrip("0").rstrip(".")


def _rubbish(draw: random.Random, value: bytes) -> bytes:
    """Return something that is no settlement."""
    return draw.choice(
        (
            b"",
            value[: draw.randrange(1, len(value))],
            value.replace(b'"sold_token":', b'"sold_token":"'),
            value.replace(b'"sold_quantity":"', b'"sold_quantity":"-1'),
            value.replace(b'"bought_quantity"', b'"quantity"'),
            b"[" + value + b"]",
            "{ \u201cuser_id\u201d:\u201d100\u201d }".encode(),
            b"\xff\xfe\x00",
        )
    )


class Venue:
    """What is still to be sent, by the time it is due (seconds of any one clock)."""

    def __init__(self, odds: Odds, seed: int) -> None:
        """Nothing was withdrawn yet."""
        self.accepted = 0
        self.sent: Counter[Kind] = Counter()
        self._odds = odds
        self._seed = seed
        self._due: list[tuple[float, int, Message]] = []

    @property
    def waiting(self) -> int:
        """How many messages are still to be sent."""
        return len(self._due)

    def take(self, accepted: Iterable[Accepted], now: float) -> None:
        """Note withdrawals that were accepted."""
        for one in accepted:
            self.accepted += 1
            for number, message in enumerate(messages_of(one, self._odds, self._seed)):
                place = 10 * self.accepted + number
                heapq.heappush(self._due, (now + message.after, place, message))

    def due(self, now: float, limit: int) -> list[Message]:
        """Return what is due by now, at most so many, as sent."""
        found: list[Message] = []
        while self._due and self._due[0][0] <= now and len(found) < limit:
            message = heapq.heappop(self._due)[2]
            self.sent[message.kind] += 1
            found.append(message)
        return found

"""A provider of portfolios' updates: what it knows, what it sends, and what must come of it.

Markets move, portfolios drift with them, and the provider says so: in order by its own clock,
but not in that order on the way; some of it twice, some of it very late, some under no id,
some by no clock, some of it rubbish. The same seed does the same. `Model` is the other half:
of each user's updates the newest counts, whatever came when. All of it in integers, like
everywhere near money.
"""

import heapq
import itertools
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Literal, NamedTuple
from zlib import crc32

import msgspec

from pennyweight.links.errors import LinkError
from pennyweight.links.kafka import Producer
from pennyweight.products.portfolios.shared import (
    PROVIDER_TOLERANCE,
    TARGET_TOLERANCE,
    Weights,
    shared_out,
    weights_of,
)
from pennyweight.simulators.client import Client
from pennyweight.simulators.pacing import Pacer
from pennyweight.simulators.sampling import Skew, pick

ASSETS = (
    "bonds",
    "cash",
    "commodities",
    "emerging",
    "gold",
    "property",
    "small caps",
    "stocks",
)
"""What portfolios are of."""

START = 1_704_067_200_000_000
"""The provider's clock begins here, at 2024: long past for every book."""

STEP_MICROSECONDS = 250_000
"""Between one update and the next."""

HUNDRED = 10_000
"""A whole portfolio in hundredths of a percent, in which the provider reckons."""

FAR = 40
"""What is late comes so many times later than what is only out of order."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PRICE = 1_000_000
_FLUSH_SECONDS = 60.0
_CONNECTIONS = 16

Kind = Literal["new", "repeat", "late", "poison"]
Mode = Literal["sync", "async"]


class Odds(msgspec.Struct, frozen=True):
    """What goes wrong on the way, as shares of the messages; `untimed` is one of the users.

    `disorder` is by how many places a message is late at most, where it is not `late`.
    """

    duplicates: float = 0.05
    late: float = 0.02
    unnamed: float = 0.2
    untimed: float = 0.1
    poison: float = 0.01
    disorder: int = 100


class Message(NamedTuple):
    """An update as it is sent. `user` is its key; `reason` is why poison must be refused."""

    kind: Kind
    user: str
    value: bytes
    reason: str = ""


class Known(NamedTuple):
    """What counts of a user: weights, and the provider's time of them, 0 where it tells none."""

    current: Weights
    as_of: int


class Provider:
    """Portfolios, and what becomes of them. Users are called by the seed, so seeds do not meet."""

    def __init__(self, users: int, seed: int, odds: Odds | None = None) -> None:
        """Nothing has moved yet."""
        self.odds = Odds() if odds is None else odds
        self.users = users
        self.seed = seed
        self._draw = random.Random(f"updates {users} {seed}")
        self._prices = dict.fromkeys(ASSETS, _PRICE)
        self._targets = [self._target() for _ in range(users)]
        self._is_untimed = [self._draw.random() < self.odds.untimed for _ in range(users)]
        self._made = 0

    def _target(self) -> dict[str, int]:
        """Draw a target, in hundredths: a few assets, each of whole percents."""
        names = sorted(self._draw.sample(ASSETS, self._draw.randint(2, 6)))
        parts = [self._draw.randint(1, 9) for _ in names]
        shares = shared_out(100 - len(names), parts)
        return {name: 100 * (1 + share) for name, share in zip(names, shares, strict=True)}

    def name(self, number: int) -> str:
        """Return what a user is called, from 0."""
        return f"s{self.seed}-{number:06d}"

    def targets(self) -> Iterator[tuple[str, dict[str, str]]]:
        """Yield each user and the target, as decimal texts."""
        for number, target in enumerate(self._targets):
            yield self.name(number), texts_of(target)

    def portfolios(self) -> Iterator[bytes]:
        """Yield the bodies of `POST /portfolio`."""
        for user, target in self.targets():
            yield _body(user, "allocation", target)

    # ── what is sent ──────────────────────────────────────────────────────────────

    def messages(self, count: int) -> Iterator[Message]:
        """Yield so many messages, in the order in which they are sent.

        Those of a user whom the provider tells no times of keep their order: of these, what
        came last counts. All others may come whenever they like.
        """
        waiting: list[tuple[int, int, Message]] = []
        made = 0
        while made < count or waiting:
            while made < count and (not waiting or waiting[0][0] > made):
                for delay, message in self._next(count - made):
                    heapq.heappush(waiting, (made + delay, made, message))
                    made += 1
            yield heapq.heappop(waiting)[2]

    def _next(self, room: int) -> Iterator[tuple[int, Message]]:
        """Yield the next update, and what else is sent for it, each with its delay in places."""
        draw, odds = self._draw, self.odds
        self._move_markets()
        self._made += 1
        number = draw.randrange(self.users)
        if draw.random() < odds.poison:
            yield 0, self._poison(number)
            return
        is_untimed = self._is_untimed[number]
        at = START + self._made * STEP_MICROSECONDS
        user = self.name(number)
        request_id = "" if draw.random() < odds.unnamed else f"{self.seed}-{self._made:08d}"
        as_of = None if is_untimed else at
        value = _body(user, "new_allocation", self._drifted(number), request_id, as_of)
        is_late = not is_untimed and draw.random() < odds.late
        yield (
            self._delay(is_late=is_late, is_untimed=is_untimed),
            Message("late" if is_late else "new", user, value),
        )
        if room > 1 and draw.random() < odds.duplicates:
            # Without a time and an id, only what comes at once is known to be the same.
            is_at_once = is_untimed and not request_id
            delay = 0 if is_at_once else self._delay(is_late=draw.random() < 0.5)
            yield delay, Message("repeat", user, value)

    def _delay(self, *, is_late: bool = False, is_untimed: bool = False) -> int:
        if is_untimed:
            return 0
        disorder = self.odds.disorder
        return self._draw.randint(0, disorder * FAR if is_late else disorder)

    def _move_markets(self) -> None:
        """One price moves by up to 3 percent, and never far from where all began."""
        name = self._draw.choice(ASSETS)
        price = self._prices[name] * self._draw.randint(970, 1030) // 1_000
        self._prices[name] = min(max(price, _PRICE // 4), 4 * _PRICE)

    def _drifted(self, number: int) -> dict[str, str]:
        """Return what a portfolio has become; every tenth is a hundredth of a percent off 100."""
        target = self._targets[number]
        values = [weight * self._prices[name] for name, weight in target.items()]
        weights = dict(zip(target, shared_out(HUNDRED, values), strict=True))
        if self._draw.random() < 0.1:
            weights[max(weights, key=weights.__getitem__)] += self._draw.choice((-1, 1))
        return texts_of(weights)

    def _poison(self, number: int) -> Message:
        """Return what can be no update, or is none of a portfolio of ours."""
        user = self.name(number)
        good = _body(user, "new_allocation", {"bonds": "39.5", "stocks": "60.5"})
        value, reason = self._draw.choice(
            (
                (good[: len(good) // 2], "message_malformed"),
                (b"\xff\xfe\x00", "message_malformed"),
                (b"[]", "message_invalid"),
                (good.replace(b"user_id", b"user"), "message_invalid"),
                (good.replace(b"60.5", b"70.5"), "allocation_invalid"),
                (good.replace(b"39.5", b"-39.5"), "allocation_invalid"),
                (good.replace(user.encode(), b"nobody"), "portfolio_not_found"),
            )
        )
        return Message("poison", user, value, reason)


def texts_of(weights: Mapping[str, int]) -> dict[str, str]:
    """Write hundredths of a percent as decimal texts."""
    return {name: f"{weight // 100}.{weight % 100:02d}" for name, weight in weights.items()}


def _body(
    user: str,
    field: str,
    allocation: Mapping[str, str],
    request_id: str = "",
    as_of: int | None = None,
) -> bytes:
    """Return a body as a provider writes it: percentages are numbers, times are RFC 3339."""
    document: dict[str, object] = {
        "user_id": user,
        field: {name: msgspec.Raw(text.encode()) for name, text in allocation.items()},
    }
    if request_id:
        document["request_id"] = request_id
    if as_of is not None:
        document["as_of"] = time_text(as_of)
    return msgspec.json.encode(document)


def time_text(microseconds: int) -> str:
    """Write microseconds since 1970 as RFC 3339, in UTC."""
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def microseconds_of(text: str) -> int:
    """Read what `time_text` wrote, or a book."""
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


# ── what must come of it ──────────────────────────────────────────────────────────


class _Update(msgspec.Struct):
    user_id: str
    new_allocation: dict[str, msgspec.Raw]
    as_of: str = ""


_decoder = msgspec.json.Decoder(_Update)


class Model:
    """What portfolios are to be, from what was sent. Messages in the order of each user's, at least."""

    def __init__(self) -> None:
        """Nothing was sent."""
        self.known: dict[str, Known] = {}
        """By user, of whom something was sent."""

    def take(self, message: Message) -> None:
        """Hear of a message that was sent."""
        if message.kind == "poison":
            return
        update = _decoder.decode(message.value)
        as_of = microseconds_of(update.as_of) if update.as_of else 0
        if not as_of and message.kind == "repeat":
            return  # known again by its id, or the same as what it follows
        known = self.known.get(update.user_id)
        if known is not None and as_of < known.as_of:
            return
        allocation = {name: bytes(raw).decode() for name, raw in update.new_allocation.items()}
        self.known[update.user_id] = Known(weights_of(allocation, PROVIDER_TOLERANCE), as_of)


def target_weights(target: Mapping[str, str]) -> Weights:
    """Return a target as the book keeps it."""
    return weights_of(target, TARGET_TOLERANCE)


# ── the load of benchmarks ────────────────────────────────────────────────────────

LOAD_TARGET = {"bonds": "30", "gold": "10", "stocks": "60"}
"""The target of all portfolios of a benchmark: the seed's."""

_DRIFTS_MIN, _DRIFTS_MAX = 1 << 12, 1 << 17


class Drift(NamedTuple):
    """What the portfolio of a user, by number, has become, in hundredths of a percent."""

    user: int
    bonds: int
    gold: int
    stocks: int


def drifts(draw: random.Random, skew: Skew, users: int) -> Iterator[Drift]:
    """Yield drifts without end, the users by the skew (hot: always the first).

    No asset is on its target, so that all three are traded: bonds are bought.
    """
    count = min(_DRIFTS_MAX, max(_DRIFTS_MIN, 4 * users))
    chosen = [0] * count if skew.is_hot else pick(draw, skew, users, count)
    made = []
    for user in chosen:
        bonds, gold = draw.randint(1_500, 2_499), draw.randint(1_001, 1_500)
        made.append(Drift(user, bonds, gold, HUNDRED - bonds - gold))
    return itertools.cycle(made)


# ── how it gets there ─────────────────────────────────────────────────────────────


class Deal:
    """Deals messages out to connections, all of a user's to one, so that their order stays."""

    def __init__(self, messages: Iterator[Message], connections: int) -> None:
        """Messages are taken as they are needed."""
        self._messages = messages
        self._hands: list[deque[Message]] = [deque() for _ in range(connections)]

    def hand(self, number: int) -> Iterator[Message]:
        """Yield what one connection sends."""
        mine = self._hands[number]
        while mine or self._deal(number):
            yield mine.popleft()

    def _deal(self, number: int) -> bool:
        """Deal until there is one for this connection; False when there are no more."""
        for message in self._messages:
            place = crc32(message.user.encode()) % len(self._hands)
            self._hands[place].append(message)
            if place == number:
                return True
        return False


class OverHttp:
    """Posts to a server, over several connections."""

    def __init__(
        self, address: tuple[str, int], token: str = "", *, connections: int = _CONNECTIONS
    ) -> None:
        """`token` is an API key, or empty on loopback."""
        self.statuses: Counter[str] = Counter()
        """Answers by HTTP status."""
        self.broken = 0
        """Requests whose connection broke, so that nobody knows."""
        self._address = address
        self._connections = connections
        self._bearer = f"Authorization: Bearer {token}\r\n" if token else ""

    def request(self, path: str, body: bytes) -> bytes:
        """Return a whole request."""
        host, port = self._address
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{self._bearer}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def create(self, provider: Provider) -> None:
        """Make all portfolios. Raises OSError."""
        bodies = iter(provider.portfolios())
        self._send(lambda _: (self.request("/portfolio", body) for body in bodies), None, 0)

    def send(
        self, messages: Iterator[Message], count: int, *, rate: float | None, mode: Mode = "sync"
    ) -> None:
        """Send so many updates, at a rate or as fast as they are answered. Raises OSError."""
        path = "/rebalance?mode=async" if mode == "async" else "/rebalance"
        deal = Deal(messages, self._connections)
        self._send(
            lambda number: (self.request(path, one.value) for one in deal.hand(number)),
            rate,
            count,
        )

    def _send(
        self, stream: Callable[[int], Iterator[bytes]], rate: float | None, count: int
    ) -> None:
        client = Client(self._address, [stream(n) for n in range(self._connections)])
        try:
            if rate is not None:
                client.run(count / rate, rate=rate)
                client.pacer = None
            client.finish_streams()
        finally:
            client.close()
            self.statuses.update(client.tally.statuses)
            self.broken += client.tally.broken


class OverKafka:
    """Writes to a topic, keyed by user."""

    def __init__(self, brokers: str, topic: str) -> None:
        """Raises ExtraMissing."""
        self.sent = 0
        self._topic = topic
        self._producer = Producer(brokers, topic)

    def send(self, messages: Iterable[Message], *, rate: float | None = None) -> None:
        """Send updates, at a rate or as fast as the client takes them. Raises LinkError."""
        pacer = None if rate is None else Pacer(rate, time.monotonic_ns())
        for message in messages:
            while pacer is not None and pacer.take(time.monotonic_ns()) is None:
                self._producer.look()
                time.sleep(0.001)
            self._produce(message)
            self.sent += 1

    def _produce(self, message: Message) -> None:
        """Hand a message to the client; waits while its queue is full. Raises LinkError."""
        until = time.monotonic() + _FLUSH_SECONDS
        while True:
            try:
                self._producer.send(self._topic, message.user.encode(), message.value, ())
            except LinkError:
                if time.monotonic() > until:
                    raise
                self._producer.flush(0.1)
            else:
                return

    def finish(self) -> None:
        """Wait until the broker has everything. Raises LinkError."""
        left = self._producer.flush(_FLUSH_SECONDS)
        if left or self._producer.failed:
            raise LinkError(f"{left + self._producer.failed} updates were not delivered")

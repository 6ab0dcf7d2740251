"""A venue that settles: `python settling.py BROKER TOPIC CSV FILE COUNT STOP CLIENT_FILE...`.

Reads in the clients' files what was accepted, and sends COUNT messages in all: settlements
by the withdrawal's id, for every eighth user without it, over-filled ones, cancelling ones,
some twice, at once or much later, trades that nobody asked for, and rubbish. Each message
goes into FILE, in the order in which it is sent: what it is, its key, its value in base64,
and the reason for which it must be set aside ("" if it must not). All messages of a user
have one key. When there is a file STOP, it sends what is missing, and ends; exit code 1
says that a message was not delivered.
"""

import heapq
import itertools
import json
import random
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import Producer
from withdrawing import amount_of, read_users

UNNAMED_EVERY = 8
"""Settlements of so many users never name a withdrawal: each takes one of the user's, whichever
that is, so that what the user has in the end does not depend on the order of things."""

KEPT_FOR_THE_END = 1_500
"""Messages that are sent when all else is done; most of them repeat old ones."""

LATER_SECONDS = (1, 20)


class Message(NamedTuple):
    kind: str
    key: str
    value: bytes | None
    reason: str = ""


class Rubbish(NamedTuple):
    value: bytes | None
    reason: str


def rubbish_of(trade: dict[str, Any]) -> Iterator[Rubbish]:
    """Yield what is no settlement, or none that anybody could book."""
    trade = {name: value for name, value in trade.items() if not name.endswith(("l_id", "t_id"))}
    good = json.dumps(trade).encode()
    yield Rubbish(None, "message_malformed")
    yield Rubbish(b"", "message_malformed")
    yield Rubbish(b"\xff\xfe\x00", "message_malformed")
    yield Rubbish(good[: len(good) // 2], "message_malformed")
    yield Rubbish("{ “user_id”:”100” }".encode(), "message_malformed")
    yield Rubbish(b"[" + good + b"]", "message_invalid")
    yield Rubbish(good.replace(b"sold_token", b"token"), "message_invalid")
    for change, reason in (
        ({"sold_quantity": "-1"}, "amount_not_positive"),
        ({"sold_quantity": "many"}, "amount_invalid"),
        ({"bought_quantity": "0.0000000000000000001"}, "amount_too_fine"),
        ({"bought_token": "DOGE"}, "token_unknown"),
        ({"bought_token": trade["sold_token"]}, "same_token"),
        ({"user_id": "nobody"}, "user_not_found"),
    ):
        yield Rubbish(json.dumps(trade | change).encode(), reason)


class Venue:
    """What comes of a withdrawal, drawn by its id."""

    def __init__(self, file: Path) -> None:
        self._tokens, self._most, _ = read_users(file)
        self._numbers = itertools.count()

    def messages(self, body: dict[str, Any]) -> Iterator[tuple[float, Message]]:
        """Yield what is sent for an accepted withdrawal, and after how many seconds."""
        dice = random.Random(body["withdrawal_id"])
        trade = self._trade(dice, body)
        key = str(body["user_id"])
        yield 0, _message("settled", key, trade)
        if _is_known_again(trade) and dice.random() < 0.1:
            later = dice.choice((0, dice.uniform(*LATER_SECONDS)))
            yield later, _message("repeated", key, trade)
        if "withdrawal_id" in trade and dice.random() < 0.015:
            other = trade | {"sold_quantity": body["requested_quantity"], "bought_quantity": "1.5"}
            other.pop("settlement_id", None)
            is_cancelled = float(trade["sold_quantity"]) == 0
            reason = "withdrawal_cancelled" if is_cancelled else "withdrawal_settled"
            yield dice.uniform(*LATER_SECONDS), _message("other", key, other, reason)
        if "settlement_id" in trade and dice.random() < 0.01:
            other = trade | {"bought_quantity": "1.25"}
            yield dice.uniform(*LATER_SECONDS), _message("reused", key, other, "key_reused")
        if dice.random() < 0.06:
            yield 0, self.unsolicited(dice, key)
        if dice.random() < 0.03:
            rubbish = dice.choice([*rubbish_of(trade)])
            yield 0, Message("rubbish", key, *rubbish)

    def unsolicited(self, dice: random.Random, user: str) -> Message:
        """Return a trade that nobody withdrew for."""
        number = next(self._numbers)
        sold, bought = dice.sample(self._tokens, 2)
        trade = {
            "user_id": user,
            "bought_token": bought,
            "bought_quantity": self._part(dice, bought, 20),
            "sold_token": sold,
            "sold_quantity": self._part(dice, sold, 20),
        }
        if int(user) % UNNAMED_EVERY:  # or it would settle what is open
            trade["withdrawal_id"] = f"none-{number}"
        if dice.random() < 0.5:
            trade["settlement_id"] = f"u-{number}"
        return _message("unsolicited", user, trade)

    def _trade(self, dice: random.Random, body: dict[str, Any]) -> dict[str, Any]:
        token, wanted = body["token"], body["requested_quantity"]
        sold, fate = float(wanted), dice.random()
        bought_token = dice.choice([one for one in self._tokens if one != token])
        bought: Any = self._part(dice, bought_token, 150)
        if fate < 0.5:
            quantity: Any = wanted
        elif fate < 0.85:
            quantity = amount_of(token, sold * dice.uniform(0.9, 1))
        elif fate < 0.92:
            quantity = amount_of(token, sold * dice.uniform(1, 2))
        elif fate < 0.935:  # more than anybody has: the rest is owed
            quantity = amount_of(token, sold + self._most[token] * dice.uniform(0.5, 1.2))
        elif fate < 0.95:
            quantity = int(sold) + 1
        else:
            quantity, bought = 0, 0
        trade = {
            "user_id": body["user_id"],
            "bought_token": bought_token,
            "bought_quantity": bought,
            "sold_token": token,
            "sold_quantity": quantity,
        }
        is_named = int(body["user_id"]) % UNNAMED_EVERY != 0
        if is_named:
            trade["withdrawal_id"] = body["withdrawal_id"]
        if dice.random() < (0.5 if is_named else 0.8):
            trade["settlement_id"] = f"s-{body['withdrawal_id']}"
        return trade

    def _part(self, dice: random.Random, token: str, most: int) -> str:
        return amount_of(token, self._most[token] * dice.randrange(1, most) / 10_000)


def _is_known_again(trade: dict[str, Any]) -> bool:
    """Whether the book can tell that it has had this trade."""
    number = trade.get("withdrawal_id", "none")
    return "settlement_id" in trade or not number.startswith("none")


def _message(kind: str, key: str, trade: dict[str, Any], reason: str = "") -> Message:
    return Message(kind, key, json.dumps(trade).encode(), reason)


class Accepted:
    """Follows the file of a client."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._place = 0
        self._bodies: dict[str, dict[str, Any]] = {}

    def take(self) -> Iterator[dict[str, Any]]:
        """Yield the withdrawals that were accepted since the last look."""
        if not self._file.exists():
            return
        with self._file.open("rb") as lines:
            lines.seek(self._place)
            found = lines.read()
        found = found[: found.rfind(b"\n") + 1]
        self._place += len(found)
        for line in found.splitlines():
            what, key, *rest = json.loads(line)
            if what == "sent":
                self._bodies[key] = rest[0]
            else:
                body = self._bodies.pop(key)
                if rest[2].get("status") == "SUFFICIENT_BALANCE":
                    yield body


class Sender:
    """Sends each message once, and writes down what it sent."""

    def __init__(self, broker: str, topic: str, file: Any, count: int) -> None:
        self.left = count
        self.failed = 0
        self.repeatable: list[Message] = []
        self._topic = topic
        self._file = file
        self._producer = Producer(
            {
                "bootstrap.servers": broker,
                "enable.idempotence": True,
                "linger.ms": 5,
                "message.timeout.ms": 240_000,
                "reconnect.backoff.max.ms": 200,
                "log_level": 0,
            }
        )

    def send(self, message: Message) -> None:
        """Send a message, if there is still one to be sent."""
        if not self.left:
            return
        self.left -= 1
        while True:
            try:
                self._producer.produce(
                    self._topic, message.value, message.key, on_delivery=self._told
                )
            except BufferError:
                self._producer.poll(0.1)
            else:
                break
        value = None if message.value is None else b64encode(message.value).decode()
        self._file.write(json.dumps(message._replace(value=value)) + "\n")  # type: ignore[arg-type]
        if message.kind in {"settled", "unsolicited"}:
            trade = json.loads(message.value or b"")
            if _is_known_again(trade):
                self.repeatable.append(message)
        self._producer.poll(0)

    def finish(self) -> None:
        """Wait until all of it was delivered."""
        self.failed += self._producer.flush(240)

    def _told(self, error: Any, _: Any) -> None:
        if error is not None:
            self.failed += 1
            print(error, file=sys.stderr)


def main() -> int:
    """See the module."""
    broker, topic, csv, file, count, stop, *clients = sys.argv[1:]
    venue, sources = Venue(Path(csv)), [Accepted(Path(client)) for client in clients]
    later: list[tuple[float, int, Message]] = []
    places = itertools.count()
    with Path(file).open("w") as lines:
        sender = Sender(broker, topic, lines, int(count))
        is_last = False
        while not is_last:
            is_last = Path(stop).exists()  # then the clients have ended: one more look is the last
            now = time.monotonic()
            for body in itertools.chain(*(source.take() for source in sources)):
                if sender.left <= KEPT_FOR_THE_END:
                    continue  # it stays open
                for seconds, message in venue.messages(body):
                    if seconds:
                        heapq.heappush(later, (now + seconds, next(places), message))
                    else:
                        sender.send(message)
            while later and (later[0][0] <= now or is_last):
                sender.send(heapq.heappop(later)[2])
            time.sleep(0.02)
        dice = random.Random("the end")
        while sender.left:
            old = dice.choice(sender.repeatable)
            sender.send(old._replace(kind="repeated"))
            if sender.left % 10 == 0:
                sender.send(venue.unsolicited(dice, old.key))
        sender.finish()
    return 1 if sender.failed else 0


if __name__ == "__main__":
    sys.exit(main())

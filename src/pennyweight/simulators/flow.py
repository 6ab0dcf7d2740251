"""Settlements on their way to Kafka, at an even rate, beside the load of a benchmark."""

import time
from collections import deque
from collections.abc import Iterable, Iterator

import msgspec

from pennyweight.links.errors import LinkError
from pennyweight.links.kafka import Producer
from pennyweight.simulators.pacing import Pacer
from pennyweight.simulators.withdrawing import Held, settlement_of

TOPIC = "risk-engine-settlements"
DELAY = 1_000_000_000
"""Nanoseconds from a withdrawal's acceptance to its settlement."""

_FLUSH_SECONDS = 30.0


class Flow:
    """Settles what was accepted a second ago, and when nothing is due, what was held before."""

    def __init__(
        self, brokers: str, rate: float, accepted: deque[Held], reserve: Iterator[Held]
    ) -> None:
        """`accepted` is filled by the load. Raises ExtraMissing."""
        self.sent = 0
        self._rate = rate
        self._accepted = accepted
        self._waiting: deque[tuple[int, Held]] = deque()
        self._reserve = reserve
        self._pacer: Pacer | None = None
        self._sender = Sender(brokers)

    def __call__(self, now: int) -> None:
        """Send what is due by now (nanoseconds)."""
        accepted, waiting = self._accepted, self._waiting
        while accepted:
            waiting.append((now + DELAY, accepted.popleft()))
        if self._pacer is None:
            self._pacer = Pacer(self._rate, now)
        while self._pacer.take(now) is not None:
            is_due = waiting and waiting[0][0] <= now
            held = waiting.popleft()[1] if is_due else next(self._reserve, None)
            if held is not None:
                self._sender.send(held)
                self.sent += 1

    def finish(self) -> int:
        """Wait until the broker has everything, and return how many messages that were."""
        self._sender.finish()
        return self.sent


class Sender:
    """Writes settlements to the topic, keyed by user."""

    def __init__(self, brokers: str, topic: str = TOPIC) -> None:
        """Raises ExtraMissing."""
        self._topic = topic
        self._producer = Producer(brokers, topic)

    def send(self, held: Held, settlement_id: str = "") -> None:
        """Send the settlement of a withdrawal; waits while the client's queue is full."""
        settlement = settlement_of(held, settlement_id=settlement_id)
        key, value = settlement.user_id.encode(), msgspec.json.encode(settlement)
        until = time.monotonic() + _FLUSH_SECONDS
        while True:
            try:
                self._producer.send(self._topic, key, value, ())
            except LinkError:
                if time.monotonic() > until:
                    raise
                self._producer.flush(0.1)
            else:
                return

    def send_all(self, held: Iterable[Held], *, has_id: bool) -> None:
        """Send settlements, with or without an id of their own, and wait for the broker."""
        for one in held:
            self.send(one, one.withdrawal_id if has_id else "")
        self.finish()

    def finish(self) -> None:
        """Wait until the broker has everything. Raises LinkError."""
        if self._producer.flush(_FLUSH_SECONDS) or self._producer.failed:
            raise LinkError("the broker did not take all settlements")

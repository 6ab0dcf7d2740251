"""Where a simulated venue hears of withdrawals, and where it settles them: Kafka, or HTTP."""

import http.client
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from pennyweight.links.errors import LinkError
from pennyweight.links.kafka import Consumer, Producer
from pennyweight.simulators.venue import Accepted, Message

EVENT = "withdrawal_accepted"
_PAGE = 1_000
_FLUSH_SECONDS = 10.0


class Exchange(Protocol):
    """Both ends at once."""

    def hear(self) -> list[Accepted]:
        """Return withdrawals that were accepted since the last time; may wait a moment."""

    def tell(self, messages: Sequence[Message]) -> None:
        """Send settlements. Raises OSError, LinkError."""

    def close(self) -> None:
        """Wait for what is under way, and let go."""


class _Event(msgspec.Struct):
    """An event on Kafka."""

    event: str
    data: msgspec.Raw


_event = msgspec.json.Decoder(_Event)
_accepted = msgspec.json.Decoder(Accepted)


class OverKafka:
    """Reads the engine's events from the earliest one, and writes to the settlements' topic."""

    def __init__(self, brokers: str, *, events: str, settlements: str, group: str) -> None:
        """Raises ExtraMissing."""
        self._brokers = brokers
        self._events = events
        self._settlements = settlements
        self._group = group
        self._consumer: Consumer | None = None
        self._producer = Producer(brokers, settlements)

    def hear(self) -> list[Accepted]:
        """See `Exchange`; a broker that is not there is asked again the next time."""
        try:
            if self._consumer is None:
                self._consumer = self._join()
            messages = self._consumer.consume(500, 0.05)
        except LinkError:
            if self._consumer is not None:
                self._consumer.close()
                self._consumer = None
            return []
        events = [_event.decode(message.value() or b"{}") for message in messages]
        return [_accepted.decode(one.data) for one in events if one.event == EVENT]

    def _join(self) -> Consumer:
        return Consumer(
            self._brokers,
            [self._events],
            group=self._group,
            position_of=lambda _stream: None,
            on_gain=lambda *_: None,
            on_loss=lambda _lost: None,
        )

    def tell(self, messages: Sequence[Message]) -> None:
        """See `Exchange`."""
        for message in messages:
            while True:
                try:
                    self._producer.send(self._settlements, message.key.encode(), message.value, ())
                except LinkError:  # the queue is full: the broker is slow, or away
                    if self._producer.flush(_FLUSH_SECONDS):
                        raise
                else:
                    break
        self._producer.look()

    def close(self) -> None:
        """See `Exchange`."""
        left = self._producer.flush(_FLUSH_SECONDS)
        if self._consumer is not None:
            self._consumer.close()
        if left or self._producer.failed:
            raise LinkError(f"{left + self._producer.failed} settlements were not delivered")


class OverHttp:
    """Reads the journal for withdrawals, page by page, and posts settlements."""

    def __init__(self, address: tuple[str, int], token: str = "") -> None:
        """`token` is an API key, or empty on loopback."""
        self.answers: Counter[str] = Counter()
        """Answers to settlements: their result, or the code of the refusal."""
        self._connection = http.client.HTTPConnection(*address, timeout=10)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._after = 0

    def hear(self) -> list[Accepted]:
        """See `Exchange`. Raises OSError."""
        path = f"/v1/entries?product=withdrawals&limit={_PAGE}&cursor={self._after}"
        status, page = self._ask("GET", path)
        if status != 200:
            raise ConnectionError(f"GET {path}: {status} {page.get('code', '')}")
        rows = page["data"]
        if rows:
            self._after = rows[-1]["sequence"]
        return list(_accepted_in(rows))

    def tell(self, messages: Sequence[Message]) -> None:
        """See `Exchange`. Raises OSError; what was sent then may be sent again."""
        for message in messages:
            status, answer = self._ask("POST", "/settlements", message.value)
            self.answers[str(answer.get("result") or answer.get("code") or status)] += 1

    def close(self) -> None:
        """See `Exchange`."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, Any]]:
        headers = {**self._headers, "content-type": "application/json"}
        try:
            self._connection.request(method, path, body, headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            self._connection.close()
            raise ConnectionError(str(error)) from error
        document = msgspec.json.decode(text) if text else {}
        return answer.status, document if isinstance(document, dict) else {}


def _accepted_in(rows: Iterable[dict[str, Any]]) -> Iterable[Accepted]:
    for row in rows:
        for event in row["events"]:
            if event["name"] == EVENT:
                yield msgspec.convert(event["body"], Accepted)

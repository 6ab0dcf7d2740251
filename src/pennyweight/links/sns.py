"""SNS as a relay writes to it: one message after the other, in order, each confirmed."""

from collections import deque
from collections.abc import Sequence
from time import monotonic

from pennyweight.links.aws import Aws
from pennyweight.links.errors import LinkError

Headers = tuple[tuple[str, bytes | None], ...]


class Outlet:
    """Where a relay sends: topics by their names, made if they are not there."""

    def __init__(self, aws: Aws, topics: Sequence[str]) -> None:
        """Nothing is asked yet."""
        self.name = f"SNS topic {', '.join(topics)}"
        self._aws = aws
        self._topics = tuple(topics)

    def open(self) -> "Sender":
        """Return what sends. Raises ExtraMissing, LinkError."""
        return Sender(self._aws, {name: self._aws.topic(name) for name in self._topics})

    def last_ids(self) -> Sequence[str]:
        """A topic keeps nothing that could be asked for."""
        return ()


class Sender:
    """Sends when it is flushed. After a failure all that was queued counts as failed."""

    def __init__(self, aws: Aws, addresses: dict[str, str]) -> None:
        """`addresses` are the topics' by their names."""
        self.failed = 0
        self.status = ""
        """Why the last message did not go out; "" while they do."""
        self._aws = aws
        self._addresses = addresses
        self._queue: deque[tuple[str, str]] = deque()

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Queue a message; SNS knows neither key nor headers of ours."""
        del key, headers
        self._queue.append((self._addresses[topic], (value or b"").decode()))

    def flush(self, timeout_seconds: float) -> int:
        """Send for at most so long, and return how many wait still."""
        until = monotonic() + timeout_seconds
        while self._queue and monotonic() < until:
            try:
                self._aws.publish(*self._queue[0])
            except LinkError as error:
                self.failed += len(self._queue)
                self._queue.clear()
                self.status = str(error)
                return 0
            self._queue.popleft()
            self.status = ""
        return len(self._queue)

    def look(self) -> None:
        """Nothing: SNS is asked when there is something to say."""

    def close(self) -> None:
        """Give up what is still queued."""
        self._queue.clear()

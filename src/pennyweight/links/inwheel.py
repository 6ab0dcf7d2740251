"""The broker inside the Kafka client's wheel, in a process of its own: for benchmarks and demos.

It speaks the real protocol, makes topics of four partitions when they are asked for, keeps
everything in memory (a partition's last 100 000 messages and 5 MB) and loses it in the end.
"""

import subprocess
import sys
from typing import Self

from pennyweight.links.kafka import client


class InWheelBroker:
    """One such broker; leaving the context ends it."""

    def __init__(self) -> None:
        """Start it. Raises ExtraMissing, RuntimeError when it does not start."""
        client()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pennyweight.links.inwheel"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self._process.stdout.readline().strip() if self._process.stdout else ""
        """Where it listens, as HOST:PORT."""
        if not self.address:
            self.close()
            raise RuntimeError("the broker inside the Kafka client did not start")

    def close(self) -> None:
        """End it; what it has is lost."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """See `close`."""
        self.close()


def main() -> int:
    """Be a broker until standard input ends."""
    producer = client().Producer({"test.mock.num.brokers": 1, "log_level": 0})
    brokers = producer.list_topics(timeout=10).brokers.values()
    sys.stdout.write("".join(f"{broker.host}:{broker.port}\n" for broker in brokers))
    sys.stdout.flush()
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

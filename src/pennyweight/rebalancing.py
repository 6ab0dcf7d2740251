"""What takes the queued updates of portfolios, put together for whichever ownership a process has."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from pennyweight.agents.updates import UpdateQueue
from pennyweight.engine.engine import Answer
from pennyweight.runtime.driver import ThreadedBook


class Ends:
    """The queue's agent where the book is owned; nothing elsewhere."""

    def __init__(self) -> None:
        """Nothing is owned yet."""
        self._queue: UpdateQueue | None = None

    def of(self, book: ThreadedBook) -> list[UpdateQueue]:
        """Return what takes the updates of a book that is owned from now on, as agents."""
        self._queue = UpdateQueue(book)
        return [self._queue]

    def hear(self, answers: Sequence[Answer]) -> None:
        """Pass on the answers of a batch; called by the engine's thread."""
        if self._queue is not None:
            self._queue.hear(answers)

    def down(self) -> dict[str, str]:
        """Return what does not work, for `/readyz`; where the book is not owned, nothing should."""
        queue = self._here()
        return {} if queue is None or not queue.status else {"portfolio updates": queue.status}

    def metrics(self) -> Iterator[Metric]:
        """Yield what was done since the book is owned, in Prometheus' terms."""
        queue = self._here()
        if queue is None:
            return
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        refused = sum(queue.refused.values())
        taken = counter(
            "pennyweight_update_queue_taken",
            "Queued updates, by what became of them",
            labels=("what",),
        )
        taken.add_metric(("done",), queue.taken - refused)
        taken.add_metric(("refused",), refused)
        taken.add_metric(("failed",), queue.failures)
        yield taken
        yield gauge("pennyweight_update_queue_depth", "Updates that wait", value=queue.depth)
        yield gauge(
            "pennyweight_update_queue_oldest_seconds",
            "How long the first of them has waited",
            value=queue.oldest_seconds,
        )

    def _here(self) -> UpdateQueue | None:
        return None if self._queue is None or self._queue.is_over else self._queue

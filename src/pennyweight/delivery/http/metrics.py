"""What `/metrics` tells: plain counters kept by the hot path, written out when asked for.

Requests by route and status, sizes and times of batches, queue, refusals, replays, cache.
Never an account, a user or a key as a label.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from pennyweight.delivery.http.routes import Route
from pennyweight.engine.cache import CacheFigures
from pennyweight.runtime.book import Book

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)


class Spread:
    """How a figure was spread, in fixed buckets; counted by one thread, read by any."""

    def __init__(self, name: str, what: str, bounds: tuple[float, ...]) -> None:
        """`bounds` are the upper ends of the buckets, the last of which has none."""
        self._name = name
        self._what = what
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def note(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def metric(self) -> Metric:
        """Return it in Prometheus' terms: each bucket counts the smaller ones too."""
        labels = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(labels, accumulate(self._counts), strict=True))
        family = HistogramMetricFamily(self._name, self._what)
        family.add_metric((), buckets, self._sum)
        return family


Requests = dict[tuple[str, str], dict[int, int]]
"""How often routes answered, by method and path, then by status."""


class Tallies(msgspec.Struct):
    """What one process counted: answers by method, route and status, and what it turned away."""

    requests: list[tuple[str, str, dict[int, int]]]
    refusals: dict[str, int]
    turned_away: dict[str, int]


class Metrics(Collector):
    """The server's figures, in a registry of their own."""

    def __init__(self) -> None:
        """Nothing counted yet; `watch` names the book once there is one."""
        self._requests: Requests = {}
        self._workers: dict[int, Tallies] = {}
        self.refusals: Counter[str] = Counter()
        """Requests refused before they reached the engine, by code."""
        self.turned_away: Counter[str] = Counter()
        """Commands not accepted (queue full, clock, store), by code."""
        self._book: Book | None = None
        self._sources: list[Callable[[], Iterable[Metric]]] = []
        self._registry = CollectorRegistry()
        self._size = Spread("pennyweight_batch_commands", "Commands decided per batch", _SIZES)
        self._decide = Spread(
            "pennyweight_decide_seconds", "Time to read and decide a batch", _SECONDS
        )
        self._append = Spread(
            "pennyweight_commit_seconds", "Time to append a batch durably", _SECONDS
        )
        self._registry.register(self)

    def watch(self, book: Book) -> None:
        """Tell of this book's engine too."""
        self._book = book

    def add(self, source: Callable[[], Iterable[Metric]]) -> None:
        """Tell what another part counts too; `source` is called for every answer, in any thread."""
        self._sources.append(source)

    def observe_batch(self, commands: int, decide_seconds: float, append_seconds: float) -> None:
        """Note a batch; called by the engine thread."""
        self._size.note(commands)
        self._decide.note(decide_seconds)
        self._append.note(append_seconds)

    def count(self, route: Route, status: int) -> None:
        """Note an answered request."""
        counts = self.counts_of(route)
        counts[status] = counts.get(status, 0) + 1

    def counts_of(self, route: Route) -> dict[int, int]:
        """Return how often a route answered with which status, to be counted up by the loop."""
        return self._requests.setdefault((route.method, route.path), {})

    def tallies(self) -> Tallies:
        """Return what was counted so far, for `adopt` in another process."""
        return Tallies(
            [(*place, dict(counts)) for place, counts in list(self._requests.items())],
            dict(self.refusals),
            dict(self.turned_away),
        )

    def adopt(self, worker: int, tallies: Tallies) -> None:
        """Note how far a worker's counts are; they count as our own."""
        self._workers[worker] = tallies

    def retire(self, worker: int) -> None:
        """Keep what a worker counted that has ended: the next one begins at nothing."""
        tallies = self._workers.pop(worker, None)
        if tallies is not None:
            self._add(tallies, self._requests, self.refusals, self.turned_away)

    def _totals(self) -> tuple[Requests, Counter[str], Counter[str]]:
        """Return answers, refusals and what was turned away, all workers included."""
        if not self._workers:
            return self._requests, self.refusals.copy(), self.turned_away.copy()
        requests: Requests = {place: dict(counts) for place, counts in self._requests.items()}
        refusals, turned_away = self.refusals.copy(), self.turned_away.copy()
        for tallies in list(self._workers.values()):
            self._add(tallies, requests, refusals, turned_away)
        return requests, refusals, turned_away

    @staticmethod
    def _add(
        tallies: Tallies, requests: Requests, refusals: Counter[str], turned_away: Counter[str]
    ) -> None:
        for method, path, counts in tallies.requests:
            total = requests.setdefault((method, path), {})
            for status, count in counts.items():
                total[status] = total.get(status, 0) + count
        refusals.update(tallies.refusals)
        turned_away.update(tallies.turned_away)

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        requests = CounterMetricFamily(
            "pennyweight_requests",
            "Answered requests",
            labels=("method", "route", "status"),
        )
        answered, refusals, turned_away = self._totals()
        for (method, path), counts in list(answered.items()):
            for status, count in sorted(counts.items()):
                requests.add_metric((method, path, str(status)), count)
        yield requests
        yield self._size.metric()
        yield self._decide.metric()
        yield self._append.metric()
        engine = None if self._book is None else self._book.engine
        if engine is not None:
            refusals += engine.refusals.copy()
            yield GaugeMetricFamily(
                "pennyweight_queue_commands", "Commands waiting", value=engine.waiting
            )
            yield GaugeMetricFamily(
                "pennyweight_sequence", "Sequence of the last entry", value=engine.head.sequence
            )
            yield from _cache_metrics(engine.cache.figures())
            for name, what, value in (
                ("replays", "Keys answered again", engine.replays),
                ("deferrals", "Commands that came back for a fact", engine.deferrals),
            ):
                yield CounterMetricFamily(f"pennyweight_{name}", what, value=value)
        for source in self._sources:
            yield from source()
        yield _by_code("pennyweight_refusals", "Refused requests", refusals)
        yield _by_code("pennyweight_turned_away", "Commands not accepted", turned_away)


def _cache_metrics(figures: CacheFigures) -> Iterator[Metric]:
    """Tell what the cache is doing."""
    for name, what, gauge in (
        ("users", "Users in memory, guests of a batch included", figures.resident),
        ("users_max", "Bound on users in memory", figures.limit),
        ("users_most", "The most users that were ever in memory", figures.most),
        ("guests", "Users in memory for the batch in hand alone", figures.guests),
        ("pinned", "Users in memory with open holds", figures.pinned),
        ("ghosts", "Ids of users remembered who are not in memory", figures.ghosts),
        ("loading", "Users being read", figures.loading),
    ):
        yield GaugeMetricFamily(f"pennyweight_cache_{name}", what, value=gauge)
    for name, what, count in (
        ("hits", "Uses of users found in memory", figures.hits),
        ("misses", "Uses of users read from the store", figures.misses),
        ("evictions", "Users evicted", figures.evictions),
    ):
        yield CounterMetricFamily(f"pennyweight_cache_{name}", what, value=count)
    ratios = GaugeMetricFamily(
        "pennyweight_cache_hit_ratio", "Share of hits among the last uses", labels=("window",)
    )
    for window, ratio in figures.hit_ratios.items():
        if ratio is not None:
            ratios.add_metric((window,), ratio)
    yield ratios


def _by_code(name: str, what: str, counts: Counter[str]) -> Metric:
    family = CounterMetricFamily(name, what, labels=("code",))
    for code, count in sorted(counts.items()):
        family.add_metric((code,), count)
    return family

"""The book's end in a search engine, put together: documents of everything, where one is configured."""

from collections.abc import Iterator
from functools import partial
from threading import Thread

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from pennyweight.agents.exporter import PAGE, Exporter
from pennyweight.config import Config, ConfigError
from pennyweight.delivery.indices import INDICES
from pennyweight.delivery.search import Documents
from pennyweight.links import search
from pennyweight.links.errors import ExtraMissing
from pennyweight.links.search import Search
from pennyweight.runtime.driver import ThreadedBook

CURSOR = "export:search"
"""The book's cursor: how far its documents are there."""

PAGE_MIN = 16
USERS_PER_ENTRY = 40
"""Entries are read by the fortieth part of the bound on users at a time, so that a twentieth of it
is the exporter's: one page on its way, and one in the making."""

END_SECONDS = 3.0
"""How long the end waits for the last bulk; one that hangs is sent again by whoever owns the book next."""


def page_of(config: Config) -> int:
    """Return how many entries are read at a time."""
    return max(PAGE_MIN, min(PAGE, config.cache.users_max // USERS_PER_ENTRY))


def users_reserved(config: Config) -> int:
    """Return how many users the exporter may have in memory. 0 where nothing is exported."""
    return 2 * page_of(config) if config.search.url else 0


class Ends:
    """The end of whichever ownership this process has; none where no search engine is configured."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError where the client is not installed."""
        self._config = config
        self._export: Export | None = None
        if config.search.url:
            try:
                search.client()
            except ExtraMissing as error:
                raise ConfigError(f"search.url is set, but {error}") from None

    def of(self, book: ThreadedBook) -> list["Export"]:
        """Return the end of a book that is owned from now on, as an agent."""
        if not self._config.search.url:
            return []
        self._export = Export(book, self._config)
        return [self._export]

    def down(self) -> dict[str, str]:
        """Return what does not work, for `/readyz`; where the book is not owned, nothing should."""
        export = self._export
        if export is None or export.is_over or not export.exporter.status:
            return {}
        return {"search": export.exporter.status}

    def metrics(self) -> Iterator[Metric]:
        """Yield what was done since the book is owned, in Prometheus' terms."""
        export = self._export
        if export is not None and not export.is_over:
            yield from export.metrics()


class Export:
    """The exporter of one ownership, as an agent of the server."""

    def __init__(self, book: ThreadedBook, config: Config) -> None:
        """Nothing runs yet."""
        self.is_over = False
        settings = config.search
        self.exporter = Exporter(
            book,
            partial(
                Search,
                settings.url,
                api_key=settings.api_key,
                prefix=settings.prefix,
                timeout_seconds=settings.timeout_seconds,
            ),
            Documents(lambda asset: book.standing.assets[asset].scale, book.store),
            INDICES,
            cursor=CURSOR,
            entries_max=page_of(config),
            documents_max=settings.documents_max,
        )

    def start(self) -> None:
        """Begin to export; the book must have been started."""
        self.exporter.start()

    def stop(self) -> None:
        """End it. A bulk that hangs on its way is not waited for."""
        self.is_over = True
        ending = Thread(target=self.exporter.stop, name="export-end", daemon=True)
        ending.start()
        ending.join(END_SECONDS)

    def metrics(self) -> Iterator[Metric]:
        """Yield what was done since the start, in Prometheus' terms."""
        counts = self.exporter.counts
        documents = CounterMetricFamily(
            "pennyweight_search_documents",
            "Documents exported, by what became of them",
            labels=("what",),
        )
        documents.add_metric(("sent",), counts.sent)
        documents.add_metric(("already_there",), counts.present)
        documents.add_metric(("rejected",), counts.rejected)
        yield documents
        counter, gauge = CounterMetricFamily, GaugeMetricFamily
        yield counter("pennyweight_search_bulks", "Bulks of documents", value=counts.bulks)
        yield counter(
            "pennyweight_search_retries",
            "Bulks that were sent again in parts",
            value=counts.retries,
        )
        yield counter(
            "pennyweight_search_failures",
            "Entries that no documents could be made of",
            value=counts.failed,
        )
        yield gauge(
            "pennyweight_search_lag_entries",
            "Entries that are not all exported yet",
            value=self.exporter.lag,
        )
        yield gauge(
            "pennyweight_search_down",
            "1 while documents wait for the search engine",
            value=int(bool(self.exporter.status)),
        )

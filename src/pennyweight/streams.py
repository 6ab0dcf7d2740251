"""The book's ends in Kafka, put together.

Settlements and updates of portfolios in, by one reader of both topics; events and dead
letters out.
"""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from pennyweight.agents.inbound import Inbox, Intake
from pennyweight.agents.relay import PAGE, Relay, as_dead_letter, as_json
from pennyweight.config import ConfigError, Kafka
from pennyweight.delivery.letters import HANDLINGS
from pennyweight.ledger.letters import SET_ASIDE
from pennyweight.links import kafka
from pennyweight.links.errors import ExtraMissing
from pennyweight.products import portfolios, withdrawals
from pennyweight.products.withdrawals import shared
from pennyweight.runtime.driver import ThreadedBook

USERS_RESERVED = PAGE
"""Users whose entries the relay may have in memory."""

DEAD_LETTERS = "{topic}.dead-letters"

_EVENTS = (
    shared.ACCEPTED,
    shared.SETTLED,
    shared.CANCELLED,
    shared.EXPIRED,
    shared.UNSOLICITED,
    shared.DEFICIT,
)


class Ends:
    """The ends of whichever ownership this process has; none where no broker is configured."""

    def __init__(self, settings: Kafka) -> None:
        """Raises ConfigError where the client is not installed."""
        self._settings = settings
        self._streams: Streams | None = None
        if settings.broker:
            try:
                kafka.client()
            except ExtraMissing as error:
                raise ConfigError(f"kafka.broker is set, but {error}") from None

    def of(self, book: ThreadedBook) -> list["Streams"]:
        """Return the ends of a book that is owned from now on, as agents."""
        if not self._settings.broker:
            return []
        self._streams = Streams(book, self._settings)
        return [self._streams]

    def down(self) -> dict[str, str]:
        """Return what does not work, for `/readyz`; where the book is not owned, nothing should."""
        streams = self._streams
        return {} if streams is None or streams.is_over else streams.down()

    def metrics(self) -> Iterator[Metric]:
        """Yield what was done since the book is owned, in Prometheus' terms."""
        streams = self._streams
        if streams is not None and not streams.is_over:
            yield from streams.metrics()


class Streams:
    """Consumer and relay of one book, as an agent of the server.

    One consumer reads both topics, so one window bounds what is under way of both; each
    partition is a stream of its own, and none waits for another's answers.
    """

    def __init__(self, book: ThreadedBook, settings: Kafka) -> None:
        """Nothing runs yet. Raises ExtraMissing."""
        self.is_over = False
        options = dict(option.split("=", 1) for option in settings.options)
        events = as_json(settings.events_topic, "user_id")
        topics = {
            settings.settlements_topic: withdrawals.PRODUCT,
            settings.rebalance_topic: portfolios.PRODUCT,
        }
        self.intake = Intake(
            book,
            settings.broker,
            {topic: _inbox(product) for topic, product in topics.items()},
            group=settings.group,
            options=options,
        )
        self.relay = Relay(
            book,
            kafka.Outlet(settings.broker, settings.events_topic, options=options),
            {
                **dict.fromkeys(_EVENTS, events),
                SET_ASIDE: as_dead_letter(lambda topic: DEAD_LETTERS.format(topic=topic)),
            },
            name=f"relay:{settings.events_topic}",
            products=tuple(topics.values()),
        )

    def start(self) -> None:
        """Begin to read and to relay; the book must have been started."""
        self.relay.start()
        self.intake.start()

    def stop(self) -> None:
        """Stop reading, then relay what was done, if the broker is there."""
        self.is_over = True
        self.intake.stop()
        self.relay.stop()

    def down(self) -> dict[str, str]:
        """Return what does not work, for `/readyz`."""
        states = {"messages": self.intake.status, "events": self.relay.status}
        return {f"kafka {name}": state for name, state in states.items() if state}

    def metrics(self) -> Iterator[Metric]:
        """Yield what both have done since the start, in Prometheus' terms."""
        intake, relay = self.intake, self.relay
        messages = CounterMetricFamily(
            "pennyweight_kafka_messages", "Messages read, by what became of them", labels=("what",)
        )
        for what in ("consumed", "booked", "replayed", "set_aside", "ignored"):
            messages.add_metric((what,), getattr(intake, what))
        yield messages
        lag = GaugeMetricFamily(
            "pennyweight_kafka_lag_messages",
            "Messages not yet booked",
            labels=("topic", "partition"),
        )
        for (topic, partition), behind in list(intake.lag.items()):
            lag.add_metric((topic, str(partition)), behind)
        yield lag
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        yield gauge(
            "pennyweight_kafka_paused", "1 while messages wait for the book", value=intake.is_paused
        )
        yield counter(
            "pennyweight_kafka_conflicts", "Cursors found elsewhere", value=intake.conflicts
        )
        yield counter(
            "pennyweight_kafka_failures", "Messages that a rule broke on", value=intake.failures
        )
        yield counter("pennyweight_relay_events", "Events acknowledged", value=relay.sent)
        yield gauge("pennyweight_relay_lag_entries", "Entries not yet relayed", value=relay.lag)


def _inbox(product: str) -> Inbox:
    """Return what is done with the messages of a product's topic."""
    handling = HANDLINGS[product]
    return Inbox(handling.read, handling.set_aside)

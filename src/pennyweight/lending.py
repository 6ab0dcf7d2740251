"""What watches over loans, put together: prices in, decisions by them, liquidations, notices.

All of it runs where the book is owned, and moves with it. What any process shows of prices
comes from the agents of its own ownership, or from what the owner told.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from threading import Thread
from typing import Any

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from pennyweight.agents.appraiser import Appraiser
from pennyweight.agents.liquidator import Liquidator
from pennyweight.agents.prices import PriceIntake
from pennyweight.agents.quotes import QuoteBoard
from pennyweight.agents.relay import PAGE, Relay
from pennyweight.config import Config, ConfigError, Loans
from pennyweight.delivery.http.wire import rfc3339
from pennyweight.delivery.notices import TOPICS, Dialect, routes
from pennyweight.delivery.prices import BadPrice, read_price
from pennyweight.engine.engine import Answer
from pennyweight.links import sns, venues
from pennyweight.links.aws import Aws
from pennyweight.links.errors import ExtraMissing
from pennyweight.products import loans
from pennyweight.products.loans.shared import MARKETS, Market, Quote
from pennyweight.runtime.clock import wall_clock
from pennyweight.runtime.driver import ThreadedBook, Unavailable

USERS_RESERVED = PAGE
"""Users whose entries the relay of notices may have in memory."""

NOTICES_END_SECONDS = 3.0
"""How long the end waits for the last notice; a call to SNS may hang for longer than an owner
that was asked to stop has."""

QUEUE_NAME_MAX = 75

STATE, QUOTES = "prices", "quotes"
"""Names of the boards that fronts are told."""

ITEMS: Mapping[Dialect, str] = {"seed": "STEEL:MANDALORIAN", "later": "BSK"}
"""What Black Spire calls BESKAR, by dialect."""

_BREAKERS = {"closed": 0.0, "half_open": 0.5, "open": 1.0}
_quotes = msgspec.json.Decoder(tuple[Quote, ...])


class Ends:
    """What watches loans in whichever ownership this process has; nothing where that is not wanted."""

    def __init__(self, config: Config) -> None:
        """Raises ConfigError where a client is not installed."""
        self._config = config
        self._desk: Desk | None = None
        self._cloud: Aws | None = None
        if config.is_watching_loans:
            try:
                venues.client()
                if config.aws.endpoint:
                    endpoint = "" if config.aws.endpoint == "aws" else config.aws.endpoint
                    self._cloud = Aws(endpoint, config.aws.region)
            except ExtraMissing as error:
                raise ConfigError(
                    f"loans are to be watched (aws.endpoint or loans.is_watched), but {error}"
                ) from None

    def of(self, book: ThreadedBook) -> list["Desk"]:
        """Return what watches the loans of a book that is owned from now on, as agents."""
        if not self._config.is_watching_loans:
            return []
        self._desk = Desk(book, self._config, self._cloud)
        return [self._desk]

    def close(self) -> None:
        """Hang up; nobody owns the book here any more."""
        if self._cloud is not None:
            self._cloud.close()

    def hear(self, answers: Sequence[Answer]) -> None:
        """Pass on the answers of a batch; called by the engine's thread."""
        if self._desk is not None:
            self._desk.hear(answers)

    def down(self) -> dict[str, str]:
        """Return what does not work, for `/readyz`."""
        return {} if self.desk is None else self.desk.down()

    def metrics(self) -> Iterator[Metric]:
        """Yield what was done since the book is owned, in Prometheus' terms."""
        if self.desk is not None:
            yield from self.desk.metrics()

    def boards(self) -> dict[str, msgspec.Raw]:
        """Return what fronts are told."""
        desk = self.desk
        if desk is None:
            return {}
        return {
            STATE: msgspec.Raw(msgspec.json.encode(desk.state())),
            QUOTES: msgspec.Raw(msgspec.json.encode(desk.board.latest())),
        }

    @property
    def desk(self) -> "Desk | None":
        """What watches loans in this process now, None where the book is not owned."""
        desk = self._desk
        return None if desk is None or desk.is_over else desk


class Window:
    """What the face of loans sees of prices, in any process: its own desk, or what the owner told."""

    def __init__(
        self,
        told: Callable[[], Mapping[str, msgspec.Raw]],
        ends: Ends | None,
        settings: Loans,
    ) -> None:
        """`told` are the owner's boards; what they say ages here, also where he has fallen."""
        self._told = told
        self._ends = ends
        self._settings = settings

    def prices(self) -> dict[str, Any] | None:
        """Return the board of prices, None where nothing is known of it."""
        desk = self._here()
        if desk is not None:
            return desk.state()
        boards = self._told()
        if STATE not in boards:
            return None
        told = msgspec.json.decode(boards[STATE])
        state = self._board_told(boards).state(wall_clock())
        for market, shown in state["markets"].items():
            shown["counts"] = told["markets"][market]["counts"]
        return {"as_of": told["as_of"], **state}

    def quotes(self) -> tuple[Quote, ...]:
        """Return the quotes that count now."""
        desk = self._here()
        board = self._board_told(self._told()) if desk is None else desk.board
        return board.fresh(wall_clock())

    def _board_told(self, boards: Mapping[str, msgspec.Raw]) -> QuoteBoard:
        """Return a board with the quotes that the owner told last; the guards are ours."""
        board = board_of(self._settings)
        if QUOTES in boards:
            board.adopt(_quotes.decode(boards[QUOTES]))
        return board

    def push(self, market: Market, body: bytes) -> str:
        """Take a price as if it had come by a queue. Raises Unavailable where nobody follows prices."""
        desk = self._here()
        if desk is None:
            raise Unavailable(
                "no_owner", "this process does not own the book, or follows no prices"
            )
        return desk.intake.take(market, body, str(wall_clock()))

    def _here(self) -> "Desk | None":
        return None if self._ends is None else self._ends.desk


def queue_name(book: str, market: Market) -> str:
    """Name a book's queue of a market's prices; one of a long name goes by its digest.

    SQS takes 80 characters, and the queue of dead letters needs a few more.
    """
    name = f"pennyweight-{book}-{market.replace('_', '-')}"
    if len(name) <= QUEUE_NAME_MAX:
        return name
    return queue_name(sha256(book.encode()).hexdigest()[:32], market)


def board_of(settings: Loans) -> QuoteBoard:
    """Return an empty board with the guards that are configured."""
    return QuoteBoard(
        age_seconds=settings.age_seconds,
        deviation_percent=settings.deviation_percent,
        jump_percent=settings.jump_percent,
    )


class Desk:
    """What watches the loans of one ownership: an agent of agents."""

    def __init__(self, book: ThreadedBook, config: Config, cloud: Aws | None) -> None:
        """Nothing runs yet."""
        self.is_over = False
        settings = config.loans
        self.board = board_of(settings)
        self.appraiser = Appraiser(book, self.board, clock=wall_clock)
        self.liquidator = Liquidator(
            book,
            self.board,
            partial(
                venues.Venues,
                {"mos_espa": settings.mos_espa_url, "black_spire": settings.black_spire_url},
                timeout_seconds=settings.venue_timeout_seconds,
                item=ITEMS[settings.dialect],
            ),
            timeout_seconds=settings.venue_timeout_seconds,
            margin_seconds=settings.venue_margin_seconds,
        )
        self.intake = PriceIntake(
            book,
            self.board,
            cloud,
            queues={market: queue_name(config.store.book, market) for market in MARKETS},
            read=read_price,
            bad_price=BadPrice,
            on_quote=lambda _: self.appraiser.notice(),
        )
        self.relay: Relay | None = None
        if cloud is not None:
            topic = TOPICS[settings.dialect]
            self.relay = Relay(
                book,
                sns.Outlet(cloud, [topic]),
                routes(settings.dialect),
                name=f"relay:{topic}",
                products=(loans.PRODUCT,),
            )

    def start(self) -> None:
        """Begin; the book must have been started."""
        for agent in self._agents:
            agent.start()

    def stop(self) -> None:
        """End: first the prices, last the notices.

        A notice that hangs on its way is not waited for: whoever owns the book next sends it
        again, under the same id.
        """
        self.is_over = True
        for agent in (self.intake, self.appraiser, self.liquidator):
            agent.stop()
        if self.relay is not None:
            ending = Thread(target=self.relay.stop, name="notices-end", daemon=True)
            ending.start()
            ending.join(NOTICES_END_SECONDS)

    def state(self) -> dict[str, Any]:
        """Return the board of prices, and when it was so."""
        now = wall_clock()
        return {"as_of": rfc3339(now), **self.board.state(now)}

    @property
    def _agents(self) -> list[Any]:
        agents = [self.intake, self.appraiser, self.liquidator]
        return agents if self.relay is None else [*agents, self.relay]

    def hear(self, answers: Sequence[Answer]) -> None:
        """Hear all answers of a batch; called by the engine's thread."""
        self.appraiser.hear(answers)
        self.liquidator.hear(answers)

    def down(self) -> dict[str, str]:
        """Return what does not work, for `/readyz`."""
        states = {
            "prices": self.intake.status,
            "appraisal": self.appraiser.status,
            "liquidation": self.liquidator.status,
            "notices": "" if self.relay is None else self.relay.status,
        }
        return {f"loans {name}": state for name, state in states.items() if state}

    def metrics(self) -> Iterator[Metric]:
        """Yield what was done since the book is owned, in Prometheus' terms."""
        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        prices = counter(
            "pennyweight_prices",
            "Messages of the markets, by what became of them",
            labels=("market", "what"),
        )
        for market, counts in self.intake.counts().items():
            for what, count in counts.items():
                prices.add_metric((market, what), count)
        yield prices
        appraiser = self.appraiser
        yield counter("pennyweight_loan_ticks", "Looks at what is due", value=appraiser.ticks)
        yield gauge(
            "pennyweight_loan_tick_seconds",
            "How long the last look took",
            value=appraiser.scan_seconds,
        )
        decided = counter("pennyweight_loan_decisions", "Decisions by price", labels=("what",))
        for kind, count in list(appraiser.done.items()):
            decided.add_metric((kind,), count)
        yield decided
        liquidator = self.liquidator
        orders = counter(
            "pennyweight_loan_orders",
            "Orders sent to the markets, and what was answered",
            labels=("market", "what"),
        )
        breakers = gauge(
            "pennyweight_venue_breaker",
            "0 while a market is asked as usual, 1 while it rests, 0.5 while one may try",
            labels=("market",),
        )
        for market, state in liquidator.states().items():
            for what in ("orders", "filled", "failed", "in_doubt", "withdrawn"):
                orders.add_metric((market, what), getattr(liquidator, what)[market])
            breakers.add_metric((market,), _BREAKERS[state])
        yield orders
        yield breakers
        yield gauge(
            "pennyweight_loans_liquidating",
            "Loans whose liquidation is under way",
            value=liquidator.under_way,
        )
        yield counter(
            "pennyweight_loans_liquidated", "Loans liquidated", value=liquidator.liquidated
        )
        if self.relay is not None:
            yield counter("pennyweight_notices", "Notices acknowledged", value=self.relay.sent)
            yield gauge(
                "pennyweight_notices_lag_entries", "Entries not yet told of", value=self.relay.lag
            )

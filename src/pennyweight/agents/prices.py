"""Reads what the markets publish of prices: from their queues to the board, nothing in between.

Each market has a topic, and a queue of ours with a thread that polls it, so that one that
hangs holds nobody up. A message is deleted when it has had its effect. One that is no price
is kept in the journal, and deleted only when it surely is there; until then it comes again,
and in the end lies in the dead-letter queue.

Prices are worth nothing after seconds. So the queues forget what nobody read for a while, and
whoever takes the book over finds a short backlog, which the board drops as stale. Polls are
short ones: a long poll of an owner that fell takes messages with it, and one under way would
keep an owner from ending; markets that publish every second answer a poll within it anyway.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from queue import Empty, SimpleQueue
from threading import Lock

import structlog

from pennyweight.agents.agent import Persistent
from pennyweight.agents.quotes import VERDICTS, QuoteBoard
from pennyweight.engine.engine import Lane, QueueFull, Submission
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.links.aws import Aws, Received
from pennyweight.links.errors import ExtraMissing, LinkError
from pennyweight.products.loans.life import RejectPrice
from pennyweight.products.loans.shared import Market, Quote
from pennyweight.runtime.clock import wall_clock
from pennyweight.runtime.driver import ThreadedBook, Unavailable

TOPICS: Mapping[Market, str] = {
    "mos_espa": "tatooine-mos-espa-prices",
    "black_spire": "batuu-black-spire-outpost-price-stream",
}

IGNORED, REJECTED, LEFT = "ignored", "rejected", "left"
"""Besides the board's verdicts: another item, no price at all, and not yet kept, so left there."""

PUSHED = "pushed"
"""The queue of what did not come by one."""

WAIT_SECONDS = 1
RETENTION_SECONDS = 120
"""How long a queue keeps prices. SQS allows no less than 60, and what could not be kept in the
journal must come often enough to reach the dead-letter queue."""

REJECT_SECONDS = 5.0
"""How long a poll waits for the book to keep what is no price."""

SILENCE_SECONDS = 30.0
"""After so long without a message the market is said to be silent, and is subscribed to again."""

STOP_SECONDS = 1.5
WARN_SECONDS = 60.0
PAUSE_SECONDS = 0.05
PAYLOAD_MAX = 2_000
ID_MAX = 100

log = structlog.get_logger(__name__)

Read = Callable[[Market, bytes | str, int], Quote | None]
"""Reads the quote in a body, by market and time of receipt; None for another item. Pure."""


class PriceIntake:
    """Threads that bring prices to the board, one for each market. Counts are since its beginning."""

    def __init__(
        self,
        book: ThreadedBook,
        board: QuoteBoard,
        aws: Aws | None,
        *,
        queues: Mapping[Market, str],
        read: Read,
        bad_price: type[Exception],
        on_quote: Callable[[Market], object],
        clock: Callable[[], int] = wall_clock,
        wait_seconds: int = WAIT_SECONDS,
    ) -> None:
        """`queues` are the names of ours, by market; without `aws` only pushed prices come.

        `bad_price` is what `read` raises for what is no price, its text says why. `on_quote`
        hears of every quote that the board accepted, in the thread that brought it.
        """
        self.book = book
        self._board = board
        self._read = read
        self._bad_price = bad_price
        self._on_quote = on_quote
        self._clock = clock
        self._lock = Lock()
        self._warned: dict[Market, float] = {}
        """From when on the log may be told again."""
        self._counts: dict[Market, Counter[str]] = {market: Counter() for market in TOPICS}
        self._pollers: tuple[_Poller, ...] = ()
        if aws is not None:
            self._pollers = tuple(
                _Poller(self, aws, market, queue, wait_seconds) for market, queue in queues.items()
            )

    def start(self) -> None:
        """Begin to poll; the book must have been started."""
        for poller in self._pollers:
            poller.start()

    def stop(self) -> None:
        """End: within a poll, and after a moment whatever it does; nothing is taken any more."""
        for poller in self._pollers:
            poller.end()
        until = time.monotonic() + STOP_SECONDS
        for poller in self._pollers:
            poller.join(max(0.0, until - time.monotonic()))

    @property
    def status(self) -> str:
        """Why prices do not come, for `/readyz`; "" while they do."""
        found = [(poller.market, poller.status) for poller in self._pollers]
        return "; ".join(f"{market}: {status}" for market, status in found if status)

    def counts(self) -> dict[Market, dict[str, int]]:
        """Return what became of the messages, by market."""
        names = (*VERDICTS, IGNORED, REJECTED, LEFT)
        with self._lock:
            return {
                market: {name: counts[name] for name in names}
                for market, counts in self._counts.items()
            }

    def take(self, market: Market, body: bytes | str, message_id: str) -> str:
        """Take a price that was pushed, the way that all prices go; return what became of it.

        That is the board's verdict, or "ignored" (another item), or "rejected" (no price; it
        is on its way into the journal). From any thread. Raises QueueFull, Unavailable where
        the book takes nothing that could be kept.
        """
        try:
            return self.judge(market, body)
        except self._bad_price as error:
            rejection = reject(PUSHED, message_id, str(error), body)
            self.warn(market, str(error))
        self.book.submit(Submission(rejection, key=key_of(rejection), lane=Lane.TIMERS))
        self.count(market, REJECTED)
        return REJECTED

    def judge(self, market: Market, body: bytes | str) -> str:
        """Offer a price to the board, and tell who listens; return what became of it.

        Raises what `read` does.
        """
        now = self._clock()
        quote = self._read(market, body, now)
        verdict = IGNORED if quote is None else self._board.offer(quote, now)
        self.count(market, verdict)
        if verdict == "accepted":
            self._on_quote(market)
        return verdict

    def warn(self, market: Market, reason: str) -> None:
        """Say in the log that a message was no price, once a minute for each market at most."""
        now = time.monotonic()
        with self._lock:
            is_due = now >= self._warned.get(market, 0.0)
            if is_due:
                self._warned[market] = now + WARN_SECONDS
        if is_due:
            log.warning("a message was no price, and is kept", market=market, reason=reason)

    def refusal(self, market: Market, body: str) -> str:
        """Offer a price to the board; return why it is none, "" where it is one."""
        try:
            self.judge(market, body)
        except self._bad_price as error:
            return str(error) or "it is no price"
        return ""

    def count(self, market: Market, what: str) -> None:
        """Count one more message."""
        with self._lock:
            self._counts[market][what] += 1


class _Poller(Persistent):
    """The thread of one market."""

    expected = (LinkError, ExtraMissing)

    def __init__(
        self, intake: PriceIntake, aws: Aws, market: Market, queue: str, wait_seconds: int
    ) -> None:
        super().__init__(f"prices-{market}")
        self.market = market
        self._intake = intake
        self._aws = aws
        self._queue = queue
        self._wait_seconds = wait_seconds
        self._heard_at = 0.0
        """When a message came last, or the first session began; 0 before that."""

    @property
    def status(self) -> str:
        """Why nothing comes; "" while it does."""
        if self._down or not self._heard_at:
            return self._down or "not connected yet"
        seconds = time.monotonic() - self._heard_at
        return "" if seconds < SILENCE_SECONDS else f"no price for {seconds:.0f} s"

    def end(self) -> None:
        """Tell the thread to end."""
        self._is_over.set()

    def join(self, timeout_seconds: float) -> None:
        """Wait for its end; one that hangs in a call is left to that, and takes nothing more."""
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    # ── the thread ────────────────────────────────────────────────────────────────

    def _session(self) -> None:
        """Poll until told to stop. Raises LinkError."""
        url = self._connect()
        self._heard_at = asked_at = time.monotonic()
        self._down = ""
        while not self._is_over.is_set():
            if not self._intake.book.is_sure:  # who owns the book now wants them
                self._is_over.wait(PAUSE_SECONDS)
                continue
            found = self._aws.receive(url, wait_seconds=self._wait_seconds)
            now = time.monotonic()
            if found:
                self._heard_at = asked_at = now
                self._handle(url, found)
            elif now - asked_at > SILENCE_SECONDS:
                url, asked_at = self._connect(), now

    def _connect(self) -> str:
        """Make what is missing of topic, queues and subscription. Raises LinkError."""
        url = self._aws.queue(
            self._queue, dead_letter=f"{self._queue}-dead", retention_seconds=RETENTION_SECONDS
        )
        self._aws.subscribe(self._aws.topic(TOPICS[self.market]), url)
        return url

    def _handle(self, url: str, found: Sequence[Received]) -> None:
        """Take messages, and delete those that had their effect. Raises LinkError."""
        done: list[str] = []
        poison: list[tuple[Received, str]] = []
        for message in found:
            if self._is_over.is_set():  # a successor may have its board by now
                return
            reason = self._intake.refusal(self.market, message.body)
            if reason:
                poison.append((message, reason))
            else:
                done.append(message.receipt)
        if done:
            self._aws.delete(url, done)
        if poison:
            kept = self._keep(poison)
            if kept:
                self._aws.delete(url, kept)

    def _keep(self, poison: Sequence[tuple[Received, str]]) -> list[str]:
        """Have the book keep what is no price; return the receipts of what it surely keeps."""
        answers: SimpleQueue[tuple[str, Outcome]] = SimpleQueue()
        waiting = 0
        for message, reason in poison:
            self._intake.warn(self.market, reason)
            rejection = reject(self._queue, message.id, reason, message.body)
            ticket = _ticket(answers, message.receipt)
            try:
                self._intake.book.submit(
                    Submission(rejection, key=key_of(rejection), lane=Lane.TIMERS, ticket=ticket)
                )
            except (QueueFull, Unavailable):
                break
            waiting += 1
        kept: list[str] = []
        until = time.monotonic() + REJECT_SECONDS
        while waiting and time.monotonic() < until and not self._is_over.is_set():
            try:
                receipt, outcome = answers.get(timeout=PAUSE_SECONDS)
            except Empty:
                continue
            waiting -= 1
            if isinstance(outcome, Receipt):
                kept.append(receipt)
                self._intake.count(self.market, REJECTED)
        for _ in range(len(poison) - len(kept)):
            self._intake.count(self.market, LEFT)
        return kept


def reject(queue: str, message_id: str, reason: str, body: bytes | str) -> RejectPrice:
    """Return the command that keeps what is no price: its beginning, as text that can be written."""
    beginning = body[: 4 * PAYLOAD_MAX]  # a character has four bytes at most
    text = beginning if isinstance(beginning, str) else beginning.decode("utf-8", "replace")
    return RejectPrice(
        queue, _writable(message_id)[:ID_MAX], _writable(reason), _writable(text)[:PAYLOAD_MAX]
    )


def key_of(rejection: RejectPrice) -> str:
    """Return the key under which it is kept once, however often the message comes."""
    return f"price:{rejection.queue}:{rejection.message}"


def _writable(text: str) -> str:
    """Return text without halves of characters, which no file could hold."""
    return text.encode("utf-8", "replace").decode()


def _ticket(answers: SimpleQueue[tuple[str, Outcome]], receipt: str) -> Callable[[Outcome], object]:
    """Return what hands the outcome of a message over to the thread that waits for it."""
    return lambda outcome: answers.put((receipt, outcome))

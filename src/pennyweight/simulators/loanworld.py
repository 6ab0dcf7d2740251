"""A small world of loans for the demo: posts whose prices fall and recover, and borrowers.

The price comes down often enough that loans are warned and liquidated within a minute, and
never by so much at once that the engine would not believe it. The posts fail often, and now
and then do not answer. What became of loans is read from the journal, and in the end the
posts' own order books are compared with it.
"""

import http.client
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Self

import msgspec

from pennyweight.delivery.notices import TOPICS as NOTICE_TOPICS
from pennyweight.links.aws import Aws
from pennyweight.links.errors import LinkError
from pennyweight.products.loans.shared import (
    ACTIVATED,
    APPLIED,
    LIQUIDATED,
    LIQUIDATING,
    MARKETS,
    SLICE,
    WARNED,
    Market,
    Status,
)
from pennyweight.simulators.borrowers import Borrowers, HttpBank
from pennyweight.simulators.posts import Posts, Publish
from pennyweight.simulators.pricewalk import PriceWalk
from pennyweight.simulators.publishing import Address
from pennyweight.simulators.trading import Odds

PUSHED: Mapping[str, str] = {
    "PENNYWEIGHT_AWS_ENDPOINT": "",  # also where our own environment has one
    "PENNYWEIGHT_LOANS_IS_WATCHED": "true",
    "PENNYWEIGHT_LOANS_IS_PUSH_OPEN": "true",
}
"""What an engine is to have in its environment, to which prices are pushed over HTTP."""

ODDS = Odds(failed=0.3, slow=0.1, hung=0.05, hang_seconds=3.0)
"""Three orders in ten fail, and some are carried out but answered later than anybody waits for."""

NOTICES_QUEUE = "demo-branch"

_CENTS = 5_000
"""The price of BESKAR when it is high."""

_TICKS = 20_000
_PAGE = 1_000
_ASK_SECONDS = 5.0
_READ_SECONDS = 0.5
_POLL_SECONDS = 1
_NOTICES_KEPT = 1_000
_LIVES = 1_000_003
"""Between the seeds of borrowers on one book: each loan that is there already is one step."""

_STATUSES: Mapping[str, Status] = {
    APPLIED: "new",
    ACTIVATED: "active",
    LIQUIDATING: "liquidating",
    LIQUIDATED: "liquidated",
}


# ── prices ────────────────────────────────────────────────────────────────────────


def waves(seed: int) -> Iterator[str]:
    """Yield prices without end: high, a fall by a third and more, low, and up again.

    A loan of twice its collateral's worth is warned on the way down, and liquidated below
    five eighths of the price that it was made at.
    """
    draw = random.Random(f"waves {seed}")
    while True:
        for _ in range(draw.randint(6, 9)):
            yield _text(_CENTS * draw.randint(990, 1_010) // 1_000)
        cents, low = _CENTS, _CENTS * draw.randint(56, 61) // 100
        while cents > low:
            cents = max(low, cents * draw.randint(91, 95) // 100)
            yield _text(cents)
        for _ in range(draw.randint(3, 5)):
            yield _text(low * draw.randint(990, 1_010) // 1_000)
        while cents < _CENTS:
            cents = min(_CENTS, cents * draw.randint(106, 112) // 100)
            yield _text(cents)


def _text(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02}"


# ── what became of loans ──────────────────────────────────────────────────────────


class LoanCounts(msgspec.Struct, frozen=True):
    """How many loans have which status, and how many warnings there were."""

    new: int = 0
    active: int = 0
    liquidating: int = 0
    liquidated: int = 0
    warnings: int = 0

    @property
    def total(self) -> int:
        """All loans."""
        return self.new + self.active + self.liquidating + self.liquidated


class _Event(msgspec.Struct, frozen=True):
    name: str
    body: dict[str, Any]


class _Record(msgspec.Struct, frozen=True):
    kind: str
    body: msgspec.Raw


class _Entry(msgspec.Struct, frozen=True):
    sequence: int
    events: list[_Event]
    records: list[_Record]


class _Page(msgspec.Struct, frozen=True):
    data: list[_Entry]


class _Slice(msgspec.Struct, frozen=True):
    request_id: str
    state: str = "open"
    detail: str = ""


_page_decoder = msgspec.json.Decoder(_Page)
_slice_decoder = msgspec.json.Decoder(_Slice)


class LoanReader:
    """Follows the journal of an engine, entry by entry, so it misses nothing and counts nothing twice."""

    def __init__(self, address: Address) -> None:
        """Nothing is read yet."""
        self.fills: dict[str, str] = {}
        """The posts' ids of the orders that were filled, by our id of the request."""
        self._address = address
        self._sequence = 0
        self._loans: dict[str, Status] = {}
        self._warnings = 0
        self._lock = threading.Lock()

    @property
    def counts(self) -> LoanCounts:
        """How it stands, as far as was read."""
        with self._lock:
            found = Counter(self._loans.values())
            return LoanCounts(
                found["new"],
                found["active"],
                found["liquidating"],
                found["liquidated"],
                self._warnings,
            )

    def read(self) -> None:
        """Read on to the end. Raises OSError where nobody answers."""
        while len(entries := self._entries()) == _PAGE:
            self._take(entries)
        self._take(entries)

    def _take(self, entries: Sequence[_Entry]) -> None:
        with self._lock:
            for entry in entries:
                self._sequence = entry.sequence
                for event in entry.events:
                    self._hear(event)
                for record in entry.records:
                    if record.kind == SLICE:
                        self._look(_slice_decoder.decode(record.body))

    def _hear(self, event: _Event) -> None:
        status = _STATUSES.get(event.name)
        if status is not None:
            self._loans[event.body["loan_id"]] = status
        elif event.name == WARNED:
            self._warnings += 1

    def _look(self, part: _Slice) -> None:
        if part.state == "filled":
            self.fills[part.request_id] = part.detail

    def _entries(self) -> list[_Entry]:
        path = f"/v1/entries?product=loans&limit={_PAGE}&cursor={self._sequence}"
        connection = http.client.HTTPConnection(*self._address, timeout=_ASK_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ConnectionError(f"{path}: {answer.status}")
        return _page_decoder.decode(text).data


# ── notices ───────────────────────────────────────────────────────────────────────


class Notice(msgspec.Struct, frozen=True, rename="camel"):
    """What branches are told of a liquidation; amounts are text."""

    event_id: str
    loan_id: str
    collateral_sold: str
    collateral_sold_value: str
    outstanding_collateral: str
    outstanding_balance: str


class Branch:
    """A branch of the bank: a queue of its own at the topic of liquidations; `with` listens."""

    def __init__(self, aws: Aws) -> None:
        """Make the queue. Raises LinkError."""
        self._aws = aws
        topic = aws.topic(NOTICE_TOPICS["seed"])
        self._queue = aws.queue(NOTICES_QUEUE)
        aws.subscribe(topic, self._queue)
        self.told: set[str] = set()
        """The loans that it was told of."""
        self.repeated = 0
        """How many notices came again: they are told at least once."""
        self._ids: set[str] = set()
        self._waiting: deque[Notice] = deque(maxlen=_NOTICES_KEPT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="branch", daemon=True)

    def take(self) -> list[Notice]:
        """Return those that came since the last time, each once."""
        return [self._waiting.popleft() for _ in range(len(self._waiting))]

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Listen no more."""
        self._stop.set()
        self._thread.join()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                messages = self._aws.receive(self._queue, wait_seconds=_POLL_SECONDS)
                for message in messages:
                    self._hear(msgspec.json.decode(message.body, type=Notice))
                if messages:
                    self._aws.delete(self._queue, [message.receipt for message in messages])
            except LinkError:
                self._stop.wait(_POLL_SECONDS)

    def _hear(self, notice: Notice) -> None:
        if notice.event_id in self._ids:
            self.repeated += 1
            return
        self._ids.add(notice.event_id)
        self._waiting.append(notice)
        self.told.add(notice.loan_id)  # last: who sees it finds the notice waiting


# ── the world ─────────────────────────────────────────────────────────────────────


class LoanWorld:
    """Both posts, from the beginning; borrowers, once there is an engine to `play` with.

    Everything is in threads of its own; `with` opens the posts, and ends all of it.
    """

    def __init__(
        self,
        seed: int = 1,
        *,
        odds: Odds = ODDS,
        interval_seconds: float = 1.0,
        actors: int = 6,
        ticks_per_second: float = 0.5,
    ) -> None:
        """From `play` on a price comes every `interval_seconds`; so many borrowers act so often."""
        self._seed = seed
        self._interval_seconds = interval_seconds
        self._actors = actors
        self._ticks_per_second = ticks_per_second
        self._outlet: Publish | None = None
        self.posts = Posts(
            seed=seed,
            odds=odds,
            walk=PriceWalk(seed, script=islice(waves(seed), _TICKS), others=0.1),
            publish=self._publish,
            interval_seconds=0,
        )
        self._reader: LoanReader | None = None
        self._borrowers: Borrowers | None = None
        self._known: frozenset[str] = frozenset()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._quote, name="price-walk"),
            threading.Thread(target=self._follow, name="loan-reader"),
        ]

    @property
    def environment(self) -> dict[str, str]:
        """What the engine is to have in its environment, to find the posts."""
        urls = self.posts.urls
        return {"MOS_ESPA_URL": urls["mos_espa"], "BLACK_SPIRE_URL": urls["black_spire"]}

    @property
    def price(self) -> str:
        """What a BESKAR is worth now."""
        return f"{self.posts.walk.mid:.2f}"

    @property
    def counts(self) -> LoanCounts:
        """How the loans stand."""
        return LoanCounts() if self._reader is None else self._reader.counts

    def play(self, address: Address, outlet: Publish) -> None:
        """Tell prices from now on, and let borrowers borrow. Raises OSError where nobody answers."""
        reader = self._reader = LoanReader(address)
        reader.read()
        self._known = frozenset(reader.fills)
        self._outlet = outlet
        seed = self._seed + _LIVES * reader.counts.total
        borrowers = Borrowers(
            HttpBank(address),
            seed=seed,
            actors=self._actors,
            ticks_per_second=self._ticks_per_second,
        )
        for thread in self._threads:
            thread.start()
        self._borrowers = borrowers
        borrowers.start()

    def settle(self, seconds: float) -> bool:
        """Borrow no more, and wait until no liquidation is under way; whether that came to pass.

        The posts go on to trade, and prices to come.
        """
        self._end_borrowing()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._reader is None or (not self.counts.liquidating and not self.differences()):
                return True
            self._stop.wait(_READ_SECONDS)
        return False

    def executed(self) -> int:
        """Return how many orders the posts have carried out."""
        return sum(len(self.posts[market].executed) for market in MARKETS)

    def differences(self) -> list[str]:
        """Return how the posts' order books and ours differ, by the ids of requests."""
        theirs = {
            done.request_id: done.order_id
            for market in MARKETS
            for done in list(self.posts[market].executed)
        }
        fills = {} if self._reader is None else self._reader.fills.copy()
        ours = {name: order for name, order in fills.items() if name not in self._known}
        return sorted(
            name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)
        )

    def close(self) -> None:
        """End all of it."""
        self._outlet = None
        self._end_borrowing()
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self.posts.close()

    def __enter__(self) -> Self:
        """Open the posts. Raises OSError."""
        self.posts.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """See `close`."""
        self.close()

    def _end_borrowing(self) -> None:
        if self._borrowers is not None:
            self._borrowers.stop()
            self._borrowers = None

    def _publish(self, market: Market, body: bytes) -> None:
        outlet = self._outlet
        if outlet is not None:
            outlet(market, body)

    def _quote(self) -> None:
        """Let the price take one step after the other; a late one is not made up for."""
        while not self._stop.is_set():
            due = time.monotonic() + self._interval_seconds
            self.posts.tick()
            self._stop.wait(max(0.0, due - time.monotonic()))

    def _follow(self) -> None:
        """Read what becomes of loans; while nobody answers, what was read last stands."""
        while not self._stop.wait(_READ_SECONDS):
            if self._reader is not None:
                try:
                    self._reader.read()
                except OSError:
                    continue

"""The bank's clients for demos and tests: they apply for loans, post collateral, watch the price.

Each lives for a few ticks, as the bank's own simulator has it, with a size, a risk that it is
ready to take, and an end that comes sooner the more it did. Unlike there, collateral is real:
twice the loan at the price of the moment. What failed once is never sent again under its id.
"""

import http.client
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import ROUND_UP, Decimal, localcontext
from typing import Any, Protocol, Self

import msgspec

APPLICATIONS = "/loan-applications"
TOP_UPS = "/collateral-top-ups"
ACCEPTED = 202
NO_ANSWER = 0
"""Stands for a status where none came in time."""

PATIENCE_SECONDS = 2.5
ACTORS_MAX = 1_000

_SIZES = (
    (1, 1),  # shrimp
    (1, 10),  # crab
    (10, 50),  # octopus
    (50, 100),  # fish
    (100, 500),  # dolphin
    (500, 1_000),  # shark
    (1_000, 5_000),  # whale
    (5_000, 10_000),  # humpback
)
"""Between which amounts of GC an actor's largest loan is."""

_DIGITS = 17
"""Significant digits of a number in JavaScript, which the bank's own service is written in."""

_STEP = Decimal("1e-8")
_ACTIONS_MAX = 10

Prices = Mapping[int, Decimal]
"""What one BESKAR brings at best, by the size of the sale; empty where nobody knows."""


class Bank(Protocol):
    """What actors talk to."""

    def post(self, path: str, body: bytes) -> int:
        """Send a request, and return the status of its answer, or `NO_ANSWER`."""

    def prices(self) -> Prices:
        """Return the prices of this moment."""


class HttpBank:
    """An engine's face of loans; every request has a connection of its own."""

    def __init__(
        self,
        address: tuple[str, int],
        token: str = "",
        *,
        prices: Callable[[], Prices] | None = None,
        timeout_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """`token` is an API key, where the face wants one; `prices` instead of `GET /prices`."""
        self._address = address
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._prices = prices
        self._timeout_seconds = timeout_seconds

    def post(self, path: str, body: bytes) -> int:
        """See `Bank`."""
        return self._ask("POST", path, body)[0]

    def prices(self) -> Prices:
        """See `Bank`."""
        if self._prices is not None:
            return self._prices()
        status, text = self._ask("GET", "/prices", None)
        try:
            best = msgspec.json.decode(text)["best"] if status == 200 else []
            return {int(row["quantity"]): Decimal(row["sell"]) for row in best}
        except (ValueError, KeyError, TypeError, ArithmeticError):
            return {}

    def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self._address, timeout=self._timeout_seconds)
        try:
            connection.request(method, path, body, self._headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            return NO_ANSWER, b""
        finally:
            connection.close()


Count = Callable[[str], object]
"""Told of each thing that happened."""


class _Loan(msgspec.Struct):
    """A loan as its borrower sees it; quantities in BESKAR."""

    id: str
    amount: Decimal
    collateral: Decimal = Decimal(0)


class Actor:
    """One client, from its first tick to its last. Equal seeds and answers make equal lives."""

    def __init__(self, seed: str, bank: Bank, count: Count) -> None:
        self._draw = random.Random(seed)
        self._bank = bank
        self._count = count
        self.id = self._name()
        low, high = self._draw.choice(_SIZES)
        self.largest = Decimal(self._draw.randint(100 * low, 100 * high)) / 100
        tolerance = Decimal(self._draw.randint(2_000, 8_000)) / 10_000
        self.patience = Decimal("0.6") + Decimal("0.19") * (1 - tolerance)
        """The loan-to-value above which it tops up."""
        self.loans: list[_Loan] = []
        self.actions = 0

    def tick(self) -> bool:
        """Do what it does in one tick; return whether it lives on."""
        self.actions += 1
        if self._draw.random() * _ACTIONS_MAX < self.actions:
            return False
        if self._draw.random() < 0.7:
            if self.loans:
                self.monitor()
            elif self._draw.random() < 0.8:
                self.apply()
        return True

    def apply(self) -> None:
        """Ask for a loan, and post its collateral in one to three parts."""
        prices = self._bank.prices()
        if not prices:
            self._count("no price")
            return
        with localcontext() as context:
            context.prec = _DIGITS
            share = self._draw.randrange(1, 10**_DIGITS)
            loan = _Loan(self._name(), self.largest * share / 10**_DIGITS)
        body = {"loanId": loan.id, "borrowerId": self.id, "amount": number_text(loan.amount)}
        if self._send("application", APPLICATIONS, body) != ACCEPTED:
            return
        self.loans.append(loan)
        for part in self._parts(enough(loan.amount, prices)):
            self._top_up(loan, part)

    def monitor(self) -> None:
        """Top up each loan whose loan-to-value is above what it likes."""
        prices = self._bank.prices()
        if not prices:
            self._count("no price")
            return
        for loan in self.loans.copy():
            value = loan.collateral * price_for(prices, loan.collateral)
            if loan.amount > self.patience * value:
                missing = enough(loan.amount, prices) - loan.collateral
                tenth = (loan.collateral / 10).quantize(_STEP, ROUND_UP)
                self._top_up(loan, max(missing, tenth))

    def _top_up(self, loan: _Loan, quantity: Decimal) -> None:
        if loan not in self.loans:
            return
        body = {"loanId": loan.id, "borrowerId": self.id, "amount": number_text(quantity)}
        status = self._send("top-up", TOP_UPS, body)
        if status == ACCEPTED:
            loan.collateral += quantity
        elif 400 <= status < 500:  # it is being liquidated, or is no loan
            self.loans.remove(loan)

    def _send(self, what: str, path: str, body: dict[str, Any]) -> int:
        """Send something under an id of its own, once, and count what came of it."""
        status = self._bank.post(path, msgspec.json.encode({"requestId": self._name(), **body}))
        self._count(f"{what} {status or 'unanswered'}")
        return status

    def _parts(self, total: Decimal) -> list[Decimal]:
        """Cut a quantity into one to three parts."""
        steps = int(total / _STEP)
        cuts = sorted(self._draw.sample(range(1, steps), min(self._draw.randrange(3), steps - 1)))
        return [
            _STEP * (end - start) for start, end in zip([0, *cuts], [*cuts, steps], strict=True)
        ]

    def _name(self) -> str:
        return str(uuid.UUID(int=self._draw.getrandbits(128), version=4))


def enough(amount: Decimal, prices: Prices) -> Decimal:
    """Return the collateral that is worth twice a loan, at the price for so much of it."""
    quantity = Decimal(0)
    for size, price in sorted(prices.items()):
        quantity = (2 * amount / price).quantize(_STEP, ROUND_UP)
        if quantity <= size:
            break
    return quantity


def price_for(prices: Prices, quantity: Decimal) -> Decimal:
    """Return the price at the smallest size that is enough; beyond the largest, that one's."""
    return prices[next((size for size in sorted(prices) if size >= quantity), max(prices))]


def number_text(value: Decimal) -> str:
    """Write a number as JavaScript does: plain, with an exponent below a millionth."""
    value = value.normalize()
    if value.adjusted() >= -6:
        return f"{value:f}"
    return f"{value:e}"


class Borrowers:
    """So many actors at once, each in a thread, replaced when it dies; `with` starts and stops them."""

    def __init__(
        self, bank: Bank, *, seed: int = 1, actors: int = 10, ticks_per_second: float = 1.0
    ) -> None:
        """`ticks_per_second` is how often each acts. The bank is asked from all threads at once."""
        self._bank = bank
        self._seed = seed
        self._pause_seconds = 1 / ticks_per_second
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._live, args=(number,), name=f"borrower-{number}")
            for number in range(actors)
        ]

    @property
    def counts(self) -> dict[str, int]:
        """What happened, and how often: requests by status, lives, times without a price."""
        with self._lock:
            return dict(sorted(self._counts.items()))

    def start(self) -> None:
        """Let them live."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait until each has done what it is at; nothing is sent afterwards."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        """See `start`."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """See `stop`."""
        self.stop()

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _live(self, number: int) -> None:
        """Be one actor after another, one tick after another."""
        due = time.monotonic() + self._pause_seconds * (number + 1) / len(self._threads)
        life = 0
        actor = self._next(number, life)
        while not self._stop.wait(max(0, due - time.monotonic())):
            due = max(due + self._pause_seconds, time.monotonic())
            if not actor.tick():
                life += 1
                actor = self._next(number, life)

    def _next(self, number: int, life: int) -> Actor:
        self._count("client")
        return Actor(f"borrower {self._seed} {number} {life}", self._bank, self._count)

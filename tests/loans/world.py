"""The seed's whole world for tests: SNS and SQS, both trading posts, branches, and the book's end.

Prices go out over SNS as the posts publish them, orders come in over HTTP, and what branches
hear is read from a queue of their own. Nothing here reaches into the product but to read the
journal and to prove it.
"""

import json
import os
import random
import re
import secrets
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from cluster.instances import Answer, Client
from pennyweight.agents.prices import TOPICS as PRICE_TOPICS
from pennyweight.delivery.notices import TOPICS as NOTICE_TOPICS
from pennyweight.delivery.notices import Dialect
from pennyweight.engine.port import Store
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.money import to_units
from pennyweight.links.aws import Aws
from pennyweight.links.errors import LinkError
from pennyweight.products.loans.shared import (
    LOAN,
    MARKETS,
    SCALE,
    SLICE,
    Loan,
    Market,
    Slice,
    read_loan,
    read_slice,
)
from pennyweight.simulators.posts import Posts
from pennyweight.simulators.pricewalk import PriceWalk
from pennyweight.simulators.trading import Odds
from served_process import serving

REGION = "us-east-1"
AGE_SECONDS = 3.0
TICK_SECONDS = 0.1
WAIT_SECONDS = 60.0

WELL = Odds(failed=0)
FAILING = Odds(failed=1, is_failure_final=False)
"""Nothing is sold, and that is certain each time."""

STORMY = Odds(
    failed=0.3,
    slow=0.1,
    slow_seconds=0.1,
    hung=0.1,
    hang_seconds=1.5,
    error_before=0.05,
    error_after=0.05,
    reset_before=0.05,
    reset_after=0.05,
    doubled=0.1,
)
"""All that can go wrong, at once."""

PLAIN = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]*[1-9])?")
"""How amounts are written: no exponent, no sign, no zeros at the end."""

SEED_NOTICE = [
    "eventId", "eventType", "loanId", "collateralSold", "collateralSoldValue",
    "outstandingCollateral", "outstandingBalance",
]  # fmt: skip
LATER_NOTICE = [
    "eventId", "eventType", "loanId", "collateralSold", "collateralValue",
    "remainingCollateral", "outstandingBalance", "status",
]  # fmt: skip


def wait_for(is_so: Callable[[], Any], seconds: float = WAIT_SECONDS) -> None:
    over = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < over, f"not within {seconds} seconds"
        time.sleep(0.02)


# ── prices ────────────────────────────────────────────────────────────────────────


class Prices(PriceWalk):
    """A price that goes where it is told to, by steps that the guards believe."""

    def __init__(self, start: str = "50", *, item: str = "STEEL:MANDALORIAN") -> None:
        super().__init__(1, start=start, noise=0, item=item)
        self.goal = Decimal(start)

    def _next_mid(self) -> Decimal:
        step = (self.mid * Decimal("0.12")).quantize(Decimal("0.01"))
        return self.mid + max(-step, min(step, self.goal - self.mid))


class Streams:
    """What the posts publish, on its way to SNS: markets may fall silent, and SNS may be unfair.

    With `unfairness` so many of the messages come twice, and as many after the next one.
    """

    def __init__(self, aws: Aws, *, unfairness: float = 0, seed: int = 1) -> None:
        self.silent: set[Market] = set()
        self.doubled = self.delayed = self.lost = 0
        self._aws = aws
        self._unfairness = unfairness
        self._dice = random.Random(seed)
        self._late: dict[Market, list[str]] = defaultdict(list)
        self.connect()

    def connect(self) -> None:
        """Have topics, made again if need be."""
        self._topics = {market: self._aws.topic(PRICE_TOPICS[market]) for market in MARKETS}

    def say(self, market: Market, body: str) -> None:
        self._aws.publish(self._topics[market], body)

    def __call__(self, market: Market, body: bytes) -> None:
        """Publish what a post says; see `Posts`."""
        if market in self.silent:
            return
        text = body.decode()
        if self._dice.random() < self._unfairness:
            self.delayed += 1
            self._late[market].append(text)
            return
        self._send(market, text)
        if self._dice.random() < self._unfairness:
            self.doubled += 1
            self._send(market, text)
        for late in self._late.pop(market, []):
            self._send(market, late)

    def _send(self, market: Market, text: str) -> None:
        try:
            self.say(market, text)
        except LinkError:
            self.lost += 1


# ── the branches ──────────────────────────────────────────────────────────────────


class Branch:
    """A branch of the bank: a queue that hears of liquidations, read until it is empty."""

    def __init__(self, aws: Aws, dialect: Dialect = "seed") -> None:
        self.bodies: list[str] = []
        self._aws = aws
        self._topic = NOTICE_TOPICS[dialect]
        self._name = f"branch-{secrets.token_hex(4)}"
        self.subscribe()

    def subscribe(self) -> None:
        """Begin to listen, again if need be."""
        self._url = self._aws.queue(self._name)
        self._aws.subscribe(self._aws.topic(self._topic), self._url)

    def listen(self) -> list[dict[str, Any]]:
        """Return all that was heard so far."""
        while found := self._aws.receive(self._url, wait_seconds=0):
            self.bodies += [message.body for message in found]
            self._aws.delete(self._url, [message.receipt for message in found])
        return [json.loads(body) for body in self.bodies]

    def of(self, loan_id: str) -> list[dict[str, Any]]:
        return [notice for notice in self.listen() if notice["loanId"] == loan_id]


# ── the bank ──────────────────────────────────────────────────────────────────────


class Bank:
    """The bank's client service: it applies and tops up, and looks at what became of it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def ask(self, path: str, **body: Any) -> Answer:
        return self.client.post(path, body)

    def apply(self, loan: str, amount: str = "1000", **more: Any) -> Answer:
        body = {"requestId": f"apply {loan}", "loanId": loan, "borrowerId": f"b-{loan}"}
        return self.ask("/loan-applications", **(body | {"amount": amount} | more))

    def top_up(self, loan: str, amount: str, request: str = "", **more: Any) -> Answer:
        body = {"requestId": request or f"top up {loan}", "loanId": loan}
        body |= {"borrowerId": f"b-{loan}", "amount": amount}
        return self.ask("/collateral-top-ups", **(body | more))

    def lend(self, loan: str, amount: str = "1000", collateral: str = "42") -> None:
        """Have a loan with collateral."""
        assert self.apply(loan, amount).status == 202
        assert self.top_up(loan, collateral).status == 202

    def loan(self, loan: str) -> Any:
        return self.client.get(f"/loans/{loan}")

    def status(self, loan: str) -> str:
        return str(self.loan(loan)["status"])

    def becomes(self, loan: str, status: str) -> None:
        wait_for(lambda: self.status(loan) == status)

    def history(self, loan: str) -> list[str]:
        """Return what became of a loan, oldest first."""
        return [one["what"] for one in reversed(self.loan(loan)["history"])]

    def proof(self, loan: str) -> Any:
        return self.client.get(f"/loans/{loan}/proof?limit=1000")

    def has(self, account: str) -> tuple[str, str]:
        """Return what an account has, and what of it is held."""
        found = self.client.get(f"/v1/accounts/{account}")
        return found["posted"], found["held"]

    def pause(self, level: str) -> None:
        assert self.ask("/operations/liquidations", level=level).json == {"level": level}

    def sees(self, posts: Posts, silent: Sequence[Market] = ()) -> bool:
        """Whether the prices that decisions stand on are those of the posts, at their goal."""
        walk = posts.walk
        assert isinstance(walk, Prices)
        if walk.mid != walk.goal:
            return False
        markets = self.client.get("/prices")["markets"]
        return all(
            self._is_seen(markets.get(market), posts, market, is_silent=market in silent)
            for market in MARKETS
        )

    @staticmethod
    def _is_seen(told: Any, posts: Posts, market: Market, *, is_silent: bool) -> bool:
        if is_silent:
            return told is not None and not told["is_fresh"]
        if told is None or not told["is_fresh"]:
            return False
        levels = {level["quantity"]: Decimal(level["sell"]) for level in told["levels"]}
        return levels == {
            size: Decimal(sides.sell) for size, sides in posts.walk.levels[market].items()
        }


class World:
    """All of it around one book."""

    def __init__(self, posts: Posts, streams: Streams, branch: Branch, bank: Bank) -> None:
        self.posts = posts
        self.streams = streams
        self.branch = branch
        self.bank = bank
        self.moods(WELL)

    def moods(self, *odds: Odds) -> None:
        """Let the posts be in a mood, or each in its own."""
        for place, market in enumerate(MARKETS):
            self.posts[market].odds = odds[place % len(odds)]
            self.posts[market].fates.clear()

    def goes(self, price: str) -> None:
        """Let the price go there, step by step."""
        walk = self.posts.walk
        assert isinstance(walk, Prices)
        walk.goal = Decimal(price)

    def price(self, price: str) -> None:
        """Let the price go there, and wait until that is known."""
        self.goes(price)
        wait_for(lambda: self.bank.sees(self.posts, tuple(self.streams.silent)))

    def silence(self, *markets: Market) -> None:
        """Let these markets say nothing, and wait until what they said counts no more."""
        self.streams.silent = set(markets)
        wait_for(lambda: self.bank.sees(self.posts, markets))

    def peace(self) -> None:
        """Let all be well: both markets speak, nothing is paused, the price is 50."""
        self.moods(WELL)
        self.streams.silent = set()
        self.bank.pause("normal")
        self.price("50")

    def orders(self) -> int:
        return sum(len(self.posts[market].received) for market in MARKETS)


@contextmanager
def outside(
    endpoint: str,
    *,
    dialect: Dialect = "seed",
    odds: Odds | Mapping[Market, Odds] = WELL,
    unfairness: float = 0,
    tick_seconds: float = TICK_SECONDS,
    seed: int = 1,
) -> Iterator[tuple[Posts, Streams, Branch]]:
    """Yield the posts, their streams, and a branch; closed again afterwards."""
    aws = Aws(endpoint, REGION)
    try:
        streams = Streams(aws, unfairness=unfairness, seed=seed)
        branch = Branch(aws, dialect)
        walk = Prices(item="BSK" if dialect == "later" else "STEEL:MANDALORIAN")
        with Posts(
            seed=seed, walk=walk, odds=odds, publish=streams, interval_seconds=tick_seconds
        ) as posts:
            yield posts, streams, branch
    finally:
        aws.close()


def settings_in(folder: Path, **sections: Mapping[str, object]) -> Path:
    """Write a configuration: quotes get old sooner than in earnest, and what is said else."""
    loans = {"age_seconds": AGE_SECONDS, **sections.pop("loans", {})}
    lines: list[str] = []
    for section, values in {"loans": loans, **sections}.items():
        lines.append(f"[{section}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    file = folder / "settings.toml"
    file.write_text("\n".join(lines) + "\n")
    return file


def environment(endpoint: str, posts: Posts) -> dict[str, str]:
    """Return what the seed's compose file sets."""
    urls = posts.urls
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": REGION,
        "MOS_ESPA_URL": urls["mos_espa"],
        "BLACK_SPIRE_URL": urls["black_spire"],
    }


@contextmanager
def alone(folder: Path, endpoint: str, dialect: Dialect = "seed") -> Iterator[World]:
    """Yield the world around one engine, which is a process of its own with a book in a folder."""
    settings = settings_in(folder, loans={"venue_timeout_seconds": 0.5})
    words = ("--loans-dialect", dialect, "--config", str(settings))
    with (
        pytest.MonkeyPatch.context() as patch,
        outside(endpoint, dialect=dialect) as (posts, streams, branch),
    ):
        for name in [name for name in os.environ if name.startswith("PENNYWEIGHT_")]:
            patch.delenv(name)
        for name, value in environment(endpoint, posts).items():
            patch.setenv(name, value)
        with serving(folder, *words) as server:
            port = int(server.address.rpartition(":")[2])
            with Client([port]) as client:
                yield World(posts, streams, branch, Bank(client))
            server.terminate()
            assert server.wait(30) == 0


def pennyweight(*words: object) -> str:
    """Run a command, which must succeed, and return what it printed."""
    command = [sys.executable, "-m", "pennyweight", *(str(word) for word in words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran
    return ran.stdout


# ── what the book says ────────────────────────────────────────────────────────────


def loans_in(store: Store) -> dict[str, Loan]:
    """Return all loans of a book, by id."""
    found: dict[str, Loan] = {}
    while page := store.records(LOAN, after=max(found, default=""), limit=500):
        found |= {record.id: read_loan(record) for record in page}
    return found


def slices_in(store: Store) -> list[Slice]:
    """Return all slices of a book."""
    found: list[Slice] = []
    after = ""
    while page := store.records(SLICE, after=after, limit=500):
        found += [read_slice(record) for record in page]
        after = page[-1].id
    return found


def entries_in(store: Store) -> list[Entry]:
    """Return all entries of loans."""
    found: list[Entry] = []
    after = 0
    while page := store.entries(after, 500, product="loans"):
        found += [decode_entry(body) for _, body in page]
        after = page[-1][0]
    return found


def check_sales(slices: Sequence[Slice], posts: Posts) -> None:
    """The posts' own books say what ours says, slice by slice: id, quantity, total."""
    ours: dict[str, Counter[tuple[str, int, int]]] = defaultdict(Counter)
    for part in slices:
        if part.state == "filled":
            ours[part.market][part.request_id, part.sold, part.total] += 1
    for market in MARKETS:
        theirs = Counter(
            (done.request_id, to_units(done.quantity, SCALE), to_units(done.price, SCALE))
            for done in posts[market].executed
        )
        assert ours[market] == theirs, (ours[market] - theirs, theirs - ours[market])
        assert max(theirs.values(), default=1) == 1
    ids = Counter((part.market, part.request_id) for part in slices)
    assert max(ids.values(), default=1) == 1


def check_notice(notice: Mapping[str, Any], loan_id: str, loan: Loan | None = None) -> None:
    """A notice has exactly the seed's schema; with a loan, it says what became of that."""
    assert list(notice) == SEED_NOTICE
    assert all(isinstance(value, str) for value in notice.values())
    assert (notice["eventType"], notice["loanId"]) == ("liquidation", loan_id)
    assert notice["eventId"]
    amounts = [notice[name] for name in SEED_NOTICE[3:]]
    assert all(PLAIN.fullmatch(amount) for amount in amounts), amounts
    if loan is not None:
        assert [to_units(amount, SCALE) for amount in amounts] == [
            loan.sold, loan.proceeds, loan.returned, loan.balance,
        ]  # fmt: skip

"""Five hundred loans, posts that fail in every way, prices that come twice and late, and kills.

Three instances of one book, one of which is killed or frozen every few seconds, while the price falls and
recovers and the bank goes on lending. In the end the posts' own books say what ours says, slice
by slice; every loan was liquidated once at most, and if so for just enough; all branches heard of
each in one voice; and the book proves itself.
"""

import json
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from cluster.instances import Answer, Client, Cluster, Instance, read_book
from loans.world import (
    Bank,
    Branch,
    World,
    check_notice,
    check_sales,
    environment,
    loans_in,
    outside,
    pennyweight,
    settings_in,
    slices_in,
    wait_for,
)
from ministack import MiniStack
from pennyweight.assemble import open_reader
from pennyweight.delivery.http.loans_proof import prove
from pennyweight.engine.port import Store
from pennyweight.ledger.entries import Entry
from pennyweight.products.loans.shared import (
    LIQUIDATED,
    LTV_LIQUIDATED,
    Loan,
    Quote,
    is_at_least,
    level_of,
    mark_price,
)
from pennyweight.simulators.trading import Odds

pytestmark = pytest.mark.heavy

LOANS = 500
LENT_BEFORE = 300
CLIENTS = 4
INSTANCES = 3
KILLS_MIN = 8
CHAOS_SECONDS = 55
CHAOS_SECONDS_MAX = 110
SETTLE_SECONDS_MAX = 150
REPLAYED = 4
PATH = ("34", "44", "29", "37", "26.5", "33", "25", "30", "24")
"""Where the price goes; a loan that was granted at 50 is due somewhere between 31 and 19."""

SETTINGS: dict[str, dict[str, object]] = {
    "cluster": {"lease_seconds": 2.0},
    "loans": {"venue_timeout_seconds": 0.6, "venue_margin_seconds": 0.3, "age_seconds": 6.0},
}
STORM = Odds(
    failed=0.3,
    slow=0.1,
    slow_seconds=0.2,
    hung=0.04,
    hang_seconds=2,
    error_before=0.04,
    error_after=0.04,
    reset_before=0.03,
    reset_after=0.03,
    doubled=0.05,
)
ODDS = {"mos_espa": STORM, "black_spire": msgspec.structs.replace(STORM, is_failure_final=False)}
UNFAIRNESS = 0.15


# ── who takes part ────────────────────────────────────────────────────────────────


class Asked(NamedTuple):
    """A top-up, and what was answered in the end."""

    key: str
    loan: str
    answer: Answer


class Clients:
    """The bank's clients: each lends its share of the loans, then goes on topping some of them up."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.lent = 0
        self.asked: list[Asked] = []
        self.troubles: Counter[str] = Counter()
        self._ports = ports
        self._is_over = threading.Event()
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._works: list[Future[None]] = []
        self._gate = threading.Event()

    def start(self) -> None:
        self._works = [self._pool.submit(self._work, number) for number in range(CLIENTS)]

    def lends_on(self) -> None:
        """Let what was not lent before be lent, slowly, and top-ups begin."""
        self._gate.set()

    def stop(self) -> None:
        self._gate.set()
        self._is_over.set()
        self._pool.shutdown()
        self.check()

    def check(self) -> None:
        for work in self._works:
            if work.done():
                work.result()

    def _work(self, number: int) -> None:
        dice = random.Random(f"client {number}")
        mine: list[str] = []
        with Client(self._ports, is_restless=True) as client:
            bank = Bank(client)
            for place in range(number, LOANS, CLIENTS):
                if place >= LENT_BEFORE:
                    self._gate.wait()
                    time.sleep(dice.uniform(0, 0.2))
                    self._top_up(bank, dice, mine)
                mine.append(f"loan-{place}")
                self._lend(bank, dice, mine[-1])
            while not self._is_over.wait(dice.uniform(0.02, 0.2)):
                self._top_up(bank, dice, mine)
            self.troubles += client.troubles

    def _lend(self, bank: Bank, dice: random.Random, loan: str) -> None:
        """Most are covered at a price of 50, with more or less to spare; the others wait."""
        amount = dice.choice([Decimal(20), Decimal("333.33"), Decimal(1_000), Decimal(4_000)])
        percent = dice.choice([31, 35, 39, 42, 45, 47, 48, 75])
        total = (amount * 100 / percent / 49).quantize(Decimal("1e-8"))
        first = (total / dice.choice([1, 2])).quantize(Decimal("1e-8"))
        assert bank.apply(loan, str(amount)).status == 202
        for place, part in enumerate(part for part in (first, total - first) if part):
            self._ask(bank, loan, str(part), f"{loan} part {place}")
        self.lent += 1

    def _top_up(self, bank: Bank, dice: random.Random, mine: Sequence[str]) -> None:
        loan = dice.choice(mine)
        self._ask(
            bank, loan, dice.choice(["0.01", "0.5"]), f"{loan} more {len(self.asked)} {id(bank)}"
        )

    def _ask(self, bank: Bank, loan: str, amount: str, key: str) -> None:
        answer = bank.top_up(loan, amount, key)
        is_late = answer.code in {"loan_liquidating", "loan_liquidated"}
        assert answer.status == 202 or (answer.status == 409 and is_late), answer
        self.asked.append(Asked(key, loan, answer))


class Killer:
    """Kills one of the instances, the owner more often than not, and starts it again at once.

    Now and then it freezes the owner instead, until another has taken the book over.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.kills = self.owners = self.freezes = 0
        self._cluster = cluster
        self._dice = random.Random(7)

    def strike(self) -> None:
        instances = self._cluster.instances
        owners = [one for one in instances if one.is_owner]
        victim: Instance = self._dice.choice(owners or instances)
        if self._dice.random() < 0.4:
            victim = self._dice.choice(instances)
        elif self._dice.random() < 0.2:
            self._freeze(victim)
            return
        victim.kill()
        self.kills += 1
        self.owners += victim in owners
        victim.start(is_waited=False)
        time.sleep(self._dice.uniform(1, 3))
        victim.wait()

    def _freeze(self, victim: Instance) -> None:
        others = [one for one in self._cluster.instances if one is not victim]
        victim.freeze()
        self.freezes += 1
        try:
            wait_for(lambda: any(one.is_owner for one in others))
        finally:
            victim.thaw()
        time.sleep(1)


@contextmanager
def play(endpoint: str, url: str, folder: Path) -> Iterator[tuple[World, Cluster, Clients]]:
    settings = settings_in(folder, **SETTINGS)
    with ExitStack() as ends:
        patch = ends.enter_context(pytest.MonkeyPatch.context())
        posts, streams, branch = ends.enter_context(
            outside(endpoint, unfairness=UNFAIRNESS, tick_seconds=0.25, seed=11)
        )
        for name, value in environment(endpoint, posts).items():
            patch.setenv(name, value)
        cluster = ends.enter_context(Cluster(url, folder, INSTANCES, "--config", str(settings)))
        client = ends.enter_context(Client(cluster.ports, is_restless=True))
        clients = Clients(cluster.ports)
        ends.callback(clients.stop)
        clients.start()
        yield World(posts, streams, branch, Bank(client)), cluster, clients


# ── the play ──────────────────────────────────────────────────────────────────────


def test_loans_live_through_kills_and_failing_posts(
    stack: MiniStack, url: str, tmp_path: Path, record_property: Any
) -> None:
    with play(stack.endpoint, url, tmp_path) as (world, cluster, clients):
        world.price("50")
        wait_for(lambda: clients.check() or clients.lent >= LENT_BEFORE)
        for market, odds in ODDS.items():
            world.posts[market].odds = odds
        clients.lends_on()
        killer = rage(world, cluster, clients)
        clients.stop()
        cluster.settle()
        struck = time.monotonic()
        world.price(PATH[-1])
        wait_for(lambda: is_settled(world), SETTLE_SECONDS_MAX)
        record_property("seconds until all was settled", f"{time.monotonic() - struck:.1f}")
        heard = wait_for_notices(world, url)
        for loan in random.Random(3).sample(sorted(heard), REPLAYED):
            again = json.loads(pennyweight("replay", "loan", loan, "--store", url, "--json"))
            assert again["ok"], again
    record_property(
        "kills, of owners, freezes", f"{killer.kills}, {killer.owners}, {killer.freezes}"
    )
    record_property("troubles of clients", dict(clients.troubles))
    record_property("orders by fate", {m: dict(world.posts[m].fated) for m in ODDS})
    assert clients.lent == LOANS
    assert killer.kills >= KILLS_MIN
    assert min(killer.owners, killer.freezes) >= 1
    assert min(world.streams.doubled, world.streams.delayed) > 20
    check_all(url, world, clients)


def rage(world: World, cluster: Cluster, clients: Clients) -> Killer:
    """Let the price go its way, and kill; until all was lent and enough were killed."""
    killer, began = Killer(cluster), time.monotonic()
    path = iter(PATH)
    step = CHAOS_SECONDS / len(PATH)
    next_at = began
    while True:
        now = time.monotonic()
        assert now < began + CHAOS_SECONDS_MAX
        if now >= next_at:
            world.goes(next(path, PATH[-1]))
            next_at += step
        clients.check()
        is_over = now > began + CHAOS_SECONDS and clients.lent == LOANS
        if is_over and killer.kills >= KILLS_MIN and killer.freezes:
            return killer
        killer.strike()


def is_settled(world: World) -> bool:
    """Whether by the prices of now everything has been done."""
    loans = world.bank.client.get("/loans")["loans"]
    return len(loans) == LOANS and all(
        loan["status"] == "liquidated"
        or (loan["status"] == "active" and loan["ltv"] and Decimal(loan["ltv"]) < LTV_LIQUIDATED)
        or (loan["status"] == "new" and loan["ltv"] and Decimal(loan["ltv"]) > 50)
        for loan in loans
    )


def wait_for_notices(world: World, url: str) -> set[str]:
    """Wait until the branches have heard of every loan that was liquidated."""
    with closing(open_reader(url)) as store:
        ended = {name for name, loan in loans_in(store).items() if loan.status == "liquidated"}
    wait_for(lambda: {notice["loanId"] for notice in world.branch.listen()} >= ended)
    return ended


# ── what became of it ─────────────────────────────────────────────────────────────


def check_all(url: str, world: World, clients: Clients) -> None:
    """See the module. `read_book` also proves conservation, and every rule of loans."""
    entries = read_book(url).entries
    with closing(open_reader(url)) as store:
        loans, parts = loans_in(store), slices_in(store)
        check_proofs(store, loans)
    statuses = Counter(loan.status for loan in loans.values())
    assert statuses.total() == LOANS
    assert statuses["liquidated"] > LOANS // 4
    assert not statuses["liquidating"]
    assert min(statuses["active"], statuses["new"]) > 10
    assert not [part for part in parts if part.state == "open"]
    check_sales(parts, world.posts)
    states = Counter(part.state for part in parts)
    assert states["failed"] > states.total() // 8
    check_lives(entries, loans)
    check_collateral(entries, clients.asked)
    check_branch(world.branch, loans)


def check_proofs(store: Store, loans: Mapping[str, Loan]) -> None:
    """Every liquidation sold just enough."""
    for name, loan in loans.items():
        if loan.status == "liquidated":
            proof = prove(store, name, loan, after=0, limit=1_000)
            assert proof.is_ended, name
            assert proof.is_minimal, (name, proof.wrong)
            assert proof.next_cursor is None
            assert loan.balance == 0 or loan.returned == 0, name


class Begun(msgspec.Struct):
    loan: str
    quotes: tuple[Quote, ...]


def check_lives(entries: Sequence[Entry], loans: Mapping[str, Loan]) -> None:
    """Liquidated loans were so once, and were due by the quotes that it was decided by."""
    began: Counter[str] = Counter()
    told: Counter[str] = Counter()
    for entry in entries:
        if entry.command == "begin_liquidation":
            begun = msgspec.json.decode(bytes(entry.fields), type=Begun)
            began[begun.loan] += 1
            loan = loans[begun.loan]
            collateral = loan.sold + loan.returned
            price = mark_price(begun.quotes, level_of(collateral))
            assert price is not None
            assert is_at_least(LTV_LIQUIDATED, loan.amount, collateral, price), begun
        for event in entry.events:
            if event.name == LIQUIDATED:
                told[event.body["loan_id"]] += 1
    ended = {name: 1 for name, loan in loans.items() if loan.status == "liquidated"}
    assert dict(began) == ended
    assert dict(told) == ended


def check_collateral(entries: Sequence[Entry], asked: Sequence[Asked]) -> None:
    """What was accepted was booked, once; what was refused was not; and nothing came too late."""
    began: set[str] = set()
    booked: Counter[str] = Counter()
    for entry in entries:
        if entry.command == "begin_liquidation":
            began.add(json.loads(bytes(entry.fields))["loan"])
        elif entry.command == "top_up_collateral":
            booked[entry.key] += 1
            assert json.loads(bytes(entry.fields))["loan"] not in began
    accepted = Counter(one.key for one in asked if one.answer.status == 202)
    assert booked == accepted
    late = [one for one in asked if one.answer.status == 409]
    assert late
    assert {one.loan for one in late} <= began


def check_branch(branch: Branch, loans: Mapping[str, Loan]) -> None:
    """A notice for each loan that was liquidated, and for no other; repeats say the same."""
    bodies: dict[str, set[str]] = defaultdict(set)
    for body in branch.bodies:
        bodies[json.loads(body)["loanId"]].add(body)
    assert bodies.keys() == {name for name, loan in loans.items() if loan.status == "liquidated"}
    ids: set[str] = set()
    for name, found in bodies.items():
        (body,) = found
        notice = json.loads(body)
        check_notice(notice, name, loans[name])
        ids.add(notice["eventId"])
    assert len(ids) == len(bodies)

"""Two instances of one book on PostgreSQL: a race with a liquidation, and owners that fall or freeze."""

import itertools
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import pytest

from cluster.instances import Client, Cluster, Instance, read_book
from loans.world import (
    Bank,
    World,
    check_notice,
    check_sales,
    environment,
    loans_in,
    outside,
    settings_in,
    slices_in,
    wait_for,
)
from ministack import MiniStack
from pennyweight.assemble import open_reader
from pennyweight.products.loans.shared import MARKETS
from pennyweight.simulators.posts import Posts
from pennyweight.simulators.trading import Odds

pytestmark = pytest.mark.heavy

LOANS = 40
HAMMERS = 6
SETTINGS = {
    "cluster": {"lease_seconds": 2.0},
    "loans": {"venue_timeout_seconds": 0.6, "venue_margin_seconds": 0.3, "age_seconds": 6.0},
}


# ── a wire to the posts that can be cut ───────────────────────────────────────────


class Wire:
    """What lies between an instance and a post; it notes each order that the instance sends.

    `cut` refuses connections, so that no order gets out; `mute` loses the answers.
    """

    def __init__(self, target: int) -> None:
        self.orders: list[str] = []
        """Request ids, as they were sent."""
        self.is_mute = False
        self._target = target
        self._live: set[socket.socket] = set()
        self._listener: socket.socket | None = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._begin(self._accept, self._listener)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for one in list(self._live):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.is_mute = False
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._begin(self._accept, self._listener)

    def close(self) -> None:
        self.cut()
        for thread in self._threads:
            thread.join()

    def _begin(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._live |= {near, far}
                self._begin(self._carry, near, far, True)
                self._begin(self._carry, far, near, False)

    def _carry(self, source: socket.socket, target: socket.socket, is_order: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if is_order:
                    self._note(data)
                elif self.is_mute:
                    continue
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        source.close()
        self._live.discard(source)

    def _note(self, data: bytes) -> None:
        """Orders come in one piece or in two, the body with its id in the last."""
        for part in data.split(b'"requestId":"')[1:]:
            self.orders.append(part.partition(b'"')[0].decode())


class Wires:
    """The wires of one instance to both posts."""

    def __init__(self, posts: Posts) -> None:
        ports = {market: int(url.rpartition(":")[2]) for market, url in posts.urls.items()}
        self.wires = {market: Wire(port) for market, port in ports.items()}

    @property
    def orders(self) -> list[str]:
        return [order for wire in self.wires.values() for order in wire.orders]

    def spoil(self, how: Literal["unsent", "unheard"]) -> None:
        for wire in self.wires.values():
            if how == "unsent":
                wire.cut()
            else:
                wire.is_mute = True

    def mend(self) -> None:
        for wire in self.wires.values():
            wire.mend()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for wire in self.wires.values():
            wire.close()


class Two:
    """Two instances, each with wires of its own, and the world around them."""

    def __init__(self, cluster: Cluster, wires: Sequence[Wires], world: World) -> None:
        self.cluster = cluster
        self.world = world
        self._wires = wires

    def wires_of(self, instance: Instance) -> Wires:
        return self._wires[self.cluster.instances.index(instance)]


@pytest.fixture
def two(stack: MiniStack, url: str, tmp_path: Path) -> Iterator[Two]:
    with play(stack.endpoint, url, tmp_path) as two:
        yield two


@contextmanager
def play(endpoint: str, url: str, folder: Path) -> Iterator[Two]:
    settings = settings_in(folder, **SETTINGS)
    with ExitStack() as ends:
        patch = ends.enter_context(pytest.MonkeyPatch.context())
        posts, streams, branch = ends.enter_context(outside(endpoint))
        wires = [ends.enter_context(Wires(posts)) for _ in range(2)]
        cluster = ends.enter_context(Cluster(url, folder, 0, "--config", str(settings)))
        for name, value in environment(endpoint, posts).items():
            patch.setenv(name, value)
        for each in wires:
            patch.setenv("MOS_ESPA_URL", each.wires["mos_espa"].url)
            patch.setenv("BLACK_SPIRE_URL", each.wires["black_spire"].url)
            cluster.add()
        cluster.settle()
        client = ends.enter_context(Client(cluster.ports, is_restless=True))
        world = World(posts, streams, branch, Bank(client))
        world.price("50")
        yield Two(cluster, wires, world)


def names(what: str, count: int) -> list[str]:
    return [f"{what}-{number}" for number in range(count)]


def lend_all(world: World, loans: Sequence[str], collateral: str = "42") -> None:
    for name in loans:
        world.bank.lend(name, collateral=collateral)
    all_are(world, loans, "active")


def all_are(world: World, loans: Sequence[str], *statuses: str) -> None:
    wanted = set(loans)

    def are() -> bool:
        found = world.bank.client.get("/loans")["loans"]
        return wanted <= {one["loanId"] for one in found if one["status"] in statuses}

    wait_for(are)


def check_whole(url: str, world: World, loans: Sequence[str]) -> None:
    """All were liquidated once, as the posts say, and all branches heard of each once."""
    with closing(open_reader(url)) as store:
        kept, parts = loans_in(store), slices_in(store)
    assert {kept[name].status for name in loans} == {"liquidated"}
    check_sales(parts, world.posts)
    wait_for(lambda: {one["loanId"] for one in world.branch.listen()} >= set(loans))
    by_loan: dict[str, set[str]] = {}
    for body in world.branch.bodies:
        by_loan.setdefault(json.loads(body)["loanId"], set()).add(body)
    for name in loans:
        (body,) = by_loan[name]
        check_notice(json.loads(body), name, kept[name])
        assert world.bank.proof(name)["is_minimal"]


# ── collateral against a liquidation ──────────────────────────────────────────────


def test_top_ups_race_with_liquidations(two: Two, url: str) -> None:
    """Through both instances at once: what was accepted is booked, and nothing after the beginning."""
    world, loans = two.world, names("race", LOANS)
    lend_all(world, loans)
    told: list[tuple[str, int, str]] = []
    is_over = threading.Event()

    def hammer(number: int) -> None:
        dice = random.Random(number)
        with Client(two.cluster.ports, is_restless=True) as client:
            bank = Bank(client)
            for place in itertools.count():
                if is_over.is_set():
                    return
                key = f"race {number}.{place}"
                answer = bank.top_up(dice.choice(loans), "0.001", key)
                assert answer.status in {202, 409}, answer
                told.append((key, answer.status, answer.code))

    with ThreadPoolExecutor(HAMMERS) as pool:
        hammers = [pool.submit(hammer, number) for number in range(HAMMERS)]
        try:
            wait_for(lambda: len(told) > 50)
            world.price("29")
            all_are(world, loans, "liquidated")
        finally:
            is_over.set()
        for one in hammers:
            one.result()
    check_whole(url, world, loans)
    two.cluster.stop()
    book = read_book(url)
    began: dict[str, int] = {}
    booked: Counter[str] = Counter()
    for entry in book.entries:
        if entry.command == "begin_liquidation":
            loan = json.loads(bytes(entry.fields))["loan"]
            assert loan not in began
            began[loan] = entry.sequence
        elif entry.command == "top_up_collateral":
            assert json.loads(bytes(entry.fields))["loan"] not in began
            booked[entry.key] += 1
    assert began.keys() == set(loans)
    accepted = {key for key, status, _ in told if status == 202}
    assert {key for key in booked if key.startswith("race ")} == accepted
    refused = Counter(code for _, status, code in told if status == 409)
    assert refused.keys() <= {"loan_liquidating", "loan_liquidated"}
    assert min(len(accepted), refused.total()) > 20


# ── owners that fall ──────────────────────────────────────────────────────────────


def test_new_owner_has_fresh_quotes(two: Two, url: str, record_property: Any) -> None:
    """Prices and decisions go on where the book is owned next, for both markets."""
    world, bank = two.world, two.world.bank
    owner = two.cluster.owner()
    bank.lend("before")
    bank.becomes("before", "active")
    owner.kill()
    struck, fell = time.monotonic(), datetime.now(UTC).isoformat()

    def is_fresh() -> bool:
        markets = bank.client.get("/prices")["markets"]
        return all(
            market in markets
            and markets[market]["is_fresh"]
            and markets[market]["received_at"] > fell
            for market in MARKETS
        )

    wait_for(is_fresh)
    record_property(
        "seconds from the kill to fresh quotes elsewhere", f"{time.monotonic() - struck:.2f}"
    )
    bank.lend("after")
    bank.becomes("after", "active")
    owner.start()
    world.price("29")
    all_are(world, ["before", "after"], "liquidated")
    check_whole(url, world, ["before", "after"])


@pytest.mark.parametrize("how", ["unsent", "unheard"])
def test_owner_frozen_between_intention_and_order(
    two: Two, url: str, how: Literal["unsent", "unheard"]
) -> None:
    """Thawed after its successor filled the slices, it sends nothing, and nothing was sold twice.

    Its orders did not get out, or their answers did not come back, before it froze.
    """
    world, loans = two.world, names(how, 12)
    lend_all(world, loans)
    frozen = two.cluster.owner()
    wires = two.wires_of(frozen)
    wires.spoil(how)
    world.price("29")
    all_are(world, loans, "liquidating")
    assert not world.branch.listen()
    wait_for(lambda: wires.orders or how == "unsent")
    frozen.freeze()
    try:
        wait_for(lambda: any(i.is_owner for i in two.cluster.instances if i is not frozen))
        with Client([i.port for i in two.cluster.instances if i is not frozen]) as client:
            world.bank.client = client
            all_are(world, loans, "liquidated")
            wires.mend()
            sent = len(wires.orders)
            assert (sent == 0) == (how == "unsent")
            frozen.thaw()
            wait_for(lambda: frozen.readiness().get("role") == "front")
            time.sleep(2)  # longer than it would wait before it asked again
            assert len(wires.orders) == sent
            check_whole(url, world, loans)
    finally:
        frozen.thaw()
    two.cluster.settle()
    assert set(read_book(url).epochs) == {1, 2}


def test_owner_frozen_anywhere_in_a_storm(two: Two, url: str) -> None:
    """Many orders are on their way when it freezes; the posts' books show each slice once."""
    world, loans = two.world, names("storm", LOANS)
    lend_all(world, loans)
    world.moods(Odds(failed=0.3, slow=0.5, slow_seconds=0.2))
    frozen, before = two.cluster.owner(), world.orders()
    world.goes("29")
    wait_for(lambda: world.orders() >= before + 8)
    frozen.freeze()
    try:
        with closing(open_reader(url)) as store:
            statuses = Counter(loan.status for loan in loans_in(store).values())
        assert statuses["liquidating"] > LOANS // 4
        wait_for(lambda: any(i.is_owner for i in two.cluster.instances if i is not frozen))
    finally:
        frozen.thaw()
    all_are(world, loans, "liquidated")
    two.cluster.settle()
    check_whole(url, world, loans)
    read_book(url)

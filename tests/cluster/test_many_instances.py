"""Three instances of one book in one database: the same answers as one, and no race."""

import statistics
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from random import Random

import pytest

from cluster.instances import (
    Client,
    Cluster,
    Instance,
    Line,
    Load,
    at_once,
    check_told,
    fund,
    read_book,
    transfer,
)
from cluster.trace import PAYMENTS, differences, play
from delivery.test_payments import SEED
from pennyweight.simulators.balancer import Balancer

HANDS = 6
"""Rounds of a race that go on beside one another."""


@pytest.fixture(scope="module")
def cluster(shared_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three instances for all tests of this file, each of which uses accounts of its own."""
    with Cluster(shared_url, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
    read_book(shared_url)


def race(cluster: Cluster, rounds: int, run: Callable[[int, list[Line], Random], None]) -> None:
    """Run so many rounds, each with a line to every instance, in an order that changes."""

    def hand(number: int) -> None:
        dice = Random(number)
        with ExitStack() as stack:
            lines = [stack.enter_context(closing(Line(port))) for port in cluster.ports]
            for place in range(number, rounds, HANDS):
                dice.shuffle(lines)
                run(place, lines, dice)

    with ThreadPoolExecutor(HANDS) as pool:
        list(pool.map(hand, range(HANDS)))


def post(line: Line, body: dict[str, str], key: str = "") -> None:
    """Pay, which must succeed."""
    answer = line.send("POST", "/v1/transfers", body, key)
    assert answer.status == 201, answer


def heavy(count: int):
    return pytest.param(count, marks=pytest.mark.heavy)


# ── the same as one ───────────────────────────────────────────────────────────────


def test_answers_are_those_of_one_process(url, tmp_path):
    """Behind a balancer, every request to the next instance: ids, replays, refusals, pages."""
    place = ["--data", str(tmp_path / "book")]
    embedded = Instance(place, tmp_path / "embedded.log")
    with closing(Line(embedded.port)) as line:
        expected = play(line.send)
    embedded.stop()
    with Cluster(url, tmp_path) as cluster:
        ports = [("127.0.0.1", port) for port in cluster.ports]
        with Balancer(ports) as balancer:

            def ask(*request):
                with closing(Line(balancer.port)) as line:
                    return line.send(*request)

            said = play(ask)
            assert all(backend.connections > 10 for backend in balancer.backends)
    assert not differences(expected, said)
    for (_, _, _, text), one in zip(SEED, said[: len(PAYMENTS)], strict=True):
        assert one.body.partition(b"MOMENT")[0] == text.encode().partition(b"2019-06")[0]
    assert read_book(url).report.sequence == read_book(tmp_path / "book").report.sequence


def test_instances_say_who_they_are(cluster):
    roles = [instance.readiness()["role"] for instance in cluster.instances]
    assert sorted(roles) == ["front", "front", "owner"]


def test_a_port_in_use(cluster):
    """Said in one line, and at once: the others are not kept waiting for its end."""
    place = ["--store", cluster.url, "--port", str(cluster.ports[0])]
    ran = subprocess.run(
        [sys.executable, "-m", "pennyweight", "serve", *place],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 2, ran
    assert f"cannot listen on 127.0.0.1:{cluster.ports[0]}" in ran.stderr
    assert "Traceback" not in ran.stderr
    cluster.settle()


# ── races ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rounds", [200, heavy(10_000)])
def test_two_clients_after_the_same_last_cent(cluster, rounds):
    """On two instances, at the same time: one gets it, the other hears that nothing is left."""
    cent, spent = "0.01", [0] * HANDS
    with cluster.client() as client:
        fund(client, [f"cent{rounds}.{n}" for n in range(HANDS)], "0")

    def run(place: int, lines: list[Line], _: Random) -> None:
        poor = f"user:cent{rounds}.{place % HANDS}:USD"
        post(lines[2], transfer("world:USD", poor, cent))
        told = at_once(lines[:2], [(transfer(poor, "world:USD", cent), "")] * 2)
        assert sorted(answer.status for answer in told) == [201, 409], told
        assert {answer.code for answer in told} == {"", "insufficient_funds"}
        spent[place % HANDS] += 1

    race(cluster, rounds, run)
    assert sum(spent) == rounds


@pytest.mark.parametrize("rounds", [300, heavy(10_000)])
def test_a_deposit_is_there_at_once_elsewhere(cluster, rounds):
    """In through one instance, out through another: never refused, and read by the third."""
    with cluster.client() as client:
        fund(client, [f"quick{rounds}.{n}" for n in range(HANDS)], "0")

    def run(place: int, lines: list[Line], dice: Random) -> None:
        account, amount = f"user:quick{rounds}.{place % HANDS}:USD", str(dice.randint(1, 99))
        post(lines[0], transfer("world:USD", account, amount))
        if dice.random() < 0.2:
            assert lines[2].send("GET", f"/v1/accounts/{account}").json["posted"] == amount
        post(lines[1], transfer(account, "world:USD", amount))
        if dice.random() < 0.2:
            assert lines[2].send("GET", f"/v1/accounts/{account}").json["posted"] == "0"

    race(cluster, rounds, run)


@pytest.mark.parametrize("rounds", [100, heavy(2_000)])
def test_duplicates_at_the_same_time(cluster, rounds):
    """One request with its key through every instance: one entry, one receipt, everywhere."""
    with cluster.client() as client:
        fund(client, [f"twin{rounds}"], "0")
    account = f"user:twin{rounds}:USD"

    def run(place: int, lines: list[Line], _: Random) -> None:
        request = (transfer("world:USD", account), f"twin {rounds} {place}")
        told = at_once(lines, [request] * len(lines))
        assert [answer.status for answer in told] == [201] * len(lines), told
        assert sum(not answer.is_replayed for answer in told) == 1
        assert len({answer.body for answer in told}) == 1

    race(cluster, rounds, run)
    with cluster.client() as client:
        assert client.get(f"/v1/accounts/{account}")["posted"] == str(rounds)


@pytest.mark.parametrize("rounds", [100, heavy(2_000)])
def test_conflicts_at_the_same_time(cluster, rounds):
    """One key for three different requests: one of them is done, the others hear what differs."""
    with cluster.client() as client:
        fund(client, [f"rival{rounds}"], "0")
    account, sums = f"user:rival{rounds}:USD", [0] * HANDS

    def run(place: int, lines: list[Line], _: Random) -> None:
        key = f"rival {rounds} {place}"
        bodies = [transfer("world:USD", account, amount) for amount in (1, 2, 3)]
        told = at_once(lines, [(body, key) for body in bodies])
        assert sorted(answer.status for answer in told) == [201, 422, 422], told
        (done,) = [answer for answer in told if answer.status == 201]
        for answer in told:
            if answer.status == 422:
                assert answer.code == "key_reused"
                assert answer.json["figures"]["sequence"] == done.json["sequence"]
        sums[place % HANDS] += int(done.json["amount"])
        winner = told.index(done)
        again = lines[winner - 1].send("POST", "/v1/transfers", bodies[winner], key)
        assert (again.status, again.is_replayed, again.body) == (201, True, done.body)

    race(cluster, rounds, run)
    with cluster.client() as client:
        assert client.get(f"/v1/accounts/{account}")["posted"] == str(sum(sums))


# ── invariants under load ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("reads", [150, heavy(2_500)])
def test_every_full_read_sums_to_the_total(cluster, reads):
    """The bank test of Jepsen: transfers between accounts, and reads of all through any instance."""
    names = [f"bank{reads}.{number}" for number in range(8)]
    asset = "EUR" if reads < 1_000 else "RUB"
    with cluster.client() as client:
        fund(client, names, "50", asset)
    dice, seen = Random(3), Counter()

    def pay(_: int, __: int) -> dict[str, str]:
        one, other = dice.sample(names, 2)
        amount = dice.randint(1, 30)
        return transfer(f"user:{one}:{asset}", f"user:{other}:{asset}", amount, asset)

    def read(number: int) -> None:
        with closing(Line(cluster.ports[number % 3])) as line:
            for _ in range(reads // 3):
                page = line.send("GET", f"/v1/accounts?asset={asset}&limit=1000").json
                assert page["next_cursor"] is None
                posted = {row["id"]: int(row["posted"]) for row in page["data"]}
                banks = [posted[f"user:{name}:{asset}"] for name in names]
                assert sum(banks) == 50 * len(names), page
                assert min(banks) >= 0
                assert sum(posted.values()) == 0
                seen[tuple(banks)] += 1

    with Load(cluster.ports, pay, name=f"bank {reads}", clients=4) as load:
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(read, range(3)))
        load.moves_on(1)
    assert len(seen) > reads / 10


@pytest.mark.parametrize(
    ("clients", "count"), [(20, 20), pytest.param(100, 100, marks=pytest.mark.heavy)]
)
def test_nobody_starves(cluster, clients, count, record_property):
    """Random payments over 99 accounts from many clients: sums stay, and all come to their turn."""
    names = [f"crowd{clients}.{number}" for number in range(99)]
    asset = "BTC" if clients < 100 else "ETH"
    with cluster.client() as client:
        fund(client, names, "30", asset)
    dice, guard = Random(7), threading.Lock()

    def pay(_: int, __: int) -> dict[str, str]:
        with guard:
            one, other = dice.sample(names, 2)
            amount = dice.randint(1, 20)
        return transfer(f"user:{one}:{asset}", f"user:{other}:{asset}", amount, asset)

    load = Load(cluster.ports, pay, name=f"crowd {clients}", clients=clients, count=count)
    load.join()
    assert len(load.told) == clients * count
    statuses = Counter(told.answer.status for told in load.told)
    assert statuses[201] > statuses[409] > 0
    median, slowest = statistics.median(load.seconds), max(load.seconds)
    record_property("seconds of a client", f"median {median:.2f}, slowest {slowest:.2f}")
    assert slowest < 10 * median
    check_told(read_book(cluster.url), load.told)
    with cluster.client() as client:
        page = client.get(f"/v1/accounts?asset={asset}&limit=1000")["data"]
    posted = {row["id"]: int(row["posted"]) for row in page}
    assert sum(posted[f"user:{name}:{asset}"] for name in names) == 2_970


def test_clients_that_go_round(cluster):
    """One client, every request to the next instance: what it did is what it finds."""
    with Client(cluster.ports, is_restless=True) as client:
        fund(client, ["round"], "0")
        for number in range(1, 61):
            body = transfer("world:USD", "user:round:USD")
            assert client.post("/v1/transfers", body, f"round {number}").status == 201
            assert client.get("/v1/accounts/user:round:USD")["posted"] == str(number)

"""A database that stops, is killed, freezes, and a network before it that cuts and lies.

Whatever it was: nothing acknowledged is lost or there twice, nothing was refused wrongly, and
the instances recover by themselves.
"""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cluster.instances import (
    Answer,
    Cluster,
    Line,
    Load,
    check_told,
    fund,
    pays,
    read_book,
    transfer,
)
from pennyweight.simulators.pgfaults import FaultProxy
from pennyweight.simulators.pgrules import Fault, Rule
from pennyweight.simulators.postgres import PostgresServer

USERS = 8
TROUBLES = {
    "ConnectionResetError",
    "RemoteDisconnected",
    "TimeoutError",
    "no_owner",
    "outcome_unknown",
    "queue_full",
    "store_full",
    "store_read_only",
    "store_timeout",
    "store_unavailable",
}
"""What clients may have to ask again for."""


@contextmanager
def loaded(cluster: Cluster, url: str, **options: int) -> Iterator[Load]:
    """Let clients pay; afterwards the book, read past the trouble, says what they were told."""
    with cluster.client() as client:
        fund(client, range(USERS))
    with Load(cluster.ports, pays(USERS), **options) as load:
        load.moves_on()
        yield load
        load.moves_on()
    assert set(load.troubles) <= TROUBLES, load.troubles
    cluster.settle()
    book = read_book(url)
    check_told(book, load.told)
    assert sum(book.posted().values()) == 100 * USERS


# ── the server itself ─────────────────────────────────────────────────────────────


def strike(server: PostgresServer, how: str) -> None:
    """Let the database be away for a while."""
    if how == "frozen":
        server.freeze()
        time.sleep(5)
        server.thaw()
        return
    if how == "killed":
        server.kill()
    else:
        server.stop("immediate" if how == "stopped at once" else "fast")
    time.sleep(1)
    server.start()


@pytest.mark.heavy
def test_a_database_in_every_trouble(own_postgres, tmp_path: Path, record_property) -> None:
    gaps = []
    with Cluster(own_postgres.url, tmp_path) as cluster, loaded(cluster, own_postgres.url) as load:
        for how in ("stopped", "killed", "frozen", "stopped at once", "killed"):
            strike(own_postgres, how)
            gaps.append(f"{how} {load.gap(time.monotonic()):.2f}")
            load.moves_on(100)
            cluster.settle()
    record_property("seconds from its return to the next", ", ".join(gaps))


# ── the way to it ─────────────────────────────────────────────────────────────────


APPEND = r"insert into pennyweight\.batches"

BLOWS = [
    *(
        (fault, {})
        for fault in (
            Fault.CUT_BEFORE,
            Fault.CUT_INSIDE_MESSAGE,
            Fault.CUT_BEFORE_COMMIT,
            Fault.CUT_AT_ONCE,
            Fault.CUT_UNHEARD,
            Fault.CUT_INSIDE_ANSWER,
            Fault.CUT_HEARD,
            Fault.WARN,
            Fault.WARN_AT_COMMIT,
        )
    ),
    *(
        (Fault.ERROR, {"sqlstate": state, "times": 2})
        for state in ("40001", "40P01", "25006", "53100", "57014", "57P01")
    ),
    (Fault.ERROR_AT_COMMIT, {"sqlstate": "40001", "times": 2}),
    (Fault.DELAY, {"seconds": 0.5, "times": 3}),
    (Fault.DELAY_ANSWER, {"seconds": 0.5, "times": 3}),
]
"""Faults of an append; those that hang have tests of their own."""


class Bare(threading.Thread):
    """A client that gives no key and asks nothing twice: it counts what it was told was done."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.done = 0
        self.others: list[Answer] = []
        self._port = port
        self._is_over = threading.Event()

    def run(self) -> None:
        body = transfer("world:EUR", "user:bare:EUR", asset="EUR")
        with closing(Line(self._port)) as line:
            while not self._is_over.is_set():
                answer = line.send("POST", "/v1/transfers", body)
                if answer.status == 201:
                    self.done += 1
                else:
                    self.others.append(answer)

    def stop(self) -> None:
        self._is_over.set()
        self.join()


def test_faults_on_the_way(url: str, tmp_path: Path) -> None:
    """Each fault that there is, under load, one after the other; also for who asks only once."""
    with FaultProxy(url) as proxy, Cluster(proxy.url, tmp_path, 2) as cluster:
        with cluster.client() as client:
            fund(client, ["bare"], "0", "EUR")
        bare = [Bare(port) for port in cluster.ports]
        with loaded(cluster, url) as load:
            for thread in bare:
                thread.start()
            blows = list(BLOWS)
            random.Random(31).shuffle(blows)
            for fault, options in blows:
                rule = proxy.add(Rule(fault, APPEND, **options))
                assert rule.happened.wait(20), (fault, options)
                load.moves_on(5)
            proxy.behave()
            for thread in bare:
                thread.stop()
    assert not [thread.others for thread in bare if thread.others]
    assert read_book(url).posted("EUR") == {"user:bare:EUR": sum(thread.done for thread in bare)}


@pytest.mark.heavy
def test_chaos_on_the_way(url: str, tmp_path: Path, record_property) -> None:
    """Faults at any statement of any instance, cuts of everything, and networks that hang."""
    dice = random.Random(37)
    with FaultProxy(url, seed=41) as proxy:
        with Cluster(proxy.url, tmp_path) as cluster, loaded(cluster, url, clients=9) as load:
            for number in range(10):
                faults = dice.sample([*Fault], 4)
                proxy.misbehave({fault: 0.01 for fault in faults if "hole" not in fault})
                if number % 3 == 1:
                    proxy.latency_seconds = dice.choice([0.005, 0.02])
                if number % 3 == 2:
                    proxy.bytes_per_second = 200_000
                time.sleep(dice.uniform(1, 3))
                if number % 4 == 0:
                    proxy.cut()
                if number == 4:
                    proxy.startup_sqlstate = "53300"
                    proxy.cut()
                    time.sleep(2)
                if number == 7:
                    proxy.refuse()
                    proxy.cut()
                    time.sleep(2)
                proxy.behave()
                load.moves_on()
        happened = {str(fault): count for fault, count in proxy.happened.items()}
    record_property("faults", f"{happened}; asked again for {dict(load.troubles)}")
    assert len(happened) >= 8


@pytest.mark.heavy
@pytest.mark.parametrize("fault", [Fault.HOLE_BEFORE, Fault.HOLE_AFTER])
def test_a_line_that_hangs(url: str, tmp_path: Path, fault: Fault, record_property) -> None:
    """The owner's append gets no answer, and nobody says so: it is cut, or another takes over."""
    with (
        FaultProxy(url) as proxy,
        Cluster(proxy.url, tmp_path) as cluster,
        loaded(cluster, url) as load,
    ):
        rule = proxy.add(Rule(fault, APPEND))
        assert rule.happened.wait(20)
        gap = load.gap(time.monotonic())
        load.moves_on()
        proxy.behave()
        proxy.cut()
    record_property("seconds from the hole to the next acknowledgement", f"{gap:.2f}")
    assert gap < 25


@pytest.mark.heavy
def test_an_owner_cut_off_alone(url: str, tmp_path: Path, record_property) -> None:
    """Only its own way to the database is gone: another takes over, and serves its clients."""
    with (
        FaultProxy(url) as proxy,
        Cluster(proxy.url, tmp_path, 1) as first,
        Cluster(url, tmp_path / "others", 2) as others,
    ):
        with others.client() as client:
            fund(client, range(USERS))
        assert first.instances[0].is_owner
        with Load([*first.ports, *others.ports], pays(USERS)) as load:
            load.moves_on()
            proxy.is_swallowing_requests = True
            gap = load.gap(time.monotonic())
            assert others.owner()
            load.moves_on(200)
            proxy.behave()
            proxy.cut()
            first.settle()
            load.moves_on(200)
        book = read_book(url)
        check_told(book, load.told)
        assert sum(book.posted().values()) == 100 * USERS
    record_property("seconds to the next acknowledgement", f"{gap:.2f}")
    assert gap < 10

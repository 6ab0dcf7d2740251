"""Instances on a database in trouble: payments through all of them are done, each of them once."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import NamedTuple

import msgspec
import pytest

from pennyweight.simulators.instances import Instances
from pennyweight.simulators.pgfaults import FaultProxy
from pennyweight.simulators.pgrules import Fault, Rule
from pennyweight.simulators.population import FIRST_ID, population_csv
from pennyweight.simulators.postgres import PostgresServer, binaries
from pennyweight.simulators.server import verify
from pennyweight.simulators.traffic import Sent, Traffic

pytestmark = pytest.mark.skipif(binaries() is None, reason="not here: PostgreSQL's binaries")

CLIENTS = 4
PATIENCE_SECONDS = 60.0


class Stage(NamedTuple):
    database: PostgresServer
    proxy: FaultProxy
    instances: Instances
    accounts: dict[str, int]

    def traffic(self, address=None):
        address = address or (self.instances.balancer.host, self.instances.balancer.port)
        users = [str(FIRST_ID), str(FIRST_ID + 1)]
        return Traffic(address, users, 1, connections=3, patience_seconds=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("instances")
    (folder / "users.csv").write_text(population_csv(2, 1))
    load = [sys.executable, "-m", "pennyweight", "load", str(folder / "users.csv"), "--store"]
    with PostgresServer() as database, FaultProxy(database.url, seed=7) as proxy:
        subprocess.run([*load, database.url], check=True, stdout=subprocess.DEVNULL)
        with Instances(proxy.url, folder) as instances:
            built = Stage(database, proxy, instances, {})
            traffic = built.traffic()
            traffic.prepare()
            traffic.close()
            built.accounts.update(traffic.accounts)
            yield built
        found = verify(database.url)
        assert found.ok, found.first_wrong


def pay(stage, name: str, stop: threading.Event) -> int:
    """One cent after another from the buyer to the seller; how many."""
    traffic = stage.traffic()
    buyer, seller = stage.accounts["buyer"], stage.accounts["seller"]
    body = {"buyer_account_id": buyer, "seller_account_id": seller, "amount": "0.01"}
    try:
        while not stop.is_set():
            key = f"{name}-{traffic.counts.total}"
            traffic._send(Sent("/payments", msgspec.json.encode(body), key))
    finally:
        traffic.close()
    assert (traffic.counts.refused, traffic.counts.unknown) == (0, 0)
    return traffic.counts.done


def balances(stage) -> set[Decimal]:
    """What the seller has, as each instance that runs says."""
    said = set()
    for server in stage.instances.servers:
        if not server.has_ended:
            traffic = stage.traffic((server.host, server.port))
            answer = traffic._ask("GET", f"/account/{stage.accounts['seller']}")[1]
            said.add(Decimal(answer["Amount"]))
            traffic.close()
    return said


def play(stage, name: str, trouble, seconds: float = 2.0) -> None:
    """Pay from several clients through a trouble and a moment longer."""
    before, happened = balances(stage), stage.proxy.happened.total()
    assert len(before) == 1
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        paying = [pool.submit(pay, stage, f"{name}-{n}", stop) for n in range(CLIENTS)]
        try:
            time.sleep(0.3)
            trouble(stage)
            has_rules = bool(stage.proxy._rules)
            time.sleep(seconds)
            stage.proxy.behave()
            time.sleep(0.3)
        finally:
            stage.proxy.behave()
            stop.set()
        done = sum(each.result() for each in paying)
    assert done > CLIENTS
    assert (stage.proxy.happened.total() > happened) == has_rules
    assert balances(stage) == {before.pop() + done * Decimal("0.01")}


def restart(end):
    def trouble(stage):
        end(stage.database)
        time.sleep(0.5)
        stage.database.start()

    return trouble


def freeze(stage):
    stage.database.freeze()
    time.sleep(4)  # longer than the lease
    stage.database.thaw()


def cut_all(stage):
    for _ in range(20):
        stage.proxy.cut()
        time.sleep(0.1)


def refuse(stage):
    stage.proxy.refuse()
    stage.proxy.cut()


def refuse_with(sqlstate):
    def trouble(stage):
        stage.proxy.startup_sqlstate = sqlstate
        stage.proxy.cut()

    return trouble


def fail(sqlstate, chance=0.05):
    return lambda stage: stage.proxy.add(
        Rule(Fault.ERROR, chance=chance, times=None, sqlstate=sqlstate)
    )


def misbehave(*faults, chance=0.03, matching=""):
    return lambda stage: stage.proxy.misbehave(dict.fromkeys(faults, chance), matching)


def slow(stage):
    stage.proxy.latency_seconds, stage.proxy.bytes_per_second = 0.02, 100_000


COMMITS = "^\\s*WITH head AS"
TROUBLES = {
    "serialization": fail("40001", 0.1),
    "errors at commit": misbehave(Fault.ERROR_AT_COMMIT, Fault.WARN, Fault.WARN_AT_COMMIT),
    "cuts around commit": misbehave(
        Fault.CUT_BEFORE,
        Fault.CUT_INSIDE_MESSAGE,
        Fault.CUT_BEFORE_COMMIT,
        Fault.CUT_AT_ONCE,
        Fault.CUT_UNHEARD,
        Fault.CUT_INSIDE_ANSWER,
        Fault.CUT_HEARD,
        matching=COMMITS,
    ),
    "kill": restart(PostgresServer.kill),
}
MORE_TROUBLES = {
    "deadlock": fail("40P01", 0.1),
    "disk full": fail("53100"),
    "read only": fail("25006"),
    "time out": fail("57014"),
    "shutdown": fail("57P01"),
    "cuts at any statement": misbehave(
        Fault.CUT_BEFORE, Fault.CUT_BEFORE_COMMIT, Fault.CUT_AT_ONCE, Fault.CUT_UNHEARD
    ),
    "cut connections": cut_all,
    "nobody there": refuse,
    "too many connections": refuse_with("53300"),
    "starting up": refuse_with("57P03"),
    "slow network": slow,
    "stop": restart(PostgresServer.stop),
    "freeze": freeze,
}


def test_payments_in_trouble_are_done_once(stage):
    """One test for all, and the kill at the end: starting the instances is what takes long."""
    for name, trouble in TROUBLES.items():
        play(stage, name, trouble, seconds=1.5)
    owner = stage.instances.owner()
    assert stage.instances.fallen() == []

    def kill(stage):
        os.kill(stage.instances.servers[owner - 1].pid, signal.SIGKILL)

    play(stage, "killed owner", kill, seconds=4)
    assert stage.instances.fallen() == [owner]
    assert stage.instances.fallen() == []
    assert stage.instances.owner() not in (None, owner)


@pytest.mark.heavy
@pytest.mark.parametrize("name", MORE_TROUBLES)
def test_payments_in_more_trouble_are_done_once(stage, name):
    play(stage, name, MORE_TROUBLES[name], seconds=4)


@pytest.mark.heavy
@pytest.mark.parametrize("fault", [Fault.HOLE_BEFORE, Fault.HOLE_AFTER])
def test_swallowed_commit_is_found_out(stage, fault):
    play(stage, fault, lambda stage: stage.proxy.add(Rule(fault, COMMITS)), seconds=15)

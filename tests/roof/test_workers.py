"""`serve --workers N` on the embedded store: several processes on one port, one book behind them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from cluster.instances import (
    Client,
    Instance,
    Line,
    Load,
    check_told,
    fund,
    read_book,
    transfer,
    until,
)
from cluster.trace import TRACE, differences, play

USERS = 6


@contextmanager
def serving(folder: Path, *words: str, port: int = 0) -> Iterator[Instance]:
    """Serve a folder's book; afterwards it must end well, and nothing of it be left."""
    instance = Instance(["--data", str(folder)], folder.with_suffix(".log"), *words, port=port)
    workers = children(instance)
    try:
        yield instance
        instance.stop()
        assert not any(map(is_alive, workers))
        assert "Fatal" not in instance.log.read_text()
    finally:
        instance.kill()


def children(instance: Instance) -> list[int]:
    """Return the workers of a server."""
    pid = instance.process.pid
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return sorted(found)


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def pay_around(number: int, place: int) -> dict[str, str]:
    """Return a transfer between two of the users; some find no funds."""
    one, other = (number + place) % USERS, (number + 3 * place + 1) % USERS
    other = other if other != one else (one + 1) % USERS
    return transfer(f"user:{one}:USD", f"user:{other}:USD", (1, 2, 5, 40)[place % 4])


def ask_afresh(port: int):
    """Return a way to ask that makes a connection for every request."""

    def ask(method, path, body=None, key=""):
        line = Line(port)
        try:
            return line.send(method, path, body, key)
        finally:
            line.close()

    return ask


def figure(text: bytes, name: str) -> float:
    """Return the sum of a figure over its labels."""
    lines = [line for line in text.decode().splitlines() if line.startswith(name)]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_answers_are_those_of_one_process(tmp_path):
    """Whichever worker is asked: a read sees what was acknowledged just before, elsewhere."""
    said = []
    for name, words in (("one", ()), ("many", ("--workers", "3"))):
        with serving(tmp_path / name, *words) as server:
            said.append(play(ask_afresh(server.port)))
        read_book(tmp_path / name)
    assert not differences(*said)
    assert {one.status for one in said[0]} >= {200, 201, 400, 404, 409, 422}


def test_each_worker_tells_what_all_have_counted(tmp_path):
    with serving(tmp_path / "book", "--workers", "2") as server:
        ask = ask_afresh(server.port)
        for number in range(60):
            assert ask("GET", "/v1/accounts").status == 200, number
        play(ask)
        expected = 60 + sum(step.path.startswith("/v1/accounts?") for step in TRACE)

        def shown():
            text = ask("GET", "/metrics").body
            route = 'pennyweight_requests_total{method="GET",route="/v1/accounts",status="200"}'
            return figure(text, route), figure(text, "pennyweight_sequence")

        sequence = len(ask("GET", "/v1/entries?limit=1000").json["data"])
        until(lambda: all(shown() == (expected, sequence) for _ in range(8)))
        until(lambda: figure(ask("GET", "/metrics").body, "pennyweight_fronts") == 2)
        assert ask("GET", "/cache").json["resident"] > 0


def test_a_killed_worker_is_replaced(tmp_path):
    """Its clients ask again, the others notice nothing, and its counts are kept."""
    with serving(tmp_path / "book", "--workers", "2") as server:
        workers = children(server)
        with Client([server.port]) as client:
            fund(client, range(USERS))
            with Load([server.port], pay_around) as load:
                for _ in range(2):
                    load.moves_on(50)
                    victim = children(server)[0]
                    os.kill(victim, signal.SIGKILL)
                    until(lambda victim=victim: len({*children(server)} - {victim}) == 2)
                load.moves_on(50)
        assert not set(workers) & set(children(server))
        counted = "pennyweight_requests_total"
        ask = ask_afresh(server.port)
        until(lambda: figure(ask("GET", "/metrics").body, counted) >= 0.5 * len(load.told))
        assert load.troubles
    check_told(read_book(tmp_path / "book"), load.told)


@pytest.mark.heavy
def test_a_killed_parent_leaves_no_worker(tmp_path):
    """The port and the book are free at once, and nothing acknowledged is lost."""
    with serving(tmp_path / "book", "--workers", "2") as server:
        workers, port = children(server), server.port
        with Client([port]) as client:
            fund(client, range(USERS))
        with Load([port], pay_around) as load:
            load.moves_on(100)
            server.kill()
            until(lambda: not any(map(is_alive, workers)), 20)
            server.start()
            assert server.port == port
            load.moves_on(100)
    check_told(read_book(tmp_path / "book"), load.told)


def test_a_signal_ends_all_under_load(tmp_path):
    """What was acknowledged is there, every connection got an end, nothing is left behind."""
    with serving(tmp_path / "book", "--workers", "2") as server:
        workers = children(server)
        with Client([server.port]) as client:
            fund(client, range(USERS))
        load = Load([server.port], pay_around)
        load.moves_on(100)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert not any(map(is_alive, workers))
        server.start()
        load.moves_on(20)
        load.stop()
    check_told(read_book(tmp_path / "book"), load.told)
    assert "Traceback" not in server.log.read_text()


def test_commands_of_two_workers_meet(tmp_path):
    """One last cent, and one key, asked for through every worker at once."""
    with serving(tmp_path / "book", "--workers", "2") as server, ThreadPoolExecutor(8) as pool:
        ask = ask_afresh(server.port)
        with Client([server.port]) as client:
            fund(client, ["poor", "shop"], "0")
            for number in range(20):
                body = transfer("world:USD", "user:poor:USD")
                assert client.post("/v1/transfers", body).status == 201
                spend = transfer("user:poor:USD", "user:shop:USD")
                keys = [f"{number}.{place // 2}" for place in range(8)]
                told = list(pool.map(partial(ask, "POST", "/v1/transfers", spend), keys))
                done = [answer for answer in told if answer.status == 201]
                assert {answer.status for answer in told} == {201, 409}
                assert len({answer.json["sequence"] for answer in done}) == 1
                assert sum(not answer.is_replayed for answer in done) == 1
            assert client.get("/v1/accounts/user:shop:USD")["posted"] == "20"


# ── who cannot begin ──────────────────────────────────────────────────────────────


def run(*words):
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-m", "pennyweight", "serve", *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={k: v for k, v in os.environ.items() if not k.startswith("PENNYWEIGHT_")},
    )
    assert time.monotonic() - began < 30
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


def test_a_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = run("--workers", "2", "--data", str(tmp_path / "book"), "--port", str(port))
    assert ran.returncode != 0
    assert f"cannot listen on 127.0.0.1:{port}: in use" in ran.stderr
    assert not (tmp_path / "book").exists()


def test_a_port_and_a_book_of_another_crew(tmp_path):
    """Workers share a port among themselves, never with those of another book."""
    with serving(tmp_path / "book", "--workers", "2") as server:
        ran = run("--workers", "2", "--data", str(tmp_path / "other"), "--port", str(server.port))
        assert ran.returncode != 0
        assert "in use" in ran.stderr
        ran = run("--workers", "2", "--data", str(tmp_path / "book"), "--port", "0")
        assert ran.returncode != 0
        assert f"in use by pid {server.process.pid}" in ran.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--workers", "2", "--host", "0.0.0.0"), "which needs API keys"),
        (("--workers", "2", "--wallet-public-key", "/nowhere.pem"), "wallet.public_key"),
        (("--workers", "2", "--wallet-dialect", "klingon"), "wallet"),
        (("--workers", "0"), "server.workers is 0"),
        (("--workers", "65"), "server.workers is 65"),
    ],
)
def test_what_no_worker_can_serve(tmp_path, words, why):
    """Said once, by the parent, with the exit code of any other mistake."""
    ran = run("--data", str(tmp_path / "book"), "--port", "0", *words)
    assert ran.returncode == 2, ran
    assert why in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1, ran.stderr

"""A PostgreSQL of our own: it starts, keeps its data, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from pennyweight.simulators import postgres
from pennyweight.simulators.postgres import PostgresMissing, PostgresServer, binaries

pytestmark = pytest.mark.skipif(binaries() is None, reason="not here: PostgreSQL's binaries")
VERSIONS = [
    pytest.param(
        version, marks=pytest.mark.skipif(not binaries(version), reason=f"not here: {version}")
    )
    for version in ("18", "16", "15")
]


@pytest.fixture(scope="module")
def server():
    with PostgresServer(is_synced=False) as running:
        yield running


@pytest.fixture
def running(server):
    yield server
    server.thaw()
    server.start()


def answer(server: PostgresServer, statement: str = "select 1") -> object:
    with psycopg.connect(server.url, connect_timeout=5, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchone()[0] if cursor.description else None


def is_gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def eventually(is_so, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        time.sleep(0.02)
    return is_so()


@pytest.mark.parametrize("version", VERSIONS)
def test_server_answers_and_is_gone_afterwards(version):
    with PostgresServer(version, is_synced=False) as server:
        assert server.version == version
        assert answer(server, "show server_version").startswith(f"{version}.")
        pids, home = server.pids, server.data.parent
        assert len(pids) > 3
    assert all(map(is_gone, pids))
    assert not home.exists()


def test_version_that_is_not_installed_is_missing():
    assert binaries("9") is None
    with pytest.raises(PostgresMissing, match="not here: PostgreSQL 9 "):
        PostgresServer("9")


@pytest.mark.parametrize(("is_synced", "said"), [(True, "on"), (False, "off")])
def test_settings_are_the_servers(is_synced, said):
    with PostgresServer(is_synced=is_synced, settings={"max_connections": "12"}) as server:
        assert answer(server, "show fsync") == said
        assert answer(server, "show max_connections") == "12"


@pytest.mark.parametrize("end", ["fast", "immediate", "kill"])
def test_stopped_server_starts_on_its_port_with_its_data(running, end):
    answer(running, f"create table kept_{end} as select 7 as seven")
    url, pids = running.url, running.pids
    running.kill() if end == "kill" else running.stop(end)
    assert running.pids == []
    assert all(map(is_gone, pids))
    with pytest.raises(psycopg.OperationalError, match="refused"):
        answer(running)
    running.start()
    assert running.url == url
    assert answer(running, f"select seven from kept_{end}") == 7


def test_stopping_and_starting_twice_is_once(running):
    running.start()
    running.stop()
    running.stop()
    running.kill()
    running.start()
    assert answer(running) == 1


def test_frozen_server_answers_when_thawed(running):
    with psycopg.connect(running.url, autocommit=True) as connection:
        running.freeze()
        states = [Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] for pid in running.pids]
        assert len(states) > 4
        assert set(states) == {"T"}
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(running.url, connect_timeout=2)
        running.thaw()
        assert connection.execute("select 1").fetchone() == (1,)


def test_frozen_server_can_be_stopped(running):
    running.freeze()
    running.stop()
    assert running.pids == []


OWNER = """
import sys, time
from pennyweight.simulators.postgres import PostgresServer
server = PostgresServer(is_synced=False)
print(server.data.parent, server.port, *server.pids, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("is_frozen", [False, True])
def test_killed_owner_leaves_no_process_and_no_folder(is_frozen):
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE)
    home, _, *pids = owner.stdout.readline().decode().split()
    assert len(pids) > 3
    if is_frozen:
        os.kill(int(pids[0]), signal.SIGSTOP)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert eventually(lambda: all(is_gone(int(pid)) for pid in pids))
    assert eventually(lambda: not Path(home).exists())


@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="not here: /proc/sysvipc")
def test_killed_servers_shared_memory_is_given_back():
    segments = Path("/proc/sysvipc/shm")
    with PostgresServer(is_synced=False) as server:
        segment = (server.data / "postmaster.pid").read_text().splitlines()[6].split()[1]
        assert segment in segments.read_text().split()
        server.kill()
        assert segment in segments.read_text().split()
    assert segment not in segments.read_text().split()


def test_taken_port_is_not_the_end(monkeypatch, server):
    ports = iter([server.port, server.port])
    usual = postgres._free_port
    monkeypatch.setattr(postgres, "_free_port", lambda: next(ports, None) or usual())
    with PostgresServer(is_synced=False) as other:
        assert other.port != server.port
        assert answer(other) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="not here: root, whose folders nobody can enter")
def test_installation_that_only_root_reaches_is_copied(monkeypatch):
    usual = postgres._is_open
    monkeypatch.setattr(postgres, "_is_open", lambda path: path != binaries() and usual(path))
    with PostgresServer(is_synced=False) as server:
        assert answer(server) == 1
        assert Path(f"/proc/{server.pids[0]}/exe").readlink().is_relative_to(server.data.parent)


@pytest.mark.parametrize("folder", ["closed", "long" * 20])
def test_unfit_temporary_folder_is_not_taken(monkeypatch, tmp_path, folder):
    (tmp_path / folder).mkdir(mode=0o700)
    monkeypatch.setattr(postgres.tempfile, "gettempdir", lambda: str(tmp_path / folder))
    with PostgresServer(is_synced=False) as server:
        assert answer(server) == 1


def test_server_that_cannot_start_says_why():
    with pytest.raises(postgres.PostgresFailed, match="nonsense"):
        PostgresServer(settings={"nonsense": "1"})

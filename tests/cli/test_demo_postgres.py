"""`pennyweight demo --postgres`: three instances; one is killed, the others go on with the book."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pennyweight.simulators.postgres import binaries

pytestmark = [
    pytest.mark.skipif(binaries() is None, reason="not here: PostgreSQL's binaries"),
    pytest.mark.skipif(shutil.which("curl") is None, reason="not here: curl"),
]

DEMO = (sys.executable, "-m", "pennyweight", "demo", "--postgres", "--users", "30")


def curl(line):
    words = shlex.split(line)
    ran = subprocess.run(
        ["curl", "-sS", "--fail-with-body", *words[1:]], check=False, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return msgspec.json.decode(ran.stdout)


def start(*words):
    return subprocess.Popen(
        [*DEMO, *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_until(process, text):
    seen = []
    while not seen or not re.search(text, seen[-1]):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        seen.append(line)
    return "".join(seen)


def is_free(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(port))) != 0


def commands(welcome, program):
    return [line.strip() for line in welcome.splitlines() if line.strip().startswith(program)]


def test_killed_owner_is_followed_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start("--rate", 50, "--port", 0)
    again = None
    try:
        welcome = read_until(process, "Ctrl-C stops")
        rows = re.findall(r"instance (\d) +http://127.0.0.1:(\d+) +process (\d+)(.*)", welcome)
        assert [row[0] for row in rows] == ["1", "2", "3"]
        owners = [row for row in rows if "owns the book" in row[3]]
        assert len(owners) == 1
        asked = commands(welcome, "curl")
        assert len(asked) == 9
        assert curl(asked[0])["Amount"] == "1000"

        assert commands(welcome, "kill") == [f"kill -9 {owners[0][2]}"]
        os.kill(int(owners[0][2]), signal.SIGKILL)
        read_until(process, f"instance {owners[0][0]} is gone")
        followed = read_until(process, r"instance \d owns the book")
        assert f"instance {owners[0][0]} owns" not in followed
        assert curl(asked[1])["Amount"] == "12.5"
        assert [curl(asked[0])["Amount"] for _ in rows] == ["987.5"] * 3  # each instance in turn
        counted = read_until(process, "requests")
        read_until(process, r"[1-9]\d* active")  # prices have reached the new owner
        assert [row["quantity"] for row in curl(asked[8])["best"]] in ([], [1, 10, 50, 100])

        words = shlex.split(commands(welcome, "pennyweight serve")[0])
        told = dict(re.findall(r"^  ([A-Z_]+)=(\S+) \\$", welcome, re.MULTILINE))
        assert told.keys() >= {"MOS_ESPA_URL", "BLACK_SPIRE_URL"}
        again = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **told},
        )
        assert again.stdout.readline().decode().strip() == f"ready http://127.0.0.1:{words[-1]}"
        assert words[-1] == owners[0][1]
        assert curl(f"curl http://127.0.0.1:{words[-1]}/account/1")["Amount"] == "987.5"
        again.terminate()
        again.communicate(timeout=60)

        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        for each in filter(None, (process, again)):
            each.kill()
            each.communicate()
    assert (process.returncode, err) == (0, "")
    assert "all as the rules say" in out
    done = [int(n) for n in re.findall(r"(\d+) done", counted + out)]
    assert done[-1] > done[0] > 0
    assert "unknown" not in out
    address = re.search(r"pennyweight is at http://127.0.0.1:(\d+)", welcome)[1]
    database = re.search(r"postgres@127.0.0.1:(\d+)", welcome)[1]
    assert all(is_free(port) for port in (address, database, *(row[1] for row in rows)))
    assert not any(Path(f"/proc/{row[2]}").exists() for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_demo_on_postgres_keeps_no_folder(tmp_path):
    process = start("--data", tmp_path / "book")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--data or --postgres" in err
    assert not (tmp_path / "book").exists()


def test_demo_with_a_taken_port_says_so():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--port", taken.getsockname()[1])
        _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "the balancer did not start" in err

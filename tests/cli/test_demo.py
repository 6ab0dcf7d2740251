"""`pennyweight demo`: starts, its curl lines work as printed, and Ctrl-C stops it in order."""

import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys

import msgspec
import pytest

from pennyweight.simulators.server import verify
from waiting import wait_for

DEMO = (sys.executable, "-m", "pennyweight", "demo", "--users", "30")


def curl(line):
    words = shlex.split(line)
    assert words[0] == "curl"
    ran = subprocess.run(
        ["curl", "-sS", "--fail-with-body", *words[1:]], check=False, capture_output=True
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    return msgspec.json.decode(ran.stdout)


def start(*words, port=0):
    return subprocess.Popen(
        [*DEMO, "--port", str(port), *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_until(process, text):
    seen = []
    while not re.search(text, seen[-1] if seen else ""):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        seen.append(line)
    return "".join(seen)


def test_demo_is_alive_until_stopped(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("not here: curl")
    process = start("--data", tmp_path / "book", "--rate", 100)
    try:
        welcome = read_until(process, "Ctrl-C stops")
        lines = [line.strip() for line in welcome.splitlines() if line.strip().startswith("curl")]
        assert len(lines) == 9
        assert curl(lines[0])["Amount"] == "1000"
        assert curl(lines[1])["Amount"] == "12.5"
        assert curl(lines[0])["Amount"] == "987.5"
        assert curl(lines[2])["data"]
        withdrawn = curl(lines[3])
        assert withdrawn["status"] == "SUFFICIENT_BALANCE"
        token = re.search(r'"token": "(\w+)"', lines[3])[1]
        assert token in curl(lines[4])["balances"]
        read_until(process, r"[1-9]\d* transactions proposed")
        assert curl(lines[5])["drift"]
        assert "transactions" in curl(lines[6])
        assert curl(lines[8]).keys() >= {"markets", "best", "is_deviating"}
        wait_for(lambda: curl(lines[7])["loans"])
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "all as the rules say" in out
    assert re.search(r" [1-9]\d* done.* [1-9]\d* transactions proposed", out)
    loans = re.search(r"loans: \d+ new, (.* liquidated)", out)[1]
    assert sum(map(int, re.findall(r"\d+", loans))) > 0
    assert re.search(r"carried out \d+ orders; the book has the same ones", out)
    address = re.search(r"http://127.0.0.1:(\d+)", welcome)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address[1]))) != 0
    assert verify(tmp_path / "book").ok


def test_demo_goes_on_with_the_book_of_an_earlier_one(tmp_path):
    for seconds in (0.1, 1):
        process = start("--data", tmp_path / "book", "--seconds", seconds, "--rate", 200)
        out, err = process.communicate(timeout=90)
        assert (process.returncode, err) == (0, "")
    assert "0 users loaded, 30 were loaded before" in out
    counted = re.search(r"(\d+) requests, (\d+) done, (\d+) refused, (\d+) replayed", out)
    assert all(int(number) > 0 for number in counted.groups())


def test_demo_told_to_stop_removes_its_temporary_book(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = start()
    out = read_until(process, "Ctrl-C stops")
    process.send_signal(signal.SIGTERM)
    rest, err = process.communicate(timeout=90)
    assert "all as the rules say" in rest
    assert (process.returncode, err) == (0, "")
    assert str(tmp_path) in out
    assert list(tmp_path.iterdir()) == []


def test_demo_without_the_client_of_venues_plays_without_loans(tmp_path, monkeypatch):
    (tmp_path / "aiohttp.py").write_text("raise ImportError\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process = start("--data", tmp_path / "book", "--seconds", 1)
    out, err = process.communicate(timeout=90)
    assert (process.returncode, err) == (0, "")
    assert "no loans in this demo: trading posts need the extra `venues`" in out
    assert "/loans" not in out
    assert "loans:" not in out
    assert "all as the rules say" in out


def test_demo_of_loans_keeps_no_folder(tmp_path):
    for words, told in (
        (["--data", tmp_path / "book"], "--data or --loans"),
        (["--postgres"], "--loans or --postgres"),
    ):
        process = start("--loans", *words)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert told in err
    assert not (tmp_path / "book").exists()


def test_demo_with_a_taken_port_says_so(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--data", tmp_path / "book", port=taken.getsockname()[1])
        _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "did not start" in err

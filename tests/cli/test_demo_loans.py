"""`pennyweight demo --loans`: prices and notices through MiniStack; the owner is killed meanwhile."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ministack import MiniStackMissing, program
from pennyweight.simulators.postgres import binaries

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(binaries() is None, reason="not here: PostgreSQL's binaries"),
]

DEMO = (sys.executable, "-m", "pennyweight", "demo", "--loans", "--users", "30", "--port", "0")
NOTICE = r"notice: loan \S+ is liquidated, \d+\.\d+ BESKAR sold for \d+\.\d+ GC"


def read_until(process, text):
    seen = []
    while not seen or not re.search(text, seen[-1]):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        seen.append(line)
    return "".join(seen)


@pytest.fixture(autouse=True)
def fetched():
    try:
        program()
    except MiniStackMissing as missing:
        pytest.skip(f"not here: {missing}")


def test_loans_are_liquidated_and_told_of_across_the_fall_of_the_owner(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    process = subprocess.Popen(
        DEMO,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        welcome = read_until(process, "Ctrl-C stops")
        rows = re.findall(r"instance (\d) +http://127.0.0.1:\d+ +process (\d+)(.*)", welcome)
        assert [row[0] for row in rows] == ["1", "2"]
        assert re.search(r"^  AWS_ENDPOINT_URL=http://127.0.0.1:\d+ \\$", welcome, re.MULTILINE)
        seen = read_until(process, NOTICE)
        owner = next(row for row in rows if "owns the book" in row[2])
        os.kill(int(owner[1]), signal.SIGKILL)
        seen += read_until(process, r"instance \d owns the book")
        assert f"instance {owner[0]} owns" not in seen
        seen += read_until(process, "requests")
        seen += read_until(process, NOTICE)
        process.send_signal(signal.SIGINT)
        out, err = process.stdout.read(), process.stderr.read()  # with what is buffered already
        process.wait(120)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "all as the rules say" in out
    assert "the book has the same ones" in out
    ended = re.findall(r"(\d+) liquidating, (\d+) liquidated", out)[-1]
    assert ended[0] == "0"
    assert f"branches were told of {ended[1]} liquidations" in out
    told = re.findall(r"notice: loan (\S+)", seen + out)
    assert len(set(told)) == len(told) == int(ended[1])
    assert not any(Path(f"/proc/{row[1]}").exists() for row in rows)
    assert list(tmp_path.iterdir()) == []

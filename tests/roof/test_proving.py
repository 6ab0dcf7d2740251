"""A served book is proven in a process of its own."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from pennyweight import proving
from pennyweight.assemble import open_inline
from pennyweight.config import Config
from pennyweight.products.general import LoadBalances


def test_proof_apart_finds_what_a_verification_finds(tmp_path: Path):
    with open_inline(tmp_path, Config()) as book:
        for user in range(5):
            book.execute(LoadBalances(str(user), (("BTC", "1"),)))
        heard: list[tuple[int, int]] = []
        report = proving.prove(
            tmp_path, "main", lambda done, entries: heard.append((done, entries))
        )
        here: list[proving.Step] = []
        assert proving.main(tmp_path, "main", here.append) == 0
    assert report.ok
    assert report == here[-1].report
    assert heard[-1] == (report.entries, report.entries)


def test_proof_apart_says_why_there_is_none(tmp_path: Path):
    with pytest.raises(proving.ProofFailed, match="there is no book"):
        proving.prove(tmp_path / "nowhere", "main", lambda *_: None)
    here: list[proving.Step] = []
    assert proving.main(tmp_path / "nowhere", "main", here.append) == 1
    assert "there is no book" in here[-1].error


def test_proof_ends_quietly_with_the_server_that_asked_for_it(tmp_path: Path):
    with open_inline(tmp_path, Config()) as book:
        book.execute(LoadBalances("1", (("BTC", "1"),)))
    command = [sys.executable, "-m", "pennyweight.proving"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.write(msgspec.json.encode(proving.Question(str(tmp_path), is_url=False)))
        process.stdin.close()
        process.stdin = None
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 1

"""`pennyweight bench`: short runs of every scenario, with their servers and workers."""

import tempfile

import msgspec
import pytest

from pennyweight.simulators import benchplace
from pennyweight.simulators.server import Server, Verdict

SHORT = ("--seconds", 0.3, "--warm-up", 0.1, "--users", 20)
CONTRACT = {
    "requests_per_second",
    "p50_ms",
    "p99_ms",
    "p999_ms",
    "errors",
    "mean_batch",
    "fdatasync_p50_us",
    "rss_mb",
    "verified",
}


def figures(ran):
    assert ran.code == 0, ran.err
    document = ran.json
    assert document.keys() >= CONTRACT
    assert document["verified"] is True
    assert document["errors"] == 0
    assert document["rows"]
    assert 0 <= document["p50_ms"] <= document["p99_ms"] <= document["p999_ms"]
    return document


@pytest.mark.parametrize(
    ("scenario", "more"),
    [
        ("transfers", ("--keys", "ordered", "--skew", "zipf:1")),
        ("payments", ("--skew", "hot")),
        ("bets", ("--rate", 100)),
    ],
)
def test_bench_of_a_server(cli, scenario, more, tmp_path):
    words = ("--connections", 4, "--directory", tmp_path, "--json", "-")
    document = figures(cli("bench", scenario, *SHORT, *words, *more))
    assert document["fdatasync_p50_us"] > 0
    assert document["mean_batch"] >= 1
    assert document["bytes_per_transfer"] > 0
    if "--rate" in more:
        assert document["requests_per_second"] <= 110
    assert list(tmp_path.iterdir()) == []  # the temporary book is gone


def test_bench_on_a_filled_book(cli):
    filled = ("--preload-accounts", 50, "--preload-keys", 1_500, "--connections", 2)
    document = figures(
        cli("bench", "transfers", *SHORT, *filled, "--skew", "zipf:1", "--json", "-")
    )
    assert document["setting"]["preload_keys"] == 1_500


def test_bench_in_process(cli):
    words = ("bench", "in-process", "--seconds", 0.2, "--users", 20, "--keys", "both")
    document = figures(cli(*words, "--batch", 100, 1, "--json", "-"))
    assert [row["case"] for row in document["rows"]] == [
        "batches of 100, random keys",
        "batches of 1, random keys",
        "batches of 100, ordered keys",
        "batches of 1, ordered keys",
    ]


def test_bench_facade_twice(cli):
    words = ("bench", "facade", "--seconds", 0.2, "--users", 20, "--runs", 2, "--json", "-")
    document = figures(cli(*words))
    assert document["requests_per_second"] == max(document["runs"])
    assert document["variation_percent"] >= 0
    assert [row["case"] for row in document["rows"]] == ["one caller", "8 threads"]
    assert document["fdatasync_p50_us"] is None


def test_bench_of_a_running_server(cli, tmp_path):
    with Server(tmp_path / "book") as server:
        ran = cli(
            "bench",
            "transfers",
            *SHORT,
            "--connections",
            2,
            "--address",
            server.address,
            "--json",
            "-",
        )
        figures(ran)


def test_bench_of_a_book_that_is_wrong_fails(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(benchplace, "verify", lambda *_: Verdict(ok=False, first_wrong=7))
    file = tmp_path / "figures.json"
    words = ("bench", "in-process", "--seconds", 0.1, "--users", 2, "--batch", 10)
    ran = cli(*words, "--json", file)
    assert ran.code == 1
    assert "verified" in ran.out
    assert "first wrong: 7" in ran.out
    assert msgspec.json.decode(file.read_bytes())["verified"] is False


@pytest.mark.parametrize(
    "words",
    [
        ("transfers", "--skew", "cold"),
        ("transfers", "--keys", "both"),
        ("transfers", "--users", 1),
        ("transfers", "--rate", 0),
        ("transfers", "--preload-keys", 5),
        ("bets", "--preload-accounts", 2_000),
        ("transfers", "--address", "ftp://x"),
        ("cakes",),
    ],
)
def test_bench_refuses_a_setting_without_sense(cli, words):
    ran = cli("bench", *words)
    assert ran.code == 2
    assert ran.err.startswith("pennyweight: ")


def test_bench_without_a_server_says_so(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ran = cli("bench", "transfers", "--address", "http://127.0.0.1:9", *SHORT)
    assert ran.code == 1
    assert "refused" in ran.err.lower()
    assert list(tmp_path.iterdir()) == []

"""`pennyweight bench withdrawals` and `bench settlements`: short runs, verified."""

import pytest

from pennyweight.simulators import deskbench
from pennyweight.simulators.server import Server
from pennyweight.simulators.stand import Stand

SHORT = ("--seconds", 0.4, "--warm-up", 0.1, "--connections", 4, "--users", 160, "--json", "-")


def figures(ran):
    assert ran.code == 0, ran.err
    document = ran.json
    assert document["verified"] is True
    assert document["errors"] == 0
    assert document["rows"][0]["requests"] > 0
    return document


def test_bench_withdrawals_settled_over_http(cli, tmp_path):
    words = ("--skew", "zipf:1.0", "--users-in-memory", 130, "--directory", tmp_path)
    document = figures(cli("bench", "withdrawals", *SHORT, *words))
    assert 0 < document["cache_hit_ratio"] < 1
    assert document["mean_batch"] >= 1
    everything, alone = document["rows"]
    assert 0.4 < alone["requests"] / everything["requests"] < 0.6
    assert list(tmp_path.iterdir()) == []


def test_bench_withdrawals_that_do_not_end(cli):
    document = figures(cli("bench", "withdrawals", *SHORT, "--settle", "none", "--rate", 100))
    (row,) = document["rows"]
    assert row["requests_per_second"] <= 110


def test_bench_withdrawals_settled_from_kafka(cli):
    words = ("--settle", "kafka", "--settle-rate", 200)
    withdrawals, settled = figures(cli("bench", "withdrawals", *SHORT, *words))["rows"]
    assert withdrawals["sent"] == settled["sent"] > 50


def test_bench_withdrawals_in_process(cli):
    words = ("--in-process", "--batch", 20, 2, "--seconds", 0.2, "--users", 160, "--json", "-")
    document = figures(cli("bench", "withdrawals", *words))
    assert [row["case"] for row in document["rows"]] == [
        "batches of 20, withdrawals and settlements",
        "batches of 2, withdrawals and settlements",
    ]


def test_bench_settlements_in_process(cli):
    words = ("--in-process", "--messages", 300, "--batch", 64, "--users", 400, "--json", "-")
    document = figures(cli("bench", "settlements", *words))
    assert [row["requests"] for row in document["rows"]] == [300] * 4


@pytest.mark.heavy
def test_bench_settlements_from_kafka(cli):
    words = ("--messages", 500, "--users", 400, "--json", "-")
    document = figures(cli("bench", "settlements", *words))
    assert [row["case"].partition(",")[0] for row in document["rows"]] == [
        "cold users",
        "cold users",
        "warm users",
        "warm users",
    ]


def test_bench_withdrawals_of_a_running_server(cli, tmp_path):
    users = tmp_path / "users.csv"
    assert cli("simulate", "users", "--count", 160, "--output", users).code == 0
    assert cli("load", users, "--data", tmp_path / "book").code == 0
    with Server(tmp_path / "book") as server:
        ran = cli("bench", "withdrawals", *SHORT, "--address", server.address)
    assert figures(ran)["cache_hit_ratio"] > 0


def test_bench_of_settlements_that_are_not_booked_says_so(cli, monkeypatch):
    monkeypatch.setattr(deskbench, "_WAIT_SECONDS_MAX", 0.0)
    monkeypatch.setattr(deskbench, "_serve", lambda _, book, folder, __: Stand(book, folder))
    ran = cli("bench", "settlements", "--messages", 10, "--users", 160)
    assert ran.code == 1
    assert "the engine reads the topic" in ran.err


@pytest.mark.parametrize(
    "words",
    [
        ("withdrawals", "--skew", "cold"),
        ("withdrawals", "--settle-rate", 0),
        ("withdrawals", "--settle", "kafka", "--address", "127.0.0.1:1"),
        ("settlements", "--messages", 0),
    ],
)
def test_bench_of_the_desk_refuses_a_setting_without_sense(cli, words):
    ran = cli("bench", *words)
    assert ran.code == 2
    assert ran.err.startswith("pennyweight: ")

"""`pennyweight bench` on a database: books of its own, several servers, what goes over the line."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pennyweight.simulators.server import Server

Cli = Callable[..., Any]

SHORT = ("--seconds", 0.5, "--warm-up", 0.1, "--connections", 4)
BY_KAFKA = ("--seconds", 1.5, "--settle", "kafka", "--settle-rate", 200)


@pytest.fixture
def filled(database: str, users: Path, cli: Cli) -> str:
    """A database with a book that no benchmark may touch."""
    assert cli("load", users, "--store", database).code == 0
    return database


def books(url: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT book FROM pennyweight.heads").fetchall()


def figures(ran: Any) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    assert (ran.json["verified"], ran.json["errors"]) == (True, 0)
    assert ran.json["durability"] == "as the database has it"
    assert "postgresql://" not in ran.out
    found: dict[str, Any] = ran.json
    return found


@pytest.mark.parametrize(
    "words",
    [
        ("transfers", "--preload-accounts", 30, "--preload-keys", 10),
        ("transfers", "--skew", "hot"),
        ("payments", "--workers", 2),
        pytest.param(("bets",), marks=pytest.mark.heavy),
    ],
    ids=lambda words: " ".join(map(str, words[:2])),
)
def test_a_served_book_of_its_own(filled: str, cli: Cli, words: tuple[Any, ...]) -> None:
    short = (*SHORT, "--users", 20, "--json", "-")
    document = figures(cli("bench", *words, "--store", filled, *short))
    assert 1 <= document["rows"][0]["round_trips"] <= 4
    assert document["rows"][0]["sent_bytes"] > 100
    assert document["commit_p50_us"] > 20
    assert (document["p50_commits"], document["fdatasync_p50_us"]) == (None, None)
    assert document["owners"] == [1]
    assert books(filled) == [("main",)]


def test_one_connection_is_compared_with_a_commit(database: str, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    words = ("--store", database, "--users", 4, *SHORT[:-1], 1)
    ran = cli("bench", "transfers", *words, "--json", file)
    assert ran.code == 0, ran.err
    for said in (" µs for one row on one connection", " of these", "round trips a batch"):
        assert said in ran.out
    assert "owner of the book" not in ran.out
    assert b'"p50_commits": null' not in file.read_bytes()


def test_instances_share_the_load(database: str, cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    words = ("--store", database, "--users", 20, "--instances", 3, *SHORT)
    ran = cli("bench", "transfers", *words, "--json", file)
    assert ran.code == 0, ran.err
    assert "of 3" in ran.out.partition("owner of the book")[2].splitlines()[0]
    assert "fronts' CPU per command" in ran.out
    assert books(database) == []


def test_instances_that_run_already(database: str, cli: Cli, tmp_path: Path) -> None:
    with ExitStack() as stack:
        addresses = [
            stack.enter_context(Server(database, log=tmp_path / f"log-{number}")).address
            for number in range(2)
        ]
        short = (*SHORT, "--users", 20, "--json", "-")
        ran = cli("bench", "transfers", "--address", *addresses, *short)
    assert ran.code == 0, ran.err
    assert (ran.json["verified"], ran.json["errors"]) == (True, 0)
    assert ran.json["owners"] in ([1], [2])
    assert ran.json["rows"][0]["round_trips"] >= 1


def test_batches_in_process(database: str, cli: Cli) -> None:
    words = ("--store", database, "--seconds", 0.3, "--users", 20, "--batch", 64)
    document = figures(cli("bench", "in-process", *words, "--json", "-"))
    (row,) = document["rows"]
    assert 1 <= row["round_trips"] <= 4
    assert row["sent_bytes"] > 100
    assert document["commit_p50_us"] > 20


@pytest.mark.parametrize(
    "words",
    [
        ("withdrawals", *SHORT, "--users-in-memory", 130),
        pytest.param(("withdrawals", *SHORT[2:], *BY_KAFKA), marks=pytest.mark.heavy),
        ("withdrawals", "--in-process", "--batch", 20, "--seconds", 0.2),
        ("settlements", "--in-process", "--batch", 64, "--messages", 200),
        pytest.param(("settlements", "--messages", 300), marks=pytest.mark.heavy),
    ],
    ids=lambda words: " ".join(map(str, (words[0], *words[-2:]))),
)
def test_the_desk(filled: str, cli: Cli, words: tuple[Any, ...]) -> None:
    document = figures(cli("bench", *words, "--users", 160, "--store", filled, "--json", "-"))
    assert document["rows"][0]["requests"] > 0
    assert document["rows"][0]["round_trips"] >= 1
    assert books(filled) == [("main",)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("facade", "--store", "postgresql://h/x"), "everything but facade"),
        (("transfers", "--store", "postgresql://h/x", "--address", "h:1"), "servers of our own"),
        (("withdrawals", "--store", "postgresql://h/x", "--address", "h:1"), "servers of our own"),
        (("transfers", "--store", "sqlite:x"), "sqlite:x is no database"),
        (("settlements", "--store", "x"), "this is no URL"),
        (("transfers", "--workers", 65), "1 to 64 workers"),
        (("in-process", "--workers", 2), "1 to 64 workers"),
        (("transfers", "--instances", 3), "instances"),
        (
            ("bets", "--instances", 3, "--connections", 2, "--store", "postgresql://h/x"),
            "a connection to each",
        ),
        (("bets", "--instances", 0, "--store", "postgresql://h/x"), "1 to 16 instances"),
        (("in-process", "--instances", 2, "--store", "postgresql://h/x"), "of transfers, payments"),
        (("transfers", "--address", "h:1", "h:2", "--instances", 2), "1 to 16 instances"),
    ],
)
def test_wrong_usage(cli: Cli, words: tuple[Any, ...], said: str) -> None:
    ran = cli("bench", *words)
    assert ran.code == 2
    assert said in ran.err


def test_a_database_that_is_not_there(cli: Cli) -> None:
    ran = cli("bench", "transfers", "--store", "postgresql://nobody@127.0.0.1:1/x")
    assert ran.code == 1
    assert ran.err.startswith("pennyweight: ")
    assert "Traceback" not in ran.err

"""`pennyweight verify` on a book in a file, whole and damaged."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from pennyweight.assemble import open_inline, open_store
from pennyweight.config import Config
from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.verification import verify
from pennyweight.products.general import PlaceHold, Transfer
from pennyweight.stores.sqlite import SQLiteStore
from random_books import random_book

Cli = Callable[..., Any]


@pytest.fixture
def paid(book: Path) -> Path:
    """Entries 1-9 register assets, 10-12 load users, 13 is a payment, 14 a hold."""
    with open_inline(book, Config()) as opened:
        opened.execute(Transfer("user:102:USD", "user:100:USD", "USD", "100"), key="pay")
        opened.execute(PlaceHold("user:102:USD", "USD", "1"))
    return book


def damage(book: Path, *statements: str) -> None:
    connection = apsw.Connection(str(book / "main.sqlite"))
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_verify_of_a_good_book(paid: Path, cli: Cli) -> None:
    ran = cli("verify", "--data", paid, "--json")
    assert ran.code == 0
    report = ran.json
    assert (report["ok"], report["sequence"], report["first_wrong"]) == (True, 14, None)
    assert re.fullmatch("[0-9a-f]{64}", report["chain_head"])
    assert re.fullmatch("[0-9a-f]{64}", report["state_digest"])
    ran = cli("verify", "--data", paid)
    assert ran.out.startswith("ok: 14 entries of book main")
    assert report["chain_head"] in ran.out


def test_verify_beside_a_writer(paid: Path, cli: Cli) -> None:
    with open_inline(paid, Config()):
        assert cli("verify", "--data", paid, "--json").json["ok"] is True


@pytest.mark.parametrize(
    ("statement", "sequence", "problem"),
    [
        (
            (
                'UPDATE entries SET body = CAST(replace(body, \'"amount":"100"\','
                ' \'"amount":"900"\') AS BLOB) WHERE sequence = 13'
            ),
            13,
            "the chain of its batch differs: it was changed after the commit",
        ),
        (
            (
                "UPDATE entries SET body = CAST(replace(body, '100000000000000000000',"
                " '900000000000000000000') AS BLOB) WHERE sequence = 13"
            ),
            13,
            "a statement line of user:102:USD says posted",
        ),
        ("UPDATE entries SET body = x'01' WHERE sequence = 13", 13, "it cannot be read"),
        ("DELETE FROM entries WHERE sequence = 13", 13, "it is missing"),
        ("DELETE FROM batches WHERE first_sequence = 13", 13, "no batch has the entries 13 to 13"),
        (
            (
                "UPDATE entries SET sequence = CASE sequence WHEN 11 THEN -12 ELSE -11 END"
                " WHERE sequence IN (11, 12);"
                " UPDATE entries SET sequence = -sequence WHERE sequence < 0"
            ),
            11,
            "its body says that it is entry 12",
        ),
        (
            "UPDATE batches SET chain = zeroblob(32) WHERE first_sequence = 13",
            13,
            "the chain of its batch differs",
        ),
        (
            (
                "UPDATE accounts SET posted = (SELECT posted FROM accounts WHERE id = 'user:102:USD')"
                " WHERE id = 'user:100:USD'"
            ),
            13,
            "account user:100:USD is stored with posted 3028390000000000000000",
        ),
        ("UPDATE accounts SET is_closed = 1 WHERE id = 'user:101:BTC'", 11, "is_closed True"),
        ("DELETE FROM accounts WHERE id = 'user:101:BTC'", 11, "user:101:BTC is not stored"),
        ("UPDATE holds SET owner = 'wallet'", 14, "its hold 1 is stored differently"),
        ("DELETE FROM holds", 14, "its hold 1 is not stored"),
        ("DELETE FROM records WHERE id = 'BTC'", 3, "its record asset BTC is not stored"),
        ("DELETE FROM names WHERE name = 'id:1'", 0, "records are not listed by the labels"),
        ("UPDATE head SET counters = '{}'", 0, "counter account is stored as 0"),
        ("UPDATE head SET sequence = 13", 13, "the head of the book is not its last batch"),
    ],
)
def test_damage_is_found_at_its_entry(
    paid: Path, cli: Cli, statement: str, sequence: int, problem: str
) -> None:
    damage(paid, statement)
    ran = cli("verify", "--data", paid, "--json")
    assert ran.code == 1
    assert ran.json["ok"] is False
    assert ran.json["first_wrong"]["sequence"] == sequence
    assert problem in ran.json["first_wrong"]["problem"]


def test_damage_is_told_to_a_reader(paid: Path, cli: Cli) -> None:
    damage(paid, "DELETE FROM entries WHERE sequence = 13")
    ran = cli("verify", "--data", paid)
    assert ran.code == 1
    assert ran.out.startswith("WRONG: ")
    assert "  entry 13: it is missing\n" in ran.out


def test_a_damaged_end_keeps_the_book_closed(paid: Path, users: Path, cli: Cli) -> None:
    damage(paid, "UPDATE entries SET body = x'01' WHERE sequence = 13")
    ran = cli("load", users, "--data", paid)
    assert ran.code == 1
    assert "an entry cannot be read (Input data was truncated); run verify" in ran.err


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE batches SET header = x'00' WHERE first_sequence = 13",
        "UPDATE head SET counters = '{bad'",
        "DELETE FROM head",
        "UPDATE records SET record = x'00'",
        "UPDATE accounts SET roots = x'c1'",
    ],
)
def test_unreadable_rows_are_told_in_one_line(paid: Path, cli: Cli, change: str) -> None:
    damage(paid, change)
    ran = cli("verify", "--data", paid)
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert "cannot be read" in ran.out + ran.err or "lost its head" in ran.err
    assert cli("verify", "--data", paid, "--json").json["ok"] is False


def test_verify_of_no_book(tmp_path: Path, cli: Cli) -> None:
    ran = cli("verify", "--data", tmp_path)
    assert (ran.code, ran.err) == (2, f"pennyweight: there is no book at {tmp_path}/main.sqlite\n")


def test_a_random_book_has_the_same_digest_in_a_file_and_in_memory(tmp_path: Path) -> None:
    store = SQLiteStore.open(tmp_path, "main", new_incarnation="second")
    answers = answers_of(known_commands())
    try:
        random_book(5, store=store, batches=30)
        on_disk = verify(store, answers=answers)
    finally:
        store.close()
    in_memory = verify(random_book(5, batches=30).store, answers=answers)
    assert on_disk.ok, on_disk.problems
    assert on_disk.state_digest == in_memory.state_digest
    assert on_disk.chain_head != in_memory.chain_head
    assert on_disk.sequence == in_memory.sequence
    opened = open_store(tmp_path)
    opened.close()


def test_progress_is_shown_to_who_is_watching(
    paid: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("verify", "--data", paid).err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    ran = cli("verify", "--data", paid)
    assert "verifying" in ran.err
    assert "14/14" in ran.err

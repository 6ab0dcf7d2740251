"""`copy`, `migrate`, `recover`: a book moves, gets a newer schema, begins a new life."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from pennyweight.assemble import open_inline, open_reader
from pennyweight.config import Config
from pennyweight.delivery.cli import copying
from pennyweight.engine.receipts import Receipt
from pennyweight.products.general import LoadBalances
from pennyweight.stores.sqlite import schema

Cli = Callable[..., Any]


def pay(folder: Path, user: str) -> None:
    with open_inline(folder, Config()) as book:
        assert isinstance(book.execute(LoadBalances(user, (("USD", "1"),))), Receipt)


def damage(folder: Path, change: str) -> None:
    connection = apsw.Connection(str(folder / "main.sqlite"))
    connection.execute(change)
    connection.close()


# ── copy ──────────────────────────────────────────────────────────────────────────


def test_a_copy_has_the_same_chain_and_state_and_another_life(
    book: Path, tmp_path: Path, cli: Cli
) -> None:
    copy = tmp_path / "copy"
    told = cli("copy", "--from", book, "--to", f"sqlite:{copy}", "--json").json
    here = cli("verify", "--data", book, "--json").json
    there = cli("verify", "--store", f"sqlite:{copy}", "--json").json
    for name in ("sequence", "chain_head", "state_digest"):
        assert told[name] == here[name] == there[name]
    assert there["ok"] is True
    assert told["entries_per_second"] > 0
    original, copied = open_reader(book), open_reader(copy)
    try:
        assert copied.head().incarnation == told["incarnation"] != original.head().incarnation
    finally:
        original.close()
        copied.close()
    pay(copy, "7")
    assert cli("verify", "--data", copy).code == 0


def test_a_copy_is_told_in_words(book: Path, tmp_path: Path, cli: Cli) -> None:
    ran = cli("copy", "--from", book, "--to", tmp_path / "copy")
    assert ran.code == 0
    line = (
        rf"\d+ entries copied to {tmp_path}/copy in \d+\.\d s, \d+ a second; both books are right"
    )
    assert re.match(line, ran.out)
    assert "chain head" in ran.out


def test_a_book_without_users_is_copied(tmp_path: Path, cli: Cli) -> None:
    with open_inline(tmp_path / "book", Config()):
        pass
    assert cli("copy", "--from", tmp_path / "book", "--to", tmp_path / "copy").code == 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--to", "{copy}"), 2, "--from"),
        (("--from", "{book}"), 2, "--to"),
        (("--from", "{book}", "--to", "{book}"), 1, "there is a book in {book} already"),
        (("--from", "{none}", "--to", "{copy}"), 2, "there is no book at {none}"),
        (("--from", "mysql://u:hush@h/x", "--to", "{copy}"), 2, "mysql://u:***@h/x: known are"),
        (("--from", "{book}", "--to", "{copy}", "--book", "eu"), 2, "a folder has one book, main"),
    ],
)
def test_wrong_usage_of_copy(
    book: Path, tmp_path: Path, cli: Cli, words: tuple[str, ...], code: int, said: str
) -> None:
    names = {"book": book, "copy": tmp_path / "copy", "none": tmp_path / "none"}
    ran = cli("copy", *(word.format(**names) for word in words))
    assert ran.code == code
    assert said.format(**names) in ran.err
    assert "hush" not in ran.err
    assert not (tmp_path / "copy" / "main.sqlite").exists()


def test_a_damaged_book_is_not_copied(book: Path, tmp_path: Path, cli: Cli) -> None:
    damage(book, "UPDATE entries SET body = CAST(replace(body, '2025', '2026') AS BLOB)")
    ran = cli("copy", "--from", book, "--to", tmp_path / "copy")
    assert ran.code == 1
    assert ran.err.startswith(f"pennyweight: {book}: ")
    assert ran.err.endswith("; nothing was copied\n")
    assert list((tmp_path / "copy").glob("*.sqlite")) == []


def test_an_original_whose_rows_are_wrong_is_not_left_behind_unnoticed(
    book: Path, tmp_path: Path, cli: Cli
) -> None:
    damage(book, "UPDATE accounts SET version = version + 1 WHERE id = 'user:101:USD'")
    ran = cli("copy", "--from", book, "--to", tmp_path / "copy")
    assert ran.code == 1
    assert "the original is wrong" in ran.err
    assert list((tmp_path / "copy").glob("*.sqlite")) == []


def test_what_is_committed_meanwhile_is_told(
    book: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy_and_pay(*arguments: Any, **options: Any) -> Any:
        head = copying_book(*arguments, **options)
        pay(book, "99")
        return head

    copying_book = copying.copy_book
    monkeypatch.setattr(copying, "copy_book", copy_and_pay)
    ran = cli("copy", "--from", book, "--to", tmp_path / "copy")
    assert ran.code == 0
    assert "the book went on meanwhile" in ran.err


# ── migrate ───────────────────────────────────────────────────────────────────────


def test_a_plan_shows_every_migration(book: Path, cli: Cli) -> None:
    ran = cli("migrate", "--data", book)
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "nothing is pending")
    shown = cli("migrate", "--store", f"sqlite:{book}", "--plan", "--json").json
    assert shown["pending"] == 0
    assert [one["state"] for one in shown["migrations"]] == ["applied"] * len(shown["migrations"])
    assert shown["migrations"][0] == {"number": 1, "name": "0001_book.sql", "state": "applied"}


def test_what_is_pending_is_planned_and_then_applied(
    book: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = schema.known_migrations()
    more = (len(known) + 1, "0999_more.sql", "sum", "CREATE TABLE more (one INTEGER) STRICT")
    monkeypatch.setattr(schema, "known_migrations", lambda: [*known, more])
    planned = cli("migrate", "--data", book, "--plan")
    assert planned.code == 1
    assert planned.out.splitlines()[-2:] == ["0999_more.sql  pending", "1 pending"]
    assert cli("migrate", "--data", book, "--json").json["pending"] == 1
    applied = cli("migrate", "--data", book, "--apply")
    assert applied.code == 0
    assert applied.out.splitlines()[-2:] == ["0999_more.sql  applied now", "nothing is pending"]
    assert cli("migrate", "--data", book, "--plan").code == 0


@pytest.mark.parametrize("words", [("--plan",), ("--apply",)], ids=["plan", "apply"])
def test_drift_and_newer_schemas_are_refused(book: Path, cli: Cli, words: tuple[str, ...]) -> None:
    damage(book, "UPDATE migrations SET checksum = 'other' WHERE number = 1")
    ran = cli("migrate", "--data", book, *words)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "0001_book.sql is not this version's" in ran.err


def test_a_newer_schema_is_refused(book: Path, cli: Cli) -> None:
    damage(book, "INSERT INTO migrations VALUES (999, '0999_later.sql', 'sum')")
    ran = cli("migrate", "--data", book)
    assert ran.code == 1
    assert "the book is newer: it has migration 0999_later.sql" in ran.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "{none}"), "there is no book at {none}"),
        (("--data", "{none}", "--apply"), "there is no book at {none}"),
        (("--data", "{book}", "--plan", "--apply"), "give --plan or --apply, not both"),
        (("--data", "{book}", "--grant", "money"), "--grant goes with --apply"),
        ((), "give --data FOLDER, or --store URL"),
    ],
)
def test_wrong_usage_of_migrate(
    book: Path, tmp_path: Path, cli: Cli, words: tuple[str, ...], said: str
) -> None:
    names = {"book": book, "none": tmp_path / "none"}
    ran = cli("migrate", *(word.format(**names) for word in words))
    assert ran.code == 2
    assert said.format(**names) in ran.err
    assert not (tmp_path / "none").exists()


def test_a_folder_has_no_roles(book: Path, cli: Cli) -> None:
    ran = cli("migrate", "--data", book, "--apply", "--grant", "money")
    assert (ran.code, ran.err) == (1, "pennyweight: a folder has no roles to grant anything to\n")


# ── recover ───────────────────────────────────────────────────────────────────────


def incarnation_of(folder: Path) -> str:
    store = open_reader(folder)
    try:
        return store.head().incarnation
    finally:
        store.close()


def test_recover_shows_where_the_book_stands_and_changes_nothing(book: Path, cli: Cli) -> None:
    before = incarnation_of(book)
    ran = cli("recover", "--data", book)
    assert ran.code == 1
    assert ran.err == "pennyweight: nothing was changed; --yes begins the new life\n"
    assert f"incarnation  {before}\n" in ran.out
    assert re.search(r"stands at    entry \d+, of \d{4}-\d\d-\d\d ", ran.out)
    assert incarnation_of(book) == before


def test_recover_begins_a_new_life(book: Path, cli: Cli) -> None:
    before = incarnation_of(book)
    told = cli("recover", "--data", book, "--yes", "--json").json
    assert told["incarnation_before"] == before
    assert incarnation_of(book) == told["incarnation"] != before
    pay(book, "77")
    assert cli("verify", "--data", book, "--json").json["ok"] is True


def test_recover_looks_at_the_last_batches(book: Path, cli: Cli) -> None:
    before = incarnation_of(book)
    damage(
        book, "UPDATE entries SET body = x'01' WHERE sequence = (SELECT max(sequence) FROM entries)"
    )
    ran = cli("recover", "--data", book, "--yes")
    assert ran.code == 1
    assert "run verify" in ran.err
    assert incarnation_of(book) == before


def test_recover_of_no_book_and_of_a_served_one(book: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli("recover", "--data", tmp_path / "none", "--yes").code == 2
    assert not (tmp_path / "none").exists()
    with open_inline(book, Config()):
        ran = cli("recover", "--data", book, "--yes")
    assert ran.code == 2
    assert "in use by pid" in ran.err

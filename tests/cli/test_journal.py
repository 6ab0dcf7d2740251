"""`pennyweight export` and `pennyweight import`: the same book again, or nothing."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from pennyweight.assemble import open_inline, open_store
from pennyweight.config import Config
from pennyweight.engine.port import Head
from pennyweight.engine.rebuild import Rebuilt, answers_of, known_commands
from pennyweight.engine.verification import verify
from pennyweight.ledger.entries import Entry
from pennyweight.products.general import Transfer
from pennyweight.runtime.copying import CopyFailed, export_lines, import_lines, read_first_line
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.sqlite import SQLiteStore
from random_books import Clock, random_book

Cli = Callable[..., Any]
ANSWERS = answers_of(known_commands())


def copy_of(lines: list[bytes], store: Any = None) -> Any:
    store = store or MemoryStore(Head(book="main", incarnation="third"))
    import_lines(read_first_line(lines[0]), lines[1:], store, "second", answers=ANSWERS)
    return store


@pytest.mark.parametrize("seed", range(6))
def test_a_copied_book_is_the_same_in_another_life(seed: int) -> None:
    book = random_book(seed)
    lines = list(export_lines(book.store))
    copied = copy_of(lines)
    assert verify(copied, answers=ANSWERS) == verify(book.store, answers=ANSWERS)
    assert copied.entries(0, 10_000) == book.store.entries(0, 10_000)
    assert copied.batches(0, 10_000) == book.store.batches(0, 10_000)
    for account in book.store.accounts(0, 1_000):
        until = book.store.head().committed_at
        assert copied.back_dated(account.id, until, 0) == book.store.back_dated(
            account.id, until, 0
        )
    assert copied.head().incarnation == "second"
    assert list(export_lines(copied))[1:] == lines[1:]


def test_a_copied_book_goes_on_in_its_new_life() -> None:
    book = random_book(1)
    copied = copy_of(list(export_lines(book.store)))
    clock = Clock()
    opened = InlineBook(open_engine(copied, now=clock()), copied, clock)
    opened.execute(Transfer("world:USD", "user:1:USD", "USD", "1"))
    header = copied.batch_at(sequence=copied.head().sequence)
    assert header is not None
    assert header.incarnation == "second"
    assert header.committed_at > book.store.head().committed_at
    assert verify(copied, answers=ANSWERS).ok
    assert verify(copy_of(list(export_lines(copied))), answers=ANSWERS).ok


def test_a_copy_into_a_file_is_the_same(tmp_path: Path) -> None:
    book = random_book(2, batches=20)
    store = copy_of(
        list(export_lines(book.store)), SQLiteStore.open(tmp_path, "main", new_incarnation="x")
    )
    try:
        assert verify(store, answers=ANSWERS) == verify(book.store, answers=ANSWERS)
        assert store.head().incarnation == "second"
        holds = [row for kind, row in book.store.rows() if kind == "hold"]
        assert [store.hold(hold.id) for hold in holds] == holds
        assert any(hold.reference for hold in holds)
    finally:
        store.close()


def test_an_empty_book_is_copied() -> None:
    lines = list(export_lines(MemoryStore(Head(book="main", incarnation="first"))))
    assert len(lines) == 1
    assert copy_of(lines).head().sequence == 0


@pytest.fixture(scope="module")
def lines() -> list[bytes]:
    return list(export_lines(random_book(3, batches=10).store))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda lines: [b"{}\n", *lines[1:]], "line 1: this is no export of a book"),
        (lambda lines: [b"", *lines[1:]], "line 1: this is no export of a book"),
        (
            lambda lines: [lines[0].replace(b'export":1', b'export":9'), *lines[1:]],
            "line 1: this is export version 9",
        ),
        (lambda lines: lines[:-1], "the file ends"),
        (lambda lines: lines[:1], "the file ends at entry 0 of"),
        (lambda lines: [*lines[:4], *lines[5:]], "this is not the line that must come here"),
        (lambda lines: [*lines[:4], b"rubbish\n", *lines[4:]], "line 5: this is not the line"),
        (
            lambda lines: [*lines[:3], lines[3].replace(b"RUB", b"RUX"), *lines[4:]],
            "the chain after entries 1 to 9 differs",
        ),
        (
            lambda lines: [*lines[:3], lines[3].replace(b'format":1', b'format":2'), *lines[4:]],
            "line 4: bodies of format 2 cannot be read",
        ),
        (lambda lines: [lines[0], lines[1].replace(b"main", b"other"), *lines[2:]], "of other"),
        (lambda lines: [lines[0], *lines[1:11], *lines[1:11]], "does not follow"),
        (
            lambda lines: [lines[0].replace(b'"chain":"', b'"chain":"00'), *lines[1:]],
            "the chain differs from the first line's",
        ),
    ],
)
def test_a_changed_export_is_refused(
    lines: list[bytes], change: Callable[[list[bytes]], list[bytes]], problem: str
) -> None:
    with pytest.raises(CopyFailed, match=problem.replace("(", r"\(")):
        copy_of(change(list(lines)))


class NoUsers:
    """A law that no account of a user keeps."""

    def entry(self, entry: Entry, book: Rebuilt) -> str | None:
        return "a user" if any(o.id.startswith("user:") for o in entry.openings) else None

    def end(self, book: Rebuilt) -> Iterable[tuple[int, str]]:
        return ()


def test_a_book_that_breaks_a_law_is_not_copied(lines: list[bytes]) -> None:
    store = MemoryStore(Head(book="main", incarnation="third"))
    with pytest.raises(CopyFailed, match="entry 10: a user"):
        import_lines(
            read_first_line(lines[0]),
            lines[1:],
            store,
            "x",
            answers=ANSWERS,
            invariants=[NoUsers()],
        )


def test_a_store_with_entries_takes_no_copy(lines: list[bytes]) -> None:
    with pytest.raises(CopyFailed, match="into an empty store only"):
        copy_of(lines, random_book(0, batches=1).store)


def test_a_broken_journal_is_not_exported() -> None:
    book = random_book(0, batches=3)
    book.store._bodies[4] = b"\x02"
    with pytest.raises(CopyFailed, match="entry 5 is missing or unreadable; run verify"):
        list(export_lines(book.store))


# ── by the command line ───────────────────────────────────────────────────────────


def test_export_and_import(book: Path, tmp_path: Path, cli: Cli) -> None:
    output = tmp_path / "book.jsonl"
    assert cli("export", "--data", book, "--output", output).code == 0
    ran = cli("import", output, "--data", tmp_path / "copy", "--json")
    assert ran.code == 0
    first = cli("verify", "--data", book, "--json").json
    second = cli("verify", "--data", tmp_path / "copy", "--json").json
    assert ran.json == {"sequence": 12, "chain_head": first["chain_head"]}
    assert {**second, "seconds": 0} == {**first, "seconds": 0}
    with open_inline(tmp_path / "copy", Config()) as opened:
        assert opened.store.head().incarnation != first
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["lock", "main.sqlite"]


def test_export_writes_over_nothing(book: Path, tmp_path: Path, cli: Cli) -> None:
    before = (book / "main.sqlite").read_bytes()
    for output in (book / "main.sqlite", book / "new.jsonl", book / ".." / book.name / "x"):
        for force in ((), ("--force",)):
            ran = cli("export", "--data", book, "--output", output, *force)
            assert (ran.code, "lies in the folder of the book" in ran.err) == (2, True)
    assert (book / "main.sqlite").read_bytes() == before
    output = tmp_path / "book.jsonl"
    output.write_text("mine")
    ran = cli("export", "--data", book, "--output", output)
    assert (ran.code, output.read_text()) == (2, "mine")
    assert cli("export", "--data", book, "--output", output, "--force").code == 0
    assert output.read_text() != "mine"


def test_a_book_is_for_its_owner_only(book: Path) -> None:
    assert (book / "main.sqlite").stat().st_mode & 0o077 == 0


def test_export_beside_a_writer(book: Path, tmp_path: Path, cli: Cli) -> None:
    with open_inline(book, Config()):
        assert cli("export", "--data", book, "--output", tmp_path / "out").code == 0


def test_import_of_a_changed_file_leaves_nothing(book: Path, tmp_path: Path, cli: Cli) -> None:
    output = tmp_path / "book.jsonl"
    cli("export", "--data", book, "--output", output)
    output.write_bytes(output.read_bytes().replace(b'"20.25"', b'"20.26"'))
    ran = cli("import", output, "--data", tmp_path / "copy")
    assert ran.code == 1
    assert "differs: something was changed; nothing was imported" in ran.err
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["lock"]


def test_import_into_a_folder_with_a_book_is_refused(book: Path, tmp_path: Path, cli: Cli) -> None:
    output = tmp_path / "book.jsonl"
    cli("export", "--data", book, "--output", output)
    ran = cli("import", output, "--data", book)
    assert ran.code == 1
    assert "there is a book in" in ran.err
    store = open_store(book)
    try:
        ran = cli("import", output, "--data", book)
        assert ran.code == 2
        assert ran.err.startswith("pennyweight: in use by pid ")
    finally:
        store.close()


def test_import_of_a_missing_file_is_wrong_usage(tmp_path: Path, cli: Cli) -> None:
    assert cli("import", tmp_path / "none", "--data", tmp_path / "copy").code == 2


def test_export_into_a_pipe_that_import_reads(book: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pennyweight"]
    exported = subprocess.run(
        [*command, "export", "--data", book], check=True, capture_output=True
    ).stdout
    imported = subprocess.run(
        [*command, "import", "-", "--data", tmp_path / "copy"],
        check=True,
        capture_output=True,
        input=exported,
    )
    assert imported.stdout.startswith(b"12 entries imported, chain head ")

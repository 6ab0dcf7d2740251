"""The verbs on a book in a database: the same words, the same answers as in a folder."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pennyweight import assemble
from pennyweight.assemble import open_inline, open_reader, open_store
from pennyweight.config import Config, Store
from pennyweight.delivery.cli import copying
from pennyweight.engine.port import NotOwner, StoreError, StoreInUse, StoreUnavailable
from pennyweight.products.general import LoadBalances
from pennyweight.proving import ProofFailed, prove
from pennyweight.runtime.holding import holding
from pennyweight.simulators.server import Server
from pennyweight.stores.memory import Head, MemoryStore
from pennyweight.stores.postgres import PostgresStore

Cli = Callable[..., Any]


@pytest.fixture
def filled(database: str, users: Path, cli: Cli) -> str:
    """A database with a book of three users."""
    assert cli("load", users, "--store", database).code == 0
    return database


def run_sql(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


@contextmanager
def owned(url: str, owner: str = "instance-1", address: str = "10.0.0.1:4000") -> Iterator[None]:
    """Somebody else's lease."""
    store = PostgresStore.open(url)
    try:
        assert store.claim(owner, address, 60_000_000) is not None
        yield
        store.give_up(owner)
    finally:
        store.close()


# ── which book is meant ───────────────────────────────────────────────────────────


def test_load_and_verify_as_in_a_folder(filled: str, book: Path, cli: Cli) -> None:
    there = cli("verify", "--store", filled, "--json")
    here = cli("verify", "--data", book, "--json").json
    assert there.code == 0
    assert there.json["state_digest"] == here["state_digest"]
    assert there.json["sequence"] == here["sequence"]
    assert there.err == ""


@pytest.mark.parametrize("variable", ["DATABASE_URL", "PENNYWEIGHT_STORE_URL"])
def test_the_database_may_come_from_the_environment(
    filled: str, book: Path, users: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, filled)
    monkeypatch.setenv("PENNYWEIGHT_DATA", str(book.parent / "elsewhere"))
    assert cli("verify", "--json").json["ok"] is True
    assert cli("load", users).out.startswith("0 users loaded, 3 were loaded before")
    assert not (book.parent / "elsewhere").exists()
    run_sql(filled, "DELETE FROM pennyweight.accounts WHERE id = 'user:101:USD'")
    assert cli("verify").code == 1
    assert cli("verify", "--data", book).code == 0


def test_the_database_may_come_from_the_file(
    filled: str, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pennyweight.toml"
    file.write_text(f'[store]\nurl = "{filled}"\n')
    monkeypatch.setenv("PENNYWEIGHT_CONFIG", str(file))
    assert cli("verify", "--json").json["ok"] is True


def test_books_of_one_database_are_apart(filled: str, users: Path, cli: Cli) -> None:
    ran = cli("verify", "--store", filled, "--book", "eu")
    assert (ran.code, ran.err) == (2, "pennyweight: there is no book eu in this database\n")
    assert cli("load", users, "--store", filled, "--book", "eu").code == 0
    run_sql(filled, "DELETE FROM pennyweight.accounts WHERE book = 'eu' AND id = 'user:101:USD'")
    assert cli("verify", "--store", filled, "--book", "eu").code == 1
    assert cli("verify", "--store", filled).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "x", "--store", "sqlite:x"), "give --data or --store, not both"),
        (("--store", "x"), "store.url (command line): this is no URL"),
        (
            ("--store", "mysql://u:hush@h/x"),
            "store.url (command line): mysql://u:***@h/x: known are",
        ),
        (("--store", "postgresql://u:hu/sh@h/x"), "write / ? # @ : in a name or password"),
        (("--store", "sqlite:x", "--book", "eu"), "a folder has one book, main"),
        (("--store", "sqlite:x", "--book", "E U"), "a book is named like main"),
        (("--data", "x", "--book", "eu"), "a folder has one book, main"),
        (("--data", "postgresql://u:hush@h/x"), "--data is a folder; a URL is given with --store"),
        ((), "give --data FOLDER"),
    ],
)
@pytest.mark.parametrize(
    "verb",
    [
        ("verify",),
        ("load", __file__),
        ("export",),
        ("migrate",),
        ("recover",),
        ("serve", "--port", "0"),
        ("keys", "list"),
        ("keys", "create", "*"),
        ("keys", "revoke", "a"),
        ("limits", "show"),
        ("modes", "set", "halted"),
    ],
    ids=" ".join,
)
def test_a_place_that_is_none_is_wrong_usage(
    cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: tuple[str, ...],
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if verb == ("migrate",) and "--book" in words:
        said = "--book"  # a schema is of all books
    ran = cli(*verb, *words)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert said in ran.err
    assert "hush" not in ran.err
    assert "sh@" not in ran.err
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_is_away_is_told_without_its_password(cli: Cli) -> None:
    ran = cli("verify", "--store", "postgresql://u:hush@127.0.0.1:1/x")
    assert ran.code == 1
    assert "connection" in ran.err.lower()
    assert "hush" not in ran.err


def test_without_the_extra_it_is_named() -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None;"
        "from pennyweight.__main__ import _Roof; from pennyweight.delivery.cli import run;"
        "sys.exit(run(_Roof(), ['verify', '--store', 'postgresql://h/x']))"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.count("\n") == 1
    assert "pip install 'pennyweight[postgres]'" in ran.stderr


def test_a_folder_needs_no_driver(book: Path) -> None:
    code = (
        "import sys; from pennyweight.__main__ import _Roof; from pennyweight.delivery.cli import run;"
        f"run(_Roof(), ['verify', '--data', {str(book)!r}]);"
        "print([name for name in sys.modules if name.partition('.')[0] in"
        " {'psycopg', 'structlog'}])"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "[]"


# ── one at a time ─────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [("load", "{users}"), ("modes", "set", "halted"), ("recover", "--yes")],
    ids=lambda words: words[0],
)
def test_a_book_that_somebody_owns_is_left_alone(
    filled: str, users: Path, cli: Cli, words: tuple[str, ...]
) -> None:
    with owned(filled):
        ran = cli(*(word.format(users=users) for word in words), "--store", filled)
        assert ran.code == 2
        assert "in use by instance-1" in ran.err
        assert cli("verify", "--store", filled).code == 0
    assert cli("load", users, "--store", filled).code == 0


def test_the_lease_is_given_up_at_the_end(filled: str) -> None:
    with open_inline(filled, Config()):
        (row,) = run_sql(filled, "SELECT owner, expires_at > 0 FROM pennyweight.heads")
        assert str(os.getpid()) in row[0]
        assert row[1]
        expected = pytest.raises(StoreInUse, match=f"in use by .*-{os.getpid()}-")
        with expected, open_inline(filled, Config()):
            pass
    assert run_sql(filled, "SELECT expires_at FROM pennyweight.heads") == [(0,)]


def test_who_lost_the_book_commits_nothing(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assemble, "HOLDING_SECONDS", 600.0)
    with open_inline(filled, Config()) as book:
        run_sql(filled, "UPDATE pennyweight.heads SET expires_at = 0")
        with owned(filled), pytest.raises(NotOwner):
            book.execute(LoadBalances("7", (("USD", "1"),)))
    assert run_sql(filled, "SELECT 1 FROM pennyweight.accounts WHERE id = 'user:7:USD'") == []


class Clocked(MemoryStore):
    """A store whose lease is by this machine's clock, and that can be away."""

    def __init__(self) -> None:
        super().__init__(
            Head(book="main", incarnation="first"), clock=lambda: time.monotonic_ns() // 1_000
        )
        self.claims = 0
        self.away = 0

    def claim(self, owner: str, address: str, life_microseconds: int) -> Any:
        self.claims += 1
        if self.away:
            self.away -= 1
            raise StoreUnavailable("away")
        return super().claim(owner, address, life_microseconds)


def test_a_lease_is_renewed_beside_the_work() -> None:
    store = Clocked()
    with holding(store, 0.3):
        first = store.lease()
        store.away = 1
        time.sleep(0.9)
        last = store.lease()
        assert first is not None
        assert last is not None
        assert last.owner == first.owner
        assert last.expires_at > last.now > first.expires_at
        with pytest.raises(StoreInUse), holding(store, 0.3):
            pass
    ended = store.lease()
    assert ended is not None
    assert ended.expires_at == 0
    claims = store.claims
    time.sleep(0.2)
    assert store.claims == claims


# ── copies ────────────────────────────────────────────────────────────────────────


def test_there_and_back_again(book: Path, database: str, tmp_path: Path, cli: Cli) -> None:
    there = cli("copy", "--from", book, "--to", database, "--json").json
    back = cli("copy", "--from", database, "--to", f"sqlite:{tmp_path}/back", "--json").json
    for name in ("sequence", "chain_head", "state_digest"):
        assert there[name] == back[name]
    for place in (("--store", database), ("--data", tmp_path / "back")):
        shown = cli("verify", *place, "--json").json
        assert (shown["ok"], shown["state_digest"]) == (True, there["state_digest"])
    with open_inline(database, Config()) as opened:
        opened.execute(LoadBalances("7", (("USD", "1"),)))
    assert cli("verify", "--store", database).code == 0


def test_a_book_keeps_its_name_between_databases(
    database: str, users: Path, cli: Cli, tmp_path: Path
) -> None:
    assert cli("load", users, "--store", database, "--book", "eu").code == 0
    ran = cli("copy", "--from", database, "--to", tmp_path / "copy", "--book", "eu")
    assert (ran.code, "a folder has one book" in ran.err) == (2, True)
    file = tmp_path / "eu.jsonl"
    assert cli("export", "--store", database, "--book", "eu", "--output", file).code == 0
    run_sql(database, "DROP SCHEMA pennyweight CASCADE")
    assert cli("import", file, "--store", database).code == 0
    assert cli("verify", "--store", database, "--book", "eu").code == 0


def test_a_copy_goes_where_no_book_of_its_name_is(filled: str, book: Path, cli: Cli) -> None:
    for again in ((), ("--again",)):
        ran = cli("copy", "--from", book, "--to", filled, *again)
        assert ran.code == 1
        assert "there is a book main at" in ran.err
    assert cli("verify", "--store", filled).code == 0


def test_a_copy_that_fails_leaves_nothing(
    book: Path, database: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        copy_book(*arguments, **options)
        raise copying.CopyFailed("line 7: cut")

    copy_book = copying.copy_book
    monkeypatch.setattr(copying, "copy_book", fail)
    ran = cli("copy", "--from", book, "--to", database)
    assert ran.code == 1
    assert "line 7: cut; nothing was copied" in ran.err
    assert run_sql(database, "SELECT 1 FROM pennyweight.heads") == []
    assert run_sql(database, "SELECT 1 FROM pennyweight.entries") == []
    monkeypatch.undo()
    assert cli("copy", "--from", book, "--to", database).code == 0


@pytest.fixture
def broken(book: Path, database: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A database with a copy that broke off and could not be removed, as after a kill."""

    def fail(*arguments: Any, **options: Any) -> Any:
        copy_book(*arguments, **options)
        raise copying.CopyFailed("cut")

    def away(*_: object) -> None:
        raise StoreUnavailable("the database went away")

    copy_book = copying.copy_book
    with monkeypatch.context() as patched:
        patched.setattr(copying, "copy_book", fail)
        patched.setattr(assemble, "_remove", away)
        assert cli("copy", "--from", book, "--to", database).code == 1
    assert run_sql(database, "SELECT count(*) > 0 FROM pennyweight.entries") == [(True,)]
    return database


@pytest.mark.parametrize(
    "words",
    [
        ("verify",),
        ("load", "{users}"),
        ("export",),
        ("serve", "--port", "0"),
        ("recover", "--yes"),
        ("limits", "show"),
    ],
    ids=lambda words: words[0],
)
def test_an_unfinished_copy_is_refused_by_every_verb(
    broken: str, users: Path, cli: Cli, words: tuple[str, ...]
) -> None:
    ran = cli(*(word.format(users=users) for word in words), "--store", broken)
    assert ran.code == 1
    assert "the copy into this book is under way or broke off" in ran.err
    with pytest.raises(StoreError):
        open_store(broken)
    with pytest.raises(StoreError):
        open_reader(broken)


def test_an_unfinished_copy_is_begun_anew(
    broken: str, book: Path, cli: Cli, tmp_path: Path
) -> None:
    assert cli("copy", "--from", book, "--to", broken).code == 1
    told = cli("copy", "--from", book, "--to", broken, "--again", "--json").json
    shown = cli("verify", "--store", broken, "--json").json
    assert (shown["ok"], shown["chain_head"]) == (True, told["chain_head"])


def test_an_unfinished_import_is_begun_anew(
    broken: str, book: Path, cli: Cli, tmp_path: Path
) -> None:
    file = tmp_path / "book.jsonl"
    assert cli("export", "--data", book, "--output", file).code == 0
    assert cli("import", file, "--store", broken).code == 1
    assert cli("import", file, "--store", broken, "--again").code == 0
    assert cli("verify", "--store", broken).code == 0


def test_a_copy_under_way_is_not_begun_anew(broken: str, book: Path, cli: Cli) -> None:
    with owned(broken, "copy-1", ""):
        ran = cli("copy", "--from", book, "--to", broken, "--again")
    assert ran.code == 2
    assert "in use by copy-1" in ran.err


def test_a_copy_that_was_begun_anew_elsewhere_is_not_called_finished(
    book: Path, database: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any, **options: Any) -> Any:
        head = copy_book(*arguments, **options)
        run_sql(
            database, "UPDATE pennyweight.stage SET value = 'another' WHERE name = 'unfinished'"
        )
        return head

    copy_book = copying.copy_book
    monkeypatch.setattr(copying, "copy_book", slow)
    ran = cli("copy", "--from", book, "--to", database)
    assert ran.code == 1
    assert "somebody else began this copy anew" in ran.err
    assert run_sql(database, "SELECT count(*) > 0 FROM pennyweight.entries") == [(True,)]


def test_who_lost_a_copy_does_not_remove_that_of_the_next(
    book: Path, database: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: Any, **options: Any) -> Any:
        run_sql(database, "UPDATE pennyweight.heads SET expires_at = 0")
        run_sql(
            database, "UPDATE pennyweight.stage SET value = 'another' WHERE name = 'unfinished'"
        )
        with owned(database):
            return copy_book(*arguments, **options)

    copy_book = copying.copy_book
    monkeypatch.setattr(assemble, "HOLDING_SECONDS", 600.0)
    monkeypatch.setattr(copying, "copy_book", slow)
    ran = cli("copy", "--from", book, "--to", database)
    assert ran.code == 1
    assert run_sql(database, "SELECT value FROM pennyweight.stage") == [("another",)]


# ── roles ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def served_by(database: str, cli: Cli) -> Iterator[str]:
    """The URL of a database for a role that may serve and nothing else."""
    name = f"role_{database.rpartition('_')[2]}"
    run_sql(database, f"CREATE ROLE {name} LOGIN")
    assert cli("migrate", "--store", database, "--apply", "--grant", name).code == 0
    yield database.replace("postgres@", f"{name}@", 1)
    run_sql(database, f"DROP OWNED BY {name}")
    run_sql(database, f"DROP ROLE {name}")


def test_the_role_that_serves_can_do_all_but_change_the_journal(
    served_by: str, users: Path, book: Path, cli: Cli
) -> None:
    assert cli("load", users, "--store", served_by).code == 0
    assert cli("keys", "create", "*", "--store", served_by).code == 0
    assert cli("verify", "--store", served_by).code == 0
    assert cli("recover", "--store", served_by, "--yes").code == 0
    assert cli("copy", "--from", book, "--to", served_by, "--book", "main").code == 1
    for table in ("entries", "batches", "keys"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            run_sql(served_by, f"DELETE FROM pennyweight.{table}")


def test_a_broken_copy_of_the_role_that_serves_stays_marked(
    served_by: str, database: str, book: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        copy_book(*arguments, **options)
        raise copying.CopyFailed("cut")

    copy_book = copying.copy_book
    with monkeypatch.context() as patched:
        patched.setattr(copying, "copy_book", fail)
        assert cli("copy", "--from", book, "--to", served_by).code == 1
    assert "broke off" in cli("verify", "--store", served_by).err
    ran = cli("copy", "--from", book, "--to", served_by, "--again")
    assert ran.code == 1
    assert "removing needs the role that owns the tables" in ran.err
    assert cli("copy", "--from", book, "--to", database, "--again").code == 0


# ── migrations ────────────────────────────────────────────────────────────────────


def test_a_database_is_planned_and_migrated(database: str, cli: Cli) -> None:
    planned = cli("migrate", "--store", database, "--json")
    assert planned.code == 1
    assert planned.json["pending"] == len(planned.json["migrations"]) > 0
    assert run_sql(database, "SELECT 1 FROM pg_namespace WHERE nspname = 'pennyweight'") == []
    assert cli("migrate", "--store", database, "--apply").code == 0
    assert cli("migrate", "--store", database).out.endswith("nothing is pending\n")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE pennyweight.migrations SET checksum = 'x'", "is not this version's"),
        ("INSERT INTO pennyweight.migrations VALUES (999, '0999_x.sql', 'x')", "is newer"),
    ],
    ids=["drift", "newer"],
)
def test_a_schema_that_is_not_ours_is_refused(
    filled: str, users: Path, cli: Cli, change: str, said: str
) -> None:
    run_sql(filled, change)
    for words in (
        ("migrate",),
        ("migrate", "--apply"),
        ("verify",),
        ("load", users),
        ("serve", "--port", "0"),
    ):
        ran = cli(*words, "--store", filled)
        assert (ran.code, ran.err.count("\n")) == (1, 1)
        assert said in ran.err


def test_several_who_migrate_at_once_migrate_once(database: str) -> None:
    start = threading.Barrier(4)
    failed: list[BaseException] = []

    def migrate() -> None:
        start.wait()
        try:
            assemble.migrate(database)
        except StoreError as error:
            failed.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert all(one.is_applied for one in assemble.migrations(database))


# ── keys, controls, export, recover ───────────────────────────────────────────────


def test_keys_are_in_the_database(database: str, cli: Cli) -> None:
    assert cli("keys", "list", "--store", database).code == 1  # and nothing is migrated for it
    assert cli("migrate", "--store", database).code == 1
    created = cli(
        "keys", "create", "ledger:read", "--store", database, "--note", "reports", "--json"
    )
    assert created.code == 0
    (listed,) = cli("keys", "list", "--store", database, "--json").json
    assert (listed["id"], listed["scopes"]) == (created.json["id"], ["ledger:read"])
    assert "sha256" not in listed
    secret = created.json["key"].partition(".")[2]
    assert secret not in str(run_sql(database, "SELECT * FROM pennyweight.stage"))
    assert cli("keys", "revoke", listed["id"], "--store", database).code == 0
    assert cli("keys", "revoke", listed["id"], "--store", database).code == 1
    assert "revoked" in cli("keys", "list", "--store", database).out
    assert cli("keys", "create", "everything", "--store", database).code == 2
    assert cli("keys", "list", "--store", database, "--book", "eu").code == 2


def test_broken_keys_are_told_in_one_line(filled: str, cli: Cli) -> None:
    assert cli("keys", "create", "*", "--store", filled).code == 0
    run_sql(filled, "UPDATE pennyweight.stage SET value = '{' WHERE name = 'api_keys.1'")
    ran = cli("keys", "list", "--store", filled)
    assert (ran.code, ran.err.count("\n")) == (1, 1)
    assert "cannot be read" in ran.err


def test_limits_and_modes(filled: str, cli: Cli) -> None:
    place = ("--store", filled)
    assert cli("limits", "set", "BTC", "--per-day", "25", *place).code == 0
    assert cli("limits", "show", *place).out == "BTC: no limit a withdrawal, 25 in 24 hours\n"
    assert cli("modes", "set", "reducing", *place, "--json").json["mode"] == "reducing"
    assert cli("modes", "show", *place).out.startswith("everything: reducing")
    ran = cli("modes", "show", *place, "--address", "http://127.0.0.1:1")
    assert (ran.code, "give --store or --address, not both" in ran.err) == (2, True)


def test_export_is_the_same_from_everywhere(filled: str, tmp_path: Path, cli: Cli) -> None:
    assert cli("copy", "--from", filled, "--to", tmp_path / "copy").code == 0
    for words in (("--store", filled), ("--data", tmp_path / "copy")):
        assert cli("export", *words, "--output", tmp_path / words[0][2:]).code == 0
    one, other = (tmp_path / name for name in ("store", "data"))
    assert one.read_bytes().splitlines()[1:] == other.read_bytes().splitlines()[1:]


def test_recover(filled: str, cli: Cli) -> None:
    store = open_reader(filled)
    before = store.head().incarnation
    assert cli("recover", "--store", filled).code == 1
    assert store.head().incarnation == before
    told = cli("recover", "--store", filled, "--yes", "--json").json
    assert store.head().incarnation == told["incarnation"] != before
    store.close()
    with open_inline(filled, Config(store=Store(book="main"))) as opened:
        opened.execute(LoadBalances("7", (("USD", "1"),)))
    assert cli("verify", "--store", filled).code == 0


# ── served ────────────────────────────────────────────────────────────────────────


def call(address: str, method: str, path: str, token: str = "") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(address + path, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def until(is_so: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_instances_take_up_keys_and_prove_the_book(
    filled: str, users: Path, tmp_path: Path, cli: Cli
) -> None:
    with (
        Server(filled, log=tmp_path / "one.log") as one,
        Server(filled, log=tmp_path / "two.log") as two,
    ):
        both = (one.address, two.address)
        for address in both:
            assert call(address, "GET", "/v1/accounts/user:101:USD")[1]["posted"] == "20.25"
        for address in both:
            assert call(address, "POST", "/v1/verify")[0] == 202
            until(lambda: call(address, "GET", "/v1/verify")[1]["state"] == "done")  # noqa: B023
            assert call(address, "GET", "/v1/verify")[1]["report"]["ok"] is True
        ran = cli("load", users, "--store", filled)
        assert (ran.code, "in use by" in ran.err) == (2, True)
        token = cli("keys", "create", "ledger:write", "--store", filled).out.strip()
        for address in both:
            until(lambda: call(address, "GET", "/v1/assets")[0] == 401)  # noqa: B023
            assert call(address, "GET", "/v1/assets", token)[0] == 200
        assert cli("keys", "revoke", token.partition(".")[0], "--store", filled).code == 0
        for address in both:
            until(lambda: call(address, "GET", "/v1/assets", token)[0] == 401)  # noqa: B023


def test_a_proof_is_asked_for_without_the_url_on_the_command_line(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> Any:
        started.append(command)
        return popen(command, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    heard: list[tuple[int, int]] = []
    report = prove(filled, "main", lambda done, entries: heard.append((done, entries)))
    assert report.ok
    assert heard[-1] == (report.entries, report.entries)
    assert filled not in " ".join(*started)
    with pytest.raises(ProofFailed, match="there is no book eu"):
        prove(filled, "eu", lambda *_: None)

"""What is particular to the SQLite store: its file, lock, migrations, failures and checkpoints."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import msgspec
import pytest

from pennyweight.engine.port import (
    ConstraintFailed,
    Found,
    HoldRow,
    Reads,
    SchemaDrift,
    StoreError,
    StoreFailed,
    StoreInUse,
)
from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.receipts import Receipt
from pennyweight.engine.verification import Problem, check_tail, verify
from pennyweight.ledger.accounts import Account, is_customer
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.holds import Hold, HoldState, HoldVerb
from pennyweight.products.general import LoadBalances, Transfer, VoidHold
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.sqlite import SQLiteStore, checkpoints, schema
from random_books import Clock, Reserve, open_book, random_book
from stores.batches import account, append_of, dump, record
from stores.shim import Shim, Solo


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    """An empty book."""
    opened = SQLiteStore.open(tmp_path, new_incarnation="first")
    yield opened
    opened.close()


def raw(folder: Path) -> apsw.Connection:
    """Open the file as somebody with the sqlite3 shell does."""
    connection = apsw.Connection(str(folder / "main.sqlite"))
    connection.set_busy_timeout(5_000)
    return connection


# ── the lock ──────────────────────────────────────────────────────────────────────

OTHER = """
import sys
from pennyweight.engine.port import StoreInUse
from pennyweight.stores.sqlite import SQLiteStore
try:
    store = SQLiteStore.open(sys.argv[1], sys.argv[2], new_incarnation="other")
except StoreInUse as error:
    print(f"in use by {error.pid}")
else:
    print("opened", flush=True)
    sys.stdin.read()
"""


def other(folder: Path, book: str = "main") -> subprocess.Popen[str]:
    """Start a process that opens a book and keeps it until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, str(folder), book],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_lock_keeps_other_processes_out_of_the_directory(store: SQLiteStore, tmp_path: Path):
    for book in ("main", "second"):
        with other(tmp_path, book) as process:
            out, _ = process.communicate(timeout=30)
        assert out == f"in use by {os.getpid()}\n"


def test_lock_names_the_other_process_and_ends_with_it(tmp_path: Path):
    with other(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "opened\n"
        with pytest.raises(StoreInUse) as refused:
            SQLiteStore.open(tmp_path, new_incarnation="first")
        assert refused.value.pid == process.pid
        assert SQLiteStore.open(tmp_path, is_read_only=True).head().incarnation == "other"
        process.kill()
        process.communicate(timeout=30)
    SQLiteStore.open(tmp_path, new_incarnation="first").close()


def test_lock_lets_one_process_open_each_book_once(store: SQLiteStore, tmp_path: Path):
    with pytest.raises(StoreInUse) as refused:
        SQLiteStore.open(tmp_path, new_incarnation="again")
    assert refused.value.pid == os.getpid()
    second = SQLiteStore.open(tmp_path, "second", new_incarnation="second")
    store.close()
    with other(tmp_path) as process:
        assert process.communicate(timeout=30)[0].startswith("in use")
    second.close()
    SQLiteStore.open(tmp_path, new_incarnation="again").close()


def test_lock_is_released_when_opening_fails(tmp_path: Path):
    (tmp_path / "main.sqlite").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreFailed):
        SQLiteStore.open(tmp_path, new_incarnation="first")
    (tmp_path / "main.sqlite").unlink()
    SQLiteStore.open(tmp_path, new_incarnation="first").close()


# ── opening ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("book", ["", "../main", "Main", "a/b", ".", "x" * 65])
def test_open_refuses_names_that_are_no_plain_file(tmp_path: Path, book: str):
    with pytest.raises(StoreError):
        SQLiteStore.open(tmp_path, book, new_incarnation="first")


def test_open_of_no_book_says_so(tmp_path: Path):
    for options in ({"is_read_only": True}, {}):
        with pytest.raises(StoreError, match="no book"):
            SQLiteStore.open(tmp_path / "nowhere", **options)
    assert not (tmp_path / "nowhere").exists()


def test_open_keeps_the_incarnation(store: SQLiteStore, tmp_path: Path):
    store.close()
    again = SQLiteStore.open(tmp_path, new_incarnation="second")
    assert again.head().incarnation == "first"
    again.close()
    again.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("UPDATE migrations SET checksum = 'x'", "not this version's"),
        ("UPDATE migrations SET name = '0001_other.sql'", "not this version's"),
        ("INSERT INTO migrations VALUES (99, '0099_later.sql', 'x')", "newer"),
    ],
)
def test_open_of_another_schema_is_drift(
    store: SQLiteStore, tmp_path: Path, damage: str, message: str
):
    store.close()
    connection = raw(tmp_path)
    connection.execute(damage)
    connection.close()
    for is_read_only in (False, True):
        with pytest.raises(SchemaDrift, match=message):
            SQLiteStore.open(tmp_path, new_incarnation="x", is_read_only=is_read_only)


def test_open_for_reading_of_a_schema_to_be_migrated_is_drift(tmp_path: Path):
    connection = raw(tmp_path)
    connection.execute("CREATE TABLE other (id)")
    with pytest.raises(SchemaDrift, match="no book"):
        SQLiteStore.open(tmp_path, is_read_only=True)
    connection.execute("CREATE TABLE migrations (number, name, checksum)")
    connection.close()
    with pytest.raises(SchemaDrift, match="0 of"):
        SQLiteStore.open(tmp_path, is_read_only=True)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM entries WHERE sequence = 3",
        "DELETE FROM batches WHERE first_sequence = 3",
        "UPDATE head SET sequence = 2",
        "UPDATE head SET chain = zeroblob(32)",
    ],
)
def test_open_finds_a_head_that_is_not_the_journal_s(
    store: SQLiteStore, tmp_path: Path, damage: str
):
    for _ in range(3):
        store.append(append_of(store.head()))
    store.close()
    connection = raw(tmp_path)
    connection.execute(damage)
    connection.close()
    with pytest.raises(StoreError, match="head"):
        SQLiteStore.open(tmp_path, new_incarnation="x")


def test_read_only_sees_a_served_book_and_changes_nothing(store: SQLiteStore, tmp_path: Path):
    random_book(5, store=store, batches=10)
    beside = SQLiteStore.open(tmp_path, is_read_only=True)
    assert dump(beside) == dump(store)
    store.append(append_of(store.head(), key="later"))
    assert dump(beside) == dump(store)
    assert beside.receipt("ledger", "later") == store.receipt("ledger", "later")
    for write in (
        lambda: beside.append(append_of(store.head())),
        lambda: beside.adopt(append_of(store.head())),
        lambda: beside.begin(Reads(), set()),
        lambda: beside.claim("me", "here", 1),
        lambda: beside.give_up("me"),
        lambda: beside.stage("a", "b"),
    ):
        with pytest.raises(StoreError, match="reading only"):
            write()
    beside.close()


# ── migrations ────────────────────────────────────────────────────────────────────


def test_migrations_that_were_shipped_never_change():
    shipped = {name: checksum[:16] for _, name, checksum, _ in schema.known_migrations()}
    assert shipped["0001_book.sql"] == "12fea6d5c6cb6089"


def old_book(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Make a book as 0.1 left it: the first schema, holds that say less. Return its dump."""
    with monkeypatch.context() as patched:
        change_hold = Draft._change_hold

        def change_as_before(
            draft: Draft, verb: HoldVerb, hold: Hold, account: Account, held: int
        ) -> None:
            less = msgspec.structs.replace(hold, reference="", placed_at=0, changed_by=0)
            change_hold(draft, verb, less, account, held)

        patched.setattr(Draft, "_change_hold", change_as_before)
        new = folder / "new"
        store = SQLiteStore.open(new, new_incarnation="first")
        random_book(8, store=store, batches=40)
        rows = dump(store)
        store.close()
    number, name, checksum, sql = schema.known_migrations()[0]
    connection = raw(folder)
    connection.pragma("journal_mode", "WAL")
    connection.execute(
        "CREATE TABLE migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL,"
        " checksum TEXT NOT NULL) STRICT"
    )
    connection.execute("INSERT INTO migrations VALUES (?, ?, ?)", (number, name, checksum))
    connection.execute(sql + "DELETE FROM key_state")
    connection.execute("ATTACH ? AS new", (str(new / "main.sqlite"),))
    tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
    for (table,) in tables:
        if table != "migrations":
            columns = ", ".join(
                column[1] for column in connection.execute(f"PRAGMA table_info({table})")
            )
            connection.execute(f"INSERT INTO main.{table} SELECT {columns} FROM new.{table}")
    connection.close()
    return rows


def test_old_book_is_migrated_when_it_is_opened_for_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = old_book(tmp_path, monkeypatch)
    with pytest.raises(SchemaDrift, match=r"1 of \d migrations; open it for writing once"):
        SQLiteStore.open(tmp_path, is_read_only=True)
    store = SQLiteStore.open(tmp_path)
    assert dump(store) == before
    answers = answers_of(known_commands())
    assert verify(store, answers=answers).ok
    holds = [row for kind, row in store.rows() if kind == "hold"]
    assert len({hold.state for hold in holds}) > 2
    assert {(hold.reference, hold.placed_at, hold.changed_by) for hold in holds} == {("", 0, 0)}
    clock = Clock()
    clock.now = store.head().committed_at
    book = InlineBook(open_engine(store, now=clock()), store, clock)
    old = next(h for h in holds if h.state is HoldState.OPEN and h.owner == "ledger")
    for command in (
        VoidHold(old.id),
        LoadBalances("new", (("USD", "100"),)),
        Transfer("world:USD", "user:0:USD", "USD", "500"),
        Reserve(0, "after"),
    ):
        assert isinstance(book.execute(command), Receipt)
    changed = store.hold(old.id)
    assert changed is not None
    assert (changed.placed_at, changed.changed_by) == (0, store.head().sequence - 3)
    report = verify(store, answers=answers)
    assert report.ok, report.problems
    store.close()
    with closing(SQLiteStore.open(tmp_path, is_read_only=True)) as again:
        assert verify(again, answers=answers).ok


# ── constraints ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE accounts SET posted = ?1 WHERE number = 1",
        "UPDATE accounts SET held = posted, posted = ?1 WHERE number = 1",
        "UPDATE accounts SET posted = ?2 WHERE number = 2",
        "UPDATE accounts SET floor = ?3, least = NULL WHERE number = 2",
        "UPDATE accounts SET held = ?1 WHERE number = 1",
        "UPDATE accounts SET owed = ?1 WHERE number = 1",
        "UPDATE accounts SET posted = x'80' WHERE number = 1",
        "UPDATE accounts SET posted = 5 WHERE number = 1",
        "UPDATE accounts SET posted = NULL WHERE number = 1",
        "UPDATE accounts SET version = 0",
        "UPDATE accounts SET id = 'user:2:USD' WHERE number = 1",
    ],
)
def test_raw_sql_cannot_put_an_account_below_its_floor(
    store: SQLiteStore, tmp_path: Path, statement: str
):
    one = account(1, "user:1:USD", 5)
    two = account(2, "user:2:USD", -20, floor=-20)
    store.append(append_of(store.head(), accounts=[(one, 0), (two, 0)]))
    connection = raw(tmp_path)
    values = [(2**127 + units).to_bytes(16, "big") for units in (-1, -21, -1)]
    used = values[: 1 + max((int(c) - 1 for c in statement if c in "123"), default=0)]
    with pytest.raises(apsw.ConstraintError):
        connection.execute(statement, used[: connection_values(statement)])
    connection.close()
    assert store.accounts(0, 9) == [one, two]


def connection_values(statement: str) -> int:
    """Return how many values a statement takes: the highest of its numbers."""
    return max((n for n in (1, 2, 3) if f"?{n}" in statement), default=0)


def test_raw_sql_cannot_take_a_reference_twice(store: SQLiteStore, tmp_path: Path):
    holds = [Hold(n, "user:1:USD", "USD", 5, 5, "notes", reference=f"r{n}") for n in (1, 2)]
    store.append(append_of(store.head(), holds=[HoldRow(hold, None) for hold in holds]))
    connection = raw(tmp_path)
    with pytest.raises(apsw.ConstraintError):
        connection.execute("UPDATE holds SET reference = 'r1' WHERE id = 2")
    connection.close()


# ── room ──────────────────────────────────────────────────────────────────────────


def test_begin_stops_before_the_user_too_many(store: SQLiteStore):
    """Whatever the room, no more bodies and users are read than have room."""
    book = open_book(store)
    for user in range(4):
        book.execute(LoadBalances(str(user), (("USD", "100"),)), key=f"load {user}")
        book.execute(Reserve(user, f"r{user}"))
    connection = store._writing().connection
    read: set[str] = set()

    def trace(_cursor: object, sql: str, values: tuple[object, ...]) -> bool:
        if sql.startswith(("SELECT body FROM entries", "SELECT char(1)")):
            read.add(f"entry {values[0]}")
        elif sql.startswith("SELECT *") and "FROM holds" in sql:
            # Hold 1 is user:0's, and so on; so is the reference r0.
            for name in json.loads(str(values[-1])):
                read.add(f"user:{name[1:] if isinstance(name, str) else name - 1}")
        elif "FROM accounts WHERE holder" in sql:
            read.update(holder for holder in json.loads(str(values[0])) if is_customer(holder))
        return True

    wanted = {
        "holders": {"user:0", "world"},
        "keys": {("ledger", "load 1"), ("ledger", "never")},
        "key_entries": {("ledger", "load 0")},
        "entries": {store.head().sequence},
        "holds": {1, 2},
        "references": {("notes", "r1"), ("notes", "r2")},
    }
    connection.exec_trace = trace
    try:
        full = store.begin(Reads(**wanted), set())
        assert len(read) == 7
        for room in range(8):
            read.clear()
            found = store.begin(Reads(**wanted, room=room), set())
            assert len(read) <= room
            assert found == (full if room == 7 else Found(is_cut=True))
    finally:
        connection.exec_trace = None


# ── failures of the disk ──────────────────────────────────────────────────────────


@pytest.fixture
def shim() -> Iterator[Shim]:
    layer = Shim("failing")
    yield layer
    layer.unregister()


@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError])
@pytest.mark.parametrize("kind", ["write", "sync"])
def test_append_on_a_failing_disk_stops_the_store(
    shim: Shim, tmp_path: Path, kind: str, error: type[apsw.Error]
):
    store = Solo(tmp_path, "failing")
    random_book(1, store=store, batches=3)
    before = dump_of_file(tmp_path)

    def fail(operation: str, _file: str) -> None:
        if operation == kind:
            raise error("injected")

    shim.fault = fail
    doomed = append_of(store.head(), key="doomed")
    with pytest.raises(StoreFailed):
        store.append(doomed)
    shim.fault = lambda _kind, _file: None
    for use in (
        lambda: store.append(doomed),
        lambda: store.begin(Reads(), set()),
        lambda: store.claim("me", "here", 1),
        lambda: store.stage("a", "b"),
    ):
        with pytest.raises(StoreFailed, match="stopped"):
            use()
    store.close()
    assert dump_of_file(tmp_path) == before


def dump_of_file(folder: Path) -> list[bytes]:
    """Dump a copy of a book's files, as another process would find them."""
    copy = folder / "copy"
    copy.mkdir()
    for file in folder.glob("main.sqlite*"):
        if not file.name.endswith("-shm"):
            (copy / file.name).write_bytes(file.read_bytes())
    store = SQLiteStore.open(copy)
    rows = dump(store)
    assert check_tail(store) is None
    store.close()
    for file in copy.iterdir():
        file.unlink()
    copy.rmdir()
    return rows


def test_append_that_fails_in_its_middle_leaves_nothing(shim: Shim, tmp_path: Path):
    """A cache so small that a batch spills into the log before its commit, which then fails."""
    store = Solo(tmp_path, "failing")
    store.connection.pragma("cache_size", 5)
    store.append(append_of(store.head(), accounts=[(account(1, "user:1:USD"), 0)]))
    before = dump_of_file(tmp_path)
    writes = 0

    def fail(operation: str, _file: str) -> None:
        nonlocal writes
        writes += operation == "write"
        if writes == 40:
            raise apsw.IOError("injected")

    shim.fault = fail
    keys = [f"key {number}" for number in range(2_000)]
    with pytest.raises(StoreFailed):
        store.append(append_of(store.head(), keys=keys, products=["ledger"] * 2_000))
    assert writes == 40
    shim.fault = lambda _kind, _file: None
    store.close()
    assert dump_of_file(tmp_path) == before


def test_closed_store_refuses_everything(store: SQLiteStore):
    batch = append_of(store.head())
    store.close()
    for use in (
        lambda: store.append(batch),
        lambda: store.begin(Reads(), set()),
        store.head,
        lambda: store.receipt("ledger", "key"),
        lambda: list(store.rows()),
    ):
        with pytest.raises(StoreFailed, match="closed"):
            use()


def test_reader_of_a_damaged_file_is_told_so(store: SQLiteStore, tmp_path: Path):
    store.append(append_of(store.head(), key="key"))
    store.close()
    file = tmp_path / "main.sqlite"
    beside = SQLiteStore.open(tmp_path, is_read_only=True)
    pages = file.read_bytes()
    file.write_bytes(pages[:4_096] + bytes(len(pages) - 4_096))
    with pytest.raises(StoreFailed):
        beside.entries(0, 10)
    beside.close()


# ── checkpoints ───────────────────────────────────────────────────────────────────


def test_checkpoints_keep_the_log_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoints, "FRAMES", 50)
    store = SQLiteStore.open(tmp_path, new_incarnation="first")
    log = tmp_path / "main.sqlite-wal"
    sizes = []
    for number in range(300):
        store.append(append_of(store.head(), key=f"key {number}", products=["ledger"] * 10))
        sizes.append(log.stat().st_size)
        if number % 20 == 0:
            time.sleep(0.01)
    assert sizes[-1] < 300 * 2 * 2_048
    assert max(sizes) < 300 * 2 * 2_048
    store.close()
    assert not log.exists()
    assert threading.active_count() == 1 or all(
        thread.name != "checkpoints" for thread in threading.enumerate()
    )


def test_checkpoints_on_a_failing_disk_stop_the_store(tmp_path: Path):
    store = SQLiteStore.open(tmp_path, new_incarnation="first")
    thread = store._checkpoints
    assert thread is not None
    thread._connection.close()
    thread._due.set()
    thread._thread.join(timeout=10)
    with pytest.raises(StoreFailed):
        store.append(append_of(store.head()))
    store.close()


# ── proof ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", [6, 7])
def test_random_book_proves_itself(store: SQLiteStore, seed: int):
    random_book(seed, store=store, batches=40)
    report = verify(store, answers=answers_of(known_commands()))
    assert report.ok, report.problems


@pytest.mark.parametrize("hold_id", [1, 2])
@pytest.mark.parametrize("column", ["reference = 'other'", "placed_at = 5", "changed_by = 5"])
def test_hold_that_was_tampered_with_is_found(
    store: SQLiteStore, tmp_path: Path, column: str, hold_id: int
):
    """Hold 1 has ended, hold 2 is open."""
    book = open_book(store)
    book.execute(LoadBalances("1", (("USD", "100"),)))
    for reference in ("one", "two", "one", "one"):
        assert isinstance(book.execute(Reserve(1, reference)), Receipt)
    answers = answers_of(known_commands())
    assert verify(store, answers=answers).ok
    store.close()
    connection = raw(tmp_path)
    connection.execute(f"UPDATE holds SET {column} WHERE id = {hold_id}")
    connection.close()
    beside = SQLiteStore.open(tmp_path, is_read_only=True)
    report = verify(beside, answers=answers)
    beside.close()
    last = report.sequence if hold_id == 1 else report.sequence - 2
    assert report.problems == [Problem(last, f"its hold {hold_id} is stored differently")]


def test_record_that_is_hard_to_write_is_a_contradiction(store: SQLiteStore):
    """What cannot be stored is refused with its batch; the store goes on."""
    before = dump(store)
    with pytest.raises(ConstraintFailed):
        store.append(append_of(store.head(), records=[(record("\ud800"), None)]))
    with pytest.raises(ConstraintFailed):
        store.append(append_of(store.head(), records=[(record("1", marks=[("a", 2**63)]), None)]))
    assert dump(store) == before
    store.append(append_of(store.head(), records=[(record("1"), None)]))

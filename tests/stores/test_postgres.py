"""PostgreSQL's own: migrations, roles, texts, addresses, and what goes over the wire."""

import threading
from collections.abc import Iterator

import psycopg
import pytest

from pennyweight.engine.port import (
    ConstraintFailed,
    HoldRow,
    NoBook,
    Reads,
    SchemaDrift,
    StoreError,
    StoreUnavailable,
)
from pennyweight.engine.receipts import Receipt
from pennyweight.engine.verification import check_tail
from pennyweight.ledger.entries import CursorMove, decode_entry
from pennyweight.ledger.holds import Hold
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.simulators.pgfaults import FaultProxy
from pennyweight.simulators.pgrules import Fault, Rule
from pennyweight.simulators.postgres import PostgresServer
from pennyweight.stores import postgres as package
from pennyweight.stores.postgres import PostgresStore, schema
from pennyweight.stores.postgres import place as place_module
from pennyweight.stores.postgres.place import Place
from random_books import open_book, random_book
from stores.batches import account, append_of, dump, record
from stores.postgres_places import TABLES

NAMES = [name for _, name, _, _ in schema.known_migrations()]


@pytest.fixture
def fresh(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a database without any table."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS fresh WITH (FORCE)")
        connection.execute("CREATE DATABASE fresh")
    yield postgres.url.removesuffix("/postgres") + "/fresh"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE fresh WITH (FORCE)")
        connection.execute("DROP ROLE IF EXISTS serving")


def do(url: str, *statements: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def serving_url(url: str, *, password: str = "secret") -> str:
    """Make a role without rights, and return the URL by which it comes."""
    do(url, "DROP ROLE IF EXISTS serving", f"CREATE ROLE serving LOGIN PASSWORD '{password}'")
    return url.replace("postgres@", f"serving:{password}@")


# ── migrations ────────────────────────────────────────────────────────────────────


def test_migrations_are_planned_and_applied_once(fresh: str):
    assert [(one.name, one.is_applied) for one in package.plan(fresh)] == [
        (name, False) for name in NAMES
    ]
    assert package.migrate(fresh) == NAMES
    assert package.migrate(fresh) == []
    assert all(one.is_applied for one in package.plan(fresh))


def test_instances_that_start_at_once_migrate_once(fresh: str):
    gate = threading.Barrier(5)
    applied: list[object] = []

    def start() -> None:
        gate.wait()
        try:
            applied.append(package.migrate(fresh))
            PostgresStore.open(fresh, new_incarnation="first").close()
        except Exception as error:  # noqa: BLE001 - told by the main thread
            applied.append(error)

    threads = [threading.Thread(target=start) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(applied, key=str) == [NAMES, [], [], [], []] or applied.count([]) == 4
    assert applied.count(NAMES) == 1
    assert do(fresh, "SELECT count(*) FROM pennyweight.heads") == [(1,)]


def test_migrations_without_advisory_locks_still_happen_once(
    fresh: str, monkeypatch: pytest.MonkeyPatch
):
    """As on an engine that has none: the schema's own constraints let one of them through."""
    apply_once, gate = schema._apply, threading.Barrier(4)
    waited: set[int] = set()

    def together(connection: object) -> list[str]:
        if threading.get_ident() not in waited:
            waited.add(threading.get_ident())
            raise psycopg.errors.UndefinedFunction("no such lock here")
        if not gate.broken:
            gate.wait(5)
            gate.abort()
        return apply_once(connection)

    monkeypatch.setattr(schema, "_apply", together)
    applied: list[object] = []

    def start() -> None:
        try:
            applied.append(package.migrate(fresh))
        except threading.BrokenBarrierError:
            applied.append(package.migrate(fresh))
        except Exception as error:  # noqa: BLE001 - told by the main thread
            applied.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert applied.count(NAMES) == 1
    assert applied.count([]) == 3


def test_opening_migrates(fresh: str):
    store = PostgresStore.open(fresh, new_incarnation="first")
    store.append(append_of(store.head()))
    store.close()
    assert package.migrate(fresh) == []


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE pennyweight.migrations SET checksum = 'x' WHERE number = 1",
        "UPDATE pennyweight.migrations SET name = 'x' WHERE number = 1",
        "INSERT INTO pennyweight.migrations VALUES (9999, '9999_later.sql', 'x')",
    ],
)
@pytest.mark.parametrize("is_read_only", [False, True])
def test_schema_of_another_version_is_refused(fresh: str, damage: str, is_read_only: bool):
    PostgresStore.open(fresh, new_incarnation="first").close()
    do(fresh, damage)
    with pytest.raises(SchemaDrift):
        PostgresStore.open(fresh, is_read_only=is_read_only)
    with pytest.raises(SchemaDrift):
        package.plan(fresh)
    with pytest.raises(SchemaDrift):
        package.migrate(fresh)


def test_reading_does_not_migrate(fresh: str):
    with pytest.raises(SchemaDrift, match="pennyweight migrate"):
        PostgresStore.open(fresh, is_read_only=True)
    assert not do(fresh, "SELECT 1 FROM pg_namespace WHERE nspname = 'pennyweight'")


def test_role_that_may_not_migrate_is_told_who_should(fresh: str):
    with pytest.raises(SchemaDrift, match="pennyweight migrate --apply"):
        PostgresStore.open(serving_url(fresh), new_incarnation="first")


def test_database_of_another_encoding_is_refused(fresh: str):
    do(
        fresh.removesuffix("/fresh") + "/postgres",
        "DROP DATABASE fresh WITH (FORCE)",
        "CREATE DATABASE fresh ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0",
    )
    with pytest.raises(StoreError, match="UTF8"):
        PostgresStore.open(fresh, new_incarnation="first")


# ── roles ─────────────────────────────────────────────────────────────────────────


def test_role_that_serves_does_everything_but_change_the_journal(fresh: str):
    url = serving_url(fresh)
    package.migrate(fresh, grant="serving")
    store = PostgresStore.open(url, new_incarnation="first")
    random_book(5, store=store)
    lease = store.claim("one", "here", 60_000_000)
    assert lease is not None
    standing = record("1", names=("n",), labels=("l",), marks=[("review", 1)])
    batch = append_of(
        store.head(),
        records=[(standing, None)],
        cursors=[CursorMove("a", 0, 1)],
        key="k",
    )
    assert not store.resolve(batch).is_committed
    store.append(batch)
    other = record("2", names=("n",))
    moved = record("1", 2, names=("m",))
    store.append(append_of(store.head(), records=[(moved, standing), (other, None)]))
    store.give_up("one")
    assert store.stage("secret", "s", is_first=True) == "s"
    assert store.stage("secret", "t") == "t"
    store.renew("second")
    assert check_tail(store) is None
    assert len(dump(store)) > 100
    assert store.size_bytes() > 0
    store.close()
    for table in ("entries", "batches", "keys"):
        for change in (f"DELETE FROM pennyweight.{table}", f"TRUNCATE pennyweight.{table}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                do(url, change)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            do(url, f"UPDATE pennyweight.{table} SET book = 'mine'")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        do(url, "CREATE TABLE pennyweight.mine ()")


def test_role_that_could_change_the_journal_is_known(fresh: str):
    url = serving_url(fresh)
    package.migrate(fresh, grant="serving")
    for who, may in ((fresh, True), (url, False)):
        with psycopg.connect(who) as connection:
            assert schema.may_change_journal(connection) is may
    do(fresh, "GRANT DELETE ON pennyweight.keys TO serving")
    with psycopg.connect(url) as connection:
        assert schema.may_change_journal(connection)


def test_commits_wait_for_the_disk_whatever_the_role_says(fresh: str):
    package.migrate(fresh)
    do(fresh, "ALTER ROLE postgres SET synchronous_commit = 'off'")
    try:
        place = Place(fresh)
        with place.connect() as connection:
            assert "synchronous_commit" in schema.undurable(connection)
        with place.connect(is_durable=True) as connection:
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        with place.connect("synchronous_commit = 'remote_apply'", is_durable=True) as connection:
            assert connection.execute("SHOW synchronous_commit").fetchone() == ("remote_apply",)
        store = PostgresStore.open(fresh, new_incarnation="first")
        store.append(append_of(store.head()))
        assert store._writer is not None
        line = store._writer._line()
        assert line.connection.execute("SHOW synchronous_commit").fetchone() == ("on",)
        store.close()
    finally:
        do(fresh, "ALTER ROLE postgres RESET synchronous_commit")


def test_line_that_says_nothing_from_the_start_is_cut(fresh: str, monkeypatch):
    monkeypatch.setattr(place_module, "FIRST_ANSWER_SECONDS_MAX", 0.3)
    with FaultProxy(fresh) as proxy:
        proxy.add(Rule(Fault.HOLE_BEFORE, "synchronous_commit"))
        place = Place(proxy.url)
        with pytest.raises(StoreUnavailable):
            place.connect(is_durable=True)
        place.connect(is_durable=True).close()


def test_idle_readers_give_their_connections_to_who_writes(fresh: str):
    url = serving_url(fresh)
    package.migrate(fresh, grant="serving")
    store = PostgresStore.open(url, new_incarnation="first")
    do(fresh, "ALTER ROLE serving CONNECTION LIMIT 3")
    try:
        assert store.claim("me", "here", 60_000_000) is not None
        readers = store._readers
        readers._free += [readers._connect(), readers._connect()]
        store.append(append_of(store.head()))
        assert store.head().sequence == 1
    finally:
        store.close()
        do(fresh, "ALTER ROLE serving CONNECTION LIMIT -1")


def test_role_that_lacks_a_right_is_told_so_before_it_serves(fresh: str):
    url = serving_url(fresh)
    package.migrate(fresh, grant="serving")
    do(fresh, "REVOKE INSERT ON pennyweight.entries FROM serving")
    with pytest.raises(StoreError, match=r"INSERT on entries.*migrate --apply --grant"):
        PostgresStore.open(url, new_incarnation="first")


@pytest.mark.parametrize(("word", "is_prepared"), [("off", False), ("OFF", False), ("on", True)])
def test_url_says_whether_statements_are_prepared(word: str, is_prepared: bool):
    assert Place(f"postgresql://db/money?prepare={word}").is_prepared is is_prepared


def test_url_with_another_word_for_prepare_is_refused():
    with pytest.raises(StoreError, match="on or off"):
        Place("postgresql://db/money?prepare=maybe")


def test_what_else_the_url_says_is_passed_on_as_it_stands(fresh: str):
    mark = "&" if "?" in fresh else "?"
    place = Place(f"{fresh}{mark}options=-c%20work_mem%3D8MB&prepare=off")
    with place.connect() as connection:
        assert connection.execute("SHOW work_mem").fetchone() == ("8MB",)


def test_role_without_rights_is_unavailable_not_broken(fresh: str):
    package.migrate(fresh)
    with pytest.raises(StoreUnavailable, match="permission denied"):
        PostgresStore.open(serving_url(fresh), new_incarnation="first")


def test_every_table_has_its_rights_and_begins_with_the_book(fresh: str):
    package.migrate(fresh)
    granted = {table for tables in schema._RIGHTS.values() for table in tables}
    assert granted == {*TABLES, "migrations"}
    wrong = do(
        fresh,
        """
        SELECT indexrelid::regclass::text FROM pg_index
        JOIN pg_class ON pg_class.oid = indrelid
        LEFT JOIN pg_attribute ON attrelid = indrelid AND attnum = indkey[0]
        WHERE relnamespace = 'pennyweight'::regnamespace AND attname IS DISTINCT FROM 'book'
        """,
    )
    assert wrong == [("pennyweight.migrations_pkey",)]
    keyless = do(
        fresh,
        """
        SELECT oid::regclass::text FROM pg_class
        WHERE relkind = 'r' AND relnamespace = 'pennyweight'::regnamespace
            AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = pg_class.oid AND indisprimary)
        """,
    )
    assert keyless == []


# ── books ─────────────────────────────────────────────────────────────────────────


def test_book_that_is_not_there_is_no_book(database: str):
    with pytest.raises(NoBook):
        PostgresStore.open(database)
    with pytest.raises(NoBook):
        PostgresStore.open(database, is_read_only=True)
    with pytest.raises(StoreError, match="named like"):
        PostgresStore.open(database, "No Such Name", new_incarnation="first")


def test_book_may_be_open_many_times(database: str):
    first = PostgresStore.open(database, new_incarnation="first")
    second = PostgresStore.open(database, new_incarnation="never")
    reader = PostgresStore.open(database, is_read_only=True)
    first.append(append_of(first.head(), accounts=[(account(1, "user:1:USD", 5), 0)]))
    second.append(append_of(second.head(), accounts=[(account(2, "user:2:USD", 5), 0)]))
    first.append(append_of(first.head(), accounts=[(account(3, "user:3:USD", 5), 0)]))
    assert dump(reader) == dump(first) == dump(second)
    assert reader.head().incarnation == "first"
    with pytest.raises(StoreError, match="reading only"):
        reader.append(append_of(reader.head()))
    with pytest.raises(StoreError, match="reading only"):
        reader.claim("one", "a", 1)
    for store in (first, second, reader):
        store.close()
        store.close()
    for call in (
        first.head,
        first.cursors,
        lambda: list(first.rows()),
        lambda: first.claim("o", "a", 1),
    ):
        with pytest.raises(StoreError, match="closed"):
            call()
    with pytest.raises(StoreError, match="closed"):
        first.begin(Reads(holders={"user:1"}), set())


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE pennyweight.heads SET sequence = 7",
        "UPDATE pennyweight.heads SET chain = decode(repeat('ab', 32), 'hex')",
        "DELETE FROM pennyweight.entries",
        "DELETE FROM pennyweight.batches",
    ],
)
def test_head_that_is_not_at_the_end_is_refused(database: str, damage: str):
    store = PostgresStore.open(database, new_incarnation="first")
    store.append(append_of(store.head()))
    store.close()
    do(database, damage)
    with pytest.raises(StoreError, match="head"):
        PostgresStore.open(database, new_incarnation="first")


def test_head_that_is_gone_is_told(database: str):
    store = PostgresStore.open(database, new_incarnation="first")
    batch = append_of(store.head())
    do(database, "DELETE FROM pennyweight.heads")
    for call in (
        store.head,
        lambda: list(store.rows()),
        lambda: store.append(batch),
        lambda: store.resolve(batch),
    ):
        with pytest.raises(StoreError, match="head row"):
            call()
    store.close()


# ── texts and sizes ───────────────────────────────────────────────────────────────

ODD = ["", "\0", "\0\0", "\0a", "\1", "\1\0", "\1\1", "\1\2", "\2", "a", "a\0", "a\0b", "a\1", "ab"]


def test_texts_with_any_character_are_kept_and_in_order(store):
    if not isinstance(store, PostgresStore):
        return
    named = [
        record(text, names=(text,), labels=("odd", text), marks=[("review", 1)]) for text in ODD
    ]
    holds = [
        Hold(number, "user:1:USD", "USD", 5, 5, "ledger", reference=text)
        for number, text in enumerate(ODD, 1)
    ]
    store.append(
        append_of(
            store.head(),
            keys=ODD[1:],
            products=["ledger"] * len(ODD[1:]),
            records=[(one, None) for one in reversed(named)],
            holds=[HoldRow(hold, None) for hold in holds],
            cursors=[CursorMove(text, 0, 1) for text in ODD],
        )
    )
    assert sorted(ODD) == ODD
    assert [one.id for one in store.records("note", after="", limit=100)] == ODD[1:]
    assert [one.id for one in store.records("note", label="odd", after="\1\1", limit=3)] == ODD[
        7:10
    ]
    assert [one.id for one in store.due("review", 0, 9)] == ODD
    assert [one.id for one in store.due("review", 0, 9, after=(1, "\0"), limit=2)] == ODD[2:4]
    assert store.cursors() == dict.fromkeys(ODD, 1)
    pairs = {("note", text) for text in ODD}
    found = store.begin(
        Reads(
            records=pairs,
            names=pairs,
            keys={("ledger", text) for text in ODD},
            references={("ledger", text) for text in ODD},
        ),
        set(),
    )
    assert {key: one and one.id for key, one in found.records.items()} == {p: p[1] for p in pairs}
    assert found.names == {pair: pair[1] for pair in pairs}
    assert sum(body is None for body in found.keys.values()) == 1
    assert found.references == {
        ("ledger", hold.reference): hold.id if hold.reference else None for hold in holds
    }
    for number, text in enumerate(ODD[1:], 1):
        assert store.receipt("ledger", text) == store.entry(number)
        assert store.record_named("note", text) == named[number]
        assert store.hold_of_reference("ledger", text) == holds[number]
    kinds = {kind: [row for one, row in store.rows() if one == kind] for kind in ("key", "hold")}
    assert sorted(row.key for row in kinds["key"]) == ODD[1:]
    assert sorted(row.reference for row in kinds["hold"]) == ODD


@pytest.mark.parametrize("key", ["pay\0", "pay\0\0", "pay\\u0000", "pay\\\0", "\\", '"'])
def test_entry_with_any_character_brings_the_holders_it_touched(database: str, key: str):
    store = PostgresStore.open(database, new_incarnation="first")
    book = open_book(store)
    book.execute(OpenAccount("user:1:USD"))
    assert isinstance(
        book.execute(Transfer("world:USD", "user:1:USD", "USD", "5"), key=key), Receipt
    )
    sequence = store.head().sequence
    found = store.begin(Reads(key_entries={("ledger", key)}, entries={sequence}), set())
    assert set(found.holders) == {"world", "user:1"}
    assert found.keys["ledger", key] == found.entries[sequence] == store.entry(sequence)
    found = store.begin(Reads(keys={("ledger", key)}), set())
    whole, told = (
        decode_entry(store.entry(sequence) or b""),
        decode_entry(found.keys["ledger", key]),
    )
    for name in ("sequence", "command", "product", "key", "version", "fields", "answer"):
        assert getattr(told, name) == getattr(whole, name)
    assert isinstance(
        book.execute(Transfer("world:USD", "user:1:USD", "USD", "5"), key=key), Receipt
    )
    assert store.head().sequence == sequence
    store.close()


def test_what_does_not_fit_contradicts(database: str):
    store = PostgresStore.open(database, new_incarnation="first")
    random_text = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(9_000))
    for rows in (
        {"key": random_text},
        {"records": [(record("\ud800"), None)]},
        {"cursors": [CursorMove("c", 0, 2**63)]},
        {"accounts": [(account(2**63, "user:1:USD"), 0)]},
        {"accounts": [(account(1, "user:1:USD", lines=-1), 0)]},
    ):
        with pytest.raises(ConstraintFailed):
            store.append(append_of(store.head(), **rows))
    store.append(append_of(store.head(), key="k"))
    assert check_tail(store) is None
    store.close()


# ── the wire ──────────────────────────────────────────────────────────────────────


def test_batch_takes_one_trip_to_read_and_one_to_append(database: str):
    store = PostgresStore.open(database, new_incarnation="first")
    random_book(6, store=store, batches=10)
    store.begin(Reads(), set())
    trips = store.traffic.round_trips
    everything = Reads(
        holders={"user:1", "user:2", "world"},
        keys={("ledger", "a"), ("ledger", "b")},
        records={("note", "1")},
        names={("note", "n")},
        open_holds={"user:1:USD"},
        room=100,
    )
    store.begin(everything, set())
    assert store.traffic.round_trips == trips + 1
    sent = store.traffic.bytes_sent
    store.append(append_of(store.head(), key="once"))
    assert store.traffic.round_trips == trips + 2
    assert store.traffic.bytes_sent > sent + 100
    store.begin(Reads(holders={"user:1"}), {"user:1"})
    assert store.traffic.round_trips == trips + 2
    store.close()


def test_holds_that_are_wanted_with_their_holders_take_one_trip(database: str):
    store = PostgresStore.open(database, new_incarnation="first")
    hold = Hold(1, "user:1:USD", "USD", 5, 5, "ledger", reference="r")
    facts = account(1, "user:1:USD", 9, held=5, open_holds=1)
    store.append(append_of(store.head(), holds=[HoldRow(hold, None)], accounts=[(facts, 0)]))
    store.begin(Reads(), set())
    trips = store.traffic.round_trips
    found = store.begin(Reads(holders={"user:1"}, references={("ledger", "r")}, room=9), set())
    assert (found.holds, found.holders) == ({1: hold}, {"user:1": ([facts], [])})
    assert store.traffic.round_trips == trips + 1
    assert store.begin(Reads(holds={1}, room=9), set()) == store.begin(Reads(holds={1}), set())
    store.close()


def test_store_works_without_prepared_statements(database: str):
    """As behind a pooler that gives each statement another connection."""
    store = PostgresStore.open(
        f"{database}?prepare=off&application_name=odd", new_incarnation="first"
    )
    random_book(7, store=store)
    assert check_tail(store) is None
    plain = PostgresStore.open(database)
    assert dump(plain) == dump(store)
    names = do(
        database,
        "SELECT DISTINCT application_name FROM pg_stat_activity"
        " WHERE application_name IN ('odd', 'pennyweight') ORDER BY 1",
    )
    assert names == [("odd",), ("pennyweight",)]
    store.close()
    plain.close()


def test_place_is_shown_without_its_password():
    place = Place("postgresql://me:secret@db.example:5433/money")
    assert str(place) == "db.example:5433/money"
    with pytest.raises(StoreError, match="URL") as raised:
        Place("postgresql://me:secret@db/money?nonsense=1")
    assert "secret" not in str(raised.value)


def test_place_that_does_not_answer_is_unavailable():
    with pytest.raises(StoreUnavailable) as raised:
        PostgresStore.open("postgresql://postgres:secret@127.0.0.1:1/postgres")
    assert raised.value.code == "store_unavailable"
    assert "secret" not in str(raised.value)

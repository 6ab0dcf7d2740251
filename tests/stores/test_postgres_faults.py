"""What goes wrong between a book and its server: nothing twice, nothing lost, and words for it."""

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import psycopg
import pytest

from pennyweight.engine.port import (
    Append,
    NotOwner,
    OutcomeUnknown,
    Reads,
    Resolution,
    StoreError,
    StoreUnavailable,
)
from pennyweight.engine.verification import check_tail
from pennyweight.simulators.pgfaults import FaultProxy
from pennyweight.simulators.pgrules import Fault, Rule
from pennyweight.simulators.postgres import PostgresServer
from pennyweight.stores.postgres import PostgresStore, append, channel, place, readers
from stores.batches import account, append_of, dump

T = TypeVar("T")

APPEND = "^WITH head AS"
FENCE = "SET fence"


@pytest.fixture(autouse=True)
def _impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "ANSWER_SECONDS_MAX", 1.0)
    monkeypatch.setattr(channel, "_LOOK_SECONDS", 0.05)


@pytest.fixture
def proxy(database: str) -> Iterator[FaultProxy]:
    with FaultProxy(database, seed=1) as running:
        yield running
        assert running.failures == []


@contextmanager
def opened(url: str, **options: object) -> Iterator[PostgresStore]:
    store = PostgresStore.open(url, new_incarnation="first", **options)  # type: ignore[arg-type]
    try:
        yield store
    finally:
        store.close()


def failure_of(call: Callable[[], object]) -> tuple[type[BaseException] | None, str]:
    """Return how a call fails: the class, and the code where there is one."""
    try:
        call()
    except StoreError as error:
        return type(error), getattr(error, "code", "")
    return None, ""


def eventually(is_so: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)


def do(url: str, statement: str) -> list[tuple]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


# ── an append whose outcome nobody knows ──────────────────────────────────────────

UNKNOWN = {
    Fault.CUT_BEFORE: False,
    Fault.CUT_INSIDE_MESSAGE: False,
    Fault.CUT_BEFORE_COMMIT: False,
    Fault.CUT_AT_ONCE: None,
    Fault.CUT_UNHEARD: True,
    Fault.CUT_INSIDE_ANSWER: True,
    Fault.HOLE_BEFORE: False,
    Fault.HOLE_AFTER: True,
    Fault.WARN: True,
    Fault.WARN_AT_COMMIT: True,
}


@pytest.mark.parametrize("fault", UNKNOWN)
def test_append_whose_outcome_is_unknown_is_found_out(
    proxy: FaultProxy, database: str, fault: Fault
):
    with opened(proxy.url) as store, opened(database) as observer:
        store.append(append_of(store.head(), accounts=[(account(1, "user:1:USD", 5), 0)]))
        batch = append_of(
            store.head(), key="k", accounts=[(account(1, "user:1:USD", 6, version=2), 1)]
        )
        rule = proxy.add(Rule(fault, APPEND))
        assert failure_of(lambda: store.append(batch)) == (OutcomeUnknown, "")
        assert rule.happened.is_set()
        resolution = store.resolve(batch)
        assert resolution.is_owner
        assert resolution.is_committed is (observer.head() == batch.head)
        if UNKNOWN[fault] is not None:
            assert resolution.is_committed is UNKNOWN[fault]
        if resolution.is_committed:
            with pytest.raises(NotOwner):
                store.append(batch)
        else:
            store.append(batch)
        assert store.resolve(batch) == Resolution(is_committed=True, is_owner=True)
        store.append(append_of(store.head(), key="next"))
        assert observer.head().sequence == 3
        assert check_tail(store) is None


def test_append_that_the_server_ended_is_found_out(database: str):
    with opened(database) as store:
        store.begin(Reads(holders={"user:1"}), set())
        batch = append_of(store.head(), key="k")
        with held_head(database) as release:
            outcome = in_thread(lambda: store.append(batch))
            pid = waiting_pid(database)
            do(database, f"SELECT pg_terminate_backend({pid})")
            assert outcome() == (OutcomeUnknown, "")
            release()
        assert store.resolve(batch) == Resolution(is_committed=False, is_owner=True)
        store.append(batch)


@pytest.mark.parametrize("turn", range(4))
def test_append_that_still_waits_is_waited_for_or_defeated(database: str, turn: int):
    """The old append keeps its place in the queue for the head, although its line was cut."""
    with opened(database) as store, opened(database) as observer:
        batch = append_of(store.head(), key=f"k{turn}")
        found: list[Resolution] = []
        with held_head(database) as release:
            assert failure_of(lambda: store.append(batch)) == (OutcomeUnknown, "")
            resolving = in_thread(lambda: found.append(store.resolve(batch)))
            eventually(lambda: len(waiting_pids(database)) == 2)
            release()
            assert resolving() == (None, "")
        assert found[0] == Resolution(observer.head() == batch.head, is_owner=True)


def test_append_that_was_defeated_writes_nothing_later(database: str):
    with opened(database) as store:
        batch = append_of(store.head(), key="k")
        composed, values = append.compose(batch, 0)
        assert not store.resolve(batch).is_committed
        late = psycopg.connect(database, autocommit=True)
        try:
            result = late.pgconn.exec_params(composed.sql, values, None, composed.formats, 1)
            assert result.get_value(0, 0) == append.NO_HEAD
        finally:
            late.close()
        assert store.head().sequence == 0
        store.append(batch)


def test_owner_goes_on_after_another_has_raised_the_fence(database: str):
    with opened(database) as store, opened(database) as other:
        store.append(append_of(store.head()))
        assert not other.resolve(append_of(store.head())).is_committed
        store.append(append_of(store.head()))
        assert store.head().sequence == 2


def test_who_lost_the_book_resolves_without_disturbing_the_next(database: str):
    with opened(database) as old, opened(database) as new:
        old.claim("old", "", 1)
        batch = append_of(old.head())
        time.sleep(0.01)
        assert new.claim("new", "", 60_000_000) is not None
        new.append(append_of(new.head()))
        assert old.resolve(batch) == Resolution(is_committed=False, is_owner=False)
        trips = new.traffic.round_trips
        new.append(append_of(new.head()))
        assert new.traffic.round_trips == trips + 1
        with pytest.raises(NotOwner):
            old.append(batch)


# ── a standby that does not confirm ───────────────────────────────────────────────


def have_commits_wait_for_nobody(database: str) -> None:
    """Let no standby confirm any more. A reload takes effect when the checkpointer has heard of it."""
    do(database, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    do(database, "SELECT pg_reload_conf()")
    for number in range(1_000):
        probe = threading.Thread(target=do, args=(database, f"CREATE TABLE probe_{number} ()"))
        probe.start()
        eventually(lambda: syncing_pids(database) or not probe.is_alive())  # noqa: B023 - asked at once
        waiting = syncing_pids(database)
        for pid in waiting:
            do(database, f"SELECT pg_cancel_backend({pid})")
        probe.join()
        if waiting:
            return
    raise AssertionError("commits do not wait")


def test_commit_that_no_standby_confirms_is_unknown_until_one_does(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(channel, "ANSWER_SECONDS_MAX", 10.0)
    with opened(database) as store:
        store.append(append_of(store.head()))
        batch = append_of(store.head(), key="k")
        try:
            have_commits_wait_for_nobody(database)
            for call, expected in (
                (lambda: store.append(batch), (OutcomeUnknown, "")),
                (lambda: store.resolve(batch), (StoreUnavailable, "store_unconfirmed")),
                (lambda: store.resolve(batch), (StoreUnavailable, "store_unconfirmed")),
                (lambda: store.claim("one", "", 9), (StoreUnavailable, "store_unconfirmed")),
            ):
                outcome = in_thread(call)
                eventually(lambda: syncing_pids(database))
                for pid in syncing_pids(database):
                    do(database, f"SELECT pg_cancel_backend({pid})")
                assert outcome() == expected
        finally:
            do(database, "ALTER SYSTEM RESET synchronous_standby_names")
            do(database, "SELECT pg_reload_conf()")
        eventually(lambda: do(database, "SHOW synchronous_standby_names") == [("",)])
        assert store.resolve(batch).is_committed


def test_fence_with_a_warning_tells_nothing(proxy: FaultProxy):
    with opened(proxy.url) as store:
        batch = append_of(store.head(), key="k")
        proxy.add(Rule(Fault.WARN_AT_COMMIT, APPEND))
        proxy.add(Rule(Fault.WARN_AT_COMMIT, FENCE))
        assert failure_of(lambda: store.append(batch)) == (OutcomeUnknown, "")
        assert failure_of(lambda: store.resolve(batch)) == (StoreUnavailable, "store_unconfirmed")
        assert store.resolve(batch).is_committed


# ── an append that the server refused ─────────────────────────────────────────────

REFUSED = {
    "40001": "store_busy",
    "40P01": "store_busy",
    "55P03": "store_busy",
    "25006": "store_read_only",
    "53100": "store_full",
    "53200": "store_unavailable",
    "57014": "store_timeout",
    "42501": "store_unavailable",
    "XX000": "store_unavailable",
}


@pytest.mark.parametrize("state", REFUSED)
@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.ERROR_AT_COMMIT])
def test_append_that_was_refused_has_written_nothing(proxy: FaultProxy, fault: Fault, state: str):
    with opened(proxy.url) as store:
        store.append(append_of(store.head()))
        before = dump(store)
        batch = append_of(store.head(), key="k")
        proxy.add(Rule(fault, APPEND, sqlstate=state, times=None))
        assert failure_of(lambda: store.append(batch)) == (StoreUnavailable, REFUSED[state])
        proxy.behave()
        assert dump(store) == before
        store.append(batch)
        assert check_tail(store) is None


@pytest.mark.parametrize("state", ["40001", "40P01", "26000", "0A000"])
@pytest.mark.parametrize("kinds", ["E", "P"])
def test_statements_that_may_be_tried_again_are(proxy: FaultProxy, state: str, kinds: str):
    with opened(proxy.url) as store:
        matching = "" if kinds == "E" else "pennyweight"
        for call in (
            lambda: store.append(append_of(store.head(), key="k")),
            lambda: store.begin(Reads(keys={("ledger", "k")}, holders={"user:1"}), set()),
            lambda: store.claim("one", "", 1_000_000),
            lambda: store.resolve(append_of(store.head())),
        ):
            rule = Rule(Fault.ERROR, matching, kinds=kinds, sqlstate=state, times=2)
            proxy.add(rule)
            call()
            proxy.behave()
        assert store.head().sequence == 1


@pytest.mark.parametrize("state", ["57P01", "57P02", "08006", "40003"])
def test_error_that_may_come_after_the_commit_is_unknown(proxy: FaultProxy, state: str):
    with opened(proxy.url) as store:
        batch = append_of(store.head(), key="k")
        store.begin(Reads(holders={"user:1"}), set())
        proxy.add(Rule(Fault.ERROR, APPEND, sqlstate=state))
        assert failure_of(lambda: store.append(batch)) == (OutcomeUnknown, "")
        assert not store.resolve(batch).is_committed
        store.append(batch)


# ── the server itself ─────────────────────────────────────────────────────────────


def test_server_that_stops_and_starts_is_found_again(tmp_path: object):
    with PostgresServer(is_synced=False) as server, opened(server.url) as store:
        reader = PostgresStore.open(server.url, is_read_only=True)
        store.claim("one", "here", 60_000_000)
        batch = append_of(store.head(), key="first")
        store.append(batch)
        at_once = [threading.Thread(target=reader.head) for _ in range(readers.READERS_MAX)]
        for thread in at_once:
            thread.start()
        for thread in at_once:
            thread.join()
        for stop in (server.stop, server.kill):
            stop()
            batch = append_of(batch.head)
            calls = (
                store.head,
                reader.head,
                store.rows,
                partial(store.begin, Reads(holders={"user:1"}), set()),
                partial(store.append, batch),
                partial(store.resolve, batch),
                partial(store.claim, "one", "here", 60_000_000),
                store.lease,
                partial(PostgresStore.open, server.url),
            )
            for call in calls:
                assert failure_of(call) == (StoreUnavailable, "store_unavailable")
            server.start()
            assert reader.head() == batch.expected
            assert store.head() == batch.expected
            assert store.claim("one", "here", 60_000_000) is not None
            assert store.begin(Reads(keys={("ledger", "first")}), set()).keys["ledger", "first"]
            store.append(batch)
            assert check_tail(reader) is None
            assert len(list(reader.rows())) > 1
        reader.close()


def test_append_on_a_line_that_died_meanwhile_is_found_out(tmp_path: object):
    with PostgresServer(is_synced=False) as server, opened(server.url) as store:
        store.append(append_of(store.head(), key="first"))
        batch = append_of(store.head(), key="k")
        server.stop()
        server.start()
        assert failure_of(lambda: store.append(batch)) == (OutcomeUnknown, "")
        assert not store.resolve(batch).is_committed
        store.append(batch)
        other_parts = append_of(store.head())
        server.stop()
        server.start()
        store.append(other_parts)  # not even prepared when the line was found dead


def test_server_that_froze_is_given_up_in_time(tmp_path: object, monkeypatch: pytest.MonkeyPatch):
    with PostgresServer(is_synced=False) as server:
        url = f"{server.url}?connect_timeout=2"
        with opened(url) as store, opened(url) as other:
            store.append(append_of(store.head(), key="first"))
            other.claim("one", "", 60_000_000)
            batch = append_of(store.head(), key="k")
            assert other.head().sequence == 1
            server.freeze()
            try:
                started = time.monotonic()
                calls = {
                    "append": (lambda: store.append(batch), OutcomeUnknown),
                    "claim": (lambda: other.claim("one", "", 60_000_000), StoreUnavailable),
                    "read": (other.head, StoreUnavailable),
                    "begin": (
                        lambda: other.begin(Reads(holders={"user:1"}), set()),
                        StoreUnavailable,
                    ),
                }
                outcomes = {name: in_thread(call) for name, (call, _) in calls.items()}
                for name, outcome in outcomes.items():
                    assert outcome()[0] is calls[name][1], name
                assert time.monotonic() - started < 6
            finally:
                server.thaw()
            resolution = store.resolve(batch)
            assert resolution.is_committed is (other.head().chain == batch.head.chain)


def test_standby_is_read_only_until_it_is_promoted(database: str):
    with opened(database) as store:
        store.append(append_of(store.head()))
        batch = append_of(store.head(), key="other parts")
        name = database.rpartition("/")[2]
        try:
            do(database, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            end_connections(database)
            for call in (
                lambda: store.append(batch),
                lambda: store.resolve(batch),
                lambda: store.claim("one", "", 9),
                lambda: store.stage("name", "value"),
            ):
                assert failure_of(call) == (StoreUnavailable, "store_read_only")
            assert store.head() == batch.expected
            assert store.stage("name") is None
        finally:
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("SET default_transaction_read_only = off")
                connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        store.append(batch)  # on a new line: nobody ended the old one
        assert store.claim("one", "", 9) is not None


def test_statement_time_out_has_written_nothing(database: str):
    name = database.rpartition("/")[2]
    with opened(database) as store:
        batch = append_of(store.head(), key="k")
        try:
            do(database, f"ALTER DATABASE {name} SET statement_timeout = '300ms'")
            with held_head(database) as release:
                assert failure_of(lambda: store.append(batch)) == (
                    StoreUnavailable,
                    "store_timeout",
                )
                release()
        finally:
            do(database, f"ALTER DATABASE {name} RESET statement_timeout")
        store.append(batch)


def test_head_that_stays_locked_is_busy(database: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(channel, "ANSWER_SECONDS_MAX", 10.0)
    with opened(database) as store:
        batch = append_of(store.head())
        with held_head(database) as release:
            outcomes = [
                in_thread(call)
                for call in (lambda: store.claim("one", "", 9), lambda: store.resolve(batch))
            ]
            for outcome in outcomes:
                assert outcome() == (StoreUnavailable, "store_busy")
            release()
        store.append(batch)


def test_server_without_free_connections_is_busy(database: str):
    do(database, "DROP ROLE IF EXISTS few")
    do(database, "CREATE ROLE few LOGIN SUPERUSER")
    url = database.replace("postgres@", "few@")
    try:
        with opened(url) as store:
            batch = append_of(store.head())
            end_connections(database)
            do(database, "ALTER ROLE few NOSUPERUSER CONNECTION LIMIT 0")
            for call in (
                store.head,
                lambda: store.begin(Reads(holders={"user:1"}), set()),
                lambda: store.append(batch),
                lambda: store.claim("one", "", 9),
            ):
                assert failure_of(call) == (StoreUnavailable, "store_busy")
            do(database, "ALTER ROLE few SUPERUSER CONNECTION LIMIT -1")
            store.append(batch)
            assert store.head() == batch.head
    finally:
        end_connections(database)
        do(database, "DROP ROLE few")


def test_server_that_is_starting_is_unavailable(proxy: FaultProxy):
    with opened(proxy.url) as store:
        proxy.cut()
        for state, code in (("57P03", "store_unavailable"), ("53300", "store_busy")):
            proxy.startup_sqlstate = state
            kind, found = failure_of(lambda: store.begin(Reads(holders={"user:1"}), set()))
            assert kind is StoreUnavailable
            assert found in {code, "store_unavailable"}
        proxy.behave()
        store.append(append_of(store.head()))


def test_readers_beyond_the_bound_wait_a_moment_only(
    database: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(readers, "READERS_MAX", 1)
    monkeypatch.setattr(readers, "WAITING_MAX", 1)
    monkeypatch.setattr(readers, "WAIT_SECONDS_MAX", 1.0)
    with opened(database) as store:
        with store._readers._slot():
            waiting = in_thread(store.head)
            eventually(lambda: store._readers._waiting == 1)
            assert failure_of(store.head) == (StoreUnavailable, "store_busy")
            assert waiting() == (StoreUnavailable, "store_busy")
        assert store.head().sequence == 0


def test_book_that_is_closed_under_its_writer_lets_go(database: str):
    for _ in range(3):
        store = PostgresStore.open(database, new_incarnation="first")
        batch = append_of(store.head())
        with held_head(database) as release:
            outcome = in_thread(partial(store.append, batch))
            waiting_pid(database)
            store.close()
            assert outcome() == (OutcomeUnknown, "")
            release()
        eventually(lambda: not waiting_pids(database))
    with pytest.raises(StoreError, match="closed"):
        store.append(batch)


def test_line_that_the_library_let_go_of_can_still_be_cut(database: str):
    with opened(database) as store:
        store.append(append_of(store.head()))
        channel = store._writer._channel
        assert channel is not None
        channel.cut()
        with channel._using:  # as under a statement that has not returned yet
            channel.connection.pgconn.exec_(b"SELECT 1")
            with pytest.raises(psycopg.OperationalError, match="lost"):
                _ = channel.connection.pgconn.socket
            channel.cut()
            closing = in_thread(channel.close)
        assert closing() == (None, "")
        store.append(append_of(store.head(), key="after"))


def test_connection_without_a_descriptor_left_for_it_is_unavailable(
    database: str, monkeypatch: pytest.MonkeyPatch
):
    with opened(database) as store:
        batch = append_of(store.head())
        end_connections(database)
        with monkeypatch.context() as patch:
            patch.setattr(place.os, "dup", _none_left)
            for call in (
                store.head,
                lambda: store.append(batch),
                lambda: store.claim("one", "", 9),
            ):
                assert failure_of(call) == (StoreUnavailable, "store_unavailable")
        store.append(batch)
        assert store.head() == batch.head


def _none_left(_: int) -> int:
    raise OSError(errno.EMFILE, "Too many open files")


# ── many at once ──────────────────────────────────────────────────────────────────


def test_lease_is_renewed_beside_appends_at_serializable(database: str):
    name = database.rpartition("/")[2]
    try:
        do(database, f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
        with opened(database) as store:
            lease = store.claim("one", "", 60_000_000)
            is_over = threading.Event()
            claims: list[object] = []

            def renew() -> None:
                while not is_over.is_set():
                    claims.append(store.claim("one", "", 60_000_000))
                    store.head()

            renewing = in_thread(renew)
            for number in range(200):
                store.append(append_of(store.head(), key=str(number)))
            is_over.set()
            assert renewing() == (None, "")
            assert lease is not None
            assert {claim.epoch for claim in claims} == {lease.epoch}  # type: ignore[attr-defined]
            assert store.head().sequence == 200
    finally:
        do(database, f"ALTER DATABASE {name} RESET default_transaction_isolation")


def test_of_many_that_claim_at_once_one_gets_the_book(database: str):
    with opened(database) as first, opened(database) as second, opened(database) as third:
        stores = [first, second, third]
        for turn in range(1, 30):
            gate = threading.Barrier(3)
            leases: list[object] = []

            def claim(number: int, gate=gate, leases=leases) -> None:
                gate.wait()
                leases.append(stores[number].claim(f"member {number}", "", 60_000_000))

            threads = [threading.Thread(target=claim, args=(number,)) for number in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            (lease,) = [one for one in leases if one is not None]
            assert lease.epoch == turn  # type: ignore[attr-defined]
            first.give_up(lease.owner)  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_journal_has_exactly_what_was_told_whatever_goes_wrong(
    database: str, seed: int, monkeypatch: pytest.MonkeyPatch
):
    """Every fault at any statement: the writer asks until it knows, and goes on."""
    monkeypatch.setattr(channel, "ANSWER_SECONDS_MAX", 0.3)
    draw = random.Random(seed)
    told: list[bytes] = []
    seen: set[str] = set()
    with FaultProxy(database, seed=seed) as proxy, opened(proxy.url) as store:
        proxy.misbehave(
            {fault: 0.015 for fault in Fault if not fault.startswith(("hole", "delay"))}
            | {Fault.HOLE_AFTER: 0.003, Fault.HOLE_BEFORE: 0.003}
        )
        head = patient(store.head, seen)
        for number in range(150):
            key = f"key {draw.randrange(10**9)}"
            found = patient(lambda key=key: store.begin(Reads(keys={("ledger", key)}), set()), seen)
            assert found.keys == {("ledger", key): None}
            batch = append_of(head, key=key, accounts=changed(head.sequence))
            commit(store, batch, seen)
            told.append(batch.batch.chain)
            head = batch.head
            assert number + 1 == head.sequence
        proxy.behave()
        assert sum(proxy.happened.values()) > 20
        assert {"OutcomeUnknown", "StoreUnavailable"} <= seen
    with opened(database) as observer:
        assert [chain for _, chain in observer.batches(0, 1_000)] == told
        assert observer.head() == head
        stored = observer.account("user:1:USD")
        assert stored is not None
        assert stored.posted == 150
        assert check_tail(observer) is None


def changed(sequence: int) -> list[tuple]:
    return [(account(1, "user:1:USD", sequence + 1, version=sequence + 1), sequence)]


def commit(store: PostgresStore, batch: Append, seen: set[str]) -> None:
    """Append a batch, as an owner does: again while nothing was written, asking when unknown."""
    for _ in range(200):
        try:
            store.append(batch)
        except OutcomeUnknown:
            seen.add("OutcomeUnknown")
            resolution = patient(lambda: store.resolve(batch), seen)
            assert resolution.is_owner
            if resolution.is_committed:
                return
        except StoreUnavailable:
            seen.add("StoreUnavailable")
        else:
            return
    raise AssertionError("200 tries were not enough")


def patient(call: Callable[[], T], seen: set[str]) -> T:
    for _ in range(200):
        try:
            return call()
        except StoreUnavailable:
            seen.add("StoreUnavailable")
    raise AssertionError("200 tries were not enough")


# ── helpers ───────────────────────────────────────────────────────────────────────


@contextmanager
def held_head(url: str) -> Iterator[Callable[[], object]]:
    """Hold the head's row, as a transaction that is under way would, until released."""
    with psycopg.connect(url) as connection:
        connection.execute("SET statement_timeout = 0")
        connection.execute("SELECT 1 FROM pennyweight.heads FOR UPDATE")
        yield connection.rollback


def in_thread(call: Callable[[], object]) -> Callable[[], tuple[type[BaseException] | None, str]]:
    """Start a call; the returned function waits for how it ends."""
    outcomes: list[object] = []

    def run() -> None:
        try:
            outcomes.append(failure_of(call))
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            outcomes.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def outcome() -> tuple[type[BaseException] | None, str]:
        thread.join(30)
        assert outcomes, "it does not end"
        return outcomes[0]  # type: ignore[return-value]

    return outcome


def waiting_pids(url: str) -> list[int]:
    return [
        pid
        for (pid,) in do(
            url,
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock'",
        )
    ]


def waiting_pid(url: str) -> int:
    eventually(lambda: waiting_pids(url))
    return waiting_pids(url)[0]


def syncing_pids(url: str) -> list[int]:
    return [
        pid for (pid,) in do(url, "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
    ]


def end_connections(url: str) -> None:
    do(
        url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )

"""The proxy that misbehaves: what a client sees of each fault, and what the server did."""

import contextlib
import threading
import time

import psycopg
import pytest

from pennyweight.simulators.pgfaults import FaultProxy
from pennyweight.simulators.pgrules import Fault, Rule
from pennyweight.simulators.postgres import PostgresServer, binaries

pytestmark = pytest.mark.skipif(binaries() is None, reason="not here: PostgreSQL's binaries")

APPEND = "^WITH head AS"
STATEMENT = """WITH head AS (update head set sequence = sequence + 1 returning sequence)
    insert into entries select sequence, %s from head returning sequence"""
SIMPLE = "WITH head AS (select 1) insert into entries select 0, 'simple'"


@pytest.fixture(scope="module")
def server():
    with PostgresServer(is_synced=False) as running:
        with psycopg.connect(running.url, autocommit=True) as connection:
            connection.execute("create table head (sequence int)")
            connection.execute("create table entries (sequence int, word text)")
        yield running


@pytest.fixture
def direct(server):
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("truncate entries")
        connection.execute("truncate head")
        connection.execute("insert into head values (0)")
        yield connection


@pytest.fixture
def proxy(server):
    with FaultProxy(server.url, seed=1) as running:
        yield running


def connect(proxy, **options):
    return psycopg.connect(proxy.url, autocommit=True, connect_timeout=5, **options)


def words(direct) -> list[str]:
    return [row[0] for row in direct.execute("select word from entries order by word").fetchall()]


def eventually(is_so, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        time.sleep(0.01)
    return is_so()


def test_proxy_without_rules_changes_nothing(proxy, direct):
    with connect(proxy) as connection:
        assert connection.execute(STATEMENT, ["one"]).fetchone() == (1,)
        for number in range(10):  # psycopg prepares it meanwhile
            assert connection.execute(STATEMENT, ["more"]).fetchone() == (number + 2,)
        with connection.pipeline():
            cursors = [connection.execute(STATEMENT, [f"piped {n}"]) for n in range(3)]
        assert [cursor.fetchone() for cursor in cursors] == [(12,), (13,), (14,)]
        with pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("select * from nowhere")
        with connection.transaction():
            connection.execute(STATEMENT, ["in a transaction"])
        with connection.cursor().copy("copy entries from stdin") as copy:
            copy.write_row((0, "copied"))
        with connection.cursor().copy("copy entries to stdout") as copy:
            assert len(list(copy.rows())) == 16
        large = "x" * 300_000
        assert connection.execute("select %s::text", [large]).fetchone() == (large,)
        connection.add_notice_handler(lambda said: pytest.fail(str(said)))
        assert proxy.connections == 1
    assert words(direct).count("more") == 10
    assert eventually(lambda: proxy.connections == 0)
    assert proxy.statements > 20
    assert not proxy.happened


CUTS = [
    # fault, whether the statement was committed
    (Fault.CUT_BEFORE, False),
    (Fault.CUT_INSIDE_MESSAGE, False),
    (Fault.CUT_BEFORE_COMMIT, False),
    (Fault.CUT_AT_ONCE, True),
    (Fault.CUT_UNHEARD, True),
    (Fault.CUT_INSIDE_ANSWER, True),
]


@pytest.mark.parametrize("has_prepared", [False, True])
@pytest.mark.parametrize(("fault", "is_committed"), CUTS)
def test_cut_loses_the_connection_and_perhaps_the_statement(
    proxy, direct, fault, is_committed, has_prepared
):
    rule = proxy.add(Rule(fault, APPEND, skip=1))
    with connect(proxy) as connection:
        connection.execute(STATEMENT, ["before"], prepare=has_prepared)
        with pytest.raises(psycopg.OperationalError):
            connection.execute(STATEMENT, ["cut"], prepare=has_prepared)
        assert connection.closed
    assert rule.happened.is_set()
    assert proxy.happened == {fault: 1}
    if is_committed:
        assert eventually(lambda: words(direct) == ["before", "cut"])
    else:
        assert eventually(lambda: others(direct) == 0)  # it is over, one way or the other
        assert words(direct) == ["before"]
    with connect(proxy) as connection:
        connection.execute(STATEMENT, ["after"])
    assert words(direct)[0] == "after"


def others(direct) -> int:
    """How many other clients the server has."""
    return direct.execute(
        "select count(*) from pg_stat_activity"
        " where backend_type = 'client backend' and pid <> pg_backend_pid()"
    ).fetchone()[0]


@pytest.mark.parametrize(("fault", "is_committed"), CUTS)
def test_cut_of_a_simple_query(proxy, direct, fault, is_committed):
    proxy.add(Rule(fault, APPEND))
    with connect(proxy) as connection, pytest.raises(psycopg.OperationalError):
        connection.execute(SIMPLE)
    assert eventually(lambda: others(direct) == 0)
    assert words(direct) == (["simple"] if is_committed else [])


def test_cut_at_once_leaves_the_statement_at_work(proxy, server, direct):
    proxy.add(Rule(Fault.CUT_AT_ONCE, APPEND))
    with psycopg.connect(server.url) as blocker:
        blocker.execute("lock table head")
        with connect(proxy) as connection, pytest.raises(psycopg.OperationalError):
            connection.execute(STATEMENT, ["late"])
        assert words(direct) == []
        assert others(direct) == 2  # the one that blocks, and the one that waits for it
    assert eventually(lambda: words(direct) == ["late"])
    assert eventually(lambda: proxy.connections == 0)


def test_answers_for_a_client_that_is_gone_are_dropped(proxy, direct):
    proxy.add(Rule(Fault.CUT_AT_ONCE, APPEND))
    proxy.add(Rule(Fault.CUT_HEARD, APPEND))
    with connect(proxy) as connection, pytest.raises(psycopg.OperationalError):
        connection.cursor().executemany(STATEMENT, [["first"], ["second"]])
    assert eventually(lambda: proxy.connections == 0)
    assert words(direct) == ["first", "second"]
    assert proxy.failures == []


def test_cut_behind_a_full_answer_is_found_by_the_next_statement(proxy, direct):
    proxy.add(Rule(Fault.CUT_HEARD, APPEND))
    with connect(proxy) as connection:
        assert connection.execute(STATEMENT, ["heard"]).fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    assert words(direct) == ["heard"]


def test_cut_of_a_commit_inside_a_transaction(proxy, direct):
    for fault in (Fault.CUT_BEFORE, Fault.CUT_UNHEARD):
        proxy.add(Rule(fault, "^commit"))
        connection = psycopg.connect(proxy.url)
        connection.execute(STATEMENT, [fault.value])
        with pytest.raises(psycopg.OperationalError):
            connection.commit()
    assert words(direct) == ["cut_unheard"]


ERRORS = [
    ("40001", psycopg.errors.SerializationFailure),
    ("40P01", psycopg.errors.DeadlockDetected),
    ("53100", psycopg.errors.DiskFull),
    ("53300", psycopg.errors.TooManyConnections),
    ("25006", psycopg.errors.ReadOnlySqlTransaction),
    ("57014", psycopg.errors.QueryCanceled),
]


@pytest.mark.parametrize("has_prepared", [False, True])
@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.ERROR_AT_COMMIT])
@pytest.mark.parametrize(("sqlstate", "error"), ERRORS)
def test_error_is_the_servers_and_the_connection_goes_on(
    proxy, direct, fault, sqlstate, error, has_prepared
):
    proxy.add(Rule(fault, APPEND, times=2, sqlstate=sqlstate))
    with connect(proxy) as connection:
        for statement in (STATEMENT, SIMPLE):
            with pytest.raises(error):
                connection.execute(
                    statement, ["no"] if statement is STATEMENT else None, prepare=has_prepared
                )
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert connection.execute(STATEMENT, ["yes"], prepare=has_prepared).fetchone() == (1,)
    assert words(direct) == ["yes"]


def test_error_at_a_parse_leaves_nothing_prepared(proxy, direct):
    proxy.add(Rule(Fault.ERROR, APPEND, kinds="P"))
    with connect(proxy) as connection:
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.execute(STATEMENT, ["no"], prepare=True)
        assert connection.execute("select count(*) from pg_prepared_statements").fetchone() == (0,)
        for number in range(3):
            cursor = connection.execute(STATEMENT, ["yes"], prepare=True)
            assert cursor.fetchone() == (number + 1,)
    assert words(direct) == ["yes"] * 3


def test_error_inside_a_transaction_ends_it(proxy, direct):
    proxy.add(Rule(Fault.ERROR, "second"))
    with psycopg.connect(proxy.url) as connection:
        connection.execute(STATEMENT, ["first"])
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.execute("select 'second'")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            connection.execute(STATEMENT, ["still in it"])
        connection.rollback()
        connection.execute(STATEMENT, ["third"])
    assert words(direct) == ["third"]


def test_commit_that_fails_leaves_no_transaction(proxy, direct):
    proxy.add(Rule(Fault.ERROR, "^commit"))
    with psycopg.connect(proxy.url) as connection:
        connection.execute(STATEMENT, ["gone"])
        with pytest.raises(psycopg.errors.SerializationFailure):
            connection.commit()
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        connection.execute(STATEMENT, ["kept"])
        connection.commit()
    assert words(direct) == ["kept"]


def test_error_in_a_pipeline_takes_what_was_piped_along(proxy, direct):
    proxy.add(Rule(Fault.ERROR, APPEND, skip=1))
    with connect(proxy) as connection:
        with pytest.raises(psycopg.errors.SerializationFailure), connection.pipeline():
            connection.cursor().executemany(STATEMENT, [["first"], ["second"], ["third"]])
        connection.execute(STATEMENT, ["after"])
    assert words(direct) == ["after"]


@pytest.mark.parametrize("sqlstate", ["57P01", "57P02"])
def test_error_with_which_the_server_hangs_up(proxy, direct, sqlstate):
    proxy.add(Rule(Fault.ERROR, APPEND, sqlstate=sqlstate))
    with connect(proxy) as connection:
        with pytest.raises(psycopg.OperationalError) as raised:
            connection.execute(STATEMENT, ["no"])
        assert raised.value.sqlstate == sqlstate
        assert connection.closed
    assert words(direct) == []


@pytest.mark.parametrize("statement", [STATEMENT, SIMPLE])
@pytest.mark.parametrize("fault", [Fault.WARN, Fault.WARN_AT_COMMIT])
def test_warning_comes_with_the_success(proxy, direct, fault, statement):
    proxy.add(Rule(fault, APPEND))
    said = []
    with connect(proxy) as connection:
        connection.add_notice_handler(lambda notice: said.append(notice.sqlstate))
        connection.execute(statement, ["warned"] if statement is STATEMENT else None)
        assert said == ["01000"]
        connection.execute(STATEMENT, ["silent"])
        assert said == ["01000"]
    assert len(words(direct)) == 2


@pytest.mark.parametrize("fault", [Fault.DELAY, Fault.DELAY_ANSWER])
def test_delay_is_late_and_nothing_else(proxy, direct, fault):
    proxy.add(Rule(fault, APPEND, seconds=0.3))
    with connect(proxy) as connection:
        thread = threading.Thread(target=connection.execute, args=(STATEMENT, ["late"]))
        started = time.monotonic()
        thread.start()
        time.sleep(0.15)
        assert words(direct) == ([] if fault is Fault.DELAY else ["late"])
        thread.join()
        assert 0.3 <= time.monotonic() - started < 2
    assert words(direct) == ["late"]


@pytest.mark.parametrize(("fault", "is_committed"), [("hole_before", False), ("hole_after", True)])
def test_hole_answers_nothing_and_stays_open(proxy, direct, fault, is_committed):
    rule = proxy.add(Rule(Fault(fault), APPEND))
    with connect(proxy) as connection:
        failed = []

        def execute():
            try:
                connection.execute(STATEMENT, ["swallowed"])
            except psycopg.OperationalError:
                failed.append(True)

        thread = threading.Thread(target=execute)
        thread.start()
        assert rule.happened.wait(5)
        thread.join(0.2)
        assert thread.is_alive()
        with connect(proxy) as other:  # the others have none of it
            assert other.execute("select 1").fetchone() == (1,)
        proxy.cut()
        thread.join()
        assert failed == [True]
    assert words(direct) == (["swallowed"] if is_committed else [])


@pytest.mark.parametrize("direction", ["requests", "answers"])
def test_hole_for_all_takes_new_connections_too(proxy, direct, direction):
    with connect(proxy) as connection:
        setattr(proxy, f"is_swallowing_{direction}", True)
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(proxy.url, connect_timeout=2)
        thread = threading.Thread(target=attempt, args=(connection, "swallowed"))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert words(direct) == (["swallowed"] if direction == "answers" else [])
        proxy.behave()
        with connect(proxy) as other:
            assert other.execute("select 1").fetchone() == (1,)
        assert thread.is_alive()  # what was swallowed does not come back
        proxy.cut()
        thread.join()


def attempt(connection, word: str) -> None:
    with contextlib.suppress(psycopg.OperationalError):
        connection.execute(STATEMENT, [word])


def test_refused_connections_find_nobody_and_open_ones_go_on(proxy, direct):
    with connect(proxy) as connection:
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(psycopg.OperationalError, match="refused"):
            connect(proxy)
        assert connection.execute(STATEMENT, ["open"]).fetchone() == (1,)
    for take_again in (proxy.accept, proxy.behave):
        take_again()
        with connect(proxy) as connection:
            assert words(connection) == ["open"]
        proxy.refuse()


@pytest.mark.parametrize(("sqlstate", "said"), [("53300", "too many"), ("57P03", "starting up")])
def test_connections_are_refused_with_an_error(proxy, sqlstate, said):
    proxy.startup_sqlstate = sqlstate
    with pytest.raises(psycopg.OperationalError, match=said):
        connect(proxy)
    proxy.behave()
    connect(proxy).close()


def test_slow_network_takes_its_time(proxy, direct):
    with connect(proxy) as connection:
        proxy.bytes_per_second = 20_000
        started = time.monotonic()
        text = "x" * 10_000
        assert connection.execute("select %s::text", [text]).fetchone() == (text,)
        assert 0.9 <= time.monotonic() - started < 5  # half a second there, half a second back
        proxy.behave()
        proxy.latency_seconds = 0.1
        started = time.monotonic()
        connection.execute("select 1")
        assert 0.2 <= time.monotonic() - started < 2


def test_gone_server_is_a_gone_connection(proxy, server):
    with connect(proxy) as connection:
        server.stop("immediate")
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
        with pytest.raises(psycopg.OperationalError):
            connect(proxy)
    server.start()
    with connect(proxy) as connection:
        assert connection.execute("select 1").fetchone() == (1,)


def test_cancelling_goes_through(proxy):
    with connect(proxy) as connection:
        threading.Timer(0.2, connection.cancel_safe).start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute("select pg_sleep(20)")


RULES = [
    # rule, which of five statements suffer
    ((APPEND, {}), [0]),
    (("with HEAD", {"skip": 1, "times": 2}), [1, 2]),
    (("update", {"times": None}), [0, 1, 2, 3, 4]),
    (("^update", {"times": None}), []),
    (("", {"kinds": "Q", "times": None}), []),
    ((APPEND, {"kinds": "S"}), [0]),
    ((APPEND, {"kinds": "B", "skip": 4}), [4]),
    ((APPEND, {"times": None, "chance": 0.0}), []),
]


@pytest.mark.parametrize(("rule", "suffer"), RULES)
def test_rule_chooses_its_statements(proxy, direct, rule, suffer):
    matching, options = rule
    proxy.add(Rule(Fault.ERROR, matching, **options))
    failed = []
    with connect(proxy) as connection:
        for number in range(5):
            try:
                connection.execute(STATEMENT, [str(number)])
            except psycopg.errors.SerializationFailure:
                failed.append(number)
    assert failed == suffer
    assert words(direct) == [str(number) for number in range(5) if number not in suffer]


def test_rule_that_cannot_be_is_refused():
    with pytest.raises(ValueError, match="cut_unheard cannot happen at P"):
        Rule(Fault.CUT_UNHEARD, kinds="P")
    with pytest.raises(ValueError, match="cannot happen at X"):
        Rule(Fault.ERROR, kinds="X")


def suffered(server, seed: int) -> list[str]:
    """What each of 200 statements suffers, each on a connection that works."""
    log = []
    chances = {Fault.ERROR: 0.2, Fault.CUT_BEFORE: 0.1, Fault.CUT_UNHEARD: 0.1}
    with FaultProxy(server.url, seed=seed) as proxy:
        proxy.misbehave(chances, APPEND)
        connection = connect(proxy)
        for number in range(200):
            if connection.closed:
                connection = connect(proxy)
            try:
                connection.execute(STATEMENT, [f"{number:03}"])
                log.append("")
            except psycopg.OperationalError as error:
                log.append(type(error).__name__)
        connection.close()
        assert sum(proxy.happened.values()) == sum(map(bool, log))
        assert set(proxy.happened) == set(chances)
        assert 40 < sum(proxy.happened.values()) < 120
        direct_words = proxy.happened[Fault.CUT_UNHEARD] + log.count("")
    with psycopg.connect(server.url) as direct:
        assert len(words(direct)) == direct_words
    return log


def test_random_faults_are_those_of_the_seed(server, direct):
    first = suffered(server, seed=3)
    direct.execute("truncate entries")
    assert suffered(server, seed=3) == first
    direct.execute("truncate entries")
    assert suffered(server, seed=4) != first

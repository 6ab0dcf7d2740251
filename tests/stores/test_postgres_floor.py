"""What a commit of a server costs at least, and what went over the writer's line."""

from contextlib import closing

import psycopg
import pytest

from pennyweight.engine.port import StoreUnavailable, Traffic
from pennyweight.stores.postgres import PostgresStore
from pennyweight.stores.postgres.floor import commit_times
from stores.batches import append_of

SCHEMAS = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'pennyweight_floor%'"


def test_each_commit_has_its_time_and_nothing_stays(database: str):
    times = commit_times(database, 0.1)
    assert len(times) > 5
    assert 0.05e9 < sum(times) < 5e9
    with psycopg.connect(database) as connection:
        assert connection.execute(SCHEMAS).fetchone() == (0,)


def test_a_role_that_may_make_no_table_is_told_nothing(database: str):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS nobody_s")
        connection.execute("CREATE ROLE nobody_s LOGIN")
        try:
            assert commit_times(database.replace("postgres@", "nobody_s@"), 0.1) == []
        finally:
            connection.execute("DROP ROLE nobody_s")


def test_a_server_that_is_not_there_says_so():
    with pytest.raises(StoreUnavailable):
        commit_times("postgresql://postgres@127.0.0.1:1/x", 0.1)


def test_only_a_writer_has_traffic(database: str):
    with closing(PostgresStore.open(database, new_incarnation="first")) as store:
        assert store.traffic == Traffic()
        store.append(append_of(store.head()))
        assert store.traffic.round_trips >= 1
        assert store.traffic.bytes_sent > 100
        with closing(PostgresStore.open(database, is_read_only=True)) as reader:
            assert reader.head().sequence
            assert reader.traffic == Traffic()

"""API keys beside the journal: the same for all instances, none lost, nobody let in by accident."""

import threading
import time
from collections.abc import Callable

import pytest

from pennyweight.delivery import keys
from pennyweight.delivery.http.guard import Guard
from pennyweight.engine.port import Head, StoreUnavailable
from pennyweight.stores.memory import MemoryStore

NOW = 1_760_000_000_000_000
OWN = {"host": "127.0.0.1"}


class Database(MemoryStore):
    """A store that can be away, and counts who asks."""

    def __init__(self) -> None:
        super().__init__(Head(book="main", incarnation="first"))
        self.is_away = False
        self.asked = 0
        self.pause: Callable[[], None] = lambda: None

    def stage(self, name: str, value: str | None = None, *, is_first: bool = False) -> str | None:
        self.asked += 1
        self.pause()
        if self.is_away:
            raise StoreUnavailable("the database is away")
        return super().stage(name, value, is_first=is_first)


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def source(database: Database) -> keys.StoreKeys:
    return keys.StoreKeys(database)


def bearer(token: str) -> dict[str, str]:
    return {**OWN, "authorization": f"Bearer {token}"}


def test_keys_are_made_listed_and_revoked(source: keys.StoreKeys, database: Database) -> None:
    assert source.load() == []
    first = keys.create(source, ("*",), now=NOW)
    second = keys.create(source, ("ledger:read",), now=NOW + 1, note="reports")
    assert [key.scopes for key in keys.load(keys.StoreKeys(database))] == [("*",), ("ledger:read",)]
    first_id = first.partition(".")[0]
    assert keys.revoke(source, first_id, now=NOW + 2)
    assert not keys.revoke(source, first_id, now=NOW + 3)
    assert not keys.revoke(source, "nobody", now=NOW + 3)
    assert [key.revoked_at for key in source.load()] == [NOW + 2, None]
    kept = [database.stage(f"api_keys.{number}") or "" for number in (1, 2, 3)]
    assert all(kept)
    assert second.partition(".")[2] not in "".join(kept)


def test_news_are_told_once(source: keys.StoreKeys, database: Database) -> None:
    other = keys.StoreKeys(database)
    assert source.news() is None
    keys.create(other, ("*",), now=NOW)
    assert [key.created_at for key in source.news() or []] == [NOW]
    assert source.news() is None


def test_a_hint_that_is_behind_misleads_nobody(source: keys.StoreKeys, database: Database) -> None:
    for number in range(4):
        keys.create(source, ("*",), now=NOW + number)
    database.stage("api_keys", "2")
    assert len(keys.StoreKeys(database).load()) == 4
    keys.create(source, ("*",), now=NOW)
    assert len(keys.StoreKeys(database).load()) == 5


def test_of_changes_at_once_none_is_lost(database: Database) -> None:
    start = threading.Barrier(8)
    database.pause = lambda: time.sleep(0.001)

    def create(number: int) -> None:
        start.wait()
        keys.create(keys.StoreKeys(database), ("*",), now=NOW + number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = keys.StoreKeys(database).load()
    assert sorted(key.created_at for key in found) == [NOW + number for number in range(8)]


def test_keys_that_are_gone_are_an_error_and_not_no_keys(
    source: keys.StoreKeys, database: Database
) -> None:
    database.stage("api_keys", "3")
    with pytest.raises(ValueError, match=r"api_keys\.3 is gone"):
        source.load()
    assert Guard(source, "127.0.0.1").has_keys


# ── the guard ─────────────────────────────────────────────────────────────────────


class Watched:
    """A guard with a clock that we move."""

    def __init__(self, source: keys.StoreKeys, host: str = "127.0.0.1") -> None:
        self.now = 0.0
        self.guard = Guard(source, host, monotonic=lambda: self.now)

    def status(self, headers: dict[str, str]) -> int:
        refused = self.guard.check("ledger", is_write=True, headers=headers)
        return 200 if refused is None else refused.status

    def settle(self) -> None:
        """A second later, and what reads in the background has ended."""
        self.now += 1.0
        self.status(OWN)
        with self.guard._is_reading:
            pass


def test_the_guard_takes_up_what_others_changed(source: keys.StoreKeys, database: Database) -> None:
    watched = Watched(source)
    assert not watched.guard.has_keys
    assert watched.status(OWN) == 200
    token = keys.create(keys.StoreKeys(database), ("*",), now=NOW)
    watched.settle()
    assert watched.status(OWN) == 401
    assert watched.status(bearer(token)) == 200
    keys.revoke(keys.StoreKeys(database), token.partition(".")[0], now=NOW)
    watched.settle()
    assert watched.status(bearer(token)) == 401
    assert watched.status(OWN) == 401


def test_the_guard_asks_once_a_second_and_never_waits(
    source: keys.StoreKeys, database: Database
) -> None:
    token = keys.create(source, ("*",), now=NOW)
    watched = Watched(source)
    go_on = threading.Event()
    asking = threading.Event()

    def pause() -> None:
        asking.set()
        assert go_on.wait(20)

    database.pause = pause
    before = database.asked
    for _ in range(100):
        assert watched.status(bearer(token)) == 200
    assert database.asked == before
    watched.now += 1.0
    assert watched.status(bearer(token)) == 200
    assert asking.wait(20)
    for _ in range(5):
        watched.now += 1.0
        assert watched.status(bearer(token)) == 200
    assert database.asked == before + 1
    go_on.set()
    with watched.guard._is_reading:
        pass


def test_while_the_database_is_away_what_was_known_counts(
    source: keys.StoreKeys, database: Database
) -> None:
    token = keys.create(source, ("*",), now=NOW)
    watched = Watched(source)
    database.is_away = True
    watched.settle()
    assert watched.status(bearer(token)) == 200
    assert watched.status(OWN) == 401


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_where_nothing_is_known_yet_nobody_is_let_in(
    source: keys.StoreKeys, database: Database, host: str
) -> None:
    token = keys.create(source, ("*",), now=NOW)
    database.is_away = True
    watched = Watched(keys.StoreKeys(database), host)
    assert watched.guard.has_keys
    assert watched.status(OWN) == 503
    assert watched.status(bearer(token)) == 503
    database.is_away = False
    watched.settle()
    assert watched.status(OWN) == 401
    assert watched.status(bearer(token)) == 200

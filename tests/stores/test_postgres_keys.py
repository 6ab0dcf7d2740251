"""The owner's filter of bound keys: what it calls free is free, whoever had the book before."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pennyweight.engine.port import ConstraintFailed, NotOwner, Reads, StoreUnavailable
from pennyweight.engine.verification import check_tail
from pennyweight.stores.postgres import PostgresStore, keys
from pennyweight.stores.postgres.keys import KeyFilter, Pair
from random_books import random_book
from stores.batches import account, append_of


def eventually(is_so: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


def named(prefix: str, count: int) -> list[Pair]:
    return [("ledger", f"{prefix} {number}") for number in range(count)]


def pages(bound: list[Pair]) -> Callable[[Pair, int], list[Pair]]:
    ordered = sorted(bound)
    return lambda after, limit: [name for name in ordered if name > after][:limit]


# ── the filter ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [0, 1, 999, 1_000, 1_001, 3_500])
def test_filter_knows_every_bound_key_and_hardly_another(
    count: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(keys, "_REST", 0)
    bound, free = named("bound", count), named("free", 4_000)
    known = KeyFilter(1, pages(bound))
    eventually(lambda: known.is_loaded)
    assert known.strangers(bound) == set(bound)
    assert len(known.strangers(free)) < 40
    known.add(free)
    assert known.strangers(free) == set(free)
    known.stop()


def test_filter_keeps_what_is_bound_while_it_loads():
    gate = threading.Event()

    def page(after: Pair, limit: int) -> list[Pair]:
        gate.wait(10)
        return []

    known = KeyFilter(1, page)
    known.add(named("early", 50))
    assert not known.is_loaded
    gate.set()
    eventually(lambda: known.is_loaded)
    assert known.strangers(named("early", 50)) == set(named("early", 50))
    known.stop()


def test_filter_asks_again_when_a_page_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(keys, "_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(keys, "_REST", 0)
    bound, asked = named("bound", 2_500), []
    read = pages(bound)

    def page(after: Pair, limit: int) -> list[Pair]:
        asked.append(after)
        if len(asked) % 2:
            raise StoreUnavailable("not now")
        return read(after, limit)

    known = KeyFilter(1, page)
    eventually(lambda: known.is_loaded)
    assert known.strangers(bound) == set(bound)
    assert len(asked) == 6
    known.stop()


def test_filter_that_is_full_wants_a_larger_one():
    known = KeyFilter(1, pages([]), words=16)
    eventually(lambda: known.is_loaded)
    known.add(named("a", 32))
    assert not known.is_full
    known.add(named("b", 1))
    assert known.is_full
    assert known.words_wanted == 64
    known.stop()


# ── in the store ──────────────────────────────────────────────────────────────────


@pytest.fixture
def pair(database: str) -> Iterator[tuple[PostgresStore, PostgresStore]]:
    stores = (
        PostgresStore.open(database, new_incarnation="first"),
        PostgresStore.open(database, new_incarnation="first"),
    )
    yield stores
    for store in stores:
        store.close()


def own(store: PostgresStore, name: str) -> None:
    """Claim the book, and wait until its keys are known."""
    assert store.claim(name, "", 60_000_000) is not None
    store.begin(Reads(keys={("ledger", "wake up")}), set())
    eventually(lambda: store._writer._keys.is_loaded)  # type: ignore[union-attr]


def find(store: PostgresStore, *wanted: str) -> dict[str, bool]:
    found = store.begin(Reads(keys={("ledger", key) for key in wanted}), set())
    assert set(found.keys) == {("ledger", key) for key in wanted}
    return {key: body is not None for (_, key), body in found.keys.items()}


def test_free_keys_take_no_trip_and_bound_ones_are_found(
    pair: tuple[PostgresStore, PostgresStore],
):
    store, _ = pair
    store.append(append_of(store.head(), key="before"))
    own(store, "one")
    store.append(append_of(store.head(), key="after"))
    trips = store.traffic.round_trips
    assert find(store, "free") == {"free": False}
    assert store.traffic.round_trips == trips
    assert find(store, "before", "after", "free") == {"before": True, "after": True, "free": False}
    assert store.traffic.round_trips == trips + 1


def test_who_owns_nothing_asks_for_every_key(pair: tuple[PostgresStore, PostgresStore]):
    store, other = pair
    for number in range(3):
        assert find(store, f"k{number}") == {f"k{number}": False}
        other.append(append_of(other.head(), key=f"k{number}"))
        assert find(store, f"k{number}") == {f"k{number}": True}
    assert store._writer._keys is None  # type: ignore[union-attr]


def test_keys_that_another_owner_bound_are_found(pair: tuple[PostgresStore, PostgresStore]):
    store, other = pair
    own(store, "one")
    assert find(store, "theirs") == {"theirs": False}
    store.give_up("one")
    own(other, "two")
    other.append(append_of(other.head(), key="theirs"))
    other.give_up("two")
    assert find(store, "theirs") == {"theirs": True}
    assert store.claim("one", "", 60_000_000) is not None
    for _ in range(50):  # while the filter loads, and after
        assert find(store, "theirs", "free") == {"theirs": True, "free": False}
        time.sleep(0.002)
    eventually(lambda: store._writer._keys.is_loaded)  # type: ignore[union-attr]
    assert find(store, "theirs", "free") == {"theirs": True, "free": False}


def test_keys_are_forgotten_with_the_book(pair: tuple[PostgresStore, PostgresStore]):
    store, other = pair
    assert store.claim("one", "", 1) is not None
    find(store, "free")
    eventually(lambda: store._writer._keys.is_loaded)  # type: ignore[union-attr]
    batch = append_of(store.head(), key="late")
    time.sleep(0.01)
    assert other.claim("two", "", 60_000_000) is not None
    other.append(append_of(other.head(), key="theirs"))
    with pytest.raises(NotOwner):
        store.append(batch)
    assert store.claim("one", "", 60_000_000) is None
    assert find(store, "theirs", "late") == {"theirs": True, "late": False}


def test_key_of_an_append_that_failed_is_still_free(pair: tuple[PostgresStore, PostgresStore]):
    store, _ = pair
    own(store, "one")
    with pytest.raises(ConstraintFailed):
        store.append(append_of(store.head(), key="k", accounts=[(account(1, "user:1:USD", -1), 0)]))
    assert find(store, "k") == {"k": False}
    store.append(append_of(store.head(), key="k"))
    assert find(store, "k") == {"k": True}


def test_book_that_outgrows_its_filter_goes_on(
    pair: tuple[PostgresStore, PostgresStore], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pennyweight.stores.postgres.writer.WORDS_MIN", 16)
    store, _ = pair
    own(store, "one")
    for number in range(120):
        assert find(store, f"k{number}") == {f"k{number}": False}
        store.append(append_of(store.head(), key=f"k{number}"))
        assert find(store, f"k{number}") == {f"k{number}": True}
    known = store._writer._keys  # type: ignore[union-attr]
    assert known is not None
    assert known._size >= 32


def test_random_book_of_an_owner_is_sound(pair: tuple[PostgresStore, PostgresStore]):
    store, _ = pair
    own(store, "one")
    random_book(8, store=store)
    assert check_tail(store) is None

"""The key index: small partitions, few recent keys, forced collisions, restarts at any moment."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from pennyweight.engine.port import ConstraintFailed, Found, KeyRow, Reads
from pennyweight.ledger.entries import decode_entry
from pennyweight.stores.sqlite import SQLiteStore, keys, schema
from pennyweight.stores.sqlite.keys import KeyIndex, hash_of
from pennyweight.stores.sqlite.readers import Readers
from pennyweight.stores.sqlite.writer import Writer
from stores.batches import append_of


def few_hashes(product: str, key: str) -> int:
    """A hash on which every key collides with a score of others."""
    return (hash_of(product, key) % 60 - 30) * (2**58)


class Book:
    """A store with a small index, whose process can end without a word."""

    def __init__(self, folder: Path, hash_key: Callable[[str, str], int]) -> None:
        self.path = folder / "main.sqlite"
        self.hash_key = hash_key
        self.open()

    def open(self) -> None:
        self.connection = schema.connect_writer(self.path)
        self.index = KeyIndex(hash_key=self.hash_key, recent_max=50, partition_keys=400)
        schema.prepare(self.connection, "main", "first", self.index)
        readers = Readers(lambda: schema.connect_reader(self.path), self.index)
        self.store = SQLiteStore(self.path, readers, Writer(self.connection, self.index))

    def crash(self) -> None:
        """End without closing: the last connection leaves the log where it is."""
        self.store._readers.close()
        self.connection.close()

    def close(self) -> None:
        self.store._readers.close()
        self.store._writing().close()

    def bind(self, names: list[str], *, keyless: int = 0, is_read: bool = True) -> None:
        """Commit one batch that binds these keys, as an engine would."""
        products = ["ledger"] * (len(names) + keyless)
        batch = append_of(self.store.head(), keys=names, products=products)
        if is_read:
            found = self.store.begin(Reads(keys={("ledger", name) for name in names}), ())
            assert set(found.keys.values()) <= {None}
        self.store.append(batch)


@pytest.fixture(params=[hash_of, few_hashes], ids=["hashes", "collisions"])
def book(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Book]:
    opened = Book(tmp_path, request.param)
    yield opened
    opened.close()


def prove(book: Book, bound: dict[str, int]) -> None:
    """Check that all keys and no others are found, in each of the ways to find them."""
    beside = KeyIndex(hash_key=book.hash_key)
    with book.store._readers.connection() as connection:
        rows = list(beside.rows(connection))
        sample = random.Random(len(bound)).sample(sorted(bound), min(40, len(bound)))
        for name in sample:
            body = beside.receipt(connection, "ledger", name)
            assert body is not None
            assert decode_entry(body).sequence == bound[name]
        assert beside.receipt(connection, "ledger", "never") is None
    assert sorted(rows, key=lambda row: row.sequence) == [
        KeyRow("ledger", name, sequence) for name, sequence in bound.items()
    ]
    found = book.store.begin(Reads(keys={("ledger", name) for name in bound}), ()).keys
    assert {key[1]: decode_entry(body or b"").sequence for key, body in found.items()} == bound
    for name in ("never", "k1 ", "", "\ud800"):
        assert book.store.receipt("ledger", name) is None
    assert book.store.receipt("wallet", next(iter(bound))) is None


@pytest.mark.parametrize("ending", ["crash", "close", "neither"])
def test_keys_are_found_wherever_they_are(book: Book, ending: str):
    dice = random.Random(1)
    bound: dict[str, int] = {}
    for number in range(60):
        names = [f"k{number}.{item} {dice.random()}" for item in range(dice.randint(0, 40))]
        first = book.store.head().sequence + 1
        book.bind(names, keyless=dice.randint(0 if names else 1, 3))
        bound.update((name, first + position) for position, name in enumerate(names))
        if number % 10 == 9:
            if ending != "neither":
                getattr(book, ending)()
                book.open()
            prove(book, bound)
    partitions = book.connection.execute("SELECT count(DISTINCT partition) FROM key_index").get
    assert len(bound) > 1_000
    if book.hash_key is hash_of and ending == "neither":
        assert partitions >= 2


@pytest.mark.parametrize("is_read", [True, False])
def test_key_cannot_be_bound_again_wherever_it_is(book: Book, is_read: bool):
    names = [f"key {number}" for number in range(700)]
    for start in range(0, 700, 20):
        book.bind(names[start : start + 20])
    for name in random.Random(2).sample(names, 60):
        batch = append_of(book.store.head(), keys=["fresh", name], products=["ledger"] * 2)
        if is_read:
            book.store.begin(Reads(keys={("ledger", "fresh"), ("ledger", name)}), ())
        with pytest.raises(ConstraintFailed):
            book.store.append(batch)
    book.bind(["fresh"], is_read=is_read)


def test_key_looked_up_for_an_earlier_batch_is_looked_up_again(book: Book):
    book.store.begin(Reads(keys={("ledger", "late")}), ())
    book.bind(["late"], is_read=False)
    with pytest.raises(ConstraintFailed):
        book.bind(["late"], is_read=False)


def test_mark_moves_past_entries_without_keys(book: Book):
    for _ in range(20):
        book.bind([], keyless=60)
    state = book.connection.execute("SELECT indexed_to FROM key_state").get
    assert state >= 20 * 60 - 2 * 5 * 50
    book.crash()
    book.open()
    book.bind(["one"])
    prove(book, {"one": 1_201})


@pytest.mark.parametrize(
    "damage", ["DELETE FROM key_filters", "UPDATE key_filters SET words = x''"]
)
def test_filters_that_are_lost_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
):
    monkeypatch.setattr(keys, "_FILTER_KEYS", 1)
    book = Book(tmp_path, hash_of)
    bound: dict[str, int] = {}
    for start in range(0, 1_200, 25):
        names = [f"key {number}" for number in range(start, start + 25)]
        book.bind(names)
        bound.update((name, start + 1 + place) for place, name in enumerate(names))
    before = book.index._filters
    book.close()
    connection = apsw.Connection(str(book.path))
    assert connection.execute("SELECT count(*) FROM key_filters").get == len(before)
    connection.close()
    book.open()
    assert book.index._filters == before
    book.close()
    connection = apsw.Connection(str(book.path))
    connection.execute(damage)
    connection.close()
    book.open()
    prove(book, bound)
    book.close()


def test_row_that_its_entry_contradicts_is_told(book: Book):
    for start in range(0, 300, 20):
        book.bind([f"key {number}" for number in range(start, start + 20)])
    book.connection.execute("UPDATE key_index SET hash = 5 WHERE sequence = 7")
    book.connection.execute("INSERT INTO key_index VALUES (0, 6, 0)")
    with book.store._readers.connection() as connection:
        rows = list(KeyIndex(hash_key=book.hash_key).rows(connection))
    assert [row.sequence for row in rows if row.product == "?"] == [0, 7]


def test_filter_lets_few_strangers_through():
    words = keys._new_filter(2_000 * 13 // 64)
    keys.fill(words, [hash_of("ledger", str(number)) for number in range(2_000)])

    def is_maybe(name: str) -> bool:
        hashed = hash_of("ledger", name)
        mask = keys._PAIRS[hashed & 4095] | keys._PAIRS[hashed >> 12 & 4095]
        return words[(hashed >> 24) % len(words)] & mask == mask

    assert all(is_maybe(str(number)) for number in range(2_000))
    assert sum(is_maybe(f"stranger {number}") for number in range(5_000)) < 150


def test_room_is_counted_wherever_a_key_stands(book: Book):
    names = [f"key {number}" for number in range(600)]
    for start in range(0, 600, 30):
        book.bind(names[start : start + 30])
    wanted = {("ledger", name) for name in names[::7]}
    unbounded = book.store.begin(Reads(keys=wanted), ())
    exact = len(wanted)
    assert book.store.begin(Reads(keys=wanted, room=exact), ()) == unbounded
    assert book.store.begin(Reads(keys=wanted, room=exact - 1), ()) == Found(is_cut=True)
    assert book.store.begin(Reads(keys=wanted, room=0), ()) == Found(is_cut=True)

"""The contract of every store: what `engine.port` promises, on each of them."""

import threading
import time
from collections.abc import Callable

import msgspec
import pytest

from pennyweight.engine.engine import Submission
from pennyweight.engine.port import (
    Append,
    BackDatedLine,
    ConstraintFailed,
    Due,
    Found,
    Head,
    HoldRow,
    NotOwner,
    Reads,
    Resolution,
    Store,
    StoreInUse,
    Traffic,
)
from pennyweight.engine.receipts import Failure, Receipt
from pennyweight.engine.verification import check_tail
from pennyweight.ledger.accounts import is_customer
from pennyweight.ledger.entries import CursorMove, decode_entry
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.products.general import OpenAccount, PlaceHold, SettleHold, Transfer
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore
from random_books import Clock, Note, Reserve, open_book, random_book
from stores.batches import account, append_of, dump, record

BIG = 10**38 - 1


def commit(store: Store, **rows: object) -> Append:
    """Append one hand-made batch to what is there."""
    batch = append_of(store.head(), **rows)  # type: ignore[arg-type]
    store.append(batch)
    return batch


# ── head ──────────────────────────────────────────────────────────────────────────


def test_head_of_fresh_book_stands_at_nothing(store: Store):
    assert store.head() == Head(book="main", incarnation="first")
    assert store.head().chain == bytes(32)
    assert dump(store) == dump(MemoryStore(Head(book="main", incarnation="first")))


def test_head_after_append_is_the_batch_s(store: Store):
    batch = commit(store)
    assert store.head() == batch.head
    assert store.head().counters == {"batches": 1}
    assert check_tail(store) is None


# ── begin ─────────────────────────────────────────────────────────────────────────


def test_traffic_is_nothing_or_grows_with_each_batch(store: Store):
    batch = commit(store)
    before = store.traffic
    commit(store)
    if before == Traffic():
        assert store.traffic == Traffic()
    else:
        assert store.traffic.round_trips == before.round_trips + 1
        assert store.traffic.bytes_sent >= before.bytes_sent + sum(map(len, batch.batch.bodies))


def test_begin_of_absent_facts_says_so_for_each(store: Store):
    found = store.begin(
        Reads(
            holders={"user:1"},
            keys={("ledger", "k")},
            key_entries={("ledger", "e")},
            holds={7},
            open_holds={"user:1:USD"},
            entries={9},
            records={("note", "1")},
            names={("note", "n")},
            references={("ledger", "r")},
        ),
        set(),
    )
    assert found.holders == {"user:1": ([], [])}
    assert found.references == {("ledger", "r"): None}
    assert found.keys == {("ledger", "k"): None, ("ledger", "e"): None}
    assert found.holds == {7: None}
    assert found.open_holds == {"user:1:USD": []}
    assert found.entries == {9: None}
    assert found.records == {("note", "1"): None}
    assert found.names == {("note", "n"): None}


def test_begin_of_nothing_finds_nothing(store: Store):
    assert store.begin(Reads(), set()) == type(store.begin(Reads(), set()))()


def test_begin_of_what_cannot_be_stored_is_absent(store: Store):
    found = store.begin(
        Reads(
            holders={"user:\ud800"},
            keys={("ledger", "\ud800")},
            holds={2**70, -1},
            entries={2**70, 0, -(2**70)},
            open_holds={"\ud800"},
            records={("note", "\ud800")},
            names={("note", "\ud800")},
            references={("\ud800", "r"), ("ledger", "\ud800"), ("ledger", "")},
        ),
        set(),
    )
    assert found.holders == {"user:\ud800": ([], [])}
    assert set(found.keys.values()) == {None}
    assert found.holds == {2**70: None, -1: None}
    assert found.entries == {2**70: None, 0: None, -(2**70): None}
    assert found.open_holds == {"\ud800": []}
    assert set(found.records.values()) == {None}
    assert set(found.names.values()) == {None}
    assert list(found.references.values()) == [None] * 3


@pytest.fixture
def furnished(store: Store) -> Store:
    """A book with two users, holds, one of them with a reference, a record of a user, a key."""
    book = open_book(store)
    for command, key in (
        (OpenAccount("user:1:USD"), ""),
        (OpenAccount("user:1:BTC"), ""),
        (OpenAccount("user:2:USD"), ""),
        (Transfer("world:USD", "user:1:USD", "USD", "100"), "paid"),
        (PlaceHold("user:1:USD", "USD", "10"), ""),
        (PlaceHold("user:1:USD", "USD", "5"), ""),
        (Note(1, "hello"), ""),
        (Reserve(1, "mine"), "mine"),
    ):
        assert isinstance(book.execute(command, key=key), Receipt)
    commit(store, records=[(record("kept", holder="user:2", names=("door",)), None)])
    return store


def test_begin_loads_all_that_a_holder_has(furnished: Store):
    found = furnished.begin(Reads(holders={"user:1", "user:2"}), set())
    accounts, records = found.holders["user:1"]
    assert [a.id for a in accounts] == ["user:1:USD", "user:1:BTC"]
    assert accounts[0] == furnished.account("user:1:USD")
    assert accounts[0].available == 75 * 10**18
    assert records == []
    assert [r.id for r in found.holders["user:2"][1]] == ["kept"]


def test_begin_leaves_residents_out(furnished: Store):
    found = furnished.begin(Reads(holders={"user:1", "user:2"}, holds={1}), {"user:1"})
    assert set(found.holders) == {"user:2"}
    assert found.holds[1] == furnished.hold(1)


def test_begin_of_a_key_finds_its_entry(furnished: Store):
    found = furnished.begin(Reads(keys={("ledger", "paid"), ("wallet", "paid")}), set())
    body = found.keys["ledger", "paid"]
    assert body is not None
    assert decode_entry(body).key == "paid"
    assert found.keys["wallet", "paid"] is None
    assert found.holders == {}


def test_begin_of_a_key_entry_brings_the_holders_it_touched(furnished: Store):
    found = furnished.begin(Reads(key_entries={("ledger", "paid")}), {"world"})
    assert set(found.holders) == {"user:1"}


def test_begin_of_an_entry_brings_the_holders_it_touched(furnished: Store):
    body = furnished.receipt("ledger", "paid")
    sequence = decode_entry(body or b"").sequence
    found = furnished.begin(Reads(entries={sequence}), set())
    assert found.entries == {sequence: body}
    assert set(found.holders) == {"user:1", "world"}


def test_begin_of_a_hold_brings_its_holder(furnished: Store):
    found = furnished.begin(Reads(holds={2}), set())
    assert set(found.holders) == {"user:1"}
    assert found.holds[2] == furnished.hold(2)


def test_begin_of_open_holds_is_oldest_first(furnished: Store):
    found = furnished.begin(Reads(open_holds={"user:1:USD"}), set())
    assert [hold.id for hold in found.open_holds["user:1:USD"]] == [1, 2, 3]


def test_begin_of_a_reference_brings_the_hold_and_its_holder(furnished: Store):
    wanted = {("notes", "mine"), ("ledger", "mine"), ("notes", "other"), ("notes", "")}
    found = furnished.begin(Reads(references=wanted), set())
    assert found.references == dict.fromkeys(wanted) | {("notes", "mine"): 3}
    assert found.holds == {3: furnished.hold(3)}
    assert set(found.holders) == {"user:1"}
    assert furnished.begin(Reads(references=wanted), {"user:1"}).holders == {}


def test_begin_of_a_reference_finds_its_hold_after_the_end(furnished: Store):
    book = InlineBook(open_engine(furnished, now=Clock()()), furnished, Clock())
    for _ in range(2):
        assert isinstance(book.execute(Reserve(1, "mine")), Receipt)
    hold = furnished.hold(3)
    assert hold is not None
    assert (hold.reference, hold.state) == ("mine", HoldState.VOIDED)
    assert hold.changed_by == furnished.head().sequence
    found = furnished.begin(Reads(references={("notes", "mine")}), set())
    assert found.references == {("notes", "mine"): 3}
    assert found.holds == {3: hold}


# ── begin: room for users ─────────────────────────────────────────────────────────

PAID, MINE = ("ledger", "paid"), ("notes", "mine")

ROOMS: dict[str, tuple[dict[str, object], int]] = {
    "nobody": ({"holders": {"world", "house", "venue:x"}, "holds": {99}, "entries": {999}}, 0),
    "absent": (
        {
            "keys": {("ledger", "never")},
            "key_entries": {("notes", "never")},
            "references": {("notes", "never")},
        },
        0,
    ),
    "facts of no user": (
        {
            "records": {("notes.note", "1")},
            "names": {("note", "door")},
            "open_holds": {"user:1:USD"},
        },
        0,
    ),
    "users": ({"holders": {"user:1", "user:2", "user:9", "account:7", "world"}}, 4),
    "bodies of keys": ({"keys": {PAID, MINE, ("ledger", "never")}}, 2),
    "a key and whom it touched": ({"key_entries": {PAID}}, 2),
    "a key in both ways": ({"keys": {PAID}, "key_entries": {PAID}}, 2),
    "entries and whom they touched": ({"entries": set(range(1, 1_000))}, -1),
    "holds of one user": ({"holds": {1, 2, 3, 99}}, 1),
    "a hold by reference": ({"references": {MINE}}, 1),
    "a hold in both ways": ({"holds": {3}, "references": {MINE}}, 1),
    "a hold of a user who is named": ({"holders": {"user:1"}, "holds": {2}}, 1),
    "a hold of another user": ({"holders": {"user:2"}, "holds": {2}}, 2),
    "of everything": (
        {
            "holders": {"user:2", "user:9"},
            "keys": {MINE, ("ledger", "never")},
            "key_entries": {PAID},
            "entries": {1},
            "holds": {1, 99},
            "references": {MINE, ("notes", "never")},
        },
        6,
    ),
}


@pytest.mark.parametrize("name", ROOMS)
def test_begin_with_room_reads_all_or_is_cut(furnished: Store, name: str):
    wanted, users = ROOMS[name]
    full = furnished.begin(Reads(**wanted), set())  # type: ignore[arg-type]
    bodies = [*full.keys.values(), *full.entries.values()]
    count = sum(map(is_customer, full.holders)) + sum(body is not None for body in bodies)
    assert users in {count, -1}
    assert not full.is_cut
    for room in (count, count + 1):
        reads = Reads(**wanted, room=room)  # type: ignore[arg-type]
        assert furnished.begin(reads, set()) == full
    for room in range(count):
        reads = Reads(**wanted, room=room)  # type: ignore[arg-type]
        assert furnished.begin(reads, set()) == Found(is_cut=True)
    assert furnished.begin(Reads(room=0), set()) == Found()


def test_begin_with_room_does_not_count_residents(furnished: Store):
    reads = Reads(
        holders={"user:1", "user:2"}, holds={1}, references={MINE}, key_entries={PAID}, room=2
    )
    assert furnished.begin(reads, {"user:1"}) == furnished.begin(
        msgspec.structs.replace(reads, room=None), {"user:1"}
    )
    assert furnished.begin(reads, {"world"}).is_cut
    reads.room = 1
    assert furnished.begin(reads, {"user:1"}).is_cut
    assert not furnished.begin(reads, {"user:1", "user:2"}).is_cut


def test_begin_that_was_cut_leaves_nothing_behind(furnished: Store):
    new = {("ledger", f"new {number}") for number in range(9)}
    assert furnished.begin(Reads(keys={*new, PAID}, room=0), set()).is_cut
    assert set(furnished.begin(Reads(keys=new), set()).keys.values()) == {None}
    commit(furnished, keys=[key for _, key in new], products=["ledger"] * 9)
    assert None not in furnished.begin(Reads(keys=new), set()).keys.values()


def test_begin_of_records_and_names(furnished: Store):
    reads = Reads(records={("notes.note", "1")}, names={("notes.note", "hello"), ("note", "door")})
    found = furnished.begin(reads, set())
    note = found.records["notes.note", "1"]
    assert note is not None
    assert note.read(dict) == {"text": "hello"}
    assert found.names == {("notes.note", "hello"): "1", ("note", "door"): "kept"}


# ── append: the guard ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "wrong", [{"epoch": 1}, {"sequence": 0}, {"sequence": 2}, {"chain": bytes(32)}]
)
def test_append_on_another_head_is_not_owner(store: Store, wrong: dict[str, object]):
    commit(store, key="a", accounts=[(account(1, "user:1:USD", 5), 0)])
    before = dump(store)
    stale = append_of(
        msgspec.structs.replace(store.head(), **wrong),
        key="b",
        accounts=[(account(1, "user:1:USD", 6, version=2), 1)],
    )
    with pytest.raises(NotOwner):
        store.append(stale)
    assert dump(store) == before
    commit(store, key="b")
    assert check_tail(store) is None


def test_append_twice_is_not_owner(store: Store):
    batch = commit(store)
    with pytest.raises(NotOwner):
        store.append(batch)


# ── append: contradictions ────────────────────────────────────────────────────────

HOLD = Hold(
    1,
    "user:1:USD",
    "USD",
    10,
    10,
    "ledger",
    expires_at=50,
    reference="taken",
    placed_at=7,
    changed_by=1,
)
NOTE = record("1", names=("first",), labels=("red",), marks=[("review", 5)])


def _standing_book(store: Store) -> None:
    commit(
        store,
        key="bound",
        accounts=[
            (account(1, "user:1:USD", 100, held=10, open_holds=1), 0),
            (account(2, "user:2:USD", 50, floor=-20), 0),
            (account(3, "world:USD", -150, floor=None), 0),
        ],
        holds=[HoldRow(HOLD, None)],
        records=[(NOTE, None)],
        cursors=[CursorMove("topic", 0, 7)],
    )


def _account_1(posted: int, **more: object) -> dict[str, object]:
    facts = {"held": 10, "version": 2, **more}
    return {"accounts": [(account(1, "user:1:USD", posted, **facts), 1)]}


def _hold(number: int, reference: str) -> Hold:
    return msgspec.structs.replace(HOLD, id=number, reference=reference)


CONTRADICTIONS: dict[str, Callable[[], dict[str, object]]] = {
    "account version": lambda: {"accounts": [(account(1, "user:1:USD", 99, version=3), 2)]},
    "account that is not there": lambda: {"accounts": [(account(9, "user:9:USD", version=2), 1)]},
    "account that is there": lambda: {"accounts": [(account(4, "user:1:USD", 1), 0)]},
    "second account of two": lambda: {
        "accounts": [
            (account(1, "user:1:USD", 60, version=2), 1),
            (account(2, "user:2:USD", 60, version=2), 7),
        ]
    },
    "key that is bound": lambda: {"keys": ["bound"]},
    "key twice in a batch": lambda: {"keys": ["x", "x"], "products": ["ledger", "ledger"]},
    "name that is taken": lambda: {"records": [(record("2", names=("first",)), None)]},
    "name twice in a batch": lambda: {
        "records": [(record("2", names=("n",)), None), (record("3", names=("n",)), None)]
    },
    "account that does not move on": lambda: _account_1(99, version=1),
    "record that does not move on": lambda: {"records": [(record("1"), NOTE)]},
    "record version": lambda: {"records": [(record("1", 3), record("1", 2))]},
    "record that is there": lambda: {"records": [(record("1"), None)]},
    "record that is not there": lambda: {"records": [(record("9", 2), record("9"))]},
    "hold that is there": lambda: {"holds": [HoldRow(HOLD, None)]},
    "hold as it was not": lambda: {
        "holds": [
            HoldRow(
                msgspec.structs.replace(HOLD, remaining=0, state=HoldState.SETTLED),
                msgspec.structs.replace(HOLD, remaining=4),
            )
        ]
    },
    "hold that has ended": lambda: {
        "holds": [
            HoldRow(
                msgspec.structs.replace(HOLD, remaining=0, state=HoldState.SETTLED),
                msgspec.structs.replace(HOLD, remaining=0, state=HoldState.VOIDED),
            )
        ]
    },
    "reference that is taken": lambda: {"holds": [HoldRow(_hold(2, "taken"), None)]},
    "reference twice in a batch": lambda: {
        "holds": [HoldRow(_hold(2, "free"), None), HoldRow(_hold(3, "free"), None)]
    },
    "cursor": lambda: {"cursors": [CursorMove("topic", 6, 8)]},
    "cursor that has moved": lambda: {"cursors": [CursorMove("topic", 0, 8)]},
    "cursor that is not there": lambda: {"cursors": [CursorMove("other", 1, 8)]},
    "below the floor": lambda: _account_1(9),
    "below zero": lambda: _account_1(-1, held=0),
    "below a floor below zero": lambda: {
        "accounts": [(account(2, "user:2:USD", -21, floor=-20, version=2), 1)]
    },
    "new and below the floor": lambda: {"accounts": [(account(4, "user:4:USD", -1), 0)]},
    "held negative": lambda: _account_1(50, held=-1),
    "posted of 39 digits": lambda: _account_1(BIG + 1),
    "posted of 39 digits, negative": lambda: {
        "accounts": [(account(3, "world:USD", -BIG - 1, floor=None, version=2), 1)]
    },
    "posted of 100 digits": lambda: _account_1(10**100),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_append_that_contradicts_writes_nothing(store: Store, name: str):
    _standing_book(store)
    before = dump(store)
    more: dict[str, object] = {
        "keys": ["free"],
        "products": ["ledger"],
        "back_dated": [BackDatedLine("user:1:USD", 1, 2, 9, 4)],
        **CONTRADICTIONS[name](),
    }
    with pytest.raises(ConstraintFailed):
        store.append(append_of(store.head(), **more))  # type: ignore[arg-type]
    assert dump(store) == before
    assert store.receipt("ledger", "free") is None
    commit(store, key="free", **_account_1(10))
    assert check_tail(store) is None


def test_append_keeps_amounts_of_38_digits(store: Store):
    commit(
        store,
        accounts=[
            (account(1, "user:1:USD", BIG, held=BIG, owed=BIG), 0),
            (account(2, "world:USD", -BIG, floor=None), 0),
            (account(3, "user:3:USD", -BIG, floor=-BIG), 0),
        ],
    )
    stored = store.account("user:1:USD")
    assert stored is not None
    assert (stored.posted, stored.held, stored.owed) == (BIG, BIG, BIG)
    assert [a.posted for a in store.accounts(1, 9)] == [-BIG, -BIG]
    moved = account(1, "user:1:USD", BIG - 1, held=1, version=2, roots=(1, 2), lines=1)
    commit(store, accounts=[(moved, 1)])
    assert store.account("user:1:USD") == moved


def test_append_goes_on_after_the_command_that_trips_stands_alone(store: Store):
    class Liar(Note, frozen=True):
        name = "liar"

        def decide(self, draft):
            draft.put_record(self.kind, "1", {"text": "lie"}, before=None)
            return {}

    book = open_book(store)
    book.execute(OpenAccount("user:1:USD"))
    book.execute(Note(1, "truth"))
    batch = [
        Submission(Transfer("world:USD", "user:1:USD", "USD", "1"), key=f"pay {number}")
        for number in range(9)
    ]
    batch.insert(4, Submission(Liar(1, "lie"), key="lie"))
    outcomes = book.execute_many(batch)
    assert isinstance(outcomes.pop(4), Failure)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert store.receipt("notes", "lie") is None
    stored = store.account("user:1:USD")
    assert stored is not None
    assert stored.posted == 9 * 10**18
    assert check_tail(store) is None


# ── the journal ───────────────────────────────────────────────────────────────────


def test_entries_page_both_ways_and_by_product(store: Store):
    commit(store, products=["ledger", "wallet", "ledger"])
    commit(store, products=["wallet", "ledger"])

    def sequences(after: int, limit: int, **more: object) -> list[int]:
        return [row[0] for row in store.entries(after, limit, **more)]  # type: ignore[arg-type]

    assert sequences(0, 3) == [1, 2, 3]
    assert sequences(3, 3) == [4, 5]
    assert sequences(5, 3) == []
    assert sequences(-9, 1) == [1]
    assert sequences(2**62, 2, is_descending=True) == [5, 4]
    assert sequences(4, 2, is_descending=True) == [3, 2]
    assert sequences(1, 2, is_descending=True) == []
    assert sequences(0, 9, product="wallet") == [2, 4]
    assert sequences(2, 9, product="wallet") == [4]
    assert sequences(2**62, 1, product="ledger", is_descending=True) == [5]
    assert sequences(5, 2, product="ledger", is_descending=True) == [3, 1]
    assert sequences(0, 9, product="loans") == []
    assert store.entries(3, 1) == [(4, store.entry(4))]


@pytest.mark.parametrize("sequence", [0, -1, 2, 2**63, 2**70])
def test_entry_that_is_not_there_is_none(store: Store, sequence: int):
    commit(store)
    assert store.entry(sequence) is None
    assert store.entry(1) is not None


def test_batches_page_by_first_sequence(store: Store):
    batches = [commit(store, products=["ledger"] * count) for count in (2, 1, 3)]
    sealed = [(batch.batch.header, batch.batch.chain) for batch in batches]
    assert store.batches(0, 9) == sealed
    assert store.batches(0, 2) == sealed[:2]
    assert store.batches(1, 9) == sealed[1:]
    assert store.batches(4, 9) == []


def test_batch_at_a_sequence_or_a_time(store: Store):
    for count, committed_at in ((2, 1_000), (1, 2_000), (3, 5_000)):
        commit(store, products=["ledger"] * count, committed_at=committed_at)

    def first(**at: int) -> int | None:
        header = store.batch_at(**at)
        return header.first_sequence if header else None

    assert [first(sequence=n) for n in range(8)] == [None, 1, 1, 3, 4, 4, 4, None]
    assert [first(time=t) for t in (999, 1_000, 1_999, 2_000, 4_999, 5_000, 2**62)] == [
        None,
        1,
        1,
        3,
        3,
        4,
        4,
    ]


def test_receipt_is_bound_to_product_and_key(store: Store):
    commit(store, keys=["a", "a"], products=["ledger", "wallet"])
    assert decode_entry(store.receipt("ledger", "a") or b"").sequence == 1
    assert decode_entry(store.receipt("wallet", "a") or b"").sequence == 2
    assert store.receipt("ledger", "b") is None
    assert store.receipt("loans", "a") is None
    assert store.receipt("ledger", "\ud800") is None


# ── accounts and holds ────────────────────────────────────────────────────────────


def test_accounts_page_by_number_holder_and_asset(store: Store):
    ids = ("user:1:USD", "world:USD", "user:1:BTC", "user:2:USD", "user:1:play:USD")
    commit(store, accounts=[(account(n, i), 0) for n, i in enumerate(ids, 1)])

    def numbers(after: int, limit: int, **more: str) -> list[int]:
        return [a.number for a in store.accounts(after, limit, **more)]

    assert numbers(0, 3) == [1, 2, 3]
    assert numbers(3, 3) == [4, 5]
    assert numbers(0, 9, holder="user:1") == [1, 3, 5]
    assert numbers(1, 1, holder="user:1") == [3]
    assert numbers(0, 9, asset="USD") == [1, 2, 4, 5]
    assert numbers(0, 9, holder="user:1", asset="USD") == [1, 5]
    assert numbers(0, 9, holder="user:9") == []
    assert store.account("user:9:USD") is None


def test_holds_stay_and_open_ones_are_listed(store: Store):
    book = open_book(store)
    book.execute(OpenAccount("user:1:USD"))
    book.execute(Transfer("world:USD", "user:1:USD", "USD", "100"))
    for _ in range(4):
        book.execute(PlaceHold("user:1:USD", "USD", "10"))
    book.execute(SettleHold(2, "10", "world:USD"))
    assert [hold.id for hold in store.holds("user:1:USD", 0, 9)] == [1, 3, 4]
    assert [hold.id for hold in store.holds("user:1:USD", 1, 1)] == [3]
    assert store.holds("user:2:USD", 0, 9) == []
    ended = store.hold(2)
    assert ended is not None
    assert (ended.state, ended.remaining, ended.amount) == (HoldState.SETTLED, 0, 10 * 10**18)
    assert store.hold(5) is None
    assert store.hold(2**70) is None


def test_holds_keep_what_they_say_of_themselves(store: Store):
    _standing_book(store)
    assert store.hold(1) == HOLD
    part = msgspec.structs.replace(HOLD, remaining=4, changed_by=2)
    commit(store, holds=[HoldRow(part, HOLD)])
    assert store.hold(1) == part
    ended = msgspec.structs.replace(part, remaining=0, state=HoldState.VOIDED, changed_by=3)
    commit(store, holds=[HoldRow(ended, part)])
    assert store.hold(1) == ended
    assert [row for kind, row in store.rows() if kind == "hold"] == [ended]


def test_references_are_unique_per_owner_for_ever(store: Store):
    _standing_book(store)
    ended = msgspec.structs.replace(HOLD, remaining=0, state=HoldState.VOIDED, changed_by=2)
    commit(store, holds=[HoldRow(ended, HOLD)])
    before = dump(store)
    with pytest.raises(ConstraintFailed):
        commit(store, holds=[HoldRow(_hold(2, "taken"), None)])
    assert dump(store) == before
    free = [
        msgspec.structs.replace(_hold(2, "taken"), owner="other"),
        _hold(3, "Taken"),
        _hold(4, "taken "),
        _hold(5, ""),
        _hold(6, ""),
    ]
    commit(store, holds=[HoldRow(hold, None) for hold in free])
    wanted = {(hold.owner, hold.reference): hold.id for hold in (HOLD, *free[:3])}
    found = store.begin(Reads(references=set(wanted)), set())
    assert found.references == wanted
    for pair, hold_id in wanted.items():
        assert store.hold_of_reference(*pair) == store.hold(hold_id)
    for pair in ((HOLD.owner, ""), (HOLD.owner, "taken  "), ("nobody", "taken"), ("", "\ud800")):
        assert store.hold_of_reference(*pair) is None


def test_accounts_that_owe_are_listed_until_they_have_paid(store: Store):
    ids = ("user:1:USD", "user:2:USD", "user:1:BTC", "user:3:USD", "user:1:play:USD")
    owing = [account(n, i, owed=n % 2 * BIG) for n, i in enumerate(ids, 1)]
    commit(store, accounts=[(a, 0) for a in owing])

    def numbers(after: int, limit: int, **more: str) -> list[int]:
        found = store.accounts(after, limit, is_owing=True, **more)
        assert found == [owing[a.number - 1] for a in found]
        return [a.number for a in found]

    assert numbers(0, 9) == [1, 3, 5]
    assert numbers(0, 2) == [1, 3]
    assert numbers(3, 2) == [5]
    assert numbers(5, 2) == []
    assert numbers(0, 9, asset="USD") == [1, 5]
    assert numbers(1, 9, holder="user:1", asset="USD") == [5]
    assert numbers(0, 1, holder="user:1") == [1]
    assert numbers(0, 9, holder="user:2") == []
    for number, owed in ((1, 0), (2, 1)):
        before = owing[number - 1]
        after = msgspec.structs.replace(before, owed=owed, version=2)
        owing[number - 1] = after
        commit(store, accounts=[(after, 1)])
    assert numbers(0, 9) == [2, 3, 5]
    assert numbers(0, 9, holder="user:1") == [3, 5]
    assert len(store.accounts(0, 9)) == 5


# ── records ───────────────────────────────────────────────────────────────────────


def test_records_list_by_label_in_text_order(store: Store):
    ids = ("b", "a", "é", "Z", "10", "9", "😀", "\uff5a")
    commit(store, records=[(record(i, labels=("red", f"id:{i}")), None) for i in ids])
    commit(store, records=[(record("other", kind="other", labels=("red",)), None)])

    def listed(**more: object) -> list[str]:
        return [r.id for r in store.records("note", **more)]  # type: ignore[arg-type]

    assert listed() == sorted(ids)
    assert listed(label="red") == sorted(ids)
    assert listed(label="id:a") == ["a"]
    assert listed(label="blue") == []
    assert listed(after="b", limit=2) == sorted(ids)[5:7]
    assert listed(label="red", after="Z", limit=2) == sorted(ids)[3:5]


def test_record_that_changes_leaves_its_old_lists(store: Store):
    first = record("1", labels=("red", "old"), names=("n",), marks=[("review", 1), ("late", 4)])
    commit(store, records=[(first, None)])
    second = record("1", 2, labels=("red", "new"), names=("m",), marks=[("review", 2)])
    commit(store, records=[(second, first)])
    assert store.record("note", "1") == second
    assert [r.version for r in store.records("note", label="red")] == [2]
    assert [r.version for r in store.records("note", label="new")] == [2]
    assert store.records("note", label="old") == []
    assert store.record_named("note", "n") is None
    assert store.record_named("note", "m") == second
    assert store.records("note", label="m") == [second]
    assert store.due("review", 0, 9) == [Due("review", 2, "note", "1")]
    assert store.due("late", 0, 9) == []


def test_record_takes_a_name_that_its_batch_frees(store: Store):
    one, two = record("1", names=("n",)), record("2", names=("m",))
    commit(store, records=[(one, None), (two, None)])
    swapped = [(record("1", 2, names=("m",)), one), (record("2", 2, names=("n",)), two)]
    commit(store, records=swapped)
    for name, record_id in (("n", "2"), ("m", "1")):
        named = store.record_named("note", name)
        assert named is not None
        assert named.id == record_id


def test_record_of_a_holder_moves_with_its_holder(store: Store):
    before = record("1", holder="user:1")
    commit(store, records=[(before, None)])
    commit(store, records=[(record("1", 2, holder="user:2"), before)])
    found = store.begin(Reads(holders={"user:1", "user:2"}), set())
    assert found.holders["user:1"] == ([], [])
    assert [r.version for r in found.holders["user:2"][1]] == [2]


# ── due marks, cursors, dates ─────────────────────────────────────────────────────


def test_due_pages_by_rank_and_id(store: Store):
    places = [(5, "b"), (5, "a"), (-(2**63), "low"), (2**63 - 1, "high"), (7, "c"), (5, "é")]
    commit(store, records=[(record(i, marks=[("review", rank)]), None) for rank, i in places])
    commit(store, records=[(record("x", marks=[("other", 6), ("review", 6)]), None)])

    def due(low: int, high: int, **more: object) -> list[tuple[int, str]]:
        found = store.due("review", low, high, **more)  # type: ignore[arg-type]
        assert {(d.index, d.kind) for d in found} <= {("review", "note")}
        return [(d.rank, d.id) for d in found]

    everything = sorted([*places, (6, "x")])
    assert due(-(2**63), 2**63 - 1) == everything
    assert due(5, 6) == [(5, "a"), (5, "b"), (5, "é"), (6, "x")]
    assert due(6, 5) == []
    assert due(5, 9, limit=2) == [(5, "a"), (5, "b")]
    assert due(5, 9, after=(5, "b")) == [(5, "é"), (6, "x"), (7, "c")]
    assert due(6, 9, after=(5, "b")) == [(6, "x"), (7, "c")]
    assert due(5, 9, after=(7, "c")) == []
    assert due(5, 9, after=(8, "")) == []
    page, pages = due(-(2**63), 2**63 - 1, limit=2), []
    while page:
        pages += page
        page = due(-(2**63), 2**63 - 1, after=page[-1], limit=2)
    assert pages == everything


def test_due_finds_open_holds_by_their_expiry(store: Store):
    def hold(number: int, expires_at: int | None) -> Hold:
        return Hold(number, "user:1:USD", "USD", 5, 5, "ledger", expires_at=expires_at)

    holds = [hold(2, 40), hold(9, 50), hold(10, 50), hold(11, None)]
    commit(store, holds=[HoldRow(h, None) for h in holds])
    found = store.due("hold_expiry", 0, 50)
    assert [(d.rank, d.id, d.kind) for d in found] == [
        (40, "2", "hold"),
        (50, "10", "hold"),
        (50, "9", "hold"),
    ]
    assert store.due("hold_expiry", 41, 50, after=(50, "10")) == [
        Due("hold_expiry", 50, "hold", "9")
    ]
    ended = msgspec.structs.replace(holds[2], remaining=0, state=HoldState.EXPIRED)
    part = msgspec.structs.replace(holds[1], remaining=2)
    commit(store, holds=[HoldRow(part, holds[1]), HoldRow(ended, holds[2])])
    assert [d.id for d in store.due("hold_expiry", 0, 99)] == ["2", "9"]
    assert store.hold(9) == part
    assert store.hold(10) == ended


def test_cursors_compare_and_set(store: Store):
    commit(store, cursors=[CursorMove("a", 0, 5), CursorMove("b", 0, 0)])
    commit(store, cursors=[CursorMove("a", 5, 9), CursorMove("b", 0, 2)])
    assert store.cursors() == {"a": 9, "b": 2}


def test_back_dated_sums_what_took_effect_before_it_was_known(store: Store):
    commit(
        store,
        back_dated=[
            BackDatedLine("user:1:USD", 10, 1, 100, BIG),
            BackDatedLine("user:1:USD", 10, 1, 100, -5),
            BackDatedLine("user:1:USD", 20, 2, 200, 7),
            BackDatedLine("user:2:USD", 10, 1, 100, 11),
        ],
    )
    assert store.back_dated("user:1:USD", 10, 0) == BIG - 5
    assert store.back_dated("user:1:USD", 20, 0) == BIG + 2
    assert store.back_dated("user:1:USD", 20, 100) == 7
    assert store.back_dated("user:1:USD", 9, 0) == 0
    assert store.back_dated("user:3:USD", 99, 0) == 0


# ── outside the journal ───────────────────────────────────────────────────────────


def test_lease_of_fresh_book_is_none(store: Store):
    assert store.lease() is None


def test_lease_is_renewed_by_its_owner_alone(store: Store):
    first = store.claim("one", "127.0.0.1:1", 60_000_000)
    assert first is not None
    assert (first.epoch, first.owner, first.expires_at) == (1, "one", first.now + 60_000_000)
    assert store.head().epoch == 1
    assert store.claim("two", "127.0.0.1:2", 60_000_000) is None
    again = store.claim("one", "127.0.0.1:3", 60_000_000)
    assert again is not None
    assert (again.epoch, again.address) == (1, "127.0.0.1:3")
    lease = store.lease()
    assert lease is not None
    assert (lease.epoch, lease.owner, lease.expires_at) == (1, "one", again.expires_at)
    assert lease.now >= again.now


def test_lease_that_ran_out_is_taken_over_with_the_next_epoch(store: Store):
    assert store.claim("one", "a", 1) is not None
    commit(store)
    old = store.head()
    time.sleep(0.01)
    taken = store.claim("two", "b", 60_000_000)
    assert taken is not None
    assert (taken.epoch, taken.owner) == (2, "two")
    with pytest.raises(NotOwner):
        store.append(append_of(old))
    commit(store)
    assert store.head().epoch == 2


def test_lease_that_was_given_up_is_free(store: Store):
    store.claim("one", "a", 60_000_000)
    store.give_up("two")
    assert store.claim("two", "b", 60_000_000) is None
    store.give_up("one")
    lease = store.lease()
    assert lease is not None
    assert (lease.owner, lease.address, lease.expires_at) == ("one", "", 0)
    taken = store.claim("two", "b", 60_000_000)
    assert taken is not None
    assert taken.epoch == 2


def test_stage_keeps_small_settings(store: Store):
    assert store.stage("secret") is None
    assert store.stage("secret", "one") == "one"
    assert store.stage("secret", "two") == "two"
    assert store.stage("secret") == "two"
    assert store.stage("other") is None


def test_stage_keeps_the_first_value_where_that_is_asked(store: Store):
    assert store.stage("secret", "one", is_first=True) == "one"
    assert store.stage("secret", "two", is_first=True) == "one"
    assert store.stage("secret") == "one"


def test_restored_book_begins_a_new_life(store: Store):
    commit(store)
    before = store.head()
    store.renew("second")
    assert store.head() == msgspec.structs.replace(before, incarnation="second")
    commit(store)
    assert [header.incarnation for header, _ in store.batches(0, 10)] == ["first", "second"]
    assert check_tail(store) is None


def test_book_that_somebody_serves_begins_no_new_life(store: Store):
    store.claim("one", "a", 60_000_000)
    with pytest.raises(StoreInUse, match="one"):
        store.renew("second")
    assert store.head().incarnation == "first"
    store.give_up("one")
    store.renew("second")
    assert store.head().incarnation == "second"


def test_append_that_happened_is_found_out(store: Store):
    first = append_of(store.head())
    assert store.resolve(first) == Resolution(is_committed=False, is_owner=True)
    store.append(first)
    assert store.resolve(first) == Resolution(is_committed=True, is_owner=True)
    second = append_of(store.head())
    assert store.resolve(second) == Resolution(is_committed=False, is_owner=True)
    store.append(second)
    assert store.resolve(second) == Resolution(is_committed=True, is_owner=True)


def test_append_is_found_out_by_who_lost_the_book(store: Store):
    store.claim("one", "a", 1)
    done = append_of(store.head())
    store.append(done)
    other = append_of(store.head())
    time.sleep(0.01)
    assert store.claim("two", "b", 60_000_000) is not None
    commit(store)
    assert store.resolve(done) == Resolution(is_committed=True, is_owner=False)
    assert store.resolve(other) == Resolution(is_committed=False, is_owner=False)


# ── whole books ───────────────────────────────────────────────────────────────────


def test_books_of_one_place_are_isolated(place):
    one, two = place.open("one"), place.open("two")
    commit(one, key="k", accounts=[(account(1, "user:1:USD", 5), 0)])
    assert (one.head().book, two.head().book) == ("one", "two")
    assert two.head().sequence == 0
    assert two.account("user:1:USD") is None
    assert two.receipt("ledger", "k") is None
    commit(two, key="k", accounts=[(account(1, "user:1:USD", 7), 0)])
    stored = one.account("user:1:USD")
    assert stored is not None
    assert stored.posted == 5


@pytest.mark.parametrize("seed", [1, 2])
def test_equal_commands_leave_equal_books(store: Store, seed: int):
    memory = MemoryStore(Head(book="main", incarnation="first"))
    random_book(seed, store=memory)
    random_book(seed, store=store)
    assert dump(store) == dump(memory)
    assert check_tail(store) is None


def test_book_that_is_opened_again_is_the_same(place):
    if not place.is_durable:
        return
    store = place.open()
    book = random_book(3, store=store, batches=20)
    store.claim("me", "here", 1_000)
    store.stage("mark", "kept")
    before = dump(store)
    store.close()
    store = place.open()
    assert dump(store) == before
    assert store.stage("mark") == "kept"
    assert store.lease() is not None
    clock = Clock()
    clock.now = book.engine.head.committed_at
    again = InlineBook(open_engine(store, now=clock()), store, clock)
    replayed = again.execute(OpenAccount("user:99:ETH"), key="new")
    assert isinstance(replayed, Receipt)
    assert check_tail(store) is None


class Recording(MemoryStore):
    """A store that remembers its batches."""

    def append(self, batch: Append) -> None:
        super().append(batch)
        self.batches_seen = [*getattr(self, "batches_seen", []), batch]


def test_adopted_batches_make_the_same_book(store: Store):
    source = Recording(Head(book="main", incarnation="first"))
    random_book(4, store=source, batches=20)
    for batch in source.batches_seen:
        store.adopt(batch)
    assert dump(store) == dump(source)
    assert store.head().chain == source.head().chain


def test_rows_are_as_of_one_moment(store: Store):
    _standing_book(store)
    before = list(store.rows())
    assert before[0] == ("head", store.head())
    rows = iter(store.rows())
    seen = [next(rows), next(rows)]
    commit(
        store,
        key="later",
        accounts=[
            (account(1, "user:1:USD", 90, held=10, version=2), 1),
            (account(4, "user:4:USD"), 0),
        ],
        records=[(record("2"), None)],
        cursors=[CursorMove("topic", 7, 8)],
    )
    seen += rows
    assert msgspec.json.encode(seen) == msgspec.json.encode(before)
    assert len(list(store.rows())) == len(before) + 3


def test_readers_of_other_threads_see_whole_batches(store: Store):
    pair = [account(1, "user:1:USD", 100), account(2, "user:2:USD", 0)]
    commit(store, accounts=[(a, 0) for a in pair])
    wrong: list[object] = []
    is_over = threading.Event()

    def read() -> None:
        try:
            while not is_over.is_set():
                rows = store.accounts(0, 9)
                if sum(a.posted for a in rows) != 100:
                    wrong.append(rows)
                store.records("note")
                store.due("review", 0, 2**62)
                list(store.rows())
        except Exception as error:  # noqa: BLE001 - told by the main thread
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for version in range(2, 60):
            one = account(1, "user:1:USD", 100 - version, version=version)
            two = account(2, "user:2:USD", version, version=version)
            commit(
                store,
                accounts=[(one, version - 1), (two, version - 1)],
                records=[(record(str(version), marks=[("review", version)]), None)],
            )
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_size_counts_what_is_on_disk(place):
    store = place.open()
    assert (store.size_bytes() > 0) == place.is_durable

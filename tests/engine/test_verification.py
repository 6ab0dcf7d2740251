"""The proof of a book: green on a good one, and every kind of damage found at its entry."""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import pytest

from pennyweight.engine.chain import next_chain
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import BatchHeader, Head, KeyRow
from pennyweight.engine.rebuild import Rebuilt, State, answers_of, known_commands
from pennyweight.engine.verification import Report, check_tail, verify
from pennyweight.ledger.entries import Entry, decode_entry, encode_entry
from pennyweight.products.general import LoadBalances, PlaceHold, SettleHold, Transfer
from pennyweight.runtime.inline import InlineBook
from pennyweight.stores.memory import MemoryStore
from random_books import START, Note, Reserve, open_book, random_book
from scenarios import Stage

ANSWERS = answers_of(known_commands())
Rows = list[tuple[str, Any]]


class Copy:
    """A book's rows as plain lists, to be damaged."""

    def __init__(self, store: MemoryStore) -> None:
        self.rows_list: Rows = list(store.rows())
        self.kept_head: Head = self.rows_list.pop(0)[1]
        self.bodies = dict(store.entries(0, 1_000_000))
        self.headers = store.batches(0, 1_000_000)

    def head(self) -> Head:
        return self.kept_head

    def batches(self, after: int, limit: int) -> list[tuple[BatchHeader, bytes]]:
        return [row for row in self.headers if row[0].first_sequence > after][:limit]

    def entries(self, after: int, limit: int) -> list[tuple[int, bytes]]:
        return sorted(row for row in self.bodies.items() if row[0] > after)[:limit]

    def rows(self) -> Iterable[tuple[str, Any]]:
        yield "head", self.kept_head
        yield from self.rows_list

    def replace(self, kind: str, matches: Callable[[Any], bool], **changes: Any) -> None:
        """Change the first row of a kind that matches."""
        index = next(i for i, (k, row) in enumerate(self.rows_list) if k == kind and matches(row))
        row = self.rows_list[index][1]
        self.rows_list[index] = (kind, msgspec.structs.replace(row, **changes))

    def remove(self, kind: str) -> Any:
        """Remove the last row of a kind and return it."""
        index = max(i for i, (k, _) in enumerate(self.rows_list) if k == kind)
        return self.rows_list.pop(index)[1]

    def find(self, command: str) -> int:
        """Return the sequence of the first entry of a command."""
        return next(
            sequence
            for sequence, body in self.bodies.items()
            if decode_entry(body).command == command
        )

    def rewrite(self, sequence: int, /, **changes: Any) -> None:
        """Change an entry and forge the chain from there on: only the rules can tell."""
        entry: Entry = msgspec.structs.replace(decode_entry(self.bodies[sequence]), **changes)
        self.bodies[sequence] = encode_entry(entry)
        chain = bytes(32)
        for index, (header, _) in enumerate(self.headers):
            span = range(header.first_sequence, header.first_sequence + header.count)
            chain = next_chain(chain, header, [self.bodies[s] for s in span])
            self.headers[index] = (header, chain)
        self.kept_head = msgspec.structs.replace(self.kept_head, chain=chain)


def prove(source: Any, **options: Any) -> Report:
    return verify(source, answers=ANSWERS, **options)


def small_book() -> InlineBook:
    """Entries 1-9 register assets, 10 loads 1, 11 loads 2, then a payment, holds, a note."""
    book = open_book()
    book.execute(LoadBalances("1", (("USD", "100"), ("BTC", "1"))), key="one")
    book.execute(LoadBalances("2", (("USD", "50"),)), key="two")
    book.execute_many(
        [
            Submission(Transfer("user:1:USD", "user:2:USD", "USD", "10", START), key="pay"),
            Submission(PlaceHold("user:1:USD", "USD", "20")),
            Submission(PlaceHold("user:1:USD", "USD", "5", 60)),
        ]
    )
    book.execute(SettleHold(1, "15", "user:2:USD"))
    book.execute(Note(1, "hello"))
    return book


@pytest.fixture
def copy() -> Copy:
    return Copy(small_book().store)


PAY, PLACED, SETTLED, NOTED = 12, 13, 15, 16


@pytest.mark.parametrize("seed", range(8))
def test_a_random_book_is_proven_and_its_digest_is_that_of_its_rows(seed: int) -> None:
    store = random_book(seed).store
    report = prove(store)
    assert report.ok, report.problems
    assert report.sequence == report.entries == store.head().sequence
    assert report.chain_head == store.head().chain.hex()
    state = State()
    for kind, row in store.rows():
        state.add(kind, row)
    assert state.hexdigest(store.head().counters) == report.state_digest
    assert check_tail(store) is None


def test_an_empty_book_is_proven() -> None:
    report = prove(MemoryStore(Head(book="main", incarnation="first")))
    assert (report.ok, report.sequence, report.first_wrong) == (True, 0, None)


def test_the_digest_leaves_out_times_chain_and_incarnation() -> None:
    first = small_book()
    second = open_book(MemoryStore(Head(book="main", incarnation="second")))
    for sequence, body in first.store.entries(9, 100):
        assert sequence
        entry = decode_entry(body)
        command = next(c for c in known_commands() if c.name == entry.command)
        second.execute(msgspec.json.decode(entry.fields, type=command), key=entry.key)
    # The expiry of hold 2 lies elsewhere, because batches were cut otherwise.
    assert second.store.head().chain != first.store.head().chain
    assert second.store.hold(2) != first.store.hold(2)
    assert prove(second.store).state_digest == prove(first.store).state_digest


def test_progress_is_told_up_to_the_end() -> None:
    told: list[tuple[int, int]] = []
    prove(small_book().store, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (16, 16)


def test_rows_of_a_later_moment_are_caught_up_with() -> None:
    book = small_book()

    class Growing(Copy):
        def rows(self) -> Iterable[tuple[str, Any]]:
            book.execute(Transfer("user:1:USD", "user:2:USD", "USD", "1"))
            self.__init__(book.store)
            return super().rows()

    report = prove(Growing(book.store))
    assert (report.ok, report.sequence) == (True, 17)


# ── the journal ───────────────────────────────────────────────────────────────────


def first_wrong(source: Any) -> tuple[int, str]:
    report = prove(source)
    assert not report.ok
    assert report.first_wrong is not None
    assert report.problem_count == len(report.problems)
    return report.first_wrong.sequence, report.first_wrong.problem


def test_a_flipped_byte_in_an_amount_is_found_at_its_entry(copy: Copy) -> None:
    copy.bodies[PAY] = copy.bodies[PAY].replace(b"10000000000000000000]", b"10000000000000000001]")
    sequence, problem = first_wrong(copy)
    assert sequence == PAY
    assert "posted" in problem


def test_a_flipped_byte_that_no_rule_sees_is_found_in_its_batch(copy: Copy) -> None:
    copy.bodies[PLACED] = copy.bodies[PLACED].replace(b'"command":"place', b'"command":"Place')
    copy.bodies[NOTED] = copy.bodies[NOTED].replace(b"hello", b"hallo", 1)
    report = prove(copy)
    assert report.first_wrong is not None
    assert report.first_wrong.sequence == PLACED
    assert "Place_hold of ledger is no known command" in report.first_wrong.problem
    assert [p.sequence for p in report.problems] == [PLACED, NOTED]
    assert "the chain of its batch differs" in report.problems[-1].problem


def test_a_body_that_is_no_json_is_found_at_its_entry(copy: Copy) -> None:
    copy.bodies[PAY] = copy.bodies[PAY][:-1]
    assert first_wrong(copy)[0] == PAY
    copy.bodies[PAY] = b"\x02{}"
    assert "unknown format byte" in first_wrong(copy)[1]


def test_a_dropped_entry_is_found(copy: Copy) -> None:
    del copy.bodies[PAY]
    assert first_wrong(copy) == (PAY, "it is missing")


def test_a_dropped_last_entry_is_found(copy: Copy) -> None:
    del copy.bodies[NOTED]
    assert first_wrong(copy) == (NOTED, "it is missing")


def test_a_dropped_last_batch_is_found(copy: Copy) -> None:
    del copy.headers[-1]
    assert first_wrong(copy) == (NOTED, "the batches of the entries up to 16 are missing")


def test_a_dropped_batch_is_found(copy: Copy) -> None:
    index = next(i for i, (h, _) in enumerate(copy.headers) if h.first_sequence == PAY)
    del copy.headers[index]
    assert first_wrong(copy) == (PAY, "no batch has the entries 12 to 14")


def test_swapped_bodies_are_found(copy: Copy) -> None:
    copy.bodies[10], copy.bodies[11] = copy.bodies[11], copy.bodies[10]
    assert first_wrong(copy) == (10, "its body says that it is entry 11")


def test_swapped_batches_are_found(copy: Copy) -> None:
    (one, first), (two, second) = copy.headers[1], copy.headers[2]
    copy.headers[1] = (msgspec.structs.replace(one, committed_at=two.committed_at), second)
    copy.headers[2] = (msgspec.structs.replace(two, committed_at=one.committed_at), first)
    sequence, problem = first_wrong(copy)
    assert sequence == one.first_sequence
    assert "the chain of its batch differs" in problem


def test_a_time_that_does_not_rise_is_found(copy: Copy) -> None:
    header, chain = copy.headers[-1]
    copy.headers[-1] = (msgspec.structs.replace(header, committed_at=START), chain)
    assert first_wrong(copy) == (NOTED, "the time of its batch is not later than the last one's")


def test_a_batch_of_another_book_is_found(copy: Copy) -> None:
    header, chain = copy.headers[-1]
    copy.headers[-1] = (msgspec.structs.replace(header, book="other"), chain)
    assert "names another book" in first_wrong(copy)[1]


def test_a_batch_that_comes_twice_is_found(copy: Copy) -> None:
    copy.headers.insert(2, copy.headers[1])
    assert "read already" in first_wrong(copy)[1]


def test_the_chain_stands_in_for_what_every_rule_would_accept(copy: Copy) -> None:
    entry = decode_entry(copy.bodies[PAY])
    copy.bodies[PAY] = encode_entry(
        msgspec.structs.replace(
            entry, answer=msgspec.Raw(bytes(entry.answer).replace(b"10", b"11"))
        )
    )
    sequence, problem = first_wrong(copy)
    assert (sequence, problem) == (
        PAY,
        "the chain of its batch differs: one of 12 to 14 was changed after the commit",
    )


# ── forged entries: the chain is right, the rules are not ─────────────────────────


def edit(entry: Entry, name: str, index: int, **changes: Any) -> list[Any]:
    """Return a list of an entry with one item changed."""
    items = list(getattr(entry, name))
    items[index] = msgspec.structs.replace(items[index], **changes)
    return items


def forge(copy: Copy, sequence: int, name: str, index: int = 0, **changes: Any) -> str:
    """Change an item of a list of an entry; return what is said of that entry."""
    entry = decode_entry(copy.bodies[sequence])
    copy.rewrite(sequence, **{name: edit(entry, name, index, **changes)})
    found, problem = first_wrong(copy)
    assert found == sequence
    return problem


@pytest.mark.parametrize(
    ("sequence", "name", "index", "changes", "problem"),
    [
        (PAY, "transfers", 0, {"amount": 7}, "posted"),
        (PAY, "transfers", 0, {"amount": -7}, "cannot have been made"),
        (PAY, "transfers", 0, {"credit_account": "user:9:USD"}, "never opened"),
        (PAY, "transfers", 0, {"credit_account": "user:1:BTC"}, "cannot have been made"),
        (PAY, "lines", 0, {"ordinal": 7}, "says the ordinal is 7"),
        (PAY, "lines", 1, {"previous": 3}, "says the previous line is 3"),
        (PAY, "lines", 1, {"jump": 3}, "says the jump is 3"),
        (PAY, "lines", 1, {"account": "user:1:USD"}, "says the account is user:1:USD"),
        (PAY, "lines", 0, {"change": 4}, "do not follow"),
        (PAY, "lines", 1, {"change": 4}, "has one statement line"),
        (PLACED, "holds", 0, {"held": 3}, "open hold of its whole amount"),
        (10, "openings", 0, {"number": 9}, "account 9 comes after"),
        (10, "openings", 0, {"asset": "EUR"}, "is opened for"),
        (NOTED, "records", 0, {"version": 2}, "becomes version 2, but was at 0"),
        (NOTED, "records", 0, {"product": "ledger"}, "which does not own it"),
        (NOTED, "cursors", 0, {"before": 4}, "cursor notes moves from 4"),
    ],
)
def test_a_forged_entry_is_found(
    copy: Copy, sequence: int, name: str, index: int, changes: dict[str, Any], problem: str
) -> None:
    assert problem in forge(copy, sequence, name, index, **changes)


@pytest.mark.parametrize(
    ("sequence", "changes", "problem"),
    [
        (PLACED, {"id": 5}, "hold 5 comes after hold 0"),
        (PLACED, {"owner": "wallet"}, "is placed by ledger for wallet"),
        (PLACED, {"amount": 10**21, "remaining": 10**21}, "its whole amount"),
        (PLACED, {"expires_at": START}, "is placed after its expiry"),
        (SETTLED, {"id": 2}, "more than its remainder"),
        (SETTLED, {"id": 9}, "is not open, but is changed (settle)"),
        (SETTLED, {"remaining": 1}, "is not its own change"),
        (SETTLED, {"owner": "wallet"}, "more than its remainder"),
        (SETTLED, {"reference": "other"}, "more than its remainder"),
        (SETTLED, {"placed_at": START}, "more than its remainder"),
        (SETTLED, {"changed_by": PLACED}, "more than its remainder"),
        (PLACED, {"placed_at": START}, "at another time, or by another entry"),
        (PLACED, {"changed_by": PAY}, "at another time, or by another entry"),
    ],
)
def test_a_forged_hold_is_found(
    copy: Copy, sequence: int, changes: dict[str, Any], problem: str
) -> None:
    change = decode_entry(copy.bodies[sequence]).holds[0]
    hold = msgspec.structs.replace(change.hold, **changes)
    assert problem in forge(copy, sequence, "holds", hold=hold)


@pytest.mark.parametrize(
    ("verb", "problem"),
    [
        ("void", "cannot be settled after its end (void)"),
        ("expire", "cannot be settled after its end (expire)"),
    ],
)
def test_a_hold_ends_in_the_state_of_its_verb(copy: Copy, verb: str, problem: str) -> None:
    assert problem in forge(copy, SETTLED, "holds", verb=verb)


@pytest.mark.parametrize(
    ("sequence", "changes", "problem"),
    [
        (PAY, {"answer": msgspec.Raw(b"3")}, "its answer cannot be read back"),
        (PAY, {"command": "unheard"}, "unheard of ledger is no known command"),
        (PAY, {"effective_at": START * 2}, "it is dated later than its commit"),
        (PAY, {"counters": {"note": 0}}, "counter note goes to 0, but stood at 0"),
        (PAY, {"closings": ["user:2:USD"]}, "is closed with a balance"),
        (PAY, {"closings": ["user:9:USD"]}, "was never opened"),
        (PLACED, {"product": "wallet"}, "is placed by wallet for ledger"),
        (SETTLED, {"product": "wallet"}, "belongs to ledger, but is changed by wallet"),
        (SETTLED, {"transfers": []}, "do not follow"),
        (NOTED, {"sequence": 17}, "its body says that it is entry 17"),
    ],
)
def test_a_forged_entry_is_found_by_what_it_says(
    copy: Copy, sequence: int, changes: dict[str, Any], problem: str
) -> None:
    copy.rewrite(sequence, **changes)
    found, told = first_wrong(copy)
    assert found == sequence
    assert problem in told


def test_spending_more_than_there_is_is_found(copy: Copy) -> None:
    entry = decode_entry(copy.bodies[PAY])
    amount = 10**21
    copy.rewrite(
        PAY,
        transfers=edit(entry, "transfers", 0, amount=amount),
        lines=[
            msgspec.structs.replace(entry.lines[0], posted=10**20 - amount),
            msgspec.structs.replace(entry.lines[1], posted=5 * 10**19 + amount),
        ],
    )
    assert first_wrong(copy) == (PAY, "account user:1:USD goes below its floor")


def test_a_settlement_that_pays_from_elsewhere_is_found(copy: Copy) -> None:
    entry = decode_entry(copy.bodies[SETTLED])
    copy.rewrite(SETTLED, transfers=edit(entry, "transfers", 0, debit_account="world:USD"))
    sequence, problem = first_wrong(copy)
    assert sequence == SETTLED
    assert "pays something else" in problem


def test_a_key_that_is_bound_twice_is_found(copy: Copy) -> None:
    copy.rewrite(11, key="one")
    copy.replace("key", lambda row: row.key == "two", key="one")
    assert first_wrong(copy) == (11, "its key ledger one was bound by entry 10 already")


def test_a_reference_that_is_taken_twice_is_found() -> None:
    book = open_book()
    book.execute(LoadBalances("1", (("USD", "100"),)))
    for reference in ("one", "two", "three", "one"):
        book.execute(Reserve(1, reference))
    copy = Copy(book.store)
    assert prove(copy).ok
    placed = copy.find("reserve") + 1
    change = decode_entry(copy.bodies[placed]).holds[0]
    twin = msgspec.structs.replace(change.hold, reference="one")
    copy.rewrite(placed, holds=[msgspec.structs.replace(change, hold=twin)])
    copy.replace("hold", lambda row: row.id == 2, reference="one")
    assert first_wrong(copy) == (placed, "hold 2 takes the reference notes one, which hold 1 has")


def test_problems_are_bounded_but_counted() -> None:
    book = open_book()
    book.execute_many([Submission(LoadBalances(str(n), (("USD", "1"),))) for n in range(150)])
    copy = Copy(book.store)
    for sequence in list(copy.bodies):
        copy.bodies[sequence] = b""
    report = prove(copy)
    assert len(report.problems) == 100
    assert report.problem_count > 150
    assert report.first_wrong is not None
    assert report.first_wrong.sequence == 1


# ── the rows ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "matches", "changes", "sequence", "problem"),
    [
        (
            "account",
            lambda row: row.id == "user:2:USD",
            {"posted": 1},
            SETTLED,
            "account user:2:USD is stored with posted 1, its entries say 75000000000000000000",
        ),
        ("account", lambda row: row.id == "user:1:USD", {"roots": (1, 1)}, SETTLED, "roots"),
        ("account", lambda row: row.id == "user:1:BTC", {"floor": None}, 10, "with floor None"),
        ("hold", lambda row: row.id == 2, {"remaining": 1}, 14, "its hold 2 is stored differently"),
        (
            "hold",
            lambda row: row.id == 1,
            {"amount": 1},
            SETTLED,
            "its hold 1 is stored differently",
        ),
        ("hold", lambda row: row.id == 1, {"id": 9}, SETTLED, "its hold 1 is not stored"),
        (
            "record",
            lambda row: row.kind == Note.kind,
            {"body": msgspec.Raw(b"{}")},
            NOTED,
            "its record notes.note 1 is stored differently",
        ),
        ("record", lambda row: row.id == "USD", {"version": 2}, 1, "asset USD"),
        ("key", lambda row: row.key == "pay", {"sequence": 3}, PAY, "its key ledger pay"),
        ("key", lambda row: row.key == "pay", {"key": "paid"}, PAY, "its key ledger pay is not"),
        ("cursor", lambda row: row.name == "notes", {"after": 4}, 0, "the cursors are stored"),
    ],
)
def test_a_changed_row_is_found_at_the_entry_that_wrote_it(
    copy: Copy,
    kind: str,
    matches: Callable[[Any], bool],
    changes: dict[str, Any],
    sequence: int,
    problem: str,
) -> None:
    copy.replace(kind, matches, **changes)
    found, told = first_wrong(copy)
    assert found == sequence
    assert problem in told


@pytest.mark.parametrize(
    "kind", ["account", "hold", "record", "cursor", "key", "listing", "back_dated"]
)
def test_a_missing_row_is_found(copy: Copy, kind: str) -> None:
    copy.remove(kind)
    assert not prove(copy).ok


def test_an_invented_row_is_found(copy: Copy) -> None:
    copy.rows_list.append(("key", KeyRow("ledger", "invented", PAY)))
    assert first_wrong(copy) == (PAY, "key ledger invented is stored, but no entry made it")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"chain": bytes(32)}, "the head of the book is not its last batch"),
        ({"committed_at": 3}, "the head of the book is not its last batch"),
        ({"counters": {"hold": 2}}, "counter account is stored as 0, the journal says 5"),
    ],
)
def test_a_changed_head_is_found(copy: Copy, changes: dict[str, Any], problem: str) -> None:
    copy.kept_head = msgspec.structs.replace(copy.kept_head, **changes)
    assert problem in first_wrong(copy)[1]


# ── what else ─────────────────────────────────────────────────────────────────────


class NoRoundSums:
    """An invariant: nobody pays ten; and there must be a note."""

    def entry(self, entry: Entry, book: Rebuilt) -> str | None:
        is_round = any(transfer.amount == 10**19 for transfer in entry.transfers)
        return "somebody pays ten" if is_round and book.sequence == entry.sequence else None

    def end(self, book: Rebuilt) -> Iterable[tuple[int, str]]:
        yield book.sequence, f"{len(book.accounts)} accounts"


def test_invariants_of_products_are_asked(copy: Copy) -> None:
    report = prove(copy, invariants=[NoRoundSums()])
    assert [(p.sequence, p.problem) for p in report.problems] == [
        (PAY, "somebody pays ten"),
        (NOTED, "5 accounts"),
    ]


def test_the_quick_look_sees_a_damaged_end(copy: Copy) -> None:
    assert check_tail(copy) is None
    body = copy.bodies[NOTED]
    copy.bodies[NOTED] = body + b" "
    found = check_tail(copy)
    assert found is not None
    assert found.sequence == NOTED
    copy.bodies[NOTED] = body
    copy.kept_head = msgspec.structs.replace(copy.kept_head, committed_at=1)
    assert check_tail(copy) is not None
    del copy.bodies[NOTED]
    assert check_tail(copy) is not None


def test_the_quick_look_at_a_long_book_reads_its_end_only() -> None:
    book = open_book()
    for start in range(0, 2_400, 300):
        book.execute_many(
            [Submission(LoadBalances(str(n), (("USD", "1"),))) for n in range(start, start + 300)]
        )
    copy = Copy(book.store)
    del copy.bodies[1]
    assert check_tail(copy) is None
    copy.bodies[2_300] = b""
    assert check_tail(copy) is not None


def test_tail_of_a_book_that_grows_meanwhile() -> None:
    """Who joins the owner looks at a book that moves on between two reads."""

    class Growing:
        def __init__(self) -> None:
            self.stage = Stage()
            self.stage.fund("user:1:USD", "1")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.stage.store, name)

        def batches(self, after: int, limit: int) -> Any:
            self.stage.fund("user:1:USD", "1")
            return self.stage.store.batches(after, limit)

    assert check_tail(Growing()) is None

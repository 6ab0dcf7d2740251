"""Documents of the journal in a search engine: at least once, never older, whatever fails on the way."""

import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from pennyweight.agents import agent as agent_module
from pennyweight.agents import exporter as exporter_module
from pennyweight.agents import following as following_module
from pennyweight.agents.exporter import LACKS, Exporter
from pennyweight.agents.following import BatchHeaders
from pennyweight.delivery.indices import INDICES
from pennyweight.delivery.search import Documents
from pennyweight.engine.engine import MoveCursor, Submission
from pennyweight.engine.port import BatchHeader, Head
from pennyweight.engine.receipts import Receipt
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import CursorMove, decode_entry
from pennyweight.links.search import Document, Search
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.products.withdrawals.withdraw import CancelWithdrawal, Withdraw
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.opening import open_engine
from pennyweight.simulators.searchstub import SearchStub
from pennyweight.stores.memory import MemoryStore
from waiting import wait_for, wait_for_calls

START = 1_760_000_000_000_000
CURSOR = "export:search"


AT = b"2026-01-02T03:04:05.000006Z"


class Rig:
    def __init__(self, stub: SearchStub, store: MemoryStore | None = None) -> None:
        self.stub = stub
        self.store = store or MemoryStore(Head(book="main", incarnation="first"))
        self.book = ThreadedBook(
            open_engine(self.store, now=START), self.store, ClockGuard(lambda: START, lambda: 0)
        )
        self.book.start()
        self.exporters: list[Exporter] = []
        self.make = Documents(lambda asset: self.book.standing.assets[asset].scale, self.store)

    def execute(self, command: Command, *, cursor: CursorMove | None = None) -> int:
        done = threading.Event()
        outcomes: list[Any] = []

        def ticket(outcome: Any) -> None:
            outcomes.append(outcome)
            done.set()

        self.book.submit(Submission(command, ticket=ticket, cursor=cursor))
        assert done.wait(20)
        assert isinstance(outcomes[0], Receipt), outcomes
        return outcomes[0].sequence

    def open(self, *users: int) -> int:
        return [self.execute(OpenAccount(f"user:{user}:USD")) for user in users][-1]

    def exporter(self, **settings: Any) -> Exporter:
        timeout_seconds = settings.pop("timeout_seconds", 5.0)
        exporter = Exporter(
            self.book,
            partial(Search, self.stub.url, timeout_seconds=timeout_seconds),
            settings.pop("make", self.make),
            INDICES,
            cursor=CURSOR,
            **settings,
        )
        exporter.start()
        self.exporters.append(exporter)
        return exporter

    @property
    def cursor(self) -> int:
        return self.book.standing.cursors.get(CURSOR, 0)

    @property
    def wanted(self) -> set[str]:
        """The ids of all entries that are more than a cursor's move."""
        return {
            str(sequence)
            for sequence, body in self.store.entries(0, 100_000)
            if decode_entry(body).command != MoveCursor.name
        }

    @property
    def there(self) -> set[str]:
        return set(self.stub.engine.versions("entries"))

    def wait_for_all(self) -> None:
        wait_for(lambda: self.there == self.wanted)

    def close(self) -> None:
        self.stub.faults.is_hanging = False
        for exporter in self.exporters:
            exporter.stop()
        self.book.stop(10)


@pytest.fixture
def stub() -> Iterator[SearchStub]:
    with SearchStub() as stub:
        yield stub


@pytest.fixture
def rig(stub: SearchStub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(following_module, "MOVE_SECONDS", 0.05)
    monkeypatch.setattr(agent_module, "RETRY_SECONDS_MAX", 0.2)
    monkeypatch.setattr(exporter_module, "RETRY_SECONDS_MAX", 0.1)
    rig = Rig(stub)
    yield rig
    rig.close()


def test_every_entry_is_there_under_its_sequence(rig: Rig) -> None:
    rig.open(*range(20))
    exporter = rig.exporter(entries_max=7)
    rig.wait_for_all()
    assert all(version == int(one) for one, version in rig.stub.engine.versions("entries").items())
    assert set(rig.stub.engine.templates) == set(INDICES)
    assert set(rig.stub.engine.aliases) == set(INDICES)
    wait_for(lambda: exporter.counts.sent == len(rig.there))
    assert (exporter.counts.present, exporter.counts.rejected, exporter.status) == (0, 0, "")


def test_its_own_moves_of_the_cursor_make_no_more_moves(rig: Rig) -> None:
    exporter = rig.exporter()
    rig.open(1)
    wait_for(lambda: rig.cursor >= int(max(rig.wanted, key=int)))
    moves, bulks = exporter.moves, exporter.counts.bulks
    wait_for(lambda: exporter.lag == 0)
    wait_for_calls(exporter, "_turn", 5)  # each a moment long; a move is due after one
    assert (exporter.moves, exporter.counts.bulks) == (moves, bulks)


def test_long_stretches_without_documents_are_read_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "MOVE_ENTRIES", 10)
    rig.exporter()
    rig.wait_for_all()
    for number in range(12):
        rig.execute(MoveCursor("another", number, number + 1))
    last = rig.store.head().sequence
    wait_for(lambda: rig.cursor >= last - 10)


def test_restarted_exporter_goes_on_at_the_cursor(rig: Rig) -> None:
    first = rig.exporter()
    rig.open(1)
    rig.wait_for_all()
    first.stop()
    rig.open(2)
    second = rig.exporter()
    rig.wait_for_all()
    wait_for(lambda: second.counts.sent == 1)
    assert second.counts.present == 0


def test_next_owner_goes_on_at_the_cursor(rig: Rig) -> None:
    first = rig.exporter()
    rig.open(1)
    rig.wait_for_all()
    first.stop()
    rig.book.stop(10)
    again = Rig(rig.stub, rig.store)
    try:
        again.open(2)
        second = again.exporter()
        again.wait_for_all()
        wait_for(lambda: second.counts.sent == 1)
    finally:
        again.close()


def test_items_that_are_not_taken_now_are_sent_again_alone(rig: Rig) -> None:
    sequence = str(rig.open(1, 2, 3))
    answers = {sequence: [429, 503]}
    rig.stub.faults.item = lambda _, one: answers[one].pop() if answers.get(one) else 0
    exporter = rig.exporter()
    rig.wait_for_all()
    counts = exporter.counts
    wait_for(lambda: counts.sent == len(rig.there))
    assert counts.retries == 2
    assert counts.bulks == 3
    assert counts.present == 0


def test_why_items_wait_is_told_meanwhile(rig: Rig) -> None:
    rig.stub.faults.item = lambda _, _one: 429
    exporter = rig.exporter()
    rig.open(1)
    wait_for(lambda: "429" in exporter.status)
    assert exporter.lag > 0
    rig.stub.faults.item = None
    rig.wait_for_all()
    wait_for(lambda: exporter.status == "")


def test_poison_document_stops_no_other(rig: Rig) -> None:
    poison = str(rig.open(1))
    rig.open(2)
    rig.stub.faults.item = lambda _, one: 400 if one == poison else 0
    exporter = rig.exporter()
    wait_for(lambda: rig.there == rig.wanted - {poison})
    wait_for(lambda: exporter.lag == 0)
    assert exporter.counts.rejected == 1
    assert exporter.status == ""


def test_entry_that_no_documents_can_be_made_of_stops_no_other(rig: Rig) -> None:
    odd = rig.open(1)
    rig.open(2)

    def make(header: BatchHeader, sequence: int, body: bytes) -> list[Document]:
        if sequence == odd:
            raise KeyError("a bug")
        return rig.make(header, sequence, body)

    exporter = rig.exporter(make=make)
    wait_for(lambda: rig.there == rig.wanted - {str(odd)})
    assert exporter.counts.failed == 1


def test_bulk_that_is_too_large_is_halved(rig: Rig) -> None:
    rig.open(*range(40))
    rig.stub.faults.bytes_max = 4_000
    exporter = rig.exporter()
    rig.wait_for_all()
    wait_for(lambda: exporter.counts.sent == len(rig.there))
    assert exporter.counts.rejected == 0
    assert max(rig.stub.bulk_bytes) > 4_000


def test_document_that_is_too_large_alone_is_passed_over(rig: Rig) -> None:
    rig.stub.faults.bytes_max = 10
    exporter = rig.exporter()
    wait_for(lambda: exporter.counts.rejected == len(rig.wanted))
    wait_for(lambda: exporter.status == "" and exporter.lag <= 1)


def test_document_for_which_the_whole_bulk_is_refused_stops_no_other(rig: Rig) -> None:
    odd = rig.open(1, 2, 3)

    def make(header: BatchHeader, sequence: int, body: bytes) -> list[Document]:
        made = rig.make(header, sequence, body)
        return [*made, Document("loans", "x" * 513, sequence, b"{}")] if sequence == odd else made

    exporter = rig.exporter(make=make)
    rig.wait_for_all()
    wait_for(lambda: exporter.lag == 0)
    assert exporter.counts.rejected == 1


def test_bulks_have_so_many_documents(rig: Rig) -> None:
    rig.open(*range(40))
    exporter = rig.exporter(documents_max=5)
    rig.wait_for_all()
    wait_for(lambda: exporter.counts.bulks >= len(rig.there) / 5)


def test_sink_down_and_up(rig: Rig) -> None:
    exporter = rig.exporter()
    rig.open(1)
    rig.wait_for_all()
    rig.stub.down()
    rig.open(*range(2, 30))
    wait_for(lambda: "refused" in exporter.status.lower())
    assert "127.0.0.1" in exporter.status
    assert exporter.lag > 0
    rig.stub.up()
    rig.wait_for_all()
    wait_for(lambda: exporter.status == "")
    wait_for(lambda: exporter.lag == 0)


def test_sink_down_at_the_start(rig: Rig) -> None:
    rig.stub.down()
    exporter = rig.exporter()
    rig.open(1)
    wait_for(lambda: exporter.status)
    rig.stub.up()
    rig.wait_for_all()


@pytest.mark.parametrize("status", [429, 500, 503])
def test_sink_that_takes_no_bulks_for_a_while(rig: Rig, status: int) -> None:
    rig.stub.faults.statuses.extend([status] * 3)
    exporter = rig.exporter()
    rig.open(1)
    wait_for(lambda: str(status) in exporter.status)
    rig.wait_for_all()
    wait_for(lambda: exporter.status == "")


def test_bulk_whose_answer_was_lost_is_there_already(rig: Rig) -> None:
    rig.stub.faults.resets_after = 2  # the client asks a second time by itself
    exporter = rig.exporter()
    rig.open(1)
    rig.wait_for_all()
    wait_for(lambda: exporter.counts.present and exporter.lag == 0)


def test_sink_that_hangs_is_given_up(rig: Rig) -> None:
    rig.stub.faults.is_hanging = True
    exporter = rig.exporter(timeout_seconds=0.2)
    rig.open(1)
    wait_for(lambda: "in time" in exporter.status)
    rig.stub.faults.is_hanging = False
    rig.wait_for_all()


def test_newer_versions_are_not_overwritten(rig: Rig) -> None:
    rig.open(7)
    rig.execute(Transfer("world:USD", "user:7:USD", "USD", "10"))
    rig.execute(Withdraw("7", "USD", "1", withdrawal_id="w-a"))
    first = rig.exporter()
    wait_for(lambda: rig.stub.engine.documents("withdrawals"))
    rig.execute(CancelWithdrawal("w-a"))
    wait_for(lambda: rig.stub.engine.documents("withdrawals")["w-a"]["status"] == "cancelled")
    first.stop()
    rig.stub.engine.indices["entries-000001"].documents.clear()  # so all are sent again
    rig.exporter()
    rig.wait_for_all()
    assert rig.stub.engine.documents("withdrawals")["w-a"]["status"] == "cancelled"


class Unsure:
    """The tenure of a book that another may own by now."""

    is_sure = False

    def confirm(self) -> None:
        """Nobody asks."""


def test_nothing_is_sent_while_the_book_may_have_another_owner(rig: Rig) -> None:
    exporter = rig.exporter()
    rig.open(1)
    rig.wait_for_all()
    before = rig.there
    ours, rig.book._tenure = rig.book._tenure, Unsure()
    rig.open(2)
    wait_for(lambda: exporter.lag)
    wait_for_calls(exporter, "_turn")
    assert rig.there == before
    rig.book._tenure = ours
    rig.wait_for_all()


def test_what_was_read_for_too_long_is_not_sent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the process stood still in the middle of a page."""
    exporter = rig.exporter()
    rig.wait_for_all()
    before = rig.there
    ours, read = rig.book._tenure, rig.store.entries

    def slow(*values: Any, **options: Any) -> Any:
        rig.book._tenure = Unsure()
        return read(*values, **options)

    monkeypatch.setattr(rig.store, "entries", slow)
    rig.open(1)
    wait_for(lambda: isinstance(rig.book._tenure, Unsure))
    wait_for_calls(exporter, "_turn")
    assert rig.there == before
    monkeypatch.undo()
    rig.book._tenure = ours
    rig.wait_for_all()
    assert exporter.status == ""


# ── what is there ─────────────────────────────────────────────────────────────────


def test_sink_that_is_ahead_of_a_restored_book_is_sent_nothing(rig: Rig) -> None:
    rig.open(1, 2, 3)
    first = rig.exporter()
    rig.wait_for_all()
    first.stop()
    source = b'{"sequence":1000,"book":"main","incarnation":"first","committed_at":"%b"}' % AT
    rig.stub.engine.indices["entries-000001"].documents["1000"] = (1000, source)
    exporter = rig.exporter()
    wait_for(lambda: "pennyweight recover" in exporter.status)
    rig.open(4)
    wait_for_calls(exporter, "_session")
    assert rig.there - {"1000"} < rig.wanted
    exporter.stop()
    rig.book.stop(10)
    rig.store.renew("second")
    again = Rig(rig.stub, rig.store)
    try:
        exporter = again.exporter()
        wait_for(lambda: "pennyweight reindex" in exporter.status)
        assert "recover" not in exporter.status
    finally:
        again.close()


@pytest.mark.parametrize(
    "told",
    [
        b'{"sequence":7,"of":"somebody"}',
        b'{"sequence":"7","book":"main","incarnation":"first","committed_at":1}',
        b'{"sequence":7,"book":"main","incarnation":"first","committed_at":"yesterday"}',
    ],
)
def test_entries_that_are_no_book_s_are_left_alone(rig: Rig, told: bytes) -> None:
    rig.open(1, 2, 3)
    with Search(rig.stub.url) as link:
        link.create("entries")
    rig.stub.engine.indices["entries-000001"].documents["7"] = (7, told)
    exporter = rig.exporter()
    wait_for(lambda: "entries that are no book's" in exporter.status)
    assert rig.there == {"7"}


@pytest.mark.parametrize(
    "lost", [b'"lost","committed_at":"%b"' % AT, b'"first","committed_at":"%b"' % AT]
)
def test_sink_with_entries_of_a_lost_life_is_sent_nothing(rig: Rig, lost: bytes) -> None:
    """The book has grown past what it lost: the names of its lives tell, or times of commits."""
    sequence = rig.open(1, 2, 3)
    with Search(rig.stub.url) as link:
        link.create("entries")
    source = b'{"sequence":%d,"book":"main","incarnation":%b}' % (sequence - 1, lost)
    documents = rig.stub.engine.indices["entries-000001"].documents
    documents[str(sequence - 1)] = (sequence - 1, source)
    exporter = rig.exporter()
    wait_for(lambda: "pennyweight reindex" in exporter.status)
    assert len(documents) == 1


def test_sink_of_another_book_is_sent_nothing(rig: Rig) -> None:
    with Search(rig.stub.url) as link:
        link.create("entries")
    source = b'{"sequence":3,"book":"eu-2","incarnation":"first"}'
    rig.stub.engine.indices["entries-000001"].documents["3"] = (3, source)
    exporter = rig.exporter()
    wait_for(lambda: "search.prefix" in exporter.status)


def test_emptied_sink_gets_everything_again(rig: Rig) -> None:
    rig.open(*range(10))
    exporter = rig.exporter()
    rig.wait_for_all()
    wait_for(lambda: exporter.lag == 0)
    rig.stub.engine.indices.clear()
    rig.stub.engine.aliases.clear()
    rig.open(10)
    rig.wait_for_all()
    wait_for(lambda: exporter.status == "")
    wait_for(lambda: rig.stub.engine.indices["entries-000001"].meta["lacks_until"] == 0)


def test_single_index_that_is_gone_gets_everything_again(rig: Rig) -> None:
    rig.open(7)
    rig.execute(Transfer("world:USD", "user:7:USD", "USD", "10"))
    rig.execute(Withdraw("7", "USD", "1"))
    first = rig.exporter()
    wait_for(lambda: rig.stub.engine.documents("withdrawals"))
    first.stop()
    rig.stub.engine._delete("withdrawals-000001")
    rig.stub.faults.statuses.extend([503] * 4)  # it begins anew again and again
    second = rig.exporter()
    wait_for(lambda: rig.stub.engine.documents("withdrawals"))
    wait_for(lambda: rig.stub.engine.indices["withdrawals-000001"].meta["lacks_until"] == 0)
    wait_for(lambda: second.counts.present > 0)


def test_index_that_nobody_finished_is_completed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it anew was killed after the switch; a running exporter finds it."""
    monkeypatch.setattr(exporter_module, "LOOK_SECONDS", 0.05)
    rig.open(1, 2, 3)
    exporter = rig.exporter()
    rig.wait_for_all()
    index = rig.stub.engine.indices["entries-000001"]
    index.documents.clear()
    with Search(rig.stub.url) as link:
        link.put_meta("entries-000001", {LACKS: 2**62})
    rig.wait_for_all()
    wait_for(lambda: index.meta.get(LACKS) == 0)
    wait_for(lambda: exporter.status == "")


def test_sink_that_was_restored_gets_what_it_lacks(rig: Rig) -> None:
    rig.open(*range(10))
    first = rig.exporter()
    rig.wait_for_all()
    first.stop()
    documents = rig.stub.engine.indices["entries-000001"].documents
    for one in sorted(documents, key=int)[-5:]:
        del documents[one]
    second = rig.exporter()
    rig.wait_for_all()
    wait_for(lambda: second.counts.sent == 5)


def test_index_of_somebody_else_is_named(rig: Rig) -> None:
    rig.stub.engine._create("loans", {})
    exporter = rig.exporter()
    wait_for(lambda: "loans that is not ours" in exporter.status)
    assert rig.stub.engine.bulks == 0


def test_cursor_moved_by_another_exporter(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = rig.exporter()
    rig.open(1)
    rig.wait_for_all()
    wait_for(lambda: rig.cursor and not exporter._is_moving)
    submit = rig.book.submit

    def race(submission: Submission) -> None:
        """Somebody else is a moment faster."""
        monkeypatch.setattr(rig.book, "submit", submit)
        move = CursorMove(CURSOR, rig.cursor, rig.cursor + 1)
        submit(Submission(OpenAccount("user:2:USD"), cursor=move))
        submit(submission)

    monkeypatch.setattr(rig.book, "submit", race)
    submit(Submission(OpenAccount("user:3:USD")))
    wait_for(lambda: exporter.conflicts == 1)
    rig.wait_for_all()


def test_headers_are_those_of_the_batches(rig: Rig) -> None:
    last = rig.open(*range(30))
    headers = BatchHeaders(rig.store)
    for sequence in [*range(1, last + 1), 3, 4, last, 1, 2]:
        assert headers.of(sequence) == rig.store.batch_at(sequence=sequence)

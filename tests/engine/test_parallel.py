"""Many callers at once: exact counts, nothing lost, nobody left waiting."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from model.places import PLACES
from pennyweight.engine.port import Head, StoreFailed
from pennyweight.engine.receipts import Receipt, Unknown
from pennyweight.products.general import PlaceHold, Reverse, SettleHold, Transfer, VoidHold
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore
from scenarios import START, Stage, check_invariants

THREADS = 8


@pytest.fixture(params=PLACES)
def stage(request):
    place = PLACES[request.param]()
    stage = Stage(place.open())
    stage.play("""
        given
            user:1:USD      100
            user:2:USD
    """)
    yield stage
    check_invariants(stage.store)
    place.remove()


def at_once(*calls):
    """Call all of these at the same moment, each in a thread of its own."""
    gate = threading.Barrier(len(calls))

    def run(call):
        gate.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))


def codes(outcomes):
    return sorted("done" if isinstance(o, Receipt) else o.reason.code for o in outcomes)


def racing(stage, command, count=THREADS):
    return at_once(*[lambda: stage.book.execute(command)] * count)


def test_parallel_reversals_of_one_entry(stage):
    stage.execute(Transfer("user:1:USD", "user:2:USD", "USD", "40"))
    entry = stage.book.engine.head.sequence
    outcomes = racing(stage, Reverse(entry))
    assert codes(outcomes) == ["done", *["entry_already_reversed"] * (THREADS - 1)]
    assert stage.posted("user:1:USD") == "100"


def test_parallel_settlements_of_one_hold(stage):
    stage.execute(PlaceHold("user:1:USD", "USD", "40"))
    outcomes = racing(stage, SettleHold(1, "40", "user:2:USD"))
    assert codes(outcomes) == ["done", *["hold_already_settled"] * (THREADS - 1)]
    assert stage.posted("user:2:USD") == "40"


def test_parallel_settle_and_void(stage):
    stage.execute(PlaceHold("user:1:USD", "USD", "40"))
    calls = [lambda: stage.book.execute(SettleHold(1, "40", "user:2:USD"))] * 3
    calls += [lambda: stage.book.execute(VoidHold(1))] * 3
    assert codes(at_once(*calls)).count("done") == 1


def test_parallel_duplicates_of_one_key(stage):
    pay = Transfer("user:1:USD", "user:2:USD", "USD", "30")
    outcomes = at_once(*[lambda: stage.book.execute(pay, key="k")] * THREADS)
    assert {outcome.sequence for outcome in outcomes} == {outcomes[0].sequence}
    assert [outcome.is_replayed for outcome in outcomes].count(False) == 1
    assert stage.posted("user:2:USD") == "30"


def test_parallel_payments_spend_what_is_there_and_no_more(stage):
    pay = Transfer("user:1:USD", "user:2:USD", "USD", "15")
    outcomes = racing(stage, pay)
    assert codes(outcomes) == [*["done"] * 6, *["insufficient_funds"] * 2]
    assert stage.posted("user:1:USD") == "10"


def test_parallel_payments_both_ways_lose_nothing(stage):
    def ping_pong(one, other):
        def run():
            for n in range(25):
                stage.book.execute(Transfer(one, other, "USD", str(n % 5 + 1)))

        return run

    pairs = [("user:1:USD", "user:2:USD"), ("user:2:USD", "user:1:USD")] * (THREADS // 2)
    at_once(*[ping_pong(*pair) for pair in pairs])
    total = sum(int(stage.posted(f"user:{n}:USD")) for n in (1, 2))
    assert total == 100


class Failing(MemoryStore):
    """Its append fails once it is told to."""

    is_broken = False

    def append(self, batch):
        if self.is_broken:
            raise StoreFailed("disk")
        super().append(batch)


def test_failure_wakes_whoever_queued_meanwhile():
    """A caller that comes between the last drain and the release of the lock."""
    store = Failing(Head(book="main", incarnation="first"))
    book = InlineBook(open_engine(store, now=START), store, lambda: START)
    store.is_broken = True
    late_outcomes, threads = [], []
    drain = book.engine.drain

    def drain_and_let_one_in(message):
        answers = drain(message)
        if not threads:
            thread = threading.Thread(
                target=lambda: late_outcomes.append(book.execute(Reverse(99))), daemon=True
            )
            threads.append(thread)
            thread.start()
            while not book.engine.waiting:
                pass
        return answers

    book.engine.drain = drain_and_let_one_in
    with pytest.raises(StoreFailed):
        book.execute(Transfer("world:USD", "house:USD", "USD", "1"))
    threads[0].join(20)
    assert not threads[0].is_alive()
    # It slept until it was told that nobody knows, or decided by itself after the release.
    assert isinstance(late_outcomes[0], Unknown) or late_outcomes[0].reason.code

"""The step machine by hand: what is read, decided, appended, and what is left when it fails."""

import random
from collections import Counter

import msgspec
import pytest

from model.places import PLACES
from pennyweight.engine import cache
from pennyweight.engine.chain import next_chain
from pennyweight.engine.engine import (
    BESIDE_MAX,
    LATE_EVERY,
    ROUNDS_MAX,
    USERS_MIN,
    Engine,
    Lane,
    QueueFull,
    Submission,
)
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import ConstraintFailed, Head, NotOwner, StoreFailed
from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.receipts import Failure, Receipt, Refusal, Unknown
from pennyweight.engine.verification import verify
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.refusals import Reason
from pennyweight.products.general import OpenAccount, PlaceHold, Reverse, SettleHold, Transfer
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore
from probes import probe
from random_books import random_book
from scenarios import START, Stage, check_invariants, snapshot

ONE = 10**18


class Breaking(MemoryStore):
    """A store in memory whose next append can be told to fail."""

    error = None
    is_written_before = False
    culprit = b"\x00"

    def append(self, batch):
        if any(self.culprit in body for body in batch.batch.bodies):
            raise ConstraintFailed("the culprit is in it")
        error, self.error = self.error, None
        if error is not None and not self.is_written_before:
            raise error
        super().append(batch)
        if error is not None:
            raise error


def breaking_stage(**options):
    return Stage(Breaking(Head(book="main", incarnation="first")), **options)


def funded(stage, *users, amount="100"):
    for user in users:
        stage.fund(f"user:{user}:USD", amount)
    return stage


def pay(one, other, amount, **options):
    transfer = Transfer(f"user:{one}:USD", f"user:{other}:USD", "USD", str(amount), id=str(amount))
    return Submission(transfer, **options)


def step(engine, store, now, *, is_late=lambda: False):
    """One turn of a driver; returns (answers, submissions appended)."""
    batch = engine.next_batch(now)
    if batch is None:
        return []
    append = engine.decide(store.begin(*batch), is_late)
    try:
        if append is not None:
            store.append(append)
    except Exception as error:  # noqa: BLE001 - as a driver does
        return engine.failed(error)
    return engine.committed()


def drive(engine, store, now=START * 2):
    answers = []
    while engine.waiting:
        answers += step(engine, store, now)
    return answers


# ── facts: present, absent, unloaded ──────────────────────────────────────────────


def undeclared():
    """Rules that look at something their command did not name, with what they must see."""
    return {
        "account": lambda draft: draft.account("user:1:USD").posted == 100 * ONE,
        "absent account": lambda draft: draft.find_account("user:9:USD") is None,
        "holder": lambda draft: [a.id for a in draft.facts.accounts_of("user:1")] == ["user:1:USD"],
        "absent holder": lambda draft: draft.facts.accounts_of("user:9") == [],
        "hold": lambda draft: draft.hold(1).remaining == 10 * ONE,
        "absent hold": lambda draft: draft.facts.hold(77) is None,
        "open holds": lambda draft: [h.id for h in draft.open_holds("user:2:USD")] == [1],
        "no open holds": lambda draft: draft.open_holds("user:1:USD") == [],
        "entry": lambda draft: draft.facts.entry(1).command == "register_asset",
        "absent entry": lambda draft: draft.facts.entry(10_000) is None,
        "entry of key": lambda draft: draft.facts.entry_of_key("ledger", "k").command == "transfer",
        "absent key": lambda draft: draft.facts.entry_of_key("ledger", "other") is None,
        "record": lambda draft: draft.record("asset", "USD").version == 1,
        "absent record": lambda draft: draft.record("asset", "NONE") is None,
        "record of holder": lambda draft: (
            draft.record("note", "n", holder="user:1").labels == ("a",)
        ),
        "absent record of holder": lambda draft: draft.record("note", "x", holder="user:9") is None,
        "name": lambda draft: draft.name("asset", "id:1") == "USD",
        "absent name": lambda draft: draft.name("asset", "id:99") is None,
    }


@pytest.mark.parametrize("what", undeclared())
def test_facts_unloaded_is_never_absent(what):
    stage = funded(Stage(), 1, 2)
    stage.execute(PlaceHold("user:2:USD", "USD", "10"))
    stage.execute(Transfer("user:1:USD", "user:2:USD", "USD", "1"), key="k")
    stage.execute(Transfer("user:2:USD", "user:1:USD", "USD", "1"))
    stage.execute(
        probe(
            lambda draft: (
                draft.put_record("note", "n", {}, before=None, labels=("a",), holder="user:1").id
            ),
            "user:1",
        )
    )
    stage.book.engine.cache.clear()
    before = stage.book.engine.deferrals
    assert stage.execute(probe(undeclared()[what])).answer is True
    is_known_at_once = what in {"absent hold", "absent entry"}
    assert stage.book.engine.deferrals == before + (0 if is_known_at_once else 1)


def asking(count):
    """A rule that needs one undeclared record after the other."""

    def rule(draft):
        for number in range(count):
            draft.record("kind", str(number))
        return "enough"

    return probe(rule)


def test_deferral_rounds_are_bounded():
    stage = Stage()
    assert stage.execute(asking(ROUNDS_MAX)).answer == "enough"
    before = snapshot(stage.store)
    outcome = stage.execute(asking(ROUNDS_MAX + 1))
    assert isinstance(outcome, Failure)
    assert "keeps asking" in str(outcome.cause)
    assert snapshot(stage.store) == before


def test_deferral_keeps_the_others_going_and_goes_first_next():
    stage = funded(Stage(), 1, 2)
    engine, store = stage.book.engine, stage.store
    engine.cache.clear()
    late = Submission(probe(lambda draft: draft.account("user:1:USD").posted))
    first, second = pay(1, 2, 10), pay(1, 2, 20)
    for submission in (late, pay(2, 1, 1)):
        engine.submit(submission)
    answers = step(engine, store, stage.now)
    # Reading user 1 for the transfer made the fact present for the probe too.
    assert [a.answer for s, a in answers if s is late] == [100 * ONE]
    engine.cache.clear()
    engine.submit(Submission(probe(lambda draft: draft.account("user:1:USD").posted)))
    assert step(engine, store, stage.now) == []
    engine.submit(first)
    engine.submit(second)
    answers = step(engine, store, stage.now)
    assert answers[0][1].answer == 101 * ONE


# ── nothing is left behind ────────────────────────────────────────────────────────


def state(stage):
    """All that a failed command or batch might have touched."""
    engine = stage.book.engine
    return (
        snapshot(stage.store),
        engine.head,
        msgspec.json.encode([engine.standing.counters, engine.standing.cursors]),
        sorted(engine.standing.assets),
        {key: msgspec.json.encode(a) for key, a in engine.cache.accounts.items()},
    )


def raising(draft):
    draft.transfer("user:1:USD", "user:2:USD", 60 * ONE)
    draft.place_hold("user:2:USD", 10 * ONE)
    draft.open_account("user:1:BTC")
    draft.put_record("note", "1", {}, before=None, names=("n",))
    draft.move_cursor("in", 0, 5)
    draft.next_number("note")
    raise ZeroDivisionError("a bug of ours")


def reads_of_raising(wanted):
    wanted.accounts("user:1:USD", "user:2:USD")
    wanted.name("note", "n")


def test_rule_that_raises_leaves_nothing():
    stage = funded(Stage(), 1, 2)
    before = state(stage)
    rule = probe(raising, reads=reads_of_raising)
    outcome = stage.execute(rule, key="k")
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.cause, ZeroDivisionError)
    assert state(stage) == before
    # The key is free, and neither numbers, names nor cursors moved.
    assert isinstance(stage.execute(asking(0), key="k"), Receipt)
    check = probe(
        lambda draft: [draft.name("note", "n"), draft.facts.cursor("in"), draft.next_number("note")]
    )
    assert stage.execute(check).answer == [None, 0, 1]


def test_rule_that_raises_discards_itself_alone():
    stage = funded(Stage(), 1, 2)
    outcomes = stage.execute_many(
        [
            pay(1, 2, 30),
            Submission(probe(raising, reads=reads_of_raising)),
            pay(1, 2, 70),
            pay(2, 1, 7),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [Receipt, Failure, Receipt, Receipt]
    assert [o.sequence for o in outcomes if isinstance(o, Receipt)] == [14, 15, 16]
    stage.play("""
        then
            user:1:USD      7
            user:2:USD      193 held 0
            user:1:BTC      -
    """)


def test_reads_that_raise_discard_themselves_alone():
    stage = funded(Stage(), 1, 2)

    def broken(wanted):
        raise KeyError("a bug of ours")

    outcomes = stage.execute_many(
        [pay(1, 2, 1), Submission(probe(lambda draft: 1, reads=broken)), pay(1, 2, 2)]
    )
    assert [type(outcome) for outcome in outcomes] == [Receipt, Failure, Receipt]


@pytest.mark.parametrize("tell", ["postponed", "tell_unknown", "failed"])
def test_reads_that_raise_are_answered_once(tell):
    def broken(wanted):
        raise KeyError("a bug of ours")

    stage = breaking_stage()
    engine, store = stage.book.engine, stage.store
    engine.submit(Submission(probe(lambda draft: 1, reads=broken)))
    assert len(step(engine, store, START)) == 1
    values = {"postponed": (), "tell_unknown": ("nobody knows",), "failed": (StoreFailed("disk"),)}
    assert getattr(engine, tell)(*values[tell]) == []


def test_unknown_is_told_to_nobody_where_no_batch_is_under_way():
    stage = funded(breaking_stage(), 1, 2)
    engine = stage.book.engine
    assert engine.tell_unknown("nobody knows") == []
    engine.submit(pay(1, 2, 1))
    [(_, outcome)] = step(engine, stage.store, START * 2)
    assert isinstance(outcome, Receipt)


def test_answer_that_cannot_be_written_discards_its_command():
    stage = Stage()
    outcome = stage.execute(probe(lambda draft: object()))
    assert isinstance(outcome, Failure)


@pytest.mark.parametrize("error", [StoreFailed("disk"), NotOwner("gone"), OSError("what is this")])
def test_append_that_fails_leaves_nothing(error):
    stage = funded(breaking_stage(), 1, 2)
    engine = stage.book.engine
    before = state(stage)
    stage.store.error = error
    mine = [
        pay(1, 2, 50, key="a"),
        pay(1, 2, 500),
        Submission(probe(raising, reads=reads_of_raising)),
    ]
    mine += [Submission(probe(lambda draft: draft.record("kind", "deferred")))]
    for submission in mine:
        engine.submit(submission)
    answers = step(engine, stage.store, stage.now)
    # Nobody is told anything definite: even the refusal stood on what was not committed.
    assert [(s, type(o)) for s, o in answers] == [(s, Unknown) for s in mine]
    assert engine.waiting == 0
    assert len(engine.cache) == 0
    assert engine.cache.accounts == {}
    assert state(stage)[:4] == before[:4]
    # The engine itself is sound: what it decides next stands on what is committed.
    engine.submit(pay(1, 2, 60, key="a"))
    assert [o.answer.amount for _, o in step(engine, stage.store, stage.now)] == ["60"]
    check_invariants(stage.store)
    assert stage.posted("user:1:USD") == "40"


def test_append_of_unknown_outcome_is_resolved_by_asking_again():
    """The commit happened, the answer was lost: the same key finds the receipt."""
    stage = funded(breaking_stage(), 1, 2)
    engine = stage.book.engine
    stage.store.error, stage.store.is_written_before = StoreFailed("connection lost"), True
    engine.submit(pay(1, 2, 50, key="a"))
    assert [type(o) for _, o in step(engine, stage.store, stage.now)] == [Unknown]
    # Its engine does not know the head any more, and is told so.
    engine.submit(pay(1, 2, 1, key="b"))
    assert [type(o) for _, o in step(engine, stage.store, stage.now)] == [Unknown]
    again = open_engine(stage.store, now=stage.now)
    again.submit(pay(1, 2, 50, key="a"))
    (answer,) = step(again, stage.store, stage.now)
    assert answer[1].is_replayed
    assert stage.posted("user:1:USD") == "50"


def test_append_that_fails_raises_in_the_callers_thread():
    stage = funded(breaking_stage(), 1, 2)
    stage.store.error = StoreFailed("disk")
    with pytest.raises(StoreFailed, match="disk"):
        stage.book.execute(Transfer("user:1:USD", "user:2:USD", "USD", "1"))


def test_not_owner_applies_nothing():
    stage = funded(Stage(), 1, 2)
    other = open_engine(stage.store, now=stage.now)
    other.submit(pay(1, 2, 100))
    assert [type(o) for _, o in step(other, stage.store, stage.now)] == [Receipt]
    mine = stage.book.engine
    mine.submit(pay(1, 2, 100, key="k"))
    assert [type(o) for _, o in step(mine, stage.store, stage.now)] == [Unknown]
    assert stage.posted("user:2:USD") == "200"
    assert stage.store.receipt("ledger", "k") is None


# ── constraint failures ───────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", range(9))
def test_constraint_failure_bisects_to_the_culprit(place):
    stage = funded(breaking_stage(), 1, 2)
    engine, store = stage.book.engine, stage.store
    store.culprit = b"culprit"
    submissions = [pay(1, 2, n + 1) for n in range(8)]
    command = Transfer("user:1:USD", "user:2:USD", "USD", "9", id="culprit")
    submissions.insert(place, Submission(command))
    for submission in submissions:
        engine.submit(submission)
    outcomes = {id(s): o for s, o in drive(engine, store)}
    for submission in submissions:
        outcome = outcomes[id(submission)]
        if submission.command is command:
            assert isinstance(outcome, Failure)
            assert isinstance(outcome.cause, ConstraintFailed)
        else:
            assert isinstance(outcome, Receipt)
    sequences = [outcomes[id(s)].sequence for s in submissions if s.command is not command]
    assert sequences == sorted(sequences)
    assert stage.posted("user:2:USD") == "136"


def test_constraint_failure_bisects_across_lanes():
    stage = funded(breaking_stage(), 1, 2)
    engine, store = stage.book.engine, stage.store
    store.culprit = b'"2"'
    for lane in reversed(Lane):
        for amount in (1, 2, 3):
            engine.submit(pay(1, 2, amount, lane=lane))
    for _ in range(60):
        if not engine.waiting:
            break
        step(engine, store, stage.now)
    assert engine.waiting == 0
    assert stage.posted("user:2:USD") == "112"


def test_constraint_failure_never_ends_in_a_wrong_answer_for_the_others():
    """Every single one fails: each is told so, none twice."""
    stage = funded(breaking_stage(), 1, 2)
    engine, store = stage.book.engine, stage.store
    store.culprit = b"transfer"
    submissions = [pay(1, 2, n + 1, key=str(n)) for n in range(20)]
    for submission in submissions:
        engine.submit(submission)
    answers = drive(engine, store)
    assert sorted(map(id, (s for s, _ in answers))) == sorted(map(id, submissions))
    assert all(isinstance(o, Failure) for _, o in answers)
    assert stage.posted("user:2:USD") == "100"


# ── lanes, queues, lateness ───────────────────────────────────────────────────────


def waiting_engine(counts, **options):
    stage = funded(Stage(**options), 1, 2)
    submissions = {lane: [pay(1, 2, 1, lane=lane) for _ in range(n)] for lane, n in counts.items()}
    for many in submissions.values():
        for submission in many:
            stage.book.engine.submit(submission)
    return stage, submissions


@pytest.mark.parametrize(
    ("counts", "taken"),
    [
        ((50, 50, 50), (6, 3, 1)),
        ((50, 0, 0), (10, 0, 0)),
        ((0, 50, 0), (0, 10, 0)),
        ((0, 0, 50), (0, 0, 10)),
        ((2, 50, 50), (2, 7, 1)),
        ((50, 1, 50), (8, 1, 1)),
        ((50, 50, 0), (7, 3, 0)),
        ((3, 3, 3), (3, 3, 3)),
        ((3, 3, 4), (3, 3, 4)),
        ((0, 0, 0), (0, 0, 0)),
    ],
)
def test_lanes_share_a_batch(counts, taken):
    stage, _ = waiting_engine(dict(zip(Lane, counts, strict=True)), batch_max=10)
    engine = stage.book.engine
    answers = step(engine, stage.store, stage.now)
    got = [sum(1 for s, _ in answers if s.lane is lane) for lane in Lane]
    assert tuple(got) == taken


def test_batches_stay_short_while_callers_wait():
    stage, _ = waiting_engine({Lane.INTERACTIVE: 1, Lane.INBOUND: 500, Lane.TIMERS: 100})
    engine = stage.book.engine
    counts = []
    while answers := step(engine, stage.store, stage.now):
        counts.append(tuple(sum(1 for s, _ in answers if s.lane is lane) for lane in Lane))
    assert counts == [(1, BESIDE_MAX, BESIDE_MAX), (0, 500 - BESIDE_MAX, 100 - BESIDE_MAX)]


@pytest.mark.parametrize("batch_max", [3, 4, 7, 10])
def test_lanes_never_starve(batch_max):
    """While a flood keeps a lane full, the others move with every batch."""
    stage, _ = waiting_engine({Lane.TIMERS: 5, Lane.INBOUND: 5}, batch_max=batch_max)
    engine = stage.book.engine
    done = []
    for _ in range(5):
        for _ in range(batch_max):
            engine.submit(pay(1, 2, 1, lane=Lane.INTERACTIVE))
        done += step(engine, stage.store, stage.now)
    assert sum(s.lane is Lane.TIMERS for s, _ in done) == 5
    assert sum(s.lane is Lane.INBOUND for s, _ in done) == 5


def test_lanes_keep_order():
    stage, submissions = waiting_engine(dict.fromkeys(Lane, 25), batch_max=10)
    order = [submission for submission, _ in drive(stage.book.engine, stage.store)]
    for lane, many in submissions.items():
        assert [s for s in order if s.lane is lane] == many


def test_queue_is_bounded_lane_by_lane():
    stage, _ = waiting_engine({Lane.INTERACTIVE: 10}, queue_max=10)
    engine = stage.book.engine
    with pytest.raises(QueueFull, match="10 commands"):
        engine.submit(pay(1, 2, 1))
    engine.submit(pay(1, 2, 1, lane=Lane.TIMERS))
    assert engine.waiting == 11
    assert len(drive(engine, stage.store)) == 11


def test_execute_many_longer_than_the_queue():
    stage = funded(Stage(queue_max=10), 1, 2)
    outcomes = stage.book.execute_many([pay(1, 2, 1) for _ in range(35)])
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert stage.posted("user:2:USD") == "135"


def test_late_batch_is_cut_and_the_rest_comes_next_in_order():
    stage, submissions = waiting_engine({Lane.INTERACTIVE: 100, Lane.TIMERS: 10})
    engine, store = stage.book.engine, stage.store
    asked = []

    def is_late():
        asked.append(True)
        return len(asked) == 2

    first = step(engine, store, stage.now, is_late=is_late)
    assert len(first) == 2 * LATE_EVERY
    assert engine.waiting == 110 - 2 * LATE_EVERY
    order = [s for s, _ in first + drive(engine, store)]
    assert [s for s in order if s.lane is Lane.INTERACTIVE] == submissions[Lane.INTERACTIVE]
    assert len(order) == 110


def test_batches_after_a_late_one_are_small_and_grow():
    stage, _ = waiting_engine({Lane.INTERACTIVE: 300})
    engine, store = stage.book.engine, stage.store
    sizes = [len(step(engine, store, stage.now, is_late=lambda: True))]
    while engine.waiting:
        sizes.append(len(step(engine, store, stage.now)))
    assert sizes == [32, 32, 41, 52, 66, 77]


def test_late_is_not_asked_for_a_small_batch():
    stage, _ = waiting_engine({Lane.INTERACTIVE: LATE_EVERY})
    answers = step(stage.book.engine, stage.store, stage.now, is_late=lambda: True)
    assert len(answers) == LATE_EVERY


def test_dropped_submissions_are_never_decided():
    stage, submissions = waiting_engine({Lane.INTERACTIVE: 3})
    mine = submissions[Lane.INTERACTIVE]
    mine[1].is_dropped = True
    assert [s for s, _ in drive(stage.book.engine, stage.store)] == [mine[0], mine[2]]
    mine[0].is_dropped = True
    stage.book.engine.submit(mine[0])
    assert step(stage.book.engine, stage.store, stage.now) == []
    assert stage.book.engine.waiting == 0


def test_drain_answers_all_that_waits():
    stage, _ = waiting_engine(dict.fromkeys(Lane, 4))
    answers = stage.book.engine.drain("stopping")
    assert len(answers) == 12
    assert {outcome.message for _, outcome in answers} == {"stopping"}
    assert stage.book.engine.waiting == 0
    assert stage.book.engine.next_batch(stage.now) is None


def test_next_batch_of_nothing():
    stage = Stage()
    assert stage.book.engine.next_batch(stage.now) is None


# ── time, chain, immutability ─────────────────────────────────────────────────────


def test_committed_time_rises_whatever_the_clock_says():
    stage = funded(Stage(), 1, 2)
    times = []
    for now in (START + 10**6, START, START, 0, START + 10**6 + 1, START + 10**9, 5):
        stage.book.engine.submit(pay(1, 2, 1))
        ((_, receipt),) = step(stage.book.engine, stage.store, now)
        times.append(receipt.answer.committed_at)
    first = START + 10**6
    assert times == [
        first, first + 1, first + 2, first + 3, first + 4, START + 10**9, START + 10**9 + 1,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [1, 2])
def test_chain_and_bodies_are_reproducible(seed):
    """The same commands at the same times give the same bytes; the chain covers them all."""
    books = [random_book(seed), random_book(seed)]
    heads = [book.store.head() for book in books]
    assert heads[0] == heads[1]
    assert snapshot(books[0].store) == snapshot(books[1].store)
    store = books[0].store
    chain, after, last_time = bytes(32), 0, 0
    for header, stored in store.batches(0, 10_000):
        bodies = [body for _, body in store.entries(header.first_sequence - 1, header.count)]
        assert header.first_sequence == after + 1
        assert header.committed_at > last_time
        chain = next_chain(chain, header, bodies)
        assert chain == stored
        after += header.count
        last_time = header.committed_at
    assert (chain, after) == (heads[0].chain, heads[0].sequence)


def test_chain_depends_on_every_part():
    header = MemoryStore(Head(book="b", incarnation="i"))
    book = random_book(3, store=header, batches=5)
    first, _ = book.store.batches(0, 1)[0]
    base = next_chain(bytes(32), first, [b"a", b"b"])
    assert len(base) == 32
    others = [
        next_chain(b"\x01" * 32, first, [b"a", b"b"]),
        next_chain(bytes(32), first, [b"b", b"a"]),
        next_chain(bytes(32), first, [b"ab", b""]),
        next_chain(bytes(32), first, [b"a"]),
        next_chain(bytes(32), msgspec.structs.replace(first, committed_at=1), [b"a", b"b"]),
        next_chain(bytes(32), msgspec.structs.replace(first, incarnation="j"), [b"a", b"b"]),
    ]
    assert len({base, *others}) == 7


class Recording(MemoryStore):
    """Keeps every account object that was ever committed, and the bytes it had then."""

    def __init__(self):
        super().__init__(Head(book="main", incarnation="first"))
        self.committed = []

    def append(self, batch):
        super().append(batch)
        for row in batch.accounts:
            self.committed.append((row.account, msgspec.json.encode(row.account)))


@pytest.mark.parametrize("seed", [4, 5])
def test_committed_accounts_are_never_changed_in_place(seed):
    store = Recording()
    random_book(seed, store=store)
    assert len(store.committed) > 150
    for account, then in store.committed:
        assert msgspec.json.encode(account) == then


# ── the bound on users in memory ──────────────────────────────────────────────────


def test_cache_must_hold_one_command():
    store = MemoryStore(Head(book="main", incarnation="first"))
    with pytest.raises(ValueError, match="may bring 130 users' data"):
        Engine(store.head(), Standing({}, {}, {}), users_max=USERS_MIN - 1)
    assert Engine(store.head(), Standing({}, {}, {}), users_max=USERS_MIN).cache.users_max == 130


class Watching(MemoryStore):
    """Looks, whenever the engine reads or writes, at how many customers are in memory."""

    engine = None
    most = 0

    def begin(self, reads, resident):
        self.look()
        return super().begin(reads, resident)

    def append(self, batch):
        self.look()
        # Whoever this batch changed is resident, or it could not be merged.
        for row in batch.accounts:
            assert row.account.holder in self.engine.cache
        super().append(batch)

    def look(self):
        if self.engine is not None:
            count = len(self.engine.cache)
            self.most = max(self.most, count)
            assert count <= self.engine.cache.users_max


def crowd(users, users_max, **options):
    store = Watching(Head(book="main", incarnation="first"))
    stage = Stage(store, users_max=users_max, **options)
    store.engine = stage.book.engine
    opening = [Submission(OpenAccount(f"user:{n}:USD")) for n in range(users)]
    opening += [
        Submission(Transfer("world:USD", f"user:{n}:USD", "USD", "100")) for n in range(users)
    ]
    assert all(isinstance(o, Receipt) for o in stage.book.execute_many(opening))
    return stage


def test_cache_bound_holds_in_big_batches():
    stage = crowd(1_000, 200)
    outcomes = stage.book.execute_many([pay(n, (n * 7 + 1) % 1_000, 1) for n in range(1_000)])
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert stage.book.engine.cache.misses > 800
    assert stage.book.engine.cache.most <= 200
    assert 150 < stage.store.most <= 200
    check_invariants(stage.store)


def test_cache_bound_holds_for_users_found_by_their_holds():
    """A settlement names a hold; whose it is, the store finds out. (This stopped the engine.)"""
    stage = crowd(500, 150)
    place = [Submission(PlaceHold(f"user:{n}:USD", "USD", "5")) for n in range(500)]
    assert all(isinstance(o, Receipt) for o in stage.book.execute_many(place))
    settle = [Submission(SettleHold(n + 1, "5", "house:USD")) for n in range(500)]
    outcomes = stage.book.execute_many(settle)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert stage.posted("house:USD") == "2500"


def test_cache_bound_holds_for_users_found_by_entries():
    """Reversals bring up to 128 users each: what does not fit comes in a later batch."""
    stage = crowd(128, 130)
    legs = "".join(f"| user:{n}:USD user:{n + 64}:USD USD 1\n" for n in range(64))
    stage.play("when\n" + "".join(f"transfers\n{legs}" for _ in range(4)))
    last = stage.book.engine.head.sequence
    stage.fund("user:other:USD", "1")
    outcomes = stage.book.execute_many([Submission(Reverse(last - n)) for n in range(4)])
    assert [type(outcome) for outcome in outcomes] == [Receipt] * 4
    assert stage.posted("user:0:USD") == stage.posted("user:64:USD") == "100"


def test_cache_bound_against_a_command_that_touches_too_many():
    stage = crowd(150, 130)
    holders = [f"user:{n}" for n in range(150)]
    engine = stage.book.engine
    outcomes = stage.book.execute_many(
        [pay(1, 2, 1), Submission(probe(lambda draft: 1, *holders)), pay(1, 2, 1)]
    )
    assert [type(outcome) for outcome in outcomes] == [Receipt, Failure, Receipt]
    assert "more than 130 users" in str(outcomes[1].cause)
    assert len(engine.cache) <= engine.cache.most <= 130


def test_cache_keeps_others_bounded_too():
    """Holders that are not there, or are no customers, cannot fill the memory either."""
    stage = funded(Stage(), 1)
    rubbish = [
        Submission(Transfer("user:1:USD", f"rubbish{n}:USD", "USD", "1"))
        for n in range(cache.OWN_MAX + 3_000)
    ]
    outcomes = stage.book.execute_many(rubbish)
    assert {outcome.reason for outcome in outcomes} == {Reason.ACCOUNT_NOT_FOUND}
    assert len(stage.book.engine.cache._own) <= cache.OWN_MAX
    assert len(stage.book.engine.cache) == 1


def test_cache_keeps_those_who_are_used_and_lets_others_pass():
    stage = crowd(500, 200)
    engine = stage.book.engine
    for _ in range(20):
        stage.book.execute_many([pay(n, n + 1, 1) for n in range(10)])
    fresh = [Submission(OpenAccount(f"user:new{n}:USD")) for n in range(300)]
    stage.book.execute_many(fresh)
    assert all(f"user:{n}" in engine.cache for n in range(11))
    assert engine.cache.hits > 0
    assert engine.cache.misses > 300
    # Who had to go is read again as he was.
    gone = next(n for n in range(500) if f"user:{n}" not in engine.cache)
    amount = int(stage.posted(f"user:{gone}:USD"))
    assert isinstance(stage.execute(pay(gone, 0, amount).command), Receipt)
    assert stage.posted(f"user:{gone}:USD") == "0"


# ── refusals wait like everything else ────────────────────────────────────────────


def test_refusals_are_counted_by_reason():
    stage = funded(Stage(), 1, 2)
    stage.execute_many([pay(1, 2, 500), pay(1, 3, 1), pay(1, 3, 2), pay(1, 2, 100)])
    assert stage.book.engine.refusals == {"insufficient_funds": 1, "account_not_found": 2}


def test_later_commands_of_a_batch_stand_on_the_earlier_ones():
    stage = funded(Stage(), 1, 2, 3, amount="10")
    outcomes = stage.execute_many([pay(1, 2, 10), pay(1, 2, 1), pay(2, 3, 20), pay(3, 1, 30)])
    assert [type(o) for o in outcomes] == [Receipt, Refusal, Receipt, Receipt]
    stage.play("""
        then
            user:1:USD      30
            user:2:USD      0
            user:3:USD      0
    """)


def test_cache_bound_puts_back_half_of_what_names_too_many():
    """Two reversals of other users each fit alone, but not together."""
    stage = crowd(256, 130)
    for first in (0, 128):
        legs = "".join(
            f"| user:{n}:USD user:{n + 64}:USD USD 1\n" for n in range(first, first + 64)
        )
        stage.play(f"when\ntransfers\n{legs}")
    last = stage.book.engine.head.sequence
    stage.book.engine.cache.clear()
    outcomes = stage.book.execute_many([Submission(Reverse(last - n)) for n in (0, 1)])
    assert [type(outcome) for outcome in outcomes] == [Receipt, Receipt]
    assert stage.posted("user:64:USD") == stage.posted("user:192:USD") == "100"


def test_cache_refuses_what_would_be_wrong():
    """Its own checks, should the engine ever make a mistake."""
    facts = cache.HolderCache(2)
    assert facts.make_room(2) == []
    facts.welcome("user:1", [])
    facts.welcome("user:2", [])
    facts.welcome("house", [])
    with pytest.raises(RuntimeError, match="more than 2 users"):
        facts.welcome("user:3", [])
    assert "user:3" not in facts
    stranger = Account(1, "user:9:USD", "user:9", "USD", 0)
    with pytest.raises(RuntimeError, match="not resident"):
        facts.update({stranger.id: stranger}, [])
    assert facts.get("user:9") is None


def test_load_reads_several_accounts_in_one_round():
    stage = funded(Stage(), 1, 2, 3, 4, 5)
    engine = stage.book.engine
    engine.cache.clear()
    names = [f"user:{n}:USD" for n in range(1, 7)]

    def rule(draft):
        draft.load(names)
        return [draft.find_account(name) is not None for name in names]

    before = engine.deferrals
    assert stage.execute(probe(rule)).answer == [True] * 5 + [False]
    assert engine.deferrals == before + 1
    assert stage.execute(probe(rule)).answer == [True] * 5 + [False]
    assert engine.deferrals == before + 1


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seed", [1, 2])
def test_cache_bound_under_random_runs(place, seed):
    """Three hundred users through a cache of 130: never above it, and every command decided."""
    dice = random.Random(seed)
    opened = PLACES[place]()
    stage = Stage(opened.open(), users_max=130)
    engine = stage.book.engine

    def user():
        return f"user:{dice.randrange(300)}:USD"

    def command():
        last = engine.head.sequence
        match dice.randrange(8):
            case 0:
                return OpenAccount(user())
            case 1 | 2:
                return Transfer("world:USD", user(), "USD", "9")
            case 3 | 4:
                return Transfer(user(), user(), "USD", "2")
            case 5:
                return PlaceHold(user(), "USD", "1")
            case 6:
                holds = engine.standing.counters.get("hold", 0)
                return SettleHold(dice.randint(1, holds + 2), "1", user())
            case _:
                return Reverse(dice.randint(1, last + 2))

    stage.book.execute_many([Submission(OpenAccount(f"user:{n}:USD")) for n in range(280)])
    counts = Counter()
    for _ in range(40):
        outcomes = stage.book.execute_many(
            [Submission(command(), key=str(dice.random())) for _ in range(dice.choice([1, 60]))]
        )
        assert len(engine.cache) <= 130
        counts.update(type(outcome) for outcome in outcomes)
    assert counts[Failure] == counts[Unknown] == 0
    assert counts[Receipt] > 300
    assert engine.cache.most <= 130
    assert engine.cache.misses > 300
    check_invariants(stage.store)
    report = verify(stage.store, answers=answers_of(known_commands()))
    assert report.ok, report.problems
    opened.remove()

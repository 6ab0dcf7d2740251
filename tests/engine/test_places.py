"""Places for guests: nobody starves, nothing gets stuck, and the cache's figures add up."""

import random
import threading
from collections import Counter
from itertools import pairwise

import pytest

from pennyweight.engine.cache import GUESTS_SHARE, HolderCache
from pennyweight.engine.engine import HOLDERS_MAX, USERS_MIN, Lane, Submission
from pennyweight.engine.port import ConstraintFailed, Head
from pennyweight.engine.receipts import Failure, Receipt
from pennyweight.ledger.accounts import Account, holder_of, is_customer
from pennyweight.ledger.refusals import Reason
from pennyweight.products.general import (
    ExpireHold,
    LoadBalances,
    PlaceHold,
    Reverse,
    Transfer,
    TransferItem,
    Transfers,
)
from pennyweight.products.withdrawals.settle import Settle
from pennyweight.products.withdrawals.withdraw import CancelWithdrawal, Withdraw
from pennyweight.stores.memory import MemoryStore
from probes import probe
from scenarios import Stage, check_invariants


def crowd(users, users_max, store=None, **options):
    """A book with so many users of 1000 USD each, and nobody in memory."""
    stage = Stage(store, users_max=users_max, **options)
    loads = [Submission(LoadBalances(str(n), (("USD", "1000"),))) for n in range(users)]
    assert {type(outcome) for outcome in stage.book.execute_many(loads)} == {Receipt}
    stage.book.engine.cache.clear()
    return stage


def pay(one, other, **options):
    return Submission(Transfer(f"user:{one}:USD", f"user:{other}:USD", "USD", "1"), **options)


def many(users, **options):
    """One command of many users."""
    users = list(users)
    pairs = zip(users[::2], users[1::2], strict=True)
    items = (TransferItem(f"user:{a}:USD", f"user:{b}:USD", "USD", "1") for a, b in pairs)
    return Submission(Transfers(tuple(items)), **options)


def settle(user, **options):
    return Submission(Settle(str(user), "BTC", "1", "USD", "1"), lane=Lane.INBOUND, **options)


def step(engine, store, now, *, is_late=lambda: False):
    batch = engine.next_batch(now)
    if batch is None:
        return []
    reads, cache = batch
    customers = set(filter(is_customer, reads.holders))
    assert len(customers) <= reads.room == cache.room
    assert len(cache) + cache.loading <= cache.users_max
    try:
        append = engine.decide(store.begin(*batch), is_late)
        if append is not None:
            store.append(append)
    except ConstraintFailed as error:
        return engine.failed(error)
    return engine.committed()


def fill(stage, users):
    """Make these users resident, as far as there is room."""
    stage.book.execute_many(
        [Submission(Transfer("world:USD", f"user:{n}:USD", "USD", "1")) for n in users]
    )


# ── nobody starves ────────────────────────────────────────────────────────────────


def flood_of(kind, dice):
    if kind == "cold users":
        return pay(dice.randrange(900), dice.randrange(900))
    return many(dice.sample(range(900), HOLDERS_MAX))


@pytest.mark.parametrize("users_max", [USERS_MIN, 300])
@pytest.mark.parametrize("kind", ["cold users", "big commands"])
def test_places_flood_of_callers_does_not_starve_the_other_lanes(kind, users_max):
    """Settlements of cold users, and the expiry of holds, move on with every other batch."""
    stage = crowd(900, users_max)
    engine, dice = stage.book.engine, random.Random(1)
    stage.book.execute_many(
        [Submission(PlaceHold(f"user:{n}:USD", "USD", "1", 1)) for n in range(20)]
    )
    stage.wait(2)
    waiting = [settle(100 + n) for n in range(20)]
    waiting += [Submission(ExpireHold(n), lane=Lane.TIMERS) for n in range(1, 21)]
    for submission in waiting:
        engine.submit(submission)
    answers = {}
    for _ in range(60):
        while engine.waiting < 200:
            engine.submit(flood_of(kind, dice))
        stage.now += 1
        answers.update(step(engine, stage.store, stage.now))
        if all(submission in answers for submission in waiting):
            break
    assert {type(answers.get(submission)) for submission in waiting} == {Receipt}
    assert any(s.lane is Lane.INTERACTIVE for s in answers)


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("users_max", [USERS_MIN, 300])
def test_places_big_command_gets_its_turn_behind_any_flood(lane, users_max):
    """One of 128 cold users waits in one lane, while small ones keep all lanes full."""
    stage = crowd(900, users_max)
    engine, dice = stage.book.engine, random.Random(1)
    fill(stage, range(500, 900))
    big = many(range(HOLDERS_MAX), lane=lane)
    engine.submit(big)
    done = Counter()
    outcome = None
    for turn in range(40):
        for other in Lane:
            for _ in range(40):
                engine.submit(pay(dice.randrange(900), dice.randrange(900), lane=other))
        stage.now += 1
        for submission, told in step(engine, stage.store, stage.now):
            if submission is big:
                outcome = told
            else:
                done[submission.lane] += 1
        if outcome is not None and turn > 20:
            break
    assert isinstance(outcome, Receipt)
    assert all(done[other] >= 10 for other in Lane), done
    assert engine.cache.most <= users_max


def test_places_command_that_needs_none_is_not_kept_waiting():
    """Residents go on in the same batch in which a big command fills all places."""
    stage = crowd(500, 300)
    engine = stage.book.engine
    fill(stage, range(400, 410))
    engine.submit(many(range(HOLDERS_MAX)))
    warm = pay(400, 401)
    engine.submit(warm)
    answers = dict(step(engine, stage.store, stage.now))
    assert isinstance(answers[warm], Receipt)


# ── nothing gets stuck ────────────────────────────────────────────────────────────


@pytest.mark.parametrize("users_max", [USERS_MIN, 300])
@pytest.mark.parametrize("are_pinned", [False, True])
def test_places_command_of_128_cold_users_passes(users_max, are_pinned):
    """Also where open holds spare so many residents that the policy finds nobody to evict."""
    stage = crowd(900, users_max)
    engine = stage.book.engine
    for _ in range(3):
        fill(stage, range(300, 900))
        if are_pinned:
            holds = [Submission(PlaceHold(f"user:{n}:USD", "USD", "1")) for n in range(300, 900)]
            stage.book.execute_many(holds)
    assert bool(engine.cache.figures().pinned) is are_pinned
    engine.submit(many(range(HOLDERS_MAX)))
    answers = []
    for _ in range(3):
        answers += step(engine, stage.store, stage.now)
    assert [type(outcome) for _, outcome in answers] == [Receipt]
    assert engine.cache.most <= users_max
    check_invariants(stage.store)


@pytest.mark.parametrize("users_max", [USERS_MIN, 300])
def test_places_command_of_residents_and_others_passes(users_max):
    """Who has to make room for a command that names him is read again, in one batch."""
    stage = crowd(900, users_max)
    engine = stage.book.engine
    fill(stage, range(900))
    residents = [n for n in range(900) if f"user:{n}" in engine.cache][:60]
    others = [n for n in range(900) if f"user:{n}" not in engine.cache][: HOLDERS_MAX - 60]
    engine.submit(many(residents + others))
    answers = step(engine, stage.store, stage.now)
    assert [type(outcome) for _, outcome in answers] == [Receipt]
    assert engine.cache.most <= users_max


@pytest.mark.parametrize("users_max", [USERS_MIN, 300])
def test_places_replays_pass_at_small_bounds(users_max):
    """Receipts take places too: a flood of replays beside a full cache is cut, not stuck."""
    stage = crowd(600, users_max)
    engine = stage.book.engine
    asked = [(n, f"k{n}") for n in range(600)]
    first = stage.book.execute_many([pay(n, (n + 1) % 600, key=key) for n, key in asked])
    lists = [many(range(n, n + HOLDERS_MAX), key=f"list{n}") for n in (0, 128, 256)]
    first += stage.book.execute_many(lists)
    again = [pay(n, (n + 1) % 600, key=key) for n, key in asked]
    again += [many(range(n, n + HOLDERS_MAX), key=f"list{n}") for n in (0, 128, 256)]
    second = stage.book.execute_many(again)
    assert all(outcome.is_replayed for outcome in second)
    assert [o.sequence for o in second] == [o.sequence for o in first]
    other = stage.book.execute(many(range(300, 300 + HOLDERS_MAX)).command, key="list0")
    assert other.reason is Reason.KEY_REUSED
    assert engine.cache.most <= users_max


def test_places_batch_that_brings_too_many_is_halved_and_recovers():
    """Cancellations name nobody: whose withdrawals they are, only the store finds out."""
    stage = crowd(900, 300)
    engine = stage.book.engine
    stage.book.execute_many(
        [Submission(Withdraw(str(n), "USD", "1", f"id{n}")) for n in range(900)]
    )
    last = stage.book.execute(many(range(HOLDERS_MAX)).command).sequence
    engine.cache.clear()
    fill(stage, range(600, 900))
    cuts = []
    begin = stage.store.begin

    def watched(reads, resident):
        found = begin(reads, resident)
        cuts.append(found.is_cut)
        return found

    stage.store.begin = watched
    mine = [Submission(CancelWithdrawal(f"id{n}")) for n in range(300)]
    mine.insert(7, Submission(Reverse(last)))
    mine.insert(9, Submission(Reverse(last)))
    outcomes = stage.book.execute_many(mine)
    assert outcomes.pop(9).reason is Reason.ENTRY_ALREADY_REVERSED
    assert {type(outcome) for outcome in outcomes} == {Receipt}
    assert any(cuts)
    assert sum(cuts) < len(cuts) / 2
    assert engine.cache.most <= 300
    # And small batches grow again.
    stage.book.execute_many([pay(700, 701) for _ in range(8_000)])
    before = len(cuts)
    stage.book.execute_many([pay(700, 701) for _ in range(3_000)])
    assert len(cuts) - before == 3


def test_places_reads_that_raise_take_none():
    stage = crowd(900, 300)

    def reads(wanted):
        for n in range(200):
            wanted.holder(f"user:{n}")
        raise KeyError("a bug of ours")

    engine = stage.book.engine
    engine.submit(Submission(probe(lambda draft: 1, reads=reads)))
    engine.submit(pay(300, 301))
    kinds = [type(outcome) for _, outcome in step(engine, stage.store, stage.now)]
    assert kinds == [Failure, Receipt]
    assert len(engine.cache) == 2


def test_places_settlements_and_expiries_admit_nobody():
    stage = crowd(200, 300)
    engine = stage.book.engine
    before = engine.cache.figures()
    outcomes = stage.book.execute_many([settle(n) for n in range(200)])
    assert {type(outcome) for outcome in outcomes} == {Receipt}
    assert len(engine.cache) == 0
    after = engine.cache.figures()
    assert (after.hits, after.misses) == (before.hits, before.misses)
    assert after.evictions == before.evictions
    # Who is there stays, and is found by his own calls.
    fill(stage, range(10))
    stage.book.execute_many([settle(n) for n in range(200)])
    assert len(engine.cache) == 10


# ── figures ───────────────────────────────────────────────────────────────────────


class Trips(MemoryStore):
    """A store in memory that refuses some batches of several entries."""

    dice = random.Random(7)
    share = 0.0

    def append(self, batch):
        if len(batch.batch.bodies) > 1 and self.dice.random() < self.share:
            raise ConstraintFailed("for once")
        super().append(batch)


def uses_of(command):
    """Return the customers that a command names, each once."""
    named = set()

    class Names:
        def account(self, account_id):
            named.add(holder_of(account_id))

        def holder(self, holder):
            named.add(holder)

        def __getattr__(self, name):
            return lambda *what: None

    command.reads(Names())
    return sum(map(is_customer, named)) if command.is_admitting else 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("users_max", [USERS_MIN, 300])
def test_figures_hits_and_misses_are_the_uses(users_max, seed):
    """However often a command is put back: cut, late, halved, deferred or contradicted."""
    dice = random.Random(seed)
    stage = crowd(600, users_max, Trips(Head(book="main", incarnation="first")))
    stage.store.share = 0.2
    engine, cache = stage.book.engine, stage.book.engine.cache
    before = cache.hits + cache.misses
    uses = 0

    def submission():
        user, lane = dice.randrange(600), dice.choice(list(Lane))
        match dice.randrange(6):
            case 0:
                return many(dice.sample(range(600), HOLDERS_MAX), lane=lane)
            case 1:
                return settle(user)
            case 2:
                return Submission(Withdraw(str(user), "USD", "5000"), lane=lane)
            case 3:
                return pay(user, user, lane=lane)  # refused
            case _:
                return pay(user, dice.randrange(60), lane=lane)

    for _ in range(400):
        one = submission()
        uses += uses_of(one.command)
        engine.submit(one)
    answered = 0
    while engine.waiting:
        late = dice.random() < 0.3
        stage.now += 1
        answered += len(step(engine, stage.store, stage.now, is_late=lambda late=late: late))
    assert answered == 400
    figures = cache.figures()
    assert figures.hits + figures.misses - before == uses
    assert figures.most <= figures.limit == users_max
    assert figures.resident == len(cache)
    assert figures.loading == figures.guests == 0
    assert figures.misses > 0


def test_figures_of_a_user_named_twice_is_one_use():
    stage = crowd(10, 300)
    cache = stage.book.engine.cache
    hits, misses = cache.hits, cache.misses
    stage.book.execute_many([pay(1, 1), pay(1, 2), pay(1, 2)])
    assert (cache.hits - hits, cache.misses - misses) == (3, 2)


def test_figures_from_another_thread():
    stage = crowd(400, USERS_MIN)
    cache = stage.book.engine.cache
    told, errors, is_over = [], [], threading.Event()

    def look():
        try:
            while not is_over.is_set():
                told.append(cache.figures())
        except Exception as error:  # noqa: BLE001 - for the test to see
            errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    dice = random.Random(1)
    for _ in range(30):
        stage.book.execute_many([pay(dice.randrange(400), dice.randrange(400)) for _ in range(60)])
    is_over.set()
    thread.join()
    assert errors == []
    assert told
    for figures in told:
        assert figures.resident <= figures.most <= figures.limit == USERS_MIN
        assert all(ratio is None or 0 <= ratio <= 1 for ratio in figures.hit_ratios.values())
    assert all(a.hits <= b.hits and a.misses <= b.misses for a, b in pairwise(told))


def test_cache_keeps_places_free_for_guests():
    facts = HolderCache(60)
    assert facts.guests_max == 60 // GUESTS_SHARE
    for batch in range(20):
        users = [f"user:{batch}-{n}" for n in range(10)]
        for user in users:
            facts.use(user)
            facts.welcome(user, [Account(1, f"{user}:USD", user, "USD", 0)])
        facts.dismiss(users)
        assert facts.room >= facts.guests_max
    assert len(facts) == 50
    assert set(facts.accounts) == {f"{user}:USD" for user in facts._customers}

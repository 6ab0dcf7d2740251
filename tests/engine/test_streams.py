"""Streams: the cursor and the effect in one entry, every message once, and none out of order."""

import random

import msgspec
import pytest

from model.places import PLACES
from pennyweight.engine.engine import Lane, Submission
from pennyweight.engine.port import ConstraintFailed, Head, StoreFailed
from pennyweight.engine.rebuild import Rebuilt, answers_of, known_commands
from pennyweight.engine.receipts import Failure, Receipt, Refusal, Unknown
from pennyweight.engine.verification import verify
from pennyweight.ledger.entries import CursorMove, Entry, decode_entry
from pennyweight.ledger.letters import Message
from pennyweight.ledger.refusals import Reason
from pennyweight.products.general import LoadBalances, Reverse, Transfer, TransferItem, Transfers
from pennyweight.products.withdrawals.settle import SetAside, Settle
from pennyweight.products.withdrawals.withdraw import Withdraw
from pennyweight.runtime.copying import export_lines, import_lines, read_first_line
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore
from probes import probe
from scenarios import START, Stage, check_invariants

MESSAGE = Message("settlements", 0, 0, "e30=")


def aside(refused):
    return SetAside(MESSAGE, refused.reason.code, refused.message)


def message(command, at, *, name="in/0", **options):
    """Return a command as message number `at` of a stream."""
    options = {"lane": Lane.INBOUND, "aside": aside, **options}
    return Submission(command, cursor=CursorMove(name, at, at + 1), **options)


def deposit(user, amount="1", **options):
    return Transfer("world:USD", f"user:{user}:USD", "USD", amount, **options)


def bad():
    """A command that is always refused."""
    return Transfer("world:USD", "user:nobody:USD", "USD", "1")


def surprised(user):
    """A rule that looks at somebody it has not named, so that it comes back for him."""
    return probe(lambda draft: draft.facts.accounts_of(f"user:{user}")[0].id)


def broken():
    def rule(draft):
        raise ZeroDivisionError("a bug of ours")

    return probe(rule)


@pytest.fixture
def stage():
    stage = Stage()
    for user in range(1, 5):
        stage.fund(f"user:{user}:USD", "100")
    return stage


def ask(stage, submissions):
    stage.now += 1
    return stage.book.execute_many(submissions)


def entries(stage, after=0):
    return [decode_entry(body) for _, body in stage.store.entries(after, 100_000)]


def at(stage, name="in/0"):
    return stage.store.cursors().get(name, 0)


def moves(stage, name="in/0"):
    """Return the moves of a cursor as the journal tells them, each with its command."""
    return [
        (move.before, move.after, entry.command)
        for entry in entries(stage)
        for move in entry.cursors
        if move.name == name
    ]


def prove(stage):
    check_invariants(stage.store)
    report = verify(stage.store, answers=answers_of(known_commands()))
    assert report.ok, report.problems


def step(engine, store, now, *, is_late=lambda: False):
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


# ── one message ───────────────────────────────────────────────────────────────────


def test_stream_cursor_and_effect_are_one_entry(stage):
    outcome = ask(stage, [message(deposit(1), 0, key="m")])[0]
    entry = entries(stage)[-1]
    assert (entry.sequence, entry.command, entry.key) == (outcome.sequence, "transfer", "m")
    assert entry.cursors == [CursorMove("in/0", 0, 1)]
    assert len(entry.transfers) == 1
    assert at(stage) == stage.book.engine.standing.cursors["in/0"] == 1
    prove(stage)


def test_stream_replay_moves_the_cursor_alone(stage):
    first = stage.execute(deposit(1), key="m")
    (again,) = ask(stage, [message(deposit(1), 0, key="m")])
    assert isinstance(again, Receipt)
    assert again.is_replayed
    assert (again.sequence, again.answer) == (first.sequence, first.answer)
    entry = entries(stage)[-1]
    assert (entry.command, entry.product, entry.key) == ("move_cursor", "ledger", "")
    assert msgspec.json.decode(entry.fields)["sequence"] == first.sequence
    assert entry.transfers == []
    assert entry.lines == []
    assert at(stage) == 1
    assert stage.posted("user:1:USD") == "101"
    prove(stage)


def test_stream_same_key_twice_in_one_batch(stage):
    outcomes = ask(stage, [message(deposit(1), n, key="m") for n in range(3)])
    assert [outcome.is_replayed for outcome in outcomes] == [False, True, True]
    assert [command for *_, command in moves(stage)] == ["transfer", "move_cursor", "move_cursor"]
    assert stage.posted("user:1:USD") == "101"
    prove(stage)


def test_stream_refusal_is_set_aside_and_its_key_stays_free(stage):
    (outcome,) = ask(stage, [message(bad(), 0, key="m")])
    assert isinstance(outcome, Receipt)
    assert outcome.answer.reason == "account_not_found"
    entry = entries(stage)[-1]
    assert (entry.command, entry.key, entry.cursors) == (
        "set_aside_settlement", "", [CursorMove("in/0", 0, 1)],
    )  # fmt: skip
    assert stage.store.receipt("ledger", "m") is None
    assert stage.store.record("dead_letter", outcome.answer.letter) is not None
    assert stage.book.engine.refusals["account_not_found"] == 1
    assert isinstance(ask(stage, [Submission(deposit(1), key="m")])[0], Receipt)
    prove(stage)


@pytest.mark.parametrize(
    ("command", "key", "not_after", "reason"),
    [
        (deposit(1, "7"), "used", None, "key_reused"),
        (deposit(1, "7"), "m", START - 1, "not_after_passed"),
        (Settle("", "BTC", "1", "USD", "1"), "m", None, "user_id_invalid"),  # in its reads
    ],
)
def test_stream_whatever_is_refused_is_set_aside(stage, command, key, not_after, reason):
    stage.execute(deposit(1), key="used")
    (outcome,) = ask(stage, [message(command, 0, key=key, not_after=not_after)])
    assert outcome.answer.reason == reason
    assert at(stage) == 1
    prove(stage)


def test_stream_without_aside_a_refusal_leaves_the_cursor(stage):
    (outcome,) = ask(stage, [message(bad(), 0, aside=None)])
    assert outcome.reason is Reason.ACCOUNT_NOT_FOUND
    assert at(stage) == 0


@pytest.mark.parametrize("breaks", ["making", "deciding", "reading", "refusing"])
def test_stream_aside_that_breaks_is_a_failure_and_leaves_the_cursor(stage, breaks):
    def broken_aside(refused):
        if breaks == "making":
            raise KeyError("a bug of ours")
        if breaks == "reading":
            return surprised(3)
        return bad() if breaks == "refusing" else broken()

    stage.book.engine.cache.clear()
    outcomes = ask(
        stage,
        [message(bad(), 0, aside=broken_aside), message(deposit(1), 1), message(deposit(2), 0)],
    )
    assert [type(outcome) for outcome in outcomes] == [Failure, Refusal, Receipt]
    assert outcomes[1].reason is Reason.CURSOR_CONFLICT
    assert moves(stage) == [(0, 1, "transfer")]
    assert stage.posted("user:1:USD") == "100"
    prove(stage)


def test_stream_command_that_breaks_leaves_the_cursor_and_stops_what_follows(stage):
    outcomes = ask(stage, [message(deposit(1), 0), message(broken(), 1), message(deposit(1), 2)])
    assert [type(outcome) for outcome in outcomes] == [Receipt, Failure, Refusal]
    assert at(stage) == 1
    assert stage.posted("user:1:USD") == "101"
    prove(stage)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (5, 6), (0, -1), (-1, 0)])
def test_stream_conflict_refuses_everything(stage, before, after):
    asked = []
    stage.execute(deposit(1), key="used")
    for command, key in ((deposit(1), "m"), (deposit(1), "used"), (bad(), "")):
        submission = Submission(
            command, key=key, cursor=CursorMove("in/0", before, after), aside=asked.append
        )
        (outcome,) = ask(stage, [submission])
        assert outcome.reason is Reason.CURSOR_CONFLICT
    assert asked == []
    assert at(stage) == 0
    assert stage.posted("user:1:USD") == "101"


def test_stream_may_stand_still(stage):
    """A message may be counted without moving on, and several may count as one."""
    outcomes = ask(
        stage,
        [
            Submission(deposit(1), cursor=CursorMove("in/0", 0, 0)),
            Submission(deposit(1), cursor=CursorMove("in/0", 0, 40)),
        ],
    )
    assert [type(outcome) for outcome in outcomes] == [Receipt, Receipt]
    assert at(stage) == 40
    prove(stage)


# ── order ─────────────────────────────────────────────────────────────────────────


def test_stream_waits_behind_its_deferred_message_and_others_go_on(stage):
    engine, store = stage.book.engine, stage.store
    engine.cache.clear()
    deferrals = engine.deferrals
    mine = [message(deposit(1), 0), message(surprised(3), 1), message(deposit(1), 2)]
    mine += [message(bad(), 3), message(deposit(2), 4)]
    others = [message(deposit(1), n, name="other") for n in range(3)]
    for pair in zip(mine, [*others, Submission(deposit(4)), Submission(deposit(4))], strict=True):
        for submission in pair:
            engine.submit(submission)
    first = step(engine, store, stage.now)
    assert {s for s, _ in first} == {mine[0], *others} | {s for s, _ in first if s.cursor is None}
    assert (at(stage), at(stage, "other")) == (1, 3)
    assert engine.waiting == 4
    second = step(engine, store, stage.now)
    assert [s for s, _ in second] == mine[1:]
    assert all(isinstance(outcome, Receipt) for _, outcome in second)
    assert [move[:2] for move in moves(stage)] == [(n, n + 1) for n in range(5)]
    assert engine.deferrals == deferrals + 1
    assert {submission.rounds for submission in mine} == {0, 1}
    prove(stage)


def test_stream_that_keeps_asking_fails_and_leaves_the_cursor(stage):
    def rule(draft):
        for number in range(9):
            draft.record("kind", str(number))

    outcomes = ask(stage, [message(probe(rule), 0), message(deposit(1), 1)])
    assert [type(outcome) for outcome in outcomes] == [Failure, Refusal]
    assert at(stage) == 0


class Tripping(MemoryStore):
    """A store in memory that refuses every batch with a culprit in it."""

    def append(self, batch):
        if any(b"culprit" in body for body in batch.batch.bodies):
            raise ConstraintFailed("the culprit is in it")
        super().append(batch)


@pytest.mark.parametrize("place", range(8))
def test_stream_order_is_kept_by_halving(place):
    """The culprit fails alone; what follows it in its stream conflicts, the others are done."""
    stage = Stage(Tripping(Head(book="main", incarnation="first")))
    stage.fund("user:1:USD", "0")
    engine = stage.book.engine
    mine = [message(deposit(1, id="culprit" if n == place else ""), n) for n in range(8)]
    others = [message(deposit(1), n, name="other") for n in range(8)]
    outcomes = {}
    for pair in zip(mine, others, strict=True):
        for submission in pair:
            engine.submit(submission)
    while engine.waiting:
        outcomes.update(step(engine, stage.store, stage.now))
    kinds = [type(outcomes[submission]) for submission in mine]
    assert kinds == [Receipt] * place + [Failure] + [Refusal] * (7 - place)
    assert {type(outcomes[submission]) for submission in others} == {Receipt}
    assert (at(stage), at(stage, "other")) == (place, 8)
    prove(stage)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("place", PLACES)
def test_stream_order_is_kept_whatever_happens(place, seed):
    """Three streams through small and late batches, small bounds, deferrals, halves and replays."""
    dice = random.Random(seed)
    opened = PLACES[place]()
    store = opened.open()
    stage = Stage(store, users_max=130, batch_max=dice.choice([5, 40, 1_000]))
    engine = stage.book.engine
    money = [Submission(LoadBalances(str(n), (("USD", "1000"),))) for n in range(300)]
    assert {type(outcome) for outcome in stage.book.execute_many(money)} == {Receipt}
    lists = [_list(range(first, first + 128)) for first in (0, 100, 172)]
    reversible = [stage.book.execute(one).sequence for one in lists]
    engine.cache.clear()

    def command(name, n):
        user = str(dice.randrange(300))
        match dice.randrange(9):
            case 0:
                return bad()
            case 1:
                return surprised(user)
            case 2:
                return Withdraw(user, "USD", dice.choice(["1", "90000"]), f"{name}{n}")
            case 3:
                return Settle(user, "BTC", "1", "USD", "2", f"{name}{dice.randrange(n + 1)}")
            case 4 if n % 5 == 0:
                return dice.choice(lists)
            case 5 if n % 5 == 0:
                return Reverse(dice.choice(reversible))
            case _:
                return deposit(user)

    names = ["a", "b", "c"]
    sent = {name: [] for name in names}
    for n in range(60):
        for name in names:
            key = f"{name}{dice.randrange(n + 1)}" if dice.random() < 0.3 else f"{name}.{n}"
            lane = list(Lane)[names.index(name)]
            sent[name].append(message(command(name, n), n, name=name, key=key, lane=lane))
    flat = []
    left = {name: list(many) for name, many in sent.items()}
    while any(left.values()):
        name = dice.choice([name for name in names if left[name]])
        flat.append(left[name].pop(0))
    answered = []
    while flat or engine.waiting:
        for _ in range(dice.choice([0, 1, 30, 100])):
            if flat:
                engine.submit(flat.pop(0))
        stage.now += 10
        lateness = dice.choice([False, False, True])
        for submission, outcome in step(
            engine, store, stage.now, is_late=lambda late=lateness: late
        ):
            answered.append(submission)
            assert isinstance(outcome, Receipt), outcome
        assert engine.cache.most <= 130
    for name in names:
        assert [s for s in answered if s.cursor.name == name] == sent[name]
        assert [move[:2] for move in moves(stage, name)] == [(n, n + 1) for n in range(60)]
    prove(stage)
    opened.remove()


def _list(users):
    users = list(users)
    pairs = zip(users[::2], users[1::2], strict=True)
    return Transfers(
        tuple(TransferItem(f"user:{a}:USD", f"user:{b}:USD", "USD", "1") for a, b in pairs)
    )


# ── crashes, copies, proofs ───────────────────────────────────────────────────────


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("is_written", [False, True])
def test_stream_crash_leaves_nothing_half_done(place, is_written, monkeypatch):
    """The store fails before or after its commit: cursor and effects are there together, or not."""
    opened = PLACES[place]()
    stage = Stage(opened.open())
    stage.fund("user:1:USD", "0")
    inner = stage.store.append

    def append(batch):
        if is_written:
            inner(batch)
        raise StoreFailed("the power went")

    mine = [message(deposit(1), 0, key="a"), message(bad(), 1), message(deposit(1), 2, key="b")]
    engine = stage.book.engine
    for submission in mine:
        engine.submit(submission)
    monkeypatch.setattr(stage.store, "append", append)
    assert {type(o) for _, o in step(engine, stage.store, stage.now)} == {Unknown}
    assert engine.standing.cursors.get("in/0", 0) == 0
    monkeypatch.undo()
    store = opened.open()
    reached = 3 if is_written else 0
    assert store.cursors().get("in/0", 0) == reached
    # Whoever reads on from the cursor does everything once; who begins again is told so.
    again = open_engine(store, now=stage.now)
    for submission in mine[reached:]:
        again.submit(message(submission.command, submission.cursor.before, key=submission.key))
    again.submit(message(mine[0].command, 0, key="a"))
    outcomes = [outcome for _, outcome in step(again, store, stage.now + 1)]
    assert [type(outcome) for outcome in outcomes] == [Receipt] * (3 - reached) + [Refusal]
    stage.store = store
    assert stage.posted("user:1:USD") == "2"
    assert [move[:2] for move in moves(stage)] == [(0, 1), (1, 2), (2, 3)]
    prove(stage)
    opened.remove()


def test_stream_cursor_of_another_writer_is_a_constraint(stage):
    """The store compares the cursor too, should the engine's memory of it ever be wrong."""
    stage.book.engine.standing.cursors["in/0"] = 4
    stage.book.engine.submit(message(deposit(1), 4))
    ((_, outcome),) = step(stage.book.engine, stage.store, stage.now)
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.cause, ConstraintFailed)
    assert stage.posted("user:1:USD") == "100"


def test_stream_is_copied_with_its_cursors(stage):
    stage.execute(deposit(1), key="m")
    ask(
        stage,
        [message(deposit(1), 0, key="m"), message(bad(), 1), message(deposit(2), 2, name="in/0")],
    )
    lines = list(export_lines(stage.store))
    copy = MemoryStore(Head(book="main", incarnation="second"))
    answers = answers_of(known_commands())
    import_lines(read_first_line(lines[0]), lines[1:], copy, "second", answers=answers)
    assert copy.cursors() == stage.store.cursors() == {"in/0": 3}
    stage.store = copy
    prove(stage)
    # The copy reads on where the book stood.
    engine = open_engine(copy, now=stage.now)
    engine.submit(message(deposit(1), 2))
    engine.submit(message(deposit(1), 3))
    kinds = [type(outcome) for _, outcome in step(engine, copy, stage.now + 1)]
    assert kinds == [Refusal, Receipt]


def test_stream_proof_finds_a_cursor_that_is_wrong(stage):
    ask(stage, [message(deposit(1), 0)])
    stage.store._cursors["in/0"] = 7
    report = verify(stage.store, answers=answers_of(known_commands()))
    assert any("cursor" in problem.problem for problem in report.problems), report.problems


@pytest.mark.parametrize(
    ("moved", "is_right"),
    [
        ([(0, 5), (5, 6)], True),
        ([(0, 5), (5, 5)], True),
        ([(0, 5), (4, 6)], False),
        ([(0, 5), (6, 7)], False),
        ([(0, 5), (5, 4)], False),
    ],
)
def test_stream_rebuilding_follows_the_cursors(moved, is_right):
    problems = []
    rebuilt = Rebuilt(lambda *problem: problems.append(problem), answers={})
    for number, (before, after) in enumerate(moved, start=1):
        move = CursorMove("in/0", before, after)
        entry = Entry(sequence=number, command="c", product="p", cursors=[move])
        rebuilt.apply(entry, number)
    said = [text for _, text in problems if "cursor" in text]
    assert bool(said) is not is_right

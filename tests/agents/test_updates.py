"""Queued updates are taken in order, each once, whatever the book and the rules do meanwhile."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lending import Rig
from pennyweight.agents import updates as updates_module
from pennyweight.agents.updates import UpdateQueue
from pennyweight.engine.engine import Lane, QueueFull, Submission
from pennyweight.engine.port import StoreUnavailable
from pennyweight.engine.receipts import Unknown
from pennyweight.ledger.entries import decode_entry
from pennyweight.products.portfolios.queue import Queued, QueueUpdate, TakeUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import CreatePortfolio
from pennyweight.products.portfolios.shared import (
    PORTFOLIO,
    PRODUCT,
    QUEUE,
    UPDATE,
    percent_text,
    read_portfolio,
)
from pennyweight.runtime.driver import Unavailable
from pennyweight.stores.sqlite import SQLiteStore
from waiting import wait_for

USERS = ("ann", "bob", "cid")


@pytest.fixture(params=["memory", "sqlite"])
def rig(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Rig]:
    store = None
    if request.param == "sqlite":
        store = SQLiteStore.open(tmp_path / "book", new_incarnation="life")
    rig = Rig(store)
    for user in USERS:
        rig.do(CreatePortfolio(user, {"bonds": "40", "stocks": "60"}))
    yield rig
    rig.close()
    rig.store.close()


def update(user: str, stocks: int, **more: Any) -> Rebalance:
    return Rebalance(user, {"bonds": str(100 - stocks), "stocks": str(stocks)}, **more)


def queue(rig: Rig, *updates: Rebalance) -> list[int]:
    """Queue updates, and return their numbers."""
    return [int(rig.do(QueueUpdate(one)).answer.number) for one in updates]


def queued(rig: Rig, number: int) -> Queued:
    record = rig.store.record(UPDATE, str(number))
    assert record is not None
    found: Queued = record.read(Queued)
    return found


def stocks_of(rig: Rig, user: str) -> str:
    record = rig.store.record(PORTFOLIO, user)
    assert record is not None
    return percent_text(read_portfolio(record).current["stocks"])


def is_empty(rig: Rig) -> bool:
    return not rig.store.due(QUEUE, 0, 2**62)


def taken_in_order(rig: Rig) -> list[int]:
    """The numbers of the updates that were taken, as the journal has them."""
    entries = (decode_entry(body) for _, body in rig.store.entries(0, 1_000, product=PRODUCT))
    return [
        next(int(record.id) for record in entry.records if record.kind == UPDATE)
        for entry in entries
        if entry.command == "take_update"
    ]


def commands_in(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[Submission]:
    """Note what the agent submits from now on."""
    seen: list[Submission] = []
    submit = rig.book.submit

    def note(submission: Submission) -> None:
        if isinstance(submission.command, TakeUpdate):
            seen.append(submission)
        submit(submission)

    monkeypatch.setattr(rig.book, "submit", note)
    return seen


def test_updates_are_taken_in_order_of_their_numbers(rig: Rig) -> None:
    numbers = queue(rig, *(update(USERS[n % 3], 61 + n) for n in range(30)))
    agent = rig.add(UpdateQueue(rig.book))
    more = queue(rig, *(update(USERS[n % 3], 20 + n) for n in range(30)))
    wait_for(lambda: is_empty(rig))
    wait_for(lambda: agent.taken == 60)
    assert taken_in_order(rig) == [*numbers, *more]
    assert [stocks_of(rig, user) for user in USERS] == ["47", "48", "49"]
    assert {queued(rig, number).state for number in numbers} == {"done"}
    assert not agent.refused
    assert (agent.failures, agent.unanswered, agent.status) == (0, 0, "")


def test_users_that_were_heard_are_not_read(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = UpdateQueue(rig.book)
    rig.hearers.append(agent)
    queue(rig, *(update("ann", n) for n in range(20)))
    read = rig.store.record
    kinds: list[str] = []

    def note(kind: str, record_id: str) -> Any:
        kinds.append(kind)
        return read(kind, record_id)

    monkeypatch.setattr(rig.store, "record", note)
    assert agent.tick() == 20
    assert UPDATE not in kinds
    assert not agent._heard


def test_a_new_owner_goes_on_where_the_last_one_was(rig: Rig) -> None:
    """Whoever comes next has heard nothing, and reads whose updates they are."""
    numbers = queue(rig, *(update("bob", n) for n in range(10)))
    first = UpdateQueue(rig.book, window=4)
    assert first.tick() == 4
    wait_for(lambda: len(first._answered) == 4)
    agent = rig.add(UpdateQueue(rig.book))
    wait_for(lambda: agent.taken == 6)
    assert taken_in_order(rig) == numbers


def test_what_somebody_else_took_is_passed_over(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = queue(rig, update("ann", 1), update("ann", 2))
    page = rig.store.due(QUEUE, 0, 2**62)
    rig.do(TakeUpdate(numbers[0], "ann"))
    agent = UpdateQueue(rig.book)
    agent._heard.extend((number, "ann") for number in numbers)
    due = rig.store.due
    monkeypatch.setattr(rig.store, "due", lambda *_, **__: page)
    assert agent.tick() == 2
    monkeypatch.setattr(rig.store, "due", due)
    wait_for(lambda: len(agent._answered) == 2)
    agent._settle()
    assert (agent.taken, agent.failures, agent._resting) == (1, 0, {})
    assert agent._user_of(numbers[0], str(numbers[0])) is None


def test_refused_updates_are_counted_and_stop_nobody(rig: Rig) -> None:
    agent = rig.add(UpdateQueue(rig.book))
    bad = Rebalance("ann", {"stocks": "70"})
    numbers = queue(rig, update("ann", 50), bad, update("ann", 52))
    wait_for(lambda: agent.taken == 3)
    assert agent.refused == {"allocation_invalid": 1}
    assert [queued(rig, number).state for number in numbers] == ["done", "refused", "done"]
    assert stocks_of(rig, "ann") == "52"


def test_a_rule_that_breaks_holds_nobody_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The poison update is tried again, later each time, and taken once the rule is right."""
    monkeypatch.setattr(updates_module, "REST_SECONDS", 0.02)
    decide = Rebalance.decide_as_of

    def broken(self: Rebalance, arrived_at: int, draft: Any) -> Any:
        if self.user == "bob":
            raise RuntimeError("poison")
        return decide(self, arrived_at, draft)

    monkeypatch.setattr(Rebalance, "decide_as_of", broken)
    agent = rig.add(UpdateQueue(rig.book, every_seconds=0.01))
    poison, *others = queue(rig, update("bob", 1), update("ann", 2), update("cid", 3))
    wait_for(lambda: agent.taken == 2)
    assert [queued(rig, number).state for number in others] == ["done", "done"]
    wait_for(lambda: agent.failures >= 3)
    assert queued(rig, poison).state == "queued"
    assert agent._resting[poison][1] > 0.02
    assert agent.status == ""
    monkeypatch.setattr(Rebalance, "decide_as_of", decide)
    wait_for(lambda: agent.taken == 3)
    assert agent._resting == {}
    assert stocks_of(rig, "bob") == "1"


def test_resting_is_bounded(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates_module, "RESTING_MAX", 2)
    agent = UpdateQueue(rig.book)
    for number in range(5):
        agent._rest(number)
    assert list(agent._resting) == [3, 4]
    for _ in range(10):
        agent._rest(4)
    assert agent._resting[4][1] == updates_module.REST_SECONDS_MAX


def refusing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, times: int, error: Exception
) -> Callable[[], int]:
    """Have the book refuse some commands of the agent; return what counts how many are left."""
    left = [times]
    submit = rig.book.submit

    def submit_or_refuse(submission: Submission) -> None:
        if isinstance(submission.command, TakeUpdate) and left[0]:
            left[0] -= 1
            raise error
        submit(submission)

    monkeypatch.setattr(rig.book, "submit", submit_or_refuse)
    return lambda: left[0]


@pytest.mark.parametrize("error", [QueueFull("full"), Unavailable("store_full", "full")])
def test_updates_wait_while_the_book_takes_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    numbers = queue(rig, *(update("ann", n) for n in range(10)))
    left = refusing(rig, monkeypatch, 3, error)
    agent = rig.add(UpdateQueue(rig.book, every_seconds=0.01))
    wait_for(lambda: agent.status == "updates wait: full")
    wait_for(lambda: agent.taken == 10)
    wait_for(lambda: agent.status == "")
    assert left() == 0
    assert taken_in_order(rig) == numbers


def test_unknown_outcomes_are_asked_again_in_order(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of what is told to be unknown was done, the other half was not."""
    numbers = queue(rig, *(update("ann", n) for n in range(20)))
    submit = rig.book.submit
    told: list[int] = []

    def forgetful(submission: Submission) -> None:
        command = submission.command
        if isinstance(command, TakeUpdate) and len(told) < 6:
            told.append(command.number)
            ticket, submission.ticket = submission.ticket, None
            if len(told) <= 3:
                submit(submission)
            ticket(Unknown("who knows"))
            return
        submit(submission)

    monkeypatch.setattr(rig.book, "submit", forgetful)
    agent = rig.add(UpdateQueue(rig.book, window=6, every_seconds=0.01))
    wait_for(lambda: is_empty(rig) and agent.status == "")
    assert agent.unanswered == 6
    assert taken_in_order(rig) == numbers
    assert stocks_of(rig, "ann") == "19"


def test_nothing_is_left_of_a_trouble_when_all_was_done(rig: Rig) -> None:
    agent = UpdateQueue(rig.book)
    agent._hand_in(1, Unknown("who knows"))
    agent._settle()
    assert agent.status == "updates wait: who knows"
    agent._retry_at = 0.0
    agent._look()
    assert agent.status == ""


def test_a_window_is_under_way_at_most(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = commands_in(rig, monkeypatch)
    most = 0
    agent = UpdateQueue(rig.book, window=8)
    hand_in = agent._hand_in

    def note(number: int, outcome: Any) -> None:
        nonlocal most
        most = max(most, len(agent._in_flight))
        hand_in(number, outcome)

    monkeypatch.setattr(agent, "_hand_in", note)
    numbers = queue(rig, *(update(USERS[n % 3], n) for n in range(100)))
    rig.add(agent)
    wait_for(lambda: agent.taken == 100)
    assert 0 < most <= 8
    assert [submission.command.number for submission in seen] == numbers  # type: ignore[attr-defined]
    assert {(submission.key, submission.lane) for submission in seen} == {("", Lane.INBOUND)}


def test_what_is_queued_is_taken_at_once_when_it_is_heard(rig: Rig) -> None:
    """The index would be looked at without a reason after an hour."""
    agent = rig.add(UpdateQueue(rig.book, every_seconds=3_600))
    wait_for(lambda: not agent._is_noticed)
    queue(rig, update("cid", 1))
    wait_for(lambda: agent.taken == 1)


def test_without_hearing_the_index_is_looked_at_now_and_then(rig: Rig) -> None:
    agent = UpdateQueue(rig.book, every_seconds=0.01)
    agent.start()
    queue(rig, update("cid", 1))
    wait_for(lambda: agent.taken == 1)
    agent.stop()


def test_queue_is_counted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = UpdateQueue(rig.book)
    agent._tell()
    assert (agent.depth, agent.oldest_seconds) == (0, 0.0)
    first, *_ = queue(rig, *(update("ann", n) for n in range(7)))
    at = queued(rig, first).queued_at
    agent = UpdateQueue(rig.book, clock=lambda: at + 2_500_000)
    agent._tell()
    assert (agent.depth, agent.oldest_seconds) == (7, 2.5)
    monkeypatch.setattr(updates_module, "DEPTH_MAX", 5)
    agent._tell_at = 0.0
    agent._tell()
    assert agent.depth == 5


def test_a_store_that_is_away_is_a_status(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    queue(rig, update("ann", 1))
    due = rig.store.due
    is_away = True

    def away(*words: Any, **more: Any) -> Any:
        if is_away:
            raise StoreUnavailable("the database is away")
        return due(*words, **more)

    monkeypatch.setattr(rig.store, "due", away)
    agent = rig.add(UpdateQueue(rig.book, every_seconds=0.01))
    wait_for(lambda: agent.status == "the database is away")
    is_away = False
    wait_for(lambda: agent.taken == 1)
    wait_for(lambda: agent.status == "")


def test_stop_ends_a_sleeping_thread_at_once(rig: Rig) -> None:
    agent = UpdateQueue(rig.book, every_seconds=3_600)
    agent.start()
    wait_for(lambda: agent._is_sleeping)
    began = time.monotonic()
    agent.stop()
    assert time.monotonic() - began < 60

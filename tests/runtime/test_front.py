"""A front: what it asks is done once and told once, whatever becomes of owner and connection."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from pennyweight.delivery.http.routes import Request
from pennyweight.delivery.http.wire import key_of
from pennyweight.engine.engine import RULES, Abandon, QueueFull, Submission
from pennyweight.engine.port import StoreUnavailable
from pennyweight.engine.receipts import UNKNOWN, Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.entries import CursorMove
from pennyweight.ledger.refusals import Reason
from pennyweight.products.general import (
    AccountAnswer,
    OpenAccount,
    RegisterAsset,
    Transfer,
    TransferAnswer,
)
from pennyweight.products.portfolios.queue import QueueUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import CreatePortfolio
from pennyweight.products.portfolios.shared import QueuedAnswer, RunAnswer
from pennyweight.runtime import front as front_module
from pennyweight.runtime.driver import Unavailable
from pennyweight.runtime.frames import VERSION, proof_of
from pennyweight.runtime.front import FailedAtOwner, Front
from pennyweight.stores.sqlite import SQLiteStore
from wired import SECRET, WAIT_SECONDS, Asking, Owner, Waiting, commands, owner_process, until

TESTS = Path(__file__).parent.parent


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


@pytest.fixture
def front(owner: Owner) -> Iterator[Asking]:
    asking = Asking(owner.address)
    yield asking
    asking.close()


def fund(amount: str = "5", account: str = "user:1:USD") -> Transfer:
    return Transfer("world:USD", account, "USD", amount)


class Puppet:
    """An owner whose strings the test pulls. `answer` gets each ask and returns what to send."""

    def __init__(self, *, secret: bytes = SECRET, version: int = VERSION, **welcome: Any) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(WAIT_SECONDS)
        self.address = f"127.0.0.1:{self.server.getsockname()[1]}"
        self.secret, self.version = secret, version
        self.epoch = welcome.get("epoch", 0)
        self.connection: socket.socket | None = None

    def accept(self) -> Any:
        """Let a front in, and return its introduction."""
        if self.connection is not None:
            self.connection.close()
        self.connection, _ = self.server.accept()
        self.connection.settimeout(WAIT_SECONDS)
        mine = os.urandom(32)
        self.say("challenge", self.version, RULES, "main", mine)
        introduction = self.hear("introduction")
        its = msgspec.convert(introduction[5], bytes)
        proof = proof_of(self.secret, "owner", "main", "commands", mine, its)
        self.say("welcome", proof, "first", self.epoch)
        return introduction

    def say(self, *message: Any) -> None:
        assert self.connection is not None
        body = msgspec.json.encode(message)
        self.connection.sendall(len(body).to_bytes(4) + body)

    def hear(self, *kinds: str) -> Any:
        """Return the next message of these kinds, None at the end."""
        while True:
            head = self._read(4)
            if head is None:
                return None
            message = msgspec.json.decode(self._read(int.from_bytes(head)) or b"")
            if message[0] in kinds:
                return message

    def _read(self, size: int) -> bytes | None:
        assert self.connection is not None
        found = b""
        while len(found) < size:
            try:
                more = self.connection.recv(size - len(found))
            except ConnectionResetError:
                return None
            if not more:
                return None
            found += more
        return found

    def hang_up(self) -> None:
        assert self.connection is not None
        self.connection.close()

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.server.close()


@pytest.fixture
def puppet() -> Iterator[Puppet]:
    puppet = Puppet()
    yield puppet
    puppet.close()


# ── outcomes ──────────────────────────────────────────────────────────────────────


def test_receipt_refusal_replay(front: Asking) -> None:
    opened = front.execute(OpenAccount("user:1:USD"))
    assert isinstance(opened, Receipt)
    assert isinstance(opened.answer, AccountAnswer)
    first = front.execute(fund("12345678901234567890.000000000000000001"), key="\u0436")
    assert isinstance(first, Receipt)
    assert isinstance(first.answer, TransferAnswer)
    again = front.execute(fund("12345678901234567890.000000000000000001"), key="\u0436")
    assert again == Receipt(first.sequence, first.answer, is_replayed=True)
    reused = front.execute(fund("6"), key="\u0436")
    assert isinstance(reused, Refusal)
    assert reused.reason is Reason.KEY_REUSED
    assert reused.figures == {"field": "amount", "sequence": first.sequence}
    abandoned = front.execute(Abandon("ledger"), key="\u0436")
    assert isinstance(abandoned, Receipt)
    assert abandoned.is_replayed
    assert abandoned.answer == msgspec.to_builtins(first.answer)
    assert front.front.sequence == first.sequence


def test_replay_with_the_answer_of_another_command(front: Asking) -> None:
    """An update that was queued, and comes directly afterwards; and the other way round."""
    made = front.execute(CreatePortfolio("1", {"stocks": "60", "bonds": "40"}))
    assert isinstance(made, Receipt)
    update = Rebalance("1", {"stocks": "70", "bonds": "30"}, "r-1")
    other = Rebalance("1", {"stocks": "50", "bonds": "50"}, "r-2")
    for first, second, kind in (
        (QueueUpdate(update), update, QueuedAnswer),
        (other, QueueUpdate(other), RunAnswer),
    ):
        key = second.key if isinstance(second, Rebalance) else second.update.key
        done = front.execute(first, key=key)
        assert isinstance(done, Receipt)
        assert isinstance(done.answer, kind)
        again = front.execute(second, key=key)
        assert again == Receipt(done.sequence, done.answer, is_replayed=True)


def test_failure_tells_where(owner: Owner, front: Asking, monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a rule of ours")

    monkeypatch.setattr(OpenAccount, "decide", broken)
    outcome = front.execute(OpenAccount("user:1:USD"))
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.cause, FailedAtOwner)
    assert "ZeroDivisionError('a rule of ours')" in str(outcome.cause)
    assert "engine.py" in str(outcome.cause)


def test_command_that_cannot_be_written_fails_alone(front: Asking) -> None:
    good = [Submission(OpenAccount(f"user:{number}:USD")) for number in range(5)]
    bad = Submission(OpenAccount("user:\ud800:USD"))
    waits = front.submit_all([*good[:2], bad, *good[2:]])
    outcomes = [wait.outcome() for wait in waits]
    assert isinstance(outcomes.pop(2), Failure)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)


def test_ticket_that_breaks_keeps_nobody_waiting(front: Asking) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("the client is gone")

    submission = Submission(OpenAccount("user:1:USD"), ticket=broken)
    front.loop.do(front.front.submit, submission)
    assert isinstance(front.execute(OpenAccount("user:2:USD")), Receipt)


SCENARIOS = [
    "tests/ledger/test_scenarios.py",
    "tests/products/test_payments.py",
    "tests/products/test_wallet.py",
    "tests/products/test_withdrawals.py",
]
MORE_SCENARIOS = [
    "tests/ledger/test_refusals.py",
    "tests/ledger/test_owed.py",
    "tests/products/test_loans.py",
    "tests/products/test_portfolios.py",
    "tests/products/test_portfolios_letters.py",
    "tests/products/test_withdrawals_controls.py",
    "tests/products/test_withdrawals_events.py",
    "tests/products/test_withdrawals_letters.py",
]
UNWRITABLE = "ud800 or test_letter_that_is_not_there or test_loan_id_that_no_json_can_carry"
"""These submit text that no JSON can carry, and so no caller either."""


@pytest.mark.parametrize(
    ("files", "least"),
    [(SCENARIOS, 1_000), pytest.param(MORE_SCENARIOS, 2_000, marks=pytest.mark.heavy)],
)
def test_scenarios_come_out_alike(files: list[str], least: int) -> None:
    """What the ledger and the products are tested by, played through a front and a socket."""
    found = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "wired", "-p", "no:cacheprovider"),
            *("-m", "not heavy", "-k", f"not ({UNWRITABLE})", *files),
        ],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert found.returncode == 0, found.stdout[-5_000:]
    asked = re.search(r"over the wire: (\d+)", found.stdout)
    assert asked is not None
    assert int(asked[1]) >= least


# ── keys ──────────────────────────────────────────────────────────────────────────


def test_who_has_no_key_gets_one(owner: Owner, front: Asking) -> None:
    front.execute(OpenAccount("user:1:USD"))
    sequences = []
    for _ in range(3):
        outcome = front.execute(fund())
        assert isinstance(outcome, Receipt)
        assert not outcome.is_replayed
        sequences.append(outcome.sequence)
    keys = {entry.key for _, entry in _entries(owner, sequences)}
    assert len(keys) == 3
    for key in keys:
        assert key_of(Request("POST", "/", headers={"idempotency-key": key})) == key
        assert re.fullmatch(r"front:[0-9a-f]{32}:\d+", key)


def _entries(owner: Owner, sequences: list[int]) -> list[tuple[int, Any]]:
    from pennyweight.ledger.entries import decode_entry  # noqa: PLC0415

    found = []
    for sequence in sequences:
        row = owner.store.entry(sequence)
        assert row is not None
        found.append((sequence, row if hasattr(row, "key") else decode_entry(row)))
    return found


def test_two_fronts_have_different_keys(owner: Owner, front: Asking) -> None:
    other = Asking(owner.address)
    front.execute(OpenAccount("user:1:USD"))
    outcomes = [one.execute(fund()) for one in (front, other) for _ in range(2)]
    assert all(isinstance(o, Receipt) and not o.is_replayed for o in outcomes)
    assert _posted(owner, "user:1:USD") == 4 * 5 * 10**18
    other.close()


def _posted(owner: Owner, account_id: str) -> int:
    account = owner.store.account(account_id)
    assert isinstance(account, Account)
    return account.posted


def test_own_key_is_no_replay_after_a_loss(puppet: Puppet) -> None:
    asking = Asking(puppet.address)
    puppet.accept()
    mine, given = asking.submit(fund()), asking.submit(fund(), key="k")
    first = [ask for _ in range(2) for ask in puppet.hear("asks")[1]][:2]
    puppet.hang_up()
    puppet.accept()
    (_, again) = puppet.hear("asks")
    assert again == first
    puppet.say("answers", [_transfer(ask[0], is_replayed=True) for ask in again])
    assert not mine.outcome().is_replayed  # type: ignore[union-attr]
    assert given.outcome().is_replayed  # type: ignore[union-attr]
    asking.close()


def _transfer(number: int, *, is_replayed: bool = False) -> list[Any]:
    """Return an answer to a transfer, as an owner would give it."""
    return [1, number, 7, _TRANSFERRED, is_replayed]


def _made() -> Any:
    owner = Owner()
    asking = Asking(owner.address)
    asking.execute(OpenAccount("user:1:USD"))
    outcome = asking.execute(fund())
    asking.close()
    owner.close()
    assert isinstance(outcome, Receipt)
    return msgspec.to_builtins(outcome.answer)


_TRANSFERRED = _made()


# ── owners that go ────────────────────────────────────────────────────────────────


class Pump:
    """Callers who ask again as soon as they are answered."""

    def __init__(self, asking: Asking, callers: int) -> None:
        self.asking = asking
        self.asked = 0
        self.outcomes: list[Outcome] = []
        self.is_over = False
        asking.loop.do(lambda: [self._ask() for _ in range(callers)])

    @property
    def unanswered(self) -> int:
        return self.asked - len(self.outcomes)

    def _ask(self) -> None:
        self.asked += 1
        command = fund("1", f"user:{self.asked % 2}:USD")
        self.asking.front.submit(Submission(command, ticket=self._heard))

    def _heard(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if not self.is_over:
            self._ask()


@pytest.mark.parametrize("seed", range(3))
def test_killed_owner_and_the_next(tmp_path: Path, seed: int) -> None:
    """No command is lost, none is done twice, and nobody hears of it."""
    dice = random.Random(seed)
    asking = Asking(None, hold_seconds=30.0)
    pump = None
    for _ in range(4):
        with owner_process(tmp_path) as owner:
            asking.address = owner.address
            if pump is None:
                waits = asking.submit_all(
                    [Submission(OpenAccount(f"user:{number}:USD")) for number in range(2)]
                )
                assert all(isinstance(wait.outcome(), Receipt) for wait in waits)
                pump = Pump(asking, 400)
            before = len(pump.outcomes)
            until(lambda: len(pump.outcomes) > before + 500)  # noqa: B023 - asked at once
            time.sleep(dice.uniform(0.0, 0.1))
            owner.kill()
            owner.wait()
            until(lambda: asking.front.down)
            assert pump.unanswered == 400
    assert pump is not None
    with owner_process(tmp_path) as owner:
        asking.address = owner.address
        until(lambda: not asking.front.down)
        pump.is_over = True
        until(lambda: not pump.unanswered)
        asking.close()
    assert all(isinstance(o, Receipt) and not o.is_replayed for o in pump.outcomes)
    sequences = {outcome.sequence for outcome in pump.outcomes}  # type: ignore[union-attr]
    assert len(sequences) == len(pump.outcomes) == pump.asked
    store = SQLiteStore.open(tmp_path)
    accounts = [store.account(f"user:{number}:USD") for number in range(2)]
    store.close()
    assert sum(account.posted for account in accounts if account) == pump.asked * 10**18


def test_frozen_owner_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with owner_process() as frozen, owner_process() as other:
        asking = Asking(frozen.address, hold_seconds=10.0)
        assert isinstance(asking.execute(OpenAccount("user:1:USD")), Receipt)
        frozen.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        wait = asking.submit(OpenAccount("user:2:USD"))
        until(lambda: asking.front.down)
        assert 2.5 < time.monotonic() - began < 4.5
        assert "nothing was heard" in asking.front.down
        asking.address = other.address
        assert isinstance(wait.outcome(), Receipt)
        frozen.send_signal(signal.SIGCONT)
        asking.close()


def test_owner_that_owes_an_answer_is_left_for_another(puppet: Puppet, owner: Owner) -> None:
    """It is there and says so, but decides nothing: the store hangs, say, and its lease is over."""
    asking = Asking(puppet.address)
    puppet.accept()
    until(lambda: not asking.front.down)
    wait = asking.submit(OpenAccount("user:1:USD"))
    time.sleep(1.5)
    assert asking.front.down == ""
    assert wait.outcomes == []
    asking.address = owner.address
    assert isinstance(wait.outcome(), Receipt)
    asking.close()


def test_farewell_sends_us_to_the_next(owner: Owner, front: Asking) -> None:
    next_owner = Owner()
    assert isinstance(front.execute(OpenAccount("user:1:USD")), Receipt)
    front.address = next_owner.address
    owner.loop.do(setattr, owner.listener, "book", None)
    began = time.monotonic()
    assert isinstance(front.execute(OpenAccount("user:2:USD")), Receipt)
    assert time.monotonic() - began < 1
    assert next_owner.store.account("user:2:USD") is not None
    next_owner.close()


@pytest.mark.parametrize("code", ["stopping", "no_owner"])
def test_owner_about_to_go_is_not_told_to_callers(owner: Owner, front: Asking, code: str) -> None:
    def stopping(_: Submission) -> None:
        raise Unavailable(code, "soon there is another")

    until(lambda: not front.front.down)
    owner.book.submit = stopping  # type: ignore[method-assign]
    wait = front.submit(OpenAccount("user:1:USD"))
    next_owner = Owner()
    front.address = next_owner.address
    owner.loop.do(setattr, owner.listener, "book", None)
    assert isinstance(wait.outcome(), Receipt)
    next_owner.close()


def test_asks_come_again_first_and_in_order(puppet: Puppet) -> None:
    asking = Asking(puppet.address)
    puppet.accept()
    asking.submit_all([Submission(fund(str(number))) for number in range(1, 6)])
    sent = puppet.hear("asks")[1]
    puppet.say("answers", [_transfer(sent[2][0])])
    until(lambda: len(asking.front._pending) == 4)
    puppet.hang_up()
    until(lambda: asking.front.down)
    asking.submit_all([Submission(fund(str(number))) for number in range(6, 9)])
    puppet.accept()
    again = puppet.hear("asks")[1]
    assert [ask[2]["amount"] for ask in again] == ["1", "2", "4", "5", "6", "7", "8"]
    assert again[:4] == [sent[0], sent[1], sent[3], sent[4]]
    asking.close()


def test_answers_that_come_twice_or_to_nobody(puppet: Puppet) -> None:
    asking = Asking(puppet.address)
    puppet.accept()
    first, second = asking.submit(fund()), asking.submit(fund())
    (one,), (two,) = puppet.hear("asks")[1], puppet.hear("asks")[1]
    puppet.say("answers", [_transfer(one[0]), _transfer(one[0]), _transfer(99)])
    puppet.say("answers", [_transfer(one[0]), _transfer(two[0])])
    assert isinstance(second.outcome(), Receipt)
    assert isinstance(first.outcome(), Receipt)
    asking.close()


@pytest.mark.parametrize("next_epoch", [6, 4])  # 4: the store was set back, it is the owner
def test_owner_of_an_older_epoch_is_left(puppet: Puppet, next_epoch: int) -> None:
    asking = Asking(puppet.address)
    puppet.epoch = 5
    puppet.accept()
    until(lambda: asking.front.epoch == 5)
    puppet.hang_up()
    puppet.epoch = 4
    puppet.accept()
    until(lambda: "in epoch 4, which is over" in asking.front.down)
    puppet.epoch = next_epoch
    puppet.accept()
    until(lambda: asking.front.epoch == next_epoch)
    until(lambda: not asking.front.down)
    asking.close()


# ── refusals and time-outs after a loss ───────────────────────────────────────────


@pytest.mark.parametrize("is_lost", [False, True])
def test_deadline_that_passed_meanwhile(puppet: Puppet, *, is_lost: bool) -> None:
    """The book looks at the deadline before the key: after a loss that is no refusal."""
    asking = Asking(puppet.address)
    puppet.accept()
    wait = asking.submit(fund(), not_after=1)
    ((number, *_, not_after),) = puppet.hear("asks")[1]
    assert not_after == 1
    if is_lost:
        puppet.hang_up()
        puppet.accept()
        puppet.hear("asks")
    puppet.say("answers", [[2, number, "not_after_passed", "too late", {}]])
    outcome = wait.outcome()
    if is_lost:
        assert isinstance(outcome, Unknown)
        assert outcome.code == UNKNOWN
    else:
        assert outcome == Refusal(Reason.NOT_AFTER_PASSED, "too late", {})
    asking.close()


@pytest.mark.parametrize(("is_lost", "code"), [(False, "queue_full"), (True, UNKNOWN)])
def test_not_taken(puppet: Puppet, code: str, *, is_lost: bool) -> None:
    asking = Asking(puppet.address)
    puppet.accept()
    wait = asking.submit(fund())
    ((number, *_),) = puppet.hear("asks")[1]
    if is_lost:
        puppet.hang_up()
        puppet.accept()
        puppet.hear("asks")
    puppet.say("answers", [[4, number, "not now", "queue_full"]])
    assert wait.outcome() == Unknown("not now", code)
    asking.close()


def test_no_owner_in_time() -> None:
    asking = Asking(None, hold_seconds=0.5)
    began = time.monotonic()
    outcome = asking.execute(fund())
    assert 0.5 <= time.monotonic() - began < 2
    assert outcome == Unknown("no process owns the book, or it takes no commands", "no_owner")
    assert asking.front.down == "no process owns the book"
    asking.close()


@pytest.mark.parametrize("is_lost", [False, True])
def test_no_answer_in_time(puppet: Puppet, *, is_lost: bool) -> None:
    asking = Asking(puppet.address, hold_seconds=1.0)
    puppet.accept()
    wait = asking.submit(fund())
    ((number, *_),) = puppet.hear("asks")[1]
    if is_lost:
        asking.address = None
        puppet.hang_up()
    outcome = wait.outcome()
    assert isinstance(outcome, Unknown)
    assert outcome.code == UNKNOWN
    if not is_lost:  # and what comes too late harms nobody
        puppet.say("answers", [_transfer(number)])
        other = asking.submit(fund())
        ((number, *_),) = puppet.hear("asks")[1]
        puppet.say("answers", [_transfer(number)])
        assert isinstance(other.outcome(), Receipt)
    asking.close()


# ── bounds ────────────────────────────────────────────────────────────────────────


def test_queue_full() -> None:
    asking = Asking(None, queue_max=3)
    asking.submit_all([Submission(fund()) for _ in range(3)])
    with pytest.raises(QueueFull, match="3 commands are waiting"):
        asking.submit(fund())
    asking.close()


def test_owner_gets_no_more_than_it_may_have_at_once(puppet: Puppet, monkeypatch: Any) -> None:
    monkeypatch.setattr(front_module, "IN_FLIGHT_MAX", 5)
    monkeypatch.setattr(front_module, "ASKS_PER_FRAME_MAX", 3)
    asking = Asking(puppet.address)
    puppet.accept()
    asking.submit_all([Submission(fund()) for _ in range(9)])
    first, second = puppet.hear("asks")[1], puppet.hear("asks")[1]
    assert [len(first), len(second)] == [3, 2]
    puppet.say("answers", [_transfer(first[0][0]), _transfer(first[1][0])])
    assert len(puppet.hear("asks")[1]) == 2
    asking.close()


def test_dropped_before_it_is_sent(puppet: Puppet) -> None:
    asking = Asking(None)
    submissions = [Submission(fund(str(number))) for number in range(1, 4)]
    waits = asking.submit_all(submissions)
    submissions[1].is_dropped = True
    asking.address = puppet.address
    puppet.accept()
    asks = puppet.hear("asks")[1]
    assert [ask[2]["amount"] for ask in asks] == ["1", "3"]
    puppet.say("answers", [_transfer(ask[0]) for ask in asks])
    waits[2].outcome()
    assert not waits[1].outcomes
    assert not asking.front._pending
    asking.close()


def test_dropped_already(front: Asking) -> None:
    submission = Submission(OpenAccount("user:1:USD"))
    submission.is_dropped = True
    (wait,) = front.submit_all([submission])
    assert isinstance(front.execute(OpenAccount("user:1:USD")), Receipt)
    assert not wait.outcomes


def test_owner_that_does_not_read_is_not_flooded(puppet: Puppet, monkeypatch: Any) -> None:
    monkeypatch.setattr(front_module, "ASKS_PER_FRAME_MAX", 10)
    asking = Asking(puppet.address)
    puppet.accept()
    until(lambda: not asking.front.down)
    asking.submit_all([Submission(fund("x" * 100_000)) for _ in range(500)])
    assert asking.loop.do(lambda: asking.front._link.is_paused)  # type: ignore[union-attr]
    assert len(asking.front._waiting) > 300
    heard = 0
    while heard < 500:
        heard += len(puppet.hear("asks")[1])
    assert heard == 500
    assert not asking.front._waiting
    asking.close()


@pytest.mark.parametrize(
    "submission",
    [
        Submission(fund(), cursor=CursorMove("c", 0, 1)),
        Submission(fund(), aside=lambda _: fund()),
    ],
)
def test_streams_do_not_come_through_fronts(front: Asking, submission: Submission) -> None:
    with pytest.raises(ValueError, match="where the book is owned"):
        front.submit_all([submission])


# ── who is not believed ───────────────────────────────────────────────────────────


def test_wrong_secret_is_said_on_both_ends(owner: Owner) -> None:
    with capture_logs() as logs:
        asking = Asking(owner.address, secret=b"another", hold_seconds=0.5)
        outcome = asking.execute(fund())
        until(lambda: "turned this process away: it does not know our secret" in asking.front.down)
        asking.close()
    assert isinstance(outcome, Unknown)
    assert outcome.code == "no_owner"
    whys = {line["event"]: line["why"] for line in logs if "secret" in line.get("why", "")}
    assert set(whys) == {"a front was turned away", "commands cannot be sent to the owner"}


def test_owner_that_does_not_know_the_secret() -> None:
    puppet = Puppet(secret=b"another")
    asking = Asking(puppet.address)
    puppet.accept()
    until(lambda: "it does not know our secret" in asking.front.down)
    assert puppet.hear("asks") is None
    asking.close()
    puppet.close()


def test_owner_of_another_version() -> None:
    puppet = Puppet(version=VERSION + 1)
    asking = Asking(puppet.address)
    introduction = puppet.accept()
    assert introduction[6] == ""  # nothing is proven to who speaks otherwise
    why = f"it has version {VERSION + 1} of the wire and {RULES} of the rules"
    until(lambda: why in asking.front.down)
    assert "run the same release everywhere" in asking.front.down
    asking.close()
    puppet.close()


@pytest.mark.parametrize("kind", ["challenge", "welcome"])
def test_greeting_that_comes_twice(puppet: Puppet, kind: str) -> None:
    asking = Asking(puppet.address)
    puppet.accept()
    until(lambda: not asking.front.down)
    again = {"challenge": [VERSION, RULES, "main", bytes(32)], "welcome": [bytes(32), "first", 9]}
    puppet.say(kind, *again[kind])
    until(lambda: "twice" in asking.front.down)
    asking.close()


def test_another_book(owner: Owner) -> None:
    asking = Asking(owner.address, book="other")
    until(lambda: "it owns the book 'main', this process serves 'other'" in asking.front.down)
    asking.close()


@pytest.mark.parametrize(
    "sent", [b"HTTP/1.1 400 Bad Request\r\n\r\n", (2).to_bytes(4) + b"{}", (1 << 31).to_bytes(4)]
)
def test_garbage_instead_of_an_owner(puppet: Puppet, sent: bytes) -> None:
    asking = Asking(puppet.address)
    connection, _ = puppet.server.accept()
    connection.sendall(sent)
    until(lambda: "what came is not ours" in asking.front.down)
    connection.close()
    asking.close()


def test_nobody_listens_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    asking = Asking(address)
    until(lambda: "cannot be reached" in asking.front.down)
    asking.address = "nonsense"
    until(lambda: "neither HOST:PORT nor unix:PATH" in asking.front.down)
    asking.close()


def test_owner_cannot_be_looked_for(owner: Owner) -> None:
    asking = Asking(owner.address)
    until(lambda: not asking.front.down)
    broken = Asking(None)

    def find() -> str:
        raise StoreUnavailable("the database is away")

    broken.front._find = find
    until(lambda: broken.front.down == "the owner cannot be looked for: the database is away")
    broken.front._find = lambda: owner.address
    assert isinstance(broken.execute(OpenAccount("user:1:USD")), Receipt)
    broken.close()
    asking.close()


# ── what fronts know ──────────────────────────────────────────────────────────────


def test_assets_and_status_of_the_owner(owner: Owner, front: Asking) -> None:
    until(lambda: front.front.figures)
    assert front.front.figures == owner.book.engine.cache.figures()
    assert front.front.sequence == owner.book.engine.head.sequence
    assert dict(front.front.standing.assets) == owner.book.standing.assets
    assert front.front.down == ""


def test_asset_is_known_where_it_was_registered(front: Asking) -> None:
    assert "NEW" not in front.front.standing.assets
    assert isinstance(front.execute(RegisterAsset("NEW", 3, 77)), Receipt)
    assert front.front.standing.assets["NEW"] == Asset("NEW", 3, 77)


def test_asset_is_known_at_once_elsewhere(owner: Owner, front: Asking) -> None:
    """Even before the owner's word arrives: the store knows."""
    asked: list[str] = []

    def load_asset(name: str) -> Asset | None:
        asked.append(name)
        return owner.book.standing.assets.get(name)

    deaf = Asking(None, load_asset=load_asset)
    before = deaf.front.standing.assets
    assert before.get("NEW") is None
    assert "NEW" not in before
    with pytest.raises(KeyError):
        before["NEW"]
    assert isinstance(front.execute(RegisterAsset("NEW", 3, 77)), Receipt)
    assert asked == ["NEW"] * 3
    assert before["NEW"] == before.get("NEW") == Asset("NEW", 3, 77)
    assert not list(before.values())  # somebody may be going through them
    del asked[:]
    assets = deaf.front.standing.assets
    assert "NEW" in assets
    assert assets["NEW"] == Asset("NEW", 3, 77)
    assert assets.get("no asset is called so", "default") == "default"
    assert not asked
    deaf.close()


def test_assets_that_are_learned_at_once_are_all_known() -> None:
    """From the owner on the loop, and from the store in the threads of readers."""
    asking = Asking(None, load_asset=lambda name: Asset(name, 3, 77))

    def told() -> Iterator[Asset]:
        reader = threading.Thread(target=asking.front.standing.assets.get, args=("ONE",))
        reader.start()
        reader.join(WAIT_SECONDS)
        yield Asset("TWO", 3, 78)

    asking.front._know(told())
    assert list(asking.front.standing.assets) == ["ONE", "TWO"]
    asking.close()


def test_assets_are_loaded_at_the_start() -> None:
    asking = Asking(None, load_assets=lambda: {"USD": Asset("USD", 18, 1)})
    until(lambda: dict.__contains__(asking.front.standing.assets, "USD"))
    asking.close()


def test_store_that_is_away_is_no_unknown_asset() -> None:
    def away(_: str) -> Asset | None:
        raise StoreUnavailable("the database is away")

    asking = Asking(None, load_asset=away)
    with pytest.raises(StoreUnavailable):
        asking.front.standing.assets.get("USD")
    asking.close()


# ── beginning and end ─────────────────────────────────────────────────────────────


def test_front_and_listener_on_one_loop(owner: Owner) -> None:
    """As in a process that has just become the owner: it asks itself."""
    front = Front(
        lambda: owner.address,
        secret=SECRET,
        book="main",
        commands=commands(),
        load_assets=dict,
        load_asset=lambda _: None,
        hold_seconds=10,
        queue_max=100,
    )
    front.start(owner.loop.loop)
    wait = Waiting()
    owner.loop.do(front.submit, Submission(OpenAccount("user:1:USD"), ticket=wait))
    assert isinstance(wait.outcome(), Receipt)
    front.stop(WAIT_SECONDS)


def test_stop_waits_for_answers(owner: Owner, front: Asking, monkeypatch: Any) -> None:
    leave = threading.Event()
    append = owner.store.append

    def slow(batch: Any) -> None:
        assert leave.wait(WAIT_SECONDS)
        append(batch)

    monkeypatch.setattr(owner.store, "append", slow)
    wait = front.submit(OpenAccount("user:1:USD"))
    threading.Timer(0.3, leave.set).start()
    front.front.stop(WAIT_SECONDS)
    assert isinstance(wait.outcome(), Receipt)
    with pytest.raises(Unavailable) as error:
        front.submit(fund())
    assert error.value.code == "stopping"


def test_stop_answers_everybody(puppet: Puppet) -> None:
    asking = Asking(puppet.address)
    puppet.accept()
    sent = asking.submit(fund())
    puppet.hear("asks")
    asking.address = None
    puppet.hang_up()
    until(lambda: asking.front.down)
    unsent = asking.submit(fund())
    asking.front.stop(0.1)
    assert sent.outcome() == Unknown("the owner has not answered", UNKNOWN)
    assert unsent.outcome() == Unknown("the server is stopping", "stopping")
    asking.loop.close()


def test_front_that_was_not_started() -> None:
    front = Front(
        lambda: None,
        secret=SECRET,
        book="main",
        commands={},
        load_assets=dict,
        load_asset=lambda _: None,
        hold_seconds=1,
        queue_max=1,
    )
    with pytest.raises(Unavailable):
        front.submit(Submission(fund()))
    front.stop()

"""Settlements that could not be taken: kept as dead letters, replayed or closed."""

from base64 import b64encode

import msgspec
import pytest

from pennyweight.assemble import answers, invariants
from pennyweight.engine.engine import Lane, Submission
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.engine.verification import verify
from pennyweight.ledger.entries import CursorMove, Entry, decode_entry
from pennyweight.ledger.letters import DeadLetter, Message, set_aside
from pennyweight.ledger.refusals import Reason
from pennyweight.products.withdrawals.settle import (
    CloseLetter,
    ReplaySettlement,
    SetAside,
    Settle,
)
from pennyweight.products.withdrawals.withdraw import Withdraw
from probes import probe
from scenarios import Stage, check_invariants, play, snapshot

USER = """
    given
        user:1:BTC          10
        user:1:ETH          5
        user:2:BTC          10
    when
"""

MESSAGE = Message(
    "risk-engine-settlements",
    3,
    41,
    b64encode(b'{"user_id": 9').decode(),
    b64encode(b"9").decode(),
    (("trace", b64encode(b"abc").decode()),),
)


def entry_of(stage: Stage, sequence: int) -> Entry:
    body = stage.store.entry(sequence)
    assert body is not None
    return decode_entry(body)


def letter_of(stage: Stage, letter_id: str) -> DeadLetter:
    record = stage.store.record("dead_letter", letter_id)
    assert record is not None
    return record.read(DeadLetter)


def with_letter(text: str = "") -> Stage:
    """A stage with one open letter, and what is played after it."""
    stage = play(USER)
    outcome = stage.execute(SetAside(MESSAGE, "user_not_found", "there is no user '9'"))
    assert isinstance(outcome, Receipt)
    return stage.play("when\n" + text)


def refused(outcome) -> Reason:
    assert isinstance(outcome, Refusal), outcome
    return outcome.reason


# ── setting aside ─────────────────────────────────────────────────────────────────


def test_message_is_kept_as_it_came():
    stage = with_letter()
    letter = letter_of(stage, "withdrawals-1")
    assert letter == DeadLetter(
        MESSAGE, "user_not_found", "there is no user '9'", stage.store.head().committed_at
    )
    record = stage.store.record("dead_letter", "withdrawals-1")
    assert record is not None
    assert record.product == "withdrawals"
    assert record.labels == ("state:open", "reason:user_not_found")


def test_letter_is_told_to_the_outside_with_the_original_bytes():
    stage = with_letter()
    (event,) = entry_of(stage, stage.store.head().sequence).events
    assert event.name == "dead_letter"
    assert event.body == {
        "letter": "withdrawals-1",
        "topic": "risk-engine-settlements",
        "partition": 3,
        "offset": 41,
        "key": MESSAGE.key,
        "payload": MESSAGE.payload,
        "headers": [["trace", MESSAGE.headers[0][1]]],
        "reason": "user_not_found",
        "detail": "there is no user '9'",
    }


def test_letters_are_numbered():
    stage = with_letter()
    for number in (2, 3):
        outcome = stage.execute(SetAside(Message("t", 0, number, ""), "message_invalid", "no"))
        assert isinstance(outcome, Receipt)
        assert outcome.answer.letter == f"withdrawals-{number}"
        assert outcome.answer.reason == "message_invalid"
    assert letter_of(stage, "withdrawals-3").message == Message("t", 0, 3, "")


# ── from a stream ─────────────────────────────────────────────────────────────────

CURSOR = "settlements/0"


def from_stream(command: Settle, offset: int, *, key: str = "") -> Submission:
    def aside(refusal):
        message = Message("settlements", 0, offset, b64encode(command.user.encode()).decode())
        return SetAside(message, refusal.reason.code, refusal.message)

    return Submission(
        command,
        key=key or f"kafka:{CURSOR}/{offset}",
        lane=Lane.INBOUND,
        cursor=CursorMove(CURSOR, offset, offset + 1),
        aside=aside,
    )


def trade(user: str, sold: str, withdrawal_id: str = "", settlement_id: str = "") -> Settle:
    return Settle(user, "ETH", "1", "BTC", sold, withdrawal_id, settlement_id)


def test_stream_goes_on_behind_a_message_that_was_set_aside():
    """Effect, letter and cursor in one entry each; none is lost, none comes twice."""
    stage = play(USER + " withdrawals.withdraw 1 BTC 4 mine\n withdrawals.cancel_withdrawal mine")
    outcomes = stage.book.execute_many(
        [
            from_stream(trade("1", "1"), 0),
            from_stream(trade("9", "1"), 1),
            from_stream(trade("1", "1", "mine"), 2),
            from_stream(trade("1", "2", settlement_id="s"), 3, key="settlement:s"),
            from_stream(trade("1", "2", settlement_id="s"), 4, key="settlement:s"),
            from_stream(trade("1", "3", settlement_id="s"), 5, key="settlement:s"),
            from_stream(trade("2", "1"), 6),
        ]
    )
    check_invariants(stage.store)
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert [outcome.is_replayed for outcome in outcomes] == [False] * 4 + [True] + [False] * 2
    assert stage.book.engine.standing.cursors == {CURSOR: 7}
    assert stage.posted("user:1:BTC") == "7"
    assert stage.posted("user:2:BTC") == "9"
    reasons = [letter_of(stage, f"withdrawals-{number}").reason for number in (1, 2, 3)]
    assert reasons == ["user_not_found", "withdrawal_cancelled", "key_reused"]
    again = stage.execute_many([from_stream(trade("1", "1"), 0), from_stream(trade("1", "1"), 6)])
    assert [refused(outcome) for outcome in again] == [Reason.CURSOR_CONFLICT] * 2


def test_stream_is_settled_in_one_batch():
    """Settlements that find their withdrawals themselves need no second round."""
    stage = play(USER)
    for quantity in ("1", "2", "3"):
        stage.execute(Withdraw("1", "BTC", quantity))
    engine = stage.book.engine
    engine.cache.clear()
    before = engine.deferrals
    outcomes = stage.execute_many(
        [from_stream(trade("1", sold), offset) for offset, sold in enumerate("321")]
    )
    assert [outcome.answer.withdrawal_id for outcome in outcomes] == ["w3", "w2", "w1"]
    assert engine.deferrals == before


# ── replaying ─────────────────────────────────────────────────────────────────────


def test_replay_books_and_closes_in_one_entry():
    stage = with_letter("withdrawals.withdraw 1 BTC 7")
    outcome = stage.execute(ReplaySettlement("withdrawals-1", trade("1", "6")))
    assert isinstance(outcome, Receipt)
    assert outcome.answer.result == "settled"
    assert outcome.answer.withdrawal_id == "w1"
    assert outcome.answer.released == "1"
    entry = entry_of(stage, outcome.sequence)
    assert entry.command == "replay_settlement"
    assert entry.transfers
    assert [record.id for record in entry.records] == ["withdrawals-1"]
    letter = letter_of(stage, "withdrawals-1")
    assert (letter.state, letter.closed_in, letter.note) == ("replayed", outcome.sequence, "")
    assert letter.message == MESSAGE
    record = stage.store.record("dead_letter", "withdrawals-1")
    assert record is not None
    assert record.labels == ("state:replayed", "reason:user_not_found")
    stage.play("then\n user:1:BTC 4 held 0\n user:1:ETH 6\n hold 1 settled")
    report = verify(stage.store, answers=answers(), invariants=invariants())
    assert report.ok, report.problems


def test_replay_of_what_was_dealt_with():
    stage = with_letter()
    first = stage.execute(ReplaySettlement("withdrawals-1", trade("1", "6")), key="k")
    assert isinstance(first, Receipt)
    again = stage.execute(ReplaySettlement("withdrawals-1", trade("1", "6")), key="k")
    assert isinstance(again, Receipt)
    assert again.is_replayed
    outcome = stage.execute(ReplaySettlement("withdrawals-1", trade("1", "6")))
    assert refused(outcome) is Reason.DEAD_LETTER_CLOSED
    assert outcome.figures == {"state": "replayed", "sequence": first.sequence}
    assert refused(stage.execute(CloseLetter("withdrawals-1"))) is Reason.DEAD_LETTER_CLOSED


@pytest.mark.parametrize(
    ("settlement", "reason"),
    [
        (trade("9", "1"), Reason.USER_NOT_FOUND),
        (trade("", "1"), Reason.USER_ID_INVALID),
        (trade("1", "x"), Reason.AMOUNT_INVALID),
        (trade("1", "1", "gone"), Reason.WITHDRAWAL_CANCELLED),
    ],
)
def test_refused_replay_leaves_the_letter_open(settlement, reason):
    stage = with_letter("withdrawals.withdraw 1 BTC 1 gone\n withdrawals.cancel_withdrawal gone")
    before = snapshot(stage.store)
    assert refused(stage.execute(ReplaySettlement("withdrawals-1", settlement))) is reason
    assert snapshot(stage.store) == before
    assert letter_of(stage, "withdrawals-1").state == "open"
    assert isinstance(stage.execute(ReplaySettlement("withdrawals-1", trade("1", "1"))), Receipt)


def test_replay_of_what_was_settled_meanwhile_is_a_duplicate():
    """The same settlement, sent again by its producer, of a withdrawal that it names."""
    stage = with_letter("withdrawals.withdraw 1 BTC 7 mine")
    stage.execute(trade("1", "6", "mine"))
    outcome = stage.execute(ReplaySettlement("withdrawals-1", trade("1", "6", "mine")))
    assert isinstance(outcome, Receipt)
    assert outcome.answer.result == "duplicate"
    assert letter_of(stage, "withdrawals-1").state == "replayed"
    assert stage.posted("user:1:BTC") == "4"


def test_settlement_after_its_replay_is_a_duplicate():
    stage = with_letter("withdrawals.withdraw 1 BTC 7 mine")
    stage.execute(ReplaySettlement("withdrawals-1", trade("1", "6", "mine")))
    outcome = stage.execute(trade("1", "6", "mine"))
    assert isinstance(outcome, Receipt)
    assert outcome.answer.result == "duplicate"
    assert refused(stage.execute(trade("1", "5", "mine"))) is Reason.WITHDRAWAL_SETTLED


# ── closing ───────────────────────────────────────────────────────────────────────


def test_letter_can_be_closed_with_a_note():
    stage = with_letter()
    before = [stage.posted(f"user:1:{token}") for token in ("BTC", "ETH")]
    outcome = stage.execute(CloseLetter("withdrawals-1", "booked by hand"))
    assert isinstance(outcome, Receipt)
    assert msgspec.to_builtins(outcome.answer) == {"letter": "withdrawals-1", "state": "closed"}
    letter = letter_of(stage, "withdrawals-1")
    assert (letter.state, letter.closed_in) == ("closed", outcome.sequence)
    assert letter.note == "booked by hand"
    assert [stage.posted(f"user:1:{token}") for token in ("BTC", "ETH")] == before
    again = stage.execute(ReplaySettlement("withdrawals-1", trade("1", "1")))
    assert refused(again) is Reason.DEAD_LETTER_CLOSED
    assert again.figures["state"] == "closed"


def test_letter_that_is_not_there():
    stage = with_letter()
    for letter in ("withdrawals-2", "", "x", "\ud800"):
        assert refused(stage.execute(CloseLetter(letter))) is Reason.DEAD_LETTER_NOT_FOUND
        replay = ReplaySettlement(letter, trade("1", "1"))
        assert refused(stage.execute(replay)) is Reason.DEAD_LETTER_NOT_FOUND


def test_letter_of_another_product_is_not_touched():
    """The numbers are shared, so that an id is never that of two letters."""
    stage = with_letter()
    made = stage.execute(probe(lambda draft: set_aside(draft, MESSAGE, "odd", "very odd")))
    assert isinstance(made, Receipt)
    assert made.answer == "probe-2"
    for command in (CloseLetter("probe-2"), ReplaySettlement("probe-2", trade("1", "1"))):
        outcome = stage.execute(command)
        assert refused(outcome) is Reason.OWNED_BY_PRODUCT
        assert outcome.figures == {"owner": "probe"}


def test_settlement_id_is_bound_by_the_replay_too():
    """A producer that sends it once more gets the first answer, not another dead letter."""
    stage = with_letter("withdrawals.withdraw 1 BTC 7 mine")
    settlement = trade("1", "6", settlement_id="s")
    key = "settlement:s"
    first = stage.execute(ReplaySettlement("withdrawals-1", settlement), key=key)
    assert isinstance(first, Receipt)
    (again,) = stage.book.execute_many([from_stream(settlement, 0, key=key)])
    assert isinstance(again, Receipt)
    assert (again.sequence, again.answer) == (first.sequence, first.answer)
    assert again.is_replayed
    assert stage.book.engine.standing.cursors == {CURSOR: 1}
    other = stage.execute(trade("1", "5", settlement_id="s"), key=key)
    assert refused(other) is Reason.KEY_REUSED
    assert other.figures["field"] == "sold_quantity"


def test_replay_of_a_settlement_id_that_was_booked_meanwhile_is_refused():
    """The letter stays open; the refusal names the entry, and the letter can be closed."""
    stage = with_letter()
    settlement, key = trade("1", "6", settlement_id="s"), "settlement:s"
    booked = stage.execute(settlement, key=key)
    assert isinstance(booked, Receipt)
    outcome = stage.execute(ReplaySettlement("withdrawals-1", settlement), key=key)
    assert refused(outcome) is Reason.KEY_REUSED
    assert outcome.figures["sequence"] == booked.sequence
    assert letter_of(stage, "withdrawals-1").state == "open"

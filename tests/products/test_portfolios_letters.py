"""Updates that could not be taken: kept as dead letters, applied after all, or closed."""

from base64 import b64encode
from typing import Any

import msgspec
import pytest

from pennyweight.engine.engine import Lane, Submission
from pennyweight.engine.receipts import Outcome, Receipt, Refusal
from pennyweight.ledger.commands import Command, fingerprint
from pennyweight.ledger.entries import CursorMove, Entry, decode_entry
from pennyweight.ledger.letters import DeadLetter, Message
from pennyweight.ledger.refusals import Reason, Refused
from pennyweight.products.portfolios.letters import (
    CloseUpdateLetter,
    ReplayUpdate,
    SetAsideUpdate,
)
from pennyweight.products.portfolios.queue import QueueUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import CreatePortfolio
from pennyweight.products.portfolios.shared import PORTFOLIO, read_portfolio
from pennyweight.products.withdrawals.settle import CloseLetter, SetAside
from scenarios import Stage, snapshot

TARGET = {"stocks": "60", "bonds": "30", "gold": "10"}
MOVED = {"stocks": "70", "bonds": "20", "gold": "10"}
MESSAGE = Message(
    "rebalance", 2, 5, b64encode(b'{"user_id": 1}').decode(), b64encode(b"1").decode()
)
LETTER = "portfolios-1"
CURSOR = "rebalance/2"
START = 1_700_000_000_000_000


def update(user: str = "1", as_of: int | None = None, **more: Any) -> Rebalance:
    return Rebalance(user, more.pop("allocation", MOVED), as_of=as_of, **more)


def entry_of(stage: Stage, sequence: int) -> Entry:
    body = stage.store.entry(sequence)
    assert body is not None
    return decode_entry(body)


def letter_of(stage: Stage, letter_id: str = LETTER) -> DeadLetter:
    record = stage.store.record("dead_letter", letter_id)
    assert record is not None
    return record.read(DeadLetter)


def done(stage: Stage, command: Command, key: str = "") -> Receipt:
    outcome = stage.execute(command, key=key)
    assert isinstance(outcome, Receipt), outcome
    return outcome


def refused(outcome: Outcome) -> Reason:
    assert isinstance(outcome, Refusal), outcome
    return outcome.reason


def from_stream(command: Rebalance, offset: int) -> Submission:
    def aside(refusal: Refused) -> Command:
        message = Message("rebalance", 2, offset, b64encode(command.user.encode()).decode())
        return SetAsideUpdate(message, refusal.reason.code, refusal.message)

    return Submission(
        command,
        key=command.key or f"kafka:{CURSOR}/{offset}",
        lane=Lane.INBOUND,
        cursor=CursorMove(CURSOR, offset, offset + 1),
        aside=aside,
    )


@pytest.fixture
def stage() -> Stage:
    """A stage with one open letter, of a user without a portfolio."""
    stage = Stage()
    done(stage, SetAsideUpdate(MESSAGE, "portfolio_not_found", "user '1' has no portfolio"))
    return stage


# ── setting aside ─────────────────────────────────────────────────────────────────


def test_update_is_kept_as_it_came(stage: Stage) -> None:
    assert letter_of(stage) == DeadLetter(
        MESSAGE,
        "portfolio_not_found",
        "user '1' has no portfolio",
        stage.store.head().committed_at,
    )
    record = stage.store.record("dead_letter", LETTER)
    assert record is not None
    assert record.product == "portfolios"
    assert record.labels == ("state:open", "reason:portfolio_not_found")
    (event,) = entry_of(stage, stage.store.head().sequence).events
    assert (event.name, event.body["letter"], event.body["topic"]) == (
        "dead_letter",
        LETTER,
        "rebalance",
    )


def test_letters_of_all_products_are_numbered_together(stage: Stage) -> None:
    assert done(stage, SetAside(MESSAGE, "no", "no")).answer.letter == "withdrawals-2"
    assert done(stage, SetAsideUpdate(MESSAGE, "no", "no")).answer.letter == "portfolios-3"


def test_stream_goes_on_behind_an_update_that_was_set_aside() -> None:
    """An outdated update is none that could not be taken: it succeeds and changes nothing."""
    stage = Stage()
    done(stage, CreatePortfolio("1", TARGET))
    outcomes = stage.book.execute_many(
        [
            from_stream(update(as_of=START - 1, request_id="a"), 0),
            from_stream(update("2"), 1),
            from_stream(update(as_of=START - 2, allocation=TARGET), 2),
            from_stream(update(as_of=START - 1, request_id="a"), 3),
            from_stream(update(as_of=START, request_id="a"), 4),
            from_stream(update(allocation={"stocks": "99"}), 5),
            from_stream(update(as_of=START * 2), 6),
        ]
    )
    answers = [outcome.answer for outcome in outcomes if isinstance(outcome, Receipt)]
    assert len(answers) == 7
    results = [getattr(answer, "result", "set aside") for answer in answers]
    assert results == ["rebalanced", "set aside", "outdated", "rebalanced", *["set aside"] * 3]
    assert outcomes[3].is_replayed
    assert [letter_of(stage, f"portfolios-{number}").reason for number in (1, 2, 3, 4)] == [
        "portfolio_not_found",
        "key_reused",
        "allocation_invalid",
        "as_of_in_future",
    ]
    assert stage.book.engine.standing.cursors == {CURSOR: 7}


def test_message_with_an_update_that_was_queued_is_no_letter() -> None:
    """The provider queued it over HTTP, heard no answer, and sends it on its other way."""
    stage = Stage()
    done(stage, CreatePortfolio("1", TARGET))
    known = update(as_of=START, request_id="a")
    queued = stage.execute(QueueUpdate(known), key=known.key)
    (again, other) = stage.book.execute_many(
        [
            from_stream(known, 0),
            from_stream(update(as_of=START, request_id="a", allocation=TARGET), 1),
        ]
    )
    assert isinstance(queued, Receipt)
    assert again == Receipt(queued.sequence, queued.answer, is_replayed=True)
    assert isinstance(other, Receipt)
    assert letter_of(stage, "portfolios-1").reason == "key_reused"
    assert stage.book.engine.standing.cursors == {CURSOR: 2}


# ── replaying ─────────────────────────────────────────────────────────────────────


def test_replay_applies_and_closes_in_one_entry(stage: Stage) -> None:
    assert refused(stage.execute(ReplayUpdate(LETTER, update()))) is Reason.PORTFOLIO_NOT_FOUND
    done(stage, CreatePortfolio("1", TARGET))
    receipt = done(stage, ReplayUpdate(LETTER, update()))
    changes = [(line.asset, line.change) for line in receipt.answer.trades]
    assert changes == [("stocks", -(10**11)), ("bonds", 10**11)]
    assert (receipt.answer.result, receipt.answer.run) == ("rebalanced", receipt.sequence)
    entry = entry_of(stage, receipt.sequence)
    assert (entry.product, entry.command) == ("portfolios", "replay_update")
    assert {record.id for record in entry.records} == {LETTER, "1"}
    letter = letter_of(stage)
    assert (letter.state, letter.closed_in, letter.message) == (
        "replayed",
        receipt.sequence,
        MESSAGE,
    )
    again = stage.execute(ReplayUpdate(LETTER, update()))
    assert refused(again) is Reason.DEAD_LETTER_CLOSED
    assert again.figures == {"state": "replayed", "sequence": receipt.sequence}


def test_replay_is_that_of_a_direct_update(stage: Stage) -> None:
    """What stands in the portfolio afterwards, and in the answer, but for the entry's place."""
    other = Stage()
    found = []
    for one, command in ((stage, ReplayUpdate(LETTER, update())), (other, update())):
        done(one, CreatePortfolio("1", TARGET))
        answer = done(one, command).answer
        record = one.store.record(PORTFOLIO, "1")
        assert record is not None
        portfolio = read_portfolio(record)
        found.append((answer.lines, portfolio.target, portfolio.current, portfolio.open))
    assert found[0] == found[1]


def test_replay_of_what_is_outdated_changes_only_the_letter(stage: Stage) -> None:
    done(stage, CreatePortfolio("1", TARGET))
    done(stage, update(as_of=START))
    before = stage.store.record(PORTFOLIO, "1")
    receipt = done(stage, ReplayUpdate(LETTER, update(as_of=START - 1, allocation=TARGET)))
    assert receipt.answer.result == "outdated"
    assert stage.store.record(PORTFOLIO, "1") == before
    assert letter_of(stage).state == "replayed"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (update("2"), Reason.PORTFOLIO_NOT_FOUND),
        (update(allocation={"stocks": "99"}), Reason.ALLOCATION_INVALID),
        (update(as_of=START * 2), Reason.AS_OF_IN_FUTURE),
    ],
)
def test_refused_replay_leaves_the_letter_open(
    stage: Stage, bad: Rebalance, reason: Reason
) -> None:
    done(stage, CreatePortfolio("1", TARGET))
    before = snapshot(stage.store)
    assert refused(stage.execute(ReplayUpdate(LETTER, bad))) is reason
    assert snapshot(stage.store) == before
    assert letter_of(stage).state == "open"


def test_request_id_is_bound_by_the_replay_too(stage: Stage) -> None:
    """A provider that sends it once more gets the first answer, not another dead letter."""
    done(stage, CreatePortfolio("1", TARGET))
    known = update(request_id="r")
    first = done(stage, ReplayUpdate(LETTER, known), key=known.key)
    (again,) = stage.book.execute_many([from_stream(known, 0)])
    assert isinstance(again, Receipt)
    assert (again.is_replayed, again.sequence, again.answer) == (
        True,
        first.sequence,
        first.answer,
    )
    other = stage.execute(update(request_id="r", allocation=TARGET), key=known.key)
    assert refused(other) is Reason.KEY_REUSED


def test_replay_of_a_request_id_that_was_taken_meanwhile_is_refused(stage: Stage) -> None:
    done(stage, CreatePortfolio("1", TARGET))
    known = update(request_id="r")
    taken = done(stage, known, key=known.key)
    outcome = stage.execute(ReplayUpdate(LETTER, known), key=known.key)
    assert refused(outcome) is Reason.KEY_REUSED
    assert outcome.figures["sequence"] == taken.sequence
    assert letter_of(stage).state == "open"


# ── closing ───────────────────────────────────────────────────────────────────────


def test_letter_can_be_closed_with_a_note(stage: Stage) -> None:
    receipt = done(stage, CloseUpdateLetter(LETTER, "a test of theirs"))
    assert msgspec.to_builtins(receipt.answer) == {"letter": LETTER, "state": "closed"}
    letter = letter_of(stage)
    assert (letter.state, letter.note) == ("closed", "a test of theirs")
    again = stage.execute(ReplayUpdate(LETTER, update()))
    assert refused(again) is Reason.DEAD_LETTER_CLOSED
    missing = stage.execute(CloseUpdateLetter("portfolios-2"))
    assert refused(missing) is Reason.DEAD_LETTER_NOT_FOUND


def test_letter_of_another_product_is_not_touched(stage: Stage) -> None:
    done(stage, SetAside(MESSAGE, "no", "no"))
    for command in (
        CloseUpdateLetter("withdrawals-2"),
        ReplayUpdate("withdrawals-2", update()),
        CloseLetter(LETTER),
    ):
        assert refused(stage.execute(command)) is Reason.OWNED_BY_PRODUCT


# ── one machine ───────────────────────────────────────────────────────────────────


def test_both_products_count_the_same_fields() -> None:
    """Journals keep these names and fields: a change of either is another version."""
    kept = b'{"message":%s,"reason":"r","detail":"d"}' % msgspec.json.encode(MESSAGE)
    for kind, name in ((SetAside, "set_aside_settlement"), (SetAsideUpdate, "set_aside_update")):
        assert (kind.name, fingerprint(kind(MESSAGE, "r", "d"))) == (name, kept)
    for closing, name in (
        (CloseLetter, "close_letter"),
        (CloseUpdateLetter, "close_update_letter"),
    ):
        assert (closing.name, fingerprint(closing("x-1", "n"))) == (
            name,
            b'{"letter":"x-1","note":"n"}',
        )
    replay = ReplayUpdate("x-1", Rebalance("1", {"gold": "100"}))
    assert (replay.name, fingerprint(replay)) == (
        "replay_update",
        b'{"letter":"x-1","update":{"user":"1","allocation":{"gold":"100"}}}',
    )

"""Holds: placed, paid out of, kept, released, expired."""

import pytest

from pennyweight.engine.engine import Submission
from pennyweight.ledger.draft import SealError
from pennyweight.ledger.holds import HoldState
from pennyweight.products.general import ExpireHold, SettleHold
from probes import probe
from scenarios import START, Stage, play

BOOK = """
    given
        user:1:USD      100
        user:2:USD
    when
        place_hold user:1:USD USD 40 60         -> done id=1 remaining=40 owner=ledger state=open
"""


def test_hold_reduces_what_is_available():
    play(BOOK).play("""
        when
            transfer user:1:USD user:2:USD USD 61   -> insufficient_funds available=60 held=40 needed=61
            place_hold user:1:USD USD 61            -> insufficient_funds
            transfer user:1:USD user:2:USD USD 60   -> done
        then
            user:1:USD      40 held 40 available 0
    """)


def test_hold_settled_in_full():
    play(BOOK).play("""
        when
            settle_hold 1 40 user:2:USD     -> done state=settled remaining=0 amount=40
            settle_hold 1 1 user:2:USD      -> hold_already_settled
            void_hold 1                     -> hold_already_settled
            expire_hold 1                   -> hold_already_settled
        then
            user:1:USD      60 held 0
            user:2:USD      40
            hold 1          settled remaining 0
    """)


def test_hold_settled_in_part_releases_the_rest():
    play(BOOK).play("""
        when
            settle_hold 1 15 user:2:USD     -> done state=settled remaining=0
        then
            user:1:USD      85 held 0 available 85
            user:2:USD      15
    """)


def test_hold_settled_in_part_keeps_the_rest():
    play(BOOK).play("""
        when
            settle_hold 1 15 user:2:USD is_rest_kept=true   -> done state=open remaining=25
            settle_hold 1 5 user:2:USD is_rest_kept=true    -> done state=open remaining=20
        then
            user:1:USD      80 held 20 available 60
            hold 1          open remaining 20
        when
            settle_hold 1 20 user:2:USD is_rest_kept=true   -> done state=settled remaining=0
        then
            user:1:USD      60 held 0
            user:2:USD      40
    """)


def test_hold_settled_above_what_it_holds():
    play(BOOK).play("""
        when
            place_hold user:1:USD USD 10                    -> done id=2
            settle_hold 1 91 user:2:USD                     -> insufficient_funds available=90 held=10
            settle_hold 1 90 user:2:USD is_rest_kept=true   -> done state=settled remaining=0
        then
            user:1:USD      10 held 10 available 0
            user:2:USD      90
    """)


def test_hold_voided():
    play(BOOK).play("""
        when
            void_hold 1                     -> done state=voided remaining=0
            void_hold 1                     -> hold_already_voided
            settle_hold 1 1 user:2:USD      -> hold_already_voided
            expire_hold 1                   -> hold_already_voided
        then
            user:1:USD      100 held 0
    """)


def test_hold_expired():
    play(BOOK).play("""
        when
            expire_hold 1                   -> hold_not_due
            wait 60
            expire_hold 1                   -> done state=expired remaining=0
            expire_hold 1                   -> hold_expired
            settle_hold 1 1 user:2:USD      -> hold_expired
            void_hold 1                     -> hold_expired
        then
            user:1:USD      100 held 0
    """)


def test_hold_overdue_may_be_voided_but_not_settled():
    play(BOOK).play("""
        when
            wait 60
            settle_hold 1 1 user:2:USD      -> hold_expired
        then
            user:1:USD      100 held 40     # a late timer delays the release, never allows a settle
        when
            void_hold 1                     -> done
    """)


def test_hold_without_expiry_never_expires():
    play("""
        given
            user:1:USD      10
        when
            place_hold user:1:USD USD 1     -> done expires_at=null
            wait 1000000000
            expire_hold 1                   -> hold_not_due
            settle_hold 1 1 world:USD       -> done
    """)


@pytest.mark.parametrize(
    ("offset", "settled", "expired"),
    [(-1, "done", "hold_not_due"), (0, "hold_expired", "done"), (1, "hold_expired", "done")],
)
def test_hold_expiry_decided_by_batch_time(offset, settled, expired):
    """At the very moment the expiry goes first; one microsecond before, the hold still stands."""

    def book():
        stage = play(BOOK)
        expires_at = stage.store.hold(1).expires_at
        stage.now = expires_at + offset - 1  # the stage moves on by one
        return stage

    def code(outcome):
        return outcome.reason.code if hasattr(outcome, "reason") else "done"

    assert code(book().execute(SettleHold(1, "5", "user:2:USD"))) == settled
    assert code(book().execute(ExpireHold(1))) == expired


def test_hold_lasts_from_one_second_to_ten_years():
    stage = play("""
        given
            user:1:USD      10
        when
            place_hold user:1:USD USD 1 1           -> done
            place_hold user:1:USD USD 1 316224000   -> done
            place_hold user:1:USD USD 1 316224001   -> expiry_invalid
    """)
    placed_at = stage.store.batch_at(time=stage.now).committed_at
    assert stage.store.hold(2).expires_at == placed_at + 316_224_000 * 1_000_000


def test_hold_expires_in_the_future_only():
    stage = Stage()
    stage.fund("user:1:USD", "10")

    def place(expires_at):
        rule = probe(
            lambda draft: draft.place_hold("user:1:USD", 1, expires_at=expires_at(draft)).id,
            "user:1",
        )
        return stage.execute(rule)

    assert place(lambda draft: draft.time).reason.code == "expiry_invalid"
    assert place(lambda draft: 2**63).reason.code == "expiry_invalid"
    assert place(lambda draft: draft.time + 1).answer == 1
    assert place(lambda draft: 2**63 - 1).answer == 2


def test_holds_of_an_account_oldest_first():
    stage = Stage()
    stage.fund("user:1:USD", "10")
    seen = []

    def rule(draft):
        seen.append([hold.id for hold in draft.open_holds("user:1:USD")])
        first = draft.place_hold("user:1:USD", 5)
        draft.place_hold("user:1:USD", 7)
        seen.append([hold.id for hold in draft.open_holds("user:1:USD")])
        draft.void_hold(first.id)
        seen.append([(hold.id, hold.remaining) for hold in draft.open_holds("user:1:USD")])

    command = probe(rule, reads=lambda wanted: wanted.open_holds("user:1:USD"))
    void = probe(lambda draft: draft.void_hold(2).id, reads=lambda wanted: wanted.hold(2))
    stage.execute_many([Submission(command), Submission(command), Submission(void)])
    assert seen == [
        [], [1, 2], [(2, 7)],
        [2], [2, 3, 4], [(2, 7), (4, 7)],
    ]  # fmt: skip
    assert [hold.id for hold in stage.store.holds("user:1:USD", 0, 10)] == [4]


def test_hold_belongs_to_the_product_that_placed_it():
    stage = Stage()
    stage.fund("user:1:USD", "10")
    stage.execute(probe(lambda draft: draft.place_hold("user:1:USD", 5).id, "user:1"))
    stage.play("""
        when
            settle_hold 1 1 world:USD   -> owned_by_product owner=probe
            void_hold 1                 -> owned_by_product owner=probe
    """)


def test_hold_due_is_released_by_the_timer_whoever_owns_it():
    stage = Stage()
    stage.fund("user:1:USD", "10")
    rule = probe(
        lambda draft: draft.place_hold("user:1:USD", 5, expires_at=draft.time + 10).id, "user:1"
    )
    stage.execute(rule)
    stage.now += 100
    due = stage.store.due("hold_expiry", 0, stage.now)
    assert [mark.id for mark in due] == ["1"]
    stage.execute(ExpireHold(1))
    assert stage.store.hold(1).state is HoldState.EXPIRED
    assert stage.store.due("hold_expiry", 0, stage.now) == []


def test_hold_times_are_the_books():
    assert play(BOOK).store.hold(1).expires_at > START + 60_000_000


def test_hold_that_nothing_accounts_for_is_not_sealed():
    stage = Stage()
    stage.fund("user:1:USD", "10")

    def rule(draft):
        draft._touch("user:1:USD").held += 1

    outcome = stage.execute(probe(rule, "user:1"))
    assert isinstance(outcome.cause, SealError)

"""The withdrawal risk engine, decision by decision: hold at once, settle by what was traded.

The rules of modes and limits, of dead letters and of events have files of their own beside
this one.
"""

import pytest

from pennyweight.assemble import answers, invariants
from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.engine.statements import statement
from pennyweight.engine.verification import verify
from pennyweight.ledger.accounts import HOLDS_OPEN_MAX
from pennyweight.ledger.refusals import Reason
from pennyweight.products.withdrawals.settle import Settle
from pennyweight.products.withdrawals.withdraw import (
    EXPLAINED_MAX,
    SECONDS_MAX,
    CancelWithdrawal,
    ExpireWithdrawal,
    Withdraw,
)
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.sqlite import SQLiteStore
from probes import probe
from scenarios import Stage, Submission, play


@pytest.fixture(params=["memory", "sqlite"])
def stage(request, tmp_path):
    """An empty stage, on each store in turn; at the end its book must prove itself."""
    store: MemoryStore | SQLiteStore
    if request.param == "memory":
        store = MemoryStore(Head(book="main", incarnation="first"))
    else:
        store = SQLiteStore.open(tmp_path, "main", new_incarnation="first")
    yield Stage(store)
    report = verify(store, answers=answers(), invariants=invariants())
    if isinstance(store, SQLiteStore):
        store.close()
    assert report.ok, report.problems


USER = """
    given
        user:1:BTC          10
        user:1:ETH          5
        user:2:BTC          10
    when
"""


# ── the seed's example ────────────────────────────────────────────────────────────


def test_seed_example(stage):
    """The three tables of risk-engine.txt, as printed there."""
    stage.play(
        """
        given
            user:100:USD    0
            user:100:EUR    3128.39
            user:100:BTC    81.807344
            user:100:BCH    68.653219
            user:100:ETH    136.152897
        when
            withdrawals.withdraw 100 USD 250        -> insufficient_funds available=0 needed=250
        then
            user:100:USD    available 0
            user:100:EUR    available 3128.39
            user:100:BTC    available 81.807344
            user:100:BCH    available 68.653219
            user:100:ETH    available 136.152897
        when
            withdrawals.withdraw 100 BTC 7          -> done available=74.807344 held=7
        then
            user:100:USD    available 0
            user:100:EUR    available 3128.39
            user:100:BTC    available 74.807344
            user:100:BCH    available 68.653219
            user:100:ETH    available 136.152897
        when
            withdrawals.settle 100 ETH 87.35 BTC 6.9 -> done result=settled withdrawal_id=w1 \
released=0.1 sold_available=74.907344 bought_available=223.502897
        then
            user:100:USD    available 0 held 0
            user:100:EUR    available 3128.39
            user:100:BTC    available 74.907344 held 0
            user:100:BCH    available 68.653219
            user:100:ETH    available 223.502897
            venue:trades:BTC    6.9
            venue:trades:ETH    -87.35
        """
    )


# ── withdraw: who and how much ────────────────────────────────────────────────────


def test_withdrawal_holds_and_moves_nothing(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7 -> done withdrawal_id=w1 requested_quantity=7 available=3 \
held=7
        then
            user:1:BTC      10 held 7 available 3
            hold 1          open remaining 7
        """
    )


def test_balance_equal_to_the_request_is_sufficient(stage):
    """C2.6."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 10.000000000000000001 -> insufficient_funds available=10
            withdrawals.withdraw 1 BTC 10                   -> done available=0
            withdrawals.withdraw 1 BTC 0.000000000000000001 -> insufficient_funds available=0 held=10
        """
    )


def test_unknown_user_or_token_and_bad_amounts_are_not_insufficient_balance(stage):
    """C2.6: codes of their own."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 9 BTC 1        -> user_not_found user_id=9
            withdrawals.withdraw 9 XYZ 1        -> token_unknown token=XYZ
            withdrawals.withdraw 1 XYZ 1        -> token_unknown
            withdrawals.withdraw 1 BTC 0        -> amount_not_positive
            withdrawals.withdraw 1 BTC -1       -> amount_not_positive
            withdrawals.withdraw 1 BTC 1,5      -> amount_invalid
            withdrawals.withdraw '' BTC 1       -> user_id_invalid
        then
            user:9:BTC      -
            user:1:BTC      10 held 0
        """
    )


def test_user_without_that_account_has_nothing_available(stage):
    """Contract 7."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 USD 1 -> insufficient_funds available=0 held=0 needed=1 \
open_withdrawal_count=0 open_withdrawals=[]
        then
            user:1:USD      -
        """
    )


def test_closed_account_takes_no_withdrawal():
    play(
        """
        given
            user:1:USD
        when
            close_account user:1:USD
            withdrawals.withdraw 1 USD 1        -> account_closed account=user:1:USD
        """
    )


def test_floor_of_the_account_counts():
    play(
        """
        given
            user:1:USD      10 floor -50
        when
            withdrawals.withdraw 1 USD 60.01    -> insufficient_funds available=10
            withdrawals.withdraw 1 USD 60       -> done available=-50
        """
    )


def test_amounts_at_the_limits():
    """38 digits of the smallest unit, and not one more; nothing is ever rounded."""
    most = "99999999999999999999.999999999999999999"
    play(
        f"""
        given
            user:1:ETH      {most}
            user:1:BTC      {most}
        when
            withdrawals.withdraw 1 ETH 100000000000000000000    -> amount_too_large
            withdrawals.withdraw 1 ETH 0.0000000000000000001    -> amount_too_fine
            withdrawals.withdraw 1 ETH {most}                   -> done available=0 held={most}
            withdrawals.settle 1 BTC 0 ETH 100000000000000000000 -> amount_too_large
            withdrawals.settle 1 BTC 0.0000000000000000001 ETH 1 -> amount_too_fine
            withdrawals.settle 1 BTC 0.000000000000000001 ETH 1 -> balance_too_large
            withdrawals.settle 1 BTC 0 ETH {most}               -> done sold_available=0
        then
            venue:trades:ETH    {most}
            user:1:BTC          {most}
        """
    )


def test_held_amounts_are_below_38_digits_too():
    stage = Stage()
    stage.execute(probe(lambda draft: draft.open_account("user:1:ETH", floor=None).id, "user:1"))
    stage.play(
        """
        when
            withdrawals.withdraw 1 ETH 99999999999999999999 -> done available=-99999999999999999999
            withdrawals.withdraw 1 ETH 1        -> balance_too_large
        """
    )


def test_too_many_open_holds_go_before_too_little_money():
    stage = play("given\n user:1:USD 1000.5")
    one = [Submission(Withdraw("1", "USD", "1")) for _ in range(HOLDS_OPEN_MAX)]
    assert all(isinstance(outcome, Receipt) for outcome in stage.execute_many(one))
    for quantity in ("0.5", "600"):
        outcome = stage.execute(Withdraw("1", "USD", quantity))
        assert isinstance(outcome, Refusal)
        assert outcome.reason is Reason.TOO_MANY_HOLDS
    stage.play("when\n withdrawals.cancel_withdrawal w1\n withdrawals.withdraw 1 USD 1.5")


def test_refusal_explains_who_holds_the_money():
    """Available, held, needed, and the product's own open withdrawals; holds of others are held."""
    stage = play(
        USER
        + """
            place_hold user:1:BTC BTC 1
            withdrawals.withdraw 1 BTC 2 mine
            withdrawals.withdraw 1 BTC 3
            withdrawals.withdraw 1 BTC 1 gone
            withdrawals.cancel_withdrawal gone
            withdrawals.withdraw 1 BTC 4.5 -> insufficient_funds available=4 held=6 needed=4.5 \
token=BTC open_withdrawal_count=2 open_withdrawals.0.withdrawal_id=mine \
open_withdrawals.0.quantity=2 open_withdrawals.1.withdrawal_id=w3 open_withdrawals.1.quantity=3
        """
    )
    placed = stage.store.hold(2)
    outcome = stage.execute(Withdraw("1", "BTC", "5"))
    assert isinstance(outcome, Refusal)
    assert outcome.figures["open_withdrawals"][0]["accepted_at"] == placed.placed_at


def test_refusal_names_the_oldest_and_counts_all():
    stage = play("given\n user:1:USD 100")
    stage.execute_many(
        [Submission(Withdraw("1", "USD", "1", f"a{n}")) for n in range(EXPLAINED_MAX + 2)]
    )
    outcome = stage.execute(Withdraw("1", "USD", "100"))
    assert isinstance(outcome, Refusal)
    named = [each["withdrawal_id"] for each in outcome.figures["open_withdrawals"]]
    assert named == [f"a{n}" for n in range(EXPLAINED_MAX)]
    assert outcome.figures["open_withdrawal_count"] == EXPLAINED_MAX + 2


# ── ids and keys ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("bad", ["w1", "w12", "a/b", "x" * 256, "tab\t", "\ud800", "\x7f"])
def test_callers_may_not_choose(bad):
    stage = play(USER)
    outcome = stage.execute(Withdraw("1", "BTC", "1", bad))
    assert isinstance(outcome, Refusal)
    assert outcome.reason is Reason.WITHDRAWAL_ID_INVALID


@pytest.mark.parametrize(
    "good", ["w", "w0", "w01", "W1", "w1x", "x" * 255, "ünï ☃", "w" + "9" * 19]
)
def test_callers_may_choose(good):
    stage = play(USER)
    placed = stage.execute(Withdraw("1", "BTC", "1", good))
    assert isinstance(placed, Receipt)
    assert placed.answer.withdrawal_id == good
    assert isinstance(stage.execute(CancelWithdrawal(good)), Receipt)


def test_user_id_is_looked_at_before_the_withdrawals():
    outcome = play(USER).execute(Withdraw("", "BTC", "1", "w1"))
    assert isinstance(outcome, Refusal)
    assert outcome.reason is Reason.USER_ID_INVALID


def test_withdrawal_id_is_taken_for_ever_by_a_success_only(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 11 mine  -> insufficient_funds
            withdrawals.withdraw 1 BTC 1 mine   -> done withdrawal_id=mine
            withdrawals.withdraw 1 BTC 1 mine   -> withdrawal_id_taken withdrawal_id=mine
            withdrawals.withdraw 2 BTC 1 mine   -> withdrawal_id_taken
            withdrawals.cancel_withdrawal mine
            withdrawals.withdraw 1 BTC 1 mine   -> withdrawal_id_taken
        """
    )


def test_withdrawal_id_is_taken_within_a_batch():
    play(
        USER
        + """
            withdrawals.withdraw 1 BTC 1 mine   -> done
            & withdrawals.withdraw 2 BTC 1 mine -> withdrawal_id_taken
            & withdrawals.cancel_withdrawal mine -> done
            & withdrawals.cancel_withdrawal mine -> withdrawal_cancelled
        """
    )


def test_key_answers_again_whatever_became_of_it(stage):
    stage.play(
        USER
        + """
            [k] withdrawals.withdraw 1 BTC 1 k  -> done withdrawal_id=k available=9
            withdrawals.cancel_withdrawal k
            [k] withdrawals.withdraw 1 BTC 1 k  -> replayed withdrawal_id=k available=9
            [k] withdrawals.withdraw 1 BTC 2 k  -> key_reused field=quantity
            [k] withdrawals.withdraw 1 BTC 1    -> key_reused field=withdrawal_id
            [k] withdrawals.withdraw 1 BTC 1 k 9 -> key_reused field=expires_in_seconds
        then
            user:1:BTC      10 held 0
        """
    )


def test_same_reference_of_another_product_is_another_thing():
    """Keys and holds of `/v1` share nothing with withdrawals."""
    play(
        USER
        + """
            [k] place_hold user:1:BTC BTC 1     -> done id=1
            [k] withdrawals.withdraw 1 BTC 1 k  -> done withdrawal_id=k
        """
    )


# ── cancel and expire ─────────────────────────────────────────────────────────────


def test_cancel_gives_back(stage):
    """C2.5."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7
            withdrawals.withdraw 1 BTC 1 mine
            withdrawals.cancel_withdrawal w1    -> done withdrawal_id=w1 requested_quantity=7 \
available=9 held=1
            withdrawals.cancel_withdrawal mine  -> done withdrawal_id=mine available=10
        then
            user:1:BTC      10 held 0
            hold 1          voided remaining 0
        """
    )


def test_cancel_of_what_is_not_there():
    play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7 mine
            withdrawals.cancel_withdrawal other -> withdrawal_not_found withdrawal_id=other
            withdrawals.cancel_withdrawal w1    -> withdrawal_not_found   # it has a name
            withdrawals.cancel_withdrawal w2    -> withdrawal_not_found
            withdrawals.cancel_withdrawal w0    -> withdrawal_not_found
            withdrawals.cancel_withdrawal ''    -> withdrawal_not_found
        """
    )


def test_cancel_of_what_has_ended_says_how():
    stage = play(
        USER
        + """
            withdrawals.withdraw 1 BTC 1
            withdrawals.withdraw 1 BTC 1
            withdrawals.withdraw 1 BTC 1 mine expires_in_seconds=5
            withdrawals.settle 1 ETH 1 BTC 1 w1
            withdrawals.cancel_withdrawal w2
            wait 5
            withdrawals.expire_withdrawal 3
            withdrawals.cancel_withdrawal w1    -> withdrawal_settled withdrawal_id=w1
            withdrawals.cancel_withdrawal w2    -> withdrawal_cancelled withdrawal_id=w2
            withdrawals.cancel_withdrawal mine  -> withdrawal_expired withdrawal_id=mine
        """
    )
    outcome = stage.execute(CancelWithdrawal("w1"))
    assert isinstance(outcome, Refusal)
    assert outcome.figures["sequence"] == stage.store.hold(1).changed_by


def test_expiry_is_off_unless_asked_for():
    stage = play(USER + " withdrawals.withdraw 1 BTC 1")
    assert stage.store.hold(1).expires_at is None
    stage.play(
        f"""
        when
            wait {SECONDS_MAX}
            withdrawals.expire_withdrawal 1     -> hold_not_due
        """
    )


def test_expiry_gives_back_when_it_is_due(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7 mine expires_in_seconds=60
            wait 59
            withdrawals.expire_withdrawal 1     -> hold_not_due
            wait 1
            withdrawals.expire_withdrawal 1     -> done withdrawal_id=mine requested_quantity=7 \
available=10 held=0
            withdrawals.expire_withdrawal 1     -> hold_expired
            withdrawals.expire_withdrawal 2     -> hold_not_found
        then
            hold 1          expired remaining 0
        """
    )


def test_expiry_is_to_the_microsecond():
    """At the very moment it is over: not for a settlement any more, and due."""
    stage = play(USER + " withdrawals.withdraw 1 BTC 7 expires_in_seconds=60")
    stage.wait(59.999998)
    stage.play(
        """
        when
            withdrawals.expire_withdrawal 1         -> hold_not_due
            withdrawals.settle 1 ETH 1 BTC 1        -> done result=unsolicited
            withdrawals.settle 1 ETH 1 BTC 1 w1     -> done result=unsolicited
            withdrawals.expire_withdrawal 1         -> hold_expired
        """
    )


@pytest.mark.parametrize(
    ("seconds", "code"),
    [(0, "expiry_invalid"), (-1, "expiry_invalid"), (1, "done"), (SECONDS_MAX, "done")],
)
def test_expiry_has_bounds(seconds, code):
    play(USER + f" withdrawals.withdraw 1 BTC 1 expires_in_seconds={seconds} -> {code}")
    play(
        USER
        + f" withdrawals.withdraw 1 BTC 1 expires_in_seconds={SECONDS_MAX + 1} -> expiry_invalid"
    )


def test_expired_withdrawal_can_be_cancelled_before_it_is_swept():
    play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7 expires_in_seconds=60
            wait 61
            withdrawals.cancel_withdrawal w1    -> done available=10
            withdrawals.expire_withdrawal 1     -> hold_already_voided
        """
    )


def test_expiry_is_seen_in_the_statement(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7 expires_in_seconds=60
            wait 60
            withdrawals.expire_withdrawal 1
        """
    )
    account = stage.store.account("user:1:BTC")
    lines, _ = statement(stage.store, account, limit=2, is_descending=True)
    assert [line.held for line in lines] == [0, 7 * 10**18]
    assert [line.command for line in lines] == ["expire_withdrawal", "withdraw"]


# ── settle: which withdrawal ──────────────────────────────────────────────────────


def test_settlement_matches_by_id(stage):
    """C2.3: the id goes before what would match better."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 1
            withdrawals.withdraw 1 BTC 2
            withdrawals.withdraw 1 BTC 3 mine
            withdrawals.settle 1 ETH 10 BTC 1 mine  -> done result=settled withdrawal_id=mine released=2
            withdrawals.settle 1 ETH 10 BTC 1 w2    -> done result=settled withdrawal_id=w2 released=1
        then
            hold 1          open remaining 1
            hold 2          settled remaining 0
            hold 3          settled remaining 0
            user:1:BTC      8 held 1
            user:1:ETH      25
        """
    )


def test_settlement_without_id_matches_the_exact_single_one(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 1
            withdrawals.withdraw 1 BTC 2
            withdrawals.withdraw 2 BTC 2
            withdrawals.settle 1 ETH 10 BTC 2   -> done result=settled withdrawal_id=w2
        then
            hold 1          open
            hold 3          open
        """
    )


def test_settlement_without_id_matches_the_oldest_of_several_exact_ones(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 1
            withdrawals.withdraw 1 BTC 2
            withdrawals.withdraw 1 BTC 2
            withdrawals.settle 1 ETH 10 BTC 2   -> done withdrawal_id=w1
        then
            hold 1          settled
            hold 2          open
            user:1:BTC      8 held 4
        """
    )


def test_settlement_without_id_matches_the_oldest_if_none_is_exact(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 3
            withdrawals.withdraw 1 BTC 2
            withdrawals.settle 1 ETH 10 BTC 1   -> done withdrawal_id=w1 released=2
            withdrawals.settle 1 ETH 10 BTC 1   -> done withdrawal_id=w2 released=1
            withdrawals.settle 1 ETH 10 BTC 1   -> done result=unsolicited
        """
    )


def test_settlement_sees_what_its_own_batch_has_done():
    play(
        USER
        + """
            withdrawals.withdraw 1 BTC 3
            & withdrawals.settle 1 ETH 10 BTC 3 -> done withdrawal_id=w1
            & withdrawals.withdraw 1 BTC 2
            & withdrawals.settle 1 ETH 10 BTC 1 -> done withdrawal_id=w2
            & withdrawals.settle 1 ETH 10 BTC 1 -> done result=unsolicited
        """
    )


def test_unsolicited_trade_is_booked_in_full(stage):
    """C2.3: none is open, so both sides are posted, and the answer says so."""
    stage.play(
        USER
        + """
            withdrawals.settle 1 ETH 10 BTC 4 -> done result=unsolicited sold_available=6 \
bought_available=15
        then
            user:1:BTC      6
            user:1:ETH      15
            venue:trades:BTC    4
            venue:trades:ETH    -10
        """
    )


@pytest.mark.parametrize("named", ["nowhere", "w77", "x" * 1_000])
def test_settlement_of_an_id_nobody_knows_is_unsolicited(named):
    play(
        USER
        + f"""
            withdrawals.withdraw 1 BTC 4
            withdrawals.settle 1 ETH 10 BTC 4 {named} -> done result=unsolicited sold_available=2
        then
            hold 1          open
        """
    )


def test_settlement_naming_anothers_withdrawal_leaves_it_alone(stage):
    """Another user's, and one of another token."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 2 BTC 4 theirs
            withdrawals.withdraw 1 ETH 4 ether
            withdrawals.withdraw 1 BTC 4 mine
            withdrawals.settle 1 ETH 10 BTC 4 theirs -> done result=unsolicited sold_available=2
            withdrawals.settle 1 ETH 10 BTC 1 ether  -> done result=unsolicited sold_available=1
            withdrawals.settle 1 ETH 10 BTC 4 w1     -> done result=unsolicited shortage=3
        then
            hold 1          open remaining 4
            hold 2          open remaining 4
            hold 3          open remaining 4
            user:2:BTC      10 held 4
        """
    )


# ── settle: how much ──────────────────────────────────────────────────────────────


def test_sold_less_gives_the_difference_back(stage):
    """C2.5: never debited on top of the hold."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7
            withdrawals.settle 1 ETH 10 BTC 6.9 -> done released=0.1 sold_available=3.1
        then
            user:1:BTC      3.1 held 0
        """
    )


def test_sold_more_debits_the_excess(stage):
    """C2.4."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7
            withdrawals.settle 1 ETH 10 BTC 9 -> done result=settled \
sold_available=1
        then
            user:1:BTC      1 held 0
        """
    )


def test_sold_more_than_there_is_becomes_a_deficit(stage):
    """C2.4: spendable is never negative, and nothing is dropped; other holds stay as they are."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7
            withdrawals.withdraw 1 BTC 2
            withdrawals.settle 1 ETH 10 BTC 9.5 w1 -> done result=settled shortage=1.5 owed=1.5 \
sold_available=0
            withdrawals.settle 1 ETH 10 BTC 1 nix -> done result=unsolicited shortage=1 owed=2.5
        then
            user:1:BTC      2 held 2 owed 2.5
            owed:user:1:BTC     -2.5
            venue:trades:BTC    10.5
            hold 2          open remaining 2
        """
    )


def test_later_credits_pay_the_deficit_first(stage):
    """C2.4: transfers, deposits, trades and wins; in visible transfers of their own."""
    stage.play(
        """
        given
            user:1:USD      1
            user:1:ETH      5
            user:2:USD      10
        when
            [b] wallet.bet 1 100000 USD g none b
            withdrawals.settle 1 ETH 1 USD 10           -> done shortage=10 owed=10
            transfer user:2:USD user:1:USD USD 1
            transfer world:USD user:1:USD USD 2
            load_balances 1 '[["USD","3"]]'
            [w] wallet.win 1 200000 USD g none b w
            withdrawals.withdraw 1 USD 0.01             -> insufficient_funds available=0
            withdrawals.withdraw 1 ETH 6                -> done
            withdrawals.settle 1 USD 1.5 ETH 6          -> done bought_available=0
        then
            user:1:USD      0 owed 0.5
            owed:user:1:USD -0.5
        when
            withdrawals.settle 1 USD 1.5 ETH 0          -> done bought_available=1
        then
            user:1:USD      1 owed 0
            owed:user:1:USD 0
        """
    )


def test_money_given_back_by_a_hold_is_not_a_credit():
    """What is owed is paid by credits (contract 1); a release moves nothing."""
    play(
        USER
        + """
            withdrawals.withdraw 1 BTC 10 mine
            withdrawals.settle 1 ETH 1 BTC 3 nix    -> done shortage=3
            withdrawals.cancel_withdrawal mine      -> done available=10
        then
            user:1:BTC      10 owed 3
        """
    )


def test_nothing_sold_cancels(stage):
    """C2.5, with an id and without."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 4
            withdrawals.withdraw 1 BTC 3 mine
            withdrawals.settle 1 ETH 0 BTC 0 mine   -> done result=cancelled withdrawal_id=mine \
sold_available=6 bought_available=5
            withdrawals.settle 1 ETH 0 BTC 0        -> done result=cancelled withdrawal_id=w1 \
sold_available=10
            withdrawals.cancel_withdrawal w1        -> withdrawal_cancelled
        then
            user:1:BTC      10 held 0
            hold 1          voided remaining 0
        """
    )


def test_nothing_sold_and_something_bought_cancels_and_credits():
    play(
        USER
        + """
            withdrawals.withdraw 1 BTC 4
            withdrawals.settle 1 ETH 2 BTC 0        -> done result=cancelled bought_available=7
        then
            user:1:BTC      10 held 0
            venue:trades:ETH    -2
        """
    )


def test_trade_of_nothing_is_a_fact_too():
    play(
        USER
        + """
            withdrawals.settle 1 ETH 0 BTC 0        -> done result=unsolicited sold_available=10
        then
            venue:trades:BTC    -
        """
    )


def test_nothing_bought_is_a_fact_too():
    play(
        USER
        + """
            withdrawals.withdraw 1 BTC 4
            withdrawals.settle 1 USD 0 BTC 4        -> done result=settled bought_available=0
        then
            user:1:BTC      6 held 0
            user:1:USD      -
        """
    )


@pytest.mark.parametrize(
    ("trade", "code"),
    [
        ("1 XYZ 1 BTC 1", "token_unknown"),
        ("1 ETH 1 XYZ 1", "token_unknown"),
        ("1 ETH 1 user:BTC 1", "token_unknown"),
        ("9 ETH 1 BTC 1", "user_not_found"),
        ("'' ETH 1 BTC 1", "user_id_invalid"),
        ("1 BTC 1 BTC 1", "same_token"),
        ("9 BTC 1 BTC 1", "same_token"),
        ("1 BTC x BTC 1", "amount_invalid"),
        ("1 ETH -1 BTC 1", "amount_not_positive"),
        ("1 ETH 1 BTC -0", "amount_invalid"),
    ],
)
def test_settlement_that_cannot_be_read_is_refused(trade, code):
    play(USER + f" withdrawals.settle {trade} -> {code}")


# ── settle: accounts that are missing or closed ───────────────────────────────────


def test_user_lacks_the_sold_account(stage):
    """All of it is owed, and the account is there from then on."""
    stage.play(
        USER
        + """
            withdrawals.settle 1 ETH 1 USD 100  -> done result=unsolicited shortage=100 owed=100
        then
            user:1:USD      0 owed 100
            owed:user:1:USD -100
            venue:trades:USD    100
            user:1:ETH      6
        """
    )


def test_user_lacks_the_bought_account(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 1
            withdrawals.settle 1 USD 100 BTC 1  -> done bought_available=100
        then
            user:1:USD      100
        """
    )


def test_closed_bought_account_goes_to_suspense(stage):
    stage.play(
        USER
        + """
            open_account user:1:USD
            close_account user:1:USD
            withdrawals.withdraw 1 BTC 1
            withdrawals.settle 1 USD 100 BTC 1  -> done result=settled credited=suspense:USD \
bought_available=0
        then
            user:1:USD      0 closed
            suspense:USD    100
            venue:trades:USD    -100
        """
    )


def test_closed_sold_account_owes_it_all(stage):
    stage.play(
        USER
        + """
            open_account user:1:USD
            close_account user:1:USD
            withdrawals.settle 1 ETH 1 USD 100  -> done result=unsolicited shortage=100 owed=100
            withdrawals.settle 1 ETH 1 USD 5    -> done owed=105
        then
            user:1:USD      0 owed 105 closed
            owed:user:1:USD -105
            user:1:ETH      7
        """
    )


# ── settle: what has ended already ────────────────────────────────────────────────


def test_settlement_of_an_expired_withdrawal_is_booked_in_full(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7 mine expires_in_seconds=60
            wait 60
            withdrawals.expire_withdrawal 1
            withdrawals.settle 1 ETH 10 BTC 6 mine  -> done result=unsolicited sold_available=4
        then
            hold 1          expired
            user:1:BTC      4
        """
    )


def test_settlement_of_an_expired_withdrawal_that_nobody_swept(stage):
    """Without its id it is as good as gone; named, it expires, and what it held pays."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7 mine expires_in_seconds=60
            wait 60
            withdrawals.settle 1 ETH 10 BTC 2       -> done result=unsolicited sold_available=1
        then
            hold 1          open remaining 7
        when
            withdrawals.settle 1 ETH 10 BTC 8 mine  -> done result=unsolicited sold_available=0
            withdrawals.settle 1 ETH 0 BTC 0 mine   -> done result=unsolicited
        then
            hold 1          expired remaining 0
        when
            withdrawals.expire_withdrawal 1         -> hold_expired
        """
    )


def test_settlement_of_a_settled_withdrawal_is_refused(stage):
    """Contract 7: 409, set aside from Kafka."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7
            withdrawals.withdraw 1 BTC 1
            withdrawals.settle 1 ETH 10 BTC 6 w1    -> done
            withdrawals.settle 1 ETH 10 BTC 5 w1    -> withdrawal_settled withdrawal_id=w1
            withdrawals.settle 1 ETH 10 BTC 6 w1 s2 -> withdrawal_settled
        then
            user:1:BTC      4 held 1
            hold 2          open
        """
    )


def test_settlement_of_a_cancelled_withdrawal_is_refused(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7 mine
            withdrawals.cancel_withdrawal mine
            withdrawals.settle 1 ETH 10 BTC 6 mine  -> withdrawal_cancelled withdrawal_id=mine
            withdrawals.withdraw 1 BTC 7 other
            withdrawals.settle 1 ETH 0 BTC 0 other  -> done result=cancelled
            withdrawals.settle 1 ETH 10 BTC 6 other -> withdrawal_cancelled
        then
            user:1:BTC      10 held 0
        """
    )


def test_exact_repeat_without_settlement_id_is_a_duplicate(stage):
    """C2.9: by `withdrawal_id`. An entry that does nothing; also after a cancellation by 0."""
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7 mine
            withdrawals.settle 1 ETH 10 BTC 6 mine  -> done result=settled
            withdrawals.settle 1 ETH 10 BTC 6 mine  -> done result=duplicate withdrawal_id=mine \
sold_available=4 bought_available=15
            withdrawals.settle 1 ETH 10 BTC 6 mine  -> done result=duplicate
            withdrawals.withdraw 1 BTC 1 other
            withdrawals.settle 1 ETH 0 BTC 0 other  -> done result=cancelled
            withdrawals.settle 1 ETH 0 BTC 0 other  -> done result=duplicate
        then
            user:1:BTC      4 held 0
            user:1:ETH      15
        """
    )


def test_exact_repeat_in_the_same_batch_is_a_duplicate():
    play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7
            & withdrawals.settle 1 ETH 10 BTC 6 w1  -> done result=settled
            & withdrawals.settle 1 ETH 10 BTC 6 w1  -> done result=duplicate
        """
    )


def test_match_without_id_is_found_again_by_no_id():
    """Without any id a repeat is another trade: only a key can tell."""
    play(
        USER
        + """
            withdrawals.withdraw 1 BTC 1
            withdrawals.settle 1 ETH 1 BTC 1        -> done result=settled
            withdrawals.settle 1 ETH 1 BTC 1        -> done result=unsolicited
        """
    )


def test_duplicates_by_key_have_no_effect(stage):
    """C2.9: a settlement_id or a place in a topic is the key; its first answer comes again."""
    stage.play(
        USER
        + """
            [settlement:s1] withdrawals.settle 1 ETH 1 BTC 1 settlement_id=s1 -> done sold_available=9
            [kafka:t/0/7] withdrawals.settle 1 ETH 1 BTC 1  -> done sold_available=8
            [settlement:s1] withdrawals.settle 1 ETH 1 BTC 1 settlement_id=s1 -> replayed \
sold_available=9
            [kafka:t/0/7] withdrawals.settle 1 ETH 1 BTC 1  -> replayed sold_available=8
            [settlement:s1] withdrawals.settle 1 ETH 2 BTC 1 settlement_id=s1 -> key_reused \
field=bought_quantity
        then
            user:1:BTC      8
        """
    )


def test_refused_settlement_leaves_its_key_free():
    play(
        USER
        + """
            [settlement:s1] withdrawals.settle 3 ETH 1 BTC 1 settlement_id=s1 -> user_not_found
            open_account user:3:BTC
            [settlement:s1] withdrawals.settle 3 ETH 1 BTC 1 settlement_id=s1 -> done owed=1
        """
    )


# ── other products ────────────────────────────────────────────────────────────────


def test_holds_of_other_products_are_never_matched_or_settled(stage):
    """Contract 1: a settlement matches withdrawal holds only."""
    stage.play(
        USER
        + """
            place_hold user:1:BTC BTC 2             -> done id=1
            withdrawals.settle 1 ETH 1 BTC 2        -> done result=unsolicited
            withdrawals.withdraw 1 BTC 3            -> done withdrawal_id=w2
            withdrawals.settle 1 ETH 1 BTC 2        -> done withdrawal_id=w2
            withdrawals.settle 1 ETH 1 BTC 2 w1     -> done result=unsolicited
            withdrawals.cancel_withdrawal w1        -> withdrawal_not_found
        then
            hold 1          open remaining 2
            user:1:BTC      4 held 2
        """
    )


def test_withdrawals_refuse_the_verbs_of_v1(stage):
    stage.play(
        USER
        + """
            withdrawals.withdraw 1 BTC 3
            void_hold 1                             -> owned_by_product owner=withdrawals
            settle_hold 1 1 user:2:BTC              -> owned_by_product
            withdrawals.settle 1 ETH 1 BTC 3        -> done
        then
            user:2:BTC      10
        """
    )


def test_trade_cannot_be_reversed_by_v1():
    stage = play(USER + " withdrawals.settle 1 ETH 1 BTC 3")
    stage.play(f"when\n reverse {stage.store.head().sequence} -> owned_by_product")


def test_expiry_of_withdrawals_leaves_other_holds_alone():
    play(
        USER
        + """
            place_hold user:1:BTC BTC 2 5
            wait 6
            withdrawals.expire_withdrawal 1         -> owned_by_product owner=ledger
            expire_hold 1                           -> done
        """
    )


def test_user_ids_with_colons_are_told_as_they_came():
    play(
        """
        when
            load_balances a:b%3A '[["BTC","2"]]'
            withdrawals.withdraw a:b%3A BTC 3       -> insufficient_funds
            withdrawals.withdraw a:b%3A BTC 1       -> done
            withdrawals.settle a:b%3A ETH 1 BTC 1   -> done withdrawal_id=w1
            withdrawals.withdraw a:b BTC 1          -> user_not_found user_id=a:b
        then
            user:a%3Ab%253A:BTC 1
        """
    )


# ── one round ─────────────────────────────────────────────────────────────────────


def test_commands_ask_for_what_they_need_at_once(stage):
    """With nothing cached, each is decided in its first round."""
    stage.play(
        USER
        + """
            withdrawals.set_limits BTC 5 9 user=1
            withdrawals.set_mode active
            withdrawals.withdraw 1 BTC 1 a
            withdrawals.withdraw 1 BTC 1 b expires_in_seconds=1
            withdrawals.withdraw 1 BTC 1
            withdrawals.withdraw 1 BTC 1
            withdrawals.settle 1 ETH 1 BTC 1 nix
            wait 1
        """
    )
    engine = stage.book.engine
    for command in (
        Withdraw("1", "BTC", "1", "c"),
        CancelWithdrawal("a"),
        ExpireWithdrawal(2),
        Settle("1", "ETH", "1", "BTC", "2", "w3"),
        Settle("1", "ETH", "1", "BTC", "0"),
    ):
        engine.cache.clear()
        before = engine.deferrals
        assert isinstance(stage.execute(command), Receipt)
        assert engine.deferrals == before, command


# ── one reason of several ─────────────────────────────────────────────────────────

DEFECTS = {
    "user_id_invalid": {"user": ""},
    "withdrawal_id_invalid": {"withdrawal_id": "w1"},
    "token_unknown": {"token": "XYZ"},
    "amount_invalid": {"quantity": "x"},
    "amount_not_positive": {"quantity": "0"},
    "expiry_invalid": {"expires_in_seconds": 0},
    "user_not_found": {"user": "9"},
    "account_closed": {"token": "USD"},
    "withdrawal_id_taken": {"withdrawal_id": "mine"},
    "withdrawals_reducing": {},
    "insufficient_funds": {"quantity": "11"},
}

TRADE_DEFECTS = {
    "user_id_invalid": {"user": ""},
    "token_unknown": {"bought_token": "XYZ"},
    "amount_invalid": {"sold_quantity": "x"},
    "amount_not_positive": {"bought_quantity": "-1"},
    "same_token": {"bought_token": "BTC"},
    "user_not_found": {"user": "9"},
    "withdrawal_cancelled": {"withdrawal_id": "gone"},
}


def first_of(codes, defects):
    """Return (what a command with these defects says, the refusal), or None if they exclude each other."""
    changes = [defects[code] for code in codes]
    if sum(map(len, changes)) > len({name for change in changes for name in change}):
        return None
    return {name: value for change in changes for name, value in change.items()}


@pytest.mark.parametrize("code", DEFECTS)
@pytest.mark.parametrize("other", DEFECTS)
def test_withdrawal_is_refused_for_the_reason_that_stands_first(code, other):
    fields = first_of({code, other}, DEFECTS)
    if fields is None:
        return
    mode = "reducing" if "withdrawals_reducing" in {code, other} else "active"
    stage = play(
        USER
        + f"""
            open_account user:1:USD
            close_account user:1:USD
            withdrawals.withdraw 1 BTC 1 mine
            withdrawals.set_mode {mode}
        """
    )
    command = {"user": "1", "token": "BTC", "quantity": "1", **fields}
    outcome = stage.execute(Withdraw(**command))
    assert isinstance(outcome, Refusal)
    assert outcome.reason.code == earlier(code, other)


@pytest.mark.parametrize("code", TRADE_DEFECTS)
@pytest.mark.parametrize("other", TRADE_DEFECTS)
def test_settlement_is_refused_for_the_reason_that_stands_first(code, other):
    fields = first_of({code, other}, TRADE_DEFECTS)
    if fields is None:
        return
    stage = play(USER + " withdrawals.withdraw 1 BTC 1 gone\n withdrawals.cancel_withdrawal gone")
    trade = {
        "user": "1",
        "bought_token": "ETH",
        "bought_quantity": "1",
        "sold_token": "BTC",
        "sold_quantity": "1",
        **fields,
    }
    outcome = stage.execute(Settle(**trade))
    assert isinstance(outcome, Refusal)
    assert outcome.reason.code == earlier(code, other)


def earlier(*codes):
    return next(reason.code for reason in Reason if reason.code in codes)

"""Loans against collateral: each requirement and each constraint of the seed, in its own words.

A loan of 1000 GC against 40 BESKAR stands at 50 percent where one brings 50, and at 80
percent where it brings 31.25.
"""

import pytest

from loan_stage import BLACK, FOR_EVER, MOS, Lending, at, quote, text, units
from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.refusals import Reason
from pennyweight.products.loans import shared
from pennyweight.products.loans.apply import ApplyForLoan, TopUpCollateral
from pennyweight.products.loans.life import (
    ActivateLoan,
    RearmWarning,
    RejectPrice,
    SetLiquidations,
    WarnLoan,
)
from pennyweight.products.loans.liquidate import BeginLiquidation, FailSlice, FillSlice
from pennyweight.products.loans.shared import LOAN, SLICE, Loan
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.sqlite import SQLiteStore
from scenarios import Submission


@pytest.fixture(params=["memory", "sqlite"])
def stage(request, tmp_path):
    """An empty stage, on each store in turn; at the end its book must prove itself."""
    if request.param == "memory":
        store = MemoryStore(Head(book="main", incarnation="first"))
    else:
        store = SQLiteStore.open(tmp_path, "main", new_incarnation="first")
    lending = Lending(store)
    yield lending
    report = lending.proof()
    if isinstance(store, SQLiteStore):
        store.close()
    assert report.ok, report.problems


def entry(stage: Lending, sequence: int) -> Entry:
    body = stage.store.entry(sequence)
    assert body is not None
    return decode_entry(body)


def events(stage: Lending, name: str) -> list[dict]:
    found = []
    for sequence in range(1, stage.store.head().sequence + 1):
        found += [e.body for e in entry(stage, sequence).events if e.name == name]
    return found


# ── register new loan applications ────────────────────────────────────────────────


def test_register_new_loan_application(stage):
    """The seed: allow the creation of new loan requests."""
    stage.play("""
        when
            [r1] loans.apply_for_loan L1 ann 1000       -> done loan=L1 status=new
            [r1] loans.apply_for_loan L1 ann 1000       -> replayed loan=L1 status=new
            [r1] loans.apply_for_loan L1 ann 1001       -> key_reused field=amount
            [r2] loans.apply_for_loan L1 ann 1000       -> loan_exists
            [r2] loans.apply_for_loan L2 ann 9.5e-7     -> done status=new
        then
            user:ann:GC     -
            user:ann:BESKAR -
    """)
    assert stage.loan("L2").amount == 95 * 10**16
    assert (stage.loan().collateral, stage.loan().balance) == (0, 0)
    assert events(stage, shared.APPLIED)[0] == {
        "loan_id": "L1",
        "borrower_id": "ann",
        "status": "new",
        "amount": "1000",
        "outstanding_balance": "0",
    }


def test_application_with_its_first_collateral(stage):
    stage.play("""
        when
            loans.apply_for_loan L1 ann 1000 40     -> done status=new
        then
            user:ann:BESKAR     40 held 40
            world:BESKAR        -40
            hold 1              open remaining 40
    """)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("L1 ann ten", "amount_invalid"),
        ("L1 ann NaN", "amount_invalid"),
        ("L1 ann 0", "amount_not_positive"),
        ("L1 ann -5", "amount_not_positive"),
        ("L1 ann 1e30", "amount_too_large"),
        ("L1 ann 1e-25", "amount_too_fine"),
        ("L1 ann 5 ten", "amount_invalid"),
        ("L1 ann 5 0", "amount_not_positive"),
        ("a/b ann 5", "loan_id_invalid"),
        ("'' ann 5", "loan_id_invalid"),
        (".. ann 5", "loan_id_invalid"),
        (f"{'x' * 256} ann 5", "loan_id_invalid"),
        (f"{'%' * 200} ann 5", "loan_id_invalid"),
        ("L1 '' 5", "user_id_invalid"),
        (f"L1 {':' * 200} 5", "user_id_invalid"),
    ],
)
def test_unexpected_inputs_are_refused_gracefully(stage, words, code):
    stage.play(f"when\n loans.apply_for_loan {words} -> {code}")
    assert stage.refused(ApplyForLoan("a\nb", "ann", "5")) == "loan_id_invalid"


def test_loan_id_that_no_json_can_carry(stage):
    assert stage.refused(ApplyForLoan("\ud800", "ann", "5")) == "loan_id_invalid"


# ── increase collateral balance ───────────────────────────────────────────────────


def test_increase_collateral_balance(stage):
    """All of a loan's collateral is one hold; what it held before is in the new one."""
    stage.play("""
        when
            loans.apply_for_loan L1 ann 1000
            [t1] loans.top_up_collateral L1 ann 15.5    -> done status=new
            [t1] loans.top_up_collateral L1 ann 15.5    -> replayed status=new
            loans.top_up_collateral L1 ann 24.5         -> done
        then
            user:ann:BESKAR     40 held 40
            hold 1              voided
            hold 2              open remaining 40
        when
            loans.top_up_collateral L1 bob 1            -> borrower_mismatch
            loans.top_up_collateral L9 ann 1            -> loan_not_found
            loans.top_up_collateral L1 ann 0            -> amount_not_positive
            loans.top_up_collateral a/b ann 1           -> loan_id_invalid
    """)
    assert text(stage.loan().collateral) == "40"


def test_collateral_cannot_be_spent_elsewhere(stage):
    stage.apply("1000", "40")
    stage.play("""
        given
            user:bob:BESKAR
        when
            transfer user:ann:BESKAR user:bob:BESKAR BESKAR 1   -> insufficient_funds held=40
            place_hold user:ann:BESKAR BESKAR 1                 -> insufficient_funds
            settle_hold 1 1 user:bob:BESKAR                     -> owned_by_product owner=loans
            void_hold 1                                         -> owned_by_product
            expire_hold 1                                       -> hold_not_due
            close_account user:ann:BESKAR                       -> account_has_holds
            withdrawals.withdraw ann BESKAR 1                   -> insufficient_funds
            withdrawals.settle ann GC 1 BESKAR 5                -> done shortage=5
            reverse 10                                          -> owned_by_product
        then
            user:ann:BESKAR     40 held 40 owed 5
    """)
    stage.top_up("3")  # goes on the hold, not to what is owed
    stage.play("""
        then
            user:ann:BESKAR     43 held 43 owed 5
    """)


def test_collateral_of_a_closed_account(stage):
    stage.play("""
        given
            user:ann:BESKAR
        when
            close_account user:ann:BESKAR
            loans.apply_for_loan L1 ann 1000 40     -> account_closed
            loans.apply_for_loan L1 ann 1000        -> done
            loans.top_up_collateral L1 ann 40       -> account_closed
    """)


# ── loan activation ───────────────────────────────────────────────────────────────


def test_loan_activation_at_exactly_50_percent(stage):
    """The seed: 100% of their required Beskar collateral has been successfully posted."""
    stage.apply("1000")
    assert stage.refused(stage.by_price(ActivateLoan, at("50"))) == "loan_not_due"
    stage.top_up("39.999999999999999999999999")
    assert stage.refused(stage.by_price(ActivateLoan, at("50"))) == "loan_not_due"
    stage.top_up("1e-24")
    assert stage.refused(stage.by_price(ActivateLoan, at("49.999999999999"))) == "loan_not_due"
    assert stage.activate("50").status == "active"
    stage.play("""
        then
            user:ann:GC         1000
            house:GC            -1000
            user:ann:BESKAR     40 held 40
    """)
    assert text(stage.loan().balance) == "1000"
    assert events(stage, shared.ACTIVATED)[0]["outstanding_balance"] == "1000"


def test_loan_activation_takes_the_best_market_at_the_loans_size(stage):
    """40 BESKAR are valued at what 50 bring; the better market counts."""
    stage.apply("1000", "40")
    low = quote("60", "55", "49", "48")
    assert stage.refused(stage.by_price(ActivateLoan, (low,))) == "loan_not_due"
    better = quote("51", "51", "50", "40", market=BLACK)
    stage.done(stage.by_price(ActivateLoan, (low, better)))


def test_loan_activation_only_once(stage):
    stage.apply("1000", "40")
    command = stage.by_price(ActivateLoan, at("50"))
    stage.done(command)
    assert stage.refused(command) == "loan_changed"
    assert stage.refused(stage.by_price(ActivateLoan, at("50"))) == "loan_not_due"
    assert stage.posted("user:ann:GC") == "1000"


def test_loan_activation_into_a_closed_account(stage):
    stage.apply("1000", "40")
    stage.play("""
        given
            user:ann:GC
        when
            close_account user:ann:GC
    """)
    assert stage.refused(stage.by_price(ActivateLoan, at("50"))) == "account_closed"
    assert stage.loan().status == "new"


def test_loan_activation_needs_fresh_quotes(stage):
    stage.apply("1000", "40")
    command = stage.by_price(ActivateLoan, at("50"), until=stage.now)
    assert stage.refused(command) == "quotes_stale"
    stage.done(stage.by_price(ActivateLoan, at("50"), until=stage.now + 1))


def test_loan_disbursement_pays_back_what_is_owed(stage):
    """A payout is a credit like any other."""
    stage.play("""
        given
            user:ann:GC     0
            user:ann:USD    5
        when
            withdrawals.settle ann USD 1 GC 300     -> done shortage=300
    """)
    stage.active()
    stage.play("""
        then
            user:ann:GC     700 owed 0
    """)


# ── warnings ──────────────────────────────────────────────────────────────────────


def test_warning_at_70_percent_rearmed_below_60(stage):
    """1000 against 40 stands at 70 percent at 35.714…, at 60 percent at 41.666…"""
    stage.active()
    assert stage.refused(stage.by_price(WarnLoan, at("35.72"))) == "loan_not_due"
    stage.warn("35.71")
    assert stage.refused(stage.by_price(WarnLoan, at("35.71"))) == "loan_not_due"
    assert stage.refused(stage.by_price(RearmWarning, at("41.66"))) == "loan_not_due"
    stage.rearm("41.67")
    assert stage.refused(stage.by_price(RearmWarning, at("41.67"))) == "loan_not_due"
    stage.warn("35.71")
    assert len(events(stage, shared.WARNED)) == 2


def test_warning_bounds_are_exact(stage):
    """7 against 10 is 70 percent at exactly 1, and 60 percent is not below 60."""
    stage.apply("7", "20")
    stage.activate("1")
    loan = stage.loan()
    assert loan.balance * 10 == 7 * units("10")
    assert stage.refused(stage.by_price(WarnLoan, at("0.500000000000000000000001"))) == (
        "loan_not_due"
    )
    stage.warn("0.5")
    stage.apply("6", "20", loan="L2")
    stage.activate("0.6", loan="L2")
    stage.warn("0.4", loan="L2")
    assert stage.refused(stage.by_price(RearmWarning, at("0.5"), "L2")) == "loan_not_due"
    stage.rearm("0.500000000000000000000001", loan="L2")


# ── automated liquidation ─────────────────────────────────────────────────────────


def test_liquidation_threshold_of_80_percent_is_inclusive(stage):
    stage.active()
    above = stage.by_price(BeginLiquidation, at("31.250000000000000000000001"))
    assert stage.refused(above) == "loan_not_due"
    answer = stage.begin(*at("31.25"))
    assert (answer.status, answer.placed) == ("liquidating", ("L1/000001",))
    assert events(stage, shared.LIQUIDATING)[0]["outstanding_balance"] == "1000"


def test_liquidation_sells_just_enough_collateral(stage):
    """ "Just enough collateral to cover the disbursed loan amount": 1000 / 30 at 8 decimals."""
    stage.active()
    stage.begin(*at("30"))
    part = stage.slice(1)
    assert text(part.quantity) == "33.33333334"
    assert (part.market, text(part.price), part.request_id) == (MOS, "30", "first-1")
    assert stage.fill_as_quoted(1).status == "liquidated"
    stage.play("""
        then
            user:ann:BESKAR         6.66666666 held 0
            user:ann:GC             1000.0000002
            house:GC                0
            venue:mos_espa:BESKAR   33.33333334
            venue:mos_espa:GC       -1000.0000002
            hold 1                  voided
    """)
    assert events(stage, shared.LIQUIDATED) == [
        {
            "loan_id": "L1",
            "borrower_id": "ann",
            "collateral_sold": "33.33333334",
            "collateral_sold_value": "1000.0000002",
            "outstanding_collateral": "6.66666666",
            "outstanding_balance": "0",
        }
    ]


def test_liquidation_sells_at_most_100_in_a_slice(stage):
    stage.active("10000", "400")
    stage.begin(*at("30"))
    assert text(stage.slice(1).quantity) == "100"
    assert stage.fill_as_quoted(1).status == "liquidating"
    for number in (2, 3):
        stage.place(*at("30"))
        stage.fill_as_quoted(number)
    stage.place(*at("30"))
    assert text(stage.slice(4).quantity) == "33.33333334"
    assert stage.fill_as_quoted(4).status == "liquidated"


def test_liquidation_splits_over_both_markets_by_margin(stage):
    stage.active("5000", "200")
    one, other = quote("30", "30", "29", "25"), quote("29.5", "29.4", "29", "28", market=BLACK)
    answer = stage.begin(one, other)
    assert len(answer.placed) == 2
    parts = [stage.slice(1), stage.slice(2)]
    assert {part.market for part in parts} == {MOS, BLACK}
    raised = sum(part.quantity * part.price // shared.ONE for part in parts)
    assert raised >= units("4000")


def test_liquidation_must_not_happen_more_than_once(stage):
    """The seed: a loan must not be liquidated more than once."""
    stage.active()
    command = stage.by_price(BeginLiquidation, at("30"))
    first, second = stage.execute_many([Submission(command), Submission(command)])
    assert isinstance(first, Receipt)
    assert isinstance(second, Refusal)
    assert second.reason is Reason.LOAN_CHANGED
    assert stage.refused(stage.by_price(BeginLiquidation, at("30"))) == "loan_not_due"
    stage.fill_as_quoted(1)
    assert stage.refused(stage.by_price(BeginLiquidation, at("30"))) == "loan_not_due"
    assert stage.refused(stage.placing(*at("30"))) == "loan_not_due"
    assert len(events(stage, shared.LIQUIDATED)) == 1


def test_liquidation_bars_collateral_for_a_loan_that_has_already_been_liquidated(stage):
    (
        """"It must not be possible to post collateral for a loan that has already been liquidated."""
        ""
    )
    stage.active()
    stage.begin(*at("30"))
    stage.play("""
        when
            loans.top_up_collateral L1 ann 1    -> loan_liquidating
    """)
    stage.fill_as_quoted(1)
    stage.play("""
        when
            loans.top_up_collateral L1 ann 1    -> loan_liquidated
        then
            world:BESKAR    -40
    """)


@pytest.mark.parametrize("is_first", [True, False])
def test_liquidation_and_a_top_up_at_the_same_time(stage, is_first):
    """Either the collateral counts and nothing begins, or it is refused; never both."""
    stage.active()
    begin = Submission(stage.by_price(BeginLiquidation, at("31")))
    top_up = Submission(TopUpCollateral("L1", "ann", "10"))
    both = [top_up, begin] if is_first else [begin, top_up]
    codes = [stage.code(outcome) for outcome in stage.execute_many(both)]
    assert codes == ["done", "loan_changed" if is_first else "loan_liquidating"]
    assert stage.loan().status == ("active" if is_first else "liquidating")


def test_liquidation_must_continue_even_if_the_ltv_temporarily_drops(stage):
    """ "Once the liquidation process begins, it must continue", wherever the price goes."""
    stage.active("10000", "400")
    stage.begin(*at("30"))
    stage.fail(1)
    stage.place(*at("300"))  # 8 percent
    assert text(stage.slice(2).quantity) == "33.33333334"
    assert stage.fill_as_quoted(2).status == "liquidated"


def test_liquidation_must_continue_because_of_failures(stage):
    """Ten failures in a row, each with a request id of its own."""
    stage.active()
    stage.begin(*at("30"))
    for number in range(1, 11):
        assert stage.fail(number, "the order book is on fire").status == "liquidating"
        stage.place(*at("30"), quote("29", market=BLACK))
    ids = {stage.slice(number).request_id for number in range(1, 12)}
    assert len(ids) == 11
    assert stage.fill_as_quoted(11).status == "liquidated"
    assert (stage.loan().slices, text(stage.loan().sold)) == (11, "33.33333334")


def test_liquidation_in_doubt_is_never_sold_elsewhere(stage):
    """ "Filled + in doubt" never exceeds the need; while an order is out its market gets no other."""
    stage.active("5000", "200")
    stage.begin(*at("30"))
    assert text(stage.slice(1).quantity) == "100"
    assert stage.refused(stage.placing(*at("30"))) == "loan_not_due"
    stage.place(quote("28", market=BLACK))
    assert text(stage.slice(2).quantity) == "71.42857143"  # what the first will not raise
    assert stage.refused(stage.placing(*at("30"), quote("28", market=BLACK))) == "loan_not_due"
    assert stage.fill_as_quoted(2).status == "liquidating"
    assert stage.fill_as_quoted(1).status == "liquidated"


def test_liquidation_with_a_better_price_than_quoted_gives_the_surplus_to_the_client(stage):
    stage.active()
    stage.begin(*at("30"))
    stage.fill(1, "33.33333334", "1100")
    stage.play("""
        then
            user:ann:GC     1100
            house:GC        0
    """)
    assert text(stage.loan().surplus) == "100"


def test_liquidation_with_a_worse_price_goes_on(stage):
    stage.active()
    stage.begin(*at("30"))
    assert stage.fill(1, "33.33333334", "900").status == "liquidating"
    stage.place(*at("30"))
    assert text(stage.slice(2).quantity) == "3.33333334"
    assert stage.fill_as_quoted(2).status == "liquidated"


def test_liquidation_with_a_partial_fill_goes_on(stage):
    stage.active()
    stage.begin(*at("30"))
    assert stage.fill(1, "10", "300").status == "liquidating"
    stage.place(*at("30"))
    assert text(stage.slice(2).quantity) == "23.33333334"


def test_liquidation_that_empties_the_collateral_books_the_deficit(stage):
    stage.active()
    stage.begin(*at("20"))
    assert text(stage.slice(1).quantity) == "40"
    assert stage.fill(1, "40", "790").status == "liquidated"
    stage.play("""
        then
            user:ann:BESKAR             0 held 0
            user:ann:GC                 1000
            house:GC                    0
            loan:L1:deficit:GC          -210
            hold 1                      settled
    """)
    assert text(stage.loan().balance) == "210"
    assert events(stage, shared.LIQUIDATED)[0]["outstanding_balance"] == "210"


def test_liquidation_returns_dust_that_cannot_be_traded(stage):
    stage.active("1000", "40.000000005")
    stage.begin(*at("20"))
    assert text(stage.slice(1).quantity) == "40"
    assert stage.fill_as_quoted(1).status == "liquidated"
    stage.play("""
        then
            user:ann:BESKAR     0.000000005 held 0
            loan:L1:deficit:GC  -200
    """)


def test_liquidation_of_nothing_but_dust_ends_at_once(stage):
    """Less than 1e-8 BESKAR cannot be sold; it must not wait for a market for ever."""
    stage.active("1e-9", "1e-9", "2")
    answer = stage.begin(*at("1"))
    assert (answer.status, answer.placed) == ("liquidated", ())
    stage.play("""
        then
            user:ann:BESKAR     0.000000001 held 0
            loan:L1:deficit:GC  -0.000000001
    """)


# ── facts cannot be refused ───────────────────────────────────────────────────────


def test_fill_is_booked_once(stage):
    stage.active()
    stage.begin(*at("30"))
    command = stage.filling(1, "33.33333334", "1000")
    stage.done(command)
    assert stage.refused(command) == "slice_ended"
    assert stage.refused(FailSlice("L1", 1, "late", "ann", 1)) == "slice_ended"
    assert stage.refused(FillSlice("L1", 7, "o", "1", "1", "ann", 1)) == "slice_not_found"
    assert stage.refused(FillSlice("L9", 1, "o", "1", "1", "ann", 1)) == "loan_not_found"


def test_fill_of_more_than_was_asked_for(stage):
    stage.active()
    stage.begin(*at("30"))
    stage.fill(1, "35", "1050")
    stage.play("""
        then
            user:ann:BESKAR     5 held 0
            user:ann:GC         1050
    """)


def test_fill_of_more_than_there_is_comes_from_suspense(stage):
    """Also while another slice is out, which then finds nothing left."""
    stage.active("5000", "200")
    stage.begin(*at("25"))
    stage.place(quote("25", market=BLACK))
    stage.fill(1, "201", "4000")
    assert stage.loan().status == "liquidating"
    stage.fill(2, "100", "500")
    assert stage.loan().status == "liquidated"
    stage.play("""
        then
            suspense:BESKAR             -101
            user:ann:BESKAR             0 held 0
            venue:mos_espa:BESKAR       201
            venue:black_spire:BESKAR    100
            loan:L1:deficit:GC          -500
    """)


def test_fill_for_nothing(stage):
    stage.active()
    stage.begin(*at("30"))
    assert stage.fill(1, "33.33333334", "0").status == "liquidating"


def test_fill_after_the_client_closed_the_account(stage):
    stage.active()
    stage.begin(*at("30"))
    stage.play("""
        when
            transfer user:ann:GC house:GC GC 1000
            close_account user:ann:GC
    """)
    stage.fill(1, "33.33333334", "1100")
    stage.play("""
        then
            suspense:GC     100
            user:ann:GC     0 closed
            user:ann:BESKAR 6.66666666 held 0
    """)


def test_fill_of_a_client_who_can_hold_no_more(stage):
    stage.active()
    stage.begin(*at("30"))
    most = 10**14 - 1000
    stage.play(f"when\n transfer house:rich:GC user:ann:GC GC {most - 1}")
    stage.fill(1, "33.33333334", "1100")
    stage.play(f"""
        then
            suspense:GC     100
            user:ann:GC     {10**14 - 1}
    """)


@pytest.mark.parametrize("is_closed", [False, True])
def test_fill_with_a_deficit_account_that_somebody_opened_before(stage, is_closed):
    stage.active()
    stage.play("when\n open_account loan:L1:deficit:GC -50")
    if is_closed:
        stage.play("when\n close_account loan:L1:deficit:GC")
    stage.begin(*at("20"))
    assert stage.fill_as_quoted(1).status == "liquidated"
    stage.play("""
        then
            suspense:GC         -200
            loan:L1:deficit:GC  0
    """)


def test_fill_with_a_deficit_account_whose_floor_is_low_enough(stage):
    stage.active()
    stage.play("when\n open_account loan:L1:deficit:GC -200")
    stage.begin(*at("20"))
    stage.fill_as_quoted(1)
    stage.play("""
        then
            suspense:GC         -
            loan:L1:deficit:GC  -200
    """)


def test_fill_by_somebody_who_knows_neither_borrower_nor_hold(stage):
    """The hints only save rounds; whatever must be read can be read."""
    stage.active()
    stage.begin(*at("20"))
    stage.done(FillSlice("L1", 1, "o", "40", "800", "nobody", 0))
    assert stage.loan().status == "liquidated"


@pytest.mark.parametrize("name", ["a:b", "100%", "%3A", "ünï çödé", "status:new", "x" * 255])
def test_odd_loan_ids(stage, name):
    stage.apply("1000", "40", loan=name, borrower=f"b:{name[:40]}/%")
    stage.activate("50", loan=name)
    stage.begin(*at("20"), loan=name)
    assert stage.fill_as_quoted(1, loan=name).status == "liquidated"
    records = stage.store.records(SLICE, label=f"loan:{name}")
    assert [record.id for record in records] == [f"{name}/000001"]
    found = stage.store.records(LOAN, label=f"borrower:b:{name[:40]}/%")
    assert [record.id for record in found] == [name]
    assert stage.posted(shared.deficit_account(name)) == "-200"


# ── pausing, guards, audit ────────────────────────────────────────────────────────


def test_pause_never_strands_a_liquidation_under_way(stage):
    stage.active("10000", "400")
    stage.apply("1000", "40", loan="L2")
    stage.apply("1000", "40", loan="L3")
    stage.activate("50", loan="L2")
    stage.begin(*at("30"))
    stage.done(SetLiquidations("no_new"))
    assert stage.refused(stage.by_price(BeginLiquidation, at("30"), "L2")) == "liquidations_paused"
    stage.activate("50", loan="L3")
    stage.done(SetLiquidations("halt_new_and_activation"))
    assert stage.refused(stage.by_price(BeginLiquidation, at("30"), "L2")) == "liquidations_paused"
    stage.apply("1000", "40", loan="L4")
    assert stage.refused(stage.by_price(ActivateLoan, at("50"), "L4")) == "liquidations_paused"
    stage.warn("30", loan="L2")
    stage.fill_as_quoted(1)
    stage.place(*at("30"))
    stage.done(SetLiquidations("normal"))
    stage.begin(*at("30"), loan="L2")


BAD_QUOTES = [
    (),
    (quote("30"), quote("31")),
    (quote("30", levels=(2,)),),
    (quote("30", "30", levels=(10, 1)),),
    (quote("0"),),
    (quote("30", "31", "31", "31"),),
    (quote("30", "300", "1500", "3000"),),
    (quote("30", "3", "3", "3"),),
    (quote("30", levels=()),),
]


@pytest.mark.parametrize("quotes", BAD_QUOTES)
def test_quotes_that_no_decision_can_stand_on(stage, quotes):
    stage.active("10000", "400")
    for kind in (WarnLoan, BeginLiquidation):
        assert stage.refused(stage.by_price(kind, quotes)) == "quotes_invalid"
    stage.begin(*at("30"))
    stage.fill_as_quoted(1)
    assert stage.refused(stage.placing(*quotes)) == "quotes_invalid"


def test_quotes_that_do_not_list_the_loans_size(stage):
    stage.active()
    few = (quote("30", "30", levels=(1, 10)),)
    assert stage.refused(stage.by_price(BeginLiquidation, few)) == "loan_not_due"
    stage.begin(*at("30"))
    stage.fail(1)
    stage.place(*few)  # sells what such a market takes
    assert text(stage.slice(2).quantity) == "10"


def test_auditing_keeps_a_complete_history_of_all_operations(stage):
    """Every version of a loan points to the one before, back to the application."""
    stage.active()
    stage.warn("35")
    stage.begin(*at("30"))
    stage.fail(1)
    stage.place(*at("29"))
    stage.fill_as_quoted(2)
    commands, sequence = [], stage.loan().entry
    while sequence:
        found = entry(stage, sequence)
        commands.append(found.command)
        record = next(record for record in found.records if record.kind == LOAN)
        sequence = record.read(Loan).previous
    assert commands[::-1] == [
        "apply_for_loan", "activate_loan", "warn_loan", "begin_liquidation", "fail_slice",
        "place_slices", "fill_slice",
    ]  # fmt: skip
    assert stage.slice(1).quotes == at("30")
    assert stage.slice(1).state == "failed"


def test_rejected_prices_are_kept(stage):
    stage.done(RejectPrice("prices", "m1", "no JSON", "{"))
    assert entry(stage, stage.store.head().sequence).command == "reject_price"


def test_list_of_loans_by_status_and_borrower(stage):
    stage.active()
    stage.apply("5", loan="L2", borrower="bob")
    for label, names in (
        ("status:active", ["L1"]),
        ("status:new", ["L2"]),
        ("borrower:bob", ["L2"]),
        (None, ["L1", "L2"]),
    ):
        assert [record.id for record in stage.store.records(LOAN, label=label)] == names


def test_every_command_names_itself():
    """What is counted are fields that there are; only a base without a name has no answer."""
    kinds = [kind for kind in Command.__subclasses__() if "products.loans" in kind.__module__]
    kinds += [child for kind in kinds for child in kind.__subclasses__()]
    named = [kind for kind in kinds if hasattr(kind, "name")]
    assert len(named) == 11
    for kind in named:
        assert set(kind.counted) <= set(kind.__struct_fields__)
    assert all(hasattr(kind, "name") == hasattr(kind, "answer_type") for kind in kinds)


def test_balances_near_their_limit(stage):
    most = f"{10**14 - 1}.{'9' * 24}"
    stage.apply(most, most)
    assert stage.refused(TopUpCollateral("L1", "ann", "1")) == "balance_too_large"
    stage.activate("2")
    stage.begin(*at("1.25"))
    stage.fill_as_quoted(1)
    assert stage.loan().status == "liquidating"
    assert stage.now < FOR_EVER

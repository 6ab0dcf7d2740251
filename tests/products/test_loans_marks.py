"""What waits for a price is found by it: no loan that is due is missed, at any level."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pennyweight.ledger.records import RANK_MAX, RANK_MIN
from pennyweight.products.loans.shared import (
    FALLING,
    LEVELS,
    LTV_REARMED,
    ONE,
    RISING,
    STEP,
    Level,
    Loan,
    Quote,
    highest_rank,
    index_name,
    is_at_least,
    is_at_most,
    level_of,
    ltv_text,
    mark_price,
    marks_of,
    price_at,
    trigger_price,
)

amounts = st.one_of(st.integers(1, 10**38 - 1), st.integers(1, 10**6), st.integers(10**20, 10**30))
wide_prices = amounts


def is_due(what, balance, collateral, price):
    """Compare exactly, as the rules do."""
    if what == "activate":
        return is_at_most(RISING[what], balance, collateral, price)
    if what == "rearm":
        return not is_at_least(LTV_REARMED, balance, collateral, price)
    return is_at_least(FALLING[what], balance, collateral, price)


def loan_for(what, balance, collateral):
    status = "new" if what == "activate" else "active"
    is_warned = what == "rearm"
    return Loan(
        "b", balance, status, 1, 1, collateral=collateral, balance=balance, is_warned=is_warned
    )


def mark_for(what, balance, collateral):
    marks = marks_of(loan_for(what, balance, collateral))
    [mark] = [mark for mark in marks if mark.index.split(".")[1] == what]
    return mark


kinds = st.sampled_from([*FALLING, *RISING])


@given(kinds, amounts, amounts, wide_prices)
@example("liquidate", 10**38 - 1, 1, 10**38 - 1)
@example("activate", 10**38 - 1, 1, 10**38 - 1)
@example("liquidate", 1, 10**38 - 1, 1)
@example("activate", 1, 10**38 - 1, 1)
@settings(max_examples=500, deadline=None)
def test_due_at_a_price_is_found_by_rank(what, balance, collateral, price):
    mark = mark_for(what, balance, collateral)
    assert RANK_MIN <= mark.rank <= RANK_MAX
    assert RANK_MIN <= highest_rank(what, price) <= RANK_MAX
    assert mark.index == index_name(what, level_of(collateral))
    if is_due(what, balance, collateral, price):
        assert mark.rank <= highest_rank(what, price)


@given(kinds, amounts, amounts, st.integers(-3, 3), st.integers(-2 * STEP, 2 * STEP))
@settings(max_examples=500, deadline=None)
def test_due_around_the_trigger_is_found_by_rank(what, balance, collateral, near, far):
    """At and just beside the trigger, by units of the price and by ranks."""
    percent = {**FALLING, **RISING}[what]
    trigger = trigger_price(percent, balance, collateral)
    for price in (trigger + near, trigger + far):
        if price > 0 and is_due(what, balance, collateral, price):
            assert mark_for(what, balance, collateral).rank <= highest_rank(what, price)


@given(kinds, st.integers(10**22, 10**26), st.integers(10**22, 10**26), wide_prices)
@settings(max_examples=300, deadline=None)
def test_candidates_are_few(what, balance, collateral, price):
    """Who is found but not due stands within one rank of the price."""
    rank, highest = mark_for(what, balance, collateral).rank, highest_rank(what, price)
    if rank <= highest and not is_due(what, balance, collateral, price) and highest < RANK_MAX:
        trigger = trigger_price({**FALLING, **RISING}[what], balance, collateral)
        assert abs(trigger - price) <= 2 * STEP


@given(st.integers(1, 10**27), st.data())
@settings(max_examples=300, deadline=None)
def test_every_level_is_valued_as_the_quotes_list_it(collateral, data):
    """The level of the mark gives the price at the smallest listed quantity that is enough."""
    listed = sorted(data.draw(st.sets(st.sampled_from(LEVELS), min_size=1)))
    quote = Quote("mos_espa", "q", 1, 2, tuple(Level(n, 1000 - n) for n in listed))
    size = min(collateral, 100 * ONE)
    enough = [n for n in listed if n * ONE >= size]
    expected = 1000 - enough[0] if enough else None
    assert mark_price((quote,), level_of(collateral)) == expected == price_at(quote, size)


@given(st.sampled_from(list(FALLING)), amounts, amounts, amounts, amounts)
@settings(max_examples=300, deadline=None)
def test_the_highest_loan_to_value_comes_first(what, balance, collateral, more, less):
    """Of two loans, one that is worse in a whole rank is never behind the other."""
    worse, better = balance + more, max(1, collateral - less)
    first = mark_for(what, max(worse, balance), min(collateral, better))
    assert first.rank <= mark_for(what, balance, collateral).rank


@given(amounts, amounts)
@settings(max_examples=300, deadline=None)
def test_trigger_price_is_the_highest_that_is_due(balance, collateral):
    trigger = trigger_price(80, balance, collateral)
    assert is_at_least(80, balance, collateral, trigger)
    assert not is_at_least(80, balance, collateral, trigger + 1)


@given(amounts, amounts, amounts)
def test_loan_to_value_as_text_is_rounded_up(balance, collateral, price):
    parts = int(ltv_text(balance, collateral, price).replace(".", ""))
    assert parts * collateral * price >= balance * 1_000_000 * ONE
    assert (parts - 1) * collateral * price < balance * 1_000_000 * ONE


def test_no_marks_without_collateral_or_after_the_beginning():
    assert list(marks_of(Loan("b", 5, "new", 1, 1))) == []
    assert list(marks_of(Loan("b", 5, "active", 1, 1, balance=5))) == []
    assert list(marks_of(Loan("b", 5, "liquidating", 1, 1, balance=5, collateral=5))) == []
    assert list(marks_of(Loan("b", 5, "liquidated", 1, 1, collateral=5))) == []
    assert ltv_text(5, 0, 5) is None
    assert trigger_price(80, 5, 0) is None

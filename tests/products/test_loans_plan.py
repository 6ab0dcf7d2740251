"""How much is sold where: the plan beside a brute-force minimum, and what holds of every plan."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loan_stage import BLACK, MOS, quote, text, units
from pennyweight.products.loans.plan import is_minimal, just_enough, plan
from pennyweight.products.loans.shared import (
    LEVELS,
    ONE,
    STEP,
    Level,
    Quote,
    price_at,
    quote_problem,
    value_of,
)

MARKETS = (MOS, BLACK)


@st.composite
def quotes_of(draw, market):
    """A sound quote: some of the quantities, prices that fall but bring more in all."""
    quantities = sorted(draw(st.sets(st.sampled_from(LEVELS), min_size=1)))
    sell = draw(st.one_of(st.integers(1, 10**6), st.integers(10**20, 10**27)))
    levels = [Level(quantities[0], sell)]
    for quantity in quantities[1:]:
        least = levels[-1].quantity * levels[-1].sell // quantity + 1
        if least > sell:
            break
        sell = draw(st.integers(max(least, sell * 9 // 10), sell))
        levels.append(Level(quantity, sell))
    made = Quote(market, "q", 1, 2, tuple(levels))
    assert not quote_problem(made.levels)
    return made


some_quotes = st.one_of(
    st.tuples(quotes_of(MOS)),
    st.tuples(quotes_of(BLACK)),
    st.tuples(quotes_of(MOS), quotes_of(BLACK)),
)
amounts = st.one_of(st.integers(1, 10**6), st.integers(10**18, 10**30))
collaterals = st.integers(1, 300 * 10**8).map(lambda steps: steps * STEP)


def brings(quantity, made):
    return Fraction(quantity * price_at(made, quantity), ONE)


@given(amounts, collaterals, some_quotes)
@settings(max_examples=400, deadline=None)
def test_plan_never_above_need_collateral_or_100_per_market(remaining, free, quotes):
    by_market = {made.market: made for made in quotes}
    parts = plan(remaining, free, quotes)
    assert parts
    assert len({part.market for part in parts}) == len(parts)
    missing, left = remaining, free
    for index, part in enumerate(parts):
        made = by_market[part.market]
        assert missing > 0
        assert 0 < part.quantity <= min(left, made.levels[-1].quantity * ONE)
        assert part.quantity % STEP == 0
        assert part.price == price_at(made, part.quantity)
        assert part.expected == value_of(part.quantity, part.price)
        assert is_minimal(part, missing, left, made, is_last=index == len(parts) - 1)
        if part.quantity > STEP:  # one step less would not have been too much for the need
            assert (
                brings(part.quantity - STEP, made) < missing
                or price_at(made, part.quantity - STEP) > part.price
            )
        missing -= part.expected
        left -= part.quantity
    sizes = [made.levels[-1].quantity * ONE for made in quotes]
    is_all_sold = len(parts) == len(quotes) and any(
        part.quantity == by_market[part.market].levels[-1].quantity * ONE for part in parts
    )
    assert missing <= 0 or left < STEP or is_all_sold or sum(sizes) <= free or len(quotes) > 1


@given(amounts, collaterals, st.tuples(quotes_of(MOS)))
@settings(max_examples=300, deadline=None)
def test_plan_in_one_market_raises_all_or_sells_all_it_can(remaining, free, quotes):
    [part] = plan(remaining, free, quotes)
    most = min(free, quotes[0].levels[-1].quantity * ONE)
    assert brings(part.quantity, quotes[0]) >= remaining or part.quantity == most


@given(amounts, amounts, collaterals, quotes_of(MOS))
@settings(max_examples=300, deadline=None)
def test_just_enough_is_monotone_in_the_need(one, other, free, made):
    low, high = sorted((one, other))
    assert just_enough(low, free, made) <= just_enough(high, free, made)


@given(amounts, collaterals, collaterals, quotes_of(MOS))
@settings(max_examples=300, deadline=None)
def test_just_enough_is_monotone_in_the_collateral(remaining, one, other, made):
    low, high = sorted((one, other))
    assert just_enough(remaining, low, made) <= just_enough(remaining, high, made)


GRID = [step * ONE // 4 for step in range(1, 61)]


def quarter_quote(sells, market=MOS):
    return Quote(
        market, "q", 1, 2, tuple(Level(n, s) for n, s in zip((1, 10), sells, strict=False))
    )


@given(
    st.integers(1, 300),
    st.integers(1, 60),
    st.integers(2, 40).flatmap(
        lambda high: st.tuples(st.just(high), st.integers(high // 10 + 1, high))
    ),
)
@settings(max_examples=300, deadline=None)
def test_just_enough_is_the_brute_force_minimum(need, quarters, sells):
    """On small numbers every quantity is tried; what is chosen is less than a step above it."""
    made = quarter_quote(tuple(sell * ONE for sell in sells))
    remaining, free = need * ONE, quarters * ONE // 4
    chosen = just_enough(remaining, free, made)
    enough = [
        quantity
        for quantity in GRID
        if quantity <= min(free, 10 * ONE) and brings(quantity, made) >= remaining
    ]
    if brings(chosen, made) >= remaining:
        exact = min(
            math.ceil(Fraction(remaining * ONE, level.sell))
            for level in made.levels
            if math.ceil(Fraction(remaining * ONE, level.sell)) <= level.quantity * ONE
        )
        assert exact <= chosen < exact + STEP
        assert not enough or chosen <= min(enough)
    else:
        assert chosen == min(free, 10 * ONE)
        assert not enough


@given(st.integers(1, 400), st.integers(20, 40), st.integers(20, 40))
@settings(max_examples=200, deadline=None)
def test_plan_over_two_flat_markets_is_the_brute_force_minimum(need, one, other):
    """Where prices do not depend on the size, the better market is filled before the other."""
    quotes = (quote(str(one)), quote(str(other), market=BLACK))
    parts = plan(need * ONE, 1000 * ONE, quotes)
    sold = sum(part.quantity for part in parts)
    best = max(one, other)
    exact = math.ceil(Fraction(need * ONE, best))
    assert exact <= sold < exact + STEP
    assert [part.market for part in parts] == [MOS if one >= other else BLACK]


def test_plan_of_the_domain_page():
    """A larger sale is divided where the margins of both markets meet."""
    quotes = (
        quote("49.75", "49.25", "48.9", "48.75"),
        quote("49.8", "49.38", "49.09", "48.97", market=BLACK),
    )
    parts = plan(units("5000"), units("1000"), quotes)
    assert {part.market for part in parts} == set(MARKETS)
    total = sum(part.expected for part in parts)
    assert total >= units("5000")
    alone = plan(units("4897"), units("1000"), quotes[1:])
    assert [text(part.quantity) for part in alone] == ["100"]


def test_plan_of_nothing():
    assert plan(0, ONE, (quote("5"),)) == []
    assert plan(-5, ONE, (quote("5"),)) == []
    assert plan(5, 0, (quote("5"),)) == []
    assert plan(5, ONE, ()) == []


@pytest.mark.parametrize("change", [STEP, -STEP])
def test_minimal_is_exact_to_the_step(change):
    made = quote("30")
    [part] = plan(units("1000"), units("40"), (made,))
    assert is_minimal(part, units("1000"), units("40"), made, is_last=True)
    wrong = part._replace(
        quantity=part.quantity + change, expected=value_of(part.quantity + change, part.price)
    )
    assert not is_minimal(wrong, units("1000"), units("40"), made, is_last=True)


@given(amounts, collaterals, st.tuples(quotes_of(MOS), quotes_of(BLACK)))
@settings(max_examples=300, deadline=None)
def test_plan_sells_no_more_than_one_market_alone_would_take(remaining, free, quotes):
    parts = plan(remaining, free, quotes)
    brought = sum(part.expected for part in parts)
    for made in quotes:
        [alone] = plan(remaining, free, [made])
        if alone.expected >= remaining:
            assert brought >= remaining
            assert sum(part.quantity for part in parts) <= alone.quantity
        else:
            assert brought >= min(remaining, alone.expected)


def test_split_by_margins_that_one_market_alone_beats():
    """The split's second slice reaches into a larger size, whose average is worse."""
    quotes = [
        quote("41", "40.5", "40", "39", market=MOS),
        quote("40.9", "40.2", "39.5", "38", market=BLACK),
    ]
    assert [(part.market, part.quantity) for part in plan(1000 * ONE, 40 * ONE, quotes)] == [
        (MOS, 25 * ONE)
    ]

"""Amounts and lots: what a plan's points are in money, and what holds of them to the smallest unit."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pennyweight.ledger.money import format_amount, parse
from pennyweight.ledger.refusals import Refused
from pennyweight.products.portfolios.orders import check_holdings, number_of, priced, valued
from pennyweight.products.portfolios.plan import plan
from pennyweight.products.portfolios.shared import (
    ASSETS_MAX,
    POINT,
    WHOLE,
    Holding,
    Policy,
    shared_out,
)

NAMES = "abcd"
DUST = "0.000000000000000001"


def exact(text: str) -> Fraction:
    digits, decimals = parse(text)
    return Fraction(digits, 10**decimals)


def lines_of(target: dict[str, int], current: dict[str, int]) -> Any:
    return plan(target, current, Policy(), now=0, traded_at=0)


weights = st.lists(st.integers(0, 50), min_size=4, max_size=4).filter(any)
decimals = st.tuples(st.integers(0, 10**6), st.integers(0, 8)).map(lambda one: format_amount(*one))
above_zero = st.tuples(st.integers(1, 10**6), st.integers(0, 8)).map(
    lambda one: format_amount(*one)
)
holdings = st.builds(Holding, decimals, above_zero, st.one_of(st.just(""), above_zero))


@settings(max_examples=200, deadline=None)
@given(
    weights,
    weights,
    decimals,
    st.integers(0, 24),
    st.lists(holdings, min_size=4, max_size=4),
    st.sets(st.sampled_from(NAMES)),
)
def test_sales_are_purchases_in_units_and_lots_are_whole(
    target, current, value, scale, held, unpriced
):
    both = [dict(zip(NAMES, shared_out(WHOLE, one), strict=True)) for one in (target, current)]
    known = {
        name: Holding(one.quantity) if name in unpriced else one
        for name, one in zip(NAMES, held, strict=True)
    }
    lines = lines_of(*both)
    made = priced(lines, value, scale, known)
    sums = {True: 0, False: 0}
    paid = {True: Fraction(0), False: Fraction(0)}
    units = int(exact(value) * 10**scale)
    total = units * sum(line.change for line in lines if line.change > 0) // WHOLE
    for line, before in zip(made, lines, strict=True):
        assert (line.asset, line.change, line.rule) == (before.asset, before.change, before.rule)
        if not line.change:
            assert (line.amount, line.quantity) == ("", "")
            continue
        is_sale = line.change < 0
        amount = exact(line.amount) * 10**scale
        assert amount.denominator == 1
        sums[is_sale] += int(amount)
        assert bool(line.quantity) == (line.asset not in unpriced)
        if not line.quantity:
            paid[is_sale] += exact(line.amount) if is_sale else 0
            continue
        holding = known[line.asset]
        quantity = exact(line.quantity)
        lot = exact(holding.lot or "0.00000001")
        assert (quantity / lot).denominator == 1
        assert quantity * exact(holding.price) <= exact(line.amount)
        if is_sale:
            assert quantity <= exact(holding.quantity) or not holding.quantity
        paid[is_sale] += quantity * exact(holding.price)
    assert sums == {True: total, False: total}
    assert paid[False] <= paid[True]


def test_sale_gives_whole_lots_and_purchase_spends_what_it_brought():
    current, target = {"a": 60 * POINT, "b": 40 * POINT}, {"a": 50 * POINT, "b": 50 * POINT}
    held = {"a": Holding("100", "7", "1"), "b": Holding("", "3", "0.5")}
    sale, purchase = priced(lines_of(target, current), "1000", 2, held)
    # 100 of money: 14 whole lots bring 98, of which 32.5 are bought for 97.5
    assert (sale.amount, sale.quantity) == ("100", "14")
    assert (purchase.amount, purchase.quantity) == ("100", "32.5")


def test_no_more_is_sold_than_is_held():
    current, target = {"a": 60 * POINT, "b": 40 * POINT}, {"a": 50 * POINT, "b": 50 * POINT}
    held = {"a": Holding("3", "1"), "b": Holding("1", "1")}
    sale, purchase = priced(lines_of(target, current), "1000", 2, held)
    assert (sale.quantity, purchase.quantity) == ("3", "3")


def test_value_of_holdings_makes_the_weights():
    held = {"a": Holding("3", "10"), "b": Holding("1", "70"), "c": Holding("0", "1")}
    weights, value = valued(held)
    assert weights == {"a": 30 * POINT, "b": 70 * POINT, "c": 0}
    assert value == "100"


def test_value_of_fine_quantities_at_fine_prices_is_rounded_down():
    """Each has 18 decimals at most; their product may have 36, and is still worth something."""
    weights, value = valued(
        {"a": Holding("1.00000000001", "1.00000000001"), "b": Holding("1", "1")}
    )
    assert sum(weights.values()) == WHOLE
    assert value == "2.00000000002"
    number_of(value, "portfolio_value")
    weights, value = valued({"a": Holding(DUST, DUST)})
    assert (weights, value) == ({"a": WHOLE}, "0")


@pytest.mark.parametrize(
    "held",
    [
        {"a": Holding("x", "1")},
        {"a": Holding("1", "-1")},
        {"a": Holding("1", "0")},
        {"a": Holding("1", "1", "0")},
        {"a": Holding("1", "1e-19")},
        {"a": Holding("1")},
        {"a": Holding("", "1")},
        {"a": Holding("0", "1")},
        {f"a{n}": Holding("1", "1") for n in range(ASSETS_MAX + 1)},
    ],
)
def test_holdings_that_cannot_be_valued_are_refused(held):
    with pytest.raises(Refused) as refused:
        valued(held)
    assert refused.value.reason.code == "holdings_invalid"


def test_holdings_beside_an_allocation_may_be_told_in_part():
    check_holdings({"a": Holding(), "b": Holding("0"), "c": Holding("", "1"), "d": Holding("1")})

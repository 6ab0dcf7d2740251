"""Plans and weights: what holds of each of them, whatever the portfolio and the policy."""

from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pennyweight.ledger.money import format_amount
from pennyweight.ledger.refusals import Refused
from pennyweight.products.portfolios.law_trades import reckoned
from pennyweight.products.portfolios.plan import plan
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import CreatePortfolio
from pennyweight.products.portfolios.shared import (
    ASSETS_MAX,
    POINT,
    PORTFOLIO,
    PROVIDER_TOLERANCE,
    TARGET_TOLERANCE,
    WHOLE,
    Band,
    Policy,
    check_policy,
    drift_score,
    read_portfolio,
    shared_out,
    weights_of,
)
from scenarios import START, Stage

NAMES = "abcdef"
DAY = 86_400_000_000

parts = st.dictionaries(
    st.sampled_from(NAMES), st.one_of(st.integers(0, 20), st.integers(0, WHOLE)), min_size=1
).filter(lambda found: any(found.values()))


@st.composite
def weights(draw: Any) -> dict[str, int]:
    """A map of weights: coarse and fine ones, some zero, together the whole."""
    found = draw(parts)
    names = sorted(found)
    return dict(zip(names, shared_out(WHOLE, [found[name] for name in names]), strict=True))


points = st.one_of(st.integers(0, 30).map(lambda n: n * POINT), st.integers(0, 30 * POINT))
bounds = st.one_of(st.none(), points)
bands = st.builds(Band, bounds, bounds)
assets = st.sampled_from(NAMES)


def is_sound(policy: Policy) -> bool:
    try:
        check_policy(policy)
    except Refused:
        return False
    return True


policies = st.builds(
    Policy,
    band=bands,
    bands=st.dictionaries(assets, bands, max_size=2),
    score=bounds,
    calendar=st.sampled_from(["", "", "", "daily", "weekly", "monthly", "quarterly", "yearly"]),
    when=st.sampled_from(["any", "all"]),
    minimum_trade=st.one_of(st.just(0), points),
    trade_to=st.sampled_from(["target", "band"]),
    cash=st.one_of(st.just("a"), assets),
    is_buy_only=st.booleans(),
    is_cash_first=st.booleans(),
    locked=st.lists(assets, max_size=2, unique=True).map(tuple),
    turnover_max=st.one_of(st.none(), st.none(), points),
).filter(is_sound)
moments = st.tuples(st.sampled_from([0, 3, 9, 40, 100, 400]), st.just(START)).map(
    lambda when: (when[1] + when[0] * DAY, when[1])
)


def planned(
    target: dict[str, int], current: dict[str, int], policy: Policy, when: Any = (START, START)
) -> Any:
    return plan(target, current, policy, now=when[0], traded_at=when[1])


# ── plans ─────────────────────────────────────────────────────────────────────────


@settings(max_examples=150, deadline=None)
@given(weights(), weights(), policies, moments)
def test_plan_is_zero_sum_and_never_past_a_target(target, current, policy, when):
    lines = planned(target, current, policy, when)
    assert sorted(line.asset for line in lines) == sorted(target.keys() | current.keys())
    assert sum(line.change for line in lines) == 0
    for line in lines:
        drift = line.before - line.target
        assert (line.before, line.target) == (
            current.get(line.asset, 0),
            target.get(line.asset, 0),
        )
        assert line.change * drift <= 0
        assert abs(line.change) <= abs(drift)
        assert 0 <= line.after <= WHOLE
    assert sum(line.after for line in lines) == WHOLE


@settings(max_examples=150, deadline=None)
@given(weights(), weights(), policies, moments)
def test_plan_keeps_to_its_policy(target, current, policy, when):
    lines = planned(target, current, policy, when)
    for line in lines:
        if line.change:
            assert line.asset not in policy.locked
            assert abs(line.change) >= policy.minimum_trade
            assert line.change > 0 or not policy.is_buy_only or line.asset == policy.cash
    sold = -sum(line.change for line in lines if line.change < 0)
    assert policy.turnover_max is None or sold <= policy.turnover_max
    assert sold <= drift_score(target, current)


@settings(max_examples=150, deadline=None)
@given(weights(), weights(), policies, moments)
def test_plan_is_what_the_law_reckons(target, current, policy, when):
    """Two reckonings, one in whole numbers and one in fractions, agree to the unit."""
    lines = planned(target, current, policy, when)
    drifts = {line.asset: line.before - line.target for line in lines}
    right = reckoned(target, drifts, policy, *when)
    assert {line.asset: line.change for line in lines} == {name: right[name] for name in drifts}


@settings(max_examples=150, deadline=None)
@given(weights(), weights(), policies)
def test_plan_is_idempotent(target, current, policy):
    """Once it is carried out the same policy trades nothing; only a cap on turnover leaves a rest."""
    policy = msgspec.structs.replace(policy, turnover_max=None)
    lines = planned(target, current, policy)
    after = {line.asset: line.after for line in lines}
    again = planned(target, after, policy)
    assert [line.change for line in again] == [0] * len(lines)


@settings(max_examples=100, deadline=None)
@given(weights(), weights(), policies)
def test_plan_under_a_cap_comes_to_an_end(target, current, policy):
    """Each step trades the cap or is the last but one; nothing goes to and fro."""
    policy = msgspec.structs.replace(policy, turnover_max=20 * POINT, minimum_trade=0)
    score = drift_score(target, current)
    for _ in range(8):
        lines = planned(target, current, policy)
        current = {line.asset: line.after for line in lines}
        traded = sum(line.change for line in lines if line.change > 0)
        assert drift_score(target, current) == score - traded
        score -= traded
    assert not traded


@settings(max_examples=100, deadline=None)
@given(weights(), weights(), policies, st.randoms())
def test_plan_does_not_know_the_order_of_assets(target, current, policy, dice):
    def shuffled(found: Any) -> Any:
        items = list(found.items())
        dice.shuffle(items)
        return dict(items)

    other = msgspec.structs.replace(
        policy, bands=shuffled(policy.bands), locked=tuple(reversed(policy.locked))
    )
    first = planned(target, current, policy)
    assert planned(shuffled(target), shuffled(current), other) == first


@settings(max_examples=100, deadline=None)
@given(weights(), weights(), points, st.sampled_from(["target", "band"]), bounds)
def test_plan_is_symmetrical(target, current, width, trade_to, score):
    """There and back are the same trades with the other sign, where the bands are alike."""
    policy = Policy(band=Band(absolute=width), score=score, trade_to=trade_to)
    there = {line.asset: line.change for line in planned(target, current, policy)}
    back = {line.asset: line.change for line in planned(current, target, policy)}
    assert there == {name: -change for name, change in back.items()}


@settings(max_examples=100, deadline=None)
@given(weights(), weights())
def test_plan_without_a_policy_goes_to_the_target(target, current):
    lines = planned(target, current, Policy())
    assert all(line.after == line.target for line in lines)
    assert {line.rule for line in lines} <= {"drift", "on_target"}
    traded = sum(line.change for line in lines if line.change > 0)
    assert traded == drift_score(target, current)


@settings(max_examples=100, deadline=None)
@given(weights(), weights(), policies, moments)
def test_plan_lists_sales_then_purchases_by_drift_then_name(target, current, policy, when):
    lines = planned(target, current, policy, when)
    trades = [line for line in lines if line.change]
    assert lines[: len(trades)] == tuple(trades)
    order = [(line.change > 0, -abs(line.before - line.target), line.asset) for line in trades]
    assert order == sorted(order)
    others = [line.asset for line in lines[len(trades) :]]
    assert others == sorted(others)


@settings(max_examples=100, deadline=None)
@given(weights(), weights(), policies, moments)
def test_plan_says_why_of_every_asset(target, current, policy, when):
    traded = {"drift", "band", "score", "calendar", "cash_flow", "with_others"}
    for line in planned(target, current, policy, when):
        assert (line.rule in traded) == bool(line.change)
        drift = abs(line.before - line.target)
        assert (line.rule == "on_target") == (not drift)
        if line.rule == "in_band":
            assert drift <= line.limit
        if line.rule == "band":
            assert drift >= line.limit
        if line.rule == "below_minimum":
            assert drift < line.limit == policy.minimum_trade


def test_plan_leaves_nothing_behind_that_the_minimum_left_out_at_first():
    """d and e are left of a first reckoning; what b and f could exchange then comes with them."""
    policy = Policy(minimum_trade=20 * POINT)
    target = {"a": 26 * POINT, "d": 15 * POINT, "e": 31 * POINT, "f": 28 * POINT}
    current = {"a": 32 * POINT, "b": 23 * POINT, "d": 39 * POINT, "f": 6 * POINT}
    lines = planned(target, current, policy)
    changes = {line.asset: line.change // POINT for line in lines}
    assert changes == {"d": -24, "b": -22, "e": 24, "f": 22, "a": 0}
    after = {line.asset: line.after for line in lines}
    assert [line.change for line in planned(target, after, policy)] == [0] * 5


# ── weights ───────────────────────────────────────────────────────────────────────


def text(units: int, decimals: int) -> str:
    return format_amount(units, decimals)


@settings(max_examples=100, deadline=None)
@given(parts, st.integers(0, 18))
def test_weights_are_exact_shares_by_largest_remainder(found, decimals):
    """Percentages that are 100 together, with all the decimals that are allowed."""
    whole = 100 * 10**decimals
    names = sorted(found)
    shares = shared_out(whole, [found[name] for name in names])
    allocation = {name: text(share, decimals) for name, share in zip(names, shares, strict=True)}
    made = weights_of(allocation, TARGET_TOLERANCE)
    assert list(made) == names
    assert sum(made.values()) == WHOLE
    exact = {
        name: Fraction(share * WHOLE, whole) for name, share in zip(names, shares, strict=True)
    }
    rounded_up = [name for name in names if made[name] > exact[name]]
    assert all(abs(made[name] - exact[name]) < 1 for name in names)
    remainders = {name: exact[name] - exact[name] // 1 for name in names}
    kept_down = [name for name in names if made[name] < exact[name]]
    for up in rounded_up:
        for down in kept_down:
            assert (-remainders[up], up) < (-remainders[down], down)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**6), min_size=1, max_size=6))
@example(1, [0, 0, 1])
@example(7, [1, 1, 1])
def test_shares_add_up_and_none_is_above_its_part(amount, shares):
    amount = min(amount, sum(shares))
    found = shared_out(amount, shares)
    assert sum(found) == amount
    assert all(got <= part for got, part in zip(found, shares, strict=True))
    assert all(got == 0 for got, part in zip(found, shares, strict=True) if not part)


@pytest.mark.parametrize(
    ("total", "tolerance", "is_taken"),
    [
        ("100.01", PROVIDER_TOLERANCE, True),
        ("99.99", PROVIDER_TOLERANCE, True),
        ("100.010000000000000001", PROVIDER_TOLERANCE, False),
        ("99.989999999999999999", PROVIDER_TOLERANCE, False),
        ("100.0100000001", PROVIDER_TOLERANCE, False),
        ("100.000000001", TARGET_TOLERANCE, True),
        ("99.999999999", TARGET_TOLERANCE, True),
        ("100.000000001000000001", TARGET_TOLERANCE, False),
        ("99.9999999989", TARGET_TOLERANCE, False),
        ("100", TARGET_TOLERANCE, True),
        ("1e2", TARGET_TOLERANCE, True),
        ("0", PROVIDER_TOLERANCE, False),
    ],
)
def test_weights_tolerance_is_inclusive(total, tolerance, is_taken):
    for allocation in ({"a": total}, {"a": total, "b": "0"}):
        if is_taken:
            assert weights_of(allocation, tolerance)["a"] == WHOLE
        else:
            with pytest.raises(Refused, match="add up to"):
                weights_of(allocation, tolerance)


@pytest.mark.parametrize(
    "allocation",
    [
        {},
        {f"a{n}": "1" for n in range(ASSETS_MAX + 1)},
        {"": "100"},
        {" a": "100"},
        {"a\n": "100"},
        {"a" * 65: "100"},
        {"a": "ten"},
        {"a": "-10", "b": "110"},
        {"a": "NaN"},
        {"a": "1e99"},
        {"a": "1e-19", "b": "100"},
        {"a": "99.9"},
    ],
)
def test_weights_refuse_what_is_no_allocation(allocation):
    with pytest.raises(Refused) as refused:
        weights_of(allocation, PROVIDER_TOLERANCE)
    assert refused.value.reason.code == "allocation_invalid"


def test_weights_of_thirds_round_the_earlier_name_up():
    made = weights_of({"c": "33.33", "a": "33.33", "b": "33.33"}, PROVIDER_TOLERANCE)
    assert made == {"a": 333_333_333_334, "b": 333_333_333_333, "c": 333_333_333_333}


def test_weights_of_a_hundred_assets():
    many = {f"{n:03}": "1" for n in range(ASSETS_MAX)}
    assert set(weights_of(many, TARGET_TOLERANCE).values()) == {POINT}


# ── messages in any order ─────────────────────────────────────────────────────────

told = st.fixed_dictionaries(
    {
        "allocation": st.sampled_from(
            [
                {"stocks": "70", "bonds": "20", "gold": "10"},
                {"stocks": "60", "bonds": "30", "gold": "10"},
                {"stocks": "50", "x": "50"},
                {"stocks": "33.33", "bonds": "33.33", "gold": "33.33"},
            ]
        ),
        "as_of": st.integers(START - 3, START).filter(bool),
        "value": st.sampled_from(["", "", "100", "200"]),
    }
)


@settings(max_examples=40, deadline=None)
@given(st.lists(told, min_size=1, max_size=8), st.randoms())
def test_messages_with_as_of_make_one_state_in_any_order(messages, dice):
    """Duplicates among them, and some that say otherwise of the same moment."""
    ends = set()
    for _ in range(3):
        stage = Stage()
        stage.execute(CreatePortfolio("1", {"stocks": "60", "bonds": "30", "gold": "10"}))
        for message in messages:
            currency = "USD" if message["value"] else ""
            stage.book.execute(Rebalance("1", currency=currency, **message))
        record = stage.store.record(PORTFOLIO, "1")
        assert record is not None
        end = read_portfolio(record)
        ends.add(
            (
                tuple(sorted(end.current.items())),
                end.as_of,
                end.value,
                end.open,
                planned(end.target, end.current, end.rules),
            )
        )
        messages = [*messages, dice.choice(messages)]
        dice.shuffle(messages)
    assert len(ends) == 1

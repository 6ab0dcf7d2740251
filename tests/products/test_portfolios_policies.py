"""Policies: when a portfolio is traded and when not, bound by bound, and the versions they leave."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest

from pennyweight.assemble import answers
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.engine.verification import verify
from pennyweight.ledger.commands import Command
from pennyweight.ledger.refusals import Refused
from pennyweight.products.portfolios.law import PortfoliosLaw
from pennyweight.products.portfolios.law_trades import period_begins
from pennyweight.products.portfolios.plan import period, plan
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import (
    ChangeTarget,
    CreatePortfolio,
    PolicyVersion,
    SetPolicy,
)
from pennyweight.products.portfolios.shared import (
    POINT,
    POLICY,
    PORTFOLIO,
    WHOLE,
    Band,
    Policy,
    check_policy,
    policy_id,
    read_portfolio,
    weights_of,
)
from scenarios import START, Stage

TARGET = {"stocks": "60", "bonds": "30", "gold": "10"}
DAY = 86_400_000_000


def points(allocation: dict[str, Any]) -> dict[str, int]:
    return weights_of({name: str(part) for name, part in allocation.items()}, 100)


def at(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp()) * 1_000_000  # type: ignore[arg-type]


def planned(
    current: dict[str, Any],
    policy: Policy,
    target: dict[str, Any] = TARGET,
    now: int = START,
    traded_at: int = START,
) -> dict[str, tuple[float, str]]:
    """Return what is traded of each asset, in points, and why or why not."""
    lines = plan(points(target), points(current), policy, now=now, traded_at=traded_at)
    return {line.asset: (line.change / POINT, line.rule) for line in lines}


# ── bands ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stocks", "is_due"),
    [("65", True), ("64.9999999999", False), ("55", True), ("55.0000000001", False)],
)
def test_band_is_inclusive(stocks, is_due):
    bonds = {"65": "25", "64.9999999999": "25.0000000001"}.get(stocks)
    bonds = bonds or {"55": "35", "55.0000000001": "34.9999999999"}[stocks]
    policy = Policy(bands={"stocks": Band(absolute=5 * POINT)})
    lines = planned({"stocks": stocks, "bonds": bonds, "gold": "10"}, policy)
    assert (lines["stocks"][1] == "band") == is_due
    assert lines["bonds"][1] == ("with_others" if is_due else "not_due")


@pytest.mark.parametrize(
    ("gold", "is_due"), [("12.5", True), ("12.4999999999", False), ("7.5", True)]
)
def test_five_and_twenty_five(gold, is_due):
    """5 points, or a quarter of the target where that is less."""
    policy = Policy(band=Band(absolute=5 * POINT, relative=25 * POINT))
    bonds = {"12.5": "27.5", "12.4999999999": "27.5000000001", "7.5": "32.5"}[gold]
    lines = planned({"stocks": "60", "bonds": bonds, "gold": gold}, policy)
    assert (lines["gold"][1] == "band") == is_due
    assert lines["gold"][0] == pytest.approx((10 - float(gold)) if is_due else 0)


def test_asset_without_a_target_is_beyond_any_relative_band():
    policy = Policy(band=Band(relative=25 * POINT))
    lines = planned({"stocks": "60", "bonds": "29.9", "gold": "10", "x": "0.1"}, policy)
    assert lines["x"] == (-0.1, "band")
    assert lines["bonds"] == (0.1, "with_others")


def test_band_of_its_own_replaces_that_of_all():
    policy = Policy(
        band=Band(absolute=POINT), bands={"stocks": Band(), "bonds": Band(absolute=WHOLE)}
    )
    lines = planned({"stocks": "70", "bonds": "20", "gold": "10"}, policy)
    assert lines == {
        "bonds": (0, "in_band"),
        "gold": (0, "on_target"),
        "stocks": (0, "not_due"),
    }


def test_to_the_edge_of_the_band_trades_no_more_than_that():
    policy = Policy(band=Band(absolute=5 * POINT), trade_to="band")
    lines = planned({"stocks": "68", "bonds": "24", "gold": "8"}, policy)
    assert lines == {
        "stocks": (-3, "band"),
        "bonds": (pytest.approx(1 + 2 * 5 / 7), "band"),  # 1 by itself, then its part of the rest
        "gold": (pytest.approx(2 * 2 / 7), "with_others"),
    }


def test_at_the_edge_nothing_is_left_to_trade():
    policy = Policy(band=Band(absolute=5 * POINT), trade_to="band")
    lines = planned({"stocks": "65", "bonds": "25", "gold": "10"}, policy)
    assert lines["stocks"] == lines["bonds"] == (0, "in_band")


# ── score, and what is required together ──────────────────────────────────────────


def test_score_is_half_of_all_drift_and_inclusive():
    current = {"stocks": "63", "bonds": "28", "gold": "9"}
    assert planned(current, Policy(score=3 * POINT))["stocks"] == (-3, "score")
    assert planned(current, Policy(score=3 * POINT + 1))["stocks"] == (0, "not_due")


def test_all_rules_together_or_any():
    current = {"stocks": "66", "bonds": "24", "gold": "10"}
    rules = {"band": Band(absolute=5 * POINT), "score": 8 * POINT}
    assert planned(current, Policy(**rules))["stocks"] == (-6, "band")
    assert planned(current, Policy(**rules, when="all"))["stocks"] == (0, "not_due")


def test_policy_of_no_rule_trades_every_drift():
    assert planned({"stocks": "61", "bonds": "29", "gold": "10"}, Policy())["bonds"] == (1, "drift")


# ── calendars ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("calendar", "before", "after", "is_due"),
    [
        ("daily", (2024, 2, 28, 23, 59, 59), (2024, 2, 29), True),
        ("daily", (2024, 2, 29), (2024, 2, 29, 23, 59, 59), False),
        ("weekly", (2024, 12, 29, 23, 59, 59), (2024, 12, 30), True),  # a Monday
        ("weekly", (2024, 12, 30), (2025, 1, 5, 23, 59, 59), False),  # ISO week 1 of 2025
        ("weekly", (2021, 1, 3), (2021, 1, 4), True),  # week 53 of 2020 ends
        ("monthly", (2024, 1, 31, 23, 59, 59), (2024, 2, 1), True),
        ("monthly", (2024, 2, 1), (2024, 2, 29, 23, 59, 59), False),
        ("monthly", (2023, 2, 28), (2023, 3, 1), True),
        ("monthly", (2023, 1, 31), (2024, 1, 1), True),
        ("quarterly", (2024, 3, 31, 23, 59, 59), (2024, 4, 1), True),
        ("quarterly", (2024, 4, 1), (2024, 6, 30), False),
        ("quarterly", (2024, 10, 1), (2025, 1, 1), True),
        ("yearly", (2024, 12, 31, 23, 59, 59), (2025, 1, 1), True),
        ("yearly", (2024, 1, 1), (2024, 12, 31), False),
    ],
)
def test_calendar_is_due_in_a_new_period_of_utc(calendar, before, after, is_due):
    moved = {"stocks": "61", "bonds": "29", "gold": "10"}
    policy = Policy(calendar=calendar)
    lines = planned(moved, policy, now=at(*after), traded_at=at(*before))
    assert lines["stocks"] == ((-1, "calendar") if is_due else (0, "not_due"))
    assert (period(calendar, at(*after)) > period(calendar, at(*before))) == is_due


@pytest.mark.parametrize("calendar", ["daily", "weekly", "monthly", "quarterly", "yearly"])
def test_calendar_knows_every_day_of_two_centuries(calendar):
    """Each period begins where the calendar that Python has begins it, to the microsecond."""
    before = period(calendar, 0)
    for number in range(1, 73_000):
        day = date(1970, 1, 1) + timedelta(days=number)
        is_new = {
            "daily": True,
            "weekly": day.isocalendar().weekday == 1,
            "monthly": day.day == 1,
            "quarterly": (day.month % 3, day.day) == (1, 1),
            "yearly": (day.month, day.day) == (1, 1),
        }[calendar]
        now = period(calendar, number * DAY)
        assert now == before + is_new, day
        if not number % 97 or is_new:
            begins = period_begins(calendar, number * DAY + DAY - 1)
            assert (begins == number * DAY) == is_new, day
        assert period(calendar, number * DAY - 1) == before
        before = now


def test_calendar_is_not_due_before_the_portfolio_was_made():
    """A provider that tells history: what lies before the last trades makes nothing due."""
    moved = {"stocks": "61", "bonds": "29", "gold": "10"}
    lines = planned(moved, Policy(calendar="yearly"), now=at(1970, 1, 1), traded_at=START)
    assert lines["stocks"] == (0, "not_due")


# ── cash, locks, bounds ───────────────────────────────────────────────────────────

CASHED = {"stocks": "60", "bonds": "30", "cash": "10"}
WIDE = Band(absolute=20 * POINT)


def test_cash_first_spends_a_deposit_on_what_is_short():
    policy = Policy(band=WIDE, cash="cash", is_cash_first=True)
    lines = planned({"stocks": "54", "bonds": "28", "cash": "18"}, policy, CASHED)
    assert lines == {
        "cash": (-8, "cash_flow"),
        "stocks": (6, "cash_flow"),
        "bonds": (2, "cash_flow"),
    }


def test_cash_first_makes_a_withdrawal_up_by_selling_what_is_over():
    policy = Policy(band=WIDE, cash="cash", is_cash_first=True)
    lines = planned({"stocks": "66", "bonds": "29", "cash": "5"}, policy, CASHED)
    assert lines == {
        "stocks": (-5, "cash_flow"),
        "cash": (5, "cash_flow"),
        "bonds": (0, "in_band"),
    }


def test_cash_flow_tells_of_each_asset_how_far_cash_was_off():
    policy = Policy(band=WIDE, cash="cash", is_cash_first=True)
    lines = plan(
        points(CASHED),
        points({"stocks": "54", "bonds": "28", "cash": "18"}),
        policy,
        now=START,
        traded_at=START,
    )
    assert [line.limit for line in lines] == [8 * POINT] * 3


def test_cash_first_goes_on_with_what_is_due_then():
    policy = Policy(band=Band(absolute=5 * POINT), cash="cash", is_cash_first=True)
    lines = planned({"stocks": "70", "bonds": "16", "cash": "14"}, policy, CASHED)
    assert lines == {
        "stocks": (-10, "band"),
        "cash": (-4, "cash_flow"),
        "bonds": (14, "band"),
    }


def test_buy_only_sells_nothing_but_cash():
    policy = Policy(cash="cash", is_buy_only=True)
    lines = planned({"stocks": "65", "bonds": "22", "cash": "13"}, policy, CASHED)
    assert lines == {
        "cash": (-3, "drift"),
        "bonds": (3, "drift"),
        "stocks": (0, "buy_only"),
    }


def test_buy_only_without_cash_buys_nothing():
    policy = Policy(cash="cash", is_buy_only=True, is_cash_first=True)
    lines = planned({"stocks": "66", "bonds": "25", "cash": "9"}, policy, CASHED)
    assert {change for change, _ in lines.values()} == {0}
    assert (lines["bonds"][1], lines["stocks"][1]) == ("no_counterpart", "buy_only")


def test_locked_assets_are_left_and_the_rest_is_zero_sum():
    policy = Policy(locked=("gold",))
    lines = planned({"stocks": "66", "bonds": "22", "gold": "12"}, policy)
    assert lines == {"stocks": (-6, "drift"), "bonds": (6, "drift"), "gold": (0, "locked")}


@pytest.mark.parametrize(("minimum", "rule"), [(2 * POINT, "drift"), (2 * POINT + 1, "no")])
def test_minimum_trade_is_inclusive(minimum, rule):
    lines = planned({"stocks": "62", "bonds": "28", "gold": "10"}, Policy(minimum_trade=minimum))
    assert lines["stocks"] == ((-2, "drift") if rule == "drift" else (0, "below_minimum"))


def test_minimum_trade_leaves_the_smallest_out_and_stays_zero_sum():
    policy = Policy(minimum_trade=2 * POINT)
    lines = planned({"stocks": "66", "bonds": "25", "gold": "9"}, policy)
    assert lines == {
        "stocks": (-5, "drift"),
        "bonds": (5, "drift"),
        "gold": (0, "below_minimum"),
    }


def test_turnover_is_capped_in_proportion():
    policy = Policy(turnover_max=5 * POINT)
    lines = planned({"stocks": "70", "bonds": "26", "gold": "4"}, policy)
    assert lines["stocks"] == (-5, "drift")
    assert (lines["bonds"][0], lines["gold"][0]) == (2, 3)


# ── what is no policy ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "policy",
    [
        Policy(band=Band(absolute=WHOLE + 1)),
        Policy(bands={"a": Band(relative=-1)}),
        Policy(score=-1),
        Policy(minimum_trade=WHOLE + 1),
        Policy(is_buy_only=True),
        Policy(is_cash_first=True),
        Policy(cash="a", locked=("a",)),
        Policy(locked=("",)),
        Policy(bands={" ": Band()}),
        Policy(cash="a\n"),
        Policy(locked=tuple(f"a{n}" for n in range(101))),
        Policy(minimum_trade=5 * POINT, turnover_max=5 * POINT - 1),  # never trades anything
    ],
)
def test_policy_that_contradicts_itself_is_refused(policy):
    with pytest.raises(Refused) as refused:
        check_policy(policy)
    assert refused.value.reason.code == "policy_invalid"


def test_policy_at_its_bounds_is_taken():
    check_policy(Policy(minimum_trade=WHOLE, turnover_max=WHOLE, score=0, band=Band(0, WHOLE)))


# ── in the book ───────────────────────────────────────────────────────────────────


def done(stage: Stage, command: Command) -> Any:
    outcome = stage.execute(command)
    assert isinstance(outcome, Receipt), outcome
    return outcome.answer


def test_policies_have_versions():
    """Each counts from when it was set; the one before stays to be read."""
    stage = Stage()
    first, second = Policy(score=POINT), Policy(score=2 * POINT)
    assert done(stage, CreatePortfolio("a/b", TARGET, first)).policy_version == 1
    assert done(stage, SetPolicy("a/b", first)).result == "unchanged"
    assert done(stage, SetPolicy("a/b", second)).policy_version == 2
    since = stage.store.head().committed_at
    assert done(stage, SetPolicy("a/b", None)).policy_version == 3
    assert done(stage, SetPolicy("a/b", None)).result == "unchanged"
    done(stage, CreatePortfolio("a", TARGET, second))
    found = [
        record.read(PolicyVersion)
        for record in stage.store.records(POLICY, label="user:a/b", limit=10)
    ]
    assert sorted((one.version, one.policy) for one in found if one.policy) == [
        (1, first),
        (2, second),
    ]
    record = stage.store.record(POLICY, policy_id("a/b", 2))
    assert record is not None
    assert record.read(PolicyVersion) == PolicyVersion("a/b", 2, since, second)
    report = verify(stage.store, answers=answers(), invariants=[PortfoliosLaw()])
    assert report.ok, report.problems


def test_run_names_the_policy_it_went_by():
    stage = Stage()
    done(stage, CreatePortfolio("1", TARGET))
    moved = Rebalance("1", {"stocks": "62", "bonds": "28", "gold": "10"})
    assert done(stage, moved).policy_version == 0
    done(stage, SetPolicy("1", Policy(band=Band(absolute=5 * POINT))))
    run = done(stage, moved)
    assert (run.result, run.policy_version, run.trades) == ("rebalanced", 1, ())


def test_calendar_makes_due_what_is_told_again_and_again():
    """A provider without a clock that says the same every day: the month comes all the same."""
    stage = Stage()
    stage.now = at(2024, 1, 20)
    done(stage, CreatePortfolio("1", TARGET, Policy(calendar="monthly")))
    moved = Rebalance("1", {"stocks": "70", "bonds": "20", "gold": "10"})
    results = []
    for _ in range(14):
        stage.wait(86_400)
        answer = done(stage, moved)
        results.append((answer.result, len(answer.trades)))
    assert results == [("rebalanced", 0)] * 11 + [("rebalanced", 2)] + [("repeat", 2)] * 2


def test_calendar_counts_from_the_last_trades():
    stage = Stage()
    stage.now = at(2024, 1, 20)
    done(stage, CreatePortfolio("1", TARGET, Policy(calendar="monthly")))
    found = []
    for day in (25, 31, 32, 40, 60, 61):
        stage.now = at(2024, 1, 1) + (day - 1) * DAY
        moved = {"stocks": "70", "bonds": "20", "gold": "10"}
        answer = done(stage, Rebalance("1", moved, as_of=stage.now))
        found.append(len(answer.trades))
    assert found == [0, 0, 2, 0, 0, 2]


def test_target_change_trades_nothing_before_the_next_update():
    stage = Stage()
    done(stage, CreatePortfolio("1", TARGET))
    first = done(stage, Rebalance("1", TARGET))
    assert first.trades == ()
    done(stage, ChangeTarget("1", {"stocks": "50", "bonds": "40", "gold": "10"}))
    record = stage.store.record(PORTFOLIO, "1")
    assert record is not None
    assert read_portfolio(record).run == first.run
    again = done(stage, Rebalance("1", TARGET))
    assert [(line.asset, line.change // POINT) for line in again.trades] == [
        ("stocks", -10),
        ("bonds", 10),
    ]


def test_policy_invalid_is_refused_by_both_commands():
    stage = Stage()
    bad = Policy(is_buy_only=True)
    for command in (CreatePortfolio("1", TARGET, bad), SetPolicy("1", bad)):
        outcome = stage.execute(command)
        assert isinstance(outcome, Refusal)
        assert outcome.reason.code == "policy_invalid"

"""Policies replayed over what a portfolio went through."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest

from pennyweight.delivery.cli.simulate_policy import _policies
from pennyweight.engine.receipts import Receipt
from pennyweight.ledger.commands import Command
from pennyweight.products.portfolios.execute import ExecuteTransactions, Fill
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import ChangeTarget, CreatePortfolio, SetPolicy
from pennyweight.products.portfolios.shared import (
    POINT,
    SEED_POLICY,
    WHOLE,
    Band,
    Policy,
    RunAnswer,
    drift_score,
    percent_text,
    shared_out,
)
from pennyweight.simulators.drawing import Bound, Curve, Lane, Panel, chart
from pennyweight.simulators.policysim import (
    Past,
    PastMissing,
    Update,
    figures,
    moment_of,
    moved,
    past_in,
    past_of,
    picture,
    real,
    replayed,
)
from scenarios import START, Stage

DAY = 86_400_000_000
NEVER = Policy(band=Band(absolute=WHOLE))
TARGET = {"stocks": "60", "bonds": "30", "gold": "10"}


def points(**percents: int) -> dict[str, int]:
    return {name: percent * POINT for name, percent in percents.items()}


class Owner:
    """User 1, who has a portfolio and a provider."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.stage = Stage()
        self.do(CreatePortfolio("1", TARGET, policy))

    def do(self, command: Command) -> object:
        outcome = self.stage.execute(command)
        assert isinstance(outcome, Receipt), outcome
        return outcome.answer

    def update(self, day: int, allocation: Mapping[str, str]) -> RunAnswer:
        self.stage.now = max(self.stage.now, START + day * DAY)
        answer = self.do(Rebalance("1", dict(allocation), as_of=START + day * DAY))
        assert isinstance(answer, RunAnswer)
        return answer

    def execute(self, run: RunAnswer, *positions: int) -> None:
        chosen = positions or tuple(range(1, len(run.trades) + 1))
        if chosen:
            self.do(ExecuteTransactions("1", run.run, tuple(Fill(one) for one in chosen)))

    @property
    def past(self) -> Past:
        return past_of(self.stage.store, "1")


def test_the_seed_s_example_is_replayed():
    owner = Owner()
    owner.execute(owner.update(1, {"stocks": "70", "bonds": "20", "gold": "10"}))
    past = owner.past
    assert past.updates == [
        Update(
            START + DAY,
            points(bonds=30, gold=10, stocks=60),
            points(stocks=70, bonds=20, gold=10),
            points(stocks=60, bonds=30, gold=10),
            (-10 * POINT, 10 * POINT),
        )
    ]
    assert (past.proposed, past.executed, past.unmatched) == (2, 2, 0)
    shown = figures(replayed(past, SEED_POLICY, "seed"), Fraction(1, 1_000))
    assert (shown.trading_updates, shown.trades, shown.turnover_points) == (1, 2, 10.0)
    assert (shown.drift_max_points, shown.tracking_error_points) == (10.0, 10.0)
    assert (shown.tracking_error_after_points, shown.cost_points) == (0.0, 0.02)
    assert shown.turnover_points_per_year is None


def market(weights: Mapping[str, int], draw: Random) -> dict[str, int]:
    """Move a portfolio's weights by a random factor each."""
    names = sorted(weights)
    moved_to = shared_out(WHOLE, [weights[name] * draw.randint(90, 111) for name in names])
    return dict(zip(names, moved_to, strict=True))


POLICIES = [
    SEED_POLICY,
    Policy(band=Band(absolute=2 * POINT, relative=25 * POINT), trade_to="band"),
    Policy(calendar="monthly", minimum_trade=POINT // 2),
    Policy(score=2 * POINT, turnover_max=POINT, locked=("gold",)),
]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_portfolio_s_own_policy_does_again_what_was_done(policy):
    draw = Random(7)
    owner = Owner(policy)
    held = points(stocks=60, bonds=30, gold=10)
    for day in range(1, 80, 2):
        held = market(held, draw)
        run = owner.update(day, {name: percent_text(weight) for name, weight in held.items()})
        owner.execute(run)
        for line in run.trades:
            held[line.asset] += line.change
    again = replayed(owner.past, policy, "again")
    assert [point[:4] for point in again.points] == [point[:4] for point in real(owner.past).points]
    assert again.guesses == 0
    assert any(point.changes for point in again.points)


def test_what_nobody_executes_did_not_happen():
    draw = Random(8)
    owner = Owner()
    held = points(stocks=60, bonds=30, gold=10)
    for day in range(1, 30):
        held = market(held, draw)
        owner.update(day, {name: percent_text(weight) for name, weight in held.items()})
    past = owner.past
    assert past.proposed > past.executed == 0
    never, seed = replayed(past, NEVER, "never"), replayed(past, SEED_POLICY, "seed")
    assert [p.before for p in never.points] == [p.before for p in real(past).points]
    assert max(p.before for p in seed.points) < max(p.before for p in never.points)
    assert all(p.after == 0 for p in seed.points)


def test_a_target_counts_from_when_it_was_changed():
    owner = Owner(NEVER)
    same = dict(TARGET)
    owner.update(1, same)
    owner.do(ChangeTarget("1", {"stocks": "50", "bonds": "40", "gold": "10"}))
    owner.update(2, same)
    track = replayed(owner.past, SEED_POLICY, "seed")
    assert [point.before for point in track.points] == [0, 10 * POINT]


def test_the_past_begins_with_what_was_traded_before():
    owner = Owner(Policy(calendar="monthly"))
    moved_to = {"stocks": "62", "bonds": "28", "gold": "10"}
    for day in (20, 40, 42, 44):
        owner.execute(owner.update(day, moved_to))
    since, until = START + 41 * DAY, START + 43 * DAY
    past = past_of(owner.stage.store, "1", since=since, until=until)
    assert [update.at for update in past.updates] == [START + 42 * DAY]
    assert past.traded_at in {START + 20 * DAY, START + 40 * DAY}
    assert not replayed(past, Policy(calendar="monthly"), "again").points[0].changes
    whole = past_of(owner.stage.store, "1", until=START + 40 * DAY)
    assert len(whole.updates) == 2
    assert whole.traded_at < START + DAY


def test_executions_count_where_they_were_marked():
    owner = Owner()
    first = owner.update(1, {"stocks": "70", "bonds": "20", "gold": "10"})
    owner.execute(first, 1)  # sold, and not bought yet
    second = owner.update(2, {"stocks": "64", "bonds": "24", "gold": "12"})
    owner.execute(first, 2)
    one, two = owner.past.updates
    assert one.held == points(stocks=60, bonds=20, gold=10)
    assert two.held == points(stocks=64, bonds=34, gold=12)
    assert (one.executed, two.executed) == ((-10 * POINT,), (10 * POINT,))
    assert second.trades
    early = past_of(owner.stage.store, "1", until=START + DAY)
    assert early.executed == 1
    late = past_of(owner.stage.store, "1", since=START + 2 * DAY)
    assert late.updates == [two]


def test_an_execution_of_what_is_gone_is_left_out():
    owner = Owner()
    first = owner.update(1, {"stocks": "70", "bonds": "20", "gold": "10"})
    owner.update(2, {"stocks": "5", "bonds": "85", "gold": "10"})
    owner.execute(first)
    past = owner.past
    assert (past.executed, past.unmatched) == (2, 1)
    assert past.updates[1].held == points(stocks=5, bonds=95, gold=10)


def test_a_replay_looks_at_no_other_user():
    owner = Owner()
    owner.do(CreatePortfolio("2", TARGET))
    owner.update(1, {"stocks": "70", "bonds": "20", "gold": "10"})
    owner.do(Rebalance("2", {"stocks": "100"}))
    owner.do(SetPolicy("2", NEVER))
    owner.update(2, {"stocks": "69", "bonds": "21", "gold": "10"})
    assert [update.told["stocks"] for update in owner.past.updates] == [70 * POINT, 69 * POINT]


def test_a_past_that_is_not_there():
    owner = Owner()
    with pytest.raises(PastMissing, match="user '7' has no portfolio in this book"):
        past_of(owner.stage.store, "7")
    with pytest.raises(PastMissing, match=r"the portfolio of user '1' has no updates$"):
        past_of(owner.stage.store, "1")
    owner.update(3, TARGET)
    for bounds in ({"since": START + 4 * DAY}, {"until": START + 2 * DAY}):
        with pytest.raises(PastMissing, match="no updates within this time"):
            past_of(owner.stage.store, "1", **bounds)


# ── how weights move ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("weights", "held", "told", "after", "guesses"),
    [
        # 80 x 1.2 and 20 x 0.8, of 112
        (
            points(a=80, b=20),
            points(a=50, b=50),
            points(a=60, b=40),
            {"a": 857142857143, "b": 142857142857},
            0,
        ),
        # what was only sold leaves a share that nobody knows of; factors are relative
        (points(a=50, b=50), points(a=40, b=50), points(a=40, b=60), None, 0),
        # a flow: c makes up a tenth for everybody, a and b the rest
        (
            points(a=75, b=25),
            points(a=50, b=50),
            points(a=45, b=45, c=10),
            {"a": 675000000000, "b": 225000000000, "c": 10 * POINT},
            0,
        ),
        # gold was not really held: it moved as the whole did
        (points(a=90, gold=10), points(a=100), points(a=100), points(a=90, gold=10), 1),
        (points(a=50, c=50), points(a=100), points(a=90, c=10), points(a=45, c=55), 1),
        # what became worthless, or was taken out, is so for all
        (points(a=50, b=50), points(a=50, b=50), points(a=100), points(a=100), 0),
        (points(b=100), points(a=50, b=50), points(a=100), points(a=100), 1),
        # all was exchanged
        (points(a=100), points(a=100), points(c=100), points(c=100), 0),
        (points(c=100), points(a=100), points(c=100), points(c=100), 1),
        (points(a=100), {}, points(a=100), points(a=100), 1),
    ],
)
def test_weights_move_as_the_market(weights, held, told, after, guesses):
    found, assumed = moved(weights, held, told)
    assert sum(found.values()) == WHOLE
    assert assumed == guesses
    if after is not None:
        assert found == after


def test_many_small_weights_stay_whole():
    draw = Random(3)
    for _ in range(200):
        names = [f"a{number}" for number in range(draw.randint(1, 30))]
        three = [
            dict(
                zip(names, shared_out(WHOLE, [draw.randint(1, 10**9) for _ in names]), strict=True)
            )
            for _ in range(3)
        ]
        weights, held, told = three
        found, assumed = moved(weights, held, told)
        assert sum(found.values()) == WHOLE
        assert assumed == 0
        total = sum(Fraction(weights[n] * told[n], held[n]) for n in names)
        for name in names:
            exact = Fraction(weights[name] * told[name], held[name]) / total * WHOLE
            assert abs(found.get(name, 0) - exact) < 1


# ── a table ───────────────────────────────────────────────────────────────────────


def test_a_table_of_prices():
    lines = [
        "date,stocks,bonds",
        "2025-01-01,100,50",
        "",
        "2025-02-01,110.5,50",
        "2025-03-01,50,50",
    ]
    past = past_in(lines, points(stocks=60, bonds=40))
    assert past.updates[0].told == points(stocks=60, bonds=40)
    assert past.updates[1].told == {"bonds": 376293508937, "stocks": 623706491063}
    assert past.updates[2].told["stocks"] == 428571428571
    assert past.updates[2].held == past.updates[2].told
    track = replayed(past, SEED_POLICY, "seed")
    assert [len(p.changes) for p in track.points] == [0, 2, 2]
    assert [p.at for p in track.points] == [moment_of(f"2025-0{n}-01") for n in (1, 2, 3)]
    assert len(past_in(lines, points(stocks=100), since=moment_of("2025-02-01")).updates) == 2


def test_a_table_of_percentages_is_its_own_target():
    past = past_in(["date,a,b", "2025-01-01T12:00:00Z,60,40.0", "2025-01-02,70,30"])
    assert past.updates[0].target == points(a=60, b=40)
    assert past.updates[1].told == points(a=70, b=30)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([], "line 1: a date column"),
        (["date"], "line 1: a date column"),
        (["date,a,a"], "line 1: two columns have one name"),
        (["date,a,"], "line 1: '': an asset's name"),
        (["date,a"], "the table has no rows"),
        (["date,a", "1.2.2025,3"], "line 2: '1.2.2025' is neither a date"),
        (["date,a", "2025-01-01"], "line 2: 2 columns are expected"),
        (["date,a", "2025-01-01,x"], "line 2: a: 'x' is not a plain decimal number"),
        (["date,a", "2025-01-01,-1"], "line 2: a: an amount may not be negative"),
        (["date,a", "2025-01-02,1", "2025-01-02,1"], "line 3: dates must go up"),
        (["date,a", "2025-01-01,50"], "in percent, but the percentages add up to 50"),
        (["date,a,b", "2025-01-01,100,0", "2025-01-02,0,1"], "2025-01-02: all is worth nothing"),
    ],
)
def test_a_table_that_is_none(lines, problem):
    with pytest.raises(PastMissing) as error:
        past_in(lines)
    assert problem in str(error.value)


def test_a_table_that_does_not_fit_its_target():
    with pytest.raises(PastMissing, match="no column 'gold', which the target names"):
        past_in(["date,a", "2025-01-01,1"], points(gold=100))
    with pytest.raises(PastMissing, match="a is worth nothing in the first row"):
        past_in(["date,a", "2025-01-01,0"], points(a=100))


def test_a_moment():
    assert moment_of("1970-01-02") == DAY
    assert moment_of("1970-01-02", is_end=True) == 2 * DAY - 1
    assert moment_of("1970-01-01T02:00:00+02:00", is_end=True) == 0
    with pytest.raises(ValueError, match="'soon' is neither"):
        moment_of("soon")


# ── figures and drawing ───────────────────────────────────────────────────────────


def past_by_hand(weights: Sequence[Mapping[str, int]], step: int = DAY) -> Past:
    target = points(a=50, b=50)
    return Past([Update(n * step, target, dict(w), dict(w)) for n, w in enumerate(weights)], 0)


def test_figures_by_hand():
    half_year = 15_778_800_000_000
    past = past_by_hand([points(a=53, b=47), points(a=54, b=46)], half_year)
    track = real(past)
    shown = figures(track, Fraction(1, 100))
    assert shown.tracking_error_points == 3.535534  # the root of (9 + 16) / 2
    assert (shown.drift_max_points, shown.trades, shown.turnover_points_per_year) == (4.0, 0, 0.0)
    policy = Policy(band=Band(absolute=2 * POINT), trade_to="band")
    shown = figures(replayed(past, policy, "x"), Fraction(1, 100))
    # from 3 off to 2; then 52 x 54/53 and 48 x 46/47 are 3.00241 off, and 2 again
    assert (shown.trading_updates, shown.trades) == (2, 4)
    assert shown.turnover_points == 2.00241
    assert shown.turnover_points_per_year == 4.004819
    assert shown.cost_points == 0.040048


def test_a_band_s_use():
    policy = Policy(band=Band(absolute=4 * POINT), locked=("c",))
    track = replayed(past_by_hand([points(a=52, b=47, c=1), points(a=90, b=10)]), policy, "x")
    assert [point.reach for point in track.points] == [7_500, 30_000]
    assert [point.reach_after for point in track.points] == [7_500, 0]
    narrow = Policy(band=Band(absolute=0))
    track = replayed(past_by_hand([points(a=51, b=49)]), narrow, "x")
    assert (track.points[0].reach, track.points[0].reach_after) == (10_000, 0)
    assert replayed(past_by_hand([points(a=51, b=49)]), SEED_POLICY, "x").points[0].reach is None


def words_in(svg: str) -> list[str]:
    root = ET.fromstring(svg)
    return [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_picture_says_what_is_what():
    past = past_by_hand([points(a=50 + n % 7, b=50 - n % 7) for n in range(40)])
    tracks = [
        real(past),
        replayed(past, SEED_POLICY, "seed & <co>"),
        replayed(past, Policy(score=3 * POINT), "score"),
        replayed(past, Policy(band=Band(absolute=3 * POINT)), "bands"),
    ]
    svg = picture(tracks, "a title")
    words = words_in(svg)
    for word in ("a title", "real", "seed & <co>", "score: due", "due", "trades", "1970-01-01"):
        assert word in words
    assert words.count("bands") == 3  # drift, use of the band, trades
    assert "stroke-dasharray:9 4" in svg
    assert "prefers-color-scheme:dark" in svg
    assert "use of the band" not in " ".join(words_in(picture(tracks[:3], "x")))


def test_a_picture_of_one_update_and_of_very_many():
    one = past_by_hand([points(a=50, b=50)])
    assert "00:00:00" in words_in(picture([real(one)], "x"))
    steps = [(n, float(n % 100), 0.0) for n in range(50_000)]
    many = chart(
        "x",
        [Panel("p", [Curve(0, "c", steps)], [Bound("b", 100.0)])],
        [Lane(0, "c", range(50_000))],
    )
    ET.fromstring(many)
    assert len(many) < 120_000


def test_scores_are_those_of_the_product():
    past = past_by_hand([points(a=57, b=43)])
    assert real(past).points[0].before == drift_score(points(a=50, b=50), points(a=57, b=43))


def test_example_policies_are_what_their_comments_say():
    found = _policies(sorted((Path(__file__).parents[2] / "docs" / "policies").glob("*.toml")))
    assert found == {
        "seed": SEED_POLICY,
        "five-twentyfive": Policy(
            band=Band(absolute=5 * POINT, relative=25 * POINT), minimum_trade=POINT // 2
        ),
        "monthly": Policy(calendar="monthly", score=POINT, when="all"),
    }

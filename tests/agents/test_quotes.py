"""The board of quotes: what is taken, what counts, and for how long."""

import threading
from typing import Any

import msgspec
import pytest

from pennyweight.agents.quotes import IDS_KEPT, QuoteBoard
from pennyweight.products.loans.shared import ONE, Level, Market, Quote

NOW = 1_760_000_000_000_000
SECOND = 1_000_000


def make_board(
    age_seconds: float = 10.0, deviation_percent: float = 5.0, jump_percent: float = 30.0
) -> QuoteBoard:
    return QuoteBoard(
        age_seconds=age_seconds, deviation_percent=deviation_percent, jump_percent=jump_percent
    )


@pytest.fixture
def board() -> QuoteBoard:
    return make_board()


def quote(
    market: Market = "mos_espa",
    price: int = 50_00,
    *,
    at: int = NOW,
    received_at: int = NOW,
    name: str = "",
    quantities: tuple[int, ...] = (1, 100),
) -> Quote:
    """One whose largest quantity sells at `price` hundredths, the others for one more each."""
    steps = range(len(quantities) - 1, -1, -1)
    levels = tuple(
        Level(quantity, (price + step) * ONE // 100)
        for quantity, step in zip(quantities, steps, strict=True)
    )
    return Quote(market, name or f"{at}-{price}", at, received_at, levels)


def test_quotes_taken(board: QuoteBoard) -> None:
    mine, theirs = quote(), quote("black_spire", 51_00)
    assert board.fresh(NOW) == board.latest() == ()
    assert board.offer(theirs, NOW) == "accepted"
    assert board.offer(mine, NOW) == "accepted"
    assert board.fresh(NOW) == board.latest() == (mine, theirs)
    newer = quote(at=NOW + 1, price=50_10)
    assert board.offer(newer, NOW) == "accepted"
    assert board.fresh(NOW) == (newer, theirs)


def test_quotes_twice_or_late(board: QuoteBoard) -> None:
    first, same_time = quote(name="a"), quote(name="b", price=50_20)
    assert board.offer(first, NOW) == "accepted"
    assert board.offer(first, NOW) == "duplicate"
    assert board.offer(same_time, NOW) == "accepted"
    assert board.offer(first, NOW) == "duplicate"
    assert board.offer(quote(at=NOW - 1), NOW) == "out_of_order"
    assert board.offer(quote("black_spire", at=NOW - 1, name="a"), NOW) == "accepted"
    assert board.latest()[0] is same_time
    assert board.counts()["mos_espa"] == {
        "accepted": 2,
        "duplicate": 2,
        "stale": 0,
        "out_of_order": 1,
        "jump": 0,
    }


@pytest.mark.parametrize(
    ("at", "received_at", "verdict"),
    [
        (-10 * SECOND, 0, "accepted"),
        (-10 * SECOND - 1, 0, "stale"),
        (10 * SECOND, 0, "accepted"),
        (10 * SECOND + 1, 0, "stale"),
        (0, -10 * SECOND, "accepted"),
        (0, -10 * SECOND - 1, "stale"),
        (0, 10 * SECOND + 1, "stale"),
    ],
)
def test_age_when_offered(board: QuoteBoard, at: int, received_at: int, verdict: str) -> None:
    offered = quote(at=NOW + at, received_at=NOW + received_at)
    assert board.offer(offered, NOW) == verdict
    assert bool(board.latest()) == (verdict == "accepted")


@pytest.mark.parametrize(("at", "received_at"), [(-3, 0), (0, -3), (5, 0)])
def test_age_later_by_the_older_clock(board: QuoteBoard, at: int, received_at: int) -> None:
    offered = quote(at=NOW + at * SECOND, received_at=NOW + received_at * SECOND)
    board.offer(offered, NOW)
    until = NOW + (min(at, received_at) + 10) * SECOND
    assert board.counts_until(board.fresh(NOW)) == until
    assert board.fresh(until) == (offered,)
    assert board.fresh(until + 1) == ()
    assert board.counts_until(board.fresh(until + 1)) == 0
    assert board.latest() == (offered,)


def test_clock_that_went_back_counts_nothing(board: QuoteBoard) -> None:
    board.offer(quote(), NOW)
    assert board.fresh(NOW - 10 * SECOND)
    assert board.fresh(NOW - 10 * SECOND - 1) == ()


def test_counts_until_by_the_oldest(board: QuoteBoard) -> None:
    board.offer(quote(at=NOW - 2 * SECOND), NOW)
    board.offer(quote("black_spire", at=NOW - 5 * SECOND), NOW)
    assert board.counts_until(board.fresh(NOW)) == NOW + 5 * SECOND
    assert board.counts_until(board.fresh(NOW)[:1]) == NOW + 8 * SECOND
    assert board.counts_until(board.fresh(NOW + 6 * SECOND)) == NOW + 8 * SECOND


@pytest.mark.parametrize(
    ("price", "verdict"),
    [(65_00, "accepted"), (65_01, "jump"), (35_00, "accepted"), (34_99, "jump")],
)
def test_jump_bounds(board: QuoteBoard, price: int, verdict: str) -> None:
    board.offer(quote(), NOW)
    assert board.offer(quote(at=NOW + 1, price=price), NOW) == verdict


def test_jump_is_believed_when_the_last_is_dead(board: QuoteBoard) -> None:
    board.offer(quote(), NOW)
    for seconds in range(1, 11):
        now = NOW + seconds * SECOND
        assert board.offer(quote(at=now, received_at=now, price=20_00), now) == "jump"
        assert board.latest()[0].levels[1].sell == 50 * ONE
    now = NOW + 11 * SECOND
    assert board.offer(quote(at=now, received_at=now, price=20_00), now) == "accepted"
    assert board.fresh(now)[0].levels[1].sell == 20 * ONE


def test_jump_of_a_single_quantity(board: QuoteBoard) -> None:
    """Small loans are valued by the small quantities, and paid out by them."""
    assert board.offer(quote(), NOW) == "accepted"
    levels = (Level(1, 400 * ONE), Level(100, 50 * ONE))
    wrong = Quote("mos_espa", "wrong", NOW + 1, NOW + 1, levels)
    assert board.offer(wrong, NOW + 1) == "jump"


def test_deviation_of_a_single_quantity(board: QuoteBoard) -> None:
    assert board.offer(quote(), NOW) == "accepted"
    levels = (Level(1, 400 * ONE), Level(100, 50 * ONE))
    assert board.offer(Quote("black_spire", "wrong", NOW, NOW, levels), NOW) == "accepted"
    assert board.fresh(NOW) == ()


def test_jump_by_common_quantities(board: QuoteBoard) -> None:
    board.offer(quote(quantities=(1, 10, 100)), NOW)
    assert board.offer(quote(at=NOW + 1, price=10_00, quantities=(50,)), NOW) == "accepted"
    assert board.offer(quote(at=NOW + 2, price=20_00, quantities=(10, 50)), NOW) == "jump"
    assert board.offer(quote(at=NOW + 2, price=12_00, quantities=(1, 50, 100)), NOW) == "accepted"


@pytest.mark.parametrize(("price", "is_deviating"), [(52_50, False), (52_51, True)])
def test_deviation_bounds(board: QuoteBoard, price: int, is_deviating: bool) -> None:
    board.offer(quote(), NOW)
    board.offer(quote("black_spire", price, at=NOW + 5 * SECOND), NOW)
    assert board.state(NOW)["is_deviating"] == is_deviating
    assert len(board.fresh(NOW)) == (0 if is_deviating else 2)
    assert (board.counts_until(board.fresh(NOW)) == 0) == is_deviating
    assert len(board.latest()) == 2
    # One that is dead contradicts nobody.
    board.offer(quote("black_spire", price, at=NOW + 6 * SECOND, received_at=NOW + SECOND), NOW)
    assert len(board.fresh(NOW + 11 * SECOND)) == 1
    assert not board.state(NOW + 11 * SECOND)["is_deviating"]


def test_deviation_needs_a_common_quantity(board: QuoteBoard) -> None:
    board.offer(quote(quantities=(1,)), NOW)
    board.offer(quote("black_spire", 10_00, quantities=(100,)), NOW)
    assert len(board.fresh(NOW)) == 2


def test_percents_are_exact() -> None:
    board = make_board(jump_percent=0.1, deviation_percent=0.0)
    board.offer(quote(price=1000_00), NOW)
    assert board.offer(quote(price=1001_00, at=NOW + 1), NOW) == "accepted"
    assert board.offer(quote(price=1002_01, at=NOW + 2), NOW) == "jump"
    board.offer(quote("black_spire", 1001_00), NOW)
    assert len(board.fresh(NOW)) == 2
    board.offer(quote("black_spire", 1001_01, at=NOW + 1), NOW)
    assert board.fresh(NOW) == ()


def test_ids_are_bounded(board: QuoteBoard) -> None:
    for number in range(IDS_KEPT + 1):
        assert board.offer(quote(name=str(number)), NOW) == "accepted"
    assert board.offer(quote(name="1"), NOW) == "duplicate"
    assert board.offer(quote(name="0"), NOW) == "accepted"


def test_state_of_nothing(board: QuoteBoard) -> None:
    state = board.state(NOW)
    assert state["best"] == []
    assert state["is_deviating"] is False
    assert state["markets"]["mos_espa"]["levels"] == []
    assert state["markets"]["mos_espa"]["is_fresh"] is False
    assert state["markets"]["mos_espa"]["at"] is None


def test_state_as_json(board: QuoteBoard) -> None:
    board.offer(quote(at=NOW - 2 * SECOND, quantities=(1, 10)), NOW)
    board.offer(quote("black_spire", 50_01, quantities=(10, 100)), NOW)
    state: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(board.state(NOW + 500_000)))
    assert state["markets"]["mos_espa"] == {
        "at": "2025-10-09T08:53:18.000000Z",
        "received_at": "2025-10-09T08:53:20.000000Z",
        "age_seconds": 2.5,
        "is_fresh": True,
        "levels": [{"quantity": 1, "sell": "50.01"}, {"quantity": 10, "sell": "50"}],
        "counts": {"accepted": 1, "duplicate": 0, "stale": 0, "out_of_order": 0, "jump": 0},
    }
    assert state["best"] == [
        {"quantity": 1, "market": "black_spire", "sell": "50.02"},
        {"quantity": 10, "market": "black_spire", "sell": "50.02"},
        {"quantity": 50, "market": "black_spire", "sell": "50.01"},
        {"quantity": 100, "market": "black_spire", "sell": "50.01"},
    ]


def test_board_from_many_threads(board: QuoteBoard) -> None:
    def offer(market: Market) -> None:
        for number in range(500):
            board.offer(quote(market, at=NOW + number), NOW)
            board.fresh(NOW)
            board.state(NOW)

    markets: list[Market] = ["mos_espa", "mos_espa", "black_spire", "black_spire"]
    threads = [threading.Thread(target=offer, args=(market,)) for market in markets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.at for one in board.latest()} == {NOW + 499}
    assert all(sum(counts.values()) == 1_000 for counts in board.counts().values())

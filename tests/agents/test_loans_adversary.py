"""What an adversary tried against loans: standing still, dying, and lying at the worst moments."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from lending import Posts, Rig, check_sales, quote, wait_for
from pennyweight.agents.breaker import Breaker
from pennyweight.agents.liquidator import (
    BACK_OFF_SECONDS_MAX,
    REFUSALS_MAX,
    SLOW_SECONDS,
    Liquidator,
)
from pennyweight.config import Aws, Config, Loans
from pennyweight.lending import QUOTES, STATE, Desk, Ends, Window, queue_name
from pennyweight.products.loans.shared import MARKETS
from pennyweight.runtime.clock import wall_clock


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()
    rig.store.close()


# ── an owner that stands still ────────────────────────────────────────────────────


def test_owner_that_stood_still_after_it_asked_sends_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it is stopped right after it saw that the book is its own, and thawed too late."""
    posts, sure = Posts(), rig.book.is_sure_for
    is_frozen = threading.Event()

    def stand_still(seconds: float) -> bool:
        is_sure = sure(seconds)
        if not is_frozen.is_set():
            is_frozen.set()
            time.sleep(0.5)  # longer than an order may take
        return is_sure

    quotes = rig.feed("30")
    rig.active_loan("a")
    rig.begin("a", quotes)
    monkeypatch.setattr(rig.book, "is_sure_for", stand_still)
    agent = Liquidator(rig.book, rig.board, lambda: posts, timeout_seconds=0.3, margin_seconds=0.02)
    rig.add(agent)
    wait_for(lambda: rig.loan("a").status == "liquidated")
    late = agent.in_doubt.total()
    assert late >= 1
    assert posts.asked.total() == agent.orders.total() - late
    check_sales(rig, posts)


# ── posts that refuse everything ──────────────────────────────────────────────────


def test_loans_that_every_post_refuses_try_now_and_then(rig: Rig) -> None:
    """A slice is an entry: the journal must not fill while nobody buys."""
    agent = Liquidator(rig.book, rig.board, Posts, timeout_seconds=0.3, margin_seconds=0.02)
    for each in (quote("mos_espa", "30"), quote("black_spire", "29")):
        rig.board.offer(each, wall_clock())
    assert agent._patience_after(20) <= BACK_OFF_SECONDS_MAX
    for market in MARKETS:
        assert agent._patience_after(20) <= BACK_OFF_SECONDS_MAX  # one of them is worth asking
        for _ in range(REFUSALS_MAX):
            agent._refusals[market].doubted(time.monotonic())
    assert agent._patience_after(1) >= SLOW_SECONDS / 2
    assert agent.status.startswith("all orders are refused by mos_espa, black_spire")
    agent._refusals["mos_espa"].answered()
    assert agent._patience_after(20) <= BACK_OFF_SECONDS_MAX


# ── a post that is silent for long ────────────────────────────────────────────────


def test_loans_that_wait_for_a_silent_post_hold_up_no_others(rig: Rig) -> None:
    """Each time it might answer again a new slice tries it; that must not go on for ever."""
    posts = Posts()
    posts.plan = lambda market, request_id, asked: "silent" if market == "mos_espa" else "fill"
    agent = Liquidator(
        rig.book,
        rig.board,
        lambda: posts,
        timeout_seconds=0.3,
        margin_seconds=0.02,
        orders_max=1,
        loans_max=10,
        new_breaker=lambda: Breaker(doubts_max=1, rest_seconds=0.01),
        rescan_seconds=0.1,
    )
    rig.add(agent)
    quotes = (quote("mos_espa", "30"), quote("black_spire", "29"))
    for each in quotes:
        rig.board.offer(each, wall_clock())
    for number in range(40):
        rig.active_loan(f"loan-{number}")
        rig.begin(f"loan-{number}", quotes)
    names = [f"loan-{number}" for number in range(40)]
    wait_for(lambda: sum(rig.loan(name).status == "liquidated" for name in names) >= 35)
    posts.plan = lambda market, request_id, asked: "fill"
    wait_for(lambda: all(rig.loan(name).status == "liquidated" for name in names))
    check_sales(rig, posts)
    wait_for(lambda: not agent._doubted.total())


def test_post_that_refuses_everything_strands_nobody(rig: Rig) -> None:
    """It says the better price, and a definite no to every order: the other one sells."""
    posts = Posts()
    posts.plan = lambda market, request_id, asked: "fail" if market == "mos_espa" else "fill"
    quotes = (quote("mos_espa", "30"), quote("black_spire", "29"))
    for each in quotes:
        rig.board.offer(each, wall_clock())
    agent = Liquidator(rig.book, rig.board, lambda: posts, timeout_seconds=1, margin_seconds=0.02)
    rig.add(agent)
    rig.active_loan("a")
    rig.begin("a", quotes)
    wait_for(lambda: rig.loan("a").status == "liquidated")
    assert agent.filled == {"black_spire": 1}
    assert agent.failed["mos_espa"] >= 10
    assert agent.status == "all orders are refused by mos_espa"
    check_sales(rig, posts)


# ── what fronts show ──────────────────────────────────────────────────────────────


def front(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Window:
    """Return what a front shows, to whom an owner has told of two quotes a moment ago."""
    config = Config(loans=Loans(is_watched=True))
    ends = Ends(config)
    (desk,) = ends.of(rig.book)
    for each in (quote("mos_espa", "30"), quote("black_spire", "31")):
        assert desk.board.offer(each, wall_clock()) == "accepted"
    told = ends.boards()
    assert set(told) == {STATE, QUOTES}
    told = {name: msgspec.Raw(bytes(board)) for name, board in told.items()}
    monkeypatch.setattr(desk, "is_over", True)
    return Window(lambda: told, None, config.loans)


def test_front_shows_what_the_owner_shows(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    window = front(rig, monkeypatch)
    shown: Any = window.prices()
    assert all(market["is_fresh"] for market in shown["markets"].values())
    assert shown["markets"]["mos_espa"]["counts"]["accepted"] == 1
    assert {entry["market"] for entry in shown["best"]} == {"black_spire"}
    assert len(window.quotes()) == 2


def test_prices_that_a_dead_owner_told_grow_old(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells anything any more: a front does not call fresh what is an hour old."""
    window = front(rig, monkeypatch)
    later = wall_clock() + 3_600_000_000
    monkeypatch.setattr("pennyweight.lending.wall_clock", lambda: later)
    shown: Any = window.prices()
    assert not any(market["is_fresh"] for market in shown["markets"].values())
    assert shown["markets"]["mos_espa"]["age_seconds"] >= 3_599
    assert shown["best"] == []
    assert window.quotes() == ()


def test_front_that_was_told_nothing(rig: Rig) -> None:
    window = Window(dict, None, Loans())
    assert window.prices() is None
    assert window.quotes() == ()


# ── the end ───────────────────────────────────────────────────────────────────────


def test_notice_that_hangs_does_not_keep_an_owner_from_ending(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pennyweight.lending.NOTICES_END_SECONDS", 0.2)
    ends = Ends(Config(aws=Aws(endpoint="http://127.0.0.1:9")))
    (desk,) = ends.of(rig.book)
    assert isinstance(desk, Desk)
    assert desk.relay is not None
    is_hanging, is_over = threading.Event(), threading.Event()

    def hang() -> None:
        is_hanging.set()
        is_over.wait(30)

    monkeypatch.setattr(desk.relay, "_session", hang)
    desk.relay.start()
    wait_for(is_hanging.is_set)
    ending = threading.Thread(target=desk.stop)
    ending.start()
    ending.join(15)
    hung = ending.is_alive()
    is_over.set()
    ending.join()
    ends.close()
    assert not hung


# ── names ─────────────────────────────────────────────────────────────────────────


def test_queue_of_a_book_with_a_long_name() -> None:
    """SQS takes 80 characters, also for the dead letters; books may be called by 64."""
    assert queue_name("main", "mos_espa") == "pennyweight-main-mos-espa"
    names = {queue_name(letter * 64, "black_spire") for letter in "ab"}
    assert len(names) == 2
    assert all(len(f"{name}-dead") <= 80 for name in names)

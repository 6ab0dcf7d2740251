"""Liquidations are carried out, whatever the posts do, and nothing is sold twice."""

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lending import Posts, Rig, check_sales, quote, wait_for
from pennyweight.agents import liquidator as liquidator_module
from pennyweight.agents.breaker import Breaker
from pennyweight.agents.liquidator import Liquidator
from pennyweight.engine.engine import QueueFull, Submission
from pennyweight.engine.port import StoreUnavailable
from pennyweight.engine.receipts import Failure, Unknown
from pennyweight.ledger.money import format_amount, to_units
from pennyweight.links.errors import ExtraMissing
from pennyweight.links.venues import Filled, Venues
from pennyweight.products.loans.liquidate import FailSlice, FillSlice, PlaceSlices
from pennyweight.products.loans.shared import ONE, Market
from pennyweight.runtime.driver import ForEver, Unavailable
from pennyweight.runtime.member import Tenure as MembersTenure
from pennyweight.runtime.member import steady_clock
from pennyweight.stores.sqlite import SQLiteStore


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits, so that many things go wrong in a short time."""
    monkeypatch.setattr(liquidator_module, "BACK_OFF_SECONDS", 0.001)
    monkeypatch.setattr(liquidator_module, "BACK_OFF_SECONDS_MAX", 0.01)
    monkeypatch.setattr(liquidator_module, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(liquidator_module, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(liquidator_module, "GRACE_SECONDS", 0.1)


@pytest.fixture(params=["memory", "sqlite"])
def rig(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Rig]:
    store = None
    if request.param == "sqlite":
        store = SQLiteStore.open(tmp_path / "book", new_incarnation="life")
    rig = Rig(store)
    yield rig
    rig.close()
    rig.store.close()


def liquidator(rig: Rig, posts: Any, **options: Any) -> Liquidator:
    options = {"timeout_seconds": 0.3, "margin_seconds": 0.02, "rescan_seconds": 0.1} | options
    made = Liquidator(rig.book, rig.board, lambda: posts, **options)
    rig.add(made)
    return made


def begun(rig: Rig, *names: str, collateral: str = "40", amount: str = "1000") -> None:
    """Have liquidations under way, at a price of 30."""
    quotes = rig.feed("30")
    for name in names:
        rig.active_loan(name, amount, collateral, at="100")
        rig.begin(name, quotes)


def ended(rig: Rig, *names: str) -> None:
    wait_for(lambda: all(rig.loan(name).status == "liquidated" for name in names))


def test_loan_is_sold_to_its_end(rig: Rig) -> None:
    posts = Posts()
    agent = liquidator(rig, posts)
    begun(rig, "a")
    ended(rig, "a")
    loan = rig.loan("a")
    assert loan.balance == 0
    assert loan.sold + loan.returned == 40 * ONE
    assert loan.proceeds == 1000 * ONE + loan.surplus
    check_sales(rig, posts)
    wait_for(lambda: agent.liquidated == 1 and not agent.under_way)
    assert sum(agent.filled.values()) == sum(agent.orders.values()) == len(posts.executed)
    assert (agent.status, agent.broken, sum(agent.in_doubt.values())) == ("", 0, 0)
    assert not agent._sent


def test_large_loan_is_sold_in_many_slices(rig: Rig) -> None:
    posts = Posts()
    liquidator(rig, posts)
    begun(rig, "a", amount="25000", collateral="1000")
    ended(rig, "a")
    check_sales(rig, posts)
    assert len(rig.slices("a")) >= 8
    assert rig.loan("a").balance == 0


def test_collateral_that_does_not_suffice_ends_with_a_deficit(rig: Rig) -> None:
    posts = Posts({"mos_espa": "10", "black_spire": "9"})
    liquidator(rig, posts)
    begun(rig, "a")
    ended(rig, "a")
    loan = rig.loan("a")
    assert loan.sold == 40 * ONE
    assert loan.balance > 0
    check_sales(rig, posts)


@pytest.mark.parametrize("word", ["fail", "lost", "silent", "late", "hang"])
def test_first_answer_of_every_kind(rig: Rig, word: str) -> None:
    """A definite no gets a new id; whatever is in doubt is asked for again under the same."""
    posts = Posts()
    firsts: set[Market] = set()

    def plan(market: Market, request_id: str, asked: int) -> str:
        is_first = market not in firsts
        firsts.add(market)
        return word if is_first else "fill"

    posts.plan = plan
    agent = liquidator(rig, posts)
    begun(rig, "a")
    ended(rig, "a")
    check_sales(rig, posts)
    again = [asked for asked in posts.asked.values() if asked > 1]
    failed = [part for part in rig.slices("a") if part.state == "failed"]
    assert bool(failed) == (word == "fail")
    assert bool(again) == (word != "fail")
    assert (sum(agent.in_doubt.values()) > 0) == (word != "fail")


def test_in_doubt_then_a_definite_no(rig: Rig) -> None:
    posts = Posts()
    posts.plan = lambda market, request_id, asked: ("silent", "silent", "fail")[min(asked, 2)]
    agent = liquidator(rig, posts)
    begun(rig, "a")
    wait_for(lambda: any(part.state == "failed" for part in rig.slices("a")))
    posts.plan = lambda market, request_id, asked: "fill"
    ended(rig, "a")
    check_sales(rig, posts)
    assert sum(agent.failed.values()) > 0


def test_other_slices_go_on_while_one_is_in_doubt(rig: Rig) -> None:
    """One post executes but nobody ever hears of it: the rest is sold at the other."""
    posts = Posts()
    is_silent = True
    posts.plan = lambda market, request_id, asked: (
        "lost" if is_silent and market == "black_spire" else "fill"
    )
    agent = liquidator(rig, posts)
    begun(rig, "a", amount="9600", collateral="400")
    wait_for(lambda: sum(part.state == "filled" for part in rig.slices("a")) >= 2)
    wait_for(lambda: rig.loan("a").remaining <= 0 and len(rig.loan("a").open) == 1)
    assert rig.loan("a").open[0].market == "black_spire"
    assert rig.loan("a").balance > 0
    wait_for(lambda: agent.states()["black_spire"] == "open")
    assert agent.status == "no answers from black_spire"
    is_silent = False
    ended(rig, "a")
    check_sales(rig, posts)
    wait_for(lambda: agent.status == "")
    assert len(posts.executed) == len(rig.slices("a"))


def test_partial_fill_goes_on(rig: Rig) -> None:
    posts = Posts()

    async def half(market: Market, request_id: str, quantity: str, _: Any) -> Any:
        filled = await Posts.sell(posts, market, request_id, quantity)
        if (market, request_id) not in posts.executed or posts.asked.total() > 2:
            return filled
        units = to_units(quantity, 24) // 2
        answer = Filled(filled.order_id, format_amount(units, 24), format_amount(units * 30, 24))
        posts.executed[market, request_id] = answer
        return answer

    posts.sell = half  # type: ignore[method-assign]
    liquidator(rig, posts)
    begun(rig, "a")
    ended(rig, "a")
    check_sales(rig, posts)


def test_what_the_book_cannot_take_is_asked_for_again(rig: Rig) -> None:
    posts = Posts()
    posts.plan = lambda market, request_id, asked: (
        Filled("x", "1e-25", "1") if not asked else "fill"
    )
    agent = liquidator(rig, posts)
    begun(rig, "a")
    ended(rig, "a")
    check_sales(rig, posts)
    assert agent.broken == 0


@pytest.mark.parametrize("fault", ["unknown", "done_unknown", "full", "unavailable", "failure"])
@pytest.mark.parametrize("kind", [PlaceSlices, FillSlice, FailSlice])
def test_every_command_of_which_nothing_is_heard(
    rig: Rig, kind: type[Any], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = Posts()
    posts.plan = lambda market, request_id, asked: "fail" if len(posts.asked) < 2 else "fill"
    submit, told = rig.book.submit, []

    def faulty(submission: Submission) -> None:
        if not isinstance(submission.command, kind) or len(told) >= 3:
            submit(submission)
            return
        told.append(submission)
        if fault == "full":
            raise QueueFull("full")
        if fault == "unavailable":
            raise Unavailable("no_owner", "away")
        if fault == "failure":
            submission.ticket(Failure(RuntimeError("a bug")))
            return
        ticket = submission.ticket
        if fault == "unknown":
            ticket(Unknown("who knows"))
            return
        submission.ticket = lambda outcome: ticket(Unknown("but it was done"))
        submit(submission)

    monkeypatch.setattr(rig.book, "submit", faulty)
    agent = liquidator(rig, posts)
    begun(rig, "a")
    ended(rig, "a")
    check_sales(rig, posts)
    assert told
    assert (agent.broken > 0) == (fault == "failure")


def test_bug_in_one_loan_does_not_stop_the_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts = Posts()
    place = Liquidator._open_slice
    is_broken = True

    async def buggy(self: Liquidator, loan_id: str, number: int) -> Any:
        if is_broken and loan_id == "bad":
            raise ZeroDivisionError
        return await place(self, loan_id, number)

    monkeypatch.setattr(Liquidator, "_open_slice", buggy)
    agent = liquidator(rig, posts)
    begun(rig, "bad", "good", "better")
    ended(rig, "good", "better")
    wait_for(lambda: agent.broken > 1)
    is_broken = False
    ended(rig, "bad")
    check_sales(rig, posts)


def test_store_that_is_away_for_a_while(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    posts = Posts()
    is_away = True

    def away(name: str) -> Callable[..., Any]:
        real = getattr(rig.store, name)

        def ask(*values: Any, **options: Any) -> Any:
            if is_away and threading.current_thread().name.startswith("pennyweight-liquidator"):
                raise StoreUnavailable("the store is away")
            return real(*values, **options)

        return ask

    begun(rig, "a")
    for name in ("record", "records"):
        monkeypatch.setattr(rig.store, name, away(name))
    agent = liquidator(rig, posts)
    wait_for(lambda: agent.status == "the store is away")
    agent._heard.append("a")
    agent._wake()
    time.sleep(0.3)
    is_away = False
    ended(rig, "a")
    wait_for(lambda: agent.status == "")
    assert agent.broken == 0


def test_posts_that_cannot_be_opened(rig: Rig) -> None:
    def missing() -> Any:
        raise ExtraMissing("the extra `venues` is missing")

    agent = Liquidator(rig.book, rig.board, missing, timeout_seconds=1, margin_seconds=0.1)
    rig.add(agent)
    wait_for(lambda: agent.status == "the extra `venues` is missing")


def test_posts_where_nobody_listens(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    posts = Venues({"mos_espa": url, "black_spire": url}, timeout_seconds=0.2)
    agent = liquidator(rig, posts)
    begun(rig, "a", "b")
    wait_for(lambda: set(agent.states().values()) == {"open"})
    assert agent.status == "no answers from mos_espa, black_spire"
    rig.remove(agent)
    assert all(part.state == "open" for name in "ab" for part in rig.slices(name))
    posts = Posts()
    liquidator(rig, posts)
    ended(rig, "a", "b")
    check_sales(rig, posts)


# ── quotes ────────────────────────────────────────────────────────────────────────


def test_goes_on_without_any_quote_by_those_of_the_last_slice(rig: Rig) -> None:
    quotes = (quote("mos_espa", "30"),)
    rig.active_loan("a", "9600", "400", at="100")
    rig.begin("a", quotes)
    posts = Posts()
    posts.plan = lambda market, request_id, asked: "fail" if len(posts.asked) < 3 else "fill"
    liquidator(rig, posts)
    ended(rig, "a")
    assert all(part.quotes == quotes for part in rig.slices("a"))
    check_sales(rig, posts)


def test_goes_on_by_the_latest_quotes_when_none_is_fresh(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(rig, "a", amount="9600", collateral="400")
    latest = rig.feed("31")
    monkeypatch.setattr(rig.board, "fresh", lambda now: ())
    posts = Posts()
    liquidator(rig, posts)
    ended(rig, "a")
    assert {part.quotes for part in rig.slices("a")[2:]} == {latest}


def test_size_that_only_one_market_quotes(rig: Rig) -> None:
    rig.active_loan("a", "950", "40", at="100")
    quotes = (quote("mos_espa", "30", (1,)), quote("black_spire", "29"))
    rig.begin("a", quotes)
    posts = Posts()
    liquidator(rig, posts)
    ended(rig, "a")
    check_sales(rig, posts)


# ── the breaker ───────────────────────────────────────────────────────────────────


def test_open_breaker_sends_new_slices_elsewhere(rig: Rig) -> None:
    """Slices that were never sent to a dead post are withdrawn, and placed at the other."""
    posts = Posts()
    posts.plan = lambda market, request_id, asked: "silent" if market == "mos_espa" else "fill"
    agent = liquidator(
        rig,
        posts,
        orders_max=2,
        new_breaker=lambda: Breaker(doubts_max=3, rest_seconds=60),
    )
    names = [f"loan-{number}" for number in range(12)]
    begun(rig, *names, amount="3600", collateral="150")
    wait_for(lambda: agent.states()["mos_espa"] == "open")
    dead = {
        part.loan for name in names for part in rig.slices(name) if part.request_id in agent._sent
    }
    wait_for(
        lambda: (
            all(rig.loan(name).status == "liquidated" or rig.loan(name).open for name in names)
            and sum(rig.loan(name).status == "liquidated" for name in names) >= 12 - 4
        )
    )
    assert agent.withdrawn["mos_espa"] > 0
    assert not agent.withdrawn["black_spire"]
    assert len(dead) <= 12
    posts.plan = lambda market, request_id, asked: "fill"
    ended(rig, *names)
    check_sales(rig, posts)
    wait_for(lambda: agent.states()["mos_espa"] == "closed")


def test_the_only_post_is_used_although_its_breaker_is_open(rig: Rig) -> None:
    quotes = (quote("mos_espa", "30"),)
    rig.active_loan("a", "5000", "200", at="100")
    rig.begin("a", quotes)
    posts = Posts()
    posts.plan = lambda market, request_id, asked: "silent" if asked < 4 else "fill"
    agent = liquidator(rig, posts, new_breaker=lambda: Breaker(doubts_max=2, rest_seconds=60))
    wait_for(lambda: agent.breakers["mos_espa"].openings)
    ended(rig, "a")
    check_sales(rig, posts)
    assert not agent.withdrawn


def test_slice_of_an_earlier_ownership_is_never_withdrawn(rig: Rig) -> None:
    begun(rig, "a", amount="3600", collateral="150")
    old = {part.request_id for part in rig.slices("a")}
    posts = Posts()
    posts.plan = lambda market, request_id, asked: "silent" if market == "mos_espa" else "fill"
    agent = liquidator(rig, posts, new_breaker=lambda: Breaker(doubts_max=1, rest_seconds=60))
    wait_for(lambda: agent.in_doubt["mos_espa"] > 3)
    assert not any(part.state == "failed" and part.request_id in old for part in rig.slices("a"))
    posts.plan = lambda market, request_id, asked: "fill"
    ended(rig, "a")
    check_sales(rig, posts)


def test_orders_at_one_post_are_bounded(rig: Rig) -> None:
    posts = Posts()
    names = [f"loan-{number}" for number in range(15)]
    begun(rig, *names)
    liquidator(rig, posts, orders_max=3)
    ended(rig, *names)
    assert max(posts.most_out.values()) <= 3
    check_sales(rig, posts)


def test_loans_beyond_the_bound_wait_for_their_turn(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liquidator_module, "WAITING_MAX", 4)
    monkeypatch.setattr(liquidator_module, "PAGE", 3)
    posts = Posts()
    names = [f"loan-{number:02}" for number in range(14)]
    begun(rig, *names)
    agent = liquidator(rig, posts, loans_max=2)
    most = 0

    def is_done() -> bool:
        nonlocal most
        most = max(most, agent.under_way)
        return all(rig.loan(name).status == "liquidated" for name in names)

    wait_for(is_done)
    assert most <= 2
    wait_for(lambda: agent.liquidated == 14)
    check_sales(rig, posts)


# ── ownership ─────────────────────────────────────────────────────────────────────


class Tenure:
    """A lease that a test lets run out."""

    def __init__(self) -> None:
        self.until = time.monotonic() + 3_600

    @property
    def is_sure(self) -> bool:
        return self.is_sure_for(0)

    def is_sure_for(self, seconds: float) -> bool:
        return time.monotonic() + seconds < self.until

    def confirm(self) -> None:
        """It is not asked who owns it."""


class Promised:
    """A member whose store has promised the book for ten seconds, under epoch 7."""

    def __init__(self) -> None:
        self.promised = (7, steady_clock() + 10)


def test_tenure_is_sure_for_as_long_as_was_promised(rig: Rig) -> None:
    tenure = MembersTenure(Promised(), 7)  # type: ignore[arg-type]
    assert (tenure.is_sure, tenure.is_sure_for(5), tenure.is_sure_for(11)) == (True, True, False)
    former = MembersTenure(Promised(), 6)  # type: ignore[arg-type]
    assert (former.is_sure, former.is_sure_for(0)) == (False, False)
    assert ForEver().is_sure_for(10**9)
    assert rig.book.is_sure_for(10**9)
    rig.book.is_lost = True
    assert not rig.book.is_sure_for(0)
    rig.book.is_lost = False


def test_nothing_is_sent_unless_the_lease_outlasts_the_order(rig: Rig) -> None:
    tenure = rig.book._tenure = Tenure()
    tenure.until = time.monotonic() + 0.2  # sure now, but not for as long as an order takes
    posts = Posts()
    agent = liquidator(rig, posts)
    begun(rig, "a")
    wait_for(lambda: agent._is_unsure)
    time.sleep(0.3)
    assert not posts.asked
    assert agent.status == "nothing is sold while the book may get another owner"
    tenure.until = time.monotonic() + 3_600
    ended(rig, "a")
    check_sales(rig, posts)


def test_owner_that_stood_still_before_it_asked_sends_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when it is stopped between the intention and the order, and thawed too late."""
    tenure = rig.book._tenure = Tenure()
    posts, admitted = Posts(), Liquidator._is_admitted

    def freeze(self: Liquidator, part: Any) -> bool:
        tenure.until = 0.0
        return admitted(self, part)

    monkeypatch.setattr(Liquidator, "_is_admitted", freeze)
    agent = liquidator(rig, posts)
    begun(rig, "a")
    wait_for(lambda: agent._is_unsure)
    rig.remove(agent)
    assert not posts.asked
    monkeypatch.undo()
    tenure.until = time.monotonic() + 3_600
    liquidator(rig, posts)
    ended(rig, "a")
    check_sales(rig, posts)


def test_book_that_is_lost_sends_nothing(rig: Rig) -> None:
    posts = Posts()
    begun(rig, "a")
    rig.book.is_lost = True
    agent = liquidator(rig, posts)
    time.sleep(0.3)
    rig.remove(agent)
    rig.book.is_lost = False
    assert not posts.asked


def test_new_orders_wait_after_a_take_over(rig: Rig) -> None:
    """What was placed before is asked for at once, what is to be placed waits."""
    begun(rig, "old", amount="9600", collateral="400")
    old = {part.request_id for part in rig.slices("old")}
    posts = Posts()
    began = time.monotonic()
    agent = liquidator(rig, posts, margin_seconds=0.7)
    begun(rig, "new", amount="9600", collateral="400")
    ended(rig, "new")
    assert len(rig.slices("new")) > 2
    if time.monotonic() < began + 0.9:  # else this machine was too slow to see it
        assert {part.request_id for part in rig.slices("old")} == old
    ended(rig, "old")
    assert agent._places_from >= began + 1.0
    later = [part for part in rig.slices("old") if part.request_id not in old]
    waited = min(part.placed_at for part in later) - agent._owned_at
    assert later
    assert waited > 0
    check_sales(rig, posts)


@pytest.mark.parametrize("word", ["late", "hang"])
def test_successor_resumes_what_was_out(rig: Rig, word: str) -> None:
    """Stopped in the middle of an order, executed or not: it is asked for under its own id."""
    posts = Posts()
    posts.plan = lambda market, request_id, asked: word
    first = liquidator(rig, posts, timeout_seconds=30)
    begun(rig, "a", "b")
    wait_for(lambda: posts.hangs >= 2)
    started = time.monotonic()
    rig.remove(first)
    assert time.monotonic() - started < 10
    out = set(posts.asked)
    posts.plan = lambda market, request_id, asked: "fill"
    liquidator(rig, posts)
    ended(rig, "a", "b")
    assert all(posts.asked[place] == 2 for place in out)
    check_sales(rig, posts)


def test_many_successors_and_all_faults(rig: Rig) -> None:
    """Agents are stopped at any moment, posts do everything they may: each id is executed once."""
    draw = random.Random(11)
    posts = Posts()
    words = ["fill"] * 6 + ["fail"] * 3 + ["lost", "silent", "late"]
    posts.plan = lambda market, request_id, asked: draw.choice(words)
    names = [f"loan-{number:02}" for number in range(20)]
    begun(rig, *names, amount="4400", collateral="180")
    for _ in range(8):
        agent = liquidator(rig, posts, timeout_seconds=0.05)
        time.sleep(draw.uniform(0, 0.25))
        rig.feed(draw.choice(["25", "28", "31", "40"]))
        rig.remove(agent)
    liquidator(rig, posts, timeout_seconds=0.05)
    wait_for(lambda: all(rig.loan(name).status == "liquidated" for name in names), 60)
    check_sales(rig, posts)
    for name in names:
        numbers = [part.number for part in rig.slices(name)]
        assert numbers == list(range(1, len(numbers) + 1))
    assert rig.commands().count("begin_liquidation") == 20


def test_stop_before_anything_began(rig: Rig) -> None:
    agent = Liquidator(rig.book, rig.board, Posts, timeout_seconds=1, margin_seconds=0.1)
    agent.stop()
    agent = Liquidator(rig.book, rig.board, Posts, timeout_seconds=1, margin_seconds=0.1)
    agent.start()
    agent.stop()
    assert agent._loop is None


def test_hears_of_a_new_liquidation_at_once(rig: Rig) -> None:
    posts = Posts()
    agent = liquidator(rig, posts, rescan_seconds=3_600)
    wait_for(lambda: agent._loop is not None)
    begun(rig, "a")
    ended(rig, "a")


def test_finds_what_nobody_told_it(rig: Rig) -> None:
    posts = Posts()
    agent = liquidator(rig, posts)
    agent.hear = lambda answers: None  # type: ignore[method-assign]
    begun(rig, "a")
    ended(rig, "a")


def test_answer_after_the_loop_has_ended_is_dropped(rig: Rig) -> None:
    """A command that is decided when its agent is gone does not trouble the book."""
    posts = Posts()
    held: list[Submission] = []
    submit = rig.book.submit

    def hold(submission: Submission) -> None:
        if isinstance(submission.command, FillSlice):
            held.append(submission)
        else:
            submit(submission)

    rig.book.submit = hold  # type: ignore[method-assign]
    agent = liquidator(rig, posts)
    begun(rig, "a")
    wait_for(lambda: held)
    rig.remove(agent)
    rig.book.submit = submit  # type: ignore[method-assign]
    for submission in held:
        submit(submission)
    wait_for(lambda: any(part.state == "filled" for part in rig.slices("a")))
    liquidator(rig, posts)
    ended(rig, "a")
    check_sales(rig, posts)

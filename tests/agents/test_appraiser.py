"""Prices make loans active, warned, re-armed and due, in order, and each once."""

import random
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest

from lending import Rig, wait_for
from pennyweight.agents import appraiser as appraiser_module
from pennyweight.agents.appraiser import Appraiser, find, view_of
from pennyweight.engine.engine import Lane, QueueFull, Submission
from pennyweight.engine.port import StoreUnavailable
from pennyweight.engine.receipts import Failure, Refusal, Unknown
from pennyweight.ledger.refusals import Reason
from pennyweight.products.loans.apply import ApplyForLoan, TopUpCollateral
from pennyweight.products.loans.life import SetLiquidations
from pennyweight.products.loans.shared import LEVELS, level_of, mark_price
from pennyweight.runtime.driver import Unavailable
from pennyweight.stores.sqlite import SQLiteStore


@pytest.fixture(params=["memory", "sqlite"])
def rig(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Rig]:
    store = None
    if request.param == "sqlite":
        store = SQLiteStore.open(tmp_path / "book", new_incarnation="life")
    rig = Rig(store)
    yield rig
    rig.close()
    rig.store.close()


def idle(rig: Rig) -> Appraiser:
    """An appraiser whose thread does not run: the test ticks."""
    appraiser = Appraiser(rig.book, rig.board)
    appraiser._is_noticed = False
    return appraiser


def settled(rig: Rig, appraiser: Appraiser) -> None:
    """Wait for all outcomes of what was submitted."""
    while appraiser._in_flight:
        appraiser._take_outcomes(is_waiting=True)


def test_life_by_prices(rig: Rig) -> None:
    """1000 GC against 40 BESKAR: active at 50, warned from 35.7, re-armed above 41.7, due at 31.25."""
    appraiser = idle(rig)
    rig.new_loan("a")

    def tick(price: str) -> list[str]:
        before = len(rig.commands())
        rig.feed(price)
        appraiser.tick()
        settled(rig, appraiser)
        return rig.commands()[before:]

    assert tick("49") == []
    assert tick("52") == ["activate_loan"]
    assert tick("52") == []
    assert tick("38") == []
    assert tick("36") == ["warn_loan"]
    assert tick("35") == []
    assert tick("40") == []
    assert tick("45") == ["rearm_warning"]
    assert tick("36") == ["warn_loan"]
    assert tick("31") == ["begin_liquidation"]
    assert tick("31") == []
    assert tick("60") == []
    assert rig.loan("a").status == "liquidating"
    assert appraiser.done == {"activate": 1, "warn": 2, "rearm": 1, "liquidate": 1}
    assert (appraiser.hits, appraiser.ticks) == (5, 12)
    assert not appraiser.refused


def test_bounds_are_inclusive(rig: Rig) -> None:
    """A level's price is exact: 1 BESKAR at 80 against 64 is 80 percent."""
    appraiser = idle(rig)
    rig.new_loan("half", "40", "1")
    rig.active_loan("due", "64", "1", at="200")
    rig.active_loan("just-not", "63.999999999999999999999999", "1", at="200")
    rig.feed("80")
    appraiser.tick()
    settled(rig, appraiser)
    names = ("half", "due", "just-not")
    assert [rig.loan(name).status for name in names] == ["active", "liquidating", "active"]
    assert rig.loan("just-not").is_warned


def test_liquidations_go_first_and_by_ratio_over_all_levels(rig: Rig) -> None:
    draw = random.Random(5)
    figures: dict[str, tuple[int, int]] = {}
    for number in range(60):
        collateral = draw.choice((draw.randint(1, 10) * 0.1, draw.randint(2, 200)))
        name = f"loan-{number:02}"
        amount = round(float(collateral) * draw.randint(20, 50), 2)
        rig.active_loan(name, str(amount), f"{collateral:.1f}", at="200")
        loan = rig.loan(name)
        figures[name] = (loan.balance, loan.collateral)
    quotes = rig.feed("40")
    appraiser = idle(rig)
    appraiser.tick()
    settled(rig, appraiser)
    entries = [
        entry for entry in rig.entries() if entry.command in {"begin_liquidation", "warn_loan"}
    ]
    kinds = [entry.command for entry in entries]
    assert kinds == sorted(kinds)  # begin before warn
    ratios = []
    for entry in entries:
        if entry.command == "begin_liquidation":
            name = next(record.id for record in entry.records if record.kind == "loans.loan")
            balance, collateral = figures[name]
            price = mark_price(quotes, level_of(collateral))
            assert price is not None
            ratios.append(Fraction(balance, collateral * price))
    assert len(ratios) > 20
    assert ratios == sorted(ratios, reverse=True)


@pytest.mark.parametrize("page", [1, 2, 100])
def test_same_rank_is_ordered_exactly(rig: Rig, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
    """Ratios that differ by less than a rank, then equal ones by size; over pages, too."""
    monkeypatch.setattr(appraiser_module, "PAGE", page)
    rig.active_loan("b", "50.0000000001", "1", at="200")
    rig.active_loan("z", "50.0000000002", "1", at="200")
    rig.active_loan("a", "25.00000000005", "0.5", at="200")
    assert len({due.rank for due in rig.store.due("loans.liquidate.1", -(2**63), 0)}) == 1
    view = view_of(rig.feed("60"), 2**62, "life")
    found = [(candidate.kind, candidate.command.loan) for candidate in find(rig.store, view)]
    assert found == [(kind, loan) for kind in ("liquidate", "warn") for loan in "zba"]


def test_pages_go_on_behind_what_cannot_act(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appraiser_module, "PAGE", 3)
    monkeypatch.setattr(appraiser_module, "WINDOW", 2)
    for number in range(11):
        rig.new_loan(f"n{number:02}", "40", "1")
    appraiser = idle(rig)
    appraiser._resting = {(f"n{number:02}", 1): 2.0**40 for number in range(7)}
    rig.feed("100")
    assert appraiser.tick() == 4
    settled(rig, appraiser)
    assert [rig.loan(f"n{number:02}").status for number in range(11)] == ["new"] * 7 + [
        "active"
    ] * 4


@pytest.mark.parametrize(
    "outcome", [Refusal(Reason.ACCOUNT_CLOSED, "closed"), Failure(RuntimeError("a bug"))]
)
def test_what_was_refused_for_good_rests(rig: Rig, outcome: Any) -> None:
    rig.new_loan("a", "40", "1")
    rig.active_loan("other", "10", "1")
    appraiser = idle(rig)
    answers = iter([outcome])
    submit = rig.book.submit

    def refuse(submission: Submission) -> None:
        outcome = next(answers, None)
        submit(submission) if outcome is None else submission.ticket(outcome)

    rig.book.submit = refuse  # type: ignore[method-assign]
    rig.feed("100")
    assert appraiser.tick() == 1
    settled(rig, appraiser)
    assert appraiser.tick() == 0
    assert appraiser.refused.total() + appraiser.unanswered == 1
    appraiser._resting = dict.fromkeys(appraiser._resting, 0.0)
    assert appraiser.tick() == 1
    settled(rig, appraiser)
    assert rig.loan("a").status == "active"


@pytest.mark.parametrize("fault", ["unknown", "full", "unavailable", "store"])
def test_next_tick_finds_again_what_went_wrong(
    rig: Rig, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.new_loan("a", "40", "1")
    rig.feed("100")
    appraiser = Appraiser(rig.book, rig.board)
    submit, faults = rig.book.submit, iter([True])

    def broken(submission: Submission) -> None:
        if submission.lane is not Lane.TIMERS or not next(faults, False):
            submit(submission)
        elif fault == "full":
            raise QueueFull("full")
        elif fault == "unavailable":
            raise Unavailable("stopping", "it stops")
        elif fault == "store":
            raise StoreUnavailable("away")
        else:
            submission.ticket(Unknown("who knows"))

    monkeypatch.setattr(rig.book, "submit", broken)
    rig.add(appraiser)
    wait_for(lambda: next(faults, None) is None)
    appraiser.notice()
    wait_for(lambda: rig.loan("a").status == "active")
    wait_for(lambda: not appraiser.status)


def test_nothing_is_decided_without_fresh_quotes(rig: Rig) -> None:
    rig.new_loan("a", "40", "1")
    appraiser = idle(rig)
    assert appraiser.tick() == 0
    assert (appraiser.ticks, appraiser.status) == (0, "no fresh quotes, or they are too far apart")
    rig.feed("100")
    assert appraiser.tick() == 1
    assert appraiser.status == ""


def test_pause_is_not_scanned(rig: Rig) -> None:
    appraiser = idle(rig)
    rig.new_loan("new", "40", "1")
    rig.active_loan("due", "90", "1", at="200")
    rig.feed("100")

    def due(level: str) -> list[str]:
        rig.do(SetLiquidations(level))  # type: ignore[arg-type]
        view = appraiser._view()
        assert view is not None
        return [candidate.kind for candidate in find(rig.store, view)]

    assert due("halt_new_and_activation") == ["warn"]
    assert due("no_new") == ["activate", "warn"]
    assert due("normal") == ["liquidate", "activate", "warn"]


def test_one_loan_in_one_version_is_submitted_once(rig: Rig) -> None:
    rig.active_loan("due", "90", "1", at="200")
    rig.feed("100")
    appraiser = idle(rig)
    held: list[Submission] = []
    rig.book.submit = held.append  # type: ignore[method-assign]
    assert appraiser.tick() == 1
    assert appraiser.tick() == 0
    assert [submission.command.name for submission in held] == ["begin_liquidation"]
    held[0].ticket(Unknown("lost"))
    appraiser._take_outcomes(is_waiting=True)
    assert appraiser.tick() == 1


def test_commands_in_flight_are_bounded(rig: Rig) -> None:
    for number in range(20):
        rig.new_loan(f"n{number:02}", "40", "1")
    rig.feed("100")
    appraiser = Appraiser(rig.book, rig.board, in_flight_max=4)
    most = 0
    submit = rig.book.submit

    def counting(submission: Submission) -> None:
        nonlocal most
        most = max(most, len(appraiser._in_flight) + 1)
        submit(submission)

    rig.book.submit = counting  # type: ignore[method-assign]
    rig.add(appraiser)
    wait_for(lambda: appraiser.done["activate"] == 20)
    assert most == 4


def test_stop_while_the_book_answers_nothing(rig: Rig) -> None:
    for number in range(5):
        rig.new_loan(f"n{number}", "40", "1")
    rig.feed("100")
    appraiser = Appraiser(rig.book, rig.board, in_flight_max=2)
    rig.book.submit = lambda submission: None  # type: ignore[method-assign]
    appraiser.start()
    wait_for(lambda: len(appraiser._in_flight) == 2)
    appraiser.stop()
    assert not appraiser._thread.is_alive()


def test_notice_during_a_scan_makes_one_more_with_the_newest_quotes(rig: Rig) -> None:
    rig.new_loan("a", "40", "1")
    rig.new_loan("b", "45", "1")
    rig.feed("80")
    appraiser = Appraiser(rig.book, rig.board)
    reached, go_on = threading.Event(), threading.Event()
    submit = rig.book.submit

    def slow(submission: Submission) -> None:
        if submission.lane is Lane.TIMERS and not reached.is_set():
            reached.set()
            assert go_on.wait(20)
        submit(submission)

    rig.book.submit = slow  # type: ignore[method-assign]
    rig.add(appraiser)
    assert reached.wait(20)
    rig.feed("90")
    for _ in range(3):
        appraiser.notice()
    go_on.set()
    wait_for(lambda: rig.loan("b").status == "active")
    wait_for(lambda: appraiser._inbox.empty() and not appraiser._is_noticed)
    assert appraiser.ticks == 2


def test_top_up_is_looked_at_at_once(rig: Rig) -> None:
    rig.feed("100")
    appraiser = rig.add(Appraiser(rig.book, rig.board))
    wait_for(lambda: appraiser.ticks == 1)
    rig.do(ApplyForLoan("a", "b-a", "40"))
    rig.do(TopUpCollateral("a", "b-a", "0.5"))
    assert rig.loan("a").status == "new"
    rig.do(TopUpCollateral("a", "b-a", "0.5"))
    wait_for(lambda: rig.loan("a").status == "active")
    rig.do(ApplyForLoan("b", "b-b", "40", "1"))
    wait_for(lambda: rig.loan("b").status == "active")
    assert appraiser.ticks == 1


def test_top_ups_that_find_no_room_wait_for_the_tick(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appraiser_module, "TOPPED_MAX", 2)
    appraiser = idle(rig)
    rig.hearers.append(appraiser)
    for number in range(4):
        rig.new_loan(f"n{number}", "40", "1")
    wait_for(lambda: len(appraiser._topped) == 2)
    rig.hearers.clear()
    rig.feed("100")
    appraiser._look_at_topped()
    settled(rig, appraiser)
    assert [rig.loan(f"n{number}").status for number in range(4)] == ["active"] * 2 + ["new"] * 2
    appraiser.tick()
    settled(rig, appraiser)
    assert appraiser.done["activate"] == 4


def test_top_ups_wait_while_activation_is_halted(rig: Rig) -> None:
    appraiser = idle(rig)
    rig.do(SetLiquidations("halt_new_and_activation"))
    rig.feed("100")
    appraiser._topped.append("a")
    rig.new_loan("a", "40", "1")
    appraiser._look_at_topped()
    assert not appraiser._topped
    assert rig.loan("a").status == "new"


def test_scan_ends_when_its_quotes_are_too_old(rig: Rig) -> None:
    for number in range(4):
        rig.new_loan(f"n{number}", "40", "1")
    rig.feed("100")
    appraiser = idle(rig)
    real, times = appraiser._clock, iter(range(3))

    def clock() -> int:
        return real() if next(times, None) is not None else 2**62

    appraiser._clock = clock
    assert appraiser.tick() == 2


def test_a_level_nobody_quotes_is_left_out(rig: Rig) -> None:
    rig.active_loan("small", "90", "1", at="200")
    rig.active_loan("large", "9000", "100", at="200")
    quotes = rig.feed("100")
    short = tuple(
        type(quote)(quote.market, quote.id, quote.at, quote.received_at, quote.levels[:2])
        for quote in quotes
    )
    found = [candidate.command.loan for candidate in find(rig.store, view_of(short, 2**62, "life"))]
    assert found == ["small", "small"]
    assert len(LEVELS) == 4

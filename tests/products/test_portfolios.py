"""Portfolios: each requirement of the seed and each decision about it, in its own words.

The seed's user 1 is to have 60 % stocks, 30 % bonds and 10 % gold.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from pennyweight.assemble import answers
from pennyweight.engine.port import Head
from pennyweight.engine.rebuild import known_commands
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.engine.replay import replay
from pennyweight.engine.verification import verify
from pennyweight.engine.whatif import WhatIf
from pennyweight.ledger.commands import Command
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.products.general import LoadBalances
from pennyweight.products.portfolios.execute import ExecuteTransactions, Execution, Fill
from pennyweight.products.portfolios.law import PortfoliosLaw
from pennyweight.products.portfolios.queue import Queued, QueueUpdate, TakeUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.runs import history
from pennyweight.products.portfolios.setup import ChangeTarget, CreatePortfolio, SetPolicy
from pennyweight.products.portfolios.shared import (
    EXECUTION,
    POINT,
    PORTFOLIO,
    PRODUCT,
    QUEUE,
    UPDATE,
    Band,
    Holding,
    Policy,
    Portfolio,
    RunAnswer,
    percent_text,
    read_portfolio,
)
from pennyweight.stores.memory import MemoryStore
from pennyweight.stores.sqlite import SQLiteStore
from scenarios import Stage

TARGET = {"stocks": "60", "bonds": "30", "gold": "10"}
MOVED = {"stocks": "70", "bonds": "20", "gold": "10"}
OTHER = {"stocks": "50", "bonds": "40", "gold": "10"}
COINS = {"BTC": "50", "ETH": "50"}


class Folios(Stage):
    """A book on which portfolios are played."""

    def done(self, command: Command, key: str = "") -> Any:
        outcome = self.execute(command, key=key)
        assert isinstance(outcome, Receipt), outcome
        return outcome.answer

    def refused(self, command: Command, key: str = "") -> str:
        outcome = self.execute(command, key=key)
        assert isinstance(outcome, Refusal), outcome
        return outcome.reason.code

    def create(self, user: str = "1", target: Any = TARGET, policy: Policy | None = None) -> Any:
        return self.done(CreatePortfolio(user, target, policy))

    def update(self, allocation: Any = MOVED, user: str = "1", **more: Any) -> RunAnswer:
        update = Rebalance(user, allocation, **more)
        answer: RunAnswer = self.done(update, key=update.key)
        return answer

    def executed(self, run: RunAnswer, *positions: int) -> Any:
        fills = tuple(map(Fill, positions or range(1, len(run.trades) + 1)))
        return self.done(ExecuteTransactions(run.user, run.run, fills))

    def portfolio(self, user: str = "1") -> Portfolio:
        record = self.store.record(PORTFOLIO, user)
        assert record is not None
        return read_portfolio(record)

    def entry(self, sequence: int) -> Entry | None:
        body = self.store.entry(sequence)
        return None if body is None else decode_entry(body)

    def prove(self) -> None:
        """The book verifies, and every decision comes out again as it stands."""
        report = verify(self.store, answers=answers(), invariants=[PortfoliosLaw()])
        assert report.ok, report.problems
        commands = {(kind.product, kind.name): kind for kind in known_commands()}
        until = self.store.head().sequence
        for decision in replay(self.store, commands, lambda e: e.product == PRODUCT, until=until):
            assert decision.is_equal, (decision.difference, decision.entry)


@pytest.fixture(params=["memory", "sqlite"])
def stage(request: Any, tmp_path: Any) -> Iterator[Folios]:
    """An empty stage, on each store in turn; at the end its book must prove itself."""
    if request.param == "memory":
        folios = Folios(MemoryStore(Head(book="main", incarnation="first")))
        yield folios
        folios.prove()
        return
    store = SQLiteStore.open(tmp_path, "main", new_incarnation="first")
    folios = Folios(store)
    try:
        yield folios
        folios.prove()
    finally:
        store.close()


def trades(run: RunAnswer) -> list[tuple[str, str, str]]:
    """Return the transactions in the seed's words."""
    return [
        ("SELL" if line.change < 0 else "BUY", line.asset, percent_text(abs(line.change)))
        for line in run.trades
    ]


# ── the seed ──────────────────────────────────────────────────────────────────────


def test_seed_example(stage):
    """Transaction 1: sell 10 % of stocks. Transaction 2: buy 10 % of bonds."""
    stage.create()
    run = stage.update()
    assert trades(run) == [("SELL", "stocks", "10"), ("BUY", "bonds", "10")]
    assert run.user == "1"
    assert [line.rule for line in run.lines] == ["drift", "drift", "on_target"]


def test_maintain_the_users_original_allocation_for_reference(stage):
    stage.create()
    for allocation in (MOVED, OTHER, {"cash": "100"}):
        stage.update(allocation)
    portfolio = stage.portfolio()
    assert {name: percent_text(part) for name, part in portfolio.target.items()} == TARGET
    assert portfolio.current == {"cash": 100 * POINT}


def test_transactions_are_saved_and_found_again(stage):
    stage.create()
    first, second = stage.update(), stage.update(OTHER)
    third = stage.update(TARGET)
    runs = list(history(stage.portfolio().run, stage.entry))
    assert runs == [third, second, first]
    with_trades = list(history(stage.portfolio().trade_run, stage.entry, has_trades=True))
    assert with_trades == [second, first]
    repeat = stage.store.head().sequence + 1
    stage.update(TARGET)
    stage.done(LoadBalances("1", (("USD", "1"),)))
    for no_run in (0, repeat, repeat + 1, repeat + 2, first.run - 1):
        assert list(history(no_run, stage.entry)) == []


def test_multiple_calls_of_the_provider_are_handled_once(stage):
    """The same request again, whether it is named, timed or neither."""
    stage.create()
    for more in ({}, {"request_id": "a"}, {"as_of": stage.now}):
        first = stage.update(**more)
        again = stage.update(**more)
        assert (again.run, again.lines) == (first.run, first.lines)


# ── targets ───────────────────────────────────────────────────────────────────────


def test_identical_second_portfolio_is_a_success_and_another_is_a_conflict(stage):
    assert stage.create().result == "created"
    assert (
        stage.create(target={"gold": "10.0", "bonds": "3e1", "stocks": "60"}).result == "unchanged"
    )
    assert stage.refused(CreatePortfolio("1", OTHER)) == "portfolio_exists"
    assert stage.refused(CreatePortfolio("1", TARGET, Policy(score=1))) == "portfolio_exists"
    stage.done(SetPolicy("1", Policy(score=1)))
    assert stage.create().result == "unchanged"
    assert stage.create(policy=Policy(score=1)).policy_version == 1


def test_put_changes_the_target(stage):
    stage.create()
    assert stage.done(ChangeTarget("1", OTHER)).result == "changed"
    assert stage.done(ChangeTarget("1", OTHER)).result == "unchanged"
    assert trades(stage.update()) == [("SELL", "stocks", "20"), ("BUY", "bonds", "20")]
    assert stage.refused(ChangeTarget("2", OTHER)) == "portfolio_not_found"


def test_sum_is_within_a_billionth_for_targets_and_a_hundredth_for_the_provider(stage):
    assert stage.refused(CreatePortfolio("1", {**TARGET, "gold": "10.01"})) == "allocation_invalid"
    stage.create(target={**TARGET, "gold": "10.000000001"})
    assert sum(stage.portfolio().target.values()) == 100 * POINT
    stage.update({**MOVED, "gold": "10.01"})
    assert sum(stage.portfolio().current.values()) == 100 * POINT
    assert stage.refused(Rebalance("1", {**MOVED, "gold": "10.02"})) == "allocation_invalid"


def test_unknown_user_is_not_found_and_nothing_is_made(stage):
    assert stage.refused(Rebalance("1", MOVED)) == "portfolio_not_found"
    assert stage.refused(QueueUpdate(Rebalance("1", MOVED))) == "portfolio_not_found"
    assert stage.refused(SetPolicy("1", None)) == "portfolio_not_found"


# ── transactions ──────────────────────────────────────────────────────────────────


def test_points_are_of_the_portfolio_not_of_the_holding(stage):
    stage.create(target={"a": "1", "b": "99"})
    assert trades(stage.update({"a": "2", "b": "98"})) == [("SELL", "a", "1"), ("BUY", "b", "1")]


def test_asset_that_is_in_one_map_only_counts_as_nothing_in_the_other(stage):
    stage.create()
    run = stage.update({"stocks": "60", "oil": "40"})
    assert trades(run) == [("SELL", "oil", "40"), ("BUY", "bonds", "30"), ("BUY", "gold", "10")]


def test_no_drift_makes_no_transactions(stage):
    stage.create()
    run = stage.update(TARGET)
    assert (run.result, run.trades, len(run.lines)) == ("rebalanced", (), 3)
    assert stage.update(TARGET).result == "repeat"


def test_transactions_are_zero_sum_by_largest_remainder(stage):
    stage.create(target={"a": "33.3333333333", "b": "33.3333333333", "c": "33.3333333334"})
    run = stage.update({"a": "33.333", "b": "33.333", "c": "33.333"})
    assert sum(line.change for line in run.lines) == 0
    assert trades(run) == [("SELL", "a", "0.0000000001"), ("BUY", "c", "0.0000000001")]


def test_order_is_sells_before_buys_then_drift_then_name(stage):
    stage.create(target={"a": "10", "b": "30", "c": "30", "d": "30"})
    run = stage.update({"a": "40", "d": "20", "e": "20", "c": "10", "b": "10"})
    assert [line.asset for line in run.trades] == ["a", "e", "b", "c", "d"]


# ── repeats ───────────────────────────────────────────────────────────────────────


def test_equal_payload_is_a_repeat_until_its_transactions_are_executed(stage):
    stage.create()
    run = stage.update()
    assert stage.update().result == "repeat"
    stage.executed(run, 1)
    again = stage.update()
    assert (again.result, again.run, again.lines) == ("repeat", run.run, run.lines)
    stage.executed(run, 2)
    fresh = stage.update()
    assert (fresh.result, fresh.previous, trades(fresh)) == ("rebalanced", run.run, trades(run))


def test_equal_payload_with_a_request_id_is_another_update(stage):
    stage.create()
    first = stage.update()
    assert stage.update(request_id="a").run > first.run
    assert stage.update(request_id="b").result == "rebalanced"


def test_request_id_with_other_content_is_refused(stage):
    stage.create()
    stage.update(request_id="a")
    other = Rebalance("1", OTHER, "a")
    assert stage.refused(other, key=other.key) == "key_reused"


def test_request_ids_of_users_do_not_meet(stage):
    """Not even where one user's id holds what parts it from the request id."""
    keys = [
        Rebalance(user, MOVED, request_id).key
        for user, request_id in [("a", "b:c"), ("a:b", "c"), ("a%3Ab", "c"), ("a/b", "c")]
    ]
    assert len(set(keys)) == 4
    for user, request_id in (("a", "b:c"), ("a:b", "c")):
        stage.create(user)
        assert stage.update(user=user, request_id=request_id).user == user


def test_target_or_policy_that_changed_ends_the_repeat(stage):
    stage.create()
    run = stage.update()
    stage.done(ChangeTarget("1", OTHER))
    stage.done(ChangeTarget("1", TARGET))
    second = stage.update()
    assert (second.result, second.previous) == ("rebalanced", run.run)
    stage.done(SetPolicy("1", Policy(score=50 * POINT)))
    assert stage.update().trades == ()


def test_timed_update_repeats_even_when_executed(stage):
    stage.create()
    at = stage.now
    run = stage.update(as_of=at)
    stage.executed(run)
    assert stage.update(as_of=at).result == "repeat"
    assert stage.update(as_of=at + 1).result == "rebalanced"


# ── event time ────────────────────────────────────────────────────────────────────


def test_older_update_never_overwrites_a_newer_one(stage):
    stage.create()
    stage.update(as_of=stage.now)
    before = stage.portfolio()
    outdated = stage.update(OTHER, as_of=stage.now - 5)
    assert (outdated.result, outdated.run, outdated.lines) == ("outdated", 0, ())
    assert stage.portfolio() == before


def test_of_one_moment_the_greater_weights_stand(stage):
    stage.create()
    at = stage.now
    assert stage.update(OTHER, as_of=at).result == "rebalanced"
    assert stage.update(MOVED, as_of=at).result == "outdated"
    assert stage.update({**OTHER, "bonds": "41", "gold": "9"}, as_of=at).result == "rebalanced"
    assert stage.update(OTHER, as_of=at).result == "outdated"


def test_update_without_a_time_counts_as_of_its_arrival(stage):
    stage.create()
    stage.update(as_of=stage.now + 50_000_000)
    later = stage.update(OTHER)
    assert (later.result, later.as_of) == ("rebalanced", stage.portfolio().as_of)
    assert stage.update(as_of=stage.now).result == "outdated"


def test_clock_may_be_a_minute_ahead(stage):
    stage.create()
    now = stage.now + 1
    assert stage.refused(Rebalance("1", MOVED, as_of=now + 60_000_001)) == "as_of_in_future"
    assert stage.update(as_of=stage.now + 1 + 60_000_000).result == "rebalanced"


# ── values, prices, previews ──────────────────────────────────────────────────────


def test_value_makes_amounts_and_prices_make_lots(stage):
    stage.create(target={"a": "50", "b": "50"})
    held = {"a": Holding("6", "10", "1"), "b": Holding("8", "5", "0.5")}
    run = stage.update({}, holdings=held, currency="USD")
    assert [(line.amount, line.quantity) for line in run.trades] == [("10", "1"), ("10", "2")]
    assert (stage.portfolio().value, run.currency) == ("100", "USD")


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"value": "100"}, "asset_unknown"),
        ({"value": "100", "currency": "XXX"}, "asset_unknown"),
        ({"currency": "X" * 100_000}, "asset_unknown"),
        ({"value": "much", "currency": "USD"}, "holdings_invalid"),
        ({"holdings": {"a": Holding("1", "0")}, "currency": "USD"}, "holdings_invalid"),
    ],
)
def test_value_that_is_none_is_refused_and_nothing_is_kept(stage, more, code):
    stage.create()
    before = stage.portfolio()
    assert stage.refused(Rebalance("1", MOVED, **more)) == code
    assert stage.refused(Rebalance("1", MOVED, as_of=1, **more)) == code
    assert stage.portfolio() == before


def test_preview_tells_what_would_come_and_saves_nothing(stage):
    stage.create(policy=Policy(calendar="monthly"))
    month = 32 * 86_400_000_000

    def preview(update: Rebalance) -> RunAnswer:
        facts = WhatIf(stage.store, stage.book.engine.standing, stage.now + 1)
        return update.preview(Draft(facts, PRODUCT))

    stage.now += month
    update = Rebalance("1", MOVED)
    looked = preview(update)
    run = stage.update()
    assert (looked.lines, looked.run) == (run.lines, 0)
    assert run.trades
    again = preview(update)
    assert (again.result, again.lines, again.run) == ("repeat", run.lines, run.run)
    assert preview(Rebalance("1", OTHER, as_of=5)).result == "outdated"


def test_value_beyond_what_an_account_can_have_is_worked_out_all_the_same(stage):
    """Nothing is posted by a plan: its amounts are as large as the provider says."""
    stage.create()
    answer = stage.done(Rebalance("1", MOVED, value="1" + "0" * 30, currency="USD"))
    assert [line.amount for line in answer.trades] == ["1" + "0" * 29] * 2


# ── executing ─────────────────────────────────────────────────────────────────────


def test_executed_transactions_are_marked_once(stage):
    stage.create()
    run = stage.update()
    assert stage.executed(run, 1).new == (1,)
    again = stage.executed(run, 1, 2)
    assert (again.executed, again.new) == ((1, 2), (2,))
    head = stage.store.head()
    assert stage.executed(run, 1, 2).new == ()
    assert stage.portfolio().open == ()
    record = stage.store.record(EXECUTION, f"{run.run}-2")
    assert record is not None
    right = Execution("1", run.run, Fill(2), head.committed_at, head.sequence)
    assert record.read(Execution) == right


def test_execution_told_otherwise_is_a_conflict(stage):
    stage.create(target=COINS)
    run = stage.update({"BTC": "60", "ETH": "40"})
    stage.executed(run, 1)
    told = ExecuteTransactions("1", run.run, (Fill(1, "1", "1", "USD"),))
    assert stage.refused(told) == "transaction_executed"
    assert stage.refused(ExecuteTransactions("1", run.run, (Fill(3),))) == "transaction_not_found"
    assert stage.refused(ExecuteTransactions("2", run.run, (Fill(1),))) == "transaction_not_found"
    assert stage.refused(ExecuteTransactions("2", run.run, ())) == "transaction_not_found"


def test_transaction_that_is_there_twice_is_booked_once(stage):
    stage.create(target=COINS)
    run = stage.update({"BTC": "60", "ETH": "40"})
    stage.done(LoadBalances("1", (("BTC", "6"),)))
    fill = Fill(1, "1", "10", "USD")
    answer = stage.done(ExecuteTransactions("1", run.run, (fill, fill)))
    assert (answer.executed, answer.new) == ((1,), (1,))
    assert (stage.posted("user:1:BTC"), stage.posted("user:1:USD")) == ("5", "10")


def test_execution_posts_sales_before_purchases(stage):
    stage.create(target=COINS)
    run = stage.update({"BTC": "60", "ETH": "40"})
    stage.done(LoadBalances("1", (("BTC", "6"),)))
    fills = (Fill(2, "5", "10", "USD"), Fill(1, "1", "10", "USD"))
    stage.done(ExecuteTransactions("1", run.run, fills))
    assert [stage.posted(f"user:1:{asset}") for asset in ("BTC", "ETH", "USD")] == ["5", "5", "0"]
    account = stage.store.account("user:1:USD")
    assert account is not None
    assert account.owed == 0
    assert stage.posted("venue:portfolios:BTC") == "1"


def test_execution_is_a_fact_and_what_is_missing_is_owed(stage):
    stage.create(target=COINS)
    run = stage.update({"BTC": "60", "ETH": "40"})
    stage.done(LoadBalances("1", (("USD", "4"),)))
    stage.done(ExecuteTransactions("1", run.run, (Fill(2, "5", "10", "USD"),)))
    account = stage.store.account("user:1:USD")
    assert account is not None
    assert (account.posted, account.owed) == (0, 6 * 10**18)
    stage.done(ExecuteTransactions("1", run.run, (Fill(1, "1", "10", "USD"),)))
    account = stage.store.account("user:1:USD")
    assert account is not None
    assert (account.posted, account.owed) == (4 * 10**18, 0)
    assert stage.posted("owed:user:1:BTC") == "-1"


def test_asset_that_the_book_does_not_know_cannot_be_posted(stage):
    stage.create()
    run = stage.update()
    told = ExecuteTransactions("1", run.run, (Fill(1, "1", "10", "USD"),))
    assert stage.refused(told) == "asset_unknown"
    for half in (Fill(1, "1"), Fill(1, "", "1", "USD"), Fill(1, "", "", "USD")):
        code = stage.refused(ExecuteTransactions("1", run.run, (half,)))
        assert code in {"asset_unknown", "amount_invalid"}
    assert stage.executed(run).new == (1, 2)


def test_older_run_can_still_be_executed(stage):
    stage.create()
    first = stage.update()
    second = stage.update(OTHER)
    assert stage.executed(first).new == (1, 2)
    assert stage.portfolio().open == (1, 2)
    stage.executed(second)
    assert stage.portfolio().open == ()
    third = stage.update(OTHER)
    assert (third.previous, third.trades_before) == (second.run, second.run)


# ── the queue ─────────────────────────────────────────────────────────────────────


def queued(stage: Folios, number: int) -> Queued:
    record = stage.store.record(UPDATE, str(number))
    assert record is not None
    found: Queued = record.read(Queued)
    return found


def test_queued_update_is_taken_once(stage):
    stage.create()
    assert stage.done(QueueUpdate(Rebalance("1", MOVED))).number == 1
    assert stage.done(QueueUpdate(Rebalance("1", OTHER))).number == 2
    assert [stage.portfolio().run, queued(stage, 1).state] == [0, "queued"]
    assert len(stage.store.due(QUEUE, 1, 10)) == 2
    taken = stage.done(TakeUpdate(1, "1"))
    assert (taken.state, trades(taken.run)) == (
        "done",
        [("SELL", "stocks", "10"), ("BUY", "bonds", "10")],
    )
    assert stage.refused(TakeUpdate(1, "1")) == "update_taken"
    assert stage.refused(TakeUpdate(3, "1")) == "update_not_found"
    assert len(stage.store.due(QUEUE, 1, 10)) == 1
    assert queued(stage, 1).run == taken.run.run
    assert list(history(taken.run.run, stage.entry)) == [taken.run]
    assert stage.executed(taken.run).new == (1, 2)


def test_queued_update_that_is_refused_is_kept_with_its_reason(stage):
    stage.create()
    before = stage.portfolio()
    stage.done(QueueUpdate(Rebalance("1", {"stocks": "50"})))
    stage.done(QueueUpdate(Rebalance("1", MOVED, value="x", currency="USD")))
    taken = stage.done(TakeUpdate(1, "1"))
    assert (taken.state, taken.run, taken.reason) == ("refused", None, "allocation_invalid")
    assert stage.done(TakeUpdate(2, "1")).reason == "holdings_invalid"
    assert (queued(stage, 1).state, queued(stage, 1).detail) == ("refused", taken.detail)
    assert stage.portfolio() == before
    assert stage.refused(TakeUpdate(1, "1")) == "update_taken"


def test_queued_update_of_another_user_than_is_said_is_taken_all_the_same(stage):
    """The user is a hint where to look, no more."""
    stage.create()
    stage.create("2")
    stage.done(QueueUpdate(Rebalance("1", MOVED)))
    assert stage.done(TakeUpdate(1, "2")).run.user == "1"
    assert stage.portfolio("2").run == 0


def test_queued_updates_keep_event_time(stage):
    stage.create()
    stage.done(QueueUpdate(Rebalance("1", OTHER, as_of=stage.now)))
    stage.done(QueueUpdate(Rebalance("1", MOVED, as_of=stage.now + 5)))
    assert stage.done(TakeUpdate(2, "1")).run.result == "rebalanced"
    assert stage.done(TakeUpdate(1, "1")).run.result == "outdated"
    assert queued(stage, 1).run == 0


def test_queued_update_counts_as_of_when_it_was_queued(stage):
    """One that waited in the queue does not overwrite what was said meanwhile."""
    stage.create()
    stage.done(QueueUpdate(Rebalance("1", OTHER)))
    stage.done(Rebalance("1", MOVED))
    assert stage.done(TakeUpdate(1, "1")).run.result == "outdated"
    assert percent_text(stage.portfolio().current["stocks"]) == MOVED["stocks"]


# ── bounds ────────────────────────────────────────────────────────────────────────


def test_largest_portfolio_fits(stage):
    names = [f"{'x' * 60}{number:04}" for number in range(100)]
    others = [f"{'y' * 60}{number:04}" for number in range(100)]
    policy = Policy(bands={name: Band(absolute=0) for name in names})
    stage.create(target=dict.fromkeys(names, "1"), policy=policy)
    run = stage.update(dict.fromkeys(others, "1"))
    assert len(run.trades) == 200
    assert stage.executed(run).new == tuple(range(1, 201))


def test_user_ids_of_all_sorts(stage):
    for user in ("a/b", "a:b", "a%3Ab", "名前", "x" * 255, "1-1"):
        stage.create(user, policy=Policy(score=POINT))
        stage.executed(stage.update(user=user))
    assert stage.refused(CreatePortfolio("", TARGET)) == "user_id_invalid"
    assert stage.refused(CreatePortfolio("a\n", TARGET)) == "user_id_invalid"

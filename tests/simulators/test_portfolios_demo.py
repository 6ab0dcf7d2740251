"""The demo's portfolios, told to a book in memory: what is sent is taken, and owners trade."""

import random
from typing import Any

import msgspec
import pytest

from pennyweight.delivery.http.wire import decoder
from pennyweight.delivery.portfolios import PolicyBody, policy_of, update_in
from pennyweight.delivery.portfolios_shown import shown_transactions
from pennyweight.engine.receipts import Receipt
from pennyweight.ledger.commands import Command
from pennyweight.products.portfolios.execute import ExecuteTransactions, Fill
from pennyweight.products.portfolios.setup import CreatePortfolio, SetPolicy
from pennyweight.products.portfolios.shared import EXECUTION, PORTFOLIO, RunAnswer, read_portfolio
from pennyweight.simulators.policysim import past_of, real
from pennyweight.simulators.portfolios_demo import NO_ANSWER, PROFILES, Market, PortfoliosDemo
from scenarios import Stage
from waiting import wait_for

USERS = [str(number) for number in range(100, 108)]
_policy = decoder(PolicyBody)


class Clerk:
    """A desk with a book in memory behind it; it takes what the face takes."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.asked: list[tuple[str, str]] = []
        self.is_away = False

    def ask(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        self.asked.append((method, path))
        self.stage.now += 250_000
        if self.is_away:
            return NO_ANSWER, b""
        place, _, query = path.partition("?")
        if method == "GET":
            assert body is None
            return 200 if query.removeprefix("user_id=") in USERS else 404, b"{}"
        assert body is not None
        if place in {"/rebalance", "/rebalance/preview"}:
            return self._update(
                body, is_queued=query == "mode=async", is_kept=place == "/rebalance"
            )
        if place.endswith("/executed"):
            assert body == b"{}"
            run, _, position = place.split("/")[2].partition("-")
            user = self._user_of(int(run))
            return self._do(ExecuteTransactions(user, int(run), (Fill(int(position)),)))
        told = msgspec.json.decode(body)
        policy = told.get("policy")
        rules = None if policy is None else policy_of(_policy.decode(msgspec.json.encode(policy)))
        if (method, place) == ("PUT", "/portfolio/policy"):
            return self._do(SetPolicy(told["user_id"], rules))
        assert (method, place) == ("POST", "/portfolio")
        target = {name: str(percent) for name, percent in told["allocation"].items()}
        return self._do(CreatePortfolio(told["user_id"], target, rules), status=201)

    def _update(self, body: bytes, *, is_queued: bool, is_kept: bool) -> tuple[int, bytes]:
        update = update_in(body)
        if is_queued or not is_kept:
            return 202 if is_queued else 200, b"{}"
        outcome = self.stage.execute(update, key=update.key)
        assert isinstance(outcome, Receipt), outcome
        answer = outcome.answer
        assert isinstance(answer, RunAnswer)
        status = 409 if answer.result == "outdated" else 200
        return status, msgspec.json.encode(shown_transactions(answer))

    def _do(self, command: Command, status: int = 200) -> tuple[int, bytes]:
        outcome = self.stage.execute(command)
        assert isinstance(outcome, Receipt), outcome
        return status, b"{}"

    def _user_of(self, run: int) -> str:
        for user in USERS:
            record = self.stage.store.record(PORTFOLIO, user)
            if record is not None and read_portfolio(record).run == run:
                return user
        raise AssertionError(f"run {run} is nobody's last")


def played(clerk: Clerk, steps: int, **more: Any) -> PortfoliosDemo:
    demo = PortfoliosDemo(clerk, USERS, now=lambda: clerk.stage.now, **more)
    for _ in range(steps):
        demo.step()
    return demo


def test_a_demo_s_portfolios_drift_and_are_brought_back():
    clerk = Clerk()
    demo = played(clerk, 600)
    counts = demo.counts
    assert (counts.portfolios, counts.failed) == (len(USERS), 0)
    assert counts.updates > 200
    assert counts.queued > 10
    assert counts.proposed > counts.executed > 100
    executed = clerk.stage.store.records(EXECUTION, limit=1_000)
    assert len(executed) == counts.executed
    kinds = {path.partition("?")[0] for _, path in clerk.asked}
    assert {"/rebalance/preview", "/portfolio/policy", "/rebalance-transactions"} <= kinds
    assert f"portfolios: {len(USERS)}, {counts.updates} updates" in demo.text()
    past = past_of(clerk.stage.store, USERS[0])  # what the demo made can be replayed
    assert max(point.before for point in real(past).points) < 30 * 10**10


def test_a_demo_is_the_same_for_the_same_seed():
    first, second, third = Clerk(), Clerk(), Clerk()
    for clerk, seed in ((first, 1), (second, 1), (third, 2)):
        played(clerk, 120, seed=seed)
    assert first.asked == second.asked != third.asked


def test_a_demo_goes_on_where_nobody_answers():
    clerk = Clerk()
    clerk.is_away = True
    demo = played(clerk, 3)
    assert (demo.counts.portfolios, demo.counts.failed) == (0, 3)
    clerk.is_away = False
    for _ in range(60):
        demo.step()
    clerk.is_away = True
    for _ in range(20):
        demo.step()
    assert demo.counts.failed == 23
    assert "23 failed" in demo.text()


def test_a_demo_runs_by_itself():
    clerk = Clerk()
    with PortfoliosDemo(clerk, USERS, per_second=10_000, now=lambda: clerk.stage.now) as demo:
        wait_for(lambda: demo.counts.updates >= 3)
    asked = len(clerk.asked)
    assert demo.counts.portfolios == len(USERS)
    assert len(clerk.asked) == asked


def test_a_demo_makes_its_portfolios_without_a_pause():
    clerk = Clerk()
    with PortfoliosDemo(clerk, USERS, per_second=0.001, now=lambda: clerk.stage.now) as demo:
        wait_for(lambda: demo.counts.portfolios == len(USERS))
    assert len(clerk.asked) <= len(USERS) + 1


def test_every_profile_is_a_whole():
    assert all(sum(profile.target.values()) == 100 for profile in PROFILES)


@pytest.mark.parametrize("seed", range(3))
def test_prices_stay_in_reach(seed):
    market = Market(random.Random(seed))
    for _ in range(5_000):
        market.step()
    assert all(50_000 <= price <= 20_000_000 for price in market.prices.values())
    assert market.prices["cash"] == 1_000_000

"""The update of a portfolio by its provider, and the transactions that bring it back."""

from typing import Literal

import msgspec

from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.portfolios.orders import check_holdings, priced, valued
from pennyweight.products.portfolios.plan import plan
from pennyweight.products.portfolios.shared import (
    PRODUCT,
    PROVIDER_TOLERANCE,
    UPDATE_PREFIX,
    Found,
    Holding,
    Line,
    Portfolio,
    RunAnswer,
    Weights,
    find_portfolio,
    put_portfolio,
    weights_of,
)

Nothing = Literal["repeat", "outdated"]
"""Why an update says nothing new."""

AHEAD_MICROSECONDS = 60_000_000
"""How far a provider's clock may be ahead of the book's."""


class Rebalance(Command, frozen=True):
    """Take what a portfolio has become, keep its target, and work out what brings it back.

    `allocation` are percentages by asset, decimal text; without any, `holdings` are valued.
    `as_of` is when it was so, in microseconds; an update older than the portfolio's newest
    changes nothing ("outdated"). Of two with one `as_of` the one stands whose weights are
    greater, compared name by name, whichever came first. One without `as_of` counts as of
    its arrival. An update that says again what the newest said is a repeat until target or
    policy change: with that one's `as_of`; or with neither `as_of` nor `request_id`, and then
    only until all transactions are executed. `value` is the portfolio's, in `currency`.

    Refusals: user_id_invalid, portfolio_not_found, allocation_invalid, holdings_invalid,
    asset_unknown (the currency), as_of_in_future (more than a minute ahead).
    """

    name = "rebalance"
    product = PRODUCT
    counted = ("user", "allocation", "request_id", "as_of", "value", "currency", "holdings")
    answer_type = RunAnswer

    user: str
    allocation: dict[str, str]
    request_id: str = ""
    as_of: int | None = None
    value: str = ""
    currency: str = ""
    holdings: dict[str, Holding] = msgspec.field(default_factory=dict)

    @property
    def key(self) -> str:
        """The idempotency key that the request id makes, "" without one."""
        return f"{UPDATE_PREFIX}{self.user}:{self.request_id}" if self.request_id else ""

    def reads(self, wanted: Wanted) -> None:
        """The user, with whom the portfolio is kept."""
        wanted.holder(user_holder(self.user))

    def decide(self, draft: Draft) -> RunAnswer:
        """See the class."""
        found = find_portfolio(draft, self.user)
        change = self._change(draft, found.portfolio)
        if isinstance(change, Portfolio):
            return _run(self.user, found, change, draft)
        if change == "repeat":
            return repeated(self.user, found.portfolio, draft)
        return RunAnswer("outdated", self.user, as_of=found.portfolio.as_of)

    def preview(self, draft: Draft) -> RunAnswer:
        """Return what would come of it, and change nothing. Refusals: as for `decide`."""
        found = find_portfolio(draft, self.user)
        change = self._change(draft, found.portfolio)
        portfolio = change if isinstance(change, Portfolio) else found.portfolio
        return RunAnswer(
            "rebalanced",
            self.user,
            at=draft.time,
            lines=lines_of(portfolio, portfolio.traded_at or portfolio.created_at, draft),
            policy_version=portfolio.policy_version,
            as_of=portfolio.as_of,
            currency=portfolio.currency,
        )

    def _change(self, draft: Draft, portfolio: Portfolio) -> Portfolio | Nothing:
        """Return the portfolio with what this update says, or why it says nothing new."""
        current, value = self._weights()
        if value or self.holdings:
            draft.asset(self.currency)
        as_of = draft.time if self.as_of is None else self.as_of
        if as_of > draft.time + AHEAD_MICROSECONDS:
            refuse(Reason.AS_OF_IN_FUTURE, "as_of lies more than a minute after the commit")
        told = (current, value, self.currency, self.holdings)
        known = (portfolio.current, portfolio.value, portfolio.currency, portfolio.holdings)
        if self.as_of is None:
            as_of = max(as_of, portfolio.as_of)
            if not self.request_id and portfolio.is_repeatable and told == known:
                return "repeat"
        elif as_of < portfolio.as_of:
            return "outdated"
        elif as_of == portfolio.as_of and portfolio.is_timed:
            if told == known and portfolio.is_fresh:
                return "repeat"
            if _rank(*told) < _rank(*known):
                return "outdated"
        return msgspec.structs.replace(
            portfolio,
            current=current,
            as_of=as_of,
            is_timed=self.as_of is not None,
            value=value,
            currency=self.currency,
            holdings=self.holdings,
        )

    def _weights(self) -> tuple[Weights, str]:
        """Return the weights that are told, and the value. Refusals: see the class."""
        if not self.allocation:
            if not self.holdings:
                refuse(Reason.ALLOCATION_INVALID, "an update has new_allocation, or holdings")
            weights, value = valued(self.holdings)
            return weights, self.value or value
        if self.holdings:
            check_holdings(self.holdings)
        return weights_of(self.allocation, PROVIDER_TOLERANCE), self.value


def _rank(
    current: Weights, value: str, currency: str, holdings: dict[str, Holding]
) -> tuple[object, ...]:
    """Return what orders two updates of one moment, whichever came first."""
    held = sorted((name, one.quantity, one.price, one.lot) for name, one in holdings.items())
    return sorted(current.items()), value, currency, held


def lines_of(portfolio: Portfolio, traded_at: int, draft: Draft) -> tuple[Line, ...]:
    """Return the plan for a portfolio as it stands. Refusals: holdings_invalid, asset_unknown."""
    lines = plan(
        portfolio.target,
        portfolio.current,
        portfolio.rules,
        now=portfolio.as_of,
        traded_at=traded_at,
    )
    if not portfolio.value:
        return lines
    scale = draft.asset(portfolio.currency).scale
    return priced(lines, portfolio.value, scale, portfolio.holdings)


def _run(user: str, found: Found, after: Portfolio, draft: Draft) -> RunAnswer:
    """Work a new run out, keep it with the portfolio, and answer it."""
    before = found.portfolio
    lines = lines_of(after, before.traded_at or before.created_at, draft)
    count = sum(1 for line in lines if line.change)
    after = msgspec.structs.replace(
        after,
        run=draft.sequence,
        run_at=draft.time,
        run_before=before.run,
        trade_run=draft.sequence if count else before.trade_run,
        trades_before=before.trade_run,
        open=tuple(range(1, count + 1)),
        is_fresh=True,
        traded_at=after.as_of if count else before.traded_at,
        traded_before=before.traded_at,
    )
    put_portfolio(draft, user, after, found.record)
    return _answer("rebalanced", user, after, lines)


def repeated(user: str, portfolio: Portfolio, draft: Draft) -> RunAnswer:
    """Return the last run of a portfolio again: the same input makes the same lines."""
    lines = lines_of(portfolio, portfolio.traded_before or portfolio.created_at, draft)
    return _answer("repeat", user, portfolio, lines)


def _answer(
    result: Literal["rebalanced", "repeat"],
    user: str,
    portfolio: Portfolio,
    lines: tuple[Line, ...],
) -> RunAnswer:
    return RunAnswer(
        result,
        user,
        portfolio.run,
        portfolio.run_at,
        lines,
        portfolio.run_before,
        portfolio.trades_before,
        portfolio.policy_version,
        portfolio.as_of,
        portfolio.currency,
    )

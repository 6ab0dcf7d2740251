"""The update of a portfolio by its provider, and the transactions that bring it back."""

from typing import Any, Literal, NamedTuple

import msgspec

from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.commands import Command, Twin, Wanted, fingerprint
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.entries import Entry
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.portfolios.orders import check_holdings, number_of, priced, valued
from pennyweight.products.portfolios.plan import plan
from pennyweight.products.portfolios.shared import (
    PRODUCT,
    PROVIDER_TOLERANCE,
    QUEUE_UPDATE,
    REPLAY,
    UPDATE_PREFIX,
    Found,
    Holding,
    Line,
    Portfolio,
    QueuedAnswer,
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


class _Told(NamedTuple):
    """What an update says, in the order in which two of one moment are compared."""

    current: Weights
    value: str
    currency: str
    holdings: dict[str, Holding]

    @property
    def rank(self) -> tuple[object, ...]:
        """What orders two updates of one moment, whichever came first."""
        held = sorted(
            (name, one.quantity, one.price, one.lot) for name, one in self.holdings.items()
        )
        return sorted(self.current.items()), self.value, self.currency, held


class Rebalance(Command, frozen=True):
    """Take what a portfolio has become, keep its target, and work out what brings it back.

    `allocation` are percentages by asset, decimal text; without any, `holdings` are valued.
    `as_of` is when it was so, in microseconds; an update older than the portfolio's newest
    changes nothing ("outdated"). Of two with one `as_of` the one stands whose weights are
    greater, compared name by name, whichever came first. One without `as_of` counts as of
    its arrival. An update that says again what the newest said is a repeat until target or
    policy change: with that one's `as_of`; or with neither `as_of` nor `request_id`, and then
    only until all transactions are executed. `value` is the portfolio's, in `currency`.

    Refusals: as_of_in_future (more than a minute ahead), user_id_invalid, asset_unknown (the
    currency), allocation_invalid, holdings_invalid, portfolio_not_found.
    """

    name = "rebalance"
    product = PRODUCT
    counted = ("user", "allocation", "request_id", "as_of", "value", "currency", "holdings")
    answer_type = RunAnswer
    other_answer_types = (QueuedAnswer,)

    user: str
    allocation: dict[str, str]
    request_id: str = ""
    as_of: int | None = None
    value: str = ""
    currency: str = ""
    holdings: dict[str, Holding] = msgspec.field(default_factory=dict)

    @property
    def key(self) -> str:
        """The idempotency key that the request id makes, "" without one.

        The user's id is escaped as in accounts, so that it ends where it ends.
        """
        if not self.request_id:
            return ""
        user = self.user.replace("%", "%25").replace(":", "%3A")
        return f"{UPDATE_PREFIX}{user}:{self.request_id}"

    def reads(self, wanted: Wanted) -> None:
        """The user, with whom the portfolio is kept."""
        wanted.holder(user_holder(self.user))

    def twin_in(self, earlier: Entry) -> Twin | None:
        """See `update_in`."""
        found = update_in(earlier)
        return None if found is None else Twin(fingerprint(found[0]), found[1])

    def decide(self, draft: Draft) -> RunAnswer:
        """See the class."""
        return self.decide_as_of(draft.time, draft)

    def decide_as_of(self, arrived_at: int, draft: Draft) -> RunAnswer:
        """Decide it as one that arrived then: newer ones may have been decided since."""
        told = self._told(draft)
        found = find_portfolio(draft, self.user)
        change = self._change(told, found.portfolio, arrived_at)
        if isinstance(change, Portfolio):
            return _run(self.user, found, change, draft)
        return _nothing_new(change, self.user, found.portfolio, draft)

    def preview(self, draft: Draft) -> RunAnswer:
        """Return what would come of it, and change nothing. Refusals: as for `decide`.

        A run that is only looked at has no number.
        """
        told = self._told(draft)
        before = find_portfolio(draft, self.user).portfolio
        after = self._change(told, before, draft.time)
        if not isinstance(after, Portfolio):
            return _nothing_new(after, self.user, before, draft)
        return RunAnswer(
            "rebalanced",
            self.user,
            at=draft.time,
            lines=lines_of(after, before.traded_at or before.created_at, draft),
            policy_version=after.policy_version,
            as_of=after.as_of,
            currency=after.currency,
        )

    def _told(self, draft: Draft) -> _Told:
        """Return what this update says, looked at by itself. Refusals: see the class."""
        if self.as_of is not None and self.as_of > draft.time + AHEAD_MICROSECONDS:
            refuse(Reason.AS_OF_IN_FUTURE, "as_of lies more than a minute after the commit")
        if self.value or self.holdings or self.currency:
            draft.asset(self.currency)
        current, value = self._weights()
        return _Told(current, value, self.currency, self.holdings)

    def _change(self, told: _Told, portfolio: Portfolio, arrived_at: int) -> Portfolio | Nothing:
        """Return the portfolio with what this update says, or why it says nothing new."""
        known = _Told(portfolio.current, portfolio.value, portfolio.currency, portfolio.holdings)
        heard_at = portfolio.heard_at
        if self.as_of is None:
            if arrived_at < max(heard_at, min(portfolio.as_of, portfolio.run_at)):
                return "outdated"
            as_of = max(arrived_at, portfolio.as_of + portfolio.is_timed)
            heard_at = arrived_at
            if not self.request_id and portfolio.is_repeatable and told == known:
                return "repeat"
        else:
            as_of = self.as_of
            if as_of < portfolio.as_of:
                return "outdated"
            if as_of == portfolio.as_of and portfolio.is_timed:
                if told == known and portfolio.is_fresh:
                    return "repeat"
                if told.rank < known.rank:
                    return "outdated"
        return msgspec.structs.replace(
            portfolio,
            current=told.current,
            as_of=as_of,
            is_timed=self.as_of is not None,
            heard_at=heard_at,
            value=told.value,
            currency=told.currency,
            holdings=told.holdings,
        )

    def _weights(self) -> tuple[Weights, str]:
        """Return the weights that are told, and the value. Refusals: see the class."""
        if not self.allocation:
            if not self.holdings:
                refuse(Reason.ALLOCATION_INVALID, "an update has new_allocation, or holdings")
            weights, value = valued(self.holdings)
            if self.value:
                number_of(self.value, "portfolio_value")
            return weights, self.value or value
        weights = weights_of(self.allocation, PROVIDER_TOLERANCE)
        check_holdings(self.holdings)
        if self.value:
            number_of(self.value, "portfolio_value")
        return weights, self.value


class _Around(msgspec.Struct):
    """What counts of a command that has an update in it."""

    update: Rebalance


_ANSWERS = {Rebalance.name: RunAnswer, REPLAY: RunAnswer, QUEUE_UPDATE: QueuedAnswer}


def update_in(entry: Entry) -> tuple[Rebalance, Any] | None:
    """Return the update that an entry took in, and the type of its answer, None if it took none.

    It may have come directly, out of a dead letter, or into the queue: the same update under
    the same request id has one effect, whichever way it comes.
    """
    answer_type = _ANSWERS.get(entry.command)
    if answer_type is None:
        return None
    if entry.command == Rebalance.name:
        return msgspec.json.decode(entry.fields, type=Rebalance), answer_type
    return msgspec.json.decode(entry.fields, type=_Around).update, answer_type


def _nothing_new(why: Nothing, user: str, portfolio: Portfolio, draft: Draft) -> RunAnswer:
    """Answer an update that changes nothing."""
    if why == "repeat":
        return repeated(user, portfolio, draft)
    return RunAnswer("outdated", user, as_of=portfolio.as_of)


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
    count = sum(1 for line in lines if line.change)
    executed = tuple(one for one in range(1, count + 1) if one not in portfolio.open)
    return _answer("repeat", user, portfolio, lines, executed)


def _answer(
    result: Literal["rebalanced", "repeat"],
    user: str,
    portfolio: Portfolio,
    lines: tuple[Line, ...],
    executed: tuple[int, ...] = (),
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
        executed,
    )

"""Portfolios, runs and transactions as they are shown, by HTTP, in documents, on the command line.

Percentages are JSON numbers with all of their digits; a float they never are.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal, NamedTuple

import msgspec

from pennyweight.delivery.http.wire import rfc3339
from pennyweight.engine.port import Committed
from pennyweight.products.portfolios.execute import Execution
from pennyweight.products.portfolios.shared import (
    EXECUTION,
    LINES_MAX,
    WHOLE,
    Band,
    Calendar,
    Line,
    Policy,
    Portfolio,
    Rule,
    RunAnswer,
    Weights,
    drift_score,
    percent_text,
    transaction_id,
)

Status = Literal["proposed", "executed", "superseded"]
"""What became of a transaction. superseded: a later run has looked at the portfolio anew."""

Percent = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "number"})]
"""A percentage on the wire: a JSON number, digit by digit."""

Unset = msgspec.UnsetType
UNSET = msgspec.UNSET


class State(NamedTuple):
    """What became of a transaction, and how it was executed, if it was and that is known."""

    status: Status
    execution: Execution | None = None


PROPOSED = State("proposed")
SUPERSEDED = State("superseded")
EXECUTED = State("executed")


def proposed(_: int) -> State:
    """Return the state of every transaction of a run that is just there."""
    return PROPOSED


def told_again(answer: RunAnswer) -> Callable[[int], State]:
    """Return what tells the state of the transactions of a run that is told again."""
    return lambda position: EXECUTED if position in answer.executed else PROPOSED


def executions_of(run: int, store: Committed) -> dict[int, Execution]:
    """Return what was executed of a run, by position."""
    records = store.records(EXECUTION, label=f"run:{run}", limit=LINES_MAX)
    found: list[Execution] = [record.read(Execution) for record in records]
    return {execution.fill.position: execution for execution in found}


class ExecutedShown(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """When a transaction was executed, and for how much, where that was told."""

    at: str
    quantity: str = ""
    amount: str = ""
    currency: str = ""


class TransactionShown(msgspec.Struct, kw_only=True, gc=False):
    """What is to be traded of one asset, and why.

    `rebalance_percent` are points of the portfolio, always above 0; `percent_of_holding` is
    the same as a share of what was held of the asset, null where that was nothing. `rule` is
    the code of `reason`. Drifts are current minus target, in points. `amount` (in `currency`)
    and `quantity` are there where the update had a value, and a price. In a preview there is
    no `id`, `status` or `created_at`.
    """

    id: str | Unset = UNSET
    user_id: str
    action: Literal["BUY", "SELL"]
    asset: str
    rebalance_percent: Percent
    percent_of_holding: Percent | None
    reason: str
    rule: Rule
    drift_before: Percent
    drift_after: Percent
    status: Status | Unset = UNSET
    created_at: str | Unset = UNSET
    amount: str | Unset = UNSET
    currency: str | Unset = UNSET
    quantity: str | Unset = UNSET
    executed: ExecutedShown | Unset = UNSET


class UntradedShown(msgspec.Struct, frozen=True, gc=False):
    """An asset that a run leaves as it is, and why; `drift` is current minus target, in points."""

    asset: str
    reason: str
    rule: Rule
    drift: Percent


class BandShown(msgspec.Struct, frozen=True, gc=False):
    """A band, as `BandBody` takes it."""

    absolute: Percent | Unset = UNSET
    relative: Percent | Unset = UNSET


class PolicyShown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A policy, as `PolicyBody` takes it; what does not count is left out."""

    bands: BandShown | Unset = UNSET
    asset_bands: dict[str, BandShown] | Unset = UNSET
    drift_score: Percent | Unset = UNSET
    calendar: Calendar | Unset = UNSET
    when: Literal["any", "all"]
    minimum_trade: Percent
    trade_to: Literal["target", "band"]
    cash_asset: str | Unset = UNSET
    buy_only: bool
    cash_first: bool
    locked: list[str]
    turnover_max: Percent | Unset = UNSET


class HoldingShown(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A holding, as `HoldingBody` takes it."""

    quantity: str = ""
    price: str = ""
    lot: str = ""


class PortfolioShown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A portfolio: what it is to be, what the provider said last, and what came of that.

    `allocation` is the target, by the seed's name for it. `current`, `drift` (current minus
    target, in points), `drift_score` (half the sum of all drifts) and `as_of` are null until
    the first update. Version 0 of the policy is none: every drift is traded, to the target.
    """

    user_id: str
    allocation: dict[str, Percent]
    target: dict[str, Percent]
    current: dict[str, Percent] | None
    drift: dict[str, Percent] | None
    drift_score: Percent | None
    as_of: str | None
    policy: PolicyShown | None
    policy_version: int
    created_at: str
    last_run: int | None
    last_run_at: str | None
    open_transactions: list[str]
    portfolio_value: str | Unset = UNSET
    currency: str | Unset = UNSET
    holdings: dict[str, HoldingShown] | Unset = UNSET


_NOTHING = msgspec.Raw(b"0")


def number(weight: int) -> msgspec.Raw:
    """Write a weight, or a difference of two, as a JSON number."""
    return msgspec.Raw(percent_text(weight)) if weight else _NOTHING


def numbers(weights: Mapping[str, int]) -> dict[str, msgspec.Raw]:
    """Write weights as JSON numbers."""
    return {name: number(weight) for name, weight in weights.items()}


def shown_transactions(
    answer: RunAnswer, state_of: Callable[[int], State] = proposed
) -> list[TransactionShown]:
    """Show the transactions of a run, in order. `state_of` tells of each position what became of it."""
    created_at = rfc3339(answer.at)
    shown = []
    for position, line in enumerate(answer.lines, 1):
        change = line.change
        if not change:
            break  # transactions come first
        status, execution = state_of(position)
        drift = line.before - line.target
        text = percent_text(abs(drift))
        is_whole = change == -drift
        one = TransactionShown(
            id=transaction_id(answer.run, position),
            user_id=answer.user,
            action="BUY" if change > 0 else "SELL",
            asset=line.asset,
            rebalance_percent=msgspec.Raw(text) if is_whole else number(abs(change)),
            percent_of_holding=share_of_holding(line),
            reason=_reason(line, text),
            rule=line.rule,
            drift_before=msgspec.Raw(f"-{text}") if drift < 0 else msgspec.Raw(text),
            drift_after=_NOTHING if is_whole else number(drift + change),
            status=status,
            created_at=created_at,
        )
        if line.amount or line.quantity or execution is not None:
            one.amount = line.amount or UNSET
            one.currency = answer.currency if line.amount else UNSET
            one.quantity = line.quantity or UNSET
            one.executed = UNSET if execution is None else _show_execution(execution)
        shown.append(one)
    return shown


def shown_plan(answer: RunAnswer) -> list[TransactionShown]:
    """Show the transactions of a run that is not in the book."""
    shown = shown_transactions(answer)
    for one in shown:
        one.id = one.status = one.created_at = UNSET
    return shown


def shown_untraded(answer: RunAnswer) -> list[UntradedShown]:
    """Show the assets that a run leaves as they are, by name."""
    return [
        UntradedShown(line.asset, reason_of(line), line.rule, number(line.before - line.target))
        for line in answer.lines
        if not line.change
    ]


def _show_execution(execution: Execution) -> ExecutedShown:
    fill = execution.fill
    return ExecutedShown(rfc3339(execution.at), fill.quantity, fill.amount, fill.currency)


def share_of_holding(line: Line) -> msgspec.Raw | None:
    """Write a change as a percentage of what was held, to the nearest 10^-10; None of nothing."""
    before = line.before
    if not before:
        return None
    return number((abs(line.change) * WHOLE * 2 + before) // (before * 2))


def reason_of(line: Line) -> str:
    """Say in a sentence why an asset is traded, or is not."""
    return _reason(line, percent_text(abs(line.before - line.target)))


def _reason(line: Line, drift: str) -> str:
    match line.rule:
        case "drift":
            return f"off the target: {_points(drift)}"
        case "band":
            return f"outside the band: {drift} of {_limit(line)}"
        case "score":
            return f"the drift score has reached {_limit(line)}"
        case "calendar":
            return f"a period of the calendar has begun: off the target by {_points(drift)}"
        case "cash_flow":
            return f"cash flow: cash is off its target by {_limit(line)}"
        case "with_others":
            return f"traded with others that are due: off the target by {_points(drift)}"
        case "on_target":
            return "on the target"
        case "in_band":
            return f"inside the band: {drift} of {_limit(line)}"
        case "not_due":
            return f"not due: off the target by {_points(drift)}"
        case "locked":
            return f"locked: off the target by {_points(drift)}"
        case "buy_only":
            return f"nothing is sold: over the target by {_points(drift)}"
        case "below_minimum":
            return f"below the minimum trade: {drift} of {_limit(line)}"
        case "no_counterpart":
            return f"nothing left to trade against: off the target by {_points(drift)}"


def _limit(line: Line) -> str:
    return _points(percent_text(line.limit))


def _points(percent: str) -> str:
    return f"{percent} point" if percent == "1" else f"{percent} points"


def drift_scores(answer: RunAnswer) -> tuple[int, int]:
    """Return the drift score of a run before and after its transactions."""
    lines = answer.lines
    before = sum(abs(line.before - line.target) for line in lines) // 2
    return before, sum(abs(line.after - line.target) for line in lines) // 2


def show_portfolio(user: str, portfolio: Portfolio) -> PortfolioShown:
    """Show a user's portfolio."""
    target = numbers(portfolio.target)
    current = portfolio.current
    holdings = {
        name: HoldingShown(one.quantity, one.price, one.lot)
        for name, one in portfolio.holdings.items()
    }
    run = portfolio.run
    return PortfolioShown(
        user_id=user,
        allocation=target,
        target=target,
        current=numbers(current) if current else None,
        drift=numbers(_drifts(portfolio.target, current)) if current else None,
        drift_score=number(drift_score(portfolio.target, current)) if current else None,
        as_of=rfc3339(portfolio.as_of) if current else None,
        policy=None if portfolio.policy is None else show_policy(portfolio.policy),
        policy_version=portfolio.policy_version,
        created_at=rfc3339(portfolio.created_at),
        last_run=run or None,
        last_run_at=rfc3339(portfolio.run_at) if run else None,
        open_transactions=[transaction_id(run, position) for position in portfolio.open],
        portfolio_value=portfolio.value or UNSET,
        currency=portfolio.currency or UNSET,
        holdings=holdings or UNSET,
    )


def _drifts(target: Weights, current: Weights) -> Weights:
    """Return current minus target by asset, in the order of the names."""
    names = sorted(target.keys() | current.keys())
    return {name: current.get(name, 0) - target.get(name, 0) for name in names}


def show_policy(policy: Policy) -> PolicyShown:
    """Show a policy."""
    return PolicyShown(
        bands=_show_band(policy.band),
        asset_bands={name: _show_band(band) or BandShown() for name, band in policy.bands.items()}
        or UNSET,
        drift_score=_or_unset(policy.score),
        calendar=policy.calendar or UNSET,
        when=policy.when,
        minimum_trade=number(policy.minimum_trade),
        trade_to=policy.trade_to,
        cash_asset=policy.cash or UNSET,
        buy_only=policy.is_buy_only,
        cash_first=policy.is_cash_first,
        locked=list(policy.locked),
        turnover_max=_or_unset(policy.turnover_max),
    )


def _show_band(band: Band) -> BandShown | Unset:
    if band == Band():
        return UNSET
    return BandShown(_or_unset(band.absolute), _or_unset(band.relative))


def _or_unset(weight: int | None) -> msgspec.Raw | Unset:
    return UNSET if weight is None else number(weight)

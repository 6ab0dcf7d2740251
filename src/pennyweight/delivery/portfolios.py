"""Portfolios between the wire and the book: one shape and one handler for HTTP, Kafka and the rest.

An update is JSON, `{"user_id", "new_allocation"}` with, if the provider likes, `request_id`,
`as_of`, `portfolio_value`, `currency` and `holdings`. Percentages are numbers or text, going
in, and numbers with all of their digits coming out; a float they never are. Unknown fields
are ignored, except inside a policy: one that is silently misread costs money.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar

import msgspec

from pennyweight.delivery.http.wire import (
    Amount,
    BadRequest,
    Moment,
    Unreadable,
    decoder,
    microseconds,
    read,
    rfc3339,
)
from pennyweight.delivery.settlements import ID_LENGTH_MAX, STREAM_PREFIX, Id, Incoming, text_of
from pennyweight.engine.engine import Submission
from pennyweight.ledger.money import canonical, to_units
from pennyweight.ledger.refusals import Reason, Refused, refuse
from pennyweight.products.portfolios.execute import Execution
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.shared import (
    DECIMALS,
    UPDATE_PREFIX,
    WHOLE,
    Band,
    Calendar,
    Holding,
    Line,
    Policy,
    Portfolio,
    Rule,
    RunAnswer,
    Weights,
    check_policy,
    drift_score,
    percent_text,
    transaction_id,
)

CURRENCY = "USD"
"""The currency of values and prices where the provider names none."""

KEY_PREFIXES = (UPDATE_PREFIX, STREAM_PREFIX)
"""Keys of updates and of messages begin so; nobody may take one for something else."""

Status = Literal["proposed", "executed", "superseded"]
"""What became of a transaction. superseded: a later run has looked at the portfolio anew."""

Percent = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "number"})]
"""A percentage on the wire: a JSON number, digit by digit."""

Unset = msgspec.UnsetType
UNSET = msgspec.UNSET
T = TypeVar("T")


# ── what comes in ─────────────────────────────────────────────────────────────────


class UserNamed(msgspec.Struct, kw_only=True, gc=False):
    """Who it is about, by any of the names of `user_id`; `id` and `ID` count where it has no other."""

    user_id: Id | Unset = UNSET
    user_id_too: Id | Unset = msgspec.field(default=UNSET, name="userId")
    user_id_also: Id | Unset = msgspec.field(default=UNSET, name="UserID")
    id: Id | Unset | None = UNSET
    id_too: Id | Unset | None = msgspec.field(default=UNSET, name="ID")


class HoldingBody(msgspec.Struct, kw_only=True, gc=False):
    """What a user holds of an asset: how much, the price of one, and the smallest part that is traded."""

    quantity: Amount | None = None
    price: Amount | None = None
    lot: Amount | None = None


class UpdateBody(UserNamed, kw_only=True, gc=False):
    """What a portfolio has become: percentages by asset, or holdings that have prices.

    `as_of` is when it was so; an older update never overwrites a newer one. `request_id`
    names the update: the same one again does nothing. With `portfolio_value` (in `currency`,
    USD if not given) transactions have amounts, with prices quantities too.
    """

    new_allocation: dict[str, Amount] | Unset = UNSET
    new_allocation_too: dict[str, Amount] | Unset = msgspec.field(
        default=UNSET, name="NewAllocation"
    )
    new_allocation_also: dict[str, Amount] | Unset = msgspec.field(
        default=UNSET, name="newAllocation"
    )
    request_id: Id | None = None
    as_of: Moment | None = None
    portfolio_value: Amount | None = None
    currency: Annotated[str, msgspec.Meta(min_length=1, max_length=40)] | None = None
    holdings: dict[str, HoldingBody] | None = None


class PostedUpdate(UpdateBody, kw_only=True, gc=False):
    """An update over HTTP, which may carry what every command may."""

    idempotency_key: str | None = None
    not_after: Moment | None = None


class BandBody(msgspec.Struct, kw_only=True, gc=False, forbid_unknown_fields=True):
    """How far an asset may be from its target: in points, and in percent of the target.

    The narrower of the two counts; null or left out: no such bound.
    """

    absolute: Amount | None = None
    relative: Amount | None = None


class PolicyBody(msgspec.Struct, kw_only=True, gc=False, forbid_unknown_fields=True):
    """When a portfolio is rebalanced, and how; left out, a rule does not count.

    `bands` are for every asset, `asset_bands` for those that are named. `when` says whether
    any of bands, `drift_score` and `calendar` makes the portfolio due, or only all together.
    """

    bands: BandBody | None = None
    asset_bands: dict[str, BandBody] = {}
    drift_score: Amount | None = None
    calendar: Calendar | None = None
    when: Literal["any", "all"] = "any"
    minimum_trade: Amount = "0"  # type: ignore[assignment]  # an `Amount` is plain text
    trade_to: Literal["target", "band"] = "target"
    cash_asset: str | None = None
    buy_only: bool = False
    cash_first: bool = False
    locked: list[str] = []
    turnover_max: Amount | None = None


class Incomplete(BadRequest):
    """A body that lacks something, or says it twice and differently."""

    def __init__(self, detail: str, code: str = "body_invalid") -> None:
        """`detail` is for the caller."""
        super().__init__(code, detail)


_update_decoder = decoder(UpdateBody)
_policy_decoder = decoder(PolicyBody)


def user_in(body: UserNamed) -> str:
    """Return whom a body is about. Raises Incomplete.

    `id` is also a name for other things: beside one of the others it is ignored.
    """
    user = body.user_id
    if user.__class__ is str and body.user_id_too is UNSET and body.user_id_also is UNSET:
        return user
    given = [body.user_id, body.user_id_too, body.user_id_also]
    if all(one is UNSET for one in given):
        given = [UNSET if one is None else one for one in (body.id, body.id_too)]
    names = {str(one) for one in given if one is not UNSET}
    if not names:
        raise Incomplete("user_id is missing")
    if len(names) > 1:
        raise Incomplete("the user is named twice, and not alike", "user_id_ambiguous")
    return names.pop()


def one_of(name: str, *given: T | Unset) -> T | Unset:
    """Return what was given under any of a field's names, UNSET for nothing. Raises Incomplete."""
    found = [one for one in given if one is not UNSET]
    if not found:
        return UNSET
    if any(one != found[0] for one in found):
        raise Incomplete(f"{name} is there twice, and not alike", f"{name}_ambiguous")
    return found[0]


def by_name(given: Mapping[str, T]) -> dict[str, T]:
    """Return a map in the order of its names: in whatever order it was sent, it is the same one."""
    return dict(sorted(given.items()))


def read_weights(body_decoder: msgspec.json.Decoder[T], content: bytes) -> T:
    """Decode a body that holds percentages. Raises Unreadable; Refused, naming the asset.

    Refusals: allocation_invalid, holdings_invalid, policy_invalid, amount_invalid and its like.
    """
    try:
        return read(body_decoder, content)
    except Refused as refused:
        _name_asset(content)
        _name_others(content, refused)
    except Unreadable as unreadable:
        if unreadable.code == "body_invalid":
            _name_asset(content)
        raise


_ALLOCATIONS = ("allocation", "Allocation", "new_allocation", "NewAllocation", "newAllocation")


class _Digits(str):
    """The digits of a number, as they were sent."""

    __slots__ = ()


def _name_asset(content: bytes) -> None:
    """Refuse the first percentage of a body that is none, with its asset's name.

    Refusal: allocation_invalid. Returns if the fault lies elsewhere.
    """
    body = _with_digits(content)
    for name in _ALLOCATIONS:
        allocation = body.get(name)
        for asset, given in allocation.items() if isinstance(allocation, dict) else ():
            if not isinstance(given, str):
                shown = json.dumps(given)[:40]
                message = f"{shown} is no percentage, which is a number or its text"
            else:
                try:
                    canonical(str(given))
                except Refused as refused:
                    message = refused.message
                else:
                    continue
            refuse(Reason.ALLOCATION_INVALID, f"{asset[:80]}: {message}", asset=asset[:80])


def _with_digits(content: bytes) -> dict[str, Any]:
    """Return a body with all numbers as their digits; also -0, which our decoder reads as 0.

    {} for what is no object, or cannot be read so.
    """
    try:
        body = json.loads(content, parse_int=_Digits, parse_float=_Digits, parse_constant=_Digits)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _name_others(content: bytes, refused: Refused) -> NoReturn:
    """Raise a refusal of an amount that is no percentage of an allocation, with its field's name."""
    field = _first_bad(_with_digits(content))
    message = f"{field}: {refused.message}" if field else refused.message
    reason = refused.reason
    if ".holdings." in f".{field}.":
        reason = Reason.HOLDINGS_INVALID
    elif ".policy." in f".{field}.":
        reason = Reason.POLICY_INVALID
    raise Refused(reason, message[:400], **refused.figures) from None


_AMOUNTS = frozenset(
    {
        "portfolio_value",
        "quantity",
        "amount",
        "price",
        "lot",
        "absolute",
        "relative",
        "drift_score",
        "minimum_trade",
        "turnover_max",
    }
)


def _first_bad(value: Any, path: str = "", depth: int = 4) -> str:
    """Return the path of the first amount in a body that is none, "" for none.

    No field that we know lies deeper than `policy.asset_bands.gold.absolute`.
    """
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for name, one in items:
        place = f"{path}.{str(name)[:80]}" if path else str(name)[:80]
        if isinstance(one, dict | list):
            found = _first_bad(one, place, depth - 1) if depth > 1 else ""
            if found:
                return found
        elif name in _AMOUNTS and isinstance(one, str):
            try:
                canonical(str(one))
            except Refused:
                return place
    return ""


# ── updates ───────────────────────────────────────────────────────────────────────


def update_of(body: UpdateBody) -> Rebalance:
    """Return the command that a body asks for. Raises BadRequest, Refused."""
    allocation = body.new_allocation
    if body.new_allocation_too is not UNSET or body.new_allocation_also is not UNSET:
        allocation = one_of(
            "new_allocation", allocation, body.new_allocation_too, body.new_allocation_also
        )
    if allocation is UNSET:
        if not body.holdings:
            raise Incomplete("new_allocation is missing")
        allocation = {}
    elif not allocation:
        refuse(Reason.ALLOCATION_INVALID, "new_allocation names no asset")
    else:
        allocation = by_name(allocation)
    request_id = "" if body.request_id is None else _checked_id(body.request_id)
    as_of = None if body.as_of is None else microseconds(body.as_of, "as_of")
    value = body.portfolio_value or ""
    if not value and not body.holdings:
        return Rebalance(user_in(body), allocation, request_id, as_of)  # type: ignore[arg-type]
    holdings = {
        name: Holding(one.quantity or "", one.price or "", one.lot or "")
        for name, one in by_name(body.holdings or {}).items()
    }
    currency = body.currency or CURRENCY
    return Rebalance(user_in(body), allocation, request_id, as_of, value, currency, holdings)  # type: ignore[arg-type]


def _checked_id(given: Id) -> str:
    """Return an id as text. Raises Incomplete: an empty one would be as good as none."""
    text = text_of(given)
    if not 0 < len(text) <= ID_LENGTH_MAX or not text.isprintable():
        raise Incomplete(f"request_id: an id has 1 to {ID_LENGTH_MAX} printable characters")
    return text


def update_in(content: bytes | None) -> Rebalance:
    """Return the update in the value of a message.

    Refusals: message_malformed (no JSON, no value), message_invalid (another shape),
    allocation_invalid, holdings_invalid, those of `money.parse`.
    """
    if content is None:
        refuse(Reason.MESSAGE_MALFORMED, "the message has no value (a tombstone)")
    try:
        return update_of(read_weights(_update_decoder, content))
    except BadRequest as error:
        is_json = error.code != "body_malformed"
        reason = Reason.MESSAGE_INVALID if is_json else Reason.MESSAGE_MALFORMED
        raise Refused(reason, error.detail) from None


def rebalance_of(message: Incoming) -> Submission:
    """Return what is to be submitted for a message of the stream of updates.

    What it refuses is to be set aside; for refusals see `update_in`.
    """
    update = update_in(message.value)
    return Submission(update, key=update.key or message.default_key)


def check_key(key: str) -> None:
    """Turn away a key of somebody else's that an update could have. Raises BadRequest."""
    if key.startswith(KEY_PREFIXES):
        begin = " and ".join(repr(prefix) for prefix in KEY_PREFIXES)
        raise BadRequest("idempotency_key_invalid", f"{begin} begin the keys of updates")


# ── policies ──────────────────────────────────────────────────────────────────────


def policy_in(content: bytes) -> Policy:
    """Return the policy in a JSON document. Raises Unreadable; Refused (policy_invalid)."""
    try:
        body = read(_policy_decoder, content)
    except Refused as refused:
        field = _first_bad(_with_digits(content))
        refuse(Reason.POLICY_INVALID, f"{field}: {refused.message}")
    return policy_of(body)


def policy_of(body: PolicyBody) -> Policy:
    """Return the policy that a body describes. Refusal: policy_invalid, naming the field."""
    policy = Policy(
        _band_of(body.bands, "bands"),
        {
            asset: _band_of(band, f"asset_bands.{asset[:80]}")
            for asset, band in sorted(body.asset_bands.items())
        },
        _weight(body.drift_score, "drift_score"),
        body.calendar or "",
        body.when,
        _weight(body.minimum_trade, "minimum_trade") or 0,
        body.trade_to,
        body.cash_asset or "",
        body.buy_only,
        body.cash_first,
        tuple(sorted(set(body.locked))),
        _weight(body.turnover_max, "turnover_max"),
    )
    check_policy(policy)
    return policy


def _band_of(body: BandBody | None, path: str) -> Band:
    """Return a band. Refusal: policy_invalid."""
    if body is None:
        return Band()
    return Band(
        _weight(body.absolute, f"{path}.absolute"), _weight(body.relative, f"{path}.relative")
    )


def _weight(given: str | None, field: str) -> int | None:
    """Return a percentage of a policy as a weight. Refusal: policy_invalid, with field and range."""
    if given is None:
        return None
    try:
        weight = to_units(given, DECIMALS)
    except Refused as refused:
        refuse(Reason.POLICY_INVALID, f"{field}: {refused.message}")
    if weight > WHOLE:
        refuse(Reason.POLICY_INVALID, f"{field} is from 0 to 100, and {given[:40]} was given")
    return weight


# ── what goes out ─────────────────────────────────────────────────────────────────


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

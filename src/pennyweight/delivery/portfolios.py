"""Portfolios between the wire and the book: one shape and one handler for HTTP, Kafka and the rest.

An update is JSON, `{"user_id", "new_allocation"}` with, if the provider likes, `request_id`,
`as_of`, `portfolio_value`, `currency` and `holdings`. Percentages are numbers or text, going
in, and numbers with all of their digits coming out; a float they never are. Unknown fields
are ignored, except inside a policy: one that is silently misread costs money.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import msgspec

from pennyweight.delivery.http.wire import (
    Amount,
    BadRequest,
    Moment,
    Unreadable,
    decoder,
    microseconds,
    read,
)
from pennyweight.delivery.settlements import ID_LENGTH_MAX, STREAM_PREFIX, Id, Incoming, text_of
from pennyweight.engine.engine import Submission
from pennyweight.ledger.money import canonical, to_units
from pennyweight.ledger.refusals import Reason, Refused, refuse
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.shared import (
    DECIMALS,
    UPDATE_PREFIX,
    WHOLE,
    Band,
    Calendar,
    Holding,
    Policy,
    check_policy,
)

CURRENCY = "USD"
"""The currency of values and prices where the provider names none."""

KEY_PREFIXES = (UPDATE_PREFIX, STREAM_PREFIX)
"""Keys of updates and of messages begin so; nobody may take one for something else."""

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

"""What all of portfolios share: weights, policies, the record, and what a run answers.

A weight is an integer, in units of 10^-10 percent, so that 100 % is `WHOLE` and every map
of weights adds up to exactly that. A change is a difference of weights: points of the
portfolio, not a share of the holding. Nothing here is ever a float.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.money import format_amount, parse, to_units
from pennyweight.ledger.records import Record
from pennyweight.ledger.refusals import Reason, Refused, refuse

PRODUCT = "portfolios"

DECIMALS = 10
"""Decimals of a percentage that are kept."""

POINT: int = 10**DECIMALS
"""One percent of a portfolio."""

WHOLE: int = 100 * POINT
"""A whole portfolio."""

ASSETS_MAX = 100
ASSET_LENGTH_MAX = 64

LINES_MAX = 2 * ASSETS_MAX
"""Assets of a run: those of the target, and others that are held."""

DECIMALS_MAX = 18
"""Decimals that a percentage may be given with; more than `DECIMALS` are for what follows from them."""

TARGET_TOLERANCE = 10**9
PROVIDER_TOLERANCE = 10**2
"""A map may add up to 100 give or take one part of so many of a percent, that included."""

PORTFOLIO = "portfolio"
"""Kind of the record of a portfolio, kept with its user; its id is the user's."""

POLICY = "portfolio_policy"
"""Kind of the record of one version of a policy; its id is `policy_id`."""

EXECUTION = "rebalance_execution"
"""Kind of the record of a transaction that was executed; its id is the transaction's."""

UPDATE = "rebalance_update"
"""Kind of the record of an update that was queued; its id is its number, which `UPDATE` counts."""

QUEUE = "portfolios.queue"
"""Index of what is queued, by number."""

REPLAY = "replay_update"
"""Name of the command that applies an update out of a dead letter; it answers as `Rebalance` does."""

QUEUE_UPDATE = "queue_update"
"""Name of the command that keeps an update to be worked out later."""

UPDATE_PREFIX = "update:"
"""The keys of updates that have a request id begin so."""

Weights = dict[str, int]
"""Weights by asset, in the order of the names; together `WHOLE`."""

Calendar = Literal["", "daily", "weekly", "monthly", "quarterly", "yearly"]

Rule = Literal[
    "drift",
    "band",
    "score",
    "calendar",
    "cash_flow",
    "with_others",
    "on_target",
    "in_band",
    "not_due",
    "locked",
    "buy_only",
    "below_minimum",
    "no_counterpart",
]
"""Why an asset is traded (the first six), or is not.

drift: there is no policy, and it is off its target. band, score, calendar: that made it due.
cash_flow: it gives cash away, or takes it in, before anything is due. with_others: others
are due, and it is on the other side. in_band: it is within its band. not_due: nothing that
the policy waits for has come. no_counterpart: nothing is left to trade it against.
"""


# ── weights ───────────────────────────────────────────────────────────────────────


def weights_of(allocation: Mapping[str, str], tolerance: int) -> Weights:
    """Return percentages as weights that add up to exactly `WHOLE`, by largest remainder.

    `allocation` are decimal texts by asset; together they are 100, give or take 1/tolerance.
    Of equal remainders the one of the earlier name is rounded up. Refusal: allocation_invalid.
    """
    if not 0 < len(allocation) <= ASSETS_MAX:
        refuse(Reason.ALLOCATION_INVALID, f"an allocation has 1 to {ASSETS_MAX} assets")
    names = sorted(allocation)
    for name in names:
        check_asset(name)
    try:
        weights = [_weight_of(allocation[name]) for name in names]
    except Refused:
        pass  # more decimals than are kept, or no percentage at all
    else:
        if sum(weights) == WHOLE:
            return dict(zip(names, weights, strict=True))
    parts, decimals = _parts(allocation, names)
    total, hundred = sum(parts), 100 * 10**decimals
    if abs(total - hundred) * tolerance > 10**decimals:
        refuse(
            Reason.ALLOCATION_INVALID,
            f"the percentages add up to {format_amount(total, decimals)}, not to 100",
            sum=format_amount(total, decimals),
        )
    return dict(zip(names, shared_out(WHOLE, parts), strict=True))


@lru_cache(maxsize=16_384)  # more than there are with two decimals, in which most are given
def _weight_of(percentage: str) -> int:
    """Return a percentage as a weight. Refusals: those of `to_units`."""
    return to_units(percentage, DECIMALS)


def _parts(allocation: Mapping[str, str], names: list[str]) -> tuple[list[int], int]:
    """Return percentages as integers of one scale, and that scale. Refusal: allocation_invalid."""
    parsed = []
    for name in names:
        try:
            digits, decimals = parse(allocation[name])
        except Refused as refused:
            refuse(Reason.ALLOCATION_INVALID, f"{name}: {refused.message}", asset=name)
        if decimals > DECIMALS_MAX or digits > 1_000 * 10**decimals:
            refuse(
                Reason.ALLOCATION_INVALID,
                f"{name}: a percentage has at most {DECIMALS_MAX} decimals, and is at most 100",
                asset=name,
            )
        parsed.append((digits, decimals))
    scale = max(decimals for _, decimals in parsed)
    return [digits * 10 ** (scale - decimals) for digits, decimals in parsed], scale


def shared_out(amount: int, parts: list[int]) -> list[int]:
    """Share an amount out in proportion to parts, exactly, by largest remainder.

    Nobody gets more than a unit above the exact share; nobody without a part gets any. With
    no parts at all nobody gets anything.
    """
    total = sum(parts)
    if not total:
        return [0] * len(parts)
    exact = [divmod(amount * part, total) for part in parts]
    shares = [share for share, _ in exact]
    left = amount - sum(shares)
    if left:
        remainders = [remainder for _, remainder in exact]
        order = sorted(range(len(parts)), key=remainders.__getitem__, reverse=True)
        for i in order[:left]:  # of equal ones the first
            shares[i] += 1
    return shares


@lru_cache(maxsize=4_096)  # the same few names come with every update
def check_asset(name: str) -> None:
    """Refuse what cannot name an asset of a portfolio. Refusal: allocation_invalid."""
    if not 0 < len(name) <= ASSET_LENGTH_MAX or not name.isprintable() or name.strip() != name:
        refuse(
            Reason.ALLOCATION_INVALID,
            f"{name[:80]!r}: an asset's name has 1 to {ASSET_LENGTH_MAX} printable characters, "
            "and no space at its ends",
        )


def percent_text(weight: int) -> str:
    """Write a weight, or a change of one, as a percentage: decimal text."""
    whole, rest = divmod(weight, POINT)
    if not rest:
        return str(whole)
    return format_amount(weight, DECIMALS) if weight < 0 else f"{whole}.{rest:010}".rstrip("0")


def drift_score(target: Mapping[str, int], current: Mapping[str, int]) -> int:
    """Return half of the sum of all differences: the least that must change hands."""
    names = target.keys() | current.keys()
    return sum(abs(current.get(name, 0) - target.get(name, 0)) for name in names) // 2


# ── policies ──────────────────────────────────────────────────────────────────────


class Band(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """How far an asset may be from its target: points, and percent of the target, both as weights.

    The narrower of the two counts (5 and 25 make the 5/25 rule). None: no such bound.
    """

    absolute: int | None = None
    relative: int | None = None

    def width(self, target: int) -> int | None:
        """Return the band's half width around a target, None where there is no band."""
        widths = [] if self.absolute is None else [self.absolute]
        if self.relative is not None:
            widths.append(target * self.relative // WHOLE)
        return min(widths, default=None)


class Policy(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """When a portfolio is rebalanced, and how; the empty one trades every drift at once, to the target.

    Due is a portfolio when an unlocked asset has reached its band (`bands` by asset, `band`
    for the others), when the drift score has reached `score`, when a period of `calendar`
    (UTC; weeks begin on Monday) has begun since the last trades: `when` says whether any of
    these is enough or all that are set are needed. Every bound is inclusive: what reaches it
    is traded. `trade_to` is where the due ones go. `is_buy_only` sells nothing but `cash`.
    With `is_cash_first` too much `cash` buys what is short, and too little is made up by
    selling, before anything is due. `locked` are never traded. Trades below `minimum_trade`
    are left out, and all sales together are at most `turnover_max`.
    """

    band: Band = Band()
    bands: dict[str, Band] = {}
    score: int | None = None
    calendar: Calendar = ""
    when: Literal["any", "all"] = "any"
    minimum_trade: int = 0
    trade_to: Literal["target", "band"] = "target"
    cash: str = ""
    is_buy_only: bool = False
    is_cash_first: bool = False
    locked: tuple[str, ...] = ()
    turnover_max: int | None = None

    def width(self, asset: str, target: int) -> int | None:
        """Return the half width of an asset's band, None where it has none."""
        return self.bands.get(asset, self.band).width(target)


SEED_POLICY = Policy()
"""What counts where nobody has set another: every drift is traded, to the target."""


def check_policy(policy: Policy) -> None:
    """Refuse a policy that contradicts itself. Refusal: policy_invalid."""
    for band in (policy.band, *policy.bands.values()):
        _check_weight("a band", band.absolute)
        _check_weight("a band", band.relative)
    _check_weight("drift_score", policy.score)
    _check_weight("minimum_trade", policy.minimum_trade)
    _check_weight("turnover_max", policy.turnover_max)
    for name in (*policy.bands, *policy.locked, *([policy.cash] if policy.cash else [])):
        try:
            check_asset(name)
        except Refused as refused:
            refuse(Reason.POLICY_INVALID, refused.message)
    if max(len(policy.bands), len(policy.locked)) > ASSETS_MAX:
        refuse(Reason.POLICY_INVALID, f"a policy names at most {ASSETS_MAX} assets")
    if (policy.is_buy_only or policy.is_cash_first) and not policy.cash:
        refuse(Reason.POLICY_INVALID, "buy_only and cash_first need a cash_asset")
    if policy.cash in policy.locked:
        refuse(Reason.POLICY_INVALID, "the cash asset cannot be locked")
    if policy.turnover_max is not None and policy.turnover_max < policy.minimum_trade:
        refuse(
            Reason.POLICY_INVALID, "with turnover_max below minimum_trade nothing is ever traded"
        )


def _check_weight(name: str, weight: int | None) -> None:
    if weight is not None and not 0 <= weight <= WHOLE:
        refuse(Reason.POLICY_INVALID, f"{name} is between 0 and 100")


def policy_id(user: str, version: int) -> str:
    """Return the id of one version of a user's policy; in text order they are in order."""
    return f"{user}/{version:06}"


# ── a run ─────────────────────────────────────────────────────────────────────────


class Line(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a run has to say of one asset.

    `before` and `target` are weights, `change` is what is bought (or, below zero, sold);
    `limit` is the bound that the rule looked at. `amount` (decimal text of the currency) and
    `quantity` (of the asset, in whole lots) are there where the update told what for.
    """

    asset: str
    before: int
    target: int
    change: int
    rule: Rule
    limit: int = 0
    amount: str = ""
    quantity: str = ""

    @property
    def after(self) -> int:
        """The asset's weight when the change has been made."""
        return self.before + self.change


class RunAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What an update led to.

    `run` is the sequence of the entry that worked the lines out, `at` its time; a repeat
    names the run that it repeats. Lines with a change are the transactions, first and in
    order: sales before purchases, by drift, then by name; all others follow by name. An
    update that is outdated has none. `executed` are the positions of those that are executed
    when they are told again. `previous` is the run before this one, `trades_before`
    the one before it that had transactions, 0 for none.
    """

    result: Literal["rebalanced", "repeat", "outdated"]
    user: str
    run: int = 0
    at: int = 0
    lines: tuple[Line, ...] = ()
    previous: int = 0
    trades_before: int = 0
    policy_version: int = 0
    as_of: int = 0
    currency: str = ""
    executed: tuple[int, ...] = ()

    @property
    def trades(self) -> tuple[Line, ...]:
        """The lines that are transactions, in order."""
        return tuple(line for line in self.lines if line.change)


class QueuedAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The number of an update that was queued."""

    number: int
    user: str


def transaction_id(run: int, position: int) -> str:
    """Return the id of a transaction: the run's sequence and its place in the list, from 1."""
    return f"{run}-{position}"


# ── the record ────────────────────────────────────────────────────────────────────


class Holding(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What is known of what a user holds of an asset: decimal texts, "" for what is not.

    `price` is that of one unit, in the portfolio's currency; only whole `lot`s are traded.
    """

    quantity: str = ""
    price: str = ""
    lot: str = ""


class Portfolio(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A user's portfolio.

    `current` is what the provider said last, as of `as_of` (`is_timed`: by the provider's
    clock), none until it has. `run` is the last run, at `run_at`, `trade_run` the last one
    with transactions; what was either before it follows. `open` are the positions of the last
    run's transactions that nobody has executed. `is_fresh` until the target or the policy the
    last run went by are changed. `heard_at` is when the newest update without `as_of` arrived. `traded_at` is when there last were transactions,
    `traded_before` what that was before the last run.
    """

    target: Weights
    created_at: int
    current: Weights = {}
    as_of: int = 0
    is_timed: bool = False
    run: int = 0
    run_at: int = 0
    run_before: int = 0
    trade_run: int = 0
    trades_before: int = 0
    open: tuple[int, ...] = ()
    is_fresh: bool = False
    traded_at: int = 0
    traded_before: int = 0
    heard_at: int = 0
    policy: Policy | None = None
    policy_version: int = 0
    value: str = ""
    currency: str = ""
    holdings: dict[str, Holding] = {}

    @property
    def is_repeatable(self) -> bool:
        """Whether what the last update said, said again, is the same update.

        Where time itself makes due, one that led to nothing may lead to something later.
        """
        if self.is_fresh and self.run != self.trade_run:
            return not self.rules.calendar
        return self.is_fresh and bool(self.open)

    @property
    def rules(self) -> Policy:
        """The policy that counts."""
        return SEED_POLICY if self.policy is None else self.policy


class Found(NamedTuple):
    """A portfolio as a rule has read it."""

    record: Record
    portfolio: Portfolio


_decoder = msgspec.json.Decoder(Portfolio)


def read_portfolio(record: Record) -> Portfolio:
    """Return the portfolio that a record keeps."""
    return _decoder.decode(record.body)


def find_portfolio(draft: Draft, user: str) -> Found:
    """Return a user's portfolio. Refusals: user_id_invalid, portfolio_not_found."""
    record = draft.record(PORTFOLIO, user, holder=user_holder(user))
    if record is None:
        refuse(
            Reason.PORTFOLIO_NOT_FOUND,
            f"user {user[:80]!r} has no portfolio; POST /portfolio makes one",
            user_id=user[:80],
        )
    return Found(record, read_portfolio(record))


def put_portfolio(draft: Draft, user: str, portfolio: Portfolio, before: Record | None) -> None:
    """Write a portfolio's next version."""
    holder = user_holder(user) if before is None else before.holder
    draft.put_record(PORTFOLIO, user, portfolio, before=before, holder=holder)

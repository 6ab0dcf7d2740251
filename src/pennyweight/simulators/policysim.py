"""Several policies replayed over what one portfolio went through: what each had traded, how far off it was.

Between two updates the market moved each asset's weight by a factor: what the provider then
said, by what was really held since the update before (its weights, and the transactions
marked executed in between). Each policy's own weights are moved by the same factors, shared
out to a whole again; `plan` decides as it does in the book; its trades count as done at once.

Weights tell nothing of what is paid in or out. What is settled here, see `moved`: an asset that
was not held before is a flow, of the same share for every policy; and where a policy holds what
was not really held, it is taken to have moved as the real portfolio did as a whole. Money paid
into an asset that was held, and trades that nobody marked, look like a move of the market.
All weights are integers; floats are made of them for statistics only.
"""

import csv
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import NamedTuple

import msgspec

from pennyweight.engine.port import Committed
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.money import format_amount, parse
from pennyweight.ledger.refusals import Refused
from pennyweight.products.portfolios.execute import Execution
from pennyweight.products.portfolios.plan import plan
from pennyweight.products.portfolios.runs import history, run_in
from pennyweight.products.portfolios.shared import (
    EXECUTION,
    LINES_MAX,
    POINT,
    PORTFOLIO,
    PROVIDER_TOLERANCE,
    WHOLE,
    Policy,
    RunAnswer,
    Weights,
    check_asset,
    drift_score,
    read_portfolio,
    shared_out,
    weights_of,
)
from pennyweight.simulators.drawing import Bound, Curve, Lane, Panel, chart

REAL = "real"
"""Name of what really happened, among the policies'."""

UNTOUCHED = "untouched"
"""The same, of a past from a file."""

REACHED = 10_000
"""A band that is used up, in basis points."""

_REACH_MAX = 3 * REACHED
"""More of a band's use is not told apart."""

_FINE = 10**24
_DAY = 86_400_000_000
_YEAR = 31_557_600_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

Tell = Callable[[int, int], None]
"""Told how much is done, of how much."""


class PastMissing(ValueError):
    """There is nothing to replay, or it cannot be read; the message says why."""


# ── the past ──────────────────────────────────────────────────────────────────────


class Update(NamedTuple):
    """One update: the target then, what the provider said, and what was held from then on.

    `executed` are the changes of transactions marked executed before the next update.
    """

    at: int
    target: Weights
    told: Weights
    held: Weights
    executed: tuple[int, ...] = ()


class Past(NamedTuple):
    """What a portfolio went through, oldest first; `traded_at` is when it was traded before that.

    `proposed` transactions there were, of which `executed` were marked so; `unmatched` of
    these came so late that there was less left to sell, and are left out.
    """

    updates: Sequence[Update]
    traded_at: int
    proposed: int = 0
    executed: int = 0
    unmatched: int = 0


def past_of(
    store: Committed,
    user: str,
    *,
    since: int | None = None,
    until: int | None = None,
    tell: Tell = lambda _done, _all: None,
) -> Past:
    """Return what a user's portfolio went through, of updates as of `since` to `until`.

    Read backwards through the journal, beside whoever serves the book. Raises PastMissing.
    """
    record = store.record(PORTFOLIO, user)
    if record is None:
        raise PastMissing(f"user {user[:80]!r} has no portfolio in this book")
    portfolio = read_portfolio(record)
    runs: list[RunAnswer] = []
    end = None  # the first update that comes too late, and all after it, is left out
    for run in history(portfolio.run, lambda sequence: _entry(store, sequence)):
        tell(portfolio.run - run.run, portfolio.run)
        if since is not None and run.as_of < since:
            break
        if until is None or run.as_of <= until:
            runs.append(run)
        else:
            end = run.run
    if not runs:
        within = " within this time" if portfolio.run else ""
        raise PastMissing(f"the portfolio of user {user[:80]!r} has no updates{within}")
    runs.reverse()
    earlier = run_in(_entry(store, runs[0].trades_before)) if runs[0].trades_before else None
    traded = [run for run in runs if run.trades]
    done = _done(store, traded if earlier is None else [earlier, *traded])
    starts = [run.run for run in runs]
    after: list[list[_Done]] = [[] for _ in runs]
    for one in done:
        if one.entry > starts[0] and (end is None or one.entry < end):
            after[bisect_left(starts, one.entry) - 1].append(one)
    updates, unmatched = [], 0
    for run, found in zip(runs, after, strict=True):
        update, missed = _update(run, found)
        updates.append(update)
        unmatched += missed
    return Past(
        updates,
        # History that was told afterwards is older than the portfolio.
        min(portfolio.created_at, runs[0].as_of) if earlier is None else earlier.as_of,
        sum(len(run.trades) for run in traded),
        sum(len(found) for found in after),
        unmatched,
    )


def _entry(store: Committed, sequence: int) -> Entry | None:
    body = store.entry(sequence)
    return None if body is None else decode_entry(body)


class _Done(NamedTuple):
    """A transaction of a run that was marked executed, and by which entry."""

    run: int
    position: int
    entry: int
    asset: str
    change: int


def _done(store: Committed, runs: Iterable[RunAnswer]) -> Iterator[_Done]:
    """Yield the transactions of runs that are executed."""
    for run in runs:
        trades = run.trades
        for record in store.records(EXECUTION, label=f"run:{run.run}", limit=LINES_MAX):
            execution: Execution = record.read(Execution)
            position = execution.fill.position
            line = trades[position - 1]
            yield _Done(run.run, position, execution.entry, line.asset, line.change)


def _update(run: RunAnswer, done: Sequence[_Done]) -> tuple[Update, int]:
    """Return a run as an update, with what was executed after it, and how much of it did not fit.

    Transactions of the run itself always fit, sales first; those of an earlier one may be of weights that
    are gone by now.
    """
    told = {line.asset: line.before for line in run.lines if line.before}
    target = {line.asset: line.target for line in run.lines if line.target}
    held, changes, unmatched = dict(told), [], 0
    for one in sorted(done, key=lambda one: (one.run != run.run, one.run, one.position)):
        after = held.get(one.asset, 0) + one.change
        if after < 0:
            unmatched += 1
            continue
        held[one.asset] = after
        changes.append(one.change)
    held = {asset: weight for asset, weight in held.items() if weight}
    return Update(run.as_of, target, told, held, tuple(changes)), unmatched


# ── a past from a file ────────────────────────────────────────────────────────────


def past_in(
    lines: Iterable[str],
    target: Weights | None = None,
    *,
    since: int | None = None,
    until: int | None = None,
) -> Past:
    """Return what a portfolio that nobody touched went through, from a table (CSV).

    The first column is a date or moment, each other one an asset: its prices, or its
    weights in a portfolio that nobody touches. It begins on `target`; without one the first
    row is the target too, in percent. Raises PastMissing, naming the line.
    """
    reader = csv.reader(lines)
    try:
        names = _heads(next(reader, []))
        rows = [
            row
            for row in _rows(reader, names)
            if (since is None or row[0] >= since) and (until is None or row[0] <= until)
        ]
    except (csv.Error, UnicodeDecodeError) as error:
        raise PastMissing(f"this is no table: {error}") from None
    if not rows:
        raise PastMissing("the table has no rows" + (" within this time" if since or until else ""))
    if target is None:
        first = {name: _text(value) for name, value in zip(names, rows[0][1], strict=True)}
        try:
            target = weights_of(first, PROVIDER_TOLERANCE)
        except Refused as refused:
            raise PastMissing(
                f"without a target the first row is one, in percent, but {refused.message}"
            ) from None
    if missing := sorted(target.keys() - set(names)):
        raise PastMissing(f"the table has no column {missing[0]!r}, which the target names")
    return Past(list(_untouched(names, rows, target)), rows[0][0])


_Row = tuple[int, list[Fraction]]


def _untouched(names: Sequence[str], rows: Sequence[_Row], target: Weights) -> Iterator[Update]:
    """Yield a portfolio that begins on its target and is then left alone."""
    begin = rows[0][1]
    aims = [target.get(name, 0) for name in names]
    for name, aim, value in zip(names, aims, begin, strict=True):
        if aim and not value:
            raise PastMissing(f"{name} is worth nothing in the first row")
    for at, values in rows:
        parts = [
            int(aim * _FINE * value / was) if aim else 0
            for aim, value, was in zip(aims, values, begin, strict=True)
        ]
        if not any(parts):
            raise PastMissing(f"{day(at)}: all is worth nothing")
        shares = shared_out(WHOLE, parts)
        weights = {name: share for name, share in zip(names, shares, strict=True) if share}
        yield Update(at, target, weights, weights)


def _heads(cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells[1:]]
    if not names:
        raise PastMissing("line 1: a date column and at least one asset are expected")
    if len(set(names)) != len(names):
        raise PastMissing("line 1: two columns have one name")
    try:
        for name in names:
            check_asset(name)
    except Refused as refused:
        raise PastMissing(f"line 1: {refused.message}") from None
    return names


def _rows(reader: Iterable[Sequence[str]], names: Sequence[str]) -> Iterator[_Row]:
    """Yield moments and values. Raises PastMissing."""
    last = None
    for number, cells in enumerate(reader, 2):
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names) + 1:
            raise PastMissing(f"line {number}: {len(names) + 1} columns are expected")
        try:
            at = moment_of(cells[0].strip())
        except ValueError as error:
            raise PastMissing(f"line {number}: {error}") from None
        if last is not None and at <= last:
            raise PastMissing(f"line {number}: dates must go up from line to line")
        last = at
        values = []
        for name, cell in zip(names, cells[1:], strict=True):
            try:
                digits, decimals = parse(cell.strip())
            except Refused as refused:
                raise PastMissing(f"line {number}: {name}: {refused.message}") from None
            values.append(Fraction(digits, 10**decimals))
        yield at, values


def _text(value: Fraction) -> str:
    """Write a decimal number exactly; 100 decimals are more than `parse` takes."""
    return format_amount(int(value * 10**100), 100)


def moment_of(text: str, *, is_end: bool = False) -> int:
    """Read a date or an RFC 3339 moment as microseconds; a date is its first (or last) one in UTC.

    Raises ValueError.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text[:40]!r} is neither a date (2026-03-01) nor a moment (2026-03-01T12:00:00Z)"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    at = (moment - _EPOCH) // _MICROSECOND
    return at + _DAY - 1 if is_end and len(text) <= len("2026-03-01") else at


def day(at: int) -> str:
    """Write a moment's date, in UTC."""
    return f"{_EPOCH + at * _MICROSECOND:%Y-%m-%d}"


# ── the replay ────────────────────────────────────────────────────────────────────


class Point(NamedTuple):
    """One update as a policy saw it: drift scores before and after its trades, and these.

    `reach` and `reach_after` say how far the most drifted asset had used its band up, in
    basis points, None without bands.
    """

    at: int
    before: int
    after: int
    changes: tuple[int, ...] = ()
    reach: int | None = None
    reach_after: int | None = None


class Track(NamedTuple):
    """All that came of one policy; `guesses` are movements that had to be assumed (see `moved`)."""

    name: str
    points: Sequence[Point]
    policy: Policy | None = None
    guesses: int = 0


def replayed(
    past: Past, policy: Policy, name: str, *, tell: Tell = lambda _done, _all: None
) -> Track:
    """Return what a policy had done. It begins with what the first update said."""
    points: list[Point] = []
    guesses, traded_at = 0, past.traded_at
    weights, last = dict(past.updates[0].told), None
    for number, update in enumerate(past.updates):
        if last is not None:
            weights, more = moved(weights, last.held, update.told)
            guesses += more
        lines = plan(update.target, weights, policy, now=update.at, traded_at=traded_at)
        changes = tuple(line.change for line in lines if line.change)
        after = {line.asset: line.after for line in lines if line.after}
        points.append(
            Point(
                update.at,
                drift_score(update.target, weights),
                drift_score(update.target, after),
                changes,
                _reach(update.target, weights, policy),
                _reach(update.target, after, policy),
            )
        )
        if changes:
            traded_at = update.at
        weights, last = after, update
        tell(number + 1, len(past.updates))
    return Track(name, points, policy, guesses)


def moved(
    weights: Mapping[str, int], held: Mapping[str, int], told: Mapping[str, int]
) -> tuple[Weights, int]:
    """Return weights after the market has moved as it moved what was really held to what is told.

    An asset that is told and was not held is a flow: it makes up the share of the whole that
    is told, in every portfolio, and all else the rest. An asset of `weights` that was not
    held moved as the real portfolio did as a whole; also returned is how many of these there
    were. If all of `weights` is worth nothing by now, what is told stands for it, one more.
    """
    flows = {name: weight for name, weight in told.items() if weight and not held.get(name)}
    rest = WHOLE - sum(flows.values())
    whole = sum(held.values())
    names = sorted(name for name, weight in weights.items() if weight)
    parts, guesses = [], 0
    for name in names:
        was, now = held.get(name, 0), told.get(name, 0)
        if not was:
            guesses += 1
            was, now = whole or WHOLE, rest
        parts.append(weights[name] * now * _FINE // was)
    if rest and not any(parts):
        return dict(told), guesses + 1
    after = dict(zip(names, shared_out(rest, parts), strict=True))
    for name, flow in flows.items():
        after[name] = after.get(name, 0) + flow
    return {name: weight for name, weight in after.items() if weight}, guesses


def _reach(target: Weights, weights: Weights, policy: Policy) -> int | None:
    """Return how much of its band the most drifted asset has used up, in basis points."""
    found = []
    for name in target.keys() | weights.keys():
        aim = target.get(name, 0)
        width = policy.width(name, aim)
        if width is None or name in policy.locked:
            continue
        drift = abs(weights.get(name, 0) - aim)
        full = REACHED if drift else 0  # a band without width is used up by any drift
        found.append(min(_REACH_MAX, drift * REACHED // width if width else full))
    return max(found, default=None)


def real(past: Past, name: str = REAL) -> Track:
    """Return what really happened: only what was marked executed counts as traded."""
    return Track(
        name,
        [
            Point(
                update.at,
                drift_score(update.target, update.told),
                drift_score(update.target, update.held),
                update.executed,
            )
            for update in past.updates
        ],
    )


# ── figures ───────────────────────────────────────────────────────────────────────


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one policy; points are percent of the portfolio.

    `turnover_points` is all that was bought. `tracking_error_points` is the root mean square
    of the drift score, half of the sum of all differences between weight and target, at the
    updates, before trades; `_after_` when the trades are done. `drift_max_points` is the
    largest score before trades. `cost_points` is the cost of all that was bought and sold.
    A yearly figure is null for less than a day.
    """

    name: str
    updates: int
    trading_updates: int
    trades: int
    turnover_points: float
    turnover_points_per_year: float | None
    tracking_error_points: float
    tracking_error_after_points: float
    drift_max_points: float
    cost_points: float
    assumed_movements: int


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Policies compared over one past. `began` and `ended` are the first update's and the last's."""

    source: str
    began: str
    ended: str
    cost_percent: str
    proposed: int
    executed: int
    unmatched: int
    policies: list[Figures]


def figures(track: Track, cost: Fraction) -> Figures:
    """Sum a track up; `cost` is a share of what is traded."""
    points = track.points
    changes = [change for point in points for change in point.changes]
    bought = sum(change for change in changes if change > 0)
    traded = sum(abs(change) for change in changes)
    span = points[-1].at - points[0].at
    return Figures(
        name=track.name,
        updates=len(points),
        trading_updates=sum(1 for point in points if point.changes),
        trades=len(changes),
        turnover_points=_points(Fraction(bought)),
        turnover_points_per_year=_points(Fraction(bought * _YEAR, span)) if span >= _DAY else None,
        tracking_error_points=_root_mean_square([point.before for point in points]),
        tracking_error_after_points=_root_mean_square([point.after for point in points]),
        drift_max_points=_points(Fraction(max(point.before for point in points))),
        cost_points=_points(traded * cost),
        assumed_movements=track.guesses,
    )


def _points(weight: Fraction) -> float:
    return round(float(weight / POINT), 6)


def _root_mean_square(weights: Sequence[int]) -> float:
    square = Fraction(sum(weight * weight for weight in weights), len(weights))
    return round(math.sqrt(square / POINT**2), 6)


# ── the drawing ───────────────────────────────────────────────────────────────────


def picture(tracks: Sequence[Track], what: str) -> str:
    """Draw the drift scores over time, when was traded, and how far bands were used up (SVG)."""
    scores = Panel(
        "drift score, in points, before and after trades",
        [
            Curve(
                number,
                track.name,
                [(p.at, p.before / POINT, p.after / POINT) for p in track.points],
            )
            for number, track in enumerate(tracks)
        ],
        [
            Bound(f"{track.name}: due", track.policy.score / POINT)
            for track in tracks
            if track.policy is not None and track.policy.score is not None
        ],
    )
    bands = Panel(
        "use of the band by the asset that drifted most, in percent",
        [
            Curve(
                number,
                track.name,
                [(p.at, (p.reach or 0) / 100, (p.reach_after or 0) / 100) for p in track.points],
            )
            for number, track in enumerate(tracks)
            if any(point.reach is not None for point in track.points)
        ],
        [Bound("due", REACHED / 100)],
    )
    lanes = [
        Lane(number, track.name, [point.at for point in track.points if point.changes])
        for number, track in enumerate(tracks)
    ]
    return chart(what, [scores, bands] if bands.curves else [scores], lanes)

"""How a portfolio is brought back: which asset, how much, and why. Pure arithmetic of weights.

Four things hold of every plan: what is sold is what is bought, to the unit; no asset goes
past its target; the order in which assets are named does not matter; the same input gives
the same plan. A weight's drift is its current value minus its target; "over" is above.
"""

from collections.abc import Mapping
from operator import itemgetter

from pennyweight.products.portfolios.shared import (
    SEED_POLICY,
    Calendar,
    Line,
    Policy,
    Rule,
    shared_out,
)

DAY_MICROSECONDS = 86_400_000_000


def plan(
    target: Mapping[str, int],
    current: Mapping[str, int],
    policy: Policy,
    *,
    now: int,
    traded_at: int,
) -> tuple[Line, ...]:
    """Return a line for every asset: transactions first, in order, then the others by name.

    `target` and `current` are weights that add up to the same. `now` and `traded_at` are
    microseconds since 1970, of this update and of when there last were transactions (or
    the portfolio was made).
    """
    if policy is SEED_POLICY:
        return _everything_back(target, current)
    names = sorted(target.keys() | current.keys())
    drifts = {name: current.get(name, 0) - target.get(name, 0) for name in names}
    changes = dict.fromkeys(names, 0)
    rules: dict[str, tuple[Rule, int]] = {}
    room = sum(abs(drift) for drift in drifts.values()) // 2
    if policy.turnover_max is not None:
        room = min(room, policy.turnover_max)
    if policy.is_cash_first:
        flow = _cash_flow(drifts, policy, room)
        room -= sum(amount for amount in flow.values() if amount > 0)
        surplus = abs(drifts.get(policy.cash, 0))
        for name, amount in flow.items():
            changes[name] = amount
            rules[name] = ("cash_flow", surplus)
            drifts[name] += amount
    due = _what_is_due(target, drifts, policy, now=now, traded_at=traded_at)
    if due:
        for name, amount in _trades(target, drifts, policy, room).items():
            changes[name] += amount
            rules[name] = _why_traded(name, target, drifts, policy, due)
            drifts[name] += amount
    lines = []
    for name in names:
        before, aim, change = current.get(name, 0), target.get(name, 0), changes[name]
        rule, limit = (
            rules[name]
            if change
            else _why_not(name, target, drifts[name], policy, is_due=bool(due))
        )
        lines.append(Line(name, before, aim, change, rule, limit))
    return tuple(sorted(lines, key=_place))


def _everything_back(target: Mapping[str, int], current: Mapping[str, int]) -> tuple[Line, ...]:
    """Return the plan without a policy, which needs no matching: all go to their targets."""
    lines = []
    for name in target if target.keys() == current.keys() else target.keys() | current.keys():
        before, aim = current.get(name, 0), target.get(name, 0)
        lines.append(
            Line(name, before, aim, aim - before, "on_target" if before == aim else "drift")
        )
    return tuple(sorted(lines, key=_place))


def _place(line: Line) -> tuple[int, int, str]:
    """Order lines: sales, purchases, by drift from the largest down, the others by name."""
    if not line.change:
        return (2, 0, line.asset)
    return (int(line.change > 0), -abs(line.before - line.target), line.asset)


# ── what is due ───────────────────────────────────────────────────────────────────


def _what_is_due(
    target: Mapping[str, int],
    drifts: Mapping[str, int],
    policy: Policy,
    *,
    now: int,
    traded_at: int,
) -> frozenset[Rule]:
    """Return what makes the portfolio due now, nothing if it is not."""
    if not any(drifts.values()):
        return frozenset()
    met: set[Rule] = set()
    wanted: set[Rule] = set()
    widths = {
        name: policy.width(name, target.get(name, 0))
        for name in drifts
        if name not in policy.locked
    }
    if any(width is not None for width in widths.values()):
        wanted.add("band")
        if any(
            width is not None and drifts[name] and abs(drifts[name]) >= width
            for name, width in widths.items()
        ):
            met.add("band")
    if policy.score is not None:
        wanted.add("score")
        if sum(abs(drift) for drift in drifts.values()) // 2 >= policy.score:
            met.add("score")
    if policy.calendar:
        wanted.add("calendar")
        if period(policy.calendar, now) > period(policy.calendar, traded_at):
            met.add("calendar")
    if not wanted:
        return frozenset({"drift"})
    is_due = met == wanted if policy.when == "all" else bool(met)
    return frozenset(met) if is_due else frozenset()


def period(calendar: Calendar, moment: int) -> int:
    """Return the number of the calendar's period that a moment lies in; all in UTC."""
    day = moment // DAY_MICROSECONDS
    if calendar == "daily":
        return day
    if calendar == "weekly":
        return (day + 3) // 7  # 1 January 1970 was a Thursday
    year, month = _year_and_month(day)
    if calendar == "monthly":
        return year * 12 + month
    return year * 4 + month // 3 if calendar == "quarterly" else year


def _year_and_month(day: int) -> tuple[int, int]:
    """Return the year, and the month from 0, of a day counted from 1 January 1970.

    Years are taken to begin in March, so that a leap day is the last day of one: Hinnant,
    "chrono-Compatible Low-Level Date Algorithms", civil_from_days.
    """
    era, day_of_era = divmod(day + 719_468, 146_097)
    year_of_era = (
        day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096
    ) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_from_march = (5 * day_of_year + 2) // 153
    year = era * 400 + year_of_era
    return (
        (year, month_from_march + 2) if month_from_march < 10 else (year + 1, month_from_march - 10)
    )


# ── how much ──────────────────────────────────────────────────────────────────────


def _cash_flow(drifts: Mapping[str, int], policy: Policy, room: int) -> dict[str, int]:
    """Return the changes that spend surplus cash on what is short, or make missing cash up."""
    surplus = drifts.get(policy.cash, 0)
    most = {
        name: abs(drift)
        for name, drift in drifts.items()
        if name != policy.cash and name not in policy.locked and drift * surplus < 0
    }
    if surplus < 0 and policy.is_buy_only:
        return {}
    cash = {policy.cash: abs(surplus)}
    over, under = (cash, most) if surplus > 0 else (most, cash)
    wanted, nothing = dict(cash), dict.fromkeys(most, 0)
    wants = (wanted, nothing) if surplus > 0 else (nothing, wanted)
    return _matched(wants, (over, under), room, policy.minimum_trade)


def _trades(
    target: Mapping[str, int], drifts: Mapping[str, int], policy: Policy, room: int
) -> dict[str, int]:
    """Return the changes that bring what is due where the policy wants it."""
    sides: tuple[dict[str, int], dict[str, int]] = ({}, {})
    wants: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for name, drift in drifts.items():
        if not drift or name in policy.locked:
            continue
        if drift > 0 and policy.is_buy_only and name != policy.cash:
            continue
        side = int(drift < 0)
        sides[side][name] = wants[side][name] = abs(drift)
        if policy.trade_to == "band":
            width = policy.width(name, target.get(name, 0)) or 0
            wants[side][name] = max(0, abs(drift) - width)
    return _matched(wants, sides, room, policy.minimum_trade)


def _matched(
    wants: tuple[dict[str, int], dict[str, int]],
    most: tuple[dict[str, int], dict[str, int]],
    room: int,
    minimum: int,
) -> dict[str, int]:
    """Return changes by asset: sales of the first side, purchases of the second, in equal sum.

    Each asset wants so much of it, and can take `most`; `room` bounds both sides. What the
    minimum left over is matched again: a plan that was carried out leaves no other to follow.
    """
    changes: dict[str, int] = {}
    while step := _matched_once(wants, most, room, minimum):
        for name, amount in step.items():
            changes[name] = changes.get(name, 0) + amount
            for left in (*wants, *most):
                if name in left:
                    left[name] = max(0, left[name] - abs(amount))
        room -= sum(amount for amount in step.values() if amount > 0)
        if not minimum:
            break
    return changes


def _matched_once(
    wants: tuple[dict[str, int], dict[str, int]],
    most: tuple[dict[str, int], dict[str, int]],
    room: int,
    minimum: int,
) -> dict[str, int]:
    """Return changes by asset where the side that wants more is met as far as the other can.

    While there is one below the minimum, the smallest is left out and all is reckoned again;
    a side of which neither that nor the sum has changed is not.
    """
    over, under = _Side(wants[0], most[0]), _Side(wants[1], most[1])
    while True:
        total = min(max(sum(over.asked), sum(under.asked)), sum(over.most), sum(under.most), room)
        if total <= 0:
            return {}
        sold, bought = over.shared(total), under.shared(total)
        small = [
            (amount, side.names[place], side, place)
            for side, amounts in ((over, sold), (under, bought))
            for place, amount in enumerate(amounts)
            if 0 < amount < minimum
        ]
        if not small:
            break
        _, _, side, place = min(small, key=itemgetter(0, 1))
        side.leave_out(place)
    changes = {name: -amount for name, amount in zip(over.names, sold, strict=True) if amount}
    changes.update(
        {name: amount for name, amount in zip(under.names, bought, strict=True) if amount}
    )
    return changes


class _Side:
    """The assets of one side by name: what is wanted of each, what each can take, and its share."""

    def __init__(self, wanted: Mapping[str, int], most: Mapping[str, int]) -> None:
        self.names = sorted(most)
        self.asked = [wanted[name] for name in self.names]
        self.most = [most[name] for name in self.names]
        self._total = 0
        self._shares: list[int] = []

    def leave_out(self, place: int) -> None:
        """Forget an asset."""
        del self.names[place], self.asked[place], self.most[place]
        self._total = 0

    def shared(self, total: int) -> list[int]:
        """Share a total out: what is wanted in proportion, then what is possible."""
        if total != self._total:
            self._total = total
            asked = self.asked
            if sum(asked) >= total:
                self._shares = shared_out(total, asked)
            else:
                left = [most - want for most, want in zip(self.most, asked, strict=True)]
                added = shared_out(total - sum(asked), left)
                self._shares = [want + more for want, more in zip(asked, added, strict=True)]
        return self._shares


# ── why ───────────────────────────────────────────────────────────────────────────


def _why_traded(
    name: str,
    target: Mapping[str, int],
    drifts: Mapping[str, int],
    policy: Policy,
    due: frozenset[Rule],
) -> tuple[Rule, int]:
    """Return the rule by which an asset is traded, and its bound."""
    width = policy.width(name, target.get(name, 0))
    if "drift" in due:
        return "drift", 0
    if "band" in due and width is not None and abs(drifts[name]) >= width:
        return "band", width
    if "score" in due:
        return "score", policy.score or 0
    if "calendar" in due:
        return "calendar", 0
    return "with_others", width or 0


def _why_not(
    name: str, target: Mapping[str, int], drift: int, policy: Policy, *, is_due: bool
) -> tuple[Rule, int]:
    """Return why an asset is not traded, and the bound that says so."""
    if not drift:
        return "on_target", 0
    if name in policy.locked:
        return "locked", 0
    width = policy.width(name, target.get(name, 0))
    if width is not None and (
        abs(drift) <= width
        if is_due and policy.trade_to == "band"
        else abs(drift) < width and not is_due
    ):
        return "in_band", width
    if not is_due:
        return "not_due", policy.score or 0
    if drift > 0 and policy.is_buy_only and name != policy.cash:
        return "buy_only", 0
    if abs(drift) < policy.minimum_trade:
        return "below_minimum", policy.minimum_trade
    return "no_counterpart", 0

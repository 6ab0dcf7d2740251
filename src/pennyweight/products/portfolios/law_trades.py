"""The law of portfolios, second part: what a run has to trade, in points, money and lots. See `law`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction

from pennyweight.ledger.money import format_amount
from pennyweight.products.portfolios.law_said import Book, Said, Wrong, apportioned, exact
from pennyweight.products.portfolios.shared import WHOLE, Holding, Line, Policy, Portfolio, Weights

_TRADED = frozenset({"drift", "band", "score", "calendar", "cash_flow", "with_others"})
_NO_POLICY = Policy()
_DAY = 86_400_000_000


# ── what is traded ────────────────────────────────────────────────────────────────


def check_lines(known: Portfolio, said: Said, as_of: int, lines: Sequence[Line]) -> None:
    """Hold the lines of a run to the weights and to the policy."""
    target, current, policy = known.target, said.current, known.rules
    names = sorted(target.keys() | current.keys())
    if sorted(line.asset for line in lines) != names:
        raise Wrong("its lines are not one for each asset")
    for line in lines:
        weights = (current.get(line.asset, 0), target.get(line.asset, 0))
        if (line.before, line.target) != weights:
            raise Wrong(
                f"{line.asset} is told to be {line.before} of {line.target}, it is {weights}"
            )
    if sum(line.change for line in lines):
        raise Wrong("what is sold is not what is bought")
    order = [
        (2, 0, line.asset)
        if not line.change
        else (line.change > 0, -abs(line.before - line.target), line.asset)
        for line in lines
    ]
    if order != sorted(order):
        raise Wrong("its lines are not in order")
    since = known.traded_at or known.created_at
    has_trigger = (
        policy.score is not None
        or bool(policy.calendar)
        or any(
            policy.width(line.asset, line.target) is not None
            for line in lines
            if line.asset not in policy.locked
        )
    )
    cash = abs(current.get(policy.cash, 0) - target.get(policy.cash, 0))
    for line in lines:
        _check_line(line, policy, as_of, since, has_trigger=has_trigger, cash=cash)
    sold = -sum(line.change for line in lines if line.change < 0)
    if policy.turnover_max is not None and sold > policy.turnover_max:
        raise Wrong(f"{sold} is sold, at most {policy.turnover_max} may be")
    drifts = {line.asset: line.before - line.target for line in lines}
    right = reckoned(target, drifts, policy, as_of, since)
    for line in lines:
        if line.change != right.get(line.asset, 0):
            raise Wrong(
                f"{line.change} of {line.asset} is traded, due is {right.get(line.asset, 0)}"
            )


def _check_line(
    line: Line, policy: Policy, as_of: int, since: int, *, has_trigger: bool, cash: int
) -> None:
    """Hold a line to what is allowed for its asset, and its rule to what it says."""
    drift, change, asset = line.before - line.target, line.change, line.asset
    width = policy.width(asset, line.target)
    if change and (change * drift >= 0 or abs(change) > abs(drift)):
        raise Wrong(f"{asset} is moved by {change}, though it is off its target by {drift}")
    if change and asset in policy.locked:
        raise Wrong(f"{asset} is traded, though it is locked")
    if change < 0 and policy.is_buy_only and asset != policy.cash:
        raise Wrong(f"{asset} is sold, though nothing but cash may be")
    if change and abs(change) < policy.minimum_trade:
        raise Wrong(f"{asset} is traded below the minimum")
    is_possible = {
        "drift": not has_trigger,
        "band": width is not None and abs(drift) >= width,
        "score": policy.score is not None,
        "calendar": bool(policy.calendar) and period_begins(policy.calendar, as_of) > since,
        "cash_flow": policy.is_cash_first,
        "on_target": not drift,
        "in_band": width is not None and abs(drift) <= width,
        "locked": asset in policy.locked,
        "buy_only": policy.is_buy_only and drift > 0 and asset != policy.cash,
        "below_minimum": abs(drift) < policy.minimum_trade,
    }
    is_told_right = (line.rule in _TRADED) == bool(change) and is_possible.get(line.rule, True)
    if not is_told_right or (not drift) != (line.rule == "on_target"):
        raise Wrong(f"{asset} is told to be {line.rule!r}, which it is not")
    limits = {
        "band": width,
        "in_band": width,
        "with_others": width,
        "score": policy.score,
        "not_due": policy.score,
        "below_minimum": policy.minimum_trade,
        "cash_flow": cash,
    }
    if line.limit != (limits.get(line.rule) or 0):
        raise Wrong(f"{asset} is told to be {line.rule!r} by a bound of {line.limit}")


def reckoned(
    target: Weights, drifts: dict[str, int], policy: Policy, as_of: int, since: int
) -> dict[str, int]:
    """Return what is to be traded of each asset: first what cash gives or needs, then what is due."""
    if policy == _NO_POLICY:
        return Counter({name: -drift for name, drift in drifts.items()})
    drifts = dict(drifts)
    room = sum(drift for drift in drifts.values() if drift > 0)
    if policy.turnover_max is not None:
        room = min(room, policy.turnover_max)
    changes: Counter[str] = Counter()
    free = {name: drift for name, drift in drifts.items() if name not in policy.locked}
    surplus = free.get(policy.cash, 0)
    if policy.is_cash_first and surplus and not (policy.is_buy_only and surplus < 0):
        cash = {policy.cash: surplus}
        others = {name: drift for name, drift in free.items() if drift * surplus < 0}
        changes = _exchanged(cash | others, cash, room, policy.minimum_trade)
        room -= sum(amount for amount in changes.values() if amount > 0)
        drifts = {name: drift + changes[name] for name, drift in drifts.items()}
        free = {name: drifts[name] for name in free}
    if _is_due(policy, target, drifts, as_of, since):
        if policy.is_buy_only:
            free = {name: at for name, at in free.items() if at < 0 or name == policy.cash}
        wants = dict(free)
        if policy.trade_to == "band":
            for name, drift in free.items():
                width = policy.width(name, target.get(name, 0)) or 0
                wants[name] = max(0, drift - width) if drift > 0 else min(0, drift + width)
        changes.update(_exchanged(free, wants, room, policy.minimum_trade))
    return changes


def _exchanged(
    most: Mapping[str, int], wants: Mapping[str, int], room: int, minimum: int
) -> Counter[str]:
    """Return what is sold of those with a drift above zero, and bought of the others.

    After each exchange what is left is exchanged likewise, until nothing can be.
    """
    changes: Counter[str] = Counter()
    while step := _exchanged_once(most, wants, room, minimum):
        changes.update(step)
        if not minimum:
            break
        room -= sum(amount for amount in step.values() if amount > 0)
        most = {name: drift + step[name] for name, drift in most.items()}
        wants = {name: max(0, abs(want) - abs(step[name])) for name, want in wants.items()}
    return changes


def _exchanged_once(
    most: Mapping[str, int], wants: Mapping[str, int], room: int, minimum: int
) -> Counter[str]:
    """Return an exchange: the side that wants more decides, the other meets it as far as it can.

    Of shares below the minimum the smallest is left out, and all is reckoned again.
    """
    left = {name: drift for name, drift in most.items() if drift}
    while True:
        sides = [
            {name: abs(drift) for name, drift in left.items() if (drift > 0) is is_over}
            for is_over in (True, False)
        ]
        wanted = [{name: abs(wants.get(name, 0)) for name in side} for side in sides]
        total = min(
            room,
            max(sum(side.values()) for side in wanted),
            *(sum(side.values()) for side in sides),
        )
        if total <= 0:
            return Counter()
        shares: dict[str, int] = {}
        for side, want in zip(sides, wanted, strict=True):
            asked = sum(want.values())
            if asked >= total:
                shares |= apportioned(want, total)
            else:
                more = apportioned({n: side[n] - want[n] for n in side}, total - asked)
                shares |= {name: want[name] + more[name] for name in side}
        small = [(share, name) for name, share in shares.items() if 0 < share < minimum]
        if not small:
            signs = {name: -1 if left[name] > 0 else 1 for name in shares}
            return Counter({name: signs[name] * share for name, share in shares.items() if share})
        del left[min(small)[1]]


def _is_due(
    policy: Policy, target: Weights, drifts: Mapping[str, int], as_of: int, since: int
) -> bool:
    """Whether what the policy waits for has come."""
    if not any(drifts.values()):
        return False
    met = []
    free = [name for name in drifts if name not in policy.locked]
    widths = {name: policy.width(name, target.get(name, 0)) for name in free}
    bands = {name: width for name, width in widths.items() if width is not None}
    if bands:
        met.append(any(drifts[name] and abs(drifts[name]) >= bands[name] for name in bands))
    if policy.score is not None:
        met.append(sum(map(abs, drifts.values())) >= 2 * policy.score)
    if policy.calendar:
        met.append(period_begins(policy.calendar, as_of) > since)
    return not met or (all(met) if policy.when == "all" else any(met))


def period_begins(calendar: str, moment: int) -> int:
    """Return when the calendar's period of a moment begins, in microseconds; counted year by year."""
    day = moment // _DAY
    if calendar == "weekly":
        return (day - (day + 3) % 7) * _DAY  # 1 January 1970 was a Thursday
    if calendar == "daily":
        return day * _DAY
    year, begins = 1970, 0
    while begins + 365 + _is_leap(year) <= day:
        begins += 365 + _is_leap(year)
        year += 1
    lengths = [31, 28 + _is_leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    months = {"monthly": 1, "quarterly": 3, "yearly": 12}[calendar]
    for first in range(0, 12, months):
        after = begins + sum(lengths[first : first + months])
        if day < after:
            break
        begins = after
    return begins * _DAY


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


# ── amounts and lots ──────────────────────────────────────────────────────────────


def check_orders(said: Said, lines: Sequence[Line], book: Book) -> None:
    """Hold amounts and quantities to the value and the prices that were told."""
    trades = [line for line in lines if line.change] if said.value else []
    if any(line.amount or line.quantity for line in lines if line not in trades):
        raise Wrong("there is an amount where none was told of")
    if not trades:
        return
    scale = book.assets[said.currency].scale
    value = exact(said.value) * 10**scale
    bought = sum(line.change for line in trades if line.change > 0)
    total = value.numerator // value.denominator * bought // WHOLE
    sums = {True: 0, False: 0}
    paid = {True: Fraction(0), False: Fraction(0)}
    for line in trades:
        is_sale, units = line.change < 0, exact(line.amount) * 10**scale
        if units.denominator != 1 or format_amount(units.numerator, scale) != line.amount:
            raise Wrong(f"{line.amount} of {line.asset} is no amount of {said.currency}")
        amount = units.numerator
        if abs(amount - Fraction(total * abs(line.change), bought)) >= 1:
            raise Wrong(f"{line.amount} of {line.asset} is not its share of what changes hands")
        sums[is_sale] += amount
        worth = _check_quantity(line, Fraction(amount, 10**scale), said.holdings.get(line.asset))
        if worth is not None or is_sale:
            paid[is_sale] += Fraction(amount, 10**scale) if worth is None else worth
    if sums != {True: total, False: total}:
        raise Wrong("the amounts of what is sold and bought are not equal")
    if paid[False] > paid[True]:
        raise Wrong("what is bought costs more than what is sold brings")


def _check_quantity(line: Line, amount: Fraction, holding: Holding | None) -> Fraction | None:
    """Hold a quantity to whole lots, and return what it is worth; None where there is no price."""
    if holding is None or not holding.price:
        if line.quantity:
            raise Wrong(f"there is a quantity of {line.asset}, which has no price")
        return None
    quantity, price = exact(line.quantity), exact(holding.price)
    lot = exact(holding.lot) if holding.lot else Fraction(1, 10**8)
    held = exact(holding.quantity) if holding.quantity and line.change < 0 else None
    if (quantity / lot).denominator != 1 or quantity * price > amount:
        raise Wrong(f"{line.quantity} of {line.asset} is no quantity for {line.amount}")
    if held is not None and quantity > held:
        raise Wrong(f"{line.quantity} of {line.asset} is sold, {holding.quantity} is there")
    if line.change < 0:
        possible = amount / price if held is None else min(amount / price, held)
        if quantity + lot <= possible:
            raise Wrong(f"less of {line.asset} is sold than could be")
    return quantity * price

"""What a plan's points are in money and in lots, where the provider told values and prices.

Exact fractions throughout. Amounts are rounded to the currency's smallest unit so that all
sales together are all purchases together; quantities are whole lots, rounded down, and what
is bought never costs more than what was sold brings.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction

import msgspec

from pennyweight.ledger.money import format_amount, parse
from pennyweight.ledger.refusals import Reason, Refused, refuse
from pennyweight.products.portfolios.shared import (
    ASSETS_MAX,
    WHOLE,
    Holding,
    Line,
    Weights,
    check_asset,
    shared_out,
)

LOT = "0.00000001"
"""The lot of an asset that has none of its own."""

QUANTITY_DECIMALS = 18
VALUE_DECIMALS = 36
"""Decimals of a quantity times a price, both with at most 18."""


def check_holdings(holdings: Mapping[str, Holding]) -> None:
    """Refuse holdings that cannot be reckoned with. Refusals: holdings_invalid, allocation_invalid."""
    if len(holdings) > ASSETS_MAX:
        refuse(Reason.HOLDINGS_INVALID, f"there are at most {ASSETS_MAX} holdings")
    for name, holding in holdings.items():
        check_asset(name)
        for what in ("quantity", "price", "lot"):
            text = getattr(holding, what)
            if text and number_of(text, f"{name}: {what}") == 0 and what != "quantity":
                refuse(Reason.HOLDINGS_INVALID, f"{name}: {what} is greater than zero", asset=name)


def number_of(text: str, what: str) -> Fraction:
    """Return decimal text as an exact number. Refusal: holdings_invalid, naming `what`."""
    try:
        digits, decimals = parse(text)
    except Refused as refused:
        refuse(Reason.HOLDINGS_INVALID, f"{what}: {refused.message}")
    if decimals > QUANTITY_DECIMALS:
        refuse(Reason.HOLDINGS_INVALID, f"{what} has at most {QUANTITY_DECIMALS} decimals")
    return Fraction(digits, 10**decimals)


def valued(holdings: Mapping[str, Holding]) -> tuple[Weights, str]:
    """Return the weights of holdings by what they are worth, and their value together.

    The weights are exact, the value is rounded down to the decimals that one may be told with.

    Refusals: holdings_invalid (one has no quantity or price; all are worth nothing), those
    of `check_holdings`.
    """
    check_holdings(holdings)
    names = sorted(holdings)
    values = []
    for name in names:
        holding = holdings[name]
        if not holding.quantity or not holding.price:
            refuse(
                Reason.HOLDINGS_INVALID,
                f"{name}: without new_allocation a holding needs quantity and price",
                asset=name,
            )
        worth = number_of(holding.quantity, name) * number_of(holding.price, name)
        values.append(int(worth * 10**VALUE_DECIMALS))
    if not sum(values):
        refuse(Reason.HOLDINGS_INVALID, "these holdings are worth nothing")
    weights = dict(zip(names, shared_out(WHOLE, values), strict=True))
    value = sum(values) // 10 ** (VALUE_DECIMALS - QUANTITY_DECIMALS)
    return weights, format_amount(value, QUANTITY_DECIMALS)


def priced(
    lines: Sequence[Line], value: str, scale: int, holdings: Mapping[str, Holding]
) -> tuple[Line, ...]:
    """Return the lines with amounts, and with quantities where prices are known.

    `value` is that of the whole portfolio, in a currency of `scale` decimals. Refusals:
    holdings_invalid.
    """
    units = int(number_of(value, "portfolio_value") * 10**scale)
    sold = [line for line in lines if line.change < 0]
    bought = [line for line in lines if line.change > 0]
    total = units * sum(line.change for line in bought) // WHOLE
    amounts = _amounts(sold, total) | _amounts(bought, total)
    quantities = {
        line.asset: _lots(
            Fraction(amounts[line.asset], 10**scale), holdings.get(line.asset), is_sale=True
        )
        for line in sold
    }
    proceeds = sum(
        (_brings(line, amounts, quantities, holdings, scale) for line in sold), start=Fraction(0)
    )
    spent = _amounts(bought, min(total, int(proceeds * 10**scale)))
    for line in bought:
        quantities[line.asset] = _lots(
            Fraction(spent[line.asset], 10**scale), holdings.get(line.asset), is_sale=False
        )
    return tuple(
        msgspec.structs.replace(
            line,
            amount=format_amount(amounts[line.asset], scale),
            quantity=_text(quantities[line.asset]),
        )
        if line.change
        else line
        for line in lines
    )


def _amounts(lines: Sequence[Line], total: int) -> dict[str, int]:
    """Share a total of smallest units out over one side's lines."""
    shares = shared_out(total, [abs(line.change) for line in lines])
    return dict(zip((line.asset for line in lines), shares, strict=True))


def _lots(amount: Fraction, holding: Holding | None, *, is_sale: bool) -> Fraction | None:
    """Return how much of an asset an amount is in whole lots, None without a price."""
    if holding is None or not holding.price:
        return None
    lot = number_of(holding.lot or LOT, "lot")
    quantity = amount / number_of(holding.price, "price")
    if is_sale and holding.quantity:
        quantity = min(quantity, number_of(holding.quantity, "quantity"))
    return quantity // lot * lot


def _brings(
    line: Line,
    amounts: Mapping[str, int],
    quantities: Mapping[str, Fraction | None],
    holdings: Mapping[str, Holding],
    scale: int,
) -> Fraction:
    """Return what a sale brings: its lots at their price, or its amount where there is no price."""
    quantity = quantities[line.asset]
    if quantity is None:
        return Fraction(amounts[line.asset], 10**scale)
    return quantity * number_of(holdings[line.asset].price, "price")


def _text(quantity: Fraction | None) -> str:
    """Write a quantity of whole lots; "" for none."""
    if quantity is None:
        return ""
    return format_amount(int(quantity * 10**QUANTITY_DECIMALS), QUANTITY_DECIMALS)

"""Amounts: one parser and one formatter between decimal text and integers.

Inside the book an amount is an int of its asset's smallest unit. Outside it is decimal
text in the asset's natural unit ("500.1"). Nothing here ever rounds, and no float or
`Decimal` takes part: `Decimal` arithmetic rounds silently to its context's 28 digits.
"""

import re

from pennyweight.ledger.refusals import Reason, refuse

DIGITS_MAX = 38
LIMIT = 10**DIGITS_MAX
"""Balances and amounts stay below this in absolute value, on every store."""

_TEXT_LENGTH_MAX = 100
_EXPONENT_MAX = 99
_SHAPE = re.compile(r"(-?)(0|[1-9][0-9]*)(?:\.([0-9]+))?(?:[eE]([+-]?[0-9]{1,9}))?")
_CANONICAL = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{0,17}[1-9])?")
"""Short text that is canonical as it stands: most amounts."""


def parse(value: str | int, *, signed: bool = False) -> tuple[int, int]:
    """Return (digits, decimals) with value = digits / 10**decimals, in lowest form.

    Takes the text of a JSON number or string, exponents included, or an int. ASCII only:
    no spaces, underscores, plus signs, leading zeros, other scripts' digits, NaN or
    infinity; `-0` and booleans are no amounts. Zero is (0, 0).

    Refusals: amount_invalid, amount_not_positive (a sign where none is allowed),
    amount_too_large, amount_too_fine.
    """
    if value.__class__ is int:
        if value < 0 and not signed:
            refuse(Reason.AMOUNT_NOT_POSITIVE, "an amount may not be negative here")
        if not -LIMIT < value < LIMIT:
            refuse(Reason.AMOUNT_TOO_LARGE, f"an amount has at most {DIGITS_MAX} digits")
        return value, 0
    if not isinstance(value, str):
        refuse(Reason.AMOUNT_INVALID, "an amount is a decimal number or its text")
    match = _SHAPE.fullmatch(value) if len(value) <= _TEXT_LENGTH_MAX else None
    if match is None:
        refuse(Reason.AMOUNT_INVALID, f"{value[:40]!r} is not a plain decimal number")
    sign, whole, fraction, exponent = match.groups(default="")
    if sign and not (whole + fraction).strip("0"):
        refuse(Reason.AMOUNT_INVALID, "minus zero is not an amount")
    if sign and not signed:
        refuse(Reason.AMOUNT_NOT_POSITIVE, "an amount may not be negative here")
    if fraction or exponent:
        digits, decimals = _scaled(whole, fraction, exponent)
    else:
        digits, decimals = int(whole), 0
    if digits >= LIMIT:
        refuse(Reason.AMOUNT_TOO_LARGE, f"an amount has at most {DIGITS_MAX} digits")
    return -digits if sign else digits, decimals


def _scaled(whole: str, fraction: str, exponent: str) -> tuple[int, int]:
    """Fold fraction and exponent into (digits, decimals), trailing zeros gone."""
    text = (whole + fraction).lstrip("0")
    stripped = text.rstrip("0")
    if not stripped:
        return 0, 0
    shift = int(exponent) if exponent else 0
    decimals = len(fraction) - (len(text) - len(stripped)) - shift
    if len(stripped) > DIGITS_MAX or decimals < -_EXPONENT_MAX:
        refuse(Reason.AMOUNT_TOO_LARGE, f"an amount has at most {DIGITS_MAX} digits")
    if decimals > _EXPONENT_MAX:
        refuse(Reason.AMOUNT_TOO_FINE, f"an amount has at most {_EXPONENT_MAX} decimals")
    if decimals < 0:
        return int(stripped) * 10**-decimals, 0
    return int(stripped), decimals


def canonical(value: str | int, *, signed: bool = False) -> str:
    """Return the one spelling of an amount ("5.10", 5.1e0 and "5.1" are all "5.1").

    Commands carry amounts in this form, so that equal requests have equal fingerprints.
    Refusals: those of `parse`.
    """
    if value.__class__ is str and _CANONICAL.fullmatch(value) is not None:
        return value
    digits, decimals = parse(value, signed=signed)
    return format_amount(digits, decimals)


def to_units(value: str | int, scale: int, *, signed: bool = False) -> int:
    """Return the amount in smallest units of an asset with this scale.

    Refusals: those of `parse`; amount_too_fine for more decimals than the scale,
    amount_too_large for more than 38 digits of smallest units.
    """
    if value.__class__ is str:
        units: int = _plain_units(value, scale)
        if units >= 0:
            return units
    digits, decimals = parse(value, signed=signed)
    if decimals > scale:
        refuse(
            Reason.AMOUNT_TOO_FINE,
            f"at most {scale} decimals are allowed, {decimals} were given",
            decimals=decimals,
            decimals_max=scale,
        )
    units = digits * 10 ** (scale - decimals)
    if not -LIMIT < units < LIMIT:
        refuse(Reason.AMOUNT_TOO_LARGE, f"an amount has at most {DIGITS_MAX} digits of its unit")
    return units


def _plain_units(text: str, scale: int) -> int:
    """Return the units of text like "12.50" that surely fits, -1 for all else (`parse` decides).

    Most amounts are like that, and one conversion of their digits is all they need.
    """
    whole, point, fraction = text.partition(".")
    digits = whole + fraction
    if (
        not digits.isdigit()
        or not digits.isascii()
        or not whole
        or (point and not fraction)
        or (whole[0] == "0" and whole != "0")
        or len(fraction) > scale
        or len(whole) + scale > DIGITS_MAX
    ):
        return -1
    return int(digits.ljust(len(whole) + scale, "0"))


def format_amount(units: int, scale: int) -> str:
    """Write units as plain decimal text: no exponent, no trailing zeros, no "-0"."""
    sign = "-" if units < 0 else ""
    digits = str(-units if units < 0 else units)
    if scale == 0:
        return sign + digits
    if len(digits) <= scale:
        digits = digits.rjust(scale + 1, "0")
    fraction = digits[-scale:].rstrip("0")
    if fraction:
        return f"{sign}{digits[:-scale]}.{fraction}"
    return sign + digits[:-scale]

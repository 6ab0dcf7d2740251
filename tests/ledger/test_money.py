"""One parser, one formatter: nothing rounded, nothing guessed, nothing huge."""

import decimal
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.ledger.money import (
    LIMIT,
    canonical,
    format_amount,
    parse,
    to_units,
)
from pennyweight.ledger.refusals import Refused

NINES = "9" * 38
MICRO = 10**18


def reason(value, scale=18, **options):
    with pytest.raises(Refused) as caught:
        to_units(value, scale, **options)
    return caught.value.reason.code


def units_or_reason(value, scale, **options):
    try:
        return to_units(value, scale, **options)
    except Refused as refused:
        return refused.reason.code


@pytest.mark.parametrize(
    ("text", "scale", "units"),
    [
        ("0", 18, 0),
        ("0.0", 18, 0),
        ("0.00e5", 18, 0),
        ("0e-99999", 18, 0),
        ("1", 0, 1),
        ("1.0", 0, 1),
        ("1.50", 2, 150),
        ("500.10", 2, 50010),
        ("9.5e-7", 18, 95 * 10**10),  # as JavaScript writes it
        ("1e3", 0, 1000),
        ("1E+3", 0, 1000),
        ("1.23e2", 0, 123),
        ("120e-1", 0, 12),
        ("12e-1", 1, 12),
        ("0.1", 1, 1),
        ("1e-18", 18, 1),
        ("0.000000000000000001", 18, 1),
        ("100000000000000000000e-20", 18, MICRO),  # digits above the limit of none
        (NINES, 0, LIMIT - 1),
        ("9" * 20 + "." + "9" * 18, 18, LIMIT - 1),
        ("0." + "9" * 38, 38, LIMIT - 1),
        ("1e37", 0, 10**37),
        (42, 0, 42),
        (42, 18, 42 * MICRO),
        (LIMIT - 1, 0, LIMIT - 1),
        (0, 18, 0),
    ],
)
def test_to_units_exact(text, scale, units):
    assert to_units(text, scale) == units


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "1 ", " 1", "1\n", "\n1", "+1", "1_000", "1,5", "1.", ".5", "01", "00", "0x1",
        "NaN", "nan", "sNaN", "Infinity", "-Infinity", "inf", "1e", "e5", "1e1.5", "1e 5", "1e++5",
        "--1", "-", "1-", "-0", "-0.0", "-0e5", "-00", "\u0661", "\uff11", "1\u0660", "1.\u0661",
        "\u00b2", "true", "null", "None", "1e9999999999", "1/2", "1" * 101, "1.0.0", "1\x00",
    ],
)  # fmt: skip
@pytest.mark.parametrize("signed", [False, True])
def test_to_units_not_a_number(text, signed):
    assert reason(text, signed=signed) == "amount_invalid"


@pytest.mark.parametrize("value", [True, False, None, 1.5, 1.0, decimal.Decimal(1), b"1", [], 1j])
def test_to_units_not_text_nor_int(value):
    assert reason(value) == "amount_invalid"


@pytest.mark.parametrize(
    ("text", "scale", "code"),
    [
        ("-1", 18, "amount_not_positive"),
        ("-1.5", 18, "amount_not_positive"),
        ("-1e-3", 18, "amount_not_positive"),
        ("-1e999", 18, "amount_not_positive"),  # the sign is judged before the size
        ("-1e-999", 18, "amount_not_positive"),
        (-1, 18, "amount_not_positive"),
        (-LIMIT, 18, "amount_not_positive"),
        ("1e999999", 18, "amount_too_large"),
        ("1e999999999", 18, "amount_too_large"),
        ("1e38", 0, "amount_too_large"),
        ("1e100", 0, "amount_too_large"),
        ("1" * 100, 0, "amount_too_large"),  # as long as text may be at all
        ("9" * 39, 0, "amount_too_large"),
        ("1" + "0" * 38, 0, "amount_too_large"),
        ("1" + "0" * 38, 18, "amount_too_large"),
        ("1" + "0" * 20, 18, "amount_too_large"),
        ("1" + "0" * 19 + ".5e1", 18, "amount_too_large"),
        (LIMIT, 0, "amount_too_large"),
        (10**20, 18, "amount_too_large"),
        (10**2000, 18, "amount_too_large"),
        ("1." + "1" * 38, 38, "amount_too_large"),
        ("1e-999999", 18, "amount_too_fine"),
        ("1e-100", 18, "amount_too_fine"),
        ("1e-19", 18, "amount_too_fine"),
        ("0.0000000000000000001", 18, "amount_too_fine"),
        ("0.5", 0, "amount_too_fine"),
        ("1.001", 2, "amount_too_fine"),
    ],
)
def test_to_units_refused(text, scale, code):
    assert reason(text, scale) == code


def test_to_units_too_fine_says_by_how_much():
    with pytest.raises(Refused) as caught:
        to_units("1.234", 2)
    assert caught.value.figures == {"decimals": 3, "decimals_max": 2}


@pytest.mark.parametrize(
    ("value", "units"),
    [("-5", -500), ("-5.25", -525), ("5", 500), (-5, -500), ("-0.01", -1), ("-5e-1", -50)],
)
def test_to_units_signed(value, units):
    assert to_units(value, 2, signed=True) == units


@pytest.mark.parametrize("value", ["-" + "9" * 39, -LIMIT, "-1e38", "-1e200"])
def test_to_units_signed_is_bounded(value):
    assert reason(value, 0, signed=True) == "amount_too_large"
    with pytest.raises(Refused):
        canonical(value, signed=True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5.10", "5.1"), ("5.1e0", "5.1"), ("51e-1", "5.1"), ("0.51E1", "5.1"), ("5.1", "5.1"),
        ("0", "0"), ("0.000", "0"), ("0e7", "0"), ("100", "100"), ("1e2", "100"), ("100.0", "100"),
        (100, "100"), (0, "0"), ("1e-7", "0.0000001"), ("1e-99", "0." + "0" * 98 + "1"),
    ],
)  # fmt: skip
def test_canonical_one_spelling(value, text):
    assert canonical(value) == text


@pytest.mark.parametrize(
    ("units", "scale", "text"),
    [
        (0, 0, "0"), (0, 18, "0"), (5, 0, "5"), (-5, 0, "-5"), (100, 2, "1"), (101, 2, "1.01"),
        (110, 2, "1.1"), (1, 2, "0.01"), (-1, 2, "-0.01"), (-100, 2, "-1"), (10, 1, "1"),
        (1, 38, "0." + "0" * 37 + "1"), (LIMIT - 1, 0, NINES), (1000, 0, "1000"), (10, 2, "0.1"),
        (1 - LIMIT, 18, "-" + "9" * 20 + "." + "9" * 18), (12345, 4, "1.2345"), (99, 2, "0.99"),
    ],
)  # fmt: skip
def test_format_amount_plain(units, scale, text):
    assert format_amount(units, scale) == text


def test_parse_lowest_form():
    assert parse("1.500") == (15, 1)
    assert parse("0.0") == (0, 0)
    assert parse("15e1") == (150, 0)
    assert parse("150e-1") == (15, 0)
    assert parse("-1.50", signed=True) == (-15, 1)


amounts = st.integers(min_value=1 - LIMIT, max_value=LIMIT - 1)
scales = st.integers(min_value=0, max_value=38)


@given(amounts, scales)
def test_money_round_trip(units, scale):
    text = format_amount(units, scale)
    assert to_units(text, scale, signed=True) == units
    assert "e" not in text.lower()
    assert text == "0" or not text.startswith("-0.") or units < 0
    assert "." not in text or text[-1] not in "0."


@given(amounts.filter(lambda units: units >= 0), scales)
def test_money_agrees_with_decimal(units, scale):
    text = format_amount(units, scale)
    with decimal.localcontext() as context:
        context.prec = 100
        assert decimal.Decimal(text) == decimal.Decimal(units).scaleb(-scale)


@given(
    st.integers(min_value=0, max_value=10**40),
    st.integers(min_value=-110, max_value=110),
    st.integers(min_value=0, max_value=6),
    st.integers(min_value=0, max_value=38),
)
def test_to_units_any_spelling(digits, exponent, zeros, scale):
    """All spellings of a value give the same units, or are refused for the same reason."""
    text = str(digits)
    spellings = [f"{text}e{exponent}", f"{text}.{'0' * zeros}e{exponent}" if zeros else text + "e0"]
    if zeros == 0:
        spellings[1] = f"{text}0e{exponent - 1}" if digits else "0"
    with decimal.localcontext() as context:
        context.prec = 300
        exact = decimal.Decimal(digits).scaleb(exponent + scale)
        is_whole = exact == exact.to_integral_value()
    outcomes = {units_or_reason(spelling, scale) for spelling in spellings}
    assert len(outcomes) == 1, (spellings, outcomes)
    outcome = outcomes.pop()
    if is_whole and exact < LIMIT and len(text.rstrip("0")) <= 38 and exponent > -60:
        assert outcome == int(exact)
    else:
        assert isinstance(outcome, str) or outcome == int(exact)


@given(st.text(max_size=30))
def test_to_units_arbitrary_text_never_crashes(text):
    outcome = units_or_reason(text, 18, signed=True)
    if isinstance(outcome, int):
        assert canonical(text, signed=True) == format_amount(outcome, 18)
        json.loads(text)  # whatever is accepted is a JSON number too
    else:
        assert outcome.startswith("amount_")


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-300, max_value=1e300))
def test_to_units_javascript_numbers_at_scale_24(number):
    """17 significant digits, as clients of scale-24 assets send them, are exact or refused."""
    text = repr(number)
    outcome = units_or_reason(text, 24)
    if isinstance(outcome, int):
        assert decimal.Decimal(format_amount(outcome, 24)) == decimal.Decimal(text)
    else:
        assert outcome in {"amount_too_fine", "amount_too_large"}


@pytest.mark.parametrize("text", ["1e-100", "1e-500", "12.5e-99", "0." + "0" * 90 + "1e-9"])
def test_canonical_bounds_the_decimals(text):
    with pytest.raises(Refused) as caught:
        canonical(text)
    assert caught.value.reason.code == "amount_too_fine"


@pytest.mark.parametrize("read", [parse, canonical])
@pytest.mark.parametrize("value", ["-1", -1, "-0.5"])
def test_sign_needs_to_be_asked_for(read, value):
    with pytest.raises(Refused) as caught:
        read(value)
    assert caught.value.reason.code == "amount_not_positive"


@pytest.mark.parametrize("value", [LIMIT, -LIMIT, str(LIMIT), f"-{LIMIT}"])
def test_limit_itself_is_too_large(value):
    for read in (parse, canonical):
        with pytest.raises(Refused) as caught:
            read(value, signed=True)
        assert caught.value.reason.code == "amount_too_large"
    assert reason("-1" + "0" * 20, 18, signed=True) == "amount_too_large"
    assert to_units("-" + "9" * 20, 18, signed=True) == 10**18 - LIMIT

"""What the markets publish, read: every digit kept, and nothing but BadPrice for what is none."""

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pennyweight.delivery.prices import BYTES_MAX, ID_LENGTH_MAX, BadPrice, read_price
from pennyweight.products.loans.shared import ONE, Level, Market, Quote, quote_problem

NOW = 1_760_000_000_000_000
MARKETS: tuple[Market, ...] = ("mos_espa", "black_spire")

MOS_ESPA = {
    "eventId": "price-1760000000000-1",
    "asset": "BESKAR",
    "currency": "GC",
    "timestamp": "2025-10-09T08:53:20.123Z",
    "price": 50.0,
    "levels": [
        {"quantity": 1, "buy": "50.25", "sell": "49.75"},
        {"quantity": 10, "buy": "50.75", "sell": "49.25"},
        {"quantity": 50, "buy": "51.10", "sell": "48.90"},
        {"quantity": 100, "buy": "51.25", "sell": "48.75"},
    ],
}
BLACK_SPIRE = {
    "item": "STEEL:MANDALORIAN",
    "time": 1760000000,
    "price": 50.0,
    "timestamp": "2025-10-09T08:53:20.000Z",
    "buy": [{"amount": 1, "price": 50.2}],
    "sell": [
        {"amount": 1, "price": 49.8},
        {"amount": 10, "price": 49.38333333333333},
        {"amount": 100, "price": 48.97},
    ],
}


def mos_espa(**changes: Any) -> bytes:
    return json.dumps({**MOS_ESPA, **changes}).encode()


def black_spire(**changes: Any) -> bytes:
    return json.dumps({**BLACK_SPIRE, **changes}).encode()


def levels(*prices: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"quantity": quantity, "sell": price} for quantity, price in prices]


def read(market: Market, body: bytes | str) -> Quote:
    quote = read_price(market, body, NOW)
    assert quote is not None
    return quote


def reason_of(market: Market, body: bytes | str) -> str:
    with pytest.raises(BadPrice) as raised:
        read_price(market, body, NOW)
    return raised.value.reason


def test_mos_espa_price() -> None:
    assert read("mos_espa", mos_espa()) == Quote(
        "mos_espa",
        "price-1760000000000-1",
        1_760_000_000_123_000,
        NOW,
        (
            Level(1, 49_75 * ONE // 100),
            Level(10, 49_25 * ONE // 100),
            Level(50, 48_90 * ONE // 100),
            Level(100, 48_75 * ONE // 100),
        ),
    )


def test_black_spire_price() -> None:
    quote = read("black_spire", black_spire())
    assert quote.at == 1_760_000_000_000_000
    assert quote.id.startswith("1760000000-")
    assert quote.levels == (
        Level(1, 49_8 * ONE // 10),
        Level(10, 49_38333333333333 * ONE // 10**14),
        Level(100, 48_97 * ONE // 100),
    )


@pytest.mark.parametrize("market", MARKETS)
def test_price_wrapped_or_text(market: Market) -> None:
    body = mos_espa() if market == "mos_espa" else black_spire()
    wrapped = json.dumps({"Type": "Notification", "MessageId": "1", "Message": body.decode()})
    assert (
        read(market, body)
        == read(market, body.decode())
        == read(market, wrapped)
        == read(market, wrapped.encode())
    )


@pytest.mark.parametrize(
    ("digits", "units"),
    [
        ("0.1", ONE // 10),
        ("0.123456789012345678901234", 123456789012345678901234),
        ("4.9e1", 49 * ONE),
        ("12345678901234.5", 123456789012345 * ONE // 10),
        ("90071992547409.93", 9007199254740993 * ONE // 100),
        ("50", 50 * ONE),
    ],
)
@pytest.mark.parametrize("market", MARKETS)
def test_price_every_digit(market: Market, digits: str, units: int) -> None:
    if market == "mos_espa":
        template, mark = mos_espa(levels=levels((1, "PRICE"))).decode(), '"PRICE"'
    else:
        template = black_spire(sell=[{"amount": 1, "price": "PRICE"}]).decode()
        mark = '"PRICE"'
    for written in (digits, f'"{digits}"'):
        assert read(market, template.replace(mark, written)).levels == (Level(1, units),)


@pytest.mark.parametrize(
    ("written", "at"),
    [
        ("1760000000.123456", 1_760_000_000_123_456),
        ("1760000000.1234569", 1_760_000_000_123_456),
        ("1.76e9", 1_760_000_000_000_000),
        ("1760000000.000001", 1_760_000_000_000_001),
        ("0", 0),
    ],
)
def test_black_spire_time_exact(written: str, at: int) -> None:
    body = black_spire(time="TIME").decode().replace('"TIME"', written)
    assert read("black_spire", body).at == at


def test_black_spire_id_by_content() -> None:
    first = read("black_spire", black_spire())
    assert read("black_spire", black_spire(price=1, buy=[])).id == first.id
    assert read("black_spire", black_spire(time=1760000001)).id != first.id
    assert read("black_spire", black_spire(sell=[{"amount": 1, "price": 49.9}])).id != first.id


@pytest.mark.parametrize(
    ("market", "body", "is_ours"),
    [
        ("mos_espa", mos_espa(asset="BSK"), True),
        ("mos_espa", mos_espa(asset="SPICE", levels=None), False),
        ("black_spire", black_spire(item="BSK"), True),
        ("black_spire", black_spire(item="STEEL:DURA", sell="none"), False),
        ("black_spire", black_spire(item=""), False),
    ],
)
def test_price_of_which_item(market: Market, body: bytes, is_ours: bool) -> None:
    assert (read_price(market, body, NOW) is not None) == is_ours


def test_levels_sorted_and_unknown_left_out() -> None:
    body = mos_espa(
        levels=levels((100, "48"), (5, "no price"), (1, 50), (2.5, 1), (-10, 1), (10.0, "49"))
    )
    assert read("mos_espa", body).levels == (
        Level(1, 50 * ONE),
        Level(10, 49 * ONE),
        Level(100, 48 * ONE),
    )


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"levels": levels((1, "50"), (1, "50"))}, "two prices of 1"),
        ({"levels": []}, "no levels"),
        ({"levels": levels((5, "50"))}, "no levels"),
        ({"levels": levels((1, "50"), (10, "500"))}, "totals"),
        ({"levels": levels((1, "50"), (10, "50.01"))}, "above that of 1"),
        ({"levels": levels((1, "0"))}, "not positive"),
        ({"levels": levels((1, "-1"))}, "negative"),
        ({"levels": levels((1, "1e-25"))}, "at most 24 decimals"),
        ({"levels": levels((1, "1e20"))}, "at most 38 digits"),
        ({"levels": levels((1, "9" * 200))}, "plain decimal number"),
        ({"levels": levels((1, "NaN"))}, "plain decimal number"),
        ({"levels": levels((1, True))}, "decimal number or its text"),
        ({"levels": levels((1, None))}, "decimal number or its text"),
        ({"levels": levels(("many", "1"))}, "plain decimal number"),
        ({"levels": [{"quantity": 1}]}, "missing required field `sell`"),
        ({"levels": {}}, "Expected `array`"),
        ({"levels": [1]}, "Expected `object`"),
        ({"asset": None}, "no asset"),
        ({"asset": 1}, "no asset"),
        ({"currency": "USD"}, "not GC"),
        ({"eventId": ""}, "eventId"),
        ({"eventId": "x" * (ID_LENGTH_MAX + 1)}, "eventId"),
        ({"eventId": "a\n"}, "eventId"),
        ({"eventId": 7}, "Expected `str`"),
        ({"timestamp": "2025-10-09T08:53:20"}, "timezone"),
        ({"timestamp": "0001-01-01T00:00:00+23:59"}, "years 1 to 9999"),
        ({"timestamp": 1760000000}, "Expected `datetime`"),
    ],
)
def test_mos_espa_bad(changes: dict[str, Any], part: str) -> None:
    assert part in reason_of("mos_espa", mos_espa(**changes))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"time": -1}, "negative"),
        ({"time": 1760000000000}, "1970 to 9999"),
        ({"time": "soon"}, "plain decimal number"),
        ({"time": None}, "decimal number"),
        ({"sell": None}, "Expected `array`"),
        ({"sell": [{"amount": 1, "price": 10}] * 2}, "two prices of 1"),
        ({"item": {}}, "no item"),
    ],
)
def test_black_spire_bad(changes: dict[str, Any], part: str) -> None:
    assert part in reason_of("black_spire", black_spire(**changes))


@pytest.mark.parametrize("market", MARKETS)
@pytest.mark.parametrize(
    ("body", "part"),
    [
        (b"", "truncated"),
        (b"\xff\xfe", "malformed"),
        (b'{"asset": "\xff", "item": "\xff"}', "UTF-8"),
        (b"[]", "Expected `object`"),
        (b'{"x": ' + b"[" * 20_000, "nested"),
        (b"{" + b" " * BYTES_MAX + b"}", "bytes"),
        ("\u00e9" * BYTES_MAX, "bytes"),
        ("\u00e9" * (BYTES_MAX // 2 + 1), "bytes"),
        ("\ud800", "UTF-8"),
        (b'{"time": 1' + b"0" * 5_000 + b', "item": "BSK", "asset": 1' + b"0" * 5_000 + b"}", ""),
        (b'{"Type": "Notification", "Message": "{}"}', "it has no"),
        (b'{"Type": "Notification", "Message": 1}', "it has no"),
        (b'{"Type": "SubscriptionConfirmation"}', "it has no"),
    ],
)
def test_body_bad(market: Market, body: bytes | str, part: str) -> None:
    assert part in reason_of(market, body)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["BESKAR", "GC", "BSK", "1e99", "1e-99", "-0", "2025-10-09T08:53:20Z"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_PRICES = st.one_of(
    _VALUES,
    st.integers(1, 60),
    st.decimals(0, 60, places=2).map(str),
    st.floats(0, 60),
)
_LEVELS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            name: _PRICES
            if name in {"sell", "price"}
            else st.sampled_from([1, 10, 50, 100, 7, "1"])
            for name in ("quantity", "sell", "amount", "price")
        },
    ),
    max_size=5,
)
_BODIES = st.fixed_dictionaries(
    {"asset": st.just("BESKAR") | _VALUES, "item": st.just("BSK") | _VALUES},
    optional={
        "currency": st.just("GC") | _VALUES,
        "eventId": _VALUES,
        "timestamp": st.datetimes().map(lambda moment: f"{moment.isoformat()}Z") | _VALUES,
        "time": st.integers(0, 2_000_000_000) | st.floats() | _VALUES,
        "levels": _LEVELS | _VALUES,
        "sell": _LEVELS | _VALUES,
        "Type": st.just("Notification") | _VALUES,
        "Message": _VALUES | _VALUES.map(json.dumps),
    },
).map(json.dumps)


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(MARKETS),
    st.binary(max_size=80) | st.text(max_size=80) | _BODIES | _VALUES.map(json.dumps),
)
def test_body_fuzzed(market: Market, body: bytes | str) -> None:
    with contextlib.suppress(BadPrice):
        quote = read_price(market, body, NOW)
        assert quote is None or (quote.market == market and not quote_problem(quote.levels))
        msgspec.json.encode(quote)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(MARKETS), st.data())
def test_body_damaged(market: Market, data: st.DataObject) -> None:
    """True messages with a few bytes changed, cut or doubled."""
    body = bytearray(mos_espa() if market == "mos_espa" else black_spire())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        part = data.draw(st.binary(max_size=2))
        body[place : place + data.draw(st.integers(0, 3))] = part
    with contextlib.suppress(BadPrice):
        msgspec.json.encode(read_price(market, bytes(body), NOW))


# ── messages of the real wire ─────────────────────────────────────────────────────

CAPTURED = Path(__file__).parent / "captured"


@pytest.mark.parametrize("market", ["mos_espa", "black_spire"])
@pytest.mark.parametrize("emulator", ["ministack", "localstack"])
def test_captured_envelopes_hold_what_was_published(emulator: str, market: Market) -> None:
    name = market.replace("_", "-")
    published = read_price(market, (CAPTURED / f"raw-{name}.json").read_bytes(), NOW)
    wrapped = (CAPTURED / f"{emulator}-{name}.json").read_bytes()
    assert json.loads(wrapped)["Type"] == "Notification"
    assert published is not None
    assert [level.quantity for level in published.levels] == [1, 10, 50, 100]
    assert read_price(market, wrapped, NOW) == published

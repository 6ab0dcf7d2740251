"""Updates, targets and policies as they are read: what is exact, what is refused, and in which words."""

from collections.abc import Iterator

import msgspec
import pytest

from pennyweight.delivery.http import portfolios
from pennyweight.delivery.http.wire import Unreadable
from pennyweight.delivery.portfolios import policy_in, rebalance_of, update_in
from pennyweight.delivery.portfolios_shown import reason_of, show_policy, shown_transactions
from pennyweight.ledger.refusals import Refused
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.shared import (
    POINT,
    WHOLE,
    Band,
    Holding,
    Line,
    Policy,
    Rule,
    RunAnswer,
)
from served import START, Served

SEED = b'{"user_id":"1","allocation":{"stocks":60,"bonds":30,"gold":10}}'
MOVED = b'{"user_id":"1","new_allocation":{"stocks":70,"bonds":20,"gold":10}}'


class Message(msgspec.Struct):
    value: bytes | None
    default_key: str = "kafka:rebalance/0/7"


def update(allocation: str, more: str = "") -> bytes:
    return f'{{"user_id":"1","new_allocation":{allocation}{more}}}'.encode()


# ── updates ───────────────────────────────────────────────────────────────────────


def test_update_is_read_exactly() -> None:
    body = update('{"a":33.30,"b":"66.700","c":1e-9,"d":0.0}')
    assert update_in(body) == Rebalance(
        "1", {"a": "33.3", "b": "66.7", "c": "0.000000001", "d": "0"}
    )


def test_update_with_everything() -> None:
    body = update(
        '{"a":100}',
        ',"request_id":7,"as_of":"2025-06-01T14:00:00+02:00","portfolio_value":1e3,'
        '"currency":"EUR","holdings":{"a":{"quantity":1.50,"price":"2","lot":null}},"colour":1',
    )
    assert update_in(body) == Rebalance(
        "1", {"a": "100"}, "7", 1_748_779_200_000_000, "1000", "EUR", {"a": Holding("1.5", "2")}
    )


def test_update_by_holdings_alone() -> None:
    body = b'{"id":5,"holdings":{"a":{"quantity":1,"price":2}}}'
    assert update_in(body) == Rebalance("5", {}, currency="USD", holdings={"a": Holding("1", "2")})


def test_currency_without_a_value_says_nothing() -> None:
    assert update_in(update('{"a":100}', ',"currency":"EUR"')) == update_in(update('{"a":100}'))


@pytest.mark.parametrize("name", ["user_id", "userId", "UserID", "id", "ID"])
@pytest.mark.parametrize("allocation", ["new_allocation", "NewAllocation", "newAllocation"])
@pytest.mark.parametrize("user", ["1", '"1"'])
def test_names_that_are_accepted(name: str, allocation: str, user: str) -> None:
    body = f'{{"{name}":{user},"{allocation}":{{"a":100}}}}'.encode()
    assert update_in(body) == Rebalance("1", {"a": "100"})


def test_other_ids_beside_the_users_are_ignored() -> None:
    assert update_in(b'{"id":"event-9","user_id":1,"new_allocation":{"a":100}}').user == "1"
    assert update_in(b'{"id":null,"userId":1,"new_allocation":{"a":100}}').user == "1"
    both = b'{"id":1,"ID":"1","new_allocation":{"a":100},"NewAllocation":{"a":"100.0"}}'
    assert update_in(both).user == "1"


BAD_UPDATES = [
    (None, "message_malformed", "the message has no value (a tombstone)"),
    (b"", "message_malformed", ""),
    (b"{", "message_malformed", ""),
    (b"\xff", "message_malformed", ""),
    (b'{"x":' + b"[" * 100_000, "message_malformed", ""),
    (b'{"user_id":"\\ud800","new_allocation":{"a":100}}', "message_malformed", ""),
    (update('{"a":NaN}'), "message_malformed", ""),
    (b"[]", "message_invalid", ""),
    (b"null", "message_invalid", ""),
    (b"{}", "message_invalid", "new_allocation is missing"),
    (b'{"new_allocation":{"a":100}}', "message_invalid", "user_id is missing"),
    (b'{"id":null,"new_allocation":{"a":100}}', "message_invalid", "user_id is missing"),
    (b'{"user_id":true,"new_allocation":{"a":100}}', "message_invalid", ""),
    (b'{"user_id":1.5,"new_allocation":{"a":100}}', "message_invalid", ""),
    (b'{"id":1.5,"new_allocation":{"a":100}}', "message_invalid", ""),
    (b'{"user_id":null,"new_allocation":{"a":100}}', "message_invalid", ""),
    (
        b'{"user_id":"1","userId":"2","new_allocation":{"a":100}}',
        "message_invalid",
        "the user is named twice, and not alike",
    ),
    (
        b'{"user_id":1,"new_allocation":{"a":100},"NewAllocation":{"a":99}}',
        "message_invalid",
        "new_allocation is there twice, and not alike",
    ),
    (update("[]"), "message_invalid", ""),
    (update("null"), "message_invalid", ""),
    (update('{"a":100}', ',"request_id":""'), "message_invalid", ""),
    (update('{"a":100}', ',"request_id":"a\\nb"'), "message_invalid", ""),
    (update('{"a":100}', f',"request_id":"{"x" * 256}"'), "message_invalid", ""),
    (update('{"a":100}', ',"as_of":"2025-06-01"'), "message_invalid", ""),
    (update('{"a":100}', ',"as_of":1748779200'), "message_invalid", ""),
    (update('{"a":100}', ',"as_of":"0001-01-01T00:00:00+14:00"'), "message_invalid", ""),
    (update('{"a":100}', ',"currency":""'), "message_invalid", ""),
    (update('{"a":100}', ',"holdings":[]'), "message_invalid", ""),
    (update('{"a":100}', ',"portfolio_value":true'), "message_invalid", ""),
    (update("{}"), "allocation_invalid", "new_allocation names no asset"),
    (update('{"a":50,"b":null}'), "allocation_invalid", "b: null is no percentage, which is a number or its text"),
    (update('{"b":true}'), "allocation_invalid", "b: true is no percentage, which is a number or its text"),
    (update('{"b":[1]}'), "allocation_invalid", "b: [\"1\"] is no percentage, which is a number or its text"),
    (update('{"a":100,"b":-0}'), "allocation_invalid", "b: minus zero is not an amount"),
    (update('{"a":100,"b":-0.0}'), "allocation_invalid", "b: minus zero is not an amount"),
    (update('{"a":110,"b":-10}'), "allocation_invalid", "b: an amount may not be negative here"),
    (update('{"a":110,"b":"-10"}'), "allocation_invalid", "b: an amount may not be negative here"),
    (update('{"a":1e400}'), "allocation_invalid", "a: an amount has at most 38 digits"),
    (update('{"a":1e-400}'), "allocation_invalid", "a: an amount has at most 99 decimals"),
    (update(f'{{"a":{"1" * 5_000}}}'), "allocation_invalid", "a: '1111111111111111111111111111111111111111' is not a plain decimal number"),
    (update('{"a":"100 %"}'), "allocation_invalid", "a: '100 %' is not a plain decimal number"),
    (update('{"a":""}'), "allocation_invalid", "a: '' is not a plain decimal number"),
    (update('{"a":100}', ',"portfolio_value":-1'), "amount_not_positive", "portfolio_value: an amount may not be negative here"),
    (update('{"a":100}', f',"portfolio_value":-1,"x":{"[" * 900}{"]" * 900}'), "amount_not_positive", ""),
    (update('{"a":100}', ',"portfolio_value":-0'), "message_invalid", "minus zero is not a number here"),
    (update('{"a":100}', ',"holdings":{"a":{"price":"x"}}'), "holdings_invalid", "holdings.a.price: 'x' is not a plain decimal number"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "code", "message"), BAD_UPDATES, ids=lambda v: str(v)[:60])
def test_update_that_is_wrong(body: bytes | None, code: str, message: str) -> None:
    with pytest.raises(Refused) as caught:
        update_in(body)
    assert caught.value.reason.code == code
    if message:
        assert caught.value.message == message
    assert len(caught.value.message) < 500


def test_message_is_submitted_under_its_key() -> None:
    submission = rebalance_of(Message(MOVED))
    assert submission.command == update_in(MOVED)
    assert submission.key == "kafka:rebalance/0/7"
    named = rebalance_of(Message(update('{"a":100}', ',"request_id":"r-1"')))
    assert named.key == "update:1:r-1"
    with pytest.raises(Refused):
        rebalance_of(Message(None))


# ── policies ──────────────────────────────────────────────────────────────────────


def test_policy_is_read_in_points() -> None:
    body = b"""{"bands": {"absolute": 5, "relative": "25"}, "asset_bands": {"b": {"absolute": 0.5},
        "a": {}}, "drift_score": 3, "calendar": "weekly", "when": "all", "minimum_trade": 1e-1,
        "trade_to": "band", "cash_asset": "cash", "buy_only": true, "cash_first": true,
        "locked": ["y", "x", "y"], "turnover_max": 100}"""
    policy = policy_in(body)
    assert policy == Policy(
        Band(5 * POINT, 25 * POINT),
        {"a": Band(), "b": Band(POINT // 2)},
        3 * POINT,
        "weekly",
        "all",
        POINT // 10,
        "band",
        "cash",
        is_buy_only=True,
        is_cash_first=True,
        locked=("x", "y"),
        turnover_max=WHOLE,
    )
    assert policy_in(msgspec.json.encode(show_policy(policy))) == policy
    assert policy_in(b"{}") == Policy()


BAD_POLICIES = [
    ('{"bands": {"absolute": 5, "percent": 1}}', "percent"),
    ('{"band": {"absolute": 5}}', "band"),
    ('{"bands": 5}', "bands"),
    ('{"bands": {"absolute": 101}}', "bands.absolute is from 0 to 100, and 101 was given"),
    ('{"bands": {"relative": -1}}', "bands.relative: an amount may not be negative here"),
    ('{"bands": {"relative": true}}', "bands.relative"),
    ('{"asset_bands": {"gold": {"absolute": 1e3}}}', "asset_bands.gold.absolute is from 0 to 100"),
    ('{"asset_bands": {" ": {"absolute": 1}}}', "printable"),
    ('{"drift_score": 100.1}', "drift_score is from 0 to 100, and 100.1 was given"),
    ('{"drift_score": 1e400}', "drift_score: "),
    ('{"minimum_trade": 0.00000000001}', "minimum_trade: at most 10 decimals are allowed"),
    ('{"minimum_trade": null}', "minimum_trade"),
    ('{"turnover_max": "1,5"}', "turnover_max: '1,5' is not a plain decimal number"),
    ('{"calendar": "hourly"}', "calendar"),
    ('{"when": "some"}', "when"),
    ('{"trade_to": "edge"}', "trade_to"),
    ('{"buy_only": 1}', "buy_only"),
    ('{"buy_only": true}', "buy_only and cash_first need a cash_asset"),
    ('{"cash_first": true}', "buy_only and cash_first need a cash_asset"),
    ('{"locked": "gold"}', "locked"),
    ('{"locked": [""]}', "printable"),
    ('{"cash_asset": "c", "locked": ["c"]}', "the cash asset cannot be locked"),
    ('{"cash_asset": 1}', "cash_asset"),
    ("[]", "object"),
]


@pytest.mark.parametrize(("body", "part"), BAD_POLICIES)
def test_policy_that_is_wrong(body: str, part: str) -> None:
    with pytest.raises((Refused, Unreadable)) as caught:
        policy_in(body.encode())
    error = caught.value
    assert part in (error.message if isinstance(error, Refused) else error.detail)


# ── what goes out ─────────────────────────────────────────────────────────────────


def line(rule: Rule, change: int = 0, limit: int = 0, before: int = 12) -> Line:
    return Line("a", before * POINT, 10 * POINT, change * POINT, rule, limit)


@pytest.mark.parametrize(
    ("rule", "limit", "sentence"),
    [
        ("drift", 0, "off the target: 2 points"),
        ("band", 2 * POINT, "outside the band: 2 of 2 points"),
        ("score", 3 * POINT, "the drift score has reached 3 points"),
        ("calendar", 0, "a period of the calendar has begun: off the target by 2 points"),
        ("cash_flow", POINT // 2, "cash flow: cash is off its target by 0.5 points"),
        ("with_others", 0, "traded with others that are due: off the target by 2 points"),
        ("on_target", 0, "on the target"),
        ("in_band", 5 * POINT, "inside the band: 2 of 5 points"),
        ("not_due", 0, "not due: off the target by 2 points"),
        ("locked", 0, "locked: off the target by 2 points"),
        ("buy_only", 0, "nothing is sold: over the target by 2 points"),
        ("below_minimum", 3 * POINT, "below the minimum trade: 2 of 3 points"),
        ("no_counterpart", 0, "nothing left to trade against: off the target by 2 points"),
    ],
)
def test_reason_of_each_rule(rule: Rule, limit: int, sentence: str) -> None:
    assert reason_of(line(rule, limit=limit)) == sentence


def test_part_of_a_drift_is_traded() -> None:
    lines = (
        Line("a", 13 * POINT, 10 * POINT, -POINT, "band", 2 * POINT),
        Line("b", 7 * POINT, 10 * POINT, POINT, "with_others"),
    )
    sell, buy = shown_transactions(RunAnswer("rebalanced", "1", 5, START, lines))
    figures = ("rebalance_percent", "percent_of_holding", "drift_before", "drift_after")
    assert [bytes(getattr(sell, name)) for name in figures] == [b"1", b"7.6923076923", b"3", b"2"]
    assert [bytes(getattr(buy, name)) for name in figures] == [b"1", b"14.2857142857", b"-3", b"-2"]


# ── over HTTP ─────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(portfolios.routes(clock=lambda: START)) as found:
        assert found.send("POST", "/portfolio", SEED).status == 201
        yield found


@pytest.fixture(autouse=True)
def unchanged(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where there is a book, nothing of it changes."""
    if "served" not in request.fixturenames:
        yield
        return
    found: Served = request.getfixturevalue("served")
    before = found.store.head()
    yield
    assert found.store.head() == before


@pytest.mark.parametrize("path", ["/rebalance", "/rebalance/preview", "/rebalance?mode=async"])
@pytest.mark.parametrize(("body", "code", "message"), BAD_UPDATES[1:], ids=lambda v: str(v)[:60])
def test_posted_update_that_is_wrong(
    served: Served, path: str, body: bytes, code: str, message: str
) -> None:
    answer = served.send("POST", path, body)
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    if not code.startswith("message_"):
        assert answer.json["code"] == code
    if message:
        assert answer.json["detail"] == message
    assert len(answer.body) < 1_000


BAD_ALLOCATIONS = [
    ('{"stocks":60,"bonds":30,"gold":11}', "the percentages add up to 101, not to 100"),
    ('{"stocks":60,"bonds":30,"gold":9.99}', "the percentages add up to 99.99, not to 100"),
    ('{"stocks":60,"bonds":40.0000000011}', "add up to 100.0000000011, not to 100"),
    ('{"stocks":-10,"bonds":110}', "stocks: an amount may not be negative here"),
    ('{"stocks":100,"bonds":-0}', "bonds: minus zero is not an amount"),
    ('{"stocks":100,"bonds":null}', "bonds: null is no percentage"),
    ('{"stocks":1e400}', "stocks: an amount has at most 38 digits"),
    ('{"stocks":1e37}', "stocks: a percentage has at most 18 decimals, and is at most 100"),
    ('{"stocks":1e-19,"bonds":100}', "stocks: a percentage has at most 18 decimals"),
    ('{"":100}', "an asset's name has 1 to 64 printable characters"),
    ('{" a":100}', "an asset's name has 1 to 64 printable characters"),
    ('{"a\\u0000":100}', "an asset's name has 1 to 64 printable characters"),
    ('{"' + "a" * 65 + '":100}', "an asset's name has 1 to 64 printable characters"),
    ("{}", "an allocation has 1 to 100 assets"),
    ("{" + ",".join(f'"a{n}":1' for n in range(101)) + "}", "an allocation has 1 to 100 assets"),
]


@pytest.mark.parametrize(("allocation", "message"), BAD_ALLOCATIONS, ids=lambda v: v[:50])
def test_target_that_is_wrong(served: Served, allocation: str, message: str) -> None:
    for method, user in (("POST", "2"), ("PUT", "1")):
        body = f'{{"user_id":"{user}","allocation":{allocation}}}'.encode()
        answer = served.send(method, "/portfolio", body)
        assert (answer.status, answer.json["code"]) == (400, "allocation_invalid"), answer
        assert message in answer.json["detail"]


@pytest.mark.parametrize(("policy", "part"), BAD_POLICIES)
def test_posted_policy_that_is_wrong(served: Served, policy: str, part: str) -> None:
    body = b'{"user_id":"2","allocation":{"a":100},"policy":%b}' % policy.encode()
    for method, path in (("POST", "/portfolio"), ("PUT", "/portfolio/policy")):
        answer = served.send(method, path, body)
        assert answer.status == 400, answer
        assert part in answer.json["detail"]


WRITES = [
    ("POST", "/portfolio"),
    ("PUT", "/portfolio"),
    ("PUT", "/portfolio/policy"),
    ("POST", "/rebalance"),
    ("POST", "/rebalance?mode=async"),
    ("POST", "/rebalance/preview"),
    ("POST", "/rebalance-transactions/12-1/executed"),
    ("POST", "/rebalances/12/executed"),
]
NONSENSE = [
    b"{",
    b"[]",
    b"null",
    b"1",
    b'"a"',
    b"\xff\xfe",
    b'{"user_id":"\\ud800"}',
    b'{"user_id":' + b"1" * 10_000 + b',"allocation":{"a":100},"policy":null}',
    b'{"user_id":"","allocation":{"a":100},"new_allocation":{"a":100},"policy":{}}',
    b'{"user_id":"a\\u0000","allocation":{"a":100},"new_allocation":{"a":100},"policy":{}}',
    b'{"user_id":"' + b"x" * 256 + b'","allocation":{"a":100},"new_allocation":{"a":100}}',
    b'{"allocation":' + b'{"a":' * 50_000,
    b'{"policy":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"idempotency_key":""}',
    b'{"not_after":"soon"}',
    b'{"amount":1e400,"quantity":-0}',
    b'{"fills":[{"id":"12-1","amount":-1}]}',
]


@pytest.mark.parametrize(("method", "path"), WRITES)
@pytest.mark.parametrize("body", NONSENSE, ids=lambda body: str(body[:40]))
def test_nonsense_is_a_clear_4xx(served: Served, method: str, path: str, body: bytes) -> None:
    answer = served.send(method, path, body)
    assert 400 <= answer.status < 500, answer
    assert answer.json["code"]
    assert len(answer.body) < 1_000


def test_body_that_is_too_large() -> None:
    with Served(portfolios.routes(clock=lambda: START), body_max=100) as small:
        for path in ("/rebalance", "/rebalance/preview", "/rebalance?mode=async"):
            assert small.send("POST", path, b" " * 101).status == 413

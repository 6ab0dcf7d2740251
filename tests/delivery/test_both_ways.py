"""Every hot route through both ways of answering: the bytes must be the same."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest

from pennyweight.delivery.http.routes import CommandRoute
from served import Served, all_routes, long_way, request_bytes, transfer

ROUTES = all_routes()
HOT = [route for route in ROUTES if isinstance(route, CommandRoute) and route.is_hot]


class Pair(NamedTuple):
    short: Served
    long: Served

    def exchange(self, request: bytes) -> bytes:
        """Send the same bytes both ways on fresh connections, and return the one answer."""
        answers = []
        for served in self:
            with served.connect() as raw:
                raw.send(request)
                answers.append(without_date(raw.read_all()))
        assert answers[0] == answers[1]
        return answers[0]


def without_date(answer: bytes) -> bytes:
    head, end, body = answer.partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"date: ")]
    return b"\r\n".join(lines) + end + body


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        both = Pair(
            stack.enter_context(Served(ROUTES, body_max=4_096)),
            stack.enter_context(Served(long_way(ROUTES), body_max=4_096)),
        )
        for served in both:
            served.fund("1", "2")
            served.fund("100", asset="BTC")
            assert served.post("/users", {"users": ["john12345"]}).status == 200
            for name in ("buyer", "seller"):
                body = {"name": name, "amount": "1000", "currency_id": 1}
                assert served.post("/accounts", body).status == 200
        yield both


def closing(method: str, path: str, body: Any, **headers: str) -> bytes:
    """A request after whose answer the server closes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return request_bytes(method, path, content, {**headers, "Connection": "close"})


def test_hot_routes_exist() -> None:
    paths = {route.path for route in HOT}
    assert {"/v1/transfers", "/payments", "/transaction/bet", "/transaction/win"} <= paths
    assert {"/withdrawals", "/settlements"} <= paths
    assert all("{" not in route.path for route in HOT)


@pytest.mark.parametrize("route", HOT, ids=lambda route: route.path)
def test_hot_route_same_bytes(pair: Pair, route: CommandRoute) -> None:
    example = json.dumps(route.documentation.request_example).encode()
    variants = [
        closing(route.method, route.path, example),
        closing(route.method, route.path, example),
        closing(route.method, route.path, example, **{"Idempotency-Key": "same-bytes"}),
        closing(route.method, route.path, example, **{"Idempotency-Key": "same-bytes"}),
        closing(route.method, route.path, b"{}", **{"Idempotency-Key": "same-bytes"}),
        closing(route.method, route.path, example, **{"Idempotency-Key": "x" * 256}),
        closing(route.method, route.path, example, **{"Not-After": "2001-01-01T00:00:00Z"}),
        closing(route.method, route.path, example, **{"Not-After": "yesterday"}),
        closing(route.method, route.path, example, Origin="http://evil.example"),
        closing(route.method, route.path, b""),
        closing(route.method, route.path, b"{"),
        closing(route.method, route.path, b"[]"),
        closing(route.method, route.path, b"null"),
        closing(route.method, route.path, b"\xff\xfe"),
        closing(route.method, route.path, b"[" * 4_000),
        closing(route.method, route.path, b"x" * 4_097),
        closing(route.method, route.path + "?a=b", example),
        closing("PUT", route.path, example),
        closing("GET", route.path, b""),
        request_bytes(route.method, route.path, example, version="1.0"),
        request_bytes(
            route.method, route.path, example, {"Connection": "keep-alive"}, version="1.0"
        ),
    ]
    statuses = {int(pair.exchange(variant)[9:12]) for variant in variants}
    assert all(status < 500 for status in statuses)


@pytest.mark.parametrize(
    "body",
    [
        transfer("user:1:USD", "user:2:USD", 1.5),
        transfer("user:1:USD", "user:2:USD", "1000"),
        transfer("user:1:USD", "user:9:USD"),
        transfer("user:1:USD", "user:2:USD", "1e-30"),
        {"atomic": True, "transfers": [transfer("user:1:USD", "user:2:USD")] * 2},
        {"atomic": False, "transfers": [transfer("user:1:USD", "user:2:USD", a) for a in (1, 999)]},
        {"atomic": False, "transfers": [transfer("user:1:USD", "user:2:USD")]},
        {"atomic": False, "transfers": []},
        {"atomic": True, "transfers": []},
    ],
    ids=str,
)
def test_transfer_same_bytes(pair: Pair, body: Any) -> None:
    pair.exchange(closing("POST", "/v1/transfers", body))


HELD = {"user_id": 100, "token": "BTC", "requested_quantity": "0.5"}
TRADE = {"user_id": 100, "bought_token": "ETH", "bought_quantity": 1, "sold_token": "BTC"}


@pytest.mark.parametrize(
    "body",
    [
        {**HELD, "withdrawal_id": "mine"},
        {**HELD, "withdrawal_id": "mine", "requested_quantity": 1},
        {**HELD, "expires_in_seconds": 60},
        {**HELD, "requested_quantity": 1_000},
        {**HELD, "user_id": "9"},
        {**HELD, "token": "XYZ"},
        {**HELD, "requested_quantity": 0},
        {**HELD, "requested_quantity": True},
        {**HELD, "requested_amount": 9},
        {**HELD, "withdrawal_id": "w5"},
    ],
    ids=str,
)
def test_withdrawal_same_bytes(pair: Pair, body: Any) -> None:
    first = pair.exchange(closing("POST", "/withdrawals", body))
    again = pair.exchange(closing("POST", "/withdrawals", body))
    assert first[:12] == again[:12]


@pytest.mark.parametrize(
    "body",
    [
        {**TRADE, "sold_quantity": "0.4"},
        {**TRADE, "sold_quantity": "0.4", "settlement_id": 7},
        {**TRADE, "sold_quantity": 1_000},
        {**TRADE, "sold_quantity": 0},
        {**TRADE, "sold_quantity": -1},
        {**TRADE, "sold_quantity": 1, "withdrawal_id": "mine"},
        {**TRADE, "sold_quantity": 1, "user_id": 9},
        TRADE,
    ],
    ids=str,
)
def test_settlement_same_bytes(pair: Pair, body: Any) -> None:
    first = pair.exchange(closing("POST", "/settlements", body))
    again = pair.exchange(closing("POST", "/settlements", body))
    assert first[:12] == again[:12]


def test_book_same_on_both(pair: Pair) -> None:
    short, long = (served.send("GET", "/v1/entries?limit=1000").body for served in pair)
    assert short == long


def test_two_keys_are_ambiguous(pair: Pair) -> None:
    """The last one winning would let a retry under the first one pay again."""
    request = closing("POST", "/v1/transfers", transfer("user:1:USD", "user:2:USD"))
    keys = b"Idempotency-Key: one\r\nIdempotency-Key: two\r\n"
    answer = pair.exchange(request.replace(b"Connection:", keys + b"Connection:", 1))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"code":"idempotency_key_ambiguous"' in answer

"""The payments face, from the bytes of a request to the bytes of its reply, without a server."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pennyweight.delivery.http import payments
from pennyweight.delivery.http.routes import CommandRoute, ReadRoute, Reply, Request, Route
from pennyweight.engine.engine import Abandon, Submission
from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Failure, Outcome, Refusal, Unknown
from pennyweight.ledger.refusals import Reason
from pennyweight.products.general import PlaceHold, RegisterAsset, Transfer
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

START = 1_560_396_089_933_672
PROFILES = ("seed", "head")

JsonObject = dict[str, Any]


class Client:
    """Sends requests to the routes of one profile on a fresh book in memory."""

    def __init__(self, profile: payments.Profile = "seed") -> None:
        self.store = MemoryStore(Head(book="main", incarnation="first"))
        self.now = START - 1_000
        engine = open_engine(self.store, now=self.now)
        self.book = InlineBook(engine, self.store, lambda: self.now)
        self.routes = payments.routes(profile)

    def send(self, method: str, path: str, body: Any = b"", **headers: str) -> Reply:
        """Send a request; what is not bytes goes as JSON."""
        path, _, query = path.partition("?")
        route, params = self._route(method, path)
        request = Request(
            method,
            path,
            body if isinstance(body, bytes) else msgspec.json.encode(body),
            params,
            dict(pair.split("=") for pair in query.split("&") if pair),
            {name.replace("_", "-"): value for name, value in headers.items()},
        )
        standing = self.book.engine.standing
        if isinstance(route, ReadRoute):
            return route.read(request, self.store, standing)
        parsed = route.parse(request, standing)
        if isinstance(parsed, Reply):
            return parsed
        assert isinstance(parsed, Submission)
        return route.render(self.book.execute_many([parsed]), request)

    def text(self, method: str, path: str, body: Any = b"", **headers: str) -> str:
        """Return status and body of a reply in one line."""
        reply = self.send(method, path, body, **headers)
        assert reply.content_type == "application/json"
        return f"{reply.status} {content(reply).decode()}"

    def get(self, path: str) -> JsonObject:
        reply = self.send("GET", path)
        assert reply.status == 200, content(reply)
        return json.loads(content(reply))

    def open(self, name: str, amount: str, currency: int = 1, **more: Any) -> None:
        body = {"name": name, "amount": amount, "currency_id": currency, **more}
        assert self.text("POST", "/accounts", body) == "200 {}"

    def pay(self, buyer: int, seller: int, amount: Any, **headers: str) -> str:
        body = {"buyer_account_id": buyer, "seller_account_id": seller, "amount": amount}
        return self.text("POST", "/payments", body, **headers)

    def _route(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        for route in self.routes:
            pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path)
            match = re.fullmatch(pattern, path)
            if match and route.method == method:
                return route, match.groupdict()
        raise LookupError(f"{method} {path}")


def content(reply: Reply) -> bytes:
    return reply.body if reply.chunks is None else b"".join(reply.chunks)


@pytest.fixture
def client() -> Client:
    """Two accounts, as in the seed."""
    client = Client()
    client.open("buyer", "1000")
    client.open("seller", "0")
    return client


# ── the seed's transcript ─────────────────────────────────────────────────────────


def transcript() -> Iterator[tuple[str, str, bytes, str]]:
    """Yield method, path, body and reply of each curl line in the documentation's transcript."""
    page = Path(__file__).parents[2] / "docs" / "payments.md"
    section = page.read_text().partition("## The seed's transcript")[2].partition("\n## ")[0]
    block = "\n".join(re.findall(r"```console\n(.*?)```", section, re.DOTALL))
    for command, reply in re.findall(r"^\$ (curl .*)\n(.*)$", block, re.MULTILINE):
        body = re.search(r"-d '(.*?)'", command)
        path = re.search(r"localhost:8080(\S+)", command)
        assert path is not None
        yield ("POST" if body else "GET", path[1], body[1].encode() if body else b"", reply)


SEED = (
    ("GET", "/accounts", b"", "{}"),
    ("POST", "/accounts", b'{"name":"buyer", "amount": "1000", "currency_id": 1}', "{}"),
    ("POST", "/accounts", b'{"name":"seller", "amount": 0, "currency_id": 1}', "{}"),
    (
        "GET",
        "/accounts",
        b"",
        (
            '{"accounts":[{"ID":1,"Name":"buyer","CurrencyID":1,"CurrencyName":"USD","Amount":"1000"},'
            '{"ID":2,"Name":"seller","CurrencyID":1,"CurrencyName":"USD","Amount":"0"}]}'
        ),
    ),
    (
        "POST",
        "/payments",
        b'{"buyer_account_id":1, "seller_account_id":2, "amount": 500.1}',
        (
            '{"ID":1,"CurrencyID":1,"Amount":"500.1","BuyerAccountID":1,"SellerAccountID":2,'
            '"OperationTimestamp":"2019-06-13T03:21:29.933672Z"}'
        ),
    ),
    (
        "GET",
        "/payments",
        b"",
        (
            '{"payments":[{"ID":1,"CurrencyID":1,"currency_name":"USD","Amount":"500.1",'
            '"BuyerAccountID":1,"SellerAccountID":2,'
            '"OperationTimestamp":"2019-06-13T03:21:29.933672Z"}]}'
        ),
    ),
    (
        "GET",
        "/account/1",
        b"",
        '{"ID":1,"Name":"buyer","CurrencyID":1,"CurrencyName":"USD","Amount":"499.9"}',
    ),
    (
        "GET",
        "/account/2",
        b"",
        '{"ID":2,"Name":"seller","CurrencyID":1,"CurrencyName":"USD","Amount":"500.1"}',
    ),
)
"""The seed's text: method, path, body, reply."""


def test_seed_transcript_byte_for_byte():
    client = Client()
    for method, path, body, expected in SEED:
        client.now = START if path == "/payments" else START - 1_000
        reply = client.send(method, path, body)
        assert (reply.status, content(reply).decode()) == (200, expected)
        assert reply.content_type == "application/json"


def test_seed_transcript_is_what_the_documentation_shows():
    assert list(transcript()) == list(SEED)


def test_head_transcript():
    client = Client("head")
    assert client.text("GET", "/accounts") == "200 {}"
    assert client.text("GET", "/payments") == "200 {}"
    for name, amount in (("buyer", "1000"), ("seller", "0")):
        body = {"Name": name, "Amount": amount, "CurrencyID": 1}
        assert client.text("POST", "/accounts", body) == "200 {}"
    assert client.text("GET", "/accounts") == (
        '200 {"Accounts":[{"ID":1,"Name":"buyer","CurrencyID":1,"CurrencyName":"USD",'
        '"Amount":"1000"},{"ID":2,"Name":"seller","CurrencyID":1,"CurrencyName":"USD",'
        '"Amount":"0"}]}'
    )
    client.now = START
    body = {"BuyerAccountID": 1, "SellerAccountID": 2, "Amount": "500.1"}
    assert client.text("POST", "/payments", body) == (
        '200 {"ID":1,"CurrencyID":1,"Amount":"500.1","BuyerAccountID":1,"SellerAccountID":2,'
        '"OperationTimestamp":"2019-06-13T03:21:29.933672Z"}'
    )
    assert client.text("GET", "/payments") == (
        '200 {"Payments":[{"ID":1,"CurrencyID":1,"CurrencyName":"USD","Amount":"500.1",'
        '"BuyerAccountID":1,"SellerAccountID":2,'
        '"OperationTimestamp":"2019-06-13T03:21:29.933672Z"}]}'
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_both_casings_in_both_profiles(profile: payments.Profile):
    client = Client(profile)
    client.open("a", "5")
    mixed = {"name": "b", "Amount": 1e1, "CurrencyID": 1}
    assert client.text("POST", "/accounts", mixed) == "200 {}"
    for body in (
        {"BuyerAccountID": 1, "SellerAccountID": 2, "Amount": "1"},
        {"buyer_account_id": 2, "seller_account_id": 1, "amount": 1},
        {"BuyerAccountID": 1, "seller_account_id": 2, "Amount": 1.0},
        {"buyer_account_id": 1, "seller_account_id": 2, "amount": 1, "comment": "ignored"},
    ):
        assert client.send("POST", "/payments", body).status == 200
    for batch in ("payments", "Payments"):
        item = {"BuyerAccountID": 2, "SellerAccountID": 1, "Amount": "1"}
        assert client.send("POST", "/payments/batch", {batch: [item]}).status == 200
    assert client.get("/account/1")["Amount"] == "5"


# ── errors ────────────────────────────────────────────────────────────────────────

ERRORS: list[tuple[str, str, Any, int, str]] = [
    ("GET", "/account/3", b"", 404, "Account not found"),
    ("GET", "/account/0", b"", 404, "Account not found"),
    ("GET", "/account/-1", b"", 404, "Account not found"),
    ("GET", "/account/abc", b"", 400, "bad request"),
    ("GET", "/account/1.0", b"", 400, "bad request"),
    ("GET", "/account/\u0661", b"", 400, "bad request"),
    ("GET", f"/account/{'9' * 40}", b"", 400, "bad request"),
    ("GET", "/account/9/history", b"", 404, "Account not found"),
    ("GET", "/account/x/history", b"", 400, "bad request"),
    ("GET", "/account/1/history?limit=0", b"", 400, "limit is a number from 1 to 1000"),
    ("GET", "/account/1/history?order=up", b"", 400, "order is asc or desc"),
    ("GET", "/account/1/history?cursor=x", b"", 400, "cursor is no cursor of ours"),
    ("DELETE", "/account/3", b"", 404, "Account not found"),
    ("DELETE", "/account/abc", b"", 400, "bad request"),
    ("DELETE", "/account/1", b"[]", 400, "this route takes no body"),
    ("DELETE", "/account/1", b"", 400, "account 'account:1:USD' still has a balance"),
    ("POST", "/payments", (1, 3, "5"), 404, "Account not found"),
    ("POST", "/payments", (3, 1, "5"), 404, "Account not found"),
    ("POST", "/payments", (2, 1, "5"), 400, "Buyer account does not have sufficient balance"),
    (
        "POST",
        "/payments",
        (1, 4, "5"),
        400,
        "Payment allowed only when account currencies match",
    ),
    ("POST", "/payments", (1, 1, "5"), 400, "Could not make payment to self"),
    ("POST", "/payments", (1, 2, "0"), 400, "Amount should be positive"),
    ("POST", "/payments", (1, 2, -5), 400, "Amount should be positive"),
    ("POST", "/payments", (1, 2, "1e-16"), 400, "an amount has at most 15 decimals"),
    ("POST", "/payments", (1, 2, "1e30"), 400, "an amount has at most 30 digits"),
    ("POST", "/payments", (1, 2, "ten"), 400, "'ten' is not a plain decimal number"),
    (
        "POST",
        "/payments",
        (1, 2, None),
        400,
        "Expected an amount, got `null` - at `$.amount`",
    ),
    ("POST", "/payments", {"amount": 1}, 400, "buyer_account_id is missing"),
    (
        "POST",
        "/payments",
        {"buyer_account_id": 1, "seller_account_id": 2},
        400,
        "amount is missing",
    ),
    ("POST", "/payments/batch", {}, 400, "payments is missing"),
    ("POST", "/payments/batch", {"payments": []}, 400, "a batch has 1 to 64 payments"),
    (
        "POST",
        "/payments/batch",
        {
            "payments": [
                {"buyer_account_id": 1, "seller_account_id": 2, "amount": "5"},
                {"buyer_account_id": 2, "seller_account_id": 1, "amount": "6"},
            ]
        },
        400,
        "payments[1]: Buyer account does not have sufficient balance",
    ),
    ("POST", "/accounts", ("buyer", "5", 1), 400, "there is an account named 'buyer' already"),
    ("POST", "/accounts", ("x", "5", 77), 400, "there is no currency 77"),
    ("POST", "/accounts", ("x", "-5", 1), 400, "Amount should be positive"),
    ("POST", "/accounts", ("x", True, 1), 400, "Expected an amount, got `bool` - at `$.amount`"),
    (
        "POST",
        "/accounts",
        ("", "5", 1),
        400,
        "a name has 1 to 255 characters and no control characters",
    ),
    ("POST", "/accounts", {"name": "x", "amount": 1}, 400, "currency_id is missing"),
    ("POST", "/accounts", ("x", "0", 2**70), 400, "Expected `int` <= 9223372036854775807"),
    ("POST", "/accounts", b"{", 400, "Input data was truncated"),
    ("POST", "/accounts", b"[]", 400, "Expected `object`, got `array`"),
    ("POST", "/accounts", b"\xff\xff", 400, "JSON is malformed"),
    (
        "POST",
        "/accounts",
        b'{"name":"x","amount":NaN,"currency_id":1}',
        400,
        "JSON is malformed",
    ),
]


def _body(path: str, given: Any) -> Any:
    if not isinstance(given, tuple):
        return given
    names = (
        ("name", "amount", "currency_id")
        if path == "/accounts"
        else ("buyer_account_id", "seller_account_id", "amount")
    )
    return dict(zip(names, given, strict=True))


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("method", "path", "body", "status", "message"), ERRORS)
def test_errors(
    profile: payments.Profile, method: str, path: str, body: Any, status: int, message: str
):
    client = Client(profile)
    client.open("buyer", "1000")
    client.open("seller", "0")
    client.open("gone", "0")
    client.open("roubles", "5", 2)
    assert client.text("DELETE", "/account/3") == "200 {}"
    sequence = client.store.head().sequence
    reply = client.send(method, path, _body(path, body))
    told = json.loads(content(reply))
    error = "Error" if profile == "head" else "error"
    assert (reply.status, list(told)) == (status, [error])
    assert told[error].startswith(message)
    assert client.store.head().sequence == sequence


@pytest.mark.parametrize(
    ("outcome", "status", "code"),
    [
        (Unknown("the disk is gone"), 503, "outcome_unknown"),
        (Failure(RuntimeError("secret")), 500, "internal_error"),
        (Refusal(Reason.KEY_REUSED, "key 'k' was used with another amount"), 422, "key_reused"),
        (Refusal(Reason.KEY_ABANDONED, "key 'k' was abandoned"), 409, "key_abandoned"),
        (Refusal(Reason.NOT_AFTER_PASSED, "too late"), 409, "not_after_passed"),
    ],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_errors_the_seed_never_knew_carry_a_code(
    profile: payments.Profile, outcome: Outcome, status: int, code: str
):
    error, name = ("Error", "Code") if profile == "head" else ("error", "code")
    for route in payments.routes(profile):
        if isinstance(route, CommandRoute):
            request = Request(route.method, route.path, correlation_id="c0ffee")
            reply = route.render([outcome], request)
            told = json.loads(reply.body)
            assert (reply.status, told[name]) == (status, code)
            assert "secret" not in told[error]
            assert ("c0ffee" in told[error]) == (status == 500)


# ── amounts and names ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        (b"500.10", "500.1"),
        (b'"500.10"', "500.1"),
        (b"5e2", "500"),
        (b'"0.000000000000001"', "0.000000000000001"),
        (b"0.1", "0.1"),
        (b"999.999999999999999", "999.999999999999999"),
        (b"1E-15", "0.000000000000001"),
        (b"1000", "1000"),
    ],
)
def test_amounts_are_exact(client: Client, sent: bytes, shown: str):
    body = b'{"buyer_account_id":1,"seller_account_id":2,"amount":%b}' % sent
    assert f'"Amount":"{shown}"' in client.text("POST", "/payments", body)
    assert client.get("/account/2")["Amount"] == shown


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_names_come_back_as_sent(name: str):
    client = Client()
    body = {"name": name, "amount": 1, "currency_id": 1}
    try:
        reply = client.send("POST", "/accounts", json.dumps(body).encode())
    except UnicodeEncodeError:
        return
    if reply.status == 200:
        assert client.get("/accounts")["accounts"][0]["Name"] == name
        assert client.get("/account/1")["Name"] == name
    else:
        assert any(ord(character) < 32 or character == "\x7f" for character in name) or any(
            "\ud800" <= character <= "\udfff" for character in name
        )


@pytest.mark.parametrize("moment", [0, 999_999_999_999, START, START - 672, 4_102_444_800_000_000])
def test_timestamps_always_have_six_decimals(moment: int):
    client = Client()
    client.open("a", "5")
    client.open("b", "0")
    client.now = max(client.now, moment)
    shown = json.loads(client.pay(1, 2, 1)[4:])["OperationTimestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", shown)


# ── beyond the seed ───────────────────────────────────────────────────────────────


def test_account_address_is_in_the_header():
    client = Client()
    reply = client.send("POST", "/accounts", _body("/accounts", ("a", "5", 1)))
    assert dict(reply.headers)["Location"] == "/account/1"


def test_user_account_is_shared_with_the_ledger():
    client = Client()
    client.open("ann", "10", user_id="ann")
    client.open("bob", "0", user_id=7)
    client.book.execute(Transfer("user:ann:USD", "user:7:USD", "USD", "4"))
    client.book.execute(PlaceHold("user:7:USD", "USD", "1.5"))
    assert client.get("/account/1")["Amount"] == "6"
    assert client.get("/account/2")["Amount"] == "2.5"
    assert client.pay(2, 1, "2.6").startswith("400 ")
    assert client.pay(2, 1, "2.5").startswith("200 ")
    assert client.text("DELETE", "/account/1") == "200 {}"
    assert client.text("GET", "/account/1") == '404 {"error":"Account not found"}'
    client.open("ann again", "0", UserID="ann")
    assert client.get("/account/3")["Amount"] == "8.5"


def test_batch_replies_in_request_order(client: Client):
    client.open("buyer.btc", "0", 3)
    client.open("seller.btc", "2", 3)
    items = [
        {"buyer_account_id": 1, "seller_account_id": 2, "amount": "100"},
        {"buyer_account_id": 4, "seller_account_id": 3, "amount": 0.5},
    ]
    reply = client.send("POST", "/payments/batch", {"payments": items})
    first, second = json.loads(content(reply))["payments"]
    assert (first["ID"], first["CurrencyID"], first["Amount"]) == (1, 1, "100")
    assert (second["ID"], second["CurrencyID"], second["Amount"]) == (2, 3, "0.5")
    assert first["OperationTimestamp"] == second["OperationTimestamp"]
    listed = client.get("/payments")["payments"]
    assert [payment["currency_name"] for payment in listed] == ["USD", "BTC"]


def test_history_pages_both_ways(client: Client):
    for amount in range(1, 8):
        client.pay(1, 2, amount)
    client.book.execute(PlaceHold("account:1:USD", "USD", "72"))
    lines: list[JsonObject] = []
    cursor = ""
    while cursor is not None:
        page = client.get(f"/account/1/history?limit=3{cursor}")
        lines += page["history"]
        cursor = f"&cursor={page['next_cursor']}" if page["next_cursor"] else None
    assert [line["ID"] for line in lines] == list(range(1, 10))
    assert [line["Balance"] for line in lines] == (
        ["1000", "999", "997", "994", "990", "985", "979", "972", "900"]
    )
    assert lines[0] == {
        "ID": 1,
        "Sequence": 10,
        "Product": "payments",
        "Operation": "open_payments_account",
        "Amount": "1000",
        "Balance": "1000",
        "Held": "0",
        "Counterpart": "world:USD",
        "OperationTimestamp": lines[0]["OperationTimestamp"],
    }
    assert (lines[1]["Amount"], lines[1]["Counterpart"]) == ("-1", "account:2:USD")
    assert (lines[8]["Amount"], lines[8]["Held"], lines[8]["Counterpart"]) == ("-72", "72", None)
    newest = client.get("/account/1/history?order=desc&limit=1000")
    assert newest["history"] == lines[::-1]
    assert newest["next_cursor"] is None


def test_history_stays_when_an_account_is_deleted(client: Client):
    client.pay(1, 2, 1000)
    assert client.text("DELETE", "/account/1", b"{}") == "200 {}"
    assert len(client.get("/account/1/history")["history"]) == 2
    assert [account["ID"] for account in client.get("/accounts")["accounts"]] == [2]


def test_history_of_the_head_profile():
    client = Client("head")
    client.open("a", "0")
    assert client.text("GET", "/account/1/history") == '200 {"History":[],"NextCursor":null}'


def test_currencies(client: Client):
    listed = client.get("/currencies")["currencies"]
    assert listed[:4] == [
        {"CurrencyID": 1, "CurrencyName": "USD"},
        {"CurrencyID": 2, "CurrencyName": "RUB"},
        {"CurrencyID": 3, "CurrencyName": "BTC"},
        {"CurrencyID": 4, "CurrencyName": "ETC"},
    ]
    client.book.execute(RegisterAsset("XAU", 3, 79))
    assert client.get("/currencies")["currencies"][-1] == {
        "CurrencyID": 79,
        "CurrencyName": "XAU",
    }
    client.open("gold", "0.001", 79)
    client.open("more gold", "0", 79)
    assert client.pay(3, 4, "0.0001").startswith("400 ")
    assert client.pay(3, 4, "0.001").startswith("200 ")


def test_asset_registered_after_the_request_began(client: Client):
    route = next(route for route in client.routes if route.path == "/account/{id}")
    assert isinstance(route, ReadRoute)
    standing = client.book.engine.standing
    client.book.execute(RegisterAsset("XAU", 3, 79))
    client.open("gold", "0.001", 79)
    reply = route.read(Request("GET", "/account/3", params={"id": "3"}), client.store, standing)
    assert json.loads(reply.body)["Amount"] == "0.001"


# ── keys and deadlines ────────────────────────────────────────────────────────────


def test_key_replays_the_first_answer(client: Client):
    first = client.send("POST", "/payments", _body("/payments", (1, 2, "5")), idempotency_key="k")
    body = {**_body("/payments", (1, 2, 5.0)), "idempotency_key": "k"}
    second = client.send("POST", "/payments", body)
    assert (second.status, second.body) == (200, first.body)
    assert ("Idempotent-Replayed", "true") in second.headers
    assert ("Idempotent-Replayed", "true") not in first.headers
    assert client.get("/account/1")["Amount"] == "995"
    assert client.pay(1, 2, "6", idempotency_key="k") == (
        '422 {"error":"key \'k\' was used with another amount","code":"key_reused"}'
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/accounts", {"name": "x", "amount": "1", "currency_id": 1}),
        ("DELETE", "/account/2", b""),
        (
            "POST",
            "/payments/batch",
            {"payments": [{"buyer_account_id": 1, "seller_account_id": 2, "amount": "1"}]},
        ),
    ],
)
def test_every_command_replays(client: Client, method: str, path: str, body: Any):
    first = client.send(method, path, body, idempotency_key="k")
    sequence = client.store.head().sequence
    second = client.send(method, path, body, idempotency_key="k")
    assert (first.status, second.status) == (200, 200)
    assert first.body == second.body
    assert set(second.headers) - set(first.headers) == {("Idempotent-Replayed", "true")}
    assert client.store.head().sequence == sequence


def test_key_that_was_given_up(client: Client):
    client.book.execute(Abandon("payments"), key="k")
    assert client.pay(1, 2, "5", idempotency_key="k") == (
        '409 {"error":"key \'k\' was abandoned","code":"key_abandoned"}'
    )
    assert client.text("GET", "/payments") == "200 {}"


def test_key_and_deadline_of_bad_shape(client: Client):
    assert client.pay(1, 2, "5", idempotency_key="\x00").startswith('400 {"error":')
    assert client.pay(1, 2, "5", not_after="tomorrow").startswith('400 {"error":')
    out_of_range = "9999-12-31T23:59:59-01:00"
    assert client.pay(1, 2, "5", not_after=out_of_range).startswith('400 {"error":')
    assert client.pay(1, 2, "5", not_after="2019-01-01T00:00:00Z").startswith("409 ")
    assert client.pay(1, 2, "5", not_after="2030-01-01T00:00:00Z").startswith("200 ")


# ── complete lists ────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def crowd() -> Client:
    """1 203 accounts, every seventh of them deleted, and 1 202 payments, some in batches."""
    client = Client()
    for first in range(0, 1203, 401):
        bodies = [
            {"name": f"n{n}", "amount": "10", "currency_id": 1, "user_id": str(n)}
            for n in range(first, first + 401)
        ]
        for body in bodies:
            client.send("POST", "/accounts", body)
    for number in range(1, 1203):
        client.pay(number, number + 1, "0.5")
    for number in range(7, 1203, 7):
        client.send("DELETE", f"/account/{number}")
    return client


def test_complete_list_of_accounts_streams(crowd: Client):
    reply = crowd.send("GET", "/accounts")
    assert reply.body == b""
    assert reply.chunks is not None
    chunks = list(reply.chunks)
    assert len(chunks) > 3
    assert max(map(len, chunks)) < 100_000
    accounts = json.loads(b"".join(chunks))["accounts"]
    assert [account["ID"] for account in accounts] == [n for n in range(1, 1204) if n % 7]
    assert {account["Amount"] for account in accounts} == {"9.5", "10", "10.5"}


def test_complete_list_of_payments_streams(crowd: Client):
    reply = crowd.send("GET", "/payments")
    assert reply.chunks is not None
    listed = json.loads(b"".join(reply.chunks))["payments"]
    assert [payment["ID"] for payment in listed] == list(range(1, 1203))


def test_complete_lists_show_the_book_as_it_stood(crowd: Client):
    crowd.open("brief", "0", 1)
    before = [content(crowd.send("GET", path)) for path in ("/accounts", "/payments")]
    replies = [crowd.send("GET", path) for path in ("/accounts", "/payments")]
    crowd.open("late", "0")
    for buyer, seller in ((1, 1203), (1202, 1), (1200, 1201), (1200, 2), (1203, 1200)):
        assert crowd.pay(buyer, seller, "0.5").startswith("200 ")
    assert crowd.text("DELETE", "/account/1204") == "200 {}"
    assert crowd.text("DELETE", "/account/1201") == "200 {}"
    assert [content(reply) for reply in replies] == before
    assert [content(crowd.send("GET", path)) for path in ("/accounts", "/payments")] != before


def test_list_of_deleted_accounts_only_is_empty(client: Client):
    client.send("DELETE", "/account/2")
    client.pay(1, 2, 1)
    fresh = Client()
    fresh.open("a", "0")
    fresh.send("DELETE", "/account/1")
    assert fresh.text("GET", "/accounts") == "200 {}"


# ── the description ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("profile", PROFILES)
def test_every_route_is_described(profile: payments.Profile):
    for route in payments.routes(profile):
        documentation = route.documentation
        assert documentation.summary
        assert documentation.answer is not None
        assert documentation.answer_example is not None
        assert (documentation.request is None) == (route.method != "POST")
        if route.method == "POST":
            fields = msgspec.structs.fields(documentation.request)
            assert set(documentation.request_example) <= {f.encode_name for f in fields}
        if isinstance(route, CommandRoute):
            assert set(documentation.errors) >= {400, 422, 503}


@pytest.mark.parametrize("profile", PROFILES)
def test_examples_are_what_is_read_and_written(profile: payments.Profile):
    client = Client(profile)
    client.open("buyer", "2000")
    client.open("seller", "500")
    examples = {(r.method, r.path): r.documentation for r in client.routes}
    for method, path in (
        ("POST", "/payments"),
        ("POST", "/payments/batch"),
        ("GET", "/payments"),
        ("GET", "/accounts"),
        ("GET", "/account/{id}"),
        ("GET", "/account/{id}/history"),
        ("GET", "/currencies"),
    ):
        documentation = examples[method, path]
        if method == "POST":
            reply = client.send(method, path, documentation.request_example)
        else:
            reply = client.send(method, path.replace("{id}", "1"))
        assert reply.status == 200
        assert _shape(json.loads(reply.body)) == _shape(documentation.answer_example)


def _shape(value: Any) -> Any:
    """Names and kinds of a JSON value; a list counts by its first item."""
    if isinstance(value, dict):
        return [(name, _shape(item)) for name, item in value.items()]
    if isinstance(value, list):
        return [_shape(value[0])]
    return type(value).__name__ if isinstance(value, int) else "text or null"

"""What only the HTTP face of the wallet has: raw bodies, signatures, users, replies, descriptions."""

import base64
import itertools
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from pennyweight.delivery.http.routes import CommandRoute, Reply, Request
from pennyweight.delivery.http.wallet import (
    USERS_MAX,
    SignatureUnavailable,
    routes,
    signature_check,
)
from pennyweight.delivery.wallet import WalletSettings
from pennyweight.engine.receipts import Failure, Refusal, Unknown
from pennyweight.ledger.refusals import Reason, Refused
from wallets import RoutesWay, bet_of, fresh_uuid, rollback_of, win_of

PAGE = Path(__file__).parents[2] / "docs" / "wallet.md"


@pytest.fixture
def way() -> RoutesWay:
    way = RoutesWay()
    way.create("john12345")
    return way


def raw_bet(old: bytes, new: bytes, **fields: Any) -> bytes:
    """Return a bet's JSON with a piece of it replaced."""
    body = msgspec.json.encode(bet_of(amount=7, **fields))
    assert old in body
    return body.replace(old, new)


# ── raw bodies ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{}",
        b"[]",
        b"null",
        b'{"user":"a","request_uuid":"b"',
        b'{"user":"a"}x',
        b"\xff",
        b'{"user":"\xff\xfe","request_uuid":"b"}',
        b'{"user":"a\\ud800"}',
        b"\xef\xbb\xbf{}",
        b"[" * 100_000,
        b'{"user":' * 50_000,
        b'{"amount":NaN}',
        b'{"amount":1e999999}',
        raw_bet(b'{"a":1}', b'{"a":' * 5_000 + b"1" + b"}" * 5_000, meta={"a": 1}),
        raw_bet(b"john12345", b"\xff"),
    ],
    ids=itertools.count(),
)
def test_unreadable_body(way, body):
    answer = way.bet(body)
    assert answer["status"] == "RS_ERROR_WRONG_SYNTAX"
    assert answer["user"] is None
    assert answer["request_uuid"] is None


@pytest.mark.parametrize(
    "body",
    [
        raw_bet(b'"amount":7', b'"amount":-0'),
        raw_bet(b'"amount":7', b'"amount":7.0'),
        raw_bet(b'"amount":7', b'"amount":1e2'),
        raw_bet(b'"amount":7', b'"amount":' + b"9" * 6_000),
        raw_bet(b'"amount":7', b'"amount":null'),
        raw_bet(b'"token":"t"', b'"token":1e5'),
    ],
    ids=itertools.count(),
)
def test_body_of_wrong_types(way, body):
    answer = way.bet(body)
    assert answer["status"] == "RS_ERROR_WRONG_TYPES"
    assert answer["user"] == "john12345"
    assert answer["request_uuid"] is not None
    assert way.units_of() == 100_000


def test_half_read_body_is_repeated_where_it_is_text(way):
    answer = way.bet(b'{"user":"J\\u00f6rg \\"x\\"","request_uuid":5}')
    assert answer == {
        "user": 'Jörg "x"',
        "status": "RS_ERROR_WRONG_SYNTAX",
        "request_uuid": None,
    }


def test_user_with_control_characters_is_unknown(way):
    assert way.bet(raw_bet(b"john12345", b"a\\u0000b"))["status"] == "RS_ERROR_UNKNOWN"


# ── replies ───────────────────────────────────────────────────────────────────────


def test_replay_has_stored_balance_and_received_request_uuid(way):
    body = bet_of(amount=10)
    first = way.bet(body)
    way.bet(bet_of(amount=20))
    again = {**body, "request_uuid": fresh_uuid()}
    assert way.bet(again) == {**first, "request_uuid": again["request_uuid"]}


def test_replay_is_marked(way):
    raw = msgspec.json.encode(bet_of())
    assert way.post("/transaction/bet", raw).headers == ()
    assert way.post("/transaction/bet", raw).headers == (("Idempotent-Replayed", "true"),)


def test_deadline_in_a_header(way):
    raw = msgspec.json.encode(bet_of())
    late = way.post("/transaction/bet", raw, {"not-after": "2020-01-01T00:00:00Z"})
    assert msgspec.json.decode(late.body)["status"] == "RS_ERROR_UNKNOWN"
    soon = way.post("/transaction/bet", raw, {"not-after": "2120-01-01T00:00:00Z"})
    assert msgspec.json.decode(soon.body)["status"] == "RS_OK"


def test_unknown_outcome_is_no_200(way):
    raw = msgspec.json.encode(bet_of())
    for path in ("/transaction/bet", "/transaction/win", "/transaction/rollback"):
        route = way.routes[path]
        assert isinstance(route, CommandRoute)
        assert route.is_hot
        request = Request("POST", path, raw)
        assert route.render([Unknown("cut off")], request).status == 503
        assert route.render([Failure(ValueError())], request).status == 500
    users, lock = way.routes["/users"], way.routes["/users/{user}/disable"]
    assert isinstance(users, CommandRoute)
    assert isinstance(lock, CommandRoute)
    assert users.render([Unknown("cut off")], Request("POST", "/users")).status == 503
    assert lock.render([Unknown("cut off")], Request("POST", "/users/a/disable")).status == 503


# ── users ─────────────────────────────────────────────────────────────────────────


def told(reply: Reply) -> dict[str, Any]:
    assert reply.status == 200
    answer: dict[str, Any] = msgspec.json.decode(reply.body)
    return answer


def test_users_are_created_once(way):
    reply = way.post("/users", b'{"users":["a","","john12345","b","a"]}')
    assert reply.body == b'{"status":"RS_OK","created":["a","b"]}'
    again = way.post("/users", b'{"users":["a","b"]}')
    assert again.body == b'{"status":"RS_OK","created":[]}'
    assert way.units_of("a") == 100_000


@pytest.mark.parametrize("body", [b'{"users":[]}', b'{"users":[""]}'])
def test_nobody_to_create(way, body):
    assert way.post("/users", body).body == b'{"status":"RS_OK","created":[]}'


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", "RS_ERROR_WRONG_SYNTAX"),
        (b"[]", "RS_ERROR_WRONG_SYNTAX"),
        (b"{}", "RS_ERROR_WRONG_SYNTAX"),
        (b'{"users":"a"}', "RS_ERROR_WRONG_TYPES"),
        (b'{"users":["a",1]}', "RS_ERROR_WRONG_TYPES"),
        (b'{"users":["a",null]}', "RS_ERROR_WRONG_TYPES"),
        (b'{"users":["a","\\u0001"]}', "RS_ERROR_WRONG_TYPES"),
        (msgspec.json.encode({"users": ["a", "x" * 256]}), "RS_ERROR_WRONG_TYPES"),
        (msgspec.json.encode({"users": ["a"] * (USERS_MAX + 1)}), "RS_ERROR_WRONG_SYNTAX"),
    ],
)
def test_users_refused(way, body, status):
    assert told(way.post("/users", body)) == {"status": status, "created": []}
    assert way.book.store.account("user:a:USD") is None


def test_users_of_whom_one_is_refused(way):
    users = way.routes["/users"]
    assert isinstance(users, CommandRoute)
    refusal = Refusal(Reason.BALANCE_TOO_LARGE, "")
    reply = users.render([refusal], Request("POST", "/users"))
    assert told(reply) == {"status": "RS_ERROR_UNKNOWN", "created": []}


def test_user_is_locked_and_unlocked(way):
    answer = {"user": "john12345", "status": "RS_OK", "disabled": True}
    assert told(way.post("/users/john12345/disable", b"")) == answer
    assert way.bet(bet_of())["status"] == "RS_ERROR_USER_DISABLED"
    answer["disabled"] = False
    assert told(way.post("/users/john12345/enable", b"{}")) == answer
    assert way.bet(bet_of())["status"] == "RS_OK"
    unknown = {"user": "nobody", "status": "RS_ERROR_UNKNOWN"}
    assert told(way.post("/users/nobody/disable", b"")) == unknown
    wrong = told(way.post("/users/john12345/disable", b'{"a":1}'))
    assert wrong["status"] == "RS_ERROR_WRONG_SYNTAX"


# ── signatures ────────────────────────────────────────────────────────────────────


class Provider:
    """Signs what it sends."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
        self.public_key = pem(self.key.public_key())

    def headers(self, body: bytes) -> dict[str, str]:
        signature = self.key.sign(body, padding.PKCS1v15(), hashes.SHA256())
        return {"x-hub88-signature": base64.b64encode(signature).decode()}


def pem(key: Any) -> str:
    shape = serialization.PublicFormat.SubjectPublicKeyInfo
    text: bytes = key.public_bytes(serialization.Encoding.PEM, shape)
    return text.decode()


@pytest.fixture(scope="module")
def provider() -> Provider:
    return Provider()


@pytest.fixture
def signed(provider: Provider) -> RoutesWay:
    way = RoutesWay(WalletSettings(public_key=provider.public_key))
    way.create("john12345")
    return way


def test_signature_over_the_bytes_as_sent(signed, provider):
    body = bet_of()
    raw = b"  " + msgspec.json.format(msgspec.json.encode(body), indent=3)
    assert told(signed.post("/transaction/bet", raw, provider.headers(raw)))["status"] == "RS_OK"
    again = msgspec.json.encode(body)
    answer = told(signed.post("/transaction/bet", again, provider.headers(raw)))
    assert answer == {
        "user": "john12345",
        "status": "RS_ERROR_INVALID_SIGNATURE",
        "request_uuid": body["request_uuid"],
    }


@pytest.mark.parametrize("header", [None, "", "x", "é", "AAAA", "A" * 344])
@pytest.mark.parametrize("path", ["/transaction/win", "/transaction/rollback", "/user/info"])
def test_signature_that_is_none(signed, path, header):
    raw = msgspec.json.encode(bet_of())
    headers = {} if header is None else {"x-hub88-signature": header}
    assert told(signed.post(path, raw, headers))["status"] == "RS_ERROR_INVALID_SIGNATURE"


def test_signature_goes_before_shape(signed, provider):
    for raw in (b"", b"[]", b'{"user":"\xff"}', b'{"user":1}'):
        answer = told(signed.post("/transaction/bet", raw))
        assert answer == {
            "user": None,
            "status": "RS_ERROR_INVALID_SIGNATURE",
            "request_uuid": None,
        }
        signature = provider.headers(raw)
        answer = told(signed.post("/transaction/bet", raw, signature))
        assert answer["status"] == "RS_ERROR_WRONG_SYNTAX"


def test_signature_opens_no_route_of_the_operator(signed, provider):
    raw = b'{"users":["jane"]}'
    answer = told(signed.post("/users", raw, provider.headers(raw)))
    assert answer == {"status": "RS_ERROR_INVALID_SIGNATURE", "created": []}
    answer = told(signed.post("/users/john12345/disable", b"", provider.headers(b"")))
    assert answer["status"] == "RS_ERROR_INVALID_SIGNATURE"
    assert signed.book.store.account("user:jane:USD") is None


def test_public_key_that_is_none():
    with pytest.raises(SignatureUnavailable, match="no PEM"):
        routes(WalletSettings(public_key="x"))
    with pytest.raises(SignatureUnavailable, match="no RSA"):
        signature_check(pem(ec.generate_private_key(ec.SECP256R1()).public_key()))


def test_bet_max_that_is_no_amount():
    with pytest.raises(Refused):
        routes(WalletSettings(bet_max="x"))


# ── descriptions ──────────────────────────────────────────────────────────────────


def test_examples_are_what_happens(way):
    """The documented examples, sent in their order, get the documented answers."""
    for path in ("/user/info", "/user/balance", *PLAYED):
        documentation = way.routes[path].documentation
        reply = way.post(path, msgspec.json.encode(documentation.request_example))
        assert told(reply) == documentation.answer_example
    fresh = RoutesWay()
    for path in ("/users", "/users/{user}/disable", "/users/{user}/enable"):
        documentation = way.routes[path].documentation
        body = documentation.request_example
        raw = b"" if body is None else msgspec.json.encode(body)
        reply = fresh.post(path.replace("{user}", "john12345"), raw)
        assert told(reply) == documentation.answer_example


PLAYED = ("/transaction/bet", "/transaction/win")


def test_rollback_example_is_what_happens(way):
    route = way.routes["/transaction/rollback"]
    body = route.documentation.request_example
    played = {"user": "john12345", "transaction_uuid": body["reference_transaction_uuid"]}
    way.bet(bet_of(amount=10_000, transaction_uuid=played["transaction_uuid"]))
    win = win_of(played, 1)
    way.win(win)
    way.rollback(rollback_of(win))
    assert told(way.post("/transaction/rollback", msgspec.json.encode(body))) == (
        route.documentation.answer_example
    )


def test_page_shows_what_happens():
    """Every `POST` in docs/wallet.md, sent in its order, gets the answer shown below it."""
    way = RoutesWay()
    shown = re.findall(r"```http\nPOST (\S+)\n(.*?)\n\n(.*?)\n```", PAGE.read_text(), re.DOTALL)
    assert len(shown) >= 6
    for path, body, answer in shown:
        assert told(way.post(path, body.encode())) == msgspec.json.decode(answer), path

"""The withdrawals face over HTTP: the seed's example, every route good and bad, keys, figures."""

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import structlog

from pennyweight.delivery.settlements import settlement_of
from pennyweight.engine.engine import Lane, Submission
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.ledger.entries import CursorMove
from pennyweight.ledger.letters import Message
from pennyweight.ledger.refusals import Refused
from pennyweight.products.withdrawals.settle import SetAside
from pennyweight.runtime.clock import ClockGuard
from served import START, Served

HUNDRED = {
    "USD": "0",
    "EUR": "3128.39",
    "BTC": "81.807344",
    "BCH": "68.653219",
    "ETH": "136.152897",
}
SEVEN = {"user_id": 100, "token": "BTC", "requested_quantity": 7}
TRADE = {
    "user_id": "100",
    "bought_token": "ETH",
    "bought_quantity": "87.35",
    "sold_token": "BTC",
    "sold_quantity": "6.9",
}


class Desk(Served):
    """A served book with the user of the seed, on a clock that can be moved."""

    def __init__(self) -> None:
        self.moment = START
        super().__init__(clock=ClockGuard(lambda: self.moment, lambda: self.moment - START))

    def withdraw(self, quantity: Any = 7, token: str = "BTC", **more: Any) -> Any:
        body = {"user_id": 100, "token": token, "requested_quantity": quantity, **more}
        return self.ok("POST", "/withdrawals", body)

    def ok(self, method: str, path: str, body: Any = None, key: str = "") -> Any:
        answer = self.send(method, path, body, {"Idempotency-Key": key} if key else None)
        assert answer.status == 200, answer
        return answer.json

    def code(self, method: str, path: str, body: Any = None, key: str = "") -> tuple[int, str]:
        """Return status and code of a problem document."""
        answer = self.send(method, path, body, {"Idempotency-Key": key} if key else None)
        assert answer.headers["content-type"] == "application/problem+json", answer
        return answer.status, answer.json["code"]

    def table(self, user: str = "100") -> dict[str, str]:
        balances = self.get(f"/users/{user}/balances")["balances"]
        return {token: found["available"] for token, found in balances.items()}

    def message(self, value: bytes | None, offset: int = 0) -> Outcome:
        """Take a message as the reader of Kafka does."""
        message = Came(value, f"kafka:desk/{offset}")
        move = CursorMove("kafka:desk", offset, offset + 1)

        def aside(refused: Refused) -> SetAside:
            payload = base64.b64encode(value or b"").decode()
            headers = (("source", base64.b64encode(b"desk-1").decode()), ("raw", "/w=="))
            letter = Message("settlements", 0, offset, payload, "MTAw", headers)
            return SetAside(letter, refused.reason.code, refused.message)

        try:
            submission = settlement_of(message)
        except Refused as refused:
            submission = Submission(aside(refused))
        submission.cursor, submission.aside, submission.lane = move, aside, Lane.INBOUND
        return self.decide(submission)

    def decide(self, submission: Submission) -> Outcome:
        done = threading.Event()
        found: list[Outcome] = []
        submission.ticket = lambda outcome: (found.append(outcome), done.set())
        self.book.submit(submission)
        assert done.wait(10)
        return found[0]

    def wait(self, seconds: float) -> None:
        self.moment += int(seconds * 1_000_000)


class Came(msgspec.Struct):
    value: bytes | None
    default_key: str


@pytest.fixture
def desk() -> Iterator[Desk]:
    yield from furnished()


@pytest.fixture(scope="module")
def still() -> Iterator[Desk]:
    """A desk for requests that change nothing."""
    yield from furnished()


def furnished() -> Iterator[Desk]:
    """The user of the seed."""
    with Desk() as desk:
        for token, amount in HUNDRED.items():
            account = f"user:100:{token}"
            assert desk.post("/v1/accounts", {"id": account}).status == 201
            if amount != "0":
                body = {"debit_account": f"world:{token}", "credit_account": account}
                desk.post("/v1/transfers", {**body, "asset": token, "amount": amount})
        yield desk


# ── the seed's example ────────────────────────────────────────────────────────────


def test_example_of_the_seed(desk: Desk) -> None:
    assert desk.table() == HUNDRED
    refused = desk.withdraw(250, "USD")
    assert refused == {
        "status": "INSUFFICIENT_BALANCE",
        "available": "0",
        "requested_quantity": "250",
        "held": "0",
        "open_withdrawals": [],
        "open_withdrawal_count": 0,
    }
    assert desk.withdraw(7, "BTC") == {
        "status": "SUFFICIENT_BALANCE",
        "withdrawal_id": "w1",
        "available": "74.807344",
        "held": "7",
        "requested_quantity": "7",
    }
    assert desk.table() == {**HUNDRED, "BTC": "74.807344"}
    assert desk.ok("POST", "/settlements", TRADE) == {
        "result": "settled",
        "withdrawal_id": "w1",
        "sold_available": "74.907344",
        "bought_available": "223.502897",
        "released": "0.1",
        "shortage": "0",
        "owed": "0",
    }
    assert desk.table() == {**HUNDRED, "BTC": "74.907344", "ETH": "223.502897"}


def test_message_of_the_seed_settles_as_http_does(desk: Desk) -> None:
    desk.withdraw(7, "BTC")
    assert isinstance(desk.message(json.dumps(TRADE).encode()), Receipt)
    assert desk.table() == {**HUNDRED, "BTC": "74.907344", "ETH": "223.502897"}
    assert desk.get("/withdrawals/w1")["status"] == "settled"


# ── withdraw ──────────────────────────────────────────────────────────────────────


def test_balance_equal_to_the_request_is_sufficient(desk: Desk) -> None:
    assert desk.withdraw("3128.39", "EUR")["available"] == "0"
    assert desk.withdraw("0.01", "EUR")["status"] == "INSUFFICIENT_BALANCE"


@pytest.mark.parametrize("user", [100, "100"])
@pytest.mark.parametrize("quantity", [7, "7", 7.0, "7e0", "7.00"])
def test_ids_and_quantities_are_text_or_numbers(desk: Desk, user: Any, quantity: Any) -> None:
    body = {"user_id": user, "token": "BTC", "requested_amount": quantity, "unknown": [1]}
    assert desk.ok("POST", "/withdrawals", body)["available"] == "74.807344"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"user_id": 99}, 404, "user_not_found"),
        ({"user_id": ""}, 400, "user_id_invalid"),
        ({"user_id": 1.5}, 400, "body_invalid"),
        ({"user_id": True}, 400, "body_invalid"),
        ({"user_id": None}, 400, "body_invalid"),
        ({"token": "XYZ"}, 400, "token_unknown"),
        ({"token": "T" * 41}, 400, "body_invalid"),
        ({"requested_quantity": 0}, 400, "amount_not_positive"),
        ({"requested_quantity": -7}, 400, "amount_not_positive"),
        ({"requested_quantity": "seven"}, 400, "amount_invalid"),
        ({"requested_quantity": True}, 400, "body_invalid"),
        ({"requested_quantity": "1e-19"}, 400, "amount_too_fine"),
        ({"requested_quantity": "1e39"}, 400, "amount_too_large"),
        ({"requested_quantity": None}, 400, "body_invalid"),
        ({"requested_amount": 8}, 400, "quantity_ambiguous"),
        ({"withdrawal_id": ""}, 400, "withdrawal_id_invalid"),
        ({"withdrawal_id": "w7"}, 400, "withdrawal_id_invalid"),
        ({"withdrawal_id": "a/b"}, 400, "withdrawal_id_invalid"),
        ({"withdrawal_id": "check"}, 400, "withdrawal_id_invalid"),
        ({"withdrawal_id": "."}, 400, "withdrawal_id_invalid"),
        ({"withdrawal_id": ".."}, 400, "withdrawal_id_invalid"),
        ({"withdrawal_id": "a\nb"}, 400, "withdrawal_id_invalid"),
        ({"withdrawal_id": "x" * 256}, 400, "body_invalid"),
        ({"expires_in_seconds": 0}, 400, "expiry_invalid"),
        ({"expires_in_seconds": "5"}, 400, "body_invalid"),
        ({"not_after": "2001-01-01T00:00:00Z"}, 409, "not_after_passed"),
        ({"idempotency_key": "settlement:7"}, 400, "idempotency_key_invalid"),
        ({"withdrawal_id": "kafka:7"}, 400, "withdrawal_id_invalid"),
    ],
    ids=str,
)
def test_withdrawal_that_is_wrong(
    still: Desk, change: dict[str, Any], status: int, code: str
) -> None:
    body = {**SEVEN, **change}
    assert still.code("POST", "/withdrawals", body) == (status, code)
    assert still.code("POST", "/withdrawals/check", body) == (status, code)
    assert still.table() == HUNDRED


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"token":"BTC"}'])
def test_withdrawal_that_is_unreadable(still: Desk, body: bytes) -> None:
    assert still.send("POST", "/withdrawals", body).status == 400
    assert still.send("POST", "/withdrawals/check", body).status == 400


def test_both_names_of_the_quantity_may_agree(desk: Desk) -> None:
    assert desk.withdraw("7.0", requested_amount=7)["held"] == "7"


def test_user_without_that_account_has_nothing(still: Desk) -> None:
    assert still.withdraw(1, "GC")["status"] == "INSUFFICIENT_BALANCE"


def test_refusal_names_the_withdrawals_that_hold_the_money(desk: Desk) -> None:
    for number in range(12):
        desk.withdraw(1, withdrawal_id=f"mine-{number}")
    refused = desk.withdraw(75)
    assert (refused["available"], refused["held"]) == ("69.807344", "12")
    assert refused["open_withdrawal_count"] == 12
    assert [one["withdrawal_id"] for one in refused["open_withdrawals"]] == [
        f"mine-{number}" for number in range(10)
    ]
    assert refused["open_withdrawals"][0]["quantity"] == "1"
    assert refused["open_withdrawals"][0]["accepted_at"].endswith("Z")


def test_replay_by_key_or_by_withdrawal_id(desk: Desk) -> None:
    first = desk.post("/withdrawals", SEVEN, key="k")
    assert "idempotent-replayed" not in first.headers
    again = desk.post("/withdrawals", SEVEN, key="k")
    assert (again.body, again.headers["idempotent-replayed"]) == (first.body, "true")
    body = {**SEVEN, "withdrawal_id": 4711}
    named = desk.post("/withdrawals", body)
    assert named.json["withdrawal_id"] == "4711"
    again = desk.post("/withdrawals", body)
    assert (again.body, again.headers["idempotent-replayed"]) == (named.body, "true")
    assert desk.code("POST", "/withdrawals", {**body, "requested_quantity": 8}) == (
        422,
        "key_reused",
    )
    assert desk.code("POST", "/withdrawals", body, "other") == (409, "withdrawal_id_taken")
    assert desk.table()["BTC"] == "67.807344"


def test_insufficient_balance_leaves_the_key_free(desk: Desk) -> None:
    assert desk.withdraw(82, withdrawal_id="a")["status"] == "INSUFFICIENT_BALANCE"
    body = {"debit_account": "world:BTC", "credit_account": "user:100:BTC", "asset": "BTC"}
    desk.post("/v1/transfers", {**body, "amount": "1"})
    assert desk.withdraw(82, withdrawal_id="a")["available"] == "0.807344"


# ── check ─────────────────────────────────────────────────────────────────────────


def test_check_holds_nothing(desk: Desk) -> None:
    before = desk.get("/v1/entries?order=newest&limit=1")
    answer = desk.ok("POST", "/withdrawals/check", {**SEVEN, "expires_in_seconds": 60})
    assert answer.pop("expires_at").startswith("2025-10-09T08:54:20")
    assert answer == {
        "status": "SUFFICIENT_BALANCE",
        "available": "74.807344",
        "held": "7",
        "requested_quantity": "7",
    }
    poor = {**SEVEN, "requested_quantity": 82}
    assert desk.ok("POST", "/withdrawals/check", poor)["status"] == "INSUFFICIENT_BALANCE"
    assert desk.get("/v1/entries?order=newest&limit=1") == before


def test_check_looks_at_headers_but_not_at_used_keys(desk: Desk) -> None:
    desk.ok("POST", "/withdrawals", SEVEN, key="k")
    other = {**SEVEN, "requested_quantity": 8}
    assert desk.code("POST", "/withdrawals", other, key="k") == (422, "key_reused")
    assert desk.ok("POST", "/withdrawals/check", other, key="k")["held"] == "15"
    late = desk.send("POST", "/withdrawals/check", SEVEN, {"Not-After": "2001-01-01T00:00:00Z"})
    assert (late.status, late.json["code"]) == (409, "not_after_passed")
    bad = "settlement:7"
    assert desk.code("POST", "/withdrawals/check", SEVEN, key=bad) == (
        400,
        "idempotency_key_invalid",
    )


def test_check_knows_modes_limits_and_taken_ids(desk: Desk) -> None:
    desk.withdraw(1, withdrawal_id="mine")
    taken = {**SEVEN, "withdrawal_id": "mine"}
    assert desk.code("POST", "/withdrawals/check", taken) == (409, "withdrawal_id_taken")
    desk.ok("PUT", "/limits", {"token": "BTC", "per_day": 7})
    assert desk.ok("POST", "/withdrawals/check", SEVEN)["status"] == "SUFFICIENT_BALANCE"
    desk.withdraw(1)
    assert desk.code("POST", "/withdrawals/check", SEVEN) == (409, "limit_reached")
    desk.ok("PUT", "/token-modes", {"mode": "halted"})
    assert desk.code("POST", "/withdrawals/check", SEVEN) == (409, "withdrawals_halted")


# ── one withdrawal, and a user's ──────────────────────────────────────────────────


def test_withdrawal_from_its_begin_to_its_settlement(desk: Desk) -> None:
    desk.withdraw(7, expires_in_seconds=3600)
    shown = desk.get("/withdrawals/w1")
    assert shown == {
        "withdrawal_id": "w1",
        "user_id": "100",
        "token": "BTC",
        "requested_quantity": "7",
        "status": "open",
        "accepted_at": shown["accepted_at"],
        "expires_at": shown["expires_at"],
    }
    assert shown["expires_at"] > shown["accepted_at"]
    desk.ok("POST", "/settlements", {**TRADE, "settlement_id": 5})
    ended = desk.get("/withdrawals/w1")
    assert ended.pop("ended_at") > ended["accepted_at"]
    assert desk.get(f"/v1/entries/{ended.pop('sequence')}")["command"] == "settle"
    assert ended == {
        **shown,
        "status": "settled",
        "settlement_id": "5",
        "sold_token": "BTC",
        "sold_quantity": "6.9",
        "bought_token": "ETH",
        "bought_quantity": "87.35",
        "released": "0.1",
        "shortage": "0",
    }


def test_withdrawal_that_is_not_there(desk: Desk) -> None:
    desk.withdraw(1, withdrawal_id="mine")
    desk.post("/v1/holds", {"account": "user:100:BTC", "asset": "BTC", "amount": "1"})
    for name in ("w1", "w2", "w3", "w0", "w" + "9" * 18, "other", "mine%20", "%00", "%F0%9F%92%B0"):
        assert desk.code("GET", f"/withdrawals/{name}") == (404, "withdrawal_not_found")
        assert desk.code("POST", f"/withdrawals/{name}/cancel") == (404, "withdrawal_not_found")
    assert desk.get("/withdrawals/mine")["status"] == "open"


def test_withdrawals_of_a_user(desk: Desk) -> None:
    desk.withdraw(1)
    desk.post("/v1/holds", {"account": "user:100:BTC", "asset": "BTC", "amount": "1"})
    desk.withdraw(2, "ETH")
    desk.withdraw(3, withdrawal_id="mine")
    desk.withdraw(4)
    desk.ok("POST", "/withdrawals/w1/cancel")

    def listed(query: str) -> list[str]:
        return [one["withdrawal_id"] for one in desk.get(f"/withdrawals?{query}")["data"]]

    assert listed("user_id=100") == ["w3", "mine", "w5"]
    assert listed("user_id=100&token=BTC") == ["mine", "w5"]
    assert listed("user_id=100&token=USD") == []
    first = desk.get("/withdrawals?user_id=100&limit=2")
    assert [one["withdrawal_id"] for one in first["data"]] == ["w3", "mine"]
    assert listed(f"user_id=100&limit=2&cursor={first['next_cursor']}") == ["w5"]
    assert desk.get("/withdrawals?user_id=100&limit=3")["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "user_id_missing"),
        ("user_id=9", 404, "user_not_found"),
        ("user_id=", 400, "user_id_invalid"),
        ("user_id=100&token=XYZ", 400, "token_unknown"),
        ("user_id=100&limit=0", 400, "limit_invalid"),
        ("user_id=100&cursor=x", 400, "cursor_invalid"),
    ],
)
def test_withdrawals_of_nobody(still: Desk, query: str, status: int, code: str) -> None:
    assert still.code("GET", f"/withdrawals?{query}") == (status, code)


def test_cancel(desk: Desk) -> None:
    desk.withdraw(7)
    answer = desk.ok("POST", "/withdrawals/w1/cancel", b"{}", "c")
    assert answer == {
        "withdrawal_id": "w1",
        "status": "cancelled",
        "available": "81.807344",
        "held": "0",
        "requested_quantity": "7",
    }
    again = desk.post("/withdrawals/w1/cancel", key="c")
    assert (again.json, again.headers["idempotent-replayed"]) == (answer, "true")
    assert desk.code("POST", "/withdrawals/w1/cancel") == (409, "withdrawal_cancelled")
    assert desk.code("POST", "/withdrawals/w1/cancel", {"a": 1}) == (409, "withdrawal_cancelled")
    assert desk.code("POST", "/withdrawals/w1/cancel", []) == (400, "body_invalid")
    past = {"not_after": "2001-01-01T00:00:00Z"}
    assert desk.code("POST", "/withdrawals/w1/cancel", past) == (409, "not_after_passed")
    shown = desk.get("/withdrawals/w1")
    assert shown["status"] == "cancelled"
    assert "sold_token" not in shown


def test_expiry_is_the_product_s_own(desk: Desk) -> None:
    desk.ok("PUT", "/limits", {"token": "BTC", "per_day": 7})
    desk.withdraw(7, expires_in_seconds=1)
    held = desk.post("/v1/holds", {"account": "user:100:BTC", "asset": "BTC", "amount": "1"})
    assert held.status == 201
    assert desk.code("POST", "/withdrawals", SEVEN) == (409, "limit_reached")
    desk.wait(2)
    for _ in range(1_000):
        if desk.get("/withdrawals/w1")["status"] == "expired":
            break
        threading.Event().wait(0.01)
    entry = desk.get(f"/v1/entries/{desk.get('/withdrawals/w1')['sequence']}")
    assert (entry["command"], entry["product"]) == ("expire_withdrawal", "withdrawals")
    assert [event["name"] for event in entry["events"]] == ["withdrawal_expired"]
    assert desk.withdraw(7)["status"] == "SUFFICIENT_BALANCE"
    assert desk.code("POST", "/withdrawals/w1/cancel") == (409, "withdrawal_expired")


# ── balances ──────────────────────────────────────────────────────────────────────


def test_balances_now_and_then(desk: Desk) -> None:
    desk.withdraw(7)
    now = desk.get("/users/100/balances")
    assert now["user_id"] == "100"
    assert now["balances"]["BTC"] == {"available": "74.807344", "held": "7", "posted": "81.807344"}
    withdrawn = desk.get("/withdrawals/w1")["accepted_at"]
    desk.wait(60)
    desk.ok("POST", "/settlements", {**TRADE, "sold_quantity": 90})
    after = desk.get("/users/100/balances")["balances"]
    assert after["BTC"] == {"available": "0", "held": "0", "posted": "0", "owed": "8.192656"}
    then = desk.get(f"/users/100/balances?as_of={withdrawn}")
    assert then == {**now, "as_of": withdrawn}
    settled = desk.get("/withdrawals/w1")["ended_at"]
    assert desk.get(f"/users/100/balances?as_of={settled}")["balances"] == after


def test_balances_before_the_user(desk: Desk) -> None:
    before = desk.get("/users/100/balances?as_of=2001-01-01T00:00:00Z")["balances"]
    assert {token: one["posted"] for token, one in before.items()} == dict.fromkeys(HUNDRED, "0")
    assert desk.code("GET", "/users/9/balances") == (404, "user_not_found")
    assert desk.code("GET", "/users/9/balances?as_of=2001-01-01T00:00:00Z") == (
        404,
        "user_not_found",
    )
    assert desk.code("GET", "/users/100/balances?as_of=then") == (400, "as_of_invalid")


@pytest.mark.parametrize(
    "moment",
    ["0001-01-01T00:00:00+14:00", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-01:00"],
)
def test_moment_that_its_offset_puts_out_of_range(still: Desk, moment: str) -> None:
    path = f"/users/100/balances?as_of={moment.replace('+', '%2B')}"
    assert still.code("GET", path) == (400, "as_of_invalid")
    late = {**SEVEN, "not_after": moment}
    assert still.code("POST", "/withdrawals", late) == (400, "not_after_invalid")
    assert still.code("POST", "/settlements", {**TRADE, "not_after": moment}) == (
        400,
        "not_after_invalid",
    )
    answer = still.send("POST", "/withdrawals", SEVEN, {"Not-After": moment})
    assert (answer.status, answer.json["code"]) == (400, "not_after_invalid")
    assert still.table() == HUNDRED


def test_balances_leave_out_what_is_closed(desk: Desk) -> None:
    assert desk.post("/v1/accounts/user:100:USD/close").status == 200
    assert "USD" not in desk.get("/users/100/balances")["balances"]


# ── settlements ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"user_id": 9}, 404, "user_not_found"),
        ({"user_id": None}, 400, "body_invalid"),
        ({"user_id": 100.0}, 400, "body_invalid"),
        ({"sold_token": "XYZ"}, 400, "token_unknown"),
        ({"sold_token": "ETH"}, 400, "same_token"),
        ({"sold_quantity": -1}, 400, "amount_not_positive"),
        ({"bought_quantity": "x"}, 400, "amount_invalid"),
        ({"bought_quantity": "1e-19"}, 400, "amount_too_fine"),
        ({"settlement_id": []}, 400, "body_invalid"),
        ({"settlement_id": ""}, 400, "body_invalid"),
        ({"settlement_id": "a\nb"}, 400, "body_invalid"),
        ({"settlement_id": "a\0"}, 400, "body_invalid"),
        ({"settlement_id": 10**255}, 400, "body_invalid"),
        ({"withdrawal_id": ""}, 400, "body_invalid"),
        ({"withdrawal_id": "w1\r"}, 400, "body_invalid"),
    ],
    ids=str,
)
def test_settlement_that_is_wrong(
    still: Desk, change: dict[str, Any], status: int, code: str
) -> None:
    assert still.code("POST", "/settlements", {**TRADE, **change}) == (status, code)
    assert still.table() == HUNDRED
    assert still.get("/dead-letters")["data"] == []


def test_settlement_tells_which_quantity_is_wrong(still: Desk) -> None:
    answer = still.post("/settlements", {**TRADE, "sold_quantity": "6,9"})
    assert answer.json["detail"] == "sold_quantity: '6,9' is not a plain decimal number"


def test_settlement_by_id_once_whichever_way(desk: Desk) -> None:
    desk.withdraw(7)
    body = {**TRADE, "settlement_id": "s-1"}
    first = desk.post("/settlements", body)
    for again in (desk.post("/settlements", body), desk.post("/settlements", body, key="s-1")):
        assert (again.body, again.headers["idempotent-replayed"]) == (first.body, "true")
    outcome = desk.message(json.dumps(body).encode())
    assert isinstance(outcome, Receipt)
    assert outcome.is_replayed
    assert desk.code("POST", "/settlements", body, "s-2") == (400, "idempotency_key_ambiguous")
    assert desk.table() == {**HUNDRED, "BTC": "74.907344", "ETH": "223.502897"}


def test_settlement_by_header_alone(desk: Desk) -> None:
    desk.withdraw(7)
    first = desk.post("/settlements", TRADE, key="h")
    assert first.json["result"] == "settled"
    assert desk.post("/settlements", TRADE, key="h").body == first.body
    assert desk.ok("POST", "/settlements", TRADE)["result"] == "unsolicited"


def test_settlement_of_a_withdrawal_that_has_ended(desk: Desk) -> None:
    desk.withdraw(7, withdrawal_id="a")
    named = {**TRADE, "withdrawal_id": "a"}
    assert desk.ok("POST", "/settlements", named)["withdrawal_id"] == "a"
    assert desk.ok("POST", "/settlements", named)["result"] == "duplicate"
    other = {**named, "sold_quantity": 1}
    assert desk.code("POST", "/settlements", other) == (409, "withdrawal_settled")
    desk.withdraw(7, withdrawal_id="b")
    desk.ok("POST", "/withdrawals/b/cancel")
    cancelled = {**TRADE, "withdrawal_id": "b"}
    assert desk.code("POST", "/settlements", cancelled) == (409, "withdrawal_cancelled")


def test_second_part_is_booked_under_a_name_that_nobody_has(desk: Desk) -> None:
    """The recipe of the documentation for letters of withdrawals that are settled."""
    desk.withdraw(7, withdrawal_id="order-17")
    desk.withdraw(3, withdrawal_id="order-18")
    part = {**TRADE, "withdrawal_id": "order-17", "settlement_id": "p-1", "sold_quantity": 4}
    assert desk.ok("POST", "/settlements", part)["released"] == "3"
    second = {**part, "settlement_id": "p-2", "sold_quantity": 3}
    desk.message(json.dumps(second).encode())
    place = "/dead-letters/withdrawals-1"
    assert desk.get(place)["reason"] == "withdrawal_settled"
    assert desk.code("POST", f"{place}/replay") == (409, "withdrawal_settled")
    booked = desk.ok("POST", "/settlements", {**second, "withdrawal_id": "order-17-part-2"})
    assert (booked["result"], booked["sold_available"]) == ("unsolicited", "71.807344")
    assert desk.ok("POST", f"{place}/close", {"note": "booked"})["state"] == "closed"
    assert desk.get("/withdrawals/order-18")["status"] == "open"


def test_limits_of_zero_stop_one_user(desk: Desk) -> None:
    desk.ok("PUT", "/limits", {"token": "BTC", "user_id": 100, "per_withdrawal": 0})
    tiny = {**SEVEN, "requested_quantity": "0.000001"}
    assert desk.code("POST", "/withdrawals", tiny) == (409, "limit_reached")


def test_settlement_of_nothing_cancels(desk: Desk) -> None:
    desk.withdraw(7)
    nothing = {**TRADE, "sold_quantity": 0, "bought_quantity": 0}
    assert desk.ok("POST", "/settlements", nothing)["result"] == "cancelled"
    shown = desk.get("/withdrawals/w1")
    assert (shown["status"], shown["sold_quantity"]) == ("cancelled", "0")


def test_deficits(desk: Desk) -> None:
    assert desk.get("/deficits") == {"data": [], "next_cursor": None}
    answer = desk.ok("POST", "/settlements", {**TRADE, "sold_quantity": 82})
    assert (answer["result"], answer["shortage"]) == ("unsolicited", "0.192656")
    owed = [{"user_id": "100", "token": "BTC", "owed": "0.192656"}]
    assert desk.get("/deficits")["data"] == owed
    assert desk.get("/deficits?token=BTC")["data"] == owed
    assert desk.get("/deficits?token=ETH")["data"] == []
    assert desk.get("/deficits?limit=1")["next_cursor"] is not None
    assert desk.code("GET", "/deficits?token=XYZ") == (400, "token_unknown")
    back = {**TRADE, "sold_token": "ETH", "bought_token": "BTC", "bought_quantity": 1}
    desk.ok("POST", "/settlements", back)
    assert desk.get("/deficits")["data"] == []
    assert desk.table()["BTC"] == "0.807344"


# ── limits and modes ──────────────────────────────────────────────────────────────


def test_limits(desk: Desk) -> None:
    assert desk.get("/limits") == {"user_id": None, "limits": []}
    answer = desk.ok("PUT", "/limits", {"token": "BTC", "per_withdrawal": 5, "per_day": "8.0"})
    shown = {"token": "BTC", "per_withdrawal": "5", "per_day": "8"}
    assert answer == {"user_id": None, **shown}
    assert desk.get("/limits") == {"user_id": None, "limits": [shown]}
    refused = desk.post("/withdrawals", {**SEVEN, "requested_quantity": 6})
    assert (refused.status, refused.json["code"]) == (409, "limit_reached")
    assert refused.json["figures"]["maximum"] == "5"
    desk.withdraw(5)
    refused = desk.post("/withdrawals", {**SEVEN, "requested_quantity": 4})
    assert refused.json["figures"]["used"] == "5"
    own = {"token": "BTC", "user_id": 100, "per_withdrawal": 9, "per_day": 99}
    assert desk.ok("PUT", "/limits", own)["user_id"] == "100"
    assert desk.get("/limits?user_id=100")["limits"][0]["per_day"] == "99"
    desk.withdraw(9)
    desk.ok("PUT", "/limits", {"token": "BTC", "user_id": 100, "per_withdrawal": None})
    of_user = desk.get("/limits?user_id=100")
    assert (of_user["limits"], of_user["effective"]) == ([], [shown])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"token": "BTC"}, 400, "body_invalid"),
        ({"token": "XYZ", "per_day": 1}, 400, "token_unknown"),
        ({"token": "BTC", "per_day": -1}, 400, "amount_not_positive"),
        ({"token": "BTC", "per_day": 1, "user_id": 9}, 404, "user_not_found"),
        ({"token": "BTC", "per_day": 1, "user_id": ""}, 400, "user_id_invalid"),
        ({"token": "BTC", "per_day": []}, 400, "body_invalid"),
    ],
    ids=str,
)
def test_limits_that_are_wrong(still: Desk, body: Any, status: int, code: str) -> None:
    assert still.code("PUT", "/limits", body) == (status, code)
    assert still.get("/limits")["limits"] == []


def test_limits_of_nobody(still: Desk) -> None:
    assert still.code("GET", "/limits?user_id=9") == (404, "user_not_found")


def test_modes(desk: Desk) -> None:
    assert desk.get("/token-modes") == {"mode": "active", "tokens": {}}
    desk.withdraw(1)
    desk.withdraw(1)
    assert desk.ok("PUT", "/token-modes", {"token": "BTC", "mode": "reducing"}) == {
        "token": "BTC",
        "mode": "reducing",
    }
    assert desk.get("/token-modes") == {"mode": "active", "tokens": {"BTC": "reducing"}}
    assert desk.code("POST", "/withdrawals", SEVEN) == (409, "withdrawals_reducing")
    desk.withdraw(1, "ETH")
    desk.ok("POST", "/withdrawals/w1/cancel")
    assert desk.ok("PUT", "/token-modes", {"mode": "halted"}) == {"token": None, "mode": "halted"}
    assert desk.code("POST", "/withdrawals/w2/cancel") == (409, "withdrawals_halted")
    assert desk.ok("POST", "/settlements", TRADE)["result"] == "settled"
    assert desk.code("PUT", "/token-modes", {"mode": "closed"}) == (400, "body_invalid")
    assert desk.code("PUT", "/token-modes", {"token": "X", "mode": "halted"}) == (
        400,
        "token_unknown",
    )


# ── for those who run it ──────────────────────────────────────────────────────────


def test_cache(desk: Desk) -> None:
    desk.withdraw(1)
    figures = desk.get("/cache")
    assert (figures["limit"], figures["resident"], figures["pinned"]) == (10_000, 1, 1)
    assert set(figures) == {
        "limit", "resident", "guests", "pinned", "ghosts", "loading", "most", "hits", "misses",
        "evictions", "hit_ratios",
    }  # fmt: skip
    assert set(figures["hit_ratios"]) == {"last_1000", "last_10000", "last_100000"}
    text = desk.send("GET", "/metrics").body.decode()
    assert "pennyweight_cache_users 1.0" in text
    assert "pennyweight_cache_pinned 1.0" in text


def test_metrics_count_what_became_of_it(desk: Desk) -> None:
    desk.withdraw(7, withdrawal_id="a")
    desk.withdraw(7, withdrawal_id="a")
    desk.withdraw(250, "USD")
    desk.code("POST", "/withdrawals", {**SEVEN, "user_id": 9})
    desk.ok("POST", "/withdrawals/a/cancel")
    desk.ok("POST", "/settlements", {**TRADE, "sold_quantity": 82})
    desk.code("POST", "/settlements", {**TRADE, "withdrawal_id": "a"})
    desk.message(b"{}", 0)
    desk.message(json.dumps({**TRADE, "user_id": 9}).encode(), 1)
    desk.ok("POST", "/dead-letters/withdrawals-1/close")
    for _ in range(100):
        text = desk.send("GET", "/metrics").body.decode()
        if 'dead_letters_ended_total{state="closed"}' in text:
            break
    for line in (
        'withdrawals_total{status="accepted"} 1.0',
        'withdrawals_total{status="insufficient"} 1.0',
        'withdrawals_total{status="refused"} 1.0',
        'withdrawals_total{status="cancelled"} 1.0',
        'settlements_total{result="unsolicited"} 1.0',
        'settlements_total{result="refused"} 1.0',
        'deficits_total{token="BTC"} 1.0',
        'dead_letters_total{reason="message_invalid"} 1.0',
        'dead_letters_total{reason="user_not_found"} 1.0',
        'dead_letters_ended_total{state="closed"} 1.0',
    ):
        assert f"pennyweight_{line}" in text


def test_deficit_is_an_alert(desk: Desk) -> None:
    with structlog.testing.capture_logs() as logs:
        desk.ok("POST", "/settlements", {**TRADE, "sold_quantity": 82, "settlement_id": 7})
        for _ in range(1_000):
            if logs:
                break
            threading.Event().wait(0.01)
    assert (
        logs[0].items()
        >= {
            "event": "deficit",
            "log_level": "warning",
            "user_id": "100",
            "token": "BTC",
            "shortage": "0.192656",
            "owed": "0.192656",
            "settlement_id": "7",
        }.items()
    )


def test_book_is_proven(desk: Desk) -> None:
    desk.withdraw(7, withdrawal_id="a")
    desk.ok("POST", "/settlements", {**TRADE, "sold_quantity": 90})
    desk.message(b"{}", 0)
    desk.ok("POST", "/dead-letters/withdrawals-1/close")
    desk.ok("PUT", "/token-modes", {"mode": "halted"})
    desk.post("/v1/verify")
    for _ in range(500):
        proof = desk.get("/v1/verify")
        if proof["state"] != "running":
            break
    assert proof["report"]["ok"], proof

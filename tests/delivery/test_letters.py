"""The face of dead letters over HTTP: those of all products listed, shown, replayed, closed."""

import base64
import json
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from pennyweight.delivery.letters import HANDLINGS, RESERVED_PREFIXES, product_of
from pennyweight.engine.engine import Lane, Submission
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import CursorMove
from pennyweight.ledger.letters import Message
from pennyweight.ledger.refusals import Refused
from pennyweight.products.portfolios.setup import CreatePortfolio
from served import Served

TRADE = {
    "user_id": "100",
    "bought_token": "ETH",
    "bought_quantity": "87.35",
    "sold_token": "BTC",
    "sold_quantity": "6.9",
}
TARGET = {"stocks": "60", "bonds": "30", "gold": "10"}
UPDATE = {"user_id": "1", "new_allocation": {"stocks": 70, "bonds": 20, "gold": 10}}
TOPICS = {"withdrawals": "settlements", "portfolios": "rebalance"}


class Came(msgspec.Struct):
    value: bytes | None
    default_key: str


class Desk(Served):
    """A served book that takes messages of both topics as the reader of Kafka does."""

    def __init__(self) -> None:
        super().__init__()
        self._offsets = dict.fromkeys(TOPICS, 0)

    def settlement(self, value: bytes | dict[str, Any] | None) -> Outcome:
        return self._message("withdrawals", value)

    def update(self, value: bytes | dict[str, Any] | None) -> Outcome:
        return self._message("portfolios", value)

    def _message(self, product: str, value: bytes | dict[str, Any] | None) -> Outcome:
        content = json.dumps(value).encode() if isinstance(value, dict) else value
        offset, handling = self._offsets[product], HANDLINGS[product]
        self._offsets[product] = offset + 1
        place = f"kafka:{TOPICS[product]}"

        def aside(refused: Refused) -> Command:
            payload = base64.b64encode(content or b"").decode()
            headers = (("source", base64.b64encode(b"desk-1").decode()), ("raw", "/w=="))
            letter = Message(TOPICS[product], 0, offset, payload, "MTAw", headers)
            return handling.set_aside(letter, refused.reason.code, refused.message)

        try:
            submission = handling.read(Came(content, f"{place}/{offset}"))
        except Refused as refused:
            submission = Submission(aside(refused))
        submission.cursor = CursorMove(place, offset, offset + 1)
        submission.aside, submission.lane = aside, Lane.INBOUND
        outcome = self.decide(submission)
        assert isinstance(outcome, Receipt), outcome
        return outcome

    def decide(self, submission: Submission) -> Outcome:
        done = threading.Event()
        found: list[Outcome] = []
        submission.ticket = lambda outcome: (found.append(outcome), done.set())
        self.book.submit(submission)
        assert done.wait(10)
        return found[0]

    def create(self, user: str) -> None:
        assert isinstance(self.decide(Submission(CreatePortfolio(user, TARGET))), Receipt)

    def ok(self, method: str, path: str, body: Any = None, key: str = "") -> Any:
        answer = self.send(method, path, body, {"Idempotency-Key": key} if key else None)
        assert answer.status == 200, answer
        return answer.json

    def code(self, method: str, path: str, body: Any = None, key: str = "") -> tuple[int, str]:
        """Return status and code of a problem document."""
        answer = self.send(method, path, body, {"Idempotency-Key": key} if key else None)
        assert answer.headers["content-type"] == "application/problem+json", answer
        return answer.status, answer.json["code"]

    def listed(self, query: str = "") -> list[str]:
        return [one["id"] for one in self.get(f"/dead-letters?{query}")["data"]]

    def table(self, user: str) -> dict[str, str]:
        balances = self.get(f"/users/{user}/balances")["balances"]
        return {token: found["available"] for token, found in balances.items()}


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Desk() as desk:
        yield desk


# ── what is set aside ─────────────────────────────────────────────────────────────

BAD_SETTLEMENTS = [
    (None, "message_malformed", "the message has no value (a tombstone)"),
    (b"", "message_malformed", "Input data was truncated"),
    (
        "{ “user_id”:”100” }".encode(),
        "message_malformed",
        "JSON is malformed: object keys must be strings (byte 2)",
    ),
    (b"\xff", "message_malformed", "JSON is malformed: invalid character (byte 0)"),
    (b"[1]", "message_invalid", "Expected `object`, got `array`"),
    (b"{}", "message_invalid", "Object missing required field `user_id`"),
    (
        {**TRADE, "user_id": 1.5},
        "message_invalid",
        "Expected `int | str`, got `float` - at `$.user_id`",
    ),
    (
        {**TRADE, "sold_quantity": "-1"},
        "amount_not_positive",
        "sold_quantity: an amount may not be negative here",
    ),
    ({**TRADE, "user_id": 9}, "user_not_found", "there is no user '9'"),
    (
        {**TRADE, "settlement_id": ""},
        "message_invalid",
        "settlement_id: an id has 1 to 255 printable characters",
    ),
    (
        {**TRADE, "withdrawal_id": "a\0"},
        "message_invalid",
        "withdrawal_id: an id has 1 to 255 printable characters",
    ),
]


def test_letters_of_what_is_no_settlement(desk: Desk) -> None:
    for value, _, _ in BAD_SETTLEMENTS:
        desk.settlement(value)
    page = desk.get("/dead-letters")
    found = [(one["reason"], one["detail"]) for one in page["data"]]
    assert found == [bad[1:] for bad in BAD_SETTLEMENTS]
    assert [one["offset"] for one in page["data"]] == list(range(len(BAD_SETTLEMENTS)))
    assert {one["product"] for one in page["data"]} == {"withdrawals"}
    assert "payload" not in page["data"][0]


def test_letters_of_what_is_no_update(desk: Desk) -> None:
    desk.create("1")
    bad = [
        (None, "message_malformed"),
        (b"not JSON", "message_malformed"),
        (b"[1]", "message_invalid"),
        ({**UPDATE, "new_allocation": {"stocks": 70, "bonds": 29}}, "allocation_invalid"),
        ({**UPDATE, "user_id": "9"}, "portfolio_not_found"),
        ({**UPDATE, "as_of": "2999-01-01T00:00:00Z"}, "as_of_in_future"),
    ]
    for value, _ in bad:
        desk.update(value)
    page = desk.get("/dead-letters")
    assert [one["reason"] for one in page["data"]] == [reason for _, reason in bad]
    assert {(one["product"], one["topic"]) for one in page["data"]} == {("portfolios", "rebalance")}


def test_letter_shows_its_message(desk: Desk) -> None:
    desk.settlement("{ “user_id” }".encode())
    desk.update(b"\xff")
    shown = desk.get("/dead-letters/withdrawals-1")
    assert shown.pop("set_aside_at").endswith("Z")
    assert shown == {
        "id": "withdrawals-1",
        "product": "withdrawals",
        "topic": "settlements",
        "partition": 0,
        "offset": 0,
        "reason": "message_malformed",
        "detail": "JSON is malformed: object keys must be strings (byte 2)",
        "state": "open",
        "key": "100",
        "payload": "{ “user_id” }",
        "headers": [{"name": "source", "value": "desk-1"}, {"name": "raw", "value_base64": "/w=="}],
    }
    raw = desk.get("/dead-letters/portfolios-2")
    assert (raw["product"], raw["payload_base64"]) == ("portfolios", "/w==")
    assert "payload" not in raw
    for missing in ("portfolios-1", "withdrawals-3", "x"):
        assert desk.code("GET", f"/dead-letters/{missing}") == (404, "dead_letter_not_found")


# ── the list ──────────────────────────────────────────────────────────────────────


def test_letters_of_all_products_are_listed_by_number(desk: Desk) -> None:
    for number in range(1, 13):
        (desk.update if number % 3 == 0 else desk.settlement)(b"[]" if number % 2 else b"")
    names = [
        f"{'portfolios' if number % 3 == 0 else 'withdrawals'}-{number}" for number in range(1, 13)
    ]
    desk.ok("POST", "/dead-letters/withdrawals-2/close")
    assert desk.listed() == names
    assert desk.listed("state=open") == [names[0], *names[2:]]
    assert desk.listed("state=closed") == ["withdrawals-2"]
    assert desk.listed("state=replayed") == []
    assert desk.listed("product=portfolios") == [f"portfolios-{n}" for n in (3, 6, 9, 12)]
    assert desk.listed("product=portfolios&reason=message_invalid") == [
        "portfolios-3",
        "portfolios-9",
    ]
    assert desk.listed("product=withdrawals&state=open&limit=2") == [
        "withdrawals-1",
        "withdrawals-4",
    ]


def test_letters_are_listed_page_by_page(desk: Desk) -> None:
    for number in range(12):
        (desk.update if number % 2 else desk.settlement)(b"")
    desk.ok("POST", "/dead-letters/portfolios-4/close")
    for query in ("", "product=portfolios&", "state=open&"):
        whole, found, cursor = desk.listed(query), [], "0"
        while cursor is not None:
            page = desk.get(f"/dead-letters?{query}limit=5&cursor={cursor}")
            found += [one["id"] for one in page["data"]]
            cursor = page["next_cursor"]
        assert found == whole
    assert desk.get("/dead-letters?limit=12")["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("state=dead", "state_invalid"),
        ("product=loans", "product_invalid"),
        ("limit=0", "limit_invalid"),
        ("cursor=x", "cursor_invalid"),
    ],
)
def test_query_that_is_wrong(desk: Desk, query: str, code: str) -> None:
    assert desk.code("GET", f"/dead-letters?{query}") == (400, code)


# ── replaying ─────────────────────────────────────────────────────────────────────


def test_settlement_is_replayed_when_the_wrong_is_put_right(desk: Desk) -> None:
    desk.settlement({**TRADE, "user_id": 7, "settlement_id": "s"})
    replay = "/dead-letters/withdrawals-1/replay"
    assert desk.code("POST", replay) == (404, "user_not_found")
    assert desk.get("/dead-letters/withdrawals-1")["state"] == "open"
    desk.fund("7", asset="BTC")
    assert desk.ok("POST", replay)["result"] == "unsolicited"
    again = desk.send("POST", replay)
    assert (again.status, again.headers["idempotent-replayed"]) == (200, "true")
    assert desk.table("7") == {"BTC": "93.1", "ETH": "87.35"}
    shown = desk.get("/dead-letters/withdrawals-1")
    assert shown["state"] == "replayed"
    assert desk.get(f"/v1/entries/{shown['closed_in']}")["command"] == "replay_settlement"
    assert desk.code("POST", "/dead-letters/withdrawals-1/close") == (409, "dead_letter_closed")


def test_update_is_replayed_when_the_portfolio_is_there(desk: Desk) -> None:
    known = {**UPDATE, "request_id": "r"}
    desk.update(known)
    replay = "/dead-letters/portfolios-1/replay"
    assert desk.code("POST", replay) == (404, "portfolio_not_found")
    assert desk.get("/dead-letters/portfolios-1")["state"] == "open"
    desk.create("1")
    answer = desk.post(replay)
    shown = desk.get("/dead-letters/portfolios-1")
    assert answer.json == {
        "result": "rebalanced",
        "user_id": "1",
        "run": shown["closed_in"],
        "transaction_count": 2,
    }
    assert shown["state"] == "replayed"
    assert desk.get(f"/v1/entries/{shown['closed_in']}")["command"] == "replay_update"
    again = desk.post(replay)
    assert (again.body, again.headers["idempotent-replayed"]) == (answer.body, "true")
    outcome = desk.update(known)
    assert isinstance(outcome, Receipt)
    assert outcome.is_replayed
    assert desk.listed("state=open") == []


def test_update_that_is_outdated_by_then_changes_nothing(desk: Desk) -> None:
    desk.update({**UPDATE, "as_of": "2020-01-01T00:00:00Z"})
    desk.create("1")
    desk.update({**UPDATE, "as_of": "2020-01-01T00:00:01Z"})
    replayed = desk.ok("POST", "/dead-letters/portfolios-1/replay")
    assert replayed == {
        "result": "outdated",
        "user_id": "1",
        "run": None,
        "transaction_count": 0,
    }
    assert desk.get("/dead-letters/portfolios-1")["state"] == "replayed"


@pytest.mark.parametrize("product", ["withdrawals", "portfolios"])
def test_letter_without_an_id_is_replayed_once(desk: Desk, product: str) -> None:
    if product == "withdrawals":
        desk.settlement({**TRADE, "user_id": 7})
        desk.fund("7", asset="BTC")
    else:
        desk.update(UPDATE)
        desk.create("1")
    replay = f"/dead-letters/{product}-1/replay"
    assert desk.ok("POST", replay)["result"] in {"unsolicited", "rebalanced"}
    assert desk.code("POST", replay) == (409, "dead_letter_closed")


@pytest.mark.parametrize("product", ["withdrawals", "portfolios"])
def test_letter_without_an_id_is_replayed_under_the_callers_key(desk: Desk, product: str) -> None:
    if product == "withdrawals":
        desk.settlement({**TRADE, "user_id": 7})
        desk.fund("7", asset="BTC")
    else:
        desk.update(UPDATE)
        desk.create("1")
    replay = f"/dead-letters/{product}-1/replay"
    first = desk.post(replay, key="mine")
    again = desk.post(replay, key="mine")
    assert (again.body, again.headers["idempotent-replayed"]) == (first.body, "true")


def test_letter_that_is_still_bad_stays_open(desk: Desk) -> None:
    for take in (desk.settlement, desk.update):
        take(b"{}")
        take(None)
    codes = {
        "withdrawals-1": "message_invalid",
        "withdrawals-2": "message_malformed",
        "portfolios-3": "message_invalid",
        "portfolios-4": "message_malformed",
    }
    for letter, code in codes.items():
        place = f"/dead-letters/{letter}"
        assert desk.code("POST", f"{place}/replay") == (400, code)
        assert desk.get(place)["state"] == "open"
    replay = "/dead-letters/withdrawals-1/replay"
    assert desk.code("POST", replay, []) == (400, "body_invalid")
    for other in ("other-1", "portfolios-1", "withdrawals-3"):
        missing = desk.code("POST", f"/dead-letters/{other}/replay")
        assert missing == (404, "dead_letter_not_found")


def test_keys_of_messages_are_not_given_away(desk: Desk) -> None:
    desk.settlement(b"{}")
    desk.update(UPDATE)
    desk.create("1")
    for prefix in RESERVED_PREFIXES:
        for place in ("withdrawals-1/close", "portfolios-2/close", "portfolios-2/replay"):
            refused = desk.code("POST", f"/dead-letters/{place}", key=f"{prefix}x")
            assert refused == (400, "idempotency_key_invalid")
    assert desk.listed("state=open") == ["withdrawals-1", "portfolios-2"]


# ── closing ───────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("product", ["withdrawals", "portfolios"])
def test_letter_is_closed_with_a_note(desk: Desk, product: str) -> None:
    (desk.settlement if product == "withdrawals" else desk.update)(b"{}")
    place = f"/dead-letters/{product}-1"
    assert desk.code("POST", f"{place}/close", {"note": 1}) == (400, "body_invalid")
    closed = desk.ok("POST", f"{place}/close", {"note": "a test of theirs"})
    assert closed == {"id": f"{product}-1", "state": "closed"}
    shown = desk.get(place)
    assert (shown["state"], shown["note"]) == ("closed", "a test of theirs")
    assert desk.code("POST", f"{place}/close") == (409, "dead_letter_closed")
    assert desk.code("POST", f"{place}/replay") == (409, "dead_letter_closed")
    for other in ("x", "x-1", f"{product}-2", f"{product}-", "%F0%9F%92%A9"):
        missing = desk.code("POST", f"/dead-letters/{other}/close")
        assert missing == (404, "dead_letter_not_found")


# ── for those who run it ──────────────────────────────────────────────────────────


def test_metrics_count_the_letters_of_all_products(desk: Desk) -> None:
    desk.settlement(b"{}")
    desk.settlement({**TRADE, "user_id": 9})
    desk.update(b"{}")
    desk.update(UPDATE)
    desk.create("1")
    desk.ok("POST", "/dead-letters/portfolios-4/replay")
    desk.ok("POST", "/dead-letters/withdrawals-1/close")
    desk.ok("POST", "/dead-letters/portfolios-3/close")
    for _ in range(100):
        text = desk.send("GET", "/metrics").body.decode()
        if 'dead_letters_ended_total{state="closed"} 2.0' in text:
            break
    for line in (
        'dead_letters_total{reason="message_invalid"} 2.0',
        'dead_letters_total{reason="user_not_found"} 1.0',
        'dead_letters_total{reason="portfolio_not_found"} 1.0',
        'dead_letters_ended_total{state="replayed"} 1.0',
        'dead_letters_ended_total{state="closed"} 2.0',
    ):
        assert f"pennyweight_{line}" in text


# ── the table ─────────────────────────────────────────────────────────────────────


def test_table_names_the_product_of_each_command() -> None:
    for product, handling in HANDLINGS.items():
        for make in (handling.set_aside, handling.replay, handling.close):
            assert isinstance(make, type)
            assert (make.product, issubclass(make, Command)) == (product, True)
        assert product_of(f"{product}-12") == product
    assert [product_of(name) for name in ("loans-1", "withdrawals", "-1", "")] == [""] * 4

"""`pennyweight serve --kafka`: settlements in, events and dead letters out, beside HTTP."""

import http.client
import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from brokers import MockBroker, read_topic, send
from pennyweight.assemble import answers, invariants, open_inline, open_reader
from pennyweight.config import Config
from pennyweight.engine.verification import verify
from pennyweight.ledger.entries import decode_entry
from pennyweight.products.general import LoadBalances
from served_process import serving

SETTLEMENTS = "risk-engine-settlements"
LETTERS = "risk-engine-settlements.dead-letters"
EVENTS = "risk-engine-events"

TOKENS = ("USD", "EUR", "BTC", "BCH", "ETH")
USERS = {
    "100": ("0", "3128.39", "81.807344", "68.653219", "136.152897"),
    "101": ("250", "10", "1", "1", "1"),
}

SETTLEMENT = b"""{ "user_id":"100",
"bought_token":"ETH", "bought_quantity":"87.35",
"sold_token":"BTC", "sold_quantity":"6.9" }"""
"""The seed's message, as the JSON that it means to be."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    json: Any


class Desk:
    """A served book, as its callers see it, and the broker beside it."""

    def __init__(self, server: subprocess.Popen[str], broker: MockBroker | None) -> None:
        self.server = server
        self.broker = broker
        self._port = int(server.address.rpartition(":")[2])  # type: ignore[attr-defined]

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=20)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            content = response.read()
            is_json = "json" in response.headers["Content-Type"]
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, headers, json.loads(content) if is_json else content)
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        answer = self.ask("GET", path)
        assert answer.status == 200, answer
        return answer.json

    def withdraw(self, user: str, token: str, quantity: str) -> Any:
        body = {"user_id": user, "token": token, "requested_quantity": quantity}
        answer = self.ask("POST", "/withdrawals", body)
        assert answer.status == 200, answer
        return answer.json

    def table(self, user: str) -> tuple[str, ...]:
        """What is available of each token, as the seed prints it."""
        balances = self.get(f"/users/{user}/balances")["balances"]
        return tuple(balances[token]["available"] for token in TOKENS)

    def tell(self, *values: bytes | None, key: bytes = b"100", partition: int = 0) -> None:
        assert self.broker is not None
        send(self.broker.address, SETTLEMENTS, [(partition, key, value) for value in values])

    def messages(self, what: str) -> int:
        """How many messages were booked, replayed, set aside, since the server started."""
        text = self.get("/metrics").decode()
        found = re.search(
            rf'^pennyweight_kafka_messages_total{{what="{what}"}} (\S+)', text, re.MULTILINE
        )
        assert found
        return int(float(found[1]))

    def heard(self, topic: str, count: int) -> list[Any]:
        """Wait until a topic has so many messages, and return all that it has."""
        broker = self.broker
        assert broker is not None
        found: list[Any] = []

        def have_come() -> bool:
            found[:] = [m for part in read_topic(broker.address, topic) for m in part]
            return len(found) >= count

        wait_for(have_come)
        return found

    def stop(self) -> int:
        self.server.send_signal(signal.SIGTERM)
        return self.server.wait(20)


def wait_for(is_so: Callable[[], Any], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


def settlement(user: str = "101", sold: str = "1", **more: str) -> bytes:
    trade = {"bought_token": "ETH", "bought_quantity": "2", "sold_token": "BTC"}
    return json.dumps({"user_id": user, "sold_quantity": sold, **trade, **more}).encode()


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a book of two users, the seed's among them."""
    for name in [*os.environ]:
        if name.startswith("PENNYWEIGHT_") or name == "KAFKA_BROKER":
            monkeypatch.delenv(name)
    with open_inline(tmp_path, Config()) as inline:
        for user, amounts in USERS.items():
            inline.execute(LoadBalances(user, tuple(zip(TOKENS, amounts, strict=True))))
    return tmp_path


@contextmanager
def desk_on(folder: Path, broker: MockBroker) -> Iterator[Desk]:
    words = ("--users-in-memory", "300", "--kafka", broker.address)
    with serving(folder, *words) as server:
        yield Desk(server, broker)


@pytest.fixture
def desk(book: Path, mock_broker: MockBroker) -> Iterator[Desk]:
    with desk_on(book, mock_broker) as desk:
        yield desk


def test_the_seeds_example_runs_as_it_is_printed(desk: Desk) -> None:
    assert desk.table("100") == ("0", "3128.39", "81.807344", "68.653219", "136.152897")
    assert desk.withdraw("100", "USD", "250")["status"] == "INSUFFICIENT_BALANCE"
    accepted = desk.withdraw("100", "BTC", "7")
    assert (accepted["status"], accepted["withdrawal_id"]) == ("SUFFICIENT_BALANCE", "w1")
    assert desk.table("100") == ("0", "3128.39", "74.807344", "68.653219", "136.152897")
    desk.tell(SETTLEMENT)
    wait_for(lambda: desk.messages("booked") == 1)
    assert desk.table("100") == ("0", "3128.39", "74.907344", "68.653219", "223.502897")
    shown = desk.get("/withdrawals/w1")
    assert (shown["status"], shown["sold_quantity"], shown["released"]) == ("settled", "6.9", "0.1")

    first, second = desk.heard(EVENTS, 2)
    assert (first.key(), second.key()) == (b"100", b"100")
    accepted, settled = json.loads(first.value()), json.loads(second.value())
    assert [accepted["event"], settled["event"]] == ["withdrawal_accepted", "withdrawal_settled"]
    assert accepted["data"] == {
        "user_id": "100",
        "withdrawal_id": "w1",
        "token": "BTC",
        "quantity": "7",
    }
    assert settled["data"] == {**json.loads(SETTLEMENT), "withdrawal_id": "w1"}
    ids = [event["id"].split(".") for event in (accepted, settled)]
    assert ids[0][0] == ids[1][0]
    assert [place for _, _, place in ids] == ["0", "0"]
    assert int(ids[0][1]) < int(ids[1][1]) == shown["sequence"]
    assert dict(first.headers())["id"].decode() == accepted["id"]


def test_what_cannot_be_taken_is_set_aside_and_can_be_replayed_once(desk: Desk) -> None:
    rubbish = "{ “user_id”:”100”, “bought_token”:”ETH” }".encode()
    stranger = settlement("777", settlement_id="s-777")
    desk.tell(rubbish, None, stranger, partition=2)
    desk.tell(settlement("101", "-1"), settlement("101", bought_token="DOGE"), partition=3)
    wait_for(lambda: desk.messages("set_aside") == 5)
    letters = desk.get("/dead-letters")["data"]
    assert {(one["partition"], one["offset"]): one["reason"] for one in letters} == {
        (2, 0): "message_malformed",
        (2, 1): "message_malformed",
        (2, 2): "user_not_found",
        (3, 0): "amount_not_positive",
        (3, 1): "token_unknown",
    }
    sent = {
        (headers["origin-partition"], headers["origin-offset"]): (message, headers)
        for message in desk.heard(LETTERS, 5)
        for headers in [dict(message.headers())]
    }
    assert len(sent) == 5
    message, headers = sent[b"2", b"0"]
    assert (message.key(), message.value()) == (b"100", rubbish)
    assert (headers["error"], headers["origin-topic"]) == (
        b"message_malformed",
        SETTLEMENTS.encode(),
    )
    message, headers = sent[b"2", b"2"]
    assert (message.value(), headers["error"]) == (stranger, b"user_not_found")
    assert headers["error-detail"] == b"there is no user '777'"

    letter = headers["letter"].decode()
    assert desk.ask("POST", f"/dead-letters/{letter}/replay").status == 404
    assert desk.get(f"/dead-letters/{letter}")["state"] == "open"
    account = {"id": "user:777:BTC"}
    assert desk.ask("POST", "/v1/accounts", account).status == 201
    answer = desk.ask("POST", f"/dead-letters/{letter}/replay")
    assert (answer.status, answer.json["result"]) == (200, "unsolicited")
    assert desk.get(f"/dead-letters/{letter}")["state"] == "replayed"
    desk.tell(stranger, partition=2)
    wait_for(lambda: desk.messages("replayed") == 1)
    again = desk.ask("POST", f"/dead-letters/{letter}/replay")
    assert (again.status, again.headers.get("idempotent-replayed")) == (200, "true")
    balances = desk.get("/users/777/balances")["balances"]
    assert (balances["BTC"]["owed"], balances["ETH"]["posted"]) == ("1", "2")
    assert desk.get("/deficits")["data"] == [{"user_id": "777", "token": "BTC", "owed": "1"}]
    assert len(desk.get("/dead-letters?state=open")["data"]) == 4


def test_what_comes_twice_has_its_effect_once(desk: Desk) -> None:
    first = desk.withdraw("101", "BTC", "0.25")["withdrawal_id"]
    by_withdrawal = settlement(sold="0.25", withdrawal_id=first)
    by_settlement = settlement(sold="0.5", settlement_id="s-1")
    desk.tell(by_withdrawal, by_settlement, by_withdrawal, by_settlement, partition=1)
    wait_for(lambda: desk.messages("booked") + desk.messages("replayed") == 4)
    assert desk.messages("replayed") == 1
    assert desk.table("101") == ("250", "10", "0.25", "1", "5")
    answer = desk.ask("POST", "/settlements", json.loads(by_settlement))
    assert (answer.status, answer.headers["idempotent-replayed"]) == (200, "true")
    answer = desk.ask("POST", "/settlements", json.loads(by_withdrawal))
    assert (answer.status, answer.json["result"]) == (200, "duplicate")
    assert desk.table("101") == ("250", "10", "0.25", "1", "5")
    assert desk.get("/dead-letters")["data"] == []


def test_a_server_goes_on_without_its_broker_and_settles_when_it_comes(
    book: Path, mock_broker: MockBroker
) -> None:
    mock_broker.down()
    with desk_on(book, mock_broker) as desk:
        wait_for(lambda: len(desk.get("/readyz").get("down", ())) == 2)
        ready = desk.get("/readyz")
        assert ready["status"] == "ready"
        assert ready["down"].keys() == {"kafka messages", "kafka events"}
        assert all(mock_broker.address in cause for cause in ready["down"].values())
        withdrawal = desk.withdraw("100", "BTC", "7")
        assert withdrawal["status"] == "SUFFICIENT_BALANCE"
        mock_broker.up()
        desk.tell(SETTLEMENT)
        wait_for(lambda: desk.messages("booked") == 1)
        wait_for(lambda: desk.get("/readyz") == {"status": "ready"})
        assert len(desk.heard(EVENTS, 2)) == 2

        mock_broker.down()
        wait_for(lambda: len(desk.get("/readyz").get("down", ())) == 2)
        other = desk.withdraw("101", "BTC", "0.5")["withdrawal_id"]
        mock_broker.up()
        desk.tell(settlement(sold="0.5", withdrawal_id=other))
        wait_for(lambda: desk.messages("booked") == 2)
        wait_for(lambda: desk.get("/readyz") == {"status": "ready"})
        assert len(desk.heard(EVENTS, 4)) == 4
        mock_broker.down()
        assert desk.stop() == 0


def test_a_server_told_to_stop_drains_and_goes_on_where_it_was(
    book: Path, mock_broker: MockBroker
) -> None:
    count = 3_000
    values = [settlement(sold="0.0001", settlement_id=f"s-{n}") for n in range(count)]
    messages = [(number % 4, b"101", value) for number, value in enumerate(values)]
    send(mock_broker.address, SETTLEMENTS, messages)
    with desk_on(book, mock_broker) as desk:
        wait_for(lambda: desk.messages("booked") > 0)
        assert desk.stop() == 0
    with desk_on(book, mock_broker) as desk:
        expected = str(1 + 2 * count)
        wait_for(lambda: desk.table("101")[4] == expected)
        wait_for(lambda: b"\npennyweight_relay_lag_entries 0.0" in desk.get("/metrics"))
        assert desk.stop() == 0

    store = open_reader(book)
    entries = [decode_entry(body) for _, body in store.entries(0, 10 * count)]
    offsets = Counter(move.name for entry in entries for move in entry.cursors)
    streams = {name: at for name, at in store.cursors().items() if name.startswith("kafka:")}
    assert set(streams.values()) == {count // 4}
    assert all(offsets[name] == at for name, at in streams.items())
    assert verify(store, answers=answers(), invariants=invariants()).ok
    store.close()
    told = [m for part in read_topic(mock_broker.address, EVENTS) for m in part]
    assert {json.loads(m.value())["data"]["settlement_id"] for m in told} == {
        f"s-{n}" for n in range(count)
    }
    assert "Traceback" not in (book / "log").read_text()


@pytest.mark.parametrize("is_wanted", [False, True])
def test_the_client_of_kafka_is_loaded_only_where_it_is_wanted(
    book: Path, mock_broker: MockBroker, monkeypatch: pytest.MonkeyPatch, is_wanted: bool
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    words = ("--kafka", mock_broker.address) if is_wanted else ()
    with serving(book, *words) as server:
        desk = Desk(server, None)
        answer = desk.ask("POST", "/settlements", json.loads(SETTLEMENT))
        assert (answer.status, answer.json["result"]) == (200, "unsolicited")
        assert desk.stop() == 0
    assert ("confluent_kafka" in (book / "log").read_text()) is is_wanted

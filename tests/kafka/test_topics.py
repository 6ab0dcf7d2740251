"""A broker that makes no topics by itself: what is missing is named, and used when it is there."""

import http.client
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brokers import RealBroker, read_topic, send
from served_process import serving

pytestmark = pytest.mark.heavy

TOPIC = "late-settlements"
UPDATES = "late-rebalance"
LETTERS = f"{TOPIC}.dead-letters"
EVENTS = "late-events"
SHARES = {"stocks": 60, "bonds": 30, "gold": 10}
MOVED = {"stocks": 70, "bonds": 20, "gold": 10}


def wait_for(is_so: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_topics_that_are_missing_are_named_and_used_when_they_come(
    real_broker: RealBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("SETTLEMENTS_TOPIC", TOPIC),
        ("KAFKA_REBALANCE_TOPIC", UPDATES),
        ("KAFKA_EVENTS_TOPIC", EVENTS),
        ("KAFKA_GROUP", "late"),
        ("KAFKA_OPTIONS", "topic.metadata.propagation.max.ms=500"),
    ):
        monkeypatch.setenv(f"PENNYWEIGHT_{name}", value)

    with serving(tmp_path, "--kafka", real_broker.address) as server:

        def ask(method: str, path: str, body: Any = None) -> Any:
            port = int(server.address.rpartition(":")[2])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request(method, path, body and json.dumps(body))
            answer = json.loads(connection.getresponse().read())
            connection.close()
            return answer

        def lacks(what: str, topic: str) -> None:
            wait_for(
                lambda: f"topic {topic}: " in ask("GET", "/readyz").get("down", {}).get(what, "")
            )

        lacks("kafka messages", TOPIC)
        ask("POST", "/v1/accounts", {"id": "user:1:BTC"})
        given = {"debit_account": "world:BTC", "credit_account": "user:1:BTC"}
        ask("POST", "/v1/transfers", {**given, "asset": "BTC", "amount": "5"})
        wanted = {"user_id": 1, "token": "BTC", "requested_quantity": 1}
        assert ask("POST", "/withdrawals", wanted)["status"] == "SUFFICIENT_BALANCE"
        lacks("kafka events", EVENTS)
        for topic in (TOPIC, EVENTS):
            real_broker.create_topic(topic)
        lacks("kafka messages", UPDATES)

        send(real_broker.address, TOPIC, [(0, b"1", b"rubbish")])
        lacks("kafka events", LETTERS)  # one that is not there holds up no other
        real_broker.create_topic(UPDATES)
        assert ask("POST", "/withdrawals", wanted)["status"] == "SUFFICIENT_BALANCE"
        real_broker.create_topic(LETTERS)
        wait_for(lambda: ask("GET", "/readyz") == {"status": "ready"})
        wait_for(lambda: len(_ids(real_broker, EVENTS)) == 2)
        assert len(_ids(real_broker, LETTERS)) == 1

        ask("POST", "/portfolio", {"user_id": "1", "allocation": SHARES})
        update = json.dumps({"user_id": "1", "new_allocation": MOVED}).encode()
        send(real_broker.address, UPDATES, [(0, b"1", update)])
        place = "/rebalance-transactions?user_id=1"
        wait_for(lambda: len(ask("GET", place)["transactions"]) == 2)


def _ids(broker: RealBroker, topic: str) -> set[bytes]:
    """The different messages of a topic."""
    parts = read_topic(broker.address, topic)
    return {dict(message.headers())["id"] for part in parts for message in part}

"""Consumer and relay move with the book: settlements go on after their owner fell, none twice."""

import json
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from brokers import MockBroker, read_topic, send
from cluster.instances import UNIT, Cluster, fund, read_book, until

pytestmark = pytest.mark.heavy

TOPIC = "risk-engine-settlements"
EVENTS = "risk-engine-events"
USERS = 8
EACH = 30
PARTITIONS = 4


def settlements(first: int, last: int) -> list[tuple[int, bytes, bytes]]:
    """Return messages that settle so many withdrawals of 1 USD, by turns of the users."""
    trade = {
        "bought_token": "EUR",
        "bought_quantity": "2",
        "sold_token": "USD",
        "sold_quantity": "1",
    }
    users = [str(number % USERS) for number in range(first, last)]
    return [
        (int(user) % PARTITIONS, user.encode(), json.dumps({"user_id": user, **trade}).encode())
        for user in users
    ]


def test_settlements_go_on(mock_broker: MockBroker, url: str, tmp_path: Path, record_property):
    for topic in (TOPIC, EVENTS, f"{TOPIC}.dead-letters"):
        mock_broker.create_topic(topic, PARTITIONS)
    total, seconds = USERS * EACH, []
    words = ("--kafka", mock_broker.address)
    with (
        Cluster(url, tmp_path, 3, *words) as cluster,
        cluster.client(is_restless=True) as client,
    ):
        fund(client, range(USERS))
        for number in range(total):
            body = {"user_id": str(number % USERS), "token": "USD", "requested_quantity": "1"}
            answer = client.post("/withdrawals", body, f"withdrawal {number}")
            assert answer.json["status"] == "SUFFICIENT_BALANCE", answer

        def settled() -> int:
            balances = [client.get(f"/users/{user}/balances") for user in range(USERS)]
            return (
                sum(int(b["balances"].get("EUR", {"posted": 0})["posted"]) for b in balances) // 2
            )

        send(mock_broker.address, TOPIC, settlements(0, 80))
        until(lambda: settled() >= 40)
        struck, fallen = time.monotonic(), cluster.owner()
        fallen.kill()
        send(mock_broker.address, TOPIC, settlements(80, 160))
        until(lambda: settled() == 160)
        seconds.append(time.monotonic() - struck)
        fallen.start()
        struck, frozen = time.monotonic(), cluster.owner()
        frozen.freeze()
        send(mock_broker.address, TOPIC, settlements(160, total))
        time.sleep(4)
        frozen.thaw()
        until(lambda: settled() == total)
        seconds.append(time.monotonic() - struck)
        cluster.settle()
        assert all("down" not in instance.readiness() for instance in cluster.instances)
    record_property("seconds from the owner's fall to the last settlement", seconds)
    book = read_book(url)
    settles = [entry for entry in book.entries if entry.command == "settle"]
    assert len(settles) == total
    at: Counter[str] = Counter()
    for entry in book.entries:
        for move in entry.cursors:
            if move.name.startswith("kafka:"):
                assert (move.before, move.after) == (at[move.name], at[move.name] + 1)
                at[move.name] += 1
    assert sum(at.values()) == total
    assert set(book.posted("EUR").values()) == {2 * EACH}
    assert sum(book.posted().values()) == (100 - EACH) * USERS
    last = {line.account: line for entry in book.entries for line in entry.lines}
    assert all(line.held == 0 for line in last.values())
    assert all(line.posted % UNIT == 0 for line in last.values())

    expected = {
        f"{entry.sequence}.{position}": event.name
        for entry in book.entries
        for position, event in enumerate(entry.events)
        if entry.product == "withdrawals"
    }
    heard: dict[str, set[bytes]] = defaultdict(set)
    for part in read_topic(mock_broker.address, EVENTS, PARTITIONS):
        for message in part:
            told = json.loads(message.value())
            heard[told["id"].partition(".")[2]].add(message.value())
    assert heard.keys() == expected.keys()
    assert all(len(values) == 1 for values in heard.values())

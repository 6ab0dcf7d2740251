"""`pennyweight serve --kafka` between both of its topics: settlements and updates of portfolios.

One reader takes both. What one topic brings is as exact while the other is busy, or brings
rubbish, as it is alone. Tests that neither stop nor kill the engine share one, and have users
of their own there.
"""

import http.client
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from brokers import MockBroker, read_topic, send
from pennyweight.assemble import answers, invariants, open_inline, open_reader
from pennyweight.config import Config
from pennyweight.engine.verification import verify
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.products.general import LoadBalances
from served_process import serving
from waiting import wait_for

SETTLEMENTS = "risk-engine-settlements"
REBALANCE = "rebalance"
LETTERS = "{topic}.dead-letters"

TARGET = {"stocks": 60, "bonds": 30, "gold": 10}
MOVED = {"stocks": 70, "bonds": 20, "gold": 10}
DAY = "2026-01-31T12:00:{second:02}.{microsecond:06}Z"
PARTITIONS = 4


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    json: Any


class Desk:
    """A served book as its callers see it, and the broker beside it."""

    def __init__(self, server: subprocess.Popen[str], broker: MockBroker) -> None:
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

    def create(self, *users: str) -> None:
        for user in users:
            answer = self.ask("POST", "/portfolio", {"user_id": user, "allocation": TARGET})
            assert answer.status == 201, answer

    def tell(self, topic: str, *messages: tuple[str, bytes | None]) -> None:
        """Send values by user, each user's to one partition."""
        sent = [(_partition_of(user), user.encode(), value) for user, value in messages]
        send(self.broker.address, topic, sent)

    @contextmanager
    def brings(self, what: str, count: int) -> Iterator[None]:
        """Wait in the end until just so many messages more were booked, replayed, set aside."""
        before = self.messages()
        yield
        wanted = before + Counter({what: count})
        wait_for(lambda: self.messages().total() >= wanted.total())
        assert self.messages() == wanted

    def messages(self) -> Counter[str]:
        """What became of messages since the server started: booked, replayed, set aside."""
        text = self.get("/metrics").decode()
        found = re.findall(
            r'^pennyweight_kafka_messages_total{what="(\w+)"} (\S+)', text, re.MULTILINE
        )
        return Counter({what: int(float(n)) for what, n in found if what != "consumed"})

    def trades(self, user: str) -> list[tuple[str, str, float]]:
        """The transactions of a user, as their list has them."""
        page = self.get(f"/rebalance-transactions?user_id={user}")
        return [
            (one["action"], one["asset"], one["rebalance_percent"]) for one in page["transactions"]
        ]

    def heard(self, topic: str, count: int) -> list[Any]:
        """Wait until a topic has so many messages, and return all that it has."""
        found: list[Any] = []

        def have_come() -> bool:
            found[:] = [m for part in read_topic(self.broker.address, topic) for m in part]
            return len(found) >= count

        wait_for(have_come)
        return found

    def stop(self) -> int:
        self.server.send_signal(signal.SIGTERM)
        return self.server.wait(20)


def _partition_of(user: str) -> int:
    return int(user) % PARTITIONS


def update(user: str, allocation: dict[str, Any] = MOVED, **more: Any) -> tuple[str, bytes]:
    body = {"user_id": user, "new_allocation": allocation, **more}
    return user, json.dumps(body).encode()


def settlement(user: str, **more: str) -> tuple[str, bytes]:
    trade = {
        "bought_token": "ETH",
        "bought_quantity": "2",
        "sold_token": "BTC",
        "sold_quantity": "1",
    }
    return user, json.dumps({"user_id": user, **trade, **more}).encode()


def filled(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make a book of some users who have tokens; no server of it is set up by the environment."""
    for name in [*os.environ]:
        if name.startswith("PENNYWEIGHT_") or name in {"KAFKA_BROKER", "KAFKA_TOPIC"}:
            patch.delenv(name)
    with open_inline(folder, Config()) as inline:
        for user in range(8):
            inline.execute(LoadBalances(str(user), (("BTC", "1000"), ("ETH", "0"))))
    return folder


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return filled(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A served book that tests share; it is proven when all of them are through."""
    with pytest.MonkeyPatch.context() as patch, closing(MockBroker()) as broker:
        folder = filled(tmp_path_factory.mktemp("shared"), patch)
        with desk_on(folder, broker) as desk:
            yield desk
            assert desk.stop() == 0
        assert journal(folder)
        assert "Traceback" not in (folder / "log").read_text()


@contextmanager
def desk_on(folder: Path, broker: MockBroker) -> Iterator[Desk]:
    words = ("--users-in-memory", "300", "--kafka", broker.address)
    with serving(folder, *words) as server:
        yield Desk(server, broker)


def journal(folder: Path) -> list[Entry]:
    """Every entry of a book that nobody serves; proven first."""
    store = open_reader(folder)
    try:
        report = verify(store, answers=answers(), invariants=invariants())
        assert report.ok, report
        return [decode_entry(body) for _, body in store.entries(0, 1_000_000)]
    finally:
        store.close()


def read_so_far(folder: Path) -> int:
    """Return how many messages a book has dealt with; it may be served meanwhile."""
    store = open_reader(folder)
    try:
        return sum(at for name, at in store.cursors().items() if name.startswith("kafka:"))
    finally:
        store.close()


def test_an_update_is_worked_out_as_if_it_came_over_http(desk: Desk) -> None:
    desk.create("1")
    with desk.brings("booked", 1):
        desk.tell(REBALANCE, update("1"))
    assert desk.trades("1") == [("SELL", "stocks", 10), ("BUY", "bonds", 10)]
    with desk.brings("booked", 1):
        desk.tell(SETTLEMENTS, settlement("1"))
    balances = desk.get("/users/1/balances")["balances"]
    assert (balances["BTC"]["posted"], balances["ETH"]["posted"]) == ("999", "2")


def test_what_is_no_update_is_set_aside_and_replayed_when_the_portfolio_is_there(
    desk: Desk,
) -> None:
    desk.create("4")
    stranger = update("2", request_id="r-2")
    lossy = update("4", {"stocks": 70, "bonds": 29})
    future = update("4", as_of="2999-01-01T00:00:00Z")
    with desk.brings("set_aside", 6):
        desk.tell(REBALANCE, ("4", b"not JSON"), ("4", None), stranger, lossy, future)
        desk.tell(SETTLEMENTS, ("4", b"rubbish"))
    with desk.brings("booked", 1):
        desk.tell(REBALANCE, update("4"))
    letters = desk.get("/dead-letters?product=portfolios")["data"]
    assert Counter(one["reason"] for one in letters) == {
        "message_malformed": 2,
        "portfolio_not_found": 1,
        "allocation_invalid": 1,
        "as_of_in_future": 1,
    }
    assert len(desk.get("/dead-letters")["data"]) == 6

    told = desk.heard(LETTERS.format(topic=REBALANCE), 5)
    by_reason = {dict(m.headers())["error"]: m for m in told}
    message = by_reason[b"portfolio_not_found"]
    headers = dict(message.headers())
    assert (message.key(), message.value()) == (b"2", stranger[1])
    assert (headers["origin-topic"], headers["origin-partition"]) == (b"rebalance", b"2")
    assert len(desk.heard(LETTERS.format(topic=SETTLEMENTS), 1)) == 1

    replay = f"/dead-letters/{headers['letter'].decode()}/replay"
    assert desk.ask("POST", replay).json["code"] == "portfolio_not_found"
    desk.create("2")
    answer = desk.ask("POST", replay)
    assert (answer.status, answer.json["result"]) == (200, "rebalanced")
    assert desk.trades("2") == [("SELL", "stocks", 10), ("BUY", "bonds", 10)]
    with desk.brings("replayed", 1):
        desk.tell(REBALANCE, stranger)
    again = desk.ask("POST", replay)
    assert (again.status, again.headers["idempotent-replayed"]) == (200, "true")
    assert len(desk.trades("2")) == 2
    assert len(desk.get("/dead-letters?state=open")["data"]) == 5


def test_an_older_update_changes_nothing_and_is_no_dead_letter(desk: Desk) -> None:
    desk.create("3")
    moments = [DAY.format(second=second, microsecond=0) for second in range(3)]
    newest = {"stocks": 50, "bonds": 40, "gold": 10}
    with desk.brings("booked", 3):
        desk.tell(
            REBALANCE,
            update("3", as_of=moments[0]),
            update("3", newest, as_of=moments[2]),
            update("3", as_of=moments[1]),
        )
    assert desk.get("/portfolio?user_id=3")["current"] == newest
    assert len(desk.trades("3")) == 4


def test_both_topics_at_once_with_duplicates_and_a_stop_between(
    book: Path, mock_broker: MockBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each update and each settlement has its effect once, each user's in order.

    The second life is in a group that has read nothing: only the book knows how far it was.
    """
    users, rounds = [str(number) for number in range(8)], 60
    updates, settlements = [], []
    for number in range(rounds):
        for user in users:
            stocks = 60 + number % 40
            shares = {"stocks": stocks, "bonds": 100 - stocks}
            one = update(user, shares, request_id=f"{user}-{number}")
            updates += [one, one] if number % 5 == 0 else [one]
            settlements.append(settlement(user, settlement_id=f"s-{user}-{number}"))
    again = updates[-50:]
    count = len(updates) + len(settlements) + len(again)
    with desk_on(book, mock_broker) as desk:
        desk.create(*users)
        desk.tell(REBALANCE, *updates[:300])
        desk.tell(SETTLEMENTS, *settlements[:300])
        wait_for(lambda: desk.messages()["booked"] > 50)
        assert desk.stop() == 0
    monkeypatch.setenv("PENNYWEIGHT_KAFKA_GROUP", "another")
    with desk_on(book, mock_broker) as desk:
        desk.tell(SETTLEMENTS, *settlements[300:])
        desk.tell(REBALANCE, *updates[300:], *again)
        wait_for(lambda: read_so_far(book) == count)
        for user in users:
            balances = desk.get(f"/users/{user}/balances")["balances"]
            assert balances["BTC"]["posted"] == str(1000 - rounds)
            assert balances["ETH"]["posted"] == str(2 * rounds)
            current = desk.get(f"/portfolio?user_id={user}")["current"]
            assert current == {"stocks": 60 + (rounds - 1) % 40, "bonds": 40 - (rounds - 1) % 40}
        assert desk.get("/dead-letters")["data"] == []
        wait_for(lambda: b"\npennyweight_relay_lag_entries 0.0" in desk.get("/metrics"))
        assert desk.stop() == 0

    entries = journal(book)
    taken: dict[str, list[str]] = {user: [] for user in users}
    moved: Counter[str] = Counter()
    for entry in entries:
        if entry.command == "rebalance":
            fields = msgspec.json.decode(entry.fields)
            taken[fields["user"]].append(fields["request_id"])
        for move in entry.cursors:
            if move.name.startswith("kafka:"):
                assert (move.before, move.after) == (moved[move.name], moved[move.name] + 1)
                moved[move.name] += 1
    assert taken == {user: [f"{user}-{number}" for number in range(rounds)] for user in users}
    assert sum(moved.values()) == count
    assert sum(entry.command == "settle" for entry in entries) == len(settlements)
    assert "Traceback" not in (book / "log").read_text()

"""A risk desk at work, while its engine and its broker are killed, again and again.

Two processes withdraw over HTTP and ask again until they know; a third settles through
Kafka, with repeats, over-fills, cancellations and rubbish. In the end everything that was
acknowledged is there once, every settlement had its effect once, and the sums are those of
the file that was loaded.
"""

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from brokers import RealBroker, group_offsets, read_topic
from kafka.desk_model import Desk, units
from pennyweight.assemble import open_reader
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.letters import LETTER
from pennyweight.products.withdrawals import shared
from pennyweight.simulators.population import population_csv
from served_process import serving

pytestmark = pytest.mark.heavy

HERE = Path(__file__).parent
DATA_SET = Path(__file__).parents[3] / "shared" / "data" / "risk-engine-900-users.csv"

TOPIC = "chaos-settlements"
UPDATES = f"{TOPIC}-rebalance"
"""The other topic of the same reader; nothing comes by it."""

LETTERS = f"{TOPIC}.dead-letters"
EVENTS = "chaos-events"
GROUP = "chaos"
PARTITIONS = 4

USERS_MAX = 300
MESSAGES = 20_000
ANSWERS_MIN = 16_000
PER_SECOND = 150
"""Withdrawals of one client."""

SOME = 300
"""Answers that are waited for between one blow and the next."""

TOLD_OF = {
    shared.ACCEPTED,
    shared.SETTLED,
    shared.CANCELLED,
    shared.EXPIRED,
    shared.UNSOLICITED,
    shared.DEFICIT,
}


def wait_for(is_so: Callable[[], Any], seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


# ── who takes part ────────────────────────────────────────────────────────────────


class Engine:
    """The served book. `kill` and `start` as often as wanted: the folder and the port stay."""

    def __init__(self, folder: Path, broker: RealBroker) -> None:
        self.port = 0
        self.kills = 0
        self._folder = folder
        self._words = ("--users-in-memory", str(USERS_MAX), "--kafka", broker.address)
        self._life = ExitStack()
        self._process: Any = None

    def start(self) -> None:
        self._process = self._life.enter_context(
            serving(self._folder, *self._words, port=self.port)
        )
        self.port = int(self._process.address.rpartition(":")[2])

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self.kills += 1
        self._life.close()

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        code = self._process.wait(30)
        self._life.close()
        return int(code)

    def close(self) -> None:
        self._life.close()

    def get(self, path: str) -> bytes:
        """Ask this life, or raise OSError."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()
        assert answer.status == 200, (path, answer.status, body)
        return body

    @property
    def down(self) -> dict[str, str]:
        return json.loads(self.get("/readyz")).get("down", {})

    def figures(self, name: str) -> list[int]:
        """The values of a metric, in this life."""
        text = self.get("/metrics").decode()
        found = re.findall(rf"^pennyweight_{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return [int(float(value)) for value in found]

    @property
    def read(self) -> int:
        """Messages that were dealt with in this life."""
        text = self.get("/metrics").decode()
        what = "booked|replayed|set_aside"
        found = re.findall(
            rf'^pennyweight_kafka_messages_total{{what="(?:{what})"}} (\S+)', text, re.MULTILINE
        )
        return sum(int(float(value)) for value in found)


class Watcher(threading.Thread):
    """Looks at the cache all the time."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.looks = 0
        self.evictions = 0
        self._engine = engine
        self._is_over = threading.Event()

    def run(self) -> None:
        while not self._is_over.wait(0.1):
            try:
                found = json.loads(self._engine.get("/cache"))
            except OSError:
                continue
            self.looks += 1
            self.most = max(self.most, found["most"], found["resident"])
            self.evictions = max(self.evictions, found["evictions"])

    def stop(self) -> None:
        self._is_over.set()
        self.join()


class Cast:
    """All that takes part, the files of the clients and of the venue among it."""

    def __init__(self, folder: Path, data_set: Path, engine: Engine, broker: RealBroker) -> None:
        self.engine = engine
        self.stop = folder / "stop"
        self.kept = [folder / "client-1", folder / "client-2"]
        self.sent = folder / "sent"
        self.clients = [
            _run("withdrawing.py", engine.port, data_set, file, file.name, 4, PER_SECOND, self.stop)
            for file in self.kept
        ]
        self.over = folder / "over"
        self.venue = _run(
            "settling.py",
            broker.address,
            TOPIC,
            data_set,
            self.sent,
            MESSAGES,
            self.over,
            *self.kept,
        )
        self._counts = dict.fromkeys(self.kept, (0, 0))

    @property
    def acknowledged(self) -> int:
        """How many answers the clients have by now."""
        for file, (place, count) in self._counts.items():
            if file.exists():
                with file.open("rb") as lines:
                    lines.seek(place)
                    found = lines.read()
                found = found[: found.rfind(b"\n") + 1]
                self._counts[file] = place + len(found), count + found.count(b'["told"')
        return sum(count for _, count in self._counts.values())

    def acknowledges(self, count: int) -> None:
        """Wait for so many more answers."""
        before = self.acknowledged
        wait_for(lambda: self.acknowledged >= before + count)

    def works(self) -> None:
        """Wait until some hundred withdrawals more are answered, and more settlements booked."""
        before = self.engine.read
        self.acknowledges(SOME)
        wait_for(lambda: self.engine.read >= before + 5 * SOME)

    def close(self) -> None:
        for process in (*self.clients, self.venue):
            process.kill()
            process.wait()


def _run(name: str, *words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(HERE / name), *(str(word) for word in words)])


# ── what became of it ─────────────────────────────────────────────────────────────


class Sent(NamedTuple):
    """A message as the venue wrote it down."""

    kind: str
    value: bytes | None
    reason: str


def the_data_set(folder: Path) -> Path:
    """The real one beside the checkout, or one of the same shape."""
    if DATA_SET.exists():
        return DATA_SET
    file = folder / "users.csv"
    file.write_text(population_csv(900, 1))
    return file


def balances_in(file: Path) -> dict[tuple[str, str], int]:
    header, *rows = (row.split(",") for row in file.read_text().splitlines())
    return {
        (user, token): units(amount)
        for user, *amounts in rows
        for token, amount in zip(header[1:], amounts, strict=True)
    }


def answers_of(files: list[Path]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All requests by key, and what their senders know of them."""
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    sent = {line[1]: line[2] for line in lines if line[0] == "sent"}
    told = {line[1]: line[2:] for line in lines if line[0] == "told"}
    return sent, told


def sent_by_place(broker: RealBroker, file: Path) -> dict[tuple[int, int], Sent]:
    """The messages by partition and offset: all that were sent are there, in order by key, once."""
    written: dict[str, deque[Sent]] = defaultdict(deque)
    for line in file.read_text().splitlines():
        kind, key, value, reason = json.loads(line)
        written[key].append(Sent(kind, None if value is None else b64decode(value), reason))
    found = {}
    for part in read_topic(broker.address, TOPIC):
        for message in part:
            sent = written[message.key().decode()].popleft()
            assert message.value() == sent.value
            found[message.partition(), message.offset()] = sent
    assert not any(written.values())
    return found


def journal(folder: Path) -> list[Entry]:
    store = open_reader(folder)
    found: list[Entry] = []
    while rows := store.entries(found[-1].sequence if found else 0, 1_000):
        found += [decode_entry(body) for _, body in rows]
    store.close()
    return found


def played(
    desk: Desk,
    entries: list[Entry],
    asked: dict[str, Any],
    messages: dict[tuple[int, int], Sent],
) -> Counter[str]:
    """Tell the model what was asked and sent, in the journal's order; count what became of it."""
    became: Counter[str] = Counter()
    at: Counter[str] = Counter()
    for entry in entries:
        if entry.command == "withdraw":
            became["withdraw"] += 1
            desk.withdraw(asked[entry.key])
        for move in entry.cursors:
            if not move.name.startswith("kafka:"):
                continue
            assert (move.before, move.after) == (at[move.name], at[move.name] + 1)
            at[move.name] += 1
            sent = messages[int(move.name.rpartition("/")[2]), move.before]
            result = sent.reason if sent.kind == "rubbish" else desk.settle(sent.value or b"")
            assert not sent.reason or result == sent.reason, sent
            assert _what_is_in(entry) == result, sent
            became["set_aside" if sent.reason else result] += 1
    assert sum(at.values()) == len(messages)
    return became


def _what_is_in(entry: Entry) -> str:
    if entry.command == "move_cursor":
        return "replayed"
    if entry.command == "set_aside_settlement":
        return str(json.loads(bytes(entry.fields))["reason"])
    assert entry.command == "settle"
    return str(json.loads(bytes(entry.answer))["result"])


def totals(folder: Path) -> tuple[dict[str, dict[Any, int]], Counter[str]]:
    """What users have posted, held and owe by place; and what the others have by holder and token."""
    store = open_reader(folder)
    figures: dict[str, dict[Any, int]] = {"posted": {}, "held": {}, "owed": {}}
    sums: Counter[str] = Counter()
    for account in store.accounts(0, 1_000_000):
        holder, asset = account.holder, account.asset
        kind, _, rest = holder.partition(":")
        sums[f"{'owed' if account.id.startswith('owed:') else kind}:{asset}"] += account.posted
        if kind == "user" and not account.id.startswith("owed:"):
            for name, found in figures.items():
                found[rest, asset] = getattr(account, name)
    store.close()
    return figures, sums


# ── the play ──────────────────────────────────────────────────────────────────────


@contextmanager
def play(folder: Path, data_set: Path, broker: RealBroker) -> Iterator[tuple[Cast, Watcher]]:
    """Everything up and running; whatever happens, nothing is left behind."""
    engine = Engine(folder / "book", broker)
    with ExitStack() as ends:
        ends.callback(engine.close)
        engine.start()
        cast = Cast(folder, data_set, engine, broker)
        ends.callback(cast.close)
        watcher = Watcher(engine)
        watcher.start()
        ends.callback(watcher.stop)
        yield cast, watcher


def blows(cast: Cast, broker: RealBroker) -> list[int]:
    """Kill them while they work; return how many answers the clients got in each life of the engine.

    After each of its beginnings the group still has the dead member, and gives nobody its
    partitions before that has timed out; withdrawals go on at once.
    """
    engine, acknowledged = cast.engine, [0]

    def kill_engine() -> None:
        engine.kill()
        acknowledged.append(cast.acknowledged)
        engine.start()

    for _ in range(2):
        cast.works()
        kill_engine()
    cast.works()
    broker.kill()
    wait_for(lambda: len(engine.down) == 2)
    cast.acknowledges(SOME)
    kill_engine()
    wait_for(lambda: len(engine.down) == 2)
    cast.acknowledges(SOME)
    broker.start()
    cast.works()
    kill_engine()
    cast.works()
    broker.kill()
    broker.start()
    cast.works()
    kill_engine()
    cast.works()
    wait_for(lambda: cast.acknowledged >= ANSWERS_MIN)
    cast.stop.touch()
    assert [client.wait(90) for client in cast.clients] == [0, 0]
    acknowledged.append(cast.acknowledged)
    cast.over.touch()
    engine.kill()
    engine.start()
    wait_for(lambda: engine.read)
    engine.kill()
    engine.start()
    return [after - before for before, after in pairwise(acknowledged)]


def comes_to_its_end(cast: Cast, broker: RealBroker) -> None:
    """Let all that was sent be booked, told, and stop in good order."""
    engine = cast.engine
    assert cast.venue.wait(90) == 0
    lags = rf'kafka_lag_messages{{[^}}]*topic="{TOPIC}"[^}}]*}}'
    wait_for(lambda: engine.figures(lags) == [0] * PARTITIONS)
    wait_for(lambda: engine.figures("relay_lag_entries") == [0])
    wait_for(lambda: sum(group_offsets(broker.address, GROUP, TOPIC, PARTITIONS)) == MESSAGES)
    wait_for(lambda: not engine.down)
    assert engine.stop() == 0


def test_a_desk_lives_through_kills_of_engine_and_broker(
    real_broker: RealBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight lives of the engine, three of the broker, 20 000 messages; see the module."""
    for name, value in (
        ("SETTLEMENTS_TOPIC", TOPIC),
        ("KAFKA_REBALANCE_TOPIC", UPDATES),
        ("KAFKA_EVENTS_TOPIC", EVENTS),
        ("KAFKA_GROUP", GROUP),
        ("KAFKA_OPTIONS", "session.timeout.ms=6000"),
    ):
        monkeypatch.setenv(f"PENNYWEIGHT_{name}", value)
    for topic in (TOPIC, LETTERS, EVENTS):
        real_broker.create_topic(topic, PARTITIONS)
    real_broker.create_topic(UPDATES, 1)
    data_set, book = the_data_set(tmp_path), tmp_path / "book"
    _pennyweight("load", data_set, "--data", book)

    with play(tmp_path, data_set, real_broker) as (cast, watcher):
        lives = blows(cast, real_broker)
        comes_to_its_end(cast, real_broker)
    assert cast.engine.kills == 7
    assert min(lives) >= SOME
    assert watcher.looks > 50
    assert 250 < watcher.most <= USERS_MAX
    assert watcher.evictions > 0

    asked, told = answers_of(cast.kept)
    assert asked.keys() == told.keys()
    assert {status for status, _, _ in told.values()} == {200}
    assert sum(tries > 1 for _, tries, _ in told.values()) >= cast.engine.kills
    accepted = {key for key, (_, _, a) in told.items() if a["status"] == "SUFFICIENT_BALANCE"}
    entries = journal(book)
    assert Counter(entry.key for entry in entries if entry.command == "withdraw") == Counter(
        accepted
    )

    messages = sent_by_place(real_broker, cast.sent)
    assert len(messages) == MESSAGES
    initial = balances_in(data_set)
    desk = Desk(posted=dict(initial))
    became = played(desk, entries, asked, messages)
    assert became["settled"] > MESSAGES // 2
    assert min(became.values()) > 100
    assert desk.deficits > 100
    figures, sums = totals(book)
    assert figures["posted"] == desk.posted
    assert figures["held"] == {place: desk.held[place] for place in desk.posted}
    assert figures["owed"] == {place: desk.owed[place] for place in desk.posted}

    _check_settlements(entries, messages, initial, figures)
    _check_sums(sums, initial)
    _check_letters(book, real_broker, messages)
    _check_events(real_broker, entries)
    _pennyweight("verify", "--data", book)


def _pennyweight(*words: object) -> None:
    command = [sys.executable, "-m", "pennyweight", *(str(word) for word in words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran


def _check_settlements(
    entries: list[Entry],
    messages: dict[tuple[int, int], Sent],
    initial: dict[tuple[str, str], int],
    figures: dict[str, dict[Any, int]],
) -> None:
    """Each trade that was meant had its effect once: by its id, and by what users have, owed off."""
    trades = [
        json.loads(sent.value or b"")
        for sent in messages.values()
        if sent.kind in {"settled", "unsolicited"}
    ]
    names = Counter(
        json.loads(bytes(entry.fields)).get("settlement_id", "")
        for entry in entries
        if entry.command == "settle"
    )
    del names[""]
    assert names == Counter(t["settlement_id"] for t in trades if "settlement_id" in t)
    net = Counter(initial)
    for trade in trades:
        user = str(trade["user_id"])
        net[user, trade["sold_token"]] -= units(trade["sold_quantity"])
        net[user, trade["bought_token"]] += units(trade["bought_quantity"])
    has = {place: figures["posted"][place] - figures["owed"][place] for place in initial}
    assert has == dict(net)


def _check_sums(sums: Counter[str], initial: dict[tuple[str, str], int]) -> None:
    """What came in with the file is with users, less what they owe, or at the venue."""
    given: Counter[str] = Counter()
    for (_, token), amount in initial.items():
        given[token] += amount
    for token, amount in given.items():
        assert sums[f"world:{token}"] == -amount
        assert sum(sums[f"{who}:{token}"] for who in ("user", "owed", "venue", "world")) == 0
    assert {name.partition(":")[0] for name in sums} <= {"user", "owed", "venue", "world"}


def _check_letters(folder: Path, broker: RealBroker, messages: dict[tuple[int, int], Sent]) -> None:
    """Exactly what was meant to be set aside was: in the book once, on the topic once or more."""
    wanted = {place: sent for place, sent in messages.items() if sent.reason}
    store = open_reader(folder)
    kept = [json.loads(bytes(record.body)) for record in store.records(LETTER, limit=MESSAGES)]
    store.close()
    places = [(letter["message"]["partition"], letter["message"]["offset"]) for letter in kept]
    assert len(places) == len(wanted)
    assert {p: one["reason"] for p, one in zip(places, kept, strict=True)} == {
        place: sent.reason for place, sent in wanted.items()
    }
    found = {}
    for part in read_topic(broker.address, LETTERS):
        for message in part:
            headers = dict(message.headers())
            place = int(headers["origin-partition"]), int(headers["origin-offset"])
            found[place] = (message.value(), headers["error"].decode())
    assert found == {place: (sent.value or b"", sent.reason) for place, sent in wanted.items()}


def _check_events(broker: RealBroker, entries: list[Entry]) -> None:
    """Every event of the journal was sent, once or more, under its id, and no other."""
    wanted = {
        (entry.sequence, place): event.name
        for entry in entries
        for place, event in enumerate(entry.events)
        if event.name in TOLD_OF
    }
    found = {}
    for part in read_topic(broker.address, EVENTS):
        for message in part:
            event = json.loads(message.value())
            _, sequence, place = event["id"].split(".")
            found[int(sequence), int(place)] = event["event"]
    assert found == wanted

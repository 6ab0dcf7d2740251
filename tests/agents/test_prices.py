"""Prices from the markets' topics to the board, through queues that speak the real protocol."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from ministack import MiniStack, running
from pennyweight.agents import prices
from pennyweight.agents.prices import PUSHED, PriceIntake
from pennyweight.agents.quotes import QuoteBoard
from pennyweight.delivery.prices import BadPrice, read_price
from pennyweight.engine.engine import QueueFull, Submission
from pennyweight.engine.port import Head
from pennyweight.ledger.entries import decode_entry
from pennyweight.links import aws as aws_module
from pennyweight.links.aws import Aws
from pennyweight.links.errors import LinkError
from pennyweight.products.loans.shared import Market
from pennyweight.runtime.clock import ClockGuard, wall_clock
from pennyweight.runtime.driver import ThreadedBook, Unavailable
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

REGION = "us-east-1"


class Moody(ThreadedBook):
    """A book that takes nothing while it has a reason not to, and may not be sure of itself."""

    mood: Exception | None = None
    is_sure = True

    def submit(self, submission: Submission) -> None:
        if self.mood is not None:
            raise self.mood
        super().submit(submission)


class Rig:
    """A book, a board, topics of their own, and intakes between them."""

    def __init__(self, stack: MiniStack) -> None:
        self.stack = stack
        self.aws = Aws(stack.endpoint, REGION)
        self.store = MemoryStore(Head(book="main", incarnation="first"))
        engine = open_engine(self.store, now=wall_clock())
        self.book = Moody(engine, self.store, ClockGuard())
        self.book.start()
        self.board = self.new_board()
        self.heard: list[Market] = []
        self.intakes: list[PriceIntake] = []
        name = uuid4().hex[:8]
        self.queues: dict[Market, str] = {
            "mos_espa": f"pennyweight-{name}-mos-espa",
            "black_spire": f"pennyweight-{name}-black-spire",
        }

    def new_board(self) -> QuoteBoard:
        return QuoteBoard(age_seconds=10.0, deviation_percent=5.0, jump_percent=30.0)

    def read(self, **settings: Any) -> PriceIntake:
        """Begin to read, and wait until the queues are subscribed."""
        intake = self.make(self.aws, **settings)
        intake.start()
        self.intakes.append(intake)
        wait_for(lambda: not intake.status)
        return intake

    def make(self, aws: Aws | None, **settings: Any) -> PriceIntake:
        return PriceIntake(
            self.book,
            self.board,
            aws,
            queues=self.queues,
            read=read_price,
            bad_price=BadPrice,
            on_quote=self.heard.append,
            **settings,
        )

    def publish(self, market: Market, body: str) -> None:
        self.aws.publish(self.aws.topic(prices.TOPICS[market]), body)

    def waiting(self, queue: str) -> int:
        """Messages that a queue holds, received or not."""
        sqs = self.aws._sqs()
        url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
        found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        names = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
        return sum(int(found[name]) for name in names)

    @property
    def rejected(self) -> list[dict[str, Any]]:
        """What the journal keeps of messages that were no prices."""
        entries = [decode_entry(body) for _, body in self.store.entries(0, 100_000)]
        rejections = [entry for entry in entries if entry.command == "reject_price"]
        return [msgspec.json.decode(entry.fields) for entry in rejections]

    def close(self) -> None:
        self.book.mood = None
        for intake in self.intakes:
            intake.stop()
        self.book.stop(10)
        self.aws.close()


@pytest.fixture(scope="module")
def stack() -> Iterator[MiniStack]:
    with running() as stack:
        yield stack


@pytest.fixture
def rig(stack: MiniStack) -> Iterator[Rig]:
    rig = Rig(stack)
    yield rig
    rig.close()


def wait_for(is_so: Callable[[], Any], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def mos_espa(price: str = "50", *, age_seconds: float = 0, name: str = "") -> str:
    moment = datetime.fromtimestamp(time.time() - age_seconds, UTC)
    return json.dumps(
        {
            "eventId": name or uuid4().hex,
            "asset": "BESKAR",
            "currency": "GC",
            "timestamp": moment.isoformat().replace("+00:00", "Z"),
            "levels": [{"quantity": 1, "buy": "51", "sell": price}],
        }
    )


def black_spire(price: float = 50.5, *, item: str = "STEEL:MANDALORIAN") -> str:
    sell = [{"amount": 1, "price": price}]
    return json.dumps({"item": item, "time": time.time(), "buy": [], "sell": sell})


def test_prices_of_both_markets(rig: Rig) -> None:
    intake = rig.read()
    rig.publish("mos_espa", mos_espa())
    rig.publish("black_spire", black_spire())
    wait_for(lambda: len(rig.board.fresh(wall_clock())) == 2)
    wait_for(lambda: not any(rig.waiting(queue) for queue in rig.queues.values()))
    assert sorted(rig.heard) == ["black_spire", "mos_espa"]
    assert intake.counts()["mos_espa"]["accepted"] == 1
    assert intake.counts()["black_spire"]["accepted"] == 1
    assert rig.rejected == []


def test_other_items_and_duplicates_are_deleted(rig: Rig) -> None:
    intake = rig.read()
    for _ in range(3):
        rig.publish("mos_espa", mos_espa(name="the-same"))
    rig.publish("black_spire", black_spire(item="SPICE"))
    wait_for(lambda: intake.counts()["mos_espa"]["duplicate"] == 2)
    wait_for(lambda: intake.counts()["black_spire"]["ignored"] == 1)
    wait_for(lambda: not any(rig.waiting(queue) for queue in rig.queues.values()))
    assert rig.heard == ["mos_espa"]
    assert rig.rejected == []


def test_wrapped_prices(rig: Rig) -> None:
    """Somebody has set up the subscription before us, his way."""
    queue = rig.queues["mos_espa"]
    url, topic = rig.aws.queue(queue), rig.aws.topic(prices.TOPICS["mos_espa"])
    sqs = rig.aws._sqs()
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]
    rig.aws._sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn["QueueArn"])
    rig.publish("mos_espa", mos_espa("51"))
    assert rig.waiting(queue) == 1
    rig.read()
    rig.publish("mos_espa", mos_espa("52"))
    wait_for(lambda: len(rig.heard) == 2)


def test_poison_is_kept_then_deleted(rig: Rig) -> None:
    intake = rig.read()
    long = "x" * 5_000
    for body in ("no JSON", long, mos_espa("-1")):
        rig.publish("mos_espa", body)
    rig.publish("mos_espa", mos_espa())
    wait_for(lambda: len(rig.rejected) == 3 and rig.heard)
    wait_for(lambda: not rig.waiting(rig.queues["mos_espa"]))
    assert intake.counts()["mos_espa"]["rejected"] == 3
    found = {entry["payload"]: entry for entry in rig.rejected}
    assert long[:2_000] in found
    assert found["no JSON"]["queue"] == rig.queues["mos_espa"]
    assert "malformed" in found["no JSON"]["reason"]
    assert found["no JSON"]["message"]


@pytest.mark.parametrize("mood", [QueueFull("full"), Unavailable("stopping", "no")])
def test_poison_stays_while_it_cannot_be_kept(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, mood: Exception
) -> None:
    monkeypatch.setattr(aws_module, "VISIBILITY_SECONDS", 1)
    intake = rig.read()
    rig.book.mood = mood
    rig.publish("mos_espa", "poison")
    wait_for(lambda: intake.counts()["mos_espa"]["left"] >= 1)
    rig.publish("mos_espa", mos_espa())  # it holds up nothing
    wait_for(lambda: rig.heard)
    assert rig.waiting(rig.queues["mos_espa"]) >= 1
    assert rig.rejected == []
    rig.book.mood = None
    wait_for(lambda: len(rig.rejected) == 1)
    wait_for(lambda: not rig.waiting(rig.queues["mos_espa"]))


def test_poison_that_is_never_kept_lies_dead(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_module, "VISIBILITY_SECONDS", 0)
    rig.read()
    rig.book.mood = QueueFull("full")
    rig.publish("mos_espa", "poison")
    wait_for(lambda: rig.waiting(f"{rig.queues['mos_espa']}-dead") == 1)
    wait_for(lambda: not rig.waiting(rig.queues["mos_espa"]))


def test_poison_whose_outcome_never_comes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "REJECT_SECONDS", 0.2)
    monkeypatch.setattr(rig.book, "submit", lambda submission: None)
    intake = rig.read()
    rig.publish("mos_espa", "poison")
    wait_for(lambda: intake.counts()["mos_espa"]["left"] == 1)
    assert rig.waiting(rig.queues["mos_espa"]) == 1


def test_backlog_is_passed_over_quickly(rig: Rig) -> None:
    """What lies there of a time without an owner is stale, and does not delay what is new."""
    rig.read()
    rig.intakes.pop().stop()
    for _ in range(prices.RETENTION_SECONDS):
        rig.publish("mos_espa", mos_espa("99", age_seconds=30))
    rig.publish("mos_espa", mos_espa("50"))
    began = time.monotonic()
    rig.board = rig.new_board()
    intake = rig.read()
    wait_for(lambda: rig.heard)
    print(f"fresh after {time.monotonic() - began:.2f} s")
    assert intake.counts()["mos_espa"]["stale"] == prices.RETENTION_SECONDS
    wait_for(lambda: not rig.waiting(rig.queues["mos_espa"]))


def test_emulator_that_forgets_everything(rig: Rig) -> None:
    intake = rig.read()
    rig.stack.stop()
    wait_for(lambda: "mos_espa" in intake.status and "black_spire" in intake.status)
    rig.stack.start()
    wait_for(lambda: not intake.status)
    rig.publish("mos_espa", mos_espa())
    rig.publish("black_spire", black_spire())
    wait_for(lambda: len(rig.heard) == 2)


def test_silence_is_told_and_subscribed_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prices, "SILENCE_SECONDS", 0.5)
    intake = rig.make(rig.aws)
    intake.start()
    rig.intakes.append(intake)
    wait_for(lambda: "mos_espa: no price for" in intake.status)
    topic = rig.aws.topic(prices.TOPICS["mos_espa"])
    rig.aws._sns.delete_topic(TopicArn=topic)  # its subscriptions go with it

    def heard() -> list[Market]:
        rig.publish("mos_espa", mos_espa())
        time.sleep(0.1)
        return rig.heard

    wait_for(heard)


def test_one_market_holds_up_no_other(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    original = rig.aws.receive

    def receive(url: str, **settings: Any) -> Any:
        if "mos-espa" in url:
            gate.wait(30)
        return original(url, **settings)

    monkeypatch.setattr(rig.aws, "receive", receive)
    rig.read()
    rig.publish("mos_espa", mos_espa())
    rig.publish("black_spire", black_spire())
    wait_for(lambda: rig.heard)
    assert rig.heard == ["black_spire"]
    gate.set()
    wait_for(lambda: len(rig.heard) == 2)


def test_stop_within_a_poll(rig: Rig) -> None:
    for _ in range(3):
        intake = rig.read()
        time.sleep(0.1)
        began = time.monotonic()
        intake.stop()
        print(f"stopped after {time.monotonic() - began:.2f} s")
        assert not any(poller._thread.is_alive() for poller in intake._pollers)
    rig.make(rig.aws).stop()  # one that never began


def test_stop_though_a_poll_hangs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What such a poll brings in the end is another's, and comes again."""
    monkeypatch.setattr(prices, "STOP_SECONDS", 0.2)
    gate, polling = threading.Event(), threading.Event()
    original = rig.aws.receive

    def receive(url: str, **settings: Any) -> Any:
        polling.set()
        gate.wait(30)
        return original(url, **settings)

    monkeypatch.setattr(rig.aws, "receive", receive)
    intake = rig.read()
    rig.publish("mos_espa", mos_espa())
    assert polling.wait(20)
    intake.stop()
    gate.set()
    for poller in intake._pollers:
        poller.join(20)
    assert rig.heard == []
    assert rig.waiting(rig.queues["mos_espa"]) == 1


def test_stop_though_all_stands_still(rig: Rig) -> None:
    intake = rig.read()
    rig.stack.freeze()
    try:
        began = time.monotonic()
        intake.stop()
        print(f"stopped after {time.monotonic() - began:.2f} s")
    finally:
        rig.stack.thaw()
    for poller in intake._pollers:
        poller.join(20)
        assert not poller._thread.is_alive()


def test_nothing_is_taken_while_the_book_is_unsure(rig: Rig) -> None:
    intake = rig.read()
    rig.book.is_sure = False
    time.sleep(1.2)  # the polls under way
    rig.publish("mos_espa", mos_espa())
    time.sleep(0.3)
    assert rig.waiting(rig.queues["mos_espa"]) == 1
    rig.book.is_sure = True
    wait_for(lambda: rig.heard)
    assert not intake.status


def test_pushed_prices_take_the_same_path(rig: Rig) -> None:
    intake = rig.make(None)
    intake.start()
    assert intake.status == ""
    price = mos_espa()
    assert intake.take("mos_espa", price.encode(), "1") == "accepted"
    assert intake.take("mos_espa", price, "2") == "duplicate"
    assert intake.take("black_spire", black_spire(item="SPICE"), "3") == "ignored"
    assert intake.take("black_spire", b"\xff" * 9_000, "4\ud800") == "rejected"
    assert rig.heard == ["mos_espa"]
    wait_for(lambda: rig.rejected)
    (kept,) = rig.rejected
    assert kept["queue"] == PUSHED
    assert kept["message"] == "4?"
    assert kept["payload"] == "\ufffd" * 2_000
    rig.book.mood = QueueFull("full")
    with pytest.raises(QueueFull):
        intake.take("black_spire", "{", "5")
    assert intake.counts()["black_spire"] == {
        **dict.fromkeys(("accepted", "duplicate", "stale", "out_of_order", "jump", "left"), 0),
        "ignored": 1,
        "rejected": 1,
    }
    intake.stop()


def test_listener_that_breaks_ends_nothing(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_module, "VISIBILITY_SECONDS", 1)
    broken = [True]

    def hear(market: Market) -> None:
        if broken:
            broken.clear()
            raise ZeroDivisionError
        rig.heard.append(market)

    intake = PriceIntake(
        rig.book,
        rig.board,
        rig.aws,
        queues=rig.queues,
        read=read_price,
        bad_price=BadPrice,
        on_quote=hear,
    )
    rig.intakes.append(intake)
    intake.start()
    wait_for(lambda: not intake.status)
    rig.publish("mos_espa", mos_espa())
    wait_for(lambda: not broken)
    rig.publish("mos_espa", mos_espa())
    wait_for(lambda: rig.heard)


def test_no_credentials_is_a_status(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def queue(*_: Any, **__: Any) -> str:
        raise LinkError("no credentials for AWS were found")

    monkeypatch.setattr(rig.aws, "queue", queue)
    intake = rig.make(rig.aws)
    intake.start()
    rig.intakes.append(intake)
    wait_for(lambda: intake.status.count("no credentials") == 2)

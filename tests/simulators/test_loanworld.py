"""The demo's loans: prices that fall and recover, who takes them, and what became of loans."""

import http.server
import json
import threading
import time
from collections import deque
from contextlib import contextmanager
from decimal import Decimal
from itertools import islice, pairwise
from urllib.parse import parse_qs, urlsplit

import pytest

from pennyweight.links.aws import Received
from pennyweight.links.errors import LinkError
from pennyweight.simulators.loanworld import (
    PUSHED,
    Branch,
    LoanCounts,
    LoanReader,
    LoanWorld,
    waves,
)
from pennyweight.simulators.publishing import Pusher, Topics
from pennyweight.simulators.server import Server, verify
from pennyweight.simulators.trading import Odds

MISCHIEF = Odds(failed=0.3, slow=0.1, slow_seconds=0.05, hung=0.1, hang_seconds=1.5)


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.05)


# ── prices ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(5))
def test_waves_fall_far_and_recover_in_steps_that_are_believed(seed):
    prices = [Decimal(price) for price in islice(waves(seed), 400)]
    for before, after in pairwise(prices):
        assert abs(after - before) / before < Decimal("0.15")
    is_low = [price < Decimal(50) * 5 / 8 for price in prices]
    falls = sum(now and not before for before, now in pairwise(is_low))
    assert falls >= 8
    assert max(prices[200:]) >= 50
    assert list(islice(waves(seed), 400)) == [str(price) for price in prices]


@contextmanager
def engine(answer):
    """What answers requests by a function of method, target and body: a status, and a document."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, document = answer(self.command, self.path, body)
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST  # noqa: N815 - the library's name

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address
        finally:
            server.shutdown()
            thread.join()


def test_pusher_finds_the_owner_and_stays_with_it():
    asked = []
    owner = ["b"]

    def named(name):
        def answer(method, path, body):
            asked.append((name, method, path, body))
            return (202, {}) if owner[0] == name else (503, {"code": "no_owner"})

        return answer

    with engine(named("a")) as one, engine(named("b")) as other:
        push = Pusher([one, other])
        push("mos_espa", b"1")
        push("black_spire", b"2")
        assert asked == [
            ("a", "POST", "/prices/mos-espa", b"1"),
            ("b", "POST", "/prices/mos-espa", b"1"),
            ("b", "POST", "/prices/black-spire", b"2"),
        ]
        owner[0] = "a"
        push("mos_espa", b"3")
        assert asked[-2:] == [
            ("b", "POST", "/prices/mos-espa", b"3"),
            ("a", "POST", "/prices/mos-espa", b"3"),
        ]
        owner[0] = ""
        with pytest.raises(LinkError, match=r"503.*no_owner"):
            push("mos_espa", b"4")
    with pytest.raises(OSError):
        push("mos_espa", b"5")


class FakeAws:
    """Topics and one queue, whose messages are given out one call after the other."""

    def __init__(self, *batches):
        self.batches = deque(batches)
        self.published, self.made, self.deleted, self.subscribed = [], [], [], []

    def topic(self, name):
        self.made.append(name)
        return f"arn:{name}"

    def publish(self, topic, message):
        self.published.append((topic, message))

    def queue(self, name):
        return f"url:{name}"

    def subscribe(self, topic, queue):
        self.subscribed.append((topic, queue))

    def receive(self, queue, *, wait_seconds):
        if not self.batches:
            time.sleep(0.01)
            return []
        batch = self.batches.popleft()
        if isinstance(batch, Exception):
            raise batch
        return batch

    def delete(self, queue, receipts):
        self.deleted.extend(receipts)


def test_topics_are_made_once():
    aws = FakeAws()
    publish = Topics(aws)
    for body in (b"1", b"2"):
        publish("mos_espa", body)
        publish("black_spire", body)
    assert len(aws.made) == len(set(aws.made)) == 2
    assert [message for _, message in aws.published] == ["1", "1", "2", "2"]


# ── what became of loans ──────────────────────────────────────────────────────────


def entry(sequence, *events, slices=()):
    return {
        "sequence": sequence,
        "command": "anything",
        "events": [{"name": name, "body": {"loan_id": loan}} for name, loan in events],
        "records": [{"kind": "loans.slice", "id": "x", "version": 1, "body": s} for s in slices],
    }


def test_reader_goes_on_where_it_was():
    journal = [
        entry(3, ("loan_applied", "a")),
        entry(4, ("loan_applied", "b")),
        entry(7, ("loan_activated", "a")),
        entry(8, ("loan_warned", "a")),
    ]
    asked = []

    def answer(method, path, body):
        query = parse_qs(urlsplit(path).query)
        asked.append(int(query["cursor"][0]))
        assert query["product"] == ["loans"]
        return 200, {"data": [row for row in journal if row["sequence"] > asked[-1]]}

    with engine(answer) as address:
        reader = LoanReader(address)
        assert reader.counts == LoanCounts()
        reader.read()
        assert reader.counts == LoanCounts(new=1, active=1, warnings=1)
        placed = {"loan": "a", "number": 1, "request_id": "r1"}
        filled = {**placed, "state": "filled", "detail": "order-1"}
        journal += [
            entry(9, ("loan_liquidating", "a"), slices=[placed]),
            entry(12, ("loan_liquidated", "a"), slices=[filled]),
        ]
        reader.read()
        reader.read()
    assert reader.counts == LoanCounts(new=1, liquidated=1, warnings=1)
    assert reader.counts.total == 2
    assert reader.fills == {"r1": "order-1"}
    assert asked == [0, 8, 12]
    with pytest.raises(OSError):
        reader.read()


def test_reader_without_an_answer_keeps_what_it_read():
    with engine(lambda *_: (503, {})) as address:
        reader = LoanReader(address)
        with pytest.raises(OSError, match="503"):
            reader.read()
    assert reader.counts == LoanCounts()


def notice(event, loan):
    body = {
        "eventId": event,
        "eventType": "liquidation",
        "loanId": loan,
        "collateralSold": "1.5",
        "collateralSoldValue": "60",
        "outstandingCollateral": "0.5",
        "outstandingBalance": "0",
    }
    return Received(event, f"receipt-{event}", json.dumps(body), 1)


def test_branch_hears_each_notice_once_though_it_comes_again():
    first, second = notice("e1", "a"), notice("e2", "b")
    aws = FakeAws([first], LinkError("gone"), [first, second])
    with Branch(aws) as branch:
        wait_for(lambda: len(aws.deleted) == 3)
    assert aws.subscribed == [("arn:coruscant-bank-loan-liquidation-events", "url:demo-branch")]
    assert [heard.loan_id for heard in branch.take()] == ["a", "b"]
    assert branch.take() == []
    assert (branch.told, branch.repeated) == ({"a", "b"}, 1)


# ── the world ─────────────────────────────────────────────────────────────────────


def test_world_that_nobody_plays_with_ends():
    with LoanWorld() as world:
        assert world.settle(0.1)
        assert world.counts == LoanCounts()
        assert world.environment.keys() == {"MOS_ESPA_URL", "BLACK_SPIRE_URL"}
    assert world.executed() == 0


def played(world, server, *, until):
    """Play on a server until the counts are as wanted, and let all of it come to its end."""
    address = (server.host, server.port)
    world.play(address, Pusher([address]))
    wait_for(lambda: until(world.counts))
    assert world.settle(60), world.differences()
    assert world.differences() == []


def test_world_shows_the_whole_life_of_loans_and_the_books_agree(tmp_path):
    place = tmp_path / "book"
    before = LoanCounts()
    for _ in range(2):  # the second time on the same book, with new loans
        with LoanWorld(odds=MISCHIEF, interval_seconds=0.1, actors=8, ticks_per_second=4) as world:
            environment = {**world.environment, **PUSHED}
            with Server(place, environment=environment) as server:
                played(
                    world,
                    server,
                    until=lambda counts, least=before.liquidated + 3: (
                        counts.liquidated >= least and counts.active and counts.warnings
                    ),
                )
                counts = world.counts
                assert world.executed() > 0
                assert counts.total > before.total
                assert Decimal(world.price) > 10
                before = counts
    assert verify(place).ok

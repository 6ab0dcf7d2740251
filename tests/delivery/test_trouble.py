"""When things break: full queues, dead disks, jumping clocks, faults of ours, seen from outside."""

import threading
from typing import Any

import msgspec
import pytest
import structlog.testing

from pennyweight.delivery.http.routes import CommandRoute, Documentation, ReadRoute, Reply, Route
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Append, Head, StoreFailed
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.products.general import RegisterAsset
from pennyweight.runtime.clock import ClockGuard
from pennyweight.stores.memory import MemoryStore
from served import START, Served, all_routes, request_bytes, transfer

PAY = transfer("user:1:USD", "user:2:USD")


class Disk(MemoryStore):
    """A book in memory whose appends can be held up, and fail."""

    def __init__(self) -> None:
        super().__init__(Head(book="main", incarnation="first"))
        self.is_broken = False
        self.leave = threading.Event()
        self.leave.set()
        self.is_appending = threading.Event()

    def pause(self) -> None:
        self.is_appending.clear()
        self.leave.clear()

    def append(self, batch: Append) -> None:
        self.is_appending.set()
        assert self.leave.wait(20)
        if self.is_broken:
            raise StoreFailed("the disk is gone")
        super().append(batch)


def test_queue_full() -> None:
    disk = Disk()
    with Served(store=disk, queue_max=12) as served:
        served.fund("1", "2")
        disk.pause()
        with served.connect() as first, served.connect() as crowd:
            first.send(request_bytes("POST", "/v1/transfers", msgspec.json.encode(PAY)))
            assert disk.is_appending.wait(10)
            body = msgspec.json.encode({"atomic": False, "transfers": [PAY] * 20})
            crowd.send(request_bytes("POST", "/v1/transfers", body))
            while served.book.engine.waiting < 12:
                pass
            for path, more in (("/v1/transfers", PAY), ("/v1/accounts", {"id": "user:3:USD"})):
                answer = served.post(path, more)
                assert (answer.status, answer.json["code"]) == (503, "queue_full")
                assert answer.headers["retry-after"] == "1"
            disk.leave.set()
            assert first.read().status == 201
            results = crowd.read().json["results"]
            assert [result["status"] for result in results] == [201] * 12 + [503] * 8
        assert served.available("user:1:USD") == "87"


def test_store_failure() -> None:
    disk = Disk()
    with Served(store=disk) as served:
        served.fund("1", "2")
        disk.is_broken = True
        for path in ("/v1/transfers", "/v1/transfers?a=b"):
            answer = served.post(path, PAY, key="k")
            assert (answer.status, answer.json["retryable"]) == (503, True)
        disk.is_broken = False
        answer = served.post("/v1/holds", {"account": "user:1:USD", "asset": "USD", "amount": "1"})
        assert (answer.status, answer.json["code"]) == (503, "store_failed")
        ready = served.send("GET", "/readyz")
        assert (ready.status, ready.json["code"]) == (503, "store_failed")
        assert "disk" not in ready.body.decode()
        assert served.send("GET", "/livez").status == 200
        assert served.available("user:1:USD") == "100"


def test_store_failure_is_unknown_first() -> None:
    disk = Disk()
    with Served(store=disk) as served:
        disk.is_broken = True
        answer = served.post("/v1/accounts", {"id": "user:1:USD"})
        assert (answer.status, answer.json["code"]) == (503, "outcome_unknown")


def test_clock_jump() -> None:
    wall = [START]
    with Served(clock=ClockGuard(lambda: wall[0], lambda: 0)) as served:
        served.fund("1", "2")
        wall[0] += 600_000_000
        assert served.post("/v1/transfers", PAY).status == 503
        answer = served.post("/v1/transfers", PAY)
        assert (answer.status, answer.json["code"]) == (503, "clock_drift")
        assert served.send("GET", "/readyz").status == 503
        assert served.available("user:1:USD") == "100"


class Broken(Command, frozen=True):
    """A command whose rule has a fault, after it has moved money."""

    name = "broken"
    product = "ledger"
    counted = ()
    answer_type = dict

    def reads(self, wanted: Wanted) -> None:
        wanted.account("user:1:USD")
        wanted.account("user:2:USD")

    def decide(self, draft: Draft) -> Any:
        draft.transfer("user:1:USD", "user:2:USD", 1)
        raise ZeroDivisionError("a secret of ours")


def broken_routes() -> list[Route]:
    documentation = Documentation(summary="Broken")

    def fail(*_: Any) -> Reply:
        raise ZeroDivisionError("a secret of ours")

    def endless(*_: Any) -> Reply:
        return Reply(200, chunks=iter([b"[", b"1", b"]"]))

    def route(path: str, parse: Any, render: Any, *, is_hot: bool = True) -> Route:
        return CommandRoute(
            face="ledger",
            method="POST",
            path=path,
            parse=parse,
            render=render,
            documentation=documentation,
            is_hot=is_hot,
        )

    def submit(*_: Any) -> Submission:
        return Submission(Broken())

    def render(outcomes: Any, request: Any) -> Reply:
        raise ZeroDivisionError("a secret of ours")

    transfers = next(r for r in all_routes() if r.path == "/v1/transfers")
    assert isinstance(transfers, CommandRoute)
    return [
        *all_routes(),
        route("/parse", fail, fail),
        route("/parse-long", fail, fail, is_hot=False),
        route("/render", lambda *_: Submission(RegisterAsset("USD", 18, 1)), render),
        route("/rule", submit, transfers.render),
        route("/rule-long", submit, transfers.render, is_hot=False),
        ReadRoute(
            face="ledger", method="GET", path="/read", read=fail, documentation=documentation
        ),
        ReadRoute(
            face="ledger", method="GET", path="/stream", read=endless, documentation=documentation
        ),
    ]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/parse"),
        ("POST", "/parse-long"),
        ("POST", "/render"),
        ("POST", "/rule"),
        ("POST", "/rule-long"),
        ("GET", "/read"),
    ],
)
def test_fault_of_ours(method: str, path: str) -> None:
    with Served(broken_routes()) as served, structlog.testing.capture_logs() as logs:
        served.fund("1", "2")
        answer = served.send(method, path, b"{}" if method == "POST" else None)
        assert (answer.status, answer.json["code"]) == (500, "internal_error")
        assert b"secret" not in answer.body
        (log,) = (log for log in logs if "correlation_id" in log)
        assert log["correlation_id"] == answer.json["correlation_id"]
        assert isinstance(log["exc_info"], ZeroDivisionError)
        assert served.available("user:1:USD") == "100"
        assert served.post("/v1/transfers", PAY).status == 201


def test_stream() -> None:
    with Served(broken_routes()) as served:
        answer = served.send("GET", "/stream")
        assert (answer.body, answer.headers["transfer-encoding"]) == (b"[1]", "chunked")

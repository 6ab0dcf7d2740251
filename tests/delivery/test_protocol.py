"""The short way's manners, by raw sockets: pieces, chunks, pipelines, refusals, time-outs."""

import gc
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pennyweight.delivery.http.protocol import _Exchange
from pennyweight.engine.port import Append, Head
from pennyweight.stores.memory import MemoryStore
from served import Raw, Served, request_bytes, transfer

BODY_MAX = 2_048


class SlowStore(MemoryStore):
    """A book in memory whose appends wait for leave."""

    def __init__(self) -> None:
        super().__init__(Head(book="main", incarnation="first"))
        self.leave = threading.Event()
        self.leave.set()
        self.is_appending = threading.Event()

    def append(self, batch: Append) -> None:
        self.is_appending.set()
        assert self.leave.wait(20)
        super().append(batch)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(store=SlowStore(), body_max=BODY_MAX) as served:
        served.fund("1", "2", amount="1000")
        yield served


@pytest.fixture(scope="module")
def hasty() -> Iterator[Served]:
    """A server that soon loses patience."""
    patience = {"receive_seconds": 0.4, "keep_alive_seconds": 0.8, "sweep_seconds": 0.05}
    with Served(**patience) as served:
        served.fund("1", "2")
        yield served


@pytest.fixture
def hasty_raw(hasty: Served) -> Iterator[Raw]:
    with hasty.connect() as raw:
        yield raw


@pytest.fixture
def raw(served: Served) -> Iterator[Raw]:
    with served.connect() as raw:
        yield raw


@pytest.fixture
def slow(served: Served) -> Iterator[SlowStore]:
    assert isinstance(served.store, SlowStore)
    served.store.leave.clear()
    served.store.is_appending.clear()
    yield served.store
    served.store.leave.set()


def pay(amount: str = "1", **headers: str) -> bytes:
    body = json.dumps(transfer("user:1:USD", "user:2:USD", amount)).encode()
    return request_bytes("POST", "/v1/transfers", body, headers)


def chunked(*pieces: bytes) -> bytes:
    head = b"POST /v1/transfers HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def eventually(is_true: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if is_true():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen")


# ── bodies ────────────────────────────────────────────────────────────────────────


def test_body_in_pieces(raw: Raw) -> None:
    request = pay()
    for start in range(0, len(request), 7):
        raw.send(request[start : start + 7])
    assert raw.read().status == 201


def test_body_byte_by_byte_in_one_segment_each(raw: Raw) -> None:
    raw.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in pay():
        raw.send(bytes([byte]))
    assert raw.read().status == 201


def test_body_chunked(raw: Raw) -> None:
    body = json.dumps(transfer("user:1:USD", "user:2:USD")).encode()
    raw.send(chunked(body[:5], body[5:]) + b"0\r\n\r\n")
    assert raw.read().status == 201
    raw.send(pay())
    assert raw.read().status == 201


def test_body_declared_too_large(raw: Raw) -> None:
    raw.send(request_bytes("POST", "/v1/transfers", b"", {"Content-Length": "50000000"}))
    answer = raw.read()
    assert (answer.status, answer.json["code"]) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert raw.is_closed()


def test_body_chunked_too_large(raw: Raw) -> None:
    raw.send(chunked(b"x" * BODY_MAX, b"x"))
    assert raw.read().status == 413
    assert raw.is_closed()


def test_body_exactly_at_limit(raw: Raw) -> None:
    raw.send(request_bytes("POST", "/v1/transfers", b" " * BODY_MAX))
    assert raw.read().status == 400
    raw.send(request_bytes("POST", "/v1/transfers", b" " * (BODY_MAX + 1)))
    assert raw.read().status == 413


def test_body_too_slow(hasty: Served, hasty_raw: Raw) -> None:
    before = hasty.store.head().sequence
    hasty_raw.send(pay()[:-5])
    assert hasty_raw.read().status == 408
    assert hasty_raw.is_closed()
    assert hasty.store.head().sequence == before


@pytest.mark.parametrize("path", ["/v1/transfers", "/v1/holds"])
def test_body_dripping(hasty_raw: Raw, path: str) -> None:
    hasty_raw.send(request_bytes("POST", path, b"", {"Content-Length": "1000"}))
    with pytest.raises(OSError):
        hasty_raw.drip(b" ", 400, pause_seconds=0.01)


def test_expect_continue(raw: Raw) -> None:
    request = pay(Expect="100-continue")
    head, _, body = request.partition(b"\r\n\r\n")
    raw.send(head + b"\r\n\r\n")
    assert raw.read_head() == b"HTTP/1.1 100 Continue"
    raw.send(body)
    assert raw.read().status == 201


def test_expect_continue_refused_before_body(raw: Raw) -> None:
    headers = {"Expect": "100-continue", "Content-Length": "50000000"}
    raw.send(request_bytes("POST", "/v1/transfers", b"", headers))
    assert raw.read().status == 413


def test_guard_answers_before_body(raw: Raw) -> None:
    raw.send(pay(Origin="http://evil.example")[:-5])
    assert raw.read().status == 403


# ── connections ───────────────────────────────────────────────────────────────────


def test_keep_alive(raw: Raw) -> None:
    for _ in range(3):
        raw.send(pay())
        answer = raw.read()
        assert answer.status == 201
        assert "connection" not in answer.headers


def test_connection_close(raw: Raw) -> None:
    raw.send(pay(Connection="close"))
    assert raw.read().headers["connection"] == "close"
    assert raw.is_closed()


def test_version_1_0(raw: Raw) -> None:
    body = json.dumps(transfer("user:1:USD", "user:2:USD")).encode()
    raw.send(request_bytes("POST", "/v1/transfers", body, version="1.0"))
    answer = raw.read()
    assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert raw.is_closed()


def test_idle_connection_closed(hasty_raw: Raw) -> None:
    assert hasty_raw.is_closed()


def test_idle_after_answer_closed(hasty_raw: Raw) -> None:
    hasty_raw.send(pay())
    assert hasty_raw.read().status == 201
    assert hasty_raw.is_closed()


def test_head_too_slow(hasty_raw: Raw) -> None:
    hasty_raw.send(b"POST /v1/transfers HTTP/1.1\r\nHost: 127")
    assert hasty_raw.read().status == 408
    assert hasty_raw.is_closed()


def test_headers_too_many(raw: Raw) -> None:
    raw.send(pay(**{f"X-{number}": "1" for number in range(200)}))
    assert raw.read().status == 431
    assert raw.is_closed()


def test_header_endless(raw: Raw) -> None:
    raw.send(b"POST /v1/transfers HTTP/1.1\r\nX: ")
    with pytest.raises(OSError):
        raw.drip(b"x" * 4_096, 10_000)


@pytest.mark.parametrize(
    "nonsense", [b"\x16\x03\x01\x02\x00\x01\x00", b"HELLO\r\n\r\n", b"GET \xff HTTP/1.1\r\n\r\n"]
)
def test_nonsense(raw: Raw, nonsense: bytes) -> None:
    raw.send(nonsense)
    answer = raw.read()
    assert (answer.status, answer.json["code"]) == (400, "request_malformed")
    assert raw.is_closed()


def test_upgrade_ignored(raw: Raw) -> None:
    raw.send(pay(Connection="Upgrade", Upgrade="websocket") + pay())
    assert [raw.read().status for _ in range(2)] == [201, 201]


def test_tunnel_refused(raw: Raw) -> None:
    raw.send(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert raw.read().status == 405
    assert raw.is_closed()


def test_too_many_connections() -> None:
    with Served(connections_max=2) as served, served.connect() as first, served.connect() as other:
        first.send(request_bytes("GET", "/livez"))
        other.send(request_bytes("GET", "/livez"))
        assert (first.read().status, other.read().status) == (200, 200)
        with served.connect() as third:
            assert third.read().status == 503


def test_no_work_for_the_collector(raw: Raw) -> None:
    """An answered request leaves no reference cycle behind."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            raw.send(pay() + request_bytes("POST", "/v1/transfers", b"{"))
            assert [raw.read().status for _ in range(2)] == [201, 400]
        exchanges = [found for found in gc.get_objects() if isinstance(found, _Exchange)]
        assert len(exchanges) < 10
    finally:
        gc.enable()


# ── pipelines ─────────────────────────────────────────────────────────────────────


def test_pipelined_in_order(raw: Raw) -> None:
    raw.send(
        pay("1")
        + request_bytes("GET", "/livez")
        + pay("2")
        + request_bytes("POST", "/v1/transfers", b"{")
        + request_bytes("GET", "/v1/accounts/user:1:USD")
        + pay("3")
    )
    answers = [raw.read() for _ in range(6)]
    assert [answer.status for answer in answers] == [201, 200, 201, 400, 200, 201]
    assert [answers[n].json["amount"] for n in (0, 2, 5)] == ["1", "2", "3"]


def test_pipelined_many_refused(raw: Raw) -> None:
    raw.send(request_bytes("POST", "/v1/transfers", b"{") * 2_000)
    assert {raw.read().status for _ in range(2_000)} == {400}


def test_pipelined_waits_its_turn(raw: Raw, slow: SlowStore, served: Served) -> None:
    raw.send(pay() + pay())
    assert slow.is_appending.wait(10)
    assert served.book.engine.waiting == 0
    slow.leave.set()
    assert [raw.read().status for _ in range(2)] == [201, 201]


# ── clients that leave, servers that stop ─────────────────────────────────────────


def vanish(raw: Raw) -> None:
    """End a connection the rough way, at once."""
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.socket.close()


@pytest.mark.parametrize("path", ["/v1/transfers", "/v1/holds"])
def test_client_gone_before_decision(served: Served, slow: SlowStore, path: str) -> None:
    before = served.store.head().sequence
    body = transfer("user:1:USD", "user:2:USD")
    if path == "/v1/holds":
        body = {"account": "user:1:USD", "asset": "USD", "amount": "1"}
    with served.connect() as first, served.connect() as gone:
        first.send(pay())
        assert slow.is_appending.wait(10)
        gone.send(request_bytes("POST", path, json.dumps(body).encode()))
        eventually(lambda: served.book.engine.waiting == 1)
        vanish(gone)
        lanes = served.book.engine._lanes
        eventually(lambda: any(waiting.is_dropped for lane in lanes for waiting in lane))
        slow.leave.set()
        assert first.read().status == 201
    assert served.post("/v1/transfers", transfer("user:1:USD", "user:2:USD")).status == 201
    assert served.store.head().sequence == before + 2


def test_client_gone_after_decision(served: Served, slow: SlowStore) -> None:
    before = served.store.head().sequence
    with served.connect() as gone, served.connect() as other:
        gone.send(pay())
        assert slow.is_appending.wait(10)
        other.send(pay())
        vanish(gone)
        slow.leave.set()
        assert other.read().status == 201
    assert served.store.head().sequence == before + 2


def test_shutdown_waits_for_hot_request() -> None:
    store = SlowStore()
    served = Served(store=store)
    with served, served.connect() as raw, served.connect() as idle:
        served.fund("1", "2")
        store.leave.clear()
        store.is_appending.clear()
        raw.send(pay())
        assert store.is_appending.wait(10)
        served.server.stop()
        assert idle.is_closed()
        store.leave.set()
        answer = raw.read()
        assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert store.head().sequence == 14

"""Whatever is sent, the answer is a clear 4xx, and nothing has changed."""

import json
from collections.abc import Iterator

import pytest

from pennyweight.delivery.http.routes import CommandRoute
from served import Served, transfer

GOOD = json.dumps(transfer("user:1:USD", "user:2:USD")).encode()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served() as served:
        served.fund("1", "2")
        yield served


@pytest.fixture(autouse=True)
def unchanged(served: Served) -> Iterator[None]:
    before = served.store.head()
    yield
    assert served.store.head() == before


def amount_of(text: str) -> bytes:
    return GOOD.replace(b'"1"', text.encode())


BODIES = {
    "empty": b"",
    "spaces": b"  ",
    "cut": GOOD[:-1],
    "more": GOOD + b"}",
    "two": GOOD + GOOD,
    "array": b"[]",
    "null": b"null",
    "true": b"true",
    "number": b"1",
    "text": b'"a"',
    "not json": b"a=b&c=d",
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "utf-16": GOOD.decode().encode("utf-16"),
    "not utf-8 outside": b"\xff" + GOOD,
    "not utf-8 inside": GOOD.replace(b"user:1", b"user:\xff\xfe"),
    "surrogate": GOOD.replace(b"user:1", b"user:\\ud800"),
    "nul": GOOD.replace(b"user:1", b"user:\\u0000"),
    "deep array": b'{"asset":' + b"[" * 200_000,
    "deep object": b'{"debit_account":' * 50_000,
    "deep closed": b"[" * 100_000 + b"]" * 100_000,
    "many fields": b"{" + b",".join(b'"f%d":1' % n for n in range(50_000)) + b"}",
    "long text": GOOD.replace(b"user:1", b"u" * 900_000),
    "unknown field": GOOD[:-1] + b',"colour":"red"}',
    "account null": GOOD.replace(b'"user:1:USD"', b"null"),
    "account number": GOOD.replace(b'"user:1:USD"', b"1"),
    "not text": GOOD.replace(b'"USD"', b'["USD"]'),
}

AMOUNTS = [
    "null",
    "true",
    "false",
    "NaN",
    "Infinity",
    "-Infinity",
    "-0",
    "-0.0",
    "0",
    "0.0",
    "-1",
    "1e999999",
    "1e-999999",
    "1E400",
    "1" * 39,
    "1" * 5_000,
    "1" * 500_000,
    "0." + "0" * 500_000 + "1",
    "1.0000000000000000001",
    "[1]",
    "{}",
    '""',
    '" 1"',
    '"1 "',
    '"+1"',
    '"1_000"',
    '"1,5"',
    '"0x1"',
    '"NaN"',
    '"1\\n"',
    '"\u0661"',
    '"-0"',
    '"01"',
    '".5"',
    '"5."',
    '"1e999999999"',
    '"1e9999999999999"',
    '"' + "1" * 600_000 + '"',
]


@pytest.mark.parametrize("name", BODIES)
def test_body_refused(served: Served, name: str) -> None:
    answer = served.send("POST", "/v1/transfers", BODIES[name])
    assert 400 <= answer.status < 500
    assert answer.json["code"]
    assert len(answer.body) < 1_000


@pytest.mark.parametrize("amount", AMOUNTS, ids=lambda amount: amount[:24])
def test_amount_refused(served: Served, amount: str) -> None:
    answer = served.send("POST", "/v1/transfers", amount_of(amount))
    assert answer.status == 400
    assert answer.json["code"].startswith(("amount_", "body_"))
    assert len(answer.body) < 1_000


@pytest.mark.parametrize("amount", ["-0", "1e999999", "NaN", '"-0"'])
def test_amount_refused_in_list(served: Served, amount: str) -> None:
    for atomic in ("true", "false"):
        body = b'{"atomic":%s,"transfers":[%s]}' % (atomic.encode(), amount_of(amount))
        assert served.send("POST", "/v1/transfers", body).status == 400


def test_every_command_refuses_nonsense(served: Served) -> None:
    for route in served.routes:
        if not isinstance(route, CommandRoute) or route.face != "ledger":
            continue
        path = route.path.replace("{", "").replace("}", "")
        for body in (b"[]", b"{", b"\xff", b'{"nothing":1}', b"[" * 100_000):
            answer = served.send(route.method, path, body)
            assert 400 <= answer.status < 500, (route.path, body[:10], answer)


def test_fifty_megabytes(served: Served) -> None:
    with served.connect() as raw:
        head = b"POST /v1/transfers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50000000\r\n\r\n"
        raw.send(head)
        assert raw.read().status == 413
        assert raw.is_closed()


def test_fifty_megabytes_chunked(served: Served) -> None:
    head = b"POST /v1/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    for route in (b"transfers", b"holds"):
        with served.connect() as raw:
            raw.send(head % route)
            chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
            with pytest.raises(OSError):
                raw.drip(chunk, 800)


def test_length_not_a_number(served: Served) -> None:
    for path in (b"transfers", b"holds"):
        with served.connect() as raw:
            raw.send(
                b"POST /v1/" + path + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: a\r\n\r\n"
            )
            assert raw.read().status == 400


def test_length_and_chunks(served: Served) -> None:
    """Two ways to frame a body at once are a smuggler's trick."""
    with served.connect() as raw:
        raw.send(
            b"POST /v1/transfers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 4\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert raw.read().status == 400

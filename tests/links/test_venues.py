"""Orders to the trading posts, whatever these answer: filled, failed, or in doubt."""

import asyncio
import json
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.ledger.refusals import Refused
from pennyweight.links import venues as module
from pennyweight.links.errors import ExtraMissing
from pennyweight.links.venues import Failed, Filled, InDoubt, Venues
from pennyweight.simulators.posts import Posts
from pennyweight.simulators.pricewalk import PriceWalk
from pennyweight.simulators.trading import Odds, times
from tiny_server import reply, tiny_server

WELL = Odds(failed=0, slow_seconds=0.1, hang_seconds=60)
MARKETS = ("mos_espa", "black_spire")
NOWHERE = "http://127.0.0.1:9"
SUCCESS = {
    "mos_espa": {
        "orderId": "o-1",
        "success": True,
        "type": "market",
        "side": "sell",
        "asset": "BESKAR",
        "currency": "GC",
        "quantity": "2.5",
        "price": "123.45",
        "requestId": "r-1",
    },
    "black_spire": {
        "requestId": "r-1",
        "id": "o-1",
        "side": "SELL",
        "item": "STEEL:MANDALORIAN",
        "amount": msgspec.Raw(b"2.5"),
        "totalPrice": msgspec.Raw(b"123.45"),
    },
}
FILLED = Filled("o-1", "2.5", "123.45")
QUANTITY = {"mos_espa": "quantity", "black_spire": "amount"}
TOTAL = {"mos_espa": "price", "black_spire": "totalPrice"}


@pytest.fixture
def posts():
    with Posts(odds=WELL, interval_seconds=0) as posts:
        yield posts


def sell_all(urls, *orders, timeout_seconds=10.0, **more):
    """The answers of several orders (market, request id, quantity), one after the other."""

    async def run():
        async with Venues(urls, timeout_seconds=timeout_seconds, **more) as venues:
            return [await venues.sell(*order) for order in orders]

    return asyncio.run(run())


def answer_to(market, body, status=200):
    """What an answer to an order of 2.5 under r-1 is taken for; nothing is sent."""
    dialect = module._DIALECTS[market]
    order = dialect.order("r-1", "2.5", "STEEL:MANDALORIAN")
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return module.read_answer(market, order, "2.5", status, data)


# ── the wire ──────────────────────────────────────────────────────────────────────


def test_orders_have_the_schemas_of_the_posts_and_exact_digits(posts):
    quantity = "99.12345678"
    answers = sell_all(posts.urls, *((market, "life-7", quantity) for market in MARKETS))
    for market, answer in zip(MARKETS, answers, strict=True):
        total = times(posts.walk.levels[market][100].sell, quantity)
        assert answer == Filled(f"{market}-1", quantity, total)
    assert posts["mos_espa"].received.pop() == (
        b'{"requestId":"life-7","type":"market","side":"sell","asset":"BESKAR","currency":"GC",'
        b'"quantity":"99.12345678"}'
    )
    assert posts["black_spire"].received.pop() == (
        b'{"requestId":"life-7","side":"SELL","item":"STEEL:MANDALORIAN","amount":99.12345678}'
    )


def test_smallest_quantity_is_written_plain(posts):
    (answer,) = sell_all(posts.urls, ("black_spire", "r", "1e-8"))
    assert b'"amount":0.00000001}' in posts["black_spire"].received[0]
    assert answer.quantity == "0.00000001"


def test_black_spire_may_have_another_word_for_it(posts):
    (answer,) = sell_all(posts.urls, ("black_spire", "r", "1"), item="BSK")
    assert isinstance(answer, Filled)
    assert json.loads(posts["black_spire"].received[0])["item"] == "BSK"


def test_quantity_that_is_none_is_the_callers_fault():
    with pytest.raises(Refused):
        sell_all({"mos_espa": NOWHERE}, ("mos_espa", "r", "1]"))


# ── posts that misbehave ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("market", MARKETS)
def test_failure_is_definite_with_its_reason(posts, market):
    posts[market].fates.append("failed")
    assert sell_all(posts.urls, (market, "r", "1")) == [Failed("the order could not be matched")]


@pytest.mark.parametrize("market", MARKETS)
@pytest.mark.parametrize(
    "fate", ["hung", "error_before", "error_after", "reset_before", "reset_after"]
)
def test_lost_answer_is_in_doubt_and_the_same_id_tells(posts, market, fate):
    posts[market].fates.append(fate)
    order = (market, "r", "1")
    (first,) = sell_all(posts.urls, order, timeout_seconds=0.5)
    again, once_more = sell_all(posts.urls, order, order)
    assert isinstance(first, InDoubt)
    assert isinstance(again, Filled)
    assert again == once_more
    assert len(posts[market].executed) == 1


@pytest.mark.parametrize("market", MARKETS)
def test_slow_and_doubled_answers_confuse_nobody(posts, market):
    fates = ["doubled", "slow", "doubled", "doubled", "well", "failed"]
    posts[market].fates.extend(fates)
    orders = [(market, f"r-{number}", "1") for number in range(len(fates))]
    answers = sell_all(posts.urls, *orders)
    ids = [answer.order_id for answer in answers[:-1]]
    assert ids == [f"{market}-{number}" for number in range(1, len(fates))]
    assert isinstance(answers[-1], Failed)


@pytest.mark.parametrize(
    ("market", "no"), [("mos_espa", b'{"success":false}'), ("black_spire", b'{"error":"no"}')]
)
def test_failure_that_is_told_twice_is_not_the_next_orders(market, no):
    """It names no order. Taken for the answer to the next one, that would be sold twice."""
    yes = msgspec.json.encode(SUCCESS[market])
    kinds = [[reply(body=no), reply(body=no)], [reply(body=yes)]]
    with tiny_server(lambda number, _: kinds[number - 1]) as server:
        urls = {market: "http://{}:{}".format(*server.address)}
        first, second = sell_all(urls, (market, "r-0", "2.5"), (market, "r-1", "2.5"))
    assert isinstance(first, Failed)
    assert second == FILLED


@pytest.mark.parametrize("is_failure_final", [True, False])
def test_every_order_ends_and_the_books_agree(is_failure_final):
    """All that can go wrong does; each order is asked for until it is definite, many at a time."""
    odds = Odds(
        is_failure_final=is_failure_final,
        slow=0.05,
        slow_seconds=0.02,
        hung=0.05,
        hang_seconds=60,
        error_before=0.05,
        error_after=0.05,
        reset_before=0.05,
        reset_after=0.05,
        doubled=0.05,
    )

    async def settle(venues, market, number):
        for life in range(100):
            request_id = f"r-{number}-{life}"
            while isinstance(answer := await venues.sell(market, request_id, "0.5"), InDoubt):
                pass
            if isinstance(answer, Filled):
                return request_id, answer.quantity, answer.total
        raise AssertionError("it never ended")

    async def run(urls):
        async with Venues(urls, timeout_seconds=1) as venues:
            work = (settle(venues, market, n) for n in range(60) for market in MARKETS)
            return await asyncio.gather(*work)

    with Posts(odds=odds, interval_seconds=0.02) as posts:
        ours = asyncio.run(run(posts.urls))
        for market in MARKETS:
            theirs = {(e.request_id, e.quantity, e.price) for e in posts[market].executed}
            mine = set(ours[MARKETS.index(market) :: 2])
            # An order that failed for certain may not be carried out, whatever was in doubt before.
            assert mine == theirs
        assert len({request_id for request_id, _, _ in ours}) >= 60


def test_post_that_is_not_there_is_in_doubt():
    (answer,) = sell_all({"mos_espa": NOWHERE}, ("mos_espa", "r", "1"))
    assert isinstance(answer, InDoubt)


def test_cancelled_call_stays_cancelled(posts):
    posts["mos_espa"].fates.append("hung")

    async def run():
        async with Venues(posts.urls, timeout_seconds=60) as venues:
            call = asyncio.create_task(venues.sell("mos_espa", "r", "1"))
            while not posts["mos_espa"].executed:  # noqa: ASYNC110 - in another thread
                await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            return await venues.sell("mos_espa", "r", "1")

    assert isinstance(asyncio.run(run()), Filled)


def test_order_that_came_too_late_is_never_written(posts):
    """The connection stands, but the process stood still: nothing of the order goes out."""

    async def run():
        async with Venues(posts.urls, timeout_seconds=10) as venues:
            first = await venues.sell("mos_espa", "r-1", "1")
            late = await venues.sell("mos_espa", "r-2", "1", lambda: False)
            return first, late, await venues.sell("mos_espa", "r-3", "1")

    first, late, after = asyncio.run(run())
    assert isinstance(first, Filled)
    assert isinstance(after, Filled)
    assert isinstance(late, InDoubt)
    assert {order.request_id for order in posts["mos_espa"].executed} == {"r-1", "r-3"}


@pytest.mark.parametrize("url", ["", "localhost:3003", "ftp://h", "http://"])
def test_address_that_is_none(url):
    with pytest.raises(ValueError, match="address"):
        Venues({"mos_espa": url}, timeout_seconds=1)


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'pennyweight\[venues\]'"):
        Venues({}, timeout_seconds=1)


# ── what an answer proves ─────────────────────────────────────────────────────────


@pytest.mark.parametrize("market", MARKETS)
@pytest.mark.parametrize(
    ("quantity", "total", "expected"),
    [
        ("2.5", "123.45", FILLED),
        ("2.50", "1.2345e2", FILLED),
        ("1e-8", "0", Filled("o-1", "0.00000001", "0")),
        ("2", "99999999999999", Filled("o-1", "2", "99999999999999")),
        ("2.5", f"1.{'0' * 23}1", Filled("o-1", "2.5", f"1.{'0' * 23}1")),
        ("0", "123.45", InDoubt),
        ("0.0", "0", InDoubt),
        ("2.50000001", "123.45", InDoubt),
        ("2.5", f"1.{'0' * 24}1", Filled("o-1", "2.5", "1")),
        ("2.5", "8.3e-29", Filled("o-1", "2.5", "0")),
        ("2.5", "1e99", InDoubt),
        ("2.5", "1e999999999", InDoubt),
        ("-2.5", "123.45", InDoubt),
        ("2.5", "-123.45", InDoubt),
        ("2.5", "-0", InDoubt),
        ("2.5", "-0.0", InDoubt),
    ],
)
def test_sale_is_read_exactly(market, quantity, total, expected):
    found = {QUANTITY[market]: quantity, TOTAL[market]: total}
    if market == "black_spire":
        found = {name: msgspec.Raw(text.encode()) for name, text in found.items()}
    answer = answer_to(market, SUCCESS[market] | found)
    assert isinstance(answer, InDoubt) if expected is InDoubt else answer == expected


@pytest.mark.parametrize("market", MARKETS)
@pytest.mark.parametrize("value", [None, True, [], {}, "", "NaN", "2,5", " 2.5", "0x1", "\u0661"])
@pytest.mark.parametrize("fields", [QUANTITY, TOTAL])
def test_amount_that_is_none_is_in_doubt(market, value, fields):
    body = SUCCESS[market] | {fields[market]: value}
    assert isinstance(answer_to(market, body), InDoubt)


@pytest.mark.parametrize(
    ("market", "wrong"),
    [
        ("mos_espa", {"requestId": "r-2"}),
        ("mos_espa", {"requestId": None}),
        ("mos_espa", {"requestId": ["r-1"]}),
        ("mos_espa", {"side": "buy"}),
        ("mos_espa", {"asset": "STEEL"}),
        ("mos_espa", {"currency": "USD"}),
        ("mos_espa", {"orderId": ""}),
        ("mos_espa", {"orderId": 7}),
        ("mos_espa", {"success": "true"}),
        ("mos_espa", {"success": 0}),
        ("mos_espa", {"success": None}),
        ("black_spire", {"requestId": "r-2"}),
        ("black_spire", {"side": "sell"}),
        ("black_spire", {"side": "BUY"}),
        ("black_spire", {"item": "STEEL:DURASTEEL"}),
        ("black_spire", {"id": None}),
        ("black_spire", {"error": "but it sold"}),
        ("black_spire", {"error": False}),
    ],
)
def test_success_that_does_not_match_the_order_is_in_doubt(market, wrong):
    assert isinstance(answer_to(market, SUCCESS[market] | wrong), InDoubt)


@pytest.mark.parametrize("market", MARKETS)
def test_success_without_one_of_its_fields_is_in_doubt(market):
    for name in SUCCESS[market].keys() - {"type"}:
        body = {key: value for key, value in SUCCESS[market].items() if key != name}
        assert isinstance(answer_to(market, body), InDoubt), name


@pytest.mark.parametrize("market", MARKETS)
def test_fields_that_nobody_knows_are_passed_over(market):
    assert answer_to(market, SUCCESS[market] | {"more": 1.5, "error": None}) == FILLED


@pytest.mark.parametrize(
    ("market", "body", "expected"),
    [
        ("mos_espa", {"success": False}, Failed("it gave no reason")),
        ("mos_espa", {"success": False, "reason": 5}, Failed("it gave no reason")),
        ("mos_espa", {"success": False, "reason": "a\n\x00\u2028b "}, Failed("a b")),
        ("mos_espa", {"success": False, "reason": "x" * 999}, Failed("x" * 200)),
        ("mos_espa", {"success": False, "requestId": "r-1", "reason": "no"}, Failed("no")),
        ("mos_espa", {"success": False, "requestId": "", "reason": "no"}, Failed("no")),
        ("mos_espa", {"success": False, "requestId": "r-2", "reason": "no"}, InDoubt),
        ("mos_espa", {"success": False, "requestId": [], "reason": "no"}, InDoubt),
        ("mos_espa", {"error": "no"}, InDoubt),
        ("black_spire", {"error": "no"}, Failed("no")),
        ("black_spire", {"requestId": None, "error": "no"}, Failed("no")),
        ("black_spire", {"requestId": "r-1", "error": ""}, Failed("it gave no reason")),
        ("black_spire", {"requestId": "r-2", "error": "no"}, InDoubt),
        ("black_spire", {"error": {"code": 1}}, InDoubt),
        ("black_spire", {"success": False}, InDoubt),
    ],
)
def test_failure_is_believed_if_it_may_be_ours(market, body, expected):
    answer = answer_to(market, body)
    assert isinstance(answer, InDoubt) if expected is InDoubt else answer == expected


@pytest.mark.parametrize("market", MARKETS)
@pytest.mark.parametrize(
    ("status", "expected"),
    [
        *((code, Failed(f"it answered {code}")) for code in (400, 401, 404, 422, 499)),
        *((code, InDoubt(f"it answered {code}")) for code in (408, 409, 425, 429)),
        *((code, InDoubt(f"it answered {code}")) for code in (302, 500, 502, 503, 504)),
    ],
)
@pytest.mark.parametrize("body", [b"", b"{}", b"<html>"])
def test_status_decides_without_a_body_that_says_more(market, status, expected, body):
    assert answer_to(market, body, status) == expected


@pytest.mark.parametrize("market", MARKETS)
def test_status_and_body_that_contradict_each_other(market):
    failure = {"mos_espa": {"success": False, "reason": "no"}, "black_spire": {"error": "no"}}
    assert answer_to(market, failure[market], 422) == Failed("no")
    assert isinstance(answer_to(market, failure[market], 500), InDoubt)
    assert isinstance(answer_to(market, failure[market], 429), InDoubt)
    assert isinstance(answer_to(market, SUCCESS[market], 400), InDoubt)
    assert isinstance(answer_to(market, SUCCESS[market], 500), InDoubt)
    assert answer_to(market, SUCCESS[market], 201) == FILLED


@pytest.mark.parametrize("body", [b"\xff", b'{"success":true,"x":"\xff"}', b"[" * 9_999, b"NaN"])
@pytest.mark.parametrize("market", MARKETS)
def test_body_that_does_not_parse_is_in_doubt(market, body):
    assert isinstance(answer_to(market, body), InDoubt)


json_values = st.sampled_from(
    [None, True, False, 0, 1, -1, 2.5, 1e300, 2**70, [], [1], {}, {"a": 1}, "", "r-1", "sell"]
) | st.text(alphabet="0123456789.-+eE", max_size=8)


@given(
    st.sampled_from(MARKETS),
    st.integers(200, 299),
    st.dictionaries(
        st.sampled_from(sorted({*SUCCESS["mos_espa"], *SUCCESS["black_spire"], "error", "reason"})),
        json_values,
    ),
)
def test_changed_success_is_never_more_than_was_asked(market, status, changes):
    answer = answer_to(market, SUCCESS[market] | changes, status)
    if isinstance(answer, Filled):
        assert changes.get("requestId", "r-1") == "r-1"
        assert 0 < float(answer.quantity) <= 2.5
        assert float(answer.total) >= 0
    elif isinstance(answer, Failed):
        assert changes.get("success") is False or isinstance(changes.get("error"), str)


@given(st.sampled_from(MARKETS), st.integers(100, 599), st.binary() | st.text().map(str.encode))
def test_any_body_has_a_meaning(market, status, body):
    answer = answer_to(market, body, status)
    is_refused = 400 <= status < 500 and status not in {408, 409, 425, 429}
    assert isinstance(answer, Failed if is_refused else InDoubt)


# ── raw answers ───────────────────────────────────────────────────────────────────

GOOD = msgspec.json.encode(SUCCESS["mos_espa"])
RAW = {
    "nothing": None,
    "no HTTP": [b"hello\r\n\r\n"],
    "binary": [bytes(range(256)) * 4],
    "cut head": [b"HTTP/1.1 200 OK\r\nContent-Le"],
    "cut body": [reply(body=GOOD)[:-5]],
    "cut body of a refusal": [reply(400, GOOD)[:-5]],
    "negative length": [b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + GOOD],
    "two lengths": [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"],
    "bad chunks": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"],
    "bad header": [b"HTTP/1.1 200 OK\r\n\xff\xfe: \x00\r\nContent-Length: 2\r\n\r\n{}"],
    "long header": [b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n{}"],
    "bad cookie": [b"HTTP/1.1 200 OK\r\nSet-Cookie: \x01=;;=\xff\r\nContent-Length: 2\r\n\r\n{}"],
    "status 999": [b"HTTP/1.1 999 X\r\nContent-Length: 2\r\n\r\n{}"],
    "status 99999": [b"HTTP/1.1 99999 X\r\nContent-Length: 2\r\n\r\n{}"],
    "redirect": [b"HTTP/1.1 302 F\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"],
    "bad redirect": [b"HTTP/1.1 307 F\r\nLocation: ::::\r\nContent-Length: 0\r\n\r\n"],
    "gzip": [
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(GOOD)
        + GOOD
    ],
    "no answer": [reply(body=b"")],
    "too long": [reply(body=GOOD[:-1] + b" " * 70_000 + b"}")],
    "endless": [b"HTTP/1.1 200 OK\r\n\r\n", *[b" " * 30_000] * 4],
    "another order's": [reply(body=GOOD.replace(b"r-1", b"r-2"))],
}


@pytest.mark.parametrize("name", RAW)
def test_raw_answers_that_prove_nothing(name):
    with tiny_server(lambda *_: RAW[name]) as server:
        urls = {"mos_espa": "http://{}:{}".format(*server.address)}
        answers = sell_all(urls, *[("mos_espa", "r-1", "2.5")] * 2, timeout_seconds=1)
    expected = Filled if name == "gzip" else InDoubt  # it says so, but is none
    assert [type(answer) for answer in answers] == [expected] * 2
    if name != "redirect":
        assert len(server.requests) == 2


def test_answer_in_pieces_and_in_chunks():
    pieces = [reply(body=GOOD)[:30], reply(body=GOOD)[30:90], reply(body=GOOD)[90:]]
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n"
    kinds = [pieces, [chunked % (len(GOOD), GOOD)]]
    with tiny_server(lambda number, _: kinds[number - 1]) as server:
        urls = {"mos_espa": "http://{}:{}".format(*server.address)}
        assert sell_all(urls, *[("mos_espa", "r-1", "2.5")] * 2) == [FILLED, FILLED]


def test_one_post_that_hangs_holds_up_nobody_at_the_other():
    with Posts(odds=WELL, interval_seconds=0, walk=PriceWalk(2)) as posts:
        posts["mos_espa"].odds = Odds(hung=1, hang_seconds=60)

        async def run():
            async with Venues(posts.urls, timeout_seconds=60) as venues:
                stuck = [
                    asyncio.create_task(venues.sell("mos_espa", f"r-{n}", "1"))
                    for n in range(module.CONNECTIONS_PER_POST_MAX + 5)
                ]
                answer = await venues.sell("black_spire", "r", "1")
                for call in stuck:
                    call.cancel()
                await asyncio.gather(*stuck, return_exceptions=True)
                return answer

        assert isinstance(asyncio.run(run()), Filled)

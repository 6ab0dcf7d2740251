"""The trading posts: what they quote, what they sell, and how they misbehave."""

import asyncio
import http.client
import http.server
import json
import threading
import time
from decimal import Decimal

import msgspec
import pytest

from pennyweight.delivery.cli import simulate_venues
from pennyweight.delivery.cli.shared import UserError
from pennyweight.delivery.cli.simulate_venues import venues
from pennyweight.delivery.prices import read_price
from pennyweight.ledger.money import to_units
from pennyweight.links.errors import LinkError
from pennyweight.products.loans.shared import SCALE, quote_problem
from pennyweight.simulators.posts import Posts
from pennyweight.simulators.pricewalk import OTHER_ITEM, PriceWalk
from pennyweight.simulators.trading import BadOrder, Odds, Post, times

AT = 1_760_000_000_123
WELL = Odds(failed=0)


def mos_espa_order(request_id="r-1", quantity="2.5", **more):
    return {
        "requestId": request_id,
        "type": "market",
        "side": "sell",
        "asset": "BESKAR",
        "currency": "GC",
        "quantity": quantity,
        **more,
    }


def black_spire_order(request_id="r-1", amount="2.5", **more):
    fields = {"requestId": request_id, "side": "SELL", "item": "STEEL:MANDALORIAN"}
    return {**fields, "amount": msgspec.Raw(amount.encode()), **more}


ORDERS = {"mos_espa": mos_espa_order, "black_spire": black_spire_order}
PATHS = {"mos_espa": "/orders", "black_spire": "/market/orders"}


def ask(posts, market, method, path, body=None, timeout=10.0):
    """Status and text of one answer."""
    address = posts.urls[market].removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request(method, path, None if body is None else msgspec.json.encode(body))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def order(posts, market, timeout=10.0, **fields):
    return ask(posts, market, "POST", PATHS[market], ORDERS[market](**fields), timeout)


@pytest.fixture
def posts():
    with Posts(odds=WELL, interval_seconds=0) as posts:
        yield posts


# ── prices ────────────────────────────────────────────────────────────────────────


def test_messages_are_true_to_the_wire():
    walk = PriceWalk(1, script=["50"], noise=0)
    (one, mos_espa), (other, black_spire) = walk.tick(AT)
    assert (one, other) == ("mos_espa", "black_spire")
    assert mos_espa == (
        b'{"eventId":"price-1760000000123-1","asset":"BESKAR","currency":"GC",'
        b'"timestamp":"2025-10-09T08:53:20.123Z","price":50.00,"levels":['
        b'{"quantity":1,"buy":"50.25","sell":"49.75"},'
        b'{"quantity":10,"buy":"50.75","sell":"49.25"},'
        b'{"quantity":50,"buy":"51.10","sell":"48.90"},'
        b'{"quantity":100,"buy":"51.25","sell":"48.75"}]}'
    )
    assert black_spire == (
        b'{"item":"STEEL:MANDALORIAN","time":1760000000,"timestamp":1760000000123,'
        b'"price":50.00000000,"buy":['
        b'{"amount":1,"price":50.20000000},{"amount":10,"price":50.61666667},'
        b'{"amount":50,"price":50.90790417},{"amount":100,"price":51.03333333}],"sell":['
        b'{"amount":1,"price":49.80000000},{"amount":10,"price":49.38333333},'
        b'{"amount":50,"price":49.09209583},{"amount":100,"price":48.96666667}]}'
    )


def test_price_walks_within_its_bounds_and_alike_for_a_seed():
    walk, again = PriceWalk(7, start="11"), PriceWalk(7, start="11")
    before = None
    for number in range(500):
        assert walk.tick(AT + number) == again.tick(AT + number)
        assert walk.mid >= 10
        if before is not None and walk.mid != 10:
            assert Decimal("0.93999") <= walk.mid / before <= Decimal("1.06001")
        for levels in walk.levels.values():
            sells = [Decimal(sides.sell) for sides in levels.values()]
            assert sells == sorted(set(sells), reverse=True)
            assert abs(Decimal(levels[1].sell) / walk.mid - Decimal("0.9955")) < Decimal("0.012")
        before = walk.mid
    assert PriceWalk(8, start="11").tick(AT) != PriceWalk(7, start="11").tick(AT)


@pytest.mark.parametrize("mos_espa", [2, 5, 8])
@pytest.mark.parametrize("black_spire", [2, 5, 8])
def test_engine_takes_every_price(mos_espa, black_spire):
    walk = PriceWalk(
        5, start="10", others=0.2, decimals={"mos_espa": mos_espa, "black_spire": black_spire}
    )
    for number in range(200):
        for market, body in walk.tick(AT + 1_000 * number):
            quote = read_price(market, body, 0)
            if quote is None:
                assert b"DURASTEEL" in body
                continue
            assert quote_problem(quote.levels) == ""
            sells = {size: to_units(s.sell, SCALE) for size, s in walk.levels[market].items()}
            assert {level.quantity: level.sell for level in quote.levels} == sells
            assert quote.at // 1_000_000 == AT // 1_000 + number


def test_script_goes_first_and_the_walk_goes_on_from_its_end():
    walk = PriceWalk(1, script=["50", "31.25", "64"])
    assert [walk.tick(AT) and walk.mid for _ in range(3)] == [50, Decimal("31.25"), 64]
    walk.tick(AT)
    assert Decimal(60) < walk.mid < Decimal(68)


def test_other_items_occur():
    walk = PriceWalk(1, others=1)
    bodies = [json.loads(body) for market, body in walk.tick(AT) if market == "black_spire"]
    assert sorted(body["item"] for body in bodies) == [OTHER_ITEM, "STEEL:MANDALORIAN"]


def test_decimals_are_as_wanted():
    walk = PriceWalk(1, decimals={"mos_espa": 8, "black_spire": 2})
    walk.tick(AT)
    assert len(walk.levels["mos_espa"][10].sell.partition(".")[2]) == 8
    assert len(walk.levels["black_spire"][10].sell.partition(".")[2]) == 2


def test_prices_are_published_until_it_stops():
    told = []
    with Posts(odds=WELL, interval_seconds=0.01, publish=lambda *message: told.append(message)):
        until = time.monotonic() + 20
        while len(told) < 6 and time.monotonic() < until:
            time.sleep(0.01)
    assert [market for market, _ in told[:4]] == ["mos_espa", "black_spire"] * 2
    assert json.loads(told[0][1])["eventId"] < json.loads(told[2][1])["eventId"]


def test_price_that_is_not_taken_stops_nothing():
    answers = iter([LinkError("away"), None, OSError("gone"), None])

    def publish(market, body):
        answer = next(answers)
        if answer is not None:
            raise answer

    posts = Posts(interval_seconds=0, publish=publish)
    posts.tick()
    posts.tick()
    assert (posts.published, posts.unpublished, posts.problem) == (2, 2, "")


@pytest.mark.parametrize("price", ["", "x", "-1", "0", "NaN", "1,5"])
def test_price_that_is_none(price):
    with pytest.raises(ValueError, match=r"."):
        PriceWalk(1, start=price)
    with pytest.raises(ValueError, match=r"."):
        PriceWalk(1, script=[price])


# ── orders ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("market", ["mos_espa", "black_spire"])
@pytest.mark.parametrize(("quantity", "size"), [("1", 1), ("1.00000001", 10), ("100", 100)])
def test_order_brings_the_average_of_its_size(posts, market, quantity, size):
    status, text = order(posts, market, **{list(ORDERS[market]())[-1]: quantity})
    total = times(posts.walk.levels[market][size].sell, quantity)
    if market == "mos_espa":
        assert (status, json.loads(text)) == (
            200,
            mos_espa_order(quantity=quantity)
            | {"orderId": "mos_espa-1", "success": True, "price": total},
        )
    else:
        assert text == (
            '{"requestId":"r-1","id":"black_spire-1","side":"SELL","item":"STEEL:MANDALORIAN",'
            f'"amount":{quantity},"totalPrice":{total}}}'
        )
    (done,) = json.loads(ask(posts, market, "GET", "/executed")[1])
    assert done["at"] > AT
    assert {name: done[name] for name in ("requestId", "quantity", "price")} == {
        "requestId": "r-1",
        "quantity": quantity,
        "price": total,
    }
    assert posts[market].executed[0].price == total


def test_total_is_exact():
    assert times("33.33333333", "99.99999999") == "3333.3333326666666667"


def test_posts_are_well(posts):
    assert ask(posts, "mos_espa", "GET", "/health") == (200, '{"status":"ok"}')
    assert ask(posts, "black_spire", "GET", "/nowhere")[0] == 404


def test_buying_costs_the_other_side(posts):
    text = order(posts, "mos_espa", side="buy", quantity="10")[1]
    assert json.loads(text)["price"] == times(posts.walk.levels["mos_espa"][10].buy, "10")


@pytest.mark.parametrize("market", ["mos_espa", "black_spire"])
def test_same_id_is_carried_out_once_with_the_same_answer(posts, market):
    first = order(posts, market)
    posts.tick()
    assert order(posts, market) == first
    assert len(posts[market].executed) == 1


@pytest.mark.parametrize("is_final", [True, False])
def test_failed_id_fails_again_or_is_tried_afresh(is_final):
    with Posts(odds=Odds(failed=0, is_failure_final=is_final), interval_seconds=0) as posts:
        posts["mos_espa"].fates.append("failed")
        posts["black_spire"].fates.append("failed")
        first = [order(posts, market) for market in ORDERS]
        again = [order(posts, market) for market in ORDERS]
    assert first == [
        (200, '{"requestId":"r-1","success":false,"reason":"the order could not be matched"}'),
        (200, '{"requestId":"r-1","error":"the order could not be matched"}'),
    ]
    assert (again == first) is is_final
    assert len(posts["mos_espa"].executed) == len(posts["black_spire"].executed) == 1 - is_final


def test_three_in_ten_fail_whatever_the_order_they_come_in():
    outcomes = []
    for numbers in (range(1_000), reversed(range(1_000))):
        walk = PriceWalk(1)
        walk.tick(AT)
        post = Post("mos_espa", walk, Odds(slow=0.1, doubled=0.1), 3)
        for number in numbers:
            fate, is_failing = post.fate_of(f"r-{number}")
            asked = post.read(msgspec.json.encode(mos_espa_order(f"r-{number}")))
            post.fated[fate] += 1
            post.carry_out(asked, is_failing=is_failing, at=AT)
        outcomes.append((post.fated, {done.request_id for done in post.executed}))
    assert outcomes[0] == outcomes[1]
    fated, _ = outcomes[0]
    assert 250 <= fated["failed"] <= 350
    assert 60 <= fated["slow"] <= 140
    assert 60 <= fated["doubled"] <= 140
    assert fated["well"] + fated["slow"] + fated["doubled"] == 1_000


@pytest.mark.parametrize(
    ("fate", "executed"),
    [
        ("error_before", 0),
        ("error_after", 1),
        ("reset_before", 0),
        ("reset_after", 1),
        ("hung", 1),
    ],
)
def test_answer_may_be_lost_before_or_after_the_order(fate, executed):
    with Posts(odds=Odds(failed=0, hang_seconds=60), interval_seconds=0) as posts:
        post = posts["black_spire"]
        post.fates.append(fate)
        if fate.startswith("error"):
            assert order(posts, "black_spire")[0] == 503
        else:
            kind = TimeoutError if fate == "hung" else ConnectionResetError
            with pytest.raises(kind):
                order(posts, "black_spire", timeout=0.3 if fate == "hung" else 10)
        assert len(post.executed) == executed
        status, text = order(posts, "black_spire")
        assert (status, json.loads(text)["id"]) == (200, "black_spire-1")
        assert len(post.executed) == 1
        assert post.fated == {fate: 1, "well": 1}


def test_slow_answer_comes_and_doubled_one_comes_twice():
    with Posts(odds=Odds(failed=0, slow_seconds=0.1), interval_seconds=0) as posts:
        posts["mos_espa"].fates.extend(["slow", "doubled"])
        started = time.monotonic()
        slow = order(posts, "mos_espa")
        assert time.monotonic() - started >= 0.1
        assert order(posts, "mos_espa") == slow


@pytest.mark.parametrize(
    ("market", "wrong"),
    [
        ("mos_espa", {"quantity": 2.5}),
        ("mos_espa", {"quantity": "0"}),
        ("mos_espa", {"quantity": "-1"}),
        ("mos_espa", {"quantity": "NaN"}),
        ("mos_espa", {"side": "SELL"}),
        ("mos_espa", {"asset": "STEEL:MANDALORIAN"}),
        ("mos_espa", {"currency": "USD"}),
        ("mos_espa", {"type": "limit"}),
        ("mos_espa", {"requestId": 1}),
        ("mos_espa", {"requestId": ""}),
        ("black_spire", {"amount": "2.5"}),
        ("black_spire", {"amount": 0}),
        ("black_spire", {"amount": None}),
        ("black_spire", {"amount": [1]}),
        ("black_spire", {"side": "sell"}),
        ("black_spire", {"item": "BESKAR"}),
    ],
)
def test_what_is_no_order_is_refused(posts, market, wrong):
    body = ORDERS[market]() | wrong
    status, text = ask(posts, market, "POST", PATHS[market], body)
    assert status == 400
    assert json.loads(text).keys() in ({"success", "reason"}, {"error"})
    assert posts[market].executed == []


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"1", b"\xff", b"[" * 10_000])
def test_rubbish_is_no_order(body):
    for market in ORDERS:
        with pytest.raises(BadOrder):
            Post(market, PriceWalk(1), WELL, 1).read(body)


def test_order_before_the_first_price_fails():
    post = Post("mos_espa", PriceWalk(1), WELL, 1)
    asked = post.read(msgspec.json.encode(mos_espa_order()))
    assert b'"success":false' in post.carry_out(asked, is_failing=False, at=AT)


def test_body_that_is_too_long_is_not_read(posts):
    address = posts.urls["mos_espa"].removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.putrequest("POST", "/orders")
    connection.putheader("Content-Length", "1000000000")
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_posts_open_again_with_their_books_and_ports():
    posts = Posts(odds=WELL, interval_seconds=0)
    with posts:
        urls, first = posts.urls, order(posts, "mos_espa")
    with pytest.raises(OSError, match="refused"):
        order(posts, "mos_espa")
    with posts:
        assert posts.urls == urls
        assert order(posts, "mos_espa") == first


def test_posts_in_a_loop_of_somebody_else():
    async def run():
        async with Posts(odds=WELL) as posts:
            return await asyncio.to_thread(order, posts, "black_spire")

    assert asyncio.run(run())[0] == 200


def test_port_that_is_taken(posts):
    ports = {"mos_espa": int(posts.urls["mos_espa"].rpartition(":")[2]), "black_spire": 0}
    with pytest.raises(OSError, match="address already in use"):
        Posts(ports=ports).open()


# ── the command ───────────────────────────────────────────────────────────────────


def test_command_pushes_prices_to_an_engine_and_tells_what_it_did(capsys):
    pushed = []

    class Engine(http.server.BaseHTTPRequestHandler):
        """Takes Mos Espa's prices only."""

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            pushed.append((self.path, body, self.headers["Authorization"]))
            self.send_response(202 if "espa" in self.path else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        code = venues(
            mos_espa_port=0,
            black_spire_port=0,
            push_to="http://{}:{}".format(*server.server_address),
            token="secret",
            interval=0.02,
            other_items=0,
            seconds=1.0,
            json=True,
        )
        server.shutdown()
        thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0].startswith("ready mos_espa http://127.0.0.1:")
    assert lines[1].startswith("ready black_spire http://127.0.0.1:")
    told = json.loads(lines[2])
    assert told["executed"] == {"mos_espa": 0, "black_spire": 0}
    assert told["prices_published"] > 1
    assert told["prices_lost"] > 1
    assert [path for path, _, _ in pushed[:2]] == ["/prices/mos-espa", "/prices/black-spire"]
    assert {token for _, _, token in pushed} == {"Bearer secret"}
    assert json.loads(pushed[0][1])["asset"] == "BESKAR"


def test_command_publishes_to_the_topics_of_the_seed(capsys, monkeypatch):
    """A topic that cannot be made at first is made later; no price stops the next one."""
    made, published = [], []

    class Cloud:
        def __init__(self, endpoint, region):
            assert (endpoint, region) == ("http://cloud", "us-east-1")

        def topic(self, name):
            made.append(name)
            if len(made) == 1:
                raise LinkError("away")
            return f"arn:{name}"

        def publish(self, topic, message):
            published.append((topic, json.loads(message)))

    monkeypatch.setattr(simulate_venues, "Aws", Cloud)
    ports = {"mos_espa_port": 0, "black_spire_port": 0}
    venues(**ports, aws="http://cloud", interval=0.02, other_items=0, seconds=1.0, json=True)
    told = json.loads(capsys.readouterr().out.splitlines()[2])
    assert (told["prices_published"], told["prices_lost"]) == (len(published), 1)
    mos_espa, black_spire = "tatooine-mos-espa-prices", "batuu-black-spire-outpost-price-stream"
    assert made == [mos_espa, black_spire, mos_espa]
    assert {topic for topic, _ in published} == {f"arn:{mos_espa}", f"arn:{black_spire}"}
    assert published[0][1]["item"] == "STEEL:MANDALORIAN"


def test_command_without_an_engine_says_what_it_did(capsys, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert venues(mos_espa_port=0, black_spire_port=0, seconds=0.05, aws=None) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "mos_espa: 0 orders carried out; requests: none",
        "black_spire: 0 orders carried out; requests: none",
        "0 prices published",
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"failed": 1.1},
        {"slow": -0.1},
        {"hung": 0.6, "slow": 0.6},
        {"interval": 0},
        {"hang_seconds": -1},
        {"start": "x"},
        {"script": "50,-1"},
        {"push_to": "ftp://x"},
    ],
)
def test_command_refuses_what_makes_no_sense(wrong):
    with pytest.raises(UserError) as found:
        venues(**{"mos_espa_port": 0, "black_spire_port": 0, "seconds": 0.0, **wrong})
    assert found.value.code == 2

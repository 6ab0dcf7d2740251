"""`pennyweight simulate settlements`: the venue over HTTP and over Kafka; nothing counts twice."""

import http.client
import time

import msgspec
import pytest

from pennyweight.links.inwheel import InWheelBroker
from pennyweight.simulators.server import Server, verify

COUNT = 12
ODDS = (
    *("--delay", 0.2, "--seed", 4, "--count", COUNT, "--json"),
    *("--over-fill", 0.2, "--unfilled", 0.2, "--duplicates", 0.6, "--rubbish", 0.5),
    *("--unsolicited", 0.3, "--invented", 0.3),
)


@pytest.fixture
def book(cli, tmp_path):
    users = tmp_path / "users.csv"
    users.write_text("User_Id,BTC,USD\n" + "".join(f"{100 + n},5,100\n" for n in range(COUNT)))
    assert cli("load", users, "--data", tmp_path / "book").code == 0
    return tmp_path / "book"


def ask(server, method, path, body=None):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
    headers = {"content-type": "application/json"}
    connection.request(method, path, None if body is None else msgspec.json.encode(body), headers)
    answer = connection.getresponse()
    document = msgspec.json.decode(answer.read())
    connection.close()
    assert answer.status == 200, document
    return document


def withdraw(server):
    for number in range(COUNT):
        body = {"user_id": 100 + number, "token": "BTC", "requested_quantity": "1.5"}
        answer = ask(server, "POST", "/withdrawals", body | {"withdrawal_id": f"x-{number}"})
        assert answer["status"] == "SUFFICIENT_BALANCE"


def balances(server):
    users = [ask(server, "GET", f"/users/{100 + n}/balances")["balances"] for n in range(COUNT)]
    assert all(balance["held"] == "0" for user in users for balance in user.values())
    return users


def statuses(server):
    shown = (ask(server, "GET", f"/withdrawals/x-{number}") for number in range(COUNT))
    return {one["status"] for one in shown}


def test_venue_over_http_settles_all_and_again_without_effect(cli, book):
    with Server(book) as server:
        withdraw(server)
        first = cli("simulate", "settlements", "--address", server.address, *ODDS)
        assert first.code == 0, first.err
        assert first.json["accepted"] == COUNT
        assert first.json["waiting"] == 0
        assert set(first.json["sent"]) >= {"settled", "duplicate", "rubbish", "unsolicited"}
        assert statuses(server) == {"settled", "cancelled"}
        settled = balances(server)
        again = cli("simulate", "settlements", "--address", server.address, *ODDS)
        assert again.json["sent"] == first.json["sent"]
        assert balances(server) == settled
    assert verify(book).ok


def test_venue_over_kafka_settles_all(cli, book):
    with InWheelBroker() as broker, Server(book, options=["--kafka", broker.address]) as server:
        withdraw(server)
        ran = cli("simulate", "settlements", "--kafka", broker.address, *ODDS)
        assert ran.code == 0, ran.err
        assert ran.json["accepted"] == COUNT
        rubbish = ran.json["sent"]["rubbish"] + ran.json["sent"].get("invented", 0)
        until = time.monotonic() + 60
        while time.monotonic() < until:
            letters = ask(server, "GET", "/dead-letters")["data"]
            if len(letters) == rubbish and statuses(server) == {"settled", "cancelled"}:
                break
        assert len(letters) == rubbish
        balances(server)
    assert verify(book).ok


def test_venue_without_an_engine_says_so(cli):
    ran = cli("simulate", "settlements", "--address", "http://127.0.0.1:9")
    assert ran.code == 1
    assert "refused" in ran.err.lower()


@pytest.mark.parametrize("words", [("--rate", 0), ("--rubbish", 1.5), ("--delay=-1",)])
def test_venue_refuses_what_makes_no_sense(cli, words):
    ran = cli("simulate", "settlements", *words)
    assert ran.code == 2

"""The bank's clients: what they ask for, what they post, and what they never do again."""

import http.server
import json
import threading
import time
from collections import Counter
from decimal import Decimal

import msgspec
import pytest

from pennyweight.delivery.cli.shared import UserError
from pennyweight.delivery.cli.simulate_clients import clients
from pennyweight.simulators.borrowers import (
    Actor,
    Borrowers,
    HttpBank,
    enough,
    number_text,
    price_for,
)

PRICES = {1: Decimal(50), 10: Decimal("49.5"), 50: Decimal(49), 100: Decimal("48.5")}


class FakeBank:
    """Answers as a function tells it, 202 without one, and remembers what it was asked."""

    def __init__(self, answer=lambda path, body: 202, prices=PRICES):
        self.answer, self.now = answer, prices
        self.asked = []

    def post(self, path, body):
        found = json.loads(body)
        self.asked.append((path, found))
        return self.answer(path, found)

    def prices(self):
        return self.now

    def of(self, path):
        return [body for asked, body in self.asked if asked == path]

    @property
    def applications(self):
        return self.of("/loan-applications")

    @property
    def top_ups(self):
        return self.of("/collateral-top-ups")


def actor_with(bank, seed="x"):
    counts = Counter()
    return Actor(seed, bank, lambda what: counts.update([what])), counts


def posted(bank, loan_id):
    return sum(Decimal(body["amount"]) for body in bank.top_ups if body["loanId"] == loan_id)


@pytest.mark.parametrize("seed", range(40))
def test_collateral_is_twice_the_loan_in_one_to_three_parts(seed):
    bank = FakeBank()
    actor, counts = actor_with(bank, f"s{seed}")
    actor.apply()
    (asked,) = bank.applications
    assert asked.keys() == {"requestId", "loanId", "borrowerId", "amount"}
    assert all(isinstance(value, str) for value in asked.values())
    assert 0 < Decimal(asked["amount"]) <= actor.largest <= 10_000
    assert 1 <= len(bank.top_ups) <= 3
    for body in bank.top_ups:
        assert body.keys() == asked.keys()
        assert body["borrowerId"] == asked["borrowerId"] == actor.id
    ids = [body["requestId"] for _, body in bank.asked]
    assert len(set(ids)) == len(ids)
    collateral = posted(bank, asked["loanId"])
    value = collateral * price_for(PRICES, collateral)
    assert 0 <= value - 2 * Decimal(asked["amount"]) < Decimal("1e-6")
    assert counts == {"application 202": 1, "top-up 202": len(bank.top_ups)}


def test_all_sizes_and_numbers_of_parts_occur():
    largest, parts = set(), set()
    for seed in range(300):
        bank = FakeBank()
        actor, _ = actor_with(bank, f"s{seed}")
        actor.apply()
        largest.add(len(str(int(actor.largest))))
        parts.add(len(bank.top_ups))
    assert largest >= {1, 2, 3, 4}
    assert parts == {1, 2, 3}


def test_falling_price_is_answered_by_a_top_up_to_one_half():
    bank = FakeBank()
    actor, _ = actor_with(bank)
    actor.apply()
    loan_id, amount = bank.applications[0]["loanId"], Decimal(bank.applications[0]["amount"])
    before = len(bank.top_ups)
    actor.monitor()
    assert len(bank.top_ups) == before  # nothing is wrong
    bank.now = {size: price * Decimal("0.62") for size, price in PRICES.items()}  # LTV 80.6 %
    actor.monitor()
    assert len(bank.top_ups) == before + 1
    collateral = posted(bank, loan_id)
    assert amount * 2 <= collateral * price_for(bank.now, collateral) < amount * 2 + 1
    bank.now = {size: price * Decimal("0.56") for size, price in PRICES.items()}  # LTV 55 %
    actor.monitor()
    assert len(bank.top_ups) == before + 1  # nobody worries below 63.8 %


def test_patience_depends_on_the_risk_it_takes():
    patience = [actor_with(FakeBank(), f"s{seed}")[0].patience for seed in range(100)]
    assert all(Decimal("0.638") <= found <= Decimal("0.752") for found in patience)
    assert len(set(patience)) > 50


@pytest.mark.parametrize("status", [0, 400, 500, 503])
def test_failed_application_is_never_sent_again(status):
    bank = FakeBank(lambda path, body: status)
    actor, counts = actor_with(bank)
    actor.apply()
    assert (len(bank.asked), actor.loans) == (1, [])
    assert counts == {f"application {status or 'unanswered'}": 1}


def test_lost_top_up_is_made_up_for_under_another_id():
    statuses = iter([202, 0])
    bank = FakeBank(lambda path, body: next(statuses, 202))
    actor, _ = actor_with(bank)
    actor.apply()
    lost = bank.top_ups[0]
    bank.now = {size: price / 2 for size, price in PRICES.items()}
    actor.monitor()
    assert bank.top_ups[-1]["requestId"] != lost["requestId"]
    assert len({body["requestId"] for body in bank.top_ups}) == len(bank.top_ups)


def test_loan_that_is_being_liquidated_is_left_alone():
    bank = FakeBank()
    actor, counts = actor_with(bank)
    actor.apply()
    bank.answer = lambda path, body: 409
    bank.now = {size: price / 2 for size, price in PRICES.items()}
    actor.monitor()
    actor.monitor()
    assert actor.loans == []
    assert counts["top-up 409"] == 1


def test_without_a_price_nobody_applies():
    bank = FakeBank(prices={})
    actor, counts = actor_with(bank)
    actor.apply()
    actor.monitor()
    assert (bank.asked, counts) == ([], {"no price": 2})


def test_actors_die_after_ten_actions_at_most_and_sooner_mostly():
    lives = []
    for seed in range(500):
        actor, _ = actor_with(FakeBank(), f"s{seed}")
        while actor.tick():
            pass
        lives.append(actor.actions)
    assert max(lives) <= 10
    assert 3 < sum(lives) / len(lives) < 4.5


def test_same_seed_makes_the_same_life():
    asked = []
    for _ in range(2):
        bank = FakeBank()
        for seed in range(5):
            actor, _ = actor_with(bank, f"s{seed}")
            while actor.tick():
                pass
        asked.append(bank.asked)
    assert asked[0] == asked[1] != []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("100", "100"),
        ("12.50", "12.5"),
        ("0.000001", "0.000001"),
        ("0.00000095", "9.5e-7"),
        ("1e-8", "1e-8"),
    ],
)
def test_numbers_are_written_as_javascript_does(value, text):
    assert number_text(Decimal(value)) == text


def test_enough_looks_at_the_price_of_its_own_size():
    assert enough(Decimal(25), PRICES) == 1
    assert enough(Decimal("24.75"), PRICES) == Decimal("0.99")
    assert enough(Decimal(99), PRICES) == 4
    assert enough(Decimal(4_850), PRICES) == 200


def test_borrowers_live_and_stop():
    bank = FakeBank()
    with Borrowers(bank, seed=3, actors=4, ticks_per_second=200) as borrowers:
        until = time.monotonic() + 30
        while len(bank.applications) < 20 and time.monotonic() < until:
            time.sleep(0.01)
    counts = borrowers.counts
    assert counts["client"] > 4
    assert counts["application 202"] == len(bank.applications) >= 20
    assert counts["top-up 202"] == len(bank.top_ups)
    sent = len(bank.asked)
    time.sleep(0.05)
    assert len(bank.asked) == sent


# ── over HTTP ─────────────────────────────────────────────────────────────────────

BEST = {"best": [{"quantity": size, "market": "m", "sell": str(p)} for size, p in PRICES.items()]}


@pytest.fixture
def bank_server():
    """Answers with the statuses it is given; 0 hangs up."""
    statuses, requests = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, self.headers["Authorization"], body))
            status = statuses.pop(0)
            if status:
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address, statuses, requests
        server.shutdown()
        thread.join()


def test_http_bank_posts_and_gives_up(bank_server):
    address, statuses, requests = bank_server
    statuses += [202, 409, 0]
    bank = HttpBank(address, "secret", timeout_seconds=10)
    assert [bank.post("/loan-applications", b"{}") for _ in range(3)] == [202, 409, 0]
    assert requests[0] == ("/loan-applications", "Bearer secret", b"{}")


def test_http_bank_that_is_not_there():
    bank = HttpBank(("127.0.0.1", 9))
    assert bank.post("/loan-applications", b"{}") == 0
    assert bank.prices() == {}
    assert HttpBank(("127.0.0.1", 9), prices=lambda: PRICES).prices() == PRICES


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, msgspec.json.encode(BEST), PRICES),
        (200, b'{"best":[]}', {}),
        (200, b'{"best":[{"quantity":1,"sell":"x"}]}', {}),
        (200, b"{}", {}),
        (200, b"[]", {}),
        (200, b"<", {}),
        (503, msgspec.json.encode(BEST), {}),
    ],
)
def test_http_bank_reads_prices(status, body, expected, monkeypatch):
    bank = HttpBank(("127.0.0.1", 9))
    monkeypatch.setattr(bank, "_ask", lambda *_: (status, body))
    assert bank.prices() == expected


# ── the command ───────────────────────────────────────────────────────────────────


def test_command_tells_what_its_clients_did(capsys):
    with pytest.raises(UserError, match="nothing was accepted"):
        clients(address="127.0.0.1:9", seconds=0.5, rate=50, seed=4, json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["seed"] == 4
    assert told["counts"]["client"] >= 10
    assert told["counts"]["no price"] > 0


@pytest.mark.parametrize("wrong", [{"actors": 0}, {"rate": 0}, {"patience": 0}, {"address": ""}])
def test_command_refuses_what_makes_no_sense(wrong):
    with pytest.raises(UserError) as found:
        clients(seconds=0.0, **wrong)
    assert found.value.code == 2

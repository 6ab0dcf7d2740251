"""Who withdraws what in the benchmarks, and the flow of their settlements to Kafka."""

from collections import Counter, deque

import msgspec
import pytest

from pennyweight.simulators import flow
from pennyweight.simulators.flow import DELAY, Flow
from pennyweight.simulators.population import rows
from pennyweight.simulators.sampling import Skew
from pennyweight.simulators.withdrawing import (
    QUANTITY,
    Choice,
    Held,
    Withdrawals,
    choices,
    reserve,
    settlement_of,
)
from pennyweight.simulators.workloads import Target

USERS = 200


@pytest.mark.parametrize("skew", ["uniform", "zipf:1.0", "hot", "scan"])
def test_choices_are_of_tokens_of_which_there_is_enough(skew):
    population = rows(USERS, 5)
    names = next(population)[1:]
    balances = {int(row[0]): dict(zip(names, row[1:], strict=True)) for row in population}
    made = choices(USERS, Skew(skew), 5)
    assert made == choices(USERS, Skew(skew), 5)
    for choice in set(map(msgspec.structs.astuple, made)):
        user, token, bought = choice
        assert float(balances[user][token]) >= 1
        assert token != bought


def test_choices_scan_takes_all_in_turn_and_hot_one():
    scanned = [choice.user for choice in choices(USERS, Skew("scan"), 1)]
    assert len(scanned) == 5 * len(set(scanned)) > 5 * 180
    assert scanned[: len(set(scanned))] == sorted(set(scanned))
    assert len({choice.user for choice in choices(USERS, Skew("hot"), 1)}) == 1
    skewed = Counter(choice.user for choice in choices(USERS, Skew("zipf:1.0"), 1))
    assert skewed.most_common(1)[0][1] > 0.1 * skewed.total()


def test_choices_of_the_first_users_only():
    assert {choice.user for choice in choices(USERS, Skew("uniform"), 1, first=20)} <= set(
        range(100, 120)
    )


def test_withdrawals_are_followed_by_their_settlements():
    target = Target(host="h", port=1, users=USERS)
    stream = Withdrawals(target, "http").stream()
    for _ in range(10):
        withdrawn, settled = (
            msgspec.json.decode(next(stream).partition(b"\r\n\r\n")[2]) for _ in range(2)
        )
        assert withdrawn["user_id"] == settled["user_id"]
        assert withdrawn["token"] == settled["sold_token"]
        assert withdrawn["withdrawal_id"] == settled["withdrawal_id"]
        assert withdrawn["requested_quantity"] == settled["sold_quantity"] == QUANTITY


def test_withdrawals_have_the_length_that_they_say():
    target = Target(host="h", port=1, users=USERS)
    held = list(reserve(USERS, 1, 3))
    requests = [*Withdrawals(target).requests(held), next(Withdrawals(target, "none").stream())]
    for request in requests:
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.endswith(f"Content-Length: {len(body)}".encode())
        assert head.startswith(Withdrawals.apart)


class Sent:
    """Instead of Kafka."""

    def __init__(self, *_):
        self.ids = []

    def send(self, held):
        self.ids.append(held.withdrawal_id)

    def finish(self):
        pass


def test_flow_settles_what_is_due_first_and_keeps_its_rate(monkeypatch):
    monkeypatch.setattr(flow, "Sender", Sent)
    choice = Choice(100, "BTC", "ETH")
    accepted = deque([Held(choice, "mine")])
    flowing = Flow("h:1", 10, accepted, iter([Held(choice, f"held-{n}") for n in range(100)]))
    for tenth in range(21):
        flowing(tenth * DELAY // 10)
    assert flowing.finish() == 21
    assert flowing._sender.ids[:10] == [f"held-{n}" for n in range(10)]
    assert flowing._sender.ids[10] == "mine"


def test_flow_without_anything_to_settle_sends_nothing(monkeypatch):
    monkeypatch.setattr(flow, "Sender", Sent)
    flowing = Flow("h:1", 1_000, deque(), iter(()))
    flowing(0)
    flowing(DELAY)
    assert flowing.finish() == 0


def test_settlement_swaps_the_tokens_of_a_withdrawal():
    settlement = settlement_of(Held(Choice(7, "BTC", "ETH"), "x"), settlement_id="s")
    assert msgspec.structs.asdict(settlement) == {
        "user_id": "7",
        "bought_token": "ETH",
        "bought_quantity": QUANTITY,
        "sold_token": "BTC",
        "sold_quantity": QUANTITY,
        "withdrawal_id": "x",
        "settlement_id": "s",
    }

"""What the outside is told: which event each transition emits, exactly once, and what it says."""

import pytest

from pennyweight.ledger.entries import decode_entry
from scenarios import Stage, play

USER = """
    given
        user:1:BTC          10
        user:1:ETH          5
        user:2:BTC          10
    when
        withdrawals.withdraw 1 BTC 4
        withdrawals.withdraw 1 BTC 3 mine expires_in_seconds=60
"""

W1 = {"user_id": "1", "withdrawal_id": "w1", "token": "BTC", "quantity": "4"}
MINE = {"user_id": "1", "withdrawal_id": "mine", "token": "BTC", "quantity": "3"}


def sold(quantity: str, bought: str = "1", **more: str) -> dict[str, str]:
    return {
        "user_id": "1",
        "sold_token": "BTC",
        "sold_quantity": quantity,
        "bought_token": "ETH",
        "bought_quantity": bought,
        **more,
    }


def short(shortage: str, owed: str) -> dict[str, str]:
    return {"user_id": "1", "token": "BTC", "shortage": shortage, "owed": owed}


def last_events(stage: Stage) -> list[tuple[str, object]]:
    body = stage.store.entry(stage.store.head().sequence)
    assert body is not None
    return [(event.name, event.body) for event in decode_entry(body).events]


TRANSITIONS = {
    "accepted": (
        "withdrawals.withdraw 1 BTC 2.5 named",
        [
            (
                "withdrawal_accepted",
                {"user_id": "1", "withdrawal_id": "named", "token": "BTC", "quantity": "2.5"},
            )
        ],
    ),
    "cancelled": ("withdrawals.cancel_withdrawal w1", [("withdrawal_cancelled", W1)]),
    "expired": (
        "wait 60\n withdrawals.expire_withdrawal 2",
        [("withdrawal_expired", MINE)],
    ),
    "settled": (
        "withdrawals.settle 1 ETH 1 BTC 3.5 w1",
        [("withdrawal_settled", sold("3.5", withdrawal_id="w1"))],
    ),
    "settled, with its id": (
        "withdrawals.settle 1 ETH 1 BTC 3 settlement_id=s1",
        [("withdrawal_settled", sold("3", withdrawal_id="mine", settlement_id="s1"))],
    ),
    "settled, over-filled": (
        "withdrawals.settle 1 ETH 1 BTC 6 w1",
        [("withdrawal_settled", sold("6", withdrawal_id="w1"))],
    ),
    "settled, with a deficit": (
        "withdrawals.settle 1 ETH 1 BTC 9 w1",
        [
            ("withdrawal_settled", sold("9", withdrawal_id="w1")),
            ("deficit", short("2", "2")),
        ],
    ),
    "deficit again": (
        "withdrawals.settle 1 ETH 1 BTC 9 w1\n withdrawals.settle 1 ETH 1 BTC 1 nix",
        [("trade_unsolicited", sold("1")), ("deficit", short("1", "3"))],
    ),
    "cancelled by a settlement": (
        "withdrawals.settle 1 ETH 0 BTC 0 w1",
        [("withdrawal_cancelled", W1)],
    ),
    "cancelled, and something bought": (
        "withdrawals.settle 1 ETH 1 BTC 0 w1",
        [
            ("withdrawal_cancelled", W1),
            ("trade_unsolicited", sold("0", withdrawal_id="w1")),
        ],
    ),
    "unsolicited": (
        "withdrawals.settle 1 ETH 1 BTC 1 nix",
        [("trade_unsolicited", sold("1"))],
    ),
    "duplicate": (
        "withdrawals.settle 1 ETH 1 BTC 1 w1\n withdrawals.settle 1 ETH 1 BTC 1 w1",
        [],
    ),
    "set mode": ("withdrawals.set_mode halted", []),
    "set limits": ("withdrawals.set_limits BTC 1", []),
}


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_transition_emits(transition):
    lines, events = TRANSITIONS[transition]
    assert last_events(play(USER + lines)) == events


def test_user_is_named_as_callers_write_it():
    """Not as the id of an account has it."""
    stage = play(
        """
        when
            load_balances a:b '[["BTC","2"]]'
            withdrawals.withdraw a:b BTC 1
            withdrawals.cancel_withdrawal w1
        """
    )
    (event,) = last_events(stage)
    assert event[1] == {"user_id": "a:b", "withdrawal_id": "w1", "token": "BTC", "quantity": "1"}

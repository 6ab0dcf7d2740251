"""One trace through every face: what is asked, and the answers without what must differ."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from cluster.instances import Answer
from delivery.test_payments import SEED

MOMENT = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z|\b1[789]\d{14}\b")
"""As text, or in microseconds."""

Ask = Callable[[str, str, Any, str], Answer]


class Step(NamedTuple):
    method: str
    path: str
    body: Any = None
    key: str = ""


class Said(NamedTuple):
    status: int
    is_replayed: bool
    body: bytes


def _bet(number: int, amount: int, **more: Any) -> dict[str, Any]:
    return {
        "user": "alice",
        "transaction_uuid": f"16d2dcfe-b89e-11e7-854a-58404eea6d{number:02d}",
        "request_uuid": f"583c985f-fee6-4c0e-bbf5-308aad6265{number:02d}",
        "token": "t-1",
        "round": "r-1",
        "game_code": "clt_dragonrising",
        "currency": "USD",
        "amount": amount,
        **more,
    }


def _pay(debit: str, credit: str, amount: str) -> dict[str, str]:
    return {"debit_account": debit, "credit_account": credit, "asset": "USD", "amount": amount}


def _settle(bought: str, sold: str, **more: Any) -> dict[str, Any]:
    return {
        "user_id": "alice",
        "bought_token": "EUR",
        "bought_quantity": bought,
        "sold_token": "USD",
        "sold_quantity": sold,
        **more,
    }


def _withdraw(quantity: str) -> dict[str, str]:
    return {"user_id": "alice", "token": "USD", "requested_quantity": quantity}


PAYMENTS = [Step(method, path, body or None) for method, path, body, _ in SEED]

WALLET = [
    Step("POST", "/users", {"users": ["alice", "bob"]}),
    Step("POST", "/user/balance", {**_bet(1, 0), "amount": None}),
    Step("POST", "/transaction/bet", _bet(2, 2_500)),
    Step("POST", "/transaction/bet", _bet(2, 2_500)),
    Step("POST", "/transaction/bet", _bet(2, 2_600)),
    Step("POST", "/transaction/bet", _bet(3, 900_000_000)),
    Step(
        "POST",
        "/transaction/win",
        _bet(4, 7_000, reference_transaction_uuid=_bet(2, 0)["transaction_uuid"]),
    ),
    Step(
        "POST",
        "/transaction/rollback",
        {**_bet(5, 0), "reference_transaction_uuid": _bet(2, 0)["transaction_uuid"]},
    ),
    Step("POST", "/transaction/bet", b"{"),
]

WITHDRAWALS = [
    Step("POST", "/withdrawals", _withdraw("0.5")),
    Step("POST", "/withdrawals", _withdraw("0.5"), "w"),
    Step("POST", "/withdrawals", _withdraw("0.5"), "w"),
    Step("POST", "/withdrawals", _withdraw("0.4"), "w"),
    Step("POST", "/withdrawals", _withdraw("80")),
    Step("GET", "/withdrawals/w1"),
    Step("POST", "/settlements", _settle("0.4", "0.45")),
    Step("POST", "/settlements", _settle("0.1", "0.6")),
    Step("POST", "/settlements", _settle("1", "many")),
    Step("GET", "/users/alice/balances"),
    Step("GET", "/users/nobody/balances"),
]

LEDGER = [
    Step("POST", "/v1/accounts", {"id": "user:carol:USD"}, "open"),
    Step("POST", "/v1/accounts", {"id": "user:carol:USD"}, "open"),
    Step("POST", "/v1/assets", {"name": "XAU", "scale": 6, "currency_id": 99}, "gold"),
    Step("POST", "/v1/accounts", {"id": "user:carol:XAU"}),
    Step("GET", "/v1/assets"),
    Step("POST", "/v1/transfers", _pay("world:USD", "user:carol:USD", "25.50"), "deposit"),
    Step("POST", "/v1/transfers", _pay("world:USD", "user:carol:USD", "25.50"), "deposit"),
    Step("POST", "/v1/transfers", _pay("world:USD", "user:carol:USD", "25"), "deposit"),
    Step("POST", "/v1/transfers", _pay("user:carol:USD", "user:alice:USD", "30")),
    Step("POST", "/v1/transfers", _pay("user:carol:USD", "user:nobody:USD", "1")),
    Step("POST", "/v1/transfers", _pay("user:carol:USD", "user:alice:USD", "0.5")),
    Step("POST", "/v1/holds", {"account": "user:carol:USD", "asset": "USD", "amount": "10"}, "h"),
    Step("GET", "/v1/holds?account=user:carol:USD"),
    Step("GET", "/v1/accounts/user:carol:USD"),
    Step("GET", "/v1/accounts/user:carol:USD/statement"),
    Step("POST", "/v1/keys/ledger/never/abandon"),
    Step("POST", "/v1/transfers", _pay("user:carol:USD", "user:alice:USD", "1"), "never"),
    Step("GET", "/v1/entries?limit=1000"),
    Step("GET", "/nowhere"),
    Step("GET", "/v1/accounts?limit=1000"),
]

TRACE = [*PAYMENTS, *WALLET, *WITHDRAWALS, *LEDGER]


def play(ask: Ask) -> list[Said]:
    """Ask everything, one after the other."""
    return [_said(ask(step.method, step.path, step.body, step.key)) for step in TRACE]


def differences(one: list[Said], other: list[Said]) -> list[tuple[Step, Said, Said]]:
    """Return the steps that two books answered differently."""
    pairs = zip(TRACE, one, other, strict=True)
    return [(step, mine, theirs) for step, mine, theirs in pairs if mine != theirs]


def _said(answer: Answer) -> Said:
    return Said(answer.status, answer.is_replayed, MOMENT.sub(b"MOMENT", answer.body))

"""Fuzz from our own OpenAPI description, on a seeded book: no 5xx, answers as described.

Bounded and derandomised, so that a run is the same run again; the heavy one looks longer.
"""

from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from pennyweight.delivery.http import openapi
from served import Served, all_routes, transfer

ROUTES = all_routes()
SCHEMA = schemathesis.openapi.from_dict(openapi.describe(ROUTES))
_DESK = (
    r"^/(withdrawals|settlements|deficits|dead-letters|limits|token-modes|users/\{user\}/balances)"
)
_PORTFOLIOS = r"^/(portfolio|portfolios|rebalance)"
LEDGER = SCHEMA.include(path_regex="^/v1/")
DESK = SCHEMA.include(path_regex=_DESK)
PORTFOLIOS = SCHEMA.include(path_regex=_PORTFOLIOS)
OTHERS = SCHEMA.include(path_regex="^/(?!v1/)").exclude(path_regex=f"{_DESK}|{_PORTFOLIOS}")

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A book with something of everything in it."""
    with Served(ROUTES) as served:
        served.fund("1", "2")
        served.fund("1", asset="BTC")
        served.post("/v1/holds", {"account": "user:1:USD", "asset": "USD", "amount": "5"})
        served.post("/v1/transfers", transfer("user:1:USD", "user:2:USD"), key="key")
        served.post("/users", {"users": ["john12345"]})
        for name in ("buyer", "seller"):
            served.post("/accounts", {"name": name, "amount": "1000", "currency_id": 1})
        served.post("/payments", {"buyer_account_id": 1, "seller_account_id": 2, "amount": "1"})
        held = {"user_id": 1, "token": "BTC", "requested_quantity": 5, "withdrawal_id": "0"}
        served.post("/withdrawals", held)
        trade = {"bought_token": "ETH", "bought_quantity": 1, "sold_token": "USD"}
        served.post("/settlements", {"user_id": 1, **trade, "sold_quantity": 500})
        served.post("/portfolio", {"user_id": "0", "allocation": {"a": 60, "b": 40}})
        served.post("/rebalance", {"user_id": "0", "new_allocation": {"a": 70, "b": 30}})
        yield served


def fuzz(count: int) -> settings:
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@LEDGER.parametrize()
@fuzz(6)
def test_ledger_face(case: schemathesis.Case, served: Served) -> None:
    case.call_and_validate(base_url=served.server.address, checks=CHECKS)


@DESK.parametrize()
@fuzz(6)
def test_withdrawals_face(case: schemathesis.Case, served: Served) -> None:
    case.call_and_validate(base_url=served.server.address, checks=CHECKS)


@PORTFOLIOS.parametrize()
@fuzz(6)
def test_portfolios_face(case: schemathesis.Case, served: Served) -> None:
    case.call_and_validate(base_url=served.server.address, checks=CHECKS)


@OTHERS.parametrize()
@fuzz(4)
def test_other_faces(case: schemathesis.Case, served: Served) -> None:
    case.call_and_validate(base_url=served.server.address, checks=[not_a_server_error])


@pytest.mark.heavy
@SCHEMA.parametrize()
@fuzz(120)
def test_all_faces_longer(case: schemathesis.Case, served: Served) -> None:
    case.call_and_validate(base_url=served.server.address, checks=[not_a_server_error])


@pytest.fixture(scope="module", autouse=True)
def sound(served: Served) -> Iterator[None]:
    """Whatever was sent, the book is proven afterwards."""
    yield
    served.post("/v1/verify")
    for _ in range(5_000):
        proof = served.get("/v1/verify")
        if proof["state"] != "running":
            break
    assert proof["report"]["ok"], proof

"""The description of the routes: complete, with examples and errors, and true to the server."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pennyweight.delivery.http import openapi
from pennyweight.delivery.http.routes import CommandRoute
from served import Served, all_routes

ROUTES = all_routes()


@pytest.fixture(scope="module")
def description() -> dict[str, Any]:
    return openapi.describe(ROUTES)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served(ROUTES) as served:
        yield served


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_route_described(description: dict[str, Any], route: Any) -> None:
    operation = description["paths"][route.path][route.method.lower()]
    assert operation["summary"]
    assert operation["tags"] == [route.face]
    answer = operation["responses"][str(route.documentation.status)]
    assert answer["content"]["application/json"]["example"] is not None
    assert any(status.startswith("4") for status in operation["responses"])
    names = {p["name"] for p in operation["parameters"] if p["in"] == "path"}
    assert names == set(re.findall(r"\{(\w+)\}", route.path))
    if isinstance(route, CommandRoute) and route.documentation.request is not None:
        assert "example" in operation["requestBody"]["content"]["application/json"]


def test_references_lead_somewhere(description: dict[str, Any]) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(description)))
    assert names <= set(description["components"]["schemas"])


def test_operation_ids_are_unique(description: dict[str, Any]) -> None:
    ids = [
        operation["operationId"]
        for methods in description["paths"].values()
        for operation in methods.values()
    ]
    assert len(ids) == len(set(ids))


def test_amounts_are_both(description: dict[str, Any]) -> None:
    body = description["components"]["schemas"]["TransferBody"]
    kinds = [option["type"] for option in body["properties"]["amount"]["anyOf"]]
    assert kinds == ["string", "number"]


def test_no_paths_of_ours(description: dict[str, Any]) -> None:
    assert "pennyweight.delivery.http" not in json.dumps(description)


def test_served_description(served: Served) -> None:
    found = served.get("/openapi.json")
    assert found["openapi"] == "3.1.0"
    served_paths = set(found["paths"])
    assert {route.path for route in ROUTES} < served_paths
    assert {"/livez", "/readyz", "/metrics", "/openapi.json", "/docs"} <= served_paths


def test_ledger_examples_work(served: Served) -> None:
    """The examples of the ledger's face are requests that succeed, in this order."""
    served.fund("100", "200", asset="BTC", amount="10")
    found = served.get("/openapi.json")
    for path, expected in (
        ("/v1/assets", 201),
        ("/v1/transfers", 201),
        ("/v1/holds", 201),
        ("/v1/holds/{id}/settle", 200),
        ("/v1/entries/{sequence}/reverse", 201),
    ):
        operation = found["paths"][path]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        real = path.replace("{id}", "1").replace("{sequence}", str(TRANSFER_SEQUENCE))
        answer = served.post(real, example)
        assert answer.status == expected, answer
        shown = operation["responses"][str(expected)]["content"]["application/json"]["example"]
        assert set(answer.json) == set(shown)


TRANSFER_SEQUENCE = 15
"""Nine assets, two users with two entries each, one asset more, then the transfer."""

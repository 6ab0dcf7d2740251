"""Lists at a process that has not the book, and has not heard of the newest asset: it is there."""

import json
from typing import Any

import pytest

from delivery.test_payments import Client, content
from pennyweight.delivery.http import ledger
from pennyweight.delivery.http.routes import ReadRoute, Request
from pennyweight.engine.overlay import Standing
from pennyweight.products.general import RegisterAsset


@pytest.fixture
def client() -> Client:
    """A book with an asset that was registered a moment ago, and a payment in it."""
    client = Client()
    client.book.execute(RegisterAsset("XAU", 3, 79))
    client.open("buyer", "1", 79)
    client.open("seller", "0", 79)
    assert client.pay(1, 2, "0.5").startswith("200 ")
    return client


def seen(client: Client, path: str) -> Any:
    routes = [*client.routes, *ledger.routes(())]
    route = next(route for route in routes if (route.method, route.path) == ("GET", path))
    assert isinstance(route, ReadRoute)
    assert not route.is_instant  # it reads the store
    reply = route.read(Request("GET", path), client.store, Standing({}, {}, {}))
    assert reply.status == 200
    return json.loads(content(reply))


def test_assets(client: Client) -> None:
    assert "XAU" in [asset["name"] for asset in seen(client, "/v1/assets")["data"]]


def test_currencies(client: Client) -> None:
    found = seen(client, "/currencies")["currencies"]
    assert {"CurrencyID": 79, "CurrencyName": "XAU"} in found


def test_payments(client: Client) -> None:
    (payment,) = seen(client, "/payments")["payments"]
    assert "XAU" in payment.values()

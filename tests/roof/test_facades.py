"""The Python faces on a database: as on a folder, and never beside somebody who serves it."""

from collections.abc import Iterator

import pytest

from pennyweight import wallet
from pennyweight.engine.port import StoreInUse
from pennyweight.risk import RiskEngine
from pennyweight.simulators.postgres import PostgresMissing, PostgresServer
from pennyweight.stores.places import BadPlace

BET = {
    "user": "alice",
    "transaction_uuid": "16d2dcfe-b89e-11e7-854a-58404eea6d16",
    "request_uuid": "583c985f-fee6-4c0e-bbf5-308aad6265af",
    "token": "t-1",
    "round": "r-1",
    "game_code": "clt_dragonrising",
    "currency": "USD",
    "amount": 2_500,
}


@pytest.fixture
def url() -> Iterator[str]:
    try:
        server = PostgresServer(is_synced=False)
    except PostgresMissing as error:
        pytest.skip(str(error))
    with server:
        yield server.url


def test_wallet_and_risk_engine_in_a_database(url: str) -> None:
    with wallet.start(url) as server:
        assert wallet.create_users(server, ["alice"]) == "ok"
        first = wallet.bet(server, BET)
        assert (first["status"], first["balance"]) == ("RS_OK", 97_500)
        with pytest.raises(StoreInUse):
            RiskEngine(url)
    with wallet.start(url) as server:
        assert wallet.bet(server, BET) == first
    engine = RiskEngine(url, users_in_memory=300)
    assert engine.WithdrawBalance("alice", "USD", "0.976") == "INSUFFICIENT_BALANCE"
    assert engine.WithdrawBalance("alice", "USD", "0.975") == "SUFFICIENT_BALANCE"
    engine.close()
    engine.close()


def test_url_that_is_none_is_refused() -> None:
    with pytest.raises(BadPlace, match="mysql"):
        wallet.start("mysql://db/money")

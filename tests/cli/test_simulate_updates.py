"""The simulated provider: what it sends over HTTP and Kafka, and how it looks after it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brokers import MockBroker, read_topic
from pennyweight.delivery.cli import simulate_updates
from pennyweight.delivery.cli.shared import UserError
from pennyweight.delivery.cli.simulate_updates import updates
from pennyweight.simulators.updates import Provider
from served import Served

FEW = {"users": 30, "updates": 400, "connections": 4}


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


def test_a_provider_over_http(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    address = served.server.address
    code = updates(**FEW, address=address, create=True, check=True, poison=0.1, json=True)  # type: ignore[arg-type]
    told = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (told["checked"], told["right"], told["broken"]) == (30, 30, 0)
    assert sum(told["sent"].values()) == sum(told["answers"].values()) == told["updates"] == 400
    assert set(told["answers"]) == {"200", "400", "404", "409"}
    assert told["answers"]["400"] + told["answers"]["404"] == told["sent"]["poison"]


def test_the_same_again_changes_nothing(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    words: dict[str, Any] = {**FEW, "address": served.server.address, "untimed": 0.0}
    assert updates(**words, create=True) == 0
    before = served.get("/portfolios")
    assert updates(**words, create=True, check=True, rate=2_000.0) == 0
    out = capsys.readouterr().out
    assert "30 of 30 portfolios are what the newest updates say" in out
    assert "answered: " in out
    assert served.get("/portfolios") == before


def test_queued_updates_are_accepted(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    address = served.server.address
    assert updates(**FEW, address=address, create=True, mode="async", json=True) == 0  # type: ignore[arg-type]
    assert json.loads(capsys.readouterr().out)["answers"]["202"] > 350


def test_portfolios_that_are_not_right_are_told(
    served: Served, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody takes what is queued here."""
    monkeypatch.setattr(simulate_updates, "CHECK_SECONDS", 0.1)
    address = served.server.address
    assert updates(**FEW, address=address, create=True, mode="async", check=True) == 1  # type: ignore[arg-type]
    assert "0 of 30 portfolios" in capsys.readouterr().out


def test_a_provider_over_kafka(
    mock_broker: MockBroker,
    capsys: pytest.CaptureFixture[str],
) -> None:
    mock_broker.create_topic("u")
    assert updates(**FEW, kafka=mock_broker.address, topic="u", seed=5) == 0  # type: ignore[arg-type]
    assert "400 updates in" in capsys.readouterr().out
    wanted = [(one.user, one.value) for one in Provider(30, 5).messages(400)]
    found = read_topic(mock_broker.address, "u")
    for part in found:
        ours = [(message.key().decode(), message.value()) for message in part]
        users = {user for user, _ in ours}
        assert ours == [one for one in wanted if one[0] in users]
    assert sum(map(len, found)) == 400


def test_portfolios_that_cannot_be_made_are_an_error(served: Served) -> None:
    address = served.server.address
    assert updates(**FEW, address=address, create=True) == 0  # type: ignore[arg-type]
    user = Provider(30, 1).name(0)
    body = {"user_id": user, "allocation": {"gold": 100}}
    assert served.send("PUT", "/portfolio", body).status == 200
    with pytest.raises(UserError, match="could not be made"):
        updates(**FEW, address=address, create=True)  # type: ignore[arg-type]


def test_nobody_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        updates(**FEW, address="127.0.0.1:1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [{"users": 0}, {"updates": 0}, {"connections": 0}, {"rate": 0.0}, {"late": 1.5}],
)
def test_what_makes_no_sense_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        updates(**words)
    assert caught.value.code == 2

"""The measurement of ticks: what it builds is due in order, and the book is right."""

import json

import pytest

from pennyweight.delivery.cli.bench_ticks import ticks
from pennyweight.delivery.cli.shared import UserError
from pennyweight.simulators.inprocess import NotDone
from pennyweight.simulators.tickbench import measure_ticks


def test_ticks_are_measured(tmp_path):
    seen: list[tuple[int, int]] = []
    figures = measure_ticks(
        600,
        ticks=20,
        due=50,
        is_verified=True,
        directory=tmp_path,
        report=lambda done, total: seen.append((done, total)),
    )
    assert (figures.loans, figures.ticks, figures.due) == (600, 20, 50)
    assert 0 < figures.tick_p50_us <= figures.tick_p99_us
    assert figures.begun_seconds > 0
    assert figures.is_ordered
    assert figures.verified, figures.first_wrong
    assert seen == [(500, 600), (600, 600)]
    assert not list(tmp_path.iterdir())


def test_ticks_that_find_something_are_no_measurement(tmp_path, monkeypatch):
    monkeypatch.setattr("pennyweight.agents.appraiser.Appraiser.tick", lambda _: 3)
    with pytest.raises(NotDone, match="3 loans were due"):
        measure_ticks(10, ticks=1, due=5, directory=tmp_path)


def test_all_that_cannot_be_begun_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("pennyweight.simulators.tickbench.WAIT_SECONDS", 0.05)
    monkeypatch.setattr("pennyweight.agents.appraiser.Appraiser.notice", lambda _: None)
    monkeypatch.setattr("pennyweight.agents.appraiser.Appraiser._session", lambda _: None)
    with pytest.raises(NotDone, match="0 of 5 were begun"):
        measure_ticks(10, ticks=1, due=5, directory=tmp_path)


def test_verb_prints_a_table_and_writes_figures(tmp_path, capsys):
    file = tmp_path / "ticks.json"
    assert ticks(loans=(10, 20), looks=3, due=1_000, directory=tmp_path, json=file) == 0
    assert "tick p99" in capsys.readouterr().out
    first, second = json.loads(file.read_text())
    assert (first["due"], second["due"]) == (10, 20)
    assert first["verified"] is None
    assert ticks(loans=(10,), looks=3, json="-", directory=tmp_path) == 0
    assert json.loads(capsys.readouterr().out)[0]["loans"] == 10


def test_verb_refuses_nothing_to_measure():
    with pytest.raises(UserError):
        ticks(loans=(0,))

"""The benchmarks of portfolios measure what they say, on books that are right afterwards."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pennyweight.delivery.cli.bench_export import export
from pennyweight.delivery.cli.bench_rebalances import rebalances
from pennyweight.delivery.cli.shared import UserError
from pennyweight.delivery.portfolios import update_in
from pennyweight.products.portfolios.shared import TARGET_TOLERANCE, weights_of
from pennyweight.simulators import benchplace, machine, rebalancebench
from pennyweight.simulators.benchplace import BenchPlace
from pennyweight.simulators.deskbench import NotSettled
from pennyweight.simulators.figures import Setting
from pennyweight.simulators.rebalancebench import FROM_KAFKA, run_rebalances
from pennyweight.simulators.updates import LOAD_TARGET, START
from pennyweight.simulators.workloads import WORKLOADS, Target


@pytest.fixture(autouse=True)
def disk_asked_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long a sync takes is measured, but not 300 times before and after each benchmark."""
    monkeypatch.setattr(benchplace, "sync_times", partial(machine.sync_times, count=3))


@pytest.mark.heavy
def test_backlogs_from_kafka(tmp_path: Path) -> None:
    figures = run_rebalances(
        Setting(scenario=FROM_KAFKA, users=50, messages=3_000),
        BenchPlace(tmp_path / "book"),
        tmp_path,
        lambda _what, _share: None,
    )
    assert figures.verified, figures.first_wrong
    assert figures.errors == 0
    assert [row.case for row in figures.rows] == [
        "from Kafka, with request_id",
        "from Kafka, without request_id",
    ]
    assert all(0 < row.requests < 3_000 for row in figures.rows)
    assert figures.mean_batch is not None
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith("book")] == []


def test_every_message_of_a_backlog_is_an_update_and_newer(tmp_path: Path) -> None:
    setting = Setting(scenario=FROM_KAFKA, users=5, messages=20)
    for has_id in (True, False):
        messages = list(rebalancebench._messages(setting, has_id=has_id))
        updates = [update_in(message.value) for message in messages]
        assert [update.as_of for update in updates] == [START + n for n in range(20)]
        assert {bool(update.request_id) for update in updates} == {has_id}
        assert [update.user for update in updates] == [message.user for message in messages]


def test_what_is_not_booked_in_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebalancebench, "WAIT_SECONDS_MAX", 0.0)
    with pytest.raises(NotSettled, match="3 of 4 are booked"):
        rebalancebench._wait(lambda: 3, 4)


def test_requests_have_the_length_that_they_say() -> None:
    workload = WORKLOADS["rebalances"](Target(host="h", port=1, users=20, run="x"))
    (funding,) = workload.funding()
    assert len(funding) == 20
    stream = workload.stream()
    ids = set()
    for request in [*funding, *(next(stream) for _ in range(50))]:
        head, _, body = request.partition(b"\r\n\r\n")
        assert head.endswith(f"Content-Length: {len(body)}".encode())
        document = msgspec.json.decode(body)
        if "request_id" in document:
            ids.add(document["request_id"])
            current = weights_of(update_in(body).allocation, TARGET_TOLERANCE)
            target = weights_of(LOAD_TARGET, TARGET_TOLERANCE)
            assert all(current[name] != target[name] for name in target)
    assert len(ids) == 50


def test_verb_over_http(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words: dict[str, Any] = {"seconds": 0.4, "warm_up": 0.1, "connections": 4, "users": 30}
    assert rebalances(**words, directory=tmp_path, json=Path("-")) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["verified"], document["errors"]) == (True, 0)
    assert document["rows"][0]["statuses"].keys() == {"200"}
    assert document["p50_ms"] > 0
    assert list(tmp_path.iterdir()) == []


def test_verb_in_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    words: dict[str, Any] = {"seconds": 0.1, "batch": (20, 5), "users": 50}
    assert rebalances(in_process=True, **words, directory=tmp_path, json=file) == 0
    assert "batches of 20" in capsys.readouterr().out
    figures = json.loads(file.read_text())
    assert (figures["verified"], figures["errors"], figures["mean_batch"]) == (True, 0, 20)
    assert [row["case"] for row in figures["rows"]] == ["batches of 20", "batches of 5"]
    assert all(row["requests"] > 0 and row["p50_ms"] > 0 for row in figures["rows"])
    assert figures["fdatasync_p50_us"] > 0


def test_verb_of_the_export_counts_documents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One for each entry, for what each made of a portfolio, for three transactions each, and for
    those of the user's run before, which are superseded."""
    file = tmp_path / "figures.json"
    assert export(updates=300, users=50, directory=tmp_path, json=file) == 0
    assert "documents of" in capsys.readouterr().out
    figures = json.loads(file.read_text())
    assert (figures["verified"], figures["errors"]) == (True, 0)
    (row,) = figures["rows"]
    entries = int(row["case"].split()[2])
    assert entries > 350
    assert row["requests"] == entries + 350 + 3 * 300 + 3 * (300 - 50)
    assert figures["requests_per_second"] > 0


@pytest.mark.parametrize(
    "words",
    [
        {"kafka": True, "in_process": True},
        {"kafka": True, "rate": 5.0},
        {"in_process": True, "address": ("127.0.0.1:1",)},
        {"kafka": True, "messages": 0},
        {"skew": "cold"},
    ],
)
def test_settings_without_sense_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        rebalances(**words)
    assert caught.value.code == 2
    with pytest.raises(UserError):
        export(updates=0)

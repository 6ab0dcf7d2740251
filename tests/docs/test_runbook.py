"""What a runbook names is there, and what there is to be named stands in it."""

import re
from pathlib import Path

import pytest

from pennyweight.config import NAMES
from pennyweight.runtime.front import NO_OWNER
from pennyweight.stores.postgres import errors

ROOT = Path(__file__).parents[2]
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()
POSTGRES = (ROOT / "docs" / "postgresql.md").read_text()
SOURCES = "\n".join(file.read_text() for file in sorted((ROOT / "src").rglob("*.py")))

OTHER_CODES = {"store_unavailable", "store_unconfirmed", "store_failed", "outcome_unknown"}
CODES = sorted({*errors._CODES.values(), *OTHER_CODES, NO_OWNER, "clock_drift", "queue_full"})
METRICS = sorted(set(re.findall(r"`(pennyweight_[a-z_]+)", RUNBOOK)))
LOGGED = re.compile(r"log `([^`…]+)`(?:, `([^`…]+)`)?")


@pytest.mark.parametrize("name", METRICS)
def test_runbook_names_metrics_that_are_there(name):
    base = name.removesuffix("_total")
    made = base.removeprefix("pennyweight_").removeprefix("cache_")  # by f"pennyweight_{made}"
    assert f'"{base}"' in SOURCES or f'"{made}"' in SOURCES


@pytest.mark.parametrize(
    "name", re.findall(r'"(pennyweight_\w+)"', (ROOT / "src/pennyweight/sharing.py").read_text())
)
def test_runbook_has_every_metric_of_instances(name):
    assert f"`{name}" in RUNBOOK


@pytest.mark.parametrize("code", CODES)
def test_runbook_has_every_code_of_a_store(code):
    assert f'"{code}"' in SOURCES
    assert f"`{code}`" in RUNBOOK


@pytest.mark.parametrize("text", [t for pair in LOGGED.findall(RUNBOOK) for t in pair if t])
def test_runbook_quotes_the_log(text):
    assert text in SOURCES


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cluster.")])
def test_settings_of_instances_are_explained(name):
    assert re.search(rf"^{name.removeprefix('cluster.')} = ", POSTGRES, re.MULTILINE)

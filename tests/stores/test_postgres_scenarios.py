"""The ledger's and the products' scenarios on PostgreSQL: the same outcomes, rows and chain."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pennyweight.simulators.postgres import PostgresServer

TESTS = Path(__file__).parent.parent
SCENARIOS = ["tests/ledger/test_scenarios.py", "tests/products/test_wallet.py"]
MORE_SCENARIOS = [
    "tests/ledger/test_owed.py",
    "tests/ledger/test_refusals.py",
    "tests/products/test_loans.py",
    "tests/products/test_payments.py",
    "tests/products/test_portfolios.py",
]
STILL_MORE_SCENARIOS = [
    "tests/products/test_withdrawals.py",
    "tests/products/test_withdrawals_controls.py",
    "tests/products/test_withdrawals_events.py",
    "tests/products/test_withdrawals_letters.py",
    "tests/products/test_portfolios_letters.py",
]
UNORDERED = "many_threads"
"""Here threads race, and the twins need not decide in the same order."""


@pytest.mark.parametrize(
    ("files", "least"),
    [
        (SCENARIOS, 200),
        pytest.param(MORE_SCENARIOS, 1_000, marks=pytest.mark.heavy),
        pytest.param(STILL_MORE_SCENARIOS, 1_000, marks=pytest.mark.heavy),
    ],
)
def test_scenarios_come_out_alike(postgres: PostgresServer, files: list[str], least: int):
    found = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "on_postgres", "-p", "no:cacheprovider"),
            *("-m", "not heavy", "-k", f"not {UNORDERED}", *files),
        ],
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert found.returncode == 0, found.stdout[-5_000:]
    executed = re.search(r"on both: (\d+)", found.stdout)
    assert executed is not None
    assert int(executed[1]) >= least

"""MiniStack for tests: SNS and SQS on this machine, speaking the protocol that AWS speaks.

It is fetched once, by `python tests/ministack.py` or by the first test that wants it.
"""

import contextlib
import sys
from collections.abc import Iterator

import pytest

from pennyweight.simulators.ministack import VERSION, MiniStack, MiniStackMissing, program


@contextlib.contextmanager
def running() -> Iterator[MiniStack]:
    """Yield one that runs; skip the test where there cannot be one."""
    try:
        stack = MiniStack()
    except MiniStackMissing as error:
        pytest.skip(f"not here: {error}")
    with stack:
        yield stack


@pytest.fixture(scope="session")
def ministack() -> Iterator[MiniStack]:
    """One that tests share: they use names of their own, and leave it running."""
    with running() as stack:
        yield stack


if __name__ == "__main__":
    try:
        print(f"MiniStack {VERSION} is {program(print)}")
    except MiniStackMissing as missing:
        sys.exit(f"not here: {missing}")

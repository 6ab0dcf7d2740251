"""Waiting for what other threads and processes do, with patience: a slow machine fails no test."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

POLL_SECONDS = 0.005


def wait_for(condition: Callable[[], object], seconds: float = 30, *, what: str = "it") -> None:
    """Ask until it is so, and fail after so many seconds; `what` says what did not happen."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"after {seconds} s: {what} did not come to pass"
        time.sleep(POLL_SECONDS)


def wait_for_calls(owner: object, method: str, times: int = 3, seconds: float = 30) -> None:
    """Wait until a method was called so often, and came to its end each time.

    Before a test says that an agent does NOT do something, it waits for the agent's turns:
    what it would do wrong has happened then, on however slow a machine. A pause proves nothing.
    """
    original, ends = getattr(owner, method), threading.Semaphore(0)

    def counted(*values: Any, **options: Any) -> Any:
        try:
            return original(*values, **options)
        finally:
            ends.release()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, counted)
        for done in range(times):
            assert ends.acquire(timeout=seconds), f"{done} of {times} calls of {method}"

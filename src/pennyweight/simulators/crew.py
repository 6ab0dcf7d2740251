"""The parent's end of a worker process."""

import subprocess
import sys
from collections.abc import Callable
from typing import Self

import msgspec

from pennyweight.simulators.jobs import Job, Line, Row
from pennyweight.simulators.machine import (
    Usage,
    busy_microseconds,
    processor_ticks,
    stolen_percent,
    usage,
)

Report = Callable[[str, float], None]
"""Is told what is going on, and which part of it is done (0 to 1)."""


class WorkerFailed(Exception):
    """The worker could not do its job; the message says why."""


class Worker:
    """A worker process with one job; leaving the context ends it."""

    def __init__(self, job: Job) -> None:
        """Start it; it prepares the job and then waits."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pennyweight.simulators.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        self.last_usage: Usage | None = None
        """What the process used, as last seen."""
        self.stolen_percent: float | None = None
        """Processor time that others on the host took while it worked."""
        self.busy_microseconds: int | None = None
        """Processor time that the whole machine used while it worked."""
        self._write(msgspec.json.encode(job))

    def wait_until_ready(self) -> None:
        """Wait until everything is prepared. Raises WorkerFailed."""
        while not self._read().is_ready:
            pass

    def finish(self, seconds: float, report: Report) -> list[Row]:
        """Let it go, and return its rows. Raises WorkerFailed. `seconds` is what it may take."""
        ticks = processor_ticks()
        self._write(b"go")
        reports = 0
        while True:
            line = self._read()
            self.last_usage = usage(self.pid) or self.last_usage
            if line.rows is not None:
                ended = processor_ticks()
                self.stolen_percent = stolen_percent(ticks, ended)
                self.busy_microseconds = busy_microseconds(ticks, ended)
                return line.rows
            if line.done is not None:
                reports += 1
                report(f"{line.done} done", min(1.0, reports / max(1.0, seconds)))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process if it has not ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _write(self, line: bytes) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def _read(self) -> Line:
        data = self._process.stdout.readline() if self._process.stdout else b""
        if not data:
            raise WorkerFailed(f"the worker ended with {self._process.wait()}")
        line = msgspec.json.decode(data, type=Line)
        if line.wrong:
            raise WorkerFailed(line.wrong)
        return line

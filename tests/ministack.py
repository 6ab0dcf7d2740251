"""MiniStack for tests: SNS and SQS on this machine, speaking the protocol that AWS speaks.

It lives in a virtual environment of its own, as it wants another botocore than ours. That is
made once, by `python tests/ministack.py` or by the first test that wants it, in a cache folder.
What it holds is in memory and ends with it; `stop` and `start` as often as wanted.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import pytest

VERSION = "1.5.33"
UP_SECONDS_MAX = 60
FETCH_SECONDS_MAX = 600


class NoMiniStack(Exception):
    """What this machine lacks for it."""


def command() -> Path:
    """Return the program, fetched if it is not there yet. Raises NoMiniStack."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "pennyweight" / f"ministack-{VERSION}"
    program, done = folder / "bin" / "ministack", folder / "complete"
    if done.exists():
        return program
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            _fetch(folder)
            done.touch()
    return program


def _fetch(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True)
    install = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        subprocess.run(
            [*install, "--retries=1", f"ministack=={VERSION}"],
            check=True,
            capture_output=True,
            timeout=FETCH_SECONDS_MAX,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise NoMiniStack(f"MiniStack {VERSION}, which could not be fetched") from error


class MiniStack:
    """One emulator, at an address that it keeps."""

    def __init__(self) -> None:
        """Nothing runs yet. Raises NoMiniStack."""
        self._program = command()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`

    def start(self) -> None:
        """Start it, and wait until it is well."""
        settings = {
            "BIND_HOST": "127.0.0.1",
            "GATEWAY_PORT": str(self.port),
            "PATH": f"{self._program.parent}:/usr/bin:/bin",
            "HOME": str(self._program.parent.parent),
        }
        self._process = subprocess.Popen(
            [self._program],
            env=settings,
            cwd=self._program.parent.parent,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        until = time.monotonic() + UP_SECONDS_MAX
        while time.monotonic() < until and self._process.poll() is None:
            if self._is_well():
                return
            time.sleep(0.05)
        self.stop()
        self._log.seek(0)
        raise AssertionError(self._log.read()[-2_000:].decode("utf-8", "replace"))

    def _is_well(self) -> bool:
        try:
            with urlopen(f"{self.endpoint}/_ministack/health", timeout=2):
                return True
        except (OSError, HTTPException):
            return False

    def freeze(self) -> None:
        """Let it stand still, connections open, until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it as a power cut would; all that it held is gone."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait(30)
            self._process = None

    def close(self) -> None:
        self.stop()
        self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        """To all of it: it starts processes of its own."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def running() -> Iterator[MiniStack]:
    """Yield one that runs; skip the test where there cannot be one."""
    try:
        stack = MiniStack()
    except NoMiniStack as error:
        pytest.skip(f"not here: {error}")
    try:
        stack.start()
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="session")
def ministack() -> Iterator[MiniStack]:
    """One that tests share: they use names of their own, and leave it running."""
    with running() as stack:
        yield stack


if __name__ == "__main__":
    try:
        print(f"MiniStack {VERSION} is {command()}")
    except NoMiniStack as missing:
        sys.exit(f"not here: {missing}")

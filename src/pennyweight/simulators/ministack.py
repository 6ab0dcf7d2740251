"""MiniStack: SNS and SQS on this machine, as AWS speaks them, for tests and `make run-loans`.

It lives in a virtual environment of its own, as it wants another botocore than ours. That is
made once, in a cache folder, by whoever wants it first; others wait for it meanwhile. What it
holds is in memory and ends with it; `stop` and `start` as often as wanted.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

VERSION = "1.5.33"
HOST = "127.0.0.1"

_UP_SECONDS_MAX = 60
_FETCH_SECONDS_MAX = 600
_END_SECONDS_MAX = 30


class MiniStackMissing(Exception):
    """It is not on this machine, and could not be fetched."""


class MiniStackFailed(Exception):
    """It did not come up; the message has its last words."""


def program(tell: Callable[[str], object] = lambda _: None) -> Path:
    """Return the program, fetched if it is not there yet. Raises MiniStackMissing.

    `tell` hears, in a sentence, that this will take a while.
    """
    folder = _cache() / f"ministack-{VERSION}"
    found, done = folder / "bin" / "ministack", folder / "complete"
    try:
        if done.exists():
            return found
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                tell(f"fetching MiniStack {VERSION}, once, into {folder}")
                _fetch(folder)
                done.touch()
    except OSError as error:
        raise MiniStackMissing(f"MiniStack {VERSION} cannot be kept here: {error}") from error
    return found


def _cache() -> Path:
    """Return the folder for what can be fetched again."""
    usual = os.environ.get("XDG_CACHE_HOME")
    return (Path(usual) if usual else Path.home() / ".cache") / "pennyweight"


def _fetch(folder: Path) -> None:
    """Make a virtual environment with it. Raises MiniStackMissing, OSError."""
    shutil.rmtree(folder, ignore_errors=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--retries=1"]
    try:
        venv.create(folder, with_pip=True)
        subprocess.run(  # noqa: S603 - our own command
            [folder / "bin" / "pip", "install", *options, f"ministack=={VERSION}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=_FETCH_SECONDS_MAX,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (error.stderr or error.stdout or b"").decode(errors="replace").split("\n")
        words = next((line for line in reversed(said) if line.strip()), str(error))
        raise MiniStackMissing(
            f"MiniStack {VERSION}, which could not be fetched: {words.strip()[:200]}"
        ) from error


class MiniStack:
    """One emulator, at an address that it keeps; leaving the context ends it."""

    def __init__(self, *, tell: Callable[[str], object] = lambda _: None) -> None:
        """Nothing runs yet. Raises MiniStackMissing; `tell` as in `program`."""
        self._program = program(tell)
        with socket.socket() as free:
            free.bind((HOST, 0))
            self.port = int(free.getsockname()[1])
        self.endpoint = f"http://{HOST}:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`

    def start(self) -> None:
        """Start it, and wait until it is well; nothing when it runs. Raises MiniStackFailed."""
        if self._process is not None:
            return
        home = self._program.parents[1]
        process = self._process = subprocess.Popen(  # noqa: S603 - our own command
            [self._program],
            env={
                "BIND_HOST": HOST,
                "GATEWAY_PORT": str(self.port),
                "PATH": f"{self._program.parent}{os.pathsep}{os.defpath}",
                "HOME": str(home),
            },
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # Ctrl-C is ours to handle, then we stop it in order
        )
        until = time.monotonic() + _UP_SECONDS_MAX
        while time.monotonic() < until and process.poll() is None:
            if self._is_well():
                return
            time.sleep(0.05)
        self.stop()
        raise MiniStackFailed(f"MiniStack did not start: {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of its log."""
        self._log.seek(0)
        return self._log.read()[-2_000:].decode(errors="replace").strip()

    def freeze(self) -> None:
        """Let it stand still, connections open, until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it as a power cut would; all that it held is gone."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait(_END_SECONDS_MAX)
            self._process = None

    def close(self) -> None:
        """End it for good."""
        self.stop()
        self._log.close()

    def __enter__(self) -> Self:
        """Start it. Raises MiniStackFailed."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _is_well(self) -> bool:
        try:
            with urlopen(f"{self.endpoint}/_ministack/health", timeout=2):  # noqa: S310 - our own URL
                return True
        except (OSError, HTTPException):
            return False

    def _signal(self, number: signal.Signals) -> None:
        """Signal all of it: it starts processes of its own."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

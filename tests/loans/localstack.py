"""LocalStack for tests: the emulator that the seed names, without a container and without a token.

It lives in a virtual environment of its own, made once by the first test that wants it, in a
cache folder: 300 MB, of packages as they were when it was released, as newer ones break it. What
it would leave in /etc, /usr/lib and /var/lib goes into a folder of the test.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

import pytest

VERSION = "4.7.0"
EXCLUDE_NEWER = "2025-09-05"
UP_SECONDS_MAX = 120
FETCH_SECONDS_MAX = 600


class NoLocalStack(Exception):
    """What this machine lacks for it."""


def interpreter() -> Path:
    """Return the Python that has it, fetched if it is not there yet. Raises NoLocalStack."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "pennyweight" / f"localstack-{VERSION}"
    python, done = folder / "bin" / "python", folder / "complete"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            _fetch(folder, python)
            done.touch()
    return python


def _fetch(folder: Path, python: Path) -> None:
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        raise NoLocalStack("uv, which makes an environment of a past day")
    shutil.rmtree(folder, ignore_errors=True)
    packages = ["--exclude-newer", EXCLUDE_NEWER, f"localstack-core[runtime]=={VERSION}"]
    try:
        for words in (
            ["venv", "--python", sys.executable, str(folder)],
            ["pip", "install", "--python", str(python), *packages],
        ):
            subprocess.run(
                [uv, "--quiet", *words], check=True, capture_output=True, timeout=FETCH_SECONDS_MAX
            )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise NoLocalStack(f"LocalStack {VERSION}, which could not be fetched") from error


@contextlib.contextmanager
def running(folder: Path) -> Iterator[str]:
    """Yield the endpoint of one that runs; skip the test where there cannot be one."""
    try:
        python = interpreter()
    except NoLocalStack as error:
        pytest.skip(f"not here: {error}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "SERVICES": "sns,sqs",
        "STRICT_SERVICE_LOADING": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DISABLE_EVENTS": "1",
        "DNS_ADDRESS": "0",
        "OVERRIDE_IN_DOCKER": "0",  # in a container it would not heed the folder
        "FILESYSTEM_ROOT": str(folder / "filesystem"),
        "TMPDIR": str(folder),
        "HOME": str(folder),
        "PATH": f"{python.parent}:/usr/bin:/bin",
    }
    log = folder / "localstack.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [python, "-m", "localstack.runtime.main"],
            env=settings,
            cwd=folder,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _wait(process, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it sometimes ignores SIGTERM
        process.wait(30)


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until it is well; skip the test where it ends instead."""
    until = time.monotonic() + UP_SECONDS_MAX
    while time.monotonic() < until and process.poll() is None:
        if _is_well(port):
            return
        time.sleep(0.1)
    words = log.read_text(errors="replace")[-500:]
    pytest.skip(f"not here: LocalStack {VERSION}, which did not start: {words}")


def _is_well(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/_localstack/health", timeout=5):
            return True
    except (OSError, HTTPException):
        return False

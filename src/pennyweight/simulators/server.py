"""A server of our own to measure or to show: `pennyweight serve` as a child process."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

_READY = re.compile(r"ready http://(.+):(\d+)")
_STOP_SECONDS = 30
COMMAND = (sys.executable, "-m", "pennyweight")


class ServerFailed(Exception):
    """The server did not come up, or did not stop in order; the message has its last words."""


class Verdict(msgspec.Struct):
    """What `pennyweight verify --json` says."""

    ok: bool
    sequence: int = 0
    chain_head: str = ""
    state_digest: str = ""
    first_wrong: object = None


class Server:
    """A running server on a book; leaving the context stops it."""

    def __init__(
        self,
        place: Path | str,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        log: Path | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        wait_seconds: float = 120,
    ) -> None:
        """Start it and wait until it is ready. Raises ServerFailed.

        `place` is the folder of the book, or the URL of a database; the latter needs a `log`.
        `environment` is what it gets beside our own.
        """
        self.place = place
        self._log_path = log or Path(f"{place}.log")
        listening = ["--host", host, "--port", str(port)]
        with self._log_path.open("ab") as log_file:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [*COMMAND, "serve", *_words(place), *listening, *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log_file,
                start_new_session=True,  # Ctrl-C is ours to handle, then we stop it in order
                env={**_environment(place), **(environment or {})},
            )
        self.pid = self._process.pid
        try:
            self.host, self.port = self._wait_until_ready(wait_seconds)
        except BaseException:
            self._process.kill()
            self._process.wait()
            self._close_pipe()
            raise

    @property
    def address(self) -> str:
        """Where it listens, as a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """Return the end of its log."""
        try:
            return self._log_path.read_text(errors="replace")[-2_000:].strip()
        except OSError:
            return ""

    def stop(self) -> None:
        """Ask it to drain and stop, and wait. Raises ServerFailed if that is not what happens."""
        if self._process.stdout is None or self._process.stdout.closed:
            return
        if not self.has_ended:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._close_pipe()
        if code:
            raise ServerFailed(f"the server ended with {code}: {self.last_words()}")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop it; an earlier error is not hidden by the server's own."""
        try:
            self.stop()
        except ServerFailed:
            if error is None:
                raise

    def _wait_until_ready(self, seconds: float) -> tuple[str, int]:
        pipe = self._process.stdout
        until = time.monotonic() + seconds
        seen = b""
        while pipe is not None and time.monotonic() < until:
            if not select.select([pipe], [], [], 0.25)[0]:
                continue
            data = os.read(pipe.fileno(), 4096)
            seen += data
            if found := _READY.search(seen.decode(errors="replace")):
                return found[1].strip("[]"), int(found[2])
            if not data:
                break
        raise ServerFailed(f"the server did not start: {self.last_words()}")

    def _close_pipe(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()


def _words(place: Path | str) -> list[str]:
    """Say a place as the command line wants it; a URL, which everybody could read there, is not."""
    return [] if isinstance(place, str) else ["--data", str(place)]


def _environment(place: Path | str) -> dict[str, str]:
    """Return the environment that says a URL, beside our own."""
    return (
        {**os.environ, "PENNYWEIGHT_STORE_URL": place} if isinstance(place, str) else {**os.environ}
    )


def verify(place: Path | str, options: Sequence[str] = ()) -> Verdict:
    """Run `pennyweight verify` on a book and return what it says."""
    done = subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, "verify", *_words(place), *options, "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env=_environment(place),
    )
    try:
        return msgspec.json.decode(done.stdout, type=Verdict)
    except msgspec.DecodeError:
        words = done.stderr.decode(errors="replace").strip()[-2_000:]
        return Verdict(ok=False, first_wrong=words or f"verify ended with {done.returncode}")

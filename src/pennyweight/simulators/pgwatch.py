"""Whoever starts a PostgreSQL may be killed; this small process then takes the server down.

It runs as a script of its own (`python -I pgwatch.py FOLDER PARENT`) and imports little, so that
it is there at once. When its input closes, or its parent is gone, it kills every process whose
working folder is the data folder (each process of a PostgreSQL stands there), gives the shared
memory of a killed server back, and removes the folder. Without /proc it only removes the folder:
a server whose data are gone ends by itself within a minute.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path

DATA = "data"
"""The name of the data folder in a server's own folder."""

_LOOK_SECONDS = 0.5
_END_SECONDS = 10.0
_REMOVE_SEGMENT = 0  # IPC_RMID


def processes(home: Path) -> list[int]:
    """Return the processes of the server in a folder, the postmaster first; none without /proc."""
    data = str((home / DATA).resolve())
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or somebody else's
            if str((entry / "cwd").readlink()).removesuffix(" (deleted)") == data:
                found.append(int(entry.name))
    first = _lock_file(home)[:1]
    return sorted(found, key=lambda pid: (str(pid) not in first, pid))


def is_still(pid: int) -> bool:
    """Whether a process is stopped, or gone."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2][0] in "TtZX"
    except OSError:
        return True


def kill(home: Path) -> None:
    """Kill the server in a folder: the postmaster stands still first, so that it forks no more."""
    until = time.monotonic() + _END_SECONDS
    while (pids := processes(home)) and time.monotonic() < until:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
        time.sleep(0.005)


def clear(home: Path) -> None:
    """Leave nothing of the server in a folder: no process, no shared memory, no file."""
    kill(home)
    if len(lines := _lock_file(home)) > 6 and len(segment := lines[6].split()) == 2:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).shmctl(int(segment[1]), _REMOVE_SEGMENT, None)
    shutil.rmtree(home, ignore_errors=True)


def _lock_file(home: Path) -> list[str]:
    """The lines of postmaster.pid: process, folder, start, port, socket, address, memory, state."""
    try:
        return (home / DATA / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def main(home: Path, parent: int) -> None:
    """Wait for the end of the input or of the parent, then clear."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # its end is its parent's
    while os.getppid() == parent and not select.select([0], [], [], _LOOK_SECONDS)[0]:
        pass
    clear(home)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

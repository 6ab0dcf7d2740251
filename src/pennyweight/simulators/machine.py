"""What the machine says: a process's memory, processor time and writes, and the disk's own speed.

Everything but the disk's speed needs Linux's /proc, and is None elsewhere.
"""

import os
import tempfile
import time
from pathlib import Path

import msgspec

SYNCS = 300
"""How often the disk is asked; each is an append of a page and its sync."""

_PAGE = bytes(4096)


class Usage(msgspec.Struct, frozen=True):
    """A process at one moment: resident memory, processor time, bytes sent to the disk."""

    rss_bytes: int
    cpu_microseconds: int
    written_bytes: int


def usage(pid: int) -> Usage | None:
    """Return what a process uses; None without /proc, or when it is gone."""
    proc = Path("/proc") / str(pid)
    try:
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        resident_pages = int((proc / "statm").read_text().split()[1])
        lines = dict(line.split(": ") for line in (proc / "io").read_text().splitlines())
    except OSError:
        return None
    ticks = int(fields[11]) + int(fields[12])
    return Usage(
        resident_pages * os.sysconf("SC_PAGE_SIZE"),
        ticks * 1_000_000 // os.sysconf("SC_CLK_TCK"),
        int(lines["write_bytes"]),
    )


def family(pid: int) -> list[int]:
    """Return a process and its children; the process alone where that is not told."""
    children: list[int] = []
    try:
        for task in (Path("/proc") / str(pid) / "task").iterdir():
            children += map(int, (task / "children").read_text().split())
    except OSError:
        return [pid]
    return [pid, *children]


def stolen_percent(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    """Return how much of the processor time wanted between two looks others on the host took."""
    busy, stolen = after[0] - before[0], after[1] - before[1]
    return round(100 * stolen / (busy + stolen), 1) if busy + stolen else None


def busy_microseconds(before: tuple[int, int], after: tuple[int, int]) -> int | None:
    """Return the processor time that the machine used between two looks; None without /proc."""
    ticks = after[0] - before[0]
    return ticks * 1_000_000 // os.sysconf("SC_CLK_TCK") if ticks else None


def processor_ticks() -> tuple[int, int]:
    """Return the machine's busy ticks and those stolen by its host; (0, 0) without /proc."""
    try:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    except OSError:
        return 0, 0
    user, nice, system, _, _, irq, soft, stolen = map(int, fields[:8])
    return user + nice + system + irq + soft, stolen


def sync_times(directory: Path, count: int = SYNCS) -> list[int]:
    """Append a page and sync it, many times; return each time in nanoseconds."""
    sync = getattr(os, "fdatasync", os.fsync)
    times = []
    with tempfile.NamedTemporaryFile(dir=directory, prefix="sync-") as file:
        for _ in range(count):
            started = time.perf_counter_ns()
            os.write(file.fileno(), _PAGE)
            sync(file.fileno())
            times.append(time.perf_counter_ns() - started)
    return times


def median_microseconds(times: list[int]) -> int:
    """Return the median of nanoseconds as microseconds; 0 of nothing."""
    return sorted(times)[len(times) // 2] // 1_000 if times else 0


def size_bytes(directory: Path) -> int:
    """Return what the files of a directory take on disk, by their allocated blocks."""
    return sum(path.stat().st_blocks * 512 for path in directory.rglob("*") if path.is_file())

"""The servers of a benchmark, and what they have done and spent between two looks."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import msgspec

from pennyweight.simulators.asking import Asker, Work, work_of
from pennyweight.simulators.benchplace import BenchPlace
from pennyweight.simulators.crew import Worker
from pennyweight.simulators.figures import Growth, Spent
from pennyweight.simulators.jobs import Row
from pennyweight.simulators.machine import Usage, family, usage
from pennyweight.simulators.server import Server

_TELL_SECONDS = 1.5
"""What several processes of a server say together is at most about this old."""


class Look(msgspec.Struct, frozen=True):
    """What was done so far, and what it took: by the owner's process, and by all others."""

    work: Work
    usage: Usage | None
    fronts_cpu_microseconds: int | None


class Stand:
    """Servers on one book, numbered from 1; leaving the context stops them."""

    def __init__(
        self,
        place: BenchPlace,
        folder: Path,
        options: Sequence[str] = (),
        *,
        count: int = 1,
        workers: int = 1,
    ) -> None:
        """Start them, one after the other. Raises ServerFailed."""
        words = [*place.options, "--workers", str(workers), *options]
        self._tell_seconds = _TELL_SECONDS if workers > 1 else 0.0
        self._stack = ExitStack()
        self.servers: list[Server] = []
        try:
            for number in range(1, count + 1):
                server = Server(place.place, log=folder / f"log-{number}", options=words)
                self.servers.append(self._stack.enter_context(server))
        except BaseException:
            self._stack.close()
            raise
        self.addresses = tuple((server.host, server.port) for server in self.servers)
        self.askers = [Asker(address) for address in self.addresses]
        self._owner = self.servers[0]

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop them, the fronts first."""
        self._stack.close()

    def begin(self) -> Look:
        """Look at all of them, and from now on at the process that owns the book as its owner."""
        time.sleep(self._tell_seconds)
        work = work_of(self.askers)
        if work.owners:
            self._owner = self.servers[work.owners[0] - 1]
        return Look(work, self.usage(), self._fronts_cpu())

    def look(self) -> Look:
        """Look at all of them, when the load is over."""
        used, fronts = self.usage(), self._fronts_cpu()
        time.sleep(self._tell_seconds)
        return Look(work_of(self.askers), used, fronts)

    def _fronts_cpu(self) -> int | None:
        fronts = [pid for one in self.servers for pid in family(one.pid)]
        fronts.remove(self._owner.pid)
        used = [found.cpu_microseconds for pid in fronts if (found := usage(pid))]
        return sum(used) if used else None

    def usage(self) -> Usage | None:
        """Return what the owner's process uses."""
        return usage(self._owner.pid)


def spent_between(
    before: Look,
    after: Look,
    row: Row,
    worker: Worker,
    *,
    answered: int,
    middle: Usage | None,
    growth: Growth,
    syncs: list[int],
    commits: list[int],
) -> Spent:
    """Say what was spent on a row between two looks, and tell the row what went to a database."""
    after.work.tell(row, before.work)
    fronts = after.fronts_cpu_microseconds
    return Spent(
        before=before.usage,
        middle=middle,
        after=after.usage,
        answered=max(1, answered),
        growth=growth,
        syncs=syncs,
        mean_batch=after.work.mean_batch(before.work),
        stolen_percent=worker.stolen_percent,
        fronts_cpu_microseconds=None
        if fronts is None
        else fronts - (before.fronts_cpu_microseconds or 0),
        machine_cpu_microseconds=worker.busy_microseconds,
        commits=commits,
        owners=after.work.owners_since(before.work),
    )

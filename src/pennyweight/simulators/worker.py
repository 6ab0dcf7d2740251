"""The process that does the work of a benchmark: `python -m pennyweight.simulators.worker`.

It reads a job as one line of JSON, prepares it, says that it is ready, waits for one more
line, does it, and prints the figures. Nothing imports this module, so it may use the roof.
"""

import gc
import signal
import sys
import time
from collections.abc import Callable, Sequence

import msgspec

from pennyweight.simulators.asking import Asker
from pennyweight.simulators.client import Client
from pennyweight.simulators.jobs import (
    DeskJob,
    FacadeJob,
    InProcessJob,
    Job,
    Line,
    LoadJob,
    Row,
    row_of,
)
from pennyweight.simulators.withdrawing import Withdrawals, reserve
from pennyweight.simulators.workloads import WORKLOADS, Workload

_FUNDING_CONNECTIONS = 32


def main() -> int:
    """Do one job."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is told by the parent
    job = msgspec.json.decode(sys.stdin.readline(), type=Job)
    try:
        rows = _do(job)
    except Exception as error:  # noqa: BLE001 - the parent prints it
        say(Line(wrong=f"{type(error).__name__}: {error}"))
        return 1
    say(Line(rows=rows))
    return 0


def say(line: Line) -> None:
    """Print a line for the parent."""
    sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stdout.flush()


def report(done: int) -> None:
    """Say how much is done."""
    say(Line(done=done))


def wait_for_go() -> None:
    """Say that all is prepared, and wait for the parent."""
    gc.collect()
    say(Line(is_ready=True))
    sys.stdin.readline()


def _do(job: Job) -> list[Row]:
    if isinstance(job, LoadJob):
        if job.scenario == "withdrawals":
            return withdraw(job)
        return [load(job, WORKLOADS[job.scenario](job.target))[0]]
    if isinstance(job, InProcessJob):
        from pennyweight.simulators.inprocess import run_batches  # noqa: PLC0415 - see facade

        return run_batches(job, wait_for_go, report)
    if isinstance(job, DeskJob):
        from pennyweight.simulators.deskwork import run_desk  # noqa: PLC0415 - see facade

        return run_desk(job, wait_for_go, report)
    if isinstance(job, FacadeJob):
        from pennyweight.simulators.facade import run_facade  # noqa: PLC0415 - loads the roof

        return run_facade(job, wait_for_go, report)
    raise TypeError(job)


def load(
    job: LoadJob,
    workload: Workload,
    *,
    also: bytes = b"",
    apart_prefix: bytes = b"",
    beside: Callable[[int], None] | None = None,
) -> tuple[Row, Client]:
    """Fund the accounts, then load the server; return what came out, and the client."""
    address = (job.target.host, job.target.port)
    if not job.is_funded:
        fund([address, *job.others], workload)
    workload.learn(Asker(address, job.target.token).get)
    streams = [workload.stream() for _ in range(job.connections)]
    client = Client(
        address,
        streams,
        others=job.others,
        expected=workload.expected,
        also=also,
        apart_prefix=apart_prefix,
    )
    wait_for_go()
    gc.disable()  # the client makes no cycles, and a collection would look like a slow server
    cpu = time.process_time()
    seconds = client.run(
        job.seconds, warm_up=job.warm_up_seconds, rate=job.rate, report=report, beside=beside
    )
    cpu = time.process_time() - cpu
    client.close()
    done = client.histogram.count
    row = row_of(
        job.scenario,
        client.histogram,
        requests=done,
        seconds=seconds,
        cpu_seconds=cpu * done / max(1, client.answered),
        tally=client.tally,
        dropped=client.dropped,
    )
    return row, client


def withdraw(job: LoadJob) -> list[Row]:
    """Load a server with withdrawals, and see to it that they end as the job says."""
    workload = Withdrawals(job.target, job.settle)
    if job.settle == "http":
        row, client = load(job, workload, also=workload.settled, apart_prefix=workload.apart)
        row.case = "withdrawals and settlements"
        alone = row_of(
            "of these the withdrawals",
            client.apart,
            requests=client.apart.count,
            seconds=row.seconds,
            cpu_seconds=row.cpu_us * client.apart.count / 1e6,
        )
        return [row, alone]
    if job.settle == "none":
        return [load(job, workload)[0]]
    from pennyweight.simulators.flow import Flow  # noqa: PLC0415 - loads the Kafka client

    held = reserve(job.target.users, job.target.seed, job.held)
    flow = Flow(job.brokers, job.settle_rate, workload.accepted, held)
    row, _ = load(job, workload, beside=flow)
    row.sent = flow.finish()
    return [row]


def fund(addresses: Sequence[tuple[str, int]], workload: Workload) -> None:
    """Send the requests of the funding, phase by phase. Raises RuntimeError if one is refused."""
    for phase in workload.funding():
        streams = [
            iter(phase[first::_FUNDING_CONNECTIONS]) for first in range(_FUNDING_CONNECTIONS)
        ]
        client = Client(addresses[0], streams[: len(phase)], others=addresses[1:])
        client.finish_streams()
        client.close()
        if client.tally.errors:
            raise RuntimeError(f"funding the accounts: {client.tally.statuses}")


if __name__ == "__main__":
    raise SystemExit(main())

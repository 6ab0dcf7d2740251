"""Bets and wins through `pennyweight.wallet`, in memory, by one caller and by many threads.

Only the worker process imports this: it stands on the roof.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.jobs import FacadeJob, Row, row_of
from pennyweight.simulators.sampling import Skew, pick
from pennyweight.wallet import Wallet, balance, bet, create_users, start, win

_CHOICES = 1 << 12
_GRANT = 100_000
_STEP = 64
"""Bets and wins between two looks at the clock."""


class Caller(threading.Thread):
    """One caller: bets and wins in turn until its time is over."""

    def __init__(self, server: Wallet, job: FacadeJob, number: int, end: int) -> None:
        """`end` is a moment of `perf_counter_ns`."""
        super().__init__(name=f"caller-{number}")
        self.histogram = Histogram()
        self.errors = 0
        self.done = 0
        self._server = server
        self._end = end
        self._bodies = bodies(job, number)

    def run(self) -> None:
        """See the class."""
        clock, record, server = time.perf_counter_ns, self.histogram.record, self._server
        now = clock()
        while now < self._end:
            for _ in range(_STEP):
                for call, body in zip((bet, win), next(self._bodies), strict=True):
                    before = clock()
                    answer = call(server, body)
                    now = clock()
                    record(now - before)
                    self.errors += answer["status"] != "RS_OK"
            self.done += 2 * _STEP


def bodies(job: FacadeJob, number: int) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield a bet and the win that gives it back, without end."""
    draw = random.Random(f"{job.seed} {number}")
    skew = Skew(job.skew)
    users = [0] if skew.is_hot else pick(draw, skew, job.users, _CHOICES)
    for user in cycle(users):
        first, second = _uuid(draw), _uuid(draw)
        wager = {
            "user": _user(user),
            "transaction_uuid": first,
            "request_uuid": first,
            "token": "t",
            "round": "r",
            "game_code": "bench",
            "currency": "USD",
            "amount": 1,
        }
        prize = {
            **wager,
            "transaction_uuid": second,
            "request_uuid": second,
            "reference_transaction_uuid": first,
        }
        yield wager, prize


def run_facade(
    job: FacadeJob, ready: Callable[[], None], report: Callable[[int], None]
) -> list[Row]:
    """Measure each number of threads, each on a wallet of its own."""
    ready()
    return [_measure(job, count, report) for count in job.threads]


def _measure(job: FacadeJob, count: int, report: Callable[[int], None]) -> Row:
    server = start()
    create_users(server, [_user(user) for user in range(job.users)])
    cpu, started = time.process_time(), time.perf_counter_ns()
    end = started + int(job.seconds * 1e9)
    callers = [Caller(server, job, number, end) for number in range(count)]
    for caller in callers:
        caller.start()
    while any(caller.is_alive() for caller in callers):
        callers[0].join(0.5)
        report(sum(caller.done for caller in callers))
    for caller in callers:
        caller.join()
    seconds = (time.perf_counter_ns() - started) / 1e9
    cpu = time.process_time() - cpu
    histogram = Histogram()
    for caller in callers:
        histogram.add(caller.histogram)
    row = row_of(
        "one caller" if count == 1 else f"{count} threads",
        histogram,
        requests=histogram.count,
        seconds=seconds,
        cpu_seconds=cpu,
    )
    row.errors = sum(caller.errors for caller in callers)
    row.is_correct = _has_all_money(server, job)
    return row


def _has_all_money(server: Wallet, job: FacadeJob) -> bool:
    """Whether all users together have what they were given: each win gave its bet back."""
    total: int = sum(
        balance(server, {"user": _user(user), "request_uuid": _uuid(random.Random(user))})[
            "balance"
        ]
        for user in range(job.users)
    )
    return total == job.users * _GRANT


def _user(number: int) -> str:
    return f"player{number:07d}"


def _uuid(draw: random.Random) -> str:
    text = f"{draw.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"

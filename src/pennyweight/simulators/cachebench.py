"""How often each policy finds the user in memory, on every trace: `pennyweight bench cache`."""

from collections.abc import Callable

import msgspec

from pennyweight.engine.policy import Replacement
from pennyweight.simulators import foreign, traces
from pennyweight.simulators.policies import (
    Arc,
    Belady,
    Fifo,
    Lfu,
    Lru,
    Policy,
    S3Fifo,
    Sieve,
    TwoQ,
)
from pennyweight.simulators.traces import Trace

OURS = "ours"
OPTIMUM = "Bélády's optimum"
Report = Callable[[int, int], None]

_REFERENCES: dict[str, Callable[[int], Policy]] = {
    "FIFO": Fifo,
    "LRU": Lru,
    "LFU": Lfu,
    "2Q": TwoQ,
    "ARC": Arc,
    "SIEVE": Sieve,
    "S3-FIFO": S3Fifo,
}


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Hit ratios (0 to 1) of each policy, in the order of `traces`.

    `missing` names packages whose policies could not be played.
    """

    users: int
    capacity: int
    requests: int
    seed: int
    traces: list[str]
    hit_ratios: dict[str, list[float]]
    missing: list[str]

    def best_online(self) -> list[float]:
        """The best of those that neither are ours nor know the future, on each trace."""
        others = [row for name, row in self.hit_ratios.items() if name not in {OURS, OPTIMUM}]
        return [max(column) for column in zip(*others, strict=True)]

    def lead(self) -> list[float]:
        """By how much ours is ahead of the best of them; negative where it is behind."""
        ours = self.hit_ratios[OURS]
        return [mine - best for mine, best in zip(ours, self.best_online(), strict=True)]


def compare(*, users: int, capacity: int, requests: int, seed: int, report: Report) -> Comparison:
    """Play every trace against every policy. Raises ValueError where nothing can be compared."""
    if not 1 <= capacity < users:
        raise ValueError("the capacity is at least 1 and less than the users")
    if requests < 1:
        raise ValueError("at least one request is needed")
    makers = {OURS: Replacement, **_REFERENCES, **foreign.CONTENDERS}
    hit_ratios: dict[str, list[float]] = {name: [] for name in (*makers, OPTIMUM)}
    names: list[str] = []
    for trace in traces.all_traces(seed=seed, users=users, capacity=capacity, requests=requests):
        for name, make in makers.items():
            hit_ratios[name].append(round(traces.hit_ratio(make(capacity), trace), 6))
        hit_ratios[OPTIMUM].append(round(_optimum(capacity, trace), 6))
        names.append(trace.name)
        report(len(names), traces.COUNT)
    return Comparison(
        users=users,
        capacity=capacity,
        requests=requests,
        seed=seed,
        traces=names,
        hit_ratios=hit_ratios,
        missing=foreign.MISSING,
    )


def _optimum(capacity: int, trace: Trace) -> float:
    """The bound for everybody: it may admit at settlements, too."""
    policy = Belady(capacity, trace.users)
    counted = hits = 0
    for turn, user in enumerate(trace.users):
        is_hit = policy.use(user)
        if not is_hit:
            policy.admit(user)
        if not (trace.is_callers_only and turn in trace.settled):
            counted += 1
            hits += is_hit
    return hits / counted

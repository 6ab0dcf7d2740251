"""Seeded traces of who is called when, to measure the cache's policy with.

A trace is played against a policy by `hit_ratio`, by the engine's rules: a withdrawal
uses its user and admits him, and he is pinned while his withdrawal is open; its
settlement, later, is a hit if he is resident, and neither uses nor admits him.
"""

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from itertools import islice

import msgspec

from pennyweight.engine.policy import Replacement
from pennyweight.simulators.policies import Policy
from pennyweight.simulators.sampling import zipf_weights


class Trace(msgspec.Struct, frozen=True):
    """Requests in order. `settled` are the places of those that are settlements.

    If `is_callers_only`, hits of settlements do not count: nobody waits for their answer.
    """

    name: str
    users: list[str]
    settled: frozenset[int] = frozenset()
    is_callers_only: bool = False


def uniform(draw: random.Random, users: int, requests: int) -> Trace:
    return Trace("uniform", _named(draw.choices(range(users), k=requests)))


def zipf(draw: random.Random, users: int, requests: int, exponent: float) -> Trace:
    return Trace(f"Zipf {exponent}", _named(_skewed(draw, users, requests, exponent)))


def scans(draw: random.Random, users: int, requests: int) -> Trace:
    """Zipf 1.0, and every 10 000 requests a scan: 2 000 ids, one after the other, once each."""
    skewed = iter(_skewed(draw, users, requests, 1.0))
    chosen: list[int] = []
    cold = users
    while len(chosen) < requests:
        chosen += islice(skewed, 8_000)
        chosen += range(cold, cold + 2_000)
        cold += 2_000
    return Trace("Zipf 1.0, then scans", _named(chosen[:requests]))


def scan_between(draw: random.Random, users: int, requests: int) -> Trace:
    """Zipf 1.0, and between any two requests the next of all users in order, round and round."""
    chosen = _skewed(draw, users, requests, 1.0)
    chosen[1::2] = [turn % users for turn in range(len(chosen[1::2]))]
    return Trace("Zipf 1.0 and a scan", _named(chosen))


def loop(length: int, requests: int) -> Trace:
    """The same users one after the other, again and again."""
    return Trace(f"loop of {length}", _named([turn % length for turn in range(requests)]))


def shifts(draw: random.Random, users: int, requests: int) -> Trace:
    """Nine of ten requests go to 200 users, who are others every 5 000 requests."""
    chosen: list[int] = []
    while len(chosen) < requests:
        hot = draw.sample(range(users), min(200, users))
        chosen += (
            draw.choice(hot) if draw.random() < 0.9 else draw.randrange(users) for _ in range(5_000)
        )
    return Trace("hot set shifts", _named(chosen[:requests]))


def drifts(draw: random.Random, users: int, requests: int) -> Trace:
    """Zipf 1.0 over ranks that move on: every 20 requests the next user becomes the first."""
    ranks = _skewed(draw, users, requests, 1.0)
    return Trace("hot set drifts", _named([(r + t // 20) % users for t, r in enumerate(ranks)]))


def mixed(
    draw: random.Random, users: int, requests: int, *, is_callers_only: bool = False
) -> Trace:
    """Withdrawals by Zipf 1.0, each settled between 50 and 2 000 requests later."""
    skewed = iter(_skewed(draw, users, requests, 1.0))
    chosen: list[int] = []
    settled: set[int] = set()
    due: dict[int, deque[int]] = {}
    waiting: deque[int] = deque()
    for turn in range(requests):
        waiting += due.pop(turn, ())
        if waiting:
            settled.add(turn)
            chosen.append(waiting.popleft())
        else:
            user = next(skewed)
            chosen.append(user)
            due.setdefault(turn + draw.randrange(50, 2_000), deque()).append(user)
    name = "withdrawals to be settled" if is_callers_only else "and their settlements"
    return Trace(name, _named(chosen), frozenset(settled), is_callers_only)


COUNT = 11
"""How many traces the comparison has."""


def all_traces(*, seed: int, users: int, capacity: int, requests: int) -> Iterator[Trace]:
    """Yield every trace of the comparison; each has seeded randomness of its own."""
    makers: list[Callable[[random.Random], Trace]] = [
        lambda draw: uniform(draw, users, requests),
        lambda draw: zipf(draw, users, requests, 0.9),
        lambda draw: zipf(draw, users, requests, 1.0),
        lambda draw: scans(draw, users, requests),
        lambda draw: scan_between(draw, users, requests),
        lambda _: loop(capacity + 1, requests),
        lambda _: loop(users, requests),
        lambda draw: shifts(draw, users, requests),
        lambda draw: drifts(draw, users, requests),
        lambda draw: mixed(draw, users, requests, is_callers_only=True),
        lambda draw: mixed(draw, users, requests),
    ]
    for place, make in enumerate(makers):
        yield make(random.Random(seed * 1_000 + min(place, COUNT - 2)))  # the last two are one


def hit_ratio(policy: Policy, trace: Trace) -> float:
    """Play a trace, and return the share of requests that found their user resident."""
    if not trace.settled:
        return _plain_hits(policy, trace.users) / len(trace.users)
    ours = policy if isinstance(policy, Replacement) else None
    opened: Counter[str] = Counter()
    hits = 0
    for turn, user in enumerate(trace.users):
        if turn in trace.settled:
            is_hit = user in policy if ours is None else ours.peek(user)
            hits += is_hit and not trace.is_callers_only
            opened[user] -= 1
        else:
            if policy.use(user):
                hits += 1
            else:
                policy.admit(user)
            opened[user] += 1
        if ours is not None:
            ours.pin(user, opened[user] > 0)
    count = len(trace.users) - (len(trace.settled) if trace.is_callers_only else 0)
    return hits / count


def _plain_hits(policy: Policy, users: list[str]) -> int:
    use, admit = policy.use, policy.admit
    hits = 0
    for user in users:
        if use(user):
            hits += 1
        else:
            admit(user)
    return hits


def _skewed(draw: random.Random, users: int, requests: int, exponent: float) -> list[int]:
    weights = zipf_weights(users, exponent)
    return draw.choices(range(users), cum_weights=weights, k=requests)


def _named(chosen: list[int]) -> list[str]:
    return [f"user:{number}" for number in chosen]

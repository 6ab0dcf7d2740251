"""The policies of the literature: their own rules, and what packages make of the same names."""

import random

import pytest

from pennyweight.simulators import foreign, traces
from pennyweight.simulators.policies import Arc, Belady, Fifo, Lfu, Lru, S3Fifo, Sieve, TwoQ

ALL = [Fifo, Lru, Lfu, TwoQ, Arc, Sieve, S3Fifo, *foreign.CONTENDERS.values()]
NAMES = ["FIFO", "LRU", "LFU", "2Q", "ARC", "SIEVE", "S3-FIFO", *foreign.CONTENDERS]


def leavers(policy, users):
    """Who leaves, in order."""
    return [gone for user in users if not policy.use(user) and (gone := policy.admit(user))]


@pytest.mark.parametrize(
    ("make", "gone"),
    [
        (Fifo, "abc"),  # in the order of arrival
        (Lru, "bca"),  # a was used after them
        (Lfu, "bcd"),  # a was used twice
        (Sieve, "bcd"),  # the hand passes over a, and is behind it for a whole round
    ],
)
def test_reference_who_leaves(make, gone):
    assert leavers(make(3), "abcadef") == list(gone)


@pytest.mark.parametrize("make", ALL, ids=NAMES)
def test_reference_bound_and_books(make):
    draw = random.Random(5)
    policy = make(10)
    residents = set()
    for _ in range(3_000):
        user = f"user:{min(int(draw.expovariate(0.1)), 60)}"
        if policy.use(user):
            assert user in residents
        else:
            assert user not in residents
            gone = policy.admit(user)
            residents.add(user)
            residents.discard(gone)
        assert len(policy) == len(residents) <= 10
        assert all(resident in policy for resident in residents)


@pytest.mark.parametrize(
    ("ours", "theirs", "apart"),
    [(Lru, "LRU of cachetools", 0.0), (Lfu, "LFU of cachetools", 0.002)],
)
def test_reference_agrees_with_cachetools(ours, theirs, apart):
    if theirs not in foreign.CONTENDERS:
        pytest.skip("not here: cachetools")
    for trace in traces.all_traces(seed=4, users=90, capacity=30, requests=5_000):
        difference = traces.hit_ratio(ours(30), trace) - traces.hit_ratio(
            foreign.CONTENDERS[theirs](30), trace
        )
        assert abs(difference) <= apart, trace.name


def test_belady_is_the_optimum():
    """Against every choice there is, on traces short enough to try them all."""
    draw = random.Random(6)
    for _ in range(30):
        users = draw.choices("abcd", k=9)
        found = traces.hit_ratio(Belady(2, users), traces.Trace("short", users))
        assert round(found * 9) == most_hits(tuple(users), frozenset())


def most_hits(users, residents):
    if not users:
        return 0
    user, later = users[0], users[1:]
    if user in residents:
        return 1 + most_hits(later, residents)
    choices = [residents]
    if len(residents) < 2:
        choices.append(residents | {user})
    choices += [residents - {gone} | {user} for gone in residents]
    return max(most_hits(later, kept) for kept in choices)

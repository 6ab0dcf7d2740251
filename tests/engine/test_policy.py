"""Who stays in memory: the bound, pins, ghosts, and how well it does on hard traffic."""

from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.engine.policy import Replacement

IDS = st.integers(0, 40).map("user:{}".format)
STEPS = st.lists(
    st.tuples(st.sampled_from(["call", "call", "call", "pin", "unpin", "evict", "peek"]), IDS),
    max_size=300,
)


def call(policy, user):
    """Do as the engine does; return whether it was a hit, and who was dropped."""
    if policy.use(user):
        return True, None
    return False, policy.admit(user)


def hits(policy, users):
    return [call(policy, user)[0] for user in users]


@given(capacity=st.integers(1, 20), steps=STEPS)
def test_bound_any_operations(capacity, steps):
    policy = Replacement(capacity)
    residents = set()
    pinned = OrderedDict()
    for what, user in steps:
        dropped = None
        if what == "call":
            was_hit, dropped = call(policy, user)
            assert was_hit == (user in residents)
            if not was_hit:
                assert dropped is not None or len(residents) < capacity
                residents.add(user)
        elif what == "evict":
            dropped = policy.evict()
            assert (dropped is None) == (not residents - set(pinned))
        elif what == "peek":
            assert policy.peek(user) == (user in residents)
        elif what == "unpin":
            policy.pin(user, False)
            pinned.pop(user, None)
        elif user in residents:
            policy.pin(user, True)
            pinned[user] = True
            pinned.move_to_end(user)
            while len(pinned) > capacity // 2:
                pinned.popitem(last=False)
        else:
            policy.pin(user, True)
        if dropped is not None:
            assert dropped in residents
            assert dropped not in pinned
            residents.remove(dropped)
        assert {u for u in map("user:{}".format, range(41)) if u in policy} == residents
        assert len(policy) == len(residents) <= capacity
        assert policy.pinned == len(pinned)
        assert policy.ghosts <= policy.ghosts_max


def test_capacity_none():
    with pytest.raises(ValueError, match="at least one place"):
        Replacement(0)

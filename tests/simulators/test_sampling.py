import itertools
import random
from collections import Counter

import pytest

from pennyweight.simulators.sampling import Skew, keys, pairs, pick


@pytest.mark.parametrize("text", ["", "zipf", "zipf:0", "zipf:-1", "zipf:nan", "zipf:x", "cold"])
def test_skew_refuses_what_it_does_not_know(text):
    with pytest.raises(ValueError):
        Skew(text)


def test_zipf_picks_by_rank():
    chosen = Counter(pick(random.Random(1), Skew("zipf:1"), 100, 50_000))
    # Harmonic number of 100 is 5.187: rank 1 gets 19.3 %, rank 2 half of that, rank 10 a tenth.
    for rank, share in ((1, 0.1928), (2, 0.0964), (10, 0.01928)):
        assert chosen[rank - 1] / 50_000 == pytest.approx(share, rel=0.1)
    assert max(chosen) <= 99


def test_uniform_picks_everyone_alike():
    chosen = Counter(pick(random.Random(1), Skew("uniform"), 10, 50_000))
    assert sorted(chosen) == list(range(10))
    assert all(count == pytest.approx(5_000, rel=0.1) for count in chosen.values())


@pytest.mark.parametrize("skew", ["uniform", "zipf:1.5", "hot"])
@pytest.mark.parametrize("users", [2, 3, 50])
def test_pairs_are_two_different_accounts(skew, users):
    chosen = pairs(random.Random(1), Skew(skew), users, 2_000)
    assert all(payer != payee for payer, payee in chosen)
    assert all(0 <= payer < users and 0 <= payee < users for payer, payee in chosen)


def test_pairs_hot_all_pay_the_first():
    chosen = pairs(random.Random(1), Skew("hot"), 20, 2_000)
    assert {payee for _, payee in chosen} == {0}
    assert {payer for payer, _ in chosen} == set(range(1, 20))


def test_pairs_need_two_accounts():
    with pytest.raises(ValueError):
        pairs(random.Random(1), Skew("uniform"), 1, 1)


def test_pairs_are_the_same_for_the_same_seed():
    again = [pairs(random.Random(5), Skew("zipf:1.2"), 30, 100) for _ in range(2)]
    assert again[0] == again[1]


def test_keys_are_distinct_and_ordered_ones_begin_with_the_time():
    drawn = list(itertools.islice(keys(random.Random(1), is_ordered=False), 1_000))
    assert len(set(drawn)) == 1_000
    assert drawn != sorted(drawn)
    ordered = list(itertools.islice(keys(random.Random(1), is_ordered=True), 1_000))
    times = [key >> 80 for key in ordered]
    assert times == sorted(times)
    assert len(set(ordered)) == 1_000
    assert all(key < 1 << 128 for key in drawn + ordered)

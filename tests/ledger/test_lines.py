"""Statement lines: a skew-binary list, so any ordinal is a few look-ups away."""

import pytest

from pennyweight.ledger.lines import jump_ordinal, push, tree_size

COUNT = 3_000


def test_push_pointers_agree_with_ordinals():
    """The stored pointers lead where `jump_ordinal` says, for a line per entry."""
    roots, sequence_of = (), {0: 0}
    for ordinal in range(1, COUNT):
        sequence = sequence_of[ordinal] = 10 * ordinal  # other accounts' entries in between
        roots, previous, jump = push(roots, sequence)
        assert previous == sequence_of[ordinal - 1]
        assert jump == sequence_of[jump_ordinal(ordinal)]
        assert roots[0] == tree_size(ordinal)
        assert sum(roots[::2]) == ordinal
        assert len(roots) <= 2 * ordinal.bit_length()


def test_push_two_lines_in_one_entry():
    roots, previous, jump = push((), 5)
    assert (roots, previous, jump) == ((1, 5), 0, 0)
    roots, previous, jump = push(roots, 5)
    assert (roots, previous, jump) == ((1, 5, 1, 5), 5, 5)
    roots, previous, jump = push(roots, 6)
    assert (roots, previous, jump) == ((3, 6), 5, 0)


@pytest.mark.parametrize(
    ("ordinal", "size"),
    [(1, 1), (2, 1), (3, 3), (4, 1), (5, 1), (6, 3), (7, 7), (8, 1), (15, 15), (22, 7), (26, 1)],
)
def test_tree_size(ordinal, size):
    assert tree_size(ordinal) == size
    assert jump_ordinal(ordinal) == ordinal - size


@pytest.mark.parametrize("newest", [1, 2, 63, 64, 1000, 99_999, 10**9 + 7])
def test_any_ordinal_in_few_hops(newest):
    """From the newest line to any other: at most about two hops a binary digit."""
    targets = {1, 2, 3, newest, newest - 1, newest // 2, newest // 3, newest * 7 // 8}
    for target in (target for target in targets if 0 < target <= newest):
        at, hops = newest, 0
        while at > target:
            jump = jump_ordinal(at)
            at = jump if jump >= target else at - 1
            hops += 1
        assert at == target
        assert hops <= 3 * newest.bit_length()

"""Statement lines: how any line of an account is found without an index.

Each change of an account's posted or held amount is a line with an ordinal, 1, 2, 3 …
A line points to the entry of the previous line and to that of a line further back, by
the rule of skew-binary lists (Myers 1983, "An applicative random-access stack"), so that
any ordinal is O(log n) look-ups away. The account keeps only the roots of its list's trees.
"""

import msgspec

Roots = tuple[int, ...]
"""size, sequence, size, sequence … of the trees, newest first; sizes are 2**k - 1."""


class Line(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One posting or hold change as its account sees it, with the balances after it.

    `change` names its cause inside the entry: n >= 0 is transfer n, n < 0 is hold change
    -1 - n. `previous` and `jump` are sequences of entries, 0 where there is none.
    """

    account: str
    ordinal: int
    change: int
    posted: int
    held: int
    previous: int
    jump: int


def push(roots: Roots, sequence: int) -> tuple[Roots, int, int]:
    """Add a line written by the entry `sequence`; return (new roots, previous, jump)."""
    if not roots:
        return (1, sequence), 0, 0
    previous = roots[1]
    if len(roots) >= 4 and roots[0] == roots[2]:
        size = 2 * roots[0] + 1
        jump = roots[5] if len(roots) > 4 else 0
        return (size, sequence, *roots[4:]), previous, jump
    return (1, sequence, *roots), previous, previous


def tree_size(ordinal: int) -> int:
    """Size of the tree that line `ordinal` heads; its jump goes to `ordinal - size`."""
    rest = ordinal
    while True:
        size: int = (1 << (rest + 1).bit_length() - 1) - 1
        if size == rest:
            return size
        rest -= size


def jump_ordinal(ordinal: int) -> int:
    """Ordinal of the line that the jump pointer of line `ordinal` leads to; 0 for none."""
    return ordinal - tree_size(ordinal)

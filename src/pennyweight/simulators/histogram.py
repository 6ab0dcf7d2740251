"""A histogram of durations wide enough for any tail: from 1 ns to hours, within 0.8 %."""

_SUB_BITS = 7
"""Each power of two is cut into 128 equal parts."""

_SLOTS = (64 - _SUB_BITS) << _SUB_BITS
_DIRECT = 1 << (_SUB_BITS + 1)


def slot_of(nanoseconds: int) -> int:
    """Return the slot of a duration; below 256 ns every value has its own."""
    if nanoseconds < _DIRECT:
        return nanoseconds
    shift = nanoseconds.bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (nanoseconds >> shift)


def upper_edge(slot: int) -> int:
    """Return the longest duration that falls into a slot, in nanoseconds."""
    if slot < _DIRECT:
        return slot
    shift = (slot >> _SUB_BITS) - 1
    part = slot - (shift << _SUB_BITS)
    return ((part + 1) << shift) - 1


class Histogram:
    """Counts of durations in nanoseconds. A quantile is the upper edge of its slot."""

    __slots__ = ("count", "longest", "slots")

    def __init__(self) -> None:
        """Start empty."""
        self.slots = [0] * _SLOTS
        self.count = 0
        self.longest = 0

    def record(self, nanoseconds: int) -> None:
        """Count one duration; one below zero (a clock set back) counts as zero."""
        nanoseconds = max(nanoseconds, 0)
        self.slots[slot_of(nanoseconds)] += 1
        self.count += 1
        self.longest = max(self.longest, nanoseconds)

    def quantile(self, share_ppm: int) -> int:
        """Return the duration within which this share (millionths) of all lies; 0 if empty."""
        wanted = -(-self.count * share_ppm // 1_000_000)
        seen = 0
        for slot, count in enumerate(self.slots):
            seen += count
            if count and seen >= wanted:
                return min(upper_edge(slot), self.longest)
        return 0

    def add(self, other: "Histogram") -> None:
        """Count everything that another histogram counted."""
        self.slots = [mine + its for mine, its in zip(self.slots, other.slots, strict=True)]
        self.count += other.count
        self.longest = max(self.longest, other.longest)

import pytest

from pennyweight.simulators.pacing import Pacer

MS = 1_000_000


def test_pacer_is_even_and_starts_at_once():
    pacer = Pacer(1_000, start=5 * MS)
    assert [pacer.take(100 * MS) for _ in range(4)] == [5 * MS, 6 * MS, 7 * MS, 8 * MS]


def test_pacer_gives_nothing_early():
    pacer = Pacer(100, start=0)
    assert pacer.take(0) == 0
    assert pacer.take(10 * MS - 1) is None
    assert pacer.next_at == 10 * MS
    assert pacer.take(10 * MS) == 10 * MS


def test_pacer_late_request_keeps_its_intended_time():
    """A server that stalls 50 ms owes the requests of that time, each with its own wait."""
    pacer = Pacer(100, start=0)
    pacer.take(0)
    now = 50 * MS
    waits = []
    while (at := pacer.take(now)) is not None:
        waits.append((now - at) // MS)
    assert waits == [40, 30, 20, 10, 0]


def test_pacer_counts_what_was_never_sent():
    pacer = Pacer(1_000, start=0)
    for _ in range(3):
        pacer.take(10 * MS)
    assert pacer.dropped(10 * MS) == 7
    assert pacer.dropped(3 * MS) == 0


def test_pacer_does_not_drift_at_odd_rates():
    pacer = Pacer(7, start=0)
    for _ in range(700):
        pacer.take(1 << 62)
    assert pacer.next_at == 100_000 * MS


@pytest.mark.parametrize("rate", [0, -1])
def test_pacer_needs_a_rate(rate):
    with pytest.raises(ValueError):
        Pacer(rate, start=0)

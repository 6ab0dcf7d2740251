import random

import pytest

from pennyweight.simulators.histogram import Histogram, slot_of, upper_edge


@pytest.mark.parametrize(
    "nanoseconds", [0, 1, 255, 256, 257, 511, 512, 1_000, 10**6, 10**9, 3_600 * 10**9, 2**62]
)
def test_slot_is_within_one_percent(nanoseconds):
    edge = upper_edge(slot_of(nanoseconds))
    assert nanoseconds <= edge <= nanoseconds * 1.008


def test_slots_follow_one_another():
    edges = [upper_edge(slot) for slot in range(3_000)]
    assert edges == sorted(set(edges))
    for slot, edge in enumerate(edges):
        assert slot_of(edge) == slot
        assert slot_of(edge + 1) == slot + 1


def test_quantiles_are_those_of_the_values():
    draw = random.Random(1)
    values = sorted(int(draw.lognormvariate(14, 2)) for _ in range(10_000))
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    for ppm in (500_000, 990_000, 999_000):
        true = values[10_000 * ppm // 1_000_000 - 1]
        assert true <= histogram.quantile(ppm) <= true * 1.008
    assert histogram.quantile(1_000_000) == histogram.longest == values[-1]


def test_histogram_empty_and_clock_set_back():
    histogram = Histogram()
    assert histogram.quantile(990_000) == 0
    histogram.record(-5)
    assert (histogram.count, histogram.longest, histogram.quantile(500_000)) == (1, 0, 0)


def test_histograms_add_up():
    one, two = Histogram(), Histogram()
    for value in (10, 20):
        one.record(value)
    two.record(3_000)
    one.add(two)
    assert (one.count, one.longest, one.quantile(500_000)) == (3, 3_000, 20)

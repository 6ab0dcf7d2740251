import pytest

from pennyweight.simulators.figures import Growth, Setting, Spent, figures_of, middle_of
from pennyweight.simulators.histogram import Histogram
from pennyweight.simulators.jobs import row_of
from pennyweight.simulators.machine import Usage, median_microseconds, stolen_percent

MIB = 1 << 20


def measured(requests, *, verified=True, first_wrong=None):
    histogram = Histogram()
    for number in range(1, requests + 1):
        histogram.record(number * 1_000)
    row = row_of("case", histogram, requests=requests, seconds=2.0, cpu_seconds=0.001)
    spent = Spent(
        before=Usage(50 * MIB, 1_000, 4_000),
        after=Usage(60 * MIB, 3_000, 12_000),
        answered=100,
        growth=Growth(30_000, 100),
        syncs=[3_000_000, 1_000_000, 2_000_000],
        mean_batch=31.5,
        stolen_percent=1.5,
    )
    setting = Setting(scenario="transfers", token="secret")
    return figures_of(setting, [row], spent, verified=verified, first_wrong=first_wrong)


def test_figures_have_their_units():
    figures = measured(1_000)
    assert figures.requests_per_second == 500
    assert (figures.p50_ms, figures.p99_ms) == pytest.approx((0.5, 0.99), rel=0.01)
    assert figures.fdatasync_p50_us == 2_000
    assert (figures.rss_start_mb, figures.rss_mb) == (50, 60)
    assert figures.server_cpu_us == 20
    assert figures.client_cpu_us == 1
    assert (figures.bytes_per_transfer, figures.written_bytes_per_transfer) == (300, 80)


def test_figures_on_a_database_are_compared_with_its_commit():
    histogram = Histogram()
    histogram.record(900_000)
    row = row_of("case", histogram, requests=1, seconds=1.0, cpu_seconds=0)
    spent = Spent(
        before=Usage(MIB, 0, 0),
        after=Usage(MIB, 600, 0),
        answered=10,
        growth=Growth(10, 1),
        commits=[300_000, 200_000, 900_000],
        fronts_cpu_microseconds=400,
        machine_cpu_microseconds=2_500,
        owners=(2,),
    )
    for connections, commits in ((1, pytest.approx(3, rel=0.01)), (2, None)):
        setting = Setting(scenario="transfers", connections=connections, store="postgresql://h/x")
        figures = figures_of(setting, [row], spent, verified=True)
        assert figures.commit_p50_us == 300
        assert figures.p50_commits == commits
        assert (figures.server_cpu_us, figures.fronts_cpu_us, figures.machine_cpu_us) == (
            60,
            40,
            250,
        )
        assert (figures.owners, figures.written_bytes_per_transfer) == ([2], None)
        assert "postgresql" not in str(figures)


def test_figures_keep_the_setting_but_no_secret():
    assert measured(10).setting["connections"] == 64
    assert "secret" not in str(measured(10))


def test_middle_of_runs_is_the_median_and_wrong_if_one_is():
    runs = [measured(300), measured(100, verified=False, first_wrong=5), measured(200)]
    middle = middle_of(runs)
    assert middle.requests_per_second == 100
    assert middle.runs == [150, 50, 100]
    assert middle.variation_percent == 50
    assert (middle.verified, middle.first_wrong) == (False, 5)
    assert middle_of([measured(10)]).variation_percent is None


def test_machine_medians_and_shares():
    assert median_microseconds([]) == 0
    assert stolen_percent((100, 10), (190, 20)) == 10
    assert stolen_percent((0, 0), (0, 0)) is None

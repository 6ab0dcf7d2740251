import csv
import hashlib
import io
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from pennyweight.simulators.population import LINE_ENDS, amount_text, population_csv

ORIGINAL = Path(__file__).parents[3] / "shared" / "data" / "risk-engine-900-users.csv"


def read(text: str, line_end: str = "\r") -> list[list[str]]:
    return list(csv.reader(text.split(line_end)))


@pytest.fixture(params=["made", "original"])
def table(request: pytest.FixtureRequest) -> Iterator[list[list[str]]]:
    """The same facts hold for the original, where it is here, and for ours."""
    if request.param == "made":
        yield read(population_csv(900, 1))
    else:
        if not ORIGINAL.exists():
            pytest.skip("not here: the original data set")
        yield read(ORIGINAL.read_bytes().decode("ascii"))


def test_population_has_header_and_ids_in_order(table):
    assert table[0] == ["User_Id", "USD", "EUR", "BTC", "BCH", "ETH"]
    assert [row[0] for row in table[1:]] == [str(number) for number in range(100, 1000)]


def test_population_zeros_come_in_whole_blocks_of_ten(table):
    for column, blocks in zip(range(1, 6), (3, 2, 2, 2, 3), strict=True):
        zeros = [int(row[0]) for row in table[1:] if row[column] == "0"]
        assert len({user // 10 for user in zeros}) == blocks
        assert len(zeros) == 10 * blocks


def test_population_amounts_are_plain_and_in_range(table):
    for column, (below, scale) in enumerate(
        [(100_000, 2), (10_000, 2), (100, 6), (200, 6), (1_000, 6)], start=1
    ):
        values = [row[column] for row in table[1:]]
        for value in values:
            assert value == "0" or not value.endswith("0") or "." not in value
            assert len(value.partition(".")[2]) <= scale
            assert 0 <= Decimal(value) < below
        mean = sum(map(Decimal, values)) / len(values)
        assert below * Decimal("0.44") < mean < below * Decimal("0.53")  # uniform, some zeros


def test_population_is_the_same_for_the_same_seed():
    text = population_csv(900, 1)
    assert text == population_csv(900, 1)
    assert text != population_csv(900, 2)
    # Fixed for ever: recorded demos and documentation rely on it.
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "24889c8a5b4cbf68"


def test_population_larger_begins_like_no_other_and_has_no_last_line_end():
    text = population_csv(35, 7)
    assert not text.endswith("\r")
    assert len(read(text)) == 36


@pytest.mark.parametrize("name", LINE_ENDS)
def test_population_line_ends(name):
    end = LINE_ENDS[name]
    text = population_csv(20, 1, end)
    assert text.count(end) == 20
    assert read(text, end) == read(population_csv(20, 1))
    assert next(csv.reader(io.StringIO(text, newline="")))[0] == "User_Id"


@pytest.mark.parametrize(
    ("units", "scale", "text"),
    [(0, 2, "0"), (5, 2, "0.05"), (150, 2, "1.5"), (200, 2, "2"), (1_000_001, 6, "1.000001")],
)
def test_amount_text_is_plain(units, scale, text):
    assert amount_text(units, scale) == text

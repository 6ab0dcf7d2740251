"""`pennyweight simulate policy`: policies compared over a portfolio's history."""

import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pennyweight.assemble import open_inline
from pennyweight.config import Config
from pennyweight.engine.receipts import Receipt
from pennyweight.ledger.commands import Command
from pennyweight.products.portfolios.execute import ExecuteTransactions, Fill
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import CreatePortfolio

EXAMPLES = Path(__file__).parents[2] / "docs" / "policies"
WORDS = ("simulate", "policy")
BEGIN = datetime(2025, 1, 1, tzinfo=UTC)
STOCKS = (70, 62, 57, 59, 66)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a book in which user u-1 has a portfolio and five months of updates."""
    folder = tmp_path_factory.mktemp("policies") / "book"
    with open_inline(folder, Config()) as book:

        def do(command: Command) -> Receipt:
            outcome = book.execute(command)
            assert isinstance(outcome, Receipt), outcome
            return outcome

        do(CreatePortfolio("u-1", {"stocks": "60", "bonds": "40"}))
        do(CreatePortfolio("u-2", {"stocks": "60", "bonds": "40"}))
        for number, stocks in enumerate(STOCKS):
            moment = BEGIN + timedelta(days=31 * number)
            allocation = {"stocks": str(stocks), "bonds": str(100 - stocks)}
            as_of = int(moment.timestamp()) * 1_000_000
            run = do(Rebalance("u-1", allocation, as_of=as_of)).sequence
            if number % 2:
                do(ExecuteTransactions("u-1", run, (Fill(1), Fill(2))))
    return folder


def test_simulate_policy_compares(cli, lived, tmp_path):
    files = sorted(EXAMPLES.glob("*.toml"))
    assert [file.stem for file in files] == ["five-twentyfive", "monthly", "seed"]
    svg, json = tmp_path / "p.svg", tmp_path / "p.json"
    ran = cli(
        *WORDS, "--data", lived, "--user", "u-1", "--svg", svg, "--json", json, "--policies", *files
    )
    assert (ran.code, ran.err) == (0, "")
    for word in ("user u-1: 5 updates, 2025-01-01 to 2025-05-05", "real", "five-twentyfive"):
        assert word in ran.out
    assert "of 10 transactions that the book proposed, 4 were marked executed" in ran.out
    words = [e.text for e in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"real", "seed", "monthly", "Policies over the history of user u-1"} <= set(words)
    printed = cli(*WORDS, "--data", lived, "--user=u-1", "--json", "-", "--policies", *files)
    assert printed.out == json.read_text()
    rows = {row["name"]: row for row in printed.json["policies"]}
    assert list(rows) == ["real", "five-twentyfive", "monthly", "seed"]
    assert {row["updates"] for row in rows.values()} == {5}
    assert rows["real"]["trades"] == 4
    assert rows["seed"]["trading_updates"] == 5
    assert rows["seed"]["tracking_error_after_points"] == 0
    assert rows["five-twentyfive"]["trades"] < rows["seed"]["trades"]
    assert printed.json["cost_percent"] == "0.1"


def test_simulate_policy_beside_a_writer_and_in_part(cli, lived):
    words = ("--data", lived, "--user", "u-1", "--policies", EXAMPLES / "seed.toml", "--json", "-")
    with open_inline(lived, Config()):
        ran = cli(*WORDS, *words, "--from", "2025-02-01", "--until", "2025-04-04")
    assert ran.code == 0, ran.err
    assert ran.json["policies"][1]["updates"] == 3
    assert ran.json["began"] == "2025-02-01T00:00:00.000000Z"
    free = cli(*WORDS, *words, "--cost-percent", "0")
    assert [row["cost_points"] for row in free.json["policies"]] == [0, 0]


def test_simulate_policy_without_a_book(cli, tmp_path):
    table = tmp_path / "prices.csv"
    table.write_text("\ufeffdate,stocks,bonds\r\n2025-01-01,100,10\r\n2025-06-01,150,10.5\r\n")
    words = (*WORDS, "--history", table, "--policies", EXAMPLES / "seed.toml", "--json", "-")
    ran = cli(*words, "--target", "stocks=60", "bonds=40")
    assert ran.code == 0, ran.err
    untouched, seed = ran.json["policies"]
    assert (untouched["name"], untouched["trades"], seed["trades"]) == ("untouched", 0, 2)
    assert seed["turnover_points"] == 8.181818
    ran = cli(*words)
    assert ran.code == 2
    assert "prices.csv: without a target the first row is one, in percent" in ran.err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("bands = 5 5", "this is no TOML"),
        ("drift = 5", "unknown field `drift`"),
        ("bands = { absolut = 5 }", "unknown field `absolut` - at `$.bands`"),
        ("drift_score = 101", "drift_score is from 0 to 100"),
        ("drift_score = nan", "drift_score: 'nan' is not a plain decimal number"),
        ("drift_score = 2025-01-01", "drift_score: '2025-01-01' is not a plain decimal number"),
        ("minimum_trade = 0.00000000001", "minimum_trade: at most 10 decimals"),
        ('calendar = "hourly"', "calendar"),
        ("buy_only = true", "buy_only and cash_first need a cash_asset"),
        ("drift_score = 99999999999999999999999999", "drift_score"),
        (b"\xff", "this is not UTF-8"),
    ],
)
def test_simulate_policy_of_a_bad_file(cli, lived, tmp_path, content, problem):
    file = tmp_path / "bad.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    ran = cli(*WORDS, "--data", lived, "--user", "u-1", "--policies", file)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith(f"pennyweight: {file}: ")
    assert problem in ran.err


SEED = ("--policies", EXAMPLES / "seed.toml")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--user", "nobody", *SEED), "user 'nobody' has no portfolio in this book"),
        (("--user", "u-2", *SEED), "the portfolio of user 'u-2' has no updates"),
        (("--user", "u-1", "--from", "2026-01-01", *SEED), "has no updates within this time"),
        (("--user", "u-1", "--from", "soon", *SEED), "--from: 'soon' is neither a date"),
        (("--user", "u-1", "--until", "", *SEED), "--until: '' is neither a date"),
        (("--user", "u-1", "--cost-percent", "x", *SEED), "--cost-percent: 'x' is not a plain"),
        (("--user", "u-1", "--cost-percent", "101", *SEED), "--cost-percent is from 0 to 100"),
        (("--user", "u-1", "--target", "a=1", *SEED), "--target goes with --history"),
        (("--user", "u-1", *SEED, EXAMPLES / "seed.toml"), "is given twice"),
        (("--user", "u-1", "--policies", "none.toml"), "there is no file none.toml"),
        (("--user", "u-1", "--policies", EXAMPLES), "is a folder"),
        (("--user", "u-1", "--policies", *"abcdefgh"), "--policies takes 1 to 7 files"),
        (("--user", "u-1"), "--policies"),
        (SEED, "give --user, or --history"),
        (("--history", "none.csv", *SEED), "give --history, or --user and where the book is"),
    ],
)
def test_simulate_policy_wrong_usage(cli, lived, words, problem):
    ran = cli(*WORDS, "--data", lived, *words)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert problem in ran.err


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (("a",), "--target is like stocks=60 bonds=40, not 'a'"),
        (("a=50", "a=50"), "--target is like"),
        (("a=50",), "--target: the percentages add up to 50"),
        (("a=100",), "there is no file none.csv"),
    ],
)
def test_simulate_policy_bad_target(cli, target, problem):
    ran = cli(*WORDS, "--history", "none.csv", *SEED, "--target", *target)
    assert ran.code == 2
    assert problem in ran.err


def test_simulate_policy_without_a_book_there(cli, tmp_path):
    ran = cli(*WORDS, "--data", tmp_path / "none", "--user", "1", *SEED)
    assert (ran.code, ran.out) == (2, "")


def test_simulate_policy_helps(cli):
    ran = cli(*WORDS, "--help")
    assert ran.code == 0
    for word in ("--policies", "--from", "Example: pennyweight simulate policy", "tracking error"):
        assert word in ran.out

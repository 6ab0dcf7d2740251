"""`pennyweight.risk`: the seed's own names, on a book in memory or in a folder."""

import csv
import doctest
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pennyweight import risk
from pennyweight.engine.port import StoreInUse
from pennyweight.risk import INSUFFICIENT_BALANCE, SUFFICIENT_BALANCE, RiskEngine, RiskError
from pennyweight.simulators.population import LINE_ENDS, population_csv

HUNDRED = {"USD": 0, "EUR": "3128.39", "BTC": "81.807344", "BCH": "68.653219", "ETH": "136.152897"}
REAL = Path(__file__).parents[2] / "shared" / "data" / "risk-engine-900-users.csv"
TOTALS = {
    "USD": "44169170.55",
    "EUR": "4433755.20",
    "BTC": "45219.706544",
    "BCH": "84527.066984",
    "ETH": "434379.780697",
}


@pytest.fixture
def engine() -> Iterator[RiskEngine]:
    with RiskEngine(data={100: HUNDRED}) as engine:
        yield engine


def test_docstring_runs() -> None:
    assert doctest.testmod(risk) == (0, 8)


@pytest.mark.parametrize("quantity", [7, "7", "7.0", Decimal(7), Decimal("7E0")])
@pytest.mark.parametrize("user", [100, "100"])
def test_quantities_are_exact(engine: RiskEngine, user: Any, quantity: Any) -> None:
    answer = engine.WithdrawBalance(user, "BTC", quantity)
    assert answer is SUFFICIENT_BALANCE
    assert answer == "SUFFICIENT_BALANCE"
    assert f"{answer}" == "SUFFICIENT_BALANCE"
    assert engine.balances(100)["BTC"] == Decimal("74.807344")


def test_balance_equal_to_the_request_is_sufficient(engine: RiskEngine) -> None:
    assert engine.WithdrawBalance(100, "EUR", "3128.39") is SUFFICIENT_BALANCE
    assert engine.WithdrawBalance(100, "EUR", "0.01") is INSUFFICIENT_BALANCE
    assert engine.WithdrawBalance(100, "RUB", 1) is INSUFFICIENT_BALANCE


@pytest.mark.parametrize(
    "words",
    [(100, "BTC", 7.0), (100, "BTC", True), (100, "BTC", None), (1.0, "BTC", 7), (True, "BTC", 7),
     (100, 5, 7)],
)  # fmt: skip
def test_what_is_no_exact_number_is_a_type_error(engine: RiskEngine, words: Any) -> None:
    with pytest.raises(TypeError):
        engine.WithdrawBalance(*words)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((9, "BTC", 7), "user_not_found"),
        (("", "BTC", 7), "user_id_invalid"),
        ((100, "XYZ", 7), "token_unknown"),
        ((100, "BTC", 0), "amount_not_positive"),
        ((100, "BTC", -7), "amount_not_positive"),
        ((100, "BTC", Decimal("NaN")), "amount_invalid"),
        ((100, "BTC", Decimal("1E-19")), "amount_too_fine"),
        ((100, "BTC", "seven"), "amount_invalid"),
        ((100, "BTC", 10**38), "amount_too_large"),
    ],
)
def test_refusals_have_codes(engine: RiskEngine, words: Any, code: str) -> None:
    with pytest.raises(RiskError) as refused:
        engine.WithdrawBalance(*words)
    assert refused.value.code == code
    assert engine.balances(100)["BTC"] == Decimal("81.807344")


def test_withdrawals_have_ids(engine: RiskEngine) -> None:
    for _ in range(2):
        assert engine.WithdrawBalance(100, "BTC", 7, withdrawal_id="mine") is SUFFICIENT_BALANCE
    engine.WithdrawBalance(100, "BTC", 1)
    assert engine.withdrawals(100, "BTC") == {"mine": Decimal(7), "w2": Decimal(1)}
    engine.cancel("mine")
    assert engine.balances(100)["BTC"] == Decimal("80.807344")
    for call, code in (
        (lambda: engine.cancel("mine"), "withdrawal_cancelled"),
        (lambda: engine.cancel(5), "withdrawal_not_found"),
        (
            lambda: engine.WithdrawBalance(100, "BTC", 1, withdrawal_id="w2"),
            "withdrawal_id_invalid",
        ),
        (lambda: engine.WithdrawBalance(100, "BTC", 1, withdrawal_id=""), "withdrawal_id_invalid"),
    ):
        with pytest.raises(RiskError) as refused:
            call()
        assert refused.value.code == code


def test_settle_is_said_in_three_ways(engine: RiskEngine) -> None:
    trade = ("100", "ETH", Decimal("87.35"), "BTC", "6.9")
    first = engine.Settle(*trade, settlement_id=5)
    assert (first.result, first.sold_available) == ("unsolicited", "74.907344")
    names = ("user_id", "bought_token", "bought_quantity", "sold_token", "sold_quantity")
    message = {**dict(zip(names, trade, strict=True)), "settlement_id": 5}
    text = json.dumps(message, default=str)
    assert engine.settle(message) == engine.settle(text) == engine.settle(text.encode()) == first
    engine.WithdrawBalance(100, "BTC", 7, withdrawal_id="mine")
    assert engine.Settle(*trade, withdrawal_id="mine").released == "0.1"


@pytest.mark.parametrize(
    ("message", "code"),
    [("{", "message_malformed"), ("\ud800", "message_malformed"), ("{}", "message_invalid")],
)
def test_message_that_is_none(engine: RiskEngine, message: str, code: str) -> None:
    with pytest.raises(RiskError) as refused:
        engine.settle(message)
    assert refused.value.code == code


@pytest.mark.parametrize("sold", [6.9, True])
def test_message_with_a_float(engine: RiskEngine, sold: Any) -> None:
    with pytest.raises(TypeError, match="sold_quantity"):
        engine.Settle(100, "ETH", 1, "BTC", sold)


def test_data_is_rows_too() -> None:
    rows = csv.DictReader(["User_Id,BTC", "1,5", "2,0.5"])
    with RiskEngine(data=rows) as engine:
        assert engine.balances(2) == {"BTC": Decimal("0.5")}
    with pytest.raises(RiskError, match="no User_Id"):
        RiskEngine(data=[{"BTC": 5}])
    with pytest.raises(RiskError, match="row 1, user 7: 'x' is not"):
        RiskEngine(data={7: {"BTC": "x"}})
    with pytest.raises(TypeError):
        RiskEngine(data={7: {"BTC": 0.5}})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (5, "data is a int"),
        ([["User_Id", "BTC"], [1, 5]], "a row is a list"),
        ({1: [("BTC", 5)]}, "row 1, user 1: a list"),
        ({1: {5: 5}}, "row 1, user 1"),
        ([{1: 2}], "no User_Id"),
        ({1: {"BTC": 5}, "1": {"BTC": 5}}, "user '1' is in the data twice"),
        ([{"User_Id": 1, "BTC": 1}, {"User_Id": 1, "BTC": 1}], "user '1' is in the data twice"),
        ("there/is/no.csv", "no.csv: No such file"),
        (Path(__file__).parent, "a directory"),
    ],
)
def test_data_that_is_none(data: Any, said: str) -> None:
    with pytest.raises(RiskError, match=said) as raised:
        RiskEngine(data=data)
    assert raised.value.code == "data_invalid"


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"XYZ": 1}, "asset_unknown"),
        ({"BTC": -1}, "amount_not_positive"),
        ({"BTC": "1e-30"}, "amount_too_fine"),
    ],
)
def test_one_wrong_row_opens_nobody(tmp_path: Path, row: dict[str, Any], code: str) -> None:
    data = {user: {"BTC": 1} for user in range(600)}
    with pytest.raises(RiskError, match="row 601, user 600") as raised:
        RiskEngine(tmp_path / "book", {**data, 600: row})
    assert raised.value.code == code
    with RiskEngine(tmp_path / "book") as engine, pytest.raises(RiskError, match="no user"):
        engine.balances(0)


def test_more_users_leave_those_who_are_there_alone(tmp_path: Path) -> None:
    one = {"BTC": "5.0", "USD": 0}
    with RiskEngine(tmp_path / "book", {1: one}) as engine:
        engine.Settle(1, "USD", 100, "BTC", 2)
    again = [{"User_Id": "2", "BTC": 7}, {"USD": "0.00", "BTC": 5, "user_id": 1}]
    with RiskEngine(tmp_path / "book", again) as engine:
        assert engine.balances(1) == {"BTC": Decimal(3), "USD": Decimal(100)}
        assert engine.balances(2) == {"BTC": Decimal(7)}
    changed = {3: {"BTC": 1}, 1: {**one, "USD": 1}}
    with pytest.raises(RiskError, match="user '1' was opened with other balances") as raised:
        RiskEngine(tmp_path / "book", changed)
    assert (raised.value.code, raised.value.figures) == ("data_changed", {"user_id": "1"})
    with RiskEngine(tmp_path / "book") as engine, pytest.raises(RiskError, match="no user"):
        engine.balances(3)


@pytest.mark.parametrize("line_end", LINE_ENDS.values(), ids=repr)
def test_data_is_a_file(tmp_path: Path, line_end: str) -> None:
    file = tmp_path / "users.csv"
    file.write_bytes(population_csv(20, 1, line_end).encode())
    with RiskEngine(data=file) as engine:
        assert set(engine.balances(119)) == {"USD", "EUR", "BTC", "BCH", "ETH"}
    file.write_text("User_Id,BTC\n1,x\n")
    with pytest.raises(RiskError, match="line 2, column BTC"):
        RiskEngine(data=str(file))


def test_book_in_a_folder_stays(tmp_path: Path) -> None:
    data = {100: HUNDRED}
    with RiskEngine(tmp_path / "book", data) as engine:
        engine.WithdrawBalance(100, "BTC", 7)
        with pytest.raises(StoreInUse):
            RiskEngine(tmp_path / "book")
    with RiskEngine(tmp_path / "book", data) as engine:
        assert engine.balances(100)["BTC"] == Decimal("74.807344")
        assert engine.withdrawals(100, "BTC") == {"w1": Decimal(7)}


@pytest.mark.parametrize("is_kept", [True, False])
def test_engine_that_was_closed(tmp_path: Path, is_kept: bool) -> None:
    engine = RiskEngine(tmp_path / "book" if is_kept else None, {100: HUNDRED})
    engine.close()
    engine.close()
    calls = (
        lambda: engine.WithdrawBalance(100, "BTC", 1),
        lambda: engine.Settle(100, "ETH", 1, "BTC", 1),
        lambda: engine.cancel("w1"),
        lambda: engine.balances(100),
        lambda: engine.withdrawals(100, "BTC"),
        lambda: engine.users_in_memory,
    )
    for call in calls:
        with pytest.raises(RiskError, match="was closed") as raised:
            call()
        assert raised.value.code == "engine_closed"


def test_no_more_users_in_memory_than_asked_for() -> None:
    with RiskEngine(data={user: {"BTC": 5} for user in range(200)}, users_in_memory=130) as engine:
        for user in range(200):
            assert engine.WithdrawBalance(user, "BTC", 1) is SUFFICIENT_BALANCE
            assert engine.users_in_memory <= 130
    with pytest.raises(ValueError, match="users_max"):
        RiskEngine(users_in_memory=100)


@pytest.mark.skipif(not REAL.exists(), reason="not here: the data set beside the checkout")
def test_real_data_set_plays_the_seed() -> None:
    with RiskEngine(data=REAL) as engine:
        assert engine.WithdrawBalance(100, "USD", 250) is INSUFFICIENT_BALANCE
        assert engine.WithdrawBalance(100, "BTC", 7) is SUFFICIENT_BALANCE
        engine.Settle("100", "ETH", "87.35", "BTC", "6.9")
        after = engine.balances(100)
        assert after == {**after, "BTC": Decimal("74.907344"), "ETH": Decimal("223.502897")}
        assert engine.users_in_memory <= 300
        totals = {token: Decimal(0) for token in TOTALS}
        for user in range(100, 1_000):
            for token, amount in engine.balances(user).items():
                totals[token] += amount
    totals["BTC"] += Decimal("6.9")
    totals["ETH"] -= Decimal("87.35")
    assert totals == {token: Decimal(total) for token, total in TOTALS.items()}

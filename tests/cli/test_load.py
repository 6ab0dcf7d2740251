"""`pennyweight load`."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pennyweight.assemble import open_inline, open_reader
from pennyweight.config import Config
from pennyweight.products.general import CloseAccount, LoadBalances

Cli = Callable[..., Any]
REAL = Path(__file__).parents[3] / "shared" / "data" / "risk-engine-900-users.csv"


def test_load_opens_accounts_with_their_balances(book: Path) -> None:
    store = open_reader(book)
    posted = {account.id: account.posted for account in store.accounts(0, 100)}
    store.close()
    assert posted == {
        "user:100:USD": 0,
        "user:100:BTC": 15 * 10**17,
        "user:101:USD": 2_025 * 10**16,
        "user:101:BTC": 0,
        "user:102:USD": 312_839 * 10**16,
        "user:102:BTC": 81_807_344 * 10**12,
        "world:USD": -314_864 * 10**16,
        "world:BTC": -83_307_344 * 10**12,
    }


def test_load_again_changes_nothing(book: Path, users: Path, cli: Cli) -> None:
    before = cli("verify", "--data", book, "--json").json
    ran = cli("load", users, "--data", book, "--json")
    assert ran.code == 0
    assert (ran.json["rows"], ran.json["loaded"], ran.json["repeated"]) == (3, 0, 3)
    assert ran.json["totals"] == {"USD": "3148.64", "BTC": "83.307344"}
    assert cli("verify", "--data", book, "--json").json["sequence"] == before["sequence"]


def test_load_of_the_same_written_otherwise_changes_nothing(
    book: Path, tmp_path: Path, cli: Cli
) -> None:
    before = cli("verify", "--data", book, "--json").json
    file = tmp_path / "other.csv"
    file.write_text("User_Id,BTC,USD\n102,81.8073440,3128.39\n101,0.00,20.250\n100,15e-1,0\n")
    ran = cli("load", file, "--data", book)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("0 users loaded, 3 were loaded before\n")
    assert cli("verify", "--data", book, "--json").json["sequence"] == before["sequence"]


def test_load_of_more_says_that_it_was_added(book: Path, tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "more.csv"
    file.write_text("User_Id,USD,BTC\n100,1,1.5\n101,20.25,0\n102,0,0\n103,7,0\n")
    ran = cli("load", file, "--data", book)
    assert ran.code == 0
    assert ran.err == (
        "pennyweight: 2 users had balances already: the file's amounts were added to them\n"
    )
    again = cli("load", file, "--data", book, "--json")
    assert (again.json["repeated"], again.json["added"], again.err) == (4, 0, "")


def test_load_knows_the_keys_of_versions_before(tmp_path: Path, cli: Cli) -> None:
    """They keyed rows by the bytes of the file, and may have been killed in the middle."""
    file = tmp_path / "users.csv"
    file.write_text("User_Id,USD,BTC\n1,5,6\n2,7,8\n3,9,10\n")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    with open_inline(tmp_path / "book", Config()) as opened:
        for number, amounts in ((1, ("5", "6")), (2, ("7", "8"))):
            balances = tuple(zip(("USD", "BTC"), amounts, strict=True))
            opened.execute(LoadBalances(str(number), balances), key=f"load:{digest}:{number}")
    ran = cli("load", file, "--data", tmp_path / "book")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("1 users loaded, 2 were loaded before\n")


def test_load_of_a_wrong_file_loads_nothing(tmp_path: Path, cli: Cli) -> None:
    file = tmp_path / "wrong.csv"
    file.write_text("User_Id,USD\n1,5\n2,five\n")
    ran = cli("load", file, "--data", tmp_path / "book")
    assert ran.code == 1
    assert ran.err == (
        f"pennyweight: {file}: line 3, column USD: 'five' is not a plain decimal number; "
        "nothing was loaded\n"
    )
    store = open_reader(tmp_path / "book")
    assert store.accounts(0, 10) == []
    store.close()
    ran = cli("load", file, "--data", tmp_path / "book", "--json")
    assert ran.json["problems"] == [
        {"line": 3, "column": "USD", "reason": "'five' is not a plain decimal number"}
    ]


def test_load_takes_assets_of_the_configuration(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "users.csv"
    file.write_text("User_Id,JPY\n1,500\n")
    assert cli("load", file, "--data", tmp_path / "book").code == 1
    monkeypatch.setenv("PENNYWEIGHT_ASSETS", '[{"name": "JPY", "scale": 0, "currency_id": 10}]')
    assert cli("load", file, "--data", tmp_path / "book").code == 0
    monkeypatch.setenv("PENNYWEIGHT_ASSETS", '[{"name": "JPY", "scale": 2, "currency_id": 10}]')
    ran = cli("load", file, "--data", tmp_path / "book")
    assert ran.code == 1
    assert "JPY is registered with scale 0" in ran.err


def test_load_says_which_row_the_book_refuses(book: Path, tmp_path: Path, cli: Cli) -> None:
    with open_inline(book, Config()) as opened:
        opened.execute(CloseAccount("user:100:USD"))
    file = tmp_path / "more.csv"
    file.write_text("User_Id,USD\n100,5\n200,5\n")
    ran = cli("load", file, "--data", book)
    assert ran.code == 1
    assert "row 1, user 100: account 'user:100:USD' is closed" in ran.err
    assert ran.out.startswith("1 users loaded")


def test_load_of_a_missing_file_is_wrong_usage(tmp_path: Path, cli: Cli) -> None:
    ran = cli("load", tmp_path / "none.csv", "--data", tmp_path / "book")
    assert (ran.code, ran.err) == (2, f"pennyweight: there is no file {tmp_path}/none.csv\n")


def test_load_into_a_book_in_use_is_refused(book: Path, users: Path, cli: Cli) -> None:
    with open_inline(book, Config()):
        ran = cli("load", users, "--data", book)
    assert ran.code == 2
    assert ran.err.startswith("pennyweight: in use by pid ")


def test_load_whose_output_nobody_reads(users: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pennyweight", "load", users, "--data", tmp_path / "book"]
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(words, check=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, b"")
    store = open_reader(tmp_path / "book")
    assert len(store.accounts(0, 100)) == 8
    store.close()


@pytest.mark.skipif(not REAL.exists(), reason="not here: the data set beside the checkout")
def test_load_of_the_real_data_set_gives_its_totals(tmp_path: Path, cli: Cli) -> None:
    ran = cli("load", REAL, "--data", tmp_path / "book", "--json")
    assert ran.json["loaded"] == 900
    totals = {
        "USD": "44169170.55",
        "EUR": "4433755.2",
        "BTC": "45219.706544",
        "BCH": "84527.066984",
        "ETH": "434379.780697",
    }
    assert ran.json["totals"] == totals
    store = open_reader(tmp_path / "book")
    zeros = sum(1 for account in store.accounts(0, 10_000) if account.posted == 0)
    store.close()
    assert zeros == 120
    assert cli("verify", "--data", tmp_path / "book", "--json").json["ok"] is True

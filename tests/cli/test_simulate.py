"""`pennyweight simulate users`, and that `load` takes what it writes."""

import pytest


def test_simulate_users_writes_a_file_that_load_takes(cli, tmp_path):
    file = tmp_path / "made.csv"
    ran = cli("simulate", "users", "--count", 40, "--seed", 3, "--output", file)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert file.read_bytes().count(b"\r") == 40
    assert b"\n" not in file.read_bytes()
    loaded = cli("load", file, "--data", tmp_path / "book", "--json")
    assert loaded.json["loaded"] == 40
    assert set(loaded.json["totals"]) == {"USD", "EUR", "BTC", "BCH", "ETH"}


def test_simulate_users_to_stdout_is_the_same_for_the_same_seed(cli):
    words = ("simulate", "users", "--count", 12, "--seed", 7, "--line-end", "lf")
    ran = cli(*words)
    assert ran.out == cli(*words).out != cli(*words[:-3], 8, *words[-2:]).out
    assert ran.out.startswith("User_Id,USD,EUR,BTC,BCH,ETH\n100,")
    assert ran.out.count("\n") == 12


@pytest.mark.parametrize("count", [0, -1, 10**8])
def test_simulate_users_count_out_of_range(cli, count):
    ran = cli("simulate", "users", f"--count={count}")
    assert ran.code == 2
    assert "--count" in ran.err

"""`pennyweight limits` and `pennyweight modes`: on a book, and on a running server."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pennyweight.assemble import open_inline
from pennyweight.config import Config
from pennyweight.delivery import keys
from served import START, Served

Cli = Callable[..., Any]
BTC = {"token": "BTC", "per_withdrawal": "10", "per_day": "25.5"}


@pytest.fixture
def served() -> Iterator[Served]:
    with Served() as served:
        served.fund("100")
        yield served


@pytest.fixture(params=["book", "server"])
def place(request: pytest.FixtureRequest, book: Path, served: Served) -> tuple[str, object]:
    """Where the verbs find what they change."""
    return ("--data", book) if request.param == "book" else ("--address", served.server.address)


def test_limits_are_set_shown_and_lifted(place: tuple[str, object], cli: Cli) -> None:
    assert cli("limits", "show", *place).out == "there are no limits\n"
    words = ("set", "BTC", "--per-withdrawal", "10.0", "--per-day", "25.5")
    ran = cli("limits", *words, *place)
    assert (ran.code, ran.out) == (0, "BTC: 10 a withdrawal, 25.5 in 24 hours\n")
    assert cli("limits", "show", *place, "--json").json == {"user_id": None, "limits": [BTC]}
    ran = cli("limits", "set", "USD", "--user", "100", "--per-day", "0", *place, "--json")
    assert ran.json == {"user_id": "100", "token": "USD", "per_withdrawal": None, "per_day": "0"}
    ran = cli("limits", "set", "BTC", "--user", "100", "--per-withdrawal", "7", *place)
    assert ran.out == "BTC: 7 a withdrawal, in 24 hours as for all\n"
    ran = cli("limits", "show", "--user", "100", *place)
    assert ran.out == (
        "BTC: 7 a withdrawal, as for all: 25.5 in 24 hours\n"
        "USD: no limit a withdrawal, 0 in 24 hours\n"
    )
    ran = cli("limits", "show", "--user", "100", *place, "--json")
    usd = {"token": "USD", "per_withdrawal": None, "per_day": "0"}
    assert ran.json == {
        "user_id": "100",
        "limits": [{"token": "BTC", "per_withdrawal": "7", "per_day": None}, usd],
        "effective": [{"token": "BTC", "per_withdrawal": "7", "per_day": "25.5"}, usd],
    }
    cli("limits", "set", "BTC", "--per-withdrawal", "none", *place)
    assert cli("limits", "show", *place).out == "there are no limits\n"


def test_modes_are_set_and_shown(place: tuple[str, object], cli: Cli) -> None:
    assert cli("modes", "show", *place).out == "everything: active\n"
    assert cli("modes", "set", "halted", "--token", "BTC", *place).out == "BTC: halted\n"
    assert cli("modes", "set", "reducing", *place).out == "everything: reducing\n"
    assert cli("modes", "show", *place).out == "everything: reducing\nBTC: halted\n"
    shown = {"mode": "reducing", "tokens": {"BTC": "halted"}}
    assert cli("modes", "show", *place, "--json").json == shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("limits", "set", "XYZ", "--per-day", "1"), "'XYZ' is not a token of this book"),
        (("limits", "set", "BTC", "--per-day", "1", "--user", "9"), "there is no user '9'"),
        (("limits", "show", "--user", "9"), "user_not_found: there is no user '9'"),
        (("limits", "show", "--user", "\r"), "user_id_invalid: "),
        (("modes", "set", "halted", "--token", "XYZ"), "'XYZ' is not a token of this book"),
    ],
)
def test_what_the_book_refuses(
    place: tuple[str, object], cli: Cli, words: tuple[str, ...], said: str
) -> None:
    ran = cli(*words, *place)
    assert ran.code == 1
    assert said in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("limits", "show"), "give --data FOLDER, --store URL, or --address of a running"),
        (("limits", "set", "BTC"), "give --per-withdrawal, --per-day or both"),
        (("limits", "set", "BTC", "--per-day", "x"), "'x' is not a plain decimal number"),
        (("modes", "set", "shut"), "shut"),
        (("modes", "show", "--address", "localhost"), "not http://HOST:PORT"),
        (("modes", "show", "--data", "nowhere"), "nowhere"),
        (("modes", "show", "--data", "a", "--address", "http://b"), "not both"),
        (("limits", "set", "BTC", "--per-day", "1", "--data", "a", "--address", "http://b"), "not"),
    ],
)
def test_wrong_usage(cli: Cli, words: tuple[str, ...], said: str) -> None:
    ran = cli(*words)
    assert ran.code == 2
    assert said in ran.err


@pytest.mark.parametrize(
    "words", [("modes", "set", "halted"), ("limits", "set", "BTC", "--per-day", "1")]
)
def test_no_book_is_begun(tmp_path: Path, cli: Cli, words: tuple[str, ...]) -> None:
    folder = tmp_path / "boook"
    ran = cli(*words, "--data", folder)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"pennyweight: there is no book at {folder}")
    assert not folder.exists()


def test_address_goes_before_the_folder_of_the_environment(
    served: Served, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENNYWEIGHT_DATA", "nowhere")
    assert cli("modes", "show", "--address", served.server.address).code == 0


def test_book_in_use_names_the_way_out(book: Path, cli: Cli) -> None:
    with open_inline(book, Config()):
        ran = cli("modes", "set", "halted", "--data", book)
        assert cli("modes", "show", "--data", book).out == "everything: active\n"
    assert ran.code == 2
    assert ran.err.startswith("pennyweight: in use by pid ")
    assert ran.err.endswith("; give --address\n")


def test_server_that_does_not_answer(cli: Cli) -> None:
    ran = cli("modes", "show", "--address", "http://127.0.0.1:9")
    assert ran.code == 1
    assert "does not answer" in ran.err


def test_key_is_sent(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    token = keys.create(tmp_path, ("withdrawals:read",), now=START, note="")
    with Served(folder=tmp_path) as served:
        place = ("--address", served.server.address)
        assert "key_required" in cli("modes", "show", *place).err
        assert cli("modes", "show", *place, "--key", token).code == 0
        monkeypatch.setenv("PENNYWEIGHT_KEY", token)
        assert cli("modes", "show", *place).code == 0
        assert "scope_missing" in cli("modes", "set", "halted", *place).err
    assert cli("config").code == 0

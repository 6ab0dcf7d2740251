"""`pennyweight keys`."""

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pennyweight.delivery import keys

Cli = Callable[..., Any]


def test_a_key_is_shown_once_and_works_until_it_is_revoked(tmp_path: Path, cli: Cli) -> None:
    ran = cli(
        "keys", "create", "wallet:write", "ledger:read", "--data", tmp_path, "--note", "lobby"
    )
    assert ran.code == 0
    token = ran.out.strip()
    key_id, _, secret = token.partition(".")
    file = tmp_path / keys.FILE_NAME
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    (shown,) = cli("keys", "list", "--data", tmp_path, "--json").json
    assert (shown["id"], shown["scopes"], shown["note"]) == (
        key_id,
        ["wallet:write", "ledger:read"],
        "lobby",
    )
    assert "sha256" not in shown
    ran = cli("keys", "list", "--data", tmp_path)
    assert ran.out.startswith(f"{key_id}  ")
    assert ran.out.endswith("valid  wallet:write ledger:read  lobby\n")

    known = {key.id: key for key in keys.load(tmp_path)}
    assert keys.find(known, token) is not None
    assert cli("keys", "revoke", key_id, "--data", tmp_path).out == f"{key_id} is revoked\n"
    known = {key.id: key for key in keys.load(tmp_path)}
    assert keys.find(known, token) is None
    assert "revoked" in cli("keys", "list", "--data", tmp_path).out
    ran = cli("keys", "revoke", key_id, "--data", tmp_path)
    assert (ran.code, ran.err) == (1, f"pennyweight: there is no valid key {key_id}\n")


def test_a_key_as_json(tmp_path: Path, cli: Cli) -> None:
    shown = cli("keys", "create", "*", "--data", tmp_path, "--json").json
    assert shown["key"].startswith(f"{shown['id']}.")
    assert shown["scopes"] == ["*"]


@pytest.mark.parametrize("scopes", [(), ("wallet",), ("wallet:admin",), ("*", "x")])
def test_a_wrong_scope_is_wrong_usage(tmp_path: Path, cli: Cli, scopes: tuple[str, ...]) -> None:
    ran = cli("keys", "create", *scopes, "--data", tmp_path)
    assert ran.code == 2
    assert "is not like wallet:write, ledger:read or *" in ran.err
    assert keys.load(tmp_path) == []


@pytest.mark.parametrize("scope", ["loan:write", "nope:read", "Wallet:write"])
def test_a_face_that_is_not_there_is_wrong_usage(tmp_path: Path, cli: Cli, scope: str) -> None:
    ran = cli("keys", "create", "wallet:read", scope, "--data", tmp_path)
    assert ran.code == 2
    assert f"there is no face {scope.partition(':')[0]!r}; faces are ledger, " in ran.err
    assert keys.load(tmp_path) == []


def test_a_key_for_the_loan_desk(tmp_path: Path, cli: Cli) -> None:
    cli("keys", "create", "loan-desk:write", "--data", tmp_path)
    [key] = keys.load(tmp_path)
    assert key.allows("loan-desk", is_write=True)
    assert not key.allows("loans", is_write=False)


def test_no_keys(tmp_path: Path, cli: Cli) -> None:
    assert cli("keys", "list", "--data", tmp_path).out.startswith("there are no keys")
    assert cli("keys", "list", "--data", tmp_path, "--json").json == []


def test_a_broken_key_file_is_named(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / keys.FILE_NAME).write_text("{")
    for words in (("list",), ("revoke", "x"), ("create", "*")):
        ran = cli("keys", *words, "--data", tmp_path)
        assert ran.code == 1
        assert f"{tmp_path / keys.FILE_NAME} cannot be read" in ran.err

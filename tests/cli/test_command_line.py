"""The command line as a whole: help, usage errors, and a server as another process sees it."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pennyweight.delivery.cli import _VERBS
from pennyweight.engine.port import Head, StoreFailed

Cli = Callable[..., Any]
PENNYWEIGHT = (sys.executable, "-m", "pennyweight")
OWN_VERBS = (
    "serve",
    "load",
    "verify",
    "export",
    "import",
    "copy",
    "migrate",
    "recover",
    "reindex",
    "config",
    "version",
)


SIMULATIONS = ("clients", "policy", "settlements", "updates", "users", "venues")


def test_help_lists_every_verb(cli: Cli) -> None:
    ran = cli("--help")
    assert ran.code == 0
    for name, _, line in _VERBS:
        assert name in ran.out
        assert line.split()[0] in ran.out
    assert cli().out == ran.out


@pytest.mark.parametrize(
    "words",
    [
        *((verb,) for verb in OWN_VERBS),
        *(("keys", verb) for verb in ("create", "list", "revoke")),
        *((name, verb) for name in ("limits", "modes") for verb in ("show", "set")),
        *(("simulate", verb) for verb in SIMULATIONS),
    ],
)
def test_every_verb_has_help_with_an_example(cli: Cli, words: tuple[str, ...]) -> None:
    ran = cli(*words, "--help")
    assert ran.code == 0
    assert f"Example: pennyweight {' '.join(words)}" in " ".join(ran.out.split())


def test_help_needs_no_engine() -> None:
    code = (
        "import sys; from pennyweight.__main__ import _Roof; from pennyweight.delivery.cli import run;"
        "run(_Roof(), ['--help']);"
        "print([name for name in sys.modules if name.split('.')[0] in"
        " {'apsw', 'falcon', 'uvicorn', 'structlog', 'msgspec'}])"
    )
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["shop"], 'Unknown command "shop"'),
        (["verify"], "--data"),
        (["load", "--data", "x"], "FILE"),
        (["verify", "--data", "x", "--loud"], "--loud"),
        (["serve", "--data", "x", "--port", "many"], "many"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(cli: Cli, words: list[str], problem: str) -> None:
    ran = cli(*words)
    assert ran.code == 2
    assert ran.err.startswith("pennyweight: ")
    assert ran.err.count("\n") == 1
    assert problem in ran.err


def test_version(cli: Cli) -> None:
    assert cli("version").out.startswith("pennyweight ")
    assert set(cli("version", "--json").json) == {"pennyweight", "python"}
    assert cli("--version").out.strip() == cli("version", "--json").json["pennyweight"]


def test_data_may_come_from_the_environment(
    book: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENNYWEIGHT_DATA", str(book))
    assert cli("verify", "--json").json["ok"] is True


def test_a_failing_disk_is_told_in_one_line(
    book: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> Head:
        raise StoreFailed("disk I/O error")

    monkeypatch.setattr("pennyweight.stores.sqlite.SQLiteStore.head", fail)
    ran = cli("verify", "--data", book)
    assert (ran.code, ran.err) == (1, "pennyweight: disk I/O error\n")


def test_a_fault_of_ours_is_not_hidden(
    book: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> Head:
        raise RuntimeError("a bug")

    monkeypatch.setattr("pennyweight.stores.sqlite.SQLiteStore.head", fail)
    with pytest.raises(RuntimeError):
        cli("verify", "--data", book)


# ── serve ─────────────────────────────────────────────────────────────────────────


@pytest.fixture
def served(book: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server of that book, and its address."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PENNYWEIGHT_")}
    process = subprocess.Popen(
        [*PENNYWEIGHT, "serve", "--data", str(book), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        word, _, address = process.stdout.readline().strip().partition(" ")
        assert word == "ready"
        yield process, address
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_serve_answers_keeps_others_out_and_ends_with_0(
    served: tuple[subprocess.Popen[str], str], book: Path, users: Path, cli: Cli
) -> None:
    process, address = served
    with urllib.request.urlopen(f"{address}/v1/accounts/user:101:USD", timeout=10) as answer:
        assert json.load(answer)["posted"] == "20.25"
    in_use = f"pennyweight: in use by pid {process.pid}\n"
    assert cli("serve", "--data", book, "--port", "0")[0::2] == (2, in_use)
    assert cli("load", users, "--data", book)[0::2] == (2, in_use)
    assert cli("verify", "--data", book, "--json").json["ok"] is True
    port = address.rpartition(":")[2]
    ran = cli("serve", "--data", book.parent / "other", "--port", port)
    assert ran.code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in ran.err
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "", "")


def test_serve_elsewhere_needs_keys(book: Path, cli: Cli) -> None:
    ran = cli("serve", "--data", book, "--host", "0.0.0.0", "--port", "0")
    assert ran.code == 2
    assert "which needs API keys" in ran.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--wallet-public-key", "/none.pem"), "wallet.public_key"),
        (("--wallet-dialect", "klingon"), "wallet: Invalid enum value 'klingon'"),
        (("--payments-profile", "tail"), "payments.profile (command line)"),
        (("--open-faces", "shop"), "auth.open_faces names 'shop'"),
        (("--kafka", "kafka"), "kafka.broker is 'kafka', not HOST:PORT"),
        (("--kafka", "http://kafka:9092"), "kafka.broker is 'http://kafka:9092', not HOST:PORT"),
        (("--users-in-memory", "129"), "cache.users_max is 129, below 130"),
        (
            ("--kafka", "127.0.0.1:1", "--users-in-memory", "145"),
            "cache.users_max is 145, below 146: with Kafka, AWS or search 16 of them are the relays'",
        ),
    ],
)
def test_serve_with_wrong_settings_is_wrong_usage(
    book: Path, cli: Cli, words: tuple[str, ...], problem: str
) -> None:
    ran = cli("serve", "--data", book, "--port", "0", *words)
    assert ran.code == 2
    assert problem in ran.err


def test_serve_with_kafka_needs_its_extra(
    book: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    ran = cli("serve", "--data", book, "--port", "0", "--kafka", "127.0.0.1:1")
    problem = (
        "pennyweight: kafka.broker is set, but Kafka needs the extra `kafka`: "
        "pip install 'pennyweight[kafka]'\n"
    )
    assert (ran.code, ran.err) == (2, problem)

"""The configuration: file, environment, command line, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pennyweight.config import NAMES, Config, ConfigError, load, variable_of

Cli = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pennyweight.toml"
    path.write_text(
        """
        [cache]
        users_max = 300

        [auth]
        open_faces = ["loans", "payments"]

        [[assets]]
        name = "JPY"
        scale = 0
        currency_id = 10
        """
    )
    return path


def test_the_defaults_are_those_of_the_contract() -> None:
    config = load(environment={}).config
    assert config == Config()
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8080)
    assert config.cache.users_max == 10_000
    assert config.payments.profile == "seed"


def test_a_file_is_read(file: Path) -> None:
    loaded = load(file, environment={})
    assert loaded.config.cache.users_max == 300
    assert loaded.config.auth.open_faces == ("loans", "payments")
    assert loaded.config.assets[0].name == "JPY"
    assert loaded.origins["cache.users_max"] == f"file {file}"
    assert loaded.origins["assets"] == f"file {file}"
    assert loaded.origins["server.port"] == "default"


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(file: Path) -> None:
    environment = {
        "PENNYWEIGHT_CACHE_USERS_MAX": "500",
        "PENNYWEIGHT_SERVER_PORT": "9000",
        "PENNYWEIGHT_CONFIG": "elsewhere",
        "PENNYWEIGHT_TEST_DATA": "of the tests",
        "PATH": "/bin",
    }
    loaded = load(file, environment=environment, overrides={"server.port": 0})
    assert loaded.config.cache.users_max == 500
    assert loaded.config.server.port == 0
    assert loaded.origins["cache.users_max"] == "PENNYWEIGHT_CACHE_USERS_MAX"
    assert loaded.origins["server.port"] == "command line"


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("PENNYWEIGHT_AUTH_OPEN_FACES", "loans, wallet", "auth.open_faces", ["loans", "wallet"]),
        ("PENNYWEIGHT_AUTH_OPEN_FACES", '["loans"]', "auth.open_faces", ["loans"]),
        ("PENNYWEIGHT_AUTH_OPEN_FACES", "", "auth.open_faces", []),
        ("PENNYWEIGHT_WALLET_ONE_WIN_PER_BET", "True", "wallet.one_win_per_bet", True),
        ("PENNYWEIGHT_PAYMENTS_PROFILE", "head", "payments.profile", "head"),
        (
            "PENNYWEIGHT_ASSETS",
            '[{"name": "JPY", "scale": 0, "currency_id": 10}]',
            "assets",
            [{"name": "JPY", "scale": 0, "currency_id": 10}],
        ),
    ],
)
def test_a_variable_is_read_as_its_setting(variable: str, text: str, name: str, value: Any) -> None:
    values = load(environment={variable: text}).values()
    got = values[name]
    assert (list(got) if isinstance(got, tuple) else got) == value


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"PENNYWEIGHT_CACHE_MAX": "3"}, "unknown variable PENNYWEIGHT_CACHE_MAX; known are"),
        ({"PENNYWEIGHT_SERVER_PORT": "x"}, "PENNYWEIGHT_SERVER_PORT is 'x', not a whole number"),
        ({"PENNYWEIGHT_SERVER_PORT": "70000"}, "server.port is 70000"),
        ({"PENNYWEIGHT_CACHE_USERS_MAX": "129"}, "cache.users_max is 129, below 130: one command"),
        ({"KAFKA_BROKER": "kafka"}, "kafka.broker is 'kafka', not HOST:PORT"),
        ({"KAFKA_BROKER": "a:1,b"}, "kafka.broker is 'a:1,b', not HOST:PORT"),
        ({"PENNYWEIGHT_SETTLEMENTS_TOPIC": "a b"}, "kafka.settlements_topic is 'a b'"),
        ({"PENNYWEIGHT_KAFKA_EVENTS_TOPIC": "risk-engine-settlements"}, "are the same"),
        ({"PENNYWEIGHT_KAFKA_OPTIONS": "acks"}, "kafka.options has 'acks', which is not"),
        ({"PENNYWEIGHT_ENGINE_BATCH_MAX": "0"}, "are at least 1"),
        ({"PENNYWEIGHT_WALLET_IS_DISABLED": "1"}, "is '1', not true or false"),
        ({"PENNYWEIGHT_AUTH_OPEN_FACES": "shop"}, "auth.open_faces names 'shop'; faces are"),
        ({"PENNYWEIGHT_AUTH_OPEN_FACES": "[1"}, "not a JSON list"),
        ({"PENNYWEIGHT_PAYMENTS_PROFILE": "tail"}, "payments.profile (PENNYWEIGHT_PAYMENTS"),
        ({"PENNYWEIGHT_ASSETS": '[{"name": "X"}]'}, "assets[0] (PENNYWEIGHT_ASSETS): "),
        ({"PENNYWEIGHT_SERVER_WORKERS": "0"}, "server.workers is 0, not 1 to 64"),
        ({"PENNYWEIGHT_SERVER_WORKERS": "65"}, "server.workers is 65, not 1 to 64"),
        ({"PENNYWEIGHT_CLUSTER_LEASE_SECONDS": "0.4"}, "cluster.lease_seconds is 0.4, not 0.5 to"),
        ({"PENNYWEIGHT_CLUSTER_LEASE_SECONDS": "61"}, "cluster.lease_seconds is 61, not 0.5 to 60"),
        ({"PENNYWEIGHT_CLUSTER_LEASE_SECONDS": "nan"}, "cluster.lease_seconds is nan, not 0.5"),
        ({"PENNYWEIGHT_CLUSTER_HOLD_SECONDS": "-1"}, "cluster.hold_seconds is -1, not 0 to 60"),
        ({"PENNYWEIGHT_CLUSTER_HOLD_SECONDS": "ten"}, "is 'ten', not a number"),
        ({"PENNYWEIGHT_CLUSTER_LISTEN": "here"}, "cluster.listen is 'here', not HOST:PORT"),
        ({"PENNYWEIGHT_CLUSTER_LISTEN": ""}, "cluster.listen is '', not HOST:PORT"),
        ({"PENNYWEIGHT_CLUSTER_ADVERTISE": "a:b"}, "cluster.advertise is 'a:b', not HOST:PORT"),
        ({"PENNYWEIGHT_STORE_BOOK": "Main"}, "store.book is 'Main'; a book is named like main"),
        ({"DATABASE_URL": "mysql://h/x"}, "store.url (DATABASE_URL): mysql://h/x: known are"),
        ({"PENNYWEIGHT_STORE_URL": "book"}, "store.url (PENNYWEIGHT_STORE_URL): this is no URL"),
        ({"AWS_ENDPOINT_URL": "localhost:4566"}, "aws.endpoint is 'localhost:4566', not like http"),
        ({"MOS_ESPA_URL": ""} | {"PENNYWEIGHT_LOANS_MOS_ESPA_URL": ""}, "loans.mos_espa_url is ''"),
        ({"BLACK_SPIRE_URL": "http://h/?x"}, "loans.black_spire_url is 'http://h/?x', not like"),
        (
            {"PENNYWEIGHT_LOANS_IS_PUSH_OPEN": "true", "PENNYWEIGHT_SERVER_WORKERS": "2"},
            "loans.is_push_open is of no use with server.workers above 1",
        ),
        ({"PENNYWEIGHT_LOANS_AGE_SECONDS": "0"}, "loans.age_seconds is 0, not 0.1 to 3600"),
        ({"PENNYWEIGHT_LOANS_DIALECT": "old"}, "loans.dialect (PENNYWEIGHT_LOANS_DIALECT)"),
        (
            {
                "DATABASE_URL": "postgresql://h/x",
                "AWS_ENDPOINT_URL": "aws",
                "PENNYWEIGHT_CLUSTER_LEASE_SECONDS": "2",
            },
            "make 1.5 s, which must be less than two thirds of cluster.lease_seconds (2)",
        ),
    ],
)
def test_a_wrong_variable_is_named(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load(environment=environment)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cache = 3", "unknown setting cache in file"),
        ("[cache]\nusers = 3", "unknown setting cache.users in file"),
        ("[shop]\nopen = 3", "unknown setting shop in file"),
        ("[cache]\nusers_max = '3'", "cache.users_max (file"),
        ("[cache", "is not TOML"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(problem)):
        load(file, environment={})


def test_loans_come_from_the_seeds_variables_too() -> None:
    environment = {
        "AWS_ENDPOINT": "http://old:4566",
        "AWS_ENDPOINT_URL": "http://localstack:4566",
        "AWS_REGION": "eu-west-1",
        "MOS_ESPA_URL": "http://mos-espa-trading-service:3000",
        "BLACK_SPIRE_URL": "http://black-spire-outpost-trading-service:3000",
    }
    config = load(environment=environment).config
    assert (config.aws.endpoint, config.aws.region) == ("http://localstack:4566", "eu-west-1")
    assert config.loans.mos_espa_url == "http://mos-espa-trading-service:3000"
    assert config.loans.black_spire_url == "http://black-spire-outpost-trading-service:3000"
    assert config.is_watching_loans
    assert not load(environment={"AWS_REGION": "eu-west-1"}).config.is_watching_loans


def test_kafka_comes_from_its_usual_variables_too() -> None:
    environment = {
        "KAFKA_BROKER": "kafka-1:9092,[::1]:9093",
        "PENNYWEIGHT_SETTLEMENTS_TOPIC": "trades",
    }
    loaded = load(environment=environment)
    assert loaded.config.kafka.broker == "kafka-1:9092,[::1]:9093"
    assert loaded.config.kafka.settlements_topic == "trades"
    assert loaded.origins["kafka.broker"] == "KAFKA_BROKER"
    environment["PENNYWEIGHT_KAFKA_BROKER"] = "other:9092"
    loaded = load(environment=environment)
    assert loaded.config.kafka.broker == "other:9092"
    assert loaded.origins["kafka.broker"] == "PENNYWEIGHT_KAFKA_BROKER"
    assert load(environment={}).config.kafka.broker == ""


def test_the_database_comes_from_its_usual_variable_too() -> None:
    environment = {"DATABASE_URL": "postgresql://u:hush@h/x"}
    loaded = load(environment=environment)
    assert loaded.config.store.url == "postgresql://u:hush@h/x"
    assert loaded.origins["store.url"] == "DATABASE_URL"
    environment["PENNYWEIGHT_STORE_URL"] = "sqlite:book"
    loaded = load(environment=environment)
    assert (loaded.config.store.url, loaded.config.store.book) == ("sqlite:book", "main")
    assert loaded.origins["store.url"] == "PENNYWEIGHT_STORE_URL"


@pytest.mark.parametrize("words", [(), ("--json",)], ids=["text", "json"])
def test_config_shows_no_secret(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hush-1@h:5432/x?sslpassword=hush-2")
    monkeypatch.setenv("PENNYWEIGHT_CLUSTER_SECRET", "hush-3-which-is-long-enough")
    monkeypatch.setenv("PENNYWEIGHT_KAFKA_OPTIONS", "sasl.password=hush-4,acks=all")
    ran = cli("config", *words)
    assert ran.code == 0
    assert "hush" not in ran.out
    assert "postgresql://u:***@h:5432/x?sslpassword=***" in ran.out
    assert "sasl.password=***" in ran.out
    assert "acks=all" in ran.out
    monkeypatch.setenv("PENNYWEIGHT_SERVER_WORKERS", "0")
    assert "hush" not in cli("config", *words).err


def test_an_unknown_setting_lists_the_known_ones(tmp_path: Path) -> None:
    file = tmp_path / "wrong.toml"
    file.write_text("colour = 3")
    with pytest.raises(ConfigError) as refused:
        load(file, environment={})
    assert all(name in str(refused.value) for name in NAMES)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: No such file"):
        load(tmp_path / "none.toml", environment={})


def test_every_setting_has_a_variable_of_its_own() -> None:
    assert len({variable_of(name) for name in NAMES}) == len(NAMES)


def test_config_prints_values_and_origins(file: Path, cli: Cli) -> None:
    ran = cli("config", "--config", file)
    assert ran.code == 0
    assert re.search(rf"^cache.users_max += 300  # file {file}$", ran.out, re.MULTILINE)
    shown = cli("config", "--config", file, "--json").json
    assert shown["cache.users_max"] == {
        "value": 300,
        "origin": f"file {file}",
        "variable": "PENNYWEIGHT_CACHE_USERS_MAX",
    }
    assert list(shown) == list(NAMES)


def test_a_wrong_configuration_is_wrong_usage(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENNYWEIGHT_COLOUR", "red")
    ran = cli("config")
    assert ran.code == 2
    assert ran.err.startswith("pennyweight: unknown variable PENNYWEIGHT_COLOUR; known are ")

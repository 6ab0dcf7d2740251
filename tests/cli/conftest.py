"""The command line in this process: its exit code, what it prints, what it says on stderr."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psycopg
import pytest
import structlog

from pennyweight.__main__ import _Roof
from pennyweight.delivery.cli import run
from pennyweight.simulators.postgres import PostgresMissing, PostgresServer


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.out)


Cli = Callable[..., Ran]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    for name in ("PENNYWEIGHT_DATA", "PENNYWEIGHT_CONFIG", "PENNYWEIGHT_STORE_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    structlog.reset_defaults()  # as in a process of its own: a verb says itself how it logs

    def call(*words: object) -> Ran:
        capsys.readouterr()
        code = run(_Roof(), [str(word) for word in words])
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return call


@pytest.fixture
def users(tmp_path: Path) -> Path:
    """A file of three users, with carriage returns alone at the line ends."""
    file = tmp_path / "users.csv"
    file.write_bytes(b"User_Id,USD,BTC\r100,0,1.5\r101,20.25,0\r102,3128.39,81.807344")
    return file


@pytest.fixture
def book(tmp_path: Path, users: Path, cli: Cli) -> Path:
    """A folder with a book of those users."""
    assert cli("load", users, "--data", tmp_path / "book").code == 0
    return tmp_path / "book"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server of this test process."""
    try:
        server = PostgresServer(is_synced=False)
    except PostgresMissing as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield postgres.url.removesuffix("/postgres") + f"/{name}"
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

"""SNS and SQS for each file, and a PostgreSQL for those that have several instances."""

import secrets
from collections.abc import Iterator

import psycopg
import pytest

from ministack import MiniStack, running
from pennyweight.simulators.postgres import PostgresMissing, PostgresServer


@pytest.fixture(scope="module")
def stack() -> Iterator[MiniStack]:
    """One of a file's own: topics and queues have fixed names."""
    with running() as stack:
        yield stack


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    try:
        server = PostgresServer(is_synced=False, settings={"max_connections": "100"})
    except PostgresMissing as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"loans_{secrets.token_hex(6)}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgres.url.removesuffix("/postgres") + f"/{name}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

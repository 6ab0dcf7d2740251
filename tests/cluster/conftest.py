"""One PostgreSQL for each test process, and a database of its own for every test."""

import secrets
from collections.abc import Iterator

import psycopg
import pytest

from pennyweight.simulators.postgres import PostgresMissing, PostgresServer

SETTINGS = {"max_connections": "200"}


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server that nobody stops: for tests in which instances fall, not the database."""
    try:
        server = PostgresServer(is_synced=False, settings=SETTINGS)
    except PostgresMissing as error:
        pytest.skip(str(error))
    with server:
        yield server


@pytest.fixture
def url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of an empty database on the shared server."""
    yield from _database(postgres)


@pytest.fixture(scope="module")
def shared_url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a database for the tests of one file."""
    yield from _database(postgres)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that a test may stop, kill and freeze."""
    try:
        server = PostgresServer(settings=SETTINGS)
    except PostgresMissing as error:
        pytest.skip(str(error))
    with server:
        yield server


def _database(server: PostgresServer) -> Iterator[str]:
    name = f"cluster_{secrets.token_hex(6)}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield server.url.removesuffix("/postgres") + f"/{name}"
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")

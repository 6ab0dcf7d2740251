"""PostgreSQL for the tests: one server for each test process, emptied between tests.

`PENNYWEIGHT_TEST_POSTGRES` names another major version than 18, and
`PENNYWEIGHT_TEST_ISOLATION=serializable` the isolation of everything that is done.
"""

import os

import psycopg

from pennyweight.simulators.postgres import PostgresServer
from pennyweight.stores import postgres

TABLES = [
    "heads",
    "batches",
    "entries",
    "keys",
    "accounts",
    "holds",
    "records",
    "labels",
    "names",
    "marks",
    "back_dated",
    "cursors",
    "stage",
]


def start() -> PostgresServer:
    """Start a server that does not wait for the disk, with the schema. Raises PostgresMissing."""
    settings = {}
    if isolation := os.environ.get("PENNYWEIGHT_TEST_ISOLATION"):
        settings["default_transaction_isolation"] = isolation
    version = os.environ.get("PENNYWEIGHT_TEST_POSTGRES", "18")
    server = PostgresServer(version, is_synced=False, settings=settings)
    try:
        postgres.migrate(server.url)
    except BaseException:
        server.close()
        raise
    return server


def empty(url: str) -> None:
    """Remove every book; the books that were open are closed."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("".join(f"DELETE FROM pennyweight.{table};" for table in TABLES))

"""Books in a PostgreSQL database, by psycopg: one owner writes, any instance reads.

`place` opens connections, `channel` is the writer's way to the server, `errors` says what
the server's errors mean, `schema` migrates, `codec` turns rows into facts and values into
parameters, `append` and `facts` are the owner's two statements, `writer`, `lease` and
`readers` do what the store port says, and `store` puts them together.
"""

try:
    import psycopg as _psycopg  # noqa: F401 - asked for here, so that its absence is told in words
except ImportError as error:  # pragma: no cover - the test environment has it
    raise ImportError(
        "a book in PostgreSQL needs the extra `postgres`: pip install 'pennyweight[postgres]'"
    ) from error

from pennyweight.stores.postgres import removing
from pennyweight.stores.postgres.schema import grants, migrate, plan
from pennyweight.stores.postgres.store import PostgresStore

__all__ = ["PostgresStore", "grants", "migrate", "plan", "removing"]

"""A book in one SQLite file, by apsw: WAL, `synchronous=FULL`, one writer, readers beside it.

`schema` opens files and migrates them, `lock` keeps a directory to one process, `codec`
turns rows into facts and back, `keys` finds keys, `writer` and `readers` do what the store
port says, `checkpoints` keeps the log short, and `store` puts them together.
"""

from pennyweight.stores.sqlite.store import SQLiteStore

__all__ = ["SQLiteStore"]

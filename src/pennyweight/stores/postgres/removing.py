"""Removing a book from a database: what a broken copy left. Nothing else ever deletes a journal."""

import psycopg
from psycopg import sql

from pennyweight.engine.port import StoreError
from pennyweight.stores.postgres.errors import of_psycopg
from pennyweight.stores.postgres.place import Place

_TABLES = """
    SELECT table_name FROM information_schema.columns
    WHERE table_schema = 'pennyweight' AND column_name = 'book' ORDER BY table_name
"""


_MARK = "SELECT value FROM pennyweight.stage WHERE book = %s AND name = %s FOR UPDATE"


def remove_book(url: str, book: str, *, marked: tuple[str, str] | None = None) -> None:
    """Delete every row of a book, all or nothing; nobody may own it.

    With `marked`, only while that setting of the book has that value: another may have begun
    it anew. Only a role that may delete can, and one that serves may not. Raises StoreError.
    """
    try:
        with Place(url).connect() as connection, connection.transaction():
            if marked is not None:
                name, value = marked
                if connection.execute(_MARK, (book, name)).fetchall() != [(value,)]:
                    return
            for (table,) in connection.execute(_TABLES).fetchall():
                statement = sql.SQL("DELETE FROM pennyweight.{} WHERE book = %s")
                connection.execute(statement.format(sql.Identifier(table)), (book,))
    except psycopg.errors.InsufficientPrivilege as error:
        words = " ".join(str(error).split())
        raise StoreError(f"{words}: removing needs the role that owns the tables") from None
    except psycopg.Error as error:
        raise of_psycopg(error, is_lost=False).store_error() from None

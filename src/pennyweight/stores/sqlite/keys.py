"""Where keys are found: (product, key) to the sequence of the entry that bound it."""

from collections.abc import Iterable, Iterator

import apsw

from pennyweight.engine.port import KeyRow


class KeyTable:
    """All keys in one table."""

    def find(self, connection: apsw.Connection, product: str, key: str) -> int | None:
        """Return the sequence of the entry that bound a key, or None."""
        for (sequence,) in connection.execute(
            "SELECT sequence FROM keys WHERE product = ? AND key = ?", (product, key)
        ):
            return int(sequence)
        return None

    def add(self, connection: apsw.Connection, keys: Iterable[KeyRow]) -> None:
        """Bind keys, within a transaction. Raises apsw.ConstraintError if one is bound."""
        connection.executemany(
            "INSERT INTO keys VALUES (?, ?, ?)",
            [(row.product, row.key, row.sequence) for row in keys],
        )

    def rows(self, connection: apsw.Connection) -> Iterator[KeyRow]:
        """Yield all keys."""
        for row in connection.execute("SELECT product, key, sequence FROM keys"):
            yield KeyRow(*row)

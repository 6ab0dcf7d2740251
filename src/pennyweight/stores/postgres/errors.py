"""What the server's errors mean for a book: a contradiction, a moment's trouble, or nobody knows."""

import psycopg

from pennyweight.engine.port import ConstraintFailed, StoreError, StoreUnavailable

_CODES = {
    "25006": "store_read_only",  # a standby: after a failover this is no longer the primary
    "53100": "store_full",
    "53300": "store_busy",  # too many connections
    "55P03": "store_busy",  # a lock was not to be had in time
    "40001": "store_busy",
    "40P01": "store_busy",
    "57014": "store_timeout",
}

_CONTRADICTIONS = ("22", "23", "54")
"""Classes of data that do not fit, of constraints, and of limits (a key too long for its index)."""

_AGAIN = frozenset({"40001", "40P01"})
_STALE = frozenset({"0A000", "26000"})
"""A prepared statement that the server has forgotten, or whose tables have changed."""

_TOO_MANY = ("too many clients", "too many connections", "connection slots", "connection limit")


class ServerError(Exception):
    """An error of the server or of the way to it. `state` is its SQLSTATE, "" for a lost connection.

    After a lost connection, or a fatal error, nobody knows what became of the statement.
    """

    def __init__(self, message: str, state: str = "", *, is_lost: bool = False) -> None:
        """Of a statement, or of an attempt to connect."""
        super().__init__(message)
        self.state = state
        self.is_lost = is_lost or not state or state[:2] == "08" or state == "40003"
        self.has_run = True
        """Whether the server may have begun with it."""

    @property
    def is_again(self) -> bool:
        """Whether the same statement may just be tried again: it lost against another."""
        return self.state in _AGAIN and not self.is_lost

    @property
    def is_stale(self) -> bool:
        """Whether the connection's prepared statements are of no use any more."""
        return self.state in _STALE and not self.is_lost

    @property
    def is_contradiction(self) -> bool:
        """Whether the values, not the server, are at fault."""
        return self.state[:2] in _CONTRADICTIONS and not self.is_lost

    def store_error(self) -> StoreError:
        """Return the error of the port, for a statement that has written nothing."""
        if self.is_contradiction:
            return ConstraintFailed(str(self))
        return StoreUnavailable(str(self), _CODES.get(self.state, "store_unavailable"))


def of_psycopg(error: psycopg.Error, *, is_lost: bool) -> ServerError:
    """Return what psycopg raised as ours; `is_lost` where its connection is of no use any more."""
    return ServerError(" ".join(str(error).split()), error.sqlstate or "", is_lost=is_lost)


def of_connecting(error: psycopg.Error) -> StoreUnavailable:
    """Return why there is no connection. The client library tells it in words alone."""
    message = " ".join(str(error).split())
    is_busy = error.sqlstate == "53300" or any(words in message for words in _TOO_MANY)
    return StoreUnavailable(message, "store_busy" if is_busy else "store_unavailable")

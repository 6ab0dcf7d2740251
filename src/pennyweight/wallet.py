"""The bet/win wallet in Python: maps in and out, isolated per `start()`.

    >>> from pennyweight import wallet
    >>> server = wallet.start()
    >>> wallet.create_users(server, ["john12345"])
    'ok'

In memory a wallet decides in its caller's thread, under one lock; any number of threads
may share one. With a path it is a book on disk like any other: what was answered RS_OK
is durable.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pennyweight.delivery.wallet import (
    RS_ERROR_WRONG_TYPES,
    AskedBody,
    BetBody,
    Fault,
    InfoBody,
    Protocol,
    RollbackBody,
    WalletSettings,
    WinBody,
    body_of,
)
from pennyweight.engine.engine import Submission
from pennyweight.engine.receipts import Failure, Receipt, Refusal, Unknown
from pennyweight.facades import Kept, in_memory, kept_at
from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.refusals import Refused
from pennyweight.products.wallet import CreateUser

__all__ = ["Wallet", "WalletFailed", "balance", "bet", "create_users", "rollback", "start", "win"]

_USERS_MAX = 1_000_000
_WRITTEN_USERS_MAX = 10_000
"""Users in memory at most: all there can be, and those of a book that has the others written."""
_PAGE = 1_000


class WalletFailed(Exception):
    """The wallet could not say what became of a request; ask again with the same one."""


class Wallet:
    """One isolated wallet. `start` makes it; its methods are the module's functions."""

    def __init__(self, kept: Kept, settings: WalletSettings) -> None:
        """A wallet on a book that nobody else writes to."""
        self._kept = kept
        self._book = kept.book
        self._protocol = Protocol(settings)

    def create_users(self, users: Iterable[str]) -> str:
        """See the module's `create_users`."""
        names = _checked(users)
        for first in range(0, len(names), _PAGE):
            page = [Submission(CreateUser(name)) for name in names[first : first + _PAGE]]
            for name, outcome in zip(names[first:], self._book.execute_many(page), strict=False):
                if isinstance(outcome, Failure | Unknown):
                    raise WalletFailed(f"user {name!r} was not created")
        return "ok"

    def bet(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See the module's `bet`."""
        return self._play(BetBody, self._protocol.bet, body)

    def win(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See the module's `win`."""
        return self._play(WinBody, self._protocol.win, body)

    def rollback(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See the module's `rollback`."""
        return self._play(RollbackBody, self._protocol.rollback, body)

    def balance(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See the module's `balance`."""
        try:
            asked = body_of(InfoBody, body)
            return self._protocol.balance(asked, self._book.store, self._book.engine.standing)
        except Fault as fault:
            return fault.answer

    def close(self) -> None:
        """Release the book; a wallet in memory is gone with its last reference anyway."""
        self._kept.close()

    def __enter__(self) -> Self:
        """Return the wallet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the wallet."""
        self.close()

    def _play(
        self,
        kind: type[AskedBody],
        command_of: Callable[..., Submission],
        body: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Check a body, have it decided and build the answer; a duplicate gets the first one."""
        try:
            played = body_of(kind, body)
            submission = command_of(played, echo=played.request_uuid)
        except Fault as fault:
            return fault.answer
        outcome = self._book.execute_many([submission])[0]
        request_uuid = played.request_uuid
        if isinstance(outcome, Receipt):
            if outcome.is_replayed and outcome.answer.echo:
                request_uuid = outcome.answer.echo
        elif not isinstance(outcome, Refusal):
            return _failed(outcome, played.user, request_uuid)
        return self._protocol.answer(played.user, request_uuid, outcome)


def start(path: str | Path | None = None, *, one_win_per_bet: bool = False) -> Wallet:
    """Return a fresh wallet in memory, or the durable one at `path`: a folder, or a database's URL.

    With `one_win_per_bet` a second win on a bet answers RS_ERROR_UNKNOWN. Raises
    `StoreInUse` when another process has the book open, or serves it.
    """
    settings = WalletSettings(one_win_per_bet=one_win_per_bet)
    kept = in_memory(_USERS_MAX) if path is None else kept_at(path, _WRITTEN_USERS_MAX)
    return Wallet(kept, settings)


def create_users(server: Wallet, users: Iterable[str]) -> str:
    """Give each new user a USD account of 100 000 units of 1/100 000, and return "ok".

    The empty string and users who have one are ignored. Raises TypeError for what is no
    string, ValueError for a string that can be no user's id (over 255 characters, or
    control characters); then nobody is created.
    """
    return server.create_users(users)


def bet(server: Wallet, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to `POST /transaction/bet` with this body."""
    return server.bet(body)


def win(server: Wallet, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to `POST /transaction/win` with this body."""
    return server.win(body)


def rollback(server: Wallet, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to `POST /transaction/rollback` with this body."""
    return server.rollback(body)


def balance(server: Wallet, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to `POST /user/info`: the balance now. Needs `user` and `request_uuid`."""
    return server.balance(body)


def _checked(users: Iterable[str]) -> list[str]:
    """Return the names that are not empty. Raises TypeError, ValueError."""
    if isinstance(users, str):
        raise TypeError("users is a list of str, not one str")
    names = list(users)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a user is a str, not {type(name).__name__}")
    names = [name for name in names if name]
    try:
        for name in names:
            user_holder(name)
    except Refused as refused:
        raise ValueError(refused.message) from None
    return names


def _failed(outcome: Failure | Unknown, user: str, request_uuid: str) -> dict[str, Any]:
    """Answer what the book could not decide: text that cannot be written, or raise."""
    if isinstance(outcome, Failure):
        if isinstance(outcome.cause, UnicodeEncodeError):
            return Fault(RS_ERROR_WRONG_TYPES, user, request_uuid).answer
        raise WalletFailed("a fault of ours; nothing was changed") from outcome.cause
    raise WalletFailed(outcome.message)

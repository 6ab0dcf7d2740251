"""Holding a book in a database for one process that works on it and serves nobody.

The lease is taken under a name of its own, renewed beside the work, and given up in the end.
Whoever is too slow to renew it loses the book, and its next append is refused by the store.
"""

import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pennyweight.engine.port import Lease, Store, StoreError, StoreInUse, StoreUnavailable

_RENEWALS = 3
"""How often a lease is renewed in its life."""


def owner_name() -> str:
    """Name this process among those that want the book."""
    return f"{socket.gethostname()[:80]}-{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def holding(store: Store, life_seconds: float) -> Iterator[None]:
    """Own the store's book meanwhile. Raises StoreInUse, which names who has it."""
    owner = owner_name()
    life = int(life_seconds * 1_000_000)
    if store.claim(owner, "", life) is None:
        raise StoreInUse(0, _described(store.lease()))
    over = threading.Event()
    keeper = threading.Thread(
        target=_renew, args=(store, owner, life, over), name="lease", daemon=True
    )
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        with suppress(StoreError):  # it then runs out by itself
            store.give_up(owner)


def _renew(store: Store, owner: str, life: int, over: threading.Event) -> None:
    """Renew until it is over, or somebody else has the book."""
    while not over.wait(life / 1_000_000 / _RENEWALS):
        try:
            if store.claim(owner, "", life) is None:
                return
        except StoreUnavailable:
            continue
        except StoreError:
            return


def _described(lease: Lease | None) -> str:
    """Say who has the book, and where it can be asked."""
    if lease is None:
        return "somebody else"
    return f"{lease.owner} at {lease.address}" if lease.address else lease.owner

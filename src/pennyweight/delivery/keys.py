"""API keys of a book: made, listed and revoked by the command line, read by the guard.

They are kept in a file beside an embedded book (`FolderKeys`), or in the database in which
the book is (`StoreKeys`), so that all instances have the same. A key is `<id>.<secret>`; the file holds the SHA-256 of the secret, which is 256 random
bits. Scopes are `<face>:read`, `<face>:write` (which includes reading) or `*`. Revoked
keys stay where they are, so that a book that ever had keys never falls open.
"""

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from pennyweight.engine.port import Store

FILE_NAME = "keys.json"
STAGE_NAME = "api_keys"
EVERYTHING = "*"

_SCOPE = re.compile(r"\*|[a-z]+(?:-[a-z]+)*:(?:read|write)")


class ApiKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key as it is kept. Moments are microseconds since 1970."""

    id: str
    sha256: str
    scopes: tuple[str, ...]
    created_at: int
    note: str = ""
    revoked_at: int | None = None

    def allows(self, face: str, *, is_write: bool) -> bool:
        """Whether the key's scopes cover this face."""
        return (
            EVERYTHING in self.scopes
            or f"{face}:write" in self.scopes
            or (not is_write and f"{face}:read" in self.scopes)
        )


class KeyFile(msgspec.Struct):
    """All keys of a book, as JSON."""

    keys: list[ApiKey] = []


class BadScope(Exception):
    """A scope is not like `wallet:write`, `ledger:read` or `*`."""


Change = Callable[[list[ApiKey]], list[ApiKey]]

_decoder = msgspec.json.Decoder(KeyFile)


# ── where they are kept ───────────────────────────────────────────────────────────


class KeySource(Protocol):
    """Where the keys of one book are kept."""

    @property
    def is_far(self) -> bool:
        """Whether a look may take long, and is nothing for an event loop."""

    def load(self) -> list[ApiKey]:
        """Return all keys, revoked ones included.

        Raises OSError, StoreError, or ValueError when they cannot be read.
        """

    def news(self) -> list[ApiKey] | None:
        """Return all keys, or None if nothing changed since this was called last. As `load`."""

    def change(self, change: Change) -> None:
        """Put what `change` makes of the keys in their place; it may be called again. As `load`."""


class FolderKeys:
    """Keys in a file of a folder."""

    is_far = False

    def __init__(self, folder: Path) -> None:
        """The folder need not be there yet."""
        self._folder = folder
        self._stamp: tuple[int, int, int] | None = None

    def load(self) -> list[ApiKey]:
        """See `KeySource`."""
        try:
            return _decoder.decode((self._folder / FILE_NAME).read_bytes()).keys
        except FileNotFoundError:
            return []

    def news(self) -> list[ApiKey] | None:
        """See `KeySource`."""
        try:
            status = (self._folder / FILE_NAME).stat()
        except FileNotFoundError:
            return None
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return None
        keys = self.load()
        self._stamp = stamp
        return keys

    def change(self, change: Change) -> None:
        """See `KeySource`. The file is replaced in one step; only its owner may read it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        body = msgspec.json.format(_encode(change(self.load())), indent=2)
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=FILE_NAME)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(body + b"\n")
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._folder / FILE_NAME)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


class StoreKeys:
    """Keys in a store, beside the journal, for all who open the book there.

    Each change is a setting of its own, `api_keys.1`, `api_keys.2` and so on, which only the
    first writer sets: of two changes at once none is lost. `api_keys` says near which number
    the newest is.
    """

    is_far = True

    def __init__(self, store: Store) -> None:
        """`store` may be one for reading, if nothing is to be changed."""
        self._store = store
        self._seen = 0

    def load(self) -> list[ApiKey]:
        """See `KeySource`."""
        return self._newest(self._hint())[1]

    def news(self) -> list[ApiKey] | None:
        """See `KeySource`."""
        before = self._seen
        self._seen, keys = self._newest(before or self._hint())
        return keys if self._seen != before else None

    def change(self, change: Change) -> None:
        """See `KeySource`."""
        while True:
            number, keys = self._newest(self._hint())
            body = _encode(change(keys)).decode()
            name = f"{STAGE_NAME}.{number + 1}"
            if self._store.stage(name, body, is_first=True) == body:
                self._store.stage(STAGE_NAME, str(number + 1))
                return

    def _hint(self) -> int:
        return int(self._store.stage(STAGE_NAME) or 0)

    def _newest(self, number: int) -> tuple[int, list[ApiKey]]:
        """Return the newest change that follows one, or that one."""
        while self._store.stage(f"{STAGE_NAME}.{number + 1}") is not None:
            number += 1
        if not number:
            return 0, []
        body = self._store.stage(f"{STAGE_NAME}.{number}")
        if body is None:
            raise ValueError(f"{STAGE_NAME}.{number} is gone")  # and nobody is let in for that
        return number, _decoder.decode(body).keys


def _encode(keys: list[ApiKey]) -> bytes:
    return msgspec.json.encode(KeyFile(keys))


# ── what is done with them ────────────────────────────────────────────────────────


def source_of(place: Path | KeySource) -> KeySource:
    """Return the source that a folder stands for, or the source itself."""
    return FolderKeys(place) if isinstance(place, Path) else place


def load(place: Path | KeySource) -> list[ApiKey]:
    """Return the keys of a book, revoked ones included; none if there never were any."""
    return source_of(place).load()


def create(place: Path | KeySource, scopes: tuple[str, ...], *, now: int, note: str = "") -> str:
    """Make a key, keep its hash, and return it; nobody can show it again. Raises BadScope."""
    for scope in scopes or ("",):
        if _SCOPE.fullmatch(scope) is None:
            raise BadScope(f"{scope!r} is not like wallet:write, ledger:read or *")
    key_id = secrets.token_hex(6)
    secret = secrets.token_urlsafe(32)
    key = ApiKey(key_id, digest(secret), tuple(dict.fromkeys(scopes)), now, note)
    source_of(place).change(lambda keys: [*keys, key])
    return f"{key_id}.{secret}"


def revoke(place: Path | KeySource, key_id: str, *, now: int) -> bool:
    """Revoke a key; False if there is none of this id, or it was revoked before."""
    source = source_of(place)
    if not any(key.id == key_id and key.revoked_at is None for key in source.load()):
        return False
    source.change(
        lambda keys: [
            msgspec.structs.replace(key, revoked_at=now)
            if key.id == key_id and key.revoked_at is None
            else key
            for key in keys
        ]
    )
    return True


def digest(secret: str) -> str:
    """Return the hash under which a secret is kept."""
    return hashlib.sha256(secret.encode()).hexdigest()


def find(keys: dict[str, ApiKey], token: str) -> ApiKey | None:
    """Return the key that a bearer token proves, by a comparison in constant time."""
    key_id, _, secret = token.partition(".")
    key = keys.get(key_id)
    if key is None or key.revoked_at is not None or not secret:
        return None
    return key if hmac.compare_digest(key.sha256, digest(secret)) else None

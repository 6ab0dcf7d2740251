"""API keys in a file beside the book: made, listed and revoked by the command line, read by the guard.

A key is `<id>.<secret>`; the file holds the SHA-256 of the secret, which is 256 random
bits. Scopes are `<face>:read`, `<face>:write` (which includes reading) or `*`. Revoked
keys stay in the file, so that a book that ever had keys never falls open.
"""

import hashlib
import hmac
import os
import re
import secrets
import tempfile
from pathlib import Path

import msgspec

FILE_NAME = "keys.json"
EVERYTHING = "*"

_SCOPE = re.compile(r"\*|[a-z]+:(?:read|write)")


class ApiKey(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key as the file keeps it. Moments are microseconds since 1970."""

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
    """What is in the file."""

    keys: list[ApiKey] = []


class BadScope(Exception):
    """A scope is not like `wallet:write`, `ledger:read` or `*`."""


_decoder = msgspec.json.Decoder(KeyFile)


def load(folder: Path) -> list[ApiKey]:
    """Return the keys of a book, revoked ones included; none if there is no file."""
    try:
        return _decoder.decode((folder / FILE_NAME).read_bytes()).keys
    except FileNotFoundError:
        return []


def create(folder: Path, scopes: tuple[str, ...], *, now: int, note: str = "") -> str:
    """Make a key, keep its hash, and return it; nobody can show it again. Raises BadScope."""
    for scope in scopes or ("",):
        if _SCOPE.fullmatch(scope) is None:
            raise BadScope(f"{scope!r} is not like wallet:write, ledger:read or *")
    key_id = secrets.token_hex(6)
    secret = secrets.token_urlsafe(32)
    key = ApiKey(key_id, digest(secret), tuple(dict.fromkeys(scopes)), now, note)
    _save(folder, [*load(folder), key])
    return f"{key_id}.{secret}"


def revoke(folder: Path, key_id: str, *, now: int) -> bool:
    """Revoke a key; False if there is none of this id, or it was revoked before."""
    keys = load(folder)
    changed = [
        msgspec.structs.replace(key, revoked_at=now)
        if key.id == key_id and key.revoked_at is None
        else key
        for key in keys
    ]
    if changed == keys:
        return False
    _save(folder, changed)
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


def _save(folder: Path, keys: list[ApiKey]) -> None:
    """Replace the file in one step; only its owner may read it."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    body = msgspec.json.format(msgspec.json.encode(KeyFile(keys)), indent=2)
    handle, name = tempfile.mkstemp(dir=folder, prefix=FILE_NAME)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(body + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(folder / FILE_NAME)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

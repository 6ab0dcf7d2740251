"""The guard: who may call what. Both ways of answering ask it first.

Without keys the server listens on loopback only, and a web page that the user of this
machine happens to visit must not reach it: Host, Origin and Sec-Fetch-Site are checked.
With keys every call needs one, except on faces that the operator opened by name. Keys in a
database are read beside the event loop; while it is away, what was known counts, and
where nothing was known yet nobody is let in.
"""

import ipaddress
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import structlog

from pennyweight.delivery import keys
from pennyweight.delivery.http.routes import Reply
from pennyweight.delivery.http.wire import RETRY, problem
from pennyweight.engine.port import StoreError

RELOAD_SECONDS = 1.0
OPERATIONS = "operations"
"""The face of /metrics, /openapi.json and /docs: any valid key opens it."""

_HOSTS_MAX = 64
_OWN_SITES = (None, "same-origin", "none")

log = structlog.get_logger(__name__)


def is_loopback(host: str) -> bool:
    """Whether an address or name to listen on is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Checks a request before anything else looks at it."""

    def __init__(
        self,
        source: Path | keys.KeySource | None,
        host: str,
        *,
        open_faces: Collection[str] = (),
        signed_faces: Mapping[str, str] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`source` has the keys (a folder: in its file; None: no keys).

        `host` is where the server listens.

        `signed_faces` maps a face that checks request signatures to the header they are
        in: a request that carries it needs no key, and the face refuses a wrong one.
        """
        self._source = None if source is None else keys.source_of(source)
        self._is_loopback = is_loopback(host)
        self._open_faces = frozenset(open_faces)
        self._signed_faces = dict(signed_faces or {})
        self._monotonic = monotonic
        self._keys: dict[str, keys.ApiKey] = {}
        self._is_known = self._source is None
        self._is_reading = threading.Lock()
        self._reload_at = self._monotonic() + RELOAD_SECONDS
        self._local_hosts: set[str] = set()
        self._read()

    @property
    def has_keys(self) -> bool:
        """Whether the book has, or ever had, keys, or nobody could tell yet."""
        return bool(self._keys) or not self._is_known

    def check(self, face: str, *, is_write: bool, headers: Mapping[str, str]) -> Reply | None:
        """Return None to let a request through, or the reply that turns it away."""
        if self._monotonic() >= self._reload_at:
            self._reload()
        if not self._is_known:
            return problem(
                503,
                "keys_unknown",
                "the keys could not be read yet; try again",
                is_retryable=True,
                headers=RETRY,
            )
        if not self._keys and self._is_loopback:
            if (
                headers.get("host") in self._local_hosts
                and "origin" not in headers
                and "sec-fetch-site" not in headers
            ):
                return None
            return self._check_local(headers)
        if face in self._open_faces:
            return None
        signature = self._signed_faces.get(face)
        if signature is not None and headers.get(signature):
            return None
        return self._check_key(face, headers.get("authorization"), is_write=is_write)

    def _check_local(self, headers: Mapping[str, str]) -> Reply | None:
        """Refuse what a web page of somebody else could have sent to this machine."""
        host = headers.get("host")
        if host is None or not _is_local_host(host):
            return problem(403, "host_refused", "without keys only loopback names are answered")
        if len(self._local_hosts) < _HOSTS_MAX:
            self._local_hosts.add(host)
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return problem(403, "origin_refused", "requests of other web pages are refused")
        if headers.get("sec-fetch-site") not in _OWN_SITES:
            return problem(403, "origin_refused", "requests of other web pages are refused")
        return None

    def _check_key(self, face: str, authorization: str | None, *, is_write: bool) -> Reply | None:
        scheme, _, token = (authorization or "").partition(" ")
        key = keys.find(self._keys, token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            return problem(
                401,
                "key_required",
                "this needs a valid key: Authorization: Bearer <id>.<secret>",
                headers=(("WWW-Authenticate", "Bearer"),),
            )
        if face == OPERATIONS or key.allows(face, is_write=is_write):
            return None
        needed = f"{face}:{'write' if is_write else 'read'}"
        return problem(403, "scope_missing", f"the key does not have the scope {needed}")

    def _reload(self) -> None:
        """Look for news of the keys; beside the event loop, where that may take long."""
        self._reload_at = self._monotonic() + RELOAD_SECONDS
        if self._source is None or not self._source.is_far:
            self._read()
        elif self._is_reading.acquire(blocking=False):
            threading.Thread(target=self._read_beside, name="keys", daemon=True).start()

    def _read_beside(self) -> None:
        try:
            self._read()
        finally:
            self._is_reading.release()

    def _read(self) -> None:
        """Take up the keys if they changed; what cannot be read keeps what was known."""
        if self._source is None:
            return
        try:
            news = self._source.news()
        except (OSError, StoreError, ValueError) as error:
            log.warning("the keys are unreadable; they stay as they were", error=str(error))
            return
        if news is not None:
            self._keys = {key.id: key for key in news}
        self._is_known = True


def _is_local_host(host: str) -> bool:
    """Whether a Host header, with or without its port, names this machine."""
    if host.startswith("["):
        return is_loopback(host[1:].partition("]")[0])
    return is_loopback(host.partition(":")[0].lower())

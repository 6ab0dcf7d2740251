"""Elasticsearch 8, or OpenSearch 2 and 3, over HTTP, held right: bulks whose items are looked at.

Documents have ids and versions of their own: what is sent twice, or late, overwrites nothing
that is newer. A bulk that was answered with 200 may still have failed in parts, so every item
is told apart: there now, there already, to be sent again, or never to be taken. All else that
goes wrong is a `LinkError`, and whoever asks tries again later. Nothing is sent by the name
of an index but by an alias, so that an index can be made anew beside the old one. The client
is imported when it is needed.
"""

import re
import time
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import msgspec

from pennyweight.links.errors import ExtraMissing, LinkError

CONNECT_SECONDS = 5.0
ANSWER_LENGTH_MAX = 16 << 20
"""No longer answer is read, in bytes. That of the largest bulk, all of it refused, is shorter."""

ID_LENGTH_MAX = 512
"""Bytes of a document's id; a longer one is refused."""

HEAD_LENGTH = 128
"""About how many bytes a document needs in a bulk beside its source and its id."""

_DETAIL_MAX = 300
_CHUNK = 65_536
_NUMBERED = re.compile(r"-([0-9]{6})")
_REFUSED = frozenset({400, 413})
"""What an item is told that will be told the same every time: it does not fit the mapping."""

_BUSY = 429
_ANSWERED = "filter_path=errors,error,items.*.status,items.*.error.type,items.*.error.reason"
_encode = msgspec.json.Encoder().encode


class Document(msgspec.Struct, frozen=True, gc=False):
    """A document: `index` is a name without prefix or number, `source` is JSON without newlines."""

    index: str
    id: str
    version: int
    source: bytes


class Rejected(msgspec.Struct, frozen=True, gc=False):
    """A document that will never be taken as it is, and why.

    With `is_of_place` the reason may lie in the index and not in the document.
    """

    document: Document
    reason: str
    is_of_place: bool = False


class Taken(msgspec.Struct, frozen=True, gc=False):
    """What became of a bulk: how many are there now and how many were, which are to be sent again.

    `cause` says why the latter were not taken.
    """

    done: int
    present: int = 0
    again: Sequence[Document] = ()
    rejected: Sequence[Rejected] = ()
    cause: str = ""


class Unfit(LinkError):
    """The whole bulk is refused for what is in it; a part of it may not be."""


class TooLarge(Unfit):
    """The whole bulk is too large for the other side."""


class NameTaken(LinkError):
    """Something else has the name that an index was to have."""


class _Error(msgspec.Struct, frozen=True, gc=False):
    type: str | None = ""
    reason: str | None = ""


class _Item(msgspec.Struct, frozen=True, gc=False):
    status: int
    error: _Error | str | None = None


class _Head(msgspec.Struct, frozen=True, gc=False):
    errors: bool


class _Bulk(msgspec.Struct, frozen=True, gc=False):
    items: list[dict[str, _Item]] = []


class _Problem(msgspec.Struct, frozen=True, gc=False):
    error: _Error | str | None = None


_head_decoder = msgspec.json.Decoder(_Head)
_bulk_decoder = msgspec.json.Decoder(_Bulk)
_problem_decoder = msgspec.json.Decoder(_Problem)


def client() -> ModuleType:
    """Import the client. Raises ExtraMissing."""
    try:
        import urllib3  # noqa: PLC0415 - an extra, and 60 ms that only who exports should pay
    except ImportError as error:
        raise ExtraMissing(
            "search needs the extra `search`: pip install 'pennyweight[search]'"
        ) from error
    return urllib3


def _is_closed(item: _Item) -> bool:
    """Whether a document was not taken because its index is closed, which is not its fault."""
    return isinstance(item.error, _Error) and item.error.type == "index_closed_exception"


class Search:
    """A connection to one cluster, for one thread at a time. `name` is for people."""

    def __init__(
        self, url: str, *, api_key: str = "", prefix: str = "", timeout_seconds: float = 30.0
    ) -> None:
        """Nothing is asked yet. Raises ExtraMissing.

        A user in the URL is written as in any URL (`%40` for @). An API key, which goes
        before it, is given as it was told: encoded, or `id:key`.
        """
        urllib3 = client()
        parts = urlsplit(url)
        host = parts.hostname or ""
        self.prefix = prefix
        self.name = f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"
        self._path = parts.path.rstrip("/")
        self._seconds = timeout_seconds
        self._errors = urllib3.exceptions
        self._headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if api_key:
            encoded = _base64(api_key) if ":" in api_key else api_key
            self._headers["Authorization"] = f"ApiKey {encoded}"
        elif parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = f"Basic {_base64(pair)}"
        self._pool: Any = urllib3.connection_from_url(
            f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}",
            maxsize=1,
            retries=False,
            timeout=urllib3.Timeout(
                connect=min(CONNECT_SECONDS, timeout_seconds), read=timeout_seconds
            ),
        )
        self._heads: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""
        self.close()

    def close(self) -> None:
        """Hang up; asked again, it connects again."""
        self._pool.close()

    def alias(self, name: str) -> str:
        """Return what an index is called there: an alias, behind which is one with a number."""
        return f"{self.prefix}{name}"

    # ── documents ─────────────────────────────────────────────────────────────────

    def bulk(self, documents: Sequence[Document], into: Mapping[str, str] | None = None) -> Taken:
        """Send documents, by alias or into the indices named by `into`, and look at every item.

        Raises Unfit, and LinkError when it is unknown, or sure, that none was taken.
        """
        if not documents:
            return Taken(0)
        lines: list[bytes] = []
        heads = self._heads if into is None else {}
        for document in documents:
            head = heads.get(document.index)
            if head is None:
                place = self.alias(document.index) if into is None else into[document.index]
                head = b'{"index":{"_index":%b,"_id":' % _encode(place)
                heads[document.index] = head
            lines.append(
                b'%b%b,"version":%d,"version_type":"external"}}\n'
                % (head, _encode(document.id), document.version)
            )
            lines.append(document.source)
            lines.append(b"\n")
        by_alias = "" if into is not None else "require_alias=true&"
        status, body = self._ask("POST", f"/_bulk?{by_alias}{_ANSWERED}", b"".join(lines))
        if status == 413:
            raise TooLarge(f"{self.name} takes no {sum(map(len, lines))} bytes at a time")
        if status == 400 and b"action_request_validation_exception" in body:
            raise Unfit(str(self._problem("the bulk", status, body)))
        if status != 200:
            raise self._problem("the bulk", status, body)
        try:
            if not _head_decoder.decode(body).errors:
                return Taken(len(documents))
            items = _bulk_decoder.decode(body).items
        except msgspec.DecodeError:
            raise LinkError(f"{self.name} answered a bulk with something else") from None
        if len(items) != len(documents):
            raise LinkError(f"{self.name} answered {len(items)} of {len(documents)} documents")
        return self._sort(documents, items)

    def _sort(self, documents: Sequence[Document], items: list[dict[str, _Item]]) -> Taken:
        """Tell apart what became of each document. Raises LinkError for what stops all of them."""
        done = present = 0
        again, rejected, cause = [], [], ""
        for document, answer in zip(documents, items, strict=True):
            item = next(iter(answer.values()), None)
            status = 0 if item is None else item.status
            if 200 <= status < 300:
                done += 1
            elif status == 409:
                present += 1
            elif status in _REFUSED and item is not None and not _is_closed(item):
                kind = item.error.type if isinstance(item.error, _Error) else ""
                is_of_place = kind == "illegal_argument_exception"
                rejected.append(Rejected(document, _told(item.error), is_of_place))
            elif item is not None and (status == _BUSY or status >= 500):
                again.append(document)
                cause = f"{self.name} answers {status}: {_told(item.error)}"
            else:  # an index that is gone, rights that are not there: no document can help it
                told = "" if item is None else _told(item.error)
                raise LinkError(
                    f"{self.name} answers {status} for {self.alias(document.index)}: {told}"
                )
        return Taken(done, present, again, rejected, cause)

    # ── indices ───────────────────────────────────────────────────────────────────

    def put_template(self, name: str, template: Mapping[str, Any]) -> None:
        """Say how the indices behind an alias are to be made from now on. Raises LinkError."""
        alias = self.alias(name)
        body = {"index_patterns": [f"{alias}-0*"], "priority": 200, "template": template}
        self._do("PUT", f"/_index_template/{alias}", body)

    def place(self, name: str) -> str | None:
        """Return the index behind an alias, where documents go; None if there is none.

        Raises NameTaken where there is something else of that name, LinkError.
        """
        alias = self.alias(name)
        found = self._do("GET", f"/_alias/{alias}", is_absent_fine=True)
        if found is None:
            settings = f"/{alias}/_settings?filter_path=*.settings.index.uuid"
            plain = self._do("GET", settings, is_absent_fine=True)
            if plain is None:
                return None
            if alias not in plain:  # somebody has just made it
                return self.place(name)
            raise NameTaken(
                f"{self.name} has an index {alias} that is not ours: "
                "rename it, or set search.prefix"
            )
        places: list[str] = [
            place
            for place, told in found.items()
            if told["aliases"].get(alias, {}).get("is_write_index", len(found) == 1)
        ]
        if len(places) != 1 or number_of(places[0], alias) is None:
            raise NameTaken(
                f"{self.name} has an alias {alias} of {', '.join(sorted(found))}, which is not "
                "ours: rename it, or set search.prefix"
            )
        return places[0]

    def create(
        self, name: str, number: int = 1, *, is_alias: bool = True, meta: Any = None
    ) -> str | None:
        """Make an index, and its alias with it; return what it is called. Raises LinkError.

        None if there is one of that name already. `meta` is what `meta` will return.
        """
        alias = self.alias(name)
        place = f"{alias}-{number:06}"
        body: dict[str, Any] = {"mappings": {"_meta": meta or {}}}
        if is_alias:
            body["aliases"] = {alias: {"is_write_index": True}}
        status, answer = self._ask("PUT", f"/{place}", _encode(body))
        if status == 400 and b"resource_already_exists_exception" in answer:
            return None
        self._check(f"index {place}", status, answer)
        return place

    def meta(self, place: str) -> dict[str, Any]:
        """Return what we noted on an index. Raises LinkError."""
        found = self._do("GET", f"/{place}/_mapping?filter_path=*.mappings._meta")
        mappings = found.get(place, {}).get("mappings", {})
        noted: dict[str, Any] = mappings.get("_meta") or {}
        return noted

    def put_meta(self, place: str, meta: Mapping[str, Any]) -> None:
        """Note something on an index. Raises LinkError."""
        self._do("PUT", f"/{place}/_mapping", {"_meta": meta})

    def switch(self, changes: Iterable[tuple[str, str | None, str]]) -> None:
        """Let aliases stand for other indices, at one instant for all who ask. Raises LinkError.

        Each change is an index's name, what is behind its alias (None for nothing), and what
        is to be.
        """
        actions: list[dict[str, Any]] = []
        for name, before, after in changes:
            alias = self.alias(name)
            if before is not None:
                actions.append({"remove": {"index": before, "alias": alias}})
            actions.append({"add": {"index": after, "alias": alias, "is_write_index": True}})
        self._do("POST", "/_aliases", {"actions": actions})

    def delete(self, place: str) -> bool:
        """Delete an index; whether there was one. Raises LinkError."""
        return self._do("DELETE", f"/{place}", is_absent_fine=True) is not None

    def refresh(self, place: str) -> None:
        """Let searches find everything that an index, or alias, has by now. Raises LinkError."""
        self._do("POST", f"/{place}/_refresh")

    # ── asking ────────────────────────────────────────────────────────────────────

    def search(self, place: str, query: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the hits of a search, each with its `_id` and `_source`. Raises LinkError."""
        found = self._do("POST", f"/{place}/_search", query)
        hits: list[dict[str, Any]] = found["hits"]["hits"]
        return hits

    def count(self, place: str) -> int:
        """Return how many documents an index, or alias, has for searches. Raises LinkError."""
        return int(self._do("GET", f"/{place}/_count")["count"])

    def newest(self, name: str, fields: Sequence[str]) -> dict[str, Any] | None:
        """Return fields of the document with the highest `sequence`, None of an empty index.

        Raises LinkError.
        """
        return self._first(name, fields, "desc")

    def oldest(self, name: str, fields: Sequence[str]) -> dict[str, Any] | None:
        """Return fields of the document with the lowest `sequence`, as `newest` does."""
        return self._first(name, fields, "asc")

    def _first(self, name: str, fields: Sequence[str], order: str) -> dict[str, Any] | None:
        alias = self.alias(name)
        self.refresh(alias)
        hits = self.search(
            alias,
            {
                "size": 1,
                "sort": [{"sequence": {"order": order, "unmapped_type": "long"}}],
                "_source": list(fields),
            },
        )
        source: dict[str, Any] | None = hits[0]["_source"] if hits else None
        return source

    # ── HTTP ──────────────────────────────────────────────────────────────────────

    def _do(self, method: str, path: str, body: Any = None, *, is_absent_fine: bool = False) -> Any:
        """Ask, and return the JSON of the answer; None where 404 may be. Raises LinkError."""
        status, answer = self._ask(method, path, None if body is None else _encode(body))
        if status == 404 and is_absent_fine:
            return None
        self._check(path.partition("?")[0], status, answer)
        try:
            return msgspec.json.decode(answer) if answer else {}
        except msgspec.DecodeError:
            raise LinkError(f"{self.name} answered {path} with something else") from None

    def _check(self, what: str, status: int, answer: bytes) -> None:
        """Raises LinkError for what was not done."""
        if not 200 <= status < 300:
            raise self._problem(what, status, answer)

    def _problem(self, what: str, status: int, body: bytes) -> LinkError:
        """Say what an answer that is no success says."""
        try:
            told = _told(_problem_decoder.decode(body).error)
        except msgspec.DecodeError:
            told = ""
        if status in {401, 403}:
            told = f"it does not let us, see search.url and search.api_key ({told or status})"
        return LinkError(f"{self.name} answers {status} for {what}: {told}".rstrip(": "))

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Ask, and return status and body. A connection that had idled away is opened anew, once.

        Everything here may be asked twice. Raises LinkError.
        """
        try:
            return self._ask_once(method, path, body)
        except self._errors.ProtocolError:
            pass
        except self._errors.HTTPError as error:
            raise LinkError(f"{self.name}: {_why(error)}") from error
        try:
            return self._ask_once(method, path, body)
        except self._errors.HTTPError as error:
            raise LinkError(f"{self.name}: {_why(error)}") from error

    def _ask_once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = self._headers
        if body is not None:
            kind = "x-ndjson" if path.startswith("/_bulk") else "json"
            headers = {**headers, "Content-Type": f"application/{kind}"}
        until = time.monotonic() + self._seconds
        response = self._pool.urlopen(
            method,
            f"{self._path}{path}",
            body=body,
            headers=headers,
            redirect=False,
            preload_content=False,
        )
        is_whole = False
        try:
            answer = bytearray()
            while chunk := response.read1(_CHUNK):
                answer += chunk
                if len(answer) > ANSWER_LENGTH_MAX:
                    raise LinkError(f"{self.name} answers with more than {ANSWER_LENGTH_MAX} bytes")
                if time.monotonic() > until:
                    raise LinkError(f"{self.name} takes longer than {self._seconds:g} s to answer")
            is_whole = True
        finally:
            if is_whole:
                response.release_conn()
            else:
                response.close()
        return response.status, bytes(answer)


def number_of(place: str, alias: str) -> int | None:
    """Return the number of an index behind an alias, None if its name is not like ours."""
    match = _NUMBERED.fullmatch(place.removeprefix(alias)) if place.startswith(alias) else None
    return None if match is None else int(match[1])


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()


def _told(error: _Error | str | None) -> str:
    """Say an error of theirs on one line."""
    if isinstance(error, _Error):
        error = f"{error.type or ''}: {error.reason or ''}"
    return " ".join((error or "").split())[:_DETAIL_MAX]


def _why(error: BaseException) -> str:
    """Say what went wrong with a connection, in the same words each time."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    name = type(error).__name__
    if "Timeout" in name:
        return "it does not answer in time"
    if "Protocol" in name:
        return "it hung up"
    if "NameResolution" in name:
        return "its name is not known"
    return name

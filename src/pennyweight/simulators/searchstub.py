"""The part of a search engine that the exporter needs, for tests and benchmarks, failing on demand.

Documents, versions, aliases, templates and simple searches are true to Elasticsearch and
OpenSearch as far as anybody here asks; what is indexed can be found at once. `Faults` make it
misbehave. `python -m pennyweight.simulators.searchstub` runs one in a process of its own.
"""

import argparse
import asyncio
import contextlib
import re
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from pennyweight.links.search import ID_LENGTH_MAX
from pennyweight.simulators.looping import LoopThread

COUNTED = "/_counted"
"""The path at which one that only counts says how many documents came."""

_HANG_UP = struct.pack("ii", 1, 0)
"""A socket that lingers like this is reset when it is closed."""

_REASONS = {
    400: "mapper_parsing_exception",
    404: "index_not_found_exception",
    409: "version_conflict_engine_exception",
    413: "too_large_exception",
    429: "es_rejected_execution_exception",
    503: "unavailable_shards_exception",
}
_START_SECONDS = 20.0
_encode = msgspec.json.Encoder().encode

Answer = tuple[int, Any]
Faulty = Callable[[str, str], int]
"""Given an index and the id of a document, returns the status that it is answered, 0 to take it."""


class Faults:
    """What goes wrong from now on. What is counted down happens so often, and is over then."""

    def __init__(self) -> None:
        """Nothing."""
        self.statuses: deque[int] = deque()
        """Bulks are answered like this, the next one first, and not looked at."""
        self.item: Faulty | None = None
        """Says which documents are not taken."""
        self.bytes_max = 1 << 30
        """Longer bulks are answered 413."""
        self.delay_seconds = 0.0
        """Each bulk takes so long."""
        self.is_hanging = False
        """Bulks are not answered at all."""
        self.resets_before = 0
        self.resets_after = 0
        """So many connections are reset before, or after, their bulk was carried out."""


class Index:
    """Documents by id, each with its version."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        """Empty."""
        self.body = body
        self.meta: dict[str, Any] = body.get("mappings", {}).get("_meta", {})
        self.documents: dict[str, tuple[int, bytes]] = {}


class _Action(msgspec.Struct, frozen=True, gc=False):
    id: str = msgspec.field(name="_id")
    index: str = msgspec.field(name="_index", default="")
    version: int = 0


class _Line(msgspec.Struct, frozen=True, gc=False):
    index: _Action


_line_decoder = msgspec.json.Decoder(_Line)


class Engine:
    """Indices, aliases and templates; not the wire."""

    def __init__(self, faults: Faults) -> None:
        """Nothing is there, and no index makes itself."""
        self.indices: dict[str, Index] = {}
        self.aliases: dict[str, dict[str, bool]] = {}
        """By alias: the indices behind it, and whether each is the one that is written."""
        self.templates: dict[str, Any] = {}
        self.counts: dict[int, int] = {}
        """How many documents were answered how."""
        self.bulks = 0
        self._faults = faults

    def behind(self, name: str) -> list[Index]:
        """Return the indices that a name stands for."""
        return [
            self.indices[place]
            for place in self.aliases.get(name, {name: True})
            if place in self.indices
        ]

    def documents(self, name: str) -> dict[str, Any]:
        """Return what an index or alias has, by id."""
        return {
            one: msgspec.json.decode(source)
            for index in self.behind(name)
            for one, (_, source) in list(index.documents.items())
        }

    def versions(self, name: str) -> dict[str, int]:
        """Return the versions of what an index or alias has, by id."""
        return {
            one: version
            for index in self.behind(name)
            for one, (version, _) in list(index.documents.items())
        }

    # ── bulks ─────────────────────────────────────────────────────────────────────

    def bulk(self, body: bytes, *, is_by_alias: bool) -> Answer:
        """Carry out a bulk of `index` actions."""
        self.bulks += 1
        items, has_errors, counts, faulty = [], False, self.counts, self._faults.item
        places: dict[str, Index | None] = {}
        lines = body.split(b"\n")
        for number in range(0, len(lines) - 1, 2):
            action = _line_decoder.decode(lines[number]).index
            name = action.index
            if len(action.id.encode()) > ID_LENGTH_MAX:  # the whole bulk, as the real one does
                return 400, {
                    "error": {
                        "type": "action_request_validation_exception",
                        "reason": f"id [{action.id}] is too long",
                    },
                    "status": 400,
                }
            if name not in places:
                places[name] = self._written(name, is_by_alias=is_by_alias)
            index = places[name]
            status = faulty(name, action.id) if faulty is not None else 0
            if not status:
                status = 404 if index is None else self._put(index, action, lines[number + 1])
            counts[status] = counts.get(status, 0) + 1
            item: dict[str, Any] = {"_id": action.id, "status": status}
            if status >= 300:
                has_errors = True
                item["error"] = {
                    "type": _REASONS.get(status, "exception"),
                    "reason": f"[{action.id}]: {status}",
                }
            items.append({"index": item})
        return 200, {"errors": has_errors, "items": items}

    def _written(self, name: str, *, is_by_alias: bool) -> Index | None:
        """Return the index that documents for a name go into."""
        for place, is_written in self.aliases.get(name, {}).items():
            if is_written:
                return self.indices[place]
        return None if is_by_alias else self.indices.get(name)

    def _put(self, index: Index, action: _Action, source: bytes) -> int:
        before = index.documents.get(action.id)
        if before is not None and before[0] >= action.version:
            return 409
        index.documents[action.id] = (action.version, source)
        return 200 if before else 201

    # ── everything else ───────────────────────────────────────────────────────────

    def answer(self, method: str, path: str, body: Any) -> Answer:
        """Answer a request that is no bulk."""
        match method, [unquote(part) for part in path.strip("/").split("/")]:
            case "GET", [""]:
                return 200, {"version": {"number": "2.19.6", "distribution": "opensearch"}}
            case _, ["_cluster", "health"]:
                return 200, {"status": "green", "timed_out": False}
            case "PUT", ["_index_template", name]:
                self.templates[name] = body
                return 200, {"acknowledged": True}
            case "POST", ["_aliases"]:
                return self._switch(body["actions"])
            case "GET", ["_alias", name]:
                return self._alias(name)
            case "PUT", [name]:
                return self._create(name, body or {})
            case "DELETE", [name]:
                return self._delete(name)
            case "PUT", [name, "_mapping"]:
                self.indices[name].meta = body["_meta"]
                return 200, {"acknowledged": True}
            case _, [name, what]:
                return self._asked(name, what, body)
            case _, [name, "_doc", one]:
                found = self.documents(name).get(one)
                return (404, {"found": False}) if found is None else (200, {"_source": found})
            case _:
                pass
        return _error(400, f"nobody does {method} {path} here")

    def _asked(self, name: str, what: str, body: Any) -> Answer:
        if not self.behind(name):
            return _error(404, f"no such index [{name}]")
        if what == "_search":
            return 200, self.search(name, body or {})
        if what == "_count":
            hits = self.search(name, {**(body or {}), "size": 0})
            return 200, {"count": hits["hits"]["total"]["value"]}
        if what == "_mapping":
            return 200, {name: {"mappings": {"_meta": self.indices[name].meta}}}
        if what == "_settings":
            places = self.aliases.get(name, {name: True})
            return 200, {place: {"settings": {"index": {"uuid": place}}} for place in places}
        return 200, {"_shards": {"failed": 0}}

    def _alias(self, name: str) -> Answer:
        places = self.aliases.get(name)
        if not places:
            return 404, {"error": f"alias [{name}] missing", "status": 404}
        return 200, {
            place: {"aliases": {name: {"is_write_index": is_written}}}
            for place, is_written in places.items()
        }

    def _create(self, name: str, body: Mapping[str, Any]) -> Answer:
        if name in self.indices or name in self.aliases:
            return 400, {
                "error": {"type": "resource_already_exists_exception", "reason": f"[{name}]"},
                "status": 400,
            }
        self.indices[name] = Index(body)
        for alias, told in body.get("aliases", {}).items():
            self.aliases.setdefault(alias, {})[name] = told.get("is_write_index", False)
        return 200, {"acknowledged": True, "index": name}

    def _delete(self, name: str) -> Answer:
        if self.indices.pop(name, None) is None:
            return _error(404, f"no such index [{name}]")
        for alias, places in list(self.aliases.items()):
            places.pop(name, None)
            if not places:
                del self.aliases[alias]
        return 200, {"acknowledged": True}

    def _switch(self, actions: list[dict[str, Any]]) -> Answer:
        for action in actions:
            for verb, told in action.items():
                if told["index"] not in self.indices:
                    return _error(404, f"no such index [{told['index']}]")
                places = self.aliases.setdefault(told["alias"], {})
                if verb == "add":
                    places[told["index"]] = told.get("is_write_index", False)
                else:
                    places.pop(told["index"], None)
        return 200, {"acknowledged": True}

    def search(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a search of all, by terms, sorted."""
        matches = _matcher(body.get("query", {"match_all": {}}))
        found = [hit for hit in self.documents(name).items() if matches(hit[1])]
        for one in reversed(body.get("sort", [])):
            ((field, how),) = one.items() if isinstance(one, dict) else ((one, "asc"),)
            order = how["order"] if isinstance(how, dict) else how
            found.sort(key=lambda hit, field=field: _first(hit[1], field), reverse=order == "desc")
        begin = body.get("from", 0)
        wanted = body.get("_source", True)
        return {
            "hits": {
                "total": {"value": len(found), "relation": "eq"},
                "hits": [
                    {"_id": one, "_source": _part(source, wanted)}
                    for one, source in found[begin : begin + body.get("size", 10)]
                ],
            }
        }


def _error(status: int, reason: str) -> Answer:
    kind = _REASONS.get(status, "exception")
    return status, {"error": {"type": kind, "reason": reason}, "status": status}


def _part(source: dict[str, Any], wanted: Any) -> dict[str, Any]:
    return (
        {name: source[name] for name in wanted if name in source}
        if isinstance(wanted, list)
        else source
    )


def _values(source: Any, field: str) -> Iterator[Any]:
    """Yield what a document has at a path, of all items where there are several."""
    for value in source if isinstance(source, list) else [source]:
        name, _, rest = field.partition(".")
        if not field:
            yield value
        elif isinstance(value, dict) and name in value:
            yield from _values(value[name], rest)


def _first(source: Any, field: str) -> Any:
    return next(_values(source, field), 0)


def _matcher(query: Mapping[str, Any]) -> Callable[[Any], bool]:
    """Return what says whether a document matches."""
    ((kind, told),) = query.items()
    if kind == "match_all":
        return lambda _: True
    if kind in {"term", "match"}:
        ((field, value),) = told.items()
        value = value.get("value", value.get("query")) if isinstance(value, dict) else value
        return lambda source: value in list(_values(source, field))
    if kind == "bool":
        parts = [
            _matcher(part)
            for part in [*_listed(told.get("filter", [])), *_listed(told.get("must", []))]
        ]
        return lambda source: all(part(source) for part in parts)
    raise ValueError(f"nobody searches by {kind} here")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# ── the wire ──────────────────────────────────────────────────────────────────────


class _Reset(Exception):
    """This connection is to be reset."""


class SearchStub:
    """An engine that listens, in a thread of its own. It may go and come back: documents stay."""

    def __init__(
        self,
        *,
        port: int = 0,
        authorization: str = "",
        path: str = "",
        is_counting_only: bool = False,
    ) -> None:
        """`authorization` is the header that callers must send; `path` is what URLs begin with.

        One that counts only takes every bulk and keeps nothing of it.
        """
        self.faults = Faults()
        self.engine = Engine(self.faults)
        self.counted = 0
        """Documents that came to one that only counts."""
        self.requests: list[str] = []
        """Method and path of everything but bulks."""
        self.bulk_bytes: list[int] = []
        """How long the bulks were."""
        self._port = port
        self._authorization = authorization
        self._path = path
        self._is_counting_only = is_counting_only
        self._thread = LoopThread("search-stub")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self.up()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """See `close`."""
        self.close()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}{self._path}"

    def up(self) -> None:
        """Listen, at the port it had."""
        self._thread.do(self._up())

    def down(self) -> None:
        """Hang up on everybody, and no longer listen."""
        self._thread.do(self._down())

    def close(self) -> None:
        """End it for good."""
        if not self._thread.has_ended:
            self.down()
            self._thread.close()

    async def _up(self) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=1 << 20)
        self._server = server
        self._port = server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
        try:
            while await self._serve_one(reader, writer):
                pass
        except _Reset:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _HANG_UP)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            if task is not None:
                self._tasks.discard(task)
            writer.close()

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method, target, _ = head.split(" ", 2)
        length = re.search(r"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        body = await reader.readexactly(int(length[1])) if length else b""
        parts = urlsplit(target)
        path = parts.path.removeprefix(self._path)
        has_right = not self._authorization or f"\r\nauthorization: {self._authorization}\r\n" in (
            re.sub(r"\r\nauthorization:", "\r\nauthorization:", head, flags=re.IGNORECASE)
        )
        status: int
        answer: Any
        if not has_right:
            status, answer = 401, {"error": {"type": "security_exception", "reason": "who?"}}
        elif not parts.path.startswith(self._path):
            status, answer = _error(404, "nothing is here")
        elif path == "/_bulk":
            status, answer = await self._bulk(body, parse_qs(parts.query))
        elif path == COUNTED:
            status, answer = 200, self.counted
        else:
            self.requests.append(f"{method} {path}")
            told = msgspec.json.decode(body) if body else None
            status, answer = self.engine.answer(method, path, told)
        content = _encode(answer)
        writer.write(
            b"HTTP/1.1 %d Told\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(content), b"" if method == "HEAD" else content)
        )
        await writer.drain()
        return True

    async def _bulk(self, body: bytes, query: dict[str, list[str]]) -> Answer:
        faults = self.faults
        self.bulk_bytes.append(len(body))
        if faults.delay_seconds:
            await asyncio.sleep(faults.delay_seconds)
        while faults.is_hanging:  # noqa: ASYNC110 - set from other threads
            await asyncio.sleep(0.01)
        if faults.resets_before:
            faults.resets_before -= 1
            raise _Reset
        if faults.statuses:
            return _error(faults.statuses.popleft(), "not now")
        if len(body) > faults.bytes_max:
            return _error(413, "too large")
        if self._is_counting_only:
            self.counted += body.count(b"\n") // 2
            return 200, {"errors": False}
        answer = self.engine.bulk(body, is_by_alias=query.get("require_alias") == ["true"])
        if faults.resets_after:
            faults.resets_after -= 1
            raise _Reset
        return answer


# ── in a process of its own ───────────────────────────────────────────────────────


class StubProcess:
    """A stub in a process of its own, so that what is measured has its core for itself."""

    def __init__(self, *, is_counting_only: bool = True) -> None:
        """Start it, and wait until it listens."""
        command = [sys.executable, "-m", "pennyweight.simulators.searchstub"]
        if not is_counting_only:
            command.append("--keep")
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self._process.stdout is None:
            raise RuntimeError("it has no output")
        self.url = self._process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError("the stub did not start")

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Listen until standard input ends."""
    parser = argparse.ArgumentParser(description="A search engine for tests.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep documents, not only count them")
    options = parser.parse_args()
    with SearchStub(port=options.port, is_counting_only=not options.keep) as stub:
        sys.stdout.write(f"{stub.url}\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            sys.stdin.read()


if __name__ == "__main__":
    main()

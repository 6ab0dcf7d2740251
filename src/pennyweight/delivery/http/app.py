"""The long way: Falcon answers every route of the table.

Responders are made in a loop over the table. Bodies are bounded, by their declared length
first and by counting in any case. Errors of Falcon's own become problem documents.
"""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import Executor
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

import falcon
import falcon.asgi

from pennyweight.delivery.http.desk import Desk
from pennyweight.delivery.http.routes import (
    PROBLEM,
    CommandRoute,
    ReadRoute,
    Reply,
    Request,
    Route,
)
from pennyweight.delivery.http.wire import (
    BadRequest,
    encode,
    error_reply,
    problem,
    problem_document,
)

GONE = "pennyweight.gone"
"""Key of the ASGI scope: what to call when the client left before its answer."""

READ_SECONDS = 15.0
"""How long a reader's thread is waited for."""

_NOT_SENT = Reply(499)
_NAMES_MAX = 512

Asgi = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


def too_large(body_max: int) -> Reply:
    """Return the answer to a body beyond the limit; the rest of it is not read."""
    return problem(
        413,
        "body_too_large",
        f"a body has at most {body_max} bytes",
        headers=(("Connection", "close"),),
    )


def build_app(desk: Desk, routes: Iterable[Route], readers: Executor, *, body_max: int) -> Asgi:
    """Return the ASGI application of these routes; `readers` runs what reads the store."""
    app = falcon.asgi.App(media_type="application/json")
    app.set_error_serializer(_serialize_error)
    app.add_error_handler(Exception, _failed(desk))
    by_path: dict[str, dict[str, Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, {})[route.method] = route
    for path, by_method in by_path.items():
        app.add_route(path, _resource(desk, by_method, readers, body_max))

    async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
        # Routing by the path as it was sent: an escaped "/" belongs to an id.
        scope["path"] = scope["raw_path"].decode("ascii", "replace")
        await app(scope, receive, send)

    return asgi


def _resource(
    desk: Desk, by_method: Mapping[str, Route], readers: Executor, body_max: int
) -> object:
    """Return Falcon's resource of one path: one responder per method."""
    resource = _Resource()
    for method, route in by_method.items():
        if isinstance(route, CommandRoute):
            responder = _command_responder(desk, route, readers, body_max)
        else:
            responder = _read_responder(desk, route, readers, body_max)
        setattr(resource, f"on_{method.lower()}", responder)
        if method == "GET":
            resource.on_head = responder
    return resource


class _Resource:
    """Carries responders."""

    on_head: "Responder"


Responder = Callable[..., Awaitable[None]]


def _command_responder(
    desk: Desk, route: CommandRoute, readers: Executor, body_max: int
) -> Responder:
    async def respond(req: falcon.asgi.Request, resp: falcon.asgi.Response, **params: str) -> None:
        headers = _headers(req)
        refused = desk.guard.check(route.face, is_write=True, headers=headers)
        if refused is not None:
            _write(desk, route, resp, refused)
            return
        body = await _body(req, body_max)
        if body is None:
            _write(desk, route, resp, too_large(body_max))
            return
        answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        request = Request(req.method, req.path, body, _unquoted(params), _query(req), headers)
        prepared = None
        if route.prepare is not None:
            loop = asyncio.get_running_loop()
            looking = loop.run_in_executor(readers, desk.prepare, route, request)
            prepared = await _within(desk, looking)
        submissions = desk.command(route, request, answered.set_result, prepared=prepared)

        def gone() -> None:
            for submission in submissions:
                submission.is_dropped = True
            if not answered.done():
                answered.cancel()

        req.scope[GONE] = gone
        try:
            reply = await answered
        except asyncio.CancelledError:
            if not answered.cancelled():
                raise
            reply = _NOT_SENT
        _write(desk, route, resp, reply)

    return respond


def _read_responder(desk: Desk, route: ReadRoute, readers: Executor, body_max: int) -> Responder:
    is_write = route.method != "GET"

    async def respond(req: falcon.asgi.Request, resp: falcon.asgi.Response, **params: str) -> None:
        headers = _headers(req)
        refused = None
        if route.face:
            refused = desk.guard.check(route.face, is_write=is_write, headers=headers)
        if refused is not None:
            _write(desk, route, resp, refused)
            return
        body = await _body(req, body_max) if is_write else b""
        if body is None:
            _write(desk, route, resp, too_large(body_max))
            return
        request = Request(req.method, req.path, body, _unquoted(params), _query(req), headers)
        if route.is_instant:
            reply = desk.read(route, request)
        else:
            loop = asyncio.get_running_loop()
            reading = loop.run_in_executor(readers, desk.read, route, request)
            reply = await _within(desk, reading)
        _write(desk, route, resp, reply, readers)

    return respond


T = TypeVar("T")


async def _within(desk: Desk, work: asyncio.Future[T]) -> T | Reply:
    """Wait for a reader's thread, but not for ever: the store may hang, and the thread with it."""
    try:
        return await asyncio.wait_for(work, READ_SECONDS)
    except TimeoutError:
        return desk.turned_away("store_timeout", "the store did not answer in time; try again")


async def _body(req: falcon.asgi.Request, body_max: int) -> bytes | None:
    """Read a body; None if it is beyond the limit."""
    length = req.content_length
    if length is not None and length > body_max:
        return None
    body = await req.stream.read(body_max + 1)
    return None if len(body) > body_max else body


def _write(
    desk: Desk,
    route: Route,
    resp: falcon.asgi.Response,
    reply: Reply,
    readers: Executor | None = None,
) -> None:
    """Hand a reply to Falcon. The order of the headers is the short way's too."""
    desk.metrics.count(route, reply.status)
    resp.status = reply.status
    resp.set_header("content-type", reply.content_type)
    for name, value in reply.headers:
        resp.set_header(name, value)
    if reply.chunks is None:
        resp.data = reply.body
    else:
        resp.stream = _stream(reply.chunks, readers)


async def _stream(chunks: Iterator[bytes], readers: Executor | None) -> AsyncIterator[bytes]:
    """Draw chunks in a reader's thread, one at a time."""
    loop = asyncio.get_running_loop()
    while (chunk := await loop.run_in_executor(readers, next, chunks, None)) is not None:
        yield chunk


def _headers(req: falcon.asgi.Request) -> dict[str, str]:
    headers: list[tuple[bytes, bytes]] = req.scope["headers"]
    return headers_of(headers)


class _Names(dict[bytes, str]):
    """Header names as text in lower case; the first few hundred are remembered."""

    def __missing__(self, name: bytes) -> str:
        text = name.decode("latin-1").lower()
        if len(self) < _NAMES_MAX:
            self[name] = text
        return text


_names = _Names()


def headers_of(headers: Collection[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by name in lower case; of several with one name, the last.

    Several keys come as one with a line break between, which no key has: `key_of` refuses it.
    """
    found = {_names[name]: value.decode("latin-1") for name, value in headers}
    if len(found) != len(headers):
        keys = [value for name, value in headers if _names[name] == "idempotency-key"]
        if len(keys) > 1:
            found["idempotency-key"] = b"\n".join(keys).decode("latin-1")
    return found


def _unquoted(params: Mapping[str, str]) -> dict[str, str]:
    """Decode what Falcon cut out of the raw path. Raises BadRequest."""
    try:
        return {name: unquote(value, errors="strict") for name, value in params.items()}
    except UnicodeDecodeError:
        raise BadRequest("path_invalid", "the path is not UTF-8") from None


def _query(req: falcon.asgi.Request) -> dict[str, str]:
    """Decode the query; of several parameters with one name, the last. Raises BadRequest."""
    if not req.query_string:
        return {}
    try:
        pairs = parse_qsl(
            req.query_string, keep_blank_values=True, errors="strict", max_num_fields=50
        )
    except ValueError:
        raise BadRequest("query_invalid", "the query cannot be read") from None
    return dict(pairs)


# ── errors of Falcon's own ────────────────────────────────────────────────────────

_CODES = {404: "route_not_found", 405: "method_not_allowed"}


def _serialize_error(
    _: falcon.asgi.Request, resp: falcon.asgi.Response, error: falcon.HTTPError
) -> None:
    status = error.status_code
    code = _CODES.get(status, "bad_request" if status < 500 else "internal_error")
    detail = str(error.description or error.title or error.status)
    resp.data = encode(problem_document(status, code, detail))
    resp.content_type = PROBLEM


def _failed(desk: Desk) -> Callable[..., Awaitable[None]]:
    async def handle(
        req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, _: Any
    ) -> None:
        if isinstance(error, falcon.HTTPError):
            raise error
        if isinstance(error, BadRequest):
            reply = error_reply(error)
        else:
            reply = desk.failed(Request(req.method, req.path), error)
        resp.status = reply.status
        resp.data = reply.body
        resp.content_type = reply.content_type

    return handle

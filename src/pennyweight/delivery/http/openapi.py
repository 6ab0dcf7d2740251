"""The OpenAPI 3.1 description, made from the table of routes, and the page that shows it.

Everything comes from the routes' own documentation: types, examples, errors. The page is
rendered here and loads nothing from anywhere.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any

import jinja2
import msgspec

from pennyweight.delivery.http.guard import OPERATIONS
from pennyweight.delivery.http.routes import (
    JSON,
    PROBLEM,
    CommandRoute,
    Documentation,
    ReadRoute,
    Reply,
    Request,
    Route,
)
from pennyweight.delivery.http.wire import Amount, ProblemDocument, SignedAmount, problem_document
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)\}")
_DECIMAL = "(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][+-]?[0-9]{1,9})?"
_PAGE = Path(__file__).with_name("docs.html")
_PAGE_HEADERS = (("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'"),)

_ALWAYS = {
    401: ("key_required", "Keys are configured, and this request has none that is valid."),
    403: ("scope_missing", "The key's scopes do not cover this, or a foreign web page asked."),
}
_COMMANDS = {
    400: ("body_malformed", "The request can never succeed as written."),
    409: ("not_after_passed", "The deadline has passed, or the key was given up."),
    413: ("body_too_large", "The body is too large."),
    422: ("key_reused", "The idempotency key belongs to another command or content."),
    503: ("outcome_unknown", "Not decided, or unknown: ask again, under the same key."),
}
_READS = {400: ("limit_invalid", "A parameter is not as it should be.")}

_FACES = {
    "ledger": "The ledger's own face.",
    "payments": "Payments between accounts.",
    "wallet": "Bets, wins and rollbacks of users.",
    "withdrawals": "Check and hold, settle later; deficits, limits.",
    "loans": "Loans against collateral: applied for, activated, warned, liquidated.",
    "loan-desk": "What the lender's own desk alone may do; never open without a key.",
    "portfolios": "Targets, a provider's updates, and the transactions that bring portfolios back.",
    "portfolio-desk": "What was executed of portfolios' transactions; never open without a key.",
    "dead-letters": "Messages of streams that could not be taken; never open without a key.",
    "operations": "For those who run it.",
}


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the description of these routes as plain values."""
    types = [
        member
        for route in routes
        for kind in _types_of(route.documentation)
        for member in _members(kind)
    ]
    schemas, components = msgspec.json.schema_components(
        [*types, ProblemDocument], schema_hook=_schema_of_amounts, ref_template=_REF
    )
    by_type = iter(schemas)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        shapes = [
            _any_of([next(by_type) for _ in _members(kind)])
            for kind in _types_of(route.documentation)
        ]
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(
            route, shapes, schemas[-1]
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pennyweight",
            "version": version("pennyweight"),
            "description": (
                "A money engine: one exact, durable double-entry book and the services on it. "
                "Amounts are decimal strings; a 2xx means that the change is on disk."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "tags": [
            {"name": face, "description": _FACES.get(face, face)}
            for face in dict.fromkeys(route.face or OPERATIONS for route in routes)
        ],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _types_of(documentation: Documentation) -> list[Any]:
    types = (documentation.request, documentation.answer, documentation.accepted)
    return [t for t in types if t is not None]


def _members(kind: Any) -> tuple[Any, ...]:
    """Return the structs of a union of structs (msgspec knows no such type), or the type itself."""
    if isinstance(kind, UnionType) and all(isinstance(member, type) for member in kind.__args__):
        return kind.__args__
    return (kind,)


def _any_of(schemas: list[Any]) -> Any:
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _schema_of_amounts(kind: type) -> dict[str, Any]:
    """Describe the wire types of ours."""
    if kind is not Amount and kind is not SignedAmount:
        raise NotImplementedError(f"no schema for {kind}")
    sign = "-?" if kind is SignedAmount else ""
    number = {"type": "number"} if kind is SignedAmount else {"type": "number", "minimum": 0}
    return {
        "description": "An exact decimal; as a string, or as a number, read digit by digit.",
        "anyOf": [
            {"type": "string", "pattern": f"^{sign}{_DECIMAL}$", "maxLength": 100},
            number,
        ],
        "examples": ["0.5"],
    }


def _operation(route: Route, shapes: list[Any], problem: Any) -> dict[str, Any]:
    documentation = route.documentation
    remaining = iter(shapes)
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "tags": [route.face or OPERATIONS],
        "summary": documentation.summary,
        "parameters": _parameters(route),
    }
    if documentation.description:
        operation["description"] = documentation.description
    if documentation.request is not None:
        operation["requestBody"] = {
            "required": documentation.request_example != {},
            "content": _content(JSON, next(remaining), documentation.request_example),
        }
    answer: dict[str, Any] = {"description": HTTPStatus(documentation.status).phrase}
    if documentation.answer is not None:
        answer["content"] = _content(JSON, next(remaining), documentation.answer_example)
    operation["responses"] = {
        str(documentation.status): answer,
        **_errors(route, problem),
    }
    if documentation.accepted is not None:
        location = {"description": "Where to ask later.", "schema": {"type": "string"}}
        operation["responses"]["202"].update(
            content=_content(JSON, next(remaining), documentation.accepted_example),
            headers={"Location": location},
        )
    if route.face:
        operation["security"] = [{}, {"key": []}]
    return operation


def _operation_id(route: Route) -> str:
    words = re.sub(r"[^a-z0-9]+", "_", route.path.lower()).strip("_")
    return f"{route.method.lower()}_{words}"


def _parameters(route: Route) -> list[dict[str, Any]]:
    """Return path, query and header parameters."""
    text = {"type": "string"}
    parameters: list[dict[str, Any]] = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1},
        }
        for name in _PARAMETER.findall(route.path)
    ]
    for name, sentence in route.documentation.parameters.items():
        schema = {"type": "integer", "minimum": 1, "maximum": 1_000} if name == "limit" else text
        parameters.append({"name": name, "in": "query", "description": sentence, "schema": schema})
    if isinstance(route, CommandRoute):
        parameters += [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The same key again gives the first answer again.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            },
            {
                "name": "Not-After",
                "in": "header",
                "description": "Refuse if it is decided later than this (RFC 3339).",
                "schema": {"type": "string", "format": "date-time"},
            },
        ]
    return parameters


def _errors(route: Route, problem: Any) -> dict[str, Any]:
    """Return the answers other than the usual one; the route's own sentences come first."""
    known = dict(_ALWAYS) if route.face else {}
    if isinstance(route, CommandRoute):
        known.update(_COMMANDS)
        if 409 in route.documentation.errors:
            del known[409]
        if route.face == "loans":  # a key that was used for something else is a 409 there
            del known[422]
    elif route.face:
        known.update(_READS)
    sentences = {status: sentence for status, (_, sentence) in known.items()}
    sentences.update(route.documentation.errors)
    has_problems = route.face not in {"payments", "wallet"}
    responses: dict[str, Any] = {}
    for status, sentence in sorted(sentences.items()):
        if str(status) == str(route.documentation.status):
            continue
        response: dict[str, Any] = {"description": sentence}
        if status < 400:
            response["content"] = {JSON: {"schema": {}}}
        elif has_problems or status in _ALWAYS or status == 413:
            code = known.get(status, (_CODES.get(status, "refused"), ""))[0]
            example = msgspec.to_builtins(problem_document(status, code, sentence))
            response["content"] = _content(PROBLEM, problem, example)
        else:
            response["content"] = {JSON: {"schema": {}}, PROBLEM: {"schema": problem}}
        responses[str(status)] = response
    return responses


_CODES = {404: "account_not_found", 409: "insufficient_funds"}


def _content(kind: str, schema: Any, example: Any) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": schema}
    if example is not None:
        media["example"] = example
    return {kind: media}


# ── the routes ────────────────────────────────────────────────────────────────────


def routes(others: Iterable[Route]) -> list[Route]:
    """Return `/openapi.json` and `/docs` for these routes and themselves, made when first asked for."""
    table = list(others)

    @cache
    def description() -> dict[str, Any]:
        return describe(table)

    @cache
    def json() -> Reply:
        return Reply(200, msgspec.json.encode(description()))

    @cache
    def page() -> Reply:
        return Reply(200, _render(description()), _PAGE_HEADERS, "text/html; charset=utf-8")

    table += [
        _route("/openapi.json", "The OpenAPI 3.1 description of all routes", json),
        _route("/docs", "This description as a page", page),
    ]
    return table[-2:]


def _route(path: str, summary: str, answer: Callable[[], Reply]) -> ReadRoute:
    def read(_: Request, __: Store, ___: Standing) -> Reply:
        return answer()

    return ReadRoute(
        face=OPERATIONS,
        method="GET",
        path=path,
        read=read,
        documentation=Documentation(summary=summary),
    )


def _render(description: dict[str, Any]) -> bytes:
    """Render the page."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["pretty"] = _pretty
    template = environment.from_string(_PAGE.read_text("utf-8"))
    operations = [
        {"path": path, "method": method.upper(), **operation}
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    return template.render(description=description, operations=operations).encode()


def _pretty(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()

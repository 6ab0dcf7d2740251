"""The operators' routes: is it alive, can it commit, what has it done, whom does it remember."""

from collections.abc import Callable
from typing import Any

from pennyweight.delivery.http.guard import OPERATIONS
from pennyweight.delivery.http.metrics import CONTENT_TYPE, Metrics
from pennyweight.delivery.http.routes import Documentation, ReadRoute, Reply, Request, Route
from pennyweight.delivery.http.wire import encode, problem
from pennyweight.engine.cache import CacheFigures
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.runtime.book import Book
from pennyweight.runtime.driver import Unavailable

Neighbours = Callable[[], dict[str, str]]
"""What is down outside (a broker, a sink), by name; named in `/readyz`, which it does not turn red."""


def no_neighbours() -> dict[str, str]:
    """Nothing outside is relied on."""
    return {}


def routes(book: Book, metrics: Metrics, neighbours: Neighbours = no_neighbours) -> list[Route]:
    """Return the operators' routes. `/livez` and `/readyz` need no key anywhere."""

    def live(_: Request, __: Store, ___: Standing) -> Reply:
        return Reply(200, encode({"status": "alive"}))

    def ready(_: Request, __: Store, ___: Standing) -> Reply:
        try:
            book.check()
        except Unavailable as error:
            return problem(503, error.code, "commands cannot be committed", is_retryable=True)
        answer: dict[str, Any] = {"status": "ready", **book.describe()}
        down = neighbours()
        if down:
            answer["down"] = down
        return Reply(200, encode(answer))

    def figures(_: Request, __: Store, ___: Standing) -> Reply:
        return Reply(200, metrics.text(), content_type=CONTENT_TYPE)

    def cache(_: Request, __: Store, ___: Standing) -> Reply:
        try:
            return Reply(200, encode(book.figures()))
        except Unavailable as error:
            return problem(503, error.code, str(error), is_retryable=True)

    return [
        _route("/livez", "", live, "The process answers", {"status": "alive"}),
        _route(
            "/readyz",
            "",
            ready,
            "Commands can be committed",
            {"status": "ready"},
            errors={
                503: "They cannot: the store failed or is away, the clock jumped, the server stops, or "
                "no instance owns the book; `code` says which."
            },
        ),
        _route("/metrics", OPERATIONS, figures, "Figures in Prometheus' text format", None),
        _route(
            "/cache",
            OPERATIONS,
            cache,
            "What the cache of users does: how many are in memory, and how often that helped",
            _CACHE,
            answer=CacheFigures,
        ),
    ]


_CACHE = {
    "limit": 300,
    "resident": 250,
    "guests": 0,
    "pinned": 12,
    "ghosts": 600,
    "loading": 0,
    "most": 300,
    "hits": 18_250,
    "misses": 2_110,
    "evictions": 1_860,
    "hit_ratios": {"last_1000": 0.91, "last_10000": 0.9, "last_100000": 0.8964},
}


def _route(
    path: str,
    face: str,
    read: Callable[[Request, Store, Standing], Reply],
    summary: str,
    example: Any,
    *,
    errors: dict[int, str] | None = None,
    answer: Any = dict[str, Any],
) -> ReadRoute:
    return ReadRoute(
        face=face,
        method="GET",
        path=path,
        read=read,
        documentation=Documentation(
            summary=summary,
            answer=None if example is None else answer,
            answer_example=example,
            errors=errors or {},
        ),
        is_instant=True,
    )

"""The table of routes: what every face declares, and both ways of answering share.

A command route parses a request into a submission (or answers at once), and renders the
outcome. `parse` and `read` may raise `wire.BadRequest` and `Refused`, which become problem
documents. Both are pure functions of what they are given, so the short way inside the
server's protocol and the long way through Falcon give the same bytes. A read route
answers from committed rows, in a reader's thread.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from pennyweight.engine.engine import Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Outcome

JSON = "application/json"
PROBLEM = "application/problem+json"


class Request(msgspec.Struct, gc=False):
    """A request as a face sees it: path parameters and query decoded, header names in lower case.

    `is_list` is set before `render` when `parse` returned a list of submissions,
    `correlation_id`, its name in the log, when a rule of ours broke.
    """

    method: str
    path: str
    body: bytes = b""
    params: dict[str, str] = {}
    query: dict[str, str] = {}
    headers: Mapping[str, str] = {}
    is_list: bool = False
    correlation_id: str = ""


class Reply(msgspec.Struct, frozen=True, gc=False):
    """An answer: status, body, further headers, content type. A stream has `chunks` instead of a body."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = JSON
    chunks: Iterator[bytes] | None = None


class Documentation(msgspec.Struct, frozen=True, kw_only=True):
    """What the OpenAPI description says of a route.

    `request` and `answer` are msgspec types (None: no body). `errors` maps statuses to a
    sentence. Examples are JSON values. `parameters` are query parameters, name to sentence.
    With a type in `accepted` the route may answer 202, and where to ask later in `Location`.
    """

    summary: str
    description: str = ""
    request: Any = None
    answer: Any = None
    status: int = 200
    request_example: Any = None
    answer_example: Any = None
    accepted: Any = None
    accepted_example: Any = None
    errors: dict[int, str] = {}
    parameters: dict[str, str] = {}


class Patient(Submission):
    """A submission that would rather wait a moment than be turned away at once."""

    __slots__ = ()

    def wait(self, submit: Callable[[Submission], object], error: Exception) -> bool:
        """Try again later, as long as there is time; False to be turned away for this error."""
        raise NotImplementedError


Parsed = Submission | list[Submission] | Reply
"""What is to be submitted, one or a list that is not atomic; or the answer already."""


def nothing_to_parse(_: Request, __: Standing) -> Reply:
    """Stand in for `parse` where a route has `prepare`."""
    raise NotImplementedError("this route is prepared, not parsed")


class CommandRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route that changes the book.

    `parse` gets the request and what is always loaded (assets, counters); it returns a
    submission, a list of submissions (a list that is not atomic), or a reply. `render`
    gets the outcomes in order and the request. A hot route has no path parameters and is
    answered by the short way too. A route that must look into the store before it knows
    its command has `prepare` instead of `parse`: that runs in a reader's thread, what it
    saw may have changed by the decision, and such a route is never hot.
    """

    face: str
    method: str
    path: str
    parse: Callable[[Request, Standing], Parsed] = nothing_to_parse
    prepare: Callable[[Request, Store, Standing], Parsed] | None = None
    render: Callable[[list[Outcome], Request], Reply]
    documentation: Documentation
    is_hot: bool = False


class ReadRoute(msgspec.Struct, frozen=True, kw_only=True):
    """A route that only reads. `read` gets the request, the store and what is always loaded.

    An instant one touches no store and is answered without a reader's thread.
    """

    face: str
    method: str
    path: str
    read: Callable[[Request, Store, Standing], Reply]
    documentation: Documentation
    is_instant: bool = False


Route = CommandRoute | ReadRoute

"""The desk: between a parsed HTTP request and the book. Both ways of answering use it.

A command is parsed by its route, submitted, and rendered when its outcome is there; a
read runs in a reader's thread. Whatever goes wrong in a route of ours becomes a 500 with
a correlation id, and the trace goes to the log.
"""

import secrets
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from pennyweight.delivery.http.guard import Guard
from pennyweight.delivery.http.metrics import Metrics
from pennyweight.delivery.http.routes import (
    CommandRoute,
    Parsed,
    Patient,
    ReadRoute,
    Reply,
    Request,
)
from pennyweight.delivery.http.wire import RETRY, BadRequest, error_reply, problem, problem_of
from pennyweight.engine.engine import QueueFull, Submission
from pennyweight.engine.port import StoreUnavailable
from pennyweight.engine.receipts import Failure, Outcome, Unknown
from pennyweight.ledger.refusals import Refused
from pennyweight.runtime.book import Book
from pennyweight.runtime.driver import Unavailable

_QUEUE_FULL = "queue_full"
_STORE_AWAY = "the store does not answer; try again"

Done = Callable[[Reply], object]

log = structlog.get_logger(__name__)


class Desk:
    """Takes requests for one book."""

    def __init__(self, book: Book, guard: Guard, metrics: Metrics) -> None:
        """`guard` is asked by both ways before they read a body."""
        self.book = book
        self.guard = guard
        self.metrics = metrics

    def command(
        self,
        route: CommandRoute,
        request: Request,
        done: Done,
        ticket: Callable[[Outcome], object] | None = None,
        prepared: Parsed | None = None,
    ) -> Sequence[Submission]:
        """Have a command decided; `done` gets the reply, at once or later, in the caller's loop.

        A `ticket` gets the outcome of a single command instead, and calls `render` itself.
        `prepared` is what `prepare` returned, for a route that has it.
        Returns what was submitted: setting `is_dropped` takes it back while it waits.
        """
        try:
            parsed = prepared
            if parsed is None:
                parsed = route.parse(request, self.book.standing)
            if isinstance(parsed, Submission):
                parsed.ticket = ticket or _Single(self, route, request, done)
                try:
                    self.book.submit(parsed)
                except (QueueFull, Unavailable) as error:
                    if not isinstance(parsed, Patient) or not parsed.wait(self.book.submit, error):
                        raise
                return (parsed,)
            if isinstance(parsed, Reply):
                done(parsed)
                return ()
            return self._submit_many(route, request, parsed, done)
        except (BadRequest, Refused) as error:
            self.metrics.refusals[_code_of(error)] += 1
            done(error_reply(error))
        except QueueFull as error:
            done(self.turned_away(_QUEUE_FULL, str(error)))
        except Unavailable as error:
            done(self.turned_away(error.code, str(error)))
        except Exception as error:  # noqa: BLE001 - a fault of ours is answered with a 500
            done(self.failed(request, error))
        return ()

    def prepare(self, route: CommandRoute, request: Request) -> Parsed | None:
        """Look into the store for a command that needs it, in a reader's thread; None: it does not."""
        if route.prepare is None:
            return None
        try:
            return route.prepare(request, self.book.store, self.book.standing)
        except (BadRequest, Refused) as error:
            self.metrics.refusals[_code_of(error)] += 1
            return error_reply(error)
        except StoreUnavailable as error:
            return self.turned_away(error.code, _STORE_AWAY)
        except Exception as error:  # noqa: BLE001 - a fault of ours is answered with a 500
            return self.failed(request, error)

    def _submit_many(
        self, route: CommandRoute, request: Request, submissions: list[Submission], done: Done
    ) -> Sequence[Submission]:
        """Submit a list that is not atomic; what finds the queue full is Unknown for itself."""
        request.is_list = True
        together = _Many(self, route, request, done, len(submissions))
        for position, submission in enumerate(submissions):
            submission.ticket = partial(together.settle, position)
        for position, submission in enumerate(submissions):
            try:
                self.book.submit(submission)
            except (QueueFull, Unavailable) as error:
                if position == 0:
                    raise
                code = error.code if isinstance(error, Unavailable) else _QUEUE_FULL
                together.settle(position, Unknown(f"not accepted: {error}", code))
        if not submissions:
            together.finish()
        return submissions

    def render(self, route: CommandRoute, request: Request, outcomes: list[Outcome]) -> Reply:
        """Render outcomes; failures among them are logged under a correlation id."""
        try:
            for outcome in outcomes:
                if isinstance(outcome, Failure):
                    self._log(request, outcome.cause)
            return route.render(outcomes, request)
        except Exception as error:  # noqa: BLE001 - as above
            return self.failed(request, error)

    def read(self, route: ReadRoute, request: Request) -> Reply:
        """Answer a read, in a reader's thread."""
        try:
            return route.read(request, self.book.store, self.book.standing)
        except (BadRequest, Refused) as error:
            return error_reply(error)
        except StoreUnavailable as error:
            return self.turned_away(error.code, _STORE_AWAY)
        except Exception as error:  # noqa: BLE001 - as above
            return self.failed(request, error)

    def failed(self, request: Request, error: BaseException) -> Reply:
        """Log a fault of ours and return the 500 that names it."""
        self._log(request, error)
        return problem_of(Failure(error), request)

    def _log(self, request: Request, error: BaseException) -> None:
        request.correlation_id = request.correlation_id or secrets.token_hex(8)
        log.error(
            "a request failed",
            correlation_id=request.correlation_id,
            method=request.method,
            path=request.path,
            exc_info=error,
        )

    def turned_away(self, code: str, message: str) -> Reply:
        """Count and return the answer to what cannot be done now."""
        self.metrics.turned_away[code] += 1
        return problem(
            503,
            code,
            message,
            is_retryable=True,
            headers=RETRY,
        )


class _Single:
    """The ticket of one command."""

    __slots__ = ("_desk", "_done", "_request", "_route")

    def __init__(self, desk: Desk, route: CommandRoute, request: Request, done: Done) -> None:
        self._desk = desk
        self._route = route
        self._request = request
        self._done = done

    def __call__(self, outcome: Outcome) -> None:
        self._done(self._desk.render(self._route, self._request, [outcome]))


class _Many:
    """Collects the outcomes of a list, in order."""

    def __init__(
        self, desk: Desk, route: CommandRoute, request: Request, done: Done, count: int
    ) -> None:
        self._desk = desk
        self._route = route
        self._request = request
        self._done = done
        self._outcomes: list[Outcome] = [Unknown("not decided")] * count
        self._missing = count

    def settle(self, position: int, outcome: Outcome) -> None:
        self._outcomes[position] = outcome
        self._missing -= 1
        if not self._missing:
            self.finish()

    def finish(self) -> None:
        self._done(self._desk.render(self._route, self._request, self._outcomes))


def _code_of(error: BadRequest | Refused) -> str:
    return error.reason.code if isinstance(error, Refused) else error.code

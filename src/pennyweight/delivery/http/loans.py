"""The loans face: what a bank's client service asks, and what a desk looks at.

`POST /loan-applications` and `POST /collateral-top-ups` are hot. They are accepted (202)
once they are in the book; activation, warning and liquidation follow from prices, without
a caller. The `requestId` is the idempotency key. Unknown fields are ignored, errors are
problem documents. Two dialects differ in the fields that are known, and in the status of
a borrower who is not the loan's.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from pennyweight.delivery.http import loans_examples as examples
from pennyweight.delivery.http.loans_list import (
    STATUSES,
    check_cursor,
    complete_list,
    pages,
    records,
    status_in,
)
from pennyweight.delivery.http.loans_proof import prove
from pennyweight.delivery.http.loans_shapes import (
    Accepted,
    ApplicationBody,
    LaterApplicationBody,
    LaterTopUpBody,
    LevelBody,
    LevelSet,
    LiquidationProof,
    LoanDetail,
    LoanShown,
    LoansShown,
    Pushed,
    TopUpBody,
    level_decoder,
    request_decoder,
)
from pennyweight.delivery.http.loans_timed import Timed
from pennyweight.delivery.http.loans_view import show_detail, show_loan, version_in
from pennyweight.delivery.http.routes import (
    PROBLEM,
    CommandRoute,
    Documentation,
    ReadRoute,
    Reply,
    Request,
    Route,
)
from pennyweight.delivery.http.wire import (
    RETRY,
    BadRequest,
    deadline_of,
    decoder,
    encode,
    key_of,
    limit_of,
    not_found,
    number_in_query,
    outcome_problem,
    problem,
    read,
    receipt_headers,
)
from pennyweight.engine.engine import QueueFull, Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.commands import Command
from pennyweight.ledger.money import canonical
from pennyweight.ledger.refusals import Reason
from pennyweight.products.loans import PRODUCT
from pennyweight.products.loans.apply import ApplyForLoan, TopUpCollateral
from pennyweight.products.loans.life import CONTROLS, Controls, SetLiquidations
from pennyweight.products.loans.shared import (
    LOAN,
    Loan,
    LoanAnswer,
    Market,
    Quote,
    read_loan,
)
from pennyweight.runtime.driver import Unavailable

FACE = PRODUCT

DESK = "loan-desk"
"""Face of what the lender's own desk alone may do. It cannot be opened to callers without a
key, as `loans` can for a bank's client service that has none."""

Dialect = Literal["seed", "later"]

ANSWER_SECONDS = 1.8
"""After so long without a commit the bank hears that nobody knows; it waits no longer than 2.5 s."""

_MARKETS: dict[str, Market] = {"mos-espa": "mos_espa", "black-spire": "black_spire"}
_NO_PRICES: dict[str, Any] = {"markets": {}, "best": [], "is_deviating": False}


class LoansDesk(Protocol):
    """What a process knows of prices, its own or as the owner of the book tells them."""

    def prices(self) -> dict[str, Any] | None:
        """Return the state of both markets as plain values, None if nothing is known."""

    def quotes(self) -> tuple[Quote, ...]:
        """Return the fresh quotes, none if there are none that count."""

    def push(self, market: Market, body: bytes) -> str:
        """Take a market's message as from its queue; what became of it.

        Raises Unavailable where the book is not owned here, QueueFull.
        """


# ── parsing and problems, by dialect ──────────────────────────────────────────────


class LoansFace:
    """The parsers, renderers and readers of one dialect."""

    def __init__(
        self,
        dialect: Dialect,
        desk: LoansDesk | None,
        *,
        is_push_open: bool,
        answer_seconds: float,
    ) -> None:
        """See `routes`."""
        is_later = dialect == "later"
        self.application: type[ApplicationBody] = (
            LaterApplicationBody if is_later else ApplicationBody
        )
        self.top_up: type[TopUpBody] = LaterTopUpBody if is_later else TopUpBody
        self.statuses = {
            Reason.KEY_REUSED: 409,
            Reason.BORROWER_MISMATCH: 400 if is_later else 403,
        }
        self._application_decoder = decoder(self.application)
        self._top_up_decoder = decoder(self.top_up)
        self._desk = desk
        self._is_push_open = is_push_open
        self._answer_seconds = answer_seconds

    # commands

    def parse_application(self, request: Request, _: Standing) -> Submission:
        """POST /loan-applications."""
        body = read(self._application_decoder, request.body)
        collateral = ""
        if isinstance(body, LaterApplicationBody) and body.collateral_amount is not msgspec.UNSET:
            collateral = canonical(body.collateral_amount)
        command = ApplyForLoan(body.loan_id, body.borrower_id, canonical(body.amount), collateral)
        return self._timed(command, request, body)

    def parse_top_up(self, request: Request, _: Standing) -> Submission:
        """POST /collateral-top-ups."""
        body = read(self._top_up_decoder, request.body)
        command = TopUpCollateral(body.loan_id, body.borrower_id, canonical(body.amount))
        return self._timed(command, request, body)

    def _timed(
        self, command: Command, request: Request, body: ApplicationBody | TopUpBody
    ) -> Submission:
        """Return a command under its request's id. Raises BadRequest."""
        return Timed(
            command,
            key=key_of(request, body.request_id),
            not_after=deadline_of(request, body.not_after),
            seconds=self._answer_seconds,
        )

    def render_accepted(self, outcomes: list[Outcome], request: Request) -> Reply:
        """Answer what was booked; a replay has the first answer again."""
        outcome = outcomes[0]
        if outcome.__class__ is not Receipt:
            return self._problem(outcome, request)
        answer: LoanAnswer = outcome.answer
        named = request_decoder.decode(request.body)
        shown = Accepted(named.request_id, answer.loan, answer.status)
        return Reply(202, encode(shown), receipt_headers(outcome))

    def parse_level(self, request: Request, _: Standing) -> Submission:
        """POST /operations/liquidations."""
        body: LevelBody = read(level_decoder, request.body)
        return Submission(
            SetLiquidations(body.level),
            key=key_of(request, body.idempotency_key),
            not_after=deadline_of(request, body.not_after),
        )

    def render_level(self, outcomes: list[Outcome], request: Request) -> Reply:
        """Answer the level as it is set now."""
        outcome = outcomes[0]
        if not isinstance(outcome, Receipt):
            return self._problem(outcome, request)
        return Reply(200, encode(LevelSet(outcome.answer.level)), receipt_headers(outcome))

    def _problem(self, outcome: Outcome, request: Request) -> Reply:
        """Return an outcome that is no receipt, with this face's status."""
        if isinstance(outcome, Receipt):
            raise TypeError("a receipt is no problem")
        document = outcome_problem(outcome, request)
        if isinstance(outcome, Refusal):
            document.status = self.statuses.get(outcome.reason, document.status)
        headers = RETRY if isinstance(outcome, Unknown) else ()
        return Reply(document.status, encode(document), headers, PROBLEM)

    # reads

    def list_loans(self, request: Request, store: Store, _: Standing) -> Reply:
        """GET /loans: all of them, or a page where a limit or a cursor is given."""
        status, borrower = status_in(request), request.query.get("borrower")
        if borrower is not None:
            user_holder(borrower)
        cursor = request.query.get("cursor")
        quotes = self._quotes()
        if cursor is None and "limit" not in request.query:
            return complete_list(pages(store, quotes, status, borrower))
        if cursor is not None:
            check_cursor(cursor)
        limit = limit_of(request)
        found: list[LoanShown] = []
        for record in records(store, status, borrower, cursor or ""):
            if len(found) == limit:
                return Reply(200, encode(LoansShown(found, found[-1].loan_id)))
            found.append(show_loan(record.id, read_loan(record), quotes))
        return Reply(200, encode(LoansShown(found, None)))

    def get_loan(self, request: Request, store: Store, _: Standing) -> Reply:
        """GET /loans/{loanId}."""
        loan_id, loan = _find(request, store)
        limit = limit_of(request)
        history_from = number_in_query(request, "cursor")
        if history_from is None:
            history_from = loan.entry
        elif version_in(store, loan_id, history_from) is None:
            raise BadRequest("cursor_invalid", "cursor is no cursor of this loan")
        shown = show_detail(
            store, loan_id, loan, self._quotes(), history_from=history_from, limit=limit
        )
        return Reply(200, encode(shown))

    def get_proof(self, request: Request, store: Store, _: Standing) -> Reply:
        """GET /loans/{loanId}/proof."""
        loan_id, loan = _find(request, store)
        after, limit = number_in_query(request, "cursor") or 0, limit_of(request)
        if loan.status not in {"liquidating", "liquidated"}:
            raise BadRequest(
                "loan_not_liquidated",
                f"this loan is {loan.status}; there is no sale to prove",
                status=409,
            )
        return Reply(200, encode(prove(store, loan_id, loan, after=after, limit=limit)))

    def get_level(self, _: Request, store: Store, __: Standing) -> Reply:
        """GET /operations/liquidations."""
        record = store.record(CONTROLS, "all")
        controls = Controls() if record is None else record.read(Controls)
        return Reply(200, encode(LevelSet(controls.level)))

    # prices

    def get_prices(self, _: Request, __: Store, ___: Standing) -> Reply:
        """GET /prices; where nothing is known, of no market."""
        prices = None if self._desk is None else self._desk.prices()
        return Reply(200, encode(_NO_PRICES if prices is None else prices))

    def push_price(self, request: Request, _: Store, __: Standing) -> Reply:
        """POST /prices/{market}."""
        name = request.params["market"]
        market = _MARKETS.get(name)
        if market is None:
            not_found("market_not_found", f"there is no market {name[:80]!r}")
        if self._desk is None or not self._is_push_open:
            raise BadRequest(
                "price_push_closed", "prices come from the markets' streams alone", status=403
            )
        try:
            result = self._desk.push(market, request.body)
        except (QueueFull, Unavailable) as error:
            code = error.code if isinstance(error, Unavailable) else "queue_full"
            return problem(503, code, str(error), is_retryable=True, headers=RETRY)
        return Reply(202, encode(Pushed(result)))

    def _quotes(self) -> tuple[Quote, ...]:
        return () if self._desk is None else self._desk.quotes()


# ── one loan ────────────────────────────────────────────────────────────────────────


def _find(request: Request, store: Store) -> tuple[str, Loan]:
    """Return the loan that the path names. Raises BadRequest."""
    loan_id = request.params["loanId"]
    record = store.record(LOAN, loan_id)
    if record is None:
        not_found("loan_not_found", f"there is no loan {loan_id[:80]!r}")
    return loan_id, read_loan(record)


# ── the table ─────────────────────────────────────────────────────────────────────

_NO_LOAN = "There is no such loan."
_UNKNOWN = (
    "Nobody knows yet whether it is booked, or it cannot be taken now: ask again with the same "
    "`requestId`."
)
_REUSED = "The key belongs to another request (`key_reused`)"
_PAGING = {
    "limit": "How many, 1 to 1000; 100 if not given.",
    "cursor": "The `next_cursor` of the page before.",
}


def routes(
    dialect: Dialect,
    loans: LoansDesk | None,
    *,
    is_push_open: bool = False,
    answer_seconds: float = ANSWER_SECONDS,
) -> list[Route]:
    """Return the routes of the loans face in one of its two dialects.

    `loans` knows of prices; None: nobody here does. `is_push_open` lets prices be pushed.
    """
    face = LoansFace(dialect, loans, is_push_open=is_push_open, answer_seconds=answer_seconds)
    return [*_request_routes(face), *_loan_routes(face), *_desk_routes(face)]


def _command(
    path: str,
    parse: Callable[[Request, Standing], Submission],
    render: Callable[[list[Outcome], Request], Reply],
    *,
    of: str = FACE,
    is_hot: bool = False,
    **documentation: Any,
) -> CommandRoute:
    return CommandRoute(
        face=of,
        method="POST",
        path=path,
        parse=parse,
        render=render,
        documentation=Documentation(**documentation),
        is_hot=is_hot,
    )


def _reading(
    method: str,
    path: str,
    function: Callable[[Request, Store, Standing], Reply],
    *,
    of: str = FACE,
    is_instant: bool = False,
    **documentation: Any,
) -> ReadRoute:
    return ReadRoute(
        face=of,
        method=method,
        path=path,
        read=function,
        documentation=Documentation(**documentation),
        is_instant=is_instant,
    )


def _request_routes(face: LoansFace) -> list[Route]:
    is_later = face.application is LaterApplicationBody
    mismatch = face.statuses[Reason.BORROWER_MISMATCH]
    not_theirs = "The loan belongs to another borrower (`borrower_mismatch`)"
    bad = "The request can never succeed as written"
    errors = {
        400: f"{not_theirs}, or the request can never succeed." if mismatch == 400 else f"{bad}.",
        404: _NO_LOAN,
        409: f"A liquidation has begun or ended (`loan_liquidating`, `loan_liquidated`). {_REUSED}.",
        503: _UNKNOWN,
    }
    if mismatch != 400:
        errors[403] = f"{not_theirs}, or the key's scopes do not cover this."
    return [
        _command(
            "/loan-applications",
            face.parse_application,
            face.render_accepted,
            is_hot=True,
            summary="Register a loan",
            description=(
                "Answered once it is in the book. It becomes active, and is paid out, when its "
                "collateral is worth twice the amount. The same request again gets the first "
                "answer again. Amounts are strings; exponents are read."
            ),
            request=face.application,
            request_example=examples.LATER_APPLICATION if is_later else examples.APPLICATION,
            answer=Accepted,
            status=202,
            answer_example={"requestId": "r-1", "loanId": "L-1", "status": "new"},
            errors={
                400: f"{bad}.",
                409: f"There is a loan of that id (`loan_exists`). {_REUSED}.",
                503: _UNKNOWN,
            },
        ),
        _command(
            "/collateral-top-ups",
            face.parse_top_up,
            face.render_accepted,
            is_hot=True,
            summary="Post collateral for a loan",
            description=(
                "It is held on the borrower's BESKAR account. Once a liquidation has begun "
                "nothing can be posted any more, and nothing is booked."
            ),
            request=face.top_up,
            request_example=examples.LATER_TOP_UP if is_later else examples.TOP_UP,
            answer=Accepted,
            status=202,
            answer_example={"requestId": "r-2", "loanId": "L-1", "status": "new"},
            errors=errors,
        ),
    ]


def _loan_routes(face: LoansFace) -> list[Route]:
    return [
        _reading(
            "GET",
            "/loans",
            face.list_loans,
            summary="All loans, by id",
            description=(
                "Without `limit` and `cursor` the complete list, as of one moment unless a "
                "`status` is asked for, streamed when long. With either, a page, and `next_cursor`."
            ),
            answer=LoansShown,
            answer_example={"loans": [examples.LOAN]},
            parameters={
                "status": f"Only those that are: {', '.join(STATUSES)}.",
                "borrower": "Only this borrower's.",
                **_PAGING,
            },
        ),
        _reading(
            "GET",
            "/loans/{loanId}",
            face.get_loan,
            summary="One loan: how it stands, what would be sold now, and its history",
            description="The history is paged, newest first; `limit` and `cursor` are its own.",
            answer=LoanDetail,
            answer_example=examples.DETAIL,
            parameters=_PAGING,
            errors={404: _NO_LOAN},
        ),
        _reading(
            "GET",
            "/loans/{loanId}/proof",
            face.get_proof,
            summary="Why a liquidation sold just enough: quotes, slices and fills",
            description=(
                "Re-computed from the journal. Of a liquidation under way, what there is so far. "
                "Placings are paged, oldest first."
            ),
            answer=LiquidationProof,
            answer_example=examples.PROOF,
            parameters=_PAGING,
            errors={404: _NO_LOAN, 409: "No liquidation has begun (`loan_not_liquidated`)."},
        ),
    ]


def _desk_routes(face: LoansFace) -> list[Route]:
    not_owned = "This process does not own the book, or cannot take it now."
    return [
        _reading(
            "GET",
            "/prices",
            face.get_prices,
            is_instant=True,
            summary="What both markets quote, how old that is, and the best price of each size",
            answer=dict[str, Any],
            description="`markets` is empty where nobody follows prices, or the owner has told nothing yet.",
            answer_example=examples.PRICES,
        ),
        _reading(
            "POST",
            "/prices/{market}",
            face.push_price,
            of=DESK,
            summary="Push a market's message, as its stream would bring it",
            description=(
                "`market` is mos-espa or black-spire, the body that market's own message, bare or "
                "wrapped. Only where `loans.is_push_open` says so. `result` tells what became of "
                "it: `accepted`, or why it was left out (`ignored`: another item; `rejected`: no "
                "price, kept in the journal; `duplicate`, `out_of_order`, `jump`, `stale`)."
            ),
            request=dict[str, Any],
            request_example=examples.MESSAGE,
            answer=Pushed,
            status=202,
            answer_example={"result": "accepted"},
            errors={
                403: "Prices cannot be pushed here (`price_push_closed`), or the key's scopes "
                "do not cover this.",
                404: "There is no such market.",
                413: "The body is too large.",
                503: not_owned,
            },
        ),
        _reading(
            "GET",
            "/operations/liquidations",
            face.get_level,
            of=DESK,
            summary="How far liquidations are paused",
            answer=LevelSet,
            answer_example={"level": "normal"},
        ),
        _command(
            "/operations/liquidations",
            face.parse_level,
            face.render_level,
            of=DESK,
            summary="Pause new liquidations, and activations if so wanted",
            description=(
                "`no_new`: no liquidation begins. `halt_new_and_activation`: no loan becomes "
                "active either. A liquidation that has begun goes on at every level."
            ),
            request=LevelBody,
            request_example={"level": "no_new"},
            answer=LevelSet,
            answer_example={"level": "no_new"},
            errors={409: f"{_REUSED}, or the deadline has passed."},
        ),
    ]

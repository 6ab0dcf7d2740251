"""The portfolios face: targets, the provider's updates, the transactions that bring a portfolio back.

`POST /rebalance` is hot; with `?mode=async` it is queued, and answers at once where to ask
later. Unknown fields are ignored, but not inside a policy. Percentages are JSON numbers.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from pennyweight.delivery.http import portfolios_examples as examples
from pennyweight.delivery.http.portfolios_shapes import (
    ExecutedBody,
    FillBody,
    NewPolicyBody,
    OwnersBody,
    PoliciesPage,
    PolicySet,
    PortfoliosPage,
    PreviewShown,
    RunExecuted,
    RunExecutedBody,
    RunShown,
    RunsPage,
    TargetBody,
    TargetShown,
    TransactionExecuted,
    TransactionsPage,
    UpdateQueued,
    UpdateShown,
    executed_decoder,
    policy_decoder,
    run_executed_decoder,
    target_decoder,
    update_decoder,
)
from pennyweight.delivery.http.portfolios_view import (
    figures_of,
    get_portfolio,
    get_run,
    get_update,
    list_policies,
    list_portfolios,
    list_runs,
    list_transactions,
    run_in_path,
    run_of,
    transaction_of,
)
from pennyweight.delivery.http.routes import (
    CommandRoute,
    Documentation,
    ReadRoute,
    Reply,
    Request,
    Route,
)
from pennyweight.delivery.http.wire import (
    BadRequest,
    deadline_of,
    encode,
    key_of,
    not_found,
    problem,
    problem_of,
    receipt_headers,
    rfc3339,
)
from pennyweight.delivery.http.withdrawals_shapes import Carried
from pennyweight.delivery.portfolios import (
    UNSET,
    Incomplete,
    PostedUpdate,
    by_name,
    check_key,
    one_of,
    policy_of,
    read_weights,
    update_of,
    user_in,
)
from pennyweight.delivery.portfolios_shown import (
    PortfolioShown,
    TransactionShown,
    executions_of,
    numbers,
    proposed,
    shown_plan,
    shown_transactions,
    told_again,
)
from pennyweight.engine.engine import Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.engine.whatif import WhatIf
from pennyweight.ledger.commands import Command
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.portfolios import PRODUCT
from pennyweight.products.portfolios.execute import ExecuteTransactions, ExecutionAnswer, Fill
from pennyweight.products.portfolios.queue import QueueUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import (
    ChangeTarget,
    CreatePortfolio,
    SetPolicy,
    SetupAnswer,
)
from pennyweight.products.portfolios.shared import (
    LINES_MAX,
    QueuedAnswer,
    RunAnswer,
    transaction_id,
)
from pennyweight.runtime.clock import wall_clock

FACE = PRODUCT

DESK = "portfolio-desk"
"""Face of what books money: that transactions were executed. It cannot be opened to callers
without a key, and a provider's key need not have it."""

MODES = ("sync", "async")
RUN_HEADER = "Rebalance-Run"
"""Names the run whose transactions a list holds, also where the list is empty."""


# ── portfolios ────────────────────────────────────────────────────────────────────


def _key(request: Request, body: Carried | OwnersBody | PostedUpdate) -> str:
    """Return a caller's key, "" for none; none that an update could have. Raises BadRequest."""
    key = key_of(request, body.idempotency_key)
    if key:
        check_key(key)
    return key


def _submission(command: Command, request: Request, body: Carried | OwnersBody) -> Submission:
    """Return a command under the request's key and deadline. Raises BadRequest."""
    return Submission(
        command, key=_key(request, body), not_after=deadline_of(request, body.not_after)
    )


def _target_of(body: TargetBody) -> dict[str, str]:
    """Return the percentages under either of their names. Raises BadRequest."""
    allocation = one_of("allocation", body.allocation, body.allocation_too)
    if allocation is UNSET:
        raise Incomplete("allocation is missing")
    return by_name(allocation)


def _parse_create(request: Request, _: Standing) -> Submission:
    body = read_weights(target_decoder, request.body)
    policy = None if body.policy is None else policy_of(body.policy)
    return _submission(CreatePortfolio(user_in(body), _target_of(body), policy), request, body)


def _parse_change(request: Request, _: Standing) -> Submission:
    body = read_weights(target_decoder, request.body)
    if body.policy is not None:
        raise Incomplete("PUT /portfolio/policy changes the policy; here it would change nothing")
    return _submission(ChangeTarget(user_in(body), _target_of(body)), request, body)


def _render_target(outcomes: list[Outcome], request: Request) -> Reply:
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    answer: SetupAnswer = outcome.answer
    shown = TargetShown(answer.user, numbers(answer.target), answer.policy_version or UNSET)
    status = 201 if answer.result == "created" else 200
    return Reply(status, encode(shown), receipt_headers(outcome))


def _parse_policy(request: Request, _: Standing) -> Submission:
    body = read_weights(policy_decoder, request.body)
    if isinstance(body.policy, msgspec.UnsetType):
        raise Incomplete("policy is missing; null lets every drift be traded")
    policy = None if body.policy is None else policy_of(body.policy)
    return _submission(SetPolicy(user_in(body), policy), request, body)


def _render_policy(outcomes: list[Outcome], request: Request) -> Reply:
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    answer: SetupAnswer = outcome.answer
    shown = PolicySet(answer.user, answer.policy_version)
    return Reply(200, encode(shown), receipt_headers(outcome))


# ── updates ───────────────────────────────────────────────────────────────────────


def _parse_update(request: Request, _: Standing) -> Submission:
    body = read_weights(update_decoder, request.body)
    update = update_of(body)
    return Submission(
        QueueUpdate(update) if _is_async(request) else update,
        key=_key_of_update(update, request, body),
        not_after=deadline_of(request, body.not_after),
    )


def _is_async(request: Request) -> bool:
    """Whether an update is to be queued. Raises BadRequest."""
    mode = request.query.get("mode", "sync") if request.query else "sync"
    if mode not in MODES:
        raise BadRequest("mode_invalid", f"mode is one of {', '.join(MODES)}")
    return mode == "async"


def _key_of_update(update: Rebalance, request: Request, body: PostedUpdate) -> str:
    """Return the key of an update: of its request id, else the request's. Raises BadRequest."""
    key = _key(request, body)
    if key and update.request_id and key != update.request_id:
        raise BadRequest(
            "idempotency_key_ambiguous", "the idempotency key and the request_id differ"
        )
    return update.key or key


def _render_update(outcomes: list[Outcome], request: Request) -> Reply:
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    headers = receipt_headers(outcome)
    answer: RunAnswer | QueuedAnswer = outcome.answer
    if isinstance(answer, QueuedAnswer):
        href = f"/rebalance-updates/{answer.number}"
        queued = UpdateQueued(answer.number, "queued", href)
        return Reply(202, encode(queued), (("Location", href), *headers))
    if answer.result == "outdated":
        return _outdated(answer, headers)
    body = encode(shown_transactions(answer, told_again(answer) if answer.executed else proposed))
    return Reply(200, body, ((RUN_HEADER, str(answer.run)), *headers))


def _outdated(answer: RunAnswer, headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    """Answer an update that is older than what is known."""
    as_of = rfc3339(answer.as_of)
    return problem(
        409,
        "update_outdated",
        f"the portfolio is known as of {as_of}; nothing was changed",
        figures={"as_of": as_of},
        headers=headers,
    )


def _previewer(clock: Callable[[], int]) -> Callable[[Request, Store, Standing], Reply]:
    """Return the `read` of POST /rebalance/preview."""

    def preview(request: Request, store: Store, standing: Standing) -> Reply:
        body = read_weights(update_decoder, request.body)
        update = update_of(body)
        _key_of_update(update, request, body)
        draft = Draft(WhatIf(store, standing, clock()), PRODUCT)
        not_after = deadline_of(request, body.not_after)
        if not_after is not None and draft.time > not_after:
            refuse(Reason.NOT_AFTER_PASSED, "the update's deadline has passed")
        answer = update.preview(draft)
        if answer.result == "outdated":
            return _outdated(answer)
        shown = PreviewShown(
            result=answer.result, transactions=shown_plan(answer), **figures_of(answer)
        )
        return Reply(200, encode(shown))

    return preview


# ── what was executed ─────────────────────────────────────────────────────────────


def _prepare_one(request: Request, store: Store, _: Standing) -> Submission:
    body = read_weights(executed_decoder, request.body.strip() or b"{}")
    name = request.params["id"]
    place = transaction_of(name)
    answer = None if place is None else run_of(place[0], store)
    if place is None or answer is None or place[1] > len(answer.trades):
        not_found("transaction_not_found", f"there is no transaction {name[:80]!r}")
    fill = _fill(place[1], body, answer)
    return _submission(ExecuteTransactions(answer.user, answer.run, (fill,)), request, body)


def _fill(position: int, body: ExecutedBody | FillBody, answer: RunAnswer) -> Fill:
    """Return a transaction as it was carried out. Raises BadRequest."""
    quantity, amount = body.quantity, body.amount
    currency = body.currency or answer.currency
    if quantity is None and amount is None and not body.currency:
        return Fill(position)
    if quantity is None or amount is None or not currency:
        raise Incomplete("quantity, amount and currency: all of them, or none")
    return Fill(position, quantity, amount, currency)


def _prepare_run(request: Request, store: Store, _: Standing) -> Submission:
    body = read_weights(run_executed_decoder, request.body.strip() or b"{}")
    answer = run_in_path(request, store)
    fills = _all_fills(answer, store) if body.fills is None else _told_fills(body.fills, answer)
    return _submission(ExecuteTransactions(answer.user, answer.run, fills), request, body)


def _all_fills(answer: RunAnswer, store: Store) -> tuple[Fill, ...]:
    """Return all transactions of a run; those that are executed already, as they were."""
    executed = executions_of(answer.run, store)
    return tuple(
        executed[position].fill if position in executed else Fill(position)
        for position in range(1, len(answer.trades) + 1)
    )


def _told_fills(bodies: list[FillBody], answer: RunAnswer) -> tuple[Fill, ...]:
    """Return the transactions that a body names. Raises BadRequest."""
    if not 0 < len(bodies) <= LINES_MAX:
        raise Incomplete(f"fills are from 1 to {LINES_MAX}")
    fills: dict[int, Fill] = {}
    for body in bodies:
        place = transaction_of(body.id)
        if place is None or place[0] != answer.run:
            not_found(
                "transaction_not_found", f"run {answer.run} has no transaction {body.id[:80]!r}"
            )
        if place[1] in fills:
            raise Incomplete(f"transaction {body.id} is there twice")
        fills[place[1]] = _fill(place[1], body, answer)
    return tuple(fills.values())


def _render_one(outcomes: list[Outcome], request: Request) -> Reply:
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    answer: ExecutionAnswer = outcome.answer
    name = transaction_id(answer.run, answer.executed[0])
    shown = TransactionExecuted(name, answer.user, "executed")
    return Reply(200, encode(shown), receipt_headers(outcome))


def _render_run(outcomes: list[Outcome], request: Request) -> Reply:
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    answer: ExecutionAnswer = outcome.answer
    executed = [transaction_id(answer.run, position) for position in answer.executed]
    shown = RunExecuted(answer.run, answer.user, executed)
    return Reply(200, encode(shown), receipt_headers(outcome))


# ── the table ─────────────────────────────────────────────────────────────────────

_WHOSE = {"user_id": "Whose; needed. `userId`, `UserID`, `id` and `ID` mean the same."}
_PAGING = {
    "limit": "How many, 1 to 1000; 100 if not given.",
    "cursor": "The `next_cursor` of the page before.",
}
_NO_PORTFOLIO = "The user has no portfolio."
_NO_RUN = "There is no such run."
_NO_TRANSACTION = "There is no such transaction."
_EXECUTED = "It was executed already, and told otherwise, or an account is closed."
_BAD_UPDATE = (
    "It cannot be read, the percentages do not add up to 100 give or take 0.01, a holding or a "
    "name is none, or `as_of` lies more than a minute ahead."
)
_NAMES = (
    "`userId`, `UserID`, `id` and `ID` mean `user_id`, and ids may be numbers; percentages are "
    "numbers or text, and are read digit by digit."
)


def routes(*, clock: Callable[[], int] = wall_clock) -> list[Route]:
    """Return the routes of the portfolios face; `clock` is for what a preview would answer."""
    return [*_portfolio_routes(), *_update_routes(clock), *_run_routes()]


def _command(
    method: str,
    path: str,
    render: Callable[[list[Outcome], Request], Reply],
    documentation: Documentation,
    *,
    of: str = FACE,
    **more: Any,
) -> CommandRoute:
    """Return a route that changes the book; `more` has `parse` or `prepare`."""
    return CommandRoute(
        face=of, method=method, path=path, render=render, documentation=documentation, **more
    )


def _reading(
    path: str,
    function: Callable[[Request, Store, Standing], Reply],
    documentation: Documentation,
    *,
    method: str = "GET",
) -> ReadRoute:
    return ReadRoute(
        face=FACE, method=method, path=path, read=function, documentation=documentation
    )


def _portfolio_routes() -> list[Route]:
    return [
        _command(
            "POST",
            "/portfolio",
            _render_target,
            Documentation(
                summary="Register a user's portfolio with the allocation that is to be kept",
                description=(
                    "Percentages add up to 100 give or take 10^-9. The same again is answered with "
                    f"200 and changes nothing; another one is a conflict. {_NAMES}"
                ),
                request=TargetBody,
                request_example=examples.TARGET,
                answer=TargetShown,
                answer_example=examples.TARGET,
                status=201,
                errors={
                    200: "The portfolio is there already, and alike.",
                    400: "The percentages are none or do not add up, or the policy is none.",
                    409: "The user has another portfolio already.",
                },
            ),
            parse=_parse_create,
            is_hot=True,
        ),
        _command(
            "PUT",
            "/portfolio",
            _render_target,
            Documentation(
                summary="Change the allocation that is to be kept",
                description="Nothing is traded until the next update.",
                request=TargetBody,
                request_example=examples.TARGET,
                answer=TargetShown,
                answer_example=examples.TARGET,
                errors={404: _NO_PORTFOLIO},
            ),
            parse=_parse_change,
        ),
        _reading(
            "/portfolio",
            get_portfolio,
            Documentation(
                summary="A user's portfolio: its target, what it has become, and the drift",
                answer=PortfolioShown,
                answer_example=examples.PORTFOLIO,
                parameters=_WHOSE,
                errors={404: _NO_PORTFOLIO},
            ),
        ),
        _reading(
            "/portfolios",
            list_portfolios,
            Documentation(
                summary="All portfolios, by user id",
                answer=PortfoliosPage,
                answer_example={"data": [examples.PORTFOLIO], "next_cursor": None},
                parameters=_PAGING,
            ),
        ),
        _command(
            "PUT",
            "/portfolio/policy",
            _render_policy,
            Documentation(
                summary="Say when a portfolio is rebalanced, and how",
                description=(
                    "The policy as a whole, as its next version; null lets every drift be traded, "
                    "to the target. All numbers are points of the portfolio, `relative` ones "
                    "percent of the target. Every bound is inclusive: what reaches it is traded. "
                    "A field that is not known is refused."
                ),
                request=NewPolicyBody,
                request_example={"user_id": "1", "policy": examples.POLICY},
                answer=PolicySet,
                answer_example={"user_id": "1", "policy_version": 1},
                errors={
                    400: "The policy has an unknown field, or one that is out of range.",
                    404: _NO_PORTFOLIO,
                },
            ),
            parse=_parse_policy,
        ),
        _reading(
            "/portfolio/policies",
            list_policies,
            Documentation(
                summary="All versions of a user's policy, from the first one on",
                answer=PoliciesPage,
                answer_example={"data": [examples.VERSION], "next_cursor": None},
                parameters={**_WHOSE, **_PAGING},
                errors={404: _NO_PORTFOLIO},
            ),
        ),
    ]


def _update_routes(clock: Callable[[], int]) -> list[Route]:
    return [
        _command(
            "POST",
            "/rebalance",
            _render_update,
            Documentation(
                summary="Take what a portfolio has become, and work out what brings it back",
                description=(
                    "Answers the transactions: sales before purchases, by drift, then by name; "
                    "none where nothing is to be done. What is sold is what is bought, to the "
                    "last of ten decimals. The target stays. An asset that is missing has 0. "
                    "`request_id` is the idempotency key, else the Idempotency-Key; without "
                    "either, and without `as_of`, an update equal to the latest repeats it, with "
                    "the same transactions, until these are executed. An update as of an earlier "
                    "time than the newest is outdated. The header `Rebalance-Run` names the run. "
                    "With `mode=async` the update is queued and answered with 202, and "
                    "`Location` says where to ask; so is, under its `request_id`, one that was "
                    f"queued before and comes again without. {_NAMES}"
                ),
                request=PostedUpdate,
                request_example=examples.UPDATE,
                answer=list[TransactionShown],
                answer_example=examples.TRANSACTIONS,
                accepted=UpdateQueued,
                accepted_example=examples.UPDATE_QUEUED,
                parameters={"mode": "`async` queues the update; `sync` does not."},
                errors={
                    202: "The update is queued (mode=async), or was.",
                    400: _BAD_UPDATE,
                    404: _NO_PORTFOLIO,
                    409: "It is outdated (`update_outdated`, with the newest `as_of`).",
                },
            ),
            parse=_parse_update,
            is_hot=True,
        ),
        _reading(
            "/rebalance/preview",
            _previewer(clock),
            Documentation(
                summary="What an update would lead to now; nothing is saved",
                description=(
                    "With the assets that would not be traded, each with its reason. As under a "
                    "key that is free: a key is looked at, but not whether it was used before."
                ),
                request=PostedUpdate,
                request_example=examples.UPDATE,
                answer=PreviewShown,
                answer_example=examples.PREVIEW,
                errors={
                    400: _BAD_UPDATE,
                    404: _NO_PORTFOLIO,
                    409: "It would be outdated, or the deadline has passed.",
                    413: "The body is too large.",
                },
            ),
            method="POST",
        ),
        _reading(
            "/rebalance-updates/{id}",
            get_update,
            Documentation(
                summary="A queued update, and what became of it",
                answer=UpdateShown,
                answer_example=examples.UPDATE_DONE,
                errors={404: "No such update was queued."},
            ),
        ),
    ]


def _run_routes() -> list[Route]:
    return [
        _reading(
            "/rebalance-transactions",
            list_transactions,
            Documentation(
                summary="A user's transactions, the newest first, and what became of each",
                description=(
                    "`proposed` until it is executed, or `superseded` by a later run, also by one "
                    "without transactions."
                ),
                answer=TransactionsPage,
                answer_example={"transactions": examples.TRANSACTIONS, "next_cursor": None},
                parameters={**_WHOSE, **_PAGING},
                errors={404: _NO_PORTFOLIO},
            ),
        ),
        _command(
            "POST",
            "/rebalance-transactions/{id}/executed",
            _render_one,
            Documentation(
                summary="Tell that a transaction was carried out",
                description=(
                    "With quantity and amount, both are posted between the user's accounts and "
                    "the market's. The same again has no second effect."
                ),
                request=ExecutedBody,
                request_example={"quantity": "2.5", "amount": "1000", "currency": "USD"},
                answer=TransactionExecuted,
                answer_example={"id": "12-1", "user_id": "1", "status": "executed"},
                errors={404: _NO_TRANSACTION, 409: _EXECUTED},
            ),
            of=DESK,
            prepare=_prepare_one,
        ),
        _reading(
            "/rebalances",
            list_runs,
            Documentation(
                summary="A user's runs, newest first, also those without transactions",
                answer=RunsPage,
                answer_example={"data": [examples.RUN_LISTED], "next_cursor": None},
                parameters={**_WHOSE, **_PAGING},
                errors={404: _NO_PORTFOLIO},
            ),
        ),
        _reading(
            "/rebalances/{run}",
            get_run,
            Documentation(
                summary="One run: every asset, traded or not, with the reason",
                answer=RunShown,
                answer_example=examples.RUN,
                errors={404: _NO_RUN},
            ),
        ),
        _command(
            "POST",
            "/rebalances/{run}/executed",
            _render_run,
            Documentation(
                summary="Tell that transactions of a run were carried out, together",
                description=(
                    "Those in `fills`, or all that are left. Sales are posted before purchases."
                ),
                request=RunExecutedBody,
                request_example={},
                answer=RunExecuted,
                answer_example={"run": 12, "user_id": "1", "executed": ["12-1", "12-2"]},
                errors={404: f"{_NO_RUN} Or transaction.", 409: _EXECUTED},
            ),
            of=DESK,
            prepare=_prepare_run,
        ),
    ]

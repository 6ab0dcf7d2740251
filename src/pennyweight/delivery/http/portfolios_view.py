"""What is shown of portfolios out of committed rows and the journal, and found there for a command.

A portfolio names its last run and each run the one before: histories are read back, entry
by entry, a page at a time.
"""

import re
from collections.abc import Callable
from itertools import islice
from typing import Any

from pennyweight.delivery.http.portfolios_shapes import (
    PolicyVersionShown,
    RunListed,
    RunShown,
    TransactionsPage,
    UpdateShown,
)
from pennyweight.delivery.http.routes import Reply, Request
from pennyweight.delivery.http.wire import (
    BadRequest,
    encode,
    limit_of,
    not_found,
    number_in_query,
    page,
    rfc3339,
)
from pennyweight.delivery.portfolios_shown import (
    PROPOSED,
    SUPERSEDED,
    State,
    drift_scores,
    executions_of,
    number,
    show_policy,
    show_portfolio,
    shown_transactions,
    shown_untraded,
)
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.products.portfolios.queue import Queued
from pennyweight.products.portfolios.runs import history, run_in
from pennyweight.products.portfolios.setup import PolicyVersion
from pennyweight.products.portfolios.shared import (
    POLICY,
    PORTFOLIO,
    UPDATE,
    Portfolio,
    RunAnswer,
    policy_id,
    read_portfolio,
)

_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_TRANSACTION = re.compile(r"([1-9][0-9]{0,17})-([1-9][0-9]{0,2})", re.ASCII)
_USER_NAMES = ("user_id", "userId", "UserID", "id", "ID")
_VERSION_MAX = 999_999


# ── who and what ──────────────────────────────────────────────────────────────────


def user_in_query(request: Request) -> str:
    """Return whom the query names. Raises BadRequest, Refused."""
    named = {request.query[name] for name in _USER_NAMES if name in request.query}
    if not named:
        raise BadRequest("user_id_missing", "say whose: ?user_id=1")
    if len(named) > 1:
        raise BadRequest("user_id_ambiguous", "the user is named twice, and not alike")
    user = named.pop()
    user_holder(user)
    return user


def portfolio_of(user: str, store: Store) -> Portfolio:
    """Return a user's portfolio. Raises BadRequest."""
    record = store.record(PORTFOLIO, user)
    if record is None:
        not_found("portfolio_not_found", f"user {user[:80]!r} has no portfolio")
    return read_portfolio(record)


def run_of(sequence: int, store: Store) -> RunAnswer | None:
    """Return the run that an entry worked out, None if it did not."""
    return run_in(_entries(store)(sequence))


def run_in_path(request: Request, store: Store) -> RunAnswer:
    """Return the run that the path names. Raises BadRequest."""
    text = request.params["run"]
    run = run_of(int(text), store) if _NUMBER.fullmatch(text) else None
    if run is None:
        not_found("run_not_found", f"there is no run {text[:80]!r}")
    return run


def transaction_of(name: str) -> tuple[int, int] | None:
    """Return the run and the position that a transaction's id is made of, None if it is no id."""
    match = _TRANSACTION.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]))


def _entries(store: Store) -> Callable[[int], Entry | None]:
    """Return a function that reads entries by their sequence."""

    def read(sequence: int) -> Entry | None:
        body = store.entry(sequence)
        return None if body is None else decode_entry(body)

    return read


def _states(answer: RunAnswer, last_run: int, store: Store) -> Callable[[int], State]:
    """Return what tells of each position of a run what became of it; `last_run` is the user's."""
    executions = executions_of(answer.run, store) if answer.trades else {}
    rest = PROPOSED if answer.run >= last_run else SUPERSEDED

    def state_of(position: int) -> State:
        execution = executions.get(position)
        return rest if execution is None else State("executed", execution)

    return state_of


# ── portfolios ────────────────────────────────────────────────────────────────────


def get_portfolio(request: Request, store: Store, _: Standing) -> Reply:
    """Answer GET /portfolio."""
    user = user_in_query(request)
    return Reply(200, encode(show_portfolio(user, portfolio_of(user, store))))


def list_portfolios(request: Request, store: Store, _: Standing) -> Reply:
    """Answer GET /portfolios."""
    limit = limit_of(request)
    after = request.query.get("cursor", "")
    if after:
        user_holder(after)
    records = store.records(PORTFOLIO, after=after, limit=limit + 1)
    shown = [show_portfolio(record.id, read_portfolio(record)) for record in records[:limit]]
    return page(shown, shown[-1].user_id if len(records) > limit else None)


def list_policies(request: Request, store: Store, _: Standing) -> Reply:
    """Answer GET /portfolio/policies."""
    user = user_in_query(request)
    portfolio_of(user, store)
    limit = limit_of(request)
    after = min(number_in_query(request, "cursor") or 0, _VERSION_MAX)
    records = store.records(
        POLICY, label=f"user:{user}", after=policy_id(user, after), limit=limit + 1
    )
    found: list[PolicyVersion] = [record.read(PolicyVersion) for record in records]
    shown = [
        PolicyVersionShown(
            one.version, rfc3339(one.since), None if one.policy is None else show_policy(one.policy)
        )
        for one in found[:limit]
    ]
    return page(shown, shown[-1].version if len(found) > limit else None)


# ── transactions and runs ─────────────────────────────────────────────────────────


def list_transactions(request: Request, store: Store, _: Standing) -> Reply:
    """Answer GET /rebalance-transactions."""
    user = user_in_query(request)
    portfolio = portfolio_of(user, store)
    limit = limit_of(request)
    first, after = portfolio.trade_run, 0
    cursor = request.query.get("cursor")
    if cursor is not None:
        place = transaction_of(cursor)
        run = None if place is None else run_of(place[0], store)
        if place is None or run is None or run.user != user:
            raise BadRequest("cursor_invalid", "cursor is no cursor of ours")
        first, after = place
    found = []
    for answer in history(first, _entries(store), has_trades=True):
        shown = shown_transactions(answer, _states(answer, portfolio.run, store))
        found += shown[after:]
        after = 0
        if len(found) > limit:
            break
    last = found[limit - 1].id if len(found) > limit else None
    return Reply(200, encode(TransactionsPage(found[:limit], last or None)))


def list_runs(request: Request, store: Store, _: Standing) -> Reply:
    """Answer GET /rebalances."""
    user = user_in_query(request)
    first = portfolio_of(user, store).run
    limit = limit_of(request)
    cursor = number_in_query(request, "cursor")
    if cursor is not None:
        run = run_of(cursor, store)
        if run is None or run.user != user:
            raise BadRequest("cursor_invalid", "cursor is no cursor of ours")
        first = run.previous
    found = list(islice(history(first, _entries(store)), limit + 1))
    shown = [_listed(answer) for answer in found[:limit]]
    return page(shown, shown[-1].run if len(found) > limit else None)


def _listed(answer: RunAnswer) -> RunListed:
    before, after = drift_scores(answer)
    return RunListed(
        answer.run,
        rfc3339(answer.at),
        rfc3339(answer.as_of),
        answer.policy_version,
        len(answer.trades),
        number(turnover_of(answer)),
        number(before),
        number(after),
    )


def turnover_of(answer: RunAnswer) -> int:
    """Return what all purchases of a run are together."""
    return sum(line.change for line in answer.lines if line.change > 0)


def figures_of(answer: RunAnswer) -> dict[str, Any]:
    """Return what a run is shown with beside its transactions."""
    before, after = drift_scores(answer)
    return {
        "user_id": answer.user,
        "as_of": rfc3339(answer.as_of),
        "policy_version": answer.policy_version,
        "not_traded": shown_untraded(answer),
        "drift_score_before": number(before),
        "drift_score_after": number(after),
        "turnover": number(turnover_of(answer)),
        "sum_of_changes": number(sum(line.change for line in answer.lines)),
    }


def get_run(request: Request, store: Store, _: Standing) -> Reply:
    """Answer GET /rebalances/{run}."""
    answer = run_in_path(request, store)
    states = _states(answer, portfolio_of(answer.user, store).run, store)
    shown = RunShown(
        run=answer.run,
        created_at=rfc3339(answer.at),
        previous_run=answer.previous or None,
        transactions=shown_transactions(answer, states),
        **figures_of(answer),
    )
    return Reply(200, encode(shown))


# ── queued updates ────────────────────────────────────────────────────────────────


def get_update(request: Request, store: Store, _: Standing) -> Reply:
    """Answer GET /rebalance-updates/{id}."""
    text = request.params["id"]
    record = store.record(UPDATE, text) if _NUMBER.fullmatch(text) else None
    if record is None:
        not_found("update_not_found", f"no update {text[:80]!r} was queued")
    queued: Queued = record.read(Queued)
    told: dict[str, Any] = {}
    if queued.state != "queued":
        told["taken_at"] = rfc3339(queued.taken_at)
    if queued.state == "refused":
        told.update(code=queued.reason, detail=queued.detail)
    elif queued.state == "done":
        told.update(_outcome(queued, store))
    shown = UpdateShown(
        update_id=int(text),
        user_id=queued.update.user,
        status=queued.state,
        queued_at=rfc3339(queued.queued_at),
        **told,
    )
    return Reply(200, encode(shown))


def _outcome(queued: Queued, store: Store) -> dict[str, Any]:
    """Return what is shown of an update that is done."""
    if not queued.run:
        return {"result": "outdated"}
    answer = run_of(queued.run, store)
    if answer is None:
        raise LookupError(f"entry {queued.run} is no run")
    states = _states(answer, portfolio_of(answer.user, store).run, store)
    return {
        "result": "rebalanced" if queued.run == queued.entry else "repeat",
        "run": queued.run,
        "transactions": shown_transactions(answer, states),
    }

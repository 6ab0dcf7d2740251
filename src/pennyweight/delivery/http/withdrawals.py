"""The withdrawals face: check and hold at once, settle later, and what a risk desk looks at.

`POST /withdrawals` and `POST /settlements` are hot. A refusal for want of funds is an answer
(HTTP 200, INSUFFICIENT_BALANCE); all others are problem documents. Unknown fields are
ignored; ids and quantities may be strings or numbers.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NoReturn

import msgspec

from pennyweight.delivery.http.routes import (
    CommandRoute,
    Documentation,
    ReadRoute,
    Reply,
    Request,
    Route,
)
from pennyweight.delivery.http.wire import (
    PAGE_SIZE_MAX,
    REPLAYED,
    BadRequest,
    deadline_of,
    encode,
    key_of,
    limit_of,
    moment_in_query,
    not_found,
    number_in_query,
    page,
    problem_of,
    read,
    receipt_headers,
    rfc3339,
)
from pennyweight.delivery.http.withdrawals_shapes import (
    BalanceOfToken,
    BalancesShown,
    CancelledShown,
    Carried,
    DeficitShown,
    DeficitsPage,
    Holding,
    Insufficient,
    LimitsBody,
    LimitSet,
    LimitShown,
    LimitsShown,
    ModeBody,
    ModeSet,
    ModesShown,
    SettlementShown,
    Status,
    Sufficient,
    WithdrawalBody,
    WithdrawalShown,
    WithdrawalsPage,
    WouldSuffice,
    carried_decoder,
    limits_decoder,
    mode_decoder,
    settlement_decoder,
    withdrawal_decoder,
)
from pennyweight.delivery.settlements import (
    PostedSettlement,
    check_key,
    read_settlement,
    settle_of,
    settlement_key,
    text_of,
)
from pennyweight.engine.engine import Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Outcome, Receipt, Refusal
from pennyweight.engine.statements import balance_as_of
from pennyweight.engine.whatif import WhatIf
from pennyweight.ledger.accounts import Account, holder_of, owed_account, user_holder
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.commands import Command
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.ledger.money import format_amount
from pennyweight.ledger.refusals import Reason, Refused, refuse
from pennyweight.products.withdrawals import PRODUCT
from pennyweight.products.withdrawals.controls import (
    CONTROLS,
    USER,
    Controls,
    Limits,
    SetLimits,
    SetMode,
    UserControls,
    prevailing_limits,
)
from pennyweight.products.withdrawals.settle import (
    ReplaySettlement,
    Settle,
    SettlementAnswer,
)
from pennyweight.products.withdrawals.shared import (
    check_withdrawal_id,
    numbered_hold,
    user_of,
    withdrawal_id_of,
)
from pennyweight.products.withdrawals.withdraw import CancelWithdrawal, Withdraw, WithdrawalAnswer
from pennyweight.runtime.clock import wall_clock

FACE = PRODUCT
CHECK = "check"
"""A path of ours beside those of withdrawals, and so no id of one."""

_STATUSES: dict[HoldState, Status] = {
    HoldState.OPEN: "open",
    HoldState.SETTLED: "settled",
    HoldState.VOIDED: "cancelled",
    HoldState.EXPIRED: "expired",
}
_PAGE = 500


# ── withdrawals ───────────────────────────────────────────────────────────────────


def _quantity_of(body: WithdrawalBody) -> str:
    """Return the quantity under either of its names. Raises BadRequest."""
    quantity, amount = body.requested_quantity, body.requested_amount
    if quantity is None:
        if amount is None:
            raise BadRequest("body_invalid", "requested_quantity is missing")
        return amount
    if amount is not None and amount != quantity:
        raise BadRequest(
            "quantity_ambiguous", "requested_quantity and requested_amount are not the same"
        )
    return quantity


def _withdraw_of(body: WithdrawalBody) -> Withdraw:
    """Return the command that a body asks for. Raises BadRequest, Refused."""
    withdrawal_id = ""
    if body.withdrawal_id is not None:
        withdrawal_id = text_of(body.withdrawal_id)
        check_withdrawal_id(withdrawal_id)
        check_key(withdrawal_id)
        if withdrawal_id == CHECK:
            refuse(Reason.WITHDRAWAL_ID_INVALID, f"{CHECK!r} is a path of ours, not an id")
    return Withdraw(
        text_of(body.user_id),
        body.token,
        _quantity_of(body),
        withdrawal_id,
        body.expires_in_seconds,
    )


def _key(request: Request, in_body: str | None = None) -> str:
    """Return a caller's key, "" for none; none that a settlement could have. Raises BadRequest."""
    key = key_of(request, in_body)
    try:
        check_key(key)
    except Refused as refused:
        raise BadRequest("idempotency_key_invalid", refused.message) from None
    return key


def _submission(command: Command, request: Request, body: Carried) -> Submission:
    """Return a command under the request's key and deadline. Raises BadRequest."""
    return Submission(
        command,
        key=_key(request, body.idempotency_key),
        not_after=deadline_of(request, body.not_after),
    )


def _parse_withdrawal(request: Request, _: Standing) -> Submission:
    body = read(withdrawal_decoder, request.body)
    command = _withdraw_of(body)
    return Submission(
        command,
        key=_key(request, body.idempotency_key) or command.withdrawal_id,
        not_after=deadline_of(request, body.not_after),
    )


def _render_withdrawal(outcomes: list[Outcome], request: Request) -> Reply:
    outcome = outcomes[0]
    if outcome.__class__ is Receipt:
        answer: WithdrawalAnswer = outcome.answer
        return Reply(
            200,
            encode(
                Sufficient(
                    answer.withdrawal_id,
                    answer.available,
                    answer.held,
                    answer.requested_quantity,
                    _moment(answer.expires_at),
                )
            ),
            (REPLAYED,) if outcome.is_replayed else (),
        )
    if outcome.__class__ is Refusal and outcome.reason is Reason.INSUFFICIENT_FUNDS:
        return Reply(200, encode(_insufficient(outcome.figures)))
    return problem_of(outcome, request)  # type: ignore[arg-type]


def _moment(time: int | None) -> str | msgspec.UnsetType:
    return msgspec.UNSET if time is None else rfc3339(time)


def _insufficient(figures: dict[str, Any]) -> Insufficient:
    """Return the answer that is no refusal out of the figures of one."""
    return Insufficient(
        figures["available"],
        figures["needed"],
        figures["held"],
        [
            Holding(one["withdrawal_id"], one["quantity"], rfc3339(one["accepted_at"]))
            for one in figures["open_withdrawals"]
        ],
        figures["open_withdrawal_count"],
    )


def _checker(clock: Callable[[], int]) -> Callable[[Request, Store, Standing], Reply]:
    """Return the `read` of POST /withdrawals/check."""

    def check(request: Request, store: Store, standing: Standing) -> Reply:
        submission = _parse_withdrawal(request, standing)
        draft = Draft(WhatIf(store, standing, clock()), PRODUCT)
        if submission.not_after is not None and draft.time > submission.not_after:
            refuse(Reason.NOT_AFTER_PASSED, "the withdrawal's deadline has passed")
        try:
            answer: WithdrawalAnswer = submission.command.decide(draft)
        except Refused as refused:
            if refused.reason is not Reason.INSUFFICIENT_FUNDS:
                raise
            return Reply(200, encode(_insufficient(refused.figures)))
        shown = WouldSuffice(
            answer.available, answer.held, answer.requested_quantity, _moment(answer.expires_at)
        )
        return Reply(200, encode(shown))

    return check


def _get_withdrawal(request: Request, store: Store, standing: Standing) -> Reply:
    withdrawal_id = request.params["id"]
    number = numbered_hold(withdrawal_id)
    hold = store.hold(number) if number else store.hold_of_reference(PRODUCT, withdrawal_id)
    if hold is None or hold.owner != PRODUCT or withdrawal_id_of(hold) != withdrawal_id:
        _no_withdrawal(withdrawal_id)
    return Reply(200, encode(_show_withdrawal(hold, store, standing)))


def _no_withdrawal(withdrawal_id: str) -> NoReturn:
    not_found("withdrawal_not_found", f"there is no withdrawal {withdrawal_id[:80]!r}")


def _show_withdrawal(hold: Hold, store: Store, standing: Standing) -> WithdrawalShown:
    """Show a withdrawal; one that has ended, with the entry that ended it."""
    shown = WithdrawalShown(
        withdrawal_id_of(hold),
        user_of(holder_of(hold.account)),
        hold.asset,
        format_amount(hold.amount, _asset(hold.asset, store, standing).scale),
        _STATUSES[hold.state],
        rfc3339(hold.placed_at),
        None if hold.expires_at is None else rfc3339(hold.expires_at),
    )
    if hold.state is HoldState.OPEN:
        return shown
    body, batch = store.entry(hold.changed_by), store.batch_at(sequence=hold.changed_by)
    if body is None or batch is None:
        raise LookupError(f"entry {hold.changed_by} is not in the journal")
    ended: dict[str, Any] = {
        "ended_at": rfc3339(batch.committed_at),
        "sequence": hold.changed_by,
        **_trade_in(decode_entry(body)),
    }
    return msgspec.structs.replace(shown, **ended)


def _trade_in(entry: Entry) -> dict[str, Any]:
    """Return what the settlement that an entry booked tells of the withdrawal it ended."""
    if entry.command == Settle.name:
        settle = msgspec.json.decode(entry.fields, type=Settle)
    elif entry.command == ReplaySettlement.name:
        settle = msgspec.json.decode(entry.fields, type=ReplaySettlement).settlement
    else:
        return {}
    answer = msgspec.json.decode(entry.answer, type=SettlementAnswer)
    return {
        "settlement_id": settle.settlement_id or msgspec.UNSET,
        "sold_token": settle.sold_token,
        "sold_quantity": settle.sold_quantity,
        "bought_token": settle.bought_token,
        "bought_quantity": settle.bought_quantity,
        "released": answer.released,
        "shortage": answer.shortage,
    }


def _list_withdrawals(request: Request, store: Store, standing: Standing) -> Reply:
    holder, user = _user_in_query(request)
    accounts = _accounts_of(store, holder, user)
    token = request.query.get("token")
    if token is not None:
        _known_token(token, store, standing)
        accounts = [account for account in accounts if account.asset == token]
    limit = limit_of(request)
    after = number_in_query(request, "cursor") or 0
    found: list[Hold] = []
    for account in accounts:
        if account.open_holds:
            found += islice(_open_withdrawals(store, account.id, after), limit + 1)
    found.sort(key=lambda hold: hold.id)
    shown = found[:limit]
    return page(
        (_show_withdrawal(hold, store, standing) for hold in shown),
        shown[-1].id if len(found) > limit else None,
    )


def _open_withdrawals(store: Store, account_id: str, after: int) -> Iterator[Hold]:
    """Yield an account's open withdrawals from the one after hold `after`, oldest first."""
    while rows := store.holds(account_id, after, _PAGE):
        yield from (hold for hold in rows if hold.owner == PRODUCT)
        after = rows[-1].id


def _parse_cancel(request: Request, _: Standing) -> Submission:
    body = read(carried_decoder, request.body.strip() or b"{}")
    return _submission(CancelWithdrawal(request.params["id"]), request, body)


def _render_cancel(outcomes: list[Outcome], request: Request) -> Reply:
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    answer: WithdrawalAnswer = outcome.answer
    shown = CancelledShown(
        answer.withdrawal_id,
        "cancelled",
        answer.available,
        answer.held,
        answer.requested_quantity,
    )
    return Reply(200, encode(shown), receipt_headers(outcome))


# ── users ─────────────────────────────────────────────────────────────────────────


def _get_balances(request: Request, store: Store, standing: Standing) -> Reply:
    user = request.params["user"]
    holder = user_holder(user)
    moment = moment_in_query(request, "as_of")
    balances: dict[str, BalanceOfToken] = {}
    for account in _accounts_of(store, holder, user):
        posted, held, owed = account.posted, account.held, account.owed
        if moment is not None:
            posted, held, owed = _as_of(store, account, moment)
        if account.is_closed and not (posted or held or owed):
            continue
        scale = _asset(account.asset, store, standing).scale
        balances[account.asset] = BalanceOfToken(
            format_amount(posted - held, scale),
            format_amount(held, scale),
            format_amount(posted, scale),
            format_amount(owed, scale) if owed else msgspec.UNSET,
        )
    return Reply(200, encode(BalancesShown(user, balances, _moment(moment))))


def _as_of(store: Store, account: Account, moment: int) -> tuple[int, int, int]:
    """Return (posted, held, owed) of an account as committed at a moment."""
    balance = balance_as_of(store, account, committed=moment)
    owing = store.account(owed_account(account.id))
    owed = 0 if owing is None else -balance_as_of(store, owing, committed=moment).posted
    return balance.posted, balance.held, owed


def _accounts_of(store: Store, holder: str, user: str) -> list[Account]:
    """Return a user's accounts, one per token. Raises BadRequest."""
    accounts = store.accounts(0, PAGE_SIZE_MAX, holder=holder)
    if not accounts:
        not_found("user_not_found", f"there is no user {user[:80]!r}")
    return [account for account in accounts if account.id == f"{holder}:{account.asset}"]


def _user_in_query(request: Request) -> tuple[str, str]:
    """Return whom the query names, as holder and as user. Raises BadRequest, Refused."""
    user = request.query.get("user_id")
    if user is None:
        raise BadRequest("user_id_missing", "say whose withdrawals: ?user_id=100")
    return user_holder(user), user


def _known_token(token: str, store: Store, standing: Standing) -> None:
    """Refuse what is no token. Refusal: token_unknown."""
    if token not in standing.assets and store.record("asset", token) is None:
        refuse(Reason.TOKEN_UNKNOWN, f"{token[:40]!r} is not a token of this book")


def _asset(name: str, store: Store, standing: Standing) -> Asset:
    """Return an asset, even one that was registered after `standing` was taken."""
    asset = standing.assets.get(name)
    if asset is not None:
        return asset
    record = store.record("asset", name)
    if record is None:
        raise LookupError(f"asset {name} is not registered")
    found: Asset = record.read(Asset)
    return found


# ── settlements and deficits ──────────────────────────────────────────────────────


def _parse_settlement(request: Request, _: Standing) -> Submission:
    body = read_settlement(settlement_decoder, request.body)
    command = settle_of(body)
    key = key_of(request, body.idempotency_key)
    settlement_id = command.settlement_id
    if settlement_id and key and key != settlement_id:
        raise BadRequest(
            "idempotency_key_ambiguous", "the idempotency key and the settlement_id differ"
        )
    key = settlement_id or key
    return Submission(
        command,
        key=settlement_key(key) if key else "",
        not_after=deadline_of(request, body.not_after),
    )


def render_settlement(outcomes: list[Outcome], request: Request) -> Reply:
    """Render a settlement, as it came or out of a dead letter."""
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    answer: SettlementAnswer = outcome.answer
    shown = SettlementShown(
        answer.result,
        answer.withdrawal_id or None,
        answer.sold_available,
        answer.bought_available,
        answer.released,
        answer.shortage,
        answer.owed,
        answer.credited or msgspec.UNSET,
    )
    return Reply(200, encode(shown), receipt_headers(outcome))


def _list_deficits(request: Request, store: Store, standing: Standing) -> Reply:
    token = request.query.get("token")
    if token is not None:
        _known_token(token, store, standing)
    limit = limit_of(request)
    after = number_in_query(request, "cursor") or 0
    rows = store.accounts(after, limit, asset=token, is_owing=True)
    return page(
        (
            DeficitShown(
                user_of(account.holder),
                account.asset,
                format_amount(account.owed, _asset(account.asset, store, standing).scale),
            )
            for account in rows
        ),
        rows[-1].number if len(rows) == limit else None,
    )


# ── limits and modes ──────────────────────────────────────────────────────────────


def _get_limits(request: Request, store: Store, _: Standing) -> Reply:
    user = request.query.get("user_id")
    of_all = _controls(store).limits
    if user is None:
        return Reply(200, encode(LimitsShown(None, _shown_limits(of_all))))
    _accounts_of(store, user_holder(user), user)
    record = store.record(USER, user)
    own = UserControls() if record is None else record.read(UserControls)
    effective = prevailing_limits(own.limits, of_all)
    shown = LimitsShown(user, _shown_limits(own.limits), _shown_limits(effective))
    return Reply(200, encode(shown))


def _shown_limits(limits: dict[str, Limits]) -> list[LimitShown]:
    return [
        LimitShown(token, limit.per_withdrawal, limit.per_day)
        for token, limit in sorted(limits.items())
    ]


def _parse_limits(request: Request, _: Standing) -> Submission:
    body = read(limits_decoder, request.body)
    given = (body.per_withdrawal, body.per_day)
    if given == (msgspec.UNSET, msgspec.UNSET):
        raise BadRequest("body_invalid", "give per_withdrawal, per_day or both; null lifts a limit")
    per_withdrawal, per_day = (None if one is msgspec.UNSET else one for one in given)
    user = None if body.user_id is None else text_of(body.user_id)
    return _submission(SetLimits(body.token, per_withdrawal, per_day, user), request, body)


def _get_modes(_: Request, store: Store, __: Standing) -> Reply:
    controls = _controls(store)
    return Reply(200, encode(ModesShown(controls.mode, dict(sorted(controls.modes.items())))))


def _parse_mode(request: Request, _: Standing) -> Submission:
    body = read(mode_decoder, request.body)
    return _submission(SetMode(body.mode, body.token), request, body)


def _controls(store: Store) -> Controls:
    """Return the general modes and limits."""
    record = store.record(CONTROLS, "all")
    if record is None:
        return Controls()
    controls: Controls = record.read(Controls)
    return controls


def _render_as_is(outcomes: list[Outcome], request: Request) -> Reply:
    """Render a command whose answer is what the wire shows."""
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    return Reply(200, encode(outcome.answer), receipt_headers(outcome))


# ── the table ─────────────────────────────────────────────────────────────────────

_WHEN = "2026-01-31T12:00:00.000000Z"
_LATER = "2026-01-31T12:00:05.000000Z"
_ASKED = {"user_id": "100", "token": "BTC", "requested_quantity": "7"}
_SUFFICIENT = {
    "status": "SUFFICIENT_BALANCE",
    "withdrawal_id": "w1",
    "available": "74.807344",
    "held": "7",
    "requested_quantity": "7",
}
_WITHDRAWAL = {
    "withdrawal_id": "w1",
    "user_id": "100",
    "token": "BTC",
    "requested_quantity": "7",
    "status": "open",
    "accepted_at": _WHEN,
    "expires_at": None,
}
_TRADE = {
    "user_id": "100",
    "bought_token": "ETH",
    "bought_quantity": "87.35",
    "sold_token": "BTC",
    "sold_quantity": "6.9",
}
_SETTLED = {
    "result": "settled",
    "withdrawal_id": "w1",
    "sold_available": "74.907344",
    "bought_available": "223.502897",
    "released": "0.1",
    "shortage": "0",
    "owed": "0",
}
_BALANCES = {
    "user_id": "100",
    "balances": {
        "BTC": {"available": "74.807344", "held": "7", "posted": "81.807344"},
        "USD": {"available": "0", "held": "0", "posted": "0"},
    },
}
_LIMITS = {"token": "BTC", "per_withdrawal": "10", "per_day": "25"}
_PAGING = {
    "limit": "How many, 1 to 1000; 100 if not given.",
    "cursor": "The `next_cursor` of the page before.",
}
_NO_USER = "There is no such user."
_NO_WITHDRAWAL = "There is no such withdrawal."


def routes(*, clock: Callable[[], int] = wall_clock) -> list[Route]:
    """Return the routes of the withdrawals face; `clock` is for what a check would answer."""
    return [
        *_withdrawal_routes(clock),
        *_settlement_routes(),
        *_control_routes(),
    ]


def _command(
    method: str,
    path: str,
    parse: Callable[[Request, Standing], Submission],
    render: Callable[[list[Outcome], Request], Reply],
    *,
    is_hot: bool = False,
    **documentation: Any,
) -> CommandRoute:
    return CommandRoute(
        face=FACE,
        method=method,
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
    **documentation: Any,
) -> ReadRoute:
    return ReadRoute(
        face=FACE,
        method=method,
        path=path,
        read=function,
        documentation=Documentation(**documentation),
    )


def _withdrawal_routes(clock: Callable[[], int]) -> list[Route]:
    refused = {
        404: _NO_USER,
        409: "The id is taken, a mode or a limit says no, or the account is closed.",
    }
    return [
        _command(
            "POST",
            "/withdrawals",
            _parse_withdrawal,
            _render_withdrawal,
            is_hot=True,
            summary="Hold a quantity, if that much is available",
            description=(
                "A balance equal to the quantity is enough. INSUFFICIENT_BALANCE is an answer "
                "too, with the open withdrawals that hold the money; it is not kept under the "
                "key, so that the same request may succeed later. The key is the "
                "Idempotency-Key, else the `withdrawal_id`."
            ),
            request=WithdrawalBody,
            request_example=_ASKED,
            answer=Sufficient | Insufficient,
            answer_example=_SUFFICIENT,
            errors=refused,
        ),
        _reading(
            "POST",
            "/withdrawals/check",
            _checker(clock),
            summary="What a withdrawal would be answered now; nothing is held",
            description=(
                "As under a key that is free: a key is looked at, but not whether it was used "
                "before. A moment later the answer may be another."
            ),
            request=WithdrawalBody,
            request_example=_ASKED,
            answer=WouldSuffice | Insufficient,
            answer_example={k: v for k, v in _SUFFICIENT.items() if k != "withdrawal_id"},
            errors={**refused, 413: "The body is too large."},
        ),
        _reading(
            "GET",
            "/withdrawals",
            _list_withdrawals,
            summary="A user's open withdrawals, oldest first",
            answer=WithdrawalsPage,
            answer_example={"data": [_WITHDRAWAL], "next_cursor": None},
            parameters={
                "user_id": "Whose; needed.",
                "token": "Only those of this token.",
                **_PAGING,
            },
            errors={404: _NO_USER},
        ),
        _reading(
            "GET",
            "/withdrawals/{id}",
            _get_withdrawal,
            summary="One withdrawal, open or not",
            answer=WithdrawalShown,
            answer_example={
                **_WITHDRAWAL,
                "status": "settled",
                "ended_at": _LATER,
                "sequence": 12,
                **{name: value for name, value in _TRADE.items() if name != "user_id"},
                "released": "0.1",
                "shortage": "0",
            },
            errors={404: _NO_WITHDRAWAL},
        ),
        _command(
            "POST",
            "/withdrawals/{id}/cancel",
            _parse_cancel,
            _render_cancel,
            summary="Give back what an open withdrawal holds",
            request=Carried,
            request_example={},
            answer=CancelledShown,
            answer_example={
                "withdrawal_id": "w1",
                "status": "cancelled",
                "available": "81.807344",
                "held": "0",
                "requested_quantity": "7",
            },
            errors={404: _NO_WITHDRAWAL, 409: "It has ended, or withdrawals are halted."},
        ),
        _reading(
            "GET",
            "/users/{user}/balances",
            _get_balances,
            summary="What a user has, by token",
            description=(
                "As of a moment: every token that the user has today, with what was committed "
                "by then; 0 where that was before the account."
            ),
            answer=BalancesShown,
            answer_example=_BALANCES,
            parameters={"as_of": "As committed at this moment (RFC 3339)."},
            errors={404: _NO_USER},
        ),
    ]


def _settlement_routes() -> list[Route]:
    return [
        _command(
            "POST",
            "/settlements",
            _parse_settlement,
            render_settlement,
            is_hot=True,
            summary="Book what a trade really sold and bought",
            description=(
                "As from Kafka, by the same handler: a fact, booked whatever the user has. It "
                "settles the withdrawal it names, else the one of exactly the sold quantity, if it "
                "is the only such, else the user's oldest of that token. One settlement ends a "
                "withdrawal: parts must be added up before. The key is the `settlement_id`, else "
                "the Idempotency-Key, both only if they are equal; without either, and without a "
                "`withdrawal_id`, the same trade sent twice is two trades."
            ),
            request=PostedSettlement,
            request_example=_TRADE,
            answer=SettlementShown,
            answer_example=_SETTLED,
            errors={
                404: _NO_USER,
                409: "The withdrawal it names was settled otherwise, or cancelled.",
            },
        ),
        _reading(
            "GET",
            "/deficits",
            _list_deficits,
            summary="What users owe, because trades sold more than they had",
            description="In the order in which the accounts were opened.",
            answer=DeficitsPage,
            answer_example={
                "data": [{"user_id": "100", "token": "BTC", "owed": "0.25"}],
                "next_cursor": None,
            },
            parameters={"token": "Only of this token.", **_PAGING},
        ),
    ]


def _control_routes() -> list[Route]:
    return [
        _reading(
            "GET",
            "/limits",
            _get_limits,
            summary="The limits that count for all users, or those of one",
            description=(
                "A user's own limit goes before the one for all. With `user_id`: the user's own "
                "limits, and in `effective` what counts for the user, those for all included."
            ),
            answer=LimitsShown,
            answer_example={"user_id": None, "limits": [_LIMITS]},
            parameters={"user_id": "The limits of this user."},
            errors={404: _NO_USER},
        ),
        _command(
            "PUT",
            "/limits",
            _parse_limits,
            _render_as_is,
            summary="Set both limits of a token, for one user or for all",
            description=(
                "Of one withdrawal and of a rolling day. Null, or left out, lifts a limit: for all "
                "users, there is none; for one, the one for all counts."
            ),
            request=LimitsBody,
            request_example=_LIMITS,
            answer=LimitSet,
            answer_example={"user_id": None, **_LIMITS},
            errors={404: _NO_USER},
        ),
        _reading(
            "GET",
            "/token-modes",
            _get_modes,
            summary="What is taken: of everything, and of tokens with a mode of their own",
            answer=ModesShown,
            answer_example={"mode": "active", "tokens": {"BTC": "reducing"}},
        ),
        _command(
            "PUT",
            "/token-modes",
            _parse_mode,
            _render_as_is,
            summary="Set the mode of a token, or of everything",
            description=(
                "`active`: all is taken. `reducing`: no new withdrawals. `halted`: no "
                "cancellations either. Settlements are facts and always booked. The stricter "
                "of the token's mode and the general one counts."
            ),
            request=ModeBody,
            request_example={"token": "BTC", "mode": "reducing"},
            answer=ModeSet,
            answer_example={"token": "BTC", "mode": "reducing"},
        ),
    ]

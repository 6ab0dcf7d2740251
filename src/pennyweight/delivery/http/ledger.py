"""The ledger's own face, `/v1`: assets, accounts, transfers, holds, entries, reversals, keys.

Unknown fields are refused here. Amounts come and go as decimal text in the asset's unit,
moments as RFC 3339. A list of transfers is one command if it is atomic; otherwise each
item is a command of its own, and the results stand in the order of the items.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from pennyweight.delivery.http.ledger_shapes import (
    AbandonShown,
    AccountBody,
    AccountsPage,
    AssetBody,
    AssetsPage,
    AtomicTransfersBody,
    BalanceShown,
    CommandBody,
    EntriesPage,
    EntryShown,
    EventShown,
    HoldBody,
    HoldChangeShown,
    HoldShown,
    HoldsPage,
    LineShown,
    ListBody,
    MovementShown,
    OpeningShown,
    RecordShown,
    ResultShown,
    ResultsShown,
    ReversalShown,
    ReverseBody,
    SeparateTransfersBody,
    SettleBody,
    StatementPage,
    TransferBody,
    TransferShown,
    TransfersShown,
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
    decoder,
    encode,
    key_of,
    limit_of,
    microseconds,
    moment_in_query,
    not_found,
    number_in_query,
    outcome_problem,
    page,
    problem_of,
    read,
    read_any,
    read_nothing,
    receipt_headers,
    rfc3339,
)
from pennyweight.engine.engine import Abandon, Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.engine.statements import balance_as_of, statement
from pennyweight.ledger.accounts import Account, asset_of
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.ledger.holds import HoldChange
from pennyweight.ledger.money import format_amount
from pennyweight.products import general
from pennyweight.runtime.front import OWN_KEYS
from pennyweight.runtime.opening import assets_of

FACE = general.PRODUCT
ABANDONED = {"abandoned": True}

_ID_MAX = 18

# ── parsing ───────────────────────────────────────────────────────────────────────

_asset_decoder = decoder(AssetBody)
_account_decoder = decoder(AccountBody)
_transfer_decoder = decoder(TransferBody)
_atomic_decoder = decoder(AtomicTransfersBody)
_separate_decoder = decoder(SeparateTransfersBody)
_list_decoder = decoder(ListBody)
_hold_decoder = decoder(HoldBody)
_settle_decoder = decoder(SettleBody)
_reverse_decoder = decoder(ReverseBody)
_nothing_decoder = decoder(CommandBody)


def _submission(command: Any, request: Request, body: CommandBody) -> Submission:
    """Return a command under the request's key and deadline."""
    return Submission(
        command,
        key=key_of(request, body.idempotency_key),
        not_after=deadline_of(request, body.not_after),
    )


def _parse_asset(request: Request, _: Standing) -> Submission:
    body = read(_asset_decoder, request.body)
    command = general.RegisterAsset(body.name, body.scale, body.currency_id)
    return _submission(command, request, body)


def _parse_account(request: Request, _: Standing) -> Submission:
    body = read(_account_decoder, request.body)
    if body.id is not None:
        account_id = body.id
        parts = (body.holder, body.asset, body.path)
        if parts != (None, None, None):
            raise BadRequest("body_invalid", "give an id, or holder and asset, not both")
    elif body.holder is not None and body.asset is not None:
        middle = "" if body.path is None else f"{body.path}:"
        account_id = f"{body.holder}:{middle}{body.asset}"
    else:
        raise BadRequest("body_invalid", "give an id, or holder and asset")
    floor = None if isinstance(body.floor, msgspec.UnsetType) else str(body.floor)
    return _submission(general.OpenAccount(account_id, floor), request, body)


def _parse_close(request: Request, _: Standing) -> Submission:
    body = _read_optional(request)
    return _submission(general.CloseAccount(request.params["id"]), request, body)


def _parse_transfer(request: Request, _: Standing) -> Submission | list[Submission]:
    raw = request.body
    if b'"transfers"' in raw and _is_list(raw):
        return _parse_list(request)
    body = read(_transfer_decoder, raw)
    return Submission(
        _transfer(body),
        key=key_of(request, body.idempotency_key),
        not_after=deadline_of(request, body.not_after),
    )


def _is_list(raw: bytes) -> bool:
    value = read_any(raw)
    return isinstance(value, dict) and "transfers" in value


def _parse_list(request: Request) -> Submission | list[Submission]:
    shape = read(_list_decoder, request.body)
    if shape.atomic:
        body = read(_atomic_decoder, request.body)
        items = tuple(
            general.TransferItem(i.debit_account, i.credit_account, i.asset, i.amount, i.id or "")
            for i in body.transfers
        )
        return _submission(general.Transfers(items, _effective(body)), request, body)
    separate = read(_separate_decoder, request.body)
    if not separate.transfers:
        raise BadRequest("body_invalid", "a list has at least one transfer")
    key = key_of(request, separate.idempotency_key)
    deadline = deadline_of(request, separate.not_after)
    bare = Request(request.method, request.path)
    return [
        Submission(
            _transfer(item),
            key=key_of(bare, item.idempotency_key) or (f"{key}:{position}" if key else ""),
            not_after=deadline if item.not_after is None else deadline_of(bare, item.not_after),
        )
        for position, item in enumerate(separate.transfers)
    ]


def _transfer(body: TransferBody) -> general.Transfer:
    return general.Transfer(
        body.debit_account,
        body.credit_account,
        body.asset,
        body.amount,
        _effective(body),
        body.id or "",
    )


def _effective(body: TransferBody | AtomicTransfersBody | ReverseBody) -> int | None:
    """Return when something counts from, None for its commit. Raises BadRequest."""
    return None if body.effective_at is None else microseconds(body.effective_at, "effective_at")


def _parse_hold(request: Request, _: Standing) -> Submission:
    body = read(_hold_decoder, request.body)
    command = general.PlaceHold(body.account, body.asset, body.amount, body.expires_in_seconds)
    return _submission(command, request, body)


def _parse_settle(request: Request, _: Standing) -> Submission:
    hold = _hold_id(request)
    body = read(_settle_decoder, request.body)
    command = general.SettleHold(hold, body.amount, body.credit_account, body.rest == "keep")
    return _submission(command, request, body)


def _parse_void(request: Request, _: Standing) -> Submission:
    return _submission(general.VoidHold(_hold_id(request)), request, _read_optional(request))


def _parse_reverse(request: Request, _: Standing) -> Submission:
    sequence = _sequence(request)
    body = read(_reverse_decoder, request.body or b"{}")
    return _submission(general.Reverse(sequence, _effective(body)), request, body)


def _parse_abandon(scopes: Collection[str]) -> Callable[[Request, Standing], Submission]:
    """Return the `parse` of a key's abandonment, for these scopes."""

    def parse(request: Request, _: Standing) -> Submission:
        scope = request.params["scope"]
        if scope not in scopes:
            not_found("scope_not_found", f"keys belong to one of {', '.join(sorted(scopes))}")
        read_nothing(request.body)
        key = key_of(Request("", ""), request.params["key"])
        return Submission(Abandon(scope), key=key)

    return parse


def _read_optional(request: Request) -> CommandBody:
    """Read the body of a route that needs none."""
    return read(_nothing_decoder, request.body.strip() or b"{}")


def _number(text: str) -> int | None:
    """Return a whole number in a path, or None."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _ID_MAX else None


def _hold_id(request: Request) -> int:
    number = _number(request.params["id"])
    if number is None:
        not_found("hold_not_found", "there is no such hold")
    return number


def _sequence(request: Request) -> int:
    number = _number(request.params["sequence"])
    if number is None:
        not_found("entry_not_found", "there is no such entry")
    return number


# ── showing ───────────────────────────────────────────────────────────────────────


def show_transfer(answer: general.TransferAnswer) -> TransferShown:
    """Show a transfer with its moments as text."""
    return TransferShown(
        answer.id,
        answer.sequence,
        answer.debit_account,
        answer.credit_account,
        answer.asset,
        answer.amount,
        rfc3339(answer.committed_at),
        rfc3339(answer.effective_at),
    )


def show_hold(answer: general.HoldAnswer) -> HoldShown:
    """Show a hold with its moment as text."""
    return HoldShown(
        answer.id,
        answer.account,
        answer.asset,
        answer.amount,
        answer.remaining,
        answer.owner,
        None if answer.expires_at is None else rfc3339(answer.expires_at),
        answer.state,
    )


def _same(answer: Any) -> Any:
    return answer


def _show_transfers(answer: Any) -> Any:
    if isinstance(answer, general.TransferAnswer):
        return show_transfer(answer)
    return TransfersShown(answer.sequence, [show_transfer(item) for item in answer.transfers])


def _show_reversal(answer: general.ReversalAnswer) -> ReversalShown:
    return ReversalShown(
        answer.sequence,
        answer.reversed_sequence,
        [show_transfer(item) for item in answer.transfers],
    )


def _render_abandon(outcomes: list[Outcome], request: Request) -> Reply:
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    is_abandoned = outcome.answer == ABANDONED
    answer = None if is_abandoned else outcome.answer
    return Reply(200, encode(AbandonShown(is_abandoned, outcome.sequence, answer)))


def _renderer(status: int, show: Callable[[Any], Any]) -> Callable[[list[Outcome], Request], Reply]:
    """Return the `render` of a route with one outcome."""

    def render(outcomes: list[Outcome], request: Request) -> Reply:
        outcome = outcomes[0]
        if isinstance(outcome, Receipt):
            return Reply(status, encode(show(outcome.answer)), receipt_headers(outcome))
        return problem_of(outcome, request)

    return render


def _render_transfers(outcomes: list[Outcome], request: Request) -> Reply:
    """Render one transfer, an atomic list, or the results of a list item by item."""
    if not request.is_list:
        outcome = outcomes[0]
        if isinstance(outcome, Receipt) and isinstance(outcome.answer, general.TransferAnswer):
            return Reply(201, encode(show_transfer(outcome.answer)), receipt_headers(outcome))
        return _render_one(outcomes, request)
    return Reply(200, encode(ResultsShown([_result(outcome, request) for outcome in outcomes])))


_render_one = _renderer(201, _show_transfers)


def _result(outcome: Outcome, request: Request) -> ResultShown:
    if isinstance(outcome, Receipt):
        return ResultShown(
            201, transfer=show_transfer(outcome.answer), replayed=outcome.is_replayed
        )
    document = outcome_problem(outcome, request)
    return ResultShown(document.status, problem=document)


def show_entry(entry: Entry, committed_at: int, standing: Standing) -> EntryShown:
    """Show an entry with amounts in natural units."""
    assets = standing.assets
    return EntryShown(
        sequence=entry.sequence,
        command=entry.command,
        product=entry.product,
        key=None if entry.key.startswith(OWN_KEYS) else entry.key or None,
        committed_at=rfc3339(committed_at),
        effective_at=rfc3339(committed_at if entry.effective_at is None else entry.effective_at),
        opened=[OpeningShown(o.id, o.holder, o.asset) for o in entry.openings],
        closed=entry.closings,
        transfers=[
            MovementShown(
                t.debit_account,
                t.credit_account,
                asset := asset_of(t.debit_account),
                format_amount(t.amount, assets[asset].scale),
            )
            for t in entry.transfers
        ],
        holds=[_show_hold_change(change, standing) for change in entry.holds],
        records=[RecordShown(r.kind, r.id, r.version, r.body) for r in entry.records],
        events=[EventShown(event.name, event.body) for event in entry.events],
        answer=entry.answer,
    )


def _show_hold_change(change: HoldChange, standing: Standing) -> HoldChangeShown:
    asset = standing.assets[change.hold.asset]
    return HoldChangeShown(change.verb, show_hold(general.show_hold(change.hold, asset)))


# ── reading ───────────────────────────────────────────────────────────────────────


def _read_assets(_: Request, store: Store, __: Standing) -> Reply:
    return page(sorted(assets_of(store).values(), key=lambda a: (a.currency_id, a.name)), None)


def _read_account(request: Request, store: Store, standing: Standing) -> Reply:
    account = _account(request, store)
    return Reply(200, encode(general.show_account(account, standing.assets[account.asset])))


def _read_accounts(request: Request, store: Store, standing: Standing) -> Reply:
    limit = limit_of(request)
    rows = store.accounts(
        number_in_query(request, "cursor") or 0,
        limit,
        holder=request.query.get("holder"),
        asset=request.query.get("asset"),
    )
    cursor = rows[-1].number if len(rows) == limit else None
    return page((general.show_account(a, standing.assets[a.asset]) for a in rows), cursor)


def _read_statement(request: Request, store: Store, standing: Standing) -> Reply:
    account = _account(request, store)
    scale = standing.assets[account.asset].scale
    lines, cursor = statement(
        store,
        account,
        after=number_in_query(request, "cursor"),
        limit=limit_of(request),
        is_descending=_is_descending(request),
        committed_until=moment_in_query(request, "as_of"),
    )
    return page(
        (
            LineShown(
                line.ordinal,
                line.sequence,
                rfc3339(line.committed_at),
                rfc3339(line.effective_at),
                line.command,
                line.product,
                format_amount(line.change, scale),
                line.counterpart,
                None if line.hold is None else _show_hold_change(line.hold, standing),
                format_amount(line.posted, scale),
                format_amount(line.held, scale),
            )
            for line in lines
        ),
        cursor,
    )


def _read_balance(request: Request, store: Store, standing: Standing) -> Reply:
    account = _account(request, store)
    scale = standing.assets[account.asset].scale
    moment = moment_in_query(request, "as_of")
    by = request.query.get("by", "committed")
    if moment is None or by not in {"committed", "effective"}:
        raise BadRequest("as_of_invalid", "give as_of, and by=committed or by=effective")
    if by == "committed":
        balance = balance_as_of(store, account, committed=moment)
    else:
        balance = balance_as_of(store, account, effective=moment)
    return Reply(
        200,
        encode(
            BalanceShown(
                account.id,
                account.asset,
                rfc3339(moment),
                by,
                format_amount(balance.posted, scale),
                format_amount(balance.held, scale),
                format_amount(balance.available, scale),
            )
        ),
    )


def _account(request: Request, store: Store) -> Account:
    account = store.account(request.params["id"])
    if account is None:
        not_found("account_not_found", "there is no such account")
    return account


def _read_hold(request: Request, store: Store, standing: Standing) -> Reply:
    hold = store.hold(_hold_id(request))
    if hold is None:
        not_found("hold_not_found", "there is no such hold")
    return Reply(200, encode(show_hold(general.show_hold(hold, standing.assets[hold.asset]))))


def _read_holds(request: Request, store: Store, standing: Standing) -> Reply:
    account_id = request.query.get("account")
    if account_id is None:
        raise BadRequest("account_missing", "say whose holds: ?account=user:100:BTC")
    if store.account(account_id) is None:
        not_found("account_not_found", "there is no such account")
    limit = limit_of(request)
    rows = store.holds(account_id, number_in_query(request, "cursor") or 0, limit)
    cursor = rows[-1].id if len(rows) == limit else None
    return page(
        (show_hold(general.show_hold(hold, standing.assets[hold.asset])) for hold in rows), cursor
    )


def _read_entry(request: Request, store: Store, standing: Standing) -> Reply:
    sequence = _sequence(request)
    body = store.entry(sequence)
    if body is None:
        not_found("entry_not_found", f"there is no entry {sequence}")
    return Reply(200, encode(_show_bodies([(sequence, body)], store, standing)[0]))


def _read_entries(request: Request, store: Store, standing: Standing) -> Reply:
    limit = limit_of(request)
    is_descending = _is_descending(request)
    cursor = number_in_query(request, "cursor")
    if cursor is None:
        cursor = store.head().sequence + 1 if is_descending else 0
    rows = store.entries(
        cursor, limit, product=request.query.get("product"), is_descending=is_descending
    )
    after = rows[-1][0] if len(rows) == limit else None
    return page(_show_bodies(rows, store, standing), after)


def _is_descending(request: Request) -> bool:
    order = request.query.get("order", "oldest")
    if order not in {"oldest", "newest"}:
        raise BadRequest("order_invalid", "order is oldest or newest")
    return order == "newest"


def _show_bodies(
    rows: Sequence[tuple[int, bytes]], store: Store, standing: Standing
) -> list[EntryShown]:
    shown: list[EntryShown] = []
    first, count, committed_at = 0, 0, 0
    for sequence, body in rows:
        if not first <= sequence < first + count:
            header = store.batch_at(sequence=sequence)
            if header is None:
                raise LookupError(f"entry {sequence} has no batch")
            first, count = header.first_sequence, header.count
            committed_at = header.committed_at
        shown.append(show_entry(decode_entry(body), committed_at, standing))
    return shown


# ── the table ─────────────────────────────────────────────────────────────────────

_TRANSFER = {
    "debit_account": "user:100:BTC",
    "credit_account": "user:200:BTC",
    "asset": "BTC",
    "amount": "0.5",
}
_WHEN = "2026-01-31T12:00:00.000000Z"
_TRANSFER_SHOWN = {
    "id": "7.0",
    "sequence": 7,
    **_TRANSFER,
    "committed_at": _WHEN,
    "effective_at": _WHEN,
}
_ACCOUNT_SHOWN = {
    "id": "user:100:BTC",
    "holder": "user:100",
    "asset": "BTC",
    "floor": "0",
    "posted": "2.5",
    "held": "0.5",
    "available": "2",
    "closed": False,
}
_HOLD_SHOWN = {
    "id": "1",
    "account": "user:100:BTC",
    "asset": "BTC",
    "amount": "0.5",
    "remaining": "0.5",
    "owner": "ledger",
    "expires_at": None,
    "state": "open",
}
_ENTRY_SHOWN = {
    "sequence": 7,
    "command": "transfer",
    "product": "ledger",
    "key": "order-1",
    "committed_at": _WHEN,
    "effective_at": _WHEN,
    "opened": [],
    "closed": [],
    "transfers": [_TRANSFER],
    "holds": [],
    "records": [],
    "events": [],
    "answer": {"id": "7.0"},
}
_LINE_SHOWN = {
    "ordinal": 3,
    "sequence": 7,
    "committed_at": _WHEN,
    "effective_at": _WHEN,
    "command": "transfer",
    "product": "ledger",
    "change": "-0.5",
    "counterpart": "user:200:BTC",
    "hold": None,
    "posted": "2",
    "held": "0",
}
_PAGING = {
    "limit": "How many, 1 to 1000; 100 if not given.",
    "cursor": "The `next_cursor` of the page before.",
}
_ORDER = {"order": "`oldest` (first) or `newest`."}


def routes(scopes: Collection[str]) -> list[Route]:
    """Return the routes of `/v1`; `scopes` are the faces whose keys can be abandoned."""
    return [
        *_asset_routes(),
        *_account_routes(),
        *_transfer_routes(),
        *_hold_routes(),
        *_entry_routes(),
        CommandRoute(
            face=FACE,
            method="POST",
            path="/v1/keys/{scope}/{key}/abandon",
            parse=_parse_abandon(scopes),
            render=_render_abandon,
            documentation=Documentation(
                summary="Give up an idempotency key",
                description="Afterwards the key has its receipt, or never will have one.",
                answer=AbandonShown,
                answer_example={"abandoned": True, "sequence": 8, "answer": None},
                errors={404: "There is no such scope."},
            ),
        ),
    ]


def _asset_routes() -> list[Route]:
    shown = {"name": "BTC", "scale": 18, "currency_id": 3}
    return [
        ReadRoute(
            face=FACE,
            method="GET",
            path="/v1/assets",
            read=_read_assets,
            documentation=Documentation(
                summary="All assets, with the decimals each has",
                answer=AssetsPage,
                answer_example={"data": [shown], "next_cursor": None},
            ),
        ),
        CommandRoute(
            face=FACE,
            method="POST",
            path="/v1/assets",
            parse=_parse_asset,
            render=_renderer(201, _same),
            documentation=Documentation(
                summary="Register an asset; its scale is fixed for ever",
                request=AssetBody,
                answer=Asset,
                status=201,
                request_example={"name": "DOGE", "scale": 8, "currency_id": 20},
                answer_example={"name": "DOGE", "scale": 8, "currency_id": 20},
                errors={409: "The asset, or the number, is registered otherwise."},
            ),
        ),
    ]


def _account_routes() -> list[Route]:
    return [
        CommandRoute(
            face=FACE,
            method="POST",
            path="/v1/accounts",
            parse=_parse_account,
            render=_renderer(201, _same),
            documentation=Documentation(
                summary="Open an account",
                description="By its id, or by holder and asset. The floor is 0 for users.",
                request=AccountBody,
                answer=general.AccountAnswer,
                status=201,
                request_example={"holder": "user:100", "asset": "BTC"},
                answer_example=_ACCOUNT_SHOWN,
                errors={409: "The account exists, or its holder has too many."},
            ),
        ),
        ReadRoute(
            face=FACE,
            method="GET",
            path="/v1/accounts",
            read=_read_accounts,
            documentation=Documentation(
                summary="Accounts, in the order of their opening",
                answer=AccountsPage,
                answer_example={"data": [_ACCOUNT_SHOWN], "next_cursor": None},
                parameters={
                    "holder": "Only those of this holder.",
                    "asset": "Only those of this asset.",
                    **_PAGING,
                },
            ),
        ),
        ReadRoute(
            face=FACE,
            method="GET",
            path="/v1/accounts/{id}",
            read=_read_account,
            documentation=Documentation(
                summary="One account",
                answer=general.AccountAnswer,
                answer_example=_ACCOUNT_SHOWN,
                errors={404: "There is no such account."},
            ),
        ),
        ReadRoute(
            face=FACE,
            method="GET",
            path="/v1/accounts/{id}/statement",
            read=_read_statement,
            documentation=Documentation(
                summary="What happened to an account, line by line",
                answer=StatementPage,
                answer_example={"data": [_LINE_SHOWN], "next_cursor": None},
                parameters={
                    "as_of": "Leave out what was committed after this moment (RFC 3339).",
                    **_ORDER,
                    **_PAGING,
                },
                errors={404: "There is no such account."},
            ),
        ),
        ReadRoute(
            face=FACE,
            method="GET",
            path="/v1/accounts/{id}/balance",
            read=_read_balance,
            documentation=Documentation(
                summary="The balances of an account as of a moment",
                answer=BalanceShown,
                answer_example={
                    "account": "user:100:BTC",
                    "asset": "BTC",
                    "as_of": _WHEN,
                    "by": "committed",
                    "posted": "2.5",
                    "held": "0.5",
                    "available": "2",
                },
                parameters={
                    "as_of": "The moment (RFC 3339); needed.",
                    "by": "`committed` (when it was booked) or `effective` (the date it bears).",
                },
                errors={404: "There is no such account."},
            ),
        ),
        CommandRoute(
            face=FACE,
            method="POST",
            path="/v1/accounts/{id}/close",
            parse=_parse_close,
            render=_renderer(200, _same),
            documentation=Documentation(
                summary="Close an account with a zero balance",
                request=CommandBody,
                answer=general.AccountAnswer,
                request_example={},
                answer_example={
                    **_ACCOUNT_SHOWN,
                    "posted": "0",
                    "held": "0",
                    "available": "0",
                    "closed": True,
                },
                errors={
                    404: "There is no such account.",
                    409: "It is closed, has a balance or holds, owes, or is the book's own.",
                },
            ),
        ),
    ]


def _transfer_routes() -> list[Route]:
    return [
        CommandRoute(
            face=FACE,
            method="POST",
            path="/v1/transfers",
            parse=_parse_transfer,
            render=_render_transfers,
            is_hot=True,
            documentation=Documentation(
                summary="Make a transfer, or a list of them",
                description=(
                    'A list is `{"atomic": true or false, "transfers": [...]}`: an atomic one '
                    "has up to 64 transfers, all or none; otherwise up to 1 000, each on its own, "
                    "answered with 200 and the results in order."
                ),
                request=TransferBody | AtomicTransfersBody | SeparateTransfersBody,
                answer=TransferShown | TransfersShown,
                status=201,
                request_example=_TRANSFER,
                answer_example=_TRANSFER_SHOWN,
                errors={
                    200: "The results of a list that is not atomic.",
                    404: "One of the accounts is not there.",
                    409: "Too little is available, or an account is closed or of another asset.",
                },
            ),
        )
    ]


def _hold_routes() -> list[Route]:
    ended = {**_HOLD_SHOWN, "remaining": "0"}
    gone = {
        404: "There is no such hold, or no such account.",
        409: "The hold has ended, belongs to another product, or too little is available.",
    }
    return [
        CommandRoute(
            face=FACE,
            method="POST",
            path="/v1/holds",
            parse=_parse_hold,
            render=_renderer(201, show_hold),
            documentation=Documentation(
                summary="Set money of an account aside",
                request=HoldBody,
                answer=HoldShown,
                status=201,
                request_example={"account": "user:100:BTC", "asset": "BTC", "amount": "0.5"},
                answer_example=_HOLD_SHOWN,
                errors={
                    404: "There is no such account.",
                    409: "Too little is available, or the account is closed.",
                },
            ),
        ),
        ReadRoute(
            face=FACE,
            method="GET",
            path="/v1/holds",
            read=_read_holds,
            documentation=Documentation(
                summary="The open holds of an account, oldest first",
                answer=HoldsPage,
                answer_example={"data": [_HOLD_SHOWN], "next_cursor": None},
                parameters={"account": "Whose holds; needed.", **_PAGING},
                errors={404: "There is no such account."},
            ),
        ),
        ReadRoute(
            face=FACE,
            method="GET",
            path="/v1/holds/{id}",
            read=_read_hold,
            documentation=Documentation(
                summary="One hold, open or not",
                answer=HoldShown,
                answer_example=_HOLD_SHOWN,
                errors={404: "There is no such hold."},
            ),
        ),
        CommandRoute(
            face=FACE,
            method="POST",
            path="/v1/holds/{id}/settle",
            parse=_parse_settle,
            render=_renderer(200, show_hold),
            documentation=Documentation(
                summary="Pay from a hold",
                description="The rest is released, or kept; above the hold, what is available.",
                request=SettleBody,
                answer=HoldShown,
                request_example={"amount": "0.5", "credit_account": "world:BTC"},
                answer_example={**ended, "state": "settled"},
                errors=gone,
            ),
        ),
        CommandRoute(
            face=FACE,
            method="POST",
            path="/v1/holds/{id}/void",
            parse=_parse_void,
            render=_renderer(200, show_hold),
            documentation=Documentation(
                summary="Release a hold",
                request=CommandBody,
                answer=HoldShown,
                request_example={},
                answer_example={**ended, "state": "voided"},
                errors=gone,
            ),
        ),
    ]


def _entry_routes() -> list[Route]:
    return [
        ReadRoute(
            face=FACE,
            method="GET",
            path="/v1/entries",
            read=_read_entries,
            documentation=Documentation(
                summary="The journal",
                answer=EntriesPage,
                answer_example={"data": [_ENTRY_SHOWN], "next_cursor": "7"},
                parameters={"product": "Only entries of this product.", **_ORDER, **_PAGING},
            ),
        ),
        ReadRoute(
            face=FACE,
            method="GET",
            path="/v1/entries/{sequence}",
            read=_read_entry,
            documentation=Documentation(
                summary="One entry",
                answer=EntryShown,
                answer_example=_ENTRY_SHOWN,
                errors={404: "There is no such entry."},
            ),
        ),
        CommandRoute(
            face=FACE,
            method="POST",
            path="/v1/entries/{sequence}/reverse",
            parse=_parse_reverse,
            render=_renderer(201, _show_reversal),
            documentation=Documentation(
                summary="Undo an entry of transfers, once, by a new entry",
                request=ReverseBody,
                answer=ReversalShown,
                status=201,
                request_example={},
                answer_example={
                    "sequence": 8,
                    "reversed_sequence": 7,
                    "transfers": [{**_TRANSFER_SHOWN, "id": "8.0", "sequence": 8}],
                },
                errors={
                    404: "There is no such entry.",
                    409: "It was reversed, is no transfer, or the money is not there any more.",
                },
            ),
        ),
    ]

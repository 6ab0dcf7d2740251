"""The payments face: `/accounts`, `/account/{id}`, `/payments`, byte for byte as its seed shows them.

Two profiles differ in the casing of what goes out: `seed` (the text that this face comes
from) and `head` (that service's latest version). What comes in may have either casing.
Errors have the service's own shape, `{"error": …}`; those that it never knew carry a
stable `code` too. The complete lists stream, page by page, and show the book as it stood
when they were asked for.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import replace

from pennyweight.delivery.http.payments_shapes import (
    AccountShown,
    Carried,
    CurrencyShown,
    HistoryLine,
    ListedPayment,
    ListedPaymentHead,
    PaymentShown,
    Profile,
    account_decoder,
    account_request,
    batch_decoder,
    batch_request,
    given,
    history_answer,
    list_answer,
    names_of,
    payment_decoder,
    payment_of,
    payment_request,
    user_of,
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
    PAGE_SIZE,
    PAGE_SIZE_MAX,
    RETRY,
    BadRequest,
    deadline_of,
    encode,
    key_of,
    limit_of,
    number_in_query,
    outcome_problem,
    read,
    read_nothing,
    receipt_headers,
    rfc3339,
)
from pennyweight.engine.engine import Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Head, Store
from pennyweight.engine.receipts import Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.engine.statements import StatementLine, balance_as_of, statement
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import decode_told
from pennyweight.ledger.money import format_amount
from pennyweight.ledger.refusals import Kind, Reason, Refused
from pennyweight.products.payments import (
    ACCOUNT,
    PRODUCT,
    DeletePaymentsAccount,
    OpenPaymentsAccount,
    Pay,
    PayBatch,
    PaymentAnswer,
    PaymentItem,
    PaymentsAccount,
    PaymentsAnswer,
    read_account,
    record_id,
)
from pennyweight.runtime.opening import assets_of

_PAGE = 500
_MESSAGES = {
    Reason.AMOUNT_NOT_POSITIVE: "Amount should be positive",
    Reason.SAME_ACCOUNT: "Could not make payment to self",
    Reason.ACCOUNT_NOT_FOUND: "Account not found",
    Reason.ASSET_MISMATCH: "Payment allowed only when account currencies match",
    Reason.INSUFFICIENT_FUNDS: "Buyer account does not have sufficient balance",
}
"""What the service has always said; other refusals say their own sentence."""


def _number_in_path(request: Request) -> int:
    """Return the account number of `/account/{id}`. Raises BadRequest."""
    text = request.params["id"]
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise BadRequest("id_invalid", "bad request")
    return int(text)


def _is_descending(request: Request) -> bool:
    """Whether the newest come first. Raises BadRequest."""
    order = request.query.get("order", "asc")
    if order not in {"asc", "desc"}:
        raise BadRequest("order_invalid", "order is asc or desc")
    return order == "desc"


def _show_account(
    account: PaymentsAccount, store: Store, standing: Standing, as_of: Head | None = None
) -> AccountShown:
    """Show an account with its balance as committed, or as it was when the book stood so."""
    ledger_account = _ledger_account(account, store)
    available = ledger_account.available
    if as_of is not None and ledger_account.version > as_of.sequence:
        available = balance_as_of(store, ledger_account, committed=as_of.committed_at).available
    scale = _asset(account.asset, store, standing).scale
    return AccountShown(
        account.number,
        account.name,
        account.currency_id,
        account.asset,
        format_amount(available, scale),
    )


def _ledger_account(account: PaymentsAccount, store: Store) -> Account:
    """Return the ledger account that a payments account stands for; it was opened before it."""
    found = store.account(account.account)
    if found is None:
        raise LookupError(f"{account.account} of payments account {account.number} is not there")
    return found


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


def _show_payment(answer: PaymentAnswer) -> PaymentShown:
    return PaymentShown(
        answer.id,
        answer.currency_id,
        answer.amount,
        answer.buyer_account_id,
        answer.seller_account_id,
        rfc3339(answer.committed_at),
    )


def _show_line(line: StatementLine, scale: int) -> HistoryLine:
    change = line.change if line.hold is None else -line.change
    return HistoryLine(
        line.ordinal,
        line.sequence,
        line.product,
        line.command,
        format_amount(change, scale),
        format_amount(line.posted - line.held, scale),
        format_amount(line.held, scale),
        line.counterpart,
        rfc3339(line.committed_at),
    )


# ── pages of the complete lists ───────────────────────────────────────────────────


def _account_pages(store: Store, standing: Standing) -> Iterator[bytes]:
    """Yield the accounts in order of their numbers, comma between, no page empty.

    All as of one moment: what was changed since the list was asked for is looked up as it was.
    """
    head = store.head()
    last = record_id(head.counters.get(ACCOUNT, 0))
    after = ""
    while page := store.records(ACCOUNT, after=after, limit=_PAGE):
        accounts = [read_account(record) for record in page if record.id <= last]
        shown = [
            encode(_show_account(account, store, standing, head))
            for account in accounts
            if account.deleted_in is None or account.deleted_in > head.sequence
        ]
        if shown:
            yield b",".join(shown)
        if len(accounts) < _PAGE:
            return
        after = page[-1].id


_answer_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    Pay.name: msgspec.json.Decoder(PaymentAnswer),
    PayBatch.name: msgspec.json.Decoder(PaymentsAnswer),
}


def _payments_in(body: bytes) -> list[PaymentAnswer]:
    """Return the payments that an entry of this product made."""
    told = decode_told(body)
    answers = _answer_decoders.get(told.command)
    if answers is None:
        return []
    answer = answers.decode(told.answer)
    return answer.payments if isinstance(answer, PaymentsAnswer) else [answer]


def _payment_pages(store: Store, shape: type[ListedPayment | ListedPaymentHead]) -> Iterator[bytes]:
    """Yield the payments in the order of their commits, comma between, no page empty."""
    last = store.head().sequence
    names = {asset.currency_id: asset.name for asset in assets_of(store).values()}
    after = 0
    while page := store.entries(after, _PAGE, product=PRODUCT):
        shown: list[bytes] = []
        for sequence, body in page:
            if sequence > last:
                break
            shown += [
                encode(
                    shape(
                        payment.id,
                        payment.currency_id,
                        names.get(payment.currency_id, ""),
                        payment.amount,
                        payment.buyer_account_id,
                        payment.seller_account_id,
                        rfc3339(payment.committed_at),
                    )
                )
                for payment in _payments_in(body)
            ]
        if shown:
            yield b",".join(shown)
        after = page[-1][0]
        if len(page) < _PAGE or after > last:
            return


def _complete_list(name: str, pages: Iterator[bytes]) -> Reply:
    """Return a complete list: `{}` when empty, in one piece when short, else page by page."""
    first = next(pages, None)
    if first is None:
        return Reply(200, b"{}")
    opening = b'{"%b":[%b' % (name.encode(), first)
    second = next(pages, None)
    if second is None:
        return Reply(200, opening + b"]}")
    return Reply(200, chunks=_stream(opening, second, pages))


def _stream(opening: bytes, second: bytes, pages: Iterator[bytes]) -> Iterator[bytes]:
    yield opening
    yield b"," + second
    for page in pages:
        yield b"," + page
    yield b"]}"


# ── the face ──────────────────────────────────────────────────────────────────────


class PaymentsFace:
    """The parsers, renderers and readers of one profile."""

    def __init__(self, profile: Profile) -> None:
        """See the module about profiles."""
        self.names = names_of(profile)
        self.listed: type[ListedPayment | ListedPaymentHead] = (
            ListedPaymentHead if profile == "head" else ListedPayment
        )

    # accounts

    def parse_open(self, request: Request, _standing: Standing) -> Submission | Reply:
        """POST /accounts."""
        try:
            body = read(account_decoder, request.body)
            command = OpenPaymentsAccount(
                given(body.name, body.head_name, "name"),
                given(body.amount, body.head_amount, "amount"),
                given(body.currency_id, body.head_currency_id, "currency_id"),
                user_of(body),
            )
            return self._submission(request, body, command)
        except (BadRequest, Refused) as error:
            return self._bad(error)

    def render_open(self, outcomes: list[Outcome], request: Request) -> Reply:
        """POST /accounts: `{}`, and the account's address in the header Location."""
        outcome = outcomes[0]
        if not isinstance(outcome, Receipt):
            return self._error_of(outcome, request)
        location = ("Location", f"/account/{outcome.answer.id}")
        return Reply(200, b"{}", (location, *receipt_headers(outcome)))

    def list_accounts(self, _request: Request, store: Store, standing: Standing) -> Reply:
        """GET /accounts."""
        return _complete_list(self.names["accounts"], _account_pages(store, standing))

    def get_account(self, request: Request, store: Store, standing: Standing) -> Reply:
        """GET /account/{id}."""
        try:
            account = self._account(request, store)
        except BadRequest as error:
            return self._bad(error)
        return Reply(200, encode(_show_account(account, store, standing)))

    def get_history(self, request: Request, store: Store, standing: Standing) -> Reply:
        """GET /account/{id}/history."""
        try:
            account = self._account(request, store, is_deleted_too=True)
            lines, after = statement(
                store,
                _ledger_account(account, store),
                after=number_in_query(request, "cursor"),
                limit=limit_of(request),
                is_descending=_is_descending(request),
            )
        except BadRequest as error:
            return self._bad(error)
        scale = _asset(account.asset, store, standing).scale
        page = {
            self.names["history"]: [_show_line(line, scale) for line in lines],
            self.names["next_cursor"]: None if after is None else str(after),
        }
        return Reply(200, encode(page))

    def parse_delete(self, request: Request, _standing: Standing) -> Submission | Reply:
        """DELETE /account/{id}."""
        try:
            read_nothing(request.body)
            command = DeletePaymentsAccount(_number_in_path(request))
            return self._submission(request, Carried(), command)
        except (BadRequest, Refused) as error:
            return self._bad(error)

    def render_delete(self, outcomes: list[Outcome], request: Request) -> Reply:
        """DELETE /account/{id}: `{}`."""
        outcome = outcomes[0]
        if not isinstance(outcome, Receipt):
            return self._error_of(outcome, request)
        return Reply(200, b"{}", receipt_headers(outcome))

    # payments

    def parse_pay(self, request: Request, _standing: Standing) -> Submission | Reply:
        """POST /payments."""
        try:
            body = read(payment_decoder, request.body)
            return self._submission(request, body, payment_of(body, Pay))
        except (BadRequest, Refused) as error:
            return self._bad(error)

    def render_pay(self, outcomes: list[Outcome], request: Request) -> Reply:
        """POST /payments: the payment."""
        outcome = outcomes[0]
        if not isinstance(outcome, Receipt):
            return self._error_of(outcome, request)
        return Reply(200, encode(_show_payment(outcome.answer)), receipt_headers(outcome))

    def parse_batch(self, request: Request, _standing: Standing) -> Submission | Reply:
        """POST /payments/batch."""
        try:
            body = read(batch_decoder, request.body)
            items = given(body.payments, body.head_payments, "payments")
            command = PayBatch(tuple(payment_of(item, PaymentItem) for item in items))
            return self._submission(request, body, command)
        except (BadRequest, Refused) as error:
            return self._bad(error)

    def render_batch(self, outcomes: list[Outcome], request: Request) -> Reply:
        """POST /payments/batch: the payments in request order."""
        outcome = outcomes[0]
        if not isinstance(outcome, Receipt):
            return self._error_of(outcome, request)
        shown = [_show_payment(payment) for payment in outcome.answer.payments]
        return Reply(200, encode({self.names["payments"]: shown}), receipt_headers(outcome))

    def list_payments(self, _request: Request, store: Store, _standing: Standing) -> Reply:
        """GET /payments."""
        pages = _payment_pages(store, self.listed)
        return _complete_list(self.names["payments"], pages)

    def list_currencies(self, _request: Request, store: Store, _standing: Standing) -> Reply:
        """GET /currencies."""
        assets = sorted(assets_of(store).values(), key=lambda asset: asset.currency_id)
        shown = [CurrencyShown(asset.currency_id, asset.name) for asset in assets]
        return Reply(200, encode({self.names["currencies"]: shown}))

    # inside

    def _submission(self, request: Request, body: Carried, command: Command) -> Submission:
        """Return a command on its way. Raises BadRequest for its key or deadline."""
        return Submission(
            command,
            key=key_of(request, body.idempotency_key),
            not_after=deadline_of(request, body.not_after),
        )

    def _account(
        self, request: Request, store: Store, *, is_deleted_too: bool = False
    ) -> PaymentsAccount:
        """Return the account that the path names. Raises BadRequest."""
        record = store.record(ACCOUNT, record_id(_number_in_path(request)))
        account = None if record is None else read_account(record)
        if account is None or (account.deleted_in is not None and not is_deleted_too):
            raise BadRequest("account_not_found", "Account not found", status=404)
        return account

    def _bad(self, error: BadRequest | Refused) -> Reply:
        """Return what made a request unreadable."""
        if isinstance(error, Refused):
            return self._refused(Refusal(error.reason, error.message, error.figures))
        return self._error(error.status, error.detail)

    def _error_of(self, outcome: Refusal | Failure | Unknown, request: Request) -> Reply:
        """Return an outcome that is no receipt."""
        if isinstance(outcome, Refusal):
            return self._refused(outcome)
        problem = outcome_problem(outcome, request)
        detail = problem.detail
        if problem.correlation_id:
            detail += f" ({problem.correlation_id})"
        reply = self._error(problem.status, detail, problem.code)
        return replace(reply, headers=RETRY) if isinstance(outcome, Unknown) else reply

    def _refused(self, refusal: Refusal) -> Reply:
        """Return a refusal: 404 for a missing account, 422 for a key that was reused, else 400."""
        reason = refusal.reason
        message = _MESSAGES.get(reason, refusal.message)
        if "position" in refusal.figures:
            message = f"payments[{refusal.figures['position']}]: {message}"
        if reason is Reason.KEY_REUSED:
            return self._error(422, message, reason.code)
        if reason is Reason.KEY_ABANDONED or reason is Reason.NOT_AFTER_PASSED:
            return self._error(409, message, reason.code)
        return self._error(404 if reason.kind is Kind.NOT_FOUND else 400, message)

    def _error(self, status: int, message: str, code: str = "") -> Reply:
        """Return an error in this face's shape."""
        body = {self.names["error"]: message}
        if code:
            body[self.names["code"]] = code
        return Reply(status, encode(body))


# ── routes ────────────────────────────────────────────────────────────────────────

_NO_ACCOUNT = "Account not found"
_ERRORS = {
    400: "the request is not as it should be, or a rule says no; the message says why",
    409: "the key was given up, or the deadline has passed",
    422: "the key was used for another request",
    503: "nobody can tell yet whether it was done: ask again under the same key",
}
_TIMESTAMP = "2019-06-13T03:21:29.933672Z"
_BUYER = {"ID": 1, "Name": "buyer", "CurrencyID": 1, "CurrencyName": "USD", "Amount": "499.9"}
_SELLER = {"ID": 2, "Name": "seller", "CurrencyID": 1, "CurrencyName": "USD", "Amount": "500.1"}
_PAID = {
    "ID": 1,
    "CurrencyID": 1,
    "Amount": "500.1",
    "BuyerAccountID": 1,
    "SellerAccountID": 2,
    "OperationTimestamp": _TIMESTAMP,
}
_LINE = {
    "ID": 2,
    "Sequence": 12,
    "Product": "payments",
    "Operation": "pay",
    "Amount": "-500.1",
    "Balance": "499.9",
    "Held": "0",
    "Counterpart": "account:2:USD",
    "OperationTimestamp": _TIMESTAMP,
}


def routes(profile: Profile = "seed") -> list[Route]:
    """Return the routes of the payments face in one of its two profiles."""
    face = PaymentsFace(profile)
    return [*_account_routes(face), *_payment_routes(face)]


def _errors(names: dict[str, str], errors: dict[int, str]) -> dict[int, str]:
    """Return errors with the shape in which this face tells them."""
    shape = f'`{{"{names["error"]}": …}}`'
    return {status: f"{sentence}; {shape}" for status, sentence in errors.items()}


def _account_routes(face: PaymentsFace) -> list[Route]:
    names = face.names
    return [
        ReadRoute(
            face=PRODUCT,
            method="GET",
            path="/accounts",
            read=face.list_accounts,
            documentation=Documentation(
                summary="List all accounts, by number",
                description="The complete list as of one moment, streamed when long; `{}` if there are none.",
                answer=list_answer(names["accounts"], AccountShown, "Accounts"),
                answer_example={names["accounts"]: [_BUYER, _SELLER]},
            ),
        ),
        CommandRoute(
            face=PRODUCT,
            method="POST",
            path="/accounts",
            parse=face.parse_open,
            render=face.render_open,
            documentation=Documentation(
                summary="Open an account with an amount",
                description=(
                    "The header Location names the account. With `user_id` it is that user's "
                    "account of the currency; one that exists is adopted if the amount is 0."
                ),
                request=account_request(names),
                request_example={
                    names["name"]: "buyer",
                    names["amount"]: "1000",
                    names["currency_id"]: 1,
                },
                answer=dict[str, str],
                answer_example={},
                errors=_errors(names, _ERRORS),
            ),
        ),
        ReadRoute(
            face=PRODUCT,
            method="GET",
            path="/account/{id}",
            read=face.get_account,
            documentation=Documentation(
                summary="Show one account",
                answer=AccountShown,
                answer_example=_BUYER,
                errors=_errors(names, {400: "the id is no number", 404: _NO_ACCOUNT}),
            ),
        ),
        CommandRoute(
            face=PRODUCT,
            method="DELETE",
            path="/account/{id}",
            parse=face.parse_delete,
            render=face.render_delete,
            documentation=Documentation(
                summary="Delete an account",
                description=(
                    "An account of its own is closed, which a balance or holds refuse; a user's "
                    "is only unlinked. The name is free again, the history stays."
                ),
                answer=dict[str, str],
                answer_example={},
                errors=_errors(names, {**_ERRORS, 404: _NO_ACCOUNT}),
            ),
        ),
        ReadRoute(
            face=PRODUCT,
            method="GET",
            path="/account/{id}/history",
            read=face.get_history,
            documentation=Documentation(
                summary="Page through an account's changes, with the balance after each",
                description="Whatever changed it: payments, transfers and holds of all products.",
                answer=history_answer(names),
                answer_example={names["history"]: [_LINE], names["next_cursor"]: None},
                errors=_errors(
                    names, {400: "a parameter is not as it should be", 404: _NO_ACCOUNT}
                ),
                parameters={
                    "limit": f"lines of a page, 1 to {PAGE_SIZE_MAX}; {PAGE_SIZE} if not given",
                    "cursor": "next_cursor of the page before",
                    "order": "asc (oldest first, also if not given) or desc",
                },
            ),
        ),
    ]


def _payment_routes(face: PaymentsFace) -> list[Route]:
    names = face.names
    listed = {"ID": 1, "CurrencyID": 1, names["currency_name"]: "USD", **_PAID}
    new_payment = {
        names["buyer_account_id"]: 1,
        names["seller_account_id"]: 2,
        names["amount"]: "500.1",
    }
    return [
        ReadRoute(
            face=PRODUCT,
            method="GET",
            path="/payments",
            read=face.list_payments,
            documentation=Documentation(
                summary="List all payments, by time",
                description="The complete list as of one moment, streamed when long; `{}` if there are none.",
                answer=list_answer(names["payments"], face.listed, "ListedPayments"),
                answer_example={names["payments"]: [listed]},
            ),
        ),
        CommandRoute(
            face=PRODUCT,
            method="POST",
            path="/payments",
            parse=face.parse_pay,
            render=face.render_pay,
            is_hot=True,
            documentation=Documentation(
                summary="Pay from one account to another of the same currency",
                request=payment_request(names),
                request_example=new_payment,
                answer=PaymentShown,
                answer_example=_PAID,
                errors=_errors(names, {**_ERRORS, 404: _NO_ACCOUNT}),
            ),
        ),
        CommandRoute(
            face=PRODUCT,
            method="POST",
            path="/payments/batch",
            parse=face.parse_batch,
            render=face.render_batch,
            documentation=Documentation(
                summary="Make up to 64 payments of any currencies, all or none",
                description=(
                    "Balances are checked payment by payment, in order, so that one may spend "
                    "what an earlier one brought. An error names the position of its payment."
                ),
                request=batch_request(names),
                request_example={names["payments"]: [new_payment]},
                answer=list_answer(names["payments"], PaymentShown, "Payments"),
                answer_example={names["payments"]: [_PAID]},
                errors=_errors(names, {**_ERRORS, 404: _NO_ACCOUNT}),
            ),
        ),
        ReadRoute(
            face=PRODUCT,
            method="GET",
            path="/currencies",
            read=face.list_currencies,
            documentation=Documentation(
                summary="List the currencies, by number",
                answer=list_answer(names["currencies"], CurrencyShown, "Currencies"),
                answer_example={names["currencies"]: [{"CurrencyID": 1, "CurrencyName": "USD"}]},
            ),
        ),
    ]

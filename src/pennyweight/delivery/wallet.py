"""The bet/win protocol between the wire and the book: bodies, checks, commands, answers.

The HTTP face and the Python façade both stand on this: the checks of shape and types,
the statuses and the answers are written once, here. No I/O, and no knowledge of HTTP.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from pennyweight.engine.engine import Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.ledger.accounts import Account, user_holder
from pennyweight.ledger.money import LIMIT, to_units
from pennyweight.ledger.refusals import Reason, Refused, refuse
from pennyweight.products.wallet import (
    CURRENCY,
    Bet,
    Rollback,
    WalletAnswer,
    Win,
    in_wallet_units,
    shown_account,
)

RS_OK = "RS_OK"
RS_ERROR_UNKNOWN = "RS_ERROR_UNKNOWN"
RS_ERROR_INVALID_PARTNER = "RS_ERROR_INVALID_PARTNER"
RS_ERROR_INVALID_SIGNATURE = "RS_ERROR_INVALID_SIGNATURE"
RS_ERROR_WRONG_SYNTAX = "RS_ERROR_WRONG_SYNTAX"
RS_ERROR_WRONG_TYPES = "RS_ERROR_WRONG_TYPES"
RS_ERROR_NOT_ENOUGH_MONEY = "RS_ERROR_NOT_ENOUGH_MONEY"

Dialect = Literal["hub88", "extended"]
"""Which statuses are spoken: those of the published table, or those some dialects add."""

STATUSES: dict[Reason, str] = {
    Reason.KEY_REUSED: "RS_ERROR_DUPLICATE_TRANSACTION",
    Reason.USER_DISABLED: "RS_ERROR_USER_DISABLED",
    Reason.SESSION_UNKNOWN: "RS_ERROR_INVALID_TOKEN",
    Reason.SESSION_EXPIRED: "RS_ERROR_TOKEN_EXPIRED",
    Reason.GAME_UNKNOWN: "RS_ERROR_INVALID_GAME",
    Reason.CURRENCY_MISMATCH: "RS_ERROR_WRONG_CURRENCY",
    Reason.AMOUNT_TOO_FINE: RS_ERROR_WRONG_TYPES,
    Reason.TRANSACTION_NOT_FOUND: "RS_ERROR_TRANSACTION_DOES_NOT_EXIST",
    Reason.LIMIT_REACHED: "RS_ERROR_LIMIT_REACHED",
    Reason.INSUFFICIENT_FUNDS: RS_ERROR_NOT_ENOUGH_MONEY,
}
"""The status of each refusal; every other one is RS_ERROR_UNKNOWN."""

EXTENDED_STATUSES: dict[Reason, str] = {
    **STATUSES,
    Reason.KEY_ABANDONED: "RS_ERROR_TRANSACTION_ROLLED_BACK",
    Reason.TRANSACTION_ROLLED_BACK: "RS_ERROR_TRANSACTION_ROLLED_BACK",
    Reason.LIMIT_REACHED: "RS_ERROR_BET_LIMIT_EXCEEDED",
    Reason.USER_NOT_FOUND: "RS_ERROR_USER_INVALID",
    Reason.USER_ID_INVALID: "RS_ERROR_USER_INVALID",
}

_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_is_uuid = _UUID.fullmatch


class WalletSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the wallet checks besides the book; None means that everything is allowed.

    `partners` are the `sub_partner_id`s that are served, `bet_max` is decimal text in the
    currency's natural unit. A game, token or limit is a matter of bets only: what was
    bet must be able to be won or rolled back. `is_disabled` turns everybody away.
    `public_key` is a PEM text: the provider's requests must then be signed.
    """

    dialect: Dialect = "hub88"
    one_win_per_bet: bool = False
    is_disabled: bool = False
    partners: frozenset[str] | None = None
    tokens: frozenset[str] | None = None
    expired_tokens: frozenset[str] = frozenset()
    games: frozenset[str] | None = None
    currencies: frozenset[str] | None = None
    bet_max: str = ""
    public_key: str = ""


# ── bodies ────────────────────────────────────────────────────────────────────────

Uuid = Annotated[str, msgspec.Meta(extra_json_schema={"format": "uuid"})]
Units = Annotated[
    int,
    msgspec.Meta(description="in 1/100 000 of the currency", extra_json_schema={"minimum": 0}),
]


class Asked(msgspec.Struct, kw_only=True, gc=False):
    """What every request carries."""

    user: str
    request_uuid: Uuid
    sub_partner_id: str | None = None
    supplier_user: str | None = None


class Played(Asked, kw_only=True, gc=False):
    """What bets, wins and rollbacks carry."""

    transaction_uuid: Uuid
    token: str
    game_code: str
    round: str | None = None
    round_closed: bool | None = None
    supplier_transaction_id: str | None = None
    reward_uuid: str | None = None
    meta: dict[str, Any] | None = None


class BetBody(Played, kw_only=True, gc=False):
    """The body of `POST /transaction/bet`."""

    currency: str
    amount: Units
    bet: str | None = None
    is_free: bool | None = None
    is_supplier_promo: bool | None = None
    is_aggregated: bool | None = None
    is_aggregate: bool | None = None


class WinBody(BetBody, kw_only=True, gc=False):
    """The body of `POST /transaction/win`."""

    reference_transaction_uuid: Uuid


class RollbackBody(Played, kw_only=True, gc=False):
    """The body of `POST /transaction/rollback`."""

    reference_transaction_uuid: Uuid


class InfoBody(Asked, kw_only=True, gc=False):
    """The body of `POST /user/info`."""


class BalanceBody(InfoBody, kw_only=True, gc=False):
    """The body of `POST /user/balance`."""

    token: str
    game_code: str


class UsersBody(msgspec.Struct, gc=False):
    """The body of `POST /users`."""

    users: list[str]


AnyBody = TypeVar("AnyBody", bound=msgspec.Struct)
AskedBody = TypeVar("AskedBody", bound=Asked)


class WalletReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An answer as the wire sees it; the description's model, answers themselves are dicts.

    `user` and `request_uuid` are null where they could not be read. `currency` comes with
    RS_OK, `balance` (in 1/100 000) with RS_OK and RS_ERROR_NOT_ENOUGH_MONEY.
    """

    user: str | None
    status: str
    request_uuid: str | None
    currency: str | msgspec.UnsetType = msgspec.UNSET
    balance: int | msgspec.UnsetType = msgspec.UNSET


class Fault(Exception):
    """The request is answered without asking the book; `answer` says how."""

    def __init__(self, status: str, user: Any = None, request_uuid: Any = None) -> None:
        """`user` and `request_uuid` are told only if they are text."""
        super().__init__(status)
        self.status = status
        self.answer: dict[str, Any] = {
            "user": user if isinstance(user, str) else None,
            "status": status,
            "request_uuid": request_uuid if isinstance(request_uuid, str) else None,
        }


# ── shape and types ───────────────────────────────────────────────────────────────


def body_of(kind: type[AnyBody], value: Any) -> AnyBody:
    """Return a map as a body of this kind. Raises Fault."""
    if value.__class__ is not dict and isinstance(value, Mapping):
        value = dict(value)
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError):
        raise misshapen(kind, value) from None


def misshapen(kind: type[msgspec.Struct], value: Any) -> Fault:
    """Say what is wrong with something that is no body of this kind.

    WRONG_SYNTAX if it is no object or a required field is missing, else WRONG_TYPES.
    """
    if not isinstance(value, dict):
        return Fault(RS_ERROR_WRONG_SYNTAX)
    is_complete = all(
        field.encode_name in value for field in msgspec.structs.fields(kind) if field.required
    )
    status = RS_ERROR_WRONG_TYPES if is_complete else RS_ERROR_WRONG_SYNTAX
    return Fault(status, value.get("user"), value.get("request_uuid"))


def wrong_types(body: Asked) -> Fault:
    """Say that a field has the wrong type."""
    return Fault(RS_ERROR_WRONG_TYPES, body.user, body.request_uuid)


# ── the protocol ──────────────────────────────────────────────────────────────────


class Protocol:
    """The wallet's protocol as configured: bodies become commands, outcomes become answers."""

    def __init__(self, settings: WalletSettings) -> None:
        """Raises Refused when `bet_max` is no amount."""
        self.settings = settings
        self._bet_max = to_units(settings.bet_max, 5) if settings.bet_max else LIMIT
        self._statuses = STATUSES if settings.dialect == "hub88" else EXTENDED_STATUSES
        self._has_bars = bool(settings.expired_tokens or settings.bet_max) or any(
            known is not None for known in (settings.tokens, settings.games, settings.currencies)
        )

    # ── commands ──────────────────────────────────────────────────────────────────

    def bet(self, body: BetBody, *, echo: str = "") -> Submission:
        """Return a bet. `echo` is kept with the answer. Raises Fault."""
        transaction = body.transaction_uuid.lower()
        amount = body.amount
        if not _is_uuid(transaction) or not _is_uuid(body.request_uuid) or not 0 <= amount < LIMIT:
            raise wrong_types(body)
        self._check_partner(body)
        command = Bet(
            body.user,
            amount,
            body.currency,
            body.game_code,
            body.round,
            transaction,
            self._bar(body) if self._has_bars else "",
            echo,
        )
        return Submission(command, key=transaction)

    def win(self, body: WinBody, *, echo: str = "") -> Submission:
        """Return a win. `echo` is kept with the answer. Raises Fault."""
        transaction = body.transaction_uuid.lower()
        reference = body.reference_transaction_uuid.lower()
        amount = body.amount
        if (
            not _is_uuid(transaction)
            or not _is_uuid(reference)
            or not _is_uuid(body.request_uuid)
            or not 0 <= amount < LIMIT
        ):
            raise wrong_types(body)
        self._check_partner(body)
        command = Win(
            body.user,
            amount,
            body.currency,
            body.game_code,
            body.round,
            reference,
            transaction,
            body.round_closed is True,
            self.settings.one_win_per_bet,
            self._currency_bar(body.currency),
            echo,
        )
        return Submission(command, key=transaction)

    def rollback(self, body: RollbackBody, *, echo: str = "") -> Submission:
        """Return a rollback. `echo` is kept with the answer. Raises Fault."""
        transaction = body.transaction_uuid.lower()
        reference = body.reference_transaction_uuid.lower()
        if not (_is_uuid(transaction) and _is_uuid(reference) and _is_uuid(body.request_uuid)):
            raise wrong_types(body)
        self._check_partner(body)
        command = Rollback(body.user, body.game_code, body.round, reference, echo)
        return Submission(command, key=transaction)

    def _check_partner(self, body: Asked) -> None:
        """Raises Fault for a partner who is not served."""
        settings = self.settings
        if settings.is_disabled or (
            settings.partners is not None
            and body.sub_partner_id is not None
            and body.sub_partner_id not in settings.partners
        ):
            raise Fault(RS_ERROR_INVALID_PARTNER, body.user, body.request_uuid)

    def _bar(self, body: BetBody) -> str:
        """Return the code of the first thing that the settings have against a bet, or ""."""
        settings = self.settings
        if body.token in settings.expired_tokens:
            return Reason.SESSION_EXPIRED.code
        if settings.tokens is not None and body.token not in settings.tokens:
            return Reason.SESSION_UNKNOWN.code
        if settings.games is not None and body.game_code not in settings.games:
            return Reason.GAME_UNKNOWN.code
        bar = self._currency_bar(body.currency)
        if not bar and body.amount > self._bet_max:
            return Reason.LIMIT_REACHED.code
        return bar

    def _currency_bar(self, currency: str) -> str:
        """Return the code for a currency that is not served, or ""."""
        currencies = self.settings.currencies
        is_served = currencies is None or currency in currencies
        return "" if is_served else Reason.CURRENCY_MISMATCH.code

    # ── answers ───────────────────────────────────────────────────────────────────

    def answer(self, user: str, request_uuid: str, outcome: Receipt | Refusal) -> dict[str, Any]:
        """Return the answer to a decided request."""
        if outcome.__class__ is Receipt:
            done: WalletAnswer = outcome.answer
            return {
                "user": user,
                "status": RS_OK,
                "request_uuid": request_uuid,
                "currency": done.currency,
                "balance": done.balance,
            }
        return self._refused(user, request_uuid, outcome)  # type: ignore[arg-type]

    def balance(self, body: Asked, store: Store, standing: Standing) -> dict[str, Any]:
        """Return the answer to a question for the balance, as committed. Raises Fault."""
        if not _is_uuid(body.request_uuid):
            raise wrong_types(body)
        self._check_partner(body)
        try:
            account = _account_of(store, body.user)
        except Refused as refused:
            refusal = Refusal(refused.reason, refused.message)
            return self._refused(body.user, body.request_uuid, refusal)
        scale = standing.assets[account.asset].scale
        shown = WalletAnswer(in_wallet_units(account.available, scale), account.asset)
        return self.answer(body.user, body.request_uuid, Receipt(0, shown))

    def _refused(self, user: str, request_uuid: str, refusal: Refusal) -> dict[str, Any]:
        status = self._statuses.get(refusal.reason, RS_ERROR_UNKNOWN)
        answer: dict[str, Any] = {"user": user, "status": status, "request_uuid": request_uuid}
        if status == RS_ERROR_NOT_ENOUGH_MONEY:
            answer["balance"] = refusal.figures["balance"]
        return answer


def status_of(reason: Reason, dialect: Dialect = "hub88") -> str:
    """Return the status that a refusal becomes."""
    statuses = STATUSES if dialect == "hub88" else EXTENDED_STATUSES
    return statuses.get(reason, RS_ERROR_UNKNOWN)


def _account_of(store: Store, user: str) -> Account:
    """Return the account whose balance a user is shown. Refusals: user_id_invalid, user_not_found."""
    holder = user_holder(user)
    account = store.account(f"{holder}:{CURRENCY}")
    if account is not None and not account.is_closed:
        return account
    accounts = store.accounts(0, 1_000, holder=holder)
    if not accounts:
        refuse(Reason.USER_NOT_FOUND, f"there is no user {user[:80]!r}")
    return shown_account(accounts)

"""The bet/win wallet over HTTP: the provider's five routes, and the operator's own for users.

Every body, readable or not, is answered with HTTP 200 and a `status`. Any other code says
that the outcome is unknown. With a public key configured the provider's requests must be
signed over the bytes as sent, and the operator's routes take no signature for a key.
"""

import base64
import binascii
from collections.abc import Callable
from typing import Any

import msgspec

from pennyweight.delivery.http import wire
from pennyweight.delivery.http.routes import (
    CommandRoute,
    Documentation,
    ReadRoute,
    Reply,
    Request,
    Route,
)
from pennyweight.delivery.wallet import (
    RS_ERROR_INVALID_SIGNATURE,
    RS_ERROR_UNKNOWN,
    RS_ERROR_WRONG_SYNTAX,
    RS_ERROR_WRONG_TYPES,
    RS_OK,
    AnyBody,
    AskedBody,
    BalanceBody,
    BetBody,
    Fault,
    InfoBody,
    Protocol,
    RollbackBody,
    UsersBody,
    WalletReply,
    WalletSettings,
    WinBody,
    misshapen,
)
from pennyweight.engine.engine import Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.refusals import Reason, Refused
from pennyweight.products.wallet import CreateUser, LockUser

FACE = "wallet"
SIGNATURE_HEADER = "x-hub88-signature"
USERS_MAX = 10_000
"""Users in one `POST /users`."""


class SignatureUnavailable(Exception):
    """A public key is configured, but `cryptography` is missing or the key is none."""


class UsersAnswer(msgspec.Struct, frozen=True):
    """Which of the users were created, in request order."""

    status: str
    created: list[str]


class LockAnswer(msgspec.Struct, frozen=True):
    """Whether a user is locked out of new bets; only RS_OK says it."""

    user: str
    status: str
    disabled: bool | msgspec.UnsetType = msgspec.UNSET


class _Echo(msgspec.Struct, gc=False):
    """What an answer repeats of its request."""

    user: str
    request_uuid: str


_echo = wire.decoder(_Echo)
_users = wire.decoder(UsersBody)
_tokens = wire.decoder(dict[str, msgspec.Raw])
_text = wire.decoder(str)


def routes(settings: WalletSettings | None = None) -> list[Route]:
    """Return the face's routes. Raises SignatureUnavailable; Refused for a bad `bet_max`."""
    settings = settings or WalletSettings()
    face = _Face(settings)
    return [
        _play(face, "bet", BetBody, face.protocol.bet, _BET),
        _play(face, "win", WinBody, face.protocol.win, _WIN),
        _play(face, "rollback", RollbackBody, face.protocol.rollback, _ROLLBACK),
        _ask(face, "balance", BalanceBody, _BALANCE),
        _ask(face, "info", InfoBody, _INFO),
        CommandRoute(
            face=FACE,
            method="POST",
            path="/users",
            parse=face.parse_users,
            render=_render_users,
            documentation=_USERS,
        ),
        _lock(face, "disable", _DISABLE, is_disabled=True),
        _lock(face, "enable", _ENABLE, is_disabled=False),
    ]


# ── signatures ────────────────────────────────────────────────────────────────────


def signature_check(public_key: str) -> Callable[[str, bytes], bool]:
    """Return what checks a base64 RSA-SHA256 signature over the bytes of a body.

    Raises SignatureUnavailable.
    """
    try:
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import padding, rsa  # noqa: PLC0415
    except ImportError as error:
        raise SignatureUnavailable("signatures need the extra `signatures`") from error
    try:
        key = serialization.load_pem_public_key(public_key.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureUnavailable("the wallet's public key is no PEM public key") from error
    if not isinstance(key, rsa.RSAPublicKey):
        raise SignatureUnavailable("the wallet's public key is no RSA key")
    rsa_key = key

    def is_valid(signature: str, body: bytes) -> bool:
        try:
            signed = base64.b64decode(signature, validate=True)
            rsa_key.verify(signed, body, padding.PKCS1v15(), hashes.SHA256())
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True

    return is_valid


# ── reading and answering ─────────────────────────────────────────────────────────


class _Face:
    """The protocol as configured, with the signatures of its requests."""

    def __init__(self, settings: WalletSettings) -> None:
        self.protocol = Protocol(settings)
        self._is_signed = signature_check(settings.public_key) if settings.public_key else None

    def read(self, decoder: msgspec.json.Decoder[AnyBody], request: Request) -> AnyBody:
        """Return a provider's body, its signature checked first. Raises Fault."""
        if self._is_signed is not None and not self._is_signed(
            request.headers.get(SIGNATURE_HEADER, ""), request.body
        ):
            known = _told(request.body) or {}
            raise Fault(RS_ERROR_INVALID_SIGNATURE, known.get("user"), known.get("request_uuid"))
        return _read(decoder, request.body)

    def check_operator(self, request: Request) -> None:
        """Raises Fault: a provider's signature opens none of the operator's routes."""
        if self._is_signed is not None and request.headers.get(SIGNATURE_HEADER):
            raise Fault(RS_ERROR_INVALID_SIGNATURE)

    def parse_users(self, request: Request, _: Standing) -> list[Submission] | Reply:
        """Return one command per user, or the answer to a body that is none."""
        try:
            self.check_operator(request)
            names = _names(request)
        except Fault as fault:
            return Reply(200, wire.encode(UsersAnswer(fault.status, [])))
        if not names:
            return Reply(200, wire.encode(UsersAnswer(RS_OK, [])))
        return [Submission(CreateUser(name)) for name in names]


def _read(decoder: msgspec.json.Decoder[AnyBody], body: bytes) -> AnyBody:
    """Return a body. Raises Fault."""
    try:
        return wire.read(decoder, body)
    except wire.Unreadable as error:
        if error.code == "body_malformed":
            raise Fault(RS_ERROR_WRONG_SYNTAX) from None
        raise misshapen(decoder.type, _told(body)) from None


def _told(body: bytes) -> dict[str, Any] | None:
    """Return the fields of an object that could not be read, those to be repeated as text."""
    try:
        fields: dict[str, Any] = dict(_tokens.decode(body))
        for name in ("user", "request_uuid"):
            if bytes(fields.get(name, b""))[:1] == b'"':
                fields[name] = _text.decode(fields[name])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return fields


def _names(request: Request) -> list[str]:
    """Return the users that a request wants created. Raises Fault."""
    names = [name for name in _read(_users, request.body).users if name]
    if len(names) > USERS_MAX:
        raise Fault(RS_ERROR_WRONG_SYNTAX)
    try:
        for name in names:
            user_holder(name)
    except Refused:
        raise Fault(RS_ERROR_WRONG_TYPES) from None
    return names


def _answer(answer: dict[str, Any], headers: tuple[tuple[str, str], ...] = ()) -> Reply:
    return Reply(200, wire.encode(answer), headers)


def _problem(outcomes: list[Outcome], request: Request) -> Reply | None:
    """Return the reply to a list in which some outcome is neither done nor refused."""
    for outcome in outcomes:
        if isinstance(outcome, Failure | Unknown):
            return wire.problem_of(outcome, request)
    return None


# ── the routes ────────────────────────────────────────────────────────────────────


def _play(
    face: _Face,
    name: str,
    kind: type[AskedBody],
    command_of: Callable[[AskedBody], Submission],
    documentation: Documentation,
) -> CommandRoute:
    """Return the route of a bet, a win or a rollback."""
    decoder = wire.decoder(kind)
    read, protocol = face.read, face.protocol

    def parse(request: Request, _: Standing) -> Submission | Reply:
        try:
            submission = command_of(read(decoder, request))
        except Fault as fault:
            return _answer(fault.answer)
        if "not-after" in request.headers:
            submission.not_after = wire.deadline_of(request)
        return submission

    def render(outcomes: list[Outcome], request: Request) -> Reply:
        outcome = outcomes[0]
        if isinstance(outcome, Failure | Unknown):
            return wire.problem_of(outcome, request)
        echo = _echo.decode(request.body)
        headers = wire.receipt_headers(outcome) if isinstance(outcome, Receipt) else ()
        return _answer(protocol.answer(echo.user, echo.request_uuid, outcome), headers)

    return CommandRoute(
        face=FACE,
        method="POST",
        path=f"/transaction/{name}",
        parse=parse,
        render=render,
        documentation=documentation,
        is_hot=True,
    )


def _ask(face: _Face, name: str, kind: type[AskedBody], documentation: Documentation) -> ReadRoute:
    """Return a route that answers with the balance as committed."""
    decoder = wire.decoder(kind)

    def read(request: Request, store: Store, standing: Standing) -> Reply:
        try:
            return _answer(face.protocol.balance(face.read(decoder, request), store, standing))
        except Fault as fault:
            return _answer(fault.answer)

    return ReadRoute(
        face=FACE, method="POST", path=f"/user/{name}", read=read, documentation=documentation
    )


def _lock(
    face: _Face, name: str, documentation: Documentation, *, is_disabled: bool
) -> CommandRoute:
    """Return the route that locks a user out of new bets, or lets them bet again."""

    def parse(request: Request, _: Standing) -> Submission | Reply:
        user = request.params["user"]
        try:
            face.check_operator(request)
            wire.read_nothing(request.body)
        except Fault as fault:
            return Reply(200, wire.encode(LockAnswer(user, fault.status)))
        except wire.Unreadable:
            return Reply(200, wire.encode(LockAnswer(user, RS_ERROR_WRONG_SYNTAX)))
        return Submission(LockUser(user, is_disabled))

    return CommandRoute(
        face=FACE,
        method="POST",
        path=f"/users/{{user}}/{name}",
        parse=parse,
        render=_render_lock,
        documentation=documentation,
    )


def _render_users(outcomes: list[Outcome], request: Request) -> Reply:
    """Name those who were created; who has an account already is ignored."""
    problem = _problem(outcomes, request)
    if problem is not None:
        return problem
    created = [outcome.answer.user for outcome in outcomes if isinstance(outcome, Receipt)]
    refused = [
        outcome
        for outcome in outcomes
        if isinstance(outcome, Refusal) and outcome.reason is not Reason.ACCOUNT_EXISTS
    ]
    return Reply(200, wire.encode(UsersAnswer(RS_ERROR_UNKNOWN if refused else RS_OK, created)))


def _render_lock(outcomes: list[Outcome], request: Request) -> Reply:
    outcome = outcomes[0]
    if isinstance(outcome, Receipt):
        answer = LockAnswer(outcome.answer.user, RS_OK, outcome.answer.is_disabled)
    elif isinstance(outcome, Refusal):
        answer = LockAnswer(request.params["user"], RS_ERROR_UNKNOWN)
    else:
        return wire.problem_of(outcome, request)
    return Reply(200, wire.encode(answer))


# ── documentation ─────────────────────────────────────────────────────────────────

_ERRORS = {
    401: "a key, or a signature, is needed",
    413: "the body is too large",
    503: "the queue is full, or the outcome is unknown: repeat the same request",
}
_BET_EXAMPLE = {
    "user": "john12345",
    "transaction_uuid": "16d2dcfe-b89e-11e7-854a-58404eea6d16",
    "request_uuid": "583c985f-fee6-4c0e-bbf5-308aad6265af",
    "token": "55b7518e-b89e-11e7-81be-58404eea6d16",
    "round": "rNEMwgzJAOZ6eR3V",
    "game_code": "clt_dragonrising",
    "currency": "USD",
    "amount": 10_000,
}
_WIN_EXAMPLE = {
    **_BET_EXAMPLE,
    "transaction_uuid": "16d2dcfe-b89e-11e7-854a-58404eea6d17",
    "request_uuid": "583c985f-fee6-4c0e-bbf5-308aad6265b0",
    "reference_transaction_uuid": "16d2dcfe-b89e-11e7-854a-58404eea6d16",
    "amount": 25_000,
    "round_closed": True,
}
_ROLLBACK_EXAMPLE = {
    name: value
    for name, value in {
        **_WIN_EXAMPLE,
        "transaction_uuid": "16d2dcfe-b89e-11e7-854a-58404eea6d18",
        "request_uuid": "583c985f-fee6-4c0e-bbf5-308aad6265b1",
    }.items()
    if name not in {"amount", "currency", "round_closed"}
}
_INFO_EXAMPLE = {"user": "john12345", "request_uuid": "583c985f-fee6-4c0e-bbf5-308aad6265b2"}


def _answered(request_uuid: str, balance: int) -> dict[str, Any]:
    return {
        "user": "john12345",
        "status": RS_OK,
        "request_uuid": request_uuid,
        "currency": "USD",
        "balance": balance,
    }


def _documentation(
    summary: str, description: str, request: Any, example: dict[str, Any], balance: int
) -> Documentation:
    return Documentation(
        summary=summary,
        description=f"{description} Amounts and balances are in 1/100 000 of the currency.",
        request=request,
        answer=WalletReply,
        request_example=example,
        answer_example=_answered(example["request_uuid"], balance),
        errors=_ERRORS,
    )


_BET = _documentation(
    "Take a bet",
    "A repeat with the same `transaction_uuid` gets the first answer's balance again.",
    BetBody,
    _BET_EXAMPLE,
    90_000,
)
_WIN = _documentation(
    "Pay a win on a bet",
    "Several wins per bet, until one of them says `round_closed`.",
    WinBody,
    _WIN_EXAMPLE,
    115_000,
)
_ROLLBACK = _documentation(
    "Undo a bet or a win",
    "A bet that never came is refused when it comes after its rollback.",
    RollbackBody,
    _ROLLBACK_EXAMPLE,
    100_000,
)
_BALANCE = _documentation(
    "Tell the balance",
    "What is available, in USD or else in the user's first currency.",
    BalanceBody,
    {**_INFO_EXAMPLE, "token": _BET_EXAMPLE["token"], "game_code": _BET_EXAMPLE["game_code"]},
    100_000,
)
_INFO = _documentation("Tell about a user", "The balance.", InfoBody, _INFO_EXAMPLE, 100_000)
_USERS = Documentation(
    summary="Create users",
    description=(
        "Each new user gets a USD account with 1.00 USD. The empty string and users who have "
        f"a USD account are ignored; at most {USERS_MAX} at once."
    ),
    request=UsersBody,
    answer=UsersAnswer,
    request_example={"users": ["john12345", "jane"]},
    answer_example={"status": RS_OK, "created": ["john12345", "jane"]},
    errors=_ERRORS,
)
_DISABLE = Documentation(
    summary="Lock a user out of new bets",
    description="Wins and rollbacks go on. An unknown user: RS_ERROR_UNKNOWN.",
    answer=LockAnswer,
    answer_example={"user": "john12345", "status": RS_OK, "disabled": True},
    errors=_ERRORS,
)
_ENABLE = Documentation(
    summary="Let a user bet again",
    description="An unknown user: RS_ERROR_UNKNOWN.",
    answer=LockAnswer,
    answer_example={"user": "john12345", "status": RS_OK, "disabled": False},
    errors=_ERRORS,
)

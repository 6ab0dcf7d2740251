"""What all faces share on the wire: JSON in and out, amounts, moments, keys, problem documents.

The only msgspec decoders of requests are made here. They hand numbers over as the digits
that were sent, so that no amount ever is a float. A face reads a body with `read`, and
either lets `BadRequest` and `Refused` go (the caller turns them into problem documents)
or catches them for an error shape of its own.
"""

import json
import operator
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, NoReturn, TypeVar, assert_never

import msgspec

from pennyweight.delivery.http.routes import PROBLEM, Reply, Request
from pennyweight.engine.receipts import UNKNOWN, Failure, Receipt, Refusal, Unknown
from pennyweight.ledger.money import canonical
from pennyweight.ledger.refusals import Kind, Reason, Refused

T = TypeVar("T")

KEY_LENGTH_MAX = 255
RETRY = (("Retry-After", "1"),)
"""Headers of an answer that says to ask again: after so many seconds."""

PAGE_SIZE = 100
PAGE_SIZE_MAX = 1_000
REPLAYED = ("Idempotent-Replayed", "true")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_FIRST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND
_MINUS_ZERO = re.compile(rb"[:\[,]\s*-0\s*[,\]}]")


class BadRequest(Exception):
    """The request can never succeed as written: a status, a stable code and a sentence."""

    def __init__(self, code: str, detail: str, *, status: int = 400) -> None:
        """`detail` is for the caller."""
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status


class Unreadable(BadRequest):
    """The body is no JSON (`body_malformed`), or JSON of another shape (`body_invalid`)."""


# ── amounts and moments ───────────────────────────────────────────────────────────


class _PlainText(type):
    """Makes plain text an instance of the wire types below: msgspec asks, then keeps it.

    What `_decode_own` made is text and never empty, so its truth is answer enough.
    """

    __instancecheck__ = operator.truth  # type: ignore[assignment]


class Amount(str, metaclass=_PlainText):
    """An amount above or equal to zero on the wire, number or string; decoded, its canonical text.

    Only an annotation: the value is a plain `str`, fit for commands.
    """

    __slots__ = ()


class SignedAmount(str, metaclass=_PlainText):
    """Like `Amount`, and may be negative."""

    __slots__ = ()


Moment = Annotated[datetime, msgspec.Meta(tz=True)]
"""A moment on the wire: RFC 3339 with its offset. `microseconds` turns it into the book's."""


def microseconds(moment: datetime, name: str) -> int:
    """Return a moment as microseconds since 1970.

    Raises BadRequest, with the field's name, for one that its offset puts before the
    year 1 or after 9999: it could not be shown again.
    """
    found = (moment - _EPOCH) // _MICROSECOND
    if not _FIRST <= found <= _LAST:
        raise BadRequest(f"{name}_invalid", f"{name} is not within the years 1 to 9999 of UTC")
    return found


@lru_cache(maxsize=512)
def rfc3339(moment: int) -> str:
    """Write microseconds since 1970 as RFC 3339 with six decimals and Z."""
    text: str = (_EPOCH + moment * _MICROSECOND).isoformat(timespec="microseconds")
    return text[:-6] + "Z"


# ── JSON ──────────────────────────────────────────────────────────────────────────


def _decode_own(kind: type, value: Any) -> Any:
    """Make one of our wire types of what the JSON held. Refusals: those of `money.parse`."""
    if kind is Amount or kind is SignedAmount:
        if value.__class__ is str or value.__class__ is int:
            return canonical(value, signed=kind is SignedAmount)
        raise TypeError(f"Expected an amount, got `{_json_name(value)}`")
    raise NotImplementedError(f"no wire type {kind}")


def _json_name(value: Any) -> str:
    names: dict[type, str] = {bool: "bool", type(None): "null", list: "array", dict: "object"}
    return names.get(type(value), "something else")


def decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """Return the decoder of a body of this type. Amounts are `Amount`, never a number type."""
    return msgspec.json.Decoder(kind, dec_hook=_decode_own, float_hook=str)


def any_decoder() -> msgspec.json.Decoder[Any]:
    """Return a decoder of any JSON; numbers with a point or exponent arrive as their digits."""
    return msgspec.json.Decoder(float_hook=str)


def read(body_decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode a body. Raises Unreadable; Refused for an amount that is none."""
    try:
        value = body_decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Unreadable("body_invalid", str(error)) from None
    except msgspec.DecodeError as error:
        raise Unreadable("body_malformed", str(error)) from None
    except UnicodeDecodeError:
        raise Unreadable("body_malformed", "the body is not UTF-8") from None
    except RecursionError:
        raise Unreadable("body_malformed", "the body is nested too deeply") from None
    if b"-0" in body and _MINUS_ZERO.search(body):
        _refuse_minus_zero(body)
    return value


def read_nothing(body: bytes) -> None:
    """Accept what a route without a body accepts: nothing, or an empty object."""
    if body.strip() not in {b"", b"{}"} and read_any(body) != {}:
        raise Unreadable("body_invalid", "this route takes no body")


def read_any(body: bytes) -> Any:
    """Return any JSON. Raises Unreadable."""
    return read(_any_decoder, body)


def _refuse_minus_zero(body: bytes) -> None:
    """The decoder reads the number -0 as 0, and -0 is no amount: look at the numbers again."""

    def check(digits: str) -> int:
        if digits == "-0":
            raise Unreadable("body_invalid", "minus zero is not a number here")
        return 0

    json.loads(body, parse_int=check)


_any_decoder = any_decoder()
encode = msgspec.json.Encoder().encode
"""Any struct or plain value as JSON bytes, without a newline."""


# ── what every command may carry ──────────────────────────────────────────────────


def key_of(request: Request, in_body: str | None = None) -> str:
    """Return the idempotency key of a request, "" for none. Raises BadRequest.

    From the header `Idempotency-Key` (ASCII) or the body; both may be there if they are equal.
    """
    header = request.headers.get("idempotency-key")
    key = in_body if header is None else header
    if key is None:
        return ""
    if in_body is not None and in_body != key:
        raise BadRequest(
            "idempotency_key_ambiguous", "the Idempotency-Key header and the body's key differ"
        )
    if not 0 < len(key) <= KEY_LENGTH_MAX or not key.isprintable():
        if header is not None and "\n" in header:
            raise BadRequest("idempotency_key_ambiguous", "there is more than one Idempotency-Key")
        raise _bad_key()
    if header is not None and not key.isascii():
        raise _bad_key()
    return key


def _bad_key() -> BadRequest:
    return BadRequest(
        "idempotency_key_invalid",
        f"an idempotency key has 1 to {KEY_LENGTH_MAX} printable characters",
    )


def deadline_of(request: Request, in_body: datetime | None = None) -> int | None:
    """Return when a request stops being wanted, in microseconds. Raises BadRequest.

    From the header `Not-After` or the body's `not_after`; the earlier one counts.
    """
    of_body = None if in_body is None else microseconds(in_body, "not_after")
    header = request.headers.get("not-after")
    if header is None:
        return of_body
    try:
        moment = microseconds(msgspec.convert(header, Moment, strict=True), "not_after")
    except msgspec.ValidationError:
        raise BadRequest("not_after_invalid", "Not-After is no RFC 3339 time") from None
    return moment if of_body is None else min(moment, of_body)


# ── pages ─────────────────────────────────────────────────────────────────────────


def limit_of(request: Request, *, default: int = PAGE_SIZE, maximum: int = PAGE_SIZE_MAX) -> int:
    """Return the page size asked for. Raises BadRequest."""
    text = request.query.get("limit")
    if text is None:
        return default
    limit = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    if not 0 < limit <= maximum:
        raise BadRequest("limit_invalid", f"limit is a number from 1 to {maximum}")
    return limit


def number_in_query(request: Request, name: str) -> int | None:
    """Return a query parameter that is a whole number (a cursor, mostly). Raises BadRequest."""
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise BadRequest(f"{name}_invalid", f"{name} is no {name} of ours")
    return int(text)


def moment_in_query(request: Request, name: str) -> int | None:
    """Return a query parameter that is a moment, in microseconds. Raises BadRequest."""
    text = request.query.get(name)
    if text is None:
        return None
    try:
        # A "+" of an offset arrives as a space where the caller did not escape it.
        return microseconds(msgspec.convert(text.replace(" ", "+"), Moment), name)
    except msgspec.ValidationError:
        raise BadRequest(f"{name}_invalid", f"{name} is no RFC 3339 time") from None


def page(data: Iterable[Any], next_cursor: int | str | None) -> Reply:
    """Return a page of a list."""
    cursor = None if next_cursor is None else str(next_cursor)
    return Reply(200, encode({"data": list(data), "next_cursor": cursor}))


# ── problems ──────────────────────────────────────────────────────────────────────


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """A problem document (RFC 9457). `code` is stable; `retryable`: waiting can help.

    `figures` explain a refusal; `correlation_id` finds a failure in the server's log.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    retryable: bool | msgspec.UnsetType = msgspec.UNSET
    figures: dict[str, Any] = {}
    correlation_id: str = ""


def problem_document(
    status: int,
    code: str,
    detail: str,
    *,
    is_retryable: bool = False,
    figures: dict[str, Any] | None = None,
    correlation_id: str = "",
) -> ProblemDocument:
    """Build the document of a problem."""
    return ProblemDocument(
        f"urn:pennyweight:problem:{code}",
        code.replace("_", " ").capitalize(),
        status,
        code,
        detail,
        is_retryable,
        figures or {},
        correlation_id,
    )


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    is_retryable: bool = False,
    figures: dict[str, Any] | None = None,
    correlation_id: str = "",
    headers: tuple[tuple[str, str], ...] = (),
) -> Reply:
    """Return a problem as a reply."""
    document = problem_document(
        status,
        code,
        detail,
        is_retryable=is_retryable,
        figures=figures,
        correlation_id=correlation_id,
    )
    return Reply(status, encode(document), headers, PROBLEM)


def status_of(reason: Reason) -> int:
    """Return the status that `/v1` gives a refusal."""
    if reason is Reason.KEY_ABANDONED:
        return 409
    kind = reason.kind
    if kind is Kind.MALFORMED:
        return 400
    if kind is Kind.NOT_FOUND:
        return 404
    if kind is Kind.CONFLICT or kind is Kind.UNFUNDED:
        return 409
    if kind is Kind.KEY:
        return 422
    assert_never(kind)


_UNKNOWN = "done or not is not known, ask again under the same key"
_NOT_DECIDED = "not decided, ask again"


def outcome_problem(outcome: Refusal | Failure | Unknown, request: Request) -> ProblemDocument:
    """Build the document of an outcome that is no receipt."""
    if isinstance(outcome, Refusal):
        reason = outcome.reason
        return problem_document(
            status_of(reason),
            reason.code,
            outcome.message,
            is_retryable=reason.is_retryable,
            figures=outcome.figures,
        )
    if isinstance(outcome, Failure):
        return problem_document(
            500,
            "internal_error",
            "a fault of ours; nothing was changed",
            correlation_id=request.correlation_id,
        )
    if isinstance(outcome, Unknown):
        return problem_document(
            503,
            outcome.code,
            f"{_UNKNOWN if outcome.code == UNKNOWN else _NOT_DECIDED}: {outcome.message}",
            is_retryable=True,
        )
    assert_never(outcome)


def problem_of(outcome: Refusal | Failure | Unknown, request: Request) -> Reply:
    """Return an outcome that is no receipt as a reply."""
    document = outcome_problem(outcome, request)
    headers = RETRY if isinstance(outcome, Unknown) else ()
    return Reply(document.status, encode(document), headers, PROBLEM)


def error_reply(error: BadRequest | Refused) -> Reply:
    """Return what `parse` raised as a problem."""
    if isinstance(error, Refused):
        return problem_of(Refusal(error.reason, error.message, error.figures), Request("", ""))
    return problem(error.status, error.code, error.detail)


def not_found(code: str, detail: str) -> NoReturn:
    """Raise a 404."""
    raise BadRequest(code, detail, status=404)


def receipt_headers(receipt: Receipt) -> tuple[tuple[str, str], ...]:
    """Return the headers of a done command: `Idempotent-Replayed` on a replay."""
    return (REPLAYED,) if receipt.is_replayed else ()

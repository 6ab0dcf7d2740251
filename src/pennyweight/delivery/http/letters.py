"""The face of dead letters: the messages of all streams that could not be taken, replayed or closed.

It is the desk's, and never open without a key: to replay a letter books money, or changes
a portfolio, whichever product the letter is of.
"""

from base64 import b64decode
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar

import msgspec

from pennyweight.delivery.http.letters_shapes import (
    CloseBody,
    HeaderShown,
    LetterClosed,
    LetterListed,
    LetterShown,
    LettersPage,
    UpdateReplayed,
    close_decoder,
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
    limit_of,
    not_found,
    number_in_query,
    page,
    problem_of,
    read,
    receipt_headers,
    rfc3339,
)
from pennyweight.delivery.http.withdrawals import render_settlement
from pennyweight.delivery.http.withdrawals_shapes import Carried, SettlementShown, carried_decoder
from pennyweight.delivery.letters import HANDLINGS, RESERVED_PREFIXES, product_of, replay_of
from pennyweight.engine.engine import Submission
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.ledger.letters import LETTER, DeadLetter, State, index_of
from pennyweight.ledger.records import RANK_MAX, Record
from pennyweight.products.portfolios.shared import RunAnswer
from pennyweight.products.withdrawals.settle import SettlementAnswer

FACE = "dead-letters"

T = TypeVar("T", bound=str)

_STATES: tuple[State, ...] = ("open", "replayed", "closed")
_PAGE = 500


# ── looking ───────────────────────────────────────────────────────────────────────


def _list_letters(request: Request, store: Store, _: Standing) -> Reply:
    states = _one_or_all("state", _STATES, request)
    products = frozenset(_one_or_all("product", tuple(HANDLINGS), request))
    reason = request.query.get("reason")
    limit = limit_of(request)
    after = number_in_query(request, "cursor") or 0
    found: list[tuple[int, LetterListed]] = []
    for state in states:
        found += islice(_letters(store, state, products, reason, after), limit + 1)
    found.sort(key=lambda pair: pair[0])
    shown = found[:limit]
    return page((letter for _, letter in shown), shown[-1][0] if len(found) > limit else None)


def _one_or_all(name: str, known: tuple[T, ...], request: Request) -> list[T]:
    """Return the known value that the query names, or all where it names none. Raises BadRequest."""
    given = request.query.get(name)
    found = [one for one in known if given in {None, one}]
    if not found:
        raise BadRequest(f"{name}_invalid", f"{name} is one of {', '.join(known)}")
    return found


def _letters(
    store: Store, state: State, products: frozenset[str], reason: str | None, after: int
) -> Iterator[tuple[int, LetterListed]]:
    """Yield (number, letter) in a state, oldest first: one count numbers those of all products."""
    place: tuple[int, str] | None = None
    while rows := store.due(index_of(state), after + 1, RANK_MAX, after=place, limit=_PAGE):
        for due in rows:
            if product_of(due.id) not in products:
                continue
            record = store.record(LETTER, due.id)
            if record is not None:
                letter: DeadLetter = record.read(DeadLetter)
                if reason is None or letter.reason == reason:
                    yield due.rank, LetterListed(**_listed(record, letter))
        place = (rows[-1].rank, rows[-1].id)


def _listed(record: Record, letter: DeadLetter) -> dict[str, Any]:
    """Return what a list shows of a letter."""
    return {
        "id": record.id,
        "product": record.product,
        "topic": letter.message.topic,
        "partition": letter.message.partition,
        "offset": letter.message.offset,
        "reason": letter.reason,
        "detail": letter.detail,
        "set_aside_at": rfc3339(letter.set_aside_at),
        "state": letter.state,
        "closed_in": letter.closed_in or msgspec.UNSET,
        "note": letter.note or msgspec.UNSET,
    }


def _letter(request: Request, store: Store) -> tuple[Record, DeadLetter]:
    """Return the letter that the path names. Raises BadRequest."""
    record = store.record(LETTER, request.params["id"])
    if record is None or record.product not in HANDLINGS:
        not_found("dead_letter_not_found", f"there is no dead letter {request.params['id'][:80]!r}")
    return record, record.read(DeadLetter)


def _get_letter(request: Request, store: Store, _: Standing) -> Reply:
    record, letter = _letter(request, store)
    message = letter.message
    headers = [HeaderShown(name, **_readable("value", value)) for name, value in message.headers]
    key: dict[str, Any] = {} if message.key is None else _readable("key", message.key)
    shown = LetterShown(
        **_listed(record, letter),
        **key,
        **_readable("payload", message.payload),
        headers=headers,
    )
    return Reply(200, encode(shown))


def _readable(name: str, in_base64: str) -> dict[str, Any]:
    """Return bytes as text under a name, or as they are under `<name>_base64`."""
    try:
        return {name: b64decode(in_base64).decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": in_base64}


# ── dealing with them ─────────────────────────────────────────────────────────────


def _carry(submission: Submission, request: Request, body: Carried) -> Submission:
    """Give a submission what the request carries; a key that its message has goes before.

    Raises BadRequest.
    """
    key = key_of(request, body.idempotency_key)
    if key.startswith(RESERVED_PREFIXES):
        begin = ", ".join(repr(prefix) for prefix in RESERVED_PREFIXES)
        raise BadRequest("idempotency_key_invalid", f"{begin} begin the keys of messages")
    submission.key = submission.key or key
    submission.not_after = deadline_of(request, body.not_after)
    return submission


def _prepare_replay(request: Request, store: Store, _: Standing) -> Submission:
    body = read(carried_decoder, request.body.strip() or b"{}")
    record, letter = _letter(request, store)
    return _carry(replay_of(record.product, record.id, letter), request, body)


def _render_replay(outcomes: list[Outcome], request: Request) -> Reply:
    """Render what became of the message, in the words of its product."""
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    if isinstance(outcome.answer, SettlementAnswer):
        return render_settlement(outcomes, request)
    answer: RunAnswer = outcome.answer
    shown = UpdateReplayed(answer.result, answer.user, answer.run or None, len(answer.trades))
    return Reply(200, encode(shown), receipt_headers(outcome))


def _parse_close(request: Request, _: Standing) -> Submission:
    body = read(close_decoder, request.body.strip() or b"{}")
    letter_id = request.params["id"]
    product = product_of(letter_id)
    if not product:
        not_found("dead_letter_not_found", f"there is no dead letter {letter_id[:80]!r}")
    return _carry(Submission(HANDLINGS[product].close(letter_id, body.note)), request, body)


def _render_close(outcomes: list[Outcome], request: Request) -> Reply:
    outcome = outcomes[0]
    if not isinstance(outcome, Receipt):
        return problem_of(outcome, request)
    shown = LetterClosed(outcome.answer.letter, outcome.answer.state)
    return Reply(200, encode(shown), receipt_headers(outcome))


# ── the table ─────────────────────────────────────────────────────────────────────

_LISTED = {
    "id": "withdrawals-1",
    "product": "withdrawals",
    "topic": "risk-engine-settlements",
    "partition": 0,
    "offset": 17,
    "reason": "message_malformed",
    "detail": "JSON is malformed: invalid character (byte 2)",
    "set_aside_at": "2026-01-31T12:00:00.000000Z",
    "state": "open",
}
_SHOWN = {
    **_LISTED,
    "key": "100",
    "payload": "{ “user_id”:”100” }",
    "headers": [{"name": "source", "value": "desk-1"}],
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
_NO_LETTER = "There is no such dead letter."
_ENDED = "It was replayed or closed already."
_WHOSE_KEY = "An idempotency key belongs to the letter's product, which is the key's scope."


def routes() -> list[Route]:
    """Return the routes of the face of dead letters."""
    return [
        ReadRoute(
            face=FACE,
            method="GET",
            path="/dead-letters",
            read=_list_letters,
            documentation=Documentation(
                summary="Messages that could not be taken, of all products, oldest first",
                answer=LettersPage,
                answer_example={"data": [_LISTED], "next_cursor": None},
                parameters={
                    "product": f"Only those of `{'` or `'.join(HANDLINGS)}`.",
                    "state": "Only `open`, `replayed` or `closed` ones.",
                    "reason": "Only those with this reason.",
                    "limit": "How many, 1 to 1000; 100 if not given.",
                    "cursor": "The `next_cursor` of the page before.",
                },
            ),
        ),
        ReadRoute(
            face=FACE,
            method="GET",
            path="/dead-letters/{id}",
            read=_get_letter,
            documentation=Documentation(
                summary="One dead letter, with its message",
                description=(
                    "Key, payload and headers as text, or in base64 where they are not UTF-8."
                ),
                answer=LetterShown,
                answer_example=_SHOWN,
                errors={404: _NO_LETTER},
            ),
        ),
        CommandRoute(
            face=FACE,
            method="POST",
            path="/dead-letters/{id}/replay",
            prepare=_prepare_replay,
            render=_render_replay,
            documentation=Documentation(
                summary="Take the message of a dead letter after all",
                description=(
                    "For when what was wrong has been put right. The message is read again by the "
                    "handler of its topic, and the letter is closed in the same entry; it stays "
                    "open if the message is refused once more. A `settlement_id` or `request_id` "
                    "in it is the idempotency key. What a settlement came to is answered as to "
                    "`POST /settlements`; of an update, what it led to: `GET "
                    f"/rebalance-transactions` has the transactions. {_WHOSE_KEY}"
                ),
                request=Carried,
                request_example={},
                answer=SettlementShown | UpdateReplayed,
                answer_example=_SETTLED,
                errors={
                    400: "The message is still not what its topic is for.",
                    404: "There is no such dead letter, or no such user or portfolio.",
                    409: f"{_ENDED} Or the withdrawal has ended.",
                },
            ),
        ),
        CommandRoute(
            face=FACE,
            method="POST",
            path="/dead-letters/{id}/close",
            parse=_parse_close,
            render=_render_close,
            documentation=Documentation(
                summary="Close a dead letter without doing what it asks for",
                description=_WHOSE_KEY,
                request=CloseBody,
                request_example={"note": "booked by hand in entry 17"},
                answer=LetterClosed,
                answer_example={"id": "withdrawals-1", "state": "closed"},
                errors={404: _NO_LETTER, 409: _ENDED},
            ),
        ),
    ]

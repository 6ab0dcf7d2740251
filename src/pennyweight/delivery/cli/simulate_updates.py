"""`pennyweight simulate updates`: a provider that tells what portfolios have become."""

import http.client
import time
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
from cyclopts import Parameter

from pennyweight.delivery.cli.shared import Json, UserError, host_and_port, print_json
from pennyweight.links.errors import ExtraMissing, LinkError
from pennyweight.products.portfolios.shared import POINT
from pennyweight.simulators.updates import (
    Known,
    Message,
    Model,
    Odds,
    OverHttp,
    OverKafka,
    Provider,
    microseconds_of,
)

CHECK_SECONDS = 60.0
_PAUSE_SECONDS = 0.2


class Told(msgspec.Struct, kw_only=True):
    """What a provider did. `answers` are those over HTTP, by status; `broken` had none.

    `right` of the `checked` portfolios were what the newest updates say, where that was asked.
    """

    users: int
    updates: int
    sent: dict[str, int]
    answers: dict[str, int]
    broken: int
    seconds: float
    updates_per_second: float
    checked: int | None = None
    right: int | None = None


def updates(
    *,
    users: Annotated[int, Parameter(help="How many portfolios there are.")] = 1_000,
    updates: Annotated[
        int, Parameter(help="How many messages are sent, repeats and rubbish included.")
    ] = 10_000,
    rate: Annotated[
        float | None, Parameter(help="Messages a second; without it, as fast as they are taken.")
    ] = None,
    seed: Annotated[int, Parameter(help="The same seed tells the same of the same users.")] = 1,
    address: Annotated[
        str, Parameter(help="The engine to tell, and to make portfolios at.")
    ] = "http://127.0.0.1:8080",
    key: Annotated[str, Parameter(help="Its API key, if it wants one.")] = "",
    mode: Annotated[
        Literal["sync", "async"],
        Parameter(help="Over HTTP: answered with transactions, or queued."),
    ] = "sync",
    connections: Annotated[
        int, Parameter(help="Over HTTP: how many; a user's updates are all on one.")
    ] = 16,
    kafka: Annotated[
        str | None,
        Parameter(
            env_var="KAFKA_BROKER", help="Tell this broker, HOST:PORT, instead of the engine."
        ),
    ] = None,
    topic: Annotated[
        str, Parameter(env_var="KAFKA_TOPIC", help="With --kafka: where updates go.")
    ] = "rebalance",
    create: Annotated[
        bool, Parameter(help="First make the portfolios, over HTTP.", negative=())
    ] = False,
    check: Annotated[
        bool,
        Parameter(
            help="In the end wait until all portfolios are what was told of them.", negative=()
        ),
    ] = False,
    duplicates: Annotated[float, Parameter(help="Share that is sent twice.")] = 0.05,
    late: Annotated[float, Parameter(help="Share that comes very late.")] = 0.02,
    unnamed: Annotated[float, Parameter(help="Share without a request_id.")] = 0.2,
    untimed: Annotated[float, Parameter(help="Share of the users without any as_of.")] = 0.1,
    poison: Annotated[float, Parameter(help="Share of rubbish.")] = 0.01,
    disorder: Annotated[int, Parameter(help="Places that others come late, at most.")] = 100,
    json: Json = False,
) -> int:
    """Be the provider: markets move, and portfolios drift; tell so, not always in order.

    Each user is called after the seed, so on one book each seed is good for one run. Updates
    come in disorder, but of users without `as_of`, of whom what comes last counts. The same
    seed sends the same, and what is sent again has no effect. With `--check` it fails if a
    portfolio is not what the newest update says, after a minute at most.

    Example: pennyweight simulate updates --users 1000 --updates 20000 --create --check
    """
    shares = (duplicates, late, unnamed, untimed, poison)
    if users < 1 or updates < 1 or connections < 1 or disorder < 0:
        raise UserError(
            "users, updates and connections are 1 or more, disorder is 0 or more", code=2
        )
    if (rate is not None and rate <= 0) or any(not 0 <= share <= 1 for share in shares):
        raise UserError("a rate is above 0, a share from 0 to 1", code=2)
    place = host_and_port(address)
    provider = Provider(users, seed, Odds(duplicates, late, unnamed, untimed, poison, disorder))
    model, sent = Model(), Counter[str]()
    engine = OverHttp(place, key, connections=connections)
    try:
        if create:
            _create(provider, place, key, connections)
        started = time.monotonic()
        messages = _noted(provider.messages(updates), model, sent)
        if kafka is None:
            engine.send(messages, updates, rate=rate, mode=mode)
        else:
            broker = OverKafka(kafka, topic)
            broker.send(messages, rate=rate)
            broker.finish()
        seconds = time.monotonic() - started
        right = _check(model, place, key) if check else None
    except (ExtraMissing, LinkError, OSError) as error:
        raise UserError(str(error)) from None
    told = Told(
        users=users,
        updates=updates,
        sent=dict(sent),
        answers=dict(engine.statuses),
        broken=engine.broken,
        seconds=round(seconds, 3),
        updates_per_second=round(updates / max(seconds, 1e-9), 1),
        checked=len(model.known) if check else None,
        right=right,
    )
    if json:
        print_json(told)
    else:
        _show(told)
    return 0 if told.right == told.checked else 1


def _create(provider: Provider, place: tuple[str, int], key: str, connections: int) -> None:
    """Make the portfolios; those that are there already may stay. Raises UserError, OSError."""
    maker = OverHttp(place, key, connections=connections)
    maker.create(provider)
    if maker.broken or set(maker.statuses) - {"200", "201"}:
        raise UserError(f"portfolios could not be made: answers {dict(maker.statuses)}")


def _noted(messages: Iterator[Message], model: Model, sent: Counter[str]) -> Iterator[Message]:
    """Yield messages, and note what they say."""
    for message in messages:
        model.take(message)
        sent[message.kind] += 1
        yield message


def _show(told: Told) -> None:
    counts = ", ".join(f"{n} {name}" for name, n in sorted(told.sent.items()))
    print(f"{told.updates} updates in {told.seconds} s, {told.updates_per_second}/s: {counts}")
    if told.answers or told.broken:
        answers = [f"{n} {status}" for status, n in sorted(told.answers.items())]
        print("answered: " + ", ".join([*answers, *([f"{told.broken} not"] * bool(told.broken))]))
    if told.checked is not None:
        print(f"{told.right} of {told.checked} portfolios are what the newest updates say")


# ── whether all came to what it should ────────────────────────────────────────────


def _check(model: Model, place: tuple[str, int], key: str) -> int:
    """Look at all portfolios until they are right, or for a minute; return how many are.

    Raises OSError.
    """
    left = dict(model.known)
    until = time.monotonic() + CHECK_SECONDS
    connection = http.client.HTTPConnection(*place, timeout=20)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        while left:
            for user, known in list(left.items()):
                connection.request("GET", f"/portfolio?user_id={quote(user)}", headers=headers)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status == 200 and _known_in(body, known) == known:
                    del left[user]
            if time.monotonic() > until:
                break
            time.sleep(_PAUSE_SECONDS * bool(left))
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()
    return len(model.known) - len(left)


def _known_in(body: bytes, wanted: Known) -> Known:
    """Return what a portfolio has become; its time only where the provider told one."""
    shown: dict[str, Any] = msgspec.json.Decoder(float_hook=Decimal).decode(body)
    current = {name: int(Decimal(one) * POINT) for name, one in (shown["current"] or {}).items()}
    return Known(current, microseconds_of(shown["as_of"]) if wanted.as_of and current else 0)

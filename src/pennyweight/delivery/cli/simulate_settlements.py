"""`pennyweight simulate settlements`: a venue that settles what is withdrawn."""

import secrets
import threading
import time
from typing import Annotated

import msgspec
from cyclopts import Parameter

from pennyweight.delivery.cli.shared import Json, UserError, host_and_port, print_json, told_to_stop
from pennyweight.links.errors import ExtraMissing, LinkError
from pennyweight.simulators.venue import Odds, Venue
from pennyweight.simulators.venue_links import Exchange, OverHttp, OverKafka

_NAP_SECONDS = 0.05
_BURST = 500


class Told(msgspec.Struct, frozen=True):
    """What a venue did. `answers` are those to settlements over HTTP, by result or code."""

    accepted: int
    sent: dict[str, int]
    waiting: int
    answers: dict[str, int]


def settlements(
    *,
    kafka: Annotated[
        str | None,
        Parameter(env_var="KAFKA_BROKER", help="The broker, HOST:PORT; without it, over HTTP."),
    ] = None,
    address: Annotated[
        str, Parameter(help="Without Kafka: the engine to ask and to tell.")
    ] = "http://127.0.0.1:8080",
    token: Annotated[str, Parameter(help="Its API key, if it wants one.")] = "",
    topic: Annotated[
        str, Parameter(env_var="PENNYWEIGHT_SETTLEMENTS_TOPIC", help="Where settlements go.")
    ] = "risk-engine-settlements",
    events: Annotated[
        str, Parameter(help="Where withdrawals are heard of.")
    ] = "risk-engine-events",
    rate: Annotated[float, Parameter(help="Messages a second at most.")] = 1_000.0,
    delay: Annotated[float, Parameter(help="Seconds that a settlement takes at most.")] = 2.0,
    over_fill: Annotated[float, Parameter(help="Share that sells more than was held.")] = 0.0,
    unfilled: Annotated[float, Parameter(help="Share that sells nothing.")] = 0.0,
    unnamed: Annotated[float, Parameter(help="Share without a withdrawal_id.")] = 0.0,
    unsolicited: Annotated[
        float, Parameter(help="Trades that nobody withdrew for, per withdrawal.")
    ] = 0.0,
    duplicates: Annotated[float, Parameter(help="Share that is sent twice.")] = 0.0,
    rubbish: Annotated[float, Parameter(help="Broken messages, per withdrawal.")] = 0.0,
    invented: Annotated[
        float, Parameter(help="Messages about unknown users or tokens, per withdrawal.")
    ] = 0.0,
    seconds: Annotated[float | None, Parameter(help="Stop by itself after this time.")] = None,
    count: Annotated[
        int | None, Parameter(help="Stop when so many withdrawals are settled.")
    ] = None,
    seed: Annotated[int, Parameter(help="What becomes of which withdrawal.")] = 1,
    json: Json = False,
) -> int:
    """Be the venue: settle what is withdrawn, after a while, for about what was asked.

    Hears of withdrawals from the topic of events and writes to the topic of settlements;
    without Kafka it reads the engine's journal and posts settlements. Begins with the first
    withdrawal there is. The same seed does the same to the same withdrawal, so a venue that
    is started again repeats itself, which has no effect. Runs until it is stopped.

    Example: pennyweight simulate settlements --kafka 127.0.0.1:9092 --duplicates 0.1 --rubbish 0.02
    """
    shares = (over_fill, unfilled, unnamed, unsolicited, duplicates, rubbish, invented)
    if rate <= 0 or delay < 0 or any(not 0 <= share <= 1 for share in shares):
        raise UserError("a rate is above 0, a delay at least 0, a share from 0 to 1", code=2)
    odds = Odds(
        delay=delay,
        over_fill=over_fill,
        unfilled=unfilled,
        unnamed=unnamed,
        unsolicited=unsolicited,
        duplicates=duplicates,
        rubbish=rubbish,
        invented=invented,
    )
    venue = Venue(odds, seed)
    exchange: Exchange
    try:
        if kafka:
            group = f"pennyweight-venue-{secrets.token_hex(4)}"
            exchange = OverKafka(kafka, events=events, settlements=topic, group=group)
        else:
            exchange = OverHttp(host_and_port(address), token)
        with told_to_stop() as stop:
            _trade(venue, exchange, rate=rate, seconds=seconds, count=count, stop=stop)
    except (ExtraMissing, LinkError) as error:
        raise UserError(str(error)) from None
    answers = exchange.answers if isinstance(exchange, OverHttp) else {}
    sent = {str(kind): count for kind, count in venue.sent.items()}
    told = Told(venue.accepted, sent, venue.waiting, dict(answers))
    if json:
        print_json(told)
    else:
        _show(told)
    return 0


def _trade(
    venue: Venue,
    exchange: Exchange,
    *,
    rate: float,
    seconds: float | None,
    count: int | None,
    stop: threading.Event,
) -> None:
    """Hear and tell until told to stop, the time is over, or enough is settled."""
    started = time.monotonic()
    sent = 0
    try:
        while not stop.is_set():
            now = time.monotonic()
            if seconds is not None and now - started >= seconds:
                break
            if count is None or venue.accepted < count:
                venue.take(exchange.hear(), now)
            elif not venue.waiting:
                break
            allowed = min(_BURST, int((now - started) * rate) - sent)
            messages = venue.due(now, allowed) if allowed > 0 else []
            sent += len(messages)
            exchange.tell(messages)
            if not messages:
                stop.wait(_NAP_SECONDS)
    finally:
        exchange.close()


def _show(told: Told) -> None:
    print(f"{told.accepted} withdrawals heard of, {told.waiting} messages not yet sent")
    for title, counts in (("sent", told.sent), ("answered", told.answers)):
        if counts:
            print(f"{title}: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))

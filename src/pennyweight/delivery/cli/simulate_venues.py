"""`pennyweight simulate venues`: both trading posts, their prices and their order books."""

import sys
import threading
import time
from typing import Annotated, Literal

import msgspec
from cyclopts import Parameter

from pennyweight.delivery.cli.shared import Json, UserError, host_and_port, print_json, told_to_stop
from pennyweight.links.aws import Aws
from pennyweight.links.errors import ExtraMissing
from pennyweight.products.loans.shared import MARKETS, Market
from pennyweight.simulators.posts import Posts, Publish
from pennyweight.simulators.pricewalk import PriceWalk
from pennyweight.simulators.publishing import Pusher, Topics
from pennyweight.simulators.trading import Odds

_LOOK_SECONDS = 0.2


class Told(msgspec.Struct, frozen=True):
    """What the posts did: orders carried out and requests by their fate, each by market."""

    executed: dict[Market, int]
    fates: dict[Market, dict[str, int]]
    prices_published: int
    prices_lost: int
    problem: str


def venues(
    *,
    mos_espa_port: Annotated[
        int, Parameter(help="Where Mos Espa listens; 0 is a free port.")
    ] = 3003,
    black_spire_port: Annotated[
        int, Parameter(help="Where Black Spire Outpost listens; 0 is a free port.")
    ] = 3002,
    host: Annotated[str, Parameter(help="On which address.")] = "127.0.0.1",
    aws: Annotated[
        str | None,
        Parameter(
            env_var=["AWS_ENDPOINT_URL", "AWS_ENDPOINT"],
            help="Publish prices to SNS there, a URL.",
        ),
    ] = None,
    region: Annotated[
        str, Parameter(env_var="AWS_REGION", help="The region of SNS.")
    ] = "us-east-1",
    push_to: Annotated[
        str | None, Parameter(help="Push prices to this engine over HTTP instead.")
    ] = None,
    token: Annotated[str, Parameter(help="Its API key, if it wants one.")] = "",
    start: Annotated[str, Parameter(help="The first price.")] = "50",
    script: Annotated[
        str, Parameter(help="The first prices, with commas between them; then it walks on.")
    ] = "",
    interval: Annotated[float, Parameter(help="Seconds from one price to the next.")] = 1.0,
    other_items: Annotated[
        float, Parameter(help="How often Black Spire tells of another item, from 0 to 1.")
    ] = 0.1,
    item: Annotated[
        Literal["STEEL:MANDALORIAN", "BSK"], Parameter(help="What Black Spire calls BESKAR.")
    ] = "STEEL:MANDALORIAN",
    failed: Annotated[float, Parameter(help="Share of orders that fail, with status 200.")] = 0.3,
    failed_again: Annotated[
        Literal["failed", "afresh"],
        Parameter(help="What becomes of a failed id that comes again."),
    ] = "failed",
    slow: Annotated[float, Parameter(help="Share of answers that come late.")] = 0.0,
    slow_seconds: Annotated[float, Parameter(help="How late.")] = 0.3,
    hung: Annotated[
        float, Parameter(help="Share of orders that are carried out and not answered in time.")
    ] = 0.0,
    hang_seconds: Annotated[float, Parameter(help="After how long they are answered.")] = 5.0,
    error_before: Annotated[
        float, Parameter(help="Share of orders answered 503 that were not looked at.")
    ] = 0.0,
    error_after: Annotated[
        float, Parameter(help="Share of orders answered 503 after they were dealt with.")
    ] = 0.0,
    reset_before: Annotated[
        float, Parameter(help="Share of orders cut off that were not looked at.")
    ] = 0.0,
    reset_after: Annotated[
        float, Parameter(help="Share of orders cut off after they were dealt with.")
    ] = 0.0,
    doubled: Annotated[float, Parameter(help="Share of answers that come twice.")] = 0.0,
    seconds: Annotated[float | None, Parameter(help="Stop by itself after this time.")] = None,
    seed: Annotated[int, Parameter(help="The same seed makes the same prices and fates.")] = 1,
    json: Json = False,
) -> int:
    """Be Mos Espa and Black Spire Outpost: publish prices, and take orders, which often fail.

    Prices go to SNS, or to an engine by `POST /prices/{market}`; with neither they are only
    what orders are carried out at. `GET /executed` at each post is its order book. What
    becomes of an order depends on the seed and its id alone. Runs until it is stopped.

    Example: pennyweight simulate venues --push-to http://127.0.0.1:8080 --failed 0.3 --hung 0.05
    """
    odds = Odds(
        failed=failed,
        is_failure_final=failed_again == "failed",
        slow=slow,
        slow_seconds=slow_seconds,
        hung=hung,
        hang_seconds=hang_seconds,
        error_before=error_before,
        error_after=error_after,
        reset_before=reset_before,
        reset_after=reset_after,
        doubled=doubled,
    )
    _check(odds, other_items, interval)
    try:
        walk = PriceWalk(
            seed,
            start=start,
            script=[price.strip() for price in script.split(",") if price.strip()],
            others=other_items,
            item=item,
        )
    except ValueError as error:
        raise UserError(str(error), code=2) from None
    try:
        publish = _publisher(aws, region, push_to, token)
    except ExtraMissing as error:
        raise UserError(str(error)) from None
    ports: dict[Market, int] = {"mos_espa": mos_espa_port, "black_spire": black_spire_port}
    posts = Posts(
        seed=seed,
        odds=odds,
        walk=walk,
        publish=publish,
        interval_seconds=interval,
        host=host,
        ports=ports,
    )
    if publish is None:
        print("prices go nowhere: give --push-to an engine, or --aws an endpoint", file=sys.stderr)
    with told_to_stop() as stop, posts:
        for market, url in posts.urls.items():
            print(f"ready {market} {url}", flush=True)
        _wait(posts, stop, seconds)
    told = Told(
        {market: len(posts[market].executed) for market in MARKETS},
        {market: {str(f): n for f, n in posts[market].fated.items()} for market in MARKETS},
        posts.published,
        posts.unpublished,
        posts.problem,
    )
    if json:
        print_json(told)
    else:
        _show(told)
    return 0


def _wait(posts: Posts, stop: threading.Event, seconds: float | None) -> None:
    """Wait for the end, and say when prices do not get through."""
    until = None if seconds is None else time.monotonic() + seconds
    told = ""
    while not stop.wait(_LOOK_SECONDS) and (until is None or time.monotonic() < until):
        if posts.problem != told:
            told = posts.problem
            print(f"prices are lost: {told}" if told else "prices get through", file=sys.stderr)


def _check(odds: Odds, other_items: float, interval: float) -> None:
    """Refuse shares and times that are none. Raises UserError."""
    shares = [share for _, share in odds.shares()]
    if any(not 0 <= share <= 1 for share in (odds.failed, other_items, *shares)):
        raise UserError("a share is from 0 to 1", code=2)
    if sum(shares) > 1:
        raise UserError("the shares of what happens to requests are more than 1 in all", code=2)
    if interval <= 0 or odds.slow_seconds < 0 or odds.hang_seconds < 0:
        raise UserError("--interval is above 0, other times at least 0", code=2)


def _publisher(aws: str | None, region: str, push_to: str | None, token: str) -> Publish | None:
    """Return where prices go. Raises ExtraMissing, UserError."""
    if push_to is not None:
        return Pusher([host_and_port(push_to)], token)
    return Topics(Aws(aws, region)) if aws else None


def _show(told: Told) -> None:
    for market, executed in told.executed.items():
        fates = ", ".join(f"{n} {name}" for name, n in sorted(told.fates[market].items()))
        print(f"{market}: {executed} orders carried out; requests: {fates or 'none'}")
    lost = f", {told.prices_lost} lost ({told.problem or 'the last one was not'})"
    print(f"{told.prices_published} prices published{lost if told.prices_lost else ''}")

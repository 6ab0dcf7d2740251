"""The portfolios face over HTTP: the seed's routes, what came of updates, and what was executed."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import pytest

from pennyweight.delivery.http import ledger, portfolios
from pennyweight.delivery.http.openapi import describe
from pennyweight.delivery.http.routes import CommandRoute, Route
from pennyweight.delivery.http.wire import rfc3339
from pennyweight.engine.engine import Submission
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.ledger.commands import Command
from pennyweight.products.portfolios.queue import TakeUpdate
from served import START, Answer, Served, long_way, request_bytes

SEED = {"stocks": 60, "bonds": 30, "gold": 10}
MOVED = {"stocks": 70, "bonds": 20, "gold": 10}
BANDS = {"bands": {"absolute": 5, "relative": 25}}
ROUTES: list[Route] = [
    *ledger.routes(["ledger", "portfolios"]),
    *portfolios.routes(clock=lambda: START),
]


class Desk(Served):
    """A served book with the portfolios face."""

    def __init__(self, *, is_hot: bool = True) -> None:
        super().__init__(ROUTES if is_hot else long_way(ROUTES))

    def ok(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        answer = self.send(method, path, body)
        assert answer.status == status, answer
        return answer.json

    def code(self, method: str, path: str, body: Any = None, key: str = "") -> tuple[int, str]:
        """Return status and code of a problem document."""
        answer = self.send(method, path, body, {"Idempotency-Key": key} if key else None)
        assert answer.headers["content-type"] == "application/problem+json", answer
        assert answer.json["status"] == answer.status
        return answer.status, answer.json["code"]

    def decide(self, command: Command) -> Any:
        """Have an agent's command decided."""
        done = threading.Event()
        found: list[Outcome] = []

        def hear(outcome: Outcome) -> None:
            found.append(outcome)
            done.set()

        self.book.submit(Submission(command, ticket=hear))
        assert done.wait(10)
        assert isinstance(found[0], Receipt), found[0]
        return found[0].answer

    def create(self, user: Any = "1", allocation: Any = None, **more: Any) -> Answer:
        body = {"user_id": user, "allocation": allocation or SEED, **more}
        return self.send("POST", "/portfolio", body)

    def update(self, allocation: Any = None, user: Any = "1", **more: Any) -> Answer:
        body = {"user_id": user, "new_allocation": allocation or MOVED, **more}
        return self.send("POST", "/rebalance", body)

    def changes(self, *arguments: Any, **more: Any) -> list[tuple[str, str, Any]]:
        """Update, and return (action, asset, points) of its transactions."""
        answer = self.update(*arguments, **more)
        assert answer.status == 200, answer
        return [(one["action"], one["asset"], one["rebalance_percent"]) for one in answer.json]

    def transactions(self, query: str = "", user: str = "1") -> list[tuple[str, str]]:
        """Return (id, status) of a page of a user's transactions."""
        found = self.get(f"/rebalance-transactions?user_id={user}{query}")
        return [(one["id"], one["status"]) for one in found["transactions"]]


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Desk() as found:
        yield found


@pytest.fixture
def seeded(desk: Desk) -> Desk:
    assert desk.create().status == 201
    return desk


@pytest.fixture(scope="module")
def still() -> Iterator[Desk]:
    """A book with one portfolio that nothing changes."""
    with Desk() as found:
        assert found.create().status == 201
        yield found


# ── the seed ──────────────────────────────────────────────────────────────────────


def test_seed_example(desk: Desk) -> None:
    created = desk.create()
    assert (created.status, created.json) == (201, {"user_id": "1", "allocation": SEED})
    answer = desk.update()
    assert answer.status == 200
    first, second = answer.json
    run = answer.headers["rebalance-run"]
    when = first["created_at"]
    assert first == {
        "id": f"{run}-1",
        "user_id": "1",
        "action": "SELL",
        "asset": "stocks",
        "rebalance_percent": 10,
        "percent_of_holding": 14.2857142857,
        "reason": "off the target: 10 points",
        "rule": "drift",
        "drift_before": 10,
        "drift_after": 0,
        "status": "proposed",
        "created_at": when,
    }
    assert (second["action"], second["asset"], second["id"]) == ("BUY", "bonds", f"{run}-2")
    assert (second["rebalance_percent"], second["percent_of_holding"]) == (10, 50)
    found = desk.get("/rebalance-transactions?user_id=1")
    assert found == {"transactions": answer.json, "next_cursor": None}
    shown = desk.get("/portfolio?user_id=1")
    assert shown["allocation"] == shown["target"] == SEED
    assert shown["current"] == MOVED
    assert shown["drift"] == {"stocks": 10, "bonds": -10, "gold": 0}
    assert shown["drift_score"] == 10
    assert shown["open_transactions"] == [f"{run}-1", f"{run}-2"]


def test_template_names(desk: Desk) -> None:
    body = {"UserID": 1, "Allocation": {"stocks": "60", "bonds": 30.0, "gold": 1e1}}
    answer = desk.send("POST", "/portfolio", body)
    assert (answer.status, answer.json) == (201, {"user_id": "1", "allocation": SEED})
    for name in ("ID", "id", "userId", "user_id", "UserID"):
        assert desk.send("POST", "/rebalance", {name: 1, "NewAllocation": MOVED}).status == 200
        assert desk.get(f"/portfolio?{name}=1")["user_id"] == "1"
    assert len(desk.transactions()) == 2


def test_percentages_are_written_digit_by_digit(desk: Desk) -> None:
    target = b'{"a":33.3333333333,"b":66.6666666667}'
    answer = desk.send("POST", "/portfolio", b'{"user_id":"1","allocation":%b}' % target)
    assert b'"allocation":%b' % target in answer.body
    moved = b'{"a":33.3333333334,"b":66.6666666666}'
    answer = desk.send("POST", "/rebalance", b'{"user_id":"1","new_allocation":%b}' % moved)
    assert answer.body.count(b'"rebalance_percent":0.0000000001,') == 2


def test_order_of_the_list(desk: Desk) -> None:
    desk.create(allocation={"a": 10, "b": 20, "c": 30, "d": 40})
    moved = {"a": 12, "b": 22, "c": 35, "e": 1, "d": 30}
    assert desk.changes(moved) == [
        ("SELL", "c", 5),
        ("SELL", "a", 2),
        ("SELL", "b", 2),
        ("SELL", "e", 1),
        ("BUY", "d", 10),
    ]
    assert desk.changes(dict(reversed(moved.items()))) == desk.changes(moved)


def test_asset_that_is_not_held_has_no_share(seeded: Desk) -> None:
    _, buy = seeded.update({"stocks": 70, "bonds": 30}).json
    assert (buy["asset"], buy["rebalance_percent"], buy["percent_of_holding"]) == ("gold", 10, None)


def test_no_drift(seeded: Desk) -> None:
    answer = seeded.update(SEED)
    assert (answer.status, answer.body) == (200, b"[]")
    assert int(answer.headers["rebalance-run"]) > 0


def test_portfolio_again(seeded: Desk) -> None:
    again = seeded.create()
    assert (again.status, again.json) == (200, {"user_id": "1", "allocation": SEED})
    assert seeded.create(allocation={"stocks": 50, "bonds": 50}).json["code"] == "portfolio_exists"
    assert seeded.create(policy=BANDS).status == 409


def test_target_is_changed(seeded: Desk) -> None:
    seeded.update()
    body = {"user_id": "1", "allocation": {"stocks": 70, "bonds": 30}}
    assert seeded.ok("PUT", "/portfolio", body) == body
    shown = seeded.get("/portfolio?id=1")
    assert (shown["target"], shown["current"]) == ({"bonds": 30, "stocks": 70}, MOVED)
    assert seeded.changes() == [("SELL", "gold", 10), ("BUY", "bonds", 10)]
    assert seeded.code("PUT", "/portfolio", {**body, "user_id": "9"}) == (
        404,
        "portfolio_not_found",
    )
    assert seeded.code("PUT", "/portfolio", {**body, "policy": {}}) == (400, "body_invalid")


# ── updates ───────────────────────────────────────────────────────────────────────


def test_update_again_is_a_repeat_until_executed(seeded: Desk) -> None:
    first, again = seeded.update(), seeded.update()
    assert first.body == again.body
    assert first.headers["rebalance-run"] == again.headers["rebalance-run"]
    for one in first.json:
        seeded.ok("POST", f"/rebalance-transactions/{one['id']}/executed", {})
    third = seeded.update()
    assert third.headers["rebalance-run"] != first.headers["rebalance-run"]
    assert len(seeded.transactions()) == 4


def test_update_told_again_says_what_was_executed_meanwhile(seeded: Desk) -> None:
    """Who trades what is answered must not trade it twice."""
    moment = rfc3339(START)
    first = seeded.update(as_of=moment)
    assert first.status == 200, first.json
    run = first.headers["rebalance-run"]
    seeded.ok("POST", f"/rebalance-transactions/{run}-1/executed")
    again = seeded.update(as_of=moment)
    assert again.headers["rebalance-run"] == run
    assert [one["status"] for one in again.json] == ["executed", "proposed"]


def test_order_of_the_assets_makes_no_other_update(seeded: Desk) -> None:
    first = seeded.update({"stocks": 70, "bonds": 20, "gold": 10}, request_id="r-1")
    again = seeded.update({"gold": 10, "stocks": 70, "bonds": 20}, request_id="r-1")
    assert (again.status, again.body) == (200, first.body)
    assert again.headers["idempotent-replayed"] == "true"


def test_request_id_names_the_update(seeded: Desk) -> None:
    first = seeded.update(request_id="r-1")
    again = seeded.update(request_id="r-1")
    assert again.body == first.body
    assert again.headers["idempotent-replayed"] == "true"
    other = seeded.update({"stocks": 100}, request_id="r-1")
    assert (other.status, other.json["code"]) == (422, "key_reused")
    assert seeded.update(request_id=2).status == 200
    body = {"user_id": "1", "new_allocation": MOVED}
    assert seeded.post("/rebalance", {**body, "request_id": "r-1"}, "r-1").status == 200
    assert seeded.post("/rebalance", body, "k").status == 200
    assert seeded.post("/rebalance", body, "k").headers["idempotent-replayed"] == "true"
    assert seeded.code("POST", "/rebalance", {**body, "request_id": "r-1"}, "k") == (
        400,
        "idempotency_key_ambiguous",
    )


@pytest.mark.parametrize("key", ["update:1:r", "kafka:rebalance/0/1"])
def test_keys_of_updates_are_reserved(seeded: Desk, key: str) -> None:
    found = (400, "idempotency_key_invalid")
    body = {"user_id": "1", "new_allocation": MOVED}
    assert seeded.code("POST", "/rebalance", body, key) == found
    assert seeded.code("POST", "/rebalance/preview", body, key) == found
    assert seeded.code("POST", "/portfolio", {"user_id": "2", "allocation": SEED}, key) == found
    assert seeded.code("PUT", "/portfolio", {"user_id": "1", "allocation": SEED}, key) == found


def test_older_update_is_outdated(seeded: Desk) -> None:
    assert seeded.changes(as_of="2025-06-01T12:00:00Z")
    answer = seeded.update({"stocks": 100}, as_of="2025-06-01T13:59:59+02:00")
    assert answer.status == 409
    assert answer.json["code"] == "update_outdated"
    assert answer.json["figures"] == {"as_of": "2025-06-01T12:00:00.000000Z"}
    assert seeded.get("/portfolio?id=1")["current"] == MOVED
    assert seeded.update({"stocks": 100}, as_of="2025-06-01T12:00:01Z").status == 200
    ahead = seeded.update(as_of="2099-01-01T00:00:00Z")
    assert (ahead.status, ahead.json["code"]) == (400, "as_of_in_future")


def test_update_of_a_stranger(desk: Desk) -> None:
    answer = desk.update()
    assert (answer.status, answer.json["code"]) == (404, "portfolio_not_found")


def test_values_and_holdings(seeded: Desk) -> None:
    holdings = {
        "stocks": {"quantity": 70, "price": "10", "lot": 1},
        "bonds": {"quantity": "200", "price": 1},
        "gold": {"quantity": 1, "price": 100},
    }
    body = {"user_id": "1", "holdings": holdings}
    sell, buy = seeded.ok("POST", "/rebalance", body)
    assert (sell["amount"], sell["currency"], sell["quantity"]) == ("100", "USD", "10")
    assert (buy["amount"], buy["currency"], buy["quantity"]) == ("100", "USD", "100")
    shown = seeded.get("/portfolio?id=1")
    assert shown["current"] == MOVED
    assert (shown["portfolio_value"], shown["currency"]) == ("1000", "USD")
    assert shown["holdings"]["gold"] == {"quantity": "1", "price": "100"}
    sell, _ = seeded.update(portfolio_value=500, currency="EUR").json
    assert (sell["amount"], sell["currency"], "quantity" in sell) == ("50", "EUR", False)
    assert seeded.update(portfolio_value=500, currency="XYZ").json["code"] == "asset_unknown"


def test_reasons_of_a_policy(desk: Desk) -> None:
    policy = {**BANDS, "minimum_trade": 0.1, "trade_to": "band", "locked": ["wine"]}
    desk.create(allocation={"a": 50, "b": 40, "c": 5, "wine": 5}, policy=policy)
    body = {"user_id": "1", "new_allocation": {"a": 60, "b": 30, "c": 4, "wine": 6}}
    found = desk.ok("POST", "/rebalance/preview", body)
    assert [one["reason"] for one in found["transactions"]] == [
        "outside the band: 10 of 5 points",
        "outside the band: 10 of 5 points",
    ]
    assert [one["rebalance_percent"] for one in found["transactions"]] == [5, 5]
    assert [(one["asset"], one["reason"]) for one in found["not_traded"]] == [
        ("c", "inside the band: 1 of 1.25 points"),
        ("wine", "locked: off the target by 1 point"),
    ]


def test_preview_saves_nothing(seeded: Desk) -> None:
    before = seeded.store.head()
    body = {"user_id": 1, "new_allocation": MOVED}
    found = seeded.ok("POST", "/rebalance/preview", body)
    assert seeded.store.head() == before
    assert found["result"] == "rebalanced"
    assert (found["drift_score_before"], found["drift_score_after"]) == (10, 0)
    assert (found["turnover"], found["sum_of_changes"]) == (10, 0)
    assert found["not_traded"] == [
        {"asset": "gold", "reason": "on the target", "rule": "on_target", "drift": 0}
    ]
    real = seeded.update().json
    for one in real:
        del one["id"], one["status"], one["created_at"]
    assert found["transactions"] == real
    assert seeded.ok("POST", "/rebalance/preview", body)["result"] == "repeat"
    old = {**body, "as_of": "2001-01-01T00:00:00Z"}
    assert seeded.code("POST", "/rebalance/preview", old) == (409, "update_outdated")
    late = {**body, "not_after": "2001-01-01T00:00:00Z"}
    assert seeded.code("POST", "/rebalance/preview", late) == (409, "not_after_passed")
    assert seeded.code("POST", "/rebalance/preview", {**body, "user_id": 2}) == (
        404,
        "portfolio_not_found",
    )


def test_update_is_queued(seeded: Desk) -> None:
    body = {"user_id": "1", "new_allocation": MOVED, "request_id": "r-1"}
    answer = seeded.send("POST", "/rebalance?mode=async", body)
    href = "/rebalance-updates/1"
    assert (answer.status, answer.json) == (202, {"update_id": 1, "status": "queued", "href": href})
    assert answer.headers["location"] == href
    assert seeded.send("POST", "/rebalance?mode=async", body).json["update_id"] == 1
    assert seeded.get(href)["status"] == "queued"
    assert seeded.transactions() == []
    seeded.decide(TakeUpdate(1, "1"))
    found = seeded.get(href)
    assert (found["status"], found["result"]) == ("done", "rebalanced")
    assert [one["asset"] for one in found["transactions"]] == ["stocks", "bonds"]
    assert seeded.transactions() == [(f"{found['run']}-1", "proposed"), (f"{found['run']}-2", "proposed")]  # fmt: skip


def test_update_that_was_queued_is_a_repeat_when_it_comes_directly(seeded: Desk) -> None:
    """A provider that heard no answer may try the other way; the update has one effect."""
    body = {"user_id": "1", "new_allocation": MOVED, "request_id": "r-1"}
    queued = seeded.send("POST", "/rebalance?mode=async", body)
    for is_taken in (False, True):
        if is_taken:
            seeded.decide(TakeUpdate(1, "1"))
        direct = seeded.send("POST", "/rebalance", body)
        assert (direct.status, direct.json) == (202, queued.json)
        assert direct.headers["location"] == "/rebalance-updates/1"
        assert direct.headers["idempotent-replayed"] == "true"
    assert len(seeded.transactions()) == 2
    other = seeded.send("POST", "/rebalance", {**body, "new_allocation": SEED})
    assert (other.status, other.json["code"], other.json["figures"]["field"]) == (
        422,
        "key_reused",
        "allocation",
    )


def test_update_that_came_directly_is_a_repeat_when_it_is_queued(seeded: Desk) -> None:
    body = {"user_id": "1", "new_allocation": MOVED, "request_id": "r-1"}
    direct = seeded.send("POST", "/rebalance", body)
    queued = seeded.send("POST", "/rebalance?mode=async", body)
    assert (queued.status, queued.body) == (200, direct.body)
    assert queued.headers["rebalance-run"] == direct.headers["rebalance-run"]
    assert queued.headers["idempotent-replayed"] == "true"
    assert seeded.code("GET", "/rebalance-updates/1") == (404, "update_not_found")
    other = {**body, "new_allocation": SEED}
    assert seeded.code("POST", "/rebalance?mode=async", other) == (422, "key_reused")


def test_queued_updates_that_lead_to_nothing(seeded: Desk) -> None:
    path = "/rebalance?mode=async"
    run = int(seeded.update(as_of="2025-06-01T12:00:00Z").headers["rebalance-run"])
    body = {"user_id": "1", "new_allocation": MOVED}
    seeded.ok("POST", path, body, 202)
    seeded.ok("POST", path, {**body, "as_of": "2025-06-01T11:00:00Z"}, 202)
    seeded.ok("POST", path, {**body, "new_allocation": {"stocks": 99}}, 202)
    for number in (1, 2, 3):
        seeded.decide(TakeUpdate(number, "1"))
    repeat, outdated, refused = (seeded.get(f"/rebalance-updates/{n}") for n in (1, 2, 3))
    assert (repeat["status"], repeat["result"], repeat["run"]) == ("done", "repeat", run)
    assert (outdated["status"], outdated["result"]) == ("done", "outdated")
    assert "run" not in outdated
    assert (refused["status"], refused["code"]) == ("refused", "allocation_invalid")
    assert refused["detail"] == "the percentages add up to 99, not to 100"
    assert seeded.code("POST", path, {**body, "user_id": "9"}) == (404, "portfolio_not_found")
    for number in ("4", "0", "x", "9" * 30):
        found = seeded.code("GET", f"/rebalance-updates/{number}")
        assert found == (404, "update_not_found")


@pytest.mark.parametrize("is_hot", [True, False])
def test_mode_is_looked_at_both_ways(is_hot: bool) -> None:
    with Desk(is_hot=is_hot) as desk:
        desk.create()
        body = {"user_id": "1", "new_allocation": MOVED}
        for path, status in (
            ("/rebalance", 200),
            ("/rebalance?mode=sync", 200),
            ("/rebalance?mode=async", 202),
            ("/rebalance?mode=later", 400),
            ("/rebalance?mode=", 400),
        ):
            assert desk.send("POST", path, body).status == status


# ── what is shown ─────────────────────────────────────────────────────────────────


def test_portfolio_before_any_update(seeded: Desk) -> None:
    shown = seeded.get("/portfolio?user_id=1")
    created_at = shown.pop("created_at")
    assert created_at.startswith("2025-")
    assert shown == {
        "user_id": "1",
        "allocation": SEED,
        "target": SEED,
        "current": None,
        "drift": None,
        "drift_score": None,
        "as_of": None,
        "policy": None,
        "policy_version": 0,
        "last_run": None,
        "last_run_at": None,
        "open_transactions": [],
    }


READS = ["/portfolio", "/portfolio/policies", "/rebalance-transactions", "/rebalances"]


@pytest.mark.parametrize("path", READS)
def test_user_in_the_query(still: Desk, path: str) -> None:
    assert still.code("GET", path) == (400, "user_id_missing")
    assert still.code("GET", f"{path}?user_id=9") == (404, "portfolio_not_found")
    assert still.code("GET", f"{path}?user_id=") == (400, "user_id_invalid")
    assert still.code("GET", f"{path}?user_id=a%00b") == (400, "user_id_invalid")
    assert still.code("GET", f"{path}?user_id={'x' * 256}") == (400, "user_id_invalid")
    assert still.send("GET", f"{path}?user_id=1").status == 200


@pytest.mark.parametrize("path", READS[1:])
@pytest.mark.parametrize(
    "query", ["cursor=x", "cursor=99-1x", "cursor=", "limit=0", "limit=x", "cursor=" + "9" * 40]
)
def test_pages_that_cannot_be_asked_for(still: Desk, path: str, query: str) -> None:
    status, code = still.code("GET", f"{path}?user_id=1&{query}")
    assert (status, code) == (400, f"{query.partition('=')[0]}_invalid")


def test_odd_user_ids(desk: Desk) -> None:
    for user in ("a b", "a/b", "a:b", "ü%3A", "?&=#", '"\\', "😀", "<script>"):
        assert desk.create(user).status == 201
        run = desk.update(user=user).headers["rebalance-run"]
        name = quote(user, safe="")
        assert desk.get(f"/portfolio?user_id={name}")["user_id"] == user
        assert desk.transactions(user=name) == [(f"{run}-1", "proposed"), (f"{run}-2", "proposed")]
        assert desk.get(f"/rebalances/{run}")["user_id"] == user
        desk.ok("PUT", "/portfolio/policy", {"user_id": user, "policy": BANDS})
        assert len(desk.get(f"/portfolio/policies?user_id={name}")["data"]) == 1


def test_portfolios_are_paged_by_user(desk: Desk) -> None:
    users = ["10", "2", "a b", "a:b", "ü"]
    for user in reversed(users):
        desk.create(user)
    found: list[str] = []
    cursor = ""
    while cursor is not None:
        page = desk.get(f"/portfolios?limit=2&cursor={quote(cursor, safe='')}")
        found += [one["user_id"] for one in page["data"]]
        cursor = page["next_cursor"]
    assert found == users
    assert desk.code("GET", "/portfolios?cursor=%00") == (400, "user_id_invalid")


def test_transactions_are_paged_newest_run_first(seeded: Desk) -> None:
    runs = [
        int(seeded.update({"stocks": 60 + n, "bonds": 30 - n, "gold": 10}).headers["rebalance-run"])
        for n in (1, 2, 3)
    ]
    expected = [
        (f"{run}-{position}", "proposed" if run == runs[-1] else "superseded")
        for run in reversed(runs)
        for position in (1, 2)
    ]
    assert seeded.transactions() == expected
    found: list[tuple[str, str]] = []
    query = "&limit=1"
    while True:
        page = seeded.get(f"/rebalance-transactions?user_id=1{query}")
        found += [(one["id"], one["status"]) for one in page["transactions"]]
        if page["next_cursor"] is None:
            break
        query = f"&limit=1&cursor={page['next_cursor']}"
    assert found == expected
    seeded.create("2")
    assert seeded.code("GET", f"/rebalance-transactions?user_id=2&cursor={runs[0]}-1") == (
        400,
        "cursor_invalid",
    )


def test_run_without_trades_supersedes(seeded: Desk) -> None:
    seeded.update()
    seeded.update(SEED)
    assert [status for _, status in seeded.transactions()] == ["superseded", "superseded"]
    quiet, moved = seeded.get("/rebalances?user_id=1")["data"]
    assert (quiet["transactions"], quiet["turnover"]) == (0, 0)
    assert (moved["transactions"], moved["turnover"], moved["drift_score_before"]) == (2, 10, 10)
    page = seeded.get("/rebalances?user_id=1&limit=1")
    rest = seeded.get(f"/rebalances?user_id=1&limit=1&cursor={page['next_cursor']}")
    assert (page["data"], rest["data"], rest["next_cursor"]) == ([quiet], [moved], None)


def test_run_is_shown_whole(seeded: Desk) -> None:
    answer = seeded.update()
    run = int(answer.headers["rebalance-run"])
    found = seeded.get(f"/rebalances/{run}")
    assert found["transactions"] == answer.json
    assert [one["asset"] for one in found["not_traded"]] == ["gold"]
    assert (found["turnover"], found["sum_of_changes"], found["previous_run"]) == (10, 0, None)
    later = seeded.update(SEED).headers["rebalance-run"]
    assert seeded.get(f"/rebalances/{later}")["previous_run"] == run
    for wrong in ("1", "0", "x", "999999", "9" * 30, "-1"):
        assert seeded.code("GET", f"/rebalances/{wrong}") == (404, "run_not_found")
        assert seeded.code("POST", f"/rebalances/{wrong}/executed") == (404, "run_not_found")


# ── policies ──────────────────────────────────────────────────────────────────────

POLICY = {
    "bands": {"absolute": 5, "relative": 25},
    "asset_bands": {"gold": {"absolute": 1.5}, "wine": {"relative": 10}},
    "drift_score": 3,
    "calendar": "monthly",
    "when": "all",
    "minimum_trade": 0.1,
    "trade_to": "band",
    "cash_asset": "cash",
    "buy_only": True,
    "cash_first": True,
    "locked": ["house"],
    "turnover_max": 12.5,
}


def test_policy_comes_back_as_it_was_sent(seeded: Desk) -> None:
    body = {"user_id": 1, "policy": POLICY}
    assert seeded.ok("PUT", "/portfolio/policy", body) == {"user_id": "1", "policy_version": 1}
    assert seeded.ok("PUT", "/portfolio/policy", body)["policy_version"] == 1
    assert seeded.get("/portfolio?id=1")["policy"] == POLICY
    assert seeded.ok("PUT", "/portfolio/policy", {"id": 1, "policy": None})["policy_version"] == 2
    assert seeded.get("/portfolio?id=1")["policy"] is None
    first = seeded.get("/portfolio/policies?user_id=1&limit=1")
    rest = seeded.get(f"/portfolio/policies?user_id=1&cursor={first['next_cursor']}")
    assert [one["version"] for one in first["data"] + rest["data"]] == [1, 2]
    assert [one["policy"] for one in first["data"] + rest["data"]] == [POLICY, None]
    assert rest["next_cursor"] is None


def test_policy_at_the_beginning(desk: Desk) -> None:
    answer = desk.create(policy=BANDS)
    assert answer.json == {"user_id": "1", "allocation": SEED, "policy_version": 1}
    assert desk.changes({"stocks": 64.9, "bonds": 25.1, "gold": 10}) == []
    assert desk.changes({"stocks": 65, "bonds": 25, "gold": 10}) == [
        ("SELL", "stocks", 5),
        ("BUY", "bonds", 5),
    ]


def test_policy_of_a_stranger(desk: Desk) -> None:
    body = {"user_id": "1", "policy": {}}
    assert desk.code("PUT", "/portfolio/policy", body) == (404, "portfolio_not_found")
    assert desk.code("PUT", "/portfolio/policy", {"user_id": "1"}) == (400, "body_invalid")


# ── what was executed ─────────────────────────────────────────────────────────────


def test_transaction_is_executed_once(seeded: Desk) -> None:
    run = seeded.update().headers["rebalance-run"]
    path = f"/rebalance-transactions/{run}-1/executed"
    done = {"id": f"{run}-1", "user_id": "1", "status": "executed"}
    assert seeded.ok("POST", path) == done
    assert seeded.ok("POST", path, {}) == done
    assert seeded.transactions() == [(f"{run}-1", "executed"), (f"{run}-2", "proposed")]
    assert seeded.get("/portfolio?id=1")["open_transactions"] == [f"{run}-2"]
    told = {"quantity": 1, "amount": 1, "currency": "USD"}
    assert seeded.code("POST", path, told) == (409, "transaction_executed")
    for wrong in (f"{run}-3", f"{run}-0", "1-1", f"{run}", "x", "9" * 30 + "-1"):
        found = seeded.code("POST", f"/rebalance-transactions/{wrong}/executed")
        assert found == (404, "transaction_not_found")


def register(desk: Desk, *names: str) -> None:
    for number, name in enumerate(names, 901):
        desk.ok("POST", "/v1/assets", {"name": name, "scale": 8, "currency_id": number}, 201)


def test_execution_posts_what_is_told(desk: Desk) -> None:
    register(desk, "STK", "BND")
    desk.create(allocation={"STK": 60, "BND": 40})
    run = desk.update({"STK": 70, "BND": 30}).headers["rebalance-run"]
    desk.fund("1", asset="STK", amount="70")
    told = {"quantity": "10", "amount": "99.5", "currency": "USD"}
    first = f"/rebalance-transactions/{run}-1/executed"
    assert desk.code("POST", first, {"quantity": 10, "amount": "99.5"}) == (400, "body_invalid")
    assert desk.code("POST", first, {"currency": "USD"}) == (400, "body_invalid")
    assert desk.code("POST", first, {**told, "quantity": 0}) == (400, "amount_not_positive")
    for _ in range(2):
        desk.ok("POST", first, told)
    assert desk.available("user:1:STK") == "60"
    assert desk.available("user:1:USD") == "99.5"
    fills = [{"id": f"{run}-2", "quantity": 50, "amount": "99.5", "currency": "USD"}]
    done = desk.ok("POST", f"/rebalances/{run}/executed", {"fills": fills})
    assert done == {"run": int(run), "user_id": "1", "executed": [f"{run}-2"]}
    assert desk.available("user:1:BND") == "50"
    assert desk.available("user:1:USD") == "0"
    sell, buy = desk.get("/rebalance-transactions?id=1")["transactions"]
    assert sell["executed"] == {"at": sell["executed"]["at"], **told}
    assert (buy["status"], buy["executed"]["quantity"]) == ("executed", "50")


def test_run_is_executed_as_far_as_is_left(seeded: Desk) -> None:
    run = seeded.update().headers["rebalance-run"]
    seeded.ok("POST", f"/rebalance-transactions/{run}-2/executed")
    path = f"/rebalances/{run}/executed"
    assert seeded.ok("POST", path)["executed"] == [f"{run}-1", f"{run}-2"]
    assert seeded.get("/portfolio?id=1")["open_transactions"] == []
    for fills in ([], [{"id": f"{run}-1"}] * 2, [{"id": f"{run}-1"}] * 101, [{}]):
        assert seeded.code("POST", path, {"fills": fills}) == (400, "body_invalid")
    for wrong in ("1-1", f"{run}-9", "x"):
        found = seeded.code("POST", path, {"fills": [{"id": wrong}]})
        assert found == (404, "transaction_not_found")


# ── HTTP ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/portfolio"),
        ("GET", "/rebalance"),
        ("PUT", "/rebalance"),
        ("GET", "/rebalance/preview"),
        ("POST", "/rebalance-transactions"),
        ("POST", "/portfolios"),
        ("GET", "/portfolio/policy"),
    ],
)
def test_wrong_method(still: Desk, method: str, path: str) -> None:
    assert still.code(method, path) == (405, "method_not_allowed")


def test_both_ways_give_the_same_bytes() -> None:
    bodies: list[tuple[str, Any]] = [
        ("/portfolio", {"user_id": "1", "allocation": SEED}),
        ("/portfolio", {"user_id": "1", "allocation": SEED}),
        ("/portfolio", {"user_id": "2", "allocation": {"stocks": 99}}),
        ("/rebalance", {"user_id": "1", "new_allocation": MOVED}),
        ("/rebalance", {"user_id": "1", "new_allocation": MOVED}),
        ("/rebalance", {"user_id": "1", "new_allocation": SEED}),
        ("/rebalance", {"user_id": "1", "new_allocation": {"stocks": 1}}),
        ("/rebalance", {"user_id": "9", "new_allocation": MOVED}),
        ("/rebalance", {"user_id": "1", "new_allocation": MOVED, "request_id": "r"}),
        ("/rebalance", {"user_id": "1", "new_allocation": MOVED, "request_id": "r"}),
        ("/rebalance", {"id": 1, "NewAllocation": MOVED, "as_of": "2001-01-01T00:00:00Z"}),
        ("/rebalance", {"user_id": "1", "new_allocation": {"stocks": None}}),
    ]
    with ExitStack() as stack:
        both = [stack.enter_context(Desk(is_hot=is_hot)) for is_hot in (True, False)]
        for path, body in bodies:
            answers = []
            for desk in both:
                with desk.connect() as raw:
                    raw.send(request_bytes("POST", path, json.dumps(body).encode()))
                    answer = raw.read()
                    answer.headers.pop("date")
                    answers.append(answer)
            assert answers[0] == answers[1]


def test_documentation() -> None:
    description = describe(ROUTES)
    assert portfolios.FACE == "portfolios"
    found = portfolios.routes()
    assert {route.path for route in found if isinstance(route, CommandRoute) and route.is_hot} == {
        "/portfolio",
        "/rebalance",
    }
    for route in found:
        operation = description["paths"][route.path][route.method.lower()]
        answer = operation["responses"][str(route.documentation.status)]
        assert answer["content"]["application/json"]["example"] is not None
    shown = description["components"]["schemas"]["TransactionShown"]["properties"]
    assert shown["rebalance_percent"]["type"] == "number"


def test_examples_are_what_is_answered(desk: Desk) -> None:
    """The description's requests succeed, and answers have the fields that it shows."""
    paths = describe(ROUTES)["paths"]

    def example(method: str, path: str) -> Any:
        content = paths[path][method]["requestBody"]["content"]
        return content["application/json"]["example"]

    def shown(method: str, path: str, status: str = "200") -> Any:
        content = paths[path][method]["responses"][status]["content"]
        return content["application/json"]["example"]

    created = desk.ok("POST", "/portfolio", example("post", "/portfolio"), 201)
    assert created == shown("post", "/portfolio", "201")
    preview = desk.ok("POST", "/rebalance/preview", example("post", "/rebalance/preview"))
    assert _fields(preview) == _fields(shown("post", "/rebalance/preview"))
    answer = desk.send("POST", "/rebalance", example("post", "/rebalance"))
    assert list(answer.json[0]) == list(shown("post", "/rebalance")[0])
    run = answer.headers["rebalance-run"]
    for path, real in (
        ("/portfolio", "/portfolio?user_id=1"),
        ("/portfolios", "/portfolios"),
        ("/rebalance-transactions", "/rebalance-transactions?user_id=1"),
        ("/rebalances", "/rebalances?user_id=1"),
        ("/rebalances/{run}", f"/rebalances/{run}"),
    ):
        assert _fields(desk.get(real)) == _fields(shown("get", path)), path
    desk.ok("PUT", "/portfolio/policy", example("put", "/portfolio/policy"))
    found = desk.get("/portfolio/policies?user_id=1")
    assert _fields(found) == _fields(shown("get", "/portfolio/policies"))


def _fields(value: Any) -> Any:
    """Return the names of an object and of the first element of the lists in it."""
    if isinstance(value, dict):
        return {name: _fields(one) for name, one in value.items()}
    return _fields(value[0]) if isinstance(value, list) and value else None

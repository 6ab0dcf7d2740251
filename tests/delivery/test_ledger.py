"""The ledger's face through the server: every route of `/v1`, as a caller sees it."""

from collections.abc import Iterator
from typing import Any

import pytest

from served import Answer, Served, transfer


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with Served() as served:
        yield served


@pytest.fixture
def users(served: Served, request: pytest.FixtureRequest) -> tuple[str, str]:
    """Two users of this test alone, with 100 USD each; the ids of their accounts."""
    names = [f"{request.node.name.replace('[', '_').rstrip(']')}-{n}" for n in (1, 2)]
    served.fund(*names)
    return f"user:{names[0]}:USD", f"user:{names[1]}:USD"


def code_of(answer: Answer) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json["type"] == f"urn:pennyweight:problem:{answer.json['code']}"
    assert answer.json["status"] == answer.status
    return answer.status, answer.json["code"]


# ── assets and accounts ───────────────────────────────────────────────────────────


def test_assets(served: Served) -> None:
    body = {"name": "DOGE", "scale": 8, "currency_id": 20}
    assert served.post("/v1/assets", body).status == 201
    assert served.post("/v1/assets", body).json == body
    assert code_of(served.post("/v1/assets", {**body, "scale": 9})) == (409, "asset_scale_fixed")
    assert code_of(served.post("/v1/assets", {**body, "name": "doge"})) == (400, "asset_invalid")
    page = served.get("/v1/assets")
    assert page["data"][0] == {"name": "USD", "scale": 18, "currency_id": 1}
    assert body in page["data"]
    assert page["next_cursor"] is None


@pytest.mark.parametrize(
    ("body", "account"),
    [
        ({"id": "user:a1:BTC"}, "user:a1:BTC"),
        ({"holder": "user:a2", "asset": "BTC"}, "user:a2:BTC"),
        ({"holder": "user:a3", "asset": "BTC", "path": "savings"}, "user:a3:savings:BTC"),
        ({"id": "fees:BTC"}, "fees:BTC"),
    ],
    ids=str,
)
def test_account_opened(served: Served, body: Any, account: str) -> None:
    opened = served.post("/v1/accounts", body)
    assert opened.status == 201
    assert opened.json["id"] == account
    assert (opened.json["floor"], opened.json["available"]) == ("0", "0")
    assert served.get(f"/v1/accounts/{account}") == opened.json
    assert code_of(served.post("/v1/accounts", body)) == (409, "account_exists")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (400, "body_invalid")),
        ({"holder": "user:1"}, (400, "body_invalid")),
        ({"id": "user:1:BTC", "asset": "BTC"}, (400, "body_invalid")),
        ({"id": "user:1:BTC", "colour": "red"}, (400, "body_invalid")),
        ({"id": "nonsense"}, (400, "account_id_invalid")),
        ({"id": "user:1:XYZ"}, (400, "asset_unknown")),
        ({"id": "user:1:BTC", "floor": "1"}, (400, "floor_invalid")),
        ({"id": "user:1:BTC", "floor": None}, (400, "body_invalid")),
        ({"id": "owed:user:1:BTC"}, (400, "account_id_invalid")),
    ],
    ids=str,
)
def test_account_refused(served: Served, body: Any, expected: tuple[int, str]) -> None:
    assert code_of(served.post("/v1/accounts", body)) == expected


def test_account_with_floor(served: Served) -> None:
    body = {"id": "user:credit:USD", "floor": "-10.5"}
    assert served.post("/v1/accounts", body).json["floor"] == "-10.5"
    paid = served.post("/v1/transfers", transfer("user:credit:USD", "world:USD", "10.5"))
    assert paid.status == 201
    assert served.available("user:credit:USD") == "-10.5"


def test_account_escaped_in_path(served: Served) -> None:
    served.post("/v1/accounts", {"id": "user:a%2Fb c:BTC"})
    assert served.get("/v1/accounts/user:a%252Fb%20c:BTC")["holder"] == "user:a%2Fb c"
    served.post("/v1/accounts", {"id": "user:x/y:BTC"})
    assert served.get("/v1/accounts/user:x%2Fy:BTC")["id"] == "user:x/y:BTC"
    assert code_of(served.send("GET", "/v1/accounts/%FF")) == (400, "path_invalid")


def test_account_not_found(served: Served) -> None:
    for path in ("", "/statement", "/balance"):
        answer = served.send("GET", f"/v1/accounts/user:nobody:BTC{path}")
        assert code_of(answer) == (404, "account_not_found")
    answer = served.post("/v1/accounts/user:nobody:BTC/close")
    assert code_of(answer) == (404, "account_not_found")


def test_account_closed(served: Served, users: tuple[str, str]) -> None:
    one, two = users
    refused = served.post(f"/v1/accounts/{one}/close", {})
    assert code_of(refused) == (409, "account_has_balance")
    served.post("/v1/transfers", transfer(one, two, "100"))
    assert served.post(f"/v1/accounts/{one}/close").json["closed"] is True
    refused = served.post("/v1/transfers", transfer(two, one))
    assert code_of(refused) == (409, "account_closed")
    assert code_of(served.post(f"/v1/accounts/{one}/close", {"a": 1})) == (400, "body_invalid")


def test_accounts_listed(served: Served) -> None:
    for asset in ("USD", "BTC", "ETH"):
        served.post("/v1/accounts", {"holder": "user:listed", "asset": asset})
    first = served.get("/v1/accounts?holder=user:listed&limit=2")
    assert [account["asset"] for account in first["data"]] == ["USD", "BTC"]
    rest = served.get(f"/v1/accounts?holder=user:listed&limit=2&cursor={first['next_cursor']}")
    assert [account["asset"] for account in rest["data"]] == ["ETH"]
    assert rest["next_cursor"] is None
    both = served.get("/v1/accounts?holder=user:listed&asset=ETH")
    assert [account["id"] for account in both["data"]] == ["user:listed:ETH"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "limit_invalid"),
        ("limit=1001", "limit_invalid"),
        ("limit=ten", "limit_invalid"),
        ("limit=-1", "limit_invalid"),
        ("limit=%D9%A1", "limit_invalid"),
        ("limit=" + "9" * 5_000, "limit_invalid"),
        ("cursor=x", "cursor_invalid"),
        ("cursor=-1", "cursor_invalid"),
        ("cursor=" + "9" * 30, "cursor_invalid"),
        ("holder=%FF", "query_invalid"),
    ],
)
def test_query_refused(served: Served, query: str, code: str) -> None:
    assert code_of(served.send("GET", f"/v1/accounts?{query}")) == (400, code)


# ── transfers ─────────────────────────────────────────────────────────────────────


def test_transfer(served: Served, users: tuple[str, str]) -> None:
    one, two = users
    made = served.post("/v1/transfers", transfer(one, two, "12.50", id="rent"))
    assert made.status == 201
    assert made.json["id"] == "rent"
    assert made.json["amount"] == "12.5"
    assert made.json["committed_at"].endswith("Z")
    assert made.json["effective_at"] == made.json["committed_at"]
    assert (served.available(one), served.available(two)) == ("87.5", "112.5")


@pytest.mark.parametrize(
    ("amount", "shown"), [(0.1, "0.1"), (1e-7, "0.0000001"), ("1e1", "10"), (3, "3"), ("5.0", "5")]
)
def test_transfer_amounts(served: Served, users: tuple[str, str], amount: Any, shown: str) -> None:
    assert served.post("/v1/transfers", transfer(*users, amount)).json["amount"] == shown


def test_transfer_replayed(served: Served, users: tuple[str, str]) -> None:
    first = served.post("/v1/transfers", transfer(*users, "5"), key="r-1")
    again = served.post("/v1/transfers", {**transfer(*users, 5), "idempotency_key": "r-1"})
    assert (first.status, first.body) == (again.status, again.body)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    reused = served.post("/v1/transfers", transfer(*users, "6"), key="r-1")
    assert code_of(reused) == (422, "key_reused")
    assert reused.json["figures"]["field"] == "amount"
    assert served.available(users[0]) == "95"


def test_transfer_refused_frees_key(served: Served, users: tuple[str, str]) -> None:
    refused = served.post("/v1/transfers", transfer(*users, "100.01"), key="r-2")
    assert code_of(refused) == (409, "insufficient_funds")
    assert refused.json["retryable"] is True
    assert refused.json["figures"]["available"] == "100"
    assert served.post("/v1/transfers", transfer(*users, "100"), key="r-2").status == 201


def test_transfer_key_in_two_places(served: Served, users: tuple[str, str]) -> None:
    body = {**transfer(*users), "idempotency_key": "one"}
    answer = served.post("/v1/transfers", body, key="other")
    assert code_of(answer) == (400, "idempotency_key_ambiguous")
    assert served.post("/v1/transfers", body, key="one").status == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb", "a\x00", "\ud83d"])
def test_transfer_key_invalid(served: Served, users: tuple[str, str], key: str) -> None:
    answer = served.post("/v1/transfers", {**transfer(*users), "idempotency_key": key})
    assert answer.status == 400


def test_transfer_key_longest(served: Served, users: tuple[str, str]) -> None:
    for _ in range(2):
        answer = served.post("/v1/transfers", {**transfer(*users), "idempotency_key": "ä" * 255})
        assert answer.status == 201
    assert served.available(users[0]) == "99"


def test_transfer_not_after(served: Served, users: tuple[str, str]) -> None:
    past, future = "2001-01-01T00:00:00Z", "2125-01-01T00:00:00+02:00"
    body = transfer(*users)
    assert served.post("/v1/transfers", {**body, "not_after": future}).status == 201
    late = served.post("/v1/transfers", {**body, "not_after": past})
    assert code_of(late) == (409, "not_after_passed")
    late = served.send("POST", "/v1/transfers", {**body, "not_after": future}, {"Not-After": past})
    assert code_of(late) == (409, "not_after_passed")
    bad = served.send("POST", "/v1/transfers", body, {"Not-After": "2125-01-01"})
    assert code_of(bad) == (400, "not_after_invalid")
    naive = served.post("/v1/transfers", {**body, "not_after": "2125-01-01T00:00:00"})
    assert code_of(naive) == (400, "body_invalid")


def test_transfer_back_dated(served: Served, users: tuple[str, str]) -> None:
    one, _ = users
    day = "2020-02-29T10:00:00.000001Z"
    made = served.post("/v1/transfers", transfer(*users, "30", effective_at=day))
    assert made.json["effective_at"] == day
    by_date = served.get(f"/v1/accounts/{one}/balance?as_of={day}&by=effective")
    by_booking = served.get(f"/v1/accounts/{one}/balance?as_of={day}")
    assert (by_date["posted"], by_booking["posted"]) == ("-30", "0")
    now = made.json["committed_at"]
    assert served.get(f"/v1/accounts/{one}/balance?as_of={now}")["available"] == "70"
    future = transfer(*users, effective_at="2125-01-01T00:00:00Z")
    assert code_of(served.post("/v1/transfers", future)) == (400, "effective_at_in_future")


OUT_OF_RANGE = (
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-01:00",
)


@pytest.mark.parametrize("moment", OUT_OF_RANGE)
def test_moment_that_its_offset_puts_out_of_range(
    served: Served, users: tuple[str, str], moment: str
) -> None:
    one = transfer(*users)
    before = served.store.head()
    path = f"/v1/accounts/{users[0]}"
    asked = moment.replace("+", "%2B")
    for query in (f"/balance?as_of={asked}", f"/statement?as_of={asked}"):
        assert code_of(served.send("GET", path + query)) == (400, "as_of_invalid")
    for name in ("not_after", "effective_at"):
        for body in (
            {**one, name: moment},
            {"transfers": [{**one, name: moment}], "atomic": False},
        ):
            assert code_of(served.post("/v1/transfers", body)) == (400, f"{name}_invalid")
        atomic = {"transfers": [one], "atomic": True, name: moment}
        assert code_of(served.post("/v1/transfers", atomic)) == (400, f"{name}_invalid")
    reverse = served.post("/v1/entries/1/reverse", {"effective_at": moment})
    assert code_of(reverse) == (400, "effective_at_invalid")
    header = served.send("POST", "/v1/transfers", one, {"Not-After": moment})
    assert code_of(header) == (400, "not_after_invalid")
    assert served.store.head() == before


def test_moments_at_the_ends_of_time(served: Served, users: tuple[str, str]) -> None:
    for moment in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"):
        found = served.send("GET", f"/v1/accounts/{users[0]}/balance?as_of={moment}")
        assert found.status == 200, found


def test_transfers_atomic(served: Served, users: tuple[str, str]) -> None:
    one, two = users
    legs = [transfer(one, two, "60"), transfer(two, one, "1", id="back")]
    made = served.post("/v1/transfers", {"atomic": True, "transfers": legs})
    assert made.status == 201
    assert [leg["id"] for leg in made.json["transfers"]] == [f"{made.json['sequence']}.0", "back"]
    legs = [transfer(one, two, "40"), transfer(one, two, "2")]
    refused = served.post("/v1/transfers", {"atomic": True, "transfers": legs})
    assert code_of(refused) == (409, "insufficient_funds")
    assert served.available(one) == "41"


@pytest.mark.parametrize("count", [0, 65])
def test_transfers_atomic_count(served: Served, users: tuple[str, str], count: int) -> None:
    body = {"atomic": True, "transfers": [transfer(*users, "0.01")] * count}
    assert code_of(served.post("/v1/transfers", body)) == (400, "too_many_transfers")


def test_transfers_item_by_item(served: Served, users: tuple[str, str]) -> None:
    one, two = users
    items = [transfer(one, two, "60"), transfer(one, two, "50"), transfer(one, two, "40")]
    body = {"atomic": False, "transfers": items}
    made = served.post("/v1/transfers", body, key="list")
    assert made.status == 200
    results = made.json["results"]
    assert [result["status"] for result in results] == [201, 409, 201]
    assert results[1]["problem"]["code"] == "insufficient_funds"
    again = served.post("/v1/transfers", body, key="list").json["results"]
    assert [result.get("replayed", False) for result in again] == [True, False, True]
    assert served.available(one) == "0"


def test_transfers_item_by_item_with_keys(served: Served, users: tuple[str, str]) -> None:
    item = {**transfer(*users), "idempotency_key": "twice"}
    body = {"atomic": False, "transfers": [item, item]}
    results = served.post("/v1/transfers", body).json["results"]
    assert results[0]["transfer"] == results[1]["transfer"]
    assert served.available(users[0]) == "99"


@pytest.mark.parametrize(
    "body",
    [
        {"transfers": []},
        {"atomic": None, "transfers": []},
        {"atomic": False, "transfers": []},
        {"atomic": False, "transfers": {}},
        {"atomic": False, "transfers": [1]},
        {"atomic": True, "transfers": [{}]},
        {"atomic": True, "transfers": [], "colour": "red"},
        {"atomic": False, "transfers": [transfer("a:USD", "b:USD")] * 1_001},
    ],
    ids=lambda body: str(body)[:60],
)
def test_transfers_bad_list(served: Served, body: Any) -> None:
    assert code_of(served.post("/v1/transfers", body))[0] == 400


# ── holds ─────────────────────────────────────────────────────────────────────────


def hold(account: str, amount: str = "10", **more: Any) -> dict[str, Any]:
    return {"account": account, "asset": "USD", "amount": amount, **more}


def test_hold_settled_in_parts(served: Served, users: tuple[str, str]) -> None:
    one, two = users
    placed = served.post("/v1/holds", hold(one, "30"))
    assert placed.status == 201
    assert (placed.json["state"], placed.json["owner"]) == ("open", "ledger")
    assert served.available(one) == "70"
    path = f"/v1/holds/{placed.json['id']}"
    body = {"amount": "10", "credit_account": two, "rest": "keep"}
    settled = served.post(f"{path}/settle", body)
    assert settled.status == 200
    assert (settled.json["state"], settled.json["remaining"]) == ("open", "20")
    settled = served.post(f"{path}/settle", {"amount": "5", "credit_account": two})
    assert (settled.json["state"], settled.json["remaining"]) == ("settled", "0")
    assert served.get(path) == settled.json
    assert (served.available(one), served.available(two)) == ("85", "115")
    refused = served.post(f"{path}/settle", {"amount": "5", "credit_account": two})
    assert code_of(refused) == (409, "hold_already_settled")


def test_hold_voided(served: Served, users: tuple[str, str]) -> None:
    placed = served.post("/v1/holds", hold(users[0], expires_in_seconds=60), key="h-1")
    assert placed.json["expires_at"].endswith("Z")
    voided = served.post(f"/v1/holds/{placed.json['id']}/void", key="v-1")
    assert voided.json["state"] == "voided"
    again = served.post(f"/v1/holds/{placed.json['id']}/void", {}, key="v-1")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.body == voided.body
    assert served.available(users[0]) == "100"


def test_holds_listed(served: Served, users: tuple[str, str]) -> None:
    ids = [served.post("/v1/holds", hold(users[0])).json["id"] for _ in range(3)]
    first = served.get(f"/v1/holds?account={users[0]}&limit=2")
    assert [found["id"] for found in first["data"]] == ids[:2]
    rest = served.get(f"/v1/holds?account={users[0]}&cursor={first['next_cursor']}")
    assert [found["id"] for found in rest["data"]] == ids[2:]
    assert code_of(served.send("GET", "/v1/holds")) == (400, "account_missing")
    unknown = served.send("GET", "/v1/holds?account=user:nobody:USD")
    assert code_of(unknown) == (404, "account_not_found")


@pytest.mark.parametrize("hold_id", ["0", "99999", "abc", "1.5", "-1", "9" * 40])
def test_hold_not_found(served: Served, hold_id: str) -> None:
    assert code_of(served.send("GET", f"/v1/holds/{hold_id}")) == (404, "hold_not_found")
    assert code_of(served.post(f"/v1/holds/{hold_id}/void")) == (404, "hold_not_found")


@pytest.mark.parametrize("seconds", [0, -5, 1.5, "9", 10**12, True])
def test_hold_expiry_invalid(served: Served, users: tuple[str, str], seconds: Any) -> None:
    assert served.post("/v1/holds", hold(users[0], expires_in_seconds=seconds)).status == 400


# ── entries, statements, reversal, keys, proof ────────────────────────────────────


def test_entries(served: Served, users: tuple[str, str]) -> None:
    made = served.post("/v1/transfers", transfer(*users, "7.25"), key="entry-1").json
    entry = served.get(f"/v1/entries/{made['sequence']}")
    assert (entry["command"], entry["product"], entry["key"]) == ("transfer", "ledger", "entry-1")
    assert entry["transfers"] == [transfer(*users, "7.25")]
    assert entry["committed_at"] == made["committed_at"]
    newest = served.get("/v1/entries?order=newest&limit=1")
    assert newest["data"] == [entry]
    before = served.get(f"/v1/entries?order=newest&limit=1&cursor={newest['next_cursor']}")
    assert before["data"][0]["sequence"] == made["sequence"] - 1
    first = served.get("/v1/entries?limit=3")
    assert [found["sequence"] for found in first["data"]] == [1, 2, 3]
    assert served.get("/v1/entries?product=wallet")["data"] == []
    assert code_of(served.send("GET", "/v1/entries/999999")) == (404, "entry_not_found")
    assert code_of(served.send("GET", "/v1/entries?order=up")) == (400, "order_invalid")


def test_statement(served: Served, users: tuple[str, str]) -> None:
    one, two = users
    moments = [
        served.post("/v1/transfers", transfer(one, two, amount)).json["committed_at"]
        for amount in ("1", "2")
    ]
    placed = served.post("/v1/holds", hold(one, "5")).json
    path = f"/v1/accounts/{one}/statement"
    lines = served.get(path)["data"]
    assert [line["change"] for line in lines] == ["100", "-1", "-2", "5"]
    assert [line["posted"] for line in lines] == ["100", "99", "97", "97"]
    assert [line["counterpart"] for line in lines] == ["world:USD", two, two, None]
    assert (lines[3]["held"], lines[3]["hold"]["hold"]) == ("5", placed)
    newest = served.get(f"{path}?order=newest&limit=2")
    assert [line["ordinal"] for line in newest["data"]] == [4, 3]
    rest = served.get(f"{path}?order=newest&limit=2&cursor={newest['next_cursor']}")
    assert [line["ordinal"] for line in rest["data"]] == [2, 1]
    assert len(served.get(f"{path}?as_of={moments[0]}")["data"]) == 2
    assert code_of(served.send("GET", f"{path}?as_of=soon")) == (400, "as_of_invalid")


def test_reversal(served: Served, users: tuple[str, str]) -> None:
    made = served.post("/v1/transfers", transfer(*users, "40")).json
    path = f"/v1/entries/{made['sequence']}/reverse"
    reversal = served.post(path, key="undo")
    assert reversal.status == 201
    assert reversal.json["reversed_sequence"] == made["sequence"]
    assert served.available(users[0]) == "100"
    assert served.post(path, {}, key="undo").headers["idempotent-replayed"] == "true"
    assert code_of(served.post(path)) == (409, "entry_already_reversed")
    assert code_of(served.post("/v1/entries/x/reverse")) == (404, "entry_not_found")
    assert code_of(served.post("/v1/entries/1/reverse")) == (409, "entry_not_reversible")


def test_key_abandoned(served: Served, users: tuple[str, str]) -> None:
    given_up = served.post("/v1/keys/ledger/gone/abandon")
    assert given_up.json == {
        "abandoned": True,
        "sequence": given_up.json["sequence"],
        "answer": None,
    }
    refused = served.post("/v1/transfers", transfer(*users), key="gone")
    assert code_of(refused) == (409, "key_abandoned")
    assert served.post("/v1/keys/ledger/gone/abandon", {}).json["abandoned"] is True
    made = served.post("/v1/transfers", transfer(*users), key="kept").json
    kept = served.post("/v1/keys/ledger/kept/abandon").json
    assert (kept["abandoned"], kept["sequence"]) == (False, made["sequence"])
    assert kept["answer"]["id"] == made["id"]
    unknown = served.post("/v1/keys/nothing/x/abandon")
    assert code_of(unknown) == (404, "scope_not_found")
    assert code_of(served.post("/v1/keys/ledger/x/abandon", [1]))[0] == 400


def test_verify(served: Served, users: tuple[str, str]) -> None:
    assert served.post("/v1/verify").status == 202
    for _ in range(2_000):
        proof = served.get("/v1/verify")
        if proof["state"] != "running":
            break
    assert proof["state"] == "done"
    assert proof["report"]["ok"] is True


# ── the rest of the house ─────────────────────────────────────────────────────────


def test_not_found_and_not_allowed(served: Served) -> None:
    assert code_of(served.send("GET", "/v1/nothing")) == (404, "route_not_found")
    assert code_of(served.send("PUT", "/v1/transfers", {})) == (405, "method_not_allowed")
    assert code_of(served.send("DELETE", "/v1/accounts/a")) == (405, "method_not_allowed")


def test_head(served: Served) -> None:
    whole, head = (served.send(method, "/v1/assets") for method in ("GET", "HEAD"))
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


def test_operations(served: Served) -> None:
    assert served.get("/livez") == {"status": "alive"}
    assert served.get("/readyz") == {"status": "ready"}
    served.post("/v1/accounts", {"id": "user:poor:USD"})
    refused = served.post("/v1/transfers", transfer("user:poor:USD", "world:USD"))
    assert code_of(refused) == (409, "insufficient_funds")
    text = served.send("GET", "/metrics").body.decode()
    for line in (
        'pennyweight_requests_total{method="GET",route="/livez",status="200"}',
        "pennyweight_commit_seconds_count",
        "pennyweight_batch_commands_sum",
        "pennyweight_queue_commands 0.0",
        "pennyweight_replays_total",
        "pennyweight_cache_hits_total",
        'pennyweight_refusals_total{code="insufficient_funds"}',
    ):
        assert line in text


def test_docs_load_nothing(served: Served) -> None:
    answer = served.send("GET", "/docs")
    page = answer.body.decode()
    assert "/v1/transfers" in page
    assert "<script" not in page
    assert "http://" not in page
    assert "https://" not in page
    assert "default-src 'none'" in answer.headers["content-security-policy"]

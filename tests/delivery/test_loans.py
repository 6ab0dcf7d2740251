"""The loans face over HTTP: the seed's routes, what a desk looks at, both dialects, both ways."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from pennyweight.delivery.http import ledger, loans, proof
from pennyweight.delivery.http.loans_proof import prove
from pennyweight.delivery.http.openapi import describe
from pennyweight.delivery.http.routes import CommandRoute, Request, Route
from pennyweight.engine.engine import Lane, QueueFull, Submission
from pennyweight.engine.port import Append, BatchHeader, Head, Store
from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.engine.verification import verify
from pennyweight.ledger.commands import Command
from pennyweight.products.loans.life import ActivateLoan, RearmWarning, SetLiquidations, WarnLoan
from pennyweight.products.loans.liquidate import (
    BeginLiquidation,
    FailSlice,
    FillSlice,
    PlaceSlices,
)
from pennyweight.products.loans.shared import (
    LOAN,
    ONE,
    SLICE,
    STEP,
    Level,
    Loan,
    Market,
    Quote,
    Slice,
    read_loan,
    read_slice,
    slice_id,
)
from pennyweight.runtime.driver import Unavailable
from pennyweight.stores.memory import MemoryStore
from served import START, Served, long_way, request_bytes

APPLY = {"requestId": "r-1", "loanId": "L-1", "borrowerId": "din", "amount": "1000"}
TOP_UP = {"requestId": "r-2", "loanId": "L-1", "borrowerId": "din", "amount": "40"}
LATER = {**APPLY, "collateralAmount": "40", "assetType": "BSK"}
LEVELS = (1, 10, 50, 100)


def quote(market: Market, *prices: float, number: int = 1) -> Quote:
    """A quote with these prices for 1, 10, 50 and 100; the last one for those not given."""
    found = [*prices, *[prices[-1] - step / 1000 for step in range(1, 5 - len(prices))]]
    levels = tuple(
        Level(quantity, round(price * 1000) * ONE // 1000)
        for quantity, price in zip(LEVELS, found, strict=True)
    )
    return Quote(market, f"{market}-{number}", START, START, levels)


class Prices:
    """What a process knows of prices, as a test sets it."""

    def __init__(self) -> None:
        self.state: dict[str, Any] | None = None
        self.fresh: tuple[Quote, ...] = ()
        self.pushed: list[tuple[str, bytes]] = []
        self.is_owner = True
        self.is_full = False

    def prices(self) -> dict[str, Any] | None:
        return self.state

    def quotes(self) -> tuple[Quote, ...]:
        return self.fresh

    def push(self, market: Market, body: bytes) -> str:
        if not self.is_owner:
            raise Unavailable("no_owner", "another process owns the book")
        if self.is_full:
            raise QueueFull("20000 commands are waiting")
        self.pushed.append((market, body))
        return "accepted"


def routes_of(face: Sequence[Route]) -> list[Route]:
    return [
        *ledger.routes(["ledger", "loans"]),
        *proof.routes(
            lambda store, progress: verify(
                store, answers=answers_of(known_commands()), progress=progress
            )
        ),
        *face,
    ]


class Bank(Served):
    """A served book with the loans face, and who watches the prices."""

    def __init__(self, dialect: loans.Dialect = "seed", *, is_hot: bool = True) -> None:
        self.prices = Prices()
        table = routes_of(loans.routes(dialect, self.prices, is_push_open=True))
        super().__init__(table if is_hot else long_way(table))

    def apply(self, amount: str = "1000", **more: Any) -> Any:
        return self.ok("POST", "/loan-applications", {**APPLY, "amount": amount, **more}, 202)

    def top_up(self, amount: str = "40", **more: Any) -> Any:
        return self.ok("POST", "/collateral-top-ups", {**TOP_UP, "amount": amount, **more}, 202)

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

        self.book.submit(Submission(command, lane=Lane.TIMERS, ticket=hear))
        assert done.wait(10)
        assert isinstance(found[0], Receipt), found[0]
        return found[0].answer

    def loan(self, loan_id: str = "L-1") -> Loan:
        record = self.store.record(LOAN, loan_id)
        assert record is not None
        return read_loan(record)

    def by_price(self, kind: Any, *quotes: Quote, loan_id: str = "L-1", **more: Any) -> Any:
        record = self.store.record(LOAN, loan_id)
        assert record is not None
        borrower = read_loan(record).borrower
        if kind is not PlaceSlices:
            more["fresh_until"] = START + 3_600_000_000
        return self.decide(kind(loan_id, borrower, record.version, quotes, **more))

    def slice(self, number: int, loan_id: str = "L-1") -> Slice:
        record = self.store.record(SLICE, slice_id(loan_id, number))
        assert record is not None
        return read_slice(record)

    def fill(self, number: int, total: str, sold: str = "", loan_id: str = "L-1") -> Any:
        part = self.slice(number, loan_id)
        quantity = sold or plain(part.quantity)
        order = FillSlice(loan_id, number, f"o-{number}", quantity, total, part.borrower, part.hold)
        return self.decide(order)

    def fail(self, number: int, reason: str = "no luck") -> Any:
        part = self.slice(number)
        return self.decide(FailSlice("L-1", number, reason, part.borrower, part.hold))

    def activated(self) -> None:
        """A loan of 1000 on 40 BESKAR, active at 50."""
        self.apply()
        self.top_up()
        self.by_price(ActivateLoan, quote("mos_espa", 50.5, 50.3, 50, 49))

    def liquidated(self) -> None:
        """That loan, warned at 33, liquidated at 31.25 in three slices, of which one fails."""
        self.activated()
        self.by_price(WarnLoan, quote("mos_espa", 33, number=2))
        low = (quote("mos_espa", 31.2, number=3), quote("black_spire", 30, number=4))
        self.by_price(BeginLiquidation, *low, life="first")
        self.fail(1)
        self.by_price(PlaceSlices, quote("black_spire", 31, number=5), life="first")
        last = self.slice(2)
        self.fill(2, plain(last.quantity * last.price // ONE), loan_id="L-1")


def plain(units: int) -> str:
    whole, rest = divmod(units, ONE)
    return f"{whole}.{rest:024}"


@pytest.fixture
def bank() -> Iterator[Bank]:
    with Bank() as found:
        yield found


@pytest.fixture(scope="module")
def still() -> Iterator[Bank]:
    """A bank with one loan, for requests that change nothing."""
    with Bank() as found:
        found.apply()
        yield found


@pytest.fixture
def later() -> Iterator[Bank]:
    with Bank("later") as found:
        yield found


# ── applications and top-ups ──────────────────────────────────────────────────────


def test_application_and_top_up_are_accepted(bank: Bank) -> None:
    assert bank.apply() == {"requestId": "r-1", "loanId": "L-1", "status": "new"}
    assert bank.top_up() == {"requestId": "r-2", "loanId": "L-1", "status": "new"}
    assert bank.get("/loans")["loans"] == [
        {
            "loanId": "L-1",
            "borrowerId": "din",
            "status": "new",
            "amount": "1000",
            "collateral": "40",
            "outstandingBalance": "0",
            "ltv": "",
            "triggerPrice": "31.25",
        }
    ]
    held = bank.get("/v1/accounts/user:din:BESKAR")
    assert (held["posted"], held["held"]) == ("40", "40")


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        ("9.5e-7", "0.00000095"),
        ("1E3", "1000"),
        ("1e+3", "1000"),
        ("0.10000000000000000", "0.1"),
        ("8643.2079999999996", "8643.2079999999996"),
        ("0." + "0" * 23 + "1", "0." + "0" * 23 + "1"),
        ("9" * 13 + ".5", "9" * 13 + ".5"),
    ],
)
def test_amounts_are_read_exactly(bank: Bank, amount: str, shown: str) -> None:
    bank.apply(amount)
    bank.top_up(amount)
    found = bank.get("/loans/L-1")
    assert (found["amount"], found["collateral"]) == (shown, shown)


BAD = [
    ({"amount": 1000}, 400, "body_invalid"),
    ({"amount": 9.5e-7}, 400, "body_invalid"),
    ({"amount": None}, 400, "body_invalid"),
    ({"amount": True}, 400, "body_invalid"),
    ({"amount": ["1"]}, 400, "body_invalid"),
    ({"amount": ""}, 400, "amount_invalid"),
    ({"amount": "NaN"}, 400, "amount_invalid"),
    ({"amount": "Infinity"}, 400, "amount_invalid"),
    ({"amount": " 1"}, 400, "amount_invalid"),
    ({"amount": "+1"}, 400, "amount_invalid"),
    ({"amount": "1,5"}, 400, "amount_invalid"),
    ({"amount": "0x10"}, 400, "amount_invalid"),
    ({"amount": "-0"}, 400, "amount_invalid"),
    ({"amount": "१"}, 400, "amount_invalid"),
    ({"amount": "0"}, 400, "amount_not_positive"),
    ({"amount": "0e5"}, 400, "amount_not_positive"),
    ({"amount": "-5"}, 400, "amount_not_positive"),
    ({"amount": "1e-25"}, 400, "amount_too_fine"),
    ({"amount": "1e38"}, 400, "amount_too_large"),
    ({"amount": "1e999999999"}, 400, "amount_too_large"),
    ({"amount": "1e15"}, 400, "amount_too_large"),
    ({"requestId": 7}, 400, "body_invalid"),
    ({"requestId": None}, 400, "body_invalid"),
    ({"requestId": ""}, 400, "idempotency_key_invalid"),
    ({"requestId": "a\nb"}, 400, "idempotency_key_invalid"),
    ({"requestId": "x" * 256}, 400, "idempotency_key_invalid"),
    ({"loanId": 7}, 400, "body_invalid"),
    ({"loanId": ""}, 400, "loan_id_invalid"),
    ({"loanId": "a/b"}, 400, "loan_id_invalid"),
    ({"loanId": ".."}, 400, "loan_id_invalid"),
    ({"loanId": "a\0"}, 400, "loan_id_invalid"),
    ({"loanId": "x" * 256}, 400, "loan_id_invalid"),
    ({"borrowerId": 7}, 400, "body_invalid"),
    ({"borrowerId": ""}, 400, "user_id_invalid"),
    ({"borrowerId": "a\0"}, 400, "user_id_invalid"),
    ({"borrowerId": "x" * 256}, 400, "user_id_invalid"),
    ({"not_after": "2001-01-01T00:00:00Z"}, 409, "not_after_passed"),
    ({"not_after": "soon"}, 400, "body_invalid"),
]


@pytest.mark.parametrize(("change", "status", "code"), BAD, ids=str)
def test_request_that_is_wrong(still: Bank, change: dict[str, Any], status: int, code: str) -> None:
    for path in ("/loan-applications", "/collateral-top-ups"):
        body = {**APPLY, "requestId": "wrong", "loanId": "L-2", **change}
        assert still.code("POST", path, body) == (status, code)
    assert len(still.get("/loans")["loans"]) == 1


@pytest.mark.parametrize("path", ["/loan-applications", "/collateral-top-ups"])
@pytest.mark.parametrize("name", ["requestId", "loanId", "borrowerId", "amount"])
def test_request_without_a_field(still: Bank, path: str, name: str) -> None:
    body = {key: value for key, value in APPLY.items() if key != name}
    assert still.code("POST", path, body) == (400, "body_invalid")


@pytest.mark.parametrize("path", ["/loan-applications", "/collateral-top-ups"])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "body_malformed"),
        (b"{", "body_malformed"),
        (b"[]", "body_invalid"),
        (b"null", "body_invalid"),
        (b"\xff\xfe", "body_malformed"),
        (b"[" * 3_000, "body_invalid"),
        (b'{"requestId":"\\ud800"}', "body_malformed"),
    ],
)
def test_request_that_is_unreadable(still: Bank, path: str, body: bytes, code: str) -> None:
    assert still.code("POST", path, body) == (400, code)


def test_unknown_fields_are_ignored(bank: Bank) -> None:
    assert bank.apply(collateralAmount=7, assetType="TIN", more=[1])["status"] == "new"
    assert bank.loan().collateral == 0
    assert bank.top_up(assetType=1)["status"] == "new"


def test_replay_is_the_first_answer(bank: Bank) -> None:
    first = bank.post("/loan-applications", APPLY)
    bank.top_up()
    topped = bank.post("/collateral-top-ups", {**TOP_UP, "requestId": "r-3"})
    bank.by_price(ActivateLoan, quote("mos_espa", 50))
    for path, body, before in (
        ("/loan-applications", {**APPLY, "amount": "1e3", "unknown": 1}, first),
        ("/collateral-top-ups", {**TOP_UP, "requestId": "r-3"}, topped),
    ):
        again = bank.post(path, body)
        assert (again.status, again.body) == (202, before.body)
        assert "idempotent-replayed" not in before.headers
        assert again.headers["idempotent-replayed"] == "true"
    assert bank.loan().collateral == 80 * ONE


@pytest.mark.parametrize(
    "change", [{"amount": "1001"}, {"borrowerId": "grogu"}, {"loanId": "L-2"}], ids=str
)
def test_same_id_for_another_request_is_a_conflict(bank: Bank, change: dict[str, Any]) -> None:
    bank.apply()
    assert bank.code("POST", "/loan-applications", {**APPLY, **change}) == (409, "key_reused")
    assert bank.code("POST", "/collateral-top-ups", {**TOP_UP, "requestId": "r-1"}) == (
        409,
        "key_reused",
    )


def test_new_id_for_an_existing_loan_is_a_conflict(bank: Bank) -> None:
    bank.apply()
    other = {**APPLY, "requestId": "r-9"}
    assert bank.code("POST", "/loan-applications", other) == (409, "loan_exists")


def test_header_may_repeat_the_request_id(bank: Bank) -> None:
    other = bank.code("POST", "/loan-applications", APPLY, key="other")
    assert other == (400, "idempotency_key_ambiguous")
    assert bank.post("/loan-applications", APPLY, key="r-1").status == 202
    assert bank.post("/loan-applications", APPLY, key="r-1").status == 202


def test_top_up_of_nobody_and_of_another(bank: Bank) -> None:
    assert bank.code("POST", "/collateral-top-ups", TOP_UP) == (404, "loan_not_found")
    bank.apply()
    other = {**TOP_UP, "borrowerId": "grogu"}
    assert bank.code("POST", "/collateral-top-ups", other) == (403, "borrower_mismatch")
    assert bank.top_up()["status"] == "new"


def test_top_up_once_a_liquidation_has_begun(bank: Bank) -> None:
    bank.activated()
    assert bank.top_up("1", requestId="r-3")["status"] == "active"
    bank.by_price(BeginLiquidation, quote("mos_espa", 30), life="first")
    late = {**TOP_UP, "requestId": "r-4"}
    assert bank.code("POST", "/collateral-top-ups", late) == (409, "loan_liquidating")
    bank.fill(1, "1000")
    assert bank.code("POST", "/collateral-top-ups", late) == (409, "loan_liquidated")
    assert bank.get("/v1/accounts/user:din:BESKAR")["held"] == "0"


# ── the later dialect ─────────────────────────────────────────────────────────────


def test_later_application_brings_collateral(later: Bank) -> None:
    assert later.ok("POST", "/loan-applications", LATER, 202)["status"] == "new"
    assert later.loan().collateral == 40 * ONE
    later.ok("POST", "/collateral-top-ups", {**TOP_UP, "assetType": "BESKAR"}, 202)
    assert later.loan().collateral == 80 * ONE
    bare = {**APPLY, "requestId": "r-8", "loanId": "L-8"}
    assert later.ok("POST", "/loan-applications", bare, 202)["status"] == "new"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"assetType": "TIN"}, "body_invalid"),
        ({"assetType": None}, "body_invalid"),
        ({"assetType": 1}, "body_invalid"),
        ({"collateralAmount": 40}, "body_invalid"),
        ({"collateralAmount": None}, "body_invalid"),
        ({"collateralAmount": ""}, "amount_invalid"),
        ({"collateralAmount": "0"}, "amount_not_positive"),
        ({"collateralAmount": "-1"}, "amount_not_positive"),
    ],
    ids=str,
)
def test_later_application_that_is_wrong(later: Bank, change: dict[str, Any], code: str) -> None:
    assert later.code("POST", "/loan-applications", {**LATER, **change}) == (400, code)
    assert later.get("/loans") == {"loans": []}


def test_later_top_up_that_is_wrong(later: Bank) -> None:
    later.ok("POST", "/loan-applications", LATER, 202)
    tin = {**TOP_UP, "assetType": "TIN"}
    assert later.code("POST", "/collateral-top-ups", tin) == (400, "body_invalid")
    other = {**TOP_UP, "borrowerId": "grogu"}
    assert later.code("POST", "/collateral-top-ups", other) == (400, "borrower_mismatch")
    again = {**LATER, "amount": "7"}
    assert later.code("POST", "/loan-applications", again) == (409, "key_reused")


# ── both ways ─────────────────────────────────────────────────────────────────────


def test_both_ways_give_the_same_bytes() -> None:
    requests = [
        ("/loan-applications", APPLY, {}),
        ("/loan-applications", APPLY, {}),
        ("/loan-applications", {**APPLY, "amount": "7"}, {}),
        ("/loan-applications", {**APPLY, "amount": 7}, {}),
        ("/loan-applications", APPLY, {"Idempotency-Key": "other"}),
        ("/loan-applications", {**APPLY, "requestId": "r-9"}, {}),
        ("/loan-applications?a=b", {**APPLY, "requestId": "r-9", "loanId": "L-9"}, {}),
        ("/collateral-top-ups", TOP_UP, {}),
        ("/collateral-top-ups", TOP_UP, {}),
        ("/collateral-top-ups", {**TOP_UP, "borrowerId": "grogu", "requestId": "x"}, {}),
        ("/collateral-top-ups", {**TOP_UP, "loanId": "L-2", "requestId": "x"}, {}),
        ("/collateral-top-ups", {**TOP_UP, "not_after": "2001-01-01T00:00:00Z"}, {}),
    ]
    with ExitStack() as stack:
        both = [stack.enter_context(Bank(is_hot=is_hot)) for is_hot in (True, False)]
        for path, body, headers in requests:
            content = json.dumps(body).encode()
            request = request_bytes("POST", path, content, {**headers, "Connection": "close"})
            answers = []
            for bank in both:
                with bank.connect() as raw:
                    raw.send(request)
                    head, end, rest = raw.read_all().partition(b"\r\n\r\n")
                lines = [line for line in head.split(b"\r\n") if not line.startswith(b"date: ")]
                answers.append(b"\r\n".join(lines) + end + rest)
            assert answers[0] == answers[1]


def test_both_posts_are_hot() -> None:
    hot = {
        route.path
        for route in loans.routes("seed", None)
        if isinstance(route, CommandRoute) and route.is_hot
    }
    assert hot == {"/loan-applications", "/collateral-top-ups"}


# ── an answer in time ─────────────────────────────────────────────────────────────


class Slow(MemoryStore):
    """A store whose appends wait until they may."""

    def __init__(self) -> None:
        super().__init__(Head(book="main", incarnation="first"))
        self.may_append = threading.Event()
        self.may_append.set()

    def append(self, batch: Append) -> None:
        assert self.may_append.wait(20)
        super().append(batch)


@pytest.mark.parametrize("is_hot", [True, False])
def test_no_commit_in_time_is_an_unknown_outcome(is_hot: bool) -> None:
    store = Slow()
    table = routes_of(loans.routes("seed", None, answer_seconds=0.2))
    with Served(table if is_hot else long_way(table), store=store) as bank:
        store.may_append.clear()
        answer = bank.post("/loan-applications", APPLY)
        assert (answer.status, answer.json["code"]) == (503, "outcome_unknown")
        assert answer.headers["retry-after"] == "1"
        store.may_append.set()
        again = bank.post("/loan-applications", APPLY)
        assert (again.status, again.json["loanId"]) == (202, "L-1")
        assert len(bank.get("/loans")["loans"]) == 1


@pytest.mark.parametrize("is_hot", [True, False])
def test_full_queue_is_told_when_the_time_is_over(is_hot: bool) -> None:
    store = Slow()
    table = routes_of(loans.routes("seed", None, answer_seconds=0.2))
    with Served(table if is_hot else long_way(table), store=store, queue_max=20) as bank:
        store.may_append.clear()
        assert bank.post("/loan-applications", APPLY).json["code"] == "outcome_unknown"
        for _ in range(20):
            bank.book.submit(Submission(SetLiquidations("normal")))
        answer = bank.post("/loan-applications", {**APPLY, "requestId": "r-9"})
        assert (answer.status, answer.json["code"]) == (503, "queue_full")
        assert answer.headers["retry-after"] == "1"
        store.may_append.set()
        assert bank.post("/loan-applications", APPLY).status == 202
        assert [loan["loanId"] for loan in bank.get("/loans")["loans"]] == ["L-1"]


@pytest.mark.parametrize("is_hot", [True, False])
def test_what_finds_the_queue_full_is_taken_when_there_is_room(is_hot: bool) -> None:
    store = Slow()
    table = routes_of(loans.routes("seed", None, answer_seconds=20))
    with Served(table if is_hot else long_way(table), store=store, queue_max=20) as bank:
        store.may_append.clear()
        for _ in range(22):
            with suppress(QueueFull):
                bank.book.submit(Submission(SetLiquidations("normal")))
        threading.Timer(0.3, store.may_append.set).start()
        answer = bank.post("/loan-applications", APPLY)
        assert (answer.status, answer.json["loanId"]) == (202, "L-1")


# ── the list ──────────────────────────────────────────────────────────────────────


def many(bank: Bank, count: int) -> None:
    for number in range(count):
        bank.apply(requestId=f"a-{number}", loanId=f"L-{number:04}", borrowerId=f"b-{number % 3}")


def ids(answer: Any) -> list[str]:
    return [loan["loanId"] for loan in answer["loans"]]


def test_list_is_empty(bank: Bank) -> None:
    assert bank.send("GET", "/loans").body == b'{"loans":[]}'
    assert bank.get("/loans?limit=1") == {"loans": [], "next_cursor": None}


def test_list_is_paged_where_that_is_asked_for(bank: Bank) -> None:
    many(bank, 7)
    everything = [f"L-{number:04}" for number in range(7)]
    assert ids(bank.get("/loans")) == everything
    assert "next_cursor" not in bank.get("/loans")
    seen: list[str] = []
    cursor = ""
    while True:
        answer = bank.get(f"/loans?limit=3{cursor}")
        seen += ids(answer)
        if answer["next_cursor"] is None:
            break
        cursor = f"&cursor={answer['next_cursor']}"
    assert seen == everything
    assert ids(bank.get("/loans?cursor=L-0004")) == everything[5:]
    assert bank.get("/loans?limit=7")["next_cursor"] is None


def test_list_is_filtered(bank: Bank) -> None:
    many(bank, 7)
    body = {**TOP_UP, "loanId": "L-0003", "borrowerId": "b-0"}
    bank.ok("POST", "/collateral-top-ups", body, 202)
    bank.by_price(ActivateLoan, quote("mos_espa", 51), loan_id="L-0003")
    assert ids(bank.get("/loans?borrower=b-0")) == ["L-0000", "L-0003", "L-0006"]
    assert ids(bank.get("/loans?status=active")) == ["L-0003"]
    assert ids(bank.get("/loans?status=new&borrower=b-0")) == ["L-0000", "L-0006"]
    assert ids(bank.get("/loans?status=liquidated")) == []
    assert ids(bank.get("/loans?borrower=nobody")) == []
    answer = bank.get("/loans?status=new&borrower=b-0&limit=1")
    assert (ids(answer), answer["next_cursor"]) == (["L-0000"], "L-0000")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("status=dead", "status_invalid"),
        ("status=", "status_invalid"),
        ("borrower=", "user_id_invalid"),
        ("limit=0", "limit_invalid"),
        ("limit=1001", "limit_invalid"),
        ("limit=x", "limit_invalid"),
        ("cursor=", "cursor_invalid"),
        ("cursor=a/b", "cursor_invalid"),
    ],
)
def test_list_with_bad_parameters(still: Bank, query: str, code: str) -> None:
    assert still.code("GET", f"/loans?{query}") == (400, code)


def test_long_list_streams_as_of_one_moment(bank: Bank) -> None:
    many(bank, 501)
    route = next(
        one
        for one in loans.routes("seed", bank.prices)
        if (one.method, one.path) == ("GET", "/loans")
    )
    reply = route.read(_request("/loans"), bank.store, bank.book.standing)  # type: ignore[union-attr]
    assert reply.chunks is not None
    body = next(reply.chunks) + next(reply.chunks)
    bank.ok("POST", "/collateral-top-ups", {**TOP_UP, "loanId": "L-0500", "borrowerId": "b-2"}, 202)
    bank.apply(requestId="late", loanId="L-9999")
    shown = json.loads(body + b"".join(reply.chunks))
    assert len(shown["loans"]) == 501
    assert len(ids(bank.get("/loans"))) == 502


def test_list_goes_back_to_how_it_was(bank: Bank) -> None:
    """A loan that changes between two pages is shown as it was; one that is new is not."""
    many(bank, 1_001)
    face = loans.routes("seed", bank.prices)
    route = next(one for one in face if (one.method, one.path) == ("GET", "/loans"))
    reply = route.read(_request("/loans"), bank.store, bank.book.standing)  # type: ignore[union-attr]
    assert reply.chunks is not None
    body = next(reply.chunks)
    for request in ("t-1", "t-2"):
        more = {"requestId": request, "loanId": "L-1000", "borrowerId": "b-1"}
        bank.ok("POST", "/collateral-top-ups", {**TOP_UP, **more}, 202)
    bank.apply(requestId="late", loanId="L-9999")
    shown = json.loads(body + b"".join(reply.chunks))["loans"]
    assert (len(shown), shown[1_000]["collateral"]) == (1_001, "0")
    assert bank.get("/loans/L-1000")["collateral"] == "80"


def _request(path: str) -> Any:
    return Request("GET", path)


# ── one loan ──────────────────────────────────────────────────────────────────────


def test_loan_that_is_not_there(still: Bank) -> None:
    assert still.code("GET", "/loans/L-7") == (404, "loan_not_found")
    assert still.code("GET", "/loans/%00") == (404, "loan_not_found")
    assert still.code("GET", "/loans/L-7/proof") == (404, "loan_not_found")


def test_loan_id_is_escaped_in_the_path(bank: Bank) -> None:
    bank.apply(loanId="ß 1%")
    assert bank.get("/loans/%C3%9F%201%25")["loanId"] == "ß 1%"


def test_loan_by_fresh_quotes(bank: Bank) -> None:
    bank.activated()
    shown = bank.get("/loans/L-1")
    assert (shown["ltv"], shown["if_sold_now"]) == ("", None)
    bank.prices.fresh = (
        quote("mos_espa", 41, 40.5, 40, 39),
        quote("black_spire", 40.9, 40.2, 39.5, 38),
    )
    shown = bank.get("/loans/L-1")
    assert shown["ltv"] == "62.5000"
    assert (shown["triggerPrice"], shown["activation_price"]) == ("31.25", "")
    assert shown["warning_price"].startswith("35.714285714")
    assert shown["outstandingBalance"] == "1000"
    assert (shown["collateral_account"], shown["hold"] > 0) == ("user:din:BESKAR", True)
    sale = shown["if_sold_now"]
    assert sale["missing"] == "0"
    assert {part["market"] for part in sale["parts"]} <= {"mos_espa", "black_spire"}
    assert float(sale["expected"]) >= 1000
    assert float(sale["quantity"]) < 26
    assert bank.get("/loans")["loans"][0]["ltv"] == "62.5000"


def test_loan_that_cannot_be_sold_at_once(bank: Bank) -> None:
    bank.apply("10000")
    bank.top_up("400")
    bank.prices.fresh = (quote("mos_espa", 41, 40.5, 40, 39),)
    shown = bank.get("/loans/L-1")
    assert shown["activation_price"] == "50"
    assert shown["if_sold_now"] == {
        "parts": [{"market": "mos_espa", "quantity": "100", "price": "39", "expected": "3900"}],
        "quantity": "100",
        "expected": "3900",
        "missing": "6100",
    }


def test_loan_without_collateral(still: Bank) -> None:
    still.prices.fresh = (quote("mos_espa", 41),)
    shown = still.get("/loans/L-1")
    for name in ("ltv", "triggerPrice", "activation_price", "warning_price"):
        assert shown[name] == ""
    assert (shown["hold"], shown["if_sold_now"], shown["slices"]) == (None, None, [])
    assert [item["what"] for item in shown["history"]] == ["applied"]


def test_history_is_told_newest_first(bank: Bank) -> None:
    bank.liquidated()
    shown = bank.get("/loans/L-1")
    assert shown["status"] == "liquidated"
    history = shown["history"]
    assert [item["what"] for item in history] == [
        "slice_filled",
        "slices_placed",
        "slice_failed",
        "liquidation_begun",
        "warned",
        "activated",
        "topped_up",
        "applied",
    ]
    assert [item["status"] for item in history] == [
        "liquidated", "liquidating", "liquidating", "liquidating", "active", "active", "new", "new",
    ]  # fmt: skip
    applied, topped = history[-1], history[-2]
    assert (applied["amount"], applied["request"], applied["collateral"]) == ("1000", "r-1", "0")
    assert (topped["amount"], topped["request"], topped["collateral"]) == ("40", "r-2", "40")
    activated = history[-3]
    assert (activated["price"], activated["ltv"]) == ("50", "50.0000")
    assert activated["quotes"][0]["id"] == "mos_espa-1"
    assert activated["quotes"][0]["levels"][0] == {"quantity": 1, "sell": "50.5"}
    begun = history[3]
    assert [one["market"] for one in begun["quotes"]] == ["mos_espa", "black_spire"]
    assert [one["state"] for one in begun["slices"]] == ["open"]
    assert history[2]["slices"][0]["reason"] == "no luck"
    assert history[0]["slices"][0]["order_id"] == "o-2"
    assert all(item["at"].endswith("Z") for item in history)
    sequences = [item["sequence"] for item in history]
    assert sequences == sorted(sequences, reverse=True)


def test_history_is_paged(bank: Bank) -> None:
    bank.liquidated()
    whole = bank.get("/loans/L-1")
    assert whole["next_cursor"] is None
    found: list[Any] = []
    cursor = ""
    while True:
        page = bank.get(f"/loans/L-1?limit=3{cursor}")
        found += page["history"]
        if page["next_cursor"] is None:
            break
        cursor = f"&cursor={page['next_cursor']}"
    assert found == whole["history"]
    bank.apply(requestId="other", loanId="L-2")
    strange = bank.loan("L-2").entry
    for cursor in (str(strange), "999999", "x", "-1"):
        assert bank.code("GET", f"/loans/L-1?cursor={cursor}") == (400, "cursor_invalid")
    assert bank.code("GET", "/loans/L-1?limit=0") == (400, "limit_invalid")


def test_loan_shows_what_became_of_it(bank: Bank) -> None:
    bank.liquidated()
    shown = bank.get("/loans/L-1")
    assert (shown["slices_placed"], len(shown["slices"])) == (2, 2)
    assert [one["state"] for one in shown["slices"]] == ["failed", "filled"]
    assert (shown["outstandingBalance"], shown["deficit"], shown["collateral"]) == ("0", "0", "0")
    assert (shown["ltv"], shown["triggerPrice"], shown["hold"]) == ("", "", None)
    assert shown["is_warned"] is True
    assert float(shown["sold"]) + float(shown["returned"]) == pytest.approx(40)
    for name in ("applied_at", "activated_at", "liquidating_at", "liquidated_at"):
        assert shown[name].endswith("Z")
    assert bank.get("/v1/accounts/user:din:BESKAR")["available"] == shown["returned"]


def test_warning_is_rearmed(bank: Bank) -> None:
    bank.activated()
    bank.by_price(WarnLoan, quote("mos_espa", 33, number=2))
    assert bank.get("/loans/L-1")["is_warned"] is True
    bank.by_price(RearmWarning, quote("mos_espa", 60, number=3))
    shown = bank.get("/loans/L-1")
    assert shown["is_warned"] is False
    assert [item["what"] for item in shown["history"]][:2] == ["rearmed", "warned"]


# ── the proof ─────────────────────────────────────────────────────────────────────


def test_proof_needs_a_liquidation(bank: Bank) -> None:
    bank.apply()
    assert bank.code("GET", "/loans/L-1/proof") == (409, "loan_not_liquidated")
    assert bank.code("GET", "/loans/L-1/proof?cursor=x") == (400, "cursor_invalid")
    assert bank.code("GET", "/loans/L-1/proof?limit=x") == (400, "limit_invalid")


def test_proof_of_a_liquidation(bank: Bank) -> None:
    bank.liquidated()
    shown = bank.get("/loans/L-1/proof")
    assert (shown["is_minimal"], shown["is_ended"], shown["wrong"]) == (True, True, [])
    assert (shown["filled"], shown["failed"], shown["open"]) == (1, 1, 0)
    assert (shown["balance"], shown["deficit"]) == ("1000", "0")
    first, second = shown["placings"]
    assert (first["remaining"], first["free_collateral"], first["busy"]) == ("1000", "40", [])
    assert [one["market"] for one in first["quotes"]] == ["mos_espa", "black_spire"]
    assert [one["state"] for one in first["slices"]] == ["failed"]
    assert first["slices"][0]["reason"] == "no luck"
    filled = second["slices"][0]
    assert (filled["state"], filled["market"], filled["order_id"]) == (
        "filled",
        "black_spire",
        "o-2",
    )
    assert filled["quantity"] == filled["just_enough"] == filled["sold"] == shown["sold"]
    assert all(one["is_minimal"] for placing in shown["placings"] for one in placing["slices"])
    page = bank.get("/loans/L-1/proof?limit=1")
    assert page["placings"] == [first]
    rest = bank.get(f"/loans/L-1/proof?limit=1&cursor={page['next_cursor']}")
    assert (rest["placings"], rest["next_cursor"]) == ([second], None)
    assert rest["is_minimal"] is True


def test_proof_of_a_sale_at_both_markets(bank: Bank) -> None:
    bank.apply("5000")
    bank.top_up("200")
    bank.by_price(ActivateLoan, quote("mos_espa", 51))
    low = (quote("mos_espa", 31.4, 31.3, 31.2, 30.9), quote("black_spire", 31.3, 31.2, 31.1, 31))
    bank.by_price(BeginLiquidation, *low, life="first")
    assert bank.loan().slices == 2
    shown = bank.get("/loans/L-1/proof")
    assert (shown["status"], shown["is_ended"], shown["open"]) == ("liquidating", False, 2)
    assert shown["is_minimal"] is True, shown["wrong"]
    bank.fill(1, "3100")
    bank.fill(2, "1900")
    while bank.loan().status != "liquidated":
        number = bank.loan().slices + 1
        bank.by_price(PlaceSlices, quote("mos_espa", 31, number=9), life="first")
        bank.fill(number, "99999" if number > 2 else "0")
    shown = bank.get("/loans/L-1/proof")
    assert (shown["is_minimal"], shown["is_ended"]) == (True, True), shown["wrong"]
    assert float(shown["surplus"]) >= 0


def test_proof_of_a_deficit(bank: Bank) -> None:
    bank.activated()
    bank.by_price(BeginLiquidation, quote("mos_espa", 20), life="first")
    bank.fill(1, "800")
    shown = bank.get("/loans/L-1/proof")
    assert (shown["is_minimal"], shown["deficit"], shown["returned"]) == (True, "200", "0")
    assert bank.get("/loans/L-1")["deficit"] == "200"


class Tampered:
    """A store in which what entries say of slices and loans was changed."""

    def __init__(self, store: Store, command: str, change: Callable[[Any], None]) -> None:
        self._store = store
        self._command = command
        self._change = change

    def entry(self, sequence: int) -> bytes | None:
        body = self._store.entry(sequence)
        assert body is not None
        told = json.loads(body[1:])
        if told["command"] == self._command:
            self._change(told)
        return body[:1] + json.dumps(told).encode()

    def batch_at(self, *, sequence: int) -> BatchHeader | None:
        return self._store.batch_at(sequence=sequence)


def _larger(told: Any) -> None:
    for record in told["records"]:
        if record["kind"] == SLICE:
            record["body"]["quantity"] += STEP


def _sold_more(told: Any) -> None:
    for record in told["records"]:
        if record["kind"] == SLICE:
            record["body"]["sold"] += ONE


def _other_quotes(told: Any) -> None:
    told["fields"]["quotes"][0]["levels"][2][1] += ONE


@pytest.mark.parametrize(
    ("command", "change", "wrong"),
    [
        ("begin_liquidation", _larger, "slice 1 is not just enough"),
        ("place_slices", _larger, "slice 2 is not just enough"),
        ("place_slices", _other_quotes, "its quotes give other slices"),
        ("fill_slice", _sold_more, "slice 2 sold more than was asked"),
        ("fill_slice", _sold_more, "the fills do not add up to what was sold"),
    ],
)
def test_proof_finds_what_is_wrong(
    bank: Bank, command: str, change: Callable[[Any], None], wrong: str
) -> None:
    bank.liquidated()
    store: Any = Tampered(bank.store, command, change)
    shown = prove(store, "L-1", bank.loan(), after=0, limit=100)
    assert not shown.is_minimal
    assert any(wrong in sentence for sentence in shown.wrong), shown.wrong


def test_book_is_proven(bank: Bank) -> None:
    bank.liquidated()
    bank.ok("POST", "/operations/liquidations", {"level": "no_new"})
    bank.post("/v1/verify")
    for _ in range(500):
        found = bank.get("/v1/verify")
        if found["state"] != "running":
            break
    assert found["report"]["ok"], found


# ── prices and the pause ──────────────────────────────────────────────────────────


def test_prices_are_those_of_the_desk(bank: Bank) -> None:
    assert bank.get("/prices") == {"markets": {}, "best": [], "is_deviating": False}
    bank.prices.state = {"markets": {"mos_espa": {}}, "best": [], "is_deviating": True}
    assert bank.get("/prices") == bank.prices.state


def test_price_is_pushed(bank: Bank) -> None:
    answer = bank.ok("POST", "/prices/black-spire", b"anything at all", 202)
    assert answer == {"result": "accepted"}
    bank.ok("POST", "/prices/mos-espa", {"asset": "BESKAR"}, 202)
    assert [market for market, _ in bank.prices.pushed] == ["black_spire", "mos_espa"]
    assert bank.prices.pushed[0][1] == b"anything at all"
    for market in ("mos_espa", "coruscant", "x" * 300):
        assert bank.code("POST", f"/prices/{market}", {}) == (404, "market_not_found")
    bank.prices.is_full = True
    assert bank.code("POST", "/prices/mos-espa", {}) == (503, "queue_full")
    bank.prices.is_owner = False
    answer = bank.send("POST", "/prices/mos-espa", {})
    assert (answer.status, answer.json["code"]) == (503, "no_owner")
    assert answer.headers["retry-after"] == "1"


def test_price_cannot_be_pushed_where_that_is_closed() -> None:
    for desk in (None, Prices()):
        with Served(loans.routes("seed", desk)) as bank:
            answer = bank.send("POST", "/prices/mos-espa", {})
            assert (answer.status, answer.json["code"]) == (403, "price_push_closed")
            assert bank.get("/prices")["markets"] == {}


def test_liquidations_are_paused(bank: Bank) -> None:
    path = "/operations/liquidations"
    assert bank.get(path) == {"level": "normal"}
    for level in ("no_new", "halt_new_and_activation", "normal", "no_new"):
        assert bank.ok("POST", path, {"level": level}) == {"level": level}
        assert bank.get(path) == {"level": level}
    for body in ({}, {"level": "stop"}, {"level": None}, []):
        assert bank.code("POST", path, body) == (400, "body_invalid")
    first = bank.post(path, {"level": "normal"}, key="k")
    again = bank.post(path, {"level": "normal"}, key="k")
    assert (again.body, again.headers["idempotent-replayed"]) == (first.body, "true")
    assert bank.code("POST", path, {"level": "no_new"}, key="k") == (409, "key_reused")


# ── the description ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize("dialect", ["seed", "later"])
def test_every_route_is_described(dialect: loans.Dialect) -> None:
    table = loans.routes(dialect, None)
    description = describe(table)
    for route in table:
        operation = description["paths"][route.path][route.method.lower()]
        assert operation["summary"]
        answer = operation["responses"][str(route.documentation.status)]
        assert answer["content"]["application/json"]["example"] is not None
        assert {"401", "403"} <= set(operation["responses"])
    fields = description["components"]["schemas"][
        "LaterApplicationBody" if dialect == "later" else "ApplicationBody"
    ]["properties"]
    assert ("assetType" in fields) == (dialect == "later")
    assert {"requestId", "loanId", "borrowerId", "amount"} <= set(fields)

"""The liquidation service whole, by the words of its seed: over HTTP, SNS and SQS, and both posts."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from loans.world import (
    FAILING,
    LATER_NOTICE,
    STORMY,
    WELL,
    Branch,
    World,
    alone,
    check_notice,
    check_sales,
    entries_in,
    loans_in,
    pennyweight,
    slices_in,
    wait_for,
)
from ministack import MiniStack, running
from pennyweight.assemble import open_reader
from pennyweight.links.aws import Aws
from pennyweight.products.loans.shared import Loan, Slice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bank")


@pytest.fixture(scope="module")
def evening(folder: Path, stack: MiniStack) -> Iterator[World]:
    with alone(folder, stack.endpoint) as world:
        yield world


@pytest.fixture
def world(evening: World) -> World:
    """All is well when a test begins; loans of other tests may still be there."""
    evening.peace()
    return evening


def stored(folder: Path, loan: str) -> tuple[Loan, list[Slice]]:
    with closing(open_reader(folder)) as store:
        return loans_in(store)[loan], [part for part in slices_in(store) if part.loan == loan]


def check_whole(world: World, folder: Path, loan: str) -> tuple[Loan, list[Slice]]:
    """A liquidation was just enough, told once and truly, and can be decided again."""
    bank = world.bank
    proof = bank.proof(loan)
    assert (proof["is_ended"], proof["is_minimal"], proof["wrong"]) == (True, True, [])
    wait_for(lambda: world.branch.of(loan))
    (notice,) = world.branch.of(loan)
    kept, parts = stored(folder, loan)
    check_notice(notice, loan, kept)
    assert Decimal(notice["collateralSoldValue"]) == Decimal(proof["proceeds"])
    again = json.loads(pennyweight("replay", "loan", loan, "--data", folder, "--json"))
    assert again["ok"]
    assert all(decision["equal"] for decision in again["decisions"])
    assert again["decisions"][0]["command"] == "apply_for_loan"
    return kept, parts


# ── loan management ───────────────────────────────────────────────────────────────


def test_register_new_loan_applications(world: World) -> None:
    body = {"requestId": "r-1", "loanId": "reg", "borrowerId": "din", "amount": "9.5e-7"}
    first = world.bank.ask("/loan-applications", **body)
    assert first.status == 202
    assert first.json == {"requestId": "r-1", "loanId": "reg", "status": "new"}
    again = world.bank.ask("/loan-applications", **body)
    assert (again.status, again.body, again.is_replayed) == (202, first.body, True)
    assert world.bank.loan("reg")["amount"] == "0.00000095"
    assert world.bank.ask("/loan-applications", **body | {"amount": "2"}).status == 409
    other = world.bank.ask("/loan-applications", **body | {"requestId": "r-1b"})
    assert (other.status, other.code) == (409, "loan_exists")


@pytest.mark.parametrize("amount", [1000, "NaN", "Infinity", "0", "-1", "", "1e99", None])
def test_unexpected_inputs_are_handled_gracefully(world: World, amount: Any) -> None:
    body = {"requestId": f"odd {amount}", "loanId": "odd", "borrowerId": "din", "amount": amount}
    assert world.bank.ask("/loan-applications", **body).status == 400
    assert world.bank.ask("/collateral-top-ups", **body).status == 400
    assert world.bank.client.send("GET", "/loans/odd").status == 404


def test_increase_collateral_balance(world: World) -> None:
    bank = world.bank
    bank.apply("inc", "1000000")
    assert bank.top_up("inc", "1.5").json == {
        "requestId": "top up inc", "loanId": "inc", "status": "new",
    }  # fmt: skip
    assert bank.top_up("inc", "1.5").is_replayed
    assert bank.top_up("inc", "2.25", "second").status == 202
    assert bank.loan("inc")["collateral"] == "3.75"
    assert bank.has("user:b-inc:BESKAR") == ("3.75", "3.75")
    assert bank.top_up("inc", "1", "third", borrowerId="boba").code == "borrower_mismatch"
    assert bank.top_up("none", "1", "fourth").status == 404
    assert bank.has("user:b-inc:BESKAR") == ("3.75", "3.75")


def test_get_list_of_loans(world: World) -> None:
    world.bank.apply("list", "12.50")
    found = {loan["loanId"]: loan for loan in world.bank.client.get("/loans")["loans"]}
    assert found["list"] == {
        "loanId": "list", "borrowerId": "b-list", "status": "new", "amount": "12.5",
        "collateral": "0", "outstandingBalance": "0", "ltv": "", "triggerPrice": "",
    }  # fmt: skip


# ── the life of a loan ────────────────────────────────────────────────────────────


def test_loan_activation_once_the_required_collateral_is_posted(world: World) -> None:
    bank = world.bank
    bank.lend("act", collateral="39")
    assert bank.status("act") == "new"
    assert bank.top_up("act", "3", "rest").status == 202
    bank.becomes("act", "active")
    assert bank.history("act") == ["applied", "topped_up", "topped_up", "activated"]
    assert bank.has("user:b-act:GC") == ("1000", "0")
    loan = bank.loan("act")
    assert loan["outstandingBalance"] == "1000"
    assert Decimal(loan["ltv"]) <= 50


def test_loan_activation_when_the_price_rises(world: World) -> None:
    world.bank.lend("rise", collateral="39")
    world.price("54")
    world.bank.becomes("rise", "active")


def test_warnings_are_given_once_until_they_are_armed_again(world: World) -> None:
    bank = world.bank
    bank.lend("warn")
    bank.becomes("warn", "active")

    def goes(price: str, *more: str) -> None:
        told.extend(more)
        world.price(price)
        wait_for(lambda: bank.history("warn") == told)

    told = ["applied", "topped_up", "activated"]
    goes("34", "warned")
    goes("38")
    goes("34")
    goes("42", "rearmed")
    goes("34", "warned")
    (warned, *_) = bank.loan("warn")["history"]
    assert Decimal(warned["ltv"]) >= 70
    assert {quote["market"] for quote in warned["quotes"]} == {"mos_espa", "black_spire"}
    assert bank.status("warn") == "active"


# ── automated liquidation ─────────────────────────────────────────────────────────


def test_automated_liquidation_while_the_posts_fail(world: World, folder: Path) -> None:
    bank = world.bank
    bank.lend("liq")
    bank.becomes("liq", "active")
    world.moods(STORMY)
    world.posts["mos_espa"].fates.extend(["hung", "failed", "reset_before", "doubled"])
    world.posts["black_spire"].fates.extend(["error_after", "failed", "hung", "reset_after"])
    world.price("30")
    bank.becomes("liq", "liquidated")
    kept, parts = check_whole(world, folder, "liq")
    assert kept.proceeds - kept.surplus == kept.amount
    assert kept.balance == 0
    assert bank.has("user:b-liq:BESKAR")[1] == "0"
    begun = next(one for one in bank.loan("liq")["history"] if one["what"] == "liquidation_begun")
    assert Decimal(begun["ltv"]) >= 80
    assert all(part.quotes for part in parts)
    world.branch.listen()
    assert len(world.branch.of("liq")) == 1


def test_large_loan_is_sold_in_slices_at_both_posts(world: World, folder: Path) -> None:
    bank = world.bank
    bank.lend("large", "20000", "850")
    bank.becomes("large", "active")
    world.price("29")
    bank.becomes("large", "liquidated")
    _, parts = check_whole(world, folder, "large")
    assert len(parts) >= 7
    assert {part.market for part in parts} == {"mos_espa", "black_spire"}
    assert max(part.quantity for part in parts) <= 100 * 10**24


def test_collateral_that_does_not_cover_the_loan_leaves_an_outstanding_balance(
    world: World, folder: Path
) -> None:
    bank = world.bank
    bank.lend("gap")
    bank.becomes("gap", "active")
    bank.pause("no_new")
    world.price("20")
    assert bank.status("gap") == "active"
    bank.pause("normal")
    bank.becomes("gap", "liquidated")
    kept, _ = check_whole(world, folder, "gap")
    assert kept.balance > 0
    assert (kept.sold, kept.returned) == (42 * 10**24, 0)
    loan = bank.loan("gap")
    assert Decimal(loan["deficit"]) == Decimal(1000) - Decimal(loan["proceeds"])
    assert Decimal(bank.has("loan:gap:deficit:GC")[0]) == -Decimal(loan["deficit"])


def test_it_must_not_be_possible_to_post_collateral_for_a_loan_already_liquidated(
    world: World,
) -> None:
    bank = world.bank
    bank.lend("late")
    bank.becomes("late", "active")
    world.moods(FAILING)
    world.price("30")
    bank.becomes("late", "liquidating")
    before = bank.has("user:b-late:BESKAR")
    refused = bank.top_up("late", "1", "while")
    assert (refused.status, refused.code) == (409, "loan_liquidating")
    assert bank.has("user:b-late:BESKAR") == before
    world.moods(WELL)
    bank.becomes("late", "liquidated")
    after = bank.has("user:b-late:BESKAR")
    refused = bank.top_up("late", "1", "afterwards")
    assert (refused.status, refused.code) == (409, "loan_liquidated")
    assert bank.has("user:b-late:BESKAR") == after
    assert bank.loan("late")["collateral"] == "0"


def test_liquidation_must_continue_even_if_the_ltv_drops(world: World, folder: Path) -> None:
    bank = world.bank
    bank.lend("goon")
    bank.becomes("goon", "active")
    world.moods(FAILING)
    world.price("30")
    bank.becomes("goon", "liquidating")
    world.price("60")
    assert bank.status("goon") == "liquidating"
    world.moods(WELL)
    bank.becomes("goon", "liquidated")
    kept, _ = check_whole(world, folder, "goon")
    assert kept.returned > 20 * 10**24


# ── price streams ─────────────────────────────────────────────────────────────────


def test_poison_price_is_kept_and_gone_from_the_queue(
    world: World, folder: Path, stack: MiniStack
) -> None:
    poison = '{"asset": "BESKAR", "currency": "GC", "levels": "all of them"}'
    world.streams.say("mos_espa", poison)
    world.streams.say("black_spire", "\ufffd not even JSON")

    def kept() -> set[str]:
        with closing(open_reader(folder)) as store:
            return {
                json.loads(bytes(entry.fields))["payload"]
                for entry in entries_in(store)
                if entry.command == "reject_price"
            }

    wait_for(lambda: {poison, "\ufffd not even JSON"} <= kept())
    world.price("49")
    world.streams.silent = {"mos_espa", "black_spire"}
    with closing(Aws(stack.endpoint, "us-east-1")) as aws:
        sqs = aws._sqs()
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]

        def left(market: str) -> int:
            count = 0
            for end in ("", "-dead"):
                url = sqs.get_queue_url(QueueName=f"pennyweight-main-{market}{end}")["QueueUrl"]
                found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
                count += sum(int(value) for value in found.values())
            return count

        wait_for(lambda: left("mos-espa") + left("black-spire") == 0)


def test_other_items_and_wrapped_prices(world: World) -> None:
    """Bodies come as they were published, or as SNS wraps them; other items are nothing to us."""
    walk, before = world.posts.walk, ignored(world)
    world.streams.silent = {"mos_espa", "black_spire"}
    walk.goal = Decimal(51)
    wait_for(lambda: walk.mid == 51)
    for _, body in walk.tick(time.time_ns() // 1_000_000):
        text = body.decode()
        market = "mos_espa" if "eventId" in text else "black_spire"
        world.streams.say(market, text.replace("STEEL:MANDALORIAN", "STEEL:DURASTEEL"))
        world.streams.say(market, json.dumps({"Type": "Notification", "Message": text}))
    wait_for(lambda: ignored(world) == before + 1)
    wait_for(lambda: world.bank.sees(world.posts))


def ignored(world: World) -> int:
    """How many prices of other items came by now."""
    text = world.bank.client.send("GET", "/metrics").body.decode()
    found = re.search(
        r'^pennyweight_prices_total\{market="black_spire",what="ignored"\} (\S+)$',
        text,
        re.MULTILINE,
    )
    return 0 if found is None else round(float(found[1]))


@pytest.mark.parametrize("market", ["mos_espa", "black_spire"])
def test_one_market_suffices_when_the_other_falls_silent(
    world: World, folder: Path, market: Any
) -> None:
    bank, name = world.bank, f"silent-{market}"
    world.silence(market)
    bank.lend(name)
    bank.becomes(name, "active")
    world.price("30")
    bank.becomes(name, "liquidated")
    _, parts = check_whole(world, folder, name)
    assert {part.market for part in parts} == {"mos_espa", "black_spire"} - {market}


def test_without_fresh_prices_nothing_new_begins_and_what_runs_goes_on(
    world: World, folder: Path
) -> None:
    bank = world.bank
    bank.lend("runs")
    bank.becomes("runs", "active")
    world.moods(FAILING)
    world.price("30")
    bank.becomes("runs", "liquidating")
    world.price("50")
    world.silence("mos_espa", "black_spire")
    bank.lend("waits")
    orders = world.orders()
    wait_for(lambda: world.orders() > orders + 3)
    assert bank.status("runs") == "liquidating"
    world.moods(WELL)
    bank.becomes("runs", "liquidated")
    assert bank.status("waits") == "new"
    check_whole(world, folder, "runs")
    world.streams.silent = set()
    bank.becomes("waits", "active")


def test_pause_levels(world: World, folder: Path) -> None:
    """Each stops what it says and nothing else, and no level strands what has begun."""
    bank = world.bank
    for name in ("runs-on", "spared"):
        bank.lend(name, collateral="42" if name == "runs-on" else "45")
        bank.becomes(name, "active")
    world.moods(FAILING)
    world.price("30")
    bank.becomes("runs-on", "liquidating")
    bank.pause("no_new")
    world.price("27")
    bank.lend("begins", collateral="80")
    bank.becomes("begins", "active")
    bank.pause("halt_new_and_activation")
    bank.lend("stays", collateral="80")
    world.moods(WELL)
    bank.becomes("runs-on", "liquidated")
    assert (bank.status("spared"), bank.status("stays")) == ("active", "new")
    bank.pause("normal")
    bank.becomes("spared", "liquidated")
    bank.becomes("stays", "active")
    for name in ("runs-on", "spared"):
        check_whole(world, folder, name)


# ── the weather ───────────────────────────────────────────────────────────────────


def begin(world: World, loan: str) -> None:
    """Have a liquidation under way that gets nowhere."""
    world.bank.lend(loan)
    world.bank.becomes(loan, "active")
    world.moods(FAILING)
    world.price("30")
    world.bank.becomes(loan, "liquidating")


@pytest.mark.heavy
def test_notices_are_late_and_not_lost_while_sns_does_not_answer(
    world: World, folder: Path, stack: MiniStack
) -> None:
    """The bank is answered, what has begun is carried out, and branches hear of it afterwards."""
    bank = world.bank
    begin(world, "hushed")
    stack.freeze()
    try:
        assert bank.apply("meanwhile").status == 202
        world.moods(WELL)
        bank.becomes("hushed", "liquidated")
        wait_for(lambda: "loans notices" in bank.client.get("/readyz").get("down", {}))
        assert bank.client.get("/readyz")["status"] == "ready"
    finally:
        stack.thaw()
    wait_for(lambda: world.branch.of("hushed"))
    kept, _ = stored(folder, "hushed")
    for notice in world.branch.of("hushed"):  # one that hung may have arrived all the same
        check_notice(notice, "hushed", kept)
    assert len({notice["eventId"] for notice in world.branch.of("hushed")}) == 1
    wait_for(lambda: "down" not in bank.client.get("/readyz"))


def test_topics_and_queues_that_are_lost_are_made_again(
    world: World, folder: Path, stack: MiniStack
) -> None:
    """SNS and SQS come back empty: prices come again, and what was to be told is told."""
    bank = world.bank
    begin(world, "reborn")
    stack.stop()
    wait_for(lambda: "loans prices" in bank.client.get("/readyz").get("down", {}))
    stack.start()
    world.branch.subscribe()
    world.streams.connect()
    world.price("50")
    world.moods(WELL)
    bank.becomes("reborn", "liquidated")
    check_whole(world, folder, "reborn")
    wait_for(lambda: "down" not in bank.client.get("/readyz"))


# ── all of it ─────────────────────────────────────────────────────────────────────


def test_complete_history_of_all_operations(world: World, folder: Path) -> None:
    """The journal has it, the posts' own books agree, and the book proves itself."""
    bank = world.bank
    bank.lend("all")
    bank.becomes("all", "active")
    world.posts["mos_espa"].fates.append("failed")
    world.posts["black_spire"].fates.append("failed")
    world.price("34")
    world.price("29")
    bank.becomes("all", "liquidated")
    check_whole(world, folder, "all")
    told = bank.history("all")
    assert told[:5] == ["applied", "topped_up", "activated", "warned", "liquidation_begun"]
    assert {"slice_failed", "slice_filled"} <= set(told)
    wait_for(lambda: not bank.client.get("/loans?status=liquidating&limit=1")["loans"])
    verified = json.loads(pennyweight("verify", "--data", folder, "--json"))
    assert verified["ok"], verified
    with closing(open_reader(folder)) as store:
        loans, parts = loans_in(store), slices_in(store)
    check_sales(parts, world.posts)
    ended = {name for name, loan in loans.items() if loan.status == "liquidated"}
    wait_for(lambda: {notice["loanId"] for notice in world.branch.listen()} >= ended)
    notices = [json.loads(body) for body in {*world.branch.bodies}]
    assert sorted(notice["loanId"] for notice in notices) == sorted(ended)
    assert len({notice["eventId"] for notice in notices}) == len(ended)
    for notice in notices:
        check_notice(notice, notice["loanId"], loans[notice["loanId"]])


def test_later_dialect(tmp_path: Path) -> None:
    """Its own names on the wires, and notices of applications and activations too."""
    with running() as stack, alone(tmp_path, stack.endpoint, "later") as world:
        _later(world, world.branch)


def _later(world: World, branch: Branch) -> None:
    bank = world.bank
    world.price("50")
    assert bank.apply("L", collateralAmount="40", assetType="BSK").status == 202
    assert bank.top_up("L", "2", assetType="BSK").status == 202
    assert bank.top_up("L", "2", "another", borrowerId="boba").status == 400
    bank.becomes("L", "active")
    world.price("30")
    bank.becomes("L", "liquidated")
    wait_for(lambda: len(branch.listen()) == 3)
    applied, active, liquidated = sorted(branch.listen(), key=_place)
    assert list(applied) == ["eventId", "eventType", "loanId", "amount", "status"]
    assert (applied["eventType"], applied["status"]) == ("application", "new")
    assert list(active) == ["eventId", "eventType", "loanId", "status", "outstandingBalance"]
    assert (active["eventType"], active["outstandingBalance"]) == ("activation", "1000")
    assert list(liquidated) == LATER_NOTICE
    assert (liquidated["eventType"], liquidated["status"]) == ("liquidation", "liquidated")
    assert {notice["loanId"] for notice in branch.listen()} == {"L"}
    sent = [json.loads(body) for body in world.posts["black_spire"].received]
    assert {order["item"] for order in sent} <= {"BSK"}
    assert len(sent) + len(world.posts["mos_espa"].received) > 0


def _place(notice: dict[str, Any]) -> int:
    return int(notice["eventId"].split(".")[-2])

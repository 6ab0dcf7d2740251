"""The law that `verify` checks of portfolios: damage that the ledger's own laws cannot see."""

import copy
import functools
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from pennyweight.assemble import answers
from pennyweight.engine.rebuild import Rebuilt
from pennyweight.engine.receipts import Receipt
from pennyweight.engine.verification import verify
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import Entry, Transfer, decode_entry
from pennyweight.ledger.letters import Message
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.general import LoadBalances
from pennyweight.products.portfolios.execute import ExecuteTransactions, Fill
from pennyweight.products.portfolios.law import PortfoliosLaw
from pennyweight.products.portfolios.letters import (
    CloseUpdateLetter,
    ReplayUpdate,
    SetAsideUpdate,
)
from pennyweight.products.portfolios.queue import QueueUpdate, TakeUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import ChangeTarget, CreatePortfolio, SetPolicy
from pennyweight.products.portfolios.shared import (
    EXECUTION,
    POINT,
    POLICY,
    PORTFOLIO,
    UPDATE,
    Band,
    Holding,
    Policy,
)
from scenarios import START, Stage

Change = Callable[[Entry], Entry]

TARGET = {"stocks": "60", "bonds": "30", "gold": "10"}
MOVED = {"stocks": "70", "bonds": "20", "gold": "10"}
COINS = {"BTC": "50", "ETH": "30", "USD": "20"}
HOLDINGS = {
    "BTC": Holding("7", "10"),
    "ETH": Holding("5", "2", "0.1"),
    "USD": Holding("20", "1"),
}
DAY = 86_400_000_000
MESSAGE = Message("rebalance", 0, 5, b64encode(b"{}").decode())


@functools.cache
def journal() -> tuple[list[tuple[Entry, int]], dict[str, int]]:
    """Return the entries with their times, and the sequence of each step by its name."""
    stage, steps = Stage(), {}

    def step(name: str, command: Command, key: str = "") -> Any:
        outcome = stage.execute(command, key=key)
        assert isinstance(outcome, Receipt), (name, outcome)
        steps[name] = outcome.sequence
        return outcome.answer

    step("create", CreatePortfolio("1", TARGET))
    step("create again", CreatePortfolio("1", TARGET))
    step("create another", CreatePortfolio("2", COINS, Policy(band=Band(absolute=2 * POINT))))
    step("update", Rebalance("1", MOVED))
    step("repeat", Rebalance("1", MOVED))
    step("execute", ExecuteTransactions("1", steps["update"], (Fill(1),)))
    step("execute rest", ExecuteTransactions("1", steps["update"], (Fill(1), Fill(2))))
    step("execute none", ExecuteTransactions("1", steps["update"], (Fill(2),)))
    step("update again", Rebalance("1", MOVED))
    step("target", ChangeTarget("1", {"stocks": "50", "bonds": "50"}))
    step("target again", ChangeTarget("1", {"stocks": "50", "bonds": "50"}))
    stage.wait(10)
    thirds = {"a": "33.33", "b": "33.33", "stocks": "33.33"}
    step("thirds", Rebalance("1", thirds, "r1", stage.now - 5))
    step("outdated", Rebalance("1", MOVED, as_of=START))
    step("same moment", Rebalance("1", {"stocks": "50", "x": "50"}, as_of=stage.now))
    step("timed repeat", Rebalance("1", {"stocks": "50", "x": "50"}, as_of=stage.now - 1))
    step("value", Rebalance("2", {}, "v", None, "", "USD", HOLDINGS))
    coins = steps["value"]
    step("load", LoadBalances("2", (("BTC", "7"), ("USD", "1"))))
    step("sale", ExecuteTransactions("2", coins, (Fill(1, "2", "20", "USD"),)))
    step("purchase", ExecuteTransactions("2", coins, (Fill(2, "10", "30", "USD"),)))
    step("amount", Rebalance("2", {"BTC": "60", "ETH": "20", "USD": "20"}, "w", None, "99", "USD"))
    uneven = {"BTC": "60", "ETH": "27", "USD": "13"}
    step("uneven", Rebalance("2", uneven, "x", None, "1.1e-16", "USD"))
    held = {"BTC": Holding("1", "10", "1"), "ETH": Holding("", "2")}
    over = {"BTC": "60", "ETH": "20", "USD": "20"}
    step("lots", Rebalance("2", over, "y", None, "200", "USD", held))
    policy = Policy(
        band=Band(absolute=5 * POINT),
        trade_to="band",
        minimum_trade=POINT,
        locked=("gold",),
        turnover_max=2 * POINT,
    )
    step("policy", SetPolicy("2", policy))
    step("policy again", SetPolicy("2", policy))
    step("banded", Rebalance("2", {"BTC": "57", "ETH": "25", "USD": "16", "gold": "2"}))
    step("in band", Rebalance("2", {"BTC": "53", "ETH": "28", "USD": "19"}))
    buying = Policy(cash="USD", is_buy_only=True, is_cash_first=True, calendar="monthly")
    step("buying policy", SetPolicy("2", buying))
    step("cash flow", Rebalance("2", {"BTC": "52", "ETH": "20", "USD": "28"}))
    step("not due", Rebalance("2", {"BTC": "52", "ETH": "28", "USD": "20"}))
    step("older run", ExecuteTransactions("2", steps["banded"], (Fill(1),)))
    step("queue", QueueUpdate(Rebalance("1", MOVED)))
    step("queue bad", QueueUpdate(Rebalance("1", {"stocks": "1"})))
    step("queue outdated", QueueUpdate(Rebalance("1", MOVED, as_of=5)))
    step("take", TakeUpdate(1, "1"))
    step("take bad", TakeUpdate(2, "1"))
    step("take outdated", TakeUpdate(3, "1"))
    step("aside", SetAsideUpdate(MESSAGE, "no", "no"))
    step("aside too", SetAsideUpdate(MESSAGE, "no", "no"))
    step("replay", ReplayUpdate("portfolios-1", Rebalance("1", TARGET)))
    step("close letter", CloseUpdateLetter("portfolios-2"))
    step("no policy", SetPolicy("2", None))
    times = {}
    for header, _ in stage.store.batches(0, 1_000):
        for sequence in range(header.first_sequence, header.first_sequence + header.count):
            times[sequence] = header.committed_at
    entries = [
        (decode_entry(body), times[sequence]) for sequence, body in stage.store.entries(0, 1_000)
    ]
    report = verify(stage.store, answers=answers(), invariants=[PortfoliosLaw()])
    assert report.ok, report.problems
    return entries, steps


def told_after(name: str, change: Change) -> tuple[str | None, list[tuple[int, str]]]:
    """Return what the law says of a step that was changed, and of the whole book at its end."""
    entries, steps = journal()
    law, book = PortfoliosLaw(), Rebuilt(lambda _sequence, _problem: None, answers={})
    problem = None
    for entry, time in entries:
        book.apply(entry, time)
        is_it = entry.sequence == steps[name]
        said = law.entry(change(entry) if is_it else entry, book)
        if is_it:
            problem = said
        else:
            assert said is None or problem is not None, said
    return problem, list(law.end(book))


def moved(index: int, **fields: Any) -> Change:
    """Change one of the transfers."""

    def change(entry: Entry) -> Entry:
        made = list(entry.transfers)
        made[index] = msgspec.structs.replace(made[index], **fields)
        return msgspec.structs.replace(entry, transfers=made)

    return change


def also_moved(entry: Entry) -> Entry:
    more = Transfer("venue:portfolios:USD", "user:2:USD", 1)
    return msgspec.structs.replace(entry, transfers=[*entry.transfers, more])


def without(what: str) -> Change:
    return lambda entry: msgspec.structs.replace(entry, **{what: []})


def swapped(what: str) -> Change:
    return lambda entry: msgspec.structs.replace(entry, **{what: getattr(entry, what)[::-1]})


def counted(number: int) -> Change:
    return lambda entry: msgspec.structs.replace(entry, counters={UPDATE: number})


def of_command(name: str, product: str = "portfolios") -> Change:
    return lambda entry: msgspec.structs.replace(entry, command=name, product=product)


def put_in(target: Any, fields: dict[str, Any]) -> Any:
    """Put fields into decoded JSON; a name like `lines.0.3` goes down into it."""
    for path, value in fields.items():
        *way, last = path.split("__")
        place = target
        for name in way:
            place = place[int(name)] if isinstance(place, list) else place[name]
        place[int(last) if isinstance(place, list) else last] = value
    return target


def asked(**fields: Any) -> Change:
    """Change what was asked for."""

    def change(entry: Entry) -> Entry:
        changed = put_in(msgspec.json.decode(entry.fields), fields)
        return msgspec.structs.replace(entry, fields=msgspec.Raw(msgspec.json.encode(changed)))

    return change


def answered(**fields: Any) -> Change:
    def change(entry: Entry) -> Entry:
        changed = put_in(msgspec.json.decode(entry.answer), fields)
        return msgspec.structs.replace(entry, answer=msgspec.Raw(msgspec.json.encode(changed)))

    return change


def told(*changes: int) -> Change:
    """Have a run's lines, in their order, trade something else."""
    return answered(**{f"lines__{place}__3": change for place, change in enumerate(changes)})


def reordered(*places: int) -> Change:
    def change(entry: Entry) -> Entry:
        lines = msgspec.json.decode(entry.answer)["lines"]
        return answered(lines=[lines[place] for place in places])(entry)

    return change


def written(kind: str, **fields: Any) -> Change:
    """Change the body of a record."""

    def change(entry: Entry) -> Entry:
        records = list(entry.records)
        place = next(n for n, record in enumerate(records) if record.kind == kind)
        body = put_in(msgspec.json.decode(records[place].body), fields)
        raw = msgspec.Raw(msgspec.json.encode(body))
        records[place] = msgspec.structs.replace(records[place], body=raw)
        return msgspec.structs.replace(entry, records=records)

    return change


def recorded(kind: str, **fields: Any) -> Change:
    """Change a record but for its body."""

    def change(entry: Entry) -> Entry:
        records = [
            msgspec.structs.replace(record, **fields) if record.kind == kind else record
            for record in entry.records
        ]
        return msgspec.structs.replace(entry, records=records)

    return change


def not_written(kind: str) -> Change:
    def change(entry: Entry) -> Entry:
        records = [record for record in entry.records if record.kind != kind]
        return msgspec.structs.replace(entry, records=records)

    return change


def also_written(step: str) -> Change:
    """Write also what another step wrote."""

    def change(entry: Entry) -> Entry:
        entries, steps = journal()
        other = next(one for one, _ in entries if one.sequence == steps[step])
        return msgspec.structs.replace(entry, records=[*entry.records, *other.records])

    return change


def instead(step: str) -> Change:
    """Have another step happen here."""

    def change(entry: Entry) -> Entry:
        entries, steps = journal()
        other = next(one for one, _ in entries if one.sequence == steps[step])
        return msgspec.structs.replace(other, sequence=entry.sequence)

    return change


def both(*changes: Change) -> Change:
    return lambda entry: functools.reduce(lambda so_far, change: change(so_far), changes, entry)


P = POINT
FAR = 2**60

DAMAGE = [
    # targets and policies
    ("create", asked(user=5), "cannot be read"),
    ("create", asked(allocation={"stocks": "x"}), "cannot be read"),
    ("create", asked(allocation={"stocks": "99.9"}), "add up to"),
    ("create", asked(allocation={"stocks": "100"}), "it answers target"),
    ("create", answered(target={"stocks": 100 * P}), "it answers target"),
    ("create", answered(result="unchanged"), "it answers result"),
    ("create", answered(policy_version=1), "it answers policy_version"),
    ("create", written(PORTFOLIO, target__gold=9 * P), "written with target"),
    ("create", written(PORTFOLIO, created_at=5), "written with created_at"),
    ("create", written(PORTFOLIO, traded_at=5), "written with traded_at"),
    ("create", written(PORTFOLIO, policy={}), "written with policy"),
    ("create", recorded(PORTFOLIO, holder="user:2"), "not listed"),
    ("create", recorded(PORTFOLIO, labels=("x",)), "not listed"),
    ("create", recorded(PORTFOLIO, id="9"), "no right to"),
    ("create", without("records"), "is not written"),
    ("create", also_moved, "no right to"),
    ("create again", instead("create"), "it answers result"),
    ("create again", also_written("create"), "no right to"),
    ("create again", asked(allocation={"stocks": "100"}), "another portfolio already"),
    ("create again", asked(policy={}), "another portfolio already"),
    ("create another", not_written(POLICY), "is not written"),
    ("create another", written(POLICY, version=2), "written with version"),
    ("create another", written(POLICY, since=2), "written with since"),
    ("create another", written(POLICY, policy={}), "written with policy"),
    ("create another", recorded(POLICY, labels=()), "not listed"),
    ("create another", recorded(POLICY, id="2/000002"), "no right to"),
    ("create another", written(PORTFOLIO, policy_version=0), "written with policy_version"),
    ("target", asked(user="9"), "has no portfolio"),
    ("target", written(PORTFOLIO, is_fresh=True), "written with is_fresh"),
    ("target", written(PORTFOLIO, open=[]), "written with open"),
    ("target", asked(allocation=TARGET), "it answers result"),
    ("target again", also_written("target"), "no right to"),
    ("policy", written(POLICY, policy__minimum_trade=5), "written with policy"),
    ("policy", written(PORTFOLIO, policy__minimum_trade=5), "written with policy"),
    ("policy", answered(policy_version=3), "it answers policy_version"),
    ("policy again", instead("policy"), "it answers result"),
    ("no policy", written(PORTFOLIO, policy_version=3), "written with policy_version"),
    # what an update says
    ("update", asked(user="9"), "has no portfolio"),
    ("update", asked(user="2"), "not one for each asset"),
    ("update", asked(allocation__stocks="70.02"), "add up to"),
    ("update", asked(allocation__stocks="70.01"), "is told to be"),
    ("update", asked(allocation={"stocks": "70", "bonds": "30"}), "is told to be"),
    ("update", asked(allocation={"stocks": "70", "x": "30"}), "not one for each asset"),
    ("update", asked(as_of=FAR), "more than a minute"),
    ("update", asked(as_of=START), "it answers as_of"),
    ("update", asked(currency="XXX"), "no asset"),
    ("update", asked(value="100", currency="USD"), "cannot be read"),
    ("update", answered(result="repeat"), "is 'rebalanced'"),
    ("update", answered(result="outdated"), "is 'rebalanced'"),
    # what is traded
    ("update", told(-10 * P, 9 * P), "is not what is bought"),
    ("update", both(told(-10 * P, 10 * P + 1, -1), reordered(0, 2, 1)), "off its target by 0"),
    ("update", told(10 * P, -10 * P), "not in order"),
    ("update", told(-11 * P, 11 * P), "off its target by"),
    ("update", told(-9 * P, 9 * P), "due is"),
    ("update", told(0, 0), "not in order"),
    ("update", both(told(0, 0), reordered(1, 2, 0)), "is told to be 'drift'"),
    ("update", reordered(1, 0, 2), "not in order"),
    ("update", reordered(0, 2, 1), "not in order"),
    ("update", reordered(0, 1), "not one for each asset"),
    ("update", reordered(0, 1, 1), "not one for each asset"),
    ("update", answered(lines__0__1=71 * P), "is told to be"),
    ("update", answered(lines__0__2=61 * P), "is told to be"),
    ("update", answered(lines__0__4="band"), "is told to be 'band'"),
    ("update", answered(lines__0__4="cash_flow"), "is told to be 'cash_flow'"),
    ("update", answered(lines__0__4="not_due"), "is told to be 'not_due'"),
    ("update", answered(lines__2__4="locked"), "is told to be 'locked'"),
    ("update", answered(lines__0__6="10"), "amount where none"),
    ("update", answered(lines__0__7="10"), "amount where none"),
    ("update", answered(run=12), "it answers run"),
    ("update", answered(at=5), "it answers at"),
    ("update", answered(previous=5), "it answers previous"),
    ("update again", answered(previous=0), "it answers previous"),
    ("update again", answered(trades_before=0), "it answers trades_before"),
    ("update", answered(policy_version=1), "it answers policy_version"),
    ("update", answered(currency="USD"), "it answers currency"),
    # what it writes
    ("update", without("records"), "is not written"),
    ("update", also_moved, "no right to"),
    ("update", lambda e: msgspec.structs.replace(e, counters={"x": 1}), "counts x"),
    ("update", lambda e: msgspec.structs.replace(e, answer=msgspec.Raw(b"5")), "cannot be read"),
    ("execute", recorded(EXECUTION, id="x-y"), "no right to"),
    ("execute none", also_written("execute"), "no right to"),
    ("update", also_written("create another"), "no right to"),
    ("update", written(PORTFOLIO, target__gold=9 * P), "written with target"),
    ("update", written(PORTFOLIO, current__gold=9 * P), "written with current"),
    ("update", written(PORTFOLIO, as_of=5), "written with as_of"),
    ("update", written(PORTFOLIO, is_timed=True), "written with is_timed"),
    ("update", written(PORTFOLIO, run=5), "written with run"),
    ("update", written(PORTFOLIO, run_before=5), "written with run_before"),
    ("update", written(PORTFOLIO, trade_run=5), "written with trade_run"),
    ("update", written(PORTFOLIO, open=[1]), "written with open"),
    ("update", written(PORTFOLIO, is_fresh=False), "written with is_fresh"),
    ("update", written(PORTFOLIO, traded_at=5), "written with traded_at"),
    ("update again", written(PORTFOLIO, traded_before=5), "written with traded_before"),
    ("thirds", asked(allocation__a="33.34"), "is told to be"),
    ("thirds", asked(request_id="r2", as_of=START), "is 'outdated'"),
    # repeats, and what is outdated
    ("repeat", answered(result="rebalanced"), "is 'repeat'"),
    ("repeat", answered(run=12), "does not repeat run"),
    ("repeat", told(-9 * P, 9 * P), "does not repeat run"),
    ("repeat", answered(lines__0__5=1), "does not repeat run"),
    ("repeat", answered(at=5), "does not repeat run"),
    ("repeat", answered(previous=5), "does not repeat run"),
    ("repeat", also_written("update"), "no right to"),
    ("repeat", asked(allocation=TARGET), "is 'rebalanced'"),
    ("repeat", asked(request_id="r"), "is 'rebalanced'"),
    ("update again", instead("repeat"), "is 'rebalanced'"),
    ("timed repeat", asked(allocation={"stocks": "49", "x": "51"}), "is 'outdated'"),
    ("timed repeat", asked(allocation={"stocks": "51", "x": "49"}), "is 'rebalanced'"),
    ("outdated", answered(result="repeat"), "is 'outdated'"),
    ("outdated", answered(as_of=5), "it answers as_of"),
    ("outdated", answered(run=5), "it answers run"),
    ("outdated", also_written("update"), "no right to"),
    ("outdated", asked(as_of=START + DAY // 2), "more than a minute"),
    # values, prices and lots
    ("value", asked(holdings__BTC__quantity="8"), "is told to be"),
    ("value", asked(holdings__ETH__lot="3"), "is no quantity for"),
    ("value", answered(lines__0__6="19"), "not its share"),
    ("value", answered(lines__0__7="2.1"), "is no quantity for"),
    ("value", answered(lines__0__7="1.9"), "less of BTC is sold"),
    ("value", answered(lines__0__7=""), "cannot be read"),
    ("value", answered(lines__1__7="10.1"), "is no quantity for"),
    ("value", answered(lines__1__7="9.95"), "is no quantity for"),
    ("value", answered(lines__2__6="1"), "amount where none"),
    ("value", written(PORTFOLIO, value="101"), "written with value"),
    ("value", written(PORTFOLIO, currency="EUR"), "written with currency"),
    ("value", written(PORTFOLIO, holdings__BTC__quantity="8"), "written with holdings"),
    ("amount", answered(lines__0__7="1"), "has no price"),
    ("amount", asked(value="98"), "not its share"),
    ("value", asked(**{f"holdings__{n}__quantity": "0" for n in COINS}), "nothing of anything"),
    ("uneven", answered(lines__1__6="0.000000000000000007"), "are not equal"),
    ("lots", answered(lines__0__7="2"), "1 is there"),
    ("lots", answered(lines__0__7="0"), "less of BTC is sold"),
    ("lots", answered(lines__1__7="10"), "costs more"),
    # policies
    ("banded", told(-7 * P, 7 * P), "off its target by"),
    ("banded", told(-2 * P - 1, 2 * P + 1), "at most 20000000000 may be"),
    ("banded", told(1 - 2 * P, 2 * P - 1), "due is"),
    ("banded", told(-P, P), "due is"),
    ("banded", told(-P // 2, P // 2), "below the minimum"),
    ("banded", both(told(-2 * P, P, P), answered(lines__2__4="band")), "is told to be 'band'"),
    ("banded", both(told(-P, 2 * P, 0, -P), answered(lines__3__4="drift")), "not in order"),
    (
        "banded",
        both(told(-P, 2 * P, 0, -P), answered(lines__3__4="drift"), reordered(0, 3, 1, 2)),
        "it is locked",
    ),
    (
        "banded",
        both(
            told(0, 0),
            answered(lines__0__4="no_counterpart", lines__1__4="no_counterpart"),
            answered(lines__0__5=0, lines__1__5=0),
        ),
        "due is -20000000000",
    ),
    (
        "in band",
        both(told(-2 * P, 2 * P), answered(lines__0__4="with_others", lines__1__4="with_others")),
        "due is 0",
    ),
    ("cash flow", told(-10 * P, 10 * P), "off its target by"),
    (
        "cash flow",
        both(told(-8 * P, 10 * P, -2 * P), answered(lines__2__4="cash_flow"), reordered(0, 2, 1)),
        "nothing but cash",
    ),
    (
        "not due",
        both(told(-2 * P, 2 * P), answered(lines__0__4="cash_flow", lines__1__4="cash_flow")),
        "nothing but cash",
    ),
    ("not due", answered(lines__0__4="calendar"), "is told to be 'calendar'"),
    ("not due", answered(lines__0__4="below_minimum"), "is told to be"),
    # executions
    ("execute", asked(user="2"), "has no transactions"),
    ("execute", asked(user="9"), "has no portfolio"),
    ("execute", asked(run=12), "has no transactions"),
    ("execute", asked(run=-1), "has no transactions"),
    ("execute", asked(fills=[{"position": 3}]), "there is no transaction"),
    ("execute", asked(fills=[{"position": 0}]), "there is no transaction"),
    ("execute", asked(fills=[{"position": 2}]), "no right to"),
    ("execute", written(PORTFOLIO, open=[]), "written with open"),
    ("execute", written(EXECUTION, user="2"), "written with user"),
    ("execute", written(EXECUTION, at=2), "written with at"),
    ("execute", written(EXECUTION, entry=2), "written with entry"),
    ("execute", written(EXECUTION, fill={"position": 2}), "written with fill"),
    ("execute", recorded(EXECUTION, labels=()), "not listed"),
    ("execute", not_written(PORTFOLIO), "is not written"),
    ("execute", not_written(EXECUTION), "is not written"),
    ("execute", also_moved, "not executed"),
    ("execute", answered(new=[]), "it answers new"),
    ("execute rest", answered(executed=[2]), "it answers executed"),
    ("execute rest", also_written("execute"), "no right to"),
    ("execute rest", instead("execute"), "no right to"),
    ("older run", also_written("cash flow"), "no right to"),
    ("sale", without("transfers"), "it moves nothing"),
    ("sale", moved(0, amount=1), "not what was executed"),
    ("sale", moved(1, amount=1), "not what was executed"),
    ("sale", moved(1, credit_account="user:1:USD"), "not what was executed"),
    ("sale", moved(0, credit_account="house:BTC"), "not what was executed"),
    ("sale", moved(0, debit_account="owed:user:2:BTC"), "owes what it could pay"),
    ("sale", swapped("transfers"), "not what was executed"),
    ("sale", also_moved, "was not executed"),
    ("sale", asked(fills__0__quantity="3"), "written with fill"),
    ("purchase", moved(1, amount=10 * 10**18), "not what was executed"),
    ("purchase", moved(1, debit_account="owed:user:1:USD"), "cannot be read"),
    # the queue
    ("queue", counted(2), "is counted as 2"),
    ("queue", counted(1), None),
    ("queue", written(UPDATE, update__user="2"), "written with update"),
    ("queue", written(UPDATE, queued_at=2), "written with queued_at"),
    ("queue", recorded(UPDATE, marks=()), "not listed"),
    ("queue", answered(number=2), "it answers number"),
    ("queue", also_written("take"), "no right to"),
    ("queue", asked(update__user="9"), "has no portfolio"),
    ("queue bad", instead("queue"), "is counted as 1"),
    ("take", asked(number=5), "was never queued"),
    ("take", asked(number=2), "answered as done, number 1"),
    ("take", answered(state="refused"), "answered as refused"),
    ("take", answered(run__result="repeat"), "is 'rebalanced'"),
    ("take", answered(run__lines__0__3=0), "is not what is bought"),
    ("take", not_written(PORTFOLIO), "is not written"),
    ("take", not_written(UPDATE), "is not written"),
    ("take", written(UPDATE, state="queued"), "written with state"),
    ("take", written(UPDATE, run=5), "written with run"),
    ("take", written(UPDATE, entry=5), "written with entry"),
    ("take", written(UPDATE, taken_at=5), "written with taken_at"),
    ("take bad", instead("take"), "was taken already"),
    ("take bad", answered(reason="because"), "for 'because'"),
    ("take bad", answered(state="done"), "answered as done"),
    ("take bad", also_written("replay"), "no right to"),
    ("take bad", written(UPDATE, reason="x"), "written with reason"),
    ("take outdated", answered(state="queued"), "is queued"),
    ("take outdated", also_written("take"), "no right to"),
    # dead letters
    ("replay", asked(update__allocation=MOVED), "is 'repeat'"),
    ("replay", asked(update__allocation__gold="10.005"), "is told to be"),
    ("replay", not_written("dead_letter"), "and not closed"),
    ("replay", not_written(PORTFOLIO), "is not written"),
    ("replay", told(-9 * P, -11 * P), "off its target by"),
    ("close letter", also_written("update"), "no right to"),
    ("aside", also_moved, "no right to"),
    # others
    ("update", of_command("rebalance", "probe"), "an entry of probe writes portfolio"),
    ("load", also_written("update"), "an entry of ledger writes portfolio"),
]


def test_law_holds():
    problem, at_end = told_after("create", lambda entry: entry)
    assert (problem, at_end) == (None, [])


@pytest.mark.parametrize(("step", "change", "says"), DAMAGE)
def test_damage_is_found(step, change, says):
    problem, _ = told_after(step, change)
    if says is None:
        assert problem is None
        return
    assert problem is not None
    assert says in problem


def test_update_that_is_refused_though_nothing_is_wrong_with_it_is_found(monkeypatch):
    stage = Stage()
    stage.execute(CreatePortfolio("1", TARGET))
    stage.execute(QueueUpdate(Rebalance("1", MOVED)))

    def refusing(self, arrived_at, draft):
        refuse(Reason.ALLOCATION_INVALID, "we do not like it")

    monkeypatch.setattr(Rebalance, "decide_as_of", refusing)
    assert stage.execute(TakeUpdate(1, "1")).answer.state == "refused"
    report = verify(stage.store, answers=answers(), invariants=[PortfoliosLaw()])
    assert [problem.problem for problem in report.problems] == [
        "it is refused, and nothing is wrong with it"
    ]


def test_whatever_was_never_told_is_missed_at_the_end():
    """A law that saw nothing finds all records too many."""
    entries, _ = journal()
    law, book = PortfoliosLaw(), Rebuilt(lambda _sequence, _problem: None, answers={})
    for entry, time in entries:
        book.apply(entry, time)
    said = [problem for _, problem in law.end(book)]
    assert "the portfolio of '1' was never made" in said
    assert "there are 2 records of portfolio, the entries made 0" in said
    assert "there are 4 records of portfolio_policy, the entries made 0" in said
    assert "there are 5 records of rebalance_execution, the entries made 0" in said
    assert "there are 3 records of rebalance_update, the entries made 0" in said
    assert "3 queued updates are counted, 0 were queued" in said


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all plain values in decoded JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for name, one in items:
        if isinstance(one, dict | list):
            yield from leaves(one, (*path, name))
        else:
            yield (*path, name)


def mutated(raw: msgspec.Raw) -> Iterator[tuple[str, msgspec.Raw]]:
    """Yield JSON with each of its plain values changed, one at a time."""
    paths = list(leaves(msgspec.json.decode(raw)))
    for path in paths:
        changed = msgspec.json.decode(raw)
        place = functools.reduce(lambda so_far, name: so_far[name], path[:-1], changed)
        old = place[path[-1]]
        if isinstance(old, bool):
            new: Any = not old
        elif isinstance(old, int):
            new = old + 1
        elif isinstance(old, str):
            new = f"{old}1"
        else:
            new = 5
        place[path[-1]] = new
        yield ".".join(map(str, path)), msgspec.Raw(msgspec.json.encode(changed))


UNCHECKED = {
    ("rebalance", "fields.as_of"),  # a moment later, and outdated all the same
    ("rebalance", "fields.request_id"),  # another name for the same update
    ("replay_update", "fields.letter"),  # which letter it closes is the ledger's
    ("take_update", "fields.user"),  # where to look, no more
}


def test_no_value_of_an_entry_can_be_changed_unnoticed():
    """Each number and each text of what was asked, answered and written, one at a time."""
    entries, _ = journal()
    passed = set()
    for place, (entry, _) in enumerate(entries):
        if entry.product != "portfolios" or "letter" in entry.command or "aside" in entry.command:
            continue
        changes: list[tuple[str, Entry]] = [
            (f"{what}.{path}", msgspec.structs.replace(entry, **{what: raw}))
            for what in ("fields", "answer")
            for path, raw in mutated(getattr(entry, what))
        ]
        for index, record in enumerate(entry.records):
            if record.kind == "dead_letter":
                continue
            for path, raw in mutated(record.body):
                records = list(entry.records)
                records[index] = msgspec.structs.replace(record, body=raw)
                changes.append(
                    (f"{record.kind}.{path}", msgspec.structs.replace(entry, records=records))
                )
        law, book = PortfoliosLaw(), Rebuilt(lambda _sequence, _problem: None, answers={})
        for before, time in entries[:place]:
            book.apply(before, time)
            assert law.entry(before, book) is None
        book.apply(*entries[place])
        for path, change in changes:
            if copy.deepcopy(law).entry(change, book) is None:
                passed.add((entry.command, path))
    assert passed == UNCHECKED

"""The law that `verify` checks of loans: damage that the ledger's own laws cannot see."""

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from loan_stage import BLACK, Lending, at, quote, units
from pennyweight.engine.rebuild import Rebuilt
from pennyweight.ledger.entries import Entry, Transfer, decode_entry
from pennyweight.products.loans import LoansLaw
from pennyweight.products.loans.life import RejectPrice, SetLiquidations
from pennyweight.products.loans.shared import LOAN, SLICE

Change = Callable[[Entry], Entry]


@functools.cache
def journal() -> tuple[list[tuple[Entry, int]], dict[str, int]]:
    """Return the entries with their times, and the sequence of each step by its name."""
    stage, steps = Lending(), {}

    def step(name: str) -> None:
        steps[name] = stage.store.head().sequence

    stage.apply("1000")
    step("apply")
    stage.top_up("30")
    step("first top-up")
    stage.top_up("10")
    step("top-up")
    stage.activate("50")
    step("activate")
    stage.warn("35")
    step("warn")
    stage.rearm("45")
    step("rearm")
    stage.done(SetLiquidations("normal"))
    step("pause")
    stage.done(RejectPrice("q", "m", "r", "p"))
    step("reject")
    stage.begin(*at("30"))
    step("begin")
    stage.fail(1)
    step("fail")
    stage.place(quote("31", "31", "29", "28"), quote("30", "30", "30", "29", market=BLACK))
    step("place")
    stage.fill(2, stage.text_of(2), "900")
    step("fill")
    while stage.loan().status != "liquidated":
        number = stage.loan().slices
        if stage.slice(number).state == "open":
            stage.fill(number, stage.text_of(number), "200")
        else:
            stage.place(*at("30"))
    step("last fill")
    stage.apply("1000", "40", loan="L2")
    step("apply with collateral")
    stage.activate("50", loan="L2")
    stage.begin(*at("20"), loan="L2")
    stage.fill(1, "40", "700", loan="L2")
    step("deficit")
    stage.apply("1e-9", "1e-9", loan="L3")
    stage.activate("2", loan="L3")
    stage.begin(*at("1"), loan="L3")
    step("dust")
    times = {}
    for header, _ in stage.store.batches(0, 1_000):
        for sequence in range(header.first_sequence, header.first_sequence + header.count):
            times[sequence] = header.committed_at
    entries = [
        (decode_entry(body), times[sequence]) for sequence, body in stage.store.entries(0, 1_000)
    ]
    stage.prove()
    return entries, steps


def told_after(name: str, change: Change) -> tuple[str | None, list[tuple[int, str]]]:
    """Return what the law says of a step that was changed, and of the whole book at its end."""
    entries, steps = journal()
    law, book = LoansLaw(), Rebuilt(lambda _sequence, _problem: None, answers={})
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
    more = Transfer("world:GC", "user:eve:GC", 1)
    return msgspec.structs.replace(entry, transfers=[*entry.transfers, more])


def without(what: str) -> Change:
    return lambda entry: msgspec.structs.replace(entry, **{what: []})


def twice(what: str) -> Change:
    return lambda entry: msgspec.structs.replace(entry, **{what: getattr(entry, what) * 2})


def asked(**fields: object) -> Change:
    """Change what was asked for."""

    def change(entry: Entry) -> Entry:
        fingerprint = {**msgspec.json.decode(entry.fields), **fields}
        return msgspec.structs.replace(entry, fields=msgspec.Raw(msgspec.json.encode(fingerprint)))

    return change


def answered(**fields: object) -> Change:
    def change(entry: Entry) -> Entry:
        answer = {**msgspec.json.decode(entry.answer), **fields}
        return msgspec.structs.replace(entry, answer=msgspec.Raw(msgspec.json.encode(answer)))

    return change


def written(kind: str, index: int = 0, **fields: object) -> Change:
    """Change the body of a record."""

    def change(entry: Entry) -> Entry:
        records = list(entry.records)
        place = [n for n, record in enumerate(records) if record.kind == kind][index]
        body = {**msgspec.json.decode(records[place].body), **fields}
        raw = msgspec.Raw(msgspec.json.encode(body))
        records[place] = msgspec.structs.replace(records[place], body=raw)
        return msgspec.structs.replace(entry, records=records)

    return change


def recorded(kind: str, **fields: object) -> Change:
    """Change a record but for its body."""

    def change(entry: Entry) -> Entry:
        records = [
            msgspec.structs.replace(record, **fields) if record.kind == kind else record
            for record in entry.records
        ]
        return msgspec.structs.replace(entry, records=records)

    return change


def held(**fields: object) -> Change:
    """Change the hold of the last hold change."""

    def change(entry: Entry) -> Entry:
        *others, last = entry.holds
        hold = msgspec.structs.replace(last.hold, **fields)
        return msgspec.structs.replace(
            entry, holds=[*others, msgspec.structs.replace(last, hold=hold)]
        )

    return change


def emitted(**fields: object) -> Change:
    def change(entry: Entry) -> Entry:
        *others, last = entry.events
        event = msgspec.structs.replace(last, body={**last.body, **fields})
        return msgspec.structs.replace(entry, events=[*others, event])

    return change


def unreadable(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, fields=msgspec.Raw(b'{"loan":5}'))


def counted(number: int) -> Change:
    return lambda entry: msgspec.structs.replace(entry, counters={"loans.order": number})


def both(*changes: Change) -> Change:
    return lambda entry: functools.reduce(lambda so_far, change: change(so_far), changes, entry)


def quoted(price: int) -> Change:
    """Have the first quote say another price, in the command and in the slices."""

    def change(entry: Entry) -> Entry:
        fields = msgspec.json.decode(entry.fields)
        for level in fields["quotes"][0]["levels"]:
            level[1] = price * 10**24
        return asked(**fields)(entry)

    return change


def sized(quantity: str) -> Change:
    """Let the last slice sell this much, consistently."""

    def change(entry: Entry) -> Entry:
        amount = units(quantity)
        loan = next(msgspec.json.decode(r.body) for r in entry.records if r.kind == LOAN)
        parts = [msgspec.json.decode(r.body) for r in entry.records if r.kind == SLICE]
        loan["open"][-1][2] = amount
        loan["open"][-1][3] = amount * parts[-1]["price"] // 10**24
        entry = written(SLICE, len(parts) - 1, quantity=amount)(entry)
        return written(LOAN, open=loan["open"])(entry)

    return change


ANN, EVE = "user:ann:BESKAR", "user:eve:BESKAR"
NOW = 10**15

DAMAGE = [
    # applications
    ("apply", unreadable, "cannot be read"),
    ("apply", asked(amount="1001"), "written with amount"),
    ("apply", asked(amount="ten"), "cannot be read"),
    ("apply", asked(collateral="5"), "it moves nothing"),
    ("apply", asked(borrower="eve"), "written with borrower"),
    ("apply", also_moved, "it moves world:GC"),
    ("apply", written(LOAN, status="active"), "written with status"),
    ("apply", written(LOAN, balance=5), "written with balance"),
    ("apply", written(LOAN, applied_at=5), "written with applied_at"),
    ("apply", written(LOAN, previous=5), "written with previous"),
    ("apply", without("records"), "is not written"),
    ("apply", without("events"), "does not tell"),
    ("apply", answered(status="active"), "it answers"),
    ("apply", recorded(LOAN, version=2), "another version"),
    ("apply", recorded(LOAN, labels=("status:new",)), "not listed"),
    ("top-up", asked(loan="L9"), "is not there"),
    ("apply with collateral", asked(loan="L1"), "is there already"),
    ("apply with collateral", asked(collateral="41"), "it moves world:BESKAR"),
    ("apply with collateral", without("holds"), "it changes holds by []"),
    # collateral
    ("top-up", asked(amount="11"), "it moves world:BESKAR"),
    ("top-up", asked(borrower="eve"), "another than the borrower"),
    ("top-up", moved(0, credit_account=EVE), "to user:eve:BESKAR"),
    ("top-up", moved(0, debit_account="house:BESKAR"), "house:BESKAR to"),
    ("top-up", moved(0, amount=units("9")), "it moves"),
    ("top-up", held(account=EVE), "is not collateral"),
    ("top-up", held(owner="ledger"), "is not collateral"),
    ("top-up", held(expires_at=NOW * 9), "is not collateral"),
    ("top-up", held(remaining=units("39")), "it changes holds"),
    ("top-up", twice("holds"), "it changes holds"),
    ("top-up", written(LOAN, collateral=units("41")), "written with collateral"),
    ("top-up", written(LOAN, hold=77), "written with hold"),
    ("top-up", recorded(LOAN, marks=()), "not listed"),
    (
        "last fill",
        lambda entry: journal()[0][journal()[1]["top-up"] - 1][0],
        "a loan that is liquidating",
    ),
    # activation
    ("activate", quoted(49), "above a loan-to-value of 50"),
    ("activate", asked(quotes=[]), "nobody quotes"),
    ("activate", asked(fresh_until=5), "too old"),
    ("activate", asked(of_version=1), "on version 1"),
    ("activate", moved(0, amount=units("999")), "it moves house:GC"),
    ("activate", moved(0, credit_account="user:eve:GC"), "to user:eve:GC"),
    ("activate", without("transfers"), "it moves nothing"),
    ("activate", written(LOAN, balance=units("999")), "written with balance"),
    ("activate", written(LOAN, status="new"), "written with status"),
    ("activate", emitted(outstanding_balance="0"), "does not tell"),
    # warnings
    ("warn", quoted(36), "below 70 percent"),
    ("warn", also_moved, "it moves world:GC"),
    ("warn", written(LOAN, is_warned=False), "written with is_warned"),
    ("warn", without("events"), "does not tell"),
    ("rearm", quoted(41), "at 60 percent"),
    ("rearm", written(LOAN, is_warned=True), "written with is_warned"),
    # the pause, what was rejected
    ("pause", written("loans.controls", level="no_new"), "not written as"),
    ("pause", without("records"), "not written as"),
    ("pause", also_moved, "does something else"),
    ("reject", also_moved, "does something"),
    # beginning
    ("begin", quoted(32), "below a loan-to-value of 80"),
    ("begin", asked(of_version=1), "on version 1"),
    ("begin", asked(fresh_until=5), "too old"),
    ("begin", asked(life="second"), "written with request_id"),
    ("begin", written(LOAN, status="active"), "written with status"),
    ("begin", sized("33.33333335"), "33.33333334 is just enough"),
    ("begin", sized("33.33333333"), "33.33333334 is just enough"),
    ("begin", sized("40"), "is just enough"),
    ("begin", sized("33.333333345"), "is just enough"),
    ("begin", sized("0"), "is just enough"),
    ("begin", written(SLICE, market="black_spire"), "where it cannot be"),
    ("begin", written(SLICE, price=units("29")), "is priced at"),
    ("begin", written(SLICE, number=2), "written with number"),
    ("begin", written(SLICE, quotes=[]), "written with quotes"),
    ("begin", written(SLICE, hold=1), "written with hold"),
    ("begin", written(SLICE, state="failed"), "written with state"),
    ("begin", recorded(SLICE, labels=()), "not listed"),
    ("begin", recorded(SLICE, id="L1/000007"), "it writes loans.slice"),
    ("begin", written(LOAN, slices=0), "written with slices"),
    ("begin", written(LOAN, open=[]), "written with open"),
    ("begin", answered(placed=[]), "it answers"),
    ("begin", counted(7), "order 1 is counted as 7"),
    ("begin", emitted(status="active"), "does not tell"),
    ("begin", also_moved, "it moves"),
    # placing
    ("place", asked(of_version=1), "on version 1"),
    ("place", sized("30"), "is priced at"),
    ("place", twice("records"), "where it cannot be"),
    ("place", lambda e: msgspec.structs.replace(e, records=e.records[-1:]), "no slice is placed"),
    # fills
    ("fill", asked(total="901"), "it moves"),
    ("fill", asked(quantity="1"), "it moves"),
    ("fill", asked(number=1), "is not open"),
    ("fill", asked(order_id="x"), "written with detail"),
    ("fill", moved(0, credit_account="venue:mos_espa:BESKAR"), "it moves"),
    ("fill", moved(1, credit_account="user:ann:GC"), "it moves"),
    ("fill", moved(1, amount=units("899")), "it moves"),
    ("fill", held(remaining=5), "it changes holds"),
    ("fill", written(LOAN, balance=units("101")), "written with balance"),
    ("fill", written(LOAN, sold=0), "written with sold"),
    ("fill", written(LOAN, proceeds=0), "written with proceeds"),
    ("fill", written(SLICE, total=0), "written with total"),
    ("fill", written(SLICE, state="open"), "written with state"),
    ("fail", asked(reason="x"), "written with detail"),
    ("fail", asked(number=9), "is not open"),
    ("fail", also_moved, "it moves"),
    ("fail", written(LOAN, open=[[1, "mos_espa", 1, 1]]), "written with open"),
    # the end
    ("last fill", without("holds"), "it changes holds"),
    ("last fill", moved(2, credit_account="house:GC"), "it moves"),
    ("last fill", written(LOAN, status="liquidating"), "written with status"),
    ("last fill", written(LOAN, returned=0), "written with returned"),
    ("last fill", written(LOAN, surplus=0), "written with surplus"),
    ("last fill", emitted(collateral_sold="1"), "does not tell"),
    ("last fill", emitted(outstanding_balance="1"), "does not tell"),
    ("last fill", without("events"), "does not tell"),
    ("deficit", moved(-1, amount=units("1")), "it moves"),
    ("deficit", moved(-1, debit_account="suspense:GC"), "it moves"),
    ("deficit", moved(-1, debit_account="loan:L1:deficit:GC"), "it moves"),
    ("deficit", emitted(outstanding_balance="0"), "does not tell"),
    ("dust", answered(status="liquidating"), "it answers"),
    ("dust", without("holds"), "it changes holds"),
]


def test_law_holds():
    problem, at_end = told_after("dust", lambda entry: entry)
    assert (problem, at_end) == (None, [])


@pytest.mark.parametrize(("step", "change", "says"), DAMAGE)
def test_damage_is_found(step, change, says):
    problem, _ = told_after(step, change)
    assert problem is not None
    assert says in problem


def test_law_never_lets_a_loan_begin_again():
    """The beginning of a loan that has ended, and of one under way."""
    entries, steps = journal()
    law, book = LoansLaw(), Rebuilt(lambda _sequence, _problem: None, answers={})
    begin = entries[steps["begin"] - 1][0]
    for entry, time in entries:
        book.apply(entry, time)
        assert law.entry(entry, book) is None
        if entry.sequence == steps["begin"]:
            other = LoansLaw()
            other._lives = dict(law._lives)
            assert "of a loan that is liquidating" in other.entry(begin, book)
    assert "has ended" in law.entry(begin, book)
    top_up = asked(loan="L1")(entries[steps["top-up"] - 1][0])
    assert "has ended" in law.entry(top_up, book)


def test_law_holds_the_pause():
    entries, steps = journal()
    for level, step, says in (
        ("no_new", "begin", "while they are paused"),
        ("halt_new_and_activation", "activate", "while that is halted"),
    ):
        law, book = LoansLaw(), Rebuilt(lambda _sequence, _problem: None, answers={})
        for entry, time in entries:
            book.apply(entry, time)
            if entry.sequence == steps[step]:
                law._pause = level
                assert says in law.entry(entry, book)
                break
            law.entry(entry, book)


def test_law_compares_the_whole_book_at_its_end():
    entries, steps = journal()
    law, book = LoansLaw(), Rebuilt(lambda _sequence, _problem: None, answers={})
    for entry, time in entries[: steps["top-up"]]:
        book.apply(entry, time)
        law.entry(entry, book)
    assert list(law.end(book)) == []
    [hold] = book.open_holds.values()
    book.open_holds[hold.id] = msgspec.structs.replace(hold, remaining=5)
    book.open_holds[99] = msgspec.structs.replace(hold, id=99)
    book.counters["loans.order"] = 3
    law._moved["sold"] += 1
    said = [problem for _, problem in law.end(book)]
    assert [problem.split()[0] for problem in said] == ["the", "hold", "3", "the"]


def test_law_leaves_other_products_alone():
    entries, _ = journal()
    first = entries[0][0]
    assert first.product != "loans"
    assert LoansLaw().entry(first, Rebuilt(lambda _s, _p: None, answers={})) is None

"""`pennyweight replay`: decisions of a loan, decided again from the journal."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from loan_stage import Lending, at, quote
from pennyweight import assemble
from pennyweight.engine.engine import Abandon, MoveCursor
from pennyweight.engine.rebuild import known_commands
from pennyweight.engine.replay import read_command, replay
from pennyweight.ledger.entries import decode_entry
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.loans.apply import ApplyForLoan
from pennyweight.products.loans.liquidate import BeginLiquidation, FillSlice
from pennyweight.stores.places import read_place
from random_books import random_book
from scenarios import play

Cli = Callable[..., Any]


def live(stage: Lending) -> None:
    """A loan's whole life, with another's in between."""
    stage.apply("1000", "30")
    stage.apply("1000", "40", loan="L2", borrower="bob")
    stage.top_up("10")
    stage.activate("50")
    stage.activate("50", loan="L2")
    stage.warn("35")
    stage.rearm("45")
    stage.begin(*at("30"))
    stage.fail(1, "the order book\x1b[2J is on fire")
    stage.place(quote("29", market="black_spire"))
    stage.begin(*at("20"), loan="L2")
    stage.fill_as_quoted(2)


@pytest.fixture
def lent(tmp_path: Path) -> Path:
    store = assemble.open_store(tmp_path)
    try:
        live(Lending(store))
    finally:
        store.close()
    return tmp_path


LIFE = [
    "apply_for_loan", "top_up_collateral", "activate_loan", "warn_loan", "rearm_warning",
    "begin_liquidation", "fail_slice", "place_slices", "fill_slice",
]  # fmt: skip


def test_replay_loan_shows_every_decision_equal(lent: Path, cli: Cli) -> None:
    ran = cli("replay", "loan", "L1", "--data", lent)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0].split() == ["entry", "time", "decision", "best", "price", "LTV", "%", "again"]
    assert lines[-1] == "ok: 9 decisions of L1, all come out as they stand"
    assert len(lines) == 11
    assert re.search(r"activate_loan +50 +50\.0000 +equal$", lines[3])
    assert re.search(
        r"begin_liquidation +30 +83\.3334 +equal +slice 1: 33\.33333334 BESKAR at mos_espa for 30",
        lines[6],
    )
    assert "slice 1: the order book?[2J is on fire" in lines[7]
    assert re.search(r"fill_slice +- +- +equal +slice 2: 34\.4827\d+ BESKAR sold for", lines[9])


def test_replay_loan_as_json(lent: Path, cli: Cli) -> None:
    ran = cli("replay", "loan", "L1", "--store", f"sqlite:{lent}", "--json")
    assert ran.code == 0
    told = ran.json
    assert (told["loan"], told["ok"]) == ("L1", True)
    assert [decision["command"] for decision in told["decisions"]] == LIFE
    assert all(decision["equal"] and not decision["difference"] for decision in told["decisions"])
    begun = told["decisions"][5]
    assert (begun["price"], begun["ltv"], begun["status"]) == ("30", "83.3334", "liquidating")
    assert re.fullmatch(r"2023-11-14T22:13:20\.\d{6}Z", begun["time"])
    sequences = [decision["sequence"] for decision in told["decisions"]]
    assert sequences == sorted(sequences)


def test_replay_of_a_loan_under_way(lent: Path, cli: Cli) -> None:
    ran = cli("replay", "loan", "L2", "--data", lent, "--json")
    assert ran.code == 0
    assert ran.json["decisions"][-1]["status"] == "liquidating"


def test_replay_of_no_loan_and_of_no_book(lent: Path, tmp_path: Path, cli: Cli) -> None:
    ran = cli("replay", "loan", "L9", "--data", lent)
    assert (ran.code, ran.err) == (2, "pennyweight: there is no loan 'L9'\n")
    assert cli("replay", "loan", "L1", "--data", tmp_path / "none").code == 2


def damage(folder: Path, command: str, old: str, new: str) -> None:
    """Change the stored entry of a command of loan L1."""
    connection = apsw.Connection(str(folder / "main.sqlite"))
    rows = list(connection.execute("SELECT sequence, body FROM entries"))
    sequence, body = next(
        (sequence, bytes(body))
        for sequence, body in rows
        if f'"command":"{command}"'.encode() in bytes(body) and b'"loan":"L1"' in bytes(body)
    )
    changed = body.replace(old.encode(), new.encode())
    assert changed != body
    connection.execute("UPDATE entries SET body = ? WHERE sequence = ?", (changed, sequence))
    connection.close()


@pytest.mark.parametrize(
    ("command", "old", "new", "says"),
    [
        ("begin_liquidation", '"status":"liquidating","placed"', '"status":"active","placed"',
         "answer come out otherwise"),
        ("begin_liquidation", "[100,30000000", "[100,40000000", "it is refused: quotes_invalid"),
        ("warn_loan", '"of_version":3', '"of_version":2', "it is refused: loan_changed"),
        ("apply_for_loan", '"amount":"1000","coll', '"amount":5,"coll', "cannot be read"),
        ("apply_for_loan", '"command":"apply_for_loan"', '"command":"borrow"', "no command of"),
        ("rearm_warning", '"sequence"', ' "sequence"', "the bytes come out otherwise"),
    ],
)  # fmt: skip
def test_replay_tells_what_differs(
    lent: Path, cli: Cli, command: str, old: str, new: str, says: str
) -> None:
    damage(lent, command, old, new)
    ran = cli("replay", "loan", "L1", "--data", lent)
    assert ran.code == 1
    assert says in ran.out
    assert "DIFFERS" in ran.out
    assert re.search("WRONG: [12] of 9 decisions of L1 differ\n$", ran.out)
    assert cli("replay", "loan", "L1", "--data", lent, "--json").json["ok"] is False


def test_replay_of_rules_that_changed(
    lent: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a new version would decide otherwise, or where it breaks, is told."""

    def broken(self: Any, draft: Any) -> Any:
        raise ZeroDivisionError

    def strict(self: Any, draft: Any) -> Any:
        refuse(Reason.LOAN_NOT_DUE, "not any more")

    monkeypatch.setattr(BeginLiquidation, "decide", broken)
    monkeypatch.setattr(FillSlice, "decide", strict)
    told = cli("replay", "loan", "L1", "--data", lent, "--json").json["decisions"]
    differences = [decision["difference"] for decision in told if not decision["equal"]]
    assert differences == [
        "it fails: ZeroDivisionError()",
        "it is refused: loan_not_due, not any more",
    ]


def test_replay_of_a_journal_that_cannot_be_read(lent: Path, cli: Cli) -> None:
    connection = apsw.Connection(str(lent / "main.sqlite"))
    connection.execute("UPDATE entries SET body = x'02' WHERE sequence = 11")
    connection.close()
    ran = cli("replay", "loan", "L1", "--data", lent)
    assert ran.code == 1
    assert "the journal cannot be read" in ran.err


def test_replay_shows_progress_to_who_is_watching(
    lent: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("replay", "loan", "L1", "--data", lent).err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert "replaying" in cli("replay", "loan", "L1", "--data", lent).err


def test_replay_on_a_database(database: str, cli: Cli) -> None:
    with_book = database
    assert cli("keys", "create", "*", "--store", with_book).code == 0  # begins the book
    store = assemble.open_store(read_place(with_book))
    try:
        store.claim("test", "", 60_000_000)
        live(Lending(store))
        store.give_up("test")
    finally:
        store.close()
    ran = cli("replay", "loan", "L1", "--store", with_book)
    assert ran.code == 0, ran.out + ran.err
    assert "ok: 9 decisions" in ran.out


# ── any product ───────────────────────────────────────────────────────────────────


def test_replay_of_every_decision_of_a_random_book() -> None:
    """All verbs of the ledger, keys, abandoned ones, names, cursors, reversals."""
    store = random_book(7, batches=40).store
    commands = {(kind.product, kind.name): kind for kind in known_commands()}
    kinds = {"abandon": Abandon, "move_cursor": MoveCursor}
    for sequence in range(1, store.head().sequence + 1):
        entry = decode_entry(store.entry(sequence))
        kind = kinds.get(entry.command)
        if kind is not None:
            commands[entry.product, entry.command] = kind
    seen = 0
    until = store.head().sequence
    for decision in replay(store, commands, lambda _entry: True, until=until):
        seen += 1
        if decision.entry.command != "reserve":  # which decides by a field that does not count
            assert decision.is_equal, (decision.difference, decision.entry)
    assert seen == until


def test_replay_of_every_decision_on_withdrawals() -> None:
    """Holds by reference, ended ones, all holds of an account, records kept with a desk."""
    stage = play("""
        given
            user:ann:BTC        10
            user:ann:ETH        5
        when
            withdrawals.set_limits BTC 8 9
            withdrawals.withdraw ann BTC 4
            withdrawals.withdraw ann BTC 1 mine expires_in_seconds=60
            [c] withdrawals.cancel_withdrawal mine
            withdrawals.withdraw ann BTC 2 late expires_in_seconds=60
            wait 60
            withdrawals.expire_withdrawal 3
            withdrawals.settle ann ETH 3 BTC 3 w1
            withdrawals.settle ann ETH 1 BTC 1
            withdrawals.settle ann ETH 1 BTC 1 mine     -> withdrawal_cancelled
            withdrawals.withdraw ann BTC 2 more
            withdrawals.settle ann ETH 1 BTC 2
            withdrawals.set_mode halted
    """)
    commands = {(kind.product, kind.name): kind for kind in known_commands()}
    until = stage.store.head().sequence
    for decision in replay(stage.store, commands, lambda _entry: True, until=until):
        assert decision.is_equal, (decision.difference, decision.entry)


def test_read_command_leaves_hints_empty() -> None:
    stage = Lending()
    live(stage)
    entry = decode_entry(stage.store.entry(stage.store.head().sequence))
    command = read_command(FillSlice, entry)
    assert isinstance(command, FillSlice)
    assert (command.number, command.borrower, command.hold) == (2, "", 0)
    with pytest.raises(msgspec.DecodeError):
        read_command(ApplyForLoan, msgspec.structs.replace(entry, fields=msgspec.Raw(b"{}")))

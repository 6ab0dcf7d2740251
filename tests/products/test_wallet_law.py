"""The law that `verify` checks of the wallet: damage that the ledger's own laws cannot see."""

from collections.abc import Callable

import msgspec
import pytest

from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.verification import verify
from pennyweight.ledger.entries import Entry, Transfer, decode_entry
from pennyweight.products.wallet import WalletLaw
from scenarios import Stage, play

SCENARIO = """
    when
        wallet.create_user ann
        [b1] wallet.bet ann 10000 USD g none b1
        [b0] wallet.bet ann 0 USD g none b0
        [w1] wallet.win ann 20000 USD g none b1 w1
        [w2] wallet.win ann 5000 USD g none b0 w2
        [b2] wallet.bet ann 100000 USD g none b2
        [r1] wallet.rollback ann g none w1              # 0.15 of it is there, the rest is owed
        [r2] wallet.rollback ann g none w2              # all of it is owed
        [r3] wallet.rollback ann g none b1              # pays back what is owed
        [r4] wallet.rollback ann g none nothing
        transfer user:ann:USD world:USD USD 0.001       -> insufficient_funds
        [r5] wallet.rollback ann g none b2
        wallet.lock_user ann true
        place_hold user:ann:USD USD 0.5
        [w3] wallet.win ann 1 USD g none b0 w3
"""


class Book:
    """What a law looks at, as it stands after an entry."""

    def __init__(self, stage: Stage) -> None:
        self.accounts = {row.id: row for kind, row in stage.store.rows() if kind == "account"}
        self.assets = stage.book.engine.standing.assets


def test_law_holds():
    stage = play(SCENARIO)
    report = verify(stage.store, answers=answers_of(known_commands()), invariants=[WalletLaw()])
    assert report.ok, report.problems


def test_law_holds_for_a_closed_account():
    stage = play(
        """
        given
            user:ann:USD        0.1
        when
            [b1] wallet.bet ann 10000 USD g none b1
            [w1] wallet.win ann 100 USD g none b1 w1
            transfer user:ann:USD world:USD USD 0.001
            close_account user:ann:USD
            [r1] wallet.rollback ann g none w1
        """
    )
    report = verify(stage.store, answers=answers_of(known_commands()), invariants=[WalletLaw()])
    assert report.ok, report.problems


def judge(text: str, change: Callable[[Entry], Entry]) -> str | None:
    """Return what the law says of the last entry of a scenario, changed."""
    stage = play(text)
    body = stage.store.entry(stage.store.head().sequence)
    assert body is not None
    law, book = WalletLaw(), Book(stage)
    assert law.entry(decode_entry(body), book) is None
    return law.entry(change(decode_entry(body)), book)


def upto(key: str) -> str:
    """Return the scenario up to the command with this key."""
    lines = SCENARIO.splitlines()
    last = next(number for number, line in enumerate(lines) if f"[{key}]" in line)
    return "\n".join(lines[: last + 1])


def paid(debit: str, credit: str, amount: int = 10**17) -> Callable[[Entry], Entry]:
    """Put this transfer in the place of the entry's."""
    made = [Transfer(debit, credit, amount)]
    return lambda entry: msgspec.structs.replace(entry, transfers=made)


def told(**fields: object) -> Callable[[Entry], Entry]:
    """Change the answer."""

    def change(entry: Entry) -> Entry:
        answer = {**msgspec.json.decode(entry.answer), **fields}
        return msgspec.structs.replace(entry, answer=msgspec.Raw(msgspec.json.encode(answer)))

    return change


def unreadable(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, fields=msgspec.Raw(b'{"user":5}'))


ANN, STAKES, OWED = "user:ann:USD", "house:wallet:USD", "owed:user:ann:USD"


@pytest.mark.parametrize(
    ("key", "change", "problem"),
    [
        ("b1", told(balance=90_001), "a balance of 90001"),
        ("b1", told(currency="BTC"), "in BTC, which is not there"),
        ("b1", unreadable, "cannot be read"),
        ("b1", paid(ANN, STAKES, 1), "the bet of 10000 is not"),
        ("b1", paid(STAKES, ANN), "the bet of 10000 is not"),
        ("b1", paid(ANN, "world:USD"), "the bet of 10000 is not"),
        ("b0", paid(ANN, STAKES), "the bet of 0 is not"),
        ("w1", paid(STAKES, ANN), "the win of 20000 is not"),
        ("w1", paid(ANN, STAKES, 2 * 10**17), "the win of 20000 is not"),
        ("r1", paid("world:USD", ANN), "the rollback moves"),
        ("r3", paid(STAKES, "user:bob:USD"), "the rollback moves"),
        ("r4", paid(OWED, ANN), "the rollback moves"),
    ],
)
def test_damage_is_found(key, change, problem):
    found = judge(upto(key), change)
    assert found is not None
    assert problem in found


def test_other_entries_are_not_its_business():
    stage = play(SCENARIO)
    law, book = WalletLaw(), Book(stage)
    for _, body in stage.store.entries(0, 12):
        entry = decode_entry(body)
        if entry.command in {"create_user", "lock_user", "register_asset"}:
            assert law.entry(entry, book) is None
    assert not list(law.end(book))

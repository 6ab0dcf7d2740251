"""The law that `verify` checks of payments: damage that the ledger's own laws cannot see is found."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.verification import Report, verify
from pennyweight.ledger.entries import Entry, decode_entry
from pennyweight.products.payments import PaymentsLaw
from scenarios import Stage, play

SCENARIO = """
    given
        user:bob:USD        7
    when
        payments.open_payments_account a 100 1
        payments.open_payments_account b 0 1 bob
        payments.pay 1 2 5
        payments.pay_batch
            | 2 1 1
            | 1 2 2
        transfer account:1:USD user:bob:USD USD 3
        [given up] payments.pay 1 2 1000                -> insufficient_funds
        payments.open_payments_account c 0 1
        payments.delete_payments_account 3
"""


class Book:
    """What a law looks at, taken from a stage."""

    def __init__(self, stage: Stage) -> None:
        rows = list(stage.store.rows())
        self.accounts = {row.id: row for kind, row in rows if kind == "account"}
        self.assets = stage.book.engine.standing.assets
        self.counters = stage.store.head().counters


def prove(stage: Stage) -> Report:
    return verify(stage.store, answers=answers_of(known_commands()), invariants=[PaymentsLaw()])


def judge(stage: Stage, change: Callable[[Entry], Entry], book: Book | None = None) -> list[str]:
    """Return what the law says of the stage's entries, each changed."""
    law, book = PaymentsLaw(), book or Book(stage)
    entries = [change(decode_entry(body)) for _, body in stage.store.entries(0, 1_000)]
    problems = [problem for entry in entries if (problem := law.entry(entry, book))]
    return problems + [problem for _, problem in law.end(book)]


def test_law_holds():
    stage = play(SCENARIO)
    assert prove(stage).problems == []
    assert judge(stage, lambda entry: entry) == []


def test_law_holds_after_what_was_owed_is_paid_back():
    # A credit to a user who owes adds a transfer to the payment's entry.
    stage = play(SCENARIO)
    entries = (decode_entry(body) for _, body in stage.store.entries(0, 1_000))
    paid = next(entry for entry in entries if entry.command == "pay")
    paid_back = msgspec.structs.replace(
        paid.transfers[0], debit_account="user:bob:USD", credit_account="owed:user:bob:USD"
    )

    def change(entry: Entry) -> Entry:
        if entry.command != "pay":
            return entry
        return msgspec.structs.replace(entry, transfers=[*entry.transfers, paid_back])

    assert judge(stage, change) == []


def _of(command: str, /, **fields: Any) -> Callable[[Entry], Entry]:
    def change(entry: Entry) -> Entry:
        if entry.command != command:
            return entry
        changed = {
            name: value(getattr(entry, name)) if callable(value) else value
            for name, value in fields.items()
        }
        return msgspec.structs.replace(entry, **changed)

    return change


def _answer(**fields: Any) -> Callable[[msgspec.Raw], msgspec.Raw]:
    def change(answer: msgspec.Raw) -> msgspec.Raw:
        return msgspec.Raw(msgspec.json.encode({**msgspec.json.decode(answer), **fields}))

    return change


def _other(transfers: list[Any], **fields: Any) -> list[Any]:
    return [msgspec.structs.replace(transfers[0], **fields), *transfers[1:]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_of("pay", answer=_answer(amount="6")), "payment 1 is not the transfer that was made"),
        (_of("pay", answer=_answer(seller_account_id=3)), "payment 1 is not the transfer"),
        (_of("pay", answer=_answer(currency_id=2)), "payment 1 is not the transfer"),
        (_of("pay", answer=_answer(amount="six")), "cannot be read"),
        (_of("pay", answer=_answer(id="x")), "cannot be read"),
        (_of("pay", answer=_answer(id=7)), "payment 1 is numbered 7"),
        (_of("pay", transfers=[]), "it answers 1 payments, and made 0 transfers"),
        (_of("pay_batch", transfers=lambda made: made[:1]), "it answers 2 payments, and made 1"),
        (
            _of("pay_batch", transfers=lambda made: _other(made, debit_account="user:eve:USD")),
            "payment 2 is made from an account that is not there",
        ),
        (
            _of("pay_batch", transfers=lambda made: _other(made, credit_account="user:eve:USD")),
            "payment 2 is not the transfer",
        ),
        (_of("pay", command="paid"), "payment 1 is numbered 2"),
        (_of("pay_batch", command="paid"), "1 payments were made, 3 are counted"),
    ],
)
def test_law_broken(change: Callable[[Entry], Entry], problem: str):
    assert problem in judge(play(SCENARIO), change)[0]


def test_law_broken_by_an_account_that_stands_for_none():
    stage = play(SCENARIO)
    book = Book(stage)
    del book.accounts["account:1:USD"]
    assert judge(stage, lambda entry: entry, book)[0] == "payments account 1 stands for no account"

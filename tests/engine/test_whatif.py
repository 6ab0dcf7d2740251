"""What would be decided is what is decided next, and nothing of it is kept."""

import pytest

from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Receipt
from pennyweight.engine.whatif import WhatIf
from pennyweight.ledger.commands import Command
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.entries import decode_entry
from pennyweight.ledger.refusals import Refused
from pennyweight.products.general import (
    OpenAccount,
    PlaceHold,
    RegisterAsset,
    Reverse,
    SettleHold,
    Transfer,
)
from pennyweight.products.payments import OpenPaymentsAccount, Pay
from pennyweight.products.withdrawals.controls import SetLimits, SetMode
from pennyweight.products.withdrawals.settle import Settle
from pennyweight.products.withdrawals.withdraw import CancelWithdrawal, Withdraw
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

START = 1_760_000_000_000_000


@pytest.fixture
def book() -> InlineBook:
    store = MemoryStore(Head(book="main", incarnation="first"))
    book = InlineBook(open_engine(store, now=START), store, lambda: START)
    for command in (
        OpenAccount("user:1:BTC"),
        OpenAccount("user:1:USD"),
        Transfer("world:BTC", "user:1:BTC", "BTC", "100"),
        PlaceHold("user:1:BTC", "BTC", "1"),
        OpenPaymentsAccount("buyer", "10", 1),
        OpenPaymentsAccount("seller", "0", 1),
        SetLimits("BTC", "50", "60"),
        Withdraw("1", "BTC", "7", "mine"),
        Withdraw("1", "BTC", "2"),
    ):
        assert isinstance(book.execute(command), Receipt), command
    return book


def would_be(book: InlineBook, command: Command, now: int = START) -> object:
    """Return the answer or the reason that a command would get."""
    facts = WhatIf(book.store, book.engine.standing, now)
    try:
        return command.decide(Draft(facts, command.product))
    except Refused as refused:
        return refused.reason


@pytest.mark.parametrize(
    "command",
    [
        Transfer("user:1:BTC", "world:BTC", "BTC", "5"),
        Transfer("user:1:BTC", "world:BTC", "BTC", "95"),
        OpenAccount("user:1:BTC"),
        OpenAccount("user:2:BTC"),
        SettleHold(1, "1", "world:BTC"),
        SettleHold(9, "1", "world:BTC"),
        Reverse(3),
        Reverse(99),
        RegisterAsset("NEW", 2, 99),
        OpenPaymentsAccount("buyer", "10", 1),
        OpenPaymentsAccount("third", "10", 1),
        Pay(1, 2, "3"),
        Withdraw("1", "BTC", "7"),
        Withdraw("1", "BTC", "7", "mine"),
        Withdraw("1", "BTC", "51"),
        Withdraw("1", "BTC", "50", "other", 60),
        Withdraw("1", "USD", "1"),
        Withdraw("2", "BTC", "1"),
        Withdraw("1", "XYZ", "1"),
        CancelWithdrawal("mine"),
        CancelWithdrawal("w3"),
        Settle("1", "USD", "5", "BTC", "7"),
        Settle("1", "USD", "5", "BTC", "200"),
        SetMode("halted"),
        SetLimits("BTC", user="1", per_day="5"),
    ],
    ids=repr,
)
def test_what_would_be_decided_is_decided_next(book: InlineBook, command: Command) -> None:
    head, expected = book.store.head(), would_be(book, command)
    assert book.store.head() == head
    outcome = book.execute(command)
    assert expected == (outcome.answer if isinstance(outcome, Receipt) else outcome.reason)


def test_facts_are_those_of_the_store(book: InlineBook) -> None:
    book.execute_many([Submission(Transfer("user:1:BTC", "world:BTC", "BTC", "1"), key="k")])
    store, standing = book.store, book.engine.standing
    facts = WhatIf(store, standing, 0)
    head = store.head()
    assert (facts.time, facts.sequence) == (head.committed_at + 1, head.sequence + 1)
    assert WhatIf(store, standing, head.committed_at + 50).time == head.committed_at + 50
    body = store.entry(head.sequence)
    assert body is not None
    assert facts.entry(head.sequence) == facts.entry_of_key("ledger", "k") == decode_entry(body)
    assert facts.entry(head.sequence + 1) is None
    assert facts.entry_of_key("ledger", "other") is None
    assert facts.counter("hold") == 3
    assert facts.counter("nothing") == facts.cursor("nowhere") == 0
    assert facts.record_of_holder("house:withdrawals", "withdrawals.controls", "all") is not None
    assert facts.record_of_holder("user:1", "withdrawals.controls", "all") is None
    assert facts.record_of_holder("user:1", "withdrawals.controls", "none") is None


def test_asset_that_is_newer_than_the_standing_is_found(book: InlineBook) -> None:
    before = book.engine.standing
    book.execute(RegisterAsset("NEW", 2, 99))
    found = WhatIf(book.store, before, 0).asset("NEW")
    assert found is not None
    assert found.scale == 2
    assert WhatIf(book.store, before, 0).asset("OTHER") is None

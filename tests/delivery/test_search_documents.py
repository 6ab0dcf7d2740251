"""What can be searched for is what the journal says, under ids and versions that never change."""

import json
from collections.abc import Iterable
from typing import Any

import pytest

from pennyweight.delivery.indices import INDICES
from pennyweight.delivery.search import Documents, id_of
from pennyweight.engine.engine import MoveCursor, Submission
from pennyweight.engine.port import Head
from pennyweight.engine.receipts import Receipt
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import CorruptEntry, CursorMove
from pennyweight.links.search import ID_LENGTH_MAX, Document
from pennyweight.products.general import OpenAccount, PlaceHold, Transfer
from pennyweight.products.loans.apply import ApplyForLoan
from pennyweight.products.payments import OpenPaymentsAccount, Pay, PayBatch, PaymentItem
from pennyweight.products.portfolios.execute import ExecuteTransactions, Fill
from pennyweight.products.portfolios.queue import QueueUpdate, TakeUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import CreatePortfolio
from pennyweight.products.withdrawals.withdraw import CancelWithdrawal, Withdraw
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

START = 1_760_000_000_000_000
AT = "2025-10-09T08:53:20"


class Stage:
    def __init__(self) -> None:
        self.store = MemoryStore(Head(book="main", incarnation="first"))
        self._now = START
        self.book = InlineBook(open_engine(self.store, now=START), self.store, self._clock)
        self.make = Documents(
            lambda asset: self.book.engine.standing.assets[asset].scale, self.store
        )

    def _clock(self) -> int:
        self._now += 1
        return self._now

    def do(self, command: Command, *, key: str = "", cursor: CursorMove | None = None) -> int:
        (outcome,) = self.book.execute_many((Submission(command, key=key, cursor=cursor),))
        assert isinstance(outcome, Receipt), outcome
        return outcome.sequence

    def made(self, sequence: int, make: Documents | None = None) -> list[Document]:
        header, body = self.store.batch_at(sequence=sequence), self.store.entry(sequence)
        assert header is not None
        assert body is not None
        return list((make or self.make)(header, sequence, body))

    def sources(self, sequence: int, index: str) -> dict[str, Any]:
        return {
            document.id: json.loads(document.source)
            for document in self.made(sequence)
            if document.index == index
        }

    def deposit(self, user: str, asset: str, amount: str) -> int:
        self.do(OpenAccount(f"user:{user}:{asset}"))
        return self.do(Transfer(f"world:{asset}", f"user:{user}:{asset}", asset, amount))


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_entry_with_users_accounts_and_decimal_amounts(stage: Stage) -> None:
    stage.do(OpenAccount("user:a%3Ab:USD"))
    sequence = stage.do(
        Transfer("world:USD", "user:a%3Ab:USD", "USD", "100.000000000000000001"), key="k1"
    )
    (document,) = stage.made(sequence)
    assert (document.index, document.id, document.version) == (
        "entries",
        str(sequence),
        sequence,
    )
    source = json.loads(document.source)
    assert source.pop("committed_at").startswith(AT)
    assert source.pop("answer")
    assert source.pop("fields")["amount"] == "100.000000000000000001"
    assert source == {
        "sequence": sequence,
        "book": "main",
        "incarnation": "first",
        "product": "ledger",
        "command": "transfer",
        "key": "k1",
        "users": ["a:b"],
        "accounts": ["world:USD", "user:a%3Ab:USD"],
        "transfers": [
            {
                "debit_account": "world:USD",
                "credit_account": "user:a%3Ab:USD",
                "asset": "USD",
                "amount": "100.000000000000000001",
            }
        ],
    }


def test_entry_with_a_hold(stage: Stage) -> None:
    stage.deposit("7", "USD", "10")
    sequence = stage.do(PlaceHold("user:7:USD", "USD", "2.5"))
    (source,) = stage.sources(sequence, "entries").values()
    assert source["users"] == ["7"]
    (hold,) = source["holds"]
    assert hold["verb"] == "place"
    assert (hold["amount"], hold["remaining"], hold["state"]) == ("2.5", "2.5", "open")


def test_moves_of_cursors_are_no_documents(stage: Stage) -> None:
    assert stage.made(stage.do(MoveCursor("export:search", 0, 1))) == []


def test_entry_that_moves_a_cursor_on_the_way_is_one(stage: Stage) -> None:
    sequence = stage.do(OpenAccount("user:1:USD"), cursor=CursorMove("kafka:t:0", 0, 1))
    assert list(stage.sources(sequence, "entries")) == [str(sequence)]


def test_payments_under_the_ids_that_the_face_shows(stage: Stage) -> None:
    for name in ("a", "b"):
        stage.do(OpenPaymentsAccount(name, "100", 1))
    one = stage.do(Pay(1, 2, "1.25"))
    (payment,) = stage.sources(one, "payments").items()
    assert payment[0] == "1"
    assert payment[1].pop("committed_at").startswith(AT)
    assert payment[1] == {
        "payment_id": 1,
        "currency_id": 1,
        "asset": "USD",
        "amount": "1.25",
        "buyer_account_id": 1,
        "seller_account_id": 2,
        "sequence": one,
    }
    many = stage.do(PayBatch((PaymentItem(1, 2, "3"), PaymentItem(2, 1, "4"))))
    found = stage.sources(many, "payments")
    assert {name: source["amount"] for name, source in found.items()} == {"2": "3", "3": "4"}


def test_withdrawal_from_open_to_cancelled(stage: Stage) -> None:
    stage.deposit("7", "BTC", "10")
    placed = stage.do(Withdraw("7", "BTC", "2.5"))
    ((name, source),) = stage.sources(placed, "withdrawals").items()
    assert source["withdrawal_id"] == name
    assert (source["user_id"], source["token"]) == ("7", "BTC")
    assert (source["requested_quantity"], source["status"]) == ("2.5", "open")
    cancelled = stage.do(CancelWithdrawal(name))
    (document,) = [one for one in stage.made(cancelled) if one.index == "withdrawals"]
    assert (document.id, document.version) == (name, cancelled)
    source = json.loads(document.source)
    assert (source["status"], source["remaining"]) == ("cancelled", "0")
    assert source["ended_at"].startswith(AT)


def test_holds_of_others_are_no_withdrawals(stage: Stage) -> None:
    stage.deposit("7", "BTC", "10")
    assert stage.sources(stage.do(PlaceHold("user:7:BTC", "BTC", "1")), "withdrawals") == {}


def test_loan(stage: Stage) -> None:
    sequence = stage.do(ApplyForLoan("loan-1", "7", "1000", "2.5"))
    (source,) = stage.sources(sequence, "loans").values()
    assert (source["loan_id"], source["borrower_id"], source["status"]) == ("loan-1", "7", "new")
    assert (source["amount"], source["collateral"]) == ("1000", "2.5")
    assert source["applied_at"].startswith(AT)
    assert "activated_at" not in source


# ── portfolios ────────────────────────────────────────────────────────────────────


@pytest.fixture
def rebalanced(stage: Stage) -> int:
    """The seed's example."""
    stage.do(CreatePortfolio("1", {"stocks": "60", "bonds": "30", "gold": "10"}))
    return stage.do(Rebalance("1", {"stocks": "70", "bonds": "20", "gold": "10"}))


def test_transactions_of_the_seed_s_example(stage: Stage, rebalanced: int) -> None:
    found = stage.sources(rebalanced, "rebalance_transactions")
    assert list(found) == [f"{rebalanced}-1", f"{rebalanced}-2"]
    assert [
        (one["user_id"], one["action"], one["rebalance_percent"], one["asset"], one["status"])
        for one in found.values()
    ] == [("1", "SELL", 10, "stocks", "proposed"), ("1", "BUY", 10, "bonds", "proposed")]


def test_portfolio_under_its_user_s_id(stage: Stage, rebalanced: int) -> None:
    ((name, source),) = stage.sources(rebalanced, "portfolios").items()
    assert name == source["user_id"] == "1"
    assert source["allocation"] == {"stocks": 60, "bonds": 30, "gold": 10}
    assert source["current"] == {"stocks": 70, "bonds": 20, "gold": 10}
    assert {"asset": "stocks", "percent": 70} in source["current_shares"]
    assert source["last_run"] == source["sequence"] == rebalanced
    (entry,) = stage.sources(rebalanced, "entries").values()
    assert entry["users"] == ["1"]


def test_executed_transaction_is_the_whole_of_it_in_a_newer_version(
    stage: Stage, rebalanced: int
) -> None:
    (before, _) = stage.sources(rebalanced, "rebalance_transactions").values()
    sequence = stage.do(ExecuteTransactions("1", rebalanced, (Fill(1),)))
    (document,) = [one for one in stage.made(sequence) if one.index == "rebalance_transactions"]
    assert (document.id, document.version) == (f"{rebalanced}-1", sequence)
    source = json.loads(document.source)
    executed = source.pop("executed")
    assert executed["at"].startswith(AT)
    assert source == {**before, "status": "executed", "sequence": sequence}


def test_run_supersedes_what_is_open_of_the_one_before(stage: Stage, rebalanced: int) -> None:
    (_, before) = stage.sources(rebalanced, "rebalance_transactions").values()
    stage.do(ExecuteTransactions("1", rebalanced, (Fill(1),)))
    later = stage.do(Rebalance("1", {"stocks": "50", "bonds": "40", "gold": "10"}))
    found = stage.sources(later, "rebalance_transactions")
    assert list(found) == [f"{later}-1", f"{later}-2", f"{rebalanced}-2"]
    assert found[f"{rebalanced}-2"] == {**before, "status": "superseded", "sequence": later}
    last = stage.do(Rebalance("1", {"stocks": "60", "bonds": "30", "gold": "10"}))
    assert {name: one["status"] for name, one in _of(stage, last).items()} == {
        f"{later}-1": "superseded",
        f"{later}-2": "superseded",
    }
    assert _of(stage, stage.do(Rebalance("1", {"stocks": "61", "bonds": "29", "gold": "10"}))) != {}
    told = stage.do(ExecuteTransactions("1", later, (Fill(2),)))
    assert [one["status"] for one in _of(stage, told).values()] == ["executed"]


def _of(stage: Stage, sequence: int) -> dict[str, dict[str, Any]]:
    return stage.sources(sequence, "rebalance_transactions")


def test_repeat_makes_no_new_transactions(stage: Stage, rebalanced: int) -> None:
    again = stage.do(Rebalance("1", {"stocks": "70", "bonds": "20", "gold": "10"}))
    assert again > rebalanced
    assert stage.sources(again, "rebalance_transactions") == {}


def test_queued_update_makes_transactions_once_it_is_taken(stage: Stage) -> None:
    stage.do(CreatePortfolio("1", {"stocks": "60", "bonds": "40"}))
    queued = stage.do(QueueUpdate(Rebalance("1", {"stocks": "70", "bonds": "30"})))
    assert stage.sources(queued, "rebalance_transactions") == {}
    taken = stage.do(TakeUpdate(1, "1"))
    assert len(stage.sources(taken, "rebalance_transactions")) == 2


# ── all of them ───────────────────────────────────────────────────────────────────


def test_only_what_is_wanted(stage: Stage, rebalanced: int) -> None:
    make = Documents(lambda _: 0, stage.store, ["portfolios"])
    assert [one.index for one in stage.made(rebalanced, make)] == ["portfolios"]


def test_sources_have_no_newlines_and_fit_their_mappings(stage: Stage, rebalanced: int) -> None:
    stage.deposit("7", "BTC", "10")
    stage.do(Transfer("user:7:BTC", "world:BTC", "BTC", "1"), key="line\nbreak\u2028")
    stage.do(ApplyForLoan("loan-1", "7", "1000", "2.5"))
    last = stage.do(ExecuteTransactions("1", rebalanced, (Fill(2),)))
    for sequence in range(1, last + 1):
        for document in stage.made(sequence):
            assert b"\n" not in document.source
            mapped = INDICES[document.index]["mappings"]["properties"]
            assert set(_names(json.loads(document.source))) <= set(mapped), document


def _names(source: dict[str, Any]) -> Iterable[str]:
    return source


def test_ids_that_are_too_long_are_digests() -> None:
    assert id_of("w" * ID_LENGTH_MAX) == "w" * ID_LENGTH_MAX
    for name in ("w" * (ID_LENGTH_MAX + 1), "\u20ac" * 255):
        made = id_of(name)
        assert made.startswith("sha256:")
        assert made == id_of(name)


@pytest.mark.parametrize("body", [b"", b"\x02{}", b"\x01{", b"\x01{}"])
def test_entries_that_cannot_be_read_say_so(stage: Stage, body: bytes) -> None:
    header = stage.store.batch_at(sequence=1)
    assert header is not None
    with pytest.raises(CorruptEntry):
        stage.make(header, 1, body)

"""A book and a real OpenSearch: what is there is what the journal says, also after kill -9."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from opensearch import OpenSearch
from pennyweight.agents import agent as agent_module
from pennyweight.assemble import engine_on, open_store
from pennyweight.config import Config
from pennyweight.config import Search as Settings
from pennyweight.delivery import cli as cli_module
from pennyweight.delivery.indices import INDICES
from pennyweight.delivery.search import Documents
from pennyweight.engine.engine import Submission
from pennyweight.engine.receipts import Receipt
from pennyweight.ledger.commands import Command
from pennyweight.links.errors import LinkError
from pennyweight.links.search import Document, NameTaken, Search, Unfit
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.products.loans.apply import ApplyForLoan
from pennyweight.products.payments import OpenPaymentsAccount, Pay
from pennyweight.products.portfolios.execute import ExecuteTransactions, Fill
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import CreatePortfolio
from pennyweight.products.withdrawals.withdraw import CancelWithdrawal, Withdraw
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.searching import Ends, Export
from waiting import wait_for

pytestmark = pytest.mark.heavy

Cli = Callable[..., Any]

PATIENCE_SECONDS = 120.0
"""A real engine takes its time."""


class Rig:
    """A book on disk, and the indices of one prefix."""

    def __init__(self, place: Path, url: str, prefix: str) -> None:
        self.place = place
        self.prefix = prefix
        self.store = open_store(place)
        clock = ClockGuard()
        self.book = ThreadedBook(
            engine_on(self.store, Config(), clock, is_clock_accepted=False), self.store, clock
        )
        self.book.start()
        self.ends = Ends(Config(search=Settings(url=url, prefix=prefix, timeout_seconds=30.0)))
        self.export: Export | None = None
        self.link = Search(url, prefix=prefix)

    def begin(self) -> Export:
        (self.export,) = self.ends.of(self.book)
        self.export.start()
        return self.export

    def do(self, *commands: Command) -> int:
        """Do commands, and return the entry of the last one."""
        outcomes: list[Any] = []
        for command in commands:
            self.book.submit(Submission(command, ticket=outcomes.append))
        wait_for(lambda: len(outcomes) == len(commands), PATIENCE_SECONDS)
        assert not [outcome for outcome in outcomes if not isinstance(outcome, Receipt)]
        return max(outcome.sequence for outcome in outcomes)

    def wanted(self, index: str) -> dict[str, int]:
        """The ids and versions that the journal says an index should have."""
        make = Documents(lambda asset: self.book.standing.assets[asset].scale, self.store, [index])
        wanted: dict[str, int] = {}
        for sequence, body in self.store.entries(0, 1_000_000):
            header = self.store.batch_at(sequence=sequence)
            assert header is not None
            wanted.update({one.id: one.version for one in make(header, sequence, body)})
        return wanted

    def there(self, index: str) -> dict[str, int]:
        self.link.refresh(self.link.alias(index))
        query = {"size": 10_000, "version": True, "_source": False}
        return {
            hit["_id"]: hit["_version"] for hit in self.link.search(self.link.alias(index), query)
        }

    def find(self, index: str, query: dict[str, Any], sort: str = "sequence") -> list[Any]:
        self.link.refresh(self.link.alias(index))
        hits = self.link.search(
            self.link.alias(index), {"query": query, "sort": [sort], "size": 100}
        )
        return [hit["_source"] for hit in hits]

    def wait_for_all(self) -> None:
        assert self.export is not None
        last = self.store.head().sequence
        wait_for(lambda: self.export.exporter._position >= last, PATIENCE_SECONDS)

    def close(self) -> None:
        if self.export is not None:
            self.export.stop()
        self.link.close()
        self.book.stop(10)
        self.store.close()


@contextmanager
def rig_on(place: Path, engine: OpenSearch, prefix: str) -> Iterator[Rig]:
    with closing(Rig(place, engine.url, prefix)) as rig:
        yield rig


def test_everything_can_be_found(opensearch: OpenSearch, tmp_path: Path) -> None:
    with rig_on(tmp_path, opensearch, "all-") as rig:
        export = rig.begin()
        rig.do(CreatePortfolio("1", {"stocks": "60", "bonds": "30", "gold": "10"}))
        run = rig.do(Rebalance("1", {"stocks": "70", "bonds": "20", "gold": "10"}))
        rig.do(
            OpenAccount("user:7:USD"),
            Transfer("world:USD", "user:7:USD", "USD", "9999999999.000000000000000001"),
            Withdraw("7", "USD", "2.5", withdrawal_id="w-a"),
            CancelWithdrawal("w-a"),
            Withdraw("7", "USD", "3", withdrawal_id="\u20ac" * 255),
            ApplyForLoan("loan-1", "7", "1000", "2.5"),
            OpenPaymentsAccount("a", "100", 1),
            OpenPaymentsAccount("b", "100", 1),
            Pay(1, 2, "1.25"),
        )
        rig.wait_for_all()
        sold, bought = rig.find("rebalance_transactions", {"term": {"user_id": "1"}}, "position")
        assert [
            (one["action"], one["rebalance_percent"], one["asset"]) for one in (sold, bought)
        ] == [
            ("SELL", 10, "stocks"),
            ("BUY", 10, "bonds"),
        ]
        (portfolio,) = rig.find("portfolios", {"ids": {"values": ["1"]}})
        assert portfolio["allocation"] == {"stocks": 60, "bonds": 30, "gold": 10}
        over = {
            "bool": {
                "filter": [
                    {"term": {"current_shares.asset": "stocks"}},
                    {"range": {"drift_score": {"gte": 10}}},
                ]
            }
        }
        assert len(rig.find("portfolios", over)) == 1
        large = {"range": {"transfers.amount.number": {"gte": 1e9}}}
        (entry,) = rig.find("entries", large)
        assert entry["transfers"][0]["amount"] == "9999999999.000000000000000001"
        assert len(rig.find("entries", {"term": {"users": "7"}})) >= 5
        assert len(rig.find("entries", {"range": {"committed_at": {"gte": "now-1h"}}})) > 10
        (cancelled,) = rig.find("withdrawals", {"term": {"status": "cancelled"}})
        assert cancelled["withdrawal_id"] == "w-a"
        (loan,) = rig.find("loans", {"range": {"collateral.number": {"gt": 2.4, "lt": 2.6}}})
        assert loan["loan_id"] == "loan-1"
        (payment,) = rig.find("payments", {"term": {"amount": "1.25"}})
        assert payment["payment_id"] == 1
        rig.do(ExecuteTransactions("1", run, (Fill(1),)))
        rig.wait_for_all()
        (executed,) = rig.find("rebalance_transactions", {"term": {"status": "executed"}})
        assert executed["asset"] == "stocks"
        for index in INDICES:
            assert rig.there(index) == rig.wanted(index), index
        counts = export.exporter.counts
        assert (counts.rejected, counts.failed, counts.present) == (0, 0, 0)


def test_answers_mean_what_the_stub_says(opensearch: OpenSearch) -> None:
    """The cases that all else stands on, asked of the real one."""
    with Search(opensearch.url, prefix="told-") as link:
        assert link.place("entries") is None
        link.put_template("entries", INDICES["entries"])
        link.put_template("entries", INDICES["entries"])
        assert link.create("entries", meta={"lacks_until": 7}) == "told-entries-000001"
        assert link.create("entries") is None
        assert link.place("entries") == "told-entries-000001"
        assert link.meta("told-entries-000001") == {"lacks_until": 7}
        link.put_meta("told-entries-000001", {"lacks_until": 0})
        assert link.meta("told-entries-000001") == {"lacks_until": 0}
        assert link.newest("entries", ("sequence",)) is None
        documents = [
            Document("entries", str(n), n, b'{"sequence":%d,"book":"main"}' % n)
            for n in range(1, 51)
        ]
        assert link.bulk(documents).done == 50
        again = link.bulk(documents)
        assert (again.done, again.present) == (0, 50)
        assert link.newest("entries", ("sequence", "book")) == {"sequence": 50, "book": "main"}
        poison = [
            Document("entries", "x", 99, b'{"sequence":"many"}'),
            Document("entries", "y", 99, b'{"sequence":1'),
            Document("entries", "51", 51, b'{"sequence":51}'),
        ]
        with pytest.raises(Unfit, match="validation"):
            link.bulk([*poison, Document("entries", "z" * 513, 99, b"{}")])
        taken = link.bulk(poison)
        assert taken.done == 1
        assert [one.document.id for one in taken.rejected] == ["x", "y"]
        assert not taken.again
        with pytest.raises(LinkError, match="404 for told-others"):
            link.bulk([Document("others", "1", 1, b"{}")])
        link._do("PUT", "/told-plain", {})
        with pytest.raises(NameTaken, match="told-plain that is not ours"):
            link.place("plain")
        assert link.delete("told-plain")
        assert not link.delete("told-plain")


def test_killed_in_the_middle_and_back(
    opensearch: OpenSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "RETRY_SECONDS_MAX", 0.2)
    with rig_on(tmp_path, opensearch, "killed-") as rig:
        export = rig.begin()
        exporter = export.exporter
        rig.do(*(OpenAccount(f"user:{user}:USD") for user in range(1_500)))
        wait_for(lambda: exporter.counts.sent > 300, PATIENCE_SECONDS)
        opensearch.kill()
        try:
            rig.do(*(OpenAccount(f"user:{user}:EUR") for user in range(1_500)))
            wait_for(rig.ends.down, PATIENCE_SECONDS)
            assert exporter.lag > 0
        finally:
            opensearch.start()
        rig.wait_for_all()
        assert rig.there("entries") == rig.wanted("entries")
        assert rig.ends.down() == {}
        assert exporter.counts.rejected == 0


def test_reindex_beside_a_served_book(
    opensearch: OpenSearch, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ("reindex", "reindex:reindex", "Make search indices anew from the journal.")
    others = [one for one in cli_module._VERBS if one[0] != "reindex"]
    monkeypatch.setattr(cli_module, "_VERBS", (*others, line))
    words = ("reindex", "--data", tmp_path, "--url", opensearch.url, "--prefix", "again-")
    with rig_on(tmp_path, opensearch, "again-") as rig:
        rig.begin()
        rig.do(*(OpenAccount(f"user:{user}:USD") for user in range(500)))
        rig.wait_for_all()
        rig.link.delete("again-entries-000001")
        rig.do(OpenAccount("user:500:USD"))
        wait_for(lambda: rig.link.place("entries") is not None, PATIENCE_SECONDS)
        rig.wait_for_all()
        assert rig.there("entries") == rig.wanted("entries")
        ran = cli(*words, "--index", "entries", "--index", "portfolios", "--json")
        assert ran.code == 0, ran.err
        assert json.loads(ran.out)["indices"]["entries"]["index"] == "again-entries-000002"
        assert rig.link.place("entries") == "again-entries-000002"
        assert rig.link.place("loans") == "again-loans-000001"
        rig.do(OpenAccount("user:501:USD"))
        rig.wait_for_all()
        assert rig.there("entries") == rig.wanted("entries")

"""What exports the documents of a served book, put together: when, how much, and what is told of it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pennyweight import searching as searching_module
from pennyweight.assemble import answers, engine_on, open_store
from pennyweight.config import Cache, Config, ConfigError, Search
from pennyweight.engine.engine import Submission
from pennyweight.engine.verification import verify
from pennyweight.products.general import OpenAccount
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.searching import Ends, page_of, users_reserved
from pennyweight.simulators.searchstub import SearchStub
from waiting import wait_for


@pytest.fixture
def stub() -> Iterator[SearchStub]:
    with SearchStub() as stub:
        yield stub


def config_of(url: str, **settings: Any) -> Config:
    return Config(search=Search(url=url, timeout_seconds=20.0, **settings))


@pytest.fixture
def book(tmp_path: Path) -> Iterator[ThreadedBook]:
    store = open_store(tmp_path)
    clock = ClockGuard()
    book = ThreadedBook(engine_on(store, Config(), clock, is_clock_accepted=False), store, clock)
    book.start()
    yield book
    book.stop(10)
    store.close()


def figures(ends: Ends) -> dict[str, float]:
    return {
        sample.name + "".join(f":{value}" for value in sample.labels.values()): sample.value
        for metric in ends.metrics()
        for sample in metric.samples
    }


def test_nothing_is_exported_where_no_engine_is_configured(book: ThreadedBook) -> None:
    ends = Ends(Config())
    assert ends.of(book) == []
    assert ends.down() == {}
    assert figures(ends) == {}
    assert users_reserved(Config()) == 0


def test_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(ConfigError, match=r"search\.url is set, but .*pennyweight\[search\]"):
        Ends(config_of("http://127.0.0.1:9200"))


def test_book_is_exported_and_counted(book: ThreadedBook, stub: SearchStub) -> None:
    ends = Ends(config_of(stub.url, prefix="pw-"))
    (export,) = ends.of(book)
    export.start()
    book.submit(Submission(OpenAccount("user:7:USD")))
    wait_for(lambda: any(one["users"] == ["7"] for one in sources(stub)))
    wait_for(lambda: figures(ends)["pennyweight_search_lag_entries"] == 0)
    told = figures(ends)
    assert told["pennyweight_search_documents_total:sent"] == len(sources(stub))
    assert told["pennyweight_search_documents_total:rejected"] == 0
    assert told["pennyweight_search_bulks_total"] >= 1
    assert told["pennyweight_search_down"] == 0
    assert ends.down() == {}
    export.stop()
    assert figures(ends) == {}
    assert verify(book.store, answers=answers()).ok


def sources(stub: SearchStub) -> list[dict[str, Any]]:
    found = stub.engine.documents("pw-entries").values()
    return [{"users": [], **one} for one in found]


def test_engine_that_is_away_is_told(book: ThreadedBook, stub: SearchStub) -> None:
    stub.down()
    ends = Ends(config_of(stub.url))
    (export,) = ends.of(book)
    export.start()
    wait_for(ends.down)
    assert "127.0.0.1" in ends.down()["search"]
    assert figures(ends)["pennyweight_search_down"] == 1
    assert figures(ends)["pennyweight_search_lag_entries"] > 0
    export.stop()
    assert ends.down() == {}


def test_engine_that_hangs_does_not_hold_the_end_up(
    book: ThreadedBook, stub: SearchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching_module, "END_SECONDS", 0.2)
    stub.faults.is_hanging = True
    ends = Ends(config_of(stub.url))
    (export,) = ends.of(book)
    export.start()
    wait_for(lambda: stub.bulk_bytes)
    export.stop()
    assert export.exporter._thread.is_alive()
    assert ends.down() == {}
    stub.faults.is_hanging = False
    export.exporter.stop()


@pytest.mark.parametrize(
    ("users_max", "page"), [(130, 16), (1_000, 25), (10_000, 250), (10**6, 250)]
)
def test_memory_is_a_part_of_the_bound_on_users(users_max: int, page: int) -> None:
    config = msgspec.structs.replace(
        config_of("http://127.0.0.1:9200"), cache=Cache(users_max=users_max)
    )
    assert page_of(config) == page
    assert users_reserved(config) == 2 * page

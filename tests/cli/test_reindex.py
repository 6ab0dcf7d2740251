"""`pennyweight reindex`: what can be searched for, made anew from the journal."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pennyweight.assemble import open_inline, open_reader
from pennyweight.config import Config
from pennyweight.delivery.indices import INDICES
from pennyweight.delivery.search import Documents
from pennyweight.links.errors import LinkError
from pennyweight.links.search import Search
from pennyweight.products.general import Transfer
from pennyweight.runtime.opening import assets_of
from pennyweight.simulators.searchstub import SearchStub

Cli = Callable[..., Any]


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """No search engine but the one that a test names."""
    for name in ("ELASTICSEARCH_URL", "PENNYWEIGHT_SEARCH_URL", "PENNYWEIGHT_SEARCH_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stub() -> Iterator[SearchStub]:
    with SearchStub() as stub:
        yield stub


def journal(book: Path, *, index: str) -> dict[str, int]:
    """The ids and versions that the journal says an index should have."""
    store = open_reader(book)
    try:
        assets = assets_of(store)
        make = Documents(lambda asset: assets[asset].scale, store, [index])
        wanted = {}
        for sequence, body in store.entries(0, 100_000):
            header = store.batch_at(sequence=sequence)
            assert header is not None
            wanted.update({one.id: one.version for one in make(header, sequence, body)})
        return wanted
    finally:
        store.close()


def test_indices_that_were_not_there(cli: Cli, book: Path, stub: SearchStub) -> None:
    ran = cli("reindex", "--data", book, "--url", stub.url, "--json")
    assert ran.code == 0, ran.err
    assert set(ran.json["indices"]) == set(INDICES)
    assert ran.json["indices"]["entries"] == {
        "index": "entries-000001",
        "documents": len(journal(book, index="entries")),
        "before": None,
        "is_kept": False,
    }
    assert stub.engine.versions("entries") == journal(book, index="entries")
    assert set(stub.engine.aliases) == set(INDICES)


def test_old_index_is_replaced_and_deleted(cli: Cli, book: Path, stub: SearchStub) -> None:
    assert cli("reindex", "--data", book, "--url", stub.url).code == 0
    stub.engine.indices["entries-000001"].documents["999"] = (
        999,
        b'{"sequence":999,"book":"main","incarnation":"a lost life"}',
    )
    ran = cli("reindex", "--data", book, "--url", stub.url, "--index", "entries")
    assert ran.code == 0, ran.err
    assert "entries: " in ran.out
    assert "entries-000001 is deleted" in ran.out
    assert "entries-000001" not in stub.engine.indices
    assert stub.engine.aliases["entries"] == {"entries-000002": True}
    assert stub.engine.versions("entries") == journal(book, index="entries")
    assert stub.engine.aliases["loans"] == {"loans-000001": True}


def test_documents_of_another_book_are_left_alone(
    cli: Cli, book: Path, users: Path, tmp_path: Path, stub: SearchStub
) -> None:
    """Two books of one name, as folders have them, under one prefix."""
    assert cli("reindex", "--data", book, "--url", stub.url).code == 0
    before = stub.engine.versions("entries")
    assert cli("load", users, "--data", tmp_path / "other").code == 0
    words = ("reindex", "--data", tmp_path / "other", "--url", stub.url)
    for more in ((), ("--index", "portfolios"), ("--again",)):
        ran = cli(*words, *more)
        assert ran.code == 1
        assert "has entry 1 of book main (life " in ran.err
        assert "this book does not have it: give each book a --prefix of its own" in ran.err
        assert stub.engine.versions("entries") == before
        assert len(stub.engine.indices) == len(INDICES)
    assert cli(*words, "--prefix", "other-").code == 0
    assert stub.engine.versions("entries") == before


def test_old_index_is_kept_if_so_asked(cli: Cli, book: Path, stub: SearchStub) -> None:
    words = ("reindex", "--data", book, "--url", stub.url, "--index", "entries", "--prefix", "pw-")
    assert cli(*words).code == 0
    ran = cli(*words, "--keep-old")
    assert "pw-entries-000001 stays" in ran.out
    assert set(stub.engine.indices) == {"pw-entries-000001", "pw-entries-000002"}
    assert stub.engine.aliases["pw-entries"] == {"pw-entries-000002": True}


def test_what_came_meanwhile_is_there(
    cli: Cli, book: Path, stub: SearchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry comes just before the switch, and its document went into the old index."""
    switch = Search.switch

    def late(link: Search, changes: list[Any]) -> None:
        with open_inline(book, Config()) as opened:
            opened.execute(Transfer("world:USD", "user:100:USD", "USD", "1"))
        switch(link, changes)

    monkeypatch.setattr(Search, "switch", late)
    ran = cli("reindex", "--data", book, "--url", stub.url, "--index", "entries")
    assert ran.code == 0, ran.err
    assert stub.engine.versions("entries") == journal(book, index="entries")


def test_one_that_broke_off_leaves_all_as_it_was(
    cli: Cli, book: Path, stub: SearchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("reindex", "--data", book, "--url", stub.url, "--index", "entries")
    assert cli(*words).code == 0
    stub.faults.statuses.append(500)
    ran = cli(*words)
    assert ran.code == 1
    assert "answers 500" in ran.err
    assert "the old indices are as they were" in ran.err
    assert set(stub.engine.indices) == {"entries-000001"}


def test_one_that_breaks_right_before_the_switch_leaves_all_as_it_was(
    cli: Cli, book: Path, stub: SearchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("reindex", "--data", book, "--url", stub.url, "--index", "entries")
    assert cli(*words).code == 0

    def broken(*_: object) -> None:
        raise LinkError("it has just gone")

    monkeypatch.setattr(Search, "put_meta", broken)
    ran = cli(*words)
    assert ran.code == 1
    assert "it has just gone; the old indices are as they were" in ran.err
    assert set(stub.engine.indices) == {"entries-000001"}


def test_what_a_killed_one_left_is_named_and_deleted_again(
    cli: Cli, book: Path, stub: SearchStub
) -> None:
    words = ("reindex", "--data", book, "--url", stub.url, "--index", "entries")
    assert cli(*words).code == 0
    stub.engine._create("entries-000002", {})
    ran = cli(*words)
    assert ran.code == 1
    assert "entries-000002 is there already" in ran.err
    assert "--again" in ran.err
    assert set(stub.engine.indices) == {"entries-000001", "entries-000002"}
    assert cli(*words, "--again").code == 0
    assert stub.engine.versions("entries") == journal(book, index="entries")


def test_engine_that_is_away(cli: Cli, book: Path, stub: SearchStub) -> None:
    stub.down()
    ran = cli("reindex", "--data", book, "--url", stub.url)
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "refused" in ran.err.lower()
    assert stub.url.removeprefix("http://") in ran.err


def test_engine_that_fails_after_the_switch(
    cli: Cli, book: Path, stub: SearchStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = Search.switch

    def last(link: Search, changes: list[Any]) -> None:
        switch(link, changes)
        stub.down()

    monkeypatch.setattr(Search, "switch", last)
    ran = cli("reindex", "--data", book, "--url", stub.url, "--index", "entries")
    assert ran.code == 1
    assert "run it once more" in ran.err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ((), "give --url"),
        (("--url", "ftp://x"), "search.url is 'ftp://x'"),
        (("--url", "http://127.0.0.1:1", "--index", "nothing"), "there is no index 'nothing'"),
        (("--url", "http://127.0.0.1:1", "--prefix", "A"), "search.prefix is 'A'"),
    ],
)
def test_wrong_usage(cli: Cli, book: Path, words: tuple[str, ...], problem: str) -> None:
    ran = cli("reindex", "--data", book, *words)
    assert ran.code == 2
    assert problem in ran.err
    assert ran.err.count("\n") == 1


def test_no_book(cli: Cli, tmp_path: Path, stub: SearchStub) -> None:
    ran = cli("reindex", "--data", tmp_path / "none", "--url", stub.url)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert stub.engine.indices == {}


def test_help_names_an_example(cli: Cli) -> None:
    ran = cli("reindex", "--help")
    assert ran.code == 0
    assert "--index" in ran.out
    assert "pennyweight reindex --data book" in ran.out

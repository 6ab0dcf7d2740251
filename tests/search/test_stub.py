"""The stub of a search engine: in a process of its own, and true where tests lean on it."""

import msgspec
import urllib3

from pennyweight.links.search import Document, Search
from pennyweight.simulators.searchstub import COUNTED, SearchStub, StubProcess


def test_one_that_counts_in_a_process_of_its_own() -> None:
    with StubProcess() as stub, Search(stub.url, timeout_seconds=10) as link:
        documents = [Document("things", str(number), number, b"{}") for number in range(1, 8)]
        assert link.bulk(documents).done == 7
        assert link.bulk(documents).done == 7
        answer = urllib3.request("GET", f"{stub.url}{COUNTED}")
        assert msgspec.json.decode(answer.data) == 14


def test_one_that_keeps_in_a_process_of_its_own() -> None:
    with (
        StubProcess(is_counting_only=False) as stub,
        Search(stub.url, timeout_seconds=10) as link,
    ):
        link.create("things")
        documents = [Document("things", "1", 1, b"{}")]
        assert [link.bulk(documents).done, link.bulk(documents).present] == [1, 1]


def test_documents_stay_while_it_is_away() -> None:
    with SearchStub() as stub, Search(stub.url, timeout_seconds=10) as link:
        link.create("things")
        link.bulk([Document("things", "1", 1, b'{"sequence":1,"tags":["a","b"]}')])
        stub.down()
        stub.up()
        assert link.count("things") == 1
        assert len(link.search("things", {"query": {"term": {"tags": "b"}}})) == 1
        assert not link.search("things", {"query": {"term": {"tags": "c"}}})

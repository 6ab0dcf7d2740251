"""The ends of streams in a process that owns the book for a while."""

import pytest

from pennyweight.config import Kafka
from pennyweight.engine.port import Head
from pennyweight.runtime.clock import ClockGuard
from pennyweight.runtime.driver import ThreadedBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore
from pennyweight.streams import Ends

pytest.importorskip("confluent_kafka")


def test_nothing_is_told_of_ends_after_their_ownership() -> None:
    store, clock = MemoryStore(Head(book="main", incarnation="first")), ClockGuard()
    book = ThreadedBook(open_engine(store, now=clock.now()), store, clock)
    ends = Ends(Kafka(broker="127.0.0.1:1"))
    assert (ends.down(), list(ends.metrics())) == ({}, [])
    (streams,) = ends.of(book)
    assert list(ends.down()) == ["kafka messages"]
    assert list(ends.metrics())
    streams.stop()
    assert (ends.down(), list(ends.metrics())) == ({}, [])
    ends.of(book)
    assert ends.down()

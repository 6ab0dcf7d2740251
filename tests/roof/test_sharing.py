"""Who may share a book: instances with one secret."""

import socket

import msgspec
import pytest

from pennyweight.config import Cluster, Config, ConfigError
from pennyweight.engine.port import Head
from pennyweight.sharing import FORGOTTEN_MICROSECONDS, check_cluster, check_secret, secret_of
from pennyweight.stores.memory import MemoryStore


class Rig:
    def __init__(self) -> None:
        self.now = FORGOTTEN_MICROSECONDS * 10
        self.store = MemoryStore(Head(book="main", incarnation="first"), clock=lambda: self.now)

    def begin(self, secret: str) -> None:
        """Begin an instance with this secret, "" for the one in the book."""
        config = Config(cluster=Cluster(secret=secret))
        check_secret(self.store, config, secret_of(self.store, config))


def test_instances_without_a_secret_share_the_books():
    rig = Rig()
    rig.begin("")
    rig.store.claim("one", "here:1", 3_000_000)
    rig.begin("")


def test_instance_with_another_secret_does_not_begin():
    rig = Rig()
    rig.begin("the right secret")
    rig.begin("another, before anybody served")
    rig.store.claim("one", "here:1", 3_000_000)
    for wrong in ("the right secret", ""):
        with pytest.raises(ConfigError, match="here:1"):
            rig.begin(wrong)
    rig.begin("another, before anybody served")


def test_secret_may_change_when_nobody_serves():
    rig = Rig()
    rig.begin("the first secret")
    rig.store.claim("one", "here:1", 3_000_000)
    rig.now += 4_000_000
    with pytest.raises(ConfigError):
        rig.begin("the second secret")  # its owner has just fallen: another may follow
    rig.now += FORGOTTEN_MICROSECONDS
    rig.begin("the second secret")
    rig.store.claim("two", "here:2", 3_000_000)
    rig.store.give_up("two")
    rig.begin("the third secret")


def test_secret_itself_is_not_in_the_book():
    rig = Rig()
    rig.begin("the right secret")
    assert "the right secret" not in str(msgspec.json.encode(rig.store._stage))


def test_address_that_is_taken_is_told_before_anything_begins():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"cannot listen on {address}: Address already"):
            check_cluster(Config(cluster=Cluster(listen=address)))
    check_cluster(Config(cluster=Cluster(listen=address)))

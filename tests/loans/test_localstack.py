"""The seed's story once more on LocalStack, which the seed names; it keeps no order of messages."""

import json
from contextlib import closing
from pathlib import Path

import pytest

from loans.localstack import running
from loans.world import (
    STORMY,
    alone,
    check_notice,
    check_sales,
    entries_in,
    loans_in,
    pennyweight,
    slices_in,
    wait_for,
)
from pennyweight.assemble import open_reader

pytestmark = pytest.mark.heavy

NAMES = ["din", "boba", "grogu"]


def test_a_loan_from_application_to_notice(tmp_path: Path) -> None:
    """Prices and notices cross another emulator's SNS and SQS; what comes of it is the same."""
    book = tmp_path / "book"
    book.mkdir()
    with running(tmp_path) as endpoint, alone(book, endpoint) as world:
        bank = world.bank
        world.price("50")
        for name in NAMES:
            bank.lend(name, collateral="39")
            assert bank.status(name) == "new"
            assert bank.top_up(name, "3", f"more {name}").status == 202
        for name in NAMES:
            bank.becomes(name, "active")
        world.streams.say("mos_espa", "no price")
        world.moods(STORMY)
        world.price("34")
        wait_for(lambda: all("warned" in bank.history(name) for name in NAMES))
        world.price("29")
        for name in NAMES:
            bank.becomes(name, "liquidated")
            assert bank.proof(name)["is_minimal"]
        assert bank.top_up("din", "1", "late").code == "loan_liquidated"
        wait_for(lambda: len(world.branch.listen()) >= len(NAMES))
        notices = {notice["loanId"]: notice for notice in world.branch.listen()}
        assert sorted(notices) == sorted(NAMES)
        assert len(world.branch.bodies) == len(NAMES)
        with closing(open_reader(book)) as store:
            loans, commands = loans_in(store), {entry.command for entry in entries_in(store)}
            check_sales(slices_in(store), world.posts)
        assert "reject_price" in commands
        for name in NAMES:
            check_notice(notices[name], name, loans[name])
        assert "down" not in bank.client.get("/readyz")
        assert json.loads(pennyweight("verify", "--data", book, "--json"))["ok"]

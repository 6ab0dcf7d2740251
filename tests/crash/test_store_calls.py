"""kill -9 before and after every call of the store, and at every SQL statement of the writer.

After each crash the book opens and is proven; what was told is there, what was not told is
there once or not at all; and asking again for everything under the same keys ends in the
very book that was never killed.
"""

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from crash.killer import WORKLOAD, key, open_book, work
from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.engine.verification import check_tail, verify
from pennyweight.ledger.entries import decode_entry
from pennyweight.stores.sqlite import SQLiteStore
from scenarios import check_invariants, snapshot

ANSWERS = answers_of(known_commands())
KILLER = Path(__file__).with_name("killer.py")
KEYS = [key(number, place) for number, batch in enumerate(WORKLOAD) for place in range(len(batch))]


def told(folder):
    """Return what the killed process had been told, by key."""
    acks = folder / "acks"
    lines = acks.read_text().splitlines() if acks.exists() else []
    return {k: v for line in lines for k, v in json.loads(line).items()}


def keys_in_journal(store):
    entries = [decode_entry(body) for _, body in store.entries(0, 10_000)]
    return [(entry.key, entry.sequence) for entry in entries if entry.key]


def proven(store):
    assert check_tail(store) is None
    report = verify(store, answers=ANSWERS)
    assert report.ok, report.problems
    check_invariants(store)
    return report


def check_crashed(folder, whole_digest):
    store = SQLiteStore.open(folder, new_incarnation="first")
    try:
        proven(store)
        acknowledged = told(folder)
        found = keys_in_journal(store)
        assert len(found) == len(dict(found))
        for name, answer in acknowledged.items():
            if isinstance(answer, int):
                assert dict(found)[name] == answer
            else:
                assert name not in dict(found)
        unacknowledged = [name for name, _ in found if name not in acknowledged]
        # At most the batch that was being committed when the process died.
        assert len({name.partition(".")[0] for name in unacknowledged}) <= 1

        outcomes = list(chain.from_iterable(work(open_book(store, folder), folder)))
        for name, outcome in zip(KEYS, outcomes, strict=True):
            if isinstance(outcome, Refusal):
                assert acknowledged.get(name, outcome.reason.code) == outcome.reason.code
                continue
            assert isinstance(outcome, Receipt)
            assert outcome.is_replayed == (name in dict(found))
            assert acknowledged.get(name, outcome.sequence) == outcome.sequence
        assert proven(store).state_digest == whole_digest
        return len(unacknowledged)
    finally:
        store.close()


def crash(folder, what, first=1, step=1):
    subprocess.run(
        [sys.executable, str(KILLER), str(folder), what, str(first), str(step)],
        check=True,
        env={**os.environ, "PYTHONPATH": str(KILLER.parents[1])},
    )
    whole = SQLiteStore.open(folder / "whole", new_incarnation="first")
    report = proven(whole)
    rows = snapshot(whole)
    whole.close()
    crashed = sorted(place for place in folder.iterdir() if place.name != "whole")
    found = [check_crashed(place, report.state_digest) for place in crashed]
    again = SQLiteStore.open(folder / "whole", new_incarnation="first")
    assert snapshot(again) == rows
    again.close()
    return crashed, found


def test_kill_at_every_store_call(tmp_path):
    crashed, found = crash(tmp_path, "calls")
    assert len(crashed) > 4 * len(WORKLOAD)
    # Among the moments are some after the commit and before the answer.
    assert sum(map(bool, found)) >= len(WORKLOAD) - 1


def test_kill_at_some_statements(tmp_path):
    crashed, _ = crash(tmp_path, "statements", first=3, step=17)
    assert len(crashed) >= 8


@pytest.mark.heavy
def test_kill_at_every_statement(tmp_path):
    crashed, _ = crash(tmp_path, "statements")
    assert len(crashed) > 150

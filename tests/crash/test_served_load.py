"""kill -9 of a served book under load, at random times, again and again.

After each restart every acknowledged entry is there once and answers its key as it did;
what was not acknowledged is there once or not at all, and `verify` is green.
"""

import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from crash.client import USERS, post
from pennyweight.ledger.entries import decode_entry
from pennyweight.stores.sqlite import SQLiteStore
from served_process import serving

CLIENT = Path(__file__).with_name("client.py")


def connect(server):
    port = int(server.address.rpartition(":")[2])
    return http.client.HTTPConnection("127.0.0.1", port, timeout=30)


def fund(server):
    connection = connect(server)
    for n in range(USERS):
        account = f"user:{n}:USD"
        assert post(connection, "/v1/accounts", {"id": account}, f"open {n}")[0] == 201
        body = {
            "debit_account": "world:USD",
            "credit_account": account,
            "asset": "USD",
            "amount": "100",
        }
        assert post(connection, "/v1/transfers", body, f"fund {n}")[0] == 201
    connection.close()


def load_until_killed(server, file, number, seconds):
    """Let a client process pay, and kill the server in the middle."""
    client = subprocess.Popen(
        [sys.executable, str(CLIENT), server.address, str(file), str(number), "8"]
    )
    try:
        waiting_for = len(file.read_text()) if file.exists() else 0
        while not file.exists() or len(file.read_text()) <= waiting_for:
            time.sleep(0.01)
            assert client.poll() is None
        time.sleep(seconds)
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert client.wait(timeout=60) == 0
    finally:
        client.kill()
        client.wait()


def journal(folder):
    """Return the sequences of each key, from a copy of the book that nobody serves."""
    store = SQLiteStore.open(folder, is_read_only=True)
    found = {}
    after = 0
    while rows := store.entries(after, 1_000):
        for sequence, body in rows:
            entry = decode_entry(body)
            if entry.key:
                found.setdefault(entry.key, []).append(sequence)
            after = sequence
    store.close()
    return found


def verified(folder):
    ran = subprocess.run(
        [sys.executable, "-m", "pennyweight", "verify", "--data", str(folder), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(ran.stdout)
    assert ran.returncode == 0, report
    assert report["ok"]
    return report


def check(folder, file):
    """Compare what the client was told with what the book has."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    sent = {line[1]: line[2] for line in lines if line[0] == "sent"}
    told = {line[1]: line[2:] for line in lines if line[0] == "told"}
    done = {key: answer for key, (status, _, answer) in told.items() if status == 201}
    refused = {key for key, (status, _, _) in told.items() if 400 <= status < 500}
    found = journal(folder)
    assert all(len(sequences) == 1 for sequences in found.values())
    for key, answer in done.items():
        assert found[key] == [answer["sequence"]], key
    assert not refused & found.keys()
    assert found.keys() - {key for key in found if key.startswith(("open", "fund"))} <= sent.keys()
    return sent, done, [key for key in sent if key not in told or told[key][0] >= 500]


def ask_again(server, sent, done, unknown, dice):
    """Acknowledged keys replay their answer; unknown ones are settled, once."""
    connection = connect(server)
    for key in [*dice.sample(sorted(done), min(40, len(done))), *unknown[-30:]]:
        status, is_replayed, answer = post(connection, "/v1/transfers", sent[key], key)
        assert status in {201, 409, 422}, answer
        if key in done:
            assert (status, is_replayed) == (201, True)
            assert answer == done[key]
        again = post(connection, "/v1/transfers", sent[key], key)
        if status == 201:
            assert again == (201, True, answer)
    connection.close()


def crash_rounds(folder, rounds, seed, seconds):
    dice = random.Random(seed)
    book, file = folder / "book", folder / "kept"
    book.mkdir()
    acknowledged = 0
    for number in range(rounds):
        with serving(book) as server:
            if number == 0:
                fund(server)
            else:
                ask_again(server, *check(book, file), dice)
            load_until_killed(server, file, number, dice.uniform(*seconds))
        assert verified(book)["sequence"] >= acknowledged
        _, done, _ = check(book, file)
        assert len(done) > acknowledged
        acknowledged = len(done)
    with serving(book) as server:
        ask_again(server, *check(book, file), dice)
        os.kill(server.pid, signal.SIGTERM)
        assert server.wait(timeout=30) == 0
    verified(book)
    return acknowledged


def test_kill_under_load(tmp_path):
    assert crash_rounds(tmp_path, 2, 7, (0.2, 0.8)) > 50


@pytest.mark.heavy
def test_kill_under_load_many_times(tmp_path):
    assert crash_rounds(tmp_path, 8, 11, (0.05, 4)) > 500

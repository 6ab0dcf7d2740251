"""The SQLite store alone: appends of transfers, with the keys of 0, 1 M or 10 M entries before.

    .venv/bin/python benchmarks/store.py --batch 64 --keys 1000000 --accounts 1000000

Each batch looks up its keys and appends its transfers: two account updates, one entry of
about 600 bytes and one random key for each. Making the batches is not timed. `--index
table` takes one B-tree of keys instead of the key index, for comparison. What the disk was
given is read from /proc/self/io and contains checkpoints.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import apsw
import msgspec

from pennyweight.engine.port import (
    AccountRow,
    Append,
    BatchHeader,
    Head,
    KeyRow,
    Reads,
    SealedBatch,
)
from pennyweight.ledger.accounts import Account
from pennyweight.stores.sqlite import SQLiteStore
from pennyweight.stores.sqlite import store as sqlite_store
from pennyweight.stores.sqlite.keys import KeyIndex


class KeyTable(KeyIndex):
    """One B-tree of all keys."""

    def load(self, connection: apsw.Connection) -> None:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS keys (product, key, sequence, PRIMARY KEY (product, key))"
            " WITHOUT ROWID"
        )

    def read(
        self, connection: apsw.Connection, names: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], bytes | None]:
        sql = (
            "SELECT body FROM keys JOIN entries USING (sequence) WHERE keys.product = ? AND key = ?"
        )
        return {name: connection.execute(sql, name).get for name in names}

    def add(self, connection: apsw.Connection, rows: list[KeyRow], last_sequence: int) -> None:
        connection.executemany(
            "INSERT INTO keys VALUES (?, ?, ?)", [(r.product, r.key, r.sequence) for r in rows]
        )

    def committed(self) -> None:
        pass

    def save(self, connection: apsw.Connection) -> None:
        pass


class Maker:
    """Makes batches that fit on one another."""

    def __init__(self, head: Head, dice: random.Random) -> None:
        self.head = head
        self.dice = dice
        self.accounts: list[Account] = []

    def opening(self, count: int) -> Append:
        """Open accounts."""
        first = len(self.accounts) + 1
        new = [
            Account(n, f"user:{n}:USD", f"user:{n}", "USD", 0, 10**24, version=1, roots=(1, 1))
            for n in range(first, first + count)
        ]
        self.accounts += new
        return self._seal([b"\1{}"], [], [AccountRow(account, 0) for account in new])

    def filler(self, count: int) -> Append:
        """Bind keys with entries that say no more."""
        first = self.head.sequence + 1
        keys = [f"{self.dice.getrandbits(128):032x}" for _ in range(count)]
        bodies = [b'\1{"product":"ledger","key":"%s"}' % key.encode() for key in keys]
        rows = [KeyRow("ledger", key, first + n) for n, key in enumerate(keys)]
        return self._seal(bodies, rows, [])

    def transfers(self, count: int) -> Append:
        """Move money between accounts drawn at random."""
        first = self.head.sequence + 1
        keys, bodies, changed = [], [], {}
        for sequence in range(first, first + count):
            key = f"{self.dice.getrandbits(128):032x}"
            keys.append(KeyRow("ledger", key, sequence))
            bodies.append(_BODY % (sequence, key.encode(), self.dice.getrandbits(60)))
            for change in (-1, 1):
                index = self.dice.randrange(len(self.accounts))
                before = self.accounts[index]
                account = before.__copy__()
                account.posted += change * 10**18
                account.lines += 1
                account.roots = (1, sequence, 1, before.version, 3, 1, 7, 1)
                account.version = sequence
                self.accounts[index] = account
                found = changed[index].version_before if index in changed else before.version
                changed[index] = AccountRow(account, found)
        rows = sorted(changed.values(), key=lambda row: row.account.number)
        return self._seal(bodies, keys, rows)

    def _seal(self, bodies: list[bytes], keys: list[KeyRow], accounts: list[AccountRow]) -> Append:
        head = self.head
        time_after = head.committed_at + 1
        header = BatchHeader(
            head.book, head.incarnation, head.epoch, head.sequence + 1, len(bodies), time_after, 1
        )
        chain = self.dice.randbytes(32)
        self.head = msgspec.structs.replace(
            head, sequence=head.sequence + len(bodies), chain=chain, committed_at=time_after
        )
        products = ["ledger"] * len(bodies)
        batch = SealedBatch(header, bodies, chain)
        return Append(head, self.head, batch, products, keys, accounts, [], [], [], [])


_BODY = b'\1{"sequence":%d,"command":"transfer","product":"ledger","key":"%s","fields":{"x":%d,"'
_BODY += b"-" * 440 + b'":0}}'


def main() -> None:
    """Fill a book, then measure."""
    options = _options()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    if options.index == "table":
        sqlite_store.KeyIndex = KeyTable
    try:
        store = SQLiteStore.open(folder, new_incarnation="bench")
        maker = Maker(store.head(), random.Random(1))
        while len(maker.accounts) < options.accounts:
            store.append(maker.opening(min(10_000, options.accounts - len(maker.accounts))))
        while maker.head.sequence < options.keys:
            store.append(maker.filler(2_000))
        _measure(store, maker, options)
        store.close()
    finally:
        shutil.rmtree(folder)


def _measure(store: SQLiteStore, maker: Maker, options: argparse.Namespace) -> None:
    cpu, stalls, written, done = 0.0, [], 0, 0
    size = store.size_bytes()
    for batches in _chunks(options.transfers, options.batch):
        appends = [maker.transfers(options.batch) for _ in range(batches)]
        before, started_cpu = _written(), time.process_time()
        for append in appends:
            started = time.perf_counter()
            store.begin(Reads(keys={(row.product, row.key) for row in append.keys}), ())
            store.append(append)
            stalls.append(time.perf_counter() - started)
        written += _written() - before
        cpu += time.process_time() - started_cpu
        done += batches * options.batch
    spent = sum(stalls)
    stalls.sort()
    print(
        f"{options.index:5} batch {options.batch:4} keys {options.keys:9} accounts"
        f" {options.accounts:8}: {done / spent:8.0f} transfers/s,"
        f" {cpu / done * 1e6:4.1f} us of CPU,"
        f" p50 {stalls[len(stalls) // 2] * 1e3:6.2f} ms,"
        f" p99 {stalls[int(len(stalls) * 0.99)] * 1e3:6.2f} ms, worst {stalls[-1] * 1e3:6.1f} ms,"
        f" {written / done / 1000:5.1f} kB written and"
        f" {(store.size_bytes() - size) / done / 1000:5.2f} kB kept each"
    )


def _chunks(transfers: int, batch: int) -> Iterator[int]:
    batches = max(1, transfers // batch)
    while batches > 0:
        yield min(batches, 100)
        batches -= 100


def _written() -> int:
    """Bytes that this process gave to the disk."""
    with Path("/proc/self/io").open(encoding="ascii") as lines:
        return int(next(line for line in lines if line.startswith("write_bytes")).split()[1])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--keys", type=int, default=0, help="keys bound before")
    parser.add_argument("--accounts", type=int, default=10_000)
    parser.add_argument("--transfers", type=int, default=100_000)
    parser.add_argument("--index", choices=("index", "table"), default="index")
    parser.add_argument("--folder", default=os.environ.get("TMPDIR"), help="on the disk to measure")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

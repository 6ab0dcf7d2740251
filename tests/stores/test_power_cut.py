"""What a power cut leaves: everything acknowledged is there, and the book proves itself.

A kill does not test the disk's sync, because the page cache survives it. Here writes and
syncs are recorded under SQLite while the engine commits; then the files are put together as
a cut at many moments may leave them: synced writes are there, of the others random sectors.
"""

import random
from pathlib import Path

import pytest

from pennyweight.engine.engine import Submission
from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.verification import verify
from pennyweight.products.general import Transfer
from pennyweight.stores.sqlite import SQLiteStore
from random_books import random_book
from stores.shim import Acknowledging, Operation, Shim, files_after_cut


def record(folder: Path, seed: int, batches: int) -> list[Operation]:
    """Commit a random book, with checkpoints at random moments, and return what was recorded."""
    shim = Shim(f"recorder {seed}")
    store = Acknowledging(folder, shim, f"recorder {seed}", recent_max=40)
    dice = random.Random(seed)
    book = random_book(seed, store=store, batches=0)
    for number in range(batches):
        book.execute_many(
            [
                Submission(
                    Transfer("world:USD", f"user:{dice.randrange(12)}:USD", "USD", "1"),
                    key=f"{seed} {number} {item}" if dice.random() < 0.8 else "",
                )
                for item in range(dice.randint(1, 20))
            ]
        )
        if dice.random() < 0.2:
            store.checkpoint()
    log = shim.log[:]
    store.close()
    shim.unregister()
    return log


def check(folder: Path, log: list[Operation], cut: int, dice: random.Random) -> None:
    """Open what a cut leaves, and prove that nothing acknowledged is lost."""
    folder.mkdir()
    for name, content in files_after_cut(log, cut, dice).items():
        (folder / name).write_bytes(content)
    acknowledged = [operation for operation in log[:cut] if operation.kind == "acknowledged"]
    promised = acknowledged[-1].offset if acknowledged else 0
    store = SQLiteStore.open(folder, new_incarnation="first")
    try:
        head = store.head()
        assert head.sequence >= promised
        chains = {
            header.first_sequence + header.count - 1: chain
            for header, chain in store.batches(0, 10_000)
        }
        assert all(chains[operation.offset] == operation.data for operation in acknowledged)
        report = verify(store, answers=answers_of(known_commands()))
        assert report.ok, report.problems
    finally:
        store.close()


def cuts_of(log: list[Operation], count: int, dice: random.Random) -> list[int]:
    """Choose moments: around syncs, where it matters most, and at random."""
    syncs = [position for position, operation in enumerate(log) if operation.kind == "sync"]
    near = [dice.choice(syncs) + dice.choice((0, 1, 2)) for _ in range(count // 2)]
    return near + [dice.randrange(len(log) + 1) for _ in range(count - len(near))]


@pytest.mark.parametrize("seed", [1, 2])
def test_power_cut_loses_nothing_acknowledged(tmp_path: Path, seed: int):
    log = record(tmp_path, seed, batches=30)
    dice = random.Random(seed)
    for number, cut in enumerate([*cuts_of(log, 30, dice), len(log)]):
        check(tmp_path / f"cut {number}", log, cut, dice)


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(10, 14))
def test_power_cut_at_many_moments_loses_nothing_acknowledged(tmp_path: Path, seed: int):
    log = record(tmp_path, seed, batches=120)
    dice = random.Random(seed)
    for number, cut in enumerate(cuts_of(log, 120, dice)):
        check(tmp_path / f"cut {number}", log, cut, dice)


def test_files_after_cut_forget_what_was_never_synced():
    """The checker is checked: without syncs, promises would be broken."""
    page = bytes(range(256)) * 8
    log = [Operation("write", "a", 0, page), Operation("write", "a", 2048, page)]
    left = {
        bytes(files_after_cut(log, 2, random.Random(seed)).get("a", b"")) for seed in range(200)
    }
    assert b"" in left
    assert page + page in left
    assert len(left) > 5
    log.append(Operation("sync", "a"))
    assert files_after_cut(log, 3, random.Random(1))["a"] == page + page

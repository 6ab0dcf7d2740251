"""A proof of a served book in a process of its own.

A verification has all accounts of the book in memory, and keeps a processor busy. The
server may do neither: its bound on users in memory holds at every moment, and its callers
wait for the same processor. So the proof runs beside it, on the same rows:
`python -m pennyweight.proving` reads which book is meant, as JSON, from its standard input,
because a URL may hold a password and everybody may read a command line. It prints one JSON
object a line, how far it is or, as the last one, what it found.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from pennyweight.assemble import BOOK, answers, invariants, open_reader
from pennyweight.engine.verification import Progress, Report, verify
from pennyweight.stores.places import Place, is_database

_NICENESS = 5


class Question(msgspec.Struct):
    """Which book is to be proven."""

    place: str
    is_url: bool
    book: str = BOOK


class Step(msgspec.Struct, omit_defaults=True):
    """One line: entries done of all, or the report, or why there is none."""

    done: int = 0
    entries: int = 0
    report: Report | None = None
    error: str = ""


class ProofFailed(Exception):
    """The other process could not verify the book; the message says why."""


def prove(place: Place, book: str, progress: Progress) -> Report:
    """Verify a book in another process. Raises ProofFailed."""
    command = [sys.executable, "-m", "pennyweight.proving"]
    question = Question(str(place), is_database(place), book)
    decoder = msgspec.json.Decoder(Step)
    with subprocess.Popen(  # noqa: S603 - ourselves
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        _ask(process, question)
        step = Step(error="it ended without a word")
        for line in process.stdout or ():
            step = decoder.decode(line)
            if step.report is not None:
                return step.report
            if not step.error:
                progress(step.done, step.entries)
                step = Step(error="it was stopped")
    raise ProofFailed(step.error)


def _ask(process: "subprocess.Popen[bytes]", question: Question) -> None:
    if process.stdin is not None:
        with suppress(BrokenPipeError), process.stdin:  # that it ended is heard soon enough
            process.stdin.write(msgspec.json.encode(question))


def main(place: Place, book: str, say: Callable[[Step], None]) -> int:
    """Verify a book here, telling how far it is; return the exit code.

    Raises BrokenPipeError when nobody listens any more, because the server has ended.
    """
    try:
        store = open_reader(place, book)
        try:
            report = verify(
                store,
                answers=answers(),
                invariants=invariants(),
                progress=lambda done, entries: say(Step(done, entries)),
            )
        finally:
            store.close()
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the parent is told, whatever it is
        say(Step(error=f"{type(error).__name__}: {error}"))
        return 1
    say(Step(report=report))
    return 0


def _print(step: Step) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(step) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    os.nice(_NICENESS)
    asked = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    try:
        code = main(asked.place if asked.is_url else Path(asked.place), asked.book, _print)
    except BrokenPipeError:
        os._exit(1)  # an ordinary end would try to write once more what nobody reads
    sys.exit(code)

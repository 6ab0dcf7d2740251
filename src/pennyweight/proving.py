"""A proof of a served book in a process of its own.

A verification has all accounts of the book in memory, and keeps a processor busy. The
server may do neither: its bound on users in memory holds at every moment, and its callers
wait for the same processor. So the proof runs beside it, on the same files:
`python -m pennyweight.proving FOLDER` prints one JSON object a line, how far it is or,
as the last one, what it found.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from pennyweight.assemble import answers, invariants, open_reader
from pennyweight.engine.verification import Progress, Report, verify

_NICENESS = 5


class Step(msgspec.Struct, omit_defaults=True):
    """One line: entries done of all, or the report, or why there is none."""

    done: int = 0
    entries: int = 0
    report: Report | None = None
    error: str = ""


class ProofFailed(Exception):
    """The other process could not verify the book; the message says why."""


def prove(folder: Path, progress: Progress) -> Report:
    """Verify a folder's book in another process. Raises ProofFailed."""
    command = [sys.executable, "-m", "pennyweight.proving", str(folder)]
    decoder = msgspec.json.Decoder(Step)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:  # noqa: S603 - ourselves
        step = Step(error="it ended without a word")
        for line in process.stdout or ():
            step = decoder.decode(line)
            if step.report is not None:
                return step.report
            if not step.error:
                progress(step.done, step.entries)
                step = Step(error="it was stopped")
    raise ProofFailed(step.error)


def main(folder: Path, say: Callable[[Step], None]) -> int:
    """Verify a folder's book here, telling how far it is; return the exit code.

    Raises BrokenPipeError when nobody listens any more, because the server has ended.
    """
    try:
        store = open_reader(folder)
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
    try:
        code = main(Path(sys.argv[1]), _print)
    except BrokenPipeError:
        os._exit(1)  # an ordinary end would try to write once more what nobody reads
    sys.exit(code)

"""The command line: one file per group of verbs, imported only when its verb is called."""

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from pennyweight.delivery.cli import shared

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_UNREAD = 141
"""Whoever read our output has ended, as a shell tells it."""

_HERE = "pennyweight.delivery.cli"
_VERBS = (
    ("serve", "serve:serve", "Serve a book over HTTP."),
    ("demo", "demo:demo", "Start a fresh book with a generated population and live traffic."),
    ("load", "load:load", "Load accounts and balances from a CSV file."),
    ("verify", "verify:verify", "Prove a book, from its first entry to its last."),
    ("export", "journal:export", "Write a book's journal as lines of JSON."),
    ("import", "journal:import_book", "Rebuild a book from an export."),
    ("copy", "copying:copy", "Copy a book from one place to another, and prove both."),
    ("migrate", "upkeep:migrate", "Show or apply the migrations of a book's schema."),
    ("recover", "upkeep:recover", "Begin a new life of a book that was restored."),
    ("reindex", "reindex:reindex", "Make search indices anew from the journal."),
    ("replay", "replay:app", "Decide again what the journal says was decided."),
    ("keys", "keys:app", "Create, list and revoke API keys."),
    ("limits", "controls:limits", "Show and set what withdrawals may be at most."),
    ("modes", "controls:modes", "Show and set which withdrawals are taken."),
    ("config", "settings:config", "Print the configuration in effect."),
    ("bench", "bench:app", "Measure speed, then verify the book."),
    ("simulate", "simulate:app", "Generate users and traffic."),
    ("version", "settings:version", "Print the version."),
)


def build(verb: str = "") -> App:
    """Return the command line; nothing of a verb is imported yet.

    The verb that is called tells its own, longer help; the others their line of the list,
    whose plain text saves the time that markdown costs.
    """
    app = App(
        name="pennyweight",
        help="A money engine: one exact, durable book of balances.",
        help_format="markdown" if verb else "plaintext",
        version=_version,
        version_flags=["--version"],
        result_action="return_value",
    )
    for name, place, line in _VERBS:
        app.command(f"{_HERE}.{place}", name=name, help=None if name == verb else line)
    return app


def run(roof: shared.Roof, arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 1 for failed, 2 for wrong usage, no book, or one in use.

    130 for one that was stopped, 141 for one whose output nobody reads any more.
    """
    shared.use(roof)
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = build(words[0] if words else "")(words, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except CycloptsError as error:
        return _say(str(error), EXIT_USAGE)
    except shared.UserError as error:
        return _say(str(error), error.code)
    except BrokenPipeError:
        # What is left in the buffer must go somewhere, or Python complains when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_UNREAD
    except OSError as error:
        return _say(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _say("stopped", EXIT_INTERRUPTED)
    except Exception as error:
        code = _code_of(error)
        if code is None:
            raise
        return _say(str(error), code)
    return result if isinstance(result, int) else 0


def _code_of(error: Exception) -> int | None:
    """Return the exit code of what the layers below say on purpose; None for a fault of ours."""
    from pennyweight.config import ConfigError  # noqa: PLC0415 - `--help` does without them
    from pennyweight.engine.port import NoBook, StoreError, StoreInUse  # noqa: PLC0415
    from pennyweight.runtime.clock import ClockRefused  # noqa: PLC0415
    from pennyweight.runtime.opening import OpeningFailed  # noqa: PLC0415

    if isinstance(error, ConfigError | NoBook | StoreInUse):
        return EXIT_USAGE
    if isinstance(error, StoreError | OpeningFailed | ClockRefused):
        return EXIT_FAILED
    return None


def _version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 - as above

    return version("pennyweight")


def _say(message: str, code: int) -> int:
    """Say what is wrong on one line of stderr."""
    print(f"pennyweight: {' '.join(message.split())}", file=sys.stderr)
    return code

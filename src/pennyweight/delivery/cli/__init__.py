"""The command line: one file per group of verbs, imported only when its verb is called."""

import sys
from collections.abc import Sequence
from importlib.metadata import version

from cyclopts import App, CycloptsError

from pennyweight.config import ConfigError
from pennyweight.delivery.cli import shared
from pennyweight.engine.port import StoreError, StoreInUse

EXIT_FAILED = 1
EXIT_USAGE = 2

_HERE = "pennyweight.delivery.cli"
_VERBS = (
    ("serve", "serve:serve", "Serve a book over HTTP."),
    ("demo", "demo:demo", "Start a fresh book with a generated population and live traffic."),
    ("load", "load:load", "Load accounts and balances from a CSV file."),
    ("verify", "verify:verify", "Prove a book, from its first entry to its last."),
    ("export", "journal:export", "Write a book's journal as lines of JSON."),
    ("import", "journal:import_book", "Rebuild a book from an export."),
    ("keys", "keys:app", "Create, list and revoke API keys."),
    ("config", "settings:config", "Print the configuration in effect."),
    ("bench", "bench:bench", "Measure speed, then verify the book."),
    ("simulate", "simulate:app", "Generate users and traffic."),
    ("version", "settings:version", "Print the version."),
)


def build() -> App:
    """Return the command line; nothing of a verb is imported yet."""
    app = App(
        name="pennyweight",
        help="A money engine: one exact, durable book of balances.",
        version=version("pennyweight"),
        version_flags=["--version"],
        result_action="return_value",
    )
    for name, place, help_text in _VERBS:
        app.command(f"{_HERE}.{place}", name=name, help=help_text)
    return app


def run(roof: shared.Roof, arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 1 for failed, 2 for wrong usage or a book in use."""
    shared.use(roof)
    try:
        result = build()(
            list(sys.argv[1:] if arguments is None else arguments),
            exit_on_error=False,
            print_error=False,
        )
    except CycloptsError as error:
        return _say(str(error), EXIT_USAGE)
    except (ConfigError, StoreInUse) as error:
        return _say(str(error), EXIT_USAGE)
    except shared.UserError as error:
        return _say(str(error), error.code)
    except (StoreError, OSError) as error:
        return _say(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        return _say("stopped", 130)
    return result if isinstance(result, int) else 0


def _say(message: str, code: int) -> int:
    """Say what is wrong on one line of stderr."""
    print(f"pennyweight: {' '.join(message.split())}", file=sys.stderr)
    return code

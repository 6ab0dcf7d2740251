"""A book behind `pennyweight serve`: a process of its own, which can be killed."""

import subprocess
import sys
from contextlib import contextmanager


@contextmanager
def serving(folder):
    """A server on a free port; whoever leaves kills it, if it still lives."""
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "pennyweight", "serve", "--data", str(folder), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        ready = server.stdout.readline()
        assert ready.startswith("ready http://"), (folder / "log").read_text()
        server.address = ready.split()[1]
        yield server
    finally:
        server.kill()
        server.wait()
        server.stdout.close()

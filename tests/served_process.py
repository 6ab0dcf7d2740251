"""A book behind `pennyweight serve`: a process of its own, which can be killed."""

import subprocess
import sys
from contextlib import contextmanager


@contextmanager
def serving(folder, *words, port=0):
    """A server on a free port, or on this one; whoever leaves kills it, if it still lives.

    `words` are further ones of the command line.
    """
    command = ["serve", "--data", str(folder), "--port", str(port), *words]
    with (folder / "log").open("ab") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "pennyweight", *command],
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

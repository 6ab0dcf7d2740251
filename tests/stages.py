"""What a document is played on: a server on a book in a folder, or a PostgreSQL of its own.

The one of loans gets trading posts, too, and a server that watches prices; the one of portfolios a
broker at `localhost:9092`, a search engine at `localhost:9200`, and a `kcat` that sends lines.

A document with a block of SQL gets the database. Its blocks of SQL run there as the superuser,
in the database that `DATABASE_URL` names once the document exported one. `localhost:5432` stands
for the server, a command that ends with ` &` goes on, and from the first one that serves,
`http://localhost:8080` is a balancer in front of all that do.
"""

import contextlib
import os
import re
import subprocess
import sys

import psycopg
import pytest

from pennyweight.links.inwheel import InWheelBroker
from pennyweight.simulators.balancer import Balancer
from pennyweight.simulators.postgres import PostgresMissing, PostgresServer
from pennyweight.simulators.posts import Posts
from pennyweight.simulators.pricewalk import PriceWalk
from pennyweight.simulators.searchstub import SearchStub
from pennyweight.simulators.trading import Odds
from served_process import serving

_READY = re.compile(r"ready http://127\.0\.0\.1:(\d+)")
_PORTS = re.compile(r"--port (\d+)")
_LISTEN = re.compile(r"--cluster-listen \S+")
_JOB = re.compile(r"%(\d)")
_KCAT = """#!{python}
import argparse, sys
from confluent_kafka import Producer
parser = argparse.ArgumentParser()
parser.add_argument("-P", action="store_true")
for option in "btk":
    parser.add_argument("-" + option)
asked = parser.parse_args()
producer = Producer({{"bootstrap.servers": asked.b}})
for line in sys.stdin:
    producer.produce(asked.t, line.rstrip("\\n"), asked.k)
sys.exit(producer.flush(30))
"""
_EXPORT = re.compile(r"export (\w+)=(.*)")


def sandbox(folder):
    """Make the folder in which a document's commands run, and return their environment."""
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    program = programs / "pennyweight"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pennyweight "$@"\n')
    program.chmod(0o755)
    (folder / "book").mkdir()
    return {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}


class Stage:
    """A folder, an environment, and a server at `address`."""

    def __init__(self, folder, address):
        self.folder = folder
        self.environment = sandbox(folder)
        self.address = address

    def said(self, command):
        """Return a command as it is to run here."""
        return re.sub(r"(http://)?localhost:8080", self.address, command)

    def run(self, command):
        """Run a command to its end: its exit code, what it printed, what it said on stderr."""
        ran = subprocess.run(
            ["bash", "-c", self.said(command)],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return ran.returncode, ran.stdout, ran.stderr


@contextlib.contextmanager
def on_a_folder(folder):
    """A stage with one server, on `./book`."""
    stage = Stage(folder, "")
    with serving(folder / "book") as server:
        stage.address = server.address
        yield stage


@contextlib.contextmanager
def on_lending(folder):
    """A stage with one server that watches loans, prices pushed; Black Spire fails the first order."""
    walk = PriceWalk(1, script=["31.9"], noise=0)
    posts = Posts(odds=Odds(failed=0.0), walk=walk, interval_seconds=0)
    posts["black_spire"].fates.append("failed")
    stage = Stage(folder, "")
    with posts, pytest.MonkeyPatch.context() as environment:
        environment.setenv("PENNYWEIGHT_LOANS_IS_PUSH_OPEN", "true")
        environment.setenv("MOS_ESPA_URL", posts.urls["mos_espa"])
        environment.setenv("BLACK_SPIRE_URL", posts.urls["black_spire"])
        with serving(folder / "book", "--loans") as server:
            stage.address = server.address
            yield stage


@contextlib.contextmanager
def on_portfolios(folder):
    """A stage with one server that reads from a broker and exports to a search engine."""
    stage = _Connected(folder, "")
    with InWheelBroker() as broker, SearchStub() as engine:
        stage.places = {
            "localhost:9092": broker.address,
            "localhost:9200": engine.url.removeprefix("http://"),
        }
        with serving(folder / "book", "--kafka", broker.address, "--search", engine.url) as server:
            stage.address = server.address
            yield stage


class _Connected(Stage):
    def __init__(self, folder, address):
        super().__init__(folder, address)
        self.places = {}
        kcat = folder / ".venv" / "bin" / "kcat"
        kcat.write_text(_KCAT.format(python=sys.executable))
        kcat.chmod(0o755)

    def said(self, command):
        for place, here in self.places.items():
            command = command.replace(place, here)
        return super().said(command)


@contextlib.contextmanager
def on_postgres(folder):
    """A stage with an empty PostgreSQL; what serves there is started by the document."""
    try:
        database = PostgresServer(is_synced=False)
    except PostgresMissing as error:
        pytest.skip(str(error))
    with database, contextlib.ExitStack() as running:
        yield _Shared(folder, database, running)


class _Shared(Stage):
    def __init__(self, folder, database, running):
        super().__init__(folder, "")
        self._database = database
        self._running = running
        self._jobs = []
        self._ports = {}
        self._balancer = None

    def said(self, command):
        command = command.replace("localhost:5432", f"127.0.0.1:{self._database.port}")
        for port, real in self._ports.items():
            command = command.replace(f"localhost:{port}", f"127.0.0.1:{real}")
        command = _JOB.sub(lambda job: str(self._jobs[int(job[1]) - 1].pid), command)
        return super().said(command)

    def run(self, command):
        if exported := _EXPORT.fullmatch(command):
            self.environment[exported[1]] = self.said(exported[2].strip("'\""))
            return 0, "", ""
        if command.endswith(" &"):
            return 0, self._start(command.removesuffix(" &")), ""
        ran = super().run(command)
        for job in _JOB.findall(command) if command.startswith("kill") else ():
            self._jobs[int(job) - 1].wait(30)
        return ran

    def execute(self, sql):
        """Run statements, each a transaction of its own."""
        place = self.environment.get("DATABASE_URL", "/postgres").rpartition("/")[2]
        url = self._database.url.removesuffix("postgres") + place
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in filter(str.strip, sql.split(";\n")):
                connection.execute(statement)

    def _start(self, command):
        """Start what serves; return the line that it prints when it is ready."""
        port = _PORTS.search(command)[1]
        here = _LISTEN.sub("--cluster-listen 127.0.0.1:0", _PORTS.sub("--port 0", command))
        with (self.folder / "log").open("ab") as log:
            job = subprocess.Popen(
                ["bash", "-c", f"exec {self.said(here)}"],
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._jobs.append(job)
        self._running.callback(_end, job)
        line = job.stdout.readline()
        assert _READY.match(line), (self.folder / "log").read_text()
        self._ports[port] = int(_READY.match(line)[1])
        self._face(("127.0.0.1", self._ports[port]))
        return line

    def _face(self, backend):
        if self._balancer is None:
            self._balancer = self._running.enter_context(Balancer([backend], health_path="/readyz"))
            self.address = f"http://127.0.0.1:{self._balancer.port}"
        else:
            self._balancer.add(backend)


def _end(job):
    job.kill()
    job.wait()
    job.stdout.close()

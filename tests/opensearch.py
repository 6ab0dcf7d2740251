"""A real OpenSearch for tests: one node, from Maven Central, with a folder of its own.

The zip is fetched once by `python tests/opensearch.py` (or by the first test that wants it)
into a cache folder, `OPENSEARCH_HOME` if that is set. It needs Java 17, or 21, which is
looked for in `JAVA17_HOME`, `JAVA_HOME`, /usr/lib/jvm and the path. OpenSearch refuses root:
there it runs as the user `nobody`. It keeps its data when it is killed and started again.
"""

import contextlib
import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

OPENSEARCH = "2.19.6"
JAVA = (17, 21)
UP_SECONDS_MAX = 120
ARTIFACT = f"org.opensearch.distribution.integ-test-zip:opensearch:{OPENSEARCH}:zip"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"

SETTINGS = """\
cluster.name: pennyweight-tests
node.name: one
discovery.type: single-node
network.host: 127.0.0.1
http.port: {port}
transport.port: {transport}
path.data: {folder}/data
path.logs: {folder}/logs
cluster.routing.allocation.disk.threshold_enabled: false
action.auto_create_index: false
"""

LOGGING = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d %p %c %m%n
rootLogger.level = warn
rootLogger.appenderRef.console.ref = console
"""


class NoOpenSearch(Exception):
    """What this machine lacks for a real OpenSearch."""


def java() -> str:
    """Return a Java that it runs on. Raises NoOpenSearch."""
    homes = [os.environ.get(name, "") for name in ("JAVA17_HOME", "JAVA_HOME")]
    found = [str(Path(home) / "bin" / "java") for home in homes if home]
    found += [str(path) for path in sorted(Path("/usr/lib/jvm").glob("*/bin/java"))]
    found.append(shutil.which("java") or "")
    for program in dict.fromkeys(found):
        if program and Path(program).exists() and _version(program) in JAVA:
            return program
    raise NoOpenSearch("Java 17 or 21, for a real OpenSearch")


def _version(program: str) -> int:
    said = subprocess.run(
        [program, "-version"], check=False, capture_output=True, text=True, timeout=30
    )
    match = re.search(r'version "(\d+)', said.stderr)
    return int(match[1]) if match else 0


def home() -> Path:
    """Return the folder of OpenSearch, fetched if it is not there yet. Raises NoOpenSearch."""
    java()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    chosen = os.environ.get("OPENSEARCH_HOME")
    folder = Path(chosen) if chosen else cache / "pennyweight" / f"opensearch-{OPENSEARCH}"
    if (folder / "lib").is_dir():
        return folder
    if not shutil.which("mvn"):
        raise NoOpenSearch("mvn, to fetch OpenSearch")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "lib").is_dir():
            _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        subprocess.run(
            ["mvn", "-B", "-q", COPY, f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={scratch}"],
            check=True,
            timeout=600,
        )
        (archive,) = Path(scratch).glob("*.zip")
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(Path(scratch, "out"))
        (inner,) = Path(scratch, "out").iterdir()
        shutil.rmtree(folder, ignore_errors=True)
        inner.rename(folder)


class OpenSearch:
    """One node with a folder of its own; `kill` and `start` as often as wanted."""

    def __init__(self) -> None:
        """Nothing runs yet. Raises NoOpenSearch."""
        self._home = home()
        self._java = java()
        self._process: subprocess.Popen[bytes] | None = None
        self._user: int | None = None
        # A folder that `nobody` can reach, which those of tests are not.
        self._folder = Path(tempfile.mkdtemp(prefix="pennyweight-opensearch-"))
        config = self._folder / "config"
        for name in ("config", "data", "logs", "tmp"):
            (self._folder / name).mkdir()
        port, transport = _free_ports()
        self.url = f"http://127.0.0.1:{port}"
        (config / "opensearch.yml").write_text(
            SETTINGS.format(port=port, transport=transport, folder=self._folder)
        )
        (config / "log4j2.properties").write_text(LOGGING)
        (config / "jvm.options").write_text("")
        self._lib = self._home / "lib"
        self._modules = self._home
        if os.getuid() == 0:
            self._user = pwd.getpwnam("nobody").pw_uid
            self._modules = self._copied()
            for path in [self._folder, *self._folder.rglob("*")]:
                os.chown(path, self._user, -1)

    def _copied(self) -> Path:
        """Return a copy of the home that another user can read."""
        copy = self._folder / "home"
        shutil.copytree(self._home, copy, copy_function=_link_or_copy)
        return copy

    def start(self) -> None:
        """Start it, and wait until it takes requests."""
        log = self._folder / "logs" / "out"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command(),
                stdout=out,
                stderr=out,
                cwd=self._folder,
                user=self._user,
                env={**os.environ, "OPENSEARCH_TMPDIR": str(self._folder / "tmp")},
            )
        until = time.monotonic() + UP_SECONDS_MAX
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError, urllib.error.URLError):
                health = f"{self.url}/_cluster/health?wait_for_status=yellow&timeout=30s"
                with urllib.request.urlopen(health, timeout=40) as answer:
                    if answer.status == 200:
                        return
            time.sleep(0.1)
        self.kill()
        raise AssertionError(log.read_text()[-3_000:])

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    def close(self) -> None:
        """End it, and take its folder away."""
        self._end(signal.SIGKILL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _command(self) -> list[str]:
        home, folder = self._modules, self._folder
        return [
            self._java,
            "-Xms512m",
            "-Xmx512m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Djava.security.manager=allow",
            "-Djna.nosys=true",
            f"-Djava.io.tmpdir={folder / 'tmp'}",
            "-Dio.netty.noUnsafe=true",
            "-Dlog4j2.disable.jmx=true",
            "-Dlog4j.shutdownHookEnabled=false",
            f"-Dopensearch.path.home={home}",
            f"-Dopensearch.path.conf={folder / 'config'}",
            "-Dopensearch.distribution.type=zip",
            "-Dopensearch.bundled_jdk=false",
            "-cp",
            f"{home / 'lib'}/*",
            "org.opensearch.bootstrap.OpenSearch",
        ]

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None


def _link_or_copy(source: str, target: str) -> None:
    """Hard-link a file, for 100 MB need not be copied; the link is as readable as the file."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


@pytest.fixture(scope="session")
def opensearch() -> Iterator[OpenSearch]:
    """A running OpenSearch that tests share; one that kills it starts it again."""
    try:
        engine = OpenSearch()
    except NoOpenSearch as error:
        pytest.skip(f"not here: {error}")
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


if __name__ == "__main__":
    try:
        print(f"OpenSearch {OPENSEARCH} is in {home()}")
    except NoOpenSearch as missing:
        print(f"not here: {missing}")

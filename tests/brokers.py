"""Brokers for tests: the mock inside confluent-kafka's wheel, and a real Apache Kafka.

The mock speaks the real protocol over TCP (groups, commits, idempotent producers), starts
in no time and can be taken down and up again; it lives in a process of its own and loses
everything with it. The real one is one KRaft node from Maven Central: its jars are fetched
once by `python tests/brokers.py` (or by the first test that wants them) into a cache folder,
`KAFKA_JARS` if that is set. It keeps its data when it is killed and started again.
"""

import ctypes
import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

Sent = tuple[int, bytes | None, bytes | None]
"""Partition, key, value."""

KAFKA = "4.3.1"
JARS_MIN = 40
UP_SECONDS_MAX = 60

POM = f"""<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion>
<groupId>pennyweight.tests</groupId><artifactId>kafka</artifactId><version>1</version>
<dependencies>
<dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
<version>{KAFKA}</version></dependency>
<dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId>
<version>2.25.4</version></dependency>
</dependencies></project>
"""
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"

LOGGING = """<Configuration><Appenders><Console name="out"><PatternLayout pattern="%d %p %m%n%ex"/>
</Console></Appenders><Loggers><Root level="warn"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"""

PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={folder}/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
log.cleaner.dedupe.buffer.size=2097152
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
controller.quorum.election.timeout.ms=200
controller.quorum.election.backoff.max.ms=100
controller.quorum.fetch.timeout.ms=400
controlled.shutdown.enable=false
"""


# ── the mock ──────────────────────────────────────────────────────────────────────


class MockBroker:
    """One broker of the client's mock cluster, in a process of its own. Topics make themselves."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "mock"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        assert self.address, "the mock broker did not start"

    def create_topic(self, topic: str, partitions: int = 4) -> None:
        self._say(f"topic {topic} {partitions}")

    def down(self) -> None:
        """Drop all connections and accept no more; what it knows stays."""
        self._say("down")

    def up(self) -> None:
        self._say("up")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _say(self, command: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


def serve_mock() -> None:
    """Be a mock broker until standard input ends. Its C interface has what Python's lacks."""
    wheel = Path(confluent_kafka.__file__).parent.with_name("confluent_kafka.libs")
    library = ctypes.CDLL(str(next(wheel.glob("librdkafka-*"))))
    for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
        getattr(library, name).restype = ctypes.c_void_p
    library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
    error = ctypes.create_string_buffer(512)
    conf = ctypes.c_void_p(library.rd_kafka_conf_new())
    library.rd_kafka_conf_set(conf, b"log_level", b"0", error, ctypes.c_size_t(512))
    handle = ctypes.c_void_p(library.rd_kafka_new(0, conf, error, ctypes.c_size_t(512)))
    cluster = ctypes.c_void_p(library.rd_kafka_mock_cluster_new(handle, 1))
    library.rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, 0)
    print(library.rd_kafka_mock_cluster_bootstraps(cluster).decode(), flush=True)
    for line in sys.stdin:
        match line.split():
            case ["down"]:
                library.rd_kafka_mock_broker_set_down(cluster, -1)
            case ["up"]:
                library.rd_kafka_mock_broker_set_up(cluster, -1)
            case ["topic", topic, partitions]:
                library.rd_kafka_mock_topic_create(cluster, topic.encode(), int(partitions), 1)
        print("done", flush=True)


# ── the real one ──────────────────────────────────────────────────────────────────


class NoKafka(Exception):
    """What this machine lacks for a real broker."""


def jars() -> Path:
    """Return the folder of Kafka's jars, fetched if they are not there yet. Raises NoKafka."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = Path(os.environ.get("KAFKA_JARS", cache / "pennyweight" / f"kafka-{KAFKA}"))
    if not shutil.which("java"):
        raise NoKafka("java, for a real Kafka")
    if len(list(folder.glob("*.jar"))) >= JARS_MIN:
        return folder
    if not shutil.which("mvn"):
        raise NoKafka("mvn, to fetch Kafka")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if len(list(folder.glob("*.jar"))) < JARS_MIN:
            _fetch(folder)
    return folder


def _fetch(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        Path(scratch, "pom.xml").write_text(POM)
        subprocess.run(
            ["mvn", "-B", "-q", COPY, "-DincludeScope=runtime", "-DoutputDirectory=jars"],
            cwd=scratch,
            check=True,
            timeout=600,
        )
        shutil.rmtree(folder, ignore_errors=True)
        Path(scratch, "jars").rename(folder)


class RealBroker:
    """One Apache Kafka node with a folder of its own; `kill` and `start` as often as wanted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._jars = jars()
        port, controller = _free_ports()
        self.address = f"127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None
        properties = PROPERTIES.format(port=port, controller=controller, folder=folder)
        (folder / "server.properties").write_text(properties)
        (folder / "log4j2.xml").write_text(LOGGING)
        cluster = urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        command = self._java("kafka.tools.StorageTool", "format", "-t", cluster, "-c")
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def start(self) -> None:
        """Start it, and wait until it takes requests and knows where groups live."""
        with (self._folder / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(self._java("kafka.Kafka"), stdout=log, stderr=log)
        for _ in range(UP_SECONDS_MAX * 5):
            if self._process.poll() is not None:
                break
            if _answers(self.address):
                return
            time.sleep(0.1)
        self.kill()
        raise AssertionError((self._folder / "broker.log").read_text()[-2_000:])

    def kill(self) -> None:
        """End it as a power cut would."""
        self._end(signal.SIGKILL)

    up = start
    down = kill

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def create_topic(self, topic: str, partitions: int = 4) -> None:
        new = NewTopic(topic, num_partitions=partitions, replication_factor=1)
        admin = self._admin()  # a client that is dropped too early takes its futures with it
        admin.create_topics([new])[topic].result(20)

    def delete_topic(self, topic: str) -> None:
        admin = self._admin()
        admin.delete_topics([topic])[topic].result(20)

    def _admin(self):
        return AdminClient(
            {
                "bootstrap.servers": self.address,
                "log_level": 0,
                "reconnect.backoff.ms": 20,
                "reconnect.backoff.max.ms": 200,
            }
        )

    def _java(self, *command: str) -> list[str]:
        return [
            "java",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xmx256m",
            f"-Dlog4j2.configurationFile={self._folder / 'log4j2.xml'}",
            "-cp",
            f"{self._jars}/*",
            *command,
            str(self._folder / "server.properties"),
        ]

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(30)
            self._process = None


def _answers(address: str) -> bool:
    """Ask for a group's offsets, for which the broker makes a topic that a first group waits for."""
    settings = {"bootstrap.servers": address, "group.id": "warm", "log_level": 0}
    consumer = Consumer(settings)
    try:
        consumer.committed([TopicPartition("warm", 0)], timeout=2)
    except KafkaException:
        return False
    finally:
        consumer.close()
    return True


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


# ── what tests ask of either ──────────────────────────────────────────────────────


def group_offsets(address: str, group: str, topic: str, partitions: int) -> list[int]:
    """The offsets that a group committed, as a lag tool sees them; -1001 for none."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": group, "log_level": 0})
    wanted = [TopicPartition(topic, number) for number in range(partitions)]
    found = [place.offset for place in consumer.committed(wanted, timeout=20)]
    consumer.close()
    return found


def send(address: str, topic: str, messages: Iterable[Sent]) -> None:
    """Write messages as any client would, and wait until the broker has them."""
    producer = Producer({"bootstrap.servers": address, "log_level": 0, "linger.ms": 5})
    for partition, key, value in messages:
        while True:
            try:
                producer.produce(topic, value, key, partition)
            except BufferError:
                producer.poll(0.1)
            else:
                break
    assert producer.flush(30) == 0


def read_topic(address: str, topic: str, partitions: int = 4) -> list[list[Any]]:
    """All that a topic has by now, in order, by partition."""
    consumer = Consumer({"bootstrap.servers": address, "group.id": "reader", "log_level": 0})
    places = [TopicPartition(topic, number, 0) for number in range(partitions)]
    ends = [consumer.get_watermark_offsets(place, timeout=20)[1] for place in places]
    consumer.assign(places)
    found: list[list[Any]] = [[] for _ in places]
    until = time.monotonic() + UP_SECONDS_MAX
    while any(len(part) < end for part, end in zip(found, ends, strict=True)):
        assert time.monotonic() < until, f"{topic} could not be read to its end"
        for message in consumer.consume(1_000, 0.2):
            if message.error() is None:
                found[message.partition()].append(message)
    consumer.close()
    return found


# ── fixtures ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def mock_broker() -> Iterator[MockBroker]:
    broker = MockBroker()
    yield broker
    broker.close()


@pytest.fixture(params=["mock", pytest.param("real", marks=pytest.mark.heavy)])
def broker(request: pytest.FixtureRequest) -> MockBroker | RealBroker:
    """The mock, and in the heavier suite the real one."""
    found: MockBroker | RealBroker = request.getfixturevalue(f"{request.param}_broker")
    return found


@pytest.fixture(scope="session")
def real_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealBroker]:
    """A running Kafka that tests share; one that kills it starts it again."""
    try:
        broker = RealBroker(tmp_path_factory.mktemp("kafka"))
    except NoKafka as error:
        pytest.skip(f"not here: {error}")
    broker.start()
    yield broker
    broker.stop()


if __name__ == "__main__":
    if sys.argv[1:] == ["mock"]:
        serve_mock()
    else:
        try:
            print(f"Kafka {KAFKA} is in {jars()}")
        except NoKafka as missing:
            print(f"not here: {missing}")

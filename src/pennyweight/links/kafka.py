"""Kafka, held right: batches in from positions the book keeps, acknowledged messages out.

`Consumer` starts every partition where the book says, never where the broker thinks it
was; what is committed to the broker is for lag tools alone. `Producer` waits for every
replica and counts what was delivered. Neither is to be shared between threads. A broker
that is down is a `status`, and both go on by themselves when it is back. The client is
imported when one of them is made, because the command line must start quickly.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

import structlog

from pennyweight.links.errors import ExtraMissing, LinkError

log = structlog.get_logger(__name__)

BATCH = 500
"""Messages that one `consume` returns at most."""

PROBE_SECONDS = 3.0
"""After so long without a sign of life the broker is asked for one."""

MISSING_SECONDS = 3.0
"""How often a consumer looks for topics that were not there when it began."""

SESSION_MILLISECONDS = 10_000
"""After a kill nobody, not even the same engine begun again, gets the partitions sooner. A member
that is taken for dead by mistake costs a rewind to the cursors and no more."""

LAST_SECONDS = 2.0
"""How long the last messages of a topic are waited for."""

CLOSE_SECONDS = 2.0
_PROBE_TIMEOUT_SECONDS = 1.0
_SILENCE_SECONDS = 0.05
"""No topic is deleted, made again and written to in so short a time."""

_MOCK_CLUSTER = "mockCluster"
"""How the client's own mock broker names itself; it knows no ids of topics."""

_NO_ID = "A" * 22
"""The id of all zeros, as text: the broker has none."""

_URL_SAFE = str.maketrans("+/", "-_")

Options = Mapping[str, str]
"""More settings of the client (`security.protocol`, `sasl.…`), which win over ours."""

Headers = tuple[tuple[str, bytes | None], ...]


class Received(Protocol):
    """A message as the client hands it over. The timestamp is (type, milliseconds)."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Any: ...
    def timestamp(self) -> tuple[int, int]: ...


Gained = Callable[[str, int, str, int | None], object]
"""Told of a partition that is ours now: topic, partition, stream, stored position."""

Lost = Callable[[Sequence[tuple[str, int]]], object]
"""Told of partitions (topic, number) that are about to be another's, or already are."""


def client() -> ModuleType:
    """Import the client. Raises ExtraMissing."""
    try:
        import confluent_kafka  # noqa: PLC0415 - 40 ms that only a server with Kafka should pay
    except ImportError as error:
        raise ExtraMissing(
            "Kafka needs the extra `kafka`: pip install 'pennyweight[kafka]'"
        ) from error
    return confluent_kafka


class _Link:
    """What consumer and producer share: settings, errors that make a status, probes.

    When the status changes from well to not, or back, the log says so once.
    """

    _does = "link"
    """What the log calls it."""

    def __init__(self, brokers: str, topic: str | None) -> None:
        """`topic` is what probes ask about, so that they stay small on a large cluster."""
        self._kafka = client()
        self._brokers = brokers
        self._topic = topic
        self._alive_at = time.monotonic()
        self._is_down = False
        self.status = ""
        """Why nothing moves, for `/readyz`; "" while all is well."""

    def _settings(self, options: Options) -> dict[str, Any]:
        return {
            "bootstrap.servers": self._brokers,
            "client.id": "pennyweight",
            "error_cb": self._on_error,
            "log_level": 0,
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1_000,
            "topic.metadata.refresh.interval.ms": 10_000,
            **options,
        }

    def _on_error(self, error: Any) -> None:
        """Note what stops everything; single brokers come and go, and the client deals with it."""
        codes = self._kafka.KafkaError
        if error.fatal() or error.code() in {
            codes._ALL_BROKERS_DOWN,  # noqa: SLF001 - the client's public names of local errors
            codes._AUTHENTICATION,  # noqa: SLF001 - as above
            codes._RESOLVE,  # noqa: SLF001 - as above
            codes._SSL,  # noqa: SLF001 - as above
        }:
            self._is_down = True
            self._is_stuck(f"{self._brokers}: {_sentence(error)}")

    def _is_stuck(self, status: str) -> None:
        if not self.status:
            log.warning("kafka is down", link=self._does, cause=status)
        self.status = status

    def _is_alive(self) -> None:
        self._alive_at = time.monotonic()
        if self.status:
            log.warning("kafka is back", link=self._does, brokers=self._brokers)
            self._is_down = False
            self.status = ""

    def _probe(self, handle: Any) -> None:
        """Ask the broker for a sign of life where there was none for a while."""
        wait = _PROBE_TIMEOUT_SECONDS if self._is_down else PROBE_SECONDS
        if time.monotonic() - self._alive_at < wait:
            return
        try:
            handle.list_topics(self._topic, timeout=_PROBE_TIMEOUT_SECONDS)
        except self._kafka.KafkaException as error:
            self._alive_at = time.monotonic()
            self._is_down = True
            self._is_stuck(f"{self._brokers}: {_sentence(error.args[0])}")
        else:
            self._is_alive()


class Consumer(_Link):
    """A member of a consumer group whose positions are kept elsewhere.

    A partition is a stream for ever: `kafka:<cluster id>/<topic's id, else its name>/<number>`.
    `position_of` is asked for the stored position of a stream when its partition is
    assigned (None: from the earliest message). `on_gain` and `on_loss` are called inside
    `consume` and `close`, in the caller's thread.
    """

    _does = "consumer"

    def __init__(
        self,
        brokers: str,
        topics: Sequence[str],
        *,
        group: str,
        position_of: Callable[[str], int | None],
        on_gain: Gained,
        on_loss: Lost,
        options: Options | None = None,
    ) -> None:
        """Join the group. Raises ExtraMissing, and LinkError while that cannot be done.

        The broker must be up and have one of the topics: a partition whose stream cannot be
        named for certain must not be read, or it would be read from its beginning again.
        Topics that are not there are `left_out`, and hold up no others; when one comes,
        `consume` raises LinkError, and a new consumer reads it as well.
        """
        super().__init__(brokers, topics[0])
        from confluent_kafka.admin import AdminClient  # noqa: PLC0415 - see `client`

        self._topics = tuple(topics)
        self._position_of = position_of
        self._on_gain = on_gain
        self._on_loss = on_loss
        self._options = options or {}
        settings = self._settings(self._options)
        del settings["error_cb"]  # its results tell what went wrong; it makes no status
        self._admin = AdminClient(settings)
        self._gained: set[tuple[str, int]] = set()
        self._is_commit_lost = False
        self._is_closed = False
        self._has_ids = False
        self._is_silent = True
        self._sure_at = self._asked_at = 0.0
        self._missing: dict[str, str] = {}
        self._missed_at = time.monotonic()
        self._names = self._identify()
        self._consumer = self._kafka.Consumer(
            {
                **self._settings({}),
                "group.id": group,
                "partition.assignment.strategy": "cooperative-sticky",
                "enable.auto.commit": False,
                "on_commit": self._committed,
                "enable.auto.offset.store": False,
                "session.timeout.ms": SESSION_MILLISECONDS,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 100,
                "fetch.error.backoff.ms": 100,
                "queued.max.messages.kbytes": 16_384,
            }
            | dict(self._options)
        )
        self._consumer.subscribe(
            list(self._names), on_assign=self._gain, on_revoke=self._lose, on_lost=self._lose
        )

    # ── messages ──────────────────────────────────────────────────────────────────

    def consume(self, limit: int, timeout_seconds: float) -> list[Received]:
        """Return what has come, waiting for `limit` messages at most so long.

        Raises LinkError when a topic is gone or may not be read, and when it was made again:
        what was received then is not returned. The caller must close this consumer and make
        a new one, which finds out what the topic's streams are called now.
        """
        if time.monotonic() - self._asked_at > _SILENCE_SECONDS:
            self._is_silent = True
        try:
            found = self._consumer.consume(min(limit, BATCH), timeout_seconds)
        except self._kafka.KafkaException as error:
            raise LinkError(_sentence(error.args[0])) from error
        self._asked_at = time.monotonic()
        if self._missing:
            self._look_for_missing()
        messages = [message for message in found if message.error() is None]
        if len(messages) < len(found):
            self._look_at_errors(found)
        if messages:
            self._make_sure()
            self._is_alive()
        else:
            self._is_silent = True
            self._probe(self._consumer)
        return messages

    def pause(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Fetch no more of these; `consume` must still be called, or the group takes them away."""
        self._consumer.pause(self._places(partitions))

    def resume(self, partitions: Iterable[tuple[str, int]]) -> None:
        """Fetch these again."""
        self._consumer.resume(self._places(partitions))

    def seek(self, topic: str, partition: int, position: int | None) -> None:
        """Go on at a position (None: the earliest message). Raises LinkError."""
        place = self._kafka.TopicPartition(topic, partition, self._offset(position))
        try:
            self._consumer.seek(place)
        except self._kafka.KafkaException as error:
            raise LinkError(_sentence(error.args[0])) from error

    def commit(self, positions: Mapping[tuple[str, int], int]) -> None:
        """Tell the broker, for tools that show lag; nobody waits for it or relies on it."""
        offsets = [
            self._kafka.TopicPartition(topic, partition, position)
            for (topic, partition), position in positions.items()
        ]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except self._kafka.KafkaException:
            self._is_commit_lost = True

    def has_lost_commit(self) -> bool:
        """Return whether the broker did not take something it was told, since the last question."""
        is_lost, self._is_commit_lost = self._is_commit_lost, False
        return is_lost

    def end(self, topic: str, partition: int) -> int | None:
        """Return the offset after the partition's last message as last heard, None before that."""
        place = self._kafka.TopicPartition(topic, partition)
        try:
            _, high = self._consumer.get_watermark_offsets(place, cached=True)
        except self._kafka.KafkaException:
            return None
        return int(high) if high >= 0 else None

    @property
    def left_out(self) -> str:
        """Which topics are not read because they are not there, for `/readyz`; "" for none."""
        return "; ".join(f"topic {topic}: {cause}" for topic, cause in self._missing.items())

    def is_same_topic(self) -> bool:
        """Return whether the topics are still those that were joined. Raises LinkError."""
        return self._identify() == self._names

    def close(self) -> None:
        """Leave the group, after `on_loss` was told of every partition.

        While the broker is down the client tries to leave for as long as its session
        lasts; after a moment it is left to that.
        """
        if self._gained:
            self._on_loss(sorted(self._gained))
        self._is_closed = True
        leave = threading.Thread(target=self._consumer.close, name="kafka-leave", daemon=True)
        leave.start()
        leave.join(CLOSE_SECONDS)

    # ── inside ────────────────────────────────────────────────────────────────────

    def _identify(self) -> dict[str, list[str]]:
        """Return, for each topic, what its streams may be called before the partition.

        By id first: a topic that was deleted and made again is another one. A book that
        has read it by name, from a broker that gave no ids yet, goes on by name.
        """
        try:
            # The mock makes a topic when it is asked about; real brokers say that there is none.
            found = [self._admin.list_topics(topic, timeout=2.0) for topic in self._topics]
        except self._kafka.KafkaException as error:
            raise LinkError(f"{self._brokers}: {_sentence(error.args[0])}") from error
        errors = {
            topic: metadata.topics[topic].error
            for topic, metadata in zip(self._topics, found, strict=True)
        }
        self._missing = {
            topic: _sentence(error) for topic, error in errors.items() if error is not None
        }
        if len(self._missing) == len(self._topics):
            raise LinkError(self.left_out)
        cluster: str | None = found[0].cluster_id
        if cluster is None:
            raise LinkError(f"{self._brokers}: it does not say which cluster it is")
        self._has_ids = not cluster.startswith(_MOCK_CLUSTER)
        ids = self._ids() if self._has_ids else {}
        self._has_ids = bool(ids)
        return {
            topic: [f"{cluster}/{name}" for name in (ids.get(topic), topic) if name]
            for topic in self._topics
            if topic not in self._missing
        }

    def _look_for_missing(self) -> None:
        """Look now and then whether a topic that was left out is there. Raises LinkError if it is."""
        now = time.monotonic()
        if now - self._missed_at < MISSING_SECONDS:
            return
        self._missed_at = now
        for topic in self._missing:
            try:
                found = self._admin.list_topics(topic, timeout=2.0)
            except self._kafka.KafkaException:
                return  # what that means is found out elsewhere
            if found.topics[topic].error is None:
                raise LinkError(f"topic {topic} is there now")

    def _ids(self) -> dict[str, str]:
        """Return the ids of the topics that have one. Raises LinkError."""
        kafka = self._kafka
        there = [topic for topic in self._topics if topic not in self._missing]
        wanted = kafka.TopicCollection(there)
        described = self._admin.describe_topics(wanted, request_timeout=3.0)
        try:
            given = {topic: future.result(5.0).topic_id for topic, future in described.items()}
        except kafka.KafkaException as error:
            raise LinkError(f"{self._brokers}: {_sentence(error.args[0])}") from error
        except TimeoutError:
            raise LinkError(f"{self._brokers}: no description of the topics") from None
        return {
            topic: str(number).translate(_URL_SAFE)
            for topic, number in given.items()
            if number is not None and str(number) != _NO_ID
        }

    def _make_sure(self) -> None:
        """Look whether messages that came after a silence are of the same topics still.

        The client goes on at the old offset of a topic that was made again, and does not
        say so. While one is deleted and made, nothing is received; so it is enough to look
        after silences, and now and then. Raises LinkError.
        """
        now = time.monotonic()
        if not self._has_ids or (not self._is_silent and now - self._sure_at < PROBE_SECONDS):
            return
        ids = self._ids()
        for topic, (name, *_) in self._names.items():
            if name.rpartition("/")[2] != ids.get(topic, topic):
                raise LinkError(f"topic {topic}: it was made again")
        self._is_silent = False
        self._sure_at = now

    def _gain(self, consumer: Any, partitions: list[Any]) -> None:
        if self._is_closed:
            return
        for place in partitions:
            self._gained.add((place.topic, place.partition))
            stream, position = self._stream(place.topic, place.partition)
            place.offset = self._offset(position)
            self._on_gain(place.topic, place.partition, stream, position)
        consumer.incremental_assign(partitions)

    def _lose(self, _: Any, partitions: list[Any]) -> None:
        if self._is_closed:
            return
        lost = [(place.topic, place.partition) for place in partitions]
        self._gained.difference_update(lost)
        self._on_loss(lost)

    def _committed(self, error: Any, places: Sequence[Any]) -> None:
        if error is not None or any(place.error is not None for place in places):
            self._is_commit_lost = True

    def _stream(self, topic: str, partition: int) -> tuple[str, int | None]:
        """Return the stream of a partition, under the name that the book knows, and its position."""
        names = [f"kafka:{name}/{partition}" for name in self._names[topic]]
        for name in names:
            position = self._position_of(name)
            if position is not None:
                return name, position
        return names[0], None

    def _offset(self, position: int | None) -> int:
        return int(self._kafka.OFFSET_BEGINNING) if position is None else position

    def _places(self, partitions: Iterable[tuple[str, int]]) -> list[Any]:
        return [self._kafka.TopicPartition(topic, number) for topic, number in partitions]

    def _look_at_errors(self, found: Sequence[Any]) -> None:
        codes = self._kafka.KafkaError
        ends = {
            codes.UNKNOWN_TOPIC_OR_PART,
            codes.UNKNOWN_TOPIC_ID,
            codes.INCONSISTENT_TOPIC_ID,
            codes.TOPIC_AUTHORIZATION_FAILED,
            codes.GROUP_AUTHORIZATION_FAILED,
        }
        for message in found:
            error = message.error()
            if error is not None and (error.fatal() or error.code() in ends):
                raise LinkError(f"topic {message.topic()}: {_sentence(error)}")


class Producer(_Link):
    """Sends messages that count only when every replica in sync has them, in order by key."""

    _does = "producer"

    def __init__(self, brokers: str, topic: str, *, options: Options | None = None) -> None:
        """`topic` is one that it will write to. Raises ExtraMissing."""
        super().__init__(brokers, topic)
        self.failed = 0
        """Messages that were given up, since the beginning."""
        self._producer = self._kafka.Producer(
            self._settings(
                {
                    "acks": "all",
                    "enable.idempotence": "true",
                    "linger.ms": "5",
                    "compression.type": "lz4",
                    "delivery.timeout.ms": "30000",
                    "topic.metadata.propagation.max.ms": "10000",
                    **(options or {}),
                }
            )
        )

    def send(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """Queue a message. Raises LinkError when it cannot be queued (too large, queue full)."""
        try:
            self._producer.produce(
                topic, value, key, headers=list(headers), on_delivery=self._delivered
            )
        except (BufferError, self._kafka.KafkaException) as error:
            cause = error.args[0]
            raise LinkError(f"topic {topic}: {_sentence(cause)}") from error

    def flush(self, timeout_seconds: float) -> int:
        """Wait at most so long for delivery reports, and return how many are still missing."""
        left: int = self._producer.flush(timeout_seconds)
        if left:
            self._probe(self._producer)
        return left

    def look(self) -> None:
        """Notice while nothing is sent whether the broker is there."""
        self._producer.poll(0)
        self._probe(self._producer)

    def close(self) -> None:
        """Give up what is still queued."""
        self._producer.purge()
        self._producer.flush(1.0)

    def _delivered(self, error: Any, message: Any) -> None:
        if error is None:
            self._is_alive()
            return
        self.failed += 1
        self._is_stuck(f"topic {message.topic()}: {_sentence(error)}")


class Outlet:
    """A broker as a relay writes to it, asked about one of the topics that are written."""

    def __init__(self, brokers: str, topic: str, *, options: Options | None = None) -> None:
        """Nothing is connected yet. Raises ExtraMissing."""
        client()
        self.name = f"topic {topic}"
        self._brokers = brokers
        self._topic = topic
        self._options = options

    def open(self) -> Producer:
        """Return what sends. Raises ExtraMissing."""
        return Producer(self._brokers, self._topic, options=self._options)

    def last_ids(self) -> list[str]:
        """See `last_ids`."""
        return last_ids(self._brokers, self._topic, options=self._options)


def last_ids(brokers: str, topic: str, *, options: Options | None = None) -> list[str]:
    """Return the `id` of the last message of each partition that has one.

    A partition whose last message cannot be had within a moment is passed over: its end may
    be no message of anybody. Raises ExtraMissing, and LinkError where the topic cannot be read.
    """
    kafka = client()
    settings = {
        "bootstrap.servers": brokers,
        "client.id": "pennyweight",
        "group.id": "pennyweight-last-ids",  # the client wants one; it is never joined
        "enable.auto.commit": False,
        "error_cb": lambda _: None,  # what went wrong is told by the calls below
        "log_level": 0,
        **(options or {}),
    }
    consumer = kafka.Consumer(settings)
    try:
        metadata = consumer.list_topics(topic, timeout=LAST_SECONDS).topics[topic]
        if metadata.error is not None:
            if metadata.error.code() in {
                kafka.KafkaError.UNKNOWN_TOPIC_OR_PART,
                kafka.KafkaError.LEADER_NOT_AVAILABLE,
            }:
                return []  # it is not there yet: who sends to it may make it
            raise LinkError(f"topic {topic}: {_sentence(metadata.error)}")
        places = []
        for number in metadata.partitions:
            place = kafka.TopicPartition(topic, number)
            low, high = consumer.get_watermark_offsets(place, timeout=LAST_SECONDS)
            if high > low:
                places.append(kafka.TopicPartition(topic, number, high - 1))
        if not places:
            return []
        consumer.assign(places)
        found: dict[int, str] = {}
        until = time.monotonic() + LAST_SECONDS
        while len(found) < len(places) and time.monotonic() < until:
            for message in consumer.consume(len(places), 0.1):
                if message.error() is None:
                    headers = dict(message.headers() or [])
                    found[message.partition()] = (headers.get("id") or b"").decode(
                        "utf-8", "replace"
                    )
        return [name for name in found.values() if name]
    except kafka.KafkaException as error:
        if error.args[0].code() == kafka.KafkaError._UNKNOWN_PARTITION:  # noqa: SLF001 - a public name
            return []  # it is being made
        raise LinkError(f"{brokers}: topic {topic}: {_sentence(error.args[0])}") from error
    finally:
        consumer.close()


def _sentence(error: Any) -> str:
    """What the client says, without its codes."""
    return str(error.str()) if hasattr(error, "str") else str(error)

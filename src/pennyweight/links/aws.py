"""SNS and SQS, held right: topics and queues that are made where they are missing, short calls.

The client is botocore, synchronous; one `Aws` serves all threads. It is imported and its
clients are made when they are needed first, because the command line must start quickly.
Everything that goes wrong is a `LinkError`, and whoever asks tries again later: a call is
tried once more at most, so that nobody hangs for longer than the timeouts below say.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import msgspec

from pennyweight.links.errors import ExtraMissing, LinkError

CONNECT_SECONDS = 2.0
READ_SECONDS = 5.0
"""How long an answer may take; that of a long poll so much more than the poll."""

POLL_SLACK_SECONDS = 2.0
WAIT_SECONDS_MAX = 20
"""What SQS allows for one long poll."""

BATCH = 10
"""Messages that one call to SQS takes or gives at most."""

RECEIVES_MAX = 5
VISIBILITY_SECONDS = 10
"""After so long a message that was received and not deleted is given again."""

DEAD_LETTER_SECONDS = 14 * 86_400
RETENTION_SECONDS = 4 * 86_400
"""How long a queue keeps what nobody reads, if its reader does not say otherwise: SQS' default."""

_DETAIL_MAX = 200
_LOCAL_NAMES = frozenset({"localhost", "localstack"})
_METADATA = "iam-role"
"""How botocore calls the provider that asks the machine's cloud for credentials."""


class Received(msgspec.Struct, frozen=True, gc=False):
    """A message of a queue. `receipt` deletes it, `count` says how often it was given by now."""

    id: str
    receipt: str
    body: str
    count: int


def client() -> ModuleType:
    """Import the client. Raises ExtraMissing."""
    try:
        import botocore.session  # type: ignore[import-untyped] # noqa: PLC0415 - 250 ms that only a server with AWS should pay
    except ImportError as error:
        raise ExtraMissing("AWS needs the extra `aws`: pip install 'pennyweight[aws]'") from error
    found: ModuleType = botocore
    return found


def is_local(endpoint: str) -> bool:
    """Whether an endpoint is an emulator's: a loopback address, or a host called "localstack"."""
    try:
        host = urlsplit(endpoint).hostname or ""
        return host in _LOCAL_NAMES or ip_address(host).is_loopback
    except ValueError:
        return False


class Aws:
    """SNS and SQS of one endpoint and region, for any number of threads."""

    def __init__(self, endpoint: str, region: str) -> None:
        """Nothing is asked yet. No endpoint: AWS itself. Raises ExtraMissing.

        Credentials are found as botocore finds them. Where an emulator on this machine (see
        `is_local`) has been given none, they are "test" and "test", as emulators expect.
        """
        client()
        self._endpoint = endpoint
        self._region = region
        self._lock = threading.Lock()
        self._session: Any = None
        self._clients: dict[tuple[str, float], Any] = {}

    # ── topics ────────────────────────────────────────────────────────────────────

    def topic(self, name: str) -> str:
        """Return the address (ARN) of a topic, made if it is not there. Raises LinkError."""
        with self._asking(f"topic {name}"):
            return str(self._sns.create_topic(Name=name)["TopicArn"])

    def publish(self, topic_arn: str, message: str) -> None:
        """Give a message to all who listen to a topic. Raises LinkError."""
        with self._asking(_last(topic_arn)):
            self._sns.publish(TopicArn=topic_arn, Message=message)

    def subscribe(self, topic_arn: str, queue_url: str) -> None:
        """Let a topic send to a queue, bodies as they were published (raw). Raises LinkError.

        The queue's policy allows it; what the policy says of other topics stays.
        """
        with self._asking(f"{_last(queue_url)} to {_last(topic_arn)}"):
            queue_arn = self._permit(topic_arn, queue_url)
            asked = {"TopicArn": topic_arn, "Protocol": "sqs", "Endpoint": queue_arn}
            raw = {"RawMessageDelivery": "true"}
            try:
                answer = self._sns.subscribe(**asked, Attributes=raw, ReturnSubscriptionArn=True)
                found = str(answer["SubscriptionArn"])
            except self._sns.exceptions.InvalidParameterException:
                found = self._subscription(topic_arn, queue_arn)  # there is one, and not raw
                if not found:
                    raise
            # Emulators return a subscription that is there, and leave it as it was.
            self._sns.set_subscription_attributes(
                SubscriptionArn=found, AttributeName="RawMessageDelivery", AttributeValue="true"
            )

    def _subscription(self, topic_arn: str, queue_arn: str) -> str:
        """Return the address of a queue's subscription, "" if there is none."""
        pages = self._sns.get_paginator("list_subscriptions_by_topic")
        for page in pages.paginate(TopicArn=topic_arn):
            for subscription in page.get("Subscriptions", ()):
                if subscription["Endpoint"] == queue_arn:
                    return str(subscription["SubscriptionArn"])
        return ""

    def _permit(self, topic_arn: str, queue_url: str) -> str:
        """Let a topic send to a queue, and return the queue's address."""
        sqs = self._sqs()
        names = ["QueueArn", "Policy"]
        found = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=names)["Attributes"]
        queue_arn = str(found["QueueArn"])
        before = _statements(found.get("Policy", ""))
        statement = {
            "Sid": f"pennyweight-{_last(topic_arn)}",
            "Effect": "Allow",
            "Principal": {"Service": "sns.amazonaws.com"},
            "Action": "sqs:SendMessage",
            "Resource": queue_arn,
            "Condition": {"ArnEquals": {"aws:SourceArn": topic_arn}},
        }
        if statement not in before:
            others = [other for other in before if other.get("Sid") != statement["Sid"]]
            policy = {"Version": "2012-10-17", "Statement": [*others, statement]}
            sqs.set_queue_attributes(QueueUrl=queue_url, Attributes={"Policy": json.dumps(policy)})
        return queue_arn

    # ── queues ────────────────────────────────────────────────────────────────────

    def queue(
        self,
        name: str,
        *,
        dead_letter: str = "",
        receives_max: int = RECEIVES_MAX,
        retention_seconds: int = RETENTION_SECONDS,
    ) -> str:
        """Return the address (URL) of a queue, made if it is not there. Raises LinkError.

        What was received `receives_max` times and never deleted goes to the queue called
        `dead_letter`, which is made, too. A queue that is there gets these settings.
        """
        with self._asking(f"queue {name}"):
            sqs = self._sqs()
            settings = {
                "MessageRetentionPeriod": str(retention_seconds),
                "VisibilityTimeout": str(VISIBILITY_SECONDS),
            }
            if dead_letter:
                dead_url = sqs.create_queue(QueueName=dead_letter)["QueueUrl"]
                kept = {"MessageRetentionPeriod": str(DEAD_LETTER_SECONDS)}
                sqs.set_queue_attributes(QueueUrl=dead_url, Attributes=kept)
                asked = sqs.get_queue_attributes(QueueUrl=dead_url, AttributeNames=["QueueArn"])
                settings["RedrivePolicy"] = json.dumps(
                    {
                        "deadLetterTargetArn": asked["Attributes"]["QueueArn"],
                        "maxReceiveCount": receives_max,
                    }
                )
            # Made without settings: with others than it has, a queue that is there is an error.
            url = str(sqs.create_queue(QueueName=name)["QueueUrl"])
            sqs.set_queue_attributes(QueueUrl=url, Attributes=settings)
            return url

    def receive(
        self, queue_url: str, *, wait_seconds: int = WAIT_SECONDS_MAX, count: int = BATCH
    ) -> list[Received]:
        """Return what has come, waiting for so long for a first message. Raises LinkError."""
        with self._asking(_last(queue_url)):
            answer = self._sqs(wait_seconds + POLL_SLACK_SECONDS).receive_message(
                QueueUrl=queue_url,
                WaitTimeSeconds=wait_seconds,
                MaxNumberOfMessages=count,
                MessageSystemAttributeNames=["ApproximateReceiveCount"],
            )
            return [
                Received(
                    str(message["MessageId"]),
                    str(message["ReceiptHandle"]),
                    str(message["Body"]),
                    int(message.get("Attributes", {}).get("ApproximateReceiveCount", 1)),
                )
                for message in answer.get("Messages", ())
            ]

    def delete(self, queue_url: str, receipts: Sequence[str]) -> None:
        """Delete messages. Raises LinkError; what SQS leaves for its own reasons comes again."""
        with self._asking(_last(queue_url)):
            for start in range(0, len(receipts), BATCH):
                part = receipts[start : start + BATCH]
                entries = [{"Id": str(n), "ReceiptHandle": one} for n, one in enumerate(part)]
                self._sqs().delete_message_batch(QueueUrl=queue_url, Entries=entries)

    def close(self) -> None:
        """Close what is idle. A call under way ends as it would; a new one opens again."""
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
            self._session = None
        for one in clients:
            one.close()

    # ── clients ───────────────────────────────────────────────────────────────────

    @property
    def _sns(self) -> Any:
        return self._client("sns", READ_SECONDS)

    def _sqs(self, read_seconds: float = READ_SECONDS) -> Any:
        return self._client("sqs", read_seconds)

    def _client(self, service: str, read_seconds: float) -> Any:
        """Return a client that waits so long for an answer. Making one is for one thread at a time."""
        with self._lock:
            found = self._clients.get((service, read_seconds))
            if found is None:
                found = self._open(service, read_seconds)
                self._clients[service, read_seconds] = found
            return found

    def _open(self, service: str, read_seconds: float) -> Any:
        from botocore.config import Config  # type: ignore[import-untyped] # noqa: PLC0415 - see `client`

        is_emulator = is_local(self._endpoint)
        if self._session is None:
            self._session = _session(is_emulator=is_emulator)
        settings: dict[str, Any] = {
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": read_seconds,
            "retries": {"mode": "standard", "total_max_attempts": 2},
        }
        if is_emulator:
            settings["proxies"] = {}  # what the environment names is for what is far away
        return self._session.create_client(
            service,
            region_name=self._region,
            endpoint_url=self._endpoint or None,
            config=Config(**settings),
        )

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Turn whatever botocore raises into a LinkError that says what was asked."""
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped] # noqa: PLC0415 - see `client`
        from botocore.parsers import ResponseParserError  # type: ignore[import-untyped] # noqa: PLC0415 - see `client`

        try:
            yield
        except ClientError as error:
            told = error.response.get("Error", {})
            detail = f"{told.get('Code', 'error')}: {told.get('Message', '')}"
            raise LinkError(f"{what}: {_short(detail)}") from error
        except (BotoCoreError, ResponseParserError) as error:
            raise LinkError(f"{what}: {_short(error)}") from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            # An answer of another shape, or an endpoint that is no URL.
            raise LinkError(f"{what}: {_short(f'not understood: {error!r}')}") from error


def _session(*, is_emulator: bool) -> Any:
    """Return a session with credentials. Raises LinkError, and what botocore raises."""
    from botocore.session import get_session  # noqa: PLC0415 - see `client`

    session = get_session()
    if is_emulator:  # whoever asks a cloud for credentials that is not there waits for seconds
        session.get_component("credential_provider").remove(_METADATA)
    if session.get_credentials() is None:
        if not is_emulator:
            raise LinkError("no credentials for AWS were found")
        session.set_credentials("test", "test")
    return session


def _statements(policy: str) -> list[dict[str, Any]]:
    """Return what a queue's policy says; nothing for one that is missing or no policy."""
    try:
        statements = json.loads(policy)["Statement"]
    except (LookupError, TypeError, ValueError):
        return []
    found = statements if isinstance(statements, list) else [statements]
    return [one for one in found if isinstance(one, dict)]


def _last(address: str) -> str:
    """Return the name in a topic's or a queue's address."""
    return address.replace("/", ":").rpartition(":")[2]


def _short(detail: object) -> str:
    """Return an error's text in one line that fits into a log and into `/readyz`."""
    text = " ".join(str(detail).split())
    return text if len(text) <= _DETAIL_MAX else f"{text[:_DETAIL_MAX]}…"

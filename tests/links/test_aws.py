"""SNS and SQS over the real protocol, and everything that can go wrong on the way there."""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest

from ministack import MiniStack, running
from pennyweight.links import aws as aws_module
from pennyweight.links.aws import Aws, Received, is_local
from pennyweight.links.errors import ExtraMissing, LinkError

REGION = "us-east-1"


@pytest.fixture(scope="module")
def stack() -> Iterator[MiniStack]:
    with running() as stack:
        yield stack


@pytest.fixture
def aws(stack: MiniStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    without_credentials(monkeypatch)
    aws = Aws(stack.endpoint, REGION)
    yield aws
    aws.close()


def without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere/credentials")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere/config")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def some_name(what: str) -> str:
    return f"{what}-{uuid4().hex[:8]}"


def attributes(aws: Aws, url: str) -> dict[str, str]:
    found: dict[str, str] = aws._sqs().get_queue_attributes(QueueUrl=url, AttributeNames=["All"])[
        "Attributes"
    ]
    return found


def receive_all(aws: Aws, url: str, count: int) -> list[Received]:
    found: list[Received] = []
    until = time.monotonic() + 20
    while len(found) < count:
        assert time.monotonic() < until, f"{len(found)} of {count} messages came"
        found.extend(aws.receive(url, wait_seconds=1))
    return found


def test_messages_from_topic_to_queue(aws: Aws) -> None:
    name = some_name("prices")
    for _ in range(3):  # every start does all of it
        topic = aws.topic(name)
        url = aws.queue(f"{name}-ours", dead_letter=f"{name}-dead", retention_seconds=120)
        aws.subscribe(topic, url)
    bodies = [json.dumps({"number": number, "text": "é<&>"}) for number in range(25)]
    for body in bodies:
        aws.publish(topic, body)
    found = receive_all(aws, url, len(bodies))
    assert sorted(message.body for message in found) == sorted(bodies)  # once each, and raw
    assert {message.count for message in found} == {1}
    assert len({message.id for message in found}) == len(bodies)
    aws.delete(url, [message.receipt for message in found])
    left = attributes(aws, url)
    assert left["ApproximateNumberOfMessages"] == "0"
    assert left["ApproximateNumberOfMessagesNotVisible"] == "0"
    assert aws.receive(url, wait_seconds=0) == []
    aws.delete(url, [message.receipt for message in found])  # and again
    aws.delete(url, [])


def test_queue_settings(aws: Aws) -> None:
    name = some_name("queue")
    aws.queue(name)
    url = aws.queue(name, dead_letter=f"{name}-dead", receives_max=3, retention_seconds=120)
    found = attributes(aws, url)
    assert found["MessageRetentionPeriod"] == "120"
    assert found["VisibilityTimeout"] == "10"
    redrive = json.loads(found["RedrivePolicy"])
    assert redrive["deadLetterTargetArn"].endswith(f":{name}-dead")
    assert int(redrive["maxReceiveCount"]) == 3
    dead = attributes(aws, aws._sqs().get_queue_url(QueueName=f"{name}-dead")["QueueUrl"])
    assert dead["MessageRetentionPeriod"] == str(14 * 86_400)


def test_queue_policy_lets_topics_send(aws: Aws) -> None:
    url = aws.queue(some_name("queue"))
    topics = [aws.topic(some_name("topic")) for _ in range(2)]
    for topic in (*topics, *topics):
        aws.subscribe(topic, url)
    found = attributes(aws, url)
    statements = json.loads(found["Policy"])["Statement"]
    assert [one["Condition"]["ArnEquals"]["aws:SourceArn"] for one in statements] == topics
    assert {one["Resource"] for one in statements} == {found["QueueArn"]}
    assert {one["Principal"]["Service"] for one in statements} == {"sns.amazonaws.com"}


def test_subscription_that_wraps_is_made_raw(aws: Aws) -> None:
    topic, url = aws.topic(some_name("topic")), aws.queue(some_name("queue"))
    arn = attributes(aws, url)["QueueArn"]
    aws._sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    aws.publish(topic, "first")
    (wrapped,) = receive_all(aws, url, 1)
    assert json.loads(wrapped.body)["Message"] == "first"
    aws.subscribe(topic, url)
    aws.publish(topic, "second")
    (raw,) = receive_all(aws, url, 1)
    assert raw.body == "second"
    assert aws._subscription(topic, arn).startswith(topic)
    assert aws._subscription(topic, "another") == ""


@pytest.mark.parametrize("is_there", [True, False])
def test_subscription_with_other_attributes_is_an_error_at_aws(
    aws: Aws, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    topic, url = aws.topic(some_name("topic")), aws.queue(some_name("queue"))
    client = aws._sns
    if is_there:
        arn = attributes(aws, url)["QueueArn"]
        client.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    told = {"Error": {"Code": "InvalidParameter", "Message": "exists with different attributes"}}
    refused = client.exceptions.InvalidParameterException(told, "Subscribe")

    def subscribe(**_: object) -> None:
        raise refused

    monkeypatch.setattr(client, "subscribe", subscribe)
    if is_there:
        aws.subscribe(topic, url)
        aws.publish(topic, "raw")
        assert receive_all(aws, url, 1)[0].body == "raw"
    else:
        with pytest.raises(LinkError, match="InvalidParameter"):
            aws.subscribe(topic, url)


def test_messages_not_deleted_come_again_then_lie_dead(
    aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_module, "VISIBILITY_SECONDS", 1)
    name = some_name("queue")
    url = aws.queue(name, dead_letter=f"{name}-dead", receives_max=2)
    topic = aws.topic(some_name("topic"))
    aws.subscribe(topic, url)
    aws.publish(topic, "poison")
    assert [receive_all(aws, url, 1)[0].count for _ in range(2)] == [1, 2]
    dead = aws._sqs().get_queue_url(QueueName=f"{name}-dead")["QueueUrl"]
    found: list[Received] = []
    until = time.monotonic() + 20
    while not found:
        assert time.monotonic() < until
        assert aws.receive(url, wait_seconds=1) == []  # SQS moves it when it is asked
        found = aws.receive(dead, wait_seconds=0)
    assert found[0].body == "poison"


def test_clients_shared_by_threads(aws: Aws) -> None:
    topic, url = aws.topic(some_name("topic")), aws.queue(some_name("queue"))
    aws.subscribe(topic, url)
    errors: list[Exception] = []

    def publish(number: int) -> None:
        try:
            for part in range(5):
                aws.publish(topic, f"{number}.{part}")
        except LinkError as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len({message.body for message in receive_all(aws, url, 20)}) == 20


def test_what_aws_refuses(aws: Aws, stack: MiniStack) -> None:
    with pytest.raises(LinkError, match=r"^missing: .*NonExistentQueue"):
        aws.receive(f"{stack.endpoint}/000000000000/missing", wait_seconds=0)
    with pytest.raises(LinkError, match=r"^no-such-topic: NotFound"):
        aws.publish(f"arn:aws:sns:{REGION}:000000000000:no-such-topic", "x")
    with pytest.raises(LinkError):
        aws.queue("not/a name")


def test_close_opens_again(aws: Aws) -> None:
    name = some_name("topic")
    topic = aws.topic(name)
    aws.close()
    aws.close()
    assert aws.topic(name) == topic


# ── without an emulator ───────────────────────────────────────────────────────────


class Garbler(BaseHTTPRequestHandler):
    """Answers whatever it is told to."""

    status = 200
    body = b""
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def garbler() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Garbler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


NONSENSE = (
    b"",
    b"{}",
    b"[]",
    b"null",
    b"<html>no</html>",
    b'{"QueueUrl": 1}',
    b'{"Messages": 1}',
    b'{"Messages": [{"Body": "x"}]}',
    b'{"Attributes": []}',
    b"\xff\xfe",
    b"<CreateTopicResponse></CreateTopicResponse>",
    b"<a><b></a>",
)


@pytest.mark.parametrize("status", [200, 400])
def test_answers_that_make_no_sense(
    garbler: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    without_credentials(monkeypatch)
    monkeypatch.setattr(Garbler, "status", status)
    aws = Aws(garbler, REGION)
    told: list[str] = []
    for body in NONSENSE:
        monkeypatch.setattr(Garbler, "body", body)
        for ask in (
            lambda: aws.topic("t"),
            lambda: aws.queue("q", dead_letter="d"),
            lambda: aws.subscribe("arn:t", f"{garbler}/q"),
            lambda: aws.receive(f"{garbler}/q", wait_seconds=0),
            lambda: aws.delete(f"{garbler}/q", ["r"]),
            lambda: aws.publish("arn:t", "m"),
        ):
            try:
                ask()
            except LinkError as error:
                told.append(str(error))
    assert len(told) > 2 * len(NONSENSE)  # an empty answer may be a good one
    assert all("\n" not in text and len(text) < 300 for text in told)
    aws.close()


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(monkeypatch)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        aws = Aws(f"http://127.0.0.1:{free.getsockname()[1]}", REGION)
        with pytest.raises(LinkError, match=r"^topic t: Could not connect"):
            aws.topic("t")
        aws.close()


def test_silence_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(monkeypatch)
    monkeypatch.setattr(aws_module, "POLL_SLACK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        aws = Aws(url, REGION)
        with pytest.raises(LinkError, match=r"^q: Read timeout"):
            aws.receive(f"{url}/q", wait_seconds=0)
        aws.close()


def test_credentials_are_guessed_for_emulators_only(monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(monkeypatch)
    far = Aws("http://aws.invalid:4566", REGION)
    with pytest.raises(LinkError, match="no credentials for AWS"):
        far.topic("t")
    for endpoint in ("http://localhost:1", "http://localstack:4566", "http://[::1]:1"):
        near = Aws(endpoint, REGION)
        credentials = near._sns._request_signer._credentials
        assert (credentials.access_key, credentials.secret_key) == ("test", "test")
        near.close()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for endpoint in ("http://localhost:1", "http://aws.invalid:4566", ""):
        given = Aws(endpoint, REGION)
        assert given._sns._request_signer._credentials.access_key == "mine"
        given.close()


def test_credentials_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    without_credentials(monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(LinkError, match="nobody"):
        Aws("http://localhost:1", REGION).topic("t")
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(LinkError, match="not understood"):
        Aws("no url", REGION).topic("t")


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("http://127.0.0.1:4566", True),
        ("http://127.1.2.3", True),
        ("http://[::1]:4566", True),
        ("http://LOCALHOST:4566", True),
        ("http://localstack:4566", True),
        ("http://localstack.example.com:4566", False),
        ("http://10.0.0.1:4566", False),
        ("https://sns.us-east-1.amazonaws.com", False),
        ("http://[", False),
        ("localhost", False),
        ("", False),
    ],
)
def test_local_endpoints(endpoint: str, expected: bool) -> None:
    assert is_local(endpoint) == expected


def test_client_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(ExtraMissing, match=r"pennyweight\[aws\]"):
        Aws("http://localhost:1", REGION)

"""The client of a search engine: what is asked, what is believed, and what each answer means."""

import datetime as dt
import ipaddress
import socket
import ssl
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pennyweight.links import search as search_module
from pennyweight.links.errors import ExtraMissing, LinkError
from pennyweight.links.search import Document, NameTaken, Search, TooLarge, Unfit, number_of
from pennyweight.simulators.searchstub import SearchStub


@pytest.fixture
def stub() -> Iterator[SearchStub]:
    with SearchStub() as stub:
        yield stub


@pytest.fixture
def link(stub: SearchStub) -> Iterator[Search]:
    with Search(stub.url, prefix="pw-", timeout_seconds=5) as link:
        link.create("things")
        yield link


def things(*versions: int) -> list[Document]:
    return [
        Document("things", f"id-{number}", version, b'{"sequence":%d}' % version)
        for number, version in enumerate(versions)
    ]


def test_bulk_is_taken_once(link: Search, stub: SearchStub) -> None:
    taken = link.bulk(things(1, 2))
    assert (taken.done, taken.present, list(taken.again)) == (2, 0, [])
    again = link.bulk([*things(1, 2), Document("things", "x", 3, b"{}")])
    assert (again.done, again.present, list(again.rejected)) == (1, 2, [])
    assert stub.engine.versions("pw-things") == {"id-0": 1, "id-1": 2, "x": 3}


def test_older_versions_overwrite_nothing(link: Search, stub: SearchStub) -> None:
    link.bulk(things(5))
    assert link.bulk(things(4)).present == 1
    assert link.bulk(things(6)).done == 1
    assert stub.engine.documents("pw-things") == {"id-0": {"sequence": 6}}


def test_items_are_told_apart(link: Search, stub: SearchStub) -> None:
    answers = {"id-1": 400, "id-2": 429, "id-3": 503}
    stub.faults.item = lambda _, one: answers.get(one, 0)
    documents = things(1, 2, 3, 4)
    taken = link.bulk(documents)
    assert taken.done == 1
    assert [one.document for one in taken.rejected] == [documents[1]]
    assert "mapper_parsing_exception" in taken.rejected[0].reason
    assert taken.again == documents[2:]
    assert "503" in taken.cause


@pytest.mark.parametrize("status", [401, 403, 404])
def test_items_that_no_document_can_help_stop_all(
    link: Search, stub: SearchStub, status: int
) -> None:
    stub.faults.item = lambda _, _one: status
    with pytest.raises(LinkError, match=f"{status} for pw-things"):
        link.bulk(things(1))


def test_nothing_makes_an_index_by_itself(link: Search, stub: SearchStub) -> None:
    with pytest.raises(LinkError, match="404 for pw-others"):
        link.bulk([Document("others", "1", 1, b"{}")])
    stub.engine._create("pw-others", {})
    with pytest.raises(LinkError, match="404"):  # not even into one that is no alias
        link.bulk([Document("others", "1", 1, b"{}")])


def test_bulk_into_a_named_index(link: Search, stub: SearchStub) -> None:
    place = link.create("things", 2, is_alias=False)
    assert place == "pw-things-000002"
    assert link.bulk(things(1), {"things": place}).done == 1
    assert list(stub.engine.versions(place)) == ["id-0"]
    assert stub.engine.versions("pw-things") == {}


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_bulk_that_is_not_taken_now(link: Search, stub: SearchStub, status: int) -> None:
    stub.faults.statuses.append(status)
    with pytest.raises(LinkError, match=f"answers {status} for the bulk: "):
        link.bulk(things(1))


def test_bulk_that_is_too_large(link: Search, stub: SearchStub) -> None:
    stub.faults.bytes_max = 50
    with pytest.raises(TooLarge):
        link.bulk(things(1))


def test_bulk_that_is_refused_for_one_of_its_ids(link: Search) -> None:
    with pytest.raises(Unfit, match="validation"):
        link.bulk([*things(1), Document("things", "x" * 513, 1, b"{}")])


def test_reset_connection_is_opened_once_more(link: Search, stub: SearchStub) -> None:
    stub.faults.resets_before = 1
    assert link.bulk(things(1)).done == 1
    stub.faults.resets_before = 2
    with pytest.raises(LinkError):
        link.bulk(things(2))
    assert link.bulk(things(2)).done == 1


def test_engine_that_is_away_and_back(link: Search, stub: SearchStub) -> None:
    link.bulk(things(1))
    stub.down()
    for _ in range(2):
        with pytest.raises(LinkError, match="refused") as caught:
            link.bulk(things(2))
        assert "0x" not in str(caught.value)
    stub.up()
    assert link.bulk(things(2)).done == 1


def test_engine_that_does_not_answer(stub: SearchStub) -> None:
    stub.faults.is_hanging = True
    with (
        Search(stub.url, timeout_seconds=0.2) as link,
        pytest.raises(LinkError, match="does not answer in time"),
    ):
        link.bulk(things(1))


@pytest.mark.parametrize("document_id", ["a b", 'quo"te', "back\\slash", "\u20ac", "line\nbreak"])
def test_ids_of_any_letters(link: Search, stub: SearchStub, document_id: str) -> None:
    link.bulk([Document("things", document_id, 1, b"{}")])
    assert list(stub.engine.versions("pw-things")) == [document_id]


# ── who asks ──────────────────────────────────────────────────────────────────────


def basic(pair: str) -> str:
    return f"Basic {b64encode(pair.encode()).decode()}"


@pytest.mark.parametrize(
    ("user", "api_key", "header"),
    [
        ("", "", ""),
        ("elastic:p%40ss%3A@", "", basic("elastic:p@ss:")),
        ("m%C3%BCller:x@", "", basic("m\u00fcller:x")),
        ("", "c2VjcmV0", "ApiKey c2VjcmV0"),
        ("", "id:key", f"ApiKey {b64encode(b'id:key').decode()}"),
        ("elastic:x@", "c2VjcmV0", "ApiKey c2VjcmV0"),
    ],
)
def test_who_asks(user: str, api_key: str, header: str) -> None:
    with SearchStub(authorization=header) as stub:
        url = stub.url.replace("//", f"//{user}")
        with Search(url, api_key=api_key, timeout_seconds=5) as link:
            assert link.place("things") is None
        if header:
            with (
                Search(stub.url.replace("//", "//who:secret@")) as link,
                pytest.raises(LinkError, match=r"does not let us, see search\.url") as caught,
            ):
                link.place("things")
            assert "secret" not in str(caught.value)


def test_engine_behind_a_path() -> None:
    with SearchStub(path="/search") as stub, Search(f"{stub.url}/", timeout_seconds=5) as link:
        assert link.create("things") == "things-000001"
        assert link.bulk(things(1)).done == 1


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody knows, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "certificate.pem"
    pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, pkcs8, plain))
    return file


def test_certificates_are_checked(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(http(b'{"errors":false}'), certificate=certificate) as url:
        with (
            Search(url, timeout_seconds=5) as link,
            pytest.raises(LinkError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            link.bulk(things(1))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with Search(url, timeout_seconds=5) as link:
            assert link.bulk(things(1)).done == 1


# ── indices ───────────────────────────────────────────────────────────────────────


def test_place_behind_an_alias(link: Search, stub: SearchStub) -> None:
    assert link.place("things") == "pw-things-000001"
    assert link.place("others") is None
    assert link.create("things") is None
    stub.engine._create("pw-others", {})
    with pytest.raises(NameTaken, match=r"index pw-others that is not ours"):
        link.place("others")
    stub.engine._create("theirs", {"aliases": {"pw-more": {"is_write_index": True}}})
    with pytest.raises(NameTaken, match=r"alias pw-more of theirs"):
        link.place("more")


def test_alias_is_switched_at_once(link: Search) -> None:
    place = link.create("things", 2, is_alias=False)
    assert place is not None
    link.switch([("things", "pw-things-000001", place)])
    assert link.place("things") == place
    assert link.delete("pw-things-000001")
    assert not link.delete("pw-things-000001")


def test_notes_on_an_index(link: Search) -> None:
    assert link.meta("pw-things-000001") == {}
    link.put_meta("pw-things-000001", {"lacks_until": 7})
    assert link.meta("pw-things-000001") == {"lacks_until": 7}


def test_newest_document(link: Search) -> None:
    assert link.newest("things", ("sequence",)) is None
    link.bulk(things(3, 12, 5))
    assert link.newest("things", ("sequence",)) == {"sequence": 12}
    assert link.count("pw-things") == 3
    (hit,) = link.search("pw-things", {"query": {"term": {"sequence": 5}}})
    assert hit["_id"] == "id-2"


def test_numbers_of_indices() -> None:
    assert number_of("pw-things-000012", "pw-things") == 12
    for place in ("pw-things", "pw-things-12", "pw-others-000001", "pw-things-000001x"):
        assert number_of(place, "pw-things") is None


# ── answers that are none ─────────────────────────────────────────────────────────


@contextmanager
def answering(answer: bytes, *, drips: int = 1, certificate: Path | None = None) -> Iterator[str]:
    """A server that says the same to everybody, in so many pieces."""
    listener = socket.create_server(("127.0.0.1", 0))
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if context is not None:
                try:
                    connection = context.wrap_socket(connection, server_side=True)
                except OSError:
                    connection.close()
                    continue
            with connection:
                connection.recv(65_536)
                size = max(1, -(-len(answer) // drips))
                for at in range(0, len(answer), size):
                    try:
                        connection.sendall(answer[at : at + size])
                    except OSError:
                        break
                    if drips > 1:
                        stop.wait(0.05)

    stop = threading.Event()
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        scheme = "http" if certificate is None else "https"
        yield f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def http(body: bytes, *, status: int = 200, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d x\r\nConnection: close\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status,
        more,
        len(body),
        body,
    )


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (http(b"<html>"), "something else"),
        (http(b"{}"), "something else"),
        (http(b'{"errors":true,"items":[]}'), "answered 0 of 1"),
        (http(b'{"errors":true,"items":[{}]}'), "answers 0 for"),
        (http(b'{"errors":true,"items":[{"index":{"status":"x"}}]}'), "something else"),
        (http(b"<html>", status=502), "answers 502 for the bulk"),
        (http(b"", status=302, more=b"Location: http://other/\r\n"), "answers 302"),
        (b"rubbish\r\n\r\n", "hung up"),
        (b"", "hung up|reset"),
    ],
)
def test_answers_that_are_no_answers(answer: bytes, problem: str) -> None:
    with (
        answering(answer) as url,
        Search(url, timeout_seconds=5) as link,
        pytest.raises(LinkError, match=problem),
    ):
        link.bulk(things(1))


def test_answers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "ANSWER_LENGTH_MAX", 1_000)
    with (
        answering(http(b" " * 5_000)) as url,
        Search(url, timeout_seconds=5) as link,
        pytest.raises(LinkError, match="more than 1000 bytes"),
    ):
        link.bulk(things(1))


def test_answers_that_drip_are_given_up() -> None:
    with (
        answering(http(b" " * 400), drips=60) as url,
        Search(url, timeout_seconds=0.3) as link,
        pytest.raises(LinkError, match="takes longer than"),
    ):
        link.bulk(things(1))


def test_client_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "urllib3", None)
    with pytest.raises(ExtraMissing, match=r"pennyweight\[search\]"):
        Search("http://127.0.0.1:9200")


def test_name_that_is_not_known() -> None:
    with (
        Search("http://nobody.invalid:9200", timeout_seconds=5) as link,
        pytest.raises(LinkError, match=r"nobody\.invalid:9200: "),
    ):
        link.bulk(things(1))

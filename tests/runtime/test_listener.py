"""The owner's end: who is let in, and what becomes of those who misbehave."""

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from pennyweight.engine.engine import RULES, Submission
from pennyweight.engine.receipts import Receipt, Unknown
from pennyweight.products.general import OpenAccount, RegisterAsset, Transfer
from pennyweight.runtime import frames as wire
from pennyweight.runtime import listener as listener_module
from pennyweight.runtime.frames import GREETING_BYTES_MAX, VERSION, proof_of
from pennyweight.runtime.listener import Listener
from wired import SECRET, WAIT_SECONDS, Asking, Loop, Owner, commands, until


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.close()


class Stranger:
    """A raw connection that speaks frames, or anything else."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=WAIT_SECONDS)
        self.stream = self.socket.makefile("rb")

    def say(self, *message: Any) -> None:
        body = msgspec.json.encode(message)
        self.socket.sendall(len(body).to_bytes(4) + body)

    def hear(self, *kinds: str) -> Any:
        """Return the next message, or the next one of these kinds; None at the end."""
        while True:
            try:
                length = self.stream.read(4)
                if len(length) < 4:
                    return None
                message = msgspec.json.decode(self.stream.read(int.from_bytes(length)))
            except ConnectionResetError:
                return None
            if not kinds or message[0] in kinds:
                return message

    def greet(
        self,
        *,
        secret: bytes = SECRET,
        version: int = VERSION,
        rules: int = RULES,
        book: str = "main",
        purpose: str = "commands",
    ) -> Any:
        """Introduce oneself, and return what the owner says to that."""
        challenge = self.hear()
        assert challenge[:4] == ["challenge", VERSION, RULES, "main"]
        mine, its = os.urandom(32), msgspec.convert(challenge[4], bytes)
        proof = proof_of(secret, "front", book, purpose, its, mine)
        self.say("introduction", version, rules, book, purpose, mine, proof)
        answer = self.hear()
        if answer[0] == "welcome":
            told = msgspec.convert(answer[1], bytes)
            assert told == proof_of(SECRET, "owner", "main", "commands", its, mine)
        return answer

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


@pytest.fixture
def stranger(owner: Owner) -> Iterator[Stranger]:
    stranger = Stranger(owner.address)
    yield stranger
    stranger.close()


# ── greetings ─────────────────────────────────────────────────────────────────────


def test_welcome_then_assets_then_status(owner: Owner, stranger: Stranger) -> None:
    _, _, incarnation, epoch = stranger.greet()
    assert (incarnation, epoch) == ("first", 0)
    kind, assets = stranger.hear()
    assert (kind, len(assets)) == ("assets", len(owner.book.standing.assets))
    kind, sequence, figures, boards = stranger.hear()
    assert (kind, sequence) == ("status", owner.book.engine.head.sequence)
    assert (figures["limit"], boards) == (10_000, {})


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"secret": b"another"}, "it does not know our secret"),
        ({"secret": b""}, "it does not know our secret"),
        ({"version": VERSION + 1}, f"it has version {VERSION + 1} of the wire and {RULES} of"),
        ({"rules": RULES + 1}, f"it has version {VERSION} of the wire and {RULES + 1} of"),
        ({"book": "other"}, "it asks for the book 'other', this is 'main'"),
        ({"purpose": "mirror"}, "it comes for 'mirror'"),
    ],
)
def test_turned_away(owner: Owner, stranger: Stranger, wrong: dict[str, Any], why: str) -> None:
    with capture_logs() as logs:
        kind, told = stranger.greet(**wrong)
        assert kind == "turned_away"
        assert told.startswith(why)
        assert stranger.hear() is None
    until(lambda: not owner.listener.fronts)
    (line,) = logs
    assert (line["event"], line["why"]) == ("a front was turned away", told)


def test_same_complaint_is_logged_once(owner: Owner) -> None:
    with capture_logs() as logs:
        for _ in range(5):
            stranger = Stranger(owner.address)
            assert stranger.greet(secret=b"another")[0] == "turned_away"
            stranger.close()
    assert len(logs) == 1


def test_who_has_not_proven_anything_is_not_heard(owner: Owner, stranger: Stranger) -> None:
    stranger.hear()
    stranger.say("asks", [[1, "ledger.open_account", {"account": "user:1:USD"}, "k", None]])
    assert stranger.hear() is None
    assert owner.store.account("user:1:USD") is None


def test_old_proof_is_no_proof(owner: Owner, stranger: Stranger) -> None:
    its = msgspec.convert(stranger.hear()[4], bytes)
    mine = bytes(32)
    other = Stranger(owner.address)
    other.hear()
    proof = proof_of(SECRET, "front", "main", "commands", its, mine)
    other.say("introduction", VERSION, RULES, "main", "commands", mine, proof)
    assert other.hear()[0] == "turned_away"
    other.close()


def test_not_the_owner(owner: Owner) -> None:
    owner.loop.do(setattr, owner.listener, "book", None)
    stranger = Stranger(owner.address)
    assert stranger.hear() == ["farewell"]
    assert stranger.hear() is None
    stranger.close()


def test_silence_ends_a_greeting(owner: Owner, stranger: Stranger, monkeypatch: Any) -> None:
    monkeypatch.setattr(wire, "SILENT_BEATS_MAX", 1)
    assert stranger.hear()[0] == "challenge"
    assert stranger.hear() is None


def test_slow_greeting_ends(owner: Owner, stranger: Stranger, monkeypatch: Any) -> None:
    monkeypatch.setattr(wire, "SILENT_BEATS_MAX", 2)
    stranger.hear()
    is_over = threading.Event()

    def drip() -> None:
        try:
            while not is_over.wait(0.05):
                stranger.say("ping")
        except OSError:
            pass

    thread = threading.Thread(target=drip)
    thread.start()
    assert stranger.hear() is None
    is_over.set()
    thread.join()


# ── what is no frame ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        (GREETING_BYTES_MAX + 1).to_bytes(4),
        (3).to_bytes(4) + b"{]}",
        (2).to_bytes(4) + b"[]",
        bytes(4),
        (9).to_bytes(4) + b'["hello"]',
        (2_000).to_bytes(4) + b"[" * 2_000,
        (4).to_bytes(4) + b'"\xff\xfe"',
    ],
)
def test_garbage_ends_the_connection(owner: Owner, stranger: Stranger, sent: bytes) -> None:
    stranger.hear()
    with capture_logs() as logs:
        stranger.socket.sendall(sent)
        assert stranger.hear() is None
    assert "what came is not ours" in logs[0]["why"]
    other = Stranger(owner.address)
    assert other.greet()[0] == "welcome"
    other.close()


def test_front_may_not_send_too_much_either(stranger: Stranger) -> None:
    stranger.greet()
    stranger.socket.sendall((wire.FRAME_BYTES_MAX + 1).to_bytes(4))
    assert stranger.hear("farewell") is None


def test_frame_in_pieces(owner: Owner, stranger: Stranger) -> None:
    stranger.greet()
    body = b'["asks",[[1,"ledger.open_account",{"account":"user:1:USD"},"k",null]]]'
    for byte in len(body).to_bytes(4) + body:
        stranger.socket.sendall(bytes([byte]))
    _, answers = stranger.hear("answers")
    assert answers[0][:2] == [1, 1]
    assert owner.store.account("user:1:USD") is not None


# ── commands ──────────────────────────────────────────────────────────────────────


def test_command_that_cannot_be_read_fails_alone(stranger: Stranger) -> None:
    stranger.greet()
    good = {"account": "user:1:USD"}
    stranger.say(
        "asks",
        [
            [1, "ledger.open_account", {"account": 7}, "a", None],
            [2, "ledger.no_such", good, "b", None],
            [3, "ledger.open_account", good, "c", None],
            [4, "ledger.open_account", [], "d", None],
        ],
    )
    found = {}
    while len(found) < 4:
        found |= {answer[1]: answer for answer in stranger.hear("answers")[1]}
    assert {number: answer[0] for number, answer in found.items()} == {1: 3, 2: 3, 3: 1, 4: 3}
    assert "Expected `str`, got `int`" in found[1][2]
    assert "ledger.no_such could not be read" in found[2][2]


def test_same_number_twice_ends_the_connection(owner: Owner, stranger: Stranger) -> None:
    stranger.greet()
    asked = [1, "ledger.open_account", {"account": "user:1:USD"}, "a", None]
    stranger.say("asks", [asked, asked])
    assert stranger.hear("answers") is None


def test_too_many_under_way(owner: Owner, stranger: Stranger, monkeypatch: Any) -> None:
    monkeypatch.setattr(listener_module, "IN_FLIGHT_MAX", 3)
    stranger.greet()
    stranger.say(
        "asks",
        [[n, "ledger.open_account", {"account": f"user:{n}:USD"}, f"k{n}", None] for n in range(5)],
    )
    found = []
    while len(found) < 5:
        found += stranger.hear("answers")[1]
    assert sorted(answer[1] for answer in found if answer[0] == 1) == [0, 1, 2]
    assert sorted((answer[1], answer[3]) for answer in found if answer[0] == 4) == [
        (3, "queue_full"),
        (4, "queue_full"),
    ]


def test_answers_of_a_batch_are_one_frame(stranger: Stranger) -> None:
    stranger.greet()
    stranger.say(
        "asks",
        [
            [n, "ledger.open_account", {"account": f"user:{n}:USD"}, f"k{n}", None]
            for n in range(99)
        ],
    )
    counts = []
    while sum(counts) < 99:
        counts.append(len(stranger.hear("answers")[1]))
    assert len(counts) < 10, counts  # the engine may begin its first batch before it has all


def test_who_hangs_up_takes_back_what_is_not_decided(owner: Owner, stranger: Stranger) -> None:
    stranger.greet()
    begin, leave = threading.Event(), threading.Event()
    append = owner.store.append

    def slow(batch: Any) -> None:
        begin.set()
        assert leave.wait(WAIT_SECONDS)
        append(batch)

    owner.store.append = slow  # type: ignore[method-assign]
    stranger.say("asks", [[1, "ledger.open_account", {"account": "user:1:USD"}, "a", None]])
    assert begin.wait(WAIT_SECONDS)
    stranger.say("asks", [[2, "ledger.open_account", {"account": "user:2:USD"}, "b", None]])
    until(lambda: owner.book.engine.waiting == 1)
    stranger.close()
    until(lambda: not owner.listener.fronts)
    leave.set()
    until(lambda: owner.store.account("user:1:USD"))
    until(lambda: not owner.book.engine.waiting)
    assert owner.store.account("user:2:USD") is None


def test_slow_reader_is_dropped(owner: Owner, stranger: Stranger, monkeypatch: Any) -> None:
    monkeypatch.setattr(listener_module, "UNREAD_BYTES_MAX", 100_000)
    stranger.greet()
    name = "x" * 60_000
    with capture_logs() as logs:
        for number in range(400):
            try:
                stranger.say("asks", [[number, name, {}, "k", None]])
            except OSError:
                break
        else:
            until(lambda: not owner.listener.fronts)
    assert any(line.get("why") == "it does not read its answers" for line in logs), logs


def test_front_that_falls_silent_is_dropped(
    owner: Owner, stranger: Stranger, monkeypatch: Any
) -> None:
    monkeypatch.setattr(wire, "SILENT_BEATS_MAX", 3)
    stranger.greet()
    with capture_logs() as logs:
        until(lambda: not owner.listener.fronts)
    assert logs[-1]["why"] == "nothing was heard for 0.75 seconds"


def test_front_that_only_pings_stays(owner: Owner, stranger: Stranger, monkeypatch: Any) -> None:
    monkeypatch.setattr(wire, "SILENT_BEATS_MAX", 3)
    stranger.greet()
    sequences = []
    while len(sequences) < 3:  # of which one comes each second
        stranger.say("ping")
        sequences.append(stranger.hear("status")[1])
        stranger.say("ping")
        threading.Event().wait(0.4)
    assert owner.listener.fronts == 1


# ── assets ────────────────────────────────────────────────────────────────────────


def test_assets_come_before_the_receipt(stranger: Stranger) -> None:
    stranger.greet()
    stranger.hear("assets")
    asked = {"asset": "NEW", "scale": 3, "currency_id": 77}
    stranger.say("asks", [[1, "ledger.register_asset", asked, "k", None]])
    assert stranger.hear("assets", "answers") == [
        "assets",
        [{"name": "NEW", "scale": 3, "currency_id": 77}],
    ]
    assert stranger.hear("assets", "answers")[0] == "answers"


def test_assets_are_told_to_those_who_did_not_ask(owner: Owner, stranger: Stranger) -> None:
    stranger.greet()
    stranger.hear("assets")
    owner.book.submit(Submission(RegisterAsset("NEW", 3, 77)))
    assert stranger.hear("assets")[1] == [{"name": "NEW", "scale": 3, "currency_id": 77}]


# ── addresses, beginning and end ──────────────────────────────────────────────────


def test_unix_socket_is_for_us_alone(owner: Owner, tmp_path: Path) -> None:
    path = tmp_path / "owner"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))  # as somebody who was killed leaves it
    stale.close()
    listener = Listener(
        owner.book, secret=SECRET, commands=commands(), figures=owner.book.engine.cache.figures
    )
    address = owner.loop.run(listener.start(f"unix:{path}"))
    assert address == f"unix:{path}"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    asking = Asking(address)
    assert isinstance(asking.execute(OpenAccount("user:1:USD")), Receipt)
    asking.close()
    owner.loop.run(listener.stop())
    assert not path.exists()


@pytest.mark.parametrize(
    "address", ["nonsense", "unix:/no/such/folder/owner", "unix:/" + "x" * 200]
)
def test_address_that_cannot_be_had(owner: Owner, address: str) -> None:
    listener = Listener(None, secret=SECRET, commands={}, figures=owner.book.engine.cache.figures)
    with pytest.raises((OSError, ValueError)):
        owner.loop.run(listener.start(address))


def test_port_in_use(owner: Owner) -> None:
    listener = Listener(None, secret=SECRET, commands={}, figures=owner.book.engine.cache.figures)
    with pytest.raises(OSError, match="in use"):
        owner.loop.run(listener.start(owner.address))


def test_no_secret_no_listener() -> None:
    with pytest.raises(ValueError, match="secret"):
        Listener(None, secret=b"", commands={}, figures=lambda: None)  # type: ignore[arg-type, return-value]


def test_stop_says_what_was_decided_then_farewell(owner: Owner, stranger: Stranger) -> None:
    stranger.greet()
    stranger.say("asks", [[1, "ledger.open_account", {"account": "user:1:USD"}, "a", None]])
    until(lambda: owner.store.account("user:1:USD"))
    owner.loop.run(owner.listener.stop())
    assert stranger.hear("answers", "farewell")[0] == "answers"
    assert stranger.hear("answers", "farewell") == ["farewell"]
    assert stranger.hear() is None


def test_book_that_comes_and_goes(owner: Owner) -> None:
    listener, book = owner.listener, owner.book
    for _ in range(3):
        stranger = Stranger(owner.address)
        assert stranger.greet()[0] == "welcome"
        owner.loop.do(setattr, listener, "book", None)
        assert stranger.hear("farewell") == ["farewell"]
        stranger.close()
        owner.loop.do(setattr, listener, "book", book)


def test_idle_loop_is_closed_quietly() -> None:
    loop = Loop()
    listener = Listener(None, secret=SECRET, commands={}, figures=lambda: None)  # type: ignore[arg-type, return-value]
    loop.run(listener.start("127.0.0.1:0"))
    loop.run(listener.stop())
    loop.close()


def test_unknown_of_the_book_keeps_its_code(owner: Owner) -> None:
    def refuse(submission: Submission) -> None:
        submission.ticket(Unknown("the store is away", "store_unavailable"))

    owner.book.submit = refuse  # type: ignore[method-assign]
    asking = Asking(owner.address)
    outcome = asking.execute(Transfer("world:USD", "house:USD", "USD", "1"))
    assert outcome == Unknown("the store is away", "store_unavailable")
    asking.close()

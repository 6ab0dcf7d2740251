"""Frames: cut out of any stream, bounded, and one bad item harms nothing but itself."""

import random
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pennyweight.engine.engine import RULES, Abandon, MoveCursor
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.products.payments import Pay
from pennyweight.runtime import frames as wire
from pennyweight.runtime.frames import (
    Answers,
    Ask,
    Asks,
    AsksRead,
    BadFrame,
    Declined,
    Done,
    DoneRead,
    Failed,
    Splitter,
    Undecided,
    by_name,
    difference,
    frame,
    frames,
    is_proof,
    proof_of,
    split_address,
)

BODIES = [b"[1]", b"[]", b"x" * 5_000, b"", '["\u20ac"]'.encode()]
STREAM = b"".join(len(body).to_bytes(4) + body for body in BODIES)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 1_000, len(STREAM)])
def test_splitter_pieces(size: int) -> None:
    splitter = Splitter(5_000)
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [body for piece in pieces for body in splitter.feed(piece)] == BODIES


def test_splitter_random_pieces() -> None:
    dice = random.Random(7)
    splitter, found, rest = Splitter(5_000), [], STREAM * 20
    while rest:
        size = dice.choice([1, 3, 50, 4_000, 20_000])
        found += splitter.feed(rest[:size])
        rest = rest[size:]
    assert found == BODIES * 20


@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\n", b"\xff\xff\xff\xff", (101).to_bytes(4)])
def test_splitter_refuses_what_is_too_long(begin: bytes) -> None:
    with pytest.raises(BadFrame, match="at most 100 are allowed"):
        Splitter(100).feed(begin)


def body_of(whole: bytes) -> bytes:
    assert int.from_bytes(whole[:4]) == len(whole) - 4
    return bytes(whole[4:])


def ask(number: int, command: Any) -> Ask:
    return Ask(number, "ledger.open_account", command, "k", None)


def test_frame_is_length_and_body() -> None:
    whole = frame(Asks([ask(1, OpenAccount("user:1:USD"))]))
    assert body_of(whole) == (
        b'["asks",[[1,"ledger.open_account",{"account":"user:1:USD"},"k",null]]]'
    )


def test_frames_spare_the_others() -> None:
    bad = {2: OpenAccount("\ud800"), 5: OpenAccount("user:1:USD", 10**5_000)}  # type: ignore[arg-type]
    asks = [ask(number, bad.get(number, OpenAccount(f"user:{number}:USD"))) for number in range(9)]
    unfit: list[tuple[int, str]] = []
    ready = frames(Asks, asks, lambda one, error: unfit.append((one.id, type(error).__name__)))
    reader = msgspec.json.Decoder(AsksRead)
    sent = [one.id for whole in ready for one in reader.decode(body_of(whole)).asks]
    assert sent == [0, 1, 3, 4, 6, 7, 8]
    assert unfit == [(2, "UnicodeEncodeError"), (5, "ValueError")]


def test_frames_are_split_where_they_would_be_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FRAME_BYTES_MAX", 300)
    answers = [Failed(number, "x" * 100) for number in range(7)] + [Failed(7, "y" * 301)]
    ready = frames(
        Answers, answers, lambda one, _: Undecided(one.id, "too long", "outcome_unknown")
    )
    assert all(len(whole) <= 304 for whole in ready)
    told = [one for whole in ready for one in msgspec.json.decode(body_of(whole))[1]]
    assert [one[1] for one in told] == list(range(8))
    assert told[7] == [4, 7, "too long", "outcome_unknown"]


def test_answers_keep_everything() -> None:
    figures = {
        "available": "-" + "9" * 38,
        "units": 10**37 + 1,
        "text": "\u20ac\U0001f600\n",
        "is": True,
    }
    answers = [
        Done(1, 2**62, {"units": -(10**38) + 1, "name": "\u0416"}, True),
        Declined(2, "insufficient_funds", "no", figures),
        Failed(3, "it broke\n"),
        Undecided(4, "who knows", "store_unavailable"),
    ]
    (whole,) = frames(Answers, answers, lambda *_: None)
    done, *others = msgspec.json.Decoder(wire.FROM_OWNER).decode(body_of(whole)).answers
    assert isinstance(done, DoneRead)
    assert (done.id, done.sequence, done.is_replayed) == (1, 2**62, True)
    assert msgspec.json.decode(done.answer) == answers[0].answer  # type: ignore[union-attr]
    assert others == answers[1:]


def test_names_are_those_of_product_and_command() -> None:
    assert by_name([Transfer, Pay, Abandon, MoveCursor]) == {
        "ledger.transfer": Transfer,
        "payments.pay": Pay,
        "ledger.abandon": Abandon,
        "ledger.move_cursor": MoveCursor,
    }


def test_two_commands_of_one_name() -> None:
    other: Any = SimpleNamespace(product="ledger", name="transfer")
    with pytest.raises(ValueError, match=r"both called ledger\.transfer"):
        by_name([Transfer, other])


def test_proof_depends_on_everything() -> None:
    known = (b"secret", "front", "main", "commands", b"one", b"two")
    others = [
        (b"Secret", *known[1:]),
        (b"secret", "owner", *known[2:]),
        (*known[:2], "other", *known[3:]),
        (*known[:3], "mirror", *known[4:]),
        (*known[:4], b"three", b"two"),
        (*known[:4], b"two", b"one"),
        (*known[:4], b"onetwo", b""),
    ]
    proof = proof_of(*known)
    assert is_proof(proof, proof_of(*known))
    assert not is_proof(b"", proof)
    for other in others:
        assert not is_proof(proof, proof_of(*other)), other


def test_proof_depends_on_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = proof_of(b"secret", "front", "main", "commands")
    monkeypatch.setattr(wire, "VERSION", wire.VERSION + 1)
    assert proof_of(b"secret", "front", "main", "commands") != before


def test_difference_says_both_versions() -> None:
    assert difference(wire.VERSION, RULES) == ""
    assert difference(wire.VERSION + 1, RULES + 2) == (
        f"it has version {wire.VERSION + 1} of the wire and {RULES + 2} of the rules, "
        f"this process has {wire.VERSION} and {RULES}: run the same release everywhere"
    )
    assert difference(wire.VERSION, RULES + 1)


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:0", ("::1", 0)),
        ("db-7.example:65535", ("db-7.example", 65_535)),
        ("unix:/run/book/owner", "/run/book/owner"),
    ],
)
def test_address(address: str, place: object) -> None:
    assert split_address(address) == place


@pytest.mark.parametrize("address", ["", "80", ":80", "host:", "host:x", "host:-1", "host:65536"])
def test_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match="neither HOST:PORT nor unix:PATH"):
        split_address(address)

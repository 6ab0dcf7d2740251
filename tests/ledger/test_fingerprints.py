"""Fingerprints: the counted fields as JSON, defaults left out, whatever else a command carries."""

import pytest

from pennyweight.ledger.commands import Command, counted_fields, differing_field, fingerprint


class Whole(Command, frozen=True):
    counted = ("user", "amount", "round")

    user: str
    amount: int
    round: str | None = None


class Noted(Whole, frozen=True):
    """As `Whole`, with fields that do not count."""

    bar: str = ""
    echo: str = ""


class Reordered(Command, frozen=True):
    counted = ("round", "user")

    user: str
    round: str | None = None
    echo: str = ""


class Single(Command, frozen=True):
    counted = ("user",)

    user: str
    echo: str = ""


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (Whole("ann", 5), b'{"user":"ann","amount":5}'),
        (Whole("ann", 5, "r"), b'{"user":"ann","amount":5,"round":"r"}'),
        (Noted("ann", 5, bar="x", echo="y"), b'{"user":"ann","amount":5}'),
        (Noted("ann", 10**30, "r"), b'{"user":"ann","amount":%d,"round":"r"}' % 10**30),
        (Noted("", 0, ""), b'{"user":"","amount":0,"round":""}'),
        (Reordered("ann", echo="x"), b'{"user":"ann"}'),
        (Reordered("ann", "r"), b'{"round":"r","user":"ann"}'),
        (Single("ann", "x"), b'{"user":"ann"}'),
    ],
)
def test_fingerprint(command, expected):
    assert fingerprint(command) == expected


def test_command_of_counted_fields_only_is_its_own_fingerprint():
    command = Whole("ann", 5)
    assert counted_fields(command) is command


def test_first_difference_is_named():
    first = fingerprint(Noted("ann", 5))
    assert differing_field(first, fingerprint(Noted("ann", 6, "r"))) == "amount"
    assert differing_field(first, fingerprint(Noted("ann", 5, "r"))) == "round"
    assert differing_field(first, fingerprint(Noted("ann", 5, echo="x"))) == ""

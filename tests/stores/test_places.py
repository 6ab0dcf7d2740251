"""Places: folders and URLs as people write them, and no password ever shown."""

from pathlib import Path

import pytest

from pennyweight.stores.places import BadPlace, Place, is_database, read_place, read_url, shown


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("book", Path("book")),
        ("/srv/book", Path("/srv/book")),
        ("sqlite:book", Path("book")),
        ("sqlite:/srv/book", Path("/srv/book")),
        ("sqlite:///srv/book", Path("/srv/book")),
        ("postgresql://localhost/money", "postgresql://localhost/money"),
        ("postgres://a:b@h1:5432,[::1]:5433/x?y=z", "postgres://a:b@h1:5432,[::1]:5433/x?y=z"),
        ("postgresql:///money?host=/run/db", "postgresql:///money?host=/run/db"),
        ("postgresql://%2Frun%2Fdb/money", "postgresql://%2Frun%2Fdb/money"),
    ],
)
def test_places_as_people_write_them(text: str, place: Place) -> None:
    assert read_place(text) == place
    assert is_database(read_place(text)) is isinstance(place, str)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mysql://u:hush@h/x", r"mysql://u:\*\*\*@h/x: known are postgresql://.* and sqlite:"),
        ("sqlite:", "names no folder"),
        ("postgresql://u:hu/sh@h/x", r"postgresql://u:\*\*\*@h/x: write / \? # @ : in"),
        ("postgresql://u:hu@sh@h/x", r"postgresql://u:\*\*\*@h/x: write / \? # @ : in"),
        ("postgresql://u:hu?sh@h/x", r"postgresql://u:\*\*\*@h/x: write / \? # @ : in"),
        ("postgresql://u:hu%zzsh@h/x", r"postgresql://u:\*\*\*@h/x: write a space as %20 and %"),
        ("postgresql://u:hu%00sh@h/x", r"postgresql://u:\*\*\*@h/x: write a space as %20 and %"),
        ("postgresql://u:hu sh@h/x", r"postgresql://u:\*\*\*@h/x: write a space as %20 and %"),
        ("postgresql://h:hush/x", "the port in a URL is no number"),
    ],
)
def test_what_is_no_place_is_told_without_its_password(text: str, problem: str) -> None:
    with pytest.raises(BadPlace, match=problem) as refused:
        read_place(text)
    assert "hu" not in str(refused.value)
    assert "sh@" not in str(refused.value)


def test_what_must_be_a_url_is_no_folder() -> None:
    assert read_url("sqlite:book") == Path("book")
    with pytest.raises(BadPlace, match="this is no URL") as refused:
        read_url("user:hush@host/money")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (Path("a:b@c"), "a:b@c"),
        ("postgresql://h/x", "postgresql://h/x"),
        ("postgresql://u@h/x", "postgresql://u@h/x"),
        ("postgresql://u:hush@h:1/x", "postgresql://u:***@h:1/x"),
        ("postgresql://u:a@b/c?d@h/x", "postgresql://u:***@h/x"),
        (
            "postgresql://h:1/x?user=u&password=hush&a=b",
            "postgresql://h:1/x?user=u&password=***&a=b",
        ),
        ("postgresql://h/x?sslPassword=hush", "postgresql://h/x?sslPassword=***"),
    ],
)
def test_passwords_are_not_shown(place: Place, text: str) -> None:
    assert shown(place) == text

"""Places: where a book is kept, and how that is written.

A place is the folder of the embedded store, or the URL of a database. As text a folder may
also be `sqlite:FOLDER`. A URL may hold a password: it is shown by `shown`, never as it is.
"""

import re
from pathlib import Path

Place = Path | str
"""A folder, or the URL of a database."""

FOLDER_SCHEME = "sqlite:"
DATABASE_SCHEMES = ("postgresql", "postgres")

_KNOWN = f"{DATABASE_SCHEMES[0]}://HOST/DATABASE and {FOLDER_SCHEME}FOLDER"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_URL_AS_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_PASSWORD = re.compile(r"(?i)\b(\w*password)=[^&]*")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})|%00|\s")
_PORT = re.compile(r"[0-9]{1,5}")


class BadPlace(ValueError):
    """A text names no place; the message does not repeat a password."""


def read_place(text: str) -> Place:
    """Read `sqlite:FOLDER`, or the URL of a database; anything else is a folder. Raises BadPlace."""
    if text.startswith(FOLDER_SCHEME):
        folder = text.removeprefix(FOLDER_SCHEME).removeprefix("//")
        if not folder:
            raise BadPlace(f"{text} names no folder")
        return Path(folder)
    found = _URL.fullmatch(text)
    if found is None:
        return Path(text)
    scheme, rest = found.groups()
    if scheme not in DATABASE_SCHEMES:
        raise BadPlace(f"{shown(text)}: known are {_KNOWN}")
    _check_rest(shown(text), rest)
    return text


def read_url(text: str) -> Place:
    """Read a place that is written as a URL. Raises BadPlace, also for a plain folder."""
    place = read_place(text)
    if isinstance(place, Path) and not text.startswith(FOLDER_SCHEME):
        raise BadPlace(f"this is no URL: known are {_KNOWN}")  # it may well be a password
    return place


def is_url(folder: Path) -> bool:
    """Whether a folder is hardly meant as one, but is a URL (which lost a slash as a path)."""
    text = str(folder)
    return text.startswith(FOLDER_SCHEME) or _URL_AS_PATH.match(text) is not None


def is_database(place: Place) -> bool:
    """Whether a place is a database."""
    return isinstance(place, str)


def shown(place: Place) -> str:
    """Return a place without its passwords, for people and logs.

    A password that was not written as a URL wants it (`/`, `@` or `?` as they are) stays
    hidden too, even if more than the password is hidden with it.
    """
    text = str(place)
    if isinstance(place, Path) or "://" not in text:
        return text
    scheme, _, rest = text.partition("://")
    head, mark, query = rest.partition("?")
    if "@" in query:
        head, mark, query = rest, "", ""
    who, at, where = head.rpartition("@")
    if ":" in who:
        who = f"{who.partition(':')[0]}:***"
    query = _PASSWORD.sub(r"\1=***", query)
    return f"{scheme}://{who}{at}{where}{mark}{query}"


def _check_rest(name: str, rest: str) -> None:
    """Check what follows the scheme as far as a mistake would show a password. Raises BadPlace."""
    before, _, _ = rest.partition("?")
    servers, _, path = before.partition("/")
    user, _, hosts = servers.rpartition("@")
    if "@" in user or "@" in path or ("@" in rest and "@" not in before and ":" in servers):
        raise BadPlace(f"{name}: write / ? # @ : in a name or password as %2F %3F %23 %40 %3A")
    if _BAD_ESCAPE.search(rest):
        raise BadPlace(f"{name}: write a space as %20 and % itself as %25")
    for host in hosts.split(","):
        _, colon, port = host.rpartition("]")[2].partition(":")
        if colon and port and _PORT.fullmatch(port) is None:
            raise BadPlace("the port in a URL is no number")  # it may well be a password

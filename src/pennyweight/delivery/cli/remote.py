"""Talking to a running server, for verbs that can do without opening its book."""

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from pennyweight.delivery.cli.shared import PLACES, UserError

TIMEOUT_SECONDS = 20

Address = Annotated[
    str | None,
    Parameter(name="--address", help="A running server: http://HOST:PORT.", negative=()),
]
Key = Annotated[
    str,
    Parameter(
        name="--key", env_var="PENNYWEIGHT_KEY", help="The API key for it, if any.", negative=()
    ),
]


def check_place(data: Path | None, store: str | None, address: str | None) -> None:
    """Refuse --data or --store beside --address; what the environment says gives way.

    Raises UserError, also where nothing at all says which book is meant.
    """
    given = {"--data": data, "--store": store}
    if address is not None:
        for option, value in given.items():
            if value is not None:
                raise UserError(f"give {option} or --address, not both", code=2)
    elif not any(given.values()) and not any(map(os.environ.get, PLACES)):
        raise UserError("give --data FOLDER, --store URL, or --address of a running server", code=2)


def ask(address: str, method: str, path: str, key: str, body: Any = None) -> Any:
    """Send a request to a server and return its answer. Raises UserError."""
    if not address.startswith(("http://", "https://")):
        raise UserError(f"--address is {address!r}, not http://HOST:PORT", code=2)
    request = urllib.request.Request(  # noqa: S310 - the scheme was looked at
        address.rstrip("/") + path,
        None if body is None else msgspec.json.encode(body),
        {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})},
        method=method,
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            return msgspec.json.decode(answer.read())
    except urllib.error.HTTPError as error:
        raise UserError(_said(error)) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{address} does not answer: {error}") from None


def _said(error: urllib.error.HTTPError) -> str:
    """Return what a server says is wrong."""
    try:
        problem = msgspec.json.decode(error.read())
        return f"{problem['code']}: {problem['detail']}"
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"HTTP {error.code}"

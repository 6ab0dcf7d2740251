"""The heads of answers that the short way writes, as bytes, the same as uvicorn's."""

from collections.abc import Sequence

from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE

from pennyweight.delivery.http.routes import Reply

HEADS_MAX = 256

DefaultHeaders = Sequence[tuple[bytes, bytes]]
"""What every answer has (the date); uvicorn makes a new list of it every second."""


class Heads:
    """Remembers heads for as long as their date is right: a handful make nearly all answers."""

    def __init__(self) -> None:
        """Nothing remembered yet."""
        self._default_headers: DefaultHeaders = ()
        self._known: dict[tuple[int, str, tuple[tuple[str, str], ...]], tuple[bytes, bool]] = {}

    def message(self, reply: Reply, default_headers: DefaultHeaders, *, is_last: bool) -> bytes:
        """Return a whole answer; `is_last` tells the client that the connection closes."""
        if default_headers is not self._default_headers:
            self._default_headers = default_headers
            self._known.clear()
        known = self._known.get((reply.status, reply.content_type, reply.headers))
        head, is_told = known or self._head(reply, default_headers)
        body = reply.body
        if is_last and not is_told:
            return b"%b%d\r\nconnection: close\r\n\r\n%b" % (head, len(body), body)
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)

    def _head(self, reply: Reply, default_headers: DefaultHeaders) -> tuple[bytes, bool]:
        """Return the head up to the value of content-length, and whether it says close."""
        key = (reply.status, reply.content_type, reply.headers)
        known = self._known.get(key)
        if known is None:
            known = _make(reply, default_headers)
            if len(self._known) < HEADS_MAX:
                self._known[key] = known
        return known


def is_closing(reply: Reply) -> bool:
    """Whether a reply itself says that the connection closes."""
    return any(
        name.lower() == "connection" and value.lower() == "close" for name, value in reply.headers
    )


def _make(reply: Reply, default_headers: DefaultHeaders) -> tuple[bytes, bool]:
    lines = [STATUS_LINE[reply.status]]
    for line in default_headers:
        lines += [line[0], b": ", line[1], b"\r\n"]
    for name, value in (("content-type", reply.content_type), *reply.headers):
        text = value.encode("latin-1")
        if HEADER_VALUE_RE.search(text):
            raise ValueError(f"the header {name} cannot be written")
        lines += [name.lower().encode("latin-1"), b": ", text, b"\r\n"]
    lines.append(b"content-length: ")
    return b"".join(lines), is_closing(reply)

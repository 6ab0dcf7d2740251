"""A server for the load client's tests: answers as a function tells it, one thread a connection."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

Answer = Callable[[int, bytes], list[bytes] | None]
"""Given the request's number and bytes: the pieces to send, or None to hang up."""


def reply(status: int = 200, body: bytes = b"{}", header: bytes = b"content-length") -> bytes:
    return b"HTTP/1.1 %d X\r\n%s: %d\r\n\r\n%s" % (status, header, len(body), body)


def request(body: bytes = b"{}") -> bytes:
    return b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


class TinyServer:
    def __init__(self, answer: Answer) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self._answer = answer
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets: list[socket.socket] = []
        self._threads[0].start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()  # from here on no connection is added
        self._listener.close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                one, _ = self._listener.accept()
                self.connections += 1
                self._sockets.append(one)
                thread = threading.Thread(target=self._serve, args=(one,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, one: socket.socket) -> None:
        rest = b""
        with contextlib.suppress(OSError), one:
            while data := one.recv(65_536):
                rest += data
                head, found, body = rest.partition(b"\r\n\r\n")
                told = head.rpartition(b"Content-Length: ")[2].partition(b"\r\n")[0]
                length = int(told or 0) if found else 1 << 30
                if len(body) < length:
                    continue
                with self._lock:
                    self.requests.append(rest)
                    number = len(self.requests)
                rest = b""
                pieces = self._answer(number, self.requests[number - 1])
                if pieces is None:
                    return
                for piece in pieces:
                    one.sendall(piece)
                    if len(pieces) > 1:
                        time.sleep(0.005)  # so that they arrive apart


@contextlib.contextmanager
def tiny_server(answer: Answer) -> Iterator[TinyServer]:
    server = TinyServer(answer)
    try:
        yield server
    finally:
        server.stop()

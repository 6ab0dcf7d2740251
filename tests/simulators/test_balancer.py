"""The load balancer: who gets a connection, and what falls with whom."""

import contextlib
import http.client
import http.server
import socket
import threading
import time

import pytest

from pennyweight.simulators.balancer import Balancer
from tiny_server import TinyServer, reply


@pytest.fixture
def three():
    servers = [TinyServer(lambda number, data, n=n: [reply(body=b"%d" % n)]) for n in range(3)]
    yield servers
    for server in servers:
        server.stop()


def addresses(servers):
    return [server.address for server in servers]


def closed_address():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()


def ask(address, times: int = 1, path: str = "/x") -> list[bytes]:
    """The answers of one connection."""
    connection = http.client.HTTPConnection(*address, timeout=10)
    try:
        answers = []
        for _ in range(times):
            connection.request("POST", path, b"{}", {"Content-Length": "2"})
            answers.append(connection.getresponse().read())
        return answers
    finally:
        connection.close()


def eventually(is_so, seconds: float = 10.0) -> bool:
    until = time.monotonic() + seconds
    while not is_so() and time.monotonic() < until:
        time.sleep(0.01)
    return is_so()


def test_connections_take_turns_and_stay(three):
    with Balancer(addresses(three)) as balancer:
        answers = [ask(balancer.address, times=2) for _ in range(6)]
        assert answers == [[b"0"] * 2, [b"1"] * 2, [b"2"] * 2] * 2
        assert [backend.connections for backend in balancer.backends] == [2, 2, 2]


def test_backend_may_come_later(three):
    with Balancer([]) as balancer:
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(balancer.address)
        for server in three[:2]:
            balancer.add(server.address)
        assert [ask(balancer.address)[0] for _ in range(4)] == [b"0", b"1"] * 2


def test_backend_that_refuses_is_skipped(three):
    gone = closed_address()
    with Balancer([gone, *addresses(three[:2])]) as balancer:
        answers = [ask(balancer.address)[0] for _ in range(6)]
        assert {*answers} == {b"0", b"1"}
        assert balancer.backends[0].connections == 0
        assert balancer.backends[0].refused == 1  # later those that are well come first


def test_backend_that_came_back_is_used_again(three):
    port = closed_address()[1]
    with Balancer([("127.0.0.1", port)]) as balancer:
        with pytest.raises((http.client.HTTPException, OSError)):
            ask(balancer.address)
        with socket.create_server(("127.0.0.1", port)) as back:
            client = socket.create_connection(balancer.address)
            server, _ = back.accept()
            server.sendall(b"back")
            assert client.recv(10) == b"back"
            server.close()
            client.close()


def test_no_backend_hangs_up():
    with Balancer([closed_address()]) as balancer:
        client = socket.create_connection(balancer.address, timeout=10)
        with client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
        assert balancer.backends[0].refused == 1


class Moody(http.server.BaseHTTPRequestHandler):
    """Says its port to a POST, and to a GET whether it is ready."""

    ready: set[int]

    def do_GET(self):
        self.send_response(200 if self.server.server_port in self.ready else 503)
        self.end_headers()

    def do_POST(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"%d" % self.server.server_port)

    def log_message(self, *_):
        pass


@pytest.fixture
def moody():
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Moody) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    yield [server.server_port for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_unready_backend_gets_nothing_until_it_is_ready(moody):
    backends = [("127.0.0.1", port) for port in moody]
    names = [b"%d" % port for port in moody]
    Moody.ready = {moody[1]}
    with Balancer(backends, health_path="/readyz", health_seconds=0.02) as balancer:
        first, second = balancer.backends
        assert eventually(lambda: not first.is_well and second.is_well)
        assert [ask(balancer.address)[0] for _ in range(4)] == names[1:] * 4
        Moody.ready = {*moody}
        assert eventually(lambda: first.is_well)
        assert {ask(balancer.address)[0] for _ in range(4)} == {*names}
        Moody.ready = set()
        assert eventually(lambda: not first.is_well and not second.is_well)
        assert {ask(balancer.address)[0] for _ in range(4)} == {*names}


def test_fallen_backend_takes_its_connections_along():
    listener = socket.create_server(("127.0.0.1", 0))
    with Balancer([listener.getsockname()]) as balancer:
        client = socket.create_connection(balancer.address, timeout=10)
        server, _ = listener.accept()
        client.sendall(b"hello")
        assert server.recv(10) == b"hello"
        server.close()
        assert client.recv(10) == b""
        client.close()
    listener.close()


def test_gone_client_ends_the_backends_connection():
    listener = socket.create_server(("127.0.0.1", 0))
    with Balancer([listener.getsockname()]) as balancer:
        client = socket.create_connection(balancer.address, timeout=10)
        server, _ = listener.accept()
        server.settimeout(10)
        client.sendall(b"last words")
        client.close()
        assert server.recv(100) == b"last words"
        assert server.recv(100) == b""
        server.close()
    listener.close()


def test_much_goes_through_whole_and_one_half_may_end_first():
    listener = socket.create_server(("127.0.0.1", 0))
    sent = bytes(range(256)) * 40_000
    with Balancer([listener.getsockname()]) as balancer:
        client = socket.create_connection(balancer.address, timeout=10)
        server, _ = listener.accept()

        def send():
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=send)
        thread.start()
        time.sleep(0.2)  # the buffers between are full now
        read = b""
        while data := server.recv(1 << 20):
            read += data
        thread.join()
        assert read == sent
        server.sendall(b"thanks")
        assert client.recv(10) == b"thanks"
        server.close()
        assert client.recv(10) == b""
        client.close()
    listener.close()


def test_closed_balancer_cuts_what_is_open_and_frees_its_port(three):
    balancer = Balancer(addresses(three))
    client = socket.create_connection(balancer.address, timeout=10)
    assert eventually(lambda: balancer.backends[0].connections == 1)
    balancer.close()
    balancer.close()
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(1) == b""
    client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(balancer.address, timeout=10)
    with Balancer(addresses(three), balancer.host, balancer.port) as again:
        assert ask(again.address) == [b"0"]
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        Balancer(addresses(three), *taken.getsockname())

import itertools

import pytest

from pennyweight.simulators.client import Client, answer_size
from tiny_server import reply, request, tiny_server


def bodies(count=None):
    numbers = range(count) if count is not None else itertools.count()
    return (request(b'{"n":%d}' % number) for number in numbers)


def test_client_sends_streams_to_their_ends_and_counts():
    with tiny_server(lambda n, _: [reply(200 if n % 4 else 409)]) as server:
        client = Client(server.address, [bodies(10), bodies(6)])
        client.finish_streams()
        client.close()
    assert len(server.requests) == 16
    assert client.tally.statuses == {"200": 12, "409": 4}
    assert (client.tally.good, client.tally.errors) == (12, 4)
    assert server.connections == 2


def test_client_deals_connections_out_to_several_servers():
    with tiny_server(lambda *_: [reply()]) as one, tiny_server(lambda *_: [reply()]) as other:
        streams = [bodies(3) for _ in range(5)]
        client = Client(one.address, streams, others=[other.address])
        client.finish_streams()
        client.close()
    assert (one.connections, other.connections) == (3, 2)
    assert (len(one.requests), len(other.requests)) == (9, 6)
    assert client.tally.good == 15


def test_client_takes_answers_in_pieces_and_any_header_case():
    whole = reply(body=b'{"a":1}', header=b"CONTENT-Length")
    for cut in (1, 12, len(whole) - 3):
        with tiny_server(lambda *_, cut=cut: [whole[:cut], whole[cut:]]) as server:
            client = Client(server.address, [bodies(3)])
            client.finish_streams()
            client.close()
        assert client.tally.statuses == {"200": 3}


def test_client_good_status_without_the_expected_text_is_an_error():
    answers = [b'{"status":"RS_OK"}', b'{"status":"RS_ERROR_NOT_ENOUGH_MONEY"}']
    with tiny_server(lambda n, _: [reply(body=answers[n % 2])]) as server:
        client = Client(server.address, [bodies(10)], expected=b'"RS_OK"')
        client.finish_streams()
        client.close()
    assert (client.tally.good, client.tally.refused, client.tally.errors) == (5, 5, 5)


def test_client_connects_again_after_a_connection_broke():
    with tiny_server(lambda n, _: None if n == 3 else [reply()]) as server:
        client = Client(server.address, [bodies(6)])
        client.finish_streams()
        client.close()
    assert client.tally.broken == 1
    assert client.tally.statuses == {"200": 5}
    assert server.connections == 2


def test_client_gives_up_when_the_server_is_gone():
    server_with = tiny_server(lambda *_: [reply()])
    with server_with as server:
        client = Client(server.address, [bodies()])
    client.run(0.2)
    client.close()
    assert client.answered == 0
    with pytest.raises(OSError):
        Client(server.address, [bodies()])


def test_client_closed_loop_measures_after_the_warm_up():
    with tiny_server(lambda *_: [reply()]) as server:
        client = Client(server.address, [bodies() for _ in range(4)])
        seconds = client.run(0.3, warm_up=0.1)
        client.close()
    assert seconds == pytest.approx(0.3)
    assert 0 < client.histogram.count < client.answered == len(server.requests)
    assert client.tally.errors == 0


def test_client_open_loop_sends_at_the_rate_and_no_more():
    with tiny_server(lambda *_: [reply()]) as server:
        client = Client(server.address, [bodies() for _ in range(8)])
        client.run(0.5, rate=100)
        client.close()
    assert len(server.requests) + client.dropped in range(49, 52)


def test_client_open_loop_counts_what_a_stalled_server_cost():
    """With one connection and a server that never answers, all but one request are dropped."""
    with tiny_server(lambda *_: []) as server:
        client = Client(server.address, [bodies()])
        client.drain_seconds = 0.1
        client.run(0.2, rate=100)
        client.close()
    assert client.dropped in range(18, 21)
    assert client.tally.broken == 1


def test_client_open_loop_latency_starts_at_the_intended_time():
    """Time stands still but for the server's stalls: the clock is the test's own."""
    now = [0]

    def answer(*_):
        now[0] += 10_000_000
        return [reply()]

    with tiny_server(answer) as server:
        client = Client(server.address, [bodies()], clock=lambda: now[0])
        now[0] = 1  # the first request is due at the start, the others wait for the connection
        client.run(0.1, rate=1_000)
        client.close()
    # Each answer takes 10 ms, so request k (due at k ms) waits for k before it.
    assert client.histogram.longest == pytest.approx(91_000_000, rel=0.02)
    assert client.dropped == 100 - len(server.requests)


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n", -1),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 40),
        (b"HTTP/1.1 200 OK\r\nContent-Length:10\r\nX: y\r\n\r\n", 54),
    ],
)
def test_answer_size(data, size):
    assert answer_size(data) == size


def test_answer_size_needs_a_length():
    with pytest.raises(ValueError):
        answer_size(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")

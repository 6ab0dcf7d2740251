"""The payments face over a real server and a durable book: the transcript, load, a restart."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "payments.md"
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def _pennyweight(*words: object) -> list[str]:
    return [sys.executable, "-m", "pennyweight", *map(str, words)]


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("PENNYWEIGHT_")}


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder's book on a free port; afterwards it must have ended well."""
    with (folder.parent / "serve.log").open("ab") as log:
        server = subprocess.Popen(
            _pennyweight("serve", "--data", folder, "--port", 0),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=_environment(),
        )
    try:
        assert server.stdout is not None
        ready = server.stdout.readline()
        assert ready.startswith("ready http://"), (folder.parent / "serve.log").read_text()
        yield urlsplit(ready.split()[1]).netloc
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


def verified(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        _pennyweight("verify", "--data", folder, "--json"),
        capture_output=True,
        check=False,
        text=True,
        env=_environment(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


Ask = Callable[..., tuple[int, str]]


@contextmanager
def connected(address: str) -> Iterator[Ask]:
    """Yield a function that sends a request on one connection and returns status and body."""
    connection = HTTPConnection(address, timeout=30)

    def ask(method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
        content = body if body is None or isinstance(body, str) else json.dumps(body)
        connection.request(method, path, content, headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()

    try:
        yield ask
    finally:
        connection.close()


def page_commands() -> Iterator[tuple[str, str, str | None, dict[str, str], str]]:
    """Yield method, path, body, headers and reply of every curl line of the page, in order."""
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for command, reply in re.findall(r"^\$ (curl .*)\n(.*)$", "\n".join(blocks), re.MULTILINE):
        path = re.search(r"localhost:8080(\S+)", command)
        body = re.search(r"-d '(.*?)'", command)
        method = re.search(r"-X (\w+)", command)
        key = re.search(r"-H 'Idempotency-Key: (.*?)'", command)
        assert path is not None
        yield (
            method[1] if method else "POST" if body else "GET",
            path[1],
            body[1] if body else None,
            {"Idempotency-Key": key[1]} if key else {},
            reply,
        )


def test_page_over_a_server_and_after_a_restart(tmp_path: Path):
    book = tmp_path / "book"
    commands = list(page_commands())
    assert len(commands) >= 15
    with serving(book) as address, connected(address) as ask:
        for method, path, body, headers, expected in commands:
            _, reply = ask(method, path, body, **headers)
            assert MOMENT.sub("T", reply) == MOMENT.sub("T", expected), path
        lists = [ask("GET", path) for path in ("/accounts", "/payments", "/account/3/history")]
    with serving(book) as address, connected(address) as ask:
        assert [
            ask("GET", path) for path in ("/accounts", "/payments", "/account/3/history")
        ] == lists
        method, path, body, headers, expected = next(c for c in commands if c[3])
        status, reply = ask(method, path, body, **headers)
        assert (status, MOMENT.sub("T", reply)) == (200, MOMENT.sub("T", expected))
        assert ask("POST", "/accounts", {"name": "n", "amount": 1, "currency_id": 1})[0] == 200
        assert json.loads(ask("GET", "/accounts")[1])["accounts"][-1]["ID"] == 6
    assert verified(book)["ok"]


def _sums(accounts: str) -> dict[str, int]:
    """Add up the balances of a list of accounts, by currency, in units of 1e-15."""
    sums: dict[str, int] = {}
    for account in json.loads(accounts)["accounts"]:
        whole, _, fraction = account["Amount"].partition(".")
        name = account["CurrencyName"]
        sums[name] = sums.get(name, 0) + int(whole + fraction.ljust(15, "0"))
    return sums


def _stress(folder: Path, threads: int, payments: int) -> None:
    """Random payments over 99 accounts on many connections, each payment sent twice.

    The lists that are read meanwhile must add up every time, not only in the end.
    """
    opened = {
        name: count * 1_000 * 10**15
        for name, count in (("RUB", 25), ("BTC", 25), ("ETC", 25), ("USD", 24))
    }
    with serving(folder) as address, connected(address) as ask:
        for number in range(1, 100):
            body = {"name": f"n{number}", "amount": "1000", "currency_id": 1 + number % 4}
            assert ask("POST", "/accounts", body)[0] == 200

        def pay(seed: int) -> list[tuple[int, str]]:
            dice = random.Random(seed)
            replies = []
            with connected(address) as ask:
                for turn in range(payments):
                    buyer, seller = dice.sample(range(1, 100), 2)
                    body = {
                        "buyer_account_id": buyer,
                        "seller_account_id": seller,
                        "amount": f"{dice.randint(1, 400)}.{dice.randint(1, 99)}",
                    }
                    key = {"Idempotency-Key": f"{seed}.{turn}"}
                    first = ask("POST", "/payments", body, **key)
                    again = ask("POST", "/payments", body, **key)
                    assert first == again or first[0] == 400
                    replies.append(again)
            return replies

        with ThreadPoolExecutor(threads) as pool:
            paying = [pool.submit(pay, seed) for seed in range(threads)]
            while not all(future.done() for future in paying):
                assert _sums(ask("GET", "/accounts")[1]) == opened
            replies = [reply for future in paying for reply in future.result()]
        assert _sums(ask("GET", "/accounts")[1]) == opened
        listed = json.loads(ask("GET", "/payments")[1])["payments"]

    paid = sorted(json.loads(reply)["ID"] for status, reply in replies if status == 200)
    assert [payment["ID"] for payment in listed] == list(range(1, len(listed) + 1))
    assert set(paid) <= set(range(1, len(listed) + 1))
    assert {status for status, _ in replies} == {200, 400}
    assert verified(folder)["ok"]


def test_random_payments_over_many_connections_keep_every_sum(tmp_path: Path):
    _stress(tmp_path / "book", threads=6, payments=25)


@pytest.mark.heavy
def test_random_payments_over_hundred_connections_keep_every_sum(tmp_path: Path):
    _stress(tmp_path / "book", threads=100, payments=100)

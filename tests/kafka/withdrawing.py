"""A client that withdraws: `python withdrawing.py PORT CSV FILE NAME THREADS PER_SECOND STOP`.

Each thread has a connection of its own. Before a request its key and body go into the file,
after the answer its key, the status, how often it had to be asked, and the answer. What
became of a request is not known when the connection breaks or the server says so: then it
is sent again, under the same key, until it is known. Ends when there is a file STOP.
"""

import csv
import http.client
import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

DECIMALS = {"USD": 2, "EUR": 2}
RETRY_SECONDS = 0.05


def read_users(file: Path) -> tuple[list[str], dict[str, float], dict[str, list[str]]]:
    """Return the tokens, the most that anybody has of each, and what each user has."""
    with file.open(newline="") as rows:
        (_, *tokens), *users = csv.reader(rows)
    most = {token: max(float(user[n]) for user in users) for n, token in enumerate(tokens, 1)}
    return tokens, most, {user[0]: user[1:] for user in users}


def amount_of(token: str, amount: float) -> str:
    """Write an amount with the decimals that the data set has, and more than nothing."""
    decimals = DECIMALS.get(token, 6)
    return f"{max(amount, 10**-decimals):.{decimals}f}"


class Client:
    """One thread's connection, and the file of all of them."""

    def __init__(self, port: int, file: Any, keep: threading.Lock) -> None:
        self._port = port
        self._file = file
        self._keep = keep
        self._connection: http.client.HTTPConnection | None = None

    def withdraw(self, key: str, body: dict[str, Any]) -> None:
        """Ask until it is known what became of it."""
        self._note(["sent", key, body])
        tries = 1
        while (answer := self._ask(key, body)) is None:
            tries += 1
            time.sleep(RETRY_SECONDS)
        self._note(["told", key, answer[0], tries, answer[1]])

    def _ask(self, key: str, body: dict[str, Any]) -> tuple[int, Any] | None:
        """Return status and answer, None if the outcome is unknown."""
        headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
        connection = self._connection
        try:
            if connection is None:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
                self._connection = connection
            connection.request("POST", "/withdrawals", json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError):
            if connection is not None:
                connection.close()
            self._connection = None
            return None
        return None if response.status == 503 else (response.status, answer)

    def _note(self, line: list[Any]) -> None:
        with self._keep:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def run(client: Client, file: Path, name: str, pause: float, stop: Path) -> None:
    """Withdraw a little of what some users have, some of them more often than others."""
    dice = random.Random(name)
    tokens, most, users = read_users(file)
    order = sorted(users)
    random.Random("who is hot").shuffle(order)
    number, next_at = 0, time.monotonic()
    while not stop.exists():
        number += 1
        user = order[int(len(order) * dice.random() ** 3)]
        token = dice.choice(tokens)
        quantity = amount_of(token, most[token] * dice.randrange(1, 150) / 10_000)
        withdrawal_id = f"{name}.{number}"
        body = {
            "user_id": dice.choice((user, int(user))),
            "token": token,
            "requested_quantity": quantity,
            "withdrawal_id": withdrawal_id,
        }
        client.withdraw(f"key {withdrawal_id}", body)
        next_at = max(next_at + pause, time.monotonic() - 1)
        time.sleep(max(0, next_at - time.monotonic()))


def main() -> None:
    """Run all threads to their end."""
    port, file, kept, name, count, per_second, stop = sys.argv[1:]
    threads, keep = int(count), threading.Lock()
    with Path(kept).open("a") as lines:
        running = [
            threading.Thread(
                target=run,
                args=(
                    Client(int(port), lines, keep),
                    Path(file),
                    f"{name}.{n}",
                    threads / float(per_second),
                    Path(stop),
                ),
            )
            for n in range(threads)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()


if __name__ == "__main__":
    main()

"""A client that keeps what was acknowledged: `python client.py ADDRESS FILE ROUND THREADS`.

Each thread pays back and forth between a few accounts until the server is gone. Before a
request its key and body go into the file, after the answer its key and the answer.
"""

import http.client
import json
import random
import sys
import threading
from pathlib import Path

USERS = 12


def body_of(dice: random.Random) -> dict[str, str]:
    """Return a transfer; some find no funds."""
    one, other = dice.sample(range(USERS), 2)
    return {
        "debit_account": f"user:{one}:USD",
        "credit_account": f"user:{other}:USD",
        "asset": "USD",
        "amount": str(dice.choice([1, 2, 5, 40])),
    }


def post(connection: http.client.HTTPConnection, path: str, body: dict, key: str) -> tuple:
    """Return (status, whether it is a replay, the answer)."""
    headers = {"Idempotency-Key": key, "Content-Type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    return (
        response.status,
        response.getheader("Idempotent-Replayed") == "true",
        json.loads(response.read()),
    )


def pay(port: int, prefix: str, keep: threading.Lock, file: Path) -> None:
    """Pay until the connection breaks."""
    dice = random.Random(prefix)
    number = 0

    def write(line: list) -> None:
        with keep, file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        while True:
            number += 1
            key, body = f"{prefix}.{number}", body_of(dice)
            write(["sent", key, body])
            status, is_replayed, answer = post(connection, "/v1/transfers", body, key)
            write(["told", key, status, is_replayed, answer])
    except (OSError, http.client.HTTPException):
        return


def main() -> None:
    """Run all threads to their end."""
    port, file = int(sys.argv[1].rpartition(":")[2]), Path(sys.argv[2])
    keep = threading.Lock()
    threads = [
        threading.Thread(target=pay, args=(port, f"{sys.argv[3]}.{n}", keep, file))
        for n in range(int(sys.argv[4]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()

"""Modest live traffic for the demo: payments, bets, withdrawals, replays and refusals.

Users pay one another, bet and withdraw from the same accounts; withdrawals are settled for
about what was asked, or cancelled. The same seed gives the same
choices; what comes of them is the server's to say.
"""

import http.client
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from pennyweight.simulators.client import Client
from pennyweight.simulators.venue import PRICES, Accepted, Odds, messages_of

CURRENCY = "USD"
CURRENCY_ID = 1
_REMEMBERED = 50
_ADOPTING = 32
"""Connections that open accounts at the same time."""

_BROKE = "99999999.99"
"""Dollars that nobody here has."""

_OVER_FILLED = 0.05
"""Share of the settlements that sell more than was held."""

_UNAVAILABLE = 503
_PAUSE_SECONDS = 0.1
"""How long a patient one waits before the same request once more."""

_REFUSALS = ("RS_ERROR", "INSUFFICIENT")
"""How the status of an answer begins that came with 200 and did nothing."""


class Sent(msgspec.Struct, frozen=True):
    """A request as it was sent; a replay sends it once more."""

    path: str
    body: bytes
    key: str = ""


class Counts(msgspec.Struct):
    """What came of the traffic so far. `unknown` got no answer."""

    done: int = 0
    refused: int = 0
    replayed: int = 0
    unknown: int = 0

    @property
    def total(self) -> int:
        """All requests."""
        return self.done + self.refused + self.replayed + self.unknown


class Open(msgspec.Struct, frozen=True):
    """A bet that may still be won or rolled back."""

    user: str
    transaction_uuid: str
    amount: int


class Traffic:
    """Sends one request after another, over one connection or over several in turn."""

    def __init__(
        self,
        address: tuple[str, int],
        users: Sequence[str],
        seed: int,
        *,
        connections: int = 1,
        patience_seconds: float = 0.0,
    ) -> None:
        """`users` are user ids that the book knows.

        With patience a request that gets no answer, or the answer that nobody can decide now,
        is sent again until the time is over: it has a key, and is done once.
        """
        self.counts = Counts()
        self._patience_seconds = patience_seconds
        self.accounts: dict[str, int] = {}
        """The payments accounts by name."""
        self._users = list(users)
        self._draw = random.Random(f"traffic {seed}")
        self._address = address
        self._connections = deque(
            http.client.HTTPConnection(*address, timeout=10) for _ in range(connections)
        )
        self._bets: deque[Open] = deque(maxlen=_REMEMBERED)
        self._withdrawals: deque[Accepted] = deque()
        self._venue = (Odds(over_fill=_OVER_FILLED), seed)
        self._sent: deque[Sent] = deque(maxlen=_REMEMBERED)
        shares: dict[Callable[[], None], int] = {
            self._pay: 35,
            self._bet: 16,
            self._win: 9,
            self._withdraw: 13,
            self._settle: 12,
            self._replay: 6,
            self._pay_too_much: 3,
            self._roll_back: 2,
            self._withdraw_too_much: 2,
            self._cancel: 2,
        }
        self._kinds, self._weights = list(shares), list(shares.values())

    def prepare(self) -> None:
        """Open payments accounts: two of their own, and one for each user's USD account.

        What a book of an earlier demo has already is taken as it is.
        """
        for account in ({"name": "buyer", "amount": "1000"}, {"name": "seller", "amount": 0}):
            self._ask("POST", "/accounts", {**account, "currency_id": CURRENCY_ID})
        adopting = [self._adoption(user) for user in self._users]
        lanes = min(_ADOPTING, len(adopting))
        client = Client(self._address, [iter(adopting[lane::lanes]) for lane in range(lanes)])
        client.finish_streams()
        client.close()
        listed = self._ask("GET", "/accounts")[1].get("accounts", [])
        self.accounts = {row["Name"]: row["ID"] for row in listed}

    def _adoption(self, user: str) -> bytes:
        """Return the request that opens a payments account on a user's USD account."""
        account = {
            "name": f"user-{user}",
            "amount": 0,
            "user_id": user,
            "currency_id": CURRENCY_ID,
        }
        body = msgspec.json.encode(account)
        host, port = self._address
        return (
            f"POST /accounts HTTP/1.1\r\nHost: {host}:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def step(self) -> None:
        """Send one request. Raises OSError when the server is gone."""
        self._draw.choices(self._kinds, self._weights)[0]()

    def close(self) -> None:
        """Close the connections."""
        for connection in self._connections:
            connection.close()

    # ── kinds ─────────────────────────────────────────────────────────────────────

    def _pay(self) -> None:
        self._pay_amount(f"0.{self._draw.randrange(1, 100):02d}")

    def _pay_too_much(self) -> None:
        self._pay_amount(_BROKE)

    def _pay_amount(self, amount: str) -> None:
        buyer, seller = self._draw.sample(self._users, 2)
        body = {
            "buyer_account_id": self.accounts[f"user-{buyer}"],
            "seller_account_id": self.accounts[f"user-{seller}"],
            "amount": amount,
        }
        self._send(Sent("/payments", msgspec.json.encode(body), self._uuid()))

    def _bet(self) -> None:
        bet = Open(
            self._draw.choice(self._users), self._uuid(), 100 * self._draw.randrange(1, 2_000)
        )
        if self._play("bet", bet.user, bet.transaction_uuid, amount=bet.amount):
            self._bets.append(bet)

    def _win(self) -> None:
        if not self._bets:
            return self._bet()
        bet = self._bets.popleft()
        amount = bet.amount * self._draw.choice((0, 0, 1, 2))
        self._play(
            "win",
            bet.user,
            self._uuid(),
            amount=amount,
            reference_transaction_uuid=bet.transaction_uuid,
        )
        return None

    def _roll_back(self) -> None:
        if not self._bets:
            return self._bet()
        bet = self._bets.pop()
        reference = bet.transaction_uuid
        self._play("rollback", bet.user, self._uuid(), reference_transaction_uuid=reference)
        return None

    def _play(self, kind: str, user: str, transaction_uuid: str, **more: Any) -> bool:
        body = {
            "user": user,
            "transaction_uuid": transaction_uuid,
            "request_uuid": self._uuid(),
            "token": "demo",
            "round": transaction_uuid[:8],
            "game_code": "demo_dice",
            **more,
        }
        if kind != "rollback":
            body["currency"] = CURRENCY
        return self._send(Sent(f"/transaction/{kind}", msgspec.json.encode(body)))

    def _withdraw(self) -> None:
        self._withdraw_quantity(f"0.{self._draw.randrange(1, 10_000):04d}")

    def _withdraw_too_much(self) -> None:
        self._withdraw_quantity(_BROKE)

    def _withdraw_quantity(self, quantity: str) -> None:
        token, user = self._draw.choice(list(PRICES)), self._draw.choice(self._users)
        wanted = Accepted(user, self._uuid(), token, quantity)
        body = {
            "user_id": user,
            "token": token,
            "requested_quantity": quantity,
            "withdrawal_id": wanted.withdrawal_id,
        }
        if self._send(Sent("/withdrawals", msgspec.json.encode(body))):
            self._withdrawals.append(wanted)

    def _settle(self) -> None:
        if not self._withdrawals:
            return self._withdraw()
        settlement = messages_of(self._withdrawals.popleft(), *self._venue)[0].value
        self._send(Sent("/settlements", settlement))
        return None

    def _cancel(self) -> None:
        if not self._withdrawals:
            return self._withdraw()
        withdrawal_id = self._withdrawals.pop().withdrawal_id
        self._send(Sent(f"/withdrawals/{withdrawal_id}/cancel", b"{}", self._uuid()))
        return None

    def _replay(self) -> None:
        """Ask for something once more, as a client does that lost the answer."""
        if self._sent:
            self._send(self._draw.choice(self._sent), is_replay=True)

    # ── sending ───────────────────────────────────────────────────────────────────

    def _send(self, sent: Sent, *, is_replay: bool = False) -> bool:
        """Send and count; True if it was done."""
        status, answer = self._ask("POST", sent.path, sent.body, sent.key)
        is_done = status == 200 and not str(answer.get("status")).startswith(_REFUSALS)
        counts = self.counts
        if status >= 500:
            counts.unknown += 1
        elif not is_done:
            counts.refused += 1
        elif is_replay:
            counts.replayed += 1
        else:
            counts.done += 1
            self._sent.append(sent)
        return is_done

    def _ask(
        self, method: str, path: str, body: Any = None, key: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """Ask, and read the document that comes back."""
        data = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
        headers = {"content-type": "application/json"} if data else {}
        if key:
            headers["idempotency-key"] = key
        status, text = self._exchanged(method, path, data, headers)
        document = msgspec.json.decode(text) if text else {}
        return status, document if isinstance(document, dict) else {}

    def _exchanged(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        """Send a request, again while there is patience, and return status and body."""
        until = time.monotonic() + self._patience_seconds
        while True:
            self._connections.rotate()
            try:
                answer = _exchange(self._connections[0], method, path, data, headers)
                if answer[0] != _UNAVAILABLE or time.monotonic() >= until:
                    return answer
            except OSError:
                if time.monotonic() >= until:
                    raise
            time.sleep(_PAUSE_SECONDS)

    def _uuid(self) -> str:
        text = f"{self._draw.getrandbits(128):032x}"
        return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-8{text[17:20]}-{text[20:]}"


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    data: bytes | None,
    headers: dict[str, str],
) -> tuple[int, bytes]:
    """Send a request and return status and body. Raises OSError, after which it connects anew."""
    try:
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        if isinstance(error, OSError):
            raise
        raise ConnectionError(str(error)) from error

"""The requests of the load scenarios: how accounts are funded, and endless streams per connection.

Bodies have a fixed length (numbers are padded), so a request is one formatting of bytes.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import msgspec

from pennyweight.simulators.sampling import Skew, keys, pairs
from pennyweight.simulators.updates import LOAD_TARGET, drifts

_PAIRS_MIN, _PAIRS_MAX = 1 << 12, 1 << 18
_LIST = 500
"""Items of one list request while funding."""

_FUNDS = "1000000000"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where requests go and how accounts and keys are chosen.

    `token` is an API key, or empty on loopback. `run` keeps the names of one run apart
    from another's on the same book.
    """

    host: str
    port: int
    users: int
    skew: str = "uniform"
    keys: str = "random"
    seed: int = 1
    token: str = ""
    run: str = ""


class Workload(Protocol):
    """A scenario's requests."""

    expected: bytes
    """What a good answer contains."""

    def funding(self) -> list[list[bytes]]:
        """Requests that open and fund the accounts: in phases, in any order within each."""

    def learn(self, get: Callable[[str], bytes]) -> None:
        """Ask the server, by `get(path)`, for what the requests need after the funding."""

    def stream(self) -> Iterator[bytes]:
        """Yield requests without end; keys and choices are shared by all streams."""


class Base:
    """What all workloads share: headers, seeded choices."""

    def __init__(self, target: Target) -> None:
        """Nothing is sent yet."""
        self.target = target
        self.skew = Skew(target.skew)
        draw = random.Random(f"{target.seed} {target.skew}")
        how_many = min(_PAIRS_MAX, max(_PAIRS_MIN, 4 * target.users))
        self.pairs = itertools.cycle(pairs(draw, self.skew, target.users, how_many))
        salted = random.Random(f"{target.run} {target.seed}")
        self.keys = keys(salted, is_ordered=target.keys == "ordered")

    def head(self, method: str, path: str, *, length: int, more: str = "") -> bytes:
        """Return a request's head; `more` are further header lines."""
        target = self.target
        bearer = f"Authorization: Bearer {target.token}\r\n" if target.token else ""
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {target.host}:{target.port}\r\n{bearer}"
            f"Content-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n"
        ).encode()

    def learn(self, get: Callable[[str], bytes]) -> None:
        """Nothing, unless a workload says otherwise."""

    def post(self, path: str, document: dict[str, Any]) -> bytes:
        """Return a whole request."""
        body = msgspec.json.encode(document)
        return self.head("POST", path, length=len(body)) + body


class Transfers(Base):
    """`POST /v1/transfers`: one cent between two users' USD accounts, each under its own key."""

    expected = b'"sequence"'

    def _account(self, user: int) -> str:
        return f"user:{self.target.run}{user:07d}:USD"

    def funding(self) -> list[list[bytes]]:
        """Open all accounts, then fund them from the world in lists that are not atomic."""
        users = range(self.target.users)
        opens = [self.post("/v1/accounts", {"id": self._account(user)}) for user in users]
        lists = [[self._grant(user) for user in some] for some in _slices(len(users))]
        grants = [
            self.post("/v1/transfers", {"atomic": False, "transfers": items}) for items in lists
        ]
        return [opens, grants]

    def _grant(self, user: int) -> dict[str, str]:
        return {
            "debit_account": "world:USD",
            "credit_account": self._account(user),
            "asset": "USD",
            "amount": _FUNDS,
        }

    def stream(self) -> Iterator[bytes]:
        """Yield transfers."""
        run = self.target.run
        body = (
            f'{{"debit_account":"user:{run}%07d:USD","credit_account":"user:{run}%07d:USD",'
            '"asset":"USD","amount":"0.01"}'
        )
        length = len(body % (0, 0))
        key = "Idempotency-Key: %032x\r\n"
        template = self.head("POST", "/v1/transfers", length=length, more=key) + body.encode()
        for key_number, (payer, payee) in zip(self.keys, self.pairs, strict=False):
            yield template % (key_number, payer, payee)


class Payments(Base):
    """`POST /payments` between payments accounts of one currency, each under its own key."""

    expected = b'"OperationTimestamp"'

    def __init__(self, target: Target) -> None:
        """The accounts' numbers are learnt from the server."""
        super().__init__(target)
        self.accounts: list[int] = []
        self._prefix = f"bench-{target.run}-"

    def funding(self) -> list[list[bytes]]:
        """Open all accounts with money in them."""
        amount = {"amount": _FUNDS, "currency_id": 1}
        users = range(self.target.users)
        return [
            [self.post("/accounts", {"name": f"{self._prefix}{user}", **amount}) for user in users]
        ]

    def learn(self, get: Callable[[str], bytes]) -> None:
        """Find the numbers of our accounts in the list of all."""
        listed = msgspec.json.decode(get("/accounts"))["accounts"]
        self.accounts = [row["ID"] for row in listed if row["Name"].startswith(self._prefix)]

    def stream(self) -> Iterator[bytes]:
        """Yield payments."""
        body = '{"buyer_account_id":%9d,"seller_account_id":%9d,"amount":"0.01"}'
        key = "Idempotency-Key: %032x\r\n"
        head = self.head("POST", "/payments", length=len(body % (0, 0)), more=key)
        template = head + body.encode()
        accounts = self.accounts
        for key_number, (payer, payee) in zip(self.keys, self.pairs, strict=False):
            yield template % (key_number, accounts[payer], accounts[payee])


class Bets(Base):
    """`POST /transaction/bet` and `/transaction/win` in turn: a win gives back the bet before it."""

    expected = b'"RS_OK"'

    def funding(self) -> list[list[bytes]]:
        """Create the users, each of whom gets 100 000 units."""
        lists = [
            [f"{self.target.run}{user:07d}" for user in some] for some in _slices(self.target.users)
        ]
        return [[self.post("/users", {"users": names}) for names in lists]]

    def stream(self) -> Iterator[bytes]:
        """Yield a bet and its win, again and again."""
        uuid = "%08x-%04x-4000-8000-%012x"
        shared = (
            f'"user":"{self.target.run}%07d","transaction_uuid":"{uuid}","request_uuid":"{uuid}",'
            '"token":"t","round":"r","game_code":"bench","currency":"USD","amount":1'
        )
        bet = "{" + shared + "}"
        win = "{" + shared + f',"reference_transaction_uuid":"{uuid}"}}'
        blank = (0, *(0, 0, 0), *(0, 0, 0))
        bets = self.head("POST", "/transaction/bet", length=len(bet % blank)) + bet.encode()
        wins = self.head("POST", "/transaction/win", length=len(win % (*blank, 0, 0, 0)))
        wins += win.encode()
        numbers = self.keys
        for user, other in self.pairs:
            player = other if self.skew.is_hot else user
            first = _uuid_parts(next(numbers))
            yield bets % (player, *first, *first)
            second = _uuid_parts(next(numbers))
            yield wins % (player, *second, *second, *first)


class Rebalances(Base):
    """`POST /rebalance`: what a portfolio has become, each time something else, under an id."""

    expected = b'"SELL"'

    def __init__(self, target: Target) -> None:
        """Who drifts is drawn by the target's skew and seed."""
        super().__init__(target)
        draw = random.Random(f"rebalances {target.seed} {target.skew}")
        self._drifts = drifts(draw, self.skew, target.users)

    def funding(self) -> list[list[bytes]]:
        """Make the portfolios."""
        run = self.target.run
        return [
            [
                self.post("/portfolio", {"user_id": f"{run}{user:07d}", "allocation": LOAD_TARGET})
                for user in range(self.target.users)
            ]
        ]

    def stream(self) -> Iterator[bytes]:
        """Yield updates."""
        body = (
            f'{{"user_id":"{self.target.run}%07d","new_allocation":{{"bonds":%02d.%02d,'
            '"gold":%02d.%02d,"stocks":%02d.%02d},"request_id":"%032x"}'
        )
        head = self.head("POST", "/rebalance", length=len(body % ((0,) * 8)))
        template = head + body.encode()
        for number, drift in zip(self.keys, self._drifts, strict=False):
            yield template % (
                drift.user,
                *divmod(drift.bonds, 100),
                *divmod(drift.gold, 100),
                *divmod(drift.stocks, 100),
                number,
            )


def _uuid_parts(number: int) -> tuple[int, int, int]:
    """Return the first 48 bits of a key in two parts, and the last 48, as the UUIDs show them."""
    return number >> 96, number >> 80 & 0xFFFF, number & 0xFFFF_FFFF_FFFF


def _slices(count: int) -> list[range]:
    """Cut users into lists that one request can carry."""
    return [range(first, min(first + _LIST, count)) for first in range(0, count, _LIST)]


WORKLOADS: dict[str, type[Transfers] | type[Payments] | type[Bets] | type[Rebalances]] = {
    "transfers": Transfers,
    "payments": Payments,
    "bets": Bets,
    "rebalances": Rebalances,
}

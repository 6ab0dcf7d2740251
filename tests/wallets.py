"""The two ways into a wallet, the HTTP routes and the Python façade, behind one small driver."""

import uuid
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import msgspec

from pennyweight.delivery.http.routes import CommandRoute, ReadRoute, Reply, Request
from pennyweight.delivery.http.wallet import routes
from pennyweight.delivery.wallet import WalletSettings
from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Head
from pennyweight.facades import Kept
from pennyweight.ledger.commands import Command
from pennyweight.runtime.clock import wall_clock
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore
from pennyweight.wallet import Wallet
from scenarios import SCALES, check_invariants


def fresh_uuid() -> str:
    return str(uuid.uuid4())


def asked(user: str = "john12345", **fields: Any) -> dict[str, Any]:
    """Return the body of a balance or info request."""
    return {
        "user": user,
        "request_uuid": fresh_uuid(),
        "token": "t",
        "game_code": "g",
        **fields,
    }


def bet_of(user: str = "john12345", amount: Any = 100, **fields: Any) -> dict[str, Any]:
    """Return the body of a bet."""
    body = {"transaction_uuid": fresh_uuid(), "currency": "USD", "amount": amount}
    return {**asked(user), **body, **fields}


def win_of(bet: Mapping[str, Any], amount: Any = 100, **fields: Any) -> dict[str, Any]:
    """Return the body of a win on a bet."""
    body = {"reference_transaction_uuid": bet["transaction_uuid"]}
    return {**bet_of(bet["user"], amount), **body, **fields}


def rollback_of(played: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the body of a rollback of a bet or win."""
    body = win_of(played)
    del body["amount"], body["currency"]
    return {**body, **fields}


def memory_book() -> InlineBook:
    store = MemoryStore(Head(book="main", incarnation="first"))
    return InlineBook(open_engine(store, now=wall_clock()), store, wall_clock)


class Way:
    """A wallet as one of its faces offers it. `call` takes the last part of a route's path."""

    def __init__(self, settings: WalletSettings | None = None) -> None:
        self.settings = settings or WalletSettings()
        self.book = memory_book()

    def call(self, name: str, body: Any) -> dict[str, Any]:
        raise NotImplementedError

    def bet(self, body: Any) -> dict[str, Any]:
        return self.call("bet", body)

    def win(self, body: Any) -> dict[str, Any]:
        return self.call("win", body)

    def rollback(self, body: Any) -> dict[str, Any]:
        return self.call("rollback", body)

    def balance(self, body: Any) -> dict[str, Any]:
        return self.call("balance", body)

    def create(self, *users: str) -> None:
        raise NotImplementedError

    def execute(self, command: Command) -> None:
        """Do something beside the wallet's face."""
        self.book.execute(command)

    def units_of(self, user: str = "john12345", currency: str = "USD") -> int:
        """Return what a user has posted, in the wallet's unit, after checking the whole book."""
        check_invariants(self.book.store)
        account = self.book.store.account(f"user:{user}:{currency}")
        assert account is not None
        units, rest = divmod(account.posted, 10 ** (SCALES[currency] - 5))
        assert rest == 0
        return units


class FacadeWay(Way):
    """`pennyweight.wallet`, in memory."""

    def __init__(self, settings: WalletSettings | None = None) -> None:
        super().__init__(settings)
        self.wallet = Wallet(Kept(self.book, ExitStack()), self.settings)

    def call(self, name: str, body: Any) -> dict[str, Any]:
        answer: dict[str, Any] = getattr(self.wallet, name)(body)
        return answer

    def create(self, *users: str) -> None:
        assert self.wallet.create_users(users) == "ok"


class RoutesWay(Way):
    """The routes' parse, read and render, with a book in between instead of a server."""

    def __init__(self, settings: WalletSettings | None = None) -> None:
        super().__init__(settings)
        self.routes = {route.path: route for route in routes(self.settings)}

    def call(self, name: str, body: Any) -> dict[str, Any]:
        group = "user" if name in {"balance", "info"} else "transaction"
        raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
        reply = self.post(f"/{group}/{name}", raw)
        assert reply.status == 200
        assert reply.content_type == "application/json"
        answer: dict[str, Any] = msgspec.json.decode(reply.body)
        return answer

    def create(self, *users: str) -> None:
        reply = self.post("/users", msgspec.json.encode({"users": users}))
        assert msgspec.json.decode(reply.body)["status"] == "RS_OK"

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """Answer a request as both ways of the server do."""
        request = Request("POST", path, body, headers=headers or {})
        route = self.routes.get(path)
        if route is None:
            _, users, user, verb = path.split("/")
            route = self.routes[f"/{users}/{{user}}/{verb}"]
            request.params = {"user": user}
        if isinstance(route, ReadRoute):
            return route.read(request, self.book.store, self.book.engine.standing)
        assert isinstance(route, CommandRoute)
        parsed = route.parse(request, self.book.engine.standing)
        if isinstance(parsed, Reply):
            return parsed
        submissions = [parsed] if isinstance(parsed, Submission) else parsed
        return route.render(self.book.execute_many(submissions), request)


WAYS = {"facade": FacadeWay, "routes": RoutesWay}

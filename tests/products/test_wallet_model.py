"""Random bets, wins and rollbacks against the dumbest model: a dict of ints per user."""

import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from pennyweight import wallet
from pennyweight.assemble import answers, invariants
from pennyweight.engine.verification import verify
from scenarios import check_invariants
from wallets import FacadeWay, bet_of, rollback_of, win_of

USERS = ("ann", "bob")
GRANT = 100_000
OK, UNKNOWN = "RS_OK", "RS_ERROR_UNKNOWN"
MISSING = "RS_ERROR_TRANSACTION_DOES_NOT_EXIST"
UUIDS = [f"00000000-0000-0000-0000-{number:012d}" for number in range(100)]


@dataclass
class Played:
    """A bet or a win, and what became of it."""

    kind: str
    user: str
    amount: int
    of: int = -1
    wins: int = 0
    closed_by: int = -1
    is_rolled_back: bool = False


@dataclass
class Model:
    """What a wallet is, without a ledger."""

    balances: dict[str, int] = field(default_factory=lambda: dict.fromkeys(USERS, GRANT))
    owed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(USERS, 0))
    answers: dict[int, tuple[tuple[Any, ...], int]] = field(default_factory=dict)
    played: dict[int, Played] = field(default_factory=dict)
    buried: set[tuple[str, int]] = field(default_factory=set)

    def step(self, kind: str, user: str, uuid: int, of: int, amount: int, is_closing: bool) -> Any:
        """Return (status, balance) of a request."""
        counted = (kind, user, *{"bet": (amount,), "win": (amount, of), "rollback": (of,)}[kind])
        if uuid in self.answers:
            first, balance = self.answers[uuid]
            return (OK, balance) if first == counted else ("RS_ERROR_DUPLICATE_TRANSACTION", None)
        match kind:
            case "bet":
                status = self.bet(user, uuid, amount)
            case "win":
                status = self.win(user, uuid, of, amount, is_closing)
            case _:
                status = self.rollback(user, of)
        if status == OK:
            self.answers[uuid] = (counted, self.balances[user])
        is_told = status in {OK, "RS_ERROR_NOT_ENOUGH_MONEY"}
        return status, self.balances[user] if is_told else None

    def bet(self, user: str, uuid: int, amount: int) -> str:
        if (user, uuid) in self.buried:
            return UNKNOWN
        if self.balances[user] < amount:
            return "RS_ERROR_NOT_ENOUGH_MONEY"
        self.balances[user] -= amount
        self.played[uuid] = Played("bet", user, amount)
        return OK

    def win(self, user: str, uuid: int, of: int, amount: int, is_closing: bool) -> str:
        bet = self.played.get(of)
        if bet is None or bet.kind != "bet" or bet.user != user or bet.is_rolled_back:
            return MISSING
        if bet.closed_by >= 0:
            return UNKNOWN
        bet.wins += 1
        bet.closed_by = uuid if is_closing else -1
        self.played[uuid] = Played("win", user, amount, of)
        self.credit(user, amount)
        return OK

    def rollback(self, user: str, of: int) -> str:
        if of not in self.answers:
            self.buried.add((user, of))
            return OK
        played = self.played.get(of)
        if played is None or played.user != user:
            return MISSING
        if played.is_rolled_back:
            return OK
        if played.kind == "bet":
            if played.wins:
                return UNKNOWN
            self.credit(user, played.amount)
        else:
            bet = self.played[played.of]
            bet.wins -= 1
            bet.closed_by = -1 if bet.closed_by == of else bet.closed_by
            taken = min(played.amount, self.balances[user])
            self.balances[user] -= taken
            self.owed[user] += played.amount - taken
        played.is_rolled_back = True
        return OK

    def credit(self, user: str, amount: int) -> None:
        paid = min(amount, self.owed[user])
        self.owed[user] -= paid
        self.balances[user] += amount - paid


KINDS = ["bet", "bet", "win", "rollback"]
AMOUNTS = [0, 1, 70_000, 100_000]
STEPS = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from(["ann", "ann", "bob"]),
    st.integers(0, 8),
    st.integers(0, 8),
    st.sampled_from(AMOUNTS),
    st.booleans(),
)


def body_for(kind: str, user: str, uuid: int, of: int, amount: int, is_closing: bool) -> Any:
    own = {"transaction_uuid": UUIDS[uuid]}
    played = {"user": user, "transaction_uuid": UUIDS[of]}
    if kind == "bet":
        return bet_of(user, amount, **own)
    if kind == "win":
        return win_of(played, amount, round_closed=is_closing, **own)
    return rollback_of(played, **own)


SPENT_WIN_ROLLED_BACK = [
    ("bet", "ann", 0, 0, 0, False),
    ("win", "ann", 1, 0, 70_000, True),
    ("bet", "ann", 2, 0, 100_000, False),
    ("bet", "ann", 3, 0, 70_000, False),
    ("rollback", "ann", 4, 1, 0, False),
    ("win", "ann", 5, 2, 100_000, False),
    ("rollback", "ann", 6, 0, 0, False),
]


@given(st.lists(STEPS, max_size=40))
@example(SPENT_WIN_ROLLED_BACK)
@settings(max_examples=150, deadline=None)
def test_wallet_agrees_with_model(steps):
    way, model = FacadeWay(), Model()
    way.create(*USERS)
    for step in steps:
        answer = way.call(step[0], body_for(*step))
        assert (answer["status"], answer.get("balance")) == model.step(*step), step
        check_invariants(way.book.store)
        for user in USERS:
            assert way.units_of(user) == model.balances[user]
            account = way.book.store.account(f"user:{user}:USD")
            assert account is not None
            assert account.owed == model.owed[user] * 10**13


def test_durable_wallet_agrees_with_model(tmp_path):
    """The same on disk, through five restarts; then the book proves itself."""
    draw, model = random.Random(11), Model()
    for _ in range(5):
        with wallet.start(tmp_path) as server:
            wallet.create_users(server, USERS)
            for _ in range(80):
                step = (
                    draw.choice(KINDS),
                    draw.choice(USERS),
                    draw.randrange(100),
                    draw.randrange(100),
                    draw.choice(AMOUNTS),
                    draw.random() < 0.3,
                )
                answer = getattr(server, step[0])(body_for(*step))
                assert (answer["status"], answer.get("balance")) == model.step(*step), step
            check_invariants(server._book.store)
            proof = verify(server._book.store, answers=answers(), invariants=invariants())
            assert proof.ok, proof.problems

"""A random but reproducible book for tests: all verbs of the ledger, many refusals, some keys."""

import random
from typing import ClassVar

from pennyweight.engine.engine import Abandon, Submission
from pennyweight.engine.port import Head, Store
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.products.general import (
    CloseAccount,
    ExpireHold,
    LoadBalances,
    OpenAccount,
    PlaceHold,
    Reverse,
    SettleHold,
    Transfer,
    TransferItem,
    Transfers,
    VoidHold,
)
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

ASSETS = ("USD", "BTC")
USERS = 12
START = 1_700_000_000_000_000


class Clock:
    """A clock that moves two seconds each time it is asked."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        self.now += 2_000_000
        return self.now


class Note(Command, frozen=True):
    """A record with a unique name, kept with a user, and a cursor: what products write."""

    name = "note"
    product = "notes"
    counted = ("user", "text")
    answer_type = dict[str, int]
    kind: ClassVar[str] = "notes.note"

    user: int
    text: str

    def reads(self, wanted: Wanted) -> None:
        wanted.holder(f"user:{self.user}")
        wanted.name(self.kind, self.text)
        wanted.record(self.kind, str(self.user))

    def decide(self, draft: Draft) -> dict[str, int]:
        before = draft.record(self.kind, str(self.user))
        draft.put_record(
            self.kind,
            str(self.user),
            {"text": self.text},
            before=before,
            names=(self.text,),
            labels=("note",),
        )
        at = draft.facts.cursor("notes")
        draft.move_cursor("notes", at, at + 1)
        draft.emit("noted", self.text)
        return {"number": draft.next_number("note")}


class Fact(Command, frozen=True):
    """A debit that happened, whatever the funds: what is missing is owed."""

    name = "fact"
    product = "notes"
    counted = ("user", "amount")
    answer_type = int

    user: int
    amount: int

    def reads(self, wanted: Wanted) -> None:
        wanted.holder(f"user:{self.user}")
        wanted.holder("house")

    def decide(self, draft: Draft) -> int:
        return draft.take(f"user:{self.user}:USD", draft.own_account("house:USD"), self.amount)


class Reserve(Command, frozen=True):
    """A hold with a reference; asked again, half of it is settled, and then the rest is voided."""

    name = "reserve"
    product = "notes"
    counted = ("user", "reference")
    answer_type = int

    user: int
    reference: str
    seconds: int | None = None

    def reads(self, wanted: Wanted) -> None:
        wanted.accounts(f"user:{self.user}:USD", "world:USD")
        wanted.hold_of_reference("notes", self.reference)

    def decide(self, draft: Draft) -> int:
        hold = draft.hold_of_reference(self.reference)
        if hold is None:
            expires_at = None if self.seconds is None else draft.time + self.seconds * 1_000_000
            return draft.place_hold(
                f"user:{self.user}:USD",
                10 * 10**18,
                expires_at=expires_at,
                reference=self.reference,
            ).id
        if hold.remaining == hold.amount:
            half = hold.amount // 2
            return draft.settle_hold(hold.id, "world:USD", half, is_rest_kept=True).id
        return draft.void_hold(hold.id).id


def open_book(store: Store | None = None) -> InlineBook:
    """Open a book on a store, in memory if none is given."""
    store = store or MemoryStore(Head(book="main", incarnation="first"))
    clock = Clock()
    return InlineBook(open_engine(store, now=clock()), store, clock)


def random_book(seed: int, *, store: Store | None = None, batches: int = 60) -> InlineBook:
    """Open a book and give it this many batches of up to eight commands."""
    book = open_book(store)
    dice = random.Random(seed)
    for user in range(USERS):
        book.execute(
            LoadBalances(
                str(user), tuple((asset, str(dice.randrange(3) * 50)) for asset in ASSETS)
            ),
            key=f"load {user}",
        )
    for number in range(batches):
        book.execute_many(
            [
                Submission(_command(dice, book), key=_key(dice, f"{number}.{item}"))
                for item in range(dice.randint(1, 8))
            ]
        )
    book.execute(Abandon("ledger"), key="given up")
    return book


def _key(dice: random.Random, name: str) -> str:
    return f"key {name}" if dice.random() < 0.7 else ""


def _account(dice: random.Random, asset: str) -> str:
    if dice.random() < 0.1:
        return f"world:{asset}"
    return f"user:{dice.randrange(USERS)}:{asset}"


def _command(dice: random.Random, book: InlineBook) -> Command:
    asset = dice.choice(ASSETS)
    amount = str(dice.randint(1, 40))
    hold = dice.randint(1, book.engine.standing.counters.get("hold", 0) + 1)
    match dice.randrange(13):
        case 0 | 1 | 2:
            effective_at = START if dice.random() < 0.2 else None
            return Transfer(
                _account(dice, asset), _account(dice, asset), asset, amount, effective_at
            )
        case 3:
            pairs = range(dice.randint(1, 4))
            return Transfers(
                tuple(
                    TransferItem(_account(dice, asset), _account(dice, asset), asset, "3")
                    for _ in pairs
                )
            )
        case 4 | 5:
            seconds = dice.choice((None, 4, 1_000))
            if dice.random() < 0.4:
                return Reserve(dice.randrange(USERS), f"reserved {dice.randrange(40)}", seconds)
            return PlaceHold(_account(dice, asset), asset, amount, seconds)
        case 6:
            return SettleHold(hold, amount, _account(dice, asset), dice.random() < 0.5)
        case 7:
            return VoidHold(hold)
        case 8:
            return ExpireHold(hold)
        case 9:
            return Reverse(dice.randint(1, book.engine.head.sequence + 1))
        case 10:
            return Note(dice.randrange(USERS), f"text {dice.randrange(30)}")
        case 11:
            return Fact(dice.randrange(USERS), dice.randint(1, 90) * 10**18)
        case _:
            if dice.random() < 0.5:
                return OpenAccount(f"user:{dice.randrange(USERS)}:ETH", "-5")
            return CloseAccount(f"user:{dice.randrange(USERS)}:{dice.choice(('ETH', 'BTC'))}")

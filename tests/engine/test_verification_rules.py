"""What the rebuilding says of entries that no draft of ours could have sealed."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from pennyweight.engine.rebuild import Rebuilt, answers_of
from pennyweight.ledger.accounts import HOLDS_OPEN_MAX
from pennyweight.ledger.entries import Entry, Opening, Transfer
from pennyweight.ledger.holds import Hold, HoldChange, HoldState, HoldVerb
from pennyweight.ledger.lines import Line
from pennyweight.ledger.records import Record
from pennyweight.products import general

ANSWERS = answers_of([general.RegisterAsset])
USD = msgspec.Raw(b'{"name":"USD","scale":2,"currency_id":1}')
LIMIT = 10**38


class Told:
    """A rebuilt book with two users and 100 USD at the first, and what is said of it."""

    def __init__(self) -> None:
        self.problems: list[tuple[int, str]] = []
        self.book = Rebuilt(lambda *problem: self.problems.append(problem), answers=ANSWERS)
        self.time = 1_000
        self.apply(records=[record()])
        self.open("world:USD", "user:1:USD", "user:2:USD")
        self.move("world:USD", "user:1:USD", 100)
        assert self.problems == []

    def apply(self, **parts: Any) -> list[str]:
        """Apply an entry and return what is said of it."""
        said = len(self.problems)
        entry = Entry(
            sequence=self.book.sequence + 1,
            command="register_asset",
            product=parts.pop("product", "ledger"),
            answer=USD,
            **parts,
        )
        self.book.apply(entry, self.time)
        return [
            problem
            for sequence, problem in self.problems[said:]
            if sequence == entry.sequence and "is no known command" not in problem
        ]

    def open(self, *account_ids: str, asset: str = "USD") -> list[str]:
        number = self.book.counters.get("account", 0)
        return self.apply(
            openings=[
                Opening(
                    number + place,
                    account_id,
                    account_id.rpartition(":")[0].removeprefix("owed:"),
                    asset,
                    None if account_id.startswith(("world", "owed")) else 0,
                )
                for place, account_id in enumerate(account_ids, start=1)
            ]
        )

    def line(self, account_id: str, change: int, posted: int, held: int, back: int = 0) -> Line:
        """The line that must come, given how far the balances move."""
        account = self.book.accounts[account_id]
        # Pointers are checked elsewhere: an account's first line points nowhere.
        return Line(
            account_id,
            account.lines + 1 + back,
            change,
            account.posted + posted,
            account.held + held,
            0,
            0,
        )

    def move(self, debit: str, credit: str, amount: int) -> list[str]:
        return self.apply(
            transfers=[Transfer(debit, credit, amount)],
            lines=[self.line(debit, 0, -amount, 0), self.line(credit, 0, amount, 0)],
        )

    def hold(
        self, verb: HoldVerb, hold: Hold, held: int, *, product: str = "ledger", paid: int = 0
    ) -> list[str]:
        lines = [self.line(hold.account, -1, 0, held)]
        transfers = []
        if paid:
            transfers = [Transfer(hold.account, "world:USD", paid)]
            lines.append(self.line(hold.account, 0, -paid, held, back=1))
            lines.append(self.line("world:USD", 0, paid, 0))
        return self.apply(
            product=product,
            holds=[HoldChange(verb, held, hold)],
            lines=lines,
            transfers=transfers,
        )


def record(body: bytes = bytes(USD), *, version: int = 1, names: Iterable[str] = ()) -> Record:
    return Record("asset", "USD", "ledger", version, msgspec.Raw(body), names=tuple(names))


def hold(hold_id: int = 1, *, amount: int = 10, **changes: Any) -> Hold:
    first = Hold(hold_id, "user:1:USD", "USD", amount, amount, "ledger")
    return msgspec.structs.replace(first, **changes)


def ended(state: HoldState, hold_id: int = 1, **changes: Any) -> Hold:
    return hold(hold_id, remaining=0, state=state, **changes)


@pytest.fixture
def told() -> Told:
    return Told()


def only_lines(problems: list[str]) -> list[str]:
    """Leave out what is said of pointers: lines of these tests point nowhere."""
    return [problem for problem in problems if "statement line" not in problem]


def test_accounts_are_opened_once_with_an_asset_that_is_registered(told: Told) -> None:
    assert told.open("user:1:USD") == ["account user:1:USD is opened a second time"]
    assert told.open("user:3:EUR", asset="EUR") == [
        "account user:3:EUR is opened, but EUR is not registered"
    ]


def test_accounts_are_closed_once_and_refuse_from_then_on(told: Told) -> None:
    assert told.apply(closings=["user:2:USD"]) == []
    assert told.apply(closings=["user:2:USD"]) == ["account user:2:USD is closed a second time"]
    assert only_lines(told.move("user:1:USD", "user:2:USD", 1)) == [
        "transfer 0 touches a closed account"
    ]
    assert only_lines(told.hold("place", hold(account="user:2:USD"), 10)) == [
        "hold 1 is placed on a closed account"
    ]


def test_balances_have_38_digits_at_most(told: Told) -> None:
    problems = only_lines(told.move("world:USD", "user:1:USD", LIMIT - 1))
    assert problems == [
        "account world:USD exceeds 38 digits",
        "account user:1:USD exceeds 38 digits",
    ]


def test_what_is_owed_belongs_to_an_account_and_is_paid_back_once(told: Told) -> None:
    told.open("owed:user:1:USD", "owed:user:9:USD")
    assert told.move("owed:user:1:USD", "user:2:USD", 5) == []
    assert told.book.accounts["user:1:USD"].owed == 5
    assert only_lines(told.move("user:1:USD", "owed:user:1:USD", 6)) == [
        "account user:1:USD pays back more than it owed"
    ]
    assert only_lines(told.move("owed:user:9:USD", "user:2:USD", 5)) == [
        "owed:user:9:USD stands for an account that was never opened"
    ]


def test_holds_set_aside_what_is_available(told: Told) -> None:
    assert only_lines(told.hold("place", hold(amount=101), 101)) == [
        "hold 1 sets aside more than is available"
    ]


def test_holds_are_on_accounts(told: Told) -> None:
    told.book.accounts["user:9:USD"] = told.book.accounts["user:1:USD"]
    change = HoldChange("place", 10, hold(account="user:8:USD"))
    assert told.apply(holds=[change], lines=[told.line("user:1:USD", -1, 0, 10)]) == [
        "hold 1 is on user:8:USD, which was never opened"
    ]


def test_an_account_has_so_many_holds_only(told: Told) -> None:
    told.book.accounts["user:1:USD"].open_holds = HOLDS_OPEN_MAX
    assert only_lines(told.hold("place", hold(), 10)) == [
        f"hold 1 is one more than {HOLDS_OPEN_MAX} of its account"
    ]


def test_holds_end_by_their_time(told: Told) -> None:
    told.hold("place", hold(expires_at=2_000), 10)
    assert only_lines(
        told.hold("expire", ended(HoldState.EXPIRED, expires_at=2_000), -10, product="timer")
    ) == ["hold 1 expires before its time"]
    told.hold("place", hold(2, expires_at=2_000), 10)
    told.time = 2_000
    settled = ended(HoldState.SETTLED, 2, expires_at=2_000)
    assert only_lines(told.hold("settle", settled, -10, paid=10)) == [
        "hold 2 is settled after its expiry"
    ]


def test_holds_are_settled_in_part_or_in_full(told: Told) -> None:
    told.hold("place", hold(), 10)
    kept = hold(remaining=4)
    assert only_lines(told.hold("settle", kept, -6, paid=6)) == []
    assert only_lines(told.hold("settle", hold(remaining=3), -1, paid=2)) == [
        "hold 1 is settled, but its account pays something else"
    ]
    voided = ended(HoldState.VOIDED)
    assert only_lines(told.hold("settle", voided, -3, paid=3)) == [
        "hold 1 cannot be voided after it was settled"
    ]


def test_a_settlement_pays(told: Told) -> None:
    told.hold("place", hold(), 10)
    assert only_lines(told.hold("settle", ended(HoldState.SETTLED), -10)) == [
        "hold 1 is settled without a payment"
    ]


def test_held_is_never_negative(told: Told) -> None:
    told.hold("place", hold(), 10)
    told.book._broken.clear()
    told.book.accounts["user:1:USD"].held = 0
    problems = only_lines(told.hold("void", ended(HoldState.VOIDED), -10))
    assert problems == ["account user:1:USD holds less than nothing"]


def test_an_asset_keeps_its_scale(told: Told) -> None:
    other = b'{"name":"USD","scale":3,"currency_id":1}'
    assert told.apply(records=[record(other, version=2)]) == [
        "asset USD is registered again with another scale or number"
    ]
    assert told.apply(records=[record(b"3", version=3)]) == ["asset USD cannot be read"]


def test_a_name_belongs_to_one_record(told: Told) -> None:
    assert told.apply(records=[record(version=2, names=("id:1",))]) == []
    other = msgspec.structs.replace(record(names=("id:1",)), id="EUR", body=USD)
    assert told.apply(records=[other]) == ["asset EUR takes the name id:1, which is taken"]
    assert told.apply(records=[record(version=3, names=())]) == []
    again = msgspec.structs.replace(other, id="RUB")
    assert told.apply(records=[again]) == []


def test_the_whole_book_adds_up(told: Told) -> None:
    told.book._broken.clear()
    told.book.accounts["user:1:USD"].posted += 1
    told.book.accounts["user:2:USD"].held += 1
    told.book.finish()
    assert told.problems == [
        (2, "account user:2:USD: held is 1, its open holds keep 0"),
        (0, "the balances of USD add up to 1, not to zero"),
    ]

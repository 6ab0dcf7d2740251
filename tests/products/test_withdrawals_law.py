"""The law that `verify` checks of withdrawals: damage that the ledger's own laws cannot see."""

from collections.abc import Callable

import msgspec
import pytest

from pennyweight.engine.rebuild import answers_of, known_commands
from pennyweight.engine.verification import verify
from pennyweight.ledger.entries import Entry, Transfer, decode_entry
from pennyweight.products.withdrawals import WithdrawalsLaw
from scenarios import Stage, play

SCENARIO = """
    given
        user:ann:BTC        10
        user:ann:ETH        5
        user:bob:BTC        10
    when
        [h1] withdrawals.withdraw ann BTC 4
        [h2] withdrawals.withdraw ann BTC 1 mine expires_in_seconds=60
        [h3] withdrawals.withdraw ann BTC 2 late expires_in_seconds=60
        [c2] withdrawals.cancel_withdrawal mine
        wait 60
        [e3] withdrawals.expire_withdrawal 3
        [s1] withdrawals.settle ann ETH 3 BTC 3 w1              # 1 is free again
        [d1] withdrawals.settle ann ETH 3 BTC 3 w1              # a duplicate
        [h4] withdrawals.withdraw ann BTC 1
        [z4] withdrawals.settle ann ETH 0 BTC 0 w4
        [u1] withdrawals.settle ann ETH 1 BTC 2
        [h5] withdrawals.withdraw ann BTC 5
        [o5] withdrawals.settle ann ETH 1 BTC 8 w5              # 3 too many
        [p1] withdrawals.settle ann BTC 2 ETH 1                 # pays 2 of them back
        open_account user:ann:USD
        close_account user:ann:USD
        [x1] withdrawals.settle ann USD 7 ETH 1                 # to suspense
        [x2] withdrawals.settle ann BTC 2 USD 1                 # all owed
        [m1] withdrawals.set_mode reducing
        [a1] withdrawals.set_aside_settlement '{"topic":"t","partition":0,"offset":1,"payload":""}' r d
        [r1] withdrawals.replay_settlement withdrawals-1 \
'{"user":"ann","bought_token":"EUR","bought_quantity":"1","sold_token":"ETH","sold_quantity":"1"}'
"""


class Book:
    """What a law looks at, as it stands after an entry."""

    def __init__(self, stage: Stage) -> None:
        self.accounts = {row.id: row for kind, row in stage.store.rows() if kind == "account"}
        self.assets = stage.book.engine.standing.assets


def test_law_holds():
    stage = play(SCENARIO)
    laws = [WithdrawalsLaw()]
    report = verify(stage.store, answers=answers_of(known_commands()), invariants=laws)
    assert report.ok, report.problems


def upto(key: str) -> str:
    """Return the scenario up to the command with this key."""
    lines = SCENARIO.splitlines()
    last = next(number for number, line in enumerate(lines) if f"[{key}]" in line)
    return "\n".join(lines[: last + 1])


def last_entry(stage: Stage) -> Entry:
    body = stage.store.entry(stage.store.head().sequence)
    assert body is not None
    return decode_entry(body)


Change = Callable[[Entry], Entry]


def moved(*transfers: tuple[str, str, float]) -> Change:
    """Put these transfers (of whole units) in the place of the entry's."""
    made = [Transfer(debit, credit, int(amount * 10**18)) for debit, credit, amount in transfers]
    return lambda entry: msgspec.structs.replace(entry, transfers=made)


def told(**fields: object) -> Change:
    """Change the answer."""

    def change(entry: Entry) -> Entry:
        answer = {**msgspec.json.decode(entry.answer), **fields}
        return msgspec.structs.replace(entry, answer=msgspec.Raw(msgspec.json.encode(answer)))

    return change


def asked(**fields: object) -> Change:
    """Change what was asked for."""

    def change(entry: Entry) -> Entry:
        before = {**msgspec.json.decode(entry.fields), **fields}
        return msgspec.structs.replace(entry, fields=msgspec.Raw(msgspec.json.encode(before)))

    return change


def held(**fields: object) -> Change:
    """Change the hold of the first hold change."""

    def change(entry: Entry) -> Entry:
        first = entry.holds[0]
        hold = msgspec.structs.replace(first.hold, **fields)
        return msgspec.structs.replace(entry, holds=[msgspec.structs.replace(first, hold=hold)])

    return change


def verb(name: str) -> Change:
    def change(entry: Entry) -> Entry:
        return msgspec.structs.replace(
            entry, holds=[msgspec.structs.replace(entry.holds[0], verb=name)]
        )

    return change


def no_holds(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, holds=[])


def unreadable(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, fields=msgspec.Raw(b'{"user":5}'))


def twice(entry: Entry) -> Entry:
    return msgspec.structs.replace(entry, holds=entry.holds * 2)


ANN_BTC, ANN_ETH, ANN_USD = "user:ann:BTC", "user:ann:ETH", "user:ann:USD"
VENUE_BTC, VENUE_ETH, VENUE_USD = "venue:trades:BTC", "venue:trades:ETH", "venue:trades:USD"
OWED_BTC, OWED_USD = f"owed:{ANN_BTC}", f"owed:{ANN_USD}"
SOLD, BOUGHT = (ANN_BTC, VENUE_BTC, 3), (VENUE_ETH, ANN_ETH, 3)

DAMAGE = [
    # withdrawals
    ("h1", moved((ANN_BTC, VENUE_BTC, 4)), "else than hold"),
    ("h1", no_holds, "else than hold"),
    ("h1", twice, "else than hold"),
    ("h1", verb("void"), "else than hold"),
    ("h1", held(amount=4), "holds something else"),
    ("h1", held(account="user:bob:BTC"), "holds something else"),
    ("h1", asked(quantity="5"), "holds something else"),
    ("h1", asked(user="bob"), "holds something else"),
    ("h1", asked(token="XYZ"), "cannot be read"),
    ("h1", asked(quantity="four"), "cannot be read"),
    ("h1", asked(user=""), "cannot be read"),
    ("h1", unreadable, "cannot be read"),
    ("h1", told(withdrawal_id="w2"), "it answers w2"),
    ("h1", told(requested_quantity="5"), "it answers w1, 5"),
    ("h1", told(available="7"), "it answers w1, 4, 7"),
    ("h1", told(held="3"), "it answers w1, 4, 6, 3"),
    ("h1", told(expires_at=5), "it answers w1"),
    ("h2", told(withdrawal_id="w2"), "it answers w2"),
    ("h2", told(expires_at=None), "it answers mine"),
    ("h2", held(reference="yours"), "it answers mine"),
    # their ends
    ("c2", moved((ANN_BTC, VENUE_BTC, 1)), "else than release"),
    ("c2", no_holds, "else than release"),
    ("c2", verb("settle"), "else than release"),
    ("c2", verb("expire"), "else than release"),
    ("c2", told(withdrawal_id="other"), "it answers other"),
    ("c2", told(available="10"), "it answers mine"),
    ("e3", verb("void"), "else than release"),
    ("e3", told(withdrawal_id="mine"), "it answers mine"),
    # trades
    ("s1", moved(SOLD), "moves something else"),
    ("s1", moved(BOUGHT), "moves something else"),
    ("s1", moved((ANN_BTC, VENUE_BTC, 4), BOUGHT), "moves something else"),
    ("s1", moved(SOLD, (VENUE_ETH, ANN_ETH, 2)), "moves something else"),
    ("s1", moved(SOLD, BOUGHT, (ANN_BTC, "world:BTC", 1)), "from user:ann:BTC to world:BTC"),
    ("s1", moved(SOLD, (VENUE_ETH, "user:bob:ETH", 3)), "to user:bob:ETH"),
    ("s1", moved(("user:bob:BTC", VENUE_BTC, 3), BOUGHT), "from user:bob:BTC"),
    ("s1", moved(("owed:user:bob:BTC", VENUE_BTC, 3), BOUGHT), "from owed:user:bob:BTC"),
    ("s1", moved(SOLD, BOUGHT, (ANN_ETH, "owed:user:bob:ETH", 1)), "to owed:user:bob:ETH"),
    ("s1", moved((ANN_BTC, VENUE_BTC, 2), (OWED_BTC, VENUE_BTC, 1), BOUGHT), "could pay"),
    ("s1", told(credited="suspense:ETH"), "from venue:trades:ETH to user:ann:ETH"),
    ("s1", asked(user="bob"), "a trade of bob moves"),
    ("s1", asked(sold_quantity="4"), "moves something else"),
    ("s1", unreadable, "cannot be read"),
    ("s1", no_holds, "other holds than its own"),
    ("s1", twice, "other holds than its own"),
    ("s1", verb("void"), "other holds than its own"),
    ("s1", held(account=ANN_ETH), "other holds than its own"),
    ("s1", held(id=2), "other holds than its own"),
    ("s1", told(withdrawal_id="w2"), "other holds than its own"),
    ("s1", told(result="unsolicited"), "other holds than its own"),
    ("s1", told(result="cancelled"), "other holds than its own"),
    ("s1", told(result="odd"), "cannot be read"),
    ("s1", told(released="0"), "it answers 7, 8, 0,"),
    ("s1", told(sold_available="8"), "it answers 8,"),
    ("s1", told(bought_available="9"), "it answers 7, 9,"),
    ("s1", told(shortage="1"), "it answers 7, 8, 1, 1,"),
    ("s1", told(owed="1"), "it answers 7, 8, 1, 0, 1"),
    ("d1", moved(SOLD), "a duplicate moves money"),
    ("s1", told(result="duplicate"), "a duplicate moves money"),
    ("z4", told(result="duplicate"), "a duplicate moves money"),
    ("z4", verb("settle"), "other holds than its own"),
    ("z4", told(released="1"), "it answers"),
    ("u1", told(result="settled"), "other holds than its own"),
    ("u1", told(withdrawal_id="w1"), "other holds than its own"),
    ("o5", told(shortage="2"), "it answers"),
    ("o5", told(owed="0"), "it answers"),
    ("p1", told(bought_available="2"), "it answers"),
    (
        "p1",
        moved((ANN_ETH, VENUE_ETH, 1), (VENUE_BTC, ANN_BTC, 2), (ANN_BTC, "owed:user:bob:BTC", 2)),
        "to owed:user:bob:BTC",
    ),
    ("x1", moved((ANN_ETH, VENUE_ETH, 1), (VENUE_USD, ANN_USD, 7)), "to user:ann:USD"),
    ("x1", moved((ANN_ETH, VENUE_ETH, 1), (VENUE_USD, "house:USD", 7)), "to house:USD"),
    ("x1", told(credited="house:USD"), "it answers"),
    ("x2", moved((VENUE_BTC, ANN_BTC, 2)), "moves something else"),
    ("r1", moved((ANN_ETH, VENUE_ETH, 1)), "moves something else"),
    ("r1", unreadable, "cannot be read"),
]


@pytest.mark.parametrize(("key", "change", "problem"), DAMAGE)
def test_damage_is_found(key, change, problem):
    stage = play(upto(key))
    law, book, entry = WithdrawalsLaw(), Book(stage), last_entry(stage)
    assert law.entry(entry, book) is None
    found = law.entry(change(entry), book)
    assert found is not None
    assert problem in found


def test_credit_of_a_closed_account_is_found():
    """Suspense is for closed accounts, and they are for nothing."""
    stage = play(upto("x1"))
    law, book, entry = WithdrawalsLaw(), Book(stage), last_entry(stage)
    book.accounts[ANN_USD].is_closed = False
    assert "passed by" in (law.entry(entry, book) or "")


def test_other_entries_are_not_its_business():
    stage = play(SCENARIO)
    law, book = WithdrawalsLaw(), Book(stage)
    others = {"register_asset", "open_account", "set_mode", "set_aside_settlement", "transfer"}
    seen = set()
    for _, body in stage.store.entries(0, 1_000):
        entry = decode_entry(body)
        if entry.command in others:
            seen.add(entry.command)
            assert law.entry(unreadable(entry), book) is None
    assert seen == others
    assert not list(law.end(book))

"""The bet/win protocol, line by line, over the routes and through the façade alike."""

import itertools
from typing import Any

import pytest

from pennyweight.delivery.wallet import (
    EXTENDED_STATUSES,
    RS_ERROR_UNKNOWN,
    STATUSES,
    WalletSettings,
    status_of,
)
from pennyweight.ledger.refusals import Reason
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.products.wallet import LockUser
from wallets import WAYS, Way, asked, bet_of, fresh_uuid, rollback_of, win_of

OF_BETS = ("user", "transaction_uuid", "request_uuid", "token", "game_code", "currency", "amount")
REQUIRED = {
    "bet": OF_BETS,
    "win": (*OF_BETS, "reference_transaction_uuid"),
    "rollback": (*OF_BETS[:5], "reference_transaction_uuid"),
}
UUID = "16d2dcfe-b89e-11e7-854a-58404eea6d16"
OPTIONAL_TEXT = (
    "round",
    "supplier_transaction_id",
    "supplier_user",
    "reward_uuid",
    "sub_partner_id",
)
OPTIONAL_FLAGS = ("is_free", "is_supplier_promo", "is_aggregated", "is_aggregate")


@pytest.fixture(params=WAYS)
def kind(request: pytest.FixtureRequest) -> type[Way]:
    return WAYS[request.param]


@pytest.fixture
def way(kind: type[Way]) -> Way:
    way = kind()
    way.create("john12345", "jane")
    return way


def body_of(name: str, **fields: Any) -> dict[str, Any]:
    """Return a body that would be answered RS_OK or about a bet that is not there."""
    bet = bet_of()
    body = {"bet": bet, "win": win_of(bet), "rollback": rollback_of(bet)}[name]
    return {**body, **fields}


# ── answers ───────────────────────────────────────────────────────────────────────


def test_bet_answer_has_exactly_the_published_fields(way):
    body = bet_of(amount=356)
    assert way.bet(body) == {
        "user": "john12345",
        "status": "RS_OK",
        "request_uuid": body["request_uuid"],
        "currency": "USD",
        "balance": 99_644,
    }


def test_error_answer_has_exactly_the_published_fields(way):
    body = bet_of(currency="EUR")
    assert way.bet(body) == {
        "user": "john12345",
        "status": "RS_ERROR_WRONG_CURRENCY",
        "request_uuid": body["request_uuid"],
    }


def test_not_enough_money_tells_balance(way):
    way.bet(bet_of(amount=99_999))
    body = bet_of(amount=2)
    assert way.bet(body) == {
        "user": "john12345",
        "status": "RS_ERROR_NOT_ENOUGH_MONEY",
        "request_uuid": body["request_uuid"],
        "balance": 1,
    }


@pytest.mark.parametrize("name", ["balance", "info"])
def test_question_answer(way, name):
    if not hasattr(way, "routes") and name == "info":
        name = "balance"
    body = asked()
    assert way.call(name, body) == {
        "user": "john12345",
        "status": "RS_OK",
        "request_uuid": body["request_uuid"],
        "currency": "USD",
        "balance": 100_000,
    }
    assert way.call(name, asked("nobody"))["status"] == "RS_ERROR_UNKNOWN"
    assert way.call(name, asked(""))["status"] == "RS_ERROR_UNKNOWN"
    assert way.call(name, asked(request_uuid="x"))["status"] == "RS_ERROR_WRONG_TYPES"


def test_balance_in_first_currency_of_user_without_usd(way):
    way.execute(OpenAccount("user:otto:BTC"))
    way.execute(OpenAccount("user:otto:EUR"))
    way.execute(Transfer("world:BTC", "user:otto:BTC", "BTC", "0.5"))
    answer = way.balance(asked("otto"))
    assert (answer["currency"], answer["balance"]) == ("BTC", 50_000)


def test_bet_in_other_currency_of_user(way):
    way.execute(OpenAccount("user:jane:BTC"))
    way.execute(Transfer("world:BTC", "user:jane:BTC", "BTC", "0.5"))
    answer = way.bet(bet_of("jane", 1_000, currency="BTC"))
    assert (answer["currency"], answer["balance"]) == ("BTC", 49_000)


def test_request_uuid_is_echoed_as_received(way):
    request_uuid = fresh_uuid().upper()
    assert way.bet(bet_of(request_uuid=request_uuid))["request_uuid"] == request_uuid


def test_transaction_uuid_means_the_same_in_both_cases(way):
    body = bet_of(amount=10)
    way.bet(body)
    shouted = {**body, "transaction_uuid": body["transaction_uuid"].upper()}
    assert way.bet(shouted)["balance"] == 99_990
    assert way.win(win_of(shouted, 1))["balance"] == 99_991
    assert way.units_of() == 99_991


# ── shape and types ───────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("name", "field"), [(n, f) for n, fs in REQUIRED.items() for f in fs])
def test_missing_field(way, name, field):
    body = body_of(name)
    del body[field]
    answer = way.call(name, body)
    assert answer["status"] == "RS_ERROR_WRONG_SYNTAX"
    assert answer["user"] == body.get("user")
    assert answer["request_uuid"] == body.get("request_uuid")


@pytest.mark.parametrize("wrong", [None, 1, 1.5, True, ["x"], {"x": 1}])
@pytest.mark.parametrize(("name", "field"), [(n, f) for n, fs in REQUIRED.items() for f in fs])
def test_required_field_of_wrong_type(way, name, field, wrong):
    if field == "amount" and wrong == 1 and wrong is not True:
        wrong = "1"
    body = body_of(name, **{field: wrong})
    answer = way.call(name, body)
    assert answer["status"] == "RS_ERROR_WRONG_TYPES"
    assert answer["user"] == (None if field == "user" else "john12345")


@pytest.mark.parametrize("amount", [-1, True, False, 1.0, 100.5, "100", None, [], 10**38, 10**400])
@pytest.mark.parametrize("name", ["bet", "win"])
def test_amount_that_is_none(way, name, amount):
    body = bet_of()
    way.bet(body)
    wrong = body_of(name, amount=amount)
    if name == "win":
        wrong["reference_transaction_uuid"] = body["transaction_uuid"]
    assert way.call(name, wrong)["status"] == "RS_ERROR_WRONG_TYPES"
    assert way.units_of() == 99_900


@pytest.mark.parametrize(
    "text", ["", "x", UUID + "\n", UUID[:-1], UUID.replace("-", ""), "é" * 36, "g" + UUID[1:]]
)
@pytest.mark.parametrize(
    ("name", "field"),
    [(n, f) for n, fields in REQUIRED.items() for f in fields if f.endswith("_uuid")],
)
def test_uuid_that_is_none(way, name, field, text):
    assert way.call(name, body_of(name, **{field: text}))["status"] == "RS_ERROR_WRONG_TYPES"


@pytest.mark.parametrize("field", OPTIONAL_TEXT)
def test_optional_text(way, field):
    assert way.bet(bet_of(**{field: None}))["status"] == "RS_OK"
    assert way.bet(bet_of(**{field: "x"}))["status"] == "RS_OK"
    assert way.bet(bet_of(**{field: 1}))["status"] == "RS_ERROR_WRONG_TYPES"


@pytest.mark.parametrize("field", [*OPTIONAL_FLAGS, "round_closed"])
def test_optional_flag(way, field):
    assert way.bet(bet_of(**{field: None}))["status"] == "RS_OK"
    assert way.bet(bet_of(**{field: True}))["status"] == "RS_OK"
    assert way.bet(bet_of(**{field: 1}))["status"] == "RS_ERROR_WRONG_TYPES"


def test_meta_is_an_object(way):
    for meta in (None, {}, {"a": {"b": [1, 2.5, None]}}):
        assert way.bet(bet_of(meta=meta))["status"] == "RS_OK"
    for meta in ([], "x", 1):
        assert way.bet(bet_of(meta=meta))["status"] == "RS_ERROR_WRONG_TYPES"


def test_unknown_fields_are_ignored(way):
    assert way.bet(bet_of(transaction_type="x", extra={"deep": []}))["status"] == "RS_OK"


def test_missing_goes_before_wrong_type(way):
    body = bet_of(amount="x")
    del body["token"]
    assert way.bet(body)["status"] == "RS_ERROR_WRONG_SYNTAX"


@pytest.mark.parametrize("body", [None, [], "text", 5, True, [{}]])
def test_no_object(way, body):
    assert way.bet(body) == {"user": None, "status": "RS_ERROR_WRONG_SYNTAX", "request_uuid": None}
    assert way.balance(body)["status"] == "RS_ERROR_WRONG_SYNTAX"


# ── money ─────────────────────────────────────────────────────────────────────────


def test_amount_is_not_scaled(way):
    way.bet(bet_of(amount=1))
    assert way.balance(asked())["balance"] == 99_999


def test_zero_bet_and_win(way):
    body = bet_of(amount=0)
    assert way.bet(body)["balance"] == 100_000
    assert way.win(win_of(body, 0, round_closed=True))["balance"] == 100_000
    assert way.win(win_of(body, 1))["status"] == "RS_ERROR_UNKNOWN"


def test_amount_beyond_64_bits(way):
    body = bet_of(amount=2**70)
    assert way.bet(body)["status"] == "RS_ERROR_NOT_ENOUGH_MONEY"
    body["amount"] = 1
    assert way.bet(body)["status"] == "RS_OK"
    assert way.win(win_of(body, 2**70))["balance"] == 99_999 + 2**70
    assert way.win(win_of(body, 10**37))["status"] == "RS_ERROR_UNKNOWN"


# ── duplicates ────────────────────────────────────────────────────────────────────

CHANGES: dict[str, dict[str, Any]] = {
    "amount": {"amount": 101},
    "currency": {"currency": "EUR"},
    "round": {"round": "other"},
    "user": {"user": "jane"},
    "game": {"game_code": "other"},
}


@pytest.mark.parametrize("field", CHANGES)
def test_duplicate_with_other_parameter(way, field):
    body = bet_of(round="r")
    way.bet(body)
    win = win_of(body, round="r")
    assert way.bet({**body, **CHANGES[field]})["status"] == "RS_ERROR_DUPLICATE_TRANSACTION"
    way.win(win)
    assert way.win({**win, **CHANGES[field]})["status"] == "RS_ERROR_DUPLICATE_TRANSACTION"
    assert way.units_of() == 100_000
    assert way.units_of("jane") == 100_000


def test_duplicate_with_other_reference_or_kind(way):
    first, second = bet_of(), bet_of()
    way.bet(first)
    way.bet(second)
    win = win_of(first)
    way.win(win)
    other = {**win, "reference_transaction_uuid": second["transaction_uuid"]}
    reused = {**win, "transaction_uuid": first["transaction_uuid"]}
    duplicate = "RS_ERROR_DUPLICATE_TRANSACTION"
    assert way.win(other)["status"] == duplicate
    assert way.win(reused)["status"] == duplicate
    assert way.bet({**first, "transaction_uuid": win["transaction_uuid"]})["status"] == duplicate
    back = rollback_of(second, transaction_uuid=first["transaction_uuid"])
    assert way.rollback(back)["status"] == duplicate


def test_repeat_in_full_gets_the_same_answer(way):
    body = bet_of()
    first = way.bet(body)
    way.bet(bet_of())
    assert way.bet(dict(body)) == first
    win = win_of(body)
    won = way.win(win)
    way.bet(bet_of())
    assert way.win(dict(win)) == won
    back = rollback_of(win)
    rolled = way.rollback(back)
    way.bet(bet_of())
    assert way.rollback(dict(back)) == rolled


@pytest.mark.parametrize(
    "change", [{"token": "other"}, {"meta": {"a": 1}}, {"supplier_user": "x"}, {"bet": "zero"}]
)
def test_repeat_with_what_does_not_count(way, change):
    body = bet_of()
    first = way.bet(body)
    assert way.bet({**body, **change}) == first
    assert way.units_of() == 99_900


def test_failed_request_frees_its_uuid(way):
    body = bet_of(amount=100_001)
    assert way.bet(body)["status"] == "RS_ERROR_NOT_ENOUGH_MONEY"
    assert way.bet({**body, "currency": "XXX"})["status"] == "RS_ERROR_WRONG_CURRENCY"
    assert way.bet({**body, "amount": 100_000})["balance"] == 0
    assert way.bet(body)["status"] == "RS_ERROR_DUPLICATE_TRANSACTION"


def test_repeat_of_rolled_back_bet_moves_nothing(way):
    body = bet_of()
    first = way.bet(body)
    way.rollback(rollback_of(body))
    assert way.bet(body) == first
    assert way.units_of() == 100_000


# ── wins and rollbacks ────────────────────────────────────────────────────────────

MISSING = "RS_ERROR_TRANSACTION_DOES_NOT_EXIST"


def test_win_needs_a_standing_bet_of_its_user(way):
    body = bet_of()
    assert way.win(win_of(body))["status"] == MISSING
    way.bet(body)
    assert way.win(win_of(body, user="jane"))["status"] == MISSING
    way.rollback(rollback_of(body))
    assert way.win(win_of(body))["status"] == MISSING


def test_win_may_change_game_and_round(way):
    body = bet_of(round="r")
    way.bet(body)
    assert way.win(win_of(body, round="s", game_code="lobby"))["status"] == "RS_OK"


def test_round_closed_on_a_bet_closes_nothing(way):
    body = bet_of(round_closed=True)
    way.bet(body)
    assert way.win(win_of(body))["status"] == "RS_OK"
    assert way.win(win_of(body, round_closed=True))["status"] == "RS_OK"
    assert way.win(win_of(body))["status"] == "RS_ERROR_UNKNOWN"


def test_one_win_per_bet(kind):
    way = kind(WalletSettings(one_win_per_bet=True))
    way.create("john12345")
    body = bet_of()
    way.bet(body)
    first = win_of(body)
    assert way.win(first)["status"] == "RS_OK"
    assert way.win(win_of(body))["status"] == "RS_ERROR_UNKNOWN"
    assert way.win(first)["status"] == "RS_OK"
    assert way.units_of() == 100_000


def test_rollback_answers(way):
    body = bet_of()
    way.bet(body)
    assert way.rollback(rollback_of(body))["balance"] == 100_000
    assert way.rollback(rollback_of(body))["status"] == "RS_OK"
    assert way.units_of() == 100_000


def test_rollback_of_bet_that_never_came(kind):
    for dialect, status in (("hub88", RS_ERROR_UNKNOWN), ("extended", ROLLED_BACK)):
        way = kind(WalletSettings(dialect=dialect))
        way.create("john12345")
        body = bet_of()
        assert way.rollback(rollback_of(body))["status"] == "RS_OK"
        assert way.rollback(rollback_of(body))["status"] == "RS_OK"
        assert way.bet(body)["status"] == status
        assert way.units_of() == 100_000


ROLLED_BACK = "RS_ERROR_TRANSACTION_ROLLED_BACK"


def test_rollback_of_bet_with_win_waits_for_the_wins(way):
    body = bet_of()
    way.bet(body)
    win = win_of(body, 500)
    way.win(win)
    assert way.rollback(rollback_of(body))["status"] == "RS_ERROR_UNKNOWN"
    assert way.rollback(rollback_of(win))["balance"] == 99_900
    assert way.rollback(rollback_of(body))["balance"] == 100_000


def test_rollback_of_spent_win_is_owed(way):
    body = bet_of(amount=0)
    way.bet(body)
    win = win_of(body, 500)
    way.win(win)
    way.bet(bet_of(amount=100_500))
    assert way.rollback(rollback_of(win))["balance"] == 0
    later = win_of(body, 700)
    assert way.win(later)["balance"] == 200
    assert way.units_of() == 200


def test_rollback_for_another_user(way):
    body = bet_of()
    way.bet(body)
    assert way.rollback(rollback_of(body, user="jane"))["status"] == MISSING
    assert way.units_of() == 99_900


# ── the order of checks ───────────────────────────────────────────────────────────

SETTINGS = WalletSettings(
    partners=frozenset({"p"}),
    tokens=frozenset({"t", "old"}),
    expired_tokens=frozenset({"old"}),
    games=frozenset({"g"}),
    currencies=frozenset({"USD", "EUR"}),
    bet_max="0.5",
)
USED, BURIED, WON, ROLLED, CLOSED, ABSENT, DONE = (UUID[:-1] + digit for digit in "0123457")

BET_DEFECTS: list[tuple[str, dict[str, Any]]] = [
    ("RS_ERROR_WRONG_SYNTAX", {"request_uuid": ...}),
    ("RS_ERROR_WRONG_TYPES", {"is_free": 1}),
    ("RS_ERROR_INVALID_PARTNER", {"sub_partner_id": "q"}),
    ("RS_ERROR_UNKNOWN", {"user": "nobody"}),
    ("RS_ERROR_DUPLICATE_TRANSACTION", {"transaction_uuid": USED}),
    ("RS_ERROR_USER_DISABLED", {"user": "locked"}),
    ("RS_ERROR_TOKEN_EXPIRED", {"token": "old"}),
    ("RS_ERROR_INVALID_TOKEN", {"token": "x"}),
    ("RS_ERROR_INVALID_GAME", {"game_code": "x"}),
    ("RS_ERROR_WRONG_CURRENCY", {"currency": "XXX"}),
    ("RS_ERROR_UNKNOWN", {"transaction_uuid": BURIED}),
    ("RS_ERROR_LIMIT_REACHED", {"amount": 50_001}),
    ("RS_ERROR_NOT_ENOUGH_MONEY", {"user": "poor"}),
]
WIN_DEFECTS: list[tuple[str, dict[str, Any]]] = [
    ("RS_ERROR_WRONG_SYNTAX", {"request_uuid": ...}),
    ("RS_ERROR_WRONG_TYPES", {"is_free": 1}),
    ("RS_ERROR_INVALID_PARTNER", {"sub_partner_id": "q"}),
    ("RS_ERROR_UNKNOWN", {"user": "nobody"}),
    ("RS_ERROR_DUPLICATE_TRANSACTION", {"transaction_uuid": USED}),
    ("RS_ERROR_WRONG_CURRENCY", {"currency": "EUR"}),
    (MISSING, {"reference_transaction_uuid": ABSENT}),
    (MISSING, {"reference_transaction_uuid": ROLLED}),
    ("RS_ERROR_UNKNOWN", {"reference_transaction_uuid": CLOSED}),
]
ROLLBACK_DEFECTS: list[tuple[str, dict[str, Any]]] = [
    ("RS_ERROR_WRONG_SYNTAX", {"request_uuid": ...}),
    ("RS_ERROR_WRONG_TYPES", {"meta": 1}),
    ("RS_ERROR_INVALID_PARTNER", {"sub_partner_id": "q"}),
    ("RS_ERROR_UNKNOWN", {"user": "nobody"}),
    ("RS_ERROR_DUPLICATE_TRANSACTION", {"transaction_uuid": USED}),
    (MISSING, {"reference_transaction_uuid": DONE}),
    ("RS_ERROR_UNKNOWN", {"reference_transaction_uuid": WON}),
]


def prepared(kind: type[Way]) -> Way:
    """Return a wallet in which every defect is one."""
    way = kind(SETTINGS)
    way.create("ann", "locked", "poor")
    for user in ("ann", "locked", "poor"):
        way.rollback(rollback_of({"user": user, "transaction_uuid": BURIED}))
    assert way.bet(bet_of("ann", 1, transaction_uuid=USED))["status"] == "RS_OK"
    for bet in (WON, ROLLED, CLOSED):
        body = bet_of("ann", 1, transaction_uuid=bet)
        assert way.bet(body)["status"] == "RS_OK"
        if bet != ROLLED:
            assert way.win(win_of(body, 1, round_closed=bet == CLOSED))["status"] == "RS_OK"
    way.rollback(rollback_of({"user": "ann", "transaction_uuid": ROLLED}, transaction_uuid=DONE))
    way.execute(Transfer("user:poor:USD", "world:USD", "USD", "0.9999"))
    way.execute(LockUser("locked", True))
    return way


def sound(name: str) -> dict[str, Any]:
    if name == "bet":
        return bet_of("ann", 50_000, sub_partner_id="p")
    played = {"user": "ann", "transaction_uuid": WON}
    if name == "win":
        return win_of(played, 1)
    played["transaction_uuid"] = ABSENT
    return rollback_of(played)


def with_defects(body: dict[str, Any], *defects: dict[str, Any]) -> dict[str, Any]:
    for defect in defects:
        body |= defect
    return {field: value for field, value in body.items() if value is not ...}


@pytest.mark.parametrize(
    ("name", "defects"),
    [("bet", BET_DEFECTS), ("win", WIN_DEFECTS), ("rollback", ROLLBACK_DEFECTS)],
)
def test_order_of_checks(kind, name, defects):
    way = prepared(kind)
    for status, defect in defects:
        assert way.call(name, with_defects(sound(name), defect))["status"] == status, defect
    for (first, early), (_, late) in itertools.combinations(defects, 2):
        if not early.keys() & late.keys():
            body = with_defects(sound(name), early, late)
            assert way.call(name, body)["status"] == first, (early, late)
    assert way.call(name, sound(name))["status"] == "RS_OK"


def test_signature_free_matters_of_bets_only(kind):
    way = prepared(kind)
    loose = {"token": "old", "game_code": "x"}
    played = {"user": "ann", "transaction_uuid": WON}
    assert way.win(win_of(played, 50_001, **loose))["status"] == "RS_OK"
    assert way.rollback(rollback_of({**played, "transaction_uuid": USED}, **loose))["status"] == (
        "RS_OK"
    )


def test_partner_switched_off(kind):
    way = kind(WalletSettings(is_disabled=True))
    way.create("john12345")
    for name, body in (("bet", bet_of()), ("win", win_of(bet_of())), ("balance", asked())):
        assert way.call(name, body)["status"] == "RS_ERROR_INVALID_PARTNER"


def test_extended_dialect(kind):
    way = kind(WalletSettings(dialect="extended", bet_max="0.5"))
    way.create("john12345")
    assert way.bet(bet_of(amount=50_001))["status"] == "RS_ERROR_BET_LIMIT_EXCEEDED"
    assert way.bet(bet_of(amount=50_000))["status"] == "RS_OK"
    assert way.bet(bet_of("nobody"))["status"] == "RS_ERROR_USER_INVALID"
    assert way.bet(bet_of(""))["status"] == "RS_ERROR_USER_INVALID"
    assert way.balance(asked("nobody"))["status"] == "RS_ERROR_USER_INVALID"


def test_every_reason_has_a_status():
    published = {*STATUSES.values(), RS_ERROR_UNKNOWN}
    assert {status_of(reason) for reason in Reason} == published
    assert {status_of(reason, "extended") for reason in Reason} == {
        *EXTENDED_STATUSES.values(),
        RS_ERROR_UNKNOWN,
    }
    assert status_of(Reason.KEY_ABANDONED) == RS_ERROR_UNKNOWN

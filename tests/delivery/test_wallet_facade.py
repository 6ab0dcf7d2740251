"""`pennyweight.wallet`: maps in and out, isolated, shared by threads, durable with a path."""

import doctest
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import pytest

from pennyweight import wallet
from pennyweight.engine.port import StoreInUse
from pennyweight.wallet import Wallet, WalletFailed
from scenarios import check_invariants
from wallets import bet_of, fresh_uuid, rollback_of, win_of

PAGE = Path(__file__).parents[2] / "docs" / "wallet.md"
THREADS = 8


def asked(user: str) -> dict[str, str]:
    return {"user": user, "request_uuid": fresh_uuid()}


@pytest.fixture
def server() -> Wallet:
    server = wallet.start()
    assert wallet.create_users(server, ["john12345", "jane"]) == "ok"
    return server


def balance_of(server: Wallet, user: str) -> int:
    balance: int = wallet.balance(server, asked(user))["balance"]
    return balance


# ── users ─────────────────────────────────────────────────────────────────────────


def test_create_users_ignores_empty_and_existing(server):
    wallet.bet(server, bet_of(amount=1))
    assert wallet.create_users(server, ["", "john12345", "new", "new", ""]) == "ok"
    assert wallet.create_users(server, []) == "ok"
    assert balance_of(server, "john12345") == 99_999
    assert balance_of(server, "new") == 100_000
    assert wallet.balance(server, asked(""))["status"] == "RS_ERROR_UNKNOWN"


@pytest.mark.parametrize("users", ["john", [1], ["a", None], ["a", b"b"], [["a"]]])
def test_create_users_takes_strings(server, users):
    with pytest.raises(TypeError):
        wallet.create_users(server, users)
    assert wallet.balance(server, asked("a"))["status"] == "RS_ERROR_UNKNOWN"


@pytest.mark.parametrize("user", ["x" * 256, "a\nb", "\ud800"])
def test_create_users_refuses_what_can_be_no_id(server, user):
    with pytest.raises(ValueError, match="user id"):
        wallet.create_users(server, ["a", user])
    assert wallet.balance(server, asked("a"))["status"] == "RS_ERROR_UNKNOWN"


def test_create_many_users():
    server = wallet.start()
    wallet.create_users(server, (f"user {number}" for number in range(2_500)))
    assert balance_of(server, "user 2499") == 100_000


def test_user_ids_of_any_kind(server):
    names = ["a:b", "100%", "Jörg", "user/x y", "x" * 255, "😀"]
    wallet.create_users(server, names)
    for name in names:
        assert wallet.bet(server, bet_of(name, 1))["balance"] == 99_999


# ── answers ───────────────────────────────────────────────────────────────────────


def test_wallets_are_isolated(server):
    other = wallet.start()
    wallet.create_users(other, ["john12345"])
    body = bet_of(amount=10)
    assert wallet.bet(server, body) == wallet.bet(other, body)
    wallet.bet(other, bet_of(amount=10))
    assert balance_of(server, "john12345") == 99_990
    assert balance_of(other, "john12345") == 99_980
    assert wallet.bet(other, bet_of("jane"))["status"] == "RS_ERROR_UNKNOWN"


def test_duplicate_gets_the_stored_answer_unchanged(server):
    body = bet_of()
    first = wallet.bet(server, body)
    wallet.bet(server, bet_of())
    assert wallet.bet(server, {**body, "request_uuid": fresh_uuid(), "token": "x"}) == first
    win = win_of(body)
    won = wallet.win(server, win)
    assert wallet.win(server, {**win, "request_uuid": fresh_uuid()}) == won
    back = rollback_of(win)
    rolled = wallet.rollback(server, back)
    assert wallet.rollback(server, {**back, "request_uuid": fresh_uuid()}) == rolled


def test_body_may_be_any_map_and_is_left_alone(server):
    body = bet_of(meta={"a": 1})
    before = {**body, "meta": {"a": 1}}
    assert wallet.bet(server, MappingProxyType(body))["status"] == "RS_OK"
    assert body == before


def test_text_that_cannot_be_written(server):
    for field in ("round", "game_code"):
        assert wallet.bet(server, bet_of(**{field: "\ud800"}))["status"] == "RS_ERROR_WRONG_TYPES"
    assert wallet.bet(server, bet_of("\ud800"))["status"] == "RS_ERROR_UNKNOWN"
    assert balance_of(server, "john12345") == 100_000


def test_fault_of_ours_is_raised(server, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("pennyweight.products.wallet.Bet.decide", broken)
    with pytest.raises(WalletFailed):
        wallet.bet(server, bet_of())


# ── many callers ──────────────────────────────────────────────────────────────────


def test_threads_lose_nothing(server):
    """Eight threads over two users: every answer is right and the sums are exact."""

    def play(number: int) -> int:
        user = ("john12345", "jane")[number % 2]
        for _ in range(50):
            bet = bet_of(user, 3)
            assert wallet.bet(server, bet)["status"] == "RS_OK"
            assert wallet.win(server, win_of(bet, 2))["status"] == "RS_OK"
        return 50

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(play, range(THREADS))) == 400
    assert balance_of(server, "john12345") == 100_000 - 200
    assert balance_of(server, "jane") == 100_000 - 200
    check_invariants(server._book.store)


def test_threads_cannot_overdraw(server):
    def play(_: int) -> Counter[str]:
        return Counter(wallet.bet(server, bet_of(amount=999))["status"] for _ in range(25))

    with ThreadPoolExecutor(THREADS) as pool:
        statuses = sum(pool.map(play, range(THREADS)), Counter())
    assert statuses == {"RS_OK": 100, "RS_ERROR_NOT_ENOUGH_MONEY": 100}
    assert balance_of(server, "john12345") == 100


def test_parallel_repeats_are_one_bet(server):
    bodies = [bet_of(amount=7) for _ in range(20)]
    gate = threading.Barrier(THREADS)

    def play(_: int) -> list[dict[str, object]]:
        gate.wait()
        return [wallet.bet(server, body) for body in bodies]

    with ThreadPoolExecutor(THREADS) as pool:
        first, *others = pool.map(play, range(THREADS))
    assert all(answer["status"] == "RS_OK" for answer in first)
    assert all(answers == first for answers in others)
    assert balance_of(server, "john12345") == 100_000 - 140


def test_parallel_reuse_of_a_uuid_has_one_success(server):
    uuids = [fresh_uuid() for _ in range(20)]
    gate = threading.Barrier(THREADS)

    def play(number: int) -> list[tuple[str, int]]:
        gate.wait()
        bodies = [bet_of(amount=number + 1, transaction_uuid=uuid) for uuid in uuids]
        return [(wallet.bet(server, body)["status"], number + 1) for body in bodies]

    with ThreadPoolExecutor(THREADS) as pool:
        rounds = list(zip(*pool.map(play, range(THREADS)), strict=True))
    taken = 0
    for answers in rounds:
        done = [amount for status, amount in answers if status == "RS_OK"]
        assert len(done) == 1
        taken += done[0]
        assert Counter(status for status, _ in answers)["RS_ERROR_DUPLICATE_TRANSACTION"] == 7
    assert balance_of(server, "john12345") == 100_000 - taken


# ── on disk ───────────────────────────────────────────────────────────────────────


def test_durable_wallet(tmp_path):
    body = bet_of(amount=10)
    with wallet.start(tmp_path / "book") as server:
        wallet.create_users(server, ["john12345"])
        first = wallet.bet(server, body)
        with pytest.raises(StoreInUse):
            wallet.start(tmp_path / "book")
    with wallet.start(str(tmp_path / "book")) as server:
        wallet.create_users(server, ["john12345"])
        assert wallet.bet(server, {**body, "request_uuid": fresh_uuid()}) == first
        assert wallet.win(server, win_of(body, 5))["balance"] == 99_995
        wallet.rollback(server, rollback_of(bet := bet_of()))
    with wallet.start(tmp_path / "book") as server:
        assert wallet.bet(server, bet)["status"] == "RS_ERROR_UNKNOWN"
        assert balance_of(server, "john12345") == 99_995


# ── documentation ─────────────────────────────────────────────────────────────────


def test_page_runs():
    """The Python in docs/wallet.md prints what it shows."""
    blocks = PAGE.read_text().split("```python\n")[1:]
    text = "\n".join(block.partition("```")[0] for block in blocks)
    test = doctest.DocTestParser().get_doctest(text, {}, "docs/wallet.md", str(PAGE), 0)
    assert len(test.examples) >= 5
    report: list[str] = []
    doctest.DocTestRunner().run(test, out=report.append)
    assert not report, "".join(report)


def test_docstring_runs():
    assert doctest.testmod(wallet).failed == 0


def test_public_names():
    assert wallet.__all__ == [
        "Wallet",
        "WalletFailed",
        "balance",
        "bet",
        "create_users",
        "rollback",
        "start",
        "win",
    ]

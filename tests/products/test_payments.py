"""Payments between accounts: what may be opened, paid and deleted, and what is refused."""

import random
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pennyweight.engine.engine import USERS_MIN, Submission
from pennyweight.engine.receipts import Outcome, Receipt, Refusal
from pennyweight.products.payments import (
    ACCOUNT,
    NAME_LENGTH_MAX,
    DeletePaymentsAccount,
    OpenPaymentsAccount,
    Pay,
    PayBatch,
    PaymentItem,
    holder_of_number,
    read_account,
    record_id,
)
from pennyweight.stores.sqlite import SQLiteStore
from scenarios import Stage, check_invariants, play, snapshot

TWO_ACCOUNTS = """
    when
        payments.open_payments_account buyer 1000 1     -> done id=1
        payments.open_payments_account seller 0 1       -> done id=2
"""


def test_payment_moves_amount():
    play(
        TWO_ACCOUNTS
        + """
            payments.pay 1 2 500.1                      -> done id=1 amount=500.1 currency_id=1
            payments.pay 2 1 0.1                        -> done id=2
        then
            account:1:USD       500
            account:2:USD       500
            world:USD           -1000
        """
    )


def test_payment_refused():
    play(
        TWO_ACCOUNTS
        + """
            payments.open_payments_account rich 100000000000000 1
            payments.open_payments_account roubles 5 2
            payments.pay 1 2 0                          -> amount_not_positive
            payments.pay 1 2 -1                         -> amount_not_positive
            payments.pay 1 2 ten                        -> amount_invalid
            payments.pay 1 2 0.1234567890123456         -> amount_too_fine decimals=16
            payments.pay 1 2 1234567890123456789012345678901   -> amount_too_large
            payments.pay 1 2 100000000000000000000      -> amount_too_large
            payments.pay 1 1 5                          -> same_account
            payments.pay 1 9 5                          -> account_not_found account_id=9
            payments.pay 9 1 5                          -> account_not_found account_id=9
            payments.pay 0 1 5                          -> account_not_found
            payments.pay -1 1 5                         -> account_not_found
            payments.pay 1 4 5                          -> asset_mismatch
            payments.pay 1 2 1000.000000000000001       -> insufficient_funds available=1000
            payments.pay 2 1 1                          -> insufficient_funds available=0
            payments.pay 1 2 0.000000000000001          -> done
            payments.pay 3 2 99999999999999.999999999999999 -> done
        then
            account:1:USD       999.999999999999999
            account:3:USD       0.000000000000001
        """
    )


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (Pay(1, 1, "0"), "amount_not_positive"),
        (Pay(1, 1, "0.0000000000000001"), "amount_too_fine"),
        (Pay(9, 9, "1"), "same_account"),
        (Pay(9, 3, "1"), "account_not_found"),
        (Pay(1, 3, "99999"), "asset_mismatch"),
        (OpenPaymentsAccount("", "1e40", 99), "asset_unknown"),
        (OpenPaymentsAccount("", "1e40", 1), "amount_too_large"),
        (OpenPaymentsAccount("", "1", 1), "name_invalid"),
        (OpenPaymentsAccount("buyer", "1", 1, "linked"), "account_exists"),
    ],
)
def test_refusal_precedence(command: Pay | OpenPaymentsAccount, reason: str):
    stage = play(
        TWO_ACCOUNTS
        + """
            payments.open_payments_account roubles 5 2
            payments.open_payments_account linked 5 1 linked
        """
    )
    outcome = stage.execute(command)
    assert isinstance(outcome, Refusal)
    assert outcome.reason.code == reason


def test_account_opening_refused():
    play(
        TWO_ACCOUNTS
        + """
            payments.open_payments_account buyer 0 1    -> name_taken name=buyer
            payments.open_payments_account x 1 99       -> asset_unknown currency_id=99
            payments.open_payments_account x -1 1       -> amount_not_positive
            payments.open_payments_account x 0.0000000000000001 1  -> amount_too_fine
            payments.open_payments_account x 1000000000000000000000000000000 1  -> amount_too_large
            payments.open_payments_account "" 1 1       -> name_invalid
            payments.open_payments_account x 1 1 ""     -> user_id_invalid
            payments.open_payments_account x 1 3        -> done id=3
        then
            account:3:BTC       1
        """
    )


@pytest.mark.parametrize("name", ["a\x00", "a\nb", "\ud800", "x" * (NAME_LENGTH_MAX + 1)])
def test_account_name_invalid(name: str):
    outcome = Stage().execute(OpenPaymentsAccount(name, "1", 1))
    assert isinstance(outcome, Refusal)
    assert outcome.reason.code == "name_invalid"


def test_account_names_of_every_script():
    stage = Stage()
    for name in ("x" * NAME_LENGTH_MAX, "Zoë & <b>", "家族👨‍👩‍👧", "a:b", " "):
        assert isinstance(stage.execute(OpenPaymentsAccount(name, "0", 1)), Receipt)


def test_many_accounts_opened_in_one_batch():
    # The holder's name is a number that only the decision gives: no command may come back for it.
    stage = Stage()
    deferrals = stage.book.engine.deferrals
    opened = [OpenPaymentsAccount(f"n{n // 2}", "1", 1 + n % 3) for n in range(200)]
    outcomes = stage.book.execute_many([Submission(command) for command in opened])
    numbers = [outcome.answer.id for outcome in outcomes if isinstance(outcome, Receipt)]
    assert numbers == list(range(1, 101))
    assert stage.book.engine.deferrals == deferrals
    check_invariants(stage.store)


def test_opened_in_small_cache_stays_within_bound():
    stage = Stage(users_max=USERS_MIN + 8)
    outcomes = stage.book.execute_many(
        [Submission(OpenPaymentsAccount(f"n{n}", "1", 1, f"u{n}")) for n in range(300)]
    )
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    assert len(stage.book.engine.cache) <= USERS_MIN + 8


def test_payment_between_cached_accounts_reads_nothing():
    stage = play(TWO_ACCOUNTS)
    engine = stage.book.engine
    engine.submit(Submission(Pay(1, 2, "1")))
    batch = engine.next_batch(stage.now + 1)
    assert batch is not None
    reads, cache = batch
    assert not reads.holders
    engine.decide(stage.store.begin(reads, cache), lambda: False)
    (answer,) = engine.committed()
    assert isinstance(answer[1], Receipt)


def test_account_of_ledger_is_numbered_by_payments_only():
    play("""
        when
            open_account account:1:USD                  -> owned_by_product owner=payments
            payments.open_payments_account a 1 1        -> done id=1
            transfer account:1:USD house:USD USD 1      -> done
        then
            account:1:USD       0
    """)


# ── users' accounts ───────────────────────────────────────────────────────────────


def test_user_account_is_the_same_everywhere():
    play("""
        given
            user:bob:USD        7
        when
            payments.open_payments_account ann 100 1 ann        -> done id=1
            payments.open_payments_account bob 5 1 bob          -> account_exists
            payments.open_payments_account bob 0 1 bob          -> done id=2
            payments.open_payments_account own 0 1              -> done id=3
            payments.pay 1 2 30                                 -> done
            payments.pay 2 3 37                                 -> done
            transfer user:ann:USD user:bob:USD USD 10           -> done
            place_hold user:ann:USD USD 55                      -> done
            payments.pay 1 3 6              -> insufficient_funds available=5 held=55
            payments.pay 1 3 5                                  -> done
        then
            user:ann:USD        55 held 55
            user:bob:USD        10
            account:3:USD       42
            account:1:USD       -
    """)


def test_user_account_one_link_at_a_time():
    play("""
        when
            payments.open_payments_account a 5 1 ann    -> done id=1
            payments.open_payments_account b 0 1 ann    -> account_exists
            payments.open_payments_account b 0 2 ann    -> done id=2
            payments.delete_payments_account 1          -> done
            payments.open_payments_account c 0 1 ann    -> done id=3
            payments.pay 3 2 1                          -> asset_mismatch
            payments.pay 1 2 1                          -> account_not_found
        then
            user:ann:USD        5
            user:ann:RUB        0
    """)


def test_user_account_closed_is_not_adopted():
    play("""
        given
            user:ann:USD
        when
            close_account user:ann:USD
            payments.open_payments_account a 0 1 ann    -> account_closed
            payments.open_payments_account a 1 1 ann    -> account_exists
    """)


def test_user_accounts_not_cached_cost_one_more_round():
    stage = play("""
        when
            payments.open_payments_account a 5 1 ann
            payments.open_payments_account b 5 1 bob
    """)
    engine = stage.book.engine
    engine.cache.clear()
    before = engine.deferrals
    assert isinstance(stage.execute(Pay(1, 2, "1")), Receipt)
    assert engine.deferrals == before + 1
    assert isinstance(stage.execute(Pay(1, 2, "1")), Receipt)
    assert engine.deferrals == before + 1


# ── batches ───────────────────────────────────────────────────────────────────────


def test_batch_trades_two_currencies():
    play("""
        when
            payments.open_payments_account ann.usd 100 1
            payments.open_payments_account ann.btc 0 3
            payments.open_payments_account bob.usd 0 1
            payments.open_payments_account bob.btc 2 3
            payments.pay_batch
                | 1 3 100
                | 4 2 0.5           -> done payments.0.id=1 payments.1.id=2 payments.1.amount=0.5
        then
            account:1:USD       0
            account:2:BTC       0.5
            account:3:USD       100
            account:4:BTC       1.5
    """)


def test_batch_is_atomic_and_in_order():
    play(
        TWO_ACCOUNTS
        + """
            payments.pay_batch
                | 1 2 10
                | 2 1 11            -> insufficient_funds position=1 available=10
            payments.pay_batch
                | 2 1 5
                | 1 2 10            -> insufficient_funds position=0
            payments.pay_batch
                | 1 2 10
                | 1 3 1             -> account_not_found position=1
            payments.pay_batch
                | 1 9 10
                | 1 2 0             -> amount_not_positive position=1
            payments.pay_batch payments=[]      -> too_many_transfers payments=0
            payments.pay_batch
                | 1 2 10
                | 2 1 10            -> done payments.0.id=1 payments.1.id=2
        then
            account:1:USD       1000
            account:2:USD       0
        """
    )


def test_batch_sizes():
    stage = play(TWO_ACCOUNTS)
    item = PaymentItem(1, 2, "1")
    assert isinstance(stage.execute(PayBatch((item,) * 64)), Receipt)
    refused = stage.execute(PayBatch((item,) * 65))
    assert isinstance(refused, Refusal)
    assert refused.reason.code == "too_many_transfers"


def _users(count: int, **options: int) -> Stage:
    stage = Stage(**options)
    stage.book.execute_many(
        [Submission(OpenPaymentsAccount(f"n{n}", "1", 1, f"u{n}")) for n in range(count)]
    )
    return stage


def _ring(count: int) -> PayBatch:
    return PayBatch(tuple(PaymentItem(n, n + 1, "1") for n in range(1, count)))


@pytest.mark.parametrize("users_max", [USERS_MIN, 300])
def test_batch_of_uncached_users_is_decided_in_a_small_cache(users_max: int):
    stage = _users(65, users_max=users_max)
    stage.book.engine.cache.clear()
    assert isinstance(stage.execute(_ring(64)), Receipt)
    assert stage.book.engine.cache.most <= users_max


def test_batch_of_too_many_holders():
    outcome = _users(65).execute(_ring(65))
    assert isinstance(outcome, Refusal)
    assert outcome.reason.code == "too_many_transfers"
    assert outcome.figures == {"holders": 130}


# ── deleting ──────────────────────────────────────────────────────────────────────


def test_delete_of_own_account():
    play(
        TWO_ACCOUNTS
        + """
            payments.delete_payments_account 1          -> account_has_balance posted=1000
            payments.pay 1 2 1000
            place_hold account:2:USD USD 1000
            payments.delete_payments_account 2          -> account_has_holds
            payments.delete_payments_account 1          -> done id=1
            payments.delete_payments_account 1          -> account_not_found
            payments.delete_payments_account 7          -> account_not_found
            payments.open_payments_account buyer 3 1    -> done id=3
            payments.pay 3 1 1                          -> account_not_found
        then
            account:1:USD       0 closed
            account:3:USD       3
        """
    )


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_delete_and_name_again_in_one_batch(kind: str, tmp_path: Path):
    store = SQLiteStore.open(tmp_path, new_incarnation="first") if kind == "sqlite" else None
    stage = Stage(store).play(
        """
        when
            payments.open_payments_account a 0 1            -> done id=1
            payments.delete_payments_account 1              -> done
            &payments.open_payments_account a 0 2           -> done id=2
            &payments.open_payments_account a 0 2           -> name_taken
        """
    )
    record = stage.store.record_named(ACCOUNT, "name:a")
    assert record is not None
    assert record.id == record_id(2)
    deleted = stage.store.record(ACCOUNT, record_id(1))
    assert deleted is not None
    assert read_account(deleted).deleted_in == stage.store.head().sequence - 1
    assert deleted.holder == holder_of_number(1)
    stage.store.close()


def test_delete_of_account_that_the_ledger_closed():
    play("""
        when
            payments.open_payments_account a 0 1        -> done id=1
            close_account account:1:USD
            payments.pay 1 2 1                          -> account_not_found
            payments.delete_payments_account 1          -> done
    """)


def test_delete_of_user_account_only_unlinks():
    play("""
        when
            payments.open_payments_account a 5 1 ann    -> done id=1
            payments.open_payments_account b 0 1        -> done id=2
            place_hold user:ann:USD USD 2
            payments.delete_payments_account 1          -> done
            payments.pay 1 2 1                          -> account_not_found
            transfer user:ann:USD account:2:USD USD 3   -> done
        then
            user:ann:USD        2 held 2
    """)


# ── keys ──────────────────────────────────────────────────────────────────────────


def test_keys_replay_and_reuse():
    play("""
        when
            [o] payments.open_payments_account buyer 10 1       -> done id=1
            [o] payments.open_payments_account buyer 10 1       -> replayed id=1
            [o] payments.open_payments_account buyer 11 1       -> key_reused field=amount
            [o] payments.pay 1 2 1                              -> key_reused field=command
            payments.open_payments_account seller 0 1           -> done id=2
            [p] payments.pay 1 2 11                             -> insufficient_funds
            [p] payments.pay 1 2 4                              -> done id=1
            [p] payments.pay 1 2 4                              -> replayed id=1
            [p] payments.pay 1 2 5                              -> key_reused field=amount
            [p] transfer account:1:USD account:2:USD USD 6      -> done   # another scope
            [p] payments.pay 1 2 4                              -> replayed id=1
            [b] payments.pay_batch
                | 2 1 1                                         -> done payments.0.id=2
            [b] payments.pay_batch
                | 2 1 1                                         -> replayed payments.0.id=2
            [d] payments.delete_payments_account 2              -> account_has_balance
            payments.pay 2 1 9
            [d] payments.delete_payments_account 2              -> done
            [d] payments.delete_payments_account 2              -> replayed id=2
        then
            account:1:USD       10
    """)


def test_refused_command_leaves_nothing():
    stage = play(TWO_ACCOUNTS)
    before = snapshot(stage.store)
    for command in (
        OpenPaymentsAccount("buyer", "5", 1),
        Pay(1, 2, "1001"),
        PayBatch((PaymentItem(1, 2, "5"), PaymentItem(2, 1, "6"))),
        DeletePaymentsAccount(1),
    ):
        assert isinstance(stage.execute(command), Refusal)
    assert snapshot(stage.store) == before


# ── many at once ──────────────────────────────────────────────────────────────────


def _stress(threads: int, payments: int) -> None:
    """The original's stress: random payments over 99 accounts; every currency's sum must stay."""
    stage = Stage()
    for number in range(1, 100):
        stage.book.execute(OpenPaymentsAccount(f"n{number}", "1000", 1 + number % 4))
    before = [account.posted for account in stage.store.accounts(0, 1_000)]
    outcomes: list[Outcome] = []

    def pay(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(payments):
            buyer, seller = dice.sample(range(1, 100), 2)
            amount = f"{dice.randint(1, 500)}.{dice.randint(1, 99)}"
            outcomes.append(stage.book.execute(Pay(buyer, seller, amount)))

    workers = [threading.Thread(target=pay, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    paid = [outcome.answer.id for outcome in outcomes if isinstance(outcome, Receipt)]
    reasons = {outcome.reason.code for outcome in outcomes if isinstance(outcome, Refusal)}
    assert sorted(paid) == list(range(1, len(paid) + 1))
    assert reasons <= {"asset_mismatch", "insufficient_funds"}
    assert len(outcomes) == threads * payments
    after = [account.posted for account in stage.store.accounts(0, 1_000)]
    assert after != before
    check_invariants(stage.store)
    sums: dict[str, int] = {}
    for account in stage.store.accounts(0, 1_000):
        if account.holder.startswith("account:"):
            sums[account.asset] = sums.get(account.asset, 0) + account.posted
    opened = dict.fromkeys(sums, 0)
    for number in range(1, 100):
        opened[("USD", "RUB", "BTC", "ETC")[number % 4]] += 1_000 * 10**18
    assert sums == opened


def test_random_payments_from_many_threads_keep_every_sum():
    _stress(threads=8, payments=40)


@pytest.mark.heavy
def test_random_payments_from_hundred_threads_keep_every_sum():
    _stress(threads=100, payments=100)


# ── against a model ───────────────────────────────────────────────────────────────

_numbers = st.integers(0, 6)
_cents = st.integers(-1, 300)
_opens = st.tuples(
    st.just("open"),
    st.sampled_from("abc"),
    st.integers(0, 200),
    st.integers(1, 2),
    st.sampled_from([None, None, "ann", "bob"]),
)
_pays = st.tuples(st.just("pay"), _numbers, _numbers, _cents)
_batches = st.tuples(
    st.just("batch"), st.lists(st.tuples(_numbers, _numbers, _cents), min_size=1, max_size=3)
)
_deletes = st.tuples(st.just("delete"), _numbers)


class Model:
    """The dumbest payments that could be right: cents in dicts."""

    def __init__(self) -> None:
        self.accounts: dict[int, tuple[str, int, str]] = {}
        """By number: name, currency, and the pot that it spends from."""
        self.pots: dict[str, int] = {}
        self.opened = 0

    def open(self, name: str, cents: int, currency: int, user: str | None) -> bool:
        pot = f"{user}:{currency}"
        if any(name == other for other, _, _ in self.accounts.values()):
            return False
        if user is not None and pot in self.pots and cents:
            return False
        if user is not None and any(pot == other for _, _, other in self.accounts.values()):
            return False
        self.opened += 1
        if user is None:
            pot = f"#{self.opened}"
        self.pots[pot] = self.pots.get(pot, 0) + cents
        self.accounts[self.opened] = (name, currency, pot)
        return True

    def pay(self, buyer: int, seller: int, cents: int) -> bool:
        if cents <= 0 or buyer == seller or not {buyer, seller} <= self.accounts.keys():
            return False
        _, paid, source = self.accounts[buyer]
        _, received, target = self.accounts[seller]
        if paid != received or self.pots[source] < cents:
            return False
        self.pots[source] -= cents
        self.pots[target] += cents
        return True

    def batch(self, items: list[tuple[int, int, int]]) -> bool:
        before = dict(self.pots)
        if all(self.pay(*item) for item in items):
            return True
        self.pots = before
        return False

    def delete(self, number: int) -> bool:
        if number not in self.accounts:
            return False
        pot = self.accounts[number][2]
        if pot.startswith("#") and self.pots[pot]:
            return False
        del self.accounts[number]
        return True


def _amount(cents: int) -> str:
    return f"{cents / 100:.2f}".rstrip("0").rstrip(".")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(_opens, _pays, _pays, _batches, _deletes), max_size=30))
def test_payments_agree_with_model(steps: list[tuple]):
    model, stage = Model(), Stage()
    for step in steps:
        match step:
            case ("open", name, cents, currency, user):
                expected = model.open(name, cents, currency, user)
                command = OpenPaymentsAccount(name, _amount(cents), currency, user)
            case ("pay", buyer, seller, cents):
                expected = model.pay(buyer, seller, cents)
                command = Pay(buyer, seller, _amount(cents))
            case ("batch", items):
                expected = model.batch(items)
                command = PayBatch(tuple(PaymentItem(b, s, _amount(c)) for b, s, c in items))
            case ("delete", number):
                expected = model.delete(number)
                command = DeletePaymentsAccount(number)
            case _:
                raise AssertionError(step)
        outcome = stage.execute(command)
        assert isinstance(outcome, Receipt) is expected, (step, outcome)
    for number, (_, currency, pot) in model.accounts.items():
        record = stage.store.record(ACCOUNT, record_id(number))
        assert record is not None
        account = stage.store.account(read_account(record).account)
        assert account is not None
        assert account.asset == ("USD", "RUB")[currency - 1]
        assert account.posted == model.pots[pot] * 10**16

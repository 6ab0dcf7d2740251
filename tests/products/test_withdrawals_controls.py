"""Modes and limits of withdrawals: what is taken, how much of it, and until when it counts."""

import itertools

import msgspec
import pytest

from pennyweight.assemble import answers, invariants
from pennyweight.engine.receipts import Refusal
from pennyweight.engine.verification import verify
from pennyweight.products.withdrawals.controls import UserControls
from pennyweight.products.withdrawals.withdraw import Withdraw
from pennyweight.stores.sqlite import SQLiteStore
from scenarios import START, Stage, play

USER = """
    given
        user:1:BTC          100
        user:1:ETH          100
        user:2:BTC          100
    when
"""

DAY = 86_400
STEP = 300

# ── modes ─────────────────────────────────────────────────────────────────────────

MODES = ("active", "reducing", "halted")
"""From the least strict to the strictest."""

ACTIONS = {
    "withdraw": ("withdrawals.withdraw 1 BTC 1", {"reducing", "halted"}),
    "cancel": ("withdrawals.cancel_withdrawal w1", {"halted"}),
    "expire": ("withdrawals.expire_withdrawal 2", set()),
    "settle": ("withdrawals.settle 1 ETH 1 BTC 1 w1", set()),
    "settle nothing": ("withdrawals.settle 1 ETH 0 BTC 0 w1", set()),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(("general", "of_token"), list(itertools.product(MODES, MODES)))
def test_stricter_mode_counts(general, of_token, action):
    line, refused_in = ACTIONS[action]
    mode = max(general, of_token, key=MODES.index)
    scope = "everything" if mode == general else "BTC"
    code = f"withdrawals_{mode} mode={mode} scope={scope}" if mode in refused_in else "done"
    play(
        USER
        + f"""
            withdrawals.withdraw 1 BTC 1
            withdrawals.withdraw 1 BTC 1 expires_in_seconds=60
            wait 60
            withdrawals.set_mode {general}          -> done mode={general} token=null
            withdrawals.set_mode {of_token} BTC     -> done mode={of_token} token=BTC
            {line}                                  -> {code}
        """
    )


@pytest.mark.parametrize("mode", MODES)
def test_mode_of_another_token_does_not_matter(mode):
    play(USER + f" withdrawals.set_mode {mode} ETH\n withdrawals.withdraw 1 BTC 1")


def test_mode_can_be_set_back():
    stage = play(
        USER
        + """
            withdrawals.set_mode halted
            withdrawals.set_mode reducing ETH
            withdrawals.withdraw 1 ETH 1            -> withdrawals_halted
            withdrawals.set_mode active
            withdrawals.withdraw 1 BTC 1
            withdrawals.withdraw 1 ETH 1            -> withdrawals_reducing scope=ETH
            withdrawals.set_mode active ETH
            withdrawals.withdraw 1 ETH 1
        """
    )
    record = stage.store.record("withdrawals.controls", "all")
    assert record is not None
    assert bytes(record.body) == b"{}"


def test_mode_of_no_token():
    play("when\n withdrawals.set_mode halted XYZ -> token_unknown token=XYZ")


def test_mode_goes_behind_what_can_never_be_taken():
    play(
        USER
        + """
            withdrawals.set_mode halted
            withdrawals.withdraw 9 BTC 1            -> user_not_found
            withdrawals.withdraw 1 BTC 0            -> amount_not_positive
            withdrawals.withdraw 1 USD 1            -> withdrawals_halted
            withdrawals.withdraw 1 BTC 1000         -> withdrawals_halted
            withdrawals.cancel_withdrawal w1        -> withdrawal_not_found
        """
    )


def test_key_is_answered_in_every_mode():
    play(
        USER
        + """
            [k] withdrawals.withdraw 1 BTC 1        -> done
            withdrawals.set_mode halted
            [k] withdrawals.withdraw 1 BTC 1        -> replayed
        """
    )


# ── limits of one withdrawal ──────────────────────────────────────────────────────


def test_limit_of_one_withdrawal_is_inclusive():
    play(
        USER
        + """
            withdrawals.set_limits BTC 5            -> done token=BTC per_withdrawal=5 per_day=null \
user_id=null
            withdrawals.withdraw 1 BTC 5.000000000000000001 -> limit_reached limit=per_withdrawal \
maximum=5 scope=all requested_quantity=5.000000000000000001
            withdrawals.withdraw 1 BTC 5            -> done
            withdrawals.withdraw 1 BTC 5            -> done
            withdrawals.withdraw 1 ETH 6            -> done
        """
    )


def test_own_limit_goes_before_the_general_one():
    """In both directions; a user without one of his own has the general one."""
    play(
        USER
        + """
            withdrawals.set_limits BTC 5 8
            withdrawals.set_limits BTC 7 user=1     -> done user_id=1 per_withdrawal=7 per_day=null
            withdrawals.set_limits BTC 2 user=2
            withdrawals.withdraw 1 BTC 7.5          -> limit_reached maximum=7 scope=user
            withdrawals.withdraw 1 BTC 7            -> done
            withdrawals.withdraw 1 BTC 7            -> limit_reached limit=per_day maximum=8 used=7 \
scope=all requested_quantity=7
            withdrawals.withdraw 2 BTC 3            -> limit_reached maximum=2 scope=user
            withdrawals.withdraw 2 BTC 2
            withdrawals.set_limits BTC user=2
            withdrawals.withdraw 2 BTC 5
            withdrawals.withdraw 2 BTC 5.5          -> limit_reached maximum=5 scope=all
        """
    )


def test_own_limit_is_kept_apart_by_token():
    play(
        USER
        + """
            withdrawals.set_limits BTC 5 user=1
            withdrawals.set_limits ETH 6 user=1
            withdrawals.set_limits BTC none none user=1
            withdrawals.withdraw 1 BTC 7            -> done
            withdrawals.withdraw 1 ETH 7            -> limit_reached maximum=6
        """
    )


def test_limit_of_zero_takes_nothing():
    play(
        USER
        + """
            withdrawals.set_limits BTC 0
            withdrawals.withdraw 1 BTC 0.000000000000000001 -> limit_reached maximum=0
            withdrawals.set_limits BTC none 0
            withdrawals.withdraw 1 BTC 0.000000000000000001 -> limit_reached limit=per_day maximum=0 \
used=0
            withdrawals.set_limits BTC none 1 user=1
            withdrawals.withdraw 1 BTC 1            -> done
            withdrawals.withdraw 2 BTC 1            -> limit_reached
        """
    )


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ("XYZ 1", "token_unknown"),
        ("BTC -1", "amount_not_positive"),
        ("BTC 1 x", "amount_invalid"),
        ("BTC 0.0000000000000000001", "amount_too_fine"),
        ("BTC 1 100000000000000000000", "amount_too_large"),
        ("BTC 1 user=9", "user_not_found user_id=9"),
        ("BTC 1 user=''", "user_id_invalid"),
    ],
)
def test_limits_that_cannot_be_set(limits, code):
    play(USER + f" withdrawals.set_limits {limits} -> {code}")


def test_limit_goes_before_the_funds():
    play(
        USER
        + """
            withdrawals.set_limits BTC 5
            withdrawals.withdraw 1 BTC 500          -> limit_reached
            withdrawals.withdraw 1 USD 500          -> insufficient_funds
        """
    )


# ── limits of a rolling day ───────────────────────────────────────────────────────


def test_daily_limit_is_inclusive_and_by_token_and_user():
    play(
        USER
        + """
            withdrawals.set_limits BTC none 10
            withdrawals.withdraw 1 BTC 4
            withdrawals.withdraw 1 BTC 6.000000000000000001 -> limit_reached limit=per_day maximum=10 \
used=4 requested_quantity=6.000000000000000001
            withdrawals.withdraw 1 BTC 6
            withdrawals.withdraw 1 BTC 0.000000000000000001 -> limit_reached used=10
            withdrawals.withdraw 2 BTC 10
            withdrawals.withdraw 1 ETH 50
        """
    )


@pytest.mark.parametrize("into_step", [0, 1, 150, 299])
def test_withdrawal_counts_for_a_day_and_to_the_end_of_its_five_minutes(into_step):
    """Never less than 24 hours, never more than five minutes longer."""
    stage = play(USER + " withdrawals.set_limits BTC none 10")
    stage.wait((into_step - START // 1_000_000) % STEP)
    assert stage.now // 1_000_000 % STEP == into_step
    stage.play(
        f"""
        when
            withdrawals.withdraw 1 BTC 10
            wait {DAY}
            withdrawals.withdraw 1 BTC 0.5          -> limit_reached used=10
            wait {STEP - into_step - 1}
            withdrawals.withdraw 1 BTC 0.5          -> limit_reached used=10
            wait 1
            withdrawals.withdraw 1 BTC 10           -> done
        """
    )


def test_day_rolls_step_by_step():
    play(
        USER
        + f"""
            withdrawals.set_limits BTC none 10
            withdrawals.withdraw 1 BTC 1
            wait {STEP}
            withdrawals.withdraw 1 BTC 2
            wait {STEP}
            withdrawals.withdraw 1 BTC 3
            wait {DAY - 2 * STEP}
            withdrawals.withdraw 1 BTC 5            -> limit_reached used=6
            wait {STEP}
            withdrawals.withdraw 1 BTC 6            -> limit_reached used=5
            withdrawals.withdraw 1 BTC 5
            wait {STEP}
            withdrawals.withdraw 1 BTC 3            -> limit_reached used=8
            withdrawals.withdraw 1 BTC 2
        """
    )


def test_old_steps_are_forgotten():
    """What a user's record keeps is bounded by the day."""
    stage = play(USER + " withdrawals.set_limits BTC none 10")
    for _ in range(5):
        stage.play(f"when\n withdrawals.withdraw 1 BTC 1\n wait {DAY // 2}")
    assert len(day_of(stage)) == 3


def day_of(stage: Stage, token: str = "BTC"):
    record = stage.store.record("withdrawals.user", "1")
    assert record is not None
    return record.read(UserControls).days[token]


def test_refused_withdrawal_does_not_count():
    play(
        """
        given
            user:1:BTC      6
        when
            withdrawals.set_limits BTC none 10
            withdrawals.withdraw 1 BTC 7            -> insufficient_funds
            withdrawals.withdraw 1 BTC 11           -> limit_reached used=0
            withdrawals.withdraw 1 BTC 4
            withdrawals.withdraw 1 BTC 6.5          -> limit_reached used=4
        """
    )


def test_cancelled_and_expired_withdrawals_are_given_back():
    play(
        USER
        + f"""
            withdrawals.set_limits BTC none 10
            withdrawals.withdraw 1 BTC 2
            withdrawals.withdraw 1 BTC 3 expires_in_seconds={DAY // 2}
            wait {STEP}
            withdrawals.withdraw 1 BTC 5
            withdrawals.withdraw 1 BTC 1            -> limit_reached used=10
            withdrawals.cancel_withdrawal w1
            withdrawals.withdraw 1 BTC 3            -> limit_reached used=8
            withdrawals.settle 1 ETH 0 BTC 0 w3     -> done result=cancelled
            withdrawals.withdraw 1 BTC 8            -> limit_reached used=3
            wait {DAY // 2}
            withdrawals.expire_withdrawal 2
            withdrawals.withdraw 1 BTC 11           -> limit_reached used=0
            withdrawals.withdraw 1 BTC 10
        """
    )


def test_what_was_given_back_after_its_day_changes_nothing():
    play(
        USER
        + f"""
            withdrawals.set_limits BTC none 10
            withdrawals.withdraw 1 BTC 10
            wait {DAY + STEP}
            withdrawals.withdraw 1 BTC 10
            withdrawals.cancel_withdrawal w1
            withdrawals.withdraw 1 BTC 1            -> limit_reached used=10
        """
    )


def test_settlement_gives_nothing_back():
    play(
        USER
        + """
            withdrawals.set_limits BTC none 10
            withdrawals.withdraw 1 BTC 10
            withdrawals.settle 1 ETH 1 BTC 1        -> done released=9
            withdrawals.withdraw 1 BTC 1            -> limit_reached used=10
        """
    )


def test_day_begins_when_the_limit_is_set():
    """What was taken before did not count, and so it is not given back either."""
    play(
        USER
        + """
            withdrawals.withdraw 1 BTC 7
            withdrawals.withdraw 1 BTC 7
            withdrawals.set_limits BTC none 10
            withdrawals.cancel_withdrawal w1
            withdrawals.withdraw 1 BTC 10           -> done
            withdrawals.cancel_withdrawal w2        # in the same five minutes, not counted
            withdrawals.withdraw 1 BTC 1            -> limit_reached used=10
            withdrawals.cancel_withdrawal w3
            withdrawals.withdraw 1 BTC 10           -> done
        """
    )


def test_limit_lifted_and_set_again():
    """Five minutes that were begun are counted to their end."""
    play(
        USER
        + f"""
            withdrawals.set_limits BTC none 10
            withdrawals.withdraw 1 BTC 4
            withdrawals.set_limits BTC
            withdrawals.withdraw 1 BTC 3
            wait {STEP}
            withdrawals.withdraw 1 BTC 50
            withdrawals.set_limits BTC none 10
            withdrawals.cancel_withdrawal w3
            withdrawals.withdraw 1 BTC 4            -> limit_reached used=7
            withdrawals.cancel_withdrawal w2
            withdrawals.withdraw 1 BTC 6
        """
    )


def test_withdrawals_of_one_batch_count_one_after_the_other():
    play(
        USER
        + """
            withdrawals.set_limits BTC none 10
            withdrawals.withdraw 1 BTC 6
            & withdrawals.withdraw 1 BTC 6          -> limit_reached used=6
            & withdrawals.cancel_withdrawal w1
            & withdrawals.withdraw 1 BTC 10
            & withdrawals.withdraw 1 BTC 1          -> limit_reached used=10
        """
    )


# ── in the book ───────────────────────────────────────────────────────────────────

SET_UP = """
    [m1] withdrawals.set_mode reducing ETH      -> done
    [l1] withdrawals.set_limits BTC 5 9         -> done
    [l2] withdrawals.set_limits BTC 6 8 1       -> done user_id=1
    withdrawals.withdraw 1 BTC 6
"""

AGAIN = """
    when
        [m1] withdrawals.set_mode reducing ETH  -> replayed
        [m1] withdrawals.set_mode halted ETH    -> key_reused field=mode
        [l1] withdrawals.set_limits BTC 5 9     -> replayed
        [l2] withdrawals.set_limits BTC 6 8 1   -> replayed user_id=1 per_day=8
        [l2] withdrawals.set_limits BTC 6 7 1   -> key_reused field=per_day
        withdrawals.withdraw 1 ETH 1            -> withdrawals_reducing
        withdrawals.withdraw 1 BTC 7            -> limit_reached maximum=6
        withdrawals.withdraw 1 BTC 3            -> limit_reached maximum=8 used=6
        withdrawals.withdraw 2 BTC 6            -> limit_reached maximum=5 scope=all
"""


def test_controls_are_replayed_survive_reopening_and_rebuild(tmp_path):
    store = SQLiteStore.open(tmp_path, "main", new_incarnation="first")
    stage = Stage(store).play(USER + SET_UP + AGAIN)
    now = stage.now
    store.close()
    store = SQLiteStore.open(tmp_path, "main", new_incarnation="second")
    stage = Stage(store)
    stage.now = now
    stage.play(AGAIN)
    report = verify(store, answers=answers(), invariants=invariants())
    assert report.ok, report.problems
    store.close()


def test_controls_are_found_when_nothing_is_cached():
    stage = play(USER + SET_UP)
    stage.book.engine.cache.clear()
    stage.play(AGAIN)


def test_figures_of_a_refusal_are_text():
    stage = play(USER + SET_UP)
    outcome = stage.execute(Withdraw("1", "BTC", "2.5"))
    assert isinstance(outcome, Refusal)
    assert msgspec.to_builtins(outcome.figures) == {
        "limit": "per_day",
        "maximum": "8",
        "scope": "user",
        "used": "6",
        "requested_quantity": "2.5",
    }

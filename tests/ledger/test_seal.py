"""The seal: a rule of ours that breaks the book's arithmetic is stopped, also under `python -O`."""

import subprocess
import sys

import pytest

from pennyweight.engine.port import ConstraintFailed
from pennyweight.engine.receipts import Failure
from pennyweight.ledger.draft import Draft, SealError
from pennyweight.ledger.records import RANK_MAX, RANK_MIN, Mark
from probes import probe
from scenarios import Stage, snapshot

OPTIMISED = """
import sys
sys.path[:0] = {path!r}
if __debug__:
    raise SystemExit("not optimised")
from test_seal import ROGUES, ledger_of_two
for name, rule in ROGUES.items():
    stage, before, outcome, after = ledger_of_two(rule)
    cause = getattr(outcome, "cause", None)
    print(name, type(cause).__name__, before == after)
"""


def out_of_nothing(draft):
    draft.transfer("user:1:USD", "user:2:USD", 5)
    draft._touch("user:2:USD").posted += 1


def into_nothing(draft):
    draft._touch("user:1:USD").posted -= 1


def between_assets(draft):
    draft._touch("user:1:USD").posted -= 1
    draft._touch("user:1:BTC").posted += 1


def below_the_floor(draft):
    draft._touch("user:1:USD").posted -= 10**30
    draft._touch("user:2:USD").posted += 10**30


def held_without_a_hold(draft):
    draft._touch("user:1:USD").held += 1


def held_below_zero(draft):
    draft._touch("user:1:USD").held -= 1


def held_more_than_there_is(draft):
    account = draft._touch("user:1:USD")
    hold = draft.place_hold("user:1:USD", 1)
    draft._change_hold("place", hold, account, 10**30)


def opened_with_money(draft):
    draft.open_account("user:1:ETH").posted = 1


ROGUES = {
    rule.__name__: rule
    for rule in (
        out_of_nothing,
        into_nothing,
        between_assets,
        below_the_floor,
        held_without_a_hold,
        held_below_zero,
        held_more_than_there_is,
        opened_with_money,
    )
}


def ledger_of_two(rule):
    stage = Stage()
    stage.fund("user:1:USD", "100")
    stage.fund("user:1:BTC", "1")
    stage.fund("user:2:USD")
    before = snapshot(stage.store)
    outcome = stage.execute(probe(rule, "user:1", "user:2"))
    return stage, before, outcome, snapshot(stage.store)


@pytest.mark.parametrize("rule", ROGUES.values(), ids=ROGUES)
def test_seal_stops_a_rogue_rule(rule):
    stage, before, outcome, after = ledger_of_two(rule)
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.cause, SealError)
    assert before == after
    stage.play("""
        when
            transfer user:1:USD user:2:USD USD 100      -> done
    """)


def test_seal_survives_optimisation(pytestconfig):
    """Nothing that guards money is an `assert`."""
    here = [str(pytestconfig.rootpath / "tests"), str(pytestconfig.rootpath / "tests" / "ledger")]
    ran = subprocess.run(
        [sys.executable, "-O", "-c", OPTIMISED.format(path=here)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stderr == ""
    assert ran.stdout.splitlines() == [f"{name} SealError True" for name in ROGUES]


@pytest.mark.parametrize("rank", [RANK_MIN - 1, RANK_MAX + 1])
def test_mark_beyond_64_bits_is_our_bug(rank):
    def rule(draft):
        draft.put_record("kind", "1", {}, before=None, marks=(Mark("index", rank),))

    outcome = Stage().execute(probe(rule))
    assert isinstance(outcome.cause, SealError)


@pytest.mark.parametrize("rank", [RANK_MIN, RANK_MAX])
def test_mark_at_the_edges_of_64_bits(rank):
    def rule(draft):
        draft.put_record("kind", "1", {}, before=None, marks=(Mark("index", rank),))

    stage = Stage()
    stage.execute(probe(rule))
    assert [due.rank for due in stage.store.due("index", RANK_MIN, RANK_MAX)] == [rank]


def test_store_checks_again_what_the_seal_let_through(monkeypatch):
    """With the seal switched off, the store's own check still stands."""
    stage = Stage()
    monkeypatch.setattr(Draft, "seal", lambda draft: None)

    def rule(draft):
        draft.open_account("user:1:USD").posted = -1
        for account in draft.changed_accounts.values():
            account.version = draft.sequence

    outcome = stage.execute(probe(rule, "user:1"))
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.cause, ConstraintFailed)

"""Idempotency keys and deadlines: one key, one effect, the same answer."""

import msgspec
import pytest

from pennyweight.engine.engine import Abandon, Submission
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.ledger.commands import counted_fields, differing_field, fingerprint
from pennyweight.ledger.refusals import Reason
from pennyweight.products.general import OpenAccount, PlaceHold, Transfer, TransferItem, Transfers
from probes import Probe, probe
from scenarios import START, Stage, play, snapshot

BOOK = """
    given
        user:1:USD      100
        user:2:USD
"""


def transfer(amount="10", **fields):
    return Transfer("user:1:USD", "user:2:USD", "USD", amount, **fields)


def test_key_replays_the_first_answer_byte_for_byte():
    stage = play(BOOK)
    first = stage.execute(transfer(), key="k")
    stage.wait(3600)
    stage.play("""
        when
            transfer user:1:USD user:2:USD USD 90   -> done
    """)
    before = snapshot(stage.store)
    again = stage.execute(transfer(), key="k")
    assert again.is_replayed
    assert (again.sequence, again.answer) == (first.sequence, first.answer)
    assert msgspec.json.encode(again.answer) == msgspec.json.encode(first.answer)
    assert snapshot(stage.store) == before
    assert stage.book.engine.replays == 1


def test_key_replays_after_the_cache_is_gone_and_after_a_restart():
    stage = play(BOOK)
    first = stage.execute(transfer(), key="k")
    stage.book.engine.cache.clear()
    assert stage.execute(transfer(), key="k") == msgspec.structs.replace(first, is_replayed=True)
    restarted = Stage(stage.store)
    assert restarted.execute(transfer(), key="k") == msgspec.structs.replace(
        first, is_replayed=True
    )


def test_key_twice_in_one_batch():
    stage = play(BOOK)
    outcomes = stage.execute_many([Submission(transfer(), key="k") for _ in range(5)])
    assert [outcome.is_replayed for outcome in outcomes] == [False, True, True, True, True]
    assert len({outcome.sequence for outcome in outcomes}) == 1
    assert stage.posted("user:2:USD") == "10"


def test_key_twice_in_one_batch_with_other_content():
    stage = play(BOOK)
    outcomes = stage.execute_many(
        [Submission(transfer(), key="k"), Submission(transfer("11"), key="k")]
    )
    assert isinstance(outcomes[0], Receipt)
    assert outcomes[1].reason is Reason.KEY_REUSED
    assert outcomes[1].figures == {"field": "amount", "sequence": outcomes[0].sequence}


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (Transfer("user:2:USD", "user:2:USD", "USD", "10"), "debit_account"),
        (Transfer("user:1:USD", "user:1:USD", "USD", "10"), "credit_account"),
        (Transfer("user:1:USD", "user:2:USD", "BTC", "10"), "asset"),
        (transfer("10.5"), "amount"),
        (transfer("nonsense"), "amount"),
        (transfer(effective_at=START), "effective_at"),
        (transfer(effective_at=START * 9), "effective_at"),
        (transfer(id="mine"), "id"),
        (PlaceHold("user:1:USD", "USD", "10"), "command"),
        (OpenAccount("not an account"), "command"),
    ],
)
def test_key_reused_names_the_field(other, field):
    stage = play(BOOK)
    first = stage.execute(transfer(), key="k")
    outcome = stage.execute(other, key="k")
    assert outcome.reason is Reason.KEY_REUSED
    assert outcome.figures == {"field": field, "sequence": first.sequence}


def test_key_reused_names_a_field_that_is_gone():
    stage = play(BOOK)
    stage.execute(transfer(id="mine"), key="k")
    assert stage.execute(transfer(), key="k").figures["field"] == "id"


def test_key_of_a_list_reused():
    stage = play(BOOK)
    item = TransferItem("user:1:USD", "user:2:USD", "USD", "1")
    stage.execute(Transfers((item,)), key="k")
    assert stage.execute(Transfers((item, item)), key="k").figures["field"] == "transfers"
    assert stage.execute(Transfers((item,)), key="k").is_replayed


def test_key_belongs_to_a_scope():
    stage = play(BOOK)
    stage.execute(transfer(), key="k")
    outcome = stage.execute(probe(lambda draft: "other product"), key="k")
    assert (outcome.answer, outcome.is_replayed) == ("other product", False)


def test_key_is_freed_by_a_refusal():
    play(BOOK).play("""
        when
            [k] transfer user:1:USD user:2:USD USD 200      -> insufficient_funds
            [k] transfer user:1:USD user:2:USD USD 100      -> done
            [k] transfer user:1:USD user:2:USD USD 100      -> replayed
    """)


def test_key_is_freed_by_a_refusal_within_a_batch():
    play(BOOK).play("""
        when
            [k] transfer user:2:USD user:1:USD USD 10       -> insufficient_funds
            &[j] transfer user:1:USD user:2:USD USD 50      -> done
            &[k] transfer user:2:USD user:1:USD USD 10      -> done
            &[k] transfer user:2:USD user:1:USD USD 10      -> replayed
        then
            user:1:USD      60
    """)


def test_key_is_freed_by_a_rule_that_raises():
    stage = Stage()
    stage.execute(probe(lambda draft: 1 // 0), key="k")
    assert not stage.execute(probe(lambda draft: 1), key="k").is_replayed


def test_no_key_no_replay():
    stage = play(BOOK)
    first, second = stage.execute_many([Submission(transfer()), Submission(transfer())])
    assert first.sequence != second.sequence
    assert stage.posted("user:2:USD") == "20"


def test_fields_that_do_not_count_may_differ():
    stage = Stage()
    rule = probe(lambda draft: draft.sequence)
    first = stage.execute(Probe(rule.rule, "text", "one note"), key="k")
    again = stage.execute(Probe(rule.rule, "text", "another note"), key="k")
    assert again.is_replayed
    assert again.answer == first.answer
    assert stage.execute(Probe(rule.rule, "other"), key="k").figures["field"] == "text"


# ── fingerprints ──────────────────────────────────────────────────────────────────


def test_fingerprint_leaves_defaults_out():
    assert fingerprint(transfer()) == (
        b'{"debit_account":"user:1:USD","credit_account":"user:2:USD","asset":"USD","amount":"10"}'
    )
    assert fingerprint(transfer(id="")) == fingerprint(transfer())
    assert b'"id":"x"' in fingerprint(transfer(id="x"))


def test_fingerprint_counts_chosen_fields_only():
    assert fingerprint(Probe(3, "", "note")) == b'{"rule":3}'
    assert fingerprint(Probe(3, "text", "note")) == b'{"rule":3,"text":"text"}'
    assert msgspec.json.encode(counted_fields(Probe(3))) == b'{"rule":3}'


class OneCounts(Probe, frozen=True):
    """Of all its fields one counts."""

    counted = ("text",)


def test_fingerprint_of_one_field():
    assert fingerprint(OneCounts(3, "text", "note")) == b'{"text":"text"}'
    assert fingerprint(OneCounts(3)) == b"{}"


@pytest.mark.parametrize(
    ("first", "second", "field"),
    [
        (b'{"a":1,"b":2}', b'{"a":1,"b":2}', ""),
        (b'{"a":1,"b":2}', b'{"a":1,"b":3}', "b"),
        (b'{"a":1}', b'{"a":1,"b":3}', "b"),
        (b'{"a":1,"b":3}', b'{"a":1}', "b"),
        (b'{"a":2,"b":3}', b'{"a":1}', "a"),
        (b'{"a":null}', b"{}", "a"),
    ],
)
def test_differing_field(first, second, field):
    assert differing_field(first, second) == field


class Newer(Probe, frozen=True):
    """The same command after an update that counts one more field, with a default."""

    version = 2
    counted = ("rule", "text", "extra")
    extra: str = ""


def test_fingerprint_of_a_newer_version_compares_what_both_count():
    stage = Stage()
    rule = probe(lambda draft: "first").rule
    first = stage.execute(Probe(rule, "text"), key="k")
    again = stage.execute(Newer(rule, "text"), key="k")
    assert again.is_replayed
    assert again.answer == first.answer
    assert stage.execute(Newer(rule, "text", extra="x"), key="k").figures["field"] == "extra"


# ── abandon ───────────────────────────────────────────────────────────────────────


def test_abandon_before_the_command():
    play(BOOK).play("""
        when
            [k] abandon ledger                              -> done abandoned=true
            [k] abandon ledger                              -> replayed abandoned=true
            [k] transfer user:1:USD user:2:USD USD 10       -> key_abandoned
            [j] transfer user:1:USD user:2:USD USD 10       -> done
        then
            user:2:USD      10
    """)


def test_abandon_after_the_command_returns_its_receipt():
    stage = play(BOOK)
    first = stage.execute(transfer(), key="k")
    outcome = stage.execute(Abandon("ledger"), key="k")
    assert outcome.is_replayed
    assert outcome.sequence == first.sequence
    assert outcome.answer == msgspec.to_builtins(first.answer)
    assert stage.execute(transfer(), key="k").is_replayed


def test_abandon_in_the_same_batch():
    stage = play(BOOK)
    outcomes = stage.execute_many(
        [
            Submission(Abandon("ledger"), key="a"),
            Submission(transfer(), key="a"),
            Submission(transfer(), key="b"),
            Submission(Abandon("ledger"), key="b"),
        ]
    )
    assert isinstance(outcomes[1], Refusal)
    assert outcomes[1].reason is Reason.KEY_ABANDONED
    assert outcomes[3].sequence == outcomes[2].sequence
    assert stage.posted("user:2:USD") == "10"


def test_abandon_names_the_scope():
    stage = Stage()
    stage.execute(Abandon("probe"), key="k")
    assert stage.execute(probe(lambda draft: 1), key="k").reason is Reason.KEY_ABANDONED
    stage.fund("user:1:USD", "10")
    stage.fund("user:2:USD")
    assert isinstance(stage.execute(transfer(), key="k"), Receipt)
    assert stage.store.entries(0, 100, product="probe") != []


# ── not_after ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("offset", "is_done"), [(-1, False), (0, True), (1, True)])
def test_not_after_is_decided_by_batch_time(offset, is_done):
    stage = play(BOOK)
    time = stage.now + 1
    outcome = stage.execute(transfer(), not_after=time + offset)
    assert isinstance(outcome, Receipt) == is_done
    if not is_done:
        assert outcome.reason is Reason.NOT_AFTER_PASSED


def test_not_after_is_checked_before_the_key():
    stage = play(BOOK)
    stage.execute(transfer(), key="k")
    assert stage.execute(transfer(), key="k", not_after=1).reason is Reason.NOT_AFTER_PASSED
    assert stage.execute(transfer(), key="k").is_replayed


def test_not_after_binds_nothing():
    stage = play(BOOK)
    assert stage.execute(transfer(), key="k", not_after=1).reason is Reason.NOT_AFTER_PASSED
    assert not stage.execute(transfer(), key="k").is_replayed


def test_not_after_in_order_within_a_batch():
    """One time for the whole batch: what stands later in it is not later."""
    stage = play(BOOK)
    time = stage.now + 1
    outcomes = stage.execute_many(
        [Submission(transfer("1"), not_after=time + n - 2) for n in range(4)]
    )
    assert [isinstance(outcome, Receipt) for outcome in outcomes] == [False, False, True, True]

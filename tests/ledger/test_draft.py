"""The verbs of the draft that products use and no command of the ledger shows by itself."""

import msgspec
import pytest

from pennyweight.engine.engine import Submission
from pennyweight.engine.receipts import Failure, Receipt
from pennyweight.ledger.commands import Command
from pennyweight.ledger.draft import SealError
from pennyweight.ledger.entries import CorruptEntry, decode_entry
from pennyweight.ledger.records import RANK_MAX, RANK_MIN, Mark
from pennyweight.ledger.refusals import Reason
from probes import probe
from scenarios import Stage, play

ONE = 10**18


def run(stage, rule, *holders, reads=None):
    outcome = stage.execute(probe(rule, *holders, reads=reads))
    assert isinstance(outcome, Receipt), outcome
    return outcome.answer


# ── amounts in rules ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("amount", [0, -1])
@pytest.mark.parametrize(
    "verb",
    [
        lambda draft, amount: draft.transfer("user:1:USD", "user:2:USD", amount),
        lambda draft, amount: draft.place_hold("user:1:USD", amount),
        lambda draft, amount: draft.settle_hold(1, "user:2:USD", amount),
    ],
)
def test_verbs_take_positive_amounts_only(verb, amount):
    stage = play("""
        given
            user:1:USD      10
            user:2:USD
    """)
    outcome = stage.execute(probe(lambda draft: verb(draft, amount), "user:1", "user:2"))
    assert outcome.reason is Reason.AMOUNT_NOT_POSITIVE


def test_units_and_text():
    def rule(draft):
        return [
            draft.units("1.5", "USD"),
            draft.units("0", "GC", is_zero_allowed=True),
            draft.units("2", "GC"),
            draft.text(15 * 10**17, "USD"),
            draft.text(-1, "GC"),
        ]

    assert run(Stage(), rule) == [
        15 * 10**17, 0, 2 * 10**24, "1.5", "-0.000000000000000000000001",
    ]  # fmt: skip


# ── accounts ──────────────────────────────────────────────────────────────────────


def test_open_account_takes_the_usual_floor_or_another():
    stage = play("""
        when
            open_account user:1:USD             -> done floor=0 holder=user:1
            open_account user:1:savings:USD     -> done floor=0 holder=user:1
            open_account user:2:USD -10.5       -> done floor=-10.5
            open_account user:3:USD 0           -> done floor=0
            open_account fees:USD               -> done floor=0 holder=fees
            open_account house:x:USD            -> done floor=null holder=house:x
            open_account house:y:USD -1         -> done floor=-1
            transfer user:2:USD user:1:USD USD 10.6     -> insufficient_funds
            transfer user:2:USD user:1:USD USD 10.5     -> done
            transfer house:y:USD user:1:USD USD 2       -> insufficient_funds
        then
            user:2:USD      -10.5 floor -10.5
    """)
    numbers = [account.number for account in stage.store.accounts(0, 100)]
    assert numbers == list(range(1, 8))


def test_closed_account_refuses_everything():
    play("""
        given
            user:1:USD
            user:2:USD      5
        when
            close_account user:1:USD                        -> done closed=true
            transfer user:2:USD user:1:USD USD 1            -> account_closed account=user:1:USD
            transfer user:1:USD user:2:USD USD 1            -> account_closed account=user:1:USD
            place_hold user:1:USD USD 1                     -> account_closed
            open_account user:1:USD                         -> account_exists
            close_account user:1:USD                        -> account_closed
        then
            user:1:USD      0 closed
    """)


def test_account_opened_and_used_in_one_entry():
    stage = Stage()

    def rule(draft):
        opened = draft.open_account("user:1:USD")
        draft.transfer(draft.own_account("world:USD"), "user:1:USD", 5 * ONE)
        assert draft.own_account("user:1:USD") == "user:1:USD"
        assert draft.account("user:1:USD") is opened
        assert draft.find_account("user:2:USD") is None
        draft.place_hold("user:1:USD", 2 * ONE)
        return opened.number

    assert run(stage, rule, "user:1", "world", "user:2") == 1
    stage.play("""
        then
            user:1:USD      5 held 2
            world:USD       -5
    """)


def test_accounts_of_one_batch_count_on():
    stage = Stage()

    def opening(account_id):
        return Submission(
            probe(lambda draft: draft.open_account(account_id).number, account_id[:6])
        )

    outcomes = stage.execute_many(
        [opening("user:1:USD"), opening("user:1:USD"), opening("user:2:USD")]
    )
    assert [getattr(outcome, "answer", None) for outcome in outcomes] == [1, None, 2]


# ── records and names ─────────────────────────────────────────────────────────────


def put(draft, name, *, before=None, record_id="1", **options):
    return draft.put_record(
        "thing", record_id, {"n": name}, before=before, names=(name,), **options
    )


def wants(*names):
    def reads(wanted):
        for name in names:
            wanted.name("thing", name)
        wanted.record("thing", "1")
        wanted.record("thing", "2")

    return reads


def test_record_versions_and_reads():
    stage = Stage()

    def rule(draft):
        before = draft.record("thing", "1")
        record = put(draft, "a", before=before, labels=("red",), marks=(Mark("when", 5),))
        assert draft.record("thing", "1") is record
        assert record.read(dict[str, str]) == {"n": "a"}
        return record.version

    assert [run(stage, rule, reads=wants("a")) for _ in range(3)] == [1, 2, 3]
    stored = stage.store.record("thing", "1")
    assert (stored.product, stored.version, stored.labels) == ("probe", 3, ("red",))
    assert [due.id for due in stage.store.due("when", 0, 9)] == ["1"]


def test_record_belongs_to_its_product():
    stage = Stage()

    def rule(draft):
        before = draft.record("asset", "USD")
        draft.put_record("asset", "USD", {}, before=before)

    outcome = stage.execute(probe(rule, reads=lambda wanted: wanted.record("asset", "USD")))
    assert outcome.reason is Reason.OWNED_BY_PRODUCT
    assert outcome.figures == {"owner": "ledger"}


def test_name_is_unique_and_moves_with_its_record():
    stage = Stage()

    def take_and_give_back(draft):
        first = put(draft, "a")
        seen = [draft.name("thing", "a"), draft.name("thing", "b")]
        put(draft, "b", before=first)
        seen += [draft.name("thing", "a"), draft.name("thing", "b")]
        put(draft, "a", record_id="2")
        return [*seen, draft.name("thing", "a")]

    # "a" is free again within the draft that took and left it.
    assert run(stage, take_and_give_back, reads=wants("a", "b")) == ["1", None, None, "1", "2"]

    outcome = stage.execute(probe(lambda draft: put(draft, "a").id, reads=wants("a")))
    assert outcome.reason is Reason.NAME_TAKEN
    assert outcome.figures == {"name": "a"}

    def rename_committed(draft):
        put(draft, "c", before=draft.record("thing", "1"))
        return [draft.name("thing", name) for name in "abc"]

    assert run(stage, rename_committed, reads=wants("a", "b", "c")) == ["2", None, "1"]
    assert stage.store.record_named("thing", "b") is None
    assert stage.store.record_named("thing", "c").id == "1"


def test_name_freed_earlier_in_the_batch_is_free():
    stage = Stage()
    run(stage, lambda draft: put(draft, "a").id, reads=wants("a"))
    leave = probe(
        lambda draft: put(draft, "b", before=draft.record("thing", "1")).id, reads=wants("a", "b")
    )
    take = probe(lambda draft: put(draft, "a", record_id="2").id, reads=wants("a"))
    again = probe(lambda draft: put(draft, "a", record_id="3").id, reads=wants("a"))
    outcomes = stage.execute_many([Submission(leave), Submission(take), Submission(again)])
    assert [type(outcome) for outcome in outcomes[:2]] == [Receipt, Receipt]
    assert outcomes[2].reason is Reason.NAME_TAKEN


def test_records_of_a_holder_come_with_it():
    stage = Stage()

    def write(draft):
        before = draft.record("note", "n", holder="user:1")
        record = draft.put_record("note", "n", {}, before=before, holder="user:1", names=("x",))
        return record.version

    reads = probe(write, "user:1")
    assert [stage.execute(reads).answer for _ in range(2)] == [1, 2]
    stage.book.engine.cache.clear()
    outcomes = stage.execute_many([Submission(reads), Submission(reads)])
    assert [outcome.answer for outcome in outcomes] == [3, 4]


# ── numbers, cursors, events, dates ───────────────────────────────────────────────


def test_numbers_have_no_gaps():
    stage = Stage()

    def rule(draft):
        return [draft.next_number("n"), draft.next_number("n"), draft.next_number("m")]

    def refused(draft):
        draft.next_number("n")
        draft.account("nobody:USD")

    assert run(stage, rule) == [1, 2, 1]
    stage.execute(probe(refused, "nobody"))
    outcomes = stage.execute_many([Submission(probe(rule)), Submission(probe(rule))])
    assert [outcome.answer for outcome in outcomes] == [[3, 4, 2], [5, 6, 3]]


def test_cursors_move_with_their_effects_and_over_a_batch():
    stage = Stage()

    def move(before, after):
        return Submission(probe(lambda draft: draft.move_cursor("in", before, after)))

    outcomes = stage.execute_many([move(0, 3), move(0, 4), move(3, 7)])
    assert [type(outcome) for outcome in outcomes][::2] == [Receipt, Receipt]
    assert outcomes[1].reason is Reason.CURSOR_CONFLICT
    assert stage.store.cursors() == {"in": 7}
    assert run(stage, lambda draft: draft.facts.cursor("in")) == 7


def test_events_are_in_the_entry_in_order():
    stage = Stage()

    def rule(draft):
        draft.emit("First", {"amount": "1"})
        draft.emit("Second", 2)

    sequence = stage.execute(probe(rule)).sequence
    entry = decode_entry(stage.store.entry(sequence))
    assert [(event.name, event.body) for event in entry.events] == [
        ("First", {"amount": "1"}),
        ("Second", 2),
    ]


@pytest.mark.parametrize(("offset", "is_done"), [(-5, True), (0, True), (1, False)])
def test_date_is_never_in_the_future(offset, is_done):
    stage = Stage()
    outcome = stage.execute(probe(lambda draft: draft.date(draft.time + offset)))
    assert isinstance(outcome, Receipt) == is_done
    if not is_done:
        assert outcome.reason is Reason.EFFECTIVE_AT_IN_FUTURE


def test_entry_says_everything():
    """The bytes of an entry, field by field: what is hashed, stored and exported."""
    stage = play("""
        given
            user:1:USD      5
            user:2:USD
        when
            [k] transfer user:1:USD user:2:USD USD 2        -> done
            [d] transfer user:1:USD user:2:USD USD 1 1600000000000000  -> done
    """)
    body = stage.store.entry(stage.store.head().sequence - 1)
    assert body[:1] == b"\x01"
    entry = msgspec.json.decode(body[1:])
    assert entry["command"] == "transfer"
    assert entry["product"] == "ledger"
    assert entry["key"] == "k"
    assert entry["transfers"] == [["user:1:USD", "user:2:USD", 2 * ONE]]
    assert entry["lines"] == [
        ["user:1:USD", 2, 0, 3 * ONE, 0, 11, 11],
        ["user:2:USD", 1, 0, 2 * ONE, 0, 0, 0],
    ]
    assert entry["fields"]["amount"] == "2"
    assert entry["answer"]["amount"] == "2"
    assert not {"effective_at", "version", "openings", "holds"} & entry.keys()
    dated = decode_entry(stage.store.entry(stage.store.head().sequence))
    assert dated.effective_at == 1_600_000_000_000_000
    assert stage.store.back_dated("user:2:USD", 1_600_000_000_000_000, 0) == ONE


@pytest.mark.parametrize(
    "body", [b"", b"\x02{}", b"\x01", b"\x01{", b'\x01{"sequence":"x"}', b"{}"]
)
def test_entry_that_cannot_have_been_written(body):
    with pytest.raises(CorruptEntry):
        decode_entry(body)


# ── commands ──────────────────────────────────────────────────────────────────────


class Unfinished(Command, frozen=True):
    name = "unfinished"
    product = "probe"
    counted = ()
    answer_type = None


def test_command_without_a_rule_does_nothing():
    stage = Stage()
    outcome = stage.execute(Unfinished())
    assert isinstance(outcome, Failure)
    assert isinstance(outcome.cause, NotImplementedError)


def test_settle_that_overdraws_another_hold_is_refused():
    """The floor guards what is held besides: nothing to seal, and no SealError either."""
    stage = play("""
        given
            user:1:USD      10
        when
            place_hold user:1:USD USD 6     -> done
            place_hold user:1:USD USD 4     -> done
            settle_hold 1 7 world:USD       -> insufficient_funds available=6 held=4 needed=7
            settle_hold 1 6 world:USD       -> done
        then
            user:1:USD      4 held 4
    """)
    assert not any(isinstance(a, SealError) for a in stage.answers)


# ── edges, found by mutation ──────────────────────────────────────────────────────

LIMIT = 10**38


def test_smallest_unit_is_an_amount():
    stage = play("""
        given
            user:1:USD      10
            user:2:USD
        when
            transfer user:1:USD user:2:USD USD 0.000000000000000001        -> done
            place_hold user:1:USD USD 0.000000000000000001                 -> done
            settle_hold 1 0.000000000000000001 user:2:USD                  -> done
    """)
    assert stage.store.account("user:2:USD").posted == 2


def test_balances_reach_38_digits_and_no_more():
    stage = Stage()

    def move(amount):
        def rule(draft):
            draft.open_account("house:1:USD")
            draft.open_account("house:2:USD")
            draft.transfer("house:1:USD", "house:2:USD", amount)

        return probe(rule, "house:1", "house:2")

    assert stage.execute(move(LIMIT)).reason is Reason.BALANCE_TOO_LARGE
    assert isinstance(stage.execute(move(LIMIT - 1)), Receipt)

    def one_more(debit, credit):
        rule = probe(
            lambda draft: draft.transfer(debit, draft.own_account(credit), 1),
            *(account.rpartition(":")[0] for account in (debit, credit)),
        )
        return stage.execute(rule)

    assert one_more("house:1:USD", "house:3:USD").reason is Reason.BALANCE_TOO_LARGE
    stage.fund("house:3:USD")
    assert one_more("world:USD", "house:2:USD").reason is Reason.ACCOUNT_NOT_FOUND
    stage.play("when\n transfer world:USD house:3:USD USD 1 -> done")
    assert one_more("world:USD", "house:2:USD").reason is Reason.BALANCE_TOO_LARGE


def test_held_amounts_reach_38_digits_and_no_more():
    def hold(amount):
        def rule(draft):
            draft.open_account("house:1:USD")
            return draft.place_hold("house:1:USD", amount).id

        return Stage().execute(probe(rule, "house:1"))

    assert hold(LIMIT).reason is Reason.BALANCE_TOO_LARGE
    assert hold(LIMIT - 1).answer == 1


def test_rule_cannot_open_what_is_no_account_id():
    def opening(account_id):
        rule = probe(lambda draft: draft.open_account(account_id).id, account_id[:4])
        return Stage().execute(probe(rule.decide, reads=lambda wanted: wanted.account(account_id)))

    assert opening("fees:usd").reason is Reason.ACCOUNT_ID_INVALID
    assert opening("user:1").reason is Reason.ACCOUNT_ID_INVALID
    assert opening("suspense:USD").answer == "suspense:USD"


def test_rule_cannot_open_too_many_accounts_at_once(monkeypatch):
    monkeypatch.setattr("pennyweight.ledger.draft.ACCOUNTS_PER_HOLDER_MAX", 3)

    def rule(draft):
        for name in ("a", "b", "c"):
            draft.open_account(f"user:1:{name}:USD")

    stage = Stage()
    assert isinstance(stage.execute(probe(rule, "user:1")), Receipt)
    assert len(stage.store.accounts(0, 10)) == 3
    stage = Stage()
    stage.fund("user:1:USD")
    assert stage.execute(probe(rule, "user:1")).reason is Reason.TOO_MANY_ACCOUNTS


def test_settle_releases_the_rest_unless_told_otherwise():
    stage = Stage()
    stage.fund("user:1:USD", "10")

    def rule(draft):
        hold = draft.place_hold("user:1:USD", 5 * ONE)
        return draft.settle_hold(hold.id, draft.own_account("world:USD"), ONE).remaining

    assert run(stage, rule, "user:1", "world") == 0


def test_fact_on_a_closed_account_is_owed_whatever_its_floor():
    stage = play("""
        when
            open_account user:1:USD -10     -> done
            close_account user:1:USD        -> done
    """)
    take = probe(
        lambda draft: draft.take("user:1:USD", draft.own_account("house:USD"), 3), "user:1", "house"
    )
    assert stage.execute(take).answer == 3
    stage.play("""
        then
            user:1:USD      0 closed
    """)


def test_entry_lists_openings_closings_holds_and_all_lines():
    stage = play("""
        given
            user:1:USD      5
        when
            place_hold user:1:USD USD 2     -> done
            open_account user:2:USD -3      -> done
            close_account user:2:USD        -> done
    """)
    last = stage.store.head().sequence
    held, opened, closed = (decode_entry(stage.store.entry(last - back)) for back in (2, 1, 0))
    assert [(line.account, line.change, line.held) for line in held.lines] == [
        ("user:1:USD", -1, 2 * ONE)
    ]
    assert [(change.verb, change.held, change.hold.id) for change in held.holds] == [
        ("place", 2 * ONE, 1)
    ]
    assert held.counters == {"hold": 1}
    assert [(o.id, o.holder, o.asset, o.floor) for o in opened.openings] == [
        ("user:2:USD", "user:2", "USD", -3 * ONE)
    ]
    assert closed.closings == ["user:2:USD"]


def test_ranks_are_signed_64_bits():
    assert (RANK_MIN, RANK_MAX) == (-9_223_372_036_854_775_808, 9_223_372_036_854_775_807)


def test_entry_without_a_version_is_of_the_first():
    body = b'\x01{"sequence":7,"command":"c","product":"p"}'
    entry = decode_entry(body)
    assert (entry.sequence, entry.version, entry.key, entry.transfers) == (7, 1, "", [])

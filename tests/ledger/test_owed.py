"""What is owed: facts beyond the funds, paid back first by later credits."""

from pennyweight.ledger.accounts import owed_account
from pennyweight.ledger.entries import decode_entry
from probes import probe
from scenarios import Stage, play

ONE = 10**18


def owing(amount=30, posted="10"):
    """A book where user 1 has 10, and a fact has taken `amount` of it."""
    stage = Stage()
    stage.fund("user:1:USD", posted)
    stage.fund("user:2:USD", "1000")
    stage.fund("house:USD", "0")
    take = probe(
        lambda draft: draft.text(
            draft.take("user:1:USD", draft.own_account("house:USD"), amount * ONE), "USD"
        ),
        "user:1",
        "house",
    )
    stage.taken = stage.execute(take).answer
    return stage


def test_take_within_the_funds_owes_nothing():
    stage = owing(10)
    assert stage.taken == "0"
    stage.play("""
        then
            user:1:USD          0 owed 0
            house:USD           10
            owed:user:1:USD     -
    """)


def test_take_beyond_the_funds_is_owed():
    stage = owing(30)
    assert stage.taken == "20"
    stage.play("""
        then
            user:1:USD          0 owed 20
            house:USD           30
            owed:user:1:USD     -20 floor none
    """)


def test_take_from_nothing_at_all():
    stage = owing(5, posted="0")
    assert stage.taken == "5"
    stage.play("""
        then
            user:1:USD          0 owed 5
            owed:user:1:USD     -5
    """)


def test_take_leaves_what_is_held():
    stage = play("""
        given
            user:1:USD      10
        when
            place_hold user:1:USD USD 6     -> done
    """)
    rule = probe(
        lambda draft: draft.take("user:1:USD", draft.own_account("house:USD"), 7 * ONE),
        "user:1",
        "house",
    )
    assert stage.execute(rule).answer == 3 * ONE
    stage.play("""
        then
            user:1:USD      6 held 6 owed 3
            house:USD       7
    """)


def test_take_respects_a_floor_below_zero():
    stage = Stage()
    stage.fund("user:1:USD", "10", floor="-5")
    rule = probe(
        lambda draft: draft.take("user:1:USD", draft.own_account("house:USD"), 20 * ONE),
        "user:1",
        "house",
    )
    assert stage.execute(rule).answer == 5 * ONE
    stage.play("""
        then
            user:1:USD      -5 owed 5 floor -5
    """)


def test_take_from_an_account_without_a_floor_owes_nothing():
    stage = Stage()
    stage.fund("house:USD", "10")
    rule = probe(
        lambda draft: draft.take("house:USD", draft.own_account("world:USD"), 50 * ONE),
        "house",
        "world",
    )
    assert stage.execute(rule).answer == 0
    stage.play("""
        then
            house:USD       -40 owed 0
    """)


def test_credit_pays_back_first_and_visibly():
    stage = owing(30)
    stage.play("""
        when
            transfer user:2:USD user:1:USD USD 8        -> done amount=8
        then
            user:1:USD          0 owed 12
            owed:user:1:USD     -12
            user:2:USD          992
    """)
    entry = stage.book.engine.head.sequence
    moved = [(t.debit_account, t.credit_account, t.amount // ONE) for t in transfers(stage, entry)]
    assert moved == [
        ("user:2:USD", "user:1:USD", 8),
        ("user:1:USD", owed_account("user:1:USD"), 8),
    ]
    stage.play("""
        when
            transfer user:2:USD user:1:USD USD 20       -> done
        then
            user:1:USD          8 owed 0
            owed:user:1:USD     0
        when
            transfer user:2:USD user:1:USD USD 1        -> done
        then
            user:1:USD          9 owed 0
    """)


def transfers(stage, sequence):
    return decode_entry(stage.store.entry(sequence)).transfers


def test_credits_of_one_entry_are_added_up():
    owing(30).play("""
        when
            transfers
                | user:2:USD user:1:USD USD 8
                | user:2:USD user:1:USD USD 9
        then
            user:1:USD      0 owed 3
    """)


def test_credit_spent_in_the_same_entry_is_not_paid_back():
    owing(30).play("""
        when
            transfers
                | user:2:USD user:1:USD USD 8
                | user:1:USD user:2:USD USD 5
        then
            user:1:USD          0 owed 17
            owed:user:1:USD     -17
    """)


def test_credit_put_on_hold_in_the_same_entry_is_not_paid_back():
    stage = owing(30)

    def rule(draft):
        draft.transfer("user:2:USD", "user:1:USD", 8 * ONE)
        draft.place_hold("user:1:USD", 6 * ONE)

    stage.execute(probe(rule, "user:1", "user:2"))
    stage.play("""
        then
            user:1:USD          6 held 6 owed 18
            owed:user:1:USD     -18
            hold 1              open remaining 6
    """)


def test_credit_wholly_on_hold_pays_nothing_back():
    stage = owing(30)

    def rule(draft):
        draft.transfer("user:2:USD", "user:1:USD", 6 * ONE)
        draft.place_hold("user:1:USD", 6 * ONE)

    stage.execute(probe(rule, "user:1", "user:2"))
    stage.play("""
        then
            user:1:USD      6 held 6 owed 20
    """)


def test_hold_released_later_is_not_a_credit():
    """What an earlier entry held was credited then; its release pays nothing back by itself."""
    stage = owing(30)

    def rule(draft):
        draft.transfer("user:2:USD", "user:1:USD", 6 * ONE)
        draft.place_hold("user:1:USD", 6 * ONE)
        return {}

    stage.execute(probe(rule, "user:1", "user:2"))
    stage.execute(probe(lambda draft: draft.void_hold(1).id, reads=lambda wanted: wanted.hold(1)))
    stage.play("""
        then
            user:1:USD      6 held 0 owed 20
        when
            transfer user:2:USD user:1:USD USD 1        -> done
        then
            user:1:USD      6 owed 19
    """)


def test_take_again_owes_more():
    stage = owing(30)
    rule = probe(lambda draft: draft.take("user:1:USD", "house:USD", 5 * ONE), "user:1", "house")
    stage.execute(rule)
    stage.play("""
        then
            user:1:USD          0 owed 25
            owed:user:1:USD     -25
            house:USD           35
    """)


def test_owing_account_cannot_close_nor_be_paid_around():
    owing(30).play("""
        when
            close_account user:1:USD                            -> account_owes owed=20
            close_account owed:user:1:USD                       -> owned_by_product
            transfer user:2:USD owed:user:1:USD USD 1           -> owned_by_product
            transfer owed:user:1:USD user:2:USD USD 1           -> owned_by_product
            place_hold owed:user:1:USD USD 1                    -> owned_by_product
            open_account owed:user:2:USD                        -> account_id_invalid
            transfer user:2:USD user:1:USD USD 20               -> done
            close_account user:1:USD                            -> done
    """)


def test_reversal_leaves_paid_back_what_is_paid_back():
    owing(30).play("""
        when
            transfer user:2:USD user:1:USD USD 25       -> done
        then
            user:1:USD          5 owed 0
        when
            reverse 15                                  -> insufficient_funds available=5 needed=25
            transfer user:2:USD user:1:USD USD 20       -> done
            reverse 15                                  -> done
        then
            user:1:USD          0 owed 0
            owed:user:1:USD     0
    """)


def test_credit_on_hold_leaves_earlier_money_alone():
    """Only what the entry credits and does not hold pays back, even where more is available."""
    stage = owing(30)

    def credit_and_hold(amount, held):
        def rule(draft):
            draft.transfer("user:2:USD", "user:1:USD", amount * ONE)
            draft.place_hold("user:1:USD", held * ONE)

        return stage.execute(probe(rule, "user:1", "user:2"))

    credit_and_hold(6, 6)
    stage.execute(probe(lambda draft: draft.void_hold(1).id, reads=lambda wanted: wanted.hold(1)))
    credit_and_hold(8, 6)
    stage.play("""
        then
            user:1:USD          12 held 6 owed 18
            owed:user:1:USD     -18
    """)


def test_credit_on_several_holds_counts_them_all():
    stage = owing(30)

    def release(number):
        stage.execute(
            probe(
                lambda draft: draft.void_hold(number).id, reads=lambda wanted: wanted.hold(number)
            )
        )

    def rule(draft):
        draft.transfer("user:2:USD", "user:1:USD", 9 * ONE)
        draft.place_hold("user:1:USD", 2 * ONE)
        draft.place_hold("user:1:USD", 7 * ONE)

    stage.execute(probe(rule, "user:1", "user:2"))
    release(1)
    release(2)
    stage.execute(probe(rule, "user:1", "user:2"))
    stage.play("""
        then
            user:1:USD      18 held 9 owed 20
    """)


def test_credit_pays_back_down_to_a_floor_below_zero():
    stage = Stage()
    stage.fund("user:1:USD", "10", floor="-5")
    stage.fund("user:2:USD", "100")
    stage.execute(
        probe(
            lambda draft: draft.take("user:1:USD", draft.own_account("house:USD"), 20 * ONE),
            "user:1",
            "house",
        )
    )
    stage.play("""
        then
            user:1:USD      -5 owed 5
        when
            transfer user:2:USD user:1:USD USD 3    -> done
        then
            user:1:USD      -5 owed 2
        when
            transfer user:2:USD user:1:USD USD 3    -> done
        then
            user:1:USD      -4 owed 0
    """)


def test_smallest_unit_is_paid_back():
    owing(30).play("""
        when
            transfer user:2:USD user:1:USD USD 0.000000000000000001     -> done
        then
            user:1:USD      0 owed 19.999999999999999999
    """)

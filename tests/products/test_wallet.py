"""The rules of the bet/win wallet, as commands on one book."""

from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.ledger.assets import BUILT_IN, Asset
from pennyweight.ledger.refusals import Reason
from pennyweight.products.wallet import Bet, CreateUser, Rollback, Win, in_wallet_units
from scenarios import Stage, play

ANN = """
    when
        wallet.create_user ann                              -> done user=ann
"""

ANN_WITH_BET = (
    ANN
    + """
        [b1] wallet.bet ann 10000 USD g none b1             -> done balance=90000 currency=USD
"""
)


def test_user_gets_grant_once():
    play(
        ANN
        + """
            wallet.create_user ann                          -> account_exists
        then
            user:ann:USD        1
            world:USD           -1
        """
    )


def test_user_with_account_of_other_face_gets_no_grant():
    play(
        """
        given
            user:ann:USD        5
        when
            wallet.create_user ann                          -> account_exists
        then
            user:ann:USD        5
        """
    )


def test_user_with_other_currency_gets_grant():
    play(
        """
        given
            user:ann:BTC        5
        when
            wallet.create_user ann                          -> done
        then
            user:ann:USD        1
        """
    )


def test_bet_moves_stake():
    play(
        ANN_WITH_BET
        + """
        then
            user:ann:USD        0.9
            house:wallet:USD    0.1
        """
    )


def test_bet_of_everything_and_one_more():
    play(
        ANN
        + """
            [b1] wallet.bet ann 100000 USD g none b1        -> done balance=0
            [b2] wallet.bet ann 1 USD g none b2             -> insufficient_funds balance=0 needed=0.00001
            [b2] wallet.bet ann 0 USD g none b2             -> done balance=0
        then
            user:ann:USD        0
        """
    )


def test_bet_too_large_for_any_balance():
    play(
        ANN
        + f"""
            [b1] wallet.bet ann {10**37} USD g none b1      -> insufficient_funds balance=100000
        """
    )


def test_bet_of_zero_moves_nothing():
    play(
        ANN
        + """
            [b1] wallet.bet ann 0 USD g none b1             -> done balance=100000
            [b1] wallet.bet ann 0 USD g none b1             -> replayed balance=100000
        then
            user:ann:USD        1
            house:wallet:USD    -
        """
    )


def test_bet_respects_holds_and_shows_available():
    play(
        ANN
        + """
            place_hold user:ann:USD USD 0.95                -> done
            [b1] wallet.bet ann 5001 USD g none b1          -> insufficient_funds balance=5000 held=0.95
            [b1] wallet.bet ann 5000 USD g none b1          -> done balance=0
        """
    )


def test_balance_is_rounded_down():
    play(
        """
        given
            user:ann:USD        0.000019
        when
            [b1] wallet.bet ann 2 USD g none b1             -> insufficient_funds balance=1
            [b1] wallet.bet ann 1 USD g none b1             -> done balance=0
        then
            user:ann:USD        0.000009
        """
    )


def test_bet_in_any_currency_the_user_has():
    play(
        """
        given
            user:ann:BTC        1
            user:ann:GC         1
        when
            [b1] wallet.bet ann 5000 BTC g none b1          -> done balance=95000 currency=BTC
            [b2] wallet.bet ann 5000 GC g none b2           -> done balance=95000 currency=GC
            [b3] wallet.bet ann 5000 USD g none b3          -> currency_mismatch
            [b4] wallet.bet ann 5000 nonsense:x g none b4   -> currency_mismatch
            [w1] wallet.win ann 100 BTC g none b2 w1        -> currency_mismatch
            [w1] wallet.win ann 100 GC g none b2 w1         -> done balance=95100
        then
            house:wallet:BTC    0.05
            house:wallet:GC     0.049
        """
    )


def test_bet_on_closed_account():
    play(
        """
        given
            user:ann:USD
        when
            close_account user:ann:USD                      -> done
            [b1] wallet.bet ann 0 USD g none b1             -> currency_mismatch
        """
    )


def test_bet_on_credit():
    play(
        """
        given
            user:ann:USD        0 floor -0.5
        when
            [b1] wallet.bet ann 50000 USD g none b1         -> done balance=-50000
            [b2] wallet.bet ann 1 USD g none b2             -> insufficient_funds balance=-50000
        """
    )


def test_duplicate_gets_first_answer_whatever_changed():
    play(
        ANN_WITH_BET
        + """
            [b2] wallet.bet ann 90000 USD g none b2         -> done balance=0
            wallet.lock_user ann true                       -> done
            [b1] wallet.bet ann 10000 USD g none b1         -> replayed balance=90000
        """
    )


def test_duplicate_compares_what_counts():
    play(
        ANN_WITH_BET
        + """
            wallet.create_user bob                          -> done
            [b1] wallet.bet ann 10001 USD g none b1         -> key_reused field=amount
            [b1] wallet.bet ann 10000 EUR g none b1         -> key_reused field=currency
            [b1] wallet.bet ann 10000 USD h none b1         -> key_reused field=game
            [b1] wallet.bet ann 10000 USD g r b1            -> key_reused field=round
            [b1] wallet.bet bob 10000 USD g none b1         -> key_reused field=user
            [b1] wallet.win ann 10000 USD g none b1 b1      -> key_reused field=command
            [b1] wallet.rollback ann g none b1              -> key_reused field=command
            [b1] wallet.bet ann 10000 USD g none b1 bar=session_expired echo=x -> replayed balance=90000
        then
            user:ann:USD        0.9
        """
    )


def test_unknown_user_goes_before_duplicate():
    play(
        ANN_WITH_BET
        + """
            [b1] wallet.bet nobody 10000 USD g none b1      -> user_not_found
            [b1] wallet.win nobody 10000 USD g none b1 b1   -> user_not_found
            [b1] wallet.rollback nobody g none b1           -> user_not_found
        """
    )


def test_refusal_frees_the_key():
    play(
        ANN
        + """
            [b1] wallet.bet ann 100001 USD g none b1        -> insufficient_funds
            [b1] wallet.bet ann 100000 USD g none b1        -> done
        """
    )


def test_win_pays():
    play(
        ANN_WITH_BET
        + """
            [w1] wallet.win ann 35000 USD g none b1 w1      -> done balance=125000
            [w1] wallet.win ann 35000 USD g none b1 w1      -> replayed balance=125000
            [w1] wallet.win ann 35000 USD g none b2 w1      -> key_reused field=reference
        then
            user:ann:USD        1.25
            house:wallet:USD    -0.25
        """
    )


def test_win_without_bet():
    play(
        ANN_WITH_BET
        + """
            wallet.create_user bob                          -> done
            [w1] wallet.win ann 1 USD g none nothing w1     -> transaction_not_found
            [w1] wallet.win bob 1 USD g none b1 w1          -> transaction_not_found   # ann's bet
            [w1] wallet.win ann 1 USD g none b1 w1          -> done
            [w2] wallet.win ann 1 USD g none w1 w2          -> transaction_not_found   # a win
        """
    )


def test_several_wins_until_round_closed():
    play(
        ANN_WITH_BET
        + """
            [w1] wallet.win ann 1 USD g none b1 w1          -> done balance=90001
            [w2] wallet.win ann 2 USD g none b1 w2          -> done balance=90003
            [w3] wallet.win ann 0 USD g none b1 w3 true     -> done balance=90003
            [w4] wallet.win ann 4 USD g none b1 w4          -> round_closed
            [w3] wallet.win ann 0 USD g none b1 w3          -> replayed balance=90003
        """
    )


def test_one_win_per_bet():
    play(
        ANN_WITH_BET
        + """
            [w1] wallet.win ann 1 USD g none b1 w1 is_single=true   -> done
            [w2] wallet.win ann 1 USD g none b1 w2 is_single=true   -> transaction_has_win
        """
    )


def test_win_too_large_for_the_book():
    play(
        ANN_WITH_BET
        + f"""
            [w1] wallet.win ann {10**37} USD g none b1 w1   -> balance_too_large
        """
    )


def test_rollback_gives_stake_back_once():
    play(
        ANN_WITH_BET
        + """
            [r1] wallet.rollback ann g none b1              -> done balance=100000
            [r1] wallet.rollback ann g none b1              -> replayed balance=100000
            [r2] wallet.rollback ann g none b1              -> done balance=100000
            [r1] wallet.rollback ann g none b2              -> key_reused field=reference
            [w1] wallet.win ann 1 USD g none b1 w1          -> transaction_not_found
            [b1] wallet.bet ann 10000 USD g none b1         -> replayed balance=90000
        then
            user:ann:USD        1
            house:wallet:USD    0
        """
    )


def test_rollback_of_zero_bet():
    play(
        ANN
        + """
            [b1] wallet.bet ann 0 USD g none b1             -> done
            [r1] wallet.rollback ann g none b1              -> done balance=100000
            [w1] wallet.win ann 1 USD g none b1 w1          -> transaction_not_found
        """
    )


def test_rollback_before_bet_leaves_tombstone():
    play(
        ANN
        + """
            [r1] wallet.rollback ann g none b1              -> done balance=100000 currency=USD
            [r2] wallet.rollback ann g none b1              -> done balance=100000
            [b1] wallet.bet ann 10000 USD g none b1         -> transaction_rolled_back
            [w1] wallet.win ann 1 USD g none b1 w1          -> transaction_not_found
            [r3] wallet.rollback ann g none b1              -> done balance=100000
            [r4] wallet.rollback ann g none b9              -> done
            [b9] wallet.bet ann 10000 USD g none b9         -> transaction_rolled_back
            [b2] wallet.bet ann 10000 USD g none b2         -> done balance=90000
        then
            user:ann:USD        0.9
        """
    )


def test_rollback_and_late_bet_in_one_batch():
    play(
        ANN
        + """
            [r1] wallet.rollback ann g none b1              -> done
            & [b1] wallet.bet ann 10000 USD g none b1       -> transaction_rolled_back
            [b2] wallet.bet ann 10000 USD g none b2         -> done
            & [w2] wallet.win ann 5 USD g none b2 w2        -> done balance=90005
            & [r2] wallet.rollback ann g none w2            -> done balance=90000
            & [r3] wallet.rollback ann g none b2            -> done balance=100000
        """
    )


def test_tombstone_is_its_users_own():
    play(
        ANN
        + """
            wallet.create_user bob                          -> done
            [r1] wallet.rollback ann g none b1              -> done
            [b1] wallet.bet bob 10000 USD g none b1         -> done balance=90000
            [w1] wallet.win bob 1 USD g none b1 w1          -> done balance=90001
            [r2] wallet.rollback ann g none b1              -> transaction_not_found
        """
    )


def test_rollback_shows_first_currency_where_nothing_came():
    play(
        """
        given
            user:ann:BTC        2
            user:ann:EUR        3
        when
            [r1] wallet.rollback ann g none b1              -> done balance=200000 currency=BTC
        """
    )


def test_rollback_shows_usd_if_open_else_first_open():
    play(
        """
        given
            user:ann:BTC        2
            user:ann:USD
            user:ann:EUR        3
        when
            [r1] wallet.rollback ann g none b1              -> done balance=0 currency=USD
            close_account user:ann:USD                      -> done
            [r2] wallet.rollback ann g none b1              -> done balance=200000 currency=BTC
            transfer user:ann:BTC world:BTC BTC 2           -> done
            close_account user:ann:BTC                      -> done
            [r3] wallet.rollback ann g none b1              -> done balance=300000 currency=EUR
            transfer user:ann:EUR world:EUR EUR 3           -> done
            close_account user:ann:EUR                      -> done
            [r4] wallet.rollback ann g none b1              -> done balance=0 currency=BTC
        """
    )


def test_rollback_of_unknown_user_and_with_other_fields():
    play(
        ANN_WITH_BET
        + """
            [r1] wallet.rollback nobody g none b1           -> user_not_found
            [r1] wallet.rollback ann g none b1              -> done
            [r1] wallet.rollback ann h none b1              -> key_reused field=game
            [r1] wallet.rollback ann g r b1                 -> key_reused field=round
        """
    )


def test_rollback_of_bet_waits_for_all_its_wins():
    play(
        ANN_WITH_BET
        + """
            [w1] wallet.win ann 1 USD g none b1 w1          -> done
            [w2] wallet.win ann 2 USD g none b1 w2          -> done
            [w3] wallet.win ann 3 USD g none b1 w3          -> done
            [r1] wallet.rollback ann g none b1              -> transaction_has_win wins=3
            [r2] wallet.rollback ann g none w2              -> done
            [r1] wallet.rollback ann g none b1              -> transaction_has_win wins=2
            [r3] wallet.rollback ann g none w1              -> done
            [r4] wallet.rollback ann g none w3              -> done
            [r1] wallet.rollback ann g none b1              -> done balance=100000
        """
    )


def test_rollback_of_bet_with_win():
    play(
        ANN_WITH_BET
        + """
            [w1] wallet.win ann 5000 USD g none b1 w1 true  -> done balance=95000
            [r1] wallet.rollback ann g none b1              -> transaction_has_win wins=1
            [r1] wallet.rollback ann g none w1              -> done balance=90000
            [r2] wallet.rollback ann g none w1              -> done balance=90000
            [w2] wallet.win ann 1 USD g none b1 w2          -> done balance=90001   # open again
            [r3] wallet.rollback ann g none w2              -> done balance=90000
            [r4] wallet.rollback ann g none b1              -> done balance=100000
        then
            user:ann:USD        1
            house:wallet:USD    0
        """
    )


def test_rollback_of_win_leaves_the_other_winner_closing():
    play(
        ANN_WITH_BET
        + """
            [w1] wallet.win ann 1 USD g none b1 w1          -> done
            [w2] wallet.win ann 2 USD g none b1 w2 true     -> done
            [r1] wallet.rollback ann g none w1              -> done
            [w3] wallet.win ann 2 USD g none b1 w3          -> round_closed
        """
    )


def test_rollback_of_spent_win_is_owed_and_paid_back_first():
    play(
        ANN_WITH_BET
        + """
            [w1] wallet.win ann 10000 USD g none b1 w1      -> done balance=100000
            [b2] wallet.bet ann 95000 USD g none b2         -> done balance=5000
            [r1] wallet.rollback ann g none w1              -> done balance=0
        then
            user:ann:USD        0 owed 0.05
            owed:user:ann:USD   -0.05
        when
            [w2] wallet.win ann 3000 USD g none b2 w2       -> done balance=0
            [w3] wallet.win ann 3000 USD g none b2 w3       -> done balance=1000
        then
            user:ann:USD        0.01 owed 0
            owed:user:ann:USD   0
        """
    )


def test_rollback_of_win_on_closed_account_is_owed():
    play(
        """
        given
            user:ann:USD        0.1
        when
            [b1] wallet.bet ann 10000 USD g none b1         -> done balance=0
            [w1] wallet.win ann 100 USD g none b1 w1        -> done balance=100
            transfer user:ann:USD world:USD USD 0.001       -> done
            close_account user:ann:USD                      -> done
            [r1] wallet.rollback ann g none w1              -> done balance=0
            [r2] wallet.rollback ann g none b1              -> account_closed
        then
            user:ann:USD        0 owed 0.001 closed
        """
    )


def test_rollback_of_what_is_no_bet():
    play(
        ANN_WITH_BET
        + """
            wallet.create_user bob                          -> done
            [r1] wallet.rollback bob g none b1              -> transaction_not_found
            [r1] wallet.rollback ann g none b1              -> done
            [r2] wallet.rollback ann g none r1              -> transaction_not_found
        """
    )


def test_abandoned_bet():
    play(
        ANN
        + """
            [b1] abandon wallet                             -> done
            [b1] wallet.bet ann 1 USD g none b1             -> key_abandoned
            [w1] wallet.win ann 1 USD g none b1 w1          -> transaction_not_found
            [r1] wallet.rollback ann g none b1              -> transaction_not_found
        """
    )


def test_locked_user_may_not_bet_but_is_paid():
    play(
        ANN_WITH_BET
        + """
            wallet.lock_user ann true                       -> done is_disabled=true
            [b2] wallet.bet ann 1 USD g none b2             -> user_disabled
            [w1] wallet.win ann 1 USD g none b1 w1          -> done balance=90001
            [r1] wallet.rollback ann g none w1              -> done balance=90000
            [r2] wallet.rollback ann g none b9              -> done
            [b3] wallet.bet ann 1 USD g none b3             -> user_disabled
            wallet.lock_user ann false                      -> done
            [b2] wallet.bet ann 1 USD g none b2             -> done balance=89999
            [b9] wallet.bet ann 1 USD g none b9             -> transaction_rolled_back
            wallet.lock_user nobody true                    -> user_not_found
        """
    )


def test_bars_are_weighed_in_their_place():
    play(
        ANN
        + """
            [b1] wallet.bet ann 1 USD g none b1 bar=session_unknown     -> session_unknown
            [b1] wallet.bet ann 1 USD g none b1 bar=session_expired     -> session_expired
            [b1] wallet.bet ann 1 USD g none b1 bar=game_unknown        -> game_unknown
            [b1] wallet.bet ann 1 USD g none b1 bar=currency_mismatch   -> currency_mismatch
            [b1] wallet.bet ann 1 USD g none b1 bar=limit_reached       -> limit_reached
            [b1] wallet.bet ann 1 EUR g none b1 bar=limit_reached       -> currency_mismatch
            [b1] wallet.bet ann 1 EUR g none b1 bar=session_expired     -> session_expired
            [b1] wallet.bet ann 1 USD g none b1                         -> done
            [w1] wallet.win ann 1 USD g none b1 w1 bar=currency_mismatch -> currency_mismatch
        """
    )


def test_user_ids_are_escaped():
    stage = play(
        """
        when
            wallet.create_user a:b%c                        -> done user=a:b%c
            [b1] wallet.bet a:b%c 1 USD g none b1           -> done balance=99999
            [r1] wallet.rollback a:b%c g none late          -> done
            [late] wallet.bet a:b%c 1 USD g none late       -> transaction_rolled_back
        """
    )
    assert stage.posted("user:a%3Ab%25c:USD") == "0.99999"


def test_user_id_that_can_be_none():
    stage = Stage()
    for command in (
        CreateUser(""),
        Bet("", 1, "USD", "g", None, "b"),
        Win("x" * 256, 1, "USD", "g", None, "b", "w"),
        Rollback("a\nb", "g", None, "b"),
    ):
        outcome = stage.execute(command)
        assert isinstance(outcome, Refusal)
        assert outcome.reason is Reason.USER_ID_INVALID


def test_coarse_currency():
    assets = (*BUILT_IN, Asset("JPY", 2, 99))
    stage = Stage(assets=assets)
    stage.fund("user:ann:JPY", "1")
    refused = stage.execute(Bet("ann", 1, "JPY", "g", None, "b1"), key="b1")
    assert isinstance(refused, Refusal)
    assert refused.reason is Reason.AMOUNT_TOO_FINE
    done = stage.execute(Bet("ann", 3_000, "JPY", "g", None, "b1"), key="b1")
    assert isinstance(done, Receipt)
    assert done.answer.balance == 97_000


def test_units_are_rounded_down():
    assert in_wallet_units(1_999_999, 10) == 19
    assert in_wallet_units(-1, 10) == -1
    assert in_wallet_units(3, 5) == 3
    assert in_wallet_units(3, 2) == 3_000

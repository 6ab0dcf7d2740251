"""The table language itself, and the ledger's verbs in it."""

from scenarios import play


def test_scenarios_docstring_example():
    play("""
        given
            user:1:USD      100
            user:2:USD
        when
            transfer user:1:USD user:2:USD USD 30       -> done amount=30
            transfer user:1:USD user:2:USD USD 80       -> insufficient_funds available=70
            [k1] place_hold user:2:USD USD 10           -> done id=1
            wait 60
            [k1] place_hold user:2:USD USD 10           -> replayed id=1
            transfers
                | user:1:USD user:2:USD USD 5
                | user:2:USD user:1:USD USD 1
            &transfer user:1:USD user:2:USD USD 4
        then
            user:1:USD      62
            user:2:USD      38 held 10
            hold 1          open remaining 10
    """)

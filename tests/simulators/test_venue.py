"""The simulated venue: what it sends for which withdrawal, and when."""

from decimal import Decimal

import msgspec
import pytest

from pennyweight.delivery.settlements import settlement_in
from pennyweight.ledger.refusals import Refused
from pennyweight.simulators.venue import Accepted, Odds, Venue, messages_of


def withdrawal(number, quantity="0.5"):
    return Accepted(str(100 + number), f"w-{number}", "BTC", quantity)


def sent(odds, count=200, seed=1):
    return [
        (one, message)
        for one in map(withdrawal, range(count))
        for message in messages_of(one, odds, seed)
    ]


def trade(message):
    return msgspec.json.decode(message.value)


def test_venue_settles_each_withdrawal_once_for_at_most_what_is_held():
    for one, message in sent(Odds(delay=3)):
        settlement = settlement_in(message.value)
        assert message.kind == "settled"
        assert settlement.user == message.key == one.user_id
        assert settlement.withdrawal_id == one.withdrawal_id
        assert settlement.sold_token == "BTC" != settlement.bought_token
        assert Decimal("0.45") <= Decimal(settlement.sold_quantity) <= Decimal("0.5")
        assert Decimal(settlement.bought_quantity) > 0
        assert 0 <= message.after <= 3


def test_venue_repeats_itself_for_the_same_seed():
    odds = Odds(over_fill=0.3, duplicates=0.3, rubbish=0.3, invented=0.2, unsolicited=0.2)
    assert sent(odds) == sent(odds) != sent(odds, seed=2)


def test_venue_over_fills_and_cancels():
    fates = [
        (message.kind, trade(message)["sold_quantity"])
        for _, message in sent(Odds(over_fill=0.4, unfilled=0.3))
    ]
    assert {kind for kind, _ in fates} == {"settled", "over_filled", "cancelled"}
    assert all(Decimal(sold) > Decimal("0.5") for kind, sold in fates if kind == "over_filled")
    assert all(sold == "0" for kind, sold in fates if kind == "cancelled")


def test_venue_duplicates_are_the_same_bytes():
    messages = [message for _, message in sent(Odds(duplicates=1), count=20)]
    assert [message.kind for message in messages] == ["settled", "duplicate"] * 20
    assert all(a.value == b.value for a, b in zip(messages[::2], messages[1::2], strict=True))


def test_venue_unnamed_settlements_have_an_id_of_their_own():
    for _, message in sent(Odds(unnamed=1), count=20):
        assert "withdrawal_id" not in trade(message)
        assert trade(message)["settlement_id"]


def test_venue_unsolicited_trades_settle_nothing():
    extra = [m for _, m in sent(Odds(unsolicited=1), count=20) if m.kind == "unsolicited"]
    assert len(extra) == 20
    assert all(trade(message)["withdrawal_id"].startswith("no-") for message in extra)


def test_venue_rubbish_is_no_settlement():
    rubbish = [m for _, m in sent(Odds(rubbish=1)) if m.kind == "rubbish"]
    assert len({message.value for message in rubbish}) > 50
    for message in rubbish:
        with pytest.raises(Refused):
            settlement_in(message.value)


def test_venue_sends_what_is_due_in_the_order_of_time():
    venue = Venue(Odds(delay=10), seed=1)
    venue.take(map(withdrawal, range(50)), now=100.0)
    assert venue.due(100.0, 10) == []
    first = venue.due(105.0, 1_000)
    rest = venue.due(111.0, 1_000)
    assert 0 < len(first) < 50 == len(first) + len(rest)
    assert [message.after for message in first + rest] == sorted(
        message.after for message in first + rest
    )
    assert (venue.waiting, venue.accepted, venue.sent["settled"]) == (0, 50, 50)


@pytest.mark.parametrize("quantity", ["1", "0.00000001", "12345.678", "3.123456789012345678"])
def test_venue_reads_any_quantity(quantity):
    (message,) = messages_of(withdrawal(1, quantity), Odds(), seed=3)
    assert Decimal(trade(message)["sold_quantity"]) <= Decimal(quantity)

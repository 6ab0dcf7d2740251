"""Account ids: readable, escaped, and nobody but the book opens its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pennyweight.ledger.accounts import (
    ACCOUNTS_PER_HOLDER_MAX,
    HOLDS_OPEN_MAX,
    Account,
    asset_of,
    check_account_id,
    escape_user_id,
    holder_of,
    is_bounded,
    is_customer,
    owed_account,
    unescape_user_id,
    user_account,
    user_holder,
)
from pennyweight.ledger.assets import BUILT_IN, SCALE_MAX, is_asset_name
from pennyweight.ledger.draft import TRANSFERS_MAX
from pennyweight.ledger.refusals import Refused


@pytest.mark.parametrize(
    ("account_id", "holder", "asset"),
    [
        ("user:100:BTC", "user:100", "BTC"),
        ("user:100:savings:BTC", "user:100", "BTC"),
        ("account:7:USD", "account:7", "USD"),
        ("world:BTC", "world", "BTC"),
        ("house:wallet:USD", "house:wallet", "USD"),
        ("owed:user:100:BTC", "user:100", "BTC"),
        ("owed:account:7:USD", "account:7", "USD"),
        ("owed:house:USD", "house", "USD"),
        ("venue:one:GC", "venue:one", "GC"),
        ("user:a%3Ab:USD", "user:a%3Ab", "USD"),
        ("fees:USD", "fees", "USD"),
    ],
)
def test_account_id_names_holder_and_asset(account_id, holder, asset):
    assert holder_of(account_id) == holder
    assert asset_of(account_id) == asset


@pytest.mark.parametrize(
    ("holder", "bounded", "customer"),
    [
        ("user:1", True, True),
        ("account:1", True, True),
        ("fees", True, False),
        ("loan:1", True, False),
        ("users:1", True, False),
        ("world", False, False),
        ("house", False, False),
        ("house:wallet", False, False),
        ("suspense", False, False),
        ("venue:one", False, False),
        ("owed:user:1:USD", False, False),
    ],
)
def test_holder_bounded_and_customer(holder, bounded, customer):
    assert is_bounded(holder) is bounded
    assert is_customer(holder) is customer


@pytest.mark.parametrize(
    ("user_id", "segment"),
    [
        ("100", "100"),
        ("a:b", "a%3Ab"),
        ("100%", "100%25"),
        ("%3A", "%253A"),
        ("%253A", "%25253A"),
        ("ä b", "ä b"),
        ("\u0663", "\u0663"),
        (":" * 255, "%3A" * 255),
    ],
)
def test_escape_user_id(user_id, segment):
    assert escape_user_id(user_id) == segment
    assert unescape_user_id(segment) == user_id


@pytest.mark.parametrize("user_id", ["", "x" * 256, "a\nb", "\x00", "\x7f", "a\ud800", "\udfff"])
def test_escape_user_id_refused(user_id):
    with pytest.raises(Refused) as caught:
        escape_user_id(user_id)
    assert caught.value.reason.code == "user_id_invalid"


@given(st.text(min_size=1, max_size=255), st.text(min_size=1, max_size=255))
def test_escape_user_id_injective(one, other):
    """No user can be spelled like another one, whatever their ids contain."""
    try:
        first, second = escape_user_id(one), escape_user_id(other)
    except Refused:
        return
    assert ":" not in first
    assert unescape_user_id(first) == one
    assert (first == second) == (one == other)
    assert holder_of(user_account(one, "USD")) == user_holder(one) == f"user:{first}"


@given(st.text(alphabet="ab:%", min_size=1, max_size=120))
def test_user_account_is_an_account_id(user_id):
    check_account_id(user_account(user_id, "USD"))


@pytest.mark.parametrize(
    "account_id",
    ["user:1:USD", "user:1:savings:USD", "account:1:BTC", "world:USD", "fees:USD", "a b:USD"],
)
def test_check_account_id_accepts(account_id):
    check_account_id(account_id)


@pytest.mark.parametrize(
    "account_id",
    [
        "", "USD", ":", "user:USD", "account:USD", "user::USD", ":1:USD", "user:1:", "user:1:usd",
        "fees:", "fees:US D", "fees:1USD", "a\n:USD", "a\x7f:USD", "\ud800:USD", "x\udfff:USD", "fees:USD\n",
        "x" * 507 + ":USD", "user:1:" + "A" * 33, "owed:user:1:USD", "suspense:USD", "owed:USD",
    ],
)  # fmt: skip
def test_check_account_id_refuses(account_id):
    with pytest.raises(Refused) as caught:
        check_account_id(account_id)
    assert caught.value.reason.code == "account_id_invalid"


def test_check_account_id_length():
    check_account_id("x" * 506 + ":USD")


@pytest.mark.parametrize("account_id", ["owed:user:1:USD", "suspense:USD"])
def test_check_account_id_own_ones(account_id):
    check_account_id(account_id, is_own=True)


def test_owed_account_of_a_user_belongs_to_the_user():
    assert owed_account("user:1:USD") == "owed:user:1:USD"
    assert holder_of(owed_account("user:1:USD")) == "user:1"


def test_account_available():
    account = Account(1, "user:1:USD", "user:1", "USD", 0, posted=10, held=3)
    assert account.available == 7


@pytest.mark.parametrize("name", ["USD", "A", "A1", "USD.X", "US-D", "U_S", "A" * 32])
def test_asset_name(name):
    assert is_asset_name(name)


@pytest.mark.parametrize(
    "name", ["", "usd", "1A", "-A", "A:B", "A B", "A\n", "Ä", "A" * 33, "A\u0661"]
)
def test_asset_name_refused(name):
    assert not is_asset_name(name)


def test_assets_built_in():
    """Contract 2: scales and the currency ids of the payments face."""
    shown = [(asset.name, asset.scale, asset.currency_id) for asset in BUILT_IN]
    assert shown == [
        ("USD", 18, 1), ("RUB", 18, 2), ("BTC", 18, 3), ("ETC", 18, 4), ("EUR", 18, 5),
        ("BCH", 18, 6), ("ETH", 18, 7), ("GC", 24, 8), ("BESKAR", 24, 9),
    ]  # fmt: skip
    assert SCALE_MAX == 30


def test_bounds_of_the_ledger():
    """Contract 1 fixes the first; the others keep one command, and one holder, small."""
    assert (TRANSFERS_MAX, HOLDS_OPEN_MAX, ACCOUNTS_PER_HOLDER_MAX) == (64, 1_000, 1_000)

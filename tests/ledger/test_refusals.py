"""The walk of all refusals: each one provoked, and where two apply, the earlier one given.

Each command has a request that would succeed on one common book, and a list of defects:
changes of that request that provoke one reason each. Every defect is tried alone and with
every other that changes other fields. Since a refusal leaves nothing, all share the book.
"""

import ast
import inspect
import itertools
from pathlib import Path

import msgspec
import pytest

import pennyweight.ledger
from pennyweight.engine import engine as engine_module
from pennyweight.engine.engine import Abandon, Submission
from pennyweight.engine.receipts import Receipt, Refusal
from pennyweight.ledger import letters
from pennyweight.ledger.accounts import ACCOUNTS_PER_HOLDER_MAX, HOLDS_OPEN_MAX
from pennyweight.ledger.letters import Message
from pennyweight.ledger.refusals import Kind, Reason
from pennyweight.products import general
from pennyweight.products.general import (
    CloseAccount,
    ExpireHold,
    LoadBalances,
    OpenAccount,
    PlaceHold,
    RegisterAsset,
    Reverse,
    SettleHold,
    Transfer,
    TransferItem,
    Transfers,
    VoidHold,
)
from pennyweight.products.loans import apply, life, liquidate
from pennyweight.products.loans import shared as loans_shared
from pennyweight.products.loans.apply import ApplyForLoan, TopUpCollateral
from pennyweight.products.loans.life import ActivateLoan, RearmWarning, SetLiquidations, WarnLoan
from pennyweight.products.loans.liquidate import (
    BeginLiquidation,
    FailSlice,
    FillSlice,
    PlaceSlices,
)
from pennyweight.products.loans.shared import LEVELS, ONE, Level, Quote
from pennyweight.products.portfolios import execute, orders, plan, queue, rebalance, runs, setup
from pennyweight.products.portfolios import shared as portfolios_shared
from pennyweight.products.portfolios.execute import ExecuteTransactions, Fill
from pennyweight.products.portfolios.letters import (
    CloseUpdateLetter,
    ReplayUpdate,
    SetAsideUpdate,
)
from pennyweight.products.portfolios.queue import QueueUpdate, TakeUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import ChangeTarget, CreatePortfolio, SetPolicy
from pennyweight.products.portfolios.shared import Holding, Policy
from pennyweight.products.withdrawals import controls, settle, shared, withdraw
from pennyweight.products.withdrawals.controls import SetLimits, SetMode
from pennyweight.products.withdrawals.settle import (
    CloseLetter,
    ReplaySettlement,
    SetAside,
    Settle,
)
from pennyweight.products.withdrawals.withdraw import (
    CancelWithdrawal,
    ExpireWithdrawal,
    Withdraw,
)
from probes import probe
from scenarios import START, Stage

ORDER = {reason.code: place for place, reason in enumerate(Reason)}
LARGEST = "9" * 20
FAR = START + 10**15


class Defect(msgspec.Struct):
    """Fields to change and options of the submission that provoke a reason by themselves."""

    code: str
    fields: dict[str, object] = {}
    key: str = ""
    not_after: int | None = None


KEYS = [
    Defect("not_after_passed", not_after=START - 1),
    Defect("key_abandoned", key="abandoned"),
    Defect("key_reused", key="used"),
]
AMOUNTS = [
    Defect("amount_invalid", {"amount": "ten"}),
    Defect("amount_not_positive", {"amount": "-1"}),
    Defect("amount_not_positive", {"amount": "0"}),
    Defect("amount_too_large", {"amount": "1e30"}),
    Defect("amount_too_fine", {"amount": "1e-19"}),
]
UNLIMITED = {"world:USD", "house:held:USD"}
FUNDS = [Defect("insufficient_funds", {"amount": "1000"})]


def defect(code, **fields):
    return Defect(code, fields)


TRANSFER = (
    Transfer("user:1:USD", "user:2:USD", "USD", "10"),
    [
        *KEYS,
        *AMOUNTS,
        *FUNDS,
        defect("effective_at_in_future", effective_at=FAR),
        defect("account_id_invalid", debit_account="world:usd"),
        defect("account_id_invalid", credit_account="house:a\n:USD"),
        defect("asset_unknown", asset="XXX"),
        defect("asset_unknown", credit_account="world:XXX"),
        defect("same_account", debit_account="user:1:USD", credit_account="user:1:USD"),
        defect("same_account", debit_account="world:USD", credit_account="world:USD"),
        defect("same_account", debit_account="nobody:USD", credit_account="nobody:USD"),
        defect("account_not_found", debit_account="user:99:USD"),
        defect("account_not_found", credit_account="user:99:USD"),
        defect("account_not_found", credit_account="owed:user:99:USD"),
        defect("account_not_found", credit_account="rubbish"),
        defect("owned_by_product", debit_account="owed:user:owing:USD"),
        defect("owned_by_product", credit_account="owed:user:owing:USD"),
        defect("asset_mismatch", asset="BTC"),
        defect("asset_mismatch", credit_account="user:2:BTC"),
        defect("asset_mismatch", credit_account="user:closed:BTC"),
        defect("account_closed", debit_account="user:closed:USD"),
        defect("account_closed", credit_account="user:closed:USD"),
        defect("balance_too_large", credit_account="user:rich:USD"),
        defect("balance_too_large", debit_account="world:USD"),
    ],
)
OPEN_ACCOUNT = (
    OpenAccount("user:new:USD", "-5"),
    [
        *KEYS,
        defect("account_id_invalid", account="user:new"),
        defect("account_id_invalid", account="owed:user:1:XXX"),
        defect("account_id_invalid", account="suspense:USD"),
        defect("asset_unknown", account="user:new:XXX"),
        defect("amount_invalid", floor="low"),
        defect("amount_too_large", floor="-1e30"),
        defect("amount_too_fine", floor="-1e-19"),
        defect("floor_invalid", floor="5"),
        defect("owned_by_product", account="account:7:USD"),  # numbered by payments
        defect("account_exists", account="user:1:USD"),
        defect("account_exists", account="user:closed:USD"),
        defect("too_many_accounts", account="user:many:one-more:USD"),
    ],
)
CLOSE_ACCOUNT = (
    CloseAccount("user:empty:USD"),
    [
        *KEYS,
        defect("account_not_found", account="user:99:USD"),
        defect("account_not_found", account="\n"),
        defect("owned_by_product", account="world:USD"),
        defect("owned_by_product", account="house:USD"),
        defect("owned_by_product", account="owed:user:owing:USD"),  # with a balance besides
        defect("account_closed", account="user:closed:USD"),
        defect("account_has_holds", account="user:holding:USD"),  # with a balance besides
        defect("account_has_balance", account="user:1:USD"),
        defect("account_owes", account="user:owing:USD"),
    ],
)
PLACE_HOLD = (
    PlaceHold("user:1:USD", "USD", "10", 60),
    [
        *KEYS,
        *AMOUNTS,
        *FUNDS,
        defect("account_id_invalid", account="world:usd"),
        defect("asset_unknown", asset="XXX"),
        defect("asset_unknown", account="house:XXX"),
        defect("expiry_invalid", expires_in_seconds=0),
        defect("expiry_invalid", expires_in_seconds=-1),
        defect("expiry_invalid", expires_in_seconds=10 * 366 * 86_400 + 1),
        defect("expiry_invalid", expires_in_seconds=10**30),
        defect("account_not_found", account="user:99:USD"),
        defect("account_not_found", account="owed:user:99:USD"),
        defect("owned_by_product", account="owed:user:owing:USD"),
        defect("asset_mismatch", asset="BTC"),
        defect("asset_mismatch", account="user:2:BTC"),
        defect("account_closed", account="user:closed:USD"),
        defect("too_many_holds", account="user:busy:USD"),
        defect("balance_too_large", account="house:held:USD"),
    ],
)
# The holds of the book: see `build`.
OPEN, SETTLED, VOIDED, EXPIRED, OVERDUE, FOREIGN = range(1, 7)
HOLDS = [
    defect("hold_not_found", hold=0),
    defect("hold_not_found", hold=-1),
    defect("hold_not_found", hold=9_999),
    defect("hold_not_found", hold=10**30),
    defect("hold_already_settled", hold=SETTLED),
    defect("hold_already_voided", hold=VOIDED),
    defect("hold_expired", hold=EXPIRED),
]
SETTLE_HOLD = (
    SettleHold(OPEN, "10", "user:2:USD"),
    [
        *KEYS,
        *AMOUNTS[:3],
        defect("amount_too_large", amount="1e38"),  # else it depends on the hold's asset
        *FUNDS,
        *HOLDS,
        defect("owned_by_product", hold=FOREIGN),
        defect("owned_by_product", credit_account="owed:user:owing:USD"),
        defect("hold_expired", hold=OVERDUE),
        defect("account_id_invalid", credit_account="world:usd"),
        defect("asset_unknown", credit_account="world:XXX"),
        defect("account_not_found", credit_account="user:99:USD"),
        defect("account_not_found", credit_account="owed:user:99:USD"),
        defect("asset_mismatch", credit_account="user:2:BTC"),
        defect("account_closed", credit_account="user:closed:USD"),
        defect("balance_too_large", credit_account="user:rich:USD"),
    ],
)
VOID_HOLD = (VoidHold(OPEN), [*KEYS, *HOLDS, defect("owned_by_product", hold=FOREIGN)])
EXPIRE_HOLD = (ExpireHold(OVERDUE), [*KEYS, *HOLDS, defect("hold_not_due", hold=OPEN)])
LOAD_BALANCES = (
    LoadBalances("new", (("USD", "1"),)),
    [
        *KEYS,
        defect("too_many_transfers", balances=()),
        defect("too_many_transfers", balances=(("XXX", "ten"),) * 65),
        defect("user_id_invalid", user=""),
        defect("user_id_invalid", user="\x00"),
        defect("asset_unknown", balances=(("XXX", "1"),)),
        defect("amount_invalid", balances=(("USD", "ten"),)),
        defect("amount_not_positive", balances=(("USD", "-1"),)),
        defect("amount_too_large", balances=(("USD", "1e30"),)),
        defect("amount_too_fine", balances=(("USD", "1e-19"),)),
        defect("account_closed", user="closed"),
        defect("too_many_accounts", user="many", balances=(("BTC", "1"),)),
        defect("balance_too_large", user="rich"),
    ],
)
REGISTER_ASSET = (
    RegisterAsset("NEW", 2, 100),
    [
        *KEYS,
        defect("asset_invalid", asset="new"),
        defect("asset_invalid", scale=31),
        defect("asset_invalid", scale=-1),
        defect("asset_invalid", currency_id=0),
        defect("asset_scale_fixed", asset="USD"),
        defect("name_taken", currency_id=1),
    ],
)
QUANTITIES = [
    Defect("amount_invalid", {"quantity": "ten"}),
    Defect("amount_not_positive", {"quantity": "0"}),
    Defect("amount_too_large", {"quantity": "1e30"}),
    Defect("amount_too_fine", {"quantity": "1e-19"}),
]
WITHDRAW = (
    Withdraw("1", "USD", "10", "new"),
    [
        *KEYS,
        *QUANTITIES,
        defect("withdrawal_id_invalid", withdrawal_id="w12"),
        defect("withdrawal_id_invalid", withdrawal_id="a/b"),
        defect("user_id_invalid", user=""),
        defect("token_unknown", token="XXX"),
        defect("expiry_invalid", expires_in_seconds=0),
        defect("user_not_found", user="99"),
        defect("account_closed", user="closed"),
        defect("withdrawal_id_taken", withdrawal_id="settled"),
        defect("withdrawals_halted", token="ETH"),
        defect("withdrawals_reducing", token="BTC"),
        defect("limit_reached", user="limited"),
        defect("too_many_holds", user="busy"),
        defect("insufficient_funds", quantity="1000"),
        defect("insufficient_funds", user="owing"),
    ],
)
CANCEL_WITHDRAWAL = (
    CancelWithdrawal("open"),
    [
        *KEYS,
        defect("withdrawal_not_found", withdrawal_id="nobody's"),
        defect("withdrawal_not_found", withdrawal_id="w1"),  # a hold, but no withdrawal
        defect("withdrawal_settled", withdrawal_id="settled"),
        defect("withdrawal_cancelled", withdrawal_id="cancelled"),
        defect("withdrawal_expired", withdrawal_id="expired"),
        defect("withdrawals_halted", withdrawal_id="halted"),
    ],
)
SETTLE = (
    Settle("leaver", "EUR", "2", "USD", "5"),
    [
        *KEYS,
        defect("user_id_invalid", user=""),
        defect("token_unknown", bought_token="XXX"),
        defect("token_unknown", sold_token="XXX"),
        defect("amount_invalid", sold_quantity="ten"),
        defect("amount_not_positive", sold_quantity="-1"),
        defect("amount_too_large", sold_quantity="1e30"),
        defect("amount_too_fine", sold_quantity="1e-19"),
        defect("same_token", bought_token="USD"),
        defect("same_token", sold_token="EUR"),
        defect("user_not_found", user="99"),
        defect("withdrawal_settled", withdrawal_id="settled"),
        defect("withdrawal_cancelled", withdrawal_id="cancelled"),
    ],
)
SET_MODE = (SetMode("halted", "EUR"), [*KEYS, defect("token_unknown", token="XXX")])
SET_LIMITS = (
    SetLimits("USD", "10", "20", "1"),
    [
        *KEYS,
        defect("user_id_invalid", user=""),
        defect("token_unknown", token="XXX"),
        defect("amount_invalid", per_day="ten"),
        defect("amount_too_fine", per_day="1e-19"),
        defect("user_not_found", user="99"),
    ],
)
REPLAY_SETTLEMENT = (
    ReplaySettlement("withdrawals-1", SETTLE[0]),
    [
        *KEYS,
        defect("dead_letter_not_found", letter="withdrawals-9"),
        defect("dead_letter_closed", letter="withdrawals-2"),
        defect("owned_by_product", letter="probe-3"),
    ],
)
CLOSE_LETTER = (
    CloseLetter("withdrawals-1", "of no use"),
    [
        *KEYS,
        defect("dead_letter_not_found", letter="withdrawals-9"),
        defect("dead_letter_closed", letter="withdrawals-2"),
        defect("owned_by_product", letter="probe-3"),
    ],
)
# The loans of the book: see `_loans`. At 30 all that are active are due, at 60 none is.


def quoted(sell):
    return (Quote("mos_espa", "q", 1, 2, tuple(Level(n, sell * ONE) for n in LEVELS)),)


AT_30, AT_60, UNSOUND = quoted(30), quoted(60), (*quoted(30), *quoted(30))
LOAN_IDS = [
    defect("user_id_invalid", borrower=""),
    defect("user_id_invalid", borrower="%" * 200),
    defect("loan_id_invalid", loan="a/b"),
    defect("loan_id_invalid", loan=":" * 200),
]
LOAN_AMOUNTS = [
    Defect("amount_invalid", {"amount": "ten"}),
    Defect("amount_not_positive", {"amount": "0"}),
    Defect("amount_too_large", {"amount": "1e30"}),
    Defect("amount_too_fine", {"amount": "1e-25"}),
]
APPLY_FOR_LOAN = (
    ApplyForLoan("new", "1", "1000", "40"),
    [
        *KEYS,
        *LOAN_IDS,
        *LOAN_AMOUNTS,
        defect("loan_exists", loan="active"),
        defect("account_closed", borrower="closed"),
        defect("too_many_accounts", borrower="many"),
        defect("too_many_holds", borrower="busy"),
        defect("balance_too_large", collateral="99999999999999"),
    ],
)
TOP_UP_COLLATERAL = (
    TopUpCollateral("active", "1", "5"),
    [
        *KEYS,
        *LOAN_IDS,
        *LOAN_AMOUNTS,
        defect("loan_not_found", loan="nobody's"),
        defect("account_closed", borrower="closed"),
        defect("borrower_mismatch", borrower="2"),
        defect("loan_liquidating", loan="liquidating"),
        defect("loan_liquidated", loan="liquidated"),
        defect("too_many_accounts", loan="of-many", borrower="many"),
        defect("too_many_holds", loan="of-busy", borrower="busy"),
        defect("balance_too_large", amount="99999999999999"),
    ],
)
BY_PRICE = [
    *KEYS,
    LOAN_IDS[0],
    defect("quotes_invalid", quotes=()),
    defect("quotes_invalid", quotes=UNSOUND),
    defect("loan_not_found", loan="nobody's"),
    defect("loan_changed", of_version=9),
    defect("quotes_stale", fresh_until=5),
]
ACTIVATE_LOAN = (
    ActivateLoan("covered", "1", 1, AT_60, FAR),
    [
        *BY_PRICE,
        defect("account_closed", loan="of-closed"),
        defect("loan_not_due", quotes=AT_30),
        defect("loan_not_due", loan="liquidating", of_version=4),
    ],
)
WARN_LOAN = (
    WarnLoan("active", "1", 2, AT_30, FAR),
    [
        *BY_PRICE,
        defect("loan_not_due", quotes=AT_60),
        defect("loan_not_due", loan="covered", of_version=1),
    ],
)
REARM_WARNING = (
    RearmWarning("warned", "1", 3, AT_60, FAR),
    [*BY_PRICE, defect("loan_not_due", quotes=AT_30)],
)
BEGIN_LIQUIDATION = (
    BeginLiquidation("active", "1", 2, AT_30, FAR, "first"),
    [*BY_PRICE, defect("loan_not_due", quotes=AT_60)],
)
PLACE_SLICES = (
    PlaceSlices("liquidating", "1", 4, AT_30, "first"),
    [
        *KEYS,
        LOAN_IDS[0],
        defect("quotes_invalid", quotes=()),
        defect("loan_not_found", loan="nobody's"),
        defect("loan_changed", of_version=9),
        defect("loan_not_due", loan="active", of_version=2),
        defect("loan_not_due", loan="waiting", of_version=3),
    ],
)
FILL_SLICE = (
    FillSlice("waiting", 1, "order", "1", "30", "1", 0),
    [
        *KEYS,
        LOAN_IDS[0],
        *QUANTITIES[:3],
        defect("amount_too_fine", quantity="1e-25"),
        defect("loan_not_found", loan="nobody's"),
        defect("slice_not_found", number=9),
        defect("slice_ended", loan="liquidating"),
        defect("balance_too_large", total="99999999999999"),
    ],
)
FAIL_SLICE = (
    FailSlice("waiting", 1, "no luck", "1", 0),
    [
        *KEYS,
        defect("loan_not_found", loan="nobody's"),
        defect("slice_not_found", number=9),
        defect("slice_ended", loan="liquidating"),
    ],
)
SET_LIQUIDATIONS = (SetLiquidations("no_new"), KEYS)
# The portfolios of the book: see `_portfolios`. All are half BTC and half USD.
HALVES = {"BTC": "50", "USD": "50"}
DRIFTED = {"BTC": "60", "USD": "40"}
UNSOUND_POLICY = Policy(is_buy_only=True)
NOBODY = [
    defect("user_id_invalid", user=""),
    defect("portfolio_not_found", user="99"),
]
BAD_SUM = defect("allocation_invalid", allocation={"BTC": "99"})
CREATE_PORTFOLIO = (
    CreatePortfolio("new", HALVES),
    [
        *KEYS,
        NOBODY[0],
        BAD_SUM,
        defect("allocation_invalid", allocation={}),
        defect("policy_invalid", policy=UNSOUND_POLICY),
        defect("portfolio_exists", user="1", allocation=DRIFTED),
    ],
)
CHANGE_TARGET = (ChangeTarget("1", DRIFTED), [*KEYS, *NOBODY, BAD_SUM])
SET_POLICY = (
    SetPolicy("1", Policy()),
    [*KEYS, *NOBODY, defect("policy_invalid", policy=UNSOUND_POLICY)],
)
VALUED = [
    BAD_SUM,
    defect("allocation_invalid", allocation={"BTC": "-1", "USD": "101"}),
    defect("allocation_invalid", allocation={"BTC\n": "100"}),
    defect("asset_unknown", currency="XXX"),
    defect("holdings_invalid", value="ten"),
    defect("holdings_invalid", value="1e-19"),
    defect("holdings_invalid", holdings={"BTC": Holding("1", "0")}),
    defect("holdings_invalid", allocation={}, holdings={"BTC": Holding("1")}),
    defect("allocation_invalid", allocation={}, holdings={}),
    defect("holdings_invalid", allocation={}, value="ten"),
]
REBALANCE = (
    Rebalance("1", DRIFTED, "", None, "100", "USD", {"BTC": Holding("1", "10")}),
    [*KEYS, *NOBODY, *VALUED, defect("as_of_in_future", as_of=FAR)],
)
QUEUE_UPDATE = (
    QueueUpdate(Rebalance("1", DRIFTED)),
    [
        *KEYS,
        defect("user_id_invalid", update=Rebalance("", DRIFTED)),
        defect("portfolio_not_found", update=Rebalance("99", {})),
    ],
)
TAKE_UPDATE = (
    TakeUpdate(1, "1"),
    [
        *KEYS,
        NOBODY[0],
        defect("update_not_found", number=99),
        defect("update_taken", number=2),
        defect("update_taken", number=3),
    ],
)


def sold(quantity="1", amount="10", currency="USD", position=1):
    return {"fills": (Fill(position, quantity, amount, currency),)}


EXECUTE_TRANSACTIONS = (
    ExecuteTransactions("1", 0, (Fill(1, "1", "10", "USD"),)),  # the fixture names the run
    [
        *KEYS,
        NOBODY[0],
        defect("transaction_not_found", run=9_999),
        defect("transaction_not_found", run=-1),
        defect("transaction_not_found", user="2"),
        defect("transaction_not_found", **sold(position=3)),
        defect("transaction_not_found", **sold(position=0)),
        defect("transaction_executed", **sold(position=2)),
        defect("transaction_executed", fills=(Fill(1), Fill(1, "1", "10", "USD"))),
        defect("amount_invalid", **sold(amount="ten")),
        defect("amount_invalid", **sold(quantity="ten")),
        defect("amount_invalid", fills=(Fill(1, "1", "", "USD"),)),
        defect("amount_not_positive", **sold(amount="0")),
        defect("amount_not_positive", **sold(quantity="0")),
        defect("amount_too_large", **sold(amount="1e30")),
        defect("amount_too_fine", **sold(amount="1e-19")),
        defect("asset_unknown", **sold(currency="XXX")),
    ],
)
REPLAY_UPDATE = (
    ReplayUpdate("portfolios-4", Rebalance("1", DRIFTED)),
    [
        *KEYS,
        defect("dead_letter_not_found", letter="portfolios-9"),
        defect("dead_letter_closed", letter="portfolios-5"),
        defect("owned_by_product", letter="probe-3"),
    ],
)
CLOSE_UPDATE_LETTER = (CloseUpdateLetter("portfolios-4", "of no use"), REPLAY_UPDATE[1])
WALKS = {
    "transfer": TRANSFER,
    "open_account": OPEN_ACCOUNT,
    "close_account": CLOSE_ACCOUNT,
    "place_hold": PLACE_HOLD,
    "settle_hold": SETTLE_HOLD,
    "void_hold": VOID_HOLD,
    "expire_hold": EXPIRE_HOLD,
    "load_balances": LOAD_BALANCES,
    "register_asset": REGISTER_ASSET,
    "withdraw": WITHDRAW,
    "cancel_withdrawal": CANCEL_WITHDRAWAL,
    "settle": SETTLE,
    "set_mode": SET_MODE,
    "set_limits": SET_LIMITS,
    "replay_settlement": REPLAY_SETTLEMENT,
    "close_letter": CLOSE_LETTER,
    "apply_for_loan": APPLY_FOR_LOAN,
    "top_up_collateral": TOP_UP_COLLATERAL,
    "activate_loan": ACTIVATE_LOAN,
    "warn_loan": WARN_LOAN,
    "rearm_warning": REARM_WARNING,
    "begin_liquidation": BEGIN_LIQUIDATION,
    "place_slices": PLACE_SLICES,
    "fill_slice": FILL_SLICE,
    "fail_slice": FAIL_SLICE,
    "set_liquidations": SET_LIQUIDATIONS,
    "create_portfolio": CREATE_PORTFOLIO,
    "change_target": CHANGE_TARGET,
    "set_policy": SET_POLICY,
    "rebalance": REBALANCE,
    "queue_update": QUEUE_UPDATE,
    "take_update": TAKE_UPDATE,
    "execute_transactions": EXECUTE_TRANSACTIONS,
    "replay_update": REPLAY_UPDATE,
    "close_update_letter": CLOSE_UPDATE_LETTER,
}
WALKED_ALONE = {"too_many_transfers", "entry_not_found", "entry_not_reversible", "cursor_conflict"}
WALKED_ALONE |= {"entry_already_reversed", "liquidations_paused"}


def run(stage, command, **options):
    """Execute without the stage's checks, which are slow on a book of this size."""
    return stage.book.execute_many([Submission(command, **options)])[0]


def done(stage, command, **options):
    outcome = run(stage, command, **options)
    assert isinstance(outcome, Receipt), outcome
    return outcome


@pytest.fixture(scope="module")
def stage():
    """The common book."""
    stage = Stage(batch_max=2_000, users_max=5_000)
    stage.runs = {}
    stage.play("""
        given
            user:1:USD          100
            user:2:USD
            user:2:BTC
            user:empty:USD
            user:closed:USD
            user:closed:BTC
            user:closed:ETH
            user:holding:USD    50
            user:owing:USD
            house:USD           1
            user:busy:USD       2000
            user:holder:USD     100
        when
            place_hold user:holder:USD USD 20       -> done id=1
            place_hold user:holder:USD USD 5        -> done id=2
            place_hold user:holder:USD USD 5        -> done id=3
            place_hold user:holder:USD USD 5 60     -> done id=4
            place_hold user:holder:USD USD 5 60     -> done id=5
            settle_hold 2 1 user:2:USD              -> done
            void_hold 3                             -> done
            wait 61
            expire_hold 4                           -> done
            close_account user:closed:USD           -> done
            close_account user:closed:BTC           -> done
            close_account user:closed:ETH           -> done
    """)
    foreign = probe(lambda draft: draft.place_hold("user:holder:USD", 1).id, "user:holder")
    assert done(stage, foreign).answer == FOREIGN
    done(stage, PlaceHold("user:holding:USD", "USD", "10"))
    taking = probe(
        lambda draft: draft.take("user:owing:USD", "house:USD", 7), "user:owing", "house"
    )
    assert done(stage, taking).answer == 7
    _withdrawals(stage)
    _loans(stage)
    _portfolios(stage)
    fill = [OpenAccount(f"user:many:{n}:USD") for n in range(ACCOUNTS_PER_HOLDER_MAX)]
    fill += [PlaceHold("user:busy:USD", "USD", "1")] * HOLDS_OPEN_MAX
    fill += [PlaceHold("house:held:USD", "USD", LARGEST)]
    fill += [OpenAccount("user:rich:USD")]
    outcomes = stage.book.execute_many([Submission(command) for command in fill])
    assert all(isinstance(outcome, Receipt) for outcome in outcomes)
    # `world` is as far down as it can go, `rich` holds the rest.
    room = 10**20 - 1 + int(stage.store.account("world:USD").posted // 10**18)
    done(stage, Transfer("world:USD", "user:rich:USD", "USD", str(room)))
    top_up = Transfer("house:more:USD", "user:rich:USD", "USD", str(10**20 - 1 - room))
    done(stage, top_up)
    for product in ("ledger", "withdrawals", "loans", "portfolios"):
        done(stage, Abandon(product), key="abandoned")
    done(stage, Transfer("house:USD", "house:other:USD", "USD", "1", id="x"), key="used")
    done(stage, SetLimits("USD", "1000"), key="used")
    done(stage, SetLiquidations("normal"), key="used")
    done(stage, CreatePortfolio("used", HALVES), key="used")
    return stage


def _withdrawals(stage):
    """What the withdrawals stumble on."""
    stage.play("""
        given
            user:1:BTC          100
            user:1:ETH          100
            user:limited:USD    100
            user:leaver:USD     100
            user:leaver:ETH     100
        when
            withdrawals.withdraw leaver USD 5 open              -> done
            withdrawals.withdraw leaver USD 5 settled           -> done
            withdrawals.withdraw leaver USD 5 cancelled         -> done
            withdrawals.withdraw leaver USD 5 expired 60        -> done
            withdrawals.withdraw leaver ETH 5 halted            -> done
            withdrawals.settle leaver EUR 1 USD 5 settled       -> done
            withdrawals.cancel_withdrawal cancelled             -> done
            wait 61
            withdrawals.set_mode halted ETH                     -> done
            withdrawals.set_mode reducing BTC                   -> done
            withdrawals.set_limits USD 1 none limited           -> done
    """)
    expired = stage.store.head().counters["hold"] - 1
    assert done(stage, ExpireWithdrawal(expired)).answer.withdrawal_id == "expired"
    message = Message("topic", 0, 7, "e30=")
    for _ in range(2):
        done(stage, SetAside(message, "message_malformed", "no"))
    done(stage, CloseLetter("withdrawals-2"))
    foreign = probe(lambda draft: letters.set_aside(draft, message, "no", "no"))
    assert done(stage, foreign).answer == "probe-3"


def _loans(stage):
    """What the loans stumble on."""
    stage.play("""
        given
            user:busy:BESKAR    2000
            user:closed:GC
            user:closed:BESKAR
        when
            close_account user:closed:GC                        -> done
            close_account user:closed:BESKAR                    -> done
            loans.apply_for_loan of-closed closed 1000          -> done
            loans.apply_for_loan of-many many 1000              -> done
            loans.apply_for_loan of-busy busy 1000              -> done
    """)
    holds = [Submission(PlaceHold("user:busy:BESKAR", "BESKAR", "1"))] * HOLDS_OPEN_MAX
    assert all(isinstance(outcome, Receipt) for outcome in stage.book.execute_many(holds))
    for loan in ("covered", "active", "warned", "waiting", "liquidating", "liquidated"):
        done(stage, ApplyForLoan(loan, "1", "1000", "40"))
        if loan != "covered":
            done(stage, ActivateLoan(loan, "1", 1, AT_60, FAR))
    done(stage, WarnLoan("warned", "1", 2, AT_30, FAR))
    for loan in ("waiting", "liquidating", "liquidated"):
        done(stage, BeginLiquidation(loan, "1", 2, AT_30, FAR, "first"))
    done(stage, FailSlice("liquidating", 1, "no luck", "1", 0))
    done(stage, FillSlice("liquidated", 1, "order", "33.33333334", "1000", "1", 0))


def _portfolios(stage):
    """What the portfolios stumble on; of the run of user 1 the purchase is executed."""
    for user in ("1", "2", "closed", "many", "rich"):
        done(stage, CreatePortfolio(user, HALVES))
        stage.runs[user] = done(stage, Rebalance(user, DRIFTED)).sequence
    done(stage, ExecuteTransactions("1", stage.runs["1"], (Fill(2),)))
    for update in (Rebalance("1", DRIFTED), Rebalance("1", DRIFTED), Rebalance("1", {})):
        done(stage, QueueUpdate(update))
    done(stage, TakeUpdate(2, "1"))
    done(stage, TakeUpdate(3, "1"))
    message = Message("topic", 0, 7, "e30=")
    for _ in range(2):
        done(stage, SetAsideUpdate(message, "message_malformed", "no"))
    done(stage, CloseUpdateLetter("portfolios-5"))


def refusal(stage, command, defects):
    changes = {name: value for one in defects for name, value in one.fields.items()}
    options = {
        "key": "".join(one.key for one in defects),
        "not_after": next((d.not_after for d in defects if d.not_after is not None), None),
    }
    if isinstance(command, ExecuteTransactions):
        changes = {"run": stage.runs["1"], **changes}
    before = stage.store.head()
    outcome = run(stage, msgspec.structs.replace(command, **changes), **options)
    assert stage.store.head() == before, outcome
    assert isinstance(outcome, Refusal), (outcome, defects)
    return outcome


def pairs(defects):
    for one, other in itertools.combinations(defects, 2):
        clash = set(one.fields) & set(other.fields)
        if clash or (one.key and other.key) or one.code == other.code:
            continue
        if FUNDS[0] in (one, other) and UNLIMITED & {*one.fields.values(), *other.fields.values()}:
            continue  # these never lack funds
        yield one, other


@pytest.mark.parametrize("walk", WALKS)
def test_refusals_alone(stage, walk):
    command, defects = WALKS[walk]
    for one in defects:
        assert refusal(stage, command, [one]).reason.code == one.code, one


@pytest.mark.parametrize("walk", WALKS)
def test_refusals_in_pairs_the_earlier_wins(stage, walk):
    command, defects = WALKS[walk]
    for pair in pairs(defects):
        expected = min((one.code for one in pair), key=ORDER.__getitem__)
        got = refusal(stage, command, pair).reason.code
        assert got == expected, pair


@pytest.mark.parametrize("walk", ["activate_loan", "begin_liquidation"])
def test_refusals_while_liquidations_are_paused(stage, walk):
    """A pause is the last that is looked at."""
    command, defects = WALKS[walk]
    done(stage, SetLiquidations("halt_new_and_activation"))
    try:
        for one in defects:
            assert refusal(stage, command, [one]).reason.code == one.code, one
        assert run(stage, command).reason is Reason.LIQUIDATIONS_PAUSED
    finally:
        done(stage, SetLiquidations("normal"))


@pytest.mark.parametrize(
    ("user", "code"),
    [
        ("closed", "account_closed"),
        ("many", "too_many_accounts"),
        ("rich", "balance_too_large"),
    ],
)
def test_refusals_of_an_execution_that_cannot_be_booked(stage, user, code):
    """What comes last: how the accounts stand that it moves."""
    sale = ExecuteTransactions(user, 0, (Fill(1, "1", "1", "USD"),))
    right = {"run": stage.runs[user]}
    assert refusal(stage, sale, [Defect(code, right)]).reason.code == code
    fine = Defect("amount_too_fine", {**right, "fills": (Fill(1, "1e-19", "1", "USD"),)})
    assert refusal(stage, sale, [fine]).reason.code == "amount_too_fine"


def test_refusal_of_a_hold_too_fine(stage):
    too_fine = SettleHold(OPEN, "1e-19", "user:2:USD")
    assert run(stage, too_fine).reason is Reason.AMOUNT_TOO_FINE
    same = SettleHold(OPEN, "1", "user:holder:USD")
    assert run(stage, same).reason is Reason.SAME_ACCOUNT
    assert run(stage, SettleHold(SETTLED, "1", "user:holder:USD")).reason is Reason.SAME_ACCOUNT


def test_refusals_of_a_list_name_the_first_bad_position(stage):
    good = TransferItem("user:1:USD", "user:2:USD", "USD", "60")
    bad = TransferItem("user:1:USD", "user:2:USD", "USD", "x")
    outcome = run(stage, Transfers((good, good, bad)))
    assert outcome.reason is Reason.INSUFFICIENT_FUNDS
    assert outcome.figures["position"] == 1
    assert outcome.figures["available"] == "40"
    outcome = run(stage, Transfers((bad, good)))
    assert (outcome.reason, outcome.figures) == (Reason.AMOUNT_INVALID, {"position": 0})


@pytest.mark.parametrize("count", [0, 65, 1_000])
def test_refusals_of_a_list_too_long(stage, count):
    bad = TransferItem("user:1:USD", "user:2:USD", "USD", "x")
    future = Transfers((bad,) * count, FAR)
    outcome = run(stage, future)
    assert outcome.reason is Reason.TOO_MANY_TRANSFERS
    assert outcome.figures == {"transfers": count}
    assert run(stage, future, key="abandoned").reason is Reason.KEY_ABANDONED
    assert run(stage, Transfers((bad,), FAR)).reason is Reason.EFFECTIVE_AT_IN_FUTURE


def test_refusals_of_a_reversal():
    Stage().play("""
        given
            user:1:USD      100
            user:2:USD
        when
            transfer user:1:USD user:2:USD USD 30           -> done sequence=13
            reverse 99                                      -> entry_not_found
            reverse 0                                       -> entry_not_found
            reverse -1                                      -> entry_not_found
            reverse 99999999999999999999999                 -> entry_not_found
            reverse 99 1900000000000000                     -> effective_at_in_future
            reverse 10                                      -> entry_not_reversible
            transfer user:2:USD world:USD USD 25            -> done
            reverse 13                                      -> insufficient_funds available=5
            transfer world:USD user:2:USD USD 25            -> done
            [r] reverse 13                                  -> done reversed_sequence=13
            [r] reverse 13                                  -> replayed reversed_sequence=13
            reverse 13                                      -> entry_already_reversed
            &reverse 13 1900000000000000                    -> effective_at_in_future
            reverse 16                                      -> entry_not_reversible
        then
            user:1:USD      100
            user:2:USD      0
    """)


def test_refusals_of_a_reversal_foreign_entry_first():
    stage = Stage()
    stage.fund("user:1:USD", "5")
    entry = stage.execute(probe(lambda draft: draft.emit("seen", 1)))
    outcome = stage.execute(Reverse(entry.sequence))
    assert outcome.reason is Reason.OWNED_BY_PRODUCT
    assert outcome.figures == {"owner": "probe"}


def test_refusals_of_cursors_and_names():
    stage = Stage()

    def move(before, after):
        return stage.execute(probe(lambda draft: draft.move_cursor("in", before, after)))

    assert isinstance(move(0, 5), Receipt)
    assert move(0, 6).reason is Reason.CURSOR_CONFLICT
    assert move(5, 4).reason is Reason.CURSOR_CONFLICT
    assert isinstance(move(5, 5), Receipt)


def _mentioned(module):
    """Return the reasons that a module's code names, docstrings aside."""
    tree = ast.parse(inspect.getsource(module))
    return {
        Reason[node.attr].code
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "Reason"
    }


def test_refusals_walk_is_complete():
    """Whatever the ledger, its products of its own and the engine can refuse for is walked above."""
    mentioned = set()
    modules = (general, engine_module, controls, settle, shared, withdraw)
    modules += (apply, life, liquidate, loans_shared, execute, orders, plan, queue, rebalance)
    for module in (*modules, runs, setup, portfolios_shared):
        mentioned |= _mentioned(module)
    for path in Path(pennyweight.ledger.__path__[0]).glob("*.py"):
        if path.stem != "refusals":
            name = f"pennyweight.ledger.{path.stem}"
            mentioned |= _mentioned(__import__(name, fromlist=["_"]))
    walked = WALKED_ALONE | {one.code for _, defects in WALKS.values() for one in defects}
    assert mentioned == walked


def test_reasons_are_one_closed_list():
    codes = [reason.code for reason in Reason]
    assert len(codes) == len(set(codes)) == len(Reason.__members__)
    for name, reason in Reason.__members__.items():
        assert reason.code == name.lower()
        assert isinstance(reason.kind, Kind)
        assert isinstance(reason.is_retryable, bool)
        # What can never succeed as written is not worth waiting for.
        is_hopeless = reason.kind in {Kind.MALFORMED, Kind.KEY}
        assert not (reason.is_retryable and is_hopeless)
        assert reason.is_retryable or reason.kind is not Kind.UNFUNDED, reason


def test_reasons_that_waiting_may_cure():
    """What callers build their retries on; a change here is a change of the interface."""
    walked = WALKED_ALONE | {one.code for _, defects in WALKS.values() for one in defects}
    assert {r.code for r in Reason if r.is_retryable and r.code in walked} == {
        "hold_not_found", "entry_not_found", "account_not_found", "hold_not_due",
        "cursor_conflict", "account_has_holds", "account_has_balance", "account_owes",
        "too_many_holds", "insufficient_funds", "balance_too_large", "user_not_found",
        "withdrawal_not_found", "withdrawals_halted", "withdrawals_reducing", "limit_reached",
        "loan_not_found", "loan_changed", "loan_not_due", "quotes_stale", "liquidations_paused",
        "portfolio_not_found", "transaction_not_found",
    }  # fmt: skip

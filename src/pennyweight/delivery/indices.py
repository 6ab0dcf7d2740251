"""The indices of a search engine that documents go to, and how each is mapped.

What is not listed here is kept in a document's source, and not searched.
"""

from collections.abc import Mapping
from typing import Any

ENTRIES = "entries"
PORTFOLIOS = "portfolios"
TRANSACTIONS = "rebalance_transactions"
LOANS = "loans"
WITHDRAWALS = "withdrawals"
PAYMENTS = "payments"

_KEYWORD = {"type": "keyword", "ignore_above": 1_024}
_AMOUNT = {
    "type": "keyword",
    "ignore_above": 128,
    "fields": {"number": {"type": "double", "ignore_malformed": True}},
}
_PERCENT = {"type": "double"}
_DATE = {"type": "date"}
_LONG = {"type": "long"}
_BOOLEAN = {"type": "boolean"}
_UNSEARCHED = {"type": "object", "enabled": False}
_SHARES = {"properties": {"asset": _KEYWORD, "percent": _PERCENT}}


def _template(**properties: Any) -> dict[str, Any]:
    """Return how an index is made: what is not listed is kept in the source, and not searched."""
    return {
        "settings": {"index": {"number_of_shards": 1, "auto_expand_replicas": "0-1"}},
        "mappings": {"dynamic": False, "properties": {"sequence": _LONG, **properties}},
    }


INDICES: Mapping[str, Mapping[str, Any]] = {
    ENTRIES: _template(
        book=_KEYWORD,
        incarnation=_KEYWORD,
        product=_KEYWORD,
        command=_KEYWORD,
        key=_KEYWORD,
        committed_at=_DATE,
        effective_at=_DATE,
        users=_KEYWORD,
        accounts=_KEYWORD,
        records=_KEYWORD,
        events=_KEYWORD,
        transfers={
            "properties": {
                "debit_account": _KEYWORD,
                "credit_account": _KEYWORD,
                "asset": _KEYWORD,
                "amount": _AMOUNT,
            }
        },
        holds={
            "properties": {
                "verb": _KEYWORD,
                "id": _LONG,
                "account": _KEYWORD,
                "asset": _KEYWORD,
                "amount": _AMOUNT,
                "remaining": _AMOUNT,
                "owner": _KEYWORD,
                "state": _KEYWORD,
                "reference": _KEYWORD,
            }
        },
        fields=_UNSEARCHED,
        answer=_UNSEARCHED,
    ),
    PORTFOLIOS: _template(
        user_id=_KEYWORD,
        allocation=_UNSEARCHED,
        target=_UNSEARCHED,
        current=_UNSEARCHED,
        drift=_UNSEARCHED,
        policy=_UNSEARCHED,
        holdings=_UNSEARCHED,
        target_shares=_SHARES,
        current_shares=_SHARES,
        drift_score=_PERCENT,
        as_of=_DATE,
        policy_version=_LONG,
        created_at=_DATE,
        last_run=_LONG,
        last_run_at=_DATE,
        open_transactions=_KEYWORD,
        portfolio_value=_AMOUNT,
        currency=_KEYWORD,
    ),
    TRANSACTIONS: _template(
        id=_KEYWORD,
        run=_LONG,
        position=_LONG,
        user_id=_KEYWORD,
        action=_KEYWORD,
        asset=_KEYWORD,
        rebalance_percent=_PERCENT,
        percent_of_holding=_PERCENT,
        reason={"type": "text"},
        rule=_KEYWORD,
        drift_before=_PERCENT,
        drift_after=_PERCENT,
        status=_KEYWORD,
        created_at=_DATE,
        amount=_AMOUNT,
        quantity=_AMOUNT,
        currency=_KEYWORD,
        executed={
            "properties": {
                "at": _DATE,
                "quantity": _AMOUNT,
                "amount": _AMOUNT,
                "currency": _KEYWORD,
            }
        },
    ),
    LOANS: _template(
        loan_id=_KEYWORD,
        borrower_id=_KEYWORD,
        status=_KEYWORD,
        amount=_AMOUNT,
        collateral=_AMOUNT,
        outstanding_balance=_AMOUNT,
        collateral_sold=_AMOUNT,
        collateral_sold_value=_AMOUNT,
        surplus=_AMOUNT,
        returned=_AMOUNT,
        slices=_LONG,
        is_warned=_BOOLEAN,
        applied_at=_DATE,
        activated_at=_DATE,
        liquidating_at=_DATE,
        liquidated_at=_DATE,
    ),
    WITHDRAWALS: _template(
        withdrawal_id=_KEYWORD,
        user_id=_KEYWORD,
        token=_KEYWORD,
        requested_quantity=_AMOUNT,
        remaining=_AMOUNT,
        status=_KEYWORD,
        accepted_at=_DATE,
        expires_at=_DATE,
        ended_at=_DATE,
    ),
    PAYMENTS: _template(
        payment_id=_LONG,
        currency_id=_LONG,
        asset=_KEYWORD,
        amount=_AMOUNT,
        buyer_account_id=_LONG,
        seller_account_id=_LONG,
        committed_at=_DATE,
    ),
}
"""How the indices are made, by their names."""

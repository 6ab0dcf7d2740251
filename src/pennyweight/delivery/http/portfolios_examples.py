"""What the description shows of the portfolios face: one portfolio, one update, what came of it."""

from typing import Any

_WHEN = "2026-01-31T12:00:00.000000Z"
_LATER = "2026-01-31T12:05:00.000000Z"
_TARGET = {"bonds": 30, "gold": 10, "stocks": 60}

TARGET = {"user_id": "1", "allocation": {"stocks": 60, "bonds": 30, "gold": 10}}
POLICY: dict[str, Any] = {
    "bands": {"absolute": 5, "relative": 25},
    "when": "any",
    "minimum_trade": 0.1,
    "trade_to": "target",
    "buy_only": False,
    "cash_first": False,
    "locked": [],
}
UPDATE = {"user_id": "1", "new_allocation": {"stocks": 70, "bonds": 20, "gold": 10}}

TRANSACTIONS: list[dict[str, Any]] = [
    {
        "id": "12-1",
        "user_id": "1",
        "action": "SELL",
        "asset": "stocks",
        "rebalance_percent": 10,
        "percent_of_holding": 14.2857142857,
        "reason": "off the target: 10 points",
        "rule": "drift",
        "drift_before": 10,
        "drift_after": 0,
        "status": "proposed",
        "created_at": _WHEN,
    },
    {
        "id": "12-2",
        "user_id": "1",
        "action": "BUY",
        "asset": "bonds",
        "rebalance_percent": 10,
        "percent_of_holding": 50,
        "reason": "off the target: 10 points",
        "rule": "drift",
        "drift_before": -10,
        "drift_after": 0,
        "status": "proposed",
        "created_at": _WHEN,
    },
]
NOT_TRADED = [{"asset": "gold", "reason": "on the target", "rule": "on_target", "drift": 0}]
_FIGURES: dict[str, Any] = {
    "as_of": _WHEN,
    "policy_version": 0,
    "not_traded": NOT_TRADED,
    "drift_score_before": 10,
    "drift_score_after": 0,
    "turnover": 10,
    "sum_of_changes": 0,
}
RUN = {
    "run": 12,
    "user_id": "1",
    "created_at": _WHEN,
    "previous_run": None,
    "transactions": TRANSACTIONS,
    **_FIGURES,
}
RUN_LISTED = {
    "run": 12,
    "created_at": _WHEN,
    "as_of": _WHEN,
    "policy_version": 0,
    "transactions": 2,
    "turnover": 10,
    "drift_score_before": 10,
    "drift_score_after": 0,
}
PREVIEW = {
    "user_id": "1",
    "result": "rebalanced",
    "transactions": [
        {k: v for k, v in one.items() if k not in {"id", "status", "created_at"}}
        for one in TRANSACTIONS
    ],
    **_FIGURES,
}
PORTFOLIO: dict[str, Any] = {
    "user_id": "1",
    "allocation": _TARGET,
    "target": _TARGET,
    "current": {"bonds": 20, "gold": 10, "stocks": 70},
    "drift": {"bonds": -10, "gold": 0, "stocks": 10},
    "drift_score": 10,
    "as_of": _WHEN,
    "policy": None,
    "policy_version": 0,
    "created_at": _WHEN,
    "last_run": 12,
    "last_run_at": _WHEN,
    "open_transactions": ["12-1", "12-2"],
}
UPDATE_QUEUED = {"update_id": 7, "status": "queued", "href": "/rebalance-updates/7"}

UPDATE_DONE = {
    "update_id": 7,
    "user_id": "1",
    "status": "done",
    "queued_at": _WHEN,
    "taken_at": _LATER,
    "result": "rebalanced",
    "run": 12,
    "transactions": TRANSACTIONS,
}
VERSION = {"version": 1, "since": _WHEN, "policy": POLICY}

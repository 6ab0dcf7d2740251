"""What the description shows of the loans face: one loan, from its application to its end."""

from typing import Any

_WHEN = "2026-01-31T12:00:00.000000Z"
_LATER = "2026-01-31T12:05:00.000000Z"

APPLICATION = {"requestId": "r-1", "loanId": "L-1", "borrowerId": "din", "amount": "1000"}
LATER_APPLICATION = {**APPLICATION, "collateralAmount": "40", "assetType": "BSK"}
TOP_UP = {"requestId": "r-2", "loanId": "L-1", "borrowerId": "din", "amount": "40"}
LATER_TOP_UP = {**TOP_UP, "assetType": "BSK"}

LOAN = {
    "loanId": "L-1",
    "borrowerId": "din",
    "status": "active",
    "amount": "1000",
    "collateral": "40",
    "outstandingBalance": "1000",
    "ltv": "50.0000",
    "triggerPrice": "31.25",
}

QUOTE: dict[str, Any] = {
    "market": "mos_espa",
    "id": "price-1769860800000-1",
    "at": _WHEN,
    "received_at": _WHEN,
    "levels": [
        {"quantity": 1, "sell": "31.9"},
        {"quantity": 10, "sell": "31.5"},
        {"quantity": 50, "sell": "31.2"},
        {"quantity": 100, "sell": "31"},
    ],
}

_FILLED: dict[str, Any] = {
    "number": 1,
    "market": "mos_espa",
    "request_id": "7b9927a8883c096d-1",
    "state": "filled",
    "quantity": "32.05128206",
    "price": "31.2",
    "placed_at": _WHEN,
    "ended_at": _LATER,
    "sold": "32.05128206",
    "total": "1000.01",
    "order_id": "order-77",
}

DETAIL: dict[str, Any] = {
    **LOAN,
    "status": "liquidated",
    "collateral": "0",
    "outstandingBalance": "0",
    "ltv": "",
    "triggerPrice": "",
    "is_warned": True,
    "collateral_account": "user:din:BESKAR",
    "hold": None,
    "activation_price": "",
    "warning_price": "",
    "applied_at": _WHEN,
    "activated_at": _WHEN,
    "liquidating_at": _WHEN,
    "liquidated_at": _LATER,
    "sold": "32.05128206",
    "proceeds": "1000.01",
    "surplus": "0.01",
    "returned": "7.94871794",
    "deficit": "0",
    "if_sold_now": None,
    "slices_placed": 1,
    "slices": [_FILLED],
    "history": [
        {
            "sequence": 15,
            "at": _LATER,
            "what": "slice_filled",
            "status": "liquidated",
            "collateral": "0",
            "outstandingBalance": "0",
            "slices": [_FILLED],
        }
    ],
    "next_cursor": "14",
}

PROOF: dict[str, Any] = {
    "loanId": "L-1",
    "borrowerId": "din",
    "status": "liquidated",
    "is_ended": True,
    "is_minimal": True,
    "wrong": [],
    "balance": "1000",
    "sold": "32.05128206",
    "proceeds": "1000.01",
    "surplus": "0.01",
    "deficit": "0",
    "returned": "7.94871794",
    "filled": 1,
    "failed": 0,
    "open": 0,
    "placings": [
        {
            "sequence": 14,
            "at": _WHEN,
            "remaining": "1000",
            "free_collateral": "40",
            "busy": [],
            "quotes": [QUOTE],
            "is_as_planned": True,
            "slices": [
                {
                    "number": 1,
                    "market": "mos_espa",
                    "request_id": "7b9927a8883c096d-1",
                    "remaining": "1000",
                    "free_collateral": "40",
                    "price": "31.2",
                    "just_enough": "32.05128206",
                    "quantity": "32.05128206",
                    "expected": "1000.000000272",
                    "is_minimal": True,
                    "state": "filled",
                    "sold": "32.05128206",
                    "total": "1000.01",
                    "order_id": "order-77",
                }
            ],
        }
    ],
    "next_cursor": None,
}

PRICES: dict[str, Any] = {
    "markets": {
        "mos_espa": {
            "at": _WHEN,
            "received_at": _WHEN,
            "age_seconds": 0.8,
            "is_fresh": True,
            "levels": [{"quantity": 1, "sell": "31.9"}],
            "counts": {"accepted": 60, "duplicate": 1},
        }
    },
    "best": [{"quantity": 1, "market": "mos_espa", "sell": "31.9"}],
    "is_deviating": False,
}

MESSAGE: dict[str, Any] = {
    "eventId": "price-1769860800000-1",
    "asset": "BESKAR",
    "currency": "GC",
    "timestamp": _WHEN,
    "levels": [{"quantity": 1, "buy": "32.1", "sell": "31.9"}],
}

"""What branches are told of loans, in the two dialects that banks speak. Pure.

Every notice is one JSON object of strings. Its `eventId` is that of the event in the
journal (incarnation.sequence.position), so it is the same however often it is sent.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from pennyweight.agents.relay import Happening, Outgoing, Route
from pennyweight.products.loans.shared import ACTIVATED, APPLIED, LIQUIDATED

Dialect = Literal["seed", "later"]

TOPICS: Mapping[Dialect, str] = {
    "seed": "coruscant-bank-loan-liquidation-events",
    "later": "coruscant-bank-loan-events",
}
"""The topic that branches listen to, by dialect."""

_encode = msgspec.json.Encoder().encode


def routes(dialect: Dialect) -> dict[str, Route]:
    """Return how events become notices, by the event's name; others are told to nobody."""
    if dialect == "seed":
        return {LIQUIDATED: _liquidation}
    return {
        APPLIED: _application,
        ACTIVATED: _activation,
        LIQUIDATED: _later_liquidation,
    }


def _liquidation(happening: Happening) -> Outgoing:
    data = happening.data
    return _notice(
        "seed",
        happening,
        "liquidation",
        collateralSold=data["collateral_sold"],
        collateralSoldValue=data["collateral_sold_value"],
        outstandingCollateral=data["outstanding_collateral"],
        outstandingBalance=data["outstanding_balance"],
    )


def _later_liquidation(happening: Happening) -> Outgoing:
    data = happening.data
    return _notice(
        "later",
        happening,
        "liquidation",
        collateralSold=data["collateral_sold"],
        collateralValue=data["collateral_sold_value"],
        remainingCollateral=data["outstanding_collateral"],
        outstandingBalance=data["outstanding_balance"],
        status="liquidated",
    )


def _application(happening: Happening) -> Outgoing:
    amount = happening.data["amount"]
    return _notice("later", happening, "application", amount=amount, status="new")


def _activation(happening: Happening) -> Outgoing:
    balance = happening.data["outstanding_balance"]
    return _notice("later", happening, "activation", status="active", outstandingBalance=balance)


def _notice(dialect: Dialect, happening: Happening, kind: str, **more: Any) -> Outgoing:
    """Write a notice; what stands in it stands in this order."""
    loan_id = happening.data["loan_id"]
    body = {"eventId": happening.id, "eventType": kind, "loanId": loan_id, **more}
    return Outgoing(TOPICS[dialect], loan_id.encode(), _encode(body))

"""What a risk desk is, without a ledger: dicts of ints, told in order what happened."""

import json
from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

ONE = 10**18

Place = tuple[str, str]
"""A user and a token."""


def units(amount: Any) -> int:
    """Return an amount, text or number, in units of 10^-18."""
    return int(Decimal(amount) * ONE)


@dataclass
class Held:
    """A withdrawal, and the trade that ended it."""

    withdrawal_id: str
    place: Place
    amount: int
    is_open: bool = True
    is_cancelled: bool = False
    ended_by: Any = None


@dataclass
class Desk:
    """What users have and owe, and their withdrawals in the order of their acceptance."""

    posted: dict[Place, int]
    owed: Counter[Place] = field(default_factory=Counter)
    held: Counter[Place] = field(default_factory=Counter)
    withdrawals: dict[str, Held] = field(default_factory=dict)
    open: dict[Place, list[Held]] = field(default_factory=dict)
    settlements: dict[str, Any] = field(default_factory=dict)
    deficits: int = 0

    def available(self, place: Place) -> int:
        return self.posted[place] - self.held[place]

    # ── what happens ──────────────────────────────────────────────────────────────

    def withdraw(self, body: dict[str, Any]) -> None:
        """Hold an amount. A withdrawal that could not be accepted fails here."""
        place = (str(body["user_id"]), body["token"])
        amount = units(body["requested_quantity"])
        name = body["withdrawal_id"]
        assert name not in self.withdrawals, name
        assert amount <= self.available(place), name
        self.withdrawals[name] = held = Held(name, place, amount)
        self.open.setdefault(place, []).append(held)
        self.held[place] += amount

    def settle(self, value: bytes) -> str:
        """Book a trade; return what it is, or the reason for which it is set aside."""
        trade = _canonical(json.loads(value))
        name = trade["settlement_id"]
        if name in self.settlements:
            return "replayed" if self.settlements[name] == trade else "key_reused"
        sold, bought = trade["sold_quantity"], trade["bought_quantity"]
        place = (trade["user_id"], trade["sold_token"])
        held = self._find(trade, place)
        if held is not None and not held.is_open:
            if held.ended_by == trade:
                return "duplicate"
            return "withdrawal_cancelled" if held.is_cancelled else "withdrawal_settled"
        if name:
            self.settlements[name] = trade
        if held is None:
            result = "unsolicited"
        else:
            result = "settled" if sold else "cancelled"
            self._end(held, trade)
        self._debit(place, sold)
        self._credit((trade["user_id"], trade["bought_token"]), bought)
        return result

    # ── inside ────────────────────────────────────────────────────────────────────

    def _find(self, trade: Any, place: Place) -> Held | None:
        if trade["withdrawal_id"]:
            held = self.withdrawals.get(trade["withdrawal_id"])
            return held if held is not None and held.place == place else None
        held_here = self.open.get(place, [])
        exact = [held for held in held_here if held.amount == trade["sold_quantity"]]
        if len(exact) == 1:
            return exact[0]
        return held_here[0] if held_here else None

    def _end(self, held: Held, trade: Any) -> None:
        held.is_open = False
        held.is_cancelled = not trade["sold_quantity"]
        held.ended_by = trade
        self.open[held.place].remove(held)
        self.held[held.place] -= held.amount

    def _debit(self, place: Place, amount: int) -> None:
        paid = max(0, min(amount, self.available(place)))
        self.posted[place] -= paid
        self.owed[place] += amount - paid
        self.deficits += paid < amount

    def _credit(self, place: Place, amount: int) -> None:
        self.posted[place] += amount
        paid_back = max(0, min(amount, self.owed[place], self.available(place)))
        self.posted[place] -= paid_back
        self.owed[place] -= paid_back


def _canonical(trade: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that count, whichever way they were written."""
    found = {name: str(trade.get(name, "")) for name in ("user_id", "withdrawal_id")}
    found["settlement_id"] = str(trade.get("settlement_id", ""))
    for side in ("sold", "bought"):
        found[f"{side}_token"] = trade[f"{side}_token"]
        found[f"{side}_quantity"] = units(trade[f"{side}_quantity"])
    return found

"""The dumbest possible book: dicts of ints, one command at a time, copied before each.

Written from the contract, not from the code: no batches, no cache, no versions. A command
gives the code of its refusal, or None when it was done.
"""

import copy
from decimal import Decimal, InvalidOperation

from pennyweight.products.general import (
    CloseAccount,
    ExpireHold,
    OpenAccount,
    PlaceHold,
    Reverse,
    SettleHold,
    Transfer,
    Transfers,
    VoidHold,
)
from random_books import Fact

ASSETS = ("USD", "BTC")
UNIT = 10**18


class No(Exception):
    pass


def units(text):
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise No("amount_invalid") from None
    scaled = number.scaleb(18)
    if scaled <= 0:
        raise No("amount_not_positive")
    if scaled >= 10**38:
        raise No("amount_too_large")
    if scaled != int(scaled):
        raise No("amount_too_fine")
    return int(scaled)


class Book:
    """Accounts, holds and entries as plain dicts and lists."""

    def __init__(self):
        self.accounts = {}
        self.holds = {}
        self.entries = {}
        self.reversed = set()
        self.sequence = 0
        self.last_hold = 0
        self.credited = {}
        self.placed = {}
        self.moves = []

    def run(self, command, time):
        """Do a command, or leave everything as it was."""
        before = copy.deepcopy(self.__dict__)
        self.time, self.credited, self.placed, self.moves = time, {}, {}, []
        try:
            getattr(self, "do_" + command.name)(command)
            self.pay_back()
        except No as no:
            self.__dict__ = before
            return str(no)
        self.sequence += 1
        is_own = command.product == "ledger"
        self.entries[self.sequence] = (is_own, command.name, self.moves)
        return None

    # accounts

    def find(self, name):
        if name not in self.accounts:
            raise No("account_not_found")
        return self.accounts[name]

    def open(self, name, floor):
        self.accounts[name] = {
            "posted": 0, "held": 0, "owed": 0, "floor": floor, "closed": False, "history": [],
        }  # fmt: skip

    def open_own(self, *names):
        for name in names:
            if name.startswith(("world:", "house:", "owed:")) and name not in self.accounts:
                self.open(name, None)

    def do_open_account(self, command: OpenAccount):
        if command.account.startswith("owed:"):
            raise No("account_id_invalid")
        if command.floor is None:
            floor = 0 if command.account.startswith("user:") else None
        else:
            floor = int(Decimal(command.floor) * UNIT)
            if floor > 0:
                raise No("floor_invalid")
        if command.account in self.accounts:
            raise No("account_exists")
        self.open(command.account, floor)

    def do_close_account(self, command: CloseAccount):
        account = self.find(command.account)
        if not command.account.startswith("user:"):
            raise No("owned_by_product")
        if account["closed"]:
            raise No("account_closed")
        if any(
            h["account"] == command.account and h["state"] == "open" for h in self.holds.values()
        ):
            raise No("account_has_holds")
        if account["posted"]:
            raise No("account_has_balance")
        if account["owed"]:
            raise No("account_owes")
        account["closed"] = True

    # transfers

    def move(self, debit, credit, amount, asset=None):
        if debit == credit:
            raise No("same_account")
        source, target = self.find(debit), self.find(credit)
        assets = {debit.split(":")[-1], credit.split(":")[-1]}
        if len(assets) > 1 or (asset is not None and assets != {asset}):
            raise No("asset_mismatch")
        if source["closed"] or target["closed"]:
            raise No("account_closed")
        left = source["posted"] - source["held"] - amount
        if source["floor"] is not None and left < source["floor"]:
            raise No("insufficient_funds")
        source["posted"] -= amount
        target["posted"] += amount
        self.moves.append((debit, credit, amount))
        for account in (source, target):
            account["history"].append((account["posted"], account["held"]))
        if target["owed"]:
            self.credited[credit] = self.credited.get(credit, 0) + amount

    def pay_back(self):
        for name, credited in list(self.credited.items()):
            account = self.accounts[name]
            free = credited - self.placed.get(name, 0)
            if account["floor"] is not None:
                free = min(free, account["posted"] - account["held"] - account["floor"])
            payment = min(free, account["owed"])
            if payment > 0:
                account["owed"] -= payment
                self.move(name, f"owed:{name}", payment)

    def one(self, item):
        self.open_own(*[n for n in (item.debit_account, item.credit_account) if n[0] != "o"])
        amount = units(item.amount)
        names = (item.debit_account, item.credit_account)
        if names[0] != names[1] and any(name.startswith("owed:") for name in names):
            for name in names:
                self.find(name)
            raise No("owned_by_product")
        self.move(*names, amount, item.asset)

    def do_transfer(self, command: Transfer):
        self.one(command)

    def do_transfers(self, command: Transfers):
        for item in command.transfers:
            self.one(item)

    def do_fact(self, command: Fact):
        name = f"user:{command.user}:USD"
        self.open_own("house:USD")
        account = self.find(name)
        room = account["posted"] - account["held"] - account["floor"]
        if account["closed"]:
            room = 0
        paid = max(0, min(command.amount, room))
        if paid:
            self.move(name, "house:USD", paid)
        if command.amount - paid:
            self.open_own(f"owed:{name}")
            self.move(f"owed:{name}", "house:USD", command.amount - paid)
            account["owed"] += command.amount - paid

    def do_reverse(self, command: Reverse):
        if command.sequence not in self.entries:
            raise No("entry_not_found")
        is_own, name, moves = self.entries[command.sequence]
        if not is_own:
            raise No("owned_by_product")
        if name not in {"transfer", "transfers"}:
            raise No("entry_not_reversible")
        if command.sequence in self.reversed:
            raise No("entry_already_reversed")
        for debit, credit, amount in reversed(moves):
            if not credit.startswith("owed:"):
                self.move(credit, debit, amount)
        self.reversed.add(command.sequence)

    # holds

    def hold_line(self, name, change):
        account = self.accounts[name]
        account["held"] += change
        account["history"].append((account["posted"], account["held"]))

    def do_place_hold(self, command: PlaceHold):
        self.open_own(command.account if command.account[0] != "o" else "x")
        amount = units(command.amount)
        account = self.find(command.account)
        if command.account.startswith("owed:"):
            raise No("owned_by_product")
        if command.account.split(":")[-1] != command.asset:
            raise No("asset_mismatch")
        if account["closed"]:
            raise No("account_closed")
        left = account["posted"] - account["held"] - amount
        if account["floor"] is not None and left < account["floor"]:
            raise No("insufficient_funds")
        self.last_hold += 1
        seconds = command.expires_in_seconds
        self.holds[self.last_hold] = {
            "account": command.account,
            "remaining": amount,
            "state": "open",
            "expires_at": None if seconds is None else self.time + seconds * 1_000_000,
        }
        self.placed[command.account] = self.placed.get(command.account, 0) + amount
        self.hold_line(command.account, amount)

    def open_hold(self, hold_id):
        hold = self.holds[hold_id]
        if hold["state"] != "open":
            state = hold["state"]
            raise No("hold_expired" if state == "expired" else f"hold_already_{state}")
        return hold

    def some_hold(self, hold_id):
        if hold_id not in self.holds:
            raise No("hold_not_found")
        return self.holds[hold_id]

    def is_due(self, hold):
        return hold["expires_at"] is not None and hold["expires_at"] <= self.time

    def do_settle_hold(self, command: SettleHold):
        credit = command.credit_account
        self.open_own(credit if credit[0] != "o" else "x")
        amount = units(command.amount)
        hold = self.some_hold(command.hold)
        if credit.startswith("owed:"):
            self.find(credit)
            raise No("owned_by_product")
        if credit == hold["account"]:
            raise No("same_account")
        self.find(credit)
        self.open_hold(command.hold)
        if self.is_due(hold):
            raise No("hold_expired")
        rest = max(0, hold["remaining"] - amount) if command.is_rest_kept else 0
        released = hold["remaining"] - rest
        hold["remaining"] = rest
        hold["state"] = "open" if rest else "settled"
        self.hold_line(hold["account"], -released)
        self.move(hold["account"], credit, amount)

    def end(self, hold, state):
        remaining, hold["remaining"], hold["state"] = hold["remaining"], 0, state
        self.hold_line(hold["account"], -remaining)

    def do_void_hold(self, command: VoidHold):
        self.some_hold(command.hold)
        self.end(self.open_hold(command.hold), "voided")

    def do_expire_hold(self, command: ExpireHold):
        self.some_hold(command.hold)
        hold = self.open_hold(command.hold)
        if not self.is_due(hold):
            raise No("hold_not_due")
        self.end(hold, "expired")

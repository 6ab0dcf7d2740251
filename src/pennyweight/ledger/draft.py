"""The draft: an unfinished entry, on private copies of the facts it touches.

A rule gets a draft, looks facts up, changes them through a few verbs, and returns; or it
refuses, and the draft is dropped with all its copies, so nothing needs undoing. `seal`
makes the draft an entry, and only when debits equal credits per asset, every floor holds
and held sums match the holds; these checks are no `assert` and survive `python -O`.

Every verb checks first; after its line "nothing below may refuse" it only changes.
"""

from collections.abc import Iterable
from typing import Any, NoReturn, Protocol

import msgspec

from pennyweight.ledger.accounts import (
    ACCOUNTS_PER_HOLDER_MAX,
    HOLDS_OPEN_MAX,
    Account,
    asset_of,
    check_account_id,
    holder_of,
    is_bounded,
    owed_account,
)
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.entries import CursorMove, Entry, Event, Opening, Transfer
from pennyweight.ledger.holds import Hold, HoldChange, HoldState, HoldVerb
from pennyweight.ledger.lines import Line, push
from pennyweight.ledger.money import LIMIT, format_amount, to_units
from pennyweight.ledger.records import RANK_MAX, RANK_MIN, Mark, Record
from pennyweight.ledger.refusals import Reason, refuse

TRANSFERS_MAX = 64
"""Transfers in one atomic list or payment."""

_ENDS = {
    HoldState.SETTLED: (Reason.HOLD_ALREADY_SETTLED, "is settled already"),
    HoldState.VOIDED: (Reason.HOLD_ALREADY_VOIDED, "was voided"),
    HoldState.EXPIRED: (Reason.HOLD_EXPIRED, "has expired"),
}

_encoder = msgspec.json.Encoder()


class SealError(Exception):
    """A rule of ours broke the book's arithmetic. A bug, never a refusal."""


class Unloaded(Exception):
    """A fact was touched that has not been read. The engine reads it and decides again."""

    def __init__(self, shape: str, *what: Any) -> None:
        """`shape` names the method of `Wanted` that reads it, `what` its arguments."""
        super().__init__(shape, *what)
        self.shape = shape
        self.what = what


class Facts(Protocol):
    """What a draft stands on. Each look-up answers present, absent (None), or raises Unloaded."""

    time: int
    """When the batch commits, microseconds since 1970; strictly rising from batch to batch."""

    sequence: int
    """The sequence the entry will have if it is sealed."""

    def account(self, account_id: str) -> Account | None:
        """Return an account or None."""

    def accounts_of(self, holder: str) -> list[Account]:
        """Return all accounts of a holder."""

    def hold(self, hold_id: int) -> Hold | None:
        """Return a hold or None."""

    def hold_of_reference(self, owner: str, reference: str) -> Hold | None:
        """Return the hold that its owner calls so, or None."""

    def open_holds(self, account_id: str) -> list[Hold]:
        """Return an account's open holds, oldest first."""

    def entry(self, sequence: int) -> Entry | None:
        """Return a committed entry, or one sealed earlier in this batch, or None."""

    def entry_of_key(self, product: str, key: str) -> Entry | None:
        """Return the entry that bound this key, or None."""

    def record(self, kind: str, record_id: str) -> Record | None:
        """Return a record or None."""

    def record_of_holder(self, holder: str, kind: str, record_id: str) -> Record | None:
        """Return a record that is kept with a holder, or None."""

    def name(self, kind: str, name: str) -> str | None:
        """Return the id of the record that carries this unique name, or None."""

    def asset(self, name: str) -> Asset | None:
        """Return a registered asset or None. Assets are always loaded."""

    def counter(self, name: str) -> int:
        """Return how far a counter has counted. Counters are always loaded."""

    def cursor(self, name: str) -> int:
        """Return how far a reader of an outside stream got. Cursors are always loaded."""


class Draft:
    """An unfinished entry. The verbs of the ledger are its methods."""

    __slots__ = (
        "_accounts",
        "_before",
        "_counters",
        "_credited",
        "_hold_states",
        "_records",
        "closings",
        "cursors",
        "effective_at",
        "events",
        "facts",
        "hold_changes",
        "lines",
        "openings",
        "product",
        "records",
        "sequence",
        "time",
        "transfers",
    )

    def __init__(self, facts: Facts, product: str) -> None:
        """Begin an entry of this product on these facts."""
        self.facts = facts
        self.product = product
        self.time = facts.time
        self.sequence = facts.sequence
        self.effective_at: int | None = None
        self._accounts: dict[str, Account] = {}
        self._before: dict[str, Account] = {}
        self._credited: dict[str, int] = {}
        self._hold_states: dict[int, Hold] = {}
        self._records: dict[tuple[str, str], Record] = {}
        self._counters: dict[str, int] = {}
        self.openings: list[Opening] = []
        self.closings: list[str] = []
        self.transfers: list[Transfer] = []
        self.hold_changes: list[HoldChange] = []
        self.lines: list[Line] = []
        self.records: list[Record] = []
        self.events: list[Event] = []
        self.cursors: list[CursorMove] = []

    # ── looking up ────────────────────────────────────────────────────────────────

    def find_account(self, account_id: str) -> Account | None:
        """Return the account as this draft sees it, or None. Not to be changed by callers."""
        account = self._accounts.get(account_id)
        return account if account is not None else self.facts.account(account_id)

    def account(self, account_id: str) -> Account:
        """Return the account. Refusal: account_not_found."""
        account = self._accounts.get(account_id)
        if account is None:
            account = self.facts.account(account_id)
            if account is None:
                _no_account(account_id)
        return account

    def load(self, account_ids: Iterable[str]) -> None:
        """Have these accounts read in one further round if they are not loaded.

        For a rule that learns only while deciding which accounts it needs; touching them
        one by one would cost a round each.
        """
        missing = []
        for account_id in account_ids:
            try:
                self.find_account(account_id)
            except Unloaded:
                missing.append(account_id)
        if missing:
            raise Unloaded("accounts", *missing)

    def asset(self, name: str) -> Asset:
        """Return a registered asset. Refusal: asset_unknown."""
        asset = self.facts.asset(name)
        if asset is None:
            refuse(
                Reason.ASSET_UNKNOWN, f"{name[:40]!r} is not a registered asset", asset=name[:40]
            )
        return asset

    def units(self, amount: str | int, asset: str, *, is_zero_allowed: bool = False) -> int:
        """Return a request's amount in smallest units of the asset.

        Refusals: asset_unknown, amount_invalid, amount_not_positive, amount_too_large,
        amount_too_fine.
        """
        known = self.facts.asset(asset) or self.asset(asset)
        units = to_units(amount, known.scale)
        if units == 0 and not is_zero_allowed:
            refuse(Reason.AMOUNT_NOT_POSITIVE, "the amount must be greater than zero")
        return units

    def text(self, units: int, asset: str) -> str:
        """Write units of an asset as decimal text."""
        return format_amount(units, self.asset(asset).scale)

    def find_hold(self, hold_id: int) -> Hold | None:
        """Return a hold, open or not, as this draft sees it, or None."""
        return self._hold_states.get(hold_id) or self.facts.hold(hold_id)

    def hold(self, hold_id: int) -> Hold:
        """Return a hold, open or not. Refusal: hold_not_found."""
        hold = self.find_hold(hold_id)
        if hold is None:
            refuse(Reason.HOLD_NOT_FOUND, f"there is no hold {hold_id}")
        return hold

    def hold_of_reference(self, reference: str) -> Hold | None:
        """Return the hold that this product calls so, as this draft sees it, or None."""
        for hold in self._hold_states.values():
            if hold.reference == reference and hold.owner == self.product:
                return hold
        return self.facts.hold_of_reference(self.product, reference)

    def open_holds(self, account_id: str) -> list[Hold]:
        """Return the account's open holds as this draft sees them, oldest first."""
        holds = {hold.id: hold for hold in self.facts.open_holds(account_id)}
        for hold in self._hold_states.values():
            if hold.account == account_id:
                holds[hold.id] = hold
        return sorted(
            (hold for hold in holds.values() if hold.state is HoldState.OPEN),
            key=lambda hold: hold.id,
        )

    def record(self, kind: str, record_id: str, *, holder: str = "") -> Record | None:
        """Return a record as this draft sees it, or None; `holder` if it is kept with one."""
        record = self._records.get((kind, record_id))
        if record is not None:
            return record
        if holder:
            return self.facts.record_of_holder(holder, kind, record_id)
        return self.facts.record(kind, record_id)

    def name(self, kind: str, name: str) -> str | None:
        """Return the id of the record that carries this unique name, or None."""
        for record in self._records.values():
            if record.kind == kind and name in record.names:
                return record.id
        found = self.facts.name(kind, name)
        if found is not None and (kind, found) in self._records:
            return None
        return found

    # ── accounts ──────────────────────────────────────────────────────────────────

    def open_account(
        self, account_id: str, *, floor: int | msgspec.UnsetType | None = msgspec.UNSET
    ) -> Account:
        """Open an account and return it.

        The floor is the holder's usual one (0; none for world, house and the book's own)
        unless one of at most 0 smallest units is given. Refusals: account_id_invalid,
        asset_unknown, floor_invalid, account_exists, too_many_accounts.
        """
        if self.find_account(account_id) is not None:
            refuse(
                Reason.ACCOUNT_EXISTS, f"account {account_id!r} exists already", account=account_id
            )
        check_account_id(account_id, is_own=True)
        asset = asset_of(account_id)
        self.asset(asset)
        holder = holder_of(account_id)
        if len(self.facts.accounts_of(holder)) + len(self.openings) >= ACCOUNTS_PER_HOLDER_MAX:
            refuse(
                Reason.TOO_MANY_ACCOUNTS,
                f"a holder has at most {ACCOUNTS_PER_HOLDER_MAX} accounts",
            )
        # ── nothing below may refuse ──
        if isinstance(floor, msgspec.UnsetType):
            floor = 0 if is_bounded(account_id) else None
        number = self.next_number("account")
        account = Account(number, account_id, holder, asset, floor)
        self._accounts[account_id] = account
        self.openings.append(Opening(number, account_id, holder, asset, floor))
        return account

    def own_account(self, account_id: str) -> str:
        """Return this id, opening the account if the book has not needed it before.

        For the book's own side: world, house, suspense, owed, venues.
        """
        if self.find_account(account_id) is None:
            self.open_account(account_id)
        return account_id

    def close_account(self, account_id: str) -> Account:
        """Close an account; it refuses everything from then on.

        Refusals: account_not_found, account_closed, account_has_holds,
        account_has_balance, account_owes.
        """
        account = self.account(account_id)
        if account.is_closed:
            _closed(account)
        if account.open_holds:
            refuse(
                Reason.ACCOUNT_HAS_HOLDS,
                f"account {account_id!r} has {account.open_holds} open holds",
                open_holds=account.open_holds,
            )
        if account.posted:
            refuse(
                Reason.ACCOUNT_HAS_BALANCE,
                f"account {account_id!r} still has a balance",
                posted=self.text(account.posted, account.asset),
            )
        if account.owed:
            refuse(
                Reason.ACCOUNT_OWES,
                f"account {account_id!r} still owes",
                owed=self.text(account.owed, account.asset),
            )
        # ── nothing below may refuse ──
        account = self._touch(account_id)
        account.is_closed = True
        self.closings.append(account_id)
        return account

    # ── transfers ─────────────────────────────────────────────────────────────────

    def transfer(
        self, debit_id: str, credit_id: str, amount: int, *, asset: str | None = None
    ) -> None:
        """Move an amount of smallest units from one account to the other.

        `asset` is what the caller believes both hold. Refusals: amount_not_positive,
        same_account, account_not_found, asset_mismatch, account_closed,
        insufficient_funds, balance_too_large.
        """
        if amount <= 0:
            refuse(Reason.AMOUNT_NOT_POSITIVE, "the amount must be greater than zero")
        if debit_id == credit_id:
            refuse(Reason.SAME_ACCOUNT, "debit and credit account are the same")
        debit = self._accounts.get(debit_id) or self._touch(debit_id)
        credit = self._accounts.get(credit_id) or self._touch(credit_id)
        if debit.asset != credit.asset:
            refuse(
                Reason.ASSET_MISMATCH,
                f"{debit_id!r} holds {debit.asset}, {credit_id!r} holds {credit.asset}",
            )
        if asset is not None and debit.asset != asset:
            refuse(Reason.ASSET_MISMATCH, f"these accounts do not hold {asset}", asset=asset)
        if debit.is_closed:
            _closed(debit)
        if credit.is_closed:
            _closed(credit)
        debit_posted = debit.posted - amount
        credit_posted = credit.posted + amount
        if debit.floor is not None and debit_posted - debit.held < debit.floor:
            self._unfunded(debit, amount)
        if credit_posted >= LIMIT or debit_posted <= -LIMIT:
            refuse(Reason.BALANCE_TOO_LARGE, "a balance would exceed 38 digits of smallest units")
        # ── nothing below may refuse ──
        change = len(self.transfers)
        debit.posted = debit_posted
        credit.posted = credit_posted
        self.transfers.append(Transfer(debit_id, credit_id, amount))
        self._line(debit, change)
        self._line(credit, change)
        if credit.owed:  # paid back at the seal
            self._credited[credit_id] = self._credited.get(credit_id, 0) + amount

    def take(self, debit_id: str, credit_id: str, amount: int) -> int:
        """Book a fact that debits an account, and return what of it is now owed.

        What the account has above its floor goes to the credit account; what is missing
        goes there too, from the account's owed account, and later credits pay it back
        first. A closed account has nothing to give: all of it is owed. Refusals: those
        of `transfer` but insufficient_funds.
        """
        debit = self.account(debit_id)
        room = amount if debit.floor is None else debit.available - debit.floor
        if debit.is_closed:
            room = 0
        paid = max(0, min(amount, room))
        if paid:
            self.transfer(debit_id, credit_id, paid)
        missing = amount - paid
        if missing:
            self.transfer(self.own_account(owed_account(debit_id)), credit_id, missing)
            self._touch(debit_id).owed += missing
        return missing

    def pay_owed(self) -> None:
        """Let credits of this entry pay back what their accounts owe, in visible transfers.

        Sealing does it; a rule whose answer shows what is then left calls it as its last verb.
        """
        if not self._credited:
            return
        placed: dict[str, int] = {}
        for change in self.hold_changes:
            if change.verb == "place":
                placed[change.hold.account] = placed.get(change.hold.account, 0) + change.held
        credited_accounts, self._credited = self._credited, {}
        for account_id, credited in credited_accounts.items():
            account = self._accounts[account_id]
            free = credited - placed.get(account_id, 0)
            room = free if account.floor is None else account.available - account.floor
            payment = min(free, account.owed, room)
            if payment > 0:
                account.owed -= payment
                self.transfer(account_id, self.own_account(owed_account(account_id)), payment)

    # ── holds ─────────────────────────────────────────────────────────────────────

    def place_hold(
        self,
        account_id: str,
        amount: int,
        *,
        expires_at: int | None = None,
        reference: str = "",
    ) -> Hold:
        """Set an amount of smallest units aside and return the hold, owned by the draft's product.

        `reference` is the product's own name for it, which the rule has found to be free.
        Refusals: amount_not_positive, account_not_found, account_closed, expiry_invalid
        (not in the future), too_many_holds, insufficient_funds, balance_too_large.
        """
        if amount <= 0:
            refuse(Reason.AMOUNT_NOT_POSITIVE, "the amount must be greater than zero")
        if expires_at is not None and not self.time < expires_at <= RANK_MAX:
            refuse(Reason.EXPIRY_INVALID, "a hold expires in the future or not at all")
        account = self._touch(account_id)
        if account.is_closed:
            _closed(account)
        if account.open_holds >= HOLDS_OPEN_MAX:
            refuse(Reason.TOO_MANY_HOLDS, f"an account has at most {HOLDS_OPEN_MAX} open holds")
        if account.floor is not None and account.available - amount < account.floor:
            self._unfunded(account, amount)
        if account.held + amount >= LIMIT:
            refuse(Reason.BALANCE_TOO_LARGE, "the held amount would exceed 38 digits")
        # ── nothing below may refuse ──
        hold = Hold(
            self.next_number("hold"),
            account_id,
            account.asset,
            amount,
            amount,
            self.product,
            expires_at=expires_at,
            reference=reference,
            placed_at=self.time,
            changed_by=self.sequence,
        )
        account.open_holds += 1
        self._change_hold("place", hold, account, amount)
        return hold

    def settle_hold(
        self, hold_id: int, credit_id: str, amount: int, *, is_rest_kept: bool = False
    ) -> Hold:
        """Pay from a hold and return it as it is then.

        Up to what remains comes out of the hold; more than that is debited from what the
        account has available. The rest is released, or stays held if `is_rest_kept`.
        Refusals: those of `transfer`; hold_not_found, owned_by_product,
        hold_already_settled, hold_already_voided, hold_expired.
        """
        if amount <= 0:
            refuse(Reason.AMOUNT_NOT_POSITIVE, "the amount must be greater than zero")
        hold = self.hold(hold_id)
        if hold.account == credit_id:
            refuse(Reason.SAME_ACCOUNT, "a hold cannot be paid to its own account")
        self.account(credit_id)
        self.open_hold(hold_id)
        from_hold = min(amount, hold.remaining)
        left = hold.remaining - from_hold if is_rest_kept else 0
        account = self._touch(hold.account)
        released = hold.remaining - left
        # The transfer below checks the floor against what is available once released.
        state = HoldState.OPEN if left else HoldState.SETTLED
        if state is HoldState.SETTLED:
            account.open_holds -= 1
        settled = msgspec.structs.replace(
            hold, remaining=left, state=state, changed_by=self.sequence
        )
        self._change_hold("settle", settled, account, -released)
        self.transfer(hold.account, credit_id, amount)
        return settled

    def void_hold(self, hold_id: int) -> Hold:
        """Release a hold and return it.

        Refusals: hold_not_found, owned_by_product, hold_already_settled,
        hold_already_voided, hold_expired.
        """
        hold = self.open_hold(hold_id, is_expiry_checked=False)
        return self._release(hold, "void", HoldState.VOIDED)

    def expire_hold(self, hold_id: int) -> Hold:
        """Release a hold whose time is over and return it, whoever owns it.

        Refusals: hold_not_found, hold_not_due, hold_already_settled, hold_already_voided,
        hold_expired.
        """
        hold = self._still_open(self.hold(hold_id))
        if hold.expires_at is None or hold.expires_at > self.time:
            refuse(Reason.HOLD_NOT_DUE, f"hold {hold_id} has not expired yet")
        return self._release(hold, "expire", HoldState.EXPIRED)

    def open_hold(self, hold_id: int, *, is_expiry_checked: bool = True) -> Hold:
        """Return a hold that this product may settle or void.

        Refusals: hold_not_found, owned_by_product, hold_already_settled,
        hold_already_voided, hold_expired (also when its time is over but nobody has
        expired it yet).
        """
        hold = self.hold(hold_id)
        if hold.owner != self.product:
            refuse(
                Reason.OWNED_BY_PRODUCT,
                f"hold {hold_id} belongs to {hold.owner}",
                owner=hold.owner,
            )
        self._still_open(hold)
        if is_expiry_checked and hold.expires_at is not None and hold.expires_at <= self.time:
            refuse(Reason.HOLD_EXPIRED, f"hold {hold_id} has expired")
        return hold

    # ── records, events, cursors, counters ────────────────────────────────────────

    def put_record(
        self,
        kind: str,
        record_id: str,
        body: Any,
        *,
        before: Record | None,
        labels: tuple[str, ...] = (),
        names: tuple[str, ...] = (),
        marks: tuple[Mark, ...] = (),
        holder: str = "",
    ) -> Record:
        """Write a record and return it. `before` is the record as the rule has read it.

        None for `before` says that it is new: the rule has looked, or has just numbered
        it. Refusals: owned_by_product, name_taken.
        """
        if before is not None and before.product != self.product:
            refuse(
                Reason.OWNED_BY_PRODUCT,
                f"{kind} {record_id!r} belongs to {before.product}",
                owner=before.product,
            )
        for name in names:
            if self.name(kind, name) not in {None, record_id}:
                refuse(Reason.NAME_TAKEN, f"{name[:80]!r} is taken", name=name[:80])
        for mark in marks:
            if not RANK_MIN <= mark.rank <= RANK_MAX:
                raise SealError(f"rank of {mark} does not fit 64 bits")
        # ── nothing below may refuse ──
        record = Record(
            kind,
            record_id,
            self.product,
            before.version + 1 if before else 1,
            msgspec.Raw(_encoder.encode(body)),
            labels,
            names,
            marks,
            holder,
        )
        self._records[kind, record_id] = record
        return record

    def emit(self, name: str, body: Any) -> None:
        """Add an event for the outside; `body` is anything that becomes JSON."""
        self.events.append(Event(name, body))

    def move_cursor(self, name: str, before: int, after: int) -> None:
        """Advance the cursor of a reader together with the effects of what it read.

        Refusal: cursor_conflict when the cursor is not at `before`.
        """
        at = self.facts.cursor(name)
        if at != before or after < before:
            refuse(Reason.CURSOR_CONFLICT, f"cursor {name!r} is at {at}, not at {before}")
        self.cursors.append(CursorMove(name, before, after))

    def next_number(self, counter: str) -> int:
        """Return the next number, 1, 2, 3 …, of a counter; given back if the draft is dropped."""
        counters = self._counters
        number = counters.get(counter)
        number = (self.facts.counter(counter) if number is None else number) + 1
        counters[counter] = number
        return number

    def date(self, effective_at: int | None) -> None:
        """Give the entry the caller's date. Refusal: effective_at_in_future."""
        if effective_at is not None and effective_at > self.time:
            refuse(Reason.EFFECTIVE_AT_IN_FUTURE, "effective_at lies after the commit")
        self.effective_at = effective_at

    # ── sealing ───────────────────────────────────────────────────────────────────

    def seal(self) -> None:
        """Pay what is owed, check the arithmetic, and stamp what changed.

        Raises SealError if a rule of ours moved money without a counterpart, went below
        a floor or held what no hold accounts for: checked here on the balances before
        and after, and by the stores once more.
        """
        if self._credited:
            self.pay_owed()
        posted: dict[str, int] = {}
        held = 0
        for account_id, account in self._accounts.items():
            floor = account.floor
            if account.held < 0 or (floor is not None and account.posted - account.held < floor):
                raise SealError(f"{account_id} would go below its floor")
            change = account.posted
            held += account.held
            before = self._before.get(account_id)
            if before is not None:
                change -= before.posted
                held -= before.held
            asset = account.asset
            posted[asset] = posted.get(asset, 0) + change
            account.version = self.sequence
        if any(posted.values()):
            raise SealError(f"debits and credits differ: {posted}")
        if self.hold_changes:
            held -= sum(change.held for change in self.hold_changes)
        if held:
            raise SealError("held amounts differ from the holds")
        if self._records:
            self.records = list(self._records.values())

    @property
    def changed_accounts(self) -> dict[str, Account]:
        """The accounts this draft touched for a change, by id."""
        return self._accounts

    @property
    def changed_holds(self) -> dict[int, Hold]:
        """The holds this draft changed, by id."""
        return self._hold_states

    @property
    def counters(self) -> dict[str, int]:
        """The counters this draft advanced, and how far."""
        return self._counters

    # ── inside ────────────────────────────────────────────────────────────────────

    def _touch(self, account_id: str) -> Account:
        """Return the draft's own copy of an account. Refusal: account_not_found."""
        account = self._accounts.get(account_id)
        if account is None:
            committed = self.facts.account(account_id)
            if committed is None:
                _no_account(account_id)
            self._before[account_id] = committed
            account = self._accounts[account_id] = committed.__copy__()  # type: ignore[attr-defined]
        return account

    def _line(self, account: Account, change: int) -> None:
        """Write the next statement line of an account, balances as they now are."""
        account.lines += 1
        account.roots, previous, jump = push(account.roots, self.sequence)
        self.lines.append(
            Line(account.id, account.lines, change, account.posted, account.held, previous, jump)
        )

    def _change_hold(self, verb: HoldVerb, hold: Hold, account: Account, held: int) -> None:
        """Note a hold's change, with the account's held amount and its line."""
        account.held += held
        self._hold_states[hold.id] = hold
        self.hold_changes.append(HoldChange(verb, held, hold))
        self._line(account, -len(self.hold_changes))

    def _release(self, hold: Hold, verb: HoldVerb, state: HoldState) -> Hold:
        """End a hold without paying."""
        account = self._touch(hold.account)
        account.open_holds -= 1
        released = msgspec.structs.replace(hold, remaining=0, state=state, changed_by=self.sequence)
        self._change_hold(verb, released, account, -hold.remaining)
        return released

    def _still_open(self, hold: Hold) -> Hold:
        """Return the hold if it is open. Refusals: one for each way it can have ended."""
        if hold.state is not HoldState.OPEN:
            reason, fate = _ENDS[hold.state]
            refuse(reason, f"hold {hold.id} {fate}")
        return hold

    def _unfunded(self, account: Account, needed: int) -> NoReturn:
        """Refuse for want of funds, with the figures that explain it."""
        asset = account.asset
        refuse(
            Reason.INSUFFICIENT_FUNDS,
            f"account {account.id!r} does not have enough available",
            account=account.id,
            available=self.text(account.available, asset),
            held=self.text(account.held, asset),
            needed=self.text(needed, asset),
        )


def _no_account(account_id: str) -> NoReturn:
    refuse(
        Reason.ACCOUNT_NOT_FOUND,
        f"there is no account {account_id[:80]!r}",
        account=account_id[:80],
    )


def _closed(account: Account) -> NoReturn:
    refuse(Reason.ACCOUNT_CLOSED, f"account {account.id!r} is closed", account=account.id)

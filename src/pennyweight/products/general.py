"""The ledger's own verbs: assets, accounts, transfers, holds and reversals, as `/v1` offers them.

They act on what the ledger itself owns; holds and entries of other products refuse them
(`owned_by_product`). Amounts in commands are canonical decimal text (`money.canonical`).
"""

import msgspec

from pennyweight.ledger.accounts import (
    WORLD,
    Account,
    asset_of,
    check_account_id,
    is_bounded,
    user_account,
    user_holder,
)
from pennyweight.ledger.assets import SCALE_MAX, Asset, is_asset_name
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import TRANSFERS_MAX, Draft
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.money import canonical, format_amount, to_units
from pennyweight.ledger.refusals import Reason, Refused, refuse

PRODUCT = "ledger"
ASSET = "asset"
REVERSAL = "reversal"

_CUSTOMERS = ("user:", "account:")
_OPENED_BY_USE = ("world:", "house:")
_HOLD_SECONDS_MAX = 10 * 366 * 86_400


class AccountAnswer(msgspec.Struct, frozen=True):
    """An account as `/v1` shows it; amounts are decimal text, floor null for no limit."""

    id: str
    holder: str
    asset: str
    floor: str | None
    posted: str
    held: str
    available: str
    closed: bool


class TransferAnswer(msgspec.Struct, frozen=True, gc=False):
    """A committed transfer. `id` is the caller's, else `<sequence>.<position in the entry>`."""

    id: str
    sequence: int
    debit_account: str
    credit_account: str
    asset: str
    amount: str
    committed_at: int
    effective_at: int


class TransfersAnswer(msgspec.Struct, frozen=True):
    """An atomic list's transfers, in request order."""

    sequence: int
    transfers: list[TransferAnswer]


class BalancesAnswer(msgspec.Struct, frozen=True):
    """The accounts that were given opening balances, in the order asked for."""

    sequence: int
    accounts: list[str]


class HoldAnswer(msgspec.Struct, frozen=True):
    """A hold as `/v1` shows it; amounts are decimal text, `expires_at` microseconds or null."""

    id: str
    account: str
    asset: str
    amount: str
    remaining: str
    owner: str
    expires_at: int | None
    state: str


class ReversalAnswer(msgspec.Struct, frozen=True):
    """The entry that undid another one, with the transfers it made."""

    sequence: int
    reversed_sequence: int
    transfers: list[TransferAnswer]


# ── assets ────────────────────────────────────────────────────────────────────────


class RegisterAsset(Command, frozen=True):
    """Register an asset with its scale, for ever. Registering it again alike changes nothing.

    Refusals: asset_invalid, asset_scale_fixed.
    """

    name = "register_asset"
    product = PRODUCT
    counted = ("asset", "scale", "currency_id")
    answer_type = Asset

    asset: str
    scale: int
    currency_id: int

    def reads(self, wanted: Wanted) -> None:
        """The asset's record."""
        wanted.record(ASSET, self.asset)

    def decide(self, draft: Draft) -> Asset:
        """See the class."""
        if (
            not is_asset_name(self.asset)
            or not 0 <= self.scale <= SCALE_MAX
            or self.currency_id < 1
        ):
            refuse(
                Reason.ASSET_INVALID,
                f"an asset is named in capitals and has 0 to {SCALE_MAX} decimals",
                asset=self.asset[:40],
                scale=self.scale,
            )
        asset = Asset(self.asset, self.scale, self.currency_id)
        before = draft.facts.asset(self.asset)
        if before is not None and before != asset:
            refuse(
                Reason.ASSET_SCALE_FIXED,
                f"{self.asset} is registered with scale {before.scale}, for ever",
                scale=before.scale,
            )
        if before is None:
            draft.put_record(
                ASSET, self.asset, asset, before=None, names=(f"id:{self.currency_id}",)
            )
        return asset


# ── accounts ──────────────────────────────────────────────────────────────────────


class OpenAccount(Command, frozen=True):
    """Open an account by its id, with a floor of at most zero if not the holder's usual one.

    Refusals: account_id_invalid, owned_by_product (`account:<n>` is numbered by payments),
    asset_unknown, floor_invalid, account_exists, too_many_accounts, and those of an amount.
    """

    name = "open_account"
    product = PRODUCT
    counted = ("account", "floor")
    answer_type = AccountAnswer

    account: str
    floor: str | None = None

    def reads(self, wanted: Wanted) -> None:
        """The account's holder."""
        check_account_id(self.account)
        wanted.account(self.account)

    def decide(self, draft: Draft) -> AccountAnswer:
        """See the class."""
        asset = draft.asset(asset_of(self.account))
        floor: int | msgspec.UnsetType = msgspec.UNSET
        if self.floor is not None:
            floor = to_units(self.floor, asset.scale, signed=True)
            if floor > 0:
                refuse(Reason.FLOOR_INVALID, "a floor is zero or below", floor=self.floor)
        if self.account.startswith("account:"):
            refuse(
                Reason.OWNED_BY_PRODUCT,
                "accounts under 'account' are opened and numbered by payments",
                owner="payments",
            )
        return account_answer(draft, draft.open_account(self.account, floor=floor))


class CloseAccount(Command, frozen=True):
    """Close an account with a zero balance.

    Refusals: account_not_found, owned_by_product (the book's own), account_closed,
    account_has_holds, account_has_balance, account_owes.
    """

    name = "close_account"
    product = PRODUCT
    counted = ("account",)
    answer_type = AccountAnswer

    account: str

    def reads(self, wanted: Wanted) -> None:
        """The account."""
        wanted.account(self.account)

    def decide(self, draft: Draft) -> AccountAnswer:
        """See the class."""
        account = draft.account(self.account)
        if not is_bounded(account.id):
            refuse(Reason.OWNED_BY_PRODUCT, f"{self.account!r} is the book's own", owner="book")
        return account_answer(draft, draft.close_account(self.account))


# ── transfers ─────────────────────────────────────────────────────────────────────


class Transfer(Command, frozen=True):
    """Move an amount of an asset from one account to another.

    `id` is the caller's name for it; `effective_at` (microseconds) dates it back.
    Refusals: those of `Draft.transfer` and of an amount, asset_unknown,
    effective_at_in_future, account_id_invalid. `world:` and `house:` accounts of a known
    asset need no opening.
    """

    name = "transfer"
    product = PRODUCT
    counted = ("debit_account", "credit_account", "asset", "amount", "effective_at", "id")
    answer_type = TransferAnswer

    debit_account: str
    credit_account: str
    asset: str
    amount: str
    effective_at: int | None = None
    id: str = ""

    def reads(self, wanted: Wanted) -> None:
        """Both accounts."""
        wanted.account(self.debit_account)
        wanted.account(self.credit_account)

    def decide(self, draft: Draft) -> TransferAnswer:
        """See the class."""
        if self.effective_at is not None:
            draft.date(self.effective_at)
        return _move(draft, self, 0)


class TransferItem(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One transfer of an atomic list."""

    debit_account: str
    credit_account: str
    asset: str
    amount: str
    id: str = ""


class Transfers(Command, frozen=True):
    """Make up to 64 transfers, all or none; floors are checked transfer by transfer, in order.

    Refusals: those of `Transfer`, with `position` of the first transfer that cannot be
    made; too_many_transfers.
    """

    name = "transfers"
    product = PRODUCT
    counted = ("transfers", "effective_at")
    answer_type = TransfersAnswer

    transfers: tuple[TransferItem, ...]
    effective_at: int | None = None

    def reads(self, wanted: Wanted) -> None:
        """All accounts."""
        _check_count(len(self.transfers))
        for item in self.transfers:
            wanted.account(item.debit_account)
            wanted.account(item.credit_account)

    def decide(self, draft: Draft) -> TransfersAnswer:
        """See the class."""
        draft.date(self.effective_at)
        answers: list[TransferAnswer] = []
        for position, item in enumerate(self.transfers):
            try:
                answers.append(_move(draft, item, position))
            except Refused as refused:
                refused.figures["position"] = position
                raise
        return TransfersAnswer(draft.sequence, answers)


def _check_count(count: int) -> None:
    if not 0 < count <= TRANSFERS_MAX:
        refuse(
            Reason.TOO_MANY_TRANSFERS,
            f"an atomic list has 1 to {TRANSFERS_MAX} transfers",
            transfers=count,
        )


def _move(draft: Draft, item: Transfer | TransferItem, position: int) -> TransferAnswer:
    """Make one transfer of a request."""
    debit, credit = item.debit_account, item.credit_account
    is_plain = debit.startswith(_CUSTOMERS) and credit.startswith(_CUSTOMERS)
    if not is_plain:
        _open_own(draft, debit, credit)
    units = draft.units(item.amount, item.asset)
    if not is_plain and debit != credit:
        _keep_off_owed(draft, debit, credit)
    draft.transfer(debit, credit, units, asset=item.asset)
    return TransferAnswer(
        item.id or f"{draft.sequence}.{position}",
        draft.sequence,
        debit,
        credit,
        item.asset,
        item.amount,
        draft.time,
        draft.time if draft.effective_at is None else draft.effective_at,
    )


def _open_own(draft: Draft, *account_ids: str) -> None:
    """Open world and house accounts at their first use. Refusals: account_id_invalid, asset_unknown."""
    own = [account_id for account_id in account_ids if account_id.startswith(_OPENED_BY_USE)]
    for account_id in own:
        check_account_id(account_id)
    for account_id in own:
        draft.own_account(account_id)


def _keep_off_owed(draft: Draft, *account_ids: str) -> None:
    """Keep callers off the accounts that book what is owed.

    Refusals: account_not_found, owned_by_product.
    """
    owed = [account_id for account_id in account_ids if account_id.startswith("owed:")]
    if owed:
        for account_id in account_ids:
            draft.account(account_id)
        refuse(Reason.OWNED_BY_PRODUCT, f"{owed[0]!r} is the book's own", owner="book")


# ── opening balances ──────────────────────────────────────────────────────────────


class LoadBalances(Command, frozen=True):
    """Give a user opening balances from `world`, all or none; a zero opens the account only.

    `balances` are pairs of asset and amount, each asset once. What the user has already
    is added to. Refusals: user_id_invalid, too_many_transfers, asset_unknown, those of an
    amount, account_closed, too_many_accounts, balance_too_large.
    """

    name = "load_balances"
    product = PRODUCT
    counted = ("user", "balances")
    answer_type = BalancesAnswer

    user: str
    balances: tuple[tuple[str, str], ...]

    def reads(self, wanted: Wanted) -> None:
        """The user, and the outside world."""
        _check_count(len(self.balances))
        wanted.holder(user_holder(self.user))
        wanted.holder(WORLD)

    def decide(self, draft: Draft) -> BalancesAnswer:
        """See the class."""
        loaded: list[str] = []
        for asset, amount in self.balances:
            units = draft.units(amount, asset, is_zero_allowed=True)
            account_id = user_account(self.user, asset)
            account = draft.find_account(account_id)
            if account is None:
                draft.open_account(account_id)
            elif account.is_closed:
                refuse(
                    Reason.ACCOUNT_CLOSED, f"account {account_id!r} is closed", account=account_id
                )
            if units:
                draft.transfer(draft.own_account(f"{WORLD}:{asset}"), account_id, units)
            loaded.append(account_id)
        return BalancesAnswer(draft.sequence, loaded)


# ── holds ─────────────────────────────────────────────────────────────────────────


class PlaceHold(Command, frozen=True):
    """Set an amount of an account aside, for ever or for a number of seconds.

    Refusals: those of `Draft.place_hold` and of an amount, asset_unknown, asset_mismatch,
    expiry_invalid.
    """

    name = "place_hold"
    product = PRODUCT
    counted = ("account", "asset", "amount", "expires_in_seconds")
    answer_type = HoldAnswer

    account: str
    asset: str
    amount: str
    expires_in_seconds: int | None = None

    def reads(self, wanted: Wanted) -> None:
        """The account."""
        wanted.account(self.account)

    def decide(self, draft: Draft) -> HoldAnswer:
        """See the class."""
        _open_own(draft, self.account)
        units = draft.units(self.amount, self.asset)
        expires_at = None
        if self.expires_in_seconds is not None:
            if not 0 < self.expires_in_seconds <= _HOLD_SECONDS_MAX:
                refuse(Reason.EXPIRY_INVALID, f"a hold lasts from 1 to {_HOLD_SECONDS_MAX} seconds")
            expires_at = draft.time + self.expires_in_seconds * 1_000_000
        _keep_off_owed(draft, self.account)
        account = draft.account(self.account)
        if account.asset != self.asset:
            refuse(Reason.ASSET_MISMATCH, f"{self.account!r} does not hold {self.asset}")
        return hold_answer(draft, draft.place_hold(self.account, units, expires_at=expires_at))


class SettleHold(Command, frozen=True):
    """Pay from a hold to an account; the rest is released, or kept if `is_rest_kept`.

    An amount above what remains is taken from what the account has available besides.
    Refusals: those of `Draft.settle_hold` and of an amount.
    """

    name = "settle_hold"
    product = PRODUCT
    counted = ("hold", "amount", "credit_account", "is_rest_kept")
    answer_type = HoldAnswer

    hold: int
    amount: str
    credit_account: str
    is_rest_kept: bool = False

    def reads(self, wanted: Wanted) -> None:
        """The hold with its account, and the account that is paid."""
        wanted.hold(self.hold)
        wanted.account(self.credit_account)

    def decide(self, draft: Draft) -> HoldAnswer:
        """See the class."""
        _open_own(draft, self.credit_account)
        if canonical(self.amount) == "0":
            refuse(Reason.AMOUNT_NOT_POSITIVE, "the amount must be greater than zero")
        units = draft.units(self.amount, draft.hold(self.hold).asset)
        _keep_off_owed(draft, self.credit_account)
        settled = draft.settle_hold(
            self.hold, self.credit_account, units, is_rest_kept=self.is_rest_kept
        )
        return hold_answer(draft, settled)


class VoidHold(Command, frozen=True):
    """Release a hold. Refusals: those of `Draft.void_hold`."""

    name = "void_hold"
    product = PRODUCT
    counted = ("hold",)
    answer_type = HoldAnswer

    hold: int

    def reads(self, wanted: Wanted) -> None:
        """The hold with its account."""
        wanted.hold(self.hold)

    def decide(self, draft: Draft) -> HoldAnswer:
        """See the class."""
        return hold_answer(draft, draft.void_hold(self.hold))


class ExpireHold(Command, frozen=True):
    """Release a hold whose time is over, whoever owns it; the timer's command.

    Refusals: those of `Draft.expire_hold`.
    """

    name = "expire_hold"
    product = PRODUCT
    counted = ("hold",)
    answer_type = HoldAnswer

    hold: int

    def reads(self, wanted: Wanted) -> None:
        """The hold with its account."""
        wanted.hold(self.hold)

    def decide(self, draft: Draft) -> HoldAnswer:
        """See the class."""
        return hold_answer(draft, draft.expire_hold(self.hold))


# ── reversal ──────────────────────────────────────────────────────────────────────


class Reverse(Command, frozen=True):
    """Undo an entry of the ledger's own transfers, once, by a new entry.

    What the entry paid back of something owed stays paid back.
    Refusals: entry_not_found, owned_by_product, entry_not_reversible (it made no
    transfers, changed holds, or is itself a reversal), entry_already_reversed, and those
    of `Draft.transfer`.
    """

    name = "reverse"
    product = PRODUCT
    counted = ("sequence", "effective_at")
    answer_type = ReversalAnswer

    sequence: int
    effective_at: int | None = None

    def reads(self, wanted: Wanted) -> None:
        """The entry with its accounts, and whether it was reversed."""
        wanted.entry(self.sequence)
        wanted.record(REVERSAL, str(self.sequence))

    def decide(self, draft: Draft) -> ReversalAnswer:
        """See the class."""
        draft.date(self.effective_at)
        entry = draft.facts.entry(self.sequence)
        if entry is None:
            refuse(Reason.ENTRY_NOT_FOUND, f"there is no entry {self.sequence}")
        if entry.product != self.product:
            refuse(
                Reason.OWNED_BY_PRODUCT,
                f"entry {self.sequence} belongs to {entry.product}",
                owner=entry.product,
            )
        if entry.command not in {Transfer.name, Transfers.name}:
            refuse(
                Reason.ENTRY_NOT_REVERSIBLE,
                f"entry {self.sequence} ({entry.command}) is no transfer",
                command=entry.command,
            )
        if draft.record(REVERSAL, str(self.sequence)) is not None:
            refuse(Reason.ENTRY_ALREADY_REVERSED, f"entry {self.sequence} was reversed already")
        answers: list[TransferAnswer] = []
        made = [t for t in entry.transfers if not t.credit_account.startswith("owed:")]
        for position, transfer in enumerate(reversed(made)):
            debit, credit = transfer.credit_account, transfer.debit_account
            draft.transfer(debit, credit, transfer.amount)
            asset = draft.account(debit).asset
            answers.append(
                TransferAnswer(
                    f"{draft.sequence}.{position}",
                    draft.sequence,
                    debit,
                    credit,
                    asset,
                    draft.text(transfer.amount, asset),
                    draft.time,
                    draft.time if draft.effective_at is None else draft.effective_at,
                )
            )
        draft.put_record(REVERSAL, str(self.sequence), {"reversed_by": draft.sequence}, before=None)
        return ReversalAnswer(draft.sequence, self.sequence, answers)


# ── answers ───────────────────────────────────────────────────────────────────────


def account_answer(draft: Draft, account: Account) -> AccountAnswer:
    """Show an account as the draft sees it."""
    asset = draft.asset(account.asset)
    return show_account(account, asset)


def show_account(account: Account, asset: Asset) -> AccountAnswer:
    """Show an account in its asset's natural unit."""
    scale = asset.scale
    return AccountAnswer(
        account.id,
        account.holder,
        account.asset,
        None if account.floor is None else format_amount(account.floor, scale),
        format_amount(account.posted, scale),
        format_amount(account.held, scale),
        format_amount(account.available, scale),
        account.is_closed,
    )


def hold_answer(draft: Draft, hold: Hold) -> HoldAnswer:
    """Show a hold as the draft sees it."""
    return show_hold(hold, draft.asset(hold.asset))


def show_hold(hold: Hold, asset: Asset) -> HoldAnswer:
    """Show a hold in its asset's natural unit."""
    return HoldAnswer(
        str(hold.id),
        hold.account,
        hold.asset,
        format_amount(hold.amount, asset.scale),
        format_amount(hold.remaining, asset.scale),
        hold.owner,
        hold.expires_at,
        hold.state.value,
    )

"""Payments between accounts: open one, pay, pay many at once, delete one.

A payments account is a number and a unique name for one ledger account: its own
(`account:<number>:<asset>`), or a user's one account of that asset (`user:<id>:<asset>`).
It is a record that is kept with the holder `account:<number>`, so that a payment between
own accounts finds records and balances in one look-up each. What a user's account holds
belongs to another holder, which a payment learns of only from the record; it is asked for
in a second round, unless it is cached. Amounts in commands are canonical decimal text.
"""

import re
from collections.abc import Iterable
from typing import Protocol

import msgspec

from pennyweight.ledger.accounts import WORLD, Account, user_account, user_holder
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import TRANSFERS_MAX, Draft
from pennyweight.ledger.entries import Entry
from pennyweight.ledger.money import to_units
from pennyweight.ledger.records import Record
from pennyweight.ledger.refusals import Reason, Refused, refuse

PRODUCT = "payments"
ACCOUNT = "payments.account"
"""Kind of the records, and the counter of their numbers."""

PAYMENT = "payments.payment"
"""The counter of payments."""

NAME_LENGTH_MAX = 255
DIGITS_MAX = 30
DECIMALS_MAX = 15
"""An amount is a numeric(30, 15), as in the service that this face comes from."""

HOLDERS_MAX = 128
"""Holders that one batch of payments may touch: the engine's bound for any command."""

_ASSET = "asset"
_NAME = re.compile(rf"[^\x00-\x1f\x7f\ud800-\udfff]{{1,{NAME_LENGTH_MAX}}}")


class PaymentsAccount(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A payments account as its record keeps it; `account` is the ledger account it stands for.

    `user_id` is there if that account is a user's. A deleted one keeps its record, with the
    sequence of the entry that deleted it, so that its history stays; but not its name.
    """

    number: int
    name: str
    currency_id: int
    asset: str
    account: str
    user_id: str | None = None
    deleted_in: int | None = None


class AccountAnswer(msgspec.Struct, frozen=True, gc=False):
    """The number of the account that was opened or deleted."""

    id: int


class PaymentAnswer(msgspec.Struct, frozen=True, gc=False):
    """A committed payment: `amount` is decimal text, `committed_at` microseconds since 1970."""

    id: int
    currency_id: int
    amount: str
    buyer_account_id: int
    seller_account_id: int
    committed_at: int


class PaymentsAnswer(msgspec.Struct, frozen=True, gc=False):
    """The payments of a batch, in request order."""

    payments: list[PaymentAnswer]


# ── accounts ──────────────────────────────────────────────────────────────────────


class OpenPaymentsAccount(Command, frozen=True):
    """Open a payments account with an amount that comes from outside.

    With `user_id` it stands for that user's account of the currency: opened with the
    amount if the user has none, adopted if there is one and the amount is 0.
    Refusals: amount_too_large, amount_too_fine and those of an amount, asset_unknown,
    user_id_invalid, name_invalid, account_exists (of the user, and the amount is not 0 or
    another payments account stands for it), name_taken, account_closed, too_many_accounts,
    balance_too_large.
    """

    name = "open_payments_account"
    product = PRODUCT
    counted = ("account_name", "amount", "currency_id", "user_id")
    answer_type = AccountAnswer

    account_name: str
    amount: str
    currency_id: int
    user_id: str | None = None

    def reads(self, wanted: Wanted) -> None:
        """The currency, both unique names, the holders, and the outside world."""
        wanted.name(_ASSET, f"id:{self.currency_id}")
        if _is_name(self.account_name):
            wanted.name(ACCOUNT, name_label(self.account_name))
        wanted.next_holder(ACCOUNT, "account")
        wanted.holder(WORLD)
        if self.user_id is not None:
            wanted.holder(user_holder(self.user_id))
            wanted.name(ACCOUNT, _link_label(self.user_id, self.currency_id))

    def decide(self, draft: Draft) -> AccountAnswer:
        """See the class."""
        asset = _currency(draft, self.currency_id)
        _check_digits(self.amount)
        units = to_units(self.amount, asset.scale)
        if not _is_name(self.account_name):
            refuse(
                Reason.NAME_INVALID,
                f"a name has 1 to {NAME_LENGTH_MAX} characters and no control characters",
            )
        adopted = self._adopted(draft, asset, units)
        if draft.name(ACCOUNT, name_label(self.account_name)) is not None:
            refuse(
                Reason.NAME_TAKEN,
                f"there is an account named {self.account_name!r} already",
                name=self.account_name,
            )
        if adopted is not None and adopted.is_closed:
            refuse(Reason.ACCOUNT_CLOSED, f"account {adopted.id!r} is closed", account=adopted.id)
        number = draft.next_number(ACCOUNT)
        account_id = (
            f"{holder_of_number(number)}:{asset.name}"
            if self.user_id is None
            else user_account(self.user_id, asset.name)
        )
        if adopted is None:
            draft.open_account(account_id)
        if units:
            draft.transfer(draft.own_account(f"{WORLD}:{asset.name}"), account_id, units)
        account = PaymentsAccount(
            number, self.account_name, asset.currency_id, asset.name, account_id, self.user_id
        )
        _put(draft, account, before=None)
        return AccountAnswer(number)

    def _adopted(self, draft: Draft, asset: Asset, units: int) -> Account | None:
        """Return the user's account if there is one and it may be adopted."""
        if self.user_id is None:
            return None
        account = draft.find_account(user_account(self.user_id, asset.name))
        if account is not None and units:
            refuse(
                Reason.ACCOUNT_EXISTS,
                f"user {self.user_id!r} has {asset.name} already; adopt it with the amount 0",
                account=account.id,
            )
        if draft.name(ACCOUNT, _link_label(self.user_id, self.currency_id)) is not None:
            refuse(
                Reason.ACCOUNT_EXISTS,
                f"user {self.user_id!r} has an account in {asset.name} here already",
                user_id=self.user_id,
            )
        return account


class DeletePaymentsAccount(Command, frozen=True):
    """Delete a payments account: its own ledger account is closed, a user's only unlinked.

    The name is free afterwards, and a user's account may be adopted again.
    Refusals: account_not_found, account_has_holds, account_has_balance, account_owes.
    """

    name = "delete_payments_account"
    product = PRODUCT
    counted = ("account_id",)
    answer_type = AccountAnswer

    account_id: int

    def reads(self, wanted: Wanted) -> None:
        """The account's holder."""
        wanted.holder(holder_of_number(self.account_id))

    def decide(self, draft: Draft) -> AccountAnswer:
        """See the class."""
        record, account = _find(draft, self.account_id)
        if account.user_id is None and not draft.account(account.account).is_closed:
            draft.close_account(account.account)
        _put(draft, msgspec.structs.replace(account, deleted_in=draft.sequence), before=record)
        return AccountAnswer(self.account_id)


# ── payments ──────────────────────────────────────────────────────────────────────


class PaymentItem(msgspec.Struct, frozen=True, gc=False):
    """One payment of a batch."""

    buyer_account_id: int
    seller_account_id: int
    amount: str


class Pay(Command, frozen=True):
    """Pay an amount from the buyer's account to the seller's, of the same currency.

    Refusals: amount_not_positive, amount_too_large, amount_too_fine and those of an amount,
    same_account, account_not_found, account_closed, asset_mismatch, insufficient_funds,
    balance_too_large.
    """

    name = "pay"
    product = PRODUCT
    counted = ("buyer_account_id", "seller_account_id", "amount")
    answer_type = PaymentAnswer

    buyer_account_id: int
    seller_account_id: int
    amount: str

    def reads(self, wanted: Wanted) -> None:
        """Both accounts' holders."""
        wanted.holder(holder_of_number(self.buyer_account_id))
        wanted.holder(holder_of_number(self.seller_account_id))

    def decide(self, draft: Draft) -> PaymentAnswer:
        """See the class."""
        _check_shape(self)
        buyer = _find(draft, self.buyer_account_id)[1]
        seller = _find(draft, self.seller_account_id)[1]
        if buyer.user_id is not None or seller.user_id is not None:
            draft.load((buyer.account, seller.account))
        return _pay(draft, self, buyer, seller)


class PayBatch(Command, frozen=True):
    """Make up to 64 payments of any currencies, all or none; balances are checked one by one, in order.

    Refusals: those of `Pay`, with the `position` of the first payment that cannot be made;
    too_many_transfers, also for more than 128 holders (a user's account counts twice).
    """

    name = "pay_batch"
    product = PRODUCT
    counted = ("payments",)
    answer_type = PaymentsAnswer

    payments: tuple[PaymentItem, ...]

    def reads(self, wanted: Wanted) -> None:
        """All accounts' holders."""
        if not 0 < len(self.payments) <= TRANSFERS_MAX:
            refuse(
                Reason.TOO_MANY_TRANSFERS,
                f"a batch has 1 to {TRANSFERS_MAX} payments",
                payments=len(self.payments),
            )
        for number in self._numbers():
            wanted.holder(holder_of_number(number))

    def decide(self, draft: Draft) -> PaymentsAnswer:
        """See the class."""
        for position, item in enumerate(self.payments):
            with _Position(position):
                _check_shape(item)
        accounts: dict[int, PaymentsAccount] = {}
        for position, item in enumerate(self.payments):
            with _Position(position):
                for number in (item.buyer_account_id, item.seller_account_id):
                    if number not in accounts:
                        accounts[number] = _find(draft, number)[1]
        _load_users(draft, accounts.values())
        answers = []
        for position, item in enumerate(self.payments):
            with _Position(position):
                buyer, seller = accounts[item.buyer_account_id], accounts[item.seller_account_id]
                answers.append(_pay(draft, item, buyer, seller))
        return PaymentsAnswer(answers)

    def _numbers(self) -> Iterable[int]:
        for item in self.payments:
            yield item.buyer_account_id
            yield item.seller_account_id


# ── what the rules share ──────────────────────────────────────────────────────────


def holder_of_number(number: int) -> str:
    """Return the holder that keeps the payments account with this number."""
    return f"account:{number}"


def record_id(number: int) -> str:
    """Return the id of an account's record; stores list ids in text order, so it is padded."""
    return f"{number:012d}"


def name_label(name: str) -> str:
    """Return the unique name of the record that carries an account's name."""
    return f"name:{name}"


def _is_name(text: str) -> bool:
    """Whether an account can be named so; only then a store may be asked for the name."""
    return _NAME.fullmatch(text) is not None


def _put(draft: Draft, account: PaymentsAccount, *, before: Record | None) -> None:
    """Write an account's record, with its unique names while it is not deleted."""
    names = []
    if account.deleted_in is None:
        names.append(name_label(account.name))
        if account.user_id is not None:
            names.append(_link_label(account.user_id, account.currency_id))
    draft.put_record(
        ACCOUNT,
        record_id(account.number),
        account,
        before=before,
        names=tuple(names),
        holder=holder_of_number(account.number),
    )


_account_decoder = msgspec.json.Decoder(PaymentsAccount)


def read_account(record: Record) -> PaymentsAccount:
    """Return the account that a record keeps."""
    return _account_decoder.decode(record.body)


def _link_label(user_id: str, currency_id: int) -> str:
    """The unique name by which a user's account has at most one payments account."""
    return f"user:{currency_id}:{user_id}"


def _currency(draft: Draft, currency_id: int) -> Asset:
    """Return the asset with this number. Refusal: asset_unknown."""
    name = draft.name(_ASSET, f"id:{currency_id}")
    if name is None:
        refuse(Reason.ASSET_UNKNOWN, f"there is no currency {currency_id}", currency_id=currency_id)
    return draft.asset(name)


def _find(draft: Draft, number: int) -> tuple[Record, PaymentsAccount]:
    """Return an account that is not deleted, and its record. Refusal: account_not_found."""
    record = draft.record(ACCOUNT, record_id(number), holder=holder_of_number(number))
    account = None if record is None else read_account(record)
    if record is None or account is None or account.deleted_in is not None:
        refuse(Reason.ACCOUNT_NOT_FOUND, f"there is no account {number}", account_id=number)
    return record, account


def _check_digits(amount: str) -> None:
    """Refusals: amount_too_large, amount_too_fine."""
    if len(amount) <= DECIMALS_MAX:
        return
    whole, _, fraction = amount.partition(".")
    if len((whole + fraction).lstrip("0")) > DIGITS_MAX:
        refuse(Reason.AMOUNT_TOO_LARGE, f"an amount has at most {DIGITS_MAX} digits")
    if len(fraction) > DECIMALS_MAX:
        refuse(
            Reason.AMOUNT_TOO_FINE,
            f"an amount has at most {DECIMALS_MAX} decimals",
            decimals=len(fraction),
            decimals_max=DECIMALS_MAX,
        )


def _check_shape(item: Pay | PaymentItem) -> None:
    """Refuse what no book could allow."""
    if item.amount == "0":
        refuse(Reason.AMOUNT_NOT_POSITIVE, "the amount must be greater than zero")
    _check_digits(item.amount)
    if item.buyer_account_id == item.seller_account_id:
        refuse(Reason.SAME_ACCOUNT, "buyer and seller account are the same")


def _pay(
    draft: Draft, item: Pay | PaymentItem, buyer: PaymentsAccount, seller: PaymentsAccount
) -> PaymentAnswer:
    """Make one payment and number it."""
    asset = draft.asset(buyer.asset)
    draft.transfer(buyer.account, seller.account, to_units(item.amount, asset.scale))
    return PaymentAnswer(
        draft.next_number(PAYMENT),
        asset.currency_id,
        item.amount,
        item.buyer_account_id,
        item.seller_account_id,
        draft.time,
    )


def _load_users(draft: Draft, accounts: Iterable[PaymentsAccount]) -> None:
    """Ask for the users' accounts of a batch at once, if they are not too many."""
    accounts = list(accounts)
    linked = [account for account in accounts if account.user_id is not None]
    holders = len(accounts) + len({account.user_id for account in linked})
    if holders > HOLDERS_MAX:
        refuse(
            Reason.TOO_MANY_TRANSFERS,
            f"a batch touches at most {HOLDERS_MAX} holders, a user's account being two",
            holders=holders,
        )
    draft.load(account.account for account in linked)


class _Position:
    """Adds to a refusal the position of the payment that it is about."""

    __slots__ = ("position",)

    def __init__(self, position: int) -> None:
        self.position = position

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Refused):
            error.figures["position"] = self.position


# ── what verification asks ────────────────────────────────────────────────────────


class Book(Protocol):
    """What the law below looks at in the book that verification rebuilds."""

    accounts: dict[str, Account]
    assets: dict[str, Asset]
    counters: dict[str, int]


class PaymentsLaw:
    """Every payment that was ever answered was made: by one transfer, of its amount, between its accounts.

    And every payments account stands for an account of the book, and payments count 1, 2, 3 …
    """

    def __init__(self) -> None:
        """Before the first entry."""
        self._accounts: dict[int, str] = {}
        self._payments = 0

    def entry(self, entry: Entry, book: Book) -> str | None:
        """Return what is wrong with an entry, or None."""
        if entry.product != PRODUCT:
            return None
        try:
            for record in entry.records:
                account = read_account(record)
                ledger_account = book.accounts.get(account.account)
                if ledger_account is None:
                    return f"payments account {account.number} stands for no account"
                self._accounts[account.number] = ledger_account.id
            if entry.command == Pay.name:
                return self._check([_payment_decoder.decode(entry.answer)], entry, book)
            if entry.command == PayBatch.name:
                return self._check(_payments_decoder.decode(entry.answer).payments, entry, book)
        except (msgspec.DecodeError, Refused) as error:
            return f"a record or an answer of payments cannot be read: {error}"
        return None

    def end(self, book: Book) -> Iterable[tuple[int, str]]:
        """Yield what is wrong with the book as a whole."""
        counted = book.counters.get(PAYMENT, 0)
        if counted != self._payments:
            yield 0, f"{self._payments} payments were made, {counted} are counted"

    def _check(self, payments: list[PaymentAnswer], entry: Entry, book: Book) -> str | None:
        """Compare payments with the transfers of their entry, but for those to what is owed."""
        made = [
            (transfer.debit_account, transfer.credit_account, transfer.amount)
            for transfer in entry.transfers
            if not transfer.credit_account.startswith("owed:")
        ]
        if len(made) != len(payments):
            return f"it answers {len(payments)} payments, and made {len(made)} transfers"
        for payment, transfer in zip(payments, made, strict=True):
            self._payments += 1
            if payment.id != self._payments:
                return f"payment {self._payments} is numbered {payment.id}"
            debit = book.accounts.get(transfer[0])
            asset = None if debit is None else book.assets.get(debit.asset)
            if asset is None:
                return f"payment {payment.id} is made from an account that is not there"
            told = (
                self._accounts.get(payment.buyer_account_id),
                self._accounts.get(payment.seller_account_id),
                to_units(payment.amount, asset.scale),
            )
            if told != transfer or payment.currency_id != asset.currency_id:
                return f"payment {payment.id} is not the transfer that was made"
        return None


_payment_decoder = msgspec.json.Decoder(PaymentAnswer)
_payments_decoder = msgspec.json.Decoder(PaymentsAnswer)

"""Withdraw, cancel, expire: one hold from its placing to its end without a trade."""

from typing import Any, NoReturn

import msgspec

from pennyweight.ledger.accounts import HOLDS_OPEN_MAX, Account, holder_of, user_holder
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.ledger.money import format_amount
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.withdrawals.controls import (
    DESK,
    check_limits,
    check_mode,
    give_back,
    is_controlled,
)
from pennyweight.products.withdrawals.shared import (
    ACCEPTED,
    CANCELLED,
    EXPIRED,
    PRODUCT,
    WithdrawalEvent,
    check_user,
    check_withdrawal_id,
    find_withdrawal,
    token_of,
    user_of,
    want_withdrawal,
    withdrawal_id_of,
)

SECONDS_MAX = 10 * 366 * 86_400
EXPLAINED_MAX = 10
"""Open withdrawals that a refusal names, the oldest first; it counts all of them."""


class WithdrawalAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A withdrawal and what the account has after the command; amounts are decimal text.

    `expires_at` is in microseconds since 1970, None for never.
    """

    withdrawal_id: str
    requested_quantity: str
    available: str
    held: str
    expires_at: int | None = None


class Withdraw(Command, frozen=True):
    """Hold a quantity of a user's token, if that much is available; a balance equal to it is enough.

    `withdrawal_id` is the caller's id for it, "" for one of ours. Refusals, in order:
    user_id_invalid, withdrawal_id_invalid, token_unknown, those of an amount,
    expiry_invalid, user_not_found, account_closed, withdrawal_id_taken,
    withdrawals_halted, withdrawals_reducing, limit_reached, too_many_holds,
    insufficient_funds (with what is available, held and needed, and the open withdrawals
    that hold the money), balance_too_large.
    """

    name = "withdraw"
    product = PRODUCT
    counted = ("user", "token", "quantity", "withdrawal_id", "expires_in_seconds")
    answer_type = WithdrawalAnswer

    user: str
    token: str
    quantity: str
    withdrawal_id: str = ""
    expires_in_seconds: int | None = None

    def reads(self, wanted: Wanted) -> None:
        """The user, the desk, and whether the id is free."""
        holder = user_holder(self.user)
        wanted.holder(holder)
        wanted.holder(DESK)
        if self.withdrawal_id:
            check_withdrawal_id(self.withdrawal_id)
            wanted.hold_of_reference(PRODUCT, self.withdrawal_id, holder)

    def decide(self, draft: Draft) -> WithdrawalAnswer:
        """See the class."""
        holder = user_holder(self.user)
        token_of(draft, self.token)
        units = draft.units(self.quantity, self.token)
        expires_at = self._expires_at(draft.time)
        account = draft.find_account(f"{holder}:{self.token}")
        if account is None:
            check_user(draft.facts, holder)
        elif account.is_closed:
            refuse(Reason.ACCOUNT_CLOSED, f"account {account.id!r} is closed", account=account.id)
        reference = self.withdrawal_id
        if reference and draft.hold_of_reference(reference) is not None:
            refuse(
                Reason.WITHDRAWAL_ID_TAKEN,
                f"there is a withdrawal {reference[:80]!r} already",
                withdrawal_id=reference[:80],
            )
        if is_controlled(draft, self.user, holder):
            check_mode(draft, self.token, is_new=True)
            check_limits(draft, holder, self.token, units)
        if account is None or not _has_funds(account, units):
            _insufficient(draft, account, self.token, self.quantity)
        hold = draft.place_hold(account.id, units, expires_at=expires_at, reference=reference)
        answer = _answer(draft, hold, self.quantity)
        draft.emit(
            ACCEPTED, WithdrawalEvent(self.user, answer.withdrawal_id, self.token, self.quantity)
        )
        return answer

    def _expires_at(self, time: int) -> int | None:
        """Return when the hold expires. Refusal: expiry_invalid."""
        seconds = self.expires_in_seconds
        if seconds is None:
            return None
        if not 0 < seconds <= SECONDS_MAX:
            refuse(Reason.EXPIRY_INVALID, f"a withdrawal lasts from 1 to {SECONDS_MAX} seconds")
        return time + seconds * 1_000_000


class CancelWithdrawal(Command, frozen=True):
    """Give back what an open withdrawal holds.

    Refusals: withdrawal_not_found, withdrawal_settled, withdrawal_cancelled,
    withdrawal_expired, withdrawals_halted.
    """

    name = "cancel_withdrawal"
    product = PRODUCT
    counted = ("withdrawal_id",)
    answer_type = WithdrawalAnswer

    withdrawal_id: str

    def reads(self, wanted: Wanted) -> None:
        """The withdrawal with its user, and the desk."""
        want_withdrawal(wanted, self.withdrawal_id)
        wanted.holder(DESK)

    def decide(self, draft: Draft) -> WithdrawalAnswer:
        """See the class."""
        hold = find_withdrawal(draft, self.withdrawal_id)
        if hold is None:
            refuse(
                Reason.WITHDRAWAL_NOT_FOUND,
                f"there is no withdrawal {self.withdrawal_id[:80]!r}",
                withdrawal_id=self.withdrawal_id[:80],
            )
        if hold.state is not HoldState.OPEN:
            refuse_ended(hold)
        check_mode(draft, hold.asset, is_new=False)
        draft.void_hold(hold.id)
        return ended(draft, hold, CANCELLED)


class ExpireWithdrawal(Command, frozen=True):
    """Give back what a withdrawal holds whose time is over.

    Refusals: hold_not_found, owned_by_product, hold_already_settled, hold_already_voided,
    hold_expired, hold_not_due.
    """

    name = "expire_withdrawal"
    product = PRODUCT
    counted = ("hold",)
    answer_type = WithdrawalAnswer
    is_admitting = False

    hold: int

    def reads(self, wanted: Wanted) -> None:
        """The hold with its user."""
        wanted.hold(self.hold)

    def decide(self, draft: Draft) -> WithdrawalAnswer:
        """See the class."""
        draft.open_hold(self.hold, is_expiry_checked=False)
        return ended(draft, draft.expire_hold(self.hold), EXPIRED)


def ended(draft: Draft, hold: Hold, event: str) -> WithdrawalAnswer:
    """Say that a withdrawal came to nothing, give its part of the day back, and answer."""
    holder = holder_of(hold.account)
    give_back(draft, holder, hold)
    quantity = draft.text(hold.amount, hold.asset)
    draft.emit(
        event, WithdrawalEvent(user_of(holder), withdrawal_id_of(hold), hold.asset, quantity)
    )
    return _answer(draft, hold, quantity)


def refuse_ended(hold: Hold) -> NoReturn:
    """Refuse what needs an open withdrawal.

    Refusals: withdrawal_settled, withdrawal_cancelled, withdrawal_expired.
    """
    reason, fate = _ENDS[hold.state]
    withdrawal_id = withdrawal_id_of(hold)
    refuse(
        reason,
        f"withdrawal {withdrawal_id!r} {fate}",
        withdrawal_id=withdrawal_id,
        sequence=hold.changed_by,
    )


_ENDS = {
    HoldState.SETTLED: (Reason.WITHDRAWAL_SETTLED, "is settled already"),
    HoldState.VOIDED: (Reason.WITHDRAWAL_CANCELLED, "was cancelled"),
    HoldState.EXPIRED: (Reason.WITHDRAWAL_EXPIRED, "has expired"),
}


def _answer(draft: Draft, hold: Hold, quantity: str) -> WithdrawalAnswer:
    """Return the withdrawal with its account's figures as the draft has them now."""
    account = draft.account(hold.account)
    scale = draft.asset(account.asset).scale
    return WithdrawalAnswer(
        withdrawal_id_of(hold),
        quantity,
        format_amount(account.posted - account.held, scale),
        format_amount(account.held, scale),
        hold.expires_at,
    )


def _has_funds(account: Account, units: int) -> bool:
    """Whether this much is available, or the account has too many holds to ask."""
    return (
        account.floor is None
        or account.available - units >= account.floor
        or account.open_holds >= HOLDS_OPEN_MAX
    )


def _insufficient(draft: Draft, account: Account | None, token: str, quantity: str) -> NoReturn:
    """Refuse for want of funds, and say who holds the money."""
    available = held = "0"
    open_withdrawals: list[dict[str, Any]] = []
    count = 0
    if account is not None:
        available = draft.text(account.available, token)
        held = draft.text(account.held, token)
        if account.open_holds:
            holds = [hold for hold in draft.open_holds(account.id) if hold.owner == PRODUCT]
            count = len(holds)
            open_withdrawals = [
                {
                    "withdrawal_id": withdrawal_id_of(hold),
                    "quantity": draft.text(hold.remaining, token),
                    "accepted_at": hold.placed_at,
                }
                for hold in holds[:EXPLAINED_MAX]
            ]
    refuse(
        Reason.INSUFFICIENT_FUNDS,
        f"{quantity} {token} are needed, {available} are available",
        token=token,
        available=available,
        held=held,
        needed=quantity,
        open_withdrawals=open_withdrawals,
        open_withdrawal_count=count,
    )

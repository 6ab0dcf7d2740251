"""Settlements: what a trade really sold and bought, booked against the withdrawal that it ends.

A settlement names its withdrawal, or the user's open withdrawals of the sold token are
searched: the one of exactly the sold quantity, if it is the only one, else the oldest. None
open: the trade is unsolicited, and booked in full. Sold less than was held: the rest is
free again. Sold more: the excess is debited, and what the user lacks is owed (a deficit),
paid back by later credits of that token. Nothing sold: the withdrawal is cancelled.
"""

from typing import Literal, NamedTuple

import msgspec

from pennyweight.ledger import letters
from pennyweight.ledger.accounts import SUSPENSE, Account, user_holder
from pennyweight.ledger.commands import Command, Twin, Wanted, fingerprint
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.entries import Entry
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.ledger.letters import LetterAnswer, SetAsideAnswer
from pennyweight.ledger.money import format_amount
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.withdrawals.shared import (
    CANCELLED,
    DEFICIT,
    EXPIRED,
    PRODUCT,
    SETTLED,
    UNSOLICITED,
    VENUE,
    DeficitEvent,
    TradeEvent,
    check_user,
    find_withdrawal,
    token_of,
    want_withdrawal,
    withdrawal_id_of,
)
from pennyweight.products.withdrawals.withdraw import ended, refuse_ended

Result = Literal["settled", "cancelled", "unsolicited", "duplicate"]


class SettlementAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a settlement did; amounts are decimal text, available ones as they are after it.

    `result`: the withdrawal was settled or cancelled by it; or there was none it belongs to
    (unsolicited), because none is open, or the one it names is another user's, of another
    token, or expired; or it repeats the settlement that ended its withdrawal (duplicate),
    and did nothing. `shortage` is what the user lacked, `owed` all that they owe of the
    sold token now. `credited` is the account that got what was bought, where that is not
    the user's because theirs is closed.
    """

    result: Result
    sold_available: str
    bought_available: str
    withdrawal_id: str = ""
    released: str = "0"
    shortage: str = "0"
    owed: str = "0"
    credited: str = ""


class _Trade(NamedTuple):
    """A settlement in smallest units, with the user and the hold it is booked against.

    `late` is the hold it names whose time is over, and which nobody has expired yet.
    """

    holder: str
    sold: int
    bought: int
    hold: Hold | None
    is_duplicate: bool = False
    late: Hold | None = None


class Settle(Command, frozen=True):
    """Book a trade, as a fact. See the module for which withdrawal it ends.

    Refusals: user_id_invalid, token_unknown, those of an amount, same_token,
    user_not_found; withdrawal_settled and withdrawal_cancelled for a withdrawal it names
    that another settlement, or its owner, has ended; too_many_accounts,
    balance_too_large.
    """

    name = "settle"
    product = PRODUCT
    counted = (
        "user",
        "bought_token",
        "bought_quantity",
        "sold_token",
        "sold_quantity",
        "withdrawal_id",
        "settlement_id",
    )
    answer_type = SettlementAnswer
    is_admitting = False

    user: str
    bought_token: str
    bought_quantity: str
    sold_token: str
    sold_quantity: str
    withdrawal_id: str = ""
    settlement_id: str = ""

    def reads(self, wanted: Wanted) -> None:
        """The user, the venue, and the withdrawal or all open ones."""
        holder = user_holder(self.user)
        wanted.holder(holder)
        wanted.holder(VENUE)
        if self.withdrawal_id:
            want_withdrawal(wanted, self.withdrawal_id, holder)
        else:
            wanted.open_holds(f"{holder}:{self.sold_token}")

    def twin_in(self, earlier: Entry) -> Twin | None:
        """It may have been booked out of a dead letter under its key."""
        found = _settlement_in(earlier)
        return None if found is None else Twin(fingerprint(found), SettlementAnswer)

    def decide(self, draft: Draft) -> SettlementAnswer:
        """See the class."""
        trade = self._examine(draft)
        if trade.is_duplicate:
            return self._answer(draft, trade, "duplicate")
        # ── from here on it is a fact ──
        hold = trade.hold
        if trade.late is not None:  # what it held pays for the trade
            draft.expire_hold(trade.late.id)
            ended(draft, trade.late, EXPIRED)
        if hold is not None and trade.sold == 0:
            draft.void_hold(hold.id)
            ended(draft, hold, CANCELLED)
            result: Result = "cancelled"
        else:
            result = "unsolicited" if hold is None else "settled"
        shortage, released = self._sell(draft, trade) if trade.sold else (0, 0)
        credited = self._buy(draft, trade) if trade.bought else ""
        draft.pay_owed()
        if result != "cancelled" or trade.bought:
            self._tell(draft, trade, SETTLED if result == "settled" else UNSOLICITED)
        answer = self._answer(
            draft, trade, result, shortage=shortage, released=released, credited=credited
        )
        if shortage:
            draft.emit(
                DEFICIT, DeficitEvent(self.user, self.sold_token, answer.shortage, answer.owed)
            )
        return answer

    # ── before anything is changed ────────────────────────────────────────────────

    def _examine(self, draft: Draft) -> _Trade:
        """Look whether this can be booked, and against what; changes nothing. For refusals see the class."""
        holder = user_holder(self.user)
        token_of(draft, self.bought_token)
        token_of(draft, self.sold_token)
        sold = draft.units(self.sold_quantity, self.sold_token, is_zero_allowed=True)
        bought = draft.units(self.bought_quantity, self.bought_token, is_zero_allowed=True)
        if self.bought_token == self.sold_token:
            refuse(Reason.SAME_TOKEN, f"{self.sold_token} cannot be sold for itself")
        account_id = f"{holder}:{self.sold_token}"
        if draft.find_account(account_id) is None:
            check_user(draft.facts, holder)
        if not self.withdrawal_id:
            return _Trade(holder, sold, bought, self._match(draft, account_id, sold))
        hold = find_withdrawal(draft, self.withdrawal_id)
        if hold is None or hold.account != account_id or hold.state is HoldState.EXPIRED:
            return _Trade(holder, sold, bought, None)
        if hold.state is not HoldState.OPEN:
            if not self._has_ended(draft, hold):
                refuse_ended(hold)
            return _Trade(holder, sold, bought, hold, is_duplicate=True)
        if _is_live(hold, draft.time):
            return _Trade(holder, sold, bought, hold)
        return _Trade(holder, sold, bought, None, late=hold)

    def _match(self, draft: Draft, account_id: str, sold: int) -> Hold | None:
        """Return the open withdrawal that this trade most likely settles."""
        account = draft.find_account(account_id)
        if account is None or not account.open_holds:
            return None
        holds = [
            hold
            for hold in draft.open_holds(account_id)
            if hold.owner == PRODUCT and _is_live(hold, draft.time)
        ]
        exact = [hold for hold in holds if hold.remaining == sold]
        if len(exact) == 1:
            return exact[0]
        return holds[0] if holds else None

    def _has_ended(self, draft: Draft, hold: Hold) -> bool:
        """Whether the same settlement, sent before, has ended this withdrawal."""
        entry = draft.facts.entry(hold.changed_by)
        return entry is not None and _settlement_in(entry) == self

    # ── booking ───────────────────────────────────────────────────────────────────

    def _sell(self, draft: Draft, trade: _Trade) -> tuple[int, int]:
        """Pay what was sold, and return what the user lacked of it and what of the hold is free."""
        account_id = f"{trade.holder}:{self.sold_token}"
        venue = draft.own_account(f"{VENUE}:{self.sold_token}")
        hold = trade.hold
        if hold is None:
            _opened(draft, account_id)
            return draft.take(account_id, venue, trade.sold), 0
        from_hold = min(trade.sold, hold.remaining)
        draft.settle_hold(hold.id, venue, from_hold)
        excess = trade.sold - from_hold
        shortage = draft.take(account_id, venue, excess) if excess else 0
        return shortage, hold.remaining - from_hold

    def _buy(self, draft: Draft, trade: _Trade) -> str:
        """Credit what was bought; return the account that got it where it is not the user's."""
        account_id = f"{trade.holder}:{self.bought_token}"
        venue = draft.own_account(f"{VENUE}:{self.bought_token}")
        if not _opened(draft, account_id).is_closed:
            draft.transfer(venue, account_id, trade.bought)
            return ""
        suspense = draft.own_account(f"{SUSPENSE}:{self.bought_token}")
        draft.transfer(venue, suspense, trade.bought)
        return suspense

    def _tell(self, draft: Draft, trade: _Trade, event: str) -> None:
        """Emit the trade."""
        draft.emit(
            event,
            TradeEvent(
                self.user,
                self.sold_token,
                self.sold_quantity,
                self.bought_token,
                self.bought_quantity,
                "" if trade.hold is None else withdrawal_id_of(trade.hold),
                self.settlement_id,
            ),
        )

    def _answer(
        self,
        draft: Draft,
        trade: _Trade,
        result: Result,
        *,
        shortage: int = 0,
        released: int = 0,
        credited: str = "",
    ) -> SettlementAnswer:
        """Return what was done, with the figures as the draft has them now."""
        sold = draft.find_account(f"{trade.holder}:{self.sold_token}")
        bought = draft.find_account(f"{trade.holder}:{self.bought_token}")
        scale = draft.asset(self.sold_token).scale
        return SettlementAnswer(
            result,
            "0" if sold is None else format_amount(sold.available, scale),
            "0" if bought is None else draft.text(bought.available, self.bought_token),
            "" if trade.hold is None else withdrawal_id_of(trade.hold),
            format_amount(released, scale) if released else "0",
            format_amount(shortage, scale) if shortage else "0",
            format_amount(sold.owed, scale) if sold is not None and sold.owed else "0",
            credited,
        )


def _opened(draft: Draft, account_id: str) -> Account:
    """Return an account, opened if the user never had that token."""
    return draft.find_account(account_id) or draft.open_account(account_id)


def _is_live(hold: Hold, time: int) -> bool:
    """Whether the hold's time is not over; one that nobody has expired yet is as good as gone."""
    return hold.expires_at is None or hold.expires_at > time


# ── messages that could not be taken ──────────────────────────────────────────────


class SetAside(letters.SetAside, frozen=True):
    """Keep a message that is no settlement which can be booked. Refuses nothing."""

    name = "set_aside_settlement"
    product = PRODUCT
    answer_type = SetAsideAnswer


class ReplaySettlement(letters.ReplayLetter, frozen=True):
    """Book the settlement of a dead letter after all. For refusals see `ReplayLetter` and `Settle`."""

    name = "replay_settlement"
    product = PRODUCT
    counted = ("letter", "settlement")
    answer_type = SettlementAnswer

    settlement: Settle

    @property
    def content(self) -> Settle:
        """The settlement."""
        return self.settlement


class CloseLetter(letters.CloseLetter, frozen=True):
    """Close a dead letter without booking it. For refusals see `letters.CloseLetter`."""

    name = "close_letter"
    product = PRODUCT
    answer_type = LetterAnswer


class _Replayed(msgspec.Struct, gc=False):
    """The settlement among the counted fields of a replay."""

    settlement: Settle


def _settlement_in(entry: Entry) -> Settle | None:
    """Return the settlement that an entry booked, as it came or out of a dead letter."""
    if entry.command == Settle.name:
        return msgspec.json.decode(entry.fields, type=Settle)
    if entry.command == ReplaySettlement.name:
        return msgspec.json.decode(entry.fields, type=_Replayed).settlement
    return None

"""The bet/win wallet: bets, wins and rollbacks on a user's one account of a currency.

Amounts are integers of the wallet's unit, 1/100 000 of the currency; so is the balance an
answer shows: what is available, rounded down. A bet moves its amount from the user to
`house:wallet:<currency>`, a win moves it back. The key of each command is its
`transaction_uuid`; bets, wins and rollbacks share one space of keys.

A plain bet is an entry and nothing else. What happens to it later is a record of its own
(`wallet.bet`), made at its first win or its rollback.
"""

from collections.abc import Iterable
from typing import NoReturn, Protocol

import msgspec

from pennyweight.ledger.accounts import HOUSE, Account, asset_of, owed_account, user_holder
from pennyweight.ledger.assets import SCALE_MAX, Asset
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft, Facts
from pennyweight.ledger.entries import Entry
from pennyweight.ledger.records import Record
from pennyweight.ledger.refusals import Reason, Refused, refuse

PRODUCT = "wallet"
BET = "wallet.bet"
"""Kind of the records of bets that were won or rolled back; the id is the bet's uuid."""
WIN = "wallet.win"
"""Kind of the records of wins that were rolled back; the id is the win's uuid."""
TOMBSTONE = "wallet.tombstone"
"""Kind of the records of rollbacks that came before their bet; the id is `<uuid>/<user>`."""
USER = "wallet.user"
"""Kind of the records of users about whom the wallet must remember something."""

STAKES = f"{HOUSE}:wallet"
"""Holder of the accounts that take the stakes and pay the wins."""

CURRENCY = "USD"
"""Currency of a new user's grant, and the one shown first."""

GRANT = 100_000
"""What a new user gets, in the wallet's unit: 1.00 USD, from `world:USD`."""

_DECIMALS = 5
_POWERS: tuple[int, ...] = tuple(10**exponent for exponent in range(SCALE_MAX + 1))


class WalletAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The balance after the command, in the wallet's unit.

    `echo` is the `request_uuid` of the first request, kept only for faces that promise to
    repeat their first answer to the letter.
    """

    balance: int
    currency: str
    echo: str = ""


class UserAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A user of the wallet."""

    user: str
    is_disabled: bool = False


class BetState(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What became of a bet: wins that stand, the win that closed its round, its rollback."""

    wins: int = 0
    closed_by: str = ""
    is_rolled_back: bool = False


class UserState(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What the wallet remembers of a user: locked, and whether it has tombstones."""

    is_disabled: bool = False
    has_tombstones: bool = False


class Stake(msgspec.Struct, frozen=True, gc=False):
    """What a later command needs to know of a committed bet or win: its counted fields."""

    user: str
    amount: int
    currency: str
    reference: str = ""


_stakes_of = msgspec.json.Decoder(Stake)
_bet_states = msgspec.json.Decoder(BetState)
_user_states = msgspec.json.Decoder(UserState)


# ── users ─────────────────────────────────────────────────────────────────────────


class CreateUser(Command, frozen=True):
    """Open a user's USD account with 1.00 USD from `world:USD`.

    Refusals: user_id_invalid; account_exists for a user who has a USD account, whatever
    face opened it.
    """

    name = "create_user"
    product = PRODUCT
    counted = ("user",)
    answer_type = UserAnswer

    user: str

    def reads(self, wanted: Wanted) -> None:
        """The user, and the outside world."""
        wanted.holder(user_holder(self.user))
        wanted.account(_GRANTS)

    def decide(self, draft: Draft) -> UserAnswer:
        """See the class."""
        account = draft.open_account(f"{user_holder(self.user)}:{CURRENCY}")
        draft.transfer(draft.own_account(_GRANTS), account.id, _units(draft, GRANT, CURRENCY))
        return UserAnswer(self.user)


class LockUser(Command, frozen=True):
    """Lock a user out of new bets, or let them bet again; wins and rollbacks go on.

    Refusals: user_id_invalid, user_not_found.
    """

    name = "lock_user"
    product = PRODUCT
    counted = ("user", "is_disabled")
    answer_type = UserAnswer

    user: str
    is_disabled: bool

    def reads(self, wanted: Wanted) -> None:
        """The user."""
        wanted.holder(user_holder(self.user))

    def decide(self, draft: Draft) -> UserAnswer:
        """See the class."""
        holder = user_holder(self.user)
        _check_user(draft.facts, self.user, holder)
        record, state = _user_state(draft, self.user, holder)
        state = msgspec.structs.replace(state, is_disabled=self.is_disabled)
        draft.put_record(USER, self.user, state, before=record, holder=holder)
        return UserAnswer(self.user, self.is_disabled)


# ── bets, wins, rollbacks ─────────────────────────────────────────────────────────


class Bet(Command, frozen=True):
    """Take a stake from a user's account of the currency; its key is `transaction`.

    `bar` is the code of what the configuration has against it (token, game, currency,
    limit), "" for nothing; it is weighed at its place in the order of checks.
    Refusals, in order: user_not_found, user_disabled, session_unknown, session_expired,
    game_unknown, currency_mismatch, transaction_rolled_back, limit_reached,
    insufficient_funds (with the `balance` in the wallet's unit).
    """

    name = "bet"
    product = PRODUCT
    counted = ("user", "amount", "currency", "game", "round")
    answer_type = WalletAnswer

    user: str
    amount: int
    currency: str
    game: str
    round: str | None
    transaction: str
    bar: str = ""
    echo: str = ""

    def reads(self, wanted: Wanted) -> None:
        """The user, and the account that takes the stakes."""
        wanted.holder(user_holder(self.user))
        wanted.holder(STAKES)

    def admit(self, facts: Facts) -> None:
        """An unknown user goes before a duplicate. Refusal: user_not_found."""
        _check_user(facts, self.user, user_holder(self.user))

    def decide(self, draft: Draft) -> WalletAnswer:
        """See the class."""
        holder = user_holder(self.user)
        account = draft.find_account(f"{holder}:{self.currency}")
        if account is None:
            _check_user(draft.facts, self.user, holder)
        record = draft.record(USER, self.user, holder=holder)
        if record is not None or self.bar:
            self._check_user_and_session(record)
        account = _open(account, self.currency, self.bar)
        if record is not None:
            self._check_tombstone(draft, record)
        if self.bar:
            refuse(Reason.LIMIT_REACHED, "the bet is above the limit")
        units = _units(draft, self.amount, self.currency)
        if account.floor is not None and account.available - units < account.floor:
            _unfunded(draft, account, units)
        # ── nothing below may refuse ──
        if units:
            draft.transfer(account.id, _stakes(draft, self.currency), units)
        return _answer(draft, account.id, self.echo)

    def _check_user_and_session(self, record: Record | None) -> None:
        """Refusals: user_disabled, session_unknown, session_expired, game_unknown."""
        if record is not None and _user_states.decode(record.body).is_disabled:
            refuse(Reason.USER_DISABLED, "the user is locked out of new bets")
        barred = _SESSION_BARS.get(self.bar)
        if barred is not None:
            refuse(barred, "the game session or the game is not accepted")

    def _check_tombstone(self, draft: Draft, record: Record) -> None:
        """Refusal: transaction_rolled_back for a bet that comes after its rollback."""
        if _user_states.decode(record.body).has_tombstones and draft.record(
            TOMBSTONE, f"{self.transaction}/{self.user}"
        ):
            refuse(Reason.TRANSACTION_ROLLED_BACK, "the bet was rolled back before it came")


class Win(Command, frozen=True):
    """Pay a win on a bet (`reference`) of the same user; its key is `transaction`.

    Several wins per bet, until one closes the round (`is_round_closed`); a single one if
    `is_single`. A locked user is paid. Refusals, in order: user_not_found,
    currency_mismatch, transaction_not_found (no such bet of this user, or it was rolled
    back), round_closed, transaction_has_win, balance_too_large.
    """

    name = "win"
    product = PRODUCT
    counted = ("user", "amount", "currency", "game", "round", "reference")
    answer_type = WalletAnswer

    user: str
    amount: int
    currency: str
    game: str
    round: str | None
    reference: str
    transaction: str
    is_round_closed: bool = False
    is_single: bool = False
    bar: str = ""
    echo: str = ""

    def reads(self, wanted: Wanted) -> None:
        """The user, the account that pays, and the bet with what became of it."""
        wanted.holder(user_holder(self.user))
        wanted.holder(STAKES)
        wanted.entry_of_key(PRODUCT, self.reference)
        wanted.record(BET, self.reference)

    def admit(self, facts: Facts) -> None:
        """An unknown user goes before a duplicate. Refusal: user_not_found."""
        _check_user(facts, self.user, user_holder(self.user))

    def decide(self, draft: Draft) -> WalletAnswer:
        """See the class."""
        holder = user_holder(self.user)
        account = draft.find_account(f"{holder}:{self.currency}")
        if account is None:
            _check_user(draft.facts, self.user, holder)
        account = _open(account, self.currency, self.bar)
        stake = _stake(draft.facts.entry_of_key(PRODUCT, self.reference), Bet.name, self.user)
        if stake.currency != self.currency:
            refuse(Reason.CURRENCY_MISMATCH, f"the bet was made in {stake.currency}")
        record, state = _bet_state(draft, self.reference)
        self._check_state(state)
        units = _units(draft, self.amount, self.currency)
        if units:
            draft.transfer(_stakes(draft, self.currency), account.id, units)
        closed_by = self.transaction if self.is_round_closed else ""
        draft.put_record(BET, self.reference, BetState(state.wins + 1, closed_by), before=record)
        return _answer(draft, account.id, self.echo)

    def _check_state(self, state: BetState) -> None:
        """Refusals: transaction_not_found, round_closed, transaction_has_win."""
        if state.is_rolled_back:
            refuse(Reason.TRANSACTION_NOT_FOUND, "the bet was rolled back")
        if state.closed_by:
            refuse(Reason.ROUND_CLOSED, "the round was closed by an earlier win")
        if self.is_single and state.wins:
            refuse(Reason.TRANSACTION_HAS_WIN, "the bet has its one win already")


class Rollback(Command, frozen=True):
    """Undo a bet, or a win, of the same user (`reference`); moves money once at most.

    A bet that never came leaves a tombstone, so that it is refused when it comes late.
    A bet with a win that stands is not undone. A win is taken back as a fact: what the
    user no longer has is booked as owed. Refusals, in order: user_not_found,
    transaction_not_found (of another user, or itself a rollback), account_closed,
    transaction_has_win.
    """

    name = "rollback"
    product = PRODUCT
    counted = ("user", "game", "round", "reference")
    answer_type = WalletAnswer

    user: str
    game: str
    round: str | None
    reference: str
    echo: str = ""

    def reads(self, wanted: Wanted) -> None:
        """The user, the stakes' account, what is to be undone and what became of it."""
        wanted.holder(user_holder(self.user))
        wanted.holder(STAKES)
        wanted.entry_of_key(PRODUCT, self.reference)
        wanted.record(BET, self.reference)
        wanted.record(WIN, self.reference)
        wanted.record(TOMBSTONE, f"{self.reference}/{self.user}")

    def admit(self, facts: Facts) -> None:
        """An unknown user goes before a duplicate. Refusal: user_not_found."""
        _check_user(facts, self.user, user_holder(self.user))

    def decide(self, draft: Draft) -> WalletAnswer:
        """See the class."""
        holder = user_holder(self.user)
        _check_user(draft.facts, self.user, holder)
        entry = draft.facts.entry_of_key(PRODUCT, self.reference)
        if entry is None:
            self._bury(draft, holder)
            return _answer(draft, shown_account(draft.facts.accounts_of(holder)).id, self.echo)
        stake = _stake(entry, entry.command, self.user)
        account_id = f"{holder}:{stake.currency}"
        if entry.command == Bet.name:
            self._undo_bet(draft, stake, account_id)
        else:
            self._undo_win(draft, stake, account_id)
        return _answer(draft, account_id, self.echo)

    def _bury(self, draft: Draft, holder: str) -> None:
        """Leave a tombstone for a bet that never came, and note with the user that there is one."""
        tombstone = f"{self.reference}/{self.user}"
        if draft.record(TOMBSTONE, tombstone) is not None:
            return
        draft.put_record(TOMBSTONE, tombstone, {}, before=None)
        record, state = _user_state(draft, self.user, holder)
        if not state.has_tombstones:
            state = msgspec.structs.replace(state, has_tombstones=True)
            draft.put_record(USER, self.user, state, before=record, holder=holder)

    def _undo_bet(self, draft: Draft, stake: Stake, account_id: str) -> None:
        """Give the stake back. Refusals: transaction_has_win, account_closed."""
        record, state = _bet_state(draft, self.reference)
        if state.is_rolled_back:
            return
        if state.wins:
            refuse(Reason.TRANSACTION_HAS_WIN, "roll the bet's win back first", wins=state.wins)
        units = _units(draft, stake.amount, stake.currency)
        if units:
            draft.transfer(_stakes(draft, stake.currency), account_id, units)
        draft.put_record(BET, self.reference, BetState(is_rolled_back=True), before=record)

    def _undo_win(self, draft: Draft, stake: Stake, account_id: str) -> None:
        """Take a win back, whatever the user has left. The round it closed is open again."""
        if draft.record(WIN, self.reference) is not None:
            return
        record, state = _bet_state(draft, stake.reference)
        units = _units(draft, stake.amount, stake.currency)
        if units:
            draft.take(account_id, _stakes(draft, stake.currency), units)
        draft.put_record(WIN, self.reference, {}, before=None)
        closed_by = "" if state.closed_by == self.reference else state.closed_by
        draft.put_record(BET, stake.reference, BetState(state.wins - 1, closed_by), before=record)


# ── reading ───────────────────────────────────────────────────────────────────────


def shown_account(accounts: list[Account]) -> Account:
    """Return which of a user's accounts a balance without a currency means.

    The one in USD, else the first that is open, else the first.
    """
    is_open = [account for account in accounts if not account.is_closed]
    in_usd = [account for account in is_open if account.asset == CURRENCY]
    return (in_usd or is_open or accounts)[0]


def in_wallet_units(units: int, scale: int) -> int:
    """Return smallest units of an asset in the wallet's unit of 1/100 000, rounded down."""
    if scale >= _DECIMALS:
        return units // _POWERS[scale - _DECIMALS]
    return units * _POWERS[_DECIMALS - scale]


# ── proof ─────────────────────────────────────────────────────────────────────────


class Book(Protocol):
    """What the law looks at of a book that is rebuilt from its journal."""

    accounts: dict[str, Account]
    assets: dict[str, Asset]


class WalletLaw:
    """Every bet and win moved its amount, a rollback went the right way, answers are the balance."""

    def entry(self, entry: Entry, book: Book) -> str | None:
        """Return what is wrong with an entry, or None."""
        if entry.product != PRODUCT or entry.command not in {Bet.name, Win.name, Rollback.name}:
            return None
        try:
            user = user_holder(msgspec.json.decode(entry.fields, type=_Whose).user)
            answer = msgspec.json.decode(entry.answer, type=WalletAnswer)
            account = book.accounts.get(f"{user}:{answer.currency}")
            if account is None:
                return f"it answers for {user} in {answer.currency}, which is not there"
            scale = book.assets[account.asset].scale
            if answer.balance != in_wallet_units(account.available, scale):
                return f"it answers a balance of {answer.balance}, which {account.id} had not"
            return _misplaced(entry, account.id, scale)
        except (msgspec.DecodeError, Refused) as error:
            return f"an entry of the wallet cannot be read: {error}"

    def end(self, book: Book) -> Iterable[tuple[int, str]]:  # noqa: ARG002
        """Nothing can only be said of the book as a whole."""
        return ()


class _Whose(msgspec.Struct, gc=False):
    user: str


def _misplaced(entry: Entry, account_id: str, scale: int) -> str | None:
    """Say what is wrong with the transfers of a bet, win or rollback, but for those to what is owed."""
    stakes = f"{STAKES}:{asset_of(account_id)}"
    made = [
        (transfer.debit_account, transfer.credit_account, transfer.amount)
        for transfer in entry.transfers
        if not transfer.credit_account.startswith("owed:")
    ]
    if entry.command == Rollback.name:
        ways = [(debit, credit) for debit, credit, _ in made]
        owed = owed_account(account_id)
        is_right = ways in ([], [(stakes, account_id)]) or (
            ways == sorted(set(ways), reverse=True)
            and set(ways) <= {(account_id, stakes), (owed, stakes)}
        )
        return None if is_right else f"the rollback moves money along {ways}"
    stake = _stakes_of.decode(entry.fields)
    units = stake.amount * 10 ** max(0, scale - _DECIMALS) // 10 ** max(0, _DECIMALS - scale)
    way = (account_id, stakes) if entry.command == Bet.name else (stakes, account_id)
    if made != ([(*way, units)] if units else []):
        return f"the {entry.command} of {stake.amount} is not the transfers {made}"
    return None


# ── inside ────────────────────────────────────────────────────────────────────────

_GRANTS = f"world:{CURRENCY}"
_SESSION_BARS = {
    reason.code: reason
    for reason in (Reason.SESSION_UNKNOWN, Reason.SESSION_EXPIRED, Reason.GAME_UNKNOWN)
}


def _units(draft: Draft, amount: int, currency: str) -> int:
    """Return an amount of the wallet's unit in smallest units. Refusal: amount_too_fine."""
    scale = draft.asset(currency).scale
    if scale >= _DECIMALS:
        return amount * _POWERS[scale - _DECIMALS]
    units, rest = divmod(amount, _POWERS[_DECIMALS - scale])
    if rest:
        refuse(Reason.AMOUNT_TOO_FINE, f"{currency} has {scale} decimals", decimals_max=scale)
    return units


def _check_user(facts: Facts, user: str, holder: str) -> None:
    """Refuse a user who has no account at all. Refusal: user_not_found."""
    if not facts.accounts_of(holder):
        refuse(Reason.USER_NOT_FOUND, f"there is no user {user[:80]!r}", user=user[:80])


def _open(account: Account | None, currency: str, bar: str) -> Account:
    """Return the user's account of a currency if it may be used. Refusal: currency_mismatch."""
    if account is None or account.is_closed or bar == Reason.CURRENCY_MISMATCH.code:
        refuse(Reason.CURRENCY_MISMATCH, f"the user has no account in {currency[:40]!r}")
    return account


def _unfunded(draft: Draft, account: Account, needed: int) -> NoReturn:
    """Refuse a bet with the balance that the face must tell. Refusal: insufficient_funds."""
    asset = account.asset
    refuse(
        Reason.INSUFFICIENT_FUNDS,
        "the balance is below the bet",
        account=account.id,
        available=draft.text(account.available, asset),
        held=draft.text(account.held, asset),
        needed=draft.text(needed, asset),
        balance=in_wallet_units(account.available, draft.asset(asset).scale),
    )


def _stakes(draft: Draft, currency: str) -> str:
    """Return the account that takes stakes and pays wins, open."""
    return draft.own_account(f"{STAKES}:{currency}")


def _stake(entry: Entry | None, command: str, user: str) -> Stake:
    """Return a user's bet or win from its entry. Refusal: transaction_not_found."""
    if entry is None or entry.command != command or command not in {Bet.name, Win.name}:
        refuse(Reason.TRANSACTION_NOT_FOUND, f"there is no such {command}")
    stake = _stakes_of.decode(entry.fields)
    if stake.user != user:
        refuse(Reason.TRANSACTION_NOT_FOUND, f"there is no such {command} of this user")
    return stake


def _bet_state(draft: Draft, bet: str) -> tuple[Record | None, BetState]:
    """Return what became of a bet, with its record if it has one."""
    record = draft.record(BET, bet)
    return record, BetState() if record is None else _bet_states.decode(record.body)


def _user_state(draft: Draft, user: str, holder: str) -> tuple[Record | None, UserState]:
    """Return what the wallet remembers of a user, with the record if there is one."""
    record = draft.record(USER, user, holder=holder)
    return record, UserState() if record is None else _user_states.decode(record.body)


def _answer(draft: Draft, account_id: str, echo: str) -> WalletAnswer:
    """Show an account as it will be once the entry is sealed."""
    account = draft.account(account_id)
    if account.owed:
        draft.pay_owed()
    return WalletAnswer(
        in_wallet_units(account.available, draft.asset(account.asset).scale), account.asset, echo
    )

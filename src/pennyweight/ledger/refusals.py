"""Why a rule says no: one closed list, in order of falling precedence.

A refusal is data. Nothing changed, the key stays free, and the same input on the same
book always gets the same single reason: where several apply, the one that stands first
in `Reason` is given. Assertions about our own mistakes are not refusals; they are
`SealError` (see `draft`).
"""

import enum
from typing import Any, NoReturn


class Kind(enum.Enum):
    """What sort of no it is; the faces map each kind to a status."""

    MALFORMED = "malformed"
    """The request can never succeed as written."""
    NOT_FOUND = "not_found"
    """It names something that is not there (yet)."""
    CONFLICT = "conflict"
    """What it names is in a state that does not allow it."""
    UNFUNDED = "unfunded"
    """The rules about money say no; the same request may succeed later."""
    KEY = "key"
    """The idempotency key, not the command, stands in the way."""


class Reason(enum.Enum):
    """Every reason a command can be refused for: code, kind, and whether waiting can help.

    The order of the members is the order of precedence.
    """

    @property
    def code(self) -> str:
        """The stable code that callers see."""
        return self.value[0]

    @property
    def kind(self) -> Kind:
        """What sort of no it is."""
        return self.value[1]

    @property
    def is_retryable(self) -> bool:
        """Whether the same command may succeed later without anybody mending it."""
        return self.value[2]

    # The key and the deadline are looked at before the command itself.
    NOT_AFTER_PASSED = ("not_after_passed", Kind.CONFLICT, False)
    KEY_ABANDONED = ("key_abandoned", Kind.KEY, False)
    KEY_REUSED = ("key_reused", Kind.KEY, False)

    # The message of a stream as a whole.
    MESSAGE_MALFORMED = ("message_malformed", Kind.MALFORMED, False)
    MESSAGE_INVALID = ("message_invalid", Kind.MALFORMED, False)

    # The request as a whole; inside an atomic list the first bad transfer decides.
    TOO_MANY_TRANSFERS = ("too_many_transfers", Kind.MALFORMED, False)
    EFFECTIVE_AT_IN_FUTURE = ("effective_at_in_future", Kind.MALFORMED, False)

    # Shape: ids, assets, amounts.
    ACCOUNT_ID_INVALID = ("account_id_invalid", Kind.MALFORMED, False)
    USER_ID_INVALID = ("user_id_invalid", Kind.MALFORMED, False)
    AS_OF_IN_FUTURE = ("as_of_in_future", Kind.MALFORMED, False)
    WITHDRAWAL_ID_INVALID = ("withdrawal_id_invalid", Kind.MALFORMED, False)
    LOAN_ID_INVALID = ("loan_id_invalid", Kind.MALFORMED, False)
    NAME_INVALID = ("name_invalid", Kind.MALFORMED, False)
    ASSET_INVALID = ("asset_invalid", Kind.MALFORMED, False)
    ASSET_UNKNOWN = ("asset_unknown", Kind.MALFORMED, False)
    TOKEN_UNKNOWN = ("token_unknown", Kind.MALFORMED, False)
    ASSET_SCALE_FIXED = ("asset_scale_fixed", Kind.CONFLICT, False)
    AMOUNT_INVALID = ("amount_invalid", Kind.MALFORMED, False)
    AMOUNT_NOT_POSITIVE = ("amount_not_positive", Kind.MALFORMED, False)
    AMOUNT_TOO_LARGE = ("amount_too_large", Kind.MALFORMED, False)
    AMOUNT_TOO_FINE = ("amount_too_fine", Kind.MALFORMED, False)
    FLOOR_INVALID = ("floor_invalid", Kind.MALFORMED, False)
    EXPIRY_INVALID = ("expiry_invalid", Kind.MALFORMED, False)
    SAME_ACCOUNT = ("same_account", Kind.MALFORMED, False)
    SAME_TOKEN = ("same_token", Kind.MALFORMED, False)
    QUOTES_INVALID = ("quotes_invalid", Kind.MALFORMED, False)
    ALLOCATION_INVALID = ("allocation_invalid", Kind.MALFORMED, False)
    HOLDINGS_INVALID = ("holdings_invalid", Kind.MALFORMED, False)
    POLICY_INVALID = ("policy_invalid", Kind.MALFORMED, False)

    # What is named must be there.
    PORTFOLIO_NOT_FOUND = ("portfolio_not_found", Kind.NOT_FOUND, True)
    UPDATE_NOT_FOUND = ("update_not_found", Kind.NOT_FOUND, False)
    USER_NOT_FOUND = ("user_not_found", Kind.NOT_FOUND, True)
    USER_DISABLED = ("user_disabled", Kind.CONFLICT, True)
    SESSION_UNKNOWN = ("session_unknown", Kind.NOT_FOUND, False)
    SESSION_EXPIRED = ("session_expired", Kind.CONFLICT, False)
    GAME_UNKNOWN = ("game_unknown", Kind.NOT_FOUND, False)
    CURRENCY_MISMATCH = ("currency_mismatch", Kind.CONFLICT, False)
    HOLD_NOT_FOUND = ("hold_not_found", Kind.NOT_FOUND, True)
    ENTRY_NOT_FOUND = ("entry_not_found", Kind.NOT_FOUND, True)
    ACCOUNT_NOT_FOUND = ("account_not_found", Kind.NOT_FOUND, True)
    WITHDRAWAL_NOT_FOUND = ("withdrawal_not_found", Kind.NOT_FOUND, True)
    LOAN_NOT_FOUND = ("loan_not_found", Kind.NOT_FOUND, True)
    SLICE_NOT_FOUND = ("slice_not_found", Kind.NOT_FOUND, False)
    DEAD_LETTER_NOT_FOUND = ("dead_letter_not_found", Kind.NOT_FOUND, False)
    TRANSACTION_NOT_FOUND = ("transaction_not_found", Kind.NOT_FOUND, True)

    # Who may touch it, and in which state it is.
    OWNED_BY_PRODUCT = ("owned_by_product", Kind.CONFLICT, False)
    HOLD_ALREADY_SETTLED = ("hold_already_settled", Kind.CONFLICT, False)
    HOLD_ALREADY_VOIDED = ("hold_already_voided", Kind.CONFLICT, False)
    HOLD_EXPIRED = ("hold_expired", Kind.CONFLICT, False)
    HOLD_NOT_DUE = ("hold_not_due", Kind.CONFLICT, True)
    ENTRY_NOT_REVERSIBLE = ("entry_not_reversible", Kind.CONFLICT, False)
    ENTRY_ALREADY_REVERSED = ("entry_already_reversed", Kind.CONFLICT, False)
    ACCOUNT_EXISTS = ("account_exists", Kind.CONFLICT, False)
    NAME_TAKEN = ("name_taken", Kind.CONFLICT, False)
    ASSET_MISMATCH = ("asset_mismatch", Kind.CONFLICT, False)
    ACCOUNT_CLOSED = ("account_closed", Kind.CONFLICT, False)
    TRANSACTION_ROLLED_BACK = ("transaction_rolled_back", Kind.CONFLICT, False)
    TRANSACTION_HAS_WIN = ("transaction_has_win", Kind.CONFLICT, True)
    ROUND_CLOSED = ("round_closed", Kind.CONFLICT, False)
    WITHDRAWAL_ID_TAKEN = ("withdrawal_id_taken", Kind.CONFLICT, False)
    WITHDRAWAL_SETTLED = ("withdrawal_settled", Kind.CONFLICT, False)
    WITHDRAWAL_CANCELLED = ("withdrawal_cancelled", Kind.CONFLICT, False)
    WITHDRAWAL_EXPIRED = ("withdrawal_expired", Kind.CONFLICT, False)
    LOAN_EXISTS = ("loan_exists", Kind.CONFLICT, False)
    BORROWER_MISMATCH = ("borrower_mismatch", Kind.CONFLICT, False)
    LOAN_LIQUIDATING = ("loan_liquidating", Kind.CONFLICT, False)
    LOAN_LIQUIDATED = ("loan_liquidated", Kind.CONFLICT, False)
    LOAN_CHANGED = ("loan_changed", Kind.CONFLICT, True)
    LOAN_NOT_DUE = ("loan_not_due", Kind.CONFLICT, True)
    SLICE_ENDED = ("slice_ended", Kind.CONFLICT, False)
    QUOTES_STALE = ("quotes_stale", Kind.CONFLICT, True)
    LIQUIDATIONS_PAUSED = ("liquidations_paused", Kind.CONFLICT, True)
    PORTFOLIO_EXISTS = ("portfolio_exists", Kind.CONFLICT, False)
    UPDATE_TAKEN = ("update_taken", Kind.CONFLICT, False)
    TRANSACTION_EXECUTED = ("transaction_executed", Kind.CONFLICT, False)
    DEAD_LETTER_CLOSED = ("dead_letter_closed", Kind.CONFLICT, False)
    WITHDRAWALS_HALTED = ("withdrawals_halted", Kind.CONFLICT, True)
    WITHDRAWALS_REDUCING = ("withdrawals_reducing", Kind.CONFLICT, True)
    LIMIT_REACHED = ("limit_reached", Kind.UNFUNDED, True)
    CURSOR_CONFLICT = ("cursor_conflict", Kind.CONFLICT, True)

    # What the balances allow.
    ACCOUNT_HAS_HOLDS = ("account_has_holds", Kind.CONFLICT, True)
    ACCOUNT_HAS_BALANCE = ("account_has_balance", Kind.CONFLICT, True)
    ACCOUNT_OWES = ("account_owes", Kind.CONFLICT, True)
    TOO_MANY_ACCOUNTS = ("too_many_accounts", Kind.CONFLICT, False)
    TOO_MANY_HOLDS = ("too_many_holds", Kind.CONFLICT, True)
    INSUFFICIENT_FUNDS = ("insufficient_funds", Kind.UNFUNDED, True)
    BALANCE_TOO_LARGE = ("balance_too_large", Kind.UNFUNDED, True)


class Refused(Exception):
    """A rule said no. Carries the reason, one sentence, and the figures that explain it."""

    def __init__(self, reason: Reason, message: str, **figures: Any) -> None:
        """Figures are plain values (text, int, bool); amounts are decimal text."""
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.figures = figures


def refuse(reason: Reason, message: str, **figures: Any) -> NoReturn:
    """Raise `Refused`; a verb, so that rules read as sentences."""
    raise Refused(reason, message, **figures)

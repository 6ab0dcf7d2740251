"""The shapes of `/v1` on the wire: what comes in, and what goes out."""

from typing import Annotated, Any, Literal

import msgspec

from pennyweight.delivery.http.wire import Amount, Moment, ProblemDocument, SignedAmount
from pennyweight.ledger.assets import Asset
from pennyweight.products import general

LIST_MAX = 1_000
"""Transfers in a list that is not atomic."""

Text = Annotated[str, msgspec.Meta(max_length=520)]


# ── what comes in ─────────────────────────────────────────────────────────────────


class CommandBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """What every command may carry. The key may come in the `Idempotency-Key` header instead."""

    idempotency_key: str | None = None
    not_after: Moment | None = None


class AssetBody(CommandBody, frozen=True):
    """An asset to register."""

    name: Text
    scale: int
    currency_id: int


class AccountBody(CommandBody, frozen=True):
    """An account to open: by its id, or by holder, asset and (for a further one) path."""

    id: Text | None = None
    holder: Text | None = None
    asset: Text | None = None
    path: Text | None = None
    floor: SignedAmount | msgspec.UnsetType = msgspec.UNSET


class TransferBody(CommandBody, frozen=True):
    """A transfer. `id` is the caller's name for it, `effective_at` dates it back."""

    debit_account: Text
    credit_account: Text
    asset: Text
    amount: Amount
    effective_at: Moment | None = None
    id: Text | None = None


class TransferItemBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A transfer of an atomic list."""

    debit_account: Text
    credit_account: Text
    asset: Text
    amount: Amount
    id: Text | None = None


class AtomicTransfersBody(CommandBody, frozen=True):
    """Up to 64 transfers, all or none."""

    transfers: list[TransferItemBody]
    atomic: Literal[True] = True
    effective_at: Moment | None = None


class SeparateTransfersBody(CommandBody, frozen=True):
    """Up to 1 000 transfers, each a command of its own; the results stand in their order.

    Each may have its own `idempotency_key`; one for the list gives item n the key `<key>:<n>`.
    """

    transfers: Annotated[list[TransferBody], msgspec.Meta(max_length=LIST_MAX)]
    atomic: bool


class ListBody(CommandBody, frozen=True):
    """Any list: to see which one it is."""

    transfers: msgspec.Raw
    atomic: bool
    effective_at: msgspec.Raw = msgspec.Raw(b"null")


class HoldBody(CommandBody, frozen=True):
    """A hold to place, for ever or for a number of seconds."""

    account: Text
    asset: Text
    amount: Amount
    expires_in_seconds: int | None = None


class SettleBody(CommandBody, frozen=True):
    """How to settle a hold; the rest is released unless it is to be kept."""

    amount: Amount
    credit_account: Text
    rest: Literal["release", "keep"] = "release"


class ReverseBody(CommandBody, frozen=True):
    """How to reverse an entry."""

    effective_at: Moment | None = None


# ── what goes out ─────────────────────────────────────────────────────────────────


class TransferShown(msgspec.Struct, frozen=True, gc=False):
    """A committed transfer. `sequence` is its entry's place in the journal."""

    id: str
    sequence: int
    debit_account: str
    credit_account: str
    asset: str
    amount: str
    committed_at: str
    effective_at: str


class TransfersShown(msgspec.Struct, frozen=True):
    """The transfers of an atomic list, in its order."""

    sequence: int
    transfers: list[TransferShown]


class ResultShown(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one item: a status, and the transfer or the problem."""

    status: int
    transfer: TransferShown | msgspec.UnsetType = msgspec.UNSET
    problem: ProblemDocument | msgspec.UnsetType = msgspec.UNSET
    replayed: bool = False


class ResultsShown(msgspec.Struct, frozen=True):
    """The results of a list that is not atomic, in its order."""

    results: list[ResultShown]


class HoldShown(msgspec.Struct, frozen=True, gc=False):
    """A hold: `amount` was set aside, `remaining` is still."""

    id: str
    account: str
    asset: str
    amount: str
    remaining: str
    owner: str
    expires_at: str | None
    state: str


class ReversalShown(msgspec.Struct, frozen=True):
    """The entry that undid another one."""

    sequence: int
    reversed_sequence: int
    transfers: list[TransferShown]


class MovementShown(msgspec.Struct, frozen=True):
    """A transfer inside an entry."""

    debit_account: str
    credit_account: str
    asset: str
    amount: str


class HoldChangeShown(msgspec.Struct, frozen=True):
    """A change of a hold inside an entry, and the hold after it."""

    verb: str
    hold: HoldShown


class OpeningShown(msgspec.Struct, frozen=True):
    """An account that an entry opened."""

    id: str
    holder: str
    asset: str


class RecordShown(msgspec.Struct, frozen=True):
    """Product state that an entry wrote."""

    kind: str
    id: str
    version: int
    body: msgspec.Raw


class EventShown(msgspec.Struct, frozen=True):
    """Something that an entry told the outside."""

    name: str
    body: Any


class EntryShown(msgspec.Struct, frozen=True):
    """All that one command committed. `key` is its idempotency key, null without one."""

    sequence: int
    command: str
    product: str
    key: str | None
    committed_at: str
    effective_at: str
    opened: list[OpeningShown]
    closed: list[str]
    transfers: list[MovementShown]
    holds: list[HoldChangeShown]
    records: list[RecordShown]
    events: list[EventShown]
    answer: msgspec.Raw


class LineShown(msgspec.Struct, frozen=True):
    """A line of a statement: what changed, and the balances after it.

    A posting changes `posted` by `change` (credits plus, debits minus) against the account
    `counterpart`; a hold change changes `held` by `change`, and `hold` says what was done.
    """

    ordinal: int
    sequence: int
    committed_at: str
    effective_at: str
    command: str
    product: str
    change: str
    counterpart: str | None
    hold: HoldChangeShown | None
    posted: str
    held: str


class StatementPage(msgspec.Struct, frozen=True):
    """A page of a statement."""

    data: list[LineShown]
    next_cursor: str | None


class BalanceShown(msgspec.Struct, frozen=True):
    """The balances of an account at a moment."""

    account: str
    asset: str
    as_of: str
    by: str
    posted: str
    held: str
    available: str


class AbandonShown(msgspec.Struct, frozen=True):
    """Whether the key is bound to nothing for ever, or else the entry and answer it has."""

    abandoned: bool
    sequence: int
    answer: Any


class AccountsPage(msgspec.Struct, frozen=True):
    """A page of accounts."""

    data: list[general.AccountAnswer]
    next_cursor: str | None


class AssetsPage(msgspec.Struct, frozen=True):
    """All assets; there is no second page."""

    data: list[Asset]
    next_cursor: None


class HoldsPage(msgspec.Struct, frozen=True):
    """A page of open holds."""

    data: list[HoldShown]
    next_cursor: str | None


class EntriesPage(msgspec.Struct, frozen=True):
    """A page of the journal."""

    data: list[EntryShown]
    next_cursor: str | None

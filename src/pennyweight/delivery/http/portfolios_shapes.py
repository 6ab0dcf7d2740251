"""The shapes of the portfolios face on the wire, beyond those that all who show portfolios share."""

from typing import Literal

import msgspec

from pennyweight.delivery.http.wire import Amount, Moment, decoder
from pennyweight.delivery.http.withdrawals_shapes import Carried
from pennyweight.delivery.portfolios import UNSET, PolicyBody, PostedUpdate, Unset, UserNamed
from pennyweight.delivery.portfolios_shown import (
    Percent,
    PolicyShown,
    PortfolioShown,
    Status,
    TransactionShown,
    UntradedShown,
)
from pennyweight.products.portfolios.queue import State

# ── what comes in ─────────────────────────────────────────────────────────────────


class OwnersBody(UserNamed, kw_only=True, gc=False):
    """What a portfolio's owner sends, which may carry what every command may."""

    idempotency_key: str | None = None
    not_after: Moment | None = None


class TargetBody(OwnersBody, kw_only=True, gc=False):
    """A user and the percentages by asset that are to be kept, together 100."""

    allocation: dict[str, Amount] | Unset = UNSET
    allocation_too: dict[str, Amount] | Unset = msgspec.field(default=UNSET, name="Allocation")
    policy: PolicyBody | None = None


class NewPolicyBody(OwnersBody, kw_only=True, gc=False):
    """A user and the policy that counts from now on; null: every drift is traded, to the target."""

    policy: PolicyBody | Unset | None = UNSET


class ExecutedBody(Carried, kw_only=True, gc=False):
    """For how much a transaction was carried out: all of it or nothing.

    `currency` is that of the run where it is left out.
    """

    quantity: Amount | None = None
    amount: Amount | None = None
    currency: str | None = None


class FillBody(msgspec.Struct, kw_only=True, gc=False):
    """A transaction that was carried out, and for how much, as in `ExecutedBody`."""

    id: str
    quantity: Amount | None = None
    amount: Amount | None = None
    currency: str | None = None


class RunExecutedBody(Carried, kw_only=True, gc=False):
    """Which transactions of a run were carried out; without `fills`, all that are left."""

    fills: list[FillBody] | None = None


target_decoder = decoder(TargetBody)
update_decoder = decoder(PostedUpdate)
policy_decoder = decoder(NewPolicyBody)
executed_decoder = decoder(ExecutedBody)
run_executed_decoder = decoder(RunExecutedBody)


# ── what goes out ─────────────────────────────────────────────────────────────────


class TargetShown(msgspec.Struct, frozen=True, gc=False):
    """A user's target, and the version of the policy where there is one."""

    user_id: str
    allocation: dict[str, Percent]
    policy_version: int | Unset = UNSET


class PolicySet(msgspec.Struct, frozen=True, gc=False):
    """The version of the policy that counts now."""

    user_id: str
    policy_version: int


class PolicyVersionShown(msgspec.Struct, frozen=True, gc=False):
    """One version of a policy, and since when it counts; null: none."""

    version: int
    since: str
    policy: PolicyShown | None


class PoliciesPage(msgspec.Struct, frozen=True):
    """A page of a policy's versions, from the first one on."""

    data: list[PolicyVersionShown]
    next_cursor: str | None


class PortfoliosPage(msgspec.Struct, frozen=True):
    """A page of portfolios, by user id."""

    data: list[PortfolioShown]
    next_cursor: str | None


class UpdateQueued(msgspec.Struct, frozen=True, gc=False):
    """An update that is kept, and where to ask what became of it.

    It says the same when the update comes again, whatever has become of it since.
    """

    update_id: int
    status: Literal["queued"]
    href: str


class UpdateShown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A queued update, and what became of it.

    Of one that is done, `result` says whether it made a run, repeated one, or was outdated;
    `transactions` are those of the run. Of one that was refused, `code` and `detail` say why.
    """

    update_id: int
    user_id: str
    status: State
    queued_at: str
    taken_at: str | Unset = UNSET
    result: Literal["rebalanced", "repeat", "outdated"] | Unset = UNSET
    run: int | Unset = UNSET
    transactions: list[TransactionShown] | Unset = UNSET
    code: str | Unset = UNSET
    detail: str | Unset = UNSET


class TransactionsPage(msgspec.Struct, frozen=True):
    """A page of a user's transactions, the newest run first, each run in its order."""

    transactions: list[TransactionShown]
    next_cursor: str | None


class RunListed(msgspec.Struct, frozen=True, gc=False):
    """A run in a list: `transactions` counts them; all other numbers are points."""

    run: int
    created_at: str
    as_of: str
    policy_version: int
    transactions: int
    turnover: Percent
    drift_score_before: Percent
    drift_score_after: Percent


class RunsPage(msgspec.Struct, frozen=True):
    """A page of a user's runs, newest first."""

    data: list[RunListed]
    next_cursor: str | None


class RunShown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A run with all it says: each asset is either traded or not, with the reason.

    `turnover` is what all purchases are together; `sum_of_changes`, purchases minus sales, is 0.
    """

    run: int
    user_id: str
    created_at: str
    as_of: str
    policy_version: int
    previous_run: int | None
    transactions: list[TransactionShown]
    not_traded: list[UntradedShown]
    drift_score_before: Percent
    drift_score_after: Percent
    turnover: Percent
    sum_of_changes: Percent


class PreviewShown(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What an update would lead to, as in `RunShown`.

    `result`: a new run, or the last one again.
    """

    user_id: str
    result: Literal["rebalanced", "repeat"]
    as_of: str
    policy_version: int
    transactions: list[TransactionShown]
    not_traded: list[UntradedShown]
    drift_score_before: Percent
    drift_score_after: Percent
    turnover: Percent
    sum_of_changes: Percent


class TransactionExecuted(msgspec.Struct, frozen=True, gc=False):
    """A transaction that is executed."""

    id: str
    user_id: str
    status: Status


class RunExecuted(msgspec.Struct, frozen=True, gc=False):
    """The transactions that were named, all of them executed."""

    run: int
    user_id: str
    executed: list[str]

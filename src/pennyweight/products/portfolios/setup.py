"""How a portfolio begins, and what its owner may change: the target and the policy."""

from typing import Literal

import msgspec

from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.portfolios.shared import (
    POLICY,
    PORTFOLIO,
    PRODUCT,
    TARGET_TOLERANCE,
    Policy,
    Portfolio,
    Weights,
    check_policy,
    find_portfolio,
    policy_id,
    put_portfolio,
    weights_of,
)


class SetupAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A portfolio's target and the version of its policy (0: none), and what was done to get there."""

    user: str
    result: Literal["created", "changed", "unchanged"]
    target: Weights
    policy_version: int = 0


class CreatePortfolio(Command, frozen=True):
    """Register a user's portfolio with its target, and a policy if there is one.

    `allocation` are percentages by asset, decimal text, which add up to 100 give or take
    10^-9. The same again changes nothing. Refusals: user_id_invalid, allocation_invalid,
    policy_invalid, portfolio_exists (with another target or policy).
    """

    name = "create_portfolio"
    product = PRODUCT
    counted = ("user", "allocation", "policy")
    answer_type = SetupAnswer

    user: str
    allocation: dict[str, str]
    policy: Policy | None = None

    def reads(self, wanted: Wanted) -> None:
        """The user, with whom the portfolio is kept."""
        wanted.holder(user_holder(self.user))

    def decide(self, draft: Draft) -> SetupAnswer:
        """See the class."""
        target = weights_of(self.allocation, TARGET_TOLERANCE)
        if self.policy is not None:
            check_policy(self.policy)
        holder = user_holder(self.user)
        if draft.record(PORTFOLIO, self.user, holder=holder) is not None:
            known = find_portfolio(draft, self.user).portfolio
            if known.target != target or (self.policy is not None and known.policy != self.policy):
                refuse(
                    Reason.PORTFOLIO_EXISTS,
                    f"user {self.user[:80]!r} has another portfolio already; PUT changes it",
                    user_id=self.user[:80],
                )
            return SetupAnswer(self.user, "unchanged", target, known.policy_version)
        portfolio = Portfolio(target, draft.time)
        if self.policy is not None:
            portfolio = _with_policy(draft, self.user, portfolio, self.policy)
        put_portfolio(draft, self.user, portfolio, None)
        return SetupAnswer(self.user, "created", target, portfolio.policy_version)


class ChangeTarget(Command, frozen=True):
    """Give a portfolio another target. Nothing is traded until the next update.

    Refusals: user_id_invalid, allocation_invalid, portfolio_not_found.
    """

    name = "change_target"
    product = PRODUCT
    counted = ("user", "allocation")
    answer_type = SetupAnswer

    user: str
    allocation: dict[str, str]

    def reads(self, wanted: Wanted) -> None:
        """The user, with whom the portfolio is kept."""
        wanted.holder(user_holder(self.user))

    def decide(self, draft: Draft) -> SetupAnswer:
        """See the class."""
        target = weights_of(self.allocation, TARGET_TOLERANCE)
        record, known = find_portfolio(draft, self.user)
        if known.target == target:
            return SetupAnswer(self.user, "unchanged", target, known.policy_version)
        changed = msgspec.structs.replace(known, target=target, is_fresh=False)
        put_portfolio(draft, self.user, changed, record)
        return SetupAnswer(self.user, "changed", target, known.policy_version)


class SetPolicy(Command, frozen=True):
    """Give a portfolio a policy, as its next version; None lets every drift be traded again.

    Refusals: user_id_invalid, policy_invalid, portfolio_not_found.
    """

    name = "set_policy"
    product = PRODUCT
    counted = ("user", "policy")
    answer_type = SetupAnswer

    user: str
    policy: Policy | None

    def reads(self, wanted: Wanted) -> None:
        """The user, with whom the portfolio is kept."""
        wanted.holder(user_holder(self.user))

    def decide(self, draft: Draft) -> SetupAnswer:
        """See the class."""
        if self.policy is not None:
            check_policy(self.policy)
        record, known = find_portfolio(draft, self.user)
        if known.policy == self.policy:
            return SetupAnswer(self.user, "unchanged", known.target, known.policy_version)
        changed = _with_policy(draft, self.user, known, self.policy)
        put_portfolio(draft, self.user, changed, record)
        return SetupAnswer(self.user, "changed", known.target, changed.policy_version)


class PolicyVersion(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One version of a user's policy, and since when it counts; None: every drift is traded."""

    user: str
    version: int
    since: int
    policy: Policy | None = None


def _with_policy(draft: Draft, user: str, portfolio: Portfolio, policy: Policy | None) -> Portfolio:
    """Keep a policy as the next version, and return the portfolio with it."""
    version = portfolio.policy_version + 1
    draft.put_record(
        POLICY,
        policy_id(user, version),
        PolicyVersion(user, version, draft.time, policy),
        before=None,
        labels=(f"user:{user}",),
    )
    return msgspec.structs.replace(portfolio, policy=policy, policy_version=version, is_fresh=False)

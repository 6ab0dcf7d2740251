"""Watches what commands come to: counts for `/metrics`, an alert for each deficit.

Handed to the driver, which calls it with all answers of a batch, whichever way their
commands came: over HTTP, from Kafka, from a timer.
"""

from collections import Counter
from collections.abc import Iterator, Sequence

import structlog
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric

from pennyweight.engine.engine import Answer
from pennyweight.engine.receipts import Outcome, Receipt, Refusal
from pennyweight.ledger.commands import Command
from pennyweight.ledger.letters import SetAsideAnswer
from pennyweight.ledger.refusals import Reason
from pennyweight.products.portfolios.letters import CloseUpdateLetter, ReplayUpdate, SetAsideUpdate
from pennyweight.products.portfolios.queue import TakeUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.withdrawals.settle import (
    CloseLetter,
    ReplaySettlement,
    SetAside,
    Settle,
    SettlementAnswer,
)
from pennyweight.products.withdrawals.withdraw import (
    CancelWithdrawal,
    ExpireWithdrawal,
    Withdraw,
)

log = structlog.get_logger(__name__)

_ENDS: dict[type[Command], str] = {CancelWithdrawal: "cancelled", ExpireWithdrawal: "expired"}
_SETTLING = (Settle, ReplaySettlement)
_UPDATING = (Rebalance, ReplayUpdate, TakeUpdate)
_ASIDE = (SetAside, SetAsideUpdate)
_CLOSING = (CloseLetter, CloseUpdateLetter)
_WATCHED = frozenset({Withdraw, *_ENDS, *_SETTLING, *_UPDATING, *_ASIDE, *_CLOSING})


class Watch:
    """Counts since the start, by one thread, read by any. Replays and failures do not count."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self.withdrawals: Counter[str] = Counter()
        """By status: accepted, insufficient, refused; cancelled and expired by request and time."""
        self.settlements: Counter[str] = Counter()
        """By result: settled, cancelled, unsolicited, duplicate; refused ones over HTTP."""
        self.updates: Counter[str] = Counter()
        """By result: rebalanced, repeat, outdated; refused ones over HTTP and from the queue."""
        self.deficits: Counter[str] = Counter()
        """Settlements that took more than the user had, by token."""
        self.letters: Counter[str] = Counter()
        """Messages set aside, by reason."""
        self.dealt_with: Counter[str] = Counter()
        """Dead letters replayed and closed."""

    def __call__(self, answers: Sequence[Answer]) -> None:
        """Look at the answers of a batch."""
        for submission, outcome in answers:
            command = submission.command
            if command.__class__ not in _WATCHED:
                continue
            if isinstance(command, Withdraw):
                self._withdrawn(outcome)
            elif isinstance(command, _SETTLING):
                self._settled(command, outcome)
            elif isinstance(command, _UPDATING):
                self._updated(command, outcome)
            elif isinstance(outcome, Receipt) and not outcome.is_replayed:
                if isinstance(command, _ASIDE):
                    self.letters[command.reason] += 1
                elif isinstance(command, _CLOSING):
                    self.dealt_with["closed"] += 1
                else:
                    self.withdrawals[_ENDS[type(command)]] += 1

    def metrics(self) -> Iterator[Metric]:
        """Yield the counts in Prometheus' terms."""
        for name, what, label, counts in (
            ("withdrawals", "What was answered to withdrawals", "status", self.withdrawals),
            ("settlements", "What settlements came to", "result", self.settlements),
            ("portfolio_updates", "What updates of portfolios came to", "result", self.updates),
            ("deficits", "Settlements beyond what the user had", "token", self.deficits),
            ("dead_letters", "Messages set aside", "reason", self.letters),
            ("dead_letters_ended", "Dead letters dealt with", "state", self.dealt_with),
        ):
            family = CounterMetricFamily(f"pennyweight_{name}", what, labels=(label,))
            for value, count in sorted(counts.copy().items()):
                family.add_metric((value,), count)
            yield family

    def _withdrawn(self, outcome: Outcome) -> None:
        if isinstance(outcome, Receipt):
            if not outcome.is_replayed:
                self.withdrawals["accepted"] += 1
        elif isinstance(outcome, Refusal):
            is_unfunded = outcome.reason is Reason.INSUFFICIENT_FUNDS
            self.withdrawals["insufficient" if is_unfunded else "refused"] += 1

    def _settled(self, command: Settle | ReplaySettlement, outcome: Outcome) -> None:
        if isinstance(outcome, Refusal):
            if outcome.reason is not Reason.CURSOR_CONFLICT:
                self.settlements["refused"] += 1
            return
        if not isinstance(outcome, Receipt) or outcome.is_replayed:
            return
        answer = outcome.answer
        if isinstance(answer, SetAsideAnswer):
            self.letters[answer.reason] += 1
            return
        settle = command
        if isinstance(settle, ReplaySettlement):
            self.dealt_with["replayed"] += 1
            settle = settle.settlement
        self.settlements[answer.result] += 1
        if answer.shortage != "0":
            self._alert(settle, answer, outcome.sequence)

    def _updated(self, command: Command, outcome: Outcome) -> None:
        if isinstance(outcome, Refusal):
            is_ours = outcome.reason in {Reason.CURSOR_CONFLICT, Reason.UPDATE_TAKEN}
            self.updates["refused"] += not is_ours
            return
        if not isinstance(outcome, Receipt) or outcome.is_replayed:
            return
        answer = outcome.answer
        if isinstance(answer, SetAsideAnswer):
            self.letters[answer.reason] += 1
            return
        if isinstance(command, ReplayUpdate):
            self.dealt_with["replayed"] += 1
        if isinstance(command, TakeUpdate):
            answer = answer.run
        self.updates["refused" if answer is None else answer.result] += 1

    def _alert(self, settle: Settle, answer: SettlementAnswer, sequence: int) -> None:
        """Tell somebody: a user owes money, because more was sold than there was."""
        self.deficits[settle.sold_token] += 1
        log.warning(
            "deficit",
            user_id=settle.user,
            token=settle.sold_token,
            shortage=answer.shortage,
            owed=answer.owed,
            withdrawal_id=answer.withdrawal_id,
            settlement_id=settle.settlement_id,
            sequence=sequence,
        )

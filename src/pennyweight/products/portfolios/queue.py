"""Updates that are queued first and worked out later: acknowledged at once, each taken once.

A queued update is a record with a number, marked on an index until it was taken. Taking it
is a command of its own: the update is decided as one that came when it was queued, and what
came of it, also a refusal, is kept with the number.
"""

from typing import Literal

import msgspec

from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.commands import Command, Twin, Wanted, fingerprint
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.entries import Entry
from pennyweight.ledger.records import Mark
from pennyweight.ledger.refusals import Reason, Refused, refuse
from pennyweight.products.portfolios.rebalance import Rebalance, update_in
from pennyweight.products.portfolios.shared import (
    PRODUCT,
    QUEUE,
    QUEUE_UPDATE,
    UPDATE,
    QueuedAnswer,
    RunAnswer,
    find_portfolio,
)

State = Literal["queued", "done", "refused"]


class Queued(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An update that was queued: what it says, and what became of it.

    `entry` is the sequence of the entry that took it, `run` the run that it led to or
    repeats (0: it is outdated). `reason` and `detail` say why it was refused.
    """

    update: Rebalance
    queued_at: int
    state: State = "queued"
    taken_at: int = 0
    entry: int = 0
    run: int = 0
    reason: str = ""
    detail: str = ""


class TakenAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What came of a queued update: a run, or why there is none."""

    number: int
    state: State
    run: RunAnswer | None = None
    reason: str = ""
    detail: str = ""


class QueueUpdate(Command, frozen=True):
    """Keep an update to be worked out later, and number it.

    Refusals: user_id_invalid, portfolio_not_found. All others wait until it is taken.
    """

    name = QUEUE_UPDATE
    product = PRODUCT
    counted = ("update",)
    answer_type = QueuedAnswer
    other_answer_types = (RunAnswer,)

    update: Rebalance

    def reads(self, wanted: Wanted) -> None:
        """The user, with whom the portfolio is kept."""
        wanted.holder(user_holder(self.update.user))

    def twin_in(self, earlier: Entry) -> Twin | None:
        """See `update_in`."""
        found = update_in(earlier)
        return None if found is None else Twin(fingerprint(QueueUpdate(found[0])), found[1])

    def decide(self, draft: Draft) -> QueuedAnswer:
        """See the class."""
        find_portfolio(draft, self.update.user)
        number = draft.next_number(UPDATE)
        draft.put_record(
            UPDATE,
            str(number),
            Queued(self.update, draft.time),
            before=None,
            marks=(Mark(QUEUE, number),),
        )
        return QueuedAnswer(number, self.update.user)


class TakeUpdate(Command, frozen=True):
    """Work a queued update out, and keep with its number what came of it, also a refusal.

    Refusals: update_not_found, update_taken.
    """

    name = "take_update"
    product = PRODUCT
    counted = ("number", "user")
    answer_type = TakenAnswer
    is_admitting = False

    number: int
    user: str

    def reads(self, wanted: Wanted) -> None:
        """The update, and its user."""
        wanted.record(UPDATE, str(self.number))
        wanted.holder(user_holder(self.user))

    def decide(self, draft: Draft) -> TakenAnswer:
        """See the class."""
        record = draft.record(UPDATE, str(self.number))
        if record is None:
            refuse(Reason.UPDATE_NOT_FOUND, f"no update {self.number} was queued")
        queued: Queued = record.read(Queued)
        if queued.state != "queued":
            refuse(Reason.UPDATE_TAKEN, f"update {self.number} was taken already")
        run, reason, detail = None, "", ""
        try:
            run = queued.update.decide_as_of(
                queued.queued_at, draft
            )  # one that refuses has changed nothing yet
        except Refused as refused:
            reason, detail = refused.reason.code, refused.message
        state: State = "refused" if run is None else "done"
        taken = msgspec.structs.replace(
            queued,
            state=state,
            taken_at=draft.time,
            entry=draft.sequence,
            run=0 if run is None else run.run,
            reason=reason,
            detail=detail,
        )
        draft.put_record(UPDATE, record.id, taken, before=record)
        return TakenAnswer(self.number, state, run, reason, detail)

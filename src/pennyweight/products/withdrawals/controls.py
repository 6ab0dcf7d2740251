"""What a risk desk can set: modes and limits, for all or for one user, in the book like all else.

A mode says what is still taken: `active` everything; `reducing` nothing that sets more
money aside, so that what is held can only get less; `halted` nothing that a caller asks
for. The stricter one of the token's mode and the general one counts. Settlements are facts
and are booked in every mode.

A limit is on one withdrawal or on a rolling day. A user's own limit goes before the one
for all users. The day is counted while a daily limit applies, in steps of five minutes:
an accepted withdrawal counts for 24 hours, and up to five minutes more. What was counted
and is cancelled or expires is given back; a settlement changes nothing of it.
"""

from typing import Literal

import msgspec

from pennyweight.ledger.accounts import HOUSE, user_holder
from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.holds import Hold
from pennyweight.ledger.records import Record
from pennyweight.ledger.refusals import Reason, refuse
from pennyweight.products.withdrawals.shared import (
    PRODUCT,
    check_user,
    token_of,
    user_of,
)

DESK = f"{HOUSE}:withdrawals"
"""The holder with whom the general modes and limits are kept, so that they are always at hand."""

CONTROLS = "withdrawals.controls"
"""Kind of the one record of general modes and limits; its id is "all"."""

USER = "withdrawals.user"
"""Kind of the records of users with limits or a counted day; the id is the user's."""

Mode = Literal["active", "reducing", "halted"]

_STRICTNESS: dict[Mode, int] = {"active": 0, "reducing": 1, "halted": 2}
_STEP = 300 * 1_000_000
_DAY_STEPS = 288


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Greatest quantities of a token, decimal text: of one withdrawal, of a rolling day. None: no limit."""

    per_withdrawal: str | None = None
    per_day: str | None = None


class Controls(msgspec.Struct, frozen=True, omit_defaults=True):
    """The general mode, and modes and limits by token."""

    mode: Mode = "active"
    modes: dict[str, Mode] = {}
    limits: dict[str, Limits] = {}


class Slot(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Five minutes of a day: their number since 1970, and the units withdrawn in them.

    `first` is the number of the first hold counted; from it on all of these five minutes
    are, whatever becomes of the limit, so that it is known what may be given back.
    """

    step: int
    units: int
    first: int


class UserControls(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user's own limits by token, and what was withdrawn in the last 24 hours, by token."""

    limits: dict[str, Limits] = {}
    days: dict[str, tuple[Slot, ...]] = {}


class ModeAnswer(msgspec.Struct, frozen=True):
    """A mode as it is set; `token` is None for the general one."""

    token: str | None
    mode: Mode


class LimitsAnswer(msgspec.Struct, frozen=True):
    """Limits as they are set; `user_id` is None for those of all users."""

    user_id: str | None
    token: str
    per_withdrawal: str | None
    per_day: str | None


_controls = msgspec.json.Decoder(Controls)
_user_controls = msgspec.json.Decoder(UserControls)


class SetMode(Command, frozen=True):
    """Set the mode of a token, or of everything. Refusal: token_unknown."""

    name = "set_mode"
    product = PRODUCT
    counted = ("mode", "token")
    answer_type = ModeAnswer

    mode: Mode
    token: str | None = None

    def reads(self, wanted: Wanted) -> None:
        """The desk."""
        wanted.holder(DESK)

    def decide(self, draft: Draft) -> ModeAnswer:
        """See the class."""
        record, controls = _general(draft)
        if self.token is None:
            after = msgspec.structs.replace(controls, mode=self.mode)
        else:
            token_of(draft, self.token)
            modes = {**controls.modes, self.token: self.mode}
            if self.mode == "active":
                del modes[self.token]
            after = msgspec.structs.replace(controls, modes=modes)
        draft.put_record(CONTROLS, "all", after, before=record, holder=DESK)
        return ModeAnswer(self.token, self.mode)


class SetLimits(Command, frozen=True):
    """Set both limits of a token, for one user or for all; None lifts a limit.

    A user without a limit of their own has the one for all.

    Refusals: user_id_invalid, token_unknown, those of an amount, user_not_found.
    """

    name = "set_limits"
    product = PRODUCT
    counted = ("token", "per_withdrawal", "per_day", "user")
    answer_type = LimitsAnswer

    token: str
    per_withdrawal: str | None = None
    per_day: str | None = None
    user: str | None = None

    def reads(self, wanted: Wanted) -> None:
        """The desk, or the user."""
        wanted.holder(DESK if self.user is None else user_holder(self.user))

    def decide(self, draft: Draft) -> LimitsAnswer:
        """See the class."""
        token_of(draft, self.token)
        for amount in (self.per_withdrawal, self.per_day):
            if amount is not None:
                draft.units(amount, self.token, is_zero_allowed=True)
        limits = Limits(self.per_withdrawal, self.per_day)
        if self.user is None:
            record, controls = _general(draft)
            after = msgspec.structs.replace(
                controls, limits=_with(controls.limits, self.token, limits)
            )
            draft.put_record(CONTROLS, "all", after, before=record, holder=DESK)
        else:
            holder = user_holder(self.user)
            check_user(draft.facts, holder)
            record, own = _of_user(draft, holder)
            changed = msgspec.structs.replace(own, limits=_with(own.limits, self.token, limits))
            draft.put_record(USER, self.user, changed, before=record, holder=holder)
        return LimitsAnswer(self.user, self.token, self.per_withdrawal, self.per_day)


def _with(all_limits: dict[str, Limits], token: str, limits: Limits) -> dict[str, Limits]:
    """Return limits by token with those of one token changed."""
    changed = {**all_limits, token: limits}
    if limits == Limits():
        del changed[token]
    return changed


def prevailing(own: Limits, of_all: Limits) -> Limits:
    """Return what counts for a user: each own limit, and where there is none, the one for all."""
    return Limits(own.per_withdrawal or of_all.per_withdrawal, own.per_day or of_all.per_day)


def prevailing_limits(own: dict[str, Limits], of_all: dict[str, Limits]) -> dict[str, Limits]:
    """Return what counts for a user, by token, in the order of the tokens."""
    return {
        token: prevailing(own.get(token, Limits()), of_all.get(token, Limits()))
        for token in sorted({*own, *of_all})
    }


# ── what withdrawals ask ──────────────────────────────────────────────────────────


def is_controlled(draft: Draft, user: str, holder: str) -> bool:
    """Whether the desk has ever set anything that may stand against a user's withdrawals."""
    return (
        draft.record(CONTROLS, "all", holder=DESK) is not None
        or draft.record(USER, user, holder=holder) is not None
    )


def check_mode(draft: Draft, token: str, *, is_new: bool) -> None:
    """Refuse what the modes do not allow: a new withdrawal, or the cancellation of one.

    Refusals: withdrawals_halted, withdrawals_reducing.
    """
    record = draft.record(CONTROLS, "all", holder=DESK)
    if record is None:
        return
    controls = _controls.decode(record.body)
    of_token = controls.modes.get(token, "active")
    is_general = _STRICTNESS[controls.mode] >= _STRICTNESS[of_token]
    mode = controls.mode if is_general else of_token
    where = "everything" if is_general else token
    if mode == "halted":
        refuse(
            Reason.WITHDRAWALS_HALTED,
            f"withdrawals are halted for {where}",
            mode=mode,
            scope=where,
        )
    if mode == "reducing" and is_new:
        refuse(
            Reason.WITHDRAWALS_REDUCING,
            f"no new withdrawals are taken for {where}; open ones may be cancelled",
            mode=mode,
            scope=where,
        )


def check_limits(draft: Draft, holder: str, token: str, units: int) -> None:
    """Refuse a withdrawal above a limit, and count it where a daily limit applies.

    Refusal: limit_reached, with the limit's name, maximum and what counts already.
    """
    general_record = draft.record(CONTROLS, "all", holder=DESK)
    user = user_of(holder)
    record = draft.record(USER, user, holder=holder)
    of_all = Limits()
    if general_record is not None:
        of_all = _controls.decode(general_record.body).limits.get(token, of_all)
    own = UserControls() if record is None else _user_controls.decode(record.body)
    of_user = own.limits.get(token, Limits())
    limits = prevailing(of_user, of_all)
    per_withdrawal, per_day = limits.per_withdrawal, limits.per_day
    if per_withdrawal is not None and units > draft.units(
        per_withdrawal, token, is_zero_allowed=True
    ):
        refuse(
            Reason.LIMIT_REACHED,
            f"a withdrawal of {token} is at most {per_withdrawal}",
            limit="per_withdrawal",
            maximum=per_withdrawal,
            scope="user" if of_user.per_withdrawal else "all",
            requested_quantity=draft.text(units, token),
        )
    step = draft.time // _STEP
    day = tuple(slot for slot in own.days.get(token, ()) if slot.step >= step - _DAY_STEPS)
    is_begun = bool(day) and day[-1].step == step
    if per_day is None and not is_begun:
        return
    used = sum(slot.units for slot in day)
    if per_day is not None and used + units > draft.units(per_day, token, is_zero_allowed=True):
        refuse(
            Reason.LIMIT_REACHED,
            f"withdrawals of {token} are at most {per_day} in 24 hours",
            limit="per_day",
            maximum=per_day,
            scope="user" if of_user.per_day else "all",
            used=draft.text(used, token),
            requested_quantity=draft.text(units, token),
        )
    if is_begun:
        last = day[-1]
        day = (*day[:-1], Slot(step, last.units + units, last.first))
    else:
        day = (*day, Slot(step, units, draft.facts.counter("hold") + 1))
    counted = msgspec.structs.replace(own, days={**own.days, token: day})
    draft.put_record(USER, user, counted, before=record, holder=holder)


def give_back(draft: Draft, holder: str, hold: Hold) -> None:
    """Uncount a withdrawal that came to nothing, if it was counted."""
    user = user_of(holder)
    record = draft.record(USER, user, holder=holder)
    if record is None:
        return
    own = _user_controls.decode(record.body)
    step = hold.placed_at // _STEP
    day = own.days.get(hold.asset, ())
    changed = tuple(
        Slot(step, slot.units - hold.amount, slot.first)
        if slot.step == step and slot.first <= hold.id
        else slot
        for slot in day
    )
    if changed == day:
        return
    counted = msgspec.structs.replace(own, days={**own.days, hold.asset: changed})
    draft.put_record(USER, user, counted, before=record, holder=holder)


def _general(draft: Draft) -> tuple[Record | None, Controls]:
    """Return the desk's record and what it says."""
    record = draft.record(CONTROLS, "all", holder=DESK)
    return record, Controls() if record is None else _controls.decode(record.body)


def _of_user(draft: Draft, holder: str) -> tuple[Record | None, UserControls]:
    """Return a user's record and what it says."""
    record = draft.record(USER, user_of(holder), holder=holder)
    return record, UserControls() if record is None else _user_controls.decode(record.body)

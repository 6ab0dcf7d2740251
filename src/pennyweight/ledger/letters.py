"""Dead letters: messages of an outside stream that a product could not take, kept with the reason.

A message set aside is a record of the product that should have taken it, and an event
that carries the original bytes to a dead-letter topic. An operator replays it, once what
was wrong is put right, or closes it. The commands for that are here once for all products:
each derives its own three, with its name and an `answer_type`, without which they are none.
"""

from typing import Any, Literal

import msgspec

from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft
from pennyweight.ledger.records import Mark, Record
from pennyweight.ledger.refusals import Reason, refuse

LETTER = "dead_letter"
"""Kind of the records and the counter of their numbers; the id is `<product>-<number>`."""

SET_ASIDE = "dead_letter"
"""Name of the event."""

PAYLOAD_MAX = 1 << 20
"""Bytes of a message that are kept; the origin still has the rest."""


State = Literal["open", "replayed", "closed"]
"""Whether somebody has dealt with a letter, and how."""


class Message(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A message as it came: key, payload and the headers' values in base64."""

    topic: str
    partition: int
    offset: int
    payload: str
    key: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A message that was set aside, why, and what became of it.

    `reason` is a stable code, `detail` a sentence. `closed_in` is the sequence of the
    entry that replayed or closed it, `note` what the operator said to that.
    """

    message: Message
    reason: str
    detail: str
    set_aside_at: int
    state: State = "open"
    closed_in: int = 0
    note: str = ""


class LetterEvent(msgspec.Struct, frozen=True, gc=False):
    """What the dead-letter topic is to be sent."""

    letter: str
    topic: str
    partition: int
    offset: int
    key: str | None
    payload: str
    headers: tuple[tuple[str, str], ...]
    reason: str
    detail: str


def set_aside(draft: Draft, message: Message, reason: str, detail: str) -> str:
    """Keep a message as a dead letter of the draft's product, and return the letter's id."""
    letter_id = f"{draft.product}-{draft.next_number(LETTER)}"
    letter = DeadLetter(message, reason, detail, draft.time)
    _put(draft, letter_id, letter, before=None)
    draft.emit(
        SET_ASIDE,
        LetterEvent(
            letter_id,
            message.topic,
            message.partition,
            message.offset,
            message.key,
            message.payload,
            message.headers,
            reason,
            detail,
        ),
    )
    return letter_id


def open_letter(draft: Draft, letter_id: str) -> tuple[Record, DeadLetter]:
    """Return a letter that nobody has dealt with.

    Refusals: dead_letter_not_found, owned_by_product, dead_letter_closed.
    """
    record = draft.record(LETTER, letter_id)
    if record is None:
        refuse(Reason.DEAD_LETTER_NOT_FOUND, f"there is no dead letter {letter_id[:80]!r}")
    if record.product != draft.product:
        refuse(
            Reason.OWNED_BY_PRODUCT,
            f"dead letter {letter_id!r} belongs to {record.product}",
            owner=record.product,
        )
    letter: DeadLetter = record.read(DeadLetter)
    check_open(letter_id, letter)
    return record, letter


def check_open(letter_id: str, letter: DeadLetter) -> None:
    """Refuse a letter that was dealt with. Refusal: dead_letter_closed."""
    if letter.state != "open":
        refuse(
            Reason.DEAD_LETTER_CLOSED,
            f"dead letter {letter_id!r} was {letter.state} already",
            state=letter.state,
            sequence=letter.closed_in,
        )


def close_letter(
    draft: Draft,
    record: Record,
    letter: DeadLetter,
    state: Literal["replayed", "closed"],
    note: str = "",
) -> DeadLetter:
    """Note what became of a letter, and return it."""
    closed = msgspec.structs.replace(letter, state=state, closed_in=draft.sequence, note=note)
    _put(draft, record.id, closed, before=record)
    return closed


def index_of(state: State) -> str:
    """Return the index on which letters in a state are marked with their numbers, oldest first."""
    return f"{LETTER}.{state}"


def _put(draft: Draft, letter_id: str, letter: DeadLetter, *, before: Record | None) -> None:
    """Write a letter with what it is listed by."""
    number = int(letter_id.rpartition("-")[2])
    draft.put_record(
        LETTER,
        letter_id,
        letter,
        before=before,
        labels=(f"state:{letter.state}", f"reason:{letter.reason}"),
        marks=(Mark(index_of(letter.state), number),),
    )


# ── the commands ──────────────────────────────────────────────────────────────────


class SetAsideAnswer(msgspec.Struct, frozen=True, gc=False):
    """The dead letter that keeps a message which could not be taken."""

    letter: str
    reason: str


class LetterAnswer(msgspec.Struct, frozen=True, gc=False):
    """A dead letter that an operator has dealt with."""

    letter: str
    state: str


class SetAside(Command, frozen=True):
    """Keep a message that could not be taken as a dead letter. Refuses nothing."""

    counted = ("message", "reason", "detail")
    is_admitting = False

    message: Message
    reason: str
    detail: str

    def reads(self, wanted: Wanted) -> None:
        """Nothing: the letter is a new one."""

    def decide(self, draft: Draft) -> SetAsideAnswer:
        """See the class."""
        return SetAsideAnswer(set_aside(draft, self.message, self.reason, self.detail), self.reason)


class ReplayLetter(Command, frozen=True):
    """Do after all what a dead letter asks for; the letter is closed in the same entry.

    A product's own adds the command that it has read from the letter, and counts it.

    Refusals: dead_letter_not_found, owned_by_product, dead_letter_closed, and those of
    that command, which leave the letter open.
    """

    is_admitting = False

    letter: str

    @property
    def content(self) -> Command:
        """The command that the letter asks for."""
        raise NotImplementedError

    def reads(self, wanted: Wanted) -> None:
        """The letter, and what its command reads."""
        wanted.record(LETTER, self.letter)
        self.content.reads(wanted)

    def decide(self, draft: Draft) -> Any:
        """See the class."""
        record, letter = open_letter(draft, self.letter)
        answer = self.content.decide(draft)
        close_letter(draft, record, letter, "replayed")
        return answer


class CloseLetter(Command, frozen=True):
    """Close a dead letter without doing what it asks for; the note says why.

    Refusals: dead_letter_not_found, owned_by_product, dead_letter_closed.
    """

    counted = ("letter", "note")

    letter: str
    note: str = ""

    def reads(self, wanted: Wanted) -> None:
        """The letter."""
        wanted.record(LETTER, self.letter)

    def decide(self, draft: Draft) -> LetterAnswer:
        """See the class."""
        record, letter = open_letter(draft, self.letter)
        closed = close_letter(draft, record, letter, "closed", self.note)
        return LetterAnswer(self.letter, closed.state)

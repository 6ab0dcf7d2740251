"""What a caller gets back: done, refused, or neither yet known."""

from typing import Any

import msgspec

from pennyweight.ledger.refusals import Reason

UNKNOWN = "outcome_unknown"


class Receipt(msgspec.Struct, frozen=True, gc=False):
    """Done: the entry's sequence and the rule's answer (the command's `answer_type`).

    A replay carries the first answer again.
    """

    sequence: int
    answer: Any
    is_replayed: bool = False


class Refusal(msgspec.Struct, frozen=True):
    """Refused: nothing changed. One reason, a sentence, and the figures that explain it."""

    reason: Reason
    message: str
    figures: dict[str, Any] = {}


class Failure(msgspec.Struct, frozen=True):
    """A rule of ours broke. Nothing changed; the cause is for the log, not for the caller."""

    cause: BaseException


class Unknown(msgspec.Struct, frozen=True):
    """Neither done nor refused for certain: ask again under the same key.

    `code` is stable. Any other than this one says that nothing was decided, and why.
    """

    message: str
    code: str = UNKNOWN


Outcome = Receipt | Refusal | Failure | Unknown

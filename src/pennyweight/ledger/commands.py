"""Commands: what may be asked of the book, and what its decision must read first."""

import functools
import operator
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from pennyweight.ledger.draft import Draft, Facts
from pennyweight.ledger.entries import Entry

_encoder = msgspec.json.Encoder()


class Wanted(Protocol):
    """Collects what a decision needs, in the closed set of shapes that a store resolves in one trip."""

    def account(self, account_id: str) -> None:
        """An account, together with all that its holder has."""

    def holder(self, holder: str) -> None:
        """All accounts of a holder, and the records kept with it."""

    def accounts(self, *account_ids: str) -> None:
        """Several accounts, each as `account` does it."""

    def next_holder(self, counter: str, prefix: str) -> None:
        """The holder `prefix:<number>` that `decide` will name by the counter's next number."""

    def hold(self, hold_id: int, of: str = "") -> None:
        """A hold and its account, most likely of the holder `of`, who is named before it."""

    def hold_of_reference(self, owner: str, reference: str, of: str = "") -> None:
        """The hold that its owner calls so, if any, and its account; `of` as above."""

    def open_holds(self, account_id: str) -> None:
        """The open holds of an account, oldest first, and the account."""

    def entry(self, sequence: int) -> None:
        """An entry and the accounts it touched."""

    def entry_of_key(self, product: str, key: str) -> None:
        """The entry that bound a key, and the accounts it touched."""

    def record(self, kind: str, record_id: str) -> None:
        """A record."""

    def name(self, kind: str, name: str) -> None:
        """The record that carries a unique name, if any."""


class Twin(NamedTuple):
    """What an entry says in terms of another command.

    `fields` are the counted fields which that command would have, as JSON; `answer_type` is
    the type of the entry's answer.
    """

    fields: bytes
    answer_type: Any


class Command(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A request or a fact for the book; products derive theirs from it.

    `counted` lists the fields that make two commands the same under one key; what a
    server adds or a price agent carries is left out. `version` is that list's version. A
    fact happened already: its rule books it with `Draft.take` and never refuses it for funds.
    Users named by a command that is not `is_admitting` do not stay in memory for it.
    """

    name: ClassVar[str]
    product: ClassVar[str]
    counted: ClassVar[tuple[str, ...]]
    answer_type: ClassVar[Any]
    other_answer_types: ClassVar[tuple[Any, ...]] = ()
    """Other types that a twin's answer may have; the JSON of none can be read as another."""
    version: ClassVar[int] = 1
    is_admitting: ClassVar[bool] = True

    def reads(self, wanted: Wanted) -> None:
        """Say what `decide` will look at; what was forgotten costs another round, no more."""
        raise NotImplementedError

    def admit(self, facts: Facts) -> None:
        """Refuse what goes before the key: asked only when the key is bound already.

        For faces whose order of checks looks at something else before the duplicate;
        `decide` makes the same check for a free key.
        """

    def twin_in(self, earlier: Entry) -> Twin | None:  # noqa: ARG002 - a product may know better
        """Return what another command's entry, which bound this one's key, says in this one's terms.

        If it says the same, its answer is the answer to this one too. None where it can say
        nothing of the kind: then the key is reused.
        """
        return None

    def decide(self, draft: Draft) -> Any:
        """Apply the rule to the draft and return the answer, or raise `Refused`."""
        raise NotImplementedError


def counted_fields(command: Command) -> Any:
    """Return what becomes the counted fields as JSON, defaults left out."""
    if command.counted == command.__struct_fields__:
        return command
    fields, shape = _counted(type(command))
    return shape(*fields(command))


def fingerprint(command: Command) -> bytes:
    """Return the counted fields as JSON, defaults left out."""
    return _encoder.encode(counted_fields(command))


def differing_field(first: bytes, second: bytes) -> str:
    """Name the first counted field in which two fingerprints differ."""
    left: dict[str, Any] = msgspec.json.decode(first)
    right: dict[str, Any] = msgspec.json.decode(second)
    for name in _ordered_union(left, right):
        if left.get(name, msgspec.UNSET) != right.get(name, msgspec.UNSET):
            return name
    return ""


@functools.cache
def _counted(
    kind: type[Command],
) -> tuple[Callable[[Command], tuple[Any, ...]], Callable[..., msgspec.Struct]]:
    """Return what picks the counted fields of a command, and a struct of just these.

    A field without a default gets one that no value equals, so that it is never left out.
    """
    defaults = {field.name: field.default for field in msgspec.structs.fields(kind)}
    shape = msgspec.defstruct(
        f"{kind.__name__}Fingerprint",
        [
            (name, Any, msgspec.UNSET if defaults[name] is msgspec.NODEFAULT else defaults[name])
            for name in kind.counted
        ],
        omit_defaults=True,
        gc=False,
    )
    if len(kind.counted) == 1:
        pick = operator.attrgetter(kind.counted[0])
        return (lambda command: (pick(command),)), shape
    return operator.attrgetter(*kind.counted), shape


def _ordered_union(left: Iterable[str], right: Iterable[str]) -> list[str]:
    """Return the names of both, each once, in the order of their first appearance."""
    return list(dict.fromkeys([*left, *right]))

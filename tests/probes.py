"""Commands whose rule is written in the test: what a product may do, and what it must not."""

from collections.abc import Callable
from typing import Any

from pennyweight.ledger.commands import Command, Wanted
from pennyweight.ledger.draft import Draft

_rules: list[tuple[Callable[[Wanted], None], Callable[[Draft], Any]]] = []


class Probe(Command, frozen=True):
    """Rule number `rule` of this module; `text` counts, `note` does not."""

    name = "probe"
    product = "probe"
    counted = ("rule", "text")
    answer_type = Any

    rule: int
    text: str = ""
    note: str = ""

    def reads(self, wanted: Wanted) -> None:
        _rules[self.rule][0](wanted)

    def decide(self, draft: Draft) -> Any:
        return _rules[self.rule][1](draft)


def probe(
    decide: Callable[[Draft], Any], *holders: str, reads: Callable[[Wanted], None] | None = None
) -> Probe:
    """Return a command with this rule; `holders` are what it says it reads."""

    def read(wanted: Wanted) -> None:
        for holder in holders:
            wanted.holder(holder)

    _rules.append((reads or read, decide))
    return Probe(len(_rules) - 1)

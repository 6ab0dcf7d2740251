"""Updates that could not be taken: kept as dead letters, applied after all, or closed."""

from pennyweight.ledger import letters
from pennyweight.ledger.letters import LetterAnswer, SetAsideAnswer
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.shared import PRODUCT, REPLAY, RunAnswer


class SetAsideUpdate(letters.SetAside, frozen=True):
    """Keep a message that is no update which can be applied. Refuses nothing."""

    name = "set_aside_update"
    product = PRODUCT
    answer_type = SetAsideAnswer


class ReplayUpdate(letters.ReplayLetter, frozen=True):
    """Apply the update of a dead letter after all.

    One that is outdated by then changes nothing but the letter. For refusals see
    `ReplayLetter` and `Rebalance`.
    """

    name = REPLAY
    product = PRODUCT
    counted = ("letter", "update")
    answer_type = RunAnswer

    update: Rebalance

    @property
    def content(self) -> Rebalance:
        """The update."""
        return self.update


class CloseUpdateLetter(letters.CloseLetter, frozen=True):
    """Close a dead letter without applying it. For refusals see `letters.CloseLetter`."""

    name = "close_update_letter"
    product = PRODUCT
    answer_type = LetterAnswer

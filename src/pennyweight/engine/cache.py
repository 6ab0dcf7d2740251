"""The cache of committed facts, grouped by holder, with a hard bound on customers.

Room is made before anything is loaded, so the bound holds at every instant. Holders of
the batch in hand are never evicted. The book's own holders (world, house, ...) do not
count; they have a wide bound of their own, because callers may name what is not there.
The policy is least recently used.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from itertools import islice

import msgspec

from pennyweight.ledger.accounts import Account, is_customer
from pennyweight.ledger.records import Record

OWN_MAX = 10_000
"""Holders that are no customers; a batch that needs more at once may exceed it."""


class HolderFacts(msgspec.Struct, gc=False):
    """All accounts of one holder (their ids) and the records kept with it, as committed."""

    account_ids: set[str]
    records: dict[tuple[str, str], Record]


class HolderCache:
    """Committed facts by holder. `users_max` bounds user: and account: holders together."""

    def __init__(self, users_max: int) -> None:
        """An empty cache."""
        self.users_max = users_max
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.accounts: dict[str, Account] = {}
        """Every resident account by id; changed only by `put`, `update` and eviction."""
        self._customers: OrderedDict[str, HolderFacts] = OrderedDict()
        self._own: OrderedDict[str, HolderFacts] = OrderedDict()

    def __contains__(self, holder: object) -> bool:
        """Whether all that this holder has is known."""
        return holder in self._customers or holder in self._own

    def __len__(self) -> int:
        """How many customers are resident."""
        return len(self._customers)

    def get(self, holder: str) -> HolderFacts | None:
        """Return what a holder has, or None if that is not loaded."""
        return self._customers.get(holder) or self._own.get(holder)

    def use(self, holder: str) -> bool:
        """Note that a batch wants this holder, and return whether it is resident."""
        if holder in self._customers:
            self._customers.move_to_end(holder)
        elif holder in self._own:
            self._own.move_to_end(holder)
        else:
            self.misses += 1
            return False
        self.hits += 1
        return True

    def make_room(self, arriving: Collection[str], staying: set[str]) -> None:
        """Evict until these holders can be loaded, sparing the batch's own."""
        if not arriving:
            return
        new = [holder for holder in arriving if holder not in self]
        customers = sum(map(is_customer, new))
        self._shrink(self._customers, self.users_max - customers, staying)
        self._shrink(self._own, OWN_MAX - (len(new) - customers), staying)

    def put(self, holder: str, accounts: Iterable[Account], records: Iterable[Record] = ()) -> None:
        """Make a holder resident; room was made before."""
        facts = HolderFacts(set(), {(record.kind, record.id): record for record in records})
        if is_customer(holder):
            if len(self._customers) >= self.users_max and holder not in self._customers:
                raise RuntimeError(f"more than {self.users_max} users in memory")
            self._customers[holder] = facts
        else:
            self._own[holder] = facts
        for account in accounts:
            facts.account_ids.add(account.id)
            self.accounts[account.id] = account

    def update(self, accounts: dict[str, Account], records: Iterable[Record]) -> None:
        """Take over what a confirmed batch changed."""
        known = self.accounts
        for account_id, account in accounts.items():
            if account_id not in known:
                facts = self.get(account.holder)
                if facts is None:
                    raise RuntimeError(f"{account.holder} was changed but is not resident")
                facts.account_ids.add(account_id)
            known[account_id] = account
        for record in records:
            if record.holder and (facts := self.get(record.holder)) is not None:
                facts.records[record.kind, record.id] = record

    def clear(self) -> None:
        """Forget everything: the book has another owner, or a batch failed."""
        self._customers.clear()
        self._own.clear()
        self.accounts.clear()

    def _shrink(
        self, residents: OrderedDict[str, HolderFacts], most: int, staying: set[str]
    ) -> None:
        """Evict those used longest ago until at most `most` are left, if the batch allows it."""
        excess = len(residents) - most
        if excess > 0:
            for holder in list(islice((h for h in residents if h not in staying), excess)):
                for account_id in residents.pop(holder).account_ids:
                    del self.accounts[account_id]
                self.evictions += 1

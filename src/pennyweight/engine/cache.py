"""The cache of committed facts, grouped by holder, with a hard bound on customers.

Customers in memory are residents or guests. Residents stay from batch to batch. Guests
are the users whom a batch names and who are not resident: a part of the bound is kept
free for them, batches are cut to it, and only then are they read. When the batch is over
the replacement policy says, one by one, which guests become residents and who leaves for
them; the others go. So there never is one user more than `users_max`, at no instant.

What is in here is what is in the store, so leaving costs nothing. The book's own holders
(world, house, ...) do not count; they have a wide bound of their own, because callers may
name what is not there.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable

import msgspec

from pennyweight.engine.policy import Replacement
from pennyweight.ledger.accounts import Account, is_customer
from pennyweight.ledger.records import Record

OWN_MAX = 10_000
"""Holders that are no customers; a batch that needs more at once may exceed it."""

GUESTS_SHARE = 6
"""One place in so many is kept free for the users of a batch that are not resident."""

WINDOWS = (1_000, 10_000, 100_000)
"""Uses of customers over which hit ratios are told."""

_STRETCH = 100
"""Uses that are counted together, at least, for the windows."""


class HolderFacts(msgspec.Struct, gc=False):
    """All accounts of one holder (their ids) and the records kept with it, as committed."""

    account_ids: set[str]
    records: dict[tuple[str, str], Record]


class CacheFigures(msgspec.Struct, frozen=True):
    """What the cache is doing: users, not accounts; counts since the start.

    `resident` users are in memory, `guests` of them only for the batch in hand; `pinned`
    have open holds, `ghosts` are the ids of users that are not in memory. `most` is the
    greatest number that was ever in memory, `loading` are being read right now.
    `hit_ratios` are over the last so many uses, those of settlements left out.
    """

    limit: int
    resident: int
    guests: int
    pinned: int
    ghosts: int
    loading: int
    most: int
    hits: int
    misses: int
    evictions: int
    hit_ratios: dict[str, float | None]


class HolderCache:
    """Committed facts by holder. `limit` bounds user: and account: holders together."""

    def __init__(self, limit: int, *, reserved: int = 0) -> None:
        """An empty cache; so many places of the limit are reserved for readers of the journal."""
        self.limit = limit
        self.users_max = users_max = limit - reserved
        """Customers in memory, at most."""
        self.guests_max = max(1, users_max // GUESTS_SHARE)
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.loading = 0
        """Users that are being read for the batch in hand."""
        self.most = 0
        self.accounts: dict[str, Account] = {}
        """Every account in memory by id; changed only by `welcome`, `update` and eviction."""
        self._policy = Replacement(users_max - self.guests_max)
        self._customers: dict[str, HolderFacts] = {}
        self._guests: set[str] = set()
        self._own: OrderedDict[str, HolderFacts] = OrderedDict()
        self._stretches: deque[tuple[int, int]] = deque(maxlen=max(WINDOWS) // _STRETCH)
        self._told = (0, 0)

    def __contains__(self, holder: object) -> bool:
        """Whether all that this holder has is known."""
        return holder in self._customers or holder in self._own

    def __len__(self) -> int:
        """How many customers are in memory, guests included."""
        return len(self._customers)

    @property
    def room(self) -> int:
        """How many more customers may be read."""
        return self.users_max - len(self._customers)

    def get(self, holder: str) -> HolderFacts | None:
        """Return what a holder has, or None if that is not loaded."""
        return self._customers.get(holder) or self._own.get(holder)

    # ── a batch, from first to last ───────────────────────────────────────────────

    def use(self, holder: str) -> None:
        """Note that a command uses this holder."""
        if holder in self._customers:
            self.hits += 1
            self._policy.use(holder)
        elif holder in self._own:
            self._own.move_to_end(holder)
        elif is_customer(holder):
            self.misses += 1
            self._policy.use(holder)

    def peek(self, holder: str) -> None:
        """Note that a settlement wants this holder, which makes a user no hotter."""
        if holder in self._own:
            self._own.move_to_end(holder)
        elif is_customer(holder):
            self._policy.peek(holder)

    def use_again(self, customer: str) -> None:
        """Note that a batch wants a customer once more, who is in memory or just being read."""
        self.hits += 1
        if customer in self._customers:
            self._policy.use(customer)

    def make_room(self, places: int) -> list[str]:
        """Evict residents until so many customers can be read, and return who left.

        Guests' places are free at the beginning of every batch; this is for a single
        command that needs more of them. If need be, those go too whom the policy spares.
        """
        left: list[str] = []
        while self.room < places and self._customers:
            victim = self._policy.evict()
            if victim is None:  # whoever is left is spared
                self._policy.pin(next(iter(self._customers)), is_pinned=False)
                continue
            self._drop(victim)
            self.evictions += 1
            left.append(victim)
        return left

    def welcome(
        self, holder: str, accounts: Iterable[Account], records: Iterable[Record] = ()
    ) -> None:
        """Take in what was read of a holder; a customer is the guest of the batch in hand.

        Raises RuntimeError rather than have one customer too many.
        """
        facts = HolderFacts(set(), {(record.kind, record.id): record for record in records})
        if is_customer(holder):
            count = len(self._customers) + 1
            if count > self.users_max:
                raise RuntimeError(f"more than {self.users_max} users in memory")
            self._customers[holder] = facts
            self._guests.add(holder)
            self.most = max(self.most, count)
        else:
            self._own[holder] = facts
        for account in accounts:
            facts.account_ids.add(account.id)
            self.accounts[account.id] = account

    def update(self, accounts: dict[str, Account], records: Iterable[Record]) -> None:
        """Take over what a confirmed batch changed."""
        known = self.accounts
        for account_id, account in accounts.items():
            before = known.get(account_id)
            if before is None:
                facts = self.get(account.holder)
                if facts is None:
                    raise RuntimeError(f"{account.holder} was changed but is not resident")
                facts.account_ids.add(account_id)
            known[account_id] = account
            if (account.open_holds > 0) != (before is not None and before.open_holds > 0):
                self._pin(account.holder)
        for record in records:
            if record.holder and (facts := self.get(record.holder)) is not None:
                facts.records[record.kind, record.id] = record

    def dismiss(self, applicants: Iterable[str]) -> None:
        """End the batch: of its guests, the applicants ask the policy for admission, in order."""
        self.loading = 0
        guests = self._guests
        if guests:
            for guest in applicants:
                if guest in guests:
                    leaves = self._policy.admit(guest)
                    if leaves != guest:
                        guests.discard(guest)
                        self._pin(guest)
                        if leaves is not None:
                            self._drop(leaves)
                            self.evictions += 1
            for guest in guests:
                self._drop(guest)
            guests.clear()
        while len(self._own) > OWN_MAX:
            self._forget(self._own.popitem(last=False)[1])
        hits, misses = self._told
        uses = self.hits + self.misses - hits - misses
        if uses >= _STRETCH:
            self._stretches.append((self.hits - hits, uses))
            self._told = (self.hits, self.misses)

    def clear(self) -> None:
        """Forget everything: the book has another owner, or a batch failed."""
        self._customers.clear()
        self._guests.clear()
        self._own.clear()
        self._policy.clear()
        self.accounts.clear()
        self.loading = 0

    # ── figures ───────────────────────────────────────────────────────────────────

    def figures(self) -> CacheFigures:
        """Return what the cache is doing. Safe from any thread; figures may be a batch apart."""
        return CacheFigures(
            self.limit,
            len(self._customers),
            len(self._guests),
            self._policy.pinned,
            self._policy.ghosts,
            self.loading,
            self.most,
            self.hits,
            self.misses,
            self.evictions,
            {f"last_{window}": self._hit_ratio(window) for window in WINDOWS},
        )

    def _hit_ratio(self, window: int) -> float | None:
        """Return the share of the last uses that found their user in memory, None before any."""
        hits = uses = 0
        for stretch_hits, stretch_uses in reversed(list(self._stretches)):
            hits += stretch_hits
            uses += stretch_uses
            if uses >= window:
                break
        return round(hits / uses, 4) if uses else None

    # ── inside ────────────────────────────────────────────────────────────────────

    def _pin(self, holder: str) -> None:
        """Tell the policy whether a customer has open holds."""
        facts = self._customers.get(holder)
        if facts is not None:
            known = self.accounts
            is_pinned = any(known[account_id].open_holds for account_id in facts.account_ids)
            self._policy.pin(holder, is_pinned)

    def _drop(self, holder: str) -> None:
        """Forget a customer."""
        self._forget(self._customers.pop(holder))

    def _forget(self, facts: HolderFacts) -> None:
        for account_id in facts.account_ids:
            del self.accounts[account_id]

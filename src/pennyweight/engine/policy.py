"""Who stays in memory: the hottest users, and how fast heat fades is learned.

Every use of a user adds one to his heat, and all heat halves every so many uses (the
half-life). The residents are the hottest; a newcomer takes the place of the coldest
resident only if he is hotter by a whole use, or twice as hot. Users who left are
remembered by id and heat for a while, and are called ghosts.

A short half-life follows what is new, a long one keeps what lasts, and which is right
depends on the traffic. So three small directories of ids try three half-lives on the same
requests, and the residents fade by the one that would have found most.

Nothing here has users' data, reads a clock or draws randomness. See docs/cache.md.
"""

from collections import OrderedDict
from heapq import heapify, heappop, heappush, heapreplace
from zlib import crc32

HALF_LIVES = (64.0, 5.0, 0.5)
"""The half-lives that are tried, in uses for each place; the first one holds at the start."""

GHOSTS_SHARE = 3
"""Ghosts for each place."""

PINNED_SHARE = 2
"""One in so many places may be held by pinned users."""

SHADOW_MAX = 512
"""Places of a directory that tries a half-life; with more, it watches a sample of the users."""

_LOOKS_MAX = 64
"""How many residents one eviction looks at, at most."""

_WEIGHT_MAX = 2.0**500
"""Heat is scaled down when a use weighs more."""


class _User:
    """An id and its heat."""

    __slots__ = ("heat", "id", "is_aside", "is_watched")

    def __init__(self, user: str) -> None:
        self.id = user
        self.heat = 0.0
        self.is_watched = True
        self.is_aside = False


class _Directory:
    """Ids with their heat: at most `capacity` residents, and ghosts.

    Instead of letting all heat fade, each use weighs a little more than the one before,
    which orders users the same way. The heap's heats may be old; residents only get
    hotter, so whoever stands at its top with his true heat is the coldest.
    """

    __slots__ = (
        "_admitted",
        "_heap",
        "capacity",
        "ghosts",
        "ghosts_max",
        "hits",
        "residents",
        "score",
        "weight",
    )

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ghosts_max = GHOSTS_SHARE * capacity
        self.residents: dict[str, _User] = {}
        self.ghosts: OrderedDict[str, _User] = OrderedDict()
        self.weight = 1.0
        self.hits = 0
        self.score = 0.0
        self._heap: list[tuple[float, int, _User]] = []
        self._admitted = 0

    def use(self, user: str) -> _User:
        """Add a use to a user's heat; count a hit, or remember a ghost."""
        known = self.residents.get(user)
        if known is not None:
            self.hits += 1
        else:
            known = self.ghosts.pop(user, None) or _User(user)
            self.ghosts[user] = known
            if len(self.ghosts) > self.ghosts_max:
                self.ghosts.popitem(last=False)
        known.heat += self.weight
        return known

    def admit(self, user: str) -> str | None:
        """Make a ghost resident, if he is hot enough; return who is not resident now."""
        victim = None
        newcomer = self.ghosts.get(user) or _User(user)
        if len(self.residents) >= self.capacity:
            coldest = self.coldest()
            if coldest is None or newcomer.heat <= coldest.heat + min(coldest.heat, self.weight):
                return user
            victim = self.drop()
        self.ghosts.pop(user, None)
        self.residents[user] = newcomer
        self.enlist(newcomer)
        return victim

    def coldest(self) -> _User | None:
        """Bring the coldest of the residents to the heap's top, those set aside excepted."""
        heap = self._heap
        looks = 0
        while heap:
            heat, order, user = heap[0]
            if user.is_aside:
                heappop(heap)
            elif user.heat == heat or looks >= _LOOKS_MAX:
                return user
            else:
                heapreplace(heap, (user.heat, order, user))
                looks += 1
        return None

    def drop(self) -> str:
        """Make the one at the heap's top a ghost."""
        user = heappop(self._heap)[2]
        del self.residents[user.id]
        self.ghosts[user.id] = user
        if len(self.ghosts) > self.ghosts_max:
            self.ghosts.popitem(last=False)
        return user.id

    def enlist(self, user: _User) -> None:
        """Put a resident among those who may be dropped."""
        self._admitted += 1
        heappush(self._heap, (user.heat, self._admitted, user))

    def fade(self, factor: float) -> None:
        """Let time pass: later uses weigh more by this factor."""
        self.weight *= factor
        if self.weight > _WEIGHT_MAX:
            for users in (self.residents, self.ghosts):
                for user in users.values():
                    user.heat /= self.weight
            self._heap = [(heat / self.weight, n, user) for heat, n, user in self._heap]
            heapify(self._heap)
            self.weight = 1.0

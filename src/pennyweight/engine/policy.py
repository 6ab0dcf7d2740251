"""Who stays in memory: the hottest users, and how fast heat fades is learned.

Every use of a user adds one to his heat, and all heat halves every so many uses (the
half-life). The residents are the hottest; a newcomer takes the place of the coldest
resident only if he is hotter by a whole use, or twice as hot. Users who left are
remembered by id and heat for a while, and are called ghosts.

A short half-life follows what is new, a long one keeps what lasts, and which is right
depends on the traffic. So four small directories of ids try four half-lives on the same
requests, and the residents fade by the one that would have found most.

Nothing here has users' data, reads a clock or draws randomness. See docs/cache.md.
"""

from collections import OrderedDict
from heapq import heapify, heappop, heappush, heapreplace
from zlib import crc32

HALF_LIVES = (64.0, 6.0, 2.0, 0.125)
"""The half-lives that are tried, in uses for each place; the first one holds at the start."""

GHOSTS_SHARE = 2
"""Ghosts for each place."""

PINNED_SHARE = 2
"""One in so many places may be held by pinned users."""

_LOOKS_MAX = 64
"""How many residents one eviction looks at, at most."""

_SETTLED = 0.25
"""What a user found for a settlement counts, of one found for a caller who waits."""

_KEPT = 0.8
"""What a trial found counts for so much after another period."""

_PLAINLY = 0.005
"""A shorter half-life is chosen if it found more by this share of the uses it is judged by."""

_WEIGHT_MAX = 2.0**900
"""Heat is scaled down when a use weighs more."""


class _User:
    """An id and its heat. Residents are listed in the heap, except for some who are pinned."""

    __slots__ = ("heat", "id", "is_listed", "is_pinned", "is_watched")

    def __init__(self, user: str, *, is_watched: bool) -> None:
        self.id = user
        self.heat = 0.0
        self.is_watched = is_watched
        self.is_listed = False
        self.is_pinned = False


class _Directory:
    """Ids with their heat: at most `capacity` residents, and ghosts.

    Instead of letting all heat fade, each use weighs a little more than the one before,
    which orders users the same way. The heap's heats may be old; residents only get
    hotter, so whoever stands at its top with his true heat is the coldest.
    """

    def __init__(self, capacity: int, sample: int = 1) -> None:
        """One in `sample` users is watched."""
        self.capacity = capacity
        self.ghosts_max = GHOSTS_SHARE * capacity
        self.sample = sample
        self.residents: dict[str, _User] = {}
        self.ghosts: OrderedDict[str, _User] = OrderedDict()
        self.weight = 1.0
        self._heap: list[tuple[float, int, _User]] = []
        self._listed = 0

    def miss(self, user: str) -> _User:
        """Note a use of one who is not resident: he is a ghost, the newest."""
        known = self.ghosts.pop(user, None) or self._new(user)
        known.heat += self.weight
        self._haunt(known)
        return known

    def admit(self, user: str) -> str | None:
        """Make a ghost resident if he is hot enough; return who is not resident now."""
        if user in self.residents:
            return None
        newcomer = self.ghosts.get(user) or self._new(user)
        victim = None
        if len(self.residents) >= self.capacity:
            coldest = self._coldest()
            if coldest is None or newcomer.heat <= coldest.heat + min(coldest.heat, self.weight):
                return user
            victim = self.drop()
        self.ghosts.pop(user, None)
        self.residents[user] = newcomer
        self.enlist(newcomer)
        return victim

    def drop(self) -> str | None:
        """Make the coldest resident a ghost; None if there is none who may be dropped."""
        user = self._coldest()
        if user is None:
            return None
        heappop(self._heap)
        user.is_listed = False
        del self.residents[user.id]
        self._haunt(user)
        return user.id

    def enlist(self, user: _User) -> None:
        """Put a resident among those who may be dropped, if he is not there."""
        if not user.is_listed:
            user.is_listed = True
            self._listed += 1
            heappush(self._heap, (user.heat, self._listed, user))

    def fade(self, factor: float) -> None:
        """Let time pass: from now on a use weighs more by this factor."""
        self.weight *= factor
        if self.weight > _WEIGHT_MAX:
            scale, self.weight = 1.0 / self.weight, 1.0
            for users in (self.residents, self.ghosts):
                for user in users.values():
                    user.heat *= scale
            self._heap = [(heat * scale, order, user) for heat, order, user in self._heap]
            heapify(self._heap)

    def _new(self, user: str) -> _User:
        return _User(user, is_watched=_is_watched(user, self.sample))

    def _coldest(self) -> _User | None:
        """Bring the coldest resident to the heap's top; pinned ones on the way leave it."""
        heap = self._heap
        looks = 0
        while heap:
            heat, order, user = heap[0]
            if user.is_pinned:
                heappop(heap)
                user.is_listed = False
            elif user.heat == heat or looks == _LOOKS_MAX:
                return user
            else:
                heapreplace(heap, (user.heat, order, user))
                looks += 1
        return None

    def _haunt(self, user: _User) -> None:
        """Remember who is not resident; the oldest ghost makes room."""
        self.ghosts[user.id] = user
        if len(self.ghosts) > self.ghosts_max:
            self.ghosts.popitem(last=False)


def _is_watched(user: str, sample: int) -> bool:
    """Choose one in so many users, the same ones always."""
    return sample == 1 or crc32(user.encode()) % sample == 0


class _Trial(_Directory):
    """Ids without data: what one half-life would have found, lately."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.found = 0.0

    def play(self, heard: list[str], factor: float) -> None:
        """Take so many uses, and let their time pass."""
        residents, weight = self.residents, self.weight
        for user in heard:
            known = residents.get(user)
            if known is not None:
                known.heat += weight
                self.found += 1
            else:
                self.miss(user)
                self.admit(user)
        self.fade(factor)


class Replacement:
    """Decides who of those called stays, within `capacity`. Ids only.

    `use` notes a call; `admit`, once the user's data are at hand, whether he stays.
    """

    def __init__(self, capacity: int) -> None:
        """Raises ValueError if there is no place at all."""
        if capacity < 1:
            raise ValueError("a cache has at least one place")
        self.capacity = capacity
        self.ghosts_max = GHOSTS_SHARE * capacity
        self.pinned_max = capacity // PINNED_SHARE
        self._sample = max(1, min(4, capacity // 100), capacity // 512)
        self._places = -(-capacity // self._sample)
        self._tick = max(1, min(64, self._places // 16))
        self._period = max(16, 2 * self._places)
        self._factors = [2.0 ** (self._tick / (uses * self._places)) for uses in HALF_LIVES]
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._directory = _Directory(self.capacity, self._sample)
        self._residents = self._directory.residents
        self._trials = [_Trial(self._places) for _ in HALF_LIVES]
        self._chosen = 0
        self._pinned: OrderedDict[str, _User] = OrderedDict()
        self._heard: list[str] = []
        self._judged = 0

    def __len__(self) -> int:
        """How many users are resident."""
        return len(self._residents)

    def __contains__(self, user: object) -> bool:
        """Whether the user is resident."""
        return user in self._residents

    @property
    def ghosts(self) -> int:
        """How many users are remembered, by id, who are not resident."""
        return len(self._directory.ghosts)

    @property
    def pinned(self) -> int:
        """How many residents are spared."""
        return len(self._pinned)

    def use(self, user: str) -> bool:
        """Note a use, and return whether the user is resident. Admits nobody."""
        known = self._residents.get(user)
        if known is not None:
            known.heat += self._directory.weight
            if known.is_watched:
                self._hear(user)
            return True
        if self._directory.miss(user).is_watched:
            self._hear(user)
        return False

    def peek(self, user: str) -> bool:
        """Note that a settlement wanted the user, and return whether he is resident.

        He gets no hotter by it, but a half-life that would have kept him is the better one,
        a little: nobody waits for a settlement's answer.
        """
        if _is_watched(user, self._sample):
            for trial in self._trials:
                trial.found += _SETTLED * (user in trial.residents)
        return user in self._residents

    def admit(self, user: str) -> str | None:
        """Decide about a user who was used and is not resident, and whose data are at hand.

        Returns who is to be dropped: nobody (there was room), a resident, who is none any
        more, or the user himself, who is refused. A resident is not admitted twice.
        """
        return self._directory.admit(user)

    def evict(self) -> str | None:
        """Drop the coldest resident who is not spared; None if there is none."""
        return self._directory.drop()

    def pin(self, user: str, is_pinned: bool) -> None:  # noqa: FBT001 - a state, not a switch
        """Spare a resident who has open holds, or no longer; of others nothing is noted.

        Beyond `pinned_max` the oldest pin stops counting.
        """
        if not is_pinned:
            known = self._pinned.pop(user, None)
            if known is not None:
                self._unpin(known)
        elif user in self._pinned:
            self._pinned.move_to_end(user)
        elif self.pinned_max and (known := self._residents.get(user)) is not None:
            known.is_pinned = True
            self._pinned[user] = known
            if len(self._pinned) > self.pinned_max:
                _, oldest = self._pinned.popitem(last=False)
                self._unpin(oldest)

    def _unpin(self, user: _User) -> None:
        user.is_pinned = False
        self._directory.enlist(user)

    def _hear(self, user: str) -> None:
        """Keep a watched use; when there are some, play them to the trials, and time passes."""
        heard = self._heard
        heard.append(user)
        if len(heard) < self._tick:
            return
        for trial, factor in zip(self._trials, self._factors, strict=True):
            trial.play(heard, factor)
        self._directory.fade(self._factors[self._chosen])
        heard.clear()
        self._judged += self._tick
        if self._judged >= self._period:
            self._choose()

    def _choose(self) -> None:
        """Fade by the half-life that found most; a shorter one must have found plainly more."""
        plainly = _PLAINLY * self._judged / (1.0 - _KEPT)
        least, chosen = self._trials[self._chosen].found, self._chosen
        for place, trial in enumerate(self._trials):
            if trial.found > least + (plainly if place > self._chosen else -1.0):
                least, chosen = trial.found, place
        self._chosen = chosen
        for trial in self._trials:
            trial.found *= _KEPT
        self._judged = 0

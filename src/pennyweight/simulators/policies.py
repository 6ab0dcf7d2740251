"""Replacement policies of the literature, written to be read: what ours is compared with.

Each remembers ids only. `use` notes a request and returns whether the user was resident;
`admit` makes a user resident after a miss, at the cost of at most one other. None of
them is used by the engine; its own is `engine/policy.py`.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Protocol


class Policy(Protocol):
    """What a policy must be able to do to be compared."""

    def use(self, user: str) -> bool:
        """Note a request; return whether the user is resident."""
        ...

    def admit(self, user: str) -> str | None:
        """Make room for a user who missed, or refuse; return who is not resident now."""
        ...

    def __contains__(self, user: object) -> bool:
        """Whether the user is resident."""
        ...

    def __len__(self) -> int:
        """How many users are resident."""
        ...


class Fifo:
    """First in, first out."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._queue: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, user: object) -> bool:
        return user in self._queue

    def use(self, user: str) -> bool:
        return user in self._queue

    def admit(self, user: str) -> str | None:
        victim = None
        if len(self._queue) >= self.capacity:
            victim, _ = self._queue.popitem(last=False)
        self._queue[user] = None
        return victim


class Lru(Fifo):
    """The least recently used goes."""

    def use(self, user: str) -> bool:
        if user not in self._queue:
            return False
        self._queue.move_to_end(user)
        return True


class Lfu:
    """The least frequently used goes; among equals, who was admitted first.

    What was counted of a user is forgotten with him, as usual.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._counts: dict[str, int] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._admitted = 0

    def __len__(self) -> int:
        return len(self._counts)

    def __contains__(self, user: object) -> bool:
        return user in self._counts

    def use(self, user: str) -> bool:
        if user not in self._counts:
            return False
        self._counts[user] += 1
        return True

    def admit(self, user: str) -> str | None:
        victim = None
        if len(self._counts) >= self.capacity:
            victim = self._drop()
        self._admitted += 1
        self._counts[user] = 1
        heappush(self._heap, (1, self._admitted, user))
        return victim

    def _drop(self) -> str:
        """Drop the least used. What the heap says is old: counts that grew go back in."""
        while True:
            count, order, user = heappop(self._heap)
            if self._counts[user] == count:
                del self._counts[user]
                return user
            heappush(self._heap, (self._counts[user], order, user))


class TwoQ:
    """2Q (Johnson and Shasha 1994): a short queue for newcomers, LRU for those who return.

    A quarter of the places is the queue's; half as many ids as there are places are
    remembered of those who left the queue, and whoever returns from there goes to the LRU.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._new: OrderedDict[str, None] = OrderedDict()
        self._left: OrderedDict[str, None] = OrderedDict()
        self._main: OrderedDict[str, None] = OrderedDict()
        self._new_max = max(1, capacity // 4)
        self._left_max = max(1, capacity // 2)

    def __len__(self) -> int:
        return len(self._new) + len(self._main)

    def __contains__(self, user: object) -> bool:
        return user in self._new or user in self._main

    def use(self, user: str) -> bool:
        if user in self._main:
            self._main.move_to_end(user)
            return True
        return user in self._new

    def admit(self, user: str) -> str | None:
        victim = self._drop() if len(self) >= self.capacity else None
        if user in self._left:
            del self._left[user]
            self._main[user] = None
        else:
            self._new[user] = None
        return victim

    def _drop(self) -> str:
        if len(self._new) >= self._new_max or not self._main:
            victim, _ = self._new.popitem(last=False)
            self._left[victim] = None
            if len(self._left) > self._left_max:
                self._left.popitem(last=False)
        else:
            victim, _ = self._main.popitem(last=False)
        return victim


class Arc:
    """ARC (Megiddo and Modha 2003): LRU of those seen once and of those seen again.

    How the places are shared between them (`_target` is the first's part) follows the
    ids that each has dropped: one asked for again there was dropped too early.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._target = 0
        self._once: OrderedDict[str, None] = OrderedDict()
        self._again: OrderedDict[str, None] = OrderedDict()
        self._once_left: OrderedDict[str, None] = OrderedDict()
        self._again_left: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def __contains__(self, user: object) -> bool:
        return user in self._once or user in self._again

    def use(self, user: str) -> bool:
        if user in self._once:
            del self._once[user]
            self._again[user] = None
            return True
        if user in self._again:
            self._again.move_to_end(user)
            return True
        return False

    def admit(self, user: str) -> str | None:
        once_left, again_left = self._once_left, self._again_left
        if user in once_left:
            step = max(1, len(again_left) // len(once_left))
            self._target = min(self.capacity, self._target + step)
            victim = self._replace()
            del once_left[user]
            self._again[user] = None
            return victim
        if user in again_left:
            step = max(1, len(once_left) // len(again_left))
            self._target = max(0, self._target - step)
            victim = self._replace(is_again=True)
            del again_left[user]
            self._again[user] = None
            return victim
        victim = None
        if len(self._once) + len(once_left) >= self.capacity:
            if len(self._once) < self.capacity:
                once_left.popitem(last=False)
                victim = self._replace()
            else:
                victim, _ = self._once.popitem(last=False)
        elif len(self) + len(once_left) + len(again_left) >= self.capacity:
            if len(self) + len(once_left) + len(again_left) >= 2 * self.capacity:
                again_left.popitem(last=False)
            victim = self._replace()
        self._once[user] = None
        return victim

    def _replace(self, *, is_again: bool = False) -> str | None:
        """Drop the oldest of the list that has more than its part."""
        if len(self) < self.capacity:
            return None
        once = len(self._once)
        if once and (once > self._target or (is_again and once == self._target)):
            victim, _ = self._once.popitem(last=False)
            self._once_left[victim] = None
        elif self._again:
            victim, _ = self._again.popitem(last=False)
            self._again_left[victim] = None
        else:
            victim, _ = self._once.popitem(last=False)
            self._once_left[victim] = None
        return victim


class _Place:
    """One resident in SIEVE's line."""

    __slots__ = ("is_visited", "newer", "older", "user")

    def __init__(self, user: str) -> None:
        self.user = user
        self.is_visited = False
        self.newer: _Place | None = None
        self.older: _Place | None = None


class Sieve:
    """SIEVE (Zhang and others 2024): FIFO, and a hand that passes over those visited.

    Nobody is moved; whoever the hand finds unvisited since its last round goes.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._places: dict[str, _Place] = {}
        self._newest: _Place | None = None
        self._oldest: _Place | None = None
        self._hand: _Place | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, user: object) -> bool:
        return user in self._places

    def use(self, user: str) -> bool:
        place = self._places.get(user)
        if place is None:
            return False
        place.is_visited = True
        return True

    def admit(self, user: str) -> str | None:
        victim = self._drop() if len(self._places) >= self.capacity else None
        place = self._places[user] = _Place(user)
        place.older = self._newest
        if self._newest is not None:
            self._newest.newer = place
        self._newest = place
        if self._oldest is None:
            self._oldest = place
        return victim

    def _drop(self) -> str | None:
        place = self._hand or self._oldest
        while place is not None and place.is_visited:
            place.is_visited = False
            place = place.newer or self._oldest
        if place is None:
            return None
        self._hand = place.newer
        if place.newer is None:
            self._newest = place.older
        else:
            place.newer.older = place.older
        if place.older is None:
            self._oldest = place.newer
        else:
            place.older.newer = place.newer
        del self._places[place.user]
        return place.user


class S3Fifo:
    """S3-FIFO (Yang and others 2023): three FIFO queues.

    Newcomers pass a small queue (a tenth of the places); who is used again there goes on
    to the main one, others leave and only their ids are kept, and who returns while they
    are goes straight to the main queue. In the main queue a used one goes round again.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._small_max = max(1, capacity // 10)
        self._small: deque[str] = deque()
        self._main: deque[str] = deque()
        self._left: OrderedDict[str, None] = OrderedDict()
        self._uses: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def __contains__(self, user: object) -> bool:
        return user in self._uses

    def use(self, user: str) -> bool:
        uses = self._uses.get(user)
        if uses is None:
            return False
        if uses < 3:
            self._uses[user] = uses + 1
        return True

    def admit(self, user: str) -> str | None:
        victim = self._drop() if len(self._uses) >= self.capacity else None
        if user in self._left:
            del self._left[user]
            self._main.append(user)
        else:
            self._small.append(user)
        self._uses[user] = 0
        return victim

    def _drop(self) -> str:
        while True:
            if self._small and (len(self._small) >= self._small_max or not self._main):
                user = self._small.popleft()
                if self._uses[user] > 1:
                    self._uses[user] = 0
                    self._main.append(user)
                    continue
                self._left[user] = None
                if len(self._left) > self.capacity - self._small_max:
                    self._left.popitem(last=False)
            else:
                user = self._main.popleft()
                if self._uses[user]:
                    self._uses[user] -= 1
                    self._main.append(user)
                    continue
            del self._uses[user]
            return user


class Belady:
    """Bélády's optimum: knows the future, keeps those who are asked for next.

    It may refuse, and it may admit at any request, settlements too; no policy that does
    not know the future does better.
    """

    def __init__(self, capacity: int, future: Sequence[str]) -> None:
        """`future` is every request, settlements included, in order."""
        self.capacity = capacity
        self._next = _next_uses(future)
        self._now = -1
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._due)

    def __contains__(self, user: object) -> bool:
        return user in self._due

    def use(self, user: str) -> bool:
        self._now += 1
        if user not in self._due:
            return False
        self._keep(user)
        return True

    def admit(self, user: str) -> str | None:
        self._keep(user)
        if len(self._due) <= self.capacity:
            return None
        while True:
            minus_due, victim = heappop(self._heap)
            if self._due.get(victim) == -minus_due:
                del self._due[victim]
                return victim

    def _keep(self, user: str) -> None:
        due = self._due[user] = self._next[self._now]
        heappush(self._heap, (-due, user))


def _next_uses(future: Sequence[str]) -> list[int]:
    """For each request, the place of the same user's next one; the far future if none."""
    places = [0] * len(future)
    seen: dict[str, int] = {}
    for place in range(len(future) - 1, -1, -1):
        user = future[place]
        places[place] = seen.get(user, len(future) + place)
        seen[user] = place
    return places

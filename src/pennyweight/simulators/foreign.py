"""Policies from packages that only developers install: theine's W-TinyLFU, cachetools' LRU and LFU.

Where they cannot be imported, `MISSING` says so, and the comparison goes without them.
"""

from collections.abc import Callable
from zlib import crc32

from pennyweight.simulators.policies import Policy

MISSING: list[str] = []
"""Packages that are not installed."""

CONTENDERS: dict[str, Callable[[int], Policy]] = {}
"""A maker of each policy, by its name; it takes the capacity."""

try:
    import cachetools
except ImportError:  # pragma: no cover - the tests' environment has it
    MISSING.append("cachetools")
else:

    class _Cachetools:
        """A mapping of cachetools; looking an id up is its use."""

        def __init__(self, cache: "cachetools.Cache[str, None]") -> None:
            self._cache = cache

        def __len__(self) -> int:
            return len(self._cache)

        def __contains__(self, user: object) -> bool:
            return user in self._cache

        def use(self, user: str) -> bool:
            return self._cache.get(user, False) is None

        def admit(self, user: str) -> str | None:
            victim = None
            if len(self._cache) >= self._cache.maxsize:
                victim, _ = self._cache.popitem()
            self._cache[user] = None
            return victim

    CONTENDERS["LRU of cachetools"] = lambda capacity: _Cachetools(cachetools.LRUCache(capacity))
    CONTENDERS["LFU of cachetools"] = lambda capacity: _Cachetools(cachetools.LFUCache(capacity))

try:
    from theine_core import TlfuCore
except ImportError:  # pragma: no cover - as above
    MISSING.append("theine")
else:

    class _Theine:
        """The core of theine, which knows users by numbers; without the threads around it."""

        def __init__(self, capacity: int) -> None:
            self._core = TlfuCore(capacity)
            self._names: dict[int, str] = {}
            self._residents: set[str] = set()

        def __len__(self) -> int:
            return len(self._residents)

        def __contains__(self, user: object) -> bool:
            return user in self._residents

        def use(self, user: str) -> bool:
            self._core.access([self._number(user)])
            return user in self._residents

        def admit(self, user: str) -> str | None:
            self._residents.add(user)
            left = [self._names[number] for number in self._core.set([(self._number(user), 0)])]
            self._residents.difference_update(left)
            return left[0] if left else None

        def _number(self, user: str) -> int:
            """Return a number that looks random and is always the same."""
            text = user.encode()
            number = crc32(text) << 32 | crc32(text[::-1])
            self._names[number] = user
            return number

    CONTENDERS["W-TinyLFU of theine"] = _Theine

"""Counting the users whose data a `begin` reads, so that it stops before the one too many."""

from collections.abc import Container, Iterable

from pennyweight.ledger.accounts import is_customer


class RoomOver(Exception):
    """What comes next has no room; the answer is `Found.is_cut`."""


class Room:
    """What is left of `Reads.room`: customers who are not resident take of it, and bodies."""

    __slots__ = ("_left", "_resident", "_seen")

    def __init__(self, room: int, resident: Container[str]) -> None:
        """Nothing is taken yet."""
        self._left = room
        self._resident = resident
        self._seen: set[str] = set()

    @property
    def left(self) -> int:
        """How many more have room."""
        return self._left

    @property
    def is_full(self) -> bool:
        """Whether one more has no room."""
        return self._left <= 0

    def check(self) -> None:
        """Raise RoomOver where one more has no room."""
        if self._left <= 0:
            raise RoomOver

    def take_body(self) -> None:
        """Take room for the body of an entry. Raises RoomOver where there is none."""
        self.check()
        self._left -= 1

    def take_holders(self, holders: Iterable[str]) -> None:
        """Take room for those who need it and have none yet. Raises RoomOver at one too many."""
        seen, resident = self._seen, self._resident
        for holder in holders:
            if holder not in seen and holder not in resident and is_customer(holder):
                self.check()
                seen.add(holder)
                self._left -= 1

"""Which keys are certainly free: a Bloom filter of all bound ones, for the owner, in memory.

Most keys are new, and asking for each batch whether they are takes a trip and a fifth of the
server's time. The filter belongs to one epoch of the book: since its owner claimed it,
nobody else can have bound a key. It counts only once all older keys are in it, which a thread
reads page by page. What is in it by mistake (an append that failed) is asked for, no more.
"""

import threading
import time
from array import array
from collections.abc import Callable, Iterable

import structlog

from pennyweight.engine.port import StoreError, StoreUnavailable

WORDS_MIN = 2**17
WORDS_MAX = 2**23
"""64 MiB. A filter of up to two keys a word takes one key of 2 000 for bound that is free."""

_PAGE = 1_000
_REST = 4
"""While it loads, the thread rests this many times as long as it works."""

_PAUSE_SECONDS = 1.0

_PAIRS = [1 << (number & 63) | 1 << (number >> 6) for number in range(4096)]
"""Two bits of a word, for each twelve of a hash."""

Pair = tuple[str, str]
Page = Callable[[Pair, int], list[Pair]]
"""Returns so many bound pairs of product and key, in order, after a pair."""

log = structlog.get_logger(__name__)


class KeyFilter:
    """The bound keys of one epoch. Only the writer's thread calls `strangers` and `add`."""

    def __init__(self, epoch: int, page: Page, *, words: int = WORDS_MIN) -> None:
        """Begin to read the bound keys."""
        self.epoch = epoch
        self.is_loaded = False
        self.is_full = False
        """Whether it has more keys than it should; a larger one is in order."""
        self._page = page
        self._size = words
        self._words = array("Q", bytes(8 * words))
        self._count = 0
        self._pending: list[int] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._load, name="pennyweight-keys", daemon=True)
        self._thread.start()

    @property
    def words_wanted(self) -> int:
        """How many words the next, larger one should have."""
        return min(WORDS_MAX, max(2 * self._size, 1 << self._count.bit_length()))

    def stop(self) -> None:
        """End the thread, if it still reads."""
        self._stopping.set()
        self._thread.join()

    def strangers(self, names: Iterable[Pair]) -> set[Pair]:
        """Return those of the names that may be bound; the others are free."""
        words, mask, pairs = self._words, self._size - 1, _PAIRS
        found = set()
        for name in names:
            hashed = hash(name)
            bits = pairs[hashed & 4095] | pairs[hashed >> 12 & 4095]
            if words[hashed >> 24 & mask] & bits == bits:
                found.add(name)
        return found

    def add(self, names: Iterable[Pair]) -> None:
        """Take keys that are about to be bound."""
        hashes = list(map(hash, names))
        if not self.is_loaded:
            with self._lock:
                if not self.is_loaded:
                    self._pending += hashes
                    return
        self._fill(hashes)
        self.is_full = self._count > 2 * self._size and self._size < WORDS_MAX

    def _fill(self, hashes: list[int]) -> None:
        words, mask, pairs = self._words, self._size - 1, _PAIRS
        for hashed in hashes:
            words[hashed >> 24 & mask] |= pairs[hashed & 4095] | pairs[hashed >> 12 & 4095]
        self._count += len(hashes)

    # ── the thread ────────────────────────────────────────────────────────────────

    def _load(self) -> None:
        """Read all bound keys; what goes wrong is tried again, as nothing depends on it."""
        after: Pair = ("", "")
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                names = self._page(after, _PAGE)
            except StoreUnavailable as error:
                if not self._stopping.wait(_PAUSE_SECONDS):
                    log.info("bound keys could not be read, trying again", error=str(error))
                continue
            except StoreError:  # the book is closed
                return
            self._fill(list(map(hash, names)))
            if len(names) < _PAGE:
                with self._lock:
                    self._fill(self._pending)
                    self._pending = []
                    self.is_loaded = True
                return
            after = names[-1]
            self._stopping.wait(_REST * (time.monotonic() - started))

"""Brings documents of everything in the journal to a search engine, at least once and in order.

Each document has an id and a version that come from its entry, so one that is sent again, or
after a newer one, does nothing there. Entries are read by a cursor in the book (see
`following`); while one bulk is on its way the next is made, and nothing more is read before it
has arrived. A search engine that is away, or busy, is a status and a lag, and holds nobody up.
A document that it will never take is counted, logged by its id, and passed over.

What is there decides as well where to begin: an engine that was emptied, or restored to an
older state, gets again what it lacks. One that has entries which the book does not have is sent
nothing: the book was restored from a backup, and what is there must be made anew.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Protocol

import msgspec
import structlog

from pennyweight.agents.following import IDLE_SECONDS, BatchHeaders, BookBehind, Following
from pennyweight.engine.port import BatchHeader, Committed, StoreError
from pennyweight.ledger.entries import CorruptEntry
from pennyweight.links.errors import LinkError
from pennyweight.links.search import (
    HEAD_LENGTH,
    Document,
    NameTaken,
    Rejected,
    Taken,
    TooLarge,
    Unfit,
)
from pennyweight.runtime.driver import ThreadedBook

PAGE = 250
"""Entries that are read at a time. What is in them is users' data: as many again are in a bulk
that is on its way, and both have places of their own in the bound on users."""

DOCUMENTS_MAX = 1_000
BYTES_MAX = 5_000_000
"""Documents of one bulk, and about their bytes; a single one may be longer."""

BYTES_MIN = 100_000
"""A bulk that is refused as too large is halved; later ones are not, below this."""

RETRY_SECONDS = 0.05
RETRY_SECONDS_MAX = 2.0

ENTRIES = "entries"
"""The index of which the newest document says how far the search engine is."""


class Whose(msgspec.Struct, frozen=True):
    """Which entry of which book a document of `ENTRIES` is of."""

    sequence: Annotated[int, msgspec.Meta(ge=1, le=2**62)]
    book: str
    incarnation: str
    committed_at: Annotated[datetime, msgspec.Meta(tz=True)]


WHOSE = Whose.__struct_fields__
"""The fields of a document that say so."""

LACKS = "lacks_until"
"""What is noted on an index that was made anew: it lacks entries up to this one."""

LOOK_SECONDS = 30.0
"""How often the indices are looked at; so it is also noticed that an engine is away while nothing is sent."""

LOGGED_MAX = 10
"""Rejected documents of one bulk that are logged one by one."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

log = structlog.get_logger(__name__)

Make = Callable[[BatchHeader, int, bytes], Sequence[Document]]
"""Makes documents of an entry, given the header of its batch and its sequence; none of a cursor's move."""


class Link(Protocol):
    """A connection to a search engine, for one thread at a time; see `links.search`."""

    name: str

    def close(self) -> None: ...
    def bulk(self, documents: Sequence[Document], into: Mapping[str, str] | None = None) -> Taken:
        """Send documents. Raises Unfit, LinkError."""

    def put_template(self, name: str, template: Mapping[str, Any]) -> None: ...
    def place(self, name: str) -> str | None:
        """Return the index behind an alias. Raises NameTaken, LinkError."""

    def create(
        self, name: str, number: int = 1, *, is_alias: bool = True, meta: Any = None
    ) -> str | None: ...
    def meta(self, place: str) -> dict[str, Any]: ...
    def put_meta(self, place: str, meta: Mapping[str, Any]) -> None: ...
    def newest(self, name: str, fields: Sequence[str]) -> dict[str, Any] | None:
        """Return fields of the document with the highest sequence. Raises LinkError."""


class Counts(msgspec.Struct):
    """What was done: documents that are there by it, that were there, that will never be taken.

    `failed` are entries that no documents could be made of. `retries` count bulks of which
    some had to be sent again.
    """

    sent: int = 0
    present: int = 0
    rejected: int = 0
    failed: int = 0
    bulks: int = 0
    retries: int = 0


class Courier:
    """Brings documents to a search engine until it has, or has refused, every one of them."""

    def __init__(
        self,
        link: Link,
        counts: Counts,
        *,
        pause: Callable[[float], bool],
        tell: Callable[[str], object] = lambda _: None,
        into: Mapping[str, str] | None = None,
    ) -> None:
        """`pause` waits so many seconds, and says whether to give up; `tell` hears why it waits.

        `into` names the indices that documents go into, by the names they have.
        """
        self.bytes_max = BYTES_MAX
        self._link = link
        self._counts = counts
        self._pause = pause
        self._tell = tell
        self._into = into

    def bring(self, documents: Sequence[Document]) -> None:
        """Send, and send again what is not taken for the moment. Raises LinkError."""
        seconds = RETRY_SECONDS
        while documents:
            taken = self._send(documents)
            documents = taken.again
            if documents:
                self._counts.retries += 1
                self._tell(taken.cause)
                if self._pause(seconds):
                    raise LinkError(taken.cause)
                seconds = min(2 * seconds, RETRY_SECONDS_MAX)

    def _send(self, documents: Sequence[Document]) -> Taken:
        """Send documents once, in halves where all of them are refused. Raises LinkError."""
        try:
            taken = self._link.bulk(documents, self._into)
        except Unfit as error:
            if len(documents) > 1:
                if isinstance(error, TooLarge):
                    size = sum(map(size_of, documents))
                    self.bytes_max = max(BYTES_MIN, min(self.bytes_max, size // 2))
                return self._send_halves(documents)
            taken = Taken(0, rejected=[Rejected(documents[0], str(error))])
        counts = self._counts
        counts.bulks += 1
        counts.sent += taken.done
        counts.present += taken.present
        if taken.rejected:
            self._refused(taken.rejected)
        return taken

    def _send_halves(self, documents: Sequence[Document]) -> Taken:
        half = len(documents) // 2
        parts = [self._send(documents[:half]), self._send(documents[half:])]
        return Taken(
            0,
            again=[document for part in parts for document in part.again],
            cause=parts[0].cause or parts[1].cause,
        )

    def _refused(self, rejected: Sequence[Rejected]) -> None:
        """Pass documents over that will never be taken, if that is not the index's fault.

        Raises LinkError.
        """
        names = {one.document.index for one in rejected if one.is_of_place}
        if self._into is None:
            for name in names:
                if self._link.place(name) is None:
                    raise LinkError(f"{self._link.name} has lost the index of {name}")
        self._counts.rejected += len(rejected)
        for one in rejected[:LOGGED_MAX]:
            log.error(
                "a document is refused, and passed over",
                index=one.document.index,
                id=one.document.id,
                sequence=one.document.version,
                reason=one.reason,
            )


def size_of(document: Document) -> int:
    """Return about how many bytes a document takes in a bulk."""
    return len(document.source) + len(document.id) + HEAD_LENGTH


def bulks_of(
    documents: Iterable[Document], documents_max: int, courier: Courier
) -> Iterator[list[Document]]:
    """Yield documents in bulks of so many, and of as many bytes as the courier thinks right."""
    bulk: list[Document] = []
    size = 0
    for document in documents:
        more = size_of(document)
        if len(bulk) >= documents_max or (bulk and size + more > courier.bytes_max):
            yield bulk
            bulk, size = [], 0
        bulk.append(document)
        size += more
    if bulk:
        yield bulk


def documents_of(
    make: Make, headers: BatchHeaders, counts: Counts, entries: Iterable[tuple[int, bytes]]
) -> Iterator[Document]:
    """Yield the documents of entries. One that none can be made of must not stop all others.

    Raises CorruptEntry, StoreError.
    """
    for sequence, body in entries:
        header = headers.of(sequence)
        try:
            made = make(header, sequence, body)
        except (CorruptEntry, StoreError):
            raise
        except Exception:
            counts.failed += 1
            log.exception("no documents can be made of an entry; it is passed over", entry=sequence)
        else:
            yield from made


def whose_of(told: Mapping[str, Any]) -> Whose | None:
    """Return whose a document is, None if it is no book's."""
    try:
        return msgspec.convert(told, Whose)
    except msgspec.ValidationError:
        return None


def is_entry_of(store: Committed, whose: Whose) -> bool:
    """Whether a book has the entry that a document is of. Raises StoreError."""
    header = store.batch_at(sequence=whose.sequence)
    return (
        header is not None
        and (header.book, header.incarnation) == (whose.book, whose.incarnation)
        and _EPOCH + timedelta(microseconds=header.committed_at) == whose.committed_at
    )


class _Flight:
    """A bulk on its way, in a thread of its own, so that the next one is made meanwhile."""

    def __init__(self, bring: Callable[[Sequence[Document]], object]) -> None:
        self.is_on = False
        self._bring = bring
        self._orders: queue.SimpleQueue[Sequence[Document] | None] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="pennyweight-bulk", daemon=True)
        self._thread.start()

    def take_off(self, documents: Sequence[Document]) -> None:
        """Send a bulk; the one before must have landed."""
        self.is_on = True
        self._orders.put(documents)

    def land(self) -> None:
        """Wait until the bulk has arrived, if there is one. Raises what went wrong with it."""
        if self.is_on:
            error = self._ends.get()
            self.is_on = False
            if error is not None:
                raise error

    def close(self) -> None:
        """End the thread, once the bulk that is on its way has arrived or failed."""
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (documents := self._orders.get()) is not None:
            try:
                self._bring(documents)
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                self._ends.put(error)
            else:
                self._ends.put(None)
            del documents  # users' data; it is not to stay here while nothing is sent


class _Held(Exception):
    """Another may own the book by now: what was read is not sent."""


class Exporter(Following):
    """A thread that follows the whole journal. Counters are since its beginning."""

    def __init__(
        self,
        book: ThreadedBook,
        connect: Callable[[], Link],
        make: Make,
        templates: Mapping[str, Mapping[str, Any]],
        *,
        cursor: str,
        entries_max: int = PAGE,
        documents_max: int = DOCUMENTS_MAX,
    ) -> None:
        """`templates` say how each index is made, by name. In memory are twice `entries_max` entries."""
        super().__init__("exporter", book, cursor=cursor)
        self.counts = Counts()
        self._connect = connect
        self._make = make
        self._templates = templates
        self._entries_max = entries_max
        self._documents_max = documents_max
        self._read_until = self._position
        self._landing: int | None = None
        """Up to which entry everything has arrived once the bulk that is on its way has."""
        self._lacking: dict[str, int] = {}
        """Indices that were made anew, and up to which entry they lack what came before."""
        self._doubted: set[str] = set()
        """Indices that lacked something at the last look, and are nobody's to complete yet."""
        self._looked_at = 0.0

    @property
    def status(self) -> str:
        """Why documents wait, for `/readyz`; "" while all is well."""
        return self._down

    # ── the thread ────────────────────────────────────────────────────────────────

    def _session(self) -> None:
        """Follow the journal until told to stop. Raises LinkError, StoreError, BookBehind."""
        link = self._connect()
        try:
            self._begin_at(self._prepared(link))
            courier = Courier(link, self.counts, pause=self._pause, tell=self._wait_for)
            flight = _Flight(courier.bring)
            try:
                self._follow(link, courier, flight)
            finally:
                flight.close()
        finally:
            link.close()

    def _follow(self, link: Link, courier: Courier, flight: _Flight) -> None:
        headers = BatchHeaders(self._book.store)
        while not self._is_over.is_set():
            self._turn(link, headers, courier, flight)
        self._land(flight)
        self._move_at_last()

    def _turn(self, link: Link, headers: BatchHeaders, courier: Courier, flight: _Flight) -> None:
        """Send a page, or wait a moment for one."""
        if self._is_elsewhere:
            self._is_elsewhere = False
            self._land(flight)
            if not self._lacking:  # whoever moved the cursor has sent what is before it
                self._begin_at(max(self._position, self._cursor))
        if self._book.engine.head.sequence > self._read_until and not self._is_to_wait:
            try:
                self._send_page(headers, courier, flight)
            except _Held:
                self._land(flight)
                self._read_until = self._position
        elif flight.is_on:
            self._land(flight)
        else:
            self._down = ""
            self._is_over.wait(IDLE_SECONDS)
        self._move()
        if self._lacking:
            self._complete(link, flight)
        self._look(link, flight)

    def _begin_at(self, sequence: int) -> None:
        super()._begin_at(sequence)
        self._read_until = sequence
        self._landing = None

    def _pause(self, seconds: float) -> bool:
        """Wait, longer while another may own the book; whether it is over."""
        self._is_over.wait(seconds)
        while not self._is_over.is_set() and self._is_to_wait:
            self._is_over.wait(IDLE_SECONDS)
        return self._is_over.is_set()

    def _wait_for(self, cause: str) -> None:
        self._down = cause

    # ── a page ────────────────────────────────────────────────────────────────────

    def _send_page(self, headers: BatchHeaders, courier: Courier, flight: _Flight) -> None:
        """Make documents of the next entries, and send them in bulks. Raises LinkError, _Held."""
        entries = self._book.store.entries(self._read_until, self._entries_max)
        if not entries:
            return
        has_any = False
        made = documents_of(self._make, headers, self.counts, entries)
        for bulk in bulks_of(made, self._documents_max, courier):
            self._take_off(flight, bulk)
            has_any = True
        self._read_until = until = entries[-1][0]
        if has_any:
            self._landing = until
        else:
            self._land(flight)
            self._position = until

    def _take_off(self, flight: _Flight, documents: Sequence[Document]) -> None:
        """Send a bulk, once the one before has arrived. Raises LinkError, _Held."""
        self._land(flight)
        if self._is_to_wait:  # reading, or the bulk before, may have taken long
            raise _Held
        flight.take_off(documents)

    def _land(self, flight: _Flight) -> None:
        """Wait for the bulk that is on its way, and note that it has arrived. Raises LinkError."""
        if not flight.is_on:
            return
        flight.land()
        self._down = ""
        if self._landing is not None:
            self._position = self._sent_until = self._landing
            self._landing = None

    # ── what is there ─────────────────────────────────────────────────────────────

    def _prepared(self, link: Link) -> int:
        """Make what is missing, and return after which entry to begin.

        Raises LinkError, BookBehind, StoreError.
        """
        if self._is_to_wait and self._pause(0):
            raise LinkError("the book is not ours any more")
        for name, template in self._templates.items():
            link.put_template(name, template)
        begin = max(self._cursor, self._position)
        self._lacking = {}
        for name in self._templates:
            place = link.place(name)
            if place is None:
                link.create(name, meta={LACKS: begin})  # another instance may be faster
                place = link.place(name)
            if place is None:
                raise NameTaken(
                    f"{link.name} has the first index of {name}, but not its alias: delete it"
                )
            lacks = link.meta(place).get(LACKS, 0)
            if lacks:  # what was sent to an index before this one is no newer than the book is now
                self._lacking[place] = min(lacks, self._book.engine.head.sequence)
        newest = link.newest(ENTRIES, WHOSE)
        self._check_life(link, newest)
        self._doubted = set()
        self._looked_at = time.monotonic()
        there = 0 if newest is None else int(newest["sequence"])
        return 0 if self._lacking else min(begin, there)

    def _check_life(self, link: Link, newest: Mapping[str, Any] | None) -> None:
        """See whether what is there is of this book, and of the life it has. Raises BookBehind."""
        if newest is None:
            return
        whose, head = whose_of(newest), self._book.engine.head
        if whose is None:
            raise BookBehind(
                f"{link.name} has entries that are no book's: rename that index, or set search.prefix"
            )
        if whose.book != head.book:
            raise BookBehind(
                f"{link.name} has documents of book {whose.book}; each book needs a search.prefix "
                "of its own"
            )
        sequence, life = whose.sequence, whose.incarnation
        if sequence > head.sequence and life == head.incarnation:
            raise BookBehind(
                f"{link.name} has entry {sequence}, but the book ends at entry {head.sequence}: if it "
                "was restored, stop it, run `pennyweight recover`, then `pennyweight reindex`"
            )
        if sequence > head.sequence or not is_entry_of(self._book.store, whose):
            raise BookBehind(
                f"{link.name} has entry {sequence} of {newest['committed_at']} (life {life}), "
                "which this book does not have: if they are another book's, give each a "
                "search.prefix of its own; if they are of what this one has lost, run "
                "`pennyweight reindex`"
            )

    def _look(self, link: Link, flight: _Flight) -> None:
        """Look now and then whether the indices are still those that were prepared.

        One that is made anew lacks something while that lasts; whoever finds it so twice
        begins again, and completes it. Raises LinkError.
        """
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._land(flight)  # one connection, and one who asks at a time
        lacking = set()
        for name in self._templates:
            place = link.place(name)
            if place is None:
                raise LinkError(f"{link.name} has lost the index of {name}")
            if place not in self._lacking and link.meta(place).get(LACKS, 0):
                lacking.add(place)
        if lacking & self._doubted:
            raise LinkError(f"{link.name} has indices that lack something: {', '.join(lacking)}")
        self._doubted = lacking
        self._looked_at = time.monotonic()

    def _complete(self, link: Link, flight: _Flight) -> None:
        """Note on indices that were made anew when they lack nothing any more. Raises LinkError."""
        reached = [place for place, until in self._lacking.items() if self._position >= until]
        if not reached:
            return
        self._land(flight)  # one connection, and one who asks at a time
        for place in reached:
            link.put_meta(place, {LACKS: 0})
            del self._lacking[place]

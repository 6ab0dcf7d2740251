"""`pennyweight reindex`: what can be searched for, made anew from the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from pennyweight.delivery.cli.shared import (
    BookName,
    ConfigFile,
    Data,
    Json,
    StoreUrl,
    UserError,
    find,
    open_book,
    print_json,
    progress,
    told_to_stop,
)

if TYPE_CHECKING:
    from threading import Event

    from pennyweight.agents.exporter import Counts
    from pennyweight.engine.port import Store
    from pennyweight.links.search import Search

PAGE = 1_000
"""Entries that are read at a time."""

SEQUENCE_MAX = 2**62
"""After any entry; noted on an index of which nobody knows yet up to where it lacks something."""

NEAR = 1_000
"""So few entries behind, the alias is switched; the rest follows at once."""

Tell = Callable[[int, int], None]


def reindex(
    *,
    data: Data = None,
    store: StoreUrl = None,
    book: BookName = None,
    config: ConfigFile = None,
    index: Annotated[
        list[str] | None,
        Parameter(help="An index to make anew, more than once for several; all if not given."),
    ] = None,
    url: Annotated[
        str | None,
        Parameter(
            help="Where the search engine is: http://HOST:PORT. [env var: ELASTICSEARCH_URL]",
            negative=(),
        ),
    ] = None,
    api_key: Annotated[
        str | None,
        Parameter(
            help="An API key; better in the environment. [env var: PENNYWEIGHT_SEARCH_API_KEY]",
            negative=(),
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        Parameter(
            help="What the names of the indices begin with. [env var: PENNYWEIGHT_SEARCH_PREFIX]",
            negative=(),
        ),
    ] = None,
    keep_old: Annotated[
        bool, Parameter(help="Leave the old indices, without the alias.", negative=())
    ] = False,
    again: Annotated[
        bool, Parameter(help="Delete what one that broke off has left, first.", negative=())
    ] = False,
    json: Json = False,
) -> int:
    """Make search indices anew from the journal, beside the old ones, and switch to them.

    Until then searches find the old ones; they are deleted afterwards. May run while the book
    is served, and its exporter goes on. Needed after `recover`, and after an index was made
    by an older version. Exits with 1 if the search engine cannot do it, or if the first entry
    there is another book's; the old indices stay.

    Example: pennyweight reindex --data book --url http://127.0.0.1:9200 --index entries
    """
    from pennyweight.delivery.indices import INDICES  # noqa: PLC0415 - `--help` does without
    from pennyweight.ledger.entries import CorruptEntry  # noqa: PLC0415 - as above
    from pennyweight.links.errors import ExtraMissing, LinkError  # noqa: PLC0415 - as above
    from pennyweight.links.search import Search  # noqa: PLC0415 - as above

    found, settled = find(
        data, store, book, config, search__url=url, search__api_key=api_key, search__prefix=prefix
    )
    settings = settled.search
    if not settings.url:
        raise UserError("give --url, or set search.url (ELASTICSEARCH_URL)", code=2)
    names = list(dict.fromkeys(index or INDICES))
    unknown = [name for name in names if name not in INDICES]
    if unknown:
        raise UserError(f"there is no index {unknown[0]!r}; known are {', '.join(INDICES)}", code=2)
    work = None
    opened = open_book(found)
    try:
        with (
            Search(
                settings.url,
                api_key=settings.api_key,
                prefix=settings.prefix,
                timeout_seconds=settings.timeout_seconds,
            ) as link,
            told_to_stop() as stop,
            progress("reindexing") as tell,
        ):
            work = _Reindexing(opened, link, names, stop, documents_max=settings.documents_max)
            report = work.run(tell, is_again=again, is_kept=keep_old)
    except ExtraMissing as error:
        raise UserError(str(error), code=2) from None
    except LinkError as error:
        if work is not None and work.is_switched:
            raise UserError(f"{error}; searches find the new indices, run it once more") from None
        raise UserError(f"{error}; the old indices are as they were") from None
    except CorruptEntry as error:
        raise UserError(f"the journal cannot be read: {error}") from None
    finally:
        opened.close()
    if json:
        print_json(report)
    else:
        _print(report)
    return 0


def _print(report: dict[str, Any]) -> None:
    for name, made in report["indices"].items():
        fate = ""
        if made["before"]:
            fate = f", {made['before']} {'stays' if made['is_kept'] else 'is deleted'}"
        print(f"{name}: {made['documents']} documents in {made['index']}{fate}")
    print(
        f"{report['entries']} entries read, {report['rejected']} documents refused, "
        f"{report['failed']} entries passed over"
    )


class _Reindexing:
    """The making anew of some indices."""

    def __init__(
        self,
        book: Store,
        link: Search,
        names: Sequence[str],
        stop: Event,
        *,
        documents_max: int,
    ) -> None:
        """Nothing is done yet."""
        from pennyweight.agents.exporter import Counts, Courier  # noqa: PLC0415 - as above
        from pennyweight.agents.following import BatchHeaders  # noqa: PLC0415 - as above
        from pennyweight.delivery.search import Documents  # noqa: PLC0415 - as above

        self._book = book
        self._link = link
        self._names = names
        self._stop = stop
        self._documents_max = documents_max
        self._counts: Counts = Counts()
        self._headers = BatchHeaders(book)
        self._scales: dict[str, int] = {}
        self._make = Documents(self._scale_of, book, names)
        self._into: dict[str, str] = {}
        self._courier = Courier(link, self._counts, pause=stop.wait, into=self._into)
        self._position = 0
        self.is_switched = False
        """Whether searches find the new ones already."""

    def run(self, tell: Tell, *, is_again: bool, is_kept: bool) -> dict[str, Any]:
        """Do it, and return what was done. Raises LinkError, UserError, CorruptEntry."""
        from pennyweight.agents.exporter import LACKS  # noqa: PLC0415 - as above

        before: dict[str, str | None] = {}
        self._check_book()
        try:
            self._begin(before, is_again=is_again)
            head = self._book.head().sequence
            while head - self._position > NEAR:
                self._bring(head, tell)
                head = self._book.head().sequence
            self._bring(head, tell)
            for place in self._into.values():
                self._link.refresh(place)
                # Whoever finds it so knows that this process has not come to its end.
                self._link.put_meta(place, {LACKS: SEQUENCE_MAX})
        except BaseException:
            self._undo()
            raise
        self._link.switch([(name, before[name], place) for name, place in self._into.items()])
        self.is_switched = True
        # What an exporter put into the old ones up to the switch is of entries up to here.
        self._bring(self._book.head().sequence, tell)
        for place in self._into.values():
            self._link.put_meta(place, {LACKS: 0})
        made = {}
        for name, place in self._into.items():
            self._link.refresh(place)
            old = before[name]
            if old is not None and not is_kept:
                self._link.delete(old)
            count = self._link.count(place)
            made[name] = {"index": place, "documents": count, "before": old, "is_kept": is_kept}
        return {
            "entries": self._position,
            "rejected": self._counts.rejected,
            "failed": self._counts.failed,
            "indices": made,
        }

    def _check_book(self) -> None:
        """Look whether what is there is this book's, as the first entry there tells.

        The last ones may be of what it has lost. Raises LinkError, UserError.
        """
        from pennyweight.agents.exporter import (  # noqa: PLC0415 - as above
            ENTRIES,
            WHOSE,
            is_entry_of,
            whose_of,
        )

        link = self._link
        oldest = None if link.place(ENTRIES) is None else link.oldest(ENTRIES, WHOSE)
        if oldest is None:
            return
        whose = whose_of(oldest)
        if whose is None or not is_entry_of(self._book, whose):
            raise UserError(
                f"{link.name} has entry {oldest.get('sequence')} of book {oldest.get('book')} (life "
                f"{oldest.get('incarnation')}) as the first one in {link.alias(ENTRIES)}, and this "
                "book does not have it: give each book a --prefix of its own (search.prefix); if "
                "nobody has that book any more, delete its indices first"
            )

    def _begin(self, before: dict[str, str | None], *, is_again: bool) -> None:
        """Make the new indices, and note what there is of each. Raises LinkError, UserError."""
        from pennyweight.delivery.indices import INDICES  # noqa: PLC0415 - as above
        from pennyweight.links.search import number_of  # noqa: PLC0415 - as above

        link = self._link
        for name in self._names:
            link.put_template(name, INDICES[name])
            before[name] = old = link.place(name)
            alias = link.alias(name)
            number = 1 + ((number_of(old, alias) or 0) if old is not None else 0)
            place = link.create(name, number, is_alias=False)
            if place is None and is_again:
                link.delete(f"{alias}-{number:06}")
                place = link.create(name, number, is_alias=False)
            if place is None:
                raise UserError(
                    f"{alias}-{number:06} is there already: another one is at it, or one broke "
                    "off; --again deletes it and begins anew"
                )
            self._into[name] = place

    def _undo(self) -> None:
        """Delete what was made, as far as that can be done."""
        from pennyweight.links.errors import LinkError  # noqa: PLC0415 - as above

        for place in self._into.values():
            with suppress(LinkError):
                self._link.delete(place)

    def _bring(self, head: int, tell: Tell) -> None:
        """Bring the documents of all entries up to one. Raises LinkError, CorruptEntry."""
        from pennyweight.agents.exporter import bulks_of, documents_of  # noqa: PLC0415 - as above

        while self._position < head:
            if self._stop.is_set() and not self.is_switched:
                raise KeyboardInterrupt
            entries = self._book.entries(self._position, PAGE)
            if not entries:
                return
            made = documents_of(self._make, self._headers, self._counts, entries)
            for bulk in bulks_of(made, self._documents_max, self._courier):
                self._courier.bring(bulk)
            self._position = entries[-1][0]
            tell(self._position, max(head, self._position))

    def _scale_of(self, asset: str) -> int:
        """Return an asset's scale; one that is new is looked up."""
        from pennyweight.runtime.opening import assets_of  # noqa: PLC0415 - as above

        if asset not in self._scales:
            self._scales = {name: one.scale for name, one in assets_of(self._book).items()}
        return self._scales[asset]

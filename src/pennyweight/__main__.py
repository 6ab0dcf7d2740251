"""The entry point: hands the command line what only the roof can do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pennyweight.delivery.cli import run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from pennyweight.config import Config
    from pennyweight.delivery.keys import KeySource
    from pennyweight.engine.port import Store
    from pennyweight.engine.rebuild import Answers, Invariant
    from pennyweight.runtime.inline import InlineBook
    from pennyweight.stores.migrations import Migration
    from pennyweight.stores.places import Place


class _Roof:
    """`assemble` and `serving`, imported when a verb needs them: products, stores and faces."""

    def open_reader(self, place: Place, book: str) -> Store:
        from pennyweight import assemble  # noqa: PLC0415 - see the class; so are those below

        return assemble.open_reader(place, book)

    def open_inline(self, place: Place, config: Config) -> AbstractContextManager[InlineBook]:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.open_inline(place, config)

    def create_book(
        self, place: Place, book: str, *, is_again: bool = False
    ) -> AbstractContextManager[tuple[Store, str]]:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.create_book(place, book, is_again=is_again)

    def renew(self, place: Place, book: str) -> str:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.renew(place, book)

    def migrations(self, place: Place) -> list[Migration]:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.migrations(place)

    def migrate(self, place: Place, grant: str) -> list[Migration]:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.migrate(place, grant)

    def key_source(
        self, place: Place, book: str, *, is_read_only: bool = False, may_begin: bool = False
    ) -> AbstractContextManager[KeySource]:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.key_source(place, book, is_read_only=is_read_only, may_begin=may_begin)

    def answers(self) -> Answers:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.answers()

    def invariants(self) -> list[Invariant]:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.invariants()

    def serve(self, place: Place, config: Config, *, is_clock_accepted: bool) -> int:
        from pennyweight import serving  # noqa: PLC0415

        return serving.serve(place, config, is_clock_accepted=is_clock_accepted)


def main() -> int:
    """Run `pennyweight` and return its exit code."""
    return run(_Roof())


if __name__ == "__main__":
    sys.exit(main())

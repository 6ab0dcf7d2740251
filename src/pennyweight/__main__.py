"""The entry point: hands the command line what only the roof can do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from pennyweight.delivery.cli import run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from pennyweight.config import Config
    from pennyweight.engine.port import Store
    from pennyweight.engine.rebuild import Answers, Invariant
    from pennyweight.runtime.inline import InlineBook


class _Roof:
    """`assemble` and `serving`, imported when a verb needs them: products, stores and faces."""

    def open_reader(self, folder: Path) -> Store:
        from pennyweight import assemble  # noqa: PLC0415 - see the class; so are those below

        return assemble.open_reader(folder)

    def open_inline(self, folder: Path, config: Config) -> AbstractContextManager[InlineBook]:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.open_inline(folder, config)

    def create_book(self, folder: Path, book: str) -> AbstractContextManager[tuple[Store, str]]:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.create_book(folder, book)

    def answers(self) -> Answers:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.answers()

    def invariants(self) -> list[Invariant]:
        from pennyweight import assemble  # noqa: PLC0415

        return assemble.invariants()

    def serve(self, folder: Path, config: Config, *, is_clock_accepted: bool) -> int:
        from pennyweight import serving  # noqa: PLC0415

        return serving.serve(folder, config, is_clock_accepted=is_clock_accepted)


def main() -> int:
    """Run `pennyweight` and return its exit code."""
    return run(_Roof())


if __name__ == "__main__":
    sys.exit(main())

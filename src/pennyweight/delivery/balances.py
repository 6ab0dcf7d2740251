"""A file of users and balances: CSV with a column for the user and one for each asset.

The whole file is checked before anything is loaded: every cell, with its line and column.
Lines may end in any way, carriage return alone included. A file is loaded once, and the same
file is the one that says the same: line ends, the order of rows and columns, and how amounts
are spelled make no other one of it.
"""

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from pennyweight.engine.engine import Submission
from pennyweight.engine.port import Store
from pennyweight.engine.receipts import Outcome, Receipt
from pennyweight.ledger.accounts import escape_user_id, user_holder
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.draft import TRANSFERS_MAX
from pennyweight.ledger.money import canonical, to_units
from pennyweight.ledger.refusals import Refused
from pennyweight.products.general import PRODUCT, LoadBalances
from pennyweight.runtime.inline import InlineBook

USER_COLUMN = "user_id"
BYTES_MAX = 256 * 1024 * 1024
PROBLEMS_MAX = 20

_BATCH = 500
_PAGE = 1_000


class Problem(msgspec.Struct, frozen=True):
    """A cell that is wrong: line (from 1), column by its name, and why."""

    line: int
    column: str
    reason: str

    def __str__(self) -> str:
        """The problem as part of a sentence."""
        place = f"line {self.line}, column {self.column}" if self.column else f"line {self.line}"
        return f"{place}: {self.reason}"


class BadFile(Exception):
    """The file cannot be loaded. Carries the first problems, and how many there are."""

    def __init__(self, problems: list[Problem], count: int) -> None:
        """At least one problem."""
        more = f" (and {count - 1} more)" if count > 1 else ""
        super().__init__(f"{problems[0]}{more}")
        self.problems = problems
        self.count = count


class Row(msgspec.Struct, frozen=True, gc=False):
    """A checked row: its number (from 1, without the header), the user, asset and amount pairs."""

    number: int
    user: str
    balances: tuple[tuple[str, str], ...]


class Balances(msgspec.Struct, frozen=True):
    """A checked file. `totals` are smallest units by asset.

    `digest` names what the file says; `bytes_digest` the file as it is, by which earlier
    versions keyed its rows.
    """

    digest: str
    bytes_digest: str
    rows: list[Row]
    totals: dict[str, int]


class Loaded(msgspec.Struct, frozen=True):
    """What became of a row; no outcome: it was loaded before.

    `is_added`: the user had one of the accounts before, and the amount was added.
    """

    row: Row
    outcome: Outcome | None
    is_added: bool = False


def load_of(row: Row, key: str) -> Submission:
    """Return the command that loads a row."""
    return Submission(LoadBalances(row.user, row.balances), key=key)


def load_into(book: InlineBook, balances: Balances) -> Iterator[list[Loaded]]:
    """Load a file row by row and yield what became of each, batch by batch.

    A row's key is the digest of the file and the user.
    """
    is_fresh = not book.store.accounts(0, 1)
    for start in range(0, len(balances.rows), _BATCH):
        rows = balances.rows[start : start + _BATCH]
        if is_fresh:
            old, added = set[int](), set[int]()
        else:
            old = {row.number for row in rows if _is_loaded(book.store, balances, row)}
            added = {row.number for row in rows if _has_any(book.store, row)}
        new = [row for row in rows if row.number not in old]
        outcomes = book.execute_many([load_of(row, _key_of(balances, row)) for row in new])
        found = dict(zip([row.number for row in new], outcomes, strict=True))
        done = added & {number for number, one in found.items() if _is_done(one)}
        yield [Loaded(row, found.get(row.number), is_added=row.number in done) for row in rows]


def _is_done(outcome: Outcome) -> bool:
    return isinstance(outcome, Receipt) and not outcome.is_replayed


def _key_of(balances: Balances, row: Row) -> str:
    return f"load:{balances.digest}:{row.user}"


def _is_loaded(store: Store, balances: Balances, row: Row) -> bool:
    """Whether a row was loaded, also by a version that keyed it by the bytes of the file.

    The command is not asked: it has its assets in the order of the file's columns.
    """
    keys = (_key_of(balances, row), f"load:{balances.bytes_digest}:{row.number}")
    return any(store.receipt(PRODUCT, key) is not None for key in keys)


def _has_any(store: Store, row: Row) -> bool:
    """Whether a user has an account already to which the row adds something."""
    more = {asset for asset, amount in row.balances if amount != "0"}
    holder = user_holder(row.user)
    return any(account.asset in more for account in store.accounts(0, _PAGE, holder=holder))


def read_balances(path: Path, assets: Mapping[str, Asset]) -> Balances:
    """Read and check a file. Raises BadFile, OSError."""
    if path.stat().st_size > BYTES_MAX:
        raise BadFile([Problem(1, "", f"the file is larger than {BYTES_MAX >> 20} MiB")], 1)
    return parse_balances(path.read_bytes(), assets)


def parse_balances(content: bytes, assets: Mapping[str, Asset]) -> Balances:
    """Check the bytes of a file. Raises BadFile."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + content.count(b"\r", 0, error.start) + 1
        raise BadFile([Problem(line, "", "it is not UTF-8")], 1) from None
    return _Reading(text, assets, hashlib.sha256(content).hexdigest()).run()


class _Reading:
    """One file, cell by cell."""

    def __init__(self, text: str, assets: Mapping[str, Asset], digest: str) -> None:
        self._reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        self._assets = assets
        self._digest = digest
        self._problems: list[Problem] = []
        self._count = 0
        self._columns: list[Asset] = []
        self._names: list[str] = []
        self._users: dict[str, int] = {}
        self._totals: dict[str, int] = {}

    def run(self) -> Balances:
        rows: list[Row] = []
        try:
            self._header(next(self._reader, []))
            for cells in self._reader:
                row = self._row(cells, len(rows) + 1) if cells else None
                if row is not None:
                    rows.append(row)
        except csv.Error as error:
            self._wrong("", f"it is not CSV: {error}")
        if self._problems:
            raise BadFile(self._problems, self._count)
        return Balances(_digest_of(rows), self._digest, rows, self._totals)

    def _wrong(self, column: str, reason: str) -> None:
        self._count += 1
        if len(self._problems) < PROBLEMS_MAX:
            self._problems.append(Problem(max(1, self._reader.line_num), column, reason))

    def _header(self, cells: list[str]) -> None:
        """Read the columns: the user first, then assets. Raises BadFile at once if wrong."""
        self._names = [cell.strip() for cell in cells]
        if not self._names or self._names[0].lower() != USER_COLUMN:
            self._wrong(self._names[0] if self._names else "", "the first column must be User_Id")
        for name in self._names[1:]:
            asset = self._assets.get(name)
            if asset is None:
                self._wrong(name, f"{name!r} is not a registered asset")
            elif asset in self._columns:
                self._wrong(name, "the column is there twice")
            else:
                self._columns.append(asset)
        if not 0 < len(self._names) - 1 <= TRANSFERS_MAX:
            self._wrong("", f"there must be 1 to {TRANSFERS_MAX} columns of assets")
        if self._problems:
            raise BadFile(self._problems, self._count)
        self._totals = dict.fromkeys(self._names[1:], 0)

    def _row(self, cells: list[str], number: int) -> Row | None:
        """Check a row; None if something in it is wrong."""
        count = self._count
        if len(cells) != len(self._names):
            self._wrong("", f"there are {len(cells)} columns, not {len(self._names)}")
            return None
        user = cells[0].strip()
        self._check_user(user)
        balances: list[tuple[str, str]] = []
        for asset, cell in zip(self._columns, cells[1:], strict=True):
            try:
                amount = canonical(cell.strip())
                self._totals[asset.name] += to_units(amount, asset.scale)
            except Refused as refused:
                self._wrong(asset.name, refused.message if cell.strip() else "it is empty")
            else:
                balances.append((asset.name, amount))
        return Row(number, user, tuple(balances)) if count == self._count else None

    def _check_user(self, user: str) -> None:
        try:
            escape_user_id(user)
        except Refused as refused:
            self._wrong(self._names[0], refused.message)
        first = self._users.setdefault(user, self._reader.line_num)
        if first != self._reader.line_num:
            self._wrong(self._names[0], f"user {user[:40]!r} is on line {first} already")


def _digest_of(rows: list[Row]) -> str:
    """Name what rows say: users in the order of their ids, assets in that of their names."""
    content = sorted((row.user, sorted(row.balances)) for row in rows)
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()

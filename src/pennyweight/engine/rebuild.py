"""A book as its entries tell it: every row rebuilt from the journal, every rule checked again.

Verification compares the result with the store's rows; import writes it into an empty
store. One entry is applied at a time, in order. What contradicts the rules is complained
about in a plain sentence, and the journal's own figures are taken over from there, so
that one damage is told once and not again by every later entry.

Accounts and open holds are kept as values, records as digests. Of keys and ended holds
there are only sums of digests (see `Tally`) and 8 bytes for each key, so that a long book
fits in memory.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from itertools import pairwise
from typing import Any, Protocol

import msgspec

from pennyweight.engine.engine import OWN_COMMANDS
from pennyweight.engine.overlay import ASSET
from pennyweight.engine.port import BackDatedLine, Listing
from pennyweight.ledger.accounts import HOLDS_OPEN_MAX, Account, asset_of, holder_of
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.commands import Command
from pennyweight.ledger.entries import Entry, Opening, Transfer
from pennyweight.ledger.holds import Hold, HoldChange, HoldState
from pennyweight.ledger.lines import Line, push
from pennyweight.ledger.money import LIMIT
from pennyweight.ledger.records import Record

_OWED = "owed:"
_MODULUS_MASK = 2**256 - 1
_BUCKET_BITS = 10
_encoder = msgspec.json.Encoder()

Complain = Callable[[int, str], None]
"""Takes the sequence of the entry that is wrong, and a sentence."""


# ── digests of rows ───────────────────────────────────────────────────────────────


def account_digest(account: Account) -> bytes:
    """SHA-256 of an account's row."""
    return sha256(b"account" + _encoder.encode(account)).digest()


def hold_digest(hold: Hold) -> bytes:
    """SHA-256 of a hold's row."""
    return sha256(b"hold" + _encoder.encode(hold)).digest()


def state_hold_digest(hold: Hold) -> bytes:
    """SHA-256 of a hold's row without the times it was placed and expires at."""
    return hold_digest(msgspec.structs.replace(hold, expires_at=None, placed_at=0))


def record_digest(record: Record) -> bytes:
    """SHA-256 of a record's row, its body as the bytes that were stored."""
    return sha256(b"record" + _encoder.encode(record)).digest()


def key_digest(product: str, key: str) -> bytes:
    """SHA-256 of a key in its scope."""
    return sha256(f"key{product}\0{key}".encode()).digest()


def bound_digest(digest: bytes, sequence: int) -> bytes:
    """SHA-256 of a key's row: its digest and the entry that bound it."""
    return sha256(b"%b%d" % (digest, sequence)).digest()


def listing_digest(listing: Listing) -> bytes:
    """SHA-256 of a place where a record is found."""
    return sha256(b"listing" + _encoder.encode(listing)).digest()


def listings_of(record: Record) -> Iterator[Listing]:
    """Yield the places where a record must be found."""
    kind, record_id = record.kind, record.id
    for label in set(record.labels):
        yield Listing("label", label, 0, kind, record_id)
    for name in set(record.names):
        yield Listing("name", name, 0, kind, record_id)
    for mark in set(record.marks):
        yield Listing("mark", mark.index, mark.rank, kind, record_id)


def back_dated_digest(line: BackDatedLine) -> bytes:
    """SHA-256 of the row of a back-dated posting."""
    return sha256(b"back_dated" + _encoder.encode(line)).digest()


def back_dated_lines(entry: Entry, time: int) -> Iterator[BackDatedLine]:
    """Yield the postings of an entry whose effective date lies before its commit."""
    at = entry.effective_at
    if at is not None and at < time:
        for transfer in entry.transfers:
            for account, change in (
                (transfer.debit_account, -transfer.amount),
                (transfer.credit_account, transfer.amount),
            ):
                yield BackDatedLine(account, at, entry.sequence, time, change)


class Tally:
    """Says whether two sets of rows are the same without keeping or sorting them.

    The rows' SHA-256 digests are added up modulo 2**256, in buckets of 1 024 neighbouring
    numbers, so that a difference is known by its neighbourhood. Made to find damage; what
    keeps a forger out is the chain.
    """

    __slots__ = ("count", "sums")

    def __init__(self) -> None:
        """Nothing counted."""
        self.count = 0
        self.sums: dict[int, int] = {}

    def add(self, number: int, digest: bytes) -> None:
        """Count a row."""
        bucket = number >> _BUCKET_BITS
        sums = self.sums
        sums[bucket] = (sums.get(bucket, 0) + int.from_bytes(digest)) & _MODULUS_MASK
        self.count += 1

    def total(self) -> list[Any]:
        """Return the count and the sum of everything."""
        return [self.count, f"{sum(self.sums.values()) & _MODULUS_MASK:064x}"]

    def differing(self, other: "Tally") -> set[int]:
        """Return the buckets that are not the same in both."""
        return {
            bucket
            for bucket in self.sums.keys() | other.sums.keys()
            if self.sums.get(bucket) != other.sums.get(bucket)
        }


class Names:
    """Says which names come twice among many, by 8 bytes for each."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        """No name yet."""
        self._parts = [array("Q") for _ in range(256)]

    def add(self, digest: bytes) -> None:
        """Note a name by its digest."""
        self._parts[digest[0]].append(name_number(digest))

    def repeated(self) -> set[int]:
        """Return the numbers (see `name_number`) of the names that came twice, if not of more."""
        return {
            one for part in self._parts for one, other in pairwise(sorted(part)) if one == other
        }


def name_number(digest: bytes) -> int:
    """Return what `Names` keeps of a digest."""
    return int.from_bytes(digest[:8])


def bucket_of(number: int) -> int:
    """Return the bucket of a `Tally` that counts this number."""
    return number >> _BUCKET_BITS


class State:
    """The digest of a book's state: accounts, holds, records, keys, cursors and counters.

    It leaves out the chain, the incarnation and the times of batches and holds, so that
    equal traces of commands give equal digests on every store. A record's body counts as
    it stands, times that a product wrote into it included. Rows may come in any order.
    """

    def __init__(self) -> None:
        """An empty book."""
        self.accounts = Tally()
        self.holds = Tally()
        self.records = Tally()
        self.keys = Tally()
        self.cursors: dict[str, int] = {}

    def add(self, kind: str, row: Any) -> None:
        """Count a row as `Store.rows` yields it."""
        if kind == "account":
            self.accounts.add(0, account_digest(row))
        elif kind == "hold":
            self.holds.add(0, state_hold_digest(row))
        elif kind == "record":
            self.records.add(0, record_digest(row))
        elif kind == "key":
            digest = key_digest(row.product, row.key)
            self.keys.add(0, bound_digest(digest, row.sequence))
        elif kind == "cursor":
            self.cursors[row.name] = row.after

    def hexdigest(self, counters: Mapping[str, int]) -> str:
        """Return the digest as 64 hexadecimal digits."""
        parts = [
            self.accounts.total(),
            self.holds.total(),
            self.records.total(),
            self.keys.total(),
            sorted(self.cursors.items()),
            sorted(counters.items()),
        ]
        return sha256(_encoder.encode(parts)).hexdigest()


# ── what else can be checked ──────────────────────────────────────────────────────


class Invariant(Protocol):
    """A product's own law, checked at every entry and once at the end."""

    def entry(self, entry: Entry, book: "Rebuilt") -> str | None:
        """Return what is wrong with this entry, which was just applied, or None."""

    def end(self, book: "Rebuilt") -> Iterable[tuple[int, str]]:
        """Return (sequence, sentence) of what is wrong with the book as a whole."""


Answers = Mapping[tuple[str, str], msgspec.json.Decoder[Any]]
"""How the answer of each (product, command) is read back."""


def answers_of(commands: Iterable[type[Command]]) -> Answers:
    """Return how the answers of these commands are read back."""
    return {
        (command.product, command.name): msgspec.json.Decoder(command.answer_type)
        for command in commands
    }


def known_commands() -> list[type[Command]]:
    """Return every command of the products that are imported."""
    found: list[type[Command]] = []
    waiting: list[type[Command]] = [Command]
    while waiting:
        children = waiting.pop().__subclasses__()
        waiting += children
        found += [child for child in children if hasattr(child, "answer_type")]
    return found


# ── the book, entry by entry ──────────────────────────────────────────────────────


class Rebuilt:
    """The rows of a book, rebuilt. `complain` hears of everything that is wrong."""

    def __init__(
        self, complain: Complain, *, answers: Answers, invariants: Iterable[Invariant] = ()
    ) -> None:
        """An empty book."""
        self.accounts: dict[str, Account] = {}
        self.open_holds: dict[int, Hold] = {}
        self.ended_holds = Tally()
        self.records: dict[tuple[str, str], bytes] = {}
        """By (kind, id): the version in 4 bytes, the digest in 32, the product that owns it."""
        self.names: dict[tuple[str, str], str] = {}
        self.keys = Tally()
        self.key_names = Names()
        self.references = Names()
        self.back_dated = Tally()
        self.cursors: dict[str, int] = {}
        self.counters: dict[str, int] = {}
        self.assets: dict[str, Asset] = {}
        self.sequence = 0
        self.time = 0
        """When the entry in hand was committed."""
        self._answers = answers
        self._invariants = tuple(invariants)
        self._complain = complain
        self._state = State()
        self._names_of: dict[tuple[str, str], tuple[str, ...]] = {}
        self._broken: set[str] = set()
        """Accounts already complained about; the journal's figures are taken for them."""

    def is_broken(self, account_id: str) -> bool:
        """Whether something about this account was complained about before."""
        return account_id in self._broken

    def apply(self, entry: Entry, time: int) -> None:
        """Take an entry that was committed at this time."""
        sequence = self.sequence = entry.sequence
        self.time = time
        for opening in entry.openings:
            self._open(opening)
        self._apply_lines(entry)
        for account_id in entry.closings:
            self._close(account_id)
        for record in entry.records:
            self._put(record, entry.product)
        for move in entry.cursors:
            at = self.cursors.get(move.name, 0)
            if at != move.before or move.after < at:
                self._wrong(f"cursor {move.name} moves from {move.before}, but stood at {at}")
            self.cursors[move.name] = move.after
        if entry.counters:
            self._count(entry)
        if entry.effective_at is not None:
            if entry.effective_at > time:
                self._wrong("it is dated later than its commit")
            for line in back_dated_lines(entry, time):
                self.back_dated.add(sequence, back_dated_digest(line))
        if entry.key:
            digest = key_digest(entry.product, entry.key)
            self.keys.add(sequence, bound_digest(digest, sequence))
            self.key_names.add(digest)
        self._check_answer(entry)
        for invariant in self._invariants:
            problem = invariant.entry(entry, self)
            if problem is not None:
                self._wrong(problem)

    def finish(self) -> None:
        """Check what can only be said of the whole book."""
        sums: dict[str, int] = {}
        held: dict[str, int] = {}
        for hold in self.open_holds.values():
            held[hold.account] = held.get(hold.account, 0) + hold.remaining
        for account in self.accounts.values():
            sums[account.asset] = sums.get(account.asset, 0) + account.posted
            if account.held != held.get(account.id, 0) and account.id not in self._broken:
                self._complain(
                    account.version,
                    f"account {account.id}: held is {account.held}, its open holds keep "
                    f"{held.get(account.id, 0)}",
                )
        for asset, total in sums.items():
            if total and not self._broken:
                self._complain(0, f"the balances of {asset} add up to {total}, not to zero")
        for invariant in self._invariants:
            for sequence, problem in invariant.end(self):
                self._complain(sequence, problem)

    def state_digest(self) -> str:
        """Return the digest of the state (see `State`). Call it once, at the end."""
        state = self._state
        for account in self.accounts.values():
            state.accounts.add(0, account_digest(account))
        for hold in self.open_holds.values():
            state.holds.add(0, state_hold_digest(hold))
        for value in self.records.values():
            state.records.add(0, value[4:36])
        state.keys = self.keys
        state.cursors = self.cursors
        return state.hexdigest(self.counters)

    # ── accounts ──────────────────────────────────────────────────────────────────

    def _open(self, opening: Opening) -> None:
        account_id = opening.id
        if account_id in self.accounts:
            self._wrong(f"account {account_id} is opened a second time")
            return
        if opening.holder != holder_of(account_id) or opening.asset != asset_of(account_id):
            self._wrong(f"account {account_id} is opened for {opening.holder}, {opening.asset}")
        if opening.asset not in self.assets:
            self._wrong(f"account {account_id} is opened, but {opening.asset} is not registered")
        self._number("account", opening.number)
        account = Account(opening.number, account_id, opening.holder, opening.asset, opening.floor)
        account.version = self.sequence
        self.accounts[account_id] = account

    def _close(self, account_id: str) -> None:
        account = self.accounts.get(account_id)
        if account is None:
            self._wrong(f"account {account_id} is closed, but was never opened")
            return
        if account.is_closed:
            self._wrong(f"account {account_id} is closed a second time")
        if account.posted or account.open_holds or account.owed:
            self._wrong(f"account {account_id} is closed with a balance, a hold or a debt")
        account.is_closed = True
        account.version = self.sequence

    # ── transfers and hold changes, in the order of the lines ─────────────────────

    def _apply_lines(self, entry: Entry) -> None:
        """Go through the entry's changes in their order, which its statement lines tell."""
        lines, transfers, holds = entry.lines, entry.transfers, entry.holds
        position = made = changed = 0
        paying: Hold | None = None
        released = 0
        while position < len(lines):
            line = lines[position]
            if line.change == made < len(transfers) and position + 1 < len(lines):
                transfer = transfers[made]
                if paying is not None:
                    self._check_payment(paying, released, transfer)
                    paying = None
                self._transfer(transfer, line, lines[position + 1], made)
                made += 1
                position += 2
            elif line.change == -1 - changed and changed < len(holds):
                change = holds[changed]
                self._change_hold(change, line, entry.product)
                if change.verb == "settle":
                    paying, released = change.hold, -change.held
                changed += 1
                position += 1
            else:
                break
        if position != len(lines) or made != len(transfers) or changed != len(holds):
            self._wrong("its statement lines do not follow its transfers and hold changes")
            self._broken.update(line.account for line in lines)
        elif paying is not None:
            self._wrong(f"hold {paying.id} is settled without a payment")

    def _transfer(self, transfer: Transfer, debit_line: Line, credit_line: Line, made: int) -> None:
        amount = transfer.amount
        debit = self.accounts.get(transfer.debit_account)
        credit = self.accounts.get(transfer.credit_account)
        if debit is None or credit is None:
            missing = transfer.debit_account if debit is None else transfer.credit_account
            self._wrong(f"it moves money of {missing}, which was never opened")
            return
        if not 0 < amount < LIMIT or debit is credit or debit.asset != credit.asset:
            self._wrong(
                f"transfer {made} of {amount} from {debit.id} to {credit.id} cannot have been made"
            )
        if debit.is_closed or credit.is_closed:
            self._wrong(f"transfer {made} touches a closed account")
        debit.posted -= amount
        credit.posted += amount
        if debit.floor is None:
            if debit.posted <= -LIMIT:
                self._wrong(f"account {debit.id} exceeds 38 digits")
            if debit.id.startswith(_OWED):
                self._owe(debit.id, amount)
        elif debit.posted - debit.held < debit.floor and debit.id not in self._broken:
            self._wrong(f"account {debit.id} goes below its floor")
        if credit.posted >= LIMIT:
            self._wrong(f"account {credit.id} exceeds 38 digits")
        if credit.floor is None and credit.id.startswith(_OWED):
            self._owe(credit.id, -amount)
        self._line(debit, debit_line)
        if credit_line.change != made:
            self._wrong(f"transfer {made} has one statement line")
        self._line(credit, credit_line)

    def _owe(self, owed_id: str, change: int) -> None:
        """Note what an account owes: minus what is posted at its owed account."""
        account = self.accounts.get(owed_id.removeprefix(_OWED))
        if account is None:
            self._wrong(f"{owed_id} stands for an account that was never opened")
            return
        account.owed += change
        account.version = self.sequence
        if account.owed < 0:
            self._wrong(f"account {account.id} pays back more than it owed")

    def _line(self, account: Account, line: Line) -> None:
        """Compare a statement line with the account as it now is."""
        account.lines += 1
        account.version = self.sequence
        account.roots, previous, jump = push(account.roots, self.sequence)
        if (
            line.posted == account.posted
            and line.held == account.held
            and line.ordinal == account.lines
            and line.account == account.id
            and line.previous == previous
            and line.jump == jump
        ):
            return
        if account.id not in self._broken:
            self._broken.add(account.id)
            self._wrong(_line_problem(account, line, previous, jump))
        account.posted, account.held, account.lines = line.posted, line.held, line.ordinal

    def _change_hold(self, change: HoldChange, line: Line, product: str) -> None:
        hold = change.hold
        account = self.accounts.get(hold.account)
        if account is None:
            self._wrong(f"hold {hold.id} is on {hold.account}, which was never opened")
            return
        problem = (
            self._place(change, account, product)
            if change.verb == "place"
            else self._use(change, account, product)
        )
        if problem is not None:
            self._wrong(f"hold {hold.id} {problem}")
        account.held += change.held
        if hold.state is HoldState.OPEN:
            self.open_holds[hold.id] = hold
        else:
            self.open_holds.pop(hold.id, None)
            self.ended_holds.add(hold.id, hold_digest(hold))
            self._state.holds.add(0, state_hold_digest(hold))
        if account.held < 0 and account.id not in self._broken:
            self._wrong(f"account {account.id} holds less than nothing")
        self._line(account, line)

    def _place(self, change: HoldChange, account: Account, product: str) -> str | None:
        """Check a new hold; return what is wrong, or None."""
        hold = change.hold
        self._number("hold", hold.id)
        account.open_holds += 1
        if account.is_closed:
            return "is placed on a closed account"
        if hold.owner != product:
            return f"is placed by {product} for {hold.owner}"
        if (
            hold.state is not HoldState.OPEN
            or not 0 < hold.amount < LIMIT
            or not hold.amount == hold.remaining == change.held
            or hold.asset != account.asset
        ):
            return "does not begin as an open hold of its whole amount"
        if hold.placed_at not in {0, self.time} or hold.changed_by not in {0, self.sequence}:
            return "is placed at another time, or by another entry, than it says"
        if hold.reference:
            self.references.add(key_digest(hold.owner, hold.reference))
        if hold.expires_at is not None and hold.expires_at <= self.time:
            return "is placed after its expiry"
        if account.open_holds > HOLDS_OPEN_MAX:
            return f"is one more than {HOLDS_OPEN_MAX} of its account"
        if account.floor is not None and account.available - change.held < account.floor:
            return "sets aside more than is available"
        return None

    def _use(self, change: HoldChange, account: Account, product: str) -> str | None:
        """Check the settling, voiding or expiring of a hold; return what is wrong, or None."""
        hold, verb = change.hold, change.verb
        before = self.open_holds.get(hold.id)
        if before is None:
            return f"is not open, but is changed ({verb})"
        if hold.state is not HoldState.OPEN:
            account.open_holds -= 1
        kept = msgspec.structs.replace(
            before, remaining=hold.remaining, state=hold.state, changed_by=hold.changed_by
        )
        if hold != kept or hold.changed_by not in {0, self.sequence}:
            return "changes in more than its remainder and state"
        if change.held != hold.remaining - before.remaining:
            return f"changes the held amount by {change.held}, which is not its own change"
        if verb != "expire" and before.owner != product:
            return f"belongs to {before.owner}, but is changed by {product}"
        is_over = before.expires_at is not None and before.expires_at <= self.time
        if verb == "settle":
            if is_over:
                return "is settled after its expiry"
            is_kept = hold.state is HoldState.OPEN and 0 < hold.remaining < before.remaining
            if not is_kept and (hold.state is not HoldState.SETTLED or hold.remaining):
                return f"cannot be {hold.state.value} after it was settled"
        else:
            ended = HoldState.VOIDED if verb == "void" else HoldState.EXPIRED
            if hold.state is not ended or hold.remaining:
                return f"cannot be {hold.state.value} after its end ({verb})"
            if verb == "expire" and not is_over:
                return "expires before its time"
        return None

    def _check_payment(self, hold: Hold, released: int, transfer: Transfer) -> None:
        """Check that what a settled hold released was paid by its account."""
        is_partial = hold.state is HoldState.OPEN
        if transfer.debit_account != hold.account or (is_partial and transfer.amount != released):
            self._wrong(f"hold {hold.id} is settled, but its account pays something else")

    # ── records, counters, answers ────────────────────────────────────────────────

    def _put(self, record: Record, product: str) -> None:
        kind, record_id = key = (record.kind, record.id)
        before = self.records.get(key)
        version = 0 if before is None else int.from_bytes(before[:4])
        if record.version != version + 1:
            self._wrong(
                f"{kind} {record_id} becomes version {record.version}, but was at {version}"
            )
        owner = product.encode()
        if record.product != product or (before is not None and before[36:] != owner):
            self._wrong(f"{kind} {record_id} is written by {product}, which does not own it")
        if before is not None:
            for name in self._names_of.pop(key, ()):
                self.names.pop((kind, name), None)
        for name in record.names:
            if self.names.setdefault((kind, name), record_id) != record_id:
                self._wrong(f"{kind} {record_id} takes the name {name}, which is taken")
        if record.names:
            self._names_of[key] = record.names
        self.records[key] = record.version.to_bytes(4) + record_digest(record) + owner
        if kind == ASSET:
            self._register(record)

    def _register(self, record: Record) -> None:
        try:
            asset = record.read(Asset)
        except msgspec.DecodeError:
            self._wrong(f"asset {record.id} cannot be read")
            return
        if self.assets.setdefault(record.id, asset) != asset:
            self._wrong(f"asset {record.id} is registered again with another scale or number")

    def _number(self, counter: str, number: int) -> None:
        """Check that a number is the next one of its counter."""
        last = self.counters.get(counter, 0)
        if number != last + 1:
            self._wrong(f"{counter} {number} comes after {counter} {last}")
        self.counters[counter] = number

    def _count(self, entry: Entry) -> None:
        for name, value in entry.counters.items():
            at = self.counters.get(name, 0)
            is_numbered = name in {"account", "hold"}
            if value != at if is_numbered else value <= at:
                self._wrong(f"counter {name} goes to {value}, but stood at {at}")
            self.counters[name] = value

    def _check_answer(self, entry: Entry) -> None:
        decoder = self._answers.get((entry.product, entry.command))
        if decoder is None:
            if all(entry.command != own.name for own in OWN_COMMANDS):
                self._wrong(f"{entry.command} of {entry.product} is no known command")
            return
        try:
            decoder.decode(entry.answer)
        except msgspec.DecodeError as error:
            self._wrong(f"its answer cannot be read back: {error}")

    def _wrong(self, problem: str) -> None:
        self._complain(self.sequence, problem)


def _line_problem(account: Account, line: Line, previous: int, jump: int) -> str:
    """Say in which figure a statement line differs from its account."""
    for name, told, found in (
        ("the account", line.account, account.id),
        ("posted", line.posted, account.posted),
        ("held", line.held, account.held),
        ("the ordinal", line.ordinal, account.lines),
        ("the previous line", line.previous, previous),
        ("the jump", line.jump, jump),
    ):
        if told != found:
            return f"a statement line of {account.id} says {name} is {told}, it is {found}"
    return f"a statement line of {account.id} is wrong"

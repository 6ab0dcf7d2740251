"""The law that `verify` holds the journal of portfolios to, without asking the rules again.

It keeps each portfolio as the entries so far make it, reckons anew what the next one
had to do, and compares: the records, the money and the answer. Of a run it is proven
that its weights follow from what was told, that sales and purchases are equal, that no
asset passes its target, and that no more and no less is traded than the policy wants. Of
users who do nothing only the bytes of their record are kept, of runs a few numbers.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import msgspec

from pennyweight.ledger.accounts import Account, owed_account, user_account, user_holder
from pennyweight.ledger.assets import Asset
from pennyweight.ledger.entries import Entry, Transfer
from pennyweight.ledger.letters import LETTER
from pennyweight.ledger.money import format_amount, parse, to_units
from pennyweight.ledger.records import Mark, Record
from pennyweight.ledger.refusals import Reason, Refused
from pennyweight.products.portfolios.execute import (
    VENUE,
    ExecuteTransactions,
    Execution,
    ExecutionAnswer,
    Fill,
)
from pennyweight.products.portfolios.letters import (
    CloseUpdateLetter,
    ReplayUpdate,
    SetAsideUpdate,
)
from pennyweight.products.portfolios.queue import (
    Queued,
    QueuedAnswer,
    QueueUpdate,
    TakenAnswer,
    TakeUpdate,
)
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.setup import (
    ChangeTarget,
    CreatePortfolio,
    PolicyVersion,
    SetPolicy,
    SetupAnswer,
)
from pennyweight.products.portfolios.shared import (
    ASSET_LENGTH_MAX,
    ASSETS_MAX,
    DECIMALS_MAX,
    EXECUTION,
    POLICY,
    PORTFOLIO,
    PRODUCT,
    QUEUE,
    UPDATE,
    WHOLE,
    Holding,
    Line,
    Policy,
    Portfolio,
    RunAnswer,
    Weights,
    policy_id,
    transaction_id,
)

_KINDS = frozenset({PORTFOLIO, POLICY, EXECUTION, UPDATE})
_LETTERS = frozenset({SetAsideUpdate.name, ReplayUpdate.name, CloseUpdateLetter.name})
_TRADED = frozenset({"drift", "band", "score", "calendar", "cash_flow", "with_others"})
_TARGET_SLACK = 10**9
_PROVIDER_SLACK = 10**2
"""Percentages may be off 100 by one part of so many."""
_AHEAD = 60_000_000
_NO_POLICY = Policy()
_DAY = 86_400_000_000
_WORTH_DECIMALS = 18

_encoder = msgspec.json.Encoder()
_portfolio_decoder = msgspec.json.Decoder(Portfolio)
_run_decoder = msgspec.json.Decoder(RunAnswer)


class Book(Protocol):
    """What the law looks at of a book that is rebuilt from its journal."""

    accounts: dict[str, Account]
    assets: dict[str, Asset]
    counters: dict[str, int]
    records: dict[tuple[str, str], bytes]
    time: int


class Wrong(Exception):
    """An entry is not what the law says; the message is the sentence."""


class _Life(NamedTuple):
    """A portfolio so far: the body of its record, and a digest of what its last run answered."""

    number: int
    body: bytes
    run: bytes = b""

    @property
    def portfolio(self) -> Portfolio:
        return _portfolio_decoder.decode(self.body)


class _Written(NamedTuple):
    """A record that an entry has to write."""

    body: msgspec.Struct
    labels: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    holder: str = ""


class _Said(NamedTuple):
    """What an update says."""

    current: Weights
    value: str
    currency: str
    holdings: dict[str, Holding]


_Records = dict[tuple[str, str], _Written]


class PortfoliosLaw:
    """Weights follow from what was told; what is sold is what is bought; nothing happens twice."""

    def __init__(self) -> None:
        """No portfolio yet."""
        self._lives: dict[str, _Life] = {}
        self._runs = array("Q")
        self._whose = array("Q")
        self._shapes = array("Q")
        """Of each run with transactions, in order: its entry, its user's number, what it trades."""
        self._shape_numbers: dict[tuple[tuple[str, bool], ...], int] = {}
        self._shape_list: list[tuple[tuple[str, bool], ...]] = []
        """Assets and whether they are sold, by position: many runs trade alike."""
        self._executed: dict[int, int] = {}
        """By run, a bit for each position."""
        self._executions = 0
        self._policies = 0
        self._queued: dict[int, bytes] = {}
        """What was queued and not yet taken, by number."""
        self._numbers = 0

    def entry(self, entry: Entry, book: Book) -> str | None:
        """Return what is wrong with an entry, or None."""
        if entry.product != PRODUCT:
            for record in entry.records:
                if record.kind in _KINDS:
                    return f"an entry of {entry.product} writes {record.kind} {record.id!r}"
            return None
        try:
            _CHECKS.get(entry.command, PortfoliosLaw.check_others)(self, entry, book)
        except Wrong as wrong:
            problem = str(wrong)
        except (ArithmeticError, KeyError, ValueError, msgspec.DecodeError, Refused) as error:
            problem = f"an entry of portfolios cannot be read: {error}"
        else:
            return None
        self._adopt(entry)
        return problem

    def end(self, book: Book) -> Iterable[tuple[int, str]]:
        """Compare what was counted with the records that there are."""
        found = dict.fromkeys(_KINDS, 0)
        for kind, record_id in book.records:
            if kind in found:
                found[kind] += 1
            if kind == PORTFOLIO and record_id not in self._lives:
                yield 0, f"the portfolio of {record_id!r} was never made"
        counted = {
            PORTFOLIO: len(self._lives),
            POLICY: self._policies,
            EXECUTION: self._executions,
            UPDATE: self._numbers,
        }
        for kind, number in sorted(counted.items()):
            if found[kind] != number:
                yield 0, f"there are {found[kind]} records of {kind}, the entries made {number}"
        if book.counters.get(UPDATE, 0) != self._numbers:
            counter = book.counters.get(UPDATE, 0)
            yield 0, f"{counter} queued updates are counted, {self._numbers} were queued"

    # ── target and policy ─────────────────────────────────────────────────────────

    def check_creation(self, entry: Entry, book: Book) -> None:
        """A new portfolio with its target; the same again changes nothing."""
        command = msgspec.json.decode(entry.fields, type=CreatePortfolio)
        target = _weights(command.allocation, _TARGET_SLACK)
        life = self._lives.get(command.user)
        if life is None:
            portfolio, records = Portfolio(target, book.time), _Records()
            if command.policy is not None:
                portfolio = _with_policy(command.user, portfolio, command.policy, book, records)
            self._set_up(entry, command.user, "created", portfolio, records)
            return
        known = life.portfolio
        is_other = command.policy is not None and command.policy != known.policy
        if known.target != target or is_other:
            raise Wrong(f"user {command.user!r} has another portfolio already")
        self._set_up(entry, command.user, "unchanged", known, {})

    def check_target(self, entry: Entry, book: Book) -> None:  # noqa: ARG002 - as all checks
        """Another target; nothing else changes but that the last run is no longer fresh."""
        command = msgspec.json.decode(entry.fields, type=ChangeTarget)
        known = self._life(command.user).portfolio
        target = _weights(command.allocation, _TARGET_SLACK)
        if known.target == target:
            self._set_up(entry, command.user, "unchanged", known, {})
        else:
            changed = msgspec.structs.replace(known, target=target, is_fresh=False)
            self._set_up(entry, command.user, "changed", changed, {})

    def check_policy(self, entry: Entry, book: Book) -> None:
        """Another policy, as the next version."""
        command = msgspec.json.decode(entry.fields, type=SetPolicy)
        known, records = self._life(command.user).portfolio, _Records()
        if known.policy == command.policy:
            self._set_up(entry, command.user, "unchanged", known, records)
        else:
            changed = _with_policy(command.user, known, command.policy, book, records)
            self._set_up(entry, command.user, "changed", changed, records)

    def _set_up(
        self, entry: Entry, user: str, result: Any, portfolio: Portfolio, records: _Records
    ) -> None:
        """Compare an entry that sets a portfolio up, and keep what it made."""
        answer = SetupAnswer(user, result, portfolio.target, portfolio.policy_version)
        _compare_answer(entry, answer)
        if result != "unchanged":
            records[PORTFOLIO, user] = _Written(portfolio, holder=user_holder(user))
        _compare(entry, records)
        self._keep(entry)

    # ── updates ───────────────────────────────────────────────────────────────────

    def check_update(self, entry: Entry, book: Book) -> None:
        """An update as it came."""
        command = msgspec.json.decode(entry.fields, type=Rebalance)
        answer = _run_decoder.decode(entry.answer)
        _compare(entry, self._updated(command, answer, entry, book))
        self._keep(entry, answer)

    def check_replay(self, entry: Entry, book: Book) -> None:
        """An update out of a dead letter, which is closed in the same entry."""
        command = msgspec.json.decode(entry.fields, type=ReplayUpdate).update
        answer = _run_decoder.decode(entry.answer)
        _compare(entry, self._updated(command, answer, entry, book))
        if not any(record.kind == LETTER for record in entry.records):
            raise Wrong("a dead letter is applied and not closed")
        self._keep(entry, answer)

    def check_queueing(self, entry: Entry, book: Book) -> None:
        """An update that is kept under the next number, and changes nothing else."""
        command = msgspec.json.decode(entry.fields, type=QueueUpdate)
        self._life(command.update.user)
        number = self._numbers + 1
        if entry.counters != {UPDATE: number}:
            raise Wrong(f"update {number} is counted as {entry.counters.get(UPDATE)}")
        queued = Queued(command.update, book.time)
        _compare(entry, {(UPDATE, str(number)): _Written(queued, marks=(Mark(QUEUE, number),))})
        _compare_answer(entry, QueuedAnswer(number, command.update.user))
        self._keep(entry)

    def check_taking(self, entry: Entry, book: Book) -> None:
        """A queued update, once: what came of it is what would have come of it directly."""
        number = msgspec.json.decode(entry.fields, type=TakeUpdate).number
        raw = self._queued.get(number)
        if raw is None:
            fate = "was taken already" if 0 < number <= self._numbers else "was never queued"
            raise Wrong(f"update {number} {fate}")
        queued = msgspec.json.decode(raw, type=Queued)
        answer = msgspec.json.decode(entry.answer, type=TakenAnswer)
        if answer.number != number or (answer.run is None) != (answer.state == "refused"):
            raise Wrong(f"update {number} is answered as {answer.state}, number {answer.number}")
        if answer.state == "queued" or (answer.run is None) != (answer.reason in _CODES):
            raise Wrong(f"update {number} is {answer.state} for {answer.reason!r}")
        records = _Records()
        if answer.run is None:
            self._check_refused(queued.update, book)
        else:
            records = self._updated(
                queued.update, answer.run, entry, book, arrived_at=queued.queued_at
            )
        taken = msgspec.structs.replace(
            queued,
            state=answer.state,
            taken_at=book.time,
            entry=entry.sequence,
            run=0 if answer.run is None else answer.run.run,
            reason=answer.reason,
            detail=answer.detail,
        )
        records[UPDATE, str(number)] = _Written(taken)
        _compare(entry, records)
        self._keep(entry, answer.run)

    def _check_refused(self, command: Rebalance, book: Book) -> None:
        """See that an update which says nothing but percentages was refused for some reason."""
        is_ahead = command.as_of is not None and command.as_of > book.time + _AHEAD
        is_valued = command.value or command.currency or command.holdings
        if is_ahead or is_valued or command.user not in self._lives:
            return
        names = command.allocation
        if not 0 < len(names) <= ASSETS_MAX or not all(map(_is_name, names)):
            return
        try:
            scales = [parse(text)[1] for text in names.values()]
            _weights(names, _PROVIDER_SLACK)
        except (Wrong, Refused):
            return
        if max(scales) <= DECIMALS_MAX:
            raise Wrong("it is refused, and nothing is wrong with it")

    def _updated(
        self,
        command: Rebalance,
        answer: RunAnswer,
        entry: Entry,
        book: Book,
        *,
        arrived_at: int = 0,
    ) -> _Records:
        """Return what an update has to write, once its answer has been proven.

        It arrived with its commit if no other moment is given.
        """
        arrived_at = arrived_at or book.time
        life = self._life(command.user)
        known = life.portfolio
        said = _said(command)
        if (said.value or said.currency or said.holdings) and said.currency not in book.assets:
            raise Wrong(f"it is told in {said.currency!r}, which is no asset")
        if command.as_of is not None and command.as_of > book.time + _AHEAD:
            raise Wrong("it is as of more than a minute after its commit")
        result = _result(command, said, known, arrived_at)
        if answer.result != result:
            raise Wrong(f"it is answered as {answer.result!r}, but is {result!r}")
        if result == "outdated":
            _equal(answer, RunAnswer("outdated", command.user, as_of=known.as_of))
            return {}
        if result == "repeat":
            done = [one for one in range(1, len(answer.trades) + 1) if one not in known.open]
            if _digest(answer) != life.run or list(answer.executed) != done:
                raise Wrong(f"it does not repeat run {known.run} as that was answered")
            return {}
        as_of = command.as_of
        if as_of is None:
            as_of = max(arrived_at, known.as_of + known.is_timed)
        _check_lines(known, said, as_of, answer.lines)
        _check_orders(said, answer.lines, book)
        _equal(
            answer,
            RunAnswer(
                "rebalanced",
                command.user,
                run=entry.sequence,
                at=book.time,
                lines=answer.lines,
                previous=known.run,
                trades_before=known.trade_run,
                policy_version=known.policy_version,
                as_of=as_of,
                currency=said.currency,
            ),
        )
        count = len(answer.trades)
        after = msgspec.structs.replace(
            known,
            current=said.current,
            as_of=as_of,
            is_timed=command.as_of is not None,
            heard_at=known.heard_at if command.as_of is not None else arrived_at,
            value=said.value,
            currency=said.currency,
            holdings=said.holdings,
            run=entry.sequence,
            run_at=book.time,
            run_before=known.run,
            trade_run=entry.sequence if count else known.trade_run,
            trades_before=known.trade_run,
            open=tuple(range(1, count + 1)),
            is_fresh=True,
            traded_at=as_of if count else known.traded_at,
            traded_before=known.traded_at,
        )
        return {(PORTFOLIO, command.user): _Written(after, holder=user_holder(command.user))}

    # ── executions ────────────────────────────────────────────────────────────────

    def check_execution(self, entry: Entry, book: Book) -> None:
        """Transactions of one run of the user, each once, and what they say they moved."""
        command = msgspec.json.decode(entry.fields, type=ExecuteTransactions)
        trades = self._trades_of(command.run, command.user)
        fills = {fill.position: fill for fill in command.fills}
        for position in fills:
            if not 1 <= position <= len(trades):
                name = transaction_id(command.run, position)
                raise Wrong(f"there is no transaction {name} of {command.user!r}")
        done = self._executed.get(command.run, 0)
        new = [fills[position] for position in sorted(fills) if not done >> position & 1]
        records: _Records = {
            (EXECUTION, transaction_id(command.run, fill.position)): _Written(
                Execution(command.user, command.run, fill, book.time, entry.sequence),
                labels=(f"run:{command.run}",),
            )
            for fill in new
        }
        known = self._life(command.user).portfolio
        if new and known.run == command.run:
            left = tuple(one for one in known.open if one not in fills)
            after = msgspec.structs.replace(known, open=left)
            records[PORTFOLIO, command.user] = _Written(after, holder=user_holder(command.user))
        _compare(entry, records, is_moving=True)
        _compare_answer(
            entry,
            ExecutionAnswer(
                command.user,
                command.run,
                tuple(sorted(fills)),
                tuple(fill.position for fill in new),
            ),
        )
        due = [
            leg
            for fill in new
            if fill.is_told
            for leg in _legs(command.user, fill, *trades[fill.position - 1], book)
        ]
        _check_money(entry.transfers, due, user_holder(command.user), book)
        self._keep(entry)

    def _trades_of(self, run: int, user: str) -> tuple[tuple[str, bool], ...]:
        """Return what a run trades, and whether it sells it, if it is the user's."""
        place = bisect_left(self._runs, run) if run > 0 else len(self._runs)
        is_there = place < len(self._runs) and self._runs[place] == run
        if not is_there or self._whose[place] != self._life(user).number:
            raise Wrong(f"run {run} of {user!r} has no transactions")
        return self._shape_list[self._shapes[place]]

    # ── all else, and what is kept ────────────────────────────────────────────────

    def check_others(self, entry: Entry, book: Book) -> None:  # noqa: ARG002 - as all checks
        """Dead letters and keys that were given up: nothing of a portfolio."""
        _compare(entry, {})

    def _life(self, user: str) -> _Life:
        life = self._lives.get(user)
        if life is None:
            raise Wrong(f"user {user!r} has no portfolio")
        return life

    def _keep(self, entry: Entry, answer: RunAnswer | None = None) -> None:
        """Take over what an entry has made."""
        is_run = answer is not None and answer.result == "rebalanced"
        for record in entry.records:
            if record.kind == PORTFOLIO:
                life = self._lives.get(record.id)
                number = len(self._lives) if life is None else life.number
                run = b"" if life is None else life.run
                if is_run and answer is not None:
                    run = _digest(answer)
                self._lives[record.id] = _Life(number, bytes(record.body), run)
            elif record.kind == POLICY:
                self._policies += 1
            elif record.kind == EXECUTION:
                run_text, _, position = record.id.partition("-")
                bits = self._executed.get(int(run_text), 0)
                self._executed[int(run_text)] = bits | 1 << int(position)
                self._executions += 1
            elif record.kind == UPDATE:
                self._keep_queued(record)
        if is_run and answer is not None and answer.trades and answer.user in self._lives:
            shape = tuple((line.asset, line.change < 0) for line in answer.trades)
            number = self._shape_numbers.setdefault(shape, len(self._shape_list))
            if number == len(self._shape_list):
                self._shape_list.append(shape)
            self._runs.append(entry.sequence)
            self._whose.append(self._lives[answer.user].number)
            self._shapes.append(number)

    def _keep_queued(self, record: Record) -> None:
        number = int(record.id)
        if record.version == 1:
            self._queued[number] = bytes(record.body)
            self._numbers += 1
        else:
            self._queued.pop(number, None)

    def _adopt(self, entry: Entry) -> None:
        """Go on from an entry that is wrong as if it were right, as far as it can be read."""
        try:
            answer: RunAnswer | None = None
            if entry.command in {Rebalance.name, ReplayUpdate.name}:
                answer = _run_decoder.decode(entry.answer)
            elif entry.command == TakeUpdate.name:
                answer = msgspec.json.decode(entry.answer, type=TakenAnswer).run
        except msgspec.DecodeError:
            answer = None
        try:
            self._keep(entry, answer)
        except (ValueError, OverflowError):
            return


# ── comparing ─────────────────────────────────────────────────────────────────────


def _compare(entry: Entry, due: _Records, *, is_moving: bool = False) -> None:
    """Compare the records of an entry with those it has to write, and see that nothing else moves."""
    if entry.holds or entry.closings or (entry.transfers and not is_moving):
        raise Wrong("an entry of portfolios moves money or holds that it has no right to")
    if entry.counters and set(entry.counters) - {UPDATE, "account", LETTER}:
        raise Wrong(f"an entry of portfolios counts {', '.join(sorted(entry.counters))}")
    left = dict(due)
    for record in entry.records:
        written = left.pop((record.kind, record.id), None)
        if written is None:
            if record.kind == LETTER and entry.command in _LETTERS:
                continue
            raise Wrong(f"it writes {record.kind} {record.id!r}, which it has no right to")
        _compare_body(record, written.body)
        if (set(record.labels), record.names, record.marks, record.holder) != (
            set(written.labels),
            (),
            written.marks,
            written.holder,
        ):
            raise Wrong(f"{record.kind} {record.id!r} is not listed where it has to be")
    for kind, record_id in left:
        raise Wrong(f"{kind} {record_id!r} is not written")


def _compare_body(record: Record, due: msgspec.Struct) -> None:
    found = record.read(type(due))
    for name in due.__struct_fields__:
        told, right = getattr(found, name), getattr(due, name)
        if told != right:
            raise Wrong(
                f"{record.kind} {record.id!r} is written with {name} {told!r:.200}, "
                f"it is {right!r:.200}"
            )


def _compare_answer(entry: Entry, due: msgspec.Struct) -> None:
    _equal(msgspec.json.decode(entry.answer, type=type(due)), due)


def _equal(answer: msgspec.Struct, due: msgspec.Struct) -> None:
    """Compare an answer with what it has to be."""
    for name in due.__struct_fields__:
        told, right = getattr(answer, name), getattr(due, name)
        if told != right:
            raise Wrong(f"it answers {name} {told!r:.200}, right is {right!r:.200}")


def _digest(answer: RunAnswer) -> bytes:
    """Return a digest of what a run answered, whether first or again."""
    first = msgspec.structs.replace(answer, result="rebalanced", executed=())
    return blake2b(_encoder.encode(first), digest_size=16).digest()


def _with_policy(
    user: str, portfolio: Portfolio, policy: Policy | None, book: Book, records: _Records
) -> Portfolio:
    """Expect a policy's next version, and return the portfolio with it."""
    version = portfolio.policy_version + 1
    records[POLICY, policy_id(user, version)] = _Written(
        PolicyVersion(user, version, book.time, policy), labels=(f"user:{user}",)
    )
    return msgspec.structs.replace(portfolio, policy=policy, policy_version=version, is_fresh=False)


# ── what an update says, and whether it is news ───────────────────────────────────


def _exact(text: str) -> Fraction:
    """Return decimal text as it is."""
    digits, decimals = parse(text)
    return Fraction(digits, 10**decimals)


def _is_name(name: str) -> bool:
    """Whether this may name an asset."""
    return 0 < len(name) <= ASSET_LENGTH_MAX and name.isprintable() and name == name.strip()


def _weights(allocation: Mapping[str, str], slack: int) -> Weights:
    """Return percentages as weights of exactly the whole; together they are 100, give or take 1/slack."""
    parsed = {name: parse(text) for name, text in allocation.items()}
    scale = max(decimals for _, decimals in parsed.values())
    parts = {name: digits * 10 ** (scale - decimals) for name, (digits, decimals) in parsed.items()}
    total, unit = sum(parts.values()), 10**scale
    if abs(total - 100 * unit) * slack > unit:
        raise Wrong(f"the percentages add up to {format_amount(total, scale)}, not to 100")
    return _apportioned(parts, WHOLE)


def _apportioned(parts: Mapping[str, int], whole: int) -> dict[str, int]:
    """Share out in proportion, rounded down, and what is left to the largest remainders.

    Of equal ones that of the earlier name comes first.
    """
    total = sum(parts.values())
    shares, remainders = {}, []
    for name in sorted(parts):
        shares[name], rest = divmod(parts[name] * whole, total)
        remainders.append((-rest, name))
    left = whole - sum(shares.values())
    for _, name in sorted(remainders)[:left] if left else ():
        shares[name] += 1
    return shares


def _said(command: Rebalance) -> _Said:
    """Return what an update says, its weights normalised."""
    value, holdings = command.value, command.holdings
    if command.allocation:
        weights = _weights(command.allocation, _PROVIDER_SLACK)
    else:
        worth = {
            name: _exact(holding.quantity) * _exact(holding.price) * 10 ** (2 * _WORTH_DECIMALS)
            for name, holding in holdings.items()
        }
        if not any(worth.values()):
            raise Wrong("there is nothing of anything")
        parts = {name: int(one) for name, one in worth.items()}
        weights = _apportioned(parts, WHOLE)
        total = sum(parts.values()) // 10**_WORTH_DECIMALS
        value = value or format_amount(total, _WORTH_DECIMALS)
    return _Said(weights, value, command.currency, holdings)


def _result(command: Rebalance, said: _Said, known: Portfolio, arrived_at: int) -> str:
    """Return what an update is: news, a repeat of the last, or older than that."""
    last = _Said(known.current, known.value, known.currency, known.holdings)
    if command.as_of is None:
        if arrived_at < known.heard_at or arrived_at < min(known.as_of, known.run_at):
            return "outdated"
        is_waiting = bool(known.open)
        is_idle = known.run != known.trade_run and not known.rules.calendar
        is_again = known.is_fresh and not command.request_id and said == last
        return "repeat" if is_again and (is_waiting or is_idle) else "rebalanced"
    if command.as_of < known.as_of:
        return "outdated"
    if command.as_of == known.as_of and known.is_timed:
        if said == last:
            return "repeat" if known.is_fresh else "rebalanced"
        return "outdated" if _rank(said) < _rank(last) else "rebalanced"
    return "rebalanced"


def _rank(said: _Said) -> tuple[Any, ...]:
    """Return what orders two updates of one moment."""
    held = sorted((name, *msgspec.structs.astuple(one)) for name, one in said.holdings.items())
    return sorted(said.current.items()), said.value, said.currency, held


# ── what is traded ────────────────────────────────────────────────────────────────


def _check_lines(known: Portfolio, said: _Said, as_of: int, lines: Sequence[Line]) -> None:
    """Hold the lines of a run to the weights and to the policy."""
    target, current, policy = known.target, said.current, known.rules
    names = sorted(target.keys() | current.keys())
    if sorted(line.asset for line in lines) != names:
        raise Wrong("its lines are not one for each asset")
    for line in lines:
        weights = (current.get(line.asset, 0), target.get(line.asset, 0))
        if (line.before, line.target) != weights:
            raise Wrong(
                f"{line.asset} is told to be {line.before} of {line.target}, it is {weights}"
            )
    if sum(line.change for line in lines):
        raise Wrong("what is sold is not what is bought")
    order = [
        (2, 0, line.asset)
        if not line.change
        else (line.change > 0, -abs(line.before - line.target), line.asset)
        for line in lines
    ]
    if order != sorted(order):
        raise Wrong("its lines are not in order")
    since = known.traded_at or known.created_at
    has_trigger = (
        policy.score is not None
        or bool(policy.calendar)
        or any(
            policy.width(line.asset, line.target) is not None
            for line in lines
            if line.asset not in policy.locked
        )
    )
    cash = abs(current.get(policy.cash, 0) - target.get(policy.cash, 0))
    for line in lines:
        _check_line(line, policy, as_of, since, has_trigger=has_trigger, cash=cash)
    sold = -sum(line.change for line in lines if line.change < 0)
    if policy.turnover_max is not None and sold > policy.turnover_max:
        raise Wrong(f"{sold} is sold, at most {policy.turnover_max} may be")
    drifts = {line.asset: line.before - line.target for line in lines}
    right = _reckoned(target, drifts, policy, as_of, since)
    for line in lines:
        if line.change != right.get(line.asset, 0):
            raise Wrong(
                f"{line.change} of {line.asset} is traded, due is {right.get(line.asset, 0)}"
            )


def _check_line(
    line: Line, policy: Policy, as_of: int, since: int, *, has_trigger: bool, cash: int
) -> None:
    """Hold a line to what is allowed for its asset, and its rule to what it says."""
    drift, change, asset = line.before - line.target, line.change, line.asset
    width = policy.width(asset, line.target)
    if change and (change * drift >= 0 or abs(change) > abs(drift)):
        raise Wrong(f"{asset} is moved by {change}, though it is off its target by {drift}")
    if change and asset in policy.locked:
        raise Wrong(f"{asset} is traded, though it is locked")
    if change < 0 and policy.is_buy_only and asset != policy.cash:
        raise Wrong(f"{asset} is sold, though nothing but cash may be")
    if change and abs(change) < policy.minimum_trade:
        raise Wrong(f"{asset} is traded below the minimum")
    is_possible = {
        "drift": not has_trigger,
        "band": width is not None and abs(drift) >= width,
        "score": policy.score is not None,
        "calendar": bool(policy.calendar) and _period_begins(policy.calendar, as_of) > since,
        "cash_flow": policy.is_cash_first,
        "on_target": not drift,
        "in_band": width is not None and abs(drift) <= width,
        "locked": asset in policy.locked,
        "buy_only": policy.is_buy_only and drift > 0 and asset != policy.cash,
        "below_minimum": abs(drift) < policy.minimum_trade,
    }
    is_told_right = (line.rule in _TRADED) == bool(change) and is_possible.get(line.rule, True)
    if not is_told_right or (not drift) != (line.rule == "on_target"):
        raise Wrong(f"{asset} is told to be {line.rule!r}, which it is not")
    limits = {
        "band": width,
        "in_band": width,
        "with_others": width,
        "score": policy.score,
        "not_due": policy.score,
        "below_minimum": policy.minimum_trade,
        "cash_flow": cash,
    }
    if line.limit != (limits.get(line.rule) or 0):
        raise Wrong(f"{asset} is told to be {line.rule!r} by a bound of {line.limit}")


def _reckoned(
    target: Weights, drifts: dict[str, int], policy: Policy, as_of: int, since: int
) -> dict[str, int]:
    """Return what is to be traded of each asset: first what cash gives or needs, then what is due."""
    if policy == _NO_POLICY:
        return Counter({name: -drift for name, drift in drifts.items()})
    drifts = dict(drifts)
    room = sum(drift for drift in drifts.values() if drift > 0)
    if policy.turnover_max is not None:
        room = min(room, policy.turnover_max)
    changes: Counter[str] = Counter()
    free = {name: drift for name, drift in drifts.items() if name not in policy.locked}
    surplus = free.get(policy.cash, 0)
    if policy.is_cash_first and surplus and not (policy.is_buy_only and surplus < 0):
        cash = {policy.cash: surplus}
        others = {name: drift for name, drift in free.items() if drift * surplus < 0}
        changes = _exchanged(cash | others, cash, room, policy.minimum_trade)
        room -= sum(amount for amount in changes.values() if amount > 0)
        drifts = {name: drift + changes[name] for name, drift in drifts.items()}
        free = {name: drifts[name] for name in free}
    if _is_due(policy, target, drifts, as_of, since):
        if policy.is_buy_only:
            free = {name: at for name, at in free.items() if at < 0 or name == policy.cash}
        wants = dict(free)
        if policy.trade_to == "band":
            for name, drift in free.items():
                width = policy.width(name, target.get(name, 0)) or 0
                wants[name] = max(0, drift - width) if drift > 0 else min(0, drift + width)
        changes.update(_exchanged(free, wants, room, policy.minimum_trade))
    return changes


def _exchanged(
    most: Mapping[str, int], wants: Mapping[str, int], room: int, minimum: int
) -> Counter[str]:
    """Return what is sold of those with a drift above zero, and bought of the others.

    After each exchange what is left is exchanged likewise, until nothing can be.
    """
    changes: Counter[str] = Counter()
    while step := _exchanged_once(most, wants, room, minimum):
        changes.update(step)
        if not minimum:
            break
        room -= sum(amount for amount in step.values() if amount > 0)
        most = {name: drift + step[name] for name, drift in most.items()}
        wants = {name: max(0, abs(want) - abs(step[name])) for name, want in wants.items()}
    return changes


def _exchanged_once(
    most: Mapping[str, int], wants: Mapping[str, int], room: int, minimum: int
) -> Counter[str]:
    """Return an exchange: the side that wants more decides, the other meets it as far as it can.

    Of shares below the minimum the smallest is left out, and all is reckoned again.
    """
    left = {name: drift for name, drift in most.items() if drift}
    while True:
        sides = [
            {name: abs(drift) for name, drift in left.items() if (drift > 0) is is_over}
            for is_over in (True, False)
        ]
        wanted = [{name: abs(wants.get(name, 0)) for name in side} for side in sides]
        total = min(
            room,
            max(sum(side.values()) for side in wanted),
            *(sum(side.values()) for side in sides),
        )
        if total <= 0:
            return Counter()
        shares: dict[str, int] = {}
        for side, want in zip(sides, wanted, strict=True):
            asked = sum(want.values())
            if asked >= total:
                shares |= _apportioned(want, total)
            else:
                more = _apportioned({n: side[n] - want[n] for n in side}, total - asked)
                shares |= {name: want[name] + more[name] for name in side}
        small = [(share, name) for name, share in shares.items() if 0 < share < minimum]
        if not small:
            signs = {name: -1 if left[name] > 0 else 1 for name in shares}
            return Counter({name: signs[name] * share for name, share in shares.items() if share})
        del left[min(small)[1]]


def _is_due(
    policy: Policy, target: Weights, drifts: Mapping[str, int], as_of: int, since: int
) -> bool:
    """Whether what the policy waits for has come."""
    if not any(drifts.values()):
        return False
    met = []
    free = [name for name in drifts if name not in policy.locked]
    widths = {name: policy.width(name, target.get(name, 0)) for name in free}
    bands = {name: width for name, width in widths.items() if width is not None}
    if bands:
        met.append(any(drifts[name] and abs(drifts[name]) >= bands[name] for name in bands))
    if policy.score is not None:
        met.append(sum(map(abs, drifts.values())) >= 2 * policy.score)
    if policy.calendar:
        met.append(_period_begins(policy.calendar, as_of) > since)
    return not met or (all(met) if policy.when == "all" else any(met))


def _period_begins(calendar: str, moment: int) -> int:
    """Return when the calendar's period of a moment begins, in microseconds; counted year by year."""
    day = moment // _DAY
    if calendar == "weekly":
        return (day - (day + 3) % 7) * _DAY  # 1 January 1970 was a Thursday
    if calendar == "daily":
        return day * _DAY
    year, begins = 1970, 0
    while begins + 365 + _is_leap(year) <= day:
        begins += 365 + _is_leap(year)
        year += 1
    lengths = [31, 28 + _is_leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    months = {"monthly": 1, "quarterly": 3, "yearly": 12}[calendar]
    for first in range(0, 12, months):
        after = begins + sum(lengths[first : first + months])
        if day < after:
            break
        begins = after
    return begins * _DAY


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


# ── amounts and lots ──────────────────────────────────────────────────────────────


def _check_orders(said: _Said, lines: Sequence[Line], book: Book) -> None:
    """Hold amounts and quantities to the value and the prices that were told."""
    trades = [line for line in lines if line.change] if said.value else []
    if any(line.amount or line.quantity for line in lines if line not in trades):
        raise Wrong("there is an amount where none was told of")
    if not trades:
        return
    scale = book.assets[said.currency].scale
    value = _exact(said.value) * 10**scale
    bought = sum(line.change for line in trades if line.change > 0)
    total = value.numerator // value.denominator * bought // WHOLE
    sums = {True: 0, False: 0}
    paid = {True: Fraction(0), False: Fraction(0)}
    for line in trades:
        is_sale, exact = line.change < 0, _exact(line.amount) * 10**scale
        if exact.denominator != 1 or format_amount(exact.numerator, scale) != line.amount:
            raise Wrong(f"{line.amount} of {line.asset} is no amount of {said.currency}")
        amount = exact.numerator
        if abs(amount - Fraction(total * abs(line.change), bought)) >= 1:
            raise Wrong(f"{line.amount} of {line.asset} is not its share of what changes hands")
        sums[is_sale] += amount
        worth = _check_quantity(line, Fraction(amount, 10**scale), said.holdings.get(line.asset))
        if worth is not None or is_sale:
            paid[is_sale] += Fraction(amount, 10**scale) if worth is None else worth
    if sums != {True: total, False: total}:
        raise Wrong("the amounts of what is sold and bought are not equal")
    if paid[False] > paid[True]:
        raise Wrong("what is bought costs more than what is sold brings")


def _check_quantity(line: Line, amount: Fraction, holding: Holding | None) -> Fraction | None:
    """Hold a quantity to whole lots, and return what it is worth; None where there is no price."""
    if holding is None or not holding.price:
        if line.quantity:
            raise Wrong(f"there is a quantity of {line.asset}, which has no price")
        return None
    quantity, price = _exact(line.quantity), _exact(holding.price)
    lot = _exact(holding.lot) if holding.lot else Fraction(1, 10**8)
    held = _exact(holding.quantity) if holding.quantity and line.change < 0 else None
    if (quantity / lot).denominator != 1 or quantity * price > amount:
        raise Wrong(f"{line.quantity} of {line.asset} is no quantity for {line.amount}")
    if held is not None and quantity > held:
        raise Wrong(f"{line.quantity} of {line.asset} is sold, {holding.quantity} is there")
    if line.change < 0:
        possible = amount / price if held is None else min(amount / price, held)
        if quantity + lot <= possible:
            raise Wrong(f"less of {line.asset} is sold than could be")
    return quantity * price


# ── money ─────────────────────────────────────────────────────────────────────────


def _legs(user: str, fill: Fill, name: str, is_sale: bool, book: Book) -> list[Transfer]:  # noqa: FBT001
    """Return what an executed transaction moves: what the user gives first."""
    quantity = to_units(fill.quantity, book.assets[name].scale)
    amount = to_units(fill.amount, book.assets[fill.currency].scale)
    asset, cash = user_account(user, name), user_account(user, fill.currency)
    venue, till = f"{VENUE}:{name}", f"{VENUE}:{fill.currency}"
    if is_sale:
        return [Transfer(asset, venue, quantity), Transfer(till, cash, amount)]
    return [Transfer(cash, till, amount), Transfer(venue, asset, quantity)]


def _check_money(
    transfers: Sequence[Transfer], due: Sequence[Transfer], holder: str, book: Book
) -> None:
    """Compare what moved with what had to, in order; what was missing is owed, and then paid back."""
    given: list[Transfer] = []
    credited = {leg.credit_account for leg in due}
    owing = owed_account("")
    for transfer in transfers:
        debit, is_owed = transfer.debit_account, transfer.debit_account.startswith(owing)
        if is_owed:
            debit = debit.removeprefix(owing)
            account = book.accounts[debit]
            can_pay = account.available > (account.floor or 0) and debit not in credited
            if can_pay and not account.is_closed:
                raise Wrong(f"{debit} owes what it could pay")
        before = given[-1] if given else None
        if (
            is_owed
            and before is not None
            and (before.debit_account, before.credit_account) == (debit, transfer.credit_account)
            and before.amount < due[len(given) - 1].amount
        ):
            given[-1] = Transfer(debit, transfer.credit_account, before.amount + transfer.amount)
        elif len(given) < len(due):
            given.append(Transfer(debit, transfer.credit_account, transfer.amount))
        elif (
            transfer.credit_account != owed_account(debit)
            or is_owed
            or not debit.startswith(f"{holder}:")
            or debit not in credited
        ):
            raise Wrong(f"it moves {debit} to {transfer.credit_account}, which was not executed")
    if given != list(due):
        told = "; ".join(f"{one.debit_account} to {one.credit_account}" for one in given)
        raise Wrong(f"it moves {told or 'nothing'}, which is not what was executed")


_CODES = frozenset(reason.code for reason in Reason)

_CHECKS: dict[str, Callable[[PortfoliosLaw, Entry, Book], None]] = {
    CreatePortfolio.name: PortfoliosLaw.check_creation,
    ChangeTarget.name: PortfoliosLaw.check_target,
    SetPolicy.name: PortfoliosLaw.check_policy,
    Rebalance.name: PortfoliosLaw.check_update,
    ReplayUpdate.name: PortfoliosLaw.check_replay,
    QueueUpdate.name: PortfoliosLaw.check_queueing,
    TakeUpdate.name: PortfoliosLaw.check_taking,
    ExecuteTransactions.name: PortfoliosLaw.check_execution,
}

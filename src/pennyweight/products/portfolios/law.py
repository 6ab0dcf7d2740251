"""The law that `verify` holds the journal of portfolios to, without asking the rules again.

It keeps each portfolio as the entries so far make it, reckons anew what the next one
had to do, and compares: the records, the money and the answer. Of a run it is proven
that its weights follow from what was told, that sales and purchases are equal, that no
asset passes its target, and that no more and no less is traded than the policy wants. Of
users who do nothing only the bytes of their record are kept, of runs a few numbers.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from pennyweight.ledger.accounts import user_holder
from pennyweight.ledger.entries import Entry
from pennyweight.ledger.letters import LETTER
from pennyweight.ledger.money import parse
from pennyweight.ledger.records import Mark, Record
from pennyweight.ledger.refusals import Reason, Refused
from pennyweight.products.portfolios.execute import ExecuteTransactions, Execution, ExecutionAnswer
from pennyweight.products.portfolios.law_money import check_money, legs_of
from pennyweight.products.portfolios.law_said import (
    PROVIDER_SLACK,
    TARGET_SLACK,
    Book,
    Wrong,
    is_name,
    result_of,
    said_in,
    weights_told,
)
from pennyweight.products.portfolios.law_trades import check_lines, check_orders
from pennyweight.products.portfolios.letters import CloseUpdateLetter, ReplayUpdate, SetAsideUpdate
from pennyweight.products.portfolios.queue import (
    Queued,
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
    ASSETS_MAX,
    DECIMALS_MAX,
    EXECUTION,
    POLICY,
    PORTFOLIO,
    PRODUCT,
    QUEUE,
    UPDATE,
    Policy,
    Portfolio,
    QueuedAnswer,
    RunAnswer,
    policy_id,
    transaction_id,
)

_KINDS = frozenset({PORTFOLIO, POLICY, EXECUTION, UPDATE})
_LETTERS = frozenset({SetAsideUpdate.name, ReplayUpdate.name, CloseUpdateLetter.name})
_AHEAD = 60_000_000

_encoder = msgspec.json.Encoder()
_portfolio_decoder = msgspec.json.Decoder(Portfolio)
_run_decoder = msgspec.json.Decoder(RunAnswer)


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
        target = weights_told(command.allocation, TARGET_SLACK)
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
        target = weights_told(command.allocation, TARGET_SLACK)
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
        if not 0 < len(names) <= ASSETS_MAX or not all(map(is_name, names)):
            return
        try:
            scales = [parse(text)[1] for text in names.values()]
            weights_told(names, PROVIDER_SLACK)
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
        said = said_in(command)
        if (said.value or said.currency or said.holdings) and said.currency not in book.assets:
            raise Wrong(f"it is told in {said.currency!r}, which is no asset")
        if command.as_of is not None and command.as_of > book.time + _AHEAD:
            raise Wrong("it is as of more than a minute after its commit")
        result = result_of(command, said, known, arrived_at)
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
        check_lines(known, said, as_of, answer.lines)
        check_orders(said, answer.lines, book)
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
            for leg in legs_of(command.user, fill, *trades[fill.position - 1], book)
        ]
        check_money(entry.transfers, due, user_holder(command.user), book)
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

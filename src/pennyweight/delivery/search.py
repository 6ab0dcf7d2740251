"""What can be searched for: documents made of journal entries.

Every entry is a document of `entries`, under its sequence; but not one that only moves a
cursor, of which whoever follows the journal makes more than of anything else. What the book
keeps of portfolios, rebalance transactions, loans, withdrawals and payments are documents
under the ids that the faces show; `indices.py` has how each is indexed. Each carries the
sequence of the entry that it was made of as its version, so a document never becomes older,
in whatever order it is sent.

Amounts are decimal text, as everywhere; beside it stands a number for ranges (`amount.number`),
which is a double and rounded. So are percentages once they are indexed. The source of a
document, and the book, have the exact figures.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any

import msgspec

from pennyweight.delivery.http.wire import rfc3339
from pennyweight.delivery.indices import (
    ENTRIES,
    INDICES,
    LOANS,
    PAYMENTS,
    PORTFOLIOS,
    TRANSACTIONS,
    WITHDRAWALS,
)
from pennyweight.delivery.portfolios_shown import (
    SUPERSEDED,
    State,
    TransactionShown,
    executions_of,
    number,
    show_portfolio,
    shown_transactions,
)
from pennyweight.engine.engine import MoveCursor
from pennyweight.engine.port import BatchHeader, Committed
from pennyweight.ledger.accounts import holder_of, unescape_user_id
from pennyweight.ledger.entries import FORMAT, CorruptEntry, Opening, Transfer
from pennyweight.ledger.holds import Hold, HoldChange, HoldState
from pennyweight.ledger.money import format_amount
from pennyweight.ledger.records import Record
from pennyweight.links.search import ID_LENGTH_MAX, Document
from pennyweight.products import loans, payments, portfolios, withdrawals
from pennyweight.products.loans.shared import LOAN, Loan, read_loan
from pennyweight.products.loans.shared import SCALE as LOANS_SCALE
from pennyweight.products.payments import Pay, PayBatch, PaymentAnswer, PaymentsAnswer
from pennyweight.products.portfolios.execute import Execution
from pennyweight.products.portfolios.queue import TakenAnswer, TakeUpdate
from pennyweight.products.portfolios.rebalance import Rebalance
from pennyweight.products.portfolios.shared import (
    EXECUTION,
    LINES_MAX,
    PORTFOLIO,
    REPLAY,
    Portfolio,
    RunAnswer,
    Weights,
    read_portfolio,
    transaction_id,
)
from pennyweight.products.withdrawals.shared import withdrawal_id_of

MOMENT_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999; later ones cannot be written."""

_TRANSFER_TO_OWED = "owed:"
_STATES = {
    HoldState.OPEN: "open",
    HoldState.SETTLED: "settled",
    HoldState.VOIDED: "cancelled",
    HoldState.EXPIRED: "expired",
}


# ── the entry, as far as it is looked at ──────────────────────────────────────────


class _Record(msgspec.Struct, frozen=True, gc=False):
    kind: str
    id: str
    version: int
    body: msgspec.Raw
    holder: str = ""

    def whole(self) -> Record:
        """Return it as the product reads it."""
        return Record(self.kind, self.id, "", self.version, self.body, holder=self.holder)


class _Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    name: str


class _Entry(msgspec.Struct, frozen=True, gc=False):
    command: str
    product: str
    key: str = ""
    fields: msgspec.Raw = msgspec.Raw(b"{}")
    effective_at: int | None = None
    openings: list[Opening] = []
    closings: list[str] = []
    transfers: list[Transfer] = []
    holds: list[HoldChange] = []
    records: list[_Record] = []
    events: list[_Event] = []
    answer: msgspec.Raw = msgspec.Raw(b"null")


_entry_decoder = msgspec.json.Decoder(_Entry)
_payment_decoder = msgspec.json.Decoder(PaymentAnswer)
_payments_decoder = msgspec.json.Decoder(PaymentsAnswer)
_run_decoder = msgspec.json.Decoder(RunAnswer)
_taken_decoder = msgspec.json.Decoder(TakenAnswer)
_execution_decoder = msgspec.json.Decoder(Execution)
_encode = msgspec.json.Encoder().encode


# ── documents ─────────────────────────────────────────────────────────────────────


class _TransferDocument(msgspec.Struct, frozen=True, gc=False):
    debit_account: str
    credit_account: str
    asset: str
    amount: str


class _HoldDocument(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    verb: str
    id: int
    account: str
    asset: str
    amount: str
    remaining: str
    owner: str
    state: str
    reference: str = ""


class _EntryDocument(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """`fields` is what was asked and `answer` what was told, as the journal has them."""

    sequence: int
    book: str
    incarnation: str
    product: str
    command: str
    committed_at: str
    fields: msgspec.Raw
    answer: msgspec.Raw
    key: str = ""
    effective_at: str = ""
    users: list[str] = []
    accounts: list[str] = []
    transfers: list[_TransferDocument] = []
    holds: list[_HoldDocument] = []
    records: list[str] = []
    events: list[str] = []


class _PaymentDocument(msgspec.Struct, frozen=True, gc=False):
    payment_id: int
    currency_id: int
    asset: str
    amount: str
    buyer_account_id: int
    seller_account_id: int
    committed_at: str
    sequence: int


class _WithdrawalDocument(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    withdrawal_id: str
    user_id: str
    token: str
    requested_quantity: str
    remaining: str
    status: str
    sequence: int
    accepted_at: str = ""
    expires_at: str = ""
    ended_at: str = ""


class _LoanDocument(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    loan_id: str
    borrower_id: str
    status: str
    amount: str
    collateral: str
    outstanding_balance: str
    collateral_sold: str
    collateral_sold_value: str
    surplus: str
    returned: str
    slices: int
    is_warned: bool
    sequence: int
    applied_at: str = ""
    activated_at: str = ""
    liquidating_at: str = ""
    liquidated_at: str = ""


class _Share(msgspec.Struct, frozen=True, gc=False):
    asset: str
    percent: msgspec.Raw


class _PortfolioMore(msgspec.Struct, frozen=True, gc=False):
    """What goes with a portfolio as it is shown: its maps by asset as lists, which can be searched."""

    target_shares: list[_Share]
    current_shares: list[_Share]
    sequence: int


class _TransactionMore(msgspec.Struct, frozen=True, gc=False):
    """What goes with a transaction as it is shown."""

    run: int
    position: int
    sequence: int


_RUNS: Mapping[str, Callable[[bytes | msgspec.Raw], RunAnswer | None]] = {
    Rebalance.name: _run_decoder.decode,
    REPLAY: _run_decoder.decode,
    TakeUpdate.name: lambda answer: _taken_decoder.decode(answer).run,
}


class Documents:
    """Makes documents of entries.

    What it asks the store may be newer than the entry. Whenever documents are made, those
    that are left in the end are the same.
    """

    def __init__(
        self,
        scale_of: Callable[[str], int],
        store: Committed,
        wanted: Iterable[str] = (),
    ) -> None:
        """`scale_of` returns an asset's scale, `store` has the journal that entries are of.

        The latter is asked where a transaction is executed, or superseded: what it was stands
        in the entry of its run. `wanted` are the indices that documents are made for; none given: all.
        """
        self._scale_of = scale_of
        self._store = store
        self._wanted = frozenset(wanted) or frozenset(INDICES)
        self._header: BatchHeader | None = None
        self._at = ""

    def __call__(self, header: BatchHeader, sequence: int, body: bytes) -> list[Document]:
        """Return the documents of an entry, each id once. Raises CorruptEntry."""
        entry = _decoded(body)
        if entry.command == MoveCursor.name and entry.product == MoveCursor.product:
            return []
        if header is not self._header:
            self._header, self._at = header, rfc3339(header.committed_at)
        wanted = self._wanted
        found = []
        if ENTRIES in wanted:
            source = _encode(self._entry(header, sequence, entry))
            found.append(Document(ENTRIES, str(sequence), sequence, source))
        product = entry.product
        if product == payments.PRODUCT:
            if PAYMENTS in wanted:
                found += self._payments(sequence, entry)
        elif product == portfolios.PRODUCT:
            if PORTFOLIOS in wanted:
                found += _portfolios(sequence, entry)
            if TRANSACTIONS in wanted:
                found += self._transactions(sequence, entry)
        elif product == loans.PRODUCT and LOANS in wanted:
            found += self._loans(sequence, entry)
        if entry.holds and WITHDRAWALS in wanted:
            found += self._withdrawals(sequence, entry)
        return found

    # ── any entry ─────────────────────────────────────────────────────────────────

    def _entry(self, header: BatchHeader, sequence: int, entry: _Entry) -> _EntryDocument:
        """Return the document of an entry as such."""
        accounts: dict[str, None] = {}
        transfers = []
        scale_of = self._scale_of
        for opening in entry.openings:
            accounts[opening.id] = None
        for transfer in entry.transfers:
            debit, credit = transfer.debit_account, transfer.credit_account
            accounts[debit] = accounts[credit] = None
            asset = debit.rpartition(":")[2]
            amount = format_amount(transfer.amount, scale_of(asset))
            transfers.append(_TransferDocument(debit, credit, asset, amount))
        for change in entry.holds:
            accounts[change.hold.account] = None
        for account in entry.closings:
            accounts[account] = None
        users: dict[str, None] = {}
        for account in accounts:
            if account.startswith(("user:", "owed:user:")):
                users[_user_of(holder_of(account))] = None
        records = []
        for record in entry.records:
            records.append(f"{record.kind}/{record.id}")
            if record.holder.startswith("user:"):
                users[_user_of(record.holder)] = None
        return _EntryDocument(
            sequence,
            header.book,
            header.incarnation,
            entry.product,
            entry.command,
            self._at,
            entry.fields,
            entry.answer,
            entry.key,
            _moment(entry.effective_at),
            list(users),
            list(accounts),
            transfers,
            [self._hold(change) for change in entry.holds],
            records,
            [event.name for event in entry.events],
        )

    def _hold(self, change: HoldChange) -> _HoldDocument:
        hold = change.hold
        scale = self._scale_of(hold.asset)
        return _HoldDocument(
            change.verb,
            hold.id,
            hold.account,
            hold.asset,
            format_amount(hold.amount, scale),
            format_amount(hold.remaining, scale),
            hold.owner,
            hold.state.value,
            hold.reference,
        )

    # ── payments, withdrawals, loans ──────────────────────────────────────────────

    def _payments(self, sequence: int, entry: _Entry) -> Iterator[Document]:
        """Yield the payments that an entry made, one for each transfer but those to what is owed."""
        if entry.command == Pay.name:
            made = [_payment_decoder.decode(entry.answer)]
        elif entry.command == PayBatch.name:
            made = _payments_decoder.decode(entry.answer).payments
        else:
            return
        transfers = [
            transfer
            for transfer in entry.transfers
            if not transfer.credit_account.startswith(_TRANSFER_TO_OWED)
        ]
        for payment, transfer in zip(made, transfers, strict=True):
            document = _PaymentDocument(
                payment.id,
                payment.currency_id,
                transfer.debit_account.rpartition(":")[2],
                payment.amount,
                payment.buyer_account_id,
                payment.seller_account_id,
                self._at,
                sequence,
            )
            yield Document(PAYMENTS, str(payment.id), sequence, _encode(document))

    def _withdrawals(self, sequence: int, entry: _Entry) -> Iterator[Document]:
        """Yield the withdrawals whose holds an entry changed, each as the entry leaves it."""
        last = {
            change.hold.id: change.hold
            for change in entry.holds
            if change.hold.owner == withdrawals.PRODUCT
        }
        for hold in last.values():
            name = withdrawal_id_of(hold)
            document = _encode(self._withdrawal(name, hold, sequence))
            yield Document(WITHDRAWALS, id_of(name), sequence, document)

    def _withdrawal(self, name: str, hold: Hold, sequence: int) -> _WithdrawalDocument:
        scale = self._scale_of(hold.asset)
        return _WithdrawalDocument(
            name,
            _user_of(holder_of(hold.account)),
            hold.asset,
            format_amount(hold.amount, scale),
            format_amount(hold.remaining, scale),
            _STATES[hold.state],
            sequence,
            _moment(hold.placed_at),
            _moment(hold.expires_at),
            "" if hold.state is HoldState.OPEN else self._at,
        )

    def _loans(self, sequence: int, entry: _Entry) -> Iterator[Document]:
        """Yield the loans that an entry wrote."""
        for record in entry.records:
            if record.kind == LOAN:
                source = _encode(_loan(record.id, read_loan(record.whole()), sequence))
                yield Document(LOANS, id_of(record.id), sequence, source)

    # ── portfolios ────────────────────────────────────────────────────────────────

    def _transactions(self, sequence: int, entry: _Entry) -> Iterator[Document]:
        """Yield the rebalance transactions that an entry made, executed or superseded."""
        for record in entry.records:
            if record.kind == EXECUTION:
                yield from self._executed(_execution_decoder.decode(record.body), sequence)
        answer = _answer_in(entry)
        if answer is None or answer.result != "rebalanced":
            return  # nothing new: a repeat names the transactions of the run before
        for position, shown in enumerate(shown_transactions(answer), 1):
            yield _transaction(shown, answer.run, position, sequence)
        if answer.previous == answer.trades_before:
            yield from self._superseded(entry, answer.previous, sequence)

    def _superseded(self, entry: _Entry, run: int, sequence: int) -> Iterator[Document]:
        """Yield the transactions of the run before a new one, but for those that are executed.

        None is where nothing has written the portfolio in between. One that is executed after
        the new run is that in the end, whenever this is asked.
        """
        before = self._before(run)
        if before is None:
            return
        is_next = _version_in(entry) == _version_in(before) + 1
        executed = {} if is_next else executions_of(run, self._store)
        left = [one for one in range(1, LINES_MAX + 1) if one not in executed]
        yield from _ended(before, run, left, SUPERSEDED, sequence)

    def _executed(self, execution: Execution, sequence: int) -> Iterator[Document]:
        """Yield the transaction that was executed."""
        before = self._before(execution.run)
        if before is not None:
            state = State("executed", execution)
            yield from _ended(before, execution.run, (execution.fill.position,), state, sequence)

    def _before(self, sequence: int) -> _Entry | None:
        """Return an earlier entry. Raises CorruptEntry."""
        body = self._store.entry(sequence) if sequence else None
        return None if body is None else _decoded(body)


def _decoded(body: bytes) -> _Entry:
    """Read an entry as far as it is looked at. Raises CorruptEntry."""
    if body[:1] != FORMAT:
        raise CorruptEntry(f"unknown format byte {body[:1]!r}")
    try:
        return _entry_decoder.decode(memoryview(body)[1:])
    except msgspec.DecodeError as error:
        raise CorruptEntry(str(error)) from error


def _answer_in(entry: _Entry) -> RunAnswer | None:
    """Return what an entry of an update answered, None for any other entry."""
    read = _RUNS.get(entry.command)
    return None if read is None else read(entry.answer)


def _version_in(entry: _Entry) -> int:
    """Return the version of the portfolio that an entry wrote, 0 if it wrote none."""
    return next((record.version for record in entry.records if record.kind == PORTFOLIO), 0)


def _ended(
    entry: _Entry, run: int, positions: Iterable[int], state: State, sequence: int
) -> Iterator[Document]:
    """Yield transactions that the entry of a run made, all of each, in their new state."""
    answer = _answer_in(entry)
    if answer is None or answer.run != run:
        return
    shown = shown_transactions(answer, lambda _: state)
    for position in positions:
        if 0 < position <= len(shown):
            yield _transaction(shown[position - 1], run, position, sequence)


def _transaction(shown: TransactionShown, run: int, position: int, sequence: int) -> Document:
    source = _joined(shown, _TransactionMore(run, position, sequence))
    return Document(TRANSACTIONS, transaction_id(run, position), sequence, source)


def _portfolios(sequence: int, entry: _Entry) -> Iterator[Document]:
    """Yield the portfolios that an entry wrote."""
    for record in entry.records:
        if record.kind == PORTFOLIO:
            yield _portfolio(record.id, read_portfolio(record.whole()), sequence)


def _portfolio(user: str, portfolio: Portfolio, sequence: int) -> Document:
    more = _PortfolioMore(_shares(portfolio.target), _shares(portfolio.current), sequence)
    source = _joined(show_portfolio(user, portfolio), more)
    return Document(PORTFOLIOS, id_of(user), sequence, source)


def _joined(shown: Any, more: Any) -> bytes:
    """Write two structs as one object; neither is empty."""
    return b"%b,%b" % (_encode(shown)[:-1], _encode(more)[1:])


def _loan(loan_id: str, loan: Loan, sequence: int) -> _LoanDocument:
    return _LoanDocument(
        loan_id,
        loan.borrower,
        loan.status,
        _loan_text(loan.amount),
        _loan_text(loan.collateral),
        _loan_text(loan.balance),
        _loan_text(loan.sold),
        _loan_text(loan.proceeds),
        _loan_text(loan.surplus),
        _loan_text(loan.returned),
        loan.slices,
        loan.is_warned,
        sequence,
        _moment(loan.applied_at),
        _moment(loan.activated_at),
        _moment(loan.liquidating_at),
        _moment(loan.liquidated_at),
    )


def id_of(name: str) -> str:
    """Return the id of what is called so: its name, or a digest where that is too long for an id."""
    if len(name) <= ID_LENGTH_MAX // 4 or len(name.encode()) <= ID_LENGTH_MAX:
        return name
    return f"sha256:{sha256(name.encode()).hexdigest()}"


def _user_of(holder: str) -> str:
    return unescape_user_id(holder.partition(":")[2])


def _moment(moment: int | None) -> str:
    """Write a moment, "" for none and for one that no calendar has."""
    return rfc3339(moment) if moment and 0 < moment <= MOMENT_MAX else ""


def _loan_text(units: int) -> str:
    return format_amount(units, LOANS_SCALE)


def _shares(weights: Weights) -> list[_Share]:
    return [_Share(asset, number(weight)) for asset, weight in weights.items()]

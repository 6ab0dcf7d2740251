'''Scenarios: a test as a small ledger. Given balances, when commands, then receipts and balances.

    play("""
        given
            user:1:USD      100
            user:2:USD
        when
            transfer user:1:USD user:2:USD USD 30       -> done amount=30
            transfer user:1:USD user:2:USD USD 80       -> insufficient_funds available=70
            [k1] place_hold user:2:USD USD 10           -> done id=1
            wait 60
            [k1] place_hold user:2:USD USD 10           -> replayed id=1
        then
            user:1:USD      70
            user:2:USD      30 held 10
            hold 1          open remaining 10
    """)

Sections may follow one another in any order and number; `#` begins a comment.

*given*: an account and its balance, opened with the usual floor and paid from `world`;
`floor -50` or `floor none` for another one. A bare account has a balance of zero.

*when*: `[key] command arguments -> expectation`. A command of a product is written
`product.command` (`wallet.bet`), one of the ledger by its name alone. Arguments stand in
the order of the command's fields or as `field=value`; quotes as in a shell, `none` for no
value, JSON where a value begins with `[` or `{`. Lines that begin with `|` are the items
of the command's list (`transfers`), their fields in order. A line that begins with `&`
goes into the same batch as the line before it. `wait N` lets N seconds pass.

The expectation is `done`, `replayed`, the code of a refusal, or `failure`, then fields of
the answer or figures of the refusal as `name=value` (`accounts.0` looks inside). Without
an expectation the command must be done.

*then*: an account with its posted balance, and where it matters `held N`, `owed N`,
`available N`, `floor N`, `closed`; `-` for an account that is not there. A hold with its
state and `remaining N`.

After every batch the stage itself checks what must hold always: debits and credits are
equal in every asset, no account is below its floor, what is held is the sum of the open
holds, a command that was not done changed nothing, a replay repeats its first answer.
'''

import importlib
import pkgutil
import shlex
import typing
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec

import pennyweight.products
from pennyweight.engine.engine import Abandon, Submission
from pennyweight.engine.port import Head, Store
from pennyweight.engine.receipts import Failure, Outcome, Receipt, Refusal
from pennyweight.ledger.accounts import Account
from pennyweight.ledger.assets import BUILT_IN
from pennyweight.ledger.commands import Command
from pennyweight.ledger.holds import Hold, HoldState
from pennyweight.ledger.money import format_amount, to_units
from pennyweight.products.general import OpenAccount, Transfer
from pennyweight.runtime.inline import InlineBook
from pennyweight.runtime.opening import open_engine
from pennyweight.stores.memory import MemoryStore

START = 1_700_000_000_000_000
"""When every stage begins, microseconds since 1970."""

SCALES = {asset.name: asset.scale for asset in BUILT_IN}
_encoder = msgspec.json.Encoder()


def _known_commands() -> dict[str, type[Command]]:
    for module in pkgutil.walk_packages(pennyweight.products.__path__, "pennyweight.products."):
        importlib.import_module(module.name)
    known: dict[str, type[Command]] = {"abandon": Abandon}
    for kind in _descendants(Command):
        if kind.__module__.startswith("pennyweight.products.") and hasattr(kind, "name"):
            is_own = kind.product == "ledger"
            known[kind.name if is_own else f"{kind.product}.{kind.name}"] = kind
    return known


def _descendants(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from _descendants(child)


COMMANDS = _known_commands()


def snapshot(store: Store) -> list[bytes]:
    """Return every row of the store and its head as bytes, sorted."""
    rows = [b"%s %s" % (kind.encode(), _encoder.encode(row)) for kind, row in store.rows()]
    return [_encoder.encode(store.head()), *sorted(rows)]


def check_invariants(store: Store) -> None:
    """Check on the store's rows what must hold at every moment of every book."""
    accounts: list[Account] = [row for kind, row in store.rows() if kind == "account"]
    holds: list[Hold] = [row for kind, row in store.rows() if kind == "hold"]
    posted: Counter[str] = Counter()
    held: Counter[str] = Counter()
    open_holds: Counter[str] = Counter()
    for hold in holds:
        assert (hold.state is HoldState.OPEN) == (hold.remaining > 0), hold
        held[hold.account] += hold.remaining
        open_holds[hold.account] += hold.state is HoldState.OPEN
    for account in accounts:
        posted[account.asset] += account.posted
        assert account.floor is None or account.available >= account.floor, account
        assert account.held == held[account.id], account
        assert account.open_holds == open_holds[account.id], account
        assert account.owed >= 0, account
        if account.owed:
            owing = store.account(f"owed:{account.id}")
            assert owing is not None, account
            assert owing.posted == -account.owed, account
    assert not any(posted.values()), f"debits and credits differ: {posted}"


def new_store() -> Store:
    """Return the empty book of a stage that is given none."""
    return MemoryStore(Head(book="main", incarnation="first"))


class Stage:
    """A book on which scenarios are played. In memory, unless a store is given."""

    def __init__(self, store: Store | None = None, **options: Any) -> None:
        """`options` go to `open_engine`."""
        self.store = store or new_store()
        self.now = START
        self.answers: dict[tuple[str, str], bytes] = {}
        engine = open_engine(self.store, now=self.now, **options)
        self.book = InlineBook(engine, self.store, lambda: self.now)

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now += int(seconds * 1_000_000)

    def execute(self, command: Command, *, key: str = "", **options: Any) -> Outcome:
        """Execute one command. See `execute_many`."""
        return self.execute_many([Submission(command, key=key, **options)])[0]

    def execute_many(self, submissions: list[Submission]) -> list[Outcome]:
        """Execute commands as one batch, and check what must hold always."""
        before = snapshot(self.store)
        self.now += 1
        outcomes = self.book.execute_many(submissions)
        is_changed = any(isinstance(o, Receipt) and not o.is_replayed for o in outcomes)
        assert is_changed == (snapshot(self.store) != before), outcomes
        for submission, outcome in zip(submissions, outcomes, strict=True):
            if isinstance(outcome, Receipt) and submission.key:
                answer = _encoder.encode([outcome.sequence, outcome.answer])
                scope = (submission.scope, submission.key)
                assert self.answers.setdefault(scope, answer) == answer, outcome
        check_invariants(self.store)
        return outcomes

    def fund(self, account_id: str, amount: str = "0", *, floor: str | None = None) -> None:
        """Open an account of a holder and pay this amount into it from `world`."""
        asset = account_id.rpartition(":")[2]
        if self.store.account(account_id) is None and not account_id.startswith(
            ("world:", "house:")
        ):
            self._must(OpenAccount(account_id, floor))
        if amount not in {"0", ""}:
            self._must(Transfer(f"world:{asset}", account_id, asset, amount))

    def _must(self, command: Command) -> None:
        outcome = self.execute(command)
        assert isinstance(outcome, Receipt), outcome

    def posted(self, account_id: str) -> str:
        """Return what an account has posted, as text; "-" if it is not there."""
        account = self.store.account(account_id)
        return "-" if account is None else format_amount(account.posted, SCALES[account.asset])

    def play(self, text: str) -> "Stage":
        """Play a scenario; the module's docstring is its grammar."""
        _Player(self).play(text)
        return self


def play(text: str, **options: Any) -> Stage:
    """Play a scenario on a fresh stage and return the stage."""
    return Stage(**options).play(text)


class _Step(msgspec.Struct):
    """A line of *when*: what is submitted, and what must come of it."""

    line: str
    submission: Submission
    expected: list[str]


class _Player:
    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.waiting: list[list[str]] = []

    def play(self, text: str) -> None:
        section = ""
        for raw in text.splitlines():
            line = raw.partition("#")[0].strip()
            if line in {"given", "when", "then"}:
                self.flush()
                section = line
            elif line:
                assert section, f"outside of given, when and then: {line}"
                getattr(self, f"_{section}")(line)
        self.flush()

    def flush(self) -> None:
        """Execute the batch that was being read."""
        if not self.waiting:
            return
        steps = [_step(lines) for lines in self.waiting]
        self.waiting = []
        outcomes = self.stage.execute_many([step.submission for step in steps])
        for step, outcome in zip(steps, outcomes, strict=True):
            _check_outcome(step, outcome)

    def _given(self, line: str) -> None:
        account, *words = line.split()
        amount = words.pop(0) if len(words) % 2 else "0"
        options = dict(zip(words[::2], words[1::2], strict=True))
        floor = options.pop("floor", None)
        assert not options, line
        self.stage.fund(account, amount, floor=floor)

    def _when(self, line: str) -> None:
        if line.startswith("|"):
            self.waiting[-1].append(line[1:])
            return
        if line.startswith("&"):
            line = line[1:].strip()
        else:
            self.flush()
        if line.startswith("wait "):
            self.stage.wait(float(line[5:]))
        else:
            self.waiting.append([line])

    def _then(self, line: str) -> None:
        name, *words = line.split()
        if name == "hold":
            self._check_hold(line, words)
            return
        account = self.stage.store.account(name)
        if words == ["-"]:
            assert account is None, line
            return
        assert account is not None, f"{line}: there is no such account"
        scale = SCALES[account.asset]
        if words and words[0] not in {"held", "owed", "available", "floor", "closed"}:
            words = ["posted", *words]
        while words:
            figure = words.pop(0)
            if figure == "closed":
                assert account.is_closed, line
                continue
            units = getattr(account, figure)
            shown = "none" if units is None else format_amount(units, scale)
            assert shown == words.pop(0), f"{line}: {figure} is {shown}"

    def _check_hold(self, line: str, words: list[str]) -> None:
        hold = self.stage.store.hold(int(words[0]))
        assert hold is not None, f"{line}: there is no such hold"
        assert hold.state.value == words[1], f"{line}: {hold}"
        if len(words) > 2:
            assert words[2] == "remaining", line
            assert hold.remaining == to_units(words[3], SCALES[hold.asset]), f"{line}: {hold}"


def _step(lines: list[str]) -> _Step:
    """Read a line of *when*, with its items."""
    text, _, expectation = lines[0].partition("->")
    key = ""
    if text.startswith("["):
        key, _, text = text[1:].partition("]")
    name, *words = shlex.split(text)
    kind = COMMANDS[name]
    values = _fields(kind, words)
    items = [line.partition("->") for line in lines[1:]]
    if items:
        listed = next(field for field in kind.__struct_fields__ if field not in values)
        hints = typing.get_type_hints(kind)[listed]
        item_type = typing.get_args(hints)[0]
        values[listed] = tuple(_item(item_type, shlex.split(item)) for item, _, _ in items)
        expectation = expectation or "".join(last for _, _, last in items)
    command = kind(**values)
    return _Step(lines[0], Submission(command, key=key), expectation.split() or ["done"])


def _item(item_type: Any, words: list[str]) -> Any:
    if isinstance(item_type, type) and issubclass(item_type, msgspec.Struct):
        return item_type(**_fields(item_type, words))
    return msgspec.convert(words, item_type, strict=False)


def _fields(kind: type[msgspec.Struct], words: list[str]) -> dict[str, Any]:
    """Read arguments: in the order of the fields, or by name."""
    hints = typing.get_type_hints(kind)
    names = iter(kind.__struct_fields__)
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in kind.__struct_fields__:
            name, text = next(names), word
        values[name] = _value(text, hints[name])
    return values


def _value(text: str, hint: Any) -> Any:
    if text == "none":
        return None
    if text.startswith(("[", "{")):
        return msgspec.convert(msgspec.json.decode(text), hint, strict=False)
    return msgspec.convert(text, hint, strict=False)


def _check_outcome(step: _Step, outcome: Outcome) -> None:
    expected, *figures = step.expected
    told: Any
    match outcome:
        case Receipt():
            code, told = "replayed" if outcome.is_replayed else "done", outcome.answer
        case Refusal():
            code, told = outcome.reason.code, outcome.figures
        case Failure():
            code, told = "failure", {"cause": str(outcome.cause)}
        case _:
            code, told = "unknown", {}
    assert code == expected, f"{step.line}\n    came out as {outcome}"
    told = msgspec.to_builtins(told)
    for figure in figures:
        path, _, value = figure.partition("=")
        found = told
        for name in path.split("."):
            found = found[int(name)] if isinstance(found, list) else found[name]
        shown = found if isinstance(found, str) else _encoder.encode(found).decode()
        assert shown == value, f"{step.line}\n    {path} is {shown}"

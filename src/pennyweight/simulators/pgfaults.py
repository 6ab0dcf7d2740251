"""A proxy between engine and PostgreSQL that misbehaves as it is told.

It passes everything on until a rule matches a statement, then does what the rule says. Where the
server is to refuse a statement, the proxy sends it one that it must refuse, and changes the words
of the refusal: so the transaction, the prepared statements and the order of answers are in every
case what a client may believe.
"""

import asyncio
import contextlib
import random
import re
import struct
import threading
from collections import Counter, deque
from collections.abc import Mapping
from enum import StrEnum
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlsplit

from pennyweight.simulators import pgwire
from pennyweight.simulators.looping import LoopThread
from pennyweight.simulators.pgwire import Message

_READ = 65_536
_CONNECT_SECONDS = 10.0
_PIECES_A_SECOND = 50
_ENDS = frozenset("CIs")  # command complete, empty query, portal suspended


class Fault(StrEnum):
    """What can go wrong with a statement."""

    CUT_BEFORE = "cut_before"
    """The connection is cut and the statement never arrives."""
    CUT_INSIDE_MESSAGE = "cut_inside_message"
    """Half of the statement's message arrives."""
    CUT_BEFORE_COMMIT = "cut_before_commit"
    """The statement was carried out, its transaction not committed, when the connection is cut."""
    CUT_AT_ONCE = "cut_at_once"
    """The statement arrives and is carried out; the client loses its connection meanwhile."""
    CUT_UNHEARD = "cut_unheard"
    """The server answered (so it committed); the answer is lost with the connection."""
    CUT_INSIDE_ANSWER = "cut_inside_answer"
    """Half of the answer comes back."""
    CUT_HEARD = "cut_heard"
    """The whole answer comes back, and right behind it the connection's end."""
    HOLE_BEFORE = "hole_before"
    """From this statement on the connection is open and carries nothing."""
    HOLE_AFTER = "hole_after"
    """The statement is carried out; no answer comes, and the connection stays open."""
    ERROR = "error"
    """The server refuses the statement with the rule's SQLSTATE."""
    ERROR_AT_COMMIT = "error_at_commit"
    """The statement succeeds; committing it fails with the rule's SQLSTATE."""
    WARN = "warn"
    """A warning (01000, a replica did not confirm) comes before the statement's completion."""
    WARN_AT_COMMIT = "warn_at_commit"
    """The same after it, where PostgreSQL says it of a statement that commits by itself."""
    DELAY = "delay"
    """The statement arrives some seconds later."""
    DELAY_ANSWER = "delay_answer"
    """The answer comes back some seconds later."""


_OF_ANSWERS = frozenset(
    {
        Fault.CUT_UNHEARD,
        Fault.CUT_INSIDE_ANSWER,
        Fault.CUT_HEARD,
        Fault.HOLE_AFTER,
        Fault.DELAY_ANSWER,
    }
)
"""Faults that happen when the whole answer of a statement is there."""

_OF_MESSAGES = frozenset(
    {
        Fault.CUT_BEFORE,
        Fault.CUT_INSIDE_MESSAGE,
        Fault.HOLE_BEFORE,
        Fault.ERROR,
        Fault.DELAY,
    }
)
"""Faults that any message of a client can have; the others are of statements that run."""


class Rule:
    """When a fault happens: at messages of these kinds, about statements that match.

    `matching` is a regular expression, searched for without regard to case. The first `skip`
    matches pass; then it happens `times` times (None: always), each with the given chance.
    """

    def __init__(
        self,
        fault: Fault,
        matching: str = "",
        *,
        kinds: str = "QE",
        skip: int = 0,
        times: int | None = 1,
        chance: float = 1.0,
        sqlstate: str = "40001",
        seconds: float = 0.1,
    ) -> None:
        """`kinds` are the letters of the wire. Raises ValueError for a fault they cannot have."""
        if not set(kinds) <= set("QE" if fault not in _OF_MESSAGES else "QEPBDS"):
            raise ValueError(f"{fault} cannot happen at {kinds}")
        self.fault, self.sqlstate, self.seconds = fault, sqlstate, seconds
        self.happened = threading.Event()
        """Set when it happened for the first time."""
        self._matching = re.compile(matching, re.IGNORECASE)
        self._kinds, self._skip, self._times, self._chance = kinds, skip, times, chance

    def applies(self, message: Message, text: str, draw: random.Random) -> bool:
        """Say whether it happens now, and count it if so."""
        if message.kind not in self._kinds or self._times == 0 or not self._matching.search(text):
            return False
        if self._skip:
            self._skip -= 1
            return False
        if self._chance < 1 and draw.random() >= self._chance:
            return False
        if self._times is not None:
            self._times -= 1
        self.happened.set()
        return True


class FaultProxy:
    """Listens in a thread, in front of one server; leaving the context closes it.

    Any thread may change its state at any time. What is set here holds for all connections;
    a connection that swallowed anything is beyond help and swallows on until it is cut.
    """

    def __init__(self, url: str, *, seed: int = 0) -> None:
        """`url` is the server's; the proxy's own differs in its address only."""
        self.latency_seconds = 0.0
        """How long everything takes, each way."""
        self.bytes_per_second: int | None = None
        """How much goes through a second, for each connection and each way."""
        self.is_swallowing_requests = False
        """Whether nothing goes to the server any more, new connections included."""
        self.is_swallowing_answers = False
        """Whether nothing comes back any more."""
        self.startup_sqlstate = ""
        """With what new connections are refused after they were accepted (53300, 57P03)."""
        self.happened: Counter[Fault] = Counter()
        self.statements = 0
        """How many were seen."""
        self.connections_made = 0
        self.failures: list[Exception] = []
        """What went wrong here that should not have."""
        parts = urlsplit(url)
        self._server = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._rules: list[Rule] = []
        self._draw = random.Random(seed)
        self._lock = threading.Lock()
        self._listener: asyncio.Server | None = None
        self._open: dict[_Connection, asyncio.Future[None]] = {}
        self._thread = LoopThread("fault proxy")
        self.port = self._thread.do(self._listen(0))
        user = parts.netloc.rpartition("@")
        self.url = parts._replace(netloc=f"{user[0]}{user[1]}127.0.0.1:{self.port}").geturl()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._open)

    def add(self, rule: Rule) -> Rule:
        """Let this happen from now on; the rules are asked in the order they came."""
        with self._lock:
            self._rules.append(rule)
        return rule

    def misbehave(self, chances: Mapping[Fault, float], matching: str = "") -> None:
        """Let any of these happen at any matching statement, each with its chance."""
        for fault, chance in chances.items():
            self.add(Rule(fault, matching, chance=chance, times=None))

    def behave(self) -> None:
        """Let nothing happen any more; new connections are taken."""
        with self._lock:
            self._rules.clear()
        self.latency_seconds, self.bytes_per_second = 0.0, None
        self.is_swallowing_requests = self.is_swallowing_answers = False
        self.startup_sqlstate = ""
        self.accept()

    def cut(self) -> None:
        """Cut all connections."""
        self._thread.do(self._cut())

    def refuse(self) -> None:
        """Take no new connections: whoever tries finds nobody there."""
        self._thread.do(self._unlisten())

    def accept(self) -> None:
        """Take new connections again."""
        self._thread.do(self._listen(self.port))

    def close(self) -> None:
        """Cut everything and end. Raises ExceptionGroup when the proxy itself failed."""
        if not self._thread.has_ended:
            self.refuse()
            self.cut()
            self._thread.close()
            if self.failures:
                raise ExceptionGroup("the proxy failed", self.failures)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def rule_for(self, message: Message, text: str) -> Rule | None:
        """Return what is to happen at a message, if anything; count the statements."""
        with self._lock:
            self.statements += message.kind in "QE"
            for rule in self._rules:
                if rule.applies(message, text, self._draw):
                    self.happened[rule.fault] += 1
                    return rule
        return None

    async def _listen(self, port: int) -> int:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._met, "127.0.0.1", port)
        return int(self._listener.sockets[0].getsockname()[1])

    async def _unlisten(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            await asyncio.sleep(0)

    async def _met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections_made += 1
        connection = _Connection(self, self._server, _End(self, reader, writer))
        self._open[connection] = asyncio.get_running_loop().create_future()
        try:
            await connection.run()
        finally:
            self._open.pop(connection).set_result(None)

    async def _cut(self) -> None:
        ends = list(self._open.values())
        for connection in self._open:
            connection.abort()
        await asyncio.gather(*ends)


class _Cut(Exception):
    """The connection is at its end, on both sides."""


class _End:
    """One end of a connection: what is to be written there goes as slowly as the proxy says."""

    def __init__(
        self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy, self._reader, self._writer = proxy, reader, writer
        self.out = bytearray()
        self.is_hole = False

    async def first_packet(self) -> tuple[int, bytes]:
        """Read what a connection begins with: a version or a request in its place."""
        head = await self._reader.readexactly(8)
        length, code = struct.unpack("!II", head)
        return code, head + await self._reader.readexactly(length - 8)

    async def read(self) -> bytes:
        """Return what came. Raises _Cut at the end."""
        data = await self._reader.read(_READ)
        if not data:
            raise _Cut
        return data

    async def flush(self) -> None:
        """Write what has been gathered."""
        data, self.out = bytes(self.out), bytearray()
        if not data:
            return
        if self._proxy.latency_seconds:
            await asyncio.sleep(self._proxy.latency_seconds)
        while data:
            rate = self._proxy.bytes_per_second
            size = max(1, rate // _PIECES_A_SECOND) if rate else len(data)
            self._writer.write(data[:size])
            await self._writer.drain()
            if rate:
                await asyncio.sleep(min(size, len(data)) / rate)
            data = data[size:]

    def close(self) -> None:
        """Hang up when all is written."""
        self._writer.close()

    def abort(self) -> None:
        """Hang up at once."""
        self._writer.transport.abort()


class _Awaited(NamedTuple):
    """A part of the answers that is still to come.

    Of a statement ("E"), of its transaction's end ("S"), or of both together ("Q").
    """

    kind: str
    rule: Rule | None = None


class _Connection:
    """A client's connection and the server's that belongs to it."""

    def __init__(self, proxy: FaultProxy, address: tuple[str, int], client: _End) -> None:
        self._proxy, self._address = proxy, address
        self._client = client
        self._server = client  # until there is one
        self._statements = pgwire.Statements()
        self._awaited: deque[_Awaited] = deque()
        self._held: bytearray | None = None
        """The answer so far of a statement whose answer has a fault."""
        self._held_for: Rule | None = None
        self._is_warning_due = False
        self._is_leaving = False
        """Whether the client is lost as soon as the statement can be carried out."""
        self._has_left = False

    async def run(self) -> None:
        """Pass on what comes, until either side ends or a rule ends both."""
        with contextlib.suppress(_Cut, OSError, asyncio.IncompleteReadError):
            await self._begin()
            tasks = [asyncio.create_task(work()) for work in (self._requests, self._answers)]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
            usual = (_Cut, OSError)
            self._proxy.failures += [
                result
                for result in results
                if isinstance(result, Exception) and not isinstance(result, usual)
            ]
        self._client.close()
        self._server.close()

    def abort(self) -> None:
        """Hang up on both sides."""
        self._client.abort()
        self._server.abort()

    async def _begin(self) -> None:
        """Go through the start, up to the client's first packet with a version."""
        code, packet = await self._client.first_packet()
        while code in (pgwire.SSL_REQUEST, pgwire.GSS_REQUEST):
            self._client.out += b"N"
            await self._client.flush()
            code, packet = await self._client.first_packet()
        if self._proxy.startup_sqlstate and code != pgwire.CANCEL_REQUEST:
            self._client.out += pgwire.report(self._proxy.startup_sqlstate, "FATAL")
            await self._client.flush()
            raise _Cut
        async with asyncio.timeout(_CONNECT_SECONDS):
            streams = await asyncio.open_connection(*self._address)
        self._server = _End(self._proxy, *streams)
        self._awaited.append(_Awaited("S"))
        self._server.is_hole = self._proxy.is_swallowing_requests
        if not self._server.is_hole:
            self._server.out += packet
            await self._server.flush()

    # ── to the server ─────────────────────────────────────────────────────────────

    async def _requests(self) -> None:
        framing = pgwire.Framing()
        while True:
            data = await self._client.read()
            if self._proxy.is_swallowing_requests:
                self._server.is_hole = True
            for message in framing.feed(data):
                if self._server.is_hole:
                    break
                await self._request(message)
            await self._server.flush()

    async def _request(self, message: Message) -> None:
        text = self._statements.text(message)
        rule = self._proxy.rule_for(message, text)
        if rule is None:
            self._pass(message)
        elif rule.fault in _OF_MESSAGES:
            await self._spoil(message, text, rule)
        else:
            await self._run_with(message, text, rule)
        if self._is_leaving and message.kind in "SQ":
            await self._server.flush()
            self._has_left = True
            self._client.abort()
            await asyncio.Event().wait()  # the answers' end is the connection's

    async def _spoil(self, message: Message, text: str, rule: Rule) -> None:
        """Do to a message what can be done to any."""
        if rule.fault is Fault.ERROR:
            await self._refuse(message, text, rule)
            return
        if rule.fault is Fault.CUT_INSIDE_MESSAGE:
            self._server.out += message.data[: len(message.data) // 2]
        await self._server.flush()
        if rule.fault is Fault.DELAY:
            await asyncio.sleep(rule.seconds)
            self._pass(message)
        elif rule.fault is Fault.HOLE_BEFORE:
            self._server.is_hole = self._client.is_hole = True
        else:
            raise _Cut

    async def _refuse(self, message: Message, text: str, rule: Rule) -> None:
        """Let the server refuse something in a message's place."""
        if rule.sqlstate in pgwire.FATAL:
            self._client.out += pgwire.report(rule.sqlstate, "FATAL")
            await self._client.flush()
            raise _Cut
        if message.kind != "Q":
            self._pass(Message("E", pgwire.POISONED_EXECUTE), rule)
            if message.kind == "S":
                self._pass(message)
        elif re.match(r"\s*(commit|end)\b", text, re.IGNORECASE):
            self._pass(Message("Q", pgwire.ROLLBACK), rule)  # what failed to commit is gone
        else:
            self._pass(Message("Q", pgwire.POISONED_QUERY), rule)

    async def _run_with(self, message: Message, text: str, rule: Rule) -> None:
        """Pass on a statement, with a fault of those that come later."""
        if rule.fault is Fault.ERROR_AT_COMMIT:
            if message.kind == "E":
                self._pass(message)
            await self._refuse(message, text, rule)
        elif rule.fault is Fault.CUT_BEFORE_COMMIT and message.kind == "Q":
            await self._server.flush()  # nothing to be done between the statement and its commit
            raise _Cut
        elif rule.fault is Fault.CUT_BEFORE_COMMIT:
            self._pass(message, rule)
            self._server.out += pgwire.FLUSH
            await self._server.flush()
            await asyncio.Event().wait()  # its completion is the connection's end
        else:
            self._is_leaving = rule.fault is Fault.CUT_AT_ONCE
            self._pass(message, rule)

    def _pass(self, message: Message, rule: Rule | None = None) -> None:
        if message.kind in "EQS":
            self._awaited.append(_Awaited(message.kind, rule))
        elif message.kind == "F":
            self._awaited.append(_Awaited("Q"))
        self._server.out += message.data

    # ── back to the client ────────────────────────────────────────────────────────

    async def _answers(self) -> None:
        framing = pgwire.Framing()
        while True:
            data = await self._server.read()
            if self._proxy.is_swallowing_answers:
                self._client.is_hole = True
            for message in framing.feed(data):
                await self._answer(message)
            if self._has_left and not self._awaited:
                raise _Cut
            if self._client.is_hole or self._has_left:
                self._client.out.clear()
            await self._client.flush()

    async def _answer(self, message: Message) -> None:
        """Pass on a message, or hold it back until the whole answer is there."""
        rule = self._awaited[0].rule if self._awaited else None
        if self._held is None and rule and rule.fault in _OF_ANSWERS:
            self._held, self._held_for = bytearray(), rule
        data = self._changed(message)
        if self._held is None or self._held_for is None:
            self._client.out += data
            return
        self._held += data
        if message.kind == "Z":
            held, self._held = bytes(self._held), None
            await self._let_go(held, self._held_for)

    async def _let_go(self, held: bytes, rule: Rule) -> None:
        """Do to a whole answer what its rule says."""
        await self._client.flush()
        if rule.fault is Fault.HOLE_AFTER:
            self._server.is_hole = self._client.is_hole = True
            return
        if rule.fault is Fault.DELAY_ANSWER:
            await asyncio.sleep(rule.seconds)
            self._client.out += held
            return
        if rule.fault is Fault.CUT_INSIDE_ANSWER:
            self._client.out += held[: len(held) // 2]
        elif rule.fault is Fault.CUT_HEARD:
            self._client.out += held
        await self._client.flush()
        raise _Cut

    def _changed(self, message: Message) -> bytes:
        """Return what becomes of one message; take what it answers off the list."""
        awaited = self._awaited[0] if self._awaited else _Awaited("")
        fault = awaited.rule.fault if awaited.rule else None
        is_run = awaited.kind in ("E", "Q")
        data = message.data
        if message.kind in _ENDS | {"E"} and is_run:
            if fault is Fault.CUT_BEFORE_COMMIT:
                raise _Cut
            if fault in (Fault.ERROR, Fault.ERROR_AT_COMMIT) and awaited.rule:
                data = pgwire.report(awaited.rule.sqlstate)
            elif fault is Fault.WARN and message.kind == "C":
                data = pgwire.report("01000", "WARNING") + data
            elif fault is Fault.WARN_AT_COMMIT and message.kind == "C":
                self._is_warning_due = True
        if message.kind in _ENDS and awaited.kind == "E":
            self._awaited.popleft()
        elif message.kind == "E":
            self._forget_statements()
        elif message.kind == "G":
            self._forget_sync_of_copy()
        elif message.kind == "Z":
            self._forget_statements()
            self._awaited.popleft()
            if self._is_warning_due:
                self._is_warning_due = False
                data = pgwire.report("01000", "WARNING") + data
        return data

    def _forget_statements(self) -> None:
        """After an error, and at the end, the statements of this transaction get no answer."""
        while self._awaited and self._awaited[0].kind == "E":
            self._awaited.popleft()

    def _forget_sync_of_copy(self) -> None:
        """Copying in, the server passes over the Sync that came with the statement."""
        if len(self._awaited) > 1 and self._awaited[1].kind == "S":
            del self._awaited[1]

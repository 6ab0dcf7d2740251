"""One connection through the proxy before PostgreSQL: what is passed on, and what is not."""

import asyncio
import contextlib
import re
import struct
from collections import deque
from typing import NamedTuple

from pennyweight.simulators import pgwire
from pennyweight.simulators.pgrules import OF_ANSWERS, OF_MESSAGES, Behaviour, Fault, Rule
from pennyweight.simulators.pgwire import Message

_READ = 65_536
_CONNECT_SECONDS = 10.0
_PIECES_A_SECOND = 50
_ENDS = frozenset("CIs")  # command complete, empty query, portal suspended


class _Cut(Exception):
    """The connection is at its end, on both sides."""


class End:
    """One end of a connection: what is to be written there goes as slowly as the proxy says."""

    def __init__(
        self, behaviour: Behaviour, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._behaviour, self._reader, self._writer = behaviour, reader, writer
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
        """Write what has been gathered; nothing when this end was hung up."""
        data, self.out = bytes(self.out), bytearray()
        if not data:
            return
        if self._behaviour.latency_seconds:
            await asyncio.sleep(self._behaviour.latency_seconds)
        while data and not self._writer.is_closing():
            rate = self._behaviour.bytes_per_second
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


class Connection:
    """A client's connection and the server's that belongs to it."""

    def __init__(self, behaviour: Behaviour, address: tuple[str, int], client: End) -> None:
        self._behaviour, self._address = behaviour, address
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
            self._behaviour.failures += [
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
        if self._behaviour.startup_sqlstate and code != pgwire.CANCEL_REQUEST:
            self._client.out += pgwire.report(self._behaviour.startup_sqlstate, "FATAL")
            await self._client.flush()
            raise _Cut
        async with asyncio.timeout(_CONNECT_SECONDS):
            streams = await asyncio.open_connection(*self._address)
        self._server = End(self._behaviour, *streams)
        self._awaited.append(_Awaited("S"))
        self._server.is_hole = self._behaviour.is_swallowing_requests
        if not self._server.is_hole:
            self._server.out += packet
            await self._server.flush()

    # ── to the server ─────────────────────────────────────────────────────────────

    async def _requests(self) -> None:
        framing = pgwire.Framing()
        while True:
            data = await self._client.read()
            if self._behaviour.is_swallowing_requests:
                self._server.is_hole = True
            for message in framing.feed(data):
                if self._server.is_hole:
                    break
                await self._request(message)
            await self._server.flush()

    async def _request(self, message: Message) -> None:
        text = self._statements.text(message)
        rule = self._behaviour.rule_for(message, text)
        if rule is None:
            self._pass(message)
        elif rule.fault in OF_MESSAGES:
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
            self._is_leaving |= rule.fault is Fault.CUT_AT_ONCE
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
            if self._behaviour.is_swallowing_answers:
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
        if self._held is None and rule and rule.fault in OF_ANSWERS:
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

"""What a proxy before PostgreSQL is to do wrong, and when."""

import random
import re
import threading
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

from pennyweight.simulators.pgwire import Message


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


OF_ANSWERS = frozenset(
    {
        Fault.CUT_UNHEARD,
        Fault.CUT_INSIDE_ANSWER,
        Fault.CUT_HEARD,
        Fault.HOLE_AFTER,
        Fault.DELAY_ANSWER,
    }
)
"""Faults that happen when the whole answer of a statement is there."""

OF_MESSAGES = frozenset(
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
        if not set(kinds) <= set("QE" if fault not in OF_MESSAGES else "QEPBDS"):
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


class Behaviour:
    """How a proxy behaves. Any thread may change it at any time; it holds for all connections.

    A connection that swallowed anything is beyond help and swallows on until it is cut.
    """

    def __init__(self, seed: int) -> None:
        """The seed is for rules with a chance."""
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
        self._rules: list[Rule] = []
        self._draw = random.Random(seed)
        self._lock = threading.Lock()

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
        """Let nothing happen any more."""
        with self._lock:
            self._rules.clear()
        self.latency_seconds, self.bytes_per_second = 0.0, None
        self.is_swallowing_requests = self.is_swallowing_answers = False
        self.startup_sqlstate = ""

    def rule_for(self, message: Message, text: str) -> Rule | None:
        """Return what is to happen at a message, if anything; count the statements."""
        with self._lock:
            self.statements += message.kind in "QE"
            for rule in self._rules:
                if rule.applies(message, text, self._draw):
                    self.happened[rule.fault] += 1
                    return rule
        return None

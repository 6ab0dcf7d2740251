"""The one door, as a step machine: every change of the book goes through it.

No thread, clock or I/O of its own. A driver calls, in turn: `next_batch` (what to read),
`decide` (what to append), then `committed` or `failed` (what to tell the callers). Only
`submit` may be called from elsewhere at any time. Time is handed in; a simulator can run
the same engine on a seeded clock.
"""

from collections import Counter, deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any

import msgspec

from pennyweight.engine.cache import HolderCache
from pennyweight.engine.chain import next_chain
from pennyweight.engine.overlay import Overlay, Standing, WantedReads
from pennyweight.engine.port import (
    Append,
    BatchHeader,
    ConstraintFailed,
    Found,
    Head,
    Reads,
    SealedBatch,
)
from pennyweight.engine.receipts import Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger.accounts import is_customer
from pennyweight.ledger.commands import (
    Command,
    Wanted,
    counted_fields,
    differing_field,
    fingerprint,
)
from pennyweight.ledger.draft import Draft, Unloaded
from pennyweight.ledger.entries import Entry, Sealed, encode_entry
from pennyweight.ledger.refusals import Reason, Refused, refuse

RULES = 1
"""Version of the rules, named by every batch."""

HOLDERS_MAX = 128
"""Holders that one command may touch."""

ROUNDS_MAX = 3
"""How often a command may come back for facts it did not ask for."""

LATE_EVERY = 32
"""Commands decided between two looks at whether the batch has taken long enough."""


class Lane(IntEnum):
    """Where a command waits; each lane has its share of every batch, so that none starves."""

    INTERACTIVE = 0
    INBOUND = 1
    TIMERS = 2


_SHARES = ((Lane.INTERACTIVE, 0.6), (Lane.INBOUND, 0.3), (Lane.TIMERS, 0.1))


class QueueFull(Exception):
    """A lane is full: nothing was accepted, try again shortly."""


class Abandon(Command, frozen=True):
    """Give up a key: afterwards it either has its receipt, or never will have one.

    Submitted under the key in question, with that key's product as `scope`.
    """

    name = "abandon"
    product = "ledger"
    counted = ("scope",)
    answer_type = dict[str, Any]

    scope: str

    def reads(self, wanted: Wanted) -> None:
        """Nothing but the key."""

    def decide(self, draft: Draft) -> dict[str, Any]:  # noqa: ARG002 - it binds the key, no more
        """Bind the key to nothing."""
        return {"abandoned": True}


class Submission:
    """A command on its way: with its key, deadline and lane, and who waits for the outcome.

    `ticket` is the driver's. Setting `is_dropped` before the decision takes it back.
    `refused` is what the command's `reads` refused; its key is looked at first.
    """

    __slots__ = (
        "command",
        "is_dropped",
        "key",
        "lane",
        "not_after",
        "refused",
        "rounds",
        "scope",
        "ticket",
        "unloaded",
    )

    def __init__(
        self,
        command: Command,
        *,
        key: str = "",
        not_after: int | None = None,
        lane: Lane = Lane.INTERACTIVE,
        ticket: Any = None,
    ) -> None:
        """`not_after` is in microseconds of the book's time; later batches refuse it."""
        self.command = command
        self.scope = command.scope if isinstance(command, Abandon) else command.product
        self.key = key
        self.not_after = not_after
        self.lane = lane
        self.ticket = ticket
        self.refused: Refused | None = None
        self.rounds = 0
        self.unloaded: list[Unloaded] = []
        self.is_dropped = False


Answer = tuple[Submission, Outcome]


class Engine:
    """Decides commands in order on one book. See the module's docstring."""

    def __init__(
        self,
        head: Head,
        standing: Standing,
        *,
        users_max: int = 10_000,
        queue_max: int = 20_000,
        batch_max: int = 1_000,
    ) -> None:
        """`head` and `standing` as the store has them; `users_max` bounds customers in memory."""
        if users_max < HOLDERS_MAX:
            raise ValueError(
                f"users_max is {users_max}; one command may touch {HOLDERS_MAX} holders"
            )
        self.head = head
        self.cache = HolderCache(users_max)
        self.refusals: Counter[str] = Counter()
        self.replays = 0
        self.deferrals = 0
        self._standing = self._standing_after = standing
        self._queue_max = queue_max
        self._batch_max = batch_max
        self._batch_cap = batch_max
        self._lanes: tuple[deque[Submission], ...] = tuple(deque() for _ in Lane)
        self._taken: list[Submission] = []
        self._answers: list[Answer] = []
        self._overlay: Overlay | None = None
        self._append: Append | None = None
        self._time = 0
        self._early: list[Answer] = []
        self._ready: list[Submission] = []
        self._wanted_holders: set[str] = set()

    # ── in ────────────────────────────────────────────────────────────────────────

    @property
    def standing(self) -> Standing:
        """Assets, counters and cursors as committed."""
        return self._standing

    @property
    def waiting(self) -> int:
        """How many commands wait in all lanes."""
        return sum(map(len, self._lanes))

    def submit(self, submission: Submission) -> None:
        """Queue a command. Raises QueueFull. Safe from any thread."""
        lane = self._lanes[submission.lane]
        if len(lane) >= self._queue_max:
            raise QueueFull(f"{self._queue_max} commands are waiting")
        lane.append(submission)

    # ── the steps ─────────────────────────────────────────────────────────────────

    def next_batch(self, now: int) -> tuple[Reads, HolderCache] | None:
        """Take what waits, at most a batch, and say what to read for it. None if nothing waits.

        Committed time is the later of `now` and the last batch's plus 1 µs.
        """
        waiting = self.waiting
        if not waiting:
            return None
        self._time = max(now, self.head.committed_at + 1)
        wanted = WantedReads(self.cache, self._standing.counters)
        self._taken = []
        self._early = []
        cap = self._batch_cap
        if waiting > cap:
            for lane, share in _SHARES:
                until = len(self._taken) + max(1, int(cap * share))
                self._take(self._lanes[lane], min(cap, until), wanted)
        for queue in self._lanes:
            if queue:
                self._take(queue, cap, wanted)
        if not self._taken and not self._early:
            return None
        if wanted.reads.holders:
            self.cache.make_room(wanted.reads.holders, wanted.holders)
        self._wanted_holders = wanted.holders
        return wanted.reads, self.cache

    def decide(self, found: Found, is_late: Callable[[], bool]) -> Append | None:
        """Decide what was taken, in order, and return what to append; None if nothing changed.

        `is_late` is asked now and then; once true, the rest waits for the next batch.
        """
        if not self._load(found):
            self._put_back_half()
            return None
        self._batch_cap = min(self._batch_max, self._batch_cap * 2)
        overlay = Overlay(
            self.cache,
            self._standing,
            found,
            time=self._time,
            sequence=self.head.sequence + 1,
        )
        self._overlay = overlay
        answers = self._answers = list(self._early)
        taken = self._taken
        for index, submission in enumerate(taken):
            if index % LATE_EVERY == 0 and index and is_late():
                for rest in reversed(taken[index:]):
                    self._lanes[rest.lane].appendleft(rest)
                del taken[index:]
                break
            outcome = self._decide_one(submission, overlay)
            if outcome is not None:
                answers.append((submission, outcome))
        self._append = self._seal(overlay) if overlay.bodies else None
        return self._append

    def committed(self) -> list[Answer]:
        """The append is durable (or there was none): merge it and return all answers."""
        overlay, append = self._overlay, self._append
        if overlay is not None and append is not None:
            self.cache.update(overlay.accounts, overlay.records.values())
            self._standing = self._standing_after
            self.head = append.head
        return self._finish()

    def failed(self, error: BaseException) -> list[Answer]:
        """The append did not happen, or nobody knows: drop the overlay, return the answers.

        A constraint failure wrote nothing, so the batch is tried again in halves until
        the command that trips it stands alone. After any other error the outcome is
        unknown, the cache is dropped, and the driver must stop.
        """
        taken = self._taken
        self._ready.clear()
        if not isinstance(error, ConstraintFailed):
            self._answers = [(submission, Unknown(str(error))) for submission in taken]
        elif len(taken) == 1:
            self._answers = [(taken[0], Failure(error))]
        else:
            for submission in reversed(taken):
                self._lanes[submission.lane].appendleft(submission)
            self._batch_cap = max(1, len(taken) // 2)
            self._answers = []
        self._answers += self._early
        self.cache.clear()
        return self._finish()

    def drain(self, message: str) -> list[Answer]:
        """Answer everything that still waits: it was not decided. For a driver that stops."""
        answers: list[Answer] = []
        for lane in self._lanes:
            while lane:  # `submit` may run meanwhile: one by one, so that none is lost
                answers.append((lane.popleft(), Unknown(message)))
        return answers

    # ── inside ────────────────────────────────────────────────────────────────────

    def _take(self, lane: deque[Submission], until: int, wanted: WantedReads) -> None:
        """Move submissions from a lane to the batch, up to a count and to the users that fit."""
        taken = self._taken
        room = self.cache.users_max - HOLDERS_MAX
        while lane and len(taken) < until and len(wanted.holders) + wanted.indirect <= room:
            submission = lane.popleft()
            if submission.is_dropped:
                continue
            command = submission.command
            try:
                command.reads(wanted)
            except Refused as refused:
                submission.refused = refused
            except Exception as error:  # noqa: BLE001 - a bug in one rule must not stop the book
                self._early.append((submission, Failure(error)))
                continue
            if submission.key:
                wanted.reads.keys.add((submission.scope, submission.key))
            if submission.rounds:
                for unloaded in submission.unloaded:
                    getattr(wanted, unloaded.shape)(*unloaded.what)
            taken.append(submission)

    def _load(self, found: Found) -> bool:
        """Make what was read resident, room first; False if more users were found than fit."""
        if not found.holders:
            return True
        wanted, cache = self._wanted_holders, self.cache
        if len(wanted) + len(found.holders) > cache.users_max:
            together = wanted.union(found.holders)
            if sum(map(is_customer, together)) > cache.users_max:
                return False
        cache.make_room(found.holders, wanted)
        for holder, (accounts, records) in found.holders.items():
            if holder not in cache:
                cache.put(holder, accounts, records)
        return True

    def _put_back_half(self) -> None:
        """Try the batch again in halves: the holds and entries it names have too many holders."""
        taken = self._taken
        self._answers = list(self._early)
        if len(taken) == 1:
            most = self.cache.users_max
            error = RuntimeError(f"{taken[0].command.name} touches more than {most} users")
            self._answers.append((taken[0], Failure(error)))
        else:
            self._batch_cap = max(1, len(taken) // 2)
            for submission in reversed(taken):
                self._lanes[submission.lane].appendleft(submission)

    def _decide_one(self, submission: Submission, overlay: Overlay) -> Outcome | None:
        """Decide one command; None if it must come back for facts that were not loaded."""
        command = submission.command
        key = submission.key
        try:
            if submission.not_after is not None and overlay.time > submission.not_after:
                refuse(Reason.NOT_AFTER_PASSED, "the command's deadline passed before its decision")
            if key:
                earlier = overlay.entry_of_key(submission.scope, key)
                if earlier is not None:
                    command.admit(overlay)
                    return self._replay(command, key, earlier)
            if submission.refused is not None:
                raise submission.refused  # noqa: TRY301 - once more, after the key
            draft = Draft(overlay, command.product)
            answer = command.decide(draft)
            draft.seal()
            body = encode_entry(_entry(submission, draft, answer))
        except Refused as refused:
            return self._refusal(refused)
        except Unloaded as unloaded:
            return self._defer(submission, unloaded)
        except Exception as error:  # noqa: BLE001 - discards this command alone, a 500
            return Failure(error)
        overlay.merge(draft, submission.scope, key, body)
        return Receipt(draft.sequence, answer)

    def _replay(self, command: Command, key: str, earlier: Entry) -> Outcome:
        """Answer a key that is bound already. Refusals: key_reused, key_abandoned."""
        if isinstance(command, Abandon):
            self.replays += 1
            return Receipt(earlier.sequence, msgspec.json.decode(earlier.answer), is_replayed=True)
        if earlier.command == Abandon.name:
            refuse(Reason.KEY_ABANDONED, f"key {key!r} was abandoned")
        if earlier.command != command.name:
            refuse(
                Reason.KEY_REUSED,
                f"key {key!r} belongs to another command",
                field="command",
                sequence=earlier.sequence,
            )
        mine = fingerprint(command)
        if bytes(earlier.fields) != mine:
            field = differing_field(bytes(earlier.fields), mine)
            if field or earlier.version == command.version:
                refuse(
                    Reason.KEY_REUSED,
                    f"key {key!r} was used with another {field}",
                    field=field,
                    sequence=earlier.sequence,
                )
        self.replays += 1
        answer = msgspec.json.decode(earlier.answer, type=command.answer_type)
        return Receipt(earlier.sequence, answer, is_replayed=True)

    def _refusal(self, refused: Refused) -> Refusal:
        self.refusals[refused.reason.code] += 1
        return Refusal(refused.reason, refused.message, refused.figures)

    def _defer(self, submission: Submission, unloaded: Unloaded) -> Outcome | None:
        """Send a command back for a fact it did not name. Bounded."""
        submission.rounds += 1
        if submission.rounds > ROUNDS_MAX:
            return Failure(RuntimeError(f"{submission.command.name} keeps asking: {unloaded}"))
        submission.unloaded.append(unloaded)
        self.deferrals += 1
        self._ready.append(submission)
        return None

    def _seal(self, overlay: Overlay) -> Append:
        """Build the append: header, chain, and the rows as they are after the batch."""
        head = self.head
        bodies = overlay.bodies
        header = BatchHeader(
            head.book,
            head.incarnation,
            head.epoch,
            head.sequence + 1,
            len(bodies),
            self._time,
            RULES,
        )
        chain = next_chain(head.chain, header, bodies)
        self._standing_after = overlay.standing_after()
        after = Head(
            head.book,
            head.incarnation,
            head.epoch,
            head.sequence + len(bodies),
            chain,
            self._time,
            self._standing_after.counters,
        )
        return Append(
            head,
            after,
            SealedBatch(header, bodies, chain),
            overlay.products,
            overlay.keys,
            overlay.account_rows(),
            overlay.hold_rows(),
            overlay.record_rows(),
            overlay.back_dated,
            overlay.cursor_moves(),
        )

    def _finish(self) -> list[Answer]:
        """Put deferred commands first in their lanes, and hand the answers out."""
        if self._ready:
            for submission in reversed(self._ready):
                self._lanes[submission.lane].appendleft(submission)
            self._ready.clear()
        answers, self._answers, self._taken = self._answers, [], []
        self._overlay = self._append = None
        return answers


def _entry(submission: Submission, draft: Draft, answer: Any) -> Sealed:
    """Turn a sealed draft into its entry."""
    command = submission.command
    return Sealed(
        draft.sequence,
        command.name,
        submission.scope,
        counted_fields(command),
        answer,
        draft.transfers,
        draft.lines,
        submission.key,
        command.version,
        draft.effective_at,
        draft.openings,
        draft.closings,
        draft.hold_changes,
        draft.records,
        draft.events,
        draft.cursors,
        draft.counters,
    )

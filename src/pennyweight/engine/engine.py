"""The one door, as a step machine: every change of the book goes through it.

No thread, clock or I/O of its own. A driver calls, in turn: `next_batch` (what to read),
`decide` (what to append), then `committed` or `failed` (what to tell the callers). Only
`submit` may be called from elsewhere at any time. Time is handed in; a simulator can run
the same engine on a seeded clock.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from enum import IntEnum
from traceback import walk_tb
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
from pennyweight.engine.receipts import UNKNOWN, Failure, Outcome, Receipt, Refusal, Unknown
from pennyweight.ledger.commands import (
    Command,
    Wanted,
    counted_fields,
    differing_field,
    fingerprint,
)
from pennyweight.ledger.draft import Draft, Unloaded
from pennyweight.ledger.entries import CursorMove, Entry, Sealed, encode_entry
from pennyweight.ledger.refusals import Reason, Refused, refuse

RULES = 1
"""Version of the rules, named by every batch."""

HOLDERS_MAX = 128
"""Holders that one command may touch."""

USERS_MIN = HOLDERS_MAX + 2
"""The least bound on users: what one command may touch, an entry that it names, and its receipt."""

ROUNDS_MAX = 3
"""How often a command may come back for facts it did not ask for."""

LATE_EVERY = 32
"""Commands decided between two looks at whether the batch has taken long enough."""


class Lane(IntEnum):
    """Where a command waits; each lane has its share of every batch, so that none starves.

    Batches stay short while callers wait for answers: what came from streams and timers
    then comes in small portions.
    """

    INTERACTIVE = 0
    INBOUND = 1
    TIMERS = 2


_SHARES = {Lane.INTERACTIVE: 0.6, Lane.INBOUND: 0.3, Lane.TIMERS: 0.1}

BESIDE_MAX = 16
"""Commands of each other lane that a batch takes while somebody waits for an answer."""


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


class MoveCursor(Command, frozen=True):
    """Move the cursor of a reader, without any other effect: what it read was done already.

    `sequence` is the entry that did it, 0 where the cursor only counts what was passed on.
    Refusal: cursor_conflict.
    """

    name = "move_cursor"
    product = "ledger"
    counted = ("cursor", "before", "after", "sequence")
    answer_type = dict[str, Any]

    cursor: str
    before: int
    after: int
    sequence: int = 0

    def reads(self, wanted: Wanted) -> None:
        """Cursors are always loaded."""

    def decide(self, draft: Draft) -> dict[str, Any]:
        """See the class."""
        draft.move_cursor(self.cursor, self.before, self.after)
        return {"cursor": self.cursor, "after": self.after}


OWN_COMMANDS = (Abandon, MoveCursor)
"""The commands of the engine itself."""


class Submission:
    """A command on its way: with its key, deadline and lane, and who waits for the outcome.

    `ticket` is the driver's. Setting `is_dropped` before the decision takes it back.
    `refused` is what the command's `reads` refused; its key is looked at first. Its uses
    of users are counted once (`is_counted`), however often it comes back.

    What was read from an outside stream comes with the `cursor` move that it stands for.
    The cursor moves in the same entry as the effect; where the key shows that the effect
    is in the book already, in an entry of its own. If the command is refused, what
    `aside` makes of the refusal is decided in its place, without the key. A cursor that is
    not where the move begins refuses everything (cursor_conflict). Submissions with the
    same cursor are decided in the order in which they came.
    """

    __slots__ = (
        "aside",
        "command",
        "cursor",
        "is_counted",
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
        cursor: CursorMove | None = None,
        aside: Callable[[Refused], Command] | None = None,
    ) -> None:
        """`not_after` is in microseconds of the book's time; later batches refuse it."""
        self.aside = aside
        self.command = command
        self.cursor = cursor
        self.scope = command.scope if isinstance(command, Abandon) else command.product
        self.key = key
        self.not_after = not_after
        self.lane = lane
        self.ticket = ticket
        self.refused: Refused | None = None
        self.rounds = 0
        self.unloaded: list[tuple[str, tuple[Any, ...]]] = []
        """Facts that it came back for: a method of `Wanted`, and its arguments."""
        self.is_dropped = False
        self.is_counted = False


Answer = tuple[Submission, Outcome]


class Engine:
    """Decides commands in order on one book. See the module's docstring."""

    def __init__(
        self,
        head: Head,
        standing: Standing,
        *,
        users_max: int = 10_000,
        users_reserved: int = 0,
        queue_max: int = 20_000,
        batch_max: int = 1_000,
    ) -> None:
        """`head` and `standing` as the store has them; `users_max` bounds customers in memory.

        Of these, `users_reserved` are not the engine's: readers of the journal have them.
        """
        if users_max - users_reserved < USERS_MIN:
            raise ValueError(
                f"users_max is {users_max}, {users_reserved} of them reserved; "
                f"one command may bring {USERS_MIN} users' data"
            )
        self.head = head
        self.cache = HolderCache(users_max, reserved=users_reserved)
        self.refusals: Counter[str] = Counter()
        self.replays = 0
        self.deferrals = 0
        self._standing = self._standing_after = standing
        self._queue_max = queue_max
        self._batch_max = batch_max
        self._batch_cap = batch_max
        self._lanes: tuple[deque[Submission], ...] = tuple(deque() for _ in Lane)
        self._order = list(Lane)
        """Whose turn it is: lanes that got nothing of the last batch go first in the next."""
        self._taken: list[Submission] = []
        self._answers: list[Answer] = []
        self._overlay: Overlay | None = None
        self._append: Append | None = None
        self._time = 0
        self._early: list[Answer] = []
        self._ready: list[Submission] = []
        self._stalled: set[str] = set()
        """Cursors of which a submission was sent back in this batch; the later ones wait for it."""
        self._applicants: Iterable[str] = ()
        self._is_told = False
        """Whether the callers of this batch have been answered before its outcome is known."""

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
        cap, places = self._batch_cap, self.cache.guests_max
        is_watched = bool(self._lanes[Lane.INTERACTIVE])
        if sum(map(bool, self._lanes)) > 1:
            self._take_shares(cap, places, wanted, most=BESIDE_MAX if is_watched else cap)
        for lane, queue in zip(Lane, self._lanes, strict=True):
            if queue:
                until = cap
                if is_watched and lane is not Lane.INTERACTIVE:
                    got = sum(1 for submission in self._taken if submission.lane is lane)
                    until = min(cap, len(self._taken) + BESIDE_MAX - got)
                self._take(queue, until, places, wanted)
        if not self._taken and not self._early:
            return None
        reads, cache = wanted.reads, self.cache
        while wanted.places > cache.room and len(cache):  # a big command, or a small bound
            for left in cache.make_room(wanted.places):
                wanted.evicted(left)
        reads.room = cache.room
        cache.loading = min(wanted.places, reads.room)
        self._applicants = wanted.applicants
        return reads, cache

    def decide(self, found: Found, is_late: Callable[[], bool]) -> Append | None:
        """Decide what was taken, in order, and return what to append; None if nothing changed.

        `is_late` is asked now and then; once true, the rest waits for the next batch. What
        waits was read for nothing, so the next batches are as small as this one became, and
        grow from there.
        """
        if not self._load(found):
            self._put_back_half()
            return None
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
                self._put_back(taken[index:])
                del taken[index:]
                self._batch_cap = index
                break
            outcome = self._decide_one(submission, overlay)
            if outcome is not None:
                answers.append((submission, outcome))
        else:
            cap = self._batch_cap
            self._batch_cap = min(self._batch_max, cap + cap // 4 + 1)
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
            self._answers = [(taken[0], _failure(error))]
        else:
            self._put_back(taken)
            self._batch_cap = max(1, len(taken) // 2)
            self._answers = []
        self._answers += self._early
        self.cache.clear()
        return self._finish()

    def postponed(self) -> list[Answer]:
        """Nothing of the batch was written, and nothing is wrong with it: it waits again.

        Whom `tell_unknown` has answered meanwhile does not wait any more.
        """
        taken = self._taken
        self._ready.clear()
        self._put_back(taken)
        self._answers = list(self._early)
        self.cache.clear()
        return self._finish()

    def tell_unknown(self, message: str) -> list[Answer]:
        """Answer the callers of a batch whose outcome takes too long to be found out.

        The batch itself stays as it is, until `committed` or `postponed`; neither answers
        these callers again. What was to be refused is not refused: that may depend on it.
        Nothing happens where no batch is under way.
        """
        if self._is_told or not (self._taken or self._early):
            return []
        self._is_told = True
        told = [(submission, Unknown(message)) for submission in self._taken]
        return [*told, *self._early]

    def drain(self, message: str, code: str = UNKNOWN) -> list[Answer]:
        """Answer everything that still waits: it was not decided. For a driver that stops."""
        return [(submission, Unknown(message, code)) for submission in self.take_back()]

    def take_back(self) -> list[Submission]:
        """Take everything that still waits out of the lanes, unanswered."""
        left: list[Submission] = []
        for lane in self._lanes:
            while lane:  # `submit` may run meanwhile: one by one, so that none is lost
                left.append(lane.popleft())
        return left

    # ── inside ────────────────────────────────────────────────────────────────────

    def _take_shares(self, cap: int, places: int, wanted: WantedReads, *, most: int) -> None:
        """Give each lane its share of the batch and of the places for guests.

        Lanes nobody waits at get `most` commands at most. A command that needs more places than are left must wait, and all behind it, unless
        it is the first. So that its turn comes, a lane that got nothing goes first next time.
        """
        left_out = []
        for lane in self._order:
            queue, count = self._lanes[lane], len(self._taken)
            share = max(1, int(cap * _SHARES[lane]))
            until = count + (share if lane is Lane.INTERACTIVE else min(share, most))
            guests = wanted.places + max(1, int(places * _SHARES[lane]))
            self._take(queue, min(cap, until), min(places, guests), wanted)
            if queue and len(self._taken) == count:
                left_out.append(lane)
        if left_out:
            self._order.sort(key=lambda lane: lane not in left_out)

    def _take(self, lane: deque[Submission], until: int, places: int, wanted: WantedReads) -> None:
        """Move submissions from a lane to the batch, up to a count and to the places for guests."""
        taken = self._taken
        while lane and len(taken) < until:
            submission = lane.popleft()
            if submission.is_dropped:
                continue
            command = submission.command
            before = wanted.places
            wanted.begin(is_admitting=command.is_admitting, is_counted=not submission.is_counted)
            try:
                command.reads(wanted)
                for shape, what in submission.unloaded:
                    getattr(wanted, shape)(*what)
            except Refused as refused:
                submission.refused = refused.with_traceback(None)
            except Exception as error:  # noqa: BLE001 - a bug in one rule must not stop the book
                wanted.undo()
                self._early.append((submission, _failure(error)))
                continue
            is_wide = before < wanted.places or len(wanted.holders) > self.cache.users_max
            if taken and wanted.places > places and is_wide:
                wanted.undo()
                lane.appendleft(submission)
                return
            wanted.keep()
            if submission.key:
                wanted.reads.keys.add((submission.scope, submission.key))
            submission.is_counted = True
            taken.append(submission)

    def _load(self, found: Found) -> bool:
        """Take in what was read; False if it is more than there is room for."""
        if found.is_cut:
            return False
        cache = self.cache
        cache.loading = 0
        for holder, (accounts, records) in found.holders.items():
            if holder not in cache:
                cache.welcome(holder, accounts, records)
        return True

    def _put_back_half(self) -> None:
        """Try the batch again in halves: the holds and entries it names have too many holders."""
        taken = self._taken
        self._answers = list(self._early)
        if len(taken) == 1 and not len(self.cache):
            most = self.cache.users_max
            error = RuntimeError(f"{taken[0].command.name} touches more than {most} users")
            self._answers.append((taken[0], Failure(error)))
            return
        if len(taken) == 1:
            self.cache.make_room(self.cache.users_max)
        self._batch_cap = max(1, len(taken) // 2)
        self._put_back(taken)

    def _decide_one(self, submission: Submission, overlay: Overlay) -> Outcome | None:
        """Decide one command; None if it must come back for facts that were not loaded."""
        cursor = submission.cursor
        if cursor is not None and cursor.name in self._stalled:
            self._ready.append(submission)
            return None
        try:
            return self._answer(submission, overlay)
        except Refused as refused:
            aside = submission.aside
            if cursor is None or aside is None or refused.reason is Reason.CURSOR_CONFLICT:
                return self._refusal(refused)
            return self._set_aside(aside, cursor, overlay, refused)
        except Unloaded as unloaded:
            return self._defer(submission, unloaded)
        except Exception as error:  # noqa: BLE001 - discards this command alone, a 500
            return _failure(error)

    def _answer(self, submission: Submission, overlay: Overlay) -> Outcome:
        """Decide one command, or replay it. Raises Refused, Unloaded, and what a broken rule raises."""
        command = submission.command
        key, cursor = submission.key, submission.cursor
        if cursor is not None:
            overlay.check_cursor(cursor)
        if submission.not_after is not None and overlay.time > submission.not_after:
            refuse(Reason.NOT_AFTER_PASSED, "the command's deadline passed before its decision")
        if key:
            earlier = overlay.entry_of_key(submission.scope, key)
            if earlier is not None:
                command.admit(overlay)
                replay = self._replay(command, key, earlier)
                if cursor is not None:
                    move = MoveCursor(cursor.name, cursor.before, cursor.after, earlier.sequence)
                    self._book(move, move.product, "", None, overlay)
                return replay
        early = submission.refused
        if early is not None:  # once more, after the key
            raise Refused(early.reason, early.message, **early.figures)
        return self._book(command, submission.scope, key, cursor, overlay)

    def _set_aside(
        self,
        aside: Callable[[Refused], Command],
        cursor: CursorMove,
        overlay: Overlay,
        refused: Refused,
    ) -> Outcome:
        """Decide what is to be done with a message that was refused."""
        self.refusals[refused.reason.code] += 1
        try:
            command = aside(refused)
            return self._book(command, command.product, "", cursor, overlay)
        except Exception as error:  # noqa: BLE001 - setting aside refuses nothing, so it is a bug
            return _failure(error)

    def _book(
        self,
        command: Command,
        scope: str,
        key: str,
        cursor: CursorMove | None,
        overlay: Overlay,
    ) -> Receipt:
        """Decide a command on a draft of its own, and make it the batch's next entry."""
        draft = Draft(overlay, command.product)
        if cursor is not None:
            draft.move_cursor(cursor.name, cursor.before, cursor.after)
        answer = command.decide(draft)
        draft.seal()
        overlay.merge(draft, scope, key, encode_entry(entry_of(command, scope, key, draft, answer)))
        return Receipt(draft.sequence, answer)

    def _replay(self, command: Command, key: str, earlier: Entry) -> Receipt:
        """Answer a key that is bound already. Refusals: key_reused, key_abandoned."""
        if isinstance(command, Abandon):
            self.replays += 1
            return Receipt(earlier.sequence, msgspec.json.decode(earlier.answer), is_replayed=True)
        if earlier.command == Abandon.name:
            refuse(Reason.KEY_ABANDONED, f"key {key!r} was abandoned")
        fields, answer_type = bytes(earlier.fields), command.answer_type
        if earlier.command != command.name:
            twin = command.twin_in(earlier)
            if twin is None:
                refuse(
                    Reason.KEY_REUSED,
                    f"key {key!r} belongs to another command",
                    field="command",
                    sequence=earlier.sequence,
                )
            fields, answer_type = twin
        if fields != (mine := fingerprint(command)):
            field = differing_field(fields, mine)
            if field or earlier.version == command.version:
                refuse(
                    Reason.KEY_REUSED,
                    f"key {key!r} was used with another {field}",
                    field=field,
                    sequence=earlier.sequence,
                )
        self.replays += 1
        answer = msgspec.json.decode(earlier.answer, type=answer_type)
        return Receipt(earlier.sequence, answer, is_replayed=True)

    def _refusal(self, refused: Refused) -> Refusal:
        self.refusals[refused.reason.code] += 1
        return Refusal(refused.reason, refused.message, refused.figures)

    def _put_back(self, taken: list[Submission]) -> None:
        """Put submissions first in their lanes again, in their order.

        Those of a batch whose callers were told that its outcome is unknown come no more.
        """
        if self._is_told:
            return
        for submission in reversed(taken):
            self._lanes[submission.lane].appendleft(submission)

    def _defer(self, submission: Submission, unloaded: Unloaded) -> Outcome | None:
        """Send a command back for a fact it did not name. Bounded."""
        if submission.cursor is not None:
            self._stalled.add(submission.cursor.name)
        submission.rounds += 1
        if submission.rounds > ROUNDS_MAX:
            return Failure(RuntimeError(f"{submission.command.name} keeps asking: {unloaded}"))
        submission.unloaded.append((unloaded.shape, unloaded.what))
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
        if self._is_told:
            self._is_told = False
            self._answers = []
            self._ready.clear()
        self._stalled.clear()
        self.cache.dismiss(self._applicants)
        self._applicants = ()
        if self._ready:
            self._put_back(self._ready)
            self._ready.clear()
        answers, self._answers, self._taken, self._early = self._answers, [], [], []
        self._overlay = self._append = None
        return answers


def _failure(error: BaseException) -> Failure:
    """Return a failure that tells where it happened, and keeps nobody's data.

    A traceback keeps the variables of all functions that were under way, and so the whole
    batch, for as long as anybody keeps the failure. A note takes its place.
    """
    link: BaseException | None = error
    while link is not None:
        trace, link.__traceback__ = link.__traceback__, None
        if trace is not None:
            steps = walk_tb(trace)
            places = [f"{f.f_code.co_filename}:{line} {f.f_code.co_name}" for f, line in steps]
            link.add_note("\n".join(("it came from", *places)))
        link = link.__cause__ or link.__context__
    return Failure(error)


def entry_of(command: Command, scope: str, key: str, draft: Draft, answer: Any) -> Sealed:
    """Turn a sealed draft into its entry."""
    return Sealed(
        draft.sequence,
        command.name,
        scope,
        counted_fields(command),
        answer,
        draft.transfers,
        draft.lines,
        key,
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

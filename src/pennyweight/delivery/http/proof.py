"""`/v1/verify`: a proof of the whole book, run beside the serving of it."""

import threading
from collections.abc import Callable
from typing import Literal

import msgspec
import structlog

from pennyweight.delivery.http.routes import Documentation, ReadRoute, Reply, Request, Route
from pennyweight.delivery.http.wire import encode, read_nothing, rfc3339
from pennyweight.engine.overlay import Standing
from pennyweight.engine.port import Store
from pennyweight.engine.verification import Progress, Report
from pennyweight.products.general import PRODUCT
from pennyweight.runtime.clock import wall_clock

Verification = Callable[[Store, Progress], Report]
"""Proves a book: `engine.verification.verify` with the products' answers and laws."""

log = structlog.get_logger(__name__)


class ProofShown(msgspec.Struct, frozen=True):
    """How far the last verification since the server's start is, and what it found."""

    state: Literal["none", "running", "done", "failed"]
    started_at: str | None = None
    entries_done: int = 0
    entries: int = 0
    report: Report | None = None


class Verifier:
    """Runs one verification at a time, in a thread of its own."""

    def __init__(self, verification: Verification) -> None:
        """Nothing verified yet."""
        self._verification = verification
        self._lock = threading.Lock()
        self._shown = ProofShown("none")

    @property
    def shown(self) -> ProofShown:
        """How it stands."""
        return self._shown

    def start(self, store: Store) -> ProofShown:
        """Begin a verification; one that runs goes on."""
        with self._lock:
            if self._shown.state != "running":
                self._shown = ProofShown("running", rfc3339(wall_clock()))
                threading.Thread(
                    target=self._run, args=(store,), name="pennyweight-verify", daemon=True
                ).start()
            return self._shown

    def _run(self, store: Store) -> None:
        try:
            report = self._verification(store, self._progress)
        except Exception as error:
            log.exception("a verification broke", exc_info=error)
            self._shown = msgspec.structs.replace(self._shown, state="failed")
        else:
            self._shown = msgspec.structs.replace(
                self._shown,
                state="done",
                entries_done=report.entries,
                entries=report.entries,
                report=report,
            )

    def _progress(self, done: int, entries: int) -> None:
        self._shown = msgspec.structs.replace(self._shown, entries_done=done, entries=entries)


_EXAMPLE = {
    "state": "running",
    "started_at": "2026-01-31T12:00:00.000000Z",
    "entries_done": 20_000,
    "entries": 1_000_000,
    "report": None,
}


def routes(verification: Verification) -> list[Route]:
    """Return the routes that start a verification and tell how it goes."""
    verifier = Verifier(verification)

    def start(request: Request, store: Store, _: Standing) -> Reply:
        read_nothing(request.body)
        return Reply(202, encode(verifier.start(store)))

    def tell(_: Request, __: Store, ___: Standing) -> Reply:
        return Reply(200, encode(verifier.shown))

    return [
        ReadRoute(
            face=PRODUCT,
            method="POST",
            path="/v1/verify",
            read=start,
            documentation=Documentation(
                summary="Start to prove the whole book",
                answer=ProofShown,
                status=202,
                answer_example={**_EXAMPLE, "entries_done": 0, "entries": 0},
            ),
        ),
        ReadRoute(
            face=PRODUCT,
            method="GET",
            path="/v1/verify",
            read=tell,
            is_instant=True,
            documentation=Documentation(
                summary="How far the proof is, and what it found",
                answer=ProofShown,
                answer_example=_EXAMPLE,
            ),
        ),
    ]

"""What all agents are: a thread that runs while the book is served.

An agent acts on the outside world, which comes and goes. What goes wrong there is a status
and a reason to begin again, never the end of the agent.
"""

import threading
import time

import structlog

RETRY_SECONDS = 0.05
RETRY_SECONDS_MAX = 2.0

log = structlog.get_logger(__name__)


class Agent:
    """A thread with a name, started once and told to end."""

    def __init__(self, name: str) -> None:
        """Nothing runs yet."""
        self._name = name
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"pennyweight-{name}", daemon=True)

    @property
    def is_over(self) -> bool:
        """Whether it has been told to end."""
        return self._is_over.is_set()

    def start(self) -> None:
        """Begin; the book must have been started."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait until it has."""
        self._is_over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        raise NotImplementedError


class Persistent(Agent):
    """An agent that works in sessions: when one breaks, the next begins, later each time."""

    expected: tuple[type[Exception], ...] = ()
    """What may end a session without being a fault of ours."""

    def __init__(self, name: str) -> None:
        """Nothing is wrong yet."""
        super().__init__(name)
        self._cause = ""

    @property
    def _down(self) -> str:
        """Why the last session ended; a session says when that is over."""
        return self._cause

    @_down.setter
    def _down(self, cause: str) -> None:
        if self._cause and not cause:
            log.warning("an agent goes on", agent=self._name)
        self._cause = cause

    def _run(self) -> None:
        seconds = RETRY_SECONDS
        while not self._is_over.is_set():
            began = time.monotonic()
            try:
                self._session()
            except self.expected as error:
                if self._down != str(error):
                    log.warning("an agent waits", agent=self._name, cause=str(error))
                self._down = str(error)
            except Exception as error:
                log.exception("an agent broke, and begins again", agent=self._name)
                self._down = f"it broke: {error!r}"
            if time.monotonic() - began > RETRY_SECONDS_MAX:
                seconds = RETRY_SECONDS
            self._is_over.wait(seconds)
            seconds = min(seconds * 2, RETRY_SECONDS_MAX)

    def _session(self) -> None:
        raise NotImplementedError

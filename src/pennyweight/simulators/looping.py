"""An event loop in a thread of its own, for the proxies that other threads steer."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

_SECONDS = 30.0

Result = TypeVar("Result")


class LoopThread:
    """Runs coroutines that other threads give it; closing it cancels those still at work."""

    def __init__(self, name: str) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def has_ended(self) -> bool:
        """Whether it was closed."""
        return not self._thread.is_alive()

    def do(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do this there and return what came of it. Raises what it raises, or TimeoutError."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_SECONDS)

    def close(self) -> None:
        """Cancel what is at work and end the thread."""
        if not self.has_ended:
            self.do(self._cancel_all())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

"""What one process has of a `BlockingStore`: a store, and the thread of its event loop. It is closed with the process.

Closing it at the end keeps the promise to others: runs under way are let go of, and leave no lease behind. A process
that was forked closes what it has opened itself, and leaves its parent's alone.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import time
import weakref
from typing import Final

from orchestrator_state.blocking.calls import Call
from orchestrator_state.blocking.loops import LoopThread
from orchestrator_state.blocking.units import OpenUnit
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.store import Opening, StateStore

_AT_EXIT: Final = 5.0  # seconds: a database that does not answer keeps no process from ending


class Opened:
    """Raises what opening raises; then nothing is left behind."""

    def __init__(self, opening: Opening[StateStore]) -> None:
        self.loop = LoopThread()
        self.units: dict[int, OpenUnit] = {}
        """Of the threads that are inside one, by their ids."""
        self.workers: set[asyncio.Task[None]] = set()
        made: list[StateStore] = []
        self._closing: asyncio.Task[None] | None = None

        async def open_store() -> None:
            made.append(await opening)

        try:
            self.loop.call(open_store)
        except BaseException:
            if made:
                self.loop.call(made[0].close)
            self.loop.stop()
            raise
        self.store: Final = made[0]
        _open.add(self)

    def close(self) -> None:
        """Close the store, and end the thread. Another thread may have done so, or be about to."""
        self.loop.refuse_misuse()
        call = Call(self._close)
        with contextlib.suppress(ConfigurationError), self.loop.watching(call, call.begin):
            call.wait()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                call.result()
        finally:
            self.loop.stop()

    def close_soon(self) -> None:
        """The same for who cannot wait, nor be told of what goes wrong: the garbage collector, and the end."""

        def begin() -> None:
            self._closing = asyncio.create_task(self._close(), name="orchestrator_state closing at exit")
            self._closing.add_done_callback(end)

        def end(closing: asyncio.Task[None]) -> None:
            if not closing.cancelled():
                closing.exception()  # looked at, so that it is not reported as lost
            self.loop.stop()

        self.loop.post(begin)

    async def _close(self) -> None:
        """The workers first: they let go of their runs as of their own accord."""
        for worker in self.workers:
            worker.cancel()
        if self.workers:
            await asyncio.wait(self.workers)
        await self.store.close()


_open: Final = weakref.WeakSet[Opened]()


@atexit.register
def _close_all() -> None:
    gives_up = time.monotonic() + _AT_EXIT
    left = [opened for opened in _open if opened.loop.is_here]
    for opened in left:
        opened.close_soon()
    for opened in left:
        opened.loop.join(max(0.0, gives_up - time.monotonic()))

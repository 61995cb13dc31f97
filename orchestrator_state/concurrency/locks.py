"""A lock among all threads of a process, for what they share whether they like it or not."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

_PAUSE: Final = 0.01  # seconds


class ProcessLock:
    """One that a forked child has anew: its parent's may have been taken, and then would be for ever."""

    def __init__(self) -> None:
        self._locks: Final[dict[int, threading.Lock]] = {}

    @property
    def own(self) -> threading.Lock:
        """This process's."""
        return self._locks.setdefault(os.getpid(), threading.Lock())

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """For a task, which is not to keep its event loop from running while it waits for another thread's."""
        lock = self.own
        while not lock.acquire(blocking=False):  # noqa: ASYNC110 - a thread that lets go of it can tell no event loop
            await asyncio.sleep(_PAUSE)
        try:
            yield
        finally:
            lock.release()

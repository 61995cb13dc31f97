"""A worker beside code that blocks, or in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self, cast

from orchestrator_state import hooks
from orchestrator_state.blocking.calls import Call
from orchestrator_state.blocking.opened import Opened
from orchestrator_state.concurrency import on_signals
from orchestrator_state.execution import WorkerHealth
from orchestrator_state.worker import Worker


class BlockingWorker:
    """A `Worker` in the event loop of a `BlockingStore`, whose `worker` makes it.

    `with store.worker(handlers):` works until the end of the block, and leaves the signals to the program. `run` is for
    a program that does nothing else.
    """

    def __init__(self, opened: Opened, make: Callable[[], Awaitable[Worker]]) -> None:
        self._opened = opened
        self._loop = opened.loop
        self._worker = opened.loop.call(make)
        self._background: Call[None] | None = None

    def run(self) -> None:
        """Work until `stop`, or in the main thread until SIGTERM or SIGINT: see `Worker`."""
        with on_signals(self._worker.stop, self._loop.loop):
            self._loop.call(self._work)

    def stop(self) -> None:
        """Claim no more, and end `run` once the runs under way are done or their grace is over. Does not wait."""
        self._loop.post(self._worker.stop)

    def health(self) -> WorkerHealth:
        """How it is doing, without asking the database: for a probe, or a gauge."""
        return self._worker.health()

    def __enter__(self) -> Self:
        """Work in the background until the block ends."""
        self._background = Call(self._work_and_tell)
        self._loop.start(self._background, self._background.begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._background is not None and self._loop.is_here:
            self.stop()
            self._loop.end(self._background)
            self._loop.result_of(self._background)

    async def _work(self) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._opened.workers.add(task)
        try:
            await self._worker.run()
        finally:
            self._opened.workers.discard(task)

    async def _work_and_tell(self) -> None:
        """Whoever is inside the block would hear of an error only at the end of that."""
        try:
            await self._work()
        except Exception as error:
            hooks.logger.error("the worker ended (%s)", type(error).__qualname__)
            raise

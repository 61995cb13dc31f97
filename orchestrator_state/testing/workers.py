"""Workers in the background of a test, and the moment at which they have nothing to do."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

from orchestrator_state.arguments import as_pause
from orchestrator_state.errors import ConfigurationError
from orchestrator_state.runs import Duration, Handler
from orchestrator_state.testing.clock import Clock
from orchestrator_state.testing.store import StoreUnderTest
from orchestrator_state.worker import Worker

_POLL: Final = timedelta(minutes=10)
_LOOK_AGAIN: Final = 0.05  # seconds, at runs that are at work


class RunsLeft(UserWarning):
    """A test ended, and a step of it was still under way after the grace."""


class BackgroundWorker(Worker):
    """A `Worker` that works while the test does, and is woken, instead of looking for work now and then."""

    def __init__(
        self, store: StoreUnderTest, handlers: Mapping[str, Handler[Any]], *, concurrency: int, grace: Duration
    ) -> None:
        super().__init__(store, handlers, concurrency=concurrency, poll=_POLL, grace=grace, handle_signals=False)
        self._under_test = store
        self._asked = self._answered = self._changes = 0
        self._has_looked = asyncio.Event()
        self._was_cut_off = 0
        self._working = asyncio.create_task(self.run(), name="orchestrator_state worker of a test")

    def wake(self) -> None:
        """There may be something to do."""
        self._news.set()

    async def until_idle(self) -> bool:
        """Wait until there is nothing to do. Returns whether it had to wait for a run."""
        has_worked = False
        while True:
            changes = self._changes
            await self._look()
            # A run that has begun or ended meanwhile may have left something that the look has not seen.
            is_quiet = self._changes == changes and len(self._under_way) <= self._under_test.resting
            if self._working.done() or is_quiet:
                return has_worked
            has_worked = True
            await asyncio.wait({*self._under_way, self._working}, timeout=_LOOK_AGAIN, return_when="FIRST_COMPLETED")

    async def end(self) -> int:
        """Stop. Returns how many runs were under way after the grace."""
        self.stop()
        await self._working
        return self._was_cut_off

    def what_it_does(self) -> str:
        """In words, for who waits in vain."""
        health = self.health()
        error = "" if health.last_error is None else f", the last look for work failed ({health.last_error})"
        return f"{len(self._under_way)} runs are under way{error}"

    async def _look(self) -> None:
        """Until a look for work that begins from now on is over. Raises what ended the worker."""
        self._asked += 1
        wanted = self._asked
        while self._answered < wanted and not self._working.done():
            self._has_looked.clear()
            self._news.set()
            looked = asyncio.ensure_future(self._has_looked.wait())
            try:
                await asyncio.wait({looked, self._working}, return_when="FIRST_COMPLETED")
            finally:
                looked.cancel()
        if self._working.done():
            self._working.result()

    async def _claim(self) -> bool:
        asked = self._asked
        has_looked = await super()._claim()
        self._answered = asked
        self._has_looked.set()
        return has_looked

    def _watch(self, task: asyncio.Task[Any]) -> None:
        self._changes += 1
        super()._watch(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._changes += 1
        super()._done(task)

    async def _cancel_the_rest(self) -> None:
        self._was_cut_off = len(self._under_way)
        await super()._cancel_the_rest()


class Workers:
    """Makes workers: `worker({"order": order})` works in the background until the test ends.

    It claims what the store holds, as a `Worker` in production does, and is woken at once by `store.start`,
    `store.signal` and `clock.advance`.
    """

    def __init__(self, store: StoreUnderTest, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._workers: list[BackgroundWorker] = []

    def __call__(self, handlers: Mapping[str, Handler[Any]], *, concurrency: int = 10, grace: Duration = 5.0) -> Worker:
        """Start a worker. `grace` is how long a step that is under way may take when the test ends."""
        worker = BackgroundWorker(self._store, handlers, concurrency=concurrency, grace=grace)
        self._workers.append(worker)
        self._clock.on_jump.append(worker.wake)
        return worker

    async def until_idle(self, timeout: Duration = 30.0) -> None:  # noqa: ASYNC109 - it says in words what takes so long
        """Wait until no run can go on: each is over, or waits for a signal, for the clock or for somebody else.

        Raises `TimeoutError` if that takes longer than `timeout` in true time.
        """
        if not self._workers:
            raise ConfigurationError("there is no worker to wait for; make one: worker({'name': handler})")
        try:
            async with asyncio.timeout(as_pause(timeout, "timeout").total_seconds()):
                has_worked = True
                while has_worked:  # what one has done may be work for another
                    has_worked = any([await worker.until_idle() for worker in self._workers])
        except TimeoutError:
            does = "; ".join(worker.what_it_does() for worker in self._workers)
            raise TimeoutError(f"there was work to do all the time: {does}") from None

    async def end(self) -> None:
        """Stop all, and warn of steps that had to be cut off."""
        left = sum([await worker.end() for worker in self._workers])
        self._workers.clear()
        if left:
            message = f"the test ended with {left} run(s) at work, which were cut off; wait for `worker.until_idle()`"
            warnings.warn(message, RunsLeft, stacklevel=1)

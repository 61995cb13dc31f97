"""`Worker`: claim and resume abandoned runs for ever."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, Self

from orchestrator_state import hooks
from orchestrator_state.arguments import as_duration, as_flag, as_handlers, as_positive
from orchestrator_state.concurrency import on_signals, uninterrupted
from orchestrator_state.errors import ConfigurationError, OrchestratorStateError, StoreUnavailable
from orchestrator_state.execution import Pulse, RecoveredRun, Recovery, WorkerHealth
from orchestrator_state.maintenance import Retention, on_duty
from orchestrator_state.runs import Duration, Handler
from orchestrator_state.store import StateStore

__all__ = [
    "Worker",
]

_LOOK_FOR_THE_DEAD: Final = 3.0  # seconds between looks for leases of dead processes
_TIDY: Final = 3600.0  # seconds between looks for the ids of old calls, and for runs that nobody can claim
_TRY_FOR: Final = timedelta(seconds=1)  # while the database is away; a stop must not wait for `retry_timeout`
_LINGER: Final = timedelta(seconds=1)


class Worker:
    """Shares the runs of a database with other workers, on this machine or others, through the database alone.

        async with StateStore.open(url) as store:
            await Worker(store, {"summarise": summarise}).run()

    It has at most `concurrency` runs under way. It looks for work every `poll` (jittered), and at once when Postgres
    notifies it. `stop` makes it claim no more, let the runs under way go on for `grace`, then stop them where they are
    and release their leases, so that others take over at once. `poll` and `grace` are durations, or seconds.

    `run` is for a program that does nothing else: SIGTERM and SIGINT stop it, unless `handle_signals` is False.
    `async with Worker(…)` is for one that does, such as a web server: it works until the end of the block, and leaves
    the signals to the program.

    With a `retention` it also deletes what that policy does not keep, in the background. Of all workers of a namespace
    one at a time does so, every `retention.every`; `health` and `store.last_retention` tell when that last succeeded.

    Nothing else ends it. What goes wrong with a look for work is logged, and it looks again after a growing pause of at
    most five seconds; `health` tells how it is doing. Only a store that was closed, or is of another event loop, is a
    `ConfigurationError`.
    """

    def __init__(
        self,
        store: StateStore,
        handlers: Mapping[str, Handler[Any]],
        *,
        concurrency: int = 10,
        poll: Duration = timedelta(seconds=1),
        grace: Duration = timedelta(seconds=10),
        handle_signals: bool = True,
        retention: Retention | None = None,
    ) -> None:
        if not hasattr(store, "recovery"):  # not isinstance: an `Opening` says what was forgotten when it is asked
            raise ConfigurationError(f"store is a {type(store).__name__}; give a StateStore that is open")
        if not as_handlers(handlers):
            raise ConfigurationError("a worker needs at least one handler")
        self._store = store
        self._recovery: Recovery = store.recovery(handlers, patience=_TRY_FOR)
        self._pulse = Pulse()
        self._concurrency = as_positive(concurrency, "concurrency")
        self._poll = as_duration(poll, "poll").total_seconds()
        if self._poll == 0:
            raise ConfigurationError("poll must be more than nothing")
        self._grace = as_duration(grace, "grace").total_seconds()
        self._handle_signals = as_flag(handle_signals, "handle_signals")
        self._duty = None if retention is None else store.retention_duty(retention)
        self._stopping = asyncio.Event()
        self._news = asyncio.Event()
        self._under_way: set[asyncio.Task[RecoveredRun]] = set()
        self._looked_for_the_dead_at = float("-inf")
        self._tidied_at = time.monotonic()
        self._background: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Claim no more, and end `run` once the runs under way are done or their grace is over."""
        self._stopping.set()
        self._news.set()
        if self._pulse.state == "working":
            self._pulse.state = "stopping"

    def health(self) -> WorkerHealth:
        """How it is doing, without asking the database: for a probe, or a gauge."""
        if self._duty is None:
            return self._pulse.health(len(self._under_way))
        return self._pulse.health(
            len(self._under_way), retained_at=self._duty.succeeded_at, retention_error=self._duty.last_error
        )

    async def run(self) -> None:
        """Work until `stop`, SIGTERM or SIGINT. Raises `ConfigurationError` if the store is closed."""
        with on_signals(self.stop) if self._handle_signals else contextlib.nullcontext():
            await self._run()

    async def _run(self) -> None:
        self._pulse.state = "working"
        try:
            await self._work()
        finally:
            self._pulse.state = "stopped"

    async def _work(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._store.listening(self._news.set))
            stack.enter_context(self._recovery.telling(self._news.set))
            try:
                async with on_duty(self._duty):
                    while not self._stopping.is_set():
                        await self._look_for_work()
                if self._under_way:
                    await asyncio.wait(self._under_way, timeout=self._grace)
            finally:
                await self._cancel_the_rest()

    async def __aenter__(self) -> Self:
        """Work in the background until the block ends. Signals are the program's own."""
        await self._store.__aenter__()  # which refuses what `_run` would refuse, when nobody waits for it
        self._background = asyncio.create_task(self._run(), name="orchestrator_state worker")
        self._background.add_done_callback(_tell_of_its_end)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if self._background is not None:
            await self._background

    async def _look_for_work(self) -> None:
        """Claim what there is a place for, and wait for more. Whatever goes wrong is no reason to end."""
        self._news.clear()
        try:
            has_looked = await self._claim()
        except Exception as error:
            if _is_misuse(error):
                raise
            self._looked_for_the_dead_at = float("-inf")  # what was claimed, and not heard of, is to be let go at once
            pause = self._pulse.failed(error)
            hooks.logger.warning("no work can be claimed (%s); next look in %.1f s", _in_words(error), pause)
            await _wait(self._stopping, pause)
        else:
            if has_looked:
                self._pulse.could_look()
            await self._wait_for_news()

    async def _claim(self) -> bool:
        """Whether it asked the database: not, if there is no place for more."""
        free = self._concurrency - len(self._under_way)
        if free <= 0 or self._stopping.is_set():
            return False
        if time.monotonic() - self._looked_for_the_dead_at >= _LOOK_FOR_THE_DEAD:
            await self._recovery.end_dead_leases()
            self._looked_for_the_dead_at = time.monotonic()
        if time.monotonic() - self._tidied_at >= _TIDY:
            self._tidied_at = time.monotonic()
            await self._recovery.forget_old_calls()
            await self._recovery.list_unknown()  # says in the log which are damaged
        await self._recovery.start(free, self._watch, linger=_LINGER)
        return True

    def _watch(self, task: asyncio.Task[RecoveredRun]) -> None:
        self._under_way.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[RecoveredRun]) -> None:
        self._under_way.discard(task)
        self._news.set()

    async def _wait_for_news(self) -> None:
        await _wait(self._news, self._poll * random.uniform(0.75, 1.25))  # noqa: S311 - spreads load, guards nothing

    async def _cancel_the_rest(self) -> None:
        left = set(self._under_way)
        for task in left:
            task.cancel()
        if left:
            await uninterrupted(asyncio.wait(left))


def _is_misuse(error: Exception) -> bool:
    """Of what the database refuses there is another class."""
    return isinstance(error, ConfigurationError) and not isinstance(error, StoreUnavailable)


def _in_words(error: Exception) -> str:
    """Without the message of somebody else's error, which may hold anything."""
    return str(error) if isinstance(error, OrchestratorStateError) else type(error).__qualname__


def _tell_of_its_end(background: asyncio.Task[None]) -> None:
    """If it was not told to end: whoever is inside the block would hear of it only at the end of that."""
    if not background.cancelled() and (error := background.exception()) is not None:
        hooks.logger.error("the worker ended (%s)", type(error).__qualname__)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()

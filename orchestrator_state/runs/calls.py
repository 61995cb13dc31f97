"""Call a step's function: async, or sync and then in a thread, with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from types import CodeType
from typing import Any, TypeVar

from orchestrator_state.concurrency import Returned, Threads, call_apart

_T = TypeVar("_T")

StepFunction = Callable[..., Awaitable[_T]] | Callable[..., _T]


class _NotBegun(Exception):
    """The function was not called: it no longer was the moment for it."""


async def call(
    threads: Threads,
    fn: StepFunction[Any],
    args: tuple[Any, ...],
    limit: timedelta | None,
    *,
    may_begin: Callable[[], bool],
    ask: Callable[[], Awaitable[None]],
) -> Returned[Any]:
    """Call `fn`, a sync one in one of `threads`. Raises what it raises, as an `Exception`: see `call_apart`.

    Raises `TimeoutError` when `limit` is over, counted from the moment that `fn` is called. A thread cannot be
    stopped: after a timeout or a cancellation a sync function runs on, and its result is dropped. `may_begin` is asked
    at the last moment, in the thread that is to call `fn`: if it says no, `ask` is awaited first. There is time for it
    to change: a call waits for its turn of the loop, for a thread, or out a pause after a failure.
    """
    seconds = None if limit is None else limit.total_seconds()
    work = (
        partial(_call_async, fn, args, seconds, may_begin)
        if is_async(fn)
        else partial(_call_in_thread, threads, fn, args, seconds, may_begin)
    )
    while True:
        try:
            return await call_apart(work)
        except _NotBegun:
            await ask()


def is_async(fn: Callable[..., Any]) -> bool:
    code = getattr(fn, "__code__", None)  # of a proxy it may be anything
    if type(code) is CodeType and code.co_flags & inspect.CO_COROUTINE:
        return True  # as nearly always; `inspect` looks under partials and methods first
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004


async def _call_async(
    fn: Callable[..., Awaitable[_T]], args: tuple[Any, ...], seconds: float | None, may_begin: Callable[[], bool]
) -> _T:
    if not may_begin():
        raise _NotBegun
    if seconds is None:
        return await fn(*args)
    async with asyncio.timeout(seconds):
        return await fn(*args)


async def _call_in_thread(
    threads: Threads,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    seconds: float | None,
    may_begin: Callable[[], bool],
) -> Any:
    loop = asyncio.get_running_loop()

    def work() -> Any:
        if not may_begin():  # there may have been a queue for the thread
            raise _NotBegun
        return fn(*args)

    async with asyncio.timeout(None) as clock:

        def start_the_clock() -> None:
            if seconds is not None:
                with contextlib.suppress(RuntimeError):  # nobody waits for the call any more
                    clock.reschedule(loop.time() + seconds)

        result = await threads.call(work, start_the_clock)
        return await result if inspect.isawaitable(result) else result

"""Finish short work even if the task is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


class Unstoppable(asyncio.Future[_T]):
    """Whoever awaits it, and is cancelled meanwhile, learns of that once it is done.

    It refuses to be cancelled, so asyncio keeps the cancellation, with its message, until it wakes the task. That takes
    no second future in front of the first one, and no turn of the loop, in each step.
    """

    def cancel(self, msg: Any = None) -> bool:
        return False


async def uninterrupted(work: Coroutine[Any, Any, _T]) -> _T:
    """Return `await work`. A cancellation that comes meanwhile, however often, is raised once `work` is done.

    For commits and releases: after half of one, memory would not know what the database holds.
    """
    task = asyncio.ensure_future(work)
    cancelled = await outlasted(task)
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that it is not reported as lost
        raise cancelled
    return task.result()


async def settled(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait until it is done, however often we are cancelled meanwhile."""
    task.cancel()
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()


async def outlasted(future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until `future` is done, however it ends. Returns a cancellation that came meanwhile, for us to raise."""
    if future.done():
        return None
    end: Unstoppable[None] = Unstoppable(loop=future.get_loop())
    future.add_done_callback(lambda _: end.set_result(None))
    try:
        await end
    except asyncio.CancelledError as error:
        return error
    return None


async def outlasting(work: Coroutine[Any, Any, _T]) -> tuple[_T, asyncio.CancelledError | None]:
    """Return what `await work` returns, and a cancellation that came meanwhile, for us to raise when we are done.

    If `work` raises, a cancellation goes before.
    """
    task = asyncio.ensure_future(work)
    cancelled = await outlasted(task)
    if cancelled is not None and (task.cancelled() or task.exception() is not None):
        raise cancelled
    return task.result(), cancelled

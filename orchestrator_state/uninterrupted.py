"""Finish short work even if the task is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

_T = TypeVar("_T")


async def uninterrupted(work: Coroutine[Any, Any, _T]) -> _T:
    """Return `await work`. A cancellation that comes meanwhile, however often, is raised once `work` is done.

    For commits and releases: after half of one, memory would not know what the database holds.
    """
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
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
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        end = future.get_loop().create_future()
        future.add_done_callback(partial(_wake, end))
        try:
            await end
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def outlasting(work: Coroutine[Any, Any, _T]) -> tuple[_T, asyncio.CancelledError | None]:
    """Return what `await work` returns, and a cancellation that came meanwhile, for us to raise when we are done.

    If `work` raises, a cancellation goes before.
    """
    task = asyncio.ensure_future(work)
    cancelled = await outlasted(task)
    if cancelled is not None and (task.cancelled() or task.exception() is not None):
        raise cancelled
    return task.result(), cancelled


def _wake(end: asyncio.Future[None], _: asyncio.Future[Any]) -> None:
    if not end.done():
        end.set_result(None)

"""Repeat a transaction that the database gave up on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

import stamina

from orchestrator_state.errors import StoreUnavailable

_Result = TypeVar("_Result")


def is_transient(error: Exception) -> bool:
    return isinstance(error, StoreUnavailable) and error.transient


async def while_transient(work: Callable[[], Awaitable[_Result]], patience: timedelta) -> _Result:
    """Return `await work()`, calling it again with growing, jittered pauses while it fails transiently.

    After `patience` the last error is raised. `work` must be one whole transaction.
    """
    try:
        return await work()  # nearly always; the machinery below costs as much as a statement
    except StoreUnavailable as error:
        if not error.transient:
            raise
    async for attempt in stamina.retry_context(
        on=is_transient, attempts=None, timeout=patience, wait_initial=0.01, wait_max=0.5, wait_jitter=0.05
    ):
        with attempt:
            return await work()
    raise AssertionError("stamina yields until it returns or raises")

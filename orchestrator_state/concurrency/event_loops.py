"""A store belongs to one event loop: in another one its connections would wait for ever, or break under their owner."""

from __future__ import annotations

import asyncio
from typing import Final

from orchestrator_state.errors import ConfigurationError

_NONE_RUNS: Final = "no event loop of asyncio is running here, and a store works in one alone"


def running_loop() -> asyncio.AbstractEventLoop:
    """Raise `ConfigurationError` where none runs: under another framework, or in a process forked inside a task."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise ConfigurationError(_NONE_RUNS) from None


def require_own_loop(owner: asyncio.AbstractEventLoop) -> None:
    """Raise `ConfigurationError` in another event loop than `owner`."""
    try:
        if asyncio.get_running_loop() is owner:
            return
    except RuntimeError:
        raise ConfigurationError(_NONE_RUNS) from None
    if owner.is_closed():
        raise ConfigurationError("the event loop of this store has ended; open a store in each asyncio.run()")
    raise ConfigurationError(
        "this store belongs to another event loop; open another one here, or send the call to its loop with "
        "asyncio.run_coroutine_threadsafe()"
    )

"""The context variables of a task, seen from outside: nothing else of asyncio's tells which tasks belong together."""

from __future__ import annotations

import asyncio
import gc
from contextvars import Context
from typing import Any


def context_of(task: asyncio.Task[Any]) -> Context | None:
    """Python 3.11 has no `get_context`, but tells the garbage collector: the task's own context comes first."""
    get_context = getattr(task, "get_context", None)
    if get_context is not None:
        context: Context = get_context()
        return context
    return next((each for each in gc.get_referents(task) if isinstance(each, Context)), None)

"""Which runs have a task at work in plain code, outside their durable calls.

asyncio does not tell which tasks belong together. What a task starts gets a copy of its context, so a context variable
marks them: all tasks of a handler, however deep, and also those that it has forgotten.
"""

from __future__ import annotations

import asyncio
import gc
from asyncio import taskgroups, tasks
from collections.abc import Collection
from contextvars import Context, ContextVar
from typing import Any, Final

HANDLER: Final = "orchestrator_state run"
"""How the task of a handler is named, before the run's id. Those of others of our own are no handler's."""

_OURS: Final = "orchestrator_state "
_run: Final[ContextVar[object | None]] = ContextVar("orchestrator_state_run", default=None)
_in_step_of: Final[ContextVar[object | None]] = ContextVar("orchestrator_state_in_step_of", default=None)
_JOINS: Final = frozenset({tasks.__file__, taskgroups.__file__})


def mark(run: object) -> None:
    """This task, and all that it is going to start, belong to `run`."""
    _run.set(run)


class step_of:  # noqa: N801 - a context manager reads as a phrase: `with step_of(run):`
    """What is started inside the block is the business of a step of `run`, and not the handler's."""

    __slots__ = ("_run", "_token")

    def __init__(self, run: object) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._token = _in_step_of.set(self._run)

    def __exit__(self, *_: object) -> None:
        _in_step_of.reset(self._token)


def busy_runs(runs: Collection[object], waiting: Collection[asyncio.Task[Any]]) -> set[object]:
    """Those of `runs` that have a task which is neither in `waiting` nor waits for other tasks to end.

    A task that waits for anything else, be it a timer, a socket or an event, is at work. Looks at all tasks there are.
    """
    found: set[object] = set()
    for task in asyncio.all_tasks():
        name = task.get_name()
        if task in waiting or (name.startswith(_OURS) and not name.startswith(HANDLER)):
            continue
        context = _context_of(task)
        run = context.get(_run) if context is not None else None
        if context is None or run not in runs or run in found or context.get(_in_step_of) is run:
            continue
        if not _waits_for_tasks(task):
            found.add(run)
    return found


def _context_of(task: asyncio.Task[Any]) -> Context | None:
    """Python 3.11 has no `get_context`, but tells the garbage collector: the task's own context comes first."""
    get_context = getattr(task, "get_context", None)
    if get_context is not None:
        context: Context = get_context()
        return context
    return next((each for each in gc.get_referents(task) if isinstance(each, Context)), None)


def _waits_for_tasks(task: asyncio.Task[Any]) -> bool:
    """Whether it awaits a task, `gather`, `wait`, `wait_for`, `as_completed`, or the end of a `TaskGroup`."""
    waiter = getattr(task, "_fut_waiter", None)
    if isinstance(waiter, asyncio.Task) or hasattr(waiter, "_children"):  # what `gather` returns has them
        return True
    coroutine: Any = task.get_coro()
    names = []
    while coroutine is not None and hasattr(coroutine, "cr_code"):
        code = coroutine.cr_code
        names.append(code.co_name if code.co_filename in _JOINS else None)
        coroutine = coroutine.cr_await
    return "_wait_for_one" in names or (names[-1:] != [] and names[-1] not in (None, "sleep"))

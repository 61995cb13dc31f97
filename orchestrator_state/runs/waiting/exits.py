"""Which of the runs that wait have a task at work in plain code, outside their durable calls; the others are let go of.

asyncio does not tell which tasks belong together. What a task starts gets a copy of its context, so a context variable
marks them: all tasks of a handler, however deep, and also those that it has forgotten.
"""

from __future__ import annotations

import asyncio
from asyncio import taskgroups, tasks
from collections.abc import Collection, Iterable
from contextvars import Context, ContextVar
from typing import Any, Final, Protocol

from orchestrator_state.concurrency import context_of

HANDLER: Final = "orchestrator_state run"
"""How the task of a handler is named, before the run's id. Our tasks with other names are not a handler's."""

_SOON: Final = 60.0  # seconds
_REST: Final = 4  # times as long as the last look at all tasks took, at least
_OURS: Final = "orchestrator_state "
_run: Final[ContextVar[object | None]] = ContextVar("orchestrator_state_run", default=None)
IN_STEP: Final[ContextVar[tuple[object, str] | None]] = ContextVar("orchestrator_state_step", default=None)
"""The run and the id of the step whose function is called here: what that starts is none of the handler's tasks."""
_JOINS: Final = frozenset({tasks.__file__, taskgroups.__file__})


def mark(run: object) -> None:
    """This task, and all that it is going to start, belong to `run`."""
    _run.set(run)


class MayLeave(Protocol):
    """A run that may be let go of."""

    @property
    def ready_to_leave(self) -> bool: ...

    @property
    def waiting_tasks(self) -> Iterable[asyncio.Task[Any]]: ...

    def leave(self, *, is_busy: bool) -> None: ...


class Exits:
    """Looks at the tasks of all runs that may be let go of: at many in one go, since that is a look at every task."""

    def __init__(self) -> None:
        self._due: set[MayLeave] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._took = 0.0

    def ask(self, room: MayLeave) -> None:
        """`room.leave(...)` is called soon, unless it is not `ready_to_leave` by then."""
        self._due.add(room)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_REST * self._took, self._look)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer, due, self._due = None, self._due, set()
        began = loop.time()
        ready = {room for room in due if room.ready_to_leave}
        waiting = {task for room in ready for task in room.waiting_tasks}
        busy = busy_runs(ready, waiting) if ready else set()
        for room in ready:
            room.leave(is_busy=room in busy)
        self._took = loop.time() - began


def busy_runs(runs: Collection[object], waiting: Collection[asyncio.Task[Any]]) -> set[object]:
    """Those of `runs` that have a task which is neither in `waiting` nor waits for other tasks to end; or a time limit.

    A task that waits for anything else, be it a timer, a socket or an event, is at work. So is one with a time limit of
    asyncio's that is over soon: once the run is let go of, nobody knows of it. So is one which the loop is about to
    wake, since what it waited for is over. Looks at all tasks, timers and calls there are.
    """
    found: set[object] = set()
    for task in asyncio.all_tasks():
        if task in waiting or _is_our_own(task):
            continue
        run = _run_of(context_of(task))
        if run in runs and run not in found and not _waits_for_tasks(task):
            found.add(run)
    return found | _with_time_limits(runs) | _about_to_go_on(runs)


def _with_time_limits(runs: Collection[object]) -> set[object]:
    loop = asyncio.get_running_loop()
    soon = loop.time() + _SOON
    return {
        run
        for timer in getattr(loop, "_scheduled", ())  # loops other than asyncio's do not show theirs
        if (run := _run_of(getattr(timer, "_context", None))) in runs
        and timer.when() <= soon
        and not timer.cancelled()
        and _ends_a_wait(getattr(timer, "_callback", None))
    }


def _about_to_go_on(runs: Collection[object]) -> set[object]:
    """Those of which the loop is to wake a task next, or whose time limit is over.

    What else it calls in their contexts may be others' business: the connections that a run has opened are read there.
    """
    ready = list(getattr(asyncio.get_running_loop(), "_ready", ()))  # as above
    return {
        run
        for call in ready
        if (run := _run_of(getattr(call, "_context", None))) in runs
        and not call.cancelled()
        and _wakes_a_task(getattr(call, "_callback", None))
    }


def _wakes_a_task(callback: Any) -> bool:
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return not _is_our_own(owner)
    return _ends_a_wait(callback)


def _run_of(context: Context | None) -> object | None:
    """The run to whose handler it belongs; None for what the function of a step has started."""
    if context is None:
        return None
    run, in_step = context.get(_run), context.get(IN_STEP)
    return None if in_step is not None and in_step[0] is run else run


def _is_our_own(task: asyncio.Task[Any]) -> bool:
    name = task.get_name()
    return name.startswith(_OURS) and not name.startswith(HANDLER)


def _ends_a_wait(callback: Any) -> bool:
    """Of a timer: whether it is of asyncio's `timeout`, `wait`, `wait_for` or `as_completed`; or of anyio's limits."""
    code, owner = getattr(callback, "__code__", None), getattr(callback, "__self__", None)
    if code is not None and code.co_filename in _JOINS:
        return True
    task = getattr(owner, "_task", None) or getattr(owner, "_host_task", None)
    return isinstance(task, asyncio.Task) and not _is_our_own(task)


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

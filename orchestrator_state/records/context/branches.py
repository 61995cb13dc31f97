"""Which branch of a handler does something, and what it can be sure was done before: a clock for each branch.

A branch is a task. It begins with all that the task which started it had done until then, and is told nothing of what
others do meanwhile. So a branch knows its own past and that of those it came from; that is also all which the handler
has surely done once more when a resumed run comes back to the same place. Whether a branch has waited for another
cannot be seen, and is not assumed.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from itertools import count
from typing import Any, Final
from weakref import ref

from orchestrator_state.concurrency import context_of

_LONGEST_LOOK: Final = 0.0003  # seconds, of the processor: some hundred tasks


class Branch:
    """One task of a handler."""

    __slots__ = ("_task", "taken")

    def __init__(self, task: asyncio.Task[object] | None) -> None:
        self.taken: set[str | None] = set()
        """What it has taken up since its last step."""
        # Not the task itself: a place is kept in the task's own context.
        self._task = None if task is None else ref(task)

    def is_of(self, task: asyncio.Task[object]) -> bool:
        return self._task is not None and self._task() is task

    @property
    def is_alive(self) -> bool:
        task = None if self._task is None else self._task()
        return task is not None and not task.done()


class Place:
    """How far a branch has come. `tick` grows with all that it does; `last` is the newest of its past's patches."""

    __slots__ = ("branch", "branches", "call", "last", "newest", "parent", "tick")

    def __init__(
        self,
        branches: Branches,
        branch: Branch,
        tick: int,
        parent: Place | None,
        last: int,
        newest: int = -1,
        call: int | None = None,
    ) -> None:
        self.branches = branches
        self.branch = branch
        self.tick = tick
        self.parent = parent
        self.last = last
        self.newest = newest
        """The recorded step that it has come past most recently: with a patch, or without one but ahead of others."""
        self.call = call
        """While the branch waits for a step: the tick of that call. The step may use tasks and threads of its own."""

    def knows(self, branch: Branch, tick: int) -> bool:
        """Whether what `branch` did at `tick` belongs to the past of this place."""
        place: Place | None = self
        while place is not None:
            if place.branch is branch:
                return tick <= place.tick
            place = place.parent
        return False


_place: Final[ContextVar[Place | None]] = ContextVar("orchestrator_state_place", default=None)


class Branches:
    """Those of one attempt of one handler."""

    def __init__(self) -> None:
        self._ticks = count(1)
        self._known: list[Branch] = []
        self._is_crowded = False

    def here(self) -> Place:
        """The place of whoever is calling. Threads, and tasks that a step started, act for its branch."""
        place = _place.get()
        if place is not None and place.branches is not self:
            place = None
        if place is not None and place.call is not None:
            return place
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        if place is not None and (task is None or place.branch.is_of(task)):
            return place
        return self._started(task, place)

    def advance(self, past: int = -1, *, step: int = -1) -> Place:
        """The place of whoever is calling, once it has done more, or come past a patch, or a step without one."""
        place = self.here()
        last, step = max(place.last, past), max(past, step)
        newest = place.newest if step < 0 else step
        if place.call is not None:
            place.last, place.newest = last, newest
            return place
        place = Place(self, place.branch, next(self._ticks), place.parent, last, newest)
        _place.set(place)
        return place

    def begin_call(self) -> Place:
        """From now on the calling branch waits for a step: whoever does something does it for that step."""
        before = self.here()
        tick = next(self._ticks)
        place = Place(self, before.branch, tick, before.parent, before.last, before.newest, tick)
        _place.set(place)
        return place

    def end_call(self, place: Place) -> None:
        """The step that began at `place` is over."""
        _place.set(Place(self, place.branch, place.tick, place.parent, place.last, place.newest))

    def enter(self) -> None:
        """What this task starts from now on are branches of ours, also before they have done anything."""
        _place.set(Place(self, Branch(None), next(self._ticks), None, -1))

    def others_alive(self, place: Place) -> bool:
        """Whether there are other branches that have done something, and may do more now."""
        self._known = [branch for branch in self._known if branch.is_alive]
        return any(branch is not place.branch for branch in self._known)

    def others_possible(self, place: Place) -> bool:
        """The same, with those that have done nothing yet. Looks at all tasks there are; of very many it is assumed."""
        if self._is_crowded or self.others_alive(place):
            return True
        began = time.thread_time()
        found = any(not place.branch.is_of(task) and self._is_ours(task) for task in asyncio.all_tasks())
        self._is_crowded = time.thread_time() - began > _LONGEST_LOOK
        return found

    def _is_ours(self, task: asyncio.Task[Any]) -> bool:
        """Whether it is a branch, and not what a step has started."""
        context = context_of(task)
        place = None if context is None else context.get(_place)
        return place is not None and place.branches is self and place.call is None

    def _started(self, task: asyncio.Task[object] | None, parent: Place | None) -> Place:
        branch = Branch(task)
        if len(self._known) >= 64:
            self._known = [known for known in self._known if known.is_alive]
        self._known.append(branch)
        last, newest = (-1, -1) if parent is None else (parent.last, parent.newest)
        place = Place(self, branch, next(self._ticks), parent, last, newest)
        _place.set(place)
        return place

"""Who of a run's handler does something, and what of the rest had surely been done before: a clock for each branch.

A branch is a task. It begins with all that the task which started it had done until then, and is told nothing of what
others do meanwhile. So a branch knows its own past and that of those it came from; that is also all which the handler
has surely done once more when a resumed run comes back to the same place. Whether a branch has waited for another
cannot be seen, and is not assumed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from itertools import count
from typing import Final
from weakref import ref


class Branch:
    """One task of a handler."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[object] | None) -> None:
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

    __slots__ = ("branch", "branches", "call", "last", "parent", "tick")

    def __init__(
        self, branches: Branches, branch: Branch, tick: int, parent: Place | None, last: int, call: int | None = None
    ) -> None:
        self.branches = branches
        self.branch = branch
        self.tick = tick
        self.parent = parent
        self.last = last
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


class Call:
    """What `Branches.call` returns. A class, since each step passes through it, and a generator costs more."""

    __slots__ = ("_branches", "_ended", "_place")

    def __init__(self, branches: Branches, ended: Callable[[int], object]) -> None:
        self._branches = branches
        self._ended = ended

    def __enter__(self) -> None:
        self._place = self._branches.begin_call()

    def __exit__(self, *_: object) -> None:
        self._ended(self._place.tick)
        self._branches.end_call(self._place)


class Branches:
    """Those of one attempt of one handler."""

    def __init__(self) -> None:
        self._ticks = count(1)
        self._known: list[Branch] = []

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

    def advance(self) -> Place:
        """The place of whoever is calling, once it has done something more."""
        place = self.here()
        if place.call is not None:
            return place
        place = Place(self, place.branch, next(self._ticks), place.parent, place.last)
        _place.set(place)
        return place

    def saw(self, position: int) -> None:
        """The calling branch has come past the patch at `position`."""
        place = self.here()
        if position <= place.last:
            return
        if place.call is not None:
            place.last = position
        else:
            _place.set(Place(self, place.branch, place.tick, place.parent, position))

    def call(self, ended: Callable[[int], object]) -> Call:
        """In here the calling branch waits for a step: whoever does something does it for that step.

        `ended` is called at the end of it, with its tick.
        """
        return Call(self, ended)

    def begin_call(self) -> Place:
        """See `call`."""
        before = self.here()
        tick = next(self._ticks)
        place = Place(self, before.branch, tick, before.parent, before.last, tick)
        _place.set(place)
        return place

    def end_call(self, place: Place) -> None:
        """See `call`."""
        _place.set(Place(self, place.branch, place.tick, place.parent, place.last))

    def others_alive(self, place: Place) -> bool:
        """Whether there are other branches that may do something now."""
        self._known = [branch for branch in self._known if branch.is_alive]
        return any(branch is not place.branch for branch in self._known)

    def _started(self, task: asyncio.Task[object] | None, parent: Place | None) -> Place:
        branch = Branch(task)
        if len(self._known) >= 64:
            self._known = [known for known in self._known if known.is_alive]
        self._known.append(branch)
        place = Place(self, branch, next(self._ticks), parent, -1 if parent is None else parent.last)
        _place.set(place)
        return place

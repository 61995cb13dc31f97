"""The branches of a run that wait, and when its worker may let go of it.

A run is let go of once all its calls wait and no task of its handler is at work, and both have been so for `linger`. It
then needs neither memory nor a lease. That does not depend on the moment: a branch that waits goes on doing so until
what it waits for is there.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from orchestrator_state.database import FAR_FUTURE, LATEST_WAKING, DatabaseClock
from orchestrator_state.errors import RunSuspended
from orchestrator_state.runs.stopping import StopSwitch
from orchestrator_state.runs.waiting.exits import Exits
from orchestrator_state.runs.waiting.lookout import Lookout, Watch

_LONGEST_NAP: Final = 60.0  # seconds between looks at the clock, which the heartbeat sets right
_LOOK_AGAIN: Final = 0.25  # seconds until a run that was found at work is looked at again, at least


@dataclass(eq=False, slots=True)
class _Parked:
    """A branch that waits."""

    task: asyncio.Task[Any] | None
    watch: Watch
    until: datetime | None


@dataclass(eq=False, slots=True)
class _Rest:
    """A step that is to be called again."""

    ends: float
    woken: asyncio.Event


class WaitingRoom:
    """Counts the calls of a run that work and those that wait.

    `linger` is how long all of them have to wait before the run is suspended. None means that the worker waits as long
    as it takes.
    """

    def __init__(
        self,
        workflow_state_id: UUID,
        switch: StopSwitch,
        linger: timedelta | None,
        clock: DatabaseClock,
        lookout: Lookout,
        exits: Exits,
    ) -> None:
        self._workflow_state_id = workflow_state_id
        self._switch = switch
        self._linger = linger
        self._lookout = lookout
        self._exits = exits
        self._calls = 0
        self._parked: list[_Parked] = []
        self._resting: list[_Rest] = []
        self._timer: asyncio.TimerHandle | None = None
        self.clock: Final = clock

    def begin_call(self) -> None:
        """A call of the run is under way from now on, until `end_call`. Not a `with`, which costs more in each step."""
        self._calls += 1
        if self._timer is not None:
            self._stay()

    def end_call(self) -> None:
        """See `begin_call`."""
        self._calls -= 1
        if self._linger is not None:
            self._linger_if_all_wait()

    async def wait(
        self,
        *,
        signals: frozenset[str] = frozenset(),
        child: UUID | None = None,
        until: datetime | None = None,
    ) -> None:
        """Wait until it is worth while to look again for what this branch waits for: a signal, a child run, a time."""
        self._switch.obey()
        watch = Watch(workflow_state_id=self._workflow_state_id, switch=self._switch, signals=signals, child=child)
        parked = _Parked(asyncio.current_task(), watch, until)
        self._parked.append(parked)
        self._linger_if_all_wait()
        try:
            with self._lookout.watching(watch):
                await self._woken(watch, until)
            self._switch.obey()
        finally:
            if type(self._switch.reason) is not RunSuspended:
                self._parked.remove(parked)
                self._stay()

    async def rest(self, seconds: float) -> None:
        """Between two calls of a step's function, which keep the run where it is. By no clock that somebody sets."""
        loop = asyncio.get_running_loop()
        rest = _Rest(loop.time() + seconds, asyncio.Event())
        self._resting.append(rest)
        try:
            while (left := rest.ends - loop.time()) > 0:
                alarm = loop.call_later(left, rest.woken.set)
                try:
                    await rest.woken.wait()
                finally:
                    alarm.cancel()
                rest.woken.clear()
        finally:
            self._resting.remove(rest)

    @property
    def is_resting(self) -> bool:
        """Whether all that the run has to do is to wait, some of it between two calls of a step."""
        is_woken = any(each.woken.is_set() for each in self._resting)
        return bool(self._resting) and not is_woken and len(self._resting) + len(self._parked) == self._calls

    def skip(self, duration: timedelta) -> None:
        """The time has jumped, and the clock was set: who rests has rested for so long, who waits looks at it."""
        for rest in self._resting:
            rest.ends -= duration.total_seconds()
            rest.woken.set()
        for parked in self._parked:
            if parked.until is not None:
                parked.watch.woken.set()

    def wake_all(self) -> None:
        """The run is over: a branch that outlives its handler would wait, and look into the database, for ever."""
        for parked in self._parked:
            parked.watch.woken.set()

    async def is_to_wait_for(self, child: UUID) -> bool:
        """Whether a child run has been started before, and somebody else has it, or it waits."""
        question = Watch(workflow_state_id=self._workflow_state_id, switch=self._switch, child=child, is_question=True)
        with self._lookout.watching(question):
            await question.woken.wait()
        return not question.is_met

    async def _woken(self, watch: Watch, until: datetime | None) -> None:
        if until is None:
            await watch.woken.wait()
            return
        # Not `asyncio.timeout`, which would be taken for a time limit of the handler's.
        limit = min(_LONGEST_NAP, max(0.0, self.seconds_until(until)))
        alarm = asyncio.get_running_loop().call_later(limit, watch.woken.set)
        try:
            await watch.woken.wait()
        finally:
            alarm.cancel()

    def seconds_until(self, moment: datetime) -> float:
        """By the database's clock; negative once it is over."""
        return (moment - self.clock.now()).total_seconds()

    # --- letting go ----------------------------------------------------------------------------------------------

    @property
    def wake_at(self) -> datetime:
        """When a suspended run has to go on, unless a signal comes before."""
        due = min((parked.until for parked in self._parked if parked.until), default=FAR_FUTURE)
        return due if due == FAR_FUTURE else min(due, LATEST_WAKING)

    @property
    def awaited_signals(self) -> frozenset[str]:
        return frozenset[str]().union(*(parked.watch.signals for parked in self._parked))

    @property
    def awaited_children(self) -> frozenset[UUID]:
        return frozenset(parked.watch.child for parked in self._parked if parked.watch.child is not None)

    @property
    def waiting_tasks(self) -> list[asyncio.Task[Any]]:
        return [parked.task for parked in self._parked if parked.task is not None]

    @property
    def ready_to_leave(self) -> bool:
        """All calls wait, and go on doing so."""
        return (
            self._switch.reason is None
            and len(self._parked) == self._calls > 0
            and not any(parked.watch.woken.is_set() for parked in self._parked)
        )

    def leave(self, *, is_busy: bool) -> None:
        """Suspend the run, or look again later if a task of its handler is at work."""
        if is_busy:
            again = max(_LOOK_AGAIN, self._linger.total_seconds() if self._linger is not None else 0.0)
            self._timer = asyncio.get_running_loop().call_later(again, self._exits.ask, self)
            return
        self._switch.trip(
            RunSuspended(
                f"run {self._workflow_state_id} waits; `store.recover` or a Worker continues it",
                workflow_state_id=self._workflow_state_id,
            )
        )

    def _linger_if_all_wait(self) -> None:
        if self._linger is not None and self._timer is None and len(self._parked) == self._calls > 0:
            self._timer = asyncio.get_running_loop().call_later(self._linger.total_seconds(), self._exits.ask, self)

    def _stay(self) -> None:
        """Somebody works: linger anew once nobody does."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

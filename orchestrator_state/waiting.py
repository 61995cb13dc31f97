"""The branches of a run that wait, and when its worker may let go of it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from orchestrator_state.domain import utc_now
from orchestrator_state.errors import RunSuspended
from orchestrator_state.stopping import StopSwitch

FAR_FUTURE: Final = datetime(9999, 12, 31, tzinfo=UTC)
_LOOK_AROUND: Final = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class Parked:
    """A branch that waits for one of `signals`, for a time, or for a child run."""

    signals: frozenset[str]
    child: UUID | None
    until: datetime | None


class WaitingRoom:
    """Counts the calls of a run that work and those that wait.

    Once all of them wait, and have for `linger`, the run is suspended: it then needs neither memory nor a lease. None
    means that the worker waits as long as it takes.
    """

    def __init__(
        self, workflow_state_id: UUID, switch: StopSwitch, linger: timedelta | None, database_now: datetime
    ) -> None:
        self._workflow_state_id = workflow_state_id
        self._switch = switch
        self._linger = linger
        self._clock_offset = database_now - utc_now()
        self._calls = 0
        self._parked: dict[int, Parked] = {}
        self._numbers = itertools.count()
        self._idle_since: float | None = None

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """One of the run's calls is under way."""
        self._calls += 1
        self._idle_since = None
        try:
            yield
        finally:
            self._calls -= 1

    def now(self) -> datetime:
        """The database's time, near enough."""
        return utc_now() + self._clock_offset

    def deadline(self, duration: timedelta) -> datetime:
        try:
            return min(self.now() + duration, FAR_FUTURE)
        except OverflowError:
            return FAR_FUTURE

    async def wait(
        self,
        seconds: float,
        *,
        signals: frozenset[str] = frozenset(),
        child: UUID | None = None,
        until: datetime | None = None,
    ) -> None:
        """Wait up to `seconds` before looking again for what this branch waits for."""
        self._switch.obey()
        number = next(self._numbers)
        self._parked[number] = Parked(signals, child, until)
        loop = asyncio.get_running_loop()
        try:
            if self._all_wait():
                self._idle_since = self._idle_since or loop.time()
            await asyncio.sleep(self._at_most(seconds, loop.time()))
            self._switch.obey()
            if self._linger is not None and self._all_wait() and self._idle_for(loop.time()) >= self._linger:
                self._switch.stop(
                    RunSuspended(
                        f"run {self._workflow_state_id} waits; `store.recover` or a Worker continues it",
                        workflow_state_id=self._workflow_state_id,
                    )
                )
        finally:
            if not isinstance(self._switch.reason, RunSuspended):
                del self._parked[number]

    @property
    def wake_at(self) -> datetime:
        """When a suspended run has to go on, a signal aside."""
        return min((parked.until for parked in self._parked.values() if parked.until), default=FAR_FUTURE)

    @property
    def awaited_signals(self) -> frozenset[str]:
        return frozenset().union(*(parked.signals for parked in self._parked.values()))

    @property
    def awaited_children(self) -> frozenset[UUID]:
        return frozenset(parked.child for parked in self._parked.values() if parked.child is not None)

    def _all_wait(self) -> bool:
        return len(self._parked) == self._calls

    def _idle_for(self, now: float) -> timedelta:
        return timedelta(seconds=now - (now if self._idle_since is None else self._idle_since))

    def _at_most(self, seconds: float, now: float) -> float:
        """How long to wait before looking around: nobody tells a waiting branch that it is the last, or is to stop."""
        seconds = min(seconds, _LOOK_AROUND)
        if self._linger is None or not self._all_wait():
            return seconds
        left = self._linger - self._idle_for(now)
        return max(0.0, min(seconds, left.total_seconds()))

"""Which steps are running, and since when: known in the process, and written down for who looks on if it takes long.

A step that is quick writes nothing. About once a second, and only if there is something to write or to delete, one unit
writes for all runs of the store. It is nobody's business but the operator's: whatever happens to it, no run fails or
waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from contextvars import Context
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Final

from orchestrator_state import hooks
from orchestrator_state.database import Idling, elapsed, wait_briefly_for_locks
from orchestrator_state.errors import SchemaChanged
from orchestrator_state.records import Lease
from orchestrator_state.repositories import chunks
from orchestrator_state.repositories.overview import RunningStep
from orchestrator_state.transactions import Transactions

_PAUSE: Final = 1.0  # seconds that a step is running before it is written down, and between two units
_MOST_AT_ONCE: Final = 500  # rows, of which a statement takes the ids of all runs
_REST: Final = 4  # times as long as the last unit took, at least
_LONGEST_REST: Final = 30.0  # seconds, also after many failures
_REFUSED_FOR: Final = 10.0  # seconds until a run that was lost, or locked, is asked for again
_TIDIED_EVERY: Final = 60.0  # seconds, if there is something to write anyway
_LOGGED_EVERY: Final = 300.0  # seconds
_TO_CLOSE: Final = 1.0  # seconds to delete what was written
_LOCKED_FOR: Final = timedelta(milliseconds=100)  # then the unit gives up: it has a connection that others may want

Call = tuple[object, str]
"""The room of a run, and the id of the step: what stands in `IN_STEP`."""


@dataclass(frozen=True, slots=True)
class _Unit:
    begun: dict[Call, RunningStep]
    ended: dict[Call, RunningStep]
    tidies: bool


class CurrentSteps:
    """The steps that run in this process, for one store.

    A step adds itself to `running` when its function is called, and takes itself out at the end: that is all it costs.
    """

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions
        self.pause = _PAUSE
        self._closed = False
        self._start_anew()

    def _start_anew(self) -> None:
        self._pid = os.getpid()
        self.running: dict[Call, tuple[Lease, float]] = {}
        """In the order in which they began, by `elapsed`."""
        self.is_watching = False
        self._written: set[Call] = set()
        self._rows: dict[Call, RunningStep] = {}
        """Those that may be there: what has failed, perhaps in the middle of COMMIT, may have written them."""
        self._refused_until: dict[Call, float] = {}
        self._rest = 0.0
        self._tidied_at = -math.inf
        self._is_to_tidy = False
        self._logs_again_at = -math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def here(self) -> CurrentSteps:
        """Itself; in a forked child without the steps and rows of the parent."""
        if self._pid != os.getpid():
            self._start_anew()
        return self

    def watch(self) -> None:
        """Look soon at what is running, and then again, as long as something is."""
        if not self._closed:
            self.is_watching = True
            # In a context of its own: it is not the business of the run that happens to need it first.
            self._timer = asyncio.get_running_loop().call_later(
                max(self.pause, self._rest), self._look, context=Context()
            )

    def tidy(self) -> None:
        """A run was taken over from a worker that vanished, whose rows may be there."""
        self.here()
        self._is_to_tidy = True
        if not self.is_watching:
            self.watch()

    async def close(self) -> None:
        """Delete what was written, as far as that can be done at once, and leave no task."""
        if self._closed or self._pid != os.getpid():
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})
        with contextlib.suppress(Exception):  # nobody believes a row once its run was let go of
            async with asyncio.timeout(_TO_CLOSE):
                for rows in chunks(list(self._rows.values())):
                    async with self._transactions.begin(idles=Idling.BRIEFLY) as uow:
                        await wait_briefly_for_locks(uow.session, _LOCKED_FOR)
                        await uow.current_steps.remove(rows)

    # --- now and then ------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if self._is_to_tidy or self._have_ended() or self._have_begun():
            self._task = asyncio.get_running_loop().create_task(self._write(), name="orchestrator_state current steps")
            self._task.add_done_callback(self._look_again)
        else:
            self._look_again()

    def _look_again(self, _: object = None) -> None:
        if self.running or self._rows or self._is_to_tidy:
            self.watch()
        else:
            self.is_watching, self._rest = False, 0.0

    def _have_begun(self) -> dict[Call, RunningStep]:
        """The next ones that have been running for long enough, and are not written down."""
        now, found = elapsed(), dict[Call, RunningStep]()
        for call, (lease, began) in self.running.items():
            if now - began < self.pause or len(found) == _MOST_AT_ONCE:
                break
            if call not in self._written and lease.token and self._refused_until.get(call, now) <= now:
                found[call] = _running_step(call, lease, now - began)
        return found

    def _have_ended(self) -> dict[Call, RunningStep]:
        ended = (item for item in self._rows.items() if item[0] not in self.running)
        return dict(islice(ended, _MOST_AT_ONCE))

    async def _write(self) -> None:
        began = elapsed()
        try:
            await self._exchange()
        except Exception as error:  # noqa: BLE001 - whatever it is, no run may fail or wait for it
            self._rest = min(2 * max(self._rest, self.pause), _LONGEST_REST)
            self._log(error)
        else:
            self._rest = min(_REST * (elapsed() - began), _LONGEST_REST)

    async def _exchange(self) -> None:
        """Write what has begun, and delete what has ended by the time that it is our turn."""
        async with self._transactions.begin(idles=Idling.BRIEFLY) as uow:
            unit = self._next_unit()
            await wait_briefly_for_locks(uow.session, _LOCKED_FOR)
            await uow.current_steps.remove(unit.ended.values())
            owned = set(await uow.current_steps.add(list(unit.begun.values())))
            if unit.tidies:
                await uow.current_steps.remove_left_behind()
        self._has_committed(unit, {call for call, step in unit.begun.items() if step in owned})

    def _next_unit(self) -> _Unit:
        tidies = self._is_to_tidy or elapsed() - self._tidied_at >= _TIDIED_EVERY
        unit = _Unit(self._have_begun(), self._have_ended(), tidies)
        self._rows |= unit.begun
        return unit

    def _has_committed(self, unit: _Unit, owned: set[Call]) -> None:
        now = elapsed()
        self._written = {call for call in self._written | owned if call in self.running}
        for call in (*unit.ended, *(unit.begun.keys() - owned)):
            del self._rows[call]
        refused = dict.fromkeys(unit.begun.keys() - owned, now + _REFUSED_FOR)
        self._refused_until = {
            call: until for call, until in (self._refused_until | refused).items() if call in self.running
        }
        if unit.tidies:
            self._tidied_at, self._is_to_tidy = now, False

    def _log(self, error: Exception) -> None:
        """The first time, and then once in a while; not again if the table is missing, which will be so for long."""
        if (now := elapsed()) >= self._logs_again_at:
            message = "cannot write down which steps are running (%s); they are not listed, and run all the same"
            hooks.logger.warning(message, type(error).__name__)
            self._logs_again_at = math.inf if isinstance(error, SchemaChanged) else now + _LOGGED_EVERY


def _running_step(call: Call, lease: Lease, seconds: float) -> RunningStep:
    # To the millisecond: SQLite knows no more, and no exponents.
    return RunningStep(lease.workflow_state_id, lease.owner, lease.token, call[1], round(seconds, 3))
